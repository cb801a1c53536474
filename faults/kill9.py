"""Parts of a whole `aghsan up` are killed at random, under load, again and again."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

from faults import harness
from faults.harness import Run, Verdict
from faults.load import Load
from tests.acceptance.stack import Stack, aghsan

NAME = "kill9"
PARTS = ("nats-server", "gateway", "judge", "agent-1", "agent-2")
WHOLE = "up"
RECOVERED_SECONDS_MAX = 90.0
ENDED_SECONDS_MAX = 300.0
WAITED_FOR = 0.25
"""How often all parts are waited for before the next kill; else it falls into their recovery."""


async def attack(run: Run) -> Verdict:
    """Kill parts, and now and then all of it at once, while people enqueue and workers complete."""
    verdict = Verdict(NAME, run.tries(3, 100, 1000))
    choices = run.random(NAME)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(harness.folder_of(verdict))
        args = ("--agents", "2", "--train-sec", "1", "--min-queue", "2")
        parts = Stack(folder, *args)
        stack.callback(parts.close)
        await asyncio.to_thread(parts.start)
        # A start of all of it answers where it did before.
        victims = [*PARTS, *([] if run.quick else [WHOLE])]
        async with _loaded(parts.http, run) as load:
            for number in range(verdict.tries):
                await _kill(parts, choices.choice(victims))
                if choices.random() < WAITED_FOR:
                    await _until_recovered(parts, load)
                else:
                    await asyncio.sleep(choices.random() * 3.0)
                if number % 10 == 9:
                    print(f"{NAME}: {number + 1} kills, {len(load.told)} told", file=sys.stderr)
            load.ending.set()
            await _until_recovered(parts, load)
            await _until_ended(load)
            verdict.wrong += load.wrong
        state = (await asyncio.to_thread(parts.ask, "/log/state"))["log"]
        code, _ = await asyncio.to_thread(parts.stop)
        if code:
            verdict.wrong.append(f"up ended with exit code {code}:\n{parts.words()}")
        at = ("--at", str(state["last_seq"]))
        ran = await asyncio.to_thread(aghsan, "replay", "--data", parts.data, *at, "--json")
        if json.loads(ran.stdout)["state_hash"] != state["state_hash"]:
            verdict.wrong.append(f"the state at {state['last_seq']} is not what a replay gives")
        await harness.check_directory(verdict, load.told, parts.data, load.delivered, load.refused)
    return verdict


@contextlib.asynccontextmanager
async def _loaded(origin: str, run: Run) -> AsyncIterator[Load]:
    """Three people who enqueue and two workers, for as long as the block lasts."""
    load = Load(origin)
    every_seconds = 0.5 if run.quick else 2.0
    async with contextlib.aclosing(load), asyncio.TaskGroup() as group:
        for name in ("p0", "p1", "p2"):
            group.create_task(load.enqueue(name, every_seconds, run.random(f"{NAME}/{name}")))
        workers = [
            group.create_task(load.work(name, every_seconds, run.random(f"{NAME}/{name}")))
            for name in ("w0", "w1")
        ]
        yield load
        for one in workers:
            one.cancel()


async def _kill(parts: Stack, name: str) -> None:
    """Kill a part as soon as it lives, be it in the middle of its start."""
    if name == WHOLE:
        port = parts.http.rpartition(":")[2]
        await asyncio.to_thread(parts.kill_up)
        await asyncio.to_thread(parts.start, "--port", port)
        return
    await _until_alive(parts, name)
    with contextlib.suppress(ProcessLookupError):  # it may end by itself, for want of another
        parts.kill(name)


async def _until_recovered(parts: Stack, load: Load) -> None:
    """Wait until every part runs again, and the whole says that it is ready."""
    await _until_alive(parts, *PARTS)
    await load.ask("GET", "/status")


async def _until_alive(parts: Stack, *names: str) -> None:
    async def are_alive() -> bool:
        return all(parts.is_alive(name) for name in names)

    await harness.until(are_alive, f"alive: {names}", RECOVERED_SECONDS_MAX)


async def _until_ended(load: Load) -> None:
    """Wait until every acknowledged task has its result; those used up are tried again, as by
    people."""
    told = {one.task_id for one in load.told}

    async def have_ended() -> bool:
        for task_id in told & await load.listed("failed"):
            await load.ask("POST", f"/tasks/{task_id}/retry", {})
        return told <= await load.listed("completed")

    await harness.until(have_ended, "every acknowledged task has its result", ENDED_SECONDS_MAX)
