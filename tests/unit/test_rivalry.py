"""What each rival has won and cost, as the fold counts it."""

import hashlib

import pytest

from core import commands, errors, events
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


def price(made: World, capabilities: bytes) -> None:
    """A new session of the agent, which says this of itself."""
    made.do(
        commands.OpenSession(
            worker_id="a1",
            session="another",
            hostname="host",
            lane="cpu-16",
            protocol=1,
            capabilities=capabilities,
        )
    )


def test_time_costs_what_its_worker_said_as_it_claimed_and_else_nothing_is_known() -> None:
    made = world()
    train(made, "t0", candidate("e0", "evolver"), seconds=36)
    assert (account(made, "evolver").priced_us, account(made, "evolver").cost_micro) == (0, 0)
    price(made, b'{"price_per_hour":2.5}')
    train(made, "t1", candidate("e1", "evolver"), seconds=72)
    one = account(made, "evolver")
    assert one.held_us == pytest.approx(54 * SECOND, abs=10)
    assert one.priced_us == pytest.approx(36 * SECOND, abs=10)
    assert one.cost_micro == pytest.approx(25_000, abs=10)
    assert rivalry.total([one, one]).cost_micro == 2 * one.cost_micro


def test_a_revived_claim_costs_once_though_its_worker_named_another_price_meanwhile() -> None:
    made = world()
    price(made, b'{"price_per_hour":3600}')
    made.task("t1", role="evolver")
    token = made.claim("a1", "c1")
    assert token is not None
    made.later(10)
    made.do(commands.ExpireClaim(token=token, reason="silence"))
    price(made, b'{"price_per_hour":1}')
    made.do(commands.ReattachClaim(token=token, worker_id="a1", session="another"))
    assert account(made, "evolver").cost_micro == 0
    made.later(5)
    made.do(commands.CancelTask(task_id="t1"))
    assert account(made, "evolver").cost_micro == pytest.approx(15e6, abs=10)


@pytest.mark.parametrize("told", [b"-1", b'"2"', b"true", b"1e7", b"[1]"])
def test_what_is_no_price_is_refused_whoever_tells_it(told: bytes) -> None:
    made = world()
    capabilities = b'{"price_per_hour":' + told + b"}"
    with pytest.raises(errors.Invalid, match="price_per_hour is a number from 0 to 1,000,000"):
        price(made, capabilities)
    for command in (
        commands.RegisterWorker(worker_id="w", hostname="h", capabilities=capabilities),
        commands.Heartbeat(worker_id="w", capabilities=capabilities),
    ):
        with pytest.raises(errors.Invalid, match="price_per_hour"):
            made.do(command)


def test_older_rounds_count_less_and_one_of_20_rounds_ago_half() -> None:
    made = world()
    decide(made, train(made, "t0", candidate("r", "reinventor"), candidate("e", "evolver")), "r")
    assert account(made, "reinventor").recent_won == 1.0
    for number in range(20):
        lost = candidate(f"r{number}", "reinventor"), candidate(f"e{number}", "evolver")
        hashes = [hashlib.sha256(bytes([8 + number]) * 32).hexdigest()]
        deposited = made.state.rounds.next_deposit
        made.do(commands.DepositCommitments(judge="j", first=deposited, commitments=hashes))
        decide(made, train(made, f"t{number + 1}", *lost))
    assert account(made, "reinventor").recent_won == pytest.approx(0.5)
    assert account(made, "reinventor").won == 1
    assert account(made, "evolver").recent_rounds == pytest.approx(15.17, abs=0.01)


def test_what_a_win_gained_is_counted_within_bounds_and_to_the_same_bit_everywhere() -> None:
    made = world()
    first = candidate("e0", "evolver"), candidate("r0", "reinventor")
    decide(made, train(made, "t0", *first), "e0", ratio=0.001)
    assert account(made, "evolver").recent_gain == 0.0
    gains = []
    for number, ratio in enumerate((0.5, 1.01, 1e-30), 1):
        both = candidate(f"e{number}", "evolver"), candidate(f"r{number}", "reinventor")
        before = account(made, "evolver").recent_gain * rivalry.DECAY
        decide(made, train(made, f"t{number}", *both), f"e{number}", ratio=ratio)
        gains.append(account(made, "evolver").recent_gain - before)
    assert gains[0] == 0.6931471805599453
    assert gains[1:] == pytest.approx([rivalry.GAIN_LEAST, rivalry.GAIN_MOST])


def test_whose_turn_was_when_is_remembered_and_merges_are_nobodys() -> None:
    made = world()
    for number, role in enumerate(("dual", "evolver", "dual", "reinventor")):
        made.task(f"t{number}", role=role)
    made.task("other", "opt-convex")
    turns = made.state.rivalry.turns(NODE)
    assert (turns.tasks, turns.newest) == (4, 4)
    assert (turns.dual, turns.evolver, turns.reinventor) == (3, 2, 4)
    assert made.state.rivalry.turns("opt-convex").newest == 5
    assert turns.with_one("merge", 9) == turns
