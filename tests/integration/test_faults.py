"""The quick form of each suite of faults; `dev.py faults` has the normal one."""

import importlib
import subprocess
import sys

import psutil
import pytest

from core.log import Message
from core.log_memory import MemoryLog
from faults import harness, network
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


THERE_SECONDS_MAX = 30
LEAVING = f"""
import subprocess, time
from faults import network
with network.apart() as cable:
    far = subprocess.Popen([*cable.there, "sleep", "1000"])
    print(far.pid, flush=True)
    time.sleep({THERE_SECONDS_MAX})
"""


def test_what_a_killed_run_left_of_its_network_is_swept_by_the_next_and_a_live_one_refuses_it() -> (
    None
):
    if why := network.why_not():
        pytest.skip(why)
    with subprocess.Popen([sys.executable, "-c", LEAVING], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        far = psutil.Process(int(run.stdout.readline()))
        with pytest.raises(OSError, match="another run uses"), network.apart():
            pass
        run.kill()
    assert far.is_running()
    for _ in range(2):
        with network.apart() as cable:
            assert subprocess.run([*cable.there, "true"], check=False).returncode == 0
    assert not far.is_running() or far.status() == psutil.STATUS_ZOMBIE
