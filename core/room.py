"""Room for what is to come: watched, so that new work is turned away before there is none.

Two things run out: the disk, of which a reserve is kept for the results of what was begun, and the
bounds of the streams that refuse rather than forget. What nats-server 2.15.1 does on a full disk
was measured: appends get no answer, reads go on, and a stream that once failed to write takes
nothing for good, whatever room there is, until the server is restarted.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from core import errors, runtime
from core.nats_server import FREE_BYTES_MIN
from core.topology import MIB

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
LOOKS_PER_FILLING = 5
RESERVE_SHARE = 0.2
RESERVE_BYTES_MIN = 512 * MIB
RESERVE_BYTES_MAX = 2_048 * MIB
"""Of the disk: a fifth of it, more than nats-server needs to start, and no more than running tasks
can bring."""
RESUME_FACTOR = 1.25
STREAM_SHARE_MAX = 0.8
STREAM_SHARE_RESUME = 0.75
FULL_BYTES = 64 * MIB
MENDING_BYTES_MIN = FREE_BYTES_MIN + 64 * MIB
UNANSWERED_SECONDS_MAX = 8.0
MENDING_PAUSE_SECONDS = 15.0


_SWEPT = (
    "what nothing needs is swept in time, and work goes on then (`aghsan artifact gc --dry-run` "
    "says how much that is by now); or "
)
_RAISE = "raise its max_mib, and disk_mib of its account, in streams.yaml, and start again"
_WHAT = {
    "EVENTS": "the stream EVENTS holds",
    "CHUNKS": "the stream CHUNKS holds",
    "artifacts": "all artifacts take",
}
_ADVICE = {
    "EVENTS": _RAISE,
    "CHUNKS": _SWEPT + _RAISE,
    "artifacts": _SWEPT + "start again with a larger --quota-gib",
}


class Filling(NamedTuple):
    """What a stream holds, or all artifacts together, and the most it may."""

    bytes: int
    bytes_max: int


class Disk(NamedTuple):
    """The disk of the data directory."""

    free_bytes: int
    total_bytes: int


def reserve_bytes(disk: Disk) -> int:
    """What is kept free for the results of work that was begun."""
    share = int(disk.total_bytes * RESERVE_SHARE)
    return max(RESERVE_BYTES_MIN, min(RESERVE_BYTES_MAX, share))


def shortage(disk: Disk, streams: Mapping[str, Filling], *, short: bool) -> str:
    """Why there is no room for new work, "" where there is. Once `short`, some more room than was
    missed must come back, so that it does not change to and fro."""
    reserve = reserve_bytes(disk)
    resume = int(reserve * RESUME_FACTOR)
    is_short = disk.free_bytes < (resume if short else reserve)
    if is_short and disk.total_bytes < resume:
        return (
            "no room for new work: the disk of the data directory is too small, it has "
            f"{disk.total_bytes // MIB} MiB in all, and {resume // MIB} MiB have to be free; move "
            "the data directory to a larger one"
        )
    if is_short:
        return (
            f"no room for new work: {disk.free_bytes // MIB} MiB are free on the disk of the data "
            f"directory, and {reserve // MIB} MiB are kept so that what was begun can be saved; "
            f"make room there, and with {resume // MIB} MiB work goes on by itself"
        )
    share = STREAM_SHARE_RESUME if short else STREAM_SHARE_MAX
    for name, filling in streams.items():
        if filling.bytes >= filling.bytes_max * share:
            return (
                f"no room for new work: {_WHAT[name]} {filling.bytes // MIB} of at most "
                f"{filling.bytes_max // MIB} MiB, and the rest is kept for what was begun; "
                f"{_ADVICE[name]}"
            )
    return ""


@dataclass
class Mending:
    """When nats-server has to be restarted for the sake of a disk that was full. Times are seconds
    of one clock."""

    was_short: bool = False
    was_full: bool = False
    due_from: float = 0.0

    def is_due(self, now: float, free_bytes: int, *, short: bool, unanswered: float) -> bool:
        """Look once more: true where there is room again, and either the disk was seen full, after
        which any stream may have ceased to write, or an append is not answered in spite of it."""
        self.was_short |= short
        self.was_full |= free_bytes < FULL_BYTES
        broken = self.was_full or (self.was_short and unanswered >= UNANSWERED_SECONDS_MAX)
        if not broken or free_bytes < MENDING_BYTES_MIN or now < self.due_from:
            return False
        self.was_short, self.was_full = short, False
        self.due_from = now + MENDING_PAUSE_SECONDS
        return True


def _disk_of(path: Path) -> Disk:
    usage = shutil.disk_usage(path)
    return Disk(usage.free, usage.total)


@dataclass
class Watch:
    """Looks at the disk and the streams, and tells the door whether new work may come in."""

    door: runtime.Runtime
    data: Path
    filling: Callable[[], Awaitable[Mapping[str, Filling]]]
    """What the streams hold. May raise Unavailable."""
    disk_of: Callable[[Path], Disk] = _disk_of
    mending: Mending = field(default_factory=Mending)
    free_bytes: int = 0
    _streams: Mapping[str, Filling] = field(default_factory=dict)
    _looks: int = 0

    async def run(self, say: Callable[[str], None], mend: Callable[[], None]) -> None:
        """Look, for ever: `say` a line when it changes, `mend` a server that was on a full disk."""
        while True:
            before = self.door.shortage
            await self.look()
            if self.door.shortage and not before:
                say(self.door.shortage)
            elif before and not self.door.shortage:
                say("there is room again: new work is taken")
            if self.mending.is_due(
                time.monotonic(),
                self.free_bytes,
                short=bool(self.door.shortage),
                unanswered=self.door.unanswered_seconds,
            ):
                mend()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once."""
        disk = await asyncio.to_thread(self.disk_of, self.data)
        self.free_bytes = disk.free_bytes
        if self._looks % LOOKS_PER_FILLING == 0:
            try:
                self._streams = await self.filling()
            except errors.Unavailable as error:
                log.info("the streams cannot be asked: %s", error, extra={"action": "room"})
        self._looks += 1
        self.door.shortage = shortage(disk, self._streams, short=bool(self.door.shortage))
