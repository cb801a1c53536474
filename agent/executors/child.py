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
import traceback
from typing import BinaryIO

import msgspec

from agent.executors import jobs
from core import errors, platforms

TRACE_CHARS_MAX = 4_000
_decode = msgspec.json.Decoder(jobs.Request).decode


class _Inbox:
    """Jobs to do, and the last wish to stop, as a thread reads them from stdin."""

    def __init__(self, stream: BinaryIO) -> None:
        self.jobs: queue.Queue[jobs.Job] = queue.Queue()
        self._stop: jobs.Stop | None = None
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: BinaryIO) -> None:
        for line in stream:
            request = _decode(line)
            if isinstance(request, jobs.Stop):
                self._stop = request
            else:
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

    def report(message: jobs.Report) -> None:
        reports.write(msgspec.json.encode(message) + b"\n")

    inbox = _Inbox(sys.stdin.buffer)
    from agent.executors import training
    from agent.specialists import registry

    device = training.prepare_process()
    registry.preload()
    report(jobs.Warmed(pid=os.getpid(), device=device))
    while True:
        job = inbox.jobs.get()
        report(jobs.Taken(number=job.number))
        try:
            report(training.run(job, report, functools.partial(inbox.stop_of, job)))
        except errors.AghsanError as error:
            report(jobs.Failed(reason=str(error)))
        except Exception as error:  # noqa: BLE001  whatever went wrong ends this job and no other
            reason = f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()[-TRACE_CHARS_MAX:]
            no_room = platforms.is_want_of_room(error)
            report(jobs.Failed(reason=reason, trace=trace, no_room=no_room))


if __name__ == "__main__":
    main()
