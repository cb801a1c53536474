"""Tasks: the open ones whole, the completed ones as a compact row that points into the log."""

import operator
from array import array
from collections.abc import Callable, Iterator
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
CLAIMS_KEPT = 32
"""The newest of a task: it may be claimed and given back for ever. More than its strikes allow, and
the number of the first one kept tells how many came before."""
ENDED_CHARS_MAX = 32 * 1024 * 1024
"""Of topics, reasons and last log lines of failed and cancelled tasks; what ends beyond that leaves
them to the log."""
OPEN = ("queued", "running")
"""The statuses of tasks that are still to be done."""
ENDED = ("failed", "cancelled")
"""The statuses of tasks that ended without a result and may be queued again."""

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
    price_per_hour: float | None = None


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
    """A task with its history. `ticket` is the sequence that last queued it; of one that was
    `shortened`, some words are in the log alone, from `first_seq` on its subject."""

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
    parents: tuple[Base, ...] = ()
    shortened: bool = False
    telemetry_digest: str = ""
    """Of the result, or else of the latest attempt that failed, if its agent told how it went."""

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


class Kind(events.Value, frozen=True, kw_only=True):
    """Tasks that take the same of a worker; `models` are those they start from or learn from."""

    node_id: str
    workload: Workload
    role: Role
    method: str
    models: tuple[str, ...] = ()


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
        parents=tuple(data.parents),
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
        price_per_hour=data.price_per_hour,
    )
    claims = (*task.claims[1 - CLAIMS_KEPT :], claim)
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
    told = data.telemetry_digest or task.telemetry_digest
    return events.replace(failed, log_tail=data.log_tail, telemetry_digest=told)


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
    return events.replace(
        task,
        status="queued",
        updated_at=at,
        ticket=seq,
        strikes=0,
        reasons=(),
        topic=data.topic or task.topic,
    )


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
        telemetry_digest=data.telemetry_digest,
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
        self.queued_of_role: dict[tuple[str, Role], int] = {}
        """How many tasks of a node and role are queued and can be given out."""
        self.closed: set[str] = set()
        """Ids of tasks nothing can be written on any more: they are not given out, and whoever held
        one holds it no longer."""
        self.open_topic_chars = 0
        """Of the topics of queued and running tasks, which are what a long queue weighs."""
        self.ended_chars = 0
        """Of what failed and cancelled tasks hold in words."""
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
        if before.status in ENDED or after.status in ENDED:
            after = self._weighed(before, after)
        if after.status != before.status:
            self._left(before)
            self._entered(before, after)
        if after.status == "completed":
            self._complete(after)
        else:
            self.table.put(task_id, after)

    def close(self, task_id: str) -> None:
        """Keep a task, known yet or not, from being given out or held."""
        if task_id in self.closed:
            return
        self.closed.add(task_id)
        task = self.table.rows.get(task_id)
        if not isinstance(task, Task):
            return
        if task.status == "queued":
            self._dequeue(task)
        elif task.status == "running":
            self._let_go(task)

    def open_and_closed(self) -> Iterator[Task]:
        """Tasks that would be to do, and are never given out."""
        for task_id in self.closed:
            task = self.table.rows.get(task_id)
            if isinstance(task, Task) and task.status in OPEN:
                yield task

    def _add(self, task: Task, data: events.OfTasks) -> None:
        assert isinstance(data, events.TaskQueued), "a task begins by being queued"
        self.open_of_node[task.node_id] = self.open_of_node.get(task.node_id, 0) + 1
        self.open_topic_chars += len(task.topic)
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

    def _weighed(self, before: Task, after: Task) -> Task:
        """A task that ends or is queued again, shortened where those that ended hold enough."""
        if before.status in ENDED:
            self.ended_chars -= _chars(before)
        if after.status not in ENDED:
            return after
        if self.ended_chars + _chars(after) > ENDED_CHARS_MAX:
            after = events.replace(after, topic="", reasons=(), log_tail="", shortened=True)
        self.ended_chars += _chars(after)
        return after

    def entered_round(self, data: events.RoleEntered) -> None:
        """Fold RoleEntered: the task's candidate stands in this round."""
        task = self.table.rows[data.task_id]
        self.table.put(data.task_id, events.replace(task, round_id=data.round_id))

    def _left(self, before: Task) -> None:
        """Take a task out of the index of the status it had."""
        self.counts[before.status] -= 1
        if before.task_id in self.closed:
            return
        if before.status == "running":
            self._let_go(before)
        elif before.status == "queued":
            self._dequeue(before)

    def _let_go(self, task: Task) -> None:
        worker_id = task.claims[-1].worker_id
        held = self.held.get(worker_id, {})
        held.pop(task.task_id, None)
        if not held:
            self.held.pop(worker_id, None)

    def _entered(self, before: Task, after: Task) -> None:
        """Put a task into the index of the status it has now."""
        self.counts[after.status] += 1
        if after.status == "running" and after.task_id not in self.closed:
            self.held.setdefault(after.claims[-1].worker_id, {})[after.task_id] = None
        elif after.status == "queued":
            self._enqueue(after)
        closed, opened = before.status in OPEN, after.status in OPEN
        self.open_of_node[after.node_id] += opened - closed
        self.open_topic_chars += opened * len(after.topic) - closed * len(before.topic)
        if before.status == "queued":
            self.queue.compact(self.ticket)

    def _enqueue(self, task: Task) -> None:
        if task.task_id in self.closed:
            return
        key = order_key(task.created_at, task.priority)
        is_merge = task.role == "merge"
        self.queue.add(task.task_id, task.requires, is_merge, _lot(task), key, task.ticket)
        kind = (task.node_id, task.role)
        self.queued_of_role[kind] = self.queued_of_role.get(kind, 0) + 1

    def _dequeue(self, task: Task) -> None:
        self.queue.removed(task.requires, task.role == "merge")
        kind = (task.node_id, task.role)
        self.queued_of_role[kind] -= 1
        if not self.queued_of_role[kind]:
            del self.queued_of_role[kind]

    def ticket(self, task_id: str) -> int:
        """The ticket under which a task is queued now and given out, or -1."""
        task = self.table.rows[task_id]
        if not isinstance(task, Task) or task.status != "queued" or task_id in self.closed:
            return -1
        return task.ticket

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
            if type(row) is not Task:
                continue
            if row.status in ENDED:
                self.ended_chars += _chars(row)
                continue
            self.open_topic_chars += len(row.topic)
            if row.status == "queued":
                self._enqueue(row)

    def restore_recent(self, rows: list[Task]) -> None:
        """Put back completed tasks that are kept whole."""
        for row in rows:
            assert row.result is not None, "it is completed"
            # Else a few bytes of metrics keep all that they were decoded from.
            result = events.replace(row.result, metrics=row.result.metrics.copy())
            self.recent[row.task_id] = events.replace(row, result=result)


_encode = msgspec.msgpack.Encoder().encode
_task_id = operator.attrgetter("task_id")
_first_seq = operator.attrgetter("first_seq")


def _chars(task: Task) -> int:
    """What a task that ended weighs in words."""
    return len(task.topic) + len(task.log_tail) + sum(map(len, task.reasons))


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


def kind_of(task: Task, base: Base | None) -> Kind:
    """What a task that starts from this base takes of a worker."""
    models = (*([base] if base else []), *task.parents)
    return Kind(
        node_id=task.node_id,
        workload=task.workload,
        role=task.role,
        method=task.method,
        models=tuple(one.candidate_id for one in models),
    )


def _lot(task: Task) -> bytes:
    """Queued tasks with the same have one kind, whatever champion they would start from now."""
    is_resumed = bool(task.resume)
    base = task.base if is_resumed else None
    like = (task.node_id, task.role, task.method, task.workload, task.parents, is_resumed, base)
    return _encode(like)


def token_of(task: Task) -> Token:
    """The fencing token of a task's latest claim."""
    claim = task.claims[-1]
    return Token(task_id=task.task_id, attempt=claim.attempt, claim_id=claim.claim_id)
