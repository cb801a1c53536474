"""The parts of Aghsan one by one, each its own process, where `aghsan up` would not let them be."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests import nats_fixture

SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0


class Part:
    """A process of ours, and what it says on stdout."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def hear(self) -> str:
        """The next line it says. Raises EOFError at its end."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), SECONDS_MAX)
        if not line:
            raise EOFError(f"it ended with {await self._process.wait()}")
        return line.decode().rstrip("\n")

    async def hear_until(self, beginning: str) -> str:
        """The rest of the next line that begins so."""
        while not (line := await self.hear()).startswith(beginning):
            pass
        return line.removeprefix(beginning)

    async def hear_of(self, what: str) -> dict[str, Any]:
        """The next JSON object that holds this key."""
        while True:
            said: dict[str, Any] = json.loads(await self.hear())
            if what in said:
                return said

    async def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs. Not by asyncio, which would reap it beside its own
        watcher."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self) -> None:
        """Ask it to end, awake or not; kill it where it does not."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.communicate(), STOP_SECONDS_MAX)
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self._process.communicate()


@contextlib.asynccontextmanager
async def running(module: str, *args: str, log: Path) -> AsyncIterator[Part]:
    """`python -m MODULE ARGS`, stopped at the end of the block; its stderr goes to a file."""
    pipe = asyncio.subprocess.PIPE
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *args),
            stdin=pipe,
            stdout=pipe,
            stderr=stderr,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
    part = Part(process)
    try:
        yield part
    finally:
        await part.stop()


class Control:
    """A nats-server and a control process with leases of seconds, and its address."""

    def __init__(self, nats: nats_fixture.Nats, gateway: Part, http: str, folder: Path) -> None:
        self.nats = nats
        self.gateway = gateway
        self.http = http
        self.folder = folder

    @contextlib.asynccontextmanager
    async def agent(self, name: str) -> AsyncIterator[Part]:
        """A real agent, attached."""
        where = ("--api", self.http, "--direct", "--directory", str(self.folder / name))
        async with running(
            "cli.main", "agent", "--worker-id", name, *where, log=self.folder / f"{name}.log"
        ) as part:
            await part.hear_until("attached")
            yield part


@contextlib.asynccontextmanager
async def control(folder: Path, lease_seconds: float) -> AsyncIterator[Control]:
    """Both of them on `folder / "data"`, stopped in order at the end of the block."""
    with nats_fixture.running(folder / "data") as nats:
        lease = ("--lease-sec", str(lease_seconds), "--http-lease-sec", str(lease_seconds))
        args = ("gateway", "--nats", nats.url, "--data", str(nats.data), "--port", "0", *lease)
        async with running("cli.main", *args, log=folder / "gateway.log") as gateway:
            yield Control(nats, gateway, await gateway.hear_until("ready "), folder)
