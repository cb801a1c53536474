"""`aghsan expand` and `aghsan node ls|show`."""

import click

from cli import options
from cli.client import Client, naming, segment


@click.command()
@click.argument("parent_id", metavar="PARENT")
@click.argument("name", callback=options.words)
@click.option("--description", default="", help="What it is about.")
@click.option("--specialist", default="", help="What it trains; by default what PARENT trains.")
@click.option(
    "--set",
    "parameters",
    multiple=True,
    type=options.Setting(),
    metavar="NAME=NUMBER",
    help="A parameter in which it differs; may be repeated.",
)
@options.as_json
@options.api
def expand(
    parent_id: str,
    name: str,
    description: str,
    specialist: str,
    parameters: tuple[tuple[str, float], ...],
    as_json: bool,
    api: str,
) -> None:
    """Grow a specialization called NAME below the node PARENT."""
    body: dict[str, object] = {"parent_id": parent_id, "name": name, "description": description}
    if specialist or parameters:
        body["workload"] = {"specialist": specialist, "parameters": dict(parameters)}
    advice = "look with `aghsan node ls`, then ask again"
    with naming(parent_id):
        answer = Client(api).post("/graph/expand", body, advice=advice)
    if as_json:
        click.echo(answer.one("node"))
        return
    from cli import terminal, views

    grown = answer.read("node", views.Node)
    click.echo(f"{grown.node_id} grew: {terminal.value(grown.path)}")


@click.group(cls=options.Group)
def node() -> None:
    """Show specializations."""


@node.command("ls")
@options.as_json
@options.api
def list_nodes(as_json: bool, api: str) -> None:
    """Show the tree."""
    answer = Client(api).get("/graph")
    if as_json:
        click.echo(answer.one("graph"))
        return
    from cli import tables, terminal, views

    terminal.show(tables.tree(answer.read("graph", views.Graph).nodes))


@node.command()
@click.argument("node_id")
@options.as_json
@options.api
def show(node_id: str, as_json: bool, api: str) -> None:
    """Show one specialization: its work, its champion, its rounds."""
    answer = Client(api).get(f"/nodes/{segment(node_id)}")
    if as_json:
        click.echo(answer.one("node"))
        return
    from cli import tables, terminal, views

    one = answer.read("node", views.Node)
    terminal.show(
        terminal.facts(
            [
                ("node", one.node_id),
                ("parent", one.parent_id),
                ("children", " ".join(one.children)),
                ("trains", tables.workload(one.workload)),
                ("evolver", one.ai_current_evolver),
                ("reinventor", one.ai_zero_reinventor),
                ("champion", one.champion.candidate_id if one.champion else "none yet"),
                ("error", tables.against_baseline(one.champion)),
                ("budgets", ", ".join(budget.name for budget in one.budgets)),
                ("path", one.path),
                ("about", one.description),
            ]
        )
    )
    if one.lineage:
        terminal.show("", tables.lineage(one.lineage))
    if one.rounds:
        terminal.show("", tables.rounds(one.rounds))
