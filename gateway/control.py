"""The parts of the control process that face the network, put together."""

import asyncio
import base64
import contextlib
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from core import commands, errors, intact, keeper, room, runtime, seals, stores, subjects, topology
from core.accounts import Authority
from core.bus import Bus, Incoming
from core.chunks import ChunkStore
from core.chunks_s3 import StagedChunks
from core.log import Log
from core.log_jetstream import JetStreamLog
from core.presence import Presence
from core.promises import Promises
from core.snapshots_jetstream import JetStreamSnapshots
from gateway.sweeper import GRACE_SECONDS, Access, ChildSurvey, Sweeper
from gateway.usage import NO_QUOTAS, Quotas, Usage

log = logging.getLogger(__name__)

RECALLED_AT_ONCE = 500
"""Workers that HEARTBEATS is asked for in one question; nats-server answers no more than 1,024."""
DETAILS_MAX = 100
"""Of losses, in words."""
DETAIL_CHARS_MAX = 1_000
DETAILS_BYTES_MAX = 28 * 1024
"""Of those words as JSON: half of what an event holds, beside lost chunks."""
CHUNKS_MAX = 10_000
"""Of lost chunks, by name: what one atomic append holds with ease."""


@dataclass
class Connections:
    """One connection for each account that control needs."""

    control: Bus
    fleet: Bus
    agents: Bus
    system: Bus

    def by_account(self) -> dict[str, Bus]:
        """Each by the name of its account."""
        return {
            "CONTROL": self.control,
            "FLEET": self.fleet,
            "AGENTS": self.agents,
            "SYS": self.system,
        }


@dataclass
class Control:
    """The state, its door, and what stands around it."""

    authority: Authority
    topology: topology.Topology
    connections: Connections
    log: Log
    store: ChunkStore
    door: runtime.Runtime
    snapshots: keeper.Keeper
    room: room.Watch
    presence: Presence
    promises: Promises
    usage: Usage
    sweeper: Sweeper
    losses: list[tuple[int, str]]
    """What was lost, and a person accepted, as `seals.find_losses` has it."""
    set_aside: list[str]
    """Of which notes beside the log could not be read, in words for people."""
    _making_lane: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ensure_lane(self, lane: str) -> None:
        """Make sure that agents of this lane have something to pull from."""
        async with self._making_lane:  # else two new ones might both be the last that is allowed
            await topology.ensure_lane(self.connections.fleet.api, self.topology, lane)

    async def accept_losses(self, data: Path) -> None:
        """Write down what was lost and accepted, before anything else is written: until that is
        stored the next start refuses."""
        if self.losses:
            chunks = intact.lost_chunks(data)
            details = _within_an_event([words for _, words in self.losses])
            if len(chunks) > CHUNKS_MAX:
                details.append(f"{len(chunks) - CHUNKS_MAX} more lost chunks are not named")
            # Nothing is written beside this: what follows from the loss stays provable by it.
            whole = await seals.digest_of(self.log, self.door.durable_seq)
            command = commands.AcceptLoss(
                first=min(seq for seq, _ in self.losses),
                details=details,
                last=whole.last,
                lost=whole.lost,
                digest=whole.digest,
                chunks=chunks[:CHUNKS_MAX],
            )
            await self.door.execute(command, runtime.new_meta("person"), runtime.nothing)
            seals.forget_anchors(data, await seals.identity_of(self.log))
            intact.note_lost(data)
            await topology.apply(self.connections.fleet.api, "FLEET", self.topology)


def _within_an_event(details: list[str]) -> list[str]:
    """As much of what was lost, in words, as an event holds, and how much more there is."""
    kept, room = [], DETAILS_BYTES_MAX
    for words in details[:DETAILS_MAX]:
        kept.append(words[:DETAIL_CHARS_MAX])
        room -= len(msgspec.json.encode(kept[-1])) + 1
        if room < 0:
            kept.pop()
            break
    more = len(details) - len(kept)
    return [*kept, f"{more} more"] if more else kept


@contextlib.asynccontextmanager
async def open_control(
    url: str,
    data: Path,
    on_server_back: Callable[[], None],
    *,
    accept_loss: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    quotas: Quotas = NO_QUOTAS,
    artifacts: str = "",
) -> AsyncIterator[Control]:
    """Connect, bring the streams to what streams.yaml says, rebuild, become the writer.

    `artifacts` is where artifacts stay, as `stores.bind` has it. Raises LogDamaged where the log
    lost what it held, unless that is accepted, DataDirectoryError where artifacts lie elsewhere.
    """
    authority = Authority.load_or_create(data / "keys")
    declared = topology.load()
    async with contextlib.AsyncExitStack() as stack:
        connections = await _connect(stack, url, data / "creds", on_server_back)
        found = await _open_log(connections, declared, data, accept_loss=accept_loss)
        door, kept = await _start_door(stack, connections.control, found.log, data)
        presence = await _recalled(door, connections.fleet)
        held = await _open_artifacts(connections.fleet, declared, data, artifacts, quotas, found)
        yield Control(
            authority=authority,
            topology=declared,
            connections=connections,
            log=found.log,
            store=held.store,
            door=door,
            snapshots=kept,
            room=room.Watch(door, data, functools.partial(_filling_of_all, connections, held)),
            presence=presence,
            promises=held.promises,
            usage=held.usage,
            sweeper=_sweeper(door, held, url, data / "creds", connections.fleet, grace_seconds),
            losses=found.losses,
            set_aside=found.set_aside,
        )


class _Found(NamedTuple):
    """The log, and what was found on opening it; as Control has it."""

    log: Log
    losses: list[tuple[int, str]]
    set_aside: list[str]


class _Artifacts(NamedTuple):
    """Where artifacts are, as `stores.bind` has it, and what is known of them."""

    place: str
    store: ChunkStore
    promises: Promises
    usage: Usage


async def _connect(
    stack: contextlib.AsyncExitStack, url: str, creds: Path, on_server_back: Callable[[], None]
) -> Connections:
    """All connections, each closed with the stack. Raises Unavailable."""

    async def connect(role: str, on_reconnect: Callable[[], None] | None = None) -> Bus:
        bus = await Bus.connect(
            url,
            credentials=creds / f"{role}.creds",
            name=f"aghsan-{role}",
            inbox_prefix=f"_INBOX_{role}",
            on_reconnect=on_reconnect,
        )
        stack.push_async_callback(bus.close)
        return bus

    return Connections(
        control=await connect("control", on_server_back),
        fleet=await connect("desk"),
        agents=await connect("notifier"),
        system=await connect("system"),
    )


async def _open_log(
    connections: Connections, declared: topology.Topology, data: Path, *, accept_loss: bool
) -> _Found:
    """Make the streams as declared, and look for what the log lost. Raises LogDamaged."""
    await topology.apply(connections.control.api, "CONTROL", declared)
    store = JetStreamLog(connections.control)
    losses = await _find_losses(store, connections.fleet, data)
    if losses and not accept_loss:
        raise seals.refusal(losses)
    if not losses:  # else once they are written down: a new CHUNKS would hide that one is gone
        await topology.apply(connections.fleet.api, "FLEET", declared)
    set_aside = await seals.set_aside_unreadable(store, data)
    for words in set_aside:
        log.warning("%s", words, extra={"action": "start"})
    return _Found(store, losses, set_aside)


async def _find_losses(store: Log, fleet: Bus, data: Path) -> list[tuple[int, str]]:
    """As `seals.find_losses`, what was damaged in the store, and whether all artifacts are gone.

    Raises Unavailable.
    """
    losses = await seals.find_losses(store, data) + intact.lost(data)
    if seals.has_head(data) and not await topology.has_stream(fleet.api, "CHUNKS"):
        losses.append((1, "all artifacts are gone, and the log names what CHUNKS held"))
    return losses


async def _start_door(
    stack: contextlib.AsyncExitStack, control: Bus, store: Log, data: Path
) -> tuple[runtime.Runtime, keeper.Keeper]:
    """The state built anew, behind its door; and who keeps snapshots of it."""
    head = seals.HeadFile(data / seals.HEAD_FILE)
    stack.callback(head.close)
    kept = keeper.Keeper(JetStreamSnapshots(control), store)
    door = runtime.Runtime(store, "control", kept.newest)
    door.note_head = head.note
    await door.start()
    return door, kept


async def _recalled(door: runtime.Runtime, fleet: Bus) -> Presence:
    """Who is online, and was last heard of when."""
    presence = Presence(runtime.now())
    online = itertools.chain(*door.state.workers.online_by.values())
    await recall(presence, list(online), fleet)
    return presence


async def recall(presence: Presence, worker_ids: Sequence[str], fleet: Bus) -> None:
    """Take from HEARTBEATS when workers were last heard of before this process was there: some may
    not come back, and still be online until their silence has lasted."""
    for first in range(0, len(worker_ids), RECALLED_AT_ONCE):
        part = worker_ids[first : first + RECALLED_AT_ONCE]
        by_subject = {f"hb.{subjects.token(worker_id)}": worker_id for worker_id in part}
        question = msgspec.json.encode({"multi_last": list(by_subject)})
        try:
            *found, _ = await fleet.ask_many("$JS.API.DIRECT.GET.HEARTBEATS", question)
        except errors.Unavailable as error:
            log.warning("HEARTBEATS cannot be read: %s", error, extra={"action": "recall"})
            return
        for message in found:
            said = datetime.fromisoformat(message.headers["Nats-Time-Stamp"])
            at = min(int(said.timestamp() * 1e6), presence.started_at)
            presence.of(by_subject[message.headers["Nats-Subject"]]).last_seen = at


async def _open_artifacts(
    fleet: Bus,
    declared: topology.Topology,
    data: Path,
    asked: str,
    quotas: Quotas,
    found: _Found,
) -> _Artifacts:
    """The store that a data directory is bound to. Raises DataDirectoryError for another."""
    promises = Promises()
    place = stores.bind(data, asked)
    bound = 0 if place else declared.streams["CHUNKS"].max_mib * topology.MIB
    usage = Usage(quotas.completed(bound))
    store = stores.store_of(fleet, place, promises, usage.book)
    if isinstance(store, StagedChunks):
        # A log that lost its first record, and that accepted, is another one by that.
        before = seals.anchored_identity(data) if found.losses else ""
        await store.require_own(await seals.identity_of(found.log), before)
    return _Artifacts(place, store, promises, usage)


def _sweeper(
    door: runtime.Runtime,
    held: _Artifacts,
    url: str,
    creds: Path,
    fleet: Bus,
    grace_seconds: float,
) -> Sweeper:
    access = Access(url, creds / "control.creds", creds / "desk.creds", held.place)
    return Sweeper(
        door,
        held.store,
        held.promises,
        functools.partial(ChildSurvey, access),
        held.usage,
        functools.partial(_filling_of_artifacts, fleet, held),
        grace_seconds,
    )


async def _filling_of_all(connections: Connections, held: _Artifacts) -> dict[str, room.Filling]:
    """How full all is that refuses rather than forgets. Raises Unavailable."""
    events = {"EVENTS": await _filling(connections.control, "EVENTS")}
    return events | await _filling_of_artifacts(connections.fleet, held)


async def _filling_of_artifacts(fleet: Bus, held: _Artifacts) -> dict[str, room.Filling]:
    return {"CHUNKS": await _filling(fleet, "CHUNKS"), **held.usage.filling()}


async def _filling(bus: Bus, stream: str) -> room.Filling:
    """How full a stream is that refuses rather than forgets. Raises Unavailable."""
    info = await bus.api(f"STREAM.INFO.{stream}")
    if "error" in info:
        raise errors.Unavailable(f"{stream} cannot be asked: {info['error']}")
    return room.Filling(info["state"]["bytes"], info["config"]["max_bytes"])


class _Client(msgspec.Struct):
    id: int = 0
    jwt: str = ""


class _Claims(msgspec.Struct):
    name: str


class _Advisory(msgspec.Struct):
    """What the server tells of a connection that came or went."""

    client: _Client = msgspec.field(default_factory=_Client)


_decode_advisory = msgspec.json.Decoder(_Advisory).decode


def _connection_in(advisory: bytes) -> tuple[str, int]:
    """The subject token for which the credentials of a connection were signed, "" without any, and
    its number. What a client calls itself is its own choice; the server believed the signature."""
    try:
        client = _decode_advisory(advisory).client
        _, claims, _ = client.jwt.split(".")
        padded = claims + "=" * (-len(claims) % 4)
        named = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=_Claims)
        return named.name, client.id
    except (ValueError, msgspec.MsgspecError) as error:
        log.warning("an advisory that names nobody", extra={"action": str(error)})
        return "", 0


OnConnection = Callable[[str, int], None]


async def watch_connections(control: Control, on_gone: OnConnection, on_here: OnConnection) -> None:
    """Call back with the token of each agent whose connection the server saw come or go, and the
    number of that connection."""

    async def gone(message: Incoming) -> None:
        on_gone(*_connection_in(message.data))

    async def here(message: Incoming) -> None:
        on_here(*_connection_in(message.data))

    account = control.authority.public_key("AGENTS")
    system = control.connections.system
    await system.subscribe(f"$SYS.ACCOUNT.{account}.DISCONNECT", gone)
    await system.subscribe(f"$SYS.ACCOUNT.{account}.CONNECT", here)


async def catch_up_loop(door: runtime.Runtime, seconds: float = 2.0) -> None:
    """Notice, every so often, records that somebody else put into the log."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await door.catch_up()
        except errors.LogUnavailable as error:
            log.info("the log cannot be asked: %s", error, extra={"action": "catch_up"})
