"""The planted truth, the classical solvers, and the rule that bounds the products."""

import itertools

import pytest
import torch

from agent.specialists import base, quadratics, registry
from agent.specialists.base import Config
from agent.specialists.quadratics import Products, Quadratics
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged

PARAMETERS = workloads.KINDS["math-optimization"].parameters
EXTREMES = [
    dict(zip(PARAMETERS, values, strict=True))
    for values in itertools.product(*((each.least, each.most) for each in PARAMETERS.values()))
]
extremes = pytest.mark.parametrize("parameters", EXTREMES, ids=str)
FAMILIES = [
    Config(family="completed-cg", sizes={"products": 12, "width": 8, "layers": 1}),
    Config(family="stretched-cg", sizes={"products": 12}),
    Config(family="learned-steps", sizes={"products": 12}),
]


def _one(**parameters: float) -> Quadratics:
    found = registry.get("math-optimization", parameters)
    assert isinstance(found, Quadratics)
    return found


def _products(cases: base.Cases, count: int) -> Products:
    return Products(cases["matrix"], count)


@extremes
def test_the_planted_solution_solves_the_equations(parameters: dict[str, float]) -> None:
    cases = _one(**parameters).cases(3, 50)
    solved = torch.linalg.solve(cases["matrix"], cases["goal"])
    assert torch.allclose(solved, cases["solution"], rtol=0, atol=1e-9)


@extremes
def test_matrices_have_the_spectrum_that_is_documented(parameters: dict[str, float]) -> None:
    cases = _one(**parameters).cases(3, 200)
    assert cases["matrix"].shape == (200, parameters["variables"], parameters["variables"])
    lowest = torch.tensor(parameters["condition"], dtype=torch.float64).reciprocal()
    share = torch.linalg.eigvalsh(cases["matrix"]).log() / lowest.log()
    assert bool(((share > -1e-9) & (share < 1 + 1e-9)).all())
    for part in (0.1, 0.5, 0.9):
        assert float((share < part).double().mean()) == pytest.approx(part, abs=0.03)


def test_solutions_and_rotations_prefer_no_direction() -> None:
    cases = _one().cases(3, 4_000)
    x = cases["solution"]
    assert float((x.T @ x / len(x) - torch.eye(32)).abs().max()) < 0.1
    mean = cases["matrix"].mean(0)
    assert float((mean - mean.diagonal().mean() * torch.eye(32)).abs().max()) < 0.02


def test_training_problems_are_like_those_of_the_cases() -> None:
    one = _one()
    batches = [one.train_batch(1, step) for step in range(16)]
    batch = {name: torch.cat([each[name] for each in batches]).double() for name in batches[0]}
    found, wanted = (one.baseline_errors(each) for each in (batch, one.cases(3, 1_024)))
    for name, each in wanted.items():
        assert float(found[name].mean()) == pytest.approx(float(each.mean()), rel=0.06)


def test_baselines_err_as_documented() -> None:
    found = _one().baseline_errors(_one().cases(1, 3_000))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means == pytest.approx(
        {
            "trivial": 1.0,
            "gradient descent": 0.335,
            "heavy ball": 0.0866,
            "conjugate gradients": 0.0455,
            "conjugate gradients, one product more": 0.0316,
        },
        rel=0.03,
    )


@extremes
def test_conjugate_gradients_find_the_least_error_in_the_norm_of_the_matrix(
    parameters: dict[str, float],
) -> None:
    one = _one(**parameters)
    cases = one.cases(3, 30)
    found = quadratics.conjugate_gradients(_products(cases, one.products), cases["goal"]).x
    basis = (cases["goal"] / cases["goal"].norm(dim=1, keepdim=True)).unsqueeze(2)
    while basis.shape[2] < one.products:
        image = cases["matrix"] @ basis[:, :, -1:]
        for _ in range(2):  # twice is enough (Kahan & Parlett)
            image = image - basis @ (basis.mT @ image)
        basis = torch.cat((basis, image / image.norm(dim=1, keepdim=True)), 2)
    within = torch.linalg.solve(
        basis.mT @ cases["matrix"] @ basis, basis.mT @ cases["goal"].unsqueeze(2)
    )
    wanted = (basis @ within).squeeze(2)
    apart = quadratics.relative_error(found, wanted)
    # Conjugate gradients keep no basis, and so drift from the least where it takes them longest.
    assert float(apart.median()) < 1e-5
    assert float(apart.max()) < 0.05


def test_conjugate_gradients_solve_in_as_many_products_as_there_are_unknowns() -> None:
    cases = _one(variables=32.0).cases(3, 30)
    found = quadratics.conjugate_gradients(_products(cases, 36), cases["goal"]).x
    assert float(quadratics.relative_error(found, cases["solution"]).max()) < 1e-5


def test_the_trace_holds_the_matrix_within_the_space_that_was_searched() -> None:
    """Lanczos: T = V' H V is tridiagonal, and steps and turns say its entries."""
    cases = _one().cases(3, 30)
    trace = quadratics.conjugate_gradients(_products(cases, 8), cases["goal"])
    v = trace.directions
    assert float((v @ v.mT - torch.eye(9)).abs().max()) < 1e-8
    within = (v @ cases["matrix"] @ v.mT)[:, :8, :8]
    steps, turns = trace.log_steps.exp(), trace.log_turns.exp()
    diagonal = 1 / steps
    diagonal[:, 1:] += turns[:, :-1] / steps[:, :-1]
    beside = -turns[:, :-1].sqrt() / steps[:, :-1]
    wanted = torch.diag_embed(diagonal) + sum(
        torch.diag_embed(beside, offset) for offset in (1, -1)
    )
    assert torch.allclose(within, wanted, atol=1e-8)


def test_a_product_too_many_is_refused() -> None:
    cases = _one().cases(3, 2)
    matrix = _products(cases, 2)
    for _ in range(2):
        matrix.times(cases["goal"])
    with pytest.raises(AssertionError, match="only as often as agreed"):
        matrix.times(cases["goal"])


@pytest.mark.parametrize("config", FAMILIES, ids=str)
def test_a_family_takes_all_products_it_may_and_gets_none_beyond(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    times = Products.times

    def counted(matrix: Products, vector: torch.Tensor) -> torch.Tensor:
        taken.append(len(vector))
        return times(matrix, vector)

    monkeypatch.setattr(Products, "times", counted)
    one = _one()
    one.errors(one.build(config), one.cases(3, 7))
    assert taken == [7] * 12


@extremes
def test_untrained_solvers_are_the_classical_ones_also_in_single_precision(
    parameters: dict[str, float],
) -> None:
    one = _one(**parameters)
    cases = one.cases(3, 100)
    wanted = {name: float(each.mean()) for name, each in one.baseline_errors(cases).items()}
    for config in (*one.families("evolver"), *one.families("reinventor")):
        found = float(one.errors(one.build(config), cases).mean().detach())
        name = "heavy ball" if config.family == "learned-steps" else "conjugate gradients"
        assert found == pytest.approx(wanted[name], rel=0.01)


@pytest.mark.parametrize("config", FAMILIES, ids=str)
def test_an_answer_turns_and_grows_with_the_problem(config: Config) -> None:
    torch.manual_seed(3)
    one = _one()
    module = one.build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    cases = one.cases(3, 20)
    matrix, goal = cases["matrix"].float(), cases["goal"].float()
    turn = quadratics.rotations(torch.Generator().manual_seed(1), 1, 32)[0].float()
    with torch.inference_mode():
        found = module(turn @ matrix @ turn.T, 8 * goal @ turn.T)
        wanted = 8 * module(matrix, goal) @ turn.T
    assert float(quadratics.relative_error(found, wanted).max()) < 0.01


def test_the_loss_is_the_mean_error_of_the_same_problems() -> None:
    one = _one()
    batch = one.train_batch(1, 0)
    cases = {name: tensor.double() for name, tensor in batch.items()}
    for config in FAMILIES:
        module = one.build(config)
        error = float(one.errors(module, cases).mean().detach())
        assert float(one.loss(module, batch).detach()) == pytest.approx(error, rel=1e-4)


def test_thirteen_learned_numbers_beat_conjugate_gradients_within_forty_steps() -> None:
    one = _one()
    module = one.build(Config(family="stretched-cg", sizes={"products": 12}))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    for step in range(40):
        optimizer.zero_grad()
        one.loss(module, one.train_batch(1, step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    cases = one.cases(3, 500)
    record = one.baseline_errors(cases)["conjugate gradients"].mean()
    assert float(one.errors(module, cases).mean().detach()) < 0.8 * float(record)
