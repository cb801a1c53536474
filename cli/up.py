"""`aghsan up`: nats-server, control, judge and agents, kept alive together and ended together."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cli import child
from core import errors, platforms
from core.accounts import Authority
from core.nats_server import EmbeddedServer

STOP_SECONDS_MAX = 9.0
READY_SECONDS_MAX = 180.0
BACKOFF_SECONDS_MAX = 10.0
STEADY_SECONDS = 60.0


@dataclass
class Member:
    """One child process, how it is started, and how often it died lately."""

    name: str
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0
    started: float = 0.0
    deaths: int = 0
    restart_at: float = 0.0
    ready: bool = False
    told: dict[str, Any] = field(default_factory=dict)


class Supervisor:
    """Starts the members in order, restarts what dies, and stops them in reverse."""

    def __init__(self, data: Path, server: EmbeddedServer, ready_file: Path | None) -> None:
        self._data = data
        self._server = server
        self._ready_file = ready_file
        self._members: dict[str, Member] = {}
        self._events: queue.Queue[tuple[str, str, str]] = queue.Queue(maxsize=10_000)
        self._stopping = self._complete = False
        self.http = ""

    def on_signal(self, *_: object) -> None:
        """Ask for the end; a second time is no faster, the first is bounded already."""
        self._stopping = True

    def add(self, name: str, *argv: str) -> Member:
        """Start one more member."""
        log = self._data / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "cli.main", *argv]
        member = Member(name, command, log)
        self._members[name] = member
        self._start(member)
        return member

    def _start(self, member: Member) -> None:
        with member.log.open("ab") as log:
            process = platforms.spawn(
                member.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        member.process, member.pid, member.ready = process, process.pid, False
        member.started, member.restart_at = time.monotonic(), 0.0
        threading.Thread(target=self._listen, args=(member, process), daemon=True).start()

    def _listen(self, member: Member, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "members have a stdout to listen to"
        for raw in process.stdout:
            self._events.put(("line", member.name, raw.decode("utf-8", "replace").rstrip("\n")))
        process.wait()
        self._events.put(("exit", member.name, str(process.pid)))

    def wait_ready(self, member: Member) -> None:
        """Go on until a member said that it is ready. Raises errors.Unavailable."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not member.ready:
            if self._stopping:
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise errors.Unavailable(
                    f"{member.name} was not ready within {READY_SECONDS_MAX:g} s; "
                    f"its words are in {member.log}"
                )
            if member.deaths > 3:
                raise errors.Unavailable(
                    f"{member.name} keeps ending; its words are in {member.log}:\n"
                    + _tail(member.log)
                )
            self._step(0.5)

    def announce(self) -> None:
        """Say that everything is up. From now on the ready file tells where it is."""
        self._complete = True
        self._write_ready()
        child.say(f"ready {self.http}")
        inspector = self._data / "creds" / "inspect-control.creds"
        child.say(f"  look inside: nats --server {self._server.url} --creds {inspector} stream ls")

    def run(self) -> None:
        """Keep everything alive until asked to stop."""
        while not self._stopping:
            self._step(0.25)

    def _step(self, seconds: float) -> None:
        try:
            kind, name, text = self._events.get(timeout=seconds)
        except queue.Empty:
            kind = name = text = ""
        if kind == "line":
            self._line(self._members[name], text)
        elif kind == "exit":
            self._exited(self._members[name], int(text))
        if self._stopping:
            return
        self._revive_server()
        for member in self._members.values():
            if member.restart_at and time.monotonic() >= member.restart_at:
                self._start(member)
                self._write_ready()

    def _line(self, member: Member, text: str) -> None:
        told = child.heard(text)
        if told is None:
            child.say(text)
            return
        member.pid = int(str(told.get("pid", member.pid)))
        member.told.update(told)
        if told["kind"] == "ready":
            member.ready = True
            self._write_ready()
        elif told["kind"] == "fatal":
            raise errors.AghsanError(str(told.get("detail", "a member cannot go on")))

    def _exited(self, member: Member, pid: int) -> None:
        if member.process is None or member.process.pid != pid:
            return
        code = member.process.returncode
        if code == child.REFUSED:
            child.say(f"{member.name} was refused and is not started again: {_tail(member.log, 1)}")
            member.ready = True
            return
        if time.monotonic() - member.started > STEADY_SECONDS:
            member.deaths = 0
        member.deaths += 1
        pause = min(BACKOFF_SECONDS_MAX, 0.25 * 2 ** (member.deaths - 1))
        member.restart_at = time.monotonic() + pause
        if not self._stopping:
            child.say(f"{member.name} ended ({_exit_words(code)}); restarting in {pause:g} s")

    def _revive_server(self) -> None:
        if self._server.poll() is None:
            return
        child.say("nats-server ended; restarting")
        self._server.start()
        self._write_ready()

    def _write_ready(self) -> None:
        control = self._members.get("gateway")
        if control is None or not control.ready:
            return
        self.http = str(control.told["http"])
        pids = {"nats-server": self._server.pid, "orchestrator": control.pid}
        pids |= {name: member.pid for name, member in self._members.items()}
        creds = self._data / "creds"
        facts = {
            "http": self.http,
            "nats": self._server.url,
            "inspect": {
                "control": {"url": self._server.url, "creds": str(creds / "inspect-control.creds")},
                "fleet": {"url": self._server.url, "creds": str(creds / "inspect-fleet.creds")},
            },
            "pids": pids,
            "data": str(self._data),
        }
        text = json.dumps(facts, ensure_ascii=False, indent=1).encode()
        platforms.write_atomically(self._data / "run.json", text)
        if self._ready_file is not None and self._complete:
            platforms.write_atomically(self._ready_file, text)

    def stop(self) -> None:
        """End everything in order: agents, judge, control, nats-server."""
        child.say("stopping")
        self._stopping = True
        deadline = time.monotonic() + STOP_SECONDS_MAX
        agents = [m for m in self._members.values() if m.name.startswith("agent-")]
        others = [self._members[name] for name in ("judge", "gateway") if name in self._members]
        for group in (agents, *([other] for other in others)):
            for member in group:
                if member.process is not None and member.process.poll() is None:
                    platforms.ask_to_stop(member.process)
            for member in group:
                self._end(member, deadline)
        self._server.stop()
        with contextlib.suppress(OSError):
            (self._data / "run.json").unlink()

    def _end(self, member: Member, deadline: float) -> None:
        process = member.process
        if process is None:
            return
        try:
            process.wait(max(0.5, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.say(f"{member.name} did not stop in time and is ended")
            process.kill()
            process.wait()


def _exit_words(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])


def default_data() -> Path:
    """Where `up` keeps its data unless told otherwise."""
    return Path(os.environ.get("AGHSAN_DATA", "data"))


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--data",
    default=default_data,
    show_default="./data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of all durable data.",
)
@click.option("--agents", default=1, show_default=True, type=click.IntRange(0, 64))
@click.option(
    "--train-sec",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.2, 86_400),
    help="Wall seconds per task.",
)
@click.option(
    "--min-queue",
    default=10,
    show_default=True,
    type=click.IntRange(0, 100_000),
    help="Queued tasks the orchestrator keeps.",
)
@click.option("--no-orchestrator", is_flag=True, help="Do not feed the queue.")
@click.option(
    "--worker-timeout-sec",
    default=90.0,
    show_default=True,
    type=click.FloatRange(1, 86_400),
    help="Silence after which an HTTP worker is offline.",
)
@click.option(
    "--http-lease-sec",
    default=1800.0,
    show_default=True,
    type=click.FloatRange(1, 604_800),
    help="How long an HTTP worker may train in silence.",
)
@click.option(
    "--new-judge-key",
    is_flag=True,
    help="The judge's key is lost: make a new one, and end void the rounds that only the old one "
    "could judge.",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Written as JSON when everything is up: addresses, process ids, credentials.",
)
def up(
    host: str,
    port: int,
    data: Path,
    agents: int,
    train_sec: float,
    min_queue: int,
    no_orchestrator: bool,
    worker_timeout_sec: float,
    http_lease_sec: float,
    new_judge_key: bool,
    ready_file: Path | None,
) -> None:
    """Run everything on this machine: server, control plane, judge and local agents."""
    data = data.resolve()
    platforms.require_free_port(host, port)
    data.mkdir(parents=True, exist_ok=True)
    with platforms.DataLock(data / "lock"):
        authority = Authority.load_or_create(data / "keys")
        authority.write_credentials(data / "creds")
        server = EmbeddedServer(data, authority)
        supervisor = Supervisor(data, server, ready_file)
        signal.signal(signal.SIGINT, supervisor.on_signal)
        signal.signal(signal.SIGTERM, supervisor.on_signal)
        server.start()
        try:
            _start_members(
                supervisor,
                server,
                data,
                host=host,
                port=port,
                agents=agents,
                train_sec=train_sec,
                min_queue=0 if no_orchestrator else min_queue,
                worker_timeout_sec=worker_timeout_sec,
                http_lease_sec=http_lease_sec,
                new_judge_key=new_judge_key,
            )
            supervisor.announce()
            supervisor.run()
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.stop()


def _start_members(
    supervisor: Supervisor,
    server: EmbeddedServer,
    data: Path,
    *,
    host: str,
    port: int,
    agents: int,
    train_sec: float,
    min_queue: int,
    worker_timeout_sec: float,
    http_lease_sec: float,
    new_judge_key: bool,
) -> None:
    control = supervisor.add(
        "gateway",
        "gateway",
        "--child",
        *("--nats", server.url, "--data", str(data)),
        *("--host", host, "--port", str(port)),
        *("--min-queue", str(min_queue)),
        *("--worker-timeout-sec", str(worker_timeout_sec)),
        *("--http-lease-sec", str(http_lease_sec)),
    )
    supervisor.wait_ready(control)
    http = str(control.told["http"])
    # A restarted control process must answer where it answered before.
    control.argv[control.argv.index("--port") + 1] = http.rpartition(":")[2]
    judge = supervisor.add(
        "judge",
        "judge",
        "--child",
        *("--nats", server.url, "--judge-id", "judge"),
        *("--creds", str(data / "creds" / "judge.creds")),
        *("--fleet-creds", str(data / "creds" / "judge-fleet.creds")),
        *("--key", str(data / "judge" / "key")),
        *(["--new-key"] if new_judge_key else []),
    )
    members = [
        supervisor.add(
            f"agent-{number}",
            "agent",
            "--child",
            "--direct",
            *("--api", http, "--worker-id", f"agent-{number}"),
            *("--train-sec", str(train_sec)),
            *("--directory", str(data / "agents" / f"agent-{number}")),
        )
        for number in range(1, agents + 1)
    ]
    for member in (judge, *members):
        supervisor.wait_ready(member)
    if new_judge_key:
        # Once is enough: a judge that is started again goes on with the key it has.
        judge.argv.remove("--new-key")
