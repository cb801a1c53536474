"""Rounds, told again: who stood in which, and what was decided."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from core import events, subjects
from core.audit import losses
from core.audit.champions import Arena, Champions, Standing
from core.audit.commitments import Commitments
from core.audit.findings import Add
from core.audit.losses import Losses
from core.audit.tasks import Tasks, rivals_of
from core.audit.tree import Tree, base_name
from core.events import Base, Rival, Workload
from core.values import Budget, Gates

MERGES_MAX = 4
"""A task brings one candidate for a role, but so many merges."""


@dataclass(slots=True)
class _Round:
    node_id: str
    workload: Workload
    index: int
    commitment: str
    cause: int = 0
    """The lost record that may have deposited its commitment."""
    status: str = "open"
    awaited: dict[Rival, str] = field(default_factory=dict)
    merged: tuple[str, int] = ("", 0)
    """The task whose merges were admitted, and how many."""
    entered: set[Rival] = field(default_factory=set)
    standings: dict[str, Standing] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)


class Rounds:
    """All rounds, and what they take."""

    def __init__(self, add: Add, tree: Tree, tasks: Tasks, lost: Losses) -> None:
        self._add_found = add
        self._losses = lost
        self.commitments = Commitments(add, lost)
        self._tree = tree
        self._tasks = tasks
        self._rows: dict[str, _Round] = {}
        self._open: dict[str, str] = {}
        self._strangers: set[str] = set()
        self.champions = Champions(add, tree, lost)

    def _add(self, rule: str, seq: int, detail: str, *rests_on: str) -> None:
        """Add a violation that rests on these aggregates."""
        self._add_found(rule, seq, detail, self._losses.of(*rests_on))

    def take(self, seq: int, data: Any) -> None:
        """Take an event of a round."""
        row = self._rows.get(data.round_id)
        if isinstance(data, events.RoundOpened):
            self._opened(seq, data, row)
        elif row is None:
            if data.round_id not in self._strangers:
                name = type(data).__name__
                detail = f"{name} of {data.round_id}, which was never opened"
                self._add("rounds", seq, detail, losses.round_(data.round_id))
            self._strangers.add(data.round_id)
        else:
            self._of_round(seq, data, row)

    def _of_round(self, seq: int, data: Any, row: _Round) -> None:
        match data:
            case events.JudgingStarted():
                self._require_status(seq, data, row, "closed", "judging")
                row.status = "judging"
                self._require_base(seq, data, row, data.champion)
                self._require_gates(seq, data, row)
            case events.RoundDecided():
                self._require_status(seq, data, row, "judging")
                self._decided(seq, data, row)
            case events.RoundClosed():
                self._require_status(seq, data, row, "open")
                row.status = "closed"
                self._open.pop(row.node_id, None)
            case _:
                self._require_status(seq, data, row, "open")
                self._of_role(seq, data, row)

    def _of_role(self, seq: int, data: Any, row: _Round) -> None:
        match data:
            case events.RoleEntered():
                if fault := self._fault_of_entry(data, row):
                    self._add_of_task(seq, data, fault)
                row.entered.add(data.rival)
                row.awaited[data.rival] = data.task_id
                # A task that nobody knows does not fit for whoever goes on, and its round stays.
                row.cause = row.cause or self._losses.of(losses.task(data.task_id))
            case events.CandidateAdmitted():
                if fault := self._fault_of_admission(data, row):
                    self._add_of_task(seq, data, f"{data.candidate.candidate_id} {fault}")
                if self._losses.of(losses.task(data.task_id)):
                    self._tasks.unseen[data.candidate.candidate_id] = data.task_id
                row.awaited.pop(data.candidate.rival, None)
                if data.candidate.rival == "merge":
                    row.merged = (data.task_id, row.merged[1] + 1)
                standing = Standing(data.candidate, data.task_id, data.worker_id)
                row.standings[data.candidate.candidate_id] = standing
            case events.RoleClosed():
                if row.awaited.pop(data.rival, None) != data.task_id:
                    detail = f"no {data.rival} is awaited from {data.task_id}"
                    self._add_of_task(seq, data, detail)

    def _add_of_task(self, seq: int, data: Any, detail: str) -> None:
        """Add what is wrong between a round and a task."""
        about = (losses.round_(data.round_id), losses.task(data.task_id))
        self._add("rounds", seq, f"{data.round_id}: {detail}", *about)

    def _opened(self, seq: int, data: events.RoundOpened, before: _Round | None) -> None:
        if before is not None:
            self._add("rounds", seq, f"{data.round_id} is opened again")
            return
        if data.node_id not in self._tree:
            detail = f"{data.round_id} is of {data.node_id}, which is no node yet"
            self._add("rounds", seq, detail, losses.node(data.node_id))
        if other := self._open.get(data.node_id):
            detail = f"{data.round_id} is opened, while {other} is open at {data.node_id}"
            # Without its deposit it does not fit for whoever goes on, and stays as it is.
            cause = self._losses.of(losses.round_(other)) or self._rows[other].cause
            self._add_found("rounds", seq, detail, cause)
        cause = self.commitments.taken(seq, data)
        row = _Round(data.node_id, data.workload, data.index, data.commitment, cause)
        self._rows[data.round_id] = row
        self._open[data.node_id] = data.round_id
        self._require_base(seq, data, row, data.base)

    def _require_status(self, seq: int, data: Any, row: _Round, *wanted: str) -> None:
        if row.status not in wanted:
            detail = f"{type(data).__name__} of {data.round_id}, which is {row.status}"
            self._add("rounds", seq, detail, losses.round_(data.round_id))

    def _require_base(self, seq: int, data: Any, row: _Round, base: Base | None) -> None:
        wanted = self._tree.base(row.node_id, row.workload)
        if base != wanted:
            detail = (
                f"{type(data).__name__} of {data.round_id} against {base_name(base)}, while"
                f" {base_name(wanted)} reigns"
            )
            reign = self._losses.unaccepted_of(losses.node(row.node_id))
            self._add_found("base", seq, detail, reign)

    def _require_gates(self, seq: int, data: events.JudgingStarted, row: _Round) -> None:
        """A round is judged by the gates of that moment, also against the best and by budget."""
        tree, gates = self._tree, self._tree.gates(row.node_id)
        stated = {one.name: one for one in (data.gates or Gates()).budgets}
        names = [one.budget for one in data.budgets]
        row.budgets = {name: stated.get(name, Budget(name=name)) for name in names}
        faults = []
        if (data.gates or Gates()) != gates:
            faults.append(f"{data.round_id} is judged by other gates than {row.node_id} has")
        if names != [one.name for one in gates.budgets]:
            faults.append(f"{data.round_id} looks for other budgets than {row.node_id} has")
        if data.best != (wanted := tree.best(row.node_id, row.workload)):
            faults.append(
                f"{data.round_id} takes {base_name(data.best)} for the best, not"
                f" {base_name(wanted)}"
            )
        for one in data.budgets:
            wanted = tree.base(row.node_id, row.workload, one.budget)
            if one.champion != wanted:
                faults.append(
                    f"{data.round_id} looks for the budget {one.budget!r} against"
                    f" {base_name(one.champion)}, while {base_name(wanted)} reigns"
                )
        cause = self._losses.unaccepted_of(*tree.rests_on(row.node_id))
        for detail in faults:
            self._add_found("base", seq, detail, cause)

    def _fault_of_entry(self, data: events.RoleEntered, row: _Round) -> str:
        if data.rival in row.entered:
            return f"{data.task_id} enters as {data.rival}, a role that is taken"
        task = self._tasks.rows.get(data.task_id)
        if task is None:
            told = data.task_id in self._tasks.strangers
            return "" if told else f"{data.task_id} enters, which was never queued"
        if (task.node_id, task.workload) != (row.node_id, row.workload):
            return f"{data.task_id} enters, which is of another node or workload"
        if data.rival not in rivals_of(task.role):
            return f"{data.task_id} enters as {data.rival}, but is {task.role}"
        return ""

    def _fault_of_admission(self, data: events.CandidateAdmitted, row: _Round) -> str:
        task = self._tasks.rows.get(data.task_id)
        again = data.candidate.rival == "merge" and row.merged in (
            (data.task_id, count) for count in range(1, MERGES_MAX)
        )
        if row.awaited.get(data.candidate.rival) != data.task_id and not again:
            return f"is admitted, but no {data.candidate.rival} is awaited from {data.task_id}"
        if task is None or task.status != "completed":
            return f"is admitted, but {data.task_id} is not completed"
        if task.brought.get(data.candidate.candidate_id) != data.candidate:
            return f"is admitted, but {data.task_id} brought no such candidate"
        if task.worker_id != data.worker_id:
            return f"is admitted from {data.worker_id!r}; {task.worker_id!r} brought it"
        return ""

    def _decided(self, seq: int, data: events.RoundDecided, row: _Round) -> None:
        self._require_opened(seq, data, row)
        own = losses.round_(data.round_id)
        judged = {one.candidate_id for one in data.candidates}
        if judged != row.standings.keys():
            words = ", ".join(sorted(judged ^ row.standings.keys()))
            detail = f"{data.round_id}: judged, or standing, but not both: {words}"
            self._add("rounds", seq, detail, own)
        arena = Arena(data.round_id, row.node_id, row.workload, row.standings, row.budgets)
        self.champions.decided(seq, data, arena)
        row.status, row.standings, row.awaited, row.entered = "decided", {}, {}, set()

    def _require_opened(self, seq: int, data: events.RoundDecided, row: _Round) -> None:
        """The secret has to open the commitment, unless that was withdrawn."""
        if data.secret:
            if not _opens(data.secret, row.commitment):
                self._add("commitment", seq, f"the secret of {data.round_id} does not open it")
        elif data.verdict != "void" or any(one.error is not None for one in data.candidates):
            self._add("commitment", seq, f"{data.round_id} was measured without its secret")
        elif not self.commitments.is_withdrawn(row.index):
            # The withdrawal may be what is lost.
            cause = self._losses.unaccepted_of(subjects.LOG_COMMITMENTS)
            detail = f"{data.round_id} is void without its secret, and was not withdrawn"
            self._add_found("commitment", seq, detail, cause)


def _opens(secret: str, commitment: str) -> bool:
    try:
        return hashlib.sha256(bytes.fromhex(secret)).hexdigest() == commitment
    except ValueError:
        return False
