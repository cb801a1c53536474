"""Snapshots: the state as bytes, so that a start does not fold the whole log.

A snapshot is a head and parts. A part is a JSON list of rows of one section, at most about
PART_BYTES_MAX long; the head names each part's section, rows, bytes and SHA-256 in order, and what
the snapshot is of: the sequence, the record that stands there, and the schema, which is the text of
everything that folds. What follows from rows (the queue, ids, rounds by node) is made anew from
them; what depends on the order of events is a section of its own.
"""

import functools
import hashlib
import inspect
import itertools
import operator
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import msgspec

from core import errors, events, seals, subjects, values
from core.events import Champion, Via
from core.log import Record
from core.projections import (
    claims,
    graph,
    questions,
    queue,
    rivalry,
    rounds,
    state,
    tables,
    tasks,
    workers,
)
from core.projections.state import State

FORMAT = 1
PART_BYTES_MAX = 1024 * 1024 - 4096
SLICE_ROWS = 256
"""Rows encoded without a turn for other threads."""
AHEAD_ROWS = 20_000
"""Rows copied without a turn for others on the loop: some milliseconds."""
_FOLDING: tuple[ModuleType, ...] = (
    values,
    events,
    subjects,
    claims,
    graph,
    rivalry,
    questions,
    queue,
    rounds,
    state,
    tables,
    tasks,
    workers,
)

_encode = msgspec.json.Encoder().encode


# What is kept


class Part(msgspec.Struct, frozen=True):
    """A piece of one section: what the store must give back."""

    section: str
    rows: int
    bytes: int
    sha256: str


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is of, and what it is made of. `record` is the fingerprint of the log's
    record at `seq`, which tells that log from any other."""

    format: int
    schema: str
    seq: int
    at: int
    record: str
    next_deposit: int
    withdrawn_before: int
    parts: list[Part]

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)


class _Signed(msgspec.Struct, frozen=True):
    head: msgspec.Raw
    sha256: str


class Kept(NamedTuple):
    """A finished snapshot in a store."""

    name: str
    head: bytes


class SnapshotStore(Protocol):
    """Where snapshots are kept. Implementations: `core.snapshots_memory.MemorySnapshots`,
    `core.snapshots_jetstream.JetStreamSnapshots`."""

    async def add(self, name: str, part: bytes) -> None:
        """Store the next part of a snapshot. Raises LogFull, Unavailable."""
        ...

    async def finish(self, name: str, head: bytes) -> None:
        """Store its head, one JSON object; from now on it is kept. Raises LogFull, Unavailable."""
        ...

    async def kept(self) -> list[Kept]:
        """The finished ones, newest first. Raises Unavailable."""
        ...

    def parts(self, name: str) -> AsyncIterator[bytes]:
        """The parts of a snapshot in order, as many as are there. Raises Unavailable."""
        ...

    async def prune(self, keep: Collection[str]) -> None:
        """Remove all others, the unfinished too. Raises Unavailable."""
        ...


def schema() -> str:
    """SHA-256 over the text of the event types, the row types and the fold, hex.

    Raises errors.SnapshotUnusable where this program has no text of its own.
    """
    return _schema(_FOLDING)


@functools.cache
def _schema(modules: tuple[ModuleType, ...]) -> str:
    digest = hashlib.sha256()
    for module in (*modules, sys.modules[__name__]):
        try:
            text = inspect.getsource(module).encode()
        except OSError as error:
            raise errors.SnapshotUnusable(f"the program's own text is not here: {error}") from error
        digest.update(b"%s %d\n%s" % (module.__name__.encode(), len(text), text))
    return digest.hexdigest()


# From a state to bytes


class Copy(NamedTuple):
    """A state as it was at one moment: rows are values, so holding them is enough.

    `held` is what was taken of each section."""

    seq: int
    at: int
    next_deposit: int
    withdrawn_before: int
    held: dict[str, Any]


class Piece(NamedTuple):
    """A part and its bytes."""

    part: Part
    data: bytes


class Copier:
    """Copies a state while it goes on: rows of large tables ahead, some at a time, and in one
    moment all the rest and what was put in place of those rows since."""

    def __init__(self, of: State, rows_at_once: int = AHEAD_ROWS) -> None:
        self._of = of
        self._rows_at_once = rows_at_once
        self._ahead: dict[str, list[Any]] = {name: [] for name in _LARGE}
        self._noted = {name: large.table(of).note_puts() for name, large in _LARGE.items()}

    def ahead(self) -> Iterator[None]:
        """Take rows ahead until few are left; yields where others may have their turn."""
        for name, rows in self._ahead.items():
            large = _LARGE[name]
            ids, table = large.ids(self._of), large.table(self._of)
            while len(ids) - len(rows) > self._rows_at_once:
                some = ids[len(rows) : len(rows) + self._rows_at_once]
                rows += map(table.rows.__getitem__, some)
                yield

    def finish(self, of: State) -> Copy:
        """The copy of the state as it is now; `of` is asked whole if it is another one by now."""
        if of is not self._of:
            return copy(of)
        held = {name: section.take(of) for name, section in _SECTIONS.items() if name not in _LARGE}
        held |= {name: self._finished(name) for name in _LARGE}
        return Copy(of.seq, of.at, of.rounds.next_deposit, of.rounds.withdrawn_before, held)

    def _finished(self, name: str) -> "_Rows":
        large, rows = _LARGE[name], self._ahead[name]
        now = large.table(self._of).rows
        rows += map(now.__getitem__, large.ids(self._of)[len(rows) :])
        return _Rows(rows, {key: now[key] for key in self._noted[name]})

    def close(self) -> None:
        """Let the state go on without taking notes."""
        for large in _LARGE.values():
            large.table(self._of).stop_noting()


def copy(of: State) -> Copy:
    """Hold what a state is made of, all in one moment."""
    copier = Copier(of)
    try:
        return copier.finish(of)
    finally:
        copier.close()


class _Rows(NamedTuple):
    """Rows of a large table in order, and by key those that stand in place of some."""

    rows: list[Any]
    newer: dict[str, Any]


def dump(copied: Copy) -> Iterator[Piece]:
    """Encode a copy, part by part; it is used up by that."""
    for name, section in _SECTIONS.items():
        lists: list[bytes] = []
        count = size = 0
        for held, data in _encoded(section.rows(copied.held.pop(name))):
            if lists and size + len(data) > PART_BYTES_MAX:
                yield _piece(name, count, lists)
                lists, count, size = [], 0, 0
            lists.append(data)
            count += held
            size += len(data)
        if lists:
            yield _piece(name, count, lists)


def _encoded(rows: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
    """Rows as JSON lists, each with its length; none is longer than a part unless one row is."""
    left = iter(rows)
    while taken := list(itertools.islice(left, SLICE_ROWS)):
        yield from _halved(taken)


def _halved(rows: list[Any]) -> Iterator[tuple[int, bytes]]:
    data = _encode(rows)
    if len(data) <= PART_BYTES_MAX or len(rows) == 1:
        yield len(rows), data
        return
    half = len(rows) // 2
    yield from _halved(rows[:half])
    yield from _halved(rows[half:])


def _piece(section: str, rows: int, lists: list[bytes]) -> Piece:
    data = b"[%s]" % b",".join(one[1:-1] for one in lists)
    return Piece(Part(section, rows, len(data), hashlib.sha256(data).hexdigest()), data)


def head_of(copied: Copy, record: Record, parts: Iterable[Part]) -> Head:
    """The head of a dumped copy; `record` is what stands in the log at its sequence."""
    assert record.seq == copied.seq
    return Head(
        format=FORMAT,
        schema=schema(),
        seq=copied.seq,
        at=copied.at,
        record=fingerprint(record),
        next_deposit=copied.next_deposit,
        withdrawn_before=copied.withdrawn_before,
        parts=list(parts),
    )


def fingerprint(record: Record) -> str:
    """What a head remembers a record of the log by."""
    return seals.fingerprint(record.subject, record.data)


def encode_head(head: Head) -> bytes:
    """A head as it is kept, with a digest of its own."""
    raw = _encode(head)
    return _encode(_Signed(msgspec.Raw(raw), hashlib.sha256(raw).hexdigest()))


# From bytes to a state


class _Format(msgspec.Struct):
    format: int
    schema: str


def decode_head(raw: bytes) -> Head:
    """A kept head. Raises errors.SnapshotUnusable for one that is damaged or of another program."""
    try:
        signed = msgspec.json.decode(raw, type=_Signed)
        if hashlib.sha256(signed.head).hexdigest() != signed.sha256:
            raise errors.SnapshotUnusable("its head is damaged")
        written = msgspec.json.decode(signed.head, type=_Format)
        if (written.format, written.schema) != (FORMAT, schema()):
            raise errors.SnapshotUnusable(
                f"it was written by a program that folds otherwise (format {written.format}, "
                f"schema {written.schema[:12]}; here {FORMAT}, {schema()[:12]})"
            )
        return msgspec.json.decode(signed.head, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.SnapshotUnusable(f"its head cannot be read: {error}") from error


class Loader:
    """Makes a state of the parts of a snapshot, one after another."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._left = iter(head.parts)
        self._state = State()

    def take(self, data: bytes) -> None:
        """The next part. Raises errors.SnapshotUnusable where it is not what the head says."""
        part = next(self._left, None)
        if part is None:
            raise errors.SnapshotUnusable("it has more parts than its head names")
        if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
            raise errors.SnapshotUnusable(f"a part of {part.section} is damaged")
        section = _SECTIONS.get(part.section)
        if section is None:
            raise errors.SnapshotUnusable(f"its section {part.section[:80]!r} is unknown")
        try:
            rows = section.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise errors.SnapshotUnusable(f"a part of {part.section} is: {error}") from error
        if len(rows) != part.rows:
            raise errors.SnapshotUnusable(f"a part of {part.section} lacks rows")
        section.restore(self._state, rows)

    def finish(self) -> State:
        """The state, once all parts were taken. Raises errors.SnapshotUnusable where some lack."""
        if lacking := sum(1 for _ in self._left):
            raise errors.SnapshotUnusable(f"it lacks its last {lacking} parts")
        made, head = self._state, self._head
        made.seq, made.at = head.seq, head.at
        made.rounds.next_deposit = head.next_deposit
        made.rounds.withdrawn_before = head.withdrawn_before
        return made


# Sections


class Section(NamedTuple):
    """One list of rows of a state: how to hold it at one moment, read it later, put it back."""

    take: Callable[[State], Any]
    rows: Callable[[Any], Iterable[Any]]
    decode: Callable[[bytes], list[Any]]
    restore: Callable[[State, list[Any]], None]


class _Large(NamedTuple):
    """A table that may be copied ahead by its ids: rows are only ever added to it and replaced."""

    table: Callable[[State], tables.Table[Any]]
    ids: Callable[[State], list[str]]
    key: Callable[[Any], str]

    def rows(self, held: _Rows) -> Iterator[Any]:
        """The rows as they were in the end."""
        rows, newer = held
        for start in range(0, len(rows), SLICE_ROWS):
            taken = rows[start : start + SLICE_ROWS]
            # Let go of them bit by bit: freeing a million at the end would hold all threads up.
            rows[start : start + SLICE_ROWS] = [None] * len(taken)
            if newer:
                taken = [newer.get(self.key(row), row) for row in taken]
            yield from taken


_LARGE = {
    "tasks": _Large(
        lambda of: of.tasks.table, lambda of: of.tasks.ids, operator.attrgetter("task_id")
    ),
    "rounds": _Large(
        lambda of: of.rounds.table, lambda of: of.rounds.ids, operator.attrgetter("round_id")
    ),
}


def _decoder(kind: Any) -> Callable[[bytes], list[Any]]:
    return msgspec.json.Decoder(list[kind]).decode


def _large(name: str, kind: Any, restore: Callable[[State, list[Any]], None]) -> Section:
    large = _LARGE[name]
    return Section(large.table, large.rows, _decoder(kind), restore)


def _section(
    kind: Any, take: Callable[[State], list[Any]], restore: Callable[[State, list[Any]], None]
) -> Section:
    return Section(take, iter, _decoder(kind), restore)


def _table(kind: Any, of: Callable[[State], tables.Table[Any]]) -> Section:
    """A table whose keys are not in its rows."""
    return _mapping(kind, lambda one: of(one).rows)


def _mapping(kind: Any, of: Callable[[State], dict[str, Any]]) -> Section:
    return Section(
        lambda one: of(one).copy(),
        dict.items,
        _decoder(tuple[str, kind]),
        lambda one, rows: of(one).update(rows),
    )


def _ordered(of: Callable[[State], dict[str, None]]) -> Section:
    """Ids in the order they came."""
    return _section(
        str,
        lambda one: list(of(one)),
        lambda one, rows: of(one).update(dict.fromkeys(rows)),
    )


def _groups(kind: Any, of: Callable[[State], dict[Any, dict[str, None]]]) -> Section:
    """Ids in the order they came, by what they belong to."""

    def rows(held: dict[Any, dict[str, None]]) -> Iterator[tuple[Any, str]]:
        return ((group, one) for group, ids in held.items() for one in ids)

    def restore(into: State, pairs: list[tuple[Any, str]]) -> None:
        for group, one in pairs:
            of(into).setdefault(group, {})[one] = None

    return Section(
        lambda one: {group: ids.copy() for group, ids in of(one).items()},
        rows,
        _decoder(tuple[kind, str]),
        restore,
    )


def _put_node_rounds(into: State, rows: list[rounds.NodeRounds]) -> None:
    into.rounds.nodes.rows.update((row.node_id, row) for row in rows)


def _close(into: State, subjects: list[str]) -> None:
    for subject in subjects:
        into.close(subject)


_SECTIONS: dict[str, Section] = {
    "nodes": _section(
        graph.Node,
        lambda of: list(of.graph.nodes),
        lambda into, rows: into.graph.restore(rows),
    ),
    "champions": _table(Champion, lambda of: of.graph.champions),
    "best": _table(Champion, lambda of: of.graph.best),
    "of_budgets": _table(Champion, lambda of: of.graph.of_budgets),
    "promotions": _mapping(int, lambda of: of.graph.promotions),
    "tasks": _large("tasks", tasks.Task | tasks.Done, lambda into, rows: into.tasks.restore(rows)),
    "idempotency_keys": _table(tasks.IdempotencyKey, lambda of: of.tasks.keys),
    "counts": _mapping(int, lambda of: of.tasks.counts),
    "held": _groups(str, lambda of: of.tasks.held),
    "open_of_node": _mapping(int, lambda of: of.tasks.open_of_node),
    "recent": _section(
        tasks.Task,
        lambda of: list(of.tasks.recent.values()),
        lambda into, rows: into.tasks.restore_recent(rows),
    ),
    "workers": _section(
        workers.Worker,
        lambda of: list(of.workers.table),
        lambda into, rows: into.workers.restore(rows),
    ),
    "online": _groups(Via, lambda of: of.workers.online_by),
    "rounds": _large(
        "rounds", rounds.Round | rounds.Decided, lambda into, rows: into.rounds.restore(rows)
    ),
    "node_rounds": _section(rounds.NodeRounds, lambda of: list(of.rounds.nodes), _put_node_rounds),
    "commitments": _table(rounds.Commitment, lambda of: of.rounds.commitments),
    "rivalry": _table(rivalry.Account, lambda of: of.rivalry.table),
    "ordered": _table(rivalry.Ordered, lambda of: of.rivalry.ordered),
    "questions": _table(questions.Asked, lambda of: of.questions.table),
    "undecided": _ordered(lambda of: of.rounds.undecided),
    "open": _ordered(lambda of: of.rounds.open),
    "log": _table(state.LogHead, lambda of: of.log),
    "seals": _table(state.Sealed, lambda of: of.seals),
    "quarantine": _table(state.Quarantined, lambda of: of.quarantine),
    "read_only": _section(
        str,
        lambda of: list(of.read_only),
        _close,
    ),
}
