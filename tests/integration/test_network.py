"""The nine routes over the whole stack, by what existing clients were recorded to see."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from core import chunks, commands, runtime, seals, subjects
from core.projections import tasks as projection
from core.projections.tasks import Task
from core.specializations import SEEDS
from gateway.http import BODY_BYTES_MAX, PREFIX
from tests import nats_fixture
from tests.integration.gateway_stack import (
    HTTP_LEASE_SECONDS,
    JSON_HEADER,
    NODE,
    SECOND,
    TASK,
    TIME,
    WORKER_TIMEOUT_SECONDS,
    Reply,
    Stack,
    serving,
    started,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for the tests that mind nothing the others do."""
    async with started(tmp_path_factory.mktemp("shared") / "data") as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack of one's own."""
    async with started(tmp_path / "data") as one:
        yield one


def detail(text: str) -> str:
    return f'{{"detail":"{text}"}}'


def missing(*fields: str, sent: str = "{}") -> str:
    faults = ",".join(
        f'{{"type":"missing","loc":["body","{field}"],"msg":"Field required","input":{sent}}}'
        for field in fields
    )
    return f'{{"detail":[{faults}]}}'


def fault(field: str, kind: str, words: str, sent: str) -> str:
    where = f'{{"type":"{kind}","loc":["body","{field}"],"msg":"{words}","input":{sent}}}'
    return f'{{"detail":[{where}]}}'


def not_a(field: str, kind: str, sent: str) -> str:
    words = {"string": "string", "dict": "dictionary", "int": "integer"}[kind]
    return fault(field, f"{kind}_type", f"Input should be a valid {words}", sent)


# ── looking ──


async def test_a_fresh_network_counts_its_ten_nodes_and_nothing_else(stack: Stack) -> None:
    (await stack.get("/status?x=1")).require(
        200,
        '{"status":"ok","network":{"nodes":10,"workers_total":0,"workers_online":0,'
        '"tasks":{"queued":0,"running":0,"completed":0,"total":0}}}',
    )


async def test_the_graph_is_the_seeded_tree_in_the_order_it_grew(stack: Stack) -> None:
    reply = await stack.get("/graph")
    graph = reply.json["graph"]
    assert list(graph) == ["nodes", "roots", "total_nodes"]
    assert [node["node_id"] for node in graph["nodes"]] == [seed.node_id for seed in SEEDS]
    assert graph["roots"] == graph["nodes"][:1]
    assert graph["total_nodes"] == 10
    root = (
        '{"status":"ok","graph":{"nodes":[{"node_id":"root-math","name":"الرياضيات",'
        f'"description":"{SEEDS[0].description}","parent_id":null,"depth":0,"path":"الرياضيات",'
        '"ai_current_evolver":"Math-Evolver-v1","ai_zero_reinventor":"Math-Reinventor-v1",'
        '"children":["math-physics","math-statistics","math-optimization"]},'
    )
    assert reply.body.decode().startswith(root)
    compact = json.dumps(reply.json, ensure_ascii=False, separators=(",", ":"))
    assert reply.body == compact.encode()


PATHS = {
    "math-physics": "الرياضيات/الرياضيات الفيزيائية",
    "math-statistics": "الرياضيات/الإحصاء",
    "physics-fluid": "الرياضيات/الرياضيات الفيزيائية/ميكانيكا الموائع",
    "stats-bayesian": "الرياضيات/الإحصاء/الاستدلال البايزي",
    "opt-discrete": "الرياضيات/التحسين/التحسين المتقطع",
}


async def test_seeded_nodes_have_the_paths_that_clients_know(shared: Stack) -> None:
    nodes = (await shared.get("/graph")).json["graph"]["nodes"]
    paths = {node["node_id"]: node["path"] for node in nodes}
    assert {node_id: paths[node_id] for node_id in PATHS} == PATHS


# ── expand ──


def grown(name: str, description: str, parent: str, depth: int, path: str) -> str:
    return (
        f'{{"status":"ok","node":{{"node_id":"{NODE}","name":"{name}",'
        f'"description":"{description}","parent_id":"{parent}","depth":{depth},"path":"{path}",'
        f'"ai_current_evolver":"{name}-Evolver-v1","ai_zero_reinventor":"{name}-Reinventor-v1",'
        f'"children":[]}}}}'
    )


async def expand(stack: Stack, **asked: object) -> Reply:
    return await stack.post("/graph/expand", asked)


@pytest.mark.parametrize("name", ["هندسة", "a/b", "🚀", ""])
async def test_a_node_grows_below_another(shared: Stack, name: str) -> None:
    reply = await expand(shared, parent_id="root-math", name=name, description="وصف")
    reply.require(200, grown(name, "وصف", "root-math", 1, f"الرياضيات/{name}"))
    nodes = (await shared.get("/graph")).json["graph"]["nodes"]
    assert nodes[-1] == reply.json["node"]
    assert nodes[0]["children"][-1] == reply.json["node"]["node_id"]


async def test_the_same_name_twice_is_two_nodes(shared: Stack) -> None:
    nodes = [(await expand(shared, parent_id="opt-discrete", name="sub")).json for _ in range(2)]
    assert nodes[0]["node"]["node_id"] != nodes[1]["node"]["node_id"]
    assert nodes[0]["node"]["path"] == nodes[1]["node"]["path"]


async def test_a_node_grows_below_one_that_was_added(shared: Stack) -> None:
    parent = (await expand(shared, parent_id="root-math", name="هندسة")).json["node"]["node_id"]
    reply = await expand(shared, parent_id=parent, name="sub", extra=1)
    reply.require(200, grown("sub", "", parent, 2, "الرياضيات/هندسة/sub"))


async def test_a_node_is_bound_to_a_specialist_and_what_cannot_be_is_refused(
    shared: Stack,
) -> None:
    asked = {"parent_id": "root-math", "name": "مرشّح", "workload": {"specialist": "opt-convex"}}
    node_id = (await expand(shared, **asked)).json["node"]["node_id"]
    bound = (await shared.get(f"/nodes/{node_id}")).json["node"]["workload"]
    assert bound == {"specialist": "opt-convex", "parameters": {}, "inherited": False}
    for workload, status, words in (
        ({"specialist": "alchemy"}, 400, "there is no specialist 'alchemy'"),
        ({"parameters": {"colour": 1}}, 422, "root-math takes no parameter 'colour'"),
        ({"parameters": {"colour": "red"}}, 422, "numbers by name"),
        ({"colour": 1}, 422, "colour"),
        ("opt-convex", 422, "workload"),
    ):
        reply = await expand(shared, parent_id="root-math", name="x", workload=workload)
        said = reply.body.decode()
        assert (reply.status, words in said) == (status, True), said


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        ({"parent_id": "nope", "name": "x", "y": 1}, 400, detail("parent not found")),
        (
            {"parent_id": "root-math", "name": "x", "description": None},
            422,
            not_a("description", "string", "null"),
        ),
        ({}, 422, missing("parent_id", "name")),
        ({"parent_id": "root-math", "name": 5}, 422, not_a("name", "string", "5")),
    ],
)
async def test_what_cannot_grow_is_refused(
    shared: Stack, asked: dict[str, object], status: int, text: str
) -> None:
    (await shared.post("/graph/expand", asked)).require(status, text)


# ── workers ──


def worker(worker_id: str, hostname: str, capabilities: str, status: str = "online") -> str:
    return (
        f'{{"status":"ok","worker":{{"worker_id":"{worker_id}","hostname":"{hostname}",'
        f'"capabilities":{capabilities},"status":"{status}","last_seen":"{TIME}"}}}}'
    )


async def test_a_worker_registers_and_registering_replaces_its_record(shared: Stack) -> None:
    asked: dict[str, object] = {"worker_id": "r-1", "hostname": "h"}
    capable = {**asked, "capabilities": {"cpu": 2, "n": {"a": [1, None]}}}
    reply = await shared.post("/workers/register", capable)
    reply.require(200, worker("r-1", "h", '{"cpu":2,"n":{"a":[1,null]}}'))
    reply = await shared.post("/workers/register", {**asked, "hostname": "h2"})
    reply.require(200, worker("r-1", "h2", "{}"))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"worker_id": "w"}, missing("hostname", sent='{"worker_id":"w"}')),
        ({"worker_id": 7, "hostname": "h"}, not_a("worker_id", "string", "7")),
        (
            {"worker_id": "w", "hostname": "h", "capabilities": None},
            not_a("capabilities", "dict", "null"),
        ),
        (
            {"worker_id": "w", "hostname": "h", "capabilities": []},
            not_a("capabilities", "dict", "[]"),
        ),
    ],
)
async def test_a_registration_that_is_none_is_refused(
    shared: Stack, asked: dict[str, object], text: str
) -> None:
    (await shared.post("/workers/register", asked)).require(422, text)


async def test_a_heartbeat_makes_keeps_and_changes_a_worker(shared: Stack) -> None:
    async def beat(**asked: object) -> Reply:
        return await shared.post("/workers/heartbeat", {"worker_id": "b-1", **asked})

    (await beat()).require(200, worker("b-1", "b-1", "{}"))
    (await beat(capabilities={"gpu": 1})).require(200, worker("b-1", "b-1", '{"gpu":1}'))
    (await beat(capabilities={})).require(200, worker("b-1", "b-1", '{"gpu":1}'))
    (await beat(capabilities=None)).require(422, not_a("capabilities", "dict", "null"))
    (await beat(status=None)).require(422, not_a("status", "string", "null"))
    for status in ("draining", "", "متصل", "offline", "online"):
        (await beat(status=status)).require(200, worker("b-1", "b-1", '{"gpu":1}', status))


async def test_only_the_online_count_as_online(stack: Stack) -> None:
    await stack.register("w1")
    for worker_id, status in (("w2", "draining"), ("w3", "offline"), ("w4", "online")):
        await stack.post("/workers/heartbeat", {"worker_id": worker_id, "status": status})
    network = (await stack.get("/status")).json["network"]
    assert (network["workers_total"], network["workers_online"]) == (4, 2)


async def test_each_sign_of_life_moves_last_seen(shared: Stack) -> None:
    await shared.register("seen")
    first, second = [
        (await shared.post("/workers/heartbeat", {"worker_id": "seen"})).json["worker"]
        for _ in range(2)
    ]
    assert first["last_seen"] < second["last_seen"]


async def test_a_heartbeat_over_http_reaches_the_heartbeats_stream(shared: Stack) -> None:
    asked = {"worker_id": "عامل ١", "status": "busy"}
    await shared.post("/workers/heartbeat", asked)
    fleet = shared.parts.connections.fleet
    last = json.dumps({"last_by_subj": f"hb.{subjects.token('عامل ١')}"}).encode()
    async with asyncio.timeout(10):
        while not (stored := await fleet.request("$JS.API.DIRECT.GET.HEARTBEATS", last)):
            pass  # it is sent without waiting for the server to have it
    assert json.loads(stored).items() >= {"via": "http", **asked}.items()


# ── enqueue ──


def queued(node_id: str, topic: str, priority: int) -> str:
    return (
        f'{{"status":"ok","task":{{"task_id":"{TASK}","node_id":"{node_id}","topic":"{topic}",'
        f'"priority":{priority},"status":"queued","assigned_worker":null,"created_at":"{TIME}",'
        f'"updated_at":"{TIME}","result":null}}}}'
    )


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"topic": "t", "node_id": "stats-bayesian", "priority": 8}, ("stats-bayesian", "t", 8)),
        ({"topic": "مرحبا 🚀"}, ("root-math", "مرحبا 🚀", 5)),
        ({"topic": ""}, ("root-math", "", 5)),
        ({"topic": "p", "extra": {"a": 1}}, ("root-math", "p", 5)),
        ({"topic": "p", "node_id": None}, ("root-math", "p", 5)),
        ({"topic": "p", "node_id": ""}, ("root-math", "p", 5)),
        *(
            ({"topic": "p", "priority": sent}, ("root-math", "p", taken))
            for sent, taken in [
                (0, 1),
                (-5, 1),
                (11, 10),
                (1_000_000, 10),
                ("8", 8),
                (" 8 ", 8),
                ("8.0", 8),
                (8.0, 8),
                (True, 1),
                (10**30, 10),
            ]
        ),
    ],
)
async def test_a_task_is_queued(
    shared: Stack, asked: dict[str, object], text: tuple[str, str, int]
) -> None:
    reply = await shared.post("/training/enqueue", asked)
    reply.require(200, queued(*text))
    assert reply.task["created_at"] == reply.task["updated_at"]


async def test_a_nul_in_a_topic_is_kept(shared: Stack) -> None:
    task_id = await shared.enqueue("a\x00b")
    assert (await shared.task(task_id))["topic"] == "a\x00b"


PARSING = "Input should be a valid integer, unable to parse string as an integer"
FRACTION = "Input should be a valid integer, got a number with a fractional part"
TOO_LARGE = "Unable to parse input string as an integer, exceeded maximum size"
NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"


def no_object(sent: str) -> str:
    where = f'{{"type":"model_attributes_type","loc":["body"],"msg":"{NO_OBJECT}","input":{sent}}}'
    return f'{{"detail":[{where}]}}'


def invalid_json(position: int, words: str) -> str:
    return (
        f'{{"detail":[{{"type":"json_invalid","loc":["body",{position}],'
        f'"msg":"JSON decode error","input":{{}},"ctx":{{"error":"{words}"}}}}]}}'
    )


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        ('{"topic":"p","priority":7.5}', 422, fault("priority", "int_from_float", FRACTION, "7.5")),
        ('{"topic":"p","priority":"x"}', 422, fault("priority", "int_parsing", PARSING, '"x"')),
        ('{"topic":"p","priority":"٨"}', 422, fault("priority", "int_parsing", PARSING, '"٨"')),
        ('{"topic":"p","priority":""}', 422, fault("priority", "int_parsing", PARSING, '""')),
        ('{"topic":"p","priority":null}', 422, not_a("priority", "int", "null")),
        ('{"topic":"p","priority":[5]}', 422, not_a("priority", "int", "[5]")),
        (
            '{"topic":"p","priority":1e+20}',
            422,
            fault("priority", "int_parsing_size", TOO_LARGE, "1e+20"),
        ),
        ('{"topic":null}', 422, not_a("topic", "string", "null")),
        ("{}", 422, missing("topic")),
        ('{"topic":"p","node_id":"nope"}', 400, detail("target node not found")),
        ("{", 422, invalid_json(1, "Expecting property name enclosed in double quotes")),
        ('{"topic":"p"} x', 422, invalid_json(14, "Extra data")),
        ("[]", 422, no_object("[]")),
        ('"x"', 422, no_object('"x"')),
        ("null", 422, no_object("null")),
    ],
)
async def test_what_cannot_be_queued_is_refused(
    shared: Stack, raw: str, status: int, text: str
) -> None:
    (await shared.post("/training/enqueue", raw.encode())).require(status, text)


async def test_an_empty_body_is_missing(shared: Stack) -> None:
    (await shared.post("/training/enqueue", b"")).require(
        422, '{"detail":[{"type":"missing","loc":["body"],"msg":"Field required","input":null}]}'
    )


@pytest.mark.parametrize(
    ("content_type", "status", "text"),
    [
        ("application/x+json", 200, queued("root-math", "p", 5)),
        ("application/json; charset=utf-8", 200, queued("root-math", "p", 5)),
        ("text/plain", 422, no_object(r'"{\"topic\":\"p\"}"')),
        ("", 422, no_object(r'"{\"topic\":\"p\"}"')),
    ],
)
async def test_the_content_type_says_whether_a_body_is_read_as_json(
    shared: Stack, content_type: str, status: int, text: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    reply = await shared.ask("POST", f"{PREFIX}/training/enqueue", b'{"topic":"p"}', headers)
    reply.require(status, text)


@pytest.mark.parametrize(
    "raw",
    ['{"topic":"u"}'.encode("utf-16"), b'\xef\xbb\xbf{"topic":"u"}', b'{"topic":"a","topic":"u"}'],
)
async def test_unusual_encodings_of_a_body_are_read(shared: Stack, raw: bytes) -> None:
    (await shared.post("/training/enqueue", raw)).require(200, queued("root-math", "u", 5))


UNREADABLE = detail("There was an error parsing the body")


@pytest.mark.parametrize("raw", [b'{"topic":"\xff"}', b"[" * 5_000, b'{"a":' + b"9" * 5_000 + b"}"])
async def test_a_body_that_cannot_be_read_is_a_400(shared: Stack, raw: bytes) -> None:
    (await shared.post("/training/enqueue", raw)).require(400, UNREADABLE)


async def test_a_lone_surrogate_destroys_nothing(stack: Stack) -> None:
    before = (await stack.get("/log/state")).body
    for path, raw in (
        ("/training/enqueue", rb'{"topic":"\ud800"}'),
        ("/graph/expand", rb'{"parent_id":"root-math","name":"\udfff"}'),
        ("/workers/register", rb'{"worker_id":"w","hostname":"h","capabilities":{"\ud800":1}}'),
    ):
        assert (await stack.post(path, raw)).status in (400, 422)
    assert (await stack.get("/log/state")).body == before
    (await stack.post("/training/enqueue", {"topic": "p"})).require(
        200, queued("root-math", "p", 5)
    )


@pytest.mark.parametrize("priority", ["NaN", "1e400", "-Infinity"])
async def test_a_priority_that_is_no_number_is_refused(shared: Stack, priority: str) -> None:
    reply = await shared.post(
        "/training/enqueue", f'{{"topic":"p","priority":{priority}}}'.encode()
    )
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "priority"]


async def test_a_body_above_the_limit_is_a_413(shared: Stack) -> None:
    reply = await shared.post("/training/enqueue", {"topic": "x" * BODY_BYTES_MAX})
    assert reply.status == 413
    assert str(BODY_BYTES_MAX) in reply.json["detail"]


async def test_a_topic_that_no_event_holds_is_refused_in_words(shared: Stack) -> None:
    reply = await shared.post("/training/enqueue", {"topic": "م" * 50_000})
    assert reply.status == 422
    assert "shorten" in reply.json["detail"][0]["msg"]


# ── Idempotency-Key ──


async def test_the_same_key_is_the_same_task_queued_once(stack: Stack) -> None:
    async def enqueue(topic: str) -> Reply:
        return await stack.post("/training/enqueue", {"topic": topic}, Idempotency_Key="k1")

    replies = await asyncio.gather(*(enqueue("t") for _ in range(8)))
    assert len({reply.body for reply in replies}) == 1
    other = await enqueue("other words")
    assert (other.status, "used for another request" in other.json["detail"]) == (409, True)
    assert (await enqueue("t")).body == replies[0].body
    assert (await stack.counts())["total"] == 1


async def test_a_key_answers_with_the_task_as_it_stands_now(stack: Stack) -> None:
    asked = {"topic": "t"}
    first = await stack.post("/training/enqueue", asked, Idempotency_Key="k1")
    await stack.register("w")
    await stack.claim("w")
    await stack.complete(first.task["task_id"], "w", metrics={"a": 1})
    again = await stack.post("/training/enqueue", asked, Idempotency_Key="k1")
    assert again.task["task_id"] == first.task["task_id"]
    assert (again.task["status"], again.task["result"]["metrics"]) == ("completed", {"a": 1})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([""], "is empty"),
        ([" \t"], "is empty"),
        (["a", "b"], "one Idempotency-Key at most"),
        (["a", "a"], "one Idempotency-Key at most"),
        (["", "a"], "one Idempotency-Key at most"),
    ],
)
async def test_a_key_that_is_empty_or_one_of_two_is_refused(
    shared: Stack, keys: list[str], words: str
) -> None:
    before = await shared.counts()
    headers = [*JSON_HEADER.items(), *(("Idempotency-Key", key) for key in keys)]
    reply = await shared.ask("POST", f"{PREFIX}/training/enqueue", b'{"topic":"t"}', headers)
    assert reply.status == 400
    assert words in reply.json["detail"]
    assert await shared.counts() == before


async def test_a_key_that_is_too_long_is_refused(shared: Stack) -> None:
    reply = await shared.post("/training/enqueue", {"topic": "t"}, Idempotency_Key="k" * 257)
    assert reply.status == 422
    assert "Idempotency-Key" in reply.json["detail"][0]["msg"]


# ── claim ──

NO_TASK = '{"status":"ok","task":null}'


async def test_nothing_is_claimed_by_strangers_and_those_not_online(stack: Stack) -> None:
    await stack.enqueue()
    for worker_id, status in (("gone", "offline"), ("odd", "draining")):
        await stack.post("/workers/heartbeat", {"worker_id": worker_id, "status": status})
    for worker_id in ("unknown", "gone", "odd"):
        (await stack.post("/training/claim", {"worker_id": worker_id})).require(200, NO_TASK)
    assert (await stack.get("/status")).json["network"]["workers_total"] == 2


async def test_an_empty_queue_gives_null(stack: Stack) -> None:
    await stack.register("w")
    (await stack.post("/training/claim", {"worker_id": "w"})).require(200, NO_TASK)


@pytest.mark.parametrize(
    ("asked", "text"),
    [({}, missing("worker_id")), ({"worker_id": 1}, not_a("worker_id", "string", "1"))],
)
async def test_a_claim_that_is_none_is_refused(
    shared: Stack, asked: dict[str, object], text: str
) -> None:
    (await shared.post("/training/claim", asked)).require(422, text)


async def test_a_claim_is_answered_with_the_task_in_the_contracts_words(stack: Stack) -> None:
    await stack.register("w")
    await stack.enqueue("موضوع", node_id="opt-convex", priority=7)
    (await stack.post("/training/claim", {"worker_id": "w"})).require(
        200,
        f'{{"status":"ok","task":{{"task_id":"{TASK}","node_id":"opt-convex","topic":"موضوع",'
        f'"priority":7,"status":"running","assigned_worker":"w","created_at":"{TIME}",'
        f'"updated_at":"{TIME}","result":null}}}}',
    )
    assert await stack.counts() == {"queued": 0, "running": 1, "completed": 0, "total": 1}


async def test_the_highest_priority_goes_first_and_among_equals_the_oldest(stack: Stack) -> None:
    await stack.register("w", {"slots": 9})
    low = await stack.enqueue(priority=1)
    first, second = await stack.enqueue(), await stack.enqueue()
    high = await stack.enqueue(priority=9)
    assert [await stack.claim("w") for _ in range(5)] == [high, first, second, low, None]


async def test_claims_at_once_share_no_task(stack: Stack) -> None:
    workers = [f"w{number}" for number in range(10)]
    await asyncio.gather(*(stack.register(one) for one in workers))
    await asyncio.gather(*(stack.enqueue() for _ in range(8)))
    claimed = await asyncio.gather(*(stack.claim(one) for one in workers))
    assert claimed.count(None) == 2
    assert len(set(claimed)) == 9


async def test_a_worker_that_claims_on_without_a_sign_of_life_holds_many(stack: Stack) -> None:
    first = await stack.held("w")
    second = await stack.enqueue()
    assert await stack.claim("w") == second
    assert first != second
    assert (await stack.counts())["running"] == 2


async def test_a_claim_whose_answer_was_lost_is_answered_again_after_a_heartbeat(
    stack: Stack,
) -> None:
    first = await stack.held("w")
    await stack.enqueue()
    await stack.beat("w")
    assert [await stack.claim("w") for _ in range(2)] == [first, first]
    assert len((await stack.task(first))["attempts"]) == 1


async def test_a_worker_with_slots_is_given_another_task_even_after_a_heartbeat(
    stack: Stack,
) -> None:
    await stack.register("w", {"slots": 2})
    first, second = await stack.enqueue(), await stack.enqueue()
    assert await stack.claim("w") == first
    await stack.beat("w")
    assert await stack.claim("w") == second


# ── complete ──


def completed(worker_id: str, metrics: str, name: str, uploaded: str) -> str:
    return (
        f'{{"status":"ok","task":{{"task_id":"{TASK}","node_id":"root-math","topic":"t",'
        f'"priority":5,"status":"completed","assigned_worker":"{worker_id}",'
        f'"created_at":"{TIME}","updated_at":"{TIME}","result":{{"worker_id":"{worker_id}",'
        f'"metrics":{metrics},"artifact_name":{name},"artifact_uploaded":{uploaded},'
        f'"completed_at":"{TIME}"}}}}}}'
    )


async def test_the_owner_completes_its_task(stack: Stack) -> None:
    task_id = await stack.held("w")
    big = 12345678901234567890123
    reply = await stack.complete(task_id, "w", metrics={"loss": 0.1, "n": [None, big], "é": "ع"})
    reply.require(200, completed("w", f'{{"loss":0.1,"n":[null,{big}],"é":"ع"}}', "null", "false"))
    assert reply.task["result"]["completed_at"] == reply.task["updated_at"]
    assert await stack.counts() == {"queued": 0, "running": 0, "completed": 1, "total": 1}


async def test_metrics_may_be_left_out(stack: Stack) -> None:
    reply = await stack.complete(await stack.held("w"), "w")
    reply.require(200, completed("w", "{}", "null", "false"))


async def test_the_first_result_stands_whatever_the_owner_sends_later(stack: Stack) -> None:
    task_id = await stack.held("w")
    first = await stack.complete(task_id, "w", metrics={"loss": 0.1}, artifact_payload={"a": 1})
    again = await stack.complete(task_id, "w", metrics={"loss": 0.2}, artifact_name="other")
    assert (again.status, again.body) == (200, first.body)
    assert (await stack.counts())["completed"] == 1


async def test_completions_at_once_count_once(stack: Stack) -> None:
    task_id = await stack.held("w")
    replies = await asyncio.gather(
        *(stack.complete(task_id, "w", metrics={"try": number}) for number in range(8))
    )
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1


async def test_a_repetition_finds_the_first_result_after_a_restart(tmp_path: Path) -> None:
    with nats_fixture.running(tmp_path / "data") as nats:
        async with serving(nats) as stack:
            task_id = await stack.held("w")
            first = await stack.complete(task_id, "w", metrics={"a": "b" * 40_000})
        async with serving(nats) as stack:
            assert (await stack.complete(task_id, "w", metrics={"a": 2})).body == first.body


async def test_a_start_keeps_a_head_that_cannot_be_read_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = tmp_path / "data" / "head"
    with nats_fixture.running(head.parent) as nats:
        async with serving(nats) as stack:
            assert stack.parts.set_aside == []
        head.write_text("{")
        async with serving(nats) as stack:
            assert stack.parts.set_aside == caplog.messages
            assert "is kept as head.unreadable" in caplog.text
            await stack.enqueue()
    assert head.with_name("head.unreadable").read_text() == "{"
    assert seals.read_head(head.parent) is not None


async def test_a_repetition_finds_a_result_that_only_the_log_remembers(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "RECENT_MAX", 1)
    task_id = await stack.held("w")
    first = await stack.complete(task_id, "w", metrics={"a": 1}, artifact_payload={})
    other = await stack.held("w2")
    await stack.complete(other, "w2")
    assert task_id not in stack.parts.door.state.tasks.recent
    assert (await stack.complete(task_id, "w", metrics={"a": 2})).body == first.body


async def test_the_owner_delivers_though_it_went_offline(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.post("/workers/heartbeat", {"worker_id": "w", "status": "offline"})
    assert (await stack.complete(task_id, "w")).status == 200


async def test_nobody_else_completes_a_task_before_or_after(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.register("thief")
    refusal = detail("worker does not own this task")
    (await stack.complete(task_id, "thief", metrics={"a": 1})).require(400, refusal)
    first = await stack.complete(task_id, "w", metrics={"a": 2})
    (await stack.complete(task_id, "thief")).require(400, refusal)
    (await stack.complete(task_id, "thief", metrics={"a": "x" * 70_000})).require(400, refusal)
    assert (await stack.complete(task_id, "w")).body == first.body


async def test_a_queued_task_cannot_be_completed_and_stays_claimable(stack: Stack) -> None:
    task_id = await stack.enqueue()
    await stack.register("w")
    refusal = detail("worker does not own this task")
    (await stack.complete(task_id, "w", metrics={"a": 1})).require(400, refusal)
    assert await stack.claim("w") == task_id


async def test_a_task_that_does_not_exist_cannot_be_completed(shared: Stack) -> None:
    (await shared.complete("task-000000000000", "w")).require(400, detail("task not found"))


@pytest.mark.parametrize("size", [40_000, 200_000])
async def test_metrics_larger_than_an_event_come_back_whole(stack: Stack, size: int) -> None:
    task_id = await stack.held("w")
    metrics = {"loss": 0.5, "curve": "م" * (size // 2)}
    first = await stack.complete(task_id, "w", metrics=metrics)
    assert first.task["result"]["metrics"] == metrics
    assert (await stack.complete(task_id, "w")).body == first.body
    assert (await stack.task(task_id))["result"]["metrics"] == metrics


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ({"artifact_payload": {}}, "artifact-{task_id}-w.json"),
        ({"artifact_payload": {"a": [1]}, "artifact_name": ""}, "artifact-{task_id}-w.json"),
        ({"artifact_payload": {"a": [1]}, "artifact_name": "نموذج ١.json"}, "نموذج ١.json"),
    ],
)
async def test_an_artifact_is_stored_under_its_digest(
    stack: Stack, sent: dict[str, Any], name: str
) -> None:
    task_id = await stack.held("w")
    reply = await stack.complete(task_id, "w", **sent)
    named = json.dumps(name.format(task_id=task_id), ensure_ascii=False)
    reply.require(200, completed("w", "{}", named, "true"))
    task = stack.parts.door.state.tasks.recent[task_id]
    assert isinstance(task, Task)
    assert task.result is not None
    stored = await chunks.get_file(stack.parts.store, "desk", task.result.artifact_digest)
    assert json.loads(stored) == sent["artifact_payload"]


async def test_what_is_refused_or_repeated_leaves_no_bytes_behind(stack: Stack) -> None:
    async def pieces() -> int:
        info = await stack.parts.connections.fleet.api("STREAM.INFO.CHUNKS")
        return int(info["state"]["messages"])

    task_id = await stack.held("w")
    await stack.complete(task_id, "thief", metrics={"a": "x" * 70_000}, artifact_payload={"a": 1})
    assert await pieces() == 0
    await stack.complete(task_id, "w", artifact_payload={"a": 2})
    before = await pieces()
    await stack.complete(task_id, "w", artifact_payload={"a": 3})
    assert (await pieces(), before > 0) == (before, True)


async def test_a_name_without_an_artifact_is_kept_as_given(stack: Stack) -> None:
    reply = await stack.complete(await stack.held("w"), "w", artifact_name="m.json")
    reply.require(200, completed("w", "{}", '"m.json"', "false"))


async def test_the_name_of_a_nameless_artifact_is_never_a_path(stack: Stack) -> None:
    task_id = await stack.held("../../w")
    reply = await stack.complete(task_id, "../../w", artifact_payload={})
    name = reply.task["result"]["artifact_name"]
    assert name == f"artifact-{task_id}-{subjects.token('../../w')}.json"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..\\x", "x" * 300, "a\x00b", ".", "..", "/etc/passwd", "a\nb"]
)
async def test_a_name_that_is_no_plain_name_changes_nothing(shared: Stack, name: str) -> None:
    await shared.register("namer")
    task_id = await shared.enqueue(priority=10)
    refused = await shared.complete(task_id, "namer", artifact_name=name, artifact_payload={})
    assert refused.status == 400
    assert "artifact_name" in refused.json["detail"]
    assert (await shared.task(task_id))["status"] == "queued"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
async def test_metrics_that_are_no_numbers_change_nothing(stack: Stack, number: str) -> None:
    task_id = await stack.held("w")
    raw = f'{{"task_id":"{task_id}","worker_id":"w","metrics":{{"loss":{number}}}}}'
    assert (await stack.post("/training/complete", raw.encode())).status in (400, 422)
    assert (await stack.task(task_id))["status"] == "running"
    assert (await stack.complete(task_id, "w", metrics={"loss": 1})).status == 200


async def test_a_deep_body_changes_nothing(shared: Stack) -> None:
    deep = '{"a":' * 5_000 + "1" + "}" * 5_000
    raw = f'{{"task_id":"t","worker_id":"w","metrics":{deep}}}'
    (await shared.post("/training/complete", raw.encode())).require(400, UNREADABLE)


# ── silence ──


async def test_a_silent_worker_goes_offline_and_comes_back_with_a_heartbeat(stack: Stack) -> None:
    await stack.register("w")
    await stack.enqueue()
    await stack.after(WORKER_TIMEOUT_SECONDS - 5)
    assert (await stack.get("/status")).json["network"]["workers_online"] == 1
    await stack.after(WORKER_TIMEOUT_SECONDS + 1)
    assert (await stack.get("/status")).json["network"]["workers_online"] == 0
    assert await stack.claim("w") is None
    await stack.beat("w")
    assert await stack.claim("w") is not None


async def test_a_claim_outlasts_its_workers_absence_until_the_lease_ends(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.register("other")
    await stack.after(HTTP_LEASE_SECONDS - 5)
    await stack.beat("other")
    assert await stack.claim("other") is None
    await stack.after(HTTP_LEASE_SECONDS + 5)
    await stack.beat("other")
    assert await stack.claim("other") == task_id
    refused = await stack.complete(task_id, "w")
    refused.require(400, detail("worker does not own this task"))
    assert (await stack.complete(task_id, "other")).status == 200


async def test_a_late_completion_is_welcome_while_nobody_else_claimed(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.after(HTTP_LEASE_SECONDS + 5)
    assert (await stack.task(task_id))["status"] == "queued"
    assert (await stack.complete(task_id, "w", metrics={"a": 1})).status == 200
    await stack.register("other")
    assert await stack.claim("other") is None


async def test_a_worker_known_from_before_a_restart_is_seen_when_it_claims(
    tmp_path: Path,
) -> None:
    with nats_fixture.running(tmp_path / "data") as nats:
        async with serving(nats) as stack:
            await stack.register("w")
        async with serving(nats) as stack:
            assert await stack.claim("w") is None
            assert stack.parts.presence.last_seen("w") > 0
            await stack.claim("stranger")
            assert "stranger" not in stack.parts.presence.workers


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/workers/register", {"hostname": "h"}),
        ("/workers/heartbeat", {}),
        ("/training/claim", {}),
        ("/training/complete", {"task_id": "task-0"}),
    ],
)
async def test_a_worker_that_asks_in_vain_while_the_log_does_not_answer_stays_online(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, str]
) -> None:
    monkeypatch.setattr(runtime, "PATIENCE_SECONDS", 0.1)
    await stack.register("w")
    later = runtime.now() + int((WORKER_TIMEOUT_SECONDS + 5) * SECOND)
    async with stack.unanswered():
        assert (await stack.post("/training/enqueue", {"topic": "t"})).status == 503
        monkeypatch.setattr(runtime, "now", lambda: later)
        assert (await stack.post(path, {"worker_id": "w", **asked})).status == 503
    await stack.at(later + SECOND)
    assert (await stack.get("/status")).json["network"]["workers_online"] == 1


async def lease_end(stack: Stack, task_id: str) -> int:
    """When a claim's lease ends unless something spoke for it since, in microseconds."""
    task = await stack.parts.door.read(lambda state: state.tasks.table.rows[task_id])
    assert isinstance(task, Task)
    return task.claims[-1].claimed_at + int(HTTP_LEASE_SECONDS * SECOND)


async def test_a_heartbeat_renews_the_lease_of_a_claim(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.beat("w")
    await stack.at(await lease_end(stack, task_id))
    assert (await stack.task(task_id))["status"] == "running"


async def test_heartbeats_speak_for_no_claim_beside_which_other_work_was_asked_for(
    stack: Stack,
) -> None:
    task_id = await stack.held("w")
    assert await stack.claim("w") is None
    await stack.beat("w")
    await stack.at(await lease_end(stack, task_id))
    assert (await stack.task(task_id))["status"] == "queued"


# ── strange ids ──


@pytest.mark.parametrize(
    "worker_id",
    ["", " ", "عامل ١", "a.b", "*", ">", "x-y", "w" * 500, "a\x00b", "🚀", "%2F", "desk"],
)
async def test_a_worker_id_may_be_any_string(stack: Stack, worker_id: str) -> None:
    task_id = await stack.held(worker_id)
    await stack.beat(worker_id)
    reply = await stack.complete(task_id, worker_id, artifact_payload={})
    assert reply.status == 200
    assert reply.task["result"]["worker_id"] == worker_id


# ── think ──


def require_thought(reply: Reply, node_id: str, name: str, ai: str, prompt: str) -> Any:
    """Assert that an answer is of the contract's shape, keys in order; the thought."""
    assert reply.status == 200, reply.body
    assert list(reply.json) == ["status", "thought"]
    thought = reply.json["thought"]
    sides = ["current_evolution_thought", "zero_reinvention_thought"]
    assert list(thought) == ["node_id", "node_name", *sides]
    assert (thought["node_id"], thought["node_name"]) == (node_id, name)
    for side, version in zip(sides, ("Evolver", "Reinventor"), strict=True):
        assert list(thought[side]) == ["ai", "focus", "plan", "prompt"]
        assert (thought[side]["ai"], thought[side]["prompt"]) == (f"{ai}-{version}-v1", prompt)
        assert [type(step) for step in thought[side]["plan"]] == [str, str, str]
    return thought


async def test_both_ais_of_a_node_tell_their_plans(shared: Stack) -> None:
    asked = {"node_id": "stats-bayesian", "prompt": "كيف؟"}
    reply = await shared.post("/think/dual", asked)
    thought = require_thought(reply, "stats-bayesian", "الاستدلال البايزي", "Bayes", "كيف؟")
    evolver, reinventor = list(thought.values())[2:]
    assert evolver["focus"] == "تحسين تدريجي داخل اختصاص الاستدلال البايزي"
    assert reinventor["focus"] == "إعادة بناء من الصفر لاختصاص الاستدلال البايزي"
    assert evolver["plan"][0].startswith("لا بطل بعدُ")
    assert (await shared.post("/think/dual", asked)).body == reply.body


async def test_both_ais_answer_an_english_prompt_in_english(shared: Stack) -> None:
    reply = await shared.post("/think/dual", {"node_id": "stats-bayesian", "prompt": "how?"})
    thought = require_thought(reply, "stats-bayesian", "الاستدلال البايزي", "Bayes", "how?")
    plan = thought["current_evolution_thought"]["plan"]
    assert plan[0].startswith("There is no champion yet to go on from")


async def test_an_added_node_thinks_under_its_own_name(shared: Stack) -> None:
    node_id = (await expand(shared, parent_id="root-math", name="هندسة")).json["node"]["node_id"]
    reply = await shared.post("/think/dual", {"node_id": node_id, "prompt": ""})
    thought = require_thought(reply, node_id, "هندسة", "هندسة", "")
    assert "(موروث من الرياضيات)" in thought["zero_reinvention_thought"]["plan"][0]


async def test_a_node_that_is_not_there_does_not_think(shared: Stack) -> None:
    reply = await shared.post("/think/dual", {"node_id": "nope", "prompt": "p"})
    reply.require(400, detail("node not found"))
    (await shared.post("/think/dual", {})).require(422, missing("node_id", "prompt"))


# ── manners ──

NINE = [
    ("GET", "/status"),
    ("GET", "/graph"),
    ("POST", "/graph/expand"),
    ("POST", "/workers/register"),
    ("POST", "/workers/heartbeat"),
    ("POST", "/training/enqueue"),
    ("POST", "/training/claim"),
    ("POST", "/training/complete"),
    ("POST", "/think/dual"),
]


OTHERS = ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]


@pytest.mark.parametrize("method", [None, *OTHERS])
@pytest.mark.parametrize(("right", "path"), NINE)
async def test_each_route_answers_its_method_alone(
    shared: Stack, right: str, path: str, method: str | None
) -> None:
    method = method or {"GET": "POST", "POST": "GET"}[right]
    reply = await shared.ask(method, PREFIX + path)
    assert (reply.status, reply.headers["allow"]) == (405, right)
    assert reply.body == (b"" if method == "HEAD" else detail("Method Not Allowed").encode())


@pytest.mark.parametrize(("right", "path"), NINE)
async def test_a_trailing_slash_is_shown_the_way(shared: Stack, right: str, path: str) -> None:
    reply = await shared.ask(right, f"{PREFIX}{path}/")
    assert (reply.status, reply.body) == (307, b"")
    assert reply.headers["location"] == shared.origin + PREFIX + path


@pytest.mark.parametrize("path", ["/", "/health", PREFIX, f"{PREFIX}/nope", f"{PREFIX}/Status"])
async def test_what_is_not_there_is_a_404(shared: Stack, path: str) -> None:
    (await shared.ask("GET", path)).require(404, detail("Not Found"))


async def test_a_name_and_token_in_the_url_are_no_hindrance(shared: Stack) -> None:
    url = shared.origin.replace("http://", "http://name:token@") + PREFIX + "/status"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200


async def test_a_client_behind_a_redirect_keeps_its_body(shared: Stack) -> None:
    url = f"{shared.origin}{PREFIX}/training/enqueue/"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=b'{"topic":"p"}', headers=JSON_HEADER) as response,
    ):
        assert (await response.json())["task"]["topic"] == "p"


async def test_over_http_nobody_gives_signs_of_life_or_takes_work_for_an_agent(
    stack: Stack,
) -> None:
    hello = commands.OpenSession(
        worker_id="a", session="s", hostname="h", lane="cpu-16", protocol=1
    )
    await stack.do(hello)
    presence, workers = stack.parts.presence, stack.parts.door.state.workers
    presence.beat("a", 1, "s", 0, [])
    await stack.enqueue()
    assert (await stack.post("/workers/heartbeat", {"worker_id": "a"})).status == 409
    assert await stack.claim("a") is None
    assert (await stack.complete("task-unknown", "a")).status == 400
    assert (presence.last_seen("a"), workers.table.rows["a"].via) == (1, "nats")
    await stack.do(commands.MarkOffline(worker_id="a", reason="r", session="s"))
    await stack.beat("a")
    assert (workers.table.rows["a"].via, workers.table.rows["a"].session) == ("http", "")
    assert presence.last_seen("a") > 1
    assert await stack.claim("a") is not None
