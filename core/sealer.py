"""The loop that seals: reads back what the writer stored, and has it sealed."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from core import commands, errors, runtime, seals
from core.log import Log
from core.projections.state import Sealed

log = logging.getLogger(__name__)

SEAL_EVENTS = 1_000
SEAL_SECONDS = 10.0
SEAL_EVENTS_MAX = 100_000
"""In one seal, so that what is read back for it has a bound."""
LEAVES_AT_ONCE = 500
"""Hashed before others have their turn."""
CHECK_SECONDS = 0.5
LAST_SECONDS_MAX = 0.8


class Sealer:
    """Seals what the writer appended: by number, by time, and once more at the end."""

    def __init__(self, door: runtime.Runtime, store: Log, data: Path) -> None:
        self._door = door
        self._store = store
        self._data = data
        self._sealed_at = time.monotonic()

    async def run(self) -> None:
        """Seal whenever enough has come, or enough time has passed with something new."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            waiting = self._unsealed()
            long_ago = time.monotonic() - self._sealed_at >= SEAL_SECONDS
            is_due = waiting >= SEAL_EVENTS or (waiting and long_ago)
            if is_due and not self._door.unanswered_seconds:
                with contextlib.suppress(errors.Conflict):  # the log grew by a seal of another
                    await self._seal_or_say()

    def _unsealed(self) -> int:
        """How many durable records no seal covers, a last seal itself aside."""
        sealed = self._door.state.sealed
        last = self._door.durable_seq
        return 0 if last == sealed.seq == sealed.last + 1 else last - sealed.last

    async def _seal_or_say(self) -> None:
        try:
            await self.seal()
        except (errors.Unavailable, errors.LogFull) as error:
            log.info("not sealed now: %s", error, extra={"action": "seal"})

    async def seal_last(self) -> None:
        """Seal the end of the log before a clean stop, which does not wait for it for long."""
        try:
            async with asyncio.timeout(LAST_SECONDS_MAX):
                await self._seal_or_say()
        except (TimeoutError, errors.LogDamaged, errors.Conflict) as error:
            log.warning("the end is not sealed: %s", error, extra={"action": "seal"})

    async def seal(self) -> None:
        """Read back what is not sealed, seal it, and move the anchor.

        Raises LogDamaged where the log does not give back what was stored.
        """
        if not self._unsealed():
            return
        before = self._door.state.sealed
        last = min(self._door.durable_seq, before.last + SEAL_EVENTS_MAX)
        leaves = await self._leaves(before, last)
        command = commands.SealLog(
            first=before.last + 1,
            last=last,
            digest=seals.chain(before.digest, leaves),
            previous=before.digest,
        )
        meta = runtime.new_meta("sealer")
        sealed = await self._door.execute(command, meta, lambda state: state.sealed)
        self._sealed_at = time.monotonic()
        anchor = seals.Anchor(
            log=await seals.identity_of(self._store),
            seq=sealed.seq,
            last=sealed.last,
            digest=sealed.digest,
            at=meta.now,
        )
        await asyncio.to_thread(seals.write_anchor, self._data, anchor)

    async def _leaves(self, before: Sealed, last: int) -> list[bytes]:
        leaves: list[bytes] = []
        async for records in self._store.read_stored(before.last + 1, last):
            for first in range(0, len(records), LEAVES_AT_ONCE):
                leaves += [seals.leaf(one) for one in records[first : first + LEAVES_AT_ONCE]]
                await asyncio.sleep(0)
        if len(leaves) != last - before.last:
            raise errors.LogDamaged(
                f"the log gives back {len(leaves)} records of {before.last + 1} to {last}; "
                "`aghsan audit` names the first that is missing"
            )
        return leaves
