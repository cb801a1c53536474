"""Random kernels, what is known of a future, and the smoothers that a grid fits at once."""

import itertools
import math
from typing import cast

import pytest
import torch

from agent.specialists import base, forecasting, registry, seeds
from agent.specialists.base import Config
from agent.specialists.forecasting import HISTORY, Forecasting, Process, Terms
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged

PARAMETERS = workloads.KINDS["stats-time-series"].parameters
EXTREMES = [
    dict(zip(PARAMETERS, values, strict=True))
    for values in itertools.product(*((each.least, each.most) for each in PARAMETERS.values()))
]
extremes = pytest.mark.parametrize("parameters", EXTREMES, ids=str)
corners = pytest.mark.parametrize("parameters", EXTREMES[::5], ids=str)
"""Each parameter at its least and at its most, twice."""


class Says(torch.nn.Module):
    """Says these quantiles whatever the history."""

    def __init__(self, said: torch.Tensor) -> None:
        super().__init__()
        self._said = said

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        return self._said


def _one(**parameters: float) -> Forecasting:
    return cast(Forecasting, registry.get("stats-time-series", parameters))


def _process(parameters: dict[str, float]) -> Process:
    numbers = {name: PARAMETERS[name].default for name in PARAMETERS} | parameters
    season, horizon = int(numbers["season"]), int(numbers["horizon"])
    return Process(season, horizon, numbers["products"], numbers["noise"])


def _terms(count: int, **parameters: float) -> Terms:
    return forecasting.draw_terms(seeds.generator("a test"), count, _process(parameters))


def _kernel(terms: Terms, one: int, months: int) -> torch.Tensor:
    """The covariance of one kernel, entry by entry as the class says it."""
    kind, period, width, reach, power, centre, is_there, is_joined = (
        each[one].tolist() for each in terms[:-1]
    )
    length = [math.sqrt(sum((s - c) ** 2 for s in range(months)) / months) for c in centre]

    def term(at: int, s: int, t: int) -> float:
        far = ((s - t) / reach[at]) ** 2
        match kind[at]:
            case forecasting.SEASONAL:
                turn = math.sin(math.pi * abs(s - t) / period[at])
                return math.exp(-2 * turn**2 / width[at] ** 2)
            case forecasting.SMOOTH:
                return math.exp(-far / 2)
            case forecasting.ROUGH:
                return float((1 + far / (2 * power[at])) ** -power[at])
            case forecasting.LINE:
                return float((s - centre[at]) * (t - centre[at]) / length[at] ** 2)
            case forecasting.CONSTANT:
                return 1.0
        return float(s == t)

    def value(s: int, t: int) -> float:
        summands: list[float] = []
        for at in range(forecasting.TERMS_MAX):
            if is_there[at] and is_joined[at]:
                summands[-1] *= term(at, s, t)
            elif is_there[at]:
                summands.append(term(at, s, t))
        return sum(summands)

    found = torch.tensor(
        [[value(s, t) for t in range(months)] for s in range(months)], dtype=torch.float64
    )
    return (
        found / found.diagonal().mean()
        + torch.eye(months, dtype=torch.float64) * terms.noise_sd[one] ** 2
    )


def test_covariances_are_those_of_the_kernels_as_the_class_says_them() -> None:
    terms = _terms(40, products=0.5)
    found = forecasting.covariances(terms, 30)
    for one in range(40):
        assert torch.allclose(found[one], _kernel(terms, one, 30), rtol=1e-9, atol=1e-12)


def test_terms_of_every_kind_come_as_often_as_they_should() -> None:
    terms = _terms(20_000, products=0.3)
    shares = terms.kind.flatten().bincount(minlength=6) / terms.kind.numel()
    assert shares.tolist() == pytest.approx(forecasting.TERM_SHARES, abs=0.005)
    assert float(terms.is_joined[:, 1:].double().mean()) == pytest.approx(0.3, abs=0.01)
    many = terms.is_there.sum(1).bincount(minlength=6) / 20_000
    assert many.tolist() == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2], abs=0.015)


@extremes
def test_the_future_is_the_conditional_of_the_joint_gaussian(parameters: dict[str, float]) -> None:
    process = _process(parameters)
    terms = forecasting.draw_terms(seeds.generator("a test"), 100, process)
    covariance = forecasting.covariances(terms, HISTORY + process.horizon)
    assert float(torch.linalg.eigvalsh(covariance).min()) > 0.9 * forecasting.NOISE_LEAST**2
    white = torch.randn(
        100, HISTORY, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    found = forecasting.conditional(torch.linalg.cholesky(covariance), white)
    covariance = covariance.repeat_interleave(2, 0)
    past, across = covariance[:, :HISTORY, :HISTORY], covariance[:, HISTORY:, :HISTORY]
    solved = torch.linalg.solve(past, across.mT)
    mean = (found.history.unsqueeze(1) @ solved).squeeze(1)
    variance = (covariance[:, HISTORY:, HISTORY:] - across @ solved).diagonal(dim1=1, dim2=2)
    assert torch.allclose(found.mean, mean, rtol=1e-8, atol=1e-8)
    assert torch.allclose(found.sd.square(), variance, rtol=1e-8, atol=1e-8)


def test_histories_have_the_covariance_of_their_kernel() -> None:
    terms = _terms(1)
    factor = torch.linalg.cholesky(forecasting.covariances(terms, HISTORY + 12))
    draw = torch.Generator().manual_seed(1)
    white = torch.randn(1, HISTORY, 20_000, dtype=torch.float64, generator=draw)
    history = forecasting.conditional(factor, white).history
    wanted = _kernel(terms, 0, HISTORY + 12)[:HISTORY, :HISTORY]
    assert torch.allclose(history.T @ history / 20_000, wanted, atol=0.06)


def test_the_error_is_what_is_lost_against_who_knows_the_kernel() -> None:
    """By quadrature over the future, in place of the closed form."""
    one, cases = _one(), _one().cases(2, 50)
    said = cases["mean"] + 0.3 * torch.randn(
        50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    chances = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = torch.special.ndtri(chances)
    history, sd = cases["history"], cases["sd"]
    scale = (history[:, 12:] - history[:, :-12]).abs().mean(1)
    for case in range(5):
        lost = torch.stack(
            [
                (sd[case, h] * z - (said - cases["mean"])[case, h]).abs().mean()
                - (sd[case, h] * z).abs().mean()
                for h in range(12)
            ]
        ).mean()
        found = one.errors(Says(said.unsqueeze(2).expand(-1, -1, 3)), cases)[case]
        wanted = float(lost / scale[case]) / forecasting.NAIVE_EXCESS
        assert float(found) == pytest.approx(wanted, rel=1e-4)


def _truth(cases: base.Cases) -> torch.Tensor:
    deviates = torch.special.ndtri(torch.tensor(forecasting.LEVELS, dtype=cases["mean"].dtype))
    said: torch.Tensor = cases["mean"].unsqueeze(2) + cases["sd"].unsqueeze(2) * deviates
    return said


@corners
def test_the_truth_has_no_error_and_no_loss(parameters: dict[str, float]) -> None:
    one = _one(**parameters)
    cases, batch = one.cases(9, 50), one.train_batch(9, 0)
    assert float(one.errors(Says(_truth(cases)), cases).max()) < 1e-12
    assert float(one.loss(Says(_truth(batch)), batch).abs()) < 1e-5
    wrong = _truth(batch) + 0.5 * batch["sd"].unsqueeze(2)
    assert float(one.loss(Says(wrong), batch)) > 0.01


def test_the_loss_is_the_quantile_loss_beyond_the_best() -> None:
    one, batch = _one(), _one().train_batch(1, 0)
    said = _truth(batch) + 0.5 * torch.randn(128, 12, 3, generator=torch.Generator().manual_seed(1))
    chances = (torch.arange(4_000) + 0.5) / 4_000
    future = batch["mean"].unsqueeze(2) + batch["sd"].unsqueeze(2) * torch.special.ndtri(chances)

    def loss(quantiles: torch.Tensor) -> torch.Tensor:
        by_level = []
        for at, level in enumerate(forecasting.LEVELS):
            over = future - quantiles[:, :, at : at + 1]
            by_level.append(torch.maximum(level * over, (level - 1) * over).mean(2))
        history = batch["history"]
        scale = (history[:, 12:] - history[:, :-12]).abs().mean(1)
        return (torch.stack(by_level, 2) / scale[:, None, None]).mean()

    wanted = float(loss(said) - loss(_truth(batch)))
    assert float(one.loss(Says(said), batch)) == pytest.approx(wanted, rel=0.01)


def test_series_are_mixed_with_their_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a pool of unit histories, whose mixtures show their weights."""
    draw = torch.Generator().manual_seed(1)
    mean, sd = torch.randn(2, HISTORY, 12, generator=draw)
    pool = forecasting.Series(torch.eye(HISTORY), mean, sd.abs())
    monkeypatch.setattr(forecasting, "_pool", lambda process: pool)
    batches = [_one().train_batch(3, step) for step in range(20)]
    batch = {name: torch.cat([each[name] for each in batches]) for name in batches[0]}
    weights = batch["history"]
    mixed = weights.count_nonzero(1) == 2
    assert float(mixed.double().mean()) == pytest.approx(0.5, abs=0.05)
    apart = weights.square().sum(1) - 1  # not 0 where a series met itself
    assert float((apart.abs() < 1e-5).double().mean()) > 0.98
    assert float(weights.sum(1).mean()) == pytest.approx(0, abs=0.1)
    assert torch.allclose(batch["mean"], weights @ mean, atol=1e-5)
    alone = apart.abs() < 1e-5
    variance = (weights.square() @ sd.square())[alone]
    assert torch.allclose(batch["sd"][alone].square(), variance, atol=1e-5)


def test_baselines_err_as_documented() -> None:
    found = _one().baseline_errors(_one().cases(1, 4_000))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means["naive with drift"] == pytest.approx(0.79, rel=0.03)
    assert means["ets"] == pytest.approx(0.27, rel=0.05)


@pytest.mark.parametrize(("season", "horizon"), [(4, 9), (12, 12), (24, 12)])
def test_naive_forecasts_repeat_the_last_season_and_drift_by_the_season(
    season: int, horizon: int
) -> None:
    one = _one(season=season, horizon=horizon)
    time = torch.arange(HISTORY + horizon, dtype=torch.float64).repeat(3, 1)
    series = 2 * time + torch.cos(2 * math.pi * time / season)
    cases = dict(one.cases(1, 3))
    cases["history"], cases["mean"] = series[:, :HISTORY], series[:, HISTORY:]
    drifts = {name: float(each.max()) for name, each in one.baseline_errors(cases).items()}
    ahead = torch.arange(horizon) // season + 1
    cases["mean"] = series[:, HISTORY:] - 2 * season * ahead
    stays = float(one.baseline_errors(cases)["trivial"].max())
    assert drifts["trivial"] > 0.1
    assert max(stays, drifts["naive with drift"]) < 1e-12


def _smooth(
    history: torch.Tensor, gains: list[float], season: int, start: torch.Tensor, horizon: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Errors and forecasts of ETS(A,Ad,A), step by step, from (level, slope, seasonal states)."""
    alpha, beta, gamma, damping = gains
    level, slope, seasonal = start[0], start[1], list(start[2:])
    errors = []
    for seen in history:
        before = level + damping * slope
        error = seen - before - seasonal[-season]
        seasonal.append(seasonal[-season] + gamma * error)
        level, slope = before + alpha * error, damping * slope + beta * error
        errors.append(error)
    said = []
    for month in range(horizon):
        slope = damping * slope
        level = level + slope
        said.append(level + seasonal[len(history) + month % season])
    return errors, said


@pytest.mark.parametrize(("season", "horizon"), [(4, 24), (12, 12), (24, 1)])
def test_smoothers_are_the_recursion_from_its_best_start(season: int, horizon: int) -> None:
    grid = forecasting.smoothing_grid()[[5, 100, 222]]
    maps = forecasting.smoothers(grid, season, horizon)
    history = _one(season=season, horizon=horizon).cases(1, 1)["history"][0]
    for point, gains in enumerate(grid.tolist()):
        errors = torch.func.jacrev(
            lambda start, gains=gains: torch.stack(
                _smooth(history, gains, season, start, horizon)[0]
            )
        )
        start = torch.zeros(season + 2, dtype=torch.float64)
        driven = torch.stack(_smooth(history, gains, season, start, horizon)[0])
        best = torch.linalg.lstsq(errors(start), -driven[:, None], driver="gelsd").solution[:, 0]
        left, said = _smooth(history, gains, season, best, horizon)
        squares = float(torch.stack(left).square().sum())
        assert float((maps.residual[point] @ history).square().sum()) == pytest.approx(squares)
        assert torch.allclose(maps.forecast[point] @ history, torch.stack(said), atol=1e-7)


def test_a_grid_many_times_as_fine_fits_hardly_better() -> None:
    cases = _one().cases(1, 12)
    grid = forecasting.smoothing_grid()
    coarse = _least(cases["history"], grid)
    shares = torch.linspace(0.01, 0.99, 6, dtype=torch.float64)
    dampings = torch.tensor([0.8, 0.85, 0.9, 0.95, 0.98], dtype=torch.float64)
    alpha, slope, seasonal, damping = torch.cartesian_prod(
        torch.linspace(0.01, 0.99, 12, dtype=torch.float64), shares, shares, dampings
    ).unbind(1)
    fine = torch.stack((alpha, alpha * slope, (1 - alpha) * seasonal, damping), 1)
    finer = _least(cases["history"], fine)
    assert float((coarse / torch.minimum(coarse, finer)).mean()) < 1.01


def _least(history: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    residual = forecasting.smoothers(grid, 12, 12).residual
    return torch.einsum("gij,nj->gni", residual, history).square().sum(2).amin(0)


@corners
def test_relatives_err_by_1_when_they_forecast_the_last_season(
    parameters: dict[str, float],
) -> None:
    one = _one(**parameters)
    found = one.baseline_errors(one.cases(2, 1_000))
    assert float(found["trivial"].mean()) == pytest.approx(1.0, rel=0.15)
    assert float(found["ets"].mean()) < float(found["trivial"].mean())


@corners
@pytest.mark.parametrize(
    "config",
    [
        Config(family="residual-mlp", sizes={"width": 8, "blocks": 1}),
        Config(family="kernel-mixture", sizes={"kernels": 2}),
    ],
    ids=lambda config: str(config.family),
)
def test_a_forecast_keeps_level_and_scale_of_the_history(
    config: Config, parameters: dict[str, float]
) -> None:
    one = _one(**parameters)
    torch.manual_seed(3)
    module = one.build(config)
    history = one.cases(1, 20)["history"].float()
    said, moved = module(history), module(1_000 + 64 * history)
    assert said.shape == (20, parameters["horizon"], 3)
    assert torch.allclose(moved, 1_000 + 64 * said, atol=1)
    assert float(module(torch.zeros(1, HISTORY)).detach().abs().max()) < 1e-30


def test_a_mixture_of_one_kernel_forecasts_as_that_gaussian_process() -> None:
    torch.manual_seed(3)
    module = forecasting.KernelMixture(season=12, horizon=12, kernels=1)
    history = _one().cases(1, 20)["history"].float()
    covariance = module.covariances()[0].detach().double()
    past, across = covariance[:HISTORY, :HISTORY], covariance[HISTORY:, :HISTORY]
    level = history.mean(1, keepdim=True).double()
    wanted = level + (history - level) @ torch.linalg.solve(past, across.T)
    assert torch.allclose(module(history)[:, :, 1].detach().double(), wanted, atol=2e-3)


def test_a_mixture_believes_the_kernel_that_explains_the_history() -> None:
    torch.manual_seed(3)
    module = forecasting.KernelMixture(season=12, horizon=12, kernels=2)
    factor = torch.linalg.cholesky(module.covariances().detach())
    white = torch.randn(2, HISTORY + 12, 500)
    series = factor @ white
    alone = []
    for kernel in range(2):
        single = forecasting.KernelMixture(season=12, horizon=12, kernels=1)
        single.load_state_dict(
            {
                "logs": module.logs.detach()[:, kernel : kernel + 1],
                "prior": torch.zeros(1),
                "trust": torch.zeros(()),
            }
        )
        alone.append(single)
    for kernel in range(2):
        history, future = series[kernel].T.split((HISTORY, 12), 1)
        missed = [
            float((each(history)[:, :, 1] - future).abs().mean().detach())
            for each in (module, alone[kernel], alone[1 - kernel])
        ]
        assert missed[0] < 0.5 * (missed[1] + missed[2])
