"""`aghsan agent`: one worker agent, attached with one command."""

import asyncio
import logging
import platform
from pathlib import Path

import click

from cli import child, options
from core import errors, subjects


@click.command()
@options.api
@click.option(
    "--worker-id",
    envvar="WORKER_ID",
    show_envvar=True,
    default="",
    help="Default: this host's name.",
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
    help="Where its folders tasks and bases are. Default: ~/.aghsan/agents/WORKER_ID.",
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
    from agent import machine, worker
    from agent.executors.process import Executor

    child.configure_logging(verbose)
    if not api.startswith(("http://", "https://")):
        raise click.UsageError(f"--api takes an address such as http://host:8000, not {api!r}")
    worker_id = worker_id or platform.node() or "agent"
    settings = worker.Settings(
        api=api,
        worker_id=worker_id,
        directory=directory or Path.home() / ".aghsan" / "agents" / subjects.token(worker_id),
        train_seconds=train_sec,
        poll_seconds=poll_sec,
        direct=direct,
    )
    settings.directory.mkdir(parents=True, exist_ok=True)
    one = worker.Worker(settings, machine.inspect(), Executor())

    async def run() -> None:
        child.on_stop(asyncio.get_running_loop(), one.stop, child=as_child)
        await one.run()

    def attached() -> None:
        if as_child:
            child.tell("ready", worker_id=worker_id)
        else:
            child.say(f"attached to {api} as {worker_id}; Ctrl-C checkpoints, releases and leaves")

    one.on_attached = attached
    try:
        asyncio.run(run())
    except worker.Superseded as error:
        logging.getLogger(__name__).error("another agent named %s took over: %s", worker_id, error)
        raise SystemExit(child.REFUSED) from error
    except (errors.Refused, errors.DataDirectoryError) as error:
        logging.getLogger(__name__).error("%s", error)
        raise SystemExit(child.REFUSED) from error
