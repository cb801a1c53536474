"""Offers: one per waiting pull, never before their task is durable, and none that is of no use."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec

from core import commands, runtime
from core.events import Token
from core.log_memory import MemoryLog
from core.projections.tasks import Task
from orchestrator.scheduler import PULLS_MAX, Scheduler, wanted

FOREVER = 10**18


class Queue:
    """WORK as a list, at the seam that the scheduler has for it."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[str, str]] = {1: ("cpu-16", "left by an earlier run")}
        self.waiting = 0
        self.on_stored: Callable[[int], None] = lambda _: None
        self._seq = 1

    async def publish(self, lane: str, task_id: str) -> int:
        self._seq += 1
        self.held[self._seq] = (lane, task_id)
        self.on_stored(self._seq)
        return self._seq

    async def delete(self, seq: int) -> None:
        self.held.pop(seq, None)

    async def purge(self) -> None:
        self.held.clear()

    async def standing(self, lane: str) -> tuple[int, int]:
        return self.waiting, sum(name == lane for name, _ in self.held.values())


class Bench:
    """A scheduler over a door in memory."""

    def __init__(self, log: MemoryLog, door: runtime.Runtime) -> None:
        self.log = log
        self.door = door
        self.queue = Queue()
        self.scheduler = Scheduler(door, self.queue)

    async def enqueue(self, *task_ids: str) -> None:
        for task_id in task_ids:
            command = commands.EnqueueTask(task_id=task_id, node_id="root-math", topic="t", seed=1)
            await self.door.execute(command, runtime.new_meta("t"), runtime.nothing)

    async def does(self, command: commands.AnyCommand) -> None:
        await self.door.execute(command, runtime.new_meta("t"), runtime.nothing)

    async def joins(self, worker_id: str, lane: str) -> None:
        """An agent says hello."""
        hello = commands.OpenSession(
            worker_id=worker_id,
            session=f"session-{worker_id}",
            hostname="host",
            lane=lane,
            protocol=1,
        )
        await self.does(hello)

    def waits(self, task_id: str) -> bool:
        """Whether somebody waits who could take over this task."""
        task = self.door.state.tasks.table.rows[task_id]
        assert isinstance(task, Task)
        return self.scheduler.someone_waits(task)

    async def settled(self) -> list[str]:
        """The tasks on offer, once nothing more happens by itself."""
        for _ in range(50):
            await asyncio.sleep(0)
        return [task_id for _, task_id in self.queue.held.values()]


@contextlib.asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    log = MemoryLog()
    door = runtime.Runtime(log, "test")
    await door.start()
    one = Bench(log, door)
    loops = [asyncio.ensure_future(loop) for loop in (door.run(), one.scheduler.run())]
    await door.execute(commands.SeedTree(), runtime.new_meta("t"), runtime.nothing)
    try:
        yield one
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def test_offers_are_wanted_for_waiting_pulls_while_tasks_last() -> None:
    assert wanted(queued=5, waiting=2, outstanding=0) == 2
    assert wanted(queued=5, waiting=2, outstanding=4) == 1
    assert wanted(queued=1, waiting=9, outstanding=0) == 1
    assert wanted(queued=1, waiting=9, outstanding=3) == 0


async def test_offers_of_an_earlier_run_are_withdrawn_at_the_start() -> None:
    async with bench() as one:
        assert await one.settled() == []


async def test_each_waiting_pull_gets_one_offer_and_nobody_gets_one_unasked() -> None:
    async with bench() as one:
        await one.enqueue("t1", "t2", "t3")
        assert await one.settled() == []
        one.scheduler.pulled("cpu-16", 2, FOREVER)
        assert len(await one.settled()) == 2


async def test_pulls_beyond_what_the_server_lets_wait_are_not_remembered() -> None:
    async with bench() as one:
        for _ in range(PULLS_MAX):
            one.scheduler.pulled("cpu-16", 64, FOREVER)
        assert one.scheduler.waiting() == {"cpu-16": PULLS_MAX}


async def test_a_task_wakes_who_waited_before_it_came() -> None:
    async with bench() as one:
        one.queue.waiting = 1
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == []
        await one.enqueue("t1")
        assert await one.settled() == ["t1"]


async def test_nothing_is_offered_before_its_task_is_durable() -> None:
    async with bench() as one:
        one.log.hold()
        asked = asyncio.ensure_future(one.enqueue("t1"))
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == []
        one.log.release()
        await asked
        assert await one.settled() == ["t1"]


async def test_a_pull_whose_time_is_over_gets_nothing() -> None:
    async with bench() as one:
        one.scheduler.pulled("cpu-16", 1, runtime.now() - 1)
        await one.enqueue("t1")
        assert await one.settled() == []


async def test_an_answered_offer_stays_and_makes_room_for_the_next() -> None:
    async with bench() as one:
        await one.enqueue("t1", "t2")
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        await one.settled()
        (first,) = one.queue.held
        one.scheduler.answered("cpu-16", first)
        await one.scheduler._reconcile()
        assert first in one.queue.held
        assert first not in one.scheduler.lane("cpu-16").offers
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert len(await one.settled()) == 2


async def test_an_offer_answered_before_its_publisher_hears_of_it_is_not_awaited() -> None:
    async with bench() as one:
        one.queue.on_stored = lambda seq: one.scheduler.answered("cpu-16", seq)
        await one.enqueue("t1")
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == ["t1"]
        lane = one.scheduler.lane("cpu-16")
        assert (lane.offers, lane.answered) == ({}, set())


async def test_what_is_remembered_of_a_lane_does_not_grow_with_the_tasks_that_run() -> None:
    async with bench() as one:
        await one.enqueue(*(f"t{number}" for number in range(200)))
        for seq in range(200):
            one.scheduler.answered("cpu-16", seq + 2)
        lane = one.scheduler.lane("cpu-16")
        assert (lane.offers, lane.answered) == ({}, set())


async def test_offers_that_the_server_lost_are_made_anew_once_it_must_have_counted_them() -> None:
    async with bench() as one:
        await one.enqueue("t1")
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == ["t1"]
        one.queue.held.clear()
        one.queue.waiting = 1
        await one.scheduler._reconcile()
        assert await one.settled() == []
        lane = one.scheduler.lane("cpu-16")
        lane.offers = {seq: since - 2_000_000 for seq, since in lane.offers.items()}
        await one.scheduler._reconcile()
        assert await one.settled() == ["t1"]


async def test_an_offer_whose_task_is_gone_is_withdrawn() -> None:
    async with bench() as one:
        await one.enqueue("t1")
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == ["t1"]
        await one.door.execute(
            commands.CancelTask(task_id="t1"), runtime.new_meta("t"), runtime.nothing
        )
        await one.scheduler._reconcile()
        assert await one.settled() == []


async def test_somebody_waits_only_where_the_lane_can_run_the_task() -> None:
    async with bench() as one:
        await one.enqueue("t1")
        task = one.door.state.tasks.table.rows["t1"]
        assert isinstance(task, Task)
        await one.joins("a1", "cpu-16")
        await one.joins("a2", "cuda-80")
        assert not one.scheduler.someone_waits(task)
        one.scheduler.lane("cpu-16").pulls.append(FOREVER)
        assert one.scheduler.someone_waits(task)


async def test_a_pull_of_a_lane_without_an_agent_that_may_be_given_the_task_is_nobody() -> None:
    async with bench() as one:
        await one.enqueue("t1")
        one.scheduler.lane("cpu-16").pulls.append(FOREVER)
        await one.joins("a1", "cpu-16")
        claim = commands.ClaimTask(
            worker_id="a1", session="session-a1", via="nats", claim_id="c", lease_seconds=60
        )
        await one.does(claim)
        assert not one.waits("t1"), "the holder itself pulls"
        await one.joins("a2", "cpu-16")
        assert one.waits("t1")
        await one.does(commands.PauseWorker(worker_id="a2", how="pause"))
        assert not one.waits("t1")
        await one.does(commands.ResumeWorker(worker_id="a2"))
        release = commands.ReleaseClaim(
            token=Token(task_id="t1", attempt=1, claim_id="c"),
            worker_id="a1",
            session="session-a1",
            reason="too small",
            unfit=True,
        )
        await one.does(release)
        await one.does(msgspec.structs.replace(claim, worker_id="a2", session="session-a2"))
        assert not one.waits("t1"), "the only other is unfit"


async def test_who_waits_is_told_by_lane_without_those_whose_time_is_over() -> None:
    async with bench() as one:
        one.scheduler.pulled("cpu-16", 1, runtime.now() - 1)
        one.scheduler.pulled("cpu-16", 2, FOREVER)
        one.scheduler.pulled("cuda-80", 1, runtime.now() - 1)
        assert one.scheduler.waiting() == {"cpu-16": 2, "cuda-80": 0}


async def test_nothing_is_offered_while_no_claim_would_be_taken() -> None:
    async with bench() as one:
        await one.enqueue("t1")
        one.door.shortage = "no room for new work"
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == []
        one.door.shortage = ""
        one.scheduler.pulled("cpu-16", 1, FOREVER)
        assert await one.settled() == ["t1"]
