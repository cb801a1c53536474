"""What is stored, looked at before a server starts on it, and what it would cut off kept from it.

A nats-server that was killed makes its index anew from the blocks. Where it cannot read a record it
cuts the block off there: sound records behind it are gone, and what was acknowledged later with
them. So every start of ours first reads the blocks of what lasts, as `core.blocks` does. A torn end
is what a kill leaves of an append that nobody was told of; anything unreadable with a sound record
behind it is damage, and no server is started on that.

Events are read at about 100 MB/s, artifacts nearly as fast as the disk gives them. A block that did
not change since it was found sound is believed for a day.
"""

import functools
import itertools
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from core import blocks, chunks, errors, events, platforms, subjects
from core.blocks import ERASED, TOMBSTONE, Check, Span

log = logging.getLogger(__name__)

LASTING: Mapping[str, tuple[str, ...]] = {"CONTROL": ("EVENTS", "REFUSALS"), "FLEET": ("CHUNKS",)}
"""The streams that are looked at, by account."""
NOTE_FILE = "checked.json"
SAVED_FOLDER = "damaged"
BELIEVED_SECONDS = 24 * 3600
SHOWN_MAX = 3
LOG, CHUNKS, SNAPSHOTS = "EVENTS", "CHUNKS", "OBJ_SNAPSHOTS"
OPENINGS = {LOG: b"ev.", "REFUSALS": b"refused.", CHUNKS: b"chunk."}
"""How subjects begin."""
SEARCHES_MAX = 4_096
STAND_INS_MAX = 100_000
"""Of one block, and of one gap: what is missing beyond that is not gone on without."""
DIGEST_CHARS = 64
_DAY_NS = 24 * 3600 * 1_000_000_000
_CHUNK = re.compile(rb"chunk\.[A-Za-z0-9_-]{1,64}\.[0-9a-f]{64}")
_SUBJECT = re.compile(rb"ev\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+")

_T = TypeVar("_T")
Progress = Callable[[int, int], None]
"""Told after each block how many bytes were read, and of how many."""
Gap = tuple[int, int]
"""The first and the last of sequences that are missing."""
Loss = tuple[int, str]
"""From which sequence on something is lost, and what."""


class Checked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A block in which all is sound: its `file` (size, inode, times of change in nanoseconds), when
    it was read (Unix seconds), and its messages, from `first` to `last`, 0 where there are none."""

    file: tuple[int, int, int, int]
    at: int
    first: int = 0
    last: int = 0
    gaps: list[Gap] = []


class Note(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What earlier starts found out: blocks, by stream and name of their file, and what a person
    accepted as lost, until the log tells of that; of chunks their digests too."""

    blocks: dict[str, dict[str, Checked]] = {}
    lost: list[Loss] = []
    chunks: list[str] = []


class Damage(NamedTuple):
    """A block in which not all is sound: where that begins, behind which sequence, and why."""

    path: Path
    offset: int
    behind: int
    what: str


class Found(NamedTuple):
    """What the blocks of a stream hold; gaps of the log alone."""

    last_seq: int
    damage: list[Damage]
    gaps: list[Gap]
    checked: dict[str, Checked]


def require(data: Path, folders: Mapping[str, Path], progress: Progress) -> dict[str, Found]:
    """What the blocks hold; `folders` are the `msgs` of each stream that is looked at.

    Raises LogDamaged where a server would cut off sound records, or where the log has gaps;
    DataDirectoryError where blocks cannot be read. Nothing is changed.
    """
    found = _look(folders, _read_note(data), progress)
    wrong = [_words_of(name, damage) for name, one in found.items() for damage in one.damage]
    if not found[LOG].damage:  # which leaves gaps
        wrong += [f"{_words_of_gap(gap)} missing in {LOG}" for gap in found[LOG].gaps]
    if wrong:
        more = f"; {len(wrong) - SHOWN_MAX} more" if len(wrong) > SHOWN_MAX else ""
        raise errors.LogDamaged(
            f"what is stored is damaged: {'; '.join(wrong[:SHOWN_MAX])}{more}. A nats-server would"
            " cut off sound records there, so none was started, and what is stored is as it was."
            " Restore a backup, or go on with all that can be read by `aghsan up --accept-loss`; it"
            f" keeps a copy of damaged blocks in {data / SAVED_FOLDER}"
        )
    return found


def note_checked(data: Path, found: Mapping[str, Found]) -> None:
    """Note which blocks are sound, so that a later start needs not read them."""
    note = _read_note(data)
    checked = {name: one.checked for name, one in found.items()}
    if checked != note.blocks:
        note.blocks = checked
        try:
            _write_note(data, note)
        except OSError as error:  # it only spares reading
            log.warning("%s cannot be written: %s", NOTE_FILE, error, extra={"action": "start"})


def find_damage(folders: Mapping[str, Path]) -> list[str]:
    """What a start would refuse in the blocks of these streams, in words. Nothing is believed of
    what earlier starts found. Raises DataDirectoryError."""
    found = _look(folders, Note(), lambda *_: None)
    return [_words_of(name, damage) for name, one in found.items() for damage in one.damage]


def require_end(last_seq: int, folders: Mapping[str, Path]) -> None:
    """Refuse a log that ends at `last_seq`, before the server's index says. Raises LogDamaged."""
    if indexed := blocks.indexed_last_seq(folders[LOG], LOG, above=last_seq):
        raise errors.LogDamaged(
            f"the log ended at {indexed}, by the index of nats-server, and ends at {last_seq} now."
            " Restore a backup, or go on with what is left by `aghsan up --accept-loss`"
        )


def accept(data: Path, folders: Mapping[str, Path], progress: Progress) -> None:
    """Have the next server keep every record that can be read, whatever is missing between them.

    In the log a record that says so takes the place of each that is lost, on its own subject where
    that can be read, since nobody may write on without knowing it. Copies of all blocks that are
    changed are kept first. Raises DataDirectoryError where that fails, or where more is missing
    than can be stood in for.
    """
    kept = data / SAVED_FOLDER / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        files = {name: list(_files(folder, {})) for name, folder in folders.items()}
        total = sum(one.bytes for some in files.values() for one in some)
        read, note = 0, _read_note(data)
        end = _mended_end(files[LOG])
        for name, some in files.items():
            mending = _Mending(name, end)
            for one in some:
                content = one.path.read_bytes()
                mended = mending.mend(one.number, content)
                if mended != content:
                    lost, gone = (
                        _union(note.lost, mending.lost),
                        _union(note.chunks, mending.chunks),
                    )
                    note = Note(lost=lost, chunks=gone)
                    _write_note(data, note)
                    _replace_block(one.path, content, mended, kept / name)
                read += len(content)
                progress(read, total)
        # It would be believed where it says more than the blocks, too.
        (folders[LOG] / blocks.INDEX).unlink(missing_ok=True)
        snapshots = folders[LOG].parent.parent / SNAPSHOTS
        if note.lost and snapshots.exists():  # states that knew more are not those of a replay
            shutil.rmtree(snapshots)
    except OSError as error:
        raise errors.DataDirectoryError(
            f"Damaged blocks cannot be copied to {kept} and mended: {error}. Those that are not"
            " copied are as they were; make room there, then start again."
        ) from error


def mend_copy(data: Path, folder: Path, copy: Path) -> None:
    """Leave out of a `copy` of the log's `folder` what cannot be read, before a server reads it.

    A record whose sequence is wrong would have it note all the sequences in between as missing, one
    by one, until the memory of the machine is used up. Raises DataDirectoryError, OSError.
    """
    sound = _look({LOG: folder}, _read_note(data), lambda *_: None)[LOG].checked
    files = list(_files(copy, {}))
    if all(one.path.name in sound for one in files):
        return
    mending = _Mending(LOG, 1, stands_in=False)
    for one in files:
        one.path.write_bytes(mending.mend(one.number, one.path.read_bytes()))
    (copy / blocks.INDEX).unlink(missing_ok=True)


def _union(known: list[_T], found: list[_T]) -> list[_T]:
    """Both, in their order, each once."""
    return list(dict.fromkeys([*known, *found]))


def _mended_end(files: "list[_File]") -> int:
    """Where the log goes on once it is mended. Raises as `accept`, before anything is changed."""
    mending = _Mending(LOG, 1)
    for one in files:
        mending.mend(one.number, one.path.read_bytes())
    return mending.next


def lost(data: Path) -> list[Loss]:
    """What `accept` found to be lost, until that is noted."""
    return _read_note(data).lost


def lost_chunks(data: Path) -> list[str]:
    """The digests of chunks among that, as far as they can be read."""
    return _read_note(data).chunks


def note_lost(data: Path) -> None:
    """The log tells of it from now on. Raises OSError."""
    note = _read_note(data)
    if note.lost or note.chunks:
        note.lost, note.chunks = [], []
        _write_note(data, note)


def _words_of_gap(gap: Gap) -> str:
    first, last = gap
    return f"records {first} to {last} are" if first < last else f"record {first} is"


def _words_of(stream: str, damage: Damage) -> str:
    where = f"{damage.path.name} of {stream} at byte {damage.offset}"
    return f"{where}, behind record {damage.behind}: {damage.what}"


# The note


def _read_note(data: Path) -> Note:
    path = data / NOTE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return Note()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s is made anew: %s", path, error, extra={"action": "start"})
        return Note()


def _write_note(data: Path, note: Note) -> None:
    platforms.write_atomically(data / NOTE_FILE, msgspec.json.encode(note) + b"\n")


# Looking


class _File(NamedTuple):
    """A block, and what is known of it if that is to be believed."""

    number: int
    path: Path
    facts: tuple[int, int, int, int]
    known: Checked | None

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.facts[0]


def _look(folders: Mapping[str, Path], note: Note, progress: Progress) -> dict[str, Found]:
    try:
        files = {
            name: list(_files(folder, note.blocks.get(name, {})))
            for name, folder in folders.items()
        }
        unknown = [one for some in files.values() for one in some if not one.known]
        total, read = sum(one.bytes for one in unknown), 0
        found = {}
        for name, some in files.items():
            reading = _Reading(name)
            for one in some:
                reading.add(one)
                if not one.known:
                    read += one.bytes
                    progress(read, total)
            found[name] = reading.found()
        return found
    except OSError as error:
        raise errors.DataDirectoryError(f"What is stored cannot be read: {error}.") from error


def _files(folder: Path, known: Mapping[str, Checked]) -> Iterator[_File]:
    """The blocks of a folder in their order; none where there is no folder."""
    now = time.time()
    paths = folder.glob("*.blk") if folder.is_dir() else ()
    numbered = [(int(found[1]), path) for path in paths if (found := blocks.NAME.match(path.name))]
    for index, path in sorted(numbered):
        stat = path.stat()
        one = known.get(path.name)
        facts = (stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        believed = one and one.file == facts and 0 <= now - one.at < BELIEVED_SECONDS
        yield _File(index, path, facts, one if believed else None)


class _Reading:
    """Goes through the blocks of one stream, in order."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._last_seq = 0
        self._damage: list[Damage] = []
        self._torn: Damage | None = None
        self._gaps: list[Gap] = []
        self._checked: dict[str, Checked] = {}

    def found(self) -> Found:
        """All that was found."""
        return Found(self._last_seq, self._damage, self._gaps, self._checked)

    def add(self, file: _File) -> None:
        """The next block. Raises OSError."""
        if file.known:
            self._checked[file.path.name] = file.known
            self._go_on(file.known)
            return
        content = file.path.read_bytes()
        sound, faults, _ = _examine(self._stream, file.number, content, self._last_seq + 1)
        block = _facts(file, sound)
        behind = self._last_seq
        self._go_on(block)
        if not faults:
            self._checked[file.path.name] = block
            return
        offset, what = faults[0]
        before = [span.seq & ~ERASED for span in sound if span.end <= offset and _is_message(span)]
        damage = Damage(file.path, offset, max(before, default=behind), what)
        if (sound and sound[-1].offset > offset) or self._torn is not None:
            self._damage.append(damage)
        else:
            self._torn = damage

    def _go_on(self, block: Checked) -> None:
        if not block.last:
            return
        if self._torn is not None:  # it is no end
            self._damage.append(self._torn)
            self._torn = None
        if self._stream == LOG:
            if block.first > self._last_seq + 1:
                self._gaps.append((self._last_seq + 1, block.first - 1))
            self._gaps += block.gaps
        self._last_seq = block.last


def _check_of(stream: str, number: int, seq: int) -> Check:
    """The check of a block in which `seq` comes first, if nothing was deleted before."""
    by_checksum = blocks.checksums(stream, number)
    return functools.partial(_check_chunks, by_checksum, seq) if stream == CHUNKS else by_checksum


def _is_message(span: Span) -> bool:
    return not span.seq & TOMBSTONE


def _facts(file: _File, sound: list[Span]) -> Checked:
    seqs = [span.seq & ~ERASED for span in sound if _is_message(span)]
    return Checked(
        file=file.facts,
        at=int(time.time()),
        first=seqs[0] if seqs else 0,
        last=seqs[-1] if seqs else 0,
        gaps=[(one + 1, other - 1) for one, other in itertools.pairwise(seqs) if other > one + 1],
    )


def _check_chunks(
    by_checksum: Check, expected: int, content: bytes, spans: list[Span]
) -> list[bool]:
    """By the SHA-256 that a chunk is named by, which takes a tenth of the time of a checksum over
    that many bytes; by its checksum what is no chunk, not the one it says, or does not follow from
    the one before, the first being `expected`. Writers, and low bits of times and checksums, are
    believed."""
    sound = [_is_chunk(content, span) for span in spans]
    at_ns = 0
    for at, span in enumerate(spans):
        follows = span.seq == expected and 0 <= span.at_ns - (at_ns or span.at_ns) < _DAY_NS
        sound[at] = sound[at] and follows
        expected, at_ns = span.seq + 1, span.at_ns
    rest = [at for at, is_sound in enumerate(sound) if not is_sound]
    for at, is_sound in zip(rest, by_checksum(content, [spans[at] for at in rest]), strict=True):
        sound[at] = is_sound
    return sound


def _is_chunk(content: bytes, span: Span) -> bool:
    subject = span.subject(content)
    return (
        not span.fault
        and _CHUNK.fullmatch(subject) is not None
        and span.has_sane_headers(content)
        and chunks.digest_of(span.payload(content)).encode() == subject[-64:]
    )


class _Examined(NamedTuple):
    """The sound records of a block, where it is something else and why, and those of its records
    that are not sound although their parts fit."""

    sound: list[Span]
    faults: list[tuple[int, str]]
    unsound: list[Span]


def _examine(stream: str, number: int, content: bytes, seq: int) -> _Examined:
    """Go through a block in which `seq` may come first."""
    check = _check_of(stream, number, seq)
    sound: list[Span] = []
    unsound: list[Span] = []
    faults: list[tuple[int, str]] = []
    offset = 0
    for _ in range(SEARCHES_MAX):
        chain = blocks.follow(content, offset)
        checked = list(zip(chain.spans, check(content, chain.spans), strict=True))
        sound += (span for span, is_sound in checked if is_sound)
        wrong = [span for span, is_sound in checked if not is_sound]
        faults += ((span.offset, span.fault or "its checksum does not match") for span in wrong)
        unsound += (span for span in wrong if not span.fault)
        if not chain.fault and (not checked or checked[-1][1]):
            break
        if chain.fault:
            faults.append((chain.stop, chain.fault))
        # Behind the last sound record lengths may be what is wrong.
        offset = max((span.end for span, is_sound in checked if is_sound), default=offset)
        seq = next((span.seq + 1 for span in reversed(sound) if _is_message(span)), seq)
        found = blocks.search(
            check, content, offset, seq, {span.offset for span in wrong}, OPENINGS[stream]
        )
        if found is None:
            break
        offset = found
    return _Examined(sound, sorted(faults), unsound)


# Mending


class _Mending:
    """Goes through the blocks of one stream in order, and makes them such as a server can read."""

    def __init__(self, stream: str, end: int, *, stands_in: bool = True) -> None:
        """`end` is where the log goes on, and what other streams lost is told from."""
        self._stream = stream
        self._end = end
        self._stands_in = stands_in
        self.next = 1
        self.lost: list[Loss] = []
        self.chunks: list[str] = []
        """The digests of those that are lost, where they can be read."""

    def mend(self, number: int, content: bytes) -> bytes:
        """The block as it has to be, empty if nothing is left of it.

        Raises DataDirectoryError where too much is missing.
        """
        found = _examine(self._stream, number, content, self.next)
        if self._stream == LOG:
            return self._mend_log(number, content, found)
        if found.faults:
            count = len(found.faults)
            words = "1 record is" if count == 1 else f"{count} records are"
            subjects = [one.subject(content) for one in found.unsound]
            named = [one.decode() for one in subjects if _CHUNK.fullmatch(one)]
            self.chunks += (one[-DIGEST_CHARS:] for one in named)
            self.lost.append((self._end, self._words_of_lost(words, number, named)))
        # What was believed of a chunk stands under a new checksum, if its own is another.
        checked = blocks.checksums(self._stream, number)(content, found.sound)
        parts: list[bytes] = []
        for span, is_sound in zip(found.sound, checked, strict=True):
            record = content[span.offset : span.end]
            parts.append(record if is_sound else self._encode(number, [span.record(content)]))
            self.next = span.seq + 1 if _is_message(span) else self.next
        return b"".join(parts)

    def _mend_log(self, number: int, content: bytes, found: _Examined) -> bytes:
        parts: list[bytes] = []
        end = 0
        for span in found.sound:
            # Nothing is ever deleted there: other records tell of what an earlier start missed.
            if span.seq & (ERASED | TOMBSTONE) or span.seq < self.next:
                continue
            missing = range(self.next, span.seq)
            if missing and self._stands_in:
                between = [one for one in found.unsound if end <= one.offset < span.offset]
                parts.append(self._stand_ins(number, missing, span.at_ns, content, between))
            parts.append(content[span.offset : span.end])
            self.next, end = span.seq + 1, span.end
        return b"".join(parts)

    def _stand_ins(
        self, number: int, missing: range, at_ns: int, content: bytes, unsound: list[Span]
    ) -> bytes:
        """In place of all that is missing in front of a record; of what is not sound there the
        subjects can be read."""
        words = _words_of_gap((missing.start, missing.stop - 1))
        if len(missing) > STAND_INS_MAX:
            raise errors.DataDirectoryError(
                f"{words} missing in {self._stream}, more than the {STAND_INS_MAX} that can be gone"
                " on without. Restore a backup."
            )
        if len(unsound) == len(missing):  # then it may be a sequence that is wrong
            unsound = [one._replace(seq=seq) for one, seq in zip(unsound, missing, strict=True)]
        subjects = {one.seq: one.subject(content) for one in unsound}
        named = [_subject_of_lost(seq, subjects[seq]) for seq in missing if seq in subjects]
        self.lost.append((missing.start, self._words_of_lost(words, number, named)))
        stand_ins = [
            blocks.StoredRecord(
                seq,
                at_ns,
                _subject_of_lost(seq, subjects.get(seq, b"")),
                b"",
                events.lost_record(seq, at_ns // 1_000),
            )
            for seq in missing
        ]
        return self._encode(number, stand_ins)

    def _words_of_lost(self, records: str, number: int, named: list[str]) -> str:
        of = f", of {', '.join(named[:SHOWN_MAX])}" if named else ""
        return f"{records} lost from {self._stream}, in {number}.blk{of}"

    def _encode(self, number: int, records: list[blocks.StoredRecord]) -> bytes:
        return blocks.encode(self._stream, number, records)


def _subject_of_lost(seq: int, read: bytes) -> str:
    return read.decode() if _SUBJECT.fullmatch(read) else subjects.lost(seq)


def _replace_block(path: Path, content: bytes, mended: bytes, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    platforms.write_atomically(kept / path.name, content)
    (path.parent / blocks.INDEX).unlink(missing_ok=True)  # what it says of this block is believed
    if mended:
        platforms.write_atomically(path, mended)
    else:
        path.unlink()
