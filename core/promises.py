"""What the desk relies on in the artifact store, so that no sweep takes it away meanwhile.

A chunk that is stored already is not sent again: its agent was told that it is there, or the desk
found it while it checked a manifest that is about to be named. If it is old, and nothing else needs
it, the next sweep would take it. So whoever asks for a chunk promises first that it stays, and
takes the promise back where there is none, or one that was not there a while ago: no sweep looks at
what is young. (Not by the time that the store gives with a chunk: its headers are its writer's.)

Promises are bounded, and the oldest are forgotten. That costs an agent another upload; but what was
promised just now may be named in the log any moment, so if such a promise has to be forgotten,
nothing is swept for a while.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

GRACE_SECONDS_MIN = 3600.0
"""No sweep looks at what is younger, or was needed since: whoever reads an artifact, as a backup
does, has it by then."""
YOUNG_SECONDS = GRACE_SECONDS_MIN / 2
SHORT_SECONDS = GRACE_SECONDS_MIN / 4
"""Longer than an announcement or a sweep may take; with YOUNG_SECONDS still short of the grace."""
PROMISE_SECONDS = 24 * 3600.0
PROMISES_MAX = 100_000


class Promises:
    """Which chunks stay, whoever needs them or not."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        most: int = PROMISES_MAX,
    ) -> None:
        """`wall` is the clock by which the store says how old a chunk is."""
        self.clock = clock
        self.wall = wall
        self._most = most
        self._kept: dict[bytes, float] = {}
        """When each was promised last, oldest first."""
        self._missed: dict[bytes, float] = {}
        """When each was asked for in vain, by the wall clock: what came since is younger."""
        self._leaving: dict[bytes, asyncio.Event] = {}
        self._blind_until = 0.0
        self._forgetful_until = 0.0

    @property
    def is_blind(self) -> bool:
        """Whether something was forgotten that may be named in the log any moment."""
        return self.clock() < self._blind_until

    async def keep(self, writer: str, digest: str) -> None:
        """Promise that a chunk stays; returns once it is not just being swept."""
        key = _key(writer, digest)
        self._keep(key)
        while key in self._leaving:
            await self._leaving[key].wait()

    def settle(self, writer: str, digest: str, *, is_there: bool) -> None:
        """Take a promise back, once it is known that the chunk is not there, or is young."""
        key = _key(writer, digest)
        if not is_there:
            self._missed.pop(key, None)
            self._missed[key] = self.wall()
            if len(self._missed) > self._most:
                oldest = self._missed.pop(next(iter(self._missed)))
                if self.wall() - oldest < GRACE_SECONDS_MIN:
                    self._forgetful_until = self.clock() + GRACE_SECONDS_MIN
            self._kept.pop(key, None)
        elif key in self._missed and self.is_within(self._missed[key], YOUNG_SECONDS):
            self._kept.pop(key, None)

    def is_within(self, moment: float, seconds: float) -> bool:
        """Whether a moment of the wall clock, which may have been set, lies so little back."""
        return 0 <= self.wall() - moment < seconds

    def renew(self, writer: str, digest: str) -> None:
        """Promise anew what is promised."""
        key = _key(writer, digest)
        if key in self._kept:
            self._keep(key)

    def is_kept(self, writer: str, digest: str) -> bool:
        """Whether it was promised, not too long ago."""
        at = self._kept.get(_key(writer, digest))
        return at is not None and self.clock() - at < PROMISE_SECONDS

    def is_unheard_of(self, writer: str, digest: str) -> bool:
        """Whether nobody can be about to name a chunk, however young: it was not asked for within
        a grace. Who was told to send it before this process began sends it again."""
        key = _key(writer, digest)
        asked_at = self._missed.get(key)
        is_lately = asked_at is not None and self.wall() - asked_at < GRACE_SECONDS_MIN
        return not (is_lately or key in self._kept or self.clock() < self._forgetful_until)

    @contextlib.contextmanager
    def leaving(self, writer: str, digest: str) -> Iterator[None]:
        """Inside the block the chunk is being swept, and who wants to rely on it waits."""
        key = _key(writer, digest)
        over = self._leaving[key] = asyncio.Event()
        try:
            yield
        finally:
            self._leaving.pop(key, None)
            over.set()

    def _keep(self, key: bytes) -> None:
        now = self.clock()
        self._kept.pop(key, None)
        self._kept[key] = now
        if len(self._kept) > self._most:
            oldest = next(iter(self._kept))
            if now - self._kept.pop(oldest) < SHORT_SECONDS:
                self._blind_until = now + SHORT_SECONDS


def _key(writer: str, digest: str) -> bytes:
    return f"{writer}.{digest}".encode()  # a chunk that nobody asked for may have any name
