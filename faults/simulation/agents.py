"""Agents: the real loop and the real link, over made-up training and a made-up way in."""

import asyncio
import contextlib
import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from unittest import mock

import agent.link
import agent.worker
import core.platforms
from agent.executors import jobs
from agent.executors.process import Executor, OnReport
from agent.link import Link
from agent.machine import Machine
from agent.narrator import Narrator
from core import errors, events, wire
from core.telemetry import Curve
from faults.simulation import clock
from faults.simulation.control import Control
from faults.simulation.witness import Witness

if TYPE_CHECKING:
    from faults.simulation.world import World

MACHINE = Machine(
    hostname="simulated", device="cpu", devices=1, memory_gb=16.0, cores=2, system="none"
)
STEP_SECONDS = 0.5


class Disk:
    """Real files below the current folder. What is written there stays: power cuts are another
    suite's."""

    def __init__(self, loop: clock.Loop) -> None:
        self._loop = loop
        self._writes = itertools.count()

    def write_atomically(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """As core.platforms.write_atomically, without syncs, at a virtual time that no other file
        has."""
        path.write_bytes(data)
        at_ns = int(self._loop.now * 1e9) + next(self._writes)
        os.utime(path, ns=(at_ns, at_ns))


class Training(Executor):
    """An executor whose training only takes time, and now and then fails."""

    def __init__(self, choices: random.Random, fails: Callable[[], bool]) -> None:
        super().__init__()
        self._choices = choices
        self._fails = fails
        self._warm = False
        self._asked_to_stop = asyncio.Event()
        self._saves = False

    @property
    def pid(self) -> int | None:
        return 1 if self._warm else None

    async def start(self) -> None:
        await asyncio.sleep(self._choices.random())
        self._warm = True

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        self._asked_to_stop.clear()
        folder, total = Path(job.directory), max(2, int(job.budget_seconds / STEP_SECONDS))
        first = step = min(total, _newest_step(folder)) if job.resume else 0
        on_report(jobs.Started(step=step, total_steps=total))
        save_every = max(1, int(job.checkpoint_seconds / STEP_SECONDS))
        while step < total:
            if await self._stopped(STEP_SECONDS):
                return self._stopped_at(job, folder, step)
            if self._fails():
                raise errors.TrainingError("out of memory\nlast words")
            step += 1
            on_report(jobs.Progress(step=step, total_steps=total, loss=1.0 / step))
            if step % save_every == 0 and step < total:
                at = self._save(job, folder, step)
                on_report(jobs.Saved(directory=str(at), step=step, total_steps=total))
        return self._finish(job, folder, first, total)

    async def _stopped(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked_to_stop.wait(), seconds)
        return self._asked_to_stop.is_set()

    def _stopped_at(self, job: jobs.Job, folder: Path, step: int) -> jobs.Stopped:
        at = str(self._save(job, folder, step)) if self._saves and step else ""
        return jobs.Stopped(directory=at, step=step)

    def _save(self, job: jobs.Job, folder: Path, step: int) -> Path:
        at = folder / f"step-{step:08d}"
        at.mkdir(parents=True, exist_ok=True)
        (at / "state").write_text(f"{job.task_id} {job.role} {step}")
        return at

    def _finish(self, job: jobs.Job, folder: Path, first: int, total: int) -> jobs.Result:
        weights = f"{job.task_id} {job.role}".encode()
        (folder / "candidate").mkdir(parents=True, exist_ok=True)
        (folder / "candidate" / "model").write_bytes(weights)
        return jobs.Result(
            node_id=job.node_id,
            role=job.role,
            steps=total,
            total_steps=total,
            loss=0.5,
            baseline_loss=1.0,
            evidence_rate=0.9,
            params=10,
            bytes=len(weights),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            candidate_directory=str(folder / "candidate"),
            resumed_from=first,
        )

    async def stop(self, *, save: bool, at_once: bool = False) -> None:
        self._saves = save
        self._asked_to_stop.set()

    async def close(self) -> None:
        self._warm = False


def _newest_step(folder: Path) -> int:
    return max((int(one.name[-8:]) for one in folder.glob("step-*")), default=0)


class WatchedLink(Link):
    """The agent's link, with a witness of what it is told."""

    witness: ClassVar[Witness]

    async def hello(
        self, machine: Machine, holding: list[events.Token], process: str = "", number: int = 0
    ) -> wire.Welcome:
        welcome = await super().hello(machine, holding, process, number)
        self._told("SessionOpened", worker_id=self.worker_id, session=welcome.session)
        return welcome

    async def claim(self, claim_id: str, offer: int) -> wire.Assignment | None:
        assignment = await super().claim(claim_id, offer)
        if assignment is not None:
            self._told_of("TaskClaimed", assignment.token, worker_id=self.worker_id)
        return assignment

    async def checkpoint(self, request: wire.CheckpointRequest) -> None:
        await super().checkpoint(request)
        self._told_of("CheckpointStored", request.token, rival=request.rival, step=request.step)

    async def complete(self, request: wire.CompleteRequest) -> None:
        await super().complete(request)
        self._told_of("TaskCompleted", request.token, worker_id=self.worker_id)

    async def release(self, token: events.Token, reason: str, *, unfit: bool = False) -> None:
        await super().release(token, reason, unfit=unfit)
        self._told_of("ClaimReleased", token)

    async def fail(
        self, token: events.Token, reason: str, log_tail: str, curves: Sequence[Curve] = ()
    ) -> None:
        await super().fail(token, reason, log_tail, curves)
        self._told_of("AttemptFailed", token)

    def _told_of(self, event: str, token: events.Token, **says: object) -> None:
        token_says = {"attempt": token.attempt, "claim_id": token.claim_id}
        self._told(event, task_id=token.task_id, **token_says, **says)

    def _told(self, event: str, **says: object) -> None:
        self.witness.tell(self.worker_id, event, **says)


class Agent:
    """One agent and the supervisor that starts it again, whatever ends it."""

    def __init__(self, world: "World", worker_id: str, machine_id: str = "") -> None:
        self.worker_id = worker_id
        self.process = world.loop.process(worker_id)
        self.process.kill()  # it has not been started yet
        self._world = world
        self._directory = Path(machine_id or worker_id)
        self._retired = False
        self._worker: agent.worker.Worker

    def start(self) -> None:
        """Start, unless it runs."""
        world = self._world
        if not self.process.dead or self._retired:
            return
        self.process = world.loop.process(self.worker_id)
        settings = agent.worker.Settings(
            api="http://simulated",
            worker_id=self.worker_id,
            directory=self._directory,
            train_seconds=4.0,
            poll_seconds=1.0,
        )
        self.process.spawn(self._run(settings))

    async def _run(self, settings: agent.worker.Settings) -> None:
        world = self._world
        training = Training(world.choices, world.training_fails)
        narrator = Narrator(lambda line: None, settings.api)
        self._worker = agent.worker.Worker(settings, MACHINE, training, narrator)
        try:
            await self._worker.run()
        except (agent.worker.Superseded, errors.Refused):
            pass  # said to its owner, who starts it again
        except Exception as error:  # noqa: BLE001  whatever it is, it is what we look for
            world.witness.broken.append(f"agent {self.worker_id} ended: {error!r}")
        self.process.kill()
        world.loop.after(1.0 + 4.0 * world.choices.random(), self.start)

    def stop(self) -> None:
        """Ask it to leave in order."""
        if not self.process.dead and hasattr(self, "_worker"):
            self._world.loop.call_soon(self._worker.stop, context=self.process.context)

    def retire(self) -> None:
        """Kill it for good."""
        self._retired = True
        self.process.kill()


@contextlib.contextmanager
def installed(world: "World") -> Iterator[None]:
    """Inside the block agents live in this world: its disk, its way in, its witness."""

    async def join(api: str, worker_id: str, public_key: str, machine: Machine) -> object:
        async def admit(control: Control) -> object:
            return agent.link._Agent(
                worker_id=worker_id,
                token=worker_id,
                jwt="",
                nats=agent.link._Nats(path="/nats"),
                lanes=[machine.lane],
                heartbeat_seconds=1.0,
            )

        return await world.web.ask(admit, agent.link.JOIN_SECONDS)

    with contextlib.ExitStack() as stack:
        for module, name, replacement in (
            (agent.link, "_join", join),
            (agent.worker, "Link", WatchedLink),
            (core.platforms, "write_atomically", world.disk.write_atomically),
            (WatchedLink, "witness", world.witness),
        ):
            stack.enter_context(mock.patch.object(module, name, replacement, create=True))
        yield
