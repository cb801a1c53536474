"""The OpenAPI document of a table like the real one."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

from core.methods import METHODS, PARENTS_MAX
from gateway import http, judgement, openapi, schemas
from gateway.schemas import Nothing


async def _never(request: web.Request, body: Any) -> Any:
    raise AssertionError("only its signature is looked at")


async def _page(request: web.Request) -> web.StreamResponse:
    raise AssertionError("only its signature is looked at")


ROUTES: list[http.Route | http.Page] = [
    http.route(method, http.PREFIX + path, _never, request, answer, path, contract=contract)
    for method, path, request, answer, contract in [
        ("GET", "/status", Nothing, schemas.StatusAnswer, True),
        ("GET", "/graph", Nothing, schemas.GraphAnswer, True),
        ("POST", "/graph/expand", schemas.ExpandRequest, schemas.NodeAnswer, True),
        ("POST", "/workers/register", schemas.RegisterRequest, schemas.WorkerAnswer, True),
        ("POST", "/workers/heartbeat", schemas.HeartbeatRequest, schemas.WorkerAnswer, True),
        ("POST", "/training/enqueue", schemas.EnqueueRequest, schemas.TaskAnswer, True),
        ("POST", "/training/claim", schemas.ClaimRequest, schemas.ClaimAnswer, True),
        ("POST", "/training/complete", schemas.CompleteRequest, schemas.TaskAnswer, True),
        ("POST", "/think/dual", schemas.ThinkRequest, schemas.ThoughtAnswer, True),
        ("POST", "/agents/join", schemas.JoinRequest, schemas.JoinAnswer, False),
        ("GET", "/tasks", schemas.TasksQuery, schemas.TasksAnswer, False),
        ("GET", "/tasks/{task_id}", Nothing, schemas.TaskDetailAnswer, False),
        ("POST", "/tasks/{task_id}/cancel", schemas.CancelRequest, schemas.TaskDetailAnswer, False),
        ("POST", "/tasks/{task_id}/retry", Nothing, schemas.TaskDetailAnswer, False),
        ("GET", "/workers", Nothing, schemas.WorkersAnswer, False),
        ("GET", "/nodes/{node_id}", Nothing, judgement.NodeDetailAnswer, False),
        ("GET", "/rounds", judgement.RoundsQuery, judgement.RoundsAnswer, False),
        ("GET", "/rounds/{round_id}", Nothing, judgement.RoundAnswer, False),
        ("GET", "/log/state", Nothing, schemas.LogStateAnswer, False),
        ("POST", "/artifacts/gc", schemas.SweepRequest, schemas.SweepAnswer, False),
        ("GET", "/log/refusals", schemas.RefusalsQuery, schemas.RefusalsAnswer, False),
    ]
]
ROUTES.append(http.Page("/healthz", _page, "Alive", "application/json"))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded = json.loads(msgspec.json.encode(openapi.document(ROUTES, "1.2.3")))
    assert isinstance(loaded, dict)
    return loaded


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for child in value.values():
            yield from _references(child)
    elif isinstance(value, list):
        for child in value:
            yield from _references(child)


def test_every_route_of_the_table_is_an_operation(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "Aghsan", "version": "1.2.3"}
    described = {(path, method) for path, method, _ in _operations(document)}
    assert described == {(one.path, getattr(one, "method", "GET").lower()) for one in ROUTES}


def test_every_reference_leads_to_a_schema_and_every_schema_is_led_to(
    document: dict[str, Any],
) -> None:
    schemas_known = document["components"]["schemas"]
    used = {reference.removeprefix("#/components/schemas/") for reference in _references(document)}
    assert used == set(schemas_known)


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    identities = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(identities)) == len(identities)


def test_every_placeholder_of_a_path_is_a_required_parameter(document: dict[str, Any]) -> None:
    for path, _, operation in _operations(document):
        declared = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        assert declared == [part[1:-1] for part in path.split("/") if part.startswith("{")]


def test_a_query_is_described_field_by_field(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/api/v1/network/tasks"]["get"]["parameters"]
    assert [(one["name"], one["in"]) for one in parameters] == [
        ("status", "query"),
        ("node_id", "query"),
        ("closed", "query"),
        ("newest", "query"),
        ("after", "query"),
        ("limit", "query"),
    ]
    assert parameters[5]["schema"]["maximum"] == schemas.PAGE_MAX


def test_a_body_tells_its_required_fields_and_bounds(document: dict[str, Any]) -> None:
    enqueue = document["components"]["schemas"]["EnqueueRequest"]
    assert enqueue["required"] == ["topic"]
    assert enqueue["properties"]["role"]["enum"] == ["dual", "evolver", "reinventor"]
    assert set(enqueue["properties"]["method"]["enum"]) == set(METHODS)
    assert enqueue["properties"]["parents"]["maxItems"] == PARENTS_MAX
    assert enqueue["properties"]["priority"]["default"] == 5


def test_a_body_without_required_fields_may_be_left_out(document: dict[str, Any]) -> None:
    paths = document["paths"]
    cancel = paths["/api/v1/network/tasks/{task_id}/cancel"]["post"]
    assert cancel["requestBody"]["required"] is False
    assert "requestBody" not in paths["/api/v1/network/tasks/{task_id}/retry"]["post"]


def test_answers_are_encoded_with_the_keys_of_the_contract_in_their_order() -> None:
    result = schemas.TaskResult(
        worker_id="w",
        metrics=msgspec.Raw(b'{"loss":1}'),
        artifact_name=None,
        artifact_uploaded=False,
        completed_at="2026-11-23T08:45:01.044941Z",
    )
    task = schemas.Task(
        task_id="task-43c46a15a959",
        node_id="root-math",
        topic="مرحبا",
        priority=5,
        status="completed",
        assigned_worker="w",
        created_at="2026-11-23T08:45:01.044941Z",
        updated_at="2026-11-23T08:45:01.044941Z",
        result=result,
    )
    assert msgspec.json.encode(schemas.TaskAnswer(task=task)).decode() == (
        '{"status":"ok","task":{"task_id":"task-43c46a15a959","node_id":"root-math",'
        '"topic":"مرحبا","priority":5,"status":"completed","assigned_worker":"w",'
        '"created_at":"2026-11-23T08:45:01.044941Z","updated_at":"2026-11-23T08:45:01.044941Z",'
        '"result":{"worker_id":"w","metrics":{"loss":1},"artifact_name":null,'
        '"artifact_uploaded":false,"completed_at":"2026-11-23T08:45:01.044941Z"}}}'
    )


NODE_KEYS = (
    "node_id name description parent_id depth path ai_current_evolver ai_zero_reinventor children"
)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (schemas.Network, "nodes workers_total workers_online tasks"),
        (schemas.TaskCounts, "queued running completed total"),
        (schemas.Graph, "nodes roots total_nodes"),
        (schemas.Node, NODE_KEYS),
        (schemas.Worker, "worker_id hostname capabilities status last_seen"),
        (schemas.Thought, "node_id node_name current_evolution_thought zero_reinvention_thought"),
        (schemas.Plan, "ai focus plan prompt"),
        (schemas.ClaimAnswer, "status task"),
    ],
)
def test_an_answer_has_exactly_the_keys_of_the_contract(
    kind: type[msgspec.Struct], keys: str
) -> None:
    assert list(kind.__struct_fields__) == keys.split()
