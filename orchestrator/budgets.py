"""Champions of budgets: who is put to the gate for each, and what comes of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from core import events, wire
from core.events import Reasons
from core.values import Budget, BudgetVerdict, Weighed
from orchestrator import advice, consensus, models, remarks
from orchestrator.contest import TRIVIAL, Contest, Unmeasured


class Entry(NamedTuple):
    """A budget, and who is put to the gate for it; where nobody is, why."""

    budget: Budget
    look: events.BudgetLook
    contest: Contest | None = None
    why_not: Reasons | None = None

    @property
    def reigning(self) -> str:
        """The budget's champion, "" for nobody."""
        return self.look.champion.candidate_id if self.look.champion else ""


def entered(
    brief: wire.RoundBrief,
    scales: Mapping[str, Weighed],
    load: Callable[[events.Base], None],
    tolerance: float,
) -> Iterator[Entry]:
    """Put the best of the weighed within each budget to the gate, against the budget's own
    champion; its champion is loaded, which may raise Unmeasured."""
    budgets = {one.name: one for one in brief.gates.budgets}
    for look in brief.budgets:
        budget = budgets[look.budget]
        entry = Entry(budget, look)
        name = consensus.pick_for(budget, scales.values())
        if not name:
            yield entry._replace(why_not=advice.nobody_fits(budget))
            continue
        if name == entry.reigning:
            yield entry._replace(why_not=advice.reigns_already(budget, name))
            continue
        try:
            if look.champion is not None:
                load(look.champion)
        except Unmeasured as error:
            yield entry._replace(why_not=_not_measured(budget, error))
            continue
        contest = Contest(
            own=name,
            look=look.look,
            opponent=entry.reigning or TRIVIAL,
            against="budget" if entry.reigning else "trivial",
            gates=brief.gates,
            tolerance=tolerance,
            budget=budget.name,
            may_fail=True,
        )
        yield entry._replace(contest=contest)


def verdict(entry: Entry) -> BudgetVerdict:
    """What a round means to the champion of a budget."""
    contest, name = entry.contest, entry.budget.name
    if contest is None or contest.ruling is None:
        reasons = entry.why_not
        if contest is not None and contest.failed is not None:
            reasons = _not_measured(entry.budget, contest.failed)
        assert reasons is not None, "where nobody was judged it is said why"
        return BudgetVerdict(
            budget=name, against=entry.reigning, look=entry.look.look, reasons=reasons
        )
    ruling = contest.ruling
    return BudgetVerdict(
        budget=name,
        against=entry.reigning,
        promoted=contest.own if ruling.verdict == "better" else "",
        reasons=advice.of_budget(entry.budget, contest.own, ruling),
        look=entry.look.look,
        alpha=ruling.alpha,
        cases=ruling.cases,
        error=ruling.error,
        champion_error=ruling.opponent_error if entry.reigning else None,
        ratio=ruling.ratio,
        ratio_upper=ruling.ratio_upper,
    )


def _not_measured(budget: Budget, error: Unmeasured) -> Reasons:
    why = Reasons(en=models.brief_of(error), ar=remarks.in_arabic(error))
    return advice.not_measured(budget, why)
