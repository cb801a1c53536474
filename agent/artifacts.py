"""Directories of training as artifacts: packed into manifest and chunks, and kept as they come."""

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent import folders, tensors
from core import chunks, deltas, errors, platforms
from core.chunks import File, Manifest

log = logging.getLogger(__name__)

PART = ".part-"
"""What the name of a folder begins with that is on its way."""
LARGE_TENSOR_BYTES = 4 * 1024
LARGE_TENSORS_MAX = 2_048
"""Of one file; where there could be more, larger ones only are cut out."""
KEPT_BYTES_MAX = 64 * 1024 * 1024
"""Of deltas, between the two times that they are needed; others are made twice."""
DELTA_BYTES_MIN = 4_096
DELTA_SHARE_MAX = 0.95
"""Of a chunk's bytes; a delta that saves less is not worth taking it apart again."""


class Pieces(Mapping[str, bytes]):
    """Chunks by digest, each read, or made of what is read, when it is asked for: an artifact may
    be larger than the memory.

    To get one raises OSError, and errors.ArtifactError where its file became shorter since.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[int, Callable[[], bytes]]] = {}
        self._kept: dict[str, bytes] = {}
        self._kept_bytes = 0

    def add(self, digest: str, size: int, make: Callable[[], bytes]) -> None:
        """There is one of this size."""
        self._made[digest] = size, make

    def keep(self, digest: str, piece: bytes) -> None:
        """There is this one, that takes long to make: the first are kept as they are."""
        if self._kept_bytes + len(piece) <= KEPT_BYTES_MAX and digest not in self._kept:
            self._kept[digest] = piece
            self._kept_bytes += len(piece)

    def sizes(self) -> dict[str, int]:
        """The bytes of each, by digest; nothing is read."""
        return {digest: size for digest, (size, _) in self._made.items()}

    def __getitem__(self, digest: str) -> bytes:
        _, make = self._made[digest]
        return self._kept.get(digest) or make()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def sizes_of(pieces: Mapping[str, bytes]) -> dict[str, int]:
    """The bytes of chunks, by digest; those of Pieces without reading them."""
    if isinstance(pieces, Pieces):
        return pieces.sizes()
    return {digest: len(piece) for digest, piece in pieces.items()}


class Packed(NamedTuple):
    """A manifest and those of its chunks that may have to be sent, by digest."""

    manifest: Manifest
    pieces: Mapping[str, bytes]


class Stored(NamedTuple):
    """An artifact that is stored already, and the folder that holds its files."""

    manifest: Manifest
    folder: Path


def pack(
    directory: Path,
    kind: str,
    writer: str,
    extra: Mapping[str, bytes] | None = None,
    before: Stored | None = None,
) -> Packed:
    """A directory's files (and `extra` ones) as a manifest and its chunks; tensors are told by what
    changed since `before`, where that is less. Files are read a chunk at a time, and again for
    those chunks that are asked for.

    Raises OSError when a directory went away meanwhile.
    """
    sources = {path.name: _Source.of(path) for path in sorted(directory.iterdir())}
    sources.update({name: _Source.of_bytes(data) for name, data in (extra or {}).items()})
    earlier = {file.name: file for file in before.manifest.files} if before else {}
    files, pieces = [], Pieces()
    for name, source in sources.items():
        cut = _Cut(name, source)
        old = None
        if before and cut.width and name in earlier:
            old = _Cut(name, _Source.of(before.folder / name))
        if old is not None and old.lengths == cut.lengths:
            files.append(_changed(cut, old, earlier[name], pieces))
        else:
            files.append(_whole(cut, pieces))
    named = [digest for file in files for digest in file.named()]
    if before and len(named) > chunks.MANIFEST_CHUNKS_MAX // 2:
        return pack(directory, kind, writer, extra)
    manifest = Manifest(kind=kind, writer=writer, files=files)
    return Packed(_with_lent(manifest, before, pieces) if before else manifest, pieces)


class _Source(NamedTuple):
    """A file's size, and how its bytes from one place to another, and its tensors, are had."""

    size: int
    read: Callable[[int, int], bytes]
    tensors: Callable[[], list[tensors.Tensor]]

    @classmethod
    def of(cls, path: Path) -> "_Source":
        listed = functools.partial(tensors.listed_of_file, path)
        return cls(path.stat().st_size, functools.partial(_read, path), listed)

    @classmethod
    def of_bytes(cls, data: bytes) -> "_Source":
        listed = functools.partial(tensors.listed, data)
        return cls(len(data), lambda start, end: data[start:end], listed)


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    if len(data) != end - start:
        raise errors.ArtifactError(f"{path} became shorter while it was sent")
    return data


class _Cut:
    """A file and where it is cut; `width` is the bytes of most of its numbers, 0 for no tensors."""

    def __init__(self, name: str, source: _Source) -> None:
        self.name = name
        self.size = source.size
        self.read = source.read
        cuts, self.width = _layout(name, source)
        self.ranges = list(chunks.ranges(source.size, cuts))
        self.lengths = [end - start for start, end in self.ranges]


def _whole(cut: _Cut, pieces: Pieces) -> File:
    """A file of its chunks, all of which may have to be sent."""
    digests, whole = [], hashlib.sha256()
    for start, end in cut.ranges:
        piece = cut.read(start, end)
        whole.update(piece)
        digests.append(chunks.digest_of(piece))
        pieces.add(digests[-1], end - start, functools.partial(cut.read, start, end))
    return File(name=cut.name, bytes=cut.size, sha256=whole.hexdigest(), chunks=digests)


def _changed(cut: _Cut, old: _Cut, earlier: File, pieces: Pieces) -> File:
    """A file told by what changed since an earlier one, cut alike."""
    named, changes, whole = [], {}, hashlib.sha256()
    for at, (place, before) in enumerate(zip(cut.ranges, old.ranges, strict=True)):
        piece = cut.read(*place)
        whole.update(piece)
        chain = earlier.deltas.get(at, [])
        if piece != (old_piece := old.read(*before)):
            may_grow = len(chain) < deltas.DELTAS_MAX and len(piece) >= DELTA_BYTES_MIN
            delta = deltas.make(old_piece, piece, cut.width) if may_grow else piece
            if len(delta) > len(piece) * DELTA_SHARE_MAX:
                named.append(chunks.digest_of(piece))
                pieces.add(named[-1], len(piece), functools.partial(cut.read, *place))
                continue
            chain = [*chain, chunks.digest_of(delta)]
            again = functools.partial(_delta, cut, place, old, before)
            pieces.add(chain[-1], len(delta), again)
            pieces.keep(chain[-1], delta)
        named.append(earlier.chunks[at])
        if chain:
            changes[at] = chain
    digest = whole.hexdigest()
    return File(name=cut.name, bytes=cut.size, sha256=digest, chunks=named, deltas=changes)


def _delta(cut: _Cut, place: tuple[int, int], old: _Cut, before: tuple[int, int]) -> bytes:
    return deltas.make(old.read(*before), cut.read(*place), cut.width)


def _with_lent(manifest: Manifest, before: Stored, pieces: Mapping[str, bytes]) -> Manifest:
    """A manifest, with what was lent to the one before and is not among what it brings."""
    kept = manifest.places().keys() - pieces.keys()
    lent = {
        writer: [digest for digest in digests if digest in kept]
        for writer, digests in before.manifest.lent.items()
    }
    return msgspec.structs.replace(manifest, lent={w: some for w, some in lent.items() if some})


def _layout(name: str, source: _Source) -> tuple[list[int], int]:
    """Where a file of tensors is cut so that a large one that did not change is the same chunks
    again, whatever stands before it (small ones between two large go together); and the bytes of
    most of its numbers, 0 for a file that is none.
    """
    if not name.endswith(".safetensors"):
        return [], 0
    try:
        found = source.tensors()
    except errors.ArtifactError as error:
        log.warning("%s is cut anywhere: %s", name, error, extra={"action": "pack"})
        return [], 0
    size = source.size
    large = max(LARGE_TENSOR_BYTES, size // LARGE_TENSORS_MAX)
    edges = {edge for one in found if one.end - one.start >= large for edge in (one.start, one.end)}
    widths: Counter[int] = Counter()
    for one in found:
        widths[tensors.WIDTHS[one.dtype]] += one.end - one.start
    width = widths.most_common(1)[0][0] if widths else 0
    return sorted(edge for edge in edges if 0 < edge < size), width


def unpack(files: Mapping[str, bytes], directory: Path) -> None:
    """Write files into a new directory: all of it or nothing. One that exists is left as it is."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".unpack-"))
    try:
        for name, data in files.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        settle(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(downloaded: Path, directory: Path) -> None:
    """Put a folder that is whole where it belongs. One that is there already is left as it is."""
    platforms.sync_folder(downloaded)
    if directory.exists():
        shutil.rmtree(downloaded, ignore_errors=True)
        return
    platforms.replace(downloaded, directory)
    platforms.sync_folder(directory.parent)


@contextlib.contextmanager
def on_its_way(directory: Path) -> Iterator[Path]:
    """Where a folder is while it is downloaded. What an error leaves there is gone on with, unless
    the disk has no room for more."""
    part = directory.with_name(PART + directory.name)
    try:
        yield part
    except OSError as error:
        if platforms.is_want_of_room(error):
            shutil.rmtree(part, ignore_errors=True)
        raise


class Cache:
    """Artifacts by their digests, each unpacked in a folder; the newest few are kept.

    It gives them where they lie, and so is one agent's alone; `agent.bases` shares among agents and
    links into tasks, which would hide from an executor, who knows texts by path, what it counted.
    """

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def open(self) -> None:
        """Make the folder. Raises errors.DataDirectoryError where it holds what is not ours."""
        folders.own(self._folder)

    async def get(self, manifest: str, download: Callable[[Path], Awaitable[Manifest]]) -> Path:
        """The folder of an artifact, downloaded where it is not there."""
        directory = self._folder / manifest
        if directory.is_dir():
            os.utime(directory)  # so that what is used is kept
            return directory
        with on_its_way(directory) as part:
            await download(part)
            await asyncio.to_thread(settle, part, directory)
        self._shed()
        return directory

    def _shed(self) -> None:
        """Delete the oldest of what is whole, and of what is on its way."""
        there = [path for path in self._folder.iterdir() if path.is_dir()]
        there.sort(key=lambda path: path.stat().st_mtime)
        for are_parts in (False, True):
            some = [path for path in there if path.name.startswith(PART) == are_parts]
            for old in some[: -self._kept]:
                shutil.rmtree(old, ignore_errors=True)
