"""Commands: what somebody wants. Time, ids and seeds arrive inside; deciding draws none."""

from typing import Literal, NamedTuple, TypeAlias

import msgspec

from core.events import (
    BaseModel,
    Candidate,
    CandidateVerdict,
    Champion,
    Checkpoint,
    Corpus,
    Pause,
    Reasons,
    Requires,
    Role,
    Token,
    Via,
    Workload,
)
from core.values import Budget, BudgetVerdict, Recommendation, Weighed


class Meta(NamedTuple):
    """Who asks, when (microseconds since 1970), under which ids."""

    now: int
    id: str
    by: str
    corr: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every command."""


class SeedTree(Command, frozen=True, kw_only=True):
    """Plant the seeded nodes that are missing."""


class ExpandNode(Command, frozen=True, kw_only=True):
    """Grow a specialization below `parent_id`."""

    node_id: str
    parent_id: str
    name: str
    description: str = ""
    workload: Workload | None = None


class BindCorpus(Command, frozen=True, kw_only=True):
    """Let a node train on a corpus from now on, whose texts are stored; None: on none any more."""

    node_id: str
    corpus: Corpus | None
    base_model: BaseModel | None = None


class SetGates(Command, frozen=True, kw_only=True):
    """Judge a node's candidates by other numbers, state budgets and drop some; with `reset` the
    node first gives up its own gates for its ancestor's."""

    node_id: str
    settings: dict[str, float] = {}
    budgets: tuple[Budget, ...] = ()
    dropped: tuple[str, ...] = ()
    reset: bool = False


class ChooseChampion(Command, frozen=True, kw_only=True):
    """A person puts a judged model on a node's throne, or on that of a budget, as the log has it:
    a candidate that a round measured, or, in a rollback, one that reigned before. `instead_of` is
    who reigned when they chose. `request` digests what was asked for under the key."""

    node_id: str
    kind: Literal["promote", "rollback"]
    champion: Champion
    instead_of: str = ""
    budget: str = ""
    reason: str = ""
    idempotency_key: str = ""
    request: str = ""


class EnqueueTask(Command, frozen=True, kw_only=True):
    """Ask for training. `is_seed_drawn`: nobody asked for this seed, a repetition has another.
    `parents`: what a merge is made of, by candidate or weights; empty: what there is."""

    task_id: str
    node_id: str
    topic: str
    priority: int = 5
    role: Role = "dual"
    method: str = "auto"
    seed: int
    is_seed_drawn: bool = False
    budget_seconds: float | None = None
    requires: Requires = Requires()
    parents: list[str] = []
    idempotency_key: str = ""


class ClaimTask(Command, frozen=True, kw_only=True):
    """Give this worker the best task for it.

    `signalled_at`: when an HTTP worker last registered or sent a heartbeat.
    """

    worker_id: str
    via: Via
    claim_id: str
    lease_seconds: float
    session: str = ""
    signalled_at: int = 0


class StoreCheckpoint(Command, frozen=True, kw_only=True):
    """A holder's checkpoint, its chunks verified already."""

    token: Token
    worker_id: str
    session: str
    checkpoint: Checkpoint


class CompleteTask(Command, frozen=True, kw_only=True):
    """A holder's result. Over HTTP there is no token: the worker id stands for it."""

    task_id: str
    worker_id: str
    token: Token | None = None
    session: str = ""
    metrics: bytes = b"{}"
    metrics_digest: str = ""
    artifact_name: str | None = None
    artifact_digest: str = ""
    candidates: list[Candidate] = []
    telemetry_digest: str = ""


class FailAttempt(Command, frozen=True, kw_only=True):
    """A holder could not finish."""

    token: Token
    worker_id: str
    session: str
    reason: str
    log_tail: str = ""
    telemetry_digest: str = ""


class ReleaseClaim(Command, frozen=True, kw_only=True):
    """A holder gives the task back; `unfit`: since it lacks what the task takes."""

    token: Token
    worker_id: str
    session: str
    reason: str
    unfit: bool = False


class ReattachClaim(Command, frozen=True, kw_only=True):
    """A holder that was away asks whether the task is still its own."""

    token: Token
    worker_id: str
    session: str


class ExpireClaim(Command, frozen=True, kw_only=True):
    """Liveness saw a lease end, or its holder fall silent."""

    token: Token
    reason: str
    last_seen: int = 0


class CancelTask(Command, frozen=True, kw_only=True):
    """A person withdraws a task."""

    task_id: str
    reason: str = ""


class RetryTask(Command, frozen=True, kw_only=True):
    """A person queues a failed or cancelled task again; `topic` is the one it was queued with."""

    task_id: str
    topic: str = ""


class RegisterWorker(Command, frozen=True, kw_only=True):
    """An HTTP worker introduces itself; its record is replaced."""

    worker_id: str
    hostname: str
    capabilities: bytes = b"{}"


class Heartbeat(Command, frozen=True, kw_only=True):
    """An HTTP worker's heartbeat; empty capabilities (None) keep the old ones."""

    worker_id: str
    status: str = "online"
    capabilities: bytes | None = None


class OpenSession(Command, frozen=True, kw_only=True):
    """An agent says hello and lists the claims it still works on."""

    worker_id: str
    session: str
    hostname: str
    lane: str
    protocol: int
    capabilities: bytes = b"{}"
    holding: list[Token] = []
    process: str = ""
    number: int = 0


class MarkOffline(Command, frozen=True, kw_only=True):
    """A worker left, or was not heard of for too long."""

    worker_id: str
    reason: str
    last_seen: int = 0
    session: str = ""


class MarkOnline(Command, frozen=True, kw_only=True):
    """A worker taken for offline was heard of again."""

    worker_id: str
    session: str = ""


class PauseWorker(Command, frozen=True, kw_only=True):
    """A person gives a worker nothing more to do, as WorkerPaused has it."""

    worker_id: str
    how: Pause


class ResumeWorker(Command, frozen=True, kw_only=True):
    """A person lets a worker have work again."""

    worker_id: str


class DepositCommitments(Command, frozen=True, kw_only=True):
    """A judge's commitments for the rounds to come, hex SHA-256 of each 32-byte secret."""

    judge: str
    first: int
    commitments: list[str]


class WithdrawCommitments(Command, frozen=True, kw_only=True):
    """The judges' key is lost: what was committed to with it so far holds no longer."""

    judge: str
    reason: str = ""


class CloseRound(Command, frozen=True, kw_only=True):
    """A round's deadline passed."""

    round_id: str


class StartJudging(Command, frozen=True, kw_only=True):
    """A judge takes a closed round."""

    round_id: str
    judge: str


class DecideRound(Command, frozen=True, kw_only=True):
    """A judge's verdict. `against` is the champion candidate it measured against; `secret` is ""
    for a round whose commitment was withdrawn, which nobody can open."""

    round_id: str
    judge: str
    verdict: str
    secret: str
    reasons: Reasons
    candidates: list[CandidateVerdict]
    promoted: str = ""
    against: str = ""
    alpha: float = 0.0
    cases: int = 0
    champion_error: float | None = None
    baseline_error: float | None = None
    below_baseline: bool = True
    environment: dict[str, str] = {}
    weighed: tuple[Weighed, ...] = ()
    recommendation: Recommendation | None = None
    budgets: tuple[BudgetVerdict, ...] = ()
    best_upper: float | None = None


class StartWriter(Command, frozen=True, kw_only=True):
    """This process becomes the one writer."""

    process: str


class SealLog(Command, frozen=True, kw_only=True):
    """Seal the records `first` to `last`, read back from the log, after the seal `previous`."""

    first: int
    last: int
    digest: str
    previous: str


class AcceptLoss(Command, frozen=True, kw_only=True):
    """Go on with a log that lost what it held from the record `first` on, and is now, up to `last`,
    what `digest` says; `lost` of its records stand in for lost ones."""

    first: int
    details: list[str]
    last: int = 0
    lost: int = 0
    digest: str = ""
    chunks: list[str] = []


class SweepArtifacts(Command, frozen=True, kw_only=True):
    """Say what is about to be taken out of the artifact store."""

    chunks: int
    bytes: int
    manifests: list[str] = []


AnyCommand: TypeAlias = (
    SeedTree
    | ExpandNode
    | BindCorpus
    | SetGates
    | ChooseChampion
    | EnqueueTask
    | ClaimTask
    | StoreCheckpoint
    | CompleteTask
    | FailAttempt
    | ReleaseClaim
    | ReattachClaim
    | ExpireClaim
    | CancelTask
    | RetryTask
    | RegisterWorker
    | Heartbeat
    | OpenSession
    | MarkOffline
    | MarkOnline
    | PauseWorker
    | ResumeWorker
    | DepositCommitments
    | WithdrawCommitments
    | CloseRound
    | StartJudging
    | DecideRound
    | StartWriter
    | SealLog
    | AcceptLoss
    | SweepArtifacts
)
