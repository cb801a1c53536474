"""The answer to an append is swallowed and the connection cut: still exactly one event."""

import asyncio
import contextlib

from core import commands, runtime
from core.bus import Bus
from core.log_jetstream import JetStreamLog
from faults import harness
from faults.harness import Run, Told, Verdict, check_log
from tests import nats_fixture
from tests.contract.test_log import Proxy

NAME = "ambiguous"
SECONDS_MAX = 60.0


async def attack(run: Run) -> Verdict:
    """Enqueue task after task, lose the answer of about half, and ask again with the same key."""
    verdict = Verdict(NAME, run.tries(6, 60, 500))
    choices = run.random(NAME)
    told: list[Told] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(harness.folder_of(verdict))
        server = stack.enter_context(nats_fixture.running(folder / "data"))
        await server.apply()
        proxy = await stack.enter_async_context(Proxy(server.url).running())
        bus = await Bus.connect(
            proxy.url,
            credentials=server.creds("control"),
            name="control",
            inbox_prefix="_INBOX_control",
        )
        stack.push_async_callback(bus.close)
        log = JetStreamLog(bus)
        stack.push_async_callback(log.close)
        door = runtime.Runtime(log, NAME)
        await door.start()
        writing = asyncio.create_task(door.run())
        stack.callback(writing.cancel)
        await door.execute(commands.SeedTree(), runtime.new_meta(NAME), runtime.nothing)
        for number in range(verdict.tries):
            proxy.losing = number == 0 or choices.random() < 0.5
            # The first answer is lost to a client that does not wait for it.
            patience = choices.choice((0.01, SECONDS_MAX)) if number else 0.01
            told.append(await _enqueue(door, f"k{number}", patience))
        proxy.losing = False
        direct = await stack.enter_async_context(server.connect("control"))
        final = JetStreamLog(direct)
        stack.push_async_callback(final.close)
        await check_log(verdict, told, final)
    return verdict


async def _enqueue(door: runtime.Runtime, key: str, patience: float) -> Told:
    """Ask; who is not answered in time asks again under the same key, as another task."""
    for turn in range(2):
        order = commands.EnqueueTask(
            task_id=f"{key}-{turn}",
            node_id="root-math",
            topic=f"topic {key}",
            seed=1,
            idempotency_key=key,
        )
        asked = door.execute(
            order,
            runtime.new_meta(NAME),
            lambda state: state.tasks.keys.rows[key].task_id,
        )
        with contextlib.suppress(TimeoutError):
            task_id = await asyncio.wait_for(asked, SECONDS_MAX if turn else patience)
            return Told(key, task_id, order.topic)
    raise TimeoutError(f"{key} was not answered within {SECONDS_MAX:g} s")
