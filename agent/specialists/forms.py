"""Modules from configurations: of one family or an ensemble of several, and the forms in which
weights are kept, as float32 or with linear layers of int8."""

import copy
from collections.abc import Callable

import msgspec
import torch
from torch.nn import functional

from agent.specialists import ensembles
from agent.specialists.base import Config, Specialist
from core import errors

FLOAT = ""
INT8 = "int8"
LEVELS = 127
"""Of int8, to either side of 0."""


def build(specialist: Specialist, config: Config) -> torch.nn.Module:
    """A module of a registered family, or an ensemble, in the form its config names.

    Raises errors.ArtifactError for a family, size or form that is not known, and for an ensemble
    that is none.
    """
    if config.form not in (FLOAT, INT8):
        raise errors.ArtifactError(
            f"weights of the form {config.form!r} are not known, so they cannot be loaded: use "
            f"{INT8!r}, or none for float32"
        )
    if config.members:
        module: torch.nn.Module = _ensemble(specialist, config)
    else:
        module = specialist.build(msgspec.structs.replace(config, form=FLOAT))
    return in_int8(module) if config.form == INT8 else module


def _ensemble(specialist: Specialist, config: Config) -> ensembles.Ensemble:
    least, most = ensembles.MEMBERS_MIN, ensembles.MEMBERS_MAX
    if not least <= len(config.members) <= most:
        raise errors.ArtifactError(
            f"an ensemble has {least} to {most} members, not {len(config.members)}"
        )
    if (config.family, config.sizes, config.base) != (ensembles.FAMILY, {}, ""):
        raise errors.ArtifactError(
            f"an ensemble is of the family {ensembles.FAMILY!r} and has no sizes and no base of "
            "its own: they are its members'"
        )
    for member in config.members:
        if member.members or member.form != FLOAT or member.base:
            raise errors.ArtifactError(
                "a member of an ensemble is a model in float32, no ensemble itself, and over no "
                "base model"
            )
    return specialist.ensemble([specialist.build(member) for member in config.members])


class Int8Linear(torch.nn.Module):
    """A linear layer with a scale for each row: row r of its weights is scale[r] x int8.

    On a CPU the input is rounded to int8 as well, with a scale for each of its rows, so that the
    product is one of whole numbers, exact in int32; elsewhere only the weights are int8.
    """

    def __init__(self, like: torch.nn.Linear) -> None:
        super().__init__()
        scale = like.weight.detach().abs().amax(1).clamp_min(1e-12) / LEVELS
        whole = (like.weight.detach() / scale[:, None]).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.bias = None
        if like.bias is not None:
            self.bias = torch.nn.Parameter(like.bias.detach().clone(), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] float32 to [..., out]."""
        if inputs.device.type != "cpu":
            return functional.linear(inputs, self.weight.float() * self.scale[:, None], self.bias)
        rows = inputs.reshape(-1, inputs.shape[-1])
        levels = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / LEVELS
        whole = (rows / levels).round().to(torch.int8)
        product = torch._int_mm(whole, self.weight.t()).float() * levels * self.scale
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*inputs.shape[:-1], -1)

    def as_linear(self) -> torch.nn.Linear:
        """The layer in float32 that it stands for."""
        rows, columns = self.weight.shape
        made = torch.nn.Linear(columns, rows, bias=self.bias is not None)
        with torch.no_grad():
            made.weight.copy_(self.weight.float() * self.scale[:, None])
            if self.bias is not None:
                made.bias.copy_(self.bias)
        return made


def in_int8(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose linear layers are int8; what else it has stays float32."""
    return _replaced(
        copy.deepcopy(module),
        # Not its subclasses: who derives from it may use the weights in another way.
        lambda one: Int8Linear(one) if type(one) is torch.nn.Linear else None,
    )


def in_float(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose int8 layers are float32 again, as far as they still know it."""
    return _replaced(
        copy.deepcopy(module), lambda one: one.as_linear() if isinstance(one, Int8Linear) else None
    )


def _replaced(
    module: torch.nn.Module, replacement: Callable[[torch.nn.Module], torch.nn.Module | None]
) -> torch.nn.Module:
    for name, child in module.named_children():
        other = replacement(child)
        if other is None:
            _replaced(child, replacement)
        else:
            setattr(module, name, other)
    return module
