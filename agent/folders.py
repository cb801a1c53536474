"""Folders that an agent deletes from, and how it knows that they are its own."""

import shutil
from pathlib import Path

from core import errors

MARK = ".aghsan-agent"


def own(folder: Path) -> None:
    """Make a folder, or see that an agent made it: an empty one is taken, one with a mark is ours.

    Raises errors.DataDirectoryError for any other: nothing in it may be deleted.
    """
    mark = folder / MARK
    if mark.is_file():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.DataDirectoryError(
            f"{folder} is not an agent's: it has no {MARK} in it, and an agent deletes what it "
            f"finds there. Give the agent another --directory, or move that away."
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def empty(folder: Path) -> None:
    """Delete all in an agent's folder but its mark. Raises as `own` does."""
    own(folder)
    for path in folder.iterdir():
        if path.name == MARK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
