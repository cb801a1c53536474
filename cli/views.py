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


class Unfit(msgspec.Struct, frozen=True):
    """What a worker found itself unfit for, and why."""

    node_id: str = ""
    role: str = ""
    method: str = ""
    reason: str = ""


class Claims(msgspec.Struct, frozen=True):
    """How many of a worker's own measurements were held against a judge's, how many were off, and
    whether they keep being so."""

    judged: int = 0
    off: int = 0
    doubtful: bool = False


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
    rival: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    samples_per_second: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None
    unfit: list[Unfit] = []
    pause: str = ""
    price_per_hour: float | None = None
    claims: Claims = Claims()

    @property
    def held(self) -> str:
        """The tasks it works on."""
        return self.task_id or " ".join(self.tasks)

    @property
    def task(self) -> str:
        """The task it works on now, "" for none."""
        return self.task_id or (self.tasks[-1] if self.tasks else "")

    @property
    def is_online(self) -> bool:
        """Whether it can be reckoned with."""
        return self.online is not False and self.status != "offline"

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


class RecentRounds(msgspec.Struct, frozen=True):
    """A rival's rounds, older ones at less weight, and what it gained in them."""

    rounds: float = 0.0
    won: float = 0.0
    replaced: float = 0.0
    gain: float = 0.0


class RivalAccount(msgspec.Struct):
    """What a rival has won and cost."""

    node_id: str | None = None
    rival: str = ""
    rounds: int = 0
    won: int = 0
    lost: int = 0
    absent: int = 0
    error_factor: float | None = None
    device_seconds: float = 0.0
    priced_seconds: float = 0.0
    cost: float | None = None
    recent: RecentRounds = RecentRounds()


class TelemetryPoint(msgspec.Struct):
    """A moment of a rival's training."""

    step: int = 0
    at: str | None = None
    loss: float | None = None
    validation: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None


class RivalTelemetry(msgspec.Struct):
    """One rival's training, by step."""

    rival: str = ""
    total_steps: int = 0
    points: list[TelemetryPoint] = []

    @property
    def losses(self) -> list[tuple[float, float]]:
        """Steps and losses, of the points that have one."""
        return [(one.step, one.loss) for one in self.points if one.loss is not None]


class Telemetry(msgspec.Struct):
    """How a task goes, or went."""

    status: str | None = None
    whole: bool = True
    rivals: list[RivalTelemetry] = []
    next: str | None = None


class TextPart(msgspec.Struct):
    """A part of a corpus."""

    documents: int = 0
    bytes: int = 0


class Corpus(msgspec.Struct):
    """The texts that a node trains on."""

    name: str = ""
    manifest: str = ""
    hidden: str = ""
    parts: dict[str, TextPart] = {}

    @property
    def documents(self) -> int:
        """Of all parts."""
        return sum(part.documents for part in self.parts.values())

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts.values())


class BaseModel(msgspec.Struct):
    """The language model that adapters are trained for."""

    name: str = ""
    digest: str = ""


class Workload(msgspec.Struct):
    """What a node trains, and whether an ancestor lent it."""

    specialist: str | None = None
    parameters: dict[str, object] = {}
    inherited: bool = False
    corpus: Corpus | None = None
    base_model: BaseModel | None = None


class BoundCorpus(msgspec.Struct):
    """A node, and what it trains."""

    node_id: str = ""
    name: str | None = None
    workload: Workload = msgspec.field(default_factory=Workload)

    @property
    def corpus(self) -> Corpus:
        """The corpus that it trains on."""
        return self.workload.corpus or Corpus()


class OutdatedTasks(msgspec.Struct):
    """How many tasks of a node are still to train what it trained before."""

    node_id: str = ""
    queued: int = 0
    running: int = 0


class Base(msgspec.Struct):
    """A model that something starts from, learns from or is made of."""

    candidate_id: str | None = None
    weights_sha256: str | None = None


class Checkpoint(msgspec.Struct):
    """A stored state of training, and how it is trained."""

    rival: str = ""
    method: str = ""


class Brought(msgspec.Struct):
    """A model that a task brought, how it was made and why so."""

    rival: str = ""
    method: str = ""
    method_reason: str = ""


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
    parents: list[Base] = []
    resume: list[Checkpoint] = []
    candidates: list[Brought] = []
    attempts: list[Attempt] = []
    losses: list[LossPoint] = []
    waits: list[str] = []
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


class Budget(msgspec.Struct):
    """What somebody who serves models can afford, and who reigns for it."""

    name: str = ""
    latency_max: float | None = None
    bytes_max: int | None = None
    champion: Champion | None = None


class Gates(msgspec.Struct):
    """By which bounds the candidates of a node are judged."""

    inherited: bool = False
    better_ratio: float | None = None
    margin: float | None = None
    evidence_drop: float | None = None
    latency_ratio: float | None = None
    size_ratio: float | None = None
    memory_ratio: float | None = None
    shifted_ratio: float | None = None
    cheaper_latency: float | None = None
    cheaper_size: float | None = None
    exchange: float | None = None
    exchange_most: float | None = None
    budgets: list[Budget] = []


class Check(msgspec.Struct):
    """One gate's verdict on a candidate."""

    name: str = ""
    verdict: str = ""
    value: float | None = None
    bound: float | None = None
    lower: float | None = None
    upper: float | None = None


class Latency(msgspec.Struct):
    """How long a model takes, in times of the reference kernel and of the champion."""

    ratio: float = 0.0
    lower: float | None = None
    upper: float | None = None
    against: float | None = None


class Weighed(msgspec.Struct):
    """A model on the scales of a round."""

    candidate_id: str | None = None
    error: float | None = None
    evidence_rate: float | None = None
    params: int | None = None
    bytes: int | None = None
    memory_bytes: int | None = None
    latency: Latency | None = None
    shifted_error: float | None = None
    is_front: bool = False


class Recommendation(msgspec.Struct):
    """What a round comes to."""

    action: str = ""
    candidate_id: str | None = None
    reasons: Reasons | None = None


class BudgetVerdict(msgspec.Struct):
    """What a round means to the champion of a budget."""

    budget: str = ""
    against: str | None = None
    promoted: str | None = None
    reasons: Reasons | None = None


class RoundEntry(msgspec.Struct):
    """A role of a round."""

    role: str = ""
    task_id: str | None = None
    state: str | None = None
    reason: str | None = None


class CandidateRecord(msgspec.Struct):
    """A candidate of a node, from its topic to its bytes."""

    candidate_id: str | None = None
    role: str | None = None
    task_id: str | None = None
    topic: str | None = None
    method: str | None = None
    method_reason: str | None = None
    base: Base | None = None
    parents: list[Base] = []
    attempts: list[Attempt] = []
    worker_id: str | None = None
    completed_at: str | None = None
    round_id: str | None = None
    round_status: str | None = None
    verdict: str | None = None
    reasons: Reasons | None = None
    error: float | None = None
    evidence_rate: float | None = None
    params: int | None = None
    bytes: int | None = None
    weights_sha256: str | None = None
    manifest: str | None = None
    reigns: list[str] = []


class Chosen(msgspec.Struct):
    """Who reigns once a person has chosen, and who did until then."""

    node_id: str = ""
    budget: str = ""
    champion: Champion = msgspec.field(default_factory=Champion)
    instead_of: Champion | None = None


class Retired(msgspec.Struct):
    """Whose reign for a budget other gates ended."""

    node_id: str = ""
    budget: str = ""
    candidate_id: str = ""


class Question(msgspec.Struct):
    """A model that waits for a person to decide."""

    round_id: str = ""
    candidate_id: str = ""
    asked_at: str | None = None
    error: float | None = None
    champion_error: float | None = None
    ratio: float | None = None
    bytes: int = 0
    reasons: Reasons | None = None


class AskingNode(msgspec.Struct):
    """A node at which something waits for a person."""

    node_id: str = ""


class Claimed(msgspec.Struct):
    """What a worker measured of its own model."""

    loss: float | None = None
    evidence_rate: float | None = None


class Candidate(msgspec.Struct):
    """A model standing in a round."""

    candidate_id: str | None = None
    task_id: str | None = None
    worker_id: str | None = None
    role: str | None = None
    weights_sha256: str | None = None
    verdict: str | None = None
    reasons: Reasons | None = None
    gates: list[Check] = []
    error: float | None = None
    evidence_rate: float | None = None
    claimed: Claimed | None = None


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
    opened_at: str | None = None
    decided_at: str | None = None
    closes_at: str | None = None
    entries: list[RoundEntry] = []
    close_reason: str | None = None
    judge: str | None = None
    look: int = 0
    champion: Base | None = None
    best: Base | None = None
    alpha: float | None = None
    cases: int | None = None
    champion_error: float | None = None
    baseline_error: float | None = None
    weighed: list[Weighed] = []
    recommendation: Recommendation | None = None
    budgets: list[BudgetVerdict] = []


class Lineage(msgspec.Struct):
    """One champion of a node's past and present."""

    candidate_id: str | None = None
    instead_of: str | None = None
    round_id: str | None = None
    role: str | None = None
    error: float | None = None
    baseline_error: float | None = None
    evidence_rate: float | None = None
    params: int | None = None
    bytes: int | None = None
    promoted_at: str | None = None
    retired_at: str | None = None
    reason: str | None = None
    by: str | None = None
    choice: str | None = None
    because: str | None = None


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
    budgets: list[Budget] = []


class Graph(msgspec.Struct):
    """The whole tree, parents before their children."""

    nodes: list[Node] = []


class Sweep(msgspec.Struct):
    """What a sweep of the artifact store came to, or would."""

    chunks: int = 0
    bytes: int = 0
    spared: int = 0
    artifacts: int = 0
    lost: int = 0
    live_chunks: int = 0
    live_bytes: int = 0
    unfinished: str | None = None
