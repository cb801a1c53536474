"""`aghsan worker ls|show|pause|drain|resume`."""

from typing import TYPE_CHECKING

import click

from cli import options
from cli.client import Client, segment

if TYPE_CHECKING:
    from cli import views


@click.group(cls=options.Group)
def worker() -> None:
    """List, show, pause and resume workers."""


@worker.command("ls")
@options.as_json
@options.api
def list_workers(as_json: bool, api: str) -> None:
    """List workers and what they do."""
    answer = Client(api).get("/workers")
    if as_json:
        click.echo(answer.page())
        return
    from cli import tables, terminal, views

    workers = answer.read("workers", list[views.Worker])
    if workers:
        terminal.show(tables.workers(workers))
    else:
        click.echo("no workers yet; attach one with `aghsan agent`", err=True)


@worker.command()
@click.argument("worker_id")
@options.as_json
@options.api
def show(worker_id: str, as_json: bool, api: str) -> None:
    """Show one worker: what it holds, costs, and whether its claims are borne out.

    A claim is off where the worker's own figures are better than what a judge measured, by more
    than other cases explain; it is doubtful where that was so for 3 of its last 8.
    """
    answer = Client(api).get(f"/workers/{segment(worker_id)}")
    if as_json:
        click.echo(answer.one("worker"))
        return
    from cli import tables, terminal, views

    terminal.show(terminal.facts(tables.worker(answer.read("worker", views.Worker))))


@worker.command()
@click.argument("worker_id")
@options.as_json
@options.api
def pause(worker_id: str, as_json: bool, api: str) -> None:
    """Give a worker nothing to do until `resume`; what it trains it gives back within a second,
    saved where there is time for that, else as its last checkpoint has it.

    One that works over HTTP is given nothing more, and ends what it holds as it likes.
    """
    _steer(worker_id, "pause", as_json, api)


@worker.command()
@click.argument("worker_id")
@options.as_json
@options.api
def drain(worker_id: str, as_json: bool, api: str) -> None:
    """Give a worker nothing more to do until `resume`; what it holds it trains to its end."""
    _steer(worker_id, "drain", as_json, api)


@worker.command()
@click.argument("worker_id")
@options.as_json
@options.api
def resume(worker_id: str, as_json: bool, api: str) -> None:
    """Let a worker have work again that was paused or drained."""
    _steer(worker_id, "resume", as_json, api)


SAID = {
    "pause": "is paused, and gives back what it holds",
    "drain": "is given nothing more",
    "resume": "may have work",
}


def _steer(worker_id: str, how: str, as_json: bool, api: str) -> None:
    advice = "look with `aghsan worker ls`, then ask again"
    answer = Client(api).post(f"/workers/{segment(worker_id)}/{how}", {}, advice=advice)
    if as_json:
        click.echo(answer.one("worker"))
        return
    from cli import views

    one = answer.read("worker", views.Worker)
    click.echo(f"{one.worker_id} {_words(one, how)}")


def _words(one: "views.Worker", how: str) -> str:
    if how != "pause":
        return SAID[how]
    if not one.held:
        return "is paused; it holds nothing"
    if one.via == "http":
        return "is given nothing more, and ends what it holds as it likes"
    if one.status == "offline":
        return "is paused, and gives back what it still holds once it is back"
    return SAID[how]
