"""A made-up nats-server and the network before it: what `core.bus.Bus` talks to.

Messages take time, and in bad weather they are lost, doubled, or overtake each other, which is
worse than TCP allows. A connection is cut, or stalls as by a cable pulled: a stall that is over in
time only delays, a longer one is noticed by the pings of both sides.
"""

import asyncio
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import nats.errors

from core import bus
from faults.simulation import clock

NOTICED_SECONDS = float(bus.PING_INTERVAL_SECONDS * (bus.PINGS_UNANSWERED_MAX + 1))
"""So long a side does not notice that the other one is gone without a word."""
ADVISORY_SECONDS = 0.003
ACK_WAIT_SECONDS = 30.0
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_RESPONDERS = MappingProxyType({bus.STATUS: bus.NO_RESPONDERS})
_EXPIRED = MappingProxyType({bus.STATUS: "408"})
_PULL = "$JS.API.CONSUMER.MSG.NEXT.WORK."
_ACK = "$JS.ACK.WORK."


class Msg(NamedTuple):
    """A message as nats-py hands it over."""

    subject: str
    data: bytes
    reply: str = ""
    headers: Mapping[str, str] = _NO_HEADERS


Callback = Callable[[Any], Awaitable[None]]


@dataclass
class Weather:
    """How bad the network is: chances per message, and seconds."""

    lost: float = 0.0
    doubled: float = 0.0
    overtaking: float = 0.0
    seconds: tuple[float, float] = (0.0002, 0.002)
    """What a message takes at least and at most."""


class Interest:
    """One subscription: messages wait in line for its callback, as in nats-py."""

    def __init__(self, client: "Client", subject: str, callback: Callback) -> None:
        self.client = client
        self.subject = subject
        self._waiting: asyncio.Queue[Msg] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._pump(callback))

    def take(self, message: Msg) -> None:
        """A message arrived."""
        self._waiting.put_nowait(message)

    async def unsubscribe(self) -> None:
        """Take no more."""
        self.client.server.forget(self)
        self._task.cancel()

    async def _pump(self, callback: Callback) -> None:
        while True:
            await callback(await self._waiting.get())


class Client:
    """What nats-py is to the Bus: one connection, made again whenever it breaks."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.name = ""
        self.is_connected = False
        self.pending_data_size = 0
        self.last_error: Exception | None = None
        self.number = 0
        """Of the connection that stands now; each is another."""
        self.stalled_until = 0.0
        self.interests: list[Interest] = []
        self._closed = False
        self.process = clock.current()
        self._on_disconnected: Callable[[], Awaitable[None]]
        self._on_reconnected: Callable[[], Awaitable[None]]
        self._on_closed: Callable[[], Awaitable[None]]
        self._out = self._in = 0.0
        """When the last message to and from the server arrives: the next one comes after it."""
        self.process.on_death.append(self._died)

    async def connect(
        self,
        url: str,
        *,
        name: str,
        disconnected_cb: Callable[[], Awaitable[None]],
        reconnected_cb: Callable[[], Awaitable[None]],
        closed_cb: Callable[[], Awaitable[None]],
        **_: Any,
    ) -> None:
        """Connect, however long it takes; the Bus does not wait for ever."""
        self.name = name
        self._on_disconnected, self._on_reconnected = disconnected_cb, reconnected_cb
        self._on_closed = closed_cb
        await self._reach()

    async def _reach(self) -> None:
        while not self.server.is_reachable(self):  # noqa: ASYNC110  as nats-py does
            await asyncio.sleep(bus.RECONNECT_WAIT_SECONDS)
        await asyncio.sleep(self.server.travel_seconds())
        if self._closed or not self.server.is_reachable(self):
            raise nats.errors.ConnectionClosedError
        self.number = self.server.accept(self)
        self.is_connected = True
        self._out = self._in = 0.0

    async def subscribe(
        self, subject: str, queue: str = "", cb: Callback | None = None, **_: Any
    ) -> Interest:
        """Be called with each message of a subject."""
        assert cb is not None
        interest = Interest(self, subject, cb)
        self.interests.append(interest)
        self.server.add(interest)
        return interest

    async def publish(
        self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None
    ) -> None:
        """Send, without waiting for the server to have it."""
        message = Msg(subject, data, reply, headers or _NO_HEADERS)
        for arrives in self.server.arrivals(self, self._out):
            self._out = max(self._out, arrives)
            self.server.loop.call_at(
                arrives, self.server.take, self, self.number, message, context=clock.NOBODY
            )

    def send(self, interest: Interest, message: Msg) -> None:
        """The server sends it a message."""
        for arrives in self.server.arrivals(self, self._in):
            self._in = max(self._in, arrives)
            self.server.loop.call_at(
                arrives, self._arrive, self.number, interest, message, context=clock.NOBODY
            )

    def _arrive(self, number: int, interest: Interest, message: Msg) -> None:
        if number == self.number and self.is_connected and interest in self.interests:
            self.server.note_arrival(self, message)
            interest.take(message)

    async def flush(self) -> None:
        """Nothing is kept back here."""

    async def close(self) -> None:
        """Disconnect for good."""
        if self._closed:
            return
        self._closed, self.is_connected = True, False
        self.server.lose(self)
        for interest in list(self.interests):
            await interest.unsubscribe()
        await self._on_closed()

    # ── what happens to it ──

    def cut(self, seconds: float) -> None:
        """The connection breaks, and the way is closed for so long; both sides see it."""
        if self._closed or self.process.dead:
            return
        self.server.block(self, seconds)
        if self.is_connected:
            self.is_connected = False
            self.server.lose(self)
            self.process.spawn(self._come_back())

    async def _come_back(self) -> None:
        await self._on_disconnected()
        while not self._closed:
            try:
                await self._reach()
            except nats.errors.ConnectionClosedError:
                await asyncio.sleep(bus.RECONNECT_WAIT_SECONDS)
                continue
            await self._on_reconnected()
            return

    async def _say_closed(self) -> None:
        await self._on_closed()

    def turn_out(self) -> None:
        """The server ends the connection for good, as when its credentials are revoked."""
        if self.is_connected:
            self._closed, self.is_connected = True, False
            self.server.lose(self)
            self.process.spawn(self._say_closed())

    def stall(self, seconds: float) -> None:
        """Nothing gets through for so long, and neither side sees why."""
        now = self.server.loop.now
        self.stalled_until = max(self.stalled_until, now + min(seconds, NOTICED_SECONDS))
        if seconds > NOTICED_SECONDS:
            self.server.loop.after(NOTICED_SECONDS, self.cut, seconds - NOTICED_SECONDS)

    def _died(self) -> None:
        if self.process.silent:
            self.stalled_until = float("inf")
            self.server.loop.after(NOTICED_SECONDS, self.server.lose, self)
        else:
            self.server.lose(self)
        self.is_connected = False


@dataclass
class _Pull:
    """An agent that waits for an offer."""

    client: Client
    number: int
    reply: str


@dataclass
class _Offer:
    lane: str
    data: bytes
    deliveries: int = 0
    due: float = 0.0
    """When it is delivered again unless somebody speaks for it."""


@dataclass
class _Lane:
    pulls: deque[_Pull] = field(default_factory=deque)
    waiting: deque[int] = field(default_factory=deque)


class Server:
    """Routes messages, and answers for JetStream as far as the product asks it."""

    def __init__(self, loop: clock.Loop, choices: random.Random) -> None:
        self.loop = loop
        self.choices = choices
        self.weather = Weather()
        self.down = False
        self.chunks: dict[str, bytes] = {}
        self.on_lost: list[Callable[[str, int], None]] = []
        """Told of the name and number of each connection that the server saw go."""
        self.on_here: list[Callable[[str, int], None]] = []
        self.note_arrival: Callable[[Client, Msg], None] = lambda client, message: None
        self.clients: list[Client] = []
        self._blocked: dict[clock.Process, float] = {}
        self._connections = 0
        self._exact: dict[str, list[Interest]] = {}
        self._families: dict[str, list[Interest]] = {}
        """Of subscriptions to `prefix.*`, by prefix."""
        self._patterns: list[tuple[list[str], Interest]] = []
        self._offers: dict[int, _Offer] = {}
        self._lanes: dict[str, _Lane] = {}
        self._sequence = 0

    # ── connections ──

    def is_reachable(self, client: Client) -> bool:
        """Whether a connection can be made now."""
        return not self.down and self._blocked.get(client.process, 0.0) <= self.loop.now

    def block(self, client: Client, seconds: float) -> None:
        """Close the way of one client for a while."""
        until = self.loop.now + seconds
        self._blocked[client.process] = max(until, self._blocked.get(client.process, 0.0))

    def accept(self, client: Client) -> int:
        """Take a connection; its number."""
        self.clients.append(client)
        self._connections += 1
        for tell in self.on_here:
            self.loop.after(ADVISORY_SECONDS, tell, client.name, self._connections)
        return self._connections

    def lose(self, client: Client) -> None:
        """See that a connection is gone."""
        if client in self.clients:
            self.clients.remove(client)
            for tell in self.on_lost:
                self.loop.after(ADVISORY_SECONDS, tell, client.name, client.number)

    def restart(self, seconds: float, *, forgets: bool) -> None:
        """Be away for a while; what was not yet on the disk of WORK may be lost."""
        if self.down:
            return
        self.down = True
        for client in list(self.clients):
            client.cut(0.0)
        for lane in self._lanes.values():
            lane.pulls.clear()
        if forgets:
            self._purge()
        self.loop.after(seconds, self._come_up)

    def _come_up(self) -> None:
        self.down = False

    # ── the network ──

    def travel_seconds(self) -> float:
        """What a message takes now."""
        low, high = self.weather.seconds
        return low + (high - low) * self.choices.random() ** 3

    def loses(self) -> bool:
        """Whether the next message is lost."""
        return bool(self.weather.lost) and self.choices.random() < self.weather.lost

    def arrivals(self, client: Client, not_before: float) -> list[float]:
        """When a message arrives: once, or in bad weather never or twice."""
        weather, choices = self.weather, self.choices
        if self.loses():
            return []
        arrives = max(self.loop.now, client.stalled_until) + self.travel_seconds()
        if arrives == float("inf"):
            return []
        if not (weather.overtaking and choices.random() < weather.overtaking):
            arrives = max(arrives, not_before)
        if weather.doubled and choices.random() < weather.doubled:
            return [arrives, arrives + choices.random() * 3.0]
        return [arrives]

    def take(self, client: Client, number: int, message: Msg) -> None:
        """A message arrived from a client."""
        if self.down or number != client.number or client not in self.clients:
            return
        subject = message.subject
        if subject.startswith(_PULL):
            self._pull(subject[len(_PULL) :], client, message)
            self._deliver(message)
        elif subject.startswith(_ACK):
            self._acknowledge(subject.split("."), message.data)
        elif subject.startswith("$JS.API."):
            self._answer(client, message, self._api(subject.split(".")[2:], message))
        elif subject.startswith("work."):
            self._sequence += 1
            self._store(subject[5:], message.data)
            self._answer(client, message, {"stream": "WORK", "seq": self._sequence})
        elif subject.startswith("chunk."):
            self.chunks.setdefault(subject[6:], message.data)
            self._answer(client, message, {"stream": "CHUNKS", "seq": len(self.chunks)})
        elif subject.startswith("refused."):
            self._answer(client, message, {"stream": "REFUSALS", "seq": 1})
        elif not self._deliver(message) and message.reply:
            self._deliver(Msg(message.reply, b"", "", _NO_RESPONDERS))

    def add(self, interest: Interest) -> None:
        """Take a subscription."""
        subject = interest.subject
        if "*" not in subject:
            self._exact.setdefault(subject, []).append(interest)
        elif subject.count("*") == 1 and subject.endswith(".*"):
            self._families.setdefault(subject[:-2], []).append(interest)
        else:
            self._patterns.append((subject.split("."), interest))

    def forget(self, interest: Interest) -> None:
        """Drop a subscription."""
        if interest in interest.client.interests:
            interest.client.interests.remove(interest)
        for table in (self._exact, self._families):
            for key in (interest.subject, interest.subject[:-2]):
                if interest in table.get(key, ()):
                    table[key].remove(interest)
        self._patterns = [one for one in self._patterns if one[1] is not interest]

    def _deliver(self, message: Msg) -> bool:
        """Hand a message to whoever wants it; whether anybody does."""
        subject = message.subject
        found = [*self._exact.get(subject, ()), *self._families.get(subject.rpartition(".")[0], ())]
        tokens = subject.split(".")
        for pattern, interest in self._patterns:
            if len(pattern) == len(tokens) and all(
                one in ("*", other) for one, other in zip(pattern, tokens, strict=True)
            ):
                found.append(interest)
        there = [interest for interest in found if interest.client in self.clients]
        for interest in there:
            interest.client.send(interest, message)
        return bool(there)

    def _answer(self, client: Client, message: Msg, answer: Any) -> None:
        if message.reply and answer is not None:
            reply = answer if isinstance(answer, Msg) else Msg("", json.dumps(answer).encode())
            self._deliver(reply._replace(subject=message.reply))

    # ── JetStream ──

    def _api(self, endpoint: list[str], message: Msg) -> Any:
        match endpoint:
            case ["STREAM", "MSG", "DELETE", "WORK"]:
                gone = self._offers.pop(json.loads(message.data)["seq"], None)
                error = {"error": {"err_code": 10043, "description": "no message found"}}
                return error if gone is None else {"success": True}
            case ["STREAM", "PURGE", "WORK"]:
                self._purge()
                return {"success": True}
            case ["CONSUMER", "INFO", "WORK", lane]:
                return self._standing(lane)
            case ["STREAM", "INFO", "CHUNKS"]:
                digest = json.loads(message.data)["subjects_filter"].rpartition(".")[2]
                found = [f"chunk.{key}" for key in self.chunks if key.endswith(digest)]
                return {"state": {"subjects": dict.fromkeys(found, 1)}}
            case ["DIRECT", "GET", "CHUNKS", "chunk", writer, digest]:
                stored = self.chunks.get(f"{writer}.{digest}")
                if stored is None:
                    return Msg("", b"", "", {bus.STATUS: "404"})
                return Msg("", stored, "", {bus.SEQUENCE: "1"})
        raise AssertionError(f"the simulated server is asked for {endpoint}: teach it that")

    def _purge(self) -> None:
        self._offers.clear()
        for lane in self._lanes.values():
            lane.waiting.clear()

    def _lane(self, name: str) -> _Lane:
        return self._lanes.setdefault(name, _Lane())

    def _standing(self, name: str) -> dict[str, int]:
        lane = self._lane(name)
        held = [one for one in self._offers.values() if one.lane == name]
        waiting = sum(pull.client in self.clients for pull in lane.pulls)
        pending = sum(not one.deliveries for one in held)
        return {
            "num_waiting": waiting,
            "num_pending": pending,
            "num_ack_pending": len(held) - pending,
        }

    def _pull(self, name: str, client: Client, message: Msg) -> None:
        pull = _Pull(client, client.number, message.reply)
        self._lane(name).pulls.append(pull)
        self.loop.after(json.loads(message.data)["expires"] / 1e9, self._expire, name, pull)
        self._serve(name)

    def _expire(self, name: str, pull: _Pull) -> None:
        pulls = self._lane(name).pulls
        if pull in pulls:
            pulls.remove(pull)
            self._deliver(Msg(pull.reply, b"", "", _EXPIRED))

    def _store(self, name: str, data: bytes) -> None:
        self._offers[self._sequence] = _Offer(name, data)
        self._lane(name).waiting.append(self._sequence)
        self._serve(name)

    def _serve(self, name: str) -> None:
        """Give waiting offers to waiting pulls."""
        lane = self._lane(name)
        while lane.waiting and lane.pulls:
            pull = lane.pulls.popleft()
            if pull.client not in self.clients or pull.number != pull.client.number:
                continue
            sequence = lane.waiting.popleft()
            offer = self._offers.get(sequence)
            if offer is None:
                lane.pulls.appendleft(pull)
                continue
            offer.deliveries += 1
            ack = f"{_ACK}{name}.{offer.deliveries}.{sequence}.{sequence}.0.{len(lane.waiting)}"
            # A delivered message keeps its own subject: the inbox of the pull says where it goes.
            for interest in self._exact.get(pull.reply, ()):
                pull.client.send(interest, Msg(f"work.{name}", offer.data, ack))
            self._wait_for_ack(sequence, offer)

    def _wait_for_ack(self, sequence: int, offer: _Offer) -> None:
        offer.due = self.loop.now + ACK_WAIT_SECONDS
        self.loop.after(ACK_WAIT_SECONDS, self._redeliver, sequence)

    def _redeliver(self, sequence: int) -> None:
        offer = self._offers.get(sequence)
        if offer is not None and offer.due <= self.loop.now:
            self._lane(offer.lane).waiting.append(sequence)
            self._serve(offer.lane)

    def _acknowledge(self, tokens: list[str], word: bytes) -> None:
        sequence = int(tokens[5])
        if word == b"+WPI":
            if sequence in self._offers:
                self._wait_for_ack(sequence, self._offers[sequence])
        else:
            self._offers.pop(sequence, None)
