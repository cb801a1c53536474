"""The gate: is a candidate's error on the hidden cases surely lower than the champion's?

Paired differences on the same cases (`orchestrator.bounds`), with the significance spent over the
looks taken at one champion, so that trying again and again does not wear the gate down: the k-th
look gets α_k = 0.05·6/(π²k²), and all looks together 0.05. A look adds cases until its verdict is
clear or there are no more. Pure functions of their arguments, with no chance in them.
"""

import math
from typing import Literal

import msgspec
import numpy as np

from core.events import Reasons
from orchestrator import bounds
from orchestrator.bounds import Floats, Stage

ALPHA_TOTAL = 0.05
RATIO_MAX = 0.99
"""A better candidate's error is surely below this many times the champion's."""
EVIDENCE_DROP_MAX = 0.01
ERROR_FLOOR = 1e-9
"""Errors below this count as this under the logarithm."""
ERROR_MAX = 1e100
"""Errors above this count as this, so that no sum of them overflows."""
RATIO_SAID_MAX = 1_000

Against = Literal["champion", "trivial"]
Method = Literal["log-ratio", "mean-difference"]


class Ruling(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate measured and decided. Bounds are ends of two-sided intervals at the stage's
    share of `alpha`; where the verdict is not `settled`, more cases may change it.

    `ratio` compares the errors: the geometric mean of the cases' ratios, or the ratio of the means
    where the method is "mean-difference"; `ratio_upper` is surely not exceeded. Both are None where
    the errors cannot be compared.
    """

    verdict: Literal["better", "reject"]
    settled: bool
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
    difference_upper: float | None = None
    evidence_lower: float | None = None
    """How much the evidence rate surely did not fall below: negative where it may have fallen."""


def alpha_at(look: int) -> float:
    """The significance of the k-th look, from 1; over all looks they sum to 0.05 (Basel sum)."""
    assert look >= 1, "looks are counted from 1"
    return ALPHA_TOTAL * 6.0 / (math.pi**2 * look**2)


def log_ratios(new: Floats, opponent: Floats) -> Floats:
    """log(new / opponent) of each case, both errors floored at 1e-9."""
    ratio = np.maximum(new, ERROR_FLOOR) / np.maximum(opponent, ERROR_FLOOR)
    return np.log(ratio)


def method_for(new: Floats, opponent: Floats) -> Method:
    """Ratios say nothing where most errors of either are exactly 0, or where all are 0 or 1."""
    mostly_zero = max(float(np.mean(new == 0)), float(np.mean(opponent == 0))) > 0.5
    return "mean-difference" if mostly_zero or _is_binary(new, opponent) else "log-ratio"


def _is_binary(new: Floats, opponent: Floats) -> bool:
    return bool(np.isin(new, (0.0, 1.0)).all() and np.isin(opponent, (0.0, 1.0)).all())


def tail_of_signs(new: Floats, opponent: Floats) -> float:
    """How likely equal models are to differ so one-sidedly: the exact sign test.

    For errors of 0 and 1 this is McNemar's test (1947). Other errors weigh differently, so of them
    only the number of differing cases is used: m of them cannot show more than 2^-m.
    An interval needs this beside it: from five differing cases out of 2,048, all in the candidate's
    favour, it excludes 0, though one pair of equal models in 32 does that.
    """
    better, differing = int(np.sum(new < opponent)), int(np.sum(new != opponent))
    if not _is_binary(new, opponent):
        better = differing
    term = at_least = math.comb(differing, better)
    for wins in range(better, differing):
        term = term * (differing - wins) // (wins + 1)
        at_least += term
    tail: float = at_least / 2**differing
    return tail


def decide(
    new: Floats,
    opponent: Floats,
    *,
    tolerance: float,
    look: int,
    stage: Stage | None = None,
    against: Against = "champion",
) -> Ruling:
    """The ruling on a candidate's errors against the champion's (or, where a node has none, the
    trivial predictor's) on the same cases; both are [cases], all those of the look up to this
    stage, by default its only one.

    An error up to `tolerance` is evidence. A candidate with an error that is no number at least 0
    loses; the opponent's errors must be numbers.
    """
    assert new.shape == opponent.shape, "errors are compared on the same cases"
    assert new.ndim == 1, "one error a case"
    assert _unusable(opponent) == 0, "the opponent's errors are numbers"
    stage = stage or Stage(0, len(new), len(new))
    assert stage.cases == len(new), "a stage has all cases up to it"
    alpha = alpha_at(look)
    unusable = _unusable(new)
    if unusable:
        return _without_numbers(new, opponent, unusable, tolerance, alpha)
    new, opponent = np.minimum(new, ERROR_MAX), np.minimum(opponent, ERROR_MAX)
    measured, failed = _measured(new, opponent, tolerance, alpha, stage)
    differing = int(np.sum(new != opponent))
    reasons = _reasons(measured, failed, look, differing, against)
    return msgspec.structs.replace(measured, reasons=reasons)


class _Failed(msgspec.Struct, frozen=True, kw_only=True):
    ratio: bool
    few: bool
    difference: bool
    evidence: bool


def _measured(
    new: Floats, opponent: Floats, tolerance: float, alpha: float, stage: Stage
) -> tuple[Ruling, _Failed]:
    """The ruling but for its reasons, and which conditions failed."""
    method = method_for(new, opponent)
    by_ratios = method == "log-ratio"
    compared = log_ratios(new, opponent) if by_ratios else new - RATIO_MAX * opponent
    fall = (opponent <= tolerance).astype(np.float64) - (new <= tolerance)
    limits = [
        (compared, math.log(RATIO_MAX) if by_ratios else 0.0),
        (new - opponent, 0.0),
        (fall, EVIDENCE_DROP_MAX),
    ]
    spent = alpha * stage.share
    compared_upper, difference_upper, fall_upper = (
        bounds.upper(values, spent) for values, _ in limits
    )
    is_lower = compared_upper < limits[0][1]
    failed = _Failed(
        ratio=not is_lower,
        few=is_lower and tail_of_signs(new, opponent) > spent / 2,
        difference=difference_upper > 0,
        evidence=fall_upper > EVIDENCE_DROP_MAX,
    )
    is_rejected = any(msgspec.structs.astuple(failed))
    error, opponent_error = float(new.mean()), float(opponent.mean())
    ratio, ratio_upper = _ratios(by_ratios, compared, compared_upper, error, opponent_error)
    ruling = Ruling(
        verdict="reject" if is_rejected else "better",
        settled=not is_rejected or stage.is_last or _is_hopeless(limits, stage, alpha),
        method=method,
        alpha=alpha,
        cases=len(new),
        error=error,
        opponent_error=opponent_error,
        evidence_rate=float(np.mean(new <= tolerance)),
        opponent_evidence_rate=float(np.mean(opponent <= tolerance)),
        reasons=Reasons(ar="", en=""),
        ratio=ratio,
        ratio_upper=ratio_upper,
        difference_upper=difference_upper,
        evidence_lower=-fall_upper,
    )
    return ruling, failed


def _is_hopeless(limits: list[tuple[Floats, float]], stage: Stage, alpha: float) -> bool:
    return any(
        bounds.hope(values, limit, stage, alpha) < bounds.HOPE_LEAST for values, limit in limits
    )


def _ratios(
    by_ratios: bool, compared: Floats, upper: float, error: float, opponent_error: float
) -> tuple[float | None, float | None]:
    """The ratio of the errors, and what it surely does not exceed; None where there is none."""
    if by_ratios:
        return math.exp(float(compared.mean())), math.exp(upper)
    if opponent_error:
        # Linear in the bound, so that it is below 0.99 exactly where the bound is below 0.
        return error / opponent_error, RATIO_MAX + upper / opponent_error
    return None, None


def _unusable(errors: Floats) -> int:
    return int(np.sum(~(np.isfinite(errors) & (errors >= 0))))


def _without_numbers(
    new: Floats, opponent: Floats, unusable: int, tolerance: float, alpha: float
) -> Ruling:
    return Ruling(
        verdict="reject",
        settled=True,
        method="log-ratio",
        alpha=alpha,
        cases=len(new),
        error=None,
        opponent_error=float(np.minimum(opponent, ERROR_MAX).mean()),
        evidence_rate=float(np.mean(new <= tolerance)),
        opponent_evidence_rate=float(np.mean(opponent <= tolerance)),
        reasons=Reasons(
            en=f"Rejected: on {unusable:,} of {len(new):,} hidden cases its error is not a finite "
            "number of at least 0.",
            ar=f"مرفوض: في {unusable:,} من أصل {len(new):,} حالة مخفية ليس خطؤه عددًا منتهيًا "
            "لا يقل عن الصفر.",
        ),
    )


_OPPONENT: dict[Against, Reasons] = {
    "champion": Reasons(en="the champion", ar="البطل"),
    "trivial": Reasons(en="the trivial predictor", ar="المتنبئ البديهي"),
}


def _reasons(
    ruling: Ruling, failed: _Failed, look: int, differing: int, against: Against
) -> Reasons:
    whom = _OPPONENT[against]
    if ruling.verdict == "better":
        head_en, head_ar = f"Better than {whom.en}", f"أفضل من {whom.ar}"
    else:
        head_en, head_ar = f"Not surely better than {whom.en}", f"لم يثبت أنه أفضل من {whom.ar}"
    measured = _comparison(ruling, differing, whom)
    en = (
        f"{head_en}: on {ruling.cases:,} hidden cases {measured.en}, at look {look}, "
        f"α = {ruling.alpha:.2g}. "
    )
    ar = (
        f"{head_ar}: على {ruling.cases:,} حالة مخفية {measured.ar}، في النظرة {look}، "
        f"α = {ruling.alpha:.2g}. "
    )
    told = [*_faults(ruling, failed, differing)] or [_praise(ruling)]
    return Reasons(
        en=en + " ".join(reason.en for reason in told),
        ar=ar + " ".join(reason.ar for reason in told),
    )


def _comparison(ruling: Ruling, differing: int, whom: Reasons) -> Reasons:
    """What was measured. Where one of the two makes no error, there is no ratio to speak of."""
    own, opponent = f"{ruling.error:.4g}", f"{ruling.opponent_error:.4g}"
    if not differing and not ruling.error:
        return Reasons(
            en=f"neither this candidate nor {whom.en} makes an error",
            ar=f"لا يخطئ هذا المرشح ولا {whom.ar}",
        )
    if not differing:
        return Reasons(
            en=f"its errors are exactly those of {whom.en} (mean error {own})",
            ar=f"أخطاؤه هي أخطاء {whom.ar} نفسها تمامًا (متوسط الخطأ {own})",
        )
    if not ruling.opponent_error:
        return Reasons(
            en=f"{whom.en} makes no error, and this candidate's mean error is {own}",
            ar=f"لا يخطئ {whom.ar}، ومتوسط خطأ هذا المرشح {own}",
        )
    if not ruling.error:
        return Reasons(
            en=f"this candidate makes no error, and the mean error of {whom.en} is {opponent}",
            ar=f"لا يخطئ هذا المرشح، ومتوسط خطأ {whom.ar} {opponent}",
        )
    assert ruling.ratio is not None, "errors above 0 have a ratio"
    ratio = _rounded(ruling.ratio, ".3g")
    kind_en, kind_ar = (
        ("the geometric mean", "المتوسط الهندسي")
        if ruling.method == "log-ratio"
        else ("the ratio of the means", "نسبة المتوسطين")
    )
    return Reasons(
        en=f"its error is {ratio.en} times that of {whom.en} ({kind_en}; mean errors {own} "
        f"against {opponent})",
        ar=f"نسبة خطئه إلى خطأ {whom.ar} {ratio.ar} ({kind_ar}؛ متوسط الخطأ {own} مقابل "
        f"{opponent})",
    )


def _rounded(ratio: float, form: str) -> Reasons:
    """A ratio; beyond a thousand either way nobody reads its digits."""
    if ratio < 1 / RATIO_SAID_MAX:
        return Reasons(en=f"less than {1 / RATIO_SAID_MAX:g}", ar=f"أقل من {1 / RATIO_SAID_MAX:g}")
    if ratio > RATIO_SAID_MAX:
        return Reasons(en=f"more than {RATIO_SAID_MAX:,}", ar=f"أكثر من {RATIO_SAID_MAX:,}")
    return Reasons(en=f"{ratio:{form}}", ar=f"{ratio:{form}}")


def _praise(ruling: Ruling) -> Reasons:
    evidence = f"{ruling.evidence_rate:.3f}", f"{ruling.opponent_evidence_rate:.3f}"
    assert ruling.ratio_upper is not None, "nothing is better than no error"
    upper = f"{max(ruling.ratio_upper, 1 / RATIO_SAID_MAX):.4g}"
    return Reasons(
        en=f"The ratio is surely below {upper}, and {RATIO_MAX} was asked for; its "
        f"evidence rate is {evidence[0]} against {evidence[1]}.",
        ar=f"النسبة دون {upper} يقينًا، والمطلوب أن تكون دون {RATIO_MAX}؛ ونسبة الإجابات "
        f"المثبتة {evidence[0]} مقابل {evidence[1]}.",
    )


def _not_lower(ruling: Ruling, differing: int) -> Reasons:
    """Why the error is not surely lower."""
    if not ruling.opponent_error:
        return Reasons(en="No error is lower than none.", ar="وليس دون الصفر خطأ.")
    if not differing:
        return Reasons(en="Equal errors are no improvement.", ar="وتساوي الأخطاء ليس تحسنًا.")
    if not ruling.error:
        return _too_few(differing)
    assert ruling.ratio_upper is not None, "errors above 0 have a ratio"
    upper = _rounded(ruling.ratio_upper, ".4g")
    return Reasons(
        en=f"The ratio must surely be below {RATIO_MAX}, and may be {upper.en}.",
        ar=f"والواجب أن تكون النسبة دون {RATIO_MAX} يقينًا، وقد تبلغ {upper.ar}.",
    )


def _too_few(differing: int) -> Reasons:
    cases = "1 case" if differing == 1 else f"{differing:,} cases"
    return Reasons(
        en=f"The two differ on {cases} only, too few or too evenly to tell them apart.",
        ar=f"عدد الحالات التي يختلفان فيها {differing:,} فقط، وهذا لا يكفي للتمييز بينهما.",
    )


def _faults(ruling: Ruling, failed: _Failed, differing: int) -> list[Reasons]:
    faults = []
    if failed.ratio:
        faults.append(_not_lower(ruling, differing))
    if failed.few:
        faults.append(_too_few(differing))
    if failed.difference and ruling.error and ruling.opponent_error:
        faults.append(
            Reasons(
                en=f"Its mean error may be higher by {ruling.difference_upper:.3g}.",
                ar=f"قد يزيد متوسط خطئه بمقدار {ruling.difference_upper:.3g}.",
            )
        )
    if failed.evidence:
        fall = -(ruling.evidence_lower or 0.0)
        faults.append(
            Reasons(
                en=f"Its evidence rate, {ruling.evidence_rate:.3f} against "
                f"{ruling.opponent_evidence_rate:.3f}, may be lower by {fall:.3f}; "
                f"{EVIDENCE_DROP_MAX} is the most allowed.",
                ar=f"قد تنخفض نسبة إجاباته المثبتة ({ruling.evidence_rate:.3f} مقابل "
                f"{ruling.opponent_evidence_rate:.3f}) بمقدار {fall:.3f}، وأقصى المسموح "
                f"{EVIDENCE_DROP_MAX}.",
            )
        )
    return faults
