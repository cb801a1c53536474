"""What an agent tells of its trainings while they run, and what it keeps of them to the end.

Telling costs a training nothing: points come with the reports that it makes anyway, messages are
few and go out beside everything else, and what the server cannot take now is dropped, since whole
curves follow.
"""

import asyncio
import logging
import time
from collections import deque
from pathlib import Path

import msgspec

from agent.executors import jobs
from agent.gauges import Sampler, Usage
from agent.link import Link
from core import errors, telemetry, wire
from core.events import Rival, Token
from core.telemetry import Curve, Point

log = logging.getLogger(__name__)

FILE = "telemetry.json"
"""Beside a state of training, or a result, the curve up to it."""
LIVE_SECONDS = 0.5
"""Between two messages of a task."""
WHOLE_SECONDS = 60.0
"""After so long a message has the whole curves, for who listens late, or lost something."""
UNSENT_MAX = 16
BUFFERED_MAX = 2 * telemetry.POINTS_MAX


class Record:
    """The telemetry of one task."""

    def __init__(self) -> None:
        self._points: dict[Rival, list[Point]] = {}
        self._total_steps: dict[Rival, int] = {}
        self._unsent: deque[tuple[Rival, Point]] = deque(maxlen=UNSENT_MAX)
        self._whole_due = 0.0
        self.latest: Point | None = None

    @property
    def curves(self) -> list[Curve]:
        """What there is to keep of each rival."""
        return [self.curve(rival) for rival in self._points]

    def curve(self, rival: Rival) -> Curve:
        """What there is to keep of one rival."""
        points = telemetry.thin(self._points.get(rival, []))
        return Curve(rival=rival, total_steps=self._total_steps.get(rival, 0), points=points)

    def begin(self, rival: Rival, step: int, total_steps: int, earlier: list[Point]) -> None:
        """A rival's training begins at a step, after what was told of it earlier."""
        self._points[rival] = [point for point in earlier if point.step <= step]
        self._total_steps[rival] = total_steps
        self._unsent.clear()
        self._whole_due = 0.0

    def add(self, rival: Rival, report: jobs.Progress, usage: Usage) -> None:
        """A training goes on; its last report may be of a step that it told of already."""
        self._total_steps[rival] = report.total_steps
        points = self._points.get(rival)
        if points and points[-1].step == report.step:
            return
        self.latest = Point(
            step=report.step,
            at=round(time.time(), 1),
            loss=telemetry.short(report.loss),
            learning_rate=_short(report.learning_rate),
            samples_per_second=_short(report.samples_per_second),
            utilisation=None if usage.utilisation is None else round(usage.utilisation, 2),
            memory_bytes=usage.memory_bytes,
        )
        self._take(rival, self.latest)

    def end(self, rival: Rival, result: jobs.Result) -> None:
        """A rival is finished and measured."""
        self._total_steps[rival] = result.total_steps
        points = self._points.setdefault(rival, [])
        if not points or points[-1].validation is None:
            at, measured = round(time.time(), 1), telemetry.short(result.loss)
            self._take(rival, Point(step=result.steps, at=at, validation=measured))

    def _take(self, rival: Rival, point: Point) -> None:
        points = self._points.setdefault(rival, [])
        points.append(point)
        if len(points) > BUFFERED_MAX:
            self._points[rival] = telemetry.thin(points)
        if len(self._unsent) == UNSENT_MAX:
            self._whole_due = 0.0
        self._unsent.append((rival, point))

    def take_unsent(self, attempt: int, now: float) -> wire.Telemetry | None:
        """The next message of this task, at a time of a clock that only goes on; None where there
        is nothing new."""
        if not self._unsent:
            return None
        whole = now >= self._whole_due
        if whole:
            self._whole_due = now + WHOLE_SECONDS
        curves = self.curves if whole else self._news()
        self._unsent.clear()
        return wire.Telemetry(attempt=attempt, whole=whole, curves=curves)

    def _news(self) -> list[Curve]:
        news: dict[Rival, list[Point]] = {}
        for rival, point in self._unsent:
            news.setdefault(rival, []).append(point)
        return [
            Curve(rival=rival, total_steps=self._total_steps[rival], points=points)
            for rival, points in news.items()
        ]

    def lost(self) -> None:
        """A message did not go out: the next one has everything."""
        self._whole_due = 0.0

    # ── on the agent's disk ──

    def save(self, rival: Rival, directory: Path) -> None:
        """Keep a rival's curve beside a state of its training. It may be missed, so that no error
        ends anything."""
        try:
            (directory / FILE).write_bytes(encode(self.curve(rival)))
        except OSError as error:
            log.info("telemetry is not kept: %s", error, extra={"action": "telemetry"})


class Sender:
    """Sends what is new, one message at a time and at most one every LIVE_SECONDS."""

    def __init__(self, usage: Sampler) -> None:
        self._usage = usage
        self._sending: asyncio.Task[None] | None = None
        self._due = 0.0

    def usage(self, pid: int | None) -> Usage:
        """What the training in this process makes of the device."""
        return self._usage.of(pid)

    def send_soon(self, link: Link | None, token: Token, record: Record) -> None:
        """Send what is new of a task, if it is time; nobody waits for it."""
        now = time.monotonic()
        if link is None or now < self._due or self._sending is not None:
            return
        self._due = now + LIVE_SECONDS
        message = record.take_unsent(token.attempt, now)
        if message is not None:
            self._sending = asyncio.ensure_future(self._send(link, token, record, message))

    async def _send(
        self, link: Link, token: Token, record: Record, message: wire.Telemetry
    ) -> None:
        try:
            await link.tell(token.task_id, message)
        except errors.AghsanError as error:
            log.debug("telemetry was dropped: %s", error, extra={"action": "telemetry"})
            record.lost()
        finally:
            self._sending = None

    def close(self) -> None:
        """Leave what is on its way."""
        if self._sending is not None:
            self._sending.cancel()


def encode(curve: Curve) -> bytes:
    """A curve as it lies beside a state."""
    return msgspec.json.encode(curve)


def points_in(raw: bytes | None) -> list[Point]:
    """The points of a curve that was kept beside a state; none where there is none to be read."""
    if raw is None:
        return []
    try:
        return msgspec.json.decode(raw, type=Curve).points
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.info("an earlier curve is left: %s", error, extra={"action": "telemetry"})
        return []


def points_beside(directory: Path) -> list[Point]:
    """As `points_in`, of a folder."""
    try:
        return points_in((directory / FILE).read_bytes())
    except OSError:
        return []


def _short(value: float | None) -> float | None:
    return None if value is None else telemetry.short(value)
