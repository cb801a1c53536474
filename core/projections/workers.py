"""Who may work: registrations, sessions, online and offline."""

from typing import Annotated, Literal, assert_never

import msgspec

from core import errors, events
from core.projections.tables import Table
from core.projections.tasks import Kind

UNFIT_MAX = 64
"""Kinds of task that a worker is remembered to be unfit for; of more, the oldest are forgotten, and
it is asked about them once more."""
UNFIT_SECONDS = 600
"""So long what a worker found itself unfit for is believed: memory may have been wanting for a
moment. Of each kind it is asked, and tries in vain, no more often."""
REASON_CHARS_MAX = 300
PRICE_MAX = 1_000_000.0
"""Per hour; a worker that costs more is refused."""
CLAIMS_KEPT = 16
DOUBTFUL_OF = 8
DOUBTFUL_FROM = 3
"""A worker is doubtful from so many claims that were off, of its last DOUBTFUL_OF."""


class _Told(msgspec.Struct):
    price_per_hour: Annotated[float, msgspec.Meta(ge=0, le=PRICE_MAX)] | None = None


def told_price(capabilities: msgspec.Raw | bytes) -> float | None:
    """What a worker says that it costs per hour, None where it does not say. Raises
    msgspec.ValidationError for what is no price."""
    return msgspec.json.decode(capabilities, type=_Told).price_per_hour


class Claims(events.Value, frozen=True, kw_only=True):
    """What came of a worker's own measurements: how many of its candidates were measured by a judge
    too, how many of its claims were `off`, and of the `last` ones which (the newest last)."""

    judged: int = 0
    off: int = 0
    last: tuple[bool, ...] = ()

    @property
    def doubtful(self) -> bool:
        """Whether its claims keep disagreeing with what judges measure."""
        return sum(self.last[-DOUBTFUL_OF:]) >= DOUBTFUL_FROM

    def and_one(self, is_off: bool) -> "Claims":
        """With one more claim that was held against a measurement."""
        last = (*self.last, is_off)[-CLAIMS_KEPT:]
        return Claims(judged=self.judged + 1, off=self.off + is_off, last=last)


class Unfit(events.Value, frozen=True, kw_only=True):
    """What a worker has found itself unfit for, why, and when (microseconds since 1970)."""

    kind: Kind
    reason: str
    at: int


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
    process: str = ""
    number: int = 0
    """Of the hello that began the session, among those of its process."""
    reason: str = ""
    unfit: tuple[Unfit, ...] = ()
    """In this session; also what is no longer believed."""
    pause: events.Pause | Literal[""] = ""
    claims: Claims = Claims()

    @property
    def price_per_hour(self) -> float | None:
        """What it says that it costs; None where it does not say, or said what is no price."""
        try:
            return told_price(self.capabilities)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def unfit_at(self, now: int) -> list[Unfit]:
        """What it counts as unfit for at this time, microseconds since 1970."""
        return [mark for mark in self.unfit if now < mark.at + UNFIT_SECONDS * 1_000_000]


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
                pause=worker.pause if worker else "",
                claims=worker.claims if worker else Claims(),
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
                process=data.process,
                number=data.number,
                pause=worker.pause if worker else "",
                claims=worker.claims if worker else Claims(),
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
        case events.WorkerPaused():
            return events.replace(worker, pause=data.how)
        case events.WorkerResumed():
            return events.replace(worker, pause="")
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

    def found_unfit(self, worker_id: str, at: int, kind: Kind, reason: str) -> None:
        """Fold a ClaimReleased of a worker that is unfit for the task."""
        before = self.table.rows[worker_id]
        mark = Unfit(kind=kind, reason=reason[:REASON_CHARS_MAX], at=at)
        others = [one for one in before.unfit if one.kind != kind]
        unfit = tuple([*others, mark][-UNFIT_MAX:])
        self.table.put(worker_id, events.replace(before, unfit=unfit))

    def measured(self, worker_id: str, is_off: bool) -> None:
        """Fold that a judge measured what a worker had claimed."""
        before = self.table.get(worker_id)
        if before is not None:
            self.table.put(worker_id, events.replace(before, claims=before.claims.and_one(is_off)))

    def restore(self, rows: list[Worker]) -> None:
        """Put back rows of a snapshot."""
        for row in rows:
            # Else a few bytes keep all that they were decoded from.
            kept = events.replace(row, capabilities=row.capabilities.copy())
            self.table.rows[row.worker_id] = kept
