"""Deltas: a chunk told by what changed since the one before, bit for bit.

Training moves every number a little. So numbers of `width` bytes are taken as integers, and their
differences (modulo their range) folded so that small ones of either sign have leading zeros. Bytes
of one rank go together and are compressed (zstd) apart from those of others: the lower ones are
noise, and would spoil the code of the higher ones. A delta is one byte with the width, of each rank
the length of its frame (four bytes) and the frame, and what was left over of the last number.
"""

import struct

import numpy as np
import numpy.typing as npt
import zstandard

from core import errors

DELTAS_MAX = 7
"""On one chunk, one after another: after so many it is stored whole again."""
LEVEL = 3
WIDTHS = (1, 2, 4, 8)
_LENGTH = struct.Struct("<I")


def make(old: bytes, new: bytes, width: int) -> bytes:
    """The delta that leads from one chunk to another of the same size."""
    assert len(old) == len(new), "only a chunk of the same size can be told by what changed"
    assert width in WIDTHS
    count = len(new) // width
    before = np.frombuffer(old, f"<u{width}", count)
    difference = (np.frombuffer(new, f"<u{width}", count) - before).view(f"<i{width}")
    folded = (difference << 1) ^ (difference >> (8 * width - 1))
    ranks = folded.view(np.uint8).reshape(count, width).T
    frames = [zstandard.ZstdCompressor(level=LEVEL).compress(rank.tobytes()) for rank in ranks]
    packed = b"".join(_LENGTH.pack(len(frame)) + frame for frame in frames)
    return bytes([width]) + packed + new[count * width :]


def apply(old: bytes, delta: bytes) -> bytes:
    """The chunk that a delta leads to. Raises errors.ArtifactError for what is none."""
    width = delta[0] if delta else 0
    if width not in WIDTHS:
        raise errors.ArtifactError(f"a delta of numbers of {width} bytes")
    count = len(old) // width
    ranks, at = np.empty((width, count), np.uint8), 1
    try:
        for rank in ranks:
            (length,) = _LENGTH.unpack_from(delta, at)
            frame = delta[at + _LENGTH.size : at + _LENGTH.size + length]
            # A frame that claims more would be unpacked however large it is.
            if zstandard.frame_content_size(frame) != count:
                raise errors.ArtifactError(f"a delta that does not lead to {len(old)} bytes")
            rank[:] = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)
            at += _LENGTH.size + length
    except (zstandard.ZstdError, struct.error) as error:
        raise errors.ArtifactError(f"a delta that cannot be unpacked: {error}") from error
    rest = delta[at:]
    if len(rest) != len(old) - count * width:
        raise errors.ArtifactError(f"a delta that does not lead to {len(old)} bytes")
    folded = np.ascontiguousarray(ranks.T).reshape(-1).view(f"<u{width}")
    before = np.frombuffer(old, f"<u{width}", count)
    after: npt.NDArray[np.unsignedinteger] = before + ((folded >> 1) ^ (0 - (folded & 1)))
    return after.tobytes() + rest
