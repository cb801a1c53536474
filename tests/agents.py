"""An agent as it is, over a made-up link and training, and what it leaves on its disk."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import folders, holdings
from agent.executors import jobs
from agent.executors.process import Executor, OnReport
from agent.holdings import Holding
from agent.link import Link, Pulled
from agent.machine import Machine
from agent.narrator import Narrator
from agent.worker import Settings, Worker
from core import chunks, errors, events, wire
from core.chunks import File, Manifest

MACHINE = Machine(hostname="h", device="cpu", devices=1, memory_gb=16.0, cores=2, system="test")
AWAY = errors.SteppedDown("another control process writes this log now")


class Server:
    """What an agent's link reaches: it offers one task, attempt after attempt."""

    token, lane, session, is_connected = "w", "cpu-16", "s", True

    def __init__(self, *attempts: int) -> None:
        self.away = False
        self.asked = asyncio.Semaphore(0)
        """Once for each try to join."""
        self.waits = asyncio.Event()
        """The agent asks for work, and there is none left."""
        self.may_complete = asyncio.Event()
        self.completion: Exception | None = None
        self.unanswered_claims = 0
        self.is_cut_at_hello = False
        self.base: events.Base | None = None
        self.asks: dict[str, Any] = {}
        """Of the task, what is not as usual."""
        self.completions: list[wire.CompleteRequest] = []
        self.released: list[str] = []
        """Why tasks were given back."""
        self.unfit: list[str] = []
        """Why those were that the agent is no match for."""
        self.is_delivered = asyncio.Event()
        self.is_released, self.is_unfit = asyncio.Event(), asyncio.Event()
        self.pause = ""
        self.failed: list[str] = []
        self.on_claim: Callable[[], None] = lambda: None
        self.on_download: Callable[[], None] = lambda: None
        self.on_reattach: Callable[[], None] = lambda: None
        self.on_notice: Callable[[wire.Notice], None]
        self.on_reconnect: Callable[[], None]
        self.offers: asyncio.Queue[int] = asyncio.Queue()
        for attempt in attempts:
            self.offers.put_nowait(attempt)

    async def join(self, *_: object, **told: Any) -> "Server":
        self.asked.release()
        if self.away:
            raise AWAY
        self.on_notice, self.on_reconnect = told["on_notice"], told["on_reconnect"]
        return self

    async def hello(
        self, _machine: Machine, holding: list[events.Token], *_number: object
    ) -> wire.Welcome:
        if self.is_cut_at_hello:
            self.on_reconnect()
            await asyncio.sleep(0.01)  # what that begins is begun
        return wire.Welcome(
            session="s",
            lane="cpu-16",
            heartbeat_seconds=60.0,
            lease_seconds=60.0,
            holding=holding,
            pause=self.pause,
        )

    async def pull(self) -> Pulled:
        if self.offers.empty():
            self.waits.set()
        return Pulled("t", await self.offers.get(), "ack")

    async def claim(self, _claim_id: str, offer: int) -> wire.Assignment:
        if self.unanswered_claims:
            self.unanswered_claims -= 1
            raise AWAY
        self.on_claim()
        return msgspec.structs.replace(_assignment(offer, self.base), **self.asks)

    async def download(self, _manifest: str, folder: Path, _require: object) -> Manifest:
        self.on_download()
        return brought(folder, {"config.json": b"{}", "model.safetensors": bytes(1024 * 1024)})

    async def reattach(self, _: events.Token) -> None:
        self.on_reattach()
        raise AWAY

    async def complete(self, request: wire.CompleteRequest) -> None:
        self.completions.append(request)
        await self.may_complete.wait()
        if self.completion is not None:
            raise self.completion
        self.is_delivered.set()

    async def release(self, _: events.Token, reason: str, *, unfit: bool = False) -> None:
        if self.away:
            raise AWAY
        self.released.append(reason)
        self.is_released.set()
        if unfit:
            self.unfit.append(reason)
            self.is_unfit.set()

    async def fail(self, _: events.Token, reason: str, *_more: object) -> None:
        self.failed.append(reason)

    async def upload(
        self, _token: events.Token, manifest: Manifest, _pieces: Mapping[str, bytes]
    ) -> Manifest:
        return manifest

    async def taken(self, *_: object) -> None:
        """Whatever else it is told."""

    acknowledge = in_progress = beat = tell = bye = close = taken


class Trainer(Executor):
    """Has the result of the first job at once where told to; any other training has no end."""

    def __init__(self, *, first_is_done: bool = False, may_stop: bool = True) -> None:
        super().__init__()
        self.jobs: list[jobs.Job] = []
        self.results: list[jobs.Result] = []
        """Given at once, one for each job, before anything else."""
        self.trains = asyncio.Event()
        self.errors: list[Exception] = []
        """What training raises, once each, before that."""
        self.is_hurried = False
        self._is_done = first_is_done
        self._may_stop = may_stop
        self._stopped = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return 1

    async def start(self) -> None:
        """It needs no process."""

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        self.jobs.append(job)
        if self.errors:
            raise self.errors.pop(0)
        if self.results:
            return made_in(Path(job.directory), self.results.pop(0))
        if self._is_done:
            self._is_done = False
            return made_in(Path(job.directory), result())
        self.trains.set()
        await self._stopped.wait()
        self._stopped.clear()
        return jobs.Stopped(directory="", step=0)

    async def stop(self, *, save: bool, at_once: bool = False) -> None:
        self.is_hurried = at_once
        if self._may_stop:
            self._stopped.set()

    async def close(self) -> None:
        """There is nothing to end."""


def brought(folder: Path, files: Mapping[str, bytes]) -> Manifest:
    """Files in a folder as a download leaves them, and what names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    named = [
        File(name=name, bytes=len(data), sha256=chunks.digest_of(data), chunks=[])
        for name, data in files.items()
    ]
    return Manifest(kind="candidate", writer="w", files=named)


def result(**more: Any) -> jobs.Result:
    """What training came to."""
    values: dict[str, Any] = {
        "node_id": "n",
        "role": "evolver",
        "steps": 1,
        "total_steps": 1,
        "loss": 0.1,
        "baseline_loss": 0.5,
        "evidence_rate": 0.0,
        "params": 1,
        "bytes": 7,
        "weights_sha256": "0" * 64,
        "candidate_directory": "candidate",
        **more,
    }
    return jobs.Result(**values)


def made_in(directory: Path, one: jobs.Result) -> jobs.Result:
    """The result with its candidates in a folder."""
    candidate = directory / one.candidate_directory
    candidate.mkdir(parents=True)
    (candidate / "model").write_bytes(one.candidate_directory.encode())
    others = [made_in(directory, other) for other in one.others]
    return msgspec.structs.replace(one, candidate_directory=str(candidate), others=others)


def _assignment(attempt: int, base: events.Base | None = None) -> wire.Assignment:
    return wire.Assignment(
        token=events.Token(task_id="t", attempt=attempt, claim_id=f"c{attempt}"),
        node_id="n",
        topic="",
        role="evolver",
        method="auto",
        seed=0,
        workload=events.Workload(specialist="addition"),
        workload_inherited=False,
        lease_seconds=60.0,
        base=base,
    )


class Place:
    """Where an agent runs, and what it leaves there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self._folder = folder
        self._monkeypatch = monkeypatch

    @property
    def tasks(self) -> Path:
        return self._folder / "tasks"

    def agent(self, server: Server, trainer: Trainer, poll_seconds: float = 2.0) -> Worker:
        self._monkeypatch.setattr(Link, "join", server.join)
        settings = Settings(
            api="http://nowhere",
            worker_id="w",
            directory=self._folder,
            poll_seconds=poll_seconds,
        )
        return Worker(settings, MACHINE, trainer, Narrator(self.said.append, settings.api))

    def hold(self) -> None:
        """Leave what an earlier run held."""
        folders.own(self.tasks)
        earlier = Holding(_assignment(1), Pulled("t", 1, "ack"))
        holdings.keep(holdings.folder_of(self.tasks, "t"), earlier)

    def kept(self) -> list[int]:
        """The attempts that the next start would ask for."""
        return [one.token.attempt for one in holdings.restore(self.tasks)]


async def before_its_end(running: asyncio.Task[None], happens: Coroutine[Any, Any, Any]) -> None:
    """Wait for something that an agent does, but not for one that has ended."""
    happening = asyncio.ensure_future(happens)
    await asyncio.wait({running, happening}, return_when=asyncio.FIRST_COMPLETED)
    if not happening.done():
        running.result()
        raise AssertionError("the agent ended")
