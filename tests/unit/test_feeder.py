"""What the feeder chooses, and when it holds back."""

import asyncio
from collections import Counter

import msgspec
import pytest

from core import commands, errors, plans, runtime
from core.events import Rival
from core.log_memory import MemoryLog
from core.projections.rivalry import Account, Ordered
from orchestrator import feeder
from orchestrator.feeder import Feeder, Fleet, Order, Standing
from orchestrator.targets import RuntimeTarget
from tests.build import SECOND, World


def _account(rival: Rival, rounds: int = 0, won: int = 0, gain: float = 0.2) -> Account:
    """Of a rival that won some of its rounds over champions, none long ago, at 15 s a round."""
    return Account(
        node_id="",
        rival=rival,
        rounds=rounds,
        won=won,
        held_us=rounds * 15 * SECOND,
        recent_rounds=rounds,
        recent_won=won,
        recent_replaced=won,
        recent_gain=won * gain,
    )


def _node(
    node_id: str,
    evolver: tuple[int, int] = (0, 0),
    reinventor: tuple[int, int] = (0, 0),
    **more: object,
) -> Standing:
    """A node whose rivals have had so many rounds, and have won so many."""
    values: dict[str, object] = {
        "node_id": node_id,
        "name": node_id,
        "own_workload": True,
        "open_tasks": 0,
        "champion": False,
        "below_baseline": False,
        "evolver": _account("evolver", *evolver),
        "reinventor": _account("reinventor", *reinventor),
        "ordered": Ordered(node_id=node_id),
    }
    return Standing(**{**values, **more})  # type: ignore[arg-type]


def _with(node: Standing, account: Account) -> Standing:
    if account.rival == "evolver":
        return msgspec.structs.replace(node, evolver=account)
    return msgspec.structs.replace(node, reinventor=account)


def _fleet(*nodes: Standing, queued: int = 0, workers: int = 1, unjudged: int = 0) -> Fleet:
    return Fleet(queued=queued, workers_online=workers, unjudged=unjudged, nodes=list(nodes))


def test_the_queue_is_filled_up_to_its_minimum_and_not_beyond() -> None:
    fleet = _fleet(_node("a"), _node("b"), queued=3)
    assert len(feeder.plan(fleet, min_queue=5, burst=10, turn=0)) == 2
    assert feeder.plan(_fleet(_node("a"), queued=5), min_queue=5, burst=10, turn=0) == []


def test_no_more_than_a_burst_is_enqueued_at_a_time() -> None:
    assert len(feeder.plan(_fleet(_node("a")), min_queue=50, burst=4, turn=0)) == 4


def test_nothing_is_fed_when_nobody_works() -> None:
    assert feeder.plan(_fleet(_node("a"), workers=0), min_queue=5, burst=5, turn=0) == []


def test_nothing_is_fed_while_the_judges_are_behind() -> None:
    assert feeder.plan(_fleet(_node("a"), unjudged=16), min_queue=5, burst=5, turn=0) == []


def test_a_task_gets_what_its_node_needs_for_both_rivals_and_elsewhere_what_its_agent_gives() -> (
    None
):
    fleet = _fleet(_node("slow", budget_seconds_min=60.0), _node("any"))
    budgets = {
        order.node_id: order.budget_seconds
        for order in feeder.plan(fleet, min_queue=9, burst=9, turn=0)
    }
    assert budgets == {"slow": 120.0, "any": None}


def test_a_task_for_which_its_agent_gives_more_than_its_node_needs_names_no_budget() -> None:
    fleet = _fleet(_node("slow", budget_seconds_min=60.0))
    for given, named in ((119.0, 120.0), (120.0, None), (300.0, None)):
        (order,) = feeder.plan(fleet, min_queue=1, burst=1, turn=0, given_seconds=given)
        assert order.budget_seconds == named


def test_what_takes_long_comes_later_and_is_explored_more_rarely() -> None:
    fleet = _fleet(_node("a", budget_seconds_min=60.0), _node("b"), _node("c"))
    orders = feeder.plan(fleet, min_queue=120, burst=120, turn=0, given_seconds=10.0)
    counts = Counter(order.node_id for order in orders)
    assert orders[0].node_id == "b"
    assert 3 * counts["a"] < counts["b"]
    assert abs(counts["b"] - counts["c"]) <= 4
    explored = Counter(order.node_id for order in orders[3 :: feeder.EXPLORE_EVERY])
    assert 0 < explored["a"] < explored["b"]


def test_the_root_is_never_ordered_for_less_than_it_needs() -> None:
    fleet = feeder.survey(World().seeded().state, 0)
    root = next(node for node in fleet.nodes if node.node_id == "root-math")
    assert root.budget_seconds_min == 60.0
    assert feeder.least_budget("of a newer version") == 0.0


def test_tasks_that_nobody_is_given_any_more_leave_their_place_to_others() -> None:
    world = World().seeded()
    world.task("t1")
    world.task("t2")
    world.state.close("ev.task.t1")
    fleet = feeder.survey(world.state, 0)
    (node,) = [node for node in fleet.nodes if node.open_tasks]
    assert (fleet.queued, node.open_tasks) == (1, 1)


def test_a_node_without_a_champion_comes_before_one_that_is_good_already() -> None:
    fleet = _fleet(_node("good", (4, 2), champion=True), _node("new"))
    assert feeder.plan(fleet, min_queue=1, burst=1, turn=0)[0].node_id == "new"


def test_a_node_worse_than_its_baseline_comes_before_one_that_is_better() -> None:
    better = _node("better", (1, 1), champion=True)
    worse = _node("worse", (1, 1), champion=True, below_baseline=True)
    fleet = _fleet(better, worse)
    assert feeder.plan(fleet, min_queue=1, burst=1, turn=0)[0].node_id == "worse"


def test_every_fourth_choice_goes_to_the_node_that_waited_longest() -> None:
    hopeless = _node("hopeless", (30, 0), (30, 0), own_workload=False, champion=True)
    fleet = _fleet(_node("best", (9, 9)), hopeless)
    chosen = [order.node_id for order in feeder.plan(fleet, min_queue=4, burst=4, turn=0)]
    assert chosen[3] == "hopeless"


def _followed(nodes: list[Standing], count: int, given: float) -> list[Order]:
    """What is ordered one by one, each survey seeing what was ordered before."""
    standing = {node.node_id: node for node in nodes}
    orders: list[Order] = []
    for turn in range(count):
        fleet = Fleet(
            queued=0, workers_online=1, unjudged=0, nodes=list(standing.values()), tasks=turn
        )
        (order,) = feeder.plan(fleet, min_queue=1, burst=1, turn=turn, given_seconds=given)
        one = standing[order.node_id]
        standing[order.node_id] = msgspec.structs.replace(
            one,
            open_tasks=one.open_tasks + 1,
            ordered=one.ordered.with_one(order.role, turn + 1),
        )
        orders.append(order)
    return orders


def test_a_long_plan_chooses_as_weighing_all_nodes_anew_each_time_would() -> None:
    nodes = [
        _node(
            f"n{n:02}",
            (n % 7, n % 2),
            (n % 5, n % 3 // 2),
            own_workload=n % 3 > 0,
            open_tasks=n % 5,
            champion=n % 2 > 0,
            budget_seconds_min=20.0 * (n % 4),
        )
        for n in range(30)
    ]
    orders = feeder.plan(_fleet(*nodes), min_queue=90, burst=90, turn=0, given_seconds=10.0)
    assert orders == _followed(nodes, 90, 10.0)


def test_where_only_the_reinventor_wins_it_is_ordered_alone_more_often() -> None:
    wins = _node("n", (12, 0), (12, 6), champion=True)
    even = _node("n", (12, 3), (12, 3), champion=True)
    alone = Counter(order.role for order in _followed([wins], 30, 30.0))
    assert alone["reinventor"] > alone["dual"] + alone["evolver"]
    together = Counter(order.role for order in _followed([even], 30, 30.0))
    assert together["dual"] > together["reinventor"] + together["evolver"]


def test_a_node_that_stagnates_is_ordered_less() -> None:
    grows = _node("grows", (10, 5), (10, 2), champion=True)
    stagnates = _node("stagnates", (40, 0), (40, 0), champion=True)
    counts = Counter(order.node_id for order in _followed([stagnates, grows], 40, 30.0))
    assert counts["grows"] > 2 * counts["stagnates"] > 0


def test_a_win_that_was_large_counts_more() -> None:
    small = _with(_node("a", champion=True), _account("evolver", 9, 3, gain=0.05))
    large = _with(_node("b", champion=True), _account("evolver", 9, 3, gain=1.0))
    assert feeder.plan(_fleet(small, large), min_queue=1, burst=1, turn=0)[0].node_id == "b"


def test_a_first_champion_says_nothing_of_how_hard_the_next_is() -> None:
    first = msgspec.structs.replace(
        _account("reinventor", 1), won=1, recent_won=1.0, recent_replaced=0.0
    )
    node = _with(_node("n", (1, 0), champion=True), first)
    assert feeder.expected_gain(node, "evolver") == feeder.expected_gain(node, "reinventor")


def test_what_took_longer_and_what_costs_more_promises_less() -> None:
    def spent(node_id: str, seconds: int, price: float | None) -> Standing:
        account = msgspec.structs.replace(
            _account("evolver", 9, 3),
            held_us=seconds * SECOND,
            priced_us=0 if price is None else seconds * SECOND,
            cost_micro=0 if price is None else round(seconds * SECOND * price / 3600),
        )
        return _with(_node(node_id, champion=True), account)

    usual = spent("b", 135, None)
    assert feeder.plan(_fleet(spent("a", 400, None), usual), min_queue=1, burst=1, turn=0)[
        0
    ].node_id == ("b")
    dear, cheap = spent("a", 135, 3.0), spent("b", 135, 1.0)
    assert feeder.plan(_fleet(dear, cheap), min_queue=1, burst=1, turn=0)[0].node_id == "b"
    free = [spent("a", 135, 0.0), spent("b", 135, 0.0)]
    assert len(feeder.plan(_fleet(*free), min_queue=4, burst=4, turn=0)) == 4


def test_a_task_of_one_rival_gets_what_that_one_needs() -> None:
    node = _node("n", (12, 0), (12, 9), champion=True, budget_seconds_min=60.0)
    (order,) = feeder.plan(_fleet(node), min_queue=1, burst=1, turn=0, given_seconds=30.0)
    assert (order.role, order.budget_seconds) == ("reinventor", 60.0)


def test_a_long_plan_reaches_every_node() -> None:
    nodes = [_node(f"n{number}", own_workload=number < 3) for number in range(10)]
    orders = feeder.plan(_fleet(*nodes), min_queue=40, burst=40, turn=0)
    assert {order.node_id for order in orders} == {node.node_id for node in nodes}


class Full:
    """A target without room."""

    def __init__(self) -> None:
        self.asked = asyncio.Queue[None]()

    async def survey(self) -> Fleet:
        self.asked.put_nowait(None)
        raise errors.LogFull("no room for new work")

    async def enqueue(self, order: Order, priority: int, key: str) -> None:
        raise AssertionError("nothing is known to be missing")


async def test_what_keeps_the_feeder_from_feeding_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = Full()
    feeding = asyncio.ensure_future(
        Feeder(target, min_queue=1, burst=1, sleep_seconds=0.0, priority=3, say=print).run()
    )
    for _ in range(3):
        await target.asked.get()
    feeding.cancel()
    assert caplog.text.count("no room for new work") == 1


class Judging:
    """A target with so many rounds that no judge has decided."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.orders = 0

    async def survey(self) -> Fleet:
        return self.fleet

    async def enqueue(self, order: Order, priority: int, key: str) -> None:
        self.orders += 1


async def test_that_the_judge_is_behind_and_no_longer_is_said_once_each() -> None:
    said: list[str] = []
    target = Judging(_fleet(_node("a")))
    one = Feeder(target, min_queue=1, burst=1, sleep_seconds=0.0, priority=3, say=said.append)
    told = []
    for unjudged in (0, 15, 16, 17, 15, 16, 9, 8, 0, 16):
        target.fleet = _fleet(_node("a"), unjudged=unjudged)
        await one.feed()
        told.append(len(said))
    assert told == [0, 0, 1, 1, 1, 1, 1, 2, 2, 3]
    assert said[0] == said[2] == feeder.backlog(16)
    assert "16 rounds wait for the judge" in said[0]
    assert target.orders == 6


async def test_a_judge_that_is_behind_is_no_news_where_nothing_would_be_ordered_anyway() -> None:
    said: list[str] = []
    target = Judging(_fleet(_node("a")))
    one = Feeder(target, min_queue=1, burst=1, sleep_seconds=0.0, priority=3, say=said.append)
    for more in ({"queued": 1}, {"workers": 0}):
        target.fleet = _fleet(_node("a"), unjudged=16, **more)
        await one.feed()
    assert said == []


def _foreseen(world: World) -> plans.Order:
    return feeder.foresee(feeder.survey(world.state, world.state.at), given_seconds=30.0)


def test_what_would_be_ordered_next_is_foreseen_however_full_the_queue() -> None:
    world = World().seeded()
    assert _foreseen(world) == plans.Order(obstacle="workers")
    world.agent("a1")
    for number in range(3):
        world.task(f"t{number}", "math-physics")
    order = _foreseen(world)
    (planned,) = feeder.plan(
        feeder.survey(world.state, world.state.at), min_queue=4, burst=1, turn=0, given_seconds=30.0
    )
    assert order.node_id == planned.node_id
    assert order.name == world.state.graph.nodes.rows[order.node_id].name
    assert order.budget_seconds == (planned.budget_seconds or 0.0)
    assert _foreseen(world) == order


def test_the_role_that_would_be_ordered_is_foreseen() -> None:
    wins = _node("n", (12, 0), (12, 9), champion=True)
    assert feeder.foresee(_fleet(wins)).role == "reinventor"
    assert feeder.foresee(_fleet(_node("n"))).role == "dual"


def test_whose_turn_was_when_is_surveyed_whoever_ordered() -> None:
    world = World().seeded()
    world.task("t1")
    world.task("t2", "opt-convex", role="evolver")
    fleet = feeder.survey(world.state, world.now)
    turns = {node.node_id: node.ordered for node in fleet.nodes}
    assert fleet.tasks == 2
    assert (turns["stats-bayesian"].newest, turns["opt-convex"].newest) == (1, 2)
    assert (turns["opt-convex"].evolver, turns["root-math"].tasks) == (1, 0)


async def test_an_order_is_enqueued_with_its_role() -> None:
    door = runtime.Runtime(MemoryLog(), "test")
    await door.start()
    loop = asyncio.ensure_future(door.run())
    try:
        await door.execute(commands.SeedTree(), runtime.new_meta("test"), runtime.nothing)
        order = Order(node_id="opt-convex", topic="topic", role="reinventor")
        await RuntimeTarget(door).enqueue(order, 3, "key")
        roles = await door.read(
            lambda state: [getattr(row, "role", "") for row in state.tasks.table]
        )
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert roles == ["reinventor"]


def test_nothing_is_foreseen_while_the_judges_are_behind_or_no_node_can_be_trained() -> None:
    behind = _fleet(_node("a"), unjudged=feeder.UNJUDGED_MAX)
    assert feeder.foresee(behind) == plans.Order(obstacle="judges")
    assert feeder.foresee(_fleet()) == plans.Order(obstacle="nodes")
