"""Registration, sessions, online and offline."""

import msgspec

from core import commands, errors, events
from core.projections.state import State
from core.projections.tasks import Task, token_of
from core.projections.workers import PRICE_MAX, Worker, told_price

WORKERS_MAX = 100_000
HOLDING_MAX = 64
"""Claims that a new session may list to keep them."""


def register(state: State, command: commands.RegisterWorker) -> list[events.EventData]:
    """Replace the worker's record. Raises Conflict for the id of an agent that is online,
    QuotaExceeded for one stranger too many, Invalid for a price that is none."""
    _require_no_agent(state, command.worker_id)
    _require_room(state, command.worker_id)
    _require_price(command.capabilities)
    return [
        events.WorkerRegistered(
            worker_id=command.worker_id,
            hostname=command.hostname,
            capabilities=msgspec.Raw(command.capabilities),
        )
    ]


def _require_no_agent(state: State, worker_id: str) -> None:
    worker = state.workers.table.get(worker_id)
    if worker is not None and worker.via == "nats" and worker.status == "online":
        raise errors.Conflict(
            f"worker {worker_id!r} is an agent that is online; choose another worker id"
        )


def _require_price(capabilities: bytes) -> None:
    try:
        told_price(capabilities)
    except msgspec.ValidationError as error:
        raise errors.Invalid(
            f"capabilities.price_per_hour is a number from 0 to {PRICE_MAX:,.0f}, or absent where "
            f"the price is not known: {error}"
        ) from error


def _require_room(state: State, worker_id: str) -> None:
    if len(state.workers.table) >= WORKERS_MAX and worker_id not in state.workers.table:
        raise errors.QuotaExceeded(
            f"{WORKERS_MAX} workers are known, the most there may be, and {worker_id[:64]!r} is "
            f"not among them; come under the id of a worker that is"
        )


def heartbeat(state: State, command: commands.Heartbeat) -> list[events.EventData]:
    """Record what a heartbeat changes; one that changes nothing leaves no event. Raises as
    `register` does."""
    _require_no_agent(state, command.worker_id)
    _require_price(command.capabilities or b"{}")
    worker = state.workers.table.get(command.worker_id)
    if worker is None or worker.via == "nats":
        # The name of an agent that is away is free; its own session ends with that.
        _require_room(state, command.worker_id)
        return [
            events.WorkerRegistered(
                worker_id=command.worker_id,
                hostname=command.worker_id,
                status=command.status,
                capabilities=msgspec.Raw(command.capabilities or b"{}"),
            )
        ]
    capabilities: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    if command.capabilities is not None and command.capabilities != bytes(worker.capabilities):
        capabilities = msgspec.Raw(command.capabilities)
    if command.status == worker.status and capabilities is msgspec.UNSET:
        return []
    return [
        events.WorkerChanged(
            worker_id=command.worker_id, status=command.status, capabilities=capabilities
        )
    ]


def open_session(state: State, command: commands.OpenSession) -> list[events.EventData]:
    """Begin a session; the worker's claims that it does not list are released at once.

    Raises QuotaExceeded for one stranger too many, Invalid for a price that is none,
    SupersededSession for a hello that arrives after
    one which the same process said later: the network held it up, and its agent waits no more.
    """
    _require_room(state, command.worker_id)
    _require_price(command.capabilities)
    worker = state.workers.table.get(command.worker_id)
    if (
        worker is not None
        and command.process
        and worker.process == command.process
        and command.number <= worker.number
    ):
        raise errors.SupersededSession(
            f"hello {command.number} of this process came after its hello {worker.number}, whose "
            f"session stands"
        )
    happened: list[events.EventData] = [
        events.SessionOpened(
            worker_id=command.worker_id,
            session=command.session,
            hostname=command.hostname,
            lane=command.lane,
            protocol=command.protocol,
            capabilities=msgspec.Raw(command.capabilities),
            process=command.process,
            number=command.number,
        )
    ]
    listed = {token.task_id: token for token in command.holding}
    for task_id in state.tasks.held.get(command.worker_id, ()):
        task = state.tasks.table.rows[task_id]
        assert isinstance(task, Task), "a held task is open"
        token = token_of(task)
        if listed.get(task_id) == token:
            happened.append(
                events.ClaimAdopted(
                    task_id=task_id,
                    attempt=token.attempt,
                    claim_id=token.claim_id,
                    session=command.session,
                )
            )
        elif task.claims[-1].via == "nats":
            happened.append(
                events.ClaimReleased(
                    task_id=task_id,
                    attempt=token.attempt,
                    claim_id=token.claim_id,
                    reason="its worker began a new session without it",
                )
            )
    return [*happened, *_revivals(state, command)]


def _revivals(state: State, command: commands.OpenSession) -> list[events.EventData]:
    """Listed claims that expired meanwhile and are still unrivalled go on under the new session."""
    revived: list[events.EventData] = []
    for token in {one.task_id: one for one in command.holding[:HOLDING_MAX]}.values():
        task = state.tasks.table.get(token.task_id)
        if not isinstance(task, Task) or task.status != "queued" or task.claim is None:
            continue
        if task.task_id in state.tasks.closed:
            continue
        expired = task.claim.state == "expired" and task.claim.worker_id == command.worker_id
        if expired and token_of(task) == token:
            revived.append(
                events.ClaimRevived(
                    task_id=token.task_id,
                    attempt=token.attempt,
                    claim_id=token.claim_id,
                    session=command.session,
                )
            )
    return revived


def require_session(state: State, worker_id: str, session: str) -> None:
    """Raise SupersededSession unless this is the worker's newest session."""
    worker = state.workers.table.get(worker_id)
    if worker is None or not session or worker.session != session:
        raise errors.SupersededSession(
            f"another session of worker {worker_id!r} took over; this one must stop its work, or "
            "get another --worker-id"
        )


def mark_offline(state: State, command: commands.MarkOffline) -> list[events.EventData]:
    """Take a worker for offline, unless it began another session meanwhile."""
    worker = state.workers.table.get(command.worker_id)
    if worker is None or worker.status != "online" or worker.session != command.session:
        return []
    return [
        events.WorkerWentOffline(
            worker_id=command.worker_id, reason=command.reason, last_seen=command.last_seen
        )
    ]


def mark_online(state: State, command: commands.MarkOnline) -> list[events.EventData]:
    """Take an offline worker for online again."""
    worker = state.workers.table.get(command.worker_id)
    if worker is None or worker.status == "online" or worker.session != command.session:
        return []
    return [events.WorkerCameOnline(worker_id=command.worker_id)]


def pause(state: State, command: commands.PauseWorker) -> list[events.EventData]:
    """Give a worker nothing more to do; twice is once. Raises NotFound."""
    if _known(state, command.worker_id).pause == command.how:
        return []
    return [events.WorkerPaused(worker_id=command.worker_id, how=command.how)]


def resume(state: State, command: commands.ResumeWorker) -> list[events.EventData]:
    """Let a worker have work again; twice is once. Raises NotFound."""
    if not _known(state, command.worker_id).pause:
        return []
    return [events.WorkerResumed(worker_id=command.worker_id)]


def _known(state: State, worker_id: str) -> Worker:
    worker = state.workers.table.get(worker_id)
    if worker is None:
        raise errors.NotFound(f"there is no worker {worker_id}")
    return worker
