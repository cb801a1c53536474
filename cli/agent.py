"""`aghsan agent`: one worker agent, attached with one command."""

import asyncio
import contextlib
import logging
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from cli import child, options
from core import errors, platforms, quiet

if TYPE_CHECKING:
    from agent.executors.pool import Pool


@click.command()
@options.api
@click.option(
    "--worker-id",
    envvar="WORKER_ID",
    show_envvar=True,
    default="",
    help="Default: this host's name, and HOST-2, HOST-3… for further agents on it.",
)
@click.option(
    "--poll-sec",
    default=2.0,
    show_default=True,
    type=options.Number(0.1, 3600),
    help="Seconds between tries while the server is away; of what is under way at most 5.",
)
@click.option(
    "--train-sec",
    default=30.0,
    show_default=True,
    type=options.Number(0.2, 86_400),
    help="Wall seconds per task that names no budget.",
)
@click.option(
    "--directory",
    type=options.Folder(),
    help="Its folder of tasks and bases. Default: ~/.aghsan/agents/SERVER/WORKER_ID, with bases "
    "that the agents of SERVER share.",
)
@click.option("--bases", type=options.Folder(), hidden=True, help="Downloaded models.")
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that train each task together, a GPU each. For small models an agent for each "
    "GPU does more.",
)
@click.option(
    "--threads",
    default=0,
    type=click.IntRange(0, 1024),
    help="Threads that a large model computes on. Default: all cores; name a part of them for each "
    "of several agents on a machine.",
)
@options.quiet_folder
@options.price
@click.option("--direct", is_flag=True, hidden=True, help="Connect to nats-server itself.")
@click.option("--child", "as_child", is_flag=True, hidden=True)
@click.option("--verbose", is_flag=True, help="Say more on stderr.")
def agent(
    api: str,
    worker_id: str,
    poll_sec: float,
    train_sec: float,
    directory: Path | None,
    bases: Path | None,
    processes: int,
    threads: int,
    quiet_folder: Path | None,
    price_per_hour: float | None,
    direct: bool,
    as_child: bool,
    verbose: bool,
) -> None:
    """Attach this machine as a worker: pull tasks, train, stream checkpoints back."""
    from agent import gauges, machine, worker
    from agent.executors.pool import Pool
    from agent.narrator import Narrator

    child.configure_logging(verbose)
    home = _home(api, worker_id, directory, bases)
    worker_id = home.worker_id
    settings = worker.Settings(
        api=api,
        worker_id=worker_id,
        directory=home.directory,
        train_seconds=train_sec,
        poll_seconds=poll_sec,
        direct=direct,
        bases=home.bases,
    )
    say = _to_log if as_child else _to_terminal

    def tell(line: str) -> None:
        say(line)
        if as_child:
            _to_terminal(f"{worker_id}: {line}")

    here = msgspec.structs.replace(machine.inspect(), price_per_hour=price_per_hour)
    gauge = gauges.of_device(here.device)
    pool = Pool(processes, threads)
    one = worker.Worker(settings, here, pool, Narrator(say, api, tell), gauge)

    async def run() -> None:
        with _heeding(quiet_folder, pool) as stand_still_no_more:

            def stop() -> None:
                stand_still_no_more()
                one.stop()

            child.on_stop(asyncio.get_running_loop(), stop, child=as_child)
            await one.run()

    if as_child:
        one.on_attached = lambda: child.tell("ready", worker_id=worker_id)
    else:
        # The agent's own lines tell of cuts.
        logging.getLogger("core.bus").setLevel(logging.DEBUG if verbose else logging.ERROR)
    try:
        asyncio.run(run())
    except (errors.Refused, errors.DataDirectoryError) as error:
        if not as_child:
            raise
        logging.getLogger(__name__).error("%s", error)
        raise SystemExit(child.REFUSED) from error


@contextlib.contextmanager
def _heeding(folder: Path | None, pool: "Pool") -> Iterator[Callable[[], None]]:
    """Let an agent's trainings stand still when a judge beside it asks; what ends that."""
    if folder is None:
        yield lambda: None
        return
    heeder = quiet.Heeder(folder, pool.suspend, pool.resume)
    try:
        heeder.start()
    except OSError as error:
        raise errors.DataDirectoryError(
            f"The folder {folder} cannot be used: {error.strerror}. Name by --quiet-folder one "
            "that this user may write to, or none."
        ) from error
    try:
        yield heeder.close
    finally:
        heeder.close()


class _Home(NamedTuple):
    """An agent's name and its folders, in use for as long as this is held."""

    worker_id: str
    directory: Path
    bases: Path | None
    locks: list[platforms.DataLock]


def _home(api: str, worker_id: str, directory: Path | None, bases: Path | None) -> _Home:
    """What was asked for, and what is usual for the rest. Raises DirectoryInUse."""
    from agent import folders

    server = folders.of_server(Path.home(), api)
    if directory is None and bases is None:
        bases = folders.of_bases(server)
    locks = []
    if not worker_id:
        advice = "Name the agent by --worker-id, and by --directory a folder"
        options.made(server, "The folder of agents", advice)
        worker_id, lock = folders.use_first_free(server, platform.node() or "agent")
        locks.append(lock)
    if directory or not locks:
        directory = directory or folders.of_agent(server, worker_id)
        locks.append(folders.use(options.made(directory, "The folder", "Name one by --directory")))
    return _Home(worker_id, directory or folders.of_agent(server, worker_id), bases, locks)


def _to_terminal(line: str) -> None:
    child.say(f"{time.strftime('%H:%M:%S')}  {line}")


def _to_log(line: str) -> None:
    """Under `up` the control process tells people what its agents do."""
    logging.getLogger(__name__).info("%s", line, extra={"action": "narrate"})
