"""Processes that train one job together: on a CPU by gloo, as GPUs do by NCCL."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch

from agent import checkpoints, tensors
from agent.executors import jobs, ranks
from agent.executors.process import Died, Executor
from core import errors

NODE = "stats-bayesian"
STEPS = 20
TOLERANCE = 1e-5
"""Of weights after 20 steps: sums of gradients in another order differ in their last bits."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Executor]:
    one = Executor(processes=2)
    yield one
    await one.close()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(shared: Executor) -> Executor:
    await shared.start()
    return shared


def job(directory: Path, **more: object) -> jobs.Job:
    values: dict[str, object] = {"steps": STEPS, "checkpoint_seconds": 1_000.0, **more}
    return jobs.Job(
        task_id="t",
        node_id=NODE,
        specialist=NODE,
        role="evolver",
        seed=7,
        directory=str(directory),
        **values,  # type: ignore[arg-type]
    )


def ignore(_: jobs.Report) -> None:
    """Reports that a test does not ask about."""


async def finished(executor: Executor, one: jobs.Job) -> jobs.Result:
    result = await executor.run(one, ignore)
    assert isinstance(result, jobs.Result)
    return result


def weights(result: jobs.Result) -> dict[str, torch.Tensor]:
    return tensors.load(Path(result.candidate_directory) / checkpoints.WEIGHTS_FILE)


async def test_two_processes_learn_what_one_with_all_cases_learns(
    pair: Executor, tmp_path: Path
) -> None:
    together = await finished(pair, job(tmp_path / "two"))
    alone = Executor()
    await alone.start()
    single = await finished(alone, job(tmp_path / "one"))
    await alone.close()
    found, wanted = weights(together), weights(single)
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], rtol=0, atol=TOLERANCE) for name in wanted)
    assert together.loss == pytest.approx(single.loss, rel=1e-3)


async def test_two_processes_that_are_stopped_go_on_to_the_same_weights(
    pair: Executor, tmp_path: Path
) -> None:
    unbroken = await finished(pair, job(tmp_path / "unbroken", steps=100))
    saved = asyncio.Event()

    def watch(report: jobs.Report) -> None:
        if isinstance(report, jobs.Saved):
            saved.set()

    running = asyncio.ensure_future(pair.run(job(tmp_path / "broken", steps=100), watch))
    await saved.wait()
    await pair.stop(save=True)
    stopped = await running
    assert isinstance(stopped, jobs.Stopped)
    assert 0 < stopped.step < 100
    resumed = await finished(pair, job(tmp_path / "broken", steps=100, resume=True))
    assert resumed.resumed_from == stopped.step
    assert resumed.weights_sha256 == unbroken.weights_sha256


async def test_both_agree_on_how_many_steps_a_budget_has(pair: Executor, tmp_path: Path) -> None:
    result = await finished(pair, job(tmp_path, steps=0, budget_seconds=0.5))
    assert 1 <= result.steps <= result.total_steps


async def test_a_port_that_is_taken_before_it_is_used_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = ranks._free_port
    one = Executor(processes=2)
    with socket.create_server((ranks.LOOPBACK, 0)) as taken:
        chosen = iter([taken.getsockname()[1]])
        monkeypatch.setattr(ranks, "_free_port", lambda: next(chosen, None) or free())
        await one.start()
    assert one.pid is not None
    assert next(chosen, None) is None
    await one.close()


async def test_the_death_of_one_ends_the_job_of_all_and_says_who_died(
    pair: Executor, tmp_path: Path
) -> None:
    def kill_the_other(report: jobs.Report) -> None:
        if isinstance(report, jobs.Started):
            (other,) = psutil.Process(pair.pid).children()
            other.send_signal(signal.SIGKILL)

    with pytest.raises(Died, match="process 1 of those that train together ended with -9"):
        await pair.run(job(tmp_path, steps=100_000), kill_the_other)
    assert pair.pid is None


async def test_a_job_that_cannot_be_done_ends_the_processes_with_its_reason(
    pair: Executor, tmp_path: Path
) -> None:
    pid = pair.pid
    with pytest.raises(errors.TrainingError, match="cannot be read"):
        await pair.run(job(tmp_path, base=str(tmp_path / "nowhere")), ignore)
    await pair.start()
    assert pair.pid != pid


@pytest.mark.parametrize(
    ("devices", "has_nccl", "words"),
    [(2, True, "this machine has 2"), (4, False, "no NCCL")],
)
async def test_more_processes_than_gpus_or_gpus_that_cannot_speak_are_refused(
    devices: int, has_nccl: bool, words: str
) -> None:
    with pytest.raises(errors.TrainingError, match=words):
        ranks.require_devices(4, devices, has_nccl)
    ranks.require_devices(4, 0, False)
    ranks.require_devices(4, 4, True)
    assert os.environ.get("WORLD_SIZE") is None, "one process alone is not told of others"
