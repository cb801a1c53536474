"""What this process may use of its machine: a container often gets less than the host has."""

import contextlib
import importlib
import os
from pathlib import Path

import psutil

from core import platforms

EXECUTOR_MODULE = "agent.executors.child"
MEMORY_SHARE = 0.9
"""Of the memory, that one executor may take: then it is refused more, not killed with all else."""
FIRST_TO_GO = 500
"""Of 1000: whom the kernel kills when memory runs out (proc(5), oom_score_adj)."""
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """The cores that this process may use, by its affinity and its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, period = _cpu_quota()
    if quota <= 0 or period <= 0:
        return allowed
    return max(1, min(allowed, int(quota / period + 0.5)))


def memory_bytes() -> int:
    """The memory that this process may use, by its machine and its control group."""
    total = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return min(total, int((_CGROUP / name).read_text()))
    return total


def _cpu_quota() -> tuple[float, float]:
    """Microseconds of processor per period of microseconds; 0 where there is no bound."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return float(quota), float(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError):
        folder = _CGROUP / "cpu"
        quota, period = (
            (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        return float(quota), float(period)
    return 0.0, 0.0


def threads(asked: int, processes: int) -> int:
    """How many threads each process of an executor computes with: as many as are asked for, or with
    0 its part of the cores. Who else runs here does not count: the bits depend on the number."""
    return asked or max(1, cores() // processes)


def kills_for_memory() -> int:
    """How many processes the kernel has killed, since it started, because memory ran out."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def be_first_to_go() -> None:
    """Where memory runs out, let the kernel end this process before its agent, or any other."""
    if platforms.LINUX:
        with contextlib.suppress(OSError):  # not everybody may
            Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))


def bound_memory(most: int) -> None:
    """Be refused what goes beyond so many bytes, rather than be killed for it; on Linux."""
    if platforms.LINUX:
        resource = importlib.import_module("resource")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
