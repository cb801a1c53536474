"""`aghsan round ls|show`."""

import click
import msgspec

from cli import options
from cli.client import Client, segment


@click.group("round", cls=options.Group)
def round_() -> None:
    """List and show rounds and their verdicts."""


@round_.command("ls")
@click.option("--node", "node_id", metavar="ID", help="Only those of one specialization.")
@click.option("--status", type=click.Choice(["open", "closed", "judging", "decided"]))
@click.option(
    "--after", metavar="NEXT", help="Go on to those older than a round, or where a page ended."
)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@options.as_json
@options.api
def list_rounds(
    node_id: str | None,
    status: str | None,
    after: str | None,
    limit: int,
    as_json: bool,
    api: str,
) -> None:
    """List rounds, newest first."""
    query: dict[str, str | int | None] = {
        "node_id": node_id,
        "status": status,
        "newest": "true",
        "after": after,
        "limit": limit,
    }
    server = Client(api)
    answer = server.get("/rounds", query)
    if node_id is not None and not answer.read("rounds", list[msgspec.Raw]):
        server.require_node(node_id)
    if as_json:
        click.echo(answer.page())
        return
    from cli import tables, terminal, views

    rounds = answer.read("rounds", list[views.Round])
    if not rounds:
        click.echo("no such rounds", err=True)
        return
    terminal.show(tables.rounds(rounds))
    terminal.say_more(answer.following(), "older ones")


@round_.command()
@click.argument("round_id")
@options.as_json
@options.api
def show(round_id: str, as_json: bool, api: str) -> None:
    """Show one round: how far it is, what was weighed, each gate, the verdict, and why."""
    answer = Client(api).get(f"/rounds/{segment(round_id)}")
    if as_json:
        click.echo(answer.one("round"))
        return
    from cli import judged, tables, terminal, views

    one = answer.read("round", views.Round)
    terminal.show(
        terminal.facts(
            [
                ("round", one.round_id),
                ("status", one.status),
                ("node", one.node_id),
                ("base", one.base.candidate_id if one.base else "none: the first of its node"),
                *judged.life(one),
                ("verdict", one.verdict),
                ("decided", terminal.when(one.decided_at)),
                ("commitment", one.commitment),
                ("secret", one.secret),
                *tables.why(one.reasons),
                *judged.outcome(one),
                *judged.budget_verdicts(one.budgets),
            ]
        )
    )
    if one.weighed:
        champion = one.champion.candidate_id if one.champion else None
        terminal.show("", judged.weighed(one.weighed, champion), "", judged.costs(one.weighed))
    if one.candidates:
        terminal.show("", tables.candidates(one.candidates))
    if gates := judged.checks(one.candidates):
        terminal.show("", gates)
    for candidate in one.candidates:
        if candidate.reasons:
            terminal.show("", terminal.facts([("candidate", candidate.candidate_id)]))
            terminal.show(terminal.facts(tables.why(candidate.reasons)))
