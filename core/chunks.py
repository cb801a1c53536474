"""Artifacts: a manifest of files, each cut into chunks that are named by their SHA-256.

A chunk belongs to its writer (`chunk.<writer>.<sha256>`) and is written once. Manifests are written
by the desk alone, after it has verified every chunk that they name.
"""

import asyncio
import builtins
import hashlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from core import errors
from core.bus import SEQUENCE, STATUS, Bus

DESK = "desk"
"""The writer of manifests, and of what control stores itself."""
CHUNK_BYTES = 1024 * 1024 - 4096
FILES_MAX = 64
MANIFEST_CHUNKS_MAX = CHUNK_BYTES // 67
"""More digests, in quotes and with their commas, fit into no manifest."""
WRITTEN_ALREADY = 10077
"""JetStream's error code where a subject's only message stands already (and for a full stream)."""
NO_MESSAGE = frozenset({10037, 10043})
"""JetStream's error codes where nothing stands: none of this subject, none of this sequence."""
NOT_FOUND = "404"
FULL = frozenset({WRITTEN_ALREADY, 10002, 10023, 10028, 10047})
REQUEST_SECONDS = 10.0

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_-])?")
_WRITER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact: its plain name, size, digest, and chunks in order."""

    name: str
    bytes: int
    sha256: str
    chunks: list[str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact is made of. `kind` is "checkpoint" or "candidate"."""

    kind: str
    writer: str
    files: list[File]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

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
    for file in manifest.files:
        if not _NAME.fullmatch(file.name):
            raise errors.ArtifactError(f"{file.name[:80]!r} is no plain file name")
        if file.bytes < 0:
            raise errors.ArtifactError(f"{file.name} is said to have {file.bytes} bytes")
        for digest in (file.sha256, *file.chunks):
            require_name(digest)


def require_name(digest: str) -> None:
    """Raise errors.ArtifactError unless this is a SHA-256 in lower-case hex."""
    if not _DIGEST.fullmatch(digest):
        raise errors.ArtifactError(f"{digest[:80]!r} is no SHA-256 in lower-case hex")


def digest_of(data: bytes) -> str:
    """The name of a chunk or manifest."""
    return hashlib.sha256(data).hexdigest()


def split(data: bytes) -> Iterator[bytes]:
    """Cut a file into chunks; an empty file has none."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def require_digest(piece: bytes, digest: str) -> None:
    """Raise errors.ArtifactError unless these bytes are what their name says."""
    found = digest_of(piece)
    if found != digest:
        raise errors.ArtifactError(
            f"chunk {digest[:12]}… holds bytes that hash to {found[:12]}…: damaged on its way or "
            "in the store"
        )


class _Fault(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Receipt(msgspec.Struct):
    error: _Fault | None = None


def require_stored(raw: bytes) -> None:
    """Check JetStream's answer to writing a chunk; one that stands already is as good.

    Raises errors.LogFull when the store has no room, errors.Unavailable otherwise.
    """
    try:
        fault = msgspec.json.decode(raw, type=_Receipt).error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.Unavailable(f"the chunk store answers nonsense: {raw[:80]!r}") from error
    if fault is None:
        return
    if fault.err_code == WRITTEN_ALREADY and "per subject" in fault.description:
        return
    if fault.err_code in FULL:
        raise errors.LogFull(
            f"the chunk store is full: {fault.description}; free space or raise its bound"
        )
    raise errors.Unavailable(f"the chunk store does not take a chunk: {fault.description}")


class ChunkStore(Protocol):
    """Where chunks and manifests lie. Implementations: MemoryChunks, JetStreamChunks."""

    async def has(self, writer: str, digest: str) -> int | None:
        """The size of a stored chunk, or None. Raises ArtifactError for a name that is no digest,
        as all questions here do, and Unavailable."""
        ...

    async def get(self, writer: str, digest: str) -> bytes:
        """A chunk's bytes, which are what their name says.

        Raises NotFound, ArtifactError for bytes that are something else, Unavailable.
        """
        ...

    async def put(self, writer: str, data: bytes) -> str:
        """Store a chunk; its digest. Storing it again changes nothing. Raises LogFull,
        Unavailable."""
        ...

    async def delete(self, writer: str, digest: str) -> None:
        """Take away a chunk that is not what its name says, so that it can be written again.

        Raises Unavailable.
        """
        ...


async def assemble(store: ChunkStore, manifest: Manifest, name: str) -> bytes:
    """A whole file, every digest checked. Raises NotFound, ArtifactError, Unavailable."""
    file = next((file for file in manifest.files if file.name == name), None)
    if file is None:
        raise errors.NotFound(f"the artifact has no file {name}")
    data = b"".join([await store.get(manifest.writer, digest) for digest in file.chunks])
    if len(data) != file.bytes:
        raise errors.ArtifactError(
            f"{name} is said to have {file.bytes} bytes, its chunks have {len(data)}"
        )
    # A sum over megabytes holds the loop up; digests are taken in threads.
    found = await asyncio.to_thread(digest_of, data)
    if found != file.sha256:
        raise errors.ArtifactError(f"{name} does not hash to what its manifest says")
    return data


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
        self.stored: dict[tuple[str, str], bytes] = {}

    async def has(self, writer: str, digest: str) -> int | None:
        """As ChunkStore.has."""
        require_name(digest)
        data = self.stored.get((writer, digest))
        return None if data is None else len(data)

    async def get(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.get."""
        require_name(digest)
        data = self.stored.get((writer, digest))
        if data is None:
            raise errors.NotFound(f"no chunk {digest[:12]}… of {writer} is stored")
        require_digest(data, digest)
        return data

    async def put(self, writer: str, data: bytes) -> str:
        """As ChunkStore.put."""
        digest = digest_of(data)
        self.stored.setdefault((writer, digest), data)
        return digest

    async def delete(self, writer: str, digest: str) -> None:
        """As ChunkStore.delete."""
        require_name(digest)
        self.stored.pop((writer, digest), None)


class JetStreamChunks:
    """Chunks in the stream CHUNKS, one message a chunk; reading needs direct gets only."""

    def __init__(self, fleet: Bus) -> None:
        self._fleet = fleet

    async def has(self, writer: str, digest: str) -> int | None:
        """As ChunkStore.has. Its whole bytes travel; only the desk asks, beside the server."""
        found = await self._direct(writer, digest)
        return None if found is None else len(found)

    async def get(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.get."""
        data = await self._direct(writer, digest)
        if data is None:
            raise errors.NotFound(f"no chunk {digest[:12]}… of {writer} is stored")
        await asyncio.to_thread(require_digest, data, digest)
        return data

    async def put(self, writer: str, data: bytes) -> str:
        """As ChunkStore.put."""
        digest = await asyncio.to_thread(digest_of, data)
        raw = await self._fleet.request(f"chunk.{writer}.{digest}", data, REQUEST_SECONDS)
        require_stored(raw)
        return digest

    async def delete(self, writer: str, digest: str) -> None:
        """As ChunkStore.delete."""
        require_name(digest)
        found = await self._api("MSG.GET", {"last_by_subj": f"chunk.{writer}.{digest}"})
        if found is not None:
            await self._api("MSG.DELETE", {"seq": found["message"]["seq"], "no_erase": True})

    async def _api(self, endpoint: str, body: dict[str, object]) -> dict[str, Any] | None:
        """The answer about a message of CHUNKS, or None when it is not there (any more)."""
        answer = await self._fleet.api(f"STREAM.{endpoint}.CHUNKS", body, REQUEST_SECONDS)
        error = answer.get("error")
        if error is None:
            return answer
        if error.get("err_code") in NO_MESSAGE:
            return None
        raise errors.Unavailable(f"the chunk store refuses: {error.get('description', error)}")

    async def _direct(self, writer: str, digest: str) -> bytes | None:
        require_name(digest)
        answer = await self._fleet.ask(
            f"$JS.API.DIRECT.GET.CHUNKS.chunk.{writer}.{digest}", b"", REQUEST_SECONDS
        )
        if SEQUENCE in answer.headers:  # then all other headers are its writer's
            return answer.data
        status = answer.headers.get(STATUS)
        if status == NOT_FOUND:
            return None
        raise errors.Unavailable(f"the chunk store answers with status {status}; try again later")
