"""Keeps the queue from running dry: which node to train next, for the most expected gain."""

import asyncio
import hashlib
import heapq
import logging
import uuid
from collections.abc import Callable
from typing import Protocol

import msgspec

from core import errors
from core.projections.state import State

log = logging.getLogger(__name__)

EXPLORE_EVERY = 4
UNJUDGED_MAX = 16
PRIORITY_BESIDE_PEOPLE = 3
"""Below the 5 that people's tasks have unless they say otherwise."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the feeder weighs of one node."""

    node_id: str
    name: str
    own_workload: bool
    open_tasks: int
    rounds: int
    promotions: int
    champion: bool
    below_baseline: bool


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What the feeder sees of the whole."""

    queued: int
    workers_online: int
    unjudged: int
    nodes: list[Standing]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One task to enqueue."""

    node_id: str
    topic: str


def expected_gain(node: Standing) -> float:
    """Expected gain of one more task: headroom x success rate, shared among its open tasks.

    Headroom is 1 without a champion, 0.7 for one still worse than the baseline of record, else
    0.3. The success rate is Laplace's rule of succession over the node's rounds. A node that
    only inherits its workload counts half: its twin learns the same.
    """
    headroom = 1.0 if not node.champion else 0.7 if node.below_baseline else 0.3
    success = (node.promotions + 1) / (node.rounds + 2)
    return headroom * success * (1.0 if node.own_workload else 0.5) / (1 + node.open_tasks)


def plan(fleet: Fleet, *, min_queue: int, burst: int, turn: int) -> list[Order]:
    """The tasks to enqueue now; none while the queue is long enough, nobody works, or the judges
    are behind. Every fourth choice explores: the node with the fewest rounds and open tasks."""
    missing = min(burst, min_queue - fleet.queued)
    if missing <= 0 or not fleet.workers_online or fleet.unjudged >= UNJUDGED_MAX:
        return []
    nodes = {node.node_id: node for node in fleet.nodes}
    promising = _Ranking(nodes, lambda node: -expected_gain(node))
    neglected = _Ranking(nodes, lambda node: node.rounds + node.open_tasks)
    orders: list[Order] = []
    for number in range(turn, turn + missing):
        explores = number % EXPLORE_EVERY == EXPLORE_EVERY - 1
        chosen = (neglected if explores else promising).first()
        orders.append(Order(node_id=chosen.node_id, topic=f"جولة تدريب: {chosen.name}"))
        nodes[chosen.node_id] = msgspec.structs.replace(chosen, open_tasks=chosen.open_tasks + 1)
    return orders


class _Ranking:
    """Nodes by a score, lowest first, of which ordering a task may raise any."""

    def __init__(self, nodes: dict[str, Standing], score: Callable[[Standing], float]) -> None:
        self._nodes = nodes
        self._score = score
        self._heap = [(score(node), node_id) for node_id, node in nodes.items()]
        heapq.heapify(self._heap)

    def first(self) -> Standing:
        """The node whose score is lowest now."""
        while True:
            known, node_id = self._heap[0]
            now = self._score(self._nodes[node_id])
            if now == known:
                return self._nodes[node_id]
            # Scores only rise, so that whoever stays on top with its newest one is the first.
            heapq.heapreplace(self._heap, (now, node_id))


def survey(state: State) -> Fleet:
    """What the feeder weighs, from the projections."""
    nodes = [
        Standing(
            node_id=node.node_id,
            name=node.name,
            own_workload=node.workload is not None,
            open_tasks=state.tasks.open_of_node.get(node.node_id, 0),
            rounds=len(state.rounds.of_node.get(node.node_id, ())),
            promotions=state.graph.promotions.get(node.node_id, 0),
            champion=node.node_id in state.graph.champions,
            below_baseline=_below_baseline(state, node.node_id),
        )
        for node in state.graph.nodes
    ]
    return Fleet(
        queued=state.tasks.counts["queued"],
        workers_online=state.workers.online,
        unjudged=state.rounds.awaiting_judgement,
        nodes=nodes,
    )


def _below_baseline(state: State, node_id: str) -> bool:
    champion = state.graph.champions.get(node_id)
    return champion is not None and champion.below_baseline


class Target(Protocol):
    """Where the feeder looks and enqueues: the runtime beside it, or a server over HTTP."""

    async def survey(self) -> Fleet:
        """What there is now. Raises errors.Unavailable."""
        ...

    async def enqueue(self, order: Order, priority: int, key: str) -> None:
        """Enqueue one order, once per key. Raises errors.Unavailable."""
        ...


class Feeder:
    """The loop around `plan`."""

    def __init__(
        self, target: Target, *, min_queue: int, burst: int, sleep_seconds: float, priority: int
    ) -> None:
        self._target = target
        self._min_queue = min_queue
        self._burst = burst
        self._sleep_seconds = sleep_seconds
        self._priority = priority
        self._turn = 0
        self._name = uuid.uuid4().hex

    async def run(self) -> None:
        """Feed, for ever; what keeps it from that is said once."""
        refused: type[errors.AghsanError] | None = None
        while True:
            try:
                await self.feed()
                refused = None
            except errors.AghsanError as error:
                if type(error) is not refused:
                    log.warning("cannot feed now: %s", error, extra={"action": "feed"})
                refused = type(error)
            await asyncio.sleep(self._sleep_seconds)

    async def feed(self) -> int:
        """Top the queue up once; how many tasks were enqueued."""
        fleet = await self._target.survey()
        orders = plan(fleet, min_queue=self._min_queue, burst=self._burst, turn=self._turn)
        for order in orders:
            self._turn += 1
            await self._target.enqueue(order, self._priority, self._key())
        return len(orders)

    def _key(self) -> str:
        return hashlib.sha256(f"{self._name}:{self._turn}".encode()).hexdigest()[:24]
