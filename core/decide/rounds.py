"""Rounds: opened by claims, closed by completions or their deadline, decided by a judge."""

import functools
import hashlib
from collections.abc import Iterable, Iterator

from core import commands, errors, events
from core.commands import Meta
from core.projections import graph
from core.projections.rounds import RIVALS, Commitment, Decided, Round, Waiting, rivals_of
from core.projections.state import State
from core.projections.tasks import Done, Task
from core.values import Gates

ROUND_SECONDS_MIN = 120.0
ROUND_BUDGETS = 4.0
BUDGET_SECONDS_DEFAULT = 30.0
COMMITMENTS_MAX = 64
"""Commitments in one deposit; each may open a round in the same atomic append."""
DEPOSITED_MAX = 4_096


def deposit(state: State, command: commands.DepositCommitments) -> list[events.EventData]:
    """Take commitments that go on where the last deposit ended; a repetition changes nothing."""
    rounds = state.rounds
    if command.first + len(command.commitments) <= rounds.next_deposit:
        return []
    if command.first != rounds.next_deposit:
        raise errors.Conflict(
            f"the next commitment has index {rounds.next_deposit}, not {command.first}"
        )
    if len(rounds.commitments) + len(command.commitments) > DEPOSITED_MAX:
        raise errors.QuotaExceeded(f"{len(rounds.commitments)} commitments are still unused")
    if len(command.commitments) > COMMITMENTS_MAX:
        raise errors.Invalid(f"at most {COMMITMENTS_MAX} commitments in one deposit")
    for commitment in command.commitments:
        if len(commitment) != 64 or not all(c in "0123456789abcdef" for c in commitment):
            raise errors.Invalid("a commitment is 64 lower-case hex digits of a SHA-256")
    return [
        events.CommitmentsDeposited(
            judge=command.judge, first=command.first, commitments=command.commitments
        )
    ]


def withdraw(state: State, command: commands.WithdrawCommitments) -> list[events.EventData]:
    """Let go of all commitments made so far; a repetition changes nothing."""
    rounds = state.rounds
    if rounds.withdrawn_before == rounds.next_deposit:
        return []
    return [
        events.CommitmentsWithdrawn(
            judge=command.judge, before=rounds.next_deposit, reason=command.reason
        )
    ]


def of_completion(state: State, completed: events.TaskCompleted) -> list[events.EventData]:
    """What a completion means to the open round its task entered, before it is folded."""
    task = state.tasks.table.rows[completed.task_id]
    row = _open_round(state, task)
    if row is None:
        return []
    return _brought(row, completed.task_id, completed.worker_id, tuple(completed.candidates))


def of_ending(state: State, task_id: str, reason: str) -> list[events.EventData]:
    """What the end of a task without result means to its open round, before it is folded."""
    row = _open_round(state, state.tasks.table.rows[task_id])
    if row is None:
        return []
    return [
        events.RoleClosed(round_id=row.round_id, rival=entry.rival, task_id=task_id, reason=reason)
        for entry in row.entries
        if entry.task_id == task_id and entry.state == "awaited"
    ]


def _open_round(state: State, task: Task | Done) -> Round | None:
    if not task.round_id:
        return None
    row = state.rounds.table.get(task.round_id)
    return row if isinstance(row, Round) and row.status == "open" else None


def _brought(
    row: Round, task_id: str, worker_id: str, candidates: tuple[events.Candidate, ...]
) -> list[events.EventData]:
    awaited = [
        entry.rival
        for entry in row.entries
        if entry.task_id == task_id and entry.state == "awaited"
    ]
    return _settles(row.round_id, awaited, task_id, worker_id, candidates)


def _settles(
    round_id: str,
    rivals: Iterable[events.Rival],
    task_id: str,
    worker_id: str,
    candidates: tuple[events.Candidate, ...],
) -> list[events.EventData]:
    happened: list[events.EventData] = []
    for rival in rivals:
        admitted = [
            events.CandidateAdmitted(
                round_id=round_id, task_id=task_id, worker_id=worker_id, candidate=candidate
            )
            for candidate in candidates
            if candidate.rival == rival
        ]
        happened.extend(admitted)
        if not admitted:
            reason = "the task was completed without a candidate for this role"
            happened.append(
                events.RoleClosed(round_id=round_id, rival=rival, task_id=task_id, reason=reason)
            )
    return happened


def follow(state: State, node_id: str, meta: Meta) -> list[events.EventData]:
    """The next thing that follows for a node's rounds from the state alone, if any.

    Called after each fold until nothing follows: a full round closes, once what else entered it is
    in, and so does one that only a merge has entered, or one with a rival in it for which no task
    is queued that could bring the other; a round opens when tasks wait and a commitment is free;
    waiting tasks enter an open round whose roles are free. One that lost a record holds up no
    other.
    """
    node = state.rounds.node(node_id)
    if node.open_round and not state.is_read_only("round", node.open_round):
        row = state.rounds.table.rows[node.open_round]
        assert isinstance(row, Round), "an open round is whole"
        entered = {entry.rival: entry for entry in row.entries}
        awaited = any(entry.state == "awaited" for entry in row.entries)
        if all(rival in entered for rival in RIVALS) and not awaited:
            return [events.RoundClosed(round_id=row.round_id, reason="both rivals are in")]
        for waiting in node.waiting:
            if waiting.workload == row.workload and not any(
                rival in entered for rival in rivals_of(waiting.role)
            ):
                return _enters(row, waiting)
        if [(entry.rival, entry.state) for entry in row.entries] == [("merge", "admitted")]:
            return [
                events.RoundClosed(round_id=row.round_id, reason="its only task, a merge, is in")
            ]
        missing = [rival for rival in RIVALS if rival not in entered]
        if len(missing) == 1 and not awaited:
            (other,) = missing
            # One that runs has entered it, or never will.
            if not state.tasks.queued_of_role.get((node_id, other)):
                reason = f"no {other} is queued that could join it"
                return [events.RoundClosed(round_id=row.round_id, reason=reason)]
        return []
    free = _free_commitment(state) if node.waiting else None
    return [_opened(state, node_id, node.waiting[0], free, meta)] if free else []


def _free_commitment(state: State) -> Commitment | None:
    """The first that no round took. One whose round lost a record may have been taken, and its
    secret told."""
    is_read_only = functools.partial(state.is_read_only, "round")
    return next((one for one in state.rounds.commitments if not is_read_only(_id_of(one))), None)


def _id_of(commitment: Commitment) -> str:
    """Of the round that takes a commitment."""
    return "round-" + hashlib.sha256(commitment.commitment.encode()).hexdigest()[:12]


def _enters(row: Round, waiting: Waiting) -> list[events.EventData]:
    rivals = rivals_of(waiting.role)
    entered: list[events.EventData] = [
        events.RoleEntered(round_id=row.round_id, rival=rival, task_id=waiting.task_id)
        for rival in rivals
    ]
    if waiting.candidates is None:
        return entered
    brought = _settles(row.round_id, rivals, waiting.task_id, waiting.worker_id, waiting.candidates)
    return [*entered, *brought]


def _opened(
    state: State, node_id: str, first: Waiting, commitment: Commitment, meta: Meta
) -> events.RoundOpened:
    task = state.tasks.table.rows[first.task_id]
    budget = task.budget_seconds if isinstance(task, Task) else None
    seconds = max(ROUND_SECONDS_MIN, ROUND_BUDGETS * (budget or BUDGET_SECONDS_DEFAULT))
    return events.RoundOpened(
        round_id=_id_of(commitment),
        node_id=node_id,
        index=commitment.index,
        commitment=commitment.commitment,
        workload=first.workload,
        closes_at=meta.now + int(seconds * 1e6),
        base=state.graph.base(node_id, first.workload),
    )


def close(state: State, command: commands.CloseRound, meta: Meta) -> list[events.EventData]:
    """Close a round whose deadline passed, unless somebody trains for it right now."""
    row = round_of(state, command.round_id)
    if not isinstance(row, Round) or row.status != "open" or meta.now < row.closes_at:
        return []
    awaited = {entry.task_id for entry in row.entries if entry.state == "awaited"}
    trained = awaited - state.tasks.closed  # from a task that lost a record nothing comes any more
    if any(state.tasks.table.rows[task_id].status == "running" for task_id in trained):
        return []  # its candidates are on their way, however long their worker trains
    return [events.RoundClosed(round_id=row.round_id, reason="its deadline passed")]


def round_of(state: State, round_id: str) -> Round | Decided:
    """A round. Raises errors.NotFound."""
    row = state.rounds.table.get(round_id)
    if row is None:
        raise errors.NotFound(f"there is no round {round_id}")
    return row


def start_judging(state: State, command: commands.StartJudging) -> list[events.EventData]:
    """Hand a closed round to a judge, or to another one when its first judge was lost."""
    row = round_of(state, command.round_id)
    if not isinstance(row, Round) or row.status not in ("closed", "judging"):
        raise errors.Conflict(f"{row.round_id} is {row.status}; only closed rounds are judged")
    champion = state.graph.base(row.node_id, row.workload)
    node = state.rounds.node(row.node_id)
    against = champion.candidate_id if champion else ""
    look = node.looks + 1 if node.looked_at == against else 1
    if row.status == "judging" and row.look and row.champion == champion:
        look = row.look
    best = graph.as_base(state.graph.best.get(row.node_id), row.workload)
    gates = state.graph.gates(row.node_id)
    return [
        events.JudgingStarted(
            round_id=row.round_id,
            judge=command.judge,
            look=look,
            champion=champion,
            best=best if best != champion else None,
            gates=gates if gates != Gates() else None,
            budgets=tuple(_looks(state, row, gates)),
        )
    ]


def _looks(state: State, row: Round, gates: Gates) -> Iterator[events.BudgetLook]:
    """Against whom the champion of each budget is looked for; again for the same time where its
    judge was lost."""
    before = {one.budget: one for one in state.rounds.node(row.node_id).budgets}
    again = {one.budget: one for one in row.budgets}
    for budget in gates.budgets:
        reigning = state.graph.of_budgets.get(graph.of_budget(row.node_id, budget.name))
        champion = graph.as_base(reigning, row.workload)
        look, last = 1, before.get(budget.name)
        if last is not None and last.champion == champion:
            look = last.look if again.get(budget.name) == last else last.look + 1
        yield events.BudgetLook(budget=budget.name, look=look, champion=champion)
