"""`/nats`: NATS for agents that reach only the gateway's port, each connection a WebSocket.

Bytes pass as they are, one TCP connection to nats-server per WebSocket, so that the server sees
(and may limit, name or cut) every agent by itself. Every buffer is bounded: what one side does not
take is not read from the other, and who takes nothing for STALL_SECONDS_MAX is cut off. Messages on
their way are bounded as a whole, too: beyond HELD_BYTES_MAX the slowest gives way. Both ends have
TCP_NODELAY, which asyncio sets on every TCP connection.

nats-py reads whole WebSocket messages where it would read lines: the server's first lines, up to
the PONG that ends the handshake, therefore pass one line a message.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine

import aiohttp
from aiohttp import web

from core import errors
from gateway import http, ledger, problems

CONNECTIONS_MAX = 4_096
HELD_BYTES_MAX = 256 * 1024 * 1024
"""Of all messages together that have begun to arrive and that nats-server has not taken yet."""
OVERHEAD_BYTES = 64
"""At least what a message has around it: the head of its frame, a pong or two before it."""
MESSAGE_BYTES_MAX = 8 * 1024 * 1024 + 64 * 1024  # a full payload, its subject and protocol line
BUFFERED_BYTES_MAX = MESSAGE_BYTES_MAX + 512 * 1024
"""Of one connection: a message that is not whole, what waits behind another, one reading. What was
counted beyond was no message: pings, or the heads of many small frames."""
BLOCK_BYTES = 64 * 1024
GREETING_BYTES_MAX = 64 * 1024
CONNECT_SECONDS_MAX = 5.0
STALL_SECONDS_MAX = 30.0
CLOSE_SECONDS_MAX = 2.0
HEARTBEAT_SECONDS = 40.0
"""After so much silence a WebSocket is pinged; half as much later it is taken for dead."""

log = logging.getLogger(__name__)


class Relay:
    """WebSocket connections of agents and their counterparts at nats-server."""

    def __init__(
        self,
        nats_address: Callable[[], tuple[str, int]],
        connections_max: int = CONNECTIONS_MAX,
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        self._nats_address = nats_address
        self._connections_max = connections_max
        self._taken = 0
        self._open: set[web.WebSocketResponse] = set()
        self._closing = False
        self.cut = 0
        """Connections that had to give way."""
        self._held_bytes_max = held_bytes_max
        # Where it is too much, somebody holds more than an equal share of it.
        self._held = ledger.Ledger(held_bytes_max, None, held_bytes_max // connections_max)

    @property
    def held_bytes(self) -> int:
        """Of messages that nats-server has not taken yet."""
        return self._held.bytes

    @property
    def connections(self) -> int:
        """How many agents are connected through here now."""
        return self._taken

    def mount(self, app: web.Application, path: str = "/nats") -> None:
        """Serve at `path`, and let go of everybody when the application shuts down."""
        app.router.add_route("GET", path, self.handle)
        app.on_shutdown.append(self._shut_down)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Relay one connection until either end closes it.

        Raises Overloaded beyond the allowed number, Unavailable when nats-server cannot be reached.
        """
        socket = web.WebSocketResponse(
            max_msg_size=MESSAGE_BYTES_MAX,
            heartbeat=HEARTBEAT_SECONDS,
            timeout=CLOSE_SECONDS_MAX,
            compress=False,
        )
        if not socket.can_prepare(request):
            words = f"{request.path} speaks WebSocket only; connect a NATS client to ws://host/nats"
            return http.problem_response(problems.told(426, words, {"Upgrade": "websocket"}))
        if self._closing:
            raise errors.Unavailable("The gateway is stopping; try again when it is back")
        if self._taken >= self._connections_max:
            raise errors.Overloaded(
                f"{self._connections_max} agents are connected through this gateway, the most it "
                "relays; try again later or connect to nats-server directly"
            )
        self._taken += 1
        try:
            await self._relay(request, socket)
        finally:
            self._taken -= 1
        return socket

    async def _relay(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        reader, writer = await self._dial()
        transport = request.transport
        try:
            async with self._held.place() as place:
                if transport is not None:
                    arrived = functools.partial(self._held.add, place)
                    transport.set_protocol(_Counted(request.protocol, arrived))
                await socket.prepare(request)
                self._open.add(socket)
                taken = functools.partial(self._held.less, place, left_max=BUFFERED_BYTES_MAX)
                await _pump(socket, reader, writer, taken)
        except ConnectionError as error:
            log.debug("a relayed connection broke: %s", error, extra={"action": "relay_broken"})
        except TimeoutError:
            await self._cut_off(socket, transport)
        finally:
            self._open.discard(socket)
            writer.transport.abort()
            if transport is not None:
                # What was sent last, such as the server's reason, still gets its chance.
                asyncio.get_running_loop().call_later(CLOSE_SECONDS_MAX, transport.abort)

    async def _cut_off(
        self, socket: web.WebSocketResponse, transport: asyncio.Transport | None
    ) -> None:
        """End a connection that gives way; to close it in order would hold more of it."""
        self.cut += 1
        log.warning(
            "a connection was cut: messages of %d bytes were on their way through the relay, the "
            "most that is held, and this one's took longest",
            self._held_bytes_max,
            extra={"action": "relay_full"},
        )
        words = b"too many bytes on their way; send this again"
        closing = asyncio.ensure_future(_close(socket, aiohttp.WSCloseCode.TRY_AGAIN_LATER, words))
        await asyncio.sleep(0)  # it is told
        if transport is not None:
            transport.abort()
        await closing

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._nats_address()
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                return await asyncio.open_connection(host, port, limit=BLOCK_BYTES)
        except (OSError, TimeoutError) as error:
            raise errors.Unavailable(
                f"nats-server does not answer now ({error or 'no answer in time'}); try again"
            ) from error

    async def _shut_down(self, app: web.Application) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection and take no more; the agents' links try again."""
        self._closing = True
        going = aiohttp.WSCloseCode.GOING_AWAY
        await asyncio.gather(*(_close(one, going, b"stopping") for one in list(self._open)))


class _Counted(asyncio.Protocol):
    """Counts what arrives on a connection, and hands it on."""

    def __init__(self, receiver: asyncio.Protocol, arrived: Callable[[int], None]) -> None:
        self._receiver = receiver
        self._arrived = arrived

    def data_received(self, data: bytes) -> None:
        self._arrived(len(data))
        self._receiver.data_received(data)

    def eof_received(self) -> bool | None:
        return self._receiver.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.connection_lost(error)

    def pause_writing(self) -> None:
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        self._receiver.resume_writing()


async def _pump(
    socket: web.WebSocketResponse,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    taken: Callable[[int], None],
) -> None:
    """Relay both ways until one ends; then deliver what that one sent, and end the other. `taken`
    is told the bytes of each message that nats-server has."""
    up = asyncio.create_task(_quietly(_up(socket, writer, taken)))
    down = asyncio.create_task(_quietly(_down(reader, socket)))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if down.done():
            code = aiohttp.WSCloseCode.SERVICE_RESTART
            await _close(socket, code, b"nats-server closed the connection")
        else:
            await _finish(writer)
    finally:
        up.cancel()
        down.cancel()
        ends = await asyncio.gather(up, down, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _quietly(way: Coroutine[None, None, None]) -> None:
    try:
        await way
    except (OSError, TimeoutError) as error:  # an end that vanished, or takes nothing
        words = str(error) or f"nothing was taken for {STALL_SECONDS_MAX:g} s"
        log.debug("one way of the relay ended: %s", words, extra={"action": "relay_ended"})


async def _up(
    socket: web.WebSocketResponse, writer: asyncio.StreamWriter, taken: Callable[[int], None]
) -> None:
    """From the agent to nats-server, until the agent closes or sends anything but bytes."""
    while True:
        message = await socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            break
        writer.write(message.data)
        async with asyncio.timeout(STALL_SECONDS_MAX):
            await writer.drain()
        taken(len(message.data) + OVERHEAD_BYTES)
    if message.type is aiohttp.WSMsgType.TEXT:
        await _close(socket, aiohttp.WSCloseCode.UNSUPPORTED_DATA, b"NATS is binary")


async def _down(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    """From nats-server to the agent, until the server closes."""
    await _greet(reader, socket)
    while block := await reader.read(BLOCK_BYTES):
        await _send(socket, block)


async def _greet(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    """The server's lines up to its first PONG, each a message of its own."""
    rest, greeted = b"", False
    while not greeted and len(rest) < GREETING_BYTES_MAX:
        block = await reader.read(BLOCK_BYTES)
        if not block:
            break
        rest += block
        while not greeted and (end := rest.find(b"\n") + 1):
            line, rest = rest[:end], rest[end:]
            await _send(socket, line)
            greeted = line.startswith(b"PONG")
    if rest:
        await _send(socket, rest)


async def _send(socket: web.WebSocketResponse, block: bytes) -> None:
    async with asyncio.timeout(STALL_SECONDS_MAX):
        await socket.send_bytes(block)


async def _close(socket: web.WebSocketResponse, code: int, words: bytes) -> None:
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await socket.close(code=code, message=words)


async def _finish(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            writer.close()
            await writer.wait_closed()
