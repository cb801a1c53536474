"""What every log has to do, and what more the one on a server has to."""

import asyncio
import base64
import contextlib
import datetime
import os
import signal
import urllib.parse
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
import pytest

from core import errors, topology
from core.bus import Bus
from core.log import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Log, Message, Record
from core.log_jetstream import JetStreamLog
from core.log_memory import MemoryLog
from tests.nats_fixture import SECONDS_MAX, Nats

pytest_plugins = ["tests.nats_fixture"]

KIB = 1024
MIB = 1024 * KIB

# What a protocol of lines, or a careless decoder, could stumble over.
AWKWARD = [
    "درّب النموذج على التقارب المحدّب".encode(),
    b"",
    b"\r\n",
    b"MSG ev.task.t1 1 2\r\nxx\r\n+OK\r\n",
    b"HMSG _INBOX.x 1 $JS.ACK.S.c.1.1.1.1.0 12 14\r\nNATS/1.0\r\n\r\nxx\r\n",
    bytes(range(256)),
]


class Bench(Protocol):
    """A log to try, and what can happen to it."""

    log: Log
    other: Log
    """The same log in the hands of another writer."""

    def lose_next_answer(self) -> None:
        """Let the next append be stored, and its answer get lost."""
        ...

    async def lose_server(self) -> None:
        """Let no append reach the log."""
        ...

    async def restore_server(self) -> None:
        """Let the log be there again, with all that it held."""
        ...


class MemoryBench:
    def __init__(self, bytes_max: int | None = None) -> None:
        self._log = MemoryLog(bytes_max)
        self.log: Log = self._log
        self.other: Log = self._log

    def lose_next_answer(self) -> None:
        self._log.drop_next_answer()

    async def lose_server(self) -> None:
        self._log.fail_next()

    async def restore_server(self) -> None:
        pass


class Proxy:
    """Between a client and the server, so that an answer can get lost on its way."""

    def __init__(self, server_url: str) -> None:
        address = urllib.parse.urlsplit(server_url)
        self._server = (address.hostname, address.port)
        self._pumps: set[asyncio.Task[None]] = set()
        self.url = ""
        self.losing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        async with await asyncio.start_server(self._accept, "127.0.0.1") as listening:
            self.url = "nats://127.0.0.1:{1}".format(*listening.sockets[0].getsockname())
            yield self
            listening.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        try:
            answers, questions = await asyncio.open_connection(*self._server)
        except OSError:
            up.transport.abort()
            return
        for pump in (self._pump(down, questions, False), self._pump(answers, up, True)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, carries_answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while block := await source.read(64 * KIB):
                if carries_answers and self.losing and b"MSG " in block:
                    self.losing = False
                    break
                sink.write(block)
                await sink.drain()
        sink.transport.abort()


class JetStreamBench:
    def __init__(self, nats: Nats, bus: Bus, proxy: Proxy, back: asyncio.Event) -> None:
        self._nats = nats
        self.bus = bus
        self._proxy = proxy
        self._back = back
        self.jetstream = JetStreamLog(bus)
        self._second = JetStreamLog(bus)
        self.log: Log = self.jetstream
        self.other: Log = self._second

    def lose_next_answer(self) -> None:
        self._proxy.losing = True

    async def lose_server(self) -> None:
        os.kill(self._nats.server.pid, signal.SIGKILL)
        self._nats.server.stop()  # which waits for its end

    async def restore_server(self) -> None:
        self._back.clear()
        self._nats.server.start()
        async with asyncio.timeout(SECONDS_MAX):
            await self._back.wait()

    async def close(self) -> None:
        await self.jetstream.close()
        await self._second.close()


@contextlib.asynccontextmanager
async def on_server(nats: Nats, max_mib: int = 64) -> AsyncIterator[JetStreamBench]:
    """An empty EVENTS, reached through a proxy."""
    declared = msgspec.structs.replace(topology.load().streams["EVENTS"], max_mib=max_mib)
    back = asyncio.Event()
    async with Proxy(nats.url).running() as proxy, nats.connect("control") as direct:
        await direct.api("STREAM.DELETE.EVENTS")
        config = topology.stream_config("EVENTS", declared)
        made = await direct.api("STREAM.CREATE.EVENTS", config)
        assert "error" not in made, made
        bus = await Bus.connect(
            proxy.url,
            credentials=nats.creds("control"),
            name="control",
            inbox_prefix="_INBOX_control",
            on_reconnect=back.set,
        )
        bench = JetStreamBench(nats, bus, proxy, back)
        try:
            yield bench
        finally:
            await bench.close()
            await bus.close()


def numbered(count: int, first: int = 1, size: int = 0) -> list[Message]:
    """Messages of three aggregates in turn, each with its number in it."""
    return [
        Message(f"ev.task.t{number % 3}", b"%d " % number + bytes(size))
        for number in range(first, first + count)
    ]


def as_records(messages: list[Message], first: int = 1) -> list[Record]:
    return [Record(seq, *message) for seq, message in enumerate(messages, first)]


async def everything(log: Log, start: int = 1, stop: int | None = None) -> list[Record]:
    return [record async for records in log.read(start, stop) for record in records]


async def fill(log: Log, count: int, size: int = 0) -> list[Message]:
    """Append that many, in batches as large as they may be."""
    sent = numbered(count, size=size)
    for at in range(0, count, BATCH_MESSAGES_MAX):
        await log.append(sent[at : at + BATCH_MESSAGES_MAX], at)
    return sent


class LogContract:
    """Inherited by the tests of each log, with a fixture `bench` and one `small` (1 MiB)."""

    async def test_an_empty_log_ends_at_0_and_has_nothing_to_read(self, bench: Bench) -> None:
        assert await bench.log.last_seq() == 0
        assert await everything(bench.log) == []
        assert await bench.log.get(1) is None
        assert await bench.log.of_subject("ev.task.t1") == []

    async def test_what_is_appended_is_read_in_order_and_numbered_without_gaps(
        self, bench: Bench
    ) -> None:
        sent = numbered(6)
        assert await bench.log.append(sent[:1], 0) == 1
        assert await bench.log.append(sent[1:5], 1) == 5
        assert await bench.log.append(sent[5:], 5) == 6
        assert await everything(bench.log) == as_records(sent)
        assert await bench.log.last_seq() == 6

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("expected", [0, 1, 3])
    async def test_an_append_that_expects_another_end_is_refused_whole(
        self, bench: Bench, count: int, expected: int
    ) -> None:
        sent = await fill(bench.log, 2)
        with pytest.raises(errors.SequenceConflict, match=str(expected)):
            await bench.log.append(numbered(count, 100), expected)
        assert await everything(bench.log) == as_records(sent)

    @pytest.mark.parametrize("count", [1, 3])
    async def test_of_two_writers_at_the_same_end_one_wins_and_the_other_is_told(
        self, bench: Bench, count: int
    ) -> None:
        here, there = numbered(count), numbered(count, 100)
        answers = await asyncio.gather(
            bench.log.append(here, 0), bench.other.append(there, 0), return_exceptions=True
        )
        (won,) = [
            sent for sent, answer in zip((here, there), answers, strict=True) if answer == count
        ]
        assert sum(isinstance(answer, errors.SequenceConflict) for answer in answers) == 1
        assert await everything(bench.log) == as_records(won)

    async def test_a_writer_goes_on_after_a_conflict(self, bench: Bench) -> None:
        await bench.other.append(numbered(2), 0)
        with pytest.raises(errors.SequenceConflict):
            await bench.log.append(numbered(1, 3), 0)
        assert await bench.log.append(numbered(2, 3), 2) == 4

    async def test_a_record_is_stored_with_all_that_a_read_gives_and_always_the_same(
        self, bench: Bench
    ) -> None:
        sent = numbered(4)
        await bench.log.append(sent[:1], 0)
        await bench.log.append(sent[1:], 1)
        stored = [one async for many in bench.log.read_stored() for one in many]
        assert [Record(one.seq, one.subject, one.data) for one in stored] == as_records(sent)
        again = [one async for many in bench.log.read_stored(2, 3) for one in many]
        assert again == stored[1:3]

    async def test_the_largest_batch_is_stored_whole(self, bench: Bench) -> None:
        size = BATCH_BYTES_MAX // BATCH_MESSAGES_MAX - 16
        sent = numbered(BATCH_MESSAGES_MAX, size=size)
        assert await bench.log.append(sent, 0) == BATCH_MESSAGES_MAX
        assert await everything(bench.log) == as_records(sent)

    async def test_a_long_log_is_read_in_lists_of_bounded_size(self, bench: Bench) -> None:
        sent = await fill(bench.log, 2_500, size=1_000)
        lists = [records async for records in bench.log.read()]
        assert [record for records in lists for record in records] == as_records(sent)
        assert all(0 < len(records) <= 1_000 for records in lists)

    @pytest.mark.parametrize(
        ("start", "stop", "expected"),
        [
            (1, None, range(1, 11)),
            (3, 7, range(3, 8)),
            (5, 5, range(5, 6)),
            (8, 100, range(8, 11)),
            (0, 2, range(1, 3)),
            (11, None, range(0)),
            (7, 3, range(0)),
        ],
    )
    async def test_a_part_of_the_log_can_be_read(
        self, bench: Bench, start: int, stop: int | None, expected: range
    ) -> None:
        await fill(bench.log, 10)
        assert [one.seq for one in await everything(bench.log, start, stop)] == list(expected)

    async def test_reading_ends_where_the_log_ended_when_it_began(self, bench: Bench) -> None:
        sent = await fill(bench.log, 2_000, size=1_000)
        reading = bench.log.read()
        records = await anext(reading)
        await bench.other.append(numbered(1, 5_000), 2_000)
        records = records + [record async for more in reading for record in more]
        assert records == as_records(sent)

    async def test_a_record_is_got_by_its_sequence(self, bench: Bench) -> None:
        sent = as_records(await fill(bench.log, 3))
        assert [await bench.log.get(seq) for seq in range(5)] == [None, *sent, None]

    async def test_an_aggregate_is_read_by_its_exact_subject(self, bench: Bench) -> None:
        sent = [Message(f"ev.task.{name}", name.encode()) for name in ("a", "ab", "a", "A", "a-")]
        await bench.log.append(sent, 0)
        found = await bench.log.of_subject("ev.task.a")
        assert found == [Record(1, "ev.task.a", b"a"), Record(3, "ev.task.a", b"a")]

    async def test_of_a_long_aggregate_the_oldest_records_come(self, bench: Bench) -> None:
        await fill(bench.log, 4_000)
        found = await bench.log.of_subject("ev.task.t1")
        assert [record.seq for record in found] == list(range(1, 4_001, 3))
        assert await bench.log.of_subject("ev.task.t1", limit=1_200) == found[:1_200]
        assert await bench.log.of_subject("ev.task.t1", limit=2) == found[:2]

    async def test_every_byte_comes_back_as_it_was(self, bench: Bench) -> None:
        sent = [Message("ev.node.x", data) for data in AWKWARD]
        await bench.log.append(sent, 0)
        await bench.log.append(sent[:1], len(sent))
        wanted = as_records([*sent, sent[0]])
        assert await everything(bench.log) == wanted
        assert await bench.log.of_subject("ev.node.x") == wanted
        assert [await bench.log.get(record.seq) for record in wanted] == wanted

    async def test_a_large_message_and_a_batch_of_large_ones_come_back(self, bench: Bench) -> None:
        large = [Message("ev.round.r", bytes([number]) * MIB) for number in range(4)]
        await bench.log.append([Message("ev.round.s", os.urandom(3 * MIB))], 0)
        await bench.log.append(large, 1)
        first, *others = await everything(bench.log)
        assert len(first.data) == 3 * MIB
        assert others == as_records(large, 2)
        assert await bench.log.get(1) == first
        assert await bench.log.of_subject("ev.round.r") == others

    @pytest.mark.parametrize("count", [1, 8])
    async def test_a_full_log_refuses_the_append_whole_and_keeps_what_it_has(
        self, small: Bench, count: int
    ) -> None:
        sent = await fill(small.log, 8, size=100 * KIB)
        with pytest.raises(errors.LogFull):
            await small.log.append(numbered(count, 9, size=400 * KIB // count), 8)
        assert await everything(small.log) == as_records(sent)
        assert await small.log.append(numbered(1, 9), 8) == 9

    @pytest.mark.parametrize("count", [1, 3])
    async def test_an_append_whose_answer_got_lost_shows_as_a_conflict_when_repeated(
        self, bench: Bench, count: int
    ) -> None:
        sent = await fill(bench.log, 1)
        lost = numbered(count, 2)
        bench.lose_next_answer()
        with pytest.raises(errors.LogUnavailable):
            await bench.log.append(lost, 1)
        with pytest.raises(errors.SequenceConflict):
            await bench.log.append(lost, 1)
        assert await bench.log.get(2) == Record(2, *lost[0])
        assert await everything(bench.log) == as_records([*sent, *lost])

    async def test_a_log_that_was_lost_is_used_again_when_it_is_back(self, bench: Bench) -> None:
        sent = await fill(bench.log, 3)
        await bench.lose_server()
        with pytest.raises(errors.LogUnavailable):
            await bench.log.append(numbered(2, 4), 3)
        await bench.restore_server()
        assert await everything(bench.log) == as_records(sent)
        assert await bench.log.append(numbered(2, 4), 3) == 5


class TestMemoryLog(LogContract):
    @pytest.fixture
    async def bench(self) -> Bench:
        return MemoryBench()

    @pytest.fixture
    async def small(self) -> Bench:
        return MemoryBench(bytes_max=MIB)

    async def test_appends_wait_while_they_are_held(self) -> None:
        log = MemoryLog()
        log.hold()
        append = asyncio.create_task(log.append(numbered(1), 0))
        await asyncio.sleep(0)
        assert await log.last_seq() == 0
        log.release()
        assert await append == 1


class TestJetStreamLog(LogContract):
    @pytest.fixture
    async def bench(self, shared_nats: Nats) -> AsyncIterator[JetStreamBench]:
        async with on_server(shared_nats) as bench:
            yield bench

    @pytest.fixture
    async def small(self, shared_nats: Nats) -> AsyncIterator[JetStreamBench]:
        async with on_server(shared_nats, max_mib=1) as bench:
            yield bench

    async def test_every_question_to_a_lost_server_fails_as_unavailable(
        self, bench: JetStreamBench
    ) -> None:
        await fill(bench.log, 1)
        await bench.lose_server()
        for question in (
            bench.log.last_seq(),
            bench.log.get(1),
            bench.log.of_subject("ev.task.t1"),
            everything(bench.log),
        ):
            with pytest.raises(errors.LogUnavailable):
                await question
        await bench.restore_server()

    async def test_a_read_whose_connection_breaks_fails_and_pretends_no_end(
        self, bench: JetStreamBench
    ) -> None:
        await fill(bench.log, 3_000, size=4_000)
        reading = bench.log.read()
        await anext(reading)
        await bench.lose_server()
        with pytest.raises(errors.LogUnavailable):
            [records async for records in reading]
        await bench.restore_server()

    async def test_a_stream_that_is_not_there_is_unavailable(self, bench: JetStreamBench) -> None:
        await bench.bus.api("STREAM.DELETE.EVENTS")
        for question in (
            bench.log.append(numbered(1), 0),
            bench.log.append(numbered(2), 0),
            bench.log.last_seq(),
            bench.log.get(1),
            everything(bench.log),
        ):
            with pytest.raises(errors.LogUnavailable):
                await question

    async def test_a_reader_leaves_no_consumer_behind(self, bench: JetStreamBench) -> None:
        await fill(bench.log, 2_000, size=1_000)
        await everything(bench.log)
        broken_off = bench.jetstream.read()
        await anext(broken_off)
        await broken_off.aclose()  # type: ignore[attr-defined]
        left = await bench.bus.api("CONSUMER.NAMES.EVENTS")
        assert not left["consumers"]

    async def test_times_and_headers_are_those_of_the_store(self, bench: JetStreamBench) -> None:
        await fill(bench.log, 3)
        stored = [one async for many in bench.log.read_stored() for one in many]
        for one in stored:
            answer = await bench.bus.api("STREAM.MSG.GET.EVENTS", {"seq": one.seq})
            kept = answer["message"]
            assert one.headers == base64.b64decode(kept["hdrs"])
            whole, _, parts = kept["time"].rstrip("Z").partition(".")
            at = datetime.datetime.fromisoformat(whole + "+00:00")
            assert one.at_ns == int(at.timestamp()) * 10**9 + int(parts.ljust(9, "0"))

    async def test_an_append_that_was_given_up_does_not_spoil_the_next(
        self, bench: JetStreamBench
    ) -> None:
        await fill(bench.log, 1)
        given_up = asyncio.create_task(bench.log.append(numbered(5, 2), 1))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        with pytest.raises(errors.SequenceConflict):  # and not the answer to the one before
            await bench.log.append(numbered(1, 2), 1_000)
        assert await bench.log.append(numbered(1, 7), 6) == 7
