"""The stored blocks of a real nats-server: read without it, sound and damaged in every way."""

import asyncio
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from core import blocks
from core.log import Message, Record
from core.log_jetstream import JetStreamLog
from tests import nats_fixture

STREAM = "EVENTS"
OPENING = b"{"
SEED = int(os.environ.get("BLOCKS_SEED", "20261126"))


class Stored(NamedTuple):
    """The `msgs` of a stream, and what the server said was in it."""

    folder: Path
    records: list[Record]

    @property
    def last_seq(self) -> int:
        return self.records[-1].seq


async def write(nats: nats_fixture.Nats) -> list[Record]:
    """Single messages with and without headers, atomic batches of several sizes, large ones."""
    await nats.apply()
    async with nats.connect("control") as control:
        log = JetStreamLog(control)
        await control.request("ev.hand.one", '{"من":"اليد"}'.encode())
        last = 1
        for count in (1, 2, 30, 1, 300, 1):
            batch = [message(index) for index in range(count)]
            last = await log.append(batch, last)
        large = Message("ev.large.x", ('{"text":"' + "س" * 15_000 + '"}').encode())
        for _ in range(8):
            last = await log.append([large] * 40, last)
        await control.request("ev.hand.two", b"{}")
        records = [record async for part in log.read() for record in part]
        await log.close()
        return records


def message(index: int) -> Message:
    data = {"text": "تجربة " * (index % 40), "index": index}
    return Message(f"ev.task.t-{index}", json.dumps(data, ensure_ascii=False).encode())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    data = tmp_path_factory.mktemp("blocks") / "data"
    with nats_fixture.running(data) as nats:
        records = asyncio.run(write(nats))
    (folder,) = data.glob(f"nats/js/jetstream/*/streams/{STREAM}/msgs")
    return Stored(folder, records)


@pytest.fixture
def copied(stored: Stored, tmp_path: Path) -> Stored:
    """A copy to damage, without the index."""
    folder = shutil.copytree(stored.folder, tmp_path / "msgs")
    (folder / "index.db").unlink()
    return stored._replace(folder=folder)


@pytest.fixture
def small(copied: Stored) -> Stored:
    """The same up to the large messages, so that thousands of damages are read in seconds."""
    whole = (copied.folder / "1.blk").read_bytes()
    reading = blocks.read(copied.folder, STREAM)
    count = sum(1 for _ in itertools.takewhile(lambda one: one.subject != "ev.large.x", reading))
    for path in copied.folder.glob("*.blk"):
        path.unlink()
    (copied.folder / "1.blk").write_bytes(whole[: offset_of(whole, count)])
    return Stored(copied.folder, copied.records[:count])


def offset_of(block: bytes, index: int) -> int:
    """Where a record of a sound block begins."""
    offset = 0
    for _ in range(index):
        offset += int.from_bytes(block[offset : offset + 4], "little") & 0x7FFFFFFF
    return offset


def damage_of(stored: Stored) -> list[blocks.Damage]:
    reading = blocks.read(stored.folder, STREAM, OPENING)
    found = reading.finish()
    if reading.last_seq != stored.last_seq and not found:
        return [blocks.Damage(0, 0, reading.last_seq + 1, "the end is missing")]
    return found


def seq_at(block: bytes, offset: int) -> int:
    """Which record of a sound block lies at an offset, where the block begins with sequence 1."""
    seq = end = 0
    while end <= offset:
        seq += 1
        end += int.from_bytes(block[end : end + 4], "little") & 0x7FFFFFFF
    return seq


def test_the_blocks_hold_what_the_server_gives(stored: Stored) -> None:
    assert len(list(stored.folder.glob("*.blk"))) > 1
    reading = blocks.read(stored.folder, STREAM, OPENING)
    found = list(reading)
    assert [Record(one.seq, one.subject, one.payload) for one in found] == stored.records
    assert (reading.damage, reading.last_seq) == ([], stored.last_seq)
    assert found[0].headers == b""
    assert b"Nats-Batch-Id:" in found[2].headers
    assert [one.at_ns for one in found] == sorted(one.at_ns for one in found)


def test_every_changed_byte_is_found_and_the_sequence_named(small: Stored) -> None:
    path = small.folder / "1.blk"
    whole = path.read_bytes()
    chance = random.Random(SEED)
    # Every byte of the first records, single and batched, and many others.
    first = offset_of(whole, 3)
    offsets = [*range(first), *(chance.randrange(first, len(whole)) for _ in range(250))]
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= chance.randrange(1, 256)
        path.write_bytes(flipped)
        found = damage_of(small)
        assert found, (SEED, offset, flipped[offset])
        assert found[0].seq == seq_at(whole, offset), (SEED, offset, flipped[offset], found[0])
        assert found[0].block == 1


def test_every_bit_of_the_lengths_of_a_record_counts(small: Stored) -> None:
    path = small.folder / "1.blk"
    whole = path.read_bytes()
    for index in (0, 1, 5):  # by hand without headers, single, in a batch
        start = offset_of(whole, index)
        subject_end = start + 22 + int.from_bytes(whole[start + 20 : start + 22], "little")
        for at in (
            *range(start, start + 4),
            start + 20,
            start + 21,
            *range(subject_end, subject_end + 4),
        ):
            for value in range(0, 256, 51):
                if value == whole[at]:
                    continue
                path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
                assert damage_of(small)[0].seq == index + 1, (at - start, value)


def test_records_behind_damage_are_still_read(small: Stored) -> None:
    path = small.folder / "1.blk"
    whole = path.read_bytes()
    start, after = offset_of(whole, 100), offset_of(whole, 104)
    for torn in (
        whole[:start] + bytes(after - start) + whole[after:],  # zeros
        whole[: start + 9] + whole[after:],  # cut out
        whole[:start] + b"x" * 999 + whole[after:],  # something longer
        whole[:start] + whole[start : start + 2] + b"\xff" + whole[start + 3 :],  # a length
    ):
        path.write_bytes(torn)
        reading = blocks.read(small.folder, STREAM, OPENING)
        found = [one.seq for one in reading]
        assert found[:100] == list(range(1, 101))
        assert found[-1] == reading.last_seq == small.last_seq
        assert len(found) >= small.last_seq - 4
        assert [one.seq for one in reading.damage] == [101]


def test_every_cut_is_found_by_who_knows_the_last_sequence(small: Stored) -> None:
    path = small.folder / "1.blk"
    whole = path.read_bytes()
    chance = random.Random(SEED)
    boundaries = [offset_of(whole, index) for index in (0, 1, 7, 100)]
    for size in (*boundaries, *(chance.randrange(len(whole)) for _ in range(100))):
        path.write_bytes(whole[:size])
        found = damage_of(small)
        assert found[0].seq == seq_at(whole, size), (SEED, size, found)
    path.write_bytes(whole + b"\0")
    assert "1 bytes are too few" in damage_of(small)[0].what
    path.write_bytes(whole + bytes(1_000))
    assert damage_of(small)[0].seq == small.last_seq + 1


def test_the_servers_index_tells_of_an_end_cut_off_between_records(
    stored: Stored, copied: Stored
) -> None:
    last = max(copied.folder.glob("*.blk"), key=lambda path: int(path.stem))
    content = last.read_bytes()
    final = content.rindex(b"ev.hand.two") - 22
    last.write_bytes(content[:final])
    assert blocks.read(copied.folder, STREAM).finish() == []
    index = (stored.folder / "index.db").read_bytes()
    (copied.folder / "index.db").write_bytes(index)
    assert blocks.indexed_last_seq(copied.folder, STREAM) == stored.last_seq
    (found,) = blocks.read(copied.folder, STREAM).finish()
    assert found.seq == stored.last_seq
    assert "index" in found.what
    (copied.folder / "index.db").write_bytes(index[:-1] + b"\0")
    assert blocks.read(copied.folder, STREAM).finish() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "1.blk").unlink(), r"missing, and there is no 1\.blk"),
        (lambda folder: (folder / "2.blk").write_bytes(b""), r"missing$|index|end is missing"),
        (lambda folder: (folder / "1.blk").rename(folder / "4.blk"), "there is no 1.blk"),
        (lambda folder: (folder / "x.blk").touch(), "no name of a block"),
        (lambda folder: (folder / "01.blk").touch(), "no name of a block"),
        (lambda folder: (folder / "1.key").touch(), "encrypted"),
        (lambda folder: (folder / "1.blk").write_bytes(b"cmp\x01abc"), "compressed"),
        (lambda folder: os.truncate(folder / "1.blk", 1 << 33), "more than any block"),
        (lambda folder: (folder / "5.blk").mkdir(), "cannot be read"),
        (lambda folder: shutil.rmtree(folder), "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_files_are_damage(
    copied: Stored, change: Callable[[Path], object], words: str
) -> None:
    change(copied.folder)
    found = damage_of(copied)
    assert any(re.search(words, one.what) for one in found), found


def test_a_block_that_is_there_twice_is_damage(small: Stored) -> None:
    shutil.copy(small.folder / "1.blk", small.folder / "9.blk")
    found = damage_of(small)
    assert any("checksum" in one.what for one in found), found[:3]


def test_records_that_are_sound_but_stand_in_another_order_are_found(small: Stored) -> None:
    path = small.folder / "1.blk"
    whole = path.read_bytes()
    a, b, c = (offset_of(whole, index) for index in (50, 51, 52))
    path.write_bytes(whole[:a] + whole[b:c] + whole[a:b] + whole[c:])
    assert [one.seq for one in damage_of(small)] == [51, 53]
    path.write_bytes(whole[:a] + whole[b:])
    (missing,) = damage_of(small)
    assert (missing.seq, missing.what) == (51, "51 is missing")
    path.write_bytes(whole[:b] + whole[a:])
    assert damage_of(small)[0].seq == 52


def test_garbage_is_never_raised_on(small: Stored) -> None:
    path = small.folder / "1.blk"
    whole = path.read_bytes()
    chance = random.Random(SEED)
    for _ in range(60):
        torn = bytearray(whole)
        for _ in range(chance.choice((1, 3, 50))):
            at, size = chance.randrange(len(torn)), chance.choice((1, 8, 300, 5_000))
            torn[at : at + size] = chance.choice((b"", bytes(size), chance.randbytes(size)))
        path.write_bytes(torn)
        assert damage_of(small), SEED
    for content in (b"", b"\0", bytes(100_000), b"\xff" * 100_000, chance.randbytes(100_000)):
        path.write_bytes(content)
        assert damage_of(small)


def test_what_is_kept_of_much_damage_is_bounded(
    small: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "DAMAGE_KEPT_MAX", 10)
    reading = blocks.read(small.folder, "ANOTHER")
    assert len(reading.finish()) == 10
    assert reading.damage_total == small.last_seq
    assert reading.last_seq == 0
