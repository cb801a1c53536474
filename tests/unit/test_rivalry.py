"""What each rival has won and cost, as the fold counts it."""

import hashlib

import pytest

from core import commands, events
from core.events import CandidateVerdict, Reasons, Rival
from core.projections import rivalry
from core.projections.rounds import Round
from tests.build import SECOND, World

NODE = "stats-bayesian"
REASONS = Reasons(ar="لأن", en="because")


def world() -> World:
    made = World().seeded()
    made.agent("a1")
    secrets = [bytes([index]) * 32 for index in range(8)]
    hashes = [hashlib.sha256(secret).hexdigest() for secret in secrets]
    made.do(commands.DepositCommitments(judge="j", first=0, commitments=hashes))
    return made


def account(made: World, rival: Rival) -> rivalry.Account:
    return made.state.rivalry.of(NODE, rival)


def candidate(name: str, rival: Rival) -> events.Candidate:
    return events.Candidate(
        candidate_id=name,
        rival=rival,
        manifest=hashlib.sha256(name.encode()).hexdigest(),
        writer="a1",
        weights_sha256=hashlib.sha256(name.encode()).hexdigest(),
        bytes=1,
    )


def train(made: World, task_id: str, *brought: events.Candidate, seconds: float = 40) -> str:
    """A task of both rivals, held for so long; the round it stands in."""
    made.task(task_id)
    token = made.claim("a1", f"claim-{task_id}")
    assert token is not None
    made.later(seconds)
    session = made.state.workers.table.rows["a1"].session
    made.do(
        commands.CompleteTask(
            task_id=task_id,
            token=token,
            worker_id="a1",
            session=session,
            candidates=list(brought),
        )
    )
    return made.state.tasks.table.rows[task_id].round_id


def decide(
    made: World, round_id: str, promoted: str = "", ratio: float = 0.5, *, void: bool = False
) -> None:
    made.do(commands.StartJudging(round_id=round_id, judge="j"))
    row = made.state.rounds.table.rows[round_id]
    assert isinstance(row, Round)
    made.do(
        commands.DecideRound(
            round_id=round_id,
            judge="j",
            verdict="void" if void else "promote" if promoted else "keep",
            secret=(bytes([row.index]) * 32).hex(),
            reasons=REASONS,
            candidates=[
                CandidateVerdict(
                    candidate_id=one.candidate.candidate_id,
                    verdict="measured",
                    reasons=REASONS,
                    error=None if void else 0.1,
                    ratio=ratio if one.candidate.candidate_id == promoted else None,
                )
                for one in row.standings
            ],
            promoted=promoted,
            against=row.champion.candidate_id if row.champion else "",
            baseline_error=1.0,
        )
    )


def test_who_wins_is_counted_and_the_gain_over_a_champion_but_not_over_none() -> None:
    made = world()
    first = train(made, "t1", candidate("e1", "evolver"), candidate("r1", "reinventor"))
    decide(made, first, "r1", ratio=0.01)
    assert account(made, "reinventor").won == 1
    assert account(made, "reinventor").replaced == 0
    assert (account(made, "evolver").won, account(made, "evolver").lost) == (0, 1)
    second = train(made, "t2", candidate("e2", "evolver"), candidate("r2", "reinventor"))
    decide(made, second, "e2", ratio=0.5)
    assert (account(made, "evolver").replaced, account(made, "evolver").error_factor) == (1, 0.5)
    third = train(made, "t3", candidate("e3", "evolver"), candidate("r3", "reinventor"))
    decide(made, third, "e3", ratio=0.0)
    assert account(made, "evolver").error_factor == 0.5 * rivalry.FACTOR_LEAST
    assert (account(made, "evolver").rounds, account(made, "evolver").won) == (3, 2)
    assert (account(made, "reinventor").rounds, account(made, "reinventor").lost) == (3, 2)


def test_a_rival_that_brings_nothing_is_absent_and_a_void_round_counts_for_nobody() -> None:
    made = world()
    decide(made, train(made, "t1", candidate("e1", "evolver")), "e1")
    assert account(made, "reinventor").absent == 1
    assert account(made, "evolver").absent == 0
    both = candidate("e2", "evolver"), candidate("r2", "reinventor")
    decide(made, train(made, "t2", *both), void=True)
    assert account(made, "evolver").rounds == account(made, "reinventor").rounds == 1


def test_time_is_counted_by_claims_half_for_each_of_two_rivals() -> None:
    made = world()
    train(made, "t1", candidate("e1", "evolver"), candidate("r1", "reinventor"), seconds=40)
    assert account(made, "evolver").held_us == pytest.approx(20 * SECOND, abs=10)
    made.task("t2", role="evolver")
    token = made.claim("a1", "c2")
    assert token is not None
    made.later(10)
    made.do(commands.ExpireClaim(token=token, reason="silence"))
    assert account(made, "evolver").held_us == pytest.approx(30 * SECOND, abs=10)
    assert account(made, "reinventor").held_us == pytest.approx(20 * SECOND, abs=10)


def test_a_revived_claim_is_counted_once_and_whole() -> None:
    made = world()
    made.task("t1", role="evolver")
    token = made.claim("a1", "c1")
    assert token is not None
    session = made.state.workers.table.rows["a1"].session
    made.now += 10 * SECOND + 1
    made.do(commands.ExpireClaim(token=token, reason="silence"))
    made.later(5)
    made.do(commands.ReattachClaim(token=token, worker_id="a1", session=session))
    assert account(made, "evolver").held_us == pytest.approx(0, abs=10)
    made.later(5)
    made.do(commands.CancelTask(task_id="t1"))
    assert account(made, "evolver").held_us == pytest.approx(20 * SECOND, abs=10)


def test_sums_are_those_of_the_accounts() -> None:
    made = world()
    decide(made, train(made, "t1", candidate("e1", "evolver")), "e1")
    one = account(made, "evolver")
    doubled = rivalry.total([one, one])
    assert (doubled.rounds, doubled.won, doubled.held_us) == (2, 2, 2 * one.held_us)
    assert doubled.rival == "evolver"
