"""Requests and answers about gates, rounds and champions, as `gateway.schemas` has the others."""

from typing import Annotated, Literal

import msgspec

from core.decide.champions import REASON_CHARS_MAX
from core.gates import BUDGET_NAME_CHARS_MAX, BUDGETS_MAX
from gateway.schemas import (
    Answer,
    Attempt,
    Base,
    JsonObject,
    Name,
    Node,
    Page,
    Part,
    Query,
    Request,
    RoundStatus,
    Workload,
    empty_object,
)

ROUNDS_OF_PAGE_MAX = 100

BudgetName = Annotated[str, msgspec.Meta(max_length=BUDGET_NAME_CHARS_MAX)]
Reason = Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)]


# ── requests ──


class RoundsQuery(Query, frozen=True, kw_only=True):
    """Which rounds to list; `after` is the `next` of the page before, or a round_id."""

    status: RoundStatus | None = None
    node_id: str | None = None
    after: str | None = None
    limit: Page = 100


class QuestionsQuery(Query, frozen=True, kw_only=True):
    """How many nodes to list; `after` is the `next` of the page before, or a node_id."""

    after: str | None = None
    limit: Page = 100


class CandidatesQuery(Query, frozen=True, kw_only=True):
    """Which candidates of a node to list: those of so many rounds, newest first, or one by its id.
    `after` is the `next` of the page before, or a round_id."""

    candidate_id: str | None = None
    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_OF_PAGE_MAX)] = 20


class BudgetRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody who serves models can afford; `latency_max` is in times of the reference
    kernel."""

    name: BudgetName
    latency_max: Annotated[float, msgspec.Meta(ge=0)] | None = None
    bytes_max: Annotated[int, msgspec.Meta(ge=1)] | None = None


class GatesRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Judge a node's candidates by other gates: `set` has numbers by name, `budgets` are stated in
    place of those of their names, and those named in `drop` are stated no longer. `reset` first
    gives up what the node has of its own."""

    set: JsonObject = msgspec.field(default_factory=empty_object)
    budgets: Annotated[list[BudgetRequest], msgspec.Meta(max_length=BUDGETS_MAX)] = msgspec.field(
        default_factory=list
    )
    drop: Annotated[list[BudgetName], msgspec.Meta(max_length=BUDGETS_MAX)] = msgspec.field(
        default_factory=list
    )
    reset: bool = False


class PromoteRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let a candidate reign that a judge measured, over its node or for a budget. `round_id` says
    where it stood; without it the newest thousand rounds are searched."""

    candidate_id: Name
    round_id: Name | None = None
    budget: BudgetName = ""
    reason: Reason = ""


class RollbackRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give the throne back to a former champion; without `to` to the one before."""

    to: Name | None = None
    budget: BudgetName = ""
    reason: Reason = ""


# ── gates ──


class Budget(Part, frozen=True, kw_only=True):
    """What somebody who serves models can afford; null bounds nothing."""

    name: str
    latency_max: float | None
    bytes_max: int | None


class Gates(Part, frozen=True, kw_only=True):
    """By which bounds a node's candidates are judged, and whether an ancestor lent them, or nobody.
    Ratios are to the champion's figures."""

    inherited: bool
    better_ratio: float
    margin: float
    evidence_drop: float
    latency_ratio: float
    size_ratio: float
    memory_ratio: float
    shifted_ratio: float
    cheaper_latency: float
    cheaper_size: float
    exchange: float
    exchange_most: float
    budgets: list[Budget]


class GatedNode(Part, frozen=True, kw_only=True):
    """A node, and by what its candidates are judged."""

    node_id: str
    gates: Gates


class RetiredChampion(Part, frozen=True, kw_only=True):
    """Whose reign for a budget ended, since that is stated no longer, or asks for more."""

    node_id: str
    budget: str
    candidate_id: str


class GatesAnswer(Answer, frozen=True, kw_only=True):
    """The node as it is judged now, and whose reigns that ended, there and below."""

    node: GatedNode
    retired: list[RetiredChampion]


class Check(Part, frozen=True, kw_only=True):
    """One gate's verdict on a candidate: what was measured, between what it surely lies, and what
    was asked."""

    name: str
    verdict: Literal["pass", "fail", "undecided"]
    value: float | None
    bound: float | None
    lower: float | None
    upper: float | None


# ── champions ──


class Reasons(Part, frozen=True, kw_only=True):
    """Why, in words."""

    ar: str
    en: str


class Champion(Part, frozen=True, kw_only=True):
    """The model a node serves, measured on hidden cases."""

    candidate_id: str
    round_id: str
    task_id: str
    worker_id: str
    role: str
    weights_sha256: str
    manifest: str
    error: float
    baseline_error: float
    evidence_rate: float
    below_baseline: bool
    params: int
    bytes: int
    promoted_at: str | None


class ChosenChampion(Part, frozen=True, kw_only=True):
    """Who reigns over a node, or for a budget of it, once a person has chosen, and who did until
    then."""

    node_id: str
    budget: str
    champion: Champion
    instead_of: Champion | None


class ChosenAnswer(Answer, frozen=True, kw_only=True):
    """Who reigns now."""

    chosen: ChosenChampion


class LineageEntry(Part, frozen=True, kw_only=True):
    """One champion of a node's past and present, whom it replaced, and when and why its reign ended
    without a successor. Where a person chose it (`by`), `choice` is how and `because` why."""

    candidate_id: str
    instead_of: str | None
    round_id: str
    role: str
    weights_sha256: str
    error: float
    promoted_at: str
    task_id: str
    worker_id: str
    baseline_error: float
    evidence_rate: float
    below_baseline: bool
    params: int
    bytes: int
    retired_at: str | None
    reason: str
    by: Literal["judge", "person"]
    choice: Literal["", "promote", "rollback"]
    because: str


class BudgetThrone(Budget, frozen=True, kw_only=True):
    """A budget of a node, who reigns for it, and who did."""

    champion: Champion | None
    lineage: list[LineageEntry]


class PastBudget(Part, frozen=True, kw_only=True):
    """A budget that is stated no longer, and who reigned for it."""

    name: str
    lineage: list[LineageEntry]


class Question(Part, frozen=True, kw_only=True):
    """A model that a round would neither promote nor refuse, so that a person decides, with what
    the gate measured of it and of the champion; `ratio` is of their errors."""

    round_id: str
    candidate_id: str
    asked_at: str
    error: float | None
    champion_error: float | None
    ratio: float | None
    bytes: int
    reasons: Reasons


class AskingNode(Part, frozen=True, kw_only=True):
    """A node with what waits for a person there, the lowest ratio of errors first."""

    node_id: str
    questions: list[Question]


class QuestionsAnswer(Answer, frozen=True, kw_only=True):
    """A page of the nodes at which something waits for a person, by their ids, of `total`; `next`
    is null on the last."""

    nodes: list[AskingNode]
    total: int
    next: str | None


class CandidateRecord(Part, frozen=True, kw_only=True):
    """A candidate of a node, from its topic through every attempt to its bytes. `base` is the model
    that it started or learned from, `parents` are those that it was merged of; `reigns` says over
    what it reigns now: "" is the node, others are its budgets."""

    candidate_id: str
    role: str
    task_id: str
    topic: str
    method: str
    method_reason: str
    base: Base | None
    parents: list[Base]
    attempts: list[Attempt]
    worker_id: str
    completed_at: str | None
    round_id: str
    round_status: RoundStatus
    verdict: str | None
    reasons: Reasons | None
    error: float | None
    evidence_rate: float | None
    params: int
    bytes: int
    weights_sha256: str
    manifest: str
    reigns: list[str]


class CandidatesAnswer(Answer, frozen=True, kw_only=True):
    """Candidates of a node, those of its newest rounds first; `next` is null at the end."""

    candidates: list[CandidateRecord]
    next: str | None


# ── rounds ──


class NodeRound(Part, frozen=True, kw_only=True):
    """A round in a node's list."""

    round_id: str
    status: RoundStatus
    verdict: str | None


class RoundSummary(Part, frozen=True, kw_only=True):
    """A round in a list."""

    round_id: str
    node_id: str
    status: RoundStatus
    verdict: str | None
    opened_at: str
    decided_at: str | None


class RoundsAnswer(Answer, frozen=True, kw_only=True):
    """A page of rounds, oldest first; `next` is null on the last. `awaiting_judgement` counts the
    closed rounds that no judge has decided, of all nodes."""

    rounds: list[RoundSummary]
    next: str | None
    awaiting_judgement: int


class RoundEntry(Part, frozen=True, kw_only=True):
    """A role of a round: the task that brings its candidate, and whether it has."""

    role: str
    task_id: str
    state: Literal["awaited", "admitted", "closed"]
    reason: str


class Latency(Part, frozen=True, kw_only=True):
    """How long a model takes for one input: `ratio` in times of the reference kernel, `against` in
    times of the champion, each between what it surely lies."""

    ratio: float
    lower: float
    upper: float
    p50_ms: float
    p95_ms: float
    reference_ms: float
    spread: float
    against: float | None
    against_lower: float | None
    against_upper: float | None
    readings: int
    shared_with: str | None


class Weighed(Part, frozen=True, kw_only=True):
    """A model on the scales of a round, the champion's too. `is_front`: no other had all of error,
    latency and bytes lower."""

    candidate_id: str
    error: float
    evidence_rate: float
    params: int
    bytes: int
    memory_bytes: int
    latency: Latency | None
    shifted_error: float | None
    is_front: bool


class Recommendation(Part, frozen=True, kw_only=True):
    """What a round comes to: promote a model, keep the champion, or ask a person."""

    action: Literal["promote", "keep", "ask"]
    candidate_id: str | None
    reasons: Reasons


class BudgetVerdict(Part, frozen=True, kw_only=True):
    """What a round means to the champion of a budget: whom it met, and who reigns by it, if new."""

    budget: str
    against: str | None
    promoted: str | None
    reasons: Reasons
    look: int
    alpha: float
    cases: int
    error: float | None
    champion_error: float | None
    ratio: float | None
    ratio_upper: float | None


class Claimed(Part, frozen=True, kw_only=True):
    """What a worker measured of its own model, on validation cases."""

    loss: float | None
    evidence_rate: float | None


class RoundCandidate(Part, frozen=True, kw_only=True):
    """A model standing in a round, what its worker claimed, what was measured and said of it."""

    candidate_id: str
    task_id: str
    worker_id: str
    role: str
    weights_sha256: str
    verdict: str | None
    reasons: Reasons | None
    error: float | None
    evidence_rate: float | None
    ratio_upper: float | None
    ratio: float | None
    params: int
    bytes: int
    gates: list[Check]
    claimed: Claimed


class RoundDetail(Part, frozen=True, kw_only=True):
    """A round. `commitment` is the SHA-256 of the 32 bytes that `secret` reveals, both hex. It is
    judged by `gates`, against `champion` and `best`; `look` counts the judgements against that
    champion, and is 0 until one begins."""

    round_id: str
    node_id: str
    status: RoundStatus
    commitment: str
    secret: str | None
    base: Base | None
    candidates: list[RoundCandidate]
    verdict: str | None
    reasons: Reasons | None
    decided_at: str | None
    opened_at: str
    closes_at: str
    entries: list[RoundEntry]
    close_reason: str
    judge: str | None
    look: int
    champion: Base | None
    best: Base | None
    gates: Gates | None
    alpha: float | None
    cases: int | None
    champion_error: float | None
    baseline_error: float | None
    weighed: list[Weighed]
    recommendation: Recommendation | None
    budgets: list[BudgetVerdict]


class RoundAnswer(Answer, frozen=True, kw_only=True):
    """One round."""

    round: RoundDetail


# ── nodes ──


class NodeDetail(Node, frozen=True, kw_only=True):
    """A specialization with what it trains, what it serves and how that came about. `questions`
    wait for a person, the lowest ratio of errors first, until the champion is another one."""

    champion: Champion | None
    rounds: list[NodeRound]
    lineage: list[LineageEntry]
    workload: Workload
    gates: Gates
    budgets: list[BudgetThrone]
    past_budgets: list[PastBudget]
    questions: list[Question]


class NodeDetailAnswer(Answer, frozen=True, kw_only=True):
    """One node."""

    node: NodeDetail
