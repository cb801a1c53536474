"""What the gate lets through, measured, and what it says."""

import math
import re

import numpy as np
import numpy.typing as npt
import pytest

from core.values import Gates
from orchestrator import bounds, gate, paired, rulings

CASES = 2_048
RATIO_MAX = 0.99
ARABIC = re.compile(r"[\u0600-\u06ff]")
Floats = npt.NDArray[np.float64]


def _hardness(draw: np.random.Generator, columns: int) -> Floats:
    """How hard each case is for anybody: what pairs the errors."""
    return draw.normal(-4.0, 1.0, (CASES, columns))


def _errors(draw: np.random.Generator, hardness: Floats, factor: float = 1.0) -> Floats:
    return factor * np.exp(hardness + draw.normal(0.0, 0.6, hardness.shape))


def _pair(seed: int, factor: float = 1.0) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    hardness = _hardness(draw, 1)
    return _errors(draw, hardness, factor)[:, 0], _errors(draw, hardness)[:, 0]


def _decide(new: Floats, old: Floats, look: int = 1, tolerance: float = 0.02) -> rulings.Ruling:
    return gate.decide(new, old, tolerance=tolerance, look=look)


def _upper(columns: Floats, alpha: float) -> Floats:
    """The bound of each column's mean."""
    return np.array([bounds.upper(values, alpha) for values in columns.T])


def test_all_looks_together_spend_five_percent() -> None:
    spent = sum(gate.alpha_at(look) for look in range(1, 100_000))
    assert spent == pytest.approx(0.05, abs=1e-5)
    assert spent < 0.05


def test_ten_looks_at_equal_models_err_in_at_most_five_percent_of_trials() -> None:
    trials = 300
    draw = np.random.default_rng(7)
    passed, told_lower = np.zeros(trials, dtype=bool), np.zeros(trials, dtype=bool)
    for look in range(1, 11):
        hardness = _hardness(draw, trials)
        new, old = _errors(draw, hardness), _errors(draw, hardness)
        swapped = draw.random(trials) < 0.5
        new, old = np.where(swapped, old, new), np.where(swapped, new, old)
        ratio = _upper(paired.log_ratios(new, old), gate.alpha_at(look))
        higher = _upper(new - old, gate.alpha_at(look))
        passed |= (ratio < math.log(RATIO_MAX)) & (higher <= 0)
        told_lower |= ratio < 0
    assert told_lower.mean() <= 0.05
    assert passed.mean() <= 0.01


def test_a_model_with_a_fifth_less_error_passes_nearly_always() -> None:
    verdicts = [_decide(*_pair(seed, factor=0.8)).verdict for seed in range(12)]
    assert verdicts.count("better") >= 11


def test_equal_models_with_few_wrong_answers_pass_in_at_most_five_percent_of_trials() -> None:
    trials, alpha = 400, gate.alpha_at(1)
    for differing_mean in (3, 5, 8):
        draw = np.random.default_rng(differing_mean)
        tables = draw.poisson(differing_mean / 2, (trials, 2))
        new, old = (
            np.stack(side, axis=1) for side in zip(*(_answers(*t) for t in tables), strict=True)
        )
        lower = _upper(new - RATIO_MAX * old, alpha) < 0
        tails = [paired.tail_of_signs(*pair) for pair in zip(new.T, old.T, strict=True)]
        assert np.mean(lower & (np.array(tails) <= alpha / 2)) <= 0.05


def _answers(wins: int, losses: int, both_wrong: int = 0) -> tuple[Floats, Floats]:
    """Errors of 0 and 1 that differ on `wins` and `losses` cases."""
    new, old = np.zeros(CASES), np.zeros(CASES)
    old[:wins] = 1.0
    new[wins : wins + losses] = 1.0
    new[-both_wrong or CASES :] = old[-both_wrong or CASES :] = 1.0
    return new, old


def test_five_answers_out_of_2048_prove_nothing_and_twenty_prove_enough() -> None:
    few, enough = _answers(5, 0), _answers(20, 0)
    ruling = _decide(*few, tolerance=0.5)
    assert ruling.verdict == "reject"
    assert "5 cases" in ruling.reasons.en
    assert _decide(*enough, tolerance=0.5).verdict == "better"


def test_errors_of_zero_and_one_are_compared_by_their_means() -> None:
    ruling = _decide(*_answers(400, 20, both_wrong=900), tolerance=0.5)
    assert ruling.method == "mean-difference"
    assert ruling.verdict == "better"
    assert ruling.ratio == pytest.approx(920 / 1300)
    assert ruling.ratio_upper is not None
    assert 920 / 1300 < ruling.ratio_upper < RATIO_MAX


def test_mostly_exact_answers_are_compared_by_their_means() -> None:
    draw = np.random.default_rng(3)
    old = np.where(draw.random(CASES) < 0.12, draw.exponential(0.01, CASES), 0.0)
    new = np.where(draw.random(CASES) < 0.5, old, 0.0)
    ruling = _decide(new, old, tolerance=1e-5)
    assert ruling.method == "mean-difference"
    assert ruling.verdict == "better"
    assert _decide(old, new, tolerance=1e-5).verdict == "reject"


def test_nothing_is_better_than_a_perfect_champion() -> None:
    perfect = np.zeros(CASES)
    ruling = _decide(perfect, perfect)
    assert ruling.verdict == "reject"
    assert ruling.ratio is None
    assert _decide(*_answers(0, 3)).verdict == "reject"


def test_the_same_errors_are_no_improvement() -> None:
    new, _ = _pair(1)
    ruling = _decide(new, new)
    assert ruling.verdict == "reject"
    assert ruling.ratio == 1.0


def test_a_better_ratio_with_a_worse_mean_is_rejected() -> None:
    new, old = _pair(2, factor=0.5)
    new[:40] = 40.0
    ruling = _decide(new, old)
    assert ruling.ratio_upper is not None
    assert ruling.ratio_upper < RATIO_MAX
    assert ruling.verdict == "reject"
    assert "mean error may be higher" in ruling.reasons.en
    assert ruling.reasons.en.startswith("Better than the champion case by case, but not surely in")


def test_a_lower_error_with_less_evidence_is_rejected() -> None:
    old = np.full(CASES, 0.019)
    old[: CASES // 2] = 1.0
    new = np.full(CASES, 0.021)
    new[: CASES // 2] = 0.1
    ruling = _decide(new, old)
    assert ruling.verdict == "reject"
    assert "evidence rate" in ruling.reasons.en
    assert ruling.evidence_lower is not None
    assert ruling.evidence_lower < -0.45


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_an_error_that_is_no_number_loses_and_is_told(wrong: float) -> None:
    new, old = _pair(4, factor=0.1)
    new[5] = wrong
    ruling = _decide(new, old)
    assert ruling.verdict == "reject"
    assert ruling.error is None
    assert "on 1 of 2,048 hidden cases" in ruling.reasons.en


def test_enormous_errors_overflow_nothing() -> None:
    new, old = _pair(4)
    assert _decide(np.full(CASES, 1.7e308), old).verdict == "reject"
    assert _decide(new, np.full(CASES, 1.7e308)).verdict == "better"


def test_the_first_champion_is_tested_against_the_trivial_predictor() -> None:
    new, trivial = _pair(9, factor=0.3)
    ruling = gate.decide(new, trivial, tolerance=0.02, look=1, against="trivial")
    assert ruling.verdict == "better"
    assert ruling.reasons.en.startswith("Better than the trivial predictor. On 2,048 hidden cases")
    assert "المتنبئ البديهي" in ruling.reasons.ar


def test_reasons_carry_the_measured_numbers_in_both_languages() -> None:
    for factor in (0.7, 1.0):
        new, old = _pair(10, factor)
        ruling = _decide(new, old)
        for words in (ruling.reasons.ar, ruling.reasons.en):
            assert f"{ruling.error:.4g}" in words
            assert f"{ruling.ratio_upper:.4g}" in words
            assert words.endswith(".")
        assert ARABIC.search(ruling.reasons.ar)
        assert not ARABIC.search(ruling.reasons.en)


def test_what_is_surely_worse_is_called_so_and_told_by_how_much() -> None:
    new, old = _pair(10, factor=12.7)
    ruling = _decide(new, old)
    assert ruling.standing == "higher"
    assert ruling.reasons.en.startswith("Surely worse than the champion. On 2,048 hidden cases")
    assert ruling.reasons.ar.startswith("أسوأ من البطل يقينًا. ")
    assert ruling.ratio is not None
    assert ruling.ratio_lower is not None
    assert 1.0 < ruling.ratio_lower < ruling.ratio
    assert f"surely above {ruling.ratio_lower:.4g}" in ruling.reasons.en
    assert "mean error may be" not in ruling.reasons.en


def test_what_cannot_be_told_apart_is_not_called_worse() -> None:
    ruling = _decide(*_pair(10))
    assert ruling.standing == "open"
    assert "the two cannot be told apart yet" in ruling.reasons.en
    assert "لا يمكن التمييز بينهما بعد" in ruling.reasons.ar
    few = _decide(*_answers(0, 5), tolerance=0.5)
    assert few.standing == "open"
    assert _decide(*_answers(5, 40), tolerance=0.5).standing == "higher"


def test_equal_models_are_called_worse_in_at_most_five_percent_of_trials() -> None:
    draw = np.random.default_rng(13)
    hardness = _hardness(draw, 300)
    new, old = _errors(draw, hardness), _errors(draw, hardness)
    told = [paired.standing(*pair, gate.alpha_at(1)) for pair in zip(new.T, old.T, strict=True)]
    assert told.count("higher") / len(told) <= 0.05


def test_lower_case_by_case_and_higher_in_the_mean_is_neither_lower_nor_higher() -> None:
    new, old = _pair(2, factor=0.5)
    new[:40] = 40.0
    assert paired.standing(new, old, 0.01) == "open"
    assert paired.standing(old, new, 0.01) == "open"


def test_a_lower_error_that_is_not_low_enough_is_told_apart_from_one_that_is_not_lower() -> None:
    _, old = _pair(3)
    ruling = _decide(old * 0.995, old)
    assert (ruling.verdict, ruling.standing) == ("reject", "lower")
    assert ruling.reasons.en.startswith(
        "Better than the champion, but not surely by as much as is asked."
    )


def test_no_ratio_is_below_zero_and_no_figure_is_minus_zero() -> None:
    old = _constant(1.0)
    assert _decide(_constant(0.0), old).ratio_upper == 0.0
    loose = gate.decide(old, old, tolerance=1.0, look=1, gates=Gates(evidence_drop=0.0))
    numbers = [getattr(one, end) for one in loose.checks for end in ("value", "bound", "lower")]
    assert "-0" not in [f"{one:.6g}" for one in numbers if one is not None]


def _constant(value: float) -> Floats:
    return np.full(CASES, value)


def _one_case_apart() -> Floats:
    errors = _constant(0.0)
    errors[0] = 0.04
    return errors


@pytest.mark.parametrize(
    ("new", "old", "look", "said"),
    [
        (_constant(0.0), _constant(0.0), 1, "neither this candidate nor the champion makes an"),
        (_constant(0.5), _constant(0.5), 1, "exactly those of the champion (mean error 0.5)"),
        (_one_case_apart(), _constant(0.0), 1, "makes no error, and this candidate's mean error"),
        (_constant(0.0), _one_case_apart(), 9, "The two differ on 1 case only"),
        (_constant(0.0), _constant(0.5), 1, "this candidate makes no error, and the mean error of"),
        (_constant(1e-8), _constant(1.0), 1, "is less than 0.001 times that of the champion"),
        (_constant(1.0), _constant(1e-8), 1, "is more than 1,000 times that of the champion"),
        (_constant(1.7e308), _one_case_apart() * 1e-300, 1, "The ratio is surely above 1,000."),
    ],
)
def test_errors_of_zero_equal_ones_and_extreme_ratios_are_told_in_plain_words(
    new: Floats, old: Floats, look: int, said: str
) -> None:
    reasons = _decide(new, old, look=look).reasons
    assert said in reasons.en
    for words in (reasons.en, reasons.ar):
        assert "—" not in words
        assert not re.search(r"inf|nan|None", words)
