"""A writer sleeps, another takes the next epoch, the first wakes: it is refused and steps down."""

import asyncio
import contextlib
import json
import signal
import sys
from typing import Any

from core.log_jetstream import JetStreamLog
from faults import harness
from faults.harness import Run, Told, Verdict, check_log
from tests import nats_fixture

NAME = "writer"
SECONDS_MAX = 30.0


class Process:
    """A writer, and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told: list[Told] = []

    @classmethod
    async def start(cls, server: nats_fixture.Nats, name: str, first: int) -> "Process":
        creds = str(server.creds("control"))
        argv = ("-m", "faults.writing", server.url, creds, name, str(first))
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=pipe))

    async def hear(self) -> dict[str, Any]:
        """The next thing it says; `{}` at its end."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), SECONDS_MAX)
        said: dict[str, Any] = json.loads(line or b"{}")
        if "key" in said:
            self.told.append(Told(said["key"], said["task_id"], said["topic"]))
        return said

    async def hear_until(self, what: str) -> bool:
        """Whether it says that before its end."""
        while said := await self.hear():
            if what in said:
                return True
        return False

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> None:
        """Kill it, awake or not, and hear what it had said before."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        while await self.hear():
            pass
        await self._process.wait()


async def attack(run: Run) -> Verdict:
    """Let one writer after another be overtaken in its sleep; all on one log."""
    verdict = Verdict(NAME, run.tries(1, 10, 50))
    choices = run.random(NAME)
    told: list[Told] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(harness.folder_of(verdict))
        server = stack.enter_context(nats_fixture.running(folder / "data"))
        await server.apply()
        first = 0
        for number in range(verdict.tries):
            sleeper = await Process.start(server, f"a{number}", first)
            stack.push_async_callback(sleeper.end)
            for _ in range(choices.randint(2, 40)):
                await sleeper.hear()
            await asyncio.sleep(choices.random() * 0.02)
            sleeper.send(signal.SIGSTOP)
            # The second begins with what the first may or may not have stored.
            other = await Process.start(server, f"b{number}", first + len(sleeper.told))
            stack.push_async_callback(other.end)
            for _ in range(choices.randint(2, 20)):
                await other.hear()
            sleeper.send(signal.SIGCONT)
            if not await sleeper.hear_until("stepped_down"):
                verdict.wrong.append(f"try {number}: the first writer ended without stepping down")
            await sleeper.end()
            await other.end()
            told += sleeper.told + other.told
            first = 1 + max(int(one.key[1:]) for one in told)
        control = await stack.enter_async_context(server.connect("control"))
        final = JetStreamLog(control)
        stack.push_async_callback(final.close)
        await check_log(verdict, told, final)
    return verdict
