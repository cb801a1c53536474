"""Downloaded models: once for all agents that share a folder, whole, and no more than fit."""

import asyncio
import os
from pathlib import Path

import pytest

from agent import bases, folders
from agent.bases import Bases
from core import errors
from core.chunks import Manifest
from tests import agents

A, B, C = "a" * 64, "b" * 64, "c" * 64


class Server:
    """Gives the same files for everything, and counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_asked = asyncio.Event()

    async def download(self, part: Path) -> Manifest:
        self.asked += 1
        self.is_asked.set()
        await self.may_answer.wait()
        return agents.brought(part, {"config.json": b"{}", "model.safetensors": b"weights"})


def models(folder: Path) -> set[str]:
    """The models there."""
    return {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folders.own(tmp_path / "bases")
    return tmp_path / "bases"


async def test_agents_that_share_a_folder_download_a_model_once(
    folder: Path, tmp_path: Path
) -> None:
    server = Server()
    server.may_answer.clear()
    one, other = Bases(folder), Bases(folder)
    first = asyncio.create_task(one.get(A, tmp_path / "1", server.download))
    second = asyncio.create_task(other.get(A, tmp_path / "2", server.download))
    await server.is_asked.wait()
    server.may_answer.set()
    for found in (await first, await second, await one.get(A, tmp_path / "3", server.download)):
        assert (found / "model.safetensors").read_bytes() == b"weights"
    assert server.asked == 1


async def test_a_model_that_was_damaged_since_is_downloaded_again(
    folder: Path, tmp_path: Path
) -> None:
    server = Server()
    await Bases(folder).get(A, tmp_path / "1", server.download)
    (folder / A / "model.safetensors").write_bytes(b"weightz")
    found = await Bases(folder).get(A, tmp_path / "2", server.download)
    assert (found / "model.safetensors").read_bytes() == b"weights"
    assert server.asked == 2
    await Bases(folder).get(A, tmp_path / "3", server.download)
    assert server.asked == 2


async def test_beyond_the_bound_the_least_recently_used_goes_and_is_taken_from_no_task(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "KEPT_MAX", 2)
    server, kept = Server(), Bases(folder)
    for number, digest in enumerate((A, B)):
        await kept.get(digest, tmp_path / digest, server.download)
        os.utime(folder / digest, (number, number))
    await kept.get(A, tmp_path / "again", server.download)
    await kept.get(C, tmp_path / C, server.download)
    assert models(folder) == {A, C}
    assert (tmp_path / B / "model.safetensors").read_bytes() == b"weights"
    assert server.asked == 3


async def test_models_are_bound_by_their_bytes_too_and_one_that_is_larger_alone_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "BYTES_MAX", 5)
    server, kept = Server(), Bases(folder)
    for digest in (A, B):
        await kept.get(digest, tmp_path / digest, server.download)
    assert models(folder) == {B}


async def test_a_download_that_fails_leaves_nothing_and_lets_the_next_one_try(
    folder: Path, tmp_path: Path
) -> None:
    async def away(_: Path) -> Manifest:
        raise errors.SteppedDown("away")

    with pytest.raises(errors.SteppedDown):
        await Bases(folder).get(A, tmp_path / "1", away)
    assert models(folder) == set()
    await Bases(folder).get(A, tmp_path / "1", Server().download)


async def test_what_was_fetched_in_part_stays_for_the_next_try_and_not_for_ever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "BYTES_MAX", 5)
    kept = Bases(folder)

    async def cut(part: Path) -> Manifest:
        agents.brought(part, {"model.safetensors": b"weigh"})
        raise errors.SteppedDown("away")

    with pytest.raises(errors.SteppedDown):
        await kept.get(A, tmp_path / "1", cut)
    await kept.get(B, tmp_path / "2", Server().download)
    (left,) = models(folder) - {B}
    os.utime(folder / left, (0, 0))
    await kept.get(C, tmp_path / "3", Server().download)
    assert models(folder) == {C}


async def test_a_model_that_others_delete_as_it_comes_is_given_up_after_a_few_tries(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, linked = Server(), bases._link

    def too_late(source: Path, target: Path) -> None:
        for path in source.iterdir():
            path.unlink()
        source.rmdir()
        linked(source, target)

    monkeypatch.setattr(bases, "_link", too_late)
    with pytest.raises(errors.ArtifactError, match="3 times"):
        await Bases(folder).get(A, tmp_path / "1", server.download)
    assert server.asked == 3


async def test_a_lock_that_cannot_be_made_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Bases(tmp_path / "nowhere").get(A, tmp_path / "1", Server().download)
