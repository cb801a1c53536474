"""`aghsan gates`: by which bounds the candidates of a node are judged, and its budgets."""

import re
from typing import Any

import click

from cli import options
from cli.client import Answer, Client, segment

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_FIELDS = {"latency": "latency_max", "bytes": "bytes_max"}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", re.ASCII)


class BudgetOption(click.ParamType[dict[str, object]]):
    """NAME:latency=TIMES,bytes=SIZE, either of them or both."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, object]:
        name, is_given, limits = str(value).rpartition(":")
        if not is_given or not name:
            self.fail(f"{value!r} is not NAME:latency=2.0,bytes=1MB.", param, ctx)
        budget: dict[str, object] = {"name": name}
        for part in limits.split(","):
            key, _, amount = part.strip().partition("=")
            if _FIELDS.get(key) in budget:
                self.fail(f"{key} is given twice.", param, ctx)
            match key:
                case "latency":
                    budget["latency_max"] = self._times(amount, param, ctx)
                case "bytes":
                    budget["bytes_max"] = self._bytes(amount, param, ctx)
                case _:
                    self.fail(f"{key!r} bounds nothing; say latency, bytes or both.", param, ctx)
        return budget

    def _times(
        self, amount: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        times = amount.removesuffix("x")
        try:
            float(times)
        except ValueError:
            self.fail(f"{amount!r} is no number of times, as 2, 2.5 and 2x are.", param, ctx)
        return options.Number().convert(times, param, ctx)

    def _bytes(self, amount: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _SIZE.fullmatch(amount)
        if found is None or found[2].upper() not in _UNITS:
            self.fail(f"{amount!r} is no size, as 500000, 1MB or 2MiB are.", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


@click.command()
@click.argument("node_id", metavar="NODE")
@click.option(
    "--set",
    "settings",
    multiple=True,
    type=options.Setting(),
    metavar="NAME=VALUE",
    help="Another number for one gate; may be repeated.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=BudgetOption(),
    metavar='"NAME:latency=2.0,bytes=1MB"',
    help="State a budget: what a model may take, in times of the reference kernel and in bytes; "
    "may be repeated.",
)
@click.option(
    "--no-budget",
    "dropped",
    multiple=True,
    metavar="NAME",
    help="State this budget no longer: its champion retires; may be repeated.",
)
@click.option("--reset", is_flag=True, help="First give up what NODE has of its own.")
@options.as_json
@options.api
def gates(
    node_id: str,
    settings: tuple[tuple[str, float], ...],
    budgets: tuple[dict[str, object], ...],
    dropped: tuple[str, ...],
    reset: bool,
    as_json: bool,
    api: str,
) -> None:
    """Show by which gates the candidates of NODE are judged, or set them.

    A node without gates of its own is judged by those of its nearest ancestor that has some, else
    by the defaults. Its first change gives it a copy of all of them, and it follows its ancestor no
    more, until --reset. A budget has a champion of its own: the best model within it.
    """
    server, path = Client(api), f"/nodes/{segment(node_id)}"
    if settings or budgets or dropped or reset:
        body: dict[str, object] = {
            "set": dict(settings),
            "budgets": list(budgets),
            "drop": list(dropped),
            "reset": reset,
        }
        # Asked again it changes nothing more.
        answer = server.post(f"{path}/gates", body, advice="ask again")
        _say_who_retired(answer)
    else:
        answer = server.get(path)
    node = answer.inside("node")
    if as_json:
        click.echo(node.one("gates"))
        return
    from cli import judged, terminal, views

    one = node.read("gates", views.Gates)
    terminal.show(judged.gates(one))
    if one.budgets:
        terminal.show("", judged.limits(one.budgets))
    lent = "no gates of its own: it is judged as its nearest ancestor with some, or by the defaults"
    click.echo(f"{node_id} has {lent if one.inherited else 'gates of its own'}", err=True)


def _say_who_retired(answer: Answer) -> None:
    from cli import views

    for one in answer.optional("retired", list[views.Retired]) or []:
        click.echo(
            f"{one.candidate_id} reigns for the budget {one.budget} of {one.node_id} no longer",
            err=True,
        )
