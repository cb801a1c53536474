"""Executors that stand still for a judge, with real processes and signals."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from agent.executors import jobs
from agent.executors.pool import Pool
from core import quiet

ENDS_SECONDS_MAX = 20.0
NODE = "stats-bayesian"
HOLDER = """
import asyncio, sys
from pathlib import Path
from agent.executors.process import Executor
from core import quiet

async def hold():
    executor = Executor()
    await executor.start()
    heeder = quiet.Heeder(Path(sys.argv[1]), executor.suspend, executor.resume)
    heeder.start()
    print(executor.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(hold())
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Pool]:
    one = Pool(threads=1)
    await one.start()
    yield one
    await one.close()


def _job(directory: Path, *, steps: int = 0, budget_seconds: float = 60.0) -> jobs.Job:
    return jobs.Job(
        task_id="t",
        node_id=NODE,
        specialist=NODE,
        role="reinventor",
        seed=7,
        directory=str(directory),
        steps=steps,
        budget_seconds=budget_seconds,
        checkpoint_seconds=0.2,
    )


class Watcher:
    """Hears what a job reports."""

    def __init__(self) -> None:
        self.trains = asyncio.Event()
        self.step = self.told = 0

    def __call__(self, report: jobs.Report) -> None:
        match report:
            case jobs.Started():
                self.trains.set()
            case jobs.Progress():
                self.step = report.step
                self.told += 1


def _is_stopped(pid: int | None) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(ENDS_SECONDS_MAX):
        while not happened():  # noqa: ASYNC110  a state of another process
            await asyncio.sleep(0.01)


async def _begin(pool: Pool, job: jobs.Job) -> tuple["asyncio.Task[object]", Watcher]:
    watcher = Watcher()
    running: asyncio.Task[object] = asyncio.create_task(pool.run(job, watcher))
    await watcher.trains.wait()
    return running, watcher


async def test_a_training_that_stood_still_ends_as_it_would_have(
    pool: Pool, tmp_path: Path
) -> None:
    unbroken = await pool.run(_job(tmp_path / "unbroken", steps=400), Watcher())
    before = pool.paused_seconds
    running, _ = await _begin(pool, _job(tmp_path / "paused", steps=400))
    pool.suspend()
    await _until(lambda: _is_stopped(pool.pid))
    assert pool.paused_seconds > before
    pool.resume()
    paused = await running
    assert isinstance(unbroken, jobs.Result)
    assert isinstance(paused, jobs.Result)
    assert paused.weights_sha256 == unbroken.weights_sha256


async def test_standing_still_is_no_idleness_and_no_time_of_training(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "idle_seconds_max", 1.0)
    running, watcher = await _begin(pool, _job(tmp_path, budget_seconds=4.0))
    await _until(lambda: watcher.step > 0)
    pool.suspend()
    await asyncio.sleep(5.0)  # longer than the whole budget, and than idleness may last
    assert not running.done()
    told = watcher.told
    pool.resume()
    result = await running
    assert isinstance(result, jobs.Result)
    assert watcher.told > told + 3  # one that was late would end at its next step


async def test_who_is_to_stop_is_not_held_up(pool: Pool, tmp_path: Path) -> None:
    running, watcher = await _begin(pool, _job(tmp_path))
    await _until(lambda: watcher.step > 0)
    process = pool.pid
    pool.suspend()
    await _until(lambda: _is_stopped(process))
    stopping = asyncio.create_task(pool.stop(save=True))
    await asyncio.sleep(0)
    pool.suspend()  # as somebody does who did not hear of it
    stopped = await running
    await stopping
    assert isinstance(stopped, jobs.Stopped)
    assert stopped.step > 0
    assert stopped.directory
    assert pool.pid == process  # it did as it was told, and was not ended


async def test_what_watches_over_an_executor_does_not_stand_still() -> None:
    watched = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True);"
    watched += "sys.stdin.read()"
    executor = Pool()
    executor._process = process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", watched],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    watcher = psutil.Process(int(await asyncio.to_thread(process.stdout.readline)))
    try:
        executor.suspend()
        await _until(lambda: _is_stopped(process.pid))
        assert executor._suspended.keys() == {process.pid}
        executor.resume()
        await _until(lambda: not _is_stopped(process.pid))
    finally:
        watcher.kill()
        process.kill()
        await asyncio.to_thread(process.communicate)


async def test_an_executor_that_stands_still_dies_with_its_agent(tmp_path: Path) -> None:
    agent = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    executor = psutil.Process(int(await asyncio.to_thread(agent.stdout.readline)))
    with quiet.Quiet(tmp_path).hold():
        await _until(lambda: _is_stopped(executor.pid))
        agent.kill()
        agent.wait()
        agent.stdout.close()
        _, alive = await asyncio.to_thread(psutil.wait_procs, [executor], timeout=ENDS_SECONDS_MAX)
        for left in alive:
            left.kill()
        assert not alive


async def test_an_executor_goes_on_when_its_judge_dies(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from core import quiet\n"
    hold += "with quiet.Quiet(Path(sys.argv[1])).hold(1.0): print(1, flush=True); time.sleep(60)"
    agent = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    executor = int(await asyncio.to_thread(agent.stdout.readline))
    judge = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        await _until(lambda: _is_stopped(executor))
        judge.kill()
        await _until(lambda: not _is_stopped(executor))
    finally:
        for process in (judge, agent):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
