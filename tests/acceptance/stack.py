"""`aghsan up` as its users have it: real processes, asked over HTTP, killed and stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

PREFIX = "/api/v1/network"
READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 10.0

T = TypeVar("T")


def aghsan(*args: str | Path, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """One command, run to its end."""
    argv = [sys.executable, "-m", "cli.main", *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)


def until(ask: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = ask()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; last: {found!r}"
        time.sleep(0.05)


class Stack:
    """One `aghsan up` on a data directory; may be started again."""

    def __init__(self, directory: Path, *args: str, data: Path | None = None) -> None:
        self.directory = directory
        self.data = data or directory / "data"
        self._args = args
        self._ready = directory / "ready.json"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> "Stack":
        """Start, and wait until it says that it is ready."""
        self._ready.unlink(missing_ok=True)
        where = ("--port", "0", "--data", str(self.data), "--ready-file", str(self._ready))
        argv = [sys.executable, "-m", "cli.main", "up", *where, *self._args, *more]
        log = (self.directory / "up.log").open("a")
        self._process = subprocess.Popen(
            argv, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        until(self._is_ready, "ready", READY_SECONDS_MAX)
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"up ended:\n{self.words()}"
        return self._ready.exists()

    def words(self) -> str:
        """All that `up` and its children said."""
        logs = [self.directory / "up.log", *sorted((self.data / "logs").glob("*.log"))]
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in logs)

    @property
    def facts(self) -> dict[str, Any]:
        """What the ready file says now."""
        facts = json.loads(self._ready.read_text())
        assert isinstance(facts, dict)
        return facts

    @property
    def http(self) -> str:
        return str(self.facts["http"])

    def pid(self, name: str) -> int:
        """The process that a member runs in now."""
        return int(self.facts["pids"][name])

    def is_alive(self, name: str) -> bool:
        """Whether that process runs, as a child of this very `up`."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid(name))
            return process.ppid() == self._process.pid and process.status() != "zombie"
        return False

    def kill(self, name: str) -> int:
        """Kill a member the hard way; the pid it had."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Keep the supervisor from starting anything again meanwhile; its members go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> tuple[int, float]:
        """Ask for the end; the exit code, and the seconds it took."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=3 * STOP_SECONDS_MAX)
        self._process = None
        return code, time.monotonic() - began

    def kill_up(self) -> None:
        """Kill the supervisor itself."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=3 * STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST with a body; the answer. Raises urllib.error.HTTPError for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.http + PREFIX + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert isinstance(answer, dict)
        return answer

    def patiently(self, path: str) -> dict[str, Any]:
        """GET, `{}` while a part of the server is away."""
        try:
            return self.ask(path)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return {}

    def enqueue(self, node_id: str, **more: Any) -> str:
        """Ask for training; the task's id."""
        answer = self.ask("/training/enqueue", {"topic": "اختبار", "node_id": node_id, **more})
        return str(answer["task"]["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """A task whole, `{}` while the server is away."""
        found: dict[str, Any] = self.patiently(f"/tasks/{task_id}").get("task", {})
        return found

    def completed(self, task_id: str, seconds: float = 90.0) -> dict[str, Any]:
        """The task, once it has its result."""

        def is_completed() -> dict[str, Any]:
            task = self.task(task_id)
            assert task.get("status") not in ("failed", "cancelled"), task
            return task if task.get("status") == "completed" else {}

        return until(is_completed, f"{task_id} completed", seconds)

    def decided(self, node_id: str, seconds: float = 90.0) -> dict[str, Any]:
        """The node's first round, once it is decided."""

        def is_decided() -> dict[str, Any]:
            rounds = self.patiently(f"/nodes/{node_id}").get("node", {}).get("rounds", [])
            decided = [one for one in rounds if one["status"] == "decided"]
            return self.ask(f"/rounds/{decided[0]['round_id']}")["round"] if decided else {}

        return until(is_decided, f"a round of {node_id} decided", seconds)
