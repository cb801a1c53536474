"""An event loop whose turns stay short, however many connections have something to say at once.

The usual selector hands over all that is ready, and the loop then reads from every one of them
before a timer or a waiting task has its turn: from some hundred connections that send bodies, two
tenths of a second. Here a turn takes a few. Linux keeps what is left at the head of its list, and
puts what it gave out at the tail, so everyone's turn comes. Elsewhere the usual loop is used.

How long a turn computes is counted here too: a loop that is late without having computed was not
given a processor, or waited for a disk or for another thread.
"""

import asyncio
import contextlib
import math
import select
import selectors
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

READY_MAX = 8
"""Connections that one turn reads from or writes to."""


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop for a process with many connections."""
    if sys.platform == "linux":
        return ShortTurns()
    return asyncio.new_event_loop()


def take_longest_seconds(loop: asyncio.AbstractEventLoop) -> float:
    """CPU time of the longest turn of a loop since this was last asked; 0.0 of a usual loop."""
    if sys.platform == "linux" and isinstance(loop, ShortTurns):
        return loop.few.take_longest_seconds()
    return 0.0


class Turnstile:
    """Lets one task pass in a turn of the loop, in the order they came: what each of them does next
    is little, and what all of them would do is not."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def passed(self) -> None:
        """Wait for a turn in which nobody else passes."""
        async with self._one:
            await asyncio.sleep(0)


if sys.platform == "linux":

    class FewAtOnce(selectors.BaseSelector):
        """Of what is ready, at most READY_MAX at once, each in its turn.

        `cpu_seconds` tells the processor time of the thread that selects.
        """

        def __init__(self, cpu_seconds: Callable[[], float] = time.thread_time) -> None:
            self._cpu_seconds = cpu_seconds
            self._turn_began = math.inf
            self._longest_seconds = 0.0
            self._epoll = select.epoll()
            self._keys: dict[int, selectors.SelectorKey] = {}
            self._by_file = _ByFile(self._keys)

        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            """Watch a file. Raises KeyError where it is watched already."""
            file = _descriptor(fileobj)
            if file in self._keys:
                raise KeyError(f"{fileobj!r} is registered already")
            self._epoll.register(file, _mask(events))
            key = self._keys[file] = selectors.SelectorKey(fileobj, file, events, data)
            return key

        def unregister(self, fileobj: Any) -> selectors.SelectorKey:
            """Watch it no longer; it may be closed already. Raises KeyError where it is not
            watched."""
            key = self._keys.pop(_descriptor(fileobj))
            with contextlib.suppress(OSError):  # closed meanwhile, and so forgotten by the system
                self._epoll.unregister(key.fd)
            return key

        def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            """Watch it for something else. Raises KeyError where it is not watched."""
            file = _descriptor(fileobj)
            before = self._keys[file]
            if before.events != events:
                self._epoll.modify(file, _mask(events))
            key = self._keys[file] = before._replace(events=events, data=data)
            return key

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait, in seconds, and tell what is ready. A turn ends here, and the next begins."""
            now = self._cpu_seconds()
            if now - self._turn_began > self._longest_seconds:
                self._longest_seconds = now - self._turn_began
            self._turn_began = now
            ready = []
            for file, mask in self._epoll.poll(timeout, READY_MAX):
                key = self._keys.get(file)
                if key is not None:
                    ready.append((key, _events(mask) & key.events))
            return ready

        def take_longest_seconds(self) -> float:
            """CPU time of the longest turn that ended since this was last asked."""
            taken, self._longest_seconds = self._longest_seconds, 0.0
            return taken

        def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
            """All that is watched, by descriptor; asked for by the file itself as well."""
            return self._by_file

        def get_key(self, fileobj: Any) -> selectors.SelectorKey:
            """How it is watched. Raises KeyError where it is not."""
            return self._keys[_descriptor(fileobj)]

        def close(self) -> None:
            """Watch nothing more."""
            self._epoll.close()
            self._keys.clear()

    class ShortTurns(asyncio.SelectorEventLoop):
        """A loop over such a selector."""

        def __init__(self) -> None:
            self.few = FewAtOnce()
            super().__init__(self.few)

    class _ByFile(Mapping[Any, selectors.SelectorKey]):
        def __init__(self, keys: dict[int, selectors.SelectorKey]) -> None:
            self._keys = keys

        def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
            return self._keys[_descriptor(fileobj)]

        def __iter__(self) -> Iterator[int]:
            return iter(self._keys)

        def __len__(self) -> int:
            return len(self._keys)

    def _mask(events: int) -> int:
        reads = select.EPOLLIN if events & selectors.EVENT_READ else 0
        return reads | (select.EPOLLOUT if events & selectors.EVENT_WRITE else 0)

    def _events(mask: int) -> int:
        # An error or a hang-up shows to whoever reads or writes.
        reads = selectors.EVENT_READ if mask & ~select.EPOLLOUT else 0
        return reads | (selectors.EVENT_WRITE if mask & ~select.EPOLLIN else 0)


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()
