"""How an agent's link sends chunks, over a made-up connection."""

import asyncio
from typing import Any

import msgspec
import pytest

from agent import link
from agent.link import CHUNKS_IN_FLIGHT, Link
from core import chunks, errors, events, wire
from core.chunks import Manifest

TOKEN = events.Token(task_id="t", attempt=1, claim_id="c")
NOTHING = Manifest(kind="checkpoint", writer="w", files=[])


class Bus:
    """A desk and a chunk store; the connection may break."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.arrived: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.breaks_after = 1_000
        self.late: set[str] = set()
        """What arrived, and is stored when next something else was."""

    async def request(self, subject: str, data: bytes, _seconds: float) -> bytes:
        if subject == "fleet.w.missing":
            asked = msgspec.json.decode(data, type=wire.MissingRequest).chunks
            return wire.ok(wire.MissingAnswer(missing=[d for d in asked if d not in self.stored]))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._store(subject.rpartition(".")[2])
        finally:
            self.in_flight -= 1

    async def _store(self, digest: str) -> bytes:
        await asyncio.sleep(0)
        self.arrived.append(digest)
        if len(self.arrived) > self.breaks_after:
            self.late.add(digest)
            raise errors.Unavailable("the connection broke")
        self.stored |= {digest, *self.late}
        return b"{}"


def linked(bus: Bus) -> Link:
    agent = link._Agent("w", "w", "", link._Nats(""), ["cpu-16"], 1.0)
    one: Any = Link
    return one(bus, agent)  # type: ignore[no-any-return]


def pieces(first: int, count: int) -> dict[str, bytes]:
    made = (bytes([number]) for number in range(first, first + count))
    return {chunks.digest_of(piece): piece for piece in made}


async def test_however_much_is_sent_at_once_eight_chunks_are_on_their_way() -> None:
    bus = Bus()
    one = linked(bus)
    sent = pieces(0, 100), pieces(100, 100)
    await asyncio.gather(*(one.upload(TOKEN, NOTHING, each) for each in sent))
    assert bus.most_in_flight == CHUNKS_IN_FLIGHT
    assert sorted(bus.arrived) == sorted(sent[0] | sent[1])


async def test_what_was_on_its_way_as_the_connection_broke_is_asked_for_after_all_else() -> None:
    bus = Bus()
    one = linked(bus)
    sent = pieces(0, 100)
    bus.breaks_after = 50
    try:
        await one.upload(TOKEN, NOTHING, sent)
    except errors.Unavailable:
        bus.breaks_after = 1_000
    await one.upload(TOKEN, NOTHING, sent)
    assert bus.late
    assert sorted(bus.arrived) == sorted(sent), "nothing arrived twice"


class Lazy(dict[str, bytes]):
    """Chunks that are read when they are asked for, and counted."""

    def __init__(self, made: dict[str, bytes], bus: Bus) -> None:
        super().__init__(made)
        self._bus = bus
        self.read = self.most_ahead = 0

    def __getitem__(self, digest: str) -> bytes:
        self.read += 1
        self.most_ahead = max(self.most_ahead, self.read - len(self._bus.arrived))
        return super().__getitem__(digest)


async def test_chunks_are_read_as_they_are_sent_and_those_that_are_there_are_not() -> None:
    bus = Bus()
    sent = pieces(0, 100)
    bus.stored = set(list(sent)[:60])
    lazy = Lazy(sent, bus)
    await linked(bus).upload(TOKEN, NOTHING, lazy)
    assert lazy.read == 40
    assert lazy.most_ahead <= CHUNKS_IN_FLIGHT


async def test_of_what_was_on_its_way_at_many_cuts_no_more_is_remembered_than_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "UNSURE_MAX", 10)
    bus = Bus()
    bus.breaks_after = 0
    one = linked(bus)
    for first in range(0, 200, CHUNKS_IN_FLIGHT):
        with pytest.raises(errors.Unavailable):
            await one.upload(TOKEN, NOTHING, pieces(first, CHUNKS_IN_FLIGHT))
    assert len(one._unsure) == 10
    last = pieces(192, CHUNKS_IN_FLIGHT)
    assert last.keys() & one._unsure.keys(), "the newest are"
