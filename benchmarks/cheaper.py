"""How often the gate's second question, is it as good and cheaper, lets a worse model through.

Made of the same recorded errors as `benchmarks.judgement`: a candidate that is said to be half as
large is as much worse as the margin allows, and no less; a chain of them is each a little worse
than the one before, so that only the best ever can end it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from core.values import Gates
from orchestrator import bounds, gate
from orchestrator.bounds import Floats
from orchestrator.rulings import Costs

GATES = Gates()
HALF = Costs(size=0.5)
OTHER_SHARE = 0.1
"""Of a relative's answers, so many are another model's: so alike are derived models."""
STEP = 1.01
"""So many times the error of the one before has each model of a chain."""

Pair = tuple[Floats, Floats]


class Chain(NamedTuple):
    """How far a chain of cheaper models came."""

    links: int
    error: float
    """Of the last one, in times of the first."""
    is_beyond: bool
    """Whether that is more than the margin allows."""


class Cheaper(NamedTuple):
    """What the second question let through."""

    singles: int
    sequences: int
    power: float
    """Of equal relatives, half as large."""
    chains: list[Chain]


def measure(
    pair: Pair,
    tolerance: float,
    draw: np.random.Generator,
    singles: int,
    sequences: int,
    looks: int,
) -> Cheaper:
    """Ask it of models at the margin, of equal ones, and of chains."""
    trials = _Trials(pair, tolerance, draw)
    at_margin = trials.at_margin
    return Cheaper(
        singles=sum(trials.is_cheaper(at_margin, 1, share=1.0) for _ in range(singles)),
        sequences=sum(
            any(trials.is_cheaper(at_margin, look, share=1.0) for look in range(1, looks + 1))
            for _ in range(sequences)
        ),
        power=sum(trials.is_cheaper(lambda errors: errors, 1) for _ in range(singles)) / singles,
        chains=[trials.chain(looks) for _ in range(max(1, sequences // 4))],
    )


class _Trials:
    def __init__(self, pair: Pair, tolerance: float, draw: np.random.Generator) -> None:
        self._pair, self._tolerance, self._draw = pair, tolerance, draw
        both = np.concatenate(pair)
        self._mean = float(both.mean())
        self._is_binary = bool(np.isin(both, (0.0, 1.0)).all())

    def at_margin(self, errors: Floats) -> Floats:
        """As much worse as the margin has it: of right and wrong answers, by the share of them that
        may be lost."""
        if self._is_binary:
            return self._more_wrong(errors, GATES.evidence_drop)
        return GATES.margin * errors

    def worse(self, errors: Floats, factor: float) -> Floats:
        """Errors times a factor; of right and wrong answers, so many more wrong ones."""
        if self._is_binary:
            return self._more_wrong(errors, (factor - 1) * self._mean)
        return factor * errors

    def _more_wrong(self, errors: Floats, share: float) -> Floats:
        turned = self._draw.random(len(errors)) * (1 - self._mean) < share
        return np.maximum(errors, turned)

    def _drawn(self, count: int, share: float) -> Pair:
        """Equal errors of two models: swapped at random, and of the first only a share its own."""
        one, other = self._pair
        at = self._draw.integers(0, len(one), count)
        turned = self._draw.random(count) < 0.5
        first, second = np.where(turned, one[at], other[at]), np.where(turned, other[at], one[at])
        own = self._draw.random(count) < share
        return np.where(own, first, second), second

    def is_cheaper(
        self, made: Callable[[Floats], Floats], look: int, *, share: float = OTHER_SHARE
    ) -> bool:
        """Whether a model of half the size is promoted."""
        return self._is_promoted(look, share, made, lambda errors: errors, None)[0]

    def _is_promoted(
        self,
        look: int,
        share: float,
        made: Callable[[Floats], Floats],
        reigning: Callable[[Floats], Floats],
        best: Callable[[Floats], Floats] | None,
    ) -> tuple[bool, bool]:
        """Whether it is, and whether it surely is the best ever."""
        parts: list[list[Floats]] = []
        for stage in bounds.stages(len(self._pair[0])):
            first, second = self._drawn(stage.cases - stage.before, share)
            met = [made(first), reigning(second)]
            if best is not None:
                met.append(best(second))
            parts.append(met)
            new, opponent, *others = (np.concatenate(each) for each in zip(*parts, strict=True))
            ruling = gate.decide(
                new,
                opponent,
                tolerance=self._tolerance,
                look=look,
                stage=stage,
                gates=GATES,
                best=others[0] if others else None,
                costs=HALF,
            )
            if ruling.settled:
                break
        upper = ruling.best_upper
        is_promoted = ruling.verdict in ("better", "cheaper")
        return is_promoted, upper is not None and upper < 1.0

    def chain(self, looks: int) -> Chain:
        """So many looks at candidates each of which is worse than the champion by a step."""
        error = best = 1.0
        look = links = 0
        for _ in range(looks):
            look += 1
            promoted, is_best = self._is_promoted(
                look,
                OTHER_SHARE,
                lambda errors, now=error: self.worse(errors, now * STEP),  # type: ignore[misc]
                lambda errors, now=error: self.worse(errors, now),  # type: ignore[misc]
                None if error == best else lambda errors, now=best: self.worse(errors, now),  # type: ignore[misc]
            )
            if promoted:
                error, look, links = error * STEP, 0, links + 1
                best = error if is_best else best
        most = 1.0 + GATES.evidence_drop / self._mean if self._is_binary else GATES.margin
        return Chain(links, error, error > most * (1 + 1e-9))
