"""What people's verbs ask a server, and how they show what it answers."""

import contextlib
import json
import os
import shlex
import signal
import socket
import struct
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
from cli.client import Client
from cli.merging import ServerMerges
from cli.orchestrator import ServerTarget
from core import errors
from core.projections.rivalry import Account
from orchestrator.feeder import Order

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
    "opened_at": "2026-11-23T12:00:00Z",
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


def test_a_merge_names_its_parents_and_no_other_method_has_any(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    parents = ("--parent", "cand-1", "--parent", "cand-2")
    _run(stub, "enqueue", "t", "--method", "merge", *parents)
    assert stub.asked[0][3]["parents"] == ["cand-1", "cand-2"]
    result = _run(stub, "enqueue", "t", *parents)
    assert result.exit_code == main.EXIT_USAGE
    assert "--method merge" in result.stderr
    assert len(stub.asked) == 1


def test_a_task_shows_what_was_asked_for_and_what_each_worker_chose_and_why(stub: Stub) -> None:
    detail = DETAIL | {
        "method": "distill",
        "parents": [{"candidate_id": "cand-7"}],
        "resume": [{"rival": "evolver", "method": "full"}, {"rival": "merge", "method": "merge"}],
        "candidates": [
            {"rival": "evolver", "method": "lora", "method_reason": "as it was asked"},
            {"rival": "evolver", "method": "lora", "method_reason": "again"},
        ],
    }
    stub.says("GET", "/tasks/task-1", {"status": "ok", "task": detail})
    shown = _run(stub, "task", "show", "task-1").stdout
    for words in (
        "distill",
        "evolver: lora, as it was asked",
        "lora, again",
        "merge: merge",
        "cand-7",
    ):
        assert words in shown
    assert "evolver: full" not in shown


@pytest.mark.parametrize("priority", ["0", "11", "99", "-1"])
def test_a_priority_out_of_range_is_refused_and_never_another_one(
    stub: Stub, priority: str
) -> None:
    result = _run(stub, "enqueue", "t", f"--priority={priority}")
    assert result.exit_code == main.EXIT_USAGE
    assert "1<=x<=10" in result.stderr
    assert stub.asked == []


@pytest.mark.parametrize(
    "blank", ["", " ", "\n\t", "\u00a0", "\u200b\u2060\ufeff", "\u200f \ufe0f", "\u3164\u2800"]
)
@pytest.mark.parametrize("command", [("enqueue",), ("expand", "root-math")])
def test_what_has_no_words_is_refused_before_the_server_is_asked(
    stub: Stub, command: tuple[str, ...], blank: str
) -> None:
    result = _run(stub, *command, blank)
    assert result.exit_code == main.EXIT_USAGE
    assert "it is blank" in result.stderr
    assert stub.asked == []


@pytest.mark.parametrize("topic", ["7", "؟", "🚀", "\u200fس\u200e"])
def test_one_letter_that_is_seen_is_a_topic(stub: Stub, topic: str) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    assert _run(stub, "enqueue", topic).exit_code == 0


def test_an_enqueue_whose_answer_broke_off_is_repeated_under_the_same_key(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    stub.break_off = 1
    assert _run(stub, "enqueue", "t").exit_code == 0
    first, second = (headers["idempotency-key"] for *_, headers in stub.asked)
    assert first == second


@pytest.fixture
def going() -> Iterator[str]:
    """The address of a server that takes one request, and resets it with its port closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        connection, _ = listener.accept()
        connection.recv(65_536)
        listener.close()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    thread = threading.Thread(target=take)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join()


def test_an_enqueue_that_a_server_took_before_it_went_is_in_doubt_and_says_how_to_repeat(
    going: str, stub: Stub
) -> None:
    typed = ["enqueue", "درس الجبر", "--node", "root-math", "--priority", "7", "--seed", "9"]
    typed += ["--budget-seconds", "2.5"]
    result = CliRunner().invoke(main.aghsan, typed, env={"AGHSAN_API": going})
    assert result.exit_code == main.EXIT_UNREACHABLE
    assert "What it did is not known" in result.stderr
    assert "no server answers" not in result.stderr
    words = shlex.split(result.stderr.splitlines()[-1])
    assert words[:2] == ["aghsan", "enqueue"]
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    assert _run(stub, *words[1:]).exit_code == 0
    _run(stub, *typed, "--key", words[words.index("--key") + 1])
    (*_, repeated, headers), (*_, same, others) = stub.asked
    assert repeated == same
    assert headers["idempotency-key"] == others["idempotency-key"]


def test_what_is_to_be_repeated_is_what_was_typed_without_credentials(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"detail": "the log has not answered"}, 503)
    address = stub.address.replace("//", "//me:secret@")
    parents = ("--parent", "a", "--parent", "b")
    result = _run(
        stub, "enqueue", "--api", address, "--method", "merge", *parents, "--json", "--", "-1 = ?"
    )
    assert result.exit_code == main.EXIT_UNREACHABLE
    assert "secret" not in result.stderr
    words = shlex.split(result.stderr.splitlines()[-1])
    key = stub.asked[0][4]["idempotency-key"]
    assert words[-2:] == ["--", "-1 = ?"]
    assert set(words[2:-2]) == {
        *("--method", "merge", *parents, "--json", "--key", key),
        *("--api", stub.address.replace("//", "//NAME:TOKEN@")),
    }


@pytest.mark.parametrize("key", ["", " k", "k" * 257, "مفتاح", "a\tb"])
def test_a_key_that_no_header_holds_as_it_is_is_a_usage_error(stub: Stub, key: str) -> None:
    result = _run(stub, "enqueue", "t", "--key", key)
    assert result.exit_code == main.EXIT_USAGE
    assert "a key has 1 to 256" in result.stderr
    assert stub.asked == []


def test_a_key_that_is_given_is_the_one_that_is_sent(stub: Stub) -> None:
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    _run(stub, "enqueue", "t", "--key", "mine 1")
    assert stub.asked[0][4]["idempotency-key"] == "mine 1"


@pytest.mark.parametrize(
    ("typed", "look"),
    [
        (("task", "retry", "task-1"), "`aghsan task show task-1`"),
        (("task", "cancel", "task-1"), "`aghsan task show task-1`"),
        (("expand", "root-math", "n"), "`aghsan node ls`"),
        (("corpus", "remove", "n"), "`aghsan corpus ls`"),
        (("artifact", "gc"), "`aghsan artifact gc --dry-run`"),
    ],
)
def test_a_request_that_may_not_be_repeated_is_not_and_says_where_its_outcome_shows(
    stub: Stub, typed: tuple[str, ...], look: str
) -> None:
    stub.break_off = 1
    result = _run(stub, *typed)
    assert result.exit_code == main.EXIT_UNREACHABLE
    assert f"What it did is not known: look with {look}" in result.stderr
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
        "rivals": {"evolver": rival, "reinventor": rival | {"loss": 0.125, "latency_ms": 0.26}},
        "mine": {"ملاحظة": [1, 2]},
    }
    detail = DETAIL | {"result": {"worker_id": "w", "metrics": metrics}}
    stub.says("GET", "/tasks/task-1", {"status": "ok", "task": detail})
    lines = [line.split() for line in _run(stub, "task", "show", "task-1").stdout.splitlines()]
    assert ["loss", "0.125"] in lines
    assert ["rival", "loss", "steps", "params", "latency_ms"] in lines
    assert ["reinventor", "0.125", "80", "371", "0.26"] in lines
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


@pytest.mark.parametrize(
    ("command", "path", "words"),
    [
        (("enqueue", "topic", "--node", "nope"), "/training/enqueue", "target node not found"),
        (("expand", "nope", "name"), "/graph/expand", "parent not found"),
    ],
)
def test_a_node_that_is_not_there_is_named(
    stub: Stub, command: tuple[str, ...], path: str, words: str
) -> None:
    stub.says("POST", path, {"detail": words}, 400)
    result = _run(stub, *command)
    assert result.exit_code == main.EXIT_NOT_FOUND
    assert "there is no node nope" in result.stderr


def test_the_status_shows_figures_workers_and_what_runs(stub: Stub) -> None:
    worker = {"worker_id": "a1", "status": "online", "task_id": "t9", "step": 3, "total_steps": 9}
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/workers", {"status": "ok", "workers": [worker]})
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK | {"status": "running"}]})
    shown = _run(stub, "status").stdout
    for part in ("2 of 3 workers online", "5 queued", "a1", "3/9", "task-0123456789ab"):
        assert part in shown


def test_the_status_tells_of_a_task_that_no_worker_online_can_train(stub: Stub) -> None:
    mark = {"node_id": "stats-bayesian", "role": "dual", "method": "auto", "reason": "too small"}
    worker = {"worker_id": "a1", "status": "online", "unfit": [mark]}
    waiting = TASK | {"waits": ["no worker online can be given it", "a1: too small"]}
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/workers", {"status": "ok", "workers": [worker]})
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK]})
    stub.says("GET", "/tasks/task-0123456789ab", {"status": "ok", "task": waiting})
    status = " ".join(_run(stub, "status").stdout.split())
    assert "waits: no worker online can be given it; a1: too small" in status
    shown = _run(stub, "task", "show", "task-0123456789ab").stdout
    assert "waits     no worker online can be given it\n" in shown
    assert "a1: too small" in shown


def test_who_changes_the_work_of_a_node_is_told_which_tasks_are_in_vain(stub: Stub) -> None:
    node = {"node_id": "n", "workload": {"specialist": "opt-convex", "parameters": {}}}
    answer = {"status": "ok", "node": node, "outdated": []}
    stub.says("POST", "/nodes/n/corpus/remove", answer)
    assert _run(stub, "corpus", "remove", "n").stderr == ""
    outdated = [{"node_id": "n", "queued": 2, "running": 1}]
    stub.says("POST", "/nodes/n/corpus/remove", answer | {"outdated": outdated})
    told = _run(stub, "corpus", "remove", "n").stderr
    assert "2 queued and 1 running tasks of n still ask for the work it had" in told
    assert "`aghsan task cancel ID`" in told


def test_the_status_says_in_both_languages_that_no_worker_is_online_for_what_is_queued(
    stub: Stub,
) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    assert "no worker is online" not in _run(stub, "status").stdout
    idle = NETWORK | {"workers_online": 0}
    stub.says("GET", "/status", {"status": "ok", "network": idle})
    shown = _run(stub, "status").stdout.splitlines()
    assert "no worker is online; start one with `aghsan agent`" in shown
    assert "لا عامل متصل؛ شغّل واحدًا بالأمر `aghsan agent`" in shown
    empty = idle | {"tasks": {"queued": 0, "running": 0, "completed": 3, "total": 3}}
    stub.says("GET", "/status", {"status": "ok", "network": empty})
    assert "no worker is online" not in _run(stub, "status").stdout


def test_the_status_says_why_the_server_takes_no_new_work(stub: Stub) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/readyz", {"status": "ready"})
    assert len(_run(stub, "status").stdout.splitlines()) == 1
    reasons = ["no room for new work: 3 MiB are free"]
    stub.says("GET", "/readyz", {"status": "not ready", "reasons": reasons}, 503)
    assert _run(stub, "status").stdout.splitlines()[1:] == reasons


def test_the_status_says_that_the_orchestrator_waits_for_the_judge(stub: Stub) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    rounds: dict[str, Any] = {"status": "ok", "rounds": [ROUND], "next": None}
    stub.says("GET", "/rounds", rounds)
    assert "judge" not in _run(stub, "status").stdout
    stub.says("GET", "/rounds", rounds | {"awaiting_judgement": 15})
    assert "judge" not in _run(stub, "status").stdout
    stub.says("GET", "/rounds", rounds | {"awaiting_judgement": 16})
    shown = " ".join(_run(stub, "status").stdout.split())
    assert "16 rounds wait for the judge" in shown
    assert "the orchestrator orders no training" in shown


@pytest.mark.parametrize(
    ("total", "names", "words"),
    [
        (1, ["n1"], "1 decision waits for you: n1; `aghsan champion show NODE`"),
        (3, ["n1", "n2"], "3 decisions wait for you: n1, n2, …; `aghsan champion show NODE`"),
    ],
)
def test_the_status_names_nodes_that_wait_for_a_person_in_both_languages(
    stub: Stub, total: int, names: list[str], words: str
) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/questions", {"nodes": [], "total": 0, "next": None})
    assert "for you" not in _run(stub, "status").stdout
    asking = [{"node_id": name, "questions": []} for name in names]
    stub.says("GET", "/questions", {"nodes": asking, "total": total, "next": None})
    shown = " ".join(_run(stub, "status").stdout.split())
    assert words in shown
    assert f"قرارات تنتظرك: {total}، في {names[0]}" in shown
    told = json.loads(_run(stub, "status", "--json").stdout)
    assert (told["decisions_waiting"], told["asking_nodes"]) == (total, names)


def test_the_status_as_json_has_all_that_is_shown(stub: Stub) -> None:
    mark = {"node_id": "stats-bayesian", "role": "dual", "method": "auto", "reason": "too small"}
    worker = {"worker_id": "a1", "status": "online", "unfit": [mark]}
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/rounds", {"rounds": [], "next": None, "awaiting_judgement": 16})
    stub.says("GET", "/workers", {"workers": [worker]})
    stub.says("GET", "/tasks", {"tasks": [TASK], "closed": 2})
    stub.says("GET", "/tasks/task-0123456789ab", {"task": TASK | {"waits": ["a1: too small"]}})
    told = json.loads(_run(stub, "status", "--json").stdout)
    assert told == NETWORK | {
        "not_ready": [],
        "awaiting_judgement": 16,
        "closed_tasks": 2,
        "workers": [worker],
        "running": [TASK],
        "stuck": ["task-0123456789ab on stats-bayesian waits: a1: too small"],
    }


@pytest.mark.parametrize(("count", "words"), [(1, "1 task is closed"), (3, "3 tasks are closed")])
def test_the_status_tells_of_tasks_that_lost_a_record_in_both_languages(
    stub: Stub, count: int, words: str
) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    tasks: dict[str, Any] = {"status": "ok", "tasks": [], "next": None}
    stub.says("GET", "/workers", {"status": "ok", "workers": []})
    stub.says("GET", "/tasks", tasks | {"closed": 0})
    assert "closed" not in _run(stub, "status").stdout
    stub.says("GET", "/tasks", tasks | {"closed": count})
    shown = " ".join(_run(stub, "status").stdout.split())
    assert words in shown
    assert f"ولا تُسند إلى أحد: {count}" in shown
    assert shown.count("aghsan task ls --closed") == 2
    stub.says("GET", "/tasks", tasks | {"tasks": [TASK]})
    assert "task-0123" in _run(stub, "task", "ls", "--closed").stdout
    assert stub.asked[-1][2]["closed"] == ["true"]


def test_the_status_of_a_server_with_only_the_nine_routes_is_shown_too(stub: Stub) -> None:
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    result = _run(stub, "status")
    assert result.exit_code == 0
    assert "10 nodes" in result.stdout


@pytest.mark.parametrize(
    ("is_so", "words"),
    [
        ({"via": "http"}, "is given nothing more, and ends what it holds as it likes"),
        ({"via": "nats", "status": "offline"}, "gives back what it still holds once it is back"),
        ({"via": "nats", "tasks": []}, "is paused; it holds nothing"),
        ({"via": "http", "tasks": []}, "is paused; it holds nothing"),
    ],
)
def test_a_pause_promises_no_more_than_this_worker_does(
    stub: Stub, is_so: dict[str, Any], words: str
) -> None:
    worker = {"worker_id": "a1", "status": "online", "pause": "pause", "tasks": ["t1"], **is_so}
    stub.says("POST", "/workers/a1/pause", {"status": "ok", "worker": worker})
    assert words in _run(stub, "worker", "pause", "a1").stdout


def test_a_worker_is_paused_drained_and_resumed(stub: Stub) -> None:
    for how in ("pause", "drain", "resume"):
        worker = {"worker_id": "a1", "pause": how.replace("resume", ""), "tasks": ["t1"]}
        stub.says("POST", f"/workers/a1/{how}", {"status": "ok", "worker": worker})
    said = [_run(stub, "worker", how, "a1").stdout for how in ("pause", "drain", "resume")]
    assert [words.split(" ", 1)[1] for words in said] == [
        "is paused, and gives back what it holds\n",
        "is given nothing more\n",
        "may have work\n",
    ]
    assert json.loads(_run(stub, "worker", "pause", "a1", "--json").stdout)["pause"] == "pause"
    stub.says(
        "GET", "/workers", {"status": "ok", "workers": [{"status": "online", "pause": "drain"}]}
    )
    assert "online, draining" in _run(stub, "worker", "ls").stdout


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
    shown = _run(stub, "round", "ls", "--node", "n1", "--status", "decided").stdout
    for part in ("round-1", "2026-11-23", "2026-11-24"):
        assert part in shown
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


def test_rivals_are_shown_with_what_they_won_and_cost(stub: Stub) -> None:
    won = {
        "rival": "evolver",
        "rounds": 5,
        "won": 2,
        "lost": 2,
        "absent": 1,
        "error_factor": 0.25,
        "device_seconds": 7_500.0,
        "priced_seconds": 3_000.0,
        "cost": 1.25,
    }
    answer = {
        "status": "ok",
        "rivals": [{"node_id": "n1", **won}],
        "total": [{"node_id": None, **won}],
        "next": None,
    }
    stub.says("GET", "/rivals", answer)
    shown = _run(stub, "rivals", "n1").stdout
    for part in ("n1", "all", "evolver", "× 0.25", "2 h 5 min", "1.25 for 40%"):
        assert part in shown
    assert stub.asked[0][2] == {"node_id": ["n1"]}
    assert json.loads(_run(stub, "rivals", "--json").stdout)["total"] == answer["total"]
    stub.says("GET", "/rivals", {"status": "ok", "rivals": [], "total": [], "next": None})
    assert _run(stub, "rivals").stderr == "no rival has been trained yet\n"


def test_a_worker_is_shown_with_what_it_costs_and_how_its_claims_fare(stub: Stub) -> None:
    claims = {"judged": 9, "off": 4, "doubtful": True}
    worker = {"worker_id": "a1", "status": "online", "price_per_hour": 2.5, "claims": claims}
    stub.says("GET", "/workers/a1", {"status": "ok", "worker": worker})
    stub.says("GET", "/workers", {"status": "ok", "workers": [worker]})
    shown = _run(stub, "worker", "show", "a1").stdout
    assert "2.5 an hour" in shown
    assert "9 judged, 4 off, doubtful" in shown
    assert "4 of 9 off, doubtful" in _run(stub, "worker", "ls").stdout
    assert json.loads(_run(stub, "worker", "show", "a1", "--json").stdout) == worker


def test_a_champion_is_shown_for_people_and_for_programs(stub: Stub) -> None:
    stub.says("GET", "/nodes/n1", {"status": "ok", "node": NODE})
    assert "cand-1" in _run(stub, "champion", "show", "n1").stdout
    told = json.loads(_run(stub, "champion", "show", "n1", "--json").stdout)
    assert told == {**CHAMPION, "budgets": [], "waits": []}


def test_all_that_waits_for_a_person_is_shown_with_the_champion(stub: Stub) -> None:
    fast = {"name": "fast", "latency_max": 2.0, "bytes_max": None, "champion": None, "lineage": []}
    first = {
        "round_id": "round-9",
        "candidate_id": "cand-7",
        "error": 0.125,
        "champion_error": 0.5,
        "bytes": 77,
        "reasons": {"en": "slower", "ar": "أبطأ"},
    }
    second = {"round_id": "round-8", "candidate_id": "cand-6"}
    node = NODE | {"budgets": [fast], "questions": [first]}
    stub.says("GET", "/nodes/n1", {"node": node})
    shown = _run(stub, "champion", "show", "n1")
    for part in ("≤ 2 ×", "cand-7 in round-9", "0.125", "0.5", "77", "slower", "أبطأ"):
        assert part in shown.stdout
    assert "champion promote n1 cand-7" in shown.stderr
    stub.says("GET", "/nodes/n1", {"node": node | {"questions": [first, second]}})
    both = _run(stub, "champion", "show", "n1")
    assert both.stdout.index("cand-7 in round-9") < both.stdout.index("cand-6 in round-8")
    assert "champion promote n1 CANDIDATE" in both.stderr
    told = json.loads(_run(stub, "champion", "show", "n1", "--json").stdout)
    assert told["waits"] == [first, second]
    of_budget = _run(stub, "champion", "history", "n1", "--budget", "fats")
    assert (of_budget.exit_code, "did you mean fast?" in of_budget.stderr) == (4, True)


def test_the_history_of_a_budget_that_is_stated_no_more_is_told(stub: Stub) -> None:
    reigns = [{"candidate_id": "cand-0", "role": "reinventor"}]
    past = [{"name": "fast", "lineage": reigns}]
    stub.says("GET", "/nodes/n1", {"node": NODE | {"budgets": [], "past_budgets": past}})
    command = ("champion", "history", "n1", "--budget", "fast")
    assert "cand-0" in _run(stub, *command).stdout
    assert json.loads(_run(stub, *command, "--json").stdout) == {"lineage": reigns}


def test_who_promotes_sees_what_that_costs_and_that_it_errs_more(stub: Stub) -> None:
    before = CHAMPION | {"candidate_id": "cand-0", "error": 0.125, "bytes": 70}
    now = CHAMPION | {"error": 0.25, "bytes": 60}
    chosen = {"node_id": "n1", "budget": "", "champion": now, "instead_of": before}
    stub.says("POST", "/nodes/n1/champion/promote", {"chosen": chosen})
    said = _run(stub, "champion", "promote", "n1", "cand-1").stdout
    for part in ("cand-0", "0.125", "70", "0.25", "60", "cand-1 errs more than cand-0"):
        assert part in said
    assert "خطأ البطل الجديد أكبر من خطأ سابقه: 0.25 > 0.125" in said
    better = chosen | {"champion": now | {"error": 0.0625}}
    stub.says("POST", "/nodes/n1/champion/promote", {"chosen": better})
    said = _run(stub, "champion", "promote", "n1", "cand-1").stdout
    assert ("0.0625" in said, "errs more" in said) == (True, False)


def test_a_choice_is_sent_once_under_a_key_and_said_in_a_line(stub: Stub) -> None:
    chosen = {"node_id": "n1", "budget": "fast", "champion": CHAMPION}
    stub.says("POST", "/nodes/n1/champion/promote", {"status": "ok", "chosen": chosen})
    stub.break_off = 1
    said = _run(
        stub, "champion", "promote", "n1", "cand-1", "--budget", "fast", "--reason", "لماذا"
    )
    assert said.stdout == "cand-1 reigns over the budget fast of n1\n"
    (first, second) = [(body, headers["idempotency-key"]) for *_, body, headers in stub.asked]
    assert first == second
    assert first[0] == {"candidate_id": "cand-1", "budget": "fast", "reason": "لماذا"}


def test_the_history_of_a_node_is_told_for_people_and_for_programs(stub: Stub) -> None:
    reigns = [
        {
            "candidate_id": "cand-0",
            "instead_of": None,
            "role": "reinventor",
            "error": 0.5,
            "baseline_error": 0.25,
            "evidence_rate": 0.5,
            "params": 7,
            "bytes": 8,
            "retired_at": "2026-11-23T10:00:00Z",
            "reason": "it trains something else",
        },
        {"candidate_id": "cand-1", "a_key_of_tomorrow": 1},
    ]
    stub.says("GET", "/nodes/n1", {"status": "ok", "node": NODE | {"lineage": reigns}})
    shown = _run(stub, "champion", "history", "n1").stdout
    for part in ("cand-0", "reinventor", "0.25", "50.0%", "2026-11-23", "something else", "cand-1"):
        assert part in shown
    assert json.loads(_run(stub, "champion", "history", "n1", "--json").stdout) == {
        "lineage": reigns
    }
    stub.says("GET", "/nodes/n1", {"status": "ok", "node": NODE | {"lineage": []}})
    none = _run(stub, "champion", "history", "n1")
    assert (none.exit_code, none.stdout, none.stderr) == (0, "", "no champion yet\n")


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


@pytest.mark.parametrize("control", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_what_reorders_text_beyond_itself_does_not_reach_the_terminal(control: str) -> None:
    assert terminal.clean(f"a{control}b") == "a b"


def test_marks_of_direction_and_joiners_stay() -> None:
    assert (
        terminal.clean("a\u200e\u200fb\u061cc\u200cd\u200de")
        == "a\u200e\u200fb\u061cc\u200cd\u200de"
    )


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
            assert json.loads(process.stdout.readline()) == NETWORK | {"not_ready": []}
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


SWEEP = {
    "dry_run": True,
    "chunks": 7,
    "bytes": 1_234_567,
    "spared": 2,
    "artifacts": 3,
    "lost": 1,
    "live_chunks": 9,
    "live_bytes": 10,
    "unfinished": None,
}


def test_a_sweep_asks_for_what_was_meant_and_says_what_went(stub: Stub) -> None:
    stub.says("POST", "/artifacts/gc", {"status": "ok", "sweep": SWEEP})
    dry = _run(stub, "artifact", "gc", "--dry-run")
    assert stub.asked[-1][3] == {"dry_run": True}
    for words in ("would go", "7 chunks, 1,234,567 bytes", "2 chunks that somebody", "1 artifacts"):
        assert words in dry.stdout
    assert "unfinished" not in dry.stdout
    assert "swept" in _run(stub, "artifact", "gc").stdout
    assert stub.asked[-1][3] == {"dry_run": False}
    assert json.loads(_run(stub, "artifact", "gc", "--json").stdout) == SWEEP


def test_a_second_sweep_is_a_conflict(stub: Stub) -> None:
    stub.says("POST", "/artifacts/gc", {"detail": "a sweep is under way already"}, 409)
    result = _run(stub, "artifact", "gc")
    assert result.exit_code == main.EXIT_CONFLICT
    assert "under way" in result.stderr


async def test_the_orchestrator_neither_orders_nor_counts_what_nobody_online_can_train(
    stub: Stub,
) -> None:
    mark = {"node_id": "stats-bayesian", "role": "dual", "method": "auto", "reason": "too small"}
    worker = {"worker_id": "a1", "status": "online", "via": "nats", "unfit": [mark]}
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/workers", {"status": "ok", "workers": [worker]})
    nodes = [NODE, NODE | {"node_id": "opt-convex"}]
    stub.says("GET", "/graph", {"status": "ok", "graph": {"nodes": nodes}})
    stub.says("GET", "/nodes/opt-convex", {"status": "ok", "node": {}})
    merge = TASK | {"node_id": "opt-convex", "role": "merge"}
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [TASK, merge], "next": None})
    stub.says("GET", "/rounds", {"status": "ok", "rounds": [], "next": None})
    stub.says("GET", "/rivals", {"status": "ok", "rivals": [], "total": [], "next": None})
    fleet = await ServerTarget(Client(stub.address)).survey()
    assert [node.node_id for node in fleet.nodes] == ["opt-convex"]
    assert fleet.queued == 3


def _tells_of_rounds(stub: Stub, role: str = "evolver") -> None:
    rounds = [
        {"round_id": "r1", "status": "decided", "verdict": "keep"},
        {"round_id": "r2", "status": "decided", "verdict": "void"},
        {"round_id": "r3", "status": "open", "verdict": None},
    ]
    champion = {"weights_sha256": "c", "error": 0.1, "role": "merge"}
    node = {"champion": champion, "rounds": rounds, "workload": {"specialist": "root-math"}}
    candidates = [
        {"weights_sha256": "e", "error": 0.15, "role": role},
        {"weights_sha256": "far", "error": 0.9, "role": "merge"},
        {"weights_sha256": "refused", "error": None, "role": "reinventor"},
    ]
    stub.says("GET", "/graph", {"status": "ok", "graph": {"nodes": [NODE]}})
    stub.says("GET", f"/nodes/{NODE['node_id']}", {"status": "ok", "node": node})
    stub.says("GET", "/rounds/r1", {"status": "ok", "round": {"candidates": candidates}})


async def test_the_orchestrator_merges_what_a_server_tells_of_the_last_round_once(
    stub: Stub,
) -> None:
    _tells_of_rounds(stub)
    target = ServerMerges(Client(stub.address))
    (order,) = await target.merges()
    assert (order.parents, order.budget_seconds_min) == (["c", "e"], 60.0)
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    await target.merge(order, 60.0, 8)
    _, _, _, body, headers = stub.asked[-1]
    assert body["role"] == "merge"
    assert body["parents"] == ["c", "e"]
    assert headers["idempotency-key"] == order.key
    task = f"/tasks/{TASK['task_id']}"
    for status in ("running", "completed"):
        stub.says("GET", task, {"status": "ok", "task": TASK | {"status": status}})
        assert await target.merges() == []


@pytest.mark.parametrize(("status", "is_ordered_again"), [(503, True), (409, False), (422, False)])
async def test_a_merge_that_a_server_could_not_take_is_ordered_again_and_one_it_refused_is_not(
    stub: Stub, status: int, is_ordered_again: bool
) -> None:
    _tells_of_rounds(stub)
    target = ServerMerges(Client(stub.address))
    (order,) = await target.merges()
    stub.says("POST", "/training/enqueue", {"detail": "the disk is full"}, status)
    with pytest.raises(errors.AghsanError):
        await target.merge(order, 60.0, 8)
    assert await target.merges() == ([order] if is_ordered_again else [])


async def test_the_orchestrator_merges_nothing_where_only_merges_stood_in_the_last_round(
    stub: Stub,
) -> None:
    _tells_of_rounds(stub, role="merge")
    stub.answers["GET", "/rounds/r1"][1]["round"]["candidates"].pop()
    assert await ServerMerges(Client(stub.address)).merges() == []


async def test_the_orchestrator_weighs_the_ledger_of_its_server_and_orders_roles(
    stub: Stub,
) -> None:
    recent = {"rounds": 3.0, "won": 2.5, "replaced": 2.0, "gain": 0.5}
    figures = {"rounds": 3, "won": 3, "device_seconds": 60.0, "priced_seconds": 30.0, "cost": 0.5}
    account = {"node_id": "opt-convex", "rival": "reinventor", **figures, "recent": recent}
    stub.says("GET", "/status", {"status": "ok", "network": NETWORK})
    stub.says("GET", "/workers", {"status": "ok", "workers": []})
    stub.says(
        "GET", "/graph", {"status": "ok", "graph": {"nodes": [NODE | {"node_id": "opt-convex"}]}}
    )
    stub.says("GET", "/nodes/opt-convex", {"status": "ok", "node": {}})
    stub.says("GET", "/tasks", {"status": "ok", "tasks": [], "next": None})
    stub.says("GET", "/rounds", {"status": "ok", "rounds": [], "next": None})
    stub.says("GET", "/rivals", {"status": "ok", "rivals": [account], "total": [], "next": None})
    stub.says("POST", "/training/enqueue", {"status": "ok", "task": TASK})
    target = ServerTarget(Client(stub.address))
    (node,) = (await target.survey()).nodes
    assert node.evolver == Account(node_id="opt-convex", rival="evolver")
    assert (node.reinventor.held_us, node.reinventor.cost_micro) == (60_000_000, 500_000)
    assert (node.reinventor.recent_replaced, node.reinventor.recent_gain) == (2.0, 0.5)
    order = Order(node_id="opt-convex", topic="topic", role="reinventor")
    await target.enqueue(order, 3, "key")
    assert stub.asked[-1][3]["role"] == "reinventor"
    fleet = await target.survey()
    assert (fleet.tasks, fleet.nodes[0].ordered.newest) == (1, 1)
