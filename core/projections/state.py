"""All durable state, and the one fold that makes it from events."""

import hashlib

from core import errors, events
from core.events import Event, Undecodable
from core.projections.graph import Graph
from core.projections.rounds import Rounds, Waiting
from core.projections.tables import Table
from core.projections.tasks import Task, Tasks
from core.projections.workers import Workers


class LogHead(events.Value, frozen=True, kw_only=True):
    """Who writes the log."""

    epoch: int
    process: str


class Quarantined(events.Value, frozen=True, kw_only=True):
    """A stored record that could not be folded."""

    seq: int
    subject: str
    reason: str


class State:
    """Projections of the log up to and including `seq`."""

    def __init__(self) -> None:
        self.seq = 0
        self.graph = Graph()
        self.tasks = Tasks()
        self.workers = Workers()
        self.rounds = Rounds()
        self.log: Table[LogHead] = Table("log")
        self.quarantine: Table[Quarantined] = Table("quarantine")
        self.read_only: set[str] = set()
        """Subjects with a quarantined record: their aggregates must not be written here."""

    @property
    def epoch(self) -> int:
        """The epoch of the newest writer, 0 before the first."""
        head = self.log.get("writer")
        return head.epoch if head else 0

    def evolve(self, event: Event) -> None:
        """Fold one event; one that contradicts the state is quarantined, never fatal."""
        self.seq = event.seq
        try:
            self._fold(event.seq, event.at, event.data)
        except (errors.UnfitEvent, KeyError) as error:
            reason = f"does not fit the state: {error}"
            self._quarantine(event.seq, events.subject_of(event.data), reason)

    def skip(self, record: Undecodable) -> None:
        """Quarantine a record that cannot be decoded."""
        self.seq = record.seq
        self._quarantine(record.seq, record.subject, record.reason)

    def _quarantine(self, seq: int, subject: str, reason: str) -> None:
        self.quarantine.put(str(seq), Quarantined(seq=seq, subject=subject, reason=reason))
        self.read_only.add(subject)

    def _fold(self, seq: int, at: int, data: events.EventData) -> None:
        match data:
            case (
                events.TaskQueued()
                | events.CheckpointStored()
                | events.ClaimAdopted()
                | events.ClaimExpired()
                | events.ClaimRevived()
                | events.ClaimReleased()
                | events.AttemptFailed()
                | events.TaskRetried()
            ):
                self.tasks.apply(seq, at, data)
            case events.TaskClaimed():
                self.tasks.apply(seq, at, data)
                if data.via == "nats":
                    self._awaits_round(data)
            case events.TaskCompleted():
                node_id = self.tasks.table.rows[data.task_id].node_id
                self.tasks.apply(seq, at, data)
                self.rounds.task_ended(
                    node_id, data.task_id, data.worker_id, tuple(data.candidates)
                )
            case events.TaskFailed() | events.TaskCancelled():
                node_id = self.tasks.table.rows[data.task_id].node_id
                self.tasks.apply(seq, at, data)
                self.rounds.task_ended(node_id, data.task_id, "", ())
            case (
                events.WorkerRegistered()
                | events.WorkerChanged()
                | events.SessionOpened()
                | events.WorkerWentOffline()
                | events.WorkerCameOnline()
            ):
                self.workers.apply(at, data)
            case events.RoleEntered():
                self.rounds.apply(at, data)
                self.tasks.entered_round(data)
            case (
                events.RoundOpened()
                | events.CandidateAdmitted()
                | events.RoleClosed()
                | events.RoundClosed()
                | events.JudgingStarted()
                | events.RoundDecided()
            ):
                self.rounds.apply(at, data)
            case events.NodeAdded():
                self.graph.added(data)
            case events.ChampionPromoted():
                self.graph.promoted(data)
            case events.WriterStarted():
                self.log.put("writer", LogHead(epoch=data.epoch, process=data.process))
            case events.CommitmentsDeposited():
                self.rounds.deposited(data)

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
            self.tasks.table,
            self.tasks.keys,
            self.workers.table,
            self.rounds.table,
            self.rounds.nodes,
            self.rounds.commitments,
            self.log,
            self.quarantine,
        )

    def hash(self) -> str:
        """SHA-256 over sequence and digest of every table, hex; equal states, equal hashes."""
        digest = hashlib.sha256(str(self.seq).encode())
        for table in self.tables():
            digest.update(table.name.encode() + table.digest())
        return digest.hexdigest()
