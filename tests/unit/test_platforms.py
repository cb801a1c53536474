"""core.platforms, on Linux as it is and elsewhere with a faked platform."""

import ast
import contextlib
import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import errors, platforms

ROOT = Path(platforms.__file__).parents[1]
SECONDS_MAX = 10.0
ARABIC = "بيانات with space"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


@contextlib.contextmanager
def running(argv: list[str], **options: int | signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
    process = platforms.spawn(argv, stdout=subprocess.PIPE, **options)  # type: ignore[arg-type]
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=SECONDS_MAX)


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def wait_gone(pid: int) -> bool:
    """Whether a process that is not our child ends in time; awaited, not polled."""
    import select

    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], SECONDS_MAX)[0])
    finally:
        os.close(watched)


# locks


def test_a_second_lock_on_the_same_file_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    refused = pytest.raises(errors.DataDirectoryError, match=f"in use by process {os.getpid()}")
    with platforms.DataLock(tmp_path / "lock"), refused:
        platforms.DataLock(tmp_path / "lock").acquire()


def test_a_lock_is_free_again_after_its_holder_was_killed(tmp_path: Path) -> None:
    code = """
        import pathlib, sys, time
        from core import platforms
        platforms.DataLock(pathlib.Path(sys.argv[1])).acquire()
        print("held", flush=True)
        time.sleep(60)
    """
    with running([*python(code), str(tmp_path / "lock")]) as holder:
        assert line(holder) == "held"
        with pytest.raises(errors.DataDirectoryError, match=f"process {holder.pid}"):
            platforms.DataLock(tmp_path / "lock").acquire()
        holder.kill()
        holder.wait(SECONDS_MAX)
        with platforms.DataLock(tmp_path / "lock"):
            pass


def test_a_lock_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.DataDirectoryError, match="cannot be opened"):
        platforms.DataLock(tmp_path / "missing" / "lock").acquire()


def test_on_windows_the_lock_is_one_byte_of_msvcrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: set[tuple[int, int]] = set()

    def locking(file: int, mode: int, count: int) -> None:
        place = (os.lseek(file, 0, os.SEEK_CUR), count)
        if place in locked:
            raise PermissionError(13, "Permission denied")
        locked.add(place)

    msvcrt = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(platforms, "WINDOWS", True)
    refused = pytest.raises(errors.DataDirectoryError, match=f"in use by process {os.getpid()}")
    with platforms.DataLock(tmp_path / "lock"), refused:
        platforms.DataLock(tmp_path / "lock").acquire()
    assert locked == {(0, 1)}


# files


def test_a_file_is_replaced_whole_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / ARABIC
    platforms.write_atomically(path, b"old")
    platforms.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    platforms.write_atomically(path, b"old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        platforms.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("windows", "tries"), [(True, 3), (False, 1)])
def test_replacing_is_tried_again_on_windows_while_somebody_has_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: bool, tries: int
) -> None:
    replace, asked = os.replace, 0

    def busy(source: Path, target: Path) -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(platforms, "WINDOWS", windows)
    monkeypatch.setattr(platforms, "REPLACE_PAUSE_SECONDS", 0.0)
    with contextlib.suppress(PermissionError):
        platforms.write_atomically(tmp_path / "file", b"data")
    assert asked == tries
    assert (tmp_path / "file").exists() == windows


RENAMES_OF_THEIR_OWN = {"core/platforms.py", "core/archive.py", "agent/holdings.py"}
"""The one that tries again, one that must not overwrite, and one that gives way at once."""


def test_whatever_is_put_in_its_place_waits_for_who_has_it_open() -> None:
    bare = [
        f"{path}:{node.lineno}"
        for package in ("core", "agent", "gateway", "orchestrator", "cli")
        for path in (file.relative_to(ROOT) for file in (ROOT / package).rglob("*.py"))
        if path.as_posix() not in RENAMES_OF_THEIR_OWN
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
        if isinstance(node, ast.Call) and _renames(node)
    ]
    assert bare == []


def _renames(call: ast.Call) -> bool:
    """Whether this is Path.replace or one of its kin; a string's takes two arguments."""
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in ("replace", "rename"):
        return False
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    return owner == "os" or (owner != "platforms" and len(call.args) == 1 and not call.keywords)


def test_on_macos_a_file_and_its_folder_are_flushed_past_the_drive_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    fcntl = types.SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda _, what: asked.append(what))
    monkeypatch.setitem(sys.modules, "fcntl", fcntl)
    monkeypatch.setattr(platforms, "MACOS", True)
    platforms.write_atomically(tmp_path / "file", b"data")
    assert asked == [51, 51]


def test_only_the_owner_may_enter_a_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    platforms.owner_only(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_on_windows_permissions_are_set_by_icacls_and_handed_on_in_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: commands.append(argv))
    monkeypatch.setattr(platforms, "WINDOWS", True)
    monkeypatch.setenv("USERDOMAIN", "DESK")
    monkeypatch.setenv("USERNAME", "ليلى")
    platforms.owner_only(tmp_path)
    right = "DESK\\ليلى:(OI)(CI)F"
    assert commands == [["icacls", str(tmp_path), "/inheritance:r", "/grant:r", right]]


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("WINDOWS", "APPDATA", "base/aghsan"),
        ("LINUX", "XDG_CONFIG_HOME", "base/aghsan"),
        ("MACOS", "HOME", "base/Library/Application Support/aghsan"),
    ],
)
def test_settings_live_where_each_platform_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, expected: str
) -> None:
    for name in ("WINDOWS", "LINUX", "MACOS"):
        monkeypatch.setattr(platforms, name, name == platform)
    monkeypatch.setenv(variable, str(tmp_path / "base"))
    assert platforms.config_dir() == tmp_path / expected


def test_a_taken_port_is_refused_with_what_to_do_and_a_free_one_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.Conflict, match="choose another port"):
            platforms.require_free_port("127.0.0.1", port)
    platforms.require_free_port("127.0.0.1", port)
    platforms.require_free_port("127.0.0.1", 0)


@pytest.mark.parametrize("port", [0, 18_000])
@pytest.mark.parametrize("host", ["no such host.invalid", "bad..host", "h" * 70, "1.2.3.4", ""])
def test_a_host_that_is_no_address_of_this_machine_is_refused(host: str, port: int) -> None:
    with pytest.raises(errors.Conflict, match="no address of this machine"):
        platforms.require_free_port(host, port)


def test_every_address_of_a_name_has_to_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))
            for address in ("127.0.0.1", "127.0.0.2")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(errors.Conflict, match="cannot be listened on"):
            platforms.require_free_port("both", port)


# processes


def test_a_child_has_its_own_session_utf8_mode_and_the_pid_it_was_started_with() -> None:
    code = "import os, sys; print(os.getpid(), os.getsid(0), sys.flags.utf8_mode, flush=True)"
    with running(python(code)) as child:
        assert line(child) == f"{child.pid} {child.pid} 1"


def test_a_child_gets_the_variables_it_is_given_on_top_of_ours() -> None:
    code = "import os; print(os.environ['WORD'], 'PATH' in os.environ)"
    process = platforms.spawn(python(code), stdout=subprocess.PIPE, env={"WORD": "غصن"})
    assert process.communicate(timeout=SECONDS_MAX)[0].decode().split() == ["غصن", "True"]


def test_signals_that_python_ignores_are_not_ignored_in_children() -> None:
    shell = ["sh", "-c", "grep SigIgn /proc/$$/status"]
    process = platforms.spawn(shell, stdout=subprocess.PIPE)
    ignored = int(process.communicate(timeout=SECONDS_MAX)[0].split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))
    assert not ignored & (1 << (signal.SIGXFSZ - 1))


def test_a_missing_program_is_said_to_be_missing() -> None:
    with pytest.raises(FileNotFoundError, match="no program"):
        platforms.spawn(["no-such-program"])


PARENT = """
    import sys, time
    from core import platforms
    if sys.argv[1] == "watch":
        platforms.LINUX = False
    child = platforms.spawn(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["prctl", "watch"])
def test_a_child_dies_when_its_parent_is_killed(how: str) -> None:
    with running([*python(PARENT), how]) as parent:
        child = int(line(parent))
        parent.kill()
        parent.wait(SECONDS_MAX)
        assert wait_gone(child)


def test_the_watcher_of_other_systems_leaves_when_its_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platforms, "LINUX", False)
    shell = ["sh", "-c", "cat /proc/$$/task/$$/children"]
    process = platforms.spawn(shell, stdout=subprocess.PIPE)
    watcher = int(process.communicate(timeout=SECONDS_MAX)[0].split()[0])
    assert wait_gone(watcher)


def test_a_process_that_is_not_its_parents_child_any_more_dies_at_once() -> None:
    code = "from core import platforms; platforms.die_with_parent(1); print('alive')"
    process = platforms.spawn(python(code), stdout=subprocess.PIPE)
    assert process.communicate(timeout=SECONDS_MAX)[0] == b""
    assert process.returncode == 1


def test_a_child_whose_stdin_we_hold_is_asked_by_message() -> None:
    code = "import sys; print(sys.stdin.readline().strip(), sys.stdin.readline() == '')"
    process = platforms.spawn(python(code), stdout=subprocess.PIPE)
    platforms.ask_to_stop(process)
    assert process.stdout is not None
    assert process.stdout.read() == b"stop True\n"
    platforms.ask_to_stop(process)
    assert process.wait(SECONDS_MAX) == 0


def test_a_child_without_stdin_is_asked_by_sigterm() -> None:
    process = platforms.spawn(["sleep", "60"], stdin=subprocess.DEVNULL)
    platforms.ask_to_stop(process)
    assert process.wait(SECONDS_MAX) == -signal.SIGTERM


class FakeProcess:
    """A Windows child without stdin, with or without a console to reach it by."""

    stdin = None

    def __init__(self, console: bool) -> None:
        self.console = console
        self.asked: list[str] = []

    def send_signal(self, number: int) -> None:
        if not self.console:
            raise OSError("no console")
        self.asked.append(f"signal {number}")

    def terminate(self) -> None:
        self.asked.append("terminate")


@pytest.mark.parametrize(("console", "asked"), [(True, "signal 1"), (False, "terminate")])
def test_on_windows_a_child_without_stdin_is_asked_by_ctrl_break(
    monkeypatch: pytest.MonkeyPatch, console: bool, asked: str
) -> None:
    monkeypatch.setattr(platforms, "WINDOWS", True)
    process = FakeProcess(console)
    platforms.ask_to_stop(process)  # type: ignore[arg-type]
    assert process.asked == [asked]


class Kernel32:
    """What _join_job asks of Windows."""

    class Function:
        def __init__(self, name: str, calls: list[tuple[str, object]], result: int) -> None:
            self._name, self._calls, self._result = name, calls, result

        def __call__(self, *arguments: object) -> int:
            self._calls.append((self._name, arguments))
            return self._result

    def __init__(self, assigned: int = 1) -> None:
        self.calls: list[tuple[str, object]] = []
        self.CreateJobObjectW = self.Function("create", self.calls, 77)
        self.GetCurrentProcess = self.Function("current", self.calls, -1)
        self.SetInformationJobObject = self.Function("set", self.calls, 1)
        self.AssignProcessToJobObject = self.Function("assign", self.calls, assigned)


def windows(monkeypatch: pytest.MonkeyPatch, kernel: Kernel32) -> list[dict[str, object]]:
    """Fake Windows; the options of children started there."""
    started: list[dict[str, object]] = []
    monkeypatch.setattr(platforms, "WINDOWS", True)
    monkeypatch.setattr(platforms, "_job", None)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda argv, **rest: started.append(rest))
    return started


def test_on_windows_children_are_born_into_one_job_that_is_killed_on_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel32()
    started = windows(monkeypatch, kernel)
    platforms.spawn([sys.executable])
    platforms.spawn([sys.executable])
    assert [name for name, _ in kernel.calls] == ["create", "set", "current", "assign"]
    assert kernel.calls[-1] == ("assign", (77, -1))
    assert [rest["creationflags"] for rest in started] == [0x200, 0x200]
    assert not started[0]["start_new_session"]


def test_on_windows_a_job_that_cannot_be_joined_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = windows(monkeypatch, Kernel32(assigned=0))
    platforms.spawn([sys.executable])
    assert len(started) == 1
    assert "children may outlive" in caplog.text


def test_the_limits_of_a_job_have_the_layout_of_windows() -> None:
    assert ctypes.sizeof(platforms._ExtendedLimits) == 144
    assert platforms._BasicLimits.LimitFlags.offset == 16


@pytest.mark.parametrize(
    ("limits", "refuses", "asked", "allowed"),
    [
        ((1_024, 4_096), False, [(3_000, 4_096)], 3_000),
        ((1_024, 2_048), False, [(2_048, 2_048)], 2_048),
        ((256, -1), False, [(3_000, -1)], 3_000),
        ((256, -1), True, [], 256),
        ((8_000, 8_000), False, [], 3_000),
        ((-1, -1), False, [], 3_000),
    ],
)
def test_as_many_files_are_open_as_are_wanted_and_allowed(
    limits: tuple[int, int],
    refuses: bool,
    asked: list[tuple[int, int]],
    allowed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to: list[tuple[int, int]] = []

    def setrlimit(_: int, to: tuple[int, int]) -> None:
        if refuses:
            raise ValueError("current limit exceeds maximum limit")
        set_to.append(to)

    resource = types.SimpleNamespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda _: limits, setrlimit=setrlimit
    )
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(platforms, "WINDOWS", False)
    assert (platforms.allow_files(3_000), set_to) == (allowed, asked)


def test_windows_has_no_limit_of_files_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(platforms, "WINDOWS", True)
    assert platforms.allow_files(3_000) == 3_000
