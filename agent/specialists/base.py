"""What a specialist provides: data with exact truth, model families, errors in the node's unit."""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec
import torch

Role = Literal["evolver", "reinventor"]
Split = Literal["validation", "hidden"]
Batch = Mapping[str, torch.Tensor]
"""Named tensors whose first dimension is the count of cases."""
Cases = Mapping[str, torch.Tensor]
"""Inputs and truth, named tensors whose first dimension is the count of cases."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A registered model family and its sizes: with the weights, all that a checkpoint holds."""

    family: str
    sizes: dict[str, int] = {}


class Specialist(Protocol):
    """One kind of work a node can train. Every method is a pure function of its arguments.

    `seed` arguments are already keyed to node and split by the caller (`seeds.derive`).
    """

    name: str
    unit: str
    """What `errors` measures, in words."""
    trivial_error: float
    """Documented mean error of the trivial predictor."""
    tolerance: float
    """An error up to this counts as evidence."""
    baseline_of_record: str
    """The key of `baseline_errors` that results are compared with."""
    batch_size: int
    learning_rate: float

    def train_batch(self, seed: int, step: int) -> Batch:
        """The training batch of one step, so that the data cursor is one integer."""
        ...

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Inputs and exact truth for evaluation; hidden cases share nothing with the others."""
        ...

    def build(self, config: Config) -> torch.nn.Module:
        """A module of a registered family with fresh weights from torch's global generator.

        Raises errors.ArtifactError for a family or size this specialist does not know.
        """
        ...

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The training loss, a float32 scalar."""
        ...

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """Error of each case, float64 [count], at least 0, in `unit`."""
        ...

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """Errors [count] of classical methods on the same cases; always holds "trivial"."""
        ...

    def families(self, role: Role) -> list[Config]:
        """The configurations a rival starts from, best first."""
        ...

    def probe(self) -> tuple[torch.Tensor, ...]:
        """One input, batch 1, as `module(*probe)` takes it."""
        ...
