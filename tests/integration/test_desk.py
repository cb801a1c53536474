"""The desk over a real server: what agents may ask, what is refused, and what stays on record."""

import asyncio
import contextlib
import itertools
import json
import os
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from agent import artifacts, machine
from agent.link import Link, Pulled
from core import chunks, commands, errors, events, runtime, subjects, wire
from core.bus import Bus
from core.chunks_jetstream import require_stored
from core.projections.tasks import Task
from faults import harness
from gateway.desk import REQUESTS_CONCURRENT, REQUESTS_PER_WORKER, Desk, Terms
from gateway.refusals import Refusals
from gateway.usage import Quotas
from gateway.work import WorkStream
from orchestrator.scheduler import Scheduler
from tests.acceptance import way
from tests.integration.gateway_stack import Stack, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

MACHINE = machine.Machine(
    hostname="h", device="cpu", devices=1, memory_gb=16.0, cores=2, system="test"
)


class Agents:
    """The stack with its desk, and agents that join it."""

    def __init__(self, stack: Stack, desk: Desk) -> None:
        self.stack = stack
        self.desk = desk
        self.notices: dict[str, asyncio.Queue[wire.Notice]] = {}
        self._links: list[Link] = []

    async def join(self, worker_id: str, origin: str = "") -> Link:
        """An agent with a session; through the relay where it comes from elsewhere."""
        notices = self.notices.setdefault(worker_id, asyncio.Queue())
        link = await Link.join(
            origin or self.stack.origin,
            worker_id,
            MACHINE,
            direct=not origin,
            on_notice=notices.put_nowait,
            on_reconnect=lambda: None,
            on_closed=lambda _: None,
        )
        self._links.append(link)
        await link.hello(MACHINE, [])
        return link

    async def holding(self, worker_id: str) -> tuple[Link, wire.Assignment]:
        """An agent that holds a fresh task."""
        link = await self.join(worker_id)
        await self.stack.enqueue(node_id="stats-bayesian")
        assignment = await link.claim(uuid.uuid4().hex, 0)
        assert assignment is not None
        return link, assignment

    async def expire(self, token: events.Token) -> None:
        await self.stack.do(commands.ExpireClaim(token=token, reason="silence"))

    def row(self, task_id: str) -> Task:
        row = self.stack.parts.door.state.tasks.table.rows[task_id]
        assert isinstance(row, Task)
        return row

    async def refusals_of(self, subject: str) -> list[str]:
        """The reasons on record, once there is one."""
        async with asyncio.timeout(10):
            while True:
                page = (await self.stack.get("/log/refusals?limit=1000")).json["refusals"]
                found = [one["reason"] for one in page if one["subject"] == subject]
                if found:
                    return found
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        for link in self._links:
            await link.close()


@contextlib.asynccontextmanager
async def opened(stack: Stack, store: chunks.ChunkStore | None = None) -> AsyncIterator[Agents]:
    parts = stack.parts
    scheduler = Scheduler(parts.door, WorkStream(parts.connections.fleet))
    refusals = Refusals(parts.connections.control)
    desk = Desk(
        parts.door,
        parts.presence,
        store or parts.store,
        parts.promises,
        parts.usage,
        refusals=refusals,
        fleet=parts.connections.fleet,
        control=parts.connections.control,
        notices=parts.connections.agents,
        offers=scheduler,
        ensure_lane=parts.ensure_lane,
        terms=Terms(),
    )
    await desk.open()
    loops = [asyncio.ensure_future(scheduler.run()), asyncio.ensure_future(refusals.run())]
    agents = Agents(stack, desk)
    try:
        yield agents
    finally:
        await agents.close()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agents]:
    async with (
        started(tmp_path_factory.mktemp("desk") / "data") as stack,
        opened(stack) as one,
    ):
        yield one


async def test_an_offer_wakes_a_waiting_agent_and_its_claim_can_be_repeated(
    agents: Agents,
) -> None:
    link = await agents.join("woken")
    pulling = asyncio.ensure_future(link.pull())
    task_id = await agents.stack.enqueue()
    pulled = await pulling
    assert isinstance(pulled, Pulled)
    claim_id = uuid.uuid4().hex
    first = await link.claim(claim_id, pulled.seq)
    assert first is not None
    assert first.token.task_id == task_id
    assert await link.claim(claim_id, pulled.seq) == first
    assert await link.claim(uuid.uuid4().hex, 0) is None
    await link.release(first.token, "enough")
    await agents.stack.do(commands.CancelTask(task_id=task_id))


async def test_a_task_that_an_agent_is_unfit_for_waits_for_another_and_the_agent_says_why(
    agents: Agents,
) -> None:
    link = await agents.join("small")
    task_id = await agents.stack.enqueue()
    first = await link.claim(uuid.uuid4().hex, 0)
    assert first is not None
    await link.release(first.token, "too little memory", unfit=True)
    assert await link.claim(uuid.uuid4().hex, 0) is None
    workers = (await agents.stack.get("/workers")).json["workers"]
    told = {one["worker_id"]: [mark["reason"] for mark in one["unfit"]] for one in workers}
    assert told["small"] == ["too little memory"]
    other = await agents.join("large")
    assert (await agents.stack.task(task_id))["waits"] == []
    assert await other.claim(uuid.uuid4().hex, 0) is not None
    await agents.stack.do(commands.CancelTask(task_id=task_id))


async def test_an_offer_that_means_nothing_is_ended_whatever_headers_it_has(agents: Agents) -> None:
    link = await agents.join("a1")
    async with agents.stack.nats.connect("desk") as desk, asyncio.timeout(20):
        held = await unanswered(desk, link.lane)
        for headers in ({}, {"Any": "header"}, {"Status": "408"}):
            await desk.request(f"work.{link.lane}", b"{", headers=headers)
            assert await link.pull() is None
        while True:  # the server counts what is ended a moment later
            if await unanswered(desk, link.lane) == held:
                break
            await asyncio.sleep(0.02)


async def unanswered(desk: Bus, lane: str) -> int:
    """How many offers of a lane are out and neither acknowledged nor ended."""
    return int((await desk.api(f"CONSUMER.INFO.WORK.{lane}"))["num_ack_pending"])


async def test_a_worker_of_any_name_can_work(agents: Agents) -> None:
    link, assignment = await agents.holding("حاسوب سارة .*>")
    await link.beat(wire.Beat(worker_id=link.worker_id, session=link.session))
    await link.fail(assignment.token, "لا ذاكرة", "last words")
    assert agents.row(assignment.token.task_id).claims[-1].reason == "لا ذاكرة"
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_nonsense_is_refused_and_kept_on_record_and_the_desk_goes_on(agents: Agents) -> None:
    link = await agents.join("babbler")
    bus = link._bus
    for verb, raw in (
        ("claim", b"\xff"),
        ("claim", b"[" * 5_000),
        ("claim", b'{"session":7}'),
        ("complete", b"{}"),
        ("no-such-verb", b"{}"),
        ("hello", json.dumps({"worker_id": "somebody else", "protocol": 1}).encode()),
    ):
        with pytest.raises((errors.Refused, errors.Conflict)):
            wire.decode(await bus.request(f"fleet.babbler.{verb}", raw), wire.Done)
    await bus.publish("hb.babbler", b"not a heartbeat")
    await bus.publish("hb.babbler", json.dumps({"worker_id": "victim"}).encode())
    assert len(await agents.refusals_of("worker.babbler")) >= 1
    assert await link.claim(uuid.uuid4().hex, 0) is None
    assert agents.stack.parts.presence.last_seen("victim") == 0


async def test_a_session_that_was_never_opened_may_do_nothing(agents: Agents) -> None:
    link, assignment = await agents.holding("honest")
    link.session = "f" * 32
    with pytest.raises(errors.SupersededSession):
        await link.release(assignment.token, "forged")
    assert agents.row(assignment.token.task_id).status == "running"
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_a_heartbeat_is_believed_about_the_workers_own_tasks_only(agents: Agents) -> None:
    link, assignment = await agents.holding("speaker")
    gossip = await agents.join("gossip")
    task_id, attempt = assignment.token.task_id, assignment.token.attempt
    presence = agents.stack.parts.presence

    def said(loss: float, **more: Any) -> wire.TaskBeat:
        values = {"task_id": task_id, "attempt": attempt, "rival": "evolver", "loss": loss, **more}
        return wire.TaskBeat(**values)

    lies = [said(0.1, step=9), *(said(0.2, task_id=f"unknown-{n}") for n in range(50))]
    await gossip.beat(wire.Beat(worker_id="gossip", session=gossip.session, tasks=lies))
    stale = said(0.3, attempt=attempt + 1, step=8)
    await link.beat(wire.Beat(worker_id="speaker", session=link.session, tasks=[stale]))
    # Heartbeats are handled in order: when the last one is answered, so are those before.
    last = said(0.0, task_id="unknown-last")
    await link.beat(
        wire.Beat(worker_id="speaker", session=link.session, tasks=[said(0.5, step=7), last])
    )
    async with asyncio.timeout(10):
        while (await agents.notices["speaker"].get()).task_id != "unknown-last":
            pass
        assert (await agents.notices["gossip"].get()).kind == "stop"
    assert presence.of("speaker").tasks == {task_id: said(0.5, step=7)}
    assert presence.of("gossip").tasks == {}
    await agents.stack.do(commands.CancelTask(task_id=task_id))


async def test_absurd_questions_about_chunks_are_refused(agents: Agents) -> None:
    link, assignment = await agents.holding("asker")
    digest = "a" * 64
    for asked, word in (
        ({digest: -1}, ">= 0"),
        ({digest: 2**40}, "<="),
        ({"no digest": 1}, "matching regex"),
        ({f"{n:064x}": 1 for n in range(chunks.MANIFEST_CHUNKS_MAX + 1)}, "length <="),
    ):
        request = {"session": link.session, "token": assignment.token, "chunks": asked}
        with pytest.raises(errors.Invalid, match=word):
            wire.decode(
                await link._bus.request("fleet.asker.missing", msgspec.json.encode(request)),
                wire.MissingAnswer,
            )
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_a_rivalled_claim_is_stale_for_ever_and_the_refusal_is_kept(agents: Agents) -> None:
    slow, old = await agents.holding("slow")
    await agents.expire(old.token)
    quick = await agents.join("quick")
    taken = await quick.claim(uuid.uuid4().hex, 0)
    assert taken is not None
    assert taken.token.task_id == old.token.task_id
    assert taken.token.attempt == old.token.attempt + 1
    with pytest.raises(errors.StaleAttempt, match="stop this work"):
        await slow.complete(wire.CompleteRequest(token=old.token, metrics={"loss": 0.0}))
    reasons = await agents.refusals_of(f"task.{old.token.task_id}")
    assert any("StaleAttempt" in reason for reason in reasons)
    assert agents.row(old.token.task_id).claims[-1].worker_id == "quick"
    await agents.stack.do(commands.CancelTask(task_id=old.token.task_id))


async def test_an_expired_claim_that_nobody_rivals_is_welcome_back(agents: Agents) -> None:
    link, assignment = await agents.holding("late")
    await agents.expire(assignment.token)
    await link.reattach(assignment.token)
    task = agents.row(assignment.token.task_id)
    assert (task.status, task.claims[-1].state, len(task.claims)) == ("running", "open", 1)
    await link.complete(wire.CompleteRequest(token=assignment.token, metrics={"loss": 1.0}))
    assert (await agents.stack.task(task.task_id))["result"]["metrics"] == {"loss": 1.0}


async def test_a_heartbeat_that_speaks_of_an_expired_unrivalled_task_revives_it(
    agents: Agents,
) -> None:
    link, assignment = await agents.holding("sleeper")
    token = assignment.token
    await agents.expire(token)
    listed = wire.TaskBeat(task_id=token.task_id, attempt=token.attempt)
    await link.beat(wire.Beat(worker_id="sleeper", session=link.session, tasks=[listed]))

    async def is_revived() -> bool:
        return agents.row(token.task_id).status == "running"

    await harness.until(is_revived, "revived", 10)
    assert len(agents.row(token.task_id).claims) == 1
    await link.release(token, "")


async def test_a_connection_of_nobody_is_not_that_of_the_agent_without_a_name(
    agents: Agents,
) -> None:
    await agents.join("")
    agents.desk.heartbeats.connection_gone("unknown", 1)
    assert not agents.stack.parts.presence.of("").disconnected_at


async def test_the_end_of_a_connection_that_was_left_for_a_new_one_is_no_loss(
    agents: Agents,
) -> None:
    await agents.join("mover")
    seen = agents.stack.parts.presence.of("mover")
    agents.desk.heartbeats.connection_here("mover", 1)
    agents.desk.heartbeats.connection_here("mover", 2)
    agents.desk.heartbeats.connection_gone("mover", 1)
    assert not seen.disconnected_at
    agents.desk.heartbeats.connection_gone("mover", 2)
    assert seen.disconnected_at
    agents.desk.heartbeats.connection_here("mover", 3)
    agents.desk.heartbeats.forget_connections()
    agents.desk.heartbeats.connection_gone("mover", 1)
    assert seen.disconnected_at


async def test_a_second_agent_of_the_same_id_takes_over_and_the_first_is_told(
    agents: Agents,
) -> None:
    first, assignment = await agents.holding("twin")
    old = first.session
    second = await agents.join("twin")
    assert agents.row(assignment.token.task_id).claims[-1].state == "released"
    await first.beat(wire.Beat(worker_id="twin", session=old))
    async with asyncio.timeout(10):
        notice = await agents.notices["twin"].get()
    assert (notice.kind, notice.session) == ("superseded", old)
    with pytest.raises(errors.SupersededSession):
        await first.reattach(assignment.token)
    again = await second.claim(uuid.uuid4().hex, 0)
    assert again is not None
    assert again.token.task_id == assignment.token.task_id
    await agents.stack.do(commands.CancelTask(task_id=again.token.task_id))


async def test_no_agent_is_told_of_what_may_not_come_to_be(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "PATIENCE_SECONDS", 0.3)
    link, assignment = await agents.holding("patient")
    token = assignment.token
    gone = wire.TaskBeat(task_id="task-of-nobody", attempt=1)
    held = wire.TaskBeat(task_id=token.task_id, attempt=token.attempt)
    beat = wire.Beat(worker_id="patient", session=link.session, tasks=[held, gone])
    successor = commands.OpenSession(
        worker_id="patient", session="successor", hostname="h", lane="cpu-16", protocol=1
    )
    async with agents.stack.unanswered():
        joining = asyncio.ensure_future(agents.stack.do(successor))
        await link.beat(beat)
        with pytest.raises(errors.LogUnavailable):
            await link.reattach(token)
        with pytest.raises(errors.LogUnavailable):
            await joining
        async with asyncio.timeout(10):
            notice = await agents.notices["patient"].get()
        assert (notice.kind, notice.task_id) == ("stop", "task-of-nobody")
    with pytest.raises(errors.SupersededSession):
        await link.reattach(token)
    await link.beat(beat)
    async with asyncio.timeout(10):
        assert (await agents.notices["patient"].get()).kind == "superseded"
    await agents.stack.do(commands.CancelTask(task_id=token.task_id))


async def test_the_holder_of_a_cancelled_task_is_told_to_stop(agents: Agents) -> None:
    _, assignment = await agents.holding("busy")
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))
    async with asyncio.timeout(10):
        notice = await agents.notices["busy"].get()
    assert (notice.kind, notice.task_id) == ("stop", assignment.token.task_id)


async def downloaded(link: Link, manifest: str) -> dict[str, bytes]:
    """The files of an artifact, by name."""
    with tempfile.TemporaryDirectory() as name:
        await link.download(manifest, Path(name))
        return await asyncio.to_thread(contents, Path(name))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_paused_agent_is_told_at_once_and_again_for_as_long_as_it_errs(
    agents: Agents,
) -> None:
    link, held = await agents.holding("tired one")
    worker = (await agents.stack.post("/workers/tired%20one/pause", {})).json["worker"]
    assert (worker["worker_id"], worker["pause"]) == ("tired one", "pause")
    notices = agents.notices["tired one"]
    async with asyncio.timeout(10):
        assert (await notices.get()).kind == "pause"
        await link.beat(wire.Beat(worker_id="tired one", session=link.session))
        assert (await notices.get()).kind == "pause"
    again = await agents.join("tired one")
    welcome = await again.hello(MACHINE, [])
    assert welcome.pause == "pause"
    assert await again.claim(uuid.uuid4().hex, 0) is None
    await agents.stack.post("/workers/tired%20one/resume", {})
    async with asyncio.timeout(10):
        while (await notices.get()).kind != "resume":
            pass
    assert await again.claim(uuid.uuid4().hex, 0) is not None
    assert (await agents.stack.post("/workers/nobody/drain", {})).status == 404
    await agents.stack.do(commands.CancelTask(task_id=held.token.task_id))


async def packed(tmp_path: Path, data: bytes, writer: str) -> artifacts.Packed:
    directory = tmp_path / uuid.uuid4().hex
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(data)
    return await asyncio.to_thread(artifacts.pack, directory, "checkpoint", writer)


def announced(assignment: wire.Assignment, manifest: chunks.Manifest) -> wire.CheckpointRequest:
    return wire.CheckpointRequest(
        token=assignment.token, rival="evolver", step=10, total_steps=20, manifest=manifest
    )


async def test_a_checkpoint_is_stored_resumed_from_and_read_by_its_next_holder_only(
    agents: Agents, tmp_path: Path
) -> None:
    link, assignment = await agents.holding("saver")
    one = await packed(tmp_path, b"weights" * 300_000, link.token)
    await link.upload(assignment.token, one.manifest, one.pieces)
    await link.checkpoint(announced(assignment, one.manifest))
    await agents.expire(assignment.token)
    heir = await agents.join("heir")
    stranger = await agents.join("stranger")
    taken = await heir.claim(uuid.uuid4().hex, 0)
    assert taken is not None
    (point,) = taken.resume
    assert point.step == 10
    files = await downloaded(heir, point.manifest)
    assert files == {"model.safetensors": b"weights" * 300_000}
    with pytest.raises(errors.NotOwner):
        await downloaded(stranger, point.manifest)
    await agents.stack.do(commands.CancelTask(task_id=taken.token.task_id))


async def test_a_chunk_that_is_not_what_its_name_says_is_refused_and_taken_away(
    agents: Agents, tmp_path: Path
) -> None:
    link, assignment = await agents.holding("forger")
    one = await packed(tmp_path, b"honest weights", link.token)
    ((digest, piece),) = one.pieces.items()
    require_stored(await link._bus.request(f"chunk.{link.token}.{digest}", b"others"))
    with pytest.raises(errors.ArtifactError):
        await link.checkpoint(announced(assignment, one.manifest))
    assert agents.row(assignment.token.task_id).resume == ()
    await link.upload(assignment.token, one.manifest, {digest: piece})
    await link.checkpoint(announced(assignment, one.manifest))
    assert len(agents.row(assignment.token.task_id).resume) == 1
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_an_upload_that_is_cut_sends_at_most_one_chunk_twice(
    agents: Agents, tmp_path: Path
) -> None:
    host, port = agents.stack.origin.removeprefix("http://").split(":")
    async with way.to(host, int(port)) as path:
        link = await agents.join("cut", path.origin)
        await agents.stack.enqueue(node_id="stats-bayesian")
        assignment = await link.claim(uuid.uuid4().hex, 0)
        assert assignment is not None
        one = await packed(tmp_path, os.urandom(20 * chunks.CHUNK_BYTES), link.token)
        before = path.sent_bytes
        path.breaks_at = before + 7 * chunks.CHUNK_BYTES + 1_000
        while True:
            try:
                sent = await link.upload(assignment.token, one.manifest, one.pieces)
                break
            except errors.Unavailable:
                await asyncio.sleep(0.1)
        assert path.breaks_at is None, "it was cut"
        assert path.sent_bytes - before <= 21.2 * chunks.CHUNK_BYTES
        await link.checkpoint(announced(assignment, sent))
        await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def lending(agents: Agents, tmp_path: Path, piece: bytes) -> str:
    """A chunk that the agent `lender` stored and named; its digest."""
    link, assignment = await agents.holding("lender")
    one = await packed(tmp_path, piece, link.token)
    await link.upload(assignment.token, one.manifest, one.pieces)
    await link.checkpoint(announced(assignment, one.manifest))
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))
    return one.manifest.files[0].chunks[0]


async def test_a_chunk_that_another_agent_stored_is_not_sent_again_and_read_by_who_may(
    agents: Agents, tmp_path: Path
) -> None:
    piece = os.urandom(chunks.CHUNK_BYTES)
    digest = await lending(agents, tmp_path, piece)
    link, assignment = await agents.holding("borrower")
    one = await packed(tmp_path, piece + b"and more", link.token)
    for _ in range(2):
        sent = await link.upload(assignment.token, one.manifest, one.pieces)
        assert sent.lent == {"lender": [digest]}
    await link.checkpoint(announced(assignment, sent))
    assert not await agents.stack.parts.store.has("borrower", digest)
    await agents.expire(assignment.token)
    reader = await agents.join("reader of what was lent")
    taken = await reader.claim(uuid.uuid4().hex, 0)
    assert taken is not None
    files = await downloaded(reader, taken.resume[0].manifest)
    assert files == {"model.safetensors": piece + b"and more"}
    with pytest.raises(errors.NotOwner):
        await downloaded(link, taken.resume[0].manifest)
    await agents.stack.do(commands.CancelTask(task_id=taken.token.task_id))


async def test_who_only_knows_the_name_of_a_chunk_is_lent_nothing(
    agents: Agents, tmp_path: Path
) -> None:
    piece = os.urandom(chunks.CHUNK_BYTES)
    digest = await lending(agents, tmp_path, piece)
    link, assignment = await agents.holding("curious")
    request = wire.MissingRequest(
        session=link.session,
        token=assignment.token,
        chunks={digest: len(piece)},
        proofs={digest: wire.proof("another session", piece)},
    )
    answer = await link._ask("missing", request, wire.MissingAnswer)
    assert (answer.missing, answer.lent) == ([digest], {})
    file = chunks.File(name="f", bytes=len(piece), sha256=digest, chunks=[digest])
    manifest = chunks.Manifest(
        kind="checkpoint", writer=link.token, files=[file], lent={"lender": [digest]}
    )
    with pytest.raises(errors.ArtifactError, match="not lent"):
        await link.checkpoint(announced(assignment, manifest))
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_a_lent_chunk_that_is_gone_or_damaged_is_sent_by_who_borrowed_it(
    agents: Agents, tmp_path: Path
) -> None:
    piece = os.urandom(chunks.CHUNK_BYTES)
    digest = await lending(agents, tmp_path, piece)
    link, assignment = await agents.holding("careful")
    one = await packed(tmp_path, piece, link.token)
    sent = await link.upload(assignment.token, one.manifest, one.pieces)
    agents.desk._artifacts._verified.clear()  # as a while later
    await agents.stack.parts.store.delete("lender", digest)
    await agents.stack.parts.connections.fleet.request(f"chunk.lender.{digest}", b"damaged")
    with pytest.raises(errors.ArtifactError, match="send it again"):
        await link.checkpoint(announced(assignment, sent))
    sent = await link.upload(assignment.token, one.manifest, one.pieces)
    assert sent.lent == {}
    await link.checkpoint(announced(assignment, sent))
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_a_manifest_cannot_reach_outside_of_a_directory_or_speak_for_others(
    agents: Agents, tmp_path: Path
) -> None:
    link, assignment = await agents.holding("climber")
    one = await packed(tmp_path, b"x", link.token)
    file = one.manifest.files[0]
    for manifest in (
        chunks.Manifest(kind="checkpoint", writer="desk", files=[file]),
        chunks.Manifest(
            kind="checkpoint",
            writer=link.token,
            files=[chunks.File(name="../x", bytes=1, sha256=file.sha256, chunks=file.chunks)],
        ),
    ):
        with pytest.raises((errors.Refused, errors.ArtifactError)):
            await link.checkpoint(announced(assignment, manifest))
    assert agents.row(assignment.token.task_id).resume == ()
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))


async def test_a_completion_brings_its_candidate_into_a_round(
    agents: Agents, tmp_path: Path
) -> None:
    await agents.stack.do(commands.DepositCommitments(judge="j", first=0, commitments=["0" * 64]))
    link, assignment = await agents.holding("winner")
    one = await packed(tmp_path, b"weights of a candidate", link.token)
    await link.upload(assignment.token, one.manifest, one.pieces)
    request = wire.CompleteRequest(
        token=assignment.token,
        metrics={"loss": 0.5},
        candidates=[
            wire.BroughtCandidate(
                rival="reinventor", manifest=one.manifest, weights_sha256="a" * 64
            )
        ],
    )
    await link.complete(request)
    await link.complete(request)
    task = await agents.stack.task(assignment.token.task_id)
    state = agents.stack.parts.door.state
    standing = state.rounds.table.rows[task["round_id"]].standings  # type: ignore[union-attr]
    assert [one.candidate.rival for one in standing] == ["reinventor"]
    assert state.tasks.table.rows[assignment.token.task_id].status == "completed"
    assert subjects.token("winner") == standing[0].candidate.writer


async def test_beyond_its_quota_a_worker_stores_no_checkpoint_but_its_result_and_gets_no_more_work(
    agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, assignment = await agents.holding("full")
    usage = agents.stack.parts.usage
    size = 10 * chunks.CHUNK_BYTES
    monkeypatch.setattr(usage, "quotas", Quotas(worker_bytes=size))
    one = await packed(tmp_path, os.urandom(int(0.85 * size)), link.token)
    sent = await link.upload(assignment.token, one.manifest, one.pieces)
    await link.checkpoint(announced(assignment, sent))
    more = await packed(tmp_path, os.urandom(size // 10), link.token)
    with pytest.raises(errors.QuotaExceeded, match="artifacts of full take"):
        await link.upload(assignment.token, more.manifest, more.pieces)
    assert [one.step for one in agents.row(assignment.token.task_id).resume] == [10]
    result = msgspec.structs.replace(more.manifest, kind="candidate")
    sent = await link.upload(assignment.token, result, more.pieces)
    brought = wire.BroughtCandidate(rival="evolver", manifest=sent, weights_sha256="a" * 64)
    await link.complete(
        wire.CompleteRequest(token=assignment.token, metrics={"loss": 1.0}, candidates=[brought])
    )
    await agents.stack.enqueue(node_id="stats-bayesian")
    with pytest.raises(errors.LogFull, match="--worker-quota-gib"):
        await link.claim(uuid.uuid4().hex, 0)
    monkeypatch.undo()
    taken = await link.claim(uuid.uuid4().hex, 0)
    assert taken is not None
    await agents.stack.do(commands.CancelTask(task_id=taken.token.task_id))


class _Unhurried(chunks.MemoryChunks):
    """A chunk store that answers once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def has(self, writer: str, digest: str) -> bool:
        await self.may_answer.wait()
        return await super().has(writer, digest)


async def test_an_agent_that_asks_too_much_at_once_takes_nobody_elses_turn(tmp_path: Path) -> None:
    store = _Unhurried()
    async with started(tmp_path / "data") as stack, opened(stack, store) as agents:
        greedy, held = await agents.holding("greedy")
        other = await agents.join("other")
        one = await packed(tmp_path, b"piece", greedy.token)
        asked = [
            asyncio.ensure_future(greedy.upload(held.token, one.manifest, one.pieces))
            for _ in range(REQUESTS_PER_WORKER + REQUESTS_CONCURRENT)
        ]
        for answer in itertools.islice(
            asyncio.as_completed(asked, timeout=10), REQUESTS_CONCURRENT
        ):
            with pytest.raises(errors.Overloaded):
                await answer
        assert await other.claim(uuid.uuid4().hex, 0) is None
        store.may_answer.set()
        await asyncio.gather(*(one for one in asked if not one.done()))
