"""What the gate is asked, and what it says."""

from typing import Literal, NamedTuple, TypeAlias

import msgspec

from core.values import Check, Latency, Reasons
from orchestrator.bounds import Floats

Against: TypeAlias = Literal["champion", "trivial", "budget"]
"""Whom a candidate meets: the champion, the trivial predictor where none reigns, or the champion
of a budget."""
Method: TypeAlias = Literal["log-ratio", "mean-difference"]
Verdict: TypeAlias = Literal["better", "cheaper", "trade-off", "undecided", "reject"]
Question: TypeAlias = Literal["better", "cheaper"]
Standing: TypeAlias = Literal["lower", "open", "higher"]
"""Whether errors are surely lower than the opponent's, surely higher, or neither is sure."""


class Costs(NamedTuple):
    """What a candidate costs, in times of what the champion costs; None where that is not known.

    `shifted` are the errors of both on the same inputs beyond those that models are trained on,
    the candidate's first.
    """

    latency: Latency | None = None
    size: float | None = None
    memory: float | None = None
    shifted: tuple[Floats, Floats] | None = None


class Failed(NamedTuple):
    """Which conditions on the errors were not met, for one question."""

    ratio: bool
    few: bool
    difference: bool
    evidence: bool
    best: bool


class Ruling(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate measured and decided. Bounds are ends of two-sided intervals at the stage's
    share of `alpha`; where the verdict is not `settled`, more cases may change it.

    `ratio` compares the errors: the geometric mean of the cases' ratios, or the ratio of the means
    where the method is "mean-difference"; `ratio_upper` is surely not exceeded. Both are None where
    the errors cannot be compared. `checks` are of the `question` that was answered; `best_upper` is
    as `ratio_upper`, to the errors of the best ever.
    """

    verdict: Verdict
    settled: bool
    question: Question = "better"
    against: Against = "champion"
    method: Method
    alpha: float
    cases: int
    error: float | None
    opponent_error: float
    evidence_rate: float
    opponent_evidence_rate: float
    reasons: Reasons
    ratio: float | None = None
    ratio_upper: float | None = None
    ratio_lower: float | None = None
    """What the ratio is surely not below."""
    standing: Standing = "open"
    difference_upper: float | None = None
    evidence_lower: float | None = None
    """How much the evidence rate surely did not fall below: negative where it may have fallen."""
    best_upper: float | None = None
    factor: float = 1.0
    """By which the bounds of latency, size and memory grew for a lower error."""
    checks: tuple[Check, ...] = ()

    def check(self, name: str) -> Check | None:
        """The check of this name, None where it was not asked."""
        return next((one for one in self.checks if one.name == name), None)
