"""From the death of an agent to its task being trained elsewhere, with another agent waiting."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import busy, harness
from benchmarks.harness import Figure, Run, Section, Size
from tests.acceptance.stack import Stack, until

AGENTS = 3
KILLS = Size(10, 1)
SILENCES = Size(3, 1)
BUDGET_SECONDS = 8
NODE = "stats-bayesian"

NOTES = """
- Killed: `kill -9` of the agent that trains, after its first checkpoint was stored. Silent: agent
  and executor stopped by SIGSTOP, their connections staying open, as a host that vanished looks.
- Until the first step of the next attempt, by the clock of its executor, which went on from a
  checkpoint (asserted). In both cases other agents wait with warm executors.
"""


def measure(run: Run) -> Section:
    """Seconds from a death to training elsewhere, beside `import torch` and a lone append."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    killed: list[list[float]] = []
    silent: list[list[float]] = []

    async def append() -> float:
        return statistics.median(await busy.lone_appends(run)) / 1e3

    async def kill() -> float:
        killed.append(await asyncio.to_thread(_moves, run.size(KILLS), signal.SIGKILL))
        return statistics.median(killed[-1])

    async def silence() -> float:
        silent.append(await asyncio.to_thread(_moves, run.size(SILENCES), signal.SIGSTOP))
        return statistics.median(silent[-1])

    sides = {"import torch": _import_torch, "append": append, "kill": kill, "silence": silence}
    found = await harness.alternate(sides, run.repetitions)
    return Section(
        title="death: from an agent's end to its task going on elsewhere",
        about=f"`aghsan up --agents {AGENTS}`, tasks of {BUDGET_SECONDS} s one after another; in"
        f" each repetition {run.size(KILLS)} agents killed and {run.size(SILENCES)} silenced.",
        ratios=[],
        figures=[
            Figure(what="killed, median", unit="s", values=found["kill"]),
            Figure(what="killed, p95", unit="s", values=_tails(killed)),
            Figure(what="silent, median", unit="s", values=found["silence"]),
            Figure(what="silent, p95", unit="s", values=_tails(silent)),
            Figure(what="`import torch` in a new process", unit="s", values=found["import torch"]),
            Figure(what="a lone durable append", unit="s, a median", values=found["append"]),
        ],
        notes=NOTES,
    )


def _tails(measured: list[list[float]]) -> list[float]:
    return [harness.percentile(each, 95) for each in measured]


async def _import_torch() -> float:
    began = time.perf_counter()
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def _moves(count: int, how: signal.Signals) -> list[float]:
    """How long each of `count` tasks rested when the agent that trained it died."""
    with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder:
        stack = Stack(Path(folder), "--agents", str(AGENTS), "--no-orchestrator")
        try:
            stack.start()
            return [_move(stack, how) for _ in range(count)]
        finally:
            stack.close()


def _move(stack: Stack, how: signal.Signals) -> float:
    until(lambda: _waiting(stack) == AGENTS, "all agents wait")
    task_id = stack.enqueue(NODE, role="evolver", budget_seconds=BUDGET_SECONDS)
    victim = until(lambda: _checkpointed(stack, task_id), "a checkpoint")
    agent = psutil.Process(stack.pid(victim))
    executors = agent.children(recursive=True)
    died_at = time.time()
    for process in (agent, *executors) if how == signal.SIGSTOP else (agent,):
        os.kill(process.pid, how)
    task = stack.completed(task_id)
    if how == signal.SIGSTOP:
        agent.kill()
    *_, last = task["attempts"]
    assert last["worker_id"] != victim, task
    assert last["resumed_from"] > 0, "it went on from a checkpoint"
    return float(next(iter(busy.rival_spans([task])[0]))[0]) - died_at


def _waiting(stack: Stack) -> int:
    workers: list[dict[str, Any]] = stack.patiently("/workers").get("workers", [])
    return sum(one["status"] == "online" and not one["tasks"] for one in workers)


def _checkpointed(stack: Stack, task_id: str) -> str:
    task = stack.task(task_id)
    return str(task["assigned_worker"]) if task.get("resume") else ""
