"""`aghsan agent`: one worker agent, attached with one command."""

import asyncio
import logging
import platform
import time
from pathlib import Path

import click

from cli import child, options
from core import errors


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
    help="Seconds between tries while the server is away.",
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
    help="Where its folders tasks and bases are. Default: ~/.aghsan/agents/SERVER/WORKER_ID.",
)
@click.option("--direct", is_flag=True, hidden=True, help="Connect to nats-server itself.")
@click.option("--child", "as_child", is_flag=True, hidden=True)
@click.option("--verbose", is_flag=True, help="Say more on stderr.")
def agent(
    api: str,
    worker_id: str,
    poll_sec: float,
    train_sec: float,
    directory: Path | None,
    direct: bool,
    as_child: bool,
    verbose: bool,
) -> None:
    """Attach this machine as a worker: pull tasks, train, stream checkpoints back."""
    from agent import folders, machine, worker
    from agent.executors.process import Executor
    from agent.narrator import Narrator

    child.configure_logging(verbose)
    server = folders.of_server(Path.home(), api)
    locks = []
    if not worker_id:
        worker_id, lock = folders.use_first_free(server, platform.node() or "agent")
        locks.append(lock)
    if directory or not locks:
        locks.append(folders.use(directory or folders.of_agent(server, worker_id)))
    settings = worker.Settings(
        api=api,
        worker_id=worker_id,
        directory=directory or folders.of_agent(server, worker_id),
        train_seconds=train_sec,
        poll_seconds=poll_sec,
        direct=direct,
    )
    say = _to_log if as_child else _to_terminal
    one = worker.Worker(settings, machine.inspect(), Executor(), Narrator(say, api))

    async def run() -> None:
        child.on_stop(asyncio.get_running_loop(), one.stop, child=as_child)
        await one.run()

    if as_child:
        one.on_attached = lambda: child.tell("ready", worker_id=worker_id)
    else:
        # The agent's own lines tell of cuts.
        logging.getLogger("core.bus").setLevel(logging.DEBUG if verbose else logging.ERROR)
    try:
        asyncio.run(run())
    except (worker.Superseded, errors.Refused, errors.DataDirectoryError) as error:
        if not as_child:
            raise
        logging.getLogger(__name__).error("%s", error)
        raise SystemExit(child.REFUSED) from error


def _to_terminal(line: str) -> None:
    child.say(f"{time.strftime('%H:%M:%S')}  {line}")


def _to_log(line: str) -> None:
    """Under `up` the control process tells people what its agents do."""
    logging.getLogger(__name__).info("%s", line, extra={"action": "narrate"})
