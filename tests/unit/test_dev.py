"""dev.py: what set-up does, what it leaves alone, and how it says what went wrong."""

import ast
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import dev

ROOT = Path(dev.__file__).resolve().parent
PYPROJECT = """
[project]
dependencies = ["click>=8", "torch==2.13.0", "torch-like>=1"]
[project.optional-dependencies]
dev = ["pytest>=8"]
"""


class Machine(dev.Machine):
    """A machine whose commands only pretend, and are remembered."""

    def __init__(self, checkout: Path, *, windows: bool = False, torch: str = "") -> None:
        self.windows, self.linux = windows, not windows
        self.python, self.prefix, self.in_a_venv = "/usr/bin/python3", "/usr", False
        self.torch, self.torch_starts = torch, True
        self.free = 100 * dev.GIB
        self.missing: list[str] = []
        self.asked: list[list[str]] = []
        self.failing: dict[str, tuple[int, str]] = {}
        self.on_pip: Callable[[], None] = lambda: None
        self.became: list[str] = []
        self._root = checkout / ".venv"
        self._shared = False

    @property
    def packages(self) -> Path:
        return self._root / (
            "Lib/site-packages" if self.windows else "lib/python3.11/site-packages"
        )

    @property
    def scripts(self) -> Path:
        return self._root / ("Scripts" if self.windows else "bin")

    @property
    def pips(self) -> list[list[str]]:
        """What pip was asked to install, its own options left out."""
        return [argv[argv.index("--log") + 2 :] for argv in self.asked if "install" in argv]

    def torch_version(self) -> str:
        return self.torch

    def site_packages(self) -> str:
        return "/elsewhere/site-packages"

    def lacking(self) -> list[str]:
        return self.missing

    def free_bytes(self, directory: Path) -> int:
        return self.free

    def ask(self, argv: list[str], *, cwd: Path, held: list[int]) -> tuple[int, str]:
        self.asked.append(argv)
        if "venv" in argv:
            return self._venv(argv)
        if dev.PROBE in argv:
            return self._probe()
        return 0, "True"

    def _venv(self, argv: list[str]) -> tuple[int, str]:
        if "venv" in self.failing:
            return self.failing["venv"]
        self._shared = "--system-site-packages" in argv
        self.packages.mkdir(parents=True)
        self.scripts.mkdir(parents=True)
        if self.windows:
            (self.scripts / "python.exe").touch()
        else:
            (self.scripts / "python").symlink_to(sys.executable)
        (self._root / "pyvenv.cfg").write_text("home = /usr\n", "utf-8")
        return 0, ""

    def _probe(self) -> tuple[int, str]:
        if (self.packages / "torch").exists():
            return 0, "2.13.0+cpu"
        given = self._shared or (self.packages / "aghsan-given-torch.pth").exists()
        if given and self.torch_starts:
            return 0, "a warning\n" + self.torch
        return 1, "Traceback ...\nImportError: libcudart.so.12"

    def run(self, argv: list[str], *, cwd: Path, held: list[int]) -> int:
        self.asked.append(argv)
        if "install" not in argv:
            return next((code for word, (code, _) in self.failing.items() if word in argv), 0)
        self.on_pip()
        for word, (code, log) in self.failing.items():
            if word in argv:
                Path(argv[argv.index("--log") + 1]).write_text(log, "utf-8")
                return code
        names = ["torch"] if "torch==2.13.0" in argv else ["click"]
        for name in names:
            (self.packages / name).mkdir(exist_ok=True)
        if "-e" in argv:
            (self.packages / "_editable_impl_aghsan.pth").touch()
            (self.scripts / ("aghsan.exe" if self.windows else "aghsan")).touch()
        return 0

    def become(self, argv: list[str], *, cwd: Path | None = None) -> int:
        self.became = argv
        return 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "نسخة of mine"
    place.mkdir()
    (place / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    return place


def _ready(checkout: Path, machine: Machine | None = None) -> tuple[dev.Environment, Machine]:
    machine = machine or Machine(checkout)
    environment = dev.Environment(checkout, machine)
    environment.ensure()
    machine.asked.clear()
    return environment, machine


def _made_anew(machine: Machine) -> bool:
    return any("venv" in argv for argv in machine.asked)


# -- what is installed --


@pytest.mark.parametrize("windows", [False, True])
def test_the_pinned_torch_comes_first_then_everything_else(checkout: Path, windows: bool) -> None:
    machine = Machine(checkout, windows=windows)
    environment = dev.Environment(checkout, machine)
    environment.ensure()
    assert machine.pips == [["torch==2.13.0"], ["-e", ".[dev]"]]
    assert environment.why_not_ready() == ""


def test_a_second_start_runs_nothing(checkout: Path) -> None:
    environment, machine = _ready(checkout)
    environment.ensure()
    assert machine.asked == []


def test_a_torch_that_is_there_is_used_as_it_is(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(checkout, torch="2.6.0+cu124")
    environment = dev.Environment(checkout, machine)
    environment.ensure()
    assert "--system-site-packages" in machine.asked[0]
    constraint = environment.root / "given-torch.txt"
    others = ["click>=8", "torch-like>=1", "pytest>=8"]
    assert machine.pips == [["-c", str(constraint), *others], ["--no-deps", "-e", "."]]
    assert constraint.read_text("utf-8") == "torch==2.6.0+cu124\n"
    assert "torch 2.6.0+cu124 of /usr/bin/python3 is used as it is" in capsys.readouterr().out


def test_the_torch_of_another_venv_is_reached_by_a_path_file(checkout: Path) -> None:
    machine = Machine(checkout, torch="2.6.0")
    machine.in_a_venv = True
    dev.Environment(checkout, machine).ensure()
    assert "--system-site-packages" not in machine.asked[0]
    path = machine.packages / "aghsan-given-torch.pth"
    assert path.read_text("utf-8") == "/elsewhere/site-packages\n"


def test_a_torch_that_does_not_start_is_replaced_by_an_own_one(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(checkout, torch="2.6.0+cu124")
    machine.torch_starts = False
    dev.Environment(checkout, machine).ensure()
    assert machine.pips[0] == ["torch==2.13.0"]
    assert "libcudart" in capsys.readouterr().out


def test_an_own_torch_can_be_asked_for(checkout: Path) -> None:
    machine = Machine(checkout, torch="2.6.0")
    dev.Environment(checkout, machine).ensure(dev.Settings(fresh=True, own_torch=True))
    assert machine.pips[0] == ["torch==2.13.0"]


def test_the_requirements_of_this_checkout_are_read() -> None:
    pin, others = dev.Environment(ROOT, dev.Machine())._requirements()
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", pin)
    assert "click>=8.2" in others


# -- what changes, and what does not --


def test_a_changed_pyproject_is_installed_into_the_same_venv(checkout: Path) -> None:
    environment, machine = _ready(checkout)
    with (checkout / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# more\n")
    environment.ensure()
    assert not _made_anew(machine)
    assert len(machine.pips) == 2
    assert environment.why_not_ready() == ""


def test_another_python_than_the_maker_leaves_the_venv_as_it_is(checkout: Path) -> None:
    _ready(checkout)
    other = Machine(checkout, torch="2.6.0+cu124")
    other.prefix = "/opt/conda"
    dev.Environment(checkout, other).ensure()
    assert other.asked == []


def test_a_torch_that_came_to_the_maker_is_taken_up(checkout: Path) -> None:
    _, machine = _ready(checkout)
    machine.torch = "2.6.0+cu124"
    dev.Environment(checkout, machine).ensure()
    assert _made_anew(machine)
    assert machine.pips[-1] == ["--no-deps", "-e", "."]


@pytest.mark.parametrize("lost", ["python", "aghsan", "click", "_editable_impl_aghsan.pth"])
def test_a_damaged_venv_is_made_anew(
    checkout: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environment, machine = _ready(checkout)
    for place in (machine.scripts / lost, machine.packages / lost):
        if place.is_dir():
            place.rmdir()
        else:
            place.unlink(missing_ok=True)
    environment.ensure()
    assert _made_anew(machine)
    assert "damaged" in capsys.readouterr().out
    assert environment.why_not_ready() == ""


def test_an_upgrade_by_hand_is_no_damage(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.on_pip = lambda: (machine.packages / "click-8.2.0.dist-info").mkdir(exist_ok=True)
    environment, _ = _ready(checkout, machine)
    (machine.packages / "click-8.2.0.dist-info").rename(machine.packages / "click-8.3.0.dist-info")
    assert environment.why_not_ready() == ""


def test_a_copy_of_the_checkout_does_not_use_the_venv_of_the_first(checkout: Path) -> None:
    _ready(checkout)
    copy = checkout.with_name("copy")
    shutil.copytree(checkout, copy, symlinks=True)
    machine = Machine(copy)
    dev.Environment(copy, machine).ensure()
    assert _made_anew(machine)


# -- interruptions --


class Killed(BaseException):
    """What a power cut would be."""


@pytest.mark.parametrize("at", [1, 2])
def test_a_setup_that_was_killed_while_installing_is_made_anew(checkout: Path, at: int) -> None:
    machine = Machine(checkout)
    starts = 0

    def cut() -> None:
        nonlocal starts
        starts += 1
        if starts == at:
            raise Killed

    machine.on_pip = cut
    environment = dev.Environment(checkout, machine)
    with pytest.raises(Killed):
        environment.ensure()
    machine.asked.clear()
    environment.ensure()
    assert _made_anew(machine)
    assert environment.why_not_ready() == ""


def test_a_setup_that_was_killed_while_making_the_venv_is_made_anew(checkout: Path) -> None:
    machine = Machine(checkout)
    environment = dev.Environment(checkout, machine)
    environment.root.mkdir()
    environment._write(environment._blank())
    (environment.root / "bin").mkdir()
    environment.ensure()
    assert environment.why_not_ready() == ""


def test_a_setup_that_was_killed_while_clearing_is_made_anew(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, machine = _ready(checkout)
    (environment.root / "pyvenv.cfg").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", _cut)
        with pytest.raises(Killed):
            environment.ensure()
    environment.ensure()
    assert _made_anew(machine)
    assert environment.why_not_ready() == ""


def _cut(*_: object) -> None:
    raise Killed


def test_a_pip_that_failed_before_installing_anything_is_gone_on_from(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.failing["-e"] = (1, "NewConnectionError")
    environment = dev.Environment(checkout, machine)
    with pytest.raises(dev.Failure):
        environment.ensure()
    machine.failing.clear()
    machine.asked.clear()
    environment.ensure()
    assert not _made_anew(machine)
    assert environment.why_not_ready() == ""


def test_a_pip_that_failed_while_installing_is_not_gone_on_from(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.failing["-e"] = (1, "Installing collected packages: click\nERROR: [Errno 28] ...")
    environment = dev.Environment(checkout, machine)
    with pytest.raises(dev.Failure, match="disk is full"):
        environment.ensure()
    machine.failing.clear()
    machine.asked.clear()
    environment.ensure()
    assert _made_anew(machine)


def test_of_two_setups_at_once_the_second_waits_and_has_nothing_to_do(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Machine(checkout), Machine(checkout)
    inside, waiting = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert waiting.wait(10)

    def hear(words: str) -> None:
        if "waiting" in words:
            waiting.set()

    monkeypatch.setattr(dev, "say", hear)
    first.on_pip = hold
    one = threading.Thread(target=dev.Environment(checkout, first).ensure)
    two = threading.Thread(target=dev.Environment(checkout, second).ensure)
    one.start()
    assert inside.wait(10)
    two.start()
    one.join(10)
    two.join(10)
    assert first.pips
    assert second.asked == []


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are inherited on POSIX only")
def test_the_lock_outlives_a_killed_setup_until_its_pip_ends(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    code = (
        "import dev, pathlib\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "one = dev.Environment(here, dev.Machine())\n"
        "with one._lock():\n"
        "    one.machine.run(['sh', '-c', 'echo $$; exec sleep 60'], cwd=here, held=one._held)\n"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as setup:
        assert setup.stdout is not None
        pip = int(setup.stdout.readline())
        setup.kill()
        setup.wait()
        with (tmp_path / ".venv" / ".setup-lock").open("a+b") as file:
            assert not dev._try_lock(file)
            os.kill(pip, signal.SIGKILL)
            setup.stdout.read()
            assert dev._try_lock(file)


# -- words for what went wrong --

_MISSING = "\nERROR: No matching distribution found for torch==2.13.0"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("WARNING: Retrying ... NewConnectionError('Temporary failure')", "the network is down"),
        ("ERROR: HTTPSConnectionPool: Max retries exceeded with url", "the network is down"),
        (
            "Retrying: Failed to establish ...\nERROR: Could not find torch (from versions: none)"
            + _MISSING,
            "the network is down",
        ),
        ("SSLError(SSLCertVerificationError(1, 'self-signed'))", "PIP_CERT"),
        (
            "timed out once\nERROR: Could not find torch (from versions: 2.1, 2.2)" + _MISSING,
            "has no torch==2.13.0 for Python",
        ),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("x ERROR: something new\nmore", "ERROR: something new"),
    ],
)
def test_what_pip_ran_into_is_said_with_what_to_do(checkout: Path, log: str, words: str) -> None:
    machine = Machine(checkout)
    machine.failing["torch==2.13.0"] = (1, log)
    with pytest.raises(dev.Failure, match=re.escape(words)):
        dev.Environment(checkout, machine).ensure()


def test_a_disk_that_filled_up_is_seen_even_if_pip_could_not_log_it(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.failing["torch==2.13.0"] = (1, "")

    def fill() -> None:
        machine.free = 0

    machine.on_pip = fill
    with pytest.raises(dev.Failure, match="disk is full"):
        dev.Environment(checkout, machine).ensure()


def test_too_little_room_is_said_before_anything_is_made(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.free = dev.GIB
    with pytest.raises(dev.Failure, match=r"1\.0 GiB are free .* at least 2\.0 GiB"):
        dev.Environment(checkout, machine).ensure()
    assert machine.asked == []


def test_a_python_without_venv_is_told_which_package_has_it(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.missing = ["ensurepip"]
    with pytest.raises(dev.Failure, match=r"apt install python3\.\d+-venv"):
        dev.Environment(checkout, machine).ensure()
    machine.missing = []
    machine.failing["venv"] = (1, "not created successfully because ensurepip is not available")
    with pytest.raises(dev.Failure, match=r"apt install python3\.\d+-venv"):
        dev.Environment(checkout, machine).ensure()


def test_a_venv_somebody_made_by_hand_is_kept_with_its_torch(checkout: Path) -> None:
    machine = Machine(checkout)
    machine._venv([])
    (machine.packages / "torch").mkdir()
    dev.Environment(checkout, machine).ensure()
    assert not _made_anew(machine)
    assert machine.pips[-1] == ["--no-deps", "-e", "."]


def test_a_damaged_venv_of_somebody_else_is_not_touched(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(checkout)
    machine._venv([])
    monkeypatch.setattr(machine, "ask", lambda *_, **__: (127, "no such file"))
    with pytest.raises(dev.Failure, match="its Python does not start"):
        dev.Environment(checkout, machine).ensure()
    assert machine.packages.exists()


def test_a_folder_that_is_no_environment_is_not_touched(checkout: Path) -> None:
    (checkout / ".venv" / "photos").mkdir(parents=True)
    with pytest.raises(dev.Failure, match="no Python environment"):
        dev.Environment(checkout, Machine(checkout)).ensure()
    assert (checkout / ".venv" / "photos").exists()


def test_a_file_in_the_place_of_the_venv_is_named(checkout: Path) -> None:
    (checkout / ".venv").touch()
    with pytest.raises(dev.Failure, match="is a file"):
        dev.Environment(checkout, Machine(checkout)).ensure()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "make that writable"),
        (errno.EACCES, "make that writable"),
        (errno.ENOSPC, "disk is full"),
    ],
)
def test_a_checkout_that_cannot_be_written_ends_in_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    words: str,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number), "/a/checkout/.venv")

    monkeypatch.setattr(dev, "run", refuse)
    before = signal.getsignal(signal.SIGTERM)
    assert dev.main() == 1
    signal.signal(signal.SIGTERM, before)
    assert words in capsys.readouterr().err


def test_a_python_too_old_is_told_so_and_can_read_the_file_that_says_it() -> None:
    source = (ROOT / "dev.py").read_text("utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__" not in source
    code = (
        "import runpy, sys\n"
        "sys.version_info, sys.version = (3, 8, 10, 'final', 0), '3.8.10 (default)'\n"
        "runpy.run_path('dev.py', run_name='__main__')"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; this is 3.8.10" in done.stderr
    assert "Traceback" not in done.stderr


# -- verbs --


def _run(checkout: Path, machine: Machine, *argv: str) -> int:
    return dev.run(list(argv), dev.Environment(checkout, machine))


@pytest.mark.parametrize("verb", dev.VERBS)
def test_help_after_any_verb_ends_0_and_sets_nothing_up(
    checkout: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(checkout)
    assert _run(checkout, machine, verb, "--help") == 0
    assert f"usage: python3 dev.py {verb}" in capsys.readouterr().out
    assert machine.asked == []


def test_up_hands_its_help_and_its_arguments_on(checkout: Path) -> None:
    _, machine = _ready(checkout)
    aghsan = str(checkout / ".venv" / "bin" / "aghsan")
    assert _run(checkout, machine, "up", "--help") == 0
    assert machine.became == [aghsan, "up", "--help"]
    assert _run(checkout, machine, "up", "--agents", "2", "--data", "a b") == 0
    assert machine.became == [aghsan, "up", "--agents", "2", "--data", "a b"]


def test_the_options_that_the_help_of_up_names_exist() -> None:
    declared = (ROOT / "cli" / "up.py").read_text("utf-8")
    for option in re.findall(r"--[a-z-]+", dev.VERBS["up"].details):
        assert f'"{option}"' in declared


def test_test_becomes_pytest_with_its_arguments(checkout: Path) -> None:
    machine = Machine(checkout)
    assert _run(checkout, machine, "test", "-k", "champion") == 0
    python = str(checkout / ".venv" / "bin" / "python")
    assert machine.became == [python, "-m", "pytest", "-k", "champion"]
    assert machine.pips


def test_all_tests_are_spread_over_two_processes(checkout: Path) -> None:
    machine = Machine(checkout)
    assert _run(checkout, machine, "test") == 0
    assert machine.became[2:] == ["pytest", "-n", "2", "--dist", "loadfile"]


def test_on_windows_programs_lie_in_scripts(checkout: Path) -> None:
    machine = Machine(checkout, windows=True)
    assert _run(checkout, machine, "up") == 0
    assert machine.became == [str(checkout / ".venv" / "Scripts" / "aghsan.exe"), "up"]


def test_check_runs_every_check_and_names_those_that_failed(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, machine = _ready(checkout)
    assert _run(checkout, machine, "check") == 0
    machine.failing["--check"] = (1, "")
    assert _run(checkout, machine, "check") == 1
    assert "failed: ruff format\n" in capsys.readouterr().out
    assert len(machine.asked) == 10
    # By nothing but the .venv's Python: the packages, and their programs, may be another venv's.
    assert {argv[0] for argv in machine.asked} == {str(checkout / ".venv" / "bin" / "python")}


@pytest.mark.parametrize("argv", [["tset"], ["setup", "--nonsense"], ["check", "more"]])
def test_a_slip_is_a_usage_error_and_changes_nothing(checkout: Path, argv: list[str]) -> None:
    machine = Machine(checkout)
    with pytest.raises(dev.Failure) as caught:
        _run(checkout, machine, *argv)
    assert caught.value.code == 2
    assert machine.asked == []


def test_the_python_of_a_venv_that_must_be_made_anew_steps_aside(checkout: Path) -> None:
    machine = Machine(checkout)
    machine.prefix = os.path.realpath(checkout / ".venv")
    assert _run(checkout, machine, "test", "-x") == 0
    assert machine.became[1:] == [str(ROOT / "dev.py"), "test", "-x"]


def test_the_file_runs_as_a_program() -> None:
    argv = [sys.executable, "dev.py", "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    for verb in dev.VERBS:
        assert f"  {verb}" in done.stdout
