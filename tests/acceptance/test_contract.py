"""The nine routes as existing clients have always seen them, and where we do better on purpose."""

import asyncio
import http.client
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from core.bus import Bus
from tests.acceptance.stack import PREFIX, Stack, aghsan, until

TASK_KEYS = [
    "task_id",
    "node_id",
    "topic",
    "priority",
    "status",
    "assigned_worker",
    "created_at",
    "updated_at",
    "result",
]
RESULT_KEYS = ["worker_id", "metrics", "artifact_name", "artifact_uploaded", "completed_at"]
WORKER_KEYS = ["worker_id", "hostname", "capabilities", "status", "last_seen"]
NODE_KEYS = [
    "node_id",
    "name",
    "description",
    "parent_id",
    "depth",
    "path",
    "ai_current_evolver",
    "ai_zero_reinventor",
    "children",
]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z)?")
JSON = "application/json"


class Reply(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """One server, asked byte for byte."""

    def __init__(self, stack: Stack) -> None:
        self._address = urllib.parse.urlsplit(stack.http).netloc
        self._count = 0

    def ask(
        self, method: str, path: str, body: bytes | None = None, content_type: str | None = JSON
    ) -> Reply:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        headers = {} if body is None or content_type is None else {"Content-Type": content_type}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.ask("GET", PREFIX + path)

    def post(self, path: str, body: object) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        return self.ask("POST", PREFIX + path, raw)

    def done(self, path: str, body: object, key: str) -> Any:
        """The part of a success; it has exactly two keys, and is compact."""
        reply = self.post(path, body)
        assert reply.status == 200, reply
        assert reply.headers["content-type"] == JSON
        assert list(reply.json) == ["status", key]
        assert (
            reply.body == json.dumps(reply.json, ensure_ascii=False, separators=(",", ":")).encode()
        )
        return reply.json[key]

    def worker(self) -> str:
        """A fresh registered worker."""
        self._count += 1
        worker_id = f"w-{self._count}"
        self.done("/workers/register", {"worker_id": worker_id, "hostname": "h"}, "worker")
        return worker_id

    def enqueue(self, **more: object) -> dict[str, Any]:
        task = self.done("/training/enqueue", {"topic": "t", **more}, "task")
        assert isinstance(task, dict)
        return task

    def claim(self, worker_id: str) -> dict[str, Any] | None:
        task = self.done("/training/claim", {"worker_id": worker_id}, "task")
        assert task is None or list(task) == TASK_KEYS
        return task  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(
        tmp_path_factory.mktemp("contract"),
        "--no-orchestrator",
        *("--agents", "0", "--http-lease-sec", "6", "--worker-timeout-sec", "4"),
    )
    try:
        yield one.start()
    finally:
        one.close()


@pytest.fixture
def server(stack: Stack) -> Server:
    one = Server(stack)
    # Each test finds an empty queue: what others left is taken away.
    for status in ("queued", "running"):
        for task in one.get(f"/tasks?status={status}&limit=1000").json["tasks"]:
            assert one.post(f"/tasks/{task['task_id']}/cancel", {}).status == 200
    one._count = int(one.get("/status").json["network"]["workers_total"])
    return one


# ── success, exactly ──


def test_status_and_graph_have_exactly_their_keys(server: Server) -> None:
    network = server.get("/status").json["network"]
    assert list(network) == ["nodes", "workers_total", "workers_online", "tasks"]
    assert list(network["tasks"]) == ["queued", "running", "completed", "total"]
    graph = server.get("/graph").json["graph"]
    assert list(graph) == ["nodes", "roots", "total_nodes"]
    assert [list(node) for node in graph["nodes"]] == [NODE_KEYS] * graph["total_nodes"]
    assert [node["node_id"] for node in graph["nodes"]][:10] == [
        "root-math",
        "math-physics",
        "math-statistics",
        "math-optimization",
        "physics-fluid",
        "physics-quantum",
        "stats-bayesian",
        "stats-time-series",
        "opt-convex",
        "opt-discrete",
    ]
    root = graph["roots"][0]
    assert root == graph["nodes"][0]
    assert (root["name"], root["parent_id"], root["depth"]) == ("الرياضيات", None, 0)
    by_id = {node["node_id"]: node for node in graph["nodes"]}
    assert by_id["math-statistics"]["path"] == "الرياضيات/الإحصاء"
    assert by_id["stats-bayesian"]["ai_current_evolver"] == "Bayes-Evolver-v1"
    assert by_id["stats-bayesian"]["depth"] == 2


def test_a_grown_node_has_the_path_and_ais_of_its_name(server: Server) -> None:
    body = {"parent_id": "root-math", "name": "هندسة", "description": "وصف"}
    node = server.done("/graph/expand", body, "node")
    assert re.fullmatch(r"node-[0-9a-f]{10}", node.pop("node_id"))
    assert node == {
        "name": "هندسة",
        "description": "وصف",
        "parent_id": "root-math",
        "depth": 1,
        "path": "الرياضيات/هندسة",
        "ai_current_evolver": "هندسة-Evolver-v1",
        "ai_zero_reinventor": "هندسة-Reinventor-v1",
        "children": [],
    }
    slashed = server.done("/graph/expand", {"parent_id": "root-math", "name": "a/b"}, "node")
    assert slashed["path"] == "الرياضيات/a/b"
    assert slashed["description"] == ""


def test_a_worker_is_what_it_said_last(server: Server) -> None:
    body = {"worker_id": "odd عامل .*>", "hostname": "h", "capabilities": {"n": {"a": [1, None]}}}
    worker = server.done("/workers/register", body, "worker")
    assert list(worker) == WORKER_KEYS
    assert TIME.fullmatch(worker.pop("last_seen"))
    assert worker == {**body, "status": "online"}
    again = {"worker_id": body["worker_id"], "hostname": "h2"}
    assert server.done("/workers/register", again, "worker")["capabilities"] == {}


def test_a_heartbeat_creates_what_it_does_not_know_and_keeps_capabilities(server: Server) -> None:
    beat = {"worker_id": "beats"}
    first = server.done("/workers/heartbeat", beat, "worker")
    assert (first["hostname"], first["status"]) == ("beats", "online")
    server.done("/workers/heartbeat", {**beat, "capabilities": {"gpu": 1}}, "worker")
    drained = server.done("/workers/heartbeat", {**beat, "status": "draining"}, "worker")
    assert drained["capabilities"] == {"gpu": 1}
    assert drained["status"] == "draining"
    assert server.claim("beats") is None


@pytest.mark.parametrize(
    ("priority", "taken"),
    [
        (0, 1),
        (-5, 1),
        (11, 10),
        (10**30, 10),
        ("8", 8),
        (" 8 ", 8),
        ("8.0", 8),
        (8.0, 8),
        (True, 1),
    ],
)
def test_a_priority_is_brought_into_its_range(server: Server, priority: object, taken: int) -> None:
    assert server.enqueue(priority=priority)["priority"] == taken


def test_a_task_has_exactly_its_keys_and_defaults(server: Server) -> None:
    task = server.done("/training/enqueue", {"topic": "مرحبا 🚀", "extra": 1}, "task")
    assert list(task) == TASK_KEYS
    assert re.fullmatch(r"task-[0-9a-f]{12}", task.pop("task_id"))
    assert TIME.fullmatch(task["created_at"])
    assert task.pop("created_at") == task.pop("updated_at")
    assert task == {
        "node_id": "root-math",
        "topic": "مرحبا 🚀",
        "priority": 5,
        "status": "queued",
        "assigned_worker": None,
        "result": None,
    }
    assert server.enqueue(node_id=None)["node_id"] == "root-math"
    assert server.enqueue(node_id="")["node_id"] == "root-math"
    assert server.enqueue(topic="")["topic"] == ""


@pytest.mark.parametrize(
    ("raw", "topic"),
    [
        ('{"topic":"u"}'.encode("utf-16"), "u"),
        (b'\xef\xbb\xbf{"topic":"u"}', "u"),
        (b'{"topic":"a","topic":"b"}', "b"),
    ],
)
def test_other_encodings_and_doubled_keys_are_read(server: Server, raw: bytes, topic: str) -> None:
    assert server.done("/training/enqueue", raw, "task")["topic"] == topic


def test_a_task_is_claimed_and_completed(server: Server) -> None:
    worker = server.worker()
    task = server.enqueue(node_id="stats-bayesian")
    claimed = server.claim(worker)
    assert claimed is not None
    assert (claimed["task_id"], claimed["status"]) == (task["task_id"], "running")
    assert claimed["assigned_worker"] == worker
    counts = server.get("/status").json["network"]["tasks"]
    assert (counts["queued"], counts["running"]) == (0, 1)
    body = {
        "task_id": task["task_id"],
        "worker_id": worker,
        "metrics": {"loss": 0.1, "big": 12345678901234567890, "متر": None},
        "artifact_payload": {"loss": 0.1},
    }
    done = server.done("/training/complete", body, "task")
    assert list(done) == TASK_KEYS
    assert done["status"] == "completed"
    assert list(done["result"]) == RESULT_KEYS
    assert done["result"]["metrics"] == body["metrics"]
    assert done["result"]["artifact_name"] == f"artifact-{task['task_id']}-{worker}.json"
    assert done["result"]["artifact_uploaded"] is True
    assert done["result"]["completed_at"] == done["updated_at"]


def test_without_a_payload_an_artifacts_name_is_kept_and_nothing_is_uploaded(
    server: Server,
) -> None:
    worker = server.worker()
    task_id = server.enqueue()["task_id"]
    server.claim(worker)
    body = {"task_id": task_id, "worker_id": worker, "artifact_name": "model.bin"}
    result = server.done("/training/complete", body, "task")["result"]
    assert (result["artifact_name"], result["artifact_uploaded"]) == ("model.bin", False)
    assert result["metrics"] == {}


def test_both_ais_think_in_the_shape_that_clients_know(server: Server) -> None:
    body = {"node_id": "stats-bayesian", "prompt": "كيف؟"}
    thought = server.done("/think/dual", body, "thought")
    sides = {
        "current_evolution_thought": ("Bayes-Evolver-v1", "تحسين تدريجي داخل اختصاص"),
        "zero_reinvention_thought": ("Bayes-Reinventor-v1", "إعادة بناء من الصفر لاختصاص"),
    }
    assert list(thought) == ["node_id", "node_name", *sides]
    assert thought["node_id"] == "stats-bayesian"
    assert thought["node_name"] == "الاستدلال البايزي"
    for side, (ai, focus) in sides.items():
        assert list(thought[side]) == ["ai", "focus", "plan", "prompt"]
        assert (thought[side]["ai"], thought[side]["prompt"]) == (ai, "كيف؟")
        assert thought[side]["focus"] == f"{focus} الاستدلال البايزي"
        assert len(thought[side]["plan"]) == 3
        assert all(isinstance(step, str) and step for step in thought[side]["plan"])


# ── refusals, exactly ──


def fault(kind: str, field: str, words: str, given: object) -> dict[str, object]:
    return {"type": kind, "loc": ["body", field], "msg": words, "input": given}


def whole(kind: str, words: str, given: object) -> dict[str, object]:
    return {"type": kind, "loc": ["body"], "msg": words, "input": given}


UNREADABLE = "There was an error parsing the body"
STRING = "Input should be a valid string"
DICT = "Input should be a valid dictionary"
INT = "Input should be a valid integer"
UNPARSED = INT + ", unable to parse string as an integer"
OBJECT = "Input should be a valid dictionary or object to extract fields from"


@pytest.mark.parametrize(
    ("path", "body", "faults"),
    [
        (
            "/graph/expand",
            {},
            [
                fault("missing", "parent_id", "Field required", {}),
                fault("missing", "name", "Field required", {}),
            ],
        ),
        (
            "/graph/expand",
            {"parent_id": "root-math", "name": 5},
            [fault("string_type", "name", STRING, 5)],
        ),
        (
            "/workers/register",
            {"worker_id": "w", "hostname": "h", "capabilities": []},
            [fault("dict_type", "capabilities", DICT, [])],
        ),
        (
            "/workers/heartbeat",
            {"worker_id": "w", "status": None},
            [fault("string_type", "status", STRING, None)],
        ),
        ("/training/claim", {"worker_id": 1}, [fault("string_type", "worker_id", STRING, 1)]),
        ("/training/enqueue", {}, [fault("missing", "topic", "Field required", {})]),
        *(
            ("/training/enqueue", {"topic": "p", "priority": g}, [fault(kind, "priority", w, g)])
            for kind, w, g in (
                ("int_parsing", UNPARSED, "x"),
                ("int_parsing", UNPARSED, ""),
                ("int_parsing", UNPARSED, "٨"),
                ("int_type", INT, None),
                ("int_type", INT, [5]),
                ("int_from_float", INT + ", got a number with a fractional part", 7.5),
            )
        ),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_told_as_ever(
    server: Server, path: str, body: object, faults: object
) -> None:
    reply = server.post(path, body)
    assert reply.status == 422
    assert reply.json == {"detail": faults}


@pytest.mark.parametrize(
    ("raw", "content_type", "status", "detail"),
    [
        (
            b"{",
            JSON,
            422,
            [
                {
                    "type": "json_invalid",
                    "loc": ["body", 1],
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": "Expecting property name enclosed in double quotes"},
                }
            ],
        ),
        (b"", JSON, 422, [whole("missing", "Field required", None)]),
        *(
            (raw, kind, 422, [whole("model_attributes_type", OBJECT, given)])
            for raw, kind, given in (
                (b"[]", JSON, []),
                (b'"x"', JSON, "x"),
                (b"null", JSON, None),
                (b"topic=p", "application/x-www-form-urlencoded", "topic=p"),
                (b'{"topic":"p"}', "text/plain", '{"topic":"p"}'),
            )
        ),
        (b'{"topic":"\xff"}', JSON, 400, UNREADABLE),
        (b'{"topic":"p","priority":' + b"9" * 5_000 + b"}", JSON, 400, UNREADABLE),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_told_as_ever(
    server: Server, raw: bytes, content_type: str, status: int, detail: object
) -> None:
    reply = server.ask("POST", PREFIX + "/training/enqueue", raw, content_type)
    assert (reply.status, reply.json) == (status, {"detail": detail})


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/graph/expand", {"parent_id": "nope", "name": "n"}, "parent not found"),
        ("/training/enqueue", {"topic": "t", "node_id": "nope"}, "target node not found"),
        ("/training/complete", {"task_id": "nope", "worker_id": "w"}, "task not found"),
        ("/think/dual", {"node_id": "nope", "prompt": ""}, "node not found"),
    ],
)
def test_what_does_not_exist_is_a_400_with_its_words(
    server: Server, path: str, body: object, words: str
) -> None:
    reply = server.post(path, body)
    assert (reply.status, reply.body.decode()) == (400, f'{{"detail":"{words}"}}')


def test_paths_and_methods_are_told_as_ever(server: Server) -> None:
    assert server.get("/nope").body == b'{"detail":"Not Found"}'
    assert server.get("/Status").status == 404
    wrong = server.get("/training/claim")
    assert (wrong.status, wrong.body) == (405, b'{"detail":"Method Not Allowed"}')
    assert wrong.headers["allow"] == "POST"
    slash = server.get("/status/")
    assert slash.status == 307
    assert slash.headers["location"].endswith(PREFIX + "/status")
    assert server.get("/status?x=1").status == 200
    assert server.ask("HEAD", PREFIX + "/status").status < 500
    assert server.ask("OPTIONS", PREFIX + "/training/claim").status < 500
    assert server.ask("GET", "/").status == 404


# ── better on purpose ──


def test_among_equals_the_oldest_goes_first_and_the_highest_before_all(server: Server) -> None:
    worker = server.worker()
    low, old, new, high = (server.enqueue(priority=p)["task_id"] for p in (2, 5, 5, 9))
    order = [server.claim(worker) for _ in range(4)]
    assert [task["task_id"] for task in order if task] == [high, old, new, low]


@pytest.mark.parametrize("name", ["../x", "a/b", "..\\x", "x" * 300, "a\0b", ".", ".."])
def test_an_artifacts_name_is_never_a_path_and_never_a_500(server: Server, name: str) -> None:
    worker = server.worker()
    task_id = server.enqueue()["task_id"]
    server.claim(worker)
    body = {"task_id": task_id, "worker_id": worker, "artifact_name": name, "artifact_payload": {}}
    assert server.post("/training/complete", body).status == 400
    assert server.get(f"/tasks/{task_id}").json["task"]["status"] == "running"


def test_nobody_completes_what_he_does_not_hold(server: Server) -> None:
    owner, other = server.worker(), server.worker()
    task_id = server.enqueue()["task_id"]
    refused = b'{"detail":"worker does not own this task"}'
    unclaimed = server.post("/training/complete", {"task_id": task_id, "worker_id": other})
    assert (unclaimed.status, unclaimed.body) == (400, refused)
    claimed = server.claim(owner)
    assert claimed is not None
    assert claimed["task_id"] == task_id
    stolen = server.post("/training/complete", {"task_id": task_id, "worker_id": other})
    assert (stolen.status, stolen.body) == (400, refused)
    refusals = until(
        lambda: [
            one
            for one in server.get("/log/refusals?limit=1000").json["refusals"]
            if one["subject"] == f"task.{task_id}"
        ],
        "the refusals are kept",
    )
    assert {one["worker_id"] for one in refusals} == {other}


def test_the_first_result_stands_however_often_it_is_repeated(server: Server) -> None:
    worker = server.worker()
    task_id = server.enqueue()["task_id"]
    server.claim(worker)
    body = {"task_id": task_id, "worker_id": worker, "metrics": {"loss": 1}}
    first = server.post("/training/complete", body)
    again = server.post("/training/complete", {**body, "metrics": {"loss": 2}})
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    completed = server.get("/status").json["network"]["tasks"]["completed"]
    server.post("/training/complete", body)
    assert server.get("/status").json["network"]["tasks"]["completed"] == completed


@pytest.mark.parametrize(
    "raw",
    [
        b'{"topic":"t","priority":NaN}',
        b'{"topic":"t","priority":1e400}',
        b'{"topic":"t","priority":1e20}',
        b'{"topic":"\\ud800"}',
        b'{"topic":"' + b"[" * 100 + b'"',
        b'{"topic":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)
def test_what_used_to_break_the_server_is_refused_and_changes_nothing(
    server: Server, raw: bytes
) -> None:
    before = server.get("/status").body
    reply = server.post("/training/enqueue", raw)
    assert reply.status in (400, 422)
    assert "detail" in reply.json
    assert server.get("/status").body == before
    assert server.enqueue()["status"] == "queued"


def test_metrics_that_are_no_numbers_change_nothing(server: Server) -> None:
    worker = server.worker()
    task_id = server.enqueue()["task_id"]
    server.claim(worker)
    raw = f'{{"task_id":"{task_id}","worker_id":"{worker}","metrics":{{"loss":Infinity}}}}'
    assert server.post("/training/complete", raw.encode()).status in (400, 422)
    assert server.get(f"/tasks/{task_id}").json["task"]["status"] == "running"


def test_a_body_beyond_a_mebibyte_is_413_and_a_topic_of_100_kb_is_told_why(server: Server) -> None:
    assert server.post("/training/enqueue", {"topic": "x" * 2**20}).status == 413
    long = server.post("/training/enqueue", {"topic": "x" * 100_000})
    assert long.status == 422
    assert "shorten" in long.json["detail"][0]["msg"]


def test_a_silent_worker_goes_offline_and_its_task_is_claimable_again(server: Server) -> None:
    silent, next_one = server.worker(), server.worker()
    task_id = server.enqueue()["task_id"]
    claimed = server.claim(silent)
    assert claimed is not None
    assert claimed["task_id"] == task_id

    def is_offline() -> bool:
        workers = {one["worker_id"]: one for one in server.get("/workers").json["workers"]}
        server.post("/workers/heartbeat", {"worker_id": next_one})
        return bool(workers[silent]["status"] == "offline")

    until(is_offline, "the silent worker is offline", 20)

    def is_mine() -> bool:
        server.post("/workers/heartbeat", {"worker_id": next_one})
        task = server.claim(next_one)
        return task is not None and task["task_id"] == task_id

    until(is_mine, "its lease ended", 20)
    late = server.post("/training/complete", {"task_id": task_id, "worker_id": silent})
    assert late.status == 400


def test_a_claim_whose_answer_was_lost_is_given_again(server: Server) -> None:
    worker = server.worker()
    first, _ = server.enqueue(), server.enqueue()
    assert server.claim(worker) is not None
    server.post("/workers/heartbeat", {"worker_id": worker})
    again = server.claim(worker)
    assert again is not None
    assert again["task_id"] == first["task_id"]


def test_a_worker_with_slots_gets_another_task_instead(server: Server) -> None:
    worker = "slots"
    body = {"worker_id": worker, "hostname": "h", "capabilities": {"slots": 2}}
    server.post("/workers/register", body)
    first, second = server.enqueue()["task_id"], server.enqueue()["task_id"]
    claimed = []
    for _ in range(2):
        server.post("/workers/heartbeat", {"worker_id": worker})
        task = server.claim(worker)
        claimed.append(task and task["task_id"])
    assert claimed == [first, second]


def test_an_idempotency_key_queues_once(server: Server, stack: Stack) -> None:
    address = urllib.parse.urlsplit(stack.http).netloc
    seen = []
    for _ in range(2):
        connection = http.client.HTTPConnection(address, timeout=30)
        headers = {"Content-Type": JSON, "Idempotency-Key": "once"}
        connection.request("POST", PREFIX + "/training/enqueue", b'{"topic":"t"}', headers)
        seen.append(connection.getresponse().read())
        connection.close()
    assert seen[0] == seen[1]
    assert server.get("/status").json["network"]["tasks"]["queued"] == 1


# ── beyond the nine ──


def test_tasks_are_listed_page_by_page_and_cancelled_and_retried(server: Server) -> None:
    ids = [server.enqueue(node_id="opt-discrete")["task_id"] for _ in range(5)]
    page = server.get("/tasks?node_id=opt-discrete&status=queued&limit=2").json
    assert [task["task_id"] for task in page["tasks"]] == ids[:2]
    following = server.get(
        f"/tasks?node_id=opt-discrete&status=queued&limit=3&after={page['next']}"
    ).json
    assert [task["task_id"] for task in following["tasks"]] == ids[2:]
    assert following["next"] is None
    cancelled = server.post(f"/tasks/{ids[0]}/cancel", {"reason": "خطأ"}).json["task"]
    assert (cancelled["status"], cancelled["reasons"]) == ("cancelled", ["خطأ"])
    assert server.post(f"/tasks/{ids[0]}/retry", {}).json["task"]["status"] == "queued"
    assert server.post(f"/tasks/{ids[1]}/retry", {}).status == 409
    assert server.get("/tasks/nope").status == 404
    assert server.get("/tasks?limit=0").status == 422
    assert server.get("/tasks?after=nope").status == 422


def test_a_node_says_what_it_trains_and_from_whom_it_has_it(server: Server) -> None:
    node = server.get("/nodes/physics-fluid").json["node"]
    assert node["workload"] == {"specialist": "physics-fluid", "parameters": {}, "inherited": False}
    assert node["champion"] is None
    assert (node["rounds"], node["lineage"]) == ([], [])
    grown = server.done("/graph/expand", {"parent_id": "opt-convex", "name": "n"}, "node")
    lent = server.get(f"/nodes/{grown['node_id']}").json["node"]["workload"]
    assert lent == {"specialist": "opt-convex", "parameters": {}, "inherited": True}
    task_id = server.enqueue(node_id=grown["node_id"])["task_id"]
    assert server.get(f"/tasks/{task_id}").json["task"]["workload"] == lent
    assert server.get("/nodes/nope").status == 404


def test_health_readiness_and_the_document_of_all_routes(server: Server) -> None:
    assert server.ask("GET", "/healthz").json == {"status": "ok"}
    assert server.ask("GET", "/readyz").json == {"status": "ready"}
    document = server.ask("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    contract = {path for path in document["paths"] if path.startswith(PREFIX)}
    assert {PREFIX + "/training/claim", PREFIX + "/think/dual", PREFIX + "/rounds"} <= contract


def test_a_record_that_means_nothing_is_quarantined_and_shown(server: Server, stack: Stack) -> None:
    async def put() -> None:
        facts = stack.facts
        creds = Path(facts["data"]) / "creds" / "control.creds"
        bus = await Bus.connect(
            facts["nats"], credentials=creds, name="hand", inbox_prefix="_INBOX_control"
        )
        await bus.request("ev.task.by-hand", b"not an event")
        await bus.close()

    before = server.get("/log/state").json["log"]["last_seq"]
    asyncio.run(put())
    task = server.enqueue()
    assert task["status"] == "queued"
    state = server.get("/log/state").json["log"]
    assert state["last_seq"] > before + 1
    replayed = aghsan("replay", "--data", stack.data, "--at", str(state["last_seq"]), "--json")
    told = json.loads(replayed.stdout)
    assert told["state_hash"] == state["state_hash"]
    assert told["quarantined"] == 1
    audited = aghsan("audit", "--data", stack.data, "--json")
    assert audited.returncode == 1
    first = json.loads(audited.stdout)["violations"][0]
    assert (first["rule"], first["seq"]) == ("undecodable", before + 1)
