"""Rebuilding the state from the log, against nats-py's ordered consumer on the same stream."""

import asyncio
import collections
import contextlib
import gc
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import events, runtime
from core.log import Message, Record
from core.log_jetstream import JetStreamLog
from core.projections.state import State
from tests import nats_fixture

GOAL = Goal("at least", 3)
HTTP_TASKS = Size(18_000, 600)
TRAINED_TASKS = Size(3_600, 120)
QUEUED_TASKS = Size(1_000, 50)
SECONDS_MAX = 300.0

NOTES = """
- {bytes_mean:.0f} bytes an event on average: {mix}.
- Alone means one after another on the same bytes, all of them kept in between; a whole rebuild
  reads ahead while it decodes and folds.
"""


class Bench:
    """A log of `count` events on a server, and ways to read it."""

    def __init__(self, log: JetStreamLog, client: Client, count: int) -> None:
        self._log = log
        self._client = client
        self.count = count
        self.seconds_alone: dict[str, list[float]] = collections.defaultdict(list)

    async def fold(self) -> float:
        """Events per second from the log to a state."""
        state = State()
        began = _clean_start()
        await runtime.fold(self._log, state)
        seconds = time.perf_counter() - began
        assert state.seq == self.count
        assert not len(state.quarantine)
        self.seconds_alone["whole"].append(seconds)
        return self.count / seconds

    async def parts(self) -> float:
        """Seconds of reading, decoding and folding, each alone on the same bytes; their sum."""
        began = _clean_start()
        blocks: list[list[Record]] = [block async for block in self._log.read()]
        read = time.perf_counter()
        decoded = [events.read_facts(block) for block in blocks]
        done = time.perf_counter()
        state = State()
        for facts in decoded:
            assert facts is not None, "every block decodes as a whole"
            for fact in facts:
                state.fold(*fact)
        folded = time.perf_counter()
        assert state.seq == self.count
        self.seconds_alone["reading"].append(read - began)
        self.seconds_alone["decoding"].append(done - read)
        self.seconds_alone["folding"].append(folded - done)
        return folded - began

    async def counted(self) -> float:
        """Events per second of nats-py's ordered consumer, whose callback only counts."""
        return await self._consumed(decoding=False)

    async def decoded(self) -> float:
        """The same with a callback that decodes each event."""
        return await self._consumed(decoding=True)

    async def _consumed(self, *, decoding: bool) -> float:
        count = 0
        end = asyncio.Event()

        async def take(message: Msg) -> None:
            nonlocal count
            count += 1
            if decoding:
                events.decode(count, message.subject, message.data)
            if count == self.count:
                end.set()

        began = _clean_start()
        subscription = await self._client.jetstream().subscribe(
            "ev.*.*", stream="EVENTS", ordered_consumer=True, cb=take
        )
        async with asyncio.timeout(SECONDS_MAX):
            await end.wait()
        seconds = time.perf_counter() - began
        await subscription.unsubscribe()
        return self.count / seconds


def _clean_start() -> float:
    """The time now that no garbage of what ran before is left."""
    gc.collect()
    return time.perf_counter()


def _story(run: Run) -> list[Message]:
    story = history.Story()
    story.complete_over_http(run.size(HTTP_TASKS))
    story.train(run.size(TRAINED_TASKS))
    story.queue(run.size(QUEUED_TASKS))
    return story.messages


@contextlib.asynccontextmanager
async def _bench(messages: list[Message]) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aghsan-bench-"))
        server = stack.enter_context(nats_fixture.running(Path(folder) / "data"))
        await server.apply()
        connection = await stack.enter_async_context(server.connect("control"))
        log = JetStreamLog(connection)
        await history.store(log, messages)
        await log.close()
        client = await nats.connect(
            server.url,
            user_credentials=str(server.creds("control")),
            inbox_prefix=b"_INBOX_control",
        )
        stack.push_async_callback(client.close)
        yield Bench(log, client, len(messages))


def _mix(messages: list[Message]) -> str:
    """How much of a history is what."""
    types = collections.Counter(json.loads(message.data)["type"] for message in messages)
    return ", ".join(f"{count:,} {name}" for name, count in types.most_common())


def measure(run: Run) -> Section:
    """The rate of a rebuild by that of nats-py's callback, and where its time goes."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    messages = _story(run)
    mix, count = _mix(messages), len(messages)
    bytes_mean = sum(len(message.data) for message in messages) / count
    async with _bench(messages) as bench:
        # What the measured sides do not have in their own processes would only slow their gc.
        messages.clear()
        found = await harness.alternate(
            {
                "rebuild": bench.fold,
                "nats-py, counting": bench.counted,
                "nats-py, decoding": bench.decoded,
                "parts": bench.parts,
            },
            run.repetitions,
        )
    alone = bench.seconds_alone
    return Section(
        title="rebuild: from the log to a state",
        about=f"Reading, decoding and folding {count:,} events; against the callback of nats-py's "
        "own ordered consumer on the same stream, which does nothing but count.",
        ratios=[
            Ratio(
                what="rebuild / nats-py, counting",
                values=harness.ratios(found["rebuild"], found["nats-py, counting"]),
                goal=GOAL,
            ),
            Ratio(
                what="rebuild / nats-py, decoding",
                values=harness.ratios(found["rebuild"], found["nats-py, decoding"]),
            ),
            *(
                Ratio(
                    what=f"{part} alone / the three alone",
                    values=harness.ratios(alone[part], found["parts"]),
                )
                for part in ("reading", "decoding", "folding")
            ),
        ],
        figures=[
            *(
                Figure(what=side, unit="events/s", values=found[side])
                for side in ("rebuild", "nats-py, counting", "nats-py, decoding")
            ),
            Figure(what="a whole rebuild", unit="s", values=alone["whole"]),
            *(
                Figure(what=f"{part} alone", unit="s", values=alone[part])
                for part in ("reading", "decoding", "folding")
            ),
        ],
        notes=NOTES.format(bytes_mean=bytes_mean, mix=mix),
    )
