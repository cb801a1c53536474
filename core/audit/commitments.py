"""Commitments, told again: which were deposited, and whether a round may take one."""

from typing import NamedTuple

from core import events
from core.audit.findings import Add
from core.audit.losses import Losses


class _Unsure(NamedTuple):
    """A round that took what a lost record may have deposited."""

    seq: int
    number: int
    detail: str
    cause: int


class Commitments:
    """Those that are free, and those that may have been deposited by records that are lost."""

    def __init__(self, add: Add, lost: Losses) -> None:
        self._add = add
        self._losses = lost
        self._free: dict[int, str] = {}
        self._used: set[int] = set()
        self._next_index = 0
        self._withdrawn_before = 0
        self._lost: list[int] = []
        """Lost records that may be deposits, since the last deposit that can be read."""
        self._gaps: list[tuple[range, int]] = []
        """What lost records deposited, as the next deposit tells, and the first of them."""
        self._unsure: list[_Unsure] = []
        """Until the next deposit tells which were lost."""

    def lost(self, seq: int) -> None:
        """Take it that a deposit or a withdrawal is lost."""
        self._lost.append(seq)

    def deposited(self, seq: int, data: events.CommitmentsDeposited) -> None:
        """Take commitments for rounds to come."""
        cause = self._lost_deposit()
        gap = range(self._next_index, data.first)
        if data.first != self._next_index:
            detail = f"commitments from {data.first} are deposited; {self._next_index} comes next"
            self._add("commitment", seq, detail, cause if gap else 0)
        if gap and cause:
            self._gaps.append((gap, cause))
        # After an acceptance what was lost is deposited again, and says nothing of what it was.
        self._settle(data.first if cause else None)
        self._free.update(enumerate(data.commitments, data.first))
        self._next_index = data.first + len(data.commitments)
        self._lost = []

    def withdrawn(self, seq: int, data: events.CommitmentsWithdrawn) -> None:
        """Take it that nobody can open the commitments of lower index any more."""
        if data.before > self._next_index:
            detail = f"commitments below {data.before} are withdrawn; {self._next_index} comes next"
            self._add("commitment", seq, detail, self._lost_deposit())
        self._withdrawn_before = max(self._withdrawn_before, data.before)
        self._free = {index: one for index, one in self._free.items() if index >= data.before}

    def is_withdrawn(self, index: int) -> bool:
        """Whether nobody can open a commitment any more."""
        return index < self._withdrawn_before

    def taken(self, seq: int, data: events.RoundOpened) -> int:
        """Take it that a round uses one up; the lost record that may have deposited it, else 0."""
        cause = 0
        if self._free.pop(data.index, None) != data.commitment:
            detail = f"{data.round_id}: commitment {data.index} was not deposited, or is used up"
            cause = 0 if data.index in self._used else self._lost_deposit_of(data.index)
            if cause and data.index >= self._next_index:
                self._unsure.append(_Unsure(seq, data.index, detail, cause))
            else:
                self._add("commitment", seq, detail, cause)
        self._used.add(data.index)
        return cause

    def finish(self) -> None:
        """Tell what the end of the log leaves open."""
        self._settle(None)

    def _lost_deposit(self) -> int:
        """The lost record that may be the deposit that comes next, 0 where there is none: whoever
        writes after an acceptance knows only those that can be read."""
        return next((seq for seq in self._lost if seq > self._losses.accepted), 0)

    def _lost_deposit_of(self, index: int) -> int:
        """The lost record that may have deposited a commitment, 0 where there is none."""
        if index >= self._next_index:
            return self._lost_deposit()
        causes = (cause for gap, cause in self._gaps if index in gap)
        return next((cause for cause in causes if cause > self._losses.accepted), 0)

    def _settle(self, first: int | None) -> None:
        """Tell of rounds that took what is lost: not from `first` on, where that is known."""
        for one in self._unsure:
            is_lost = first is None or one.number < first
            self._add("commitment", one.seq, one.detail, one.cause if is_lost else 0)
        self._unsure = []
