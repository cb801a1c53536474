"""Merges: what they are made of, who may ask for one, and what they bring into a round."""

import hashlib
from typing import Any

import msgspec
import pytest

from core import audit, commands, errors, events, methods
from core.log import Record
from core.projections.rounds import Round
from core.projections.tasks import Task
from tests.build import World

NODE = "stats-bayesian"
SECRETS = [bytes([number]) * 32 for number in range(4)]
REASONS = events.Reasons(ar="س", en="w")


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def candidate(rival: events.Rival, name: str, **more: Any) -> events.Candidate:
    return events.Candidate(
        candidate_id=name,
        rival=rival,
        manifest=digest(f"manifest {name}"),
        writer="a1",
        weights_sha256=digest(name),
        bytes=1,
        **more,
    )


def world(secrets: list[bytes] = SECRETS) -> World:
    made = World()
    made.do(commands.StartWriter(process="test"))
    made.seeded()
    deposit(made, 0, secrets)
    made.agent("a1")
    return made


def deposit(made: World, first: int, secrets: list[bytes]) -> None:
    commitments = [hashlib.sha256(secret).hexdigest() for secret in secrets]
    made.do(commands.DepositCommitments(judge="j", first=first, commitments=commitments))


def complete(made: World, token: events.Token | None, *brought: events.Candidate) -> None:
    assert token is not None
    given: dict[str, Any] = {"token": token, "worker_id": "a1", "session": "session-a1"}
    made.do(commands.CompleteTask(task_id=token.task_id, candidates=list(brought), **given))


def undecided(made: World) -> Round:
    (row,) = (made.state.rounds.table.rows[one] for one in made.state.rounds.undecided)
    assert isinstance(row, Round)
    return row


def judge(made: World, promoted: str, unmeasured: str = "") -> None:
    row = undecided(made)
    made.do(commands.StartJudging(round_id=row.round_id, judge="j"))
    champion = undecided(made).champion
    verdicts = [
        events.CandidateVerdict(
            candidate_id=one.candidate.candidate_id,
            verdict="v",
            reasons=REASONS,
            error=None if one.candidate.candidate_id == unmeasured else 0.1,
        )
        for one in row.standings
    ]
    made.do(
        commands.DecideRound(
            round_id=row.round_id,
            judge="j",
            verdict="promote" if promoted else "keep",
            secret=SECRETS[row.index].hex(),
            reasons=REASONS,
            candidates=verdicts,
            promoted=promoted,
            against=champion.candidate_id if champion else "",
            baseline_error=0.5,
        )
    )


def judged_twice(unmeasured: str = "", secrets: list[bytes] = SECRETS) -> World:
    """Two rounds: "first" reigned and lost to "second-e"."""
    made = world(secrets)
    made.task("t1", NODE)
    complete(made, made.claim(), candidate("evolver", "first"))
    made.later(1_000)
    made.do(commands.CloseRound(round_id=undecided(made).round_id))
    judge(made, "first")
    made.task("t2", NODE)
    second = (candidate("evolver", "second-e"), candidate("reinventor", "second-r"))
    complete(made, made.claim(), *second)
    judge(made, "second-e", unmeasured)
    return made


def parents(made: World, task_id: str) -> list[str]:
    task = made.state.tasks.table.rows[task_id]
    assert isinstance(task, Task)
    assert (task.role, task.method) == ("merge", "merge")
    return [one.candidate_id for one in task.parents]


def violations(made: World) -> list[str]:
    records = [
        Record(number, events.subject_of(event.data), events.encode(event))
        for number, event in enumerate(made.stored, 1)
    ]
    return [one.rule for one in audit.check(records)]


def test_a_merge_of_nothing_named_is_of_the_champion_and_what_its_last_round_judged() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge")
    assert parents(made, "m") == ["second-e", "second-r", "first"]
    assert violations(made) == []


def test_what_a_judge_could_not_measure_is_not_merged_unasked() -> None:
    made = judged_twice(unmeasured="second-r")
    made.task("m", NODE, method="merge")
    assert parents(made, "m") == ["second-e", "first"]


def test_parents_are_named_by_candidate_or_by_weights_and_the_champion_comes_first() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge", parents=[digest("first"), "second-e"])
    assert parents(made, "m") == ["second-e", "first"]


def test_a_candidate_that_still_awaits_its_verdict_can_be_named() -> None:
    made = judged_twice()
    made.task("t3", NODE, role="evolver")
    complete(made, made.claim(), candidate("evolver", "third"))
    made.task("m", NODE, role="merge", parents=["third", "second-r"])
    assert parents(made, "m") == ["second-r", "third"]


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"method": "merge", "role": "evolver"}, errors.Invalid, "leave that out"),
        ({"method": "lora", "role": "merge"}, errors.Invalid, "its own method"),
        ({"method": "full", "parents": ["first"]}, errors.Invalid, "this task is none"),
        ({"method": "merge", "parents": ["first", "x"]}, errors.NotFound, "second-e, second-r"),
        ({"method": "merge", "parents": ["first", digest("first")]}, errors.Conflict, "only first"),
        ({"method": "merge", "parents": list("abcde")}, errors.Invalid, "4 parents at most"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_what_can(
    asked: dict[str, Any], error: type[errors.AghsanError], words: str
) -> None:
    made = judged_twice()
    with pytest.raises(error, match=words):
        made.task("m", NODE, **asked)


def test_a_node_that_has_nothing_to_merge_says_what_is_missing() -> None:
    made = world()
    with pytest.raises(errors.Conflict, match="there are none; what can be merged is a champion"):
        made.task("m", NODE, method="merge")
    again = judged_twice()
    parameters = {"drift_least": 0.05}
    again.do(
        commands.ExpandNode(
            node_id="n",
            parent_id=NODE,
            name="n",
            workload=events.Workload(specialist=NODE, parameters=parameters),
        )
    )
    with pytest.raises(errors.Conflict, match="models of n or more, and there are none"):
        again.task("m", "n", method="merge")


def test_the_same_request_for_a_merge_is_one_task_and_other_parents_are_another_request() -> None:
    made = judged_twice()
    asked: dict[str, Any] = {"method": "merge", "idempotency_key": "k"}
    made.task("m1", NODE, parents=["first", "second-r"], **asked)
    made.task("m2", NODE, parents=["second-r", "first"], **asked)
    assert "m2" not in made.state.tasks.table
    with pytest.raises(errors.Conflict, match="another request"):
        made.task("m3", NODE, **asked)


def test_a_student_is_given_the_champion_and_a_plain_reinventor_is_not() -> None:
    made = judged_twice()
    for task_id, method in (("s", "distill"), ("r", "full")):
        made.task(task_id, NODE, role="reinventor", method=method)
        assert made.claim() is not None
    student, plain = (made.state.tasks.table.rows[one] for one in ("s", "r"))
    assert isinstance(student, Task)
    assert student.base is not None
    assert student.base.candidate_id == "second-e"
    assert isinstance(plain, Task)
    assert plain.base is None
    assert violations(made) == []
    assert {m for m in methods.METHODS if methods.takes_base("reinventor", m)} == {"distill"}


def test_a_merge_keeps_states_and_no_finished_model_before_its_result() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge")
    token = made.claim()
    assert token is not None
    point = events.Checkpoint(
        rival="merge", step=5, total_steps=10, manifest="a" * 64, writer="a1", bytes=1
    )
    command = commands.StoreCheckpoint(
        token=token,
        worker_id="a1",
        session="session-a1",
        checkpoint=point,
    )
    made.do(command)
    with pytest.raises(errors.Invalid, match="with its result alone"):
        made.do(
            msgspec.structs.replace(command, checkpoint=msgspec.structs.replace(point, final=True))
        )


def test_a_round_waits_for_the_merge_that_entered_it_and_takes_all_that_it_brings() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge")
    merging = made.claim()
    made.task("t3", NODE)
    rivals = (candidate("evolver", "third-e"), candidate("reinventor", "third-r"))
    complete(made, made.claim(), *rivals)
    assert undecided(made).status == "open"
    complete(made, merging, candidate("merge", "soup"), candidate("merge", "student"))
    assert undecided(made).status == "closed"
    judge(made, "student")
    champion = made.state.graph.champions.rows[NODE]
    assert (champion.candidate_id, champion.rival) == ("student", "merge")
    assert violations(made) == []


def test_a_round_that_only_a_merge_has_entered_closes_with_it() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge")
    merging = made.claim()
    assert undecided(made).status == "open"
    complete(made, merging, candidate("merge", "soup"), candidate("merge", "student"))
    assert undecided(made).status == "closed"
    judge(made, "soup")
    assert violations(made) == []


def test_a_merge_and_rivals_that_awaited_one_round_together_enter_it_together() -> None:
    made = judged_twice(secrets=SECRETS[:2])
    made.task("m", NODE, method="merge")
    complete(made, made.claim(), candidate("merge", "soup"))
    made.task("t3", NODE)
    rivals = (candidate("evolver", "third-e"), candidate("reinventor", "third-r"))
    complete(made, made.claim(), *rivals)
    deposit(made, 2, SECRETS[2:])
    assert undecided(made).status == "closed"
    assert len(undecided(made).standings) == len(rivals) + 1


def test_a_merge_that_brought_nothing_leaves_its_round_open_to_rivals() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge")
    complete(made, made.claim())
    assert undecided(made).status == "open"
    made.task("t3", NODE)
    rivals = (candidate("evolver", "third-e"), candidate("reinventor", "third-r"))
    complete(made, made.claim(), *rivals)
    assert undecided(made).status == "closed"
    assert len(undecided(made).standings) == len(rivals)


@pytest.mark.parametrize(
    ("role", "rivals", "words"),
    [
        ("merge", ["merge"] * 5, "brings 5 candidates as merge; it may bring 4"),
        ("dual", ["evolver"] * 2, "brings 2 candidates as evolver; it may bring 1"),
        ("evolver", ["merge"], "may bring none"),
    ],
)
def test_no_task_burdens_the_judges_with_more_than_its_own(
    role: events.Role, rivals: list[events.Rival], words: str
) -> None:
    made = judged_twice()
    made.task("m", NODE, role=role)
    brought = [candidate(rival, f"c{number}") for number, rival in enumerate(rivals)]
    with pytest.raises(errors.Invalid, match=words):
        complete(made, made.claim(), *brought)


def test_the_audit_finds_a_merge_of_what_nobody_brought_and_a_fifth_merge() -> None:
    made = judged_twice()
    made.task("m", NODE, method="merge")
    queued = made.stored[-1]
    stray = events.Base(
        candidate_id="stray", manifest="a" * 64, writer="a1", weights_sha256="b" * 64
    )
    assert isinstance(queued.data, events.TaskQueued)
    forged = events.replace(queued.data, parents=[stray, *queued.data.parents[1:]])
    made.stored[-1] = queued._replace(data=forged)
    assert violations(made) == ["base"]
    made.stored[-1] = queued
    merging = made.claim()
    made.task("t3", NODE, role="evolver")
    assert made.claim() is not None
    names = ("soup", "ensemble", "student", "quantized")
    complete(made, merging, *(candidate("merge", name) for name in names))
    admitted = made.stored[-1]
    assert isinstance(admitted.data, events.CandidateAdmitted)
    assert violations(made) == []
    made.stored.append(admitted._replace(seq=admitted.seq + 1, id="another"))
    assert violations(made) == ["rounds"]
