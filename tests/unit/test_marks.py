"""Which artifacts a log names, and until when they are needed."""

from core import audit, commands, events
from core.chunks import digest_of
from core.log import Record
from core.marks import FOR_EVER, Mark, Marks
from tests import texts
from tests.build import World
from tests.unit.test_audit import (
    NODE,
    WHOLE,
    checkpoint,
    claimed,
    complete,
    records,
    with_token,
)
from tests.unit.test_audit_champions import HISTORY, SMALL


def marks_of(log: list[Record]) -> Marks:
    marks = Marks()
    for record in log:
        marks.take(record)
    return marks


def needed(marks: Marks) -> set[str]:
    return {mark.digest for mark in marks.needed_since(FOR_EVER)}


def of_step(marks: Marks, step: int) -> Mark:
    (mark,) = (one for one in marks.all if one.identity == f"evolver {step}")
    return mark


def training() -> tuple[World, events.Token]:
    """A task with two checkpoints, still held."""
    world = World().seeded()
    world.agent("a1")
    world.agent("a2")
    world.task("t1")
    token = claimed(world, "a1")
    for step in (10, 20):
        point = checkpoint("evolver", step)
        world.do(commands.StoreCheckpoint(checkpoint=point, **with_token(world, token)))
    return world, token


def test_what_is_needed_is_what_an_audit_asks_for_at_every_point_of_a_log() -> None:
    log, marks, auditor = records(WHOLE), Marks(), audit.Auditor()
    for record in log:
        marks.take(record)
        auditor.take(record)
        assert needed(marks) == {one.digest for one in auditor.named()}, record.seq
    assert len({mark.kind for mark in marks.all}) > 1


def test_a_checkpoint_is_needed_until_the_next_of_its_rival() -> None:
    world, _ = training()
    marks = marks_of(records(world.stored))
    first, second = of_step(marks, 10), of_step(marks, 20)
    assert first.needed_until == second.at
    assert second.needed_until == FOR_EVER


def test_what_was_needed_a_moment_ago_is_not_forgotten_yet() -> None:
    world, token = training()
    complete(world, token, "t1")
    marks = marks_of(records(world.stored))
    ended = of_step(marks, 20).needed_until
    assert of_step(marks, 20) in list(marks.needed_since(ended))
    assert of_step(marks, 20) not in list(marks.needed_since(ended + 1))


def test_a_task_that_failed_or_was_cancelled_needs_its_last_checkpoint() -> None:
    world, token = training()
    for _ in range(5):
        world.do(commands.FailAttempt(reason="r", **with_token(world, token)))
        token = world.claim("a1") or token
    assert world.state.tasks.counts["failed"] == 1
    assert of_step(marks_of(records(world.stored)), 20).needed_until == FOR_EVER
    world.do(commands.RetryTask(task_id="t1"))
    world.do(commands.CancelTask(task_id="t1"))
    assert of_step(marks_of(records(world.stored)), 20).needed_until == FOR_EVER


def test_who_was_overtaken_ends_nothing_that_another_needs() -> None:
    world, token = training()
    log = records(world.stored)
    stale = events.TaskCompleted(
        task_id="t1", attempt=token.attempt, claim_id="other", worker_id="a2", metrics_digest=""
    )
    point = checkpoint("evolver", 30, writer="a2")
    for data in (
        events.CheckpointStored(
            task_id="t1", attempt=token.attempt, claim_id="other", checkpoint=point
        ),
        stale,
    ):
        event = world.stored[-1]._replace(seq=len(log) + 1, id=f"s.{len(log)}", data=data)
        log.append(Record(event.seq, events.subject_of(data), events.encode(event)))
    marks = marks_of(log)
    assert of_step(marks, 20).needed_until == FOR_EVER
    assert of_step(marks, 30).needed_until == FOR_EVER


def test_whatever_a_record_of_a_newer_version_may_name_is_needed() -> None:
    digest = digest_of(b"manifest")
    raw = b'{"type":"FromTomorrow","v":1,"data":{"manifest":"%s"}}' % digest.encode()
    assert needed(marks_of([Record(1, "ev.task.x", raw)])) == {digest}


def test_a_corpus_stays_also_when_its_node_trains_something_else() -> None:
    world, corpus = World().seeded(), texts.packed().corpus
    world.do(commands.BindCorpus(node_id="opt-convex", corpus=corpus))
    world.do(commands.BindCorpus(node_id="opt-convex", corpus=None))
    log, auditor = records(world.stored), audit.Auditor()
    for record in log:
        auditor.take(record)
    assert needed(marks_of(log)) == {corpus.manifest, corpus.hidden}
    assert {one.digest for one in auditor.named()} == {corpus.manifest, corpus.hidden}


def test_who_reigns_is_known_for_a_node_and_for_each_budget_and_all_of_them_are_needed() -> None:
    log, marks, auditor = records(HISTORY), Marks(), audit.Auditor()
    reigning = []
    for record in log:
        marks.take(record)
        auditor.take(record)
        assert needed(marks) == {one.digest for one in auditor.named()}, record.seq
        reigning.append((dict(marks.champions), dict(marks.of_budgets)))
    node, budget = {NODE: "t1-e"}, {(NODE, SMALL.name): "t2-e"}
    assert (node, budget) in reigning
    assert reigning[-1] == (node, {})
