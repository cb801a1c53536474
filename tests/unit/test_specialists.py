"""What every registered specialist promises, whatever it trains."""

import msgspec
import pytest
import torch

from agent.specialists import base, evaluation, registry, seeds
from agent.specialists.base import Config, Specialist
from core import errors, workloads

torch.set_num_threads(1)  # as where models are trained and judged

ROLES: tuple[base.Role, ...] = ("evolver", "reinventor")
HIDDEN_CASES = 2_048
TRIVIAL_CASES = {"math-statistics": 20_000, "stats-bayesian": 100_000, "stats-time-series": 8_000}
"""How many cases settle the trivial error to 2 %, where 1,024 do not."""


@pytest.fixture(params=[name for name in registry.names() if name != workloads.TEXT])
def one(request: pytest.FixtureRequest) -> Specialist:
    return registry.get(str(request.param))


def _same(a: base.Batch, b: base.Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _rows(cases: base.Cases) -> set[bytes]:
    """Each case as bytes."""
    columns = [
        tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in cases.values()
    ]
    return {row.numpy().tobytes() for row in torch.cat(columns, 1)}


def _configs(one: Specialist) -> list[Config]:
    return [config for role in ROLES for config in one.families(role)]


def _weigh(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _step(one: Specialist, module: torch.nn.Module, batch: base.Batch, rate: float) -> torch.Tensor:
    """One step against the sign of each gradient; the loss before it."""
    module.zero_grad()
    loss = one.loss(module, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.sign())
    return loss.detach()


def test_a_batch_is_a_function_of_seed_and_step_alone(one: Specialist) -> None:
    torch.manual_seed(1)
    first = one.train_batch(5, 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert _same(first, one.train_batch(5, 7))
    assert torch.equal(before, torch.get_rng_state())


def test_other_seeds_and_other_steps_give_other_batches(one: Specialist) -> None:
    batches = [one.train_batch(seed, step) for seed, step in ((5, 7), (5, 8), (6, 7), (7, 5))]
    assert not any(_same(a, b) for at, a in enumerate(batches) for b in batches[:at])


def test_the_first_dimension_counts(one: Specialist) -> None:
    assert {len(tensor) for tensor in one.train_batch(1, 0).values()} == {one.batch_size}
    assert {len(tensor) for tensor in one.cases(1, 33).values()} == {33}


def test_cases_are_a_function_of_seed_and_split_alone(one: Specialist) -> None:
    for split in ("validation", "hidden"):
        torch.manual_seed(1)
        first = one.cases(3, 99, split)
        torch.manual_seed(2)
        assert _same(first, one.cases(3, 99, split))
        assert not _same(first, one.cases(4, 99, split))


def test_validation_and_hidden_cases_of_one_seed_share_nothing(one: Specialist) -> None:
    hidden = _rows(one.cases(3, HIDDEN_CASES, "hidden"))
    validation = _rows(one.cases(3, evaluation.VALIDATION_CASES, "validation"))
    assert (len(hidden), len(validation)) == (HIDDEN_CASES, evaluation.VALIDATION_CASES)
    assert not hidden & validation


def test_errors_are_one_number_a_case_and_never_negative(one: Specialist) -> None:
    cases = one.cases(1, 40)
    for config in _configs(one):
        found = one.errors(one.build(config), cases)
        assert (found.shape, found.dtype) == ((40,), torch.float64)
        assert bool((found >= 0).all())


def test_measuring_leaves_the_module_as_it_was(one: Specialist) -> None:
    module = one.build(one.families("evolver")[0])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for training in (True, False):
        module.train(training)
        evaluation.case_errors(one, module, one.cases(1, 8))
        assert module.training is training
    assert _same(before, module.state_dict())


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_weights_that_are_no_numbers_earn_a_finite_error_that_beats_nothing(
    one: Specialist, weight: float
) -> None:
    cases = one.cases(1, 300)
    for config in _configs(one):
        module = one.build(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(weight)
        found = evaluation.case_errors(one, module, cases)
        assert bool(found.isfinite().all())
        assert float(found.mean()) >= 0.9 * one.trivial_error


def test_the_trivial_predictor_errs_as_documented(one: Specialist) -> None:
    cases = one.cases(2, TRIVIAL_CASES.get(one.name, 1_024))
    found = float(one.baseline_errors(cases)["trivial"].mean())
    assert found == pytest.approx(one.trivial_error, rel=0.02)


def test_baselines_hold_the_trivial_one_and_the_one_of_record(one: Specialist) -> None:
    cases = one.cases(2, 500, "hidden")
    found = one.baseline_errors(cases)
    assert {"trivial", one.baseline_of_record} <= found.keys()
    for each in found.values():
        assert (each.shape, each.dtype) == ((500,), torch.float64)
        assert bool((each >= 0).all())
    record = float(found[one.baseline_of_record].mean())
    assert record <= float(found["trivial"].mean())


def test_every_family_of_both_roles_survives_the_way_into_a_checkpoint(one: Specialist) -> None:
    for role in ROLES:
        assert one.families(role)
    for config in _configs(one):
        read = msgspec.json.decode(msgspec.json.encode(config), type=Config)
        assert read == config
        weights = one.build(config).state_dict()
        one.build(read).load_state_dict(weights, strict=True)


def test_fresh_weights_come_from_the_global_generator(one: Specialist) -> None:
    for config in _configs(one):
        torch.manual_seed(11)
        first = one.build(config).state_dict()
        torch.manual_seed(11)
        assert _same(first, one.build(config).state_dict())


def test_an_unknown_family_is_refused(one: Specialist) -> None:
    known = one.families("evolver")[0]
    with pytest.raises(errors.ArtifactError, match="oracle"):
        one.build(Config(family="oracle", sizes=known.sizes))


def test_sizes_out_of_bounds_are_refused_before_memory_is_reserved(one: Specialist) -> None:
    for config in _configs(one):
        for size in config.sizes:
            for value in (-1, 0, 10**9):
                wrong = Config(family=config.family, sizes={**config.sizes, size: value})
                with pytest.raises(errors.ArtifactError, match=size):
                    one.build(wrong)


def test_missing_and_unknown_sizes_are_refused(one: Specialist) -> None:
    for config in _configs(one):
        for wrong in ({}, {**config.sizes, "depth_of_thought": 1}):
            with pytest.raises(errors.ArtifactError, match="takes the sizes"):
                one.build(Config(family=config.family, sizes=wrong))


def test_the_loss_is_a_float32_scalar_that_moves_every_parameter(one: Specialist) -> None:
    for config in _configs(one):
        torch.manual_seed(3)
        module = one.build(config)
        # Heads may start at zero and let nothing through, so the second step is looked at.
        for step in range(2):
            loss = _step(one, module, one.train_batch(1, step), 1e-3)
            assert (loss.shape, loss.dtype) == ((), torch.float32)
        still = [
            name
            for name, parameter in module.named_parameters()
            if parameter.grad is None or not bool(parameter.grad.any())
        ]
        assert still == []


def test_a_few_steps_of_training_lower_the_error_on_other_cases(one: Specialist) -> None:
    torch.manual_seed(3)
    module = one.build(one.families("reinventor")[0])
    held = one.train_batch(99, 0)
    before = float(one.loss(module, held).detach())
    for step in range(20):
        _step(one, module, one.train_batch(1, step), one.learning_rate / 4)
    assert float(one.loss(module, held).detach()) < 0.95 * before


def test_a_probe_is_one_input_that_every_family_answers(one: Specialist) -> None:
    assert {len(tensor) for tensor in one.probe()} == {1}
    for config in _configs(one):
        answer = one.build(config)(*one.probe())
        assert len(answer) == 1
        assert bool(answer.isfinite().all())


def test_the_reinventor_starts_smaller_than_the_evolver(one: Specialist) -> None:
    evolver, reinventor = (_weigh(one.build(one.families(role)[0])) for role in ROLES)
    assert reinventor < evolver


def test_every_node_has_its_own_validation_cases_the_same_for_everybody(one: Specialist) -> None:
    mine = evaluation.validation_cases(one, "some-node")
    assert {len(tensor) for tensor in mine.values()} == {1_024}
    assert _same(mine, evaluation.validation_cases(one, "some-node"))
    assert not _same(mine, evaluation.validation_cases(one, "another-node"))


def test_an_evaluation_is_the_mean_error_and_the_share_within_tolerance(one: Specialist) -> None:
    cases = one.cases(1, 50)
    torch.manual_seed(3)
    module = one.build(one.families("reinventor")[0])
    found = evaluation.case_errors(one, module, cases).tolist()
    said = evaluation.evaluate(one, module, cases)
    assert said.loss == pytest.approx(sum(found) / 50)
    assert said.evidence_rate == sum(error <= one.tolerance for error in found) / 50
    assert said.count == 50


def test_an_unknown_specialist_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(errors.NotFound, match=", ".join(registry.names())):
        registry.get("alchemy")


def test_every_specialist_has_its_parameters_and_a_home() -> None:
    assert registry.names() == list(workloads.KINDS)


def test_parameters_that_a_specialist_does_not_take_are_refused() -> None:
    with pytest.raises(errors.Invalid, match="'colour'; it takes"):
        registry.get("root-math", {"colour": 4.0})


def test_seeds_of_different_parts_never_meet() -> None:
    drawn = {
        seeds.derive(node, split, seed) for node in "ab" for split in "cd" for seed in range(9)
    }
    assert len(drawn) == 36
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_a_seed_is_the_sha256_of_its_parts_and_never_changes() -> None:
    assert seeds.derive("stats-bayesian", "validation") == 0x87DF6714FA45DD9F >> 1


def test_what_modules_say_can_be_averaged_compared_and_learned_from(one: Specialist) -> None:
    batch = one.train_batch(5, 7)
    torch.manual_seed(1)
    student, *teachers = (one.build(config) for config in _configs(one)[::-1][:3])
    _step(one, teachers[-1], batch, 1e-2)  # many families begin as the same baseline
    with torch.no_grad():
        said = [one.outputs(each, batch) for each in teachers]
        itself = float(one.distance(said[0], said[0]))
        taught = torch.stack(said).mean(0)
    distance = one.distance(one.outputs(student, batch), taught)
    assert (distance.shape, distance.dtype) == ((), torch.float32)
    assert abs(itself) < 1e-4
    assert itself < float(distance.detach()) < float("inf")
    half = one.batch_size // 2  # a batch may be taken in parts
    parts = [{name: rows[at : at + half] for name, rows in batch.items()} for at in (0, half)]
    apart = [
        float(one.distance(one.outputs(student, part), taught[at : at + half]).detach())
        for at, part in zip((0, half), parts, strict=True)
    ]
    assert sum(apart) / 2 == pytest.approx(float(distance.detach()), rel=1e-3, abs=1e-6)
    distance.backward()  # type: ignore[no-untyped-call]
    moved = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert any(bool(gradient.any()) for gradient in moved)
    assert all(bool(gradient.isfinite().all()) for gradient in moved)
