"""Artifacts on their way: whole or not there, and gone on with after a cut."""

import asyncio
from pathlib import Path

import pytest

from agent import downloads
from core import chunks, deltas, errors
from core.chunks import File, Manifest

PIECES = [bytes([number]) * 1_000 for number in range(200)]
WHOLE = b"".join(PIECES)


class Store:
    """Gives chunks, and may be cut."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = {chunks.digest_of(piece): piece for piece in pieces}
        self.asked: list[str] = []
        self.breaks_after = 10_000
        self.at_once = self.most_at_once = 0

    async def read(self, digest: str) -> bytes:
        self.asked.append(digest)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if len(self.asked) > self.breaks_after:
            raise errors.Unavailable("the connection broke")
        return self.pieces[digest]


def named(name: str, pieces: list[bytes], **more: object) -> File:
    whole = b"".join(pieces)
    values = {"bytes": len(whole), "sha256": chunks.digest_of(whole), **more}
    digests = [chunks.digest_of(piece) for piece in pieces]
    return File(name=name, chunks=digests, **values)  # type: ignore[arg-type]


def manifest(*files: File) -> Manifest:
    return Manifest(kind="checkpoint", writer="w", files=list(files))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_what_a_cut_ended_is_gone_on_with_and_no_chunk_is_fetched_for_nothing(
    tmp_path: Path,
) -> None:
    store, one = Store(*PIECES), manifest(named("a", PIECES[:50]), named("b", PIECES))
    store.breaks_after = 150
    with pytest.raises(errors.Unavailable):
        await downloads.download(one, tmp_path, store.read)
    store.breaks_after = 10_000
    await downloads.download(one, tmp_path, store.read)
    assert files(tmp_path) == {"a": b"".join(PIECES[:50]), "b": WHOLE}
    assert len(store.asked) <= 250 + 2 * downloads.AHEAD


async def test_a_few_chunks_are_on_their_way_at_once(tmp_path: Path) -> None:
    store = Store(*PIECES)
    await downloads.download(manifest(named("a", PIECES)), tmp_path, store.read)
    assert 1 < store.most_at_once <= downloads.AHEAD


async def test_what_is_whole_is_not_fetched_again(tmp_path: Path) -> None:
    store, one = Store(*PIECES), manifest(named("a", PIECES), named("empty", []))
    for _ in range(2):
        await downloads.download(one, tmp_path, store.read)
    assert files(tmp_path) == {"a": WHOLE, "empty": b""}
    assert len(store.asked) == len(PIECES)


async def test_a_chunk_that_a_file_names_again_and_again_is_fetched_once(tmp_path: Path) -> None:
    zeros = [bytes(1_000)] * 100
    store = Store(zeros[0])
    await downloads.download(manifest(named("a", zeros)), tmp_path, store.read)
    assert files(tmp_path) == {"a": bytes(100_000)}
    assert len(store.asked) == 1


async def test_deltas_are_laid_on_what_they_change(tmp_path: Path) -> None:
    old, new = bytes(8_000), bytes(range(250)) * 32
    delta = deltas.make(old, new, 4)
    file = named("a", [old], sha256=chunks.digest_of(new), deltas={0: [chunks.digest_of(delta)]})
    await downloads.download(manifest(file), tmp_path, Store(old, delta).read)
    assert files(tmp_path) == {"a": new}


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"bytes": 10}, {"bytes": 10**9}])
async def test_what_is_not_what_its_manifest_says_is_no_file_and_begun_anew(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    store = Store(*PIECES)
    with pytest.raises(errors.ArtifactError, match=r"a (is said|does not hash)"):
        await downloads.download(manifest(named("a", PIECES, **wrong)), tmp_path, store.read)
    assert not (tmp_path / "a").exists()
    await downloads.download(manifest(named("a", PIECES)), tmp_path, store.read)
    assert (tmp_path / "a").read_bytes() == WHOLE


@pytest.mark.parametrize("spoil", ["part", "note"])
async def test_what_was_spoiled_between_two_tries_costs_neither_a_try_nor_a_wrong_byte(
    tmp_path: Path, spoil: str
) -> None:
    store, one = Store(*PIECES), manifest(named("a", PIECES))
    store.breaks_after = 100
    with pytest.raises(errors.Unavailable):
        await downloads.download(one, tmp_path, store.read)
    left = tmp_path / f".a.{spoil}"
    left.write_bytes(b"x" * left.stat().st_size)
    store.breaks_after = 10_000
    await downloads.download(one, tmp_path, store.read)
    assert files(tmp_path) == {"a": WHOLE}
