"""A network of its own for a test: another host's side, on a cable that can be pulled."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core import errors, platforms

HERE = "10.231.77.1"
THERE = "10.231.77.2"
NAMESPACE = "aghsan-there"
CABLE = ("aghsan-here", "aghsan-far")
NOBODY = "02:00:00:00:00:01"
_ENDS = (
    ((), THERE, CABLE[0]),
    (("-n", NAMESPACE), HERE, CABLE[1]),
)
"""How to speak of each end, the address of the other, and the end's device."""


def why_not() -> str:
    """Why no such network can be made here; "" where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "only root may make network namespaces"
    return "" if shutil.which("ip") else "there is no `ip` (iproute2)"


class Cable:
    """Between this side (`HERE`) and the namespace."""

    @property
    def there(self) -> list[str]:
        """What to put before a command so that it runs on the other side."""
        return ["ip", "netns", "exec", NAMESPACE]

    def pull(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        _run("ip", "link", "set", CABLE[0], "down")

    def plug(self) -> None:
        """All gets through again."""
        _run("ip", "link", "set", CABLE[0], "up")

    def drop(self) -> None:
        """From now on every packet is lost on its way, and neither end's kernel knows: each tries
        again ever more rarely, as over the internet, where `pull` has them try twice a second."""
        for where, there, cable in _ENDS:
            neighbour = (there, "lladdr", NOBODY, "dev", cable, "nud", "permanent")
            _run("ip", *where, "neigh", "replace", *neighbour)

    def carry(self) -> None:
        """Packets arrive again."""
        for where, there, cable in _ENDS:
            _run("ip", *where, "neigh", "del", there, "dev", cable)


@contextlib.contextmanager
def apart() -> Iterator[Cable]:
    """Another side, for as long as the block lasts; only where `why_not` says nothing.

    Raises OSError where it cannot be made.
    """
    with _alone():
        _sweep()
        with _made() as cable:
            yield cable


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Addresses and names are those of one run at a time."""
    lock = platforms.DataLock(Path(tempfile.gettempdir()) / f"{NAMESPACE}.lock")
    try:
        lock.acquire()
    except errors.DirectoryInUse as error:
        raise OSError(
            f"another run uses the network namespace {NAMESPACE}: wait for its end"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sweep() -> None:
    """Remove what a run that was killed left: its processes there, the namespace, the cable."""
    if NAMESPACE in _run("ip", "netns", "list").split():
        for pid in _run("ip", "netns", "pids", NAMESPACE).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "del", NAMESPACE)
    # The cable outlives the name, for as long as a process there takes to end.
    with contextlib.suppress(OSError):
        _run("ip", "link", "del", CABLE[0])


@contextlib.contextmanager
def _made() -> Iterator[Cable]:
    _run("ip", "netns", "add", NAMESPACE)
    try:
        _run("ip", "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        _run("ip", "link", "set", CABLE[1], "netns", NAMESPACE)
        _run("ip", "addr", "add", f"{HERE}/30", "dev", CABLE[0])
        _run("ip", "-n", NAMESPACE, "addr", "add", f"{THERE}/30", "dev", CABLE[1])
        for name in (CABLE[1], "lo"):
            _run("ip", "-n", NAMESPACE, "link", "set", name, "up")
        cable = Cable()
        cable.plug()
        yield cable
    finally:
        _run("ip", "netns", "del", NAMESPACE)  # and with it both ends of the cable


def _run(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise OSError(f"{' '.join(command)}: {ran.stderr.strip()}")
    return ran.stdout
