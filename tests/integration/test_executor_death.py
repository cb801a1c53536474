"""No executor outlives its agent."""

import subprocess
import sys

import psutil

ENDS_SECONDS_MAX = 20.0
HOLDER = """
import asyncio
from agent.executors.process import Executor

async def hold():
    executor = Executor()
    await executor.start()
    print(executor.pid, flush=True)
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
    _, alive = psutil.wait_procs([executor], timeout=ENDS_SECONDS_MAX)
    for left in alive:
        left.kill()
    assert not alive
