"""The manners of the HTTP server, seen from a real socket."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable

import aiohttp
import pytest
from aiohttp import web

from core import errors
from gateway import http, ledger, schemas

P = http.PREFIX
BODY_BYTES_MAX = 4_096
LARGE_BYTES = 16 * 1024 * 1024
SECONDS_MAX = 10.0
SENT = {"worker_id": "w"}
CLAIM = b'{"worker_id":"w"}'
HALF = f"POST {P}/training/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc".encode()
HUGE = f"POST {P}/training/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode()


async def _status(request: web.Request, _: schemas.Nothing) -> schemas.StatusAnswer:
    tasks = schemas.TaskCounts(queued=0, running=0, completed=0, total=0)
    return schemas.StatusAnswer(
        network=schemas.Network(nodes=10, workers_total=0, workers_online=0, tasks=tasks)
    )


async def _claim(request: web.Request, body: schemas.ClaimRequest) -> schemas.ClaimAnswer:
    match body.worker_id:
        case "unlucky":
            raise KeyError("a defect of ours")
        case "broken":
            raise errors.UnfitEvent("what no caller can have caused")
        case "unknown":
            raise errors.NotFound("node not found")
        case "later":
            raise errors.Overloaded("busy")
        case _:
            return schemas.ClaimAnswer(task=None)


async def _tasks(request: web.Request, query: schemas.TasksQuery) -> schemas.TasksAnswer:
    return schemas.TasksAnswer(tasks=[], next=f"{query.status} {query.limit}", closed=0)


async def _cancel(request: web.Request, body: schemas.CancelRequest) -> schemas.TaskDetailAnswer:
    raise errors.NotFound(f"no task {request.match_info['task_id']} ({body.reason})")


async def _retry(request: web.Request, _: schemas.Nothing) -> schemas.TaskDetailAnswer:
    raise errors.Conflict("the task is running")


async def _ready(request: web.Request) -> web.StreamResponse:
    return http.json_response(schemas.Detail(detail="النظام يبدأ"), status=503)


async def _large(request: web.Request) -> web.StreamResponse:
    return web.Response(body=bytes(LARGE_BYTES))


ROUTES: list[http.Route | http.Page] = [
    http.route(
        "GET", P + "/status", _status, schemas.Nothing, schemas.StatusAnswer, "", contract=True
    ),
    http.route(
        "POST",
        P + "/training/claim",
        _claim,
        schemas.ClaimRequest,
        schemas.ClaimAnswer,
        "",
        contract=True,
    ),
    http.route("GET", P + "/tasks", _tasks, schemas.TasksQuery, schemas.TasksAnswer, ""),
    http.route(
        "POST",
        P + "/tasks/{task_id}/cancel",
        _cancel,
        schemas.CancelRequest,
        schemas.TaskDetailAnswer,
        "",
    ),
    http.route(
        "POST", P + "/tasks/{task_id}/retry", _retry, schemas.Nothing, schemas.TaskDetailAnswer, ""
    ),
    http.Page("/readyz", _ready, ""),
    http.Page("/large", _large, ""),
]


class Reply:
    """A response read from the socket byte by byte."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {
            k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)
        }
        self.body = body


class Server:
    """The application on a port of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.origin = f"http://127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def connected(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(SECONDS_MAX):
                yield reader, writer
        finally:
            writer.transport.abort()

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[str] = ("Content-Type: application/json",),
    ) -> Reply:
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        async with self.connected() as (reader, writer):
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            return await read_reply(reader, has_body=method != "HEAD")


async def read_reply(reader: asyncio.StreamReader, *, has_body: bool = True) -> Reply:
    reply = Reply(await reader.readuntil(b"\r\n\r\n"), b"")
    if has_body:
        reply.body = await reader.readexactly(int(reply.headers["content-length"]))
    return reply


@contextlib.asynccontextmanager
async def serving(
    arriving: ledger.Ledger | None = None, leaving: ledger.Ledger | None = None
) -> AsyncIterator[Server]:
    runner = web.AppRunner(
        http.application(ROUTES, body_bytes_max=BODY_BYTES_MAX, arriving=arriving, leaving=leaving),
        access_log=None,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Server(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as one:
        yield one


# ── answers ──


async def test_an_answer_is_compact_json_of_exactly_that_type(server: Server) -> None:
    reply = await server.ask("GET", f"{P}/status?x=1")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.body == (
        b'{"status":"ok","network":{"nodes":10,"workers_total":0,"workers_online":0,'
        b'"tasks":{"queued":0,"running":0,"completed":0,"total":0}}}'
    )


async def test_a_body_in_pieces_is_put_together(server: Server) -> None:
    async with server.connected() as (reader, writer):
        writer.write(
            f"POST {P}/training/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for byte in CLAIM:
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        assert (await read_reply(reader)).body == b'{"status":"ok","task":null}'


async def test_requests_that_come_at_once_are_answered_in_turn(server: Server) -> None:
    request = (
        f"POST {P}/training/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(CLAIM)}\r\n\r\n"
    ).encode() + CLAIM
    async with server.connected() as (reader, writer):
        writer.write(request * 20)
        assert [(await read_reply(reader)).status for _ in range(20)] == [200] * 20


async def test_a_query_and_a_placeholder_reach_the_handler(server: Server) -> None:
    reply = await server.ask("GET", f"{P}/tasks?status=queued&limit=7")
    assert json.loads(reply.body)["next"] == "queued 7"
    reply = await server.ask("POST", f"{P}/tasks/a%2Fb/cancel", '{"reason":"لا"}'.encode())
    assert (reply.status, json.loads(reply.body)["detail"]) == (404, "no task a/b (لا)")


async def test_a_page_makes_its_own_response(server: Server) -> None:
    reply = await server.ask("GET", "/readyz")
    assert (reply.status, reply.body) == (503, '{"detail":"النظام يبدأ"}'.encode())


# ── refusals ──


@pytest.mark.parametrize("target", ["", "/nope", "/Status", "//status", "/training", "/training/"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_what_is_not_there_is_a_404(server: Server, method: str, target: str) -> None:
    reply = await server.ask(method, P + target)
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert reply.headers["content-length"] == "22"
    assert reply.body == (b"" if method == "HEAD" else b'{"detail":"Not Found"}')


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/status", "GET"),
        ("HEAD", "/status", "GET"),
        ("OPTIONS", "/status", "GET"),
        ("TRACE", "/status", "GET"),
        ("GET", "/training/claim", "POST"),
        ("PUT", "/training/claim", "POST"),
        ("DELETE", "/training/claim", "POST"),
        ("OPTIONS", "/training/claim", "POST"),
    ],
)
async def test_another_method_is_a_405_that_names_the_right_one(
    server: Server, method: str, target: str, allowed: str
) -> None:
    reply = await server.ask(method, P + target)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert reply.body == (b"" if method == "HEAD" else b'{"detail":"Method Not Allowed"}')


@pytest.mark.parametrize(
    ("method", "target", "location"),
    [
        ("GET", "/status/", "/status"),
        ("GET", "/status/?a=b%20c", "/status?a=b%20c"),
        ("POST", "/training/claim/", "/training/claim"),
        ("PUT", "/training/claim/", "/training/claim"),
        ("POST", "/tasks/a%2Fb/retry/", "/tasks/a%2Fb/retry"),
    ],
)
async def test_a_trailing_slash_is_shown_the_way(
    server: Server, method: str, target: str, location: str
) -> None:
    reply = await server.ask(method, P + target)
    assert (reply.status, reply.body) == (307, b"")
    assert reply.headers["location"] == server.origin + P + location


async def test_a_client_that_follows_the_redirect_arrives_with_its_body(server: Server) -> None:
    url = f"{server.origin}{P}/training/claim/"
    async with aiohttp.ClientSession() as session, session.post(url, json=SENT) as response:
        assert await response.json() == {"status": "ok", "task": None}


@pytest.mark.parametrize(
    ("worker_id", "status", "body"),
    [
        ("unknown", 400, b'{"detail":"node not found"}'),
        ("later", 503, b'{"detail":"busy"}'),
        ("unlucky", 500, b"Internal Server Error"),
        ("broken", 500, b"Internal Server Error"),
    ],
)
async def test_what_a_handler_raises_is_told_as_it_is(
    server: Server, worker_id: str, status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reply = await server.ask(
        "POST", f"{P}/training/claim", b'{"worker_id":"%b"}' % worker_id.encode()
    )
    assert (reply.status, reply.body) == (status, body)
    assert ("retry-after" in reply.headers) == (status == 503)
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == (1 if status == 500 else 0)
    if status == 500:
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_conflict_elsewhere_is_a_409_without_any_body_sent(server: Server) -> None:
    reply = await server.ask("POST", f"{P}/tasks/t/retry")
    assert (reply.status, reply.body) == (409, b'{"detail":"the task is running"}')


# ── limits and accidents ──


async def test_a_body_of_the_allowed_size_is_taken_and_one_byte_more_is_not(server: Server) -> None:
    fits = CLAIM.ljust(BODY_BYTES_MAX)
    assert (await server.ask("POST", f"{P}/training/claim", fits)).status == 200
    reply = await server.ask("POST", f"{P}/training/claim", fits + b" ")
    assert reply.status == 413
    assert str(BODY_BYTES_MAX) in json.loads(reply.body)["detail"]


async def test_a_body_that_is_announced_too_large_is_refused_unread(server: Server) -> None:
    async with server.connected() as (reader, writer):
        writer.write(HUGE)
        assert (await read_reply(reader)).status == 413


async def test_a_body_without_an_end_is_refused_while_it_streams(server: Server) -> None:
    async with server.connected() as (reader, writer):
        writer.write(
            f"POST {P}/training/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(5):
            writer.write(b"400\r\n%b\r\n" % bytes(1_024))
            await writer.drain()
        assert (await read_reply(reader)).status == 413


async def test_a_compressed_body_is_not_inflated(server: Server) -> None:
    headers = ("Content-Type: application/json", "Content-Encoding: gzip")
    reply = await server.ask("POST", f"{P}/training/claim", b"\x1f\x8b\x08\x00", headers)
    assert (reply.status, reply.body) == (400, b'{"detail":"There was an error parsing the body"}')


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with (
        serving(arriving=ledger.Ledger(10_000, 0.05)) as server,
        server.connected() as (reader, writer),
    ):
        writer.write(HALF)
        assert (await read_reply(reader)).status == 408


async def test_too_many_halves_of_bodies_end_the_slowest_and_no_other() -> None:
    arriving = ledger.Ledger(5, SECONDS_MAX)
    async with (
        serving(arriving=arriving) as server,
        server.connected() as (slow, one),
        server.connected() as (_, other),
    ):
        one.write(HALF)
        await _until(lambda: arriving.bytes > 0)
        other.write(HALF)
        assert (await read_reply(slow)).status == 408
        assert arriving.bytes == 3
        assert (await server.ask("GET", f"{P}/status")).status == 200


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(int(SECONDS_MAX / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true")


async def _stuck(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Somebody who asks for more than the system buffers, and takes none of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    return reader, writer


async def _rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """How much there is to be taken, up to the end of the connection or of the answer."""
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    taken = 0
    with contextlib.suppress(ConnectionError):
        while taken < LARGE_BYTES and (block := await reader.read(LARGE_BYTES)):
            taken += len(block)
    return taken


async def test_an_answer_that_nobody_takes_is_let_go_and_the_connection_with_it() -> None:
    leaving = ledger.Ledger(10 * LARGE_BYTES, 0.2)
    async with serving(leaving=leaving) as server:
        reader, writer = await _stuck(server)
        await _until(lambda: leaving.bytes > 0)
        await _until(lambda: leaving.bytes == 0)
        assert await _rest(reader, writer) < LARGE_BYTES
        writer.transport.abort()


async def test_too_many_answers_that_nobody_takes_end_the_oldest() -> None:
    leaving = ledger.Ledger(2 * LARGE_BYTES, SECONDS_MAX)
    async with serving(leaving=leaving) as server:
        stuck = [await _stuck(server) for _ in range(5)]
        await _until(lambda: leaving.bytes == 2 * LARGE_BYTES)
        assert (await server.ask("GET", "/large")).status == 200
        assert await _rest(*stuck[0]) < LARGE_BYTES
        for _, writer in stuck:
            writer.transport.abort()


async def test_a_client_that_leaves_in_the_middle_is_nobodys_error(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with server.connected() as (_, writer):
        writer.write(HALF)
        await writer.drain()
    assert (await server.ask("GET", f"{P}/status")).status == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    "nonsense",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"FOO /api/v1/network/status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/network/st\xffatus HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/network/status HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        (
            b"POST /api/v1/network/training/claim HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        ),
        (
            b"POST /api/v1/network/training/claim HTTP/1.1\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"
        ),
    ],
)
async def test_what_is_no_http_is_a_400_without_a_trace_in_the_log(
    server: Server, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.connected() as (reader, writer):
        writer.write(nonsense)
        assert (await read_reply(reader)).status == 400
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    "target", ["*", "/", "//", "//x/", "/%", "/%ff/", "/%00", "http://x/y/", "/?", "/#/", "/../.."]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PATCH", "CONNECT"])
async def test_no_method_and_target_whatever_make_the_server_fail(
    server: Server, method: str, target: str
) -> None:
    assert (await server.ask(method, target)).status in (400, 404, 405)


async def test_a_host_that_cannot_be_repeated_in_a_redirect_is_not(server: Server) -> None:
    async with server.connected() as (reader, writer):
        writer.write(f"GET {P}/status/ HTTP/1.1\r\nHost: a\xff\r\n\r\n".encode("latin-1"))
        assert (await read_reply(reader)).status in (400, 404)


# ── connections ──


async def test_a_connection_too_many_is_told_so_and_one_that_leaves_makes_room() -> None:
    runner = web.AppRunner(http.application(ROUTES), access_log=None)
    await runner.setup()
    assert runner.server is not None
    listener = await http.listen(runner.server, "127.0.0.1", 0, connections_max=2)
    try:
        crowd = Server(listener.sockets[0].getsockname()[1])
        async with crowd.connected() as (first, leaving), crowd.connected() as (second, writer):
            ask = f"GET {P}/status HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            for reader, to in ((first, leaving), (second, writer)):
                to.write(ask)
                assert (await read_reply(reader)).status == 200
            async with crowd.connected() as (reader, _):
                turned = await read_reply(reader)
            assert (turned.status, turned.headers["retry-after"]) == (503, "2")
            assert "connections" in json.loads(turned.body)["detail"]
            leaving.close()
            async with asyncio.timeout(SECONDS_MAX):
                while (await crowd.ask("GET", f"{P}/status")).status == 503:
                    pass  # the server has yet to hear of it
    finally:
        listener.close()
        await runner.cleanup()
