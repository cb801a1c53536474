"""How `aghsan up` keeps alive what it started, and what it takes its children's words for."""

import errno
import io
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from cli import child, options, up
from core import errors, nats_server, platforms, replay, seals
from core.accounts import Authority
from core.nats_server import EmbeddedServer

SECONDS_MAX = 30.0


class Server:
    """A nats-server that ended, and starts again only at the third try."""

    url = "nats://127.0.0.1:1"
    pid = 1

    def __init__(self) -> None:
        self.starts = 0
        self.code: int | None = -9
        self.on_start: Callable[[], object] = int

    def poll(self) -> int | None:
        return self.code

    def stop(self, grace_seconds: float = 0.0) -> None:
        self.code = 0

    def start(self) -> None:
        self.starts += 1
        if self.starts < 3:
            raise errors.Unavailable("its port is taken")
        self.code = None
        self.on_start()


def supervised(data: Path, server: Server, ready_file: Path | None = None) -> up.Supervisor:
    authority = Authority.load_or_create(data / "keys")
    return up.Supervisor(data, authority, cast(EmbeddedServer, server), ready_file)


def run(supervisor: up.Supervisor) -> None:
    """Run until it is asked to stop, by the test or else after a while."""
    give_up = threading.Timer(SECONDS_MAX, supervisor.on_signal)
    give_up.start()
    supervisor.run()
    give_up.cancel()


def _without_times(said: io.StringIO) -> list[str]:
    """The lines that were said, each of which begins with when."""
    return [line.partition("  ")[2] for line in said.getvalue().splitlines()]


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_steady_while() -> None:
    restarts = up.Restarts()
    pauses = [restarts.end(1.0) for _ in range(8)]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [restarts.is_due(now) for now in (10.0, 11.0)] == [False, True]
    restarts.begin(11.0)
    assert not restarts.is_due(1e9)
    assert restarts.end(11.0 + up.STEADY_SECONDS) == 10.0
    restarts.begin(100.0)
    assert restarts.end(101.0 + up.STEADY_SECONDS) == 0.25


def test_however_often_something_ends_its_pause_is_a_number() -> None:
    restarts = up.Restarts(ends=100_000)
    assert restarts.end(1.0) == up.BACKOFF_SECONDS_MAX


def test_a_server_that_ended_is_tried_again_with_longer_pauses_and_a_line_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(up, "BACKOFF_SECONDS_MIN", 0.01)
    server = Server()
    supervisor = supervised(tmp_path, server)
    server.on_start = supervisor.on_signal
    run(supervisor)
    assert _without_times(said) == [
        "nats-server ended (SIGKILL); restarting in 0.01 s",
        "nats-server did not start, again in 0.02 s: its port is taken",
        "nats-server did not start, again in 0.04 s: its port is taken",
        "nats-server is back",
    ]


def test_a_log_that_was_cut_while_its_server_was_away_is_refused_before_one_starts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(up, "BACKOFF_SECONDS_MIN", 0.01)
    server = Server()
    supervisor = supervised(tmp_path, server)
    server.on_start = supervisor.on_signal
    authority = Authority.load_or_create(tmp_path / "keys")
    (replay.streams_of(tmp_path, authority, "CONTROL") / "EVENTS" / "msgs").mkdir(parents=True)
    (tmp_path / seals.HEAD_FILE).write_bytes(msgspec.json.encode(seals.Head(3, "00")))
    with pytest.raises(errors.LogDamaged, match="3 are missing"):
        supervisor.run()
    assert server.starts == 0


def test_a_log_that_is_gone_as_a_whole_is_refused_before_an_empty_one_is_made_in_its_place(
    tmp_path: Path,
) -> None:
    authority = Authority.load_or_create(tmp_path / "keys")
    replay.prepare_start(tmp_path, authority)
    (tmp_path / seals.HEAD_FILE).write_bytes(msgspec.json.encode(seals.Head(3, "00")))
    with pytest.raises(errors.LogDamaged, match="3 are missing"):
        replay.prepare_start(tmp_path, authority)
    replay.prepare_start(tmp_path, authority, accept_loss=True)


def test_what_people_are_told_to_type_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "my data"
    data.mkdir()
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    supervisor = supervised(data, Server(), tmp_path / "ready")
    supervisor.announce()
    pasted = shlex.split(said.getvalue().partition("look inside: ")[2])
    assert pasted[3:5] == ["--creds", str(data / "creds" / "inspect-control.creds")]


def test_on_windows_what_people_are_told_to_type_is_in_double_quotes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platforms, "WINDOWS", True)
    line = platforms.shell_line(["nats", "--creds", "C:\\my data\\a.creds"])
    assert line == 'nats --creds "C:\\my data\\a.creds"'


def test_a_data_directory_that_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for data in (Path("/proc/foo"), circle / "data", tmp_path / "\udcff", tmp_path / ("n" * 300)):
        with pytest.raises(errors.DataDirectoryError, match="--data"):
            options.made(data, "The data directory", "Name one by --data")


def test_a_disk_without_room_is_told_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage("/")._replace(free=1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(errors.DataDirectoryError, match="1 MiB are free, at least 256 MiB"):
        nats_server.require_room(tmp_path)


def test_a_disk_that_is_too_small_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shutil.disk_usage("/")._replace(total=255 * 1024 * 1024, free=200 * 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(errors.DataDirectoryError, match="too small: it has 255 MiB in all"):
        nats_server.require_room(tmp_path)


def test_where_no_anchor_can_be_kept_beside_the_data_the_start_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    supervisor = supervised(tmp_path / "data", Server())
    monkeypatch.setattr(supervisor, "say", said.append)
    supervisor.announce()
    assert not [line for line in said if "the log's anchor" in line]
    (tmp_path / "file").touch()
    monkeypatch.setattr(platforms, "config_dir", lambda: tmp_path / "file")
    supervisor.announce()
    (told,) = [line for line in said if "the log's anchor" in line]
    assert str(tmp_path / "file" / "anchors") in told
    assert "put back to an older day will not be noticed" in told


@pytest.mark.parametrize(
    "line",
    [
        "a line for people",
        "\x1e",
        "\x1e{",
        "\x1enull",
        '\x1e["kind","pid"]',
        '\x1e{"kind":"ready"}',
        '\x1e{"kind":1,"pid":1}',
        '\x1e{"kind":"ready","pid":"one"}',
        '\x1e{"kind":"ready","pid":true}',
        "\x1e" + "[" * 100_000,
        '\x1e{"pid":' + "9" * 5_000 + ',"kind":"ready"}',
    ],
)
def test_what_only_looks_like_a_childs_message_is_a_line_for_people(line: str) -> None:
    assert child.heard(line) is None


def test_what_a_child_tells_is_heard() -> None:
    assert child.heard('\x1e{"kind":"ready","pid":7,"http":"x"}') == {
        "kind": "ready",
        "pid": 7,
        "http": "x",
    }


def test_a_part_that_ended_is_told_when_it_is_back_and_an_agent_by_its_joining_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    supervisor = supervised(tmp_path, Server())
    for name in ("judge", "agent-1"):
        member = up.Member(name, [], tmp_path / "log")
        ready = f'\x1e{{"kind":"ready","pid":7,"name":"{name}"}}'
        supervisor._line(member, ready)
        member.restarts.end(0.0)
        member.ready = False
        supervisor._line(member, ready)
    assert _without_times(said) == ["judge is back"]


def test_that_no_agent_is_left_is_said_with_how_to_attach_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    server = Server()
    server.code = None
    supervisor = supervised(tmp_path, server)
    supervisor.http = "http://127.0.0.1:8000"
    monkeypatch.setattr(sys, "executable", _python(tmp_path, f"sys.exit({child.REFUSED})"))
    members = [supervisor.add(f"agent-{number}") for number in (1, 2)]
    for member in members:
        supervisor.wait_ready(member)
    supervisor.stop()
    lines = _without_times(said)
    assert sorted(line.partition(" is")[0] for line in lines[:2]) == [
        "agent-1 was refused and",
        "agent-2 was refused and",
    ]
    attach = "aghsan agent --api http://127.0.0.1:8000 --worker-id NAME"
    assert lines[2] == f"no agent is left here; attach one under another id: {attach}"


def test_a_server_is_stopped_and_started_again_when_control_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(up, "BACKOFF_SECONDS_MIN", 0.01)
    server = Server()
    server.code, server.starts = None, 2
    supervisor = supervised(tmp_path, server)
    server.on_start = supervisor.on_signal
    told = r"""print('\x1e{"kind":"restart_server","pid":1}')"""
    monkeypatch.setattr(sys, "executable", _python(tmp_path, told))
    supervisor.add("gateway")
    run(supervisor)
    supervisor.stop()
    assert _without_times(said)[:3] == [
        "there is room again on a disk that was full: nats-server is restarted",
        "nats-server ended (exit code 0); restarting in 0.01 s",
        "nats-server is back",
    ]


def _python(folder: Path, program: str) -> str:
    """An interpreter that runs this, whatever it is asked to run, and then waits to be asked to
    end."""
    path = folder / "python"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n{program}\nsys.stdout.flush()\nsys.stdin.read()\n"
    )
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize("what", ["process", "thread"])
def test_a_part_that_cannot_be_started_for_want_of_room_is_tried_again_with_longer_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(up, "BACKOFF_SECONDS_MIN", 0.01)
    server = Server()
    server.code = None
    supervisor = supervised(tmp_path, server)
    told = r"""print('\x1e{"kind":"ready","pid":1,"http":"x"}')"""
    monkeypatch.setattr(sys, "executable", _python(tmp_path, told))
    failures: list[Exception] = [
        BlockingIOError(errno.EAGAIN, "no more"),
        OSError(errno.ENOMEM, "no memory"),
    ]
    if what == "process":
        _fail_first(monkeypatch, platforms, "spawn", failures)
    else:
        _fail_first(monkeypatch, threading.Thread, "start", [RuntimeError("no more")])
    supervisor.wait_ready(supervisor.add("gateway"))
    supervisor.stop()
    assert (
        _without_times(said)
        == [
            "gateway did not start, again in 0.01 s: [Errno 11] no more",
            "gateway did not start, again in 0.02 s: [Errno 12] no memory",
            "gateway is back",
        ][:: 2 if what == "thread" else 1]
    )


def _fail_first(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, failures: list[Exception]
) -> None:
    """Let the first calls of a function fail."""
    real = getattr(owner, name)

    def called(*args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop(0)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


def test_what_waits_to_be_shown_is_bounded_in_lines_and_in_their_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(up, "LINES_MAX", 4)
    supervisor = supervised(tmp_path, Server())
    count = 3 * up.LINE_BYTES_MAX
    monkeypatch.setattr(sys, "executable", _python(tmp_path, f"print('x' * {count}, 'last')"))
    supervisor.add("gateway")
    deadline = time.monotonic() + SECONDS_MAX
    while "last" not in said.getvalue():
        assert time.monotonic() < deadline
        supervisor._step(1.0)
    supervisor.stop()
    assert supervisor._events.maxsize == 4
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) == up.LINE_BYTES_MAX
    assert sum(line.count("x") for line in lines) == count


def test_a_ready_file_that_finds_no_room_is_written_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    ready = tmp_path / "folder" / "ready.json"
    supervisor = supervised(tmp_path, Server(), ready)
    control = up.Member("gateway", [], tmp_path / "log", ready=True, told={"http": "http://x"})
    supervisor._members["gateway"] = control
    supervisor.announce()  # there is no such folder, as there is no room on a full disk
    ready.parent.mkdir()
    supervisor._step(0.0)
    assert '"http": "http://x"' in ready.read_text()
    assert said.getvalue().count("cannot be written yet") == 1


@pytest.mark.parametrize("no_quiet", [False, True])
def test_judge_and_agents_agree_on_a_folder_for_quiet_unless_there_is_to_be_none(
    tmp_path: Path, no_quiet: bool
) -> None:
    asked = up.Settings(
        data=tmp_path,
        host="127.0.0.1",
        port=0,
        agents=2,
        train_sec=30.0,
        min_queue=1,
        worker_timeout_sec=90.0,
        http_lease_sec=1800.0,
        no_sweep=False,
        sweep_after_hours=24.0,
        quota_gib=0.0,
        worker_quota_gib=0.0,
        new_judge_key=False,
        no_quiet=no_quiet,
        price_per_hour=None,
    )
    lines = (up._judge_line("nats://n", asked, ""), up._agent_line("agent-1", "http://h", asked))
    given = [line[line.index("--quiet-folder") + 1 :][:1] for line in lines if not no_quiet]
    assert given == ([] if no_quiet else [[str(tmp_path / "quiet")]] * 2)
    assert any("--quiet-folder" in line for line in lines) is not no_quiet
