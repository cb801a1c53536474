"""The OpenAPI 3.1 document of the route table."""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from gateway import schemas
from gateway.http import Page, Route

VERSION = "3.1.0"
TITLE = "Aghsan"
_REFERENCE = "#/components/schemas/{name}"
_PLACEHOLDER = re.compile(r"{(\w+)}")

Json: TypeAlias = dict[str, Any]
"""A piece of the document: JSON by nature, checked as a whole by its tests."""


def document(routes: Sequence[Route | Page], version: str) -> Json:
    """Paths and schemas of all routes. `version` is that of the program."""
    typed = [one for one in routes if isinstance(one, Route)]
    kinds: list[type[msgspec.Struct]] = [schemas.Detail, schemas.Faults]
    kinds += [one.request for one in typed if one.method != "GET"]
    kinds += [one.answer for one in typed]
    _, components = msgspec.json.schema_components(dict.fromkeys(kinds), ref_template=_REFERENCE)
    components.pop(schemas.Nothing.__name__, None)
    paths: Json = {}
    for one in routes:
        operation = _operation(one) if isinstance(one, Route) else _page(one)
        method = one.method.lower() if isinstance(one, Route) else "get"
        paths.setdefault(one.path, {})[method] = operation
    return {
        "openapi": VERSION,
        "info": {"title": TITLE, "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(one: Route) -> Json:
    operation: Json = {
        "summary": one.summary,
        "operationId": _identity(one.method, one.path),
        "tags": ["network" if one.contract else "more"],
    }
    parameters = [_path_parameter(name) for name in _PLACEHOLDER.findall(one.path)]
    if one.method == "GET":
        parameters += _query_parameters(one.request)
    elif one.request is not schemas.Nothing:
        required = any(f.required for f in msgspec.structs.fields(one.request))
        operation["requestBody"] = {"required": required, "content": _json_of(one.request)}
    if parameters:
        operation["parameters"] = parameters
    operation["responses"] = {
        "200": {"description": "Successful Response", "content": _json_of(one.answer)},
        **{status: _refusal(status, words) for status, words in _refusals(one).items()},
    }
    return operation


def _page(one: Page) -> Json:
    return {
        "summary": one.summary,
        "operationId": _identity("GET", one.path),
        "tags": ["pages"],
        "responses": {
            "200": {"description": "Successful Response", "content": {one.media_type: {}}}
        },
    }


def _identity(method: str, path: str) -> str:
    return "_".join([*re.findall(r"\w+", path.replace("/api/v1/", "/")), method.lower()])


def _path_parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(kind: type[schemas.Request]) -> list[Json]:
    (_, components) = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    properties: dict[str, Json] = components[kind.__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in properties.items()
    ]


def _json_of(kind: type[msgspec.Struct]) -> Json:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=kind.__name__)}}}


def _refusals(one: Route) -> dict[str, str]:
    """What else a route may answer, by status."""
    refusals = {"422": "Validation Error", "503": "Not available now; try again later"}
    if one.method != "GET":
        refusals["400"] = "Refused, or a body that cannot be read"
        refusals["409"] = "In a state that forbids this"
        refusals["413"] = "The body is too large"
        refusals["507"] = "A bound of the system is reached"
    if _PLACEHOLDER.search(one.path):
        refusals["404"] = "Not Found"
    return dict(sorted(refusals.items()))


def _refusal(status: str, words: str) -> Json:
    kind = schemas.Faults if status == "422" else schemas.Detail
    return {"description": words, "content": _json_of(kind)}
