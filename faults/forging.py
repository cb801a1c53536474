"""Models for the suite of cheats: honest ones, trained for real, and forged ones."""

import math
import os
import pickle
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import safetensors.torch
import torch

from agent.specialists import base, evaluation, registry
from orchestrator import hidden

SPECIALIST = "math-statistics"
OTHER = "stats-bayesian"
RATE = 5e-3
DENORMAL = 1e-39
"""Below the least normal number of float32, 1.2e-38."""
LIVE = 16
"""Units of a model with more of them, whose others compute with denormal numbers."""

Batches = Callable[[int], base.Batch]


class Forged(NamedTuple):
    """The two files of a stored model, and what its maker claims of it."""

    weights: bytes
    config: bytes
    claims: dict[str, float]


def sets(width: int) -> base.Config:
    """A network over the set of readings: the wider, the better it learns, the more it costs."""
    return base.Config(family="deep-sets", sizes={"width": width})


SMALL = base.Config(family="sufficient-statistics", sizes={"width": 24})


def trained(
    config: base.Config, steps: int, seed: int, batches: Batches | None = None
) -> torch.nn.Module:
    """A model trained for so many steps, on fresh cases unless on others; some thousand a few
    seconds."""
    specialist = registry.get(SPECIALIST)
    torch.manual_seed(seed)
    module = specialist.build(config)
    adam = torch.optim.Adam(module.parameters(), RATE)
    decay = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        batch = specialist.train_batch(seed, step) if batches is None else batches(step)
        adam.zero_grad()
        specialist.loss(module, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adam.step()
        decay.step()
    return module.eval().requires_grad_(False)


def over_and_over(cases: base.Cases, count: int) -> Batches:
    """The first so many cases as training batches, again and again."""
    some = {name: each[:count].float() for name, each in cases.items()}
    size = registry.get(SPECIALIST).batch_size

    def batch(step: int) -> base.Batch:
        chosen = torch.arange(step * size, (step + 1) * size) % count
        return {name: each[chosen] for name, each in some.items()}

    return batch


def honest(module: torch.nn.Module, config: base.Config, cases: base.Cases) -> Forged:
    """A model with what is measured of it on some cases."""
    specialist = registry.get(SPECIALIST)
    with torch.inference_mode():
        errors = specialist.errors(module, cases).numpy()
    claims = {
        "loss": float(np.mean(errors)),
        "evidence_rate": float(np.mean(errors <= specialist.tolerance)),
    }
    return Forged(weights_of(module), msgspec.json.encode(config), claims)


def weights_of(module: torch.nn.Module) -> bytes:
    """As agents store them."""
    return safetensors.torch.save(
        {name: each.contiguous() for name, each in module.state_dict().items()}
    )


def of_another_node(seed: int) -> Forged:
    """A model of other work, as its own node would have it."""
    specialist = registry.get(OTHER)
    config = specialist.families("reinventor")[0]
    torch.manual_seed(seed)
    module = specialist.build(config)
    claims = {"loss": 1e-6, "evidence_rate": 1.0}
    return Forged(weights_of(module), msgspec.json.encode(config), claims)


def spoilt(good: Forged, number: float) -> Forged:
    """A model with one of its numbers in place of another."""
    tensors = safetensors.torch.load(good.weights)
    first = next(iter(tensors.values()))
    first.view(-1)[0] = number
    return good._replace(weights=safetensors.torch.save(tensors))


class _Payload:
    """What unpickling this would do."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def pickled(good: Forged, marker: str) -> Forged:
    """Code that would leave a file, under the name of weights."""
    return good._replace(weights=pickle.dumps(_Payload(marker)))


def old_cases(secret: bytes, node_id: str, round_id: str) -> base.Cases:
    """The hidden cases that a revealed secret tells of its round."""
    return hidden.rank_cases(registry.get(SPECIALIST), secret, node_id, round_id)


def validation(node_id: str) -> base.Cases:
    """What every agent of a node measures itself on."""
    return evaluation.validation_cases(registry.get(SPECIALIST), node_id)


def denormal(live: torch.nn.Module, width: int) -> torch.nn.Module:
    """A wider network that answers as this one of LIVE units does: its other units hand denormal
    numbers to each other, and to nobody else."""
    module = registry.get(SPECIALIST).build(sets(width))
    small = live.state_dict()
    wide = {name: torch.zeros_like(each) for name, each in module.state_dict().items()}
    for name, each in small.items():
        wide[name][tuple(slice(0, size) for size in each.shape)] = each
    # What the pooled features are followed by, the logarithm of the count, is the last input.
    joined = "together.0.weight"
    wide[joined] = torch.zeros_like(wide[joined])
    wide[joined][:LIVE, :LIVE] = small[joined][:, :LIVE]
    wide[joined][:LIVE, -1] = small[joined][:, -1]
    for name in ("each.0.bias", "each.2.bias", "together.0.bias", "together.2.bias"):
        wide[name][LIVE:] = DENORMAL
    for name in ("each.2.weight", "together.2.weight"):
        wide[name][LIVE:, LIVE:] = 1 / width
    wide[joined][LIVE:, LIVE:width] = 1 / width
    module.load_state_dict(wide)
    return module.eval().requires_grad_(False)
