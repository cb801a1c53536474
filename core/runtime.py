"""The one door and the one writer: command, decide, fold, append, answer.

While an append is in flight, further commands are decided on the state as it will be; the next
append takes them all in one atomic batch. Nobody is answered before what the answer rests on is
durable.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from core import decide, errors, events
from core.appends import Appends
from core.commands import AnyCommand, Meta, StartWriter
from core.decide import admission, closed
from core.log import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Log, Message
from core.projections.state import State

log = logging.getLogger(__name__)

T = TypeVar("T")
PENDING_MAX = 20_000
PENDING_BYTES_MAX = 64 * 1024 * 1024
FOLLOWING_MAX = 10_000
ANSWERS_PER_TURN = 50
SETTLE_SECONDS_MAX = 2.0
START_TRIES_MAX = 5
PATIENCE_SECONDS = 4.0
"""How long anybody waits for one append before being told that its outcome is not known."""
_SIDE_EFFECTS = (
    events.ClaimReleased,
    events.ClaimAdopted,
    events.CandidateAdmitted,
    events.RoleClosed,
)
"""Events that may concern another aggregate than the one a command is about."""


@dataclass(slots=True)
class _Work:
    """One command between its decision and its answer."""

    command: AnyCommand
    meta: Meta
    view: Callable[[State], Any]
    answer: asyncio.Future[Any]
    messages: list[Message] = field(default_factory=list)
    happened: list[events.Event] = field(default_factory=list)
    result: Any = None

    @property
    def bytes(self) -> int:
        """Of its messages."""
        return sum(len(message.data) for message in self.messages)


def now() -> int:
    """The wall clock, microseconds since 1970."""
    return time.time_ns() // 1_000


def new_meta(by: str, corr: str = "") -> Meta:
    """The circumstances of a command given now."""
    identity = secrets.token_hex(16)
    return Meta(now(), identity, by, corr or identity)


def nothing(state: State) -> None:
    """The view of a command whose only answer is that it is durable."""


async def empty() -> State:
    """The state before the first event."""
    return State()


class Runtime:
    """Owner of the state; the only one who appends. Run `run()` beside the users of `execute`."""

    def __init__(
        self, store: Log, process: str, begin: Callable[[], Awaitable[State]] = empty
    ) -> None:
        """`begin` gives the state that a rebuild goes on from, of some earlier point in the log."""
        self._store = store
        self._process = process
        self._begin = begin
        self.state = State()
        self.durable_seq = 0
        """Up to where the log is known to be on disk."""
        self._appended_seq = 0
        """Up to where it is believed to go: a server whose write failed says so of a record that it
        holds in memory alone, until it is asked to write another."""
        self._unproven: list[_Work] = []
        """Stored, as a server said after it had not answered; to be told when a later append is."""
        self._is_proven = True
        self.appends = Appends()
        self.stepped_down = False
        self.shortage = ""
        """Why no new work is taken, "" while it is."""
        self._unanswered_from: float | None = None
        """When the append in flight began, once that is longer ago than anybody waits."""
        self._refolding: asyncio.Task[State] | None = None
        self._pending: deque[_Work] = deque()
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._in_flight: list[_Work] = []
        self._answers: deque[tuple[asyncio.Future[Any], Any]] = deque()
        """Who is to be told what, of what is durable."""
        self._readers: deque[tuple[int, asyncio.Future[bool]]] = deque()
        self._observers: list[Callable[[events.Event], None]] = []
        self.note_head: Callable[[int, Message], None] | None = None
        """Told of the last record of each acknowledged append, before anybody is answered."""
        self._rebuilding = False
        self._writing = asyncio.Lock()
        self._epoch = 0
        self._broken: Exception | None = None

    @property
    def pending(self) -> int:
        """How many commands wait for an append."""
        return len(self._pending) + len(self._in_flight) + len(self._unproven)

    @property
    def unanswered_seconds(self) -> float:
        """How long an append has gone without a definite answer; 0 within anybody's patience."""
        began = self._unanswered_from
        return 0.0 if began is None else asyncio.get_running_loop().time() - began

    # ── asking ──

    def observe(self, observer: Callable[[events.Event], None]) -> None:
        """Call `observer` with every event once it is durable, in order."""
        self._observers.append(observer)

    async def execute(self, command: AnyCommand, meta: Meta, view: Callable[[State], T]) -> T:
        """Decide a command; once its events are durable, answer with `view` of the state right
        after it.

        Raises errors.Refused as decided, errors.LogFull for new work where there is no room for it,
        errors.LogUnavailable when its outcome stays unknown for too long, errors.Overloaded when
        too much is pending, errors.SteppedDown once another writer took over.
        """
        if self.stepped_down:
            raise errors.SteppedDown("another control process writes this log now")
        if self.shortage and admission.begins_work(self.state, command):
            raise errors.LogFull(self.shortage)
        if self._unanswered_from is not None:
            raise errors.LogUnavailable(f"{self._words()}; nothing was done. Try again later")
        if len(self._pending) >= PENDING_MAX or self._pending_bytes >= PENDING_BYTES_MAX:
            raise errors.Overloaded(
                f"{len(self._pending)} commands are waiting for the log; try again"
            )
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        work = _Work(command, meta, view, future)
        self._pending.append(work)
        if not self._rebuilding:
            self._decide(work)
            self._pending_bytes += work.bytes
        self._wake.set()
        return await future

    async def read(self, view: Callable[[State], T]) -> T:
        """A view of the state, answered once everything it shows is durable; while that stays
        unknown, a view of what was durable before.

        Raises errors.LogUnavailable when neither can be had.
        """
        while True:
            if self._unanswered_from is not None and not self._is_durable():
                if (behind := await self._behind()) is not None:
                    return view(behind)
                continue
            if self._rebuilding:
                await self._durable(self.durable_seq + 1)
                continue
            result, seq = view(self.state), self.state.seq
            if seq <= self.durable_seq:
                return result
            if await self._durable(seq):
                return result

    async def until_durable(self) -> None:
        """Wait until all that was decided so far is durable. Raises errors.LogUnavailable."""
        while not self._is_durable():
            if self._unanswered_from is not None:
                raise errors.LogUnavailable(self._words())
            await self._durable(self.state.seq)

    def _is_durable(self) -> bool:
        return not self._rebuilding and self.state.seq <= self.durable_seq

    async def _durable(self, seq: int) -> bool:
        """Wait until `seq` is durable; False when the state must be looked at anew: it was rebuilt,
        or the append takes too long."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._readers.append((seq, future))
        return await future

    # ── when an append is not answered ──

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Let nobody wait too long for what happens inside."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(PATIENCE_SECONDS, self._lose_patience, loop.time())
        try:
            yield
        finally:
            timer.cancel()
            if self._refolding is not None:
                self._refolding.cancel()
            self._unanswered_from = self._refolding = None

    def _lose_patience(self, began: float) -> None:
        self._unanswered_from = began
        words = (
            f"{self._words()}, so it is not known whether this was stored. Ask again, under the "
            f"same Idempotency-Key if there was one"
        )
        for work in (*self._unproven, *self._in_flight, *self._pending):
            if not work.answer.done():
                work.answer.set_exception(errors.LogUnavailable(words))
        self._tell_readers(False)

    def _words(self) -> str:
        why = f" ({self.shortage})" if self.shortage else ""
        return f"the log has not answered for {self.unanswered_seconds:.0f} s{why}"

    async def _behind(self) -> State | None:
        """The state up to the last acknowledged record, from the log: the one here is ahead of it,
        and gives nothing back. Made once for each append that is not answered; None when its answer
        came meanwhile."""
        if self._refolding is None or (self._refolding.done() and self._refolding.exception()):
            self._refolding = asyncio.create_task(self._refold(self.durable_seq))
        refolding = self._refolding
        await asyncio.wait((refolding,), timeout=PATIENCE_SECONDS)
        if refolding.cancelled():
            return None
        try:
            return refolding.result()
        except (asyncio.InvalidStateError, errors.LogUnavailable) as error:
            raise errors.LogUnavailable(
                f"{self._words()}, and what it held before cannot be read yet. Ask again later"
            ) from error

    async def _refold(self, seq: int) -> State:
        state = await self._begin()
        await fold(self._store, state, seq)
        return state

    # ── deciding ──

    def _decide(self, work: _Work) -> None:
        """Decide one command on the state as it will be, and fold what it causes."""
        try:
            happened = self._decided(work)
        except Exception as error:  # noqa: BLE001  a rule that breaks is its caller's trouble alone
            self._refuse(work, error)
            return
        try:
            self._fold_all(work, happened)
        except Exception as error:  # noqa: BLE001  now the state is not what the log will hold
            self._broken = error
            self._refuse(work, error)
            return
        try:
            work.result = work.view(self.state)
        except Exception as error:  # noqa: BLE001  what happened stands, only its answer is lost
            work.result = error

    def _decided(self, work: _Work) -> list[events.Reread]:
        decided = decide.decide(self.state, work.command, work.meta)
        return [
            self._storable(data)
            for number, data in enumerate(decided)
            if not (number and self._left_out(data))
        ]

    def _fold_all(self, work: _Work, decided: list[events.Reread]) -> None:
        for stored in decided:
            self._fold(work, stored)
        happened = [stored.data for stored in decided]
        while following := decide.follow(self.state, happened, work.meta):
            assert len(happened) < FOLLOWING_MAX, "what follows must come to an end"
            for data in following:
                self._fold(work, events.reread(data))
            happened = [*happened, *following]

    def _left_out(self, data: events.EventData) -> bool:
        """Whether an event means only a side of what is decided, and its aggregate takes none."""
        return isinstance(data, _SIDE_EFFECTS) and self._is_read_only(data)

    def _is_read_only(self, data: events.EventData) -> bool:
        return bool(self.state.read_only) and events.subject_of(data) in self.state.read_only

    def _storable(self, data: events.EventData) -> events.Reread:
        """The data as the log will give it back. Raises errors.Refused where it cannot take it."""
        if self._is_read_only(data):
            raise errors.ReadOnlyAggregate(closed.words(events.subject_of(data)))
        stored = events.reread(data)
        size = memoryview(stored.raw).nbytes
        if size > events.DATA_BYTES_MAX:
            raise errors.Invalid(
                f"{size} bytes do not fit into one event, which holds "
                f"{events.DATA_BYTES_MAX}; shorten the request"
            )
        return stored

    def _fold(self, work: _Work, stored: events.Reread) -> None:
        data, meta = stored.data, work.meta
        event = events.Event(
            self.state.seq + 1,
            # Times in the log never run backwards, whatever the wall clock does.
            max(self.state.at, meta.now),
            f"{meta.id}.{len(work.happened)}",
            meta.by,
            meta.id,
            meta.corr,
            data,
        )
        work.messages.append(Message(events.subject_of(data), events.encode(event, stored.raw)))
        work.happened.append(event)
        self.state.evolve(event)

    def _refuse(self, work: _Work, error: Exception) -> None:
        # A refusal may rest on facts not durable yet: it waits its turn like any answer.
        work.messages, work.happened, work.result = [], [], error

    # ── appending ──

    async def start(self) -> None:
        """Rebuild the state from the log and become its writer.

        Raises errors.SteppedDown when another process keeps winning the next epoch.
        """
        for _ in range(START_TRIES_MAX):
            await self._rebuild()
            work = _Work(
                StartWriter(process=self._process),
                new_meta(self._process),
                nothing,
                asyncio.get_running_loop().create_future(),
            )
            self._decide(work)
            if await self._settle(work.messages):
                self._epoch = self.state.epoch
                self._appended_seq = self.durable_seq = self.state.seq
                return
        raise errors.SteppedDown("another control process keeps becoming the writer first")

    async def run(self) -> None:
        """Append what is pending, for ever. Ends only when another writer took over.

        Raises what broke the fold, if it ever breaks: the state must then be made anew.
        """
        while not self.stepped_down:
            if not self._pending:
                self._wake.clear()
                await self._wake.wait()
            if self._broken is not None:
                raise self._broken
            async with self._writing:
                with self._patience():
                    await self._append_next()

    def _take_batch(self) -> list[_Work]:
        batch: list[_Work] = []
        messages = size = 0
        while self._pending:
            work = self._pending[0]
            messages += len(work.messages)
            size += work.bytes
            if batch and (messages > BATCH_MESSAGES_MAX or size > BATCH_BYTES_MAX):
                break
            batch.append(self._pending.popleft())
            self._pending_bytes -= work.bytes
        return batch

    async def _append_next(self) -> None:
        """Append one batch and answer it, or recover when the log holds something else."""
        self._in_flight = self._take_batch()
        messages = [message for work in self._in_flight for message in work.messages]
        began = time.perf_counter()
        if not await (self._settle(messages) if messages else self._is_newest()):
            await self._recover()
            return
        self._appended_seq += len(messages)
        if messages:
            self.appends.note(len(messages), time.perf_counter() - began)
        self._unproven += self._in_flight
        self._in_flight = []
        if not self._is_proven:
            if not self._pending:
                self._prove()
            return
        self._in_flight, self._unproven = self._unproven, []
        self.durable_seq = self._appended_seq
        if messages and self.note_head is not None:
            self.note_head(self.durable_seq, messages[-1])
        self._publish()

    def _prove(self) -> None:
        """Have something appended, which proves what was appended before: the next epoch."""
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(_let_be)  # nobody waits for it
        work = _Work(StartWriter(process=self._process), new_meta(self._process), nothing, future)
        self._decide(work)
        self._pending.append(work)
        self._pending_bytes += work.bytes

    async def _settle(self, messages: list[Message]) -> bool:
        """Append until the answer is definite: True stored, False the log holds something else.

        After a lost answer the identical bytes go out again under the identical expectation; a
        conflict then is settled by comparing what stands at the first sequence, and is proven only
        by a later append.
        """
        expected = self._appended_seq
        pause = 0.05
        doubtful = False
        while True:
            try:
                await self._store.append(messages, expected)
                self._is_proven = True
                return True
            except errors.SequenceConflict:
                stored = await self._get_settled(expected + 1)
                self._is_proven = False
                return doubtful and stored == messages[0].data
            except (errors.LogUnavailable, errors.LogFull) as error:
                log.warning("an append is tried again: %s", error, extra={"action": "append"})
                doubtful = True
                self.appends.unanswered += 1
                await asyncio.sleep(pause)
                pause = min(SETTLE_SECONDS_MAX, pause * 2)

    async def _is_newest(self) -> bool:
        """Whether the log ends where this writer believes: what was appended proves it, a refusal
        alone does not, and one who was overtaken would refuse what his successor took."""
        if not any(isinstance(work.result, errors.Refused) for work in self._in_flight):
            return True
        while True:
            try:
                return await self._store.last_seq() == self._appended_seq
            except errors.LogUnavailable:
                await asyncio.sleep(SETTLE_SECONDS_MAX)

    async def _get_settled(self, seq: int) -> bytes | None:
        while True:
            try:
                record = await self._store.get(seq)
                return record.data if record else None
            except errors.LogUnavailable:
                await asyncio.sleep(SETTLE_SECONDS_MAX)

    def _publish(self) -> None:
        """Show what just became durable, and answer it and whoever waited to read it."""
        batch, self._in_flight = self._in_flight, []
        for work in batch:
            for event in work.happened:
                self._show(event)
                if isinstance(event.data, events.WriterStarted):
                    self._epoch = event.data.epoch
        answering = bool(self._answers)
        self._answers += [(work.answer, work.result) for work in batch]
        while self._readers and self._readers[0][0] <= self.durable_seq:
            self._answers.append((self._readers.popleft()[1], True))
        if not answering:
            self._answer_some()

    def _answer_some(self) -> None:
        """Wake a few of those who wait, and the others in later turns of the loop: each of them has
        an answer to write, and all at once would hold up everybody else."""
        for _ in range(min(ANSWERS_PER_TURN, len(self._answers))):
            future, result = self._answers.popleft()
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        if self._answers:
            asyncio.get_running_loop().call_soon(self._answer_some)

    def _show(self, event: events.Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # whoever watches must not hold up who writes
                log.exception("an observer failed", extra={"action": "show", "seq": event.seq})

    # ── when the log holds what this writer did not write ──

    async def _recover(self) -> None:
        """Read what others wrote; step down for a newer epoch, else decide the waiting again."""
        undecided, held = [*self._in_flight, *self._pending], self.durable_seq
        unproven, end = self._unproven, self._appended_seq
        self._in_flight, self._unproven = [], []
        self._pending = deque([*unproven, *undecided])
        self._rebuilding = True
        try:
            await self._rebuild()
            if self.state.epoch > self._epoch:
                self._step_down()
                return
            if self.state.seq < held:
                raise errors.LogDamaged(
                    f"the log ended at {held}, and ends at {self.state.seq} now; `aghsan audit`"
                    " tells what is missing"
                )
            if self.state.seq >= end and unproven:  # still there, and not to be decided twice
                self._unproven, self._pending = unproven, deque(undecided)
                self.durable_seq, self._is_proven = held, False
        finally:
            self._rebuilding = False
        self._pending_bytes = 0
        for work in self._pending:
            work.messages, work.happened = [], []
            self._decide(work)
            self._pending_bytes += work.bytes
        if self._unproven and not self._pending:
            self._prove()
        self._tell_readers(False)

    def _tell_readers(self, durable: bool) -> None:
        while self._readers:
            _, future = self._readers.popleft()
            if not future.done():
                future.set_result(durable)

    def _step_down(self) -> None:
        self.stepped_down = True
        self._wake.set()  # `run` may wait for a command, and has to end
        error = errors.SteppedDown("another control process writes this log now")
        for work in self._pending:
            if not work.answer.done():
                work.answer.set_exception(error)
        self._pending.clear()
        while self._readers:
            _, future = self._readers.popleft()
            if not future.done():
                future.set_exception(error)

    async def _rebuild(self) -> None:
        """Fold the log into the state that a rebuild begins with."""
        while True:
            try:
                state = await self._begin()
                await fold(self._store, state)
                break
            except errors.LogUnavailable as error:
                log.warning("the log cannot be read, trying again", extra={"action": str(error)})
                await asyncio.sleep(SETTLE_SECONDS_MAX)
        self.state = state
        self.durable_seq = self._appended_seq = state.seq
        self._is_proven = True

    async def catch_up(self) -> None:
        """Notice records somebody else appended while this writer was idle."""
        if self._writing.locked():
            return
        async with self._writing:
            with self._patience():
                if await self._store.last_seq() > self.state.seq:
                    await self._recover()


def _let_be(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def fold(store: Log, state: State, stop: int | None = None) -> None:
    """Fold the records after `state.seq` up to `stop` (default: the end) into `state`.

    Raises errors.LogUnavailable, and errors.LogDamaged where sequences are missing.
    """
    async for records in store.read(state.seq + 1, stop):
        first, last = records[0].seq, records[-1].seq
        if first != state.seq + 1 or last - first != len(records) - 1:
            present = {record.seq for record in records}
            missing = next(seq for seq in itertools.count(state.seq + 1) if seq not in present)
            raise errors.LogDamaged(
                f"record {missing} of the log is missing; `aghsan audit` tells all that is wrong."
                " Restore a backup, or go on with what is left by `aghsan up --accept-loss`"
            )
        facts = events.read_facts(records)
        if facts is not None:
            for fact in facts:
                state.fold(*fact)
            continue
        for record in records:
            event = events.decode(record.seq, record.subject, record.data)
            if isinstance(event, events.Undecodable):
                state.skip(event)
            else:
                state.evolve(event)
