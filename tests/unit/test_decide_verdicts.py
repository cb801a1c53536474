"""What a verdict may say: of its round, of what was weighed, and of what is so now."""

from typing import Any

import pytest

from core import audit, commands, errors, events
from core.decide import verdicts
from core.events import Champion
from core.log import Record
from core.projections.graph import of_budget
from core.projections.rounds import Round
from core.projections.state import State
from core.values import Budget, BudgetVerdict, Latency, Recommendation, Weighed
from tests.build import World
from tests.unit.test_decide_rounds import (
    brought,
    claimed,
    deposited,
    judged,
    only,
    secret,
    verdict,
    void,
)

NODE = "stats-bayesian"
SMALL, FAST = Budget(name="small", bytes_max=1_000), Budget(name="fast", latency_max=2.0)
WHY = events.Reasons(ar="سبب", en="reason")


TIMED = Latency(
    ratio=1.9, lower=1.8, upper=2.0, p50_ms=0.1, p95_ms=0.2, reference_ms=0.05, spread=0.1
)


def weighed(*names: str, **more: Any) -> tuple[Weighed, ...]:
    fields = {"error": 0.3, "evidence_rate": 0.5, "params": 7, "bytes": 900, "latency": TIMED}
    return tuple(Weighed(candidate_id=name, **{**fields, **more}) for name in names)


def for_budget(name: str, **more: Any) -> BudgetVerdict:
    return BudgetVerdict(**{"budget": name, "reasons": WHY, "error": 0.4, **more})


def with_budgets(*budgets: Budget) -> tuple[World, Round]:
    """A round of t1's two candidates, under judgement."""
    world = deposited(4)
    world.do(commands.SetGates(node_id=NODE, budgets=budgets or (SMALL, FAST)))
    brought(world, claimed(world), "evolver", "reinventor")
    return world, judged(world)


def reigning(world: World, budget: str = "") -> Champion | None:
    graph = world.state.graph
    return graph.of_budgets.get(of_budget(NODE, budget)) if budget else graph.champions.get(NODE)


def test_a_verdict_promotes_for_the_node_and_for_each_budget() -> None:
    world, row = with_budgets()
    happened = world.do(
        verdict(
            row,
            weighed=weighed("t1-evolver", "t1-reinventor"),
            budgets=(for_budget("small", promoted="t1-reinventor"), for_budget("fast")),
        )
    )
    names = [type(data).__name__ for data in happened]
    assert names == ["RoundDecided", "ChampionPromoted", "ChampionPromoted"]
    first, second = (one for one in happened if isinstance(one, events.ChampionPromoted))
    assert (first.champion.candidate_id, first.budget, first.is_best) == ("t1-evolver", "", True)
    assert (second.champion.candidate_id, second.budget) == ("t1-reinventor", "small")
    champion = second.champion
    assert (champion.error, champion.evidence_rate, champion.params) == (0.4, 0.5, 7)
    assert champion.below_baseline is False
    assert reigning(world, "small") == champion
    assert reigning(world, "fast") is None


def test_the_nodes_champion_may_become_that_of_a_budget() -> None:
    world, row = with_budgets(SMALL)
    world.do(verdict(row))
    brought(world, claimed(world, "t2"), "evolver", "reinventor")
    king = reigning(world)
    assert king is not None
    row = judged(world)
    world.do(
        verdict(
            row,
            verdict="keep",
            promoted="",
            against=king.candidate_id,
            weighed=weighed(king.candidate_id, "t2-evolver", "t2-reinventor"),
            budgets=(for_budget("small", promoted=king.candidate_id),),
        )
    )
    assert reigning(world, "small") == king


def test_several_promotions_right_behind_a_verdict_break_no_rule() -> None:
    world, row = with_budgets()
    names = ("t1-evolver", "t1-reinventor")
    budgets = (for_budget("small", promoted=names[1]), for_budget("fast", promoted=names[0]))
    world.do(verdict(row, weighed=weighed(*names), budgets=budgets))
    told = [
        Record(one.seq, events.subject_of(one.data), events.encode(one)) for one in world.stored
    ]
    broken = {one.rule for one in audit.check(told)}
    assert broken.isdisjoint({"promotion", "base", "rounds"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "maybe", "promoted": ""}, "trade-off, undecided or void"),
        ({"verdict": "trade-off"}, "naming whom"),
        ({"recommendation": Recommendation(action="ask", reasons=WHY)}, "is recommended"),
        (
            {
                "verdict": "trade-off",
                "promoted": "",
                "recommendation": Recommendation(
                    action="ask", candidate_id="stranger", reasons=WHY
                ),
            },
            "can be recommended",
        ),
        (
            {
                "recommendation": Recommendation(
                    action="promote", candidate_id="t1-reinventor", reasons=WHY
                )
            },
            "and nobody else",
        ),
        *(
            (
                {
                    "weighed": weighed("t1-evolver", **costs),
                    "budgets": (
                        for_budget("small", promoted="t1-evolver"),
                        for_budget("fast", promoted="t1-evolver"),
                    ),
                },
                f"more than the budget {budget} has",
            )
            for costs, budget in (
                ({"bytes": 1_001}, "small"),
                ({"latency": events.replace(TIMED, ratio=2.1)}, "fast"),
                ({"latency": None}, "fast"),
            )
        ),
        ({"weighed": weighed("stranger")}, "weighed are"),
        ({"weighed": weighed("t1-evolver", "t1-evolver")}, "each once"),
        ({"budgets": (for_budget("small"),)}, "names each budget"),
        ({"budgets": (for_budget("small"), for_budget("large"))}, "names each budget"),
        ({"budgets": (for_budget("small"),) * 2}, "names each budget"),
        (
            {"budgets": (for_budget("small", against="stranger"), for_budget("fast"))},
            "against its champion",
        ),
        (
            {"budgets": (for_budget("small", promoted="t1-evolver"), for_budget("fast"))},
            "that was weighed",
        ),
        (
            {
                "weighed": weighed("t1-evolver"),
                "budgets": (
                    for_budget("small", promoted="t1-evolver", error=None),
                    for_budget("fast"),
                ),
            },
            "measured error",
        ),
        ({"baseline_error": None}, "errors of candidate and baseline"),
    ],
)
def test_a_verdict_that_speaks_of_something_else_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    world, row = with_budgets()
    with pytest.raises(errors.Invalid, match=words):
        world.do(verdict(row, **changes))


@pytest.mark.parametrize("kind", ["trade-off", "undecided", "keep"])
def test_a_round_may_end_without_anybody_promoted(kind: str) -> None:
    world, row = with_budgets()
    advice = Recommendation(
        action="ask" if kind == "trade-off" else "keep",
        candidate_id="t1-evolver" if kind == "trade-off" else "",
        reasons=WHY,
    )
    world.do(verdict(row, verdict=kind, promoted="", recommendation=advice))
    assert reigning(world) is None


def test_gates_or_a_budgets_champion_that_changed_send_the_round_to_another_look() -> None:
    world, row = with_budgets()
    world.do(commands.SetGates(node_id=NODE, settings={"margin": 1.05}))
    with pytest.raises(errors.Conflict, match="the gates changed"):
        world.do(verdict(row))
    row = judged(world)
    assert row.gates.margin == 1.05
    names = ("t1-evolver", "t1-reinventor")
    budgets = (for_budget("small", promoted=names[0]), for_budget("fast"))
    told = verdict(row, weighed=weighed(*names), budgets=budgets)
    world.do(told)
    brought(world, claimed(world, "t2"), "evolver", "reinventor")
    row, king = judged(world), reigning(world, "small")
    assert king is not None
    other = events.replace(king, candidate_id="someone")
    world.state.graph.of_budgets.put(of_budget(NODE, "small"), other)
    kept = (for_budget("small", against=king.candidate_id), for_budget("fast"))
    with pytest.raises(errors.Conflict, match="champion of the budget small changed"):
        world.do(verdict(row, verdict="keep", promoted="", against=king.candidate_id, budgets=kept))


def test_a_void_round_promotes_nobody_and_speaks_of_no_budget() -> None:
    world, row = with_budgets(SMALL)
    void: dict[str, Any] = {"verdict": "void", "promoted": ""}
    with pytest.raises(errors.Invalid, match="a void none"):
        world.do(verdict(row, **void, budgets=(for_budget("small"),)))
    assert [type(one).__name__ for one in world.do(verdict(row, **void))] == ["RoundDecided"]


@pytest.mark.parametrize(
    ("best_upper", "is_best"), [(0.98, True), (1.0, False), (1.01, False), (None, False)]
)
def test_who_becomes_the_best_ever_follows_from_the_judges_figures(
    best_upper: float | None, is_best: bool
) -> None:
    world, row = with_budgets(SMALL)
    world.do(verdict(row))
    brought(world, claimed(world, "t2"), "evolver", "reinventor")
    row = judged(world)
    told = verdict(row, against="t1-evolver", best_upper=best_upper)
    happened = world.do(told)
    (promoted,) = (one for one in happened if isinstance(one, events.ChampionPromoted))
    assert promoted.is_best is is_best
    best = world.state.graph.best.rows[NODE].candidate_id
    assert best == ("t2-evolver" if is_best else "t1-evolver")
    assert verdicts.is_best("", None)


def test_the_best_ever_is_named_to_the_judge_where_another_reigns() -> None:
    world, row = with_budgets(SMALL)
    world.do(verdict(row))
    brought(world, claimed(world, "t2"), "evolver", "reinventor")
    row = judged(world)
    assert row.best is None
    world.do(verdict(row, against="t1-evolver", best_upper=1.01))
    brought(world, claimed(world, "t3"), "evolver", "reinventor")
    row = judged(world)
    assert (row.best and row.best.candidate_id) == "t1-evolver"
    assert only(world).champion is not None


def test_a_round_of_a_node_whose_first_record_was_lost_can_only_end_void() -> None:
    whole, row = with_budgets(SMALL)
    world, world.state = whole, State()
    for event in whole.stored:
        if isinstance(event.data, events.NodeAdded) and event.data.node_id == NODE:
            subject = events.subject_of(event.data)
            world.state.skip(events.Undecodable(event.seq, subject, "lost"))
        else:
            world.state.evolve(event)
    row = judged(world)
    with pytest.raises(errors.Conflict, match="the round is void"):
        world.do(verdict(row, verdict="keep", promoted=""))
    world.do(void(row, secret=secret(row.index).hex()))
    assert world.state.rounds.table.rows[row.round_id].status == "decided"
