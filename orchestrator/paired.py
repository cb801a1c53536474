"""Two models' errors on the same cases: by what they are compared, and what is sure of it."""

import math
from typing import NamedTuple

import numpy as np

from orchestrator import bounds
from orchestrator.bounds import Floats, Stage
from orchestrator.rulings import Method, Standing

ERROR_FLOOR = 1e-9
"""Errors below this count as this under the logarithm."""
ERROR_MAX = 1e100
"""Errors above this count as this, so that no sum of them overflows."""


def log_ratios(new: Floats, opponent: Floats) -> Floats:
    """log(new / opponent) of each case, both errors floored at 1e-9."""
    ratio = np.maximum(new, ERROR_FLOOR) / np.maximum(opponent, ERROR_FLOOR)
    return np.log(ratio)


def method_for(new: Floats, opponent: Floats) -> Method:
    """Ratios say nothing where most errors of either are exactly 0, or where all are 0 or 1."""
    mostly_zero = max(float(np.mean(new == 0)), float(np.mean(opponent == 0))) > 0.5
    return "mean-difference" if mostly_zero or is_binary(new, opponent) else "log-ratio"


def is_binary(new: Floats, opponent: Floats) -> bool:
    """Whether all are 0 or 1, so that they are counts of wrong answers."""
    return bool(np.isin(new, (0.0, 1.0)).all() and np.isin(opponent, (0.0, 1.0)).all())


def tail_of_signs(new: Floats, opponent: Floats) -> float:
    """How likely equal models are to differ so one-sidedly: the exact sign test.

    For errors of 0 and 1 this is McNemar's test (1947). Other errors weigh differently, so of them
    only the number of differing cases is used: m of them cannot show more than 2^-m.
    An interval needs this beside it: from five differing cases out of 2,048, all in the candidate's
    favour, it excludes 0, though one pair of equal models in 32 does that.
    """
    better, differing = int(np.sum(new < opponent)), int(np.sum(new != opponent))
    if not is_binary(new, opponent):
        better = differing
    term = at_least = math.comb(differing, better)
    for wins in range(better, differing):
        term = term * (differing - wins) // (wins + 1)
        at_least += term
    tail: float = at_least / 2**differing
    return tail


def unusable(errors: Floats) -> int:
    """How many are no finite number of at least 0."""
    return int(np.sum(~(np.isfinite(errors) & (errors >= 0))))


class Limit(NamedTuple):
    """A mean that has to lie surely below a limit. `unseen` is what a case that was not seen may
    add: where few differ, that none was seen to does not say that none will."""

    values: Floats
    limit: float
    unseen: float = 0.0

    def upper(self, alpha: float) -> float:
        """What the mean surely does not exceed."""
        more = self.unseen * math.log(2.0 / alpha) / len(self.values) if self.unseen else 0.0
        return bounds.upper(self.values, alpha) + more

    def is_hopeless(self, stage: Stage, alpha: float) -> bool:
        """Whether even more cases will hardly bring it below."""
        return bounds.hope(self.values, self.limit, stage, alpha) < bounds.HOPE_LEAST


def limit_of_ratio(new: Floats, other: Floats, ratio: float) -> Limit:
    """That errors are below another's times a ratio."""
    if method_for(new, other) == "log-ratio":
        return Limit(log_ratios(new, other), math.log(ratio))
    return Limit(new - ratio * other, 0.0)


def ratios(
    new: Floats, other: Floats, asked: float, spent: float
) -> tuple[float | None, float | None]:
    """The ratio of the errors, and what it surely does not exceed; None where there is none."""
    limit = limit_of_ratio(new, other, asked)
    upper = limit.upper(spent)
    if method_for(new, other) == "log-ratio":
        return math.exp(float(limit.values.mean())), math.exp(min(upper, 700.0))
    mean, error = float(other.mean()), float(new.mean())
    # Linear in the bound, so that it is below what is asked exactly where the bound is below 0;
    # no ratio is below 0, though a sum of floats may be.
    return (error / mean, max(0.0, asked + upper / mean)) if mean else (None, None)


def least_ratio(new: Floats, other: Floats, spent: float) -> float | None:
    """What the ratio of the errors is surely not below: the lower end of the interval whose upper
    end `ratios` gives. None where there is no ratio."""
    lower = _least(new, other, spent)
    if method_for(new, other) == "log-ratio":
        return math.exp(max(lower, -700.0))
    mean = float(other.mean())
    return max(0.0, 1.0 + lower / mean) if mean else None


def standing(new: Floats, other: Floats, spent: float) -> Standing:
    """Whether errors are surely lower than another's, or surely higher: by the interval, by the
    signs where few cases differ, and by their means, which may not say the opposite."""
    if _is_surely_lower(new, other, spent):
        return "lower"
    return "higher" if _is_surely_lower(other, new, spent) else "open"


def _is_surely_lower(new: Floats, other: Floats, spent: float) -> bool:
    limit = limit_of_ratio(new, other, 1.0)
    is_lower = limit.upper(spent) < limit.limit and bool(new.mean() < other.mean())
    return is_lower and tail_of_signs(new, other) <= spent / 2


def _least(new: Floats, other: Floats, spent: float) -> float:
    """The lower end of the interval of the mean logarithm of the ratio, or of the difference."""
    return -bounds.upper(-limit_of_ratio(new, other, 1.0).values, spent)
