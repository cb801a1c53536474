"""Telemetry of tasks: what is kept with their record, and what is told while they are trained.

Nothing is held here: what is told lies in the stream TELEMETRY, and is read when somebody asks.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from core import bus, chunks, errors, subjects, telemetry, wire
from core.chunks import ChunkStore
from core.projections.tasks import OPEN, Task
from core.telemetry import Curve, Point

log = logging.getLogger(__name__)

FILE = "telemetry.json"
BATCH = 256
BATCH_BYTES = 1024 * 1024
BATCHES_MAX = 8
"""Of one question; the stream keeps less of a subject."""
READERS_MAX = 4
"""Questions at once: many in step with each other would hold the loop up."""


class Told(NamedTuple):
    """How a task goes. `whole`: in place of all that was told before; else it goes on there.
    `after` is where the next question begins, None where nothing will come."""

    curves: list[Curve]
    whole: bool
    after: int | None


async def store(kept: ChunkStore, task_id: str, curves: list[Curve]) -> str:
    """Keep curves with a task's record; their artifact's digest, "" for none, or where they find no
    place: no result is lost over them."""
    if not curves:
        return ""
    try:
        return await chunks.put_file(kept, chunks.DESK, "telemetry", FILE, telemetry.encode(curves))
    except (errors.LogFull, errors.Unavailable) as error:
        log.warning(
            "the telemetry of %s is not kept: %s",
            task_id,
            error,
            extra={"action": "telemetry", "task_id": task_id},
        )
        return ""


class Telemetry:
    """Reads how tasks go, and went."""

    def __init__(self, fleet: bus.Bus, kept: ChunkStore) -> None:
        self._fleet = fleet
        self._kept = kept
        self._readers = asyncio.Semaphore(READERS_MAX)

    async def read(self, task: Task, after: int | None = None) -> Told:
        """What was told of a task after a place, or all there is, in thinned form. Of a completed
        task that is what was kept. Raises Unavailable."""
        if task.status == "completed":
            kept = await self._read_kept(task)
            return Told(kept or (await self._read_stream(task, 0)).curves, True, None)
        told = await self._read_stream(task, after or 0)
        if not after and not told.curves:
            told = told._replace(curves=await self._read_kept(task))
        return told._replace(
            whole=told.whole or not after, after=told.after if task.status in OPEN else None
        )

    async def _read_kept(self, task: Task) -> list[Curve]:
        if not task.telemetry_digest:
            return []
        try:
            raw = await chunks.get_file(self._kept, chunks.DESK, task.telemetry_digest)
            return telemetry.decode(raw)
        except (errors.NotFound, errors.ArtifactError) as error:
            log.warning(
                "the telemetry of %s cannot be shown: %s",
                task.task_id,
                error,
                extra={"action": "telemetry", "task_id": task.task_id},
            )
            return []

    async def _read_stream(self, task: Task, after: int) -> Told:
        holders = {
            (subjects.token(claim.worker_id), claim.attempt)
            for claim in task.claims
            if claim.via == "nats"
        }
        if not holders:
            return Told([], False, after)
        told = _Fold()
        async with self._readers:
            for _ in range(BATCHES_MAX):
                messages, is_more = await self._batch(task.task_id, after)
                for message in messages:
                    after = int(message.headers[bus.SEQUENCE])
                    worker = message.headers["Nats-Subject"].split(".")[1]
                    news = _read(message.data)
                    # Any agent may tell of any task, under its own name.
                    if news is not None and (worker, news.attempt) in holders:
                        told.take(news)
                if not is_more:
                    break
        return Told(told.curves, told.whole, after)

    async def _batch(self, task_id: str, after: int) -> tuple[list[bus.Incoming], bool]:
        question = {
            "seq": after + 1,
            "next_by_subj": f"telemetry.*.{subjects.token(task_id)}",
            "batch": BATCH,
            "max_bytes": BATCH_BYTES,
        }
        *found, end = await self._fleet.ask_many(
            "$JS.API.DIRECT.GET.TELEMETRY", msgspec.json.encode(question)
        )
        if end.headers[bus.STATUS] not in ("204", "404"):
            raise errors.Unavailable(
                f"TELEMETRY cannot be read: {end.headers.get('Description', '')}; try again later"
            )
        return found, bool(found) and end.headers.get("Nats-Num-Pending", "0") != "0"


class _Fold:
    """What messages of one task come to: the latest attempt among them counts, since whoever was
    overtaken may not know it yet."""

    def __init__(self) -> None:
        self.whole = False
        self._attempt = 0
        self._points: dict[str, list[Point]] = {}
        self._last: dict[str, Curve] = {}

    def take(self, news: wire.Telemetry) -> None:
        if news.attempt < self._attempt:
            return
        if news.attempt > self._attempt or news.whole:
            self._points, self._last = {}, {}
            self.whole = news.whole
        self._attempt = news.attempt
        for curve in news.curves:
            self._points.setdefault(curve.rival, []).extend(curve.points)
            self._last[curve.rival] = curve

    @property
    def curves(self) -> list[Curve]:
        return [
            msgspec.structs.replace(curve, points=telemetry.thin(self._points[rival]))
            for rival, curve in self._last.items()
        ]


def _read(raw: bytes) -> wire.Telemetry | None:
    try:
        return msgspec.json.decode(raw, type=wire.Telemetry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.info("telemetry that means nothing: %s", error, extra={"action": "telemetry"})
        return None


def losses_in(curves: Iterable[Curve]) -> Iterable[tuple[str, int, float]]:
    """Rival, step and loss of each point that has one."""
    for curve in curves:
        for point in curve.points:
            if point.loss is not None:
                yield curve.rival, point.step, point.loss
