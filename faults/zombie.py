"""A worker is stopped past its lease, another takes its task over, the first wakes: too late."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from core import errors
from core.chunks_jetstream import JetStreamChunks
from faults import harness, parts
from faults.harness import Delivered, Run, Told, Verdict
from faults.load import Load

NAME = "zombie"
LEASE_SECONDS = 2.0
TURN_SECONDS_MAX = 120.0
KEPT_SECONDS_MAX = 10.0
NAP_SECONDS = 0.5
"""The control process sleeps through an agent's awakening, so that what the agent says first is
what it did meanwhile, and not that it has been told to stop."""


class Zombies:
    """The tries, one after another on one log, and what clients were told."""

    def __init__(self, control: parts.Control, load: Load, verdict: Verdict) -> None:
        self._control = control
        self._load = load
        self._verdict = verdict
        self.told: list[Told] = []
        self.delivered: list[Delivered] = []
        self.refused: list[Delivered] = []
        self.refusals: dict[str, int] = {}
        """How many refusals there have to be, by task."""

    async def holder(self, number: int, choices: random.Random) -> None:
        """A process that speaks as agents do, and completes as soon as it is awake."""
        zombie, heir = f"z{number}", f"h{number}"
        task_id = await self._enqueue(f"holder-{number}", 60.0)
        async with self._holding(zombie) as sleeper:
            held = await sleeper.hear_of("claimed")
            await asyncio.sleep(choices.random() * 0.5)
            sleeper.send(signal.SIGSTOP)
            async with self._holding(heir) as other:
                taken = await other.hear_of("claimed")
                await other.tell("go")
                await other.hear_of("completed")
            sleeper.send(signal.SIGCONT)
            await sleeper.tell("go")
            late = (await sleeper.hear_of("uploaded"))["uploaded"]
            said = await sleeper.hear()
        self.delivered.append(Delivered(task_id, heir, heir))
        self.refused.append(Delivered(task_id, zombie, zombie))
        self._require(held["claimed"] == taken["claimed"] == task_id, f"{held}, then {taken}")
        self._require('"StaleAttempt"' in said, f"the late one of {task_id} was told {said}")
        await self._check(task_id, heir, {zombie: [held["stored"], late]})

    def _holding(self, name: str) -> contextlib.AbstractAsyncContextManager[parts.Part]:
        log = self._control.folder / f"{name}.log"
        return parts.running("faults.holding", self._control.http, name, log=log)

    async def agent(self, number: int, agents: dict[str, parts.Part]) -> None:
        """A real agent, whose executor goes on and ends while it is stopped."""
        task_id = await self._enqueue(f"agent-{number}", 1.5)
        zombie = await self._holder_of(task_id)
        agents[zombie].send(signal.SIGSTOP)
        await self._until(task_id, lambda task: task["status"] == "completed")
        self._control.gateway.send(signal.SIGSTOP)
        agents[zombie].send(signal.SIGCONT)
        await asyncio.sleep(NAP_SECONDS)
        self._control.gateway.send(signal.SIGCONT)
        (heir,) = set(agents) - {zombie}
        await self._check(task_id, heir, {zombie: []})

    async def executor(self, number: int, agents: dict[str, parts.Part]) -> None:
        """Only the executor is stopped: its agent, which still beats, ends it, and goes on with
        another, or gives up."""
        task_id = await self._enqueue(f"executor-{number}", 1.5)
        holder = await self._holder_of(task_id)
        (executor,) = psutil.Process(agents[holder].pid).children()
        executor.suspend()
        task = await self._until(task_id, lambda task: task["status"] == "completed")
        self._require(not executor.is_running(), f"the executor that hung at {task_id} still runs")
        first = task["attempts"][0]
        is_told = "did nothing" in first["reason"] or len(task["attempts"]) == 1
        self._require(is_told, f"{task_id}: {first}")
        await self._check(task_id, task["attempts"][-1]["worker_id"], {}, refusals=0)

    async def _enqueue(self, key: str, budget_seconds: float) -> str:
        body = {
            "topic": key,
            "node_id": "stats-bayesian",
            "role": "reinventor",
            "budget_seconds": budget_seconds,
        }
        task = (await self._load.ask("POST", "/training/enqueue", body, key))["task"]
        self.told.append(Told(key, task["task_id"], key))
        return str(task["task_id"])

    async def _until(self, task_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            task: dict[str, Any] = (await self._load.ask("GET", f"/tasks/{task_id}"))["task"]
            return task if holds(task) else None

        task = await harness.until(found, f"{task_id} in another state", TURN_SECONDS_MAX)
        assert task is not None
        return task

    async def _holder_of(self, task_id: str) -> str:
        task = await self._until(task_id, lambda task: task["status"] == "running")
        return str(task["assigned_worker"])

    async def _check(
        self, task_id: str, heir: str, left: dict[str, list[str]], refusals: int = 1
    ) -> None:
        """One result, of the heir; the refusal on record; what the late one wrote still there."""
        self.refusals[task_id] = refusals

        async def are_kept() -> bool:
            return (await self.refused_of()).get(task_id, 0) >= refusals

        try:
            await harness.until(are_kept, "refusals", KEPT_SECONDS_MAX)
        except TimeoutError:
            self._require(False, f"no refusal of {task_id} is on record")
        task = await self._until(task_id, lambda task: task["status"] == "completed")
        winner = task["result"]["worker_id"]
        self._require(winner == heir, f"{task_id} is completed by {winner}, not by {heir}")
        async with self._control.nats.connect("desk") as desk:
            for writer, digests in left.items():
                for digest in digests:
                    await self._require_stored(JetStreamChunks(desk), writer, digest)
                wanted = {"subjects_filter": f"chunk.{writer}.*"}
                state = (await desk.api("STREAM.INFO.CHUNKS", wanted))["state"]
                self._require(bool(state.get("subjects")), f"{writer} left nothing")

    async def _require_stored(self, store: JetStreamChunks, writer: str, digest: str) -> None:
        try:
            await store.get(writer, digest)
        except (errors.NotFound, errors.ArtifactError) as error:
            self._require(False, f"what {writer} wrote is no evidence any more: {error}")

    async def refused_of(self) -> dict[str, int]:
        """How often a stale token was refused, by task, as `GET log/refusals` has it."""
        found: dict[str, int] = {}
        page = await self._load.ask("GET", "/log/refusals?limit=1000")
        for one in page["refusals"]:
            task_id = one["subject"].removeprefix("task.")
            found[task_id] = found.get(task_id, 0) + 1
            self._require(one["reason"].startswith("StaleAttempt"), f"refused otherwise: {one}")
        return found

    def _require(self, holds: bool, words: str) -> None:
        if not holds and words not in self._verdict.wrong:
            self._verdict.wrong.append(words)


async def attack(run: Run) -> Verdict:
    """Stop holders, then agents, then an executor; the quick form has holders alone."""
    holders, agents, executors = run.tries(1, 10, 100), run.tries(0, 5, 50), run.tries(0, 1, 3)
    verdict = Verdict(NAME, holders + agents + executors)
    with harness.folder_of(verdict) as folder:
        await _attack(verdict, folder, run.random(NAME), holders, agents, executors)
    return verdict


async def _attack(
    verdict: Verdict,
    folder: Path,
    choices: random.Random,
    holders: int,
    agents: int,
    executors: int,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(parts.control(folder, LEASE_SECONDS))
        load = await stack.enter_async_context(contextlib.aclosing(Load(control.http)))
        zombies = Zombies(control, load, verdict)
        for number in range(holders):
            await zombies.holder(number, choices)
        real = {}
        for name in ("a1", "a2") if agents else ():
            real[name] = await stack.enter_async_context(control.agent(name))
        for number in range(agents):
            await zombies.agent(number, real)
        for number in range(executors):
            await zombies.executor(number, real)
        found = await zombies.refused_of()
        wanted = {task_id: count for task_id, count in zombies.refusals.items() if count}
        if found != wanted:
            verdict.wrong.append(f"refusals by task are {found}, not {wanted}")
    report = await harness.check_directory(
        verdict, zombies.told, folder / "data", zombies.delivered, zombies.refused
    )
    if report["refusals"] != sum(wanted.values()):
        verdict.wrong.append(f"the audit counts {report['refusals']} refusals, not {wanted}")
