"""The simulation finds nothing in the product, finds what is put into it, and repeats itself."""

import asyncio
import random
from collections import Counter

import pytest

from faults import sim
from faults.harness import Verdict
from faults.simulation import clock
from faults.simulation.bugs import BUGS
from faults.simulation.world import simulate

SEEDS = 200
SEEDS_PER_BUG = 60
HAPPENING = (
    "TaskCompleted",
    "TaskFailed",
    "TaskCancelled",
    "TaskRetried",
    "ClaimExpired",
    "ClaimRevived",
    "ClaimReleased",
    "ClaimAdopted",
    "AttemptFailed",
    "WorkerWentOffline",
    "WorkerCameOnline",
    "RoundOpened",
    "CandidateAdmitted",
    "RoundClosed",
)


def test_no_seed_breaks_a_rule_and_the_faults_reach_every_turn_of_a_tasks_life() -> None:
    verdict, types = Verdict("sim"), Counter[str]()
    writers = 0
    for seed in range(SEEDS):
        outcome = simulate(seed)
        sim.report(verdict, outcome)
        types.update(outcome.types)
        writers += outcome.types["WriterStarted"] > 1
    assert verdict.holds, "\n".join(verdict.wrong)
    assert [name for name in HAPPENING if not types[name]] == []
    assert writers > SEEDS / 4


def test_a_seed_gives_the_same_log_to_the_byte_and_another_seed_another() -> None:
    first, again, other = simulate(7), simulate(7), simulate(8)
    assert first == again
    assert first.digest != other.digest


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_put_in_on_purpose_is_found(name: str) -> None:
    assert any(simulate(seed, BUGS[name]).violations for seed in range(SEEDS_PER_BUG))


def test_a_failing_seed_is_told_with_what_replays_it() -> None:
    failing = next(
        outcome
        for outcome in (simulate(seed, BUGS["without_fence"]) for seed in range(SEEDS_PER_BUG))
        if outcome.violations
    )
    verdict = Verdict("sim")
    sim.report(verdict, failing)
    assert not verdict.holds
    assert f"python3 dev.py faults sim --seed {failing.seed}" in verdict.wrong[0]
    assert failing.violations[0] in verdict.wrong[0]
    assert simulate(failing.seed, BUGS["without_fence"]) == failing


def _at(loop: clock.Loop, seconds: float) -> None:
    """Let it become that late."""
    loop.after(seconds - loop.now, loop.stop)
    loop.run_forever()


async def _count(ticks: list[float]) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            await asyncio.sleep(1.0)
            ticks.append(loop.time())
    finally:
        ticks.append(-1.0)


def test_a_paused_process_stands_still_and_then_goes_on_late() -> None:
    loop, ticks = clock.Loop(), list[float]()
    process = loop.process("p")
    process.spawn(_count(ticks))
    _at(loop, 2.5)
    process.pause()
    _at(loop, 9.5)
    assert ticks == [1.0, 2.0]
    process.resume()
    _at(loop, 10.0)
    assert ticks == [1.0, 2.0, 9.5]


def test_a_killed_process_does_nothing_more_not_even_at_its_end() -> None:
    loop, ticks, told = clock.Loop(), list[float](), list[str]()
    process = loop.process("p")
    process.on_death.append(lambda: told.append("gone"))
    process.spawn(_count(ticks))
    _at(loop, 1.5)
    process.kill()
    process.resume()
    _at(loop, 9.0)
    assert (ticks, told) == ([1.0], ["gone"])


def test_clocks_and_random_ids_are_those_of_the_seed_and_only_inside() -> None:
    import secrets
    import time

    loop = clock.Loop()
    wall = clock.Wall(loop)
    with clock.installed(loop, wall, random.Random(1)):
        assert time.time_ns() == clock.EPOCH_US * 1_000
        _at(loop, 60.0)
        assert (time.monotonic(), time.time()) == (60.0, clock.EPOCH_US / 1e6 + 60)
        first = secrets.token_hex(8)
    with clock.installed(loop, wall, random.Random(1)):
        assert secrets.token_hex(8) == first
    assert time.time_ns() > clock.EPOCH_US * 1_000 + 1e12
