"""The loop that keeps snapshots: takes them from a copy beside all else, and starts from them."""

import asyncio
import contextlib
import logging
import secrets
import time

from core import errors, runtime, snapshots
from core.log import Log
from core.projections.state import State
from core.snapshots import Kept, SnapshotStore

log = logging.getLogger(__name__)

EVENTS_MIN = 20_000
ROWS_PER_EVENT = 4
"""A snapshot writes every row, so it waits for events in proportion to rows: then taking one costs
a bounded share of what the events cost, and folding what came since about as much as loading."""
PAUSE_SECONDS_MIN = 60.0
CHECK_SECONDS = 1.0
KEPT = 2
BYTES_MAX = 1024 * 1024 * 1024
"""Of one snapshot: OBJ_SNAPSHOTS holds those kept and one that is being taken."""
LAST_SECONDS_MAX = 1.0
LAST_EVENTS_MIN = 1_000


class Keeper:
    """Takes snapshots into a store, and gives back the state of the newest that can be used."""

    def __init__(self, store: SnapshotStore, log_: Log) -> None:
        self._store = store
        self._log = log_
        self._seq = 0
        """Up to where a snapshot is known to reach."""
        self._tried_at = time.monotonic()
        self._taking = asyncio.Lock()
        # Now, while the text on disk is that of the program that runs; without one no snapshot is
        # taken, and that is said then.
        with contextlib.suppress(errors.SnapshotUnusable):
            snapshots.schema()

    # ── starting from one ──

    async def newest(self) -> State:
        """The state of the newest snapshot of this log and program; a fresh one if there is none.

        What is wrong with a snapshot, or their store, is logged, and never stops a start. Raises
        LogUnavailable where the log does not answer: asked again, it spares folding all of it.
        """
        try:
            last = await self._log.last_seq()
            for kept in await self._store.kept():
                try:
                    state = await self._restore(kept, last)
                except errors.SnapshotUnusable as error:
                    _say_unused(kept.name, error)
                else:
                    self._seq = state.seq
                    return state
        except errors.LogUnavailable:
            raise
        except errors.Unavailable as error:
            log.warning("snapshots cannot be read: %s", error, extra={"action": "snapshot"})
        log.info("no snapshot is used, the whole log is folded", extra={"action": "snapshot"})
        return State()

    async def _restore(self, kept: Kept, last: int) -> State:
        began = time.perf_counter()
        head = snapshots.decode_head(kept.head)
        await self._require_of_this_log(head, last)
        state = await restore(self._store, kept.name, head)
        log.info(
            "the state at %d of %d comes from a snapshot: %d rows in %.1f s",
            state.seq,
            last,
            head.rows,
            time.perf_counter() - began,
            extra={"action": "snapshot", "seq": state.seq},
        )
        return state

    async def _require_of_this_log(self, head: snapshots.Head, last: int) -> None:
        if head.seq > last:
            raise errors.SnapshotUnusable(f"it is of {head.seq}, and the log ends at {last}")
        record = await self._log.get(head.seq)
        if record is None or snapshots.fingerprint(record) != head.record:
            raise errors.SnapshotUnusable(
                f"the log holds another record at {head.seq} than when it was taken"
            )

    # ── taking one ──

    async def run(self, door: runtime.Runtime) -> None:
        """Take one whenever enough has come since the last and there is room for it."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self._is_due(door.state) and not door.shortage and not door.unanswered_seconds:
                await self._take_or_say(door)

    async def take_last(self, door: runtime.Runtime) -> None:
        """Take one before a clean stop, if there is something new; it is not waited for long."""
        if door.durable_seq - self._seq < LAST_EVENTS_MIN:
            return
        try:
            async with asyncio.timeout(LAST_SECONDS_MAX):
                await self._take_or_say(door)
        except TimeoutError:
            log.info("no time for a last snapshot", extra={"action": "snapshot"})

    def _is_due(self, state: State) -> bool:
        rows = len(state.tasks.table) + len(state.rounds.table)
        enough = state.seq - self._seq >= max(EVENTS_MIN, rows // ROWS_PER_EVENT)
        return enough and time.monotonic() - self._tried_at >= PAUSE_SECONDS_MIN

    async def _take_or_say(self, door: runtime.Runtime) -> None:
        try:
            await self.take(door)
        except errors.AghsanError as error:  # whatever it is, the log holds all that counts
            log.warning("no snapshot was taken: %s", error, extra={"action": "snapshot"})
        finally:
            self._tried_at = time.monotonic()

    async def take(self, door: runtime.Runtime) -> snapshots.Head:
        """Store a snapshot of the state as it is now, once that is durable; keep the newest two.

        Raises Unavailable, LogFull, SnapshotUnusable where this program can make none.
        """
        async with self._taking:
            return await self._take(door)

    async def _take(self, door: runtime.Runtime) -> snapshots.Head:
        began = time.perf_counter()
        snapshots.schema()
        copied = await _copied(door)
        record = await self._log.get(copied.seq)
        if record is None:
            raise errors.Unavailable(f"the log does not give back {copied.seq}")
        await self._prune()  # what an earlier one left unfinished
        name = f"{copied.seq}-{secrets.token_hex(4)}"
        head = snapshots.head_of(copied, record, await self._add_parts(name, copied))
        await self._store.finish(name, snapshots.encode_head(head))
        self._seq = head.seq
        await self._prune()
        log.info(
            "a snapshot of the state at %d: %d rows, %d bytes in %.1f s",
            head.seq,
            head.rows,
            head.bytes,
            time.perf_counter() - began,
            extra={"action": "snapshot", "seq": head.seq},
        )
        return head

    async def _add_parts(self, name: str, copied: snapshots.Copy) -> list[snapshots.Part]:
        parts: list[snapshots.Part] = []
        size = 0
        pieces = snapshots.dump(copied)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            size += piece.part.bytes
            if size > BYTES_MAX:
                raise errors.LogFull(f"it has more than {BYTES_MAX} bytes")
            await self._store.add(name, piece.data)
            parts.append(piece.part)
        return parts

    async def _prune(self) -> None:
        kept = await self._store.kept()
        await self._store.prune([one.name for one in kept[:KEPT]])


async def _copied(door: runtime.Runtime) -> snapshots.Copy:
    """A copy of the state that is durable, made in slices with turns for others in between."""
    copier = snapshots.Copier(door.state)
    try:
        for _ in copier.ahead():
            await asyncio.sleep(0)
        return await door.read(copier.finish)
    finally:
        copier.close()


async def restore(store: SnapshotStore, name: str, head: snapshots.Head) -> State:
    """The state of a stored snapshot. Raises SnapshotUnusable, Unavailable."""
    loader = snapshots.Loader(head)
    async for data in store.parts(name):
        await asyncio.to_thread(loader.take, data)
    return loader.finish()


def _say_unused(name: str, error: errors.SnapshotUnusable) -> None:
    log.warning("the snapshot %s is not used: %s", name, error, extra={"action": "snapshot"})
