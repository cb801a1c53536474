"""Seals: what makes any later change of the log, and any loss of its end, show.

Every so often the writer reads back what it stored and appends a seal: a digest over those records,
chained to the seal before. A changed record, header or time then contradicts every later seal.
What was cut off the end of the log is missed by two notes kept outside of it: `head`, rewritten
after every acknowledged append (without a sync: it can only be older than the log), and the anchor
of the last seal, which lies beside the data and, in case the whole directory is put back to an
older day, in the user's configuration too.
"""

import hashlib
import logging
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from core import errors, events, platforms
from core.log import Log, Message, Record, Stored

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)
HEAD_BYTES = 256
HEAD_FILE = "head"
ANCHOR_FILE = "anchor.json"
UNREADABLE = ".unreadable"
READINGS = 3

_lengths = struct.Struct("<QQIII").pack


def leaf(one: Stored) -> bytes:
    """SHA-256 over all of a record: sequence, time, and the lengths and bytes of its parts."""
    subject = one.subject.encode()
    sizes = _lengths(one.seq, one.at_ns, len(subject), len(one.headers), len(one.data))
    return hashlib.sha256(b"".join((sizes, subject, one.headers, one.data))).digest()


def chain(previous: str, leaves: Iterable[bytes]) -> str:
    """The digest of a seal, hex: SHA-256 over that of the seal before and the leaves of its own."""
    digest = hashlib.sha256(bytes.fromhex(previous))
    for one in leaves:
        digest.update(one)
    return digest.hexdigest()


class Whole(NamedTuple):
    """All of a log up to `last`: the digest of a seal over it, and how many of its records only
    stand in for lost ones."""

    last: int
    digest: str
    lost: int


async def digest_of(store: Log, last: int) -> Whole:
    """What the whole log is up to a sequence. Raises LogUnavailable."""
    whole, lost = hashlib.sha256(), 0
    async for records in store.read_stored(1, last):
        for one in records:
            whole.update(leaf(one))
            lost += events.is_lost_record(Record(one.seq, one.subject, one.data))
    return Whole(last, whole.hexdigest(), lost)


def fingerprint(subject: str, data: bytes) -> str:
    """What `head` remembers a record by: SHA-256 of its subject and its payload, hex."""
    return hashlib.sha256(subject.encode() + b"\0" + data).hexdigest()


# Notes outside of the log


class Head(msgspec.Struct, frozen=True):
    """The last record that an append was acknowledged for."""

    seq: int
    digest: str


class HeadFile:
    """`head` beside the data: one short line, overwritten in place."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self._failed = False

    def note(self, seq: int, last: Message) -> None:
        """Write down that the log reaches to `seq`, where `last` stands."""
        line = msgspec.json.encode(Head(seq, fingerprint(last.subject, last.data)))
        try:
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, line.ljust(HEAD_BYTES - 1) + b"\n")
        except OSError as error:
            # A head that is older than the log is a right one still.
            if not self._failed:
                log.warning("head cannot be written: %s", error, extra={"action": "head"})
            self._failed = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_head(data: Path) -> Head | None:
    """What `head` says, or None where there is none that can be read."""
    return _read(data / HEAD_FILE, Head)


def has_head(data: Path) -> bool:
    """Whether somebody ever wrote this log, be its `head` readable or not."""
    return (data / HEAD_FILE).exists()


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """The newest seal of a log: where it stands and what it says. `log` is that log's identity."""

    log: str
    seq: int
    last: int
    digest: str
    at: int


def anchor_paths(data: Path, identity: str) -> tuple[Path, Path]:
    """Where the anchor of a log is kept: beside its data, and in the user's configuration.

    There it goes by log and place: a copy that is tried out elsewhere speaks for itself alone.
    """
    name = fingerprint(identity, str(data.resolve()).encode())[:32]
    return data / ANCHOR_FILE, _anchors() / f"{name}.json"


def _anchors() -> Path:
    return platforms.config_dir() / "anchors"


def why_no_second_anchor() -> str:
    """Why the user's configuration can keep no anchor; "" where it can."""
    folder = _anchors()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}"


def write_anchor(data: Path, anchor: Anchor) -> None:
    """Keep an anchor at both places; one that cannot be kept is logged."""
    text = msgspec.json.encode(anchor) + b"\n"
    for path in anchor_paths(data, anchor.log):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            platforms.write_atomically(path, text)
        except OSError as error:
            log.warning("an anchor was not kept: %s", error, extra={"action": "anchor"})


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


# Whether the log is whole


async def find_losses(store: Log, data: Path) -> list[tuple[int, str]]:
    """What `head` and the anchors say the log held and it does not hold now: the first sequence
    that is missing or another, and how. Raises LogUnavailable."""
    # The notes first: beside a running writer they would else be ahead of the end seen before.
    head = read_head(data)
    identity = await identity_of(store)
    anchors = [(path, _read(path, Anchor)) for path in anchor_paths(data, identity)]
    last = await store.last_seq()
    losses = []
    if head is not None and (words := await _contradiction(store, last, head)):
        losses.append(words)
    for path, anchor in anchors:
        if anchor is not None and (found := await _unlike(store, last, identity, anchor, path)):
            losses.append(found)
    return losses


async def find_unreadable(store: Log, data: Path) -> list[str]:
    """Notes that are there and cannot be read: to an audit they are damage. `head`, which is not
    synced, may be empty, or zeros, after a power cut. Raises LogUnavailable."""
    return [
        f"{path} holds no {kind} that can be read" for path, kind in await _unreadable(store, data)
    ]


async def set_aside_unreadable(store: Log, data: Path) -> list[str]:
    """Keep notes that cannot be read under another name, before a start writes new ones; what to
    tell people of each. They prove no loss, so that a start goes on without them.

    Raises DataDirectoryError, LogUnavailable.
    """
    told = []
    for path, _ in await _unreadable(store, data):
        kept = path.with_name(path.name + UNREADABLE)
        try:
            platforms.replace(path, kept)
        except OSError as error:
            raise errors.DataDirectoryError(
                f"{path} cannot be read, and not be kept as {kept.name} either: {error.strerror}."
                " Move it away, then start again."
            ) from error
        told.append(
            f"{path} cannot be read and is kept as {kept.name}. So it did not show"
            " whether the log lost its end: where records are missing, restore a backup."
        )
    return told


async def _unreadable(store: Log, data: Path) -> list[tuple[Path, str]]:
    notes: list[tuple[Path, type[msgspec.Struct]]] = [(data / HEAD_FILE, Head)]
    notes += [(path, Anchor) for path in anchor_paths(data, await identity_of(store))]
    return [(path, kind.__name__.lower()) for path, kind in notes if _is_unreadable(path, kind)]


def _is_unreadable(path: Path, kind: type[msgspec.Struct]) -> bool:
    # More than once: a running server may be in the middle of writing `head`.
    for _ in range(READINGS):
        try:
            never_written = not path.read_bytes().strip(b"\0")
        except FileNotFoundError:
            never_written = True
        except OSError:
            never_written = False
        if never_written or _read(path, kind) is not None:
            return False
    return True


async def identity_of(store: Log) -> str:
    """What tells a log from all others: the digest of its first record, "" for an empty one."""
    first = await store.get(1)
    return fingerprint(first.subject, first.data) if first is not None else ""


def _words_of_cut(before: int, last: int) -> str:
    return f"the log ended at {before}, and ends at {last} now: {before - last} are missing"


async def _contradiction(store: Log, last: int, head: Head) -> tuple[int, str] | None:
    if head.seq > last:
        return last + 1, _words_of_cut(head.seq, last)
    record = await store.get(head.seq)
    if record is None or fingerprint(record.subject, record.data) != head.digest:
        return head.seq, f"record {head.seq} is not the one that was acknowledged"
    return None


async def _unlike(
    store: Log, last: int, identity: str, anchor: Anchor, path: Path
) -> tuple[int, str] | None:
    if anchor.log != identity:
        return 1, f"this is another log than the one that {path} anchors"
    if anchor.seq > last:
        return last + 1, (
            f"the seal at {anchor.seq} is missing, the log ends at {last} now ({path} anchors it)"
        )
    record = await store.get(anchor.seq)
    if record is None or not _is_seal(record, anchor):
        return anchor.seq, f"the seal at {anchor.seq} is not the one that {path} anchors"
    return None


def _is_seal(record: Record, anchor: Anchor) -> bool:
    event = events.decode(*record)
    return (
        isinstance(event, events.Event)
        and isinstance(event.data, events.LogSealed)
        and (event.data.last, event.data.digest) == (anchor.last, anchor.digest)
    )


def refusal(losses: list[tuple[int, str]]) -> errors.LogDamaged:
    """Why a log that lost what it held is not gone on with."""
    return errors.LogDamaged(
        "the log is not what it was: "
        + "; ".join(words for _, words in losses)
        + ". Restore a backup, or go on with what is left by `aghsan up --accept-loss`, which"
        " writes the notes anew"
    )


async def require_whole(store: Log, data: Path) -> None:
    """Refuse a log that lost what it held. Raises LogDamaged, LogUnavailable."""
    if losses := await find_losses(store, data):
        raise refusal(losses)


def require_end(last: int, data: Path) -> None:
    """Refuse a log that ends at `last`, before `head` or the anchor say. Raises LogDamaged."""
    notes = (read_head(data), _read(data / ANCHOR_FILE, Anchor))
    known = max((note.seq for note in notes if note is not None), default=0)
    if known > last:
        raise refusal([(last + 1, _words_of_cut(known, last))])


def anchored_identity(data: Path) -> str:
    """Of which log the anchor beside the data is; "" where there is none."""
    anchor = _read(data / ANCHOR_FILE, Anchor)
    return anchor.log if anchor is not None else ""


def forget_anchors(data: Path, identity: str) -> None:
    """Remove the anchors of a log, to go on with what is left of it."""
    for path in anchor_paths(data, identity):
        path.unlink(missing_ok=True)
