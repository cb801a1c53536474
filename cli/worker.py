"""`aghsan worker ls`."""

import click

from cli import options
from cli.client import Client


@click.group(cls=options.Group)
def worker() -> None:
    """List workers."""


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
