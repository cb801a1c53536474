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

import functools
import hashlib
import itertools
import re
import struct
from collections.abc import Callable, Container, Iterator, Sequence
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
ERASED = 1 << 63
TOMBSTONE = 1 << 62

NAME = re.compile(r"([1-9][0-9]{0,17})\.blk")
_COMPRESSED = b"cmp\x01"
INDEX, _INDEX_START = "index.db", b"\x0b\x04"
_is_subject = re.compile(rb"[^\x00-\x20\x7f.]+(?:\.[^\x00-\x20\x7f.]+)*").fullmatch
_HEADERS_START, _HEADERS_END = b"NATS/1.0", b"\r\n\r\n"

SEARCHES_MAX = 256
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
        content = (folder / INDEX).read_bytes()
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
            if matched := NAME.fullmatch(path.name):
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
        check = checksums(self._stream, index)
        offset = searches = 0
        while offset < len(content):
            chain = follow(content, offset)
            sound = check(content, chain.spans)
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
            if searches < SEARCHES_MAX:
                found = search(check, content, offset, self._next, unsound)
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
        self, index: int, content: bytes, span: "Span", is_sound: bool
    ) -> StoredRecord | None:
        """The record, if nothing is wrong with it."""
        if not is_sound:
            self._add(index, span.offset, span.fault or "its checksum does not match")
            self._next += 1
            return None
        seq = span.seq & ~(ERASED | TOMBSTONE)
        if span.seq & TOMBSTONE:
            if seq < self._next:
                self._add(index, span.offset, "a tombstone says that it was deleted", seq)
            return None
        if not self._is_in_order(index, span.offset, seq):
            return None
        self._next, self._known, self._absent = seq + 1, True, ""
        if span.seq & ERASED:
            self._add(index, span.offset, "the record was erased", seq)
            return None
        if fault := self._fault_of_bounds(span, content):
            self._add(index, span.offset, fault, seq)
            return None
        self.last_seq = seq
        return span.record(content)

    def _is_in_order(self, index: int, offset: int, seq: int) -> bool:
        """Whether a record comes after the last one; what is missing between them is damage."""
        if seq < self._next:
            self._add(index, offset, f"sequence {seq} stands where {self._next} comes next")
            return False
        if seq > self._next and self._known:
            missing = f"{self._next} to {seq - 1} are" if seq > self._next + 1 else f"{seq - 1} is"
            self._add(index, offset, f"{missing} missing{self._absent}")
        return True

    def _fault_of_bounds(self, span: "Span", content: bytes) -> str:
        """What is wrong with the lengths, which no checksum covers."""
        if not span.has_sane_headers(content):
            return "its headers do not end where they are said to"
        if not (
            _is_subject(span.subject(content)) and span.payload(content).startswith(self._opening)
        ):
            return "its subject does not end where it is said to"
        return ""

    def _add(self, block: int, offset: int, what: str, seq: int = 0) -> None:
        self.damage_total += 1
        if len(self.damage) < DAMAGE_KEPT_MAX:
            self.damage.append(Damage(block, offset, seq or self._next, what))


def _words_of_absent(first: int, last: int) -> str:
    one = f"{first}.blk" if first == last else f"{first}.blk to {last}.blk"
    return f", and there is no {one}"


class Span(NamedTuple):
    """Where the parts of a record lie. With a `fault` they do not fit, and nothing else holds."""

    offset: int
    end: int
    seq: int = 0
    at_ns: int = 0
    subject_end: int = 0
    headers_start: int = 0
    payload_start: int = 0
    fault: str = ""

    def subject(self, block: bytes) -> bytes:
        """The subject of this record of a block."""
        return block[self.offset + _FIXED.size : self.subject_end]

    def payload(self, block: bytes) -> bytes:
        """The payload of this record of a block."""
        return block[self.payload_start : self.end - _CHECKSUM_BYTES]

    def headers(self, block: bytes) -> bytes:
        """The headers of this record of a block, empty where there are none."""
        return block[self.headers_start : self.payload_start]

    def has_sane_headers(self, block: bytes) -> bool:
        """Whether they end where they are said to."""
        headers = self.headers(block)
        return not headers or (
            headers.startswith(_HEADERS_START)
            and headers.find(_HEADERS_END) == len(headers) - len(_HEADERS_END)
        )

    def record(self, block: bytes) -> StoredRecord:
        """This record of a block."""
        subject = self.subject(block).decode("utf-8", "surrogateescape")
        return StoredRecord(self.seq, self.at_ns, subject, self.headers(block), self.payload(block))


class Chain(NamedTuple):
    """Records that follow each other, up to the end or to what is none."""

    spans: list[Span]
    stop: int
    fault: str


def follow(content: bytes, offset: int, spans_max: int = BLOCK_BYTES_MAX) -> Chain:
    spans: list[Span] = []
    size = len(content)
    while offset < size and len(spans) < spans_max:
        left = size - offset
        if left < _FIXED.size:
            return Chain(spans, offset, f"{left} bytes are too few for a record")
        length, seq, at_ns, subject_bytes = _FIXED.unpack_from(content, offset)
        has_headers = length & _HAS_HEADERS
        length &= ~_HAS_HEADERS
        if length < _RECORD_BYTES_MIN:
            return Chain(spans, offset, f"a record of {length} bytes is none")
        if length > left:
            fault = f"a record is said to have {length} bytes, {left} are left"
            return Chain(spans, offset, fault)
        end = offset + length
        room_end = end - _CHECKSUM_BYTES
        subject_end = headers_start = payload_start = offset + _FIXED.size + subject_bytes
        if has_headers:
            headers_start += 4
            headers_bytes = int.from_bytes(content[subject_end:headers_start], "little")
            payload_start = headers_start + headers_bytes
        if payload_start > room_end or (has_headers and payload_start == headers_start):
            spans.append(Span(offset, end, fault="its subject and headers do not fit in it"))
        else:
            places = (subject_end, headers_start, payload_start)
            spans.append(Span(offset, end, seq, at_ns, *places))
        offset = end
    return Chain(spans, offset, "")


Check = Callable[[bytes, "list[Span]"], list[bool]]
"""Which of some records of a block are sound."""


def checksums(stream: str, index: int) -> Check:
    """The check of a block that compares the checksums which stand in it."""
    return functools.partial(_verify, _key(stream, index))


def _key(stream: str, index: int) -> bytes:
    return hashlib.sha256(f"{stream}-{index}".encode()).digest()


def _verify(key: bytes, content: bytes, spans: list[Span]) -> list[bool]:
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
            moved[start + 16 : span.headers_start] = span.subject(content)
    ends = np.array([span.end for span in spans]) - _CHECKSUM_BYTES
    begins = np.array(starts)
    hashes = highwayhash.hash_pieces(key, moved, begins, ends - begins)
    words = np.ndarray(len(content) - _CHECKSUM_BYTES + 1, "V8", content, strides=(1,))
    matching = words[ends].view("<u8") == hashes
    return [match and not span.fault for match, span in zip(matching.tolist(), spans, strict=True)]


def encode(stream: str, index: int, records: Sequence[StoredRecord]) -> bytes:
    """Records as they stand in a block."""
    heads: list[bytes] = []
    bodies: list[bytes] = []
    hashed: list[bytes] = []
    for one in records:
        subject = one.subject.encode("utf-8", "surrogateescape")
        size = len(one.headers).to_bytes(4, "little") if one.headers else b""
        length = _RECORD_BYTES_MIN + len(subject) + len(size) + len(one.headers) + len(one.payload)
        flag = _HAS_HEADERS if one.headers else 0
        heads.append(_FIXED.pack(length | flag, one.seq, one.at_ns, len(subject)))
        bodies.append(subject + size + one.headers + one.payload)
        hashed.append(heads[-1][4:20] + subject + one.headers + one.payload)
    lengths = np.array([len(one) for one in hashed])
    starts = np.cumsum(lengths) - lengths
    found = highwayhash.hash_pieces(_key(stream, index), b"".join(hashed), starts, lengths)
    ends = (int(one).to_bytes(_CHECKSUM_BYTES, "little") for one in found)
    return b"".join(itertools.chain.from_iterable(zip(heads, bodies, ends, strict=True)))


def search(
    check: Check,
    content: bytes,
    offset: int,
    seq: int,
    unsound: Container[int],
    opening: bytes = b"",
) -> int | None:
    """Where behind `offset` a sound record begins, of `seq` or one that can still come here.

    `unsound` are places where none does; `opening` is how every subject begins, if that is known:
    without it not all that looks like a record can be tried.
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
            spans = follow(content, start, spans_max=1).spans
            if not spans or spans[0].fault or not spans[0].subject(content).startswith(opening):
                continue
            piece = content[start : spans[0].end]
            if all(check(piece, follow(piece, 0).spans)):
                return start
            tried += len(piece)
            if tried > _TRIED_BYTES_MAX and not opening:
                return None
    return None


# While a server writes


def up_to(content: bytes, stream: str, index: int, first: int, last: int) -> tuple[int, int]:
    """How many bytes of a block its records take up to sequence `last`, and the last of them.

    What follows them is not looked at: a server may be writing it. Raises ValueError where the
    block does not begin with `first`, or one of them is missing or not sound.
    """
    spans = list(
        itertools.takewhile(
            lambda span: not span.fault and span.seq <= last, follow(content, 0).spans
        )
    )
    end = spans[-1].end if spans else 0
    sound = checksums(stream, index)(content[:end], spans)
    for seq, span, is_sound in zip(itertools.count(first), spans, sound, strict=False):
        if span.seq != seq:
            raise ValueError(f"{index}.blk holds {span.seq} where {seq} comes next")
        if not is_sound:
            raise ValueError(f"the checksum of {seq} in {index}.blk does not match")
    return end, first + len(spans) - 1
