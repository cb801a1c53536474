"""Several judges of one control plane: they share the rounds, and one that dies changes nothing."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import stored
from core import events, subjects
from core.replay import Connected
from tests.acceptance.stack import Stack, aghsan, until
from tests.acceptance.test_rejudge import rejudge, told

NODES = ("stats-bayesian", "math-statistics", "opt-convex", "math-physics")
SECOND = "second"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path, "--no-orchestrator", "--agents", "2")
    try:
        yield stack.start()
    finally:
        stack.close()


@contextlib.contextmanager
def another_judge(stack: Stack) -> Iterator[subprocess.Popen[str]]:
    """A judge with the key of the one of `up`, ready."""
    data = stack.data
    argv = [
        *(sys.executable, "-m", "cli.main", "judge", "--judge-id", SECOND),
        *("--nats", str(stack.facts["nats"]), "--key", str(data / "judge" / "key")),
        *("--creds", str(data / "creds" / "judge.creds")),
        *("--fleet-creds", str(data / "creds" / "judge-fleet.creds")),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("judging for ")
        yield process
    finally:
        process.kill()
        process.wait()


def judging(stack: Stack, node_id: str) -> str:
    """The round of a node that is being judged now, "" where none is."""
    listed = stack.patiently(f"/nodes/{node_id}").get("node", {}).get("rounds", [])
    return next((one["round_id"] for one in listed if one["status"] == "judging"), "")


def events_of(stack: Stack, round_id: str) -> list[events.EventData]:
    """What the log tells of a round."""

    async def read(connected: Connected) -> list[events.EventData]:
        records = await connected.log.of_subject(subjects.event("round", round_id), 100)
        decoded = [events.decode(*record) for record in records]
        return [one.data for one in decoded if isinstance(one, events.Event)]

    return stored.reading(stack.data, read)


def takers(told_of: list[events.EventData]) -> list[str]:
    return [one.judge for one in told_of if isinstance(one, events.JudgingStarted)]


def test_judges_share_the_rounds(stack: Stack) -> None:
    with another_judge(stack):
        took: set[str] = set()
        for _ in range(3):
            for node_id in NODES:
                stack.enqueue(node_id, budget_seconds=1)
            until(lambda: stack.ask("/status")["network"]["tasks"]["running"], "training")
            until(lambda: not waits(stack), "all is trained and decided", 120.0)
            for node_id in NODES:
                for one in stack.ask(f"/nodes/{node_id}")["node"]["rounds"]:
                    took |= set(takers(events_of(stack, one["round_id"])))
            if took == {"judge", SECOND}:
                break
        assert took == {"judge", SECOND}
    assert stack.stop()[0] == 0
    audited = aghsan("audit", "--data", stack.data, "--json")
    assert audited.returncode == 0, audited.stdout


def waits(stack: Stack) -> bool:
    """Whether anything is still to be trained or judged."""
    tasks = stack.ask("/status")["network"]["tasks"]
    rounds = [one for node_id in NODES for one in stack.ask(f"/nodes/{node_id}")["node"]["rounds"]]
    return bool(
        tasks["queued"] + tasks["running"] or any(one["status"] != "decided" for one in rounds)
    )


def test_a_judge_that_dies_in_the_middle_changes_nothing(stack: Stack) -> None:
    node_id = "math-physics"
    with another_judge(stack) as process:
        # The other one is to be the one that dies.
        with frozen(stack.pid("judge")):
            stack.enqueue(node_id, budget_seconds=2)
            round_id = until(lambda: judging(stack, node_id), "it judges")
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert judging(stack, node_id) == round_id
        decided = stack.decided(node_id)
    assert decided["round_id"] == round_id
    assert decided["verdict"] == "promote"
    told_of = events_of(stack, round_id)
    assert takers(told_of) == [SECOND, "judge"]
    assert sum(isinstance(one, events.RoundDecided) for one in told_of) == 1
    again = told(rejudge(stack.data, round_id))
    assert (again["ok"], again["same_verdict"]) == (True, True)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Keep a process from running meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
