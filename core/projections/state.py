"""All durable state, and the one fold that makes it from events."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

from core import errors, events, subjects
from core.events import Event, Undecodable
from core.projections import claims
from core.projections.graph import Graph
from core.projections.questions import Questions
from core.projections.rivalry import Rivalry
from core.projections.rounds import Round, Rounds, Waiting
from core.projections.tables import Table
from core.projections.tasks import Task, Tasks, kind_of
from core.projections.workers import Workers

Fold: TypeAlias = Callable[[int, int, Any], None]
"""Folds an event, given its sequence, its time and its data."""


class LogHead(events.Value, frozen=True, kw_only=True):
    """Who writes the log."""

    epoch: int
    process: str


class Sealed(events.Value, frozen=True, kw_only=True):
    """How far the log is sealed, by which digest, and where that seal stands."""

    last: int = 0
    digest: str = ""
    seq: int = 0


class Quarantined(events.Value, frozen=True, kw_only=True):
    """A stored record that could not be folded."""

    seq: int
    subject: str
    reason: str


class State:
    """Projections of the log up to and including `seq`."""

    def __init__(self) -> None:
        self.seq = 0
        self.at = 0
        """The newest time in the log."""
        self.graph = Graph()
        self.tasks = Tasks()
        self.workers = Workers()
        self.rounds = Rounds()
        self.rivalry = Rivalry()
        self.questions = Questions()
        self.log: Table[LogHead] = Table("log")
        self.seals: Table[Sealed] = Table("seals")
        self.quarantine: Table[Quarantined] = Table("quarantine")
        self.read_only: set[str] = set()
        """Subjects with a quarantined record: their aggregates must not be written here."""
        self._folds = self._table_of_folds()

    @property
    def epoch(self) -> int:
        """The epoch of the newest writer, 0 before the first."""
        head = self.log.get("writer")
        return head.epoch if head else 0

    @property
    def sealed(self) -> Sealed:
        """The newest seal."""
        return self.seals.get("newest") or Sealed()

    def evolve(self, event: Event) -> None:
        """Fold one event; one that contradicts the state is quarantined, never fatal."""
        self.fold(event.seq, event.at, event.data)

    def fold(self, seq: int, at: int, data: events.EventData) -> None:
        """As `evolve`, of what matters in an event."""
        self.seq = seq
        if at > self.at:
            self.at = at
        try:
            self._folds[type(data)](seq, at, data)
        except (errors.UnfitEvent, KeyError) as error:
            reason = f"does not fit the state: {error}"
            self._quarantine(seq, events.subject_of(data), reason)

    def skip(self, record: Undecodable) -> None:
        """Quarantine a record that cannot be decoded."""
        self.seq = record.seq
        self._quarantine(record.seq, record.subject, record.reason)

    def _quarantine(self, seq: int, subject: str, reason: str) -> None:
        self.quarantine.put(str(seq), Quarantined(seq=seq, subject=subject, reason=reason))
        if not subject.startswith(subjects.LOG):
            # The log's own aggregates stay open: without them nobody could write any more.
            self.close(subject)

    def close(self, subject: str) -> None:
        """Keep an aggregate from being written on."""
        self.read_only.add(subject)
        if subject.startswith(subjects.TASKS):
            self.tasks.close(subject.removeprefix(subjects.TASKS))

    def is_read_only(self, kind: str, identity: str) -> bool:
        """Whether nothing can be written on this aggregate."""
        return bool(self.read_only) and subjects.event(kind, identity) in self.read_only

    def _table_of_folds(self) -> dict[type, Fold]:
        """How each type of event is folded. A table, since a rebuild asks it for every event."""
        tasks, workers, rounds = self.tasks.apply, self.workers.apply, self.rounds.apply
        folds: dict[type, Fold] = {
            events.NodeAdded: self.graph.added,
            events.ChampionPromoted: self._champion_changed,
            events.ChampionChosen: self._champion_changed,
            events.WorkloadChanged: self.graph.workload_changed,
            events.ChampionRetired: self._champion_changed,
            events.GatesChanged: self.graph.gates_changed,
            events.TaskQueued: self._task_queued,
            events.TaskClaimed: self._task_claimed,
            events.ClaimAdopted: tasks,
            events.ClaimExpired: self._claim_changed,
            events.ClaimRevived: self._claim_changed,
            events.ClaimReleased: self._claim_released,
            events.CheckpointStored: tasks,
            events.AttemptFailed: self._claim_changed,
            events.TaskCompleted: self._task_ended,
            events.TaskFailed: self._task_ended,
            events.TaskCancelled: self._task_ended,
            events.TaskRetried: tasks,
            events.WorkerRegistered: workers,
            events.WorkerChanged: workers,
            events.SessionOpened: workers,
            events.WorkerWentOffline: workers,
            events.WorkerCameOnline: workers,
            events.WorkerPaused: workers,
            events.WorkerResumed: workers,
            events.RoundOpened: rounds,
            events.RoleEntered: self._role_entered,
            events.CandidateAdmitted: rounds,
            events.RoleClosed: rounds,
            events.RoundClosed: rounds,
            events.JudgingStarted: rounds,
            events.RoundDecided: self._round_decided,
            events.WriterStarted: self._writer_started,
            events.CommitmentsDeposited: self.rounds.deposited,
            events.LogSealed: self._log_sealed,
            events.CommitmentsWithdrawn: self.rounds.withdrawn,
            events.LossAccepted: self._of_no_table,
            events.ArtifactsSwept: self._of_no_table,
        }
        assert folds.keys() == set(events.TYPES.values()), "every event is folded somehow"
        return folds

    def _champion_changed(
        self,
        seq: int,
        at: int,
        data: events.ChampionPromoted | events.ChampionChosen | events.ChampionRetired,
    ) -> None:
        match data:
            case events.ChampionPromoted():
                self.graph.promoted(seq, at, data)
            case events.ChampionChosen():
                self.graph.chosen(seq, at, data)
            case events.ChampionRetired():
                self.graph.retired(seq, at, data)
        if not data.budget:
            self.questions.settled(data.node_id)

    def _task_queued(self, seq: int, at: int, data: events.TaskQueued) -> None:
        self.tasks.apply(seq, at, data)
        self.rivalry.queued(data, len(self.tasks.ids))

    def _task_claimed(self, seq: int, at: int, data: events.TaskClaimed) -> None:
        self.tasks.apply(seq, at, data)
        if data.via == "nats":
            self._awaits_round(data)

    def _claim_changed(self, seq: int, at: int, data: events.OfTasks) -> None:
        before = self.tasks.table.get(data.task_id)
        self.tasks.apply(seq, at, data)
        if before is not None:
            self.rivalry.held(before, self.tasks.table.rows[data.task_id], at)

    def _claim_released(self, seq: int, at: int, data: events.ClaimReleased) -> None:
        self._claim_changed(seq, at, data)
        if data.unfit:
            task = self.tasks.table.rows[data.task_id]
            assert isinstance(task, Task), "a released task is open"
            kind = kind_of(task, task.base)
            self.workers.found_unfit(task.claims[-1].worker_id, at, kind, data.reason)

    def _task_ended(
        self,
        seq: int,
        at: int,
        data: events.TaskCompleted | events.TaskFailed | events.TaskCancelled,
    ) -> None:
        node_id = self.tasks.table.rows[data.task_id].node_id
        self._claim_changed(seq, at, data)
        if isinstance(data, events.TaskCompleted):
            self.rounds.task_ended(node_id, data.task_id, data.worker_id, tuple(data.candidates))
        else:
            self.rounds.task_ended(node_id, data.task_id, "", ())

    def _role_entered(self, seq: int, at: int, data: events.RoleEntered) -> None:
        self.rounds.apply(seq, at, data)
        self.tasks.entered_round(data)

    def _round_decided(self, seq: int, at: int, data: events.RoundDecided) -> None:
        before = self.rounds.table.get(data.round_id)
        self.rounds.apply(seq, at, data)
        assert isinstance(before, Round), "only an open round is decided"
        self.rivalry.decided(before, data)
        self.questions.decided(before, at, data)
        for worker_id, is_off in claims.judged(before, data):
            self.workers.measured(worker_id, is_off)

    def _writer_started(self, seq: int, at: int, data: events.WriterStarted) -> None:
        self.log.put("writer", LogHead(epoch=data.epoch, process=data.process))

    def _log_sealed(self, seq: int, at: int, data: events.LogSealed) -> None:
        sealed = self.sealed
        if (data.first, data.previous) != (sealed.last + 1, sealed.digest):
            raise errors.UnfitEvent(f"the log was sealed up to {sealed.last}")
        self.seals.put("newest", Sealed(last=data.last, digest=data.digest, seq=seq))

    def _of_no_table(
        self, seq: int, at: int, data: events.LossAccepted | events.ArtifactsSwept
    ) -> None:
        """It is there to be read; what was lost, or swept, is in no table."""

    def _awaits_round(self, data: events.TaskClaimed) -> None:
        task = self.tasks.table.rows[data.task_id]
        assert isinstance(task, Task), "a claimed task is open"
        if task.round_id and self.rounds.node(task.node_id).open_round == task.round_id:
            return
        waiting = Waiting(
            task_id=task.task_id, role=task.role, worker_id=data.worker_id, workload=task.workload
        )
        self.rounds.task_claimed(waiting, task.node_id)

    def tables(self) -> tuple[Table[object], ...]:  # type: ignore[type-var]
        """Every table the state hash covers."""
        return (  # type: ignore[return-value]
            self.graph.nodes,
            self.graph.champions,
            self.graph.best,
            self.graph.of_budgets,
            self.tasks.table,
            self.tasks.keys,
            self.workers.table,
            self.rounds.table,
            self.rounds.nodes,
            self.rounds.commitments,
            self.rivalry.table,
            self.rivalry.ordered,
            self.questions.table,
            self.log,
            self.seals,
            self.quarantine,
        )

    def settle(self, rows_max: int) -> bool:
        """Work on the hash ahead of the question, by at most so many rows; whether none is left."""
        for table in self.tables():
            if rows_max <= 0:
                return False
            rows_max -= table.settle(rows_max)
        return rows_max > 0

    def hash(self) -> str:
        """SHA-256 over sequence and digest of every table, hex; equal states, equal hashes."""
        digest = hashlib.sha256(str(self.seq).encode())
        for table in self.tables():
            digest.update(table.name.encode() + table.digest())
        return digest.hexdigest()
