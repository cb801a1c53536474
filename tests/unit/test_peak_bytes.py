"""Counted memory: against sums by hand, and the same however often it is asked."""

import functools
import itertools

import pytest
import torch

from agent.specialists import base, forms, registry
from agent.specialists.base import Config
from core import errors, workloads
from orchestrator import memory

torch.set_num_threads(1)  # as where models are judged

BYTES = 4
ROLES: tuple[base.Role, ...] = ("evolver", "reinventor")
NAMES = [name for name in registry.names() if name != workloads.TEXT]


class Chain(torch.nn.Module):
    """Doubles its input so many times; keeps a slice of every step, or nothing."""

    def __init__(self, steps: int, *, keeps: bool = False) -> None:
        super().__init__()
        self._steps, self._keeps = steps, keeps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for _ in range(self._steps):
            x = x * 2
            if self._keeps:
                kept.append(x[:, :1])
        return torch.cat(kept, 1) if kept else x


@functools.cache
def _table() -> torch.Tensor:
    return torch.ones(1_000, 50) * 2


class Constant(torch.nn.Module):
    """Multiplies with a table that is no parameter, made when first asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ _table()


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(3, 3)


def _probe(count: int = 1_000) -> tuple[torch.Tensor, ...]:
    return (torch.ones(1, count),)


def test_a_layer_takes_its_weights_its_input_and_its_output() -> None:
    layer = torch.nn.Linear(1_000, 500)
    assert memory.peak_bytes(layer, _probe()) == BYTES * (500 * 1_000 + 500 + 1_000 + 500)


def test_shared_weights_are_counted_once() -> None:
    layer = torch.nn.Linear(1_000, 1_000, bias=False)
    twice = torch.nn.Sequential(layer, layer)
    assert memory.peak_bytes(twice, _probe()) == BYTES * (1_000 * 1_000 + 3 * 1_000)


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_what_is_gone_makes_room(steps: int) -> None:
    assert memory.peak_bytes(Chain(steps), _probe()) == BYTES * 3 * 1_000


def test_a_slice_keeps_all_of_what_it_is_of() -> None:
    found = memory.peak_bytes(Chain(9, keeps=True), _probe())
    assert found == BYTES * (10 * 1_000 + 9)


def test_a_constant_counts_and_its_making_does_not() -> None:
    expected = BYTES * (1_000 * 50 + 1_000 + 50)
    assert [memory.peak_bytes(Constant(), _probe()) for _ in range(2)] == [expected] * 2


def test_a_model_that_cannot_be_asked_is_told_of() -> None:
    with pytest.raises(errors.ArtifactError, match="cannot be asked"):
        memory.peak_bytes(Broken(), _probe())


@pytest.mark.parametrize("name", NAMES)
def test_every_family_takes_its_weights_and_more_and_always_the_same(name: str) -> None:
    one = registry.get(name)
    for role, form in itertools.product(ROLES, (forms.FLOAT, forms.INT8)):
        for config in one.families(role):
            kept = Config(family=config.family, sizes=config.sizes, form=form)
            module = forms.build(one, kept).eval()
            weights = sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
            found = {memory.peak_bytes(module, one.probe()) for _ in range(3)}
            assert len(found) == 1
            assert weights < found.pop() < weights + 4_000_000
