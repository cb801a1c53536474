"""Backup and restore of a data directory: everything that is needed to go on elsewhere.

| member | what |
| --- | --- |
| `keys/*`, `judge/key` | the seeds of operator and accounts, and of the rounds' secrets |
| `head`, `anchor.json` | how far the log reaches, and its newest seal: what stands beside it |
| `events/*` | EVENTS: the stored blocks as they are, up to a whole append; gzip |
| `refusals/*`, `chunks/*` | messages of REFUSALS and CHUNKS, in packs |

Seals cover the time, the headers and the sequence of every record, so a log cannot be appended
again elsewhere: its stored blocks are taken, each record compared with its checksum. Only the
server's own snapshots could do the same, but where one ends is not known before it is restored, and
nothing keeps that from being inside of an atomic append. Nothing is ever deleted from EVENTS, so
the blocks up to a record that was acknowledged change no more, whether a server runs or not.

EVENTS is taken first: whatever it names was stored before, and is found in CHUNKS afterwards.
Offers, judgements, heartbeats and telemetry are caches or presence; credentials are made anew.
"""

import asyncio
import gzip
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from core import archive, audit, blocks, chunks, errors, events, platforms, replay, runtime, seals
from core import topology as streams
from core.accounts import COMPLETE, Authority
from core.audit import artifacts
from core.audit.findings import Violation
from core.bus import NO_MESSAGE, Bus
from core.chunks_jetstream import require_stored
from core.chunks_s3 import S3Chunks
from core.log import BATCH_MESSAGES_MAX, Log, Stored
from core.log_jetstream import JetStreamLog
from core.nats_server import FREE_BYTES_MIN, EmbeddedServer
from core.topology import MIB

PACK_BYTES = 8 * MIB
AT_ONCE = 16
GZIP_LEVEL = 1
"""Measured: events shrink to a sixth at 245 MB/s, by the usual 6 hardly more at 97. Chunks lose 7 %
at 36 MB/s, so they are left as they are."""
REQUEST_SECONDS = 30.0
JUDGE_KEY = "judge/key"
INFORMATION = ("meta.inf", "meta.sum")
"""What the server keeps of a stream's configuration, beside its blocks."""

_BATCH, _COMMIT = b"\r\nNats-Batch-Id:", b"\r\nNats-Batch-Commit:"
_PLAIN = re.compile(rf"keys/(?:[a-z_]+\.seed|{COMPLETE})|{JUDGE_KEY}|head|anchor\.json")
_EVENTS = re.compile(r"events/(meta\.inf|meta\.sum|[1-9][0-9]{0,17}\.blk)\.gz")
_PACK = re.compile(r"(refusals|chunks)/[0-9]{8}")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and of how many (0: not known)."""
T = TypeVar("T")


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """A message in a pack, which is a MessagePack list of them."""

    subject: str
    data: bytes


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made. `left_out` counts chunks that are not what their names say."""

    file: str
    bytes: int
    sha256: str
    last_seq: int
    chunks: int
    refusals: int
    judge_key: bool
    left_out: int
    running: bool


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A data directory that was restored. `loss` says why `up` will ask for `--accept-loss`."""

    data: str
    last_seq: int
    events: int
    chunks: int
    refusals: int
    made_at: str
    violations: list[Violation]
    violations_total: int
    loss: str


# Making one


def make(file: Path, data: Path, progress: Progress) -> Made:
    """Write a backup of a data directory into a new file, whether a server runs on it or not.

    Raises BackupError, NotFound, DataDirectoryError, LogDamaged where the log is not what it was,
    Unavailable where its server does not answer.
    """
    if data.resolve() in file.resolve().parents:
        raise errors.BackupError(
            f"{file} lies inside of the data directory {data}, and would be lost with it. Choose"
            " another folder, best on another disk."
        )
    label = archive.Label(
        format=archive.FORMAT, made_at=events.isoformat(runtime.now()), version=_version()
    )
    with archive.Writer(file, label) as writer, replay.serving(data) as access:
        return asyncio.run(_Maker(file, data, access, writer, progress).make())


def _version() -> str:
    try:
        return metadata.version("aghsan")
    except metadata.PackageNotFoundError:
        return "from its sources"


class _Maker:
    """One backup on its way."""

    def __init__(
        self,
        file: Path,
        data: Path,
        access: replay.Access,
        writer: archive.Writer,
        progress: Progress,
    ) -> None:
        self._file = file
        self._data = data
        self._access = access
        self._writer = writer
        self._progress = progress
        self._authority = Authority.load_or_create(data / "keys")
        self._unpacked = self._expected = self._left_out = 0

    async def make(self) -> Made:
        # Reading CHUNKS whole makes a consumer, which no inspector may.
        desk = self._authority.desk()
        async with replay.connect(self._access._replace(fleet=desk.pair)) as connected:
            await seals.require_whole(connected.log, self._data)
            await self._require_room(connected)
            # Before the end is known: an anchor may be older than the log, never newer.
            await self._add_file(seals.ANCHOR_FILE)
            end = await _last_whole(connected.log)
            head = seals.Head(end.seq, seals.fingerprint(end.subject, end.data))
            await self._add(seals.HEAD_FILE, msgspec.json.encode(head), seals.HEAD_BYTES)
            await self._add_events(end.seq)
            refused = _messages(connected.control, "REFUSALS", "refused.>")
            refusals = await self._add_messages("refusals", refused)
            staged = _messages(connected.fleet, "CHUNKS", "chunk.>")
            stored = await self._add_messages("chunks", staged)
            if self._access.artifacts:  # they lie in CHUNKS of a restored directory
                objects = _objects(S3Chunks(self._access.artifacts))
                stored += await self._add_messages("chunks", objects, stored)
        for path in sorted((self._data / "keys").iterdir()):
            if _PLAIN.fullmatch(f"keys/{path.name}"):
                await self._add_file(f"keys/{path.name}")
        has_judge_key = await self._add_file(JUDGE_KEY)
        digest = await asyncio.to_thread(
            lambda: self._writer.finish(
                last_seq=end.seq, chunks=stored, refusals=refusals, unpacked_bytes=self._unpacked
            )
        )
        return Made(
            file=str(self._file),
            bytes=self._writer.bytes,
            sha256=digest,
            last_seq=end.seq,
            chunks=stored,
            refusals=refusals,
            left_out=self._left_out,
            judge_key=has_judge_key,
            running=self._access.running,
        )

    async def _require_room(self, connected: replay.Connected) -> None:
        infos = {
            "EVENTS": await connected.control.api("STREAM.INFO.EVENTS"),
            "REFUSALS": await connected.control.api("STREAM.INFO.REFUSALS"),
            "CHUNKS": await connected.fleet.api("STREAM.INFO.CHUNKS"),
        }
        self._expected = sum(one.get("state", {}).get("bytes", 0) for one in infos.values())
        needed = self._expected + FREE_BYTES_MIN // 4
        free = shutil.disk_usage(self._file.absolute().parent).free
        if free < needed:
            raise errors.BackupError(
                f"The backup may need {needed // MIB} MiB, and the disk of {self._file} has"
                f" {free // MIB} MiB free. Make room, or choose a folder on another disk."
            )

    async def _add(self, name: str, data: bytes, unpacked: int) -> None:
        # In a thread: a slow disk must not keep answers waiting until the server hangs up.
        await asyncio.to_thread(self._writer.add, name, data)
        self._unpacked += unpacked
        self._progress("backup", min(self._unpacked, self._expected), self._expected)

    async def _add_file(self, name: str) -> bool:
        try:
            content = (self._data / name).read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise errors.DataDirectoryError(
                f"{self._data / name} cannot be read: {error.strerror}. Make the backup as the user"
                " that Aghsan runs as."
            ) from error
        await self._add(name, content, len(content))
        return True

    async def _add_events(self, last: int) -> None:
        folder = replay.streams_of(self._data, self._authority, "CONTROL") / "EVENTS"
        for name in INFORMATION:
            await self._add_zipped(f"events/{name}.gz", (folder / name).read_bytes())
        reached = 0
        for index, path in _blocks_of(folder / "msgs"):
            content = await asyncio.to_thread(path.read_bytes)
            first = reached + 1
            try:
                end, reached = await asyncio.to_thread(
                    blocks.up_to, content, "EVENTS", index, first, last
                )
            except ValueError as error:
                raise _unfit(str(error)) from error
            await self._add_zipped(f"events/{index}.blk.gz", content[:end])
            if reached == last:
                return
        raise _unfit(f"the stored blocks end at {reached}, the log at {last}")

    async def _add_zipped(self, name: str, content: bytes) -> None:
        packed = await asyncio.to_thread(gzip.compress, content, GZIP_LEVEL, mtime=0)
        await self._add(name, packed, len(content))

    async def _add_messages(
        self, folder: str, messages: AsyncIterator[Packed], before: int = 0
    ) -> int:
        count = before
        async for found in _packs(messages):
            pack = found
            if folder == "chunks":
                pack = await asyncio.to_thread(_sound_chunks, found)
                self._left_out += len(found) - len(pack)
            name = f"{folder}/{count:08}"
            await self._add(name, msgspec.msgpack.encode(pack), sum(len(one.data) for one in pack))
            count += len(pack)
        return count - before


def _blocks_of(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem), path) for path in folder.glob("*.blk") if path.stem.isdigit())


def _unfit(words: str) -> errors.LogDamaged:
    return errors.LogDamaged(
        f"the log is not fit for a backup: {words}. `aghsan audit` says more; to keep what is left,"
        " stop Aghsan and copy the data directory."
    )


def _sound_chunks(pack: list[Packed]) -> list[Packed]:
    """Those that are what their names say. An agent may write others, until the desk looks."""
    return [one for one in pack if chunks.digest_of(one.data) == one.subject.rpartition(".")[2]]


async def _last_whole(log: Log) -> Stored:
    """The last record that ends an append: what follows it may be part of one under way.

    Raises BackupError where there is nothing yet.
    """
    last = await log.last_seq()
    whole: Stored | None = None
    async for records in log.read_stored(last - BATCH_MESSAGES_MAX, last):
        for one in records:
            if _ends_append(one):
                whole = one
    if whole is None:
        raise errors.BackupError("The log holds nothing yet, so there is nothing to back up.")
    return whole


def _ends_append(record: Stored) -> bool:
    return _BATCH not in record.headers or _COMMIT in record.headers


async def _last_of(bus: Bus, stream: str, subject: str) -> int:
    """The sequence of the newest message there is, 0 without any; later ones were deleted."""
    answer = await bus.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    error = answer.get("error")
    if error is None:
        return int(answer["message"]["seq"])
    if error.get("err_code") == NO_MESSAGE:
        return 0
    raise errors.Unavailable(f"{stream} cannot be read: {error.get('description', error)}.")


async def _messages(bus: Bus, stream: str, subject: str) -> AsyncIterator[Packed]:
    last = await _last_of(bus, stream, subject)
    if not last:
        return
    # Refusals are forgotten, and chunks swept, while they are read.
    log = JetStreamLog(bus, stream, REQUEST_SECONDS, may_shrink=True)
    async for records in log.read(1, last):
        for record in records:
            yield Packed(record.subject, record.data)


async def _objects(store: S3Chunks) -> AsyncIterator[Packed]:
    """What lies in S3, as if it lay in CHUNKS; a damaged one without its bytes."""

    async def read(item: chunks.Item) -> Packed | None:
        subject = f"chunk.{item.writer}.{item.digest}"
        try:
            return Packed(subject, await store.get(item.writer, item.digest))
        except errors.ArtifactError:
            return Packed(subject, b"")
        except errors.NotFound:  # swept meanwhile
            return None

    items = [item async for item in store.stored()]
    for first in range(0, len(items), AT_ONCE):
        for packed in await asyncio.gather(*map(read, items[first : first + AT_ONCE])):
            if packed is not None:
                yield packed


async def _packs(messages: AsyncIterator[Packed]) -> AsyncIterator[list[Packed]]:
    pack: list[Packed] = []
    size = 0
    async for message in messages:
        pack.append(message)
        size += len(message.subject) + len(message.data)
        if size >= PACK_BYTES:
            yield pack
            pack, size = [], 0
    if pack:
        yield pack


# Restoring one


def restore(file: Path, data: Path, progress: Progress, *, accept_violations: bool) -> Restored:
    """Make a data directory of a backup; it appears at its place only once it is whole and audited.

    Raises NotFound, BackupError for a file that is no sound backup, a directory that is in the way,
    or a log that breaks its rules (unless that is accepted).
    """
    data = data.absolute()
    _require_free_place(data)
    manifest = archive.verify(file)
    _require_room_for(data, manifest)
    work = data.with_name(f".{data.name}.restoring.{secrets.token_hex(6)}")
    try:
        work.mkdir(mode=0o700)
        restored = _Restorer(file, data, work, manifest, progress).restore(accept_violations)
        _sync_tree(work)
        _require_free_place(data)
        if data.exists():
            data.rmdir()
        platforms.replace(work, data)
        platforms.sync_folder(data.parent)
    except OSError as error:
        raise errors.BackupError(
            f"{data} cannot be restored: {error.filename or work}: {error.strerror or error}."
            " Nothing is left of the attempt."
        ) from error
    finally:
        if work.exists():
            shutil.rmtree(work, ignore_errors=True)
    return restored


def _require_free_place(data: Path) -> None:
    if data.is_symlink() or (data.exists() and not data.is_dir()):
        raise errors.BackupError(f"{data} is no folder. Name one that does not exist yet.")
    if data.exists() and any(data.iterdir()):
        raise errors.BackupError(
            f"{data} is not empty, and nothing is restored over what is there. Move it away, or"
            " name another directory by --data."
        )
    if not data.parent.is_dir():
        raise errors.BackupError(
            f"There is no folder {data.parent} to restore into; make it first."
        )


def _require_room_for(data: Path, manifest: archive.Manifest) -> None:
    needed = manifest.unpacked_bytes + manifest.unpacked_bytes // 8 + FREE_BYTES_MIN
    free = shutil.disk_usage(data.parent).free
    if free < needed:
        raise errors.BackupError(
            f"The restored directory needs {needed // MIB} MiB, and the disk of {data.parent} has"
            f" {free // MIB} MiB free. Make room, or restore onto another disk."
        )


class _Restorer:
    """One restored directory on its way."""

    def __init__(
        self,
        file: Path,
        data: Path,
        work: Path,
        manifest: archive.Manifest,
        progress: Progress,
    ) -> None:
        self._file = file
        self._data = data
        self._work = work
        self._manifest = manifest
        self._progress = progress
        self._done = 0

    def restore(self, accept_violations: bool) -> Restored:
        self._write_files()
        authority = Authority.load_or_create(self._work / "keys")
        staged = self._work / "events"
        place = replay.streams_of(self._work, authority, "CONTROL") / "EVENTS"
        place.parent.mkdir(parents=True)
        platforms.replace(staged, place)
        reading = blocks.read(place / "msgs", "EVENTS")
        reading.finish()
        with EmbeddedServer(self._work, authority, synced=False) as server:
            restored = asyncio.run(self._fill(server.url, authority, reading))
        if restored.violations_total and not accept_violations:
            raise errors.BackupError(_words_of(restored))
        for path in (self._work / "nats").iterdir():
            if path.name != "js":  # made anew at every start
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return restored

    def _write_files(self) -> None:
        for name, content in archive.members(self._file, self._manifest):
            if _PLAIN.fullmatch(name):
                self._write(self._work / name, content)
            elif found := _EVENTS.fullmatch(name):
                folder = "events/msgs" if found[1].endswith(".blk") else "events"
                self._write(self._work / folder / found[1], _unzipped(self._file, content))
            elif not _PACK.fullmatch(name):
                raise errors.BackupError(
                    f"{self._file} holds {name!r}, which this version does not know. Upgrade"
                    " Aghsan, then restore."
                )

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(content)
        platforms.owner_only(path)
        self._count(len(content))

    def _count(self, size: int) -> None:
        self._done += size
        self._progress("restore", self._done, self._manifest.unpacked_bytes)

    async def _fill(self, url: str, authority: Authority, reading: blocks.Reading) -> Restored:
        """Append what was not taken as blocks, and audit the whole."""
        access = replay.Access(url, authority.control().pair, authority.desk().pair, running=False)
        async with replay.connect(access) as connected:
            await streams.apply(connected.control.api, "CONTROL", authority.declared)
            await streams.apply(connected.fleet.api, "FLEET", authority.declared)
            for pack in self._packs():
                await self._append(connected, pack)
            self._progress("audit", 0, 0)
            return await self._audited(connected, reading)

    def _packs(self) -> Iterator[list[Packed]]:
        for name, content in archive.members(self._file, self._manifest):
            if _PACK.fullmatch(name):
                try:
                    yield msgspec.msgpack.decode(content, type=list[Packed])
                except msgspec.MsgspecError as error:
                    raise errors.BackupError(
                        f"{self._file}: {name} is no pack: {error}."
                    ) from error

    async def _append(self, connected: replay.Connected, pack: Sequence[Packed]) -> None:
        for start in range(0, len(pack), AT_ONCE):
            some = pack[start : start + AT_ONCE]
            await asyncio.gather(*(self._store(connected, one) for one in some))
            self._count(sum(len(one.data) for one in some))

    async def _store(self, connected: replay.Connected, one: Packed) -> None:
        kind = one.subject.partition(".")[0]
        if kind not in ("chunk", "refused"):
            raise errors.BackupError(f"{self._file} holds a message for {one.subject!r}.")
        bus = connected.fleet if kind == "chunk" else connected.control
        require_stored(await bus.request(one.subject, one.data, REQUEST_SECONDS))

    async def _audited(self, connected: replay.Connected, reading: blocks.Reading) -> Restored:
        last = await connected.log.last_seq()
        if last != self._manifest.last_seq:
            raise errors.BackupError(
                f"The restored log ends at {last}, not at {self._manifest.last_seq} as the backup"
                " says. Nothing is left of it; use another copy of the backup."
            )
        auditor = await audit.read_log(connected.log, reading)
        for seq, words in await seals.find_losses(connected.log, self._work):
            auditor.findings.add("head", seq, words)
        named, lost = auditor.named(), auditor.lost_chunks
        await artifacts.check(connected.store, named, auditor.findings, lost)
        losses = await seals.find_losses(connected.log, self._data)
        return Restored(
            data=str(self._data),
            last_seq=last,
            events=auditor.events,
            chunks=self._manifest.chunks,
            refusals=self._manifest.refusals,
            made_at=self._manifest.label.made_at,
            violations=auditor.findings.shown,
            violations_total=auditor.findings.total,
            loss="; ".join(words for _, words in losses),
        )


def _unzipped(file: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, ValueError) as error:
        raise errors.BackupError(f"{file} holds what cannot be unpacked: {error}.") from error


def _words_of(restored: Restored) -> str:
    first = restored.violations[0]
    return (
        f"The log in the backup breaks its rules {restored.violations_total} times, first at"
        f" {first.seq} ({first.rule}: {first.detail}). Nothing was restored. Use another backup, or"
        " restore this one as it is by --accept-violations."
    )


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            platforms.sync_folder(path)
        else:
            with path.open("r+b") as file:
                platforms.sync_file(file.fileno())
