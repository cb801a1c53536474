"""The way from one agent to the gateway, which a test can break."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from core import bus

BLOCK_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 32 * 1024
"""What a reset takes with it that the agent sent and the gateway has not: no more than this."""


class Way:
    """A port of its own behind which the gateway answers, as long as nothing is broken."""

    def __init__(self, host: str, port: int) -> None:
        self._gateway = (host, port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.sent_bytes = 0
        """By the agent, as far as it reached the gateway."""
        self.breaks_at: int | None = None
        """After how many of them every connection is reset, once; new ones are taken at once."""

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
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bus.LINGER_NONE)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up, out = await asyncio.open_connection(*self._gateway)
        except OSError:
            writer.transport.abort()
            return
        end: socket.socket = out.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        out.transport.set_write_buffer_limits(0)
        await asyncio.gather(self._send(reader, out), self._pass(up, writer))

    async def _send(self, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        """Pass on what the agent sends, up to where the way breaks."""
        self._writers.add(out)
        try:
            while block := await reader.read(BLOCK_BYTES):
                left = len(block) if self.breaks_at is None else self.breaks_at - self.sent_bytes
                out.write(block[:left])
                await out.drain()
                self.sent_bytes += min(left, len(block))
                if left < len(block):
                    self.breaks_at = None
                    self.reset()
                    await self.mend()
        except OSError:
            pass  # broken by the test, or by either end
        finally:
            self._writers.discard(out)
            out.close()

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
