"""Fields on the circle, and the maps of them that both flows learn."""

import pytest
import torch

from agent.specialists import operators, registry
from agent.specialists.base import Config
from agent.specialists.operators import POINTS

torch.set_num_threads(1)  # as where models are trained and judged

FLOWS = ("math-physics", "physics-fluid")
CONFIGS = [
    pytest.param(node, config, id=f"{node}-{config.family}-{place}")
    for node in FLOWS
    for role in ("evolver", "reinventor")
    for place, config in enumerate(registry.get(node).families(role))
]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_fields_have_a_largest_size_of_one_no_mean_and_so_many_waves() -> None:
    for waves in (1, 6, 24):
        fields = operators.draw_fields(_generator(), 200, waves)
        assert torch.allclose(fields.abs().amax(1), torch.ones(200, dtype=torch.float64))
        modes = operators.modes_of(fields).abs() / POINTS
        assert float(modes[:, 0].max()) < 1e-12
        assert float(modes[:, waves + 1 :].max()) < 1e-12
        assert float(modes[:, waves].max()) > 0.01


def test_waves_get_smaller_as_they_get_shorter() -> None:
    modes = operators.modes_of(operators.draw_fields(_generator(), 4_000, 6)).abs()[:, 1:7]
    size = modes.median(0).values
    share = size / size[0] * torch.arange(1, 7)
    assert torch.allclose(share, torch.ones(6, dtype=torch.float64), atol=0.15)


def test_more_points_show_the_same_fields() -> None:
    coarse = operators.draw_fields(_generator(), 20, 12)
    fine = operators.draw_fields(_generator(), 20, 12, 4 * POINTS)
    assert torch.allclose(fine[:, ::4], coarse, rtol=0, atol=1e-12)


def test_viscosities_are_log_uniform_in_their_range() -> None:
    share = (operators.draw_viscosity(_generator(), 20_000, 2e-3, 10) / 2e-3).log10()
    assert bool(((share >= 0) & (share <= 1)).all())
    for part in (0.1, 0.5, 0.9):
        assert float((share < part).double().mean()) == pytest.approx(part, abs=0.012)


def test_inputs_tell_the_field_the_viscosity_and_the_speed() -> None:
    fields = operators.draw_fields(_generator(), 3, 6)
    viscosity = torch.tensor([[1e-3], [0.01], [0.1]], dtype=torch.float64)
    inputs = operators.inputs_of(fields, viscosity, 2 * viscosity)
    assert inputs.shape == (3, operators.CHANNELS, POINTS)
    assert torch.equal(inputs[:, 0], fields)
    assert inputs[:, 1, 7].tolist() == pytest.approx([-1, 0, 1])
    assert torch.equal(inputs[:, 2, 7], 2 * viscosity[:, 0])
    assert torch.allclose(operators.viscosity_of(inputs), viscosity, rtol=1e-12)


@pytest.mark.parametrize(("node", "config"), CONFIGS)
def test_what_flows_on_a_circle_does_not_know_where_it_begins(node: str, config: Config) -> None:
    one = registry.get(node)
    torch.manual_seed(3)
    module = one.build(config)
    inputs = one.cases(1, 4)["inputs"].float()
    said, turned = module(inputs), module(inputs.roll(37, dims=2))
    assert torch.allclose(turned, said.roll(37, dims=1), atol=2e-5)


@pytest.mark.parametrize(("node", "config"), CONFIGS)
def test_training_twice_gives_the_same_bits(node: str, config: Config) -> None:
    one = registry.get(node)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert _trained(node, config) == _trained(node, config)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(not each.is_complex() for each in one.build(config).state_dict().values())


def _trained(node: str, config: Config) -> list[bytes]:
    one = registry.get(node)
    torch.manual_seed(3)
    module = one.build(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=one.learning_rate)
    for step in range(4):
        optimizer.zero_grad()
        one.loss(module, one.train_batch(1, step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [parameter.detach().numpy().tobytes() for parameter in module.parameters()]


def test_a_model_of_one_flow_may_begin_as_one_of_the_other() -> None:
    parent, child = (registry.get(node) for node in FLOWS)
    assert parent.families("evolver") == child.families("evolver")
    for config in child.families("evolver"):
        module = child.build(config)
        module.load_state_dict(parent.build(config).state_dict(), strict=True)
        assert {len(module(*one.probe())) for one in (parent, child)} == {1}
