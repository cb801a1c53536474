"""Just-in-time offers: a waiting pull is woken when there is something for its lane, never before.

An offer only wakes; which task the woken agent gets is decided when it claims.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from core import errors, events, runtime
from core.decide import fitness
from core.events import Requires
from core.projections.state import State
from core.projections.tasks import Task

log = logging.getLogger(__name__)

RECONCILE_SECONDS = 2.0
OFFERS_IN_FLIGHT_MAX = 64
UNANSWERED_SECONDS_MAX = 5.0
"""After so long an offer that nobody answered is taken back and made anew."""
PULLS_MAX = 20_000
"""Of a lane; streams.yaml lets no more wait (`max_waiting`), however many are sent."""
COUNTED_SECONDS_MAX = 1.0
"""So long the server may take to count an offer that it has stored."""


class WorkQueue(Protocol):
    """WORK, as the scheduler needs it."""

    async def publish(self, lane: str, task_id: str) -> int:
        """Offer a task to a lane; the offer's sequence."""
        ...

    async def delete(self, seq: int) -> None:
        """Withdraw an offer; one that is gone already is no error."""
        ...

    async def purge(self) -> None:
        """Withdraw all offers."""
        ...

    async def standing(self, lane: str) -> tuple[int, int]:
        """(pulls waiting, offers not yet acknowledged) of a lane."""
        ...


@dataclass(slots=True)
class Lane:
    """What is known of one lane: when each waiting pull expires, since when unanswered offers are
    out, and which were answered before their publisher heard that they are stored.

    Answered ones stay in WORK until their agents acknowledge them; they wake nobody, and nothing
    has to be remembered of them.
    """

    pulls: deque[int] = field(default_factory=lambda: deque(maxlen=PULLS_MAX))
    offers: dict[int, int] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    publishing: int = 0

    def expire(self, now: int) -> None:
        """Forget pulls whose time is over."""
        while self.pulls and self.pulls[0] <= now:
            self.pulls.popleft()


def wanted(queued: int, waiting: int, outstanding: int) -> int:
    """How many further offers a lane should get: one per waiting pull, while tasks last."""
    return max(0, min(waiting, queued - outstanding))


def fits_lane(lane: str) -> Callable[[Requires, bool], bool]:
    """Whether a kind of task can run on devices of this lane."""
    return lambda requires, merge: fitness.lane_runs(lane, requires)


class Scheduler:
    """Offers queued tasks to lanes whose agents wait."""

    def __init__(self, door: runtime.Runtime, queue: WorkQueue) -> None:
        self._door = door
        self._queue = queue
        self._wake = asyncio.Event()
        self.lanes: dict[str, Lane] = {}
        door.observe(self._on_event)

    def lane(self, name: str) -> Lane:
        """The record of a lane; made when first asked for."""
        return self.lanes.setdefault(name, Lane())

    def pulled(self, lane: str, count: int, expires_at: int) -> None:
        """An agent of this lane began to wait (seen on the pull-request subject)."""
        self.lane(lane).pulls.extend([expires_at] * count)
        self._wake.set()

    def answered(self, lane: str, offer: int) -> None:
        """An offer woke its agent, which now claims."""
        record = self.lane(lane)
        if record.offers.pop(offer, None) is None and record.publishing:
            record.answered.add(offer)
        self._wake.set()

    def someone_waits(self, task: Task) -> bool:
        """Whether agents wait in a lane where another than the task's holder may be given it."""
        lanes = {name for name, pulls in self.waiting().items() if pulls}
        return bool(lanes) and fitness.others_can(self._door.state, task, lanes, runtime.now())

    def waiting(self) -> dict[str, int]:
        """How many pulls wait, by lane."""
        now = runtime.now()
        for lane in self.lanes.values():
            lane.expire(now)
        return {name: len(lane.pulls) for name, lane in self.lanes.items()}

    def _on_event(self, event: events.Event) -> None:
        data = event.data
        if not isinstance(data, events.OfTasks):
            return
        match data:
            case (
                events.TaskQueued()
                | events.TaskRetried()
                | events.ClaimExpired()
                | events.ClaimReleased()
                | events.AttemptFailed()
            ):
                self._wake.set()
            case (
                events.TaskClaimed()
                | events.ClaimAdopted()
                | events.ClaimRevived()
                | events.CheckpointStored()
                | events.TaskCompleted()
                | events.TaskFailed()
                | events.TaskCancelled()
            ):
                pass
            case _:
                assert_never(data)

    async def run(self) -> None:
        """Offer, for ever; reconcile with the server every two seconds."""
        purged = False
        self._wake.set()
        reconciled = 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(RECONCILE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                if not purged:
                    await self._queue.purge()
                    purged = True
                await self._feed()
                if loop.time() - reconciled > RECONCILE_SECONDS:
                    await self._reconcile()
                    reconciled = loop.time()
            except errors.Unavailable as error:
                log.warning("WORK does not answer", extra={"action": str(error)})

    async def _feed(self) -> None:
        if self._door.shortage:
            return  # no claim would be taken
        state = self._door.state
        now = runtime.now()
        for name, lane in list(self.lanes.items()):
            lane.expire(now)
            fits = fits_lane(name)
            queued = state.tasks.queue.count(fits)
            count = wanted(queued, len(lane.pulls), len(lane.offers) + lane.publishing)
            for _ in range(min(count, OFFERS_IN_FLIGHT_MAX)):
                task_id = state.tasks.queue.best(fits, state.tasks.ticket)
                if task_id is None or not lane.pulls:
                    break
                lane.pulls.popleft()
                await self._offer(name, lane, task_id, state)

    async def _offer(self, name: str, lane: Lane, task_id: str, state: State) -> None:
        # No offer before the event it rests on is durable.
        await self._door.until_durable()
        lane.publishing += 1
        try:
            seq = await self._queue.publish(name, task_id)
            if seq not in lane.answered:
                lane.offers[seq] = runtime.now()
        finally:
            lane.publishing -= 1
            lane.answered.clear()

    async def _reconcile(self) -> None:
        """Make what is remembered agree with what the server holds.

        The server is asked how many offers a lane has, never which: it would list all that were
        ever acknowledged out of order. One that was lost without an answer is made anew in time.
        """
        for name, lane in list(self.lanes.items()):
            waiting, held = await self._queue.standing(name)
            now = runtime.now()
            if not held:  # a purge or a crash of the server took them
                lane.offers = {
                    seq: since
                    for seq, since in lane.offers.items()
                    if now - since < COUNTED_SECONDS_MAX * 1e6
                }
            lane.expire(now)
            while len(lane.pulls) > waiting:
                lane.pulls.popleft()
            expires_at = now + int(RECONCILE_SECONDS * 1e6)
            lane.pulls.extend([expires_at] * (waiting - len(lane.pulls)))
            for seq in self._useless(name, lane, now):
                await self._queue.delete(seq)
                lane.offers.pop(seq, None)
        self._wake.set()

    def _useless(self, name: str, lane: Lane, now: int) -> list[int]:
        """Offers that nobody answers, and those for which there is no task any more."""
        stale = [
            seq
            for seq, since in lane.offers.items()
            if lane.pulls and now - since > UNANSWERED_SECONDS_MAX * 1e6
        ]
        fresh = [seq for seq in lane.offers if seq not in set(stale)]
        surplus = len(fresh) - self._door.state.tasks.queue.count(fits_lane(name))
        return stale + fresh[: max(0, surplus)]
