"""The store of chunks in JetStream: the stream CHUNKS."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from core import errors
from core.bus import NO_MESSAGE, SEQUENCE, STATUS, STORE_FULL, Bus
from core.chunks import (
    CHUNK_BYTES,
    DESK,
    Booked,
    Item,
    digest_of,
    require_digest,
    require_name,
)
from core.log_jetstream import JetStreamLog, bytes_of
from core.promises import Promises

WRITTEN_ALREADY = 10077
"""JetStream's error code where a subject's only message stands already (and for a full stream)."""
NOTHING_THERE = frozenset({NO_MESSAGE, 10043})
"""JetStream's error codes where there is nothing to get, or nothing to delete."""
NOT_THERE = "no message found"
"""How JetStream says so of a message to delete, under a code that stands for any failure."""
NOT_FOUND = "404"
TOLD_AT_ONCE = 500
REQUEST_SECONDS = 10.0
READ_SECONDS = 30.0


class _Fault(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Receipt(msgspec.Struct):
    error: _Fault | None = None


def require_stored(raw: bytes) -> bool:
    """Check JetStream's answer to writing a chunk; whether it is new: one that stands already is as
    good.

    Raises errors.LogFull when the store has no room, errors.Unavailable otherwise.
    """
    try:
        fault = msgspec.json.decode(raw, type=_Receipt).error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.Unavailable(f"the chunk store answers nonsense: {raw[:80]!r}") from error
    if fault is None:
        return True
    if fault.err_code == WRITTEN_ALREADY and "per subject" in fault.description:
        return False
    if fault.err_code in STORE_FULL:
        raise errors.LogFull(
            f"the chunk store is full: {fault.description}; free space or raise its bound"
        )
    raise errors.Unavailable(f"the chunk store does not take a chunk: {fault.description}")


class JetStreamChunks:
    """Chunks in the stream CHUNKS, one message a chunk; reading needs direct gets only.

    With promises, what was asked for and is there stays, as `core.promises` has it. `booked` hears
    of what is put and is new.
    """

    def __init__(
        self, fleet: Bus, promises: Promises | None = None, booked: Booked | None = None
    ) -> None:
        self._fleet = fleet
        self._promises = promises
        self._booked = booked

    async def has(self, writer: str, digest: str) -> bool:
        """As ChunkStore.has; its bytes stay where they are."""
        require_name(digest)
        await self._keep(writer, digest)
        subject = f"chunk.{writer}.{digest}"
        is_there = subject in await self._subjects(subject)
        self._settle(writer, digest, is_there=is_there)
        return is_there

    async def get(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.get."""
        data = await self._direct(writer, digest)
        if data is None:
            raise errors.NotFound(f"no chunk {digest[:12]}… of {writer} is stored")
        await asyncio.to_thread(require_digest, data, digest)
        return data

    async def take(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.take."""
        return await self.get(writer, digest)

    async def put(self, writer: str, data: bytes) -> str:
        """As ChunkStore.put."""
        digest = await asyncio.to_thread(digest_of, data)
        await self._keep(writer, digest)
        raw = await self._fleet.request(f"chunk.{writer}.{digest}", data, REQUEST_SECONDS)
        is_new = require_stored(raw)
        self._settle(writer, digest, is_there=not is_new)
        if is_new and self._booked is not None:
            self._booked(writer, digest, len(data))
        return digest

    async def _keep(self, writer: str, digest: str) -> None:
        if self._promises is not None:
            await self._promises.keep(writer, digest)

    def _settle(self, writer: str, digest: str, *, is_there: bool) -> None:
        if self._promises is not None:
            self._promises.settle(writer, digest, is_there=is_there)

    async def writers(self, digest: str) -> list[str]:
        """As ChunkStore.writers."""
        require_name(digest)
        subjects = await self._subjects(f"chunk.*.{digest}")
        return [writer for writer in (one.split(".")[1] for one in subjects) if writer != DESK]

    async def _subjects(self, filtered: str) -> Iterable[str]:
        """The subjects of stored chunks among these."""
        found = await self._api("INFO", {"subjects_filter": filtered})
        return (found or {}).get("state", {}).get("subjects") or ()

    async def delete(self, writer: str, digest: str) -> None:
        """As ChunkStore.delete."""
        require_name(digest)
        found = await self._api("MSG.GET", {"last_by_subj": f"chunk.{writer}.{digest}"})
        if found is not None:
            await self._delete_at(found["message"]["seq"])

    async def stored(self, after: int | None = None) -> AsyncIterator[Item]:
        """As ChunkStore.stored."""
        log = JetStreamLog(self._fleet, "CHUNKS", READ_SECONDS, may_shrink=True)
        async for some in log.read_headers((after or 0) + 1):
            for number, one in enumerate(some):
                if number % TOLD_AT_ONCE == 0:
                    await asyncio.sleep(0)  # others have their turn
                _, writer, digest = one.subject.split(".")
                size = bytes_of(one.headers)
                if size is None:
                    size = CHUNK_BYTES
                yield Item(one.seq, writer, digest, size, one.at_ns // 1_000)

    async def sweep(self, item: Item) -> None:
        """As ChunkStore.sweep."""
        await self._delete_at(item.seq)

    async def _delete_at(self, seq: int) -> None:
        """Take away the chunk that was stored at a sequence; one written again has another."""
        await self._api("MSG.DELETE", {"seq": seq, "no_erase": True})

    async def _api(self, endpoint: str, body: dict[str, object]) -> dict[str, Any] | None:
        """The answer about a message of CHUNKS, or None when it is not there (any more)."""
        answer = await self._fleet.api(f"STREAM.{endpoint}.CHUNKS", body, REQUEST_SECONDS)
        error = answer.get("error")
        if error is None:
            return answer
        description = error.get("description", "")
        if error.get("err_code") in NOTHING_THERE or description.endswith(NOT_THERE):
            return None
        raise errors.Unavailable(f"the chunk store refuses: {error.get('description', error)}")

    async def _direct(self, writer: str, digest: str) -> bytes | None:
        require_name(digest)
        await self._keep(writer, digest)
        answer = await self._fleet.ask(
            f"$JS.API.DIRECT.GET.CHUNKS.chunk.{writer}.{digest}", b"", REQUEST_SECONDS
        )
        if SEQUENCE in answer.headers:  # then all other headers are its writer's
            self._settle(writer, digest, is_there=True)
            return answer.data
        status = answer.headers.get(STATUS)
        if status == NOT_FOUND:
            self._settle(writer, digest, is_there=False)
            return None
        raise errors.Unavailable(f"the chunk store answers with status {status}; try again later")
