"""What a node's plans are written from: its rows of the state, and its last rounds from the log."""

from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from typing import NamedTuple

import msgspec

from core import errors, plans, workloads
from core.events import Champion, Workload
from core.projections.graph import Node
from core.projections.rounds import Decided, Round
from core.projections.state import State
from core.projections.tasks import Task
from core.runtime import Runtime
from gateway.records import Records

ROUNDS_MAX = 5
TASKS_LOOKED_AT_MAX = 5_000
"""The newest of all nodes, in one turn of the loop: a few milliseconds' worth."""
FAMILY_CHARS_MAX = 64

Foresee = Callable[[], Awaitable[plans.Order | None]]
"""What the feeder would order next. Raises errors.LogUnavailable."""


async def unforeseen() -> plans.Order | None:
    """Where nobody can say."""
    return None


class Situations:
    """Gathers the situations of nodes."""

    def __init__(self, door: Runtime, records: Records, foresee: Foresee) -> None:
        self._door = door
        self._records = records
        self._foresee = foresee

    async def of(self, node_id: str) -> tuple[Node, plans.Situation]:
        """A node and how it stands. Raises NotFound, LogUnavailable."""
        rows = await self._door.read(lambda state: _rows(state, node_id))
        whole = [await self._records.round(round_id) for round_id in rows.decided]
        rounds = [one for one in whole if one.workload == rows.workload]
        made = {
            task_id: await self._made(task_id)
            for task_id in dict.fromkeys(_tasks_of(rows.champion, rounds))
        }
        outcomes = tuple(_outcome(one, made) for one in rounds)
        situation = msgspec.structs.replace(
            rows.situation,
            order=await self._foresee(),
            champion=None if rows.champion is None else _champion(rows.champion, made),
            rounds=outcomes,
            runner_up=_runner_up(outcomes, rows.mergeable),
        )
        return rows.node, situation

    async def _made(self, task_id: str) -> "_Made":
        """What is known of how a task made its models."""
        task = await self._records.task(task_id)
        budget = task.budget_seconds or 0.0
        if task.result is None:
            return _Made(budget, {})
        metrics = await self._records.metrics(task)
        try:
            told = msgspec.json.decode(metrics, type=_Metrics).rivals
        except msgspec.MsgspecError:  # metrics hold what their worker likes
            return _Made(budget, {})
        return _Made(budget, {one.weights_sha256: one for one in told.values()})


class _Model(msgspec.Struct, frozen=True):
    """What a worker told of a model it made."""

    weights_sha256: str = ""
    family: str = ""
    steps: int = 0


class _Metrics(msgspec.Struct, frozen=True):
    rivals: dict[str, _Model] = {}


class _Made(NamedTuple):
    budget_seconds: float
    models: dict[str, _Model]


class _Rows(NamedTuple):
    """What the state says. `decided` are the ids of rounds, newest last, and `mergeable` those of
    models that are not the champion."""

    node: Node
    workload: Workload
    champion: Champion | None
    decided: list[str]
    mergeable: list[str]
    situation: plans.Situation


def _rows(state: State, node_id: str) -> _Rows:
    node = state.graph.nodes.get(node_id)
    if node is None:
        raise errors.NotFound("node not found")
    workload, _ = state.graph.workload(node_id)
    champion = state.graph.champions.get(node_id)
    if champion is not None and champion.workload != workload:
        champion = None  # it is not what anybody starts from
    ids = state.rounds.of_node.get(node_id, ())
    decided = [one for one in ids if isinstance(state.rounds.table.rows[one], Decided)]
    kind = workloads.KINDS.get(workload.specialist)
    opened, failures = _tasks(state, node_id)
    situation = plans.Situation(
        node_id=node_id,
        name=node.name,
        specialist=workload.specialist,
        inherited_from=_inherited_from(state, node),
        corpus=workload.corpus.name if workload.corpus else "",
        base_model=workload.base_model.name if workload.base_model else "",
        budget_seconds_min=kind.budget_seconds_min if kind else None,
        rounds_pending=len(ids) - len(decided),
        open=opened,
        open_count=state.tasks.open_of_node.get(node_id, 0),
        failures=failures,
    )
    mergeable = _mergeable(state, node_id, workload, champion)
    return _Rows(node, workload, champion, decided[-ROUNDS_MAX:], mergeable, situation)


def _inherited_from(state: State, node: Node) -> str:
    """The ancestor whose work a node trains, "" for its own."""
    above = node
    while above.workload is None and above.parent_id is not None:
        above = state.graph.nodes.rows[above.parent_id]
    return "" if above is node else above.name


def _mergeable(
    state: State, node_id: str, workload: Workload, champion: Champion | None
) -> list[str]:
    judged = state.rounds.node(node_id).judged
    if champion is None or judged is None or judged.workload != workload:
        return []
    return [
        one.candidate_id for one in judged.models if one.weights_sha256 != champion.weights_sha256
    ]


def _runner_up(outcomes: Sequence[plans.Outcome], mergeable: Container[str]) -> str:
    """Of what can be merged with the champion, the one of the least error."""
    measured = [
        (one.error, one.candidate_id)
        for each in outcomes
        for one in each.attempts
        if one.candidate_id in mergeable and one.error is not None
    ]
    return min(measured)[1] if measured else ""


def _tasks(state: State, node_id: str) -> tuple[tuple[plans.Open, ...], tuple[plans.Failure, ...]]:
    """A node's open and failed tasks among the newest, oldest first."""
    opened: list[plans.Open] = []
    failures: list[plans.Failure] = []
    for task_id in state.tasks.ids[-TASKS_LOOKED_AT_MAX:]:
        task = state.tasks.table.rows[task_id]
        if not isinstance(task, Task) or task.node_id != node_id:
            continue
        if task.status in ("queued", "running") and task_id not in state.tasks.closed:
            holder = task.holder or ""
            opened.append(plans.Open(task_id=task_id, role=task.role, worker_id=holder))
        failures += _failures(task)
    return tuple(opened), tuple(failures)


def _failures(task: Task) -> Iterator[plans.Failure]:
    if task.status == "failed":
        reason = task.reasons[-1] if task.reasons else ""
        yield plans.Failure(task_id=task.task_id, role=task.role, reason=reason)
    elif task.status == "queued" and task.claim is not None and task.claim.state == "failed":
        reason = task.claim.reason
        yield plans.Failure(task_id=task.task_id, role=task.role, reason=reason, is_final=False)


def _tasks_of(champion: Champion | None, rounds: list[Round]) -> Iterator[str]:
    """The tasks that made what the plans speak of."""
    if champion is not None:
        yield champion.task_id
    yield from (standing.task_id for one in rounds for standing in one.standings)


def _champion(champion: Champion, made: dict[str, _Made]) -> plans.Champion:
    model = _model(made, champion.task_id, champion.weights_sha256)
    return plans.Champion(
        candidate_id=champion.candidate_id,
        rival=champion.rival,
        error=champion.error,
        baseline_error=champion.baseline_error,
        evidence_rate=champion.evidence_rate,
        params=champion.params,
        family=model.family[:FAMILY_CHARS_MAX],
        steps=max(0, model.steps),
    )


def _model(made: dict[str, _Made], task_id: str, weights_sha256: str) -> _Model:
    return made[task_id].models.get(weights_sha256) or _Model()


def _outcome(row: Round, made: dict[str, _Made]) -> plans.Outcome:
    decision = row.decision
    assert decision is not None, "a decided round has a decision"
    return plans.Outcome(
        round_id=row.round_id,
        verdict=decision.verdict,
        reasons=decision.reasons,
        promoted=decision.promoted,
        baseline_error=decision.baseline_error,
        attempts=tuple(_attempts(row, made)),
        missing=tuple(
            (entry.rival, entry.reason) for entry in row.entries if entry.state == "closed"
        ),
    )


def _attempts(row: Round, made: dict[str, _Made]) -> Iterator[plans.Attempt]:
    assert row.decision is not None, "a decided round has a decision"
    said = {one.candidate_id: one for one in row.decision.candidates}
    for standing in row.standings:
        candidate = standing.candidate
        verdict = said.get(candidate.candidate_id)
        if verdict is None:  # whoever wrote it by hand forgot one
            continue
        model = _model(made, standing.task_id, candidate.weights_sha256)
        yield plans.Attempt(
            candidate_id=candidate.candidate_id,
            rival=candidate.rival,
            verdict=verdict.verdict,
            reasons=verdict.reasons,
            method=candidate.method,
            error=verdict.error,
            params=verdict.params,
            family=model.family[:FAMILY_CHARS_MAX],
            steps=max(0, model.steps),
            budget_seconds=made[standing.task_id].budget_seconds,
        )
