"""The shortest tours, the classical ways to a short one, and what a policy may not depend on."""

import itertools
import math

import pytest
import torch

from agent.specialists import registry, tours
from agent.specialists.base import Config
from agent.specialists.tours import Policy, Survey, Tours
from core import workloads

torch.set_num_threads(1)  # as where models are trained and judged

PARAMETERS = workloads.KINDS["opt-discrete"].parameters
FAMILIES = [config for role in ("evolver", "reinventor") for config in Tours().families(role)]
families = pytest.mark.parametrize("config", FAMILIES, ids=str)


class Oracle(Policy):
    """Knows the shortest tour and goes along it."""

    def survey(self, cities: torch.Tensor) -> Survey:
        order = tours.shortest(cities.double())
        neighbours = torch.zeros(len(cities), cities.shape[1], cities.shape[1])
        case = torch.arange(len(cities)).unsqueeze(1)
        neighbours[case, order, order.roll(-1, 1)] = 1.0
        return Survey(neighbours, neighbours)

    def scores(
        self, known: Survey, start: torch.Tensor, current: torch.Tensor, visited: torch.Tensor
    ) -> torch.Tensor:
        return known.distances[torch.arange(len(current)).unsqueeze(1), current]


def _one(**parameters: float) -> Tours:
    found = registry.get("opt-discrete", parameters)
    assert isinstance(found, Tours)
    return found


def _policy(config: Config) -> Policy:
    """Of weights that are not as fresh as to be nearest neighbour."""
    torch.manual_seed(3)
    module = Tours().build(config)
    assert isinstance(module, Policy)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def _textbook(cities: torch.Tensor) -> float:
    """Held & Karp over all subsets, forwards from city 0, in plain Python."""
    count = len(cities)
    legs = [[math.dist(a, b) for b in cities.tolist()] for a in cities.tolist()]
    best = {(1 << k, k): legs[0][k] for k in range(1, count)}
    for size in range(2, count):
        for chosen in itertools.combinations(range(1, count), size):
            which = sum(1 << k for k in chosen)
            for end in chosen:
                before = which ^ (1 << end)
                best[which, end] = min(best[before, k] + legs[k][end] for k in chosen if k != end)
    everything = 2**count - 2
    return min(best[everything, end] + legs[end][0] for end in range(1, count))


@pytest.mark.parametrize("height", [PARAMETERS["height"].least, PARAMETERS["height"].most])
def test_the_optimum_is_the_shortest_of_all_orders(height: float) -> None:
    cases = _one(cities=8.0, height=height).cases(5, 30)
    orders = torch.tensor([(0, *rest) for rest in itertools.permutations(range(1, 8))])
    every = tours.length(cases["cities"], orders.expand(30, -1, -1))
    assert torch.equal(every.amin(1), cases["optimum"])


@pytest.mark.parametrize("cities", range(8, 14))
def test_the_optimum_is_that_of_the_textbook_for_every_number_of_cities(cities: int) -> None:
    assert cities in (*range(int(PARAMETERS["cities"].least), int(PARAMETERS["cities"].most) + 1),)
    cases = _one(cities=float(cities)).cases(5, 2)
    wanted = [_textbook(each) for each in cases["cities"]]
    assert cases["optimum"].tolist() == pytest.approx(wanted, rel=1e-12)


def test_a_shortest_tour_visits_every_city_once() -> None:
    for cities in (8, 9, 13):
        found = tours.shortest(_one(cities=float(cities)).cases(5, 300)["cities"])
        assert torch.equal(found.sort(1).values, torch.arange(cities).expand(300, -1))


def test_single_precision_finds_the_same_tours_but_for_ties() -> None:
    cases = Tours().cases(5, 500)
    found = tours.length(cases["cities"], tours.shortest(cases["cities"].float()))
    assert float((found / cases["optimum"] - 1).max()) < 1e-6


def test_cities_lie_uniformly_in_the_rectangle() -> None:
    places = _one(height=0.25).cases(5, 3_000)["cities"].flatten(0, 1)
    assert bool((places >= 0).all())
    assert places.amax(0).tolist() == pytest.approx([1.0, 0.25], rel=1e-3)
    assert places.mean(0).tolist() == pytest.approx([0.5, 0.125], rel=0.02)
    assert places.var(0).tolist() == pytest.approx([1 / 12, 1 / 192], rel=0.02)


def test_a_tour_has_one_length_to_the_last_bit() -> None:
    cases = Tours().cases(5, 400)
    best = tours.shortest(cases["cities"])
    for same in (best.roll(5, 1), best.flip(1), best.flip(1).roll(3, 1)):
        assert torch.equal(tours.length(cases["cities"], same), cases["optimum"])


def test_the_shortest_tour_has_no_error_at_all() -> None:
    cases = Tours().cases(5, 200)
    assert torch.equal(Tours().errors(Oracle(), cases), torch.zeros(200, dtype=torch.float64))


def test_training_cases_come_in_the_order_of_their_shortest_tours() -> None:
    for parameters in ({}, {"cities": 9.0, "height": 0.3}):
        one = _one(**parameters)
        cities = torch.cat([one.train_batch(5, step)["cities"] for step in range(4)]).double()
        given = tours.length(cities, torch.arange(cities.shape[1]).expand(len(cities), -1))
        best = tours.length(cities, tours.shortest(cities))
        assert float((given / best - 1).max()) < 1e-6


def test_steps_share_what_was_solved_but_no_case() -> None:
    batches = [Tours().train_batch(5, step)["cities"] for step in range(20)]
    rows = {row.numpy().tobytes() for row in torch.cat(batches).flatten(1)}
    assert len(rows) == 20 * Tours.batch_size


def test_a_training_batch_can_be_changed_without_harm() -> None:
    batch = Tours().train_batch(5, 0)["cities"]
    kept = batch.clone()
    batch.zero_()
    assert torch.equal(Tours().train_batch(5, 0)["cities"], kept)


def test_baselines_err_as_documented() -> None:
    found = Tours().baseline_errors(Tours().cases(1, 3_000))
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means == {
        "trivial": pytest.approx(1.033, rel=0.02),
        "nearest neighbour": pytest.approx(0.119, rel=0.06),
        "nearest neighbour, best of all starts": pytest.approx(0.0292, rel=0.06),
        "nearest neighbour, 2-opt": pytest.approx(0.0053, rel=0.15),
    }


def test_from_all_starts_two_opt_leaves_next_to_nothing() -> None:
    cases = Tours().cases(1, 500)
    nearest = tours.Nearest()(cases["cities"])
    found = [tours.two_opt(cases["cities"], each) for each in nearest.unbind(1)]
    least = tours.length(cases["cities"], torch.stack(found, 1)).amin(1)
    assert 0 <= float((least / cases["optimum"] - 1).mean()) < 0.0004


def test_no_exchange_of_two_legs_shortens_what_two_opt_leaves() -> None:
    cities = Tours().cases(1, 100)["cities"]
    found = tours.two_opt(cities, torch.arange(12).expand(100, -1))
    assert torch.equal(found.sort(1).values, torch.arange(12).expand(100, -1))
    for low, high in itertools.combinations(range(13), 2):
        order = [*range(low), *reversed(range(low, high)), *range(high, 12)]
        turned = tours.length(cities, found[:, order])
        assert bool((turned >= tours.length(cities, found) - 1e-9).all())


def test_a_relatives_trivial_error_is_measured() -> None:
    one = _one(cities=8.0, height=0.5)
    found = float(one.baseline_errors(one.cases(1, 3_000))["trivial"].mean())
    assert one.trivial_error == pytest.approx(found, rel=0.03)
    assert abs(one.trivial_error / Tours().trivial_error - 1) > 0.2


@families
def test_an_untrained_policy_goes_to_the_nearest_city_from_every_start(config: Config) -> None:
    cities = Tours().cases(1, 50)["cities"].float()
    module = Tours().build(config)
    assert torch.equal(module(cities), tours.Nearest()(cities))


@families
def test_a_policy_answers_a_whole_tour_from_every_city(config: Config) -> None:
    found = _policy(config)(Tours().cases(1, 50)["cities"].float())
    assert torch.equal(found.sort(2).values, torch.arange(12).expand(50, 12, -1))
    assert torch.equal(found[:, :, 0], torch.arange(12).expand(50, -1))


@families
def test_a_policy_does_not_care_how_a_case_is_laid_or_its_cities_are_numbered(
    config: Config,
) -> None:
    cities = Tours().cases(1, 200)["cities"]
    module = _policy(config)
    turn = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = tours.length(cities, module(cities.float()))
        moved = 3 * cities[:, order] @ turn + 5
        again = tours.length(cities[:, order], module(moved.float()))
    # Rounding may decide otherwise where two cities score the same.
    assert float((found[:, order] - again).abs().lt(1e-9).double().mean()) > 0.99


@families
def test_the_loss_is_the_likelihood_of_the_shortest_tour(config: Config) -> None:
    module, batch = _policy(config), Tours().train_batch(5, 0)
    cities = batch["cities"][:2]
    wanted = []
    for each in cities:
        known = module.survey(each.unsqueeze(0))
        likelihoods = []
        for start in range(0, 12, 2):
            likely, visited = 0.0, [start]
            for k in range(1, 11):
                mask = torch.zeros(1, 1, 12, dtype=torch.bool)
                mask[0, 0, visited] = True
                here = torch.tensor([[visited[-1]]])
                scores = module.scores(known, torch.tensor([[start]]), here, mask)
                logs = scores[0, 0].masked_fill(mask[0, 0], -torch.inf).log_softmax(0)
                visited.append((start + k) % 12)
                likely += float(logs[visited[-1]].detach())
            likelihoods.append(math.exp(likely))
        wanted.append(-math.log(sum(likelihoods) / 6) / 10)
    found = float(Tours().loss(module, {"cities": cities}).detach())
    assert found == pytest.approx(sum(wanted) / 2, rel=1e-4)


@pytest.mark.parametrize("cities", [8.0, 13.0])
def test_relatives_train_every_family(cities: float) -> None:
    one = _one(cities=cities, height=0.1)
    for role in ("evolver", "reinventor"):
        for config in one.families(role):
            module = one.build(config)
            one.loss(module, one.train_batch(1, 0)).backward()  # type: ignore[no-untyped-call]
            assert bool(one.errors(module, one.cases(1, 8)).isfinite().all())
