"""`aghsan champion show|history|export|run`; what people choose is in `cli.choices`."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click
import msgspec
from click.core import ParameterSource

from cli import choices, model, options, stored
from cli.client import Answer, Client, segment
from cli.log import data_option
from core import errors, gates

if TYPE_CHECKING:
    from cli import views


@click.group(cls=options.Group)
def champion() -> None:
    """Show, choose, save and ask the model a node serves."""


for command in (choices.promote, choices.rollback, choices.lineage):
    champion.add_command(command)


@champion.command()
@click.argument("node_id", metavar="NODE")
@options.budget
@options.as_json
@options.api
def show(node_id: str, budget: str, as_json: bool, api: str) -> None:
    """Show the champion of NODE, as measured on hidden cases.

    Beside it stand the champions of its budgets, and what waits for a person: models that rounds
    would neither promote nor refuse, the lowest error first. They wait until the champion is
    another one.
    """
    from cli import views

    node = Client(api).get(f"/nodes/{segment(node_id)}").inside("node")
    one = _champion_in(node, node_id, budget)
    if as_json:
        click.echo(_as_json(node, budget))
        return
    _show(node_id, budget, one, [] if budget else node.optional("budgets", list[views.Budget]))
    if not budget:
        _say_what_waits(node_id, node.optional("questions", list[views.Question]) or [])


def _champion_in(node: Answer, node_id: str, budget: str) -> "views.Champion":
    """Raises NotFound for a throne that is empty, or none."""
    from cli import views

    if not budget:
        one = node.optional("champion", views.Champion)
    else:
        stated = {one.name: one for one in node.optional("budgets", list[views.Budget]) or []}
        if budget not in stated:
            raise errors.NotFound(gates.unknown_budget(budget, stated))
        one = stated[budget].champion
    if one is None:
        raise stored.no_champion(node_id, budget)
    return one


def _as_json(node: Answer, budget: str) -> str:
    """The champion as the server tells it; the node's own with its budgets and what waits."""
    if budget:
        each = node.read("budgets", list[dict[str, msgspec.Raw]])
        named = (one for one in each if msgspec.json.decode(one["name"]) == budget)
        return bytes(next(named)["champion"]).decode()
    whole = node.read("champion", dict[str, msgspec.Raw | object])
    budgets = node.optional("budgets", msgspec.Raw)
    waits = node.optional("questions", msgspec.Raw)
    told = {**whole, "budgets": budgets or [], "waits": waits or []}
    return msgspec.json.encode(told).decode()


def _show(
    node_id: str, budget: str, one: "views.Champion", budgets: "Sequence[views.Budget] | None"
) -> None:
    from cli import judged, tables, terminal

    terminal.show(
        terminal.facts(
            [
                ("champion", one.candidate_id),
                ("node", node_id),
                ("budget", budget),
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
    if budgets:
        terminal.show("", judged.limits(budgets))


def _say_what_waits(node_id: str, questions: "Sequence[views.Question]") -> None:
    from cli import tables, terminal

    for asked in questions:
        asks = f"{asked.candidate_id} in {asked.round_id}"
        figures = [
            ("its error", asked.error),
            ("champion's", asked.champion_error),
            ("its bytes", asked.bytes),
        ]
        terminal.show(
            "", terminal.facts([("asks you", asks), *figures, *tables.why(asked.reasons)])
        )
    if questions:
        whom = questions[0].candidate_id if len(questions) == 1 else "CANDIDATE"
        click.echo(f"`aghsan champion promote {node_id} {whom}` lets it reign", err=True)


@champion.command()
@click.argument("node_id", metavar="NODE")
@click.option(
    "--data",
    type=options.Folder(),
    metavar="DIR",
    help="Ask no server: read this data directory, whether `aghsan up` runs on it or not.",
)
@options.budget
@options.as_json
@options.api
def history(node_id: str, data: Path | None, budget: str, as_json: bool, api: str) -> None:
    """List the champions of NODE, in the order they reigned.

    A judge's verdict made them that, or a person, and `why` is what that person said. A reign ends
    with the next one, or without a successor where NODE trains something else since, or has that
    budget no longer: `ended` says when. --budget also takes one that is stated no more.
    """
    if data is None:
        lineage = _told(Client(api).get(f"/nodes/{segment(node_id)}").inside("node"), budget)
    else:
        lineage = _lineage(data, node_id, budget)
    if as_json:
        click.echo(f'{{"lineage":{lineage}}}')
        return
    from cli import tables, terminal, views

    reigns = msgspec.json.decode(lineage, type=list[views.Lineage])
    if not reigns:
        click.echo("no champion yet", err=True)
        return
    terminal.show(tables.history(reigns))


def _told(node: Answer, budget: str) -> str:
    if not budget:
        return node.one("lineage")
    stated, past = (_lineages(node, key) for key in ("budgets", "past_budgets"))
    if budget not in stated | past:
        raise errors.NotFound(gates.unknown_budget(budget, stated))
    return bytes((stated | past)[budget]).decode()


def _lineages(node: Answer, key: str) -> dict[str, msgspec.Raw]:
    """Who reigned for each budget of a list, by its name."""
    each = node.optional(key, list[dict[str, msgspec.Raw]]) or []
    return {msgspec.json.decode(one["name"], type=str): one["lineage"] for one in each}


def _lineage(data: Path, node_id: str, budget: str) -> str:
    """As a server would tell it."""
    from gateway import verdicts

    node = stored.reading(data, lambda connected: stored.node(connected, node_id, budget))
    told = [verdicts.lineage_of(reign) for reign in node.reigns]
    return msgspec.json.encode(told).decode()


@champion.command()
@click.argument("node_id", metavar="NODE")
@click.argument("directory", metavar="DIR", type=options.Folder())
@data_option
@options.budget
@options.as_json
def export(node_id: str, directory: Path, data: Path, budget: str, as_json: bool) -> None:
    """Save the champion of NODE into DIR, with a card.

    DIR must not exist yet, and is there whole or not at all. It gets model.safetensors, config.json
    and card.md, which tells, in Arabic and English, what the model does, how it was measured on
    which hidden cases, where it comes from, and how to use it; for the champion of a corpus also
    the texts that its n-grams are counted in.
    """
    if directory.exists():
        raise errors.Invalid(f"{directory} is there already; name a folder that is not")
    served = stored.reading(data, lambda connected: stored.served(connected, node_id, budget))
    from agent import artifacts
    from cli import card

    head = model.Head.of(served.champion)
    with _unpacked(served) as folder:
        model.require_weights(folder / card.WEIGHTS_FILE, head)
        text = card.write(served, head, model.specialist_of(folder, head))
    files = {**served.files, model.CARD_FILE: text.encode()}
    with _leaving_nothing(directory):
        artifacts.unpack(files, directory)
    sizes = {name: len(content) for name, content in files.items()}
    if as_json:
        told = {
            "node_id": node_id,
            "candidate_id": head.candidate,
            "weights_sha256": head.weights_sha256,
            "directory": str(directory),
            "files": sizes,
        }
        click.echo(msgspec.json.encode(told))
        return
    from cli import terminal

    terminal.show(
        terminal.facts(
            [
                ("saved", str(directory)),
                ("champion", head.candidate),
                ("node", node_id),
                ("weights", head.weights_sha256),
                *((name, f"{size:,} bytes") for name, size in sizes.items()),
            ]
        )
    )


@contextlib.contextmanager
def _leaving_nothing(directory: Path) -> Iterator[None]:
    """Where it fails, remove the folders above a directory that it made."""
    made = [folder for folder in directory.parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        for folder in reversed(made):
            stack.callback(_remove_empty, folder)
        yield
        stack.pop_all()


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody put something there meanwhile, or it never was
        folder.rmdir()


@contextlib.contextmanager
def _unpacked(served: stored.Served) -> Iterator[Path]:
    """The files of a champion in a folder, for as long as they are needed."""
    with tempfile.TemporaryDirectory(prefix="aghsan-") as name:
        model.write(served.files, Path(name))
        yield Path(name)


@champion.command()
@click.argument("node_id", metavar="NODE")
@click.argument("file", metavar="[FILE]", required=False, type=options.File())
@data_option
@click.option(
    "--model",
    "exported",
    type=options.Folder(),
    metavar="DIR",
    help="Ask the model in DIR, a folder of `aghsan champion export`; in place of --data.",
)
@click.option(
    "-o",
    "--output",
    type=options.File(),
    metavar="FILE",
    help="Write answers there, not to stdout.",
)
@click.option("--example", is_flag=True, help="Only print a line that NODE could be asked.")
@options.budget
@click.pass_context
def run(
    ctx: click.Context,
    node_id: str,
    file: Path | None,
    data: Path,
    exported: Path | None,
    output: Path | None,
    example: bool,
    budget: str,
) -> None:
    """Ask the champion of NODE what stands in FILE.

    Without FILE it is standard input. Each line is a JSON object with the inputs, and each line of
    the output one with the answers, in the same order. `--example` prints such a line for NODE; the
    card of an export says what each input and answer means, and in which unit. A line that cannot
    be answered ends the run with exit code 2, and says which line and field; what stands before it
    is answered.
    """
    if exported is not None and ctx.get_parameter_source("data") is ParameterSource.COMMANDLINE:
        raise click.UsageError("say either --data or --model")
    if exported is not None and budget:
        raise click.UsageError("--budget is for a champion in --data; --model has one model")
    with contextlib.ExitStack() as stack:
        given = _input(stack, None if example else file)
        folder, head = stack.enter_context(_model(node_id, budget, data, exported))
        from agent.specialists import questions
        from cli import asking

        specialist = model.specialist_of(folder, head)
        module = None if example else model.load(folder, head, specialist)
        out = _output(stack, output, file)
        if module is None:
            out.write(questions.example(specialist).encode() + b"\n")
        else:
            asking.answer(specialist, module, given, out)


@contextlib.contextmanager
def _model(
    node_id: str, budget: str, data: Path, exported: Path | None
) -> Iterator[tuple[Path, model.Head]]:
    """The folder of the model that is asked, and what is known of it."""
    if exported is None:
        served = stored.reading(data, lambda connected: stored.served(connected, node_id, budget))
        with _unpacked(served) as folder:
            yield folder, model.Head.of(served.champion)
        return
    head = model.head_of(exported)
    if head.node != node_id:
        raise errors.Invalid(f"the model in {exported} was the champion of {head.node}, not of "
                             f"{node_id}")  # fmt: skip
    yield exported, head


def _input(stack: contextlib.ExitStack, file: Path | None) -> BufferedReader:
    if file is None or str(file) == "-":
        return cast(BufferedReader, sys.stdin.buffer)
    return stack.enter_context(file.open("rb"))


def _output(stack: contextlib.ExitStack, output: Path | None, file: Path | None) -> BinaryIO:
    if output is None:
        return sys.stdout.buffer
    if file is not None and output.exists() and file.exists() and output.samefile(file):
        raise errors.Invalid(f"{output} is the file that is read; name another by -o")
    return stack.enter_context(output.open("wb"))
