"""The certificate, the public matrix, and the solver that everything is compared with."""

import functools
import itertools
import math

import pytest
import torch

from agent.specialists import base, lasso
from agent.specialists.lasso import COLUMNS, ROWS, Lasso
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged


PARAMETERS = workloads.KINDS["opt-convex"].parameters
EXTREMES = [
    dict(zip(PARAMETERS, values, strict=True))
    for values in itertools.product(*((each.least, each.most) for each in PARAMETERS.values()))
]
SWEEPS = 200
corners = pytest.mark.parametrize("parameters", EXTREMES[::5], ids=str)
"""Each parameter at its least and at its most, twice."""
extremes = pytest.mark.parametrize("parameters", EXTREMES, ids=str)


class Solver(torch.nn.Module):
    """FISTA for so long that nothing is left to improve."""

    def forward(self, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return lasso.fista(b.double(), penalty.double(), 4_000)[0].float()


def _objective(x: torch.Tensor, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return (b - x @ lasso.matrix().T).square().sum(1) / 2 + penalty * x.abs().sum(1)


@functools.cache
def _solved() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Problems and their optima: b, penalty, x."""
    cases = Lasso().cases(7, 24)
    b, penalty = cases["b"], cases["penalty"]
    return b, penalty, lasso.fista(b, penalty, 4_000)[0]


def test_the_matrix_has_unit_columns_in_every_precision() -> None:
    for dtype, slack in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        a = lasso.matrix(dtype)
        assert (a.shape, a.dtype) == ((ROWS, COLUMNS), dtype)
        assert float((a.norm(dim=0) - 1).abs().max()) < slack


def test_the_matrix_is_public_and_never_changes() -> None:
    a = lasso.matrix()
    corner = [float(a[row, column]) for row, column in ((0, 0), (0, 1), (1, 0), (63, 127))]
    assert corner == pytest.approx(
        [-0.101427224940749, 0.118491411907821, 0.120256930577499, -0.061392278397832], abs=1e-12
    )
    ramp = torch.arange(ROWS * COLUMNS, dtype=torch.float64).cos()
    assert float(a.flatten() @ ramp) == pytest.approx(6.364114545573, abs=1e-9)


def test_whoever_asks_first_gets_the_same_matrix() -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.inference_mode():
            again = lasso.matrix.__wrapped__()
        assert torch.equal(again, lasso.matrix())
        assert not again.is_inference()


def test_problems_are_as_documented() -> None:
    cases = Lasso().cases(1, 4_000)
    correlation = cases["b"] @ lasso.matrix()
    assert torch.allclose(cases["penalty"], 0.1 * correlation.abs().amax(1), rtol=1e-12)
    # A tenth of 128 unit columns with unit variance, and noise of 0.02 in 64 rows.
    energy = float(cases["b"].square().sum(1).mean())
    assert energy == pytest.approx(0.1 * COLUMNS + ROWS * 0.02**2, rel=0.03)


def test_training_problems_come_without_solutions_and_in_float32() -> None:
    batch = Lasso().train_batch(1, 0)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "b": torch.float32,
        "penalty": torch.float32,
    }


def test_four_thousand_iterations_leave_no_gap() -> None:
    b, penalty, best = _solved()
    gap = lasso.relative_gap(best, b, penalty)
    assert float(gap.max()) < 1e-12


def test_the_optimum_satisfies_the_conditions_of_optimality() -> None:
    b, penalty, best = _solved()
    pull = (b - best @ lasso.matrix().T) @ lasso.matrix() / penalty.unsqueeze(1)
    assert float(pull.abs().max()) <= 1 + 1e-6
    chosen = best.abs() > 1e-6
    assert torch.allclose(pull[chosen], best[chosen].sign(), atol=1e-6)
    assert 0 < float(chosen.double().mean()) < 0.5


def test_the_gap_is_never_negative_and_never_less_than_what_is_lost() -> None:
    b, penalty, best = _solved()
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(best.shape, generator=draw, dtype=torch.float64)
    least = _objective(best, b, penalty)
    for x in (*(best + size * noise for size in (1e-9, 1e-4, 0.01, 1)), 0 * best, 0.9 * best):
        gap = lasso.relative_gap(x, b, penalty)
        lost = (_objective(x, b, penalty) - least) / (b.square().sum(1) / 2)
        assert bool((gap >= 0).all())
        assert bool((gap >= lost - 1e-14).all())


def test_the_gap_is_tight_enough_to_be_worth_its_name() -> None:
    b, penalty, best = _solved()
    x = lasso.fista(b, penalty, 12)[0]
    lost = (_objective(x, b, penalty) - _objective(best, b, penalty)) / (b.square().sum(1) / 2)
    assert float(lasso.relative_gap(x, b, penalty).mean()) < 20 * float(lost.mean())


def test_a_solution_in_float32_errs_by_rounding_alone() -> None:
    assert float(Lasso().errors(Solver(), Lasso().cases(7, 8)).max()) < 1e-5


def test_x_of_zero_errs_by_exactly_081() -> None:
    trivial = Lasso().baseline_errors(Lasso().cases(1, 200))["trivial"]
    assert torch.allclose(trivial, torch.full_like(trivial, 0.81), rtol=0, atol=1e-12)


def test_baselines_err_as_documented() -> None:
    found = Lasso().baseline_errors(Lasso().cases(1, 1_024))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means["fista 12"] == pytest.approx(0.049, rel=0.03)
    assert means["fista 24"] == pytest.approx(0.016, rel=0.2)
    assert means["fista 48"] == pytest.approx(0.0019, rel=0.2)


def test_fista_is_the_algorithm_of_the_paper() -> None:
    b, penalty, _ = _solved()
    a = lasso.matrix()
    lipschitz = float(torch.linalg.eigvalsh(a.T @ a)[-1])
    x = y = torch.zeros(len(b), COLUMNS, dtype=torch.float64)
    t = 1.0
    found = []
    for _ in range(9):
        moved = y - (y @ a.T - b) @ a / lipschitz
        shorter = (moved.abs() - penalty.unsqueeze(1) / lipschitz).clamp_min(0)
        new, t_next = moved.sign() * shorter, (1 + math.sqrt(1 + 4 * t * t)) / 2
        y = new + (t - 1) / t_next * (new - x)
        x, t = new, t_next
        found.append(x)
    for said, wanted in zip(
        lasso.fista(b, penalty, 1, 4, 9), (found[0], found[3], found[8]), strict=True
    ):
        assert torch.allclose(said, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["lista", "learned-steps"])
def test_an_untrained_solver_is_fista(family: str) -> None:
    b, penalty, _ = _solved()
    for layers in (1, 12):
        module = Lasso().build(base.Config(family=family, sizes={"layers": layers}))
        x = module(b.float(), penalty.float()).double()
        assert torch.allclose(x, lasso.fista(b, penalty, layers)[0], rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_error_of_the_same_problems() -> None:
    one = Lasso()
    module = one.build(one.families("reinventor")[0])
    batch = one.train_batch(1, 0)
    cases = {name: tensor.double() for name, tensor in batch.items()}
    error = float(one.errors(module, cases).mean().detach())
    assert float(one.loss(module, batch).detach()) == pytest.approx(error, rel=1e-4)


def test_the_problems_of_the_defaults_are_those_of_the_first_version() -> None:
    one = Lasso()
    marks = {
        -21.879661667: one.train_batch(5, 7)["b"],
        9.440150021: one.cases(3, 50)["b"],
        0.198784808: one.cases(3, 50)["penalty"],
        -31.213228179: one.cases(3, 50, "hidden")["b"],
    }
    for mark, tensor in marks.items():
        ramp = torch.arange(tensor.numel(), dtype=torch.float64).cos()
        assert float(tensor.double().flatten() @ ramp) == pytest.approx(mark, abs=1e-4)


@extremes
def test_relatives_have_problems_of_their_shape(parameters: dict[str, float]) -> None:
    cases = Lasso(**parameters).cases(1, 2_000)
    rows, columns = int(parameters["rows"]), int(parameters["columns"])
    a = lasso.matrix(rows=rows, columns=columns)
    assert (a.shape, cases["b"].shape) == ((rows, columns), (2_000, rows))
    assert float((a.norm(dim=0) - 1).abs().max()) < 1e-14
    energy = float(cases["b"].square().sum(1).mean())
    wanted = parameters["density"] * columns + rows * parameters["noise"] ** 2
    assert energy == pytest.approx(wanted, rel=0.12)
    assert float(cases["penalty"].min()) > 0


@corners
def test_the_certificate_holds_for_relatives(parameters: dict[str, float]) -> None:
    """No gap is left at the optimum, found by descent along one coordinate after the other."""
    one = Lasso(**parameters)
    cases = one.cases(7, 6)
    b, penalty = cases["b"], cases["penalty"]
    rows, columns = int(parameters["rows"]), int(parameters["columns"])
    a = lasso.matrix(rows=rows, columns=columns)
    best = _descended(a, b, penalty)
    assert float(lasso.relative_gap(best, b, penalty).max()) < 1e-3

    def objective(x: torch.Tensor) -> torch.Tensor:
        return (b - x @ a.T).square().sum(1) / 2 + penalty * x.abs().sum(1)

    for x in (0.9 * best, *lasso.fista(b, penalty, 12, 48, columns=columns)):
        lost = (objective(x) - objective(best)) / (b.square().sum(1) / 2)
        assert bool((lasso.relative_gap(x, b, penalty) >= lost - 1e-14).all())
    found = one.baseline_errors(cases)
    assert torch.allclose(found["trivial"], torch.full_like(found["trivial"], 0.81), atol=1e-12)
    assert float(found["fista 48"].mean()) < float(found["fista 12"].mean()) < 0.81
    for config in (*one.families("evolver"), *one.families("reinventor")):
        x = one.build(config)(b.float(), penalty.float())
        assert x.shape == (6, columns)
        fista = lasso.fista(b, penalty, config.sizes["layers"], columns=columns)[0]
        assert torch.allclose(x.double(), fista, rtol=0, atol=1e-4)


def _descended(a: torch.Tensor, b: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Each coordinate put where it is best, a few hundred times over (Friedman et al. 2007)."""
    x, residual = torch.zeros(len(b), a.shape[1], dtype=b.dtype), b.clone()
    for _ in range(SWEEPS):
        moved = 0.0
        for column in range(a.shape[1]):
            alone = residual @ a[:, column] + x[:, column]
            best = alone.sign() * (alone.abs() - penalty).clamp_min(0)
            residual -= (best - x[:, column])[:, None] * a[:, column]
            moved = max(moved, float((best - x[:, column]).abs().max()))
            x[:, column] = best
        if moved < 1e-9:
            break
    return x


@pytest.mark.parametrize("family", ["lista", "learned-steps"])
def test_steps_that_diverge_answer_no_worse_than_nothing_and_are_felt_in_training(
    family: str,
) -> None:
    one = Lasso()
    module = one.build(base.Config(family=family, sizes={"layers": 8}))
    assert isinstance(module, lasso.LearnedSteps | lasso.Lista)
    with torch.no_grad():
        module.step.mul_(30.0)
    cases = one.cases(3, 64)
    assert one.errors(module.eval(), cases).max() <= 0.81 + 1e-6
    felt = one.errors(module.train(), cases)
    assert not bool((felt < 1e3).all())
    with torch.no_grad():
        module.step.fill_(math.nan)
    assert one.errors(module.eval(), cases).max() <= 0.81 + 1e-6
