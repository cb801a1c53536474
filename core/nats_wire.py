"""A bare NATS connection for the two hot paths of the log: whole batches out, whole blocks in.

nats-py makes several objects and a trip through a queue of every message; here a batch is one
write and a block of messages one pass over its bytes (`append` and `rebuild` of benchmarks/ have
the difference). Everything else goes through `core.bus`.

The protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

import asyncio
import json
import re
import urllib.parse
from typing import NamedTuple

from core import bus, errors
from core.log import Record, Stored

READ_BYTES = 512 * 1024

# $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>
# A longer form has a domain and an account hash after $JS.ACK (ADR-15 of NATS).
ACK_TOKENS = 9

_new = tuple.__new__  # a third of the price of Record(...)

# The line before a message of a consumer, in its usual form: subject, stream sequence, time, bytes
# of headers and of everything. Found at half the price of cutting the line up.
_delivery = re.compile(
    rb"H?MSG (\S+) \S+ \$JS\.ACK\.[^. ]+\.[^. ]+\.\d+\.(\d+)\.\d+\.(\d+)\.\d+ (?:(\d+) )?(\d+)\r\n"
).match


class Reply(NamedTuple):
    """A message that is no record: an answer (status "") or a status ("404 No Messages")."""

    subject: str
    status: str
    data: bytes


class Frames(NamedTuple):
    """What a block of bytes held: messages by kind, control lines, and how many bytes that was.

    Of records, either `records` or `stored` is filled, as asked for.
    """

    records: list[Record]
    stored: list[Stored]
    replies: list[Reply]
    controls: list[bytes]
    used: int


def split(block: bytes, whole: bool = False) -> Frames:
    """Split whole frames off the beginning of `block`; what is left is an unfinished one.

    A message delivered by a JetStream consumer becomes a Record, with the stream sequence that its
    reply subject carries, and loses its headers; or, with `whole`, a Stored. What is no text in a
    subject, as agents may choose it, is replaced. The loop is written for speed: it is most of what
    a rebuild of the state costs.
    """
    records: list[Record] = []
    stored: list[Stored] = []
    replies: list[Reply] = []
    controls: list[bytes] = []
    add, find, size, at = records.append, block.find, len(block), 0
    while True:
        if usual := _delivery(block, at):
            name, number, time, header_bytes, total = usual.groups(b"0")
            body = usual.end()
            stop = body + int(total)
            if stop + 2 > size:
                break
            start = body + int(header_bytes)
            data = block[start:stop]
            try:
                subject = name.decode()
            except UnicodeDecodeError:
                subject = name.decode("utf-8", "replace")
            if whole:
                headers = block[body:start]
                stored.append(Stored(int(number), subject, data, int(time), headers))
            else:
                add(_new(Record, (int(number), subject, data)))
            at = stop + 2
            continue
        end = find(b"\r\n", at)
        if end < 0:
            break
        line, body = block[at:end], end + 2
        heading = _heading(line)
        if heading is None:
            controls.append(line)
            at = body
            continue
        named, reply, header_bytes, total = heading
        start, stop = body + int(header_bytes), body + int(total)
        if stop + 2 > size:
            break
        at = stop + 2
        subject = named.decode("utf-8", "replace")
        if reply.startswith(b"$JS.ACK."):
            seq, at_ns = _sequence(reply)
            data = block[start:stop]
            if whole:
                stored.append(Stored(seq, subject, data, at_ns, block[body:start]))
            else:
                add(_new(Record, (seq, subject, data)))
        else:
            status = _status(block[body:start]) if start > body else ""
            replies.append(Reply(subject, status, block[start:stop]))
    return Frames(records, stored, replies, controls, at)


def _heading(line: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Subject, reply, bytes of headers and of everything, of the line before a message; None for
    any other line."""
    match line.split(b" "):
        case [b"MSG", subject, _, total]:
            return subject, b"", b"0", total
        case [b"HMSG", subject, _, header_bytes, total]:
            return subject, b"", header_bytes, total
        case [b"MSG", subject, _, reply, total]:
            return subject, reply, b"0", total
        case [b"HMSG", subject, _, reply, header_bytes, total]:
            return subject, reply, header_bytes, total
        case _:
            return None


def _sequence(reply: bytes) -> tuple[int, int]:
    """Sequence and time of a record, from the reply subject that acknowledges it."""
    tokens = reply.split(b".")
    # Counted from the stream's name, before which a domain and an account hash may stand.
    first = 2 if len(tokens) == ACK_TOKENS else 4
    return int(tokens[first + 3]), int(tokens[first + 5])


def _status(header: bytes) -> str:
    return header.partition(b"\r\n")[0].removeprefix(b"NATS/1.0").strip().decode("utf-8", "replace")


class Wire:
    """One authenticated connection; its user writes protocol and reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._rest = b""

    @classmethod
    async def connect(
        cls,
        url: str,
        credentials: bus.Credentials | None,
        name: str,
        timeout_seconds: float,
        buffer_bytes: int = 4 * READ_BYTES,
    ) -> "Wire":
        """Connect to `nats://host:port`. Raises Unavailable; Invalid for any other scheme."""
        address = urllib.parse.urlsplit(url)
        if address.scheme != "nats" or address.hostname is None:
            raise errors.Invalid(f"The log is reached by nats://host:port, not by {url!r}.")
        try:
            async with asyncio.timeout(timeout_seconds):
                reader, writer = await asyncio.open_connection(
                    address.hostname, address.port or 4222, limit=buffer_bytes
                )
                try:
                    wire = cls(reader, writer)
                    await wire._greet(credentials, name)
                except BaseException:
                    writer.transport.abort()
                    raise
                return wire
        except (OSError, ValueError, TimeoutError, errors.Unavailable) as error:
            raise errors.Unavailable(
                f"Cannot connect to NATS at {url}: {str(error) or 'no answer in time.'}"
            ) from error

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until most of what was written is on its way. Raises Unavailable."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise errors.Unavailable(f"The connection to NATS was lost: {error}") from error

    async def receive(self, whole: bool = False) -> Frames:
        """Wait for bytes and return the frames so far, as `split` does; answers the server's pings.

        Raises Unavailable when the connection is lost or the server complains.
        """
        try:
            block = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise errors.Unavailable(f"The connection to NATS was lost: {error}") from error
        if not block:
            raise errors.Unavailable("The connection to NATS was closed by the server.")
        if self._rest:
            block = self._rest + block
        frames = split(block, whole)
        self._rest = block[frames.used :]
        for control in frames.controls:
            self._obey(control)
        return frames

    def close(self) -> None:
        """Disconnect; what was written is still sent."""
        self._writer.close()

    async def _greet(self, credentials: bus.Credentials | None, name: str) -> None:
        line = await self._reader.readline()
        if not line.startswith(b"INFO "):
            raise errors.Unavailable(f"the server began with {line[:40]!r} instead of INFO.")
        info = json.loads(line[5:])
        if info.get("tls_required"):
            raise errors.Unavailable("the server asks for TLS, which the log does not speak.")
        options: dict[str, object] = {
            "name": name,
            "lang": "aghsan",
            "version": "1",
            "protocol": 1,
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
        }
        if credentials is not None:
            options["jwt"] = credentials.jwt
            options["sig"] = credentials.sign(info.get("nonce", ""))
        self.write(b"CONNECT %s\r\nPING\r\n" % json.dumps(options).encode())
        while (line := await self._reader.readline()) != b"PONG\r\n":
            if not line:
                raise errors.Unavailable("the server closed the connection.")
            self._obey(line.rstrip())

    def _obey(self, control: bytes) -> None:
        if control == b"PING":
            self.write(b"PONG\r\n")
        elif control.startswith(b"-ERR"):
            words = control[4:].strip().decode("utf-8", "replace")
            raise errors.Unavailable(f"the server says {words}.")
        elif not control.startswith((b"PONG", b"INFO", b"+OK")):
            raise errors.Unavailable(f"the server sent {control[:40]!r}, which is no NATS.")


def publication(subject: str, reply: str, data: bytes) -> bytes:
    """The bytes of one message without headers."""
    address = f"{subject} {reply}" if reply else subject
    return b"PUB %s %d\r\n%s\r\n" % (address.encode(), len(data), data)


def publication_with(subject: str, reply: str, header: bytes, data: bytes) -> bytes:
    """The bytes of one message whose `header` is complete, from NATS/1.0 to the empty line."""
    address = f"{subject} {reply}" if reply else subject
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (
        address.encode(),
        len(header),
        len(header) + len(data),
        header,
        data,
    )
