"""The gate's second question, what vetoes a better model, and what a lower error pays for."""

import math
import re

import numpy as np
import numpy.typing as npt
import pytest

from core.values import Check, Gates, Latency
from orchestrator import bounds, gate, rulings, vetoes

CASES = 2_048
ARABIC = re.compile(r"[\u0600-\u06ff]")
Floats = npt.NDArray[np.float64]
GATES = Gates()


def timed(against: float, spread: float = 0.01) -> Latency:
    """A latency that is surely within `spread` of so many times the champion's."""
    return Latency(
        ratio=1.0,
        lower=1.0,
        upper=1.0,
        p50_ms=1.0,
        p95_ms=1.0,
        reference_ms=1.0,
        spread=0.0,
        against=against,
        against_lower=against * (1 - spread),
        against_upper=against * (1 + spread),
    )


def costing(latency: float = 1.0, size: float = 1.0, memory: float = 1.0) -> rulings.Costs:
    return rulings.Costs(latency=timed(latency), size=size, memory=memory)


def champion(seed: int = 1, cases: int = CASES) -> Floats:
    return np.exp(np.random.default_rng(seed).normal(-4.0, 1.0, cases))


def near(errors: Floats, factor: float = 1.0, noise: float = 0.05, seed: int = 2) -> Floats:
    """Errors of a model that is made of another: `factor` times as large but for noise."""
    drawn = np.random.default_rng(seed).normal(0.0, noise, len(errors))
    return errors * factor * np.exp(drawn - noise**2 / 2)


def ruled(new: Floats, old: Floats, costs: rulings.Costs, **more: object) -> rulings.Ruling:
    values: dict[str, object] = {"tolerance": 0.02, "look": 1, "costs": costs, **more}
    return gate.decide(new, old, **values)  # type: ignore[arg-type]


def the(name: str, ruling: rulings.Ruling) -> Check:
    found = ruling.check(name)
    assert found is not None, name
    return found


# ── cheaper ──


@pytest.mark.parametrize("costs", [costing(latency=0.5), costing(size=0.5)])
def test_a_model_that_is_as_good_and_surely_costs_less_is_cheaper(costs: rulings.Costs) -> None:
    old = champion()
    ruling = ruled(near(old), old, costs)
    assert (ruling.verdict, ruling.question) == ("cheaper", "cheaper")
    assert the("error", ruling).bound == GATES.margin
    assert ruling.reasons.en.startswith("As good as the champion, and cheaper. On 2,048 hidden")
    assert "1.02 is allowed" in ruling.reasons.en


@pytest.mark.parametrize(
    ("factor", "costs"),
    [
        (1.0, costing(latency=0.85, size=0.75)),
        (1.03, costing(latency=0.5)),
        (1.0, costing(latency=0.5, size=1.6)),
        (1.0, costing(size=0.5, latency=1.2)),
        (1.0, costing(size=0.5, memory=1.6)),
    ],
)
def test_what_is_worse_or_costs_hardly_less_or_elsewhere_too_much_is_not_cheaper(
    factor: float, costs: rulings.Costs
) -> None:
    old = champion()
    assert ruled(near(old, factor), old, costs).verdict == "reject"


def test_who_is_as_good_and_perhaps_cheaper_is_undecided() -> None:
    old = champion()
    costs = rulings.Costs(latency=timed(0.8, spread=0.1), size=1.0)
    ruling = ruled(near(old), old, costs)
    assert ruling.verdict == "undecided"
    assert "whether it is cheaper is undecided" in ruling.reasons.en


def test_who_is_surely_better_is_not_called_cheaper() -> None:
    old = champion()
    assert ruled(near(old, 0.8), old, costing(size=0.1)).verdict == "better"


def test_without_costs_nobody_is_asked_whether_they_are_cheaper() -> None:
    old = champion()
    ruling = gate.decide(near(old), old, tolerance=0.02, look=1)
    assert (ruling.verdict, ruling.question) == ("reject", "better")


def test_a_cheaper_model_that_gives_fewer_answers_as_evidence_is_rejected() -> None:
    old = np.full(CASES, 0.0195)
    old[::2] = 0.001
    ruling = ruled(old * 1.0 + np.where(old > 0.019, 0.001, -0.0005), old, costing(size=0.1))
    assert ruling.verdict == "reject"
    assert the("evidence", ruling).verdict == "fail"


def test_a_model_whose_mean_may_rise_is_not_cheaper_however_low_its_ratio() -> None:
    old = champion()
    new = near(old, 0.995, noise=0.001)
    new[np.argsort(old)[-3:]] += 0.1 * old.sum()
    ruling = ruled(new, old, costing(size=0.1))
    assert ruling.verdict == "reject"
    assert "not surely within 1.02 times" in ruling.reasons.en


# ── the best ever ──


def test_a_cheaper_model_has_to_be_as_good_as_the_best_ever_too() -> None:
    best = champion()
    old = near(best, 1.015, noise=0.001, seed=3)
    new = near(old, 1.01, noise=0.001)
    assert ruled(new, old, costing(size=0.1)).verdict == "cheaper"
    ruling = ruled(new, old, costing(size=0.1), best=best)
    assert ruling.verdict == "reject"
    assert (the("error", ruling).verdict, the("best", ruling).verdict) == ("pass", "fail")
    assert "the best that this node ever had" in ruling.reasons.en


def test_a_better_model_has_to_be_as_good_as_the_best_ever_too() -> None:
    best = champion()
    old = near(best, 1.5, seed=3)
    assert ruled(near(best, 1.1), old, costing(), best=best).verdict == "reject"
    assert ruled(near(best, 1.0), old, costing(), best=best).verdict == "better"


def test_evidence_never_falls_behind_that_of_the_best_ever() -> None:
    best = np.full(CASES, 0.0199)
    old, new = best.copy(), best.copy()
    for moved, share in ((old, 0.3), (new, 0.3)):
        moved[: int(share * CASES)] = 0.0201
    ruling = ruled(new, old, costing(size=0.1), best=best)
    assert ruling.verdict == "reject"
    assert ruled(new, old, costing(size=0.1)).verdict == "cheaper"


def test_who_may_become_the_best_lies_below_it_case_by_case_and_in_the_mean() -> None:
    best = champion()
    lower = ruled(near(best, 0.9), best, costing()).best_upper
    assert lower is not None
    assert lower < 1.0
    new = near(best, 0.98, noise=0.001)
    new[np.argsort(best)[-3:]] += 0.01 * best.sum()
    higher = ruled(new, best, costing(size=0.1)).best_upper
    assert higher is not None
    assert higher > 1.0


# ── answers that are right or wrong ──


def wrong(*counts: int) -> tuple[Floats, Floats]:
    """Errors of 0 and 1: wrong for both, for the first alone, for the second alone."""
    both, first, second = counts
    new, old = np.zeros(CASES), np.zeros(CASES)
    new[: both + first] = 1.0
    old[:both] = 1.0
    old[both + first : both + first + second] = 1.0
    return new, old


def test_of_right_and_wrong_answers_an_absolute_margin_is_asked() -> None:
    for counts, verdict in (
        ((0, 0, 0), "cheaper"),
        ((200, 2, 2), "cheaper"),
        ((200, 30, 30), "reject"),  # a difference of 0.01 is not surely ruled out
        ((200, 5, 0), "reject"),  # 1.02 times 200 are 204
    ):
        new, old = wrong(*counts)
        ruling = ruled(new, old, costing(size=0.1), tolerance=0.5)
        assert (counts, ruling.verdict) == (counts, verdict)
        assert the("error", ruling).bound == GATES.evidence_drop


def test_that_no_difference_was_seen_does_not_say_that_there_is_none() -> None:
    new, old = wrong(0, 0, 0)
    upper = the("error", ruled(new, old, costing(size=0.1), tolerance=0.5)).upper
    assert upper is not None
    # With chance 1 in 100 three of two thousand such cases are missed.
    assert upper > 3 / CASES
    few, fewer = new[:300], old[:300]
    assert ruled(few, fewer, costing(size=0.1), tolerance=0.5).verdict == "reject"


def test_errors_that_are_mostly_zero_are_within_the_margin_by_their_means() -> None:
    draw = np.random.default_rng(3)
    cases = 32_768
    old = np.where(draw.random(cases) < 0.3, draw.exponential(0.01, cases), 0.0)
    new = np.where(draw.random(cases) < 0.02, draw.permutation(old), old)
    ruling = ruled(new, old, costing(size=0.5), tolerance=1e-5)
    assert (ruling.verdict, ruling.method) == ("cheaper", "mean-difference")
    assert ruled(1.03 * new, old, costing(size=0.5), tolerance=1e-5).verdict == "reject"


# ── vetoes ──


def test_a_better_model_that_costs_too_much_is_a_trade_off() -> None:
    old = champion()
    for costs, name in (
        (costing(latency=1.3), "latency"),
        (costing(size=1.8), "size"),
        (costing(memory=1.8), "memory"),
    ):
        ruling = ruled(near(old, 0.9), old, costs)
        assert ruling.verdict == "trade-off"
        assert [one.name for one in ruling.checks if one.verdict == "fail"] == [name]
        assert "it costs more than is allowed" in ruling.reasons.en
        assert "is allowed" in ruling.reasons.en


def test_a_latency_that_straddles_its_bound_neither_promotes_nor_refuses() -> None:
    old = champion()
    costs = rulings.Costs(latency=timed(1.16, spread=0.1), size=1.0)
    ruling = ruled(near(old, 0.9), old, costs)
    assert ruling.verdict == "undecided"
    assert the("latency", ruling).verdict == "undecided"
    assert "could not be told" in ruling.reasons.en


def test_errors_on_shifted_inputs_veto_what_is_surely_worse_there() -> None:
    old = champion()
    draw = np.random.default_rng(5)
    beyond = np.exp(draw.normal(0.0, 1.0, 512))
    for factor, verdict in ((1.2, "better"), (1.6, "trade-off")):
        answers = beyond * factor * np.exp(draw.normal(0.0, 0.5, 512))
        costs = costing()._replace(shifted=(answers, beyond))
        assert ruled(near(old, 0.9), old, costs).verdict == verdict
    costs = costing()._replace(shifted=(np.full(512, np.nan), beyond))
    assert ruled(near(old, 0.9), old, costs).verdict == "trade-off"
    costs = costing()._replace(shifted=(beyond, np.full(512, np.inf)))
    assert ruled(near(old, 0.9), old, costs).verdict == "better"


def test_what_is_lower_case_by_case_alone_is_not_called_lower_by_too_little() -> None:
    old = champion()
    ruling = ruled(near(old, 0.995, 0.3), old, costing())
    assert ruling.standing == "lower"
    assert ruling.reasons.en.startswith("Better than the champion case by case, but not surely in")


def test_a_veto_of_shifted_inputs_is_not_called_a_cost() -> None:
    old, beyond = champion(), np.exp(np.random.default_rng(5).normal(0.0, 1.0, 512))
    costs = costing()._replace(shifted=(2.15 * beyond, beyond))
    reasons = ruled(near(old, 0.9), old, costs).reasons
    assert reasons.en.startswith(
        "Better than the champion on usual inputs, but worse on inputs beyond those of training "
        "(2.15 times, 1.25 is allowed). On"
    )
    assert "خارج نطاق التدريب (نسبة خطئه هناك إلى خطأ البطل 2.15، والمسموح 1.25)" in reasons.ar
    assert "costs more" not in reasons.en
    assert "كلفته" not in reasons.ar
    dear = costing(size=9.0)._replace(shifted=(np.full(512, np.nan), beyond))
    both = ruled(near(old, 0.9), old, dear).reasons.en
    assert "(its answers there are no numbers), and it costs more than is allowed" in both


def test_a_latency_that_was_read_once_for_both_has_no_interval() -> None:
    old = champion()
    once = costing()._replace(latency=timed(1.0, spread=0.0))
    assert "latency 1 (the same architecture)" in ruled(near(old, 0.8), old, once).reasons.en
    asked = Gates(latency_ratio=0.5, exchange=0.0)
    dear = ruled(near(old, 0.8), old, once, gates=asked).reasons
    assert "as the champion's: the same architecture" in dear.en
    assert "between 1 and 1" not in dear.en
    assert "البنية نفسها" in dear.ar


def test_a_lower_error_pays_for_latency_size_and_memory_and_not_for_robustness() -> None:
    old = champion()
    dear = costing(latency=1.5, size=2.0, memory=2.0)
    assert ruled(near(old, 0.9), old, dear).verdict == "trade-off"
    assert ruled(near(old, 0.4), old, dear).verdict == "better"
    beyond = np.exp(np.random.default_rng(5).normal(0.0, 1.0, 512))
    shifted = dear._replace(shifted=(2.0 * beyond, beyond))
    assert ruled(near(old, 0.4), old, shifted).verdict == "trade-off"


def test_what_is_lower_case_by_case_and_hardly_in_the_mean_pays_for_hardly_more() -> None:
    old = champion()
    is_small = old < np.median(old)
    small, large = near(old, 0.001), near(old, 0.9)
    ruling = ruled(np.where(is_small, small, large), old, costing(latency=1.5))
    assert ruling.ratio is not None
    assert ruling.ratio < 0.05
    assert ruling.error is not None
    assert ruling.error > 0.7 * ruling.opponent_error
    assert (ruling.verdict, ruling.factor < 1.2) == ("trade-off", True)


def test_the_growth_of_bounds_is_bounded_and_can_be_given_up() -> None:
    assert vetoes.growth(GATES, 0.25) == pytest.approx(2.0)
    assert vetoes.growth(GATES, 0.64) == pytest.approx(1.25)
    for ratio, grown in ((1e-300, 2.0), (0.0, 2.0), (1.0, 1.0), (3.0, 1.0), (None, 1.0)):
        assert vetoes.growth(GATES, ratio) == pytest.approx(grown)
    assert vetoes.growth(Gates(exchange=0.0), 0.1) == 1.0
    assert vetoes.growth(Gates(exchange=1e9), 0.1) == pytest.approx(2.0)


def test_the_quantum_node_of_record_would_change_its_champion() -> None:
    """Errors of 0.14 at 1.58 times the latency: a fixed 10 % refused it."""
    old = champion()
    new = near(old, 0.14, noise=0.3)
    assert ruled(new, old, costing(latency=1.58, size=0.03, memory=0.5)).verdict == "better"
    fixed = Gates(exchange=0.0)
    ruling = ruled(new, old, costing(latency=1.58, size=0.03, memory=0.5), gates=fixed)
    assert ruling.verdict == "trade-off"


# ── how the significance is spent ──


def test_two_models_at_one_look_halve_its_significance() -> None:
    old = champion()
    alone, halved = (ruled(near(old, 0.9), old, costing(), share=share) for share in (1.0, 0.5))
    assert halved.alpha == pytest.approx(alone.alpha / 2)
    assert halved.ratio_upper is not None
    assert alone.ratio_upper is not None
    assert halved.ratio_upper > alone.ratio_upper


def test_cases_are_added_while_it_is_unclear_whether_a_cheap_model_is_as_good() -> None:
    old = champion(cases=bounds.CASES_MAX)
    new = near(old, 1.014, noise=0.12)
    told = []
    for stage in bounds.stages(bounds.CASES_MAX):
        some = slice(stage.cases)
        cheap, dear = (
            ruled(new[some], old[some], costing(size=size), stage=stage) for size in (0.3, 1.0)
        )
        told.append((cheap.verdict, cheap.settled, dear.settled))
    assert told[0] == ("reject", False, True)
    assert ("cheaper", True) in [one[:2] for one in told]


def test_equal_models_are_called_cheaper_only_within_the_margin() -> None:
    """At the margin itself, whoever calls it cheaper errs: in at most α of the trials."""
    trials, looks = 300, 0
    draw = np.random.default_rng(11)
    for _ in range(trials):
        old = np.exp(draw.normal(-4.0, 1.0, CASES))
        new = old * GATES.margin * np.exp(draw.normal(0.0, 0.1, CASES) - 0.1**2 / 2)
        looks += ruled(new, old, costing(size=0.1)).verdict == "cheaper"
    assert looks / trials <= gate.alpha_at(1)


# ── words ──


def test_every_ruling_is_told_in_both_languages() -> None:
    old = champion()
    best = near(old, 0.5, seed=9)
    told = [
        ruled(near(old, 0.9), old, costing()),
        ruled(near(old, 0.9), old, costing(latency=1.3)),
        ruled(near(old), old, costing(size=0.1)),
        ruled(near(old, 1.1), old, costing(size=0.1)),
        ruled(near(old), old, rulings.Costs(latency=timed(0.8, 0.1))),
        ruled(near(old, 0.9), old, rulings.Costs(latency=timed(1.16, 0.1))),
        ruled(near(old, 0.9), old, costing(), best=best),
        ruled(*wrong(200, 30, 5), costing(size=0.1), tolerance=0.5),
        ruled(*wrong(0, 0, 0), costing(size=0.1), tolerance=0.5),
        ruled(wrong(9, 90, 0)[0], wrong(9, 90, 0)[0], costing(size=0.1), best=np.zeros(CASES)),
    ]
    assert {one.verdict for one in told} == {
        *("better", "trade-off", "cheaper", "reject", "undecided")
    }
    for ruling in told:
        for words in (ruling.reasons.ar, ruling.reasons.en):
            assert words.endswith(".")
            assert not re.search(r"inf|nan|None|—", words), words
        assert ARABIC.search(ruling.reasons.ar)
        assert not ARABIC.search(ruling.reasons.en)
        assert all(math.isfinite(one.bound or 0.0) for one in ruling.checks)
