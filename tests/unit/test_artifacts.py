"""Directories of training as chunks: a tensor that did not change is never sent again."""

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch

from agent import artifacts, tensors
from agent.artifacts import LARGE_TENSOR_BYTES, PART, Cache
from core import chunks, errors
from core.deltas import DELTAS_MAX
from tests import agents

WRITER = "agent-1"
LARGE = LARGE_TENSOR_BYTES // 4
"""Float32 numbers of the smallest large tensor."""


def packed(folder: Path, **files: bytes) -> artifacts.Packed:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    return artifacts.pack(folder, "checkpoint", WRITER)


def model(**sizes: int) -> bytes:
    """Tensors of so many numbers; a size below zero has other numbers of that many."""
    made = {
        name: torch.full((abs(size),), 1.0 if size > 0 else 2.0) + torch.arange(abs(size))
        for name, size in sizes.items()
    }
    return safetensors.torch.save(made)


def whole(one: artifacts.Packed) -> list[bytes]:
    return [b"".join(one.pieces[digest] for digest in file.chunks) for file in one.manifest.files]


def new_bytes(before: artifacts.Packed, after: artifacts.Packed) -> int:
    return sum(len(data) for name, data in after.pieces.items() if name not in before.pieces)


def test_of_two_states_only_what_changed_is_new(tmp_path: Path) -> None:
    before = packed(tmp_path, model=model(base=40 * LARGE, head=100, tail=3 * LARGE))
    after = packed(tmp_path, model=model(base=40 * LARGE, head=-100, tail=3 * LARGE))
    assert new_bytes(before, after) < 10 * 100
    moved = packed(tmp_path, model=model(another=7, base=40 * LARGE, head=-100, tail=3 * LARGE))
    assert new_bytes(after, moved) < 10 * 100 + 1_000, "its place in the file does not matter"


def test_a_file_is_the_sum_of_its_chunks_wherever_it_is_cut(tmp_path: Path) -> None:
    files = {
        "small": model(a=3, b=5),
        "long": model(a=3 * chunks.CHUNK_BYTES // 4 + 1, b=LARGE, c=1),
        "none": b"",
        "short": b"1234567",
        "liar": (2**62).to_bytes(8, "little") + b"{}",
        "no_json": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
        "beyond": (60).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","data_offsets":[0,99999999999999999]}}  '
        + b"x",
    }
    one = packed(tmp_path, **files)
    assert whole(one) == [files[file.name.partition(".")[0]] for file in one.manifest.files]
    assert all(len(piece) <= chunks.CHUNK_BYTES for piece in one.pieces.values())
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in one.pieces.items())


def test_a_header_beyond_its_bound_is_not_read_and_the_file_is_cut_anywhere(tmp_path: Path) -> None:
    large = {"a": torch.zeros(LARGE), "b": torch.ones(LARGE)}
    blob = safetensors.torch.save(large)
    assert len(packed(tmp_path, model=blob).pieces) == 3
    padded = safetensors.torch.save(large, {"about": "x" * tensors.HEADER_BYTES_MAX})
    one = packed(tmp_path, model=padded)
    (file,) = one.manifest.files
    assert len(file.chunks) == -(-len(padded) // chunks.CHUNK_BYTES)
    assert whole(one) == [padded]


@pytest.mark.parametrize("count", [1, 40])
def test_small_tensors_go_together(tmp_path: Path, count: int) -> None:
    one = packed(tmp_path, model=model(**{f"t{number}": 50 for number in range(count)}))
    assert len(one.pieces) == 1


async def test_a_cache_fetches_once_and_keeps_the_newest_that_were_used(tmp_path: Path) -> None:
    cache, fetched = Cache(tmp_path / "corpora", kept=2), []
    cache.open()

    async def get(digest: str) -> Path:
        async def download(part: Path) -> chunks.Manifest:
            fetched.append(digest)
            return agents.brought(part, {"training.txt": digest.encode()})

        folder = await cache.get(digest, download)
        os.utime(folder, (len(clock), len(clock)))
        clock.append(digest)
        return folder

    clock: list[str] = []
    for digest in ("a", "b", "a", "c", "a"):
        assert (await get(digest) / "training.txt").read_text() == digest
    assert fetched == ["a", "b", "c"]
    assert await get("b") == tmp_path / "corpora" / "b"
    assert fetched == ["a", "b", "c", "b"]


async def test_what_a_cut_left_in_a_cache_takes_no_place_and_is_bounded_too(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "corpora", kept=2)
    cache.open()
    for number, name in enumerate(["x", "y", "z"]):
        part = cache_part(tmp_path / "corpora", name)
        os.utime(part, (2**31 + number, 2**31 + number))

    async def download(part: Path) -> chunks.Manifest:
        return agents.brought(part, {"training.txt": b"t"})

    for digest in ("a", "b"):
        await cache.get(digest, download)
    there = {path.name for path in (tmp_path / "corpora").iterdir() if path.is_dir()}
    assert there == {"a", "b", f"{PART}y", f"{PART}z"}


def cache_part(folder: Path, name: str) -> Path:
    """A folder that is on its way."""
    part = folder / f"{PART}{name}"
    part.mkdir()
    return part


MIB = 1024 * 1024


def peak_mib(do: Callable[[], object]) -> float:
    """The most memory that something takes at once, of what Python gives out."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def states(folder: Path, size: int) -> tuple[Path, Path]:
    """Two states of a training of one large tensor, the second with other small numbers."""
    made = []
    for step in (1, 2):
        made.append(folder / f"step-{step}")
        made[-1].mkdir()
        numbers = torch.full((size // 4,), step, dtype=torch.int32)
        safetensors.torch.save_file({"w": numbers}, made[-1] / "model.safetensors")
    return made[0], made[1]


def test_however_large_a_state_is_only_a_few_chunks_of_it_are_in_memory(tmp_path: Path) -> None:
    first, second = states(tmp_path, 48 * MIB)
    found: list[artifacts.Packed] = []
    assert peak_mib(lambda: found.append(artifacts.pack(first, "checkpoint", WRITER))) < 16
    stored = artifacts.Stored(found[0].manifest, first)
    packs = lambda: found.append(artifacts.pack(second, "checkpoint", WRITER, before=stored))  # noqa: E731
    assert peak_mib(packs) < 24
    assert found[1].manifest.files[0].deltas
    (file,) = found[1].manifest.files
    data = chunks.join(file, {**found[0].pieces, **found[1].pieces})
    assert data == (second / "model.safetensors").read_bytes()


def test_a_delta_that_is_not_kept_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = states(tmp_path, 8 * MIB)
    stored = artifacts.Stored(artifacts.pack(first, "checkpoint", WRITER).manifest, first)
    kept = dict(artifacts.pack(second, "checkpoint", WRITER, before=stored).pieces)
    monkeypatch.setattr(artifacts, "KEPT_BYTES_MAX", 0)
    again = artifacts.pack(second, "checkpoint", WRITER, before=stored)
    assert dict(again.pieces) == kept
    assert all(chunks.digest_of(piece) == digest for digest, piece in again.pieces.items())
    assert artifacts.sizes_of(again.pieces) == {name: len(data) for name, data in kept.items()}


def test_a_file_that_becomes_shorter_as_it_is_sent_is_said_so(tmp_path: Path) -> None:
    first, _ = states(tmp_path, 2 * MIB)
    one = artifacts.pack(first, "checkpoint", WRITER)
    (first / "model.safetensors").write_bytes(b"")
    with pytest.raises(errors.ArtifactError, match="became shorter"):
        dict(one.pieces)


class Checkpoints:
    """States of training one after another, each told by what changed since the one before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stored: artifacts.Stored | None = None
        self.pieces: dict[str, bytes] = {}
        """All that was ever sent."""

    def add(self, tensors: dict[str, torch.Tensor]) -> artifacts.Packed:
        """Pack a state, and require that what is stored restores it bit for bit."""
        folder = self._folder / f"{len(list(self._folder.iterdir()))}"
        data = safetensors.torch.save(tensors)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(data)
        one = artifacts.pack(folder, "checkpoint", WRITER, before=self.stored)
        self.pieces.update(one.pieces)
        (file,) = one.manifest.files
        chunks.require_sound(one.manifest)
        assert chunks.join(file, self.pieces) == data
        self.stored = artifacts.Stored(one.manifest, folder)
        return one


def sent_bytes(one: artifacts.Packed) -> int:
    return sum(map(len, one.pieces.values()))


def test_what_moved_a_little_is_told_by_less_and_whole_again_after_so_many(tmp_path: Path) -> None:
    states, weights = Checkpoints(tmp_path), torch.randn(3 * LARGE)
    sizes = []
    for _ in range(2 * (DELTAS_MAX + 1)):
        sizes.append(sent_bytes(states.add({"w": weights, "bias": weights[:5].clone()})))
        weights = weights + 1e-4 * torch.randn(3 * LARGE)
    whole = weights.nbytes
    is_whole = [size > whole for size in sizes]
    assert is_whole == [True, *[False] * DELTAS_MAX] * 2
    assert all(size < 0.8 * whole for size in sizes if size < whole)


def test_what_did_not_move_is_not_told_again_whatever_else_does(tmp_path: Path) -> None:
    states, frozen = Checkpoints(tmp_path), torch.randn(2 * LARGE)
    moving = torch.randn(LARGE)
    states.add({"frozen": frozen, "moving": moving})
    for _ in range(DELTAS_MAX + 2):
        moving = moving + 1e-4
        assert sent_bytes(states.add({"frozen": frozen, "moving": moving})) < 1.1 * moving.nbytes
        assert states.add({"frozen": frozen, "moving": moving}).pieces == {}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64, torch.int8])
def test_numbers_of_any_width_come_back(tmp_path: Path, kind: torch.dtype) -> None:
    states = Checkpoints(tmp_path)
    for step in range(3):
        numbers = torch.arange(LARGE_TENSOR_BYTES, dtype=torch.float64) % 100 + step
        one = states.add({"w": numbers.to(kind)})
    assert sent_bytes(one) < LARGE_TENSOR_BYTES // 4


def noise(size: int) -> torch.Tensor:
    """Numbers whose differences are noise too."""
    return torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32)


def test_what_a_delta_does_not_help_is_sent_whole(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path)
    for name, size in (("w", LARGE), ("w", LARGE), ("w", LARGE + 1), ("another", LARGE)):
        one = states.add({name: noise(size)})
        assert sent_bytes(one) >= 4 * size
        assert not one.manifest.files[0].deltas


def test_what_was_lent_before_still_is(tmp_path: Path) -> None:
    states, weights = Checkpoints(tmp_path), torch.randn(LARGE)
    first = states.add({"w": weights})
    (piece,) = first.manifest.files[0].chunks[1:]
    assert states.stored is not None
    manifest = msgspec.structs.replace(first.manifest, lent={"agent-2": [piece]})
    states.stored = states.stored._replace(manifest=manifest)
    assert states.add({"w": weights + 1e-4}).manifest.lent == {"agent-2": [piece]}
    assert states.add({"w": noise(LARGE)}).manifest.lent == {}
