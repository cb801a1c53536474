"""Who may work: registrations, sessions, online and offline."""

from typing import assert_never

import msgspec

from core import errors, events
from core.projections.tables import Table


class Worker(events.Value, frozen=True, kw_only=True):
    """One worker as the log knows it; when it was last seen is presence, not state."""

    worker_id: str
    hostname: str
    capabilities: msgspec.Raw
    status: str
    via: events.Via
    changed_at: int
    session: str = ""
    lane: str = ""
    protocol: int = 0
    reason: str = ""


def evolve(worker: Worker | None, at: int, data: events.OfWorkers) -> Worker:
    """Fold one event into a worker."""
    match data:
        case events.WorkerRegistered():
            return Worker(
                worker_id=data.worker_id,
                hostname=data.hostname,
                capabilities=data.capabilities.copy(),
                status=data.status,
                via="http",
                changed_at=at,
            )
        case events.SessionOpened():
            return Worker(
                worker_id=data.worker_id,
                hostname=data.hostname,
                capabilities=data.capabilities.copy(),
                status="online",
                via="nats",
                changed_at=at,
                session=data.session,
                lane=data.lane,
                protocol=data.protocol,
            )
    if worker is None:
        raise errors.UnfitEvent(f"{type(data).__name__} of a worker that never came")
    match data:
        case events.WorkerChanged():
            told = data.capabilities
            kept = worker.capabilities if isinstance(told, msgspec.UnsetType) else told.copy()
            return events.replace(
                worker, status=data.status, capabilities=kept, changed_at=at, reason=""
            )
        case events.WorkerWentOffline():
            return events.replace(worker, status="offline", changed_at=at, reason=data.reason)
        case events.WorkerCameOnline():
            return events.replace(worker, status="online", changed_at=at, reason="")
        case _:
            assert_never(data)


class Workers:
    """All workers ever seen, by id."""

    def __init__(self) -> None:
        self.table: Table[Worker] = Table("workers")
        self.online_by: dict[events.Via, dict[str, None]] = {"http": {}, "nats": {}}
        """Ids of the workers that are online, by the way they work."""

    @property
    def online(self) -> int:
        """How many workers are online."""
        return sum(len(ids) for ids in self.online_by.values())

    def apply(self, seq: int, at: int, data: events.OfWorkers) -> None:
        """Fold an event of a worker."""
        before = self.table.get(data.worker_id)
        after = evolve(before, at, data)
        if before is not None:
            self.online_by[before.via].pop(before.worker_id, None)
        if after.status == "online":
            self.online_by[after.via][after.worker_id] = None
        self.table.put(data.worker_id, after)

    def restore(self, rows: list[Worker]) -> None:
        """Put back rows of a snapshot."""
        for row in rows:
            # Else a few bytes keep all that they were decoded from.
            kept = events.replace(row, capabilities=row.capabilities.copy())
            self.table.rows[row.worker_id] = kept
