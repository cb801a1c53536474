"""WORK and JUDGEMENTS: the two work queues that control fills, over the JetStream API."""

import asyncio
import logging

import msgspec

from core import errors, events, runtime, wire
from core.bus import Bus

log = logging.getLogger(__name__)

GONE = 10043
"""JetStream's error code for a message that is not (or no longer) there."""
REOFFER_SECONDS = 15.0


class _PubAck(msgspec.Struct, frozen=True):
    seq: int = 0
    error: dict[str, object] | None = None


async def publish(bus: Bus, subject: str, message: msgspec.Struct) -> int:
    """Store a message in the stream of its subject; its sequence. Raises Unavailable."""
    raw = await bus.request(subject, msgspec.json.encode(message))
    ack = msgspec.json.decode(raw, type=_PubAck)
    if ack.error is not None:
        raise errors.Unavailable(f"{subject} does not take messages: {ack.error}")
    return ack.seq


class WorkStream:
    """WORK, as orchestrator.scheduler.WorkQueue wants it."""

    def __init__(self, fleet: Bus) -> None:
        self._fleet = fleet

    async def publish(self, lane: str, task_id: str) -> int:
        """Offer a task to a lane; the offer's sequence."""
        return await publish(self._fleet, f"work.{lane}", wire.Offer(task_id=task_id))

    async def delete(self, seq: int) -> None:
        """Withdraw an offer; one that is gone already is no error."""
        answer = await self._fleet.api("STREAM.MSG.DELETE.WORK", {"seq": seq, "no_erase": True})
        error = answer.get("error")
        if error and error.get("err_code") not in (GONE, 10057):
            log.warning("an offer could not be withdrawn", extra={"action": str(error)})

    async def purge(self) -> None:
        """Withdraw all offers."""
        await self._fleet.api("STREAM.PURGE.WORK")

    async def standing(self, lane: str) -> tuple[int, int]:
        """(pulls waiting, offers not yet acknowledged) of a lane; zeros for a lane without one."""
        answer = await self._fleet.api(f"CONSUMER.INFO.WORK.{lane}")
        if "error" in answer:
            return 0, 0
        return answer["num_waiting"], answer["num_pending"] + answer["num_ack_pending"]


class Judgements:
    """Keeps JUDGEMENTS holding one offer for each closed round that no judge has decided."""

    def __init__(self, door: runtime.Runtime, control: Bus, lane: str = "cpu") -> None:
        self._door = door
        self._control = control
        self._lane = lane
        self._wake = asyncio.Event()
        self._offered: dict[str, float] = {}
        door.observe(self._on_event)

    def _on_event(self, event: events.Event) -> None:
        match event.data:
            case events.RoundClosed():
                self._wake.set()
            case events.RoundDecided():
                self._offered.pop(event.data.round_id, None)
            case _:
                pass

    async def run(self) -> None:
        """Offer, for ever. At start the queue is emptied and filled from the projection."""
        await self._control.api("STREAM.PURGE.JUDGEMENTS")
        while True:
            try:
                await self._offer()
            except errors.Unavailable as error:
                log.warning("JUDGEMENTS does not answer", extra={"action": str(error)})
            try:
                async with asyncio.timeout(REOFFER_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _offer(self) -> None:
        closed = await self._door.read(
            lambda state: [
                round_id for round_id in state.rounds.undecided if round_id not in state.rounds.open
            ]
        )
        answer = await self._control.api("STREAM.INFO.JUDGEMENTS")
        if not answer.get("state", {}).get("messages"):
            # The stream is a cache: empty beside undecided rounds, it lost its offers.
            self._offered.clear()
        for round_id in closed:
            if round_id not in self._offered:
                offer = wire.JudgementOffer(round_id=round_id)
                await publish(self._control, f"judge.{self._lane}", offer)
                self._offered[round_id] = asyncio.get_running_loop().time()
