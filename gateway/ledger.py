"""Bytes held for slow clients: bounded together, and each for a bounded time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from core import errors


class Ledger:
    """What is held for clients that have not sent, or not taken, the rest.

    Where it becomes too much, whoever takes longest gives way, so that the slow ones cannot keep
    the others out.
    """

    def __init__(self, bytes_max: int, seconds_max: float) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._places: dict[asyncio.Timeout, int] = {}

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[asyncio.Timeout]:
        """A place for one client inside the block. Raises TimeoutError when it has to give way."""
        async with asyncio.timeout(self._seconds_max) as place:
            self._places[place] = 0
            try:
                yield place
            finally:
                self.bytes -= self._places.pop(place, 0)

    def add(self, place: asyncio.Timeout, size: int) -> None:
        """So many bytes more are held for this client."""
        if place not in self._places:
            return  # it gives way already
        self._places[place] += size
        self.bytes += size
        self._make_room(1)

    @contextlib.contextmanager
    def kept(self, size: int) -> Iterator[None]:
        """So many bytes are held inside the block for one that is waited for by its client, not the
        other way round. Raises Overloaded where all others are of this kind, and too many."""
        self.bytes += size
        try:
            self._make_room(0)
            if self.bytes > self._bytes_max:
                raise errors.Overloaded(
                    f"requests of {self._bytes_max} bytes are in hand, the most that is taken; try "
                    "again"
                )
            yield
        finally:
            self.bytes -= size

    def _make_room(self, staying: int) -> None:
        while self.bytes > self._bytes_max and len(self._places) > staying:
            slowest = next(iter(self._places))
            self.bytes -= self._places.pop(slowest)
            if not slowest.expired():
                slowest.reschedule(asyncio.get_running_loop().time())
