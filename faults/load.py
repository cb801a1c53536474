"""Clients of the nine routes that ask until they are answered, and remember what they were told."""

import asyncio
import contextlib
import itertools
import random
from typing import Any

import aiohttp

from faults.harness import Delivered, Told
from tests.acceptance.stack import PREFIX

ANSWER_SECONDS_MAX = 15.0
ANSWERED_SECONDS_MAX = 150.0
PAUSE_SECONDS = 0.2
PAGE = 500
NODES = ("stats-bayesian", "opt-convex", "math-optimization", "root-math")
ROLES = ("dual", "evolver", "reinventor")


class Refused(Exception):
    """The server said no."""


class Load:
    """People who enqueue and old workers who claim and complete, all through one session.

    Whoever is not answered, or told to come again, repeats the very same request.
    """

    def __init__(self, origin: str) -> None:
        self.told: list[Told] = []
        self.delivered: list[Delivered] = []
        self.refused: list[Delivered] = []
        self.wrong: list[str] = []
        self.asked = 0
        self.ending = asyncio.Event()
        self._origin = origin
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        self._session = aiohttp.ClientSession(timeout=timeout)

    async def aclose(self) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: Any = None, key: str = "") -> dict[str, Any]:
        """Ask until there is an answer. Raises Refused, TimeoutError when none ever came."""
        headers = {"Idempotency-Key": key} if key else {}
        async with asyncio.timeout(ANSWERED_SECONDS_MAX):
            while True:
                try:
                    url = self._origin + PREFIX + path
                    async with self._session.request(
                        method, url, json=body, headers=headers
                    ) as response:
                        status = response.status
                        self.asked += 1
                        if status == 200:
                            answer: dict[str, Any] = await response.json()
                            return answer
                        words = await response.text()
                except (aiohttp.ClientError, TimeoutError, OSError):
                    status, words = 503, ""
                if status < 500 and status != 429:
                    raise Refused(f"{path}: {status} {words[:300]}")
                await asyncio.sleep(PAUSE_SECONDS)

    async def enqueue(self, name: str, every_seconds: float, choices: random.Random) -> None:
        """Enqueue under one key after another until the end; some are asked for once more."""
        for number in itertools.count():
            key = f"{name}/{number}"
            body = {
                "topic": f"topic {key}",
                "node_id": choices.choice(NODES),
                "role": choices.choice(ROLES),
                "priority": choices.randint(1, 10),
            }
            for _ in range(choices.choice((1, 1, 1, 2))):
                task = (await self.ask("POST", "/training/enqueue", body, key))["task"]
                self.told.append(Told(key, task["task_id"], task["topic"]))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), choices.random() * 2 * every_seconds)
                return

    async def work(self, worker_id: str, every_seconds: float, choices: random.Random) -> None:
        """Claim and complete as an old agent does, until cancelled."""
        await self.ask("POST", "/workers/register", {"worker_id": worker_id, "hostname": "h"})
        number = 0
        while True:
            await asyncio.sleep(choices.random() * 2 * every_seconds)
            # Only after a sign of life is a claim whose answer was lost given once more.
            await self.ask("POST", "/workers/heartbeat", {"worker_id": worker_id})
            answer = await self.ask("POST", "/training/claim", {"worker_id": worker_id})
            if answer["task"] is not None:
                number += 1
                await self._complete(answer["task"]["task_id"], worker_id, f"{worker_id}/{number}")

    async def _complete(self, task_id: str, worker_id: str, mark: str) -> None:
        one = Delivered(task_id, worker_id, mark)
        body = {"task_id": task_id, "worker_id": worker_id, "metrics": {"mark": mark}}
        try:
            answer = await self.ask("POST", "/training/complete", body)
        except Refused:
            self.refused.append(one)
            return
        if answer["task"]["result"]["metrics"] == {"mark": mark}:
            self.delivered.append(one)
        else:
            self.wrong.append(f"{one} was answered with {answer}")

    async def listed(self, status: str) -> set[str]:
        """The ids of all tasks in this state."""
        found: set[str] = set()
        after = ""
        while True:
            page = await self.ask("GET", f"/tasks?status={status}&limit={PAGE}{after}")
            found |= {task["task_id"] for task in page["tasks"]}
            if not page["next"]:
                return found
            after = f"&after={page['next']}"
