"""A judge whose key was lost, over a real server: it says so, and no round waits for ever."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from core import commands, errors, events
from core.chunks_jetstream import JetStreamChunks
from core.projections.rounds import Decided, Round
from gateway.work import Judgements
from orchestrator import judge, keys
from tests.integration.gateway_stack import Stack, started
from tests.integration.test_desk import Agents, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")

OLD, NEW = b"o" * keys.KEY_BYTES, b"n" * keys.KEY_BYTES
COMMITTED = 3


@pytest_asyncio.fixture(loop_scope="module")
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    async with started(tmp_path / "data") as stack, opened(stack) as one:
        offering = asyncio.ensure_future(
            Judgements(stack.parts.door, stack.parts.connections.control).run()
        )
        commitments = [keys.commitment_to(keys.secret_of(OLD, index)) for index in range(COMMITTED)]
        await stack.do(commands.DepositCommitments(judge="old", first=0, commitments=commitments))
        try:
            yield one
        finally:
            offering.cancel()
            await asyncio.gather(offering, return_exceptions=True)


@contextlib.asynccontextmanager
async def sitting(stack: Stack, key: bytes) -> AsyncIterator[judge.Judge]:
    """A judge with a key, connected as judges are."""
    async with (
        stack.nats.connect("judge") as control,
        stack.nats.connect("judge-fleet") as fleet,
    ):
        yield judge.Judge(control, JetStreamChunks(fleet), key, "judge", Path())


async def closed_round(agents: Agents) -> str:
    """A round that took one of the old key's commitments, and closed without a candidate."""
    link, assignment = await agents.holding(f"agent-{secrets.token_hex(4)}")
    await link.fail(assignment.token, "no", "")
    await agents.stack.do(commands.CancelTask(task_id=assignment.token.task_id))
    (round_id,) = agents.stack.parts.door.state.rounds.undecided
    return round_id


async def decided(stack: Stack, round_id: str) -> Decided:
    """The round's row, once it is decided."""
    is_decided = asyncio.Event()

    def observe(event: events.Event) -> None:
        if isinstance(event.data, events.RoundDecided):
            is_decided.set()

    stack.parts.door.observe(observe)
    if isinstance(stack.parts.door.state.rounds.table.rows[round_id], Round):
        async with asyncio.timeout(20):
            await is_decided.wait()
    row = stack.parts.door.state.rounds.table.rows[round_id]
    assert isinstance(row, Decided)
    return row


async def test_a_judge_with_another_key_ends_no_round_and_says_what_to_do(agents: Agents) -> None:
    round_id = await closed_round(agents)
    async with sitting(agents.stack, NEW) as one:
        with pytest.raises(errors.DataDirectoryError, match="--new-key"):
            await one.run()
    row = agents.stack.parts.door.state.rounds.table.rows[round_id]
    assert isinstance(row, Round)
    async with agents.stack.nats.connect("judge") as control:
        assert await judge.deposited(control, "judge") == COMMITTED


async def test_once_it_is_said_that_the_key_is_lost_its_rounds_end_void_and_others_open(
    agents: Agents,
) -> None:
    stack = agents.stack
    round_id = await closed_round(agents)
    async with sitting(stack, NEW) as one:
        await one.withdraw("lost")
        running = asyncio.ensure_future(one.run())
        assert (await decided(stack, round_id)).verdict == "void"
        shown = (await stack.get(f"/rounds/{round_id}")).json["round"]
        assert (shown["secret"], shown["verdict"]) == (None, "void")
        assert "key" in shown["reasons"]["en"]
        later = await closed_round(agents)
        assert (await decided(stack, later)).verdict == "void"
        shown = (await stack.get(f"/rounds/{later}")).json["round"]
        assert shown["secret"] == keys.secret_of(NEW, COMMITTED).hex()
        one.stop()
        await running
    assert stack.parts.door.state.rounds.awaiting_judgement == 0
