"""Everything that differs between Linux, macOS and Windows, in one place.

Only Linux is run by this project's tests; the branches for Windows and macOS are tested with a
faked platform. Modules that only one platform has are looked up by name, so that this file loads,
and is type-checked, on all of them.
"""

import contextlib
import ctypes
import errno
import importlib
import logging
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from core import errors

LINUX = sys.platform.startswith("linux")
MACOS = sys.platform == "darwin"
WINDOWS = sys.platform == "win32"

REPLACE_TRIES = 20
REPLACE_PAUSE_SECONDS = 0.05
PID_BYTES = 20
SIGKILL = 9  # by number: the signal module of Windows has no such name

Stream = int | IO[bytes] | None

_logger = logging.getLogger(__name__)


# Files


class DataLock:
    """Exclusive use of a directory, for as long as the process lives.

    Byte 0 of a file of its own is what is locked; the holder's pid stands behind it, where Windows
    lets others read it. The system ends the lock with the process, however that one dies.
    """

    def __init__(self, path: Path, *, traceless: bool = False, signs: bool = True) -> None:
        """A `traceless` one neither makes the file nor writes its pid there: it has to exist. One
        that does not sign writes its pid once it is told to."""
        self._path = path
        self._traceless = traceless
        self._signs = signs and not traceless
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises DirectoryInUse when another process holds it, DataDirectoryError
        when it cannot be opened."""
        assert self._file is None, "the lock is held already"
        try:
            flags = os.O_RDONLY if self._traceless else os.O_RDWR | os.O_CREAT
            file = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise errors.DataDirectoryError(
                f"The lock {self._path} cannot be opened: {error.strerror}. Choose a data directory"
                " that this user may write to."
            ) from error
        try:
            _lock_first_byte(file)
        except OSError as error:
            holder = _pid_behind_lock(file)
            os.close(file)
            raise errors.DirectoryInUse(
                f"The data directory {self._path.parent} is in use by {holder}. Stop that one"
                " first, or choose another data directory."
            ) from error
        self._file = file
        if self._signs:
            self.sign()

    def sign(self) -> None:
        """Say in the file who holds the lock."""
        assert self._file is not None, "only who holds it signs"
        with contextlib.suppress(OSError):  # on a full disk: it holds, by whom is not told
            os.lseek(self._file, 1, os.SEEK_SET)
            os.write(self._file, str(os.getpid()).ljust(PID_BYTES).encode())

    def release(self) -> None:
        """Give the lock back; may be repeated."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "DataLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _lock_first_byte(file: int) -> None:
    if WINDOWS:
        msvcrt = importlib.import_module("msvcrt")
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        # flock and not lockf: that one would let the same process in twice.
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _pid_behind_lock(file: int) -> str:
    with contextlib.suppress(OSError):
        os.lseek(file, 1, os.SEEK_SET)
        pid = os.read(file, PID_BYTES).strip()
        if pid.isdigit():
            return f"process {pid.decode()}"
    return "another process"


def is_want_of_room(error: BaseException) -> bool:
    """Whether a disk, or what one may use of it, was full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`, durably: a reader, or a crash, sees the old bytes or all the new ones.

    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            sync_file(file.fileno())
        temporary.chmod(mode)  # past the umask
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """Put a file or folder in the place of another, as os.replace does, where that needs patience.

    Raises OSError. On Windows it may take REPLACE_TRIES times REPLACE_PAUSE_SECONDS.
    """
    for attempt in range(1, REPLACE_TRIES + 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            # On Windows whoever has either open, a virus scanner for one, forbids it meanwhile.
            if not WINDOWS or attempt == REPLACE_TRIES:
                raise
            time.sleep(REPLACE_PAUSE_SECONDS)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows has no such call and needs none."""
    if WINDOWS:
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        sync_file(opened)
    finally:
        os.close(opened)


def sync_file(file: int) -> None:
    """Make the bytes of an open file durable."""
    if MACOS:
        # fsync there leaves the bytes in the drive's own cache (fsync(2) of macOS).
        fcntl = importlib.import_module("fcntl")
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def owner_only(path: Path) -> None:
    """Let nobody but the owner read a file, or a folder and what will be made in it."""
    if not WINDOWS:
        path.chmod(0o700 if path.is_dir() else 0o600)
        return
    # chmod knows only "read-only" there; (OI)(CI) hands the right on to what a folder will hold.
    user = f"{os.environ.get('USERDOMAIN', '.')}\\{os.environ.get('USERNAME', '')}"
    right = f"{user}:(OI)(CI)F" if path.is_dir() else f"{user}:F"
    command = ["icacls", str(path), "/inheritance:r", "/grant:r", right]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _logger.warning(
            "%s keeps the permissions of its folder: %s",
            path,
            error,
            extra={"action": "owner_only"},
        )


def config_dir() -> Path:
    """Where this user's settings of Aghsan belong; it may not exist yet."""
    if WINDOWS:
        base = os.environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
    elif MACOS:
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "aghsan"


def cpu_model() -> str:
    """What this machine's processor is called."""
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        told = None
    return told[1] if told else platform.processor() or platform.machine()


def machine() -> str:
    """Operating system, architecture and processor: where these are others, last bits may be."""
    return f"{platform.system()} {platform.machine()} {cpu_model()}"


def allow_files(wanted: int) -> int:
    """Let this process have that many files and sockets open; how many of them it may have."""
    if WINDOWS:
        return wanted  # sockets are handles there, without a limit of their own
    resource = importlib.import_module("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return wanted if soft == unlimited else min(wanted, int(soft))


def require_free_port(host: str, port: int) -> None:
    """Say at once that an address cannot be listened on; port 0 is any. Raises Conflict."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot hold
        raise _not_of_this_machine(host, error) from error
    for family, kind, protocol, _, address in addresses:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:  # a family that this machine does without, as whoever listens does
            continue
        with probe:
            if not WINDOWS:  # there the option would let two programs share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # its IPv4 side is the affair of the other address
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise _not_of_this_machine(host, error) from error
                raise errors.Conflict(
                    f"Port {port} of {host} cannot be listened on: {error.strerror}. Stop the"
                    " program that has it, or choose another port (0: a free one)."
                ) from error


def _not_of_this_machine(host: str, error: Exception) -> errors.Conflict:
    why = error.strerror if isinstance(error, OSError) else "it is no host name"
    return errors.Conflict(
        f"{host!r} is no address of this machine, so nothing can listen there: {why}. 127.0.0.1 is"
        " this machine alone, 0.0.0.0 all of its addresses."
    )


# Processes


def shell_line(argv: Sequence[str | Path]) -> str:
    """A command as a person types it into this platform's shell."""
    words = [str(word) for word in argv]
    return subprocess.list2cmdline(words) if WINDOWS else shlex.join(words)


# The launcher becomes the program (exec keeps the pid), having seen to it that the program dies
# with its parent. A preexec_fn would do the same in a forked copy of a process with threads, where
# any lock may be held for ever.
_LAUNCHER = """
import os, signal, sys, time
how, parent, number, program = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
if how == "prctl":
    import ctypes
    PR_SET_PDEATHSIG = 1
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        sys.exit("this system knows no death signal")
elif os.fork() == 0:
    watched = os.getppid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    while os.getppid() == watched:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(watched, number)
            break
        except PermissionError:
            pass
        time.sleep(0.25)
    os._exit(0)
if os.getppid() != parent:
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if hasattr(signal, "SIGXFSZ"):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execv(program[0], program)
"""
_PR_SET_PDEATHSIG = 1
_CREATE_NEW_PROCESS_GROUP = 0x200


def spawn(
    argv: Sequence[str | Path],
    *,
    stdin: Stream = subprocess.PIPE,
    stdout: Stream = None,
    stderr: Stream = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    death_signal: int = SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a child that dies with this process, in a process group of its own, in UTF-8 mode.

    `env` comes on top of this process's environment. `death_signal` is what the
    child gets when this process is gone. On Linux it follows the thread that forked, so only the
    main thread may start children; elsewhere a watcher process (macOS) or a Job Object (Windows)
    takes its place.

    Raises FileNotFoundError when there is no such program.
    """
    assert threading.current_thread() is threading.main_thread(), (
        "a death signal follows the thread that forked: start children from the main thread"
    )
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(f"there is no program {str(argv[0])!r}")
    command = [os.path.abspath(program), *map(str, argv[1:])]
    environment = {**os.environ, "PYTHONUTF8": "1", **(env or {})}
    if WINDOWS:
        _join_job()
    else:
        command = [*_launcher(death_signal), *command]
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        cwd=cwd,
        creationflags=_CREATE_NEW_PROCESS_GROUP if WINDOWS else 0,
        start_new_session=not WINDOWS,
    )


def _launcher(death_signal: int) -> list[str]:
    how, parent = "prctl" if LINUX else "watch", str(os.getpid())
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, how, parent, str(int(death_signal))]


def die_with_parent(parent: int | None = None) -> None:
    """Called in a child: die when the parent dies, at once if it is not `parent` any more.

    For children that `spawn` did not start, as those of multiprocessing. Elsewhere than on Linux
    nothing happens here: a Job Object ends children on Windows, the closing of stdin on macOS.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if parent is not None and not WINDOWS and os.getppid() != parent:
        os._exit(1)


def ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to end: by `stop` on its stdin where we hold it, else by a signal."""
    if process.stdin is not None:
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(b"stop\n")
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
    elif WINDOWS:
        try:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", 1))
        except OSError:  # no console to send it by
            process.terminate()
    else:
        process.terminate()


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION of winnt.h."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION of winnt.h."""

    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


_EXTENDED_LIMIT_INFORMATION = 9
_KILL_ON_JOB_CLOSE = 0x2000
_job: int | None = None


def _join_job() -> None:
    """Put this process, and so all its future children, into a job that ends with its last handle.

    Joining it ourselves leaves no moment in which a new child is outside. Jobs nest (Windows 8).
    """
    global _job
    if _job is not None:
        return
    kernel = importlib.import_module("ctypes").WinDLL("kernel32", use_last_error=True)
    handle, flag = ctypes.c_void_p, ctypes.c_int
    kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = handle
    kernel.CreateJobObjectW.argtypes = [handle, ctypes.c_wchar_p]
    kernel.SetInformationJobObject.argtypes = [handle, flag, handle, ctypes.c_uint32]
    kernel.AssignProcessToJobObject.argtypes = [handle, handle]
    _job = kernel.CreateJobObjectW(None, None)
    limits = _ExtendedLimits()
    limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
    if not (
        _job
        and kernel.SetInformationJobObject(
            _job, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        and kernel.AssignProcessToJobObject(_job, kernel.GetCurrentProcess())
    ):
        _logger.warning(
            "no Job Object: children may outlive this process if it is killed",
            extra={"action": "join_job"},
        )
