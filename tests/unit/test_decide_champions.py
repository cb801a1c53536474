"""What people decide about champions: gates, budgets, promotions and rollbacks."""

from typing import Any

import pytest

from core import commands, errors, events, gates, lineage
from core.events import Champion
from core.projections.graph import of_budget
from core.projections.state import State
from core.values import Budget, Gates
from tests.build import World
from tests.unit.test_decide_graph import grow
from tests.unit.test_decide_rounds import brought, claimed, deposited, judged, verdict

NODE = "stats-bayesian"
SMALL = Budget(name="صغير", bytes_max=1_000)
FAST = Budget(name="fast", latency_max=2.0)


def set_gates(world: World, node_id: str = NODE, **more: Any) -> list[events.EventData]:
    return world.do(commands.SetGates(node_id=node_id, **more))


def test_every_number_of_the_gates_may_be_set_within_its_range_and_the_defaults_lie_there() -> None:
    plain = Gates()
    gates.require_sound(plain)
    assert {*gates.SETTINGS, "budgets"} == set(Gates.__struct_fields__)
    for name, setting in gates.SETTINGS.items():
        for value in (setting.least, setting.most):
            assert getattr(gates.changed(plain, {name: value}), name) == value
        for value in (setting.least - 1e-6, setting.most + 1e-6, float("nan"), float("inf")):
            with pytest.raises(errors.Invalid, match=f"{name} is from"):
                gates.changed(plain, {name: value})


def test_a_name_that_there_is_not_is_told_which_was_probably_meant() -> None:
    world = World().seeded()
    with pytest.raises(errors.Invalid, match="did you mean latency_ratio"):
        set_gates(world, settings={"latency_ration": 1.0})
    with pytest.raises(errors.NotFound, match="none is stated here"):
        set_gates(world, dropped=("fast",))
    set_gates(world, budgets=(FAST,))
    with pytest.raises(errors.NotFound, match="did you mean fast"):
        set_gates(world, dropped=("fats",))
    with pytest.raises(errors.NotFound, match="there is no node nowhere"):
        set_gates(world, "nowhere", settings={"margin": 1.0})


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ([Budget(name=f"b{n}", bytes_max=1) for n in range(5)], "at most 4 budgets, not 5"),
        ([Budget(name="", bytes_max=1)], "1 to 32 characters"),
        ([Budget(name="x" * 33, bytes_max=1)], "1 to 32 characters"),
        ([Budget(name=" x", bytes_max=1)], "without blanks"),
        ([Budget(name="a\nb", bytes_max=1)], "can be shown"),
        ([Budget(name="x")], "bounds nothing"),
        ([Budget(name="x", latency_max=0.0)], "above 0"),
        ([Budget(name="x", latency_max=float("nan"))], "above 0"),
        ([Budget(name="x", bytes_max=0)], "are 1 to"),
        ([FAST, Budget(name="fast", bytes_max=1)], "given twice"),
    ],
)
def test_a_budget_that_is_none_is_refused_in_words(budgets: list[Budget], words: str) -> None:
    with pytest.raises(errors.Invalid, match=words):
        gates.changed(Gates(), {}, budgets)


def test_gates_hold_for_a_node_and_all_below_it_that_have_none_of_their_own() -> None:
    world = World().seeded()
    grow(world, "child", NODE)
    (changed,) = set_gates(world, settings={"margin": 1.05}, budgets=(SMALL,))
    assert changed == events.GatesChanged(node_id=NODE, gates=Gates(margin=1.05, budgets=(SMALL,)))
    graph = world.state.graph
    assert graph.gates_of("child") == (Gates(margin=1.05, budgets=(SMALL,)), True)
    set_gates(world, "child", settings={"exchange": 0.0})
    assert graph.gates_of("child") == (Gates(margin=1.05, exchange=0.0, budgets=(SMALL,)), False)
    set_gates(world, settings={"margin": 1.1})
    assert graph.gates("child").margin == 1.05
    assert set_gates(world, "child", reset=True) == [events.GatesChanged(node_id="child")]
    assert graph.gates_of("child") == (Gates(margin=1.1, budgets=(SMALL,)), True)


def test_what_changes_no_gate_is_no_event() -> None:
    world = World().seeded()
    assert set_gates(world) == set_gates(world, reset=True) == []
    assert set_gates(world, settings={"margin": Gates().margin}) == []
    set_gates(world, settings={"margin": 1.1}, budgets=(FAST,))
    assert set_gates(world, settings={"margin": 1.1}, budgets=(FAST,)) == []


def rounds_of(world: World, task_id: str) -> str:
    """Let a task's two candidates be measured and none promoted; the id of their round."""
    brought(world, claimed(world, task_id), "evolver", "reinventor")
    row = judged(world)
    against = row.champion.candidate_id if row.champion else ""
    world.do(verdict(row, verdict="keep", promoted="", against=against))
    return row.round_id


def measured(world: World, candidate_id: str, round_id: str, **more: Any) -> Champion:
    fields: dict[str, Any] = {
        "node_id": NODE,
        "candidate_id": candidate_id,
        "round_id": round_id,
        "task_id": candidate_id.partition("-")[0],
        "worker_id": "a1",
        "rival": candidate_id.partition("-")[2],
        "manifest": "a" * 64,
        "writer": "a1",
        "weights_sha256": "b" * 64,
        "workload": world.state.graph.workload(NODE)[0],
        "error": 0.25,
        "baseline_error": 0.5,
        "evidence_rate": 0.0,
        "below_baseline": False,
        "params": 0,
        "bytes": 10,
    }
    return Champion(**{**fields, **more})


def choose(world: World, champion: Champion, **more: Any) -> list[events.EventData]:
    reigning = world.state.graph.reigning(NODE, more.get("budget", ""))
    fields: dict[str, Any] = {
        "node_id": NODE,
        "kind": "promote",
        "champion": champion,
        "instead_of": reigning.candidate_id if reigning else "",
    }
    return world.do(commands.ChooseChampion(**{**fields, **more}))


def two_measured() -> tuple[World, Champion, Champion]:
    world = deposited()
    first, second = rounds_of(world, "t1"), rounds_of(world, "t2")
    return world, measured(world, "t1-evolver", first), measured(world, "t2-reinventor", second)


def test_a_person_lets_a_measured_candidate_reign_and_saying_so_again_changes_nothing() -> None:
    world, one, other = two_measured()
    (chosen,) = choose(world, one, reason="it reads better")
    assert chosen == events.ChampionChosen(
        node_id=NODE, kind="promote", champion=one, reason="it reads better"
    )
    assert choose(world, one) == []
    (chosen,) = choose(world, other)
    assert isinstance(chosen, events.ChampionChosen)
    assert chosen.instead_of == "t1-evolver"
    assert world.state.graph.champions.rows[NODE] == other


def test_a_choice_made_while_another_came_to_reign_is_refused() -> None:
    world, one, other = two_measured()
    choose(world, one)
    with pytest.raises(
        errors.Conflict, match="t1-evolver reigns over stats-bayesian now, and nobody did"
    ):
        choose(world, other, instead_of="")


def test_only_a_model_of_a_decided_round_of_the_node_for_its_work_of_now_may_be_chosen() -> None:
    world, one, _ = two_measured()
    for wrong in (
        events.replace(one, node_id="opt-convex"),
        events.replace(one, round_id="round-nowhere"),
    ):
        with pytest.raises(errors.Invalid, match="was not judged in a round of"):
            choose(world, wrong)
    claimed(world, "t3")
    still_open = world.state.rounds.node(NODE).open_round
    with pytest.raises(errors.Invalid, match="was not judged"):
        choose(world, events.replace(one, round_id=still_open))
    digits = events.Workload(specialist="root-math")
    with pytest.raises(errors.Conflict, match="was trained for"):
        choose(world, events.replace(one, workload=digits))
    with pytest.raises(errors.NotFound):
        world.do(commands.ChooseChampion(node_id="nowhere", kind="promote", champion=one))
    with pytest.raises(errors.Invalid, match="1000 characters"):
        choose(world, one, reason="x" * 1001)


def test_a_verdict_against_a_champion_that_a_person_replaced_is_judged_again() -> None:
    world, one, other = two_measured()
    choose(world, one)
    brought(world, claimed(world, "t3"), "evolver", "reinventor")
    row = judged(world)
    assert row.champion is not None
    choose(world, other)
    with pytest.raises(errors.Conflict, match="judge it again"):
        world.do(verdict(row, against="t1-evolver"))
    again = judged(world)
    assert again.champion is not None
    assert (again.champion.candidate_id, again.look) == ("t2-reinventor", 1)
    world.do(verdict(again, against="t2-reinventor"))


def test_a_budget_has_a_champion_of_its_own_that_keeps_its_bytes() -> None:
    world, one, other = two_measured()
    with pytest.raises(errors.NotFound, match="none is stated"):
        choose(world, one, budget=SMALL.name)
    set_gates(world, budgets=(SMALL, FAST))
    with pytest.raises(errors.Conflict, match="takes 2000 bytes"):
        choose(world, events.replace(one, bytes=2_000), budget=SMALL.name)
    choose(world, one)
    choose(world, other, budget=SMALL.name)
    graph = world.state.graph
    assert (graph.reigning(NODE), graph.reigning(NODE, SMALL.name)) == (one, other)


def reigning_for_budgets() -> World:
    world, one, other = two_measured()
    set_gates(world, budgets=(SMALL, FAST))
    choose(world, one)
    choose(world, one, budget=SMALL.name)
    choose(world, other, budget=FAST.name)
    return world


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        ({"dropped": (SMALL.name,)}, {SMALL.name: "stated no longer"}),
        ({"reset": True}, {SMALL.name: "stated no longer", FAST.name: "stated no longer"}),
        ({"budgets": (Budget(name=SMALL.name, bytes_max=9),)}, {SMALL.name: "takes 10 bytes"}),
        ({"budgets": (Budget(name=FAST.name, latency_max=1.5),)}, {FAST.name: "less latency"}),
        ({"budgets": (Budget(name=FAST.name, latency_max=2.5),)}, {}),
        ({"budgets": (Budget(name=SMALL.name, bytes_max=10),)}, {}),
        ({"settings": {"margin": 1.1}}, {}),
    ],
)
def test_a_budgets_champion_ends_where_it_is_stated_no_longer_or_may_not_be_kept(
    change: dict[str, Any], ended: dict[str, str]
) -> None:
    world = reigning_for_budgets()
    _, *retired = set_gates(world, **change)
    told = {one.budget: one.reason for one in retired if isinstance(one, events.ChampionRetired)}
    assert told.keys() == ended.keys()
    for budget, words in ended.items():
        assert words in told[budget]
        assert of_budget(NODE, budget) not in world.state.graph.of_budgets
    assert NODE in world.state.graph.champions


def test_a_node_that_trains_something_else_ends_every_reign_over_it_and_forgets_its_best() -> None:
    world = reigning_for_budgets()
    assert NODE in world.state.graph.best
    node = world.state.graph.nodes.rows[NODE]
    other = events.Workload(specialist="root-math")
    world.state.graph.nodes.put(NODE, events.replace(node, workload=other))
    retired = world.do(commands.SeedTree())
    budgets = {one.budget for one in retired if isinstance(one, events.ChampionRetired)}
    assert budgets == {"", SMALL.name, FAST.name}
    graph = world.state.graph
    assert [len(graph.champions), len(graph.of_budgets), len(graph.best)] == [0, 0, 0]


def test_only_who_reigns_for_a_budget_can_retire_from_it() -> None:
    world = reigning_for_budgets()
    wrong = events.ChampionRetired(node_id=NODE, candidate_id="another", budget=FAST.name)
    with pytest.raises(errors.UnfitEvent, match="another does not reign"):
        world.state.graph.retired(1, 1, wrong)


def test_whom_a_person_puts_in_the_place_of_the_best_ever_is_the_best_from_then_on() -> None:
    world, one, other = two_measured()
    choose(world, one)
    cheaper = events.ChampionPromoted(
        node_id=NODE, champion=other, instead_of="t1-evolver", is_best=False
    )
    world.state.graph.promoted(1, 1, cheaper)
    assert world.state.graph.best.rows[NODE] == one
    third = events.replace(other, candidate_id="t3-evolver")
    choose(world, third)
    assert world.state.graph.best.rows[NODE] == one
    choose(world, one, kind="rollback")
    choose(world, other)
    assert world.state.graph.best.rows[NODE] == other


def told(world: World, budget: str = "") -> list[lineage.Reign]:
    return lineage.reigns(world.stored, budget)


def test_a_rollback_leads_to_the_champion_before_and_from_there_further_back() -> None:
    world, one, other = two_measured()
    third = events.replace(other, candidate_id="t2-evolver", rival="evolver")
    for champion in (one, other, third):
        choose(world, champion)
    back = lineage.before(told(world))
    assert back == other
    choose(world, other, kind="rollback")
    assert lineage.before(told(world)) == one
    choose(world, one, kind="rollback", reason="both are worse")
    assert lineage.before(told(world)) is None
    last = told(world)[-1]
    assert (last.by, last.kind, last.because) == ("person", "rollback", "both are worse")
    assert lineage.former(told(world), "t2-evolver") == third
    assert lineage.former(told(world), "nobody") is None


def test_a_budgets_reigns_are_told_apart_from_those_of_its_node() -> None:
    world = reigning_for_budgets()
    set_gates(world, dropped=(FAST.name,))
    assert [one.champion.candidate_id for one in told(world)] == ["t1-evolver"]
    (ended,) = told(world, FAST.name)
    assert (ended.champion.candidate_id, lineage.reigning([ended])) == ("t2-reinventor", None)
    assert "stated no longer" in ended.reason
    assert lineage.before([ended]) is None


def test_choices_and_gates_fold_again_to_the_same_state() -> None:
    world = reigning_for_budgets()
    set_gates(world, dropped=(FAST.name,))
    replayed = State()
    for event in world.stored:
        replayed.evolve(event)
    assert replayed.hash() == world.state.hash()
    assert len(replayed.quarantine) == 0
