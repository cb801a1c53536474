"""The figures of a verdict as they are recorded, beside those that were found.

In another environment than the recorded one they may differ by ROUNDING.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple, TypeAlias

import msgspec

from core import events, wire
from core.decide import verdicts
from core.events import CandidateVerdict, Reasons
from core.projections.rounds import Round
from core.values import BudgetVerdict, Check, Recommendation, Weighed
from orchestrator import gate, trial

ROUNDING = 1e-4
"""By so much of themselves figures of another environment may differ."""
NUMBER_CHARS_MAX = 40
"""Of a number in words: beyond that it is none of ours."""
CASES_TURNED = 2
"""So many cases may count as evidence in one environment and not in the other."""

Value: TypeAlias = str | int | float | None
PROMOTION = "promotion: "
"""Before what the log says of the champion that a verdict made."""
PUT_TO_GATE = ("better", "cheaper", "trade-off", "undecided", "reject")
"""Verdicts on those that were put to the gate."""
_find_numbers = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_NONE = Reasons(en="", ar="")


class Recorded(NamedTuple):
    """A decided round as the log tells of it, and whom it made champion, also of budgets."""

    row: Round
    decided: events.RoundDecided
    promotions: tuple[events.ChampionPromoted, ...] = ()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that is recorded otherwise than it is found; of the round where no candidate is
    named."""

    candidate_id: str = ""
    what: str
    recorded: Value
    found: Value


class Figure(NamedTuple):
    """One value as recorded and as found. `scale` is that of the errors it is drawn from, `cases`
    how many there were where it is a share of them."""

    difference: Difference
    scale: float = 0.0
    cases: int = 0

    def agrees(self, exact: bool) -> bool:
        """Whether they are the same, or may be in another environment."""
        one, other = self.difference.recorded, self.difference.found
        if exact or one == other:
            return one == other
        if isinstance(one, str) and isinstance(other, str):
            return _words_agree(one, other, self.scale)
        if isinstance(one, float) and isinstance(other, float):
            turned = CASES_TURNED / self.cases if self.cases else 0.0
            return abs(one - other) <= turned + ROUNDING * max(abs(one), abs(other))
        return False


def _words_agree(one: str, other: str, scale: float) -> bool:
    """Whether words differ by no more than the rounding of the numbers in them."""
    if _find_numbers.split(one) != _find_numbers.split(other):
        return False
    pairs = zip(_find_numbers.findall(one), _find_numbers.findall(other), strict=True)
    return all(_numbers_agree(*pair, scale) for pair in pairs)


def _numbers_agree(one: str, other: str, scale: float) -> bool:
    if one == other:
        return True
    if "." not in one + other and "e" not in one + other:
        return False  # counts and looks are not rounded
    try:
        values = [Decimal(text.replace(",", "")[:NUMBER_CHARS_MAX]) for text in (one, other)]
        finest = min(10.0 ** int(value.as_tuple().exponent) for value in values)
    except ArithmeticError:
        return False  # no figure of ours is as large as that
    first, second = map(float, values)
    return abs(first - second) <= 1.001 * finest + ROUNDING * (scale + max(first, second))


def picked(decided: events.RoundDecided) -> list[str]:
    """Whom the recorded judgement put to the gate."""
    return [one.candidate_id for one in decided.candidates if one.verdict in PUT_TO_GATE]


def of_judgement(
    recorded: Recorded, trace: trial.Trace, away: Mapping[str, str]
) -> Iterator[Figure]:
    """All that a verdict says, but for what it says of models that are away, and for what it could
    only say with them."""
    decided, found = recorded.decided, trace.verdict
    scale = scale_of(decided)
    figures: list[tuple[str, Value, Value]] = [
        ("verdict", decided.verdict, found.verdict),
        ("promoted", decided.promoted, found.promoted),
        ("look", decided.look, recorded.row.look),
        ("alpha", decided.alpha, found.alpha),
        ("cases", decided.cases, found.cases),
        ("champion error", decided.champion_error, found.champion_error),
        ("baseline error", decided.baseline_error, found.baseline_error),
        ("best ever's bound", decided.best_upper, found.best_upper),
        ("reasons, en", decided.reasons.en, found.reasons.en),
        ("reasons, ar", decided.reasons.ar, found.reasons.ar),
    ]
    if not away:
        figures += _of_recommendation(decided.recommendation, found.recommendation)
    for what, one, other in figures:
        yield Figure(Difference(what=what, recorded=one, found=other), scale)
    taken = {one.own: one.ruling.cases for one in trace.contests if one.ruling and one.costs}
    for before, after in pairs(decided, found):
        if after.candidate_id not in away:
            cases = taken.get(after.candidate_id, decided.cases)
            if before.verdict not in PUT_TO_GATE:
                cases = trace.ranked_on
            yield from _of_candidate(before, after, scale, cases)
    yield from _of_weighed(decided, trace, away)
    if not away:
        yield from _of_budgets(decided, found, scale)
    yield from _of_promotions(recorded, found, is_whole=not away)


def _of_recommendation(
    one: Recommendation | None, other: Recommendation | None
) -> list[tuple[str, Value, Value]]:
    return [
        (
            f"recommendation: {what}",
            getattr(one, what) if one else "",
            getattr(other, what) if other else "",
        )
        for what in ("action", "candidate_id")
    ] + [
        (
            f"recommendation: reasons, {language}",
            getattr(one.reasons if one else _NONE, language),
            getattr(other.reasons if other else _NONE, language),
        )
        for language in ("en", "ar")
    ]


def of_ranking(recorded: Recorded, trace: trial.Trace, away: Mapping[str, str]) -> Iterator[Figure]:
    """What does not depend on the gate: the ranking of those that it was not asked about, who was
    refused, and what the look left to spend."""
    decided, look = recorded.decided, recorded.row.look
    yield Figure(Difference(what="look", recorded=decided.look, found=look))
    if decided.cases:
        alpha = gate.alpha_at(look)
        yield Figure(Difference(what="alpha", recorded=decided.alpha, found=alpha))
    for before, after in pairs(decided, trace.verdict):
        if before.verdict == "refused" and before.candidate_id not in away:
            yield from _of_candidate(before, after, scale_of(decided), trace.ranked_on)
        elif before.verdict in ("outranked", "unjudged") and before.candidate_id in trace.ranked:
            error, rate = trace.ranked[before.candidate_id]
            figures = {"error": error, "evidence rate": rate}
            asked = {"error": before.error, "evidence rate": before.evidence_rate}
            for what, value in figures.items():
                one = Difference(
                    candidate_id=before.candidate_id, what=what, recorded=asked[what], found=value
                )
                yield Figure(one, cases=trace.ranked_on if what == "evidence rate" else 0)


def pairs(
    decided: events.RoundDecided, found: wire.Verdict
) -> Iterator[tuple[CandidateVerdict, CandidateVerdict]]:
    """What is recorded and found of each candidate; nothing in place of what there is not."""
    before, after = (
        {one.candidate_id: one for one in verdicts}
        for verdicts in (decided.candidates, found.candidates)
    )
    for name in {**after, **before}:
        nothing = CandidateVerdict(candidate_id=name, verdict="", reasons=Reasons(en="", ar=""))
        yield before.get(name, nothing), after.get(name, nothing)


def _of_candidate(
    before: CandidateVerdict, after: CandidateVerdict, scale: float, cases: int
) -> Iterator[Figure]:
    for what, one, other, share_of in (
        ("verdict", before.verdict, after.verdict, 0),
        ("error", before.error, after.error, 0),
        ("evidence rate", before.evidence_rate, after.evidence_rate, cases),
        ("ratio", before.ratio, after.ratio, 0),
        ("ratio's bound", before.ratio_upper, after.ratio_upper, 0),
        ("params", before.params, after.params, 0),
        ("bytes", before.bytes, after.bytes, 0),
        # Older judges did not tell the cases of each candidate.
        ("cases", before.cases or after.cases, after.cases, 0),
        ("reasons, en", before.reasons.en, after.reasons.en, 0),
        ("reasons, ar", before.reasons.ar, after.reasons.ar, 0),
    ):
        told = Difference(candidate_id=after.candidate_id, what=what, recorded=one, found=other)
        yield Figure(told, scale, share_of)
    yield from _of_checks(before, after, cases)


def _of_checks(before: CandidateVerdict, after: CandidateVerdict, cases: int) -> Iterator[Figure]:
    """The gates that a candidate came to, number by number."""
    one, other = ({check.name: check for check in each.gates} for each in (before, after))
    for name in {**other, **one}:
        nothing = Check(name=name, verdict="undecided")
        first, second = one.get(name, nothing), other.get(name, nothing)
        # A difference of shares, where it is no ratio, turns with single cases.
        is_share = name == "evidence" or (first.bound is not None and first.bound < 0.5)
        for what in ("verdict", "value", "bound", "lower", "upper"):
            told = Difference(
                candidate_id=after.candidate_id,
                what=f"{name}: {what}",
                recorded=getattr(first, what),
                found=getattr(second, what),
            )
            yield Figure(told, cases=cases if is_share else 0)


def _of_weighed(
    decided: events.RoundDecided, trace: trial.Trace, away: Mapping[str, str]
) -> Iterator[Figure]:
    """What was weighed, but for timings, which are taken as they are recorded."""
    one, other = (
        {weighed.candidate_id: weighed for weighed in each}
        for each in (decided.weighed, trace.verdict.weighed)
    )
    for name in {**other, **one}:
        if name in away:
            continue
        nothing = Weighed(candidate_id=name, error=-1.0, evidence_rate=-1.0, params=0, bytes=0)
        first, second = one.get(name, nothing), other.get(name, nothing)
        told = ["error", "evidence_rate", "params", "bytes", "memory_bytes", "shifted_error"]
        for what in told if away else [*told, "is_front"]:
            figure = Difference(
                candidate_id=name,
                what=f"weighed: {what.replace('_', ' ')}",
                recorded=getattr(first, what),
                found=getattr(second, what),
            )
            yield Figure(figure, cases=trace.ranked_on if what == "evidence_rate" else 0)


def _of_budgets(
    decided: events.RoundDecided, found: wire.Verdict, scale: float
) -> Iterator[Figure]:
    one, other = ({told.budget: told for told in each} for each in (decided.budgets, found.budgets))
    for name in {**other, **one}:
        nothing = BudgetVerdict(budget=name, reasons=_NONE, against="?")
        first, second = one.get(name, nothing), other.get(name, nothing)
        for what in (
            *("against", "promoted", "look", "alpha", "cases", "error", "champion_error"),
            *("ratio", "ratio_upper"),
        ):
            figure = Difference(
                what=f"budget {name}: {what.replace('_', ' ')}",
                recorded=getattr(first, what),
                found=getattr(second, what),
            )
            yield Figure(figure, scale)
        for language in ("en", "ar"):
            figure = Difference(
                what=f"budget {name}: reasons, {language}",
                recorded=getattr(first.reasons, language),
                found=getattr(second.reasons, language),
            )
            yield Figure(figure, scale)


def _of_promotions(recorded: Recorded, found: wire.Verdict, *, is_whole: bool) -> Iterator[Figure]:
    """What the log says of whom it promoted, right after the verdict. It may be missing where the
    end of the log was lost: `aghsan audit` tells that."""
    budgets = {one.budget: one.promoted for one in found.budgets}
    for one in recorded.promotions:
        if one.budget and is_whole:
            named = f"{PROMOTION}candidate of the budget {one.budget}"
            candidate_id = one.champion.candidate_id
            promoted = budgets.get(one.budget, "")
            yield Figure(Difference(what=named, recorded=candidate_id, found=promoted))
        elif not one.budget and recorded.decided.promoted:
            yield from _of_champion(one, recorded.decided, found)


def _of_champion(
    promoted: events.ChampionPromoted, decided: events.RoundDecided, found: wire.Verdict
) -> Iterator[Figure]:
    champion = promoted.champion
    own = next((one for one in found.candidates if one.candidate_id == found.promoted), None)
    for what, one, other, share_of in (
        ("candidate", champion.candidate_id, found.promoted, 0),
        ("error", champion.error, own.error if own else None, 0),
        ("baseline error", champion.baseline_error, found.baseline_error, 0),
        ("evidence rate", champion.evidence_rate, own.evidence_rate if own else None, 1),
        ("below baseline", champion.below_baseline, found.below_baseline, 0),
        ("is best", promoted.is_best, verdicts.is_best(found.against, found.best_upper), 0),
        ("params", champion.params, own.params if own else None, 0),
        ("bytes", champion.bytes, own.bytes if own else None, 0),
    ):
        told = Difference(what=PROMOTION + what, recorded=one, found=other)
        yield Figure(told, cases=share_of * decided.cases)


def scale_of(decided: events.RoundDecided) -> float:
    """The largest error that words speak of."""
    told = [decided.champion_error, *(one.error for one in decided.candidates)]
    return max((error for error in told if error is not None), default=0.0)
