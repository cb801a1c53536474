"""The agents' side: what agents and judges ask over NATS, answered through the one door."""

import asyncio
import functools
import hashlib
import itertools
import logging
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, assert_never

import msgspec

from core import commands, errors, events, runtime, subjects, wire
from core.bus import Bus, Incoming
from core.chunks import ChunkStore
from core.decide import tasks as rules
from core.presence import Presence, heartbeat_seconds
from core.projections.rounds import Round
from core.projections.state import State
from core.projections.tables import Table
from core.projections.tasks import Task, token_of
from core.projections.workers import Worker
from core.promises import Promises
from gateway import telemetry
from gateway.artifacts import Artifacts, store_metrics
from gateway.usage import Usage

log = logging.getLogger(__name__)

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
        self._store = store
        self._usage = usage
        self._artifacts = Artifacts(store, promises, usage)
        self._refusals = refusals
        self._fleet = fleet
        self._control = control
        self._notices = notices
        self._offers = offers
        self._ensure_lane = ensure_lane
        self._terms = terms
        self._ids: dict[str, str] = {}
        """Worker ids by token, of the workers in `_indexed`."""
        self._indexed: Table[Worker] | None = None
        self._connections: dict[str, int] = {}
        """The number of each agent's newest connection, where it was seen to come."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._corrected: set[str] = set()
        """Workers that are just being told what their heartbeats are mistaken in."""
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
        door.observe(self._on_event)

    async def open(self) -> None:
        """Begin to listen."""
        for subject in ("fleet.*.*", "fleet.*.hello.*"):
            await self._fleet.subscribe(subject, self._on_request, concurrency=REQUESTS_CONCURRENT)
        await self._fleet.subscribe("hb.*", self._on_beat)
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

    def _require_worker(self, token: str, worker_id: str) -> None:
        if subjects.token(worker_id) != token:
            raise errors.Invalid(f"worker {worker_id!r} may not speak on the subject of {token!r}")

    def _worker(self, token: str, session: str) -> str:
        """The worker id behind a subject token. Raises SupersededSession for an old session."""
        worker = self._by_token(token)
        if worker is None or worker.session != session:
            raise errors.SupersededSession(_over(worker))
        return worker.worker_id

    def _by_token(self, token: str) -> Worker | None:
        workers = self._door.state.workers.table
        if workers is not self._indexed:
            self._indexed, self._ids = workers, {}  # the state was built anew
        # Tokens of strange ids are hashes. Workers only ever join, at the end of the table.
        for worker_id in itertools.islice(reversed(workers.rows), len(workers) - len(self._ids)):
            self._ids[subjects.token(worker_id)] = worker_id
        known = self._ids.get(token)
        return None if known is None else workers.get(known)

    # ── sessions ──

    async def _hello(self, lane: str, token: str, raw: bytes) -> bytes:
        hello = _parse(raw, wire.Hello)
        self._require_worker(token, hello.worker_id)
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
        worker_id = self._worker(token, bye.session)
        command = commands.MarkOffline(
            worker_id=worker_id,
            reason="it said goodbye",
            last_seen=runtime.now(),
            session=bye.session,
        )
        await self._door.execute(command, runtime.new_meta(f"agent:{token}"), runtime.nothing)
        self._presence.of(worker_id).session = ""
        return wire.ok(wire.Done())

    async def _on_beat(self, message: Incoming) -> None:
        try:
            beat = msgspec.json.decode(message.data, type=wire.Beat)
            self._require_worker(message.subject.split(".")[1], beat.worker_id)
        except (msgspec.MsgspecError, UnicodeDecodeError, errors.Invalid) as error:
            log.warning("a heartbeat that means nothing: %s", error, extra={"action": "heartbeat"})
            return
        if beat.via != "nats":
            return
        state = self._door.state
        if _is_over(state.workers.table.get(beat.worker_id), beat):
            self._correct(beat)
            return
        if beat.pause != state.workers.table.rows[beat.worker_id].pause:
            self._spawn(self._tell_pause(beat.worker_id))
        held = [(one, _held(state, beat.worker_id, one)) for one in beat.tasks]
        known = [one for one, task in held if task is not None]
        self._presence.beat(beat.worker_id, runtime.now(), beat.session, beat.executor_pid, known)
        if len(known) < len(held):
            self._correct(beat)
        for _, task in held:
            if task is not None and task.status == "queued":
                self._spawn(self._revive(task, beat))

    def _correct(self, beat: wire.Beat) -> None:
        """Tell an agent what it is mistaken in; while it is being told, what comes waits for its
        next heartbeat."""
        if beat.worker_id not in self._corrected:
            self._corrected.add(beat.worker_id)
            self._spawn(self._tell_truth(beat))

    async def _tell_truth(self, beat: wire.Beat) -> None:
        try:
            worker, lost = await self._door.read(
                lambda state: (
                    state.workers.table.get(beat.worker_id),
                    [one for one in beat.tasks if _held(state, beat.worker_id, one) is None],
                )
            )
            if _is_over(worker, beat):
                notice = wire.Notice(kind="superseded", session=beat.session, detail=_over(worker))
                await self._tell(beat.worker_id, notice)
                return
            for one in lost:
                await self._stop(beat.worker_id, one.task_id, "the task is not yours any more")
        except errors.Unavailable as error:
            log.info("nobody is told what may not be so: %s", error, extra={"action": "correct"})
        finally:
            self._corrected.discard(beat.worker_id)

    async def _revive(self, task: Task, beat: wire.Beat) -> None:
        """Give an unrivalled task back to whom it was taken from. One who slept, and whose
        connection lived on, does not know that there is something to ask for."""
        command = commands.ReattachClaim(
            token=token_of(task), worker_id=beat.worker_id, session=beat.session
        )
        try:
            meta = runtime.new_meta(f"agent:{subjects.token(beat.worker_id)}")
            await self._door.execute(command, meta, runtime.nothing)
        except errors.AghsanError as error:
            # Somebody else has it meanwhile; else the next heartbeat asks again.
            log.info("not revived: %s", error, extra={"action": "revive"})

    async def _tell(self, worker_id: str, notice: wire.Notice) -> None:
        """Push a notice; it is repeated on the heartbeats to come as long as it applies."""
        subject = f"_INBOX_{subjects.token(worker_id)}.notice"
        try:
            await self._notices.publish(subject, msgspec.json.encode(notice))
        except errors.Unavailable as error:
            log.info("a notice was not sent: %s", error, extra={"action": "tell"})

    async def _stop(self, worker_id: str, task_id: str, detail: str) -> None:
        await self._tell(worker_id, wire.Notice(kind="stop", task_id=task_id, detail=detail))

    async def _tell_pause(self, worker_id: str) -> None:
        """Tell an agent what a person wants of it by now."""
        try:
            worker = await self._door.read(lambda state: state.workers.table.get(worker_id))
        except errors.Unavailable as error:
            log.info("nobody is told what may not be so: %s", error, extra={"action": "pause"})
            return
        if worker is not None and worker.via == "nats":
            notice = wire.Notice(kind=worker.pause or "resume", session=worker.session)
            await self._tell(worker_id, notice)

    def connection_gone(self, token: str, connection: int) -> None:
        """The server lost a connection of the agent with this subject token."""
        worker = self._by_token(token)
        if worker is None or worker.via != "nats":
            return
        # One that was silent, and which the agent left for a new one, may be missed after that.
        if self._connections.get(worker.worker_id, connection) == connection:
            self._connections.pop(worker.worker_id, None)
            self._presence.lost(worker.worker_id, runtime.now())

    def connection_here(self, token: str, connection: int) -> None:
        """An agent's connection stands (again)."""
        worker = self._by_token(token)
        if worker is not None and worker.via == "nats":
            self._connections[worker.worker_id] = connection
            self._presence.found(worker.worker_id)

    def forget_connections(self) -> None:
        """A server that was away counts its connections anew."""
        self._connections.clear()

    def _on_event(self, event: events.Event) -> None:
        data = event.data
        if isinstance(data, events.WorkerPaused | events.WorkerResumed):
            self._spawn(self._tell_pause(data.worker_id))
        if not isinstance(data, events.OfTasks):
            return
        match data:
            case events.TaskCancelled():
                self._spawn(self._tell_holder(data.task_id, "cancelled by a person"))
            case (
                events.TaskQueued()
                | events.TaskClaimed()
                | events.ClaimAdopted()
                | events.ClaimExpired()
                | events.ClaimRevived()
                | events.ClaimReleased()
                | events.CheckpointStored()
                | events.AttemptFailed()
                | events.TaskCompleted()
                | events.TaskFailed()
                | events.TaskRetried()
            ):
                pass
            case _:
                assert_never(data)

    async def _tell_holder(self, task_id: str, detail: str) -> None:
        task = self._door.state.tasks.table.get(task_id)
        if not isinstance(task, Task) or task.status != "cancelled":
            return  # it was queued again, and may be another's by now
        if task.claim is not None and task.claim.via == "nats":
            await self._stop(task.claim.worker_id, task_id, detail)

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        worker_id = self._worker(token, request.session)
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
        worker_id = self._worker(token, request.session)
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
            worker_id=self._worker(token, request.session),
            session=request.session,
            reason=request.reason[:REASON_CHARS_MAX] or "given back",
            unfit=request.unfit,
        )
        return await self._do(token, command)

    async def _reattach(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.TokenRequest)
        command = commands.ReattachClaim(
            token=request.token,
            worker_id=self._worker(token, request.session),
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
        self._require_holder(self._worker(token, request.session), request.token)
        return wire.ok(await self._artifacts.missing(token, request))

    async def _checkpoint(self, token: str, raw: bytes) -> bytes:
        request = _parse(raw, wire.CheckpointRequest)
        worker_id = self._worker(token, request.session)
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
        worker_id = self._worker(token, request.session)
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
            worker_id = self._worker(token, request.session)
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


def _is_over(worker: Worker | None, beat: wire.Beat) -> bool:
    return worker is None or worker.session != beat.session


def _held(state: State, worker_id: str, beat: wire.TaskBeat) -> Task | None:
    """The task, if the latest claim of it is this worker's, and stands or can come back."""
    task = state.tasks.table.get(beat.task_id)
    if not isinstance(task, Task) or task.claim is None:
        return None
    mine = task.claim.worker_id == worker_id and task.claim.attempt == beat.attempt
    return task if mine and task.claim.state in ("open", "expired") else None


def _over(worker: Worker | None) -> str:
    """Why a session is over, and what its agent's owner can do."""
    if worker is None or not worker.session:
        return (
            "this session is over: the server knows no session of this worker, as after its data "
            "was replaced; start the agent again"
        )
    return (
        f"this session is over: another agent joined as {worker.worker_id} from {worker.hostname} "
        f"({worker.lane}), and a worker id belongs to one agent at a time; give one of them "
        "another --worker-id"
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
    return wire.RoundBrief(
        round_id=row.round_id,
        node_id=row.node_id,
        index=row.index,
        commitment=row.commitment,
        workload=row.workload,
        look=row.look,
        champion=row.champion,
        candidates=[
            wire.Brought(
                candidate=standing.candidate, task_id=standing.task_id, worker_id=standing.worker_id
            )
            for standing in row.standings
        ],
        withdrawn=row.index < state.rounds.withdrawn_before,
        outdated=state.graph.workload(row.node_id)[0] != row.workload,
    )
