"""Verdicts: a judge's word on a round, taken where it speaks of that round and of what is so."""

import hashlib
from collections.abc import Iterator
from typing import Any, get_args

from core import commands, errors, events, gates
from core.decide import rounds
from core.events import Champion
from core.projections import graph
from core.projections.rounds import Decided, Round
from core.projections.state import State
from core.values import BudgetVerdict, RoundVerdict


def decide_round(state: State, command: commands.DecideRound) -> list[events.EventData]:
    """Take a judge's verdict: its secret must open the commitment, its champion still reign."""
    row = rounds.round_of(state, command.round_id)
    if isinstance(row, Decided):
        raise errors.Conflict(f"{row.round_id} is decided already: {row.verdict}")
    if row.status != "judging" or row.judge != command.judge:
        raise errors.Conflict(f"{row.round_id} is not with judge {command.judge}; take it first")
    _require_opened(state, row, command)
    reigning = state.graph.base(row.node_id, row.workload)
    if (reigning.candidate_id if reigning else "") != command.against:
        raise errors.Conflict("the champion changed while the round was judged; judge it again")
    _require_told(row, command)
    happened: list[events.EventData] = [_decided(row, command)]
    if command.verdict == "void":
        return happened
    _require_current(state, row, command)
    if command.promoted:
        happened.append(
            events.ChampionPromoted(
                node_id=row.node_id,
                champion=_champion(row, command),
                instead_of=command.against,
                is_best=is_best(command.against, command.best_upper),
            )
        )
    return [*happened, *_promoted_for_budgets(state, row, command)]


def _require_told(row: Round, command: commands.DecideRound) -> None:
    """A verdict speaks of its round: of all candidates, and of nothing else."""
    standing = {one.candidate.candidate_id for one in row.standings}
    if {one.candidate_id for one in command.candidates} != standing:
        raise errors.Invalid("a verdict names every candidate of its round, and no other")
    if command.verdict not in get_args(RoundVerdict) or (
        (command.verdict == "promote") != bool(command.promoted)
    ):
        raise errors.Invalid(
            "a verdict is promote (naming whom), keep, trade-off, undecided or void"
        )
    if command.promoted and command.promoted not in standing:
        raise errors.Invalid("only a candidate of the round can be promoted")
    advice = command.recommendation
    recommended = advice.candidate_id if advice and advice.action == "promote" else ""
    if advice and recommended != command.promoted:
        raise errors.Invalid("whoever is promoted is recommended, and nobody else")
    if advice and advice.candidate_id not in {"", *standing}:
        raise errors.Invalid("only a candidate of the round can be recommended")
    weighed = [one.candidate_id for one in command.weighed]
    if not set(weighed) <= standing | {command.against} or len(weighed) != len(set(weighed)):
        raise errors.Invalid(
            "what is weighed are the round's candidates and the champion, each once"
        )
    _require_budgets(row, command)


def _require_budgets(row: Round, command: commands.DecideRound) -> None:
    asked = [one.budget for one in row.budgets]
    told = [one.budget for one in command.budgets]
    if told and (command.verdict == "void" or sorted(told) != sorted(asked)):
        raise errors.Invalid("a verdict names each budget of its round, and no other; a void none")
    looks = {one.budget: one for one in row.budgets}
    stated = {one.name: one for one in row.gates.budgets}
    weighed = {one.candidate_id: one for one in command.weighed}
    for one in command.budgets:
        reigning = looks[one.budget].champion
        if one.against != (reigning.candidate_id if reigning else ""):
            raise errors.Invalid(f"the budget {one.budget} was to be judged against its champion")
        if one.promoted and one.promoted not in weighed:
            raise errors.Invalid("only a model that was weighed becomes the champion of a budget")
        if one.promoted and not gates.fits(weighed[one.promoted], stated[one.budget]):
            raise errors.Invalid(f"{one.promoted} costs more than the budget {one.budget} has")
        if one.promoted and (one.error is None or one.promoted == one.against):
            raise errors.Invalid("a promotion carries the measured error of somebody new")


def _require_current(state: State, row: Round, command: commands.DecideRound) -> None:
    """Nothing that was judged by changed since: what the node trains, its gates, who reigns."""
    if not state.graph.trains(row.node_id, row.workload):
        raise errors.Conflict(f"{row.node_id} trains something else now; the round is void")
    if state.graph.gates(row.node_id) != row.gates:
        raise errors.Conflict("the gates changed while the round was judged; judge it again")
    for one in command.budgets:
        reigning = graph.as_base(_of_budget(state, row, one.budget), row.workload)
        if (reigning.candidate_id if reigning else "") != one.against:
            raise errors.Conflict(
                f"the champion of the budget {one.budget} changed while the round was judged; "
                "judge it again"
            )


def _of_budget(state: State, row: Round, budget: str) -> Champion | None:
    return state.graph.of_budgets.get(graph.of_budget(row.node_id, budget))


def _promoted_for_budgets(
    state: State, row: Round, command: commands.DecideRound
) -> Iterator[events.ChampionPromoted]:
    """Whom a verdict makes the champion of a budget: a candidate, or the node's champion."""
    standing = {one.candidate.candidate_id for one in row.standings}
    for one in command.budgets:
        if not one.promoted:
            continue
        if one.promoted in standing:
            champion = _champion_of_budget(row, command, one)
        else:
            champion = state.graph.champions.rows[row.node_id]
        yield events.ChampionPromoted(
            node_id=row.node_id,
            champion=champion,
            instead_of=one.against,
            budget=one.budget,
            is_best=False,
        )


def is_best(against: str, best_upper: float | None) -> bool:
    """Whether a promoted model is the best that its node ever had: the first, or one whose errors
    surely lie below those of the best before."""
    return not against or (best_upper is not None and best_upper < 1.0)


def _require_opened(state: State, row: Round, command: commands.DecideRound) -> None:
    """The secret opens the commitment; without one a withdrawn round ends, and nothing else."""
    if not command.secret and row.index < state.rounds.withdrawn_before:
        measured = any(one.error is not None for one in command.candidates)
        if command.verdict != "void" or measured:
            raise errors.Invalid(
                f"the commitment of {row.round_id} was withdrawn: without its secret nothing can "
                f"be measured, so its verdict is void"
            )
        return
    try:
        opened = hashlib.sha256(bytes.fromhex(command.secret)).hexdigest()
    except ValueError as error:
        raise errors.Invalid(f"the secret is not hex: {error}") from error
    if opened != row.commitment:
        raise errors.Invalid("the secret does not open the round's commitment")


def _decided(row: Round, command: commands.DecideRound) -> events.RoundDecided:
    return events.RoundDecided(
        round_id=row.round_id,
        verdict=command.verdict,  # type: ignore[arg-type]
        secret=command.secret,
        reasons=command.reasons,
        candidates=command.candidates,
        promoted=command.promoted,
        look=row.look,
        alpha=command.alpha,
        cases=command.cases,
        champion_error=command.champion_error,
        baseline_error=command.baseline_error,
        environment=command.environment,
        weighed=command.weighed,
        recommendation=command.recommendation,
        budgets=command.budgets,
        best_upper=command.best_upper,
    )


def _champion(row: Round, command: commands.DecideRound) -> Champion:
    verdict = next(v for v in command.candidates if v.candidate_id == command.promoted)
    if verdict.error is None or command.baseline_error is None:
        raise errors.Invalid("a promotion carries the measured errors of candidate and baseline")
    return Champion(
        **_identity(row, command.promoted),
        error=verdict.error,
        baseline_error=command.baseline_error,
        evidence_rate=verdict.evidence_rate or 0.0,
        below_baseline=command.below_baseline,
        params=verdict.params,
        bytes=verdict.bytes,
    )


def _champion_of_budget(
    row: Round, command: commands.DecideRound, verdict: BudgetVerdict
) -> Champion:
    """Its error is of the gate's cases, its evidence rate of those it was ranked on."""
    weighed = next(one for one in command.weighed if one.candidate_id == verdict.promoted)
    if verdict.error is None or command.baseline_error is None:
        raise errors.Invalid("a promotion carries the measured errors of candidate and baseline")
    return Champion(
        **_identity(row, verdict.promoted),
        error=verdict.error,
        baseline_error=command.baseline_error,
        evidence_rate=weighed.evidence_rate,
        below_baseline=verdict.error >= command.baseline_error,
        params=weighed.params,
        bytes=weighed.bytes,
    )


def _identity(row: Round, candidate_id: str) -> dict[str, Any]:
    """Which model a champion is."""
    standing = next(one for one in row.standings if one.candidate.candidate_id == candidate_id)
    return {
        "node_id": row.node_id,
        "candidate_id": candidate_id,
        "round_id": row.round_id,
        "task_id": standing.task_id,
        "worker_id": standing.worker_id,
        "rival": standing.candidate.rival,
        "manifest": standing.candidate.manifest,
        "writer": standing.candidate.writer,
        "weights_sha256": standing.candidate.weights_sha256,
        "workload": row.workload,
    }
