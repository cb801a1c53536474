"""The gate: is a candidate surely better than the champion, or as good and surely cheaper?

Paired differences on the same cases (`orchestrator.bounds`), with the significance spent over the
looks taken at one champion, so that trying again and again does not wear the gate down: the k-th
look gets α_k = 0.05·6/(π²k²), and all looks together 0.05. A look adds cases until its verdict is
clear or there are no more. Pure functions of their arguments, with no chance in them.

Conditions that all have to hold share no significance: where one does not, its own test errs at
most as often as said. Nor do the two questions about one model, since whoever is surely better is
surely within the margin too. Two models at one look halve it (`share`).
"""

import math

import msgspec
import numpy as np

from core.values import Check, CheckVerdict, Gates
from orchestrator import bounds, paired, vetoes, wording
from orchestrator.bounds import Floats, Stage
from orchestrator.rulings import Against, Costs, Failed, Question, Ruling, Verdict

ALPHA_TOTAL = 0.05


def alpha_at(look: int) -> float:
    """The significance of the k-th look, from 1; over all looks they sum to 0.05 (Basel sum)."""
    assert look >= 1, "looks are counted from 1"
    return ALPHA_TOTAL * 6.0 / (math.pi**2 * look**2)


def decide(
    new: Floats,
    opponent: Floats,
    *,
    tolerance: float,
    look: int,
    stage: Stage | None = None,
    against: Against = "champion",
    gates: Gates | None = None,
    best: Floats | None = None,
    costs: Costs | None = None,
    share: float = 1.0,
) -> Ruling:
    """The ruling on a candidate's errors against the champion's (or, where a node has none, the
    trivial predictor's) on the same cases; all are [cases], all those of the look up to this
    stage, by default its only one.

    `best` are the errors of the best ever where that is not the champion. Without `costs` it is
    only asked whether the candidate is better; what it costs vetoes nothing then.

    An error up to `tolerance` is evidence. A candidate with an error that is no number at least 0
    loses; the others' errors must be numbers.
    """
    assert new.shape == opponent.shape, "errors are compared on the same cases"
    assert new.ndim == 1, "one error a case"
    others = [opponent] if best is None else [opponent, best]
    assert not any(map(paired.unusable, others)), "the others' errors are numbers"
    stage, gates = stage or Stage(0, len(new), len(new)), gates or Gates()
    assert stage.cases == len(new), "a stage has all cases up to it"
    alpha = alpha_at(look) * share
    if unusable := paired.unusable(new):
        return _without_numbers(new, opponent, unusable, tolerance, alpha, against)
    trial = _Trial(new, opponent, best, tolerance, gates, stage, alpha)
    ruling, failed = _ruled(trial, against, costs)
    reasons = wording.of_ruling(ruling, failed, look, trial.differing, against, gates)
    return msgspec.structs.replace(ruling, reasons=reasons)


class _Trial:
    """One candidate's errors at one stage, and what is asked of them."""

    def __init__(
        self,
        new: Floats,
        opponent: Floats,
        best: Floats | None,
        tolerance: float,
        gates: Gates,
        stage: Stage,
        alpha: float,
    ) -> None:
        self.new, self.opponent = (
            np.minimum(new, paired.ERROR_MAX),
            np.minimum(opponent, paired.ERROR_MAX),
        )
        self.best = None if best is None else np.minimum(best, paired.ERROR_MAX)
        self.tolerance, self.gates, self.stage, self.alpha = tolerance, gates, stage, alpha
        self.spent = alpha * stage.share
        self.differing = int(np.sum(self.new != self.opponent))

    def fall(self, other: Floats) -> paired.Limit:
        """How far the evidence rate may have fallen below another's."""
        fell = (other <= self.tolerance).astype(np.float64) - (self.new <= self.tolerance)
        return paired.Limit(fell, self.gates.evidence_drop)

    def lower(self) -> list[paired.Limit]:
        """What a better one's errors are surely below: by their ratio, and by their mean."""
        return [
            paired.limit_of_ratio(self.new, self.opponent, self.gates.better_ratio),
            paired.Limit(self.new - self.opponent, 0.0),
        ]

    def within(self, other: Floats) -> list[paired.Limit]:
        """What the errors of one that is not worse are surely below.

        Of answers that are right or wrong not many more may be wrong than of evidence may be lost;
        a ratio of few wrong ones proves nothing. Of other errors that are mostly 0 the means are
        compared alone.
        """
        new, margin = self.new, self.gates.margin
        if paired.is_binary(new, other):
            return [paired.Limit(new - other, self.gates.evidence_drop, unseen=1.0)]
        above = new - margin * other
        if paired.method_for(new, other) == "log-ratio":
            return [
                paired.Limit(paired.log_ratios(new, other), math.log(margin)),
                paired.Limit(above, 0.0),
            ]
        return [paired.Limit(above, 0.0, unseen=float(max(new.max(), other.max())))]

    def of_best(self) -> list[paired.Limit]:
        """What is asked against the best ever, where that is another model."""
        return [] if self.best is None else [*self.within(self.best), self.fall(self.best)]

    def meets(self, limits: list[paired.Limit]) -> bool:
        """Whether all means are surely at most their limits."""
        return all(one.upper(self.spent) <= one.limit for one in limits)

    def is_hopeless(self, limits: list[paired.Limit]) -> bool:
        """Whether one of them will hardly be."""
        return any(one.is_hopeless(self.stage, self.alpha) for one in limits)

    def counts_as_within(self, other: Floats) -> bool:
        """Of right and wrong answers: whether no more are wrong than the margin has it, to the next
        whole case. What is surely so is far less, where nearly all are right."""
        if not paired.is_binary(self.new, other):
            return True
        return bool(self.new.sum() <= math.ceil(self.gates.margin * other.sum()))

    def is_within(self, other: Floats) -> bool:
        """Whether the errors are surely not above another's by more than the margin."""
        return self.counts_as_within(other) and self.meets(self.within(other))

    def fails(self, question: Question) -> Failed:
        """Which conditions are not met."""
        first, *more = self.lower() if question == "better" else self.within(self.opponent)
        is_strict = question == "better"
        upper = first.upper(self.spent)
        is_lower = upper < first.limit if is_strict else upper <= first.limit
        is_enough = True
        if is_strict and is_lower:
            is_enough = paired.tail_of_signs(self.new, self.opponent) <= self.spent / 2
        is_counted = is_strict or self.counts_as_within(self.opponent)
        is_best_kept = self.best is None or (
            self.is_within(self.best) and self.meets([self.fall(self.best)])
        )
        return Failed(
            ratio=not is_lower or not is_counted,
            few=not is_enough,
            difference=not self.meets(more),
            evidence=not self.meets([self.fall(self.opponent)]),
            best=not is_best_kept,
        )

    def may_yet(self, question: Question) -> bool:
        """Whether more cases may come to meet all conditions of a question."""
        asked = self.lower() if question == "better" else self.within(self.opponent)
        limits = [*asked, self.fall(self.opponent), *self.of_best()]
        return not self.stage.is_last and not self.is_hopeless(limits)


def _ruled(trial: _Trial, against: Against, costs: Costs | None) -> tuple[Ruling, Failed]:
    """The ruling but for its reasons, and which conditions on the errors failed."""
    gates = trial.gates
    ratio, ratio_upper = paired.ratios(trial.new, trial.opponent, gates.better_ratio, trial.spent)
    factor = vetoes.growth(gates, _surely(trial, trial.opponent)) if costs else 1.0
    question, failed = _question(trial, costs)
    factor = factor if question == "better" else 1.0
    asked = vetoes.checks_of(costs, gates, factor) if costs else ()
    verdict = _verdict(question, failed, asked, costs, gates)
    fall_upper = trial.fall(trial.opponent).upper(trial.spent)
    best = trial.opponent if trial.best is None and against == "champion" else trial.best
    ruling = Ruling(
        verdict=verdict,
        settled=not any(failed) or not _may_yet_win(trial, costs),
        question=question,
        against=against,
        method=paired.method_for(trial.new, trial.opponent),
        alpha=trial.alpha,
        cases=len(trial.new),
        error=float(trial.new.mean()),
        opponent_error=float(trial.opponent.mean()),
        evidence_rate=float(np.mean(trial.new <= trial.tolerance)),
        opponent_evidence_rate=float(np.mean(trial.opponent <= trial.tolerance)),
        reasons=wording.NONE,
        ratio=ratio,
        ratio_upper=ratio_upper,
        ratio_lower=paired.least_ratio(trial.new, trial.opponent, trial.spent),
        standing=paired.standing(trial.new, trial.opponent, trial.spent),
        difference_upper=bounds.upper(trial.new - trial.opponent, trial.spent),
        evidence_lower=0.0 - fall_upper,
        best_upper=None if best is None else _surely(trial, best),
        factor=factor,
    )
    checks = (*_of_errors(trial, question, failed, ruling, best), *asked)
    return msgspec.structs.replace(ruling, checks=checks), failed


def _surely(trial: _Trial, other: Floats) -> float | None:
    """What the ratio to another's errors surely does not exceed, neither case by case nor that of
    the means. Of the best ever, else who is lower by the one would make the other rise, again and
    again; of the champion, else much less of what hardly counts would pay for any cost.
    """
    ratio_upper = paired.ratios(trial.new, other, 1.0, trial.spent)[1]
    mean = float(other.mean())
    if ratio_upper is None or not mean:
        return None
    return max(ratio_upper, 1.0 + bounds.upper(trial.new - other, trial.spent) / mean)


def _question(trial: _Trial, costs: Costs | None) -> tuple[Question, Failed]:
    """Which of the two questions is answered: the second one where the first is not met, and what
    the candidate costs allows to ask it."""
    failed = trial.fails("better")
    if any(failed) and costs and vetoes.may_be_cheaper(costs, trial.gates):
        return "cheaper", trial.fails("cheaper")
    return "better", failed


def _verdict(
    question: Question,
    failed: Failed,
    asked: tuple[Check, ...],
    costs: Costs | None,
    gates: Gates,
) -> Verdict:
    if any(failed):
        return "reject"
    told = {one.verdict for one in asked}
    if question == "cheaper" and costs:
        told.add(vetoes.is_cheap(costs, gates))
    if "fail" in told:
        return "trade-off" if question == "better" else "reject"
    return "undecided" if "undecided" in told else question


def _may_yet_win(trial: _Trial, costs: Costs | None) -> bool:
    if trial.may_yet("better"):
        return True
    may_be_cheaper = costs is not None and vetoes.may_be_cheaper(costs, trial.gates)
    return may_be_cheaper and trial.may_yet("cheaper")


# ── what is told of the errors ──


def _of_errors(
    trial: _Trial, question: Question, failed: Failed, ruling: Ruling, best: Floats | None
) -> list[Check]:
    gates = trial.gates
    holds = not (failed.ratio or failed.few or failed.difference)
    asked = gates.better_ratio if question == "better" else gates.margin
    told = [_told(trial, "error", trial.opponent, asked, holds, question)]
    if best is not None:
        kept = not failed.best if trial.best is not None else trial.is_within(best)
        told.append(_told(trial, "best", best, gates.margin, kept, "cheaper"))
    evidence = Check(
        name="evidence",
        verdict="fail" if failed.evidence else "pass",
        value=ruling.evidence_rate - ruling.opponent_evidence_rate,
        bound=0.0 - gates.evidence_drop,  # -0.0 is no number to read
        lower=ruling.evidence_lower,
    )
    return [*told, evidence]


def _told(
    trial: _Trial, name: str, other: Floats, ratio: float, holds: bool, question: Question
) -> Check:
    """The check of a ratio; of right and wrong answers within a margin, that of a difference."""
    verdict: CheckVerdict = "pass" if holds else "fail"
    if question == "cheaper" and paired.is_binary(trial.new, other):
        (limit,) = trial.within(other)
        value, upper = float(limit.values.mean()), limit.upper(trial.spent)
        return Check(name=name, verdict=verdict, value=value, bound=limit.limit, upper=upper)
    value_or_none, upper_or_none = paired.ratios(trial.new, other, ratio, trial.spent)
    return Check(name=name, verdict=verdict, value=value_or_none, bound=ratio, upper=upper_or_none)


def _without_numbers(
    new: Floats,
    opponent: Floats,
    unusable: int,
    tolerance: float,
    alpha: float,
    against: Against,
) -> Ruling:
    return Ruling(
        verdict="reject",
        settled=True,
        against=against,
        method="log-ratio",
        alpha=alpha,
        cases=len(new),
        error=None,
        opponent_error=float(np.minimum(opponent, paired.ERROR_MAX).mean()),
        evidence_rate=float(np.mean(new <= tolerance)),
        opponent_evidence_rate=float(np.mean(opponent <= tolerance)),
        reasons=wording.of_no_numbers(unusable, len(new)),
        checks=(Check(name="error", verdict="fail"),),
    )
