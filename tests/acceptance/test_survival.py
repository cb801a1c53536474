"""What dies, and what goes on all the same: real processes, real signals, real training."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.accounts import Authority
from core.nats_server import EmbeddedServer
from tests.acceptance.stack import STOP_SECONDS_MAX, Stack, aghsan, until

SEED = 20_260_101


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    one = Stack(tmp_path, "--no-orchestrator", "--train-sec", "4")
    yield one
    one.close()


def training(stack: Stack, task_id: str, *, checkpointed: bool = False) -> dict[str, Any]:
    """The task, once it trains (and has a checkpoint to go on from)."""

    def is_training() -> dict[str, Any]:
        task = stack.task(task_id)
        assert task.get("status") != "completed", "it ended before the test could interfere"
        ready = task.get("status") == "running" and task["losses"]
        return task if ready and (task["resume"] or not checkpointed) else {}

    return until(is_training, f"{task_id} trains")


def unbroken(tmp_path: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The same training without any interruption: same node, role, seed and steps."""
    rival = task["candidates"][0]["rival"]
    steps = task["result"]["metrics"]["rivals"][rival]["steps"]
    out = tmp_path / "unbroken"
    what = ("--node", task["node_id"], "--role", rival, "--seed", task["seed"], "--steps", steps)
    ran = aghsan("train", *map(str, what), "--out", out, "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert isinstance(result, dict)
    return result


def test_a_killed_agents_task_goes_on_elsewhere_from_its_checkpoint_to_the_same_weights(
    stack: Stack, tmp_path: Path
) -> None:
    stack.start("--agents", "2")
    task_id = stack.enqueue(
        "stats-bayesian", role="evolver", seed=SEED, budget_seconds=14, priority=9
    )
    victim = training(stack, task_id, checkpointed=True)["assigned_worker"]
    stack.kill(victim)
    task = stack.completed(task_id)
    last = task["attempts"][-1]
    assert last["attempt"] > 1
    assert last["resumed_from"] > 0
    assert last["worker_id"] != victim
    assert task["candidates"][0]["weights_sha256"] == unbroken(tmp_path, task)["weights_sha256"]


def test_an_agent_that_is_killed_alone_goes_on_under_its_claim_to_the_same_weights(
    stack: Stack, tmp_path: Path
) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("stats-bayesian", seed=SEED, budget_seconds=14)

    def is_in_its_second_rival() -> bool:
        return any(point["rival"] == "reinventor" for point in stack.task(task_id)["resume"])

    until(is_in_its_second_rival, "a checkpoint of the second rival")
    stack.kill("agent-1")
    task = stack.completed(task_id)
    assert [attempt["state"] for attempt in task["attempts"]] == ["completed"]
    rivals = task["result"]["metrics"]["rivals"]
    assert rivals["evolver"]["resumed_from"] == 0
    assert rivals["reinventor"]["resumed_from"] > 0
    _, reinvented = task["candidates"]
    alone = unbroken(tmp_path, {**task, "candidates": [reinvented]})
    assert reinvented["weights_sha256"] == alone["weights_sha256"]


def test_agents_outlive_the_control_process_and_nats_server_with_the_same_executor(
    stack: Stack,
) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("opt-convex", role="evolver", budget_seconds=20)
    training(stack, task_id)
    agent = stack.pid("agent-1")
    executor = children(agent)
    gateway = stack.kill("gateway")
    until(lambda: stack.pid("gateway") != gateway, "the control process again")
    before = training(stack, task_id)["losses"][-1]["step"]
    control = stack.pid("gateway")
    server = stack.kill("nats-server")
    until(lambda: stack.pid("nats-server") != server, "nats-server again")
    task = stack.completed(task_id)
    assert stack.pid("gateway") == control
    assert stack.pid("agent-1") == agent
    assert children(agent) == executor
    assert len(task["attempts"]) == 1
    assert task["losses"][-1]["step"] > before


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert listed, "an agent has an executor"
    return [int(one) for one in listed]


def test_rounds_are_decided_although_the_judge_was_killed(stack: Stack) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("stats-bayesian", budget_seconds=2)
    training(stack, task_id)
    judge = stack.kill("judge")
    until(lambda: stack.pid("judge") != judge, "the judge again")
    stack.completed(task_id)
    decided = stack.decided("stats-bayesian")
    assert decided["verdict"] == "promote"
    assert {one["role"] for one in decided["candidates"]} == {"evolver", "reinventor"}


def test_a_stop_in_the_middle_of_training_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    stack.start("--agents", "1")
    first = stack.enqueue("stats-bayesian", budget_seconds=2)
    stack.completed(first)
    champion = stack.decided("stats-bayesian")
    task_id = stack.enqueue("stats-bayesian", role="evolver", seed=SEED, budget_seconds=12)
    base = training(stack, task_id)["base"]
    code, seconds = stack.stop()
    assert code == 0
    assert seconds < STOP_SECONDS_MAX
    replayed = json.loads(aghsan("replay", "--data", stack.data, "--json").stdout)
    assert json.loads(aghsan("audit", "--data", stack.data, "--json").stdout)["ok"]

    stack.start("--agents", "1")
    promoted = stack.ask("/nodes/stats-bayesian")["node"]["champion"]
    assert promoted["round_id"] == champion["round_id"]
    assert base["weights_sha256"] == promoted["weights_sha256"]
    task = stack.completed(task_id)
    assert task["result"]["metrics"]["base_sha256"] == promoted["weights_sha256"]
    assert task["attempts"][-1]["resumed_from"] > 0
    state = stack.ask("/log/state")["log"]
    again = json.loads(
        aghsan("replay", "--data", stack.data, "--at", str(state["last_seq"]), "--json").stdout
    )
    assert again["state_hash"] == state["state_hash"]
    then = aghsan("replay", "--data", stack.data, "--at", str(replayed["last_seq"]), "--json")
    assert json.loads(then.stdout)["state_hash"] == replayed["state_hash"]


def test_an_executor_that_is_killed_costs_an_attempt_and_says_why(stack: Stack) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("opt-convex", role="reinventor", budget_seconds=8)
    training(stack, task_id)
    (executor,) = children(stack.pid("agent-1"))
    os.kill(executor, signal.SIGKILL)
    task = stack.completed(task_id)
    assert len(task["attempts"]) == 2
    assert "SIGKILL" in task["attempts"][0]["reason"]


def test_no_child_outlives_an_up_that_is_killed(stack: Stack) -> None:
    stack.start("--agents", "1")
    pids = set(stack.facts["pids"].values()) | set(children(stack.pid("agent-1")))
    stack.kill_up()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "everything gone", 15)
    stack.start("--agents", "1")
    assert stack.completed(stack.enqueue("stats-bayesian", budget_seconds=1))


def test_a_log_put_back_to_an_older_day_is_refused_until_the_loss_is_accepted(
    stack: Stack, tmp_path: Path
) -> None:
    stack.start("--agents", "0")
    stack.enqueue("stats-bayesian")
    assert stack.stop()[0] == 0
    older = tmp_path / "older"
    shutil.copytree(stack.data / "nats", older)
    stack.start("--agents", "0")
    lost = stack.enqueue("stats-bayesian")
    assert stack.stop()[0] == 0
    shutil.rmtree(stack.data / "nats")
    shutil.copytree(older, stack.data / "nats")

    found = json.loads(aghsan("audit", "--data", stack.data, "--json").stdout)
    assert {one["rule"] for one in found["violations"]} == {"head"}
    refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
    assert refused.returncode == 1
    assert "are missing" in refused.stdout + refused.stderr
    assert "--accept-loss" in refused.stdout + refused.stderr
    stack.start("--agents", "0", "--accept-loss")
    assert lost not in [task["task_id"] for task in stack.ask("/tasks")["tasks"]]
    assert stack.stop()[0] == 0
    assert json.loads(aghsan("audit", "--data", stack.data, "--json").stdout)["ok"]


def test_a_last_block_that_was_cut_is_refused_untouched_until_the_loss_is_accepted(
    stack: Stack,
) -> None:
    stack.start("--agents", "0")
    kept = stack.enqueue("stats-bayesian")
    lost = stack.enqueue("stats-bayesian")
    assert stack.stop()[0] == 0
    streams = stack.data / "nats" / "js" / "jetstream"
    blocks = sorted(streams.glob("*/streams/EVENTS/msgs/*.blk"))
    content = blocks[-1].read_bytes()
    blocks[-1].write_bytes(content[: content.index(lost.encode())])

    cut = blocks[-1].read_bytes()
    refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
    assert refused.returncode == 1
    assert "are missing" in refused.stderr
    kept_away = aghsan("backup", stack.directory / "backup.tar", "--data", stack.data)
    assert kept_away.returncode == 1
    assert "are missing" in kept_away.stderr
    assert blocks[-1].read_bytes() == cut
    # A server that was started on it all the same notes what it misses as deleted.
    with EmbeddedServer(stack.data, Authority.load_or_create(stack.data / "keys")):
        pass
    stack.start("--agents", "0", "--accept-loss")
    assert [task["task_id"] for task in stack.ask("/tasks")["tasks"]] == [kept]
    again = stack.enqueue("stats-bayesian")
    assert stack.stop()[0] == 0
    assert "a loss of records from" in stack.words()
    assert json.loads(aghsan("audit", "--data", stack.data, "--json").stdout)["ok"]
    stack.start("--agents", "0")
    tasks = {task["task_id"] for task in stack.ask("/tasks")["tasks"]}
    assert tasks == {kept, again}


def test_keys_or_artifacts_that_are_gone_are_told_before_anything_is_made_in_their_place(
    stack: Stack,
) -> None:
    stack.start("--agents", "0")
    assert stack.stop()[0] == 0
    (chunks,) = (stack.data / "nats" / "js" / "jetstream").glob("*/streams/CHUNKS")
    for place in (stack.data / "keys", chunks):
        away = place.rename(stack.directory / place.name)
        refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
        assert refused.returncode == 1
        assert f"{place}" in refused.stderr
        assert not place.exists()
        away.rename(place)
    stack.start("--agents", "0")


def test_a_second_up_on_the_same_data_is_refused(stack: Stack) -> None:
    stack.start("--agents", "1")
    second = aghsan("up", "--data", stack.data, "--port", "0")
    assert second.returncode == 1
    assert "in use" in second.stderr
    taken = aghsan("up", "--data", stack.directory / "other", "--port", stack.http.split(":")[-1])
    assert taken.returncode != 0
    assert "choose another port" in taken.stderr
