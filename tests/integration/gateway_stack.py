"""The gateway as it runs, in one process with its test: a real nats-server, the door, HTTP."""

import asyncio
import contextlib
import json
import re
import urllib.parse
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from core import runtime
from core.commands import AnyCommand
from core.log import Message
from gateway import app
from gateway.control import Control, open_control
from gateway.http import PREFIX
from gateway.refusals import Refusals
from orchestrator.liveness import Limits, Liveness
from tests import nats_fixture

SECOND = 1_000_000
HTTP_LEASE_SECONDS = 1_800.0
LOOK_SECONDS = 4
WORKER_TIMEOUT_SECONDS = 90.0
SECONDS_MAX = 15.0

TASK, NODE, TIME = "«task»", "«node»", "«time»"
_SHAPES = {
    TASK: "task-[0-9a-f]{12}",
    NODE: "node-[0-9a-f]{10}",
    TIME: r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z?",
}
JSON_HEADER = {"Content-Type": "application/json"}


class Reply:
    """An answer: its status, its headers in lower case, its bytes."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def task(self) -> Any:
        return self.json["task"]

    def require(self, status: int, text: str) -> None:
        """Assert status and every byte of a JSON body, where TASK, NODE and TIME stand for any."""
        pattern = re.escape(text)
        for name, shape in _SHAPES.items():
            pattern = pattern.replace(re.escape(name), shape)
        said = self.body.decode()
        assert (self.status, said) == (status, said if re.fullmatch(pattern, said) else text)
        assert self.headers["content-type"] == "application/json"
        assert self.headers["content-length"] == str(len(self.body))


class Stack:
    """A gateway that serves, and ways to ask it and to let time pass."""

    def __init__(
        self, nats: nats_fixture.Nats, parts: Control, origin: str, session: aiohttp.ClientSession
    ) -> None:
        self.nats = nats
        self.parts = parts
        self.origin = origin
        self._session = session
        limits = Limits(worker_timeout=WORKER_TIMEOUT_SECONDS)
        self._liveness = Liveness(parts.door, parts.presence, limits, lambda task: False)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
    ) -> Reply:
        """Send exactly this to a path below the server's root."""
        async with self._session.request(
            method,
            self.origin + path,
            data=body,
            headers=headers,
            skip_auto_headers=("Content-Type",),
            allow_redirects=False,
        ) as response:
            named = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, named, await response.read())

    async def get(self, path: str) -> Reply:
        """GET below the prefix of the network."""
        return await self.ask("GET", PREFIX + path)

    async def post(self, path: str, value: object = None, **headers: str) -> Reply:
        """POST a value as JSON (bytes as they are) below the prefix of the network."""
        raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return await self.ask("POST", PREFIX + path, raw, {**JSON_HEADER, **named})

    # ── what old agents and people do ──

    async def register(self, worker_id: str, capabilities: object = None) -> None:
        asked = {"worker_id": worker_id, "hostname": "h", "capabilities": capabilities or {}}
        assert (await self.post("/workers/register", asked)).status == 200

    async def beat(self, worker_id: str) -> None:
        assert (await self.post("/workers/heartbeat", {"worker_id": worker_id})).status == 200

    async def enqueue(self, topic: str = "t", **more: object) -> str:
        """Queue a task; its id."""
        reply = await self.post("/training/enqueue", {"topic": topic, **more})
        assert reply.status == 200, reply.body
        return str(reply.task["task_id"])

    async def claim(self, worker_id: str) -> str | None:
        """Claim; the task's id."""
        reply = await self.post("/training/claim", {"worker_id": worker_id})
        assert reply.status == 200, reply.body
        return None if reply.task is None else str(reply.task["task_id"])

    async def complete(self, task_id: str, worker_id: str, **more: object) -> Reply:
        asked = {"task_id": task_id, "worker_id": worker_id, **more}
        return await self.post("/training/complete", asked)

    async def held(self, worker_id: str = "w") -> str:
        """A task that a registered worker holds; its id."""
        await self.register(worker_id)
        task_id = await self.enqueue()
        assert await self.claim(worker_id) == task_id
        return task_id

    async def task(self, task_id: str) -> Any:
        """A task whole."""
        return (await self.get(f"/tasks/{task_id}")).task

    async def counts(self) -> Any:
        """Tasks by status."""
        return (await self.get("/status")).json["network"]["tasks"]

    # ── what other parts of the control plane do ──

    async def do(self, command: AnyCommand) -> None:
        """Have a command carried out."""
        await self.parts.door.execute(command, runtime.new_meta("test"), runtime.nothing)

    @contextlib.asynccontextmanager
    async def unanswered(self) -> AsyncIterator[None]:
        """What is appended inside the block is taken, and answered, only at its end."""
        log, over, answered = self.parts.log, asyncio.Event(), asyncio.Event()
        append = log.append

        async def late(messages: Sequence[Message], expected_last: int) -> int:
            await over.wait()
            try:
                return await append(messages, expected_last)
            finally:
                answered.set()

        log.append = late  # type: ignore[method-assign]
        yield
        log.append = append  # type: ignore[method-assign]
        over.set()
        await answered.wait()

    async def after(self, seconds: float) -> None:
        """Have liveness look around as if so much time had passed in silence."""
        await self.at(runtime.now() + int(seconds * SECOND))

    async def at(self, moment: int) -> None:
        """Have liveness look around until this moment, in microseconds, as if time passed so fast.
        In one leap it would take it for a clock that was set."""
        for now in range(runtime.now(), moment, LOOK_SECONDS * SECOND):
            await self._liveness.tick(now)
        await self._liveness.tick(moment)


@contextlib.asynccontextmanager
async def serving(nats: nats_fixture.Nats, artifacts: str = "") -> AsyncIterator[Stack]:
    """The control plane on a server that runs, without scheduler, desk and feeder."""
    async with contextlib.AsyncExitStack() as stack:
        parts = await stack.enter_async_context(
            open_control(nats.url, nats.data, _no_notice, artifacts=artifacts)
        )
        refusals = Refusals(parts.connections.control)
        await stack.enter_async_context(_beside(parts.door.run(), refusals.run()))
        await app.plant(parts.door)
        origin = await stack.enter_async_context(
            app.serve(
                parts,
                refusals,
                HTTP_LEASE_SECONDS,
                "127.0.0.1",
                0,
                nats.url,
                waiting_pulls=lambda: {"cpu-16": 0},
            )
        )
        timeout = aiohttp.ClientTimeout(total=SECONDS_MAX)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        yield Stack(nats, parts, origin, session)


@contextlib.asynccontextmanager
async def started(data: Path, artifacts: str = "") -> AsyncIterator[Stack]:
    """A nats-server and a control plane of one's own."""
    with nats_fixture.running(data) as nats:
        async with serving(nats, artifacts) as stack:
            yield stack


def _no_notice() -> None:
    """Nobody is suspected here because a server was away."""


@contextlib.asynccontextmanager
async def _beside(*loops: Coroutine[object, object, None]) -> AsyncIterator[None]:
    running = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def quoted(identity: str) -> str:
    """An id as a segment of a path."""
    return urllib.parse.quote(identity, safe="")
