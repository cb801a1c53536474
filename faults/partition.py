"""An agent's host is cut off at each step of a claim, for longer and shorter; then it is back."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from core.bus import Bus, Incoming
from faults import harness, network
from faults.harness import Run, Told, Verdict
from faults.load import Load
from tests.acceptance.stack import Stack

NAME = "partition"
FAR = "far"
STEPS = ("TaskQueued", "TaskClaimed", "CheckpointStored", "TaskCompleted")
"""The cable is pulled as these are being written: an offer is on its way, a claim's answer, the
answer to a checkpoint, and that to a completion."""
CUT_SECONDS = (1.0, 4.0, 15.0)
TASKS = 3
BUDGET_SECONDS, BUDGET_SECONDS_QUICK = 5, 3
"""Both long enough for a checkpoint, which comes after two seconds."""
STEP_SECONDS_MAX = 60.0
ENDED_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 15.0


async def attack(run: Run) -> Verdict:
    """Pull the cable between the control plane and an agent, with another agent beside."""
    verdict = Verdict(NAME, run.tries(2, 16, 200))
    choices = run.random(NAME)
    verdict.unable = network.why_not()
    if verdict.unable:
        return verdict
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(harness.folder_of(verdict))
        cable = stack.enter_context(network.apart())
        parts = Stack(folder, "--host", network.HERE, "--agents", "1", "--no-orchestrator")
        stack.callback(parts.close)
        await asyncio.to_thread(parts.start)
        stack.enter_context(_agent_there(cable, parts.http, folder))
        await _until_attached(parts)
        told: list[Told] = []
        budget_seconds = BUDGET_SECONDS_QUICK if run.quick else BUDGET_SECONDS
        async with _watching(parts) as watch, contextlib.aclosing(Load(parts.http)) as load:
            for number in range(verdict.tries):
                step = choices.choice(STEPS) if run.quick else STEPS[number % len(STEPS)]
                seen = watch.expect(step)
                for task in range(TASKS):
                    told.append(await _enqueue(load, f"{number}/{task}", budget_seconds))
                await asyncio.wait_for(seen.wait(), STEP_SECONDS_MAX)
                await asyncio.sleep(choices.random() * 0.02)
                cable.pull()
                await asyncio.sleep(CUT_SECONDS[0] if run.quick else choices.choice(CUT_SECONDS))
                cable.plug()
                for one in told[-TASKS:]:
                    await asyncio.to_thread(parts.completed, one.task_id, ENDED_SECONDS_MAX)
        await asyncio.to_thread(parts.stop)
        await harness.check_directory(verdict, told, parts.data)
    return verdict


async def _enqueue(load: Load, key: str, budget_seconds: int) -> Told:
    body = {
        "topic": f"topic {key}",
        "node_id": "stats-bayesian",
        "role": "evolver",
        "budget_seconds": budget_seconds,
    }
    task = (await load.ask("POST", "/training/enqueue", body, key))["task"]
    return Told(key, task["task_id"], task["topic"])


@contextlib.contextmanager
def _agent_there(cable: network.Cable, api: str, folder: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "cli.main", "agent", "--api", api, "--worker-id", FAR]
    with (folder / "far.log").open("w") as log:
        process = subprocess.Popen(
            [*cable.there, *argv, "--directory", str(folder / FAR)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _until_attached(parts: Stack) -> None:
    async def is_there() -> bool:
        workers = (await asyncio.to_thread(parts.ask, "/workers"))["workers"]
        return FAR in [one["worker_id"] for one in workers if one["status"] == "online"]

    await harness.until(is_there, f"{FAR} attached", STEP_SECONDS_MAX)


class _Watch:
    """Notices when an event is written, where it is of a claim: one of the far agent's."""

    def __init__(self) -> None:
        self._wanted = ""
        self._seen = asyncio.Event()
        self._far_claims: set[str] = set()

    def expect(self, name: str) -> asyncio.Event:
        """What is set at the next event of this type."""
        self._wanted, self._seen = name, asyncio.Event()
        return self._seen

    async def take(self, message: Incoming) -> None:
        event = json.loads(message.data)
        claim_id = event["data"].get("claim_id", "")
        if event["data"].get("worker_id") == FAR:
            self._far_claims.add(claim_id)
        is_fars = not claim_id or claim_id in self._far_claims
        if event["type"] == self._wanted and is_fars:
            self._seen.set()


@contextlib.asynccontextmanager
async def _watching(parts: Stack) -> AsyncIterator[_Watch]:
    watch = _Watch()
    creds = parts.data / "creds" / "control.creds"
    bus = await Bus.connect(parts.facts["nats"], credentials=creds, name=NAME)
    try:
        await bus.subscribe("ev.task.*", watch.take)
        yield watch
    finally:
        await bus.close()
