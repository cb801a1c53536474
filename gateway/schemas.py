"""Requests and answers of the HTTP interface, and so its OpenAPI document.

Requests are built by `gateway.bodies` only, which reads the annotations below: types, bounds,
`clamped` integers and `fault` functions. Answers are encoded as they stand: every key always, in
the order written here. Times are ISO 8601 texts (`core.events.isoformat`).
"""

import unicodedata
from typing import Annotated, Literal, TypeAlias

import msgspec

from core.methods import PARENTS_MAX, Method

ARTIFACT_NAME_BYTES_MAX = 255
NAME_CHARS_MAX = 512
PAGE_MAX = 1_000
SEED_MAX = 2**63 - 1


def clamped(low: int, high: int, description: str) -> msgspec.Meta:
    """An integer that is taken to the nearest bound instead of refused."""
    return msgspec.Meta(description=description, extra={"clamp": (low, high)})


def display_name_fault(name: str) -> str | None:
    """Why a name may not stand for an artifact, or None. It is shown, never opened as a path."""
    if name in (".", ".."):
        return f"artifact_name is {name!r}, a folder; give a plain file name"
    if "\x00" in name:
        return "artifact_name: embedded null byte; give a plain file name"
    if "/" in name or "\\" in name:
        return "artifact_name holds a path separator; give a plain file name without folders"
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        return "artifact_name holds a control character; give a name that can be shown"
    size = len(name.encode())
    if size > ARTIFACT_NAME_BYTES_MAX:
        return (
            f"artifact_name takes {size} bytes in UTF-8, more than the {ARTIFACT_NAME_BYTES_MAX} "
            f"a name may have; shorten it"
        )
    return None


def empty_object() -> msgspec.Raw:
    return msgspec.Raw(b"{}")


Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
"""An id that somebody chose, or a name that paths are made of."""

JsonObject: TypeAlias = Annotated[
    msgspec.Raw, msgspec.Meta(description="Any JSON object.", extra_json_schema={"type": "object"})
]
"""An object kept as its compact UTF-8 JSON, so that no number in it ever changes."""

Parent: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]
Page: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)]
Role: TypeAlias = Literal["dual", "evolver", "reinventor"]
Pause: TypeAlias = Literal["", "drain", "pause"]
Device: TypeAlias = Literal["cpu", "cuda"]
TaskStatus: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled"]
RoundStatus: TypeAlias = Literal["open", "closed", "judging", "decided"]


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of what is asked; unknown fields are ignored."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what is answered."""


class Answer(Part, frozen=True, kw_only=True):
    """Base of the envelopes."""

    status: Literal["ok"] = "ok"


class Nothing(Request, frozen=True, kw_only=True):
    """A request without body or query."""


class Query(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of queries beyond the nine routes: there a parameter that is not known is refused, since
    an answer that ignores it would be taken for another."""


class NoQuery(Query, frozen=True, kw_only=True):
    """A question without parameters."""


# ── requests of the nine routes ──


class Bind(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node is to train: a specialist, by default its nearest ancestor's, and the parameters
    in which it differs."""

    specialist: str = ""
    parameters: JsonObject = msgspec.field(default_factory=empty_object)


class ExpandRequest(Request, frozen=True, kw_only=True):
    """Grow a specialization below another; without `workload` it trains what its parent trains."""

    parent_id: str
    name: Name
    description: str = ""
    workload: Bind | None = None


class RegisterRequest(Request, frozen=True, kw_only=True):
    """A worker introduces itself; its whole record is replaced."""

    worker_id: Name
    hostname: str
    capabilities: JsonObject = msgspec.field(default_factory=empty_object)


class HeartbeatRequest(Request, frozen=True, kw_only=True):
    """A sign of life; empty capabilities keep the old ones."""

    worker_id: Name
    status: str = "online"
    capabilities: JsonObject = msgspec.field(default_factory=empty_object)


class Requires(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task needs of a device. A need that is not known here is refused, not ignored."""

    device: Device | None = None
    memory_gb: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class EnqueueRequest(Request, frozen=True, kw_only=True):
    """Ask for training. `node_id` null or empty means the root.

    `parents` are the models that a merge is made of, by candidate id or weights_sha256; without
    any they are the node's champion and what its last round judged.
    """

    topic: str
    node_id: str | None = None
    priority: Annotated[int, clamped(1, 10, "Brought into 1..10; higher runs earlier.")] = 5
    role: Role = "dual"
    method: Method = "auto"
    budget_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] | None = None
    requires: Requires | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] | None = None
    parents: Annotated[list[Parent], msgspec.Meta(max_length=PARENTS_MAX)] = []


class ClaimRequest(Request, frozen=True, kw_only=True):
    """A worker asks for the best task for it."""

    worker_id: Name


class CompleteRequest(Request, frozen=True, kw_only=True):
    """A worker delivers the result of a task it holds."""

    task_id: str
    worker_id: Name
    metrics: JsonObject = msgspec.field(default_factory=empty_object)
    artifact_name: Annotated[
        str | None,
        msgspec.Meta(
            description="A name to show, never a path.", extra={"fault": display_name_fault}
        ),
    ] = None
    artifact_payload: JsonObject | None = None


class ThinkRequest(Request, frozen=True, kw_only=True):
    """Ask both AIs of a node for a plan."""

    node_id: str
    prompt: str


# ── requests of the other routes ──


class JoinRequest(Request, frozen=True, kw_only=True):
    """An agent asks for credentials to the key pair it made; `public_key` is an nkey (U…)."""

    worker_id: Name
    public_key: str
    protocol: int
    hostname: str = ""
    capabilities: JsonObject = msgspec.field(default_factory=empty_object)


class CancelRequest(Request, frozen=True, kw_only=True):
    """Withdraw a task, saying why or not."""

    reason: str = ""


class MissingRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of these chunks of a corpus, their bytes by SHA-256, are not stored yet?"""

    chunks: JsonObject


class ChunkRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Store one chunk of a corpus, in base64."""

    data: str


class BaseModelRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The language model that adapters are trained for, as devices have it."""

    name: Name
    digest: str
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class CorpusRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let a node train on a corpus whose chunks are stored. `public` and `hidden` are manifests."""

    name: Name
    public: JsonObject
    hidden: JsonObject
    base_model: BaseModelRequest | None = None


class TasksQuery(Query, frozen=True, kw_only=True):
    """Which tasks to list; `after` is the `next` of the page before, or a task_id. `closed`: those
    alone that are not done and given to nobody, since a record of theirs cannot be read. `newest`:
    from the newest back to the oldest, and `after` goes on to older ones."""

    status: TaskStatus | None = None
    node_id: str | None = None
    closed: Literal["true", "false"] = "false"
    newest: Literal["true", "false"] = "false"
    after: str | None = None
    limit: Page = 100


class TelemetryQuery(Query, frozen=True, kw_only=True):
    """From where on; `after` is the `next` of the answer before, and without it all is told."""

    after: str | None = None


class WorkersQuery(Query, frozen=True, kw_only=True):
    """Which workers to list: all, or as many as `limit` says; `after` is a worker_id to go on
    after. They stand in the order in which they first came."""

    after: str | None = None
    limit: Page | None = None


class RivalsQuery(Query, frozen=True, kw_only=True):
    """Of which specialization; without one, all. `after` is the `next` of the page before."""

    node_id: str | None = None
    after: str | None = None
    limit: Page = 1000


class RefusalsQuery(Query, frozen=True, kw_only=True):
    """Which refusals to list; `after` is the `next` of the page before."""

    after: str | None = None
    limit: Page = 100


# ── answers of the nine routes ──


class TaskCounts(Part, frozen=True, kw_only=True):
    """Tasks by status, judging not among them."""

    queued: int
    running: int
    completed: int
    total: int


class Network(Part, frozen=True, kw_only=True):
    """How many of everything."""

    nodes: int
    workers_total: int
    workers_online: int
    tasks: TaskCounts


class StatusAnswer(Answer, frozen=True, kw_only=True):
    """The state of the network in figures."""

    network: Network


class Node(Part, frozen=True, kw_only=True):
    """One specialization of the tree."""

    node_id: str
    name: str
    description: str
    parent_id: str | None
    depth: int
    path: str
    ai_current_evolver: str
    ai_zero_reinventor: str
    children: list[str]


class Graph(Part, frozen=True, kw_only=True):
    """The tree, its nodes in the order they grew."""

    nodes: list[Node]
    roots: list[Node]
    total_nodes: int


class GraphAnswer(Answer, frozen=True, kw_only=True):
    """The whole tree."""

    graph: Graph


class NodeAnswer(Answer, frozen=True, kw_only=True):
    """The node that grew."""

    node: Node


class Worker(Part, frozen=True, kw_only=True):
    """A worker as its peers see it."""

    worker_id: str
    hostname: str
    capabilities: JsonObject
    status: str
    last_seen: str


class WorkerAnswer(Answer, frozen=True, kw_only=True):
    """The worker as it stands now."""

    worker: Worker


class TaskResult(Part, frozen=True, kw_only=True):
    """The first result of a task."""

    worker_id: str
    metrics: JsonObject
    artifact_name: str | None
    artifact_uploaded: bool
    completed_at: str


class Task(Part, frozen=True, kw_only=True):
    """A unit of training."""

    task_id: str
    node_id: str
    topic: str
    priority: int
    status: TaskStatus
    assigned_worker: str | None
    created_at: str
    updated_at: str
    result: TaskResult | None


class TaskAnswer(Answer, frozen=True, kw_only=True):
    """The task as it stands now."""

    task: Task


class ClaimAnswer(Answer, frozen=True, kw_only=True):
    """The claimed task, or null when there is none for this worker."""

    task: Task | None


class Plan(Part, frozen=True, kw_only=True):
    """What one AI of a node would do."""

    ai: str
    focus: str
    plan: list[str]
    prompt: str


class Thought(Part, frozen=True, kw_only=True):
    """Both AIs of a node on the same prompt."""

    node_id: str
    node_name: str
    current_evolution_thought: Plan
    zero_reinvention_thought: Plan


class ThoughtAnswer(Answer, frozen=True, kw_only=True):
    """What the AIs of a node think."""

    thought: Thought


# ── answers of the other routes ──


class NatsAddress(Part, frozen=True, kw_only=True):
    """How an agent reaches NATS: a path below this server, or directly."""

    path: str
    direct: str | None


class Agent(Part, frozen=True, kw_only=True):
    """What an agent needs to connect. `token` names it in NATS subjects."""

    worker_id: str
    token: str
    jwt: str
    nats: NatsAddress
    lanes: list[str]
    heartbeat_seconds: float


class JoinAnswer(Answer, frozen=True, kw_only=True):
    """Credentials of an agent."""

    agent: Agent


class TextPart(Part, frozen=True, kw_only=True):
    """A part of a corpus: its documents, and their bytes of UTF-8."""

    documents: int
    bytes: int


class BaseModel(Part, frozen=True, kw_only=True):
    """A language model that devices have of their own."""

    name: str
    digest: str
    bytes: int


class Corpus(Part, frozen=True, kw_only=True):
    """The texts that a node trains on. `manifest` and `hidden` are digests of two artifacts; the
    parts are `training`, `validation` and `hidden`."""

    name: str
    manifest: str
    hidden: str
    parts: dict[str, TextPart]


class Workload(Part, frozen=True, kw_only=True):
    """What a node trains, and whether an ancestor lent it; the last two only where it has them."""

    specialist: str
    parameters: dict[str, float]
    inherited: bool
    corpus: Corpus | msgspec.UnsetType = msgspec.UNSET
    base_model: BaseModel | msgspec.UnsetType = msgspec.UNSET


class Base(Part, frozen=True, kw_only=True):
    """A model that something starts from, learns from, is made of, or is measured against."""

    candidate_id: str
    weights_sha256: str
    manifest: str


class Attempt(Part, frozen=True, kw_only=True):
    """One claim of a task and how it ended."""

    attempt: int
    worker_id: str
    via: str
    state: str
    reason: str
    claimed_at: str
    ended_at: str | None
    resumed_from: int


class TaskCheckpoint(Part, frozen=True, kw_only=True):
    """A stored state that the next attempt would go on from; `method` is what its worker chose."""

    rival: str
    step: int
    total_steps: int
    manifest: str
    method: str


class TaskCandidate(Part, frozen=True, kw_only=True):
    """A model that the task brought, how its worker made it, and why so."""

    candidate_id: str
    rival: str
    weights_sha256: str
    manifest: str
    bytes: int
    method: str
    method_reason: str


class LossPoint(Part, frozen=True, kw_only=True):
    """A training loss as its worker reported it."""

    rival: str
    step: int
    loss: float


class TelemetryPoint(Part, frozen=True, kw_only=True):
    """A moment of a rival's training; null is what is not known. `validation` is the mean error on
    the public validation cases. `utilisation` is the share of a GPU's time that it worked, and of a
    CPU how many processors were in use."""

    step: int
    at: str
    loss: float | None
    validation: float | None
    learning_rate: float | None
    samples_per_second: float | None
    utilisation: float | None
    memory_bytes: int | None


class RivalTelemetry(Part, frozen=True, kw_only=True):
    """Points of one rival's training, by step."""

    rival: str
    total_steps: int
    points: list[TelemetryPoint]


class TaskTelemetry(Part, frozen=True, kw_only=True):
    """How a task goes, or went. `whole`: in place of all that was told before. `next` is where to
    go on (`after`) for what is new; null once the task has ended."""

    task_id: str
    status: TaskStatus
    whole: bool
    rivals: list[RivalTelemetry]
    next: str | None


class TaskNeeds(Part, frozen=True, kw_only=True):
    """What a task needs of a device; an empty device means any."""

    device: str
    memory_gb: float


class TaskSummary(Task, frozen=True, kw_only=True):
    """A task in a list."""

    role: str
    claimed_at: str | None
    completed_at: str | None


class TaskDetail(TaskSummary, frozen=True, kw_only=True):
    """A task with its history. The times are those of the last claim and the result; of the
    attempts the newest 32 are kept. `waits` is why a queued one waits that no worker online can
    train, by worker, or that none is online; why one that lost a record waits for ever; or why
    nothing can come of an open one whose node trains something else now. Else it is empty."""

    method: str
    seed: int
    budget_seconds: float | None
    requires: TaskNeeds
    workload: Workload
    base: Base | None
    parents: list[Base]
    attempts: list[Attempt]
    resume: list[TaskCheckpoint]
    candidates: list[TaskCandidate]
    losses: list[LossPoint]
    round_id: str | None
    waits: list[str]
    reasons: list[str]
    log_tail: str


class TelemetryAnswer(Answer, frozen=True, kw_only=True):
    """How a task goes, or went."""

    telemetry: TaskTelemetry


class TasksAnswer(Answer, frozen=True, kw_only=True):
    """A page of tasks, oldest first; `next` is null on the last. `closed` counts the tasks that are
    not done and given to nobody, since a record of theirs cannot be read, of all nodes."""

    tasks: list[TaskSummary]
    next: str | None
    closed: int


class TaskDetailAnswer(Answer, frozen=True, kw_only=True):
    """One task."""

    task: TaskDetail


class Unfit(Part, frozen=True, kw_only=True):
    """Tasks that a worker found itself unfit for in the last ten minutes: of this node, role and
    method."""

    node_id: str
    role: str
    method: str
    reason: str


class WorkerClaims(Part, frozen=True, kw_only=True):
    """Of how many candidates a judge measured what the worker had claimed, and how often that was
    `off`: better than measured, by more than other cases explain. It is `doubtful` where that was
    so for 3 of the last 8."""

    judged: int
    off: int
    doubtful: bool


class WorkerSummary(Worker, frozen=True, kw_only=True):
    """A worker in the list of all, with the tasks it holds and where the last of them stands.
    `paused_seconds`: how long its trainings stood still since it began, while latency was measured
    on its machine. `price_per_hour` is what it says that it costs, in the unit that all prices here
    are in."""

    via: str
    lane: str
    reason: str
    tasks: list[str]
    rival: str | None
    step: int | None
    total_steps: int | None
    loss: float | None
    samples_per_second: float | None
    utilisation: float | None
    memory_bytes: int | None
    paused_seconds: float
    unfit: list[Unfit]
    pause: Pause
    price_per_hour: float | None
    claims: WorkerClaims


class WorkerSummaryAnswer(Answer, frozen=True, kw_only=True):
    """One worker."""

    worker: WorkerSummary


class WorkersAnswer(Answer, frozen=True, kw_only=True):
    """All workers."""

    workers: list[WorkerSummary]


class RecentRounds(Part, frozen=True, kw_only=True):
    """The same counts where a round of 20 rounds ago counts half, and so on. `gain` is the sum of
    -ln of what each win over a champion made of its error."""

    rounds: float
    won: float
    replaced: float
    gain: float


class RivalAccount(Part, frozen=True, kw_only=True):
    """What one rival has won and cost at a specialization, or at all (`node_id` null).

    Of the decided `rounds` it entered it `won` some, was measured and `lost` others, and was
    `absent` from the rest. `error_factor` is by what its promotions multiplied the error of the
    champions before, null where it replaced none, and of sums; `device_seconds` is for how long
    workers held its tasks. `cost` is that of the `priced_seconds` among them, whose workers had
    told a price per hour, in the unit of that; null where none had.
    """

    node_id: str | None
    rival: str
    rounds: int
    won: int
    lost: int
    absent: int
    error_factor: float | None
    device_seconds: float
    priced_seconds: float
    cost: float | None
    recent: RecentRounds


class RivalsAnswer(Answer, frozen=True, kw_only=True):
    """A page of the rivals of each specialization, and the sums of all; `next` ends as null."""

    rivals: list[RivalAccount]
    total: list[RivalAccount]
    next: str | None


class LogState(Part, frozen=True, kw_only=True):
    """Where the log stands, and the hash of everything folded from it so far."""

    last_seq: int
    state_hash: str


class LogStateAnswer(Answer, frozen=True, kw_only=True):
    """The log and the state it makes."""

    log: LogState


class Refusal(Part, frozen=True, kw_only=True):
    """Something the rules did not allow, kept for the audit."""

    at: str
    subject: str
    worker_id: str
    reason: str


class RefusalsAnswer(Answer, frozen=True, kw_only=True):
    """A page of refusals, oldest first; `next` is null on the last."""

    refusals: list[Refusal]
    next: str | None


class SweepRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sweep artifacts that nothing needs; with `dry_run` only say what would go."""

    dry_run: bool = False


class Sweep(Part, frozen=True, kw_only=True):
    """A sweep of the artifact store, or what one would take. `spared` are chunks that would go and
    that somebody relies on, `lost` artifacts that are needed and not there; `unfinished` says why
    it ended early, null where it did not."""

    dry_run: bool
    chunks: int
    bytes: int
    spared: int
    artifacts: int
    lost: int
    live_chunks: int
    live_bytes: int
    unfinished: str | None


class SweepAnswer(Answer, frozen=True, kw_only=True):
    """What a sweep came to."""

    sweep: Sweep


# ── refusals ──


class Detail(Part, frozen=True, kw_only=True):
    """A refusal in words: what, why, what to do."""

    detail: str


class Fault(Part, frozen=True, kw_only=True):
    """One thing wrong with a request, and where."""

    type: str
    loc: list[str | int]
    msg: str
    input: Annotated[msgspec.Raw, msgspec.Meta(description="What was sent there.")]
    ctx: dict[str, str | float] | msgspec.UnsetType = msgspec.UNSET


class Faults(Part, frozen=True, kw_only=True):
    """Everything wrong with a request."""

    detail: list[Fault]


# ── corpora ──


class MissingAnswer(Answer, frozen=True, kw_only=True):
    """The chunks to send."""

    missing: list[str]


class ChunkAnswer(Answer, frozen=True, kw_only=True):
    """The SHA-256 under which the chunk is stored."""

    digest: str


class BoundCorpus(Part, frozen=True, kw_only=True):
    """A node that has a corpus of its own, and what trains on it."""

    node_id: str
    name: str
    workload: Workload


class OutdatedTasks(Part, frozen=True, kw_only=True):
    """How many tasks of a node are still to train what it trained before."""

    node_id: str
    queued: int
    running: int


class CorpusAnswer(Answer, frozen=True, kw_only=True):
    """The node as it trains now, and the tasks of it, and of those below that inherit its work, of
    which nothing can come any more."""

    node: BoundCorpus
    outdated: list[OutdatedTasks]


class CorporaAnswer(Answer, frozen=True, kw_only=True):
    """Every node that has a corpus of its own."""

    corpora: list[BoundCorpus]
