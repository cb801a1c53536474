"""Who is alive: turns what was (not) heard into commands. A worker in doubt keeps its task until
another can take it."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from core import commands, errors, runtime
from core.presence import Presence, Seen, heartbeat_seconds
from core.projections.rounds import Round
from core.projections.state import State
from core.projections.tasks import Claim, Task, token_of
from core.projections.workers import Worker

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
MASS_LOSS_SECONDS = 5.0
MASS_LOSS_SHARE = 0.2
MASS_LOSS_MIN = 3
LOOKED_AT_ONCE = 500
"""Tasks, workers and rounds looked at before others have their turn: some milliseconds' worth."""
PAUSE_SHARE = 4.0
"""After looking around for so long, four times as long is left to others."""
ABSENCE_SHARE = 0.5
"""Looking around later than meant by this share of the silence that is borne, we were away: what we
did not hear meanwhile may wait in our own buffers, and a clock that was set says nothing of others.
"""

Command = commands.ExpireClaim | commands.MarkOffline | commands.MarkOnline | commands.CloseRound


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long silence is borne, in seconds."""

    lease: float = 60.0
    reconnect: float = 2.0
    silence: float = 10.0
    heartbeat: float = 1.0
    worker_timeout: float = 90.0

    @property
    def silence_borne(self) -> float:
        """Seconds of silence after which an agent is suspect."""
        return max(self.silence, 4 * self.heartbeat)


@dataclass(slots=True)
class Grace:
    """A time (microseconds) in which those not heard of since it began are not suspected, because
    we may be the ones who were away. Who was heard of since has proved that the way is open."""

    since: int = 0
    until: int = 0

    def begin(self, now: int, seconds: float) -> None:
        """Suspect nobody for so long from now, unless they are heard of and then lost."""
        self.since = now
        self.until = max(self.until, now + int(seconds * 1e6))

    def covers(self, seen: Seen | None, now: int) -> bool:
        """Whether a worker's silence is forgiven now."""
        return now < self.until and (seen is None or seen.last_seen <= self.since)


def suspicion(seen: Seen | None, started_at: int, now: int, limits: Limits) -> str:
    """Why an agent is suspect now, or "" when it is not."""
    last_seen = max(seen.last_seen if seen else 0, started_at)
    if seen and seen.disconnected_at and now - seen.disconnected_at >= limits.reconnect * 1e6:
        return "its connection broke and did not come back"
    if now - last_seen >= limits.silence_borne * 1e6:
        return f"no heartbeat for {(now - last_seen) / 1e6:.0f} s"
    return ""


def mass_loss(state: State, presence: Presence, now: int) -> bool:
    """Whether so many agents went at once that the fault is more likely ours than theirs.

    Who said goodbye, or was offline before its connection broke, neither went nor was here.
    """
    since = now - int(MASS_LOSS_SECONDS * 1e6)
    online = state.workers.online_by["nats"]
    gone = still_online = 0
    for worker_id in presence.lost_since(since + 1):
        worker, seen = state.workers.table.get(worker_id), presence.workers[worker_id]
        if worker is None or not seen.session:
            continue
        if worker_id in online:
            still_online += 1
        elif worker.changed_at < seen.disconnected_at:
            continue
        gone += 1
    if gone < 2:
        return False
    agents = len(online) + gone - still_online
    return gone == agents or gone > max(MASS_LOSS_MIN, MASS_LOSS_SHARE * agents)


def mass_silence(state: State, presence: Presence, now: int, limits: Limits) -> bool:
    """Whether no agent at all is heard of for so long that the fault is more likely ours."""
    silent = now - presence.last_beat >= ABSENCE_SHARE * limits.silence_borne * 1e6
    return silent and len(state.workers.online_by["nats"]) > 1


class Watched(NamedTuple):
    """Ids of some of what silence and time can do something to."""

    tasks: Sequence[str] = ()
    workers: Sequence[str] = ()
    rounds: Sequence[str] = ()


def slices(state: State, heard: list[str], size: int) -> Iterator[Watched]:
    """Everything to look at, some at a time: what is held, who is online or was heard of again,
    open rounds. Workers that are offline and silent are left alone, however many there are.

    The state may change between two slices: what ends meanwhile may still be listed.
    """
    for tasks in _parts(_held(state), size):
        yield Watched(tasks=tasks)
    online, known = state.workers.online_by, state.workers.table
    for workers in _parts(itertools.chain(list(online["http"]), list(online["nats"])), size):
        yield Watched(workers=workers)
    for some in _parts(iter(heard), size):
        back = [one for one in some if one in known and one not in online["nats"]]
        yield Watched(workers=back)
    for rounds in _parts(iter(list(state.rounds.open)), size):
        yield Watched(rounds=rounds)


def _held(state: State) -> Iterator[str]:
    for worker_id in list(state.tasks.held):
        yield from list(state.tasks.held.get(worker_id, ()))


def _parts(ids: Iterator[str], size: int) -> Iterator[Sequence[str]]:
    while part := list(itertools.islice(ids, size)):
        yield part


def plan(
    state: State,
    presence: Presence,
    now: int,
    limits: Limits,
    *,
    watched: Watched,
    grace: Grace,
    someone_waits: Callable[[Task], bool],
) -> list[Command]:
    """The commands that follow from silence and deadlines at this moment."""
    planned: list[Command] = []
    for task_id in watched.tasks:
        task = state.tasks.table.rows[task_id]
        is_closed = task_id in state.tasks.closed
        if isinstance(task, Task) and task.status == "running" and not is_closed:
            planned += _lapse(task, presence, now, limits, grace, someone_waits)
    for worker_id in watched.workers:
        worker = state.workers.table.rows[worker_id]
        if state.is_read_only("worker", worker_id):
            continue
        command = _attendance(worker, presence, now, limits, grace)
        if command is not None:
            planned.append(command)
    for round_id in watched.rounds:
        if state.is_read_only("round", round_id):
            continue
        row = state.rounds.table.rows[round_id]
        if isinstance(row, Round) and row.status == "open" and now >= row.closes_at:
            planned.append(commands.CloseRound(round_id=round_id))
    return planned


def _lapse(
    task: Task,
    presence: Presence,
    now: int,
    limits: Limits,
    grace: Grace,
    someone_waits: Callable[[Task], bool],
) -> list[Command]:
    """The end of a task's open claim, where it is due."""
    claim = task.claims[-1]
    seen = presence.workers.get(claim.worker_id)
    # What was not heard before a time of grace began proves nothing: we may have been away, or our
    # clock was set.
    since = max(presence.started_at, grace.since)
    if claim.via == "http":
        reason = _http_lease_over(claim, seen, since, now)
    else:
        in_grace = grace.covers(seen, now)
        suspect = "" if in_grace else suspicion(seen, presence.started_at, now, limits)
        waits = bool(suspect) and someone_waits(task)
        lease_over = _lease_over(task, seen, since, now)
        if suspect and (waits or lease_over):
            reason = suspect
        else:
            reason = _forgotten(claim) if lease_over and not in_grace else ""
    if not reason:
        return []
    last_seen = seen.last_seen if seen else 0
    return [commands.ExpireClaim(token=token_of(task), reason=reason, last_seen=last_seen)]


def _lease_over(task: Task, seen: Seen | None, since: int, now: int) -> bool:
    """Whether a lease passed since its worker last spoke of this very attempt, and since then."""
    claim = task.claims[-1]
    listed_at = seen.listed_at.get((task.task_id, claim.attempt), 0) if seen else 0
    since = max(claim.claimed_at, listed_at, since)
    return now - since >= claim.lease_seconds * 1e6


def _forgotten(claim: Claim) -> str:
    return f"no heartbeat of its worker spoke of it for {claim.lease_seconds:g} s"


def _http_lease_over(claim: Claim, seen: Seen | None, since: int, now: int) -> str:
    since = max(claim.claimed_at, since)
    # Once the worker has asked for other work, heartbeats no longer speak for this claim.
    if seen and seen.asked_at <= claim.claimed_at:
        since = max(since, seen.signalled_at)
    if now - since >= claim.lease_seconds * 1e6:
        return f"its lease of {claim.lease_seconds:g} s ended without a sign of life"
    return ""


def _attendance(
    worker: Worker, presence: Presence, now: int, limits: Limits, grace: Grace
) -> Command | None:
    seen = presence.workers.get(worker.worker_id)
    if worker.via == "nats":
        alive = seen is not None and seen.session == worker.session and bool(seen.last_seen)
        suspect = suspicion(seen, presence.started_at, now, limits)
        if worker.status == "online" and suspect and not grace.covers(seen, now):
            return _offline(worker, seen, suspect)
        if worker.status == "offline" and alive and not suspect:
            return commands.MarkOnline(worker_id=worker.worker_id, session=worker.session)
        return None
    last_seen = max(seen.last_seen if seen else 0, presence.started_at, grace.since)
    if worker.status == "online" and now - last_seen >= limits.worker_timeout * 1e6:
        return _offline(worker, seen, f"not heard of for {limits.worker_timeout:g} s")
    return None


def _offline(worker: Worker, seen: Seen | None, reason: str) -> commands.MarkOffline:
    return commands.MarkOffline(
        worker_id=worker.worker_id,
        reason=reason,
        last_seen=seen.last_seen if seen else 0,
        session=worker.session,
    )


class Liveness:
    """The loop around `plan`."""

    def __init__(
        self,
        door: runtime.Runtime,
        presence: Presence,
        limits: Limits,
        someone_waits: Callable[[Task], bool],
    ) -> None:
        self._door = door
        self._presence = presence
        self._limits = limits
        self._someone_waits = someone_waits
        self.grace = Grace()
        self._last_tick = runtime.now()
        self._forgiven_beat = -1
        self._looking_seconds = 0.0
        self._tick_seconds = 0.0
        self.grace.begin(self._last_tick, limits.lease)

    def forgive(self) -> None:
        """Suspect nobody for one lease: a server or relay of ours was away."""
        self.grace.begin(runtime.now(), self._limits.lease)

    async def run(self) -> None:
        """Look around four times a second, or as often as a fifth of the time allows, for ever."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            await self.tick(runtime.now())

    @property
    def _pause_seconds(self) -> float:
        return max(TICK_SECONDS, PAUSE_SHARE * self._looking_seconds)

    async def tick(self, now: int) -> None:
        """Act on what is (not) heard by `now`."""
        late_seconds = (now - self._last_tick) / 1e6 - self._pause_seconds - self._tick_seconds
        was_away = late_seconds > ABSENCE_SHARE * self._limits.silence_borne
        standing = (self._door.state, self._presence, now)
        if was_away or mass_loss(*standing) or self._all_fell_silent(now):
            self.grace.begin(now, self._limits.lease)
        self._last_tick = now
        began = time.perf_counter()
        await self._look_around(now)
        self._tick_seconds = time.perf_counter() - began

    def _all_fell_silent(self, now: int) -> bool:
        """Whether they did since we looked: a silence is forgiven once, or none would ever end."""
        last_beat = self._presence.last_beat
        if last_beat == self._forgiven_beat or not mass_silence(
            self._door.state, self._presence, now, self._limits
        ):
            return False
        self._forgiven_beat = last_beat
        return True

    async def _look_around(self, now: int) -> None:
        self._looking_seconds = 0.0
        if self._door.unanswered_seconds:
            return  # nothing would be taken, and what still holds then is planned then
        state = self._door.state
        heartbeat = heartbeat_seconds(state.workers.online)
        limits = msgspec.structs.replace(self._limits, heartbeat=heartbeat)
        for part in slices(state, self._presence.take_heard(), LOOKED_AT_ONCE):
            began = time.perf_counter()
            planned = plan(
                state,
                self._presence,
                now,
                limits,
                watched=part,
                grace=self.grace,
                someone_waits=self._someone_waits,
            )
            self._looking_seconds += time.perf_counter() - began
            await asyncio.gather(*(self._execute(command) for command in planned))
            await asyncio.sleep(0)

    async def _execute(self, command: Command) -> None:
        try:
            await self._door.execute(command, runtime.new_meta("liveness"), runtime.nothing)
        except (
            errors.Refused,
            errors.Overloaded,
            errors.LogUnavailable,
            errors.UnfitEvent,
        ) as error:
            # What still holds is planned again at the next tick.
            log.info("liveness was refused: %s", error, extra={"action": "liveness"})
