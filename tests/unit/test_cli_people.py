"""What people's verbs ask a server, and how they show what it answers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from click.testing import CliRunner, Result

from cli import main, terminal

PREFIX = "/api/v1/network"

NETWORK = {
    "nodes": 10,
    "workers_total": 3,
    "workers_online": 2,
    "tasks": {"queued": 5, "running": 1, "completed": 30, "total": 36},
}
TASK = {
    "task_id": "task-0123456789ab",
    "node_id": "stats-bayesian",
    "topic": "الاستدلال البايزي: تقدير المتوسط",
    "priority": 5,
    "status": "queued",
    "assigned_worker": None,
    "created_at": "2026-11-24T12:00:00.123456",
    "updated_at": "2026-11-24T12:00:00.123456",
    "result": None,
}
DETAIL = TASK | {
    "status": "completed",
    "role": "dual",
    "seed": 7,
    "workload": {"specialist": "root-math", "parameters": {}, "inherited": True},
    "attempts": [
        {"attempt": 1, "worker_id": "a1", "outcome": "expired", "reason": "silence"},
        {"attempt": 2, "worker_id": "a2", "outcome": "completed", "resumed_from": 40},
    ],
    "losses": [
        {"rival": "evolver", "step": 10, "loss": 0.9},
        {"rival": "evolver", "step": 20, "loss": 0.25},
    ],
    "result": {"worker_id": "a2", "metrics": {"loss": 0.25, "steps": 400}, "artifact_name": None},
    "reasons": [],
    "log_tail": "",
    "a_key_of_tomorrow": {"nested": [1, 2]},
}
CHAMPION = {
    "candidate_id": "cand-1",
    "round_id": "round-1",
    "role": "evolver",
    "error": 0.125,
    "baseline_error": 0.25,
    "evidence_rate": 0.9,
    "below_baseline": False,
    "params": 1234,
    "bytes": 5678,
    "weights_sha256": "ab" * 32,
}
NODE = {
    "node_id": "stats-bayesian",
    "name": "الاستدلال البايزي",
    "description": "",
    "parent_id": "math-statistics",
    "path": "الرياضيات/الإحصاء/الاستدلال البايزي",
    "children": [],
    "champion": CHAMPION,
    "rounds": [{"round_id": "round-1", "status": "decided", "verdict": "promoted"}],
    "lineage": [{"candidate_id": "cand-1", "role": "evolver", "error": 0.125}],
    "workload": {"specialist": "stats-bayesian", "parameters": {}, "inherited": False},
}
ROUND = {
    "round_id": "round-1",
    "node_id": "stats-bayesian",
    "status": "decided",
    "commitment": "cd" * 32,
    "secret": "ef" * 32,
    "base": None,
    "candidates": [
        {
            "candidate_id": "cand-1",
            "task_id": "task-1",
            "worker_id": "a2",
            "role": "evolver",
            "verdict": "promoted",
            "reasons": {"en": "smaller error", "ar": "خطأ أصغر"},
        }
    ],
    "verdict": "promoted",
    "reasons": {"en": "it is better", "ar": "هو أفضل"},
    "decided_at": "2026-11-24T12:00:00Z",
}


class Stub:
    """A server that answers what it was told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]], Any, dict[str, str]]] = []
        self.break_off = 0
        self.address = ""

    def says(self, method: str, path: str, value: Any, status: int = 200) -> None:
        self.answers[method, path] = (status, value)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        path = url.path.removeprefix(PREFIX)
        headers = {key.lower(): text for key, text in request.headers.items()}
        self.asked.append((request.command, path, parse_qs(url.query), body, headers))
        if self.break_off:
            self.break_off -= 1
            request.close_connection = True
            return
        status, value = self.answers.get((request.command, path), (404, {"detail": "Not Found"}))
        content = value if isinstance(value, bytes) else _compact(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.fixture
def stub() -> Iterator[Stub]:
    one = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one.handle(self)

        def do_POST(self) -> None:
            one.handle(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield one
    server.shutdown()
    server.server_close()


def _run(stub: Stub, *args: str) -> Result:
    return CliRunner().invoke(main.aghsan, args, env={"AGHSAN_API": stub.address})


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_an_enqueue_asks_for_just_what_was_given_and_names_the_task(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    result = _run(stub, "enqueue", "موضوع", "--node", "stats-bayesian", "--priority", "5")
    assert (result.exit_code, result.stdout) == (
        0,
        "task-0123456789ab is queued for stats-bayesian, priority 5\n",
    )
    _, _, _, body, headers = stub.asked[0]
    assert body == {"topic": "موضوع", "node_id": "stats-bayesian", "priority": 5}
    assert headers["content-type"] == "application/json"


def test_an_enqueue_passes_every_option_on(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    _run(
        stub,
        "enqueue",
        "t",
        "--role",
        "evolver",
        "--method",
        "full",
        "--budget-seconds",
        "2.5",
        "--seed",
        "9",
    )
    assert stub.asked[0][3] == {
        "topic": "t",
        "node_id": None,
        "priority": 5,
        "role": "evolver",
        "method": "full",
        "budget_seconds": 2.5,
        "seed": 9,
    }


@pytest.mark.parametrize("priority", ["0", "11", "99", "-1"])
def test_a_priority_out_of_range_is_refused_and_never_another_one(
    stub: Stub, priority: str
) -> None:
    result = _run(stub, "enqueue", "t", f"--priority={priority}")
    assert result.exit_code == main.EXIT_USAGE
    assert "1<=x<=10" in result.stderr
    assert stub.asked == []


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0"])
@pytest.mark.parametrize("command", [("enqueue",), ("expand", "root-math")])
def test_what_has_no_words_is_refused_before_the_server_is_asked(
    stub: Stub, command: tuple[str, ...], blank: str
) -> None:
    result = _run(stub, *command, blank)
    assert result.exit_code == main.EXIT_USAGE
    assert "it is blank" in result.stderr
    assert stub.asked == []


def test_an_enqueue_whose_answer_broke_off_is_repeated_under_the_same_key(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    stub.break_off = 1
    assert _run(stub, "enqueue", "t").exit_code == 0
    first, second = (headers["idempotency-key"] for *_, headers in stub.asked)
    assert first == second


def test_a_request_that_may_not_be_repeated_is_not(stub: Stub) -> None:
    stub.break_off = 1
    result = _run(stub, "task", "retry", "task-1")
    assert result.exit_code == main.EXIT_UNREACHABLE
    assert "not known" in result.stderr
    assert len(stub.asked) == 1


def test_json_is_the_value_as_the_server_wrote_it(stub: Stub) -> None:
    stub.says("GET", "/tasks/task-1", {"status": "ok", "task": DETAIL})
    assert _run(stub, "task", "show", "task-1", "--json").stdout == _compact(DETAIL) + "\n"


def test_json_of_a_list_is_an_object_with_the_next_page(stub: Stub) -> None:
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK], "next": "n1"})
    result = _run(
        stub, "task", "ls", "--status", "queued", "--node", "root-math", "--limit", "7", "--json"
    )
    assert json.loads(result.stdout) == {"tasks": [TASK], "next": "n1"}
    assert stub.asked[0][2] == {"status": ["queued"], "node_id": ["root-math"], "limit": ["7"]}


def test_a_list_of_tasks_is_one_row_each_with_the_topic_last(stub: Stub) -> None:
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK, {"task_id": "t2"}], "next": None})
    lines = _run(stub, "task", "ls").stdout.splitlines()
    assert lines[0].split() == ["task", "status", "prio", "node", "topic"]
    assert lines[1].startswith("task-0123456789ab  queued")
    assert lines[1].endswith("الاستدلال البايزي: تقدير المتوسط")
    assert lines[2].startswith("t2")


def test_a_page_that_is_not_the_last_says_how_to_go_on(stub: Stub) -> None:
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK], "next": "n1"})
    assert "--after n1" in _run(stub, "task", "ls").stderr


def test_a_task_shows_its_history_and_that_its_workload_is_inherited(stub: Stub) -> None:
    stub.says("GET", "/tasks/task-1", {"status": "ok", "task": DETAIL})
    shown = _run(stub, "task", "show", "task-1").stdout
    for part in ("root-math, inherited", "silence", "completed", "0.9 █▁ 0.25 at step 20"):
        assert part in shown
    assert "الاستدلال البايزي" in shown


def test_a_result_shows_each_rival_in_a_row_and_anything_else_readably(stub: Stub) -> None:
    rival = {"loss": 0.25, "steps": 80, "params": 371, "device": "cpu"}
    metrics = {
        "loss": 0.125,
        "finished_at": 1795694049.69,
        "rivals": {"evolver": rival, "reinventor": rival | {"loss": 0.125}},
        "mine": {"ملاحظة": [1, 2]},
    }
    detail = DETAIL | {"result": {"worker_id": "w", "metrics": metrics}}
    stub.says("GET", "/tasks/task-1", {"status": "ok", "task": detail})
    lines = [line.split() for line in _run(stub, "task", "show", "task-1").stdout.splitlines()]
    assert ["loss", "0.125"] in lines
    assert ["rival", "loss", "steps", "params"] in lines
    assert ["reinventor", "0.125", "80", "371"] in lines
    assert ["mine", '{"ملاحظة":', "[1,", "2]}"] in lines
    assert not any(line[:1] == ["finished_at"] for line in lines)


def test_cancel_and_retry_say_how_the_task_stands(stub: Stub) -> None:
    stub.says("POST", "/tasks/t1/cancel", {"status": "ok", "task": TASK | {"status": "cancelled"}})
    stub.says("POST", "/tasks/t1/retry", {"status": "ok", "task": TASK})
    assert _run(stub, "task", "cancel", "t1", "--reason", "why").stdout.endswith("is cancelled\n")
    assert _run(stub, "task", "retry", "t1").stdout.endswith("is queued\n")
    assert [body for *_, body, _ in stub.asked] == [{"reason": "why"}, {}]


def test_an_expand_names_the_new_node(stub: Stub) -> None:
    stub.says("POST", "/graph/expand", {"status": "ok", "node": NODE | {"node_id": "node-1"}})
    result = _run(stub, "expand", "root-math", "هندسة", "--description", "وصف")
    assert result.stdout == "node-1 grew: الرياضيات/الإحصاء/الاستدلال البايزي\n"
    assert stub.asked[0][3] == {"parent_id": "root-math", "name": "هندسة", "description": "وصف"}


def test_the_status_shows_figures_workers_and_what_runs(stub: Stub) -> None:
    worker = {"worker_id": "a1", "status": "online", "task_id": "t9", "step": 3, "total_steps": 9}
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/workers", {"status": "ok", "workers": [worker]})
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK | {"status": "running"}]})
    shown = _run(stub, "status").stdout
    for part in ("2 of 3 workers online", "5 queued", "a1", "3/9", "task-0123456789ab"):
        assert part in shown


def test_the_status_of_a_server_with_only_the_nine_routes_is_shown_too(stub: Stub) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    result = _run(stub, "status")
    assert result.exit_code == 0
    assert "10 nodes" in result.stdout


def test_workers_are_listed_with_missing_and_unknown_keys_alike(stub: Stub) -> None:
    workers = [{"worker_id": "عامل", "tasks": ["t1"], "novel": 1}, {"worker_id": "w2"}]
    stub.says("GET", "/workers", {"status": "ok", "workers": workers})
    shown = _run(stub, "worker", "ls").stdout
    assert "عامل" in shown
    assert "t1" in shown
    assert json.loads(_run(stub, "worker", "ls", "--json").stdout) == {"workers": workers}


def test_a_node_shows_its_champion_and_its_lineage(stub: Stub) -> None:
    stub.says("GET", "/nodes/stats-bayesian", {"status": "ok", "node": NODE})
    shown = _run(stub, "node", "show", "stats-bayesian").stdout
    for part in ("0.125 against 0.25 of the baseline", "cand-1", "round-1", "الإحصاء"):
        assert part in shown


def test_the_tree_is_shown_with_ids_for_the_other_commands(stub: Stub) -> None:
    nodes = [{"node_id": "root-math", "name": "الرياضيات", "parent_id": None}, NODE]
    stub.says("GET", "/graph", {"status": "ok", "graph": {"nodes": nodes}})
    assert "stats-bayesian  الاستدلال البايزي" in _run(stub, "node", "ls").stdout


def test_a_round_shows_the_verdict_and_why_in_both_languages(stub: Stub) -> None:
    stub.says("GET", "/rounds/round-1", {"status": "ok", "round": ROUND})
    shown = _run(stub, "round", "show", "round-1").stdout
    for part in ("promoted", "it is better", "هو أفضل", "خطأ أصغر", "smaller error"):
        assert part in shown


def test_rounds_are_listed_by_node_and_status(stub: Stub) -> None:
    stub.says("GET", "/rounds", {"status": "ok", "rounds": [ROUND], "next": None})
    assert "round-1" in _run(stub, "round", "ls", "--node", "n1", "--status", "decided").stdout
    assert stub.asked[0][2] == {"node_id": ["n1"], "status": ["decided"], "limit": ["100"]}


@pytest.mark.parametrize("verb", ["task", "round"])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_nothing_of_a_node_is_told_from_a_node_that_is_not_there(
    stub: Stub, verb: str, more: tuple[str, ...]
) -> None:
    stub.says("GET", f"/{verb}s", {"status": "ok", f"{verb}s": [], "next": None})
    stub.says("GET", "/nodes/n1", {"status": "ok", "node": NODE})
    stub.says("GET", "/nodes/nope", {"detail": "there is no node nope"}, 404)
    assert _run(stub, verb, "ls", "--node", "n1", *more).exit_code == 0
    result = _run(stub, verb, "ls", "--node", "nope", *more)
    assert (result.exit_code, result.stdout) == (main.EXIT_NOT_FOUND, "")
    assert result.stderr == "aghsan: there is no node nope\n"


def test_a_champion_is_shown_for_people_and_for_programs(stub: Stub) -> None:
    stub.says("GET", "/nodes/n1", {"status": "ok", "node": NODE})
    assert "cand-1" in _run(stub, "champion", "show", "n1").stdout
    assert json.loads(_run(stub, "champion", "show", "n1", "--json").stdout) == CHAMPION


def test_a_node_without_a_champion_is_not_found(stub: Stub) -> None:
    stub.says("GET", "/nodes/n1", {"status": "ok", "node": NODE | {"champion": None}})
    result = _run(stub, "champion", "show", "n1", "--json")
    assert (result.exit_code, result.stdout) == (main.EXIT_NOT_FOUND, "")
    assert "has no champion yet" in result.stderr


@pytest.mark.parametrize(
    ("status", "detail", "code"),
    [
        (404, "no task t1; see task ls", main.EXIT_NOT_FOUND),
        (400, "target node not found", main.EXIT_NOT_FOUND),
        (409, "completed tasks stay completed", main.EXIT_CONFLICT),
        (422, "priority is no number", main.EXIT_USAGE),
        (400, "worker does not own this task", main.EXIT_FAILED),
        (413, "too large", main.EXIT_FAILED),
        (503, "the log does not answer", main.EXIT_UNREACHABLE),
    ],
)
def test_a_refusal_keeps_the_servers_words_and_has_its_own_exit_code(
    stub: Stub, status: int, detail: str, code: int
) -> None:
    stub.says("GET", "/tasks/t1", {"detail": detail}, status)
    result = _run(stub, "task", "show", "t1")
    assert (result.exit_code, result.stdout) == (code, "")
    assert detail in result.stderr
    assert "Traceback" not in result.stderr


def test_a_validation_error_names_its_fields(stub: Stub) -> None:
    fault = {"type": "int_parsing", "loc": ["body", "priority"], "msg": "no integer", "input": "x"}
    stub.says("POST", "/training/enqueue", {"detail": [fault]}, 422)
    assert "priority: no integer" in _run(stub, "enqueue", "t").stderr


def test_a_server_that_is_not_there_is_named_with_what_to_do() -> None:
    address = f"http://127.0.0.1:{_free_port()}"
    result = CliRunner().invoke(main.aghsan, ["status", "--api", address])
    assert result.exit_code == main.EXIT_UNREACHABLE
    for part in (address, "refused", "aghsan up", "--api"):
        assert part in result.stderr


def test_a_host_name_nobody_knows_is_unreachable() -> None:
    result = CliRunner().invoke(main.aghsan, ["status", "--api", "http://nowhere.invalid:8000"])
    assert result.exit_code == main.EXIT_UNREACHABLE
    assert "not known" in result.stderr


@pytest.mark.parametrize("api", ["localhost:8000", "ftp://x", "http://", "http://x:99999", ""])
def test_an_address_that_is_none_is_a_usage_error(api: str) -> None:
    result = CliRunner().invoke(main.aghsan, ["status", f"--api={api}"])
    assert result.exit_code == main.EXIT_USAGE
    assert "--api takes an address" in result.stderr


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"[]", b'{"status":"ok"}', b'{"network":7}', b"\xff"]
)
def test_something_else_that_answers_is_an_error_in_words(stub: Stub, body: bytes) -> None:
    stub.says("GET", "/status", body)
    result = _run(stub, "status")
    assert result.exit_code == main.EXIT_FAILED
    assert stub.address in result.stderr


def test_credentials_of_the_address_are_sent_and_never_shown(stub: Stub) -> None:
    address = stub.address.replace("http://", "http://me:s%40crt@")
    result = CliRunner().invoke(main.aghsan, ["task", "show", "t1", "--api", address])
    assert stub.asked[0][4]["authorization"] == "Basic bWU6c0BjcnQ="
    assert result.exit_code == main.EXIT_NOT_FOUND
    assert "crt" not in result.stderr


@pytest.mark.parametrize("identifier", ["", ".", ".."])
def test_an_id_that_cannot_be_one_is_not_asked_for(stub: Stub, identifier: str) -> None:
    assert _run(stub, "task", "show", identifier).exit_code == main.EXIT_USAGE
    assert stub.asked == []


def test_an_id_stays_one_part_of_the_path(stub: Stub) -> None:
    _run(stub, "task", "show", "../graph?x=ع")
    _, tasks, identifier = stub.asked[0][1].split("/")
    assert (tasks, unquote(identifier)) == ("tasks", "../graph?x=ع")


def test_a_topic_of_100_kb_is_sent_whole_and_listed_short(stub: Stub) -> None:
    topic = "كلمة " * 12_000
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK | {"topic": topic}]})
    assert _run(stub, "enqueue", topic).exit_code == 0
    assert stub.asked[0][3]["topic"] == topic
    assert len(_run(stub, "task", "ls").stdout) < 500


def test_a_topic_cannot_command_the_terminal(stub: Stub) -> None:
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK | {"topic": "a\x1b[2Jb\nc\u2028d"}]})
    line = _run(stub, "task", "ls").stdout.splitlines()[1]
    assert line.endswith("a [2Jb c d")


def test_text_is_cut_between_words_and_never_before_a_vowel_mark() -> None:
    assert terminal.short("كلمة " * 40, 12) == "كلمة كلمة…"
    marked = "ب\u064e" * 40
    assert terminal.short(marked, 10) == "ب\u064e" * 5 + "…"
    assert terminal.short(marked, 11) == "ب\u064e" * 5 + "…"
    assert terminal.short("short") == "short"


posix = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")


def _process(*args: str, **env: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *args],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_arabic_comes_out_of_a_pipe_as_utf_8_whatever_the_locale(stub: Stub) -> None:
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK]})
    process = _process(
        "task",
        "ls",
        AGHSAN_API=stub.address,
        LC_ALL="C",
        LANG="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
    )
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "الاستدلال البايزي" in out.decode("utf-8")


@posix
def test_watching_prints_each_change_until_ctrl_c_and_outlives_an_outage(stub: Stub) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    with _process("status", "--watch", "--interval", "0.1", AGHSAN_API=stub.address) as process:
        assert process.stdout is not None
        assert b"10 nodes" in process.stdout.readline()
        stub.says("GET", "/status", {"detail": "restarting"}, 503)
        assert b"trying again" in process.stdout.readline()
        stub.says("GET", "/status", {"status": "ok", "network": NETWORK | {"nodes": 11}})
        assert b"11 nodes" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


@posix
def test_a_watched_status_as_json_is_one_line_a_look(stub: Stub) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    command = ("status", "--watch", "--json", "--interval", "0.1")
    with _process(*command, AGHSAN_API=stub.address) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline()) == NETWORK
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0


@posix
def test_ctrl_c_while_waiting_for_an_answer_ends_130_without_a_trace() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        api = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with _process("task", "ls", AGHSAN_API=api) as process:
            connection, _ = silent.accept()
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
            connection.close()
    assert process.returncode == main.EXIT_INTERRUPTED
    assert b"Traceback" not in err


def test_a_reader_that_goes_away_is_no_error_to_talk_about(stub: Stub) -> None:
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK] * 1000})
    process = _process("task", "ls", AGHSAN_API=stub.address)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait()
