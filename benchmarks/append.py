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
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nats
from nats.aio.client import Client

from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import commands, runtime, topology
from core.log import Message
from core.log_jetstream import JetStreamLog
from tests import nats_fixture

GOAL_RATE = Goal("at least", 0.5)
GOAL_LONE = Goal("at most", 2)
BATCHES = {10: Size(400, 20), 100: Size(150, 10), 500: Size(60, 5)}
"""By the events of a batch, how many of them."""
LONE = Size(500, 50)
RAW = "RAW"


class CountingLog(JetStreamLog):
    """A log that remembers how large its batches were."""

    def __init__(self, bench: "Bench") -> None:
        super().__init__(bench.control)
        self.batches: list[int] = []

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        self.batches.append(len(messages))
        return await super().append(messages, expected_last)


@dataclass
class Bench:
    """A runtime on EVENTS, and a stream like it to append to without one."""

    control: "nats_fixture.Bus"
    raw: JetStreamLog
    client: Client
    seeds: "itertools.count[int]"

    def messages(self, count: int) -> list[Message]:
        """As many tasks being queued, as the runtime would write them, for the stream beside."""
        story = history.Story(next(self.seeds))
        start = len(story.messages)
        story.queue(count)
        return [
            Message("raw." + subject.removeprefix("ev."), data)
            for subject, data in story.messages[start:]
        ]


@contextlib.asynccontextmanager
async def _bench() -> AsyncIterator[tuple[Bench, runtime.Runtime, CountingLog]]:
    with (
        tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder,
        nats_fixture.running(Path(folder) / "data") as server,
    ):
        await server.apply()
        async with server.connect("control") as control:
            stream = msgspec.structs.replace(
                topology.load().streams["EVENTS"], subjects=["raw.*.*"], max_mib=4_096
            )
            answer = await control.api("STREAM.CREATE." + RAW, topology.stream_config(RAW, stream))
            assert "error" not in answer, answer
            client = await nats.connect(
                server.url,
                user_credentials=str(server.creds("control")),
                inbox_prefix=b"_INBOX_control",
            )
            raw = JetStreamLog(control, RAW)
            bench = Bench(control, raw, client, itertools.count(2))
            log = CountingLog(bench)
            door = runtime.Runtime(log, "bench")
            await door.start()
            writer = asyncio.create_task(door.run())
            await door.execute(
                commands.SeedTree(), runtime.new_meta("bench"), runtime.nothing
            )
            try:
                yield bench, door, log
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                await client.close()
                await raw.close()
                await log.close()


# Batches


async def _through_runtime(
    bench: Bench, door: runtime.Runtime, log: CountingLog, size: int, batches: int
) -> float:
    """Events per second of twice as many callers as a batch has events: half of them are being
    appended while the others are decided."""
    story = history.Story(next(bench.seeds))
    orders = iter([story.enqueue_command() for _ in range(size * batches)])
    log.batches.clear()

    async def call() -> None:
        for command in orders:
            await door.execute(command, runtime.new_meta("bench"), runtime.nothing)

    began = time.perf_counter()
    callers = [asyncio.create_task(call()) for _ in range(size)]
    while not log.batches:
        await asyncio.sleep(0)
    callers += [asyncio.create_task(call()) for _ in range(size)]
    await asyncio.gather(*callers)
    seconds = time.perf_counter() - began
    assert sum(log.batches) == size * batches
    assert statistics.median(log.batches) == size, log.batches
    return size * batches / seconds


async def _through_log(bench: Bench, size: int, batches: int) -> float:
    """Events per second of JetStreamLog alone, one fenced batch after another."""
    return await _timed(bench, size, batches, bench.raw.append)


async def _through_nats_py(bench: Bench, size: int, batches: int) -> float:
    """Events per second of nats-py, one fenced batch after another."""
    return await _timed(bench, size, batches, lambda *batch: _publish_batch(bench.client, *batch))


async def _timed(
    bench: Bench, size: int, batches: int, append: Callable[[list[Message], int], Awaitable[int]]
) -> float:
    messages = bench.messages(size * batches)
    last = await bench.raw.last_seq()
    began = time.perf_counter()
    for start in range(0, len(messages), size):
        last = await append(messages[start : start + size], last)
    return len(messages) / (time.perf_counter() - began)


async def _publish_batch(client: Client, messages: list[Message], expected_last: int) -> int:
    """An atomic batch as ADR-50 of NATS has it; only its last message asks for an answer."""
    batch = secrets.token_hex(6)
    for number, (subject, data) in enumerate(messages, 1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        if number == 1:
            headers["Nats-Expected-Last-Sequence"] = str(expected_last)
        if number == len(messages):
            headers["Nats-Batch-Commit"] = "1"
            return _seq((await client.request(subject, data, headers=headers, timeout=5)).data)
        await client.publish(subject, data, headers=headers)
    raise AssertionError("a batch has messages")


async def _publish_one(client: Client, messages: list[Message], expected_last: int) -> int:
    (message,) = messages
    headers = {"Nats-Expected-Last-Sequence": str(expected_last)}
    answer = await client.request(message.subject, message.data, headers=headers, timeout=5)
    return _seq(answer.data)


def _seq(answer: bytes) -> int:
    decoded = json.loads(answer)
    assert "error" not in decoded, decoded
    return int(decoded["seq"])


# Lone appends


async def _lone_command(bench: Bench, door: runtime.Runtime, count: int) -> float:
    """Median milliseconds of a command that is alone."""
    story = history.Story(next(bench.seeds))
    times = []
    for _ in range(count):
        command = story.enqueue_command()
        began = time.perf_counter()
        await door.execute(command, runtime.new_meta("bench"), runtime.nothing)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


async def lone_append(
    append: Callable[[list[Message], int], Awaitable[int]], messages: list[Message], last: int
) -> list[float]:
    """Milliseconds of each message appended alone, one after another."""
    times = []
    for message in messages:
        began = time.perf_counter()
        last = await append([message], last)
        times.append((time.perf_counter() - began) * 1e3)
    return times


async def _lone(
    bench: Bench, count: int, append: Callable[[list[Message], int], Awaitable[int]]
) -> float:
    messages = bench.messages(count)
    return statistics.median(await lone_append(append, messages, await bench.raw.last_seq()))


# The whole


def measure(run: Run) -> Section:
    """Rates at three sizes of a batch, and the time of a lone command."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    async with _bench() as (bench, door, log):
        for size, batches in BATCHES.items():
            count = run.size(batches)
            found = await harness.alternate(
                {
                    f"runtime, batches of {size}": lambda size=size, count=count: _through_runtime(
                        bench, door, log, size, count
                    ),
                    f"JetStreamLog, batches of {size}": lambda size=size, count=count: _through_log(
                        bench, size, count
                    ),
                    f"nats-py, batches of {size}": lambda size=size, count=count: _through_nats_py(
                        bench, size, count
                    ),
                },
                run.repetitions,
            )
            ours, *raws = found.values()
            ratios.append(
                Ratio(
                    what=f"batches of {size}: runtime / the faster without",
                    values=harness.ratios(ours, list(map(max, *raws))),
                    goal=GOAL_RATE,
                )
            )
            figures += [Figure(what=k, unit="events/s", values=v) for k, v in found.items()]
        lone = await _measure_lone(run, bench, door)
    ours, *raws = lone.values()
    ratios.append(
        Ratio(
            what="a lone command / the faster lone append",
            values=harness.ratios(ours, list(map(min, *raws))),
            goal=GOAL_LONE,
        )
    )
    figures += [Figure(what=k, unit="ms, median", values=v) for k, v in lone.items()]
    event_bytes = statistics.mean(len(message.data) for message in history_messages())
    return Section(
        title="append: durable appends through the whole runtime",
        about="Queueing tasks: decided, batched, appended, folded, answered; against the same "
        "bytes appended to a stream of the same kind on the same server.",
        ratios=ratios,
        figures=figures,
        notes=[
            f"An event has {event_bytes:.0f} bytes and a subject of its own. Every answer waits "
            "for the disk.",
            "Of the runtime, half of the callers are decided while the events of the other half "
            "are on their way; without it, one batch follows another.",
            "The limit is the faster one of JetStreamLog and nats-py in each repetition. A lone "
            "message goes as a plain fenced publish; as an atomic batch of one it is slower, and "
            "stands here for comparison.",
        ],
    )
