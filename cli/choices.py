"""`aghsan champion promote|rollback|lineage`: who is to reign, and who ever stood."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cli import options
from cli.client import Client, segment
from core import errors

if TYPE_CHECKING:
    from cli import views

_REASON = click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")


@click.command()
@click.argument("node_id", metavar="NODE")
@click.argument("candidate_id", metavar="CANDIDATE")
@options.budget
@_REASON
@options.as_json
@options.api
def promote(
    node_id: str, candidate_id: str, budget: str, reason: str, as_json: bool, api: str
) -> None:
    """Let CANDIDATE reign over NODE, though no verdict promoted it.

    It has to be one that a judge measured for what NODE trains now, as after a verdict `trade-off`
    or `undecided`; one that was refused never reigns. The next rounds are judged against it.
    """
    body: dict[str, object] = {"candidate_id": candidate_id, "budget": budget, "reason": reason}
    _choose(node_id, "promote", body, as_json, api)


@click.command()
@click.argument("node_id", metavar="NODE")
@click.option("--to", metavar="CANDIDATE", help="A former champion. Default: the one before.")
@options.budget
@_REASON
@options.as_json
@options.api
def rollback(
    node_id: str, to: str | None, budget: str, reason: str, as_json: bool, api: str
) -> None:
    """Give the throne of NODE back to a former champion.

    `aghsan champion history NODE` lists those that reigned. Rolling back again leads further back.
    """
    body: dict[str, object] = {"to": to, "budget": budget, "reason": reason}
    _choose(node_id, "rollback", body, as_json, api)


def _choose(node_id: str, how: str, body: dict[str, object], as_json: bool, api: str) -> None:
    advice = f"look with `aghsan champion show {node_id}`, then ask again if it has to be"
    path = f"/nodes/{segment(node_id)}/champion/{how}"
    answer = Client(api).post(path, body, advice=advice, idempotency_key=uuid.uuid4().hex)
    if as_json:
        click.echo(answer.one("chosen"))
        return
    from cli import views

    one = answer.read("chosen", views.Chosen)
    over = f"the budget {one.budget} of {one.node_id}" if one.budget else one.node_id
    click.echo(f"{one.champion.candidate_id} reigns over {over}")
    _compare(one.champion, one.instead_of)


def _compare(now: "views.Champion", before: "views.Champion | None") -> None:
    """What was chosen and what it took the place of, each as measured when it came to the gate."""
    from cli import terminal

    if before is None:
        return
    both = (("now", now), ("before", before))
    rows = [(when, one.candidate_id, one.error, one.bytes) for when, one in both]
    terminal.show(terminal.table(["", "champion", "error", "bytes"], rows))
    if now.error is not None and before.error is not None and now.error > before.error:
        errs = f"{now.error:.6g} > {before.error:.6g}"
        click.echo(f"{now.candidate_id} errs more than {before.candidate_id}: {errs}")
        click.echo(f"خطأ البطل الجديد أكبر من خطأ سابقه: {errs}")


@click.command()
@click.argument("node_id", metavar="NODE")
@click.argument("candidate_id", metavar="[CANDIDATE]", required=False)
@click.option("--after", metavar="NEXT", help="Go on where a page ended.")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Of how many rounds.",
)
@options.as_json
@options.api
def lineage(
    node_id: str, candidate_id: str | None, after: str | None, limit: int, as_json: bool, api: str
) -> None:
    """List every candidate that stood at NODE, those of its newest rounds first.

    Each comes with its verdict, the refused and rejected ones too. CANDIDATE shows that one whole:
    its topic, task and attempts, its round, what it was made from, and its hashes.
    """
    query: dict[str, str | int | None] = {"candidate_id": candidate_id, "after": after}
    answer = Client(api).get(f"/nodes/{segment(node_id)}/candidates", {**query, "limit": limit})
    if as_json:
        click.echo(answer.page())
        return
    from cli import judged, terminal, views

    rows = answer.read("candidates", list[views.CandidateRecord])
    if candidate_id is not None:
        _show(rows, candidate_id)
        return
    if not rows:
        click.echo("no candidates yet", err=True)
        return
    terminal.show(judged.candidates(rows))
    terminal.say_more(answer.following())


def _show(rows: "Sequence[views.CandidateRecord]", candidate_id: str) -> None:
    from cli import judged, tables, terminal

    if not rows:
        raise errors.NotFound(f"the server tells of no candidate {candidate_id}")
    one = rows[0]
    terminal.show(
        terminal.facts(
            [
                ("candidate", one.candidate_id),
                ("topic", one.topic),
                ("task", one.task_id),
                ("role", one.role),
                ("method", " · ".join(filter(None, (one.method, one.method_reason)))),
                ("made from", " ".join(base.candidate_id or "" for base in judged.sources(one))),
                ("worker", one.worker_id),
                ("completed", terminal.when(one.completed_at)),
                ("round", one.round_id),
                ("verdict", one.verdict or one.round_status),
                ("error", one.error),
                ("evidence", one.evidence_rate),
                ("params", one.params),
                ("bytes", one.bytes),
                ("weights", one.weights_sha256),
                ("manifest", one.manifest),
                ("reigns over", judged.reigns(one)),
                *tables.why(one.reasons),
            ]
        )
    )
    if one.attempts:
        terminal.show("", tables.attempts(one.attempts))
