"""Deltas lead back to every bit, and what is no delta is refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from core import deltas, errors


@given(st.data(), st.binary(max_size=200), st.sampled_from(deltas.WIDTHS))
def test_a_delta_leads_back_to_every_bit(data: st.DataObject, old: bytes, width: int) -> None:
    new = data.draw(st.binary(min_size=len(old), max_size=len(old)))
    assert deltas.apply(old, deltas.make(old, new, width)) == new


def test_numbers_that_moved_a_little_have_a_small_delta() -> None:
    old = np.random.default_rng(0).standard_normal(10_000).astype("<f4")
    new = (old * np.float32(1.0001)).tobytes()
    assert len(deltas.make(old.tobytes(), new, 4)) < 0.7 * len(new)


OLD = bytes(range(16))
RANK = zstandard.compress(bytes(4))


def framed(*frames: bytes, rest: bytes = b"", width: int = 4) -> bytes:
    return bytes([width]) + b"".join(len(one).to_bytes(4, "little") + one for one in frames) + rest


def test_a_delta_is_a_frame_of_each_rank() -> None:
    assert deltas.apply(OLD, framed(*[RANK] * 4)) == OLD


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        framed(*[RANK] * 3, width=3),
        framed(),
        framed(*[RANK] * 3),
        framed(*[RANK] * 3, b"nothing that was packed"),
        framed(*[RANK] * 3, b""),
        framed(*[RANK] * 4, rest=b"x"),
        framed(*[RANK] * 4)[:-1],
        framed(*[RANK] * 3, zstandard.compress(bytes(5))),
        framed(*[RANK] * 3, zstandard.compress(bytes(3))),
        framed(*[RANK] * 3, zstandard.compress(bytes(2**24))),
        framed(*[RANK] * 3, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4))),
        b"\x04" + (2**32 - 1).to_bytes(4, "little") + RANK,
    ],
)
def test_what_leads_nowhere_is_refused(delta: bytes) -> None:
    with pytest.raises(errors.ArtifactError, match="a delta"):
        deltas.apply(OLD, delta)
