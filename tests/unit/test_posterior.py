"""The posterior's truth, the quadrature behind its error, and what needs no learning."""

import math

import pytest
import torch
from torch.distributions import Distribution, Gamma, Normal, StudentT

from agent.specialists import base, posterior, registry
from agent.specialists.posterior import PRIOR_RATE, Posterior, SufficientStatistics

torch.set_num_threads(1)  # as where models are trained and judged

MANY, FEW = 20_000, 4_000
EXTREMES = pytest.mark.parametrize(
    ("freedom", "weight", "readings_max"),
    [(6, 1.0, 24), (3, 0.1, 3), (3, 10.0, 96), (40, 0.1, 96), (40, 10.0, 3)],
)


def _relative(freedom: int = 6, weight: float = 1.0, readings_max: int = 24) -> Posterior:
    names = ("prior_freedom", "prior_weight", "readings_max")
    values = (float(freedom), weight, float(readings_max))
    one = registry.get("math-statistics", dict(zip(names, values, strict=True)))
    assert isinstance(one, Posterior)
    return one


def _t(parameters: torch.Tensor) -> StudentT:
    """The distribution of (location, log scale, freedom) [3]."""
    location, log_scale, freedom = parameters
    return StudentT(freedom, location, log_scale.exp())


def _log_density(of: Distribution, x: torch.Tensor) -> torch.Tensor:
    density: torch.Tensor = of.log_prob(x)
    return density


class Exact(torch.nn.Module):
    """Says the truth."""

    def forward(self, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        said = posterior.exact(y.double(), mask.double(), 6, 1.0)
        return torch.cat((said[:, :2], (said[:, 2:] - 2).log()), 1).float()


class ExactNumbers(torch.nn.Module):
    """The three numbers for which SufficientStatistics is exact, from what it sees."""

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        log_n, log_squares, log_mean = seen.double().unbind(1)
        n, squares, square_of_mean = log_n.exp(), log_squares.expm1(), log_mean.expm1()
        rate = PRIOR_RATE + squares / 2 + n * square_of_mean / (2 * (1 + n))
        log_scale = (rate / ((3 + n / 2) * (1 + n))).log() / 2
        return torch.stack((log_n, log_scale, (4 + n).log()), 1).float()


@EXTREMES
def test_the_truth_is_bayes_rule_summed_over_a_grid_of_means_and_spreads(
    freedom: int, weight: float, readings_max: int
) -> None:
    cases = _relative(freedom, weight, readings_max).cases(5, 4)
    log_tau = torch.linspace(-12, 8, 301, dtype=torch.float64)[:, None]
    spread = torch.exp(-log_tau / 2)
    belief = _log_density(Gamma(freedom / 2, PRIOR_RATE), log_tau.exp()) + log_tau
    for y, mask, truth in zip(cases["y"], cases["mask"], cases["exact"], strict=True):
        mu = truth[0] + truth[1].exp() * torch.linspace(-40, 40, 801, dtype=torch.float64)
        joint = belief + _log_density(Normal(0.0, spread / math.sqrt(weight)), mu)
        for reading in y[mask.bool()]:
            joint += _log_density(Normal(mu, spread), reading)
        found = joint.logsumexp(0).softmax(0) / (mu[1] - mu[0])
        # Beyond 40 scales, a t of 5 degrees of freedom keeps some 1e-7.
        wanted = _log_density(_t(truth), mu).exp()
        assert torch.allclose(found, wanted, rtol=1e-5, atol=0)


@EXTREMES
def test_the_error_is_the_kl_divergence_in_nats(
    freedom: int, weight: float, readings_max: int
) -> None:
    cases = _relative(freedom, weight, readings_max).cases(5, 24)
    draw = torch.Generator().manual_seed(1)
    truth = cases["exact"]
    said = truth + torch.randn(truth.shape, generator=draw, dtype=torch.float64) * torch.tensor(
        [0.3, 0.5, 0.8]
    )
    found = posterior.divergence(truth, said, posterior.ERROR_POINTS)
    coarse = posterior.divergence(truth.float(), said.float(), posterior.LOSS_POINTS)
    for exact, model, error, loss in zip(truth, said, found, coarse, strict=True):
        # Simpson's rule in u, x = location + scale sinh(u): another way than the angles.
        u = torch.linspace(-14, 14, 8_001, dtype=torch.float64)
        x = exact[0] + exact[1].exp() * u.sinh()
        density = _log_density(_t(exact), x)
        gap = density.exp() * (density - _log_density(_t(model), x)) * exact[1].exp() * u.cosh()
        wanted = (gap[:-1:2] + 4 * gap[1::2] + gap[2::2]).sum() * (u[1] - u[0]) / 3
        assert float(error) == pytest.approx(float(wanted), abs=3e-6)
        assert float(loss) == pytest.approx(float(wanted), rel=0.01, abs=3e-5)


def test_the_truth_has_no_error_and_no_loss() -> None:
    one = _relative()
    assert float(one.errors(Exact(), one.cases(9, 500)).max()) < 1e-9
    assert abs(float(one.loss(Exact(), one.train_batch(9, 0)))) < 1e-5


@EXTREMES
def test_the_trivial_error_is_the_mean_gain_from_the_prior(
    freedom: int, weight: float, readings_max: int
) -> None:
    one = _relative(freedom, weight, readings_max)
    found = one.baseline_errors(one.cases(4, FEW))["trivial"]
    spread = float(found.std()) / math.sqrt(FEW)
    assert abs(float(found.mean()) - one.trivial_error) < 4 * spread


def test_the_trivial_and_the_classical_answer_err_as_documented() -> None:
    one = _relative()
    assert one.trivial_error == pytest.approx(1.300, abs=0.001)
    classical = one.baseline_errors(one.cases(4, MANY))["classical t"]
    assert float(classical.mean()) == pytest.approx(0.105, rel=0.05)


def test_the_classical_answer_is_the_posterior_without_a_prior() -> None:
    one = _relative()
    cases = one.cases(4, 200)
    y = [y[mask.bool()] for y, mask in zip(cases["y"], cases["mask"], strict=True)]
    said = torch.stack(
        [
            torch.stack(
                (read.mean(), (read.var() / len(read)).log() / 2, torch.tensor(len(read)) - 1)
            )
            for read in y
        ]
    )
    wanted = posterior.divergence(cases["exact"], said, posterior.ERROR_POINTS)
    assert torch.allclose(one.baseline_errors(cases)["classical t"], wanted, rtol=1e-9)


@EXTREMES
def test_readings_are_as_documented(freedom: int, weight: float, readings_max: int) -> None:
    cases = _relative(freedom, weight, readings_max).cases(3, MANY)
    n = cases["mask"].sum(1)
    assert (float(n.min()), float(n.max())) == (2, readings_max)
    assert float(n.mean()) == pytest.approx(1 + readings_max / 2, rel=0.02)
    assert bool((cases["y"][cases["mask"] == 0] == 0).all())
    # Whatever comes first is t-distributed: mu and the reading's own noise, both of one spread.
    scale = math.sqrt(PRIOR_RATE / (freedom / 2) * (1 + 1 / weight))
    first, second = cases["y"][:, 0] / scale, cases["y"][:, 1] / scale
    draw = torch.Generator().manual_seed(1)
    normals = torch.randn(MANY, 1 + freedom, generator=draw, dtype=torch.float64)
    t = normals[:, 0] / normals[:, 1:].square().mean(1).sqrt()
    for share in (0.1, 0.25, 0.75, 0.9):
        assert float(first.quantile(share)) == pytest.approx(float(t.quantile(share)), abs=0.06)
    together = (first.sign() * second.sign()).mean()
    # Of two jointly t (or normal) variables: 2 / pi asin(correlation).
    assert float(together) == pytest.approx(2 / math.pi * math.asin(1 / (1 + weight)), abs=0.03)


@pytest.mark.parametrize("family", ["deep-sets", "sufficient-statistics"])
def test_neither_order_nor_empty_places_matter(family: str) -> None:
    one = _relative()
    torch.manual_seed(3)
    module = one.build(base.Config(family=family, sizes={"width": 16}))
    cases = one.cases(3, 50)
    y, mask = cases["y"].float(), cases["mask"].float()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    said = module(y, mask)
    assert torch.allclose(module(y[:, order], mask[:, order]), said, atol=1e-5)
    empty = torch.zeros(50, 8)
    longer = module(torch.cat((y, empty), 1), torch.cat((mask, empty), 1))
    assert torch.allclose(longer, said, atol=1e-5)


def test_three_numbers_from_sufficient_statistics_can_be_exact() -> None:
    module = SufficientStatistics(width=4)
    module.numbers = ExactNumbers()  # type: ignore[assignment]
    one = _relative()
    assert float(one.errors(module, one.cases(9, 2_000)).max()) < 1e-8
