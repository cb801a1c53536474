"""`aghsan rivals`."""

import click

from cli import options
from cli.client import Client


@click.command()
@click.argument("node_id", metavar="[NODE]", required=False)
@click.option("--after", metavar="NEXT", help="Go on where a page ended.")
@options.as_json
@options.api
def rivals(node_id: str | None, after: str | None, as_json: bool, api: str) -> None:
    """Show what evolvers, reinventors and merges have won, and what they cost.

    Rounds are the decided ones that a rival entered: it won, or was measured and lost, or was
    absent. The factor is what its promotions made of the error of the champions before. The cost is
    that of the device time whose workers had told a price (`aghsan agent --price-per-hour`).
    """
    answer = Client(api).get("/rivals", {"node_id": node_id, "after": after})
    if as_json:
        click.echo(answer.page())
        return
    from cli import tables, terminal, views

    accounts = answer.read("rivals", list[views.RivalAccount])
    if not accounts:
        click.echo("no rival has been trained yet", err=True)
        return
    terminal.show(tables.accounts([*accounts, *answer.read("total", list[views.RivalAccount])]))
    terminal.say_more(answer.following())
