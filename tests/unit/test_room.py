"""When new work is turned away for want of room, when it is taken again, and when a server that was
on a full disk has to be restarted."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from core import errors, room, runtime
from core.log_memory import MemoryLog
from core.room import Disk, Filling
from core.topology import MIB

ROOMY = Disk(100_000 * MIB, 200_000 * MIB)


@pytest.mark.parametrize(
    ("total_mib", "reserve_mib"), [(1_000, 512), (5_000, 1_000), (250_000, 2_048)]
)
def test_a_fifth_of_the_disk_is_kept_within_bounds(total_mib: int, reserve_mib: int) -> None:
    assert room.reserve_bytes(Disk(0, total_mib * MIB)) == reserve_mib * MIB


def test_below_the_reserve_there_is_no_room_and_the_words_say_what_to_do() -> None:
    short = room.shortage(Disk(999 * MIB, 5_000 * MIB), {}, short=False)
    assert "999 MiB are free" in short
    assert "1000 MiB are kept" in short
    assert "make room there, and with 1250 MiB work goes on" in short
    assert room.shortage(Disk(1_000 * MIB, 5_000 * MIB), {}, short=False) == ""


def test_a_disk_that_can_never_have_the_reserve_free_is_too_small_and_not_full() -> None:
    told = room.shortage(Disk(500 * MIB, 639 * MIB), {}, short=False)
    assert "too small, it has 639 MiB in all, and 640 MiB have to be free" in told
    assert "make room there" in room.shortage(Disk(500 * MIB, 640 * MIB), {}, short=False)
    assert room.shortage(Disk(600 * MIB, 639 * MIB), {}, short=False) == ""


def test_once_short_more_must_come_back_than_was_missed() -> None:
    waiting = room.shortage(Disk(1_100 * MIB, 5_000 * MIB), {}, short=True)
    assert "1000 MiB are kept" in waiting
    assert "with 1250 MiB work goes on" in waiting
    assert room.shortage(Disk(1_250 * MIB, 5_000 * MIB), {}, short=True) == ""


def test_a_stream_at_four_fifths_of_its_bound_leaves_no_room() -> None:
    def told(used: int, *, short: bool) -> str:
        streams = {"CHUNKS": Filling(1, 100), "EVENTS": Filling(used, 100)}
        return room.shortage(ROOMY, streams, short=short)

    assert told(79, short=False) == ""
    assert "EVENTS" in told(80, short=False)
    assert "EVENTS" in told(79, short=True)
    assert told(74, short=True) == ""


def test_a_quota_at_four_fifths_leaves_no_room_and_says_how_to_raise_it() -> None:
    told = room.shortage(ROOMY, {"artifacts": Filling(80 * MIB, 100 * MIB)}, short=False)
    assert "all artifacts take 80 of at most 100 MiB" in told
    assert "--quota-gib" in told


def test_a_server_that_was_on_a_full_disk_is_restarted_once_when_room_is_back() -> None:
    mending = room.Mending()
    assert not mending.is_due(0.0, 0, short=True, unanswered=60.0)
    assert not mending.is_due(1.0, 200 * MIB, short=True, unanswered=61.0)
    assert mending.is_due(2.0, 1_000 * MIB, short=False, unanswered=0.0)
    assert not mending.is_due(3.0, 1_000 * MIB, short=False, unanswered=0.0)


def test_a_server_that_answers_nothing_where_room_was_short_is_restarted_again_and_again() -> None:
    mending = room.Mending()

    def due(now: float, unanswered: float) -> bool:
        return mending.is_due(now, 400 * MIB, short=True, unanswered=unanswered)

    assert not due(0.0, 7.0)
    assert due(1.0, 8.0)
    assert not due(2.0, 9.0)
    assert due(40.0, 47.0)


def test_a_server_that_is_only_slow_is_left_alone() -> None:
    assert not room.Mending().is_due(0.0, ROOMY.free_bytes, short=False, unanswered=1_000.0)


async def test_what_is_seen_is_told_to_the_door_even_if_the_streams_do_not_answer() -> None:
    disk = ROOMY

    async def silent() -> Mapping[str, Filling]:
        raise errors.Unavailable("no answer")

    door = runtime.Runtime(MemoryLog(), "test")
    watch = room.Watch(door, Path(), silent, lambda _: disk)
    await watch.look()
    assert (door.shortage, watch.free_bytes) == ("", ROOMY.free_bytes)
    disk = Disk(0, ROOMY.total_bytes)
    await watch.look()
    assert "0 MiB are free" in door.shortage
    disk = ROOMY
    await watch.look()
    assert door.shortage == ""
