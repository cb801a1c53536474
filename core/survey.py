"""A survey of the artifact store: what is needed, by the log, and what may be swept.

As a program (`python -m core.survey URL CONTROL_CREDS FLEET_CREDS ARTIFACTS MOMENT BEFORE`) it
writes one line with an `Overview`, then one with each `Dead`, manifests first. So the control
process has it made: a thread that reads a million events would take turns with the control loop,
and keep the memory.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from core import chunks, errors, replay
from core.chunks import Item
from core.log import Log
from core.marks import Mark, Marks

READ_AT_ONCE = 16
NICENESS = 10


class Dead(msgspec.Struct, frozen=True, array_like=True):
    """A stored chunk that nothing needs. `named`: the log named it, as a checkpoint."""

    seq: int
    writer: str
    digest: str
    bytes: int
    at: int
    named: bool

    @property
    def item(self) -> Item:
        """As the store told of it."""
        return Item(self.seq, self.writer, self.digest, self.bytes, self.at)


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What a survey found, in numbers. `live_chunks` and `live_bytes` are needed by the artifacts
    that are, or too young to be swept; `lost` counts artifacts that are needed and not there, or
    damaged."""

    last_seq: int
    artifacts: int
    lost: int
    live_chunks: int
    live_bytes: int
    dead_chunks: int
    dead_bytes: int


class Survey(NamedTuple):
    """Everything found."""

    overview: Overview
    dead: list[Dead]


async def read_marks(log: Log) -> tuple[Marks, int]:
    """What a log names, and its end at the time of the call. Raises LogUnavailable, LogDamaged."""
    marks, last = Marks(), await log.last_seq()
    async for records in log.read(1, last):
        for record in records:
            marks.take(record)
    return marks, last


async def survey(log: Log, store: chunks.ChunkStore, moment: int, before: int = 0) -> Survey:
    """What nothing needed since this moment (microseconds since 1970), and is older, or at least
    was there `before`, where that is given.

    The log is read before the store: what is named meanwhile is young, or its promise is kept.
    Raises LogUnavailable, LogDamaged, Unavailable.
    """
    marks, last = await read_marks(log)
    named = {mark.digest for mark in marks.all}
    needed = {mark.digest: mark for mark in marks.needed_since(moment)}
    live, lost = await _chunks_of(store, needed)
    dead: list[Dead] = []
    found: set[tuple[str, str]] = set()
    live_chunks = live_bytes = 0
    async for one in store.stored():
        key = (one.writer, one.digest)
        is_double, is_needed = key in found, key in live
        found.add(key)
        if (is_needed and not is_double) or one.at >= (before or moment):
            live_chunks += 1
            live_bytes += one.bytes
        else:
            is_manifest = one.writer == chunks.DESK and one.digest in named
            dead.append(Dead(*one, is_manifest and not is_needed))
    dead.sort(key=lambda one: (not one.named, one.writer != chunks.DESK))
    overview = Overview(
        last_seq=last,
        artifacts=len(needed),
        lost=lost,
        live_chunks=live_chunks,
        live_bytes=live_bytes,
        dead_chunks=len(dead),
        dead_bytes=sum(one.bytes for one in dead),
    )
    return Survey(overview, dead)


async def _chunks_of(
    store: chunks.ChunkStore, needed: dict[str, Mark]
) -> tuple[set[tuple[str, str]], int]:
    """The messages that these artifacts are made of, and how many of them cannot be read."""
    live = {(chunks.DESK, digest) for digest in needed}
    lost = 0
    marks = list(needed.values())
    for first in range(0, len(marks), READ_AT_ONCE):
        some = marks[first : first + READ_AT_ONCE]
        read = await asyncio.gather(*(_manifest(store, one) for one in some))
        for mark, manifest in zip(some, read, strict=True):
            if manifest is not None:
                live.update((writer, digest) for digest, writer in manifest.places().items())
            elif mark.kind != "unknown":
                lost += 1
    return live, lost


async def _manifest(store: chunks.ChunkStore, mark: Mark) -> chunks.Manifest | None:
    try:
        return chunks.decode_manifest(await store.get(chunks.DESK, mark.digest))
    except (errors.NotFound, errors.ArtifactError):
        return None


async def _written(
    url: str, control: Path, fleet: Path, artifacts: str, moment: int, before: int
) -> None:
    access = replay.Access(url, control, fleet, running=False, artifacts=artifacts)
    async with replay.connect(access) as connected:
        found = await survey(connected.log, connected.store, moment, before)
    encode = msgspec.json.Encoder().encode
    sys.stdout.buffer.write(encode(found.overview) + b"\n")
    for one in found.dead:
        sys.stdout.buffer.write(encode(one) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """The program. What goes wrong is one line on stderr."""
    url, control, fleet, artifacts, moment, before = sys.argv[1:]
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        times = int(moment), int(before)
        asyncio.run(_written(url, Path(control), Path(fleet), artifacts, *times))
    except errors.AghsanError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
