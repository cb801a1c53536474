"""The parts of the control process that face the network, put together."""

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from core import commands, errors, keeper, room, runtime, seals, topology
from core.accounts import Authority
from core.bus import Bus, Incoming
from core.chunks import ChunkStore, JetStreamChunks
from core.log import Log
from core.log_jetstream import JetStreamLog
from core.presence import Presence
from core.snapshots_jetstream import JetStreamSnapshots

log = logging.getLogger(__name__)


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
    losses: list[tuple[int, str]]
    """What the log lost, and a person accepted, as `seals.find_losses` has it."""
    _making_lane: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ensure_lane(self, lane: str) -> None:
        """Make sure that agents of this lane have something to pull from."""
        async with self._making_lane:  # else two new ones might both be the last that is allowed
            await topology.ensure_lane(self.connections.fleet.api, self.topology, lane)

    async def accept_losses(self, data: Path) -> None:
        """Write down what was lost and accepted. Until that is stored the next start refuses."""
        if self.losses:
            first, details = min(seq for seq, _ in self.losses), [words for _, words in self.losses]
            command = commands.AcceptLoss(first=first, details=details)
            await self.door.execute(command, runtime.new_meta("person"), runtime.nothing)
            seals.forget_anchors(data, await seals.identity_of(self.log))


@contextlib.asynccontextmanager
async def open_control(
    url: str, data: Path, on_server_back: Callable[[], None], *, accept_loss: bool = False
) -> AsyncIterator[Control]:
    """Connect, bring the streams to what streams.yaml says, rebuild, become the writer.

    Raises LogDamaged where the log lost what it held, unless that is accepted.
    """
    authority = Authority.load_or_create(data / "keys")
    declared = topology.load()
    async with contextlib.AsyncExitStack() as stack:

        async def connect(role: str, on_reconnect: Callable[[], None] | None = None) -> Bus:
            bus = await Bus.connect(
                url,
                credentials=data / "creds" / f"{role}.creds",
                name=f"aghsan-{role}",
                inbox_prefix=f"_INBOX_{role}",
                on_reconnect=on_reconnect,
            )
            stack.push_async_callback(bus.close)
            return bus

        connections = Connections(
            control=await connect("control", on_server_back),
            fleet=await connect("desk"),
            agents=await connect("notifier"),
            system=await connect("system"),
        )
        await topology.apply(connections.control.api, "CONTROL", declared)
        await topology.apply(connections.fleet.api, "FLEET", declared)
        store = JetStreamLog(connections.control)
        if not accept_loss:
            await seals.require_whole(store, data)
        losses = await seals.find_losses(store, data) if accept_loss else []
        head = seals.HeadFile(data / seals.HEAD_FILE)
        stack.callback(head.close)
        kept = keeper.Keeper(JetStreamSnapshots(connections.control), store)
        door = runtime.Runtime(store, "control", kept.newest)
        door.note_head = head.note
        await door.start()

        async def filling() -> dict[str, room.Filling]:
            return {
                "EVENTS": await _filling(connections.control, "EVENTS"),
                "CHUNKS": await _filling(connections.fleet, "CHUNKS"),
            }

        yield Control(
            authority=authority,
            topology=declared,
            connections=connections,
            log=store,
            store=JetStreamChunks(connections.fleet),
            door=door,
            snapshots=kept,
            room=room.Watch(door, data, filling),
            presence=Presence(runtime.now()),
            losses=losses,
        )


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
