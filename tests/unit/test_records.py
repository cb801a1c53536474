"""Whole records, folded again from what the log holds of one aggregate."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from core import commands, events, runtime
from core.chunks import MemoryChunks
from core.log import Message
from core.log_memory import MemoryLog
from gateway.records import Records

DIGEST = "a" * 64
WORKLOAD = events.Workload(specialist="x")


@contextlib.asynccontextmanager
async def written(log: MemoryLog) -> AsyncIterator[tuple[runtime.Runtime, Records]]:
    """A writer of the log, its loop beside, and the records of it."""
    door = runtime.Runtime(log, "test")
    await door.start()
    loop = asyncio.ensure_future(door.run())
    try:
        yield door, Records(door, log, MemoryChunks())
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def do(door: runtime.Runtime, *asked: commands.AnyCommand) -> None:
    for command in asked:
        await door.execute(command, runtime.new_meta("t"), runtime.nothing)


async def completed(door: runtime.Runtime, **result: str) -> None:
    """With the task t1, done by w."""
    await do(
        door,
        commands.SeedTree(),
        commands.RegisterWorker(worker_id="w", hostname="h"),
        commands.EnqueueTask(task_id="t1", node_id="root-math", topic="t", seed=1),
        commands.ClaimTask(worker_id="w", via="http", claim_id="c", lease_seconds=60.0),
        commands.CompleteTask(task_id="t1", worker_id="w", **result),  # type: ignore[arg-type]
    )
    door.state.tasks.recent.clear()  # as after a thousand more completions


async def put(log: MemoryLog, data: events.EventData) -> None:
    """What somebody else writes into the log."""
    event = events.Event(0, runtime.now(), "foreign", "x", "x", "x", data)
    message = Message(events.subject_of(data), events.encode(event))
    await log.append([message], await log.last_seq())


async def test_a_task_is_shown_without_what_the_state_quarantined_of_it() -> None:
    log = MemoryLog()
    async with written(log) as (door, records):
        await completed(door)
        before = await records.task("t1")
        for data in (
            events.TaskRetried(task_id="t1"),
            events.TaskQueued(task_id="t1", node_id="x", topic="x", priority=1, workload=WORKLOAD),
            events.TaskFailed(task_id="t1", reasons=["no"]),
        ):
            await put(log, data)
        assert await records.task("t1") == before  # not seen yet
        await door.catch_up()
        assert len(door.state.quarantine) == 3
        door.state.tasks.recent.clear()
        assert await records.task("t1") == before


async def test_a_round_is_shown_without_what_the_state_quarantined_of_it() -> None:
    log = MemoryLog()
    async with written(log) as (door, records):
        await do(
            door,
            commands.SeedTree(),
            commands.DepositCommitments(judge="j", first=0, commitments=[DIGEST]),
        )
        for data in (
            events.RoundClosed(round_id="r1", reason="before it was opened"),
            events.RoundOpened(
                round_id="r1",
                node_id="root-math",
                index=0,
                commitment=DIGEST,
                workload=WORKLOAD,
                closes_at=1,
            ),
            events.RoundDecided(
                round_id="r1",
                verdict="void",
                secret="",
                reasons=events.Reasons(ar="", en=""),
                candidates=[],
            ),
            events.JudgingStarted(round_id="r1", judge="late", look=1),
        ):
            await put(log, data)
        await door.catch_up()
        shown = await records.round("r1")
        assert (shown.status, shown.judge) == ("decided", "")


async def test_metrics_that_are_lost_are_shown_as_lost() -> None:
    async with written(MemoryLog()) as (door, records):
        await completed(door, metrics_digest=DIGEST)
        metrics = await records.metrics(await records.task("t1"))
        assert "no chunk" in json.loads(bytes(metrics))["unreadable"]


async def test_a_round_that_does_not_fit_leaves_no_trace() -> None:
    log = MemoryLog()
    async with written(log) as (door, _):
        await do(door, commands.SeedTree())
        await put(
            log,
            events.RoundOpened(
                round_id="r1",
                node_id="root-math",
                index=5,
                commitment=DIGEST,
                workload=WORKLOAD,
                closes_at=1,
            ),
        )
        await door.catch_up()
        assert len(door.state.quarantine) == 1
        assert door.state.rounds.awaiting_judgement == 0
        assert not door.state.rounds.of_node
