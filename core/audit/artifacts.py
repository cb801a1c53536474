"""What a log names, and whether it is stored."""

import asyncio
import hashlib
import types
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from core import chunks, errors
from core.audit.findings import Findings

READ_AT_ONCE = 8


class Named(NamedTuple):
    """Something stored that the log names. `bytes` is -1 where the log does not say."""

    seq: int
    what: str
    digest: str
    writer: str
    bytes: int = -1


class Stored(msgspec.Struct):
    """How much was read and found as it should be, or not."""

    artifacts: int = 0
    bytes: int = 0


class _Gone(errors.NotFound):
    """A chunk that is not stored."""

    def __init__(self, words: str, digest: str) -> None:
        super().__init__(words)
        self.digest = digest


async def check(
    store: chunks.ChunkStore,
    named: Iterable[Named],
    findings: Findings,
    lost: Mapping[str, int] = types.MappingProxyType({}),
) -> Stored:
    """Read everything the log names, chunk by chunk, and compare it with its digests.

    A file that several artifacts share is read once; `lost` are the chunks whose loss was accepted,
    as `Auditor.lost_chunks`. Raises Unavailable.
    """
    stored = Stored()
    read: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for one in named:
        stored.artifacts += 1
        try:
            manifest = chunks.decode_manifest(await _get(store, chunks.DESK, one.digest))
            _require_as_named(manifest, one)
            places = manifest.places()
            for file in manifest.files:
                identity = (file.sha256, tuple((places[one], one) for one in file.named()))
                if identity not in read:
                    stored.bytes += await _read_file(store, file, places)
                    read.add(identity)
        except (errors.NotFound, errors.ArtifactError) as error:
            cause = lost.get(error.digest, 0) if isinstance(error, _Gone) else 0
            detail = f"{one.what} ({one.digest[:12]}…): {error}"
            findings.add("artifacts", one.seq, detail, cause)
    return stored


async def _get(store: chunks.ChunkStore, writer: str, digest: str) -> bytes:
    try:
        return await store.get(writer, digest)
    except errors.NotFound as error:
        raise _Gone(str(error), digest) from error


def _require_as_named(manifest: chunks.Manifest, named: Named) -> None:
    if manifest.writer != named.writer:
        raise errors.ArtifactError(
            f"its manifest is of {manifest.writer!r}, the log says {named.writer!r}"
        )
    if named.bytes >= 0 and manifest.bytes != named.bytes:
        raise errors.ArtifactError(
            f"its manifest has {manifest.bytes} bytes, the log says {named.bytes}"
        )


async def _read_file(store: chunks.ChunkStore, file: chunks.File, places: Mapping[str, str]) -> int:
    """The bytes of a file, which are what its manifest says. Raises NotFound, ArtifactError."""

    async def read(at: int) -> bytes:
        # What is read is what its name says.
        named = [file.chunks[at], *file.deltas.get(at, ())]
        piece, *changes = [await _get(store, places[one], one) for one in named]
        return chunks.patched(piece, changes)

    total, whole = 0, hashlib.sha256()
    for first in range(0, len(file.chunks), READ_AT_ONCE):
        some = range(first, min(first + READ_AT_ONCE, len(file.chunks)))
        for piece in await asyncio.gather(*map(read, some)):
            total += len(piece)
            whole.update(piece)
    chunks.require_whole(file, total, whole.hexdigest())
    return total
