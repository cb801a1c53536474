"""What every specialist promises, and that each one's truth is the truth."""

import pytest
import torch

from agent.specialists import addition, base, evaluation, filtering, lasso, registry, seeds
from agent.specialists.base import Config, Specialist
from core import errors

NAMES = ("root-math", "stats-bayesian", "opt-convex")
ROLES: tuple[base.Role, ...] = ("evolver", "reinventor")


@pytest.fixture(params=NAMES)
def one(request: pytest.FixtureRequest) -> Specialist:
    return registry.get(str(request.param))


def equal(a: base.Batch, b: base.Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def count(cases: base.Cases) -> int:
    return len(next(iter(cases.values())))


def test_a_batch_is_a_function_of_seed_and_step(one: Specialist) -> None:
    assert equal(one.train_batch(5, 7), one.train_batch(5, 7))
    assert not equal(one.train_batch(5, 7), one.train_batch(5, 8))
    assert not equal(one.train_batch(5, 7), one.train_batch(6, 7))
    assert count(one.train_batch(5, 7)) == one.batch_size


def test_hidden_cases_are_a_function_of_the_seed_and_enough_for_the_judge(one: Specialist) -> None:
    hidden = one.cases(3, 2_048, "hidden")
    assert count(hidden) == 2_048
    assert equal(hidden, one.cases(3, 2_048, "hidden"))
    assert not equal(hidden, one.cases(4, 2_048, "hidden"))
    assert not equal(one.cases(3, 99, "hidden"), one.cases(3, 99, "validation"))


def test_every_family_trains_and_is_measured(one: Specialist) -> None:
    cases = one.cases(1, 64)
    for role in ROLES:
        for config in one.families(role):
            module = one.build(config)
            loss = one.loss(module, one.train_batch(1, 0))
            assert loss.shape == ()
            assert loss.dtype == torch.float32
            loss.backward()  # type: ignore[no-untyped-call]
            assert any(p.grad is not None and p.grad.any() for p in module.parameters())
            found = evaluation.case_errors(one, module, cases)
            assert found.shape == (64,)
            assert found.dtype == torch.float64
            assert bool((found >= 0).all())
            module(*one.probe())


def test_the_reinventor_is_smaller_than_the_evolver(one: Specialist) -> None:
    evolver, reinventor = (
        sum(p.numel() for p in one.build(one.families(role)[0]).parameters()) for role in ROLES
    )
    assert reinventor < evolver


def test_what_is_no_family_is_refused(one: Specialist) -> None:
    known = one.families("evolver")[0]
    for config in (
        Config(family="oracle"),
        Config(family=known.family),
        Config(family=known.family, sizes=dict.fromkeys(known.sizes, 10**9)),
    ):
        with pytest.raises(errors.ArtifactError):
            one.build(config)


def test_the_trivial_error_is_what_is_documented_and_the_baseline_beats_it(
    one: Specialist,
) -> None:
    found = one.baseline_errors(one.cases(2, 2_048, "hidden"))
    trivial = float(found["trivial"].mean())
    assert trivial == pytest.approx(one.trivial_error, rel=0.08)
    assert float(found[one.baseline_of_record].mean()) <= trivial


def test_an_unknown_specialist_and_parameters_are_refused() -> None:
    with pytest.raises(errors.NotFound, match="root-math"):
        registry.get("alchemy")
    with pytest.raises(errors.Invalid):
        registry.get("root-math", {"digits": 4.0})


def test_the_filters_truth_is_the_conditional_of_the_joint_gaussian() -> None:
    cases = filtering.Filtering().cases(9, 20)
    for readings, (log_q, log_r), mean, sd in zip(
        cases["readings"], cases["scales"], cases["mean"], cases["sd"], strict=True
    ):
        q, r = float(log_q.exp()), float(log_r.exp())
        times = torch.arange(1, len(readings) + 1, dtype=torch.float64)
        # Cov(state_s, state_t) of a random walk from N(0, 1) is 1 + q^2 min(s, t).
        walk = 1 + q**2 * torch.minimum(times[:, None], times[None, :])
        seen = walk + r**2 * torch.eye(len(times), dtype=torch.float64)
        weights = torch.linalg.solve(seen, walk[-1])
        assert float(mean) == pytest.approx(float(weights @ readings), abs=1e-8)
        assert float(sd) ** 2 == pytest.approx(float(walk[-1, -1] - weights @ walk[-1]), abs=1e-8)


def prompts(rows: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row.tolist()[: addition.PROMPT_TOKENS]) for row in rows}


def test_hidden_sums_are_never_those_of_training_or_validation() -> None:
    one = addition.Addition()
    trained = set[tuple[int, ...]]()
    for step in range(200):
        trained |= prompts(one.train_batch(1, step)["tokens"])
    validated = prompts(one.cases(1, 1_024)["prompt"])
    hidden = prompts(one.cases(1, 2_048, "hidden")["prompt"])
    assert len(hidden) == 2_048
    assert not hidden & trained
    assert not hidden & validated
    assert not validated & trained


def test_lassos_matrix_is_public_and_has_unit_columns() -> None:
    matrix = lasso.matrix()
    assert matrix.shape == (64, 128)
    assert torch.allclose(matrix.norm(dim=0), torch.ones(128, dtype=torch.float64))
    assert torch.equal(matrix, lasso.matrix())


def test_seeds_of_different_parts_never_meet() -> None:
    drawn = {
        seeds.derive(node, split, seed) for node in "ab" for split in "cd" for seed in range(9)
    }
    assert len(drawn) == 36
    assert all(0 <= seed < 2**63 for seed in drawn)
