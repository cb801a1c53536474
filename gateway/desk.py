"""The agents' side: what agents and judges ask over NATS, answered through the one door."""

import functools
import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from core import commands, errors, events, runtime, wire
from core.bus import Bus, Incoming
from core.chunks import ChunkStore
from core.decide import tasks as rules
from core.presence import Presence, heartbeat_seconds
from core.projections.rounds import Round
from core.projections.state import State
from core.projections.tasks import Task, token_of
from core.promises import Promises
from gateway import sessions, telemetry
from gateway.artifacts import Artifacts, store_metrics
from gateway.heartbeats import Heartbeats
from gateway.usage import Usage

REASON_CHARS_MAX = 2_000
REQUESTS_CONCURRENT = 256
REQUESTS_PER_WORKER = 32
"""An agent has a dozen under way at most; who asks more than this takes nobody else's turn."""

_CLAIM_ID = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the desk tells every agent."""

    lease_seconds: float = 60.0


class Refusals(Protocol):
    """What the desk tells of refusals; see gateway.refusals.Refusals."""

    def record(self, kind: str, identity: str, worker_id: str, error: errors.AghsanError) -> None:
        """Note that a worker's request about an aggregate was refused."""
        ...


class Offers(Protocol):
    """What the desk tells the scheduler; see orchestrator.scheduler.Scheduler."""

    def pulled(self, lane: str, count: int, expires_at: int) -> None:
        """An agent of this lane began to wait."""
        ...

    def answered(self, lane: str, offer: int) -> None:
        """An offer woke its agent, which now claims."""
        ...


class Desk:
    """Answers agents (`fleet.<worker>.<verb>`, `fleet.<worker>.hello.<lane>`) and judges
    (`cmd.judge`)."""

    def __init__(
        self,
        door: runtime.Runtime,
        presence: Presence,
        store: ChunkStore,
        promises: Promises,
        usage: Usage,
        *,
        refusals: Refusals,
        fleet: Bus,
        control: Bus,
        notices: Bus,
        offers: Offers,
        ensure_lane: Callable[[str], Awaitable[None]],
        terms: Terms,
    ) -> None:
        self._door = door
        self._presence = presence
        self._sessions = sessions.Sessions(door)
        self._store = store
        self._usage = usage
        self._artifacts = Artifacts(store, promises, usage)
        self._refusals = refusals
        self._fleet = fleet
        self._control = control
        self._offers = offers
        self._ensure_lane = ensure_lane
        self._terms = terms
        self._in_hand: Counter[str] = Counter()
        """Requests being answered, by subject token, of those that have any."""
        self._verbs: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {
            "claim": self._claim,
            "missing": self._missing,
            "checkpoint": self._checkpoint,
            "complete": self._complete,
            "fail": self._fail,
            "release": self._release,
            "reattach": self._reattach,
            "bye": self._bye,
        }
        self.heartbeats = Heartbeats(door, presence, self._sessions, fleet, notices)

    async def open(self) -> None:
        """Begin to listen."""
        for subject in ("fleet.*.*", "fleet.*.hello.*"):
            await self._fleet.subscribe(subject, self._on_request, concurrency=REQUESTS_CONCURRENT)
        await self.heartbeats.open()
        await self._fleet.subscribe("$JS.API.CONSUMER.MSG.NEXT.WORK.*", self._on_pull)
        await self._control.subscribe("cmd.judge", self._on_judge, concurrency=8)

    # ── framing ──

    async def _on_request(self, message: Incoming) -> None:
        _, worker, verb, *lane = message.subject.split(".")
        if self._in_hand[worker] >= REQUESTS_PER_WORKER:
            busy = errors.Overloaded(
                f"{REQUESTS_PER_WORKER} requests of {worker} are being answered; ask again later"
            )
            refuse = wire.chunk_refusal if verb == "chunk" else wire.refusal
            await message.respond(refuse(busy))
            return
        self._in_hand[worker] += 1
        try:
            await self._answer(message, worker, verb, lane)
        finally:
            self._in_hand[worker] -= 1
            if not self._in_hand[worker]:
                del self._in_hand[worker]

    async def _answer(self, message: Incoming, worker: str, verb: str, lane: list[str]) -> None:
        if verb == "chunk":
            await message.respond(await self._chunk(worker, message.data))
            return
        handler = functools.partial(self._hello, lane[0]) if lane else self._verbs.get(verb)
        if handler is None:
            known = ", ".join(["hello.LANE", *self._verbs, "chunk"])
            unknown = errors.NotFound(f"the desk knows no {verb!r}, only: {known}")
            self._refusals.record("worker", worker, f"{worker} ({verb})", unknown)
            await message.respond(wire.refusal(unknown))
            return
        try:
            answer = await handler(worker, message.data)
        except errors.AghsanError as error:
            founded = await self._founded(error)
            self._note(worker, verb, message.data, founded)
            answer = wire.refusal(founded)
        await message.respond(answer)

    async def _founded(self, error: errors.AghsanError) -> errors.AghsanError:
        """A refusal, once what it may rest on is durable; while that is unknown, that it is."""
        if not isinstance(error, errors.Refused):
            return error
        rests_on = self._door.state.seq
        try:
            durable = await self._door.read(lambda state: state.seq)
        except errors.Unavailable as unknown:
            return unknown
        if durable < rests_on:
            return errors.LogUnavailable("the log does not answer now; ask again later")
        return error

    def _note(self, worker: str, verb: str, raw: bytes, error: errors.AghsanError) -> None:
        """Keep what the audit wants to know: stale tokens, forged and senseless requests."""
        match error:
            case errors.Conflict() | errors.NotOwner() | errors.NotFound() | errors.Invalid():
                task_id = _task_of(raw)
                kind, identity = ("task", task_id) if task_id else ("worker", worker)
                self._refusals.record(kind, identity, f"{worker} ({verb})", error)
            case _:
                pass

    # ── sessions ──

    async def _hello(self, lane: str, token: str, raw: bytes) -> bytes:
        hello = _parse(raw, wire.Hello)
        sessions.require_own(token, hello.worker_id)
        if hello.protocol != wire.PROTOCOL:
            raise errors.Conflict(
                f"this server speaks protocol {wire.PROTOCOL}, the agent {hello.protocol}; "
                f"install the same version on both"
            )
        await self._ensure_lane(lane)
        session = uuid.uuid4().hex
        command = commands.OpenSession(
            worker_id=hello.worker_id,
            session=session,
            hostname=hello.hostname[:256],
            lane=lane,
            protocol=hello.protocol,
            capabilities=msgspec.json.encode(hello.capabilities),
            holding=hello.holding,
            process=hello.process[:64],
            number=hello.number,
        )
        if hello.worker_id in self._door.state.workers.table:
            # Before anybody looks at the claims that this brings back.
            self._presence.speaks_of(hello.worker_id, runtime.now(), hello.holding)
        held, online, pause = await self._door.execute(
            command,
            runtime.new_meta(f"agent:{token}"),
            lambda state: (
                set(state.tasks.held.get(hello.worker_id, ())),
                state.workers.online,
                state.workers.table.rows[hello.worker_id].pause,
            ),
        )
        self._presence.beat(hello.worker_id, runtime.now(), session, 0, [])
        return wire.ok(
            wire.Welcome(
                session=session,
                lane=lane,
                heartbeat_seconds=heartbeat_seconds(online),
                lease_seconds=self._terms.lease_seconds,
                holding=[claim for claim in hello.holding if claim.task_id in held],
                pause=pause,
            )
        )

    async def _bye(self, token: str, raw: bytes) -> bytes:
        bye = _parse(raw, wire.Bye)
        worker_id = self._sessions.require(token, bye.session)
        command = commands.MarkOffline(
            worker_id=worker_id,
            reason="it said goodbye",
            last_seen=runtime.now(),
            session=bye.session,
        )
        await self._door.execute(command, runtime.new_meta(f"agent:{token}"), runtime.nothing)
        self._presence.of(worker_id).session = ""
        return wire.ok(wire.Done())

    # ── work ──

    async def _on_pull(self, message: Incoming) -> None:
        lane = message.subject.rsplit(".", 1)[1]
        try:
            request = msgspec.json.decode(message.data, type=_Pull)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            request = _Pull()
        expires = request.expires // 1_000 if request.expires else 30_000_000
        self._offers.pulled(lane, max(1, min(request.batch, 64)), runtime.now() + expires)

    async def _claim(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.ClaimRequest)
        worker_id = self._sessions.require(token, request.session)
        worker = self._door.state.workers.table.rows[worker_id]
        if request.offer:
            self._offers.answered(worker.lane, request.offer)
        if not _CLAIM_ID.fullmatch(request.claim_id):
            raise errors.Invalid("a claim id is 32 random hex digits of the agent's choice")
        if rules.held_under(self._door.state, worker_id, request.claim_id) is None:
            self._usage.require_room_for_work(token)
        command = commands.ClaimTask(
            worker_id=worker_id,
            via="nats",
            claim_id=request.claim_id,
            lease_seconds=self._terms.lease_seconds,
            session=request.session,
        )
        answer = await self._door.execute(
            command,
            runtime.new_meta(f"agent:{token}"),
            lambda state: _assignment(state, worker_id, request.claim_id),
        )
        return wire.ok(answer)

    async def _fail(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.FailRequest)
        worker_id = self._sessions.require(token, request.session)
        self._require_holder(worker_id, request.token)
        told = await telemetry.store(self._store, request.token.task_id, request.telemetry)
        command = commands.FailAttempt(
            token=request.token,
            worker_id=worker_id,
            session=request.session,
            reason=request.reason[:REASON_CHARS_MAX],
            log_tail=request.log_tail,
            telemetry_digest=told,
        )
        return await self._do(token, command)

    async def _release(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.TokenRequest)
        command = commands.ReleaseClaim(
            token=request.token,
            worker_id=self._sessions.require(token, request.session),
            session=request.session,
            reason=request.reason[:REASON_CHARS_MAX] or "given back",
            unfit=request.unfit,
        )
        return await self._do(token, command)

    async def _reattach(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.TokenRequest)
        command = commands.ReattachClaim(
            token=request.token,
            worker_id=self._sessions.require(token, request.session),
            session=request.session,
        )
        self._presence.speaks_of(command.worker_id, runtime.now(), [request.token])
        return await self._do(token, command)

    async def _do(self, token: str, command: commands.AnyCommand) -> bytes:
        await self._door.execute(command, runtime.new_meta(f"agent:{token}"), runtime.nothing)
        return wire.ok(wire.Done())

    # ── artifacts ──

    def _require_holder(self, worker_id: str, token: events.Token) -> None:
        """Refuse early what the fence would refuse anyway, before bytes are read."""
        task = self._door.state.tasks.table.get(token.task_id)
        if task is None:
            raise errors.NotFound(f"there is no task {token.task_id}")
        claim = task.claim if isinstance(task, Task) else None
        if claim is not None and (claim.worker_id, claim.attempt, claim.claim_id) != (
            worker_id,
            token.attempt,
            token.claim_id,
        ):
            raise errors.StaleAttempt(
                f"attempt {token.attempt} of {token.task_id} was overtaken; stop this work"
            )

    async def _missing(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.MissingRequest)
        self._require_holder(self._sessions.require(token, request.session), request.token)
        return wire.ok(await self._artifacts.missing(token, request))

    async def _checkpoint(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.CheckpointRequest)
        worker_id = self._sessions.require(token, request.session)
        self._require_holder(worker_id, request.token)
        digest = await self._artifacts.verify(token, request.session, request.manifest)
        checkpoint = events.Checkpoint(
            rival=request.rival,
            step=request.step,
            total_steps=request.total_steps,
            manifest=digest,
            writer=token,
            bytes=request.manifest.bytes,
            final=request.final,
            method=request.method,
        )
        command = commands.StoreCheckpoint(
            token=request.token,
            worker_id=worker_id,
            session=request.session,
            checkpoint=checkpoint,
        )
        return await self._do(token, command)

    async def _complete(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.CompleteRequest)
        worker_id = self._sessions.require(token, request.session)
        self._require_holder(worker_id, request.token)
        task_id = request.token.task_id
        candidates = []
        for brought in request.candidates:
            digest = await self._artifacts.verify(token, request.session, brought.manifest)
            name = f"{task_id}:{brought.rival}:{digest}"
            candidates.append(
                events.Candidate(
                    candidate_id="cand-" + hashlib.sha256(name.encode()).hexdigest()[:12],
                    rival=brought.rival,
                    manifest=digest,
                    writer=token,
                    weights_sha256=brought.weights_sha256,
                    bytes=brought.manifest.bytes,
                    claims=brought.claims,
                    method=brought.method,
                    method_reason=brought.method_reason,
                )
            )
        metrics, metrics_digest = await store_metrics(self._store, request.metrics)
        told = await telemetry.store(self._store, task_id, request.telemetry)
        command = commands.CompleteTask(
            task_id=task_id,
            worker_id=worker_id,
            token=request.token,
            session=request.session,
            metrics=metrics,
            metrics_digest=metrics_digest,
            candidates=candidates,
            telemetry_digest=told,
        )
        return await self._do(token, command)

    async def _chunk(self, token: str, raw: bytes) -> bytes:
        try:
            request = _parse(raw, wire.ChunkRequest)
            worker_id = self._sessions.require(token, request.session)
            return wire.chunk_frame(
                await self._artifacts.read(self._door.state, worker_id, request)
            )
        except errors.AghsanError as error:
            return wire.chunk_refusal(await self._founded(error))

    # ── judges ──

    async def _on_judge(self, message: Incoming) -> None:
        try:
            answer = wire.ok(await self._judge(_parse_judge(message.data)))
        except errors.AghsanError as error:
            answer = wire.refusal(error)
        await message.respond(answer)

    async def _judge(self, request: wire.JudgeRequest) -> wire.Wire:
        meta = runtime.new_meta(f"judge:{request.judge}")
        match request:
            case wire.Standing():
                return await self._door.read(_commitments)
            case wire.Deposit():
                deposit = commands.DepositCommitments(
                    judge=request.judge, first=request.first, commitments=request.commitments
                )
                return await self._door.execute(deposit, meta, _commitments)
            case wire.Withdraw():
                withdraw = commands.WithdrawCommitments(
                    judge=request.judge, reason=request.reason[:REASON_CHARS_MAX]
                )
                return await self._door.execute(withdraw, meta, _commitments)
            case wire.TakeRound():
                take = commands.StartJudging(round_id=request.round_id, judge=request.judge)
                return await self._door.execute(
                    take, meta, lambda state: _brief(state, take.round_id)
                )
            case wire.Verdict():
                values = {name: getattr(request, name) for name in request.__struct_fields__}
                return await self._door.execute(
                    commands.DecideRound(**values), meta, lambda _: wire.Done()
                )


class _Pull(msgspec.Struct, frozen=True):
    batch: int = 1
    expires: int = 0


_decode_judge: Callable[[bytes], wire.JudgeRequest]
_decode_judge = msgspec.json.Decoder(wire.JudgeRequest).decode


def _parse(raw: bytes, kind: type[T]) -> T:
    return _read(raw, msgspec.json.Decoder(kind).decode)


def _parse_judge(raw: bytes) -> wire.JudgeRequest:
    return _read(raw, _decode_judge)


def _read(raw: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Invalid(f"a request that cannot be read: {error}") from error


class _Tokened(msgspec.Struct, frozen=True):
    token: events.Token


def _task_of(raw: bytes) -> str:
    """The task a request is about, "" where it is about none."""
    try:
        return msgspec.json.decode(raw, type=_Tokened).token.task_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _assignment(state: State, worker_id: str, claim_id: str) -> wire.ClaimAnswer:
    task = rules.held_under(state, worker_id, claim_id)
    if task is None:
        return wire.ClaimAnswer()
    claim = task.claims[-1]
    return wire.ClaimAnswer(
        assignment=wire.Assignment(
            token=token_of(task),
            node_id=task.node_id,
            topic=task.topic,
            role=task.role,
            method=task.method,
            seed=task.seed,
            workload=task.workload,
            workload_inherited=task.workload_inherited,
            lease_seconds=claim.lease_seconds,
            budget_seconds=task.budget_seconds,
            requires=task.requires,
            base=task.base,
            resume=list(task.resume),
            parents=list(task.parents),
        )
    )


def _commitments(state: State) -> wire.CommitmentsAnswer:
    newest = state.rounds.newest
    return wire.CommitmentsAnswer(
        next_index=state.rounds.next_deposit,
        unused=len(state.rounds.commitments),
        newest=None
        if newest is None
        else wire.Commitment(index=newest.index, commitment=newest.commitment),
    )


def _brief(state: State, round_id: str) -> wire.RoundBrief:
    row = state.rounds.table.rows[round_id]
    assert isinstance(row, Round), "a round being judged is whole"
    return msgspec.structs.replace(
        wire.brief_of(row),
        withdrawn=row.index < state.rounds.withdrawn_before,
        outdated=not state.graph.trains(row.node_id, row.workload),
    )
