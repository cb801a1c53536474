"""The log of events, as the core sees it: an append that is fenced, and reads in order."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

HISTORY_MAX = 100_000
"""Records of one aggregate that are read to fold it again."""
BATCH_MESSAGES_MAX = 1_000
BATCH_BYTES_MAX = 4 * 1024 * 1024


class Message(NamedTuple):
    """One event on its way into the log: its subject and its encoded envelope."""

    subject: str
    data: bytes


class Record(NamedTuple):
    """One stored event: its sequence (from 1, without gaps), subject and encoded envelope."""

    seq: int
    subject: str
    data: bytes


class Stored(NamedTuple):
    """A record with all that the store keeps of it: `at_ns`, its time in nanoseconds since 1970,
    and its headers as they stand, beside what a Record has."""

    seq: int
    subject: str
    data: bytes
    at_ns: int
    headers: bytes


class Log(Protocol):
    """An append-only sequence of records with one writer at a time.

    Implementations: `core.log_jetstream.JetStreamLog`, `core.log_memory.MemoryLog`.
    """

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        """Store all messages or none, directly after sequence `expected_last`; return the last.

        At most BATCH_MESSAGES_MAX messages. Safe to repeat with identical arguments after
        LogUnavailable: a first try that did take effect then shows as SequenceConflict, and
        the caller compares what stands at `expected_last + 1`.

        Raises SequenceConflict when the log does not end at `expected_last`, LogUnavailable
        when no definite answer came, LogFull when the store refuses to grow.
        """
        ...

    async def last_seq(self) -> int:
        """The sequence of the newest record, 0 for an empty log. Raises LogUnavailable."""
        ...

    async def get(self, seq: int) -> Record | None:
        """The record at `seq`, or None where there is none. Raises LogUnavailable."""
        ...

    async def of_subject(self, subject: str, limit: int = 10_000) -> list[Record]:
        """The oldest `limit` records of one exact subject, in order. Raises LogUnavailable."""
        ...

    def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        """Yield the records from `start` to `stop` (both included; default: the end at the time
        of the call) in order, in lists of bounded size. Raises LogUnavailable."""
        ...

    def read_stored(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Stored]]:
        """As `read`, each record with its time and headers."""
        ...
