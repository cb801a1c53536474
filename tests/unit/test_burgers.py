"""The Cole-Hopf truth against two other ways to it, and what can be said without it."""

import itertools
import math

import pytest
import torch

from agent.specialists import base, burgers, operators, registry
from agent.specialists.burgers import QUICKNESS, SCORE_SCALE, WeightedOrigins
from agent.specialists.operators import POINTS
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged

TIME = 0.5
BOUNDS = workloads.KINDS["physics-fluid"].parameters
EXTREMES = [
    dict(zip(BOUNDS, corner, strict=True))
    for corner in itertools.product(*((each.least, each.most) for each in BOUNDS.values()))
]
SOURCES = 2_048
IMAGES = 3


class ExactNumbers(torch.nn.Module):
    """a = 1 / 2 nu and b = 1 / (4 nu time), as logarithms."""

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        log_viscosity = (level - 2) * math.log(10)
        return torch.cat((math.log(0.5) - log_viscosity, -math.log(4 * TIME) - log_viscosity), 1)


def _stepped(fields: torch.Tensor, viscosity: torch.Tensor, time: float) -> torch.Tensor:
    """Runge-Kutta of fourth order on u's own modes, diffusion as an integrating factor."""
    points, steps = fields.shape[1], 1_500
    wave = operators.wave_numbers(points)
    step = time / steps
    half = torch.exp(-viscosity * wave.square() * step / 2)
    kept = (wave < 2 * math.pi * points / 3).double()  # 2/3 rule: no aliasing

    def change(modes: torch.Tensor) -> torch.Tensor:
        square = operators.fields_of(modes, points).square()
        return -0.5j * step * wave * kept * operators.modes_of(square)

    modes = operators.modes_of(fields)
    for _ in range(steps):
        first = change(modes)
        second = change(half * (modes + first / 2))
        third = change(half * modes + second / 2)
        fourth = change(half * (half * modes + third))
        ends = half * (half * first + 2 * (second + third)) + fourth
        modes = half * half * modes + ends / 6
    return operators.fields_of(modes, points)


def _summed(fields: torch.Tensor, viscosity: torch.Tensor, time: float) -> torch.Tensor:
    """Cole and Hopf's integral as a sum of positive terms on 2,048 points: nothing cancels.

    u(x) is the mean of (x - y) / t with the weights exp(-(x - y)^2 / 4 nu t - U(y) / 2 nu), where U
    is an integral of u_0 and y runs over the line.
    """
    modes = operators.modes_of(fields)[:, : POINTS // 2] * (SOURCES / fields.shape[1])
    wave = 2j * math.pi * torch.arange(1, POINTS // 2, dtype=torch.float64)
    integral = torch.cat((torch.zeros_like(modes[:, :1]), modes[:, 1:] / wave), 1)
    potential = operators.fields_of(integral, SOURCES)[:, None, :, None]
    x = torch.arange(POINTS, dtype=torch.float64) / POINTS
    y = torch.arange(SOURCES, dtype=torch.float64) / SOURCES
    turns = torch.arange(-IMAGES, IMAGES + 1)
    distance = x[:, None, None] - y[:, None] - turns
    weight = -(distance.square() / (4 * time) + potential / 2) / viscosity[:, :, None, None]
    weight = weight.flatten(2).softmax(2)
    return (weight * distance.flatten(1) / time).sum(2)


def _numbers(cases: base.Cases) -> tuple[torch.Tensor, torch.Tensor]:
    return cases["inputs"][:, 0], operators.viscosity_of(cases["inputs"])


def test_the_truth_is_what_a_runge_kutta_solver_finds() -> None:
    fields = operators.draw_fields(torch.Generator().manual_seed(2), 8, 6, 256)
    viscosity = torch.tensor([[0.01], [0.05]], dtype=torch.float64).repeat(4, 1)
    stepped = _stepped(fields, viscosity, TIME)
    assert (
        float(operators.relative_l2(stepped, burgers.cole_hopf(fields, viscosity, TIME)).max())
        < 1e-6
    )


def test_the_truth_is_the_integral_of_cole_and_hopf() -> None:
    cases = registry.get("physics-fluid").cases(9, 16)
    found = operators.relative_l2(_summed(*_numbers(cases), TIME), cases["truth"])
    assert float(found.max()) < 1e-10


@pytest.mark.parametrize("parameters", EXTREMES)
def test_the_truth_holds_at_every_extreme_of_the_parameters(parameters: dict[str, float]) -> None:
    one = registry.get("physics-fluid", parameters)
    cases = one.cases(9, 200)
    fields, viscosity = _numbers(cases)
    least = parameters["viscosity_least"]
    assert bool((viscosity >= least * (1 - 1e-9)).all())
    assert bool((viscosity <= least * parameters["viscosity_ratio"] * (1 + 1e-9)).all())
    # The least viscosities are the hard ones: there float64 is short of digits.
    hard = viscosity[:, 0].argsort()[:3]
    summed = _summed(fields[hard], viscosity[hard], parameters["final_time"])
    assert float(operators.relative_l2(cases["truth"][hard], summed).max()) < 1e-4
    found = one.baseline_errors(cases)
    assert torch.allclose(found["trivial"], torch.ones(200, dtype=torch.float64), rtol=1e-12)
    assert float(found["split steps"].mean()) < 0.2 * float(found["linear heat"].mean())


def test_a_whole_turn_of_time_is_two_halves() -> None:
    fields = operators.draw_fields(torch.Generator().manual_seed(1), 8, 6, burgers.FINE_POINTS)
    viscosity = torch.full((8, 1), 0.02, dtype=torch.float64)
    halfway = burgers.cole_hopf(fields, viscosity, TIME / 2)
    twice = burgers.cole_hopf(halfway, viscosity, TIME / 2)
    assert torch.allclose(twice, burgers.cole_hopf(fields, viscosity, TIME), rtol=0, atol=1e-9)


def test_training_batches_are_such_cases_in_float32() -> None:
    batch = registry.get("physics-fluid").train_batch(1, 0)
    assert {tensor.dtype for tensor in batch.values()} == {torch.float32}
    cases = {name: tensor.double()[:8] for name, tensor in batch.items()}
    found = operators.relative_l2(_summed(*_numbers(cases), TIME), cases["truth"])
    assert float(found.max()) < 1e-4


def test_baselines_err_as_documented() -> None:
    one = registry.get("physics-fluid")
    found = one.baseline_errors(one.cases(1, 4_096))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means["linear heat"] == pytest.approx(0.41, rel=0.03)
    assert means["split steps"] == pytest.approx(0.004, rel=0.15)


def test_linear_heat_is_what_a_small_field_does() -> None:
    fields = operators.draw_fields(torch.Generator().manual_seed(1), 8, 6, burgers.FINE_POINTS)
    viscosity = torch.full((8, 1), 0.02, dtype=torch.float64)
    small = burgers.cole_hopf(1e-6 * fields, viscosity, TIME) / 1e-6
    assert torch.allclose(small, operators.diffuse(fields, viscosity * TIME), rtol=0, atol=1e-4)


def test_split_steps_err_less_the_shorter_they_are() -> None:
    cases = registry.get("physics-fluid").cases(1, 50)
    found = [
        float(
            operators.relative_l2(
                burgers.split_steps(*_numbers(cases), TIME, steps), cases["truth"]
            ).mean()
        )
        for steps in (17, 34, 68)
    ]
    assert found[1] < 0.4 * found[0]
    assert found[2] < 0.4 * found[1]


def test_origins_weighted_as_cole_and_hopf_do_are_exact() -> None:
    module = WeightedOrigins(width=4)
    displacement = torch.arange(-POINTS, POINTS) / POINTS
    with torch.no_grad():
        module.score.zero_()
        module.score[1] = 1 / (math.pi * POINTS * SCORE_SCALE * QUICKNESS)
        module.window.copy_(-displacement.square() / QUICKNESS)
        module.velocity.copy_(-displacement / TIME / QUICKNESS)
    module.sharpness = ExactNumbers()  # type: ignore[assignment]
    one = registry.get("physics-fluid")
    assert float(one.errors(module, one.cases(9, 500)).detach().max()) < 1e-3
    assert float(one.loss(module, one.train_batch(9, 0)).detach()) < 1e-4
