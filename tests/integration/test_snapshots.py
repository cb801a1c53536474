"""A control process on a real server, that comes back from a snapshot."""

import asyncio
import logging

import pytest

from benchmarks import history
from core import commands, keeper, runtime, snapshots
from core.log_jetstream import JetStreamLog
from core.projections.state import State
from core.replay import replay
from core.snapshots_jetstream import JetStreamSnapshots
from tests import states
from tests.nats_fixture import Nats

pytest_plugins = ["tests.nats_fixture"]


async def test_snapshot_and_tail_make_what_a_replay_makes(
    nats: Nats, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(snapshots, "PART_BYTES_MAX", 4_096)
    await nats.apply()
    story = history.Story()
    story.complete_over_http(300)
    story.train(40)
    story.queue(20)
    async with nats.connect("control") as control:
        log, store = JetStreamLog(control), JetStreamSnapshots(control)
        await history.store(log, story.messages)
        kept = keeper.Keeper(store, log)
        door = runtime.Runtime(log, "first", kept.newest)
        await door.start()
        writing = asyncio.ensure_future(door.run())
        head = await kept.take(door)
        assert len(head.parts) > 16
        for number in range(5):
            task = commands.EnqueueTask(
                task_id=f"after-{number}", node_id="root-math", topic="t", seed=number
            )
            await door.execute(task, runtime.new_meta("t"), runtime.nothing)
        writing.cancel()
        second = runtime.Runtime(log, "second", keeper.Keeper(store, log).newest)
        await second.start()
        assert f"the state at {head.seq} of" in caplog.text
        whole = State()
        await runtime.fold(log, whole)
        assert states.contents(second.state) == states.contents(whole)
        assert second.state.hash() == (await replay(log)).state_hash
        await log.close()
