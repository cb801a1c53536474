"""Scheduler, agents, log and network under virtual time, faults drawn from a seed; see
`faults.simulation`. A seed that is named with --seed is replayed alone, to the byte."""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ProcessPoolExecutor

from faults.harness import Run, Verdict
from faults.simulation.world import Outcome, simulate

NAME = "sim"
SEEDS_QUICK, SEEDS, SEEDS_LONG_MIN = 20, 2_000, 20_000
LONG_SECONDS = 3_600.0
AT_ONCE = 20
"""Seeds that one process simulates before it tells."""
FAILING_MAX = 10
"""After so many failing seeds more would say nothing new."""
SAID_EVERY = 1_000


async def attack(run: Run) -> Verdict:
    """Simulate seed after seed, on every core."""
    verdict = Verdict(NAME)
    types: Counter[str] = Counter()
    digest, virtual_seconds = "", 0.0
    async with contextlib.aclosing(_outcomes(run)) as outcomes:
        async for outcome in outcomes:
            report(verdict, outcome)
            types.update(outcome.types)
            digest, virtual_seconds = outcome.digest, virtual_seconds + outcome.virtual_seconds
            if verdict.tries % SAID_EVERY == 0:
                print(f"{NAME}: {verdict.tries} seeds", flush=True)
            if len(verdict.wrong) >= FAILING_MAX:
                break
    told = f"{types.total()} events in {virtual_seconds:.0f} virtual seconds"
    counts = ", ".join(f"{types[name]} {name}" for name in ("TaskClaimed", "ClaimExpired"))
    verdict.notes.append(f"{told}, of them {counts}")
    if verdict.tries == 1:
        verdict.notes.append(f"log and state of seed {run.seed}: {digest}")
    return verdict


def report(verdict: Verdict, outcome: Outcome) -> None:
    """Take the outcome of one seed into the verdict, and where it failed how to see that again."""
    verdict.tries += 1
    verdict.acknowledged += outcome.told
    if outcome.violations:
        words = "\n  ".join(outcome.violations)
        again = f"python3 dev.py faults {NAME} --seed {outcome.seed}"
        verdict.wrong.append(f"seed {outcome.seed}, again by {again}\n  {words}")


async def _outcomes(run: Run) -> AsyncGenerator[Outcome, None]:
    """What comes of each seed, in the order in which it is known."""
    loop, seeds, cores = asyncio.get_running_loop(), _seeds(run), os.cpu_count() or 1
    # Not forked: each process patches its own clocks, and nothing is half copied into it.
    pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        running: set[asyncio.Future[list[Outcome]]] = set()
        while True:
            for some in itertools.islice(seeds, cores + 1 - len(running)):
                running.add(loop.run_in_executor(pool, simulate_all, some))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                for outcome in one.result():
                    yield outcome


def _seeds(run: Run) -> Iterator[list[int]]:
    """The seeds to simulate, some at a time."""
    if run.named and not run.long:
        yield [run.seed]
        return
    began = time.monotonic()
    wanted = run.tries(SEEDS_QUICK, SEEDS, SEEDS_LONG_MIN)
    for first in itertools.count(0, AT_ONCE):
        in_time = run.long and time.monotonic() - began < LONG_SECONDS
        if first >= wanted and not in_time:
            return
        yield list(range(run.seed + first, run.seed + first + AT_ONCE))


def simulate_all(seeds: list[int]) -> list[Outcome]:
    """One seed after another; one that cannot be lived to its end is a failing one."""
    return [_outcome(seed) for seed in seeds]


def _outcome(seed: int) -> Outcome:
    try:
        return simulate(seed)
    except Exception:  # noqa: BLE001  the other seeds still have their turn
        return Outcome(seed, "", Counter(), 0, 0.0, 0, [traceback.format_exc()])
