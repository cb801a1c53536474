"""The text format, and the figures that are kept by themselves."""

import asyncio
import math
import sys
import time

import pytest

from core import turns
from core.appends import EVENTS_BOUNDS, Appends
from core.events import Requires
from core.projections.queue import Queue
from gateway import exposition
from gateway.exposition import Family
from gateway.metrics import TICK_SECONDS, WINDOW_SECONDS, Highest, LoopDelay
from tests.exposition import parse


def test_what_is_encoded_is_read_back_the_same() -> None:
    awkward = 'a "b"\\c\nd سجل'
    text = exposition.encode(
        [
            exposition.counter("requests_total", "Two\nlines \\ of help.", 3),
            exposition.gauges("tasks", "Tasks.", "status", {"queued": 2, awkward: 0.5}),
            exposition.summary("append_seconds", "Time.", 4, 1.5e-7),
            exposition.gauge("no_number", "None.", math.inf),
        ]
    ).decode()
    found = parse(text)
    assert found["requests_total"].samples == {("requests_total", ()): 3}
    assert found["tasks"].samples == {
        ("tasks", (("status", "queued"),)): 2,
        ("tasks", (("status", awkward),)): 0.5,
    }
    assert found["append_seconds"].samples == {
        ("append_seconds_sum", ()): 1.5e-7,
        ("append_seconds_count", ()): 4,
    }
    assert found["no_number"].samples[("no_number", ())] == math.inf


def test_buckets_of_a_histogram_add_up() -> None:
    family = exposition.histogram("events", "Events.", (1, 10), (3, 0, 2), 300)
    samples = parse(exposition.encode([family]).decode())["events"].samples
    assert [samples["events_bucket", (("le", le),)] for le in ("1", "10", "+Inf")] == [3, 3, 5]
    assert (samples["events_sum", ()], samples["events_count", ()]) == (300, 5)


def test_a_family_without_samples_is_left_out() -> None:
    assert exposition.encode([Family("empty", "gauge", "Nothing.", [])]) == b""


@pytest.mark.parametrize(
    "text",
    [
        "# HELP a A.\n# TYPE a gauge\na 1",  # the last line does not end
        "# TYPE a gauge\na 1\n",
        "# HELP a A.\n# TYPE a gauge\na 1\na 2\n",
        '# HELP a A.\n# TYPE a gauge\na{b="c} 1\n',
        "# HELP a A.\n# TYPE a counter\na 1\n",
        "# HELP a A.\n# TYPE a gauge\nb 1\n",
        '# HELP a A.\n# TYPE a histogram\na_bucket{le="1"} 2\na_sum 1\na_count 2\n',
    ],
)
def test_the_reader_of_these_tests_is_strict(text: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        parse(text)


def test_appends_fall_into_the_bound_that_holds_them() -> None:
    appends = Appends()
    for events in (1, 2, 3, 5, 1_000, 1_001):
        appends.note(events, 0.25)
    assert (appends.count, appends.events, appends.seconds) == (6, 2_012, 1.5)
    counts = dict(zip((*EVENTS_BOUNDS, math.inf), appends.by_events, strict=True))
    assert [counts[bound] for bound in (1, 2, 5, 10, 1_000, math.inf)] == [1, 1, 2, 0, 1, 1]


def test_the_highest_is_forgotten_after_a_minute() -> None:
    highest = Highest()
    for now, seconds in ((0.5, 0.1), (1.0, 0.9), (2.0, 0.2), (2.5, 0.3), (30.0, 0.05)):
        highest.note(now, seconds)
    assert highest.value(1.0 + WINDOW_SECONDS) == 0.9
    assert highest.value(2.0 + WINDOW_SECONDS) == 0.3
    assert highest.value(30.0 + WINDOW_SECONDS) == 0.05
    assert highest.value(31.0 + WINDOW_SECONDS) == 0.0


def test_delays_that_fall_for_ever_do_not_pile_up() -> None:
    highest = Highest()
    for tick in range(100_000):
        highest.note(tick * 0.01, 1.0 / (tick + 1))
    assert len(highest._highest) <= WINDOW_SECONDS + 2


async def test_a_loop_that_is_held_up_shows_it() -> None:
    delay = LoopDelay()
    running = asyncio.create_task(delay.run())
    await asyncio.sleep(0.02)
    time.sleep(0.05)  # noqa: ASYNC251  this is what is measured
    await asyncio.sleep(0.02)
    running.cancel()
    assert delay.late.value(asyncio.get_running_loop().time()) >= 0.03


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere turns are not counted")
def test_what_a_turn_computes_is_told_beside_how_late_it_was() -> None:
    async def main() -> float:
        delay = LoopDelay()
        running = asyncio.create_task(delay.run())
        await asyncio.sleep(0)
        computed = time.thread_time() + 2 * TICK_SECONDS
        while time.thread_time() < computed:
            pass
        await asyncio.sleep(TICK_SECONDS)  # its own is over by now
        running.cancel()
        return delay.computing.value(asyncio.get_running_loop().time())

    with asyncio.Runner(loop_factory=turns.new_loop) as runner:
        assert runner.run(main()) >= 2 * TICK_SECONDS


def test_the_queue_says_how_many_tasks_wait() -> None:
    queue = Queue()
    requires = Requires()
    queue.add("a", requires, False, b"", 1, 1)
    queue.add("b", requires, True, b"", 2, 2)
    queue.removed(requires, False)
    assert len(queue) == 1
