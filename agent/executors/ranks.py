"""Several processes that train one job together, a GPU each, started as torchrun would.

Accelerate finds its place among them in RANK, WORLD_SIZE and the like (the environment that
torchrun gives, https://docs.pytorch.org/docs/stable/elastic/run.html). The first one is the
executor its agent knows; it starts the others, hands every job on, and ends when one of them does.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

from agent import limits
from core import errors, platforms

LOOPBACK = "127.0.0.1"
FAILED, FOLLOWER_DIED = 70, 71
PORT_TRIES_MAX = 3
"""Between its choice and its use another program may take a port."""
FAREWELL_SECONDS = 2.0
"""What a follower that failed leaves the first process, to tell of its own failure."""


def environment(processes: int) -> dict[str, str]:
    """What the first of so many processes is started with; nothing for one alone."""
    if processes == 1:
        return {}
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def has_lost_port(words: str) -> bool:
    """Whether these last words of the first process say that its port was taken."""
    return "EADDRINUSE" in words


def place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which process this is, and of how many."""
    return int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))


def require_devices(processes: int, devices: int, has_nccl: bool) -> None:
    """Raise errors.TrainingError unless there is a GPU for each process; 0 are none to share."""
    if devices == 0:
        return
    if processes > devices:
        raise errors.TrainingError(
            f"{processes} processes need a GPU each, and this machine has {devices}: ask for at "
            f"most {devices}"
        )
    if not has_nccl:
        raise errors.TrainingError(
            "this torch has no NCCL, by which GPUs speak to each other (on Windows none has): use "
            "one agent for each GPU, with CUDA_VISIBLE_DEVICES"
        )


class Followers:
    """The other processes, as the first one holds them; start it from the main thread."""

    def __init__(self, count: int) -> None:
        self._processes = [self._start(rank) for rank in range(1, count + 1)]

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        process = platforms.spawn(
            [sys.executable, "-m", limits.EXECUTOR_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        threading.Thread(target=_end_with, args=(process, rank), daemon=True).start()
        return process

    def send(self, line: bytes) -> None:
        """Hand a line of stdin on."""
        for process in self._processes:
            assert process.stdin is not None, "asked for"
            with contextlib.suppress(OSError):  # one that died ends this process too
                process.stdin.write(line)
                process.stdin.flush()


def _end_with(process: subprocess.Popen[bytes], rank: int) -> None:
    """No training goes on without one of its processes."""
    code = process.wait()
    sys.stderr.write(f"process {rank} of those that train together ended with {code}\n")
    sys.stderr.flush()
    os._exit(FOLLOWER_DIED)
