"""What is recorded of a round, against what was found when it was judged again.

In the environment that the verdict records every bit has to be the same. In another, figures may
differ by ROUNDING, and where so little can turn a verdict, nobody can tell it from there.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from core import events, wire
from core.events import Reasons, replace
from core.gates import fits
from orchestrator import bounds, consensus, figures, trial
from orchestrator.contest import Contest, Meeting
from orchestrator.figures import PROMOTION, ROUNDING, Difference, Recorded

ENVIRONMENT = ("torch", "numpy", "threads", "cpu_capability", "machine")
"""What the bits of a figure depend on, of what a verdict records."""

Kind: TypeAlias = Literal["agrees", "differs", "gone", "unclear"]


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


def compare(recorded: Recorded, trace: trial.Trace, gone: Mapping[str, str]) -> Outcome:
    """What is recorded against what was found. `gone` are models whose files are not stored any
    more, and why: what does not depend on them is compared all the same."""
    decided, found = recorded.decided, trace.verdict
    away = {**gone, **trace.lacking}
    environment = _environment(decided.environment, found.environment)
    picked = figures.picked(decided)
    is_gone = bool(picked) and not away.keys().isdisjoint({*picked, *_opponents(recorded)})
    is_back = _was_unjudged(decided) and found.verdict != "void"
    told = figures.of_ranking if is_gone or is_back else figures.of_judgement
    asked = list(told(recorded, trace, away))
    wrong = [one.difference for one in asked if not one.agrees(exact=not environment)]
    notes = list(_notes_on_away(recorded, found, away, picked))
    outcome: Kind = "agrees"
    if wrong and environment and all(_may_be_turned(one, recorded, trace) for one in wrong):
        outcome, notes = "unclear", [_NEAR, *notes]
    elif wrong:
        outcome = "differs"
    elif is_back:
        outcome, notes = "unclear", [_BACK, *notes]
    elif is_gone:
        outcome = "gone"
    return _outcome(recorded, outcome, len(asked), wrong, environment, notes)


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


def _opponents(recorded: Recorded) -> list[str]:
    """Whom those that were put to the gate had to meet."""
    known = (recorded.row.champion, recorded.row.best)
    return [one.candidate_id for one in known if one is not None]


def _was_unjudged(decided: events.RoundDecided) -> bool:
    """Whether sound candidates met no champion that could be measured."""
    return any(one.verdict == "unjudged" for one in decided.candidates)


# ── what nobody can tell ──


_RULING = {"verdict", "promoted", "reasons, en", "reasons, ar"}
_FIXED = {"look", "alpha", "baseline error", "params", "bytes"}
"""Neither who is picked nor where a judgement ends changes these."""


def _may_be_turned(one: Difference, recorded: Recorded, trace: trial.Trace) -> bool:
    """Whether rounding may have brought a difference about, by turning who was picked or how the
    gate ruled, when it looked in the other environment."""
    if one.what == PROMOTION + "below baseline" and _is_as_the_baseline(trace):
        return True
    near = [contest for contest in trace.contests if _is_near(contest)]
    close = {contest.budget for contest in near} | set(_tied_budgets(recorded, trace))
    if any(_is_of_budget(one, budget) for budget in close):
        return True
    turned = _turned_on_front(trace)
    if one.what == "weighed: is front":
        return one.candidate_id in turned
    if turned and one.what.startswith("recommendation: reasons"):
        return True  # they tell who is on the front
    is_fixed = one.what in _FIXED or one.what.startswith("weighed: ")
    is_advice = one.what.startswith((PROMOTION, "recommendation: "))
    tied = _tied(recorded, trace)
    if len(tied) > 1:
        is_concerned = one.candidate_id in {"", *tied}
        return is_advice or (is_concerned and not is_fixed)
    owns = {contest.own for contest in near if not contest.budget}
    if not owns or one.candidate_id not in {"", *owns}:
        return False
    if recorded.decided.cases != trace.verdict.cases or one.candidate_id:
        return is_advice or not is_fixed
    return is_advice or one.what in _RULING


def _is_of_budget(one: Difference, budget: str) -> bool:
    named = (f"budget {budget}: ", f"{PROMOTION}candidate of the budget {budget}")
    return bool(budget) and one.what.startswith(named)


def _is_as_the_baseline(trace: trial.Trace) -> bool:
    baseline = trace.verdict.baseline_error or 0.0
    first = [met for contest in trace.contests for met in contest.meetings[:1]]
    return any(abs(met.own.mean() - baseline) <= 2 * ROUNDING * baseline for met in first)


def _tied(recorded: Recorded, trace: trial.Trace) -> set[str]:
    """Candidates of which rounding decides who is picked."""
    told = {one.candidate_id: one for one in trace.verdict.weighed}
    champion = told.get(trace.verdict.against)
    rivals = {
        name: replace(told[name], error=error)
        for name, (error, _) in trace.ranked.items()
        if name in told
    }
    outcomes = {
        consensus.picks(
            [
                replace(one, error=one.error * (factor if name == turned else 1.0))
                for name, one in rivals.items()
            ],
            champion,
            recorded.row.gates,
        )
        for turned in rivals
        for factor in (1.0 - 2 * ROUNDING, 1.0, 1.0 + 2 * ROUNDING)
    }
    return {name for names in outcomes for name in names} if len(outcomes) > 1 else set()


def _turned_on_front(trace: trial.Trace) -> set[str]:
    """Models of which rounding decides whether they are on the front."""
    told = trace.verdict.weighed
    fronts = [
        consensus.fronted(
            [replace(one, error=one.error * (factor if one is turned else 1.0)) for one in told]
        )
        for turned in told
        for factor in (1.0 - 2 * ROUNDING, 1.0, 1.0 + 2 * ROUNDING)
    ]
    marks = {(one.candidate_id, one.is_front) for front in fronts for one in front}
    return {name for name, is_front in marks if (name, not is_front) in marks}


def _tied_budgets(recorded: Recorded, trace: trial.Trace) -> Iterator[str]:
    """Budgets of which rounding decides who is picked."""
    for budget in recorded.row.gates.budgets:
        fitting = [one for one in trace.verdict.weighed if fits(one, budget)]
        first, second, *_ = [*sorted(one.error for one in fitting), np.inf, np.inf]
        if len(fitting) > 1 and second <= first * (1 + 2 * ROUNDING):
            yield budget.name


def _is_near(contest: Contest) -> bool:
    """Whether the gate rules otherwise at some stage when the errors are greater or smaller by
    ROUNDING. Errors that are 0 or 1 are counts, and are not rounded."""
    for met in contest.meetings:
        if not np.isfinite(met.own).all():
            continue
        rulings = {
            (ruling.verdict, ruling.settled, ruling.standing)
            for factor in (1.0, 1.0 - ROUNDING, 1.0 + ROUNDING)
            for ruling in [_turned(contest, factor).ruled(_nudged(met, factor))]
        }
        if len(rulings) > 1:
            return True
    return False


def _nudged(met: Meeting, factor: float) -> Meeting:
    """Errors as another environment may round them."""
    return met._replace(own=_times(met.own, met.opponent, factor))


def _turned(contest: Contest, factor: float) -> Contest:
    """The same question, with the errors on shifted inputs rounded as another may round them."""
    costs = contest.costs
    if costs is None or costs.shifted is None:
        return contest
    own, other = costs.shifted
    rounded = costs._replace(shifted=(_times(own, other, factor), other))
    return dataclasses.replace(contest, costs=rounded)


def _times(own: bounds.Floats, other: bounds.Floats, factor: float) -> bounds.Floats:
    """Equal errors stay equal, and what says 0 or 1 alone still does."""
    is_kept = (own == other) | (own == 0.0) | (own == 1.0)
    return np.where(is_kept, own, own * factor)


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
    recorded: Recorded, found: wire.Verdict, away: Mapping[str, str], picked: list[str]
) -> Iterator[Reasons]:
    """Which models cannot be measured any more, of those that once were."""
    pairs = figures.pairs(recorded.decided, found)
    agreeing = {one.candidate_id for one, other in pairs if one == other}
    opponents = {one.candidate_id: one for one in (recorded.row.best, recorded.row.champion) if one}
    for name, why in away.items():
        if name in opponents and picked:
            is_champion = opponents[name] == recorded.row.champion
            what_en = "champion" if is_champion else "best ever"
            what_ar = "البطل" if is_champion else "الأفضل على الإطلاق"
            yield Reasons(
                en=f"The {what_en} {name} cannot be measured any more, and with it the gate's"
                f" ruling: {why}",
                ar=f"لم يعد قياس {what_ar} {name} ممكنًا، ولا معرفة حكم البوابة معه: {why}",
            )
        elif name not in opponents and name not in agreeing:
            and_en = ", and with it the gate's ruling" if name in picked else ""
            and_ar = "، ولا معرفة حكم البوابة معه" if name in picked else ""
            yield Reasons(
                en=f"The model {name} cannot be measured any more{and_en}: {why}",
                ar=f"لم يعد قياس النموذج {name} ممكنًا{and_ar}: {why}",
            )
