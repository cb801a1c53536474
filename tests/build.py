"""Builders of states and commands for tests."""

import itertools
from typing import Any

from core import commands, decide, events
from core.commands import AnyCommand, Meta
from core.projections.state import State

SECOND = 1_000_000
START = 1_790_000_000 * SECOND


class World:
    """A state that commands are decided on, one after another, under a clock of its own."""

    def __init__(self) -> None:
        self.state = State()
        self.now = START
        self.stored: list[events.Event] = []
        self._ids = itertools.count(1)

    def do(self, command: AnyCommand) -> list[events.EventData]:
        """Decide and fold a command; what happened. Raises as decide does."""
        self.now += 1
        meta = Meta(self.now, f"cmd{next(self._ids)}", "test", "test")
        decided = decide.decide(self.state, command, meta)
        happened = [events.reread(data).data for data in decided]
        for data in happened:
            self._fold(meta, data)
        while following := decide.follow(self.state, happened, meta):
            for data in following:
                self._fold(meta, events.reread(data).data)
            happened = [*happened, *following]
        return happened

    def _fold(self, meta: Meta, data: events.EventData) -> None:
        event = events.Event(
            self.state.seq + 1, meta.now, f"{meta.id}.{self.state.seq}", "t", meta.id, "t", data
        )
        self.stored.append(event)
        self.state.evolve(event)

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * SECOND)

    def seeded(self) -> "World":
        """With the seeded tree."""
        self.do(commands.SeedTree())
        return self

    def agent(self, worker_id: str = "a1", lane: str = "cpu-16", session: str = "") -> str:
        """With an agent that said hello; its session."""
        session = session or f"session-{worker_id}"
        self.do(
            commands.OpenSession(
                worker_id=worker_id, session=session, hostname="host", lane=lane, protocol=1
            )
        )
        return session

    def http_worker(self, worker_id: str = "w1") -> None:
        """With a worker registered over HTTP."""
        self.do(commands.RegisterWorker(worker_id=worker_id, hostname="host"))

    def task(self, task_id: str = "t1", node_id: str = "stats-bayesian", **more: Any) -> str:
        """With a queued task; its id."""
        self.do(
            commands.EnqueueTask(task_id=task_id, node_id=node_id, topic="topic", seed=7, **more)
        )
        return task_id

    def claim(self, worker_id: str = "a1", claim_id: str = "") -> events.Token | None:
        """Claim over NATS; the token, or None when there was nothing."""
        claim_id = claim_id or f"claim{next(self._ids)}"
        session = self.state.workers.table.rows[worker_id].session
        happened = self.do(
            commands.ClaimTask(
                worker_id=worker_id,
                via="nats",
                claim_id=claim_id,
                lease_seconds=60,
                session=session,
            )
        )
        for data in happened:
            if isinstance(data, events.TaskClaimed):
                return events.Token(task_id=data.task_id, attempt=data.attempt, claim_id=claim_id)
        return None
