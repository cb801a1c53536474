"""Those who speak HTTP: people who enqueue, cancel and retry, and workers of the older kind."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

from aiohttp import web
from multidict import CIMultiDict

from core import commands, errors, runtime
from gateway import schemas

if TYPE_CHECKING:
    from faults.simulation.world import World

NODES = ("root-math", "stats-bayesian", "opt-convex")
ROLES: tuple[Literal["dual", "evolver", "reinventor"], ...] = ("dual", "evolver", "reinventor")


def _request(**headers: str) -> web.Request:
    """As much of a request as its handlers look at."""
    return cast(web.Request, SimpleNamespace(headers=CIMultiDict(headers)))


class People:
    """They ask again, in the same words, until they are answered."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._process = world.loop.process("people")
        self.open_orders = 0
        self.tasks: list[str] = []

    def start(self, orders: int, seconds: float) -> None:
        """Enqueue so many tasks within so many seconds, and change one's mind about some."""
        self.open_orders = orders
        for number in range(orders):
            moment = seconds * self._world.choices.random()
            self._process.spawn(self._order(f"key-{number}", moment))

    async def _order(self, key: str, moment: float) -> None:
        await asyncio.sleep(moment)
        choices = self._world.choices
        asked = schemas.EnqueueRequest(
            topic=f"topic {key}",
            node_id=choices.choice(NODES),
            priority=choices.randint(1, 10),
            role=choices.choice(ROLES),
            budget_seconds=choices.uniform(1.0, 6.0),
        )
        request = _request(**{"Idempotency-Key": key})
        answer = await self._until_answered(lambda control: control.routes.enqueue(request, asked))
        task_id = answer.task.task_id
        self.tasks.append(task_id)
        told = {"task_id": task_id, "idempotency_key": key, "topic": asked.topic}
        self._world.witness.tell("people", "TaskQueued", **told)
        self.open_orders -= 1
        if choices.random() < 0.15:
            await asyncio.sleep(choices.uniform(0.0, 10.0))
            await self._change_mind(task_id)

    async def _change_mind(self, task_id: str) -> None:
        """Withdraw a task, and in half of the cases want it after all."""
        with contextlib.suppress(errors.Refused):
            await self._do(commands.CancelTask(task_id=task_id, reason="a change of mind"))
            self._world.witness.tell("people", "TaskCancelled", task_id=task_id)
            if self._world.choices.random() < 0.5:
                await self._do(commands.RetryTask(task_id=task_id))

    async def _do(self, command: commands.AnyCommand) -> None:
        await self._until_answered(
            lambda control: control.door.execute(command, runtime.new_meta("http"), runtime.nothing)
        )

    async def _until_answered(self, question: Any) -> Any:
        while True:
            try:
                return await self._world.web.ask(question)
            except (errors.Unavailable, errors.LogFull):
                await asyncio.sleep(0.5)


class OldWorker:
    """A worker that only knows the nine routes. It may hold a result that nobody wants any more."""

    def __init__(self, world: "World", worker_id: str) -> None:
        self.worker_id = worker_id
        self.process = world.loop.process(worker_id)
        self.process.kill()  # it has not been started yet
        self._world = world

    def start(self) -> None:
        """Start, unless it runs."""
        if self.process.dead:
            self.process = self._world.loop.process(self.worker_id)
            self.process.spawn(self._run())

    def stop(self) -> None:
        """It knows no order to leave in."""
        self.process.kill()

    async def _run(self) -> None:
        introduced = schemas.RegisterRequest(worker_id=self.worker_id, hostname="old")
        await self._until_answered(lambda one: one.routes.register(_request(), introduced))
        beating = asyncio.create_task(self._beat())
        wanted = schemas.ClaimRequest(worker_id=self.worker_id)
        while True:
            try:
                claimed = await self._world.web.ask(
                    lambda one: one.routes.claim(_request(), wanted)
                )
            except errors.AghsanError:
                claimed = schemas.ClaimAnswer(task=None)
            if claimed.task is None:
                await asyncio.sleep(2.0)
                continue
            assert not beating.done(), "it beats for ever"
            await self._work(claimed.task.task_id)

    async def _beat(self) -> None:
        beat = schemas.HeartbeatRequest(worker_id=self.worker_id)
        while True:
            with contextlib.suppress(errors.AghsanError):
                await self._world.web.ask(lambda one: one.routes.heartbeat(_request(), beat))
            await asyncio.sleep(2.0)

    async def _work(self, task_id: str) -> None:
        await asyncio.sleep(self._world.choices.uniform(1.0, 6.0))
        result = schemas.CompleteRequest(task_id=task_id, worker_id=self.worker_id)
        with contextlib.suppress(errors.Refused):
            await self._until_answered(lambda one: one.routes.complete(_request(), result))
            told = {"task_id": task_id, "worker_id": self.worker_id}
            self._world.witness.tell(self.worker_id, "TaskCompleted", **told)

    async def _until_answered(self, question: Any) -> Any:
        while True:
            try:
                return await self._world.web.ask(question)
            except (errors.Unavailable, errors.LogFull):
                await asyncio.sleep(0.5)
