"""No executor outlives its agent."""

import subprocess
import sys

import psutil

ENDS_SECONDS_MAX = 60.0
HOLDER = """
import asyncio
from agent.executors.process import Executor

async def hold():
    executor = Executor()
    starting = asyncio.create_task(executor.start())
    while executor.pid is None:
        await asyncio.sleep(0)
    print(executor.pid, flush=True)
    await starting
    await asyncio.Event().wait()

asyncio.run(hold())
"""


def test_an_executor_dies_with_an_agent_that_is_killed() -> None:
    agent = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    executor = psutil.Process(int(agent.stdout.readline()))
    agent.kill()
    agent.wait()
    agent.stdout.close()
    psutil.wait_procs([executor], timeout=ENDS_SECONDS_MAX)
    assert not executor.is_running()
