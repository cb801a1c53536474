"""What a person accepts as lost, written down by a control plane that starts on it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from core import audit, commands, errors, events, intact, runtime, seals
from gateway import control
from gateway.control import Control, open_control
from tests import nats_fixture


@contextlib.asynccontextmanager
async def opened(data: Path, *, accept_loss: bool = False) -> AsyncIterator[Control]:
    """A control plane that writes, on a server of its own."""
    with nats_fixture.running(data) as nats:
        async with open_control(nats.url, data, lambda: None, accept_loss=accept_loss) as parts:
            writing = asyncio.create_task(parts.door.run())
            try:
                yield parts
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)


async def seeded(data: Path) -> None:
    async with opened(data) as parts:
        await parts.door.execute(commands.SeedTree(), runtime.new_meta("test"), runtime.nothing)


def lose(data: Path, details: list[str], chunks: int) -> list[str]:
    """Note what a mending of the blocks found to be lost; the digests of the chunks."""
    digests = [f"{number:064x}" for number in range(chunks)]
    note = intact.Note(lost=[(1, words) for words in details], chunks=digests)
    (data / intact.NOTE_FILE).write_bytes(msgspec.json.encode(note))
    return digests


async def told(parts: Control) -> list[events.LossAccepted]:
    """The acceptances in the log."""
    records = [record async for part in parts.log.read() for record in part]
    found = [events.decode(*record) for record in records]
    data = [one.data for one in found if isinstance(one, events.Event)]
    return [one for one in data if isinstance(one, events.LossAccepted)]


@pytest.mark.parametrize("chunks", [0, 955, 2_000, control.CHUNKS_MAX, control.CHUNKS_MAX + 7])
async def test_a_loss_of_however_many_chunks_is_accepted_by_name(
    tmp_path: Path, chunks: int
) -> None:
    data = tmp_path / "data"
    await seeded(data)
    details = ["\0" * 5_000, *[f"record {number} is lost" for number in range(120)]]
    digests = lose(data, details, chunks)
    async with opened(data, accept_loss=True) as parts:
        await parts.accept_losses(data)
        first, *more = await told(parts)
        auditor = await audit.read_log(parts.log)
    assert auditor.findings.shown == []
    assert list(auditor.lost_chunks) == digests[: control.CHUNKS_MAX]
    assert "21 more" in first.details
    assert ("7 more lost chunks are not named" in first.details) == (chunks > control.CHUNKS_MAX)
    assert not any(one.details for one in more)
    async with opened(data) as parts:
        assert parts.losses == []


async def test_details_that_no_event_holds_are_cut(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await seeded(data)
    lose(data, ["خ" * 5_000] * 50, 500)
    async with opened(data, accept_loss=True) as parts:
        await parts.accept_losses(data)
        first, *_ = await told(parts)
    *kept, more = first.details
    assert more == f"{50 - len(kept)} more"
    assert kept


async def test_an_acceptance_that_failed_is_made_up_for_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    await seeded(data)
    digests = lose(data, ["2,000 records are lost"], 2_000)

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(seals, "forget_anchors", fail)
        async with opened(data, accept_loss=True) as parts:
            with pytest.raises(OSError, match="the disk is full"):
                await parts.accept_losses(data)
    with pytest.raises(errors.LogDamaged):
        async with opened(data):
            pass
    async with opened(data, accept_loss=True) as parts:
        await parts.accept_losses(data)
        auditor = await audit.read_log(parts.log)
    assert auditor.findings.shown == []
    assert list(auditor.lost_chunks) == digests
    async with opened(data) as parts:
        assert parts.losses == []
