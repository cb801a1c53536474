"""Durable appends through the whole runtime, against the same bytes appended without it."""

import asyncio
import contextlib
import itertools
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import nats
from nats.aio.client import Client

from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import commands, runtime, topology
from core.bus import Bus
from core.log import Message
from core.log_jetstream import JetStreamLog
from tests import nats_fixture

GOAL_RATE = Goal("at least", 0.5)
GOAL_LONE = Goal("at most", 2)
BATCHES = {10: Size(400, 20), 100: Size(150, 10), 500: Size(60, 5)}
"""How many batches, by the events of one."""
LONE = Size(500, 50)
RAW = "RAW"

NOTES = """
- An event has {event_bytes} bytes and a subject of its own. Every answer waits for the disk.
- With the runtime, half of the callers are decided while the events of the others are on their way;
  without it, one batch follows another.
- What the runtime is held to is the faster way without it in each repetition. A lone message is a
  plain fenced publish; as an atomic batch of one it takes longer.
"""

Append = Callable[[list[Message], int], Awaitable[int]]


class CountingLog(JetStreamLog):
    """A log that remembers how large its batches were."""

    def __init__(self, connection: Bus) -> None:
        super().__init__(connection)
        self.batches: list[int] = []
        self.under_way = asyncio.Event()

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        """As `core.log.Log.append`."""
        self.batches.append(len(messages))
        self.under_way.set()
        return await super().append(messages, expected_last)


class Bench:
    """A runtime on EVENTS, and beside it a stream of the same kind to append to without one."""

    def __init__(self, control: Bus, client: Client) -> None:
        self.log = CountingLog(control)
        self.door = runtime.Runtime(self.log, "bench")
        self.raw = JetStreamLog(control, RAW)
        self.client = client
        self._seeds = itertools.count(2)

    def _orders(self, count: int) -> list[commands.EnqueueTask]:
        story = history.Story(next(self._seeds))
        return [story.enqueue_command() for _ in range(count)]

    def _messages(self, count: int) -> list[Message]:
        """So many tasks being queued, as the runtime writes them, for the stream beside."""
        story = history.Story(next(self._seeds))
        start = len(story.messages)
        story.queue(count)
        return [
            Message("raw." + subject.removeprefix("ev."), data)
            for subject, data in story.messages[start:]
        ]

    # ── batches ──

    async def runtime_rate(self, size: int, batches: int) -> float:
        """Events per second with twice as many callers as a batch has events: half of them are
        decided while the events of the others are on their way."""
        orders = iter(self._orders(size * batches))
        self.log.batches.clear()
        self.log.under_way.clear()

        async def call() -> None:
            for order in orders:
                await self.door.execute(order, runtime.new_meta("bench"), runtime.nothing)

        began = time.perf_counter()
        callers = [asyncio.create_task(call()) for _ in range(size)]
        await self.log.under_way.wait()
        callers += [asyncio.create_task(call()) for _ in range(size)]
        await asyncio.gather(*callers)
        seconds = time.perf_counter() - began
        assert statistics.median(self.log.batches) == size, self.log.batches
        return size * batches / seconds

    async def raw_rate(self, append: Append, size: int, batches: int) -> float:
        """Events per second, one fenced batch after another."""
        messages = self._messages(size * batches)
        last = await self.raw.last_seq()
        began = time.perf_counter()
        for start in range(0, len(messages), size):
            last = await append(messages[start : start + size], last)
        return len(messages) / (time.perf_counter() - began)

    # ── lone appends ──

    async def lone_command(self, count: int) -> float:
        """Median milliseconds of a command that is alone."""
        times = []
        for order in self._orders(count):
            began = time.perf_counter()
            await self.door.execute(order, runtime.new_meta("bench"), runtime.nothing)
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e3

    async def lone_raw(self, append: Append, count: int) -> float:
        """Median milliseconds of a message that is appended alone."""
        times = []
        messages = self._messages(count)
        last = await self.raw.last_seq()
        for message in messages:
            began = time.perf_counter()
            last = await append([message], last)
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e3


@contextlib.asynccontextmanager
async def _bench() -> AsyncIterator[Bench]:
    """Everything set up on a server of its own."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aghsan-bench-"))
        server = stack.enter_context(nats_fixture.running(Path(folder) / "data"))
        await server.apply()
        control = await stack.enter_async_context(server.connect("control"))
        events = server.authority.declared.streams["EVENTS"]
        like_it = msgspec.structs.replace(events, subjects=["raw.*.*"], max_mib=2_048)
        answer = await control.api(f"STREAM.CREATE.{RAW}", topology.stream_config(RAW, like_it))
        assert "error" not in answer, answer
        client = await nats.connect(
            server.url,
            user_credentials=str(server.creds("control")),
            inbox_prefix=b"_INBOX_control",
        )
        stack.push_async_callback(client.close)
        bench = Bench(control, client)
        stack.push_async_callback(bench.raw.close)
        stack.push_async_callback(bench.log.close)
        await bench.door.start()
        writing = asyncio.create_task(bench.door.run())
        stack.callback(writing.cancel)
        await bench.door.execute(commands.SeedTree(), runtime.new_meta("bench"), runtime.nothing)
        yield bench


# The same through nats-py


async def _publish_batch(client: Client, messages: list[Message], expected_last: int) -> int:
    """An atomic batch (ADR-50 of NATS), of which only the last message asks for an answer."""
    batch = secrets.token_hex(6)
    for number, (subject, data) in enumerate(messages[:-1], 1):
        await client.publish(subject, data, headers=_headers(batch, number, expected_last))
    commit = {"Nats-Batch-Commit": "1"}
    headers = _headers(batch, len(messages), expected_last) | commit
    return await _publish(client, messages[-1], headers)


def _headers(batch: str, number: int, expected_last: int) -> dict[str, str]:
    fence = {"Nats-Expected-Last-Sequence": str(expected_last)} if number == 1 else {}
    return {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number), **fence}


async def _publish_one(client: Client, messages: list[Message], expected_last: int) -> int:
    (message,) = messages
    return await _publish(client, message, {"Nats-Expected-Last-Sequence": str(expected_last)})


async def _publish(client: Client, message: Message, headers: dict[str, str]) -> int:
    answer = await client.request(message.subject, message.data, headers=headers, timeout=5)
    decoded = json.loads(answer.data)
    assert "error" not in decoded, decoded
    return int(decoded["seq"])


# The whole


def measure(run: Run) -> Section:
    """Rates at three sizes of a batch, and the time of a lone command."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    async with _bench() as bench:
        for size, batches in BATCHES.items():
            rates = await _rates(bench, run, size, run.size(batches))
            ours, *raws = rates.values()
            values = harness.ratios(ours, list(map(max, *raws)))
            what = f"batches of {size}: runtime / the faster without"
            ratios.append(Ratio(what=what, values=values, goal=GOAL_RATE))
            figures += [Figure(what=what, unit="events/s", values=v) for what, v in rates.items()]
        times = await _lone_times(bench, run)
        event_bytes = await _event_bytes(bench)
    ours, *raws = times.values()
    values = harness.ratios(ours, list(map(min, *raws)))
    what = "a lone command / the fastest lone append"
    ratios.append(Ratio(what=what, values=values, goal=GOAL_LONE))
    figures += [Figure(what=what, unit="ms, a median", values=v) for what, v in times.items()]
    return Section(
        title="append: durable appends through the whole runtime",
        about="Queueing tasks: decided, batched, appended, folded, answered; against the same "
        "bytes appended to a stream of the same kind on the same server.",
        ratios=ratios,
        figures=figures,
        notes=NOTES.format(event_bytes=event_bytes),
    )


async def _rates(bench: Bench, run: Run, size: int, batches: int) -> dict[str, list[float]]:
    through_nats_py = partial(_publish_batch, bench.client)
    return await harness.alternate(
        {
            f"runtime, batches of {size}": lambda: bench.runtime_rate(size, batches),
            f"JetStreamLog, batches of {size}": lambda: bench.raw_rate(
                bench.raw.append, size, batches
            ),
            f"nats-py, batches of {size}": lambda: bench.raw_rate(through_nats_py, size, batches),
        },
        run.repetitions,
    )


async def _lone_times(bench: Bench, run: Run) -> dict[str, list[float]]:
    count = run.size(LONE)
    publish, batch = partial(_publish_one, bench.client), partial(_publish_batch, bench.client)
    return await harness.alternate(
        {
            "runtime, a lone command": lambda: bench.lone_command(count),
            "JetStreamLog, a lone append": lambda: bench.lone_raw(bench.raw.append, count),
            "nats-py, a lone publish": lambda: bench.lone_raw(publish, count),
            "nats-py, an atomic batch of one": lambda: bench.lone_raw(batch, count),
        },
        run.repetitions,
    )


async def _event_bytes(bench: Bench) -> int:
    record = await bench.log.get(await bench.log.last_seq())
    assert record is not None
    return len(record.data)
