"""How surely the mean of paired differences lies below a limit, looked at while cases are added.

The significance of one judgement is spent over its stages in proportion to the cases that are added
(the power family of Kim & DeMets 1987 with exponent 1, of the spending functions of Lan & DeMets
1983), and each stage is tested at its own share alone. By the union bound that holds whatever the
stages have in common, so nothing is assumed of how the sums grow.
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CASES_MIN, CASES_MAX = 2_048, 32_768
HOPE_LEAST = 0.05
"""A judgement that comes to be `better` less likely than so ends before its last stage."""
OPTIMISM = 1.0
"""By so many standard errors the truth may be better than what was seen, in that likelihood."""

Floats = npt.NDArray[np.float64]
_normal = statistics.NormalDist()


class Stage(NamedTuple):
    """A point at which a judgement may end: after `cases` of at most `cases_max`."""

    before: int
    cases: int
    cases_max: int

    @property
    def share(self) -> float:
        """Of the significance that is spent here."""
        return (self.cases - self.before) / self.cases_max

    @property
    def is_last(self) -> bool:
        """Whether there are no more cases."""
        return self.cases == self.cases_max


def stages(cases_max: int) -> Iterator[Stage]:
    """The stages of a judgement: each but the first doubles the cases, up to all there are."""
    assert cases_max > 0, "a judgement has cases"
    doubled = (CASES_MIN << power for power in itertools.count())
    sizes = [*itertools.takewhile(lambda size: size < cases_max, doubled), cases_max]
    for before, cases in itertools.pairwise([0, *sizes]):
        yield Stage(before, cases, cases_max)


def quantile(alpha: float, count: int) -> float:
    """Of Student's t with count - 1 degrees of freedom, exceeded with probability alpha / 2: its
    Cornish-Fisher expansion to second order (Abramowitz & Stegun 26.7.5)."""
    z, freedom = _normal.inv_cdf(1.0 - alpha / 2.0), max(1, count - 1)
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second


def upper(values: Floats, alpha: float) -> float:
    """The upper end of the two-sided interval of a mean, from cases [n].

    Student's, and beyond it where a long tail to the right makes that too small: by the skewness
    term of Johnson (1978), g (2 z^2 + 1) / 6 sqrt(n). A tail to the left brings it no nearer. One
    case bounds nothing.
    """
    if len(values) < 2:
        return math.inf
    mean, error, skewness = _moments(values)
    if not error:
        return mean
    z = quantile(alpha, len(values))
    longer = max(0.0, skewness) * (2 * z**2 + 1) / (6 * math.sqrt(len(values)))
    return mean + error * (z + longer)


def hope(values: Floats, limit: float, stage: Stage, alpha: float) -> float:
    """How likely the mean is found below a limit at the last stage, given what was seen at this one
    and a truth that is somewhat better: conditional power by B-values (Lan & Wittes 1988).

    `alpha` is that of the whole judgement. It only decides to give up early, which makes no
    promotion more likely.
    """
    mean, error, _ = _moments(values)
    if stage.is_last or not error:
        return float(mean < limit)
    seen, share = (limit - mean) / error, stage.cases / stage.cases_max
    *_, last = stages(stage.cases_max)
    asked = quantile(alpha * last.share, stage.cases_max)
    drift = (seen + OPTIMISM) / math.sqrt(share)
    expected = seen * math.sqrt(share) + drift * (1 - share)
    return _normal.cdf((expected - asked) / math.sqrt(1 - share))


def _moments(values: Floats) -> tuple[float, float, float]:
    """Mean, its standard error, and the skewness of the values."""
    mean = float(values.mean())
    away = values - mean
    squares = away * away
    variance = float(np.mean(squares))
    if len(values) < 2 or not variance:
        return mean, 0.0, 0.0
    skewness = float(np.mean(squares * away)) / variance**1.5  # a power takes ten times as long
    return mean, math.sqrt(variance / (len(values) - 1)), skewness
