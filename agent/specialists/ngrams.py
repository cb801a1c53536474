"""Byte n-grams of a text with Witten–Bell smoothing: how likely a byte is after those before it.

A document begins after zero bytes, which no text has and which are never predicted. With n(c, b)
the count of byte b after context c, N(c) that of the context and T(c) how many bytes differ after
it, P(b | c) = (n(c, b) + T(c) P(b | c')) / (N(c) + T(c)), where c' is c without its farthest byte
and the empty context falls back to 1/256 (Witten & Bell 1991; method C of PPM, interpolated).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BEGIN = 0
CONTEXT_MAX = 7
"""Bytes of context that fit into 64 bits beside the next byte."""
BASELINE_CONTEXT = 5
"""Of a 6-gram."""
COUNTED_BYTES_MAX = 16 * 1024 * 1024
"""Of a longer text the first documents are counted; in the order of digests any are like others."""
MEASURED_BYTES_MAX = 1024 * 1024

Bytes = npt.NDArray[np.uint8]
Contexts = npt.NDArray[np.uint64]
Shares = npt.NDArray[np.float32]


class Looked(NamedTuple):
    """What is known of bytes in their contexts, each [count, orders], of 0 bytes of context first.

    `share` is P(byte | context), `total` N(context), `kinds` T(context), 0 for one never seen.
    """

    share: Shares
    total: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int32]


class _Order(NamedTuple):
    """Counts after contexts of one length; keys are a context and its next byte, in order."""

    keys: Contexts
    counts: npt.NDArray[np.int32]
    contexts: Contexts
    totals: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int32]


def contexts_of(text: Bytes) -> Contexts:
    """The seven bytes before each, the nearest one lowest; before the first are zeros."""
    found = np.zeros(len(text), np.uint64)
    for distance in range(1, CONTEXT_MAX + 1):
        earlier = text[:-distance].astype(np.uint64)
        found[distance:] |= earlier << np.uint64(8 * (distance - 1))
    return found


def join(documents: Iterable[bytes], bytes_max: int) -> Bytes:
    """Documents, each behind zeros, until they have so many bytes."""
    parts, size = [], 0
    for document in documents:
        if size >= bytes_max:
            break
        parts.append(bytes(CONTEXT_MAX) + document[: bytes_max - size])
        size += len(document)
    return np.frombuffer(b"".join(parts), np.uint8)


def baselines(training: Sequence[bytes], measured: Sequence[bytes]) -> tuple[float, float]:
    """Bits per byte of documents by the frequency of bytes alone, and by 6-grams."""
    counts = Ngrams(join(training, COUNTED_BYTES_MAX), BASELINE_CONTEXT)
    text = join(measured, MEASURED_BYTES_MAX)
    there = text != BEGIN
    share = counts.look(contexts_of(text)[there], text[there]).share
    bits = -np.log2(share).mean(0, dtype=np.float64)
    return float(bits[0]), float(bits[BASELINE_CONTEXT])


class Ngrams:
    """The counts of a text after contexts of 0 to `context_bytes` bytes."""

    def __init__(self, text: Bytes, context_bytes: int) -> None:
        assert 0 <= context_bytes <= CONTEXT_MAX, "keys have 64 bits"
        contexts = contexts_of(text)
        counted = text != BEGIN
        contexts, following = contexts[counted], text[counted].astype(np.uint64)
        self._orders = [
            _count(_key(contexts, following, length)) for length in range(context_bytes + 1)
        ]

    def look(self, contexts: Contexts, following: Bytes) -> Looked:
        """What is known of these bytes after these contexts, both [count]."""
        # Neighbours in the tables are looked for one after another: that spares most of the time.
        order = np.argsort(contexts)
        contexts, wanted = contexts[order], following[order].astype(np.uint64)
        share = np.empty((len(contexts), len(self._orders)), np.float32)
        total = np.empty(share.shape, np.int32)
        kinds = np.empty(share.shape, np.int32)
        below = np.full(len(contexts), 1 / 256, np.float32)
        for length, one in enumerate(self._orders):
            count, n, t = _found(one, _key(contexts, wanted, length))
            below = np.where(n > 0, (count + t * below) / np.maximum(n + t, 1), below)
            share[order, length] = below
            total[order, length], kinds[order, length] = n, t
        return Looked(share, total, kinds)


def _key(contexts: Contexts, following: Contexts, length: int) -> Contexts:
    mask = np.uint64((1 << 8 * length) - 1)
    return (contexts & mask) << np.uint64(8) | following


def _count(keys: Contexts) -> _Order:
    keys.sort()
    first = _firsts(keys)
    counts = np.diff(first, append=len(keys)).astype(np.int32)
    keys = keys[first]
    contexts = keys >> np.uint64(8)
    group = _firsts(contexts)
    totals = np.add.reduceat(counts, group) if len(group) else counts
    kinds = np.diff(group, append=len(keys)).astype(np.int32)
    return _Order(keys, counts, contexts[group], totals.astype(np.int32), kinds)


def _firsts(values: Contexts) -> npt.NDArray[np.intp]:
    """Where each run of equal values begins."""
    if not len(values):
        return np.zeros(0, np.intp)
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))


def _found(one: _Order, keys: Contexts) -> tuple[npt.NDArray[np.int32], ...]:
    """n(c, b), N(c) and T(c) of each key; zeros where nothing was counted."""
    if not len(one.keys):
        nothing = np.zeros(len(keys), np.int32)
        return nothing, nothing, nothing
    at, there = _places(one.keys, keys)
    group, known = _places(one.contexts, keys >> np.uint64(8))
    count = np.where(there, one.counts[at], 0)
    return count, np.where(known, one.totals[group], 0), np.where(known, one.kinds[group], 0)


def _places(
    values: Contexts, wanted: Contexts
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each of the wanted stands among sorted values, and whether it does."""
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return at, values[at] == wanted
