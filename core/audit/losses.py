"""Records that were lost, and what they were of: what follows from that is told apart.

What is left of an aggregate says nothing against it once one of its records is gone. So whoever
finds something wrong names the aggregates it rests on, and the finding remembers the record that is
missing there as its cause.
"""

from bisect import bisect_left

from core import subjects


class Losses:
    """Lost records by what they were of, and how far people accepted them."""

    def __init__(self) -> None:
        self.accepted = 0
        """Records up to this one are as they were when a person accepted what was lost of them."""
        self._first: dict[str, int] = {}
        self._first_since: dict[str, int] = {}
        """The same of those that nobody accepted yet."""
        self._seqs: list[int] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._seqs)

    def take(self, seq: int, subject: str) -> None:
        """Take it that a record is lost; `subject` says of what, where that could be read."""
        self._seqs.append(seq)
        self._first.setdefault(subject, seq)
        self._first_since.setdefault(subject, seq)

    def accept(self, last: int) -> None:
        """Take it that a person accepted all that is lost up to `last`, where the log ended."""
        self.accepted = last
        self._first_since.clear()

    def of(self, *aggregates: str) -> int:
        """The first record that is lost of any of these subjects, 0 where none is."""
        return min((self._first[one] for one in aggregates if one in self._first), default=0)

    def unaccepted_of(self, *aggregates: str) -> int:
        """As `of`, of those that nobody accepted yet. Whoever writes after that goes by what can be
        read, as an audit does: nothing about it is unknown."""
        firsts = (self._first_since.get(one, 0) for one in aggregates)
        return min((first for first in firsts if first), default=0)

    def within(self, first: int, last: int) -> int:
        """The first record that is lost between two sequences, both included; 0 where none is."""
        at = bisect_left(self._seqs, first)
        return self._seqs[at] if at < len(self._seqs) and self._seqs[at] <= last else 0

    def newest(self) -> int:
        """The last record that is lost, 0 without any."""
        return self._seqs[-1] if self._seqs else 0

    def is_closed(self, subject: str) -> bool:
        """Whether nobody may write on an aggregate any more. Those of the log itself stay open."""
        return not subject.startswith(subjects.LOG) and 0 < self.of(subject) <= self.accepted


def task(task_id: str) -> str:
    """The subject of a task."""
    return subjects.event("task", task_id)


def round_(round_id: str) -> str:
    """The subject of a round."""
    return subjects.event("round", round_id)


def node(node_id: str) -> str:
    """The subject of a node."""
    return subjects.event("node", node_id)
