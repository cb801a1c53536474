"""The executor as an agent holds it for long."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent import limits
from agent.executors import jobs
from agent.executors.pool import Pool
from agent.executors.process import Died

NODE = "stats-bayesian"
BATCH = 64
STEPS = 200

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Pool]:
    one = Pool(threads=1)
    yield one
    await one.close()


class Watcher:
    """Hears what a job reports, and kills its process as often, when a state is written."""

    def __init__(self, pool: Pool, deaths: int = 0) -> None:
        self._pool, self._deaths = pool, deaths
        self.revived: list[str] = []
        self.trains, self.dies = asyncio.Event(), asyncio.Event()

    def __call__(self, report: jobs.Report) -> None:
        match report:
            case jobs.Started():
                self.trains.set()
            case jobs.Revived():
                self.revived.append(report.reason)
                self.dies.set()
            case jobs.Saved() if len(self.revived) < self._deaths:
                self.kill()

    def kill(self) -> None:
        assert self._pool.pid is not None
        os.kill(self._pool.pid, signal.SIGKILL)


def job(directory: Path, steps: int = STEPS) -> jobs.Job:
    return jobs.Job(
        task_id="t",
        node_id=NODE,
        specialist=NODE,
        role="reinventor",
        seed=7,
        directory=str(directory),
        steps=steps,
        checkpoint_seconds=0.02,
    )


async def finished(pool: Pool, one: jobs.Job, watcher: Watcher) -> jobs.Result:
    result = await pool.run(one, watcher)
    assert isinstance(result, jobs.Result)
    return result


async def test_a_job_outlives_one_death_of_its_process_with_the_weights_it_would_have_had(
    pool: Pool, tmp_path: Path
) -> None:
    unbroken = await finished(pool, job(tmp_path / "unbroken"), Watcher(pool))
    watcher = Watcher(pool, deaths=1)
    revived = await finished(pool, job(tmp_path / "broken"), watcher)
    assert watcher.revived == ["the executor died by signal SIGKILL"]
    assert revived.resumed_from > 0
    assert revived.micro_batch == 0
    assert revived.weights_sha256 == unbroken.weights_sha256


async def test_a_job_that_dies_twice_is_given_up_and_the_next_process_is_warm_by_itself(
    pool: Pool, tmp_path: Path
) -> None:
    watcher = Watcher(pool, deaths=2)
    with pytest.raises(Died):
        await pool.run(job(tmp_path / "fatal"), watcher)
    assert len(watcher.revived) == 1
    assert pool._warming is not None
    await pool._warming
    assert pool.pid is not None
    assert (await finished(pool, job(tmp_path / "next", 2), Watcher(pool))).steps == 2


async def test_a_job_that_lacked_memory_goes_on_with_half_as_many_cases_at_once(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = itertools.count(limits.kills_for_memory() + 1)  # this machine may have had some
    monkeypatch.setattr(limits, "kills_for_memory", lambda: next(kills))
    watcher = Watcher(pool, deaths=1)
    result = await finished(pool, job(tmp_path), watcher)
    (reason,) = watcher.revived
    assert "memory ran out" in reason
    assert result.micro_batch == BATCH // 2
    assert result.steps == STEPS


async def test_a_job_that_is_asked_to_stop_while_its_process_is_replaced_is_not_begun_again(
    pool: Pool, tmp_path: Path
) -> None:
    watcher = Watcher(pool)
    running = asyncio.ensure_future(pool.run(job(tmp_path, 100_000), watcher))
    await watcher.trains.wait()
    watcher.kill()
    await watcher.dies.wait()
    await pool.stop(save=True)
    stopped = await running
    assert isinstance(stopped, jobs.Stopped)


async def test_a_job_that_is_asked_to_stop_while_its_process_warms_is_not_begun(
    pool: Pool, tmp_path: Path
) -> None:
    await finished(pool, job(tmp_path / "earlier"), Watcher(pool))  # of which nothing may be left
    await pool.close()
    watcher = Watcher(pool)
    running = asyncio.ensure_future(pool.run(job(tmp_path / "stopped"), watcher))
    await asyncio.sleep(0)  # it waits for its process
    await pool.stop(save=True)
    assert await running == jobs.Stopped(directory="", step=0)
    assert not watcher.trains.is_set()
