"""The gateway as a whole: its table of routes, and serving them."""

import asyncio
import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import metadata

import msgspec
from aiohttp import web

from core import commands, errors, lanes, platforms, runtime, subjects, wire
from core.accounts import Authority
from gateway import docs, http, judgement, openapi, schemas
from gateway.champions import ChampionRoutes
from gateway.control import Control
from gateway.corpora import CorpusRoutes
from gateway.http import PREFIX, Page, Route, route
from gateway.metrics import Metrics
from gateway.network import NetworkRoutes
from gateway.reads import ReadRoutes
from gateway.records import Records
from gateway.refusals import Refusals
from gateway.relay import Relay
from gateway.situations import Foresee, Situations, unforeseen
from gateway.sweeper import Sweeper
from gateway.telemetry import Telemetry

RELAY_PATH = "/nats"
HEARTBEAT_SECONDS = 1.0
SHUTDOWN_SECONDS_MAX = 2.0
FILES_PER_CONNECTION = 2
"""One behind the relay has another to nats-server."""
SPARE_FILES = 256
"""For the log, the connections to NATS, and those just being turned away."""
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the process lives."""

    status: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether it can do its work, and what stands in the way."""

    status: str
    reasons: list[str] = []


class JoinRoutes:
    """How agents get in."""

    def __init__(self, control: Control, nats_url: str) -> None:
        self._authority: Authority = control.authority
        self._ensure_lane = control.ensure_lane
        self._nats_url = nats_url

    async def join(self, request: web.Request, asked: schemas.JoinRequest) -> schemas.JoinAnswer:
        """Credentials of an agent for the key it made; nobody but it knows the key's seed."""
        if asked.protocol != wire.PROTOCOL:
            raise errors.Conflict(
                f"this server speaks protocol {wire.PROTOCOL}, the agent {asked.protocol}; install "
                f"the same version on both"
            )
        lane = _lane(asked.capabilities)
        token = subjects.token(asked.worker_id)
        # Lanes are few and stay: one is made only for an agent that may have it.
        credentials = self._authority.agent(token, [lane], asked.public_key)
        await self._ensure_lane(lane)
        direct = self._nats_url if request.remote in LOOPBACK else None
        return schemas.JoinAnswer(
            agent=schemas.Agent(
                worker_id=asked.worker_id,
                token=token,
                jwt=credentials.jwt,
                nats=schemas.NatsAddress(path=RELAY_PATH, direct=direct),
                lanes=[lane],
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        )


class _Capabilities(msgspec.Struct):
    lane: str = "cpu-1"


def _lane(capabilities: msgspec.Raw) -> str:
    try:
        named = msgspec.json.decode(capabilities, type=_Capabilities).lane
    except msgspec.ValidationError as error:
        raise errors.Invalid(
            f'capabilities.lane names the agent\'s lane, as in "cpu-16": {error}'
        ) from error
    return lanes.nearest(named)


class ArtifactRoutes:
    """What people do with stored artifacts."""

    def __init__(self, sweeper: Sweeper) -> None:
        self._sweeper = sweeper

    async def sweep(self, _: web.Request, asked: schemas.SweepRequest) -> schemas.SweepAnswer:
        """Sweep now."""
        done = await self._sweeper.sweep(dry_run=asked.dry_run)
        return schemas.SweepAnswer(
            sweep=schemas.Sweep(
                dry_run=asked.dry_run,
                chunks=done.chunks,
                bytes=done.bytes,
                spared=done.spared,
                artifacts=done.overview.artifacts,
                lost=done.overview.lost,
                live_chunks=done.overview.live_chunks,
                live_bytes=done.overview.live_bytes,
                unfinished=done.unfinished or None,
            )
        )


class HealthRoutes:
    """Whether all is well, for supervisors and load balancers."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive."""
        return http.json_response(Health(status="ok"))

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready, or 503 with what is missing."""
        reasons = self._reasons()
        if reasons:
            return http.json_response(Readiness(status="not ready", reasons=reasons), 503)
        return http.json_response(Readiness(status="ready"))

    def _reasons(self) -> list[str]:
        reasons = [
            f"no connection to NATS in the account {name}"
            for name, bus in self._control.connections.by_account().items()
            if not bus.is_connected
        ]
        door = self._control.door
        if door.stepped_down:
            reasons.append("another control process writes the log now")
        if door.shortage:
            reasons.append(door.shortage)
        if door.unanswered_seconds:
            reasons.append(f"the log has not answered for {door.unanswered_seconds:.0f} s")
        return reasons


def routes(
    network: NetworkRoutes,
    reads: ReadRoutes,
    join: JoinRoutes,
    stored: ArtifactRoutes,
    texts: CorpusRoutes,
    champions: ChampionRoutes,
    health: HealthRoutes,
    figures: Metrics,
) -> list[Route | Page]:
    """Every route but the relay and the descriptions of them all."""

    def below(path: str) -> str:
        return PREFIX + path

    nothing, s, j = schemas.Nothing, schemas, judgement
    return [
        route("GET", below("/status"), network.status, nothing, s.StatusAnswer,
              "Network Status", contract=True),
        route("GET", below("/graph"), network.graph, nothing, s.GraphAnswer,
              "Network Graph", contract=True),
        route("POST", below("/graph/expand"), network.expand, s.ExpandRequest, s.NodeAnswer,
              "Network Expand", contract=True),
        route("POST", below("/workers/register"), network.register, s.RegisterRequest,
              s.WorkerAnswer, "Register Worker", contract=True),
        route("POST", below("/workers/heartbeat"), network.heartbeat, s.HeartbeatRequest,
              s.WorkerAnswer, "Worker Heartbeat", contract=True),
        route("POST", below("/training/enqueue"), network.enqueue, s.EnqueueRequest,
              s.TaskAnswer, "Enqueue Training", contract=True),
        route("POST", below("/training/claim"), network.claim, s.ClaimRequest, s.ClaimAnswer,
              "Claim Training", contract=True),
        route("POST", below("/training/complete"), network.complete, s.CompleteRequest,
              s.TaskAnswer, "Complete Training", contract=True),
        route("POST", below("/think/dual"), network.think, s.ThinkRequest, s.ThoughtAnswer,
              "Dual Think", contract=True),
        route("GET", below("/tasks"), reads.tasks, s.TasksQuery, s.TasksAnswer, "List Tasks"),
        route("GET", below("/tasks/{task_id}"), reads.task, s.NoQuery, s.TaskDetailAnswer,
              "Show Task"),
        route("GET", below("/tasks/{task_id}/telemetry"), reads.task_telemetry, s.TelemetryQuery,
              s.TelemetryAnswer, "Show Telemetry"),
        route("POST", below("/tasks/{task_id}/cancel"), reads.cancel, s.CancelRequest,
              s.TaskDetailAnswer, "Cancel Task"),
        route("POST", below("/tasks/{task_id}/retry"), reads.retry, nothing,
              s.TaskDetailAnswer, "Retry Task"),
        route("GET", below("/workers"), reads.workers, s.WorkersQuery, s.WorkersAnswer,
              "List Workers"),
        route("GET", below("/workers/{worker_id}"), reads.worker, s.NoQuery,
              s.WorkerSummaryAnswer, "Show Worker"),
        route("POST", below("/workers/{worker_id}/pause"), reads.pause, nothing,
              s.WorkerSummaryAnswer, "Pause Worker"),
        route("POST", below("/workers/{worker_id}/drain"), reads.drain, nothing,
              s.WorkerSummaryAnswer, "Drain Worker"),
        route("POST", below("/workers/{worker_id}/resume"), reads.resume, nothing,
              s.WorkerSummaryAnswer, "Resume Worker"),
        route("GET", below("/nodes/{node_id}"), reads.node, s.NoQuery, j.NodeDetailAnswer,
              "Show Node"),
        route("POST", below("/nodes/{node_id}/gates"), champions.set_gates, j.GatesRequest,
              j.GatesAnswer, "Set Gates"),
        route("GET", below("/nodes/{node_id}/candidates"), champions.candidates,
              j.CandidatesQuery, j.CandidatesAnswer, "List Candidates"),
        route("POST", below("/nodes/{node_id}/champion/promote"), champions.promote,
              j.PromoteRequest, j.ChosenAnswer, "Promote Champion"),
        route("POST", below("/nodes/{node_id}/champion/rollback"), champions.rollback,
              j.RollbackRequest, j.ChosenAnswer, "Roll Back Champion"),
        route("GET", below("/rounds"), reads.rounds, j.RoundsQuery, j.RoundsAnswer,
              "List Rounds"),
        route("GET", below("/rounds/{round_id}"), reads.round, s.NoQuery, j.RoundAnswer,
              "Show Round"),
        route("GET", below("/questions"), reads.questions, j.QuestionsQuery, j.QuestionsAnswer,
              "List Questions"),
        route("GET", below("/rivals"), reads.rivals, s.RivalsQuery, s.RivalsAnswer,
              "Rivals"),
        route("GET", below("/log/state"), reads.log_state, s.NoQuery, s.LogStateAnswer,
              "Log State"),
        route("GET", below("/log/refusals"), reads.log_refusals, s.RefusalsQuery,
              s.RefusalsAnswer, "List Refusals"),
        route("GET", below("/corpora"), texts.listed, s.NoQuery, s.CorporaAnswer,
              "List Corpora"),
        route("POST", below("/corpora/missing"), texts.missing, s.MissingRequest,
              s.MissingAnswer, "Missing Chunks"),
        route("POST", below("/corpora/chunks"), texts.chunk, s.ChunkRequest, s.ChunkAnswer,
              "Store Chunk"),
        route("POST", below("/nodes/{node_id}/corpus"), texts.bind, s.CorpusRequest,
              s.CorpusAnswer, "Bind Corpus"),
        route("POST", below("/nodes/{node_id}/corpus/remove"), texts.unbind, nothing,
              s.CorpusAnswer, "Unbind Corpus"),
        route("POST", below("/artifacts/gc"), stored.sweep, s.SweepRequest, s.SweepAnswer,
              "Sweep Artifacts"),
        route("POST", below("/agents/join"), join.join, s.JoinRequest, s.JoinAnswer,
              "Join As Agent"),
        Page("/healthz", health.healthz, "Whether the process lives"),
        Page("/readyz", health.readyz, "Whether it can do its work"),
        Page("/metrics", figures.page, "Figures for Prometheus", "text/plain"),
    ]  # fmt: skip


def documented(table: Sequence[Route | Page]) -> list[Route | Page]:
    """The table and the two pages that describe it."""

    async def document(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type="application/json")

    async def read(_: web.Request) -> web.Response:
        return web.Response(
            body=page, content_type="text/html", charset="utf-8", headers=docs.HEADERS
        )

    whole = [
        *table,
        Page("/openapi.json", document, "All routes and types, for programs"),
        Page("/docs", read, "All routes and types, for people", "text/html"),
    ]
    described = openapi.document(whole, metadata.version("aghsan"))
    content, page = msgspec.json.encode(described), docs.render(described)
    return whole


async def plant(door: runtime.Runtime) -> None:
    """Plant the seeded tree where it is missing."""
    await door.execute(commands.SeedTree(), runtime.new_meta("control"), runtime.nothing)


@contextlib.asynccontextmanager
async def serve(
    control: Control,
    refusals: Refusals,
    http_lease_seconds: float,
    host: str,
    port: int,
    nats_url: str,
    waiting_pulls: Callable[[], Mapping[str, int]] = dict,
    foresee: Foresee = unforeseen,
) -> AsyncIterator[str]:
    """Serve HTTP inside the block; the address (port 0: a free one).

    `waiting_pulls` tells, by lane, how many agents wait for work, and `foresee` what the feeder
    would order next.

    Raises OSError when the address cannot be had.
    """
    records = Records(control.door, control.log, control.store)
    network = NetworkRoutes(
        control.door,
        control.presence,
        records,
        Situations(control.door, records, foresee),
        control.store,
        refusals,
        control.connections.fleet,
        http_lease_seconds,
    )
    told = Telemetry(control.connections.fleet, control.store)
    reads = ReadRoutes(control.door, control.presence, records, refusals, told)
    address = urllib.parse.urlsplit(nats_url)
    relay = Relay(lambda: (address.hostname or "127.0.0.1", address.port or 4222))
    figures = Metrics(control, refusals, waiting_pulls, relay)
    joining, health = JoinRoutes(control, nats_url), HealthRoutes(control)
    stored = ArtifactRoutes(control.sweeper)
    texts = CorpusRoutes(control.door, control.store, control.usage)
    champions = ChampionRoutes(control.door, records)
    table = documented(routes(network, reads, joining, stored, texts, champions, health, figures))
    app = http.application(table, on_answer=figures.requests.count)
    relay.mount(app, RELAY_PATH)
    measuring = asyncio.create_task(figures.delay.run())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
    try:
        await runner.setup()
        assert runner.server is not None, "it is set up"
        files = platforms.allow_files(FILES_PER_CONNECTION * http.CONNECTIONS_MAX + SPARE_FILES)
        most = max(1, (files - SPARE_FILES) // FILES_PER_CONNECTION)
        listener = await http.listen(runner.server, host, port, most)
        with contextlib.closing(listener):
            yield f"http://{_reachable(host)}:{listener.sockets[0].getsockname()[1]}"
    finally:
        measuring.cancel()
        await runner.cleanup()


def _reachable(host: str) -> str:
    """A name for an address that one can connect to."""
    if host in ("", "0.0.0.0"):  # noqa: S104  compared with, not bound to
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
