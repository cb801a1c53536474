"""The gate's rulings in words, in Arabic and English."""

from collections.abc import Callable

from core.values import Check, Gates, Reasons
from orchestrator.rulings import Against, Failed, Ruling

RATIO_SAID_MAX = 1_000
NONE = Reasons(en="", ar="")

OPPONENT: dict[Against, Reasons] = {
    "champion": Reasons(en="the champion", ar="البطل"),
    "trivial": Reasons(en="the trivial predictor", ar="المتنبئ البديهي"),
    "budget": Reasons(en="the champion of this budget", ar="بطل هذه الميزانية"),
}
_WHAT = {
    "latency": Reasons(en="latency", ar="زمن إجابته"),
    "size": Reasons(en="size", ar="حجمه"),
    "memory": Reasons(en="peak memory", ar="ذروة ذاكرته"),
    "shifted": Reasons(
        en="error on inputs beyond those of training", ar="خطؤه على مدخلات خارج نطاق التدريب"
    ),
}


def joined(told: list[Reasons]) -> Reasons:
    """Sentences, one after another."""
    return Reasons(
        en=" ".join(reason.en for reason in told), ar=" ".join(reason.ar for reason in told)
    )


def of_no_numbers(unusable: int, cases: int) -> Reasons:
    """Where a candidate's errors are none."""
    return Reasons(
        en=f"Rejected: on {unusable:,} of {cases:,} hidden cases its error is not a finite "
        "number of at least 0.",
        ar=f"مرفوض: في {unusable:,} من أصل {cases:,} حالة مخفية ليس خطؤه عددًا منتهيًا "
        "لا يقل عن الصفر.",
    )


def of_ruling(
    ruling: Ruling, failed: Failed, look: int, differing: int, against: Against, gates: Gates
) -> Reasons:
    """A ruling: what it says, what was measured, and what decided it."""
    whom = OPPONENT[against]
    measured, head = _comparison(ruling, differing, whom), _head(ruling, failed, differing, whom)
    figures = Reasons(
        en=f"On {ruling.cases:,} hidden cases {measured.en}, at look {look}, "
        f"α = {ruling.alpha:.2g}.",
        ar=f"على {ruling.cases:,} حالة مخفية {measured.ar}، في النظرة {look}، "
        f"α = {ruling.alpha:.2g}.",
    )
    if any(failed):
        told = _faults(ruling, failed, differing, gates)
    else:
        told = [_praise(ruling, gates), *of_costs(ruling)]
    return joined([head, figures, *told])


def _head(ruling: Ruling, failed: Failed, differing: int, whom: Reasons) -> Reasons:
    """The verdict in one sentence, without a figure but what vetoes it."""
    match ruling.verdict:
        case "better":
            return Reasons(en=f"Better than {whom.en}.", ar=f"أفضل من {whom.ar}.")
        case "cheaper":
            return Reasons(
                en=f"As good as {whom.en}, and cheaper.", ar=f"ليس دون {whom.ar}، وهو أرخص."
            )
        case "trade-off":
            but = of_veto(ruling)
            return Reasons(en=f"Better than {whom.en}{but.en}.", ar=f"أفضل من {whom.ar}{but.ar}.")
        case "undecided" if ruling.question == "better":
            return Reasons(
                en=f"Better than {whom.en}, but undecided in what it costs.",
                ar=f"أفضل من {whom.ar}، لكن كلفته لم تُحسم.",
            )
        case "undecided":
            return Reasons(
                en=f"As good as {whom.en}, but whether it is cheaper is undecided.",
                ar=f"ليس دون {whom.ar}، لكن لم يُحسم هل هو أرخص.",
            )
        case "reject":
            return _head_of_rejected(ruling, failed, differing, whom)


def _head_of_rejected(ruling: Ruling, failed: Failed, differing: int, whom: Reasons) -> Reasons:
    if ruling.standing == "higher":
        return Reasons(en=f"Surely worse than {whom.en}.", ar=f"أسوأ من {whom.ar} يقينًا.")
    if ruling.question == "cheaper":
        return Reasons(
            en=f"Neither surely better than {whom.en}, nor surely as good and cheaper.",
            ar=f"لم يثبت أنه أفضل من {whom.ar}، ولا أنه ليس دونه وهو أرخص.",
        )
    if not differing:
        return Reasons(
            en=f"No better than {whom.en}, and no worse.", ar=f"ليس أفضل من {whom.ar} ولا دونه."
        )
    if failed.difference and not (failed.ratio or failed.few):
        return Reasons(
            en=f"Better than {whom.en} case by case, but not surely in the mean.",
            ar=f"أفضل من {whom.ar} حالةً حالة، لكن لم يثبت ذلك في المتوسط.",
        )
    if ruling.standing == "lower" and not (failed.evidence or failed.best):
        return Reasons(
            en=f"Better than {whom.en}, but not surely by as much as is asked.",
            ar=f"أفضل من {whom.ar}، لكن لم يثبت أنه أفضل بالقدر المطلوب.",
        )
    if ruling.standing == "lower":
        return Reasons(
            en=f"Its error is lower than that of {whom.en}, but not all that is asked is sure.",
            ar=f"خطؤه أقل من خطأ {whom.ar}، لكن لم يثبت كل ما يُطلب منه.",
        )
    return Reasons(
        en=f"Not surely better than {whom.en}: the two cannot be told apart yet.",
        ar=f"لم يثبت أنه أفضل من {whom.ar}: لا يمكن التمييز بينهما بعد.",
    )


def of_veto(ruling: Ruling) -> Reasons:
    """What keeps a better one from being promoted, as the end of a sentence: that it costs too
    much, or that it errs more on inputs beyond those of training."""
    broken = [one for one in ruling.checks if one.verdict == "fail"]
    shifted = next((one for one in broken if one.name == "shifted"), None)
    if shifted is None:
        return Reasons(en=", but it costs more than is allowed", ar="، لكن كلفته فوق المسموح")
    by = Reasons(en="its answers there are no numbers", ar="ليست إجاباته عليها أعدادًا")
    if shifted.value is not None:
        ratio = rounded(shifted.value, ".3g")
        by = Reasons(
            en=f"{ratio.en} times, {shifted.bound:.3g} is allowed",
            ar=f"نسبة خطئه هناك إلى خطأ البطل {ratio.ar}، والمسموح {shifted.bound:.3g}",
        )
    worse = Reasons(
        en=f" on usual inputs, but worse on inputs beyond those of training ({by.en})",
        ar=f" على المدخلات المعتادة، لكنه أسوأ على مدخلات خارج نطاق التدريب ({by.ar})",
    )
    if len(broken) == 1:
        return worse
    return Reasons(
        en=f"{worse.en}, and it costs more than is allowed", ar=f"{worse.ar}، وكلفته فوق المسموح"
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
    ratio = rounded(ruling.ratio, ".3g")
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


def rounded(ratio: float, form: str) -> Reasons:
    """A ratio; beyond a thousand either way nobody reads its digits."""
    if ratio < 1 / RATIO_SAID_MAX:
        return Reasons(en=f"less than {1 / RATIO_SAID_MAX:g}", ar=f"أقل من {1 / RATIO_SAID_MAX:g}")
    if ratio > RATIO_SAID_MAX:
        return Reasons(en=f"more than {RATIO_SAID_MAX:,}", ar=f"أكثر من {RATIO_SAID_MAX:,}")
    return Reasons(en=f"{ratio:{form}}", ar=f"{ratio:{form}}")


def _praise(ruling: Ruling, gates: Gates) -> Reasons:
    """What is sure of the errors."""
    rates = f"{ruling.evidence_rate:.3f}", f"{ruling.opponent_evidence_rate:.3f}"
    evidence = Reasons(
        en=f"its evidence rate is {rates[0]} against {rates[1]}.",
        ar=f"ونسبة الإجابات المثبتة {rates[0]} مقابل {rates[1]}.",
    )
    if ruling.question == "cheaper":
        within = _within(ruling, gates)
        return Reasons(en=f"{within.en}; {evidence.en}", ar=f"{within.ar}؛ {evidence.ar}")
    assert ruling.ratio_upper is not None, "nothing is better than no error"
    upper = f"{max(ruling.ratio_upper, 1 / RATIO_SAID_MAX):.4g}"
    return Reasons(
        en=f"The ratio is surely below {upper}, and {gates.better_ratio:g} was asked for; "
        f"{evidence.en}",
        ar=f"النسبة دون {upper} يقينًا، والمطلوب أن تكون دون {gates.better_ratio:g}؛ {evidence.ar}",
    )


def _within(ruling: Ruling, gates: Gates) -> Reasons:
    """How far the error of one that is not worse surely is from being so."""
    check = ruling.check("error")
    assert check is not None, "it was asked"
    assert check.upper is not None, "and compared"
    if check.bound == gates.margin:
        return Reasons(
            en=f"The ratio is surely below {check.upper:.4g}, and {gates.margin:g} is allowed",
            ar=f"النسبة دون {check.upper:.4g} يقينًا، والمسموح {gates.margin:g}",
        )
    upper = max(0.0, check.upper)
    return Reasons(
        en=f"Surely no more than {upper:.2%} more of its answers are wrong, and "
        f"{check.bound:.2%} are allowed",
        ar=f"لا تزيد نسبة إجاباته الخاطئة يقينًا بأكثر من {upper:.2%}، والمسموح {check.bound:.2%}",
    )


def of_costs(ruling: Ruling) -> list[Reasons]:
    """The costs that decide: those that break a bound or cannot be told, or, where none does, all
    that were measured. What `of_veto` tells is left to it."""
    asked = [one for one in ruling.checks if one.name in _WHAT]
    broken = [one for one in asked if one.verdict == "fail"]
    unclear = [one for one in asked if one.verdict == "undecided"]
    if broken:
        return [_of_bound(one, _broken) for one in broken if one.name != "shifted"]
    if unclear:
        return [_of_bound(one, _unclear) for one in unclear]
    if ruling.verdict == "undecided":
        return [_NOT_SURELY_CHEAPER]
    told = [one for one in asked if one.name != "shifted" and one.value is not None]
    if not told:
        return []
    return [
        Reasons(
            en="In times of the champion's: "
            + ", ".join(f"{_WHAT[one.name].en} {_in_brief(one).en}" for one in told)
            + ".",
            ar="وكلفته نسبةً إلى كلفة البطل: "
            + "، ".join(f"{_WHAT[one.name].ar} {_in_brief(one).ar}" for one in told)
            + ".",
        )
    ]


def _in_brief(check: Check) -> Reasons:
    """A figure without its interval; of the same architecture latency is read once."""
    if _is_shared(check):
        return Reasons(en="1 (the same architecture)", ar="1 (البنية نفسها)")
    return Reasons(en=f"{check.value:.3g}", ar=f"{check.value:.3g}")


def _is_shared(check: Check) -> bool:
    return check.lower == check.upper == 1.0


def _of_bound(check: Check, tell: Callable[[Reasons, Reasons, str], Reasons]) -> Reasons:
    return tell(_WHAT[check.name], _value(check), f"{check.bound:.3g}")


def _value(check: Check) -> Reasons:
    """A figure in times of the champion's, with its interval where it has one."""
    if check.value is None:
        return Reasons(en="no number", ar="ليس عددًا")
    said = rounded(check.value, ".3g")
    if check.lower is None or check.upper is None:
        return said
    span = f"{check.lower:.3g}", f"{check.upper:.3g}"
    if _is_shared(check):
        return Reasons(
            en="1, as the champion's: the same architecture", ar="1 كالبطل: البنية نفسها"
        )
    if span[0] == span[1]:
        return said
    return Reasons(
        en=f"{said.en} (surely between {span[0]} and {span[1]})",
        ar=f"{said.ar} (بين {span[0]} و{span[1]} يقينًا)",
    )


def _broken(what: Reasons, value: Reasons, bound: str) -> Reasons:
    return Reasons(
        en=f"Its {what.en} in times of the champion's is {value.en}, and {bound} is allowed.",
        ar=f"{what.ar} نسبةً إلى البطل {value.ar}، والمسموح {bound}.",
    )


def _unclear(what: Reasons, value: Reasons, bound: str) -> Reasons:
    return Reasons(
        en=f"Its {what.en} in times of the champion's is {value.en}: whether it is within the "
        f"{bound} allowed could not be told.",
        ar=f"{what.ar} نسبةً إلى البطل {value.ar}: لم يُعرف هل يبقى ضمن المسموح، وهو {bound}.",
    )


_NOT_SURELY_CHEAPER = Reasons(
    en="Whether its latency is so much lower that it counts as cheaper could not be told.",
    ar="لم يُعرف هل زمن إجابته أقل بما يكفي ليُعد أرخص.",
)


def _not_lower(ruling: Ruling, differing: int, gates: Gates) -> Reasons:
    """Why the error is not surely lower, or not surely within the margin."""
    if ruling.standing == "higher" and ruling.ratio_lower is not None:
        lower = f"{min(ruling.ratio_lower, RATIO_SAID_MAX):,.4g}"
        return Reasons(en=f"The ratio is surely above {lower}.", ar=f"والنسبة فوق {lower} يقينًا.")
    if ruling.question == "cheaper":
        return _not_within(ruling, gates)
    if not ruling.opponent_error:
        return Reasons(en="No error is lower than none.", ar="وليس دون الصفر خطأ.")
    if not differing:
        return Reasons(en="Equal errors are no improvement.", ar="وتساوي الأخطاء ليس تحسنًا.")
    if not ruling.error:
        return _too_few(differing)
    assert ruling.ratio_upper is not None, "errors above 0 have a ratio"
    upper = rounded(ruling.ratio_upper, ".4g")
    asked = f"{gates.better_ratio:g}"
    return Reasons(
        en=f"The ratio must surely be below {asked}, and may be {upper.en}.",
        ar=f"والواجب أن تكون النسبة دون {asked} يقينًا، وقد تبلغ {upper.ar}.",
    )


def _not_within(ruling: Ruling, gates: Gates) -> Reasons:
    check = ruling.check("error")
    upper = check.upper if check is not None else None
    if check is None or upper is None:
        return Reasons(en="Its error may be higher.", ar="وقد يكون خطؤه أعلى.")
    if check.bound == gates.margin:
        said = rounded(upper, ".4g")
        return Reasons(
            en=f"As a cheaper one its ratio must surely be below {gates.margin:g}, and may be "
            f"{said.en}.",
            ar=f"ولا يُقبل لرخصه إلا أن تكون النسبة دون {gates.margin:g} يقينًا، وقد تبلغ {said.ar}.",
        )
    return Reasons(
        en=f"Of its answers up to {upper:.2%} more may be wrong; {check.bound:.2%} are allowed, "
        f"and no more than {gates.margin:g} times as many as measured.",
        ar=f"قد تزيد نسبة إجاباته الخاطئة بما يبلغ {upper:.2%}، والمسموح {check.bound:.2%} على ألا "
        f"يتجاوز عددها المقيس عدد أخطاء الآخر مضروبًا في {gates.margin:g}.",
    )


def _too_few(differing: int) -> Reasons:
    cases = "1 case" if differing == 1 else f"{differing:,} cases"
    return Reasons(
        en=f"The two differ on {cases} only, too few or too evenly to tell them apart.",
        ar=f"عدد الحالات التي يختلفان فيها {differing:,} فقط، وهذا لا يكفي للتمييز بينهما.",
    )


def _faults(ruling: Ruling, failed: Failed, differing: int, gates: Gates) -> list[Reasons]:
    faults = []
    if failed.ratio:
        faults.append(_not_lower(ruling, differing, gates))
    if failed.few:
        faults.append(_too_few(differing))
    is_told = ruling.standing == "higher" and failed.ratio
    if failed.difference and ruling.error and ruling.opponent_error and not is_told:
        faults.append(_of_means(ruling, gates))
    if failed.evidence:
        fall = -(ruling.evidence_lower or 0.0)
        faults.append(
            Reasons(
                en=f"Its evidence rate, {ruling.evidence_rate:.3f} against "
                f"{ruling.opponent_evidence_rate:.3f}, may be lower by {fall:.3f}; "
                f"{gates.evidence_drop:g} is the most allowed.",
                ar=f"قد تنخفض نسبة إجاباته المثبتة ({ruling.evidence_rate:.3f} مقابل "
                f"{ruling.opponent_evidence_rate:.3f}) بمقدار {fall:.3f}، وأقصى المسموح "
                f"{gates.evidence_drop:g}.",
            )
        )
    if failed.best:
        faults.append(_of_best(ruling, gates))
    return faults


def _of_means(ruling: Ruling, gates: Gates) -> Reasons:
    more = f"{ruling.difference_upper:.3g}"
    if ruling.question == "better":
        return Reasons(
            en=f"Its mean error may be higher by {more}.", ar=f"قد يزيد متوسط خطئه بمقدار {more}."
        )
    return Reasons(
        en=f"Its mean error may be higher by {more}, which is not surely within {gates.margin:g} "
        "times.",
        ar=f"قد يزيد متوسط خطئه بمقدار {more}، فلم يثبت أنه لا يتجاوز متوسط الآخر مضروبًا في "
        f"{gates.margin:g}.",
    )


def _of_best(ruling: Ruling, gates: Gates) -> Reasons:
    """Why it is not surely as good as the best ever."""
    check = ruling.check("best")
    if check is None or check.upper is None:
        return Reasons(
            en="It is not surely as good as the best that this node ever had.",
            ar="لم يثبت أنه ليس دون أفضل ما كان لهذه العقدة.",
        )
    upper = rounded(check.upper, ".4g")
    if check.bound != gates.margin:
        return Reasons(
            en=f"Of its answers up to {check.upper:.2%} more may be wrong than of the best that "
            f"this node ever had; {check.bound:.2%} are allowed.",
            ar=f"قد تزيد نسبة إجاباته الخاطئة على نسبتها عند أفضل ما كان لهذه العقدة بما يبلغ "
            f"{check.upper:.2%}، والمسموح {check.bound:.2%}.",
        )
    return Reasons(
        en=f"Against the best that this node ever had, its error or its evidence may fall behind: "
        f"the ratio of the errors may be {upper.en}, and {gates.margin:g} is allowed.",
        ar=f"وقد يقصّر عن أفضل ما كان لهذه العقدة في خطئه أو في إجاباته المثبتة: قد تبلغ نسبة "
        f"الخطأين {upper.ar}، والمسموح {gates.margin:g}.",
    )
