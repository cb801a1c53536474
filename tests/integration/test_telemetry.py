"""Telemetry from an agent's link to whoever asks: while a task runs, and once it has ended."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from agent.link import Link
from core import chunks, commands, errors, events, wire
from core.telemetry import POINTS_MAX, Curve, Point
from faults import harness
from gateway import telemetry
from tests.integration.gateway_stack import Stack, serving, started
from tests.integration.test_desk import Agents, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")


FORGED = (
    {"Status": "503"},
    {"Status": "404", "Nats-Num-Pending": "0"},
    {"Nats-Sequence": "x", "Nats-Subject": "telemetry.quick.t", "Status": "204"},
)
"""What the server says of the end of an answer, and of whose message one is."""


class Full(chunks.MemoryChunks):
    """A store that has no room for what the desk would keep."""

    async def put(self, writer: str, data: bytes) -> str:
        raise errors.LogFull("the chunk store is full")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agents]:
    data = tmp_path_factory.mktemp("telemetry") / "data"
    async with started(data) as stack, opened(stack) as one:
        yield one


def curve(*steps: int, rival: events.Rival = "evolver", loss: float = 0.5) -> Curve:
    points = [Point(step, 1.5, loss, 0.01, 640.0, 0.98, 2**20) for step in steps]
    return Curve(rival=rival, total_steps=90, points=points)


async def tell(link: Link, token: events.Token, *curves: Curve, whole: bool = False) -> None:
    """Tell of a task, and go on once it is stored."""
    news = wire.Telemetry(attempt=token.attempt, whole=whole, curves=list(curves))
    await link.tell(token.task_id, news)
    await link._bus.flush()


async def asked(stack: Stack, task_id: str, after: str | None = None) -> Any:
    reply = await stack.get(
        f"/tasks/{task_id}/telemetry" + ("" if after is None else f"?after={after}")
    )
    assert reply.status == 200, reply.body
    return reply.json["telemetry"]


async def stored(stack: Stack, task_id: str, count: int) -> Any:
    """What there is of a task, once the stream has so many points of it: a message across accounts
    may arrive after the answer that said that it was sent."""

    async def is_stored() -> bool:
        return len(steps(await asked(stack, task_id))) >= count

    await harness.until(is_stored, "stored", 10)
    return await asked(stack, task_id)


def steps(told: Any) -> list[tuple[str, int]]:
    return [(one["rival"], point["step"]) for one in told["rivals"] for point in one["points"]]


async def test_what_an_agent_tells_is_answered_with_where_to_go_on(agents: Agents) -> None:
    link, assignment = await agents.holding("حاسوب سارة")
    task_id, stack = assignment.token.task_id, agents.stack
    nothing = await asked(stack, task_id)
    assert (nothing["status"], nothing["whole"], nothing["rivals"]) == ("running", True, [])
    await tell(link, assignment.token, curve(1, 2), whole=True)
    first = await stored(stack, task_id, 2)
    assert first["rivals"][0] == {
        "rival": "evolver",
        "total_steps": 90,
        "points": [
            {
                "step": step,
                "at": "1970-01-01T00:00:01.500000Z",
                "loss": 0.5,
                "validation": None,
                "learning_rate": 0.01,
                "samples_per_second": 640.0,
                "utilisation": 0.98,
                "memory_bytes": 2**20,
            }
            for step in (1, 2)
        ],
    }
    await tell(link, assignment.token, curve(3))
    await stored(stack, task_id, 3)
    second = await asked(stack, task_id, first["next"])
    assert (second["whole"], steps(second)) == (False, [("evolver", 3)])
    third = await asked(stack, task_id, second["next"])
    assert (third["rivals"], third["next"]) == ([], second["next"])
    assert [one["step"] for one in (await stack.task(task_id))["losses"]] == [1, 2, 3]
    await stack.do(commands.CancelTask(task_id=task_id))
    ended = await asked(stack, task_id, second["next"])
    assert (ended["status"], ended["next"]) == ("cancelled", None)
    assert len(steps(await asked(stack, task_id))) == 3


async def test_whoever_was_overtaken_or_never_held_a_task_is_not_believed_about_it(
    agents: Agents,
) -> None:
    slow, old = await agents.holding("slow")
    task_id = old.token.task_id
    await tell(slow, old.token, curve(1, 2, 3), whole=True)
    await agents.expire(old.token)
    quick, liar = await agents.join("quick"), await agents.join("liar")
    taken = await quick.claim("b" * 32, 0)
    assert taken is not None
    assert taken.token.task_id == task_id
    await tell(liar, taken.token, curve(7), whole=True)
    for forged in FORGED:
        await liar._bus.publish(f"telemetry.liar.{task_id}", b"", headers=forged)
    await liar._bus.flush()
    await quick._bus.publish(f"telemetry.quick.{task_id}", b"no telemetry")
    await tell(quick, taken.token, curve(1, 2, loss=0.25), whole=True)
    await tell(slow, old.token, curve(4))
    await tell(liar, taken.token, curve(8))
    await tell(quick, taken.token, curve(3, 4, loss=0.25))
    told = await stored(agents.stack, task_id, 4)
    assert steps(told) == [("evolver", step) for step in (1, 2, 3, 4)]
    assert {point["loss"] for point in told["rivals"][0]["points"]} == {0.25}
    await agents.stack.do(commands.CancelTask(task_id=task_id))


async def test_a_completed_task_keeps_its_curves_with_its_record(agents: Agents) -> None:
    link, assignment = await agents.holding("finisher")
    task_id, stack = assignment.token.task_id, agents.stack
    curves = [curve(5, 9), curve(8, rival="reinventor")]
    await tell(link, assignment.token, curve(1), whole=True)
    request = wire.CompleteRequest(token=assignment.token, metrics={"loss": 0.5}, telemetry=curves)
    await link.complete(request)
    told = await asked(stack, task_id, "1")
    assert (told["whole"], told["next"]) == (True, None)
    assert steps(told) == [("evolver", 5), ("evolver", 9), ("reinventor", 8)]
    digest = stack.parts.door.state.tasks.recent[task_id].telemetry_digest
    kept = await chunks.get_file(stack.parts.store, chunks.DESK, digest)
    assert msgspec.json.decode(kept, type=list[Curve]) == curves
    task = await stack.task(task_id)
    assert [one["step"] for one in task["losses"]] == [5, 9, 8]
    assert task["result"]["metrics"] == {"loss": 0.5}


async def test_an_attempt_that_failed_leaves_how_it_went_when_the_stream_has_forgotten(
    agents: Agents,
) -> None:
    link, assignment = await agents.holding("unlucky")
    task_id, stack = assignment.token.task_id, agents.stack
    await tell(link, assignment.token, curve(1, 2), whole=True)
    await stored(stack, task_id, 2)
    await link.fail(assignment.token, "the loss is nan", "", [curve(1, 2, 3)])
    assert len(steps(await asked(stack, task_id))) == 2
    fleet = stack.parts.connections.fleet
    assert (await fleet.api("STREAM.PURGE.TELEMETRY"))["success"]
    assert len(steps(await asked(stack, task_id))) == 3
    await stack.do(commands.CancelTask(task_id=task_id))


async def test_telemetry_that_finds_no_place_costs_no_result() -> None:
    assert await telemetry.store(Full(), "t", [curve(1)]) == ""
    assert await telemetry.store(chunks.MemoryChunks(), "t", []) == ""


async def test_whole_curves_of_all_rivals_fit_into_a_message_and_a_flood_is_bounded(
    agents: Agents,
) -> None:
    link, assignment = await agents.holding("flooder")
    token, stack = assignment.token, agents.stack
    fleet = stack.parts.connections.fleet
    limits = (await fleet.api("STREAM.INFO.TELEMETRY"))["config"]
    rivals: tuple[events.Rival, ...] = ("evolver", "reinventor", "merge")
    most = [curve(*range(10**7, 10**7 + POINTS_MAX), rival=rival) for rival in rivals]
    raw = msgspec.json.encode(wire.Telemetry(attempt=1, whole=True, curves=most))
    assert len(raw) < limits["max_msg_size"]
    last = limits["max_msgs_per_subject"] + 20
    for step in range(1, last + 1):
        news = wire.Telemetry(attempt=token.attempt, curves=[curve(step)])
        await link.tell(token.task_id, news)

    async def is_told() -> bool:
        return steps(await asked(stack, token.task_id))[-1:] == [("evolver", last)]

    await harness.until(is_told, "told", 10)
    subject = f"telemetry.flooder.{token.task_id}"
    info = await fleet.api("STREAM.INFO.TELEMETRY", {"subjects_filter": subject})
    assert info["state"]["subjects"] == {subject: limits["max_msgs_per_subject"]}
    await stack.do(commands.CancelTask(task_id=token.task_id))


async def test_what_was_told_survives_the_control_process(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as after, started(tmp_path / "data") as stack:
        async with opened(stack) as agents:
            link, assignment = await agents.holding("w")
            task_id = assignment.token.task_id
            await tell(link, assignment.token, curve(1, 2), whole=True)
            first = await stored(stack, task_id, 2)
            await tell(link, assignment.token, curve(3))
            await stored(stack, task_id, 3)
        again = await after.enter_async_context(serving(stack.nats))
        told = await asked(again, task_id, first["next"])
        assert (told["status"], steps(told)) == ("running", [("evolver", 3)])
