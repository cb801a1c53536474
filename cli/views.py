"""What people's verbs show of a server's answers.

Every field may be missing: a server somewhat older or newer than this program is shown as far as
it is understood.
"""

import msgspec


class TaskCounts(msgspec.Struct):
    """Tasks by status."""

    queued: int = 0
    running: int = 0
    completed: int = 0
    total: int = 0


class Network(msgspec.Struct):
    """How many of everything."""

    nodes: int = 0
    workers_total: int = 0
    workers_online: int = 0
    tasks: TaskCounts = msgspec.field(default_factory=TaskCounts)


class Worker(msgspec.Struct):
    """A worker, and what it holds."""

    worker_id: str = ""
    hostname: str | None = None
    status: str | None = None
    online: bool | None = None
    last_seen: str | None = None
    via: str | None = None
    lane: str | None = None
    task_id: str | None = None
    tasks: list[str] = []
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None

    @property
    def held(self) -> str:
        """The tasks it works on."""
        return self.task_id or " ".join(self.tasks)

    @property
    def progress(self) -> str:
        """How far its task is."""
        if self.step is None:
            return ""
        return f"{self.step}/{self.total_steps}" if self.total_steps else str(self.step)


class Result(msgspec.Struct):
    """What a worker delivered."""

    worker_id: str | None = None
    metrics: dict[str, object] = {}
    artifact_name: str | None = None


class Attempt(msgspec.Struct):
    """One claim of a task and how it ended."""

    attempt: int = 0
    worker_id: str | None = None
    claimed_at: str | None = None
    ended_at: str | None = None
    outcome: str | None = None
    state: str | None = None
    reason: str | None = None
    resumed_from: int | None = None


class LossPoint(msgspec.Struct):
    """A training loss as its worker reported it."""

    rival: str = ""
    step: int = 0
    loss: float | None = None


class Workload(msgspec.Struct):
    """What a node trains, and whether an ancestor lent it."""

    specialist: str | None = None
    parameters: dict[str, object] = {}
    inherited: bool = False


class Base(msgspec.Struct):
    """The champion that something starts from or is measured against."""

    candidate_id: str | None = None
    weights_sha256: str | None = None


class Task(msgspec.Struct):
    """A unit of training; the later fields come only with `task show`."""

    task_id: str = ""
    node_id: str | None = None
    topic: str | None = None
    priority: int | None = None
    status: str | None = None
    assigned_worker: str | None = None
    created_at: str | None = None
    claimed_at: str | None = None
    completed_at: str | None = None
    role: str | None = None
    method: str | None = None
    seed: int | None = None
    budget_seconds: float | None = None
    round_id: str | None = None
    result: Result | None = None
    workload: Workload | None = None
    base: Base | None = None
    attempts: list[Attempt] = []
    losses: list[LossPoint] = []
    reasons: list[str] = []
    log_tail: str | None = None


class Champion(msgspec.Struct):
    """The model a node serves, measured on hidden cases."""

    candidate_id: str | None = None
    node_id: str | None = None
    round_id: str | None = None
    task_id: str | None = None
    worker_id: str | None = None
    role: str | None = None
    weights_sha256: str | None = None
    error: float | None = None
    baseline_error: float | None = None
    evidence_rate: float | None = None
    below_baseline: bool | None = None
    promoted_at: str | None = None
    params: int | None = None
    bytes: int | None = None


class Reasons(msgspec.Struct):
    """Why, in words."""

    en: str | None = None
    ar: str | None = None


class Candidate(msgspec.Struct):
    """A model standing in a round."""

    candidate_id: str | None = None
    task_id: str | None = None
    worker_id: str | None = None
    role: str | None = None
    weights_sha256: str | None = None
    verdict: str | None = None
    reasons: Reasons | None = None


class Round(msgspec.Struct):
    """Candidates of one node against one base, and the verdict."""

    round_id: str = ""
    node_id: str | None = None
    status: str | None = None
    verdict: str | None = None
    commitment: str | None = None
    secret: str | None = None
    base: Base | None = None
    candidates: list[Candidate] = []
    reasons: Reasons | None = None
    decided_at: str | None = None


class Lineage(msgspec.Struct):
    """One champion of a node's past and present."""

    candidate_id: str | None = None
    round_id: str | None = None
    role: str | None = None
    error: float | None = None
    promoted_at: str | None = None


class Node(msgspec.Struct):
    """A specialization; the later fields come only with `node show`."""

    node_id: str = ""
    name: str | None = None
    description: str | None = None
    parent_id: str | None = None
    path: str | None = None
    ai_current_evolver: str | None = None
    ai_zero_reinventor: str | None = None
    children: list[str] = []
    workload: Workload | None = None
    champion: Champion | None = None
    rounds: list[Round] = []
    lineage: list[Lineage] = []


class Graph(msgspec.Struct):
    """The whole tree, parents before their children."""

    nodes: list[Node] = []
