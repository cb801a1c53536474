"""From a task being durable to its offer in the hands of a waiting agent, by way of the scheduler.

Everything is the real thing in one process: gateway, desk, scheduler and an agent's link, over the
streams and accounts of `aghsan up`. Beside it a message is published to a waiting pull of a lane
that the scheduler does not know.
"""

import asyncio
import contextlib
import json
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from agent import machine
from agent.link import Link, Pulled
from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import events, runtime, wire
from core.bus import Bus, Incoming
from gateway import app, control, desk, refusals, work
from orchestrator.scheduler import Scheduler
from tests import nats_fixture

GOAL = Goal("below", 10)
OFFERS = Size(1_000, 30)
RAW_LANE = "raw"
PULL_SECONDS = 5

NOTES = """
- {count:,} of each in a repetition, one after another, the agent waiting each time; each task is
  claimed and completed before the next is queued.
- WORK is not synced to disk, since it can be lost and is filled anew; so for both sides alike.
"""


class Waiting:
    """The scheduler's ear to pulls, which also tells when one was heard."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.heard = asyncio.Event()

    def pulled(self, lane: str, count: int, expires_at: int) -> None:
        """As `gateway.desk.Offers.pulled`."""
        if lane != RAW_LANE:
            self._scheduler.pulled(lane, count, expires_at)
        self.heard.set()

    def answered(self, lane: str, offer: int) -> None:
        """As `gateway.desk.Offers.answered`."""
        self._scheduler.answered(lane, offer)


class Bench:
    """A control plane, an agent of it, and a puller beside it."""

    def __init__(self, parts: control.Control, waiting: Waiting, link: Link, raw: Bus) -> None:
        self._door = parts.door
        self._fleet = parts.connections.fleet
        self._waiting = waiting
        self._link = link
        self._raw = raw
        self._story = history.Story()
        self._durable_at: dict[str, float] = {}
        self._arrived: asyncio.Queue[tuple[float, Incoming]] = asyncio.Queue()
        parts.door.observe(self._on_event)

    async def open(self) -> None:
        """Begin to listen."""
        await self._raw.subscribe(f"{self._raw.inbox_prefix}.offers", self._arrive)

    def _on_event(self, event: events.Event) -> None:
        if isinstance(event.data, events.TaskQueued):
            self._durable_at[event.data.task_id] = time.perf_counter()

    async def _arrive(self, message: Incoming) -> None:
        self._arrived.put_nowait((time.perf_counter(), message))

    async def offered(self, count: int) -> list[float]:
        """Milliseconds from the event to the offer, of so many tasks one after another."""
        return [await self._offered_once() for _ in range(count)]

    async def _offered_once(self) -> float:
        self._waiting.heard.clear()
        pulling = asyncio.create_task(self._pull())
        await self._waiting.heard.wait()
        order = self._story.enqueue_command()
        await self._door.execute(order, runtime.new_meta("bench"), runtime.nothing)
        arrived_at, pulled = await pulling
        assert pulled.task_id == order.task_id, "it was the only one queued"
        assignment = await self._link.claim(uuid.uuid4().hex, pulled.seq)
        assert assignment is not None
        await self._link.complete(wire.CompleteRequest(token=assignment.token, metrics={}))
        await self._link.acknowledge(pulled)
        return (arrived_at - self._durable_at.pop(order.task_id)) * 1e3

    async def _pull(self) -> tuple[float, Pulled]:
        pulled = await self._link.pull()
        assert pulled is not None, f"no offer within {PULL_SECONDS} s"
        return time.perf_counter(), pulled

    async def published(self, count: int) -> list[float]:
        """Milliseconds from publishing to the waiting pull's answer, of so many messages."""
        return [await self._published_once() for _ in range(count)]

    async def _published_once(self) -> float:
        self._waiting.heard.clear()
        body = json.dumps({"batch": 1, "expires": PULL_SECONDS * 1_000_000_000}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.WORK.{RAW_LANE}"
        await self._raw.publish(subject, body, f"{self._raw.inbox_prefix}.offers")
        await self._waiting.heard.wait()
        offer = msgspec.json.encode(wire.Offer(task_id="task-000000000000"))
        began = time.perf_counter()
        await self._fleet.request(f"work.{RAW_LANE}", offer)
        arrived_at, message = await self._arrived.get()
        assert not message.headers, f"no message within {PULL_SECONDS} s"
        await self._raw.publish(message.reply, b"+ACK")
        return (arrived_at - began) * 1e3


@contextlib.asynccontextmanager
async def _bench() -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aghsan-bench-"))
        server = stack.enter_context(nats_fixture.running(Path(folder) / "data"))
        parts = await stack.enter_async_context(
            control.open_control(server.url, server.data, lambda: None)
        )
        scheduler = Scheduler(parts.door, work.WorkStream(parts.connections.fleet))
        waiting = Waiting(scheduler)
        kept = refusals.Refusals(parts.connections.control)
        front = desk.Desk(
            parts.door,
            parts.presence,
            parts.store,
            parts.promises,
            parts.usage,
            refusals=kept,
            fleet=parts.connections.fleet,
            control=parts.connections.control,
            notices=parts.connections.agents,
            offers=waiting,
            ensure_lane=parts.ensure_lane,
            terms=desk.Terms(),
        )
        await front.open()
        for loop in (parts.door.run(), scheduler.run(), kept.run()):
            stack.callback(asyncio.create_task(loop).cancel)
        await app.plant(parts.door)
        address = await stack.enter_async_context(
            app.serve(parts, kept, 1_800.0, "127.0.0.1", 0, server.url)
        )
        link = await _join(address)
        stack.push_async_callback(link.close)
        await parts.ensure_lane(RAW_LANE)
        raw = await server.connect_as(
            RAW_LANE, server.authority.agent(RAW_LANE, [RAW_LANE], public_key=None)
        )
        stack.push_async_callback(raw.close)
        bench = Bench(parts, waiting, link, raw)
        await bench.open()
        yield bench


async def _join(address: str) -> Link:
    here = machine.inspect()
    link = await Link.join(
        address,
        "bench",
        here,
        direct=True,
        on_notice=lambda notice: None,
        on_reconnect=lambda: None,
        on_closed=lambda link: None,
    )
    await link.hello(here, [])
    return link


def measure(run: Run) -> Section:
    """The 99th percentile of offers by that of plain messages."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    count = run.size(OFFERS)
    async with _bench() as bench:
        await bench.offered(10)
        await bench.published(10)
        found = await harness.alternate(
            {
                "offer": lambda: bench.offered(count),
                "message": lambda: bench.published(count),
            },
            run.repetitions,
        )

    def percentiles(side: str, percent: float) -> list[float]:
        return [harness.percentile(times, percent) for times in found[side]]

    def ratio(percent: float, goal: Goal | None = None) -> Ratio:
        values = harness.ratios(percentiles("offer", percent), percentiles("message", percent))
        return Ratio(what=f"p{percent:g}: offer / message", values=values, goal=goal)

    def figure(what: str, side: str, percent: float) -> Figure:
        return Figure(what=f"{what}, p{percent:g}", unit="ms", values=percentiles(side, percent))

    return Section(
        title="offer: from a durable task to a waiting agent",
        about="From the moment that TaskQueued is durable to the agent's pull being answered with "
        "an offer; against a message published to a waiting pull on the same server.",
        ratios=[ratio(99, GOAL), ratio(50)],
        figures=[
            figure(what, side, percent)
            for what, side in (("offer", "offer"), ("message to a pull", "message"))
            for percent in (50, 99)
        ],
        notes=NOTES.format(count=count),
    )
