"""The rules of a log, and what breaks them."""

from collections import Counter
from typing import Protocol

import msgspec

SHOWN_MAX = 100
KEPT_MAX = 10_000
"""Of what follows from lost records, until it shows whether a person accepted them."""
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
    "base": "what is started from, or measured against, is the champion of that moment, and gates"
    " are those of that moment",
    "graph": "the tree has one root, no cycles, and keeps its bounds",
    "rounds": "candidates come from completed tasks that entered an open round, one a node",
    "commitment": "each round takes a deposited commitment, and its secret opens it; a round whose"
    " commitment was withdrawn may end void without",
    "promotion": "a champion stood in the round whose verdict, right before, promotes it, with its"
    " figures; one of a budget did so too, or reigned over its node, once a verdict; it may be"
    " missing only where the end of the log was lost, and that accepted",
    "choice": "whom a person chose was measured by a decided round of the node, or reigned there,"
    " just as the log tells it, for what the node trains and within the budget",
    "closed": "nothing is written on a task, round, node or worker that lost a record, once that"
    " was accepted",
    "losses": "the log is what it was when a person accepted that records of it were lost",
    "sweeps": "only what nothing needs any more is swept",
    "artifacts": "what is needed of what the log names is stored, and is what its digest says",
}


class Add(Protocol):
    """Adds a violation; `cause` is the lost record that it may follow from, 0 for none."""

    def __call__(self, rule: str, seq: int, detail: str, cause: int = 0) -> None:
        """Record a violation."""


class Violation(msgspec.Struct, frozen=True):
    """A broken rule, the first sequence that breaks it, and how."""

    rule: str
    seq: int
    detail: str


class Findings:
    """Violations in the order they are found, the first SHOWN_MAX, and how many of each rule; apart
    from them, those that follow from a lost record and that a person accepted."""

    def __init__(self) -> None:
        self.accepted_up_to = 0
        """What follows from a record that is lost up to here was accepted."""
        self._kept: list[tuple[int, Violation]] = []
        self._kept_of_losses = 0
        self._counts: Counter[tuple[int, str]] = Counter()

    def add(self, rule: str, seq: int, detail: str, cause: int = 0) -> None:
        """Record a violation; `cause` is the lost record that it follows from, 0 for none."""
        self.add_unshown(rule, 1, cause)
        kept = self._kept_of_losses if cause else len(self._kept) - self._kept_of_losses
        if kept < (KEPT_MAX if cause else SHOWN_MAX):
            self._kept.append((cause, Violation(rule, seq, detail[:DETAIL_CHARS_MAX])))
            self._kept_of_losses += cause > 0

    def add_unshown(self, rule: str, count: int, cause: int = 0) -> None:
        """Count violations without saying where they are."""
        assert rule in RULES, rule
        self._counts[cause, rule] += count

    @property
    def shown(self) -> list[Violation]:
        """The first SHOWN_MAX that nobody accepted."""
        return [one for cause, one in self._kept if not self._is_accepted(cause)][:SHOWN_MAX]

    @property
    def counts(self) -> dict[str, int]:
        """By rule, how many nobody accepted."""
        return self._counted(accepted=False)

    @property
    def total(self) -> int:
        """All violations that nobody accepted, those that are not shown too."""
        return sum(self.counts.values())

    @property
    def accepted_shown(self) -> list[Violation]:
        """The first SHOWN_MAX of what follows from an accepted loss."""
        return [one for cause, one in self._kept if self._is_accepted(cause)][:SHOWN_MAX]

    @property
    def accepted_counts(self) -> dict[str, int]:
        """By rule, how many follow from an accepted loss."""
        return self._counted(accepted=True)

    @property
    def accepted_total(self) -> int:
        """All that follow from an accepted loss."""
        return sum(self.accepted_counts.values())

    def _is_accepted(self, cause: int) -> bool:
        return 0 < cause <= self.accepted_up_to

    def _counted(self, *, accepted: bool) -> dict[str, int]:
        counted: Counter[str] = Counter()
        for (cause, rule), count in self._counts.items():
            if self._is_accepted(cause) == accepted:
                counted[rule] += count
        return dict(counted)
