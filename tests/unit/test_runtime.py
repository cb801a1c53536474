"""The one door: grouped, durable before answered, settled when an answer is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from core import commands, decide, errors, events, runtime
from core.log import Message, Record
from core.log_memory import MemoryLog
from core.projections.state import State
from core.projections.tasks import Task


@contextlib.asynccontextmanager
async def running(log: MemoryLog) -> AsyncIterator[runtime.Runtime]:
    """A writer of the log, its loop beside."""
    door = runtime.Runtime(log, "test")
    await door.start()
    loop = asyncio.ensure_future(door.run())
    try:
        await door.execute(commands.SeedTree(), runtime.new_meta("t"), runtime.nothing)
        yield door
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


def enqueue(task_id: str, topic: str = "t", node_id: str = "root-math") -> commands.EnqueueTask:
    return commands.EnqueueTask(task_id=task_id, node_id=node_id, topic=topic, seed=1)


async def do(door: runtime.Runtime, command: commands.AnyCommand) -> int:
    """Execute; how many tasks the state had right after it."""
    return await door.execute(command, runtime.new_meta("t"), lambda state: len(state.tasks.table))


async def replayed(log: MemoryLog) -> State:
    state = State()
    await runtime.fold(log, state)
    return state


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_commands_during_an_append_go_together_in_the_next_and_in_order() -> None:
    log = MemoryLog()
    async with running(log) as door:
        log.hold()
        asked = [asyncio.ensure_future(do(door, enqueue(f"t{n}"))) for n in range(1)]
        await settle()
        asked += [asyncio.ensure_future(do(door, enqueue(f"t{n}"))) for n in range(1, 50)]
        await settle()
        assert not any(one.done() for one in asked)
        log.release()
        assert await asyncio.gather(*asked) == list(range(1, 51))
        assert (await replayed(log)).hash() == door.state.hash()


async def test_nobody_reads_what_is_not_durable_yet() -> None:
    log = MemoryLog()
    async with running(log) as door:
        log.hold()
        asked = asyncio.ensure_future(do(door, enqueue("t1")))
        await settle()
        reading = asyncio.ensure_future(door.read(lambda state: len(state.tasks.table)))
        await settle()
        assert not reading.done()
        log.release()
        assert await reading == 1
        assert await asked == 1


async def test_a_refusal_waits_for_what_it_rests_on() -> None:
    log = MemoryLog()
    async with running(log) as door:
        log.hold()
        first = asyncio.ensure_future(do(door, enqueue("t1")))
        refused = asyncio.ensure_future(do(door, enqueue("t2", node_id="nope")))
        await settle()
        assert not refused.done()
        log.release()
        await first
        with pytest.raises(errors.NotFound):
            await refused


@pytest.mark.parametrize("trouble", ["fail_next", "drop_next_answer"])
async def test_an_append_without_answer_is_settled_to_exactly_once(trouble: str) -> None:
    log = MemoryLog()
    async with running(log) as door:
        getattr(log, trouble)()
        assert await do(door, enqueue("t1")) == 1
        assert await do(door, enqueue("t2")) == 2
        assert len(await log.of_subject("ev.task.t1")) == 1
        assert (await replayed(log)).hash() == door.state.hash()


async def test_a_foreign_record_is_quarantined_and_the_waiting_are_decided_again() -> None:
    log = MemoryLog()
    async with running(log) as door:
        await log.append([Message("ev.task.x", b"no event")], await log.last_seq())
        assert await do(door, enqueue("t1")) == 1
        assert [row.subject for row in door.state.quarantine] == ["ev.task.x"]
        assert (await replayed(log)).hash() == door.state.hash()
        with pytest.raises(errors.ReadOnlyAggregate):
            await do(door, enqueue("x"))


async def test_a_foreign_record_is_noticed_without_a_command() -> None:
    log = MemoryLog()
    async with running(log) as door:
        await log.append([Message("ev.task.x", b"no event")], await log.last_seq())
        await door.catch_up()
        assert len(door.state.quarantine) == 1


async def test_a_newer_writer_ends_the_older_for_good() -> None:
    log = MemoryLog()
    async with running(log) as old:
        async with running(log) as new:
            assert new.state.epoch == old.state.epoch + 1
            with pytest.raises(errors.SteppedDown):
                await do(old, enqueue("t1"))
            assert await do(new, enqueue("t2")) == 1
        with pytest.raises(errors.SteppedDown):
            await do(old, enqueue("t3"))
        assert "t1" not in (await replayed(log)).tasks.table


async def test_a_writer_that_learns_of_a_newer_one_without_a_command_ends_too() -> None:
    log = MemoryLog()
    old = runtime.Runtime(log, "old")
    await old.start()
    writing = asyncio.ensure_future(old.run())
    await asyncio.sleep(0)
    async with running(log):
        await old.catch_up()
        async with asyncio.timeout(10):
            await writing
    assert old.stepped_down


async def test_what_does_not_fit_into_an_event_is_refused_and_changes_nothing() -> None:
    log = MemoryLog()
    async with running(log) as door:
        before = door.state.hash()
        with pytest.raises(errors.Invalid, match="shorten"):
            await do(door, enqueue("t1", topic="x" * events.EVENT_BYTES_MAX))
        assert door.state.hash() == before
        assert await do(door, enqueue("t2")) == 1


async def test_too_much_waiting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PENDING_MAX", 3)
    log = MemoryLog()
    async with running(log) as door:
        log.hold()
        asked = []
        for number in range(6):
            asked.append(asyncio.ensure_future(do(door, enqueue(f"t{number}"))))
            await settle()
        refused = [one for one in asked if one.done()]
        assert len(refused) == 2
        for one in refused:
            assert isinstance(one.exception(), errors.Overloaded)
        log.release()
        taken = [one for one in asked if one not in refused]
        assert await asyncio.gather(*taken) == [1, 2, 3, 4]


async def test_too_many_bytes_that_wait_are_refused_and_room_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "PENDING_BYTES_MAX", 10_000)
    log = MemoryLog()
    async with running(log) as door:
        for turn in range(3):
            log.hold()
            first = asyncio.ensure_future(do(door, enqueue(f"first{turn}")))
            await settle()
            waiting = asyncio.ensure_future(do(door, enqueue(f"long{turn}", topic="x" * 10_000)))
            await settle()
            with pytest.raises(errors.Overloaded):
                await do(door, enqueue(f"more{turn}"))
            log.release()
            assert [*await asyncio.gather(first, waiting)] == [2 * turn + 1, 2 * turn + 2]


async def test_observers_see_each_durable_event_once_and_in_order() -> None:
    log = MemoryLog()
    async with running(log) as door:
        seen: list[int] = []
        door.observe(lambda event: seen.append(event.seq))
        log.drop_next_answer()
        await asyncio.gather(*(do(door, enqueue(f"t{n}")) for n in range(20)))
        assert seen == list(range(seen[0], await log.last_seq() + 1))
        assert len(seen) == 21  # one more, to prove what was stored without an answer


class Gapped(MemoryLog):
    """A log that lost one record."""

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        async for records in super().read(start, stop):
            yield [record for record in records if record.seq != 5]


async def test_a_log_with_a_gap_makes_no_state() -> None:
    log = Gapped()
    async with running(log) as door:
        await do(door, enqueue("t1"))
    with pytest.raises(errors.LogDamaged, match="aghsan audit"):
        await replayed(log)


async def test_times_in_the_log_never_run_backwards() -> None:
    log = MemoryLog()
    async with running(log) as door:
        late = runtime.new_meta("t")
        early = late._replace(now=late.now - 10_000_000)
        await door.execute(enqueue("t1"), late, runtime.nothing)
        await door.execute(enqueue("t2"), early, runtime.nothing)
        rows = door.state.tasks.table.rows
        assert rows["t2"].created_at >= rows["t1"].created_at  # type: ignore[union-attr]


async def test_times_in_the_log_never_run_backwards_across_a_restart() -> None:
    log = MemoryLog()
    later = 10_000_000
    async with running(log) as door:
        meta = runtime.new_meta("t")
        await door.execute(enqueue("t1"), meta._replace(now=meta.now + later), runtime.nothing)
        newest = door.state.at
    async with running(log) as door:
        await do(door, enqueue("t2"))
        row = door.state.tasks.table.rows["t2"]
        assert isinstance(row, Task)
        assert row.created_at == newest


async def test_a_read_only_task_does_not_keep_its_worker_from_beginning_a_session() -> None:
    log = MemoryLog()
    async with running(log) as door:
        await do(door, enqueue("x"))
        await do(door, hello("first"))
        await do(door, claim("first"))
        await log.append([Message("ev.task.x", b"no event")], await log.last_seq())
        await door.catch_up()
        await do(door, hello("second"))  # which would release its claim on x
        worker = door.state.workers.table.get("w")
        assert worker is not None
        assert worker.session == "second"
        with pytest.raises(errors.ReadOnlyAggregate):
            await do(door, commands.CancelTask(task_id="x"))


async def without(log: MemoryLog, *lost: type[events.EventData]) -> MemoryLog:
    """The log as accepting a loss leaves it, where the first events of these types were lost."""
    missing, messages = list(lost), []
    for seq in range(1, await log.last_seq() + 1):
        record = await log.get(seq)
        assert record is not None
        event = events.decode(record.seq, record.subject, record.data)
        data = record.data
        if isinstance(event, events.Event) and type(event.data) in missing:
            missing.remove(type(event.data))
            data = events.lost_record(seq, event.at)
        messages.append(Message(record.subject, data))
    mended = MemoryLog()
    await mended.append(messages, 0)
    return mended


def closed_words(what: str) -> str:
    return f"{what} is closed: a record of it cannot be read"


async def tale(*, expires: bool) -> MemoryLog:
    """A task x that was claimed, and given out again if its lease ended, and a later task y."""
    log = MemoryLog()
    async with running(log) as door:
        await do(door, enqueue("x"))
        await do(door, hello("first"))
        await do(door, claim("first"))
        if expires:
            token = events.Token(task_id="x", attempt=1, claim_id="c1")
            await do(door, commands.ExpireClaim(token=token, reason="silent", last_seen=0))
        await do(door, enqueue("y"))
    return log


@pytest.mark.parametrize("lost", [events.TaskClaimed, events.ClaimExpired])
async def test_a_task_that_lost_a_record_is_passed_over_and_the_next_is_given_out(
    lost: type[events.EventData],
) -> None:
    async with running(await without(await tale(expires=True), lost)) as door:
        await do(door, hello("second"))
        assert len(door.state.tasks.queue) == 1
        await do(door, claim("second", "c2"))
        assert door.state.tasks.held == {"w": {"y": None}}
        with pytest.raises(errors.ReadOnlyAggregate, match=closed_words("task x")):
            await do(door, commands.CancelTask(task_id="x"))


async def test_an_http_worker_is_not_given_a_task_again_that_lost_a_record() -> None:
    log = MemoryLog()
    async with running(log) as door:
        await do(door, enqueue("x"))
        await do(door, commands.RegisterWorker(worker_id="w", hostname="h"))
        await do(door, http_claim(0))
        await log.append([Message("ev.task.x", events.lost_record(9, 9))], await log.last_seq())
        await door.catch_up()
        await do(door, enqueue("y"))
        await do(door, http_claim(runtime.now()))
        assert door.state.tasks.held == {"w": {"y": None}}


async def test_an_agent_that_lists_a_task_that_lost_a_record_begins_its_session() -> None:
    token = events.Token(task_id="x", attempt=1, claim_id="c1")
    log = await tale(expires=True)
    async with running(log) as door:
        await log.append([Message("ev.task.x", events.lost_record(9, 9))], await log.last_seq())
        await door.catch_up()
        await do(door, msgspec.structs.replace(hello("second"), holding=[token]))
        assert door.state.workers.table.rows["w"].session == "second"


async def test_a_worker_that_lost_a_record_is_told_to_come_under_another_id() -> None:
    async with running(await without(await tale(expires=False), events.SessionOpened)) as door:
        with pytest.raises(errors.ReadOnlyAggregate, match="--worker-id"):
            await do(door, hello("second"))


def http_claim(signalled_at: int) -> commands.ClaimTask:
    return commands.ClaimTask(
        worker_id="w", via="http", claim_id="h", lease_seconds=60.0, signalled_at=signalled_at
    )


def hello(session: str) -> commands.OpenSession:
    return commands.OpenSession(
        worker_id="w", session=session, hostname="h", lane="cpu-16", protocol=1
    )


def claim(session: str, claim_id: str = "c1") -> commands.ClaimTask:
    return commands.ClaimTask(
        worker_id="w", via="nats", claim_id=claim_id, lease_seconds=60.0, session=session
    )


async def test_a_rule_that_breaks_is_told_to_its_caller_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog()
    sound = decide.decide

    def breaks(state: State, command: commands.AnyCommand, meta: commands.Meta) -> Any:
        if isinstance(command, commands.CancelTask):
            raise ZeroDivisionError
        return sound(state, command, meta)

    monkeypatch.setattr(decide, "decide", breaks)
    async with running(log) as door:
        await do(door, enqueue("t1"))
        with pytest.raises(ZeroDivisionError):
            await do(door, commands.CancelTask(task_id="t1"))
        assert await do(door, enqueue("t2")) == 2
        assert (await replayed(log)).hash() == door.state.hash()


async def test_a_view_that_breaks_leaves_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    async with running(log) as door:
        with pytest.raises(ZeroDivisionError):
            await door.execute(enqueue("t1"), runtime.new_meta("t"), lambda state: 1 // 0)
        assert await do(door, enqueue("t2")) == 2
        assert (await replayed(log)).hash() == door.state.hash()


async def test_a_fold_that_breaks_ends_the_writer_before_it_appends_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog()
    door = runtime.Runtime(log, "test")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    before = await log.last_seq()

    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(decide, "follow", breaks)
    asked = asyncio.ensure_future(do(door, commands.SeedTree()))
    with pytest.raises(ZeroDivisionError):
        await writing
    assert await log.last_seq() == before
    asked.cancel()


async def test_an_observer_that_breaks_holds_up_neither_the_writer_nor_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = MemoryLog()
    async with running(log) as door:
        seen: list[int] = []

        def breaks(event: events.Event) -> None:
            raise ZeroDivisionError

        door.observe(breaks)
        door.observe(lambda event: seen.append(event.seq))
        assert await do(door, enqueue("t1")) == 1
        assert await do(door, enqueue("t2")) == 2
        assert len(seen) == 2
    assert "an observer failed" in caplog.text


async def test_many_that_wait_for_one_append_are_answered_over_several_turns_of_the_loop() -> None:
    log = MemoryLog()
    async with running(log) as door:
        log.hold()
        many = 3 * runtime.ANSWERS_PER_TURN
        first = asyncio.ensure_future(do(door, enqueue("first")))
        await settle()
        asked = [asyncio.ensure_future(do(door, enqueue(f"t{n}"))) for n in range(many)]
        reading = asyncio.ensure_future(door.read(lambda state: len(state.tasks.table)))
        log.release()
        by_turn = []
        while not reading.done():
            before = sum(one.done() for one in asked)
            await asyncio.sleep(0)
            by_turn.append(sum(one.done() for one in asked) - before)
        assert 0 < max(by_turn) <= runtime.ANSWERS_PER_TURN
        assert [await one for one in (first, *asked)] == list(range(1, many + 2))
        assert await reading == many + 1


async def test_one_who_was_overtaken_refuses_nothing_that_its_successor_took() -> None:
    log = MemoryLog()
    async with running(log) as overtaken:
        async with running(log) as successor:
            await do(successor, enqueue("t1"))
        # To it there is no such task, and nothing it could append would show that it is wrong.
        with pytest.raises(errors.SteppedDown):
            await do(overtaken, commands.CancelTask(task_id="t1"))
        assert overtaken.stepped_down


async def test_text_that_is_no_unicode_is_refused() -> None:
    log = MemoryLog()
    async with running(log) as door:
        with pytest.raises(errors.UnfitEvent):
            await do(door, enqueue("t1", topic="\ud800"))
        assert await do(door, enqueue("t2")) == 1


async def test_without_room_new_work_is_refused_and_what_was_begun_is_saved() -> None:
    log = MemoryLog()
    async with running(log) as door:
        await do(door, enqueue("t1"))
        door.shortage = "no room for new work"
        before = await log.last_seq()
        with pytest.raises(errors.LogFull, match="no room"):
            await do(door, enqueue("t2"))
        assert await log.last_seq() == before
        await do(door, commands.CancelTask(task_id="t1"))
        door.shortage = ""
        assert await do(door, enqueue("t2")) == 2


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PATIENCE_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
async def test_nobody_waits_for_ever_and_what_was_unknown_happens_once() -> None:
    log = MemoryLog()
    async with running(log) as door:
        log.hold()
        asked = [asyncio.ensure_future(do(door, enqueue("t1")))]
        await settle()
        asked.append(asyncio.ensure_future(do(door, enqueue("t2"))))
        for one in asked:
            with pytest.raises(errors.LogUnavailable, match="not known whether"):
                await one
        with pytest.raises(errors.LogUnavailable, match="nothing was done"):
            await do(door, enqueue("t3"))
        assert door.unanswered_seconds > 0
        log.release()
        await settle()
        await door.until_durable()
        assert await do(door, enqueue("t4")) == 3
        assert door.unanswered_seconds == 0
        assert list((await replayed(log)).tasks.table.rows) == ["t1", "t2", "t4"]
        assert (await replayed(log)).hash() == door.state.hash()


@pytest.mark.usefixtures("impatient")
async def test_reads_show_what_was_durable_before_while_an_append_is_not_answered() -> None:
    log = MemoryLog()
    async with running(log) as door:
        await do(door, enqueue("t1"))
        durable = door.state.hash()
        log.hold()
        asked = asyncio.ensure_future(do(door, enqueue("t2")))
        await settle()
        # One that waits already, and one that comes later.
        for _ in range(2):
            assert await door.read(lambda state: list(state.tasks.table.rows)) == ["t1"]
        assert await door.read(lambda state: state.hash()) == durable
        with pytest.raises(errors.LogUnavailable):
            await door.until_durable()
        log.release()
        with pytest.raises(errors.LogUnavailable):
            await asked
        await settle()
        await door.until_durable()
        assert await door.read(lambda state: list(state.tasks.table.rows)) == ["t1", "t2"]


class Unreadable(MemoryLog):
    """A log that can be neither read nor written once it is told so."""

    reads = True

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        if not self.reads:
            raise errors.LogUnavailable("no answer")
        async for records in super().read(start, stop):
            yield records


@pytest.mark.usefixtures("impatient")
async def test_a_read_that_cannot_be_answered_says_so_and_later_ones_are_tried_again() -> None:
    log = Unreadable()
    async with running(log) as door:
        log.hold()
        log.reads = False
        asked = asyncio.ensure_future(do(door, enqueue("t1")))
        await settle()
        with pytest.raises(errors.LogUnavailable, match="cannot be read"):
            await door.read(lambda state: len(state.tasks.table))
        log.reads = True
        assert await door.read(lambda state: len(state.tasks.table)) == 0
        log.release()
        with pytest.raises(errors.LogUnavailable):
            await asked


class Slow(MemoryLog):
    """A log that, while it holds an append, does not come to the end of a reading either."""

    reading = 0

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        self.reading += 1
        try:
            if stop is not None:
                await asyncio.Event().wait()
            async for records in super().read(start, stop):
                yield records
        finally:
            self.reading -= 1


@pytest.mark.usefixtures("impatient")
async def test_one_reading_of_the_log_at_a_time_and_none_once_the_append_is_answered() -> None:
    log = Slow()
    async with running(log) as door:
        for name in ("t1", "t2"):
            log.hold()
            asked = asyncio.ensure_future(do(door, enqueue(name)))
            with pytest.raises(errors.LogUnavailable):
                await asked
            reading = [
                asyncio.ensure_future(door.read(lambda state: len(state.tasks.table)))
                for _ in range(2)
            ]
            await settle()
            assert log.reading == 1
            log.release()
            await settle()
            await door.until_durable()
            assert await asyncio.gather(*reading) == [len(door.state.tasks.table)] * 2
            assert log.reading == 0


async def test_a_log_that_comes_back_shorter_ends_its_writer() -> None:
    log = MemoryLog()
    door = runtime.Runtime(log, "test")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    await door.execute(commands.SeedTree(), runtime.new_meta("t"), runtime.nothing)
    del log._records[-3:]  # as of a server that was started on less than it had acknowledged
    asked = asyncio.ensure_future(do(door, enqueue("t1")))
    with pytest.raises(errors.LogDamaged, match="ends at"):
        await asyncio.wait_for(writing, 10)
    asked.cancel()


class Failing(MemoryLog):
    """As nats-server on a full disk: it holds in memory, and shows, what it could not write, until
    it is started again; and it takes no more."""

    def __init__(self) -> None:
        super().__init__()
        self.is_failing = False
        self.failed = asyncio.Semaphore(0)
        self.taken = asyncio.Event()
        """Set by what is written."""
        self._written = 0

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        if not self.is_failing:
            self._written = await super().append(messages, expected_last)
            self.taken.set()
            return self._written
        if expected_last == self._written == await self.last_seq():
            await super().append(messages, expected_last)
        elif expected_last != await self.last_seq():
            raise errors.SequenceConflict("the log ends elsewhere")
        self.failed.release()
        raise errors.LogUnavailable("a write failed")

    def restart(self) -> None:
        """What was written is there."""
        del self._records[self._written :]
        self.is_failing = False
        self.taken.clear()


async def test_what_a_server_holds_in_memory_alone_is_not_acknowledged_and_comes_once() -> None:
    log = Failing()
    heads: list[int] = []
    async with running(log) as door:
        door.note_head = lambda seq, _: heads.append(seq)
        end = await log.last_seq()
        log.is_failing = True
        asked = asyncio.ensure_future(do(door, enqueue("t1")))
        for _ in range(3):  # the write, and twice what was to prove it
            await log.failed.acquire()
        assert await log.last_seq() == end + 1
        assert not asked.done()
        assert (heads, door.durable_seq) == ([], end)
        log.restart()
        assert await asyncio.wait_for(asked, 10) == 1
        assert heads[0] > end
        state = await replayed(log)
        assert list(state.tasks.table.rows) == ["t1"]
        assert state.hash() == door.state.hash()
        assert door.durable_seq == await log.last_seq()


async def test_who_waits_for_a_proof_that_does_not_come_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "PATIENCE_SECONDS", 0.3)
    log = Failing()
    async with running(log) as door:
        log.is_failing = True
        asked = asyncio.ensure_future(do(door, enqueue("t1")))
        for _ in range(2):  # the write, settled within anybody's patience, and what is to prove it
            await log.failed.acquire()
        assert not asked.done()
        with pytest.raises(errors.LogUnavailable, match="not known whether"):
            await asyncio.wait_for(asked, 10)
        log.restart()
        await log.taken.wait()
        await settle()
        await door.until_durable()
        assert list((await replayed(log)).tasks.table.rows) == ["t1"]


async def test_what_was_stored_without_an_answer_is_told_once_a_later_append_is() -> None:
    log = MemoryLog()
    async with running(log) as door:
        log.drop_next_answer()
        assert await do(door, enqueue("t1")) == 1
        state = await replayed(log)
        assert list(state.tasks.table.rows) == ["t1"]
        assert state.epoch == 2
        assert await do(door, enqueue("t2")) == 2
        assert not door.stepped_down
