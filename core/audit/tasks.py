"""The life of tasks, told again: who held which, and who spoke for it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core import events, subjects
from core.audit import losses
from core.audit.artifacts import Named
from core.audit.findings import Add
from core.audit.losses import Losses
from core.audit.tree import Tree, base_name
from core.chunks import DESK
from core.events import Base, Candidate, Checkpoint, Rival, Role, Workload

PARENTS_MAX = 4
_ENDED = frozenset({"completed", "failed", "cancelled"})


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
    method: str = "auto"
    base: Base | None = None
    kept: dict[Rival, tuple[int, Checkpoint]] = field(default_factory=dict)
    brought: dict[str, Candidate] = field(default_factory=dict)


class Tasks:
    """All tasks, in as much as rules speak of them."""

    def __init__(self, add: Add, tree: Tree, lost: Losses) -> None:
        self._add_found = add
        self._tree = tree
        self._losses = lost
        self._task_id = ""
        """Of whose events is told now."""
        self.unseen: dict[str, str] = {}
        """Candidates of which only a round tells, and the tasks that lost the records of them."""
        self._named: dict[str, Named] = {}
        self._models: dict[str, tuple[tuple[str, Workload], Base]] = {}
        """Candidates, with the node and the work they were made for."""
        self._kept: dict[str, set[tuple[str, Rival]]] = {}
        """By manifest, of which rivals of which tasks it is the last checkpoint."""
        self.swept: set[str] = set()
        """What was swept while it was needed: that it is gone is told already."""
        self.strangers: set[str] = set()
        """Tasks that are known only by what should have followed their first event."""
        self.rows: dict[str, _Task] = {}

    def named(self) -> Iterator[Named]:
        """What tasks brought, and the last checkpoint of each of their rivals, unless they are
        completed: then nobody goes on from there."""
        yield from self._named.values()
        for task_id, task in self.rows.items():
            for rival, (seq, point) in task.kept.items():
                what = f"{rival}'s checkpoint {point.step} of {task_id}"
                yield Named(seq, what, point.manifest, point.writer, point.bytes)

    def needs(self, digest: str) -> str:
        """What a manifest is needed as, in words; "" where it is not."""
        if one := self._named.get(digest):
            return one.what
        for task_id, rival in self._kept.get(digest, ()):
            return f"{rival}'s last checkpoint of {task_id}"
        return ""

    def cause_of_need(self, digest: str) -> int:
        """The lost record that a manifest may only seem to be needed for, 0 for none."""
        return self._losses.of(*(losses.task(one) for one, _ in self._kept.get(digest, ())))

    def _keep(self, seq: int, task_id: str, task: _Task, point: Checkpoint) -> None:
        if before := task.kept.get(point.rival):
            self._let_go(task_id, before[1])
        task.kept[point.rival] = (seq, point)
        self._kept.setdefault(point.manifest, set()).add((task_id, point.rival))
        self.swept.discard(point.manifest)

    def _let_go(self, task_id: str, point: Checkpoint) -> None:
        keepers = self._kept[point.manifest]
        keepers.discard((task_id, point.rival))
        if not keepers:
            del self._kept[point.manifest]

    def _add(self, rule: str, seq: int, detail: str, *rests_on: str) -> None:
        """Add a violation of this task; it may rest on other aggregates too."""
        self._add_found(rule, seq, detail, self._losses.of(losses.task(self._task_id), *rests_on))

    def take(self, seq: int, data: Any) -> None:
        """Take an event of a task."""
        self._task_id = data.task_id
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
            detail = f"{data.task_id} is for {data.node_id}, which is no node yet"
            self._add("graph", seq, detail, losses.node(data.node_id))
        self.rows[data.task_id] = _Task(data.node_id, data.role, data.workload, method=data.method)
        self._require_parents(seq, data)

    def _require_parents(self, seq: int, data: events.TaskQueued) -> None:
        """What a merge is made of has to be what tasks of this node brought."""
        work = (data.node_id, data.workload)
        for one in data.parents:
            if self._models.get(one.candidate_id) != (work, one):
                detail = f"{data.task_id} is to merge {one.candidate_id}, which no task of"
                source = losses.task(self.unseen.get(one.candidate_id, ""))
                detail = f"{detail} {data.node_id} brought for the same work"
                self._add("base", seq, detail, source)
        if data.parents and not 2 <= len(data.parents) <= PARENTS_MAX:
            self._add("base", seq, f"{data.task_id} merges {len(data.parents)} models")

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
        if "evolver" in rivals_of(task.role) or _is_student(task):
            # Who goes on goes on from where it began.
            wanted = task.base if task.kept else self._tree.base(task.node_id, task.workload)
        if data.base != wanted:
            detail = (
                f"attempt {data.attempt} of {data.task_id} starts from {base_name(data.base)},"
                f" not from {base_name(wanted)}"
            )
            own = self._losses.of(losses.task(data.task_id))
            reign = self._losses.unaccepted_of(losses.node(task.node_id))
            self._add_found("base", seq, detail, own or reign)
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
                self._keep(seq, data.task_id, task, data.checkpoint)
            case events.ClaimRevived():
                task.status, task.claim_state = "running", "open"
            case events.ClaimExpired():
                task.status, task.claim_state = "queued", "expired"
            case events.ClaimReleased():
                task.status, task.claim_state = "queued", "released"
            case events.AttemptFailed():
                task.status, task.claim_state = "queued", "failed"
                self._name_telemetry(seq, data)
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
            base = Base(
                candidate_id=one.candidate_id,
                manifest=one.manifest,
                writer=one.writer,
                weights_sha256=one.weights_sha256,
            )
            self._models[one.candidate_id] = ((task.node_id, task.workload), base)
            what = f"candidate {one.candidate_id} of {data.task_id}"
            self._name(Named(seq, what, one.manifest, one.writer, one.bytes))
        if data.metrics_digest:
            self._name(Named(seq, f"metrics of {data.task_id}", data.metrics_digest, DESK))
        if data.artifact_digest:
            self._name(Named(seq, f"payload of {data.task_id}", data.artifact_digest, DESK))
        self._name_telemetry(seq, data)
        for _, point in task.kept.values():
            self._let_go(data.task_id, point)
        task.kept = {}

    def _name_telemetry(self, seq: int, data: events.AttemptFailed | events.TaskCompleted) -> None:
        if data.telemetry_digest:
            self._name(Named(seq, f"telemetry of {data.task_id}", data.telemetry_digest, DESK))

    def _name(self, one: Named) -> None:
        self._named.setdefault(one.digest, one)
        self.swept.discard(one.digest)

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


def _is_student(task: _Task) -> bool:
    return (task.role, task.method) == ("reinventor", "distill")


def rivals_of(role: Role) -> tuple[Rival, ...]:
    """The candidates that a task of this role may bring."""
    return ("evolver", "reinventor") if role == "dual" else (role,)
