"""Snapshots in the stream OBJ_SNAPSHOTS, laid out as an object store of NATS (ADR-20).

Each part is a message on `$O.SNAPSHOTS.C.<name>`; the head stands, as one more field, in the
object's description on `$O.SNAPSHOTS.M.<name in base64>`. So `nats object ls SNAPSHOTS` shows them.
"""

import asyncio
import base64
import contextlib
import datetime
import hashlib
from collections.abc import AsyncIterator, Collection
from typing import Any, NamedTuple

import msgspec

from core import errors
from core.bus import SEQUENCE, STATUS, STORE_FULL, Bus, Incoming
from core.snapshots import Kept

BUCKET = "SNAPSHOTS"
STREAM = f"OBJ_{BUCKET}"
_PARTS = f"$O.{BUCKET}.C."
_HEADS = f"$O.{BUCKET}.M."
READ_PARTS = 16
READ_BYTES = 16 * 1024 * 1024
REQUEST_SECONDS = 10.0


class _Fault(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Receipt(msgspec.Struct):
    error: _Fault | None = None


class _Object(msgspec.Struct, frozen=True, kw_only=True):
    """What ADR-20 says of an object, and the head."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str
    head: msgspec.Raw


class _Draft:
    """What was added of an unfinished snapshot."""

    def __init__(self) -> None:
        self.size = self.parts = 0
        self.digest = hashlib.sha256()

    def add(self, part: bytes) -> None:
        self.size += len(part)
        self.parts += 1
        self.digest.update(part)


class _Batch(NamedTuple):
    parts: list[bytes]
    next_seq: int
    """Where to go on, 0 at the end."""


class JetStreamSnapshots:
    """A `core.snapshots.SnapshotStore` in CONTROL."""

    def __init__(self, control: Bus) -> None:
        self._bus = control
        self._drafts: dict[str, _Draft] = {}

    async def add(self, name: str, part: bytes) -> None:
        """As `SnapshotStore.add`."""
        await self._write(_PARTS + name, part)
        await asyncio.to_thread(self._drafts.setdefault(name, _Draft()).add, part)

    async def finish(self, name: str, head: bytes) -> None:
        """As `SnapshotStore.finish`."""
        draft = self._drafts.pop(name, _Draft())
        digest = base64.urlsafe_b64encode(draft.digest.digest()).decode()
        described = _Object(
            name=name,
            bucket=BUCKET,
            nuid=name,
            size=draft.size,
            chunks=draft.parts,
            digest=f"SHA-256={digest}",
            mtime=datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z"),
            head=msgspec.Raw(head),
        )
        await self._write(_head_subject(name), msgspec.json.encode(described))

    async def kept(self) -> list[Kept]:
        """As `SnapshotStore.kept`."""
        found: list[tuple[int, Kept]] = []
        for subject in await self._subjects(_HEADS):
            answer = await self._bus.ask(
                f"$JS.API.DIRECT.GET.{STREAM}.{subject}", b"", REQUEST_SECONDS
            )
            if SEQUENCE in answer.headers:  # else it was removed meanwhile
                found.append((int(answer.headers[SEQUENCE]), _kept(subject, answer.data)))
        return [kept for _, kept in sorted(found, reverse=True)]

    async def parts(self, name: str) -> AsyncIterator[bytes]:
        """As `SnapshotStore.parts`; reads one batch ahead."""
        asked = asyncio.create_task(self._batch(_PARTS + name, 1))
        try:
            while True:
                batch = await asked
                if batch.next_seq:
                    asked = asyncio.create_task(self._batch(_PARTS + name, batch.next_seq))
                for part in batch.parts:
                    yield part
                if not batch.next_seq:
                    return
        finally:
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError, errors.Unavailable):
                await asked

    async def prune(self, keep: Collection[str]) -> None:
        """As `SnapshotStore.prune`; heads go first, so that none is left without its parts."""
        wanted = {_head_subject(name) for name in keep} | {_PARTS + name for name in keep}
        for prefix in (_HEADS, _PARTS):
            for subject in await self._subjects(prefix):
                if subject not in wanted:
                    await self._api("STREAM.PURGE", {"filter": subject})
        self._drafts = {name: draft for name, draft in self._drafts.items() if name in keep}

    async def _write(self, subject: str, data: bytes) -> None:
        raw = await self._bus.request(subject, data, REQUEST_SECONDS)
        try:
            fault = msgspec.json.decode(raw, type=_Receipt).error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.Unavailable(f"{STREAM} answers nonsense: {raw[:80]!r}") from error
        if fault is None:
            return
        if fault.err_code in STORE_FULL:
            raise errors.LogFull(f"{STREAM} is full: {fault.description}")
        raise errors.Unavailable(f"{STREAM} does not take a part: {fault.description}")

    async def _subjects(self, prefix: str) -> list[str]:
        answer = await self._api("STREAM.INFO", {"subjects_filter": f"{prefix}>"})
        return list(answer["state"].get("subjects") or {})

    async def _api(self, endpoint: str, body: dict[str, object]) -> dict[str, Any]:
        answer = await self._bus.api(f"{endpoint}.{STREAM}", body, REQUEST_SECONDS)
        if error := answer.get("error"):
            raise errors.Unavailable(f"{STREAM} refuses: {error.get('description', error)}")
        return answer

    async def _batch(self, subject: str, seq: int) -> _Batch:
        question = {
            "seq": seq,
            "next_by_subj": subject,
            "batch": READ_PARTS,
            "max_bytes": READ_BYTES,
        }
        *found, end = await self._bus.ask_many(
            f"$JS.API.DIRECT.GET.{STREAM}", msgspec.json.encode(question), REQUEST_SECONDS
        )
        more = _more_follows(end) and bool(found)
        last = int(found[-1].headers[SEQUENCE]) if found else 0
        return _Batch([message.data for message in found], last + 1 if more else 0)


def _more_follows(end: Incoming) -> bool:
    match end.headers[STATUS]:
        case "204":
            return end.headers.get("Nats-Num-Pending") != "0"
        case "404":
            return False
        case status:
            words = end.headers.get("Description", "")
            raise errors.Unavailable(f"{STREAM} does not give its parts: {status} {words}")


def _head_subject(name: str) -> str:
    return _HEADS + base64.urlsafe_b64encode(name.encode()).decode()


def _kept(subject: str, data: bytes) -> Kept:
    """A head as it stands there, or what cannot be one."""
    try:
        described = msgspec.json.decode(data, type=_Object)
        return Kept(described.name, bytes(described.head))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Kept(subject.removeprefix(_HEADS), b"")
