"""A control runtime in a process of its own, which says on stdout what it was told."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from core import commands, errors, runtime
from core.bus import Bus
from core.log_jetstream import JetStreamLog


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def write(url: str, creds: Path, name: str, first: int) -> None:
    """Become the writer, and enqueue under the keys k{first}, k{first + 1}, ... until fenced."""
    bus = await Bus.connect(url, credentials=creds, name=name, inbox_prefix="_INBOX_control")
    log = JetStreamLog(bus)
    door = runtime.Runtime(log, name)
    await door.start()
    writing = asyncio.create_task(door.run())
    _say(epoch=door.state.epoch)
    with contextlib.suppress(errors.SteppedDown):
        await door.execute(commands.SeedTree(), runtime.new_meta(name), runtime.nothing)
        while True:
            await _enqueue(door, name, f"k{first}")
            first += 1
    await writing
    _say(stepped_down=True)
    await log.close()
    await bus.close()


async def _enqueue(door: runtime.Runtime, name: str, key: str) -> None:
    order = commands.EnqueueTask(
        task_id=f"{name}-{key}",
        node_id="root-math",
        topic=f"topic {key}",
        seed=1,
        idempotency_key=key,
    )
    task_id = await door.execute(
        order,
        runtime.new_meta(name),
        lambda state: state.tasks.keys.rows[key].task_id,
    )
    _say(key=key, task_id=task_id, topic=order.topic)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
