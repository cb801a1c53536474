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

    def __init__(self, bytes_max: int, seconds_max: float | None, slow_bytes: int = 0) -> None:
        """Whoever holds less than `slow_bytes` has not begun yet, and gives no way."""
        self.bytes = 0
        self._bytes_max = bytes_max
        self._slow_bytes = slow_bytes
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
        begun = self._places[place] >= self._slow_bytes
        held = self._places[place] if begun else self._places.pop(place)
        self._places[place] = held + size
        self.bytes += size
        self._make_room(1)

    def less(self, place: asyncio.Timeout, size: int, left_max: int) -> None:
        """So many bytes, if it had them, are held no longer, and at most `left_max` still are: what
        is left has only begun."""
        held = self._places.pop(place, None)
        if held is None:
            return  # it gives way already
        left = min(max(0, held - size), left_max)
        self._places[place] = left
        self.bytes -= held - left

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
            begun = (one for one, held in self._places.items() if held >= self._slow_bytes)
            slowest = next(begun, None)
            if slowest is None:
                return
            self.bytes -= self._places.pop(slowest)
            if not slowest.expired():
                slowest.reschedule(asyncio.get_running_loop().time())
