"""The executor: one warm process that trains job after job, held by its agent.

A busy device or a crash in native code never holds the agent up; when the process dies, the job
ends with its reason and last words, and the next job gets a new process.
"""

import asyncio
import collections
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

import msgspec

from agent.executors import jobs
from core import errors, platforms

WARM_SECONDS_MAX = 180.0
CLOSE_SECONDS_MAX = 1.0
LAST_LINES = 40
LINE_CHARS_MAX = 2_000

OnReport = Callable[[jobs.Report], None]
_decode = msgspec.json.Decoder(jobs.Report).decode
_encode = msgspec.json.Encoder().encode


class Executor:
    """A process that trains; not for use by two jobs at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._reports: asyncio.Queue[jobs.Report | None] = asyncio.Queue()
        self._words: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._job: jobs.Job | None = None
        self._jobs = 0
        self.device = ""

    @property
    def pid(self) -> int | None:
        """The process, or None when there is none alive."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    async def start(self) -> None:
        """Start the process and wait until it is warm.

        Raises errors.TrainingError when it does not come up.
        """
        if self.pid is not None:
            return
        self._reports = asyncio.Queue()
        self._words.clear()
        loop = asyncio.get_running_loop()
        process = platforms.spawn(
            [sys.executable, "-m", "agent.executors.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._process = process
        assert process.stdout is not None, "asked for"
        assert process.stderr is not None, "asked for"
        listen = (process.stdout, loop, self._reports)
        threading.Thread(target=_listen, args=listen, daemon=True).start()
        threading.Thread(target=_keep, args=(process.stderr, self._words), daemon=True).start()
        try:
            async with asyncio.timeout(WARM_SECONDS_MAX):
                warmed = await self._reports.get()
        except TimeoutError:
            process.kill()
            warmed = None
        if not isinstance(warmed, jobs.Warmed):
            raise errors.TrainingError(f"the executor did not start{await self._ending(process)}")
        self.device = warmed.device

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        """Do a job; its reports on the way go to `on_report`.

        Raises errors.TrainingError when it cannot be finished: after a first line with the reason
        come the last words of the process.
        """
        process = self._process
        assert process is not None, "start comes first"
        assert self._job is None, "one job at a time"
        self._jobs += 1
        self._job = job = msgspec.structs.replace(job, number=self._jobs)
        try:
            self._send(job)
            while True:
                report = await self._reports.get()
                match report:
                    case jobs.Result() | jobs.Stopped():
                        return report
                    case jobs.Failed():
                        raise errors.TrainingError("\n".join([report.reason, report.trace]).strip())
                    case None:
                        ending = await self._ending(process)
                        raise errors.TrainingError(f"the executor died{ending}")
                    case _:
                        on_report(report)
        finally:
            self._job = None

    async def stop(self, *, save: bool) -> None:
        """End the job at work, if any, at its next step."""
        if self._job is not None:
            self._send(jobs.Stop(number=self._job.number, save=save))

    async def close(self) -> None:
        """End the process."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None, "asked for"
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, CLOSE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def _send(self, request: jobs.Request) -> None:
        process = self._process
        assert process is not None, "started first"
        assert process.stdin is not None, "asked for"
        # A dead process is told of by the end of its reports.
        with contextlib.suppress(OSError):
            process.stdin.write(_encode(request) + b"\n")
            process.stdin.flush()

    async def _ending(self, process: subprocess.Popen[bytes]) -> str:
        """How the process ended, and its last words."""
        code = await asyncio.to_thread(process.wait)
        how = f" with exit code {code}"
        if code < 0:
            how = f" by signal {signal.Signals(-code).name}"
            if -code == platforms.SIGKILL:
                how += ", as by the kernel when memory runs out"
        return "\n".join([how, *self._words])


def _listen(
    stream: IO[bytes],
    loop: asyncio.AbstractEventLoop,
    reports: "asyncio.Queue[jobs.Report | None]",
) -> None:
    """Hand on reports, and None at their end."""
    with contextlib.suppress(RuntimeError):  # the loop may end before the process does
        for line in stream:
            loop.call_soon_threadsafe(reports.put_nowait, _decode(line))
        loop.call_soon_threadsafe(reports.put_nowait, None)


def _keep(stream: IO[bytes], words: "collections.deque[str]") -> None:
    for line in stream:
        words.append(line.decode("utf-8", "replace").rstrip()[:LINE_CHARS_MAX])
