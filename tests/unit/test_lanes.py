"""Lanes: what agents call themselves, mapped onto the few that there are."""

import pytest

from agent.machine import Machine
from core import errors, lanes, topology


@pytest.mark.parametrize(
    ("said", "lane"),
    [
        ("cpu-16", "cpu-16"),
        ("cuda-141", "cuda-128"),
        ("cuda-100000", "cuda-192"),
        ("cpu-7", "cpu-4"),
        ("mps-0", "mps-1"),
        ("cpu", "cpu-1"),
    ],
)
def test_an_agent_gets_the_lane_of_its_device_with_no_more_memory_than_it_has(
    said: str, lane: str
) -> None:
    assert lanes.nearest(said) == lane
    assert lanes.nearest(lane) == lane


@pytest.mark.parametrize("said", ["", "abacus-4", "CPU-16", "cpu-", "cpu-16-x", "WORK.>", "cpu-١"])
def test_a_device_that_nothing_is_made_for_is_refused(said: str) -> None:
    with pytest.raises(errors.Invalid, match="as in cpu-16"):
        lanes.nearest(said)


def test_there_are_no_more_lanes_than_consumers_for_them() -> None:
    assert len(lanes.DEVICES) * len(lanes.MEMORY_BUCKETS_GB) <= topology.LANES_MAX


def test_a_machine_is_of_a_lane_that_it_keeps_when_it_joins() -> None:
    for memory_gb in (0.5, 3.9, 15.9, 79.6, 500.0):
        machine = Machine(
            hostname="h", device="cuda", devices=1, memory_gb=memory_gb, cores=1, system="s"
        )
        assert lanes.nearest(machine.lane) == machine.lane
