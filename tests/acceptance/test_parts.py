"""The parts that people start by themselves, each beside a server that runs already."""

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import nats_fixture
from tests.acceptance.stack import STOP_SECONDS_MAX, Stack, aghsan, until

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(tmp_path_factory.mktemp("parts"), "--no-orchestrator", "--agents", "0")
    try:
        yield one.start()
    finally:
        one.close()


def started(log: Path, *args: str, home: Path | None = None) -> subprocess.Popen[bytes]:
    """A part that goes on by itself."""
    env = {**os.environ, **({"HOME": str(home), "USERPROFILE": str(home)} if home else {})}
    with log.open("wb") as words:
        argv = [sys.executable, "-m", "cli.main", *args]
        return subprocess.Popen(argv, stdout=words, stderr=subprocess.STDOUT, env=env)


@contextlib.contextmanager
def part(log: Path, *args: str, home: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A part that runs inside the block, and is stopped by Ctrl-C at its end."""
    process = started(log, *args, home=home)
    try:
        yield process
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(2 * STOP_SECONDS_MAX) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_an_agent_that_reaches_only_the_gateways_port_trains_under_any_name(
    stack: Stack, tmp_path: Path
) -> None:
    name = "حاسوب سارة"
    local = ("--directory", str(tmp_path / "agent"))
    with part(tmp_path / "log", "agent", "--api", stack.http, "--worker-id", name, *local):
        task = stack.completed(stack.enqueue("opt-convex", budget_seconds=1))
        assert task["assigned_worker"] == name
        assert set(task["result"]["metrics"]["rivals"]) == {"evolver", "reinventor"}
        assert task["result"]["metrics"]["loss"] < task["result"]["metrics"]["baseline_loss"] * 20
    workers = {one["worker_id"]: one for one in stack.ask("/workers")["workers"]}
    assert workers[name]["status"] == "offline"
    assert workers[name]["reason"] == "it said goodbye"


def test_an_agent_says_in_a_line_each_what_it_does(stack: Stack, tmp_path: Path) -> None:
    log = tmp_path / "log"
    where = ("--worker-id", "teller", "--directory", str(tmp_path / "agent"))
    with part(log, "agent", "--api", stack.http, *where):
        first = stack.enqueue("opt-convex", budget_seconds=1)
        stack.completed(first)
        until(lambda: "waiting for work" in log.read_text(), "it says that it waits")
        second = stack.enqueue("opt-convex", budget_seconds=60)
        until(lambda: f"trains {second}" in log.read_text(), "it says what it trains")
    patterns = (
        rf"joined {stack.http} as teller \(lane cpu-\d+: 1 × cpu, .* GB\); Ctrl-C .*",
        rf"trains {first} on opt-convex “اختبار” \(dual\)",
        rf"delivered {first} on opt-convex · loss: evolver .*, reinventor .*, baseline .*",
        r"waiting for work",
        rf"trains {second} on opt-convex “اختبار” \(dual\)",
        rf"stopping: saves {second} and gives it back",
        rf"gave back {second} on opt-convex at step \d+ of \d+",
    )
    for line, pattern in zip(log.read_text().splitlines(), patterns, strict=True):
        assert re.fullmatch(r"\d\d:\d\d:\d\d  " + pattern, line), line
    stack.ask(f"/tasks/{second}/cancel", {})


def test_agents_of_one_host_that_name_themselves_work_side_by_side(
    stack: Stack, tmp_path: Path
) -> None:
    local = ("agent", "--api", stack.http)
    host = platform.node()
    with part(tmp_path / "first", *local, home=tmp_path):
        until(lambda: online(stack) == {host}, "the first is there")
        with part(tmp_path / "second", *local, home=tmp_path):
            until(lambda: online(stack) == {host, f"{host}-2"}, "the second is there")


def online(stack: Stack) -> set[str]:
    workers = stack.ask("/workers")["workers"]
    return {one["worker_id"] for one in workers if one["status"] == "online"}


def test_an_agent_whose_id_was_taken_elsewhere_ends_with_one_line_that_says_what_to_do(
    stack: Stack, tmp_path: Path
) -> None:
    def argv(number: int) -> tuple[str, ...]:
        where = ("--directory", str(tmp_path / str(number)))
        return "agent", "--api", stack.http, "--worker-id", "twice", *where

    command = [sys.executable, "-m", "cli.main", *argv(1)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        try:
            until(lambda: "twice" in online(stack), "the first is there")
            with part(tmp_path / "second", *argv(2)):
                _, words = first.communicate(timeout=30)
        finally:
            first.kill()  # else a failure would wait for its end for ever
    assert first.returncode == 5
    (line,) = words.splitlines()
    assert platform.node() in line
    assert "give one of them another --worker-id" in line


@pytest.mark.parametrize("name", ["tasks", "bases"])
def test_an_agent_in_a_folder_of_somebody_else_ends_and_deletes_nothing(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name / "of-mine").mkdir(parents=True)
    ran = aghsan("agent", "--api", NOWHERE, "--worker-id", "one", "--directory", tmp_path)
    assert ran.returncode == 1
    assert "--directory" in ran.stderr
    assert (tmp_path / name / "of-mine").is_dir()


def test_the_orchestrator_alone_keeps_the_queue_of_a_server_filled(
    stack: Stack, tmp_path: Path
) -> None:
    stack.ask("/workers/register", {"worker_id": "w", "hostname": "h"})
    options = ("--min-queue", "7", "--burst", "3", "--sleep-sec", "0.3", "--priority", "2")
    with part(tmp_path / "log", "orchestrator", "--api", stack.http, *options):
        until(
            lambda: stack.ask("/status")["network"]["tasks"]["queued"] >= 7, "the queue is filled"
        )
        taken = stack.ask("/training/claim", {"worker_id": "w"})["task"]
        assert taken["priority"] == 2
        until(lambda: stack.ask("/status")["network"]["tasks"]["queued"] >= 7, "filled again")
    nodes = {task["node_id"] for task in stack.ask("/tasks?limit=100")["tasks"]}
    assert len(nodes) >= 3


def test_a_second_gateway_on_a_directory_that_up_serves_is_refused(stack: Stack) -> None:
    nats = str(stack.facts["nats"])

    def epoch() -> object:
        return json.loads(aghsan("replay", "--data", stack.data, "--json").stdout)["writer_epoch"]

    before = epoch()
    ran = aghsan("gateway", "--nats", nats, "--data", stack.data, "--port", "0")
    assert ran.returncode == 5
    assert "is in use by process" in ran.stderr
    assert epoch() == before
    stack.enqueue("opt-convex")


def test_one_gateway_at_a_time_serves_a_directory_that_replay_reads_beside_it(
    tmp_path: Path,
) -> None:
    with nats_fixture.running(tmp_path / "data") as nats:
        args = ("gateway", "--nats", nats.url, "--data", str(nats.data), "--port", "0")
        log = tmp_path / "log"
        with part(log, *args):
            until(lambda: "ready http" in log.read_text(), "it is ready")
            second = aghsan(*args)
            assert (second.returncode, "is in use by process" in second.stderr) == (5, True)
            beside = aghsan("replay", "--data", nats.data, "--json")
            assert json.loads(beside.stdout)["running"] is True
        assert not (nats.data / "run.json").exists()


def test_the_place_of_a_gateway_that_was_killed_is_free(tmp_path: Path) -> None:
    with nats_fixture.running(tmp_path / "data") as nats:
        args = ("gateway", "--nats", nats.url, "--data", str(nats.data), "--port", "0")
        log = tmp_path / "log"
        with started(log, *args) as first:
            until(lambda: "ready http" in log.read_text(), "it is ready")
            first.kill()
        with part(log, *args):
            until(lambda: "ready http" in log.read_text(), "another one is ready")


def test_the_ready_file_names_an_orchestrator_only_where_there_is_one(stack: Stack) -> None:
    assert sorted(stack.facts["pids"]) == ["gateway", "judge", "nats-server"]


def test_up_serves_a_directory_of_an_arabic_name_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "بيانات و فراغ"
    folder.mkdir()
    one = Stack(folder, "--agents", "0")
    try:
        one.start()
        assert one.facts["data"] == str(one.data)
        assert one.facts["pids"]["orchestrator"] == one.pid("gateway")
        assert "Traceback" not in one.words()
        assert one.stop()[0] == 0
    finally:
        one.close()


@pytest.mark.parametrize("lacking", ["keys/complete", "creds/control.creds"])
def test_a_gateway_leaves_a_directory_alone_that_is_no_data_directory(
    tmp_path: Path, lacking: str
) -> None:
    for name in {"keys/complete", "creds/control.creds"} - {lacking}:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    ran = aghsan("gateway", "--nats", "nats://127.0.0.1:9", "--data", tmp_path)
    assert ran.returncode == 1
    assert lacking in ran.stderr
    assert "aghsan up" in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("host", ["1.2.3.4", "bad..host"])
@pytest.mark.parametrize("port", ["0", "18000"])
def test_a_host_of_another_machine_is_refused_in_one_line_with_nothing_started(
    tmp_path: Path, host: str, port: str
) -> None:
    data = tmp_path / "data"
    ran = aghsan("up", "--data", data, "--host", host, "--port", port)
    assert (ran.returncode, ran.stdout) == (5, "")
    (line,) = ran.stderr.splitlines()
    assert host in line
    assert not data.exists()


def test_a_gateway_on_a_host_of_another_machine_is_refused_in_one_line(tmp_path: Path) -> None:
    with nats_fixture.running(tmp_path / "data") as nats:
        args = ("--nats", nats.url, "--data", nats.data)
        for host in ("1.2.3.4", "bad..host"):
            ran = aghsan("gateway", *args, "--host", host)
            assert (ran.returncode, ran.stdout) == (5, "")
            assert len(ran.stderr.splitlines()) == 1
        assert not (nats.data / "lock").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("enqueue", "موضوع"),
        ("task", "ls"),
        ("orchestrator",),
    ],
)
def test_a_server_that_is_not_there_is_exit_69_with_what_to_do(args: tuple[str, ...]) -> None:
    ran = aghsan(*args, "--api", NOWHERE)
    assert ran.returncode == 69
    assert "aghsan up" in ran.stderr


def test_typos_and_unknown_things_are_told_apart(stack: Stack) -> None:
    api = ("--api", stack.http)
    assert aghsan("statsu").returncode == 2
    assert aghsan("up", "--no-such-flag").returncode == 2
    assert aghsan("task", "show", "task-nope", *api).returncode == 4
    assert aghsan("node", "show", "nope", *api).returncode == 4
    assert aghsan("enqueue", "t", "--node", "nope", *api).returncode == 4
    task_id = stack.enqueue("opt-convex")
    assert aghsan("task", "retry", task_id, *api).returncode == 5
    assert aghsan("task", "cancel", task_id, *api).returncode == 0
    assert aghsan("replay", "--data", stack.directory / "nowhere").returncode == 4
    assert aghsan("audit", "--data", stack.directory).returncode == 1
