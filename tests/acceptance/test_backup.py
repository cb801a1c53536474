"""A backup of a running `up`, and a new life elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import Stack, aghsan


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[tuple[Stack, Stack]]:
    """Two places to run at, one after the other."""
    folders = [tmp_path / "one", tmp_path / "آخر"]
    for folder in folders:
        folder.mkdir()
    here, there = (Stack(folder, "--no-orchestrator", "--train-sec", "3") for folder in folders)
    yield here, there
    here.close()
    there.close()


def told(*args: str | Path) -> dict[str, Any]:
    done = aghsan(*args, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_what_was_saved_while_it_trained_goes_on_elsewhere(
    stacks: tuple[Stack, Stack], tmp_path: Path
) -> None:
    here, there = stacks
    here.start()
    first = here.enqueue("stats-bayesian", role="evolver", seed=1)
    here.completed(first)
    running = here.enqueue("stats-bayesian", role="reinventor", seed=2)
    file = tmp_path / "b.tar"
    made = told("backup", file, "--data", here.data)
    assert made["running"] is True
    assert made["judge_key"] is True
    at = str(made["last_seq"])
    here.completed(running)  # nothing was held up
    original = told("replay", "--data", here.data, "--at", at)
    assert here.stop()[0] == 0

    restored = told("restore", file, "--data", there.data)
    assert restored["last_seq"] == made["last_seq"]
    assert restored["violations_total"] == 0
    replayed = told("replay", "--data", there.data)
    assert replayed["last_seq"] == made["last_seq"]
    assert replayed["state_hash"] == original["state_hash"]
    assert told("audit", "--data", there.data)["ok"] is True

    there.start()
    assert there.task(first)["status"] == "completed"
    there.completed(running)
    there.decided("stats-bayesian")
    assert there.stop()[0] == 0
    audited = told("audit", "--data", there.data)
    assert audited["ok"] is True
    assert audited["events"] > made["last_seq"]
