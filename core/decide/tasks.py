"""The life of a task: queued, claimed under a fencing token, completed once."""

import hashlib

import msgspec

from core import commands, errors, events
from core.decide import closed, fitness, merges, workers
from core.events import Requires, Token
from core.projections.rounds import rivals_of
from core.projections.state import State
from core.projections.tasks import ATTEMPTS_MAX, ENDED, LOG_TAIL_CHARS_MAX, Claim, Done, Task
from core.projections.workers import Worker

OPEN_TASKS_MAX = 1_000_000
TOPIC_CHARS_MAX = 128 * 1024 * 1024
"""Of all open tasks, which are whole in memory: at most 512 MiB, by one to four bytes each."""
HELD_MAX = 64
REASON_CHARS_MAX = 1_000
REQUEST_DIGITS = 16


def enqueue(state: State, command: commands.EnqueueTask) -> list[events.EventData]:
    """Queue a task. An idempotency key seen before queues nothing.

    Raises NotFound, Conflict for a key that another request was queued under, QuotaExceeded where
    the queue weighs too much, and what `merges` raises.
    """
    request = _request(command) if command.idempotency_key else ""
    known = state.tasks.keys.get(command.idempotency_key) if request else None
    if known is not None:
        if known.request not in ("", request):
            raise errors.Conflict(
                f"this Idempotency-Key was used for another request, which queued {known.task_id}; "
                f"nothing changed. Repeat that request, or send this one under a new key"
            )
        return []
    if command.node_id not in state.graph.nodes:
        raise errors.NotFound("target node not found")
    _require_place(state, command.topic)
    role = merges.role_of(command)
    workload, inherited = state.graph.workload(command.node_id)
    return [
        events.TaskQueued(
            task_id=command.task_id,
            node_id=command.node_id,
            topic=command.topic,
            priority=command.priority,
            role=role,
            method="merge" if role == "merge" else command.method,
            seed=command.seed,
            budget_seconds=command.budget_seconds,
            requires=command.requires,
            workload=workload,
            workload_inherited=inherited,
            idempotency_key=command.idempotency_key,
            request=request,
            parents=merges.parents_of(state, command, workload) if role == "merge" else [],
        )
    ]


def _require_place(state: State, topic: str) -> None:
    """Raise Overloaded or QuotaExceeded where one more task is too much for the queue."""
    if state.tasks.counts["queued"] >= OPEN_TASKS_MAX:
        raise errors.Overloaded(
            f"{OPEN_TASKS_MAX} tasks are queued, the most the queue holds; "
            f"wait for workers or cancel some"
        )
    if state.tasks.open_topic_chars + len(topic) > TOPIC_CHARS_MAX:
        raise errors.QuotaExceeded(
            f"the topics of open tasks have {state.tasks.open_topic_chars} characters, and may "
            f"have {TOPIC_CHARS_MAX}; shorten this one, wait for workers or cancel some"
        )


def _request(command: commands.EnqueueTask) -> str:
    """A digest of what was asked for; ids, and a seed nobody asked for, are no part of it."""
    asked = (
        command.node_id,
        command.topic,
        command.priority,
        command.role,
        command.method,
        None if command.is_seed_drawn else command.seed,
        command.budget_seconds,
        command.requires,
    )
    # Requests without parents keep the digest they had before there were any.
    whole = (*asked, sorted(command.parents)) if command.parents else asked
    return hashlib.sha256(msgspec.json.encode(whole)).hexdigest()[:REQUEST_DIGITS]


def _slots(worker: Worker) -> int:
    try:
        declared = msgspec.json.decode(worker.capabilities)
    except msgspec.DecodeError:
        return 1
    slots = declared.get("slots") if isinstance(declared, dict) else None
    return slots if isinstance(slots, int) else 1


def claimable(
    state: State, worker_id: str, via: events.Via, now: int, signalled_at: int = 0
) -> str | None:
    """The task a worker would be given now: one it may already hold, or the best in order.

    An HTTP worker whose answer may have been lost gets its only claim again: it showed itself
    after that claim and has not declared more than one slot.
    """
    worker = state.workers.table.get(worker_id)
    if worker is None or worker.status != "online" or worker.via != via:
        return None
    if via == "http":
        again = unanswered(state, worker_id, signalled_at)
        if again is not None:
            return again
    if worker.pause:
        return None
    if via == "nats" and len(state.tasks.held.get(worker_id, ())) >= HELD_MAX:
        return None

    def fits(requires: Requires, merge: bool) -> bool:
        if via == "http":
            return not merge
        return fitness.lane_runs(worker.lane, requires)

    return state.tasks.queue.best(fits, state.tasks.ticket, fitness.unfit(state, worker, now))


def unanswered(state: State, worker_id: str, signalled_at: int) -> str | None:
    """The only task an HTTP worker holds, where it may not have heard of it: it showed itself after
    that claim, and has not declared more than one slot."""
    worker = state.workers.table.get(worker_id)
    held = state.tasks.held.get(worker_id, {})
    if worker is None or worker.status != "online" or len(held) != 1:
        return None
    task = state.tasks.table.rows[next(iter(held))]
    assert isinstance(task, Task), "a held task is open"
    claim = task.claims[-1]
    if claim.via != "http" or signalled_at <= claim.claimed_at or _slots(worker) > 1:
        return None
    return task.task_id


def claim(state: State, command: commands.ClaimTask, now: int) -> list[events.EventData]:
    """Give the best task to a worker; nothing happens when there is none, or when it was given
    under this claim id already."""
    if command.via == "nats":
        workers.require_session(state, command.worker_id, command.session)
        if held_under(state, command.worker_id, command.claim_id) is not None:
            return []
    task_id = claimable(state, command.worker_id, command.via, now, command.signalled_at)
    if task_id is None:
        return []
    task = state.tasks.table.rows[task_id]
    assert isinstance(task, Task), "a claimable task is open"
    if task.status == "running":
        return []
    base = fitness.base_of(state, task)
    return [
        events.TaskClaimed(
            task_id=task_id,
            attempt=task.claims[-1].attempt + 1 if task.claims else 1,
            claim_id=command.claim_id,
            worker_id=command.worker_id,
            via=command.via,
            lease_seconds=command.lease_seconds,
            session=command.session,
            base=base,
            resume=list(task.resume) if command.via == "nats" else [],
            price_per_hour=state.workers.table.rows[command.worker_id].price_per_hour,
        )
    ]


def held_under(state: State, worker_id: str, claim_id: str) -> Task | None:
    """The task that a worker holds under a claim id, if any."""
    for task_id in reversed(state.tasks.held.get(worker_id, {})):
        task = state.tasks.table.rows[task_id]
        assert isinstance(task, Task), "a held task is open"
        if task.claims[-1].claim_id == claim_id:
            return task
    return None


def _open_task(state: State, task_id: str) -> Task | Done:
    task = state.tasks.table.get(task_id)
    if task is None:
        raise errors.NotFound(f"there is no task {task_id}")
    return task


def _fence(
    state: State, token: Token, worker_id: str, session: str
) -> tuple[Task, list[events.EventData]]:
    """The task a token still holds, and the revival of its claim where it had expired.

    Raises NotFound, SupersededSession, or StaleAttempt when a later attempt was claimed, a
    result is stored, or the holder itself gave the task up.
    """
    task = _open_task(state, token.task_id)
    workers.require_session(state, worker_id, session)
    if isinstance(task, Done):
        raise errors.StaleAttempt(
            f"{token.task_id} has its result already, from attempt {task.attempt}; stop this work"
        )
    claim = task.claim
    if claim is None or claim.attempt != token.attempt or claim.claim_id != token.claim_id:
        latest = claim.attempt if claim else 0
        raise errors.StaleAttempt(
            f"attempt {token.attempt} of {token.task_id} was overtaken: attempt {latest} is the "
            f"latest; stop this work"
        )
    if claim.worker_id != worker_id:
        raise errors.NotOwner("worker does not own this task")
    if claim.state == "expired" and task.status == "queued":
        return task, [_revival(claim, task, session)]
    if claim.state != "open":
        raise errors.StaleAttempt(
            f"attempt {token.attempt} of {token.task_id} is {claim.state}; stop this work"
        )
    return task, []


def _revival(claim: Claim, task: Task, session: str) -> events.ClaimRevived:
    return events.ClaimRevived(
        task_id=task.task_id, attempt=claim.attempt, claim_id=claim.claim_id, session=session
    )


def store_checkpoint(state: State, command: commands.StoreCheckpoint) -> list[events.EventData]:
    """Keep a checkpoint that others can go on from.

    Raises as `_fence` does, and Invalid for what no training of this task leaves.
    """
    task, revived = _fence(state, command.token, command.worker_id, command.session)
    _require_fitting(task, command.checkpoint)
    token = command.token
    return [
        *revived,
        events.CheckpointStored(
            task_id=task.task_id,
            attempt=token.attempt,
            claim_id=token.claim_id,
            checkpoint=command.checkpoint,
        ),
    ]


def _require_fitting(task: Task, point: events.Checkpoint) -> None:
    if point.rival not in rivals_of(task.role):
        raise errors.Invalid(
            f"{task.task_id}, a task of the role {task.role}, brings no {point.rival}, and keeps "
            "no checkpoint of one"
        )
    if point.final and point.rival == "merge":
        raise errors.Invalid("a merge has several models, and brings them with its result alone")
    if not 0 <= point.step <= (point.total_steps or point.step):
        raise errors.Invalid(f"a checkpoint at step {point.step} of {point.total_steps}")


def complete(state: State, command: commands.CompleteTask) -> list[events.EventData]:
    """Take the first result of a task; the owner's repetition changes nothing.

    Over HTTP the worker id stands for the token: whoever held the task last, or delivered it.
    Raises NotFound, NotOwner, StaleAttempt, SupersededSession, and Invalid for candidates that are
    not the task's to bring.
    """
    task = state.tasks.table.get(command.task_id)
    if task is None:
        raise errors.NotFound("task not found")  # the words that existing clients know
    if isinstance(task, Done):
        _require_repetition(task, command)
        return []
    if command.token is not None:
        task, revived = _fence(state, command.token, command.worker_id, command.session)
    else:
        revived = _require_http_owner(task, command.worker_id)
    _require_few(task, command.candidates)
    claim = task.claims[-1]
    completed = events.TaskCompleted(
        task_id=task.task_id,
        attempt=claim.attempt,
        claim_id=claim.claim_id,
        worker_id=command.worker_id,
        metrics=msgspec.Raw(command.metrics),
        metrics_digest=command.metrics_digest,
        artifact_name=command.artifact_name,
        artifact_uploaded=bool(command.artifact_digest),
        artifact_digest=command.artifact_digest,
        candidates=command.candidates,
        telemetry_digest=command.telemetry_digest,
    )
    return [*revived, completed]


def _require_few(task: Task, candidates: list[events.Candidate]) -> None:
    """A judge measures every candidate, so that nobody may bring many."""
    for rival in {one.rival for one in candidates}:
        found = sum(one.rival == rival for one in candidates)
        most = merges.CANDIDATES_MAX if rival == "merge" else 1
        if rival not in rivals_of(task.role) or found > most:
            raise errors.Invalid(
                f"{task.task_id}, a task of the role {task.role}, brings {found} candidates as "
                f"{rival}; it may bring {most if rival in rivals_of(task.role) else 'none'}"
            )


def _require_repetition(task: Done, command: commands.CompleteTask) -> None:
    token = command.token
    if token is not None and (token.attempt, token.claim_id) != (task.attempt, task.claim_id):
        raise errors.StaleAttempt(
            f"{task.task_id} has its result already, from attempt {task.attempt}; stop this work"
        )
    if command.worker_id != task.worker_id:
        raise errors.NotOwner("worker does not own this task")


def _require_http_owner(task: Task, worker_id: str) -> list[events.EventData]:
    claim = task.claim
    if claim is None or claim.worker_id != worker_id or claim.via != "http":
        raise errors.NotOwner("worker does not own this task")
    if task.status == "running" and claim.state == "open":
        return []
    if task.status == "queued" and claim.state == "expired":
        return [_revival(claim, task, "")]
    raise errors.NotOwner("worker does not own this task")


def fail_attempt(state: State, command: commands.FailAttempt) -> list[events.EventData]:
    """Record that a holder could not finish; the last allowed attempt fails the task."""
    task, revived = _fence(state, command.token, command.worker_id, command.session)
    tail = command.log_tail[-LOG_TAIL_CHARS_MAX:]
    failed = events.AttemptFailed(
        task_id=task.task_id,
        attempt=command.token.attempt,
        claim_id=command.token.claim_id,
        reason=command.reason,
        log_tail=tail,
        telemetry_digest=command.telemetry_digest,
    )
    return [*revived, failed, *_used_up(task, command.reason, tail)]


def _used_up(task: Task, reason: str, log_tail: str = "") -> list[events.EventData]:
    if task.strikes + 1 < ATTEMPTS_MAX:
        return []
    reasons = [
        f"attempt {claim.attempt} ({claim.worker_id[:64]}): {claim.reason[:REASON_CHARS_MAX]}"
        for claim in task.claims[-ATTEMPTS_MAX:-1]
        if claim.reason
    ]
    last = task.claims[-1]
    reasons.append(f"attempt {last.attempt} ({last.worker_id[:64]}): {reason[:REASON_CHARS_MAX]}")
    return [events.TaskFailed(task_id=task.task_id, reasons=reasons, log_tail=log_tail)]


def release(state: State, command: commands.ReleaseClaim) -> list[events.EventData]:
    """Give a task back."""
    task, revived = _fence(state, command.token, command.worker_id, command.session)
    released = events.ClaimReleased(
        task_id=task.task_id,
        attempt=command.token.attempt,
        claim_id=command.token.claim_id,
        reason=command.reason,
        unfit=command.unfit,
    )
    return [*revived, released]


def reattach(state: State, command: commands.ReattachClaim) -> list[events.EventData]:
    """Confirm that a task is still its holder's, reviving an expired, unrivalled claim."""
    _, revived = _fence(state, command.token, command.worker_id, command.session)
    return revived


def expire(state: State, command: commands.ExpireClaim) -> list[events.EventData]:
    """End a lease, unless the claim it was seen on has ended or moved on already."""
    task = state.tasks.table.get(command.token.task_id)
    if not isinstance(task, Task) or task.status != "running":
        return []
    claim = task.claims[-1]
    if (claim.attempt, claim.claim_id) != (command.token.attempt, command.token.claim_id):
        return []
    expired = events.ClaimExpired(
        task_id=task.task_id,
        attempt=claim.attempt,
        claim_id=claim.claim_id,
        reason=command.reason,
        last_seen=command.last_seen,
    )
    return [expired, *_used_up(task, command.reason)]


def cancel(state: State, command: commands.CancelTask) -> list[events.EventData]:
    """Withdraw a task that has no result; cancelling twice is once."""
    closed.require_open(state, "task", command.task_id)
    task = _open_task(state, command.task_id)
    if task.status == "cancelled":
        return []
    if task.status in ("completed", "failed"):
        raise errors.Conflict(
            f"{command.task_id} is {task.status} and cannot be cancelled; its record stays"
        )
    return [events.TaskCancelled(task_id=command.task_id, reason=command.reason)]


def retry(state: State, command: commands.RetryTask) -> list[events.EventData]:
    """Queue a failed or cancelled task again.

    Raises NotFound, Conflict, and as `enqueue` where the queue is too long or weighs too much.
    """
    closed.require_open(state, "task", command.task_id)
    task = _open_task(state, command.task_id)
    if isinstance(task, Done) or task.status not in ENDED:
        raise errors.Conflict(
            f"{command.task_id} is {task.status}; only failed and cancelled tasks can be retried"
        )
    topic = command.topic if task.shortened else ""
    _require_place(state, topic or task.topic)
    return [events.TaskRetried(task_id=command.task_id, topic=topic)]
