"""Presence: who was heard of when. Folded from heartbeats, never part of the state hash."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from core.events import Token
from core.wire import TaskBeat

LISTED_MAX = 128
LOST_SECONDS_MAX = 60
LARGE_FLEET = 1_000
"""Online workers beyond which heartbeats come more rarely."""


@dataclass(slots=True)
class Seen:
    """What is known of a worker from its own signs of life. Times are microseconds, 0 = never."""

    last_seen: int = 0
    session: str = ""
    disconnected_at: int = 0
    signalled_at: int = 0
    """When an HTTP worker last registered or sent a heartbeat."""
    asked_at: int = 0
    """When an HTTP worker last asked for other work than it held."""
    executor_pid: int = 0
    paused_seconds: float = 0.0
    """How long the agent's executors stood still since it began, for latency to be measured."""
    tasks: dict[str, TaskBeat] = field(default_factory=dict)
    listed_at: dict[tuple[str, int], int] = field(default_factory=dict)
    """When the agent last spoke of an attempt (task_id, attempt) as its own, for the newest
    LISTED_MAX."""


def heartbeat_seconds(online: int) -> float:
    """How often an agent sends a heartbeat, given how many workers are online."""
    return 3.0 if online > LARGE_FLEET else 1.0


class Presence:
    """Signs of life of every worker the state knows."""

    def __init__(self, started_at: int) -> None:
        self.started_at = started_at
        self.last_beat = started_at
        """When any agent at all was last heard of."""
        self.workers: dict[str, Seen] = {}
        self.paused_seconds = 0.0
        """How long executors of all agents stood still, as far as it was told to this process."""
        self._heard: dict[str, None] = {}
        """Agents that sent a heartbeat since `take_heard` last asked."""
        self._lost: dict[str, int] = {}
        """Who lost its connection when, in that order, for the last LOST_SECONDS_MAX."""

    def paused_seconds_of(self, worker_id: str) -> float:
        """How long the worker's executors stood still since it began."""
        seen = self.workers.get(worker_id)
        return seen.paused_seconds if seen else 0.0

    def of(self, worker_id: str) -> Seen:
        """The worker's record; an empty one is made for a new worker."""
        seen = self.workers.get(worker_id)
        if seen is None:
            seen = self.workers[worker_id] = Seen()
        return seen

    def last_seen(self, worker_id: str) -> int:
        """When the worker was last heard of, 0 if never since this process started."""
        seen = self.workers.get(worker_id)
        return seen.last_seen if seen else 0

    def beat(self, worker_id: str, at: int, session: str, pid: int, tasks: list[TaskBeat]) -> None:
        """Fold an agent's heartbeat; `tasks` are those of its tasks that it holds."""
        seen = self.of(worker_id)
        self.last_beat = at
        seen.last_seen, seen.session, seen.executor_pid = at, session, pid
        self.found(worker_id)
        self._heard[worker_id] = None
        seen.tasks = {task.task_id: task for task in tasks}
        for task in tasks:
            self._listed(seen, task.task_id, task.attempt, at)

    def paused(self, worker_id: str, seconds: float) -> None:
        """An agent's executors stood still for so long since it began."""
        seen = self.of(worker_id)
        is_new_run = seconds < seen.paused_seconds
        self.paused_seconds += seconds - (0.0 if is_new_run else seen.paused_seconds)
        seen.paused_seconds = seconds

    def speaks_of(self, worker_id: str, at: int, claims: Iterable[Token]) -> None:
        """An agent asks for these claims as its own, and their leases begin anew, if they are.

        That its connection stands, and is no matter of a time of grace any more, its heartbeats
        show.
        """
        seen = self.of(worker_id)
        for claim in claims:
            self._listed(seen, claim.task_id, claim.attempt, at)

    @staticmethod
    def _listed(seen: Seen, task_id: str, attempt: int, at: int) -> None:
        seen.listed_at.pop((task_id, attempt), None)
        seen.listed_at[task_id, attempt] = at
        if len(seen.listed_at) > LISTED_MAX:
            del seen.listed_at[next(iter(seen.listed_at))]

    def take_heard(self) -> list[str]:
        """The agents that sent a heartbeat since this was last asked."""
        heard = list(self._heard)
        self._heard.clear()
        return heard

    def lost(self, worker_id: str, at: int) -> None:
        """An agent's connection broke."""
        self.of(worker_id).disconnected_at = at
        self._lost.pop(worker_id, None)
        self._lost[worker_id] = at
        while at - next(iter(self._lost.values())) > LOST_SECONDS_MAX * 1_000_000:
            del self._lost[next(iter(self._lost))]

    def found(self, worker_id: str) -> None:
        """An agent's connection stands (again)."""
        self.of(worker_id).disconnected_at = 0
        self._lost.pop(worker_id, None)

    def lost_since(self, moment: int) -> Iterator[str]:
        """Agents whose connection broke at or after a moment and is not back; the latest first."""
        for worker_id, at in reversed(self._lost.items()):
            if at < moment:
                return
            yield worker_id

    def progress(self, worker_id: str, task_id: str) -> TaskBeat | None:
        """Where a task stands by its holder's last heartbeat."""
        seen = self.workers.get(worker_id)
        return seen.tasks.get(task_id) if seen else None
