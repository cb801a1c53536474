"""The stored blocks of a stream, read without a server: nats-server 2.15's file store.

A server that starts repairs what it finds, and cuts off what it cannot read; so an audit looks at
the bytes first. A block is `<index>.blk`, records one after another, all integers little-endian:

    4  length of the record; the highest bit says that it has headers
    8  sequence; the two highest bits mark erased records and tombstones
    8  time, nanoseconds
    2  length of the subject, then the subject
    4  length of the headers, then the headers; only where there are any
       the payload
    8  HighwayHash-64 under SHA-256 of "<stream>-<index>", over sequence, time, subject, headers
       and payload (`writeMsgRecordLocked` in server/filestore.go)

The checksum covers none of the three lengths. A wrong length of a record shifts what is hashed.
Where headers end is seen from their blank line. Where a subject ends that no headers follow, only
a caller knows who can tell how payloads begin.
"""

import hashlib
import itertools
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import highwayhash

BLOCK_BYTES_MAX = 64 * 1024 * 1024
"""Far more than a block of the server ever has; one block is in memory at a time."""

DAMAGE_KEPT_MAX = 1_000

_FIXED = struct.Struct("<IQqH")
_CHECKSUM_BYTES = 8
_RECORD_BYTES_MIN = _FIXED.size + _CHECKSUM_BYTES
_HAS_HEADERS = 1 << 31
_ERASED = 1 << 63
_TOMBSTONE = 1 << 62

_NAME = re.compile(r"([1-9][0-9]{0,17})\.blk")
_COMPRESSED = b"cmp\x01"
_INDEX, _INDEX_START = "index.db", b"\x0b\x04"
_is_subject = re.compile(rb"[^\x00-\x20\x7f.]+(?:\.[^\x00-\x20\x7f.]+)*").fullmatch
_HEADERS_START, _HEADERS_END = b"NATS/1.0", b"\r\n\r\n"

_SEARCHES_MAX = 256
_SEARCHED_BYTES = 256 * 1024
_TRIED_BYTES_MAX = 128 * 1024


class StoredRecord(NamedTuple):
    """A sound record. `headers` are as they were sent, empty where there are none."""

    seq: int
    at_ns: int
    subject: str
    headers: bytes
    payload: bytes


class Damage(NamedTuple):
    """Something wrong: in which block (0: in none), where, and the first sequence that it hits."""

    block: int
    offset: int
    seq: int
    what: str


def read(folder: Path, stream: str, opening: bytes = b"") -> "Reading":
    """Read the blocks in `folder`, the `msgs` of a stream from which nothing is ever deleted.

    `opening` is how every payload begins, where that is known. A block that is absent is damage
    where its sequences are missing: the server leaves one out only if it holds none.
    """
    return Reading(folder, stream, opening)


def indexed_last_seq(folder: Path, stream: str, above: int = 0) -> int:
    """Where the stream ended when the server last wrote `index.db`, as it does when it stops.

    0 where it is not there, or cannot be read: the server makes it anew, so that is no damage.
    0 also where it is not above `above`: a large index takes seconds to hash.
    """
    try:
        content = (folder / _INDEX).read_bytes()
    except OSError:
        return 0
    key = hashlib.sha256(stream.encode()).digest()
    length = len(content) - _CHECKSUM_BYTES
    if not content.startswith(_INDEX_START) or length < 0:
        return 0
    # Messages, bytes, the first sequence, a time, the last sequence: all variable in length.
    numbers = _read_varints(content[len(_INDEX_START) : length])
    last_seq = next(itertools.islice(numbers, 4, None), 0)
    if last_seq <= above:
        return 0
    (found,) = highwayhash.hash_pieces(key, content, np.array([0]), np.array([length])).tolist()
    if content[length:] != found.to_bytes(_CHECKSUM_BYTES, "little"):
        return 0
    return last_seq


def _read_varints(content: bytes) -> Iterator[int]:
    number = bits = 0
    for byte in content:
        number |= (byte & 0x7F) << bits
        bits += 7
        if byte < 0x80:
            yield number
            number = bits = 0


class Reading(Iterator[StoredRecord]):
    """The sound records in order; at its end, what else was found. It raises nothing on garbage."""

    def __init__(self, folder: Path, stream: str, opening: bytes) -> None:
        self.damage: list[Damage] = []
        """The first DAMAGE_KEPT_MAX."""
        self.damage_total = 0
        self.last_seq = 0
        """Of the last sound record. An end that was cut off between two records shows only here,
        unless the index tells: who knows where the stream ended compares."""
        self._folder = folder
        self._stream = stream
        self._opening = opening
        self._next = 1
        self._known = True  # whether the next sequence is: not after something unreadable
        self._absent = ""
        self._records = self._read()

    def __next__(self) -> StoredRecord:
        return next(self._records)

    def finish(self) -> list[Damage]:
        """Read what is left, without its records; all damage."""
        for _ in self._records:
            pass
        return self.damage

    def _read(self) -> Iterator[StoredRecord]:
        before = 0
        for index, path in self._list():
            self._absent = "" if index == before + 1 else _words_of_absent(before + 1, index - 1)
            before = index
            content = self._load(index, path)
            if content is not None:
                yield from self._read_block(index, content)
        indexed = indexed_last_seq(self._folder, self._stream, self._next - 1)
        if self._known and indexed:
            what = f"the blocks end at {self._next - 1}, the server's index saw {indexed}"
            self._add(before, 0, what)

    def _list(self) -> list[tuple[int, Path]]:
        found: list[tuple[int, Path]] = []
        try:
            paths = sorted(self._folder.iterdir())
        except OSError as error:
            self._add(0, 0, f"{self._folder} cannot be read: {error}")
            return []
        for path in paths:
            if matched := _NAME.fullmatch(path.name):
                found.append((int(matched[1]), path))
            elif path.suffix == ".blk":
                self._add(0, 0, f"{path.name!r} is no name of a block")
        return sorted(found)

    def _load(self, index: int, path: Path) -> bytes | None:
        content, what = None, ""
        try:
            size = path.stat().st_size
            if path.with_suffix(".key").exists():
                what = "the block is encrypted, and cannot be checked"
            elif size > BLOCK_BYTES_MAX:
                what = f"the block has {size} bytes, more than any block of the server"
            else:
                content = path.read_bytes()
                if content.startswith(_COMPRESSED):
                    content, what = None, "the block is compressed (S2), and cannot be checked"
        except OSError as error:
            what = f"the block cannot be read: {error}"
        if content is None:
            self._add(index, 0, what)
            self._known = False
        return content

    def _read_block(self, index: int, content: bytes) -> Iterator[StoredRecord]:
        key = hashlib.sha256(f"{self._stream}-{index}".encode()).digest()
        offset = searches = 0
        while offset < len(content):
            chain = _follow(content, offset)
            sound = _verify(key, content, chain.spans)
            trusted = max((at for at, is_sound in enumerate(sound) if is_sound), default=-1) + 1
            for span, is_sound in zip(chain.spans[:trusted], sound, strict=False):
                if record := self._take(index, content, span, is_sound):
                    yield record
            rest = chain.spans[trusted:]
            if not rest and not chain.fault:
                return
            # From here on no record of the chain is sound: its lengths may be what is wrong.
            offset = rest[0].offset if rest else chain.stop
            searches += 1
            unsound = {span.offset for span in rest}
            found = None
            if searches < _SEARCHES_MAX:
                found = _search(key, content, offset, self._next, unsound)
            if found is None and not chain.fault:
                for span in rest:
                    self._take(index, content, span, is_sound=False)
                return
            what = (rest[0].fault or "its checksum does not match") if rest else chain.fault
            until = len(content) if found is None else found
            self._add(index, offset, f"{what}; {until - offset} bytes are unreadable")
            self._known = False
            offset = until

    def _take(
        self, index: int, content: bytes, span: "_Span", is_sound: bool
    ) -> StoredRecord | None:
        """The record, if nothing is wrong with it."""
        if not is_sound:
            self._add(index, span.offset, span.fault or "its checksum does not match")
            self._next += 1
            return None
        seq = span.seq & ~(_ERASED | _TOMBSTONE)
        if span.seq & _TOMBSTONE:
            if seq < self._next:
                self._add(index, span.offset, "a tombstone says that it was deleted", seq)
            return None
        if not self._is_in_order(index, span.offset, seq):
            return None
        self._next, self._known, self._absent = seq + 1, True, ""
        if span.seq & _ERASED:
            self._add(index, span.offset, "the record was erased", seq)
            return None
        subject = content[span.offset + _FIXED.size : span.subject_end]
        headers = content[span.headers_start : span.payload_start]
        payload = content[span.payload_start : span.end - _CHECKSUM_BYTES]
        if fault := self._fault_of_bounds(subject, headers, payload):
            self._add(index, span.offset, fault, seq)
            return None
        self.last_seq = seq
        return StoredRecord(
            seq, span.at_ns, subject.decode("utf-8", "surrogateescape"), headers, payload
        )

    def _is_in_order(self, index: int, offset: int, seq: int) -> bool:
        """Whether a record comes after the last one; what is missing between them is damage."""
        if seq < self._next:
            self._add(index, offset, f"sequence {seq} stands where {self._next} comes next")
            return False
        if seq > self._next and self._known:
            missing = f"{self._next} to {seq - 1} are" if seq > self._next + 1 else f"{seq - 1} is"
            self._add(index, offset, f"{missing} missing{self._absent}")
        return True

    def _fault_of_bounds(self, subject: bytes, headers: bytes, payload: bytes) -> str:
        """What is wrong with the lengths, which no checksum covers."""
        if headers and not (
            headers.startswith(_HEADERS_START)
            and headers.find(_HEADERS_END) == len(headers) - len(_HEADERS_END)
        ):
            return "its headers do not end where they are said to"
        if not _is_subject(subject) or not payload.startswith(self._opening):
            return "its subject does not end where it is said to"
        return ""

    def _add(self, block: int, offset: int, what: str, seq: int = 0) -> None:
        self.damage_total += 1
        if len(self.damage) < DAMAGE_KEPT_MAX:
            self.damage.append(Damage(block, offset, seq or self._next, what))


def _words_of_absent(first: int, last: int) -> str:
    one = f"{first}.blk" if first == last else f"{first}.blk to {last}.blk"
    return f", and there is no {one}"


class _Span(NamedTuple):
    """Where the parts of a record lie. With a `fault` they do not fit, and nothing else holds."""

    offset: int
    end: int
    seq: int = 0
    at_ns: int = 0
    subject_end: int = 0
    headers_start: int = 0
    payload_start: int = 0
    fault: str = ""


class _Chain(NamedTuple):
    """Records that follow each other, up to the end or to what is none."""

    spans: list[_Span]
    stop: int
    fault: str


def _follow(content: bytes, offset: int, spans_max: int = BLOCK_BYTES_MAX) -> _Chain:
    spans: list[_Span] = []
    size = len(content)
    while offset < size and len(spans) < spans_max:
        left = size - offset
        if left < _FIXED.size:
            return _Chain(spans, offset, f"{left} bytes are too few for a record")
        length, seq, at_ns, subject_bytes = _FIXED.unpack_from(content, offset)
        has_headers = length & _HAS_HEADERS
        length &= ~_HAS_HEADERS
        if length < _RECORD_BYTES_MIN:
            return _Chain(spans, offset, f"a record of {length} bytes is none")
        if length > left:
            fault = f"a record is said to have {length} bytes, {left} are left"
            return _Chain(spans, offset, fault)
        end = offset + length
        room_end = end - _CHECKSUM_BYTES
        subject_end = headers_start = payload_start = offset + _FIXED.size + subject_bytes
        if has_headers:
            headers_start += 4
            headers_bytes = int.from_bytes(content[subject_end:headers_start], "little")
            payload_start = headers_start + headers_bytes
        if payload_start > room_end or (has_headers and payload_start == headers_start):
            spans.append(_Span(offset, end, fault="its subject and headers do not fit in it"))
        else:
            places = (subject_end, headers_start, payload_start)
            spans.append(_Span(offset, end, seq, at_ns, *places))
        offset = end
    return _Chain(spans, offset, "")


def _verify(key: bytes, content: bytes, spans: list[_Span]) -> list[bool]:
    """Which records have the checksum that stands in them."""
    if not spans:
        return []
    # What is hashed is moved together: the sequence and the time right before the subject, all
    # three right before the headers. That overwrites lengths, which are known by now.
    moved = bytearray(content)
    starts: list[int] = []
    for span in spans:
        gap = span.headers_start - span.subject_end
        start = span.offset + 6 + gap
        starts.append(start)
        moved[start : start + 16] = content[span.offset + 4 : span.offset + 20]
        if gap and not span.fault:
            subject = content[span.offset + _FIXED.size : span.subject_end]
            moved[start + 16 : span.headers_start] = subject
    ends = np.array([span.end for span in spans]) - _CHECKSUM_BYTES
    begins = np.array(starts)
    hashes = highwayhash.hash_pieces(key, moved, begins, ends - begins)
    words = np.ndarray(len(content) - _CHECKSUM_BYTES + 1, "V8", content, strides=(1,))
    matching = words[ends].view("<u8") == hashes
    return [match and not span.fault for match, span in zip(matching.tolist(), spans, strict=True)]


def _search(key: bytes, content: bytes, offset: int, seq: int, unsound: set[int]) -> int | None:
    """Where behind `offset` a sound record begins, of `seq` or one that can still come here.

    `unsound` are places where none does.
    """
    words = np.ndarray(max(len(content) - 7, 0), "<u8", content, strides=(1,))
    count = np.uint64((len(content) - offset) // _RECORD_BYTES_MIN + 1)
    tried = 0
    for first in range(offset + 5, len(words), _SEARCHED_BYTES):
        part = words[first : first + _SEARCHED_BYTES]
        for place in np.flatnonzero(part - np.uint64(seq) < count).tolist():
            start = first + place - 4
            if start in unsound:
                continue
            spans = _follow(content, start, spans_max=1).spans
            if not spans or spans[0].fault:
                continue
            piece = content[start : spans[0].end]
            if all(_verify(key, piece, _follow(piece, 0).spans)):
                return start
            tried += len(piece)
            if tried > _TRIED_BYTES_MAX:
                return None
    return None


# Before a server starts


def last_seq(folder: Path) -> int:
    """The last record whose length lies within its block, unchecked; 0 where there is none.

    Raises OSError.
    """
    return next((span.seq & ~_ERASED for _, span in _last_records(folder)), 0)


def cut_end(folder: Path) -> None:
    """Have the server go by the records alone: it believes `index.db`, and tombstones that an
    earlier start left for what was missing, where they say more. Raises OSError.
    """
    (folder / _INDEX).unlink(missing_ok=True)
    path, span = next(_last_records(folder), (None, None))
    for later in folder.glob("*.blk"):
        if path is not None and _index_of(later) > _index_of(path):
            later.unlink()
    if path is not None and span is not None:
        os.truncate(path, span.end)


def _last_records(folder: Path) -> "Iterator[tuple[Path, _Span]]":
    """Of each block that holds a record its last one; the last block first."""
    for path in sorted(folder.glob("*.blk"), key=_index_of, reverse=True):
        spans = _follow(path.read_bytes(), 0).spans
        for span in reversed(spans):
            if not span.fault and not span.seq & _TOMBSTONE:
                yield path, span
                break


def _index_of(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


# While a server writes


def up_to(content: bytes, stream: str, index: int, first: int, last: int) -> tuple[int, int]:
    """How many bytes of a block its records take up to sequence `last`, and the last of them.

    What follows them is not looked at: a server may be writing it. Raises ValueError where the
    block does not begin with `first`, or one of them is missing or not sound.
    """
    spans = list(
        itertools.takewhile(
            lambda span: not span.fault and span.seq <= last, _follow(content, 0).spans
        )
    )
    end = spans[-1].end if spans else 0
    key = hashlib.sha256(f"{stream}-{index}".encode()).digest()
    for seq, span, is_sound in zip(
        itertools.count(first), spans, _verify(key, content[:end], spans), strict=False
    ):
        if span.seq != seq:
            raise ValueError(f"{index}.blk holds {span.seq} where {seq} comes next")
        if not is_sound:
            raise ValueError(f"the checksum of {seq} in {index}.blk does not match")
    return end, first + len(spans) - 1
