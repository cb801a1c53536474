"""`aghsan champion show`."""

import click

from cli import options
from cli.client import Client, segment
from core import errors


@click.group(cls=options.Group)
def champion() -> None:
    """Show the model a node serves."""


@champion.command()
@click.argument("node_id", metavar="NODE")
@options.as_json
@options.api
def show(node_id: str, as_json: bool, api: str) -> None:
    """Show the champion of NODE, as measured on hidden cases."""
    from cli import tables, terminal, views

    node = Client(api).get(f"/nodes/{segment(node_id)}").inside("node")
    one = node.optional("champion", views.Champion)
    if one is None:
        raise errors.NotFound(
            f"{node_id} has no champion yet; its first is promoted when a candidate beats the "
            f"trivial predictor. `aghsan node show {node_id}` lists its rounds"
        )
    if as_json:
        click.echo(node.one("champion"))
        return
    terminal.show(
        terminal.facts(
            [
                ("champion", one.candidate_id),
                ("node", node_id),
                ("role", one.role),
                ("error", tables.against_baseline(one)),
                ("evidence", one.evidence_rate),
                ("params", one.params),
                ("bytes", one.bytes),
                ("promoted", terminal.when(one.promoted_at)),
                ("round", one.round_id),
                ("task", one.task_id),
                ("worker", one.worker_id),
                ("weights", one.weights_sha256),
            ]
        )
    )
