"""The HTTP application: a table of typed routes, and manners that hold for all of them.

A handler takes the request and its body (or query) as a struct and returns a struct; everything
else happens here. The same table makes the OpenAPI document (`gateway.openapi`).
"""

import asyncio
import dataclasses
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import http_exceptions, web
from aiohttp.typedefs import Handler, Middleware

from core import errors, turns
from gateway import bodies, ledger, problems, schemas

PREFIX = "/api/v1/network"
BODY_BYTES_MAX = 1024 * 1024
BODY_SECONDS_MAX = 60.0
BODIES_BYTES_MAX = 64 * 1024 * 1024
"""Of all bodies together, on their way or in hand."""
ANSWER_SECONDS_MAX = 60.0
ANSWERS_BYTES_MAX = 64 * 1024 * 1024
"""Of all answers together that their clients have not taken yet."""
PIECE_BYTES = 256 * 1024
"""Of an answer that are written at once."""
KEEP_ALIVE_SECONDS = 75.0
"""After so much silence a connection is closed, also one that never asked anything."""
CONNECTIONS_MAX = 20_000

B = TypeVar("B", bound=schemas.Request)
A = TypeVar("A", bound=schemas.Answer)

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_BROKEN_OFF = (ConnectionError, web.RequestPayloadError, http_exceptions.HttpProcessingError)


class _Quiet(logging.Filter):
    """What is no HTTP is the sender's affair: its answer is 400, and the log needs no trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, http_exceptions.HttpProcessingError)


_protocol_log = logging.getLogger(f"{__name__}.protocol")
_protocol_log.addFilter(_Quiet())


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One operation: `request` is its body, or its query for GET. Made by `route`."""

    method: str
    path: str
    handler: Callable[[web.Request, Any], Awaitable[schemas.Answer]]
    request: type[schemas.Request]
    answer: type[schemas.Answer]
    summary: str
    contract: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Something else to GET: its handler makes the whole response."""

    path: str
    handler: Handler
    summary: str
    media_type: str = "application/json"


def route(
    method: str,
    path: str,
    handler: Callable[[web.Request, B], Awaitable[A]],
    request: type[B],
    answer: type[A],
    summary: str,
    *,
    contract: bool = False,
) -> Route:
    """A row of the table. `contract`: one of the nine routes, with their ways to refuse."""
    return Route(method, path, handler, request, answer, summary, contract)


def application(
    routes: Sequence[Route | Page],
    *,
    body_bytes_max: int = BODY_BYTES_MAX,
    on_answer: Callable[[web.Request, int], None] | None = None,
    arriving: ledger.Ledger | None = None,
    leaving: ledger.Ledger | None = None,
) -> web.Application:
    """An aiohttp application that serves the table; `on_answer` is told each answer's status."""
    arriving = arriving or ledger.Ledger(BODIES_BYTES_MAX, BODY_SECONDS_MAX)
    leaving = leaving or ledger.Ledger(ANSWERS_BYTES_MAX, ANSWER_SECONDS_MAX)
    pieces = turns.Turnstile()
    told = [] if on_answer is None else [_told(on_answer)]
    app = web.Application(
        middlewares=[_delivered(leaving, pieces), *told, _manners],
        client_max_size=body_bytes_max,
        # A compressed body would have to be bounded twice; the contract knows none.
        handler_args={
            "auto_decompress": False,
            "keepalive_timeout": KEEP_ALIVE_SECONDS,
            "logger": _protocol_log,
        },
    )
    paths = {one.path for one in routes}
    for one in routes:
        if isinstance(one, Page):
            app.router.add_route("GET", one.path, one.handler)
        else:
            bodies.prepare(one.request)
            endpoint = _endpoint(one, body_bytes_max, arriving, pieces)
            app.router.add_route(one.method, _beside(one.path, paths), endpoint)
    return app


def _beside(path: str, paths: Collection[str]) -> str:
    """A path as aiohttp routes it. Where its last part is of any name, the names of others beside
    it stay theirs, for each method: GET of a path that only takes POST is 405, as it always was."""
    parent, _, last = path.rpartition("/")
    if not last.startswith("{"):
        return path
    taken = sorted(
        name
        for folder, _, name in (one.rpartition("/") for one in paths)
        if folder == parent and not name.startswith("{")
    )
    others = "|".join(map(re.escape, taken))
    return f"{parent}/{last[:-1]}:(?!(?:{others})$)[^/]+}}" if taken else path


def json_response(value: msgspec.Struct, status: int = 200) -> web.Response:
    """A struct as a whole response, for pages."""
    return _json(_encode(value), status)


def problem_response(problem: problems.Problem) -> web.Response:
    """A problem as a whole response."""
    response = _json(problem.body, problem.status)
    response.headers.update(problem.headers)
    return response


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _endpoint(
    one: Route, body_bytes_max: int, arriving: ledger.Ledger, pieces: turns.Turnstile
) -> Handler:
    handler, kind, contract = one.handler, one.request, one.contract
    where = "query" if one.method == "GET" else "body"

    async def answer_to(request: web.Request) -> schemas.Answer:
        if one.method == "GET":
            return await handler(request, bodies.parse_query(request.query, kind))
        raw = await _read(request, body_bytes_max, arriving)
        with arriving.kept(len(raw)):
            if len(raw) > PIECE_BYTES:
                await pieces.passed()  # reading one takes some milliseconds
            named = request.headers.get("Content-Type")
            asked = bodies.parse(raw, named, kind, as_recorded=contract)
            return await handler(request, asked)

    async def endpoint(request: web.Request) -> web.StreamResponse:
        try:
            answer = await answer_to(request)
        except errors.AghsanError as error:
            problem = problems.of(error, contract=contract, where=where)
            if problem is None:
                raise
            return problem_response(problem)
        return _json(_encode(answer))

    return endpoint


async def _read(request: web.Request, body_bytes_max: int, arriving: ledger.Ledger) -> bytes:
    """The whole body. Raises BadRequest when it breaks off, HTTPException when it is too much."""
    if request.content.is_eof() and not request.content.exception():
        return await request.read()  # the usual case: it came with the head
    if (request.content_length or 0) > body_bytes_max:
        raise web.HTTPRequestEntityTooLarge(body_bytes_max)
    body = bytearray()
    try:
        async with arriving.place() as place:
            async for block in request.content.iter_any():
                body += block
                if len(body) > body_bytes_max:
                    raise web.HTTPRequestEntityTooLarge(body_bytes_max)
                arriving.add(place, len(block))
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except _BROKEN_OFF:
        raise bodies.BadRequest(400, bodies.UNREADABLE) from None
    return bytes(body)


# ── slow clients ──


def _delivered(leaving: ledger.Ledger, pieces: turns.Turnstile) -> Middleware:
    """Answers that their clients do not take are not held for ever: aiohttp would, even where it
    closes the connection."""

    @web.middleware
    async def deliver(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            try:
                async with leaving.place() as place:
                    leaving.add(place, len(response.body))
                    response = await _send(request, response, response.body, pieces)
            except ConnectionError:
                pass  # whoever asked is gone, which aiohttp finds out by itself
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
        return response

    return deliver


async def _send(
    request: web.Request, response: web.Response, body: bytes, pieces: turns.Turnstile
) -> web.StreamResponse:
    """Send an answer whole: the system has taken the last byte of it. A long one goes piece by
    piece, each in its turn, so that copying it holds up nobody."""
    if isinstance(request.transport, asyncio.WriteTransport):
        request.transport.set_write_buffer_limits(0)
    if len(body) <= PIECE_BYTES:
        await response.prepare(request)
        await response.write_eof()
        return response
    long = web.StreamResponse(status=response.status, headers=response.headers)
    long.content_length = len(body)
    await long.prepare(request)
    whole = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        await pieces.passed()
        await long.write(whole[start : start + PIECE_BYTES])
    await long.write_eof()
    return long


# ── connections ──


class _Turned(asyncio.Protocol):
    """A connection too many: told so, and closed before it costs anything."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_FULL)
        transport.close()


_full = problems.told(503, "The server has as many connections as it may; close some, or try later")
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Retry-After: %d\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
) % (problems.RETRY_AFTER_SECONDS, len(_full.body), _full.body)


async def listen(
    server: web.Server, host: str, port: int, connections_max: int = CONNECTIONS_MAX
) -> asyncio.Server:
    """Take connections for `server`, so many at a time: beyond the descriptors of a process not
    even its log could be written. Raises OSError when the address cannot be had."""

    def welcome() -> asyncio.Protocol:
        return server() if len(server.connections) < connections_max else _Turned()

    loop = asyncio.get_running_loop()
    return await loop.create_server(welcome, host, port, reuse_address=True)


# ── manners ──


@web.middleware
async def _manners(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as JSON, every surprise as a plain 500 with its trace in the log."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        return await _translated(request, refusal)
    except Exception as error:
        problem = problems.of(error, contract=False)
        if problem is None:
            log.exception("%s %r failed", request.method, request.raw_path)
            return web.Response(status=500, text=problems.INTERNAL)
        return problem_response(problem)


def _told(on_answer: Callable[[web.Request, int], None]) -> Middleware:
    @web.middleware
    async def tell(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            on_answer(request, answer.status)
            raise
        on_answer(request, response.status)
        return response

    return tell


async def _translated(request: web.Request, refusal: web.HTTPException) -> web.StreamResponse:
    match refusal:
        case web.HTTPNotFound():
            return await _elsewhere(request) or _json(problems.NOT_FOUND, 404)
        case web.HTTPMethodNotAllowed():
            response = _json(problems.METHOD_NOT_ALLOWED, 405)
            response.headers["Allow"] = ", ".join(sorted(refusal.allowed_methods))
            return response
        case web.HTTPRequestEntityTooLarge():
            return problem_response(problems.too_large(request.client_max_size))
        case web.HTTPRequestTimeout():
            words = (
                f"The body took too long to arrive: {BODY_SECONDS_MAX:g} s are the most, and less "
                "while many are on their way; send it again"
            )
            return problem_response(problems.told(408, words))
        case _ if refusal.status < 400:
            raise refusal
        case _:
            return problem_response(problems.told(refusal.status, refusal.text or refusal.reason))


async def _elsewhere(request: web.Request) -> web.Response | None:
    """The way to the canonical URL where only a trailing slash is too much."""
    path = request.rel_url.raw_path
    canonical = path.rstrip("/")
    if canonical in ("", path):
        return None
    found = await request.app.router.resolve(
        request.clone(rel_url=request.rel_url.with_path(canonical, encoded=True))
    )
    if isinstance(found.http_exception, web.HTTPNotFound):
        return None
    query = request.rel_url.raw_query_string
    location = f"{request.scheme}://{request.host}{canonical}{'?' if query else ''}{query}"
    if not location.isascii():
        return None
    return web.Response(status=307, headers={"Location": location})
