"""What agents, judges and the desk say to each other over NATS: one JSON object a message.

An answer is `{"ok": {...}}` or `{"error": NAME, "detail": TEXT}`, where NAME is an error of
`core.errors`. Chunks travel as they are, behind one byte that says whether they do.
"""

import hmac
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from core import chunks, errors, events
from core.chunks import Manifest
from core.events import (
    Base,
    BudgetLook,
    Candidate,
    CandidateVerdict,
    Checkpoint,
    Reasons,
    Requires,
    Rival,
    Role,
    Token,
    Via,
    Workload,
)
from core.projections.rounds import Round
from core.telemetry import Curves
from core.values import BudgetVerdict, Gates, Recommendation, Weighed

PROTOCOL = 1
BEAT_TASKS_MAX = 128
"""Twice what a worker may hold: it also speaks of claims that expired and may be revived."""
REASON_CHARS_MAX = 500
"""Why a model was made as it was."""

T = TypeVar("T")


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Method: TypeAlias = Annotated[str, msgspec.Meta(max_length=32)]
_Reason: TypeAlias = Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)]
_Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_ChunkBytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=chunks.CHUNK_BYTES)]


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message."""


# ── presence ──


class TaskBeat(Wire, frozen=True, kw_only=True):
    """Where a held task stands; the last figures are those of `core.telemetry.Point`."""

    task_id: str
    attempt: int
    rival: Annotated[str, msgspec.Meta(max_length=32)] = ""
    step: _Count = 0
    total_steps: _Count = 0
    loss: float | None = None
    samples_per_second: float | None = None
    utilisation: float | None = None
    memory_bytes: _Count | None = None


class Telemetry(Wire, frozen=True, kw_only=True):
    """How the training of a task goes, on `telemetry.<worker>.<task>`: what is new, or all of it in
    thinned form (`whole`), in place of what was told before."""

    attempt: int
    whole: bool = False
    curves: Curves


class Beat(Wire, frozen=True, kw_only=True):
    """A heartbeat on `hb.<worker>`; those of HTTP workers are published for them."""

    worker_id: str
    via: Via = "nats"
    session: str = ""
    status: str = "online"
    pause: str = ""
    """What the agent believes that a person wants; told to those who err."""
    executor_pid: int = 0
    paused_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """How long its executors stood still so far, while latency was measured on its machine."""
    tasks: Annotated[list[TaskBeat], msgspec.Meta(max_length=BEAT_TASKS_MAX)] = []


class Notice(Wire, frozen=True, kw_only=True):
    """Pushed to an agent's inbox: `superseded` (that session must end), `stop` (one task), or what
    a person wants of it: `drain`, `pause`, `resume` (see WorkerPaused)."""

    kind: str
    session: str = ""
    task_id: str = ""
    detail: str = ""


# ── sessions ──


class Hello(Wire, frozen=True, kw_only=True):
    """An agent begins a session and lists the claims it still works on. Its lane is on the subject,
    `fleet.<worker>.hello.<lane>`, where its credentials answer for it."""

    worker_id: str
    protocol: int
    hostname: str
    capabilities: dict[str, Any] = {}
    holding: list[Token] = []
    process: str = ""
    """Drawn by each run of an agent, "" by one that does not number its hellos."""
    number: int = 0
    """Rising with every hello of a process: of two that cross, the higher was said later."""


class Welcome(Wire, frozen=True, kw_only=True):
    """The session, its terms, and which of the listed claims are still the agent's."""

    session: str
    lane: str
    heartbeat_seconds: float
    lease_seconds: float
    holding: list[Token] = []
    pause: str = ""


class Bye(Wire, frozen=True, kw_only=True):
    """An agent leaves."""

    session: str


class Done(Wire, frozen=True, kw_only=True):
    """It is done, and durable."""


# ── work ──


class Offer(Wire, frozen=True, kw_only=True):
    """A message of WORK. It wakes an agent; the claim decides which task it gets."""

    task_id: str


class ClaimRequest(Wire, frozen=True, kw_only=True):
    """Ask for a task under a random id of the agent's choice: asking again under the same id gives
    the same task. `offer` is the sequence in WORK that woke the agent."""

    session: str
    claim_id: str
    offer: int = 0


class Assignment(Wire, frozen=True, kw_only=True):
    """A claimed task with all that its training needs."""

    token: Token
    node_id: str
    topic: str
    role: Role
    method: str
    seed: int
    workload: Workload
    workload_inherited: bool
    lease_seconds: float
    budget_seconds: float | None = None
    requires: Requires = Requires()
    base: Base | None = None
    resume: list[Checkpoint] = []
    parents: list[Base] = []


class ClaimAnswer(Wire, frozen=True, kw_only=True):
    """The task, or none for this worker now."""

    assignment: Assignment | None = None


class TokenRequest(Wire, frozen=True, kw_only=True):
    """A request about a held claim: reattach, release. `unfit`: what is released takes more than
    the agent has."""

    session: str
    token: Token
    reason: str = ""
    unfit: bool = False


class FailRequest(Wire, frozen=True, kw_only=True):
    """An attempt could not be finished."""

    session: str
    token: Token
    reason: str
    log_tail: str = ""
    telemetry: Curves = []


class MissingRequest(Wire, frozen=True, kw_only=True):
    """Which of these chunks (digest to bytes) are not stored yet? Those of others are lent where a
    proof shows that the agent holds the very bytes."""

    session: str
    token: Token
    chunks: Annotated[
        dict[_Digest, _ChunkBytes], msgspec.Meta(max_length=chunks.MANIFEST_CHUNKS_MAX)
    ]
    kind: str = "checkpoint"
    """Of the artifact; some room is kept for a "candidate"."""
    proofs: Annotated[
        dict[_Digest, _Digest], msgspec.Meta(max_length=chunks.MANIFEST_CHUNKS_MAX)
    ] = {}


class MissingAnswer(Wire, frozen=True, kw_only=True):
    """The digests to write; those of them that others stored, and would lend; and those that a
    manifest may name as lent, by writer."""

    missing: list[str]
    elsewhere: list[str] = []
    lent: dict[str, list[str]] = {}


def proof(session: str, piece: bytes) -> str:
    """What only who holds a chunk can say of it: its HMAC-SHA256 under the session, which nobody
    else has."""
    return hmac.digest(session.encode(), piece, "sha256").hex()


class CheckpointRequest(Wire, frozen=True, kw_only=True):
    """Announce a checkpoint whose chunks are stored; `final` for a finished rival's candidate."""

    session: str = ""
    token: Token
    rival: Rival
    step: int
    total_steps: int
    manifest: Manifest
    final: bool = False
    method: _Method = ""


class BroughtCandidate(Wire, frozen=True, kw_only=True):
    """A model that a completed task brings; `claims` are its agent's own measurements, `method` is
    how it made the model."""

    rival: Rival
    manifest: Manifest
    weights_sha256: str
    claims: dict[str, float] = {}
    method: _Method = ""
    method_reason: _Reason = ""


class CompleteRequest(Wire, frozen=True, kw_only=True):
    """The result of a task."""

    session: str = ""
    token: Token
    metrics: dict[str, Any]
    candidates: list[BroughtCandidate] = []
    telemetry: Curves = []


class ChunkRequest(Wire, frozen=True, kw_only=True):
    """Read one chunk."""

    session: str
    writer: str
    digest: str


# ── judging ──


class JudgementOffer(Wire, frozen=True, kw_only=True):
    """A message of JUDGEMENTS: a closed round awaits a judge."""

    round_id: str


class Standing(Wire, frozen=True, kw_only=True, tag="standing"):
    """How many commitments are unused, and which index comes next?"""

    judge: str


class Deposit(Wire, frozen=True, kw_only=True, tag="deposit"):
    """Commitments for rounds to come."""

    judge: str
    first: int
    commitments: list[str]


class Withdraw(Wire, frozen=True, kw_only=True, tag="withdraw"):
    """The judges' key is lost, and with it what was committed to so far."""

    judge: str
    reason: str = ""


class TakeRound(Wire, frozen=True, kw_only=True, tag="take"):
    """A judge takes a closed round."""

    judge: str
    round_id: str


class Verdict(Wire, frozen=True, kw_only=True, tag="verdict"):
    """A judge's verdict, field for field a `commands.DecideRound`."""

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


JudgeRequest: TypeAlias = Standing | Deposit | Withdraw | TakeRound | Verdict


class Commitment(Wire, frozen=True, kw_only=True):
    """One commitment, hex SHA-256 of the secret of that index."""

    index: int
    commitment: str


class CommitmentsAnswer(Wire, frozen=True, kw_only=True):
    """Where the deposits stand; `newest` is the last one that a judge has to be able to open."""

    next_index: int
    unused: int
    newest: Commitment | None = None


class Brought(Wire, frozen=True, kw_only=True):
    """A candidate of a round, with the task and worker it comes from."""

    candidate: Candidate
    task_id: str
    worker_id: str


class RoundBrief(Wire, frozen=True, kw_only=True):
    """A round as its judge needs it; `withdrawn` when the key behind its commitment is lost,
    `outdated` when its node trains something else now. `best` is the best the node ever had, where
    that is not the champion."""

    round_id: str
    node_id: str
    index: int
    commitment: str
    workload: Workload
    look: int
    champion: Base | None
    candidates: list[Brought]
    withdrawn: bool = False
    outdated: bool = False
    best: Base | None = None
    gates: Gates = Gates()
    budgets: tuple[BudgetLook, ...] = ()


# ── frames ──

_REFUSALS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.AghsanError)
}
_CHUNK, _NO_CHUNK = b"\x00", b"\x01"


class _Framed(msgspec.Struct, frozen=True):
    ok: msgspec.Raw = msgspec.Raw(b"")
    error: str = ""
    detail: str = ""


class _Ok(msgspec.Struct, frozen=True):
    ok: Wire


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    detail: str


def ok(answer: Wire) -> bytes:
    """An answer as it is sent."""
    return msgspec.json.encode(_Ok(answer))


def refusal(error: errors.AghsanError) -> bytes:
    """A refusal as it is sent: the nearest error that `core.errors` names, and its words."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _REFUSALS)
    return msgspec.json.encode(_Refusal(name, str(error)))


def decode(raw: bytes, kind: type[T]) -> T:
    """The answer in a frame.

    Raises the error it was refused with, Refused for one that is not known here, Unavailable for
    nonsense.
    """
    try:
        framed = msgspec.json.decode(raw, type=_Framed)
        if framed.ok:
            return msgspec.json.decode(framed.ok, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Unavailable(f"an answer that cannot be read: {error}") from error
    if not framed.error:
        raise errors.Unavailable("an answer that is neither one nor a refusal")
    raise _REFUSALS.get(framed.error, errors.Refused)(framed.detail)


def chunk_frame(data: bytes) -> bytes:
    """A chunk as it is sent."""
    return _CHUNK + data


def chunk_refusal(error: errors.AghsanError) -> bytes:
    """Why there is no chunk, as it is sent."""
    return _NO_CHUNK + refusal(error)


def chunk_of(raw: bytes) -> bytes:
    """The chunk in a frame. Raises the error it was refused with."""
    if raw[:1] == _CHUNK:
        return raw[1:]
    decode(raw[1:], events.Value)
    raise errors.Unavailable("a chunk was asked for, and something else came")


def brief_of(row: Round) -> RoundBrief:
    """A round as its judge was given it."""
    return RoundBrief(
        round_id=row.round_id,
        node_id=row.node_id,
        index=row.index,
        commitment=row.commitment,
        workload=row.workload,
        look=row.look,
        champion=row.champion,
        best=row.best,
        gates=row.gates,
        budgets=row.budgets,
        candidates=[
            Brought(candidate=one.candidate, task_id=one.task_id, worker_id=one.worker_id)
            for one in row.standings
        ],
    )
