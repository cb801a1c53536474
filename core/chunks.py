"""Artifacts: a manifest of files, each cut into chunks that are named by their SHA-256.

A chunk belongs to its writer (`chunk.<writer>.<sha256>`) and is written once; manifests of others
may name it too, as lent. Manifests are written by the desk alone, after it has verified every chunk
that they name.
"""

import asyncio
import builtins
import hashlib
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from core import deltas, errors
from core.deltas import DELTAS_MAX

DESK = "desk"
"""The writer of manifests, and of what control stores itself."""
CHUNK_BYTES = 1024 * 1024 - 4096
ARTIFACT_BYTES_MAX = 4 * 1024**3
"""A quarter of CHUNKS, as streams.yaml has it: the last two checkpoints of a task stay while the
next one comes, and room is left for results. Full training takes 12 bytes a number. It has to come
within an hour, before a sweep may take what came first: 1.2 MB/s for the largest."""
MODEL_BYTES_MAX = 512 * 1024 * 1024
"""Of the weights of a candidate: a judge holds some at once, whole."""
FILES_MAX = 64
MANIFEST_CHUNKS_MAX = CHUNK_BYTES // 67
"""More digests, in quotes and with their commas, fit into no manifest."""

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_-])?")
_WRITER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of an artifact: its plain name, size, digest, and chunks in order. `deltas` are the
    chunks that make of one of these, by its place, what the file holds there (`core.deltas`)."""

    name: str
    bytes: int
    sha256: str
    chunks: list[str]
    deltas: dict[int, list[str]] = {}

    def named(self) -> Iterator[str]:
        """The digests of all chunks that it names."""
        return itertools.chain(self.chunks, *self.deltas.values())


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an artifact is made of. `kind` is "checkpoint" or "candidate"; `lent` are those of its
    chunks that other writers stored, by writer."""

    kind: str
    writer: str
    files: list[File]
    lent: dict[str, list[str]] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    def places(self) -> dict[str, str]:
        """The writer of every chunk that it names, by digest."""
        places = {digest: self.writer for file in self.files for digest in file.named()}
        places.update((digest, writer) for writer, some in self.lent.items() for digest in some)
        return places

    def encode(self) -> builtins.bytes:
        """The bytes that are stored, and whose SHA-256 names the artifact."""
        return msgspec.json.encode(self)


def decode_manifest(raw: bytes) -> Manifest:
    """A stored manifest, its names and digests checked. Raises errors.ArtifactError."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ArtifactError(f"a manifest that cannot be read: {error}") from error
    require_sound(manifest)
    return manifest


def require_sound(manifest: Manifest) -> None:
    """Refuse names that could leave a directory, and writers and digests that are none.

    Raises errors.ArtifactError.
    """
    if not _WRITER.fullmatch(manifest.writer):
        raise errors.ArtifactError(f"{manifest.writer[:80]!r} is no writer of an artifact")
    if len(manifest.files) > FILES_MAX:
        raise errors.ArtifactError(
            f"a manifest of {len(manifest.files)} files; it may have {FILES_MAX}"
        )
    # Windows and macOS take names for the same that differ in case only.
    names = {file.name.lower() for file in manifest.files}
    if len(names) != len(manifest.files):
        raise errors.ArtifactError("a manifest that names a file twice")
    count = sum(1 for file in manifest.files for _ in file.named())
    if count > MANIFEST_CHUNKS_MAX:
        raise errors.ArtifactError(
            f"a manifest that names {count} chunks; it may name {MANIFEST_CHUNKS_MAX}"
        )
    for file in manifest.files:
        if not _NAME.fullmatch(file.name):
            raise errors.ArtifactError(f"{file.name[:80]!r} is no plain file name")
        if file.bytes < 0:
            raise errors.ArtifactError(f"{file.name} is said to have {file.bytes} bytes")
        if len(file.chunks) > file.bytes:
            raise errors.ArtifactError(
                f"{file.name} is said to be {len(file.chunks)} chunks of {file.bytes} bytes"
            )
        for digest in (file.sha256, *file.named()):
            require_name(digest)
        places = range(len(file.chunks))
        if any(at not in places or len(some) > DELTAS_MAX for at, some in file.deltas.items()):
            raise errors.ArtifactError(f"{file.name} has deltas of no chunk, or too many of one")
    _require_sound_lenders(manifest)


def _require_sound_lenders(manifest: Manifest) -> None:
    named = {digest for file in manifest.files for digest in file.named()}
    for writer, digests in manifest.lent.items():
        if not _WRITER.fullmatch(writer) or writer in (DESK, manifest.writer):
            raise errors.ArtifactError(f"{writer[:80]!r} lends nothing to {manifest.writer}")
        if not named.issuperset(digests):
            raise errors.ArtifactError(f"{writer} lends chunks that no file is made of")
        named.difference_update(digests)


def require_name(digest: str) -> None:
    """Raise errors.ArtifactError unless this is a SHA-256 in lower-case hex."""
    if not _DIGEST.fullmatch(digest):
        raise errors.ArtifactError(f"{digest[:80]!r} is no SHA-256 in lower-case hex")


def digest_of(data: bytes) -> str:
    """The name of a chunk or manifest."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split(data: bytes, cuts: Sequence[int] = ()) -> Iterator[bytes]:
    """Cut a file into chunks, as `ranges` has it; an empty one has none."""
    return (data[start:end] for start, end in ranges(len(data), cuts))


def ranges(size: int, cuts: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """From where to where the chunks of a file go: it is cut at these places, in ascending order,
    and where a part between two of them is too long for one."""
    for start, end in itertools.pairwise((0, *cuts, size)):
        for at in range(start, end, CHUNK_BYTES):
            yield at, min(end, at + CHUNK_BYTES)


def require_digest(piece: bytes, digest: str) -> None:
    """Raise errors.ArtifactError unless these bytes are what their name says."""
    found = digest_of(piece)
    if found != digest:
        raise errors.ArtifactError(
            f"chunk {digest[:12]}… holds bytes that hash to {found[:12]}…: damaged on its way or "
            "in the store"
        )


class Item(NamedTuple):
    """A stored chunk: where it stands (its sequence in CHUNKS, 0 elsewhere), the room it takes
    (headers too, if its writer gave it any), and when it was stored, in microseconds since 1970.
    `digest` is its name, which its writer chose: it may be none."""

    seq: int
    writer: str
    digest: str
    bytes: int
    at: int


Booked = Callable[[str, str, int], None]
"""Hears of a chunk that was put: its writer, its digest, its bytes."""


class ChunkStore(Protocol):
    """Where chunks and manifests lie. Implementations: MemoryChunks, `core.chunks_jetstream` and
    `core.chunks_s3`."""

    async def has(self, writer: str, digest: str) -> bool:
        """Whether a chunk is stored. Raises ArtifactError for a name that is no digest, as all
        questions here do, and Unavailable."""
        ...

    async def get(self, writer: str, digest: str) -> bytes:
        """A chunk's bytes, which are what their name says.

        Raises NotFound, ArtifactError for bytes that are something else, Unavailable.
        """
        ...

    async def take(self, writer: str, digest: str) -> bytes:
        """As `get`, of a chunk that is about to be named: from now on it lies where it stays."""
        ...

    async def put(self, writer: str, data: bytes) -> str:
        """Store a chunk; its digest. Storing it again changes nothing. Raises LogFull,
        Unavailable."""
        ...

    async def writers(self, digest: str) -> list[str]:
        """Who stored a chunk of this name, manifests aside. Raises Unavailable."""
        ...

    async def delete(self, writer: str, digest: str) -> None:
        """Take away a chunk that is not what its name says, so that it can be written again.

        Raises Unavailable.
        """
        ...

    def stored(self, after: int | None = None) -> AsyncIterator[Item]:
        """Everything that is stored, without its bytes; or only what came to CHUNKS after a
        sequence. Raises LogUnavailable, Unavailable."""
        ...

    async def sweep(self, item: Item) -> None:
        """Take away what `stored` told of; one that was written again since stays.

        Raises Unavailable.
        """
        ...


async def assemble(store: ChunkStore, manifest: Manifest, name: str) -> bytes:
    """A whole file, every digest checked. Raises NotFound, ArtifactError, Unavailable."""
    file = next((file for file in manifest.files if file.name == name), None)
    if file is None:
        raise errors.NotFound(f"the artifact has no file {name}")
    places, allowance, pieces = manifest.places(), Allowance(file), {}
    for digest in dict.fromkeys(file.named()):
        pieces[digest] = allowance.take(await store.get(places[digest], digest))
    # Sums over megabytes hold the loop up.
    return await asyncio.to_thread(join, file, pieces)


class Allowance:
    """What the chunks of a file may have together while it is put together: its own bytes, and as
    many again for each delta that may lie on one another."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._left = (1 + DELTAS_MAX) * file.bytes

    def take(self, piece: bytes) -> bytes:
        """A chunk that was fetched. Raises errors.ArtifactError where that makes too much."""
        self._left -= len(piece)
        if self._left < 0:
            raise errors.ArtifactError(
                f"{self._file.name} is said to have {self._file.bytes} bytes, its chunks have more"
            )
        return piece


def join(file: File, pieces: Mapping[str, bytes]) -> bytes:
    """A whole file of the chunks that it names, its digest checked. Raises errors.ArtifactError."""
    # A few chunks, named often, would be put together to any size; deltas change none.
    _require_size(file, sum(len(pieces[digest]) for digest in file.chunks))
    data = b"".join(
        patched(pieces[digest], [pieces[one] for one in file.deltas.get(at, ())])
        for at, digest in enumerate(file.chunks)
    )
    require_whole(file, len(data), digest_of(data))
    return data


def patched(piece: bytes, changes: Sequence[bytes]) -> bytes:
    """What deltas make of a chunk, one after another. Raises errors.ArtifactError."""
    for change in changes:
        piece = deltas.apply(piece, change)
    return piece


def require_whole(file: File, size: int, sha256: str) -> None:
    """Raise errors.ArtifactError unless a file has this size and digest."""
    _require_size(file, size)
    if sha256 != file.sha256:
        raise errors.ArtifactError(f"{file.name} does not hash to what its manifest says")


def _require_size(file: File, size: int) -> None:
    if size != file.bytes:
        raise errors.ArtifactError(
            f"{file.name} is said to have {file.bytes} bytes, its chunks have {size}"
        )


async def put_file(store: ChunkStore, writer: str, kind: str, name: str, data: bytes) -> str:
    """Store one file as an artifact of its own; the digest of its manifest."""
    pieces = [await store.put(writer, piece) for piece in split(data)]
    file = File(name=name, bytes=len(data), sha256=digest_of(data), chunks=pieces)
    return await store.put(writer, Manifest(kind=kind, writer=writer, files=[file]).encode())


async def get_file(store: ChunkStore, writer: str, digest: str) -> bytes:
    """The file of an artifact of one. Raises as `assemble` does."""
    manifest = decode_manifest(await store.get(writer, digest))
    if len(manifest.files) != 1:
        raise errors.ArtifactError(f"an artifact of {len(manifest.files)} files, not of one")
    return await assemble(store, manifest, manifest.files[0].name)


class MemoryChunks:
    """A chunk store that ends with its process."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], bytes] = {}

    async def has(self, writer: str, digest: str) -> bool:
        """As ChunkStore.has."""
        require_name(digest)
        return (writer, digest) in self.held

    async def get(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.get."""
        require_name(digest)
        data = self.held.get((writer, digest))
        if data is None:
            raise errors.NotFound(f"no chunk {digest[:12]}… of {writer} is stored")
        require_digest(data, digest)
        return data

    async def take(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.take."""
        return await self.get(writer, digest)

    async def put(self, writer: str, data: bytes) -> str:
        """As ChunkStore.put."""
        digest = digest_of(data)
        self.held.setdefault((writer, digest), data)
        return digest

    async def writers(self, digest: str) -> list[str]:
        """As ChunkStore.writers."""
        require_name(digest)
        return [writer for writer, name in self.held if name == digest and writer != DESK]

    async def delete(self, writer: str, digest: str) -> None:
        """As ChunkStore.delete."""
        require_name(digest)
        self.held.pop((writer, digest), None)

    async def stored(self, after: int | None = None) -> AsyncIterator[Item]:
        """As ChunkStore.stored."""
        for (writer, digest), data in [] if after is not None else list(self.held.items()):
            yield Item(0, writer, digest, len(data), 0)

    async def sweep(self, item: Item) -> None:
        """As ChunkStore.sweep."""
        self.held.pop((item.writer, item.digest), None)
