"""A busy agent under `aghsan up`: what passes between two tasks, and how much of it is training."""

import asyncio
import datetime
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core.log_jetstream import JetStreamLog
from tests import nats_fixture
from tests.acceptance.stack import Stack

GOAL_GAP = Goal("at most", 10)
GOAL_TRAINING = Goal("at least", 0.8)
TASKS = Size(60, 6)
APPENDS = Size(300, 30)
TRAIN_SECONDS = 1
TASK_SECONDS_MAX = 30.0
ASKING_SECONDS = 1.0

NOTES = """
- Next is the next task in the order of claims. Where an agent claims it while the one before is
  still being delivered, the gap is negative and counts as 0.
- The goal is held against the stricter sum, of rivals: what lies between the two rivals of a task
  is no training there. Wall time runs from the first step of all to the last.
- Lone appends go to a nats-server of their own on the same disk, while no agent runs. The judge
  works beside the agent, as it always does under `up`.
"""


async def lone_appends(run: Run) -> list[float]:
    """Milliseconds of events appended one after another, each durable before the next."""
    story = history.Story()
    story.queue(run.size(APPENDS))
    times = []
    with (
        tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder,
        nats_fixture.running(Path(folder) / "data") as server,
    ):
        await server.apply()
        async with server.connect("control") as control:
            log = JetStreamLog(control)
            for seq, message in enumerate(story.messages):
                began = time.perf_counter()
                await log.append([message], seq)
                times.append((time.perf_counter() - began) * 1e3)
            await log.close()
    return times


async def _busy_agent(run: Run) -> list[dict[str, Any]]:
    """The tasks of one agent that always had more to do, in the order of their claims."""
    count = run.size(TASKS)
    with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder:
        stack = Stack(
            Path(folder),
            *("--agents", "1", "--train-sec", str(TRAIN_SECONDS)),
            *("--min-queue", "0", "--no-orchestrator"),
        )
        try:
            stack.start()
            nodes = history.NODES
            queued = [stack.enqueue(nodes[number % len(nodes)]) for number in range(count)]
            await _await_completed(stack, count)
            tasks = [stack.completed(task_id) for task_id in queued]
        finally:
            stack.close()
    assert all(len(task["attempts"]) == 1 for task in tasks), "one agent, and nothing went wrong"
    return sorted(tasks, key=lambda task: _epoch(task["claimed_at"]))


async def _await_completed(stack: Stack, count: int) -> None:
    """Ask rarely, so that asking takes nothing away from the agent."""
    deadline = time.monotonic() + count * TASK_SECONDS_MAX
    while stack.ask("/status")["network"]["tasks"]["completed"] < count:
        assert time.monotonic() < deadline, stack.words()
        await asyncio.sleep(ASKING_SECONDS)


def gaps_ms(tasks: list[dict[str, Any]]) -> list[float]:
    """Milliseconds from each task's completion to the claim of the next one, negative where that
    was claimed before."""
    return [
        (_epoch(following["claimed_at"]) - _epoch(task["completed_at"])) * 1e3
        for task, following in itertools.pairwise(tasks)
    ]


def _epoch(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def rival_spans(tasks: list[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    """Of each task the times of its rivals' first and last training steps, seconds since 1970."""
    return [
        [
            (rival["first_step_at"], rival["last_step_at"])
            for rival in task["result"]["metrics"]["rivals"].values()
        ]
        for task in tasks
    ]


def task_spans(tasks: list[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    """Of each task the times of its first and its last training step, whichever rival's."""
    return [
        [(min(begin for begin, _ in spans), max(end for _, end in spans))]
        for spans in rival_spans(tasks)
    ]


def covered(spans_of_tasks: list[list[tuple[float, float]]]) -> float:
    """The share of wall time, from the first step of all to the last, that the spans cover."""
    spans = [span for spans in spans_of_tasks for span in spans]
    wall = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return sum(end - begin for begin, end in spans) / wall


def measure(run: Run) -> Section:
    """The gap between tasks by a lone durable append, and the share of time spent training."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    appends: list[list[float]] = []
    busy: list[list[dict[str, Any]]] = []

    async def append() -> float:
        appends.append(await lone_appends(run))
        return statistics.median(appends[-1])

    async def train() -> float:
        busy.append(await _busy_agent(run))
        return covered(rival_spans(busy[-1]))

    found = await harness.alternate({"append": append, "busy agent": train}, run.repetitions)
    signed = [gaps_ms(tasks) for tasks in busy]
    gaps = [[max(0.0, gap) for gap in each] for each in signed]
    medians = [statistics.median(each) for each in gaps]
    tails = [harness.percentile(each, 95) for each in gaps]
    overlapped = [sum(gap < 0 for gap in each) / len(each) for each in signed]
    return Section(
        title="busy: an agent that always has more to do",
        about=f"`aghsan up --agents 1 --train-sec {TRAIN_SECONDS} --no-orchestrator`, "
        f"{run.size(TASKS)} tasks of mixed nodes queued at once, each training both rivals.",
        ratios=[
            Ratio(
                what="median of completed to next claimed / a lone durable append",
                values=harness.ratios(medians, found["append"]),
                goal=GOAL_GAP,
            ),
            Ratio(
                what="p95 of completed to next claimed / a lone durable append",
                values=harness.ratios(tails, found["append"]),
            ),
            Ratio(
                what="first to last training step of each rival / wall time",
                values=found["busy agent"],
                goal=GOAL_TRAINING,
            ),
            Ratio(
                what="first to last training step of each task / wall time",
                values=[covered(task_spans(tasks)) for tasks in busy],
            ),
        ],
        figures=[
            Figure(what="a lone durable append", unit="ms, a median", values=found["append"]),
            Figure(what="completed to next claimed, median", unit="ms", values=medians),
            Figure(what="completed to next claimed, p95", unit="ms", values=tails),
            Figure(
                what="completed to next claimed as it is, median",
                unit="ms",
                values=[statistics.median(each) for each in signed],
            ),
            Figure(
                what="tasks claimed before the one before was completed",
                unit="share",
                values=overlapped,
            ),
            Figure(what="tasks", unit="tasks/s", values=[_rate(tasks) for tasks in busy]),
        ],
        notes=NOTES,
    )


def _rate(tasks: list[dict[str, Any]]) -> float:
    seconds = _epoch(tasks[-1]["completed_at"]) - _epoch(tasks[0]["claimed_at"])
    return len(tasks) / seconds
