"""`aghsan status`: the network in figures, its workers, what runs."""

import contextlib
import time
from typing import TYPE_CHECKING

import click

from cli import options
from cli.client import Answer, Client
from core import errors

if TYPE_CHECKING:
    from rich.console import RenderableType

RUNNING_SHOWN_MAX = 20


@click.command()
@click.option("--watch", is_flag=True, help="Go on showing it until Ctrl-C.")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=options.Number(0.1, 3600),
    help="Seconds between two looks of --watch.",
)
@options.as_json
@options.api
def status(api: str, as_json: bool, interval: float, watch: bool) -> None:
    """Show the network in figures, its workers, and what runs.

    With --json the figures alone; with --watch too, one line a look.
    """
    server = Client(api)
    if not watch:
        _print_json(server) if as_json else _show(server)
        return
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            while True:
                _print_json(server)
                time.sleep(interval)
        _watch(server, interval)


def _print_json(server: Client) -> None:
    click.echo(server.get("/status").one("network"))


def _show(server: Client) -> None:
    from cli import terminal

    terminal.show(_picture(server))


def _watch(server: Client, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from cli import terminal

    console = terminal.console()
    if not console.is_terminal:
        _watch_changes(server, interval)
        return
    seen = _picture(server)  # a server that was never there is an error, not a wait
    with Live(seen, console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(interval)
            try:
                seen = _picture(server)
                live.update(seen, refresh=True)
            except errors.Unavailable as error:
                live.update(Group(seen, Text(f"{error}; trying again", "red")), refresh=True)


def _watch_changes(server: Client, interval: float) -> None:
    """Into a pipe goes one line for each change."""
    line = said = _line(server.get("/status"))
    click.echo(line)
    while True:
        time.sleep(interval)
        try:
            line = _line(server.get("/status"))
        except errors.Unavailable as error:
            line = f"{error}; trying again"
        if line != said:
            click.echo(line)
        said = line


def _line(answer: Answer) -> str:
    from cli import views

    network = answer.read("network", views.Network)
    tasks = network.tasks
    return (
        f"{network.nodes} nodes, {network.workers_online} of {network.workers_total} workers "
        f"online, tasks: {tasks.queued} queued, {tasks.running} running, {tasks.completed} "
        f"completed, {tasks.total} in all"
    )


def _picture(server: Client) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from cli import tables, views

    parts: list[RenderableType] = [Text(_line(server.get("/status")))]
    # A server with nothing but the nine routes is shown as far as it goes.
    with contextlib.suppress(errors.NotFound):
        workers = server.get("/workers").read("workers", list[views.Worker])
        if workers:
            parts += ["", tables.workers(workers)]
        query: dict[str, str | int | None] = {"status": "running", "limit": RUNNING_SHOWN_MAX}
        running = server.get("/tasks", query).read("tasks", list[views.Task])
        if running:
            parts += ["", tables.tasks(running)]
    return Group(*parts)
