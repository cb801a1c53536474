"""What goes on after an accepted loss: it breaks no rule, and whatever does is found as ever."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from core import audit, commands, errors, events, runtime, seals
from core.log import Message
from core.log_memory import MemoryLog
from core.projections.rounds import Round
from core.projections.state import State
from core.projections.tasks import Task
from tests.unit.test_audit import (
    NODE,
    SECRETS,
    WHOLE,
    History,
    Sealed,
    at,
    candidate,
    find,
)

LATER = [bytes([100 + number]) * 32 for number in range(4)]
BY_COMMITMENT = {hashlib.sha256(one).hexdigest(): one.hex() for one in (*SECRETS, *LATER)}
REASONS = events.Reasons(ar="سبب", en="reason")


class GoingOn:
    """A writer that starts on a log that lost records, and what people and agents do then."""

    def __init__(self, door: runtime.Runtime) -> None:
        self.door = door
        self.done = 0

    @property
    def state(self) -> State:
        return self.door.state

    async def try_to(self, command: commands.AnyCommand) -> bool:
        """Whether that is not refused."""
        try:
            await self.door.execute(command, runtime.new_meta("test"), runtime.nothing)
        except errors.Refused:
            return False
        return True

    async def go_on(self) -> None:
        """Deposit, train and judge, as far as what can be read lets anybody."""
        deposit = commands.DepositCommitments(
            judge="j",
            first=self.state.rounds.next_deposit,
            commitments=[hashlib.sha256(one).hexdigest() for one in LATER],
        )
        await self.try_to(deposit)
        hello = commands.OpenSession(
            worker_id="b1", session="b", hostname="host", lane="cpu-16", protocol=1
        )
        await self.try_to(hello)
        await self.judge_all()
        for number in range(2):
            queued = commands.EnqueueTask(task_id=f"l{number}", topic="t", node_id=NODE, seed=7)
            await self.try_to(queued)
        for _ in range(3):
            await self.train_one()
            await self.judge_all()

    async def train_one(self) -> None:
        self.done += 1
        claim_id = f"later{self.done}"
        claim = commands.ClaimTask(
            worker_id="b1", via="nats", claim_id=claim_id, lease_seconds=60, session="b"
        )
        await self.try_to(claim)
        rows = [one for one in self.state.tasks.table if isinstance(one, Task)]
        held = [one for one in rows if one.claims and one.claims[-1].claim_id == claim_id]
        if not held:
            return
        (task,) = held
        token = events.Token(
            task_id=task.task_id, attempt=task.claims[-1].attempt, claim_id=claim_id
        )
        brought = [
            events.replace(candidate(rival, f"{claim_id}-{rival}"), writer="b1")
            for rival in ("evolver", "reinventor")
            if task.role in ("dual", rival)
        ]
        completion = commands.CompleteTask(
            task_id=task.task_id, candidates=brought, token=token, worker_id="b1", session="b"
        )
        await self.try_to(completion)

    async def judge_all(self) -> None:
        for round_id in list(self.state.rounds.undecided):
            if await self.try_to(commands.StartJudging(round_id=round_id, judge="j")):
                row = self.state.rounds.table.rows[round_id]
                assert isinstance(row, Round)
                await self.try_to(self.verdict(row))

    def verdict(self, row: Round) -> commands.DecideRound:
        verdicts = [
            events.CandidateVerdict(
                candidate_id=one.candidate.candidate_id,
                verdict="promoted",
                reasons=REASONS,
                error=0.1,
            )
            for one in row.standings
        ]
        return commands.DecideRound(
            round_id=row.round_id,
            judge="j",
            verdict="promote" if verdicts else "void",
            secret=BY_COMMITMENT[row.commitment],
            reasons=REASONS,
            candidates=verdicts,
            promoted=verdicts[0].candidate_id if verdicts else "",
            against=row.champion.candidate_id if row.champion else "",
            baseline_error=0.5,
        )


@contextlib.asynccontextmanager
async def accepted(history: History, lost: int) -> AsyncIterator[tuple[GoingOn, MemoryLog]]:
    """A writer on a log that lost a record, which was accepted."""
    whole = Sealed([])
    for event in history:
        whole.add(event.data, event.at)
    whole.lose(lost)
    log = MemoryLog()
    for number, one in enumerate(whole.records):
        await log.append([Message(one.subject, one.data)], number)
    door = runtime.Runtime(log, "later")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    try:
        going = GoingOn(door)
        await going.try_to(commands.StartWriter(process="later"))
        proof = await seals.digest_of(log, door.durable_seq)
        assert await going.try_to(
            commands.AcceptLoss(
                first=lost, details=[], last=proof.last, lost=proof.lost, digest=proof.digest
            )
        )
        yield going, log
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


@pytest.mark.parametrize("end", range(17, len(WHOLE), 4))
async def test_a_log_that_ends_soon_after_what_it_lost_is_gone_on_with(end: int) -> None:
    """Whatever had begun by then: nobody has to know how it would have ended."""
    for lost in range(end - 7, end + 1):
        async with accepted(WHOLE[:end], lost) as (going, log):
            async with asyncio.timeout(10):
                await going.go_on()
            found = (await audit.read_log(log)).findings
        assert (lost, found.shown) == (lost, [])


@pytest.mark.parametrize("lost", range(1, len(WHOLE) + 1))
async def test_what_goes_on_after_an_accepted_loss_breaks_no_rule(lost: int) -> None:
    async with accepted(WHOLE, lost) as (going, log):
        await going.go_on()
        found = (await audit.read_log(log)).findings
    assert going.done
    assert found.shown == []


def opened(index: int) -> events.RoundOpened:
    new: dict[str, Any] = {
        "round_id": "r9",
        "index": index,
        "commitment": "ab" * 32,
        "node_id": "root-math",
    }
    before: events.RoundOpened = at(find(events.RoundOpened))
    return events.replace(before, **new)


def of_commitments(*more: events.EventData, accept_at: int = 0) -> list[tuple[str, int]]:
    """What is found in a log that lost its first deposit, and was accepted in front of one of
    what follows, behind how much of the others."""
    log = Sealed([])
    for event in WHOLE:
        log.add(event.data, event.at)
    log.lose(find(events.CommitmentsDeposited) + 1)
    end = log.end
    for number, data in enumerate(more):
        if number == accept_at:
            log.accept()
        log.add(data)
    if accept_at >= len(more):
        log.accept()
    return [(one.rule, one.seq - end) for one in log.audited().shown]


def test_a_round_takes_what_may_be_lost_only_until_that_was_accepted() -> None:
    assert of_commitments(opened(5), accept_at=1) == []
    assert of_commitments(opened(5), accept_at=0) == [("commitment", 2)]


def test_a_round_takes_no_more_than_the_next_deposit_says_is_lost() -> None:
    after = events.CommitmentsDeposited(judge="j", first=8, commitments=["cd" * 32])
    assert of_commitments(opened(5), after, accept_at=2) == []
    assert of_commitments(after, opened(5), accept_at=2) == []
    assert of_commitments(opened(777), after, accept_at=2) == [("commitment", 1)]
    assert of_commitments(after, opened(777), accept_at=2) == [("commitment", 2)]
    assert of_commitments(after, opened(5), accept_at=1) == [("commitment", 3)]


def test_a_verdict_without_a_secret_is_excused_only_if_it_is_void_and_before_the_acceptance() -> (
    None
):
    started = events.JudgingStarted(round_id="r9", judge="j", look=1)
    closed = events.RoundClosed(round_id="r9", reason="")
    void = events.RoundDecided(
        round_id="r9", verdict="void", secret="", reasons=REASONS, candidates=[]
    )
    story: list[events.EventData] = [opened(5), closed, started]
    keep = events.replace(void, verdict="keep")
    assert of_commitments(*story, void, accept_at=4) == []
    assert of_commitments(*story, keep, accept_at=4) == [("commitment", 4)]
    assert of_commitments(*story, void, accept_at=3) == [("commitment", 5)]


def test_a_base_at_a_closed_node_is_known_from_the_acceptance_on() -> None:
    promoted = find(events.ChampionPromoted)
    log = Sealed([])
    for event in WHOLE:
        log.add(event.data, event.at)
    log.lose(promoted + 1)
    log.accept()
    known = events.replace(at(find(events.TaskQueued)), task_id="t9", parents=[])
    claim = events.replace(at(find(events.TaskClaimed, 1)), task_id="t9", attempt=1, claim_id="c9")
    log.add(known)
    log.add(claim)  # from the champion that is lost
    assert [(one.rule, one.seq) for one in log.audited().shown] == [("base", log.end)]
