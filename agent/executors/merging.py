"""Merges: what several models make together.

A soup (Wortsman et al. 2022) lies between the weights of models of one architecture: it costs no
training, and is worth something where they have a start in common. An ensemble says the mean of
what its members say, and costs what they cost. A student is trained on the ensemble of all of them
(`distilling`). The best of these, or of what was there before, is quantized where that saves bytes.
"""

import copy
import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from agent import checkpoints
from agent.executors import distilling, jobs, quantizing, standstill
from agent.executors.distilling import Model
from agent.specialists import ensembles, evaluation, registry
from agent.specialists.base import Cases, Config, Specialist
from core import chunks, errors

SHARES = (0.5, 0.75, 0.25, 0.9, 0.1)
"""Of what is in a mixture, that are tried when a model is added, in that order."""
QUANTIZED_BYTES_MAX = 0.9
"""Of its bytes in float32; an int8 form that saves less is not worth a judge's time."""
STUDENT_BUDGET_MIN = 0.5
"""Of the whole: its student is trained that long, however long the mixing took."""
SOUP_BUDGET_MAX = 0.25
"""Of the whole; what is left up to the student's part is for the ensemble."""

Report = Callable[[jobs.Report], None]
AskedToStop = Callable[[], jobs.Stop | None]
Train = Callable[[jobs.Job, Report, AskedToStop], jobs.Result | jobs.Stopped | None]
Mix = Callable[[Sequence[Model], Sequence[float]], Model | None]
"""Models under shares that add up to 1 as one, or None where they cannot be mixed."""


class Weighed(NamedTuple):
    """A model, and its error by `distilling.error_of`."""

    error: float
    model: Model


class Mixture(NamedTuple):
    """The best that was found of some models, and the share of each."""

    of: Sequence[Model]
    shares: list[float]
    model: Model
    error: float


class Made(NamedTuple):
    """A model in float32, and what is told of it."""

    result: jobs.Result
    model: Model


def run(
    job: jobs.Job, cases: Cases | None, train: Train, report: Report, asked_to_stop: AskedToStop
) -> jobs.Result | jobs.Stopped | None:
    """Make the merges of the models in `job.parents`, the better one with the others beside it.

    `train` trains the student; it goes on where it was cut, all else is made anew each time. Of
    several processes the first makes that, on validation cases that only it has.

    Raises errors.TrainingError for fewer than two parents, and as `train` does; ArtifactError for
    one that cannot be loaded.
    """
    began = standstill.now()
    if len(job.parents) < 2:
        raise errors.TrainingError(
            f"a merge takes two models or more, and this task names {len(job.parents)}"
        )
    if cases is None:
        return train(job, report, asked_to_stop)
    specialist = registry.get(job.specialist, job.parameters, job.corpus, job.base_model)
    merge = _Merge(job, specialist, cases)
    merge.mix(asked_to_stop)
    spent_seconds = standstill.now() - began
    least_seconds = STUDENT_BUDGET_MIN * job.budget_seconds
    student = train(
        msgspec.structs.replace(
            job, budget_seconds=max(least_seconds, job.budget_seconds - spent_seconds)
        ),
        report,
        asked_to_stop,
    )
    return merge.result(student) if isinstance(student, jobs.Result) else student


class _Merge:
    """One job at work."""

    def __init__(self, job: jobs.Job, specialist: Specialist, cases: Cases) -> None:
        self._specialist, self._cases = specialist, cases
        self._directory = Path(job.directory)
        self._budget_seconds = math.inf if job.steps else job.budget_seconds
        self._first = Path(job.parents[0])
        self._models = [distilling.read(specialist, Path(folder)) for folder in job.parents]
        self._weighed = weigh(specialist, self._models, cases)
        self._soup: Mixture | None = None
        self._ensemble: Mixture | None = None
        self._left_out: list[str] = []
        """What was not made, and why."""

    def mix(self, asked_to_stop: AskedToStop) -> None:
        """Make soup and ensemble, as far as they are worth something."""
        began, budget = standstill.now(), self._budget_seconds
        self._soup = self._souped(asked_to_stop, began + SOUP_BUDGET_MAX * budget)
        until = began + (1 - STUDENT_BUDGET_MIN) * budget
        self._ensemble = self._assembled(asked_to_stop, until)

    def _souped(self, asked_to_stop: AskedToStop, until: float) -> Mixture | None:
        like = alike(self._weighed)
        soup = stir(self._specialist, like, self._cases, soup_of, asked_to_stop, until)
        if soup is None:
            self._left_out.append(
                "no two of them have one architecture, so there is no soup of their weights"
            )
            return None
        worst = max(one.error for one in like)
        if soup.error <= worst:
            return soup
        self._left_out.append(
            f"a soup of their weights errs by {soup.error:.3g} on validation cases, more than the "
            f"worst of them ({worst:.3g}), and is left out"
        )
        return None

    def _assembled(self, asked_to_stop: AskedToStop, until: float) -> Mixture | None:
        def mixed(models: Sequence[Model], shares: Sequence[float]) -> Model | None:
            return ensemble_of(self._specialist, models, shares)

        try:
            found = stir(self._specialist, self._weighed, self._cases, mixed, asked_to_stop, until)
        except errors.ArtifactError as error:
            self._left_out.append(f"there is no ensemble: {error}")
            return None
        best = self._weighed[0].error
        if found is None:
            self._left_out.append(
                f"an ensemble of any two would have over {ensembles.MEMBERS_MAX} members, or more "
                "bytes than can be stored"
            )
        elif found.error >= best:
            self._left_out.append(
                f"an ensemble errs by {found.error:.3g} on validation cases, not less than the "
                f"best of them ({best:.3g}), and is left out"
            )
            found = None
        return found

    def result(self, student: jobs.Result) -> jobs.Result:
        """The best of all that was made, the others beside it."""
        folder = Path(student.candidate_directory)
        made = [Made(student, distilling.read(self._specialist, folder))]
        for mixture, name in ((self._soup, "soup"), (self._ensemble, "ensemble")):
            if mixture is not None:
                made.append(self._written(mixture, name, student))
        small = self._quantized([*made, self._before(student)])
        words = f"a student of what {len(self._models)} models say together"
        told = msgspec.structs.replace(student, method_reason="; ".join([words, *self._left_out]))
        results = [told, *(one.result for one in made[1:]), *([small] if small else [])]
        better, *others = sorted(results, key=lambda one: one.loss)
        return msgspec.structs.replace(better, others=others)

    def _written(self, mixture: Mixture, name: str, student: jobs.Result) -> Made:
        """A mixture as a candidate in a folder of its own, measured like the student."""
        model = mixture.model
        model.module.requires_grad_(True)
        folder = self._directory / name
        written = checkpoints.write_candidate(folder, model.module, model.config, self._directory)
        parts = " + ".join(
            f"{share:.3g} x {one.sha256[:8]}"
            for share, one in zip(mixture.shares, mixture.of, strict=True)
        )
        what = "a soup of weights" if name == "soup" else "an ensemble, the mean of what they say"
        told = self._told(student, model, name, f"{what}: {parts}")
        return Made(
            msgspec.structs.replace(
                told,
                bytes=written.bytes,
                weights_sha256=written.sha256,
                candidate_directory=str(folder),
            ),
            model,
        )

    def _before(self, student: jobs.Result) -> Made:
        """The first of the parents: the champion, if there is one."""
        model = self._models[0]
        told = self._told(student, model, "", model.sha256[:8])
        size = sum(path.stat().st_size for path in checkpoints.model_files(self._first))
        return Made(msgspec.structs.replace(told, bytes=size), model)

    def _told(self, student: jobs.Result, model: Model, name: str, reason: str) -> jobs.Result:
        measured = evaluation.evaluate(
            self._specialist, model.module, self._cases, student.micro_batch
        )
        return msgspec.structs.replace(
            student,
            made=name,
            steps=0,
            total_steps=0,
            loss=measured.loss,
            evidence_rate=measured.evidence_rate,
            params=model.params,
            family=model.config.family,
            method_reason=reason,
            deadline=False,
            resumed_from=0,
        )

    def _quantized(self, made: Sequence[Made]) -> jobs.Result | None:
        """The int8 form of the best of these that becomes smaller by it, unless it errs more than
        the worst of the parents."""
        worst = self._weighed[-1].error
        for one in sorted(made, key=lambda each: each.result.loss):
            folder = self._directory / "quantized"
            try:
                small = quantizing.quantized(
                    one.result,
                    self._specialist,
                    one.model.module,
                    one.model.config,
                    self._cases,
                    folder,
                    self._directory,
                )
            except quantizing.NotSmaller:
                continue
            if small.bytes > QUANTIZED_BYTES_MAX * one.result.bytes:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            what = one.result.made or "first of them"
            if small.loss > max(worst, one.result.loss):
                self._left_out.append(
                    f"quantized, the {what} errs by {small.loss:.3g} on validation cases, more "
                    f"than the worst of them ({worst:.3g}), and is left out"
                )
                shutil.rmtree(folder, ignore_errors=True)
                return None
            return msgspec.structs.replace(
                small,
                made="quantized",
                steps=0,
                total_steps=0,
                method_reason=f"the {what} in int8 ({one.result.weights_sha256[:8]})",
            )
        self._left_out.append("quantized, none of them has fewer bytes by a tenth")
        return None


def weigh(specialist: Specialist, models: Sequence[Model], cases: Cases) -> list[Weighed]:
    """The models with their errors, the best first."""
    found = [Weighed(distilling.error_of(specialist, one.module, cases), one) for one in models]
    return sorted(found, key=lambda one: one.error)


def alike(models: Sequence[Weighed]) -> list[Weighed]:
    """The first models of one architecture that are two or more; none where all differ."""
    for one in models:
        found = [other for other in models if other.model.config == one.model.config]
        if len(found) > 1:
            return found
    return []


def stir(
    specialist: Specialist,
    models: Sequence[Weighed],
    cases: Cases,
    mix: Mix,
    asked_to_stop: AskedToStop = lambda: None,
    until: float = math.inf,
) -> Mixture | None:
    """Mix the best model, which is the first, with the second, in the best of a few shares; others
    only where that helps (greedily, as Wortsman et al. do and Caruana et al. 2004). None of no
    models, where none can be mixed, or where it was asked to stop. From `until` on, of
    `standstill.now`, nothing more is tried.
    """
    if not models:
        return None
    found = Mixture([models[0].model], [1.0], models[0].model, models[0].error)
    for other in models[1:]:
        tried: list[Mixture] = []
        for share in SHARES:
            if asked_to_stop() is not None:
                return None
            if tried and standstill.now() >= until:
                break
            of = [*found.of, other.model]
            shares = [*(share * each for each in found.shares), 1 - share]
            model = mix(of, shares)
            if model is not None:
                error = distilling.error_of(specialist, model.module, cases)
                tried.append(Mixture(of, shares, model, error))
        stirred = min(tried, key=lambda each: each.error, default=found)
        if len(found.of) == 1 or stirred.error < found.error:
            found = stirred
        if standstill.now() >= until:
            break
    return found if len(found.of) > 1 else None


def soup_of(models: Sequence[Model], shares: Sequence[float]) -> Model:
    """A model whose weights are the mean of the models' under these shares."""
    return Model(models[0].config, mixed(models, shares), "")


def mixed(models: Sequence[Model], shares: Sequence[float]) -> torch.nn.Module:
    """A module whose weights are the mean of the models' under these shares, which add up to 1."""
    module = copy.deepcopy(models[0].module)
    states = [one.module.state_dict() for one in models]
    module.load_state_dict(
        {
            name: torch.stack(
                [share * state[name] for share, state in zip(shares, states, strict=True)]
            ).sum(0)
            for name in states[0]
        }
    )
    return module


def ensemble_of(
    specialist: Specialist, models: Sequence[Model], shares: Sequence[float]
) -> Model | None:
    """A model that says the mean of what the models say. The members of an ensemble among them are
    its own; None where they are too many, or too large to be stored.

    Raises errors.ArtifactError where the specialist allows none of them.
    """
    members = list(itertools.chain.from_iterable(map(_members, models, shares)))
    size = sum(weight.nbytes for _, one, _ in members for weight in one.state_dict().values())
    if len(members) > ensembles.MEMBERS_MAX or size > chunks.MODEL_BYTES_MAX:
        return None
    configs = tuple(config for config, _, _ in members)
    module = specialist.ensemble([copy.deepcopy(module) for _, module, _ in members])
    module.share_out([share for _, _, share in members])
    module.eval().requires_grad_(False)
    return Model(Config(family=ensembles.FAMILY, members=configs), module, "")


def _members(model: Model, share: float) -> list[tuple[Config, torch.nn.Module, float]]:
    module = model.module
    if not isinstance(module, ensembles.Ensemble):
        return [(model.config, module, share)]
    within = zip(model.config.members, module.members, module.shares(), strict=True)
    return [(config, member, share * part) for config, member, part in within]
