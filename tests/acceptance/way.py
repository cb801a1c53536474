"""The way from one agent to the gateway, which a test can break."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

BLOCK_BYTES = 64 * 1024
_LINGER_NONE = struct.pack("ii", 1, 0)


class Way:
    """A port of its own behind which the gateway answers, as long as nothing is broken."""

    def __init__(self, host: str, port: int) -> None:
        self._gateway = (host, port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def origin(self) -> str:
        """Where an agent reaches the gateway."""
        return f"http://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        """Connections are taken (again)."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def reset(self) -> None:
        """Every connection is reset, at both ends; new ones are refused."""
        assert self._server is not None, "mended first"
        self._server.close()
        for writer in self._writers:
            end: socket.socket = writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up, out = await asyncio.open_connection(*self._gateway)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pass(reader, out), self._pass(up, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while block := await reader.read(BLOCK_BYTES):
                writer.write(block)
                await writer.drain()
        except OSError:
            pass  # broken by the test, or by either end
        finally:
            self._writers.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def to(host: str, port: int) -> AsyncIterator[Way]:
    """A way that is whole, for as long as the block lasts."""
    way = Way(host, port)
    await way.mend()
    try:
        yield way
    finally:
        way.reset()
