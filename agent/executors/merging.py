"""Merges: what several models make together, a soup of weights and a student of what they say.

The soup (Wortsman et al. 2022) lies between the weights of models of one architecture: it costs no
training, and is worth something where they have a start in common. The student is trained on the
ensemble of all of them (`distilling`).
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from agent import checkpoints
from agent.executors import distilling, jobs
from agent.executors.distilling import Model
from agent.specialists import evaluation, registry
from agent.specialists.base import Cases, Specialist
from core import errors

SHARES = (0.75, 0.5, 0.25)
"""Of what is in the soup, that are tried when a model is stirred in."""
SOUP_FOLDER = "soup"
STUDENT_BUDGET_MIN = 0.5
"""Of the whole: its student is trained that long, however long the soup took."""

Report = Callable[[jobs.Report], None]
AskedToStop = Callable[[], jobs.Stop | None]
Train = Callable[[jobs.Job, Report, AskedToStop], jobs.Result | jobs.Stopped | None]


class Soup(NamedTuple):
    """The best mixture that was found of models of one architecture, and the share of each."""

    of: Sequence[Model]
    shares: list[float]
    module: torch.nn.Module
    error: float
    worst_error: float
    """Of the models in it; all errors are of `distilling.error_of`."""


def run(
    job: jobs.Job, cases: Cases | None, train: Train, report: Report, asked_to_stop: AskedToStop
) -> jobs.Result | jobs.Stopped | None:
    """Make the merges of the models in `job.parents`, the better one with the other beside it.

    `train` trains the student; it goes on where it was cut, the soup is made anew each time. Of
    several processes the first makes the soup, on validation cases that only it has.

    Raises errors.TrainingError for fewer than two parents, and as `train` does; ArtifactError for
    one that cannot be loaded.
    """
    began = time.monotonic()
    if len(job.parents) < 2:
        raise errors.TrainingError(
            f"a merge takes two models or more, and this task names {len(job.parents)}"
        )
    if cases is None:
        return train(job, report, asked_to_stop)
    specialist = registry.get(job.specialist, job.parameters, job.corpus, job.base_model)
    models = [distilling.read(specialist, Path(folder)) for folder in job.parents]
    soup = stir(specialist, alike(models), cases, asked_to_stop)
    spent_seconds = time.monotonic() - began
    least_seconds = STUDENT_BUDGET_MIN * job.budget_seconds
    student = train(
        msgspec.structs.replace(
            job, budget_seconds=max(least_seconds, job.budget_seconds - spent_seconds)
        ),
        report,
        asked_to_stop,
    )
    if not isinstance(student, jobs.Result):
        return student
    words = f"a student of what {len(models)} models say together"
    if soup is None or soup.error > soup.worst_error:
        return msgspec.structs.replace(student, method_reason=f"{words}; {_no_soup(soup)}")
    student = msgspec.structs.replace(student, method_reason=words)
    souped = _written(specialist, soup, cases, student, Path(job.directory))
    better, other = sorted((student, souped), key=lambda one: one.loss)
    return msgspec.structs.replace(better, others=[other])


def alike(models: Sequence[Model]) -> list[Model]:
    """The first models of one architecture that are two or more; none where all differ."""
    for one in models:
        found = [other for other in models if other.config == one.config]
        if len(found) > 1:
            return found
    return []


def stir(
    specialist: Specialist,
    models: Sequence[Model],
    cases: Cases,
    asked_to_stop: AskedToStop = lambda: None,
) -> Soup | None:
    """Mix the best model with the second, in the best of a few shares; others only where that
    helps (a greedy soup). None of no models, or where it was asked to stop.
    """
    if not models:
        return None
    found = sorted(
        ((distilling.error_of(specialist, one.module, cases), one) for one in models),
        key=lambda each: each[0],
    )
    best, *others = (one for _, one in found)
    soup = Soup([best], [1.0], best.module, found[0][0], found[-1][0])
    for other in others:
        tried = []
        for share in SHARES:
            if asked_to_stop() is not None:
                return None
            shares = [*(share * each for each in soup.shares), 1 - share]
            module = mixed([*soup.of, other], shares)
            error = distilling.error_of(specialist, module, cases)
            tried.append(Soup([*soup.of, other], shares, module, error, soup.worst_error))
        stirred = min(tried, key=lambda each: each.error)
        if len(soup.of) == 1 or stirred.error < soup.error:
            soup = stirred
    return soup


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


def _no_soup(soup: Soup | None) -> str:
    if soup is None:
        return "no two of them have one architecture, so there is no soup of their weights"
    return (
        f"a soup of their weights errs by {soup.error:.3g} on validation cases, more than the "
        f"worst of them ({soup.worst_error:.3g}), and is left out"
    )


def _written(
    specialist: Specialist, soup: Soup, cases: Cases, student: jobs.Result, directory: Path
) -> jobs.Result:
    """The soup as a candidate in a folder of its own, measured like its student."""
    module = soup.module.requires_grad_(True)
    measured = evaluation.evaluate(specialist, module, cases, student.micro_batch)
    folder = directory / SOUP_FOLDER
    written = checkpoints.write_candidate(folder, module, soup.of[0].config, directory)
    mixture = " + ".join(
        f"{share:.3g} x {one.sha256[:8]}" for share, one in zip(soup.shares, soup.of, strict=True)
    )
    return msgspec.structs.replace(
        student,
        made="soup",
        steps=0,
        total_steps=0,
        loss=measured.loss,
        evidence_rate=measured.evidence_rate,
        params=sum(weight.numel() for weight in module.parameters()),
        bytes=written.bytes,
        weights_sha256=written.sha256,
        candidate_directory=str(folder),
        family=soup.of[0].config.family,
        method_reason=f"a soup of weights, {mixture}",
        deadline=False,
        resumed_from=0,
    )
