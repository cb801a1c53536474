"""Keeps the queue from running dry: which node to train next, for the most expected gain."""

import asyncio
import hashlib
import heapq
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from core import errors, plans, workloads
from core.decide import fitness
from core.projections.rounds import RIVALS
from core.projections.state import State
from orchestrator.merger import Merger

log = logging.getLogger(__name__)

EXPLORE_EVERY = 4
UNJUDGED_MAX = 16
UNJUDGED_FEW = 8
"""The judges count as no longer behind: else each verdict would be told as a change."""
USUAL_SECONDS = 30.0
"""What agents give to a task, where that is not known."""
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
    budget_seconds_min: float = 0.0
    """Least budget of a rival that teaches it anything; 0: any."""


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
    budget_seconds: float | None = None
    """Of the whole task; None: what its agent gives to any."""


def expected_gain(node: Standing) -> float:
    """Expected gain of one more task: headroom x success rate, shared among its open tasks.

    Headroom is 1 without a champion, 0.7 for one still worse than the baseline of record, else
    0.3. The success rate is Laplace's rule of succession over the node's rounds. A node that
    only inherits its workload counts half: its twin learns the same.
    """
    headroom = 1.0 if not node.champion else 0.7 if node.below_baseline else 0.3
    success = (node.promotions + 1) / (node.rounds + 2)
    return headroom * success * (1.0 if node.own_workload else 0.5) / (1 + node.open_tasks)


def plan(
    fleet: Fleet, *, min_queue: int, burst: int, turn: int, given_seconds: float = 0.0
) -> list[Order]:
    """The tasks to enqueue now: of the most expected gain per second, none while the queue is long
    enough, nobody works, or the judges are behind. Every fourth choice explores: the node that the
    least time was spent on, by its rounds and open tasks.

    `given_seconds` is what agents give to any task, 0 where that is not known.
    """
    missing = min(burst, min_queue - fleet.queued)
    if missing <= 0 or not fleet.nodes or not fleet.workers_online or backlog(fleet.unjudged):
        return []
    nodes = {node.node_id: node for node in fleet.nodes}
    usual_seconds = given_seconds or USUAL_SECONDS

    def cost(node: Standing) -> float:
        return max(1.0, _needed_seconds(node) / usual_seconds)

    promising = _Ranking(nodes, lambda node: -expected_gain(node) / cost(node))
    neglected = _Ranking(nodes, lambda node: (1 + node.rounds + node.open_tasks) * cost(node))
    orders: list[Order] = []
    for number in range(turn, turn + missing):
        explores = number % EXPLORE_EVERY == EXPLORE_EVERY - 1
        chosen = (neglected if explores else promising).first()
        needed = _needed_seconds(chosen)
        orders.append(
            Order(
                node_id=chosen.node_id,
                topic=f"جولة تدريب: {chosen.name}",
                budget_seconds=needed if needed > given_seconds else None,
            )
        )
        nodes[chosen.node_id] = msgspec.structs.replace(chosen, open_tasks=chosen.open_tasks + 1)
    return orders


def backlog(unjudged: int) -> str:
    """Why so many rounds without a verdict keep the feeder waiting; "" where they do not."""
    if unjudged < UNJUDGED_MAX:
        return ""
    return (
        f"{unjudged} rounds wait for the judge (its log: logs/judge.log of the data directory); "
        f"until fewer than {UNJUDGED_MAX} do, the orchestrator orders no training"
    )


def _needed_seconds(node: Standing) -> float:
    return len(RIVALS) * node.budget_seconds_min


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


def survey(state: State, now: int) -> Fleet:
    """What the feeder weighs, from the projections. A node that nobody online can train is left
    out, and so are its tasks: others are not to wait behind them. Closed tasks, which nobody is
    given, are not counted."""
    stuck = fitness.stuck_nodes(state, now)
    closed = Counter(task.node_id for task in state.tasks.open_and_closed())
    waiting = _queued_on(state, stuck, closed) if stuck else 0
    nodes = [
        Standing(
            node_id=node.node_id,
            name=node.name,
            own_workload=node.workload is not None,
            open_tasks=state.tasks.open_of_node.get(node.node_id, 0) - closed[node.node_id],
            rounds=len(state.rounds.of_node.get(node.node_id, ())),
            promotions=state.graph.promotions.get(node.node_id, 0),
            champion=node.node_id in state.graph.champions,
            below_baseline=_below_baseline(state, node.node_id),
            budget_seconds_min=least_budget(state.graph.workload(node.node_id)[0].specialist),
        )
        for node in state.graph.nodes
        if node.node_id not in stuck
    ]
    return Fleet(
        queued=max(0, len(state.tasks.queue) - waiting),
        workers_online=state.workers.online,
        unjudged=state.rounds.awaiting_judgement,
        nodes=nodes,
    )


def foresee(fleet: Fleet, given_seconds: float = 0.0) -> plans.Order:
    """What would be ordered if the queue wanted one more, on a turn that does not explore."""
    if not fleet.workers_online:
        return plans.Order(obstacle="workers")
    if backlog(fleet.unjudged):
        return plans.Order(obstacle="judges")
    orders = plan(fleet, min_queue=fleet.queued + 1, burst=1, turn=0, given_seconds=given_seconds)
    if not orders:
        return plans.Order(obstacle="nodes")
    (order,) = orders
    return plans.Order(
        node_id=order.node_id,
        name=next(node.name for node in fleet.nodes if node.node_id == order.node_id),
        budget_seconds=order.budget_seconds or 0.0,
    )


def _queued_on(state: State, node_ids: set[str], closed: Counter[str]) -> int:
    """How many queued tasks these nodes have, without those that are closed."""
    tasks = state.tasks
    held = itertools.chain.from_iterable(tasks.held.values())
    running = sum(tasks.table.rows[task_id].node_id in node_ids for task_id in held)
    there = (tasks.open_of_node.get(node_id, 0) - closed[node_id] for node_id in node_ids)
    return sum(there) - running


def least_budget(specialist: str) -> float:
    """Of a rival, seconds; 0 for one that this version does not know."""
    kind = workloads.KINDS.get(specialist)
    return 0.0 if kind is None else kind.budget_seconds_min


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
        self,
        target: Target,
        *,
        min_queue: int,
        burst: int,
        sleep_seconds: float,
        priority: int,
        say: Callable[[str], None],
        given_seconds: float = 0.0,
        merges: Merger | None = None,
    ) -> None:
        """`say` tells people in a line when the judges are behind, and when no longer; `merges` is
        told of what was ordered, and may order a merge beside it."""
        self._target = target
        self._say = say
        self._is_behind = False
        self._min_queue = min_queue
        self._burst = burst
        self._sleep_seconds = sleep_seconds
        self._priority = priority
        self._given_seconds = given_seconds
        self._merges = merges
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
        self._tell(fleet)
        orders = plan(
            fleet,
            min_queue=self._min_queue,
            burst=self._burst,
            turn=self._turn,
            given_seconds=self._given_seconds,
        )
        for order in orders:
            self._turn += 1
            await self._target.enqueue(order, self._priority, self._key())
        if self._merges is not None:
            await self._merges.after(len(orders))
        return len(orders)

    def _tell(self, fleet: Fleet) -> None:
        """Say once that the queue runs dry for want of verdicts, and once that it is fed again."""
        wants = fleet.queued < self._min_queue and fleet.workers_online > 0
        if not self._is_behind and wants and (words := backlog(fleet.unjudged)):
            self._is_behind = True
            self._say(words)
        elif self._is_behind and fleet.unjudged <= UNJUDGED_FEW:
            self._is_behind = False
            self._say("the judge is no longer behind; the orchestrator orders training again")

    def _key(self) -> str:
        return hashlib.sha256(f"{self._name}:{self._turn}".encode()).hexdigest()[:24]
