"""What a round comes to, in words, in Arabic and English."""

from collections.abc import Mapping

from core.values import Budget, Reasons, Recommendation, Weighed
from orchestrator import wording
from orchestrator.rulings import Ruling


def promote(
    node_id: str,
    candidate_id: str,
    ruling: Ruling,
    weighed: Mapping[str, Weighed],
    others: Mapping[str, Ruling],
) -> Recommendation:
    """A candidate won. `others` were put to the gate beside it."""
    whom = _whom(ruling)
    errs = _errs(ruling, whom)
    told = [Reasons(en=f"Promote {candidate_id}: {errs.en}.", ar=f"رقِّ {candidate_id}: {errs.ar}.")]
    if ruling.verdict == "cheaper":
        told.append(
            Reasons(
                en="It is surely no worse by more than the margin, and costs less.",
                ar="ثبت أن خطأه لا يزيد بأكثر من الهامش، وكلفته أقل.",
            )
        )
    told += _front(weighed)
    for name, other in others.items():
        if other.verdict in ("better", "cheaper"):
            told.append(_why_not(node_id, weighed[candidate_id], ruling, weighed[name], other))
        elif other.verdict == "trade-off":
            told.append(_traded(node_id, name, other))
    return Recommendation(action="promote", candidate_id=candidate_id, reasons=wording.joined(told))


def _why_not(node_id: str, won: Weighed, ruling: Ruling, lost: Weighed, other: Ruling) -> Reasons:
    """Why another that might have reigned does not, and what gives a model like it a place."""
    if (ruling.verdict, other.verdict) == ("better", "cheaper"):
        why = Reasons(
            en="since it is surely better, and the other as good and cheaper",
            ar="لأنه أفضل يقينًا، أما الآخر فليس دون البطل وهو أرخص",
        )
    elif won.error == lost.error:
        why = Reasons(
            en=f"at the same mean error on the ranking cases ({won.error:.4g}), by its size",
            ar=f"لحجمه، ومتوسط خطأيهما على حالات الترتيب واحد ({won.error:.4g})",
        )
    else:
        why = Reasons(
            en="since its mean error on the ranking cases is lower "
            f"({won.error:.4g} against {lost.error:.4g})",
            ar=f"لأن متوسط خطئه على حالات الترتيب أقل ({won.error:.4g} مقابل {lost.error:.4g})",
        )
    return Reasons(
        en=f"{won.candidate_id} is promoted and not {lost.candidate_id}, {why.en}; to have a model "
        f"like {lost.candidate_id} serve beside it, state a budget: "
        f"`aghsan gates {node_id} --budget …`.",
        ar=f"يُرقّى {won.candidate_id} لا {lost.candidate_id}، {why.ar}؛ ولكي يعمل إلى جانبه نموذج "
        f"مثل {lost.candidate_id} حدِّد ميزانية: `aghsan gates {node_id} --budget …`.",
    )


def _traded(node_id: str, candidate_id: str, ruling: Ruling) -> Reasons:
    """That another one is better too, and what keeps it back."""
    but = wording.of_veto(ruling)
    return Reasons(
        en=f"{candidate_id} is better as well{but.en}; to choose it, run "
        f"`aghsan champion promote {node_id} {candidate_id}`.",
        ar=f"والمرشح {candidate_id} أفضل أيضًا{but.ar}؛ لاختياره نفّذ "
        f"`aghsan champion promote {node_id} {candidate_id}`.",
    )


def ask(
    node_id: str, candidate_id: str, ruling: Ruling, weighed: Mapping[str, Weighed]
) -> Recommendation:
    """A candidate is better and costs more than is allowed: who is preferred is a person's word."""
    errs, but = _errs(ruling, _whom(ruling)), wording.of_veto(ruling)
    told = [
        Reasons(
            en=f"The choice is yours: {candidate_id} is surely better{but.en}. On the "
            f"hidden cases {errs.en}.",
            ar=f"القرار لك: المرشح {candidate_id} أفضل يقينًا{but.ar}. وعلى الحالات المخفية "
            f"{errs.ar}.",
        ),
        *wording.of_costs(ruling),
        *_front(weighed),
        Reasons(
            en=f"To choose it, run `aghsan champion promote {node_id} {candidate_id}`; otherwise "
            "the champion stays.",
            ar=f"لاختياره نفّذ `aghsan champion promote {node_id} {candidate_id}`؛ وإلا بقي البطل.",
        ),
    ]
    return Recommendation(action="ask", candidate_id=candidate_id, reasons=wording.joined(told))


def wait(candidate_id: str, ruling: Ruling) -> Recommendation:
    """Whether a candidate costs too much could not be told."""
    told = [
        Reasons(
            en=f"Keep the champion for now: {candidate_id} may be worth more.",
            ar=f"ليبق البطل الآن: ربما كان {candidate_id} أجدر منه.",
        ),
        *wording.of_costs(ruling),
        Reasons(
            en="A later round, or a quieter machine, may tell.",
            ar="وقد تحسمه جولة لاحقة أو جهاز أقل انشغالًا.",
        ),
    ]
    return Recommendation(action="keep", reasons=wording.joined(told))


def keep(champion_id: str, nearest: str, ruling: Ruling) -> Recommendation:
    """Nobody won."""
    whom = _whom(ruling)
    if not champion_id:
        head = Reasons(
            en=f"Promote nobody: no candidate is surely better than {whom.en}.",
            ar=f"لا يُرقّى أحد: لا مرشح يفوق {whom.ar} يقينًا.",
        )
    else:
        head = Reasons(
            en=f"Keep the champion {champion_id}: no candidate is surely better, or surely as good "
            "and cheaper.",
            ar=f"ليبق البطل {champion_id}: لم يثبت أن مرشحًا أفضل منه، أو ليس دونه وهو أرخص.",
        )
    errs = _errs(ruling, whom)
    worse = Reasons(en="", ar="")
    if ruling.standing == "higher":
        worse = Reasons(en=f"{nearest} is surely worse. ", ar=f"المرشح {nearest} أسوأ يقينًا. ")
    near = Reasons(
        en=f"{worse.en}Of {nearest}, {errs.en}.", ar=f"{worse.ar}وفي شأن {nearest}: {errs.ar}."
    )
    return Recommendation(action="keep", reasons=wording.joined([head, near]))


def _whom(ruling: Ruling) -> Reasons:
    return wording.OPPONENT[ruling.against]


def _errs(ruling: Ruling, whom: Reasons) -> Reasons:
    """How much it errs, in times of another."""
    if ruling.error is None:
        return Reasons(en="not every error is a number", ar="ليس كل خطأ منه عددًا")
    if ruling.ratio is None:
        return Reasons(
            en=f"the mean error is {ruling.error:.4g} where {whom.en} makes none",
            ar=f"متوسط خطئه {ruling.error:.4g} ولا يخطئ {whom.ar}",
        )
    ratio = wording.rounded(ruling.ratio, ".3g")
    return Reasons(
        en=f"the error is {ratio.en} times that of {whom.en}",
        ar=f"نسبة خطئه إلى خطأ {whom.ar} {ratio.ar}",
    )


def _front(weighed: Mapping[str, Weighed]) -> list[Reasons]:
    """Which models are on the front, where there are several to choose from."""
    front = [one.candidate_id for one in weighed.values() if one.is_front]
    if len(weighed) < 2:
        return []
    return [
        Reasons(
            en=f"On the front of error, latency and bytes: {', '.join(front)}.",
            ar=f"على جبهة الخطأ والزمن والحجم: {'، '.join(front)}.",
        )
    ]


# ── budgets ──


def nobody_fits(budget: Budget) -> Reasons:
    """No model is within a budget."""
    return Reasons(
        en=f"No model of this round is within the budget {budget.name}.",
        ar=f"لا نموذج في هذه الجولة ضمن الميزانية {budget.name}.",
    )


def reigns_already(budget: Budget, candidate_id: str) -> Reasons:
    """The best within a budget is its champion already."""
    return Reasons(
        en=f"{candidate_id}, the champion of the budget {budget.name}, has the lowest error of "
        "those within it.",
        ar=f"بطل الميزانية {budget.name} ({candidate_id}) هو الأقل خطأً بين النماذج التي ضمنها.",
    )


def not_measured(budget: Budget, why: Reasons) -> Reasons:
    """Nothing could be compared for a budget."""
    return Reasons(
        en=f"The champion of the budget {budget.name} stays: its stored model cannot be measured "
        f"({why.en}).",
        ar=f"يبقى بطل الميزانية {budget.name}: تعذّر قياس نموذجه المخزّن ({why.ar}).",
    )


def of_budget(budget: Budget, candidate_id: str, ruling: Ruling) -> Reasons:
    """What the gate said of whom it was asked about for a budget."""
    return Reasons(
        en=f"Budget {budget.name}, {candidate_id}: {ruling.reasons.en}",
        ar=f"الميزانية {budget.name}، {candidate_id}: {ruling.reasons.ar}",
    )
