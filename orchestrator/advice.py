"""What a round comes to, in words, in Arabic and English."""

from collections.abc import Mapping

from core.values import Budget, Reasons, Recommendation, Weighed
from orchestrator import wording
from orchestrator.rulings import Ruling


def promote(
    node_id: str, candidate_id: str, ruling: Ruling, weighed: Mapping[str, Weighed], traded: str
) -> Recommendation:
    """A candidate won. `traded` is one that is better too and costs too much, "" for none."""
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
    if traded:
        told.append(
            Reasons(
                en=f"{traded} is better as well, but costs more than is allowed; who prefers it "
                f"says `aghsan champion promote {node_id} {traded}`.",
                ar=f"والمرشح {traded} أفضل أيضًا لكن كلفته فوق المسموح؛ ومن فضّله فليشغّل "
                f"`aghsan champion promote {node_id} {traded}`.",
            )
        )
    return Recommendation(action="promote", candidate_id=candidate_id, reasons=wording.joined(told))


def ask(
    node_id: str, candidate_id: str, ruling: Ruling, weighed: Mapping[str, Weighed]
) -> Recommendation:
    """A candidate is better and costs more than is allowed: who is preferred is a person's word."""
    errs = _errs(ruling, _whom(ruling))
    told = [
        Reasons(
            en=f"Ask a person: {candidate_id} is surely better, {errs.en}.",
            ar=f"القرار لإنسان: المرشح {candidate_id} أفضل يقينًا؛ {errs.ar}.",
        ),
        *wording.of_costs(ruling),
        *_front(weighed),
        Reasons(
            en=f"`aghsan champion promote {node_id} {candidate_id}` prefers it; otherwise the "
            "champion stays.",
            ar=f"من فضّله فليشغّل `aghsan champion promote {node_id} {candidate_id}`؛ وإلا بقي "
            "البطل.",
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
            ar=f"ليبق البطل {champion_id}: لا مرشح يفوقه يقينًا، ولا مثله يقينًا وأرخص.",
        )
    errs = _errs(ruling, whom)
    near = Reasons(en=f"Of {nearest}, {errs.en}.", ar=f"أما {nearest} ف{errs.ar}.")
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
