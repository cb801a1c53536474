"""Rounds: opened by claims, closed by completions, decided by whoever has the secret."""

import hashlib
from typing import Any

import pytest

from core import audit, commands, errors, events
from core.decide import rounds
from core.events import Token
from core.log import Record
from core.projections.rounds import Round
from tests.build import World


def secret(index: int) -> bytes:
    return hashlib.sha256(b"%d" % index).digest()


def secret_hash(index: int) -> str:
    return hashlib.sha256(secret(index)).hexdigest()


def deposited(count: int = 3) -> World:
    world = World().seeded()
    world.do(
        commands.DepositCommitments(
            judge="j",
            first=0,
            commitments=[hashlib.sha256(secret(index)).hexdigest() for index in range(count)],
        )
    )
    world.agent("a1")
    return world


def claimed(world: World, task_id: str = "t1", **more: Any) -> Token:
    world.task(task_id, **more)
    token = world.claim("a1")
    assert token is not None
    return token


def brought(world: World, token: Token, *rivals: events.Rival) -> None:
    world.do(
        commands.CompleteTask(
            task_id=token.task_id,
            worker_id="a1",
            token=token,
            session="session-a1",
            candidates=[
                events.Candidate(
                    candidate_id=f"{token.task_id}-{rival}",
                    rival=rival,
                    manifest="a" * 64,
                    writer="a1",
                    weights_sha256="b" * 64,
                    bytes=1,
                )
                for rival in rivals
            ],
        )
    )


def only(world: World) -> Round:
    (row,) = [row for row in world.state.rounds.table if isinstance(row, Round)]
    return row


def verdict(row: Round, **more: object) -> commands.DecideRound:
    values: dict[str, object] = {
        "round_id": row.round_id,
        "judge": "j",
        "verdict": "promote",
        "secret": secret(row.index).hex(),
        "reasons": events.Reasons(ar="س", en="w"),
        "candidates": [
            events.CandidateVerdict(
                candidate_id=one.candidate.candidate_id,
                verdict="v",
                reasons=events.Reasons(ar="س", en="w"),
                error=0.25,
            )
            for one in row.standings
        ],
        "promoted": row.standings[0].candidate.candidate_id,
        "baseline_error": 0.5,
        "below_baseline": False,
    }
    return commands.DecideRound(**{**values, **more})  # type: ignore[arg-type]


def judged(world: World) -> Round:
    world.do(commands.StartJudging(round_id=only(world).round_id, judge="j"))
    return only(world)


def promoted() -> World:
    world = deposited()
    brought(world, claimed(world), "evolver", "reinventor")
    world.do(verdict(judged(world)))
    return world


def test_a_claim_opens_a_round_against_a_commitment_and_enters_both_its_roles() -> None:
    world = deposited()
    claimed(world)
    row = only(world)
    assert row.status == "open"
    assert row.commitment == hashlib.sha256(secret(0)).hexdigest()
    assert {entry.rival for entry in row.entries} == {"evolver", "reinventor"}


def test_without_a_commitment_the_task_waits_and_a_deposit_opens_its_round() -> None:
    world = World().seeded()
    world.agent("a1")
    claimed(world)
    assert len(world.state.rounds.table) == 0
    world.do(commands.DepositCommitments(judge="j", first=0, commitments=["0" * 64]))
    assert only(world).entries[0].task_id == "t1"


def test_a_round_closes_when_both_rivals_are_in_and_a_missing_candidate_closes_its_role() -> None:
    for rivals in (("evolver", "reinventor"), ("reinventor",), ()):
        world = deposited()
        brought(world, claimed(world), *rivals)
        row = only(world)
        assert row.status == "closed"
        assert [one.candidate.rival for one in row.standings] == list(rivals)


@pytest.mark.parametrize(
    ("first", "second"), [("evolver", "reinventor"), ("reinventor", "evolver")]
)
def test_a_round_waits_for_its_second_rival_while_that_is_queued_and_no_longer(
    first: events.Rival, second: events.Rival
) -> None:
    world = deposited()
    token = claimed(world, role=first)
    world.task("t2", role=second)
    world.task("t3", role=second)
    brought(world, token, first)
    assert only(world).status == "open"
    world.do(commands.CancelTask(task_id="t2"))
    assert only(world).status == "open"
    world.do(commands.CancelTask(task_id="t3"))
    row = only(world)
    assert (row.status, row.close_reason) == ("closed", f"no {second} is queued that could join it")


def test_a_rival_that_is_queued_after_its_round_closed_opens_the_next() -> None:
    world = deposited()
    brought(world, claimed(world, role="evolver"), "evolver")
    claimed(world, "t2", role="reinventor")
    statuses = [row.status for row in world.state.rounds.table]
    assert statuses == ["closed", "open"]


def test_a_dual_task_in_the_queue_holds_no_round_since_it_could_not_join_it() -> None:
    world = deposited()
    token = claimed(world, role="evolver")
    world.task("t2")
    brought(world, token, "evolver")
    assert only(world).status == "closed"


def test_a_rival_that_failed_alone_closes_its_round_and_holds_up_no_further_one() -> None:
    world = deposited()
    claimed(world, role="evolver")
    world.do(commands.CancelTask(task_id="t1"))
    assert only(world).status == "closed"


def test_a_queued_rival_that_lost_a_record_is_not_waited_for() -> None:
    world = deposited()
    token = claimed(world, role="evolver")
    world.task("t2", role="reinventor")
    world.state.close("ev.task.t2")
    brought(world, token, "evolver")
    assert only(world).status == "closed"


def test_a_rival_that_an_http_worker_took_is_not_waited_for() -> None:
    world = deposited()
    token = claimed(world, role="evolver")
    world.task("t2", role="reinventor")
    brought(world, token, "evolver")
    assert only(world).status == "open"
    world.http_worker("h1")
    world.do(
        commands.ClaimTask(worker_id="h1", via="http", claim_id="c", lease_seconds=60, session="")
    )
    assert only(world).status == "closed"


def test_a_further_task_of_a_role_waits_for_the_next_round() -> None:
    world = deposited()
    first = claimed(world)
    second = claimed(world, "t2")
    brought(world, second, "evolver", "reinventor")
    assert only(world).standings == ()
    brought(world, first, "evolver", "reinventor")
    tasks = [row.entries[0].task_id for row in world.state.rounds.table if isinstance(row, Round)]
    assert tasks == ["t1", "t2"]


def test_a_rounds_deadline_closes_it_where_the_task_it_awaits_lost_a_record() -> None:
    world = deposited()
    claimed(world)
    world.later(rounds.ROUND_SECONDS_MIN + 1)
    world.state.close("ev.task.t1")
    (closed,) = world.do(commands.CloseRound(round_id=only(world).round_id))
    assert isinstance(closed, events.RoundClosed)


def test_a_commitment_is_not_taken_again_by_a_round_that_lost_a_record() -> None:
    world = deposited()
    for one in world.state.rounds.commitments:
        first = "round-" + hashlib.sha256(one.commitment.encode()).hexdigest()[:12]
        break
    world.state.close(f"ev.round.{first}")
    claimed(world)
    assert only(world).index == 1
    assert only(world).round_id != first


def test_a_rounds_deadline_closes_it_unless_somebody_trains_for_it() -> None:
    world = deposited()
    token = claimed(world)
    round_id = only(world).round_id
    assert world.do(commands.CloseRound(round_id=round_id)) == []
    world.later(rounds.ROUND_SECONDS_MIN + 1)
    assert world.do(commands.CloseRound(round_id=round_id)) == []
    world.do(commands.ExpireClaim(token=token, reason="silence"))
    world.do(commands.CloseRound(round_id=round_id))
    brought(world, token, "evolver")
    closed = world.state.rounds.table.rows[round_id]
    assert isinstance(closed, Round)
    assert (closed.status, closed.standings) == ("closed", ())


def test_a_cancelled_task_closes_its_roles() -> None:
    world = deposited()
    claimed(world)
    world.do(commands.CancelTask(task_id="t1"))
    row = only(world)
    assert row.status == "closed"
    assert {entry.state for entry in row.entries} == {"closed"}


def test_only_the_secret_of_the_commitment_decides() -> None:
    world = deposited()
    brought(world, claimed(world), "evolver")
    row = judged(world)
    for forged in (secret(1).hex(), "zz", ""):
        with pytest.raises(errors.Invalid):
            world.do(verdict(row, secret=forged))
    with pytest.raises(errors.Conflict, match="take it first"):
        world.do(verdict(row, judge="k"))
    happened = world.do(verdict(row))
    assert [type(data).__name__ for data in happened] == ["RoundDecided", "ChampionPromoted"]
    with pytest.raises(errors.Conflict, match="decided already"):
        world.do(verdict(row))


def test_nobody_becomes_champion_of_a_node_that_trains_something_else_by_now() -> None:
    world = deposited()
    brought(world, claimed(world), "evolver", "reinventor")
    row = judged(world)
    other = events.Workload(specialist="opt-convex")
    world.state.graph.workload_changed(
        1, 1, events.WorkloadChanged(node_id=row.node_id, workload=other)
    )
    with pytest.raises(errors.Conflict, match="trains something else now"):
        world.do(verdict(row))
    happened = world.do(verdict(row, verdict="void", promoted=""))
    assert [type(data).__name__ for data in happened] == ["RoundDecided"]


def test_a_verdict_names_every_candidate_and_promotes_one_of_them() -> None:
    world = deposited()
    brought(world, claimed(world), "evolver", "reinventor")
    row = judged(world)
    with pytest.raises(errors.Invalid, match="every candidate"):
        world.do(verdict(row, candidates=[]))
    with pytest.raises(errors.Invalid, match="can be promoted"):
        world.do(verdict(row, promoted="someone"))
    with pytest.raises(errors.Invalid, match="naming whom"):
        world.do(verdict(row, verdict="keep"))


def test_the_champion_is_what_the_next_evolver_starts_from() -> None:
    world = promoted()
    champion = world.state.graph.champions.rows["stats-bayesian"]
    assert (champion.error, champion.below_baseline) == (0.25, False)
    claimed(world, "t2", role="evolver")
    claimed(world, "t3", role="reinventor")
    rows = world.state.tasks.table.rows
    assert rows["t2"].base.candidate_id == champion.candidate_id  # type: ignore[union-attr]
    assert rows["t3"].base is None  # type: ignore[union-attr]
    assert only(world).base is not None


def test_a_champion_that_changed_meanwhile_sends_the_round_to_another_look() -> None:
    world = deposited()
    brought(world, claimed(world), "evolver")
    brought(world, claimed(world, "t2"), "evolver")
    first, second = (row for row in world.state.rounds.table if isinstance(row, Round))
    for row in (first, second):
        world.do(commands.StartJudging(round_id=row.round_id, judge="j"))
    world.do(verdict(first))
    with pytest.raises(errors.Conflict, match="judge it again"):
        world.do(verdict(second))
    world.do(commands.StartJudging(round_id=second.round_id, judge="j"))
    reigning = world.state.graph.champions.rows["stats-bayesian"].candidate_id
    world.do(verdict(only(world), against=reigning))
    assert world.state.graph.champions.rows["stats-bayesian"].candidate_id == "t2-evolver"


def test_looks_are_counted_against_the_same_champion_and_begin_anew_with_the_next() -> None:
    world = promoted()
    looks = []
    for number, keeps in enumerate((True, True, False, True)):
        reigning = world.state.graph.champions.rows["stats-bayesian"].candidate_id
        brought(world, claimed(world, f"n{number}"), "evolver")
        if number == 1:
            world.do(
                commands.DepositCommitments(
                    judge="j",
                    first=3,
                    commitments=[hashlib.sha256(secret(i)).hexdigest() for i in (3, 4, 5)],
                )
            )
        row = judged(world)
        looks.append(row.look)
        how = {"verdict": "keep", "promoted": ""} if keeps else {}
        world.do(verdict(row, against=reigning, **how))
    assert looks == [1, 2, 3, 1]


def test_no_look_is_taken_twice_where_an_older_round_lost_its_judge() -> None:
    world = promoted()
    world.do(commands.DepositCommitments(judge="j", first=3, commitments=[secret_hash(3)]))
    for task_id in ("t2", "t3", "t4"):
        brought(world, claimed(world, task_id), "evolver", "reinventor")
    closed = [row.round_id for row in world.state.rounds.table if row.status == "closed"]
    older, newer, newest = closed
    looks = []
    for round_id in (older, newer, older, newest):
        world.do(commands.StartJudging(round_id=round_id, judge="j"))
        row = world.state.rounds.table.rows[round_id]
        assert isinstance(row, Round)
        looks.append(row.look)
    assert looks == [1, 2, 1, 3]


def test_commitments_go_on_where_the_last_deposit_ended() -> None:
    world = deposited()
    with pytest.raises(errors.Conflict, match="has index 3"):
        world.do(commands.DepositCommitments(judge="j", first=7, commitments=["0" * 64]))
    repeated = commands.DepositCommitments(judge="j", first=0, commitments=["0" * 64] * 3)
    assert world.do(repeated) == []
    for wrong in ("0" * 63, "g" * 64, "A" * 64):
        with pytest.raises(errors.Invalid):
            world.do(commands.DepositCommitments(judge="j", first=3, commitments=[wrong]))


def void(row: Round, **more: object) -> commands.DecideRound:
    unmeasured = [
        events.CandidateVerdict(
            candidate_id=one.candidate.candidate_id,
            verdict="unjudged",
            reasons=events.Reasons(ar="س", en="w"),
        )
        for one in row.standings
    ]
    values: dict[str, object] = {
        "verdict": "void",
        "secret": "",
        "promoted": "",
        "candidates": unmeasured,
    }
    return verdict(row, **{**values, **more})


def test_only_a_withdrawn_commitment_lets_a_round_end_without_its_secret_and_unmeasured() -> None:
    world = deposited()
    brought(world, claimed(world), "evolver")
    row = judged(world)
    with pytest.raises(errors.Invalid, match="does not open"):
        world.do(void(row))
    world.do(commands.WithdrawCommitments(judge="j", reason="lost"))
    for measured in (verdict(row, secret=""), void(row, candidates=verdict(row).candidates)):
        with pytest.raises(errors.Invalid, match="its verdict is void"):
            world.do(measured)
    world.do(void(row))
    assert world.state.rounds.awaiting_judgement == 0
    assert world.state.tasks.table.rows["t1"].status == "completed"
    assert audit.check(Record(*stored(event)) for event in world.stored) == []


def stored(event: events.Event) -> tuple[int, str, bytes]:
    return event.seq, events.subject_of(event.data), events.encode(event)


def test_withdrawn_commitments_are_taken_by_no_round_and_the_next_deposit_goes_on() -> None:
    world = deposited()
    world.do(commands.WithdrawCommitments(judge="j"))
    assert world.do(commands.WithdrawCommitments(judge="j")) == []
    token = claimed(world)
    assert len(world.state.rounds.table) == 0
    assert world.state.rounds.newest is None
    new = hashlib.sha256(secret(3)).hexdigest()
    world.do(commands.DepositCommitments(judge="j", first=3, commitments=[new]))
    assert only(world).commitment == new
    newest = world.state.rounds.newest
    assert newest is not None
    assert newest.index == 3
    brought(world, token, "evolver")
    with pytest.raises(errors.Invalid, match="does not open"):
        world.do(void(judged(world)))
