"""Events: what happened, in the words of the domain, and how it is written down.

An event is stored as one JSON object, the envelope:
`{"type", "v", "id", "at", "by", "cause", "corr", "data"}`. `type` is the name of one of the structs
below and `v` its version; `at` is UTC; `by` is who asked; `cause` the command; `corr` the request
the command belongs to. Times inside `data` are microseconds since 1970 (UTC).

New fields get defaults. Types and meanings never change: a breaking change is a new version with
an upcaster in `UPCASTERS`.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args

import msgspec

from core import errors, subjects
from core.log import Record
from core.values import BudgetVerdict, Check, Gates, Recommendation, RoundVerdict, Weighed
from core.values import Reasons as Reasons
from core.values import Value as Value

Role: TypeAlias = Literal["dual", "evolver", "reinventor", "merge"]
Rival: TypeAlias = Literal["evolver", "reinventor", "merge"]
Via: TypeAlias = Literal["http", "nats"]
Pause: TypeAlias = Literal["drain", "pause"]

EVENT_BYTES_MAX = 64 * 1024
DATA_BYTES_MAX = EVENT_BYTES_MAX - 1024
"""What an event's data may take, leaving room for the envelope."""
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_AT_MIN, _AT_MAX = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999 in UTC. An offset can name a time beyond, which could not be written down."""


class Part(Value, frozen=True, kw_only=True):
    """One part of a corpus: how many documents, and how many bytes of UTF-8."""

    documents: int
    bytes: int


class Corpus(Value, frozen=True, kw_only=True):
    """A folder of text in the artifact store. `manifest` names what agents train and validate on,
    `hidden` what judges draw hidden cases from and no agent may read."""

    name: str
    manifest: str
    hidden: str
    parts: dict[str, Part]


class BaseModel(Value, frozen=True, kw_only=True):
    """A language model that devices have of their own: a hub id or the name of a folder. `digest`
    is that of its files, `bytes` what they take."""

    name: str
    digest: str
    bytes: int


class Workload(Value, frozen=True, kw_only=True):
    """What a node trains: a specialist and its parameters, on a corpus where it takes one."""

    specialist: str
    parameters: dict[str, float] = msgspec.field(default_factory=dict)
    corpus: Corpus | None = None
    base_model: BaseModel | None = None


class Requires(Value, frozen=True, kw_only=True):
    """What a task needs of a device; empty means any."""

    device: str = ""
    memory_gb: float = 0.0


class Token(Value, frozen=True, kw_only=True):
    """The fencing token of a claim."""

    task_id: str
    attempt: int
    claim_id: str


class Checkpoint(Value, frozen=True, kw_only=True):
    """A stored state of training that another worker can go on from. `method` is what its worker
    chose ("" in logs from before it was kept)."""

    rival: Rival
    step: int
    total_steps: int
    manifest: str
    writer: str
    bytes: int
    final: bool = False
    method: str = ""


class Candidate(Value, frozen=True, kw_only=True):
    """A stored model asking to be champion. `claims` are its worker's own measurements, `method` is
    how it was made, and `method_reason` why so."""

    candidate_id: str
    rival: Rival
    manifest: str
    writer: str
    weights_sha256: str
    bytes: int
    claims: dict[str, float] = msgspec.field(default_factory=dict)
    method: str = ""
    method_reason: str = ""


class CandidateVerdict(Value, frozen=True, kw_only=True):
    """What the judge measured of one candidate and what follows from it; `gates` are those that it
    came to. `cases` are those of the gate that it was measured on; 0 is as many as the round says,
    where it came to the gate."""

    candidate_id: str
    verdict: str
    reasons: Reasons
    error: float | None = None
    evidence_rate: float | None = None
    ratio: float | None = None
    ratio_upper: float | None = None
    params: int = 0
    bytes: int = 0
    gates: tuple[Check, ...] = ()
    cases: int = 0


class Champion(Value, frozen=True, kw_only=True):
    """The model a node serves, with the measurements that made it so (on hidden cases)."""

    node_id: str
    candidate_id: str
    round_id: str
    task_id: str
    worker_id: str
    rival: Rival
    manifest: str
    writer: str
    weights_sha256: str
    workload: Workload
    error: float
    baseline_error: float
    evidence_rate: float
    below_baseline: bool
    params: int
    bytes: int


class Base(Value, frozen=True, kw_only=True):
    """Which model something starts from, learns from, is made of, or is measured against."""

    candidate_id: str
    manifest: str
    writer: str
    weights_sha256: str


class BudgetLook(Value, frozen=True, kw_only=True):
    """Against whom the champion of a budget is looked for; `look` counts the times, from 1."""

    budget: str
    look: int
    champion: Base | None = None


class Data(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Base of every event's data."""


# ── nodes ── ev.node.<node_id>


class NodeAdded(Data, frozen=True, kw_only=True):
    """A specialization grew. `label` (its path segment) and `ai_name` default to its name."""

    node_id: str
    name: str
    parent_id: str | None = None
    description: str = ""
    label: str = ""
    ai_name: str = ""
    workload: Workload | None = None


class ChampionPromoted(Data, frozen=True, kw_only=True):
    """A candidate became the node's champion, or that of a budget; `instead_of` is the candidate it
    replaced. `is_best` says that it is surely no worse than the best that the node ever had."""

    node_id: str
    champion: Champion
    instead_of: str = ""
    budget: str = ""
    is_best: bool = True


class ChampionChosen(Data, frozen=True, kw_only=True):
    """A person made a judged candidate the node's champion, or that of a budget, or gave its throne
    back to one that reigned before. `request` digests what was asked for under the key."""

    node_id: str
    kind: Literal["promote", "rollback"]
    champion: Champion
    instead_of: str = ""
    budget: str = ""
    reason: str = ""
    idempotency_key: str = ""
    request: str = ""


class WorkloadChanged(Data, frozen=True, kw_only=True):
    """The node trains something else from now on, and so does whoever inherits it."""

    node_id: str
    workload: Workload


class ChampionRetired(Data, frozen=True, kw_only=True):
    """A champion's reign ended without a successor: its node trains something else now, or has its
    budget no longer."""

    node_id: str
    candidate_id: str
    reason: str = ""
    budget: str = ""


class GatesChanged(Data, frozen=True, kw_only=True):
    """The node's candidates are judged by other gates from now on, and so are those of whoever
    inherits them; None gives them up for those of its nearest ancestor."""

    node_id: str
    gates: Gates | None = None


# ── tasks ── ev.task.<task_id>


class TaskQueued(Data, frozen=True, kw_only=True):
    """Somebody asked for training."""

    task_id: str
    node_id: str
    topic: str
    priority: int
    workload: Workload
    workload_inherited: bool = False
    role: Role = "dual"
    method: str = "auto"
    seed: int = 0
    budget_seconds: float | None = None
    requires: Requires = Requires()
    idempotency_key: str = ""
    request: str = ""
    """A digest of what was asked for under the key; not derived, since a seed may be drawn."""
    parents: list[Base] = []
    """What a merge is made of."""


class TaskClaimed(Data, frozen=True, kw_only=True):
    """A worker holds the task; its evolver starts from `base`, or its student learns from it, and
    its training goes on from `resume`. `price_per_hour` is what the worker says that it costs, in
    the unit that all prices here are in; None where it does not say."""

    task_id: str
    attempt: int
    claim_id: str
    worker_id: str
    via: Via
    lease_seconds: float
    session: str = ""
    base: Base | None = None
    resume: list[Checkpoint] = []
    price_per_hour: float | None = None


class ClaimAdopted(Data, frozen=True, kw_only=True):
    """A restarted worker took its own claim over into a new session."""

    task_id: str
    attempt: int
    claim_id: str
    session: str


class ClaimExpired(Data, frozen=True, kw_only=True):
    """The lease ended unrenewed, or its holder fell silent. Good again while unrivalled."""

    task_id: str
    attempt: int
    claim_id: str
    reason: str
    last_seen: int = 0


class ClaimRevived(Data, frozen=True, kw_only=True):
    """The holder of an expired, unrivalled claim came back."""

    task_id: str
    attempt: int
    claim_id: str
    session: str = ""


class ClaimReleased(Data, frozen=True, kw_only=True):
    """The holder gave the task back; `unfit`: since it is no match for it, and others may be."""

    task_id: str
    attempt: int
    claim_id: str
    reason: str
    unfit: bool = False


class CheckpointStored(Data, frozen=True, kw_only=True):
    """Chunks and manifest of a checkpoint are stored and their digests verified."""

    task_id: str
    attempt: int
    claim_id: str
    checkpoint: Checkpoint


class AttemptFailed(Data, frozen=True, kw_only=True):
    """The holder could not finish."""

    task_id: str
    attempt: int
    claim_id: str
    reason: str
    log_tail: str = ""
    telemetry_digest: str = ""


class TaskCompleted(Data, frozen=True, kw_only=True):
    """The first result of the task; it stands. Telemetry lies in the artifact store, and so do
    large metrics."""

    task_id: str
    attempt: int
    claim_id: str
    worker_id: str
    metrics: msgspec.Raw = msgspec.Raw(b"{}")
    metrics_digest: str = ""
    artifact_name: str | None = None
    artifact_uploaded: bool = False
    artifact_digest: str = ""
    candidates: list[Candidate] = []
    telemetry_digest: str = ""


class TaskFailed(Data, frozen=True, kw_only=True):
    """All attempts are used up."""

    task_id: str
    reasons: list[str]
    log_tail: str = ""


class TaskCancelled(Data, frozen=True, kw_only=True):
    """A person withdrew the task."""

    task_id: str
    reason: str = ""


class TaskRetried(Data, frozen=True, kw_only=True):
    """A failed or cancelled task is queued again, with all its attempts; with its topic, where the
    state held it no more."""

    task_id: str
    topic: str = ""


# ── workers ── ev.worker.<worker_id>


class WorkerRegistered(Data, frozen=True, kw_only=True):
    """A worker introduced itself over HTTP, or was first seen by a heartbeat."""

    worker_id: str
    hostname: str
    status: str = "online"
    capabilities: msgspec.Raw = msgspec.Raw(b"{}")


class WorkerChanged(Data, frozen=True, kw_only=True):
    """A heartbeat changed a worker's status or capabilities (UNSET: as they were)."""

    worker_id: str
    status: str
    # Not None: msgspec reads a Raw that may be None as None and nothing else.
    capabilities: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class SessionOpened(Data, frozen=True, kw_only=True):
    """An agent said hello; an older session of the same id is superseded."""

    worker_id: str
    session: str
    hostname: str
    lane: str
    protocol: int
    capabilities: msgspec.Raw = msgspec.Raw(b"{}")
    process: str = ""
    number: int = 0


class WorkerWentOffline(Data, frozen=True, kw_only=True):
    """A worker left or was not heard of for too long."""

    worker_id: str
    reason: str
    last_seen: int = 0


class WorkerCameOnline(Data, frozen=True, kw_only=True):
    """A worker taken for offline was heard of again."""

    worker_id: str


class WorkerPaused(Data, frozen=True, kw_only=True):
    """A person gives a worker nothing more to do: a "drain" lets it finish what it holds, a "pause"
    has it give that back at once. It holds for sessions to come, until WorkerResumed."""

    worker_id: str
    how: Pause


class WorkerResumed(Data, frozen=True, kw_only=True):
    """A person lets a worker have work again."""

    worker_id: str


# ── rounds ── ev.round.<round_id>


class RoundOpened(Data, frozen=True, kw_only=True):
    """Candidates of a node may be gathered, against a commitment to the judge's secret."""

    round_id: str
    node_id: str
    index: int
    commitment: str
    workload: Workload
    closes_at: int
    base: Base | None = None


class RoleEntered(Data, frozen=True, kw_only=True):
    """A task will bring this round's candidate for a role."""

    round_id: str
    rival: Rival
    task_id: str


class CandidateAdmitted(Data, frozen=True, kw_only=True):
    """A completed task's model stands in the round."""

    round_id: str
    task_id: str
    worker_id: str
    candidate: Candidate


class RoleClosed(Data, frozen=True, kw_only=True):
    """No (more) candidate will come for this role."""

    round_id: str
    rival: Rival
    task_id: str
    reason: str


class RoundClosed(Data, frozen=True, kw_only=True):
    """Nothing is admitted any more; the judges' turn."""

    round_id: str
    reason: str


class JudgingStarted(Data, frozen=True, kw_only=True):
    """A judge took the round, against the champion reigning now. `look` counts the judgements
    made against that champion, from 1. `best` is the best that the node ever had, where that is
    another; without `gates` the defaults hold."""

    round_id: str
    judge: str
    look: int
    champion: Base | None = None
    best: Base | None = None
    gates: Gates | None = None
    budgets: tuple[BudgetLook, ...] = ()


class RoundDecided(Data, frozen=True, kw_only=True):
    """The verdict, with the revealed secret and all that the judge measured. `best_upper` is what
    the ratio to the errors of the best ever surely does not exceed."""

    round_id: str
    verdict: RoundVerdict
    secret: str
    reasons: Reasons
    candidates: list[CandidateVerdict]
    promoted: str = ""
    look: int = 0
    alpha: float = 0.0
    cases: int = 0
    champion_error: float | None = None
    baseline_error: float | None = None
    environment: dict[str, str] = {}
    weighed: tuple[Weighed, ...] = ()
    recommendation: Recommendation | None = None
    budgets: tuple[BudgetVerdict, ...] = ()
    best_upper: float | None = None


# ── the log itself ── ev.log.*


class WriterStarted(Data, frozen=True, kw_only=True):
    """A control process became the one writer; every lower epoch has stepped down."""

    epoch: int
    process: str


class CommitmentsDeposited(Data, frozen=True, kw_only=True):
    """A judge deposited commitments for future rounds: index `first` and the following."""

    judge: str
    first: int
    commitments: list[str]


class LogSealed(Data, frozen=True, kw_only=True):
    """The records `first` to `last` were read back and hashed, one seal after another.

    `digest` is that of `core.seals.chain` over `previous`, the digest of the seal before ("" for
    the first), and those records.
    """

    first: int
    last: int
    digest: str
    previous: str


class CommitmentsWithdrawn(Data, frozen=True, kw_only=True):
    """The key behind the commitments below index `before` is lost: no round takes one any more, and
    those that took one end void, without a secret."""

    judge: str
    before: int
    reason: str = ""


class LossAccepted(Data, frozen=True, kw_only=True):
    """A person let a log go on that no longer held what its notes told of, or whose artifacts were
    gone: from the record `first` on, in the words of `details`, one for each.

    `digest` is that of a seal over all records up to `last`, as they were then, of which `lost`
    only stood in for lost ones: what is lost or changed later contradicts it. `chunks` are digests
    of chunks that were lost, as far as they could be read. Where they are more than one event
    holds, others follow right behind that say the same of the log, without details.
    """

    first: int
    details: list[str]
    last: int = 0
    lost: int = 0
    digest: str = ""
    chunks: list[str] = []


class ArtifactsSwept(Data, frozen=True, kw_only=True):
    """What nothing needs any more is being taken out of the artifact store: so many messages, and
    so many bytes. `manifests` are those among them that the log named as checkpoints; candidates,
    champions, metrics, payloads and telemetry are never swept."""

    chunks: int
    bytes: int
    manifests: list[str] = []


OfTree: TypeAlias = (
    NodeAdded | ChampionPromoted | ChampionChosen | WorkloadChanged | ChampionRetired | GatesChanged
)
OfTasks: TypeAlias = (
    TaskQueued
    | TaskClaimed
    | ClaimAdopted
    | ClaimExpired
    | ClaimRevived
    | ClaimReleased
    | CheckpointStored
    | AttemptFailed
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
    | TaskRetried
)
OfWorkers: TypeAlias = (
    WorkerRegistered
    | WorkerChanged
    | SessionOpened
    | WorkerWentOffline
    | WorkerCameOnline
    | WorkerPaused
    | WorkerResumed
)
OfRounds: TypeAlias = (
    RoundOpened
    | RoleEntered
    | CandidateAdmitted
    | RoleClosed
    | RoundClosed
    | JudgingStarted
    | RoundDecided
)
OfLog: TypeAlias = (
    WriterStarted
    | CommitmentsDeposited
    | CommitmentsWithdrawn
    | LogSealed
    | LossAccepted
    | ArtifactsSwept
)
"""Events by what they are of. Who looks at one kind sets the others aside by these names and
matches the rest to the end: a new event belongs in a group here, and in each match on that group.
"""

EventData: TypeAlias = OfTree | OfTasks | OfWorkers | OfRounds | OfLog

TYPES: dict[str, type[EventData]] = {cls.__name__: cls for cls in get_args(EventData)}
RECORD_LOST = "RecordLost"
"""The type that a record has which stands in for a lost one; no event has it."""
LOST = "the record was lost, and that accepted"
"""Why such a record cannot be read."""

VERSIONS: dict[str, int] = {}
"""The current version of each type that is not at 1."""
UPCASTERS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From (type, old version) to a function that lifts its data by one version."""


class Event(NamedTuple):
    """One decoded event. `at` is microseconds since 1970; `seq` is 0 until it is stored."""

    seq: int
    at: int
    id: str
    by: str
    cause: str
    corr: str
    data: EventData


Fact: TypeAlias = tuple[int, int, EventData]
"""What a fold needs of an event: its sequence, its time (microseconds since 1970), its data."""


class Undecodable(NamedTuple):
    """A stored record this program cannot read: kept, counted and shown, never folded."""

    seq: int
    subject: str
    reason: str


_Moment: TypeAlias = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """An envelope of any type, known or not."""

    type: str
    v: int
    id: str
    at: _Moment
    by: str
    cause: str
    corr: str
    data: msgspec.Raw


class _EnvelopeOut(msgspec.Struct, frozen=True, gc=False):
    type: str
    v: int
    id: str
    at: _Moment
    by: str
    cause: str
    corr: str
    data: EventData | msgspec.Raw


def _typed(cls: type[EventData]) -> type[msgspec.Struct]:
    """The envelope of one type of event, its data included, for decoding in one go."""
    fields: list[tuple[str, Any]] = [
        ("v", int),
        ("id", str),
        ("at", _Moment),
        ("by", str),
        ("cause", str),
        ("corr", str),
        ("data", cls),
    ]
    return msgspec.defstruct(
        f"_{cls.__name__}Envelope",
        fields,
        tag_field="type",
        tag=cls.__name__,
        frozen=True,
        gc=False,
    )


_encode = msgspec.json.Encoder().encode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_data = {name: msgspec.json.Decoder(cls).decode for name, cls in TYPES.items()}
_decode_block = msgspec.json.Decoder(
    list[Union[tuple(_typed(cls) for cls in TYPES.values())]]  # type: ignore[misc]  # noqa: UP007
).decode


def encode(event: Event, raw: msgspec.Raw | None = None) -> bytes:
    """The stored form of an event, UTF-8 JSON; `raw` is its data, where that is encoded already."""
    name = type(event.data).__name__
    at = _EPOCH + datetime.timedelta(microseconds=event.at)
    data = event.data if raw is None else raw
    return _encode(
        _EnvelopeOut(
            name, VERSIONS.get(name, 1), event.id, at, event.by, event.cause, event.corr, data
        )
    )


def is_lost_record(record: Record) -> bool:
    """Whether a stored record stands in for a lost one."""
    if not record.data.startswith(_LOST_OPENING):  # far cheaper than to decode it
        return False
    found = decode(*record)
    return isinstance(found, Undecodable) and found.reason == LOST


_LOST_OPENING = f'{{"type":"{RECORD_LOST}"'.encode()


def lost_record(seq: int, at: int) -> bytes:
    """What takes the place of a record that was lost, so that the sequence stays whole: no event,
    and read back as undecodable. `at` is in microseconds."""
    moment = _EPOCH + datetime.timedelta(microseconds=at)
    nothing = msgspec.Raw(b"{}")
    return _encode(_EnvelopeOut(RECORD_LOST, 1, f"lost-{seq}", moment, "person", "", "", nothing))


class Reread(NamedTuple):
    """An event's data as the log will give it back, and its stored form."""

    data: EventData
    raw: msgspec.Raw


def reread(data: EventData) -> Reread:
    """An event's data as it will be read back from its stored form.

    Folding what is read back makes the live state what a replay makes. Raises errors.UnfitEvent for
    data that could not be read again.
    """
    try:
        raw = _encode(data)
        return Reread(_decode_data[type(data).__name__](raw), msgspec.Raw(raw))
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise errors.UnfitEvent(
            f"{type(data).__name__} could not be read back, so it is not stored: {error}"
        ) from error


def decode(seq: int, subject: str, raw: bytes) -> Event | Undecodable:
    """The event stored at `seq`, or why it cannot be read."""
    try:
        envelope = _decode_envelope(raw)
        decoder = _decode_data.get(envelope.type)
        if envelope.type == RECORD_LOST:
            return Undecodable(seq, subject, LOST)
        if decoder is None:
            return Undecodable(seq, subject, f"unknown type {envelope.type[:80]!r}")
        version = VERSIONS.get(envelope.type, 1)
        if not 1 <= envelope.v <= version:
            return Undecodable(
                seq,
                subject,
                f"{envelope.type} has version {envelope.v}, this program knows 1 to {version}",
            )
        data = decoder(_upcast(envelope)) if envelope.v < version else decoder(envelope.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, errors.UnfitEvent) as error:
        return Undecodable(seq, subject, f"cannot be decoded: {error}")
    if subject != subject_of(data):
        return Undecodable(seq, subject, f"{envelope.type} does not belong on this subject")
    at = (envelope.at - _EPOCH) // _MICROSECOND
    if not _AT_MIN <= at <= _AT_MAX:
        return Undecodable(seq, subject, f"{envelope.at.isoformat()} is no time that can be told")
    return Event(seq, at, envelope.id, envelope.by, envelope.cause, envelope.corr, data)


def read_facts(records: Sequence[Record]) -> list[Fact] | None:
    """What a fold needs of many records, at about a third of the price of decoding each; None where
    they have to be decoded one by one, because one is no current event on its own subject."""
    raws = [record.data for record in records]
    # Whole objects only, so that no two broken records make a sound one together.
    if not all(raw[:9] == b'{"type":"' and raw[-1:] == b"}" for raw in raws):
        return None
    try:
        envelopes: list[Any] = _decode_block(b"[%s]" % b",".join(raws))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(envelopes) != len(raws):
        return None
    facts: list[Fact] = []
    for (seq, subject, _), envelope in zip(records, envelopes, strict=True):
        data = envelope.data
        prefix, field, version = _LAYOUT[type(data)]
        if envelope.v != version:
            return None
        identity = getattr(data, field) if field else ""
        usual = subject == prefix + identity and (not field or subjects.is_plain(identity))
        if not usual and subject != subject_of(data):
            return None
        # Microseconds since 1970 stay exact in a float until the year 2255.
        at = round(envelope.at.timestamp() * 1e6)
        if not _AT_MIN <= at <= _AT_MAX:
            return None
        facts.append((seq, at, data))
    return facts


def _upcast(envelope: _Envelope) -> bytes:
    data = msgspec.json.decode(envelope.data)
    for version in range(envelope.v, VERSIONS[envelope.type]):
        try:
            data = UPCASTERS[envelope.type, version](data)
        except Exception as error:  # whatever it trips over, only this record is unfit
            raise errors.UnfitEvent(f"not lifted from version {version}: {error!r}") from error
    return msgspec.json.encode(data)


_KIND: dict[type, tuple[str, str]] = {}


def subject_of(data: EventData) -> str:
    """The aggregate an event belongs to, as its subject."""
    known = _KIND.get(type(data))
    if known is None:
        known = _KIND.setdefault(type(data), _aggregate(type(data)))
    kind, field = known
    if not field:
        return kind
    return subjects.event(kind, getattr(data, field))


def _aggregate(cls: type[EventData]) -> tuple[str, str]:
    if cls is WriterStarted:
        return subjects.LOG_WRITER, ""
    if cls in (CommitmentsDeposited, CommitmentsWithdrawn):
        return subjects.LOG_COMMITMENTS, ""
    if cls is LogSealed:
        return subjects.LOG_SEAL, ""
    if cls is LossAccepted:
        return subjects.LOG_LOSS, ""
    if cls is ArtifactsSwept:
        return subjects.LOG_SWEEP, ""
    fields = cls.__struct_fields__
    for kind, field in (
        ("node", "node_id"),
        ("worker", "worker_id"),
        ("task", "task_id"),
        ("round", "round_id"),
    ):
        # The aggregate's own id is the first field of its events.
        if fields[0] == field:
            return kind, field
    raise AssertionError(f"{cls.__name__} names no aggregate")


_LAYOUT: dict[type, tuple[str, str, int]] = {
    cls: (f"ev.{kind}." if field else kind, field, VERSIONS.get(name, 1))
    for name, cls in TYPES.items()
    for kind, field in [_aggregate(cls)]
}
"""What a subject begins with, the field that ends it unless its id needs hashing, the version."""


def isoformat(at: int) -> str:
    """A time of the log as people and clients read it: ISO 8601, UTC, microseconds."""
    moment = _EPOCH + datetime.timedelta(microseconds=at)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


replace = msgspec.structs.replace
"""A copy of a value with some fields changed."""
