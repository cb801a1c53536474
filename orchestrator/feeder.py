"""Keeps the queue from running dry: which node to train next and by which rival, for the most
expected gain per cost, as the ledger of rivals has it.

A rival's success rate is the mean of a Beta posterior over its recent rounds (Laplace's rule of
succession), older rounds counting less, as in the discounted bandits of Garivier and Moulines
(2008): models get better, and what won once wins more rarely. Exploration is by turns and not by
a bonus: UCB1's (Auer, Cesa-Bianchi and Fischer 2002) is larger than any difference between some
dozens of arms of a few rounds each, and would come to taking them in turn; and turns draw no random
number, and bound how long nobody is tried.
"""

import asyncio
import hashlib
import heapq
import itertools
import logging
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from core import errors, plans, workloads
from core.decide import fitness
from core.events import Rival, Role
from core.projections.rivalry import Account, Ordered
from core.projections.rounds import RIVALS, rivals_of
from core.projections.state import State
from orchestrator.merger import Merger

log = logging.getLogger(__name__)

ROLES: tuple[Role, ...] = ("dual", "evolver", "reinventor")
"""What is ordered; of equals the first."""
EXPLORE_EVERY = 4
"""One order in so many goes to the node that has waited longest, where one has for long."""
COST_MOST = 10.0
"""By so much at most is a dear node explored more rarely than a usual one."""
ROLE_EVERY = 12
"""A role that a node has not had in so many of its tasks comes next: each has one of any 15."""
ROUND_SECONDS = 10.0
"""What a round costs beside training: its judge's time, and a look at the champion."""
GAIN_USUAL = 0.2
"""What the first win over a champion is expected to make of its error: e ** -0.2 of it."""
UNJUDGED_MAX = 16
UNJUDGED_FEW = 8
"""The judges count as no longer behind: else each verdict would be told as a change."""
USUAL_SECONDS = 30.0
"""What agents give to a task, where that is not known."""
PRIORITY_BESIDE_PEOPLE = 3
"""Below the 5 that people's tasks have unless they say otherwise."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the feeder weighs of one node: the accounts of its rivals, and whose turn was when."""

    node_id: str
    name: str
    own_workload: bool
    open_tasks: int
    champion: bool
    below_baseline: bool
    evolver: Account
    reinventor: Account
    ordered: Ordered
    budget_seconds_min: float = 0.0
    """Least budget of a rival that teaches it anything; 0: any."""

    def account(self, rival: Rival) -> Account:
        """Of one of its two rivals."""
        return self.evolver if rival == "evolver" else self.reinventor


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What the feeder sees of the whole; `tasks` were queued ever."""

    queued: int
    workers_online: int
    unjudged: int
    nodes: list[Standing]
    tasks: int = 0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One task to enqueue."""

    node_id: str
    topic: str
    role: Role = "dual"
    budget_seconds: float | None = None
    """Of the whole task; None: what its agent gives to any."""


class Terms(NamedTuple):
    """What costs are reckoned by: the seconds that a task usually takes, and what a second costs on
    average, 0 where no price is known."""

    usual_seconds: float
    price: float


def terms(nodes: Iterable[Standing], given_seconds: float) -> Terms:
    """`given_seconds` is what agents give to any task, 0 where that is not known."""
    accounts = [node.account(rival) for node in nodes for rival in RIVALS]
    priced = sum(one.priced_us for one in accounts)
    cost = sum(one.cost_micro for one in accounts)
    return Terms(given_seconds or USUAL_SECONDS, cost / priced if priced else 0.0)


def expected_gain(node: Standing, rival: Rival) -> float:
    """Of one more round, in powers of e by which the error falls: success rate x gain of a success,
    both shrunk to what is usual by one round's weight.

    A node without a champion takes whoever comes first, so any win is a success there; else only
    one over a champion, since a first one says nothing of how hard that is.
    """
    account = node.account(rival)
    successes = account.recent_replaced if node.champion else account.recent_won
    rate = (successes + 1) / (account.recent_rounds + 2)
    return rate * (account.recent_gain + GAIN_USUAL) / (account.recent_replaced + 1)


def expected_cost(node: Standing, rival: Rival, by: Terms) -> float:
    """Device seconds of one more round, of what a second costs on average; shrunk to the usual as
    gains are. Where workers of unlike prices do a node's work, the dearer are more seconds."""
    account = node.account(rival)
    usual = max(by.usual_seconds / len(RIVALS), node.budget_seconds_min)
    seconds = (account.held_us / 1e6 + usual) / (account.rounds + 1)
    if not by.price:
        return seconds
    priced = account.priced_us / 1e6 + usual
    return seconds * (account.cost_micro / 1e6 / by.price + usual) / priced


def value(node: Standing, role: Role, by: Terms) -> float:
    """Expected gain per cost of one more task of this role."""
    rivals = rivals_of(role)
    gain = sum(expected_gain(node, rival) for rival in rivals)
    return gain / (ROUND_SECONDS + sum(expected_cost(node, rival, by) for rival in rivals))


def role_of(node: Standing, by: Terms) -> Role:
    """The role of the node's next task: the one that it has not had for longest where that is too
    long, else the one of most value."""
    turns = node.ordered
    waited = {role: turns.tasks - int(getattr(turns, role)) for role in ROLES}
    overdue = max(ROLES, key=lambda role: waited[role])
    if waited[overdue] >= ROLE_EVERY:
        return overdue
    return max(ROLES, key=lambda role: value(node, role, by))


def promise(node: Standing, by: Terms) -> float:
    """How much one more task of a node promises: headroom x value, shared among its open tasks.

    Headroom is 1 without a champion, 0.7 for one still worse than the baseline of record, else
    0.3. A node that only inherits its workload counts half: its twin learns the same.
    """
    headroom = 1.0 if not node.champion else 0.7 if node.below_baseline else 0.3
    best = max(value(node, role, by) for role in ROLES)
    return headroom * best * (1.0 if node.own_workload else 0.5) / (1 + node.open_tasks)


def neglected(nodes: Sequence[Standing], tasks: int, by: Terms) -> Standing | None:
    """The node that has waited longest for a task, in tasks of all nodes, of which there were
    `tasks`; None where each of n nodes had one within the last n.

    One that costs c times the usual waits c times as long, COST_MOST at most. So where only this
    feeder orders, each node is tried within EXPLORE_EVERY x n x (2 + c) orders: of those that come
    before it, n at most never had a task, and the others have waited as long in their own measure,
    which none can twice within n such turns.
    """

    def waited(node: Standing) -> float:
        if not node.ordered.newest:
            return math.inf
        cost = sum(expected_cost(node, rival, by) for rival in RIVALS) / by.usual_seconds
        return (tasks - node.ordered.newest) / min(max(cost, 1.0), COST_MOST)

    longest = min(nodes, key=lambda node: (-waited(node), node.node_id))
    return longest if waited(longest) >= len(nodes) else None


def plan(
    fleet: Fleet, *, min_queue: int, burst: int, turn: int, given_seconds: float = 0.0
) -> list[Order]:
    """The tasks to enqueue now: those that promise most, none while the queue is long enough,
    nobody works, or the judges are behind. Every fourth order goes to whom they neglect.

    `given_seconds` is what agents give to any task, 0 where that is not known.
    """
    missing = min(burst, min_queue - fleet.queued)
    if missing <= 0 or not fleet.nodes or not fleet.workers_online or backlog(fleet.unjudged):
        return []
    nodes = {node.node_id: node for node in fleet.nodes}
    by = terms(fleet.nodes, given_seconds)
    promising = _Ranking(nodes, lambda node: -promise(node, by))
    orders: list[Order] = []
    for number in range(turn, turn + missing):
        tasks = fleet.tasks + len(orders)
        explores = number % EXPLORE_EVERY == EXPLORE_EVERY - 1
        forgotten = neglected(list(nodes.values()), tasks, by) if explores else None
        chosen = forgotten or promising.first()
        order = _order(chosen, role_of(chosen, by), given_seconds)
        orders.append(order)
        nodes[chosen.node_id] = msgspec.structs.replace(
            chosen,
            open_tasks=chosen.open_tasks + 1,
            ordered=chosen.ordered.with_one(order.role, tasks + 1),
        )
    return orders


def _order(node: Standing, role: Role, given_seconds: float) -> Order:
    needed = len(rivals_of(role)) * node.budget_seconds_min
    return Order(
        node_id=node.node_id,
        topic=f"جولة تدريب: {node.name}",
        role=role,
        budget_seconds=needed if needed > given_seconds else None,
    )


def backlog(unjudged: int) -> str:
    """Why so many rounds without a verdict keep the feeder waiting; "" where they do not."""
    if unjudged < UNJUDGED_MAX:
        return ""
    return (
        f"{unjudged} rounds wait for the judge (its log: logs/judge.log of the data directory); "
        f"until fewer than {UNJUDGED_MAX} do, the orchestrator orders no training"
    )


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
    out, and so are its tasks: others are not to wait behind them. Nor are closed tasks counted,
    which nobody is given, nor merges that wait, which workers over HTTP are not."""
    stuck = fitness.stuck_nodes(state, now)
    closed = Counter(task.node_id for task in state.tasks.open_and_closed())
    waiting = _queued_on(state, stuck, closed) if stuck else 0
    waiting += _merges_queued(state, stuck)
    nodes = [
        Standing(
            node_id=node.node_id,
            name=node.name,
            own_workload=node.workload is not None,
            open_tasks=state.tasks.open_of_node.get(node.node_id, 0) - closed[node.node_id],
            champion=node.node_id in state.graph.champions,
            below_baseline=_below_baseline(state, node.node_id),
            evolver=state.rivalry.of(node.node_id, "evolver"),
            reinventor=state.rivalry.of(node.node_id, "reinventor"),
            ordered=state.rivalry.turns(node.node_id),
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
        tasks=len(state.tasks.ids),
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
        role=order.role,
        budget_seconds=order.budget_seconds or 0.0,
    )


def _queued_on(state: State, node_ids: set[str], closed: Counter[str]) -> int:
    """How many queued tasks these nodes have, without those that are closed."""
    tasks = state.tasks
    held = itertools.chain.from_iterable(tasks.held.values())
    running = sum(tasks.table.rows[task_id].node_id in node_ids for task_id in held)
    there = (tasks.open_of_node.get(node_id, 0) - closed[node_id] for node_id in node_ids)
    return sum(there) - running


def _merges_queued(state: State, but_on: set[str]) -> int:
    """How many merges are queued on other nodes than these."""
    queued = state.tasks.queued_of_role.items()
    return sum(
        count for (node_id, role), count in queued if role == "merge" and node_id not in but_on
    )


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
