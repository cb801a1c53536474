"""What a specialist provides: data with exact truth, model families, errors in the node's unit."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
import torch

from agent.specialists.ensembles import Ensemble

Role = Literal["evolver", "reinventor"]
Split = Literal["validation", "hidden"]
Batch = Mapping[str, torch.Tensor]
"""Named tensors whose first dimension is the count of cases."""
Cases = Mapping[str, torch.Tensor]
"""Inputs and truth, named tensors whose first dimension is the count of cases."""
Inputs = Mapping[str, torch.Tensor]
"""What a model is asked: the fields of `Specialist.inputs`, the first dimension their count.

Numbers are float64; of a list that may be shorter, what is not there is NaN. Text is its UTF-8 as
uint8, with zeros behind its end.
"""
Answers = Mapping[str, torch.Tensor]
"""What a model says: the fields of `Specialist.answers`, the first dimension their count."""


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A registered model family and its sizes: with the weights, all that a checkpoint holds.

    `form` says how the weights are kept (`agent.specialists.forms`), "" as float32. `base` is the
    digest of the base model that they are adapters over, "" where they are all there is. An
    ensemble is a family without sizes, and `members` what it is made of.
    """

    family: str
    sizes: dict[str, int] = {}
    form: str = ""
    base: str = ""
    members: tuple["Config", ...] = ()


class Field(NamedTuple):
    """One named number, list of numbers or text that a model is asked, or answers.

    What it means is said in both languages, with its unit. The first dimension of the shape is the
    most there may be where `fewest` is not 0. Numbers are from `least` to `most`, both included.
    """

    name: str
    en: str
    ar: str
    shape: tuple[int, ...] = ()
    fewest: int = 0
    least: float = -math.inf
    most: float = math.inf
    is_whole: bool = False
    is_text: bool = False


class Specialist(Protocol):
    """One kind of work a node can train. Every method is a pure function of its arguments.

    Made with all the parameters that `core.workloads.KINDS` names for it, as keywords.

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

    @property
    def inputs(self) -> tuple[Field, ...]:
        """What somebody who uses a model asks it, in a person's units, not in a network's."""
        ...

    @property
    def answers(self) -> tuple[Field, ...]:
        """What it answers."""
        ...

    @property
    def hidden_max(self) -> int | None:
        """How many hidden cases there are, of which a draw of fewer begins one of more; None where
        there is no end of them."""
        ...

    def train_batch(self, seed: int, step: int) -> Batch:
        """The training batch of one step, so that the data cursor is one integer."""
        ...

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Inputs and truth for evaluation, fewer than asked for where there are no more; hidden
        cases share nothing with the others."""
        ...

    def shifted(self, seed: int, count: int) -> Cases | None:
        """Inputs a fixed part beyond those that models are trained on, with truth as exact as that
        of `cases`, in the shapes that `errors` takes; fewer than asked for where there are no more.
        None where there is no sense in it."""
        ...

    def build(self, config: Config) -> torch.nn.Module:
        """A module of a registered family with fresh weights from torch's global generator.

        One that has a `learning_rate` of its own is trained at that, and one that `stays_on_device`
        is measured where it is trained, not on the CPU.

        Raises errors.ArtifactError for a family or size this specialist does not know.
        """
        ...

    def ensemble(self, members: Sequence[torch.nn.Module]) -> Ensemble:
        """Modules of this specialist as one that answers, and can be trained, in their place.

        Raises errors.ArtifactError where they cannot be taken together.
        """
        ...

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The training loss, a float32 scalar."""
        ...

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """What the module says of a training batch, so that a mean over modules is an ensemble."""
        ...

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """How far outputs are from what a teacher says: a float32 scalar, at least 0, the mean over
        the cases, about as large as `loss` where the teacher is right."""
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

    def asked(self, cases: Cases) -> Inputs:
        """Cases as somebody would ask them, without their truth."""
        ...

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """What the module answers to each; not finite where it has no answer."""
        ...

    def probe(self) -> tuple[torch.Tensor, ...]:
        """One input, batch 1, as `module(*probe)` takes it."""
        ...
