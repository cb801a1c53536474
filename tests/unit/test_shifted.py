"""Inputs beyond those of training: that they are, and that their truth is as exact."""

import math
from pathlib import Path

import pytest
import torch

from agent.specialists import (
    addition,
    base,
    energies,
    evaluation,
    forecasting,
    lasso,
    operators,
    registry,
    seeds,
    tours,
)
from agent.specialists.base import Specialist
from agent.specialists.energies import Energies
from agent.specialists.forecasting import Forecasting
from agent.specialists.tours import Tours
from core import workloads
from tests import texts
from tests.unit import (
    test_advection,
    test_burgers,
    test_energies,
    test_lasso,
    test_posterior,
    test_tours,
)

torch.set_num_threads(1)  # as where models are trained and judged

NAMES = [name for name in registry.names() if name != workloads.TEXT]


@pytest.fixture(params=NAMES)
def one(request: pytest.FixtureRequest) -> Specialist:
    return registry.get(str(request.param))


def _shifted(name: str, count: int, **parameters: float) -> base.Cases:
    found = registry.get(name, parameters).shifted(7, count)
    assert found is not None
    return found


def _extremes(name: str) -> list[dict[str, float]]:
    known = workloads.KINDS[name].parameters
    return [
        {each: bounds.least for each, bounds in known.items()},
        {each: bounds.most for each, bounds in known.items()},
    ]


EVERYWHERE = [(name, given) for name in NAMES for given in _extremes(name)]


def test_shifted_cases_are_a_function_of_seed_alone(one: Specialist) -> None:
    drawn = []
    for seed, state in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(state)
        cases = one.shifted(seed, 99)
        assert cases is not None
        assert {len(tensor) for tensor in cases.values()} == {99}
        drawn.append(cases)
    first, again, other = drawn
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_family_has_finite_errors_on_them(one: Specialist) -> None:
    cases = one.shifted(1, 40)
    assert cases is not None
    for role in ("evolver", "reinventor"):
        for config in one.families(role):
            torch.manual_seed(3)
            found = evaluation.case_errors(one, one.build(config), cases)
            assert bool((found < evaluation.WORST_ERROR).all())
    for found in one.baseline_errors(cases).values():
        assert bool((found.isfinite() & (found >= 0)).all())


@pytest.mark.parametrize(("name", "parameters"), EVERYWHERE)
def test_relatives_have_them_too(name: str, parameters: dict[str, float]) -> None:
    cases = _shifted(name, 20, **parameters)
    one = registry.get(name, parameters)
    torch.manual_seed(3)
    found = evaluation.case_errors(one, one.build(one.families("reinventor")[0]), cases)
    assert len(found) == 20
    assert bool((found < evaluation.WORST_ERROR).all())


def test_a_corpus_has_none(tmp_path: Path) -> None:
    text = registry.get(workloads.TEXT, corpus=str(texts.unpack(tmp_path)))
    assert text.shifted(1, 40) is None


# ── beyond the training ranges ──


def test_every_digit_carries_in_hidden_pairs_alone() -> None:
    for digits in (2.0, 3.0, 4.0):
        one = registry.get("root-math", {"digits": digits})
        cases = _shifted("root-math", 300, digits=digits)
        asked = one.asked(cases)
        pairs = torch.stack((asked["a"], asked["b"]), 1).long()
        assert len({tuple(pair) for pair in pairs.tolist()}) == 300
        assert {addition.side_of(a, b) for a, b in pairs.tolist()} == {"hidden"}
        for a, b in pairs.tolist():
            carry = 0
            for place in range(int(digits)):
                carry = (a // 10**place % 10 + b // 10**place % 10 + carry) // 10
                assert carry == 1
        total = (cases["answer"] * 10 ** torch.arange(int(digits) + 1)).sum(1)
        assert torch.equal(total, pairs.sum(1))


def test_where_few_pairs_carry_there_are_fewer_cases() -> None:
    listed = len(_shifted("root-math", 100_000)["prompt"])
    assert 500 < listed < 1_000
    assert len(_shifted("root-math", listed)["prompt"]) == listed


@pytest.mark.parametrize(("name", "most"), [("math-physics", 0.01), ("physics-fluid", 0.05)])
def test_flows_are_more_viscous_and_of_more_waves(name: str, most: float) -> None:
    inputs = _shifted(name, 200)["inputs"]
    viscosity = operators.viscosity_of(inputs)
    assert bool(((viscosity >= most) & (viscosity <= 1.25 * most)).all())
    assert float(viscosity.max()) > 1.2 * most
    modes = operators.modes_of(inputs[:, 0]).abs()
    assert float(modes[:, 7:9].mean()) > 0.1
    assert float(modes[:, 9:].max()) < 1e-10


def test_flows_are_carried_faster() -> None:
    speed = _shifted("math-physics", 200)["inputs"][:, 2, 0]
    assert 0.25 < float(speed.abs().max()) < 0.3125


def test_wells_are_stiffer_and_wider() -> None:
    one = registry.get("physics-quantum")
    assert isinstance(one, Energies)
    cases = _shifted("physics-quantum", 60)
    drawn = one.draw_wells(
        seeds.generator(one.name, "shifted", 7),
        60,
        energies.SHIFTED_STIFFNESS_RANGE,
        energies.SHIFTED_WIDTH_RANGE,
    )
    assert torch.equal(drawn.at(energies.points()), cases["potential"])
    assert float(drawn.stiffness.min()) >= energies.STIFFNESS_RANGE[1]
    assert float(drawn.widths.min()) >= energies.WIDTH_RANGE[1]
    off = (cases["energies"] - test_energies._otherwise(drawn)).abs()
    assert float(off.max()) < 2e-5


def test_more_is_read_than_in_any_training() -> None:
    cases = _shifted("math-statistics", 300)
    n = cases["mask"].sum(1)
    assert {int(each) for each in n} == set(range(25, 31))


def test_walks_drift_faster() -> None:
    cases = _shifted("stats-bayesian", 300)
    drift, noise = cases["scales"].exp().unbind(1)
    assert bool(((drift >= 1.0) & (drift <= 1.5)).all())
    assert bool(((noise >= 0.1) & (noise <= 2.0)).all())


def test_series_are_noisier_and_forget_sooner() -> None:
    one = registry.get("stats-time-series")
    assert isinstance(one, Forecasting)
    process = one._process._replace(
        noise_least=1.0, noise=1.25, reach=forecasting.SHIFTED_REACH_RANGE
    )
    terms = forecasting.draw_terms(seeds.generator(one.name, "shifted", 7), 200, process)
    assert bool(((terms.noise_sd >= 1.0) & (terms.noise_sd <= 1.25)).all())
    assert float(terms.reach.max()) <= forecasting.REACH_RANGE[0]
    expected = forecasting.draw_series(seeds.generator(one.name, "shifted", 7), 200, process)
    assert torch.equal(_shifted(one.name, 200)["history"], expected.history)


def test_matrices_are_worse_conditioned() -> None:
    cases = _shifted("math-optimization", 60)
    spectrum = torch.linalg.eigvalsh(cases["matrix"])
    assert bool((spectrum[:, 0] < 1 / 100).all())
    assert torch.allclose(spectrum[:, 0], torch.full((60,), 1 / 150, dtype=torch.float64))
    assert float(spectrum[:, -1].max()) <= 1.0


def test_penalties_are_smaller_and_answers_fuller() -> None:
    cases = _shifted("opt-convex", 400)
    share = cases["penalty"] / (cases["b"] @ lasso.matrix()).abs().amax(1)
    assert torch.allclose(share, torch.full_like(share, lasso.SHIFTED_PENALTY_SHARE))
    trained = registry.get("opt-convex").cases(7, 400)
    longer = cases["b"].square().sum(1).mean() / trained["b"].square().sum(1).mean()
    assert float(longer) == pytest.approx(1.25, abs=0.15)


def test_cities_lie_in_clusters() -> None:
    def nearest(cities: torch.Tensor) -> float:
        apart = tours.distances(cities) + torch.diag(torch.full((12,), math.inf))
        return float(apart.amin(2).mean())

    even = nearest(Tours().cases(7, 300)["cities"])
    assert nearest(_shifted("opt-discrete", 300)["cities"]) < 0.5 * even


# ── the truth ──


def test_the_shifted_flows_are_what_other_ways_find() -> None:
    carried = _shifted("math-physics", 12)
    found = operators.relative_l2(test_advection._solved_in_space(carried), carried["truth"])
    assert float(found.max()) < 1e-4
    steep = _shifted("physics-fluid", 12)
    summed = test_burgers._summed(*test_burgers._numbers(steep), test_burgers.TIME)
    assert float(operators.relative_l2(summed, steep["truth"]).max()) < 1e-10


def test_the_shifted_posterior_and_filter_are_exact() -> None:
    one = registry.get("math-statistics")
    cases = _shifted("math-statistics", 60)
    found = one.errors(test_posterior.Exact(), cases)
    assert float(found.max()) < 1e-6
    walks = _shifted("stats-bayesian", 40)
    drift, noise = torch.exp(2 * walks["scales"]).unbind(1)
    steps = torch.arange(1, 33, dtype=torch.float64)
    shared = torch.minimum(steps[:, None], steps)
    for row in range(40):
        states = 1 + drift[row] * shared
        seen = states + noise[row] * torch.eye(32, dtype=torch.float64)
        weights = torch.linalg.solve(seen, states[:, -1])
        mean = weights @ walks["readings"][row]
        variance = states[-1, -1] - weights @ states[:, -1]
        assert float(walks["mean"][row]) == pytest.approx(float(mean), abs=1e-9)
        assert float(walks["sd"][row]) == pytest.approx(math.sqrt(float(variance)), abs=1e-9)


def test_the_shifted_problems_have_their_solutions() -> None:
    planted = _shifted("math-optimization", 40)
    solved = torch.linalg.solve(planted["matrix"], planted["goal"])
    assert torch.allclose(solved, planted["solution"], rtol=0, atol=1e-9)
    sparse = _shifted("opt-convex", 24)
    found = registry.get("opt-convex").errors(test_lasso.Solver(), sparse)
    assert float(found.max()) < 1e-5


def test_the_shifted_tours_are_the_shortest() -> None:
    cases = _shifted("opt-discrete", 2)
    for cities, optimum in zip(cases["cities"], cases["optimum"], strict=True):
        assert float(optimum) == pytest.approx(test_tours._textbook(cities), abs=1e-12)
