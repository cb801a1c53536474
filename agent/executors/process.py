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
import time
from collections.abc import Callable, Iterator
from typing import IO

import msgspec
import psutil

from agent import limits
from agent.executors import jobs, ranks
from core import errors, platforms

WARM_SECONDS_MAX = 180.0
ENDING_SECONDS_MAX = 5.0
CLOSE_SECONDS_MAX = 1.0
SILENCE_SECONDS_MAX = 60.0
"""A job at work reports several times a second; one that is silent for so long hangs."""
IDLE_SECONDS_MAX = 10.0
"""A job that is silent may load or measure, or take long steps: it uses the processor then, or
waits for a disk. One that does nothing at all for so long is stopped, or waits for ever."""
LOOKS = 5
"""In that time, since a machine that slept wakes up with what lies between two of them over."""
LAST_LINES = 40
LINE_CHARS_MAX = 2_000
DROP_SECONDS_MAX = 0.8
"""How long a job that is to stop may take to notice, where nothing is lost with its process, or
computing is to end within a second: it was cancelled, or its worker paused."""
SAVE_SECONDS_MAX = 3.5
"""And where steps since its last state would be."""
# Without it cuBLAS has no way to be deterministic, and torch refuses to multiply on a GPU.
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

OnReport = Callable[[jobs.Report], None]
_decode = msgspec.json.Decoder(jobs.Report).decode
_encode = msgspec.json.Encoder().encode


class Died(errors.TrainingError):
    """The process ended in the middle of a job; `lacked_memory`: the kernel killed it for that."""

    def __init__(self, words: str, *, lacked_memory: bool = False) -> None:
        super().__init__(words)
        self.lacked_memory = lacked_memory


class Executor:
    """A process that trains; not for use by two jobs at once.

    `processes` of them train each job together, a GPU each. `threads` is how many it may compute
    with, 0 for all cores.
    """

    def __init__(self, processes: int = 1, threads: int = 0) -> None:
        self._size, self._threads = processes, threads
        self.silence_seconds_max = SILENCE_SECONDS_MAX
        self.idle_seconds_max = IDLE_SECONDS_MAX
        self._process: subprocess.Popen[bytes] | None = None
        self._reports: asyncio.Queue[jobs.Report | None] = asyncio.Queue()
        self._words: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._listening: threading.Thread | None = None
        self._job: jobs.Job | None = None
        self._jobs = 0
        self._starting = asyncio.Lock()
        self._is_warm = False
        self._kills = 0
        self._ended = asyncio.Event()
        self._left: jobs.Stopped | None = None
        """What a job leaves whose process was ended since it did not stop."""
        self._suspended: dict[int, psutil.Process] = {}
        self._suspending = threading.Lock()
        self._awaited_by = 0
        """Who waits for it to end its job, or itself: then nothing makes it stand still."""
        self._suspended_at = self._paused_seconds = 0.0
        self._step = 0
        self.saved = jobs.Stopped(directory="", step=0)
        """The last state that the job wrote."""
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
        async with self._starting:
            if not self._is_warm or self.pid is None:
                await self._start_on_free_port()

    async def _start_on_free_port(self) -> None:
        for left in reversed(range(ranks.PORT_TRIES_MAX)):
            await self.close()
            try:
                await self._start()
                return
            except errors.TrainingError as error:
                if not (left and self._size > 1 and ranks.has_lost_port(str(error))):
                    raise

    async def _start(self) -> None:
        self._is_warm = False
        self._kills = limits.kills_for_memory()
        self._reports = asyncio.Queue()
        self._words = collections.deque(maxlen=LAST_LINES)
        loop = asyncio.get_running_loop()
        process = platforms.spawn(
            [sys.executable, "-m", limits.EXECUTOR_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **ENVIRONMENT,
                "OMP_NUM_THREADS": str(limits.threads(self._threads, self._size)),
                **ranks.environment(self._size),
            },
        )
        self._process = process
        assert process.stdout is not None, "asked for"
        assert process.stderr is not None, "asked for"
        listen = (process.stdout, loop, self._reports)
        threading.Thread(target=_listen, args=listen, daemon=True).start()
        keep = (process.stderr, self._words)
        self._listening = threading.Thread(target=_keep, args=keep, daemon=True)
        self._listening.start()
        try:
            async with asyncio.timeout(WARM_SECONDS_MAX):
                warmed = await self._reports.get()
        except TimeoutError as error:
            process.kill()
            await self._ending(process)
            raise errors.TrainingError(
                "\n".join([f"the executor was not ready in {WARM_SECONDS_MAX:g} s", *self._words])
            ) from error
        if not isinstance(warmed, jobs.Warmed):
            raise errors.TrainingError(f"the executor did not start{await self._ending(process)}")
        self.device = warmed.device
        self._is_warm = True

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        """Do a job; its reports on the way go to `on_report`. Cancelled, it drops the work.

        Raises errors.DiskFull when its directory has no room, errors.Unfit when this device lacks
        what it takes, errors.OtherTraining when its directory holds another's state,
        errors.TrainingError when it cannot be finished otherwise, Died when its
        process did not live to: after a first line with the reason come the last words of the
        process. One that falls silent is ended.
        """
        process = self._process
        assert process is not None, "start comes first"
        assert self._job is None, "one job at a time"
        self._jobs += 1
        threads = job.threads or self._threads
        self._job = job = msgspec.structs.replace(job, number=self._jobs, threads=threads)
        self._ended.clear()
        self._step, self.saved, self._left = 0, jobs.Stopped(directory="", step=0), None
        taken = False
        try:
            self._send(job)
            while True:
                report = await self._next_report(process)
                if report is not None and not taken:
                    # Until then come the last words about a job that was cancelled.
                    taken = report == jobs.Taken(number=job.number)
                    continue
                if isinstance(report, jobs.Failed) and self._size > 1:
                    await self._ending(process)  # several end together
                match report:
                    case jobs.Result() | jobs.Stopped():
                        return report
                    case jobs.Failed(no_room=True):
                        raise errors.DiskFull(f"{job.directory} has no room: {report.reason}")
                    case jobs.Failed(unfit=True):
                        raise errors.Unfit(report.reason)
                    case jobs.Failed(is_other=True):
                        raise errors.OtherTraining(report.reason)
                    case jobs.Failed():
                        raise errors.TrainingError("\n".join([report.reason, report.trace]).strip())
                    case None:
                        ending = await self._ending(process)
                        if self._left is not None:
                            return self._left
                        lacked_memory = self._lacked_memory(process)
                        raise Died(f"the executor died{ending}", lacked_memory=lacked_memory)
                    case _:
                        self._note(report)
                        on_report(report)
        except BaseException:
            # Nobody waits for it any more, if it is at work still.
            self._send(jobs.Stop(number=job.number, save=False))
            raise
        finally:
            self._job = None
            self._ended.set()

    def _note(self, report: jobs.Report) -> None:
        """Remember where the job stands, and what is left of it if its process ends."""
        match report:
            case jobs.Started():
                self._step = report.step
                self.saved = jobs.Stopped(directory="", step=report.step)
            case jobs.Progress():
                self._step = report.step
            case jobs.Saved():
                self.saved = jobs.Stopped(directory=report.directory, step=report.step)

    async def _next_report(self, process: subprocess.Popen[bytes]) -> jobs.Report | None:
        every = self.idle_seconds_max / LOOKS
        used, silent, idle = _used_seconds(process.pid), 0.0, 0.0
        paused = self.paused_seconds
        while silent < self.silence_seconds_max and idle < self.idle_seconds_max:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    return await self._reports.get()
            before, used = used, _used_seconds(process.pid)
            earlier, paused = paused, self.paused_seconds
            passed = max(0.0, every - (paused - earlier))
            silent += passed
            idle = 0.0 if used > before or _is_busy(process.pid) else idle + passed
        process.kill()
        await self._ending(process)
        was_idle = idle >= self.idle_seconds_max
        what = f"did nothing for {idle:g} s" if was_idle else f"reported nothing for {silent:g} s"
        raise Died("\n".join([f"the executor {what} and was ended", *self._words]))

    async def stop(self, *, save: bool, at_once: bool = False) -> None:
        """End the job at work, if any, at its next step; its process, where that takes too long:
        so long as saving may take, or, `at_once`, as noticing may.

        The job then leaves the last state it wrote.
        """
        job, process = self._job, self._process
        if job is None or process is None:
            return
        with self._awake():
            await self._told_to_stop(job, process, save=save, at_once=at_once)

    async def _told_to_stop(
        self, job: jobs.Job, process: subprocess.Popen[bytes], *, save: bool, at_once: bool
    ) -> None:
        self._send(jobs.Stop(number=job.number, save=save))
        is_lossless = not save or self._step <= self.saved.step
        is_short = at_once or is_lossless
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DROP_SECONDS_MAX if is_short else SAVE_SECONDS_MAX):
                await self._ended.wait()
                return
        if self._job is job:
            self._left = self.saved if save else jobs.Stopped(directory="", step=self._step)
            process.kill()

    async def close(self) -> None:
        """End the process."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None, "asked for"
        with contextlib.suppress(OSError):
            process.stdin.close()
        with self._awake():
            try:
                await asyncio.to_thread(process.wait, CLOSE_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    # ── quiet ──

    def suspend(self) -> None:
        """Let its processes stand still, one that was started since the last call, too; not one
        that is to end. From any thread."""
        with self._suspending:
            pid = self.pid
            if self._awaited_by or pid is None or pid in self._suspended:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(pid)
                self._suspended_at = self._suspended_at or time.monotonic()
                others = filter(_trains, first.children(recursive=True))
                for process in (first, *others):
                    self._suspended[process.pid] = process
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.suspend()

    def resume(self) -> None:
        """Let them go on. From any thread."""
        with self._suspending:
            self._wake()

    @property
    def paused_seconds(self) -> float:
        """How long its processes stood still up to now."""
        since = self._suspended_at
        return self._paused_seconds + (time.monotonic() - since if since else 0.0)

    def _wake(self) -> None:
        if not self._suspended:
            return
        seconds = time.monotonic() - self._suspended_at
        self._paused_seconds, self._suspended_at = self._paused_seconds + seconds, 0.0
        if self._process is not None and self._process.pid in self._suspended:
            self._send(jobs.Paused(seconds=seconds))
        for process in self._suspended.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._suspended.clear()

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """Its processes may do as they are told."""
        with self._suspending:
            self._awaited_by += 1
            self._wake()
        try:
            yield
        finally:
            self._awaited_by -= 1

    def _send(self, request: jobs.Request) -> None:
        process = self._process
        assert process is not None, "started first"
        assert process.stdin is not None, "asked for"
        # A dead process is told of by the end of its reports.
        with contextlib.suppress(OSError):
            process.stdin.write(_encode(request) + b"\n")
            process.stdin.flush()

    async def _ending(self, process: subprocess.Popen[bytes]) -> str:
        """How the process ended, and its last words; one that only fell silent is ended."""
        try:
            code = await asyncio.to_thread(process.wait, ENDING_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
            return "\n".join([": it stopped making sense and was ended", *self._words])
        if self._listening is not None:
            await asyncio.to_thread(self._listening.join, ENDING_SECONDS_MAX)
        how = f" with exit code {code}"
        if code < 0:
            how = f" by signal {_name_of_signal(-code)}"
            if self._lacked_memory(process):
                how += " from the kernel: memory ran out"
        return "\n".join([how, *self._words])

    def _lacked_memory(self, process: subprocess.Popen[bytes]) -> bool:
        is_killed = process.returncode == -platforms.SIGKILL
        return is_killed and limits.kills_for_memory() > self._kills


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return str(number)


def _trains(process: psutil.Process) -> bool:
    """Whether it trains with the first of several. What watches that none outlives its agent (on
    macOS a process beside each) may not stand still."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()[1:] == ["-m", limits.EXECUTOR_MODULE]
    return False


def _used_seconds(pid: int) -> float:
    """Of the processor, by a process up to now; by one that is gone none."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _is_busy(pid: int) -> bool:
    """Whether a process waits for nothing but a processor or a disk."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    return False


def _listen(
    stream: IO[bytes],
    loop: asyncio.AbstractEventLoop,
    reports: "asyncio.Queue[jobs.Report | None]",
) -> None:
    """Hand on reports, and None at their end, which anything but a report is too."""
    # The loop may end before the process does.
    with stream, contextlib.suppress(RuntimeError):
        with contextlib.suppress(msgspec.MsgspecError):
            for line in stream:
                loop.call_soon_threadsafe(reports.put_nowait, _decode(line))
        loop.call_soon_threadsafe(reports.put_nowait, None)


def _keep(stream: IO[bytes], words: "collections.deque[str]") -> None:
    """Remember the last lines; a longer one comes in pieces."""
    with stream:
        while line := stream.readline(LINE_CHARS_MAX):
            words.append(line.decode("utf-8", "replace").rstrip())
