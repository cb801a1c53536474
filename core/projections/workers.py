"""Who may work: registrations, sessions, online and offline."""

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

    def _put(self, worker: Worker) -> None:
        before = self.table.get(worker.worker_id)
        if before is not None:
            self.online_by[before.via].pop(worker.worker_id, None)
        if worker.status == "online":
            self.online_by[worker.via][worker.worker_id] = None
        self.table.put(worker.worker_id, worker)

    def apply(self, seq: int, at: int, data: events.EventData) -> None:
        """Fold an event of a worker."""
        match data:
            case events.WorkerRegistered():
                self._put(
                    Worker(
                        worker_id=data.worker_id,
                        hostname=data.hostname,
                        capabilities=data.capabilities.copy(),
                        status=data.status,
                        via="http",
                        changed_at=at,
                    )
                )
            case events.SessionOpened():
                self._put(
                    Worker(
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
                )
            case events.WorkerChanged():
                worker = self.table.rows[data.worker_id]
                kept = worker.capabilities
                told = data.capabilities
                capabilities = kept if isinstance(told, msgspec.UnsetType) else told.copy()
                self._put(
                    events.replace(
                        worker,
                        status=data.status,
                        capabilities=capabilities,
                        changed_at=at,
                        reason="",
                    )
                )
            case events.WorkerWentOffline():
                worker = self.table.rows[data.worker_id]
                self._put(
                    events.replace(worker, status="offline", changed_at=at, reason=data.reason)
                )
            case events.WorkerCameOnline():
                worker = self.table.rows[data.worker_id]
                self._put(events.replace(worker, status="online", changed_at=at, reason=""))
            case _:
                raise errors.UnfitEvent(f"{type(data).__name__} is no event of a worker")
