"""What the feeder chooses, and when it holds back."""

import asyncio
from collections import Counter

import msgspec
import pytest

from core import errors, plans
from orchestrator import feeder
from orchestrator.feeder import Feeder, Fleet, Order, Standing
from tests.build import World


def _node(node_id: str, **more: object) -> Standing:
    values: dict[str, object] = {
        "node_id": node_id,
        "name": node_id,
        "own_workload": True,
        "open_tasks": 0,
        "rounds": 0,
        "promotions": 0,
        "champion": False,
        "below_baseline": False,
    }
    return Standing(**{**values, **more})  # type: ignore[arg-type]


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
    orders = feeder.plan(fleet, min_queue=24, burst=24, turn=0, given_seconds=10.0)
    counts = Counter(order.node_id for order in orders)
    assert orders[0].node_id == "b"
    # Twelve times as dear: about a twelfth as often as each of the others.
    assert counts["a"] == 1
    assert abs(counts["b"] - counts["c"]) <= 1


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
    fleet = _fleet(_node("good", champion=True, rounds=4, promotions=2), _node("new"))
    assert feeder.plan(fleet, min_queue=1, burst=1, turn=0)[0].node_id == "new"


def test_a_node_worse_than_its_baseline_comes_before_one_that_is_better() -> None:
    better = _node("better", champion=True, rounds=1, promotions=1)
    worse = _node("worse", champion=True, below_baseline=True, rounds=1, promotions=1)
    fleet = _fleet(better, worse)
    assert feeder.plan(fleet, min_queue=1, burst=1, turn=0)[0].node_id == "worse"


def test_every_fourth_choice_explores_the_node_tried_least() -> None:
    hopeless = _node("hopeless", own_workload=False, champion=True, rounds=0)
    fleet = _fleet(_node("best", rounds=9, promotions=9), hopeless)
    chosen = [order.node_id for order in feeder.plan(fleet, min_queue=4, burst=4, turn=0)]
    assert chosen[3] == "hopeless"


def test_a_long_plan_chooses_as_weighing_all_nodes_anew_each_time_would() -> None:
    nodes = [
        _node(
            f"n{n:02}",
            own_workload=n % 3 > 0,
            open_tasks=n % 5,
            rounds=n % 7,
            champion=n % 2 > 0,
            promotions=n % 2,
        )
        for n in range(30)
    ]
    orders = feeder.plan(_fleet(*nodes), min_queue=90, burst=90, turn=1)
    standing = {node.node_id: node for node in nodes}
    for number, order in enumerate(orders, 1):
        if number % feeder.EXPLORE_EVERY == feeder.EXPLORE_EVERY - 1:
            best = min(
                standing.values(), key=lambda one: (one.rounds + one.open_tasks, one.node_id)
            )
        else:
            best = min(standing.values(), key=lambda one: (-feeder.expected_gain(one), one.node_id))
        assert order.node_id == best.node_id
        standing[best.node_id] = msgspec.structs.replace(best, open_tasks=best.open_tasks + 1)


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


def test_nothing_is_foreseen_while_the_judges_are_behind_or_no_node_can_be_trained() -> None:
    behind = _fleet(_node("a"), unjudged=feeder.UNJUDGED_MAX)
    assert feeder.foresee(behind) == plans.Order(obstacle="judges")
    assert feeder.foresee(_fleet()) == plans.Order(obstacle="nodes")
