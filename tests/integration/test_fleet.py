"""Whole fleets under one control process: agents as they are, but their training never ends."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from agent.executors import jobs
from agent.executors.process import Executor, OnReport
from agent.machine import Machine
from agent.narrator import Narrator
from agent.worker import Settings, Worker
from core import events, runtime
from core.log_jetstream import JetStreamLog
from faults import harness, parts
from faults.load import Load
from orchestrator.liveness import Limits
from tests import nats_fixture
from tests.acceptance import way

SECONDS_MAX = 60.0
MACHINE = Machine(hostname="h", device="cpu", devices=1, memory_gb=16.0, cores=2, system="test")


class Endless(Executor):
    """Training that goes on until it is stopped, for whatever reason."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.stopped = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return os.getpid()

    async def start(self) -> None:
        """It needs no process."""

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        self.runs += 1
        on_report(jobs.Started(step=0, total_steps=1))
        await self.stopped.wait()
        return jobs.Stopped(directory="", step=0)

    async def stop(self, *, save: bool, at_once: bool = False) -> None:
        self.stopped.set()

    async def close(self) -> None:
        """There is nothing to end."""


class Fleet:
    """So many agents at work and one that waits, all through one relay, and what they stand on."""

    def __init__(self, nats: nats_fixture.Nats, folder: Path, count: int) -> None:
        self.nats = nats
        self.executors = [Endless() for _ in range(count + 1)]
        self.port = 0
        self._folder = folder
        self._control: contextlib.AsyncExitStack
        self._part: parts.Part
        self._load: Load

    async def start_control(self) -> None:
        """Start a control process, at the port that the first one had."""
        self._control = contextlib.AsyncExitStack()
        where = ("--nats", self.nats.url, "--data", str(self.nats.data), "--port", str(self.port))
        log = self._folder / "gateway.log"
        self._part = await self._control.enter_async_context(
            parts.running("cli.main", "gateway", *where, log=log)
        )
        api = await self._part.hear_until("ready ")
        self.port = int(api.rpartition(":")[2])
        self._load = await self._control.enter_async_context(contextlib.aclosing(Load(api)))

    async def stop_control(self, number: signal.Signals) -> None:
        """End the control process, and with it the relay."""
        self._part.send(number)
        await self._control.aclose()

    def restart_nats(self) -> None:
        """Kill nats-server and start it again."""
        os.kill(self.nats.server.pid, signal.SIGKILL)
        self.nats.server.stop()
        self.nats.server.start()

    def agent(self, number: int, api: str) -> Worker:
        """One of the agents, not yet running."""
        folder = self._folder / f"a{number}"
        folder.mkdir()
        settings = Settings(api=api, worker_id=folder.name, directory=folder)
        quiet = Narrator(lambda line: None, api)
        return Worker(settings, MACHINE, self.executors[number], quiet)

    async def all_train(self, count: int) -> None:
        """Give so many their tasks, and wait until they are at work."""
        body = {"topic": "t", "node_id": "opt-convex", "role": "evolver"}
        for _ in range(count):
            await self._load.ask("POST", "/training/enqueue", body)

        async def do_train() -> bool:
            return sum(executor.runs for executor in self.executors) == count

        await harness.until(do_train, "all train", SECONDS_MAX)

    async def all_are_back(self) -> None:
        """Wait until everybody is connected, and was heard of later than a loss is borne."""
        number = len(self.executors)
        wanted = re.compile(rf"^aghsan_relay_connections {number}(\.0)?$", re.MULTILINE)
        page = f"http://127.0.0.1:{self.port}/metrics"

        async def are_connected() -> bool:
            async with aiohttp.request("GET", page) as response:
                return wanted.search(await response.text()) is not None

        await harness.until(are_connected, "all connected", SECONDS_MAX)
        borne = events.isoformat(runtime.now() + int(Limits().reconnect * 1e6))

        async def are_heard_of() -> bool:
            workers = (await self._load.ask("GET", "/workers"))["workers"]
            return all(one["last_seen"] > borne for one in workers)

        await harness.until(are_heard_of, "all heard of", SECONDS_MAX)

    async def happened(self) -> Counter[str]:
        """The types of all events of tasks, counted."""
        found: Counter[str] = Counter()
        async with self.nats.connect("control") as bus:
            async for records in JetStreamLog(bus).read():
                for record in records:
                    if record.subject.startswith("ev.task."):
                        found[json.loads(record.data)["type"]] += 1
        return found


@contextlib.asynccontextmanager
async def _fleet(folder: Path, count: int, *, aside: bool) -> AsyncIterator[tuple[Fleet, way.Way]]:
    """A fleet at work, and the way that all of it takes, or all but the one that waits."""
    with nats_fixture.running(folder) as nats:
        fleet = Fleet(nats, folder, count)
        await fleet.start_control()
        async with way.to("127.0.0.1", fleet.port) as path:
            agents = [fleet.agent(number, path.origin) for number in range(count)]
            running = [asyncio.create_task(one.run()) for one in agents]
            try:
                await fleet.all_train(count)
                origin = f"http://127.0.0.1:{fleet.port}" if aside else path.origin
                waiting, attached = fleet.agent(count, origin), asyncio.Event()
                waiting.on_attached = attached.set
                running.append(asyncio.create_task(waiting.run()))
                await attached.wait()
                yield fleet, path
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await fleet.stop_control(signal.SIGTERM)


async def test_no_restart_of_the_relay_control_or_nats_server_moves_any_task_of_any_fleet(
    tmp_path: Path,
) -> None:
    """Of two agents none may be left for a loss to be a loss of all; beside two hundred one may."""
    await asyncio.gather(
        _restart_all(tmp_path / "two", 2, signal.SIGTERM, aside=False),
        _restart_all(tmp_path / "many", 200, signal.SIGKILL, aside=True),
    )


async def _restart_all(folder: Path, count: int, number: signal.Signals, *, aside: bool) -> None:
    async with _fleet(folder, count, aside=aside) as (fleet, path):
        path.reset()
        await asyncio.sleep(Limits().reconnect + 1.0)
        await path.mend()
        await fleet.all_are_back()
        await fleet.stop_control(number)
        await fleet.start_control()
        await fleet.all_are_back()
        fleet.restart_nats()
        await fleet.all_are_back()
        assert await fleet.happened() == {"TaskQueued": count, "TaskClaimed": count}
        assert sum(executor.runs for executor in fleet.executors) == count
        assert not any(executor.stopped.is_set() for executor in fleet.executors)
