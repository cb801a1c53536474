"""REFUSALS: what the rules did not allow, kept for the audit and never part of a state."""

import asyncio
import json
import logging

import msgspec

from core import bus, errors, events, runtime, subjects
from gateway import schemas, work

log = logging.getLogger(__name__)

WAITING_MAX = 1_000
REASON_CHARS_MAX = 2_000
RETRY_SECONDS = 1.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One refusal as it is stored."""

    at: str
    subject: str
    worker_id: str
    error: str
    reason: str


class Refusals:
    """Takes refusals without ever holding its caller up, and stores them in the background."""

    def __init__(self, control: bus.Bus) -> None:
        self._control = control
        self._waiting: asyncio.Queue[tuple[str, Record]] = asyncio.Queue(WAITING_MAX)
        self.recorded = self.dropped = 0

    def record(self, kind: str, identity: str, worker_id: str, error: errors.AghsanError) -> None:
        """Note that a worker's request about an aggregate was refused."""
        subject = f"refused.{kind}.{subjects.token(identity)}"
        one = Record(
            at=events.isoformat(runtime.now()),
            subject=f"{kind}.{identity}"[:256],
            worker_id=worker_id[:256],
            error=type(error).__name__,
            reason=str(error)[:REASON_CHARS_MAX],
        )
        try:
            self._waiting.put_nowait((subject, one))
            self.recorded += 1
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped == 1 or self.dropped % WAITING_MAX == 0:
                log.warning("%d refusals were not kept", self.dropped, extra={"action": "refuse"})

    async def run(self) -> None:
        """Store what is noted, for ever."""
        while True:
            subject, one = await self._waiting.get()
            while True:
                try:
                    await work.publish(self._control, subject, one)
                    break
                except errors.Unavailable as error:
                    log.info("REFUSALS waits: %s", error, extra={"action": "refuse"})
                    await asyncio.sleep(RETRY_SECONDS)

    async def page(self, after: int, limit: int) -> tuple[list[schemas.Refusal], int | None]:
        """The refusals stored after a sequence, and where the next page begins (None: nowhere).

        Raises errors.Unavailable.
        """
        question = {"seq": after + 1, "next_by_subj": "refused.>", "batch": limit}
        answers = await self._control.ask_many(
            "$JS.API.DIRECT.GET.REFUSALS", json.dumps(question).encode()
        )
        *found, end = answers
        shown = [_shown(message.data) for message in found]
        is_more = end.headers.get("Nats-Num-Pending", "0") != "0"
        last = int(found[-1].headers["Nats-Sequence"]) if found else after
        return shown, last if is_more and found else None


def _shown(raw: bytes) -> schemas.Refusal:
    try:
        one = msgspec.json.decode(raw, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return schemas.Refusal(at="", subject="", worker_id="", reason=f"unreadable: {error}")
    return schemas.Refusal(
        at=one.at, subject=one.subject, worker_id=one.worker_id, reason=f"{one.error}: {one.reason}"
    )
