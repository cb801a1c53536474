"""How a module is measured: the same few lines for agents, judges and reports."""

import msgspec
import torch

from agent.specialists import seeds
from agent.specialists.base import Cases, Specialist

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


def case_errors(specialist: Specialist, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
    """Error of each case, float64 [count], 0 to WORST_ERROR; the module's mode is left as found."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            found = specialist.errors(module, cases)
    finally:
        module.train(was_training)
    return found.nan_to_num(nan=WORST_ERROR, posinf=WORST_ERROR).clamp(0, WORST_ERROR)


def evaluate(specialist: Specialist, module: torch.nn.Module, cases: Cases) -> Evaluation:
    """Mean error and evidence rate of the module on these cases."""
    found = case_errors(specialist, module, cases)
    return Evaluation(
        loss=float(found.mean()),
        evidence_rate=float((found <= specialist.tolerance).double().mean()),
        count=len(found),
    )


def baseline(specialist: Specialist, cases: Cases) -> float:
    """Mean error of the baseline of record on these cases; worth keeping, it costs a solver run."""
    return float(specialist.baseline_errors(cases)[specialist.baseline_of_record].mean())
