"""Training that is killed goes on to the weights it would have had, on node after node."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent import checkpoints
from agent.executors import device, jobs, training
from agent.executors.process import Died, Executor
from agent.specialists import registry
from core import errors, workloads
from core.events import Rival
from tests import texts

pytestmark = pytest.mark.asyncio(loop_scope="module")

KILLED: list[tuple[str, Rival, int]] = [
    ("root-math", "evolver", 50),
    ("math-physics", "reinventor", 150),
    ("physics-quantum", "evolver", 100),
    ("stats-bayesian", "evolver", 30),
    ("opt-convex", "evolver", 50),
    ("opt-discrete", "reinventor", 30),
    (workloads.TEXT, "reinventor", 20),
]
"""Transformer, modes, QR, GRU, iterations, decisions and n-grams; each for some 0.3 s."""
ROLES: list[Rival] = ["evolver", "reinventor"]


Pair = tuple[Executor, Executor]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Pair]:
    one, other = Executor(), Executor()
    yield one, other
    await asyncio.gather(one.close(), other.close())


@pytest_asyncio.fixture(loop_scope="module")
async def executors(shared: Pair) -> Pair:
    """One to be killed, and one that goes on; warm, both."""
    await asyncio.gather(*(one.start() for one in shared))
    return shared


def job(node_id: str, role: Rival, directory: Path, steps: int, **more: object) -> jobs.Job:
    values: dict[str, object] = {"checkpoint_seconds": 1_000.0, **more}
    return jobs.Job(
        task_id="t",
        node_id=node_id,
        specialist=node_id,
        role=role,
        seed=7,
        directory=str(directory),
        steps=steps,
        **values,  # type: ignore[arg-type]
    )


def corpus_of(node_id: str, folder: Path) -> str:
    """The folder of a node's texts, where it trains on some."""
    return str(texts.unpack(folder / "corpus")) if node_id == workloads.TEXT else ""


def ignore(_: jobs.Report) -> None:
    """Reports that a test does not ask about."""


@pytest.mark.parametrize(("node_id", "role", "steps"), KILLED)
async def test_training_that_is_killed_goes_on_to_the_weights_of_an_unbroken_run(
    node_id: str, role: Rival, steps: int, executors: Pair, tmp_path: Path
) -> None:
    corpus = corpus_of(node_id, tmp_path)
    doomed, other = executors

    def kill(report: jobs.Report) -> None:
        if isinstance(report, jobs.Saved):
            assert doomed.pid is not None
            os.kill(doomed.pid, signal.SIGKILL)

    more = {"corpus": corpus, "checkpoint_seconds": 0.02}
    one = job(node_id, role, tmp_path / "broken", steps, **more)
    with pytest.raises(Died, match="died by signal SIGKILL"):
        await doomed.run(one, kill)
    async with asyncio.TaskGroup() as group:
        group.create_task(doomed.start())  # for the next test
        one = job(node_id, role, tmp_path / "broken", steps, corpus=corpus, resume=True)
        resumed = await other.run(one, ignore)
        one = job(node_id, role, tmp_path / "unbroken", steps, corpus=corpus)
        unbroken = await other.run(one, ignore)
    assert isinstance(resumed, jobs.Result)
    assert isinstance(unbroken, jobs.Result)
    assert 0 < resumed.resumed_from < steps
    assert unbroken.resumed_from == 0
    assert resumed.weights_sha256 == unbroken.weights_sha256


def trained(one: jobs.Job, until: int = 0) -> jobs.Result | jobs.Stopped:
    """Train in this process, to the end, or to a step."""
    asked = iter(range(1, until + 2))

    def asked_to_stop() -> jobs.Stop | None:
        return jobs.Stop(number=1, save=True) if until and next(asked) > until else None

    told = training.run(one, ignore, asked_to_stop)
    assert told is not None
    return told


@pytest.mark.parametrize("node_id", registry.names())
@pytest.mark.parametrize("role", ROLES)
async def test_every_rival_of_every_node_goes_on_from_a_state_bit_for_bit(
    node_id: str, role: Rival, tmp_path: Path
) -> None:
    device.prepare()
    corpus = corpus_of(node_id, tmp_path)
    unbroken = trained(job(node_id, role, tmp_path / "unbroken", 6, corpus=corpus))
    stopped = trained(job(node_id, role, tmp_path / "broken", 6, corpus=corpus), until=4)
    assert isinstance(stopped, jobs.Stopped)
    assert stopped.step == checkpoints.step_of(Path(stopped.directory)) == 4
    one = job(node_id, role, tmp_path / "broken", 6, corpus=corpus, resume=True)
    resumed = trained(one)
    assert isinstance(resumed, jobs.Result)
    assert isinstance(unbroken, jobs.Result)
    assert resumed.resumed_from == 4
    assert resumed.weights_sha256 == unbroken.weights_sha256


async def test_a_state_of_other_parameters_is_not_gone_on_from(tmp_path: Path) -> None:
    device.prepare()
    what: tuple[str, Rival, Path, int] = ("stats-bayesian", "evolver", tmp_path, 6)
    assert isinstance(trained(job(*what, parameters={"drift_most": 0.5}), until=4), jobs.Stopped)
    with pytest.raises(errors.ArtifactError, match="another training"):
        trained(job(*what, parameters={"drift_most": 0.6}, resume=True))
    resumed = trained(job(*what, parameters={"drift_most": 0.5}, resume=True))
    assert isinstance(resumed, jobs.Result)
    assert resumed.resumed_from == 4
