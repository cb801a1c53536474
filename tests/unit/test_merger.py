"""Which merges are ordered, and when."""

from typing import Any

import pytest

from core import commands, errors, events
from core.events import Workload
from orchestrator import feeder, merger
from orchestrator.feeder import Feeder, Fleet
from tests.build import World
from tests.unit.test_decide_merges import (
    NODE,
    SECRETS,
    candidate,
    complete,
    digest,
    undecided,
    world,
)

REASONS = events.Reasons(ar="س", en="w")


def judged(made: World, found: dict[str, float], promoted: str = "", champion: float = 0.0) -> None:
    """The open round, decided; its candidates err so."""
    row = undecided(made)
    made.do(commands.StartJudging(round_id=row.round_id, judge="j"))
    reigning = undecided(made).champion
    made.do(
        commands.DecideRound(
            round_id=row.round_id,
            judge="j",
            verdict="promote" if promoted else "keep",
            secret=SECRETS[row.index].hex(),
            reasons=REASONS,
            candidates=[
                events.CandidateVerdict(
                    candidate_id=name, verdict="v", reasons=REASONS, error=error
                )
                for name, error in found.items()
            ],
            promoted=promoted,
            against=reigning.candidate_id if reigning else "",
            champion_error=champion if reigning else None,
            baseline_error=0.5,
        )
    )


def after_a_round(evolver: float = 0.2, reinventor: float = 0.3, promoted: str = "e") -> World:
    made = world()
    made.task("t1", NODE)
    complete(made, made.claim(), candidate("evolver", "e"), candidate("reinventor", "r"))
    judged(made, {"e": evolver, "r": reinventor}, promoted)
    return made


def ordered(made: World, order: merger.Order) -> None:
    made.task(
        f"m{order.key[:8]}",
        order.node_id,
        role="merge",
        parents=order.parents,
        idempotency_key=order.key,
    )


def weights(*names: str) -> list[str]:
    return [digest(name) for name in names]


def test_after_a_round_its_models_are_merged_the_best_first() -> None:
    made = after_a_round(0.3, 0.2, "e")
    (order,) = merger.survey(made.state)
    assert (order.node_id, order.parents) == (NODE, weights("r", "e"))
    assert order.spread == pytest.approx(1.5)


def test_models_that_err_more_than_twice_as_much_are_not_merged() -> None:
    assert merger.survey(after_a_round(0.1, 0.2001).state) == []
    assert len(merger.survey(after_a_round(0.1, 0.2).state)) == 1


def test_where_errors_are_nothing_models_err_alike() -> None:
    assert len(merger.survey(after_a_round(0.0, 5e-7).state)) == 1


def test_the_champion_is_merged_with_what_lost_to_it() -> None:
    made = after_a_round(0.2, 0.9)
    made.task("t2", NODE, role="evolver")
    complete(made, made.claim(), candidate("evolver", "e2"))
    judged(made, {"e2": 0.25}, champion=0.21)
    (order,) = merger.survey(made.state)
    assert order.parents == weights("e", "e2")


def test_a_set_of_models_is_merged_once_whatever_became_of_it() -> None:
    made = after_a_round()
    (order,) = merger.survey(made.state)
    ordered(made, order)
    assert merger.survey(made.state) == []
    made.do(commands.CancelTask(task_id=f"m{order.key[:8]}"))
    assert merger.survey(made.state) == []


def test_a_node_has_one_open_merge_queued_or_running() -> None:
    made = after_a_round()
    made.task("m", NODE, role="merge")
    assert merger.survey(made.state) == []
    assert made.claim() is not None
    assert merger.survey(made.state) == []
    made.do(commands.CancelTask(task_id="m"))
    assert len(merger.survey(made.state)) == 1


def test_a_merge_that_waits_takes_no_place_of_training() -> None:
    made = after_a_round()
    made.http_worker("h1")
    made.task("m", NODE, role="merge")
    assert feeder.survey(made.state, made.now).queued == 0
    made.task("t", NODE)
    assert feeder.survey(made.state, made.now).queued == 1


def test_what_a_merge_alone_brought_is_not_merged_again() -> None:
    made = after_a_round()
    (order,) = merger.survey(made.state)
    ordered(made, order)
    complete(made, made.claim(), candidate("merge", "soup"), candidate("merge", "student"))
    judged(made, {"soup": 0.15, "student": 0.16}, "soup", champion=0.2)
    assert merger.survey(made.state) == []


def test_a_node_that_trains_something_else_by_now_merges_nothing() -> None:
    made = after_a_round()
    other = events.WorkloadChanged(node_id=NODE, workload=Workload(specialist="opt-convex"))
    made.state.graph.workload_changed(1, 1, other)
    assert merger.survey(made.state) == []


def test_where_no_agent_is_given_work_nothing_is_merged_since_it_would_wait() -> None:
    made = after_a_round()
    made.do(commands.PauseWorker(worker_id="a1", how="pause"))
    assert merger.survey(made.state) == []
    made.http_worker("h1")
    assert merger.survey(made.state) == []
    made.agent("a2")
    assert len(merger.survey(made.state)) == 1


def test_no_more_models_are_merged_than_a_merge_takes() -> None:
    models = {f"w{number}": 0.1 + number / 100 for number in range(6)}
    order = merger.order_of(NODE, "name", models, 0.0)
    assert order is not None
    assert order.parents == ["w0", "w1", "w2", "w3"]


def test_what_is_ordered_can_be_queued_as_it_stands() -> None:
    made = after_a_round()
    (order,) = merger.survey(made.state)
    ordered(made, order)
    task = made.state.tasks.table.rows[f"m{order.key[:8]}"]
    assert [one.candidate_id for one in task.parents] == ["e", "r"]  # type: ignore[union-attr]


class Desk:
    """A target that keeps what it was asked for."""

    def __init__(self, *orders: merger.Order) -> None:
        self.orders = list(orders)
        self.merged: list[tuple[str, float | None, int]] = []
        self.looks = 0
        self.fault: errors.AghsanError | None = None

    async def merges(self) -> list[merger.Order]:
        self.looks += 1
        return self.orders

    async def merge(self, order: merger.Order, budget_seconds: float | None, priority: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.merged.append((order.node_id, budget_seconds, priority))

    async def survey(self) -> Fleet:
        return Fleet(queued=9, workers_online=1, unjudged=0, nodes=[])

    async def enqueue(self, order: object, priority: int, key: str) -> None:
        raise AssertionError("the queue is long enough")


def an_order(node_id: str, spread: float, **more: Any) -> merger.Order:
    return merger.Order(
        node_id=node_id, topic="t", parents=["a", "b"], spread=spread, key=node_id, **more
    )


async def test_a_merge_comes_after_two_tasks_of_training_and_of_those_that_err_most_alike() -> None:
    desk = Desk(an_order("far", 1.9), an_order("near", 1.1))
    one = merger.Merger(desk, priority=3)
    told = [await one.after(count) for count in (1, 1, 1, 1, 0, 5)]
    assert told == [False, True, False, True, False, True]
    assert desk.merged == [("near", None, 3)] * 3


async def test_while_no_training_is_ordered_nothing_is_looked_for() -> None:
    desk = Desk(an_order("n", 1.0))
    one = merger.Merger(desk, priority=3)
    assert not any([await one.after(0) for _ in range(5)])
    assert desk.looks == 0


async def test_a_merge_gets_what_its_node_needs_where_agents_give_less() -> None:
    for given, budget in ((59.0, 60.0), (60.0, None)):
        desk = Desk(an_order("n", 1.0, budget_seconds_min=60.0))
        assert await merger.Merger(desk, 3, given).after(2)
        assert desk.merged[0][1] == budget


async def test_a_merge_whose_models_are_gone_is_left_and_another_look_is_taken_next_time() -> None:
    desk = Desk(an_order("n", 1.0))
    one = merger.Merger(desk, priority=3)
    desk.fault = errors.NotFound("no such model")
    assert not await one.after(2)
    desk.fault = None
    assert await one.after(1)


async def test_a_feeder_that_orders_nothing_orders_no_merge() -> None:
    desk = Desk(an_order("n", 1.0))
    merges = merger.Merger(desk, priority=3)
    feeding = Feeder(
        desk, min_queue=1, burst=1, sleep_seconds=0.0, priority=3, say=print, merges=merges
    )
    assert await feeding.feed() == 0
    assert desk.merged == []
