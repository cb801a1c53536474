"""What dies, and what goes on all the same: real processes, real signals, real training."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core import blocks
from core.accounts import Authority
from core.nats_server import EmbeddedServer
from tests.acceptance.stack import STOP_SECONDS_MAX, Stack, aghsan, until

SEED = 20_260_101


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    one = Stack(tmp_path, "--no-orchestrator", "--train-sec", "4")
    yield one
    one.close()


def training(stack: Stack, task_id: str, beyond: int = 0) -> dict[str, Any]:
    """The task, once it trains and a loss beyond this step was told."""

    def is_training() -> dict[str, Any]:
        task = stack.task(task_id)
        assert task.get("status") != "completed", "it ended before the test could interfere"
        told = task.get("status") == "running" and task["losses"]
        return task if told and told[-1]["step"] > beyond else {}

    return until(is_training, f"{task_id} trains")


def curves(task: dict[str, Any]) -> dict[str, list[int]]:
    """The steps at which each rival's loss was told."""
    rivals = dict.fromkeys(point["rival"] for point in task["losses"])
    return {
        rival: [point["step"] for point in task["losses"] if point["rival"] == rival]
        for rival in rivals
    }


def checkpointed(stack: Stack, task_id: str, rival: str) -> dict[str, Any]:
    """The task, once this rival has a checkpoint to go on from, behind a loss that was told.

    The first comes after a quarter of its steps, however few those are.
    """

    def is_checkpointed() -> dict[str, Any]:
        task = training(stack, task_id)
        reached = [point["step"] for point in task["resume"] if point["rival"] == rival]
        return task if reached and curves(task).get(rival, reached)[0] < reached[0] else {}

    return until(is_checkpointed, f"{task_id} has a checkpoint of its {rival}")


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
        "stats-bayesian", role="evolver", seed=SEED, budget_seconds=6, priority=9
    )
    victim = checkpointed(stack, task_id, "evolver")["assigned_worker"]
    # Started again at once, it may be back before it is missed, and go on under its claim.
    with stack.held_up():
        stack.kill(victim)
        until(lambda: len(stack.task(task_id).get("attempts", [])) > 1, "another attempt")
    task = stack.completed(task_id)
    last = task["attempts"][-1]
    assert last["attempt"] == 2
    assert last["resumed_from"] > 0
    assert last["worker_id"] != victim
    steps = curves(task)["evolver"]
    assert steps[0] < last["resumed_from"] < steps[-1]
    assert steps == sorted(set(steps))
    assert task["candidates"][0]["weights_sha256"] == unbroken(tmp_path, task)["weights_sha256"]


def test_an_agent_that_is_killed_alone_goes_on_under_its_claim_to_the_same_weights(
    stack: Stack, tmp_path: Path
) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("stats-bayesian", seed=SEED, budget_seconds=8)
    checkpointed(stack, task_id, "reinventor")
    stack.kill("agent-1")
    task = stack.completed(task_id)
    assert [attempt["state"] for attempt in task["attempts"]] == ["completed"]
    rivals = task["result"]["metrics"]["rivals"]
    assert rivals["evolver"]["resumed_from"] == 0
    assert rivals["reinventor"]["resumed_from"] > 0
    told = curves(task)
    assert told["evolver"][-1] == rivals["evolver"]["steps"]
    assert told["reinventor"][0] < rivals["reinventor"]["resumed_from"]
    _, reinvented = task["candidates"]
    alone = unbroken(tmp_path, {**task, "candidates": [reinvented]})
    assert reinvented["weights_sha256"] == alone["weights_sha256"]


def test_agents_outlive_nats_server_and_the_control_process_with_the_same_executor(
    stack: Stack,
) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("opt-convex", role="evolver", budget_seconds=8)
    before = training(stack, task_id)["losses"][-1]["step"]
    agent, control = stack.pid("agent-1"), stack.pid("gateway")
    executor = children(agent)
    server = stack.kill("nats-server")
    until(lambda: stack.pid("nats-server") != server, "nats-server again")
    before = training(stack, task_id, beyond=before)["losses"][-1]["step"]
    assert stack.kill("gateway") == control
    until(lambda: stack.pid("gateway") != control, "the control process again")
    task = stack.completed(task_id)
    assert stack.pid("agent-1") == agent
    assert children(agent) == executor
    assert len(task["attempts"]) == 1
    assert task["losses"][-1]["step"] > before


def children(pid: int) -> list[int]:
    listed = [child.pid for child in psutil.Process(pid).children()]
    assert listed, "an agent has an executor"
    return listed


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
    task_id = stack.enqueue("stats-bayesian", role="evolver", seed=SEED, budget_seconds=5)
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


def test_an_executor_that_is_killed_costs_an_attempt_the_second_time_and_says_why(
    stack: Stack,
) -> None:
    stack.start("--agents", "1")
    task_id = stack.enqueue("opt-convex", role="reinventor", budget_seconds=4)
    training(stack, task_id)
    agent = psutil.Process(stack.pid("agent-1"))
    (first,) = agent.children()
    first.kill()
    until(lambda: first not in agent.children() and agent.children(), "another executor")
    (only,) = checkpointed(stack, task_id, "reinventor")["attempts"]
    assert only["state"] == "open"
    died = f"agent-1: the executor died by signal SIGKILL; {task_id} on opt-convex goes on from"
    assert stack.words().count(died) == 1
    (second,) = agent.children()
    second.kill()
    lost, last = stack.completed(task_id)["attempts"]
    assert "SIGKILL" in lost["reason"]
    assert last["state"] == "completed"


def test_no_child_outlives_an_up_that_is_killed(stack: Stack) -> None:
    stack.start("--agents", "1")
    pids = set(stack.facts["pids"].values()) | set(children(stack.pid("agent-1")))
    stack.kill_up()
    until(lambda: not any(map(psutil.pid_exists, pids)), "everything gone", 15)
    stack.start("--agents", "1")
    assert stack.completed(stack.enqueue("stats-bayesian", budget_seconds=1))
    assert stack.stop()[0] == 0
    stack.start("--agents", "0")
    assert stack.words().count("the last run was not stopped, it broke off; here again: ") == 1


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
    stored = sorted(streams.glob("*/streams/EVENTS/msgs/*.blk"))
    content = stored[-1].read_bytes()
    stored[-1].write_bytes(content[: content.index(lost.encode())])

    cut = stored[-1].read_bytes()
    refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
    assert refused.returncode == 1
    assert "are missing" in refused.stderr
    kept_away = aghsan("backup", stack.directory / "backup.tar", "--data", stack.data)
    assert kept_away.returncode == 1
    assert "are missing" in kept_away.stderr
    assert stored[-1].read_bytes() == cut
    # A server that was started on it all the same notes what it misses as deleted.
    with EmbeddedServer(stack.data, Authority.load_or_create(stack.data / "keys")):
        pass
    stack.start("--agents", "0", "--accept-loss")
    assert [task["task_id"] for task in stack.ask("/tasks")["tasks"]] == [kept]
    again = stack.enqueue("stats-bayesian")
    assert stack.stop()[0] == 0
    assert "a loss was accepted: the log ended at" in stack.words()
    assert json.loads(aghsan("audit", "--data", stack.data, "--json").stdout)["ok"]
    stack.start("--agents", "0")
    tasks = {task["task_id"] for task in stack.ask("/tasks")["tasks"]}
    assert tasks == {kept, again}


def test_a_flipped_bit_costs_its_record_alone_and_what_comes_later_outlives_a_kill(
    stack: Stack,
) -> None:
    stack.start("--agents", "0")
    first, hit, last = (stack.enqueue("stats-bayesian") for _ in range(3))
    assert stack.stop()[0] == 0
    (block,) = stack.data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/*.blk")
    content = bytearray(block.read_bytes())
    content[content.index(f'"task_id":"{hit}'.encode()) + 1] ^= 1
    block.write_bytes(content)

    refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
    assert refused.returncode == 1
    assert "its checksum does not match" in refused.stderr
    assert block.read_bytes() == content
    stack.start("--agents", "0", "--accept-loss")
    later = stack.enqueue("stats-bayesian")
    stack.kill("nats-server")
    until(lambda: "nats-server is back" in stack.words(), "nats-server", 30)
    latest = stack.enqueue("stats-bayesian")
    assert stack.stop()[0] == 0
    assert "a loss was accepted: record" in stack.words()
    audit = aghsan("audit", "--data", stack.data, "--json")
    assert audit.returncode == 0, audit.stdout
    told = json.loads(audit.stdout)
    assert (told["ok"], told["violations"]) == (True, [])
    assert told["accepted_by_rule"] == {"undecodable": 1, "seals": 1}
    stack.start("--agents", "0")
    tasks = [task["task_id"] for task in stack.ask("/tasks")["tasks"]]
    assert sorted(tasks) == sorted([first, last, later, latest])
    assert "is closed" in aghsan("task", "cancel", hit, "--api", stack.http).stderr
    assert stack.stop()[0] == 0
    # What is changed in front of an accepted loss is found, although its seal is broken anyway.
    number, spans = int(block.stem), blocks.follow(block.read_bytes(), 0).spans
    records = [one.record(block.read_bytes()) for one in spans]
    of_first = next(at for at, one in enumerate(records) if first in one.subject)
    payload = records[of_first].payload.replace(b'"priority":5', b'"priority":6')
    assert payload != records[of_first].payload
    records[of_first] = records[of_first]._replace(payload=payload)
    block.write_bytes(blocks.encode("EVENTS", number, records))
    audit = aghsan("audit", "--data", stack.data, "--json")
    assert audit.returncode == 1
    assert "losses" in {one["rule"] for one in json.loads(audit.stdout)["violations"]}


def test_keys_or_artifacts_that_are_gone_are_told_before_anything_is_made_in_their_place(
    stack: Stack,
) -> None:
    stack.start("--agents", "0")
    assert stack.stop()[0] == 0
    streams = stack.data / "nats" / "js" / "jetstream"
    (chunks,), (events,) = streams.glob("*/streams/CHUNKS"), streams.glob("*/streams/EVENTS")
    for place in (stack.data / "keys", chunks):
        away = place.rename(stack.directory / place.name)
        refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
        assert refused.returncode == 1
        assert f"{place}" in refused.stderr
        assert not place.exists()
        away.rename(place)
    shutil.rmtree(chunks)
    (stack.data / "head").write_text("{")
    refused = aghsan("up", "--agents", "0", "--port", "0", "--data", stack.data)
    assert refused.returncode == 1
    stack.start("--agents", "0", "--accept-loss")
    assert stack.stop()[0] == 0
    assert "head cannot be read and is kept as head.unreadable" in stack.words()
    assert (stack.data / "head.unreadable").read_text() == "{"
    assert "a loss was accepted: all artifacts are gone" in stack.words()
    subjects = [one.subject for one in blocks.read(events / "msgs", "EVENTS")]
    assert subjects[subjects.index("ev.log.loss") - 1] == "ev.log.writer"


def test_a_second_up_on_the_same_data_is_refused(stack: Stack) -> None:
    stack.start("--agents", "0")
    second = aghsan("up", "--data", stack.data, "--port", "0")
    assert second.returncode == 5
    assert "in use" in second.stderr
    taken = aghsan("up", "--data", stack.directory / "other", "--port", stack.http.split(":")[-1])
    assert taken.returncode != 0
    assert "choose another port" in taken.stderr
