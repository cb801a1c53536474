"""The log in memory: for tests, simulations and tools that need no server."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from core import errors
from core.log import BATCH_MESSAGES_MAX, Message, Record, Stored

LIST_RECORDS_MAX = 1_000


class MemoryLog:
    """A `core.log.Log` that ends with its process.

    Several writers may share one, and are fenced as on a server. `bytes_max` bounds the payload
    it takes. The seams `fail_next`, `drop_next_answer`, `hold` and `release` let a test lose an
    append, lose only its answer, or keep appends in flight.
    """

    def __init__(self, bytes_max: int | None = None) -> None:
        self._records: list[Record] = []
        self._of_subject: defaultdict[str, list[Record]] = defaultdict(list)
        self._bytes = 0
        self._bytes_max = bytes_max
        self._failures = 0
        self._dropped_answers = 0
        self._open = asyncio.Event()
        self._open.set()

    def fail_next(self, times: int = 1) -> None:
        """The next appends store nothing and raise LogUnavailable."""
        self._failures += times

    def drop_next_answer(self, times: int = 1) -> None:
        """The next appends that succeed raise LogUnavailable all the same."""
        self._dropped_answers += times

    def hold(self) -> None:
        """Keep appends waiting, in order, until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let appends go on."""
        self._open.set()

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        """As `core.log.Log.append`."""
        assert 0 < len(messages) <= BATCH_MESSAGES_MAX
        await self._open.wait()
        await asyncio.sleep(0)
        if self._failures:
            self._failures -= 1
            raise errors.LogUnavailable("The log was told to fail; nothing was stored.")
        if expected_last != len(self._records):
            raise errors.SequenceConflict(
                f"The log ends at {len(self._records)}, not at {expected_last}; read what is there."
            )
        size = sum(len(message.data) for message in messages)
        if self._bytes_max is not None and self._bytes + size > self._bytes_max:
            raise errors.LogFull(
                f"The log holds {self._bytes} of {self._bytes_max} bytes; {size} more do not fit."
            )
        self._store(messages, size)
        if self._dropped_answers:
            self._dropped_answers -= 1
            raise errors.LogUnavailable("The log was told to drop its answer.")
        return len(self._records)

    async def last_seq(self) -> int:
        """As `core.log.Log.last_seq`."""
        return len(self._records)

    async def get(self, seq: int) -> Record | None:
        """As `core.log.Log.get`."""
        return self._records[seq - 1] if 0 < seq <= len(self._records) else None

    async def of_subject(self, subject: str, limit: int = 10_000) -> list[Record]:
        """As `core.log.Log.of_subject`."""
        return self._of_subject.get(subject, [])[:limit]

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        """As `core.log.Log.read`."""
        end = len(self._records) if stop is None else min(stop, len(self._records))
        for at in range(max(start, 1) - 1, end, LIST_RECORDS_MAX):
            yield self._records[at : min(at + LIST_RECORDS_MAX, end)]

    async def read_stored(
        self, start: int = 1, stop: int | None = None
    ) -> AsyncIterator[list[Stored]]:
        """As `core.log.Log.read_stored`; nothing here has a time or headers."""
        async for records in self.read(start, stop):
            yield [Stored(*record, at_ns=0, headers=b"") for record in records]

    def _store(self, messages: Sequence[Message], size: int) -> None:
        for seq, message in enumerate(messages, len(self._records) + 1):
            record = Record(seq, message.subject, message.data)
            self._records.append(record)
            self._of_subject[message.subject].append(record)
        self._bytes += size
