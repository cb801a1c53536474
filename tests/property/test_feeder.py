"""Whatever the ledger says, the feeder leaves out no node and no role for longer than it states."""

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from core.events import Rival
from core.projections.rivalry import Account, Ordered
from core.projections.rounds import RIVALS
from orchestrator import feeder
from orchestrator.feeder import Fleet, Order, Standing

GIVEN_SECONDS = 20.0


def accounts(rival: Rival) -> st.SearchStrategy[Account]:
    rounds = st.integers(0, 60)
    return rounds.flatmap(
        lambda count: st.builds(
            Account,
            node_id=st.just("n"),
            rival=st.just(rival),
            rounds=st.just(count),
            held_us=st.integers(0, 600_000_000).map(lambda us: count * us),
            recent_rounds=st.just(float(min(count, 29))),
            recent_won=st.floats(0, min(count, 29)),
            recent_replaced=st.floats(0, min(count, 29)),
            recent_gain=st.floats(0, 40),
            priced_us=st.integers(0, 10**9),
            cost_micro=st.integers(0, 10**9),
        )
    )


def standings(number: int) -> st.SearchStrategy[Standing]:
    return st.builds(
        Standing,
        node_id=st.just(f"n{number}"),
        name=st.just("name"),
        own_workload=st.booleans(),
        open_tasks=st.integers(0, 30),
        champion=st.booleans(),
        below_baseline=st.booleans(),
        evolver=accounts("evolver"),
        reinventor=accounts("reinventor"),
        ordered=st.just(Ordered(node_id=f"n{number}")),
        budget_seconds_min=st.sampled_from([0.0, 0.0, 30.0, 60.0]),
    )


trees = st.integers(1, 5).flatmap(
    lambda count: st.tuples(*(standings(number) for number in range(count)))
)


def follow(nodes: tuple[Standing, ...], count: int, burst: int) -> list[Order]:
    """Orders where nothing is ever trained, so that the ledger stays as it is."""
    standing = {node.node_id: node for node in nodes}
    orders: list[Order] = []
    while len(orders) < count:
        fleet = Fleet(
            queued=0,
            workers_online=1,
            unjudged=0,
            nodes=list(standing.values()),
            tasks=len(orders),
        )
        planned = feeder.plan(
            fleet,
            min_queue=burst,
            burst=burst,
            turn=len(orders),
            given_seconds=GIVEN_SECONDS,
        )
        for order in planned:
            orders.append(order)
            one = standing[order.node_id]
            turns = one.ordered.with_one(order.role, len(orders))
            # Open tasks end at once: nobody is spared for having much to do.
            standing[order.node_id] = msgspec.structs.replace(one, ordered=turns)
    return orders


def cost(node: Standing, nodes: tuple[Standing, ...]) -> float:
    by = feeder.terms(nodes, GIVEN_SECONDS)
    seconds = sum(feeder.expected_cost(node, rival, by) for rival in RIVALS)
    return min(max(seconds / by.usual_seconds, 1.0), feeder.COST_MOST)


@settings(max_examples=40, deadline=None)
@given(trees, st.integers(1, 7))
def test_every_node_is_tried_within_the_stated_number_of_orders(
    nodes: tuple[Standing, ...], burst: int
) -> None:
    costs = {node.node_id: cost(node, nodes) for node in nodes}
    every = feeder.EXPLORE_EVERY * len(nodes)
    orders = follow(nodes, round(every * 3 * (2 + max(costs.values()))), burst)
    for node_id, dear in costs.items():
        within = every * (2 + dear)
        tried = [number for number, order in enumerate(orders, 1) if order.node_id == node_id]
        gaps = [after - before for before, after in itertools.pairwise([0, *tried, len(orders)])]
        assert max(gaps) <= within


@settings(max_examples=40, deadline=None)
@given(trees, st.integers(1, 7))
def test_every_role_of_a_node_is_among_any_15_of_its_orders(
    nodes: tuple[Standing, ...], burst: int
) -> None:
    by_node: dict[str, list[str]] = {}
    for order in follow(nodes, 150, burst):
        by_node.setdefault(order.node_id, []).append(order.role)
    for roles in by_node.values():
        for first in range(len(roles) - 14):
            assert set(roles[first : first + 15]) == set(feeder.ROLES)


@settings(max_examples=40, deadline=None)
@given(trees)
def test_the_same_ledger_is_answered_the_same(nodes: tuple[Standing, ...]) -> None:
    turned = tuple(reversed(nodes))
    assert follow(nodes, 40, 3) == follow(turned, 40, 3)
