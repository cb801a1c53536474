"""Cutting the bytes of a connection into frames, wherever the network cut them."""

import asyncio
import contextlib
import json
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import errors, nats_wire
from core.log import Record, Stored
from core.nats_wire import Frames, Reply, Wire

SECONDS_MAX = 10.0

names = st.text("abcXYZ019-_", min_size=1, max_size=8)
subjects = st.lists(names, min_size=1, max_size=4).map(".".join)
numbers = st.integers(1, 2**63 - 1)
# Payloads that look like protocol are what a careless splitter trips over.
payloads = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=16).map(str.encode),
    st.sampled_from([b"\r\n", b"MSG a 1 2\r\nxx\r\n", b"PING\r\n", b"\r\nHMSG ", b"\r"]),
)
headers = st.one_of(
    st.just(b""),
    st.binary(max_size=24).map(
        lambda raw: b"NATS/1.0\r\nX:" + raw.replace(b"\n", b"") + b"\r\n\r\n"
    ),
)


def framed(subject: str, reply: bytes, header: bytes, data: bytes) -> bytes:
    address = b" ".join(filter(None, [subject.encode(), b"1", reply]))
    if header:
        sizes = b"%d %d" % (len(header), len(header) + len(data))
        return b"HMSG %s %s\r\n%s%s\r\n" % (address, sizes, header, data)
    return b"MSG %s %d\r\n%s\r\n" % (address, len(data), data)


Sent = tuple[bytes, Record | Reply | bytes]


@st.composite
def deliveries(draw: st.DrawFn) -> Sent:
    """A message of a consumer, and the record that it is."""
    seq, subject, data = draw(numbers), draw(subjects), draw(payloads)
    ack = f"{draw(names)}.{draw(names)}.1.{seq}.{draw(numbers)}.{draw(numbers)}.0"
    if draw(st.booleans()):  # behind a domain and an account's hash (ADR-15 of NATS)
        ack = f"_.{draw(names)}.{ack}.{draw(names)}"
    raw = framed(subject, f"$JS.ACK.{ack}".encode(), draw(headers), data)
    return raw, Record(seq, subject, data)


@st.composite
def answers(draw: st.DrawFn) -> Sent:
    """Any other message, with a status or without."""
    subject, data = draw(subjects), draw(payloads)
    status = draw(st.sampled_from(["", "404 No Messages", "409 Batch Completed", "503"]))
    header = f"NATS/1.0 {status}\r\nNats-Pending:1\r\n\r\n".encode() if status else b""
    reply = draw(st.sampled_from([b"", b"_INBOX.x"]))
    return framed(subject, reply, header, data), Reply(subject, status, data)


controls = st.sampled_from([b"PING", b"PONG", b"+OK", b"INFO {}", b"-ERR 'Stale Connection'"]).map(
    lambda line: (line + b"\r\n", line)
)


def split_in_pieces(stream: bytes, cuts: list[int]) -> list[Frames]:
    """Split as the network delivers: what is unfinished waits for the next piece."""
    frames, rest = [], b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        block = rest + stream[start:end]
        frames.append(nats_wire.split(block))
        rest = block[frames[-1].used :]
    assert rest == b""
    return frames


@given(st.lists(st.one_of(deliveries(), answers(), controls), max_size=8), st.data())
def test_frames_are_the_same_wherever_the_stream_is_cut(
    sent: list[Sent], data: st.DataObject
) -> None:
    stream = b"".join(raw for raw, _ in sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    frames = split_in_pieces(stream, cuts)
    wanted = [meant for _, meant in sent]
    whole = nats_wire.split(stream, whole=True)
    assert [Record(one.seq, one.subject, one.data) for one in whole.stored] == [
        one for one in wanted if isinstance(one, Record)
    ]
    assert [one for part in frames for one in part.records] == [
        one for one in wanted if isinstance(one, Record)
    ]
    assert [one for part in frames for one in part.replies] == [
        one for one in wanted if isinstance(one, Reply)
    ]
    assert [one for part in frames for one in part.controls] == [
        one for one in wanted if isinstance(one, bytes)
    ]


@pytest.mark.parametrize("ack", ["$JS.ACK.S.c.1.7.3.99.0", "$JS.ACK._.H.S.c.1.7.3.99.0.x"])
@pytest.mark.parametrize("header", [b"", b"NATS/1.0\r\nA:b\r\n\r\n"])
def test_a_whole_record_has_its_time_and_its_headers(ack: str, header: bytes) -> None:
    raw = framed("ev.task.t", ack.encode(), header, b"data")
    assert nats_wire.split(raw, whole=True).stored == [Stored(7, "ev.task.t", b"data", 99, header)]


def test_a_frame_cut_at_any_byte_waits_for_its_rest() -> None:
    whole = framed(
        "ev.task.t", b"$JS.ACK.S.c.1.7.1.1.0", b"NATS/1.0\r\nA:b\r\n\r\n", "نصّ\r\n".encode()
    )
    for cut in range(len(whole)):
        assert nats_wire.split(whole[:cut]) == Frames([], [], [], [], 0)
        first, second = split_in_pieces(whole, [cut])
        assert first.records + second.records == [Record(7, "ev.task.t", "نصّ\r\n".encode())]


def test_publications_are_what_the_protocol_says() -> None:
    assert nats_wire.publication("a.b", "", "ن".encode()) == b"PUB a.b 2\r\n\xd9\x86\r\n"
    assert nats_wire.publication("a", "r", b"") == b"PUB a r 0\r\n\r\n"
    header = b"NATS/1.0\r\nX:1\r\n\r\n"
    assert nats_wire.publication_with("a", "r", header, b"xy") == (
        b"HPUB a r 17 19\r\n" + header + b"xy\r\n"
    )


# The connection

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """A peer that behaves as scripted; its address."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await script(reader, writer)
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1") as server:
        yield "nats://127.0.0.1:{1}".format(*server.sockets[0].getsockname())


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, object]:
    """The server's half of a greeting; what the client said of itself."""
    writer.write(b'INFO {"nonce":"x"}\r\n')
    line = await reader.readuntil(b"\r\n")
    assert await reader.readuntil(b"\r\n") == b"PING\r\n"
    writer.write(b"PONG\r\n")
    options: dict[str, object] = json.loads(line.removeprefix(b"CONNECT "))
    return options


async def test_a_ping_is_answered() -> None:
    heard = asyncio.get_running_loop().create_future()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await greet(reader, writer))["name"] == "test"
        writer.write(b"PING\r\n")
        heard.set_result(await reader.readuntil(b"\r\n"))

    async with serving(script) as url, asyncio.timeout(SECONDS_MAX):
        wire = await Wire.connect(url, None, "test", SECONDS_MAX)
        assert (await wire.receive()).controls == [b"PING"]
        assert await heard == b"PONG\r\n"
        with pytest.raises(errors.Unavailable, match="closed by the server"):
            await wire.receive()
        wire.close()


@pytest.mark.parametrize("sent", [b"-ERR 'Authorization Violation'\r\n", b"HTTP/1.1 400 No\r\n"])
async def test_a_complaint_of_the_server_is_an_error_with_its_words(sent: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.write(sent)
        await reader.read()

    async with serving(script) as url, asyncio.timeout(SECONDS_MAX):
        wire = await Wire.connect(url, None, "test", SECONDS_MAX)
        with pytest.raises(errors.Unavailable, match=sent[5:13].decode()):
            await wire.receive()
        wire.close()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "instead of INFO"),
        (b"INFO nonsense\r\n", "Expecting value"),
        (b'INFO {"tls_required":true}\r\n', "TLS"),
        (b"INFO {}\r\n-ERR 'Authorization Violation'\r\n", "Authorization"),
        (b"", "INFO"),
        (b"INFO {}\r\n", "closed"),
    ],
)
async def test_a_peer_that_is_no_server_for_us_is_unavailable(sent: bytes, words: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.write_eof()
        await reader.read()

    async with serving(script) as url:
        with pytest.raises(errors.Unavailable, match=words):
            await Wire.connect(url, None, "test", SECONDS_MAX)


async def test_a_peer_that_says_nothing_is_given_up() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(script) as url:
        with pytest.raises(errors.Unavailable, match="no answer in time"):
            await Wire.connect(url, None, "test", 0.05)


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with serving(greet_nobody) as url:
        port = urllib.parse.urlsplit(url).port
    with pytest.raises(errors.Unavailable, match=str(port)):
        await Wire.connect(url, None, "test", SECONDS_MAX)


async def greet_nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hang up."""


@pytest.mark.parametrize("url", ["wss://host/nats", "127.0.0.1:4222", "nats://"])
async def test_an_address_that_the_log_cannot_use_is_invalid(url: str) -> None:
    with pytest.raises(errors.Invalid, match="nats://host:port"):
        await Wire.connect(url, None, "test", SECONDS_MAX)
