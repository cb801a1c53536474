"""The sweep of the artifact store: what no log names any more, or nothing needs, goes.

A child process finds out what that is (`core.survey`), as of a grace ago. Here, where also the desk
is, what somebody relies on meanwhile is left alone (`core.promises`); of the rest some hundred
messages at a time are written down, and once that is durable they are deleted. Whoever dies between
leaves them to the next sweep.
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from core import commands, errors, platforms, runtime
from core.chunks import DESK, ChunkStore
from core.promises import GRACE_SECONDS_MIN, SHORT_SECONDS, Promises
from core.room import STREAM_SHARE_MAX, Filling
from core.survey import Dead, Overview
from gateway.usage import Usage

log = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600.0
SLICE = 500
"""Messages told of by one event, which has room for all their digests."""
DELETES_AT_ONCE = 16
LOOK_SECONDS = 60.0
SWEEP_SECONDS = 3600.0
PRESSED_SECONDS = 600.0
"""Between two sweeps, and where the store fills up."""
PRESSED_SHARE = 0.6
"""Of the store's bound, or a worker's: what is not needed stays no longer than is safe then."""
SURVEY_SECONDS_MAX = 600.0
BY = "sweeper"

T = TypeVar("T")
_overview = msgspec.json.Decoder(Overview).decode
_dead = msgspec.json.Decoder(Dead).decode


class Access(NamedTuple):
    """Where a survey finds log and store, and with which credentials."""

    url: str
    control: Path
    fleet: Path
    artifacts: str = ""


class Survey(Protocol):
    """A `core.survey` on its way, inside its block. Implementation: ChildSurvey."""

    async def __aenter__(self) -> "Survey": ...

    async def __aexit__(self, *_: object) -> None: ...

    async def overview(self) -> Overview:
        """What was found, in numbers. Raises Unavailable."""
        ...

    def dead(self) -> AsyncIterator[list[Dead]]:
        """What nothing needs, at most SLICE at a time, manifests first."""
        ...


@dataclass
class Sweep:
    """What a sweep came to; of a dry run, what one would take. `spared` are chunks that somebody
    relies on. `unfinished` says why it ended early, "" where it did not."""

    overview: Overview
    chunks: int = 0
    bytes: int = 0
    spared: int = 0
    unfinished: str = ""
    moment: int = 0
    """What came later goes only if nobody ever asked about it."""


@dataclass
class Sweeper:
    """Sweeps every so often, and when asked to."""

    door: runtime.Runtime
    store: ChunkStore
    promises: Promises
    survey: Callable[[int, int], Survey]
    """What nothing needed since a moment, in microseconds since 1970, and was there before one."""
    usage: Usage
    filling: Callable[[], Awaitable[Mapping[str, Filling]]]
    """How full what holds artifacts is. May raise Unavailable."""
    grace_seconds: float = GRACE_SECONDS
    now: Callable[[], int] = runtime.now
    chunks_swept: int = 0
    bytes_swept: int = 0
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        assert self.grace_seconds >= GRACE_SECONDS_MIN, "what is about to be named must stay"

    async def run(self) -> None:
        """Sweep every hour, or more often where the store fills up, for ever."""
        loop = asyncio.get_running_loop()
        swept_at = loop.time()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            passed = loop.time() - swept_at
            if passed >= PRESSED_SECONDS and await self._sweep_if_due(passed):
                swept_at = loop.time()

    async def _sweep_if_due(self, passed: float) -> bool:
        try:
            if passed < SWEEP_SECONDS and not await self._is_pressed():
                return False
            done = await self.sweep()
            words = f"not all: {done.unfinished}" if done.unfinished else "nothing needed them"
            swept = f"{done.chunks} chunks, {done.bytes} bytes, are swept"
            log.info("%s (%s)", swept, words, extra={"action": "sweep"})
        except (errors.AghsanError, OSError) as error:
            log.warning("nothing is swept now: %s", error, extra={"action": "sweep"})
        return True

    async def _is_pressed(self) -> bool:
        return max(await self._share(), self.usage.fullest_share) >= PRESSED_SHARE

    async def _share(self) -> float:
        """How full the store is."""
        found = (await self.filling()).values()
        return max((one.bytes / one.bytes_max for one in found if one.bytes_max > 0), default=0.0)

    async def sweep(self, *, dry_run: bool = False) -> Sweep:
        """Take away what nothing needs, and none of what somebody relies on.

        Raises Conflict while another sweep is under way, Unavailable where log or store do not
        answer or the survey cannot be made.
        """
        if self._busy.locked():
            raise errors.Conflict("a sweep is under way already; ask again when it is over")
        async with self._busy:
            began = self.promises.clock()
            # What is decided already is in the log that the survey reads.
            await self.door.until_durable()
            grace = GRACE_SECONDS_MIN if await self._is_pressed() else self.grace_seconds
            moment = self.now() - int(grace * 1e6)
            is_full = await self._share() >= STREAM_SHARE_MAX
            async with self.survey(moment, self.now() if is_full else moment) as survey:
                sweep = Sweep(await survey.overview(), moment=moment)
                async for some in survey.dead():
                    free = [one for one in some if not self._is_kept(one, sweep)]
                    sweep.spared += len(some) - len(free)
                    sweep.unfinished = self._why_not(began)
                    if sweep.unfinished:
                        break
                    if free and not dry_run:
                        await self._sweep_some(free, sweep)
                    elif free:
                        sweep.chunks += len(free)
                        sweep.bytes += sum(one.bytes for one in free)
            return sweep

    def _is_kept(self, one: Dead, sweep: Sweep) -> bool:
        if one.at < sweep.moment:
            return self.promises.is_kept(one.writer, one.digest)
        return one.writer == DESK or not self.promises.is_unheard_of(one.writer, one.digest)

    def _why_not(self, began: float) -> str:
        if self.promises.clock() - began > SHORT_SECONDS:
            return "it took too long to go on by what was found at its beginning"
        if self.promises.is_blind:
            return "agents rely on more stored chunks than can be remembered; sweep again later"
        return ""

    async def _sweep_some(self, some: list[Dead], sweep: Sweep) -> None:
        """Write down what goes, then delete it."""
        command = commands.SweepArtifacts(
            chunks=len(some),
            bytes=sum(one.bytes for one in some),
            manifests=[one.digest for one in some if one.named],
        )
        await self.door.execute(command, runtime.new_meta(BY), runtime.nothing)
        for first in range(0, len(some), DELETES_AT_ONCE):
            part = some[first : first + DELETES_AT_ONCE]
            for one, gone in zip(
                part, await asyncio.gather(*(self._delete(one, sweep) for one in part)), strict=True
            ):
                sweep.spared += not gone
                sweep.chunks += gone
                sweep.bytes += gone * one.bytes
                self.chunks_swept += gone
                self.bytes_swept += gone * one.bytes

    async def _delete(self, one: Dead, sweep: Sweep) -> bool:
        """Delete a message, unless somebody came to rely on it; whether it is gone."""
        if self._is_kept(one, sweep) or self.promises.is_blind or self.door.stepped_down:
            return False
        with self.promises.leaving(one.writer, one.digest):
            await self.store.sweep(one.item)
        self.usage.less(one.writer, one.bytes)
        return True


class ChildSurvey:
    """A survey on its way, in a process of its own."""

    def __init__(self, access: Access, moment: int, before: int) -> None:
        named = [*map(str, access), str(moment), str(before)]
        self._argv = [sys.executable, "-m", "core.survey", *named]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> "ChildSurvey":
        self._process = platforms.spawn(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None, "it was entered"
        self._process.kill()
        await asyncio.to_thread(self._process.communicate)

    async def overview(self) -> Overview:
        """As Survey.overview."""
        assert self._process is not None, "it was entered"
        assert self._process.stdout is not None, "asked for"
        try:
            async with asyncio.timeout(SURVEY_SECONDS_MAX):
                line = await asyncio.to_thread(self._process.stdout.readline)
        except TimeoutError:
            raise errors.Unavailable(
                f"what is needed was not found out within {SURVEY_SECONDS_MAX:g} s; try again when "
                "the machine has less to do"
            ) from None
        if not line:
            _, said = await asyncio.to_thread(self._process.communicate)
            words = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise errors.Unavailable(f"what is needed cannot be found out: {words or 'it died'}")
        return _decoded(line, _overview)

    async def dead(self) -> AsyncIterator[list[Dead]]:
        """As Survey.dead."""
        while some := await asyncio.to_thread(self._read_some):
            yield some

    def _read_some(self) -> list[Dead]:
        assert self._process is not None, "it was entered"
        assert self._process.stdout is not None, "asked for"
        lines = (self._process.stdout.readline() for _ in range(SLICE))
        return [_decoded(line, _dead) for line in lines if line]


def _decoded(line: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(line)
    except msgspec.MsgspecError as error:
        raise errors.Unavailable(
            f"the process that finds out what is needed broke off: {line[-80:]!r}"
        ) from error
