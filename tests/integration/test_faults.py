"""The quick form of each suite of faults; `dev.py faults` has the normal one."""

import importlib

import pytest

from core.log import Message
from core.log_memory import MemoryLog
from faults import harness
from faults.__main__ import NAMES


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_acknowledged_is_lost_and_nothing_happens_twice(name: str) -> None:
    verdict = await importlib.import_module(f"faults.{name}").attack(harness.Run(1, quick=True))
    if verdict.unable:
        pytest.skip(verdict.unable)
    assert verdict.holds, harness.table([verdict])
    assert verdict.tries > 0
    assert verdict.acknowledged > 0


async def test_a_lost_and_a_doubled_task_are_seen() -> None:
    log = MemoryLog()
    one = b'{"data":{"task_id":"%s","topic":"t","idempotency_key":"k"}}'
    await log.append([Message("ev.task.x", one % b"a"), Message("ev.task.y", one % b"b")], 0)
    verdict = harness.Verdict("none")
    await harness.check_log(verdict, [harness.Told("other", "c", "t")], log)
    assert (verdict.lost, verdict.doubled, verdict.holds) == (1, 1, False)
