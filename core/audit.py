"""The audit: whether a log keeps the rules, found out without the code that wrote it.

`Auditor` takes one record after another and does no IO; `read_log` gives it a stored log, and
`check_artifacts` reads what that names. The rules are told again here, apart from `core.decide` and
the projections: a mistake there would else be made twice, and agree with itself.

A record that breaks a rule is taken as it stands, so that one fault is told once and not again by
everything that follows from it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import msgspec

from core import blocks, chunks, errors, events, seals, specializations, subjects
from core.events import Base, Candidate, Champion, Checkpoint, Rival, Role, Workload
from core.log import Log, Record

SHOWN_MAX = 100
DETAIL_CHARS_MAX = 400
"""Who writes manifests and large metrics."""

RULES: dict[str, str] = {
    "blocks": "stored records are whole, in order, and hash to their checksums",
    "order": "sequences run from 1 without gaps",
    "undecodable": "every record can be read",
    "subject": "every record lies on the subject that its body names",
    "identity": "event ids are unique",
    "time": "times never run backwards",
    "seals": "each seal goes on where the last one ended, and its digest is that of its records",
    "head": "what was acknowledged, or sealed, as `head` and the anchors say, is still there, and"
    " they can be read",
    "writer": "each writer's epoch is one above the last",
    "life": "a task is queued first, and only once",
    "attempts": "each claim's attempt is one above the last",
    "fencing": "one open claim a task, and only its holder speaks for it",
    "completion": "a task is completed once",
    "terminal": "nothing follows the end of a task but a retry of a failed or cancelled one",
    "base": "what is started from, or measured against, is the champion of that moment",
    "graph": "the tree has one root, no cycles, and keeps its bounds",
    "rounds": "candidates come from completed tasks that entered an open round, one a node",
    "commitment": "each round takes a deposited commitment, and its secret opens it; a round whose"
    " commitment was withdrawn may end void without",
    "promotion": "a champion stood in the round whose verdict, right before, promotes it; it may be"
    " missing only where the end of the log was lost, and that accepted",
    "artifacts": "what the log names is stored, and is what its digest says",
}
_ENDED = frozenset({"completed", "failed", "cancelled"})


class Violation(msgspec.Struct, frozen=True):
    """A broken rule, the first sequence that breaks it, and how."""

    rule: str
    seq: int
    detail: str


class Findings:
    """Violations in the order they are found: the first SHOWN_MAX, and how many of each rule."""

    def __init__(self) -> None:
        self.shown: list[Violation] = []
        self.counts: dict[str, int] = {}

    @property
    def total(self) -> int:
        """All violations, those that are not shown too."""
        return sum(self.counts.values())

    def add(self, rule: str, seq: int, detail: str) -> None:
        """Record a violation."""
        assert rule in RULES, rule
        self.counts[rule] = self.counts.get(rule, 0) + 1
        if len(self.shown) < SHOWN_MAX:
            self.shown.append(Violation(rule, seq, detail[:DETAIL_CHARS_MAX]))


class Named(NamedTuple):
    """Something stored that the log names. `bytes` is -1 where the log does not say."""

    seq: int
    what: str
    digest: str
    writer: str = ""
    bytes: int = -1
    is_manifest: bool = True


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
        self._tree = _Tree(self._add)
        self._tasks = _Tasks(self._add, self._tree)
        self._rounds = _Rounds(self._add, self._tree, self._tasks)
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
        """What has to be stored, each once: checkpoints, candidates, champions, metrics."""
        known: set[str] = set()
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
            events.NodeAdded: self._tree.added,
            events.ChampionPromoted: self._rounds.promoted,
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


Add: TypeAlias = Callable[[str, int, str], None]
"""Adds a violation: rule, sequence, detail."""


# The tree and its champions


class _Tree:
    def __init__(self, add: Add) -> None:
        self._add = add
        self._depths: dict[str, int] = {}
        self._children: dict[str, int] = {}
        self._champions: dict[str, Champion] = {}
        self.named: list[Named] = []

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._depths

    def added(self, seq: int, data: events.NodeAdded) -> None:
        """Take a node, which is below an older one, so that no cycle can be."""
        if fault := self._fault(data):
            self._add("graph", seq, f"{data.node_id}: {fault}")
        parent = data.parent_id
        self._depths.setdefault(data.node_id, self._depths.get(parent or "", -1) + 1)
        if parent is not None:
            self._children[parent] = self._children.get(parent, 0) + 1

    def _fault(self, data: events.NodeAdded) -> str:
        parent = data.parent_id
        if data.node_id in self._depths:
            return "it was added before"
        if len(self._depths) >= specializations.NODES_MAX:
            return f"the tree holds {len(self._depths)} nodes, the most it may"
        if parent is None:
            return "the tree has a root already" if self._depths else ""
        if parent not in self._depths:
            return f"its parent {parent} was not there yet"
        if self._depths[parent] >= specializations.DEPTH_MAX:
            return f"it is deeper than {specializations.DEPTH_MAX}"
        if self._children.get(parent, 0) >= specializations.CHILDREN_MAX:
            return f"{parent} has more than {specializations.CHILDREN_MAX} children"
        return ""

    def reigns(self, seq: int, champion: Champion) -> None:
        """Take the new champion of a node."""
        self._champions[champion.node_id] = champion
        what = f"champion {champion.candidate_id} of {champion.node_id}"
        self.named.append(Named(seq, what, champion.manifest, champion.writer))

    def base(self, node_id: str, workload: Workload) -> Base | None:
        """What an evolver of this workload has to start from now."""
        one = self._champions.get(node_id)
        if one is None or one.workload != workload:
            return None
        return Base(
            candidate_id=one.candidate_id,
            manifest=one.manifest,
            writer=one.writer,
            weights_sha256=one.weights_sha256,
        )


def _base_name(base: Base | None) -> str:
    return f"champion {base.candidate_id}" if base else "no champion"


# Tasks


@dataclass(slots=True)
class _Task:
    node_id: str
    role: Role
    workload: Workload
    status: str = "queued"
    attempt: int = 0
    claim_id: str = ""
    worker_id: str = ""
    claim_state: str = ""
    base: Base | None = None
    kept: dict[Rival, tuple[int, Checkpoint]] = field(default_factory=dict)
    brought: dict[str, Candidate] = field(default_factory=dict)


class _Tasks:
    def __init__(self, add: Add, tree: _Tree) -> None:
        self._add = add
        self._tree = tree
        self._named: list[Named] = []
        self.strangers: set[str] = set()
        """Tasks that are known only by what should have followed their first event."""
        self.rows: dict[str, _Task] = {}

    def named(self) -> Iterator[Named]:
        """What tasks brought, and the last checkpoint of each of their rivals."""
        yield from self._named
        for task_id, task in self.rows.items():
            for rival, (seq, point) in task.kept.items():
                what = f"{rival}'s checkpoint {point.step} of {task_id}"
                yield Named(seq, what, point.manifest, point.writer, point.bytes)

    def take(self, seq: int, data: Any) -> None:
        """Take an event of a task."""
        task = self.rows.get(data.task_id)
        if isinstance(data, events.TaskQueued):
            self._queued(seq, data, task)
        elif task is None:
            if data.task_id not in self.strangers:
                name = type(data).__name__
                self._add("life", seq, f"{name} of {data.task_id}, which was never queued")
            self.strangers.add(data.task_id)
        elif isinstance(data, events.TaskRetried):
            self._retried(seq, data, task)
        elif task.status in _ENDED:
            twice = isinstance(data, events.TaskCompleted) and task.status == "completed"
            detail = f"{type(data).__name__} of {data.task_id}, which is {task.status}"
            self._add("completion" if twice else "terminal", seq, detail)
        elif isinstance(data, events.TaskClaimed):
            self._claimed(seq, data, task)
        elif isinstance(data, events.TaskFailed | events.TaskCancelled):
            self._ended(seq, data, task)
        else:
            self._of_claim(seq, data, task)

    def _queued(self, seq: int, data: events.TaskQueued, before: _Task | None) -> None:
        if before is not None:
            self._add("life", seq, f"{data.task_id} is queued again")
            return
        if data.node_id not in self._tree:
            self._add("graph", seq, f"{data.task_id} is for {data.node_id}, which is no node yet")
        self.rows[data.task_id] = _Task(data.node_id, data.role, data.workload)

    def _claimed(self, seq: int, data: events.TaskClaimed, task: _Task) -> None:
        if data.attempt != task.attempt + 1:
            detail = f"{data.task_id}: attempt {data.attempt} follows attempt {task.attempt}"
            self._add("attempts", seq, detail)
        if task.status == "running":
            detail = (
                f"{data.task_id} is claimed by {data.worker_id!r}, while {task.worker_id!r} holds"
                f" it by attempt {task.attempt}"
            )
            self._add("fencing", seq, detail)
        wanted = None
        if "evolver" in _rivals_of(task.role):
            # An evolver that goes on goes on from where it began.
            wanted = task.base if task.kept else self._tree.base(task.node_id, task.workload)
        if data.base != wanted:
            detail = (
                f"attempt {data.attempt} of {data.task_id} starts from {_base_name(data.base)},"
                f" not from {_base_name(wanted)}"
            )
            self._add("base", seq, detail)
        task.status, task.claim_state = "running", "open"
        task.attempt, task.claim_id = data.attempt, data.claim_id
        task.worker_id, task.base = data.worker_id, data.base

    def _of_claim(self, seq: int, data: Any, task: _Task) -> None:
        """Take what is said under a claim's token: about its lease, by its holder."""
        revives = isinstance(data, events.ClaimRevived)
        self._require_token(seq, data, task, "expired" if revives else "open")
        match data:
            case events.CheckpointStored():
                self._require_writer(seq, data, task, data.checkpoint.writer)
                task.kept[data.checkpoint.rival] = (seq, data.checkpoint)
            case events.ClaimRevived():
                task.status, task.claim_state = "running", "open"
            case events.ClaimExpired():
                task.status, task.claim_state = "queued", "expired"
            case events.ClaimReleased():
                task.status, task.claim_state = "queued", "released"
            case events.AttemptFailed():
                task.status, task.claim_state = "queued", "failed"
            case events.TaskCompleted():
                self._completed(seq, data, task)

    def _require_token(self, seq: int, data: Any, task: _Task, state: str) -> None:
        name = type(data).__name__
        if (data.attempt, data.claim_id) != (task.attempt, task.claim_id):
            detail = (
                f"{name} of {data.task_id} by attempt {data.attempt} ({data.claim_id}); the latest"
                f" is attempt {task.attempt} ({task.claim_id})"
            )
            self._add("fencing", seq, detail)
        elif task.claim_state != state:
            detail = (
                f"{name} of {data.task_id} by attempt {task.attempt}, which is {task.claim_state}"
            )
            self._add("fencing", seq, detail)

    def _require_writer(self, seq: int, data: Any, task: _Task, writer: str) -> None:
        if writer != subjects.token(task.worker_id):
            detail = (
                f"{type(data).__name__} of {data.task_id} with what {writer!r} wrote;"
                f" {task.worker_id!r} holds it"
            )
            self._add("fencing", seq, detail)

    def _completed(self, seq: int, data: events.TaskCompleted, task: _Task) -> None:
        if data.worker_id != task.worker_id:
            detail = (
                f"{data.task_id} is completed by {data.worker_id!r}; {task.worker_id!r} holds it"
            )
            self._add("fencing", seq, detail)
        task.status, task.claim_state, task.worker_id = "completed", "completed", data.worker_id
        for one in data.candidates:
            self._require_writer(seq, data, task, one.writer)
            task.brought[one.candidate_id] = one
            what = f"candidate {one.candidate_id} of {data.task_id}"
            self._named.append(Named(seq, what, one.manifest, one.writer, one.bytes))
        if data.metrics_digest:
            what = f"metrics of {data.task_id}"
            self._named.append(Named(seq, what, data.metrics_digest, is_manifest=False))

    def _ended(self, seq: int, data: Any, task: _Task) -> None:
        failed = isinstance(data, events.TaskFailed)
        if failed and task.status == "running":
            detail = f"{data.task_id} is failed, while attempt {task.attempt} is open"
            self._add("fencing", seq, detail)
        task.status = "failed" if failed else "cancelled"

    def _retried(self, seq: int, data: events.TaskRetried, task: _Task) -> None:
        if task.status not in ("failed", "cancelled"):
            rule = "terminal" if task.status == "completed" else "life"
            self._add(rule, seq, f"{data.task_id} is retried, although it is {task.status}")
            return
        task.status = "queued"


def _rivals_of(role: Role) -> tuple[Rival, ...]:
    return ("evolver", "reinventor") if role == "dual" else (role,)


# Rounds


class _Standing(NamedTuple):
    candidate: Candidate
    task_id: str
    worker_id: str


@dataclass(slots=True)
class _Round:
    node_id: str
    workload: Workload
    index: int
    commitment: str
    status: str = "open"
    awaited: dict[Rival, str] = field(default_factory=dict)
    entered: set[Rival] = field(default_factory=set)
    standings: dict[str, _Standing] = field(default_factory=dict)


class _Due(NamedTuple):
    """A promotion that a verdict has announced, and that has to come next."""

    seq: int
    round_id: str
    row: _Round
    standing: _Standing


class _Rounds:
    def __init__(self, add: Add, tree: _Tree, tasks: _Tasks) -> None:
        self._add = add
        self._tree = tree
        self._tasks = tasks
        self._rows: dict[str, _Round] = {}
        self._open: dict[str, str] = {}
        self._strangers: set[str] = set()
        self._free: dict[int, str] = {}
        self._next_index = 0
        self._withdrawn_before = 0
        self.due: _Due | None = None
        self._torn: _Due | None = None  # what was due when another writer came

    def deposited(self, seq: int, data: events.CommitmentsDeposited) -> None:
        """Take commitments for rounds to come."""
        if data.first != self._next_index:
            detail = f"commitments from {data.first} are deposited; {self._next_index} comes next"
            self._add("commitment", seq, detail)
        self._free.update(enumerate(data.commitments, data.first))
        self._next_index = data.first + len(data.commitments)

    def withdrawn(self, seq: int, data: events.CommitmentsWithdrawn) -> None:
        """Take it that nobody can open the commitments of lower index any more."""
        if data.before > self._next_index:
            detail = f"commitments below {data.before} are withdrawn; {self._next_index} comes next"
            self._add("commitment", seq, detail)
        self._withdrawn_before = max(self._withdrawn_before, data.before)
        self._free = {index: one for index, one in self._free.items() if index >= data.before}

    def take(self, seq: int, data: Any) -> None:
        """Take an event of a round."""
        row = self._rows.get(data.round_id)
        if isinstance(data, events.RoundOpened):
            self._opened(seq, data, row)
        elif row is None:
            if data.round_id not in self._strangers:
                name = type(data).__name__
                self._add("rounds", seq, f"{name} of {data.round_id}, which was never opened")
            self._strangers.add(data.round_id)
        else:
            self._of_round(seq, data, row)

    def _of_round(self, seq: int, data: Any, row: _Round) -> None:
        match data:
            case events.JudgingStarted():
                self._require_status(seq, data, row, "closed", "judging")
                row.status = "judging"
                self._require_base(seq, data, row, data.champion)
            case events.RoundDecided():
                self._require_status(seq, data, row, "judging")
                self._decided(seq, data, row)
            case events.RoundClosed():
                self._require_status(seq, data, row, "open")
                row.status = "closed"
                self._open.pop(row.node_id, None)
            case _:
                self._require_status(seq, data, row, "open")
                self._of_role(seq, data, row)

    def _of_role(self, seq: int, data: Any, row: _Round) -> None:
        match data:
            case events.RoleEntered():
                if fault := self._fault_of_entry(data, row):
                    self._add("rounds", seq, f"{data.round_id}: {fault}")
                row.entered.add(data.rival)
                row.awaited[data.rival] = data.task_id
            case events.CandidateAdmitted():
                if fault := self._fault_of_admission(data, row):
                    candidate_id = data.candidate.candidate_id
                    self._add("rounds", seq, f"{data.round_id}: {candidate_id} {fault}")
                row.awaited.pop(data.candidate.rival, None)
                standing = _Standing(data.candidate, data.task_id, data.worker_id)
                row.standings[data.candidate.candidate_id] = standing
            case events.RoleClosed():
                if row.awaited.pop(data.rival, None) != data.task_id:
                    detail = f"no {data.rival} is awaited from {data.task_id}"
                    self._add("rounds", seq, f"{data.round_id}: {detail}")

    def _opened(self, seq: int, data: events.RoundOpened, before: _Round | None) -> None:
        if before is not None:
            self._add("rounds", seq, f"{data.round_id} is opened again")
            return
        if data.node_id not in self._tree:
            self._add("rounds", seq, f"{data.round_id} is of {data.node_id}, which is no node yet")
        if data.node_id in self._open:
            detail = f"{data.round_id} is opened, while {self._open[data.node_id]} is open"
            self._add("rounds", seq, f"{detail} at {data.node_id}")
        if self._free.pop(data.index, None) != data.commitment:
            detail = f"{data.round_id}: commitment {data.index} was not deposited, or is used up"
            self._add("commitment", seq, detail)
        row = _Round(data.node_id, data.workload, data.index, data.commitment)
        self._rows[data.round_id] = row
        self._open[data.node_id] = data.round_id
        self._require_base(seq, data, row, data.base)

    def _require_status(self, seq: int, data: Any, row: _Round, *wanted: str) -> None:
        if row.status not in wanted:
            detail = f"{type(data).__name__} of {data.round_id}, which is {row.status}"
            self._add("rounds", seq, detail)

    def _require_base(self, seq: int, data: Any, row: _Round, base: Base | None) -> None:
        wanted = self._tree.base(row.node_id, row.workload)
        if base != wanted:
            detail = (
                f"{type(data).__name__} of {data.round_id} against {_base_name(base)}, while"
                f" {_base_name(wanted)} reigns"
            )
            self._add("base", seq, detail)

    def _fault_of_entry(self, data: events.RoleEntered, row: _Round) -> str:
        if data.rival in row.entered:
            return f"{data.task_id} enters as {data.rival}, a role that is taken"
        task = self._tasks.rows.get(data.task_id)
        if task is None:
            told = data.task_id in self._tasks.strangers
            return "" if told else f"{data.task_id} enters, which was never queued"
        if (task.node_id, task.workload) != (row.node_id, row.workload):
            return f"{data.task_id} enters, which is of another node or workload"
        if data.rival not in _rivals_of(task.role):
            return f"{data.task_id} enters as {data.rival}, but is {task.role}"
        return ""

    def _fault_of_admission(self, data: events.CandidateAdmitted, row: _Round) -> str:
        task = self._tasks.rows.get(data.task_id)
        if row.awaited.get(data.candidate.rival) != data.task_id:
            return f"is admitted, but no {data.candidate.rival} is awaited from {data.task_id}"
        if task is None or task.status != "completed":
            return f"is admitted, but {data.task_id} is not completed"
        if task.brought.get(data.candidate.candidate_id) != data.candidate:
            return f"is admitted, but {data.task_id} brought no such candidate"
        if task.worker_id != data.worker_id:
            return f"is admitted from {data.worker_id!r}; {task.worker_id!r} brought it"
        return ""

    def _decided(self, seq: int, data: events.RoundDecided, row: _Round) -> None:
        if not data.secret and row.index < self._withdrawn_before:
            if data.verdict != "void" or any(one.error is not None for one in data.candidates):
                self._add("commitment", seq, f"{data.round_id} was measured without its secret")
        elif not _opens(data.secret, row.commitment):
            self._add("commitment", seq, f"the secret of {data.round_id} does not open it")
        judged = {one.candidate_id for one in data.candidates}
        if judged != row.standings.keys():
            words = ", ".join(sorted(judged ^ row.standings.keys()))
            detail = f"{data.round_id}: judged, or standing, but not both: {words}"
            self._add("rounds", seq, detail)
        if (data.verdict == "promote") != bool(data.promoted):
            detail = f"{data.round_id} is decided {data.verdict}, promoted: {data.promoted!r}"
            self._add("promotion", seq, detail)
        if data.promoted and data.promoted not in row.standings:
            detail = f"{data.round_id} promotes {data.promoted}, which did not stand in it"
            self._add("promotion", seq, detail)
        elif data.promoted:
            self.due = _Due(seq, data.round_id, row, row.standings[data.promoted])
        row.status, row.standings, row.awaited, row.entered = "decided", {}, {}, set()

    def expect_promotion(self, seq: int, data: events.EventData) -> None:
        """Look whether what comes next is the promotion that is due."""
        if isinstance(data, events.ChampionPromoted):
            return
        if isinstance(data, events.WriterStarted):
            # The end may have been cut off in the middle of an append; if so, that was accepted.
            self._torn, self.due = self.due or self._torn, None
        elif isinstance(data, events.LossAccepted):
            self._torn = None
        else:
            self.miss_promotion(seq, type(data).__name__)

    def miss_promotion(self, seq: int, found: str) -> None:
        """Something else came: no promotion may be due."""
        if due := self.due or self._torn:
            promoted = due.standing.candidate.candidate_id
            detail = f"{due.round_id} promoted {promoted} at {due.seq}; {found} follows"
            self._add("promotion", seq, detail)
        self.due = self._torn = None

    def promoted(self, seq: int, data: events.ChampionPromoted) -> None:
        """Take a new champion."""
        due, self.due = self.due, None
        name = data.champion.candidate_id
        if due is None or due.round_id != data.champion.round_id:
            detail = f"{name} becomes champion without a verdict right before that says so"
            self._add("promotion", seq, detail)
        elif wrong := _differences(data, due):
            detail = f"{name} becomes champion, unlike the candidate promoted at {due.seq}: {wrong}"
            self._add("promotion", seq, detail)
        before = self._tree.base(data.node_id, data.champion.workload)
        if data.instead_of != (before.candidate_id if before else ""):
            detail = f"{name} replaces {data.instead_of!r}, while {_base_name(before)} reigns"
            self._add("base", seq, detail)
        self._tree.reigns(seq, data.champion)


def _differences(data: events.ChampionPromoted, due: _Due) -> str:
    """In which fields a champion is not the candidate that was promoted."""
    one, stood = data.champion, due.standing
    pairs = {
        "node": ((data.node_id, one.node_id), (due.row.node_id, due.row.node_id)),
        "workload": (one.workload, due.row.workload),
        "candidate": (one.candidate_id, stood.candidate.candidate_id),
        "task": (one.task_id, stood.task_id),
        "worker": (one.worker_id, stood.worker_id),
        "role": (one.rival, stood.candidate.rival),
        "manifest": (one.manifest, stood.candidate.manifest),
        "writer": (one.writer, stood.candidate.writer),
        "weights": (one.weights_sha256, stood.candidate.weights_sha256),
    }
    return ", ".join(name for name, (found, wanted) in pairs.items() if found != wanted)


def _opens(secret: str, commitment: str) -> bool:
    try:
        return hashlib.sha256(bytes.fromhex(secret)).hexdigest() == commitment
    except ValueError:
        return False


# What is stored


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


class Stored(msgspec.Struct):
    """How much was read and found as it should be, or not."""

    artifacts: int = 0
    bytes: int = 0


async def check_artifacts(
    store: chunks.ChunkStore, named: Iterable[Named], findings: Findings
) -> Stored:
    """Read everything the log names, chunk by chunk, and compare it with its digests.

    A file that several artifacts share is read once. Raises Unavailable.
    """
    stored = Stored()
    read: set[tuple[str, str, tuple[str, ...]]] = set()
    for one in named:
        stored.artifacts += 1
        try:
            if not one.is_manifest:
                stored.bytes += len(await store.get(chunks.DESK, one.digest))
                continue
            manifest = chunks.decode_manifest(await store.get(chunks.DESK, one.digest))
            _require_as_named(manifest, one)
            for file in manifest.files:
                identity = (manifest.writer, file.sha256, tuple(file.chunks))
                if identity not in read:
                    stored.bytes += await _read_file(store, manifest.writer, file)
                    read.add(identity)
        except (errors.NotFound, errors.ArtifactError) as error:
            findings.add("artifacts", one.seq, f"{one.what} ({one.digest[:12]}…): {error}")
    return stored


def _require_as_named(manifest: chunks.Manifest, named: Named) -> None:
    if manifest.writer != named.writer:
        raise errors.ArtifactError(
            f"its manifest is of {manifest.writer!r}, the log says {named.writer!r}"
        )
    if named.bytes >= 0 and manifest.bytes != named.bytes:
        raise errors.ArtifactError(
            f"its manifest has {manifest.bytes} bytes, the log says {named.bytes}"
        )


async def _read_file(store: chunks.ChunkStore, writer: str, file: chunks.File) -> int:
    """The bytes of a file, which are what its manifest says. Raises NotFound, ArtifactError."""
    total, whole = 0, hashlib.sha256()
    for digest in file.chunks:
        piece = await store.get(writer, digest)  # which are what their name says
        total += len(piece)
        whole.update(piece)
    if total != file.bytes:
        raise errors.ArtifactError(
            f"{file.name} is said to have {file.bytes} bytes, its chunks have {total}"
        )
    if whole.hexdigest() != file.sha256:
        raise errors.ArtifactError(f"{file.name} does not hash to what its manifest says")
    return total
