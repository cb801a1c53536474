"""An agent deletes only what it made."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent import folders
from core import errors


def test_a_folder_made_here_is_emptied_as_often_as_one_likes(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tasks"
    for _ in range(2):
        folders.empty(folder)
        assert [path.name for path in folder.iterdir()] == [folders.MARK]
        (folder / "t1").mkdir()
        (folder / "t1" / "weights").write_bytes(b"x")
        (folder / "loose").write_bytes(b"x")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    folders.empty(tmp_path)
    folders.own(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folders.MARK]


def test_what_a_link_leads_to_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "work").write_text("mine")
    folders.own(tmp_path / "tasks")
    (tmp_path / "tasks" / "link").symlink_to(kept)
    folders.empty(tmp_path / "tasks")
    assert (kept / "work").read_text() == "mine"
    assert not (tmp_path / "tasks" / "link").is_symlink()


@pytest.mark.parametrize("ask", [folders.own, folders.empty])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(
    tmp_path: Path, ask: Callable[[Path], None]
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "notes.txt").write_text("mine")
    with pytest.raises(errors.DataDirectoryError, match="another --directory"):
        ask(tmp_path / "tasks")
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["notes.txt"]
