"""`aghsan backup` and `aghsan restore` on real data directories."""

import asyncio
import contextlib
import gzip
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from cli import main
from core import archive, backup, blocks, chunks, commands, platforms, seals
from core.chunks_jetstream import JetStreamChunks
from core.log import Stored
from core.log_jetstream import JetStreamLog
from core.runtime import new_meta
from tests import nats_fixture
from tests.integration.test_replay_audit import (
    Built,
    copy_of,
    fingerprint,
    in_use,
    live,
    open_door,
    put_by_hand,
    run,
    told,
)

JUDGE_KEY = b"k" * 32


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A data directory as a stopped `up` leaves it. Tests that change it take a copy."""
    data = tmp_path_factory.mktemp("بيانات و فراغ") / "data"
    with nats_fixture.running(data) as nats:
        one = asyncio.run(live(nats))
        put_by_hand(nats, "refused.task.x", b'{"n":1}')
        put_by_hand(nats, "refused.task.x", b'{"n":2}')
    with platforms.DataLock(data / "lock"):
        pass
    (data / "judge").mkdir(mode=0o700)
    platforms.write_atomically(data / "judge" / "key", JUDGE_KEY)
    return one


@pytest.fixture(scope="module")
def saved(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it."""
    file = tmp_path_factory.mktemp("saved") / "b.tar"
    assert run("backup", file, "--data", built.data).exit_code == 0
    return file


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of its own, so that what is left in it shows."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def restored(file: Path, data: Path, *more: str) -> dict[str, Any]:
    result = run("restore", file, "--data", data, "--json", *more)
    assert result.exit_code == 0, result.stderr
    return told(result)


def refused(result: Result, words: str) -> None:
    assert result.exit_code == main.EXIT_FAILED, result.stdout
    assert re.search(words, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def rewritten(file: Path, target: Path, changed: dict[str, bytes | None]) -> Path:
    """A sound backup with other contents, as only somebody with ill will makes one."""
    manifest = archive.verify(file)
    with archive.Writer(target, manifest.label) as writer:
        for name, data in archive.members(file, manifest):
            content = changed.pop(name, data)
            if content is not None:
                writer.add(name, content)
        for name, content in changed.items():
            assert content is not None
            writer.add(name, content)
        writer.finish(
            last_seq=manifest.last_seq, chunks=0, refusals=0, unpacked_bytes=manifest.unpacked_bytes
        )
    return target


# Both ways


def test_people_are_told_in_words_what_was_saved_and_restored(saved: Path, place: Path) -> None:
    shown = run("restore", saved, "--data", place / "data").stdout
    assert re.search(r"audit +it keeps all rules\n", shown)
    shown = run("backup", place / "again.tar", "--data", place / "data").stdout
    assert "left out" not in shown


def test_what_is_restored_has_the_same_sequence_hash_and_artifacts(
    built: Built, saved: Path, place: Path
) -> None:
    data = place / "مستعاد و فراغ"
    facts = restored(saved, data)
    assert facts["last_seq"] == facts["events"] == built.last_seq
    assert facts["violations_total"] == 0
    assert facts["loss"] == ""
    replayed = told(run("replay", "--data", data, "--json"))
    assert (replayed["last_seq"], replayed["state_hash"]) == (built.last_seq, built.state_hash)
    audited = told(run("audit", "--data", data, "--json"))
    original = told(run("audit", "--data", built.data, "--json"))
    assert audited == original
    assert audited["ok"] is True
    assert audited["refusals"] == 2
    assert list(place.iterdir()) == [data]


def test_every_record_is_the_same_with_its_time_and_headers(
    built: Built, saved: Path, place: Path
) -> None:
    restored(saved, place / "data")

    async def records(data: Path) -> list[Stored]:
        with nats_fixture.running(data) as nats:
            async with nats.connect("control") as control:
                log = JetStreamLog(control)
                return [one async for some in log.read_stored() for one in some]

    original = asyncio.run(records(copy_of(built.data, place)))
    assert asyncio.run(records(place / "data")) == original
    assert len(original) == built.last_seq


def test_keys_are_the_same_and_their_owners_alone(built: Built, saved: Path, place: Path) -> None:
    data = place / "data"
    restored(saved, data)
    assert (data / "judge" / "key").read_bytes() == JUDGE_KEY
    for path in (built.data / "keys").iterdir():
        assert (data / "keys" / path.name).read_bytes() == path.read_bytes()
    if os.name == "posix":
        private = [data / "judge" / "key", *(data / "keys").iterdir()]
        assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
        assert {path.stat().st_mode & 0o777 for path in (data, data / "keys")} == {0o700}
        assert saved.stat().st_mode & 0o777 == 0o600


def test_a_backup_beside_a_running_server_is_as_good(built: Built, place: Path) -> None:
    data = copy_of(built.data, place)
    file = place / "b.tar"
    with in_use(data):
        made = told(run("backup", file, "--data", data, "--json"))
    assert made["running"] is True
    assert (made["last_seq"], made["refusals"]) == (built.last_seq, 2)
    assert (made["chunks"], made["left_out"], made["judge_key"]) == (5, 0, True)
    assert made["bytes"] == file.stat().st_size
    restored(file, place / "data")
    replayed = told(run("replay", "--data", place / "data", "--json"))
    assert replayed["state_hash"] == built.state_hash


def test_a_backup_of_a_log_that_grows_ends_with_a_whole_append(built: Built, place: Path) -> None:
    data = copy_of(built.data, place)

    async def append(nats: nats_fixture.Nats, made: list[str]) -> dict[int, str]:
        """Append in batches while the backup is made; what the state hashed to at each end."""
        ends: dict[int, str] = {}
        async with nats.connect("control") as control, open_door(control) as door:
            head = seals.HeadFile(data / "head")
            door.note_head = head.note
            making = asyncio.create_task(
                asyncio.to_thread(run, "backup", place / "b.tar", "--data", data, "--json")
            )
            number = 0
            while not making.done() or number < 3:
                several = [
                    door.execute(
                        commands.EnqueueTask(
                            task_id=f"g{number}-{n}", node_id="root-math", topic="ن" * 500, seed=n
                        ),
                        new_meta("test"),
                        lambda state: None,
                    )
                    for n in range(200)
                ]
                await asyncio.gather(*several)
                number += 1
                at, digest = await door.read(lambda state: (state.seq, state.hash()))
                ends[at] = digest
            head.close()
            result = await making
            assert result.exit_code == 0, result.stderr
            made.append(result.stdout)
        return ends

    told_by: list[str] = []
    with in_use(data) as nats:
        ends = asyncio.run(append(nats, told_by))
    last = json.loads(told_by[0])["last_seq"]
    restored(place / "b.tar", place / "data")
    here = told(run("replay", "--data", place / "data", "--json"))
    there = told(run("replay", "--data", data, "--at", last, "--json"))
    assert here["last_seq"] == there["last_seq"] == last
    assert here["state_hash"] == there["state_hash"]
    assert last <= max(ends)


def test_the_restored_log_is_written_on(saved: Path, built: Built, place: Path) -> None:
    data = place / "data"
    restored(saved, data)

    async def go_on(nats: nats_fixture.Nats) -> int:
        await nats.apply()
        async with nats.connect("control") as control, open_door(control) as door:
            command = commands.EnqueueTask(task_id="new", node_id="root-math", topic="t", seed=1)
            await door.execute(command, new_meta("test"), lambda state: None)
            return door.durable_seq

    with in_use(data) as nats:
        assert asyncio.run(go_on(nats)) == built.last_seq + 2  # a writer, a task
    assert told(run("audit", "--data", data, "--json"))["ok"] is True


def test_a_backup_of_the_restored_is_a_backup_too(saved: Path, built: Built, place: Path) -> None:
    restored(saved, place / "once")
    assert run("backup", place / "again.tar", "--data", place / "once").exit_code == 0
    restored(place / "again.tar", place / "twice")
    replayed = told(run("replay", "--data", place / "twice", "--json"))
    assert replayed["state_hash"] == built.state_hash


def test_a_backup_without_a_server_changes_no_record(built: Built, place: Path) -> None:
    data = copy_of(built.data, place)
    before = {name: told for name, told in fingerprint(data).items() if name.endswith(".blk")}
    assert run("backup", place / "b.tar", "--data", data).exit_code == 0
    after = {name: told for name, told in fingerprint(data).items() if name.endswith(".blk")}
    events_blocks = {name for name in before if "/EVENTS/" in name}
    assert events_blocks
    assert {name: after[name] for name in events_blocks} == {
        name: before[name] for name in events_blocks
    }


def test_chunks_that_are_not_what_their_names_say_are_left_out(built: Built, place: Path) -> None:
    data = copy_of(built.data, place)

    async def forge(nats: nats_fixture.Nats) -> None:
        async with nats.connect("desk") as fleet:
            for name, headers in (
                (chunks.digest_of(b"other"), {}),
                ("nonsense", {"Status": "204", "Nats-Sequence": "1"}),
            ):
                answer = await fleet.request(f"chunk.w.{name}", b"forged", headers=headers)
                assert b"error" not in answer
            await JetStreamChunks(fleet).put("w", b"sound")

    with in_use(data) as nats:
        asyncio.run(forge(nats))
        made = told(run("backup", place / "b.tar", "--data", data, "--json"))
    assert (made["chunks"], made["left_out"]) == (6, 2)
    restored(place / "b.tar", place / "data")


def test_a_deleted_newest_chunk_holds_nothing_up(built: Built, place: Path) -> None:
    data = copy_of(built.data, place)

    async def delete(nats: nats_fixture.Nats) -> None:
        async with nats.connect("desk") as fleet:
            store = JetStreamChunks(fleet)
            await store.delete("w", await store.put("w", b"soon gone"))

    with in_use(data) as nats:
        asyncio.run(delete(nats))
        made = told(run("backup", place / "b.tar", "--data", data, "--json"))
    assert made["chunks"] == 5


# What is refused when one is made


def test_a_file_that_exists_is_left_alone(built: Built, saved: Path) -> None:
    before = saved.read_bytes()
    refused(run("backup", saved, "--data", built.data), "exists already")
    assert saved.read_bytes() == before


def test_a_backup_inside_of_what_it_saves_is_refused(built: Built) -> None:
    refused(run("backup", built.data / "b.tar", "--data", built.data), "inside of the data")
    assert not list(built.data.glob("*b.tar*"))


def test_what_is_no_data_directory_is_told_and_leaves_no_file(place: Path) -> None:
    result = run("backup", place / "b.tar", "--data", place / "nowhere")
    assert result.exit_code == main.EXIT_NOT_FOUND
    (place / "empty").mkdir()
    refused(run("backup", place / "b.tar", "--data", place / "empty"), "no data directory")
    assert [path.name for path in place.iterdir()] == ["empty"]


def test_a_log_that_lost_its_end_is_not_saved_as_if_it_were_whole(
    built: Built, place: Path
) -> None:
    data = copy_of(built.data, place)
    head = seals.Head(built.last_seq + 5, "0" * 64)
    (data / "head").write_bytes(msgspec.json.encode(head))
    refused(run("backup", place / "b.tar", "--data", data), "5 are missing")
    assert not list(place.glob("*b.tar*"))


def test_a_damaged_record_in_the_middle_is_named(built: Built, place: Path) -> None:
    data = copy_of(built.data, place)
    (block,) = data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/1.blk")
    with in_use(data):  # what is damaged now, no server that starts can repair
        raw = bytearray(block.read_bytes())
        seq = next(one.seq for one in stored_in(bytes(raw), place) if b"RoundOpened" in one.payload)
        raw[raw.find(b"RoundOpened")] ^= 1
        block.write_bytes(raw)
        result = run("backup", place / "b.tar", "--data", data)
    refused(result, f"the checksum of {seq} in 1.blk does not match")
    assert not list(place.glob("*b.tar*"))


def stored_in(block: bytes, place: Path) -> list[blocks.StoredRecord]:
    """The records of a block that is the only one."""
    folder = place / "msgs"
    folder.mkdir()
    (folder / "1.blk").write_bytes(block)
    return list(blocks.read(folder, "EVENTS"))


def test_the_end_of_a_block_that_is_being_written_is_not_looked_at(
    built: Built, place: Path
) -> None:
    (path,) = built.data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/1.blk")
    block, last = path.read_bytes(), built.last_seq
    assert blocks.up_to(block, "EVENTS", 1, 1, last) == (len(block), last)
    assert blocks.up_to(block, "EVENTS", 1, 1, last + 9) == (len(block), last)
    end, reached = blocks.up_to(block, "EVENTS", 1, 1, last - 1)
    assert reached == last - 1
    for unfinished in (block[:end], block[: end + 1], block[:-1], block[:end] + bytes(99)):
        assert blocks.up_to(unfinished, "EVENTS", 1, 1, last) == (end, last - 1)
    assert len(stored_in(block[:end], place)) == last - 1
    assert blocks.up_to(b"", "EVENTS", 1, 7, last) == (0, 6)


def test_a_block_that_begins_elsewhere_or_belongs_elsewhere_is_refused(built: Built) -> None:
    (path,) = built.data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/1.blk")
    block = path.read_bytes()
    for first, index, stream in ((2, 1, "EVENTS"), (1, 2, "EVENTS"), (1, 1, "CHUNKS")):
        with pytest.raises(ValueError, match=r"where|checksum"):
            blocks.up_to(block, stream, index, first, built.last_seq)


def test_a_disk_without_room_is_told_before_anything_is_read(
    built: Built, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_room(monkeypatch):
        refused(run("backup", place / "b.tar", "--data", built.data), "Make room")
    assert list(place.iterdir()) == []


@contextlib.contextmanager
def full_disk_of(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """1 MiB is free where the data directory is, and what there is elsewhere."""
    usage = shutil.disk_usage

    def seen(path: Path) -> Any:
        inside = Path(path).is_relative_to(data)
        return usage(path)._replace(free=2**20) if inside else usage(path)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", seen)
        yield


def test_a_full_disk_of_the_data_directory_is_saved_onto_another(
    built: Built, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(built.data)
    with full_disk_of(built.data, monkeypatch):
        result = run("backup", place / "b.tar", "--data", built.data)
    assert result.exit_code == 0, result.stderr
    assert fingerprint(built.data) == before
    facts = restored(place / "b.tar", place / "data")
    assert (facts["last_seq"], facts["refusals"], facts["chunks"]) == (built.last_seq, 2, 5)


def test_a_full_disk_whose_copy_has_no_room_either_says_where_to_make_some(
    built: Built, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk_of(Path("/"), monkeypatch):
        result = run("backup", place / "b.tar", "--data", built.data)
    refused(result, "disk of .* is full, so a copy is read: .* Set TMPDIR")
    assert list(place.iterdir()) == []


def test_a_full_disk_hides_no_end_that_was_cut_off(
    built: Built, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copy_of(built.data, place)
    head = seals.Head(built.last_seq + 1, "0" * 64)
    (data / "head").write_bytes(msgspec.json.encode(head))
    with full_disk_of(data, monkeypatch):
        refused(run("backup", place / "b.tar", "--data", data), "accept-loss")


@contextlib.contextmanager
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300 * 2**20))
        patched.setattr(backup, "FREE_BYTES_MIN", 2**40)
        yield


# What is refused when one is restored


def test_a_damaged_file_is_refused_wherever_it_is_damaged(saved: Path, place: Path) -> None:
    raw = saved.read_bytes()
    one = random.Random(20_261_126)
    for offset in one.sample(range(len(raw)), 40):
        changed = bytearray(raw)
        changed[offset] ^= 1 << one.randrange(8)
        (place / "b.tar").write_bytes(changed)
        refused(run("restore", place / "b.tar", "--data", place / "data"), "damaged|format")
    for size in (0, 1, 512, len(raw) // 2, len(raw) - 1):
        (place / "b.tar").write_bytes(raw[:size])
        refused(run("restore", place / "b.tar", "--data", place / "data"), "damaged")
    assert [path.name for path in place.iterdir()] == ["b.tar"]


def test_a_directory_with_something_in_it_is_left_alone(saved: Path, place: Path) -> None:
    data = place / "data"
    data.mkdir()
    (data / "mine").write_text("precious")
    refused(run("restore", saved, "--data", data), "not empty")
    assert fingerprint(place).keys() == {"data", "data/mine"}
    file = run("restore", saved, "--data", data / "mine")
    assert (file.exit_code, "is a file" in file.stderr) == (main.EXIT_USAGE, True)
    refused(run("restore", saved, "--data", place / "a" / "b"), "no folder .*make it first")


def test_an_empty_directory_is_taken(saved: Path, place: Path) -> None:
    (place / "data").mkdir()
    restored(saved, place / "data")


def test_a_disk_without_room_to_restore_is_told(
    saved: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_room(monkeypatch):
        refused(run("restore", saved, "--data", place / "data"), "Make room")
    assert list(place.iterdir()) == []


def test_a_log_that_breaks_its_rules_is_restored_only_when_told_to(
    built: Built, place: Path
) -> None:
    original = copy_of(built.data, place)
    with in_use(original) as nats:
        seq = put_by_hand(nats, "ev.task.x", b"nonsense")
    file = place / "b.tar"
    assert run("backup", file, "--data", original).exit_code == 0
    refused(run("restore", file, "--data", place / "data"), f"at {seq} .undecodable.*accept-viol")
    assert {path.name for path in place.iterdir()} == {"copy", "b.tar"}
    facts = restored(file, place / "data", "--accept-violations")
    assert facts["violations_total"] == 1
    assert facts["violations"][0]["seq"] == seq
    told_of = run("restore", file, "--data", place / "again", "--accept-violations")
    assert "it breaks its rules once, as it did when it was saved" in told_of.stdout


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../outside", b"x", "does not know"),
        ("keys/../../outside", b"x", "does not know"),
        ("/etc/outside", b"x", "does not know"),
        ("nats/js/x", b"x", "does not know"),
        ("chunks/99999999", b"nonsense", "no pack"),
        ("chunks/99999999", msgspec.msgpack.encode([("ev.task.x", b"{}")]), "for 'ev.task.x'"),
        ("events/9.blk.gz", b"nonsense", "cannot be unpacked"),
    ],
)
def test_a_forged_backup_reaches_nothing_outside_and_leaves_nothing(
    saved: Path, place: Path, name: str, content: bytes, words: str
) -> None:
    forged = rewritten(saved, place / "b.tar", {name: content})
    refused(run("restore", forged, "--data", place / "data"), words)
    assert [path.name for path in place.iterdir()] == ["b.tar"]
    assert not (place.parent / "outside").exists()


def test_a_backup_that_lacks_an_artifact_is_refused(saved: Path, place: Path) -> None:
    forged = rewritten(saved, place / "b.tar", {"chunks/00000000": None})
    refused(run("restore", forged, "--data", place / "data"), "artifacts: .*no chunk")
    assert [path.name for path in place.iterdir()] == ["b.tar"]


def test_a_backup_whose_log_was_cut_is_refused(saved: Path, built: Built, place: Path) -> None:
    manifest = archive.verify(saved)
    block = gzip.decompress(dict(archive.members(saved, manifest))["events/1.blk.gz"])
    end, last = blocks.up_to(block, "EVENTS", 1, 1, built.last_seq - 1)
    assert last == built.last_seq - 1
    cut = gzip.compress(block[:end])
    forged = rewritten(saved, place / "b.tar", {"events/1.blk.gz": cut})
    refused(run("restore", forged, "--data", place / "data"), f"ends at {last}, not at")
    assert [path.name for path in place.iterdir()] == ["b.tar"]


def test_who_restores_over_a_log_that_knew_more_is_told(
    saved: Path, built: Built, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "config_dir", lambda: place / "config")
    data = place / "data"
    manifest = archive.verify(saved)
    block = gzip.decompress(dict(archive.members(saved, manifest))["events/1.blk.gz"])
    first = stored_in(block, place)[0]
    anchor = seals.Anchor(
        log=seals.fingerprint(first.subject, first.payload),
        seq=built.last_seq + 9,
        last=built.last_seq + 8,
        digest="0" * 64,
        at=0,
    )
    _, kept = seals.anchor_paths(data, anchor.log)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(msgspec.json.encode(anchor))
    assert "is missing" in restored(saved, data)["loss"]
    shutil.rmtree(data)
    assert "--accept-loss" in run("restore", saved, "--data", data).stdout


def test_an_append_under_way_is_not_taken_by_half() -> None:
    def stored(seq: int, headers: bytes) -> Stored:
        return Stored(seq, "ev.task.t", b"{}", 0, headers)

    batch = b"NATS/1.0\r\nNats-Batch-Id:x\r\nNats-Batch-Sequence:1\r\n"
    assert backup._ends_append(stored(1, b""))
    assert backup._ends_append(stored(1, b"NATS/1.0\r\nNats-Expected-Last-Sequence:0\r\n\r\n"))
    assert not backup._ends_append(stored(1, batch + b"\r\n"))
    assert backup._ends_append(stored(1, batch + b"Nats-Batch-Commit:1\r\n\r\n"))


def test_both_are_told_to_people(built: Built, place: Path) -> None:
    made = run("backup", place / "b.tar", "--data", built.data)
    assert f"last seq  {built.last_seq}" in made.stdout
    back = run("restore", place / "b.tar", "--data", place / "data")
    assert f"aghsan up --data {place / 'data'}" in back.stdout.replace("\n", " ")
