"""What waits for a person: models that a round would neither promote nor refuse."""

from core import events
from core.events import Reasons
from core.projections.rounds import Round
from core.projections.tables import Table

QUESTIONS_MAX = 8
"""Of a node; of more, the best are kept."""


class Question(events.Value, frozen=True, kw_only=True):
    """Whether a model shall reign in place of a node's champion, with what the gate measured of
    both; `ratio` is of their errors."""

    round_id: str
    candidate_id: str
    asked_at: int
    reasons: Reasons
    error: float | None = None
    champion_error: float | None = None
    ratio: float | None = None
    bytes: int = 0


class Asked(events.Value, frozen=True, kw_only=True):
    """A node's open questions, the lowest ratio first."""

    node_id: str
    questions: tuple[Question, ...]


class Questions:
    """The open questions of all nodes. One stays until its node's champion is another one, or
    none: all that are open at a node were measured against the same champion."""

    def __init__(self) -> None:
        self.table: Table[Asked] = Table("questions")

    def of(self, node_id: str) -> tuple[Question, ...]:
        """A node's open questions, the best first."""
        asked = self.table.get(node_id)
        return asked.questions if asked is not None else ()

    def decided(self, row: Round, at: int, data: events.RoundDecided) -> None:
        """Fold a verdict on a round as it stood before."""
        advice = data.recommendation
        if advice is None or advice.action != "ask" or row.champion is None:
            return
        said = next((s for s in data.candidates if s.candidate_id == advice.candidate_id), None)
        if said is None:  # it speaks for nobody who could be chosen
            return
        question = Question(
            round_id=row.round_id,
            candidate_id=said.candidate_id,
            asked_at=at,
            reasons=advice.reasons,
            error=said.error,
            champion_error=data.champion_error,
            ratio=said.ratio,
            bytes=said.bytes,
        )
        known = sorted((*self.of(row.node_id), question), key=_rank)[:QUESTIONS_MAX]
        self.table.put(row.node_id, Asked(node_id=row.node_id, questions=tuple(known)))

    def settled(self, node_id: str) -> None:
        """A node's champion changed: nothing is asked of the one before any more."""
        if node_id in self.table:
            self.table.drop(node_id)


def _rank(one: Question) -> tuple[bool, float]:
    return (one.ratio is None, one.ratio or 0.0)
