"""Distillation (Hinton et al. 2015): a small model learns from what larger ones say, and the truth.

A student begins with nothing, or, where it learns from several and one of them is small itself,
from that one. On the inputs of a training batch its loss is (1 - share) x its usual loss + share x
its distance to what the teachers say, both as its specialist defines them.
"""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from agent import checkpoints, tensors
from agent.specialists import evaluation, forms
from agent.specialists.base import Batch, Cases, Config, Specialist

SHARE = 0.5
"""Of the teachers in the loss, at the first step; from there it falls to 0."""
TAUGHT = 0.5
"""Of the steps, until the teachers' share is 0."""
CASES_PART = 4
"""Models are weighed on one in so many validation cases."""
ERROR_FLOOR = 1e-6
"""A model that errs less is trusted no more for it."""


class Model(NamedTuple):
    """A stored model in float32, its weights frozen; `sha256` is that of its weights as stored."""

    config: Config
    module: torch.nn.Module
    sha256: str

    @property
    def params(self) -> int:
        """How many numbers it has."""
        return sum(weight.numel() for weight in self.module.parameters())


def read(specialist: Specialist, folder: Path) -> Model:
    """A model from its folder. Raises errors.ArtifactError where it cannot be loaded."""
    config = checkpoints.read_config(folder / checkpoints.CONFIG_FILE)
    module = forms.build(specialist, config)
    weights = folder / checkpoints.WEIGHTS_FILE
    checkpoints.load_weights(weights, module)
    if config.form != forms.FLOAT:
        config = msgspec.structs.replace(config, form=forms.FLOAT)
        module = forms.in_float(module)
    module.eval().requires_grad_(False)
    return Model(config, module, tensors.weights_sha256_of_file(weights))


def error_of(specialist: Specialist, module: torch.nn.Module, cases: Cases) -> float:
    """Mean error on some of the validation cases: for choosing among models, not for a result."""
    part = {name: tensor[::CASES_PART] for name, tensor in cases.items()}
    return evaluation.evaluate(specialist, module, part).loss


def share(progress: float) -> float:
    """The teachers' share in the loss, given the share of steps taken, 0 to 1."""
    return SHARE * max(0.0, 1 - progress / TAUGHT)


def student(specialist: Specialist, teacher: Model) -> Config:
    """The first of the reinventor's families that has fewer numbers than the teacher; where none
    has, the first of all."""
    families = specialist.families("reinventor")
    for config in families:
        module = specialist.build(config)
        if sum(weight.numel() for weight in module.parameters()) < teacher.params:
            return config
    return families[0]


def beginning(
    specialist: Specialist, teachers: Sequence[Model], trust: Sequence[float]
) -> Model | None:
    """The most trusted of several teachers that are no larger than a reinventor, from which their
    student goes on; None for a single teacher, and where all are larger."""
    if len(teachers) == 1:
        return None
    small = specialist.families("reinventor")
    ranked = sorted(zip(trust, teachers, strict=True), key=lambda each: each[0], reverse=True)
    return next((one for _, one in ranked if one.config in small), None)


class Lesson:
    """What a student learns from: one teacher, or the ensemble of several."""

    def __init__(
        self,
        specialist: Specialist,
        teachers: Sequence[Model],
        trust: Sequence[float],
        device: torch.device,
    ) -> None:
        """What each of the teachers says counts as `trust` says, which adds up to 1."""
        self.start = beginning(specialist, teachers, trust)
        self.student = self.start.config if self.start else student(specialist, teachers[0])
        self.name = "+".join(f"{one.config}" for one in teachers)
        self.sha256 = hashlib.sha256("".join(one.sha256 for one in teachers).encode()).hexdigest()
        self._specialist = specialist
        self._trust = trust
        # Copies: where the student begins, a teacher stays as it was.
        self._teachers = [copy.deepcopy(one.module).to(device) for one in teachers]

    def loss(self, module: torch.nn.Module, batch: Batch, progress: float) -> torch.Tensor:
        """The student's loss on a batch, a float32 scalar, when so much of the training is done."""
        truth = self._specialist.loss(module, batch)
        taught_share = share(progress)
        if not taught_share:
            return truth
        distance = self._specialist.distance(
            self._specialist.outputs(module, batch), self._said(batch)
        )
        return (1 - taught_share) * truth + taught_share * distance

    def _said(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            said = [
                part * self._specialist.outputs(teacher, batch)
                for part, teacher in zip(self._trust, self._teachers, strict=True)
            ]
            return torch.stack(said).sum(0)


def trust(specialist: Specialist, models: Sequence[Model], cases: Cases) -> list[float]:
    """How much each model of an ensemble counts: 1 / its mean error, in shares of 1."""
    if len(models) == 1:
        return [1.0]
    worth = [1 / max(error_of(specialist, one.module, cases), ERROR_FLOOR) for one in models]
    return [one / sum(worth) for one in worth]
