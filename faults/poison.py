"""Offers that mean nothing, and a task that every process dies of which trains it: no loop."""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import psutil

from core import lanes
from core.bus import Bus
from core.projections.tasks import ATTEMPTS_MAX
from faults import harness, parts
from faults.harness import Run, Told, Verdict
from faults.load import Load

NAME = "poison"
LEASE_SECONDS = 30.0
SETTLED_SECONDS_MAX = 20.0
"""Less than the half minute after which a server gives an unanswered offer out again."""
ENDED_SECONDS_MAX = 180.0
BORN_SECONDS = 0.5
"""An executor has worked so long, in time of CPU, before it is killed: it can speak by then."""
LAST_WORDS = "Extension modules:"
OFFERS: tuple[tuple[bytes, dict[str, str]], ...] = (
    (b"", {}),
    (b"\xff\xfe\x00", {}),
    (b"{", {}),
    (b"[]", {}),
    (b"null", {}),
    (b'{"task_id":7}', {}),
    (b'{"another":"thing"}', {}),
    (b'{"task_id":"no-such-task"}', {}),
    (b"[" * 100_000, {}),
    (b"x" * 1_000_000, {}),
    (b'{"task_id":"no-such-task"}', {"Any": "header"}),
    (b"", {"Status": "408"}),
    (b"{", {"Status": "404", "Description": "No Messages"}),
)
"""What is put on WORK by hand: bodies and headers."""


async def attack(run: Run) -> Verdict:
    """Put malformed offers on WORK while an agent waits, then let its executor die each time."""
    offers, deadly = run.tries(len(OFFERS), 100, 1000), run.tries(1, 5, 50)
    verdict = Verdict(NAME, offers + deadly)
    with harness.folder_of(verdict) as folder:
        told = await _attack(verdict, folder, run, offers, deadly)
        await harness.check_directory(verdict, told, folder / "data")
    return verdict


async def _attack(verdict: Verdict, folder: Path, run: Run, offers: int, deadly: int) -> list[Told]:
    told: list[Told] = []
    choices = run.random(NAME)
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(parts.control(folder, LEASE_SECONDS))
        load = await stack.enter_async_context(contextlib.aclosing(Load(control.http)))
        agent = await stack.enter_async_context(control.agent("a1"))
        inspector = await stack.enter_async_context(control.nats.connect("inspect-fleet"))
        desk = await stack.enter_async_context(control.nats.connect("desk"))
        lane = await _lane_of(inspector)
        shuffled = [*OFFERS, *choices.choices(OFFERS, k=offers - len(OFFERS))]
        choices.shuffle(shuffled)
        for body, headers in shuffled:
            await desk.request(f"work.{lane}", body, headers=headers)
        await _require_empty(verdict, "after malformed offers", inspector, lane)
        for number in range(deadly):
            task = await _enqueue(load, told, f"deadly-{number}")
            await _kill_until_ended(load, task, agent)
            verdict.wrong += await _faults_of(load, task)
            await _require_empty(verdict, f"after {task}", inspector, lane)
        if not run.quick:
            await _until(load, await _enqueue(load, told, "healthy"), "completed")
            await _require_empty(verdict, "at the end", inspector, lane)
    return told


async def _lane_of(inspector: Bus) -> str:
    """The lane of the only agent: the only consumer of WORK."""
    (name,) = (await inspector.api("CONSUMER.NAMES.WORK"))["consumers"]
    assert name in lanes.ALL
    return str(name)


async def _require_empty(verdict: Verdict, when: str, inspector: Bus, lane: str) -> None:
    """WORK and its consumer hold nothing, seen or unseen, once nothing moves any more."""

    async def is_empty() -> bool:
        consumer = await inspector.api(f"CONSUMER.INFO.WORK.{lane}")
        stream = await inspector.api("STREAM.INFO.WORK")
        rest.update({name: consumer[name] for name in ("num_pending", "num_ack_pending")})
        rest["messages"] = stream["state"]["messages"]
        return not any(rest.values())

    rest: dict[str, int] = {}
    try:
        await harness.until(is_empty, "WORK is empty", SETTLED_SECONDS_MAX)
    except TimeoutError:
        verdict.wrong.append(f"{when} WORK holds {rest}")


async def _enqueue(load: Load, told: list[Told], key: str) -> str:
    body = {
        "topic": key,
        "node_id": "stats-bayesian",
        "role": "reinventor",
        "budget_seconds": 1 if key == "healthy" else 60,
    }
    task = (await load.ask("POST", "/training/enqueue", body, key))["task"]
    told.append(Told(key, task["task_id"], key))
    return str(task["task_id"])


async def _kill_until_ended(load: Load, task_id: str, agent: parts.Part) -> None:
    """Kill every executor that has the task, the last one so that it leaves words behind."""
    await _until(load, task_id, "running")
    async with asyncio.timeout(ENDED_SECONDS_MAX):
        while (task := await _task(load, task_id))["status"] in ("queued", "running"):
            is_last = len(task["attempts"]) >= ATTEMPTS_MAX
            for child in psutil.Process(agent.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = child.cpu_times()
                    if spent.user + spent.system > BORN_SECONDS:
                        child.send_signal(signal.SIGABRT if is_last else signal.SIGKILL)
            await asyncio.sleep(0.05)


async def _faults_of(load: Load, task_id: str) -> list[str]:
    """What is wrong with how a deadly task ended."""
    task = await _task(load, task_id)
    wrong = []
    if task["status"] != "failed":
        wrong.append(f"{task_id} is {task['status']}, not failed")
    reasons = [attempt["reason"] for attempt in task["attempts"]]
    signals = ["SIGKILL"] * (ATTEMPTS_MAX - 1) + ["SIGABRT"]
    told = len(reasons) == len(task["reasons"]) == ATTEMPTS_MAX
    if not told or not all(one in why for one, why in zip(signals, reasons, strict=True)):
        wrong.append(f"{task_id} failed after {reasons}, because of {task['reasons']}")
    if LAST_WORDS not in task["log_tail"]:
        wrong.append(f"{task_id} tells {task['log_tail']!r} of its end")
    return wrong


async def _task(load: Load, task_id: str) -> dict[str, Any]:
    task: dict[str, Any] = (await load.ask("GET", f"/tasks/{task_id}"))["task"]
    return task


async def _until(load: Load, task_id: str, status: str) -> None:
    async def is_so() -> bool:
        return bool((await _task(load, task_id))["status"] == status)

    await harness.until(is_so, f"{task_id} is {status}", ENDED_SECONDS_MAX)
