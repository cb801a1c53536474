"""The gate: is a candidate's error on the hidden cases surely lower than the champion's?

Paired bootstrap (Efron & Tibshirani 1993, chapter 8) on the same cases, with the significance spent
over the looks taken at one champion, so that trying again and again does not wear the gate down:
the k-th look gets α_k = 0.05·6/(π²k²), and all looks together 0.05 (WORKLOADS.md section 3 has the
measured rates). Pure functions of their arguments: the only chance is in `seed`.
"""

import math
import statistics
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from core.events import Reasons

ALPHA_TOTAL = 0.05
RESAMPLES = 4_000
RATIO_MAX = 0.99
"""A better candidate's error is surely below this many times the champion's."""
EVIDENCE_DROP_MAX = 0.01
ERROR_FLOOR = 1e-9
"""Errors below this count as this under the logarithm."""
ERROR_MAX = 1e100
"""Errors above this count as this, so that no sum of them overflows."""
TAIL_RESAMPLES_MIN = 10
RATIO_SAID_MAX = 1_000
_RESAMPLES_AT_ONCE = 500

Floats = npt.NDArray[np.float64]
Against = Literal["champion", "trivial"]
Method = Literal["log-ratio", "mean-difference"]


class Ruling(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate measured and decided. Bounds are ends of two-sided intervals at `alpha`.

    `ratio` compares the errors: the geometric mean of the cases' ratios, or the ratio of the means
    where the method is "mean-difference"; `ratio_upper` is surely not exceeded. Both are None where
    the errors cannot be compared.
    """

    verdict: Literal["better", "reject"]
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


def upper_bounds(values: Floats, alpha: float, seed: int) -> Floats:
    """Upper ends of the two-sided intervals of each column's mean; `values` is [cases, columns].

    The quantile 1 − α/2 of 4,000 bootstrap means. Where fewer than ten of them lie beyond that
    quantile they cannot resolve it (from the third look on; beyond the tenth or so it is simply
    their largest): there the normal approximation, which knows its tail, bounds it from below.
    """
    means = _bootstrap_means(values, seed)
    bounds: Floats = np.quantile(means, 1.0 - alpha / 2.0, axis=0)
    if alpha / 2.0 * RESAMPLES < TAIL_RESAMPLES_MIN:
        z = statistics.NormalDist().inv_cdf(1.0 - alpha / 2.0)
        spread = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        bounds = np.maximum(bounds, values.mean(axis=0) + z * spread)
    return bounds


def _bootstrap_means(values: Floats, seed: int) -> Floats:
    count = len(values)
    draw = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    rows = np.arange(_RESAMPLES_AT_ONCE)[:, None] * count
    for first in range(0, RESAMPLES, _RESAMPLES_AT_ONCE):
        # How often each case was drawn, then one product for all columns: 10 times faster than
        # gathering the drawn values.
        drawn = draw.integers(0, count, (_RESAMPLES_AT_ONCE, count)) + rows
        times = np.bincount(drawn.ravel(), minlength=_RESAMPLES_AT_ONCE * count)
        block = times.reshape(_RESAMPLES_AT_ONCE, count).astype(np.float64)
        means[first : first + _RESAMPLES_AT_ONCE] = block @ values / count
    return means


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
    The bootstrap needs this beside it: from five differing cases out of 2,048, all in the
    candidate's favour, its interval excludes 0, though one pair of equal models in 32 does that.
    """
    better, differing = int(np.sum(new < opponent)), int(np.sum(new != opponent))
    if not _is_binary(new, opponent):
        better = differing
    at_least = sum(math.comb(differing, wins) for wins in range(better, differing + 1))
    tail: float = at_least / 2**differing
    return tail


def decide(
    new: Floats,
    opponent: Floats,
    *,
    tolerance: float,
    look: int,
    seed: int,
    against: Against = "champion",
) -> Ruling:
    """The ruling on a candidate's errors against the champion's (or, where a node has none, the
    trivial predictor's) on the same cases; both are [cases].

    An error up to `tolerance` is evidence. A candidate with an error that is no number at least 0
    loses; the opponent's errors must be numbers.
    """
    assert new.shape == opponent.shape, "errors are compared on the same cases"
    assert new.ndim == 1, "one error a case"
    assert _unusable(opponent) == 0, "the opponent's errors are numbers"
    alpha = alpha_at(look)
    unusable = _unusable(new)
    if unusable:
        return _without_numbers(new, opponent, unusable, tolerance, alpha)
    new, opponent = np.minimum(new, ERROR_MAX), np.minimum(opponent, ERROR_MAX)
    measured, failed = _measured(new, opponent, tolerance, alpha, seed)
    differing = int(np.sum(new != opponent))
    reasons = _reasons(measured, failed, look, differing, against)
    return msgspec.structs.replace(measured, reasons=reasons)


class _Failed(msgspec.Struct, frozen=True, kw_only=True):
    ratio: bool
    few: bool
    difference: bool
    evidence: bool


def _measured(
    new: Floats, opponent: Floats, tolerance: float, alpha: float, seed: int
) -> tuple[Ruling, _Failed]:
    """The ruling but for its reasons, and which conditions failed."""
    method = method_for(new, opponent)
    by_ratios = method == "log-ratio"
    compared = log_ratios(new, opponent) if by_ratios else new - RATIO_MAX * opponent
    evidence_fall = (opponent <= tolerance).astype(np.float64) - (new <= tolerance)
    columns = np.stack([compared, new - opponent, evidence_fall], axis=1)
    compared_upper, difference_upper, fall_upper = upper_bounds(columns, alpha, seed).tolist()
    error, opponent_error = float(new.mean()), float(opponent.mean())
    ratio: float | None = None
    ratio_upper: float | None = None
    if by_ratios:
        ratio, ratio_upper = math.exp(float(compared.mean())), math.exp(compared_upper)
    elif opponent_error:
        # Linear in the bound, so that it is below 0.99 exactly where the bound is below 0.
        ratio, ratio_upper = error / opponent_error, RATIO_MAX + compared_upper / opponent_error
    is_lower = compared_upper < (math.log(RATIO_MAX) if by_ratios else 0.0)
    failed = _Failed(
        ratio=not is_lower,
        few=is_lower and not by_ratios and tail_of_signs(new, opponent) > alpha / 2,
        difference=difference_upper > 0,
        evidence=fall_upper > EVIDENCE_DROP_MAX,
    )
    ruling = Ruling(
        verdict="reject" if any(msgspec.structs.astuple(failed)) else "better",
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


def _unusable(errors: Floats) -> int:
    return int(np.sum(~(np.isfinite(errors) & (errors >= 0))))


def _without_numbers(
    new: Floats, opponent: Floats, unusable: int, tolerance: float, alpha: float
) -> Ruling:
    return Ruling(
        verdict="reject",
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
