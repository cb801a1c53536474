"""What a card says that its champion was measured on, and against whom."""

import re
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch

from cli import card, card_evidence, model, stored
from core import commands, events, lineage
from core.projections import rounds
from core.values import BudgetVerdict, Check
from tests.unit.test_decide_rounds import verdict
from tests.unit.test_decide_verdicts import (
    NODE,
    SMALL,
    WHY,
    for_budget,
    reigning,
    weighed,
    with_budgets,
)
from tests.unit.test_judge import BAYES, trained
from tests.unit.test_judge import SMALL as SMALL_NETWORK
from tests.unit.test_rejudge import Court
from tests.unit.test_trial import times

OWN = events.Reasons(ar="حكم", en="its own verdict")


def served(budget: str, candidate_id: str, *said: BudgetVerdict, kind: str = "") -> stored.Served:
    """A champion of a round whose verdict says this."""
    world, row = with_budgets(SMALL)
    decided: commands.DecideRound = verdict(
        row,
        weighed=weighed("t1-evolver", "t1-reinventor"),
        budgets=said or (for_budget("small"),),
        cases=4_096,
        alpha=0.03,
    )
    candidates = [
        events.replace(one, reasons=OWN, verdict=kind or one.verdict) for one in decided.candidates
    ]
    told: list[Any] = world.do(events.replace(decided, candidates=candidates))
    whole = rounds.evolve(row, 1, told[0])
    champion = reigning(world)
    assert champion is not None
    champion = events.replace(champion, candidate_id=candidate_id)
    reign = lineage.Reign(champion, "", 1)
    node = stored.Node(events.NodeAdded(node_id=NODE, name=NODE), [reign])
    return stored.Served(node, champion, whole, {}, budget)


def test_the_nodes_champion_was_measured_as_its_round_says() -> None:
    assert card_evidence.measured(served("", "t1-evolver")) == card_evidence.Measured(
        OWN, 4_096, 0.03, 1
    )


def test_a_budgets_champion_was_measured_as_its_budgets_verdict_says() -> None:
    one = for_budget("small", promoted="t1-evolver", cases=2_048, alpha=0.01, look=1, reasons=WHY)
    assert card_evidence.measured(served("small", "t1-evolver", one)) == card_evidence.Measured(
        WHY, 2_048, 0.01, 1, is_of_budget=True
    )


@pytest.mark.parametrize("budget", ["", "small"])
def test_who_was_chosen_without_coming_to_the_gate_was_measured_on_none_of_its_cases(
    budget: str,
) -> None:
    chosen = served(budget, "t1-reinventor", kind="outranked")
    assert card_evidence.measured(chosen) == card_evidence.Measured(OWN)


def test_the_recipe_of_one_that_met_other_cases_than_its_rounds_main_one_prints_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    court = Court(tmp_path)
    court.judged(5, 60)
    recorded = court.recorded(court.judged(250, 64, timing=times({"cand-3": 9.0})))
    row = rounds.evolve(recorded.row, 1, recorded.decided)
    chosen = lineage.measured(row, "cand-3")
    node = stored.Node(
        events.NodeAdded(node_id=NODE, name=NODE), [lineage.Reign(chosen, "", 1, kind="promote")]
    )
    files = {card.WEIGHTS_FILE: safetensors.torch.save(trained(250).state_dict())}
    one = stored.Served(node, chosen, row, files)
    measured = card_evidence.measured(one)
    assert measured.cases != recorded.decided.cases
    text = card.write(one, model.Head.of(chosen), BAYES)
    assert f"| hidden cases | {measured.cases:,} |" in text
    for name, data in {**files, card.CONFIG_FILE: msgspec.json.encode(SMALL_NETWORK)}.items():
        (tmp_path / name).write_bytes(data)
    (recipe,) = set(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    (tmp_path / "recipe.py").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("recipe.py")
    assert float(capsys.readouterr().out) == pytest.approx(chosen.error, rel=1e-6)


def test_a_first_champion_looked_at_no_other_and_intervals_with_one_end_are_words() -> None:
    first = card_evidence.Measured(OWN, cases=9, look=1)
    assert [title.en for title, _ in card._meeting(first)][1] == "look"
    assert [title.en for title, _ in card._meeting(first._replace(against="a"))][1] == (
        "look at that champion"
    )
    ends = {
        card._between(Check(name="error", verdict="pass", lower=lower, upper=upper))
        for lower, upper in ((None, 0.5), (0.5, None), (-0.0, 0.5), (None, None))
    }
    assert ends == {
        ("لا يزيد على 0.5", "at most 0.5"),
        ("لا يقل عن 0.5", "at least 0.5"),
        ("من 0 إلى 0.5", "0 to 0.5"),
        ("–", "–"),
    }
