"""The sweep of the artifact store, on a real server: what goes, what stays, whatever happens."""

import asyncio
import contextlib
import functools
import os
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import safetensors.torch
import torch

from agent.artifacts import Packed, Stored, pack
from agent.link import Link
from core import (
    audit,
    chunks,
    commands,
    errors,
    events,
    platforms,
    runtime,
    survey,
    topology,
    wire,
)
from core.audit import artifacts
from core.audit.findings import Findings
from core.chunks_jetstream import JetStreamChunks
from core.events import Rival
from core.log_jetstream import JetStreamLog
from core.promises import GRACE_SECONDS_MIN
from core.room import LOOKS_PER_FILLING, Disk, Filling
from faults import harness
from gateway import sweeper
from gateway.artifacts import LENT_BYTES_MIN
from gateway.control import Control
from gateway.sweeper import SLICE, Access, ChildSurvey, Sweep
from gateway.usage import NO_QUOTAS
from tests.integration.gateway_stack import started
from tests.integration.test_desk import Agents, downloaded, opened
from tests.integration.test_replay_audit import write_run

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY = 24 * 3600.0


class Store:
    """Agents that bring artifacts, a clock to set, and what the store holds.

    The log goes by the set clock by itself; what nats-server says of the time is set in the survey,
    which is made in this process for that.
    """

    def __init__(self, agents: Agents) -> None:
        self.agents = agents
        self.parts = agents.stack.parts
        self.sweeper = self.parts.sweeper
        self.plain = JetStreamChunks(self.parts.connections.fleet)
        self.ahead = 0.0
        self._set: list[tuple[int, float]] = []
        """From which message of CHUNKS on the clock was so much ahead."""
        self._now, self._stored = runtime.now, JetStreamChunks.stored

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Inside the block everything goes by the set clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime, "now", self.now)
            patch.setattr(JetStreamChunks, "stored", lambda *asked: self._stored_then(*asked))
            patch.setattr(self.sweeper, "now", self.now)
            patch.setattr(self.sweeper, "survey", lambda *times: InProcess(self.parts, *times))
            patch.setattr(self.parts.promises, "clock", lambda: time.monotonic() + self.ahead)
            patch.setattr(self.parts.promises, "wall", lambda: time.time() + self.ahead)
            yield

    def now(self) -> int:
        return self._now() + int(self.ahead * 1e6)

    async def _stored_then(
        self, store: JetStreamChunks, after: int | None = None
    ) -> AsyncIterator[chunks.Item]:
        async for one in self._stored(store, after):
            ahead = [ahead for last, ahead in self._set if one.seq > last]
            yield one._replace(at=one.at + int((ahead[-1] if ahead else 0.0) * 1e6))

    async def wait(self, seconds: float = DAY + 60) -> None:
        """Let time pass."""
        info = await self.parts.connections.fleet.api("STREAM.INFO.CHUNKS")
        self.ahead += seconds
        self._set.append((info["state"]["last_seq"], self.ahead))

    async def sweep(self) -> Sweep:
        done = await self.sweeper.sweep()
        assert not done.unfinished
        return done

    async def later(self, seconds: float = DAY + 60) -> Sweep:
        """Let time pass, then sweep."""
        await self.wait(seconds)
        return await self.sweep()

    async def held(self) -> set[tuple[str, str]]:
        """Writer and digest of all that is stored."""
        return {(one.writer, one.digest) async for one in self.plain.stored()}

    async def events(self) -> list[events.ArtifactsSwept]:
        records = await self.parts.log.of_subject("ev.log.sweep")
        decoded = [events.decode(*record) for record in records]
        return [one.data for one in decoded if isinstance(one, events.Event)]  # type: ignore[misc]

    async def require_whole(self) -> None:
        """Assert that an audit finds nothing: no rule broken, nothing that is needed missing."""
        auditor = await audit.read_log(self.parts.log)
        await artifacts.check(self.plain, auditor.named(), auditor.findings)
        assert auditor.findings.shown == []

    async def holding(self, worker_id: str) -> "Holder":
        link, assignment = await self.agents.holding(worker_id)
        return Holder(link, assignment.token)


class InProcess:
    """A survey as the child makes it."""

    def __init__(self, parts: Control, moment: int, before: int) -> None:
        store = JetStreamChunks(parts.connections.fleet)
        self._ask = functools.partial(survey.survey, parts.log, store, moment, before)

    async def __aenter__(self) -> "InProcess":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def overview(self) -> survey.Overview:
        overview, self._dead = await self._ask()
        return overview

    async def dead(self) -> AsyncIterator[list[survey.Dead]]:
        for first in range(0, len(self._dead), SLICE):
            yield self._dead[first : first + SLICE]


class Holder:
    """An agent that holds a task."""

    def __init__(self, link: Link, token: events.Token) -> None:
        self.link = link
        self.token = token

    async def checkpoint(self, step: int, *files: bytes, rival: Rival = "evolver") -> Packed:
        """Upload files and announce them as a checkpoint."""
        return await self.send(step, packed_of("checkpoint", self.link.token, *files), rival)

    async def send(self, step: int, packed: Packed, rival: Rival = "evolver") -> Packed:
        """Upload what is packed and announce it as a checkpoint."""
        sent = await self.link.upload(self.token, packed.manifest, packed.pieces)
        packed = packed._replace(manifest=sent)
        await self.announce(step, packed, rival)
        return packed

    async def announce(self, step: int, packed: Packed, rival: Rival = "evolver") -> None:
        await self.link.checkpoint(
            wire.CheckpointRequest(
                token=self.token,
                rival=rival,
                step=step,
                total_steps=100,
                manifest=packed.manifest,
            )
        )

    async def complete(self, *files: bytes, metrics: dict[str, Any] | None = None) -> Packed:
        """Bring a candidate."""
        packed = packed_of("candidate", self.link.token, *files)
        await self.link.upload(self.token, packed.manifest, packed.pieces)
        brought = wire.BroughtCandidate(
            rival="evolver", manifest=packed.manifest, weights_sha256="0" * 64, claims={}
        )
        await self.link.complete(
            wire.CompleteRequest(token=self.token, metrics=metrics or {}, candidates=[brought])
        )
        return packed


def packed_of(kind: str, writer: str, *files: bytes) -> Packed:
    """Files of one chunk each, without a directory."""
    pieces = {chunks.digest_of(data): data for data in files}
    described = [
        chunks.File(name=f"f{number}", bytes=len(data), sha256=digest, chunks=[digest])
        for number, (digest, data) in enumerate(pieces.items())
    ]
    return Packed(chunks.Manifest(kind=kind, writer=writer, files=described), pieces)


def digest_of(packed: Packed) -> str:
    return chunks.digest_of(packed.manifest.encode())


def parts_of(packed: Packed) -> set[tuple[str, str]]:
    """What a packed artifact takes in the store."""
    pieces = {(writer, digest) for digest, writer in packed.manifest.places().items()}
    return {(chunks.DESK, digest_of(packed)), *pieces}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agents]:
    async with (
        started(tmp_path_factory.mktemp("sweep") / "data") as stack,
        opened(stack) as one,
    ):
        yield one


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def store(agents: Agents) -> AsyncIterator[Store]:
    one = Store(agents)
    with one.clock():
        yield one


def fresh() -> bytes:
    return os.urandom(2_000)


async def test_a_superseded_checkpoint_goes_and_the_last_one_stays(store: Store) -> None:
    holder = await store.holding("a1")
    shared = fresh()
    first = await holder.checkpoint(1, shared, fresh())
    second = await holder.checkpoint(2, shared, fresh())
    before, used = await store.held(), store.parts.usage.total_bytes
    done = await store.later()
    assert store.parts.usage.total_bytes == used - done.bytes
    gone = parts_of(first) - parts_of(second)
    assert before - await store.held() == gone
    assert (done.chunks, done.spared) == (len(gone), 0)
    assert digest_of(first) in [one for event in await store.events() for one in event.manifests]
    await store.require_whole()
    await holder.complete(fresh())


async def test_nothing_younger_than_the_grace_goes_nor_what_was_needed_within_it(
    store: Store,
) -> None:
    await store.later()
    holder = await store.holding("a2")
    first = await holder.checkpoint(1, fresh())
    await holder.checkpoint(2, fresh())
    assert (await store.later(DAY - 60)).chunks == 0
    assert parts_of(first) <= await store.held()
    # Old by now, and superseded this moment: whoever read the log before that may still want it.
    old = await holder.checkpoint(3, fresh())
    await store.wait()
    await holder.checkpoint(4, fresh())
    await store.sweep()
    assert parts_of(old) <= await store.held()
    await store.later()
    assert not parts_of(old) & await store.held()
    await holder.complete(fresh())


async def test_what_a_task_brought_stays_and_how_it_came_there_goes(store: Store) -> None:
    holder = await store.holding("a3")
    point = await holder.checkpoint(1, fresh())
    brought = await holder.complete(fresh(), metrics={"losses": ["x" * 100] * 1_000})
    stack = store.agents.stack
    task_id = await stack.held("http")
    payload = {"rows": ["y" * 100] * 1_000}
    reply = await stack.complete(
        task_id, "http", metrics={"m": "z" * 50_000}, artifact_payload=payload
    )
    assert reply.status == 200
    await store.later()
    held = await store.held()
    assert parts_of(brought) <= held
    assert not parts_of(point) & held
    row = await stack.task(task_id)
    assert row["result"]["metrics"] == {"m": "z" * 50_000}
    await store.require_whole()


async def test_chunks_that_nobody_named_go(store: Store) -> None:
    holder = await store.holding("a4")
    packed = packed_of("checkpoint", holder.link.token, fresh())
    await holder.link.upload(holder.token, packed.manifest, packed.pieces)
    await store.later()
    (digest,) = packed.pieces
    assert ("a4", digest) not in await store.held()
    with pytest.raises(errors.ArtifactError, match="send it again"):
        await holder.announce(1, packed)
    await holder.link.upload(holder.token, packed.manifest, packed.pieces)
    await holder.announce(1, packed)
    assert parts_of(packed) <= await store.held()
    await holder.complete(fresh())


async def test_a_chunk_that_an_agent_was_told_is_there_stays(store: Store) -> None:
    holder = await store.holding("a5")
    first = await holder.checkpoint(1, fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()
    await holder.link.upload(holder.token, first.manifest, first.pieces)
    done = await store.sweep()
    assert done.spared == 1
    await holder.announce(3, first)
    await store.later()
    assert parts_of(first) <= await store.held()
    await store.require_whole()
    await holder.complete(fresh())


async def test_a_chunk_that_was_lent_stays_as_long_as_who_borrowed_it_needs_it(
    store: Store,
) -> None:
    lender, borrower = await store.holding("lender"), await store.holding("borrower")
    base = os.urandom(LENT_BYTES_MIN)
    await lender.checkpoint(1, base)
    borrowed = await borrower.checkpoint(1, base, fresh())
    (lent,) = borrowed.manifest.lent["lender"]
    await lender.complete(fresh())
    await store.later()
    assert parts_of(borrowed) <= await store.held()
    await store.require_whole()
    await borrower.complete(fresh())
    await store.later()
    assert ("lender", lent) not in await store.held()


async def test_what_a_delta_starts_from_stays_as_long_as_the_delta_is_needed(
    store: Store, tmp_path: Path
) -> None:
    holder = await store.holding("a6b")
    weights = torch.randn(40_000)
    stored: Stored | None = None
    sent = []
    for step in range(3):
        folder = tmp_path / str(step)
        folder.mkdir()
        data = safetensors.torch.save({"w": weights + step * 1e-5})
        (folder / "model.safetensors").write_bytes(data)
        packed = pack(folder, "checkpoint", holder.link.token, before=stored)
        sent.append(await holder.send(step, packed))
        stored = Stored(sent[-1].manifest, folder)
    await store.later()
    held = await store.held()
    assert [digest_of(one) for one in sent if (chunks.DESK, digest_of(one)) in held] == [
        digest_of(sent[-1])
    ]
    assert sum(len(one.pieces) for one in sent) > len(sent[-1].pieces) > 0
    assert parts_of(sent[-1]) <= held
    await store.require_whole()
    await store.agents.expire(holder.token)
    heir = await store.holding("a6c")
    point = store.agents.row(heir.token.task_id).resume[0]
    assert await downloaded(heir.link, point.manifest) == {"model.safetensors": data}
    await heir.complete(fresh())


async def test_what_is_named_after_the_survey_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await store.holding("a6")
    first = await holder.checkpoint(1, fresh(), fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()
    overview = InProcess.overview

    async def named_then(self: InProcess) -> survey.Overview:
        found = await overview(self)
        await holder.announce(3, first)
        return found

    monkeypatch.setattr(InProcess, "overview", named_then)
    done = await store.sweep()
    assert done.spared == len(parts_of(first))
    assert parts_of(first) <= await store.held()
    await store.require_whole()
    await holder.complete(fresh())


async def test_what_is_named_between_the_event_and_the_deleting_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await store.holding("a7")
    first = await holder.checkpoint(1, fresh(), fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()
    execute = store.parts.door.execute

    async def named_then(command: Any, *more: Any) -> Any:
        answer = await execute(command, *more)
        if isinstance(command, commands.SweepArtifacts):
            monkeypatch.undo()
            assert digest_of(first) in command.manifests
            await holder.announce(3, first)
        return answer

    monkeypatch.setattr(store.parts.door, "execute", named_then)
    await store.sweep()
    assert parts_of(first) <= await store.held()
    await store.require_whole()
    await holder.complete(fresh())


async def test_who_asks_for_a_chunk_that_is_just_being_swept_waits_and_sends_it_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await store.holding("a7b")
    first = await holder.checkpoint(1, fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()
    (digest,) = first.pieces
    delete = store.sweeper.store.sweep
    uploads: list[asyncio.Task[chunks.Manifest]] = []

    async def slow(item: chunks.Item) -> None:
        if not uploads and (("a7b", digest) in await store.held()):
            upload = holder.link.upload(holder.token, first.manifest, first.pieces)
            uploads.append(asyncio.ensure_future(upload))
            await asyncio.sleep(0.2)
        await delete(item)

    monkeypatch.setattr(store.sweeper.store, "sweep", slow)
    await store.sweep()
    await uploads[0]
    await holder.announce(3, first)
    assert parts_of(first) <= await store.held()
    await store.require_whole()
    await holder.complete(fresh())


async def test_what_a_crash_left_after_the_event_goes_with_the_next_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await store.holding("a8")
    first = await holder.checkpoint(1, fresh(), fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()

    async def dead(_: chunks.Item) -> None:
        raise errors.Unavailable("gone")

    told = len(await store.events())
    monkeypatch.setattr(store.sweeper.store, "sweep", dead)
    with pytest.raises(errors.Unavailable):
        await store.sweep()
    monkeypatch.undo()
    assert len(await store.events()) == told + 1
    assert parts_of(first) <= await store.held()
    await store.require_whole()
    await store.sweep()
    assert not parts_of(first) & await store.held()
    await store.require_whole()
    await holder.complete(fresh())


async def test_what_is_not_written_down_is_not_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await store.holding("a9")
    first = await holder.checkpoint(1, fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()

    async def refuse(*_: Any) -> None:
        raise errors.LogUnavailable("no answer")

    monkeypatch.setattr(store.parts.door, "execute", refuse)
    with pytest.raises(errors.LogUnavailable):
        await store.sweep()
    monkeypatch.undo()
    assert parts_of(first) <= await store.held()
    await holder.complete(fresh())


async def test_a_dry_run_tells_what_would_go_and_takes_nothing(store: Store) -> None:
    holder = await store.holding("b1")
    await holder.checkpoint(1, fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()
    before, told = await store.held(), len(await store.events())
    dry = await store.sweeper.sweep(dry_run=True)
    assert dry.chunks >= 2
    assert (await store.held(), len(await store.events())) == (before, told)
    done = await store.sweep()
    assert (done.chunks, done.bytes) == (dry.chunks, dry.bytes)
    await holder.complete(fresh())


async def test_nothing_goes_while_more_is_relied_on_than_can_be_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = await store.holding("b2")
    first = await holder.checkpoint(1, *(fresh() for _ in range(3)))
    await holder.checkpoint(2, fresh())
    await store.wait()
    monkeypatch.setattr(store.parts.promises, "_kept", {})
    monkeypatch.setattr(store.parts.promises, "_most", 2)
    await holder.link.upload(holder.token, first.manifest, first.pieces)
    done = await store.sweeper.sweep()
    assert done.chunks == 0
    assert "sweep again later" in done.unfinished
    monkeypatch.undo()
    assert (await store.later()).chunks >= len(parts_of(first))
    await holder.complete(fresh())


async def test_a_second_sweep_at_the_same_time_is_refused(store: Store) -> None:
    first = asyncio.ensure_future(store.sweeper.sweep())
    await asyncio.sleep(0)
    with pytest.raises(errors.Conflict, match="under way"):
        await store.sweeper.sweep()
    await first


@pytest.mark.parametrize("seed", range(3))
async def test_after_any_sequence_of_uploads_and_sweeps_every_live_artifact_is_whole(
    store: Store, seed: int
) -> None:
    rng = random.Random(seed)
    pool = [rng.randbytes(500 + number) for number in range(12)]
    holders = [await store.holding(f"s{seed}-{number}") for number in range(3)]
    packed: list[tuple[Holder, Packed]] = []

    def some_files() -> list[bytes]:
        return rng.sample(pool, rng.randint(1, 4))

    async def act(step: int) -> None:
        holder = rng.choice(holders)
        match rng.randrange(5):
            case 0:
                files = some_files()
                one = packed_of("checkpoint", holder.link.token, *files)
                await holder.link.upload(holder.token, one.manifest, one.pieces)
                packed.append((holder, one))
            case 1 if packed:
                holder, one = rng.choice(packed)
                if holder in holders:
                    with contextlib.suppress(errors.ArtifactError):
                        await holder.announce(step, one)
            case 2:
                await holder.checkpoint(step, *some_files(), rival="reinventor")
            case 3 if rng.random() < 0.3:
                holders.remove(holder)
                await holder.complete(*some_files())
                holders.append(await store.holding(f"s{seed}-{step}-{uuid.uuid4().hex[:6]}"))
            case _:
                await holder.checkpoint(step, *some_files())

    async def beside(step: int) -> None:
        with contextlib.suppress(errors.StaleAttempt):  # its task may be completed just then
            await act(step)

    for step in range(40):
        if step % 8 == 7:
            # Sweeps beside what the agents do.
            await asyncio.gather(store.sweep(), *(beside(step) for _ in range(3)))
            await store.require_whole()
        else:
            await store.wait(rng.choice([0.0, 60.0, 1_000.0, DAY / 2, DAY * 2]))
            await act(step)
    await store.later()
    await store.require_whole()
    for holder in holders:
        await holder.complete(fresh())


async def test_an_artifact_that_is_lost_keeps_no_sweep_up(store: Store) -> None:
    holder = await store.holding("lost")
    brought = await holder.complete(fresh())
    await store.parts.store.delete(chunks.DESK, digest_of(brought))
    done = await store.later()
    assert done.overview.lost == 1
    auditor = await audit.read_log(store.parts.log)
    findings = Findings()
    await artifacts.check(store.plain, auditor.named(), findings)
    assert [one.rule for one in findings.shown] == ["artifacts"]


async def test_a_survey_is_made_by_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path / "بيانات و فراغ") as stack, opened(stack) as agents:
        store = Store(agents)
        holder = await store.holding("a1")
        first = await holder.checkpoint(1, *(fresh() for _ in range(10)))
        second = await holder.checkpoint(2, fresh())
        assert (await store.sweeper.sweep()).chunks == 0
        tomorrow = runtime.now() + int((DAY + 60) * 1e6)
        monkeypatch.setattr(store.sweeper, "now", lambda: tomorrow)
        done = await store.sweeper.sweep()
        assert (done.chunks, done.spared) == (len(parts_of(first)), 0)
        assert await store.held() == parts_of(second)
        assert [one.manifests for one in await store.events()] == [[digest_of(first)]]
        away = Access("nats://127.0.0.1:9", *store_creds(stack.nats.data))
        monkeypatch.setattr(store.sweeper, "survey", functools.partial(ChildSurvey, away))
        with pytest.raises(errors.Unavailable, match=r"cannot be found out: .*127.0.0.1:9"):
            await store.sweeper.sweep()


def store_creds(data: Path) -> tuple[Path, Path]:
    return data / "creds" / "control.creds", data / "creds" / "desk.creds"


async def test_people_sweep_over_http_and_see_it_in_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path / "data") as stack, opened(stack) as agents:
        store = Store(agents)
        holder = await store.holding("a1")
        await holder.checkpoint(1, fresh())
        await holder.checkpoint(2, fresh())
        tomorrow = runtime.now() + int((DAY + 60) * 1e6)
        monkeypatch.setattr(store.sweeper, "now", lambda: tomorrow)
        misspelt = await stack.post("/artifacts/gc", {"dryrun": True})
        assert misspelt.status == 422
        dry = (await stack.post("/artifacts/gc", {"dry_run": True})).json["sweep"]
        assert (dry["dry_run"], dry["chunks"], dry["unfinished"]) == (True, 2, None)
        done = (await stack.post("/artifacts/gc", {})).json["sweep"]
        assert {**dry, "dry_run": False} == done
        again = (await stack.post("/artifacts/gc", {})).json["sweep"]
        assert (again["chunks"], again["artifacts"], again["live_chunks"]) == (0, 1, 2)
        page = (await stack.ask("GET", "/metrics")).body.decode()
        assert "aghsan_chunks_swept_total 2\n" in page
        assert f"aghsan_chunks_swept_bytes_total {done['bytes']}\n" in page


async def test_work_goes_on_by_itself_once_a_full_store_was_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = topology.load()
    small = msgspec.structs.replace(declared.streams["CHUNKS"], max_mib=4)
    declared = msgspec.structs.replace(declared, streams={**declared.streams, "CHUNKS": small})
    monkeypatch.setattr(topology, "load", lambda: declared)
    async with started(tmp_path / "data") as stack, opened(stack) as agents:
        store = Store(agents)
        room = stack.parts.room
        monkeypatch.setattr(room, "disk_of", lambda _: Disk(2**40, 2**40))
        monkeypatch.setattr(stack.parts.usage, "quotas", NO_QUOTAS)  # the store itself is full
        holder = await store.holding("a1")
        for step in range(7):
            last = await holder.checkpoint(step, os.urandom(500_000))
        assert await store.sweeper._is_pressed()
        await room.look()
        refused = await stack.post("/training/enqueue", {"topic": "t"})
        assert refused.status == 507
        assert "artifact gc" in refused.json["detail"]
        soon = runtime.now() + int((GRACE_SECONDS_MIN + 60) * 1e6)
        monkeypatch.setattr(store.sweeper, "now", lambda: soon)
        assert (await store.sweeper.sweep()).bytes == 6 * (500_000 + len(last.manifest.encode()))
        assert not await store.sweeper._is_pressed()
        for _ in range(LOOKS_PER_FILLING):
            await room.look()
        assert (await stack.post("/training/enqueue", {"topic": "t"})).status == 200
        await holder.checkpoint(8, os.urandom(500_000))


async def test_in_a_full_store_what_nobody_asked_about_goes_at_once_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = topology.load()
    small = msgspec.structs.replace(declared.streams["CHUNKS"], max_mib=4)
    declared = msgspec.structs.replace(declared, streams={**declared.streams, "CHUNKS": small})
    monkeypatch.setattr(topology, "load", lambda: declared)
    async with started(tmp_path / "data") as stack, opened(stack) as agents:
        store = Store(agents)
        monkeypatch.setattr(stack.parts.usage, "quotas", NO_QUOTAS)  # the store itself is full
        holder, rogue = await store.holding("a1"), await agents.join("rogue")
        packed = packed_of("checkpoint", holder.link.token, os.urandom(500_000))
        await holder.link.upload(holder.token, packed.manifest, packed.pieces)
        text = await stack.parts.store.put(chunks.DESK, fresh())
        for at_once, swept in ((4, 0), (2, 6)):
            for _ in range(at_once):
                data = os.urandom(500_000)
                await rogue._bus.request(f"chunk.rogue.{chunks.digest_of(data)}", data)
            assert (await store.sweeper.sweep()).chunks == swept
        await holder.announce(1, packed)
        assert await store.held() == {(chunks.DESK, text), *parts_of(packed)}
        await store.require_whole()


async def test_a_backup_beside_a_sweep_is_whole_and_can_be_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    async with started(data) as stack, opened(stack) as agents:
        store = Store(agents)
        holder = await store.holding("a1")
        for step in range(30):
            last = await holder.checkpoint(step, *(os.urandom(20_000) for _ in range(5)))
        tomorrow = runtime.now() + int((DAY + 60) * 1e6)
        monkeypatch.setattr(store.sweeper, "now", lambda: tomorrow)
        with platforms.DataLock(data / "lock"):
            write_run(data, stack.nats.url, data)
            saving = asyncio.ensure_future(
                command("backup", tmp_path / "beside.tar", "--data", data)
            )
            swept = await store.sweeper.sweep()
            await saving
            assert swept.chunks == 29 * 6
            await command("backup", tmp_path / "after.tar", "--data", data)
    for name in ("beside", "after"):
        restored = tmp_path / name
        await command("restore", tmp_path / f"{name}.tar", "--data", restored)
        await command("audit", "--data", restored)
        await command("artifact", "verify", digest_of(last), "--data", restored)


async def command(*words: object) -> None:
    """Run a command of the command line in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", *map(str, words),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_a_store_that_shrinks_while_it_is_read_is_read_to_its_end(store: Store) -> None:
    fleet = store.parts.connections.fleet
    digest = await store.plain.put("desk", fresh())
    info = await fleet.api("STREAM.INFO.CHUNKS")
    last = info["state"]["last_seq"]
    await store.plain.delete("desk", digest)
    log = JetStreamLog(fleet, "CHUNKS", may_shrink=True)
    assert [one.seq async for some in log.read(1, last) for one in some]
    with pytest.raises(errors.LogDamaged):
        _ = [some async for some in JetStreamLog(fleet, "CHUNKS").read(1, last)]


async def test_a_survey_that_is_killed_sweeps_nothing_and_says_so(tmp_path: Path) -> None:
    cut = ChildSurvey(Access("", tmp_path, tmp_path), 0, 0)
    cut._argv = [sys.executable, "-c", """print('{"last_seq":1,"artifa', end="")"""]
    async with cut as one:
        with pytest.raises(errors.Unavailable, match="broke off"):
            await one.overview()


@pytest.mark.parametrize("pressed", [False, True])
async def test_it_sweeps_by_itself_when_its_time_comes_and_after_one_that_went_wrong(
    store: Store, monkeypatch: pytest.MonkeyPatch, pressed: bool
) -> None:
    holder = await store.holding(f"run-{pressed}")
    first = await holder.checkpoint(1, fresh())
    await holder.checkpoint(2, fresh())
    await store.wait()
    monkeypatch.setattr(sweeper, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(sweeper, "PRESSED_SECONDS", 0.01)
    monkeypatch.setattr(sweeper, "SWEEP_SECONDS", 3_600.0 if pressed else 0.01)
    away = [errors.Unavailable("away")]

    async def filling() -> dict[str, Filling]:
        if away:
            raise away.pop()
        return {"CHUNKS": Filling(0, 100), "artifacts": Filling(60 if pressed else 0, 100)}

    monkeypatch.setattr(store.sweeper, "filling", filling)
    running = asyncio.ensure_future(store.sweeper.run())

    async def is_gone() -> bool:
        return not parts_of(first) & await store.held()

    await harness.until(is_gone, "swept", 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await holder.complete(fresh())


async def test_nothing_is_swept_before_its_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(store.sweeper, "survey", lambda *times: asked.append(times))

    async def filling() -> dict[str, Filling]:
        return {"CHUNKS": Filling(59, 100), "artifacts": Filling(59, 100)}

    monkeypatch.setattr(store.sweeper, "filling", filling)
    assert not await store.sweeper._sweep_if_due(sweeper.SWEEP_SECONDS - 1)
    assert not asked
