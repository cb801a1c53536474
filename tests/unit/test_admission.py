"""What is turned away without room for new work, and what is not."""

import pytest

from core import commands
from core.commands import AnyCommand
from core.decide import admission
from core.events import Via
from tests.build import World


def _claim(claim_id: str, via: Via = "nats", signalled_at: int = 0) -> AnyCommand:
    return commands.ClaimTask(
        worker_id="a1" if via == "nats" else "w1",
        via=via,
        claim_id=claim_id,
        lease_seconds=60.0,
        session="session-a1",
        signalled_at=signalled_at,
    )


def _enqueue(key: str = "") -> commands.EnqueueTask:
    return commands.EnqueueTask(
        task_id="t9", node_id="root-math", topic="t", seed=1, idempotency_key=key
    )


@pytest.fixture
def world() -> World:
    world = World().seeded()
    world.agent("a1")
    world.http_worker("w1")
    world.task("t1", idempotency_key="known")
    world.task("t2")
    return world


@pytest.mark.parametrize(
    "command",
    [
        _enqueue(),
        _enqueue("unknown"),
        _claim("c9"),
        commands.ExpandNode(node_id="n", parent_id="root-math", name="n", description=""),
        commands.RetryTask(task_id="t1"),
        commands.RegisterWorker(worker_id="stranger", hostname="h"),
        commands.Heartbeat(worker_id="stranger", status="online"),
    ],
)
def test_what_asks_for_more_begins_work(world: World, command: AnyCommand) -> None:
    assert admission.begins_work(world.state, command)


def test_what_saves_or_ends_what_was_begun_does_not(world: World) -> None:
    token = world.claim("a1", "c1")
    assert token is not None
    saving: list[AnyCommand] = [
        commands.CompleteTask(task_id="t1", worker_id="a1", token=token),
        commands.ReleaseClaim(token=token, worker_id="a1", session="session-a1", reason="r"),
        commands.CancelTask(task_id="t2"),
        commands.RegisterWorker(worker_id="w1", hostname="h"),
        commands.Heartbeat(worker_id="w1", status="online"),
        commands.SealLog(first=1, last=1, digest="", previous=""),
    ]
    assert [one for one in saving if admission.begins_work(world.state, one)] == []


@pytest.mark.parametrize("worker_id", ["a1", "stranger"])
def test_an_agent_has_its_session_without_room_and_waits_with_its_claim(
    world: World, worker_id: str
) -> None:
    hello = commands.OpenSession(
        worker_id=worker_id, session="s", hostname="h", lane="cpu-16", protocol=1
    )
    assert not admission.begins_work(world.state, hello)
    world.do(hello)
    claim = commands.ClaimTask(
        worker_id=worker_id, via="nats", claim_id="c9", lease_seconds=60.0, session="s"
    )
    assert admission.begins_work(world.state, claim)


def test_an_enqueue_under_a_known_key_only_asks_again(world: World) -> None:
    assert not admission.begins_work(world.state, _enqueue("known"))


def test_a_claim_whose_answer_was_lost_only_asks_again(world: World) -> None:
    world.claim("a1", "c1")
    assert not admission.begins_work(world.state, _claim("c1"))
    world.do(_claim("c2", "http"))
    assert not admission.begins_work(world.state, _claim("c3", "http", world.now + 1))
    assert admission.begins_work(world.state, _claim("c3", "http", 0))
