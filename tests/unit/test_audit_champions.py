"""What the audit says of gates, budgets and people's choices: each lie is found, and named."""

from typing import Any

import pytest

from core import audit, commands, events
from core.values import Budget, BudgetVerdict, Gates, Weighed
from tests.build import World
from tests.unit import test_audit as whole
from tests.unit.test_decide_champions import choose, measured
from tests.unit.test_decide_verdicts import TIMED

NODE = whole.NODE
SMALL = Budget(name="صغير", bytes_max=1_000)
FAST = Budget(name="fast", latency_max=2.0)
REASONS = events.Reasons(ar="سبب", en="reason")


def history() -> whole.History:
    """Two rounds under two budgets: the second is a trade-off that a person promotes, takes back,
    and promotes for a budget, until that is dropped."""
    world = World()
    world.do(commands.StartWriter(process="one"))
    world.seeded()
    world.do(commands.DepositCommitments(judge="j", first=0, commitments=whole.COMMITMENTS))
    world.agent("a1")
    world.do(
        commands.SetGates(
            node_id="math-statistics", settings={"margin": 1.05}, budgets=(SMALL, FAST)
        )
    )
    world.task("t1")
    whole.complete(world, whole.claimed(world, "a1"), "t1")
    whole.judge(world, whole.the_round(world), "t1-e")
    world.task("t2")
    whole.complete(world, whole.claimed(world, "a1"), "t2")
    traded = whole.the_round(world)
    whole.judge(world, traded, "")
    world.task("t3")
    one = model(world, "t2-e", traded)
    first = world.state.graph.champions.rows[NODE]
    choose(world, one, reason="it reads better")
    choose(world, first, kind="rollback")
    choose(world, one, budget=SMALL.name)
    whole.complete(world, whole.claimed(world, "a1"), "t3")
    whole.judge(world, whole.the_round(world), "")
    world.do(commands.SetGates(node_id="math-statistics", dropped=(SMALL.name,)))
    return world.stored


def model(world: World, candidate_id: str, round_id: str) -> events.Champion:
    task_id, _, side = candidate_id.partition("-")
    rival: events.Rival = "evolver" if side == "e" else "reinventor"
    stored = whole.candidate(rival, candidate_id)
    return measured(
        world,
        candidate_id,
        round_id,
        task_id=task_id,
        rival=rival,
        manifest=stored.manifest,
        weights_sha256=stored.weights_sha256,
        error=0.1,
        bytes=0,
    )


HISTORY = history()


def find(kind: type, nth: int = 0) -> int:
    return [index for index, one in enumerate(HISTORY) if type(one.data) is kind][nth]


def changed(cls: type, nth: int, **changes: Any) -> whole.History:
    """HISTORY with other values in the nth event of a type."""
    index, told = find(cls, nth), list(HISTORY)
    told[index] = told[index]._replace(data=events.replace(told[index].data, **changes))
    return told


def another(nth: int, **figures: Any) -> whole.History:
    """HISTORY with other figures of the nth champion that a person chose."""
    data = HISTORY[find(events.ChampionChosen, nth)].data
    assert isinstance(data, events.ChampionChosen)
    return changed(events.ChampionChosen, nth, champion=events.replace(data.champion, **figures))


def with_budgets(
    nth: int, verdicts: list[BudgetVerdict], *more: events.EventData, latency: float = 2.0
) -> whole.History:
    """HISTORY whose nth verdict decides for budgets too, and what follows on it."""
    weighed = [
        Weighed(
            candidate_id=one,
            error=0.2,
            evidence_rate=0.0,
            params=0,
            bytes=0,
            latency=events.replace(TIMED, ratio=latency),
        )
        for one in ("t1-e", "t1-r", "t2-e", "t2-r")
    ]
    told = changed(events.RoundDecided, nth, budgets=tuple(verdicts), weighed=tuple(weighed))
    at = find(events.RoundDecided, nth) + 1
    at += isinstance(told[at].data, events.ChampionPromoted)
    head = told[at - 1]
    extra = [head._replace(id=f"hand.{i}", data=data) for i, data in enumerate(more)]
    return [*told[:at], *extra, *told[at:]]


def of_budget(budget: str, candidate_id: str = "t1-e", **more: Any) -> events.ChampionPromoted:
    """A budget's champion, by the first round."""
    promoted = HISTORY[find(events.ChampionPromoted)].data
    assert isinstance(promoted, events.ChampionPromoted)
    stored = whole.candidate("reinventor", candidate_id)
    other = {
        "candidate_id": candidate_id,
        "rival": "reinventor",
        "manifest": stored.manifest,
        "weights_sha256": stored.weights_sha256,
    }
    fields = more if candidate_id == "t1-e" else {**other, **more}
    champion = events.replace(promoted.champion, **fields)
    return events.ChampionPromoted(node_id=NODE, champion=champion, budget=budget)


def verdict(budget: str, promoted: str = "t1-e") -> BudgetVerdict:
    return BudgetVerdict(budget=budget, reasons=REASONS, promoted=promoted, error=0.1)


def broken(told: whole.History) -> list[tuple[str, str]]:
    return [(one.rule, one.detail) for one in audit.check(whole.records(told))]


def test_what_people_and_verdicts_say_of_champions_keeps_every_rule() -> None:
    assert broken(HISTORY) == []


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"error": 0.01}, "error"),
        ({"baseline_error": 9.0}, "baseline error"),
        ({"evidence_rate": 1.0}, "evidence rate"),
        ({"params": 5}, "params"),
        ({"bytes": 1}, "bytes"),
        ({"weights_sha256": "c" * 64}, "weights"),
        ({"manifest": "c" * 64}, "manifest"),
        ({"writer": "a2"}, "writer"),
        ({"worker_id": "a2"}, "worker"),
        ({"task_id": "t9"}, "task"),
        ({"rival": "merge"}, "role"),
        ({"round_id": "another"}, "round"),
        ({"workload": events.Workload(specialist="root-math")}, "workload"),
    ],
)
@pytest.mark.parametrize("nth", [0, 1])
def test_a_choice_whose_figures_the_log_tells_otherwise_is_found(
    nth: int, figures: dict[str, Any], words: str
) -> None:
    found = dict(broken(another(nth, **figures)))
    assert f"which the log tells otherwise: {words}" in found["choice"]


@pytest.mark.parametrize(("nth", "told"), [(0, True), (1, False)])
def test_a_choice_says_of_the_baseline_what_the_log_does(nth: int, told: bool) -> None:
    found = dict(broken(another(nth, below_baseline=told)))
    assert "which the log tells otherwise: below baseline" in found["choice"]


def test_only_measured_candidates_of_the_node_may_be_chosen() -> None:
    told = broken(another(0, candidate_id="t3-e"))
    assert ("choice", "a person chose t3-e, which no decided round has measured") in told
    for refused in ("refused", "unjudged"):
        decided = HISTORY[find(events.RoundDecided, 1)].data
        assert isinstance(decided, events.RoundDecided)
        said = [events.replace(one, verdict=refused) for one in decided.candidates]
        told = broken(changed(events.RoundDecided, 1, candidates=said))
        assert ("choice", "a person chose t2-e, which no decided round has measured") in told
    told = broken(another(0, node_id="opt-convex"))
    assert any("which is of stats-bayesian" in detail for _, detail in told)


def test_a_rollback_leads_to_whom_the_node_had_already() -> None:
    ((rule, detail),) = broken(changed(events.ChampionChosen, 0, kind="rollback"))
    assert (rule, detail) == ("choice", "a person chose t2-e, which never reigned there")


def test_a_choice_says_whom_it_replaced() -> None:
    ((rule, detail),) = broken(changed(events.ChampionChosen, 0, instead_of="t9-e"))
    assert (rule, "replaces 't9-e', while champion t1-e reigns" in detail) == ("base", True)


def test_a_choice_for_a_budget_is_for_one_that_is_stated_and_keeps_its_bytes() -> None:
    told = broken(changed(events.ChampionChosen, 2, budget="large"))
    assert any("which is no budget of stats-bayesian" in detail for _, detail in told)
    decided = HISTORY[find(events.RoundDecided, 1)].data
    assert isinstance(decided, events.RoundDecided)
    said = [events.replace(one, bytes=2_000) for one in decided.candidates]
    heavy = changed(events.RoundDecided, 1, candidates=said)
    for nth in (0, 2):
        index = find(events.ChampionChosen, nth)
        data = heavy[index].data
        assert isinstance(data, events.ChampionChosen)
        champion = events.replace(data.champion, bytes=2_000)
        heavy[index] = heavy[index]._replace(data=events.replace(data, champion=champion))
    ((rule, detail),) = broken(heavy)
    assert (rule, "which takes more than its 1000 bytes" in detail) == ("choice", True)


def test_a_choice_is_for_what_the_node_trains_now() -> None:
    index = find(events.ChampionChosen)
    other = events.WorkloadChanged(node_id=NODE, workload=events.Workload(specialist="root-math"))
    moved = HISTORY[index]._replace(id="hand", data=other)
    told = broken([*HISTORY[:index], moved, *HISTORY[index:]])
    assert any(rule == "choice" and "was not trained for" in detail for rule, detail in told)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gates": Gates()}, "other gates than stats-bayesian has"),
        ({"budgets": ()}, "other budgets than stats-bayesian has"),
        ({"best": events.Base(candidate_id="x", manifest="m", writer="w", weights_sha256="s")},
         "takes champion x for the best, not no champion"),
        ({"budgets": (events.BudgetLook(budget=SMALL.name, look=1),
                      events.BudgetLook(budget=FAST.name, look=1))},
         "against no champion, while champion t2-e reigns"),
    ],
)  # fmt: skip
def test_a_round_is_judged_by_the_gates_and_against_the_champions_of_that_moment(
    changes: dict[str, Any], words: str
) -> None:
    told = broken(changed(events.JudgingStarted, 2, **changes))
    assert [rule for rule, detail in told if words in detail] == ["base"]


def test_verdicts_promote_for_budgets_each_once_and_in_any_order() -> None:
    both = [verdict(SMALL.name), verdict(FAST.name)]
    promotions = [of_budget(FAST.name), of_budget(SMALL.name)]
    told = with_budgets(0, both, *promotions)
    # What reigned then is what the next rounds look against, and the first choice replaces.
    assert {rule for rule, _ in broken(told)} == {"base"}
    assert [detail for rule, detail in broken(told) if "budget" not in detail] == []


@pytest.mark.parametrize(
    ("verdicts", "more", "words"),
    [
        ([], [of_budget(FAST.name)], "without a verdict right before"),
        ([verdict(FAST.name)], [], "promoted t1-e at"),
        ([verdict(FAST.name)], [of_budget(SMALL.name)], "without a verdict right before"),
        ([verdict(FAST.name)], [of_budget(FAST.name)] * 2, "without a verdict right before"),
        ([verdict(FAST.name), verdict(FAST.name)], [of_budget(FAST.name)], "decides twice"),
        ([verdict("large")], [], "which is no budget of it"),
        ([verdict(FAST.name, "t9-e")], [], "which did not stand in it"),
        ([verdict(FAST.name, "t1-r")], [of_budget(FAST.name)], "unlike the candidate promoted"),
        ([verdict(FAST.name, "t1-r")], [of_budget(FAST.name, "t1-r", writer="a2")], "writer"),
        ([verdict(FAST.name, "t1-r")], [of_budget(FAST.name, "t1-r", error=0.2)], ": error"),
        ([verdict(FAST.name)], [of_budget(FAST.name, "t1-e", bytes=9)], ": bytes"),
    ],
)
def test_what_a_verdict_does_not_say_of_a_budget_is_found(
    verdicts: list[BudgetVerdict], more: list[events.EventData], words: str
) -> None:
    told = broken(with_budgets(0, verdicts, *more))
    assert [rule for rule, detail in told if words in detail][:1] == ["promotion"], told


def test_a_budgets_champion_that_costs_more_than_it_has_is_found() -> None:
    told = with_budgets(0, [verdict(FAST.name)], of_budget(FAST.name), latency=2.5)
    details = [detail for rule, detail in broken(told) if rule == "promotion"]
    assert [detail.partition(" ")[2] for detail in details] == [
        "promotes t1-e for the budget 'fast', which by its figures it does not keep"
    ]


def test_the_nodes_own_champion_may_become_that_of_a_budget() -> None:
    told = broken(with_budgets(1, [verdict(FAST.name)], of_budget(FAST.name)))
    assert {rule for rule, _ in told} <= {"base"}


@pytest.mark.parametrize("name", ["error", "baseline_error", "evidence_rate", "params", "bytes"])
def test_a_promotion_has_the_figures_of_its_verdict(name: str) -> None:
    promoted = HISTORY[find(events.ChampionPromoted)].data
    assert isinstance(promoted, events.ChampionPromoted)
    champion = events.replace(promoted.champion, **{name: 7})
    told = broken(changed(events.ChampionPromoted, 0, champion=champion))
    assert ("promotion", True) in [(rule, name.replace("_", " ") in words) for rule, words in told]


@pytest.mark.parametrize(("upper", "is_best"), [(0.99, False), (1.01, True)])
def test_who_is_the_best_ever_follows_from_the_verdict(upper: float, is_best: bool) -> None:
    """Of a second champion: the first is the best in any case."""
    again = HISTORY[find(events.RoundDecided, 1)]
    row = HISTORY[find(events.ChampionPromoted)].data
    assert isinstance(again.data, events.RoundDecided)
    assert isinstance(row, events.ChampionPromoted)
    chosen = HISTORY[find(events.ChampionChosen)].data
    assert isinstance(chosen, events.ChampionChosen)
    told = changed(events.RoundDecided, 1, verdict="promote", promoted="t2-e", best_upper=upper)
    promoted = events.ChampionPromoted(
        node_id=NODE, champion=chosen.champion, instead_of="t1-e", is_best=is_best
    )
    at = find(events.RoundDecided, 1) + 1
    told = [*told[:at], again._replace(id="hand", data=promoted)]
    ((rule, detail),) = broken(told)
    assert (rule, detail.endswith(": is best")) == ("promotion", True)
    promoted = events.replace(promoted, is_best=not is_best)
    assert broken([*told[:at], again._replace(id="hand", data=promoted)]) == []


def test_only_who_reigns_for_a_budget_retires_from_it() -> None:
    ((rule, detail),) = broken(changed(events.ChampionRetired, 0, candidate_id="t1-e"))
    assert rule == "base"
    assert "t1-e retires from the budget 'صغير' of stats-bayesian, where t2-e reigns" in detail


def test_gates_of_a_node_that_never_grew_are_found() -> None:
    told = broken(changed(events.GatesChanged, 0, node_id="nowhere"))
    assert told[0] == ("graph", "nowhere is judged by other gates, and was never added")


@pytest.mark.parametrize("seq", range(1, whole.Sealed(HISTORY).end + 1))
def test_whatever_record_is_lost_all_that_follows_is_accepted_with_it(seq: int) -> None:
    log = whole.Sealed(HISTORY)
    assert log.audited().total == 0
    log.lose(seq)
    assert log.audited().accepted_total == 0
    log.accept()
    assert log.audited().shown == []
