"""HighwayHash-64 of many pieces of one buffer at once.

J. Alakuijala, B. Cox, J. Wassenberg, "Fast keyed hash/pseudo-random function using SIMD multiply
and permute", 2016. The four 64-bit lanes of each state are rows of an array, and the pieces are its
columns; every numpy call works on all pieces that are long enough to have another packet.
"""

import struct

import numpy as np
import numpy.typing as npt

KEY_BYTES = 32
PACKET_BYTES = 32

_U64s = npt.NDArray[np.uint64]
_Integers = npt.NDArray[np.int64]

_PIECES_AT_ONCE = 2048
"""So that the states of a batch stay in the cache of a core."""

_LANES = [0, 2, 1, 3]
"""Even lanes first: the merge works on neighbours, 0 with 1 and 2 with 3."""

_ROTATED = [1, 0, 3, 2]
"""Lanes 2, 3, 0, 1, where lanes stand in the order above."""

_INIT_0 = (0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3)
_INIT_1 = (0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def hash_pieces(
    key: bytes, buffer: bytes | bytearray, starts: _Integers, lengths: _Integers
) -> _U64s:
    """The hash of each `buffer[start : start + length]`, under one key of 32 bytes."""
    assert len(key) == KEY_BYTES, len(key)
    padded = np.frombuffer(buffer + bytes(PACKET_BYTES), np.uint8)
    # Every 32 bytes that lie next to each other, as one item: to gather items is to copy memory.
    packets = np.ndarray(len(buffer) + 1, f"V{PACKET_BYTES}", padded.data, strides=(1,))
    hashes = np.empty(len(starts), np.uint64)
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), _PIECES_AT_ONCE):
        batch = order[first : first + _PIECES_AT_ONCE]
        hashes[batch] = _hash_batch(key, packets, starts[batch], lengths[batch])
    return hashes


def _hash_batch(
    key: bytes, packets: npt.NDArray[np.void], starts: _Integers, lengths: _Integers
) -> _U64s:
    """The hashes of pieces that come longest first."""
    state = _State(key, len(starts))
    whole = lengths // PACKET_BYTES
    rows = np.arange(int(whole[0])) if len(whole) else np.arange(0)
    # How many pieces have a packet with this index: `whole` falls, so it is sorted the other way.
    counts = len(whole) - np.searchsorted(whole[::-1], rows, side="right")
    at = starts.copy()
    for count in counts.tolist():
        state.update(_as_lanes(packets[at[:count]]), count)
        at += PACKET_BYTES
    rest = lengths % PACKET_BYTES
    if rest.any():
        state.update_rest(packets[starts + whole * PACKET_BYTES], rest)
    return state.finish()


def _as_lanes(packets: npt.NDArray[np.void]) -> _U64s:
    return packets.view("<u8").reshape(-1, 4).T[_LANES]


class _State:
    """The states of some pieces."""

    def __init__(self, key: bytes, pieces: int) -> None:
        keys = np.array(struct.unpack("<4Q", key), np.uint64)[_LANES]
        init_0, init_1 = np.array(_INIT_0, np.uint64)[_LANES], np.array(_INIT_1, np.uint64)[_LANES]

        def spread(lanes: _U64s) -> _U64s:
            return np.repeat(lanes[:, None], pieces, axis=1)

        self._mul0, self._mul1 = spread(init_0), spread(init_1)
        self._v0, self._v1 = spread(init_0 ^ keys), spread(init_1 ^ _swapped(keys))
        self._scratch = np.empty((4, pieces), np.uint64)
        self._spare = np.empty((4, pieces), np.uint64)

    def update(self, lanes: _U64s, count: int) -> None:
        """Take one packet of each of the first `count` pieces."""
        v0, v1 = self._v0[:, :count], self._v1[:, :count]
        mul0, mul1 = self._mul0[:, :count], self._mul1[:, :count]
        scratch, spare = self._scratch[:, :count], self._spare[:, :count]
        v1 += mul0
        v1 += lanes
        _multiply(mul0, v1, v0, scratch, spare)
        v0 += mul1
        _multiply(mul1, v0, v1, scratch, spare)
        _merge(v1, v0, scratch[:2])
        _merge(v0, v1, scratch[:2])

    def update_rest(self, packets: npt.NDArray[np.void], rest: _Integers) -> None:
        """Take the last bytes of the pieces, fewer than a packet each."""
        some = np.flatnonzero(rest)
        rest = rest[some]
        content = packets[some].view(np.uint8).reshape(-1, PACKET_BYTES)
        part = _State(bytes(KEY_BYTES), len(some))
        part._mul0, part._mul1 = self._mul0[:, some], self._mul1[:, some]
        lengths = rest.astype(np.uint64)
        part._v0 = self._v0[:, some] + ((lengths << _HALF) + lengths)
        halves = lengths.astype(np.uint32)[:, None]
        pairs = np.ascontiguousarray(self._v1[:, some]).view(np.uint32).reshape(4, -1, 2)
        turned = (pairs << halves) | (pairs >> (np.uint32(32) - halves))
        part._v1 = turned.view(np.uint64).reshape(4, -1)
        part.update(_as_lanes(_padded(content, rest)), len(some))
        self._v0[:, some], self._v1[:, some] = part._v0, part._v1
        self._mul0[:, some], self._mul1[:, some] = part._mul0, part._mul1

    def finish(self) -> _U64s:
        """The hashes; the states are used up."""
        for _ in range(4):
            self.update(_swapped(self._v0[_ROTATED]), self._v0.shape[1])
        hashes: _U64s = self._v0[0] + self._v1[0] + self._mul0[0] + self._mul1[0]
        return hashes


def _padded(content: npt.NDArray[np.uint8], rest: _Integers) -> npt.NDArray[np.void]:
    """The last packets: whole words where they are, and the bytes after them at a place apart."""
    columns = np.arange(PACKET_BYTES)
    odd = rest & 3
    words = rest - odd
    packet = np.where(columns < words[:, None], content, 0).astype(np.uint8)
    rows = np.flatnonzero(rest & 16)
    back = rest[rows, None] - 4 + np.arange(4)
    packet[rows, 28:32] = content[rows[:, None], back]
    rows = np.flatnonzero(((rest & 16) == 0) & (odd > 0))
    packet[rows, 16] = content[rows, words[rows]]
    packet[rows, 17] = content[rows, words[rows] + (odd[rows] >> 1)]
    packet[rows, 18] = content[rows, rest[rows] - 1]
    return packet.view(f"V{PACKET_BYTES}").reshape(-1)


def _swapped(lanes: _U64s) -> _U64s:
    """Both halves of each lane the other way round."""
    return (lanes >> _HALF) | (lanes << _HALF)


def _multiply(into: _U64s, low: _U64s, high: _U64s, scratch: _U64s, spare: _U64s) -> None:
    np.bitwise_and(low, _LOW, out=scratch)
    np.right_shift(high, _HALF, out=spare)
    scratch *= spare
    into ^= scratch


_Term = tuple[bool, np.uint64, np.uint64, bool]


def _term(odd: bool, mask: int, shift: int) -> _Term:
    return odd, np.uint64(mask), np.uint64(abs(shift)), shift < 0


# Which bytes of an even and an odd lane make the sums' bytes: from the odd lane or not, which, and
# how far they go to the right (to the left where negative).
_TO_EVEN = (
    _term(False, 0xFF000000, 24),
    _term(True, 0xFF00000000, 24),
    _term(False, 0xFF0000000000, 16),
    _term(True, 0xFF000000000000, 16),
    _term(False, 0xFF0000, 0),
    _term(False, 0xFF00, -32),
    _term(True, 0xFF00000000000000, 8),
    _term(False, 0xFF, -56),
)
_TO_ODD = (
    _term(True, 0xFF000000, 24),
    _term(False, 0xFF00000000, 24),
    _term(True, 0xFF0000, 0),
    _term(True, 0xFF0000000000, 16),
    _term(True, 0xFF00, -24),
    _term(False, 0xFF000000000000, 8),
    _term(True, 0xFF, -48),
    _term(False, 0xFF00000000000000, 0),
)


def _merge(source: _U64s, into: _U64s, one: _U64s) -> None:
    """Add the bytes of `source`, in another order, to `into`."""
    for terms, rows in ((_TO_EVEN, slice(0, 2)), (_TO_ODD, slice(2, 4))):
        # No two terms share a bit, so that they may be added one after another.
        target = into[rows]
        for odd, mask, shift, left in terms:
            np.bitwise_and(source[2:] if odd else source[:2], mask, out=one)
            if left:
                np.left_shift(one, shift, out=one)
            elif shift:
                np.right_shift(one, shift, out=one)
            target += one
