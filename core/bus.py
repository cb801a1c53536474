"""The one door to NATS: connect, ask, publish, subscribe, and the JetStream API.

Every wait has an end and every queue a bound:

| what | bound | beyond it |
| --- | --- | --- |
| bytes waiting to be written | OUT_BYTES_MAX | the sender waits, at most its own timeout |
| questions awaiting an answer | QUESTIONS_MAX | errors.Overloaded |
| messages of a subscription not yet handled | PENDING_MESSAGES_MAX, _BYTES_MAX | dropped, logged |
| handlers of a subscription at work | its `concurrency` | messages wait, in order |

While the connection is down nothing is queued: nats-py would keep up to `pending_size` bytes and
send them on the next connection, long after whoever asked gave up. Here asking and publishing
raise errors.Unavailable at once, and questions in flight fail as soon as the loss is noticed.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import re
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import nats.aio.client
import nats.aio.msg
import nats.aio.subscription
import nats.errors
import nats.nuid
import nkeys

from core import errors

OUT_BYTES_MAX = 8 * 1024 * 1024
QUESTIONS_MAX = 16_384
PENDING_MESSAGES_MAX = 65_536
PENDING_BYTES_MAX = 64 * 1024 * 1024
RECONNECT_WAIT_SECONDS = 0.1
CLOSE_SECONDS_MAX = 5.0

# A host that vanished without a word is noticed after (PINGS_UNANSWERED_MAX + 1) intervals.
PING_INTERVAL_SECONDS = 5
PINGS_UNANSWERED_MAX = 2

PING = b"PING\r\n"
STATUS = "Status"
NO_RESPONDERS = "503"
SEQUENCE = "Nats-Sequence"
"""The header that JetStream gives to every message it hands out on request, and to nothing else."""
NO_MESSAGE = 10037
"""JetStream's error code where no message stands at a sequence, or of a subject."""
STORE_FULL = frozenset({10002, 10023, 10028, 10047, 10077})
"""JetStream's error codes where a store does not grow: limits of account, server and storage, and
what the store itself refused (bytes, messages, disk)."""

LINGER_NONE = struct.pack("ii", 1, 0)
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_JWT = re.compile(r"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
_SEED = re.compile(r"-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+")
_logger = logging.getLogger(__name__)

Notice = Callable[[], None]


class Credentials(NamedTuple):
    """Who a connection is: a signed JWT and the seed of the key it was given to."""

    jwt: str
    seed: str

    def sign(self, nonce: str) -> str:
        """The base64 signature of the server's nonce."""
        pair = nkeys.from_seed(bytearray(self.seed.encode()))
        return base64.b64encode(pair.sign(nonce.encode())).decode()


def read_credentials(source: Path | tuple[str, str]) -> Credentials:
    """Credentials from a `.creds` file, or from a pair (jwt, seed).

    Raises Invalid when the file cannot be read or holds no credentials.
    """
    if isinstance(source, tuple):
        return Credentials(*source)
    try:
        text = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.Invalid(f"The credentials {source} cannot be read: {error}.") from error
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise errors.Invalid(
            f"{source} is no credentials file: it needs a NATS USER JWT and a USER NKEY SEED block."
        )
    return Credentials(jwt[1], seed[1])


class Incoming:
    """A message that arrived: its subject, its bytes, and where an answer goes ("": nowhere)."""

    __slots__ = ("_bus", "data", "headers", "reply", "subject")

    def __init__(
        self, bus: "Bus", subject: str, data: bytes, reply: str, headers: Mapping[str, str]
    ) -> None:
        self._bus = bus
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers = headers

    async def respond(self, data: bytes) -> None:
        """Answer; nothing happens when nobody asked. Raises Unavailable."""
        if self.reply:
            await self._bus.publish(self.reply, data)


Handler = Callable[[Incoming], Awaitable[None]]


class Subscription:
    """Interest in a subject, and the handlers at work for it."""

    def __init__(self, subject: str, handler: Handler, concurrency: int) -> None:
        assert concurrency > 0
        self.subject = subject
        self._handler = handler
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._inner: nats.aio.subscription.Subscription | None = None

    async def unsubscribe(self) -> None:
        """Start no further handler; those at work go on."""
        inner, self._inner = self._inner, None
        if inner is None:
            return
        try:
            await inner.unsubscribe()
        except nats.errors.Error as error:
            _logger.debug(
                "a subscription was gone already: %s", error, extra={"action": "unsubscribe"}
            )

    async def _deliver(self, message: Incoming) -> None:
        # nats-py awaits this before it takes the next message: waiting here for a free slot leaves
        # the rest in its bounded queue, and with one slot keeps their order.
        await self._slots.acquire()
        task = asyncio.create_task(self._handle(message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, message: Incoming) -> None:
        try:
            await self._handler(message)
        except Exception:
            # A handler's fault must not end the subscription.
            _logger.exception(
                "a handler failed on %s", message.subject, extra={"action": "handle_message"}
            )
        finally:
            self._slots.release()

    async def _cancel_handlers(self) -> None:
        others = self._running - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _status_of(answer: Incoming) -> str:
    """What the server itself says in place of a message, "" for one: a stored message comes with
    whatever headers its writer liked."""
    return "" if SEQUENCE in answer.headers else answer.headers.get(STATUS, "")


class _Question:
    """Answers gathered for one reply subject, until `is_last` says that no more will come."""

    __slots__ = ("_is_last", "answers", "done")

    def __init__(self, is_last: Callable[[Incoming], bool]) -> None:
        self._is_last = is_last
        self.answers: list[Incoming] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, answer: Incoming) -> None:
        if self.done.done():  # the server answers some questions across accounts twice
            return
        self.answers.append(answer)
        if self._is_last(answer):
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # its asker may be gone; then nobody else would look


class _Client(nats.aio.client.Client):
    """nats-py, mended where one message, or one packet that is lost, would deafen it.

    It takes subjects and headers apart inside its only read loop, where bytes of an agent's
    choosing that are no text would end all reading; so would the answer to a ping whose asker gave
    up. It writes a ping past what still waits to be written, so that the answer said nothing about
    that. It waits for a connection that is stale to be closed by its other end too, and for a
    WebSocket as long as the kernel tries, ever more rarely.
    """

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _connect_to_server(self, server: Any) -> None:
        async with asyncio.timeout(self.options["connect_timeout"]):
            await super()._connect_to_server(server)

    async def _process_op_err(self, error: Exception) -> None:
        if isinstance(error, nats.errors.StaleConnectionError):
            self._break_off()
        await super()._process_op_err(error)

    async def force_reconnect(self) -> None:
        self._break_off()
        await super().force_reconnect()

    def _break_off(self) -> None:
        """End the connection at this end, with nothing left for the kernel to deliver late."""
        inner: Any = self._transport
        stream = getattr(inner, "_ws", None) or getattr(inner, "_io_writer", None)
        end = stream.get_extra_info("socket") if stream is not None else None
        if end is not None:
            with contextlib.suppress(OSError):  # it is broken already
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
                end.shutdown(socket.SHUT_RDWR)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING)
        await self._flush_pending()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return None  # as if there were none; what the message says is still its handler's

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except UnicodeDecodeError as error:
            _logger.warning(
                "a message was dropped, its subject is no text: %r (%s)",
                subject[:80],
                error,
                extra={"action": "bus_drop"},
            )


class Bus:
    """One connection to one NATS account."""

    def __init__(
        self,
        url: str,
        *,
        credentials: Path | tuple[str, str] | None,
        name: str,
        inbox_prefix: str,
        on_reconnect: Notice | None,
        on_closed: Notice | None,
    ) -> None:
        self.url = url
        self.name = name
        self.inbox_prefix = inbox_prefix
        self.last_error = ""
        self._source = credentials
        self._on_reconnect = on_reconnect
        self._on_closed = on_closed
        self._client = _Client()
        self._established = False
        self._complained = False
        self._closing = False
        self._inbox = f"{inbox_prefix}.{nats.nuid.NUID().next().decode()}"
        self._tokens = itertools.count(1)
        self._questions: dict[str, _Question] = {}
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        credentials: Path | tuple[str, str] | None = None,
        inbox_prefix: str = "_INBOX",
        on_reconnect: Notice | None = None,
        on_closed: Notice | None = None,
        connect_timeout_seconds: float = 5.0,
    ) -> "Bus":
        """Connect to `nats://host:port`, or to `ws://` and `wss://host[:port][/path]`.

        `credentials` is a `.creds` file (read again at every connect) or a pair (jwt, seed).
        Once connected, a lost connection is tried again every 100 ms, for ever; `on_reconnect`
        tells that it is back. `on_closed` comes once, after close() or when the server turned the
        connection out for good (credentials revoked); `last_error` then has its words.

        Raises Unavailable when no connection stands within `connect_timeout_seconds` or the
        server refuses the credentials, Invalid when there are none in the file.
        """
        bus = cls(
            url,
            credentials=credentials,
            name=name,
            inbox_prefix=inbox_prefix,
            on_reconnect=on_reconnect,
            on_closed=on_closed,
        )
        try:
            async with asyncio.timeout(connect_timeout_seconds):
                await bus._open(connect_timeout_seconds)
        except TimeoutError:
            await bus._abandon()
            raise errors.Unavailable(
                f"No NATS server answered at {url} within {connect_timeout_seconds:g} s"
                f"{bus._because()}. Is it running?"
            ) from None
        except nats.errors.Error as error:
            await bus._abandon()
            raise errors.Unavailable(f"Cannot connect to NATS at {url}: {error}.") from error
        except BaseException:
            await bus._abandon()
            raise
        return bus

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @property
    def credentials(self) -> Credentials | None:
        """Who this connection is, as its file says now. Raises Invalid."""
        return None if self._source is None else read_credentials(self._source)

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        timeout_seconds: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Ask, and return the bytes of the first answer.

        Raises Unavailable when nobody listens, no answer comes in time or the connection breaks
        (whether the question arrived is then not known), Overloaded when too many are open.
        """
        return (await self.ask(subject, data, timeout_seconds, headers)).data

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        timeout_seconds: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> Incoming:
        """As `request`, but the whole answer, its headers included."""
        (answer,) = await self._question(
            subject, data, timeout_seconds, headers, is_last=lambda _: True
        )
        return answer

    async def ask_many(
        self, subject: str, data: bytes = b"", timeout_seconds: float = 5.0
    ) -> list[Incoming]:
        """Ask, and return every answer up to and including the first that is a status.

        For questions whose own bounds limit the answers, as direct gets of batches. Raises as
        `request` does.
        """
        return await self._question(
            subject, data, timeout_seconds, None, is_last=lambda answer: bool(_status_of(answer))
        )

    async def api(
        self,
        endpoint: str,
        body: Mapping[str, object] | None = None,
        timeout_seconds: float = 5.0,
    ) -> dict[str, Any]:
        """Call `$JS.API.<endpoint>`; the decoded answer, which may hold an "error".

        Raises Unavailable.
        """
        question = b"" if body is None else json.dumps(body).encode()
        answer = json.loads(await self.request(f"$JS.API.{endpoint}", question, timeout_seconds))
        assert isinstance(answer, dict)
        return answer

    async def publish(
        self,
        subject: str,
        data: bytes,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send, without waiting for the server to have it. Raises Unavailable, Invalid."""
        self._require_connection()
        try:
            # nats-py swallows a cancellation that meets it inside its own forced flush, and a
            # timeout with it; so the wait for room is ours, and its own limit is never reached.
            while self._client.pending_data_size > OUT_BYTES_MAX:
                await self._client.flush()
                self._require_connection()
            await self._client.publish(subject, data, reply, dict(headers) if headers else None)
        except (nats.errors.MaxPayloadError, nats.errors.BadSubjectError) as error:
            raise errors.Invalid(
                f"A message of {len(data)} bytes to {subject!r} cannot be sent: {error}"
            ) from error
        except (nats.errors.Error, OSError) as error:
            raise errors.Unavailable(f"Cannot publish to {subject}: {error}.") from error

    async def subscribe(
        self, subject: str, handler: Handler, queue: str = "", concurrency: int = 1
    ) -> Subscription:
        """Call `handler` for each message, at most `concurrency` at once.

        With the default of one, messages are handled in the order of their arrival. What a handler
        raises is logged and ends nothing. Survives reconnects. Raises Unavailable.
        """
        subscription = Subscription(subject, handler, concurrency)

        async def deliver(message: nats.aio.msg.Msg) -> None:
            await subscription._deliver(self._incoming(message))

        self._require_connection()
        try:
            subscription._inner = await self._client.subscribe(
                subject,
                queue=queue,
                cb=deliver,
                pending_msgs_limit=PENDING_MESSAGES_MAX,
                pending_bytes_limit=PENDING_BYTES_MAX,
            )
        except nats.errors.BadSubjectError as error:
            raise errors.Invalid(f"{subject!r} is no subject to subscribe to.") from error
        except (nats.errors.Error, OSError) as error:
            raise errors.Unavailable(f"Cannot subscribe to {subject}: {error}.") from error
        self._subscriptions.add(subscription)
        return subscription

    async def flush(self, timeout_seconds: float = 5.0) -> None:
        """Return when the server has had everything sent so far. Raises Unavailable."""
        self._require_connection()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._client.flush()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise errors.Unavailable(
                f"NATS at {self.url} did not answer within {timeout_seconds:g} s."
            ) from error

    async def reconnect(self) -> None:
        """Leave this connection, with what is under way on it, for a new one."""
        await self._client.force_reconnect()

    async def close(self) -> None:
        """Send what waits, end the handlers at work, and disconnect. May be repeated."""
        if self._closing:
            return
        self._closing = True
        for subscription in list(self._subscriptions):
            await subscription.unsubscribe()
            await subscription._cancel_handlers()
        await self._abandon()

    async def _open(self, connect_timeout_seconds: float) -> None:
        credentials = self.credentials
        # nats-py types its timeouts as int and takes floats; it asks for coroutines as callbacks.
        await self._client.connect(
            self.url,
            name=self.name,
            error_cb=self._complain,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
            connect_timeout=connect_timeout_seconds,  # type: ignore[arg-type]
            reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_SECONDS,
            max_outstanding_pings=PINGS_UNANSWERED_MAX,
            pending_size=8 * OUT_BYTES_MAX,
            inbox_prefix=self.inbox_prefix,
            user_jwt_cb=None if credentials is None else self._jwt,
            signature_cb=None if credentials is None else self._sign,
        )
        await self._client.subscribe(
            f"{self._inbox}.*",
            cb=self._answered,
            pending_msgs_limit=PENDING_MESSAGES_MAX,
            pending_bytes_limit=PENDING_BYTES_MAX,
        )
        self._established = True

    def _jwt(self) -> bytearray:
        credentials = self.credentials
        assert credentials is not None
        return bytearray(credentials.jwt.encode())

    def _sign(self, nonce: str) -> bytes:
        credentials = self.credentials
        assert credentials is not None
        return credentials.sign(nonce).encode()

    async def _question(
        self,
        subject: str,
        data: bytes,
        timeout_seconds: float,
        headers: Mapping[str, str] | None,
        is_last: Callable[[Incoming], bool],
    ) -> list[Incoming]:
        if len(self._questions) >= QUESTIONS_MAX:
            raise errors.Overloaded(
                f"{QUESTIONS_MAX} requests to NATS await an answer; try again later."
            )
        token = str(next(self._tokens))
        question = self._questions[token] = _Question(is_last)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.publish(subject, data, f"{self._inbox}.{token}", headers)
                await question.done
        except TimeoutError:
            raise errors.Unavailable(
                f"No answer on {subject} within {timeout_seconds:g} s; whether it arrived is not "
                "known."
            ) from None
        finally:
            del self._questions[token]
        first = question.answers[0]
        if not first.data and _status_of(first) == NO_RESPONDERS:
            raise errors.Unavailable(f"Nobody listens on {subject}; try again later.")
        return question.answers

    async def _answered(self, message: nats.aio.msg.Msg) -> None:
        question = self._questions.get(message.subject.rpartition(".")[2])
        if question is not None:  # else its asker gave up
            question.take(self._incoming(message))

    def _incoming(self, message: nats.aio.msg.Msg) -> Incoming:
        return Incoming(
            self, message.subject, message.data, message.reply, message.headers or _NO_HEADERS
        )

    def _require_connection(self) -> None:
        if not self._client.is_connected:
            raise errors.Unavailable(f"Not connected to NATS at {self.url}{self._because()}.")

    def _because(self) -> str:
        return f" ({self.last_error})" if self.last_error else ""

    async def _complain(self, error: Exception) -> None:
        self.last_error = str(error) or type(error).__name__
        if not self._established and "authorization" in self.last_error.lower():
            # Raised into nats-py's own connect, which would try for ever to be let in.
            raise errors.Unavailable(
                f"NATS at {self.url} refuses the credentials of {self.name}: {self.last_error}."
            )
        if not self._established or self._closing or self._complained:
            return
        # One line per loss, not one per attempt to come back.
        self._complained = not self.is_connected
        _logger.warning(
            "the connection %s complains: %s",
            self.name,
            self.last_error,
            extra={"action": "bus_error"},
        )

    async def _disconnected(self) -> None:
        self._fail_questions()

    async def _reconnected(self) -> None:
        self._complained = False
        self._notify(self._on_reconnect)

    async def _closed(self) -> None:
        if self._client.last_error is not None:
            self.last_error = str(self._client.last_error)
        self._fail_questions()
        if self._established:
            self._notify(self._on_closed)

    def _fail_questions(self) -> None:
        for question in self._questions.values():
            question.fail(
                errors.Unavailable(
                    f"The connection to NATS at {self.url} was lost; whether the request arrived "
                    "is not known."
                )
            )

    def _notify(self, notice: Notice | None) -> None:
        if notice is None:
            return
        try:
            notice()
        except Exception:
            # Raised into nats-py it would end all reconnecting.
            _logger.exception("a connection callback failed", extra={"action": "bus_notify"})

    async def _abandon(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._client.close()
        except Exception as error:  # noqa: BLE001  closing a broken connection may fail in any way
            _logger.debug("closing was not clean: %s", error, extra={"action": "bus_close"})
