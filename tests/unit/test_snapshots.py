"""A start from a snapshot: the same state as from the whole log, or the whole log after all."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest

from benchmarks import history
from core import commands, errors, events, keeper, runtime, snapshots
from core.log import Record
from core.log_memory import MemoryLog
from core.projections.state import State
from core.snapshots_memory import MemorySnapshots
from tests import states


def tale() -> history.Story:
    """Some of everything: workers of both kinds, rounds decided and open, tasks that wait."""
    story = history.Story(seed=3)
    story.complete_over_http(12)
    story.train(9)
    story.queue(7)
    story.do(commands.CancelTask(task_id=next(reversed(story.state.tasks.ids)), reason="no"))
    story.do(commands.ExpandNode(node_id="n1", parent_id="root-math", name="عقدة"))
    story.do(commands.RegisterWorker(worker_id="slow", hostname="host"))
    story.do(commands.ClaimTask(worker_id="slow", via="http", claim_id="c", lease_seconds=60.0))
    return story


def last_record(story: history.Story) -> Record:
    return Record(len(story.messages), *story.messages[-1])


def dumped(state: State, record: Record) -> tuple[snapshots.Head, list[bytes]]:
    copied = snapshots.copy(state)
    pieces = list(snapshots.dump(copied))
    head = snapshots.head_of(copied, record, [piece.part for piece in pieces])
    return head, [piece.data for piece in pieces]


# The bytes


def test_a_loaded_state_is_the_folded_one_in_all_that_is_in_it() -> None:
    story = tale()
    state = story.state
    state.skip(events.Undecodable(state.seq + 1, "ev.task.broken", "no event"))
    record = Record(state.seq, "ev.task.broken", b"?")
    loaded = states.loaded(*dumped(state, record))
    assert states.contents(loaded) == states.contents(state)
    assert loaded.read_only == {"ev.task.broken"}
    assert loaded.hash() == state.hash()


def test_tasks_that_nothing_can_be_written_on_are_given_out_after_a_load_no_more_than_before() -> (
    None
):
    story = tale()
    state = story.state
    waits = state.tasks.queue.first(1, state.tasks.ticket)[0]
    held = next(iter(state.tasks.held["slow"]))
    for task_id in (waits, held):
        record = Record(state.seq + 1, f"ev.task.{task_id}", b"?")
        state.skip(events.Undecodable(record.seq, record.subject, "no event"))
    assert "slow" not in state.tasks.held
    loaded = states.loaded(*dumped(state, record))
    assert states.contents(loaded) == states.contents(state)
    assert len(loaded.tasks.queue) == len(state.tasks.queue)
    assert waits not in loaded.tasks.queue.first(9, loaded.tasks.ticket)


def test_a_copy_stays_as_it_was_while_the_state_goes_on() -> None:
    story = tale()
    before = states.contents(states.loaded(*dumped(story.state, last_record(story))))
    copied, record = snapshots.copy(story.state), last_record(story)
    story.complete_over_http(3)
    story.train(3)
    pieces = list(snapshots.dump(copied))
    head = snapshots.head_of(copied, record, [piece.part for piece in pieces])
    loaded = states.loaded(head, [piece.data for piece in pieces])
    assert states.contents(loaded) == before
    for message in story.messages[head.seq :]:
        event = events.decode(loaded.seq + 1, message.subject, message.data)
        assert isinstance(event, events.Event)
        loaded.evolve(event)
    assert states.contents(loaded) == states.contents(story.state)


def test_parts_are_bounded_and_a_row_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    story = tale()
    monkeypatch.setattr(snapshots, "PART_BYTES_MAX", 2_000)
    head, parts = dumped(story.state, last_record(story))
    assert len(parts) > len(snapshots._SECTIONS)
    for part, data in zip(head.parts, parts, strict=True):
        assert part.rows == 1 or len(data) <= 2_000 + 2
        assert len(msgspec.json.decode(data)) == part.rows
    assert states.contents(states.loaded(head, parts)) == states.contents(story.state)


def test_loaded_rows_do_not_keep_the_bytes_they_came_from() -> None:
    story = tale()
    head, parts = dumped(story.state, last_record(story))
    before = list(map(sys.getrefcount, parts))
    loaded = states.loaded(head, parts)
    assert len(loaded.tasks.recent) == 21
    assert list(map(sys.getrefcount, parts)) == before


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "add", "swap"])
def test_damaged_parts_make_no_state(harm: str) -> None:
    story = tale()
    head, parts = dumped(story.state, last_record(story))
    match harm:
        case "flip":
            parts[1] = parts[1].replace(b"evolver", b"evolvex").replace(b"0", b"1")
        case "cut":
            parts[-1] = parts[-1][:-1]
        case "lose":
            parts.pop()
        case "add":
            parts.append(b"[]")
        case "swap":
            parts[0], parts[1] = parts[1], parts[0]
    with pytest.raises(errors.SnapshotUnusable):
        states.loaded(head, parts)


def test_a_damaged_head_is_refused() -> None:
    story = tale()
    head, _ = dumped(story.state, last_record(story))
    raw = snapshots.encode_head(head)
    assert snapshots.decode_head(raw) == head
    with pytest.raises(errors.SnapshotUnusable, match="head is damaged"):
        snapshots.decode_head(raw.replace(b'"seq":%d' % head.seq, b'"seq":%d' % (head.seq + 1)))
    for broken in (b"", b"{}", raw[:-1], b"\xff"):
        with pytest.raises(errors.SnapshotUnusable, match="cannot be read"):
            snapshots.decode_head(broken)


@pytest.mark.parametrize("change", [{"schema": "0" * 64}, {"format": 0}])
def test_a_head_of_another_program_is_refused(change: dict[str, str]) -> None:
    story = tale()
    head, _ = dumped(story.state, last_record(story))
    other = msgspec.structs.replace(head, **change)
    with pytest.raises(errors.SnapshotUnusable, match="folds otherwise"):
        snapshots.decode_head(snapshots.encode_head(other))


def test_the_schema_covers_whatever_folds() -> None:
    named = {module.__name__ for module in snapshots._FOLDING}
    folding = {fold.__module__ for fold in State()._folds.values()}
    assert folding <= named
    assert snapshots.schema() == snapshots.schema()


# Taking and using them


@contextlib.asynccontextmanager
async def running(log: MemoryLog, kept: keeper.Keeper) -> AsyncIterator[runtime.Runtime]:
    door = runtime.Runtime(log, "test", kept.newest)
    await door.start()
    task = asyncio.ensure_future(door.run())
    try:
        yield door
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def do(door: runtime.Runtime, command: commands.AnyCommand) -> None:
    await door.execute(command, runtime.new_meta("t"), runtime.nothing)


def enqueue(task_id: str) -> commands.EnqueueTask:
    return commands.EnqueueTask(task_id=task_id, node_id="root-math", topic="topic", seed=1)


async def replayed(log: MemoryLog) -> State:
    state = State()
    await runtime.fold(log, state)
    return state


async def log_with_snapshots(store: MemorySnapshots, count: int = 1) -> MemoryLog:
    """A log with so many snapshots along it, and a tail after the last."""
    log = MemoryLog()
    await history.store(log, tale().messages)
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        for number in range(count):
            await do(door, enqueue(f"before-{number}"))
            await kept.take(door)
        await do(door, enqueue("after"))
    return log


class Reads(MemoryLog):
    """A log that notes from where it is read."""

    def __init__(self, other: MemoryLog) -> None:
        super().__init__()
        self.__dict__.update(other.__dict__)
        self.starts: list[int] = []

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        self.starts.append(start)
        async for records in super().read(start, stop):
            yield records


class Stumbles(Reads):
    """A log whose first question, or first answer about a record, is lost."""

    def __init__(self, other: MemoryLog, lost: str) -> None:
        super().__init__(other)
        self.lost = {lost}

    def lose(self, what: str) -> None:
        if what in self.lost:
            self.lost.remove(what)
            raise errors.LogUnavailable("no answer")

    async def last_seq(self) -> int:
        self.lose("last_seq")
        return await super().last_seq()

    async def get(self, seq: int) -> Record | None:
        self.lose("get")
        return await super().get(seq)


async def begun(store: MemorySnapshots, log: MemoryLog) -> tuple[State, int]:
    """The state a start makes, which is that of the whole log, and from where it read."""
    reads = Reads(log)
    async with running(reads, keeper.Keeper(store, log)) as door:
        whole = await replayed(log)
        assert states.contents(door.state) == states.contents(whole)
        assert door.state.hash() == whole.hash()
        return door.state, reads.starts[0]


async def test_a_start_folds_only_what_came_after_the_snapshot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    store = MemorySnapshots()
    log = await log_with_snapshots(store)
    head = snapshots.decode_head(store.heads[next(iter(store.heads))])
    _, start = await begun(store, log)
    assert start == head.seq + 1 > 1
    assert f"the state at {head.seq} of" in caplog.text


async def test_two_are_kept_and_the_newest_is_used() -> None:
    store = MemorySnapshots()
    log = await log_with_snapshots(store, 3)
    assert len(store.heads) == len(store.stored) == keeper.KEPT
    newest = max(snapshots.decode_head(head).seq for head in store.heads.values())
    _, start = await begun(store, log)
    assert start == newest + 1


async def test_what_was_left_unfinished_is_removed() -> None:
    store = MemorySnapshots()
    await store.add("1-left", b"part")
    await log_with_snapshots(store)
    assert "1-left" not in store.stored


async def test_a_damaged_one_is_passed_over_with_a_word_for_the_one_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemorySnapshots()
    log = await log_with_snapshots(store, 2)
    older, newest = store.heads
    store.stored[newest][0] = store.stored[newest][0][:-1] + b" "
    _, start = await begun(store, log)
    assert start == snapshots.decode_head(store.heads[older]).seq + 1
    assert f"the snapshot {newest} is not used: a part of nodes is damaged" in caplog.text


async def test_without_a_usable_one_the_whole_log_is_folded_with_a_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    store = MemorySnapshots()
    log = await log_with_snapshots(store, 2)
    monkeypatch.setattr(snapshots, "schema", lambda: "f" * 64)
    _, start = await begun(store, log)
    assert start == 1
    assert caplog.text.count("folds otherwise") == 2
    assert "the whole log is folded" in caplog.text


async def test_one_of_another_log_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    store = MemorySnapshots()
    await log_with_snapshots(store)
    other = MemoryLog()
    async with running(other, keeper.Keeper(MemorySnapshots(), other)) as door:
        await do(door, commands.SeedTree())
    _, start = await begun(store, other)
    assert start == 1
    assert "and the log ends at" in caplog.text
    story = history.Story(seed=4)
    story.complete_over_http(90)
    longer = MemoryLog()
    await history.store(longer, story.messages)
    _, start = await begun(store, longer)
    assert start == 1
    assert "holds another record" in caplog.text


async def test_a_store_that_is_away_does_not_stop_a_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Away(MemorySnapshots):
        async def kept(self) -> list[snapshots.Kept]:
            raise errors.Unavailable("nobody is there")

    store = Away()
    log = MemoryLog()
    await history.store(log, tale().messages)
    _, start = await begun(store, log)
    assert start == 1
    assert "snapshots cannot be read: nobody is there" in caplog.text


@pytest.mark.parametrize("lost", ["last_seq", "get"])
async def test_a_log_that_does_not_answer_once_is_asked_again_in_place_of_folded_whole(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "SETTLE_SECONDS_MAX", 0.0)
    store = MemorySnapshots()
    stumbles = Stumbles(await log_with_snapshots(store), lost)
    async with running(stumbles, keeper.Keeper(store, stumbles)):
        assert stumbles.lost == set()
        assert stumbles.starts[0] > 1


async def test_only_what_is_durable_gets_into_a_snapshot() -> None:
    store, log = MemorySnapshots(), MemoryLog()
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        await do(door, commands.SeedTree())
        log.hold()
        asking = asyncio.ensure_future(do(door, enqueue("t1")))
        taking = asyncio.ensure_future(kept.take(door))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not store.stored
        log.release()
        await asking
        head = await taking
        assert head.seq == await log.last_seq()


async def test_a_state_that_another_writer_overtook_is_not_kept() -> None:
    store, log = MemorySnapshots(), MemoryLog()
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        await do(door, commands.SeedTree())
        log.hold()
        asking = asyncio.ensure_future(do(door, enqueue("t1")))
        taking = asyncio.ensure_future(kept.take(door))
        await asyncio.sleep(0)
        log._records.append(Record(len(log._records) + 1, "ev.task.x", b"no event"))
        log.release()
        await asking
        head = await taking
        assert [part.rows for part in head.parts if part.section == "quarantine"] == [1]
    await begun(store, log)


async def test_a_snapshot_is_due_after_enough_events_and_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(keeper, "PAUSE_SECONDS_MIN", 0.0)
    monkeypatch.setattr(keeper, "EVENTS_MIN", 10)
    store, log = MemorySnapshots(), MemoryLog()
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        loop = asyncio.ensure_future(kept.run(door))
        await do(door, commands.SeedTree())
        while not store.heads:
            await do(door, enqueue(f"t{door.state.seq}"))
        loop.cancel()
    head = snapshots.decode_head(next(iter(store.heads.values())))
    assert head.seq >= 10


async def test_the_last_one_is_taken_only_where_enough_is_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, log = MemorySnapshots(), MemoryLog()
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        await do(door, commands.SeedTree())
        await kept.take_last(door)
        assert not store.heads
        monkeypatch.setattr(keeper, "LAST_EVENTS_MIN", 1)
        await kept.take_last(door)
        assert len(store.heads) == 1
        await kept.take_last(door)
        assert len(store.heads) == 1


async def test_one_that_is_too_large_is_given_up_with_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "BYTES_MAX", 100)
    monkeypatch.setattr(keeper, "LAST_EVENTS_MIN", 1)
    store, log = MemorySnapshots(), MemoryLog()
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        await do(door, commands.SeedTree())
        await kept.take_last(door)
    assert not store.heads
    assert "no snapshot was taken: it has more than 100 bytes" in caplog.text


@pytest.mark.parametrize("error", [errors.Unavailable, errors.LogFull, errors.Invalid])
async def test_a_store_that_refuses_is_named_and_tried_again_later(
    error: type[errors.AghsanError],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refuses(MemorySnapshots):
        async def add(self, name: str, part: bytes) -> None:
            raise error("not this one")

    monkeypatch.setattr(keeper, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(keeper, "PAUSE_SECONDS_MIN", 0.0)
    monkeypatch.setattr(keeper, "EVENTS_MIN", 1)
    store, log = Refuses(), MemoryLog()
    async with running(log, kept := keeper.Keeper(store, log)) as door:
        await do(door, commands.SeedTree())
        loop = asyncio.ensure_future(kept.run(door))
        while caplog.text.count("no snapshot was taken: not this one") < 2:
            await do(door, enqueue(f"t{door.state.seq}"))
        assert not loop.done()
        loop.cancel()
    assert not store.heads
