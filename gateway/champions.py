"""What people decide about champions over HTTP, and every candidate that ever stood at a node.

The rules are those of `core.decide.champions`. Only what the log alone tells is looked up here: a
model's measured figures, its latency among them, and who reigned before.
"""

import asyncio
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
from aiohttp import web

from core import commands, errors, events, gates, lineage, runtime
from core.events import Champion, ChampionChosen
from core.projections.graph import node_and_budget
from core.projections.rounds import Round
from core.projections.state import State
from core.projections.tasks import Task
from core.values import Budget, Gates
from gateway import judgement, verdicts
from gateway.network import BY, idempotency_key
from gateway.reads import attempt_of
from gateway.records import Records

ROUNDS_SEARCHED_MAX = 1_000
READ_AT_ONCE = 16
REQUEST_DIGITS = 16


class _Throne(NamedTuple):
    """A throne somebody speaks of: who reigns, the node's budgets, and all that happened to it."""

    node_id: str
    budget: str
    reigning: str
    stated: dict[str, Budget]
    history: Sequence[events.Event]

    def limits(self) -> Budget:
        """What its budget allows; the node's own throne allows all. Raises NotFound."""
        if not self.budget:
            return Budget(name="")
        if self.budget not in self.stated:
            raise errors.NotFound(gates.unknown_budget(self.budget, self.stated))
        return self.stated[self.budget]


class _Wish(NamedTuple):
    """What makes a repeated request known: its key, and a digest of what it asks for."""

    key: str
    request: str

    def known(self, found: _Throne) -> judgement.ChosenAnswer | None:
        """The answer, where it was given before. Raises Conflict where that was to another."""
        for event in found.history if self.key else ():
            data = event.data
            if not isinstance(data, ChampionChosen) or data.idempotency_key != self.key:
                continue
            if data.request != self.request:
                raise errors.Conflict(
                    "this Idempotency-Key was used for another request, which chose "
                    f"{data.champion.candidate_id}; nothing changed. Repeat that request, or "
                    "send this one under a new key"
                )
            reigns = lineage.reigns(found.history, data.budget)
            return _answer(found.node_id, data.budget, data.champion, reigns)
        return None

    def command(
        self,
        kind: Literal["promote", "rollback"],
        found: _Throne,
        champion: Champion,
        reason: str,
    ) -> commands.ChooseChampion:
        """The wish as a command."""
        return commands.ChooseChampion(
            node_id=found.node_id,
            kind=kind,
            champion=champion,
            instead_of=found.reigning,
            budget=found.budget,
            reason=reason,
            idempotency_key=self.key,
            request=self.request,
        )


class ChampionRoutes:
    """The handlers of gates, promotions, rollbacks and candidates."""

    def __init__(self, door: runtime.Runtime, records: Records) -> None:
        self._door = door
        self._records = records

    # ── gates ──

    async def set_gates(
        self, request: web.Request, asked: judgement.GatesRequest
    ) -> judgement.GatesAnswer:
        """Judge a node's candidates by other gates from now on."""
        node_id = request.match_info["node_id"]
        command = commands.SetGates(
            node_id=node_id,
            settings=_numbers(asked.set),
            budgets=tuple(
                Budget(name=one.name, latency_max=one.latency_max, bytes_max=one.bytes_max)
                for one in asked.budgets
            ),
            dropped=tuple(asked.drop),
            reset=asked.reset,
        )
        # In the same turn as the decision, so that what is gone after it went by it.
        before = dict(self._door.state.graph.of_budgets.rows)

        def view(state: State) -> tuple[Gates, bool, list[judgement.RetiredChampion]]:
            return *state.graph.gates_of(node_id), _retired(before, state)

        hold, inherited, retired = await self._door.execute(command, runtime.new_meta(BY), view)
        shown = verdicts.gates_of(hold, inherited=inherited)
        node = judgement.GatedNode(node_id=node_id, gates=shown)
        return judgement.GatesAnswer(node=node, retired=retired)

    # ── choices ──

    async def promote(
        self, request: web.Request, asked: judgement.PromoteRequest
    ) -> judgement.ChosenAnswer:
        """Let a candidate reign that a judge measured."""
        found = await self._found(request, asked.budget)
        wish = _Wish(idempotency_key(request), _digest("promote", asked))
        if known := wish.known(found):
            return known
        row = await self._round_of(found.node_id, asked.candidate_id, asked.round_id)
        champion = lineage.measured(row, asked.candidate_id)
        return await self._choose(found, wish.command("promote", found, champion, asked.reason))

    async def rollback(
        self, request: web.Request, asked: judgement.RollbackRequest
    ) -> judgement.ChosenAnswer:
        """Give the throne back to one that had it."""
        found = await self._found(request, asked.budget)
        wish = _Wish(idempotency_key(request), _digest("rollback", asked))
        if known := wish.known(found):
            return known
        champion = _former(found, asked.to)
        return await self._choose(found, wish.command("rollback", found, champion, asked.reason))

    async def _found(self, request: web.Request, budget: str) -> _Throne:
        """A throne as it stands. What happened is read after who reigns: a choice made meanwhile is
        then a conflict, and not one more step."""
        node_id = request.match_info["node_id"]

        def view(state: State) -> tuple[str, dict[str, Budget]]:
            _require_node(state, node_id)
            champion = state.graph.reigning(node_id, budget)
            stated = {one.name: one for one in state.graph.gates(node_id).budgets}
            return champion.candidate_id if champion else "", stated

        reigning, stated = await self._door.read(view)
        history = await self._records.of_node(node_id)
        return _Throne(node_id, budget, reigning, stated, history)

    async def _choose(
        self, found: _Throne, command: commands.ChooseChampion
    ) -> judgement.ChosenAnswer:
        if found.budget:
            row = await self._records.round(command.champion.round_id)
            _require_latency(row, command.champion.candidate_id, found.limits())
        await self._door.execute(command, runtime.new_meta(BY), runtime.nothing)
        history = await self._records.of_node(found.node_id)
        reigns = lineage.reigns(history, found.budget)
        return _answer(found.node_id, found.budget, command.champion, reigns)

    async def _round_of(self, node_id: str, candidate_id: str, round_id: str | None) -> Round:
        """The round in which a candidate stood, of the newest. Raises NotFound."""
        if round_id is not None:
            row = await self._records.round(round_id)
            if row.node_id != node_id:
                raise errors.NotFound(f"{round_id} is no round of {node_id}")
            return row
        ids = await self._door.read(lambda state: _newest(state, node_id))
        for start in range(0, min(len(ids), ROUNDS_SEARCHED_MAX), READ_AT_ONCE):
            for row in await self._rounds(ids[start : start + READ_AT_ONCE]):
                if any(one.candidate.candidate_id == candidate_id for one in row.standings):
                    return row
        raise errors.NotFound(
            f"{candidate_id} stood in none of the newest {min(len(ids), ROUNDS_SEARCHED_MAX)} "
            f"rounds of {node_id}; `aghsan champion lineage {node_id}` lists all candidates"
        )

    async def _rounds(self, ids: Sequence[str]) -> list[Round]:
        return list(await asyncio.gather(*map(self._records.round, ids)))

    # ── candidates ──

    async def candidates(
        self, request: web.Request, asked: judgement.CandidatesQuery
    ) -> judgement.CandidatesAnswer:
        """Every candidate of some rounds of a node, newest first, refused and rejected ones too."""
        node_id = request.match_info["node_id"]
        if asked.candidate_id is not None:
            await self._door.read(lambda state: _require_node(state, node_id))
            row = await self._round_of(node_id, asked.candidate_id, None)
            shown = [
                one
                for one in await self._of_rounds(node_id, [row])
                if one.candidate_id == asked.candidate_id
            ]
            return judgement.CandidatesAnswer(candidates=shown, next=None)
        ids = await self._door.read(lambda state: _newest(state, node_id))
        first = 0
        if asked.after is not None:
            if asked.after not in ids:
                raise errors.Invalid(f"{asked.after} is no round of {node_id} to go on after")
            first = ids.index(asked.after) + 1
        wanted = ids[first : first + asked.limit]
        shown = []
        for start in range(0, len(wanted), READ_AT_ONCE):
            rows = await self._rounds(wanted[start : start + READ_AT_ONCE])
            shown += await self._of_rounds(node_id, rows)
        following = wanted[-1] if first + len(wanted) < len(ids) else None
        return judgement.CandidatesAnswer(candidates=shown, next=following)

    async def _of_rounds(
        self, node_id: str, rows: Sequence[Round]
    ) -> list[judgement.CandidateRecord]:
        thrones = await self._door.read(lambda state: _thrones(state, node_id))
        ids = dict.fromkeys(one.task_id for row in rows for one in row.standings)
        tasks = await asyncio.gather(*map(self._records.task, ids))
        by_id = {task.task_id: task for task in tasks}
        return [
            _record(row, candidate, by_id[one.task_id], thrones.get(candidate.candidate_id, []))
            for row in rows
            for one in row.standings
            for candidate in (one.candidate,)
        ]


def _numbers(raw: msgspec.Raw) -> dict[str, float]:
    """Raises errors.Invalid where a gate is set to no number."""
    try:
        return msgspec.json.decode(raw, type=dict[str, float])
    except msgspec.ValidationError as error:
        raise errors.Invalid(f"gates are numbers by name: {error}") from error


def _retired(before: Mapping[str, Champion], state: State) -> list[judgement.RetiredChampion]:
    """Who reigned for budgets before, and does no more."""
    return [
        judgement.RetiredChampion(
            node_id=node_id, budget=budget, candidate_id=champion.candidate_id
        )
        for key, champion in before.items()
        if key not in state.graph.of_budgets
        for node_id, budget in (node_and_budget(key),)
    ]


def _digest(kind: str, asked: judgement.PromoteRequest | judgement.RollbackRequest) -> str:
    return hashlib.sha256(msgspec.json.encode((kind, asked))).hexdigest()[:REQUEST_DIGITS]


def _require_node(state: State, node_id: str) -> None:
    if node_id not in state.graph.nodes:
        raise errors.NotFound(f"there is no node {node_id}")


def _newest(state: State, node_id: str) -> list[str]:
    """A node's rounds, the newest first. Raises NotFound."""
    _require_node(state, node_id)
    return state.rounds.of_node.get(node_id, [])[::-1]


def _thrones(state: State, node_id: str) -> dict[str, list[str]]:
    """Over what candidates of a node reign now."""
    _require_node(state, node_id)
    found: dict[str, list[str]] = {}
    for budget in ("", *(one.name for one in state.graph.gates(node_id).budgets)):
        champion = state.graph.reigning(node_id, budget)
        if champion is not None:
            found.setdefault(champion.candidate_id, []).append(budget)
    return found


def _former(found: _Throne, to: str | None) -> Champion:
    """Whom a rollback leads to. Raises NotFound, Conflict."""
    found.limits()
    reigns = lineage.reigns(found.history, found.budget)
    if to is not None:
        champion = lineage.former(reigns, to)
        if champion is None:
            raise errors.NotFound(
                f"{to} never reigned there; `aghsan champion history {found.node_id}` lists those "
                "that did, and `aghsan champion promote` takes what a judge measured"
            )
        return champion
    champion = lineage.before(reigns)
    if champion is None:
        raise errors.Conflict(_none_before(found, bool(reigns)))
    return champion


def _none_before(found: _Throne, did_any_reign: bool) -> str:
    of = f" for the budget {found.budget}" if found.budget else ""
    if not did_any_reign:
        return f"nobody ever reigned over {found.node_id}{of}, so there is nobody to go back to"
    listing = f"aghsan champion history {found.node_id}"
    if found.budget:
        listing += f" --budget {shlex.quote(found.budget)}"
    return (
        f"nobody reigned over {found.node_id}{of} before the champion of now, or it has none; name "
        f"whom you mean, of those that `{listing}` lists"
    )


def _require_latency(row: Round, candidate_id: str, budget: Budget) -> None:
    """A budget's champion is known to be as fast as that asks. Raises Conflict."""
    if budget.latency_max is None:
        return
    weighed = row.decision.weighed if row.decision else ()
    latency = next((one.latency for one in weighed if one.candidate_id == candidate_id), None)
    if latency is None:
        raise errors.Conflict(
            f"the latency of {candidate_id} was not measured in {row.round_id}, and the budget "
            f"{budget.name} asks for at most {budget.latency_max:g} times the reference kernel's"
        )
    if latency.ratio > budget.latency_max:
        raise errors.Conflict(
            f"{candidate_id} takes {latency.ratio:.3g} times as long as the reference kernel, and "
            f"the budget {budget.name} allows {budget.latency_max:g}"
        )


def _answer(
    node_id: str, budget: str, champion: Champion, reigns: Sequence[lineage.Reign]
) -> judgement.ChosenAnswer:
    rises = [one for one in reigns if one.champion.candidate_id == champion.candidate_id]
    before = lineage.former(reigns, rises[-1].instead_of) if rises else None
    return judgement.ChosenAnswer(
        chosen=judgement.ChosenChampion(
            node_id=node_id,
            budget=budget,
            champion=verdicts.champion_of(champion, reigns),
            instead_of=None if before is None else verdicts.champion_of(before, reigns),
        )
    )


def _record(
    row: Round, candidate: events.Candidate, task: Task, reigns: list[str]
) -> judgement.CandidateRecord:
    said = verdicts.said_of(candidate.candidate_id, row.decision)
    # A dual task has a base for its evolver; its reinventor starts from nothing.
    is_based = candidate.rival == "evolver" or candidate.method == "distill"
    return judgement.CandidateRecord(
        candidate_id=candidate.candidate_id,
        role=candidate.rival,
        task_id=task.task_id,
        topic=task.topic,
        method=candidate.method,
        method_reason=candidate.method_reason,
        base=verdicts.base_of(task.base) if task.base and is_based else None,
        parents=[verdicts.base_of(one) for one in task.parents],
        attempts=[attempt_of(claim) for claim in task.claims],
        worker_id=next(s.worker_id for s in row.standings if s.candidate == candidate),
        completed_at=events.isoformat(task.result.completed_at) if task.result else None,
        round_id=row.round_id,
        round_status=row.status,
        verdict=said.verdict if said else None,
        reasons=verdicts.reasons_of(said.reasons) if said else None,
        error=said.error if said else None,
        evidence_rate=said.evidence_rate if said else None,
        params=said.params if said else 0,
        bytes=candidate.bytes,
        weights_sha256=candidate.weights_sha256,
        manifest=candidate.manifest,
        reigns=reigns,
    )
