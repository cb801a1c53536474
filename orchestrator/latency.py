"""How long models take for one input, in times of a reference kernel and of the champion.

A machine is never quite at rest, so a model is timed in turns with a reference kernel and with the
champion, and only ratios count. Turns are taken together in contiguous blocks, longer than what
disturbs a single turn; a block gives one ratio, of the 20 % quantiles of its turns. The ratio is
the median of the blocks', and its interval lies between two of their order statistics (Thompson
1936), which assumes nothing of how times are distributed: only that blocks are independent of each
other, hence their length (batch means, Conway 1963). A look errs in one of a hundred; five looks,
by the union bound, in five at most.

What no interval covers: a machine on which something else runs all the time holds up long answers
more than short ones. For that the machine is made quiet (`core.quiet`).
"""

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from core import errors, values

REFERENCE = "\0reference"
"""No model is called so."""
SIDE, PRODUCTS = 96, 6
QUANTILE, BUSY_QUANTILE = 0.2, 0.8
BLOCKS, BLOCK_SECONDS = 12, 0.04
"""Of a reading: half a second."""
TURNS_MIN = 2
"""Of a block, however long they take."""
READINGS_MAX = 5
SECONDS_MAX = 3.0
"""The longest that the machine is held quiet for one candidate, all its readings together."""
WARM_TURNS, WARM_SECONDS = 10, 0.3
ALPHA = 0.01
"""Of one look at an interval."""
FEW_BLOCKS_STRETCH = 2.0
"""Blocks too few for an interval at that, of a model too slow for more, give their range, made so
many times wider to either side."""
SLACK = 1.01
"""An interval is so much wider to either side than chance alone makes it: what lasts for a whole
reading, such as where memory lies, and longer answers being held up more, no block shows."""
SAME = 1.05
"""Two readings of one architecture surely differ where the interval of their ratio lies beyond."""
VAGUE = 1.5
"""An interval whose ends differ by more says of no two models that they are equally fast."""

Clock = Callable[[], float]
Runs = Mapping[str, Callable[[], object]]
"""What is timed, by name."""
Block = Mapping[str, list[float]]
"""Seconds of each turn, by name."""


class Timed(NamedTuple):
    """A model to be timed. `architecture` is equal for equal configurations and types of number."""

    module: torch.nn.Module
    probe: tuple[torch.Tensor, ...]
    architecture: str


def measure(
    models: Mapping[str, Timed],
    champion: str,
    is_clear: Callable[[str, values.Latency], bool],
    quiet: Callable[[], contextlib.AbstractContextManager[object]],
) -> dict[str, values.Latency]:
    """The latency of each of the models, the champion (one of them, or "") included.

    Each other one is timed in turns with the champion while `quiet` is entered, once and for at
    most SECONDS_MAX, up to five readings until `is_clear`. Models of one architecture share one
    reading, unless what is seen of them surely differs, as where weights are so small that
    arithmetic gets slow.

    Raises errors.ArtifactError for a model that cannot be asked.
    """
    alone = [champion] if champion else []
    sessions: dict[str, Session] = {}
    with _ready():
        runs = {REFERENCE: _reference(), **{name: _asked(name, models[name]) for name in models}}
        for name in [each for each in models if each != champion] or alone:
            is_same = bool(champion) and models[name].architecture == models[champion].architecture
            timed = {each: runs[each] for each in dict.fromkeys((REFERENCE, *alone, name))}
            sessions[name] = Session(name, champion if champion in timed else "", is_same)
            sessions[name].take(timed, is_clear, quiet)
    architectures = {name: timed.architecture for name, timed in models.items()}
    return told(architectures, champion, sessions)


@contextlib.contextmanager
def _ready() -> Iterator[None]:
    """One thread, as models are judged; numbers as small as they are; no collecting of garbage."""
    threads, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


def _reference() -> Callable[[], object]:
    """Six products of 96 x 96 in float32, each through tanh."""
    draw = torch.Generator().manual_seed(0)
    factors = [torch.randn(SIDE, SIDE, generator=draw) / SIDE**0.5 for _ in range(PRODUCTS)]
    start = torch.randn(SIDE, SIDE, generator=draw)

    def run() -> object:
        x = start
        for factor in factors:
            x = torch.tanh(x @ factor)
        return x

    return run


def _asked(name: str, timed: Timed) -> Callable[[], object]:
    def run() -> object:
        try:
            return timed.module(*timed.probe)
        except Exception as error:
            # Whatever strange weights make torch raise, it is the model's fault.
            words = str(error).partition("\n")[0] or type(error).__name__
            raise errors.ArtifactError(f"{name} cannot be timed: {words[:300]}") from error

    return run


# ── turns and blocks ──


def take_block(runs: Runs, deadline: float, clock: Clock) -> Block:
    """Turns for as long as a block is, two at least, but beyond the deadline only the first.

    Who came before whom changes from turn to turn: it matters to caches.
    """
    first, *rest = runs
    orders = itertools.cycle(((first, *rest), (first, *reversed(rest))))
    block: dict[str, list[float]] = {name: [] for name in runs}
    began = clock()
    for done, order in enumerate(orders):
        now = clock()
        turn = (now - began) / max(done, 1)
        if done and (now + turn > deadline or (done >= TURNS_MIN and now - began > BLOCK_SECONDS)):
            return block
        for name in order:
            run, start = runs[name], clock()
            run()
            block[name].append(clock() - start)
    raise AssertionError("turns never end by themselves")


def _warm(runs: Runs, clock: Clock) -> None:
    ends = clock() + WARM_SECONDS
    for done in range(WARM_TURNS):
        if done and clock() > ends:
            return
        for run in runs.values():
            run()


class Interval(NamedTuple):
    """A ratio, and between what it surely lies."""

    value: float
    lower: float
    upper: float


def interval(ratios: list[float]) -> Interval:
    """The median of the blocks' ratios, between the k-th of them from either end and SLACK, where
    fewer than k of n independent ones lie below their median with a chance of ALPHA / 2 at most."""
    ordered = sorted(ratios)
    count = len(ordered)
    beyond, below = 0, 0.5**count
    while below <= ALPHA / 2:
        beyond += 1
        below += math.comb(count, beyond) * 0.5**count
    if not beyond:
        lower, upper = ordered[0] / FEW_BLOCKS_STRETCH, ordered[-1] * FEW_BLOCKS_STRETCH
    else:
        lower, upper = ordered[beyond - 1], ordered[-beyond]
    return Interval(float(np.median(ordered)), lower / SLACK, upper * SLACK)


# ── readings ──


class _Seen(NamedTuple):
    """What was seen of a model: ratios of blocks, and seconds of turns."""

    ratios: list[float]
    against: list[float]
    times: list[float]
    references: list[float]

    def __or__(self, other: "_Seen") -> "_Seen":
        return _Seen(*(mine + its for mine, its in zip(self, other, strict=True)))


_NOTHING = _Seen([], [], [], [])


class Session:
    """A model in turns with the reference and, where there is one, the champion."""

    def __init__(self, name: str, champion: str, is_same: bool) -> None:
        self._name, self._champion = name, champion
        self._is_same = is_same
        self._blocks: list[Block] = []
        self.readings = 0

    def take(
        self,
        runs: Runs,
        is_clear: Callable[[str, values.Latency], bool],
        quiet: Callable[[], contextlib.AbstractContextManager[object]],
        clock: Clock = time.perf_counter,
    ) -> None:
        """Readings until it is clear, or time is up."""
        _warm(runs, clock)
        with quiet():
            deadline = clock() + SECONDS_MAX
            while not self.readings or (clock() < deadline and self.readings < READINGS_MAX):
                self.readings += 1
                for done in range(BLOCKS):
                    if done and clock() >= deadline:
                        break
                    self._blocks.append(take_block(runs, deadline, clock))
                if self._is_settled(is_clear):
                    return

    def _is_settled(self, is_clear: Callable[[str, values.Latency], bool]) -> bool:
        seen = self.seen(self._name)
        if self.shares_champion:
            against = interval(seen.against)
            if against.upper / against.lower > VAGUE:
                return False
            return is_clear(self._name, _latency(seen, self.readings, like=self._champion))
        return self._name == self._champion or is_clear(self._name, _latency(seen, self.readings))

    @property
    def shares_champion(self) -> bool:
        """Whether it has the champion's architecture and is not surely faster or slower."""
        if not self._is_same or self._name == self._champion:
            return False
        against = interval(self.seen(self._name).against)
        return against.lower <= SAME and against.upper >= 1 / SAME

    def seen(self, name: str) -> _Seen:
        """Of the model, or of the champion."""
        with_champion = bool(self._champion) and name != self._champion
        return _Seen(
            ratios=[_ratio(block, name, REFERENCE) for block in self._blocks],
            against=[_ratio(block, name, self._champion) for block in self._blocks]
            if with_champion
            else [],
            times=[seconds for block in self._blocks for seconds in block[name]],
            references=[seconds for block in self._blocks for seconds in block[REFERENCE]],
        )


def _ratio(block: Block, name: str, to: str) -> float:
    return float(np.quantile(block[name], QUANTILE) / np.quantile(block[to], QUANTILE))


def told(
    architectures: Mapping[str, str], champion: str, sessions: Mapping[str, Session]
) -> dict[str, values.Latency]:
    """What was seen, shared among those of one architecture that do not surely differ."""
    found: dict[str, values.Latency] = {}
    if champion:
        seen = _NOTHING
        for name, session in sessions.items():
            seen |= session.seen(champion)
            if session.shares_champion:
                seen |= session.seen(name)
        taken = max(session.readings for session in sessions.values())
        found[champion] = _latency(seen._replace(against=[]), taken)
        for name, session in sessions.items():
            if session.shares_champion:
                found[name] = _latency(seen, session.readings, like=champion)
    left = {name: session.seen(name) for name, session in sessions.items() if name not in found}
    while left:
        leader = next(iter(left))
        alike = [
            name
            for name in left
            if architectures[name] == architectures[leader]
            and not _differ(left[name], left[leader])
        ]
        seen = _NOTHING
        for name in alike:
            seen |= left.pop(name)
        for name in alike:
            taken = sessions[name].readings
            found[name] = _latency(seen, taken, shared_with="" if name == leader else leader)
    return {name: found[name] for name in architectures}


def _differ(one: _Seen, other: _Seen) -> bool:
    """Whether two models surely take unequal times."""
    a, b = interval(one.ratios), interval(other.ratios)
    return a.lower > SAME * b.upper or b.lower > SAME * a.upper


def _latency(
    seen: _Seen, readings: int, *, like: str = "", shared_with: str = ""
) -> values.Latency:
    """What is told of what was seen; of a model `like` the champion, that it is as fast."""
    ratio = interval(seen.ratios)
    against = interval(seen.against) if seen.against else None
    if like:
        against, shared_with = Interval(1.0, 1.0, 1.0), like
    p50, p95 = (1_000 * float(np.quantile(seen.times, share)) for share in (0.5, 0.95))
    calm, busy = (float(np.quantile(seen.references, q)) for q in (QUANTILE, BUSY_QUANTILE))
    return values.Latency(
        ratio=ratio.value,
        lower=ratio.lower,
        upper=ratio.upper,
        p50_ms=p50,
        p95_ms=p95,
        reference_ms=1_000 * calm,
        spread=busy / calm - 1,
        against=against.value if against else None,
        against_lower=against.lower if against else None,
        against_upper=against.upper if against else None,
        readings=readings,
        shared_with=shared_with,
    )
