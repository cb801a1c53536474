"""The Kalman truth, what is said without a filter, and what the closed form can represent."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from agent.specialists import base, filtering
from agent.specialists.filtering import READINGS, Filter, Filtering, LearnedGain, Ranges
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged

MANY = 20_000
GRID = 40
LIMITS = torch.tensor([[0.02, 0.1], [1.0, 2.0]], dtype=torch.float64).log()
"""Least and most of (log q, log R)."""
PARAMETERS = workloads.KINDS["stats-bayesian"].parameters
EXTREMES = [
    dict(zip(PARAMETERS, values, strict=True))
    for values in itertools.product(*((each.least, each.most) for each in PARAMETERS.values()))
]
extremes = pytest.mark.parametrize("parameters", EXTREMES, ids=str)
Spread = Callable[[float, torch.Tensor], torch.Tensor]
"""Gain and scales to the standard deviation that is said."""


class Kalman(Filter):
    """Says the truth after each of the last `moments` readings."""

    def __init__(self, moments: int = READINGS) -> None:
        super().__init__()
        self._moments = moments

    def posteriors(self, readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        mean, sd = filtering.kalman(readings.double(), scales.double())
        return torch.stack((mean, sd.log()), 2)[:, -self._moments :].float()


class ExactNumbers(torch.nn.Module):
    """The three numbers for which LearnedGain is the exact filter.

    A weight depends on its age as r^age + c r^(62 - age), where r + 1/r = 2 + (q/R)^2; c follows
    from the belief before the first reading: weight(31) = (1 + q^2) weight(32).
    """

    def forward(self, scales: torch.Tensor) -> torch.Tensor:
        q, noise = scales.double().exp().unbind(1)
        half = 1 + (q / noise).square() / 2
        r = half - torch.sqrt(half.square() - 1)
        start = ((1 + q.square()) * r - 1) / (1 - (1 + q.square()) / r)
        gain = (_last_sd(scales.double()) / noise).square()
        return torch.stack((gain.logit(), r.logit(), start.atanh()), 1).float()


def _covariances(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the states 1..32, and of their readings: Cov(state_s, state_t) = 1 + q^2 min(s, t)."""
    drift, noise = torch.exp(2 * scales)[:, :, None, None].unbind(1)
    times = torch.arange(1, READINGS + 1, dtype=torch.float64)
    states = 1 + drift * torch.minimum(times[:, None], times[None, :])
    return states, states + noise * torch.eye(READINGS, dtype=torch.float64)


def _smooth(gain: float, readings: torch.Tensor) -> torch.Tensor:
    """Exponential smoothing from 0, step by step."""
    mean = torch.zeros_like(readings[:, 0])
    for reading in readings.unbind(1):
        mean = (1 - gain) * mean + gain * reading
    return mean


def _kl(cases: base.Cases, mean: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    exact = Normal(cases["mean"], cases["sd"])
    found: torch.Tensor = kl_divergence(exact, Normal(mean, sd))
    return found


def _steady_spread(gain: float, scales: torch.Tensor) -> torch.Tensor:
    return scales[:, 1].exp() * math.sqrt(gain)


def _exact_spread(gain: float, scales: torch.Tensor) -> torch.Tensor:
    """sd of state_32 - weights . readings, from the joint covariance."""
    states, readings = _covariances(scales)
    weights = gain * (1 - gain) ** torch.arange(READINGS - 1, -1, -1, dtype=torch.float64)
    variance = states[:, -1, -1] - 2 * states[:, -1] @ weights + readings @ weights @ weights
    sd: torch.Tensor = variance.sqrt()
    return sd


def _grid() -> torch.Tensor:
    """(log q, log R) at the midpoints of a grid over their ranges, all of the same weight."""
    share = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    low, high = LIMITS[0], LIMITS[1]
    return low + (high - low) * torch.cartesian_prod(share, share)


def _last_sd(scales: torch.Tensor) -> torch.Tensor:
    """The exact posterior's spread, which does not depend on the readings."""
    nothing = torch.zeros(len(scales), READINGS, dtype=torch.float64)
    return filtering.kalman(nothing, scales)[1][:, -1]


def _expected(gain: float, spread: Spread) -> float:
    """Mean KL of a smoother, by quadrature instead of samples: their luck is 3 % at 1,000 cases.

    What the smoother and the exact mean differ by is independent of what the exact mean misses,
    so E (mean - smoothed)^2 = E (state - smoothed)^2 - sd^2.
    """
    scales = _grid()
    said = spread(gain, scales)
    missed = (_exact_spread(gain, scales) / said).square()
    return float(((said / _last_sd(scales)).log() + missed / 2 - 0.5).mean())


def test_the_truth_after_each_reading_is_the_conditional_of_the_joint_gaussian() -> None:
    cases = Filtering().cases(9, 50)
    mean, sd = filtering.kalman(cases["readings"], cases["scales"])
    states, seen = _covariances(cases["scales"])
    for count in (1, 2, 17, READINGS):
        across = states[:, count - 1, :count]
        weights = torch.linalg.solve(seen[:, :count, :count], across)
        left = states[:, count - 1, count - 1] - (weights * across).sum(1)
        told = (weights * cases["readings"][:, :count]).sum(1)
        assert torch.allclose(mean[:, count - 1], told, rtol=0, atol=1e-9)
        assert torch.allclose(sd[:, count - 1].square(), left, rtol=1e-8, atol=0)


def test_cases_and_batches_carry_that_truth() -> None:
    cases, batch = Filtering().cases(9, 50), Filtering().train_batch(9, 0)
    mean, sd = filtering.kalman(cases["readings"], cases["scales"])
    assert torch.equal(cases["mean"], mean[:, -1])
    assert torch.equal(cases["sd"], sd[:, -1])
    mean, sd = filtering.kalman(batch["readings"].double(), batch["scales"].double())
    assert torch.allclose(batch["mean"].double(), mean, atol=1e-5)
    assert torch.allclose(batch["sd"].double(), sd, rtol=1e-5)


def test_scales_are_log_uniform_in_their_ranges() -> None:
    scales = Filtering().cases(4, MANY)["scales"]
    low, high = LIMITS
    share = (scales - low) / (high - low)
    assert bool(((share >= 0) & (share <= 1)).all())
    for part in (0.1, 0.5, 0.9):
        below = (share < part).double().mean(0)
        assert torch.allclose(below, torch.full_like(below, part), atol=0.012)


def test_readings_have_the_covariance_of_a_walk_seen_through_noise() -> None:
    cases = Filtering().cases(4, 4_000)
    _, seen = _covariances(cases["scales"])
    factor = torch.linalg.cholesky(seen)
    white = torch.linalg.solve_triangular(factor, cases["readings"][:, :, None], upper=False)
    white = white.squeeze(2)
    together = white.T @ white / len(white)
    assert float((together - torch.eye(READINGS)).abs().max()) < 0.1
    assert float(white.mean(0).abs().max()) < 0.07


def test_the_truth_has_no_error_and_no_loss() -> None:
    one = Filtering()
    assert float(one.errors(Kalman(), one.cases(9, 500)).max()) < 1e-5
    for moments in (1, READINGS):
        assert float(one.loss(Kalman(moments), one.train_batch(9, 0))) < 1e-5


def test_the_error_is_the_kl_divergence_in_nats() -> None:
    one = Filtering()
    torch.manual_seed(3)
    module = one.build(one.families("reinventor")[0])
    cases = one.cases(9, 500)
    said = module(cases["readings"].float(), cases["scales"].float()).double()
    wanted = _kl(cases, said[:, 0], said[:, 1].exp())
    assert torch.allclose(one.errors(module, cases), wanted, rtol=1e-9, atol=1e-12)


FIXED_GAINS = pytest.mark.parametrize(
    ("name", "gain", "spread", "documented"),
    [
        ("fixed gain", filtering.FIXED_GAIN, _steady_spread, 0.57),
        ("fixed gain, exact spread", filtering.FIXED_GAIN_EXACT_SPREAD, _exact_spread, 0.39),
    ],
)


@FIXED_GAINS
def test_the_fixed_gain_is_the_best_to_two_digits_and_errs_as_documented(
    name: str, gain: float, spread: Spread, documented: float
) -> None:
    best = _expected(gain, spread)
    assert best == pytest.approx(documented, abs=0.005)
    for other in (gain - 0.1, gain - 0.01, gain + 0.01, gain + 0.1):
        assert _expected(other, spread) > best


@FIXED_GAINS
def test_the_baseline_is_that_smoother_with_that_spread(
    name: str, gain: float, spread: Spread, documented: float
) -> None:
    cases = Filtering().cases(4, 500)
    wanted = _kl(cases, _smooth(gain, cases["readings"]), spread(gain, cases["scales"]))
    found = Filtering().baseline_errors(cases)[name]
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_prior_errs_as_documented() -> None:
    scales = _grid()
    # KL(N(m, sd^2) || N(0, 1)), where the mean of m^2 is 1 + 32 q^2 - sd^2.
    expected = READINGS / 2 * torch.exp(2 * scales[:, 0]) - _last_sd(scales).log()
    assert float(expected.mean()) == pytest.approx(Filtering.trivial_error, rel=0.01)


def test_three_numbers_put_into_the_closed_form_are_the_exact_filter() -> None:
    module = LearnedGain(width=4)
    module.numbers = ExactNumbers()  # type: ignore[assignment]
    assert float(Filtering().errors(module, Filtering().cases(9, 4_000)).max()) < 1e-4


@pytest.mark.parametrize("family", ["gru", "gain-gru"])
def test_a_recurrent_filter_says_nothing_of_a_moment_that_rests_on_later_readings(
    family: str,
) -> None:
    torch.manual_seed(3)
    module = Filtering().build(base.Config(family=family, sizes={"width": 8}))
    assert isinstance(module, filtering.Gru)
    torch.nn.init.normal_(module.head.weight)
    batch = Filtering().train_batch(1, 0)
    later = batch["readings"].clone()
    later[:, 20:] += 5
    told, retold = (module.posteriors(seen, batch["scales"]) for seen in (batch["readings"], later))
    assert torch.allclose(told[:, :20], retold[:, :20], atol=1e-6)
    assert not torch.allclose(told[:, 20:], retold[:, 20:], atol=1e-2)


def test_the_cases_of_the_defaults_are_those_of_the_first_version() -> None:
    one = Filtering()
    batch, cases, hidden = one.train_batch(5, 7), one.cases(3, 50), one.cases(3, 50, "hidden")
    marks = {
        16.537421807: batch["readings"],
        -13.902642517: cases["readings"],
        4.188464621: cases["scales"],
        -2.231278532: cases["mean"],
        -18.938021341: hidden["readings"],
        -1.333817056: hidden["sd"],
    }
    for mark, tensor in marks.items():
        ramp = torch.arange(tensor.numel(), dtype=torch.float64).cos()
        assert float(tensor.double().flatten() @ ramp) == pytest.approx(mark, abs=1e-5)
    assert {name: each.default for name, each in PARAMETERS.items()} == Ranges()._asdict()


@extremes
def test_the_truth_of_relatives_is_the_conditional_of_the_joint_gaussian(
    parameters: dict[str, float],
) -> None:
    cases = Filtering(**parameters).cases(9, 50)
    limits = torch.tensor([*parameters.values()], dtype=torch.float64).view(2, 2).log()
    share = (cases["scales"] - limits[:, 0]) / (limits[:, 1] - limits[:, 0])
    assert bool(((share >= 0) & (share <= 1)).all())
    states, seen = _covariances(cases["scales"])
    with_last = states[:, -1]
    solved = torch.linalg.solve(seen, with_last)
    mean = (solved * cases["readings"]).sum(1)
    variance = states[:, -1, -1] - (solved * with_last).sum(1)
    assert torch.allclose(cases["mean"], mean, rtol=1e-6, atol=1e-8)
    assert torch.allclose(cases["sd"].square(), variance, rtol=1e-6, atol=1e-9)


@extremes
def test_the_trivial_error_of_relatives_is_expected_of_the_prior(
    parameters: dict[str, float],
) -> None:
    one = Filtering(**parameters)
    cases = one.cases(9, 4_000)
    # Given q and R, what is expected of mean^2 is 1 + 32 q^2 - sd^2; the rest is luck.
    drift = torch.exp(2 * cases["scales"][:, 0])
    expected = READINGS / 2 * drift - cases["sd"].log()
    slack = 5 * float(expected.std()) / math.sqrt(4_000)
    assert one.trivial_error == pytest.approx(float(expected.mean()), rel=0.01, abs=slack)


@extremes
def test_relatives_have_fixed_gains_of_their_own_that_are_the_best(
    parameters: dict[str, float],
) -> None:
    one = Filtering(**parameters)
    cases = one.cases(9, 2_000)
    gains = filtering.fixed_gains(Ranges(**parameters))
    found = one.baseline_errors(cases)
    for name, gain, spread in (
        ("fixed gain", gains.steady, _steady_spread),
        ("fixed gain, exact spread", gains.exact_spread, _exact_spread),
    ):
        missed = [
            float(_missed(each, spread, cases["scales"]))
            for each in (gain, gain - 0.15, gain + 0.15)
            if 0 < each < 1
        ]
        assert missed[0] == min(missed)
        assert float(found[name].mean()) < one.trivial_error
        assert float(found[name].mean()) == pytest.approx(missed[0], rel=0.2)


def _missed(gain: float, spread: Spread, scales: torch.Tensor) -> torch.Tensor:
    """Expected KL of a smoother at these scales, as in `_expected`."""
    said = spread(gain, scales)
    missed = (_exact_spread(gain, scales) / said).square()
    return ((said / _last_sd(scales)).log() + missed / 2 - 0.5).mean()


@extremes
def test_the_closed_form_holds_for_relatives(parameters: dict[str, float]) -> None:
    module = LearnedGain(width=4)
    module.numbers = ExactNumbers()  # type: ignore[assignment]
    one = Filtering(**parameters)
    assert float(one.errors(module, one.cases(9, 1_000)).max()) < 1e-2
