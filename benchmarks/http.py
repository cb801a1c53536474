"""Enqueue, claim and complete over HTTP, all durable, with many tasks stored and with none.

The gateway is the process that `aghsan up` starts, beside a nats-server of its own; the clients are
this process, and speak HTTP by hand so that they take little of the machine away from the two.
"""

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from cli import child
from core import errors, platforms
from core.log import Message
from core.log_jetstream import JetStreamLog
from tests import nats_fixture

GOAL = Goal("at least", 0.8)
CLIENTS = 32
STORED_COMPLETED = Size(8_000, 400)
STORED_QUEUED = Size(2_000, 100)
TASKS = Size(4_000, 200)
WARM_UP_TASKS = Size(640, 64)
STOP_SECONDS_MAX = 10.0
PREFIX = "/api/v1/network"

NOTES = """
- A task is three requests. Each repetition has a fresh nats-server and gateway, {warm_up:,} tasks
  to warm up and {count:,} that count.
- Of the stored tasks {completed:,} are completed and {queued:,} wait in the queue.
- The clients are a process of their own and share the cores with gateway and nats-server.
"""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Client:
    """An HTTP worker on a connection that stays open."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, worker_id: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.worker_id = worker_id

    @classmethod
    async def connect(cls, url: str, worker_id: str) -> "Client":
        """Connect and register."""
        address = urllib.parse.urlsplit(url)
        client = cls(*await asyncio.open_connection(address.hostname, address.port), worker_id)
        await client.post("/workers/register", {"worker_id": worker_id, "hostname": "host"})
        return client

    async def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        """The decoded answer. Raises RuntimeError for any status but 200."""
        self._writer.write(
            f"{method} {PREFIX}{path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None, head
        answer = await self._reader.readexactly(int(length[1]))
        if head[9:12] != b"200":
            raise RuntimeError(f"{method} {path} was answered {head[9:12]!r}: {answer!r}")
        return msgspec.json.decode(answer)

    async def post(self, path: str, body: dict[str, object]) -> Any:
        """The decoded answer to a POST."""
        return await self.ask("POST", path, msgspec.json.encode(body))

    async def do_one_task(self) -> None:
        """Enqueue a task, claim the best one, complete it."""
        await self.post("/training/enqueue", {"topic": history.TOPIC, "node_id": "stats-bayesian"})
        claimed = await self.post("/training/claim", {"worker_id": self.worker_id})
        body = {
            "task_id": claimed["task"]["task_id"],
            "worker_id": self.worker_id,
            "metrics": {"loss": 0.25, "accuracy": 0.75},
        }
        completed = await self.post("/training/complete", body)
        assert completed["task"]["status"] == "completed", completed

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()


@contextlib.contextmanager
def gateway(nats_url: str, data: Path) -> Iterator[str]:
    """A control process that serves inside the block; its address. Raises Unavailable."""
    argv = [sys.executable, "-m", "cli.main", "gateway", "--child"]
    where = ["--nats", nats_url, "--data", str(data), "--port", "0"]
    words = data / "gateway.log"
    with words.open("wb") as log:
        process = platforms.spawn([*argv, *where], stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        for raw in process.stdout:
            told = child.heard(raw.decode().rstrip("\n"))
            if told is not None and told["kind"] == "ready":
                break
        else:
            raise errors.Unavailable(f"the gateway ended: {words.read_text()[-2_000:]}")
        # As `up` does: whoever does not read what it says would stop it in the end.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield str(told["http"])
    finally:
        platforms.ask_to_stop(process)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _throughput(run: Run, stored: list[Message]) -> float:
    """Tasks per second against a server that holds `stored`."""
    with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder:
        data = Path(folder) / "data"
        with nats_fixture.running(data) as nats:
            await nats.apply()
            async with nats.connect("control") as control:
                log = JetStreamLog(control)
                await history.store(log, stored)
                await log.close()
            with gateway(nats.url, data) as url:
                return await _work(run, url)


async def _work(run: Run, url: str) -> float:
    clients = [await Client.connect(url, f"bench-{number}") for number in range(CLIENTS)]
    await _share(clients, run.size(WARM_UP_TASKS))
    before = await _completed(clients[0])
    count = run.size(TASKS)
    began = time.perf_counter()
    await _share(clients, count)
    seconds = time.perf_counter() - began
    assert await _completed(clients[0]) - before == count, "each task was completed once"
    for client in clients:
        await client.close()
    return count / seconds


async def _share(clients: list[Client], count: int) -> None:
    """Have the clients do so many tasks, each as fast as it is answered."""
    left = iter(range(count))

    async def work(client: Client) -> None:
        for _ in left:
            await client.do_one_task()

    await asyncio.gather(*map(work, clients))


async def _completed(client: Client) -> int:
    answer = await client.ask("GET", "/status")
    return int(answer["network"]["tasks"]["completed"])


def measure(run: Run) -> Section:
    """Throughput with many tasks stored by that with none."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    story = history.Story()
    story.complete_over_http(run.size(STORED_COMPLETED))
    story.queue(run.size(STORED_QUEUED))
    stored = run.size(STORED_COMPLETED) + run.size(STORED_QUEUED)
    found = await harness.alternate(
        {
            "none": lambda: _throughput(run, []),
            "stored": lambda: _throughput(run, story.messages),
        },
        run.repetitions,
    )
    return Section(
        title=f"http: throughput with {stored:,} tasks stored",
        about=f"Enqueue, claim and complete over HTTP, every answer durable, {CLIENTS} clients.",
        ratios=[
            Ratio(
                what=f"{stored:,} stored / none",
                values=harness.ratios(found["stored"], found["none"]),
                goal=GOAL,
            )
        ],
        figures=[
            Figure(what="none stored", unit="tasks/s", values=found["none"]),
            Figure(what=f"{stored:,} stored", unit="tasks/s", values=found["stored"]),
        ],
        notes=NOTES.format(
            warm_up=run.size(WARM_UP_TASKS),
            count=run.size(TASKS),
            completed=run.size(STORED_COMPLETED),
            queued=run.size(STORED_QUEUED),
        ),
    )
