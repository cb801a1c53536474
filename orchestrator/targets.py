"""The feeder's targets: the runtime beside it, or a server over HTTP."""

import asyncio
import secrets
import uuid

from core import commands, plans, runtime
from orchestrator import merger
from orchestrator.feeder import Fleet, Order, foresee, survey


class RuntimeTarget:
    """Feeds the runtime in the same process."""

    def __init__(self, door: runtime.Runtime) -> None:
        self._door = door

    async def survey(self) -> Fleet:
        """What there is now."""
        return await self._door.read(lambda state: survey(state, runtime.now()))

    async def foresee(self, given_seconds: float) -> plans.Order:
        """What would be ordered next, as of the newest time in the log: of equal states the same
        is said. Raises errors.LogUnavailable."""
        fleet = await self._door.read(lambda state: survey(state, state.at))
        await asyncio.sleep(0)  # the loop's turn, however many nodes there are
        return foresee(fleet, given_seconds)

    async def enqueue(self, order: Order, priority: int, key: str) -> None:
        """Enqueue one order, once per key."""
        command = commands.EnqueueTask(
            task_id=f"task-{uuid.uuid4().hex[:12]}",
            node_id=order.node_id,
            topic=order.topic,
            priority=priority,
            role=order.role,
            budget_seconds=order.budget_seconds,
            seed=secrets.randbits(63),
            is_seed_drawn=True,
            idempotency_key=key,
        )
        await self._door.execute(command, runtime.new_meta("feeder"), runtime.nothing)

    async def merges(self) -> list[merger.Order]:
        """What could be merged now."""
        return await self._door.read(merger.survey)

    async def merge(self, order: merger.Order, budget_seconds: float | None, priority: int) -> None:
        """Enqueue a merge, once per its key. Raises errors.Conflict and NotFound."""
        command = commands.EnqueueTask(
            task_id=f"task-{uuid.uuid4().hex[:12]}",
            node_id=order.node_id,
            topic=order.topic,
            priority=priority,
            role="merge",
            method="merge",
            budget_seconds=budget_seconds,
            seed=secrets.randbits(63),
            is_seed_drawn=True,
            parents=order.parents,
            idempotency_key=order.key,
        )
        await self._door.execute(command, runtime.new_meta("merger"), runtime.nothing)
