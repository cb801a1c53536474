"""Ensembles: several models that answer as one, for every specialist."""

import copy
from pathlib import Path

import msgspec
import pytest
import torch

from agent import checkpoints
from agent.executors import methods
from agent.specialists import ensembles, evaluation, forms, registry
from agent.specialists.base import Config, Specialist
from core import errors
from tests import texts

CASES = 12
TOGETHER = [name for name in registry.names() if name != "math-optimization"]


def specialist_of(name: str, tmp_path: Path) -> Specialist:
    """The specialist of that name; of texts, over a small corpus."""
    return registry.get(
        name, corpus=str(texts.unpack(tmp_path / "corpus")) if name == "text" else ""
    )


def members_of(specialist: Specialist) -> tuple[Config, ...]:
    """An evolver's family and a reinventor's."""
    return (specialist.families("evolver")[0], specialist.families("reinventor")[0])


def config_of(specialist: Specialist, form: str = "") -> Config:
    return Config(family=ensembles.FAMILY, members=members_of(specialist), form=form)


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    """Weights as after some training: many begin at zero, where nothing shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return module


def built(specialist: Specialist) -> ensembles.Ensemble:
    module = forms.build(specialist, config_of(specialist))
    assert isinstance(module, ensembles.Ensemble)
    for member in module.members:
        disturbed(member)
    return module


def errors_of(specialist: Specialist, module: torch.nn.Module) -> torch.Tensor:
    return evaluation.case_errors(specialist, module, specialist.cases(7, CASES))


@pytest.mark.parametrize("name", TOGETHER)
def test_an_ensemble_is_measured_trained_asked_and_timed_like_any_model(
    name: str, tmp_path: Path
) -> None:
    specialist = specialist_of(name, tmp_path)
    module = built(specialist)
    first, second = module.members
    batch = specialist.train_batch(1, 0)
    assert errors_of(specialist, module).isfinite().all()
    loss = specialist.loss(module, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    for member in (first, second):
        assert any(weight.grad is not None for weight in member.parameters())
    assert specialist.outputs(module, batch).isfinite().all()
    assert module(*specialist.probe()).shape == first(*specialist.probe()).shape
    answers = specialist.answer(module, specialist.asked(specialist.cases(7, CASES)))
    assert set(answers) == {field.name for field in specialist.answers}


@pytest.mark.parametrize("name", TOGETHER)
def test_an_ensemble_that_trusts_one_member_alone_errs_as_that_one_does(
    name: str, tmp_path: Path
) -> None:
    specialist = specialist_of(name, tmp_path)
    module = built(specialist)
    for number, member in enumerate(module.members):
        module.share_out([float(place == number) for place in range(2)])
        alone = errors_of(specialist, member)
        assert torch.allclose(errors_of(specialist, module), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TOGETHER)
def test_an_ensemble_is_stored_as_tensors_and_a_configuration_and_loaded_again(
    name: str, tmp_path: Path
) -> None:
    specialist = specialist_of(name, tmp_path)
    module = built(specialist)
    module.share_out([0.25, 0.75])
    checkpoints.write_candidate(tmp_path / "model", module, config_of(specialist), tmp_path)
    config = checkpoints.read_config(tmp_path / "model" / checkpoints.CONFIG_FILE)
    assert config == config_of(specialist)
    again = forms.build(specialist, config)
    checkpoints.load_weights(tmp_path / "model" / checkpoints.WEIGHTS_FILE, again)
    assert isinstance(again, ensembles.Ensemble)
    assert again.shares() == pytest.approx([0.25, 0.75])
    assert torch.equal(errors_of(specialist, again), errors_of(specialist, module))


@pytest.mark.parametrize("name", TOGETHER)
def test_an_ensemble_is_quantized_and_adapted_in_its_members(name: str, tmp_path: Path) -> None:
    specialist = specialist_of(name, tmp_path)
    module = built(specialist)
    small = forms.in_int8(module)
    fresh = forms.build(specialist, config_of(specialist, forms.INT8))
    assert {one: weight.dtype for one, weight in small.state_dict().items()} == {
        one: weight.dtype for one, weight in fresh.state_dict().items()
    }
    assert errors_of(specialist, small).isfinite().all()
    adapted = copy.deepcopy(module)
    if methods.adapt(adapted):
        methods.merge_adapters(adapted)
        assert torch.allclose(errors_of(specialist, adapted), errors_of(specialist, module))


def test_no_trust_makes_shares_that_are_not_positive_or_do_not_add_up_to_one() -> None:
    module = ensembles.Ensemble([torch.nn.Identity(), torch.nn.Identity()])
    for trust in ([-1e30, 1e30], [80.0, 80.0], [0.0, -7.0]):
        with torch.no_grad():
            module.trust.copy_(torch.tensor(trust))
        said = module(torch.ones(3))
        assert torch.allclose(said, torch.ones(3))


def test_the_probabilities_of_texts_taken_together_add_up_to_one_whatever_the_trust(
    tmp_path: Path,
) -> None:
    specialist = specialist_of("text", tmp_path)
    module = built(specialist)
    with torch.no_grad():
        module.trust.copy_(torch.tensor([900.0, 900.0]))
    first, second = (errors_of(specialist, member) for member in module.members)
    assert (errors_of(specialist, module) >= torch.minimum(first, second) - 1e-4).all()


def test_where_members_would_break_a_nodes_rule_there_is_no_ensemble(tmp_path: Path) -> None:
    specialist = specialist_of("math-optimization", tmp_path)
    with pytest.raises(errors.ArtifactError, match="12 products with the matrix"):
        forms.build(specialist, config_of(specialist))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": 1}, "2 to 4 members, not 1"),
        ({"members": 5}, "2 to 4 members, not 5"),
        ({"family": "learned-gain"}, "is of the family 'ensemble'"),
        ({"sizes": {"width": 8}}, "has no sizes"),
        ({"base": "b" * 64}, "no base of its own"),
        ({"member": {"form": "int8"}}, "a model in float32"),
        ({"member": {"base": "b" * 64}}, "over no base model"),
        ({"member": {"members": 2}}, "no ensemble itself"),
        ({"member": {"family": "unheard"}}, "has no family"),
    ],
)
def test_a_configuration_that_is_no_sound_ensemble_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    specialist = specialist_of("stats-bayesian", tmp_path)
    plain = members_of(specialist)[1]
    config = Config(family=ensembles.FAMILY, members=(plain, plain))
    for name, value in changes.items():
        if name == "members":
            assert isinstance(value, int)
            config = msgspec.structs.replace(config, members=(plain,) * value)
        elif name == "member":
            assert isinstance(value, dict)
            nested = {**value, "members": (plain, plain)} if "members" in value else value
            member = msgspec.structs.replace(plain, **nested)
            config = msgspec.structs.replace(config, members=(member, plain))
        else:
            config = msgspec.structs.replace(config, **{name: value})
    with pytest.raises(errors.ArtifactError, match=words):
        forms.build(specialist, config)


def test_the_family_of_an_ensemble_without_members_is_not_known(tmp_path: Path) -> None:
    specialist = specialist_of("stats-bayesian", tmp_path)
    with pytest.raises(errors.ArtifactError, match="has no family 'ensemble'"):
        forms.build(specialist, Config(family=ensembles.FAMILY))
