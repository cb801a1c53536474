"""The energies against another way to find them, and what Rayleigh-Ritz promises."""

import math

import pytest
import torch

from agent.specialists import base, energies, registry, seeds
from agent.specialists.energies import LIBRARY, POINTS, Energies

torch.set_num_threads(1)  # as where models are trained and judged

EXTREMES = pytest.mark.parametrize(
    ("wells", "height", "reach"),
    [(3.0, 4.0, 1.5), (1.0, 1.0, 0.5), (4.0, 5.0, 1.5), (4.0, 5.0, 0.5), (1.0, 5.0, 1.5)],
)
FAMILIES = pytest.mark.parametrize(
    ("family", "sizes"),
    [("shared-functions", {"functions": 9}), ("proposed-functions", {"functions": 4, "width": 8})],
)


def _relative(wells: float = 3.0, height: float = 4.0, reach: float = 1.5) -> Energies:
    one = registry.get("physics-quantum", {"wells": wells, "height": height, "reach": reach})
    assert isinstance(one, Energies)
    return one


def _hermite(x: torch.Tensor, count: int) -> torch.Tensor:
    """The lowest oscillator functions (w = 1) at x, [places, count]."""
    columns = [math.pi**-0.25 * torch.exp(-x.square() / 2)]
    columns.append(math.sqrt(2) * x * columns[0])
    for n in range(2, count):
        last, before = columns[-1], columns[-2]
        columns.append(math.sqrt(2 / n) * x * last - math.sqrt((n - 1) / n) * before)
    return torch.stack(columns, 1)


def _otherwise(wells: energies.Wells) -> torch.Tensor:
    """The three lowest energies from 90 oscillator functions and a fine sum on [-16, 16]."""
    x = torch.linspace(-16, 16, 1_281, dtype=torch.float64)
    functions = _hermite(x, 90)
    free = torch.diag(torch.arange(90, dtype=torch.float64) + 0.5)
    more = (wells.at(x) - x.square() / 2) * (x[1] - x[0])
    within = free + functions.T @ (more.unsqueeze(2) * functions)
    levels: torch.Tensor = torch.linalg.eigvalsh(within)
    return levels[:, :3]


class Whole(energies.Ritz):
    """Says what the whole library can."""

    def weights(self, potential: torch.Tensor) -> torch.Tensor:
        return torch.eye(LIBRARY)


@EXTREMES
def test_the_truth_is_what_another_method_finds(wells: float, height: float, reach: float) -> None:
    one = _relative(wells, height, reach)
    drawn = one.draw_wells(seeds.generator("test"), 60)
    found = energies.energies(drawn.at(energies.points()), energies.kinetic())
    off = (found - _otherwise(drawn)).abs()
    assert float(off.max()) < (2e-5 if wells == 3 else 1.4e-4)
    assert float(off.mean()) < 2e-6


def test_an_oscillator_has_its_textbook_energies() -> None:
    w = torch.tensor([[0.5], [1.0], [1.5]], dtype=torch.float64)
    potential = (w * energies.points()).square() / 2
    found = energies.energies(potential, energies.kinetic())
    wanted = w * (torch.arange(3, dtype=torch.float64) + 0.5)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)


@EXTREMES
def test_potentials_are_as_documented(wells: float, height: float, reach: float) -> None:
    one = _relative(wells, height, reach)
    drawn = one.draw_wells(seeds.generator("test"), 2_000)
    limits = ((0.5, 1.5), (-height, height), (-reach, reach), (0.4, 1.0))
    for each, (low, high) in zip(drawn, limits, strict=True):
        share = (each - low) / (high - low)
        assert bool(((share >= 0) & (share <= 1)).all())
        for part in (0.1, 0.5, 0.9):
            assert float((share < part).double().mean()) == pytest.approx(part, abs=0.035)
    assert drawn.heights.shape == (2_000, int(wells), 1)
    x = 0.7
    w, a, c, s = (each[5].flatten().tolist() for each in drawn)
    bumps = (a * math.exp(-((x - c) ** 2) / (2 * s**2)) for a, c, s in zip(a, c, s, strict=True))
    at = float(drawn.at(torch.tensor([x], dtype=torch.float64))[5])
    assert at == pytest.approx((w[0] * x) ** 2 / 2 + sum(bumps))


def test_cases_carry_that_truth_and_training_batches_none() -> None:
    one = _relative()
    cases = one.cases(5, 20)
    found = energies.energies(cases["potential"], energies.kinetic())
    assert torch.equal(cases["energies"], found)
    batch = one.train_batch(5, 0)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "potential": torch.float32,
        "least": torch.float32,
    }
    truth = energies.energies(batch["potential"].double(), energies.kinetic())
    above = batch["least"].double() - truth
    assert float(above.min()) > -1e-4
    assert float(above.mean()) < 1e-3


def test_the_library_is_orthonormal_and_of_the_signs_of_the_hermite_functions() -> None:
    functions, moving = energies.library(torch.float64)
    assert functions.shape == (POINTS, LIBRARY)
    assert torch.allclose(functions.T @ functions, torch.eye(LIBRARY, dtype=torch.float64))
    hermite = _hermite(energies.points(), LIBRARY) * math.sqrt(energies.SPACING)
    assert bool((functions * hermite).sum(0).gt(0.95).all())
    # The mean kinetic energy of an oscillator is half its energy (away from the edges).
    half = (torch.arange(10, dtype=torch.float64) + 0.5) / 2
    assert torch.allclose(moving.diagonal()[:10], half, atol=1e-6)


def test_whoever_asks_first_gets_tensors_that_can_be_trained_with() -> None:
    with torch.inference_mode():
        again = energies.library.__wrapped__(torch.float32)
    assert not any(each.is_inference() for each in again)


@FAMILIES
def test_what_a_model_says_lies_above_the_truth(family: str, sizes: dict[str, int]) -> None:
    one = _relative()
    cases = one.cases(5, 300)
    for seed in range(3):
        torch.manual_seed(seed)
        module = one.build(base.Config(family=family, sizes=sizes))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        above = module(cases["potential"].float()).double() - cases["energies"]
        assert float(above.min().detach()) > -1e-4
        assert float(above.mean().detach()) > 0.01


def test_the_whole_library_comes_close_to_the_truth() -> None:
    one = _relative()
    assert float(one.errors(Whole(), one.cases(5, 500)).mean()) < 2e-4
    assert abs(float(one.loss(Whole(), one.train_batch(5, 0)))) < 1e-4


def test_rounding_to_float32_is_far_below_the_tolerance() -> None:
    one = _relative(4.0, 5.0, 1.5)
    potential = one.cases(5, 500)["potential"]
    double = energies._library_energies(potential)
    single = Whole()(potential.float())
    assert float((single - double).abs().max()) < 5e-5 < one.tolerance / 30


@FAMILIES
def test_a_gradient_is_that_of_the_energies(family: str, sizes: dict[str, int]) -> None:
    one = _relative()
    torch.manual_seed(3)
    module = one.build(base.Config(family=family, sizes=sizes)).double()
    batch = {name: tensor.double() for name, tensor in one.train_batch(1, 0).items()}
    parameter = list(module.parameters())[-1]
    with torch.no_grad():
        for each in module.parameters():
            each.add_(0.05 * torch.randn_like(each))
    one.loss(module, batch).backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    way = torch.randn_like(parameter)
    with torch.no_grad():
        parameter.add_(1e-5 * way)
        after = float(one.loss(module, batch))
        parameter.sub_(2e-5 * way)
        before = float(one.loss(module, batch))
    slope = float((parameter.grad * way).sum())
    assert (after - before) / 2e-5 == pytest.approx(slope, rel=1e-4)


def test_baselines_err_as_documented() -> None:
    found = _relative().baseline_errors(_relative().cases(4, 2_000))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means["second-order differences"] == pytest.approx(0.034, rel=0.05)
    assert means["8 oscillator functions"] == pytest.approx(0.036, rel=0.1)
    assert means["trivial"] == pytest.approx(1.79, rel=0.04)


def test_second_order_differences_err_as_the_theory_says_for_an_oscillator() -> None:
    # First-order perturbation: -spacing^2 / 24 <p^4>, and <p^4> of level n is 3/4 (2n^2 + 2n + 1).
    potential = energies.points().square()[None] / 2
    found = energies.energies(potential, energies.second_order_kinetic())[0]
    n = torch.arange(3, dtype=torch.float64)
    wanted = n + 0.5 - energies.SPACING**2 / 24 * 0.75 * (2 * n * n + 2 * n + 1)
    assert torch.allclose(found, wanted, rtol=0, atol=2e-4)


def test_only_the_span_of_the_functions_matters() -> None:
    one = _relative()
    potential = one.cases(5, 50)["potential"].float()
    module = energies.SharedFunctions(functions=8)
    before = module(potential)
    torch.manual_seed(3)
    with torch.no_grad():
        module.shared.copy_(module.shared @ torch.randn(8, 8))
    assert torch.allclose(module(potential), before, rtol=0, atol=1e-3)
