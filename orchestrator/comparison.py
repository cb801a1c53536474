"""What is recorded of a round, against what was found when it was judged again.

In the environment that the verdict records every bit has to be the same. In another, figures may
differ by ROUNDING, and where so little can turn a verdict, nobody can tell it from there.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from core import events, wire
from core.events import CandidateVerdict, Reasons
from core.projections.rounds import Round
from orchestrator import gate, judge

ROUNDING = 1e-4
"""By so much of themselves figures of another environment may differ."""
NUMBER_CHARS_MAX = 40
"""Of a number in words: beyond that it is none of ours."""
CASES_TURNED = 2
"""So many cases may count as evidence in one environment and not in the other."""
ENVIRONMENT = ("torch", "numpy", "threads", "cpu_capability", "machine")
"""What the bits of a figure depend on, of what a verdict records."""

Kind: TypeAlias = Literal["agrees", "differs", "gone", "unclear"]
Value: TypeAlias = str | int | float | None
PROMOTION = "promotion: "
"""Before what the log says of the champion that a verdict made."""
_find_numbers = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


class Recorded(NamedTuple):
    """A decided round as the log tells of it; `champion` is whom it made one."""

    row: Round
    decided: events.RoundDecided
    champion: events.Champion | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that is recorded otherwise than it is found; of the round where no candidate is
    named."""

    candidate_id: str = ""
    what: str
    recorded: Value
    found: Value


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a round's record compares with its being judged again.

    It is `gone` where what decides it is not to be had, and `unclear` where nobody can tell from
    here. `environment` has what is other here than there: recorded, and found.
    """

    round_id: str
    node_id: str
    outcome: Kind
    verdict: str
    promoted: str
    figures: int
    differences: list[Difference] = []
    environment: dict[str, tuple[str, str]] = {}
    notes: list[Reasons] = []


class _Figure(NamedTuple):
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


def compare(recorded: Recorded, trace: judge.Trace, gone: Mapping[str, str]) -> Outcome:
    """What is recorded against what was found. `gone` are models whose files are not stored any
    more, and why: what does not depend on them is compared all the same."""
    decided, found = recorded.decided, trace.verdict
    away = {**gone, **trace.lacking}
    environment = _environment(decided.environment, found.environment)
    picked = _picked(decided)
    is_gone = bool(picked) and (picked in away or found.against in away)
    is_back = _was_unjudged(decided) and found.verdict != "void"
    told = _of_ranking if is_gone or is_back else _of_judgement
    figures = list(told(recorded, trace, away))
    wrong = [one.difference for one in figures if not one.agrees(exact=not environment)]
    notes = list(_notes_on_away(decided, found, away, picked))
    outcome: Kind = "agrees"
    if wrong and environment and all(_may_be_turned(one, recorded, trace) for one in wrong):
        outcome, notes = "unclear", [_NEAR, *notes]
    elif wrong:
        outcome = "differs"
    elif is_back:
        outcome, notes = "unclear", [_BACK, *notes]
    elif is_gone:
        outcome = "gone"
    return _outcome(recorded, outcome, len(figures), wrong, environment, notes)


def of_wrong_secret(recorded: Recorded, commitment: str) -> Outcome:
    """Where the recorded secret opens another commitment than that of the round."""
    wrong = Difference(
        what="sha256 of the secret", recorded=recorded.row.commitment, found=commitment
    )
    return _outcome(recorded, "differs", 0, [wrong], {}, [_WRONG_SECRET])


def _outcome(
    recorded: Recorded,
    outcome: Kind,
    figures: int,
    differences: list[Difference],
    environment: dict[str, tuple[str, str]],
    notes: list[Reasons],
) -> Outcome:
    return Outcome(
        round_id=recorded.row.round_id,
        node_id=recorded.row.node_id,
        outcome=outcome,
        verdict=recorded.decided.verdict,
        promoted=recorded.decided.promoted,
        figures=figures,
        differences=differences,
        environment=environment,
        notes=notes,
    )


def _environment(recorded: dict[str, str], found: dict[str, str]) -> dict[str, tuple[str, str]]:
    """What is other in the environments, of what bits depend on."""
    return {
        name: (recorded.get(name, ""), found[name])
        for name in ENVIRONMENT
        if recorded.get(name, "") != found[name]
    }


def _picked(decided: events.RoundDecided) -> str:
    """Whom the recorded judgement put to the gate, "" for nobody."""
    to_gate = (one for one in decided.candidates if one.verdict in ("better", "reject"))
    return next((one.candidate_id for one in to_gate), "")


def _was_unjudged(decided: events.RoundDecided) -> bool:
    """Whether sound candidates met no champion that could be measured."""
    return any(one.verdict == "unjudged" for one in decided.candidates)


# ── figures ──


def _of_judgement(
    recorded: Recorded, trace: judge.Trace, away: Mapping[str, str]
) -> Iterator[_Figure]:
    """All that a verdict says, but for what it says of models that are away."""
    decided, found = recorded.decided, trace.verdict
    scale = _scale(decided)
    for what, one, other in (
        ("verdict", decided.verdict, found.verdict),
        ("promoted", decided.promoted, found.promoted),
        ("look", decided.look, recorded.row.look),
        ("alpha", decided.alpha, found.alpha),
        ("cases", decided.cases, found.cases),
        ("champion error", decided.champion_error, found.champion_error),
        ("baseline error", decided.baseline_error, found.baseline_error),
        ("reasons, en", decided.reasons.en, found.reasons.en),
        ("reasons, ar", decided.reasons.ar, found.reasons.ar),
    ):
        yield _Figure(Difference(what=what, recorded=one, found=other), scale)
    picked = _picked(decided)
    for before, after in _pairs(decided, found):
        if after.candidate_id not in away:
            cases = decided.cases if after.candidate_id == picked else trace.ranked_on
            yield from _of_candidate(before, after, scale, cases)
    yield from _of_champion(recorded, found)


def _of_ranking(
    recorded: Recorded, trace: judge.Trace, away: Mapping[str, str]
) -> Iterator[_Figure]:
    """What does not depend on the gate: the ranking of those that it was not asked about, who was
    refused, and what the look left to spend."""
    decided, look = recorded.decided, recorded.row.look
    yield _Figure(Difference(what="look", recorded=decided.look, found=look))
    if decided.cases:
        alpha = gate.alpha_at(look)
        yield _Figure(Difference(what="alpha", recorded=decided.alpha, found=alpha))
    for before, after in _pairs(decided, trace.verdict):
        if before.verdict == "refused" and before.candidate_id not in away:
            yield from _of_candidate(before, after, _scale(decided), trace.ranked_on)
        elif before.verdict in ("outranked", "unjudged") and before.candidate_id in trace.ranked:
            error, rate = trace.ranked[before.candidate_id]
            figures = {"error": error, "evidence rate": rate}
            asked = {"error": before.error, "evidence rate": before.evidence_rate}
            for what, value in figures.items():
                one = Difference(
                    candidate_id=before.candidate_id, what=what, recorded=asked[what], found=value
                )
                yield _Figure(one, cases=trace.ranked_on if what == "evidence rate" else 0)


def _pairs(
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
) -> Iterator[_Figure]:
    for what, one, other, share_of in (
        ("verdict", before.verdict, after.verdict, 0),
        ("error", before.error, after.error, 0),
        ("evidence rate", before.evidence_rate, after.evidence_rate, cases),
        ("ratio", before.ratio, after.ratio, 0),
        ("ratio's bound", before.ratio_upper, after.ratio_upper, 0),
        ("params", before.params, after.params, 0),
        ("bytes", before.bytes, after.bytes, 0),
        ("reasons, en", before.reasons.en, after.reasons.en, 0),
        ("reasons, ar", before.reasons.ar, after.reasons.ar, 0),
    ):
        told = Difference(candidate_id=after.candidate_id, what=what, recorded=one, found=other)
        yield _Figure(told, scale, share_of)


def _of_champion(recorded: Recorded, found: wire.Verdict) -> Iterator[_Figure]:
    """What the log says of whom it promoted, right after the verdict. It may be missing where the
    end of the log was lost: `aghsan audit` tells that."""
    champion, decided = recorded.champion, recorded.decided
    if champion is None or not decided.promoted:
        return
    own = next((one for one in found.candidates if one.candidate_id == found.promoted), None)
    for what, one, other, share_of in (
        ("candidate", champion.candidate_id, found.promoted, 0),
        ("error", champion.error, own.error if own else None, 0),
        ("baseline error", champion.baseline_error, found.baseline_error, 0),
        ("evidence rate", champion.evidence_rate, own.evidence_rate if own else None, 1),
        ("below baseline", champion.below_baseline, found.below_baseline, 0),
        ("params", champion.params, own.params if own else None, 0),
        ("bytes", champion.bytes, own.bytes if own else None, 0),
    ):
        told = Difference(what=PROMOTION + what, recorded=one, found=other)
        yield _Figure(told, cases=share_of * decided.cases)


def _scale(decided: events.RoundDecided) -> float:
    """The largest error that words speak of."""
    told = [decided.champion_error, *(one.error for one in decided.candidates)]
    return max((error for error in told if error is not None), default=0.0)


# ── what nobody can tell ──


_RULING = {"verdict", "promoted", "reasons, en", "reasons, ar"}
_FIXED = {"look", "alpha", "baseline error", "params", "bytes"}
"""Neither who is picked nor where a judgement ends changes these."""


def _may_be_turned(one: Difference, recorded: Recorded, trace: judge.Trace) -> bool:
    """Whether rounding may have brought a difference about, by turning who was picked or how the
    gate ruled, when it looked in the other environment."""
    is_of_promotion = one.what.startswith(PROMOTION)
    if one.what == PROMOTION + "below baseline" and _is_as_the_baseline(trace):
        return True
    tied = _tied(trace)
    if len(tied) > 1:
        is_concerned = one.candidate_id in {"", *tied}
        return is_of_promotion or (is_concerned and one.what not in _FIXED)
    if not _is_near(recorded.row.look, trace):
        return False
    if one.candidate_id not in ("", _picked(recorded.decided)):
        return False
    if recorded.decided.cases != trace.verdict.cases:
        return is_of_promotion or one.what not in _FIXED
    return is_of_promotion or one.what in _RULING


def _is_as_the_baseline(trace: judge.Trace) -> bool:
    baseline = trace.verdict.baseline_error or 0.0
    own = (float(one.own.mean()) for one in trace.meetings[:1])
    return any(abs(mean - baseline) <= 2 * ROUNDING * baseline for mean in own)


def _tied(trace: judge.Trace) -> set[str]:
    """Candidates of which rounding decides who is picked."""
    errors_found = {name: error for name, (error, _) in trace.ranked.items()}
    least = min(errors_found.values(), default=0.0)
    return {name for name, error in errors_found.items() if error <= least * (1 + 2 * ROUNDING)}


def _is_near(look: int, trace: judge.Trace) -> bool:
    """Whether the gate rules otherwise at some stage when the errors are greater or smaller by
    ROUNDING. Errors that are 0 or 1 are counts, and are not rounded."""
    for stage, own, opponent in trace.meetings:
        if not np.isfinite(own).all():
            continue
        rulings = set()
        for factor in (1.0, 1.0 - ROUNDING, 1.0 + ROUNDING):
            # Equal errors stay equal, and what says 0 or 1 alone still does.
            is_kept = (own == opponent) | (own == 0.0) | (own == 1.0)
            ruling = gate.decide(
                np.where(is_kept, own, own * factor),
                opponent,
                tolerance=trace.tolerance,
                look=look,
                stage=stage,
            )
            rulings.add((ruling.verdict, ruling.settled))
        if len(rulings) > 1:
            return True
    return False


_WRONG_SECRET = Reasons(
    en="The recorded secret does not open the round's commitment, so the hidden cases are not those"
    " that were promised, and none was drawn.",
    ar="السر المسجَّل لا يفتح التزام الجولة، فليست حالاته المخفية هي الموعودة، ولم يُستخرج منها شيء.",
)
_NEAR = Reasons(
    en="A bound lies so near its limit that rounding may turn it: in the environment that the"
    " verdict records it may be as it is recorded. Judge it again there to know.",
    ar="أحد الحدود قريب من عتبته قربًا يجعل التقريب وحده قادرًا على قلب الحكم: فقد يكون الحكم في"
    " البيئة المسجَّلة كما سُجّل. أعد الحكم هناك لتعرف.",
)
_BACK = Reasons(
    en="The champion could not be measured when this was judged, and now it can: what the gate"
    " would have said then is not on record.",
    ar="تعذّر قياس البطل حين حُكم في هذه الجولة، وهو الآن ممكن: وليس في السجل ما كانت البوابة"
    " ستقوله.",
)


def _notes_on_away(
    decided: events.RoundDecided, found: wire.Verdict, away: Mapping[str, str], picked: str
) -> Iterator[Reasons]:
    """Which models cannot be measured any more, of those that once were."""
    agreeing = {one.candidate_id for one, other in _pairs(decided, found) if one == other}
    for name, why in away.items():
        if name == found.against and picked:
            yield Reasons(
                en=f"The champion {name} cannot be measured any more, and with it the gate's"
                f" ruling: {why}",
                ar=f"لم يعد قياس البطل {name} ممكنًا، ولا قياس حكم البوابة معه: {why}",
            )
        elif name != found.against and name not in agreeing:
            and_en = ", and with it the gate's ruling" if name == picked else ""
            and_ar = "، ولا قياس حكم البوابة معه" if name == picked else ""
            yield Reasons(
                en=f"The candidate {name} cannot be measured any more{and_en}: {why}",
                ar=f"لم يعد قياس المرشح {name} ممكنًا{and_ar}: {why}",
            )
