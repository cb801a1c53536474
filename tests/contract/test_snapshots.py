"""What every store of snapshots has to do, and what the one on a server has to besides."""

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from core import errors
from core.bus import Bus
from core.snapshots import PART_BYTES_MAX, SnapshotStore
from core.snapshots_jetstream import READ_PARTS, STREAM, JetStreamSnapshots
from core.snapshots_memory import MemorySnapshots
from tests.nats_fixture import Nats

pytest_plugins = ["tests.nats_fixture"]

HEAD = b'{"of":"this one"}'
OTHER = b'{"of":"another"}'


class Bench(Protocol):
    """A store to try, and a way to spoil it."""

    store: SnapshotStore

    async def lose_last_part(self, name: str) -> None:
        """As after a crash of the store."""
        ...


class MemoryBench:
    def __init__(self) -> None:
        self._store = MemorySnapshots()
        self.store: SnapshotStore = self._store

    async def lose_last_part(self, name: str) -> None:
        self._store.stored[name].pop()


class JetStreamBench:
    def __init__(self, control: Bus) -> None:
        self.control = control
        self.store: SnapshotStore = JetStreamSnapshots(control)

    async def lose_last_part(self, name: str) -> None:
        subject = f"$O.SNAPSHOTS.C.{name}"
        found = await self.control.api(f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": subject})
        await self.control.api(f"STREAM.MSG.DELETE.{STREAM}", {"seq": found["message"]["seq"]})


async def read(store: SnapshotStore, name: str) -> list[bytes]:
    return [part async for part in store.parts(name)]


async def put(store: SnapshotStore, name: str, parts: list[bytes], head: bytes = HEAD) -> None:
    for part in parts:
        await store.add(name, part)
    await store.finish(name, head)


class SnapshotsContract:
    """Inherited by the tests of each store, with a fixture `bench`."""

    async def test_what_was_stored_comes_back_in_order(self, bench: Bench) -> None:
        parts = [b"", b"[]", b"\r\n", os.urandom(PART_BYTES_MAX), b"last"]
        await put(bench.store, "7-a", parts)
        assert await bench.store.kept() == [("7-a", HEAD)]
        assert await read(bench.store, "7-a") == parts

    async def test_many_parts_come_back(self, bench: Bench) -> None:
        parts = [str(number).encode() for number in range(3 * READ_PARTS + 1)]
        await put(bench.store, "7-a", parts)
        assert await read(bench.store, "7-a") == parts

    async def test_reading_may_end_early(self, bench: Bench) -> None:
        await put(bench.store, "7-a", [b"x"] * (2 * READ_PARTS))
        parts = bench.store.parts("7-a")
        assert await anext(aiter(parts)) == b"x"

    async def test_an_unfinished_one_is_not_kept(self, bench: Bench) -> None:
        await bench.store.add("7-a", b"part")
        assert await bench.store.kept() == []

    async def test_the_newest_comes_first(self, bench: Bench) -> None:
        for name in ("9-a", "10-b", "8-c"):
            await put(bench.store, name, [name.encode()])
        assert [kept.name for kept in await bench.store.kept()] == ["8-c", "10-b", "9-a"]

    async def test_two_at_once_do_not_mix(self, bench: Bench) -> None:
        for number in range(3):
            await bench.store.add("7-a", b"a%d" % number)
            await bench.store.add("7-b", b"b%d" % number)
        await bench.store.finish("7-a", HEAD)
        await bench.store.finish("7-b", OTHER)
        assert await read(bench.store, "7-a") == [b"a0", b"a1", b"a2"]
        assert await bench.store.kept() == [("7-b", OTHER), ("7-a", HEAD)]

    async def test_pruning_leaves_what_is_to_be_kept_and_nothing_else(self, bench: Bench) -> None:
        for name in ("7-a", "8-b", "9-c"):
            await put(bench.store, name, [name.encode(), b"more"])
        await bench.store.add("10-d", b"unfinished")
        await bench.store.prune(["9-c", "8-b"])
        assert [kept.name for kept in await bench.store.kept()] == ["9-c", "8-b"]
        assert await read(bench.store, "8-b") == [b"8-b", b"more"]
        assert await read(bench.store, "7-a") == []
        assert await read(bench.store, "10-d") == []

    async def test_pruning_an_empty_store_does_nothing(self, bench: Bench) -> None:
        await bench.store.prune([])
        assert await bench.store.kept() == []

    async def test_a_lost_part_shows_by_its_absence(self, bench: Bench) -> None:
        await put(bench.store, "7-a", [b"one", b"two"])
        await bench.lose_last_part("7-a")
        assert await read(bench.store, "7-a") == [b"one"]


class TestMemorySnapshots(SnapshotsContract):
    @pytest.fixture
    def bench(self) -> MemoryBench:
        return MemoryBench()


class TestJetStreamSnapshots(SnapshotsContract):
    @pytest.fixture
    async def bench(self, shared_nats: Nats) -> AsyncIterator[JetStreamBench]:
        await shared_nats.apply()
        async with shared_nats.connect("control") as control:
            await control.api(f"STREAM.PURGE.{STREAM}")
            yield JetStreamBench(control)

    async def test_it_is_an_object_of_nats_own_object_store(self, bench: JetStreamBench) -> None:
        await bench.store.add("7-a", b"of a first try that was left unfinished")
        await bench.store.prune([])
        await put(bench.store, "7-a", [b"one", b"two"])
        name = base64.urlsafe_b64encode(b"7-a").decode()
        found = await bench.control.api(
            f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": f"$O.SNAPSHOTS.M.{name}"}
        )
        described = json.loads(base64.b64decode(found["message"]["data"]))
        digest = base64.urlsafe_b64encode(hashlib.sha256(b"onetwo").digest()).decode()
        assert (described["name"], described["bucket"]) == ("7-a", "SNAPSHOTS")
        assert (described["nuid"], described["size"], described["chunks"]) == ("7-a", 6, 2)
        assert described["digest"] == f"SHA-256={digest}"

    async def test_a_full_stream_is_told_from_one_that_is_away(
        self, bench: JetStreamBench, shared_nats: Nats
    ) -> None:
        info = await bench.control.api(f"STREAM.INFO.{STREAM}")
        small = {**info["config"], "max_bytes": 1024}
        assert "error" not in await bench.control.api(f"STREAM.UPDATE.{STREAM}", small)
        try:
            with pytest.raises(errors.LogFull):
                await bench.store.add("7-a", bytes(2048))
        finally:
            await bench.control.api(f"STREAM.UPDATE.{STREAM}", info["config"])
        await bench.control.close()
        with pytest.raises(errors.Unavailable):
            await bench.store.add("7-a", b"part")

    async def test_a_foreign_object_is_shown_with_an_empty_head(
        self, bench: JetStreamBench
    ) -> None:
        await bench.control.request("$O.SNAPSHOTS.M.eA==", b'{"name":"x"}')
        assert await bench.store.kept() == [("eA==", b"")]
        await bench.store.prune([])
        assert await bench.store.kept() == []
