"""The exact multiplier, held against solvers that know no Fourier modes."""

import itertools
import math

import pytest
import torch

from agent.specialists import advection, base, operators, registry
from agent.specialists.advection import LearnedMultiplier
from agent.specialists.operators import POINTS
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged

EIGHTH_ORDER_FIRST = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
EIGHTH_ORDER_SECOND = (8 / 5, -1 / 5, 8 / 315, -1 / 560)
BOUNDS = workloads.KINDS["math-physics"].parameters
EXTREMES = [
    dict(zip(BOUNDS, corner, strict=True))
    for corner in itertools.product(*((each.least, each.most) for each in BOUNDS.values()))
]


class Law(torch.nn.Module):
    """The logarithm of decay or turn as the equation has it."""

    def __init__(self, *, is_decay: bool) -> None:
        super().__init__()
        self._is_decay = is_decay

    def forward(self, known: torch.Tensor) -> torch.Tensor:
        wave = known[..., -1:] + advection.ORDINARY_WAVE + math.log(2 * math.pi)
        return (known[..., :1] - 2) * math.log(10) + 2 * wave if self._is_decay else wave


def _numbers(cases: base.Cases) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = cases["inputs"]
    return inputs[:, 0], operators.viscosity_of(inputs), inputs[:, 2, :1]


def _solved_in_space(cases: base.Cases) -> torch.Tensor:
    """exp(nu D2 - v D1) u_0 with differences of eighth order (Fornberg 1988) on the points."""
    fields, viscosity, speed = _numbers(cases)
    here = torch.eye(POINTS, dtype=torch.float64)
    first, second = torch.zeros_like(here), -205 / 72 * here
    for away, (one, two) in enumerate(
        zip(EIGHTH_ORDER_FIRST, EIGHTH_ORDER_SECOND, strict=True), start=1
    ):
        ahead, behind = here.roll(away, 1), here.roll(-away, 1)
        first, second = first + one * (ahead - behind), second + two * (ahead + behind)
    change = viscosity[:, :, None] * POINTS**2 * second - speed[:, :, None] * POINTS * first
    return (torch.matrix_exp(change) @ fields[:, :, None]).squeeze(2)


def _by_the_formula(cases: base.Cases, waves: int) -> torch.Tensor:
    """Each wave found by least squares, shrunk by exp(-nu k^2), and read at x - v."""
    fields, viscosity, speed = _numbers(cases)
    wave = 2 * math.pi * torch.arange(1, waves + 1, dtype=torch.float64)
    x = torch.arange(POINTS, dtype=torch.float64) / POINTS

    def waves_at(x: torch.Tensor) -> torch.Tensor:
        angle = x.unsqueeze(-1) * wave
        return torch.cat((angle.sin(), angle.cos()), -1)

    size = torch.linalg.lstsq(waves_at(x), fields.T).solution.T
    shrunk = size * torch.exp(-viscosity * wave.square()).repeat(1, 2)
    found: torch.Tensor = (waves_at(x - speed) @ shrunk.unsqueeze(2)).squeeze(2)
    return found


def test_the_truth_is_what_differences_of_eighth_order_find() -> None:
    cases = registry.get("math-physics").cases(9, 12)
    found = operators.relative_l2(_solved_in_space(cases), cases["truth"])
    assert float(found.max()) < 1e-4


@pytest.mark.parametrize("parameters", EXTREMES)
def test_the_truth_holds_at_every_extreme_of_the_parameters(parameters: dict[str, float]) -> None:
    one = registry.get("math-physics", parameters)
    cases = one.cases(9, 200)
    _, viscosity, speed = _numbers(cases)
    least = parameters["viscosity_least"]
    assert bool((viscosity >= least * (1 - 1e-9)).all())
    assert bool((viscosity <= least * parameters["viscosity_ratio"] * (1 + 1e-9)).all())
    assert bool((speed.abs() <= parameters["speed_max"]).all())
    wanted = _by_the_formula(cases, int(parameters["waves"]))
    assert torch.allclose(cases["truth"], wanted, rtol=0, atol=1e-12)
    for found in one.baseline_errors(cases).values():
        assert bool(found.isfinite().all())
    trivial = one.baseline_errors(cases)["trivial"]
    assert torch.allclose(trivial, torch.ones_like(trivial), rtol=1e-12)


def test_another_end_is_another_viscosity_and_speed() -> None:
    fields = operators.draw_fields(torch.Generator().manual_seed(1), 5, 6)
    once = advection.carry(
        operators.diffuse(fields, fields.new_tensor([[0.02]])), 2 * fields[:, :1]
    )
    twice = fields
    for _ in range(2):
        twice = operators.diffuse(twice, fields.new_tensor([[0.01]]))
        twice = advection.carry(twice, fields[:, :1])
    assert torch.allclose(once, twice, rtol=0, atol=1e-12)


def test_training_batches_are_such_cases_in_float32() -> None:
    batch = registry.get("math-physics").train_batch(1, 0)
    assert {tensor.dtype for tensor in batch.values()} == {torch.float32}
    cases = {name: tensor.double() for name, tensor in batch.items()}
    assert torch.allclose(_by_the_formula(cases, 6), cases["truth"], rtol=0, atol=1e-5)


def test_baselines_err_as_documented() -> None:
    one = registry.get("math-physics")
    found = one.baseline_errors(one.cases(1, 4_096))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means["transport alone"] == pytest.approx(0.94, rel=0.1)
    assert means["diffusion alone"] == pytest.approx(0.93, rel=0.03)
    assert means["finite differences"] == pytest.approx(0.0031, rel=0.05)


def test_finite_differences_are_those_of_the_second_order() -> None:
    one = registry.get("math-physics")
    cases = one.cases(3, 4)
    fields, viscosity, speed = _numbers(cases)
    here = torch.eye(POINTS, dtype=torch.float64)
    ahead, behind = here.roll(1, 1), here.roll(-1, 1)
    change = viscosity[:, :, None] * POINTS**2 * (ahead - 2 * here + behind)
    change = change - speed[:, :, None] * POINTS / 2 * (ahead - behind)
    wanted = (torch.matrix_exp(change) @ fields[:, :, None]).squeeze(2)
    found = one.baseline_errors(cases)["finite differences"]
    assert torch.allclose(found, operators.relative_l2(wanted, cases["truth"]), rtol=1e-6)


def test_the_multiplier_that_has_learned_the_law_is_exact() -> None:
    module = LearnedMultiplier(width=4)
    module.decay = Law(is_decay=True)  # type: ignore[assignment]
    module.turn = Law(is_decay=False)  # type: ignore[assignment]
    one = registry.get("math-physics")
    assert float(one.errors(module, one.cases(9, 2_000)).median()) < 1e-5
    assert float(one.loss(module, one.train_batch(9, 0))) < 1e-4
