"""The control process, all of its parts that need no disk, and HTTP as people reach it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from core import commands, errors, runtime, wire
from core.bus import Bus
from core.chunks_jetstream import JetStreamChunks
from core.presence import Presence
from core.projections.tasks import Task
from core.promises import Promises
from faults.simulation.store import RemoteLog
from faults.simulation.witness import Ended
from gateway import app, control
from gateway.desk import Desk, Terms
from gateway.network import NetworkRoutes
from gateway.records import Records
from gateway.refusals import Refusals
from gateway.situations import Situations, unforeseen
from gateway.usage import Quotas, Usage
from gateway.work import WorkStream
from orchestrator import liveness
from orchestrator.scheduler import Scheduler

if TYPE_CHECKING:
    from faults.simulation.world import World

T = TypeVar("T")

HTTP_LEASE_SECONDS = 30.0
HTTP_SECONDS = 5.0
COMMITMENTS = [f"{number:064x}" for number in range(1, 33)]


class Liveness(liveness.Liveness):
    """Liveness, with a witness of what it decides."""

    def __init__(self, office: "Control", door: runtime.Runtime, presence: Presence) -> None:
        self._office = office
        limits = office.world.limits
        super().__init__(door, presence, limits, office.someone_waits)

    async def _execute(self, command: liveness.Command) -> None:
        world = self._office.world
        if isinstance(command, commands.ExpireClaim):
            seen = (world.loop.now, world.wall.now_us(), self._office.process.name)
            world.witness.ended.append(Ended(*seen, command.token, command.reason))
        await super()._execute(command)


class Control:
    """One control process, from its start to its end."""

    door: runtime.Runtime
    routes: NetworkRoutes

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.process = world.loop.process(f"control-{number}")
        self.ready = False
        self._offers: Scheduler

    def start(self) -> None:
        """Begin."""
        self.process.spawn(self._run())

    @property
    def answers(self) -> bool:
        """Whether its port is open."""
        return self.ready and not self.process.dead

    def someone_waits(self, task: Task) -> bool:
        """As the scheduler says."""
        return self._offers.someone_waits(task)

    async def _run(self) -> None:
        try:
            await self._work()
        except errors.Unavailable:
            pass
        except Exception as error:  # noqa: BLE001  whatever it is, it is what we look for
            self.world.witness.broken.append(f"{self.process.name} ended: {error!r}")
        self.process.kill()
        self.world.control_ended(self)

    async def _work(self) -> None:
        """As `cli.gateway` puts it together, without what has to do with disks and browsers."""
        world = self.world
        connected = await self._connect("control", self._server_back)
        fleet, notices = await self._connect("desk"), await self._connect("notifier")
        store = RemoteLog(world.store, self.process.name)
        self.door = door = runtime.Runtime(store, self.process.name)
        await door.start()
        presence = Presence(runtime.now())
        self._offers = Scheduler(door, WorkStream(fleet))
        self._liveness = Liveness(self, door, presence)
        self._begin_grace("it started")
        refusals, promises = Refusals(connected), Promises()
        chunks = JetStreamChunks(fleet, promises)
        desk = Desk(
            door,
            presence,
            chunks,
            promises,
            Usage(Quotas()),
            refusals=refusals,
            fleet=fleet,
            control=connected,
            notices=notices,
            offers=self._offers,
            ensure_lane=_ensure_lane,
            terms=Terms(lease_seconds=world.limits.lease),
        )
        records = Records(door, store, chunks)
        situations = Situations(door, records, unforeseen)
        self.routes = NetworkRoutes(
            door, presence, records, situations, chunks, refusals, fleet, HTTP_LEASE_SECONDS
        )
        await desk.open()
        # In place of the advisories of the system account.
        world.server.on_lost.append(self._in_process(desk.heartbeats.connection_gone))
        world.server.on_here.append(self._in_process(desk.heartbeats.connection_here))
        loops = [door.run(), self._offers.run(), self._liveness.run(), refusals.run()]
        running = [asyncio.create_task(one) for one in [*loops, control.catch_up_loop(door)]]
        await app.plant(door)
        await self._deposit(connected)
        self.ready = True
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            if task.done():
                task.result()

    async def _connect(self, role: str, on_reconnect: Callable[[], None] | None = None) -> Bus:
        return await Bus.connect(
            "nats://simulated",
            name=f"{self.process.name}-{role}",
            inbox_prefix=f"_INBOX_{self.process.name}_{role}",
            on_reconnect=on_reconnect,
        )

    def _server_back(self) -> None:
        if hasattr(self, "_liveness"):
            self._liveness.forgive()
            self._begin_grace("the server came back")

    def _begin_grace(self, why: str) -> None:
        self.world.note_grace(self, why)

    def _in_process(self, tell: control.OnConnection) -> control.OnConnection:
        def deliver(name: str, number: int) -> None:
            if not self.process.dead:
                self.world.loop.call_soon(tell, name, number, context=self.process.context)

        return deliver

    async def _deposit(self, connected: Bus) -> None:
        """Let rounds open: what a judge does at its start."""
        deposit = wire.Deposit(judge="judge", first=0, commitments=COMMITMENTS)
        question = msgspec.json.encode(deposit)
        wire.decode(await connected.request("cmd.judge", question), wire.CommitmentsAnswer)


async def _ensure_lane(lane: str) -> None:
    """Every lane is there."""


class Web:
    """HTTP: one question, one answer, or neither."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def ask(
        self, question: Callable[[Control], Awaitable[T]], timeout_seconds: float = HTTP_SECONDS
    ) -> T:
        """Ask a control process. Raises what it refuses with, and Unavailable."""
        world = self._world
        await asyncio.sleep(world.server.travel_seconds())
        control = world.choose_control()
        if control is None:
            raise errors.Unavailable("the connection was refused")
        answer: asyncio.Future[T] = world.loop.create_future()
        control.process.spawn(self._serve(control, question, answer))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await answer
        except TimeoutError:
            raise errors.Unavailable("no answer in time") from None

    async def _serve(
        self,
        control: Control,
        question: Callable[[Control], Awaitable[T]],
        answer: "asyncio.Future[T]",
    ) -> None:
        outcome: T | errors.AghsanError
        try:
            outcome = await question(control)
        except errors.AghsanError as error:
            outcome = error
        server = self._world.server
        if not server.loses():
            self._world.loop.after(server.travel_seconds(), _settle, answer, outcome)


def _settle(answer: "asyncio.Future[T]", outcome: "T | errors.AghsanError") -> None:
    if answer.done():
        return
    if isinstance(outcome, errors.AghsanError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
