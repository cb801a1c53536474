"""A blip is not a death: what is cut off for a moment trains on, and what is gone moves once.

The tests go from an agent of their own to one alone, and to two, of which one waits; they share
them in this order.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import pytest_asyncio

from agent import machine
from agent.executors.process import Executor
from agent.narrator import Narrator
from agent.worker import Settings, Worker
from core.chunks import DESK
from core.chunks_jetstream import JetStreamChunks
from core.log_jetstream import JetStreamLog
from faults import harness, network, parts
from faults.load import Load
from tests.acceptance import way

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE_SECONDS = 4.0
LONG_LEASE_SECONDS = 60.0
SECONDS_MAX = 45.0
"""Less than a silent executor that computes is borne for."""
BUDGET_SECONDS = 12.0
"""With a checkpoint every two seconds, twice it with one every four."""
IDLE_SECONDS_MAX = 3.0
"""What an executor that does nothing is given here; agents elsewhere give theirs more."""
LONG_SECONDS = 600.0
"""With none for a minute."""


class Agent:
    """A real agent, the way it reaches the gateway by, and its processes."""

    def __init__(self, name: str, part: parts.Part, path: way.Way) -> None:
        self.name = name
        self.way = path
        self._part = part

    @property
    def executor(self) -> psutil.Process:
        (found,) = psutil.Process(self._part.pid).children()
        return found

    def sleep(self) -> None:
        """As a laptop whose lid is closed: neither the agent nor its executor runs."""
        self._part.send(signal.SIGSTOP)
        self.executor.suspend()

    def wake(self) -> None:
        self._part.send(signal.SIGCONT)
        self.executor.resume()


class Plane:
    """A control plane, and what people ask of it."""

    def __init__(self, control: parts.Control, load: Load) -> None:
        self.control = control
        self._load = load

    async def enqueue(self, budget_seconds: float) -> str:
        body = {"topic": "t", "node_id": "opt-convex", "role": "evolver"}
        task = await self._load.ask(
            "POST", "/training/enqueue", {**body, "budget_seconds": budget_seconds}
        )
        return str(task["task"]["task_id"])

    async def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self._load.ask("GET", f"/tasks/{task_id}"))["task"]
        return found

    async def until(
        self,
        task_id: str,
        holds: Callable[[dict[str, Any]], object],
        what: str,
        seconds: float = SECONDS_MAX,
    ) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            task = await self.task(task_id)
            assert task["status"] not in ("failed", "completed"), task
            return task if holds(task) else None

        task = await harness.until(found, f"{task_id} {what}", seconds)
        assert task is not None
        return task

    async def goes_on(self, task_id: str) -> dict[str, Any]:
        """The task, once it trained some steps from now."""
        before = _step(await self.task(task_id))
        return await self.until(task_id, lambda task: _step(task) > before, "trains")

    async def held(self, budget_seconds: float, *others: Agent) -> str:
        """A task that trains at the one agent that is none of these others, which then wait."""
        for other in others:
            other.way.reset()
        task_id = await self.enqueue(budget_seconds)
        await self.until(task_id, _step, "trains")
        for other in others:
            await other.way.mend()
        await self.until_waiting(len(others))
        return task_id

    async def until_waiting(self, count: int) -> None:
        """Agents wait for work."""

        async def found() -> bool:
            return await self._waiting() == count

        await harness.until(found, f"{count} agents wait", SECONDS_MAX)

    async def _waiting(self) -> int:
        async with self.control.nats.connect("desk") as desk:
            lanes = (await desk.api("CONSUMER.LIST.WORK"))["consumers"]
        return sum(int(lane["num_waiting"]) for lane in lanes)

    async def cancel(self, task_id: str) -> None:
        await self._load.ask("POST", f"/tasks/{task_id}/cancel", {})

    async def refusals(self, task_id: str) -> list[str]:
        page = await self._load.ask("GET", "/log/refusals?limit=1000")
        return [one["reason"] for one in page["refusals"] if one["subject"] == f"task.{task_id}"]

    async def events(self, task_id: str, kind: str) -> list[dict[str, Any]]:
        """What the log holds of a task, of one type."""
        found = []
        async with self.control.nats.connect("control") as bus:
            async for records in JetStreamLog(bus).read():
                for record in records:
                    if record.subject == f"ev.task.{task_id}":
                        event = json.loads(record.data)
                        if event["type"] == kind:
                            found.append(event["data"])
        return found


def _step(task: dict[str, Any]) -> int:
    return task["losses"][-1]["step"] if task["losses"] else 0


@contextlib.asynccontextmanager
async def _plane(folder: Path, lease_seconds: float, host: str) -> AsyncIterator[Plane]:
    async with (
        parts.control(folder, lease_seconds, host) as control,
        contextlib.aclosing(Load(control.http)) as load,
    ):
        yield Plane(control, load)


@contextlib.asynccontextmanager
async def _agent(plane: Plane, name: str) -> AsyncIterator[Agent]:
    at = urlsplit(plane.control.http)
    assert at.hostname is not None
    assert at.port is not None
    async with way.to(at.hostname, at.port) as path, _started(plane, name, path.origin) as part:
        yield Agent(name, part, path)


@contextlib.asynccontextmanager
async def _started(
    plane: Plane, name: str, api: str, before: Sequence[str] = ()
) -> AsyncIterator[parts.Part]:
    folder = plane.control.folder
    where = ("--api", api, "--worker-id", name, "--directory", str(folder / name))
    log = folder / f"{name}.log"
    async with parts.running("cli.main", "agent", *where, log=log, before=before) as part:
        await part.hear_joined()
        yield part


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    async with _plane(tmp_path_factory.mktemp("blips"), LEASE_SECONDS, "127.0.0.1") as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(plane: Plane) -> AsyncIterator[Agent]:
    """The first agent."""
    async with _agent(plane, "first") as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(plane: Plane, alone: Agent) -> AsyncIterator[Agent]:
    """One more; from here on nobody is alone."""
    async with _agent(plane, "second") as one:
        yield one


async def test_an_executor_that_is_stopped_is_replaced_by_one_that_goes_on_from_the_checkpoint(
    plane: Plane, tmp_path: Path
) -> None:
    executor = Executor()
    executor.idle_seconds_max = IDLE_SECONDS_MAX
    settings = Settings(api=plane.control.http, worker_id="here", directory=tmp_path)
    agent = Worker(settings, machine.inspect(), executor, Narrator(lambda line: None, ""))
    running = asyncio.create_task(agent.run())
    task_id = await plane.enqueue(BUDGET_SECONDS)
    await plane.until(task_id, lambda task: task["resume"], "has a checkpoint")
    assert executor.pid is not None
    stopped = psutil.Process(executor.pid)
    stopped.suspend()
    task = await plane.until(task_id, lambda task: len(task["attempts"]) == 2, "began anew")
    assert f"did nothing for {IDLE_SECONDS_MAX:g} s" in task["attempts"][0]["reason"]
    assert task["attempts"][1]["resumed_from"] > 0
    await plane.goes_on(task_id)
    assert not stopped.is_running()
    await plane.cancel(task_id)
    agent.stop()
    await running


async def test_with_nobody_waiting_a_cut_within_the_lease_costs_nothing(
    plane: Plane, alone: Agent
) -> None:
    task_id = await plane.held(LONG_SECONDS)
    executor = alone.executor.pid
    alone.way.reset()
    before = _step(await plane.task(task_id))
    await asyncio.sleep(LEASE_SECONDS - 1.0)
    await alone.way.mend()
    task = await plane.until(task_id, lambda task: _step(task) > before, "trains")
    assert [one["state"] for one in task["attempts"]] == ["open"]
    assert await plane.events(task_id, "ClaimExpired") == []
    assert alone.executor.pid == executor
    await plane.cancel(task_id)


async def test_who_slept_past_its_lease_goes_on_where_nobody_took_its_task(
    plane: Plane, alone: Agent
) -> None:
    task_id = await plane.held(LONG_SECONDS)
    executor = alone.executor.pid
    alone.sleep()
    await plane.until(task_id, lambda task: task["status"] == "queued", "is taken from it")
    alone.wake()
    await plane.until(task_id, lambda task: task["status"] == "running", "is its own again")
    task = await plane.goes_on(task_id)
    assert len(task["attempts"]) == 1
    assert alone.executor.pid == executor
    await plane.cancel(task_id)


async def test_a_connection_that_is_reset_and_back_at_once_moves_nothing_though_another_waits(
    plane: Plane, alone: Agent, second: Agent
) -> None:
    task_id = await plane.held(LONG_SECONDS, second)
    executor = alone.executor.pid
    alone.way.reset()
    before = _step(await plane.task(task_id))
    await asyncio.sleep(1.0)
    await alone.way.mend()
    task = await plane.until(task_id, lambda task: _step(task) > before, "trains")
    assert [one["state"] for one in task["attempts"]] == ["open"]
    assert await plane.events(task_id, "ClaimExpired") == []
    assert alone.executor.pid == executor
    await plane.cancel(task_id)


async def test_a_longer_cut_with_another_waiting_is_one_move_and_the_old_holder_stops(
    plane: Plane, alone: Agent, second: Agent
) -> None:
    task_id = await plane.held(2 * BUDGET_SECONDS, second)
    await plane.until(task_id, lambda task: task["resume"], "has a checkpoint")
    alone.way.reset()
    await plane.until(task_id, lambda task: len(task["attempts"]) == 2, "moved")
    await alone.way.mend()
    refused = await harness.until(lambda: plane.refusals(task_id), "refused", SECONDS_MAX)
    assert all(one.startswith("StaleAttempt") for one in refused)
    # Its executor is free long before it would be by itself: it trains what comes next.
    next_id = await plane.enqueue(LONG_SECONDS)
    await plane.until(next_id, _step, "trains", BUDGET_SECONDS)
    assert (await plane.task(next_id))["assigned_worker"] == alone.name

    task = await plane.goes_on(task_id)
    assert [one["state"] for one in task["attempts"]] == ["expired", "open"]
    assert task["attempts"][1]["worker_id"] == second.name
    assert task["attempts"][1]["resumed_from"] > 0
    _, moved = await plane.events(task_id, "TaskClaimed")
    (point,) = moved["resume"]
    stored = [one["checkpoint"] for one in await plane.events(task_id, "CheckpointStored")]
    assert point in stored
    assert point["step"] == task["attempts"][1]["resumed_from"]
    async with plane.control.nats.connect("desk") as desk:
        assert await JetStreamChunks(desk).get(DESK, point["manifest"])
    for one in (task_id, next_id):
        await plane.cancel(one)


async def test_packets_that_are_dropped_for_eight_seconds_move_nothing_though_another_waits(
    tmp_path: Path,
) -> None:
    if why := network.why_not():
        pytest.skip(why)
    async with contextlib.AsyncExitStack() as stack:
        cable = stack.enter_context(network.apart())
        plane = await stack.enter_async_context(_plane(tmp_path, LONG_LEASE_SECONDS, network.HERE))
        far, near = await asyncio.gather(
            stack.enter_async_context(_started(plane, "far", plane.control.http, cable.there)),
            stack.enter_async_context(_agent(plane, "near")),
        )
        task_id = await plane.held(LONG_SECONDS, near)
        (executor,) = psutil.Process(far.pid).children()
        cable.drop()
        before = _step(await plane.task(task_id))
        await asyncio.sleep(7.5)
        cable.carry()
        task = await plane.until(task_id, lambda task: _step(task) > before, "trains")
        assert [one["state"] for one in task["attempts"]] == ["open"]
        assert await plane.events(task_id, "ClaimExpired") == []
        assert executor.is_running()
