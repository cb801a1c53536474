"""The log as a writer reaches it: over a network that loses questions and answers."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from core import errors
from core.log import Message, Record, Stored
from core.log_memory import MemoryLog
from faults.simulation import clock

TIMEOUT_SECONDS = 5.0
"""As long as JetStreamLog waits."""


@dataclass
class Trouble:
    """How badly the log answers: chances per question."""

    question_lost: float = 0.0
    answer_lost: float = 0.0
    late: float = 0.0
    """That an append takes effect only after the writer gave up on it."""


class Store:
    """The stored log, which outlives its writers, and who appended what."""

    def __init__(self, loop: clock.Loop, choices: random.Random) -> None:
        self.loop = loop
        self.choices = choices
        self.kept = MemoryLog()
        self.writers: list[str] = []
        """The process that appended each record."""
        self.trouble = Trouble()
        self.down = self.full = False
        self.fenced = True

    async def take(self, messages: Sequence[Message], expected_last: int, process: str) -> int:
        """Append, for the process that asked."""
        if self.full:
            raise errors.LogFull("the disk is full")
        if not self.fenced:
            expected_last = await self.kept.last_seq()
        last = await self.kept.append(messages, expected_last)
        self.writers += [process] * len(messages)
        return last

    def chance(self, likely: float) -> bool:
        """Whether something happens that does so with this chance."""
        return bool(likely) and self.choices.random() < likely


class RemoteLog:
    """A `core.log.Log`, as one process reaches the store."""

    def __init__(self, store: Store, process: str) -> None:
        self._store = store
        self._process = process

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        """As `core.log.Log.append`. What the store does with it does not need this process."""
        store, trouble = self._store, self._store.trouble
        await self._reach()
        answer: asyncio.Future[int] = store.loop.create_future()

        def arrive() -> None:
            if not store.down:
                effect = self._effect(list(messages), expected_last, answer)
                store.loop.create_task(effect, context=clock.NOBODY)

        travel = self._travel_seconds()
        if store.chance(trouble.late):
            travel += TIMEOUT_SECONDS * (0.9 + store.choices.random())
        if not store.chance(trouble.question_lost):
            store.loop.after(travel, arrive)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await answer
        except TimeoutError:
            raise errors.LogUnavailable("no answer to an append in time") from None

    async def _effect(
        self, messages: list[Message], expected_last: int, answer: "asyncio.Future[int]"
    ) -> None:
        store = self._store
        try:
            last = await store.take(messages, expected_last, self._process)
        except (errors.SequenceConflict, errors.LogFull) as error:
            store.loop.after(self._travel_seconds(), _set, answer, error)
            return
        if not store.chance(store.trouble.answer_lost):
            store.loop.after(self._travel_seconds(), _set, answer, last)

    async def last_seq(self) -> int:
        """As `core.log.Log.last_seq`."""
        await self._ask()
        return await self._store.kept.last_seq()

    async def get(self, seq: int) -> Record | None:
        """As `core.log.Log.get`."""
        await self._ask()
        return await self._store.kept.get(seq)

    async def of_subject(self, subject: str, limit: int = 10_000) -> list[Record]:
        """As `core.log.Log.of_subject`."""
        await self._ask()
        return await self._store.kept.of_subject(subject, limit)

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        """As `core.log.Log.read`."""
        await self._ask()
        async for records in self._store.kept.read(start, stop):
            yield records

    async def read_stored(
        self, start: int = 1, stop: int | None = None
    ) -> AsyncIterator[list[Stored]]:
        """As `core.log.Log.read_stored`."""
        await self._ask()
        async for records in self._store.kept.read_stored(start, stop):
            yield records

    async def _ask(self) -> None:
        """A question there and back."""
        trouble = self._store.trouble
        await self._reach()
        if self._store.chance(trouble.question_lost + trouble.answer_lost):
            await asyncio.sleep(TIMEOUT_SECONDS)
            raise errors.LogUnavailable("no answer in time")

    async def _reach(self) -> None:
        await asyncio.sleep(self._travel_seconds())
        if self._store.down:
            raise errors.LogUnavailable("the log cannot be reached")

    def _travel_seconds(self) -> float:
        return 0.0005 + 0.004 * self._store.choices.random() ** 3


def _set(answer: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
        answer.exception()  # its writer may be gone; then nobody else would look
    else:
        answer.set_result(outcome)
