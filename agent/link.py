"""An agent's link to the server: joins over HTTP, then speaks to the desk over NATS."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import msgspec
import nkeys

from agent import artifacts, downloads
from agent.machine import Machine
from core import chunks, chunks_jetstream, errors, subjects, wire
from core.bus import Bus, Incoming
from core.chunks import Manifest
from core.events import Token
from core.telemetry import Curve

log = logging.getLogger(__name__)

PULL_SECONDS = 5.0
REQUEST_SECONDS = 10.0
CHUNK_SECONDS = 60.0
"""A chunk is up to a megabyte, and the line may be a slow one."""
CHUNKS_IN_FLIGHT = 8
UNSURE_MAX = 1_024
VERIFIED_BYTES_PER_SECOND = 50e6
"""What a desk that has other work too reads and hashes at least."""
JOIN_SECONDS = 10.0
NEVER_OURS = (501, 505)
"""A method or a version that is not known. Another 5xx without a word of ours may be a proxy's,
whose server comes back."""
PATH_SECONDS = 1.0
"""How often the path to the server is looked at."""
ANSWER_SECONDS_MAX = 2.0
SLOW_BYTES_PER_SECOND = 512 * 1024
"""What the slowest line carries that agents are made for: eight chunks between two pings."""
STALE_SECONDS = 15.0
PROBE_SECONDS = 0.5

T = TypeVar("T")


class _Nats(msgspec.Struct, frozen=True):
    path: str
    direct: str | None = None


class _Agent(msgspec.Struct, frozen=True):
    worker_id: str
    token: str
    jwt: str
    nats: _Nats
    lanes: list[str]
    heartbeat_seconds: float


class _Joined(msgspec.Struct, frozen=True):
    agent: _Agent


class Pulled(msgspec.Struct, frozen=True):
    """An offer, its sequence in WORK, and the subject that acknowledges it."""

    task_id: str
    seq: int
    ack: str


class Link:
    """One agent's connection. Every request raises the error it was refused with."""

    def __init__(self, bus: Bus, agent: _Agent) -> None:
        self._bus = bus
        self.worker_id = agent.worker_id
        self.token = agent.token
        self.lane = agent.lanes[0]
        self.session = ""
        self._offers = f"_INBOX_{agent.token}.offers.{secrets.token_hex(8)}"
        self._arrived: asyncio.Queue[Incoming | None] = asyncio.Queue()
        self._connection = 0
        """Which of the connections that stood one after another."""
        self._slots = asyncio.Semaphore(CHUNKS_IN_FLIGHT)
        """For chunks on their way, whoever sends or reads them."""
        self._unsure: dict[str, None] = {}
        """Chunks that were on their way as a connection broke, the newest: one that is forgotten
        may be sent twice."""
        self._carried_bytes = 0
        """Of chunks on their way, behind which other answers wait."""
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def join(
        cls,
        api: str,
        worker_id: str,
        machine: Machine,
        *,
        direct: bool,
        on_notice: Callable[[wire.Notice], None],
        on_reconnect: Callable[[], None],
        on_closed: Callable[["Link"], None],
    ) -> "Link":
        """Ask the gateway for credentials to a key made here, and connect with them.

        Raises errors.Unavailable when the server cannot be reached, errors.Refused when it will
        not have this agent.
        """
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public_key = nkeys.from_seed(seed).public_key.decode()
        agent = await _join(api, worker_id, public_key, machine)
        url = agent.nats.direct if direct and agent.nats.direct else _relay(api, agent.nats.path)
        links: list[Link] = []

        def closed() -> None:
            for one in links:
                on_closed(one)

        def reconnected() -> None:
            for one in links:
                one._wake()
            on_reconnect()

        try:
            bus = await Bus.connect(
                url,
                credentials=(agent.jwt, bytes(seed).decode()),
                name=agent.token,
                inbox_prefix=f"_INBOX_{agent.token}",
                on_reconnect=reconnected,
                on_closed=closed,
            )
        except errors.Unavailable as error:
            log.debug("no NATS: %s", error, extra={"action": "join"})
            raise errors.Unavailable(
                f"the server at {api} answers, but its message system at {url} does not"
            ) from error
        link = cls(bus, agent)
        links.append(link)
        await link._listen(on_notice)
        if url != agent.nats.direct:
            link._watching = asyncio.create_task(link._watch())
        return link

    async def _listen(self, on_notice: Callable[[wire.Notice], None]) -> None:
        async def noticed(message: Incoming) -> None:
            try:
                on_notice(msgspec.json.decode(message.data, type=wire.Notice))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("a notice that means nothing: %s", error, extra={"action": "notice"})

        try:
            await self._bus.subscribe(f"_INBOX_{self.token}.notice", noticed)
            await self._bus.subscribe(self._offers, self._arrive)
        except errors.Unavailable:
            await self._bus.close()
            raise

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._bus.is_connected

    async def close(self) -> None:
        """Disconnect."""
        if self._watching is not None:
            self._watching.cancel()
        await self._bus.close()

    async def _watch(self) -> None:
        """Leave a connection that stays silent where a new one would be answered.

        After lost packets TCP waits twice as long before each further try (RFC 6298, 5.5): a path
        that was broken for 8 s would be used again after up to 16, too late for a heartbeat.
        """
        while True:
            await asyncio.sleep(PATH_SECONDS)
            if not self._bus.is_connected:
                continue  # it tries by itself, ten times a second
            connection = self._connection
            answer = asyncio.ensure_future(self._is_answered())
            patience = ANSWER_SECONDS_MAX + self._carried_bytes / SLOW_BYTES_PER_SECOND
            await asyncio.wait({answer}, timeout=patience)
            while self._is_silent(answer, connection):
                opened, _ = await asyncio.gather(self._is_open(), asyncio.sleep(PROBE_SECONDS))
                if opened and self._is_silent(answer, connection):
                    log.debug("a new connection, for a silent one", extra={"action": "path"})
                    await self._bus.reconnect()
            answer.cancel()

    def _is_silent(self, answer: "asyncio.Task[None]", connection: int) -> bool:
        """Whether an answer is due still, and on the connection that it was asked for on."""
        return not answer.done() and self._bus.is_connected and connection == self._connection

    async def _is_answered(self) -> None:
        with contextlib.suppress(errors.Unavailable):  # it broke, or others see that it is stale
            await self._bus.flush(STALE_SECONDS)

    async def _is_open(self) -> bool:
        """Whether nats-server would answer a new connection now."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                asyncio.timeout(PROBE_SECONDS),
                aiohttp.ClientSession() as session,
                session.ws_connect(self._bus.url) as probe,
            ):
                return (await probe.receive()).type is aiohttp.WSMsgType.BINARY
        return False

    @contextlib.contextmanager
    def _carries(self, count: int) -> Iterator[None]:
        """So many bytes are on their way."""
        self._carried_bytes += count
        try:
            yield
        finally:
            self._carried_bytes -= count

    async def _ask(self, verb: str, request: wire.Wire, kind: type[T], verified: int = 0) -> T:
        """`verified` are the bytes that the desk reads before it answers."""
        seconds = REQUEST_SECONDS + verified / VERIFIED_BYTES_PER_SECOND
        subject = f"fleet.{self.token}.{verb}"
        raw = await self._bus.request(subject, msgspec.json.encode(request), seconds)
        return wire.decode(raw, kind)

    async def hello(
        self, machine: Machine, holding: list[Token], process: str = "", number: int = 0
    ) -> wire.Welcome:
        """Begin a session; `number` rises with every hello of a `process`."""
        welcome = await self._ask(
            f"hello.{self.lane}",
            wire.Hello(
                worker_id=self.worker_id,
                protocol=wire.PROTOCOL,
                hostname=machine.hostname,
                capabilities=msgspec.to_builtins(machine),
                holding=holding,
                process=process,
                number=number,
            ),
            wire.Welcome,
        )
        self.session = welcome.session
        return welcome

    async def pull(self) -> Pulled | None:
        """Wait for an offer, at most PULL_SECONDS. Raises errors.Unavailable."""
        if self._arrived.empty():
            body = json.dumps({"batch": 1, "expires": int(PULL_SECONDS * 1e9)}).encode()
            subject = f"$JS.API.CONSUMER.MSG.NEXT.WORK.{self.lane}"
            await self._bus.publish(subject, body, self._offers)
        try:
            async with asyncio.timeout(PULL_SECONDS + 0.5):
                message = await self._arrived.get()
        except TimeoutError:
            return None
        if message is None or not message.reply:
            return None  # a cut ended the wait, or the server did
        try:
            offer = msgspec.json.decode(message.data, type=wire.Offer)
            # $JS.ACK.WORK.<lane>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
            seq = int(message.reply.split(".")[5])
        except (msgspec.MsgspecError, UnicodeDecodeError, IndexError, ValueError) as error:
            log.warning("an offer that means nothing, ended", extra={"action": str(error)})
            await self._bus.publish(message.reply, b"+TERM")
            return None
        return Pulled(offer.task_id, seq, message.reply)

    async def _arrive(self, message: Incoming) -> None:
        # A delivered message keeps the subject it was stored under: only its inbox tells it apart.
        self._arrived.put_nowait(message)

    def _wake(self) -> None:
        """End a wait for an offer: the pull went down with the connection."""
        self._connection += 1
        self._arrived.put_nowait(None)

    async def acknowledge(self, pulled: Pulled) -> None:
        """Say that the offer did its work; a lost ack only means another wake-up."""
        await self._bus.publish(pulled.ack, b"+ACK")

    async def in_progress(self, pulled: Pulled) -> None:
        """Say that the offer's task is being worked on, so that it wakes nobody else."""
        await self._bus.publish(pulled.ack, b"+WPI")

    async def claim(self, claim_id: str, offer: int) -> wire.Assignment | None:
        """Claim the best task for this agent now; the same id, asked again, gives the same."""
        request = wire.ClaimRequest(session=self.session, claim_id=claim_id, offer=offer)
        return (await self._ask("claim", request, wire.ClaimAnswer)).assignment

    async def beat(self, beat: wire.Beat) -> None:
        """Send a heartbeat."""
        await self._bus.publish(f"hb.{self.token}", msgspec.json.encode(beat))

    async def tell(self, task_id: str, news: wire.Telemetry) -> None:
        """Tell how a training goes. Nobody answers. Raises errors.Unavailable."""
        subject = f"telemetry.{self.token}.{subjects.token(task_id)}"
        await self._bus.publish(subject, msgspec.json.encode(news))

    async def reattach(self, token: Token) -> None:
        """Ask whether a claim is still this agent's; revive it if nobody else took it."""
        await self._ask("reattach", self._token_request(token), wire.Done)

    async def release(self, token: Token, reason: str, *, unfit: bool = False) -> None:
        """Give a task back; `unfit`: since this agent lacks what it takes."""
        request = self._token_request(token)
        request = msgspec.structs.replace(request, reason=reason, unfit=unfit)
        await self._ask("release", request, wire.Done)

    def _token_request(self, token: Token) -> wire.TokenRequest:
        return wire.TokenRequest(session=self.session, token=token)

    async def fail(
        self, token: Token, reason: str, log_tail: str, curves: Sequence[Curve] = ()
    ) -> None:
        """Say that an attempt could not be finished, and how it went until then."""
        request = wire.FailRequest(
            session=self.session,
            token=token,
            reason=reason,
            log_tail=log_tail,
            telemetry=list(curves),
        )
        await self._ask("fail", request, wire.Done)

    async def checkpoint(self, request: wire.CheckpointRequest) -> None:
        """Announce an uploaded checkpoint, under this link's session."""
        request = msgspec.structs.replace(request, session=self.session)
        await self._ask("checkpoint", request, wire.Done, request.manifest.bytes)

    async def complete(self, request: wire.CompleteRequest) -> None:
        """Deliver a result, under this link's session."""
        request = msgspec.structs.replace(request, session=self.session)
        named = sum(one.manifest.bytes for one in request.candidates)
        await self._ask("complete", request, wire.Done, named)

    async def bye(self) -> None:
        """Leave."""
        await self._ask("bye", wire.Bye(session=self.session), wire.Done)

    async def upload(
        self, token: Token, manifest: Manifest, pieces: Mapping[str, bytes]
    ) -> Manifest:
        """Write those of these chunks that are not stored yet, a few at a time, and no more than
        these in memory; the manifest that names them, with what was lent."""
        sizes = artifacts.sizes_of(pieces)
        request = wire.MissingRequest(
            session=self.session, token=token, chunks=sizes, kind=manifest.kind
        )
        missing, lent = await self._missing(request, pieces)

        async def put(digest: str) -> None:
            subject = f"chunk.{self.token}.{digest}"
            piece = await asyncio.to_thread(pieces.__getitem__, digest)
            self._unsure.pop(digest, None)
            self._unsure[digest] = None
            if len(self._unsure) > UNSURE_MAX:
                del self._unsure[next(iter(self._unsure))]
            with self._carries(sizes[digest]):
                stored = await self._bus.request(subject, piece, CHUNK_SECONDS)
            self._unsure.pop(digest, None)
            chunks_jetstream.require_stored(stored)

        unsure = {digest: sizes[digest] for digest in missing if digest in self._unsure}
        for digest in pieces.keys() & self._unsure.keys() - unsure.keys():
            del self._unsure[digest]
        await self._few_at_a_time(put, [digest for digest in missing if digest not in unsure])
        if unsure:  # by now what was on its way as the connection broke is there, or is lost
            request = msgspec.structs.replace(request, chunks=unsure)
            answer = await self._ask("missing", request, wire.MissingAnswer)
            await self._few_at_a_time(put, answer.missing)
        for writer, digests in manifest.lent.items():
            lent.setdefault(writer, []).extend(one for one in digests if one not in pieces)
        return msgspec.structs.replace(manifest, lent={w: some for w, some in lent.items() if some})

    async def _missing(
        self, request: wire.MissingRequest, pieces: Mapping[str, bytes]
    ) -> tuple[list[str], dict[str, list[str]]]:
        """Which chunks to write, and what others lend, by writer."""
        answer = await self._ask("missing", request, wire.MissingAnswer)
        if not answer.elsewhere:
            return answer.missing, answer.lent
        proofs = await asyncio.to_thread(
            lambda: {one: wire.proof(request.session, pieces[one]) for one in answer.elsewhere}
        )
        there = {digest: request.chunks[digest] for digest in answer.elsewhere}
        request = msgspec.structs.replace(request, chunks=there, proofs=proofs)
        again = await self._ask("missing", request, wire.MissingAnswer)
        lent = {
            writer: answer.lent.get(writer, []) + again.lent.get(writer, [])
            for writer in answer.lent.keys() | again.lent.keys()
        }
        return [one for one in answer.missing if one not in there] + again.missing, lent

    async def read(self, writer: str, digest: str) -> bytes:
        """Read a chunk or manifest this agent's tasks start from; its digest is checked."""
        request = wire.ChunkRequest(session=self.session, writer=writer, digest=digest)
        subject = f"fleet.{self.token}.chunk"
        with self._carries(chunks.CHUNK_BYTES):
            raw = await self._bus.request(subject, msgspec.json.encode(request), CHUNK_SECONDS)
        piece = wire.chunk_of(raw)
        chunks.require_digest(piece, digest)
        return piece

    async def download(
        self,
        manifest_digest: str,
        folder: Path,
        require: Callable[[Manifest], None] = lambda _: None,
    ) -> Manifest:
        """Bring the files of a manifest into a folder, their digests checked, as
        `agent.downloads.download` does; none of them where `require` raises when it sees it."""
        manifest = chunks.decode_manifest(await self.read(chunks.DESK, manifest_digest))
        require(manifest)
        places = manifest.places()

        async def get(digest: str) -> bytes:
            async with self._slots:
                return await self.read(places[digest], digest)

        await downloads.download(manifest, folder, get)
        return manifest

    async def _few_at_a_time(
        self, ask: Callable[[str], Awaitable[T]], digests: Iterable[str]
    ) -> list[T]:
        """The answers in order; the first error ends the others."""

        async def one(digest: str) -> T:
            async with self._slots:
                return await ask(digest)

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(digest)) for digest in digests]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return [task.result() for task in asked]


def _relay(api: str, path: str) -> str:
    """The WebSocket URL of the relay beside an HTTP URL."""
    parts = urlsplit(api)
    scheme = "wss" if parts.scheme == "https" else "ws"
    return urlunsplit((scheme, parts.netloc.rpartition("@")[2], path, "", ""))


async def _join(api: str, worker_id: str, public_key: str, machine: Machine) -> _Agent:
    url = api.rstrip("/") + "/api/v1/network/agents/join"
    body = {
        "worker_id": worker_id,
        "public_key": public_key,
        "protocol": wire.PROTOCOL,
        "hostname": machine.hostname,
        "capabilities": {**msgspec.to_builtins(machine), "lane": machine.lane},
    }
    timeout = aiohttp.ClientTimeout(total=JOIN_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, json=body) as response,
        ):
            raw = await response.read()
            status = response.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise errors.Unavailable(
            f"no server answers at {api} ({_why(error)}; is `aghsan up` running there?)"
        ) from error
    words = _detail(raw)
    if status >= 500 and (words or status not in NEVER_OURS):
        raise errors.Unavailable(f"the server at {api} is not ready (it answered {status})")
    if status != 200 and words:
        raise errors.Refused(f"the server at {api} refused to join: {words}")
    if status != 200:
        raise errors.Refused(
            f"{api} answered {status} to an agent that would join, and nothing that Aghsan would "
            "say; is this the address of an Aghsan server?"
        )
    try:
        return msgspec.json.decode(raw, type=_Joined).agent
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.Refused(f"{api} is no Aghsan server: {error}") from error


def _why(error: Exception) -> str:
    """Why nobody answers, without the words of the libraries between."""
    match error:
        case aiohttp.ClientSSLError():
            return "no TLS that this machine trusts"
        case aiohttp.ClientConnectorDNSError() | aiohttp.InvalidURL():
            return "no host of that name is known"
        case TimeoutError():
            return f"no answer within {JOIN_SECONDS:g} s"
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return "nothing listens there"
        case _:
            return "no connection could be made"


def _detail(raw: bytes) -> str:
    """The server's own words, "" where it is none of ours."""
    try:
        return str(json.loads(raw)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
