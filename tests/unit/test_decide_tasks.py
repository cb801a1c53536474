"""The life of a task: fencing, revival, sessions, strikes."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from core import commands, errors, events
from core.decide import tasks as rules
from core.events import Token
from core.projections import tasks as projection
from core.projections.tasks import ATTEMPTS_MAX, CLAIMS_KEPT, IdempotencyKey, Task
from tests.build import World

CHECKPOINT = events.Checkpoint(
    rival="evolver", step=5, total_steps=10, manifest="a" * 64, writer="a1", bytes=1
)


def working(worker_id: str = "a1", **more: Any) -> tuple[World, Token]:
    world = World().seeded()
    world.agent(worker_id)
    world.task(**more)
    token = world.claim(worker_id)
    assert token is not None
    return world, token


def session(world: World, worker_id: str = "a1") -> str:
    return world.state.workers.table.rows[worker_id].session


def task(world: World, task_id: str = "t1") -> Task:
    row = world.state.tasks.table.rows[task_id]
    assert isinstance(row, Task)
    return row


def save(
    world: World,
    token: Token,
    worker_id: str = "a1",
    checkpoint: events.Checkpoint = CHECKPOINT,
) -> list[events.EventData]:
    return world.do(
        commands.StoreCheckpoint(
            token=token,
            worker_id=worker_id,
            session=session(world, worker_id),
            checkpoint=checkpoint,
        )
    )


MISFITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"role": "evolver"}, {"rival": "reinventor"}, "brings no reinventor"),
    ({"role": "dual"}, {"rival": "merge"}, "brings no merge"),
    ({}, {"step": -1}, "step -1 of 10"),
    ({}, {"step": 11}, "step 11 of 10"),
    ({}, {"total_steps": -1}, "step 5 of -1"),
]


@pytest.mark.parametrize(("asked", "changes", "words"), MISFITS)
def test_a_checkpoint_that_no_training_of_its_task_leaves_is_refused(
    asked: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    world, token = working(**asked)
    with pytest.raises(errors.Invalid, match=words):
        save(world, token, checkpoint=msgspec.structs.replace(CHECKPOINT, **changes))
    assert task(world).resume == ()


def test_a_checkpoint_may_be_the_first_or_the_last_step_and_need_not_know_how_many_there_are() -> (
    None
):
    world, token = working()
    for step, total_steps in ((0, 10), (10, 10), (5, 0)):
        point = msgspec.structs.replace(CHECKPOINT, step=step, total_steps=total_steps)
        save(world, token, checkpoint=point)
        assert task(world).resume == (point,)


def complete(world: World, token: Token, worker_id: str = "a1") -> list[events.EventData]:
    return world.do(
        commands.CompleteTask(
            task_id=token.task_id,
            worker_id=worker_id,
            token=token,
            session=session(world, worker_id),
            metrics=b'{"loss":1}',
        )
    )


def reattach(world: World, token: Token, worker_id: str = "a1") -> list[events.EventData]:
    return world.do(
        commands.ReattachClaim(token=token, worker_id=worker_id, session=session(world, worker_id))
    )


def fail(world: World, token: Token, worker_id: str = "a1") -> list[events.EventData]:
    return world.do(
        commands.FailAttempt(
            token=token, worker_id=worker_id, session=session(world, worker_id), reason="why"
        )
    )


def release(world: World, token: Token, worker_id: str = "a1") -> list[events.EventData]:
    return world.do(
        commands.ReleaseClaim(
            token=token, worker_id=worker_id, session=session(world, worker_id), reason="why"
        )
    )


def expire(world: World, token: Token) -> list[events.EventData]:
    return world.do(commands.ExpireClaim(token=token, reason="silence"))


def names(happened: list[events.EventData]) -> list[str]:
    return [type(data).__name__ for data in happened]


def test_an_expired_claim_revives_with_whatever_its_holder_does_while_unrivalled() -> None:
    for act in (save, complete, reattach):
        world, token = working()
        expire(world, token)
        assert names(act(world, token))[0] == "ClaimRevived"
        assert len(task_claims(world)) == 1


def task_claims(world: World) -> list[str]:
    row = world.state.tasks.table.rows["t1"]
    return ["done"] if not isinstance(row, Task) else [claim.state for claim in row.claims]


@pytest.mark.parametrize("act", [save, complete, reattach, fail, release])
def test_a_rivalled_claim_is_stale_whatever_it_tries(
    act: Callable[[World, Token], list[events.EventData]],
) -> None:
    world, token = working()
    expire(world, token)
    world.agent("a2")
    assert world.claim("a2") is not None
    with pytest.raises(errors.StaleAttempt, match="attempt 2 is the latest"):
        act(world, token)


@pytest.mark.parametrize("given_up", [fail, release])
def test_who_gave_a_task_up_has_no_claim_to_come_back_to(
    given_up: Callable[[World, Token], list[events.EventData]],
) -> None:
    world, token = working()
    given_up(world, token)
    with pytest.raises(errors.StaleAttempt):
        reattach(world, token)
    assert task(world).status == "queued"


def test_a_stored_result_ends_all_claims_and_its_repetition_is_no_event() -> None:
    world, token = working()
    complete(world, token)
    assert complete(world, token) == []
    with pytest.raises(errors.StaleAttempt):
        save(world, token)
    world.agent("a2")
    with pytest.raises(errors.NotOwner):
        complete(world, token, "a2")


def test_a_late_result_beside_that_of_a_rival_is_stale_as_any_other_word_of_it() -> None:
    world, token = working()
    expire(world, token)
    world.agent("a2")
    rival = world.claim("a2")
    assert rival is not None
    complete(world, rival, "a2")
    with pytest.raises(errors.StaleAttempt, match="has its result already, from attempt 2"):
        complete(world, token)


def test_an_older_session_may_do_nothing_any_more() -> None:
    world, token = working()
    old = session(world)
    world.agent("a1", session="newer")
    with pytest.raises(errors.SupersededSession):
        world.do(commands.ReattachClaim(token=token, worker_id="a1", session=old))
    assert task(world).claims[-1].state == "released"


def test_a_new_session_keeps_the_claims_it_lists_expired_ones_too() -> None:
    for lost in (False, True):
        world, token = working()
        if lost:
            expire(world, token)
        world.do(
            commands.OpenSession(
                worker_id="a1",
                session="newer",
                hostname="h",
                lane="cpu-16",
                protocol=1,
                holding=[token],
            )
        )
        assert task(world).status == "running"
        assert task(world).claims[-1].session == "newer"
        assert names(complete(world, token)) == ["TaskCompleted"]


def test_five_strikes_fail_a_task_with_all_their_reasons_and_a_retry_starts_afresh() -> None:
    world, token = working()
    for attempt in range(1, ATTEMPTS_MAX + 1):
        happened = fail(world, token)
        if attempt < ATTEMPTS_MAX:
            assert names(happened) == ["AttemptFailed"]
            again = world.claim()
            assert again is not None
            token = again
    assert names(happened) == ["AttemptFailed", "TaskFailed"]
    assert len(task(world).reasons) == ATTEMPTS_MAX
    assert world.claim() is None
    world.do(commands.RetryTask(task_id="t1"))
    again = world.claim()
    assert again is not None
    assert again.attempt == ATTEMPTS_MAX + 1
    assert names(fail(world, again)) == ["AttemptFailed"]


def test_giving_a_task_back_is_no_strike() -> None:
    world, token = working()
    for _ in range(3 * ATTEMPTS_MAX):
        release(world, token)
        again = world.claim()
        assert again is not None
        token = again
    assert task(world).strikes == 0


def test_of_the_claims_of_a_task_the_newest_are_kept_and_the_last_one_revives_as_ever() -> None:
    world, token = working()
    for _ in range(CLAIMS_KEPT + 3):
        release(world, token)
        again = world.claim()
        assert again is not None
        token = again
    assert [one.attempt for one in task(world).claims] == list(range(5, CLAIMS_KEPT + 5))
    expire(world, token)
    assert names(save(world, token)) == ["ClaimRevived", "CheckpointStored"]
    stale = Token(task_id="t1", attempt=1, claim_id="claim1")
    with pytest.raises(errors.StaleAttempt, match=f"attempt {CLAIMS_KEPT + 4} is the latest"):
        save(world, stale)


def test_a_claim_starts_from_the_last_checkpoint_of_whoever_held_it_before() -> None:
    world, token = working()
    save(world, token)
    expire(world, token)
    world.agent("a2")
    assert world.claim("a2") is not None
    claim = task(world).claims[-1]
    assert claim.resumed_from == CHECKPOINT.step
    assert task(world).resume == (CHECKPOINT,)


def test_the_same_claim_id_gives_nothing_new() -> None:
    world, token = working()
    world.task("t2")
    command = commands.ClaimTask(
        worker_id="a1",
        via="nats",
        claim_id=token.claim_id,
        lease_seconds=60.0,
        session=session(world),
    )
    assert world.do(command) == []
    assert task(world, "t2").status == "queued"


def test_a_device_gets_only_what_it_can_run() -> None:
    world = World().seeded()
    world.agent("small", lane="cpu-16")
    world.task("large", requires=events.Requires(memory_gb=80.0), priority=10)
    world.task("gpu", requires=events.Requires(device="cuda"), priority=9)
    assert world.claim("small") is None
    world.agent("big", lane="cuda-80")
    token = world.claim("big")
    assert token is not None
    assert token.task_id == "large"


def test_an_http_worker_completes_only_what_it_holds_over_http() -> None:
    world, token = working()
    with pytest.raises(errors.NotOwner):
        world.do(commands.CompleteTask(task_id=token.task_id, worker_id="a1"))
    with pytest.raises(errors.NotFound):
        world.do(commands.CompleteTask(task_id="nope", worker_id="a1"))


def test_completed_tasks_are_neither_cancelled_nor_retried() -> None:
    world, token = working()
    complete(world, token)
    with pytest.raises(errors.Conflict, match="completed"):
        world.do(commands.CancelTask(task_id="t1"))
    with pytest.raises(errors.Conflict, match="completed"):
        world.do(commands.RetryTask(task_id="t1"))


def test_an_expiry_seen_of_an_older_claim_changes_nothing() -> None:
    world, token = working()
    expire(world, token)
    again = world.claim()
    assert again is not None
    assert expire(world, token) == []
    assert task(world).status == "running"


ASKED = commands.EnqueueTask(
    task_id="t1",
    node_id="root-math",
    topic="t",
    seed=1,
    is_seed_drawn=True,
    idempotency_key="k",
)
SAME: list[dict[str, Any]] = [{}, {"task_id": "t2", "seed": 2}]
OTHER: list[dict[str, Any]] = [
    {"topic": "u"},
    {"node_id": "opt-convex"},
    {"node_id": "nope"},
    {"priority": 6},
    {"role": "evolver"},
    {"method": "full"},
    {"budget_seconds": 1.0},
    {"requires": events.Requires(memory_gb=1.0)},
    {"is_seed_drawn": False},
]


@pytest.mark.parametrize("changes", SAME)
def test_the_same_request_under_its_key_queues_nothing_more(changes: dict[str, Any]) -> None:
    world = World().seeded()
    world.do(ASKED)
    assert world.do(msgspec.structs.replace(ASKED, **changes)) == []


@pytest.mark.parametrize("changes", OTHER)
def test_another_request_under_a_used_key_is_a_conflict(changes: dict[str, Any]) -> None:
    world = World().seeded()
    world.do(ASKED)
    with pytest.raises(errors.Conflict, match="used for another request, which queued t1"):
        world.do(msgspec.structs.replace(ASKED, **changes))
    assert len(world.state.tasks.table) == 1


def test_a_seed_that_was_asked_for_is_part_of_the_request() -> None:
    world = World().seeded()
    chosen = msgspec.structs.replace(ASKED, is_seed_drawn=False)
    world.do(chosen)
    assert world.do(chosen) == []
    with pytest.raises(errors.Conflict):
        world.do(msgspec.structs.replace(chosen, seed=2))


def test_a_key_from_a_log_without_digests_stands_for_any_request() -> None:
    world = World().seeded()
    world.do(ASKED)
    world.state.tasks.keys.put("k", IdempotencyKey(task_id="t1"))
    assert world.do(msgspec.structs.replace(ASKED, topic="u")) == []


def test_open_topics_are_bounded_as_a_whole_and_what_ends_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "TOPIC_CHARS_MAX", 12)
    world, token = working(idempotency_key="k")  # each topic has five characters
    world.task("t2")
    with pytest.raises(errors.QuotaExceeded, match="10 characters, and may have 12"):
        world.task("t3")
    world.task("again", idempotency_key="k")
    complete(world, token)
    world.task("t3")
    world.do(commands.CancelTask(task_id="t2"))
    world.task("t4")
    with pytest.raises(errors.QuotaExceeded):
        world.task("t5")


def retry(world: World, task_id: str) -> None:
    world.do(commands.RetryTask(task_id=task_id, topic="topic"))


def test_a_task_that_is_queued_again_needs_its_place_like_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World().seeded()
    for task_id in ("t1", "t2"):
        world.task(task_id)
        world.do(commands.CancelTask(task_id=task_id))
    monkeypatch.setattr(rules, "TOPIC_CHARS_MAX", 9)
    retry(world, "t1")
    with pytest.raises(errors.QuotaExceeded, match="5 characters, and may have 9"):
        retry(world, "t2")
    monkeypatch.setattr(rules, "OPEN_TASKS_MAX", 1)
    with pytest.raises(errors.Overloaded, match="1 tasks are queued"):
        retry(world, "t2")
    assert task(world, "t2").status == "cancelled"


def test_words_of_ended_tasks_are_bounded_as_a_whole_and_a_retried_one_has_its_topic_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(projection, "ENDED_CHARS_MAX", 14)
    world = World().seeded()
    for task_id in ("t1", "t2"):
        world.task(task_id)
        world.do(commands.CancelTask(task_id=task_id, reason="why"))
    held = world.state.tasks
    assert [(one.topic, one.shortened) for one in (task(world), task(world, "t2"))] == [
        ("topic", False),
        ("", True),
    ]
    assert (held.ended_chars, held.open_topic_chars) == (8, 0)
    retry(world, "t2")
    assert (task(world, "t2").topic, held.open_topic_chars) == ("topic", 5)
    retry(world, "t1")
    assert (held.ended_chars, held.open_topic_chars) == (0, 10)
    world.do(commands.CancelTask(task_id="t2"))
    assert (task(world, "t2").topic, held.ended_chars, held.open_topic_chars) == ("topic", 5, 5)


@pytest.mark.parametrize("command", [commands.CancelTask, commands.RetryTask])
@pytest.mark.parametrize("task_id", ["t1", "t-of-which-the-first-record-is-lost"])
def test_a_task_that_lost_a_record_says_so_and_what_to_do_before_how_it_seems_to_stand(
    command: type[commands.CancelTask | commands.RetryTask], task_id: str
) -> None:
    world = World().seeded()
    world.task("t1")
    world.state.close(f"ev.task.{task_id}")
    with pytest.raises(errors.ReadOnlyAggregate, match="enqueue it anew"):
        world.do(command(task_id=task_id))
