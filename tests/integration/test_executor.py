"""The executor as an agent holds it: a real process, real training, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import safetensors.torch
import torch

from agent import checkpoints
from agent.executors import jobs
from agent.executors.process import Executor, _listen
from agent.specialists import registry
from core import errors, platforms
from core.events import Rival

NODE = "stats-bayesian"
STEPS = 400
ENDS_SECONDS_MAX = 60.0


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Executor]:
    one = Executor()
    yield one
    await one.close()


@pytest_asyncio.fixture(loop_scope="module")
async def executor(shared: Executor) -> Executor:
    """One for all, since it takes seconds to warm; started again where a test killed it."""
    await shared.start()
    return shared


def job(directory: Path, *, role: Rival = "reinventor", **more: object) -> jobs.Job:
    values: dict[str, object] = {"steps": STEPS, "checkpoint_seconds": 1_000.0, **more}
    return jobs.Job(
        task_id="t",
        node_id=NODE,
        specialist=NODE,
        role=role,
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


async def test_one_process_trains_job_after_job_and_equal_jobs_give_equal_weights(
    executor: Executor, tmp_path: Path
) -> None:
    pid = executor.pid
    first = await finished(executor, job(tmp_path / "a"))
    second = await finished(executor, job(tmp_path / "b"))
    other = await finished(executor, job(tmp_path / "c", role="evolver", steps=3))
    assert executor.pid == pid is not None
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    assert first.steps == STEPS
    assert first.loss < first.baseline_loss
    assert first.params < other.params
    stored = Path(first.candidate_directory) / checkpoints.WEIGHTS_FILE
    assert checkpoints.weights_sha256_of_file(stored) == first.weights_sha256


async def test_a_killed_process_ends_its_job_with_the_reason_and_resumes_to_the_same_weights(
    executor: Executor, tmp_path: Path
) -> None:
    unbroken = await finished(executor, job(tmp_path / "unbroken"))

    def kill(report: jobs.Report) -> None:
        if isinstance(report, jobs.Saved):
            assert executor.pid is not None
            os.kill(executor.pid, signal.SIGKILL)

    with pytest.raises(errors.TrainingError, match="died by signal SIGKILL"):
        await executor.run(job(tmp_path / "broken", checkpoint_seconds=0.05), kill)
    assert executor.pid is None
    await executor.start()
    resumed = await finished(executor, job(tmp_path / "broken", resume=True))
    assert 0 < resumed.resumed_from < STEPS
    assert resumed.weights_sha256 == unbroken.weights_sha256


async def test_a_process_that_stands_still_is_ended_and_its_job_resumes_to_the_same_weights(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = await finished(executor, job(tmp_path / "unbroken"))

    def stop(report: jobs.Report) -> None:
        if isinstance(report, jobs.Saved):
            assert executor.pid is not None
            monkeypatch.setattr(executor, "idle_seconds_max", 1.0)
            os.kill(executor.pid, signal.SIGSTOP)

    with pytest.raises(errors.TrainingError, match="did nothing for 1 s and was ended"):
        await executor.run(job(tmp_path / "hung", checkpoint_seconds=0.05), stop)
    assert executor.pid is None
    monkeypatch.undo()
    await executor.start()
    resumed = await finished(executor, job(tmp_path / "hung", resume=True))
    assert 0 < resumed.resumed_from < STEPS
    assert resumed.weights_sha256 == unbroken.weights_sha256


async def _run_at(executor: Executor, code: str, job_directory: Path) -> None:
    """Let a process that speaks as an executor do something else than the job."""
    script = job_directory / "child.py"
    script.write_text(f'print(\'{{"type":"taken","number":1}}\', flush=True)\n{code}')
    process = platforms.spawn(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    executor._process = process
    listen = (process.stdout, loop, executor._reports)
    threading.Thread(target=_listen, args=listen, daemon=True).start()
    await executor.run(job(job_directory), ignore)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while True: pass", "reported nothing for 2 s"),
        ("import threading; threading.Event().wait()", "did nothing for 0.5 s"),
    ],
)
async def test_a_silent_process_that_computes_is_borne_longer_than_one_that_does_nothing(
    code: str, why: str, tmp_path: Path
) -> None:
    executor = Executor()
    executor.idle_seconds_max, executor.silence_seconds_max = 0.5, 2.0
    with pytest.raises(errors.TrainingError, match=why):
        await _run_at(executor, code, tmp_path)
    await executor.close()


async def test_a_job_that_is_stopped_leaves_a_state_to_go_on_from(
    executor: Executor, tmp_path: Path
) -> None:
    unbroken = await finished(executor, job(tmp_path / "unbroken"))
    saved = asyncio.Event()

    def watch(report: jobs.Report) -> None:
        if isinstance(report, jobs.Saved):
            saved.set()

    one = job(tmp_path / "stopped", checkpoint_seconds=0.05)
    running = asyncio.ensure_future(executor.run(one, watch))
    await saved.wait()
    await executor.stop(save=True)
    stopped = await running
    assert isinstance(stopped, jobs.Stopped)
    assert 0 < stopped.step < STEPS
    assert Path(stopped.directory).name == f"step-{stopped.step:08d}"
    resumed = await finished(executor, job(tmp_path / "stopped", resume=True))
    assert resumed.resumed_from == stopped.step
    assert resumed.weights_sha256 == unbroken.weights_sha256


async def test_a_job_that_is_dropped_leaves_nothing(executor: Executor, tmp_path: Path) -> None:
    one = job(tmp_path, steps=100_000)
    started = asyncio.Event()
    running = asyncio.ensure_future(executor.run(one, lambda _: started.set()))
    await started.wait()
    await executor.stop(save=False)
    stopped = await running
    assert isinstance(stopped, jobs.Stopped)
    assert stopped.directory == ""
    assert os.listdir(tmp_path) == []


async def test_a_job_whose_caller_gave_up_is_dropped_and_the_next_gets_its_own_result(
    executor: Executor, tmp_path: Path
) -> None:
    pid = executor.pid
    started = asyncio.Event()
    one = job(tmp_path / "given-up", steps=1_000_000)
    running = asyncio.ensure_future(executor.run(one, lambda _: started.set()))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    mine = await finished(executor, job(tmp_path / "mine", steps=3))
    assert mine.steps == 3
    assert Path(mine.candidate_directory).parent == tmp_path / "mine"
    assert executor.pid == pid


async def test_training_goes_on_while_the_agents_loop_is_busy(
    executor: Executor, tmp_path: Path
) -> None:
    def keep_the_loop_busy(report: jobs.Report) -> None:
        if isinstance(report, jobs.Started):
            until = time.monotonic() + ENDS_SECONDS_MAX
            while not (tmp_path / "candidate" / checkpoints.CONFIG_FILE).exists():
                assert time.monotonic() < until, "nothing was trained meanwhile"

    result = await executor.run(job(tmp_path), keep_the_loop_busy)
    assert isinstance(result, jobs.Result)
    assert result.steps == STEPS


async def test_an_evolver_starts_from_its_base(executor: Executor, tmp_path: Path) -> None:
    base = await finished(executor, job(tmp_path / "base", role="evolver", steps=60))
    one = job(tmp_path / "next", role="evolver", steps=1, base=base.candidate_directory)
    evolved = await finished(executor, one)
    fresh = await finished(executor, job(tmp_path / "fresh", role="evolver", steps=1))
    assert evolved.loss < 0.5 * fresh.loss
    assert evolved.weights_sha256 != base.weights_sha256


async def test_training_that_diverges_says_so_and_the_process_lives_on(
    executor: Executor, tmp_path: Path
) -> None:
    specialist = registry.get(NODE)
    config = specialist.families("evolver")[0]
    module = specialist.build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1e30)
    (tmp_path / "base").mkdir()
    checkpoints.write_model(tmp_path / "base", module, config)
    pid = executor.pid
    bad = job(tmp_path / "bad", role="evolver", steps=5, base=str(tmp_path / "base"))
    with pytest.raises(errors.TrainingError, match="diverged"):
        await executor.run(bad, ignore)
    assert (await finished(executor, job(tmp_path / "good", steps=2))).steps == 2
    assert executor.pid == pid


async def test_a_base_that_does_not_fit_is_an_error_in_words(
    executor: Executor, tmp_path: Path
) -> None:
    base = await finished(executor, job(tmp_path / "base", role="evolver", steps=1))
    weights = Path(base.candidate_directory) / checkpoints.WEIGHTS_FILE
    weights.write_bytes(safetensors.torch.save({"other": torch.ones(2)}))
    one = job(tmp_path / "next", role="evolver", steps=1, base=base.candidate_directory)
    with pytest.raises(errors.TrainingError, match="does not fit its configuration"):
        await executor.run(one, ignore)


async def test_a_budget_is_kept_by_a_deadline_that_says_so(
    executor: Executor, tmp_path: Path
) -> None:
    late = await finished(
        executor, job(tmp_path, steps=0, budget_seconds=30.0, deadline_seconds=0.5)
    )
    assert late.deadline
    assert late.steps < late.total_steps
