"""What a champion was measured on, and against whom: by its node's verdict, or that of a budget."""

from typing import TYPE_CHECKING, NamedTuple

from cli.stored import Served
from core import events

if TYPE_CHECKING:
    from core.projections.rounds import Decision


class Measured(NamedTuple):
    """How a champion came by its error. `cases` are those of the gate, and 0 where it never came to
    them: its error is then of the cases by which its round ranked. `against` is whom it met there,
    "" for nobody."""

    reasons: events.Reasons
    cases: int = 0
    alpha: float = 0.0
    look: int = 0
    against: str = ""
    against_error: float | None = None
    is_of_budget: bool = False


def decision(served: Served) -> "Decision":
    """The verdict of a champion's round."""
    found = served.round.decision
    assert found is not None, "a round that promoted a champion is decided"
    return found


def said(served: Served) -> events.CandidateVerdict | None:
    """What the verdict says of it as a candidate for its node."""
    name = served.champion.candidate_id
    return next((one for one in decision(served).candidates if one.candidate_id == name), None)


def measured(served: Served) -> Measured:
    """How a champion came by its error."""
    name, told, verdict = served.champion.candidate_id, decision(served), said(served)
    for one in told.budgets if served.budget else ():
        if (one.budget, one.promoted) == (served.budget, name):
            return Measured(
                one.reasons,
                one.cases,
                one.alpha,
                one.look,
                one.against,
                one.champion_error,
                is_of_budget=True,
            )
    if verdict is not None and verdict.verdict == "outranked":
        return Measured(verdict.reasons)
    opponent = served.round.champion
    return Measured(
        (verdict or told).reasons,
        (verdict.cases if verdict else 0) or told.cases,
        told.alpha,
        served.round.look,
        opponent.candidate_id if opponent else "",
        told.champion_error,
    )
