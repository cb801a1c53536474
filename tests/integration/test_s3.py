"""Artifacts in S3: agents write as ever, and what is named lies there before it is named."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core import chunks, errors, platforms, runtime
from core.chunks_jetstream import JetStreamChunks
from core.chunks_s3 import S3Chunks
from core.stores import BOUND_FILE
from gateway.sweeper import Sweep
from tests.integration.gateway_stack import Stack, started
from tests.integration.test_desk import downloaded, opened
from tests.integration.test_replay_audit import run
from tests.integration.test_sweep import DAY, Store, digest_of, fresh, parts_of
from tests.s3_fixture import S3

pytest_plugins = ["tests.s3_fixture"]


async def held(store: chunks.ChunkStore) -> set[tuple[str, str]]:
    return {(one.writer, one.digest) async for one in store.stored()}


async def swept_a_day_later(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    tomorrow = runtime.now() + int((DAY + 60) * 1e6)
    with monkeypatch.context() as patch:
        patch.setattr(stack.parts.sweeper, "now", lambda: tomorrow)
        patch.setattr(stack.parts.promises, "clock", lambda: time.monotonic() + DAY + 60)
        return await stack.parts.sweeper.sweep()


async def lived(data: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have a directory bound to S3 see checkpoints, a sweep, an heir and a result; a chunk of
    that."""
    async with started(data, url) as stack, opened(stack) as agents:
        staging, remote = JetStreamChunks(stack.parts.connections.fleet), S3Chunks(url)
        holder = await Store(agents).holding("a1")
        first = await holder.checkpoint(1, fresh(), fresh())
        second = await holder.checkpoint(2, fresh())
        assert await held(remote) == parts_of(first) | parts_of(second)
        assert await held(staging) == set()
        sweep = await swept_a_day_later(stack, monkeypatch)
        assert (sweep.chunks, sweep.unfinished) == (len(parts_of(first)), "")
        assert await held(remote) == parts_of(second)
        await agents.expire(holder.token)
        heir = await Store(agents).holding("a2")
        point = agents.row(heir.token.task_id).resume[0]
        files = await downloaded(heir.link, point.manifest)
        assert list(files.values()) == list(second.pieces.values())
        brought = await heir.complete(fresh())
        assert parts_of(brought) <= await held(remote)
        return next(iter(brought.pieces))


def test_what_is_named_lies_in_s3_and_is_read_swept_audited_and_backed_up_from_there(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, data = s3.fresh(), tmp_path / "data"
    digest = asyncio.run(lived(data, url, monkeypatch))
    with platforms.DataLock(data / "lock"):
        pass  # as `up` leaves it
    assert run("artifact", "verify", "--data", data).exit_code == 0
    saved, restored = tmp_path / "b.tar", tmp_path / "restored"
    assert run("backup", saved, "--data", data).exit_code == 0
    asyncio.run(S3Chunks(url).delete("a2", digest))
    damaged = run("artifact", "verify", "--data", data)
    assert damaged.exit_code == 1
    assert digest[:12] in damaged.stdout
    assert run("restore", saved, "--data", restored).exit_code == 0
    assert not (restored / BOUND_FILE).exists()


async def test_artifacts_of_before_are_found_and_move_when_they_are_named_again(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, data = s3.fresh(), tmp_path / "data"
    shared = fresh()
    async with started(data) as stack, opened(stack) as agents:
        holder = await Store(agents).holding("a1")
        first = await holder.checkpoint(1, shared, fresh())
    async with started(data, url) as stack, opened(stack) as agents:
        staging, remote = JetStreamChunks(stack.parts.connections.fleet), S3Chunks(url)
        await agents.expire(holder.token)
        heir = await Store(agents).holding("a1")
        point = agents.row(heir.token.task_id).resume[0]
        assert len(await downloaded(heir.link, point.manifest)) == 2
        second = await heir.checkpoint(2, shared)
        assert await held(remote) == parts_of(second)
        await swept_a_day_later(stack, monkeypatch)
        assert await held(staging) == set()
        assert parts_of(first) & parts_of(second) <= await held(remote)
        assert await remote.has(chunks.DESK, digest_of(second))


async def test_what_a_crash_left_in_chunks_goes_and_its_double_in_s3_stays(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.fresh()
    async with started(tmp_path / "data", url) as stack, opened(stack) as agents:
        staging, remote = JetStreamChunks(stack.parts.connections.fleet), S3Chunks(url)
        store = Store(agents)
        holder = await store.holding("a1")
        point = await holder.checkpoint(1, fresh())
        for piece in point.pieces.values():
            await staging.put("a1", piece)
        await staging.put(chunks.DESK, point.manifest.encode())
        sweep = await swept_a_day_later(stack, monkeypatch)
        assert sweep.chunks == 2
        assert await held(staging) == set()
        assert await held(remote) == parts_of(point)
        assert [one.manifests for one in await store.events()] == [[]]


async def test_a_directory_keeps_to_its_place(s3: S3, tmp_path: Path) -> None:
    url, data = s3.fresh(), tmp_path / "data"
    async with started(data, url):
        pass
    with pytest.raises(errors.DataDirectoryError, match="keeps its artifacts in"):
        async with started(data, s3.fresh()):
            pass
    async with started(data) as stack:
        assert not await stack.parts.store.has("nobody", "0" * 64)
    with pytest.raises(errors.DataDirectoryError, match="another data directory"):
        async with started(tmp_path / "other", url):
            pass


async def test_while_s3_is_away_nothing_is_named(
    start_s3: Callable[[], S3], tmp_path: Path
) -> None:
    s3 = start_s3()
    async with started(tmp_path / "data", s3.fresh()) as stack, opened(stack) as agents:
        holder = await Store(agents).holding("a1")
        s3.stop()
        with pytest.raises(errors.Unavailable, match="AWS_"):
            await holder.checkpoint(1, fresh())
        assert agents.row(holder.token.task_id).resume == ()
