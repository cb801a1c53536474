"""How trainings are told of: small curves, few messages, and what a device does."""

import ctypes
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import gauges, nvml, telemetry
from agent.executors import jobs
from core import errors, events, wire
from core import telemetry as curves
from core.telemetry import POINTS_MAX, Point

NOBODY = gauges.Usage()
TOKEN = events.Token(task_id="موضوع", attempt=2, claim_id="c")


def progress(step: int, loss: float = 0.5) -> jobs.Progress:
    return jobs.Progress(
        step=step, total_steps=10_000, loss=loss, learning_rate=1e-3, samples_per_second=512.125
    )


def told(message: wire.Telemetry | None) -> dict[str, list[int]]:
    """The steps that a message tells of, by rival."""
    assert message is not None
    return {curve.rival: [point.step for point in curve.points] for curve in message.curves}


def test_a_curve_that_is_thinned_on_and_on_keeps_its_ends_and_its_extremes() -> None:
    draw = random.Random(7)
    kept: list[Point] = []
    losses = [draw.random() for _ in range(20_000)]
    losses[777], losses[15_000] = 9.0, -9.0
    for step, loss in enumerate(losses):
        kept.append(Point(step, 0.0, loss))
        if len(kept) > telemetry.BUFFERED_MAX:
            kept = curves.thin(kept)
    kept = curves.thin(kept)
    assert POINTS_MAX / 2 < len(kept) <= POINTS_MAX
    steps = [point.step for point in kept]
    assert steps == sorted(steps)
    assert {0, 777, 15_000, 19_999} <= set(steps)
    # As dense in the first half as in the second, though the first was thinned more often.
    early = sum(step < 10_000 for step in steps)
    assert 0.8 < early / (len(steps) - early) < 1.25


def test_what_others_claim_of_steps_and_times_has_bounds() -> None:
    for absurd in ("[-1,0]", "[1,1e300]", "[1,-1]", "[1,0,0.5,0,0,0,-1]", "[1e400,0]"):
        with pytest.raises(msgspec.MsgspecError):
            msgspec.json.decode(absurd, type=Point)
    with pytest.raises(errors.ArtifactError, match="cannot be read"):
        curves.decode(b'[{"rival":"evolver","total_steps":1,"points":[{}]}]')


def test_a_message_has_all_at_first_then_what_is_new_and_after_a_while_all_again() -> None:
    record = telemetry.Record()
    record.begin("evolver", 0, 10_000, [])
    assert record.take_unsent(1, 0.0) is None
    messages: list[wire.Telemetry | None] = []
    for now in (1.0, 2.0, 3.0, 2.0 + telemetry.WHOLE_SECONDS):
        for step in (1, 2, 2):  # the last report of a training is often of a step told already
            record.add("evolver", progress(int(now * 10) + step), NOBODY)
        messages.append(record.take_unsent(1, now))
    assert [one is not None and one.whole for one in messages] == [True, False, False, True]
    assert [len(told(one)["evolver"]) for one in messages] == [2, 2, 2, 8]


def test_what_was_not_sent_for_long_is_dropped_and_comes_with_the_whole_curves() -> None:
    record = telemetry.Record()
    record.begin("evolver", 0, 10_000, [])
    record.add("evolver", progress(1), NOBODY)
    record.take_unsent(1, 0.0)
    for step in range(2, 3 * telemetry.UNSENT_MAX):
        record.add("evolver", progress(step), NOBODY)
    message = record.take_unsent(1, 1.0)
    assert message is not None
    assert message.whole
    assert told(message)["evolver"] == list(range(1, 3 * telemetry.UNSENT_MAX))


def test_a_training_that_goes_on_from_an_earlier_state_forgets_what_came_after_it(
    tmp_path: Path,
) -> None:
    before = telemetry.Record()
    for step in (1, 2, 3):
        before.add("evolver", progress(step), NOBODY)
    before.save("evolver", tmp_path)
    record = telemetry.Record()
    record.begin("evolver", 2, 10_000, telemetry.points_beside(tmp_path))
    record.add("evolver", progress(3, loss=0.25), NOBODY)
    (curve,) = record.curves
    assert [(point.step, point.loss) for point in curve.points] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    (tmp_path / telemetry.FILE).write_bytes(b"{")
    assert telemetry.points_beside(tmp_path) == []


class Line:
    """A link that takes messages, or does not."""

    def __init__(self) -> None:
        self.taken: list[wire.Telemetry] = []
        self.away = False

    async def tell(self, task_id: str, news: wire.Telemetry) -> None:
        assert task_id == TOKEN.task_id
        if self.away:
            raise errors.Unavailable("no connection")
        self.taken.append(news)


async def test_messages_are_few_and_one_that_was_lost_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line: Any = Line()
    sender, record = telemetry.Sender(gauges.Sampler(None)), telemetry.Record()
    record.begin("evolver", 0, 10_000, [])
    for tick in range(1, 41):
        now = 100.0 + tick / 4
        line.away = 10 < tick < 30
        record.add("evolver", progress(tick), NOBODY)
        sender.send_soon(line, TOKEN, record)
        if sender._sending is not None:
            await sender._sending
    sent = [told(one)["evolver"] for one in line.taken]
    assert len(sent) == 10
    assert [one.whole for one in line.taken] == [True, *[False] * 4, True, *[False] * 4]
    assert sent[5] == list(range(1, 32))
    assert {one.attempt for one in line.taken} == {2}


def test_a_processs_use_of_processors_and_memory_is_read() -> None:
    gauge = gauges.Processors()
    first = gauge.read(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    second = gauge.read(os.getpid())
    assert first.utilisation is None
    assert second.utilisation is not None
    assert second.utilisation > 0
    assert first.memory_bytes is not None
    assert first.memory_bytes > 1_000_000
    assert gauge.read(2**22 + 1) == NOBODY


class Library:
    """NVML as ctypes has it: two GPUs, of which one may be lost, or say nothing of its use."""

    def __init__(self) -> None:
        self.utilisation: dict[int, int] = {0: 90, 1: 30}
        self.lost: set[int] = set()

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0 if index < 2 else 2

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        handle._obj.value = 2
        return 0 if name == b"GPU-b" else 6

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        if handle.value in self.lost:
            return 15
        memory._obj.total, memory._obj.used = 24 << 30, 3 << 30
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, use: Any) -> int:
        assert handle.value is not None
        found = self.utilisation.get(handle.value - 1)
        if found is None:
            return 3
        use._obj.gpu = found
        return 0


@pytest.mark.parametrize(
    ("visible", "utilisation", "count"),
    [(None, 0.6, 2), ("1", 0.3, 1), (" GPU-b, 0", 0.6, 2), ("GPU-x", 0.6, 2), ("7", None, 0)],
)
def test_gpus_are_read_that_may_be_used_and_all_where_names_are_not_known(
    visible: str | None, utilisation: float | None, count: int
) -> None:
    usage = gauges.Gpus(nvml.Nvml(Library(), visible)).read(1)
    assert usage.utilisation == (None if utilisation is None else pytest.approx(utilisation))
    assert usage.memory_bytes == (count * (3 << 30) or None)


def test_a_gpu_that_is_lost_or_says_nothing_of_its_use_harms_no_reading() -> None:
    library = Library()
    gauge = gauges.Gpus(nvml.Nvml(library))
    del library.utilisation[0]
    assert gauge.read(1) == gauges.Usage(0.3, 6 << 30)
    library.lost = {1, 2}
    assert gauge.read(1) == NOBODY


class Stuck:
    """A gauge whose driver hangs at its second reading."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.readings = 0

    def read(self, pid: int) -> gauges.Usage:
        self.readings += 1
        if self.readings > 1:
            self.hangs.set()
            threading.Event().wait()
        return gauges.Usage(0.5, pid)


def test_nobody_waits_for_a_driver_that_hangs_and_what_it_said_before_grows_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gauges, "SAMPLE_SECONDS", 0.01)
    gauge = Stuck()
    sampler = gauges.Sampler(gauge)
    assert sampler.of(None) == NOBODY
    while sampler.of(7) == NOBODY:
        time.sleep(0.001)
    assert sampler.of(7) == gauges.Usage(0.5, 7)
    while not gauge.hangs.is_set():
        sampler.of(7)
    monkeypatch.setattr(gauges, "STALE_SECONDS", 0.0)
    assert sampler.of(7) == NOBODY
