"""The judge: takes closed rounds, has them measured on hidden cases, and sends the verdicts.

Given the secret, the stored weights, the timings and the environment that a verdict records,
`orchestrator.trial` finds the same again: `orchestrator.rejudge` does.
"""

import asyncio
import contextlib
import functools
import json
import logging
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from core import bus, chunks, errors, platforms, wire
from core.events import CandidateVerdict, Reasons
from orchestrator import keys, latency, models, remarks, trial

log = logging.getLogger(__name__)

COMMITMENTS_MIN = 64
COMMITMENTS_KEPT = 128
DEPOSIT_MAX = 64
LANE = "cpu"
PULL_SECONDS = 5.0
PROGRESS_SECONDS = 5.0
REQUEST_SECONDS = 10.0
RETRY_SECONDS = 1.0
AGAIN_SECONDS = 30.0
TAKES_MAX = 5
DELIVERIES_MAX = 5
"""After so many offers of a round that this judge trips over, it is decided as far as it can be."""
PULL_EXPIRED = "408"

T = TypeVar("T")
Quiet: TypeAlias = Callable[[], contextlib.AbstractContextManager[object]]


async def judge_round(
    brief: wire.RoundBrief,
    store: chunks.ChunkStore,
    secret: bytes,
    judge: str,
    folder: Path,
    go_on: Callable[[], None] = models.go_on_always,
    timing: trial.Timing = trial.untimed,
) -> wire.Verdict:
    """Fetch what stands in a round and measure it, in a thread; the verdict. Texts are kept in the
    folder.

    Raises errors.Unavailable when the store does not answer; trial.Abandoned as `go_on` does.
    """
    stored = await models.gather(brief, store)
    texts = await models.gather_texts(brief, store, folder)
    return await asyncio.to_thread(
        trial.measure, brief, stored, secret, judge, go_on, texts, timing
    )


def undecidable(brief: wire.RoundBrief, secret: str, judge: str, reasons: Reasons) -> wire.Verdict:
    """The verdict on a round in which nothing can be measured: void, for a reason that is told."""
    return wire.Verdict(
        judge=judge,
        round_id=brief.round_id,
        verdict="void",
        secret=secret,
        reasons=reasons,
        candidates=[
            CandidateVerdict(
                candidate_id=brought.candidate.candidate_id,
                verdict="unjudged",
                reasons=reasons,
                bytes=brought.candidate.bytes,
            )
            for brought in brief.candidates
        ],
        against=brief.champion.candidate_id if brief.champion else "",
        environment=trial.environment(),
    )


async def deposited(control: bus.Bus, judge_id: str) -> int:
    """How many commitments the log holds. Raises errors.Unavailable."""
    request: wire.JudgeRequest = wire.Standing(judge=judge_id)
    raw = await control.request("cmd.judge", msgspec.json.encode(request), REQUEST_SECONDS)
    return wire.decode(raw, wire.CommitmentsAnswer).next_index


# ── the process ──


class Judge:
    """Keeps commitments deposited, and judges the rounds that JUDGEMENTS offers, one at a time."""

    def __init__(
        self,
        control: bus.Bus,
        store: chunks.ChunkStore,
        key: bytes,
        judge_id: str,
        texts: Path,
        quiet: Quiet = contextlib.nullcontext,
    ) -> None:
        """`texts` is a folder of the judge's own, for the corpus it judged on last; `quiet` is
        entered while a candidate is timed."""
        self._control = control
        self._store = store
        self._key = key
        self._judge_id = judge_id
        self._texts = texts
        self._timing: trial.Timing = functools.partial(latency.measure, quiet=quiet)
        self._inbox = f"{control.inbox_prefix}.judgements.{uuid.uuid4().hex}"
        self._arrived: asyncio.Queue[bus.Incoming] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._abandon = threading.Event()
        self.decided = 0

    def stop(self) -> None:
        """End soon: a round in the middle of judgement goes back to the queue."""
        self._stopping.set()
        self._abandon.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Judge until stopped. `on_ready` is called once commitments are deposited.

        Raises errors.DataDirectoryError when this judge's key is not the one that is committed to.
        """
        inbox = await self._control.subscribe(self._inbox, self._arrive)
        ready = False
        try:
            while not self._stopping.is_set():
                try:
                    await self._deposit()
                    if not ready:
                        ready = True
                        on_ready()
                    message = await self._pull()
                    if message is not None:
                        await self._answer(message)
                except errors.DataDirectoryError:
                    raise
                except errors.AghsanError as error:
                    log.warning("trying again soon: %s", error, extra={"action": "judge"})
                    await self._pause(RETRY_SECONDS)
        finally:
            await inbox.unsubscribe()

    async def _arrive(self, message: bus.Incoming) -> None:
        self._arrived.put_nowait(message)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _ask(self, request: wire.JudgeRequest, kind: type[T]) -> T:
        raw = await self._control.request(
            "cmd.judge", msgspec.json.encode(request), REQUEST_SECONDS
        )
        return wire.decode(raw, kind)

    # ── commitments ──

    async def withdraw(self, reason: str) -> None:
        """Let go of what was committed to so far. Raises as the bus and control do."""
        request = wire.Withdraw(judge=self._judge_id, reason=reason)
        await self._ask(request, wire.CommitmentsAnswer)

    def _require_key(self, newest: wire.Commitment | None) -> None:
        if newest is None or self._opens(newest.index, newest.commitment):
            return
        raise errors.DataDirectoryError(
            f"this judge's key does not open commitment {newest.index} of the log, so it cannot "
            f"judge what is committed to; give it the key file of the judge that deposited it, or, "
            f"if that is lost for good, start once with {keys.LOST_KEY}"
        )

    def _opens(self, index: int, commitment: str) -> bool:
        return keys.commitment_to(keys.secret_of(self._key, index)) == commitment

    async def _deposit(self) -> None:
        """Deposit commitments where fewer than 64 are left. Raises as the bus and control do, and
        DataDirectoryError where the newest is not this key's."""
        standing = await self._ask(wire.Standing(judge=self._judge_id), wire.CommitmentsAnswer)
        self._require_key(standing.newest)
        if standing.unused >= COMMITMENTS_MIN:
            return
        first = standing.next_index
        count = min(DEPOSIT_MAX, COMMITMENTS_KEPT - standing.unused)
        request = wire.Deposit(
            judge=self._judge_id,
            first=first,
            commitments=[
                keys.commitment_to(keys.secret_of(self._key, index))
                for index in range(first, first + count)
            ],
        )
        try:
            await self._ask(request, wire.CommitmentsAnswer)
        except errors.Conflict as error:
            # Another judge with the same key was faster; the next turn asks again.
            log.info("not deposited: %s", error, extra={"action": "deposit"})

    # ── offers ──

    async def _pull(self) -> bus.Incoming | None:
        """The next offer, waited for at most about 5 s."""
        if self._arrived.empty():
            subject = f"$JS.API.CONSUMER.MSG.NEXT.JUDGEMENTS.{LANE}"
            body = json.dumps({"batch": 1, "expires": int(PULL_SECONDS * 1e9)}).encode()
            await self._control.publish(subject, body, self._inbox)
        arrival = asyncio.ensure_future(self._arrived.get())
        stopped = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait(
            {arrival, stopped}, timeout=PULL_SECONDS + 1.0, return_when=asyncio.FIRST_COMPLETED
        )
        stopped.cancel()
        if not arrival.done():
            arrival.cancel()
            return None
        message = arrival.result()
        status = message.headers.get(bus.STATUS)
        if status is None:
            return message
        if status != PULL_EXPIRED:
            log.warning("JUDGEMENTS answers %s", status, extra={"action": "pull"})
            await self._pause(RETRY_SECONDS)
        return None

    async def _answer(self, message: bus.Incoming) -> None:
        """Judge what is offered; the offer ends only after the verdict was answered."""
        try:
            offer = msgspec.json.decode(message.data, type=wire.JudgementOffer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("an offer that means nothing: %s", error, extra={"action": "judge"})
            await message.respond(b"+TERM")
            return
        progress = asyncio.ensure_future(self._keep(message))
        try:
            await self._settle(offer.round_id, _deliveries(message))
        except trial.Abandoned:
            await message.respond(b"-NAK")
            return
        except errors.AghsanError as error:
            log.error("%s is not judged now: %s", offer.round_id, error, extra={"action": "judge"})
            delay = {"delay": int(AGAIN_SECONDS * 1e9)}
            await message.respond(b"-NAK " + json.dumps(delay).encode())
            return
        finally:
            progress.cancel()
        await message.respond(b"+ACK")

    async def _keep(self, message: bus.Incoming) -> None:
        """Tell JUDGEMENTS that the offer is being worked on, for as long as it is."""
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            with contextlib.suppress(errors.Unavailable):
                await message.respond(b"+WPI")

    async def _settle(self, round_id: str, deliveries: int) -> None:
        """Judge a round until its verdict stands, this judge's or another's."""
        for _ in range(TAKES_MAX):
            take = wire.TakeRound(judge=self._judge_id, round_id=round_id)
            try:
                brief = await self._ask(take, wire.RoundBrief)
            except (errors.Conflict, errors.NotFound) as error:
                # Decided already, or not closed: control offers what is closed and undecided anew.
                log.info("nothing to judge: %s", error, extra={"action": "judge"})
                return
            verdict = await self._verdict(brief, deliveries)
            try:
                await self._ask(verdict, wire.Done)
            except errors.Conflict as error:
                # The champion changed, or another judge took the round: look again.
                log.info("%s once more: %s", round_id, error, extra={"action": "judge"})
                continue
            self.decided += 1
            log.info("%s", _line(brief, verdict), extra={"action": "decided"})
            return
        raise errors.Conflict(f"its champion changed {TAKES_MAX} times while it was judged")

    async def _verdict(self, brief: wire.RoundBrief, deliveries: int) -> wire.Verdict:
        """The verdict on a round, void where nobody can judge it. Raises Abandoned, Conflict for a
        round of another key, and what the store raises."""
        secret = keys.secret_of(self._key, brief.index)
        if not self._opens(brief.index, brief.commitment):
            if brief.withdrawn:
                return undecidable(brief, "", self._judge_id, remarks.KEY_LOST)
            raise errors.Conflict(
                f"{brief.round_id} was committed to with another key than this judge's; give this "
                f"judge the key file of the one that deposited it, or, if that is lost for good, "
                f"start once with {keys.LOST_KEY}"
            )
        if brief.outdated:
            return undecidable(brief, secret.hex(), self._judge_id, remarks.OUTDATED)
        try:
            return await judge_round(
                brief, self._store, secret, self._judge_id, self._texts, self._check, self._timing
            )
        except errors.AghsanError:
            raise
        except Exception as error:
            # What nobody foresaw may pass (memory ran out); if not, it must not hold the rounds up.
            log.exception("%s trips the judge", brief.round_id, extra={"action": "judge"})
            if deliveries < DELIVERIES_MAX or platforms.is_want_of_room(error):
                raise errors.Unavailable(f"the judge failed: {models.brief_of(error)}") from error
            return undecidable(
                brief, secret.hex(), self._judge_id, remarks.tripped(error, DELIVERIES_MAX)
            )

    def _check(self) -> None:
        if self._abandon.is_set():
            raise trial.Abandoned


def _deliveries(message: bus.Incoming) -> int:
    """How often an offer was handed out: $JS.ACK.<stream>.<consumer>.<delivered>…"""
    parts = message.reply.split(".")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdigit() else 1


def _line(brief: wire.RoundBrief, verdict: wire.Verdict) -> str:
    whom = f" {verdict.promoted}" if verdict.promoted else ""
    return f"{brief.round_id} of {brief.node_id}: {verdict.verdict}{whom}. {verdict.reasons.en}"
