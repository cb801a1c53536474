"""The audit: whether a log keeps the rules, found out without the code that wrote it.

`Auditor` takes one record after another and does no IO; `read_log` gives it a stored log, and
`artifacts.check` reads what that names. The rules are told again here, apart from `core.decide` and
the projections: a mistake there would else be made twice, and agree with itself.

A record that breaks a rule is taken as it stands, so that one fault is told once and not again by
everything that follows from it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from core import blocks, errors, events, seals
from core.audit.artifacts import Named
from core.audit.findings import Findings, Violation
from core.audit.rounds import Rounds
from core.audit.tasks import Tasks
from core.audit.tree import Tree
from core.log import Log, Record


def check(records: Iterable[Record]) -> list[Violation]:
    """The rules that a log breaks, stored artifacts aside; the first SHOWN_MAX."""
    auditor = Auditor()
    for record in records:
        auditor.take(record)
    auditor.finish()
    return auditor.findings.shown


class Auditor:
    """Takes a log record by record, from its first, and finds what breaks the rules."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.events = 0
        self._add = self.findings.add
        self.last_seq = 0
        self._clock = 0
        self._epoch = 0
        self.sealed = 0
        """The last record that a sound seal covers."""
        self._seal = ""
        self._leaves: list[bytes] = []
        self._ids: set[str] = set()
        self._tree = Tree(self._add)
        self._tasks = Tasks(self._add, self._tree)
        self._rounds = Rounds(self._add, self._tree, self._tasks)
        self._takers = self._table_of_takers()

    def take(self, record: Record, leaf: bytes = b"") -> None:
        """Check one record against all before it; `leaf` is what seals have of it."""
        self.events += 1
        self._in_order(record.seq)
        self._leaves.append(leaf)
        event = events.decode(*record)
        if isinstance(event, events.Undecodable):
            self._unreadable(record, event)
            self._rounds.due = None  # it might be what is due
            return
        self._envelope(event)
        self._rounds.expect_promotion(event.seq, event.data)
        taker = self._takers.get(type(event.data))
        if taker is not None:
            taker(event.seq, event.data)

    def finish(self, last: int = 0) -> None:
        """Check what the end of the log leaves open; `last` is where it says that it ends."""
        if last > self.last_seq:
            detail = f"{last - self.last_seq} missing: the log ends at {last}, and cannot be read"
            self._add("order", self.last_seq + 1, f"{detail} after {self.last_seq}")
        self._rounds.miss_promotion(self.last_seq, "the end of the log")

    def named(self) -> Iterator[Named]:
        """What has to be stored, each once: candidates, champions, metrics, payloads, and the last
        checkpoints of tasks that are not completed."""
        known = set(self._tasks.swept)
        for one in (*self._tasks.named(), *self._tree.named):
            if one.digest not in known:
                known.add(one.digest)
                yield one

    def _in_order(self, seq: int) -> None:
        expected = self.last_seq + 1
        if seq > expected:
            self._add(
                "order",
                expected,
                f"{seq - expected} missing: {self.last_seq} is followed by {seq}",
            )
        elif seq < expected:
            self._add("order", seq, f"{self.last_seq} is followed by {seq}")
        self.last_seq = max(self.last_seq, seq)

    def _unreadable(self, record: Record, found: events.Undecodable) -> None:
        proper = _proper_subject(record)
        if proper is None:
            self._add("undecodable", record.seq, f"{record.subject}: {found.reason}")
        else:
            self._add("subject", record.seq, f"lies on {record.subject}, belongs on {proper}")

    def _envelope(self, event: events.Event) -> None:
        if event.id in self._ids:
            self._add("identity", event.seq, f"the id {event.id!r} was used before")
        self._ids.add(event.id)
        if event.at < self._clock:
            at, before = events.isoformat(event.at), events.isoformat(self._clock)
            self._add("time", event.seq, f"happened at {at}, what stands before it at {before}")
        self._clock = max(self._clock, event.at)

    def _table_of_takers(self) -> dict[type, Callable[[int, Any], None]]:
        """Who takes which type of event; those of workers break no rule by themselves."""
        tasks, rounds = self._tasks.take, self._rounds.take
        takers: dict[type, Callable[[int, Any], None]] = {
            events.WriterStarted: self._writer_started,
            events.LogSealed: self._log_sealed,
            events.ArtifactsSwept: self._artifacts_swept,
            events.NodeAdded: self._tree.added,
            events.ChampionPromoted: self._rounds.promoted,
            events.WorkloadChanged: self._tree.changed,
            events.ChampionRetired: self._tree.retired,
            events.CommitmentsDeposited: self._rounds.deposited,
            events.CommitmentsWithdrawn: self._rounds.withdrawn,
        }
        for cls in events.TYPES.values():
            # The first field names the aggregate.
            if cls.__struct_fields__[0] == "task_id":
                takers[cls] = tasks
            elif cls.__struct_fields__[0] == "round_id":
                takers[cls] = rounds
        return takers

    def _log_sealed(self, seq: int, data: events.LogSealed) -> None:
        """Compare a seal with what was read; what it covers needs no keeping any more."""
        if data.first != self.sealed + 1 or data.previous != self._seal:
            detail = (
                f"a seal of {data.first} to {data.last} follows one that ended at {self.sealed}"
            )
            self._add("seals", seq, detail)
        covered = self._leaves[: max(0, data.last - self.sealed)]
        if data.first <= data.last < seq and seals.chain(data.previous, covered) != data.digest:
            detail = f"records {data.first} to {data.last} are not the ones that were sealed"
            self._add("seals", data.first, detail)
        del self._leaves[: len(covered)]
        self.sealed, self._seal = max(self.sealed, data.last), data.digest

    def _artifacts_swept(self, seq: int, data: events.ArtifactsSwept) -> None:
        """Take it that these are gone; what is still needed must not be among them."""
        champions = {one.digest: one.what for one in self._tree.named}
        for digest in data.manifests:
            if needed_by := self._tasks.needs(digest) or champions.get(digest):
                self._add("sweeps", seq, f"{digest[:12]}… is swept, and is {needed_by}")
                self._tasks.swept.add(digest)

    def _writer_started(self, seq: int, data: events.WriterStarted) -> None:
        if data.epoch != self._epoch + 1:
            self._add("writer", seq, f"epoch {data.epoch} follows epoch {self._epoch}")
        self._epoch = data.epoch


def _proper_subject(record: Record) -> str | None:
    """Where a record belongs that only lies on a wrong subject; None where it cannot be read."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(record.data)
        kind = events.TYPES[fields["type"]]
        body: events.EventData = msgspec.json.decode(msgspec.json.encode(fields["data"]), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return None
    proper = events.subject_of(body)
    readable = isinstance(events.decode(record.seq, proper, record.data), events.Event)
    return proper if readable and proper != record.subject else None


async def read_log(log: Log, stored: blocks.Reading | None = None) -> Auditor:
    """An auditor that took the log up to its end at the time of the call. Raises LogUnavailable.

    `stored` is what its blocks held before a server was started on them, and could repair them.
    """
    auditor = Auditor()
    last = await log.last_seq()
    if stored is not None:
        _add_damage(stored, last, auditor.findings)
    try:
        async for records in log.read_stored(1, last):
            for one in records:
                auditor.take(Record(one.seq, one.subject, one.data), seals.leaf(one))
    except errors.LogDamaged:
        pass  # its end is lost, which is told below
    auditor.finish(last)
    return auditor


def _add_damage(stored: blocks.Reading, last: int, findings: Findings) -> None:
    for one in stored.damage:
        place = f"{one.block}.blk, byte {one.offset}: " if one.block else ""
        findings.add("blocks", one.seq, place + one.what)
    if more := stored.damage_total - len(stored.damage):
        findings.counts["blocks"] += more
    if not stored.damage_total and stored.last_seq != last:
        detail = f"the blocks end at {stored.last_seq}, the server that read them at {last}"
        findings.add("blocks", min(stored.last_seq, last) + 1, detail)
