"""What can be looked up beyond the nine routes, and what people do with tasks."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web

from core import commands, errors, events, runtime
from core.events import Base, Champion
from core.presence import Presence
from core.projections import rounds
from core.projections.rounds import Decided, Round
from core.projections.state import State
from core.projections.tasks import Claim, Done, Task
from core.projections.workers import Worker
from gateway import schemas
from gateway.network import BY, node_of, task_of, worker_of
from gateway.records import Records
from gateway.refusals import Refusals

SCANNED_AT_ONCE = 5_000
WORKERS_AT_ONCE = 1_000
READ_AT_ONCE = 16
PAGES_AT_ONCE = 2
"""Pages of tasks in the making: many in step with each other would hold the loop up."""
PAGE_BYTES_MAX = 4 * 1024 * 1024
"""A page of tasks ends here, however many were asked for: topics and metrics may be long."""
HASHED_AT_ONCE = 250
"""Rows hashed before others have their turn: a few milliseconds' worth."""
SLICES_MAX = 40_000
REASON_CHARS_MAX = 1_000


class ReadRoutes:
    """The handlers of the other routes of the network."""

    def __init__(
        self, door: runtime.Runtime, presence: Presence, records: Records, refusals: Refusals
    ) -> None:
        self._door = door
        self._presence = presence
        self._records = records
        self._refusals = refusals
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    # ── tasks ──

    async def tasks(self, _: web.Request, asked: schemas.TasksQuery) -> schemas.TasksAnswer:
        """A page of tasks, oldest first; it is not full where that would be many bytes."""
        async with self._pages:
            return await self._tasks(asked)

    async def _tasks(self, asked: schemas.TasksQuery) -> schemas.TasksAnswer:
        start = await self._door.read(lambda state: _place_after(state, asked.after))

        def fits(row: Task | Done) -> bool:
            return (asked.status is None or row.status == asked.status) and (
                asked.node_id is None or row.node_id == asked.node_id
            )

        table = self._door.state.tasks
        ids = table.ids
        found, following = await _scan(
            ids, start, asked.limit, lambda one: fits(table.table.rows[one])
        )
        shown: list[schemas.TaskSummary] = []
        size = 0
        for first in range(0, len(found), READ_AT_ONCE):
            part = found[first : first + READ_AT_ONCE]
            read = (self._records.task(task_id) for task_id in part)
            shown += [await self._summary(task) for task in await asyncio.gather(*read)]
            size += sum(len(msgspec.json.encode(one)) for one in shown[first:])
            if size > PAGE_BYTES_MAX and len(shown) < len(found):
                return schemas.TasksAnswer(tasks=shown, next=part[-1])
        return schemas.TasksAnswer(tasks=shown, next=following)

    async def task(self, request: web.Request, _: schemas.NoQuery) -> schemas.TaskDetailAnswer:
        """One task whole."""
        task = await self._records.task(request.match_info["task_id"])
        return schemas.TaskDetailAnswer(task=await self._detail(task))

    async def cancel(
        self, request: web.Request, asked: schemas.CancelRequest
    ) -> schemas.TaskDetailAnswer:
        """Withdraw a task."""
        reason = asked.reason[:REASON_CHARS_MAX] or "cancelled by a person"
        task_id = request.match_info["task_id"]
        command = commands.CancelTask(task_id=task_id, reason=reason)
        return await self._done(command, task_id)

    async def retry(self, request: web.Request, _: schemas.Nothing) -> schemas.TaskDetailAnswer:
        """Queue a failed or cancelled task again."""
        task_id = request.match_info["task_id"]
        return await self._done(commands.RetryTask(task_id=task_id), task_id)

    async def _done(self, command: commands.AnyCommand, task_id: str) -> schemas.TaskDetailAnswer:
        row = await self._door.execute(
            command, runtime.new_meta(BY), lambda state: state.tasks.table.rows[task_id]
        )
        task = await self._records.whole(row)
        return schemas.TaskDetailAnswer(task=await self._detail(task))

    async def _summary(self, task: Task) -> schemas.TaskSummary:
        plain = task_of(task, await self._records.metrics(task) if task.result else None)
        return schemas.TaskSummary(**_fields(plain), **_summarised(task))

    async def _detail(self, task: Task) -> schemas.TaskDetail:
        summary = await self._summary(task)
        return schemas.TaskDetail(
            **_fields(summary),
            method=task.method,
            seed=task.seed,
            budget_seconds=task.budget_seconds,
            requires=schemas.TaskNeeds(
                device=task.requires.device, memory_gb=task.requires.memory_gb
            ),
            workload=_workload(task.workload, task.workload_inherited),
            base=_base(task.base),
            attempts=[_attempt(claim) for claim in task.claims],
            resume=[
                schemas.TaskCheckpoint(
                    rival=point.rival,
                    step=point.step,
                    total_steps=point.total_steps,
                    manifest=point.manifest,
                )
                for point in task.resume
            ],
            candidates=_candidates(task),
            losses=self._losses(task, summary),
            round_id=task.round_id or None,
            reasons=list(task.reasons),
            log_tail=task.log_tail,
        )

    def _losses(self, task: Task, summary: schemas.TaskSummary) -> list[schemas.LossPoint]:
        """What heartbeats told of a running task, or what its result kept."""
        if summary.result is None:
            heard = self._presence.losses.get(task.task_id, ())
            return [schemas.LossPoint(rival=r, step=step, loss=loss) for r, step, loss in heard]
        try:
            kept = msgspec.json.decode(summary.result.metrics, type=_Kept).losses
        except msgspec.MsgspecError:  # metrics of an HTTP worker hold what they like
            return []
        return [schemas.LossPoint(rival=r, step=step, loss=loss) for r, step, loss in kept]

    # ── workers ──

    async def workers(self, _: web.Request, __: schemas.NoQuery) -> schemas.WorkersAnswer:
        """All workers."""
        rows, held = await self._door.read(
            lambda state: (
                list(state.workers.table),
                {worker_id: list(tasks) for worker_id, tasks in state.tasks.held.items()},
            )
        )
        shown: list[schemas.WorkerSummary] = []
        for start in range(0, len(rows), WORKERS_AT_ONCE):
            part = rows[start : start + WORKERS_AT_ONCE]
            shown += [self._worker(worker, held.get(worker.worker_id, [])) for worker in part]
            await asyncio.sleep(0)  # the loop's turn, however many workers there were ever
        return schemas.WorkersAnswer(workers=shown)

    def _worker(self, worker: Worker, held: list[str]) -> schemas.WorkerSummary:
        last_seen = self._presence.last_seen(worker.worker_id) or worker.changed_at
        beat = self._presence.progress(worker.worker_id, held[-1]) if held else None
        return schemas.WorkerSummary(
            **_fields(worker_of(worker, last_seen)),
            via=worker.via,
            lane=worker.lane,
            reason=worker.reason,
            tasks=held,
            step=beat.step if beat else None,
            total_steps=beat.total_steps if beat else None,
            loss=beat.loss if beat else None,
        )

    # ── nodes ──

    async def node(self, request: web.Request, _: schemas.NoQuery) -> schemas.NodeDetailAnswer:
        """One node: what it trains, what it serves, and how that came about."""
        node_id = request.match_info["node_id"]
        promotions = await self._records.promotions(node_id)

        def view(state: State) -> schemas.NodeDetail:
            node = state.graph.nodes.get(node_id)
            if node is None:
                raise errors.NotFound(f"there is no node {node_id}")
            workload, inherited = state.graph.workload(node_id)
            champion = state.graph.champions.get(node_id)
            return schemas.NodeDetail(
                **_fields(node_of(node)),
                champion=None if champion is None else _champion(champion, promotions),
                rounds=[
                    _node_round(state.rounds.table.rows[round_id])
                    for round_id in state.rounds.of_node.get(node_id, ())
                ],
                lineage=[_lineage(at, data) for at, data in promotions],
                workload=_workload(workload, inherited),
            )

        return schemas.NodeDetailAnswer(node=await self._door.read(view))

    # ── rounds ──

    async def rounds(self, _: web.Request, asked: schemas.RoundsQuery) -> schemas.RoundsAnswer:
        """A page of rounds, oldest first."""

        def start(state: State) -> tuple[list[str], int]:
            table = state.rounds.table
            if asked.after is not None and asked.after not in table:
                raise errors.Invalid(_not_after("round", asked.after))
            if asked.node_id is not None:
                ids = list(state.rounds.of_node.get(asked.node_id, ()))
            else:
                ids = list(table.rows)
            return ids, ids.index(asked.after) + 1 if asked.after in ids else 0

        ids, first = await self._door.read(start)
        rows = self._door.state.rounds.table.rows
        found, following = await _scan(
            ids,
            first,
            asked.limit,
            lambda one: asked.status is None or rows[one].status == asked.status,
        )
        shown = [_round_summary(rows[round_id]) for round_id in found]
        return schemas.RoundsAnswer(rounds=shown, next=following)

    async def round(self, request: web.Request, _: schemas.NoQuery) -> schemas.RoundAnswer:
        """One round whole."""
        return schemas.RoundAnswer(
            round=_round(await self._records.round(request.match_info["round_id"]))
        )

    # ── the log ──

    async def log_state(self, _: web.Request, __: schemas.NoQuery) -> schemas.LogStateAnswer:
        """Where the log stands and the hash of what it makes."""
        for _slice in range(SLICES_MAX):
            if self._door.state.settle(HASHED_AT_ONCE):
                break
            await asyncio.sleep(0)
        last_seq, state_hash = await self._door.read(lambda state: (state.seq, state.hash()))
        return schemas.LogStateAnswer(
            log=schemas.LogState(last_seq=last_seq, state_hash=state_hash)
        )

    async def log_refusals(
        self, _: web.Request, asked: schemas.RefusalsQuery
    ) -> schemas.RefusalsAnswer:
        """A page of what was refused."""
        after = asked.after or "0"
        if not after.isascii() or not after.isdigit() or len(after) > 18:
            raise errors.Invalid(f"after takes the `next` of the page before, not {after!r}")
        shown, following = await self._refusals.page(int(after), asked.limit)
        return schemas.RefusalsAnswer(
            refusals=shown, next=None if following is None else str(following)
        )


class _Kept(msgspec.Struct):
    losses: list[tuple[str, int, float]] = []


def _not_after(kind: str, after: str) -> str:
    return (
        f"there is no {kind} {after} to go on after; after takes the `next` of the page before, or "
        f"a {kind}_id"
    )


def _place_after(state: State, after: str | None) -> int:
    """The index in the tasks' order at which a page begins."""
    if after is None:
        return 0
    row = state.tasks.table.get(after)
    if row is None:
        raise errors.Invalid(_not_after("task", after))
    return bisect_right(state.tasks.first_seqs, row.first_seq)


async def _scan(
    ids: list[str], start: int, limit: int, fits: Callable[[str], bool]
) -> tuple[list[str], str | None]:
    """The first `limit` ids that fit, and the last of them where there are more to look at.

    The loop gets its turn every few thousand rows, however rare what fits is.
    """
    found: list[str] = []
    end = len(ids)
    for place in range(start, end):
        if fits(ids[place]):
            if len(found) == limit:
                return found, found[-1]
            found.append(ids[place])
        if (place - start) % SCANNED_AT_ONCE == SCANNED_AT_ONCE - 1:
            await asyncio.sleep(0)
    return found, None


# ── rows to words ──


def _fields(struct: msgspec.Struct) -> dict[str, Any]:
    """A struct's fields, for a larger one that begins with them."""
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _summarised(task: Task) -> dict[str, Any]:
    claim = task.claim
    return {
        "role": task.role,
        "claimed_at": events.isoformat(claim.claimed_at) if claim else None,
        "completed_at": events.isoformat(task.result.completed_at) if task.result else None,
    }


def _workload(workload: events.Workload, inherited: bool) -> schemas.Workload:
    return schemas.Workload(
        specialist=workload.specialist, parameters=dict(workload.parameters), inherited=inherited
    )


def _base(base: Base | None) -> schemas.Base | None:
    if base is None:
        return None
    return schemas.Base(
        candidate_id=base.candidate_id, weights_sha256=base.weights_sha256, manifest=base.manifest
    )


def _attempt(claim: Claim) -> schemas.Attempt:
    return schemas.Attempt(
        attempt=claim.attempt,
        worker_id=claim.worker_id,
        via=claim.via,
        state=claim.state,
        reason=claim.reason,
        claimed_at=events.isoformat(claim.claimed_at),
        ended_at=events.isoformat(claim.ended_at) if claim.ended_at else None,
        resumed_from=claim.resumed_from,
    )


def _candidates(task: Task) -> list[schemas.TaskCandidate]:
    brought = task.result.candidates if task.result else ()
    return [
        schemas.TaskCandidate(
            candidate_id=one.candidate_id,
            rival=one.rival,
            weights_sha256=one.weights_sha256,
            manifest=one.manifest,
            bytes=one.bytes,
        )
        for one in brought
    ]


def _champion(
    champion: Champion, promotions: Iterable[tuple[int, events.ChampionPromoted]]
) -> schemas.Champion:
    promoted = [
        at for at, data in promotions if data.champion.candidate_id == champion.candidate_id
    ]
    return schemas.Champion(
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


def _lineage(at: int, data: events.ChampionPromoted) -> schemas.LineageEntry:
    champion = data.champion
    return schemas.LineageEntry(
        candidate_id=champion.candidate_id,
        instead_of=data.instead_of or None,
        round_id=champion.round_id,
        role=champion.rival,
        weights_sha256=champion.weights_sha256,
        error=champion.error,
        promoted_at=events.isoformat(at),
    )


def _verdict(row: Round | Decided) -> str | None:
    return row.verdict if isinstance(row, Decided) else None


def _node_round(row: Round | Decided) -> schemas.NodeRound:
    return schemas.NodeRound(round_id=row.round_id, status=row.status, verdict=_verdict(row))


def _round_summary(row: Round | Decided) -> schemas.RoundSummary:
    return schemas.RoundSummary(
        round_id=row.round_id, node_id=row.node_id, status=row.status, verdict=_verdict(row)
    )


def _round(row: Round) -> schemas.RoundDetail:
    decision = row.decision
    return schemas.RoundDetail(
        round_id=row.round_id,
        node_id=row.node_id,
        status=row.status,
        commitment=row.commitment,
        secret=(decision.secret or None) if decision else None,
        base=_base(row.base),
        candidates=[_round_candidate(standing, decision) for standing in row.standings],
        verdict=decision.verdict if decision else None,
        reasons=_reasons(decision.reasons) if decision else None,
        decided_at=events.isoformat(decision.decided_at) if decision else None,
    )


def _round_candidate(
    standing: rounds.Standing, decision: rounds.Decision | None
) -> schemas.RoundCandidate:
    candidate = standing.candidate
    said = next(
        (
            one
            for one in (decision.candidates if decision else ())
            if one.candidate_id == candidate.candidate_id
        ),
        None,
    )
    return schemas.RoundCandidate(
        candidate_id=candidate.candidate_id,
        task_id=standing.task_id,
        worker_id=standing.worker_id,
        role=candidate.rival,
        weights_sha256=candidate.weights_sha256,
        verdict=said.verdict if said else None,
        reasons=_reasons(said.reasons) if said else None,
        error=said.error if said else None,
        evidence_rate=said.evidence_rate if said else None,
        ratio_upper=said.ratio_upper if said else None,
    )


def _reasons(reasons: events.Reasons) -> schemas.Reasons:
    return schemas.Reasons(ar=reasons.ar, en=reasons.en)
