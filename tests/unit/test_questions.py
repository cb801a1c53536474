"""What waits for a person: open until the node's champion is another one, best first."""

import pytest

from core import commands, events, snapshots
from core.log import Record
from core.projections.questions import QUESTIONS_MAX
from core.projections.state import State
from core.values import Budget, Recommendation
from tests import states
from tests.build import World
from tests.unit.test_decide_rounds import brought, claimed, deposited, judged, verdict
from tests.unit.test_decide_verdicts import NODE, WHY, for_budget


def reigned() -> World:
    """A node at which t1's evolver reigns."""
    world = deposited(16)
    brought(world, claimed(world), "evolver", "reinventor")
    world.do(verdict(judged(world)))
    return world


def asks(world: World, task: str, ratio: float | None = 0.5) -> None:
    """A round that leaves the task's evolver to a person."""
    name = f"{task}-evolver"
    advice = Recommendation(action="ask", candidate_id=name, reasons=WHY)
    decides(world, task, "trade-off", ratio, advice)


def decides(
    world: World,
    task: str,
    word: str,
    ratio: float | None = None,
    advice: Recommendation | None = None,
) -> None:
    brought(world, claimed(world, task), "evolver", "reinventor")
    row = judged(world)
    whole = verdict(row)
    told = [events.replace(one, ratio=ratio) for one in whole.candidates]
    king = world.state.graph.champions.rows[NODE].candidate_id
    changes = {
        "candidates": told,
        "verdict": word,
        "against": king,
        "champion_error": 0.5,
        "recommendation": advice,
    }
    budgets = tuple(
        for_budget(one.budget, against=one.champion.candidate_id if one.champion else "")
        for one in row.budgets
    )
    promoted = f"{task}-evolver" if word == "promote" else ""
    world.do(verdict(row, **changes, budgets=budgets, promoted=promoted))


def waiting(world: World) -> list[str]:
    return [one.candidate_id for one in world.state.questions.of(NODE)]


def chosen(world: World, name: str, budget: str = "") -> None:
    king = world.state.graph.champions.rows[NODE]
    world.do(
        commands.ChooseChampion(
            node_id=NODE,
            kind="promote",
            champion=events.replace(king, candidate_id=name),
            instead_of="" if budget else king.candidate_id,
            budget=budget,
        )
    )


def test_a_question_outlives_rounds_that_keep_the_champion_and_the_best_comes_first() -> None:
    world = reigned()
    assert waiting(world) == []
    asks(world, "t2", 0.6)
    decides(world, "t3", "keep")
    asks(world, "t4", 0.8)
    asks(world, "t5", 0.4)
    asks(world, "t6", None)
    assert waiting(world) == ["t5-evolver", "t2-evolver", "t4-evolver", "t6-evolver"]
    best = world.state.questions.of(NODE)[0]
    assert (best.ratio, best.reasons, best.champion_error) == (0.4, WHY, 0.5)
    assert best.asked_at > 0


def test_of_many_questions_the_best_are_kept() -> None:
    world = reigned()
    for number in range(QUESTIONS_MAX + 1):
        asks(world, f"t{number + 2}", 0.9 - number / 100)
    assert waiting(world) == [f"t{number + 2}-evolver" for number in range(QUESTIONS_MAX, 0, -1)]


@pytest.mark.parametrize("how", ["person", "judge", "workload"])
def test_a_question_is_settled_once_the_champion_is_another_one(how: str) -> None:
    world = reigned()
    asks(world, "t2")
    asks(world, "t3")
    if how == "person":
        chosen(world, "t3-evolver")
    elif how == "judge":
        decides(world, "t4", "promote")
    else:
        king = world.state.graph.champions.rows[NODE]
        retired = events.ChampionRetired(
            node_id=NODE, candidate_id=king.candidate_id, reason="it trains something else"
        )
        world.state.fold(world.state.seq + 1, world.state.at, retired)
    assert waiting(world) == []
    assert len(world.state.questions.table) == 0


def test_a_choice_for_a_budget_leaves_what_is_asked_of_the_node_open() -> None:
    world = reigned()
    world.do(commands.SetGates(node_id=NODE, budgets=(Budget(name="small", bytes_max=10_000),)))
    asks(world, "t2")
    chosen(world, "t9", "small")
    assert waiting(world) == ["t2-evolver"]
    world.do(commands.SetGates(node_id=NODE, dropped=("small",)))
    assert waiting(world) == ["t2-evolver"]


def test_questions_are_part_of_the_state_hash() -> None:
    world = reigned()
    before, other = world.state.hash(), State()
    for event in world.stored:
        other.evolve(event)
    assert other.hash() == before
    asks(world, "t2")
    with_it = world.state.hash()
    world.state.questions.settled(NODE)
    assert world.state.hash() != with_it


def test_questions_are_part_of_a_snapshot() -> None:
    world = reigned()
    asks(world, "t2")
    copied = snapshots.copy(world.state)
    pieces = list(snapshots.dump(copied))
    last = world.stored[-1]
    record = Record(last.seq, events.subject_of(last.data), events.encode(last))
    head = snapshots.head_of(copied, record, [piece.part for piece in pieces])
    loaded = states.loaded(head, [piece.data for piece in pieces])
    assert loaded.questions.of(NODE) == world.state.questions.of(NODE) != ()
    assert loaded.hash() == world.state.hash()
