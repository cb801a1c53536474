"""An agent on a disk that is really full: what it cannot write down it gives back, and goes on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import folders, worker
from core import errors, events
from faults import disks
from faults.diskfull import Ballast
from tests import agents

DISK_MIB = 64
BASE = "m" * 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    if why := disks.why_not():
        pytest.skip(why)
    with disks.mounted(tmp_path, DISK_MIB) as disk:
        yield disk.folder


@pytest.fixture
def place(disk: Path, monkeypatch: pytest.MonkeyPatch) -> agents.Place:
    monkeypatch.setattr(worker, "ROOM_BYTES_MIN", 0)  # the disk is smaller
    return agents.Place(disk / "agent", monkeypatch)


async def test_a_claim_that_cannot_be_kept_is_given_back_and_not_found_again(
    place: agents.Place, disk: Path
) -> None:
    server = agents.Server(1)
    server.on_claim = lambda: Ballast(disk).fill(0)
    agent = place.agent(server, agents.Trainer())
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.waits.wait())
    (reason,) = server.released
    assert "No space left" in reason
    assert place.kept() == []
    agent.stop()
    await running


async def test_a_champion_that_finds_no_room_leaves_nothing_behind(
    place: agents.Place, disk: Path
) -> None:
    bases, ballast = disk / "agent" / "bases", Ballast(disk)
    server, trainer = agents.Server(1), agents.Trainer()
    server.base = events.Base(candidate_id="c", manifest=BASE, writer="w", weights_sha256="0" * 64)
    server.on_download = lambda: ballast.fill(512 * 1024)
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.waits.wait())
    (reason,) = server.released
    assert "No space left" in reason
    assert not any(path.is_dir() for path in bases.iterdir())
    ballast.free()
    server.on_download = lambda: None
    server.offers.put_nowait(2)
    await agents.before_its_end(running, trainer.trains.wait())
    assert (bases / BASE / "model.safetensors").is_file()
    agent.stop()
    await running


def test_a_folder_on_a_full_disk_is_used_by_one_agent_at_a_time(disk: Path) -> None:
    (disk / "agent").mkdir()
    (disk / "agent" / folders.LOCK).touch()
    Ballast(disk).fill(0)
    lock = folders.use(disk / "agent")
    with pytest.raises(errors.DirectoryInUse):
        folders.use(disk / "agent")
    lock.release()
