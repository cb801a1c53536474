"""The executor's process: waits for jobs on stdin, trains one at a time, reports on stdout.

What anything here prints goes to stderr: the stream of reports is a copy of stdout that nobody else
knows.
"""

import functools
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import BinaryIO

import msgspec

from agent import limits
from agent.executors import jobs, ranks, standstill
from core import errors, platforms

TRACE_CHARS_MAX = 4_000
_decode = msgspec.json.Decoder(jobs.Request).decode


class _Inbox:
    """Jobs to do, and the last wish to stop, as a thread reads them from stdin."""

    def __init__(self, stream: BinaryIO, followers: ranks.Followers) -> None:
        self.jobs: queue.Queue[jobs.Job] = queue.Queue()
        self._stop: jobs.Stop | None = None
        threading.Thread(target=self._read, args=(stream, followers), daemon=True).start()

    def _read(self, stream: BinaryIO, followers: ranks.Followers) -> None:
        for line in stream:
            request = _decode(line)
            match request:
                case jobs.Stop():
                    self._stop = request
                case jobs.Paused():
                    standstill.note(request.seconds)
                case jobs.Job():
                    followers.send(line)
                    self.jobs.put(request)
        # The agent is gone: what it began is of no use to anybody.
        os._exit(0)

    def stop_of(self, job: jobs.Job) -> jobs.Stop | None:
        """The wish to stop this job, or a later one that waits for it, if there is one."""
        stop = self._stop
        return stop if stop is not None and stop.number >= job.number else None


def main() -> None:
    """Serve jobs until stdin ends."""
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits.be_first_to_go()
    rank, world = ranks.place()

    def report(message: jobs.Report) -> None:
        reports.write(msgspec.json.encode(message) + b"\n")

    inbox = _Inbox(sys.stdin.buffer, ranks.Followers(world - 1 if rank == 0 else 0))
    # Where it is installed accelerate imports it, for SageMaker: a tenth of what torch takes.
    sys.modules["boto3"] = None  # type: ignore[assignment]
    from agent.executors import device, training
    from agent.specialists import registry

    kind = device.prepare()
    if kind == "cpu":  # drivers of GPUs lay claim to far more than they use
        limits.bound_memory(int(limits.memory_bytes() * limits.MEMORY_SHARE))
    registry.preload()
    report(jobs.Warmed(pid=os.getpid(), device=kind))
    while True:
        job = inbox.jobs.get()
        report(jobs.Taken(number=job.number))
        try:
            told = training.run(job, report, functools.partial(inbox.stop_of, job))
            if told is not None:
                report(told)
        except Exception as error:  # noqa: BLE001  whatever went wrong ends this job and no other
            if world > 1:
                _await_worse(rank, error)
            report(_failed(error))
            if world > 1:
                os._exit(ranks.FAILED)  # the others may wait for it in the middle of a step


def _failed(error: Exception) -> jobs.Failed:
    if isinstance(error, errors.AghsanError):
        return jobs.Failed(
            reason=str(error),
            unfit=isinstance(error, errors.Unfit),
            is_other=isinstance(error, errors.OtherTraining),
        )
    reason = f"{type(error).__name__}: {error}"
    trace = traceback.format_exc()[-TRACE_CHARS_MAX:]
    return jobs.Failed(reason=reason, trace=trace, no_room=platforms.is_want_of_room(error))


def _await_worse(rank: int, error: Exception) -> None:
    """Let the process whose failure it was have the last word."""
    if rank > 0:
        traceback.print_exc()
        time.sleep(ranks.FAREWELL_SECONDS)
    elif not isinstance(error, errors.AghsanError):
        # A follower that died breaks the connection; whoever holds it then ends this process.
        time.sleep(ranks.FAREWELL_SECONDS / 4)


if __name__ == "__main__":
    main()
