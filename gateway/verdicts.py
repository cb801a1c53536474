"""Rounds, champions and gates, in the words of answers."""

from collections.abc import Iterable, Sequence

from core import events, lineage
from core.events import Base, Champion
from core.gates import SETTINGS
from core.lineage import Reign
from core.projections import rounds
from core.projections.questions import Question
from core.projections.rounds import Decided, Round
from core.values import (
    Budget,
    BudgetVerdict,
    Check,
    Gates,
    Latency,
    Recommendation,
    Weighed,
)
from gateway import judgement, schemas


def base_of(base: Base) -> schemas.Base:
    """A model that something starts from or is measured against."""
    return schemas.Base(
        candidate_id=base.candidate_id, weights_sha256=base.weights_sha256, manifest=base.manifest
    )


def gates_of(gates: Gates, *, inherited: bool = False) -> judgement.Gates:
    """Gates, and whether they are not a node's own."""
    return judgement.Gates(
        inherited=inherited,
        **{name: getattr(gates, name) for name in SETTINGS},
        budgets=[_budget(one) for one in gates.budgets],
    )


def _budget(one: Budget) -> judgement.Budget:
    return judgement.Budget(name=one.name, latency_max=one.latency_max, bytes_max=one.bytes_max)


def throne_of(
    budget: Budget, reigns: Sequence[Reign], told: list[judgement.LineageEntry]
) -> judgement.BudgetThrone:
    """A budget, with who reigns for it, and who did, in the words of an answer."""
    now = lineage.reigning(reigns)
    return judgement.BudgetThrone(
        name=budget.name,
        latency_max=budget.latency_max,
        bytes_max=budget.bytes_max,
        champion=None if now is None else champion_of(now.champion, reigns),
        lineage=told,
    )


def champion_of(champion: Champion, reigns: Iterable[Reign]) -> judgement.Champion:
    """A champion, and since when it reigns."""
    promoted = [
        reign.promoted_at
        for reign in reigns
        if reign.champion.candidate_id == champion.candidate_id
    ]
    return judgement.Champion(
        candidate_id=champion.candidate_id,
        round_id=champion.round_id,
        task_id=champion.task_id,
        worker_id=champion.worker_id,
        role=champion.rival,
        weights_sha256=champion.weights_sha256,
        manifest=champion.manifest,
        error=champion.error,
        baseline_error=champion.baseline_error,
        evidence_rate=champion.evidence_rate,
        below_baseline=champion.below_baseline,
        params=champion.params,
        bytes=champion.bytes,
        promoted_at=events.isoformat(promoted[-1]) if promoted else None,
    )


def lineage_of(reign: Reign) -> judgement.LineageEntry:
    """A reign, in the words of an answer."""
    champion = reign.champion
    return judgement.LineageEntry(
        candidate_id=champion.candidate_id,
        instead_of=reign.instead_of or None,
        round_id=champion.round_id,
        role=champion.rival,
        weights_sha256=champion.weights_sha256,
        error=champion.error,
        promoted_at=events.isoformat(reign.promoted_at),
        task_id=champion.task_id,
        worker_id=champion.worker_id,
        baseline_error=champion.baseline_error,
        evidence_rate=champion.evidence_rate,
        below_baseline=champion.below_baseline,
        params=champion.params,
        bytes=champion.bytes,
        retired_at=events.isoformat(reign.retired_at) if reign.retired_at else None,
        reason=reign.reason,
        by=reign.by,
        choice=reign.kind,
        because=reign.because,
    )


def question_of(one: Question) -> judgement.Question:
    """What waits for a person, in the words of an answer."""
    return judgement.Question(
        round_id=one.round_id,
        candidate_id=one.candidate_id,
        asked_at=events.isoformat(one.asked_at),
        error=one.error,
        champion_error=one.champion_error,
        ratio=one.ratio,
        bytes=one.bytes,
        reasons=reasons_of(one.reasons),
    )


def _verdict(row: Round | Decided) -> str | None:
    return row.verdict if isinstance(row, Decided) else None


def node_round_of(row: Round | Decided) -> judgement.NodeRound:
    """A round in its node's list."""
    return judgement.NodeRound(round_id=row.round_id, status=row.status, verdict=_verdict(row))


def summary_of(row: Round | Decided) -> judgement.RoundSummary:
    """A round in a list of rounds."""
    return judgement.RoundSummary(
        round_id=row.round_id,
        node_id=row.node_id,
        status=row.status,
        verdict=_verdict(row),
        opened_at=events.isoformat(row.opened_at),
        decided_at=events.isoformat(row.decided_at) if isinstance(row, Decided) else None,
    )


def round_of(row: Round) -> judgement.RoundDetail:
    """A round whole."""
    decision = row.decision
    return judgement.RoundDetail(
        round_id=row.round_id,
        node_id=row.node_id,
        status=row.status,
        commitment=row.commitment,
        secret=(decision.secret or None) if decision else None,
        base=base_of(row.base) if row.base else None,
        candidates=[_round_candidate(standing, decision) for standing in row.standings],
        verdict=decision.verdict if decision else None,
        reasons=reasons_of(decision.reasons) if decision else None,
        decided_at=events.isoformat(decision.decided_at) if decision else None,
        opened_at=events.isoformat(row.opened_at),
        closes_at=events.isoformat(row.closes_at),
        entries=[
            judgement.RoundEntry(
                role=entry.rival, task_id=entry.task_id, state=entry.state, reason=entry.reason
            )
            for entry in row.entries
        ],
        close_reason=row.close_reason,
        judge=row.judge or None,
        look=row.look,
        champion=base_of(row.champion) if row.champion else None,
        best=base_of(row.best) if row.best else None,
        gates=gates_of(row.gates) if row.judge else None,
        alpha=decision.alpha if decision else None,
        cases=decision.cases if decision else None,
        champion_error=decision.champion_error if decision else None,
        baseline_error=decision.baseline_error if decision else None,
        weighed=[_weighed(one) for one in (decision.weighed if decision else ())],
        recommendation=_recommendation(decision.recommendation if decision else None),
        budgets=[_budget_verdict(one) for one in (decision.budgets if decision else ())],
    )


def _weighed(one: Weighed) -> judgement.Weighed:
    latency = one.latency
    return judgement.Weighed(
        candidate_id=one.candidate_id,
        error=one.error,
        evidence_rate=one.evidence_rate,
        params=one.params,
        bytes=one.bytes,
        memory_bytes=one.memory_bytes,
        latency=None if latency is None else _latency(latency),
        shifted_error=one.shifted_error,
        is_front=one.is_front,
    )


def _latency(one: Latency) -> judgement.Latency:
    return judgement.Latency(
        ratio=one.ratio,
        lower=one.lower,
        upper=one.upper,
        p50_ms=one.p50_ms,
        p95_ms=one.p95_ms,
        reference_ms=one.reference_ms,
        spread=one.spread,
        against=one.against,
        against_lower=one.against_lower,
        against_upper=one.against_upper,
        readings=one.readings,
        shared_with=one.shared_with or None,
    )


def _recommendation(one: Recommendation | None) -> judgement.Recommendation | None:
    if one is None:
        return None
    return judgement.Recommendation(
        action=one.action,
        candidate_id=one.candidate_id or None,
        reasons=reasons_of(one.reasons),
    )


def _budget_verdict(one: BudgetVerdict) -> judgement.BudgetVerdict:
    return judgement.BudgetVerdict(
        budget=one.budget,
        against=one.against or None,
        promoted=one.promoted or None,
        reasons=reasons_of(one.reasons),
        look=one.look,
        alpha=one.alpha,
        cases=one.cases,
        error=one.error,
        champion_error=one.champion_error,
        ratio=one.ratio,
        ratio_upper=one.ratio_upper,
    )


def _check(one: Check) -> judgement.Check:
    return judgement.Check(
        name=one.name,
        verdict=one.verdict,
        value=one.value,
        bound=one.bound,
        lower=one.lower,
        upper=one.upper,
    )


def _round_candidate(
    standing: rounds.Standing, decision: rounds.Decision | None
) -> judgement.RoundCandidate:
    candidate = standing.candidate
    said = said_of(candidate.candidate_id, decision)
    return judgement.RoundCandidate(
        candidate_id=candidate.candidate_id,
        task_id=standing.task_id,
        worker_id=standing.worker_id,
        role=candidate.rival,
        weights_sha256=candidate.weights_sha256,
        verdict=said.verdict if said else None,
        reasons=reasons_of(said.reasons) if said else None,
        error=said.error if said else None,
        evidence_rate=said.evidence_rate if said else None,
        ratio_upper=said.ratio_upper if said else None,
        ratio=said.ratio if said else None,
        params=said.params if said else 0,
        bytes=candidate.bytes,
        gates=[_check(one) for one in (said.gates if said else ())],
        claimed=judgement.Claimed(
            loss=candidate.claims.get("loss"), evidence_rate=candidate.claims.get("evidence_rate")
        ),
    )


def said_of(candidate_id: str, decision: rounds.Decision | None) -> events.CandidateVerdict | None:
    """What a verdict says of a candidate."""
    told = decision.candidates if decision else ()
    return next((one for one in told if one.candidate_id == candidate_id), None)


def reasons_of(reasons: events.Reasons) -> judgement.Reasons:
    """Why, in both languages."""
    return judgement.Reasons(ar=reasons.ar, en=reasons.en)
