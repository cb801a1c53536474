"""What agents bring, as the desk verifies it."""

import os

import pytest

from core import chunks, commands, errors, events, wire
from core.chunks import File, Manifest
from core.projections.state import State
from core.promises import Promises
from gateway import artifacts
from gateway.artifacts import Artifacts
from gateway.usage import Quotas, Usage
from tests.build import World

QUOTA = 10_000
SESSION = "s"


class Desk:
    """Artifacts over a store in memory."""

    def __init__(self) -> None:
        self.store = chunks.MemoryChunks()
        self.usage = Usage(Quotas(total_bytes=2 * QUOTA, worker_bytes=QUOTA))
        self.artifacts = Artifacts(self.store, Promises(), self.usage)

    async def verify(self, *files: File, writer: str = "a") -> str:
        """Verify a manifest of these files; its digest."""
        manifest = Manifest(kind="checkpoint", writer=writer, files=list(files))
        return await self.artifacts.verify(writer, SESSION, manifest)

    async def file(self, size: int, deltas: dict[int, int] | None = None, name: str = "f") -> File:
        """A file of one chunk that is stored, with a delta of a size on it, by its place."""
        data = os.urandom(size)
        digest = await self.store.put("a", data)
        changes = {
            at: [await self.store.put("a", os.urandom(length))]
            for at, length in (deltas or {}).items()
        }
        return File(name=name, bytes=size, sha256=digest, chunks=[digest], deltas=changes)

    async def checkpoint(self, *files: File) -> State:
        """A state in which the agent `b` goes on from a checkpoint of these files."""
        world = World().seeded()
        world.agent("a")
        world.task()
        token = world.claim("a")
        assert token is not None
        point = events.Checkpoint(
            rival="evolver",
            step=5,
            total_steps=10,
            manifest=await self.verify(*files),
            writer="a",
            bytes=1,
        )
        session = world.state.workers.table.rows["a"].session
        world.do(
            commands.StoreCheckpoint(token=token, worker_id="a", session=session, checkpoint=point)
        )
        world.do(commands.ExpireClaim(token=token, reason="silence"))
        world.agent("b")
        assert world.claim("b") is not None
        return world.state

    async def read(self, state: State, digest: str) -> bytes:
        """What `b` reads."""
        request = wire.ChunkRequest(session=SESSION, writer="a", digest=digest)
        return await self.artifacts.read(state, "b", request)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_what_an_agent_says_of_sizes_buys_it_no_room(desk: Desk) -> None:
    for _ in range(2):
        one = await desk.file(QUOTA // 2)
        desk.usage.take("a", {one.chunks[0]: 0}, "checkpoint")
        await desk.verify(one)
    assert desk.usage.total_bytes == QUOTA
    more = await desk.file(1)
    desk.usage.take("a", {more.chunks[0]: 0}, "candidate")
    held = set(desk.store.held)
    with pytest.raises(errors.QuotaExceeded, match="artifacts of a take"):
        await desk.verify(more)
    assert set(desk.store.held) == held


async def test_a_manifest_is_taken_apart_once_however_many_of_its_chunks_are_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [await desk.file(10, name=f"f{number}") for number in range(20)]
    state = await desk.checkpoint(*files)
    desk.artifacts = Artifacts(desk.store, Promises(), desk.usage)  # as after a restart
    taken, places = [], Manifest.places

    def counted(manifest: Manifest) -> dict[str, str]:
        taken.append(manifest)
        return places(manifest)

    monkeypatch.setattr(Manifest, "places", counted)
    for file in files:
        assert len(await desk.read(state, file.chunks[0])) == 10
    assert len(taken) == 1
    other = await desk.file(10)
    with pytest.raises(errors.NotOwner):
        await desk.read(state, other.chunks[0])


async def test_what_is_remembered_of_manifests_is_bounded_and_the_rest_is_read_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "NAMED_MAX", 5)
    files = [await desk.file(10, name=f"f{number}") for number in range(3)]
    state = await desk.checkpoint(*files)
    for _ in range(4):
        await desk.verify(*[await desk.file(10, name=f"f{number}") for number in range(2)])
        assert desk.artifacts._named_count == sum(map(len, desk.artifacts._named.values())) <= 5
    assert len(await desk.read(state, files[0].chunks[0])) == 10
    assert len(desk.artifacts._named) == 2


async def test_a_delta_is_no_larger_than_what_it_changes(desk: Desk) -> None:
    await desk.verify(await desk.file(100, {0: 100}))
    with pytest.raises(errors.ArtifactError, match="larger than the chunk"):
        await desk.verify(await desk.file(100, {0: 101}))
