"""The ways to train: what each begins with, which of its weights move, and what it leaves."""

from typing import Literal, NamedTuple

import torch
from torch.nn.utils import parametrize

from core import errors
from core.events import Rival
from core.methods import LARGE_PARAMS_MIN, METHODS

Method = Literal["full", "lora", "quantize", "distill", "merge"]
RANK = 8
ADAPTED_NUMBERS_MIN = 1_024
"""Smaller weights are not adapted: an adapter would hold about as many numbers itself."""
EVOLVER = "it goes on from the champion, and every weight of so small a model can be trained"
REINVENTOR = "it starts from nothing, and the truth teaches it as much as a champion would"


class Choice(NamedTuple):
    """A method, and why it is this one."""

    method: Method
    reason: str


def choose(asked: str, role: Rival, has_base: bool, has_parents: bool = False) -> Choice:
    """The method of a job that asks for this one ("auto": for the best), if it can be had.

    `prepare` and `over_base` may still change it, when the model is known.

    Raises errors.TrainingError for a method that nobody here knows, or that the role excludes.
    """
    if role == "merge" and asked in ("auto", "merge"):
        return Choice("merge", "it was asked for")
    match asked:
        case "auto":
            return _best(role, has_base)
        case "full":
            return Choice("full", "it was asked for")
        case "lora" if role == "reinventor":
            return Choice("full", "a reinventor begins with nothing that could be adapted")
        case "lora" if not has_base:
            return Choice("full", "no champion reigns yet that could be adapted")
        case "lora":
            return Choice("lora", "it was asked for")
        case "quantize":
            return Choice("quantize", "it was asked for")
        case "distill" if role == "evolver":
            return Choice("full", "an evolver starts from the champion itself; students start anew")
        case "distill" if not has_parents:
            return Choice("full", "no champion reigns yet that could teach")
        case "distill":
            return Choice("distill", "it was asked for")
        case "merge":
            raise errors.TrainingError(f"only a task of the role merge merges, not its {role}")
    raise errors.TrainingError(
        f"the method {asked!r} is not known to this agent: use {', '.join(METHODS)}, or upgrade "
        "it if a newer version named it"
    )


def _best(role: Rival, has_base: bool) -> Choice:
    if role == "reinventor":
        return Choice("full", REINVENTOR)
    if has_base:
        return Choice("full", EVOLVER)
    return Choice("full", "no champion reigns yet to start from")


def prepare(choice: Choice, asked: str, module: torch.nn.Module) -> Choice:
    """Make a model ready for its method; another method where the model is too large or too small
    for that one."""
    params = sum(weight.numel() for weight in module.parameters())
    if asked == "auto" and choice.reason == EVOLVER and params >= LARGE_PARAMS_MIN:
        choice = Choice("lora", f"{params} weights are too many to train each of them")
    if choice.method == "lora" and not adapt(module):
        return Choice("full", "this champion has no layer that is large enough to adapt")
    return choice


def over_base(choice: Choice) -> Choice:
    """How a model over a base model is trained. Raises errors.TrainingError where it cannot be."""
    if choice.method == "quantize":
        raise errors.TrainingError(
            "adapters over a base model are not quantized: they are small, and the base is not "
            "ours to change"
        )
    return Choice("lora", "it is over a base model, whose own weights stay as they are")


class LowRank(torch.nn.Module):
    """A frozen weight plus a product of two thin matrices (LoRA, Hu et al. 2022).

    The weight is taken as a matrix of its first dimension by all others. The product begins at
    zero, so that training begins at the frozen weight itself.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.down = torch.nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is used."""
        return weight + (self.up @ self.down).reshape(weight.shape)


def adapt(module: torch.nn.Module, rank: int = RANK) -> bool:
    """Freeze a module and put adapters beside its large weights; whether it has any."""
    wanted = [
        (owner, name)
        for owner in list(module.modules())
        # Recurrent layers keep lists of their weights, which no adapter would reach.
        if not isinstance(owner, torch.nn.RNNBase)
        for name, weight in list(owner.named_parameters(recurse=False))
        if weight.ndim > 1 and weight.numel() >= ADAPTED_NUMBERS_MIN
    ]
    if not wanted:
        return False
    module.requires_grad_(False)
    for owner, name in wanted:
        weight = getattr(owner, name)
        thin = min(rank, weight.shape[0], weight[0].numel())
        # `unsafe`: a check would run the adapter in the middle of its making.
        parametrize.register_parametrization(owner, name, LowRank(weight, thin), unsafe=True)
    return True


def merge_adapters(module: torch.nn.Module) -> None:
    """Put what the adapters learned into the weights, and take them away."""
    for owner in list(module.modules()):
        for name in list(getattr(owner, "parametrizations", {})):
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    module.requires_grad_(True)
