#!/usr/bin/env python3
"""Set up this checkout and do the daily things: `python3 dev.py VERB [--help]`.

Standard library only, on any platform. The file must parse under Python 3.6, so that a Python that
is too old can say so: no walrus, no `match`, no future imports.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    import shutil

    _newer = [f"python3.{n}" for n in (13, 12, 11, 14) if shutil.which(f"python3.{n}")]
    sys.stderr.write(
        f"dev.py: Aghsan needs Python 3.11 or newer; this is {sys.version.split()[0]}"
        f" ({sys.executable}).\n"
        f"  {'Run' if _newer else 'Install one and run'}: "
        f"{_newer[0] if _newer else 'python3.11'} {' '.join(sys.argv)}\n"
    )
    sys.exit(1)

import contextlib
import difflib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

CHECKOUT = Path(__file__).resolve().parent
RECIPE = 1
"""Raised when an environment made by an older dev.py has to be made again."""

GIB = 1024**3
FREE_BYTES_OWN_TORCH = 2 * GIB
FREE_BYTES_CUDA_TORCH = 12 * GIB
FREE_BYTES_GIVEN_TORCH = GIB
FREE_BYTES_UPDATE = GIB // 4
FREE_BYTES_NONE = 32 * 1024**2
LOCK_POLL_SECONDS = 0.2
TEST_PROCESSES = 2

PROBE = """
import importlib.metadata, torch
try:
    import numpy
except ImportError:
    torch.zeros(1).sum()
else:
    torch.from_numpy(numpy.zeros(1)).sum()
print(importlib.metadata.version("torch"))
"""


LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
"""Not the program in .venv/bin: where packages are those of another venv, there is none."""


class Failure(Exception):
    """Something a person has to know: what, why, what to do next."""

    def __init__(self, words: str, code: int = 1) -> None:
        super().__init__(words)
        self.code = code


class Stopped(BaseException):
    """SIGTERM; past every `except Exception`, as KeyboardInterrupt is."""


def say(words: str) -> None:
    print(words, flush=True)


class Machine:
    """Everything outside this file that is touched, so that tests can stand in for it."""

    windows = sys.platform == "win32"
    linux = sys.platform.startswith("linux")
    python = sys.executable
    prefix = os.path.realpath(sys.prefix)
    in_a_venv = sys.prefix != sys.base_prefix

    def torch_version(self) -> str:
        """The version of the torch that the running Python has, or nothing. Imports no torch."""
        from importlib import metadata

        try:
            return metadata.version("torch")
        except metadata.PackageNotFoundError:
            return ""

    def site_packages(self) -> str:
        """Where the running Python keeps torch."""
        from importlib import metadata

        return str(metadata.distribution("torch").locate_file(""))

    def lacking(self) -> list[str]:
        """Modules of the standard library that this Python came without and a .venv needs."""
        return [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]

    def free_bytes(self, directory: Path) -> int:
        return shutil.disk_usage(directory).free

    def run(self, argv: list[str], *, cwd: Path, held: list[int]) -> int:
        """Run to the end, seen by the person; `held` descriptors stay open in the child."""
        return _wait(subprocess.Popen(argv, cwd=cwd, env=_pip_environment(), pass_fds=held))

    def ask(self, argv: list[str], *, cwd: Path, held: list[int]) -> tuple[int, str]:
        """Run to the end, unseen: exit code and everything it wrote."""
        with tempfile.TemporaryFile() as words:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=_pip_environment(),
                pass_fds=held,
                stdout=words,
                stderr=subprocess.STDOUT,
            )
            code = _wait(process)
            words.seek(0)
            return code, words.read().decode("utf-8", "replace").strip()

    def become(self, argv: list[str], *, cwd: Path | None = None) -> int:
        """Go on as another program, which gets every signal itself. Returns only on Windows."""
        sys.stdout.flush()
        if cwd is not None:
            os.chdir(cwd)
        if not self.windows:
            os.execv(argv[0], argv)  # noqa: S606
        # Ctrl-C reaches every process of the console: the child decides when to end.
        for name in ("SIGINT", "SIGBREAK"):
            with contextlib.suppress(AttributeError, ValueError):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        return subprocess.call(argv)


def _pip_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}
    return {**kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


class Settings(NamedTuple):
    """What a person asked of `setup`."""

    fresh: bool = False
    own_torch: bool = False


AS_IT_COMES = Settings()


class State(NamedTuple):
    """What the stamp in .venv says about how it was made."""

    recipe: int
    checkout: str
    pyproject: str
    maker: str
    maker_torch: str
    interpreter: str
    own_torch: bool
    torch: str
    busy: bool
    done: bool
    contents: list[str]


class Environment:
    """The .venv of a checkout."""

    def __init__(self, checkout: Path, machine: Machine) -> None:
        self.checkout = checkout
        self.machine = machine
        self.root = checkout / ".venv"
        self.stamp = self.root / "aghsan-setup.json"
        self._fresh_stamp = self.root / "aghsan-setup.new"
        self.log = self.root / "setup.log"
        self._held: list[int] = []

    @property
    def python(self) -> Path:
        return self.program("python")

    def program(self, name: str) -> Path:
        if self.machine.windows:
            return self.root / "Scripts" / (name + ".exe")
        return self.root / "bin" / name

    # -- what is there --

    def state(self) -> State | None:
        """The stamp, or None where there is none that can be read."""
        try:
            return State(**json.loads(self.stamp.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def why_not_ready(self) -> str:
        """Why set-up has something to do, or nothing. Takes milliseconds."""
        state = self.state()
        if state is None:
            if (self.root / "pyvenv.cfg").exists():
                return "there is a .venv that dev.py did not make"
            return "there is no .venv yet"
        if not state.done:
            return "an earlier set-up did not come to its end"
        reason = self._why_fresh(state)
        if not reason and state.pyproject != self._pyproject():
            return "pyproject.toml has changed"
        return reason

    def _why_fresh(self, state: State) -> str:
        """Why this .venv cannot be mended, or nothing."""
        if state.recipe != RECIPE:
            return "the .venv was made by another version of dev.py"
        if state.checkout != str(self.checkout):
            return "the checkout was moved or copied from " + state.checkout
        # Another Python than its maker may run dev.py: the .venv stays as it is.
        if state.maker == self._maker() and state.maker_torch != self.machine.torch_version():
            return f"the torch of {self.machine.python} has changed"
        return self._damage(state)

    def _damage(self, state: State) -> str:
        if not self.python.exists() or not (self.root / "pyvenv.cfg").exists():
            return "the .venv is damaged: its Python is gone"
        if state.interpreter != self._interpreter():
            return "the .venv is damaged: the Python it was made with was replaced"
        if not state.done:
            return ""
        lost = sorted(set(state.contents) - set(self._contents()))
        if not self.program("aghsan").exists():
            lost.insert(0, "the aghsan command")
        if lost:
            some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
            return "the .venv is damaged: it lacks " + some
        return ""

    def _maker(self) -> str:
        return "{} {}.{}".format(self.machine.prefix, *sys.version_info[:2])

    def _pyproject(self) -> str:
        return hashlib.sha256((self.checkout / "pyproject.toml").read_bytes()).hexdigest()

    def _interpreter(self) -> str:
        if not self.machine.windows:
            return os.path.realpath(self.python)
        home = re.search(r"(?m)^home *= *(.+)$", (self.root / "pyvenv.cfg").read_text("utf-8"))
        return home.group(1).strip() if home and os.path.isdir(home.group(1).strip()) else ""

    def _site_packages(self) -> Path:
        if self.machine.windows:
            return self.root / "Lib" / "site-packages"
        found = sorted(self.root.glob("lib/python3*/site-packages"))
        return found[0] if found else self.root / "lib" / "site-packages"

    def _contents(self) -> list[str]:
        """What lies in site-packages, without what an upgrade by hand renames."""
        try:
            with os.scandir(self._site_packages()) as entries:
                names = [e.name for e in entries if e.is_dir() or e.name.endswith((".py", ".pth"))]
        except OSError:
            return []
        kept = (n for n in names if not n.endswith(".dist-info"))
        return sorted(n for n in kept if not n.startswith(("~", "__", ".")))

    # -- making it --

    def ensure(self, settings: Settings = AS_IT_COMES) -> None:
        """Make or mend the .venv where that is needed. Raises Failure."""
        if not settings.fresh and not self.why_not_ready():
            return
        try:
            self.root.mkdir(exist_ok=True)
        except FileExistsError:
            raise Failure(
                f"{self.root} is a file; the environment belongs there. Move it away"
            ) from None
        with self._lock():
            why = "asked to" if settings.fresh else self.why_not_ready()
            if why:
                self._make(why, settings)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.root / ".setup-lock", "a+b") as file:
            waiting = False
            while not _try_lock(file):
                if not waiting:
                    say(f"another set-up is at work in {self.root}; waiting for it")
                waiting = True
                time.sleep(LOCK_POLL_SECONDS)
            # pip holds the lock too: if this process is killed, the next one waits for its end.
            self._held = [] if self.machine.windows else [file.fileno()]
            try:
                yield
            finally:
                self._held = []

    def _make(self, why: str, settings: Settings) -> None:
        state = self.state()
        if state is None and not settings.fresh:
            self._refuse_what_is_no_venv()
        if state is None and (self.root / "pyvenv.cfg").exists() and not settings.fresh:
            say(f"setting up .venv: {why}; it is kept and completed")
            state = self._adopt()
        elif state is None or settings.fresh or state.busy or self._why_fresh(state):
            say(f"setting up .venv: {why}")
            state = self._create(settings)
        else:
            say(f"updating .venv: {why}")
            self._need(FREE_BYTES_UPDATE)
        self._install(state)

    def _refuse_what_is_no_venv(self) -> None:
        names = set(os.listdir(self.root)) - {
            ".setup-lock",
            self.stamp.name,
            self._fresh_stamp.name,
        }
        if names and "pyvenv.cfg" not in names:
            raise self._foreign("it is no Python environment")

    def _adopt(self) -> State:
        """Take over a .venv that somebody made by hand, with its torch where it has one."""
        code, words = self._ask("-c", "import sys; print(sys.version_info >= (3, 11))")
        if code:
            raise self._foreign("its Python does not start")
        if words != "True":
            raise self._foreign("its Python is older than 3.11")
        if self._ask("-m", "pip", "--version")[0]:
            raise self._foreign("it has no pip")
        torch, _ = self._probe_torch()
        return self._write(self._blank()._replace(own_torch=not torch, torch=torch))

    def _foreign(self, fault: str) -> Failure:
        return Failure(
            f"{self.root} was not made by dev.py, and {fault}.\n"
            "  Move it away, or let dev.py make it anew: python3 dev.py setup --fresh"
        )

    def _create(self, settings: Settings) -> State:
        if self.runs_inside():
            raise Failure("the running Python lives in the .venv that has to be made anew")
        lacking = self.machine.lacking()
        if lacking:
            raise Failure(
                f"this Python ({self.machine.python}) came without {' and '.join(lacking)}, "
                "which environments are made with.\n  On Debian and Ubuntu: sudo apt install "
                f"python3.{sys.version_info[1]}-venv; then run this again"
            )
        given = "" if settings.own_torch else self.machine.torch_version()
        self._need(FREE_BYTES_GIVEN_TORCH if given else FREE_BYTES_OWN_TORCH)
        torch = ""
        if given:
            self._venv(shared=True)
            torch, words = self._probe_torch()
            if torch:
                say(f"torch {torch} of {self.machine.python} is used as it is")
            else:
                say(f"torch {given} of {self.machine.python} cannot be used:")
                say(f"  {_last_line(words)}\n  the .venv gets one of its own")
                self._need(FREE_BYTES_OWN_TORCH)
        if not torch:
            self._venv(shared=False)
        return self._write(self._blank()._replace(own_torch=not torch, torch=torch))

    def runs_inside(self) -> bool:
        return self.machine.prefix == os.path.realpath(self.root)

    def _venv(self, *, shared: bool) -> None:
        self._write(self._blank())  # from here on an end without warning is noticed
        self._clear()
        flags = ["--system-site-packages"] if shared and not self.machine.in_a_venv else []
        argv = [self.machine.python, "-m", "venv", *flags, str(self.root)]
        code, words = self.machine.ask(argv, cwd=self.checkout, held=self._held)
        if code:
            if "ensurepip" in words:
                words = (
                    "pip could not be put into it. On Debian and Ubuntu: sudo apt install "
                    f"python3.{sys.version_info[1]}-venv; then run this again"
                )
            self._explain(words)
            raise Failure(f"no environment could be made in {self.root}:\n  {words}")
        if shared and self.machine.in_a_venv:
            # --system-site-packages means the base Python's, not those of the venv that runs this.
            path = self._site_packages() / "aghsan-given-torch.pth"
            path.write_text(self.machine.site_packages() + "\n", "utf-8")

    def _clear(self) -> None:
        for entry in self.root.iterdir():
            if entry.name in (".setup-lock", self.stamp.name):
                continue
            try:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            except PermissionError as error:
                raise Failure(
                    f"cannot remove {error.filename or entry}: {error.strerror}.\n"
                    "  Stop what still runs from this .venv, and see that the folder is yours"
                ) from None

    def _install(self, state: State) -> None:
        own = state.own_torch
        state = self._write(state._replace(busy=True, done=False, pyproject=self._pyproject()))
        pin, others = self._requirements()
        self.log.unlink(missing_ok=True)
        if own:
            if self.machine.linux:
                self._warn_of_cuda()
            self._pip(state, pin)
            self._pip(state, "-e", ".[dev]")
        else:
            constraint = self.root / "given-torch.txt"
            constraint.write_text("torch==" + state.torch + "\n", "utf-8")
            self._pip(state, "-c", str(constraint), *others)
            self._pip(state, "--no-deps", "-e", ".")
        torch, words = self._probe_torch()
        if not torch:
            raise Failure(
                f"everything is installed, but torch does not start:\n  {_last_line(words)}\n"
                "  Try a .venv with a torch of its own: dev.py setup --fresh --own-torch"
            )
        self.log.unlink(missing_ok=True)  # tens of megabytes that nobody needs any more
        self._write(
            state._replace(
                torch=torch,
                interpreter=self._interpreter(),
                busy=False,
                done=True,
                contents=self._contents(),
            )
        )

    def _warn_of_cuda(self) -> None:
        say(
            "installing torch; on Linux pip may choose the CUDA build, several GB. Where that is\n"
            "  not wanted, point pip at an index with CPU builds first (PIP_INDEX_URL,\n"
            "  PIP_EXTRA_INDEX_URL or pip's configuration file)"
        )
        free = self.machine.free_bytes(self.root)
        if free < FREE_BYTES_CUDA_TORCH:
            say(f"  {_size(free)} are free: too few for the CUDA build")

    def _requirements(self) -> tuple[str, list[str]]:
        """The pinned torch, and everything else, tools for development included."""
        import tomllib

        with open(self.checkout / "pyproject.toml", "rb") as file:
            project = tomllib.load(file)["project"]
        all_of_them = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
        others = [r for r in all_of_them if not re.match(r"torch\b(?!-)", r)]
        (pin,) = (r for r in all_of_them if r not in others)
        return pin, others

    def _pip(self, state: State, *args: str) -> None:
        quiet = [] if sys.stdout.isatty() else ["--quiet"]
        say("pip install " + " ".join(args if len(args) < 6 else [*args[:3], "..."]))
        argv = [str(self.python), "-m", "pip", "install", *quiet, "--log", str(self.log), *args]
        before = self.log.stat().st_size if self.log.exists() else 0
        code = self.machine.run(argv, cwd=self.checkout, held=self._held)
        if not code:
            return
        words = self._logged(before)
        if "Installing collected packages" not in words:
            self._write(state._replace(busy=False))  # nothing was touched; what is there is whole
        self._explain(words)
        raise Failure(
            f"pip failed (exit code {code}) at: pip install {' '.join(args)}\n"
            f"  {_last_error(words)}\n  The whole of it is in {self.log}"
        )

    def _logged(self, since: int) -> str:
        try:
            with open(self.log, "rb") as file:
                file.seek(since)
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _explain(self, words: str) -> None:
        """Raise the Failure that says what a failed child's words mean, where that is known."""
        free, temporary = self.machine.free_bytes(self.root), Path(tempfile.gettempdir())
        if free < FREE_BYTES_NONE or re.search(r"(?i)no space left|errno 28\b|disk quota", words):
            raise Failure(
                f"the disk is full: {_size(free)} are free for {self.root}, "
                f"{_size(self.machine.free_bytes(temporary))} for {temporary}.\n"
                "  Make room and run this again; it goes on by itself"
            )
        cause = _cause(words)
        if cause:
            raise Failure(f"{cause}.\n  What was said is in {self.log}")

    def _need(self, minimum: int) -> None:
        free = self.machine.free_bytes(self.root)
        if free < minimum:
            raise Failure(
                f"the disk is too full: {_size(free)} are free for {self.root}, "
                f"at least {_size(minimum)} are needed.\n  Make room and run this again"
            )

    def _probe_torch(self) -> tuple[str, str]:
        """The version of a torch that works in the .venv, or nothing and why."""
        code, words = self._ask("-c", PROBE)
        return ("", words) if code else (_last_line(words), words)

    def _ask(self, *args: str) -> tuple[int, str]:
        try:
            return self.machine.ask([str(self.python), *args], cwd=self.checkout, held=self._held)
        except OSError as error:
            return 1, str(error)

    def _blank(self) -> State:
        return State(
            recipe=RECIPE,
            checkout=str(self.checkout),
            pyproject="",
            maker=self._maker(),
            maker_torch=self.machine.torch_version(),
            interpreter="",
            own_torch=True,
            torch="",
            busy=True,
            done=False,
            contents=[],
        )

    def _write(self, state: State) -> State:
        if self.python.exists() and (self.root / "pyvenv.cfg").exists():
            state = state._replace(interpreter=self._interpreter())
        self._fresh_stamp.write_text(json.dumps(state._asdict(), indent=1), "utf-8")
        os.replace(self._fresh_stamp, self.stamp)
        return state


def _cause(words: str) -> str:
    """What went wrong between pip and its index and what to do, or nothing."""
    network = re.search(
        r"(?i)NewConnectionError|Max retries exceeded|NameResolutionError|getaddrinfo failed"
        r"|name resolution|Network is unreachable|ConnectTimeout|ReadTimeout|timed out"
        r"|connection broken|ConnectionReset|ProxyError|Failed to establish",
        words,
    )
    missing = re.search(r"No matching distribution found for ([^\s;]+)", words)
    if re.search(r"SSLError|SSLCertVerificationError|CERTIFICATE_VERIFY_FAILED", words):
        return (
            "pip does not trust the certificate of its index. Behind a company's proxy, name\n"
            "  its certificate (PIP_CERT) and run this again"
        )
    if network and not re.search(r"from versions: (?!none)", words):
        return (
            f"the network is down, or pip cannot reach its index ({network.group(0)}).\n"
            "  Connect, or set pip's proxy (HTTPS_PROXY) or index (PIP_INDEX_URL), and run this\n"
            "  again; it goes on by itself"
        )
    if missing:
        return (
            f"pip's index has no {missing.group(1)} for Python {sys.version.split()[0]} on this\n"
            "  machine. Try another Python from 3.11 on, or another index (PIP_INDEX_URL)"
        )
    return ""


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks: two set-ups at once are then the person's affair.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _last_line(words: str) -> str:
    return words.strip().rpartition("\n")[2]


def _last_error(words: str) -> str:
    found = re.findall(r"(?m)^\S*\s*(ERROR: .+)$", words)
    return found[-1] if found else _last_line(words)


# -- verbs --


class Verb(NamedTuple):
    """One habit: how it is called, what it does, and what does it."""

    usage: str
    summary: str
    details: str
    run: Callable[[Environment, list[str]], int]


def _setup(environment: Environment, args: list[str]) -> int:
    unknown = [arg for arg in args if arg not in ("--fresh", "--own-torch")]
    if unknown:
        raise Failure(f"setup knows no {unknown[0]}; see dev.py setup --help", 2)
    environment.ensure(Settings("--fresh" in args, "--own-torch" in args))
    state = environment.state()
    assert state is not None, "a set-up that came to its end leaves a stamp"
    whose = "its own" if state.own_torch else "found here and used as it is"
    say(f"{environment.root} is ready: torch {state.torch}, {whose}")
    say("  next: python3 dev.py up    or    {} --help".format(environment.program("aghsan")))
    return 0


def _up(environment: Environment, args: list[str]) -> int:
    environment.ensure()
    return environment.machine.become([str(environment.program("aghsan")), "up", *args])


def _test(environment: Environment, args: list[str]) -> int:
    environment.ensure()
    # Tests wait more than they compute. A file stays in one process: its tests share what it made.
    spread = ["-n", str(TEST_PROCESSES), "--dist", "loadfile"]
    argv = [str(environment.python), "-m", "pytest", *(args or spread)]
    return environment.machine.become(argv, cwd=environment.checkout)


def _bench(environment: Environment, args: list[str]) -> int:
    environment.ensure()
    argv = [str(environment.python), "-m", "benchmarks", *args]
    return environment.machine.become(argv, cwd=environment.checkout)


def _faults(environment: Environment, args: list[str]) -> int:
    environment.ensure()
    argv = [str(environment.python), "-m", "faults", *args]
    return environment.machine.become(argv, cwd=environment.checkout)


def _check(environment: Environment, args: list[str]) -> int:
    if args:
        raise Failure(f"check takes no arguments, not {args[0]}", 2)
    environment.ensure()
    python = str(environment.python)
    checks = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "mypy dev.py": [python, "-m", "mypy", "dev.py"],
        "lint-imports": [python, "-c", LINT_IMPORTS],
    }
    failed = []
    for name, argv in checks.items():
        say("-- " + name)
        if environment.machine.run(argv, cwd=environment.checkout, held=[]):
            failed.append(name)
    say("-- " + ("failed: " + ", ".join(failed) if failed else "all clean"))
    return 1 if failed else 0


VERBS = {
    "setup": Verb(
        "setup [--fresh] [--own-torch]",
        "Create or update .venv in this checkout.",
        "torch comes first, then everything pyproject.toml names. A torch that the running Python\n"
        "has already is used as it is. A second time there is nothing to do, and nothing is done.\n"
        "\n"
        "  --fresh      make the .venv anew, whatever is there\n"
        "  --own-torch  with --fresh: install torch into the .venv even where the running Python\n"
        "               has one\n"
        "\n"
        "Indexes, proxies and certificates are those of pip: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,\n"
        "HTTPS_PROXY, PIP_CERT, or its configuration file.",
        _setup,
    ),
    "up": Verb(
        "up [ARGS of aghsan up]",
        "Set up, then run everything on this machine.",
        "Server, control plane, judge and local agents; Ctrl-C ends them all. Most used:\n"
        "\n"
        "  --agents N  --train-sec S  --min-queue N  --port P  --data DIR  --no-orchestrator\n"
        "\n"
        "Once the .venv is there (python3 dev.py setup), this help lists every option.",
        _up,
    ),
    "test": Verb(
        "test [ARGS of pytest]",
        "Set up, then run the tests.",
        "Without arguments all of them, in two processes. For example:\n"
        "\n"
        "  python3 dev.py test tests/unit               one kind\n"
        "  python3 dev.py test -k champion -x           by name, stop at the first failure\n"
        "  python3 dev.py test --durations 10           and the slowest ten\n"
        "\n"
        "All of pytest's options: {python} -m pytest --help",
        _test,
    ),
    "check": Verb(
        "check",
        "Set up, then ruff, mypy --strict and import-linter.",
        "Style, layout, types, and that imports point one way. Runs all of them and ends 1 if any\n"
        "found something.",
        _check,
    ),
    "bench": Verb(
        "bench [NAME ...]",
        "Set up, then measure; results go to benchmarks/RESULTS.md.",
        "Without a name all benchmarks. Ratios within one run count, not figures across machines.",
        _bench,
    ),
    "faults": Verb(
        "faults [SUITE ...] [--seed N] [--quick | --long]",
        "Set up, then let things die and hold the log against what clients were told.",
        "Without a name all suites; docs/faults.md tells of each, and which need root. The seed\n"
        "is printed; --seed N takes it back (of sim that one seed, to the byte); --long makes\n"
        "many more tries, --quick a few, as the tests do.\n"
        "Ends 1 if an acknowledged fact was lost or an effect happened twice.",
        _faults,
    ),
}


def _overview() -> str:
    width = max(len(verb.usage) for verb in VERBS.values())
    lines = [f"  {v.usage.ljust(width)}  {v.summary}" for v in VERBS.values()]
    return "\n".join(
        ["usage: python3 dev.py VERB ...", "", *lines, "", "--help after a verb says more."]
    )


def _help(environment: Environment, name: str) -> int:
    if name == "up" and not environment.why_not_ready():
        return environment.machine.become([str(environment.program("aghsan")), "up", "--help"])
    verb = VERBS[name]
    say(
        "usage: python3 dev.py {}\n\n{}\n\n{}".format(
            verb.usage, verb.summary, verb.details.replace("{python}", str(environment.python))
        )
    )
    return 0


def run(argv: list[str], environment: Environment) -> int:
    """Do what the command line says; the exit code. Raises Failure."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0 if argv else 2
    name, args = argv[0], argv[1:]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, 1)
        hint = f"did you mean {close[0]}?" if close else "it knows " + ", ".join(VERBS)
        raise Failure(f"dev.py knows no {shlex.quote(name)}; {hint}", 2)
    if "--help" in args or "-h" in args:
        return _help(environment, name)
    if environment.runs_inside() and environment.why_not_ready():
        return _with_base_python(environment.machine, argv)
    return VERBS[name].run(environment, args)


def _with_base_python(machine: Machine, argv: list[str]) -> int:
    """A Python cannot make anew the .venv it lives in; the one that made it can."""
    base = str(getattr(sys, "_base_executable", None) or sys.executable)
    if os.path.realpath(os.path.dirname(base)).startswith(machine.prefix):
        raise Failure("run dev.py with a Python outside of .venv: python3 dev.py " + argv[0])
    os.environ.pop("__PYVENV_LAUNCHER__", None)
    return machine.become([base, str(Path(__file__).resolve()), *argv])


def _words(error: OSError, checkout: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Make room and run this again; it goes on by itself"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"cannot write {error.filename}: {error.strerror}.\n"
            f"  The environment belongs in {checkout}: make that writable, or clone to a place "
            "of your own"
        )
    return str(error)


def _stop(*_: object) -> NoReturn:
    raise Stopped


def main() -> int:
    if sys.platform == "win32":
        os.environ.setdefault("PYTHONUTF8", "1")
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGTERM, _stop)
    try:
        return run(sys.argv[1:], Environment(CHECKOUT, Machine()))
    except Failure as failure:
        sys.stderr.write(f"dev.py: {failure}\n")
        return failure.code
    except OSError as error:
        sys.stderr.write(f"dev.py: {_words(error, CHECKOUT)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ndev.py: interrupted; the next start goes on from here\n")
        return 130
    except Stopped:
        return 143


if __name__ == "__main__":
    sys.exit(main())
