"""`aghsan gateway`: the control process: HTTP, desk, scheduler, liveness and feeder in one loop."""

import asyncio
import contextlib
import gc
import json
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import child, options
from core import errors, events, platforms, runtime
from core.accounts import COMPLETE
from core.projections.state import State

if TYPE_CHECKING:
    from orchestrator.liveness import Limits


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
@options.worker_timeout
@options.http_lease
@click.option(
    "--lease-sec",
    default=60.0,
    show_default=True,
    type=options.Number(1, 86_400),
    help="Lease of an agent's claim.",
)
@click.option("--accept-loss", is_flag=True, help="Go on with a log that lost its end.")
@click.option("--child", "as_child", is_flag=True, hidden=True)
@click.option("--verbose", is_flag=True, help="Say more on stderr.")
def gateway(
    nats_url: str,
    data: Path,
    host: str,
    port: int,
    min_queue: int,
    worker_timeout_sec: float,
    http_lease_sec: float,
    lease_sec: float,
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
    try:
        settings = (nats_url, data, host, port, min_queue, limits, http_lease_sec)
        with use:
            asyncio.run(_run(*settings, accept_loss=accept_loss, as_child=as_child))
    except (errors.TopologyMismatch, errors.LogDamaged) as error:
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


async def _run(
    nats_url: str,
    data: Path,
    host: str,
    port: int,
    min_queue: int,
    limits: "Limits",
    http_lease_sec: float,
    *,
    accept_loss: bool,
    as_child: bool,
) -> None:
    from core import sealer
    from gateway import app, control, desk, narrator, refusals, work
    from orchestrator import liveness, scheduler

    stop = asyncio.Event()
    child.on_stop(asyncio.get_running_loop(), stop.set, child=as_child)
    on_back: list[Callable[[], None]] = []

    def server_back() -> None:
        for begin_anew in on_back:
            begin_anew()

    async with contextlib.AsyncExitStack() as stack:
        parts = await stack.enter_async_context(
            control.open_control(nats_url, data, server_back, accept_loss=accept_loss)
        )
        door, connections = parts.door, parts.connections
        offers = scheduler.Scheduler(door, work.WorkStream(connections.fleet))
        alive = liveness.Liveness(door, parts.presence, limits, offers.someone_waits)
        kept = refusals.Refusals(connections.control)
        front = desk.Desk(
            door,
            parts.presence,
            parts.store,
            refusals=kept,
            fleet=connections.fleet,
            control=connections.control,
            notices=connections.agents,
            offers=offers,
            ensure_lane=parts.ensure_lane,
            terms=desk.Terms(lease_seconds=limits.lease),
        )
        on_back += [alive.forgive, front.forget_connections]
        seals = sealer.Sealer(door, parts.log, data)
        judgements = work.Judgements(door, connections.control)
        door.observe(_narrate(door, narrator.narrate))
        await front.open()
        await control.watch_connections(parts, front.connection_gone, front.connection_here)
        loops = [door.run(), offers.run(), alive.run(), judgements.run(), kept.run()]
        loops += [control.catch_up_loop(door), seals.run(), parts.snapshots.run(door)]
        loops.append(parts.room.run(_say_now, _ask_owner if as_child else _ask_people))
        if min_queue:
            loops.append(_feed(door, min_queue))
        running = [asyncio.create_task(loop) for loop in loops]
        await parts.accept_losses(data)
        await app.plant(door)
        # What is here now stays. Each full search of it for cycles would hold the loop up for about
        # 100 ms.
        gc.collect()
        gc.freeze()
        address = await stack.enter_async_context(
            app.serve(parts, kept, http_lease_sec, host, port, nats_url, offers.waiting)
        )
        if as_child:
            child.tell("ready", http=address)
        else:
            stack.enter_context(_noted(data, nats_url, address))
            child.say(f"ready {address}")

        async def at_the_end() -> None:
            await seals.seal_last()
            await parts.snapshots.take_last(door)

        await _until(stop, running, at_the_end)
    logging.getLogger(__name__).info("stopped")


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


def _feed(door: runtime.Runtime, min_queue: int) -> Coroutine[None, None, None]:
    from orchestrator import feeder, targets

    return feeder.Feeder(
        targets.RuntimeTarget(door),
        min_queue=min_queue,
        burst=max(10, min_queue),
        sleep_seconds=1.0,
        priority=feeder.PRIORITY_BESIDE_PEOPLE,
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
