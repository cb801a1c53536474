"""The disk fills under load and is freed: new work stops before it, and all resumes by itself."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from core import replay
from core.topology import MIB
from faults import disks, harness
from faults.harness import Run, Told, Verdict, check_log
from tests.acceptance.stack import PREFIX, Stack

NAME = "diskfull"
DISK_MIB = 1_024
SHORT_MIB = 400
"""Left free, it is below the reserve of so small a disk, and enough for nats-server."""
NO_ROOM = "MiB are free"
CLIENTS = 4
CHANGES_MAX = 100
"""Heartbeats with something new that surely fill a block."""
ANSWER_SECONDS_MAX = 15.0
"""More than anybody has to wait for an answer, whatever the disk does, on a busy machine too."""
RESUME_SECONDS_MAX = 60.0
PAUSE_SECONDS = 0.02


async def attack(run: Run) -> Verdict:
    """Fill and free a small disk under `aghsan up`, slowly and at once, while clients enqueue."""
    verdict = Verdict(NAME, run.tries(2, 4, 20))
    choices = run.random(NAME)
    verdict.unable = disks.why_not()
    if verdict.unable:
        return verdict
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(harness.folder_of(verdict))
        disk = stack.enter_context(disks.mounted(folder, DISK_MIB)).folder
        up = Stack(disk, "--agents", "0", "--no-orchestrator")
        stack.callback(up.close)
        await asyncio.to_thread(up.start)
        clients = Clients(up.http, verdict)
        for number in range(verdict.tries):
            await _fill_and_free(verdict, Ballast(disk), clients, number, choices)
        await clients.stop()
        await asyncio.to_thread(up.stop)
        with replay.serving(up.data) as access:
            async with replay.connect(access) as connected:
                await check_log(verdict, clients.told, connected.log)
    return verdict


async def _fill_and_free(
    verdict: Verdict, ballast: "Ballast", clients: "Clients", number: int, choices: random.Random
) -> None:
    def wrong(words: str) -> None:
        verdict.wrong.append(f"try {number}: {words}")

    def expect(answer: tuple[int, dict[str, Any]], status: int, what: str) -> None:
        if answer[0] != status or (status != 200 and NO_ROOM not in str(answer[1])):
            wrong(f"{what} was answered {answer[0]}: {answer[1]}")

    def beat(status: str) -> Awaitable[tuple[int, dict[str, Any]]]:
        return clients.ask("/workers/heartbeat", {"worker_id": "w", "status": status})

    clients.start()
    await clients.until(clients.is_served, "served before the disk is full", wrong)
    expect(await beat("online"), 200, "a heartbeat before the disk is full")
    await asyncio.sleep(choices.random())
    if number == 0 or (number > 1 and choices.random() < 0.5):
        # Short first: new work is turned away before the disk is full. Then it meets lone appends,
        # after which nats-server stores nothing any more; else batches, which it gets over.
        await asyncio.to_thread(ballast.fill, SHORT_MIB * MIB)
        await clients.until(clients.is_turned_away, "turned away when room is short", wrong)
    await asyncio.to_thread(ballast.fill, 0)
    await clients.until(clients.is_turned_away, "turned away when the disk is full", wrong)
    await asyncio.to_thread(ballast.fill, 0)
    # What saves something is let in, while the log's last block takes it.
    answer: tuple[int, dict[str, Any]] = (200, {})
    for change in range(CHANGES_MAX):
        if answer[0] == 200:
            answer = await beat(f"full {number} {change}")
    expect(answer, 503, "on a full disk the last of many heartbeats with something new")
    expect(await clients.ask("/training/enqueue", {"topic": "t"}), 507, "there a new task")
    expect(await clients.ask("/status"), 200, "there /status")
    expect(await clients.ask("/readyz", prefix=""), 503, "there /readyz")
    await asyncio.sleep(choices.random() * 2)
    ballast.free()
    await clients.until(clients.is_served, "served again when room is back", wrong)
    expect(await beat("online"), 200, "when room was back a heartbeat")
    expect(await clients.ask("/readyz", prefix=""), 200, "then /readyz")


class Ballast:
    """A file that takes what is free of a disk."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"

    def fill(self, left_bytes: int) -> None:
        """Leave so much free; 0: not a byte."""
        with self._path.open("ab") as file:
            for step in (64 * MIB, MIB, 64 * 1024, 4 * 1024, 1024):
                with contextlib.suppress(OSError):
                    while shutil.disk_usage(self._path.parent).free - step >= left_bytes:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)

    def free(self) -> None:
        """Give it all back."""
        self._path.unlink()


class Clients:
    """Some who enqueue without a pause, each task until it is acknowledged, and what they saw."""

    def __init__(self, http: str, verdict: Verdict) -> None:
        self.told: list[Told] = []
        self._http = http
        self._verdict = verdict
        self._asking: list[asyncio.Task[None]] = []
        self._keys = 0
        self._last: dict[int, tuple[int, str]] = {}
        """The newest answer that each got: its status and its words."""

    def start(self) -> None:
        """Enqueue, until told to stop; may be repeated."""
        missing = CLIENTS - len(self._asking)
        self._asking += [asyncio.create_task(self._enqueue(one)) for one in range(missing)]

    async def stop(self) -> None:
        """Leave what is not acknowledged yet."""
        for one in self._asking:
            one.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def is_served(self) -> bool:
        """Whether each was acknowledged the last time."""
        return len(self._last) == CLIENTS and {status for status, _ in self._last.values()} == {200}

    def is_turned_away(self) -> bool:
        """Whether each was told the last time that there is no room. Who asks again for a task
        that may be stored already is told that this is not known yet."""
        return len(self._last) == CLIENTS and all(
            status in (503, 507) and NO_ROOM in words for status, words in self._last.values()
        )

    async def until(
        self, ready: Callable[[], bool], what: str, wrong: Callable[[str], None]
    ) -> None:
        """Wait until something is so; that it does not come is wrong."""
        self._last.clear()

        async def is_so() -> bool:
            return ready()

        try:
            await harness.until(is_so, what, RESUME_SECONDS_MAX)
        except TimeoutError as error:
            wrong(f"{error}; the clients were answered {self._last}")

    async def _enqueue(self, client: int) -> None:
        while True:
            self._keys += 1
            key, topic = f"k{self._keys}", f"topic {self._keys}"
            while True:
                body = {"topic": topic, "seed": 1}
                status, answer = await self.ask("/training/enqueue", body, key=key)
                self._last[client] = status, str(answer.get("detail"))
                if status == 200:
                    self.told.append(Told(key, answer["task"]["task_id"], topic))
                    break
                if not answer.get("detail"):
                    self._verdict.wrong.append(f"{key} was answered {status} without a word")
                await asyncio.sleep(PAUSE_SECONDS)

    async def ask(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str = "",
        prefix: str = PREFIX,
    ) -> tuple[int, dict[str, Any]]:
        """Ask, and take an answer that is no answer, or that takes too long, for wrong."""
        began = time.monotonic()
        status, answer = await asyncio.to_thread(self._exchange, prefix + path, body, key)
        took = time.monotonic() - began
        if took > ANSWER_SECONDS_MAX:
            self._verdict.wrong.append(f"{path} was answered {status} after {took:.1f} s")
        return status, answer

    def _exchange(
        self, path: str, body: dict[str, Any] | None, key: str
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._http + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=2 * ANSWER_SECONDS_MAX) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)
        except OSError as error:
            return 0, {"detail": str(error)}
