"""What can be looked up beyond the nine routes, and what people do with tasks."""

import asyncio
import functools
import itertools
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from aiohttp import web

from core import commands, errors, events, lineage, runtime
from core.decide import fitness
from core.events import Champion
from core.presence import Presence
from core.projections import rivalry
from core.projections.graph import Node
from core.projections.questions import Question
from core.projections.rounds import Decided, Round
from core.projections.state import State
from core.projections.tasks import Claim, Done, Task
from core.projections.workers import Worker
from core.telemetry import Curve
from core.values import Gates
from gateway import judgement, schemas, slices, telemetry, verdicts
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

Row = TypeVar("Row")

log = logging.getLogger(__name__)


class ReadRoutes:
    """The handlers of the other routes of the network."""

    def __init__(
        self,
        door: runtime.Runtime,
        presence: Presence,
        records: Records,
        refusals: Refusals,
        told: telemetry.Telemetry,
    ) -> None:
        self._door = door
        self._presence = presence
        self._records = records
        self._refusals = refusals
        self._told = told
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    # ── tasks ──

    async def tasks(self, _: web.Request, asked: schemas.TasksQuery) -> schemas.TasksAnswer:
        """A page of tasks, oldest first; it is not full where that would be many bytes."""
        async with self._pages:
            return await self._tasks(asked)

    async def _tasks(self, asked: schemas.TasksQuery) -> schemas.TasksAnswer:
        start, closed = await self._door.read(
            lambda state: (_place_after(state, asked.after), _closed(state))
        )

        def listed(state: State) -> tuple[list[str], dict[str, Task | Done]]:
            return state.tasks.ids, state.tasks.table.rows

        def fits(row: Task | Done) -> bool:
            return (
                (asked.status is None or row.status == asked.status)
                and (asked.node_id is None or row.node_id == asked.node_id)
                and (asked.closed == "false" or row.task_id in closed)
            )

        found = await self._scan(listed, start, fits, asked.limit + 1)
        shown: list[schemas.TaskSummary] = []
        size = 0
        for first in range(0, min(len(found), asked.limit), READ_AT_ONCE):
            some = found[first : min(first + READ_AT_ONCE, asked.limit)]
            whole = await asyncio.gather(*(self._records.whole(row) for row in some))
            shown += [await self._summary(task) for task in whole]
            size += sum(len(msgspec.json.encode(one)) for one in shown[first:])
            if size > PAGE_BYTES_MAX:
                break
        following = shown[-1].task_id if len(shown) < len(found) else None
        return schemas.TasksAnswer(tasks=shown, next=following, closed=len(closed))

    async def _scan(
        self,
        listed: Callable[[State], tuple[list[str], dict[str, Row]]],
        start: int,
        fits: Callable[[Row], bool],
        count: int,
    ) -> list[Row]:
        """The first `count` rows that fit, from a place in the list on.

        Each slice is read for itself, so that only what is durable is looked at and the loop gets
        its turn, however rare what fits is.
        """

        def look(state: State, first: int, most: int) -> tuple[list[Row], bool]:
            ids, rows = listed(state)
            some = map(rows.__getitem__, ids[first : first + SCANNED_AT_ONCE])
            fitting = list(itertools.islice(filter(fits, some), most))
            return fitting, first + SCANNED_AT_ONCE >= len(ids)

        found: list[Row] = []
        for first in itertools.count(start, SCANNED_AT_ONCE):
            view = functools.partial(look, first=first, most=count - len(found))
            fitting, is_end = await self._door.read(view)
            found += fitting
            if is_end or len(found) == count:
                break
            await asyncio.sleep(0)
        return found

    async def task(self, request: web.Request, _: schemas.NoQuery) -> schemas.TaskDetailAnswer:
        """One task whole."""
        task = await self._records.task(request.match_info["task_id"])
        return schemas.TaskDetailAnswer(task=await self._detail(task))

    async def task_telemetry(
        self, request: web.Request, asked: schemas.TelemetryQuery
    ) -> schemas.TelemetryAnswer:
        """How a task goes, or went."""
        after = None if asked.after is None else _sequence(asked.after)
        task = await self._records.task(request.match_info["task_id"])
        told = await self._told.read(task, after)
        return schemas.TelemetryAnswer(
            telemetry=schemas.TaskTelemetry(
                task_id=task.task_id,
                status=task.status,
                whole=told.whole,
                rivals=[_curve(curve) for curve in told.curves],
                next=None if told.after is None else str(told.after),
            )
        )

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
        task = await self._records.task(task_id)  # the state may not hold its topic any more
        return await self._done(commands.RetryTask(task_id=task_id, topic=task.topic), task_id)

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
            workload=workload_of(task.workload, task.workload_inherited),
            base=verdicts.base_of(task.base) if task.base else None,
            parents=[verdicts.base_of(one) for one in task.parents],
            attempts=[attempt_of(claim) for claim in task.claims],
            resume=[
                schemas.TaskCheckpoint(
                    rival=point.rival,
                    step=point.step,
                    total_steps=point.total_steps,
                    manifest=point.manifest,
                    method=point.method,
                )
                for point in task.resume
            ],
            candidates=_candidates(task),
            losses=await self._losses(task, summary),
            round_id=task.round_id or None,
            waits=await self._door.read(functools.partial(_waits, task=task)),
            reasons=list(task.reasons),
            log_tail=task.log_tail,
        )

    async def _losses(self, task: Task, summary: schemas.TaskSummary) -> list[schemas.LossPoint]:
        """What telemetry told, else what the result itself says."""
        try:
            told = await self._told.read(task)
        except errors.Unavailable as error:  # all else of the task can be shown
            log.info("no losses are shown: %s", error, extra={"action": "losses"})
            return []
        losses = list(telemetry.losses_in(told.curves))
        if not losses and summary.result is not None:
            losses = _losses_in(summary.result.metrics)
        return [schemas.LossPoint(rival=r, step=step, loss=loss) for r, step, loss in losses]

    # ── workers ──

    async def workers(self, _: web.Request, asked: schemas.WorkersQuery) -> schemas.WorkersAnswer:
        """All workers, or some of them."""

        def view(state: State) -> tuple[list[Worker], dict[str, list[str]]]:
            rows = state.workers.table.rows
            ids = list(rows)
            if asked.after is not None and asked.after not in rows:
                raise errors.Invalid(
                    f"there is no worker {asked.after} to go on after; after takes a worker_id"
                )
            first = 0 if asked.after is None else ids.index(asked.after) + 1
            end = None if asked.limit is None else first + asked.limit
            held = state.tasks.held
            some = [rows[one] for one in ids[first:end]]
            return some, {one.worker_id: list(held.get(one.worker_id, ())) for one in some}

        rows, held = await self._door.read(view)
        shown: list[schemas.WorkerSummary] = []
        for start in range(0, len(rows), WORKERS_AT_ONCE):
            part = rows[start : start + WORKERS_AT_ONCE]
            shown += [self._worker(worker, held[worker.worker_id]) for worker in part]
            await asyncio.sleep(0)  # the loop's turn, however many workers there were ever
        return schemas.WorkersAnswer(workers=shown)

    async def worker(self, request: web.Request, _: schemas.NoQuery) -> schemas.WorkerSummaryAnswer:
        """One worker."""
        worker_id = request.match_info["worker_id"]

        def view(state: State) -> tuple[Worker, list[str]]:
            worker = state.workers.table.get(worker_id)
            if worker is None:
                raise errors.NotFound(f"there is no worker {worker_id}")
            return worker, list(state.tasks.held.get(worker_id, ()))

        return schemas.WorkerSummaryAnswer(worker=self._worker(*await self._door.read(view)))

    async def pause(self, request: web.Request, _: schemas.Nothing) -> schemas.WorkerSummaryAnswer:
        """Give a worker nothing more to do, and have it give back what it holds."""
        worker_id = request.match_info["worker_id"]
        return await self._steer(commands.PauseWorker(worker_id=worker_id, how="pause"))

    async def drain(self, request: web.Request, _: schemas.Nothing) -> schemas.WorkerSummaryAnswer:
        """Give a worker nothing more to do once it is done with what it holds."""
        worker_id = request.match_info["worker_id"]
        return await self._steer(commands.PauseWorker(worker_id=worker_id, how="drain"))

    async def resume(self, request: web.Request, _: schemas.Nothing) -> schemas.WorkerSummaryAnswer:
        """Let a worker have work again."""
        return await self._steer(commands.ResumeWorker(worker_id=request.match_info["worker_id"]))

    async def _steer(
        self, command: commands.PauseWorker | commands.ResumeWorker
    ) -> schemas.WorkerSummaryAnswer:
        worker_id = command.worker_id
        worker, held = await self._door.execute(
            command,
            runtime.new_meta(BY),
            lambda state: (
                state.workers.table.rows[worker_id],
                list(state.tasks.held.get(worker_id, ())),
            ),
        )
        return schemas.WorkerSummaryAnswer(worker=self._worker(worker, held))

    def _worker(self, worker: Worker, held: list[str]) -> schemas.WorkerSummary:
        last_seen = self._presence.last_seen(worker.worker_id) or worker.changed_at
        beat = self._presence.progress(worker.worker_id, held[-1]) if held else None
        return schemas.WorkerSummary(
            **_fields(worker_of(worker, last_seen)),
            via=worker.via,
            lane=worker.lane,
            reason=worker.reason,
            tasks=held,
            rival=beat.rival if beat else None,
            step=beat.step if beat else None,
            total_steps=beat.total_steps if beat else None,
            loss=beat.loss if beat else None,
            samples_per_second=beat.samples_per_second if beat else None,
            utilisation=beat.utilisation if beat else None,
            memory_bytes=beat.memory_bytes if beat else None,
            paused_seconds=self._presence.paused_seconds_of(worker.worker_id),
            unfit=[
                schemas.Unfit(
                    node_id=mark.kind.node_id,
                    role=mark.kind.role,
                    method=mark.kind.method,
                    reason=mark.reason,
                )
                for mark in worker.unfit_at(runtime.now())
            ],
            pause=worker.pause,
            price_per_hour=worker.price_per_hour,
            claims=schemas.WorkerClaims(
                judged=worker.claims.judged,
                off=worker.claims.off,
                doubtful=worker.claims.doubtful,
            ),
        )

    # ── nodes ──

    async def node(self, request: web.Request, _: schemas.NoQuery) -> judgement.NodeDetailAnswer:
        """One node: what it trains, what it serves, and how that came about."""
        node_id = request.match_info["node_id"]

        def view(state: State) -> _NodeRows:
            node = state.graph.nodes.get(node_id)
            if node is None:
                raise errors.NotFound(f"there is no node {node_id}")
            rounds = state.rounds.table.rows
            return _NodeRows(
                node,
                state.graph.champions.get(node_id),
                [rounds[round_id] for round_id in state.rounds.of_node.get(node_id, ())],
                *state.graph.workload(node_id),
                *state.graph.gates_of(node_id),
                state.questions.of(node_id),
            )

        rows = await self._door.read(view)
        # Only now: the promotion of the champion that was just read is among them.
        history = await self._records.of_node(node_id)
        return judgement.NodeDetailAnswer(node=await _node(rows, history))

    # ── rounds ──

    async def rounds(self, _: web.Request, asked: judgement.RoundsQuery) -> judgement.RoundsAnswer:
        """A page of rounds, oldest first."""

        def listed(state: State) -> tuple[list[str], dict[str, Round | Decided]]:
            table = state.rounds
            ids = table.ids if asked.node_id is None else table.of_node.get(asked.node_id, [])
            return ids, table.table.rows

        def start(state: State) -> int:
            if asked.after is None:
                return 0
            ids, rows = listed(state)
            if asked.after not in rows:
                raise errors.Invalid(_not_after("round", asked.after))
            return ids.index(asked.after) + 1 if asked.after in ids else 0

        def fits(row: Round | Decided) -> bool:
            return asked.status is None or row.status == asked.status

        first = await self._door.read(start)
        found = await self._scan(listed, first, fits, asked.limit + 1)
        shown = [verdicts.summary_of(row) for row in found[: asked.limit]]
        following = shown[-1].round_id if len(shown) < len(found) else None
        awaiting = await self._door.read(lambda state: state.rounds.awaiting_judgement)
        return judgement.RoundsAnswer(rounds=shown, next=following, awaiting_judgement=awaiting)

    async def round(self, request: web.Request, _: schemas.NoQuery) -> judgement.RoundAnswer:
        """One round whole."""
        return judgement.RoundAnswer(
            round=verdicts.round_of(await self._records.round(request.match_info["round_id"]))
        )

    async def questions(
        self, _: web.Request, asked: judgement.QuestionsQuery
    ) -> judgement.QuestionsAnswer:
        """The nodes at which something waits for a person."""
        rows = await self._door.read(lambda state: list(state.questions.table))
        rows.sort(key=lambda row: row.node_id)
        start = bisect_right(rows, asked.after or "", key=lambda row: row.node_id)
        shown = rows[start : start + asked.limit]
        return judgement.QuestionsAnswer(
            nodes=[
                judgement.AskingNode(
                    node_id=row.node_id, questions=[*map(verdicts.question_of, row.questions)]
                )
                for row in shown
            ],
            total=len(rows),
            next=shown[-1].node_id if start + len(shown) < len(rows) else None,
        )

    async def rivals(self, _: web.Request, asked: schemas.RivalsQuery) -> schemas.RivalsAnswer:
        """What evolvers, reinventors and merges have won and cost."""

        def view(state: State) -> list[rivalry.Account]:
            if asked.node_id is None:
                return list(state.rivalry.table)
            if asked.node_id not in state.graph.nodes:
                raise errors.NotFound(f"there is no node {asked.node_id}")
            return state.rivalry.at(asked.node_id)

        accounts = await self._door.read(view)
        first = 0
        if asked.after is not None:
            names = [_account_name(one) for one in accounts]
            if asked.after not in names:
                raise errors.Invalid(_not_after("account", asked.after))
            first = names.index(asked.after) + 1
        shown = accounts[first : first + asked.limit]
        return schemas.RivalsAnswer(
            rivals=[_account(one, one.node_id) for one in shown],
            total=await _totals(accounts),
            next=_account_name(shown[-1]) if first + len(shown) < len(accounts) else None,
        )

    # ── the log ──

    async def log_state(self, _: web.Request, __: schemas.NoQuery) -> schemas.LogStateAnswer:
        """Where the log stands and the hash of what it makes."""
        state = await self._door.read(lambda state: state)
        for _slice in range(SLICES_MAX):
            if state.settle(HASHED_AT_ONCE):
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
        shown, following = await self._refusals.page(_sequence(asked.after or "0"), asked.limit)
        return schemas.RefusalsAnswer(
            refusals=shown, next=None if following is None else str(following)
        )


def _sequence(after: str) -> int:
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        raise errors.Invalid(f"after takes the `next` of the page before, not {after!r}")
    return int(after)


def _losses_in(metrics: msgspec.Raw) -> list[tuple[str, int, float]]:
    try:
        return msgspec.json.decode(metrics, type=_Kept).losses
    except msgspec.MsgspecError:  # metrics of an HTTP worker hold what they like
        return []


class _Kept(msgspec.Struct):
    losses: list[tuple[str, int, float]] = []


class _NodeRows(NamedTuple):
    node: Node
    champion: Champion | None
    rounds: list[Round | Decided]
    workload: events.Workload
    inherited: bool
    gates: Gates
    gates_inherited: bool
    questions: tuple[Question, ...]


def _not_after(kind: str, after: str) -> str:
    return (
        f"there is no {kind} {after} to go on after; after takes the `next` of the page before, or "
        f"a {kind}_id"
    )


def _waits(state: State, task: Task) -> list[str]:
    if task.status == "queued" or task.task_id in _closed(state):
        return fitness.why_it_waits(state, task, runtime.now())
    is_in_vain = task.status == "running" and fitness.is_outdated(state, task)
    return [fitness.OUTDATED] if is_in_vain else []


def _closed(state: State) -> set[str]:
    return {task.task_id for task in state.tasks.open_and_closed()}


def _place_after(state: State, after: str | None) -> int:
    """The index in the tasks' order at which a page begins."""
    if after is None:
        return 0
    row = state.tasks.table.get(after)
    if row is None:
        raise errors.Invalid(_not_after("task", after))
    return bisect_right(state.tasks.first_seqs, row.first_seq)


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


def workload_of(workload: events.Workload, inherited: bool) -> schemas.Workload:
    """What is trained, in the words of an answer."""
    base = workload.base_model
    return schemas.Workload(
        specialist=workload.specialist,
        parameters=dict(workload.parameters),
        inherited=inherited,
        corpus=msgspec.UNSET if workload.corpus is None else _corpus(workload.corpus),
        base_model=msgspec.UNSET
        if base is None
        else schemas.BaseModel(name=base.name, digest=base.digest, bytes=base.bytes),
    )


def _corpus(corpus: events.Corpus) -> schemas.Corpus:
    parts = {
        part: schemas.TextPart(documents=one.documents, bytes=one.bytes)
        for part, one in corpus.parts.items()
    }
    return schemas.Corpus(
        name=corpus.name, manifest=corpus.manifest, hidden=corpus.hidden, parts=parts
    )


def _curve(curve: Curve) -> schemas.RivalTelemetry:
    return schemas.RivalTelemetry(
        rival=curve.rival,
        total_steps=curve.total_steps,
        points=[
            schemas.TelemetryPoint(
                step=point.step,
                at=events.isoformat(int(point.at * 1e6)),
                loss=point.loss,
                validation=point.validation,
                learning_rate=point.learning_rate,
                samples_per_second=point.samples_per_second,
                utilisation=point.utilisation,
                memory_bytes=point.memory_bytes,
            )
            for point in curve.points
        ],
    )


def attempt_of(claim: Claim) -> schemas.Attempt:
    """A claim of a task, in the words of an answer."""
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
            method=one.method,
            method_reason=one.method_reason,
        )
        for one in brought
    ]


async def _node(rows: _NodeRows, history: Sequence[events.Event]) -> judgement.NodeDetail:
    reigns = lineage.reigns(history)
    champion = rows.champion
    budgets = []
    for budget in rows.gates.budgets:
        of_budget = lineage.reigns(history, budget.name)
        told = await slices.each(verdicts.lineage_of, of_budget)
        budgets.append(verdicts.throne_of(budget, of_budget, told))
    past = []
    for name in lineage.budgets_of(history) - {one.name for one in rows.gates.budgets}:
        told = await slices.each(verdicts.lineage_of, lineage.reigns(history, name))
        past.append(judgement.PastBudget(name=name, lineage=told))
    return judgement.NodeDetail(
        **_fields(node_of(rows.node)),
        champion=None if champion is None else verdicts.champion_of(champion, reigns),
        rounds=await slices.each(verdicts.node_round_of, rows.rounds),
        lineage=await slices.each(verdicts.lineage_of, reigns),
        workload=workload_of(rows.workload, rows.inherited),
        gates=verdicts.gates_of(rows.gates, inherited=rows.gates_inherited),
        budgets=budgets,
        past_budgets=sorted(past, key=lambda one: one.name),
        questions=[verdicts.question_of(one) for one in rows.questions],
    )


def _account_name(one: rivalry.Account) -> str:
    return f"{one.node_id}/{one.rival}"


async def _totals(accounts: Sequence[rivalry.Account]) -> list[schemas.RivalAccount]:
    """The sums by rival; the loop gets its turn, however large the tree."""
    sums: dict[str, rivalry.Account] = {}
    for start in range(0, len(accounts), SCANNED_AT_ONCE):
        by_rival: dict[str, list[rivalry.Account]] = {}
        for one in accounts[start : start + SCANNED_AT_ONCE]:
            by_rival.setdefault(one.rival, []).append(one)
        for rival, some in by_rival.items():
            known = [sums[rival]] if rival in sums else []
            sums[rival] = rivalry.total([*known, *some])
        await asyncio.sleep(0)
    return [_account(one, None) for one in sums.values()]


def _account(one: rivalry.Account, node_id: str | None) -> schemas.RivalAccount:
    return schemas.RivalAccount(
        node_id=node_id,
        rival=one.rival,
        rounds=one.rounds,
        won=one.won,
        lost=one.lost,
        absent=one.absent,
        error_factor=one.error_factor if node_id is not None and one.replaced else None,
        device_seconds=one.held_us / 1e6,
        priced_seconds=one.priced_us / 1e6,
        cost=one.cost_micro / 1e6 if one.priced_us else None,
        recent=schemas.RecentRounds(
            rounds=one.recent_rounds,
            won=one.recent_won,
            replaced=one.recent_replaced,
            gain=one.recent_gain,
        ),
    )
