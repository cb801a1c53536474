"""`aghsan up`: nats-server, control, judge and agents, kept alive together and ended together."""

import contextlib
import errno
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
from typing import Any, NamedTuple

import click

from cli import child, options, status
from cli.client import Client
from core import errors, platforms, seals
from core.accounts import Authority
from core.nats_server import EmbeddedServer, require_room
from core.replay import prepare_start, require_keys
from core.stores import bind, require_bindable
from core.topology import MIB

AGENTS_STOP_SECONDS = 7.0
CONTROL_STOP_SECONDS = 8.0
SERVER_STOP_SECONDS = 9.5
"""Counted from the signal: by then agents and judge, then control, then nats-server have ended, or
are ended."""
READY_SECONDS_MAX = 180.0
CHECK_SAID_SECONDS = 3.0
FIGURES_SECONDS_MAX = 2.0
BACKOFF_SECONDS_MIN = 0.25
BACKOFF_SECONDS_MAX = 10.0
STEADY_SECONDS = 10.0
"""As long as the longest pause: what ends again and again is started no more often than that."""
LINES_MAX = 1_000
"""What waits to be shown; a member that says more waits itself, and leaves out what it must not."""
LINE_BYTES_MAX = 16 * 1024
AGENT = "agent-"
RUN_FILE = "run.json"
"""Gone after every stop."""


class Settings(NamedTuple):
    """What was asked for on the command line, of the members."""

    data: Path
    host: str
    port: int
    agents: int
    train_sec: float
    min_queue: int
    worker_timeout_sec: float
    http_lease_sec: float
    no_sweep: bool
    sweep_after_hours: float
    quota_gib: float
    worker_quota_gib: float
    new_judge_key: bool
    no_quiet: bool
    price_per_hour: float | None


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
    is_refused: bool = False
    """It is not started again."""
    told: dict[str, Any] = field(default_factory=dict)


class Supervisor:
    """Starts the members in order, restarts what dies, and stops them in reverse."""

    def __init__(
        self,
        data: Path,
        authority: Authority,
        server: EmbeddedServer,
        ready_file: Path | None,
        *,
        accept_loss: bool = False,
    ) -> None:
        self._data = data
        self._authority = authority
        self._was_cut = (data / RUN_FILE).exists()
        self._server = server
        self._ready_file = ready_file
        self._members: dict[str, Member] = {}
        self._events: queue.Queue[tuple[str, str, str]] = queue.Queue(LINES_MAX)
        self._stopping = self._complete = False
        self._facts_written = True
        self._has_run_file = False
        """Of its own: that of a run that broke off tells the next start so."""
        self._asked = 0.0
        self._said = time.monotonic()
        self._server_restarts = Restarts(started=time.monotonic())
        self.http = ""
        self.say = child.say
        self.feeds = True
        self.accept_loss = accept_loss
        """Until the loss is written down: what is missing then is another one."""

    def on_signal(self, *_: object) -> None:
        """Ask for the end; a second time is no faster, the first is bounded already."""
        self._asked = self._asked or time.monotonic()
        self._stopping = True

    def start_server(self) -> None:
        """Start nats-server on a log that is whole.

        Raises LogDamaged where it is not, and as `EmbeddedServer.start` does.
        """
        self.check_stored()
        self._server.start()

    def check_stored(self) -> None:
        """Refuse a log that is not whole, or mend it where that is accepted. Raises LogDamaged,
        DataDirectoryError."""
        prepare_start(self._data, self._authority, self._say_checked, accept_loss=self.accept_loss)

    def _say_checked(self, read: int, total: int) -> None:
        """Tell how far the check of what is stored has come; raises KeyboardInterrupt when asked to
        end."""
        if self._stopping:
            raise KeyboardInterrupt
        if read < total and time.monotonic() - self._said >= CHECK_SAID_SECONDS:
            self._said = time.monotonic()
            self.say(f"checking what is stored: {read // MIB:,} of {total // MIB:,} MiB")

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
        """Start a member; later, where this machine has no room for one more process now."""
        member.restarts.begin(time.monotonic())
        try:
            member.process = process = self._spawn(member)
        except OSError as error:
            pause = member.restarts.end(time.monotonic())
            self._tell(f"{member.name} did not start, again in {pause:g} s: {error}")
        else:
            member.pid, member.ready = process.pid, False

    def _spawn(self, member: Member) -> subprocess.Popen[bytes]:
        """A member's process, with somebody who listens to it. Raises OSError."""
        with member.log.open("ab") as log:
            process = platforms.spawn(
                member.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        try:
            threading.Thread(target=self._listen, args=(member, process), daemon=True).start()
        except RuntimeError as error:  # threads are counted among processes
            with process:
                process.kill()
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        return process

    def _listen(self, member: Member, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "members have a stdout to listen to"
        while raw := process.stdout.readline(LINE_BYTES_MAX):
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
                    f"{member.name} keeps ending or cannot be started; its words are in "
                    f"{member.log}:\n{_tail(member.log)}"
                )
            self._step(0.5)

    def announce(self) -> None:
        """Say that everything is up. From now on the ready file tells where it is."""
        self._complete = True
        self._write_ready()
        if self._was_cut:
            self._tell(
                f"the last run was not stopped, it broke off; here again: {_figures(self.http)}"
            )
        if why := seals.why_no_second_anchor():
            self.say(
                f"the log's anchor is kept in the data directory alone, since {why}; a directory "
                "that is put back to an older day will not be noticed"
            )
        self.say(f"ready {self.http}")
        inspector = self._data / "creds" / "inspect-control.creds"
        look = ["nats", "--server", self._server.url, "--creds", str(inspector), "stream", "ls"]
        self.say(f"  look inside: {platforms.shell_line(look)}")

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
            self.say(text)
            return
        member.pid = int(str(told["pid"]))
        member.told.update(told)
        if told["kind"] == "ready":
            # That an agent is back is told by its joining.
            if member.restarts.ends and not member.ready and not member.name.startswith(AGENT):
                self._tell(f"{member.name} is back")
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
            self._tell(
                f"{member.name} was refused and is not started again: {_tail(member.log, 1)}"
            )
            member.ready = member.is_refused = True
            self._tell_where_no_agent_is_left()
            return
        pause = member.restarts.end(time.monotonic())
        if not self._stopping:
            self._tell(f"{member.name} ended ({_exit_words(code)}); restarting in {pause:g} s")

    def _tell_where_no_agent_is_left(self) -> None:
        agents = [one for one in self._members.values() if one.name.startswith(AGENT)]
        if agents and all(one.is_refused for one in agents):
            attach = ["aghsan", "agent", "--api", self.http, "--worker-id", "NAME"]
            line = platforms.shell_line(attach)
            self._tell(f"no agent is left here; attach one under another id: {line}")

    def _restart_server(self) -> None:
        """Have nats-server write again: a stream that met a full disk never does by itself."""
        if not self._stopping and self._server.poll() is None:
            self._tell("there is room again on a disk that was full: nats-server is restarted")
            self._server.stop()

    def _revive_server(self) -> None:
        code = self._server.poll()
        if code is None:
            return
        restarts = self._server_restarts
        if restarts.due is None:
            pause = restarts.end(time.monotonic())
            self._tell(f"nats-server ended ({_exit_words(code)}); restarting in {pause:g} s")
        elif restarts.is_due(time.monotonic()):
            restarts.begin(time.monotonic())
            try:
                self.start_server()
            except errors.LogDamaged:
                raise  # no pause mends it
            except (errors.AghsanError, OSError) as error:
                pause = restarts.end(time.monotonic())
                self._tell(f"nats-server did not start, again in {pause:g} s: {error}")
            else:
                self._tell("nats-server is back")
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
            platforms.write_atomically(self._data / RUN_FILE, text)
            self._has_run_file = True
            if self._ready_file is not None and self._complete:
                platforms.write_atomically(self._ready_file, text)
        except OSError as error:  # a full disk ends nobody; it is written again once there is room
            if self._facts_written:
                self._tell(f"run.json and the ready file cannot be written yet: {error}")
            self._facts_written = False
        else:
            self._facts_written = True

    def _tell(self, words: str) -> None:
        """Say what became of a part, and when, as lines of events do."""
        self.say(f"{time.strftime('%H:%M:%S')}  {words}")

    def stop(self) -> None:
        """End everything in order: agents, judge, control, nats-server."""
        if self._complete or self._asked:  # else what was in the way of a start is said, and enough
            self._tell("stopping")
        self.on_signal()
        agents = [m for m in self._members.values() if m.name.startswith(AGENT)]
        self._end(agents, self._asked + AGENTS_STOP_SECONDS)
        # A judge that takes long must leave the control process its time for a last seal.
        for name, seconds in (("judge", AGENTS_STOP_SECONDS), ("gateway", CONTROL_STOP_SECONDS)):
            if name in self._members:
                self._end([self._members[name]], self._asked + seconds)
        self._server.stop(max(0.5, self._asked + SERVER_STOP_SECONDS - time.monotonic()))
        if self._has_run_file:
            with contextlib.suppress(OSError):
                (self._data / RUN_FILE).unlink()

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
                self._tell(f"{member.name} did not stop in time and is ended")
                process.kill()
                process.wait()


def _figures(http: str) -> str:
    """What a server holds, as `aghsan status` says it; why not, where it does not answer."""
    try:
        return status.line(Client(http, FIGURES_SECONDS_MAX).get("/status"))
    except errors.AghsanError as error:
        return str(error)


def _exit_words(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _tail(path: Path, lines: int = 15) -> str:
    words = path.read_text("utf-8", "replace") if path.exists() else ""
    return "\n".join(words.splitlines()[-lines:])


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
    help="Wall seconds per task that names no budget.",
)
@click.option(
    "--min-queue",
    default=10,
    show_default=True,
    type=click.IntRange(0, 100_000),
    help="Queued tasks the orchestrator keeps.",
)
@options.price
@click.option("--no-orchestrator", is_flag=True, help="Do not feed the queue.")
@options.worker_timeout
@options.http_lease
@options.sweeping
@options.quotas
@options.artifacts
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Go on with a log that lost its end, was damaged, or was put back to an older day.",
)
@click.option(
    "--new-judge-key",
    is_flag=True,
    help="The judge's key is lost: make a new one, and end void the rounds that only the old one "
    "could judge.",
)
@click.option(
    "--no-quiet",
    is_flag=True,
    help="Trainings go on while the judge measures latency; else they stand still for it, for at "
    "most 3 s for a candidate.",
)
@click.option(
    "--ready-file",
    type=options.File(),
    help="Written as JSON when everything is up: addresses, process ids, credentials.",
)
@click.option(
    "--plain", is_flag=True, help="Lines alone, as into a pipe, on a terminal that could show more."
)
def up(
    host: str,
    port: int,
    data: Path,
    agents: int,
    train_sec: float,
    min_queue: int,
    price_per_hour: float | None,
    no_orchestrator: bool,
    worker_timeout_sec: float,
    http_lease_sec: float,
    no_sweep: bool,
    sweep_after_hours: float,
    quota_gib: float,
    worker_quota_gib: float,
    artifacts: str,
    accept_loss: bool,
    new_judge_key: bool,
    no_quiet: bool,
    ready_file: Path | None,
    plain: bool,
) -> None:
    """Run everything on this machine: server, control plane, judge and local agents."""
    platforms.require_free_port(host, port)
    data = options.made(data, "The data directory", "Name one by --data")
    asked = Settings(
        data=data,
        host=host,
        port=port,
        agents=agents,
        train_sec=train_sec,
        min_queue=0 if no_orchestrator else min_queue,
        worker_timeout_sec=worker_timeout_sec,
        http_lease_sec=http_lease_sec,
        no_sweep=no_sweep,
        sweep_after_hours=sweep_after_hours,
        quota_gib=quota_gib,
        worker_quota_gib=worker_quota_gib,
        new_judge_key=new_judge_key,
        no_quiet=no_quiet,
        price_per_hour=price_per_hour,
    )
    require_room(data)
    with platforms.DataLock(data / "lock", signs=False) as lock:
        require_keys(data)
        place = require_bindable(data, artifacts)
        authority = Authority.load_or_create(data / "keys")
        server = EmbeddedServer(data, authority)
        supervisor = Supervisor(data, authority, server, ready_file, accept_loss=accept_loss)
        signal.signal(signal.SIGINT, supervisor.on_signal)
        signal.signal(signal.SIGTERM, supervisor.on_signal)
        try:
            supervisor.check_stored()  # what is refused stays as it is, to the last file
        except KeyboardInterrupt:
            return
        lock.sign()
        bind(data, artifacts)
        authority.write_credentials(data / "creds")
        try:
            server.start()
            _start_members(
                supervisor,
                server,
                asked,
                artifacts=place,
            )
            supervisor.announce()
            _run(supervisor, plain=plain)
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.stop()


def _run(supervisor: Supervisor, *, plain: bool) -> None:
    """Keep everything alive until asked to stop, and show how it goes."""
    from cli import display

    terminal = None if plain else display.console()
    with display.shown(terminal, supervisor.http) as shown:
        if shown is not None:
            supervisor.say = shown.say
        supervisor.run()


def _start_members(
    supervisor: Supervisor, server: EmbeddedServer, asked: Settings, *, artifacts: str
) -> None:
    """Start control, then judge and agents, and wait until all are ready."""
    supervisor.feeds = asked.min_queue > 0
    control = _start_control(supervisor, _control_line(server.url, asked, artifacts))
    http = str(control.told["http"])
    # A restarted control process must answer where it answered before.
    control.argv[control.argv.index("--port") + 1] = http.rpartition(":")[2]
    judge = supervisor.add("judge", *_judge_line(server.url, asked, artifacts))
    names = [f"{AGENT}{number}" for number in range(1, asked.agents + 1)]
    agents = [supervisor.add(name, *_agent_line(name, http, asked)) for name in names]
    for member in (judge, *agents):
        supervisor.wait_ready(member)
    if asked.new_judge_key:
        # Once is enough: a judge that is started again goes on with the key it has.
        judge.argv.remove("--new-key")


def _start_control(supervisor: Supervisor, line: list[str]) -> Member:
    """Start control and wait until it is ready; a loss is accepted this once."""
    control = supervisor.add(
        "gateway", *line, *(["--accept-loss"] if supervisor.accept_loss else [])
    )
    supervisor.wait_ready(control)
    if supervisor.accept_loss:
        supervisor.accept_loss = False
        control.argv.remove("--accept-loss")
    return control


def _control_line(nats: str, asked: Settings, artifacts: str) -> list[str]:
    return [
        *("gateway", "--child"),
        *("--nats", nats, "--data", str(asked.data)),
        *("--host", asked.host, "--port", str(asked.port)),
        *("--min-queue", str(asked.min_queue), "--train-sec", str(asked.train_sec)),
        *("--worker-timeout-sec", str(asked.worker_timeout_sec)),
        *("--http-lease-sec", str(asked.http_lease_sec)),
        *("--sweep-after-hours", str(asked.sweep_after_hours)),
        *("--quota-gib", str(asked.quota_gib)),
        *("--worker-quota-gib", str(asked.worker_quota_gib)),
        *("--artifacts", artifacts),
        *(["--no-sweep"] if asked.no_sweep else []),
    ]


def _judge_line(nats: str, asked: Settings, artifacts: str) -> list[str]:
    return [
        *("judge", "--child"),
        *("--nats", nats, "--judge-id", "judge"),
        *("--creds", str(asked.data / "creds" / "judge.creds")),
        *("--fleet-creds", str(asked.data / "creds" / "judge-fleet.creds")),
        *("--key", str(asked.data / "judge" / "key"), "--artifacts", artifacts),
        *(["--new-key"] if asked.new_judge_key else []),
        *_quiet(asked),
    ]


def _quiet(asked: Settings) -> list[str]:
    """Where judge and agents agree on who is quiet; nowhere, if nobody is to be."""
    return [] if asked.no_quiet else ["--quiet-folder", str(asked.data / "quiet")]


def _agent_line(name: str, http: str, asked: Settings) -> list[str]:
    from agent import limits

    price = asked.price_per_hour
    return [
        *("agent", "--child", "--direct"),
        *("--api", http, "--worker-id", name),
        *("--train-sec", str(asked.train_sec)),
        *("--threads", str(max(1, limits.cores() // asked.agents))),
        *("--directory", str(asked.data / "agents" / name)),
        *("--bases", str(asked.data / "agents" / ".bases")),
        *_quiet(asked),
        *([] if price is None else ["--price-per-hour", str(price)]),
    ]
