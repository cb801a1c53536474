"""What a round comes to: who is put to the gate, who wins, and what is left to a person.

Pure functions of what was weighed on the ranking cases and of what the gate ruled on its own.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from core.events import replace
from core.gates import fits
from core.values import Budget, Gates, Latency, Recommendation, RoundVerdict, Weighed
from orchestrator import advice, vetoes
from orchestrator.rulings import Costs, Ruling


class Put(NamedTuple):
    """A candidate that was put to the gate, and what that ruled."""

    candidate_id: str
    ruling: Ruling


class Conclusion(NamedTuple):
    """What a round comes to; `main` is whose figures stand for it."""

    verdict: RoundVerdict
    promoted: str
    main: Put
    recommendation: Recommendation


# ── the front ──


def fronted(weighed: Sequence[Weighed]) -> tuple[Weighed, ...]:
    """The same models, marked where they are on the Pareto front of error, latency and bytes."""
    return tuple(
        replace(one, is_front=not any(_dominates(other, one) for other in weighed))
        for one in weighed
    )


def _dominates(one: Weighed, other: Weighed) -> bool:
    """Whether a model is nowhere worse than another, and somewhere better."""
    pairs = [(one.error, other.error), (float(one.bytes), float(other.bytes))]
    if one.latency is not None and other.latency is not None:
        pairs.append((one.latency.ratio, other.latency.ratio))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


# ── who is put to the gate ──


def picks(candidates: Sequence[Weighed], champion: Weighed | None, gates: Gates) -> tuple[str, ...]:
    """Who is put to the gate, the main one first: that of the lowest error on the ranking cases,
    and one more where that may cost too much or another may be cheaper.

    The second is the best of those that cost no more than is allowed, where the first is none of
    them; else the cheapest of those that are about as good as the champion.
    """
    if not candidates:
        return ()
    leader = min(candidates, key=_by_error)
    if champion is None:
        return (leader.candidate_id,)
    second = None
    if not _is_affordable(leader, champion, gates):
        lower = (
            one
            for one in candidates
            if one.error < champion.error and _is_affordable(one, champion, gates)
        )
        second = min(lower, key=_by_error, default=None)
    second = second or _cheapest(candidates, champion, gates)
    if second is None or second is leader:
        return (leader.candidate_id,)
    return leader.candidate_id, second.candidate_id


def _by_error(one: Weighed) -> tuple[float, int, str]:
    """Of equal ones the smaller, then by name: any order will do that is always the same."""
    return one.error, one.params, one.candidate_id


def costs_of(one: Weighed, champion: Weighed) -> Costs:
    """What a candidate costs against the champion, but for its errors on shifted inputs."""
    return Costs(
        latency=one.latency,
        size=_ratio(one.bytes, champion.bytes),
        memory=_ratio(one.memory_bytes, champion.memory_bytes),
    )


def _ratio(one: int, other: int) -> float | None:
    return one / other if one and other else None


def likely_growth(one: Weighed, champion: Weighed, gates: Gates) -> float:
    """By how much the bounds of costs may grow for a candidate, as the ranking cases have it."""
    return vetoes.growth(gates, one.error / champion.error if champion.error else None)


def is_clear(timed: Latency, one: Weighed, champion: Weighed, gates: Gates) -> bool:
    """Whether a latency is clear of the bounds that decide for a candidate, or decides nothing.

    By how much a bound grows is only sure at the gate: by nothing, or up to what is likely.
    """
    lower, upper = timed.against_lower, timed.against_upper
    if lower is None or upper is None or not is_about_as_good(one, champion, gates):
        return True
    bound, cheap = gates.latency_ratio, gates.cheaper_latency
    decisive = [(bound, bound * likely_growth(one, champion, gates))]
    if vetoes.is_cheap(costs_of(one, champion), gates) != "pass":
        decisive.append((cheap, cheap))
    return not any(lower <= most and least <= upper for least, most in decisive)


def _is_affordable(one: Weighed, champion: Weighed, gates: Gates) -> bool:
    factor = likely_growth(one, champion, gates)
    asked = vetoes.checks_of(costs_of(one, champion), gates, factor)
    return all(check.verdict != "fail" for check in asked)


def is_about_as_good(one: Weighed, champion: Weighed, gates: Gates) -> bool:
    """Whether a candidate is within the margin on the ranking cases."""
    return one.error <= gates.margin * champion.error


def _cheapest(candidates: Iterable[Weighed], champion: Weighed, gates: Gates) -> Weighed | None:
    eligible = (
        one
        for one in candidates
        if is_about_as_good(one, champion, gates)
        and vetoes.may_be_cheaper(costs_of(one, champion), gates)
    )

    def cost(one: Weighed) -> tuple[float, tuple[float, int, str]]:
        costs = costs_of(one, champion)
        timed = costs.latency.against if costs.latency else None
        return (timed or 1.0) * (costs.size or 1.0), _by_error(one)

    return min(eligible, key=cost, default=None)


# ── what it comes to ──


def concluded(
    node_id: str, put: Sequence[Put], weighed: Sequence[Weighed], champion_id: str
) -> Conclusion:
    """What a round comes to: whoever is surely better goes before who is only cheaper. Where none
    may be promoted, one that is better but costs too much is left to a person."""
    told = {one.candidate_id: one for one in weighed}
    by_verdict = {
        verdict: next((one for one in put if one.ruling.verdict == verdict), None)
        for verdict in ("better", "cheaper", "trade-off", "undecided")
    }
    traded, unclear = by_verdict["trade-off"], by_verdict["undecided"]
    verdict: RoundVerdict
    if won := by_verdict["better"] or by_verdict["cheaper"]:
        verdict, main = "promote", won
        others = {one.candidate_id: one.ruling for one in put if one is not won}
        recommendation = advice.promote(node_id, won.candidate_id, won.ruling, told, others)
    elif traded:
        verdict, main = "trade-off", traded
        recommendation = advice.ask(node_id, traded.candidate_id, traded.ruling, told)
    elif unclear:
        verdict, main = "undecided", unclear
        recommendation = advice.wait(unclear.candidate_id, unclear.ruling)
    else:
        verdict, main = "keep", put[0]
        recommendation = advice.keep(champion_id, main.candidate_id, main.ruling)
    return Conclusion(verdict, won.candidate_id if won else "", main, recommendation)


# ── budgets ──


def pick_for(budget: Budget, weighed: Iterable[Weighed]) -> str:
    """Who of the weighed is put to the gate of a budget, "" for nobody."""
    fitting = (one for one in weighed if fits(one, budget))
    best = min(fitting, key=_by_error, default=None)
    return best.candidate_id if best else ""
