"""The agent's loop at its seams: what it does where its link gives no answer."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from agent import holdings
from agent.executors.process import Executor
from agent.holdings import Holding
from agent.link import Link, Pulled
from agent.machine import Machine
from agent.narrator import Narrator
from agent.worker import Settings, Worker
from core import errors, events, wire

MACHINE = Machine(hostname="h", device="cpu", devices=1, memory_gb=16.0, cores=2, system="test")


class Away:
    """A link to a server that does not answer, and an agent that meanwhile needs it no more."""

    session = ""

    def __init__(self, worker: Worker, lost: str) -> None:
        self._worker = worker
        self._lost = lost

    async def reattach(self, token: events.Token) -> None:
        """The answer that never comes."""
        if self._lost:
            self._worker._holdings[token.task_id].lost = self._lost
        else:
            self._worker._stopping.set()
        raise errors.SteppedDown("another control process writes this log now")

    async def acknowledge(self, pulled: Pulled) -> None:
        """Nobody answers that anyway."""


def _worker(directory: Path) -> Worker:
    settings = Settings(api="http://nowhere", worker_id="w", directory=directory)
    return Worker(settings, MACHINE, Executor(), Narrator(lambda line: None, settings.api))


def _holding(attempt: int = 1) -> Holding:
    assignment = wire.Assignment(
        token=events.Token(task_id="t", attempt=attempt, claim_id=f"c{attempt}"),
        node_id="n",
        topic="",
        role="evolver",
        method="auto",
        seed=0,
        workload=events.Workload(specialist="addition"),
        workload_inherited=False,
        lease_seconds=60.0,
    )
    return Holding(assignment, Pulled("t", 1, "ack"))


@pytest.mark.parametrize("lost", ["", "the task is not yours any more"])
async def test_reattaching_to_a_server_that_is_away_ends_no_agent(
    tmp_path: Path, lost: str
) -> None:
    worker = _worker(tmp_path)
    worker._link = cast(Link, Away(worker, lost))
    worker._holdings["t"] = _holding()
    worker._on_reconnect()
    await asyncio.gather(*worker._finishing)
    assert worker._ended is None


async def test_what_an_earlier_run_held_is_not_spoken_for_before_the_server_is_reached(
    tmp_path: Path,
) -> None:
    worker = _worker(tmp_path)
    worker._holdings["t"] = _holding()
    await worker._prolong()
    assert worker._ended is None


async def test_an_attempt_that_ends_leaves_a_later_one_of_the_same_task_alone(
    tmp_path: Path,
) -> None:
    worker = _worker(tmp_path)
    worker._link = cast(Link, Away(worker, ""))
    earlier, later = _holding(1), _holding(2)
    worker._holdings["t"] = later
    holdings.keep(holdings.folder_of(worker._tasks, "t"), later)
    await worker._forget(earlier)
    assert worker._holdings == {"t": later}
    assert [one.token for one in holdings.restore(worker._tasks)] == [later.token]
    await worker._forget(later)
    assert (worker._holdings, holdings.restore(worker._tasks)) == ({}, [])
