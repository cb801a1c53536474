"""A whole round on the scales: who wins, what vetoes, and what is recorded of it."""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from agent.specialists import base
from core import events, values, wire
from core.values import Budget, Gates, Latency
from orchestrator import hidden, latency, models, trial
from tests.unit.test_gates import timed
from tests.unit.test_judge import BAYES, NODE, SECRET, Shelf, brief, only, reigning, trained

torch.set_num_threads(1)
LARGE = BAYES.families("evolver")[0]


@pytest.fixture(scope="module")
def fresh() -> torch.nn.Module:
    return trained(5)


@pytest.fixture(scope="module")
def better() -> torch.nn.Module:
    return trained(250)


@pytest.fixture(scope="module")
def large() -> torch.nn.Module:
    """Hardly trained, of a larger family."""
    return trained(12, LARGE)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def times(told: Mapping[str, float], spread: float = 0.01) -> trial.Timing:
    """Latencies in times of the champion's, and of the reference."""

    def timing(
        asked: Mapping[str, latency.Timed], champion: str, is_clear: trial.IsClear
    ) -> Mapping[str, Latency]:
        return {name: _latency(told.get(name, 1.0), spread) for name in asked}

    return timing


def _latency(against: float, spread: float) -> Latency:
    found = timed(against, spread)
    return msgspec.structs.replace(found, ratio=against)


def nearly(module: torch.nn.Module, config: base.Config = LARGE) -> torch.nn.Module:
    """A model that answers as another, but for rounding."""
    made = BAYES.build(config)
    made.load_state_dict(module.state_dict())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + 1e-6)
    return made


def by_name(verdict: wire.Verdict) -> dict[str, events.CandidateVerdict]:
    return {one.candidate_id: one for one in verdict.candidates}


def check(verdict: events.CandidateVerdict, name: str) -> values.Check:
    (found,) = [one for one in verdict.gates if one.name == name]
    return found


# ── who wins ──


def test_a_model_as_good_as_the_champion_and_faster_is_promoted_as_cheaper(
    shelf: Shelf, large: torch.nn.Module
) -> None:
    champion, same = shelf.put(large, LARGE), shelf.put(nearly(large), LARGE)
    verdict = shelf.judged(
        same, champion=reigning(champion), timing=times({same.candidate_id: 0.5})
    )
    assert (verdict.verdict, verdict.promoted) == ("promote", same.candidate_id)
    assert only(verdict).verdict == "cheaper"
    assert verdict.best_upper is not None
    assert verdict.best_upper > 0.99
    assert verdict.recommendation is not None
    assert verdict.recommendation.action == "promote"


def test_the_same_model_at_the_same_latency_changes_nothing(
    shelf: Shelf, large: torch.nn.Module
) -> None:
    champion, same = shelf.put(large, LARGE), shelf.put(nearly(large), LARGE)
    verdict = shelf.judged(same, champion=reigning(champion), timing=times({}))
    assert (verdict.verdict, only(verdict).verdict) == ("keep", "reject")


def test_a_better_model_that_is_too_slow_is_left_to_a_person(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion, slow = shelf.put(fresh), shelf.put(better)
    verdict = shelf.judged(
        slow, champion=reigning(champion), timing=times({slow.candidate_id: 5.0})
    )
    assert (verdict.verdict, verdict.promoted) == ("trade-off", "")
    assert only(verdict).verdict == "trade-off"
    assert check(only(verdict), "latency").verdict == "fail"
    advice = verdict.recommendation
    assert advice is not None
    assert (advice.action, advice.candidate_id) == ("ask", slow.candidate_id)
    assert f"aghsan champion promote {NODE} {slow.candidate_id}" in advice.reasons.ar


def test_a_better_model_whose_latency_cannot_be_told_is_undecided(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion, unclear = shelf.put(fresh), shelf.put(better)
    verdict = shelf.judged(
        unclear, champion=reigning(champion), timing=times({unclear.candidate_id: 2.0}, 0.5)
    )
    assert (verdict.verdict, only(verdict).verdict) == ("undecided", "undecided")


def test_two_candidates_come_to_the_gate_and_share_its_significance(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion = shelf.put(trained(60))
    slow, quick, third = shelf.put(better), shelf.put(trained(200)), shelf.put(fresh)
    told = shelf.judged(
        *(slow, quick, third), champion=reigning(champion), timing=times({slow.candidate_id: 9.0})
    )
    found = by_name(told)
    assert found[slow.candidate_id].verdict == "trade-off"
    assert found[quick.candidate_id].verdict == "better"
    assert found[third.candidate_id].verdict == "outranked"
    assert found[third.candidate_id].gates == ()
    assert (told.verdict, told.promoted) == ("promote", quick.candidate_id)
    assert "α = 0.015" in found[quick.candidate_id].reasons.en
    assert told.recommendation is not None
    assert f"promote {NODE} {slow.candidate_id}" in told.recommendation.reasons.en


def test_the_first_champion_of_a_node_may_cost_anything(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    first = shelf.put(better)
    verdict = shelf.judged(first, timing=times({first.candidate_id: 99.0}))
    assert verdict.promoted == first.candidate_id
    (weighed,) = verdict.weighed
    assert weighed.latency is not None
    assert {one.name for one in only(verdict).gates} == {"error", "evidence"}


# ── the best ever ──


def test_a_model_has_to_be_as_good_as_the_best_ever(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion, best, candidate = (shelf.put(one) for one in (fresh, better, trained(60)))
    verdict = shelf.judged(candidate, champion=reigning(champion), best=reigning(best))
    assert verdict.verdict == "keep"
    assert check(only(verdict), "error").verdict == "pass"
    assert check(only(verdict), "best").verdict == "fail"
    assert shelf.judged(candidate, champion=reigning(champion)).promoted == candidate.candidate_id


def test_a_best_ever_that_is_gone_ends_the_round_void(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    gone = msgspec.structs.replace(reigning(shelf.put(better)), manifest="0" * 64)
    gone = msgspec.structs.replace(gone, candidate_id="gone")
    verdict = shelf.judged(shelf.put(better), champion=reigning(shelf.put(fresh)), best=gone)
    assert (verdict.verdict, only(verdict).verdict) == ("void", "unjudged")
    assert "best ever gone" in verdict.reasons.en
    assert "gone" in only(verdict).reasons.ar


# ── budgets ──


def budgeted(*budgets: Budget, **champions: events.Base | None) -> dict[str, Any]:
    looks = tuple(
        events.BudgetLook(budget=one.name, look=3, champion=champions.get(one.name))
        for one in budgets
    )
    return {"gates": Gates(budgets=budgets), "budgets": looks}


def test_each_budget_gets_the_best_within_it(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion = shelf.put(trained(60))
    slow, quick = shelf.put(better), shelf.put(fresh)
    budgets = (
        Budget(name="any"),
        Budget(name="fast", latency_max=1.2),
        Budget(name="tiny", bytes_max=10),
    )
    verdict = shelf.judged(
        *(slow, quick),
        champion=reigning(champion),
        timing=times({slow.candidate_id: 9.0}),
        **budgeted(*budgets),
    )
    told = {one.budget: one for one in verdict.budgets}
    assert told["any"].promoted == slow.candidate_id
    assert told["fast"].promoted == champion.candidate_id
    assert (told["tiny"].promoted, told["tiny"].cases) == ("", 0)
    assert "within the budget tiny" in told["tiny"].reasons.en
    assert told["any"].look == 3
    assert verdict.verdict == "trade-off"


def test_the_champion_of_a_budget_is_the_one_to_beat(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    king = reigning(shelf.put(trained(60)))
    budget = Budget(name="any")
    for module, expected in ((better, True), (fresh, False)):
        candidate = shelf.put(module)
        verdict = shelf.judged(
            candidate, champion=king, **budgeted(budget, any=reigning(shelf.put(trained(80))))
        )
        (told,) = verdict.budgets
        assert (told.promoted == candidate.candidate_id) is expected
        assert told.champion_error is not None
        assert "the champion of this budget" in told.reasons.en


def test_a_champion_of_a_budget_that_is_gone_holds_up_no_other(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    gone = msgspec.structs.replace(reigning(shelf.put(fresh)), manifest="0" * 64)
    gone = msgspec.structs.replace(gone, candidate_id="gone")
    verdict = shelf.judged(
        shelf.put(better), champion=reigning(shelf.put(fresh)), **budgeted(Budget(name="b"), b=gone)
    )
    assert verdict.verdict == "promote"
    (told,) = verdict.budgets
    assert (told.promoted, told.against) == ("", "gone")
    assert "cannot be measured" in told.reasons.en


# ── what is recorded ──


def test_candidates_and_champion_are_weighed_on_the_same_cases(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion, candidate = shelf.put(fresh), shelf.put(better)
    verdict = shelf.judged(candidate, champion=reigning(champion), timing=times({}))
    weighed = {one.candidate_id: one for one in verdict.weighed}
    assert weighed.keys() == {champion.candidate_id, candidate.candidate_id}
    one, other = weighed[candidate.candidate_id], weighed[champion.candidate_id]
    assert one.error < other.error
    assert (one.is_front, other.is_front) == (True, False)
    for each in (one, other):
        assert each.memory_bytes > 0
        assert each.shifted_error is not None
        assert each.latency is not None


def test_latency_is_read_until_it_is_clear_of_what_decides(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion, good, bad = shelf.put(trained(60)), shelf.put(better), shelf.put(fresh)
    asked: dict[tuple[str, float], bool] = {}

    def timing(
        models_: Mapping[str, latency.Timed], name: str, is_clear: trial.IsClear
    ) -> Mapping[str, Latency]:
        assert name == champion.candidate_id
        for one in models_:
            for against in (0.5, 0.8, 1.5, 9.0):
                asked[one, against] = is_clear(one, _latency(against, 0.05))
        return {}

    shelf.judged(good, bad, champion=reigning(champion), timing=timing)
    assert asked[good.candidate_id, 0.5]
    assert not asked[good.candidate_id, 0.8]  # whether it is cheaper hangs on it
    assert asked[good.candidate_id, 9.0]
    # Nothing hangs on how fast one is that errs more than the margin has it.
    assert asked[bad.candidate_id, 0.8]


def test_latencies_are_measured_in_turns_with_the_champion(
    shelf: Shelf, fresh: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "BLOCK_SECONDS", 0.002)
    champion, candidate = shelf.put(fresh), shelf.put(trained(12, LARGE), LARGE)

    def timing(
        asked: Mapping[str, latency.Timed], name: str, is_clear: trial.IsClear
    ) -> Mapping[str, Latency]:
        return latency.measure(asked, name, is_clear, contextlib.nullcontext)

    verdict = shelf.judged(candidate, champion=reigning(champion), timing=timing)
    told = {one.candidate_id: one.latency for one in verdict.weighed}
    found = told[candidate.candidate_id]
    assert found is not None
    assert found.against is not None
    assert found.reference_ms > 0


def test_the_verdict_on_a_round_of_many_candidates_fits_into_an_event(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion = shelf.put(fresh)
    rivals = [shelf.put(better) for _ in range(12)]
    budgets = tuple(Budget(name=f"{n}" * 32, latency_max=1.0 + n) for n in range(4))
    verdict = shelf.judged(
        *rivals,
        champion=reigning(champion),
        timing=times({one.candidate_id: 9.0 - at / 7 for at, one in enumerate(rivals)}),
        **budgeted(*budgets),
    )
    assert len(verdict.weighed) == 13
    fields = {name: getattr(verdict, name) for name in events.RoundDecided.__struct_fields__
              if hasattr(verdict, name)}  # fmt: skip
    data = events.RoundDecided(**fields)
    event = events.Event(1, 0, "id", "judge", "", "", data)
    assert len(events.encode(event)) < 48 * 1024


def test_no_case_that_decides_who_is_put_to_the_gate_is_one_of_the_gates() -> None:
    asked = SECRET, NODE, "round"
    ranked = hidden.rank_cases(BAYES, *asked)
    shifted = hidden.shifted_cases(BAYES, *asked)
    assert shifted is not None
    (field, *_) = ranked
    gated = [cases[field].flatten(1) for _, cases in hidden.gate_cases(BAYES, *asked)]
    whole = torch.cat([ranked[field].flatten(1), shifted[field].flatten(1), *gated])
    assert len(torch.unique(whole, dim=0)) == len(whole)


def test_what_may_be_met_is_fetched_with_the_candidates(shelf: Shelf) -> None:
    named = [reigning(shelf.put(trained(1))) for _ in range(3)]
    told = brief(
        champion=named[0],
        best=named[1],
        budgets=(events.BudgetLook(budget="b", look=1, champion=named[2]),),
    )
    assert models.opponents_of(told) == named


# ── who takes too long ──


def test_a_candidate_that_takes_too_long_is_refused_and_the_round_goes_on(
    shelf: Shelf, better: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SECONDS_MAX", -1.0)
    verdict = shelf.judged(shelf.put(better))
    assert (verdict.verdict, only(verdict).verdict) == ("void", "refused")
    assert check(only(verdict), trial.TIME).verdict == "fail"
    assert "processor time" in only(verdict).reasons.en
    assert "وقتًا أطول" in only(verdict).reasons.ar


def test_who_was_too_slow_is_so_again_however_fast_the_machine_is(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = brief(shelf.put(better), other := shelf.put(fresh))
    stored = asyncio.run(models.gather(told, shelf.store))
    slow = {"cand-1": 130.0}
    first = trial.trace(told, stored, SECRET, "j", slow=slow).verdict
    assert [one.verdict for one in first.candidates] == ["refused", "better"]
    assert first.promoted == other.candidate_id
    recorded = trial.slow_as_recorded(first.candidates)
    assert recorded == slow
    monkeypatch.setattr(models, "SECONDS_MAX", 0.0)  # this one would find both too slow
    again = trial.trace(told, stored, SECRET, "j", slow=recorded).verdict
    assert [one.verdict for one in again.candidates] == ["refused", "better"]
