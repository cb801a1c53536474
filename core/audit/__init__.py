"""The audit: whether a log keeps the rules, found out without the code that wrote it.

`Auditor` takes one record after another and does no IO; `read_log` gives it a stored log, and
`artifacts.check` reads what that names. The rules are told again here, apart from `core.decide` and
the projections: a mistake there would else be made twice, and agree with itself.

A record that breaks a rule is taken as it stands, so that one fault is told once and not again by
everything that follows from it. What follows from a record that was lost, and that a person
accepted, is told apart from the rest: `LossAccepted` says what the log was then, so that no later
change hides behind it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from core import blocks, errors, events, seals, subjects
from core.audit.artifacts import Named
from core.audit.findings import Findings, Violation
from core.audit.losses import Losses
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
        self._lost_seal = 0
        """A lost record that may be the seal after that."""
        self._leaves: list[bytes] = []
        self._whole = hashlib.sha256()
        """Over all leaves, as of a seal of the whole log up to here."""
        self.lost_chunks: dict[str, int] = {}
        """Digests of chunks whose loss was accepted, with the last record that was there then."""
        self._acceptance: tuple[int, tuple[int, str]] = (0, (0, ""))
        """The newest acceptance of a loss, and what it says that the log was: one right behind it
        that says the same goes on with it."""
        self._ids: set[str] = set()
        self._losses = Losses()
        self._tree = Tree(self._add, self._losses)
        self._tasks = Tasks(self._add, self._tree, self._losses)
        self._rounds = Rounds(self._add, self._tree, self._tasks, self._losses)
        self._champions = self._rounds.champions
        self._takers = self._table_of_takers()

    def take(self, record: Record, leaf: bytes = b"") -> None:
        """Check one record against all before it; `leaf` is what seals have of it."""
        self.events += 1
        self._in_order(record.seq)
        event = events.decode(*record)
        if isinstance(event, events.Undecodable):
            self._unreadable(record, event)
            self._champions.unreadable()
        else:
            self._take_event(record.subject, event)
        self._leaves.append(leaf)
        self._whole.update(leaf)

    def _take_event(self, subject: str, event: events.Event) -> None:
        self._envelope(event)
        if self._losses.is_closed(subject):
            detail = f"{type(event.data).__name__} on {subject}, of which a record is lost"
            self._add("closed", event.seq, detail)
        self._champions.expect(event.seq, event.data)
        taker = self._takers.get(type(event.data))
        if taker is not None:
            taker(event.seq, event.data)

    def finish(self, last: int = 0) -> None:
        """Check what the end of the log leaves open; `last` is where it says that it ends."""
        if last > self.last_seq:
            detail = f"{last - self.last_seq} missing: the log ends at {last}, and cannot be read"
            self._add("order", self.last_seq + 1, f"{detail} after {self.last_seq}")
        self._champions.miss(self.last_seq, "the end of the log")
        self._rounds.commitments.finish()

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
        if found.reason == events.LOST:
            self._lost(record)
            return
        proper = _proper_subject(record)
        if proper is None:
            self._add("undecodable", record.seq, f"{record.subject}: {found.reason}")
        else:
            self._add("subject", record.seq, f"lies on {record.subject}, belongs on {proper}")

    def _lost(self, record: Record) -> None:
        self._losses.take(record.seq, record.subject)
        if record.subject == subjects.LOG_COMMITMENTS:
            self._rounds.commitments.lost(record.seq)
        if record.subject in (subjects.LOG_SEAL, subjects.lost(record.seq)):
            self._lost_seal = self._lost_seal or record.seq
        self._add("undecodable", record.seq, f"{record.subject}: {events.LOST}", record.seq)

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
            events.LossAccepted: self._loss_accepted,
            events.ArtifactsSwept: self._artifacts_swept,
            events.NodeAdded: self._tree.added,
            events.ChampionPromoted: self._champions.promoted,
            events.WorkloadChanged: self._tree.changed,
            events.ChampionChosen: self._champions.chosen,
            events.ChampionRetired: self._tree.retired,
            events.GatesChanged: self._tree.gates_changed,
            events.CommitmentsDeposited: self._rounds.commitments.deposited,
            events.CommitmentsWithdrawn: self._rounds.commitments.withdrawn,
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
        goes_on = data.first == self.sealed + 1 and data.previous == self._seal
        # Whoever writes on goes on at the last seal that can be read, and does so since then.
        follows_lost = self._lost_seal > self._losses.accepted
        if not goes_on:
            detail = (
                f"a seal of {data.first} to {data.last} follows one that ended at {self.sealed}"
            )
            self._add("seals", seq, detail, self._lost_seal if follows_lost else 0)
        start = max(0, data.first - 1 - self.sealed)
        covered = self._leaves[start : max(0, data.last - self.sealed)]
        if data.first <= data.last < seq and seals.chain(data.previous, covered) != data.digest:
            detail = f"records {data.first} to {data.last} are not the ones that were sealed"
            cause = self._losses.within(data.first, data.last)
            self._add("seals", data.first, detail, cause)
        if goes_on or not follows_lost:
            del self._leaves[: max(0, data.last - self.sealed)]
            self.sealed, self._seal = max(self.sealed, data.last), data.digest
            self._lost_seal = 0

    def _loss_accepted(self, seq: int, data: events.LossAccepted) -> None:
        """Take what follows from lost records as accepted, where the log is what it was then."""
        if not data.digest:
            return  # of an older program: it proves nothing
        proof = data.last, data.digest
        goes_on = self._acceptance == (seq - 1, proof)
        self._acceptance = seq, proof
        if proof == (seq - 1, self._whole.hexdigest()):
            self.findings.accepted_up_to = data.last
            self._losses.accept(data.last)
        elif not goes_on:
            self._contradict_acceptance(seq, data)
            return
        if self._losses.accepted == data.last:
            self.lost_chunks |= dict.fromkeys(data.chunks, data.last)

    def _contradict_acceptance(self, seq: int, data: events.LossAccepted) -> None:
        # Records that were lost since make it another one, and may be accepted later.
        lost_since = self._losses.newest() if self._losses.count > data.lost else 0
        detail = f"records 1 to {data.last} are not the ones of which a loss was accepted"
        self._add("losses", seq, detail, lost_since)

    def _artifacts_swept(self, seq: int, data: events.ArtifactsSwept) -> None:
        """Take it that these are gone; what is still needed must not be among them."""
        champions = {one.digest: one.what for one in self._tree.named}
        for digest in data.manifests:
            if needed_by := self._tasks.needs(digest) or champions.get(digest):
                detail = f"{digest[:12]}… is swept, and is {needed_by}"
                self._add("sweeps", seq, detail, self._tasks.cause_of_need(digest))
                self._tasks.swept.add(digest)

    def _writer_started(self, seq: int, data: events.WriterStarted) -> None:
        if data.epoch != self._epoch + 1:
            detail = f"epoch {data.epoch} follows epoch {self._epoch}"
            self._add("writer", seq, detail, self._losses.unaccepted_of(subjects.LOG_WRITER))
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
        findings.add_unshown("blocks", more)
    if not stored.damage_total and stored.last_seq != last:
        detail = f"the blocks end at {stored.last_seq}, the server that read them at {last}"
        findings.add("blocks", min(stored.last_seq, last) + 1, detail)
