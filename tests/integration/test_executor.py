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

import msgspec
import pytest
import pytest_asyncio
import safetensors.torch
import torch

from agent import checkpoints, tensors
from agent.executors import jobs, process, training
from agent.executors.process import Executor, _listen
from agent.specialists import registry
from core import errors, platforms
from core.events import Rival

NODE = "stats-bayesian"
STEPS = 400
ENDS_SECONDS_MAX = 60.0
TELLS_MODULES = """
import os, sys
leave = os._exit
def tell_and_leave(code):
    with open(os.environ["MODULES"], "w") as file:
        file.write(" ".join(name for name, module in sys.modules.items() if module))
    leave(code)
os._exit = tell_and_leave
"""
NOT_NEEDED = {
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "networkx"),
    *("peft", "transformers", "torchao", "torchvision", "datasets", "sklearn", "scipy", "pandas"),
    *("matplotlib", "rich", "boto3", "nats", "aiohttp", "core.bus"),
}


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
    assert tensors.weights_sha256_of_file(stored) == first.weights_sha256


async def test_a_process_imports_nothing_that_its_tasks_do_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELLS_MODULES)
    found = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", found)
    monkeypatch.setenv("MODULES", str(tmp_path / "modules"))
    executor = Executor()
    try:
        await executor.start()
        for node in (NODE, "physics-fluid", "stats-time-series"):
            one = job(tmp_path / node, role="evolver", steps=4)
            await finished(executor, msgspec.structs.replace(one, node_id=node, specialist=node))
    finally:
        await executor.close()
    imported = set((tmp_path / "modules").read_text().split())
    assert imported >= {"torch", "accelerate", "agent.specialists.text"}
    assert not imported & NOT_NEEDED


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


SPIN = """
import time
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
"""


async def _run_at(executor: Executor, code: str, job_directory: Path) -> None:
    """Let a process that speaks as an executor do something else than the job."""
    script = job_directory / "child.py"
    script.write_text(f'print(\'{{"type":"taken","number":1}}\', flush=True)\n{code}')
    other = platforms.spawn(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert other.stdout is not None
    loop = asyncio.get_running_loop()
    executor._process = other
    listen = (other.stdout, loop, executor._reports)
    threading.Thread(target=_listen, args=listen, daemon=True).start()
    await executor.run(job(job_directory), ignore)


async def test_what_a_device_lacks_for_a_job_is_no_failure_of_the_job(tmp_path: Path) -> None:
    told = msgspec.json.encode(jobs.Failed(reason="no base model", unfit=True)).decode()
    code = f"import sys\nprint({told!r}, flush=True)\nsys.stdin.read()"
    executor = Executor()
    with pytest.raises(errors.Unfit, match="no base model"):
        await _run_at(executor, code, tmp_path)
    await executor.close()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while True: pass", "reported nothing for 2 s"),
        ("import threading; threading.Event().wait()", "did nothing for 0.5 s"),
        (f"{SPIN}\nwhile True: spin(0.05); time.sleep(0.2)", "reported nothing for 2 s"),
        (f"{SPIN}\nspin(0.7); time.sleep(100)", "did nothing for 0.5 s"),
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


async def test_a_training_tells_its_learning_rate_and_how_many_samples_it_takes(
    executor: Executor, tmp_path: Path
) -> None:
    told: list[jobs.Progress] = []

    def listen(report: jobs.Report) -> None:
        if isinstance(report, jobs.Progress):
            told.append(report)

    result = await executor.run(job(tmp_path), listen)
    assert isinstance(result, jobs.Result)
    specialist = registry.get(NODE)
    peak = specialist.learning_rate
    assert [one.learning_rate for one in told] == [
        pytest.approx(training.learning_rate(one.step - 1, STEPS, peak)) for one in told
    ]
    rates = [one.samples_per_second or 0.0 for one in told]
    seconds = result.last_step_at - result.first_step_at
    assert 0.9 * min(rates) < STEPS * specialist.batch_size / seconds < 1.1 * max(rates)


@pytest.mark.parametrize(
    ("save", "at_once", "patience"), [(True, False, 0.2), (False, False, 1e3), (True, True, 1e3)]
)
async def test_a_job_that_does_not_stop_in_time_is_ended_with_its_process(
    save: bool,
    at_once: bool,
    patience: float,
    executor: Executor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "SAVE_SECONDS_MAX", patience)
    monkeypatch.setattr(process, "DROP_SECONDS_MAX", 0.2)
    saved: asyncio.Queue[jobs.Saved] = asyncio.Queue()

    def hang(report: jobs.Report) -> None:
        if isinstance(report, jobs.Saved):
            assert executor.pid is not None
            os.kill(executor.pid, signal.SIGSTOP)
            saved.put_nowait(report)

    one = job(tmp_path, steps=100_000, checkpoint_seconds=0.05)
    running = asyncio.ensure_future(executor.run(one, hang))
    last = await saved.get()
    await executor.stop(save=save, at_once=at_once)
    stopped = await running
    assert isinstance(stopped, jobs.Stopped)
    assert stopped.directory == (last.directory if save else "")
    assert executor.pid is None


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


async def test_a_death_by_a_signal_without_a_name_is_told_by_its_number(
    executor: Executor, tmp_path: Path
) -> None:
    if not platforms.LINUX:
        pytest.skip("others have no real-time signals")

    def kill(report: jobs.Report) -> None:
        if isinstance(report, jobs.Started):
            assert executor.pid is not None
            os.kill(executor.pid, signal.SIGRTMIN + 6)

    with pytest.raises(errors.TrainingError, match=f"died by signal {signal.SIGRTMIN + 6}"):
        await executor.run(job(tmp_path, steps=1_000_000), kill)
