"""Artifacts on their way into a folder: some chunks at a time, gone on with where a cut ended it.

What is written so far of a file is beside it under a name that no file of an artifact has, and so
is how many chunks that are; both may be lost, or lie, since the whole is hashed before it counts.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from core import chunks, errors, platforms
from core.chunks import File, Manifest

log = logging.getLogger(__name__)

AHEAD = 8
"""Chunks that are read while another is written."""
RECENT_MAX = 2 * AHEAD
"""Chunks that are kept for a while, since files name the same one again (of zeros, say)."""
NOTED_EVERY = 64
"""Chunks after which it is noted how far a file is."""
BLOCK_BYTES = 4 * 1024 * 1024

Read = Callable[[str], Awaitable[bytes]]
"""Fetches a chunk by its digest, checked."""


async def download(manifest: Manifest, folder: Path, read: Read) -> None:
    """Bring an artifact's files into a folder, made where it is not there; those that are there and
    whole stay as they are.

    Raises errors.ArtifactError for bytes that are not what the manifest says, OSError, and what
    `read` raises, after which the next try goes on where this one ended.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    for file in manifest.files:
        if not await asyncio.to_thread(_is_whole, file, folder / file.name):
            await _fetch(file, folder, read)


class _Note(msgspec.Struct, frozen=True):
    """How far a file is: of which digest, how many of its chunks, and their bytes."""

    sha256: str
    chunks: int
    bytes: int


def _is_whole(file: File, path: Path) -> bool:
    try:
        return path.stat().st_size == file.bytes and chunks.digest_of_file(path) == file.sha256
    except FileNotFoundError:
        return False


def _hash(path: Path) -> "hashlib._Hash":
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
    return found


async def _fetch(file: File, folder: Path, read: Read) -> None:
    part, noted = folder / f".{file.name}.part", folder / f".{file.name}.note"
    begun = await asyncio.to_thread(_begun, file, part, noted)
    try:
        await _write(file, part, noted, begun, read)
    except errors.ArtifactError as error:
        if not begun.bytes:
            raise
        # A power cut may leave a note of bytes that never reached the disk.
        log.info("%s is fetched anew: %s", file.name, error, extra={"action": "download"})
        await _write(file, part, noted, _Begun(hashlib.sha256(), 0, 0), read)
    noted.unlink(missing_ok=True)
    await asyncio.to_thread(platforms.replace, part, folder / file.name)


class _Begun(NamedTuple):
    """How far a file is: its hash so far, its chunks and its bytes."""

    whole: "hashlib._Hash"
    chunks: int
    bytes: int


async def _write(file: File, part: Path, noted: Path, begun: _Begun, read: Read) -> None:
    """Write what is left of a file, and sync it; nothing is kept of one that is not what it is said
    to be."""
    whole, at, size = begun
    try:
        with part.open("ab") as out:
            fetching = _Fetching(file, at, read)
            try:
                while (piece := await fetching.following()) is not None:
                    if size + len(piece) > file.bytes:
                        chunks.require_whole(file, size + len(piece), "")
                    await asyncio.to_thread(_append, out, whole, piece)
                    at, size = at + 1, size + len(piece)
                    if at % NOTED_EVERY == 0:
                        _note(noted, file, at, size, out)
            except BaseException:
                with contextlib.suppress(OSError):  # then the next try begins anew
                    _note(noted, file, at, size, out)
                raise
            finally:
                await fetching.close()
            chunks.require_whole(file, size, whole.hexdigest())
            await asyncio.to_thread(_sync, out)
    except errors.ArtifactError:
        await asyncio.to_thread(part.unlink, missing_ok=True)
        raise


def _begun(file: File, part: Path, noted: Path) -> _Begun:
    """What an earlier try wrote of a file."""
    try:
        note = msgspec.json.decode(noted.read_bytes(), type=_Note)
        if note.sha256 != file.sha256 or not 0 <= note.bytes <= part.stat().st_size:
            raise errors.ArtifactError(f"{part} is of another file")
        os.truncate(part, note.bytes)
        return _Begun(_hash(part), note.chunks, note.bytes)
    except FileNotFoundError:
        pass
    except (errors.ArtifactError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.info("%s is fetched anew: %s", file.name, error, extra={"action": "download"})
    part.unlink(missing_ok=True)
    return _Begun(hashlib.sha256(), 0, 0)


def _append(out: BinaryIO, whole: "hashlib._Hash", piece: bytes) -> None:
    out.write(piece)
    whole.update(piece)


def _note(noted: Path, file: File, at: int, size: int, out: BinaryIO) -> None:
    out.flush()
    noted.write_bytes(msgspec.json.encode(_Note(file.sha256, at, size)))


def _sync(out: BinaryIO) -> None:
    out.flush()
    platforms.sync_file(out.fileno())


class _Fetching:
    """What a file holds at one place after another, some of it fetched ahead."""

    def __init__(self, file: File, first: int, read: Read) -> None:
        self._file = file
        self._read = read
        self._places = iter(range(first, len(file.chunks)))
        self._ahead: deque[asyncio.Task[bytes]] = deque()
        self._recent: OrderedDict[str, asyncio.Task[bytes]] = OrderedDict()

    async def following(self) -> bytes | None:
        """What it holds at the next place; None at its end."""
        for at in itertools.islice(self._places, AHEAD - len(self._ahead)):
            self._ahead.append(asyncio.create_task(self._held_at(at)))
        return await self._ahead.popleft() if self._ahead else None

    async def _held_at(self, at: int) -> bytes:
        piece = await self._shared(self._file.chunks[at])
        changes = [await self._shared(one) for one in self._file.deltas.get(at, ())]
        if not changes:
            return piece
        return await asyncio.to_thread(chunks.patched, piece, changes)

    async def _shared(self, digest: str) -> bytes:
        task = self._recent.get(digest)
        if task is None:
            task = self._recent[digest] = asyncio.ensure_future(self._read(digest))
            for other in [one for one, done in self._recent.items() if done.done()]:
                if len(self._recent) <= RECENT_MAX:
                    break
                del self._recent[other]
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Leave off what is fetched still."""
        tasks = [*self._ahead, *self._recent.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
