"""The rules of a log, and what breaks them."""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

SHOWN_MAX = 100
DETAIL_CHARS_MAX = 400

RULES: dict[str, str] = {
    "blocks": "stored records are whole, in order, and hash to their checksums",
    "order": "sequences run from 1 without gaps",
    "undecodable": "every record can be read",
    "subject": "every record lies on the subject that its body names",
    "identity": "event ids are unique",
    "time": "times never run backwards",
    "seals": "each seal goes on where the last one ended, and its digest is that of its records",
    "head": "what was acknowledged, or sealed, as `head` and the anchors say, is still there, and"
    " they can be read",
    "writer": "each writer's epoch is one above the last",
    "life": "a task is queued first, and only once",
    "attempts": "each claim's attempt is one above the last",
    "fencing": "one open claim a task, and only its holder speaks for it",
    "completion": "a task is completed once",
    "terminal": "nothing follows the end of a task but a retry of a failed or cancelled one",
    "base": "what is started from, or measured against, is the champion of that moment",
    "graph": "the tree has one root, no cycles, and keeps its bounds",
    "rounds": "candidates come from completed tasks that entered an open round, one a node",
    "commitment": "each round takes a deposited commitment, and its secret opens it; a round whose"
    " commitment was withdrawn may end void without",
    "promotion": "a champion stood in the round whose verdict, right before, promotes it; it may be"
    " missing only where the end of the log was lost, and that accepted",
    "sweeps": "only what nothing needs any more is swept",
    "artifacts": "what is needed of what the log names is stored, and is what its digest says",
}

Add: TypeAlias = Callable[[str, int, str], None]
"""Adds a violation: rule, sequence, detail."""


class Violation(msgspec.Struct, frozen=True):
    """A broken rule, the first sequence that breaks it, and how."""

    rule: str
    seq: int
    detail: str


class Findings:
    """Violations in the order they are found: the first SHOWN_MAX, and how many of each rule."""

    def __init__(self) -> None:
        self.shown: list[Violation] = []
        self.counts: dict[str, int] = {}

    @property
    def total(self) -> int:
        """All violations, those that are not shown too."""
        return sum(self.counts.values())

    def add(self, rule: str, seq: int, detail: str) -> None:
        """Record a violation."""
        assert rule in RULES, rule
        self.counts[rule] = self.counts.get(rule, 0) + 1
        if len(self.shown) < SHOWN_MAX:
            self.shown.append(Violation(rule, seq, detail[:DETAIL_CHARS_MAX]))
