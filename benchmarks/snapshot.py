"""Coming back from a snapshot, against reading and decoding the same bytes; and taking one."""

import asyncio
import contextlib
import gc
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks import harness, history
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import keeper, runtime, snapshots
from core.log import Message, Record
from core.log_memory import MemoryLog
from core.projections.state import State
from core.snapshots_jetstream import JetStreamSnapshots
from tests import nats_fixture

GOAL = Goal("at most", 3)
HTTP_TASKS = Size(900_000, 900)
TRAINED_TASKS = Size(50_000, 50)
QUEUED_TASKS = Size(50_000, 50)
BLOCK_TASKS = 10_000
TICK_SECONDS = 0.001

NOTES = """
- {tasks:,} tasks after {events:,} events: {rows:,} rows, {mib:.0f} MiB in {parts:,} parts.
- The longest wait is that of a loop that wants to do something every millisecond while a snapshot
  is copied, encoded and stored beside it.
"""


class Bench:
    """A state, a store on a server, and what took how long."""

    def __init__(self, state: State, last: Message, store: JetStreamSnapshots) -> None:
        self._record = Record(state.seq, last.subject, last.data)
        self._store = store
        self._hash = state.hash()
        self._name = ""
        self.head: snapshots.Head | None = None
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._state: State | None = state

    async def take(self) -> None:
        """Store a snapshot as the control process does, with a watch on the loop."""
        assert self._state is not None
        log = _End(self._record)
        kept = keeper.Keeper(self._store, log)
        door = runtime.Runtime(log, "bench")
        door.state, door.durable_seq = self._state, self._state.seq
        self.seconds["longest step"].append(_longest_step(self._state))
        watch = asyncio.create_task(_longest_wait())
        await asyncio.sleep(0)
        began = time.perf_counter()
        self.head = await kept.take(door)
        self.seconds["taking"].append(time.perf_counter() - began)
        watch.cancel()
        self.seconds["longest wait"].append(await watch)
        self._name = (await self._store.kept())[0].name

    def forget(self) -> None:
        """Leave only what is stored, as after a restart."""
        self._state = None

    async def back(self) -> float:
        """Seconds from the store to a state."""
        assert self.head is not None
        began = _clean_start()
        state = await keeper.restore(self._store, self._name, self.head)
        seconds = time.perf_counter() - began
        assert state.seq == self.head.seq
        if "hashed" not in self.seconds:
            self.seconds["hashed"] = []
            assert state.hash() == self._hash, "it is the state that was stored"
        return seconds

    async def decoded(self) -> float:
        """Seconds to read the same bytes and decode them into the same rows, and no more."""
        assert self.head is not None
        decoders = [snapshots._SECTIONS[part.section].decode for part in self.head.parts]
        rows: list[list[Any]] = []
        began = _clean_start()
        number = 0
        async for data in self._store.parts(self._name):
            rows.append(decoders[number](data))
            number += 1
        seconds = time.perf_counter() - began
        assert sum(map(len, rows)) == self.head.rows
        return seconds


class _End(MemoryLog):
    """A log of which only the end is here."""

    def __init__(self, last: Record) -> None:
        super().__init__()
        self._last = last

    async def get(self, seq: int) -> Record | None:
        return self._last if seq == self._last.seq else None


def _longest_step(state: State) -> float:
    """Seconds of the longest step of copying, which nothing else on the loop can interrupt."""
    copier = snapshots.Copier(state)
    steps = [_clean_start()]
    steps += [time.perf_counter() for _ in copier.ahead()]
    copied = copier.finish(state)
    steps.append(time.perf_counter())
    copier.close()
    assert copied.seq == state.seq
    return max(after - before for before, after in itertools.pairwise(steps))


async def _longest_wait() -> float:
    longest = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            longest = max(longest, time.perf_counter() - began - TICK_SECONDS)
    return longest


def _clean_start() -> float:
    """The time now that no garbage of what ran before is left."""
    gc.collect()
    return time.perf_counter()


def _grown(run: Run) -> tuple[State, Message]:
    """A state and the last message of its log, of which no more is kept."""
    story = history.Story()
    for tell, size in (
        (story.complete_over_http, HTTP_TASKS),
        (story.train, TRAINED_TASKS),
        (story.queue, QUEUED_TASKS),
    ):
        left = run.size(size)
        while left:
            tell(min(left, BLOCK_TASKS))
            left -= min(left, BLOCK_TASKS)
            last = story.messages[-1]
            story.messages.clear()
    return story.state, last


@contextlib.asynccontextmanager
async def _bench(run: Run) -> AsyncIterator[Bench]:
    state, last = _grown(run)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aghsan-bench-"))
        server = stack.enter_context(nats_fixture.running(Path(folder) / "data"))
        await server.apply()
        connection = await stack.enter_async_context(server.connect("control"))
        yield Bench(state, last, JetStreamSnapshots(connection))


def measure(run: Run) -> Section:
    """The time back from a snapshot by that of reading and decoding its bytes."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    async with _bench(run) as bench:
        for _ in range(run.repetitions):
            await bench.take()
        bench.forget()
        found = await harness.alternate(
            {"back": bench.back, "decode": bench.decoded}, run.repetitions
        )
    head = bench.head
    assert head is not None
    tasks = run.size(HTTP_TASKS) + run.size(TRAINED_TASKS) + run.size(QUEUED_TASKS)
    milliseconds = {
        what: [1_000 * seconds for seconds in bench.seconds[what]]
        for what in ("longest step", "longest wait")
    }
    return Section(
        title="snapshot: back from a snapshot",
        about=f"The state of {tasks:,} tasks from OBJ_SNAPSHOTS, every digest checked and every "
        "index made; against reading the same bytes and decoding them into rows with msgspec.",
        ratios=[
            Ratio(
                what="back / reading and decoding",
                values=harness.ratios(found["back"], found["decode"]),
                goal=GOAL,
            )
        ],
        figures=[
            Figure(what="back from a snapshot", unit="s", values=found["back"]),
            Figure(what="reading and decoding alone", unit="s", values=found["decode"]),
            Figure(what="taking a snapshot", unit="s", values=bench.seconds["taking"]),
            Figure(what="longest step of copying", unit="ms", values=milliseconds["longest step"]),
            Figure(
                what="longest wait while taking", unit="ms", values=milliseconds["longest wait"]
            ),
        ],
        notes=NOTES.format(
            tasks=tasks,
            events=head.seq,
            rows=head.rows,
            mib=head.bytes / 2**20,
            parts=len(head.parts),
        ),
    )
