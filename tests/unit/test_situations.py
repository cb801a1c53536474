"""What a node's plans are written from: its state, and of decided rounds the log."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from core import commands, errors, events, plans, runtime
from core.chunks import MemoryChunks
from core.log_memory import MemoryLog
from gateway.records import Records
from gateway.situations import ROUNDS_MAX, Foresee, Situations, unforeseen

NODE = "opt-convex"
KEPT = events.Reasons(en="Not surely better.", ar="لم يثبت أنه أفضل.")
WON = events.Reasons(en="Better.", ar="أفضل.")


def secret(index: int) -> bytes:
    return hashlib.sha256(b"%d" % index).digest()


class Network:
    """A control plane in memory, with an agent, a judge, and a look at how a node stands."""

    def __init__(self, door: runtime.Runtime, situations: Situations) -> None:
        self.door = door
        self._situations = situations
        self._count = 0

    async def do(self, *asked: commands.AnyCommand) -> None:
        for command in asked:
            await self.door.execute(command, runtime.new_meta("t"), runtime.nothing)

    async def at(self, node_id: str = NODE) -> plans.Situation:
        _, situation = await self._situations.of(node_id)
        return situation

    async def enqueue(self, task_id: str, **more: Any) -> str:
        asked = {"node_id": NODE, "topic": "t", "seed": 1, **more}
        await self.do(commands.EnqueueTask(task_id=task_id, **asked))
        return task_id

    async def claimed(self, task_id: str) -> events.Token:
        claim = commands.ClaimTask(
            worker_id="a", via="nats", claim_id="c", lease_seconds=60.0, session="s"
        )
        await self.do(claim)
        return events.Token(task_id=task_id, attempt=1, claim_id="c")

    async def judged(self, promoted: str, **errors_of: float) -> str:
        """A round in which an evolver and a reinventor stood; its id."""
        self._count += 1
        task_id = await self.enqueue(f"task-{self._count}", budget_seconds=40.0)
        models = [self._model(task_id, rival) for rival in ("evolver", "reinventor")]
        metrics = {"rivals": {one.rival: _told(one) for one in models}}
        token = await self.claimed(task_id)
        await self.do(
            commands.CompleteTask(
                task_id=task_id,
                worker_id="a",
                token=token,
                session="s",
                candidates=models,
                metrics=json.dumps(metrics).encode(),
            )
        )
        (round_id,) = self.door.state.rounds.undecided
        await self.do(commands.StartJudging(round_id=round_id, judge="j"))
        await self.do(self._verdict(round_id, models, promoted, errors_of))
        return round_id

    def _model(self, task_id: str, rival: Any) -> events.Candidate:
        name = f"{task_id}-{rival}"
        return events.Candidate(
            candidate_id=name,
            rival=rival,
            manifest="a" * 64,
            writer="a",
            weights_sha256=hashlib.sha256(name.encode()).hexdigest(),
            bytes=1,
            method="full",
        )

    def _verdict(
        self,
        round_id: str,
        models: list[events.Candidate],
        promoted: str,
        errors_of: dict[str, float],
    ) -> commands.DecideRound:
        champion = self.door.state.graph.champions.get(NODE)
        names: dict[str, str] = {one.rival: one.candidate_id for one in models}
        return commands.DecideRound(
            round_id=round_id,
            judge="j",
            verdict="promote" if promoted else "keep",
            secret=secret(self._count - 1).hex(),
            reasons=WON if promoted else KEPT,
            candidates=[
                events.CandidateVerdict(
                    candidate_id=one.candidate_id,
                    verdict="better" if one.rival == promoted else "reject",
                    reasons=WON if one.rival == promoted else KEPT,
                    error=errors_of[one.rival],
                    evidence_rate=0.5,
                    params=1_000 if one.rival == "evolver" else 100,
                )
                for one in models
            ],
            promoted=names[promoted] if promoted else "",
            against=champion.candidate_id if champion else "",
            baseline_error=0.5,
        )


def _told(model: events.Candidate) -> dict[str, object]:
    family = "lista" if model.rival == "evolver" else "learned-steps"
    return {"weights_sha256": model.weights_sha256, "family": family, "steps": 321, "loss": 0.1}


@contextlib.asynccontextmanager
async def network(foresee: Foresee = unforeseen) -> AsyncIterator[Network]:
    log = MemoryLog()
    door = runtime.Runtime(log, "test")
    await door.start()
    loop = asyncio.ensure_future(door.run())
    here = Network(door, Situations(door, Records(door, log, MemoryChunks()), foresee))
    commitments = [hashlib.sha256(secret(index)).hexdigest() for index in range(9)]
    try:
        await here.do(
            commands.SeedTree(),
            commands.DepositCommitments(judge="j", first=0, commitments=commitments),
            commands.OpenSession(
                worker_id="a", session="s", hostname="h", lane="cpu-16", protocol=1
            ),
        )
        yield here
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_a_fresh_node_has_its_work_and_nothing_else() -> None:
    async with network() as here:
        assert await here.at("stats-time-series") == plans.Situation(
            node_id="stats-time-series",
            name="السلاسل الزمنية",
            specialist="stats-time-series",
            budget_seconds_min=3.0,
        )


async def test_a_node_that_is_not_there_has_no_situation() -> None:
    async with network() as here:
        with pytest.raises(errors.NotFound, match=r"^node not found$"):
            await here.at("nope")


async def test_a_node_that_grew_inherits_its_work_from_the_nearest_that_has_some() -> None:
    async with network() as here:
        await here.do(
            commands.ExpandNode(node_id="n1", parent_id=NODE, name="أ"),
            commands.ExpandNode(node_id="n2", parent_id="n1", name="ب"),
        )
        stands = await here.at("n2")
        assert (stands.specialist, stands.inherited_from) == (NODE, "التحسين المحدب")


async def test_work_that_this_version_does_not_know_has_no_least_budget() -> None:
    async with network() as here:
        state = here.door.state
        node = state.graph.nodes.rows[NODE]
        other = events.replace(node, workload=events.Workload(specialist="of-tomorrow"))
        state.graph.nodes.rows[NODE] = other
        stands = await here.at()
        assert (stands.specialist, stands.budget_seconds_min) == ("of-tomorrow", None)


async def test_a_champion_comes_with_its_figures_and_what_its_worker_told_of_it() -> None:
    async with network() as here:
        await here.judged("evolver", evolver=0.25, reinventor=0.4)
        assert (await here.at()).champion == plans.Champion(
            candidate_id="task-1-evolver",
            rival="evolver",
            error=0.25,
            baseline_error=0.5,
            evidence_rate=0.5,
            params=1_000,
            family="lista",
            steps=321,
        )


async def test_decided_rounds_come_from_the_log_with_what_was_rejected_and_why() -> None:
    async with network() as here:
        first = await here.judged("evolver", evolver=0.25, reinventor=0.4)
        second = await here.judged("", evolver=0.26, reinventor=0.3)
        here.door.state.tasks.recent.clear()  # as after a thousand more completions
        stands = await here.at()
        assert [one.round_id for one in stands.rounds] == [first, second]
        assert stands.rounds[0].promoted == "task-1-evolver"
        evolver, reinventor = stands.rounds[1].attempts
        assert evolver == plans.Attempt(
            candidate_id="task-2-evolver",
            rival="evolver",
            verdict="reject",
            reasons=KEPT,
            method="full",
            error=0.26,
            params=1_000,
            family="lista",
            steps=321,
            budget_seconds=40.0,
        )
        assert (reinventor.family, reinventor.params) == ("learned-steps", 100)
        assert stands.runner_up == "task-2-evolver"


async def test_no_more_than_the_newest_rounds_are_read() -> None:
    async with network() as here:
        ids = [await here.judged("", evolver=0.3, reinventor=0.4) for _ in range(ROUNDS_MAX + 1)]
        assert [one.round_id for one in (await here.at()).rounds] == ids[1:]


async def test_rounds_and_champions_of_other_work_are_left_out() -> None:
    async with network() as here:
        await here.judged("evolver", evolver=0.25, reinventor=0.4)
        state = here.door.state
        node = state.graph.nodes.rows[NODE]
        other = events.Workload(specialist=NODE, parameters={"rows": 32.0})
        state.graph.nodes.rows[NODE] = events.replace(node, workload=other)
        stands = await here.at()
        assert (stands.champion, stands.rounds, stands.runner_up) == (None, (), "")


async def test_open_tasks_come_with_who_trains_them_and_others_tasks_do_not_come() -> None:
    async with network() as here:
        await here.enqueue("task-a")
        await here.enqueue("task-b", role="reinventor")
        await here.enqueue("task-c", node_id="opt-discrete")
        await here.claimed("task-a")
        stands = await here.at()
        assert stands.open == (
            plans.Open(task_id="task-a", role="dual", worker_id="a"),
            plans.Open(task_id="task-b", role="reinventor"),
        )
        assert (stands.open_count, stands.rounds_pending) == (2, 1)


async def test_what_failed_comes_with_its_reason() -> None:
    async with network() as here:
        await here.enqueue("task-a")
        token = await here.claimed("task-a")
        failed = commands.FailAttempt(token=token, worker_id="a", session="s", reason="it diverged")
        await here.do(failed)
        (failure,) = (await here.at()).failures
        assert failure == plans.Failure(
            task_id="task-a", role="dual", reason="it diverged", is_final=False
        )


async def test_what_is_foreseen_comes_with_it() -> None:
    order = plans.Order(node_id=NODE, name="x")

    async def foresee() -> plans.Order:
        return order

    async with network(foresee) as here:
        assert (await here.at()).order == order


@pytest.mark.parametrize("metrics", [b'{"rivals": 7}', b'{"rivals": {"evolver": {"steps": "x"}}}'])
async def test_metrics_that_tell_nothing_of_models_are_passed_over(metrics: bytes) -> None:
    async with network() as here:
        await here.judged("evolver", evolver=0.25, reinventor=0.4)
        tasks = here.door.state.tasks.recent
        (task,) = tasks.values()
        assert task.result is not None
        strange = events.replace(task.result, metrics=msgspec.Raw(metrics))
        tasks[task.task_id] = events.replace(task, result=strange)
        champion = (await here.at()).champion
        assert champion is not None
        assert (champion.family, champion.steps, champion.error) == ("", 0, 0.25)


async def test_the_same_state_gives_equal_plans_and_a_verdict_changes_them() -> None:
    async with network() as here:
        await here.judged("evolver", evolver=0.25, reinventor=0.4)
        before = plans.plans(await here.at(), "how?")
        assert plans.plans(await here.at(), "how?") == before
        await here.judged("reinventor", evolver=0.3, reinventor=0.125)
        after = plans.plans(await here.at(), "how?")
        assert "task-1-evolver (family lista, 1,000 numbers, 321 steps)" in before.evolver.steps[0]
        assert "Its error is 0.25, 0.5 times the baseline's 0.5." in before.evolver.steps[0]
        now = after.evolver.steps[0]
        assert "task-2-reinventor (family learned-steps, 100 numbers, 321 steps)" in now
        assert "Its error is 0.125, 0.25 times the baseline's 0.5." in now
