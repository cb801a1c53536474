"""Virtual time: a loop whose clock jumps to the next timer, and processes that stop and die on it.

Every choice comes from one seed, so that a seed gives the same steps in the same order.
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import random
import secrets
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, TypeVarTuple, Unpack
from unittest import mock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_US = 1_700_000_000_000_000
"""The wall clock at virtual time 0."""
NOBODY = contextvars.Context()
"""The context of what is no process of ours: the network, the servers, the hand of fate."""
_PROCESS: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")


class Stuck(Exception):
    """Nothing is left to happen, and something is still waited for."""


class Task(asyncio.Task[Any]):
    """A task that hashes by its number: a set of them has the same order in every run."""

    def __init__(self, coroutine: Any, *, number: int, **more: Any) -> None:
        self._number = number
        super().__init__(coroutine, **more)

    def __hash__(self) -> int:
        return self._number


class Process:
    """What can be paused and killed as a whole: everything that was started inside it."""

    def __init__(self, loop: "Loop", name: str) -> None:
        self.name = name
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self.stops = False
        """Whether its steps are kept back: it is paused, or dead."""
        self.dead = False
        self.silent = False
        """Whether it died with its machine, so that nobody closed its connections."""
        self.stood_still: list[tuple[float, float]] = []
        """From when to when it was paused."""
        self.on_death: list[Callable[[], None]] = []
        self._loop = loop
        self._held: list[asyncio.Handle] = []
        self._since = 0.0

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run something inside it."""
        return self._loop.create_task(coroutine, context=self.context)

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep a step back, for when it goes on."""
        self._held.append(handle)

    def pause(self) -> None:
        """As SIGSTOP: time goes on, it does not."""
        if not self.stops:
            self.stops, self._since = True, self._loop.now

    def resume(self) -> None:
        """As SIGCONT: what came meanwhile is done now, in order. Nothing wakes the dead."""
        if self.stops and not self.dead:
            self.stood_still.append((self._since, self._loop.now))
            self._go_on()

    def kill(self, *, silently: bool = False) -> None:
        """As SIGKILL, or `silently` as a power cut: no further step, not even a last one."""
        if not self.dead:
            self.stops = self.dead = True
            self.silent = silently
            for tell in self.on_death:
                tell()

    def bury(self) -> None:
        """Once all is over: let what was cut short come to an end, so that nothing is left."""
        self._go_on()

    def _go_on(self) -> None:
        self.stops = False
        held, self._held = self._held, []
        self._loop.do_next(held)


def current() -> Process:
    """The process whose step this is."""
    return _PROCESS.get()


class Loop(asyncio.BaseEventLoop):
    """An asyncio loop that never waits: where nothing is ready, it is time for the next timer."""

    # Of asyncio's own loop, which says nothing of them to a type checker.
    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.processes: list[Process] = []
        self._numbers = itertools.count(1)
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.set_task_factory(self._make_task)

    def process(self, name: str) -> Process:
        """A new process."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def time(self) -> float:
        return self.now

    def after(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Let something happen that belongs to no process."""
        self.call_at(self.now + seconds, callback, *args, context=NOBODY)

    def do_next(self, handles: list[asyncio.Handle]) -> None:
        """Take steps that were kept back."""
        self._ready.extend(handles)

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Threads are no part of it: what would go to one is done at once."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """It never sleeps, so that nobody has to wake it."""

    def _make_task(self, _: object, coroutine: Any, **more: Any) -> Task:
        return Task(coroutine, loop=self, number=next(self._numbers), **more)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's, over tuples, which compare several times faster than its handles."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise Stuck(f"nothing is left to happen at {self.now:.3f} s")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            ready.append(heapq.heappop(timers)[2])
        self.steps += len(ready)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.stops:
                process.hold(handle)
            else:
                handle._run()


class Wall:
    """The wall clock of the machines, which can be set."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.offset_us = 0

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return EPOCH_US + int(self._loop.now * 1e6) + self.offset_us


@contextlib.contextmanager
def installed(loop: Loop, wall: Wall, choices: random.Random) -> Iterator[None]:
    """Inside the block clocks show virtual time, and random ids come from the seed."""

    def hexadecimal(nbytes: int | None = None) -> str:
        return choices.randbytes(nbytes or 32).hex()

    replacements: list[tuple[object, str, object]] = [
        (time, "time_ns", lambda: wall.now_us() * 1_000),
        (time, "time", lambda: wall.now_us() / 1e6),
        (time, "monotonic", loop.time),
        (time, "perf_counter", loop.time),
        (secrets, "token_hex", hexadecimal),
        (secrets, "randbits", choices.getrandbits),
        (uuid, "uuid4", lambda: uuid.UUID(int=choices.getrandbits(128))),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, replacement in replacements:
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield
