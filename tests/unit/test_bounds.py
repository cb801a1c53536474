"""Bounds on a mean that are looked at while cases are added: what they let through, measured."""

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator import bounds

Floats = npt.NDArray[np.float64]


def test_stages_double_up_to_all_cases_and_spend_all_significance() -> None:
    stages = list(bounds.stages(bounds.CASES_MAX))
    assert [stage.cases for stage in stages] == [2_048, 4_096, 8_192, 16_384, 32_768]
    assert sum(stage.share for stage in stages) == 1.0
    assert [stage.is_last for stage in stages] == [False] * 4 + [True]
    assert [tuple(stage) for stage in bounds.stages(100)] == [(0, 100, 100)]
    assert [tuple(stage) for stage in bounds.stages(2_500)] == [
        (0, 2_048, 2_500),
        (2_048, 2_500, 2_500),
    ]


@pytest.mark.parametrize(("alpha", "freedom", "known"), [(0.05, 10, 2.228), (0.01, 30, 2.750)])
def test_quantiles_are_those_of_the_tables(alpha: float, freedom: int, known: float) -> None:
    assert bounds.quantile(alpha, freedom + 1) == pytest.approx(known, abs=0.005)


def test_a_bound_is_exceeded_no_oftener_than_its_significance_says() -> None:
    draw, trials, count = np.random.default_rng(3), 2_000, bounds.CASES_MIN
    for values in (
        draw.normal(0.0, 1.0, (trials, count)),
        draw.exponential(1.0, (trials, count)) - 1.0,
        1.0 - draw.exponential(1.0, (trials, count)),
        draw.lognormal(0.0, 1.0, (trials, count)) - math.exp(0.5),
    ):
        missed = np.mean([bounds.upper(row, 0.05) < 0.0 for row in values])
        assert missed <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / trials)


def test_a_tail_to_the_right_asks_for_more_and_one_to_the_left_for_no_less() -> None:
    values = np.random.default_rng(4).exponential(1.0, 500)
    plain = bounds.quantile(0.05, 500) * values.std(ddof=1) / math.sqrt(500)
    assert bounds.upper(values, 0.05) > values.mean() + plain * 1.01
    assert bounds.upper(-values, 0.05) == pytest.approx(-values.mean() + plain)


def test_what_does_not_vary_is_its_own_bound_and_one_case_has_none() -> None:
    assert bounds.upper(np.full(50, 0.25), 0.05) == 0.25
    assert bounds.upper(np.array([0.25]), 0.05) == math.inf


def test_many_looks_at_a_growing_sum_cross_no_oftener_than_one_may() -> None:
    draw, trials, alpha = np.random.default_rng(5), 1_500, 0.1
    stages = list(bounds.stages(8_192))
    crossed = 0
    for _ in range(trials):
        values = draw.normal(0.0, 1.0, 8_192)
        crossed += any(
            bounds.upper(values[: stage.cases], alpha * stage.share) < 0.0 for stage in stages
        )
    assert crossed / trials <= alpha / 2 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_hope_is_how_often_the_last_stage_is_won() -> None:
    """Under a truth that is what the first stage made likely."""
    draw, (first, *_, last) = np.random.default_rng(6), bounds.stages(8_192)
    begun = draw.normal(-0.02, 1.0, first.cases)
    told = bounds.hope(begun, 0.0, first, 0.05)
    truth = begun.mean() - bounds.OPTIMISM * begun.std(ddof=1) / math.sqrt(first.cases)
    added = last.cases - first.cases
    wins = [
        bounds.upper(np.concatenate([begun, draw.normal(truth, 1.0, added)]), 0.05 * last.share)
        < 0.0
        for _ in range(400)
    ]
    assert statistics.mean(wins) == pytest.approx(told, abs=0.08)


def test_hope_ends_with_the_cases_and_with_what_does_not_vary() -> None:
    *_, last = bounds.stages(4_096)
    values = np.random.default_rng(7).normal(-1.0, 1.0, 4_096)
    assert bounds.hope(values, 0.0, last, 0.05) == 1.0
    assert bounds.hope(-values, 0.0, last, 0.05) == 0.0
    first = next(bounds.stages(4_096))
    assert bounds.hope(np.zeros(2_048), 0.0, first, 0.05) == 0.0
