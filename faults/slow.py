"""Many ask at once, some never read, some never finish speaking: it costs them time, not others."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import socket
import time
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import psutil

from core import runtime
from core.accounts import Credentials
from core.bus import Bus
from core.bus import Credentials as Signing
from faults import harness, load, parts
from faults.harness import Run, Told, Verdict
from gateway import http
from tests.acceptance.stack import PREFIX

NAME = "slow"
LEASE_SECONDS = 60.0
ANSWER_SECONDS_MAX = 60.0
CUT_SECONDS_MAX = 60.0
MIB = 1024 * 1024

SLACK_BYTES = 48 * MIB
"""What Python and its allocator keep beside: caches that fill, arenas that are not given back."""
TASK_BYTES = 4_096
"""Of a queued task with a short topic and its key: a row, in the state and in its indexes."""
CONNECTION_BYTES = 512 * 1024
"""Of a connection: what one read may bring (256 KiB), and 64 KiB on each way in and out."""
TOPIC_CHARS = 60_000
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""Has glibc give large blocks back once they are free, so that what is measured is what is held."""

UPGRADE = (
    b"GET /nats HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
NODE = "math-physics"
PAGE = f"{PREFIX}/tasks?limit=1000&node_id={NODE}"
TRICKLE = (
    b"POST %s/training/enqueue HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
) % (PREFIX.encode(), http.BODY_BYTES_MAX)


class Sizes:
    """How many of each, and for how long."""

    def __init__(self, run: Run) -> None:
        self.flooders = run.tries(60, 300, 600)
        self.flood_seconds = run.tries(1, 30, 600)
        self.stuck = run.tries(12, 48, 200)
        self.senseless = run.tries(6, 30, 100)
        self.deaf = run.tries(1, 3, 10)
        self.tasks = run.tries(60, 500, 1_000)
        self.readers = run.tries(24, 200, 1_000)
        self.tricklers = run.tries(48, 600, 2_000)
        self.waits_for_cuts = not run.quick

    @property
    def hostile(self) -> int:
        """All of them."""
        return sum(
            (self.flooders, self.stuck, self.senseless, self.deaf, self.readers, self.tricklers)
        )


class Watch:
    """The control process while others are slow: its memory, and what honest clients are told."""

    def __init__(self, control: parts.Control, verdict: Verdict) -> None:
        self._control = control
        self._verdict = verdict
        self._process = psutil.Process(control.gateway.pid)
        self._peak = 0
        self.answered = 0
        self._slowest_seconds = 0.0

    async def run(self) -> None:
        """Ask as an honest client does, for ever."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await self._ask(session)
                self._peak = max(self._peak, self._process.memory_info().rss)
                await asyncio.sleep(0.02)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        try:
            async with session.get(f"{self._control.http}{PREFIX}/status") as response:
                words = await response.text()
                if response.status != 200:
                    self._note(f"an honest client was told {response.status} {words[:200]}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._note(f"an honest client was not answered: {type(error).__name__} {error}")
        self.answered += 1
        self._slowest_seconds = max(self._slowest_seconds, time.monotonic() - began)

    def _note(self, words: str) -> None:
        if len(self._verdict.wrong) < 20:
            self._verdict.wrong.append(words)

    @contextlib.asynccontextmanager
    async def bounded(self, what: str) -> AsyncIterator["Bound"]:
        """Hold the growth of its memory inside the block against what the block allows it."""
        bound = Bound()
        before = self._peak = self._process.memory_info().rss
        asked, self._slowest_seconds = self.answered, 0.0
        yield bound
        self._peak = max(self._peak, self._process.memory_info().rss)
        grown = self._peak - before
        figures = f"{grown / MIB:.0f} of {bound.bytes / MIB:.0f} MiB"
        told = await self.figures()
        late, computing = (
            f"{told[f'aghsan_loop_{name}_max_seconds'] * 1_000:.0f} ms"
            for name in ("delay", "turn_cpu")
        )
        self._verdict.notes.append(
            f"{what}: memory grew by {figures}; an honest answer took at most "
            f"{self._slowest_seconds:.2f} s, the loop was late by {late} and computed {computing} "
            "in one turn (of the last minute)"
        )
        if grown > bound.bytes:
            self._note(f"{what}: memory grew by {figures} allowed")
        if self.answered == asked:
            self._note(f"{what}: no honest client was answered meanwhile")

    async def figures(self) -> dict[str, float]:
        """What /metrics says now, without labels."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{self._control.http}/metrics") as response,
        ):
            text = await response.text()
        found = re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}


class Bound:
    """How much the memory may grow: what the product's own limits allow, and some slack."""

    def __init__(self) -> None:
        self.bytes = SLACK_BYTES


class Flood:
    """People who enqueue as fast as they can, and never wait when told to."""

    def __init__(self, origin: str, verdict: Verdict) -> None:
        self._url = f"{origin}{PREFIX}/training/enqueue"
        self._verdict = verdict
        self.told: list[Told] = []
        self.turned_away = 0

    async def run(self, clients: int, seconds: float) -> None:
        """So many clients, for so long."""
        until = time.monotonic() + seconds
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._one(session, name, until) for name in range(clients)))

    async def _one(self, session: aiohttp.ClientSession, name: int, until: float) -> None:
        for number in itertools.count():
            if time.monotonic() > until:
                return
            key = f"flood/{name}/{number}"
            headers = {"Idempotency-Key": key}
            try:
                async with session.post(self._url, json={"topic": key}, headers=headers) as answer:
                    said = await answer.json()
                    self._take(key, answer.status, said)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._verdict.wrong.append(f"{key} had no answer: {type(error).__name__} {error}")
                return

    def _take(self, key: str, status: int, said: dict[str, Any]) -> None:
        if status == 200:
            self.told.append(Told(key, said["task"]["task_id"], said["task"]["topic"]))
        elif status in (429, 503, 507) and said.get("detail"):
            self.turned_away += 1
        else:
            self._verdict.wrong.append(f"{key} was answered {status} {said}")


class Line:
    """A raw connection, with buffers of the system as small as they may be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str) -> "Line":
        address = urllib.parse.urlsplit(url)
        taker = socket.socket()
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        taker.setblocking(False)
        where = (address.hostname, address.port)
        await asyncio.get_running_loop().sock_connect(taker, where)
        return cls(*await asyncio.open_connection(sock=taker, limit=64 * 1024))

    async def upgraded(self) -> "Line":
        """Made a WebSocket of the relay's, its greeting on the way."""
        self.writer.write(UPGRADE)
        await self.reader.readuntil(b"\r\n\r\n")
        return self

    def send(self, data: bytes, opcode: int = 0x82) -> None:
        """One WebSocket message; a mask of zeros changes nothing."""
        size = (
            bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        )
        self.writer.write(bytes([opcode]) + size + bytes(4) + data)

    async def subscribe(self, worker: str, credentials: Credentials, *, framed: bool) -> None:
        """Log in as an agent, listen to its inbox, and take nothing more."""
        assert credentials.seed is not None
        await self.reader.readuntil(b"INFO ")
        info = json.loads(await self.reader.readline())
        signed = Signing(credentials.jwt, credentials.seed).sign(info["nonce"])
        options = {"jwt": credentials.jwt, "sig": signed, "name": worker}
        words = b"CONNECT %s\r\nSUB _INBOX_%s.> 1\r\nPING\r\n" % (
            json.dumps(options).encode(),
            worker.encode(),
        )
        if framed:
            self.send(words)
        else:
            self.writer.write(words)
        await self.reader.readuntil(b"PONG\r\n")
        self.take_nothing()

    def take_nothing(self) -> None:
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def until_cut(self) -> None:
        """Return when the other end closed it. Raises TimeoutError."""
        async with asyncio.timeout(CUT_SECONDS_MAX):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(64 * 1024):
                    pass

    def close(self) -> None:
        self.writer.transport.abort()


class Slow:
    """Those who are slow, each kind in turn, on one control process."""

    def __init__(
        self, control: parts.Control, watch: Watch, people: load.Load, verdict: Verdict
    ) -> None:
        self._control = control
        self._watch = watch
        self._people = people
        self._verdict = verdict

    async def flood(self, clients: int, seconds: float) -> list[Told]:
        """Enqueue as fast as it goes. What is stored is in memory too; what waits is bounded."""
        flood = Flood(self._control.http, self._verdict)
        async with self._watch.bounded("flood") as bound:
            await flood.run(clients, seconds)
            bound.bytes += len(flood.told) * TASK_BYTES
            bound.bytes += runtime.PENDING_BYTES_MAX + clients * CONNECTION_BYTES
        queued = len(flood.told)
        self._verdict.notes.append(f"flood: {queued} queued, {flood.turned_away} turned away")
        return flood.told

    async def stuck(self, count: int, *, wait: bool) -> None:
        """Agents behind the relay that are sent megabytes, and take nothing."""
        nats = self._control.nats
        async with self._watch.bounded("stuck WebSockets") as bound, _closing() as lines:
            bound.bytes += count * CONNECTION_BYTES
            for number in range(count):
                line = await (await Line.open(self._control.http)).upgraded()
                lines.append(line)
                worker = f"stuck{number}"
                credentials = nats.authority.agent(worker, ["cpu-1"], None)
                await line.subscribe(worker, credentials, framed=True)
            async with nats.connect("notifier") as bus:
                await self._push(bus, [f"stuck{number}" for number in range(count)], 8)
            if wait:
                await self._until_relay_is_left()

    async def _push(self, bus: Bus, workers: list[str], mib: int) -> None:
        for _ in range(mib):
            for worker in workers:
                await bus.publish(f"_INBOX_{worker}.notice", bytes(MIB))
        await bus.flush(ANSWER_SECONDS_MAX)

    async def _until_relay_is_left(self) -> None:
        async def is_left() -> bool:
            return (await self._watch.figures())["aghsan_relay_connections"] == 0

        await harness.until(is_left, "the stuck ones are cut off", CUT_SECONDS_MAX)

    async def senseless(self, count: int, choices: random.Random) -> None:
        """WebSockets that say nothing, or garbage for ever: each is cut off."""
        async with self._watch.bounded("senseless WebSockets") as bound, _closing() as lines:
            bound.bytes += count * CONNECTION_BYTES
            for number in range(count):
                line = await (await Line.open(self._control.http)).upgraded()
                lines.append(line)
                match number % 3:
                    case 1:
                        line.send(choices.randbytes(10_000))
                    case 2:
                        line.writer.write(choices.randbytes(10_000))
            await asyncio.gather(*(line.until_cut() for line in lines))

    async def deaf(self, count: int) -> None:
        """Agents at nats-server itself that take nothing: it cuts them off beyond its bound."""
        nats = self._control.nats
        async with self._watch.bounded("deaf agents"), _closing() as lines:
            for number in range(count):
                line = await Line.open(nats.url)
                lines.append(line)
                credentials = nats.authority.agent(f"deaf{number}", ["cpu-1"], None)
                await line.subscribe(f"deaf{number}", credentials, framed=False)
            async with nats.connect("notifier") as bus, nats.agent("other", "cpu-1") as other:
                await self._push(bus, [f"deaf{number}" for number in range(count)], 80)
                await other.request("fleet.other.nonsense", b"{}", ANSWER_SECONDS_MAX)
            for line in lines:
                line.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await asyncio.gather(*(line.until_cut() for line in lines))

    async def readers(self, tasks: int, count: int) -> list[Told]:
        """Clients that ask for many tasks with long topics, and take no answer."""
        told: list[Told] = []
        async with self._watch.bounded("long topics") as bound:
            bound.bytes += 3 * tasks * TOPIC_CHARS + runtime.PENDING_BYTES_MAX
            for number in range(tasks):
                key = f"long/{number}"
                body = {"topic": key.ljust(TOPIC_CHARS, "x"), "node_id": NODE}
                task = (await self._people.ask("POST", "/training/enqueue", body, key))["task"]
                told.append(Told(key, task["task_id"], task["topic"]))
        async with self._watch.bounded("answers nobody takes") as bound, _closing() as lines:
            # Each as it was made, and what of it the system did not take.
            bound.bytes += 2 * http.ANSWERS_BYTES_MAX + count * CONNECTION_BYTES // 8
            for _ in range(count):
                lines.append(await Line.open(self._control.http))
                lines[-1].writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % PAGE.encode())
                lines[-1].take_nothing()
            # Pages are made in turn: once an honest client has one, so had all the others.
            await self._people.ask("GET", PAGE.removeprefix(PREFIX))
        return told

    async def tricklers(self, count: int) -> None:
        """Bodies of which the last byte does not come."""
        async with self._watch.bounded("bodies that trickle") as bound, _closing() as lines:
            bound.bytes += 2 * http.BODIES_BYTES_MAX + count * CONNECTION_BYTES // 2
            for _ in range(count):
                line = await Line.open(self._control.http)
                lines.append(line)
                line.writer.write(TRICKLE + bytes(http.BODY_BYTES_MAX - 1))
                with contextlib.suppress(ConnectionError):
                    await line.writer.drain()
            await self._settled()

    async def _settled(self) -> None:
        """Some honest requests later."""
        asked = self._watch.answered

        async def is_later() -> bool:
            return self._watch.answered > asked + 20

        await harness.until(is_later, "honest requests are answered", ANSWER_SECONDS_MAX)


@contextlib.asynccontextmanager
async def _closing() -> AsyncIterator[list[Line]]:
    lines: list[Line] = []
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


async def attack(run: Run) -> Verdict:
    """Each kind of slow or greedy client in turn, beside honest ones."""
    sizes = Sizes(run)
    verdict = Verdict(NAME, sizes.hostile)
    with harness.folder_of(verdict) as folder:
        await _attack(verdict, folder, run.random(NAME), sizes)
    return verdict


async def _attack(verdict: Verdict, folder: Path, choices: random.Random, sizes: Sizes) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, RETURNING))
        control = await stack.enter_async_context(parts.control(folder, LEASE_SECONDS))
        people = await stack.enter_async_context(contextlib.aclosing(load.Load(control.http)))
        watch = Watch(control, verdict)
        slow = Slow(control, watch, people, verdict)
        honest = [
            asyncio.create_task(watch.run()),
            asyncio.create_task(people.work("old", 0.05, choices)),
        ]
        try:
            told = await slow.flood(sizes.flooders, sizes.flood_seconds)
            await slow.stuck(sizes.stuck, wait=sizes.waits_for_cuts)
            await slow.senseless(sizes.senseless, choices)
            await slow.deaf(sizes.deaf)
            told += await slow.readers(sizes.tasks, sizes.readers)
            await slow.tricklers(sizes.tricklers)
        finally:
            for one in honest:
                one.cancel()
            ends = await asyncio.gather(*honest, return_exceptions=True)
        verdict.wrong += [
            f"an honest client could not go on: {end!r}"
            for end in ends
            if not isinstance(end, asyncio.CancelledError)
        ]
        verdict.wrong += people.wrong
    await harness.check_directory(verdict, told, folder / "data", people.delivered, people.refused)
