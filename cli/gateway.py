"""`aghsan gateway`: the control process: HTTP, desk, scheduler, liveness and feeder in one loop."""

import asyncio
import contextlib
import gc
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from cli import child, options
from core import errors, events, platforms, runtime, turns
from core.accounts import COMPLETE
from core.projections.state import State

if TYPE_CHECKING:
    from core.sealer import Sealer
    from gateway.control import Control
    from gateway.desk import Desk
    from gateway.refusals import Refusals
    from gateway.work import Judgements
    from orchestrator.liveness import Limits, Liveness
    from orchestrator.scheduler import Scheduler


GIB = 1024**3


class Settings(NamedTuple):
    """What was asked for on the command line."""

    nats_url: str
    data: Path
    host: str
    port: int
    min_queue: int
    train_sec: float
    limits: "Limits"
    http_lease_sec: float
    accept_loss: bool
    sweeps: bool
    sweep_after_hours: float
    quota_gib: float
    worker_quota_gib: float
    artifacts: str
    as_child: bool


@click.command()
@click.option("--nats", "nats_url", required=True, help="Address of the nats-server.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Data directory with keys/ and creds/.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--min-queue",
    default=0,
    show_default=True,
    type=click.IntRange(0, 100_000),
    help="Queued tasks to keep; 0: do not feed.",
)
@click.option(
    "--train-sec",
    default=0.0,
    type=options.Number(0.0, 86_400),
    help="What the agents give to a task, for whoever keeps the queue; 0: not known.",
)
@options.worker_timeout
@options.http_lease
@click.option(
    "--lease-sec",
    default=60.0,
    show_default=True,
    type=options.Number(1, 86_400),
    help="Lease of an agent's claim.",
)
@options.sweeping
@options.quotas
@options.artifacts
@click.option("--accept-loss", is_flag=True, help="Go on with a log that lost its end.")
@click.option("--child", "as_child", is_flag=True, hidden=True)
@click.option("--verbose", is_flag=True, help="Say more on stderr.")
def gateway(
    nats_url: str,
    data: Path,
    host: str,
    port: int,
    min_queue: int,
    train_sec: float,
    worker_timeout_sec: float,
    http_lease_sec: float,
    lease_sec: float,
    no_sweep: bool,
    sweep_after_hours: float,
    quota_gib: float,
    worker_quota_gib: float,
    artifacts: str,
    accept_loss: bool,
    as_child: bool,
    verbose: bool,
) -> None:
    """Run the control plane against a nats-server that runs already."""
    if as_child:  # its owner holds the directory, and has seen to the rest
        use: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    else:
        _require_set_up(data)
        platforms.require_free_port(host, port)
        use = platforms.DataLock(data / "lock")

    from orchestrator.liveness import Limits

    child.configure_logging(verbose)
    limits = Limits(lease=lease_sec, worker_timeout=worker_timeout_sec)
    settings = Settings(
        nats_url=nats_url,
        data=data,
        host=host,
        port=port,
        min_queue=min_queue,
        train_sec=train_sec,
        limits=limits,
        http_lease_sec=http_lease_sec,
        accept_loss=accept_loss,
        sweeps=not no_sweep,
        sweep_after_hours=sweep_after_hours,
        quota_gib=quota_gib,
        worker_quota_gib=worker_quota_gib,
        artifacts=artifacts,
        as_child=as_child,
    )
    try:
        with use, asyncio.Runner(loop_factory=turns.new_loop) as runner:
            runner.run(_run(settings))
    except (errors.TopologyMismatch, errors.LogDamaged, errors.DataDirectoryError) as error:
        if as_child:
            child.tell("fatal", detail=str(error))
        raise


def _require_set_up(data: Path) -> None:
    """Raises DataDirectoryError where this is no directory to serve; it is left as it is."""
    for needed in (f"keys/{COMPLETE}", "creds/control.creds"):
        if not (data / needed).is_file():
            raise errors.DataDirectoryError(
                f"{data} is no data directory of Aghsan: it lacks {needed}, which `aghsan up` makes"
                " at its first start. Run `aghsan up` on it once, or name another by --data;"
                " nothing was changed here."
            )


async def _run(asked: Settings) -> None:
    from gateway import app, control, usage

    stop = asyncio.Event()
    child.on_stop(asyncio.get_running_loop(), stop.set, child=asked.as_child)
    on_back: list[Callable[[], None]] = []

    def server_back() -> None:
        for begin_anew in on_back:
            begin_anew()

    async with contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(
            control.open_control(
                asked.nats_url,
                asked.data,
                server_back,
                accept_loss=asked.accept_loss,
                grace_seconds=asked.sweep_after_hours * 3600,
                quotas=usage.Quotas(int(asked.quota_gib * GIB), int(asked.worker_quota_gib * GIB)),
                artifacts=asked.artifacts,
            )
        )
        for words in opened.set_aside:
            _say_now(words)
        parts = _assembled(opened, asked)
        on_back += [parts.liveness.forgive, parts.desk.heartbeats.forget_connections]
        running = [asyncio.create_task(opened.door.run())]
        # Before anybody else can say anything: what is accepted is the log up to here.
        await opened.accept_losses(asked.data)
        await parts.desk.open()
        await control.watch_connections(
            opened, parts.desk.heartbeats.connection_gone, parts.desk.heartbeats.connection_here
        )
        running += [asyncio.create_task(loop) for loop in _loops(parts, asked)]
        await app.plant(opened.door)
        # What is here now stays. Each full search of it for cycles would hold the loop up for about
        # 100 ms.
        gc.collect()
        gc.freeze()
        await stack.enter_async_context(_serving(parts, asked))
        await _until(stop, running, parts.at_the_end)
    logging.getLogger(__name__).info("stopped")


@dataclass(frozen=True)
class _Parts:
    """What runs in the control process beside HTTP."""

    control: "Control"
    scheduler: "Scheduler"
    liveness: "Liveness"
    refusals: "Refusals"
    desk: "Desk"
    sealer: "Sealer"
    judgements: "Judgements"

    async def at_the_end(self) -> None:
        """Seal what is written, and keep a snapshot of it."""
        await self.sealer.seal_last()
        await self.control.snapshots.take_last(self.control.door)


def _assembled(opened: "Control", asked: Settings) -> _Parts:
    from core import sealer
    from gateway import desk, narrator, refusals, work
    from orchestrator import liveness, scheduler

    door, connections = opened.door, opened.connections
    offers = scheduler.Scheduler(door, work.WorkStream(connections.fleet))
    kept = refusals.Refusals(connections.control)
    parts = _Parts(
        control=opened,
        scheduler=offers,
        liveness=liveness.Liveness(door, opened.presence, asked.limits, offers.someone_waits),
        refusals=kept,
        desk=desk.Desk(
            door,
            opened.presence,
            opened.store,
            opened.promises,
            opened.usage,
            refusals=kept,
            fleet=connections.fleet,
            control=connections.control,
            notices=connections.agents,
            offers=offers,
            ensure_lane=opened.ensure_lane,
            terms=desk.Terms(lease_seconds=asked.limits.lease),
        ),
        sealer=sealer.Sealer(door, opened.log, asked.data),
        judgements=work.Judgements(door, connections.control),
    )
    door.observe(_narrate(door, narrator.narrate))
    return parts


def _loops(parts: _Parts, asked: Settings) -> Iterator[Coroutine[None, None, None]]:
    """All that goes on for ever beside HTTP and the writer."""
    from gateway import control

    opened = parts.control
    door = opened.door
    yield parts.scheduler.run()
    yield parts.liveness.run()
    yield parts.judgements.run()
    yield parts.refusals.run()
    yield control.catch_up_loop(door)
    yield parts.sealer.run()
    yield opened.snapshots.run(door)
    yield opened.room.run(_say_now, _ask_owner if asked.as_child else _ask_people)
    yield opened.usage.run(opened.store)
    if asked.sweeps:
        yield opened.sweeper.run()
    if asked.min_queue:
        yield _feed(door, asked.min_queue, asked.train_sec)


@contextlib.asynccontextmanager
async def _serving(parts: _Parts, asked: Settings) -> AsyncIterator[None]:
    """Serve HTTP inside the block, and say where."""
    from gateway import app
    from orchestrator import targets

    target = targets.RuntimeTarget(parts.control.door)
    async with app.serve(
        parts.control,
        parts.refusals,
        asked.http_lease_sec,
        asked.host,
        asked.port,
        asked.nats_url,
        parts.scheduler.waiting,
        lambda: target.foresee(asked.train_sec),
    ) as address:
        if asked.as_child:
            child.tell("ready", http=address)
            yield
        else:
            with _noted(asked.data, asked.nats_url, address):
                child.say(f"ready {address}")
                yield


@contextlib.contextmanager
def _noted(data: Path, nats_url: str, address: str) -> Iterator[None]:
    """Tell in run.json, as `up` does, where those find the log who find the directory in use."""
    path = data / "run.json"
    facts = {"http": address, "nats": nats_url, "data": str(data.resolve())}
    platforms.write_atomically(path, json.dumps(facts, ensure_ascii=False, indent=1).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _feed(
    door: runtime.Runtime, min_queue: int, train_seconds: float
) -> Coroutine[None, None, None]:
    from orchestrator import feeder, merger, targets

    target, priority = targets.RuntimeTarget(door), feeder.PRIORITY_BESIDE_PEOPLE
    return feeder.Feeder(
        target,
        min_queue=min_queue,
        burst=max(10, min_queue),
        sleep_seconds=1.0,
        priority=priority,
        say=_say_now,
        given_seconds=train_seconds,
        merges=merger.Merger(target, priority, train_seconds),
    ).run()


async def _until(
    stop: asyncio.Event,
    running: list[asyncio.Task[None]],
    at_the_end: Callable[[], Coroutine[None, None, None]],
) -> None:
    """Wait for the end; a loop that ends before it ends everything. Raises SteppedDown."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
    ended = [task for task in running if task.done()]
    if not ended:
        await at_the_end()
    for task in running:
        task.cancel()
    for task in ended:
        task.result()
        raise errors.SteppedDown("another control process writes this log now; this one ends")


def _say_now(line: str) -> None:
    child.say(f"{time.strftime('%H:%M:%S')}  {line}")


def _ask_owner() -> None:
    child.tell("restart_server")


def _ask_people() -> None:
    _say_now(
        "there is room again where the disk was full: restart nats-server if it stores nothing"
    )


def _narrate(
    door: runtime.Runtime, narrate: Callable[[events.Event, State], str]
) -> Callable[[events.Event], None]:
    def observe(event: events.Event) -> None:
        line = narrate(event, door.state)
        if line:
            child.say(line)

    return observe
