"""One simulated run: a seed draws the machines, the orders and the faults; then the faults stop,
and all that was asked for has to come to its end."""

import asyncio
import contextlib
import functools
import gc
import hashlib
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

import msgspec

import core.bus
from core import errors, runtime
from core.log import Record
from core.projections.state import State
from faults.simulation import agents, checker, clock
from faults.simulation.agents import Agent, Disk
from faults.simulation.control import Control, Web
from faults.simulation.people import OldWorker, People
from faults.simulation.server import Client, Msg, Server, Weather
from faults.simulation.store import Store, Trouble
from faults.simulation.witness import Beat, Witness
from orchestrator.liveness import Limits

QUIET_SECONDS_MAX = 600.0
"""So long after the last fault every task has ended, or it never will."""
LOOK_EVERY_SECONDS = 1.0
SETTLED_SECONDS = 3.0
CONTROLS_MAX = 40
CLOCK_SET_SECONDS_MIN = 10.0
"""Between two jumps of the clock: many small ones in a row can look like silence."""

Machine = Agent | OldWorker


class Outcome(NamedTuple):
    """What came of a seed."""

    seed: int
    digest: str
    """SHA-256 over the log's bytes and the state they make."""
    types: Counter[str]
    """How many events of each type there are."""
    told: int
    virtual_seconds: float
    steps: int
    violations: list[str]


@dataclass(frozen=True)
class Plan:
    """What a seed draws before anything happens."""

    agents: int
    old_workers: int
    orders: int
    fault_seconds: float
    faults: int
    limits: Limits
    weather: Weather
    trouble: Trouble
    training_fails: float


def draw(choices: random.Random) -> Plan:
    """The kind of world, from its seed."""
    rough = choices.random() < 0.6
    slow = choices.choice(((0.0002, 0.002), (0.001, 0.05), (0.01, 0.6)))
    doubtful = choices.random() < 0.5
    return Plan(
        agents=choices.randint(2, 4),
        old_workers=int(choices.random() < 0.3),
        orders=choices.randint(3, 10),
        fault_seconds=choices.uniform(15.0, 45.0),
        faults=choices.randint(2, 8),
        limits=Limits(
            lease=choices.choice((10.0, 15.0, 20.0)),
            silence=choices.choice((4.0, 6.0)),
            reconnect=2.0,
            worker_timeout=30.0,
        ),
        weather=Weather(
            lost=choices.uniform(0.0, 0.05) if rough else 0.0,
            doubled=choices.uniform(0.0, 0.05) if rough else 0.0,
            overtaking=choices.uniform(0.0, 0.1) if rough else 0.0,
            seconds=slow,
        ),
        trouble=Trouble(
            question_lost=choices.uniform(0.0, 0.05) if doubtful else 0.0,
            answer_lost=choices.uniform(0.0, 0.1) if doubtful else 0.0,
            late=choices.uniform(0.0, 0.05) if doubtful else 0.0,
        ),
        training_fails=choices.choice((0.0, 0.0, 0.0, 0.01, 0.3)),
    )


@dataclass
class World:
    """Everything that is there, and what can befall it."""

    seed: int
    plan: Plan
    choices: random.Random
    loop: clock.Loop
    wall: clock.Wall
    store: Store
    server: Server
    witness: Witness
    disk: Disk
    controls: list[Control] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    twins: list[Agent] = field(default_factory=list)
    calm: bool = False
    """Whether the faults are over."""

    @classmethod
    def make(cls, seed: int) -> "World":
        """The world of a seed, in which nothing has happened yet."""
        choices = random.Random(f"simulation/{seed}")
        loop = clock.Loop()
        store = Store(loop, choices)
        plan, wall, server = draw(choices), clock.Wall(loop), Server(loop, choices)
        disk = Disk(loop)
        return cls(seed, plan, choices, loop, wall, store, server, Witness(store), disk)

    def __post_init__(self) -> None:
        self._set_at = -CLOCK_SET_SECONDS_MIN
        self.web = Web(self)
        self.people = People(self)
        self.server.note_arrival = self._note_arrival
        self.server.on_lost.append(lambda name, _: self._note_gone(name, True))
        self.server.on_here.append(lambda name, _: self._note_gone(name, False))
        self.machines += [Agent(self, f"agent-{n}") for n in range(self.plan.agents)]
        self.machines += [OldWorker(self, f"old-{n}") for n in range(self.plan.old_workers)]

    @property
    def limits(self) -> Limits:
        """How long silence is borne here."""
        return self.plan.limits

    # ── control ──

    def start_control(self) -> None:
        """One more control process; the newest is the one that should write."""
        if len(self.controls) < CONTROLS_MAX:
            self.controls.append(Control(self, len(self.controls) + 1))
            self.controls[-1].start()

    def control_ended(self, control: Control) -> None:
        """A control process ended by itself: what keeps it alive starts another, unless one is
        there that took over."""
        if control is self.controls[-1]:
            self.loop.after(0.2, self.ensure_control)

    def ensure_control(self) -> None:
        """Start a control process if none is alive."""
        if self.controls[-1].process.dead:
            self.start_control()

    def choose_control(self) -> Control | None:
        """Where a question over HTTP arrives; the older one may still have its port open."""
        there = [one for one in self.controls if one.answers]
        if not there:
            return None
        return self.choices.choice(there) if self.choices.random() < 0.3 else there[-1]

    def note_grace(self, control: Control, why: str) -> None:
        """From now on nobody may be suspected who was not heard of since."""
        moment = (self.loop.now, self.wall.now_us(), why)
        self.witness.graces[control.process.name].append(moment)

    # ── what is seen ──

    def _note_arrival(self, client: Client, message: Msg) -> None:
        subject = message.subject
        if not client.name.startswith("control-"):
            return
        if subject.startswith("hb."):
            beat = msgspec.json.decode(message.data)
            if beat["via"] == "nats":
                attempts = frozenset((one["task_id"], one["attempt"]) for one in beat["tasks"])
                signs = self.witness.signs[client.process.name, subject[3:]]
                signs.beats.append(Beat(self.loop.now, beat["session"], attempts))
        elif ".hello." in subject:
            token = subject.split(".")[1]
            self.witness.signs[client.process.name, token].hellos.append(self.loop.now)

    def _note_gone(self, name: str, gone: bool) -> None:
        self.witness.gone[name].append((self.loop.now, gone))

    def training_fails(self) -> bool:
        """Whether a training fails at this step."""
        return not self.calm and self.choices.random() < self.plan.training_fails

    # ── faults ──

    def faults(self) -> list[Callable[[], None]]:
        """What can happen, the likelier the more often it stands here."""
        return [
            self.crash_control,
            self.crash_control,
            self.pause_control,
            self.overtake_control,
            self.kill_machine,
            self.kill_machine,
            self.kill_machine,
            self.pause_machine,
            self.pause_machine,
            self.cut_agent,
            self.cut_agent,
            self.stall_agent,
            self.turn_out_agent,
            self.stop_machine,
            self.start_twin,
            self.restart_server,
            self.lose_log,
            self.fill_log,
            self.set_clock,
        ]

    def crash_control(self) -> None:
        """Control is killed, and back after a while."""
        self.controls[-1].process.kill()
        self.loop.after(self._seconds(0.1, 15.0), self.ensure_control)

    def pause_control(self) -> None:
        """Control stands still: a full disk cache, a moved virtual machine."""
        self._pause(self.controls[-1].process, self._seconds(0.5, 2 * self.limits.lease))

    def overtake_control(self) -> None:
        """Control stands still, another one is started in its place, and then it wakes."""
        self._pause(self.controls[-1].process, self._seconds(0.1, 20.0))
        self.loop.after(self.choices.uniform(0.0, 5.0), self.start_control)

    def kill_machine(self) -> None:
        """An agent is killed, or its whole machine goes dark."""
        machine = self._machine()
        machine.process.kill(silently=self.choices.random() < 0.3)
        self.loop.after(self._seconds(0.5, 2 * self.limits.lease), machine.start)

    def pause_machine(self) -> None:
        """An agent stands still, often longer than its lease: a zombie."""
        self._pause(self._machine().process, self._seconds(1.0, 3 * self.limits.lease))

    def cut_agent(self) -> None:
        """An agent's connection breaks."""
        self._of_agent(lambda client: client.cut(self._seconds(0.05, 10.0)))

    def stall_agent(self) -> None:
        """Nothing gets through to an agent and from it, and nobody can see why."""
        self._of_agent(lambda client: client.stall(self._seconds(0.5, 30.0)))

    def turn_out_agent(self) -> None:
        """An agent's credentials are worth nothing any more: it has to join anew."""
        self._of_agent(lambda client: client.turn_out())

    def stop_machine(self) -> None:
        """An agent is asked to leave, and comes back."""
        machine = self._machine()
        machine.stop()
        self.loop.after(self._seconds(5.0, 20.0), machine.start)

    def start_twin(self) -> None:
        """Somebody starts a second agent under a name that is taken."""
        twin = Agent(self, f"agent-{self.choices.randrange(self.plan.agents)}", "elsewhere")
        self.twins.append(twin)
        twin.start()
        self.loop.after(self._seconds(1.0, 10.0), twin.retire)

    def restart_server(self) -> None:
        """nats-server goes, and with it every connection and the log; then it is back."""
        seconds = self._seconds(0.2, 8.0)
        self.server.restart(seconds, forgets=self.choices.random() < 0.5)
        self._lose_log(seconds)

    def lose_log(self) -> None:
        """The log does not answer for a while."""
        self._lose_log(self._seconds(0.1, 10.0))

    def fill_log(self) -> None:
        """The log's disk is full for a while, and whoever watches over it says so."""
        self.store.full = True
        for control in self.controls:
            if control.answers and self.choices.random() < 0.7:
                control.door.shortage = "the disk is full"
        self.loop.after(self._seconds(0.5, 10.0), self._make_room)

    def _make_room(self) -> None:
        self.store.full = False
        for control in self.controls:
            if control.answers:
                control.door.shortage = ""

    def set_clock(self) -> None:
        """The wall clock jumps: ahead, by up to minutes, or a little back."""
        if self.loop.now - self._set_at < CLOCK_SET_SECONDS_MIN:
            return
        self._set_at = self.loop.now
        ahead = self.choices.random() < 0.7
        seconds = self._seconds(1.0, 120.0) if ahead else -self._seconds(0.1, 10.0)
        self.wall.offset_us += int(seconds * 1e6)
        if seconds > self.limits.silence_borne:
            for control in self.controls:
                if control.answers and not control.process.stops:
                    self.note_grace(control, "the clock jumped")

    def _seconds(self, low: float, high: float) -> float:
        """Mostly short, at times long."""
        return low + (high - low) * self.choices.random() ** 2

    def _machine(self) -> Machine:
        return self.choices.choice(self.machines)

    def _of_agent(self, harm: Callable[[Client], None]) -> None:
        process = self._machine().process
        for client in list(self.server.clients):
            if client.process is process:
                harm(client)

    def _pause(self, process: clock.Process, seconds: float) -> None:
        process.pause()
        self.loop.after(seconds, process.resume)

    def _lose_log(self, seconds: float) -> None:
        self.store.down = True
        self.loop.after(seconds, self._find_log)

    def _find_log(self) -> None:
        self.store.down = False

    # ── the run ──

    async def live(self) -> Outcome:
        """Let it all happen; what came of it."""
        plan, choices = self.plan, self.choices
        self.start_control()
        for machine in self.machines:
            self.loop.after(choices.random() * 2.0, machine.start)
        self.people.start(plan.orders, plan.fault_seconds * 0.8)
        self.server.weather, self.store.trouble = plan.weather, plan.trouble
        for _ in range(plan.faults):
            fault = choices.choice(self.faults())
            self.loop.after(choices.uniform(1.0, plan.fault_seconds), self._befall, fault)
        await asyncio.sleep(plan.fault_seconds)
        self._heal()
        stuck = await self._until_done()
        live = "" if stuck else await self._live_hash()
        # One who was overtaken, and was not asked since, need only have been right so far.
        made = await self._replayed(self.controls[-1].door.state.seq) if live else State()
        records = [record async for block in self.store.kept.read() for record in block]
        replayed = await self._replayed()
        found = checker.check(self, records, live, made, replayed)
        return self._outcome(records, replayed, stuck + found)

    def _befall(self, fault: Callable[[], None]) -> None:
        if not self.calm:
            fault()

    def _heal(self) -> None:
        """End every fault, so that everything that was begun can come to its end."""
        self.calm = True
        self.server.weather, self.store.trouble = Weather(), Trouble()
        self.server.down = self.store.down = False
        self._make_room()
        for twin in self.twins:
            twin.retire()
        for process in self.loop.processes:
            process.resume()
        for client in self.server.clients:
            if not client.process.dead:
                client.stalled_until = 0.0
        self.ensure_control()
        for machine in self.machines:
            machine.start()

    async def _until_done(self) -> list[str]:
        """Wait until every task has ended and nothing is under way; what never did."""
        until, settled = self.loop.now + QUIET_SECONDS_MAX, 0.0
        while self.loop.now < until:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            self.ensure_control()
            settled = settled + LOOK_EVERY_SECONDS if self._is_done() else 0.0
            if settled >= SETTLED_SECONDS:
                return []
        control = self.controls[-1]
        if not control.answers:
            return [f"stuck: {control.process.name} never came up"]
        open_tasks = [
            f"{task.task_id} is {task.status}"
            for task in control.door.state.tasks.table
            if task.status in ("queued", "running")
        ]
        orders = f"{self.people.open_orders} orders are not answered"
        return [f"stuck, long after the last fault: {', '.join([orders, *open_tasks])}"]

    def _is_done(self) -> bool:
        control = self.controls[-1]
        if not control.answers or self.people.open_orders:
            return False
        counts = control.door.state.tasks.counts
        return not (counts["queued"] or counts["running"] or control.door.pending)

    async def _replayed(self, stop: int | None = None) -> State:
        state = State()
        await runtime.fold(self.store.kept, state, stop)
        return state

    async def _live_hash(self) -> str:
        """The hash of the live state, once a writer knows it to be durable; one that waits for a
        last answer, lost before the calm, or steps down over it, is given its time.

        Raises errors.LogUnavailable when none comes to know.
        """
        until = self.loop.now + QUIET_SECONDS_MAX
        while True:
            door = self.controls[-1].door
            try:
                await door.until_durable()
                return door.state.hash()
            except errors.LogUnavailable:
                if self.loop.now >= until:
                    raise
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            self.ensure_control()

    def _outcome(self, records: list[Record], replayed: State, violations: list[str]) -> Outcome:
        digest = hashlib.sha256(replayed.hash().encode())
        for record in records:
            digest.update(f"{record.subject}\n".encode() + record.data + b"\n")
        return Outcome(
            self.seed,
            digest.hexdigest(),
            Counter(msgspec.json.decode(record.data)["type"] for record in records),
            len(self.witness.told),
            self.loop.now,
            self.loop.steps,
            violations,
        )

    def close(self) -> None:
        """Let what was cut short come to an end, so that no coroutine is left behind."""
        self.server.down = self.store.down = True
        for process in self.loop.processes:
            process.bury()
        with contextlib.suppress(clock.Stuck):
            self.loop.run_until_complete(self._cancel_all())
        self.loop.close()

    async def _cancel_all(self) -> None:
        for _ in range(10):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return
            for task in sorted(left, key=hash):
                task.cancel()
            await asyncio.wait(left, timeout=20.0)


@contextlib.contextmanager
def installed(world: World) -> Iterator[None]:
    """Inside the block the product lives in this world and in no other."""
    with (
        world.witness.listening(),
        clock.installed(world.loop, world.wall, world.choices),
        agents.installed(world),
        mock.patch.object(core.bus, "_Client", functools.partial(Client, world.server)),
    ):
        yield


Spoil = Callable[[World], contextlib.AbstractContextManager[object]]
"""Puts a bug into the world, and into the product while its block lasts."""


def sound(world: World) -> contextlib.AbstractContextManager[object]:
    """No bug but those that are there."""
    return contextlib.nullcontext()


def simulate(seed: int, spoil: Spoil = sound) -> Outcome:
    """The whole of a seed."""
    collects = gc.isenabled()
    # What a killed process was doing must not come to an end by being collected.
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(prefix="aghsan-sim-", dir=_fast_folder()) as folder:
            world = World.make(seed)
            # What agents store names their folders: those have to be the same in every run.
            with contextlib.chdir(folder), installed(world), spoil(world):
                try:
                    return world.loop.run_until_complete(world.live())
                finally:
                    world.close()
    finally:
        if collects:
            gc.enable()


def _fast_folder() -> str | None:
    """Where small files come and go fastest, None for where temporary files usually are."""
    memory = "/dev/shm"
    return memory if os.access(memory, os.W_OK) else None
