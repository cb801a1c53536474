"""The power goes under load: what was acknowledged is on the disk, and all goes on from there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psutil

from faults import disks, harness
from faults.harness import Run, Verdict
from faults.load import Load
from tests.acceptance.stack import Stack

NAME = "powerloss"
DISK_MIB = 1024
TRAIN_SECONDS = 8
GONE_SECONDS_MAX = 30.0
CHECKPOINT_SECONDS_MAX = 60.0


async def attack(run: Run) -> Verdict:
    """Cut the power of one data directory again and again, while people enqueue."""
    verdict = Verdict(NAME, run.tries(1, 8, 60))
    choices = run.random(NAME)
    verdict.unable = disks.why_not()
    if verdict.unable:
        return verdict
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(harness.folder_of(verdict))
        disk = stack.enter_context(disks.mounted(folder, DISK_MIB))
        args = ("--agents", "1", "--train-sec", str(TRAIN_SECONDS), "--no-orchestrator")
        parts = Stack(folder, *args, data=disk.folder / "data")
        stack.callback(parts.close)
        await asyncio.to_thread(parts.start)
        loads: list[Load] = []
        for number in range(verdict.tries):
            async with _loaded(parts.http, run, number) as load:
                loads.append(load)
                task = await _checkpointed(parts)
                await asyncio.sleep(choices.random() * 2.0)
                disk.cut_power()
                await _end(parts)
            await asyncio.to_thread(disk.power_on)
            await asyncio.to_thread(parts.start)
            verdict.wrong += await _lost_of(parts, task)
        code, _ = await asyncio.to_thread(parts.stop)
        if code:
            verdict.wrong.append(f"up ended with exit code {code}:\n{parts.words()}")
        told = [one for load in loads for one in load.told]
        await harness.check_directory(verdict, told, parts.data)
    return verdict


@contextlib.asynccontextmanager
async def _loaded(origin: str, run: Run, number: int) -> AsyncIterator[Load]:
    """Three people who enqueue, until the power is gone."""
    load = Load(origin)
    async with contextlib.aclosing(load), asyncio.TaskGroup() as group:
        people = [
            group.create_task(load.enqueue(name, 0.02, run.random(f"{NAME}/{name}")))
            for name in (f"{number}/p{person}" for person in range(3))
        ]
        yield load
        for one in people:
            one.cancel()


async def _checkpointed(parts: Stack) -> dict[str, Any]:
    """A task that trains, once one has a checkpoint that was announced."""
    async with asyncio.timeout(CHECKPOINT_SECONDS_MAX):
        while True:
            found = await asyncio.to_thread(parts.ask, "/tasks?status=running")
            for one in found["tasks"]:
                task = await asyncio.to_thread(parts.task, one["task_id"])
                if task.get("resume"):
                    return task
            await asyncio.sleep(0.1)


async def _end(parts: Stack) -> None:
    """The machine is off: nothing of it runs any more."""
    members = [psutil.Process(pid) for pid in set(parts.facts["pids"].values())]
    members += [child for one in members for child in one.children(recursive=True)]
    parts.kill_up()
    for one in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, members, GONE_SECONDS_MAX)
    assert not alive, alive


async def _lost_of(parts: Stack, before: dict[str, Any]) -> list[str]:
    """What a task lost of the checkpoints that it had; their bytes are for the audit."""
    task = await asyncio.to_thread(parts.task, before["task_id"])
    kept = {point["rival"]: point["step"] for point in task["resume"]}
    return [
        f"{task['task_id']} had a {point['rival']}'s checkpoint {point['step']}, and has {kept}"
        for point in before["resume"]
        if task["status"] != "completed" and kept.get(point["rival"], -1) < point["step"]
    ]
