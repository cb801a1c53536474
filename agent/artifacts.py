"""Directories of training as artifacts: packed into manifest and chunks, and unpacked again."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from core import chunks, platforms
from core.chunks import File, Manifest


class Packed(NamedTuple):
    """A manifest and the bytes of each of its chunks, by digest."""

    manifest: Manifest
    pieces: dict[str, bytes]


def pack(
    directory: Path, kind: str, writer: str, extra: Mapping[str, bytes] | None = None
) -> Packed:
    """Read a directory's files (and `extra` ones) into a manifest and its chunks.

    Raises OSError when the directory went away meanwhile.
    """
    contents = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    contents.update(extra or {})
    files, pieces = [], {}
    for name, data in contents.items():
        digests = []
        for piece in chunks.split(data):
            digest = hashlib.sha256(piece).hexdigest()
            pieces[digest] = piece
            digests.append(digest)
        files.append(
            File(
                name=name,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                chunks=digests,
            )
        )
    return Packed(Manifest(kind=kind, writer=writer, files=files), pieces)


def unpack(files: Mapping[str, bytes], directory: Path) -> None:
    """Write files into a new directory: all of it or nothing. One that exists is left as it is."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".unpack-"))
    for name, data in files.items():
        with (temporary / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if directory.exists():
        for name in files:
            (temporary / name).unlink()
        temporary.rmdir()
        return
    temporary.replace(directory)
    platforms.sync_folder(directory.parent)
