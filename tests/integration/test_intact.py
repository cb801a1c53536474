"""Damage of what is stored: found before a real nats-server starts on it and cuts off the rest."""

import asyncio
import hashlib
import os
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from click.testing import CliRunner

from cli import main
from core import blocks, errors, events, intact, replay, seals
from core.accounts import Authority
from core.chunks_jetstream import JetStreamChunks
from core.log import Message, Record
from core.log_jetstream import JetStreamLog
from tests import nats_fixture

WRITER = "w-1"
MISNAMED = "0" * 64
PIECES = 40


class Store(NamedTuple):
    """A data directory at rest."""

    data: Path
    events: Path
    chunks: Path

    @classmethod
    def at(cls, data: Path) -> "Store":
        authority = Authority.load_or_create(data / "keys")
        return cls(
            data,
            replay.streams_of(data, authority, "CONTROL") / "EVENTS" / "msgs",
            replay.streams_of(data, authority, "FLEET") / "CHUNKS" / "msgs",
        )

    def start(self, *, accept_loss: bool = False) -> None:
        replay.prepare_start(
            self.data, Authority.load_or_create(self.data / "keys"), accept_loss=accept_loss
        )

    def content(self) -> dict[Path, bytes]:
        """All files but the note and the copies that were kept."""
        own = {intact.NOTE_FILE, intact.SAVED_FOLDER}
        files = (one for one in self.data.rglob("*") if one.is_file())
        return {
            one: one.read_bytes()
            for one in files
            if not own & set(one.relative_to(self.data).parts)
        }


def piece(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * 8_000


async def write(nats: nats_fixture.Nats) -> None:
    """Three blocks of events, two of chunks, some of which were swept."""
    await nats.apply()
    async with nats.connect("control") as control, nats.connect("desk") as desk:
        log, last = JetStreamLog(control), 0
        for _ in range(10):
            batch = [
                Message(f"ev.task.t-{one}", b'{"a":"%s"}' % (b"x" * 19_000)) for one in range(100)
            ]
            last = await log.append(batch, last)
        await log.close()
        store = JetStreamChunks(desk)
        for number in range(PIECES):
            await store.put(WRITER, piece(number))
        await store.delete(WRITER, hashlib.sha256(piece(3)).hexdigest())
        await desk.request(f"chunk.{WRITER}.{MISNAMED}", b"not what it is called")


async def readable(nats: nats_fixture.Nats) -> tuple[list[Record], int]:
    """The log, and how many chunks can be read."""
    async with nats.connect("control") as control, nats.connect("desk") as desk:
        log, store = JetStreamLog(control), JetStreamChunks(desk)
        records = [record async for part in log.read() for record in part]
        count = 0
        async for item in store.stored():
            if item.digest != MISNAMED:
                await store.get(item.writer, item.digest)
            count += 1
        await log.close()
    return records, count


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("intact") / "data"
    with nats_fixture.running(data) as nats:
        asyncio.run(write(nats))
    return data


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Store:
    """A copy to damage."""
    return Store.at(shutil.copytree(written, tmp_path / "data"))


def spans(path: Path) -> list[blocks.Span]:
    return blocks.follow(path.read_bytes(), 0).spans


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def in_payload(path: Path) -> int:
    """The sequence of the record in the middle of a block, in which a bit is flipped now."""
    some = spans(path)
    one = some[len(some) // 2]
    flip(path, one.payload_start + 100)
    return one.seq


def in_length(path: Path) -> int:
    some = spans(path)
    one = some[len(some) // 2]
    flip(path, one.offset + 1)
    return one.seq


def test_what_is_sound_is_read_once_a_day_and_where_it_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.content()
    store.start()
    assert store.content() == before
    read: list[str] = []
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    store.start()
    assert not [one for one in read if one.endswith(".blk")]
    os.utime(store.events / "2.blk", ns=(1, 1))
    store.start()
    assert [one for one in read if one.endswith(".blk")] == ["2.blk"]
    read.clear()
    monkeypatch.setattr("time.time", lambda: 2e9 + intact.BELIEVED_SECONDS)
    store.start()
    assert len([one for one in read if one.endswith(".blk")]) == 6  # one of REFUSALS


def test_an_up_that_is_refused_leaves_the_directory_to_the_last_file_and_says_only_why(
    store: Store,
) -> None:
    in_payload(store.chunks / "1.blk")
    (store.data / "lock").write_bytes(b"\x0012345     ")
    (store.data / "run.json").write_text("{}")
    (store.data / "creds").mkdir(exist_ok=True)
    (store.data / "creds" / "control.creds").write_text("of before")

    def all_files() -> dict[Path, tuple[bytes, int]]:
        files = (one for one in store.data.rglob("*") if one.is_file())
        return {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in files}

    before = all_files()
    told = CliRunner().invoke(main.aghsan, ["up", "--data", str(store.data), "--port", "0"])
    assert told.exit_code == main.EXIT_FAILED
    assert told.output.startswith("aghsan: what is stored is damaged: 1.blk of CHUNKS")
    assert len(told.output.splitlines()) == 1
    assert all_files() == before


Damage = Callable[[Path], int]


@pytest.mark.parametrize("damage", [in_payload, in_length])
@pytest.mark.parametrize("name", ["1.blk", "3.blk"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_damaged_log_is_refused_as_it_is(
    store: Store, damage: Damage, name: str, indexed: bool
) -> None:
    seq = damage(store.events / name)
    if not indexed:
        (store.events / "index.db").unlink()
    before = store.content()
    with pytest.raises(errors.LogDamaged, match=f"{name} of EVENTS .* behind record {seq - 1}:"):
        store.start()
    assert store.content() == before


@pytest.mark.parametrize("damage", [in_payload, in_length])
@pytest.mark.parametrize("name", ["1.blk", "3.blk"])
def test_an_accepted_loss_costs_the_unreadable_record_and_no_other_whatever_dies_later(
    store: Store, damage: Damage, name: str
) -> None:
    known = spans(store.events / name)
    seq = damage(store.events / name)
    subject = next(one for one in known if one.seq == seq).subject(
        (store.events / name).read_bytes()
    )
    damaged = (store.events / name).read_bytes()
    store.start(accept_loss=True)
    words = f"record {seq} is lost from EVENTS, in {name}, of {subject.decode()}"
    assert intact.lost(store.data) == [(seq, words)]
    (kept,) = (store.data / intact.SAVED_FOLDER).glob(f"*/EVENTS/{name}")
    assert kept.read_bytes() == damaged
    nats = nats_fixture.Nats(store.data)
    try:
        nats.server.start()
        records, chunks = asyncio.run(readable(nats))
        assert ([one.seq for one in records], chunks) == (list(range(1, 1_001)), PIECES)
        for number in range(2):
            asyncio.run(append(nats, 1_000 + number))
            os.kill(nats.server.pid, signal.SIGKILL)
            while nats.server.poll() is None:
                pass
            store.start()
            nats.server.start()
        records, chunks = asyncio.run(readable(nats))
        assert ([one.seq for one in records], chunks) == (list(range(1, 1_003)), PIECES)
    finally:
        nats.server.stop()
    stand_ins = [one for one in records if b"RecordLost" in one.data]
    assert [one.seq for one in stand_ins] == [seq]
    found = events.decode(*stand_ins[0])
    assert isinstance(found, events.Undecodable)
    assert found.reason == "the record was lost, and that accepted"
    assert found.subject == subject.decode()
    assert not list(store.events.parent.parent.glob(f"{intact.SNAPSHOTS}/msgs"))


async def append(nats: nats_fixture.Nats, last: int) -> None:
    async with nats.connect("control") as control:
        log = JetStreamLog(control)
        await log.append([Message("ev.task.new", b"{}")], last)
        await log.close()


def test_blocks_that_are_gone_are_missed(store: Store) -> None:
    first, last = (spans(store.events / "2.blk")[at].seq for at in (0, -1))
    (store.events / "2.blk").unlink()
    before = store.content()
    with pytest.raises(errors.LogDamaged, match=f"records {first} to {last} are missing in EVENTS"):
        store.start()
    assert store.content() == before
    store.start(accept_loss=True)
    store.start()
    nats = nats_fixture.Nats(store.data)
    with nats.server:
        records, _ = asyncio.run(readable(nats))
    assert [one.seq for one in records] == list(range(1, 1_001))
    assert [one.seq for one in records if b"RecordLost" in one.data] == list(range(first, last + 1))


def test_a_log_that_is_gone_beside_its_artifacts_is_not_begun_anew_without_a_word(
    store: Store,
) -> None:
    shutil.rmtree(store.events.parent)
    with pytest.raises(errors.LogDamaged, match="the log is gone"):
        store.start()
    assert not store.events.exists()
    store.start(accept_loss=True)


def test_what_was_accepted_is_remembered_until_the_log_tells_of_it(store: Store) -> None:
    in_payload(store.events / "1.blk")
    store.start(accept_loss=True)
    known = intact.lost(store.data)
    store.start(accept_loss=True)
    store.start()
    assert len(known) == 1
    assert intact.lost(store.data) == known
    intact.note_lost(store.data)
    assert intact.lost(store.data) == []


@pytest.mark.parametrize("damage", [in_payload, in_length])
def test_a_damaged_chunk_is_refused_and_costs_no_other_chunk_if_it_is_accepted(
    store: Store, damage: Damage
) -> None:
    seq = damage(store.chunks / "1.blk")
    before = store.content()
    with pytest.raises(errors.LogDamaged, match=f"1.blk of CHUNKS .* behind record {seq - 1}:"):
        store.start()
    assert store.content() == before
    store.start(accept_loss=True)
    # It begins behind all of the log, of which nothing is lost.
    ((first, words),) = intact.lost(store.data)
    assert first == 1_001
    assert "lost from CHUNKS, in 1.blk" in words
    (digest,) = intact.lost_chunks(store.data)
    assert digest in words
    store.start()
    nats = nats_fixture.Nats(store.data)
    with nats.server:
        records, count = asyncio.run(readable(nats))
    assert ([one.seq for one in records], count) == (list(range(1, 1_001)), PIECES - 1)


def test_a_chunk_that_was_lost_and_accepted_can_be_stored_again(store: Store) -> None:
    in_payload(store.chunks / "1.blk")
    store.start(accept_loss=True)
    nats = nats_fixture.Nats(store.data)
    with nats.server:
        assert asyncio.run(put_all(nats)) == 2  # one was swept
        assert asyncio.run(put_all(nats)) == 0


async def put_all(nats: nats_fixture.Nats) -> int:
    """How many of all pieces were not there, and are now."""
    async with nats.connect("desk") as desk:
        store = JetStreamChunks(desk)
        missing = 0
        for number in range(PIECES):
            missing += not await store.has(WRITER, hashlib.sha256(piece(number)).hexdigest())
            await store.put(WRITER, piece(number))
        _, *_ = [one async for one in store.stored()]
    return missing


def test_a_chunk_of_which_only_the_frame_is_damaged_is_kept_and_costs_no_other(
    store: Store,
) -> None:
    path = store.chunks / "1.blk"
    some = spans(path)
    in_payload(path)
    flip(path, some[2].end - 1)  # its checksum
    flip(path, some[4].offset + 12)  # its time
    (store.chunks / "index.db").unlink()
    store.start(accept_loss=True)
    nats = nats_fixture.Nats(store.data)
    with nats.server:
        _, count = asyncio.run(readable(nats))
    assert count == PIECES - 1


def test_a_sequence_of_a_chunk_that_does_not_follow_is_damage(store: Store) -> None:
    path = store.chunks / "1.blk"
    flip(path, spans(path)[3].offset + 4)
    with pytest.raises(errors.LogDamaged, match=r"1\.blk of CHUNKS .* checksum does not match"):
        store.start()


def test_what_looks_like_records_in_a_chunk_hides_no_sound_one(store: Store) -> None:
    path = store.chunks / "2.blk"
    one = spans(path)[1]
    # As rows of small numbers do: a length, then a sequence that could come.
    rows = b"".join(struct.pack("<IQqH", 4_000, one.seq + 1, 7, 9) for _ in range(8_000))
    content = bytearray(path.read_bytes())
    content[one.payload_start : one.payload_start + len(rows)] = rows
    path.write_bytes(content)
    flip(path, one.offset + 2)
    with pytest.raises(errors.LogDamaged, match=r"2\.blk of CHUNKS"):
        store.start()
    store.start(accept_loss=True)
    nats = nats_fixture.Nats(store.data)
    with nats.server:
        assert asyncio.run(readable(nats))[1] == PIECES - 1


def test_a_wrong_sequence_is_no_reason_to_forget_whose_record_it_was(store: Store) -> None:
    path = store.events / "1.blk"
    one = spans(path)[5]
    subject = one.subject(path.read_bytes()).decode()
    flip(path, one.offset + 6)
    store.start(accept_loss=True)
    known = {span.seq: span.subject(path.read_bytes()).decode() for span in spans(path)}
    assert known[one.seq] == subject


def test_an_end_is_missed_by_the_index_or_the_anchor_if_there_is_no_head(store: Store) -> None:
    (store.events / "3.blk").unlink()
    with pytest.raises(errors.LogDamaged, match="ended at 1000, by the index"):
        store.start()
    (store.events / "index.db").unlink()
    store.start()
    anchor = seals.Anchor(log="", seq=1_000, last=999, digest="", at=0)
    (store.data / seals.ANCHOR_FILE).write_bytes(msgspec.json.encode(anchor))
    with pytest.raises(errors.LogDamaged, match="the log ended at 1000"):
        store.start()


def test_more_than_can_be_stood_in_for_is_refused_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intact, "STAND_INS_MAX", 10)
    in_payload(store.events / "1.blk")
    (store.events / "2.blk").unlink()
    before = store.content()
    with pytest.raises(errors.DataDirectoryError, match="Restore a backup"):
        store.start(accept_loss=True)
    assert store.content() == before


@pytest.mark.parametrize("size", [1, 21, 500])
def test_a_torn_end_is_what_a_kill_leaves(store: Store, size: int) -> None:
    last = store.events / "3.blk"
    torn = last.read_bytes() + last.read_bytes()[:size]
    last.write_bytes(torn)
    (store.events / "index.db").unlink()
    store.start()
    assert last.read_bytes() == torn
    nats = nats_fixture.Nats(store.data)
    with nats.server:
        records, _ = asyncio.run(readable(nats))
    assert [one.seq for one in records] == list(range(1, 1_001))


def test_an_unreadable_last_record_is_a_loss_where_head_knows_of_it(store: Store) -> None:
    one = spans(store.events / "3.blk")[-1]
    flip(store.events / "3.blk", one.payload_start)
    (store.events / "index.db").unlink()
    store.start()
    (store.data / seals.HEAD_FILE).write_bytes(b'{"seq":1000,"digest":"00"}')
    with pytest.raises(errors.LogDamaged, match="the log ended at 1000, and ends at 999 now"):
        store.start()


def test_a_torn_end_in_front_of_more_is_damage(store: Store) -> None:
    path = store.events / "2.blk"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(errors.LogDamaged, match=r"2\.blk of EVENTS"):
        store.start()


def test_an_unreadable_note_is_made_anew(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (store.data / intact.NOTE_FILE).write_bytes(b"{")
    store.start()
    assert "is made anew" in caplog.text
    caplog.clear()
    store.start()
    assert not caplog.text


def test_what_cannot_be_saved_first_is_left_as_it_is(store: Store) -> None:
    in_payload(store.events / "1.blk")
    (store.data / intact.SAVED_FOLDER).write_text("in the way")
    before = store.content()
    with pytest.raises(errors.DataDirectoryError, match="not copied are as they were"):
        store.start(accept_loss=True)
    assert store.content() == before


def test_a_wild_sequence_is_kept_from_the_server_that_reads_a_copy(store: Store) -> None:
    one = spans(store.events / "1.blk")[5]
    flip(store.events / "1.blk", one.offset + 9)  # 2 ** 42 more: it would note all between
    (store.events / "index.db").unlink()
    before = store.content()
    with replay.serving(store.data, replay.LOG_ALONE) as access:
        assert asyncio.run(sequences(access)) == [seq for seq in range(1, 1_001) if seq != one.seq]
    assert store.content() == before


async def sequences(access: replay.Access) -> list[int]:
    async with replay.connect(access) as connected:
        return [record.seq async for part in connected.log.read() for record in part]


def test_lost_chunks_are_put_together_without_comparing_each_with_all() -> None:
    compared = 0

    class Digest(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, str(other))

    known = [Digest(f"{number:064x}") for number in range(1_000)]
    found = [Digest(f"{number:064x}") for number in range(500, 1_500)]
    assert intact._union(known, found) == [*known, *found[500:]]
    assert compared < 5 * 1_500
