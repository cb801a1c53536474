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

from cli import child, options
from core import errors, platforms
from core.accounts import Authority
from core.nats_server import EmbeddedServer, require_room
from core.replay import prepare_start, require_keys

AGENTS_STOP_SECONDS = 7.0
CONTROL_STOP_SECONDS = 8.0
SERVER_STOP_SECONDS = 9.5
"""Counted from the signal: by then agents and judge, then control, then nats-server have ended, or
are ended."""
READY_SECONDS_MAX = 180.0
BACKOFF_SECONDS_MIN = 0.25
BACKOFF_SECONDS_MAX = 10.0
STEADY_SECONDS = 10.0
"""As long as the longest pause: what ends again and again is started no more often than that."""
AGENT = "agent-"


@dataclass
class Restarts:
    """When something that ends is started again: after a pause that doubles each time, until it
    once stays for a steady while. Times are seconds of one clock."""

    started: float = 0.0
    ends: int = 0
    due: float | None = None

    def begin(self, now: float) -> None:
        """It is being started."""
        self.started, self.due = now, None

    def end(self, now: float) -> float:
        """It ended, or did not start; the seconds until it is due again."""
        if now - self.started > STEADY_SECONDS:
            self.ends = 0
        pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(self.ends, 32))
        self.ends += 1
        self.due = now + pause
        return pause

    def is_due(self, now: float) -> bool:
        """Whether its pause is over."""
        return self.due is not None and now >= self.due


@dataclass
class Member:
    """One child process, how it is started, and how often it ended lately."""

    name: str
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0
    restarts: Restarts = field(default_factory=Restarts)
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
        self._facts_written = True
        self._asked = 0.0
        self._server_restarts = Restarts(started=time.monotonic())
        self.http = ""
        self.feeds = True

    def on_signal(self, *_: object) -> None:
        """Ask for the end; a second time is no faster, the first is bounded already."""
        self._asked = self._asked or time.monotonic()
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
        member.restarts.begin(time.monotonic())
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
            if member.restarts.ends > 3:
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
        look = ["nats", "--server", self._server.url, "--creds", str(inspector), "stream", "ls"]
        child.say(f"  look inside: {platforms.shell_line(look)}")

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
        if not self._facts_written:
            self._write_ready()
        for member in self._members.values():
            if member.restarts.is_due(time.monotonic()):
                self._start(member)
                self._write_ready()

    def _line(self, member: Member, text: str) -> None:
        told = child.heard(text)
        if told is None:
            child.say(text)
            return
        member.pid = int(str(told["pid"]))
        member.told.update(told)
        if told["kind"] == "ready":
            # That an agent is back is told by its joining.
            if member.restarts.ends and not member.ready and not member.name.startswith(AGENT):
                _tell(f"{member.name} is back")
            member.ready = True
            self._write_ready()
        elif told["kind"] == "restart_server":
            self._restart_server()
        elif told["kind"] == "fatal":
            raise errors.AghsanError(str(told.get("detail", "a member cannot go on")))

    def _exited(self, member: Member, pid: int) -> None:
        if member.process is None or member.process.pid != pid:
            return
        code = member.process.returncode
        if code == child.REFUSED:
            _tell(f"{member.name} was refused and is not started again: {_tail(member.log, 1)}")
            member.ready = True
            return
        pause = member.restarts.end(time.monotonic())
        if not self._stopping:
            _tell(f"{member.name} ended ({_exit_words(code)}); restarting in {pause:g} s")

    def _restart_server(self) -> None:
        """Have nats-server write again: a stream that met a full disk never does by itself."""
        if not self._stopping and self._server.poll() is None:
            _tell("there is room again on a disk that was full: nats-server is restarted")
            self._server.stop()

    def _revive_server(self) -> None:
        code = self._server.poll()
        if code is None:
            return
        restarts = self._server_restarts
        if restarts.due is None:
            pause = restarts.end(time.monotonic())
            _tell(f"nats-server ended ({_exit_words(code)}); restarting in {pause:g} s")
        elif restarts.is_due(time.monotonic()):
            restarts.begin(time.monotonic())
            try:
                self._server.start()
            except (errors.AghsanError, OSError) as error:
                pause = restarts.end(time.monotonic())
                _tell(f"nats-server did not start, again in {pause:g} s: {error}")
            else:
                _tell("nats-server is back")
                self._write_ready()

    def _write_ready(self) -> None:
        control = self._members.get("gateway")
        if control is None or not control.ready:
            return
        self.http = str(control.told["http"])
        pids = {"nats-server": self._server.pid}
        if self.feeds:
            pids["orchestrator"] = control.pid  # it feeds within the control process
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
        try:
            platforms.write_atomically(self._data / "run.json", text)
            if self._ready_file is not None and self._complete:
                platforms.write_atomically(self._ready_file, text)
        except OSError as error:  # a full disk ends nobody; it is written again once there is room
            if self._facts_written:
                _tell(f"run.json and the ready file cannot be written yet: {error}")
            self._facts_written = False
        else:
            self._facts_written = True

    def stop(self) -> None:
        """End everything in order: agents, judge, control, nats-server."""
        _tell("stopping")
        self.on_signal()
        agents = [m for m in self._members.values() if m.name.startswith(AGENT)]
        self._end(agents, self._asked + AGENTS_STOP_SECONDS)
        # A judge that takes long must leave the control process its time for a last seal.
        for name, seconds in (("judge", AGENTS_STOP_SECONDS), ("gateway", CONTROL_STOP_SECONDS)):
            if name in self._members:
                self._end([self._members[name]], self._asked + seconds)
        self._server.stop(max(0.5, self._asked + SERVER_STOP_SECONDS - time.monotonic()))
        with contextlib.suppress(OSError):
            (self._data / "run.json").unlink()

    def _end(self, members: list[Member], deadline: float) -> None:
        """Ask some members to stop, all at once, and end what has not by the deadline."""
        running = [
            (member, member.process)
            for member in members
            if member.process is not None and member.process.poll() is None
        ]
        for _, process in running:
            platforms.ask_to_stop(process)
        for member, process in running:
            try:
                process.wait(max(0.2, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _tell(f"{member.name} did not stop in time and is ended")
                process.kill()
                process.wait()


def _tell(words: str) -> None:
    """Say what became of a part, and when, as lines of events do."""
    child.say(f"{time.strftime('%H:%M:%S')}  {words}")


def _exit_words(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])


def default_data() -> Path:
    """Where `up` keeps its data unless told otherwise."""
    return Path(os.environ.get("AGHSAN_DATA") or "data")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--data",
    default=default_data,
    show_default="$AGHSAN_DATA or ./data",
    type=options.Folder(),
    help="Directory of all durable data.",
)
@click.option(
    "--agents",
    default=1,
    show_default=True,
    type=click.IntRange(0, 64),
    help="Workers on this machine.",
)
@click.option(
    "--train-sec",
    default=30.0,
    show_default=True,
    type=options.Number(0.2, 86_400),
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
@options.worker_timeout
@options.http_lease
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Go on with a log that lost its end, or was put back to an older day.",
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
    accept_loss: bool,
    new_judge_key: bool,
    ready_file: Path | None,
) -> None:
    """Run everything on this machine: server, control plane, judge and local agents."""
    platforms.require_free_port(host, port)
    data = made(data)
    with platforms.DataLock(data / "lock"):
        require_keys(data)
        authority = Authority.load_or_create(data / "keys")
        authority.write_credentials(data / "creds")
        prepare_start(data, authority, accept_loss=accept_loss)
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
                accept_loss=accept_loss,
                new_judge_key=new_judge_key,
            )
            supervisor.announce()
            supervisor.run()
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.stop()


def made(data: Path) -> Path:
    """The data directory, there and with room. Raises DataDirectoryError."""
    try:
        data = data.resolve()
        str(data).encode()
        data.mkdir(parents=True, exist_ok=True)
        require_room(data)
    except (OSError, RuntimeError, UnicodeError) as error:  # RuntimeError: links in a circle
        named = not isinstance(error, UnicodeError)
        why = (getattr(error, "strerror", "") or error) if named else "its name is no UTF-8 text"
        raise errors.DataDirectoryError(
            f"The data directory {data} cannot be used: {why}. Name one by --data that this user"
            " may make and write to."
        ) from error
    return data


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
    accept_loss: bool,
    new_judge_key: bool,
) -> None:
    supervisor.feeds = min_queue > 0
    control = supervisor.add(
        "gateway",
        "gateway",
        "--child",
        *("--nats", server.url, "--data", str(data)),
        *("--host", host, "--port", str(port)),
        *("--min-queue", str(min_queue)),
        *("--worker-timeout-sec", str(worker_timeout_sec)),
        *("--http-lease-sec", str(http_lease_sec)),
        *(["--accept-loss"] if accept_loss else []),
    )
    supervisor.wait_ready(control)
    if accept_loss:
        control.argv.remove("--accept-loss")  # this one only
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
            f"{AGENT}{number}",
            "agent",
            "--child",
            "--direct",
            *("--api", http, "--worker-id", f"{AGENT}{number}"),
            *("--train-sec", str(train_sec)),
            *("--directory", str(data / "agents" / f"{AGENT}{number}")),
        )
        for number in range(1, agents + 1)
    ]
    for member in (judge, *members):
        supervisor.wait_ready(member)
    if new_judge_key:
        # Once is enough: a judge that is started again goes on with the key it has.
        judge.argv.remove("--new-key")
