"""Lines to stdout that never hold their speaker up.

A paused terminal (Ctrl-S) or a pipe that nobody reads blocks whoever writes to it: here that is a
thread of its own, and what waits for it is bounded. What no longer fits is dropped, counted, and
the count is said once lines go out again.
"""

import atexit
import threading
import time
from collections.abc import Callable

WAITING_CHARS_MAX = 256 * 1024
FINISH_SECONDS_MAX = 0.4
"""How long the end of the process waits for what is still to be said."""
FULL_PAUSE_SECONDS = 0.05

Write = Callable[[bytes], int | None]
"""Writes some of the bytes and says how many (None: no room now), as raw files do."""


class Voice:
    """Says lines through a raw file, in order, from a thread of its own."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._chars = 0
        self._dropped = 0
        self._is_idle = True
        self._is_gone = False
        threading.Thread(target=self._run, name="voice", daemon=True).start()
        atexit.register(self.finish)

    def say(self, line: str, *, must: bool = False) -> None:
        """Have a line written; dropped where too much waits, unless it `must` be said."""
        with self._changed:
            if self._is_gone:
                return
            if self._chars + len(line) > WAITING_CHARS_MAX and not must:
                self._dropped += 1
                return
            if self._dropped:
                self._waiting.append(self._loss())
            self._waiting.append(line + "\n")
            self._chars += len(line) + 1
            self._is_idle = False
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait, for a bounded time, until all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle, FINISH_SECONDS_MAX)

    def _loss(self) -> str:
        count, self._dropped = self._dropped, 0
        return f"… {count} lines were not shown: nobody took them in time\n"

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._is_idle = False
                if self._dropped:
                    self._waiting.append(self._loss())
                text = "".join(self._waiting)
                self._waiting, self._chars = [], 0
            if not self._written(text.encode("utf-8", "backslashreplace")):
                return

    def _written(self, data: bytes) -> bool:
        """Whether there is still somebody to write to."""
        try:
            while data:
                count = self._write(data)
                if count is None:  # a file that others made non-blocking
                    time.sleep(FULL_PAUSE_SECONDS)
                data = data[count or 0 :]
        except (OSError, ValueError):  # nobody reads any more, or the file is closed
            with self._changed:
                self._is_gone = self._is_idle = True
                self._waiting, self._chars = [], 0
                self._changed.notify_all()
            return False
        return True
