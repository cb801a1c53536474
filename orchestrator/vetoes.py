"""What a candidate costs against the champion, and what that vetoes."""

import math

import numpy as np

from core.values import Check, CheckVerdict, Gates, Latency
from orchestrator import bounds, paired
from orchestrator.bounds import Floats
from orchestrator.rulings import Costs

ALPHA = 0.05
"""At which errors on shifted inputs surely got worse: a veto makes no promotion more likely."""


def growth(gates: Gates, ratio: float | None) -> float:
    """By how much the bounds of latency, size and memory grow for so low a ratio of the errors."""
    if ratio is None or ratio >= 1.0 or not gates.exchange:
        return 1.0
    if ratio <= 0.0:
        return max(1.0, gates.exchange_most)
    # By logarithms, so that no power overflows.
    grown = min(-math.log(ratio) * gates.exchange, math.log(max(1.0, gates.exchange_most)))
    return math.exp(grown)


def is_cheap(costs: Costs, gates: Gates) -> CheckVerdict:
    """Whether a model surely costs so much less that an equal error is enough."""
    if costs.size is not None and costs.size < gates.cheaper_size:
        return "pass"
    timed = costs.latency
    if timed is None or timed.against_upper is None or timed.against_lower is None:
        return "fail"
    if timed.against_upper < gates.cheaper_latency:
        return "pass"
    return "fail" if timed.against_lower >= gates.cheaper_latency else "undecided"


def may_be_cheaper(costs: Costs, gates: Gates) -> bool:
    """Whether an equal error would be enough: it costs less, and nothing else too much."""
    asked = checks_of(costs, gates, 1.0)
    return is_cheap(costs, gates) != "fail" and all(one.verdict != "fail" for one in asked)


def checks_of(costs: Costs, gates: Gates, factor: float) -> tuple[Check, ...]:
    """The checks of latency, size, memory and errors on shifted inputs, of those that are known."""
    checks = []
    if costs.latency is not None and costs.latency.against is not None:
        checks.append(_of_latency(costs.latency, gates.latency_ratio * factor))
    for name, value, bound in (
        ("size", costs.size, gates.size_ratio * factor),
        ("memory", costs.memory, gates.memory_ratio * factor),
    ):
        if value is not None:
            verdict: CheckVerdict = "pass" if value <= bound else "fail"
            checks.append(Check(name=name, verdict=verdict, value=value, bound=bound))
    if costs.shifted is not None:
        checks.append(_of_shifted(*costs.shifted, gates.shifted_ratio))
    return tuple(checks)


def _of_latency(timed: Latency, bound: float) -> Check:
    lower, upper = timed.against_lower, timed.against_upper
    assert lower is not None, "what is measured has an interval"
    assert upper is not None, "with two ends"
    verdict: CheckVerdict = "undecided"
    if upper <= bound or lower > bound:
        verdict = "pass" if upper <= bound else "fail"
    return Check(
        name="latency", verdict=verdict, value=timed.against, bound=bound, lower=lower, upper=upper
    )


def _of_shifted(new: Floats, other: Floats, bound: float) -> Check:
    """Whether answers beyond what models are trained on got worse: a veto where that is sure."""
    if paired.unusable(other):
        return Check(name="shifted", verdict="pass", bound=bound)  # it cannot get worse
    if paired.unusable(new):
        return Check(name="shifted", verdict="fail", bound=bound)
    new, other = np.minimum(new, paired.ERROR_MAX), np.minimum(other, paired.ERROR_MAX)
    limit = paired.limit_of_ratio(new, other, bound)
    is_surely = -bounds.upper(-limit.values, ALPHA) > limit.limit
    ratio, upper = paired.ratios(new, other, bound, ALPHA)
    verdict: CheckVerdict = "fail" if is_surely else "pass"
    return Check(name="shifted", verdict=verdict, value=ratio, bound=bound, upper=upper)
