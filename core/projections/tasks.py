"""Tasks: the open ones whole, the completed ones as a compact row that points into the log."""

import operator
from array import array
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from core import errors, events
from core.events import Base, Candidate, Checkpoint, Requires, Role, Token, Via, Workload
from core.projections.queue import Queue, order_key
from core.projections.tables import Table

ATTEMPTS_MAX = 5
IDEMPOTENCY_KEYS_MAX = 100_000
LOG_TAIL_CHARS_MAX = 4_000
RECENT_MAX = 1_024
OPEN = ("queued", "running")
"""The statuses of tasks that are still to be done."""

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
ClaimState = Literal["open", "expired", "released", "failed", "completed", "cancelled"]


class Claim(events.Value, frozen=True, kw_only=True):
    """One attempt: who holds or held the task, from when to when, and how it ended."""

    attempt: int
    claim_id: str
    worker_id: str
    via: Via
    session: str
    claimed_at: int
    lease_seconds: float
    state: ClaimState = "open"
    ended_at: int = 0
    reason: str = ""
    resumed_from: int = 0


class Result(events.Value, frozen=True, kw_only=True):
    """What a completion brought."""

    worker_id: str
    completed_at: int
    metrics: msgspec.Raw
    metrics_digest: str
    artifact_name: str | None
    artifact_uploaded: bool
    artifact_digest: str
    candidates: tuple[Candidate, ...]


class Task(events.Value, frozen=True, kw_only=True, tag=True):
    """A task with its whole history. `ticket` is the sequence that last queued it."""

    task_id: str
    node_id: str
    topic: str
    priority: int
    role: Role
    method: str
    seed: int
    budget_seconds: float | None
    requires: Requires
    workload: Workload
    workload_inherited: bool
    created_at: int
    updated_at: int
    status: Status
    ticket: int
    first_seq: int
    claims: tuple[Claim, ...] = ()
    strikes: int = 0
    resume: tuple[Checkpoint, ...] = ()
    base: Base | None = None
    round_id: str = ""
    reasons: tuple[str, ...] = ()
    log_tail: str = ""
    result: Result | None = None

    @property
    def claim(self) -> Claim | None:
        """The latest claim, ended or not."""
        return self.claims[-1] if self.claims else None

    @property
    def holder(self) -> str | None:
        """The worker that holds the task or delivered it."""
        if self.status == "running":
            return self.claims[-1].worker_id
        return self.result.worker_id if self.result else None


class Done(events.Value, frozen=True, kw_only=True, tag=True):
    """A completed task in brief; the rest is in the log from `first_seq` on its subject."""

    task_id: str
    node_id: str
    worker_id: str
    attempt: int
    claim_id: str
    first_seq: int
    round_id: str = ""

    @property
    def status(self) -> Status:
        """Completed, by definition."""
        return "completed"


class IdempotencyKey(events.Value, frozen=True, kw_only=True):
    """The task that an Idempotency-Key of an enqueue stands for, and a digest of what was asked
    for ("" in logs from before it was kept)."""

    task_id: str
    request: str = ""


def evolve(task: Task | None, seq: int, at: int, data: events.EventData) -> Task:
    """Fold one event into a task's whole record."""
    if isinstance(data, events.TaskQueued):
        return _queued(seq, at, data)
    if task is None:
        raise errors.UnfitEvent(f"{type(data).__name__} before TaskQueued")
    fold = _EVOLVE.get(type(data))
    if fold is None:
        raise errors.UnfitEvent(f"{type(data).__name__} is no event of a task")
    return fold(task, seq, at, data)


def _queued(seq: int, at: int, data: events.TaskQueued) -> Task:
    return Task(
        task_id=data.task_id,
        node_id=data.node_id,
        topic=data.topic,
        priority=data.priority,
        role=data.role,
        method=data.method,
        seed=data.seed,
        budget_seconds=data.budget_seconds,
        requires=data.requires,
        workload=data.workload,
        workload_inherited=data.workload_inherited,
        created_at=at,
        updated_at=at,
        status="queued",
        ticket=seq,
        first_seq=seq,
    )


def _claimed(task: Task, seq: int, at: int, data: events.TaskClaimed) -> Task:
    claim = Claim(
        attempt=data.attempt,
        claim_id=data.claim_id,
        worker_id=data.worker_id,
        via=data.via,
        session=data.session,
        claimed_at=at,
        lease_seconds=data.lease_seconds,
        resumed_from=sum(point.step for point in data.resume) if data.resume else 0,
    )
    claims = (*task.claims, claim)
    return events.replace(task, status="running", updated_at=at, claims=claims, base=data.base)


def _checkpointed(task: Task, seq: int, at: int, data: events.CheckpointStored) -> Task:
    kept = tuple(p for p in task.resume if p.rival != data.checkpoint.rival)
    return events.replace(task, updated_at=at, resume=(*kept, data.checkpoint))


def _adopted(task: Task, seq: int, at: int, data: events.ClaimAdopted) -> Task:
    return _with_claim(task, at, session=data.session)


def _revived(task: Task, seq: int, at: int, data: events.ClaimRevived) -> Task:
    revived = _with_claim(task, at, state="open", ended_at=0, reason="", session=data.session)
    return events.replace(revived, status="running")


def _expired(task: Task, seq: int, at: int, data: events.ClaimExpired) -> Task:
    return _requeued(task, seq, at, "expired", data.reason, strike=True)


def _released(task: Task, seq: int, at: int, data: events.ClaimReleased) -> Task:
    return _requeued(task, seq, at, "released", data.reason, strike=False)


def _failed_once(task: Task, seq: int, at: int, data: events.AttemptFailed) -> Task:
    failed = _requeued(task, seq, at, "failed", data.reason, strike=True)
    return events.replace(failed, log_tail=data.log_tail)


def _failed(task: Task, seq: int, at: int, data: events.TaskFailed) -> Task:
    tail = data.log_tail or task.log_tail
    return events.replace(
        task, status="failed", updated_at=at, reasons=tuple(data.reasons), log_tail=tail
    )


def _cancelled(task: Task, seq: int, at: int, data: events.TaskCancelled) -> Task:
    ended = task
    if task.status == "running":
        ended = _with_claim(task, at, state="cancelled", ended_at=at, reason=data.reason)
    return events.replace(ended, status="cancelled", updated_at=at, reasons=(data.reason,))


def _retried(task: Task, seq: int, at: int, data: events.TaskRetried) -> Task:
    return events.replace(task, status="queued", updated_at=at, ticket=seq, strikes=0, reasons=())


def _with_claim(task: Task, at: int, **changes: object) -> Task:
    claim = events.replace(task.claims[-1], **changes)
    return events.replace(task, updated_at=at, claims=(*task.claims[:-1], claim))


def _requeued(
    task: Task, seq: int, at: int, state: ClaimState, reason: str, *, strike: bool
) -> Task:
    ended = _with_claim(task, at, state=state, ended_at=at, reason=reason)
    return events.replace(ended, status="queued", ticket=seq, strikes=task.strikes + strike)


def _completed(task: Task, seq: int, at: int, data: events.TaskCompleted) -> Task:
    claim = events.replace(task.claims[-1], state="completed", ended_at=at)
    result = Result(
        worker_id=data.worker_id,
        completed_at=at,
        metrics=data.metrics.copy(),
        metrics_digest=data.metrics_digest,
        artifact_name=data.artifact_name,
        artifact_uploaded=data.artifact_uploaded,
        artifact_digest=data.artifact_digest,
        candidates=tuple(data.candidates),
    )
    return events.replace(
        task,
        status="completed",
        updated_at=at,
        claims=(*task.claims[:-1], claim),
        result=result,
    )


_EVOLVE: dict[type, Callable[[Task, int, int, Any], Task]] = {
    events.TaskClaimed: _claimed,
    events.CheckpointStored: _checkpointed,
    events.ClaimAdopted: _adopted,
    events.ClaimExpired: _expired,
    events.ClaimRevived: _revived,
    events.ClaimReleased: _released,
    events.AttemptFailed: _failed_once,
    events.TaskCompleted: _completed,
    events.TaskFailed: _failed,
    events.TaskCancelled: _cancelled,
    events.TaskRetried: _retried,
}


_OF_A_CLAIM = frozenset(
    {
        events.ClaimAdopted,
        events.ClaimExpired,
        events.ClaimRevived,
        events.ClaimReleased,
        events.CheckpointStored,
        events.AttemptFailed,
        events.TaskCompleted,
    }
)


class Tasks:
    """All tasks, the queue of the queued ones, and who holds the running ones."""

    def __init__(self) -> None:
        self.table: Table[Task | Done] = Table("tasks")
        self.keys: Table[IdempotencyKey] = Table("idempotency_keys")
        self.queue = Queue()
        self.counts: dict[str, int] = dict.fromkeys(
            ("queued", "running", "completed", "failed", "cancelled"), 0
        )
        self.held: dict[str, dict[str, None]] = {}
        """Running tasks by the worker that holds them, in order of claiming."""
        self.open_of_node: dict[str, int] = {}
        """How many queued and running tasks each node has."""
        self.recent: dict[str, Task] = {}
        """The last completed tasks whole, so that their answers need no reading of the log."""
        self.ids: list[str] = []
        self.first_seqs: array[int] = array("q")

    def apply(self, seq: int, at: int, data: events.OfTasks) -> None:
        """Fold an event of a task."""
        task_id = data.task_id
        before = self.table.rows.get(task_id)
        if before is None:
            self._add(evolve(None, seq, at, data), data)
            return
        if type(before) is Done or type(data) is events.TaskQueued:
            raise errors.UnfitEvent(f"{type(data).__name__} on a task that is {before.status}")
        assert isinstance(before, Task), "what is not done is whole"
        if type(data) in _OF_A_CLAIM:
            claim = before.claim
            if claim is None or (claim.attempt, claim.claim_id) != (data.attempt, data.claim_id):  # type: ignore[union-attr]
                raise errors.UnfitEvent(f"{type(data).__name__} of a claim that is not the latest")
        after = evolve(before, seq, at, data)
        if after.status != before.status:
            self._left(before)
            self._entered(before, after)
        if after.status == "completed":
            self._complete(after)
        else:
            self.table.put(task_id, after)

    def _add(self, task: Task, data: events.OfTasks) -> None:
        assert isinstance(data, events.TaskQueued), "a task begins by being queued"
        self.open_of_node[task.node_id] = self.open_of_node.get(task.node_id, 0) + 1
        self.counts["queued"] += 1
        self._enqueue(task)
        self.table.put(task.task_id, task)
        self.ids.append(task.task_id)
        self.first_seqs.append(task.first_seq)
        if data.idempotency_key:
            known = IdempotencyKey(task_id=task.task_id, request=data.request)
            self._remember(data.idempotency_key, known)

    def _complete(self, task: Task) -> None:
        self.table.put(task.task_id, _brief(task))
        self.recent[task.task_id] = task
        if len(self.recent) > RECENT_MAX:
            del self.recent[next(iter(self.recent))]

    def entered_round(self, data: events.RoleEntered) -> None:
        """Fold RoleEntered: the task's candidate stands in this round."""
        task = self.table.rows[data.task_id]
        self.table.put(data.task_id, events.replace(task, round_id=data.round_id))

    def _left(self, before: Task) -> None:
        """Take a task out of the index of the status it had."""
        self.counts[before.status] -= 1
        if before.status == "running":
            worker_id = before.claims[-1].worker_id
            held = self.held[worker_id]
            del held[before.task_id]
            if not held:
                del self.held[worker_id]
        elif before.status == "queued":
            self.queue.removed(before.requires, before.role == "merge")

    def _entered(self, before: Task, after: Task) -> None:
        """Put a task into the index of the status it has now."""
        self.counts[after.status] += 1
        if after.status == "running":
            self.held.setdefault(after.claims[-1].worker_id, {})[after.task_id] = None
            if before.status not in OPEN:
                self.open_of_node[after.node_id] += 1
        elif after.status == "queued":
            self._enqueue(after)
            if before.status not in OPEN:
                self.open_of_node[after.node_id] += 1
        elif before.status in OPEN:
            self.open_of_node[after.node_id] -= 1
        if before.status == "queued":
            self.queue.compact(self.ticket)

    def _enqueue(self, task: Task) -> None:
        key = order_key(task.created_at, task.priority)
        self.queue.add(task.task_id, task.requires, task.role == "merge", key, task.ticket)

    def ticket(self, task_id: str) -> int:
        """The ticket under which a task is queued now, or -1."""
        task = self.table.rows[task_id]
        return task.ticket if isinstance(task, Task) and task.status == "queued" else -1

    def _remember(self, key: str, known: IdempotencyKey) -> None:
        self.keys.put(key, known)
        if len(self.keys) > IDEMPOTENCY_KEYS_MAX:
            self.keys.drop(next(iter(self.keys.rows)))

    # ── from a snapshot ──

    def restore(self, rows: list[Task | Done]) -> None:
        """Put back rows in their order, and what follows from them: ids, sequences, the queue."""
        keys = list(map(_task_id, rows))
        self.ids += keys
        self.first_seqs.extend(map(_first_seq, rows))
        self.table.rows.update(zip(keys, rows, strict=True))
        for row in rows:
            if type(row) is Task and row.status == "queued":
                self._enqueue(row)

    def restore_recent(self, rows: list[Task]) -> None:
        """Put back completed tasks that are kept whole."""
        for row in rows:
            assert row.result is not None, "it is completed"
            # Else a few bytes of metrics keep all that they were decoded from.
            result = events.replace(row.result, metrics=row.result.metrics.copy())
            self.recent[row.task_id] = events.replace(row, result=result)


_task_id = operator.attrgetter("task_id")
_first_seq = operator.attrgetter("first_seq")


def _brief(task: Task) -> Done:
    claim = task.claims[-1]
    return Done(
        task_id=task.task_id,
        node_id=task.node_id,
        worker_id=claim.worker_id,
        attempt=claim.attempt,
        claim_id=claim.claim_id,
        first_seq=task.first_seq,
        round_id=task.round_id,
    )


def token_of(task: Task) -> Token:
    """The fencing token of a task's latest claim."""
    claim = task.claims[-1]
    return Token(task_id=task.task_id, attempt=claim.attempt, claim_id=claim.claim_id)
