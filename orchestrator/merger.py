"""Orders merges: where rounds left models that differ and err about alike, one merge of them.

Whatever is ordered was measured: a merge of what a round has just judged, with a rival among it, so
that merges do not feed on merges alone. A set of models is merged once, a node has one merge open
at a time, and merges are at most every third of what the orchestrator orders.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from core import errors, workloads
from core.decide import merges
from core.methods import PARENTS_MAX
from core.projections.rounds import RIVALS, NodeRounds
from core.projections.state import State
from core.projections.tasks import Task

log = logging.getLogger(__name__)

WORTH = 2.0
"""A model that errs more than so many times as much as the best is not merged with it."""
ERROR_FLOOR = 1e-6
"""Models that err less than so much err alike."""
ORDERS_BETWEEN = 2
"""Of training, between two merges."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One merge to enqueue. `parents` are weights, the best first; `spread` is the second error by
    the first; `key` is that of this node and this set of models."""

    node_id: str
    topic: str
    parents: list[str]
    spread: float
    key: str
    budget_seconds_min: float = 0.0
    """Least budget of a model that is trained there; 0: any."""


class Target(Protocol):
    """Where the merger looks and enqueues: the runtime beside it, or a server over HTTP."""

    async def merges(self) -> list[Order]:
        """What could be merged now. Raises errors.Unavailable."""
        ...

    async def merge(self, order: Order, budget_seconds: float | None, priority: int) -> None:
        """Enqueue a merge, once per its key. Raises errors.Unavailable, and NotFound and Conflict
        where its models are no longer there."""
        ...


def order_of(
    node_id: str, name: str, models: Mapping[str, float], budget_seconds_min: float
) -> Order | None:
    """The merge of the best of a node's models, given their errors by weights; None where no two
    err about alike."""
    ranked = sorted(models, key=lambda weights: (models[weights], weights))
    if not ranked:
        return None
    best = max(models[ranked[0]], ERROR_FLOOR)
    near = [weights for weights in ranked if models[weights] <= WORTH * best][:PARENTS_MAX]
    if len(near) < merges.PARENTS_MIN:
        return None
    return Order(
        node_id=node_id,
        topic=f"دمج: {name}",
        parents=near,
        spread=max(models[near[1]], ERROR_FLOOR) / best,
        key=_key(node_id, near),
        budget_seconds_min=budget_seconds_min,
    )


def _key(node_id: str, parents: list[str]) -> str:
    digest = hashlib.sha256("\x1f".join((node_id, *sorted(parents))).encode()).hexdigest()
    return f"merge-{digest[:24]}"


def survey(state: State) -> list[Order]:
    """What could be merged now, from the projections: nothing where no agent is online, since
    merges are not given out over HTTP."""
    workers = state.workers.table.rows
    if all(workers[worker_id].pause for worker_id in state.workers.online_by["nats"]):
        return []
    busy = set(_merging(state))
    found = (_of_node(state, row) for row in state.rounds.nodes if row.node_id not in busy)
    return [order for order in found if order and state.tasks.keys.get(order.key) is None]


def _merging(state: State) -> Iterator[str]:
    """Nodes with an open merge."""
    yield from (node_id for node_id, role in state.tasks.queued_of_role if role == "merge")
    for task_id in itertools.chain.from_iterable(state.tasks.held.values()):
        task = state.tasks.table.rows[task_id]
        if isinstance(task, Task) and task.role == "merge":
            yield task.node_id


def _of_node(state: State, row: NodeRounds) -> Order | None:
    node, judged = state.graph.nodes.get(row.node_id), row.judged
    if node is None or judged is None or not set(judged.brought) & set(RIVALS):
        return None
    workload = state.graph.workload(row.node_id)[0]
    if judged.workload != workload:
        return None
    measured = zip(judged.models, judged.errors, strict=True)
    models = {model.weights_sha256: error for model, error in measured if error is not None}
    champion = state.graph.champions.get(row.node_id)
    if champion is not None:
        models.setdefault(champion.weights_sha256, champion.error)
    return order_of(row.node_id, node.name, models, least_budget(workload.specialist))


def least_budget(specialist: str) -> float:
    """Of a model trained there, seconds; 0 for one that this version does not know."""
    kind = workloads.KINDS.get(specialist)
    return 0.0 if kind is None else kind.budget_seconds_min


class Merger:
    """Orders a merge now and then, beside a feeder."""

    def __init__(self, target: Target, priority: int, given_seconds: float = 0.0) -> None:
        """`given_seconds` is what agents give to any task, 0 where that is not known."""
        self._target = target
        self._priority = priority
        self._given_seconds = given_seconds
        self._since = 0
        """Tasks of training ordered since the last merge."""

    async def after(self, ordered: int) -> bool:
        """After so many tasks of training were ordered: order the merge of the models that err most
        alike, if it is time and there is one; whether it was."""
        self._since += ordered
        if not ordered or self._since < ORDERS_BETWEEN:
            return False
        found = await self._target.merges()
        if not found:
            return False
        chosen = min(found, key=lambda order: (order.spread, order.node_id))
        needed = chosen.budget_seconds_min
        budget = needed if needed > self._given_seconds else None
        try:
            await self._target.merge(chosen, budget, self._priority)
        except (errors.Conflict, errors.NotFound) as error:
            # Another round was decided since: the next look finds what that left.
            log.info("not merged: %s", error, extra={"action": "merge"})
            return False
        self._since = 0
        return True
