"""The log in a JetStream stream.

Append: several messages go as one atomic batch (ADR-50 of NATS), written in one piece; only the
last asks for an answer. A lone message is a plain fenced publish: one fsync instead of four, and
about four times as fast. Both are refused unless the stream ends where the writer says.

Read: an ephemeral pull consumer without acknowledgements, two pulls ahead of the reader.

The stream needs `allow_atomic`, `allow_direct`, `discard: new`, and a `max_bytes` below what the
server may store: at the stream's own bound a batch is refused whole, but at the server's
(`max_file`) nats-server 2.15.1 stored 92 messages of a batch of 200 and never answered.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from core import bus, errors, nats_wire
from core.log import BATCH_MESSAGES_MAX, Message, Record, Stored

PULL_MESSAGES = 8_192
PULL_BYTES = 16 * 1024 * 1024  # above the server's max_payload, so that any message fits one pull
PULLS_AHEAD = 2
CONSUMER_IDLE_SECONDS_MAX = 300
SUBJECT_BATCH = 1_000
SUBJECT_BATCH_BYTES = 8 * 1024 * 1024

WRONG_LAST_SEQUENCE = 10071

_SUBJECT = re.compile(r"[^\s*>]+")
_PLAIN = b"NATS/1.0\r\n"
# The server writes its line behind all that a message brought, which may look like it.
_size = re.compile(rb"Nats-Msg-Size: (\d{1,10})\r\n\r\n\Z").search
_SIZE_BYTES_MAX = len("Nats-Msg-Size: \r\n\r\n") + 10


class JetStreamLog:
    """A `core.log.Log` over one stream.

    Appends and reads use connections of their own, opened when needed with the address and the
    credentials of `connection`; all else goes through `connection` itself.
    """

    def __init__(
        self,
        connection: bus.Bus,
        stream: str = "EVENTS",
        timeout_seconds: float = 5.0,
        *,
        may_shrink: bool = False,
    ) -> None:
        """`may_shrink`: messages of this stream may be deleted while it is read, its last too."""
        self._bus = connection
        self._stream = stream
        self._timeout_seconds = timeout_seconds
        self._may_shrink = may_shrink
        self._appender = _Appender(connection, timeout_seconds)

    async def append(self, messages: Sequence[Message], expected_last: int) -> int:
        """As `core.log.Log.append`."""
        answer = await self._appender.send(messages, expected_last)
        error = answer.get("error")
        if error is None:
            seq = answer["seq"]
            assert seq == expected_last + len(messages), answer
            return int(seq)
        words = error.get("description", error)
        match error.get("err_code"):
            case code if code == WRONG_LAST_SEQUENCE:
                raise errors.SequenceConflict(
                    f"{self._stream} does not end at {expected_last} ({words}); read what is there."
                )
            case code if code in bus.STORE_FULL:
                raise errors.LogFull(f"{self._stream} refuses to grow: {words}. Free some space.")
            case _:
                raise errors.LogUnavailable(f"{self._stream} refused the append: {words}.")

    async def last_seq(self) -> int:
        """As `core.log.Log.last_seq`."""
        info = await self._api(f"STREAM.INFO.{self._stream}")
        _require_success(info)
        return int(info["state"]["last_seq"])

    async def get(self, seq: int) -> Record | None:
        """As `core.log.Log.get`; asks the stream's leader, so that an own write is seen."""
        if seq < 1:
            return None
        answer = await self._api(f"STREAM.MSG.GET.{self._stream}", {"seq": seq})
        if answer.get("error", {}).get("err_code") == bus.NO_MESSAGE:
            return None
        _require_success(answer)
        message = answer["message"]
        return Record(message["seq"], message["subject"], base64.b64decode(message.get("data", "")))

    async def of_subject(self, subject: str, limit: int = 10_000) -> list[Record]:
        """As `core.log.Log.of_subject`."""
        records: list[Record] = []
        while len(records) < limit:
            wanted = min(SUBJECT_BATCH, limit - len(records))
            found, more = await self._direct(subject, records[-1].seq + 1 if records else 1, wanted)
            records += found
            if not more:
                break
        return records

    async def read(self, start: int = 1, stop: int | None = None) -> AsyncIterator[list[Record]]:
        """As `core.log.Log.read`; the default end is the end when reading begins."""
        async with contextlib.aclosing(self._read(start, stop, whole=False)) as blocks:
            async for frames in blocks:
                yield frames.records

    async def read_stored(
        self, start: int = 1, stop: int | None = None
    ) -> AsyncIterator[list[Stored]]:
        """As `core.log.Log.read_stored`."""
        async with contextlib.aclosing(self._read(start, stop, whole=True)) as blocks:
            async for frames in blocks:
                yield frames.stored

    async def read_headers(self, start: int = 1) -> AsyncIterator[list[Stored]]:
        """As `read_stored`, without payloads; `bytes_of` says how long each is."""
        blocks = self._read(start, None, whole=True, headers_only=True)
        async with contextlib.aclosing(blocks):
            async for frames in blocks:
                yield frames.stored

    async def _read(
        self, start: int, stop: int | None, *, whole: bool, headers_only: bool = False
    ) -> AsyncGenerator[nats_wire.Frames, None]:
        start = max(start, 1)
        last = await self.last_seq()
        stop = last if stop is None else min(stop, last)
        if start > stop:
            return
        reader = _Reader(self._bus, self._stream, self._timeout_seconds, whole=whole)
        try:
            await reader.open(start, headers_only=headers_only)
            while frames := await reader.next():
                if (frames.stored or frames.records)[-1].seq >= stop:
                    yield _up_to(frames, stop)
                    return
                yield frames
            if self._may_shrink:
                return
            raise errors.LogDamaged(
                f"{self._stream} ends before {stop}, which it says it holds; `aghsan audit` tells"
                " what is missing. Restore the data directory from a backup, or go on with what is"
                " left by `aghsan up --accept-loss`"
            )
        except (errors.Unavailable, errors.Invalid) as error:
            raise errors.LogUnavailable(f"{self._stream} cannot be read: {error}") from error
        finally:
            await reader.close()

    async def close(self) -> None:
        """Close the connection for appends; an append after it would open another."""
        await self._appender.close()

    async def _api(self, endpoint: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        try:
            return await self._bus.api(endpoint, body, self._timeout_seconds)
        except errors.Unavailable as error:
            raise errors.LogUnavailable(str(error)) from error

    async def _direct(self, subject: str, seq: int, wanted: int) -> tuple[list[Record], bool]:
        question = {
            "seq": seq,
            "next_by_subj": subject,
            "batch": wanted,
            "max_bytes": SUBJECT_BATCH_BYTES,
        }
        try:
            answers = await self._bus.ask_many(
                f"$JS.API.DIRECT.GET.{self._stream}",
                json.dumps(question).encode(),
                self._timeout_seconds,
            )
        except errors.Unavailable as error:
            raise errors.LogUnavailable(str(error)) from error
        *found, end = answers
        match end.headers[bus.STATUS]:
            case "204":
                more = end.headers.get("Nats-Num-Pending") != "0"
            case "404":
                more = False
            case status:
                raise errors.LogUnavailable(
                    f"{self._stream} does not give {subject}: {status} "
                    f"{end.headers.get('Description', '')}"
                )
        return [
            Record(int(message.headers["Nats-Sequence"]), subject, message.data)
            for message in found
        ], more and bool(found)


def bytes_of(headers: bytes) -> int | None:
    """The bytes of a message whose payload was left out, with what its writer put into its headers;
    None where the server does not say."""
    found = _size(headers[-_SIZE_BYTES_MAX:])
    if found is None:
        return None
    return int(found[1]) + max(len(headers) - len(found[0]) - len(_PLAIN), 0)


class _Appender:
    """The writing side: one append at a time on a connection that is opened when needed."""

    def __init__(self, connection: bus.Bus, timeout_seconds: float) -> None:
        self._bus = connection
        self._timeout_seconds = timeout_seconds
        self._one_at_a_time = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._inbox = ""
        self._wire: nats_wire.Wire | None = None
        self._listener: asyncio.Task[None] | None = None
        self._awaited = ""
        self._answer: asyncio.Future[nats_wire.Reply] | None = None

    async def send(self, messages: Sequence[Message], expected_last: int) -> dict[str, Any]:
        """Write the append and return the server's decoded answer. Raises LogUnavailable."""
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    reply = await self._exchange(messages, expected_last)
            except TimeoutError:
                self._hang_up()
                raise errors.LogUnavailable(
                    f"No answer to an append within {self._timeout_seconds:g} s; whether it was "
                    "stored is not known."
                ) from None
            except (errors.Unavailable, errors.Invalid) as error:
                self._hang_up()
                raise errors.LogUnavailable(f"An append went wrong: {error}") from error
        if reply.status:
            raise errors.LogUnavailable(
                f"No stream takes {messages[-1].subject} (status {reply.status})."
            )
        answer = json.loads(reply.data)
        assert isinstance(answer, dict)
        return answer

    async def close(self) -> None:
        listener = self._listener
        self._hang_up()
        if listener is not None:
            await asyncio.gather(listener, return_exceptions=True)

    async def _exchange(self, messages: Sequence[Message], expected_last: int) -> nats_wire.Reply:
        connected = self._wire or await self._connect()
        self._awaited = f"{self._inbox}.{next(self._numbers)}"
        self._answer = asyncio.get_running_loop().create_future()
        try:
            connected.write(_encode(messages, expected_last, self._awaited))
            await connected.drain()
            return await self._answer
        finally:
            self._answer = None

    async def _connect(self) -> nats_wire.Wire:
        connected = await nats_wire.Wire.connect(
            self._bus.url,
            self._bus.credentials,
            f"{self._bus.name}-append",
            self._timeout_seconds,
        )
        self._inbox = f"{self._bus.inbox_prefix}.{secrets.token_hex(8)}"
        connected.write(f"SUB {self._inbox}.* 1\r\n".encode())
        self._wire = connected
        self._listener = asyncio.create_task(self._listen(connected))
        return connected

    async def _listen(self, connected: nats_wire.Wire) -> None:
        try:
            while True:
                for reply in (await connected.receive()).replies:
                    if reply.subject == self._awaited and self._answer and not self._answer.done():
                        self._answer.set_result(reply)
        except errors.Unavailable as error:
            if self._wire is connected:
                if self._answer is not None and not self._answer.done():
                    self._answer.set_exception(error)
                self._wire = None
            connected.close()

    def _hang_up(self) -> None:
        connected, self._wire = self._wire, None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
        if connected is not None:
            connected.close()


class _Reader:
    """The reading side: a consumer of its own on a connection of its own."""

    def __init__(
        self, connection: bus.Bus, stream: str, timeout_seconds: float, *, whole: bool
    ) -> None:
        self._bus = connection
        self._stream = stream
        self._timeout_seconds = timeout_seconds
        self._whole = whole
        self._wire: nats_wire.Wire | None = None
        self._consumer = f"read-{secrets.token_hex(8)}"
        self._inbox = f"{connection.inbox_prefix}.{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)
        self._pulls: dict[str, int] = {}  # by reply subject, oldest first: messages still to come
        self._pulls_ahead = PULLS_AHEAD

    async def open(self, start: int, *, headers_only: bool) -> None:
        """Create the consumer. Raises Unavailable, Invalid."""
        self._wire = await nats_wire.Wire.connect(
            self._bus.url,
            self._bus.credentials,
            f"{self._bus.name}-read",
            self._timeout_seconds,
            buffer_bytes=PULLS_AHEAD * PULL_BYTES,
        )
        self._wire.write(f"SUB {self._inbox}.* 1\r\n".encode())
        config = {
            "name": self._consumer,
            "description": f"{self._bus.name} reads the log from {start}",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "inactive_threshold": CONSUMER_IDLE_SECONDS_MAX * 1_000_000_000,
            "headers_only": headers_only,
        }
        self._call(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "config": config},
        )
        replies: list[nats_wire.Reply] = []
        while not replies:
            replies = (await self._receive()).replies
        if replies[0].status:
            raise errors.Unavailable(f"JetStream does not answer ({replies[0].status}).")
        _require_success(json.loads(replies[0].data))

    async def next(self) -> nats_wire.Frames | None:
        """The records that came, in order; None at the end of the stream. Raises Unavailable."""
        while True:
            self._pull()
            frames = await self._receive()
            arrived = len(frames.records) + len(frames.stored)
            self._count(arrived)
            for reply in frames.replies:
                self._end_pull(reply)
            if arrived or not self._pulls:
                return frames if arrived else None

    async def close(self) -> None:
        """Disconnect and delete the consumer."""
        if self._wire is None:
            return
        self._wire.close()
        # By way of the bus: on this connection, closed with bytes unread, it could get lost.
        with contextlib.suppress(errors.Unavailable):
            await self._bus.api(f"CONSUMER.DELETE.{self._stream}.{self._consumer}")

    async def _receive(self) -> nats_wire.Frames:
        assert self._wire is not None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._wire.receive(self._whole)
        except TimeoutError:
            raise errors.Unavailable(
                f"nothing came for {self._timeout_seconds:g} s although more was asked for."
            ) from None

    def _call(self, endpoint: str, body: dict[str, object]) -> str:
        assert self._wire is not None
        reply = f"{self._inbox}.{next(self._numbers)}"
        self._wire.write(
            nats_wire.publication(f"$JS.API.{endpoint}", reply, json.dumps(body).encode())
        )
        return reply

    def _pull(self) -> None:
        while len(self._pulls) < self._pulls_ahead:
            pull = self._call(
                f"CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                {"batch": PULL_MESSAGES, "max_bytes": PULL_BYTES, "no_wait": True},
            )
            self._pulls[pull] = PULL_MESSAGES

    def _count(self, arrived: int) -> None:
        # The server serves pulls in their order.
        for pull, left in list(self._pulls.items()):
            if arrived < left:
                self._pulls[pull] = left - arrived
                return
            arrived -= left
            del self._pulls[pull]

    def _end_pull(self, reply: nats_wire.Reply) -> None:
        self._pulls.pop(reply.subject, None)
        match reply.status[:3]:
            case "404" | "408":
                # 408 tells a younger pull at once that the older ones take all there is; so this
                # is the end of the stream only when no pull is left.
                self._pulls_ahead = 1
            case "409" if "Batch Completed" in reply.status or "MaxBytes" in reply.status:
                pass
            case _:
                raise errors.Unavailable(f"a pull ended with {reply.status or reply.data!r}.")


def _up_to(frames: nats_wire.Frames, stop: int) -> nats_wire.Frames:
    """Without the records after `stop`."""
    return frames._replace(
        records=[record for record in frames.records if record.seq <= stop],
        stored=[stored for stored in frames.stored if stored.seq <= stop],
    )


def _encode(messages: Sequence[Message], expected_last: int, reply: str) -> bytes:
    """An append as protocol bytes: a fenced publish, or an atomic batch fenced by its first."""
    count = len(messages)
    assert 0 < count <= BATCH_MESSAGES_MAX
    assert all(_SUBJECT.fullmatch(message.subject) for message in messages), messages
    fence = b"NATS/1.0\r\nNats-Expected-Last-Sequence:%d\r\n" % expected_last
    if count == 1:
        ((subject, data),) = messages
        return nats_wire.publication_with(subject, reply, fence + b"\r\n", data)
    # These headers stay in the stream for ever, with every message: keep them short.
    batch = b"Nats-Batch-Id:%s\r\nNats-Batch-Sequence:" % secrets.token_hex(6).encode()
    frames = []
    for number, (subject, data) in enumerate(messages, 1):
        first, last = number == 1, number == count
        header = b"%s%s%d\r\n%s\r\n" % (
            fence if first else b"NATS/1.0\r\n",
            batch,
            number,
            b"Nats-Batch-Commit:1\r\n" if last else b"",
        )
        frames.append(nats_wire.publication_with(subject, reply if last else "", header, data))
    return b"".join(frames)


def _require_success(answer: dict[str, Any]) -> None:
    if error := answer.get("error"):
        raise errors.LogUnavailable(f"The server refused: {error.get('description', error)}.")
