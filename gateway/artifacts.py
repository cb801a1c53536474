"""Artifacts as the desk sees them: what agents stored is verified, and read by who may."""

import asyncio
import hmac
import itertools
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from core import chunks, errors, wire
from core.chunks import ARTIFACT_BYTES_MAX, ChunkStore, Manifest
from core.projections.state import State
from core.projections.tasks import Task
from core.promises import SHORT_SECONDS, Promises
from gateway.usage import Usage

METRICS_BYTES_INLINE = 32 * 1024
VERIFIED_MAX = 100_000
LENT_MAX = 100_000
NAMED_MAX = 500_000
"""Chunks of manifests that are remembered, which may have been read lately: 90 MB."""
LOOKS_AT_ONCE = 16
LENDERS_TRIED_MAX = 4
"""Writers of one chunk that are looked at: the first whose bytes are sound lends them."""
LENT_BYTES_MIN = 4_096
"""A smaller chunk is sent sooner than others are looked for who have it."""


class Artifacts:
    """What agents bring and read. Tokens are subject tokens of workers, the writers of chunks."""

    def __init__(self, store: ChunkStore, promises: Promises, usage: Usage) -> None:
        self._store = store
        self._usage = usage
        self._promises = promises
        self._verified: OrderedDict[tuple[str, str], _Verified] = OrderedDict()
        self._lent: OrderedDict[tuple[str, str], str] = OrderedDict()
        """Whose chunk was lent, by the session it was lent in, and the digest."""
        self._named: OrderedDict[str, frozenset[str]] = OrderedDict()
        """The chunks that a manifest names, the one that was read last at the end."""
        self._named_count = 0

    async def missing(self, token: str, request: wire.MissingRequest) -> wire.MissingAnswer:
        """Which chunks of a worker are not stored yet, and which others lend it.

        Raises QuotaExceeded, LogFull where a result has to wait for room, Unavailable.
        """
        if sum(request.chunks.values()) > ARTIFACT_BYTES_MAX:
            raise errors.QuotaExceeded(
                f"{sum(request.chunks.values())} bytes at once; an artifact may have "
                f"{ARTIFACT_BYTES_MAX}"
            )
        missing: list[str] = []
        elsewhere: list[str] = []
        lent: dict[str, list[str]] = {}

        async def look(digest: str) -> None:
            if self._known(token, digest) is not None or await self._store.has(token, digest):
                return
            lender = await self._lender(request.session, digest)
            if lender is None and request.chunks[digest] >= LENT_BYTES_MIN:
                others = [one for one in await self._store.writers(digest) if one != token]
                if digest in request.proofs:
                    lender = await self._borrow(request, digest, others)
                elif others:
                    elsewhere.append(digest)
            if lender is None:
                missing.append(digest)
            else:
                lent.setdefault(lender, []).append(digest)

        asked = list(request.chunks)
        for first in range(0, len(asked), LOOKS_AT_ONCE):
            await asyncio.gather(*map(look, asked[first : first + LOOKS_AT_ONCE]))
        sent = {one: request.chunks[one] for one in missing if one not in set(elsewhere)}
        self._usage.take(token, sent, request.kind)
        return wire.MissingAnswer(missing=missing, elsewhere=elsewhere, lent=lent)

    async def _lender(self, session: str, digest: str) -> str | None:
        """Who lent a chunk to a session, as long as it is there."""
        lender = self._lent.get((session, digest))
        is_there = lender is not None and await self._size(lender, digest) is not None
        return lender if is_there else None

    async def _borrow(
        self, request: wire.MissingRequest, digest: str, writers: list[str]
    ) -> str | None:
        """The one of these writers whose chunk is lent to who holds the same bytes, if any is.

        Who only knows its name is lent nothing: it could read the chunk through its own manifest.
        """
        for writer in writers[:LENDERS_TRIED_MAX]:
            piece = await self._sound(writer, digest)
            if piece is None:
                continue
            held = await asyncio.to_thread(wire.proof, request.session, piece)
            if not hmac.compare_digest(held, request.proofs[digest]):
                return None
            self._lent[request.session, digest] = writer
            if len(self._lent) > LENT_MAX:
                self._lent.popitem(last=False)
            return writer
        return None

    async def verify(self, token: str, session: str, manifest: Manifest) -> str:
        """Check every chunk of a manifest and store the manifest itself; its digest.

        Raises Invalid, ArtifactError where chunks have to be sent again, QuotaExceeded,
        Unavailable.
        """
        if manifest.writer != token:
            raise errors.Invalid(f"a manifest of {token!r} cannot name another as its writer")
        await asyncio.to_thread(chunks.require_sound, manifest)
        self._usage.require_kept(token)
        sizes = await self._sizes(token, session, manifest)
        lent = set(itertools.chain.from_iterable(manifest.lent.values()))
        self._usage.settle(token, {one: size for one, size in sizes.items() if one not in lent})
        self._usage.require_kept(token)
        _require_small_deltas(manifest, sizes)
        total = 0
        for file in manifest.files:
            size = sum(sizes[digest] for digest in file.chunks)
            if size != file.bytes:
                raise errors.ArtifactError(
                    f"{file.name} is said to have {file.bytes} bytes, its chunks have {size}"
                )
            total += size
        if total > ARTIFACT_BYTES_MAX:
            raise errors.QuotaExceeded(
                f"an artifact of {total} bytes; {ARTIFACT_BYTES_MAX} at most"
            )
        encoded = await asyncio.to_thread(manifest.encode)
        if len(encoded) > chunks.CHUNK_BYTES:
            raise errors.QuotaExceeded(
                f"a manifest of {len(encoded)} bytes; {chunks.CHUNK_BYTES} at most"
            )
        digest = await self._store.put(chunks.DESK, encoded)
        self._keep(digest, frozenset(sizes))
        return digest

    def _known(self, writer: str, digest: str) -> int | None:
        """The size of a chunk that was checked so lately that no sweep took it since: it was young
        then, or promised."""
        found = self._verified.get((writer, digest))
        if found is None or not self._promises.is_within(found.at, SHORT_SECONDS):
            return None
        self._promises.renew(writer, digest)
        return found.bytes

    async def _sizes(self, token: str, session: str, manifest: Manifest) -> dict[str, int]:
        """The size of each chunk that a manifest names, by digest.

        Raises ArtifactError where one is not there, or was lent to nobody in this session.
        """
        sizes: dict[str, int] = {}

        async def check(digest: str, writer: str) -> None:
            if writer != token and self._lent.get((session, digest)) != writer:
                raise errors.ArtifactError(
                    f"chunk {digest[:12]}… of {writer} was not lent to this session; ask again "
                    "what is missing"
                )
            size = await self._size(writer, digest)
            if size is None:
                raise errors.ArtifactError(
                    f"no chunk {digest[:12]}… of {writer} is stored, or it was damaged; send it "
                    "again"
                )
            sizes[digest] = size

        places = list(manifest.places().items())
        for first in range(0, len(places), LOOKS_AT_ONCE):
            await asyncio.gather(*itertools.starmap(check, places[first : first + LOOKS_AT_ONCE]))
        return sizes

    async def _size(self, writer: str, digest: str) -> int | None:
        """The size of a stored chunk that is what its name says, None without one."""
        known = self._known(writer, digest)
        if known is not None:
            return known
        piece = await self._sound(writer, digest)
        return None if piece is None else len(piece)

    async def _sound(self, writer: str, digest: str) -> bytes | None:
        """A stored chunk that is what its name says; another is taken away, to be sent again."""
        try:
            piece = await self._store.take(writer, digest)
        except errors.ArtifactError:
            await self._store.delete(writer, digest)
            return None
        except errors.NotFound:
            return None
        self._verified[writer, digest] = _Verified(len(piece), self._promises.wall())
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        return piece

    def _keep(self, digest: str, named: frozenset[str]) -> None:
        if digest in self._named:
            return
        self._named[digest] = named
        self._named_count += len(named)
        while self._named_count > NAMED_MAX and len(self._named) > 1:
            _, oldest = self._named.popitem(last=False)
            self._named_count -= len(oldest)

    async def read(self, state: State, worker_id: str, request: wire.ChunkRequest) -> bytes:
        """A chunk: an agent may read what its own tasks start from, and nothing else.

        Raises NotOwner, NotFound, ArtifactError, Unavailable.
        """
        if not await self._may_read(state, worker_id, request.digest):
            raise errors.NotOwner("this chunk belongs to no task of this worker")
        return await self._store.get(request.writer, request.digest)

    async def _may_read(self, state: State, worker_id: str, digest: str) -> bool:
        # Manifests are waited for, and what is held may change meanwhile.
        for task_id in list(state.tasks.held.get(worker_id, ())):
            task = state.tasks.table.rows[task_id]
            if not isinstance(task, Task):
                continue
            manifests = [point.manifest for point in task.resume]
            manifests += [parent.manifest for parent in task.parents]
            if task.base is not None:
                manifests.append(task.base.manifest)
            if task.workload.corpus is not None:  # but not what is hidden
                manifests.append(task.workload.corpus.manifest)
            if digest in manifests:
                return True
            for manifest_digest in manifests:
                if digest in await self._named_by(manifest_digest):
                    return True
        return False

    async def _named_by(self, digest: str) -> frozenset[str]:
        """The chunks that a stored manifest names; a thousand are read one after another."""
        if digest not in self._named:
            raw = await self._store.get(chunks.DESK, digest)
            self._keep(digest, await asyncio.to_thread(_named_in, raw))
        self._named.move_to_end(digest)
        return self._named[digest]


def _named_in(raw: bytes) -> frozenset[str]:
    return frozenset(chunks.decode_manifest(raw).places())


def _require_small_deltas(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Whoever reads a file holds all that it is made of. Raises ArtifactError."""
    for file in manifest.files:
        for at, changes in file.deltas.items():
            if any(sizes[one] > sizes[file.chunks[at]] for one in changes):
                raise errors.ArtifactError(
                    f"{file.name} has a delta that is larger than the chunk it changes"
                )


class _Verified(NamedTuple):
    """A chunk that is what its name says: its size, and when it was checked."""

    bytes: int
    at: float


async def store_metrics(store: ChunkStore, metrics: object) -> tuple[bytes, str]:
    """Metrics as an event carries them: inline, or `{}` and the digest of their artifact."""
    encoded = msgspec.json.encode(metrics)
    if len(encoded) <= METRICS_BYTES_INLINE:
        return encoded, ""
    return b"{}", await chunks.put_file(store, chunks.DESK, "metrics", "metrics.json", encoded)
