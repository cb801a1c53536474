"""What a training makes of its device: how busy it is, and how much memory it takes."""

import contextlib
import threading
import time
from typing import NamedTuple, Protocol

import psutil

from agent import nvml

SAMPLE_SECONDS = 1.0
STALE_SECONDS = 5.0
"""A driver may hang with its GPU. What was read before it did is no figure of now."""


class Usage(NamedTuple):
    """As `core.telemetry.Point` has it; None where it is not known."""

    utilisation: float | None = None
    memory_bytes: int | None = None


class Gauge(Protocol):
    """Reads what a device does. Implementations: Processors, Gpus, and made-up ones in tests."""

    def read(self, pid: int) -> Usage:
        """For the training in this process, since the last reading."""
        ...


class Processors:
    """Processor time and memory of one process."""

    def __init__(self) -> None:
        self._before = (0, 0.0, 0.0)

    def read(self, pid: int) -> Usage:
        """As Gauge.read; the first reading of a process has no utilisation."""
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info().rss
        except psutil.Error:  # it ended just now
            return Usage()
        now, used = time.monotonic(), float(times.user + times.system)
        (last_pid, at, before), self._before = self._before, (pid, now, used)
        if last_pid != pid or now <= at:
            return Usage(None, int(memory))
        return Usage(max(0.0, used - before) / (now - at), int(memory))


class Gpus:
    """NVIDIA GPUs: the mean of their utilisation, the sum of their memory in use."""

    def __init__(self, library: nvml.Nvml) -> None:
        self._library = library

    def read(self, pid: int) -> Usage:
        """As Gauge.read, of all GPUs that the process may use."""
        found = self._library.read()
        if not found:
            return Usage()
        told = [gpu.utilisation for gpu in found if gpu.utilisation is not None]
        mean = sum(told) / len(told) if told else None
        return Usage(mean, sum(gpu.used_bytes for gpu in found))


def of_device(device: str) -> Gauge:
    """The gauge for a kind of device, as `agent.machine` names them."""
    library = nvml.Nvml.open() if device == "cuda" else None
    return Gpus(library) if library else Processors()


class Sampler:
    """Reads a gauge every second in a thread of its own, so that nothing waits for a driver.

    With no gauge nothing is read.
    """

    def __init__(self, gauge: Gauge | None) -> None:
        self._gauge = gauge
        self._pid = 0
        self._read = (0.0, Usage())
        self._due = threading.Event()
        self._started = False

    def of(self, pid: int | None) -> Usage:
        """The last reading of a process; the next one is on its way."""
        if self._gauge is None or not pid:
            return Usage()
        if not self._started:
            # Threads are counted among processes: what has no room for one may have it later.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._run, args=(self._gauge,), daemon=True).start()
                self._started = True
        if pid != self._pid:
            self._pid, self._read = pid, (0.0, Usage())
        self._due.set()
        at, usage = self._read
        return usage if time.monotonic() - at < STALE_SECONDS else Usage()

    def _run(self, gauge: Gauge) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            pid = self._pid
            usage = gauge.read(pid)
            if pid == self._pid:
                self._read = (time.monotonic(), usage)
            time.sleep(SAMPLE_SECONDS)
