"""The state from the log alone, and the way to the log of a data directory.

Whoever runs on a data directory holds its lock (`platforms.DataLock`) and names its nats-server in
`run.json`. With the lock held the log is read from that server; with the lock free a server is
started for as long as the reading takes: for a backup on the directory, unless its disk is full,
else on a copy of what is read, since a server that starts repairs what it finds, and the directory
may be read-only.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from core import blocks, errors, intact, platforms, seals, stores
from core.accounts import COMPLETE, Authority
from core.bus import Bus
from core.chunks import ChunkStore
from core.log import Log
from core.log_jetstream import JetStreamLog
from core.nats_server import FREE_BYTES_MIN, EmbeddedServer, has_room
from core.projections.state import State
from core.runtime import fold
from core.topology import MIB, STREAM_NOT_FOUND, has_stream

# The data directory


class Copied(NamedTuple):
    """What is read from a copy of a directory that no server runs on: streams, by their account,
    and whether the blocks of the log are read before a server sees them. `why` it is read is told
    where a copy has no room."""

    streams: Mapping[str, tuple[str, ...]]
    blocks: bool
    why: str = "Without a running server a copy is read"


LOG_ALONE = Copied({"CONTROL": ("EVENTS",)}, blocks=False)
ALL_AUDITED = Copied({"CONTROL": ("EVENTS", "REFUSALS"), "FLEET": ("CHUNKS",)}, blocks=True)


class Access(NamedTuple):
    """A running nats-server on a log, and who may read there; `running` where others use it.

    `stored` is what the blocks of the log held before the server started, where they were read;
    `damage` is what a start would refuse in blocks of the other streams, in words. `artifacts` is
    where artifacts lie, as `core.stores` has it; `chunks` is the folder of CHUNKS, where nobody
    else runs.
    """

    url: str
    control: Path | tuple[str, str]
    fleet: Path | tuple[str, str]
    running: bool
    stored: blocks.Reading | None = None
    artifacts: str = ""
    chunks: Path | None = None
    damage: tuple[str, ...] = ()


class Connected(NamedTuple):
    """Connections to both accounts that store something, the log, and the artifacts."""

    control: Bus
    fleet: Bus
    log: Log
    store: ChunkStore


class _Run(msgspec.Struct, frozen=True):
    """What `run.json` tells that matters here."""

    nats: str
    data: str


@contextlib.contextmanager
def serving(data: Path, copied: Copied | None = None) -> Iterator[Access]:
    """A server for the log of a data directory: the one that runs there, or one of our own.

    Where one of our own is to read what was `copied`, nothing in the directory changes.

    Raises NotFound where there is no such directory, DataDirectoryError where it is none of ours
    or cannot be used, Unavailable where it is in use and its server cannot be found.
    """
    _require_ours(data)
    lock_path = data / "lock"
    held = _find_holder(lock_path)
    artifacts = stores.bound_to(data)
    if held is not None:
        yield _running(data, held)._replace(artifacts=artifacts)
    elif copied is not None:
        with _copied(data, lock_path, copied) as access:
            yield access._replace(artifacts=artifacts)
    else:
        with _own(data, lock_path) as access:
            yield access._replace(artifacts=artifacts)


@contextlib.asynccontextmanager
async def connect(access: Access) -> AsyncIterator[Connected]:
    """Connect to the log and to the chunks. Raises Unavailable."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(credentials: Path | tuple[str, str], name: str) -> Bus:
            try:
                bus = await Bus.connect(access.url, credentials=credentials, name=name)
            except (errors.Unavailable, errors.Invalid) as error:
                if not access.running:
                    raise
                raise errors.Unavailable(
                    f"The data directory is in use, but the nats-server that its run.json names"
                    f" cannot be read: {error} If it is just starting, try again; else stop"
                    " whoever uses the directory."
                ) from error
            stack.push_async_callback(bus.close)
            return bus

        control = await opened(access.control, "aghsan-reader")
        fleet = await opened(access.fleet, "aghsan-reader")
        store = stores.store_of(fleet, access.artifacts)
        yield Connected(control, fleet, JetStreamLog(control), store)


async def find_lost_chunks(access: Access, connected: Connected) -> str:
    """Why no artifact can be read, "" where CHUNKS is there. Raises Unavailable."""
    if await has_stream(connected.fleet.api, "CHUNKS"):
        return ""
    place = f"There is no folder {access.chunks}" if access.chunks else "There is no stream CHUNKS"
    if access.artifacts:
        what = f"through which artifacts come to {access.artifacts}, so none was read"
    else:
        what = "which held all artifacts, so all that the log names are gone"
    return (
        f"{place}, {what}. Put it back or restore a backup; `aghsan up --accept-loss` goes on"
        " without it."
    )


async def count_refusals(control: Bus) -> int:
    """How many records REFUSALS holds. Raises Unavailable."""
    info = await control.api("STREAM.INFO.REFUSALS")
    error = info.get("error")
    if not error:
        return int(info["state"]["messages"])
    if error.get("err_code") == STREAM_NOT_FOUND:
        return 0
    raise errors.Unavailable(f"REFUSALS cannot be counted: {error.get('description', error)}.")


def _require_ours(data: Path) -> None:
    if not data.exists():
        raise errors.NotFound(f"There is no data directory {data}. `--data` names another.")
    if not data.is_dir():
        raise errors.DataDirectoryError(f"{data} is a file, not a data directory.")
    if not (data / "keys" / COMPLETE).is_file() or not _store_of(data).is_dir():
        raise errors.DataDirectoryError(
            f"{data} is no data directory of Aghsan: it lacks keys/{COMPLETE} or nats/js, which"
            " `aghsan up` makes. `--data` names another; nothing was changed here."
        )


def _store_of(data: Path) -> Path:
    return data / "nats" / "js"


def _find_holder(lock_path: Path) -> errors.DataDirectoryError | None:
    """Who uses the directory, in the words of the refused lock; None where nobody does."""
    if not lock_path.exists():
        return None
    try:
        with platforms.DataLock(lock_path, traceless=True):
            return None
    except errors.DataDirectoryError as error:
        return error


def _running(data: Path, held: errors.DataDirectoryError) -> Access:
    """Where the holder of the lock says that its server is."""
    path = data / "run.json"
    try:
        run = msgspec.json.decode(path.read_bytes(), type=_Run)
        here = os.path.samefile(run.data, data)
    except FileNotFoundError:
        raise errors.Unavailable(
            f"{held} It has not said in {path.name} where its nats-server is: it is just starting,"
            " or another command reads here. Try again in a moment."
        ) from held
    except (OSError, msgspec.MsgspecError) as error:
        raise errors.Unavailable(f"{held} Its {path.name} cannot be used: {error}.") from held
    if not here:
        raise errors.Unavailable(
            f"{held} Its {path.name} was left by a server of {run.data}. Try again in a moment."
        ) from held
    creds = data / "creds"
    return Access(run.nats, creds / "control.creds", creds / "inspect-fleet.creds", running=True)


@contextlib.contextmanager
def _started(data: Path) -> Iterator[Access]:
    authority = Authority.load_or_create(data / "keys")
    _require_log(data, authority)
    with EmbeddedServer(data, authority) as server:
        yield Access(
            server.url,
            authority.control().pair,  # reading the log makes a consumer, which no inspector may
            authority.inspector("FLEET").pair,
            running=False,
            chunks=chunks_of(data, authority),
        )


@contextlib.contextmanager
def _own(data: Path, lock_path: Path) -> Iterator[Access]:
    """A server on the directory itself; on a copy elsewhere where the disk has no room for it."""
    authority = Authority.load_or_create(data / "keys")
    if has_room(data):
        with platforms.DataLock(lock_path):
            prepare_start(data, authority)
            with _started(data) as access:
                yield access
    else:
        with platforms.DataLock(lock_path, traceless=True):
            prepare_start(data, authority)
        why = f"The disk of {data} is full, so a copy is read"
        with _copied(data, lock_path, ALL_AUDITED._replace(blocks=False, why=why)) as access:
            yield access


@contextlib.contextmanager
def _copied(data: Path, lock_path: Path, wanted: Copied) -> Iterator[Access]:
    """A server on a temporary copy of the streams that are wanted, and of the keys."""
    # The folder is for its owner only, as the keys in it need.
    with _temporary() as folder:
        copy = Path(folder)
        with contextlib.ExitStack() as stack:
            if lock_path.exists():  # else it is a copy, and nobody ever ran there
                stack.enter_context(platforms.DataLock(lock_path, traceless=True))
            try:
                shutil.copytree(data / "keys", copy / "keys", copy_function=shutil.copyfile)
                authority = Authority.load_or_create(copy / "keys")
                _require_log(data, authority)
                _copy_streams(data, copy, authority, wanted)
            except shutil.Error as error:
                raise errors.DataDirectoryError(f"{data} cannot be copied: {error}.") from error
        stored, damage = None, []
        lasting = _lasting(data, authority)
        log = lasting.pop(intact.LOG)
        read = streams_of(copy, authority, "CONTROL") / "EVENTS" / "msgs"
        if wanted.blocks:
            stored = blocks.read(read, "EVENTS")
            stored.finish()
            damage = intact.find_damage(lasting)
        intact.mend_copy(data, log, read)
        with _started(copy) as access:
            chunks = chunks_of(data, authority)
            yield access._replace(stored=stored, chunks=chunks, damage=tuple(damage))


def _lasting(data: Path, authority: Authority) -> dict[str, Path]:
    """The folders of blocks that a start looks at, by stream."""
    return {
        name: streams_of(data, authority, account) / name / "msgs"
        for account, names in intact.LASTING.items()
        for name in names
    }


def _require_log(data: Path, authority: Authority) -> None:
    events = streams_of(data, authority, "CONTROL") / "EVENTS"
    if events.is_dir():
        return
    if seals.has_head(data) or chunks_of(data, authority).is_dir():
        raise errors.LogDamaged(
            f"the log is gone: there is no folder {events}, and nothing else says what happened."
            " Put it back, or restore a backup"
        )
    raise errors.DataDirectoryError(f"{data} holds no log yet: `aghsan up` was never ready on it.")


def streams_of(data: Path, authority: Authority, account: str) -> Path:
    """Where the server keeps the streams of an account."""
    return _store_of(data) / "jetstream" / authority.public_key(account) / "streams"


def chunks_of(data: Path, authority: Authority) -> Path:
    """Where the server keeps CHUNKS."""
    return streams_of(data, authority, "FLEET") / "CHUNKS"


def require_keys(data: Path) -> None:
    """Refuse a store whose keys are gone: others would not open it. Raises DataDirectoryError."""
    if _store_of(data).is_dir() and not (data / "keys" / COMPLETE).is_file():
        raise errors.DataDirectoryError(
            f"{data / 'keys'} is gone or not whole, and without it nobody can open what"
            f" {_store_of(data)} holds. Put it back, or restore a backup; nothing was changed."
        )


def prepare_start(
    data: Path,
    authority: Authority,
    progress: intact.Progress = lambda *_: None,
    *,
    accept_loss: bool = False,
) -> None:
    """Refuse a log that is damaged or ends before `head` says, or whose artifacts are gone, before
    a server starts on it and repairs it.

    Where the loss is accepted, have that server go by what is stored. Raises LogDamaged,
    DataDirectoryError.
    """
    folders = _lasting(data, authority)
    if accept_loss:
        intact.accept(data, folders, progress)
        return
    found = intact.require(data, folders, progress)
    last_seq = found[intact.LOG].last_seq
    seals.require_end(last_seq, data)
    intact.require_end(last_seq, folders)
    chunks = chunks_of(data, authority)
    if last_seq == 0 and any(one.stat().st_size for one in chunks.glob("msgs/*.blk")):
        raise errors.LogDamaged(
            f"the log is gone: there is nothing in {folders[intact.LOG]}, and {chunks} holds"
            " artifacts. Restore a backup, or begin anew by `aghsan up --accept-loss`"
        )
    if seals.has_head(data) and not chunks.is_dir():
        raise errors.LogDamaged(
            f"all artifacts are gone: there is no {chunks}, and the log names what it held. Restore"
            " a backup, or go on without them by `aghsan up --accept-loss`"
        )
    intact.note_checked(data, found)


def _copy_streams(data: Path, copy: Path, authority: Authority, wanted: Copied) -> None:
    files: list[tuple[Path, Path]] = []
    for account, names in wanted.streams.items():
        source = streams_of(data, authority, account)
        target = streams_of(copy, authority, account)
        for name in names:
            # Without `obs`, the consumers: none of them is read.
            for path in (*(source / name).glob("*"), *(source / name / "msgs").glob("*")):
                if path.is_file():
                    files.append((path, target / path.relative_to(source)))
    _require_room(copy, sum(path.stat().st_size for path, _ in files), wanted.why)
    for path, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The bytes without permissions: the source may be read-only.
        shutil.copyfile(path, target)


def _temporary() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="aghsan-")
    except OSError as error:
        raise errors.DataDirectoryError(
            f"There is no folder for the copy that is read: {error.strerror}. Set TMPDIR to one"
            " with room."
        ) from error


def _require_room(folder: Path, copied_bytes: int, why: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < copied_bytes + FREE_BYTES_MIN:
        raise errors.DataDirectoryError(
            f"{why}: {copied_bytes // MIB} MiB, and"
            f" {FREE_BYTES_MIN // MIB} MiB to work in, but the disk of {folder.parent} has"
            f" {free // MIB} MiB free. Set TMPDIR to a folder with room, or do it while it runs."
        )


# The state


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The state at `last_seq`, in numbers. `state_hash` is that of `State.hash`."""

    events: int
    last_seq: int
    state_hash: str
    quarantined: int
    nodes: int
    champions: int
    tasks: dict[str, int]
    workers: int
    rounds: int
    writer_epoch: int
    seconds: float
    events_per_second: float


async def replay(log: Log, at: int | None = None) -> Replayed:
    """Fold the log up to sequence `at` (default: its end) into a fresh state.

    Raises NotFound where the log ends before `at`, LogUnavailable where it cannot be read.
    """
    last = await log.last_seq()
    if at is not None and at > last:
        raise errors.NotFound(f"The log ends at {last}; there is no {at} yet.")
    began = time.perf_counter()
    state = State()
    await fold(log, state, last if at is None else at)
    seconds = time.perf_counter() - began
    return Replayed(
        events=state.seq,  # a log has no gaps; the audit checks that
        last_seq=state.seq,
        state_hash=state.hash(),
        quarantined=len(state.quarantine),
        nodes=len(state.graph.nodes),
        champions=len(state.graph.champions),
        tasks=dict(state.tasks.counts),
        workers=len(state.workers.table),
        rounds=len(state.rounds.table),
        writer_epoch=state.epoch,
        seconds=round(seconds, 3),
        events_per_second=round(state.seq / seconds, 1),
    )
