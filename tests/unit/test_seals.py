"""Seals, head and anchors: any change of what was stored shows, and any loss of the end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from core import audit, commands, errors, runtime, seals
from core.log import Message, Record, Stored
from core.log_memory import MemoryLog
from core.sealer import Sealer

Change = Callable[[Stored], Stored]


class Altered(MemoryLog):
    """A log whose records somebody can change, or cut off, behind its writer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[int, Change] = {}
        self.end: int | None = None

    async def last_seq(self) -> int:
        last = await super().last_seq()
        return last if self.end is None else min(last, self.end)

    async def get(self, seq: int) -> Record | None:
        last = await self.last_seq()
        async for (one,) in self.read_stored(seq, seq):
            return Record(one.seq, one.subject, one.data) if seq <= last else None
        return None

    async def read_stored(
        self, start: int = 1, stop: int | None = None
    ) -> AsyncIterator[list[Stored]]:
        last = await self.last_seq()
        async for records in super().read_stored(start, min(stop or last, last)):
            yield [self.changes.get(one.seq, _as_it_is)(one) for one in records]


def _as_it_is(one: Stored) -> Stored:
    return one


@contextlib.asynccontextmanager
async def written(data: Path) -> AsyncIterator[tuple[Altered, runtime.Runtime, Sealer]]:
    """A log with some tasks, its writer at work, and what would seal it."""
    log = Altered()
    door = runtime.Runtime(log, "test")
    head = seals.HeadFile(data / seals.HEAD_FILE)
    door.note_head = head.note
    await door.start()
    writing = asyncio.ensure_future(door.run())
    try:
        await do(door, commands.SeedTree())
        await queue(door, 0, 8)
        yield log, door, Sealer(door, log, data)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        head.close()


async def do(door: runtime.Runtime, command: commands.AnyCommand) -> None:
    await door.execute(command, runtime.new_meta("t"), runtime.nothing)


async def queue(door: runtime.Runtime, first: int, count: int) -> None:
    for number in range(first, first + count):
        task = commands.EnqueueTask(
            task_id=f"t{number}", node_id="root-math", topic="موضوع", seed=1
        )
        await do(door, task)


async def violations(log: Altered) -> list[tuple[str, int]]:
    findings = (await audit.read_log(log)).findings
    return [(one.rule, one.seq) for one in findings.shown]


async def test_sound_seals_are_chained_and_cover_all_but_the_last_of_them(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, door, sealer):
        await sealer.seal()
        first = door.state.sealed
        await queue(door, 8, 3)
        await sealer.seal()
        second = door.state.sealed
        assert second.last == second.seq - 1
        assert second.last > first.seq > first.last
        auditor = await audit.read_log(log)
        assert auditor.findings.shown == []
        assert auditor.sealed == second.last


async def test_a_log_at_rest_is_sealed_once(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, _, sealer):
        await sealer.seal()
        end = await log.last_seq()
        await sealer.seal()
        await sealer.seal_last()
        assert await log.last_seq() == end


CHANGES: dict[str, Change] = {
    "time": lambda one: one._replace(at_ns=one.at_ns + 1),
    "headers": lambda one: one._replace(headers=b"NATS/1.0\r\nA: b\r\n\r\n"),
    "payload": lambda one: one._replace(data=one.data.replace(b"root-math", b"root-meth")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_changed_record_contradicts_the_seal_over_it(
    tmp_path: Path, change: Change
) -> None:
    async with written(tmp_path) as (log, _, sealer):
        await sealer.seal()
        log.changes[13] = change
        assert ("seals", 1) in await violations(log)


async def test_what_a_leaf_covers_cannot_be_moved_between_its_parts() -> None:
    one = Stored(7, "ev.task.t", b"data", 5, b"head")
    others = [
        one._replace(subject="ev.task.", data=b"tdata"),
        one._replace(headers=b"headd", data=b"ata"),
        one._replace(seq=5, at_ns=7),
    ]
    leaves = {seals.leaf(other) for other in (one, *others)}
    assert len(leaves) == 4


async def test_a_seal_that_leaves_out_the_one_before_is_refused(tmp_path: Path) -> None:
    async with written(tmp_path) as (_, door, sealer):
        await sealer.seal()
        last = door.state.seq
        for first, previous in ((1, ""), (last, "00"), (last + 9, door.state.sealed.digest)):
            forged = commands.SealLog(first=first, last=last, digest="00", previous=previous)
            with pytest.raises(errors.Conflict):
                await do(door, forged)


async def test_a_whole_log_is_whole(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, door, sealer):
        await sealer.seal()
        await queue(door, 8, 2)
        head = seals.read_head(tmp_path)
        assert head is not None
        assert head.seq == await log.last_seq()
        await seals.require_whole(log, tmp_path)


async def test_a_log_that_grows_while_it_is_looked_at_is_whole(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, door, sealer):
        await sealer.seal()
        ask = log.last_seq
        grown = 100

        async def last_seq_then_grow() -> int:
            nonlocal grown
            last = await ask()
            log.last_seq = ask  # type: ignore[method-assign]
            grown += 1
            await queue(door, grown, 1)
            await sealer.seal()
            return last

        log.last_seq = last_seq_then_grow  # type: ignore[method-assign]
        assert await seals.find_losses(log, tmp_path) == []


async def test_a_cut_end_is_missed_by_head_with_how_much_and_what_to_do(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, *_):
        last = await log.last_seq()
        log.end = last - 3
        with pytest.raises(errors.LogDamaged, match=r"3 are missing.*--accept-loss"):
            await seals.require_whole(log, tmp_path)
        assert (await seals.find_losses(log, tmp_path))[0][0] == last - 2


async def test_an_end_written_anew_is_not_the_one_acknowledged(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, *_):
        last = await log.last_seq()
        log.changes[last] = lambda one: one._replace(data=b"{}")
        (loss,) = await seals.find_losses(log, tmp_path)
        assert loss[0] == last


@pytest.mark.parametrize("place", [0, 1], ids=["beside the data", "in the configuration"])
async def test_a_cut_behind_the_last_seal_is_missed_by_each_anchor(
    tmp_path: Path, place: int
) -> None:
    async with written(tmp_path) as (log, door, sealer):
        await sealer.seal()
        (tmp_path / seals.HEAD_FILE).unlink()
        paths = seals.anchor_paths(tmp_path, await seals.identity_of(log))
        paths[1 - place].unlink()
        await seals.require_whole(log, tmp_path)
        log.end = door.state.sealed.seq - 1
        with pytest.raises(errors.LogDamaged, match="the seal at"):
            await seals.require_whole(log, tmp_path)


async def test_a_copy_that_is_tried_out_does_not_speak_for_the_original(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    async with written(tmp_path) as (log, _, sealer):
        await sealer.seal()
        identity = await seals.identity_of(log)
        ahead = seals.Anchor(log=identity, seq=10_000, last=9_999, digest="00", at=1)
        seals.write_anchor(tmp_path / "copy", ahead)
        await seals.require_whole(log, tmp_path)
        with pytest.raises(errors.LogDamaged):
            await seals.require_whole(log, tmp_path / "copy")


async def test_another_log_in_its_place_is_noticed(tmp_path: Path) -> None:
    async with written(tmp_path) as (_, _, sealer):
        await sealer.seal()
        (tmp_path / seals.HEAD_FILE).unlink()
        other = MemoryLog()
        await other.append([Message("ev.log.writer", b"{}")], 0)
        with pytest.raises(errors.LogDamaged, match="another log"):
            await seals.require_whole(other, tmp_path)


async def test_anchors_can_be_forgotten(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, _, sealer):
        await sealer.seal()
        (tmp_path / seals.HEAD_FILE).unlink()
        log.end = 11
        seals.forget_anchors(tmp_path, await seals.identity_of(log))
        await seals.require_whole(log, tmp_path)


def test_a_start_without_blocks_is_refused_where_head_tells_of_records(tmp_path: Path) -> None:
    seals.require_end(0, tmp_path)
    (tmp_path / seals.HEAD_FILE).write_bytes(msgspec.json.encode(seals.Head(3, "00")))
    with pytest.raises(errors.LogDamaged, match="3 are missing"):
        seals.require_end(0, tmp_path)
    seals.require_end(3, tmp_path)


async def test_notes_that_cannot_be_read_are_as_none_to_a_start_and_damage_to_an_audit(
    tmp_path: Path,
) -> None:
    async with written(tmp_path) as (log, *_):
        head, anchor = tmp_path / seals.HEAD_FILE, tmp_path / seals.ANCHOR_FILE
        assert await seals.find_unreadable(log, tmp_path) == []
        head.write_bytes(head.read_bytes().replace(b" ", b"0", 1))
        anchor.write_text("{")
        await seals.require_whole(log, tmp_path)
        assert await seals.find_unreadable(log, tmp_path) == [
            f"{head} holds no head that can be read",
            f"{anchor} holds no anchor that can be read",
        ]
        anchor.unlink()
        for never_written in (b"", b"\0" * 40):  # as after a power cut
            head.write_bytes(never_written)
            await seals.require_whole(log, tmp_path)
            assert await seals.find_unreadable(log, tmp_path) == []


async def test_notes_that_cannot_be_read_are_kept_under_another_name_and_told(
    tmp_path: Path,
) -> None:
    async with written(tmp_path) as (log, *_):
        assert await seals.set_aside_unreadable(log, tmp_path) == []
        for name in (seals.HEAD_FILE, seals.ANCHOR_FILE):
            (tmp_path / name).write_text(f"{{{name}")
            (tmp_path / f"{name}.unreadable").write_text("an older one")
        words = await seals.set_aside_unreadable(log, tmp_path)
        for name, told in zip((seals.HEAD_FILE, seals.ANCHOR_FILE), words, strict=True):
            assert f"{name} cannot be read and is kept as {name}.unreadable" in told
            assert (tmp_path / f"{name}.unreadable").read_text() == f"{{{name}"
        assert await seals.find_unreadable(log, tmp_path) == []


async def test_a_note_that_can_neither_be_read_nor_kept_stops_a_start(tmp_path: Path) -> None:
    async with written(tmp_path) as (log, *_):
        (tmp_path / seals.HEAD_FILE).write_text("{")
        (tmp_path / "head.unreadable").mkdir()
        with pytest.raises(errors.DataDirectoryError, match="Move it away"):
            await seals.set_aside_unreadable(log, tmp_path)


async def test_the_loop_seals_what_is_new_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.sealer.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("core.sealer.SEAL_EVENTS", 5)
    async with written(tmp_path) as (_, door, sealer):
        sealed = asyncio.Event()
        door.observe(lambda event: sealed.set() if door.state.sealed.last else None)
        looping = asyncio.ensure_future(sealer.run())
        async with asyncio.timeout(10):
            await sealed.wait()
        looping.cancel()
