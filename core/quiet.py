"""Quiet on a machine that also trains, while latency is measured there.

Judge and agents of one machine share a folder. Who wants quiet puts a file `ID.hold` there, which
says for how long at most, and takes it away afterwards. Each agent has a file `PID.agent`; it looks
for holds twenty times a second, suspends its executors, and writes into its file which hold it
heeds. No clock is shared: an agent counts from when it saw a hold first. Whatever becomes of the
judge, a hold is over after SECONDS_MAX, heeded once, and taken away by whoever heeded it to its
end; and after a pause executors run for as long before the next one as it lasted.
"""

import contextlib
import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from core import platforms

log = logging.getLogger(__name__)

SECONDS_MAX = 3.0
"""Of one pause."""
LOOK_SECONDS = 0.05
HEEDED_SECONDS_MAX = 0.3
"""How long it is waited for agents that do not heed a hold."""
HOLD, AGENT = ".hold", ".agent"


class Quiet:
    """Asks the agents of this machine for quiet, by the folder that they share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rested = -math.inf
        """From when on executors have run as long as they were paused."""

    @contextlib.contextmanager
    def hold(self, seconds: float = SECONDS_MAX) -> Iterator[None]:
        """Ask for quiet, wait shortly until it is, and let everybody go on at the end.

        Where the folder cannot be written to it is not quiet, and the log says so.
        """
        time.sleep(min(SECONDS_MAX, max(0.0, self._rested - time.monotonic())))
        hold = self._folder / f"{uuid.uuid4().hex}{HOLD}"
        began = time.monotonic()
        try:
            if self._ask(hold, min(seconds, SECONDS_MAX)):
                self._wait(hold.stem)
            yield
        finally:
            try:
                hold.unlink(missing_ok=True)
            except OSError as error:
                log.warning("a hold stays until it is over: %s", error, extra={"action": "quiet"})
            now = time.monotonic()
            self._rested = now + min(SECONDS_MAX, now - began)

    def _ask(self, hold: Path, seconds: float) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(hold, json.dumps({"seconds": seconds}))
        except OSError as error:
            log.warning("measured beside trainings: %s", error, extra={"action": "quiet"})
            return False
        return True

    def _wait(self, hold: str) -> None:
        ends = time.monotonic() + HEEDED_SECONDS_MAX
        while time.monotonic() < ends:
            agents = [path for path in self._folder.glob(f"*{AGENT}") if _is_alive(path)]
            if all(_read(path) == hold for path in agents):
                return
            time.sleep(LOOK_SECONDS / 10)
        log.info("not all agents here are quiet", extra={"action": "quiet"})


def of(folder: Path | None) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """How to make the machine quiet; without a folder there is nobody to be."""
    return contextlib.nullcontext if folder is None else Quiet(folder).hold


class Heeder:
    """An agent's side: looks for holds in a thread of its own, and pauses and resumes.

    `pause` is called again and again during a hold, since a process may start meanwhile; `resume`
    at its end, and at the agent's.
    """

    def __init__(self, folder: Path, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._folder, self._pause, self._resume = folder, pause, resume
        self._sign = folder / f"{os.getpid()}{AGENT}"
        self._closing = threading.Event()
        self._heeded: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look. Raises OSError where the folder cannot be written to."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(f"*{AGENT}"):
            if not _is_alive(path):
                path.unlink(missing_ok=True)
        _write(self._sign, "")
        self._thread.start()

    def close(self) -> None:
        """Resume at once, if anything is paused, and heed no hold any more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_MAX)
        with contextlib.suppress(OSError):  # whoever finds it sees that nobody is behind it
            self._sign.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            try:
                paused = self._heed_any()
            except (OSError, psutil.Error) as error:
                log.warning("no hold can be heeded: %s", error, extra={"action": "quiet"})
                paused = SECONDS_MAX
            self._closing.wait(paused)

    def _heed_any(self) -> float:
        """Pause for as long as a hold that is new stands; for how long that was."""
        standing = {path.stem: path for path in self._folder.glob(f"*{HOLD}")}
        self._heeded &= standing.keys()
        new = next((hold for hold in standing if hold not in self._heeded), None)
        if new is None:
            return 0.0
        self._heeded |= standing.keys()
        return self._heed(standing[new])

    def _heed(self, hold: Path) -> float:
        began = time.monotonic()
        ends = began + _seconds(_read(hold))
        try:
            self._pause()
            _write(self._sign, hold.stem)
            while time.monotonic() < ends and hold.exists() and not self._closing.is_set():
                self._pause()
                self._closing.wait(min(LOOK_SECONDS / 5, max(0.0, ends - time.monotonic())))
        finally:
            self._resume()
        if time.monotonic() >= ends:
            hold.unlink(missing_ok=True)  # else each agent that starts would heed a dead judge's
        _write(self._sign, "")
        return time.monotonic() - began


def _write(path: Path, text: str) -> None:
    """So that nobody reads half of it; nothing of it needs to outlive the machine."""
    written = path.with_suffix(".tmp")
    written.write_text(text)
    platforms.replace(written, path)


def _read(path: Path) -> str:
    """What stands in a file; nothing where it is gone, or, on Windows, just being replaced."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _seconds(text: str) -> float:
    """How long a hold may last; one that says nothing sensible is over at once."""
    try:
        seconds = float(json.loads(text)["seconds"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    return min(SECONDS_MAX, seconds) if seconds > 0 else 0.0


def _is_alive(path: Path) -> bool:
    return path.stem.isdigit() and psutil.pid_exists(int(path.stem))
