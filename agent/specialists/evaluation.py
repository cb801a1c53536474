"""How a module is measured: the same few lines for agents, judges and reports."""

import msgspec
import torch

from agent.specialists import seeds, shortage
from agent.specialists.base import Cases, Specialist
from core import errors

VALIDATION_CASES = 1024
WORST_ERROR = 1e6
"""What an error that is not a number, infinite or larger counts as.

It is finite, so that means, logarithms and JSON stay defined, and far beyond any useful model.
"""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A module measured on some cases."""

    loss: float
    """Mean error, in the specialist's unit; at most WORST_ERROR."""
    evidence_rate: float
    """Share of the cases whose error is within the specialist's tolerance, 0 to 1."""
    count: int


def validation_cases(specialist: Specialist, node_id: str, count: int = VALIDATION_CASES) -> Cases:
    """The public validation cases of a node: the same for everybody, different for each node."""
    return specialist.cases(seeds.derive(node_id, "validation"), count, "validation")


def case_errors(
    specialist: Specialist, module: torch.nn.Module, cases: Cases, at_once: int = 0
) -> torch.Tensor:
    """Error of each case, float64 [count], 0 to WORST_ERROR; the module's mode is left as found.

    So many are taken at once, 0 for all, and half as many where memory runs out. Raises
    errors.Unfit where not even one finds room.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            found = _errors(specialist, module, cases, at_once)
    finally:
        module.train(was_training)
    return found.nan_to_num(nan=WORST_ERROR, posinf=WORST_ERROR).clamp(0, WORST_ERROR)


def _errors(
    specialist: Specialist, module: torch.nn.Module, cases: Cases, at_once: int
) -> torch.Tensor:
    count = len(next(iter(cases.values())))
    at_once = min(at_once or count, count)
    while True:
        try:
            if at_once == count:
                return specialist.errors(module, cases)
            parts = (
                {name: tensor[first : first + at_once] for name, tensor in cases.items()}
                for first in range(0, count, at_once)
            )
            return torch.cat([specialist.errors(module, part) for part in parts])
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_out_of_memory(error):
                raise
            if at_once == 1:
                raise errors.Unfit(shortage.words("this device")) from error
        at_once //= 2
        shortage.clear()


def evaluate(
    specialist: Specialist, module: torch.nn.Module, cases: Cases, at_once: int = 0
) -> Evaluation:
    """Mean error and evidence rate of the module on these cases, taken as `case_errors` does."""
    found = case_errors(specialist, module, cases, at_once)
    return Evaluation(
        loss=float(found.mean()),
        evidence_rate=float((found <= specialist.tolerance).double().mean()),
        count=len(found),
    )
