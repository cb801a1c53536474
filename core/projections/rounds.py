"""Rounds: whose candidates stand against which champion, and what was decided."""

from typing import Literal, assert_never

from core import errors, events
from core.events import (
    Base,
    BudgetLook,
    Candidate,
    CandidateVerdict,
    Reasons,
    Rival,
    Role,
    Workload,
)
from core.projections.tables import Table
from core.values import BudgetVerdict, Gates, Recommendation, Weighed

RIVALS: tuple[Rival, ...] = ("evolver", "reinventor")
Status = Literal["open", "closed", "judging", "decided"]


def base_of(candidate: Candidate) -> Base:
    """A candidate as something that others are made of."""
    return Base(
        candidate_id=candidate.candidate_id,
        manifest=candidate.manifest,
        writer=candidate.writer,
        weights_sha256=candidate.weights_sha256,
    )


def rivals_of(role: Role) -> tuple[Rival, ...]:
    """The candidates a task of this role brings."""
    return RIVALS if role == "dual" else (role,)


class Entry(events.Value, frozen=True, kw_only=True):
    """One role of a round: the task that brings its candidate, and whether it has."""

    rival: Rival
    task_id: str
    state: Literal["awaited", "admitted", "closed"] = "awaited"
    reason: str = ""


class Standing(events.Value, frozen=True, kw_only=True):
    """A candidate in a round, with the task and worker it comes from."""

    candidate: Candidate
    task_id: str
    worker_id: str


class Decision(events.Value, frozen=True, kw_only=True):
    """What the judge said."""

    verdict: str
    secret: str
    reasons: Reasons
    candidates: tuple[CandidateVerdict, ...]
    promoted: str
    alpha: float
    cases: int
    champion_error: float | None
    baseline_error: float | None
    environment: dict[str, str]
    decided_at: int
    weighed: tuple[Weighed, ...] = ()
    recommendation: Recommendation | None = None
    budgets: tuple[BudgetVerdict, ...] = ()
    best_upper: float | None = None


class Round(events.Value, frozen=True, kw_only=True, tag=True):
    """A round with its whole history."""

    round_id: str
    node_id: str
    index: int
    commitment: str
    workload: Workload
    base: Base | None
    opened_at: int
    closes_at: int
    status: Status = "open"
    entries: tuple[Entry, ...] = ()
    standings: tuple[Standing, ...] = ()
    close_reason: str = ""
    judge: str = ""
    look: int = 0
    champion: Base | None = None
    best: Base | None = None
    gates: Gates = Gates()
    budgets: tuple[BudgetLook, ...] = ()
    decision: Decision | None = None


class Decided(events.Value, frozen=True, kw_only=True, tag=True):
    """A decided round in brief; the rest is in the log on its subject."""

    round_id: str
    node_id: str
    verdict: str
    opened_at: int
    decided_at: int

    @property
    def status(self) -> Status:
        """Decided, by definition."""
        return "decided"


class Waiting(events.Value, frozen=True, kw_only=True):
    """A claimed task whose candidates wait for the node's next round."""

    task_id: str
    role: Role
    worker_id: str
    workload: Workload
    candidates: tuple[Candidate, ...] | None = None


class Judged(events.Value, frozen=True, kw_only=True):
    """The models that were measured in a round: its candidates, and the champion they met; the
    mean error of each, and which roles the candidates were brought for."""

    workload: Workload
    models: tuple[Base, ...]
    errors: tuple[float | None, ...] = ()
    brought: tuple[Rival, ...] = ()


class NodeRounds(events.Value, frozen=True, kw_only=True):
    """A node's open round, the tasks waiting for the next, the looks at its champion and at its
    budgets' ones, and what was judged last."""

    node_id: str
    open_round: str = ""
    waiting: tuple[Waiting, ...] = ()
    looks: int = 0
    looked_at: str = ""
    budgets: tuple[BudgetLook, ...] = ()
    judged: Judged | None = None


class Commitment(events.Value, frozen=True, kw_only=True):
    """A commitment no round has taken yet."""

    index: int
    commitment: str


def evolve(row: Round | None, at: int, data: events.OfRounds) -> Round:
    """Fold one event into a round's whole record."""
    if isinstance(data, events.RoundOpened):
        return _opened(at, data)
    if row is None:
        raise errors.UnfitEvent(f"{type(data).__name__} before RoundOpened")
    match data:
        case events.RoleEntered():
            entry = Entry(rival=data.rival, task_id=data.task_id)
            kept = tuple(e for e in row.entries if e.rival != data.rival)
            return events.replace(row, entries=(*kept, entry))
        case events.CandidateAdmitted():
            standing = Standing(
                candidate=data.candidate, task_id=data.task_id, worker_id=data.worker_id
            )
            entries = _settled(row, data.candidate.rival, "admitted", "")
            return events.replace(row, entries=entries, standings=(*row.standings, standing))
        case events.RoleClosed():
            return events.replace(row, entries=_settled(row, data.rival, "closed", data.reason))
        case events.RoundClosed():
            return events.replace(row, status="closed", close_reason=data.reason)
        case events.JudgingStarted():
            return events.replace(
                row,
                status="judging",
                judge=data.judge,
                look=data.look,
                champion=data.champion,
                best=data.best,
                gates=data.gates or Gates(),
                budgets=data.budgets,
            )
        case events.RoundDecided():
            return events.replace(row, status="decided", decision=_decision(at, data))
        case _:
            assert_never(data)


def _opened(at: int, data: events.RoundOpened) -> Round:
    return Round(
        round_id=data.round_id,
        node_id=data.node_id,
        index=data.index,
        commitment=data.commitment,
        workload=data.workload,
        base=data.base,
        opened_at=at,
        closes_at=data.closes_at,
    )


def _decision(at: int, data: events.RoundDecided) -> Decision:
    return Decision(
        verdict=data.verdict,
        secret=data.secret,
        reasons=data.reasons,
        candidates=tuple(data.candidates),
        promoted=data.promoted,
        alpha=data.alpha,
        cases=data.cases,
        champion_error=data.champion_error,
        baseline_error=data.baseline_error,
        environment=data.environment,
        decided_at=at,
        weighed=data.weighed,
        recommendation=data.recommendation,
        budgets=data.budgets,
        best_upper=data.best_upper,
    )


def _settled(
    row: Round, rival: Rival, state: Literal["admitted", "closed"], reason: str
) -> tuple[Entry, ...]:
    return tuple(
        events.replace(entry, state=state, reason=reason) if entry.rival == rival else entry
        for entry in row.entries
    )


def _judged(row: Round, data: events.RoundDecided) -> Judged | None:
    """The measured models of a round; None where nothing was measured."""
    found = {one.candidate_id: one.error for one in data.candidates if one.error is not None}
    measured = [one.candidate for one in row.standings if one.candidate.candidate_id in found]
    if not measured:
        return None
    models = [base_of(candidate) for candidate in measured]
    errs: list[float | None] = [found[candidate.candidate_id] for candidate in measured]
    if row.champion is not None:
        models.append(row.champion)
        errs.append(data.champion_error)
    return Judged(
        workload=row.workload,
        models=tuple(models),
        errors=tuple(errs),
        brought=tuple(candidate.rival for candidate in measured),
    )


class Rounds:
    """All rounds, what each node waits for, and the commitments still free."""

    def __init__(self) -> None:
        self.table: Table[Round | Decided] = Table("rounds")
        self.nodes: Table[NodeRounds] = Table("node_rounds")
        self.commitments: Table[Commitment] = Table("commitments")
        self.next_deposit = 0
        self.withdrawn_before = 0
        """Commitments of lower index were made with a key that is lost."""
        self.ids: list[str] = []
        self.of_node: dict[str, list[str]] = {}
        self.undecided: dict[str, None] = {}
        self.open: dict[str, None] = {}

    @property
    def awaiting_judgement(self) -> int:
        """How many closed rounds no judge has decided."""
        return len(self.undecided) - len(self.open)

    @property
    def newest(self) -> Commitment | None:
        """The newest commitment that judges still have to open; None when there is none."""
        if len(self.commitments):
            return next(reversed(self.commitments.rows.values()))
        rows = (self.table.rows[round_id] for round_id in self.undecided)
        bound = [
            Commitment(index=row.index, commitment=row.commitment)
            for row in rows
            if isinstance(row, Round) and row.index >= self.withdrawn_before
        ]
        return max(bound, key=lambda one: one.index, default=None)

    def node(self, node_id: str) -> NodeRounds:
        """A node's rounds; empty ones where it had none."""
        return self.nodes.get(node_id) or NodeRounds(node_id=node_id)

    def apply(self, seq: int, at: int, data: events.OfRounds) -> None:
        """Fold an event of a round."""
        round_id = data.round_id
        before = self.table.get(round_id)
        if isinstance(before, Decided) or (before and isinstance(data, events.RoundOpened)):
            raise errors.UnfitEvent(f"{type(data).__name__} on a round that is {before.status}")
        after = evolve(before, at, data)
        self._index(after, data)
        if after.decision is not None:
            brief = Decided(
                round_id=round_id,
                node_id=after.node_id,
                verdict=after.decision.verdict,
                opened_at=after.opened_at,
                decided_at=after.decision.decided_at,
            )
            self.table.put(round_id, brief)
        else:
            self.table.put(round_id, after)

    def _index(self, after: Round, data: events.OfRounds) -> None:
        node = self.node(after.node_id)
        match data:
            case events.RoundOpened():
                self.commitments.drop(str(after.index))  # first: it may not fit
                self.ids.append(after.round_id)
                self.of_node.setdefault(after.node_id, []).append(after.round_id)
                self.undecided[after.round_id] = None
                self.nodes.put(after.node_id, events.replace(node, open_round=after.round_id))
            case events.RoundClosed():
                self.nodes.put(after.node_id, events.replace(node, open_round=""))
            case events.JudgingStarted():
                looked_at = after.champion.candidate_id if after.champion else ""
                looks = after.look
                if looked_at == node.looked_at:  # an older round whose judge was lost goes back
                    looks = max(looks, node.looks)
                node = events.replace(node, looks=looks, looked_at=looked_at, budgets=after.budgets)
                self.nodes.put(after.node_id, node)
            case events.RoleEntered():
                waiting = tuple(w for w in node.waiting if w.task_id != data.task_id)
                if waiting != node.waiting:
                    self.nodes.put(after.node_id, events.replace(node, waiting=waiting))
            case events.RoundDecided():
                self.undecided.pop(after.round_id)
                judged = _judged(after, data) or node.judged
                # Where its closing was lost, nothing else ended it.
                still = "" if node.open_round == after.round_id else node.open_round
                ended = events.replace(node, judged=judged, open_round=still)
                if ended != node:
                    self.nodes.put(after.node_id, ended)
            case events.CandidateAdmitted() | events.RoleClosed():
                pass
            case _:
                assert_never(data)
        if after.status == "open":
            self.open[after.round_id] = None
        else:
            self.open.pop(after.round_id, None)

    def task_claimed(self, row: Waiting, node_id: str) -> None:
        """A claimed task begins to wait for a round, unless it does already."""
        node = self.node(node_id)
        if all(waiting.task_id != row.task_id for waiting in node.waiting):
            self.nodes.put(node_id, events.replace(node, waiting=(*node.waiting, row)))

    def task_ended(
        self, node_id: str, task_id: str, worker_id: str, candidates: tuple[Candidate, ...]
    ) -> None:
        """A waiting task ended: its candidates wait on, or it waits no more."""
        node = self.nodes.get(node_id)
        if node is None or not node.waiting:
            return
        waiting = []
        for row in node.waiting:
            if row.task_id != task_id:
                waiting.append(row)
            elif candidates:
                waiting.append(events.replace(row, candidates=candidates, worker_id=worker_id))
        if tuple(waiting) != node.waiting:
            self.nodes.put(node_id, events.replace(node, waiting=tuple(waiting)))

    def deposited(self, seq: int, at: int, data: events.CommitmentsDeposited) -> None:
        """Fold CommitmentsDeposited."""
        for index, commitment in enumerate(data.commitments, data.first):
            self.commitments.put(str(index), Commitment(index=index, commitment=commitment))
        self.next_deposit = data.first + len(data.commitments)

    def withdrawn(self, seq: int, at: int, data: events.CommitmentsWithdrawn) -> None:
        """Fold CommitmentsWithdrawn."""
        for free in [one for one in self.commitments if one.index < data.before]:
            self.commitments.drop(str(free.index))
        self.withdrawn_before = max(self.withdrawn_before, data.before)

    def restore(self, rows: list[Round | Decided]) -> None:
        """Put back rows of a snapshot in their order, and what follows from them."""
        for row in rows:
            self.table.rows[row.round_id] = row
            self.ids.append(row.round_id)
            self.of_node.setdefault(row.node_id, []).append(row.round_id)
