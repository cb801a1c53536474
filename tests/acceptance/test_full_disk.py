"""An agent whose own disk is full: it gives back what it holds, waits, and burns no attempt."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.worker import ROOM_BYTES_MIN
from core.topology import MIB
from faults import disks
from faults.diskfull import Ballast
from tests.acceptance.stack import Stack, until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    if why := disks.why_not():
        pytest.skip(why)
    with disks.mounted(tmp_path, ROOM_BYTES_MIN // MIB + 64) as disk:
        yield disk.folder


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    one = Stack(tmp_path, "--agents", "0", "--no-orchestrator")
    try:
        yield one.start()
    finally:
        one.close()


def test_a_task_outlives_the_full_disk_of_its_agent_without_a_strike(
    stack: Stack, disk: Path, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    argv = ["agent", "--api", stack.http, "--worker-id", "a", "--train-sec", "6", "--directory"]
    with log.open("wb") as words:
        agent = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *argv, str(disk / "agent")],
            stdout=words,
            stderr=subprocess.STDOUT,
        )
    try:
        task_id = stack.enqueue("stats-bayesian", role="reinventor")
        until(lambda: stack.task(task_id)["status"] == "running", "claimed")
        ballast = Ballast(disk)
        ballast.fill(0)
        # States that find no room cost only themselves; the finished model ends the attempt.
        until(lambda: stack.task(task_id)["status"] == "queued", "given back")
        until(lambda: b"asks for no work" in log.read_bytes(), "the reason was said")
        ballast.free()
        task = stack.completed(task_id)
    finally:
        agent.terminate()
        agent.wait()
    ended = [_end_of(one) for one in task["attempts"]]
    assert ended == ["released", "completed"], task["attempts"]
    assert log.read_text().count("could be kept") <= 1  # none, if it was nearly done by then
    assert log.read_text().count("asks for no work") == 1


def _end_of(attempt: dict[str, Any]) -> str:
    return str(attempt["state"])
