"""How much of the artifact store is used, by whom, and what that leaves to each.

What a worker was told to send counts at once, by its own word, and what control stores itself; what
was swept no more. Every few seconds what came to CHUNKS is looked at: what was told is put right,
and what nobody asked about counts too. Now and then all that is stored is counted anew.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from core import errors
from core.chunks import ARTIFACT_BYTES_MAX, DESK, ChunkStore
from core.room import Filling
from core.topology import MIB

log = logging.getLogger(__name__)

RESULTS_SHARE = 0.1
"""Of a quota, kept for the results of what was begun."""
COUNT_SECONDS = 3600.0
RETRY_SECONDS = 60.0
LOOK_SECONDS = 10.0
TOLD_MAX = 100_000
UNASKED_BYTES_MAX = ARTIFACT_BYTES_MAX
"""Of one writer: as much may be on its way when control starts, which then does not know it."""


class Quotas(NamedTuple):
    """The most bytes that all artifacts, and those of one worker, may take; 0 is no bound."""

    total_bytes: int = 0
    worker_bytes: int = 0

    def completed(self, bound: int) -> "Quotas":
        """These, and for what is not asked for all that a store may hold, to any worker too."""
        total = self.total_bytes or bound
        return Quotas(total, self.worker_bytes or total)


NO_QUOTAS = Quotas()


class _Told(NamedTuple):
    """A chunk that is booked and was not seen to come: its bytes, and after how many counts."""

    bytes: int
    counts: int


class Usage:
    """Bytes stored, by writer."""

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self.refused = 0
        """Checkpoints, results and claims that found no room."""
        self.total_bytes = 0
        self._stored: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        """What came since the last count was begun."""
        self._unasked: Counter[str] = Counter()
        """What writers stored beyond what they were told to, since this process began."""
        self._told: dict[str, dict[str, _Told]] = {}
        """Chunks that are booked until they are seen, by writer and digest, the oldest first."""
        self._told_count = 0
        self._seen = 0
        """The sequence in CHUNKS up to which all is counted."""
        self._counts = 0

    def filling(self) -> dict[str, Filling]:
        """How full the quota of all is, as `core.room` has it; nothing without one."""
        total = self.quotas.total_bytes
        return {"artifacts": Filling(self.total_bytes, total)} if total else {}

    @property
    def fullest_share(self) -> float:
        """Of its quota, what the worker takes who is nearest to it."""
        mine = self.quotas.worker_bytes
        taken = (size for writer, size in self._stored.items() if writer != DESK)
        return max(taken, default=0) / mine if mine else 0.0

    def take(self, writer: str, chunks: Mapping[str, int], kind: str) -> None:
        """Count chunks (digest to bytes) that a worker is told to send for an artifact of a kind.

        Raises QuotaExceeded for a checkpoint that is too much, after which training goes on, and
        LogFull for a result, which waits for room.
        """
        told = self._told.get(writer, {})
        new = {one: size for one, size in chunks.items() if one not in told}
        is_result = kind == "candidate"
        if new:
            self._require(writer, sum(new.values()), 0.0 if is_result else RESULTS_SHARE, is_result)
        self._book(writer, new)

    def book(self, writer: str, digest: str, size: int) -> None:
        """Count a chunk that was just stored; once it is seen it counts as what it is."""
        self._drop(writer, digest)
        self._book(writer, {digest: size})

    def _book(self, writer: str, chunks: Mapping[str, int]) -> None:
        # All at once: of many chunks each would cost the loop some microseconds.
        self.add(writer, sum(chunks.values()))
        told = self._told.setdefault(writer, {})
        told.update((digest, _Told(size, self._counts)) for digest, size in chunks.items())
        self._told_count += len(chunks)
        if not told:
            del self._told[writer]
        while self._told_count > TOLD_MAX:  # who is told of many costs nobody else
            most = max(self._told, key=lambda one: len(self._told[one]))
            for oldest in list(self._told[most])[: len(self._told[most]) // 2 + 1]:
                self._drop(most, oldest)

    def settle(self, writer: str, chunks: Mapping[str, int]) -> None:
        """Count those of these chunks (digest to bytes) that were told as what they are."""
        booked = self._told.get(writer, {})
        for digest, size in chunks.items():
            told = booked.get(digest)
            if told is not None and told.bytes != size:
                self._put_right(writer, told, size)
                booked[digest] = told._replace(bytes=size)

    def _put_right(self, writer: str, told: _Told, size: int) -> None:
        self.add(writer, size - told.bytes)
        self._unasked[writer] += max(size - told.bytes, 0)

    def _drop(self, writer: str, digest: str) -> _Told | None:
        told = self._told.get(writer, {}).pop(digest, None)
        if told is not None:
            self._told_count -= 1
            if not self._told[writer]:
                del self._told[writer]
        return told

    def require_room_for_work(self, writer: str) -> None:
        """Refuse work whose checkpoints would find no room. Raises LogFull."""
        self._require(writer, 1, RESULTS_SHARE, waits=True)

    def require_room_for_text(self, more: int) -> None:
        """Refuse text of a corpus that would leave no room for results. Raises LogFull."""
        self._require(DESK, more, RESULTS_SHARE, waits=True)

    def require_kept(self, writer: str) -> None:
        """Refuse what was written although nobody said that it may be. Raises QuotaExceeded."""
        self._require(writer, 0, 0.0)

    def _require(self, writer: str, more: int, kept_share: float, waits: bool = False) -> None:
        """Raises QuotaExceeded, or LogFull for what `waits`, where there is no room for so much, or
        too much came unasked."""
        if self._unasked[writer] > UNASKED_BYTES_MAX:
            self.refused += 1
            words = (
                f"{writer} stored {self._unasked[writer] / MIB:,.1f} MiB that nobody asked it to, "
                f"and {UNASKED_BYTES_MAX / MIB:,.1f} at most are borne: it gets no work, and "
                "nothing that it sends is kept, until enough of that is swept"
            )
            raise errors.LogFull(words) if waits else errors.QuotaExceeded(words)
        total, mine = self.quotas
        bounds = [
            (
                f"artifacts of {writer}",
                self._stored[writer],
                0 if writer == DESK else mine,
                "--worker-quota-gib",
            ),
            ("all artifacts together", self.total_bytes, total, "--quota-gib"),
        ]
        for what, used, quota, option in bounds:
            if not quota or used + more <= quota * (1 - kept_share):
                continue
            self.refused += 1
            kept = ", a tenth of it kept for results" if kept_share else ""
            words = (
                f"{what} take {used / MIB:,.1f} MiB of at most {quota / MIB:,.1f}{kept}, and "
                f"{more / MIB:,.1f} MiB more find no room. What nothing needs is swept in time "
                "(`aghsan artifact gc --dry-run` says how much that is by now); or start the "
                f"server with a larger {option}"
            )
            raise errors.LogFull(words) if waits else errors.QuotaExceeded(words)

    def add(self, writer: str, size: int) -> None:
        """So much more is stored."""
        self._stored[writer] += size
        self._since[writer] += size
        self.total_bytes += size

    def less(self, writer: str, size: int) -> None:
        """So much was taken away."""
        self.add(writer, -size)
        self._unasked[writer] = max(self._unasked[writer] - size, 0)

    async def count(self, store: ChunkStore) -> None:
        """Count all that is stored. Raises LogUnavailable, Unavailable."""
        self._since = Counter(
            {
                writer: sum(one.bytes for one in chunks.values())
                for writer, chunks in self._told.items()
            }
        )
        found: Counter[str] = Counter()
        over: list[tuple[str, str]] = []
        seen = 0
        async for item in store.stored():
            found[item.writer] += item.bytes
            seen = max(seen, item.seq)
            if item.digest in self._told.get(item.writer, ()):
                over.append((item.writer, item.digest))
        over += self._never_came()
        self._counts += 1
        # What came meanwhile may be among it already, and counts twice until the next time.
        found.update(self._since)
        for writer, digest in over:
            told = self._drop(writer, digest)
            found[writer] -= told.bytes if told else 0
        self._stored, self.total_bytes, self._seen = found, found.total(), seen

    def _never_came(self) -> list[tuple[str, str]]:
        """What was told before the last count, and is not there after this one."""
        return [
            (writer, digest)
            for writer, chunks in self._told.items()
            for digest, told in chunks.items()
            if told.counts < self._counts
        ]

    async def look(self, store: ChunkStore) -> None:
        """Count what came to CHUNKS since the last time. Raises LogUnavailable, Unavailable."""
        async for item in store.stored(self._seen):
            self._seen = item.seq
            told = self._drop(item.writer, item.digest)
            if item.writer != DESK:
                self._put_right(item.writer, told or _Told(0, 0), item.bytes)
            else:
                self.add(DESK, item.bytes - (told.bytes if told else 0))

    async def run(self, store: ChunkStore) -> None:
        """Look every few seconds, and count every hour, for ever."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            try:
                if clock() >= due:
                    due = clock() + RETRY_SECONDS
                    await self.count(store)
                    due = clock() + COUNT_SECONDS
                elif self._counts:
                    await self.look(store)
            except errors.AghsanError as error:
                log.info("artifacts are not counted: %s", error, extra={"action": "count"})
            await asyncio.sleep(LOOK_SECONDS)
