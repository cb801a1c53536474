"""`aghsan corpus add|ls|show|remove`: a folder of text becomes the work of a node."""

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.client import Answer, Client, segment
from core import errors

if TYPE_CHECKING:
    from cli import views
    from core import corpora, texts

SHOWN_MAX = 20
NAMED_MAX = 3
GOES_ON = "ask again, which goes on where it broke off"


@click.group(cls=options.Group)
def corpus() -> None:
    """Let a specialization train on a folder of text, Arabic or any other."""


@corpus.command()
@click.argument("node_id", metavar="NODE")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", default="", help="What to call it. Default: the folder's name.")
@click.option(
    "--encoding",
    default="utf-8",
    show_default=True,
    help="How files are written that do not say it themselves, such as windows-1256.",
)
@click.option(
    "--base",
    default="",
    metavar="DIR|ID",
    help="A base model that adapters (LoRA) are trained for: a folder, or an id on the hub.",
)
@options.as_json
@options.api
def add(
    node_id: str, folder: Path, name: str, encoding: str, base: str, as_json: bool, api: str
) -> None:
    """Let NODE train on the text files below DIR from now on.

    Each file is a document. Of twenty, one is hidden: only the judge reads it; one is for
    validation; agents train on the others. A base model is only named: each agent, and the judge,
    has to have its files (AGHSAN_BASE_MODELS names the folders where they lie). What NODE served
    before retires, unless it was trained on the very same text.
    """
    from core import corpora

    _require_folder(folder)
    server = Client(api)
    server.require_node(node_id)
    over = _base(base) if base else None
    found, text = read(folder, encoding)
    packed = corpora.pack(name or folder.resolve().name or "corpus", text)
    _send(server, packed)
    body: dict[str, object] = {
        "name": packed.corpus.name,
        "public": _plain(packed.public),
        "hidden": _plain(packed.hidden),
        "base_model": over,
    }
    answer = server.post(f"/nodes/{segment(node_id)}/corpus", body, advice=GOES_ON)
    measured = _measured(text)
    _say_outdated(answer)
    if as_json:
        told = {
            **json.loads(answer.one("node")),
            "outdated": answer.optional("outdated", list[dict[str, Any]]) or [],
            "files": found.files,
            "short": found.short,
            "duplicates": found.duplicates,
            "skipped": [{"path": str(one.path), "reason": one.reason} for one in found.skipped],
            **measured,
        }
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    from cli import terminal, views

    terminal.show(
        terminal.facts(
            [
                *_facts(answer.read("node", views.BoundCorpus)),
                ("left out", _left_out(found).strip(" ()")),
                ("letters", f"{measured['bytes_per_character']:.2f} bytes per character"),
                ("baseline", f"{measured['baseline']:.3f} bits per byte, the byte 6-gram"),
                ("trivial", f"{measured['trivial']:.3f} bits per byte, bytes by frequency alone"),
            ]
        )
    )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise errors.NotFound(f"{folder} is no folder; name one that holds text files")


def read(folder: Path, encoding: str) -> "tuple[texts.Found, corpora.Text]":
    """The documents of a folder, and the parts of a corpus of them; files skipped are told.

    Raises errors.NotFound for what is no folder, errors.Invalid for what makes no corpus.
    """
    from core import corpora, texts

    _require_folder(folder)
    found = texts.read(folder, encoding)
    for line in _skipped(found.skipped):
        click.echo(line, err=True)
    try:
        return found, corpora.split(found.documents)
    except errors.Invalid as error:
        raise errors.Invalid(f"{folder}: {error}{_left_out(found)}. Nothing was changed") from error


def _skipped(files: "Sequence[texts.Skipped]") -> Iterator[str]:
    """Which files are no documents and why, those that one advice is for in one line."""
    alike: dict[str, list[texts.Skipped]] = {}
    for one in files:
        alike.setdefault(one.kind, []).append(one)
    for few in alike.values():
        if len(few) == 1:
            yield f"skipped {few[0].path}: {few[0].reason}"
            continue
        names = ", ".join(str(one.path) for one in few[:NAMED_MAX])
        more = f" and {len(few) - NAMED_MAX} more" if len(few) > NAMED_MAX else ""
        yield f"skipped {len(few)} files alike: {names}{more}. Of the first: {few[0].reason}"


def _left_out(found: "texts.Found") -> str:
    counts = {
        "too short": found.short,
        "duplicates": found.duplicates,
        "skipped": len(found.skipped),
    }
    words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f" (of {found.files} files {words})" if words else ""


def _base(named: str) -> object:
    """A base model as workloads name it, which this machine has, and whose weights fit it."""
    from agent.specialists import bases

    try:
        one, folder = bases.describe(named)
        bases.require_extra()
        from agent.specialists import adapters

        adapters.require_fit(folder)
    except errors.TrainingError as error:
        raise errors.Invalid(str(error)) from error
    return _plain(one)


def _plain(manifest: Any) -> object:
    import msgspec

    return msgspec.to_builtins(manifest)


def _send(server: Client, packed: "corpora.Packed") -> None:
    """Send the chunks that are not stored yet: a sending that broke off goes on where it was."""
    sizes = {digest: len(piece) for digest, piece in packed.pieces.items()}
    asked = server.post("/corpora/missing", {"chunks": sizes}, advice=GOES_ON)
    missing = asked.read("missing", list[str])
    for number, digest in enumerate(missing, 1):
        data = base64.b64encode(packed.pieces[digest]).decode()
        server.post("/corpora/chunks", {"data": data}, advice=GOES_ON)
        if number % 8 == 0:
            click.echo(f"sent {number} of {len(missing)} chunks", err=True)


def _measured(text: "corpora.Text") -> dict[str, float]:
    """What a model has to beat, on the validation documents."""
    from agent.specialists import ngrams

    trivial, baseline = ngrams.baselines(text.training, text.validation)
    size = sum(map(len, text.validation))
    letters = sum(len(document.decode()) for document in text.validation)
    return {"bytes_per_character": size / letters, "baseline": baseline, "trivial": trivial}


@corpus.command("ls")
@options.as_json
@options.api
def list_corpora(as_json: bool, api: str) -> None:
    """List the specializations that have a corpus of their own."""
    answer = Client(api).get("/corpora")
    if as_json:
        click.echo(answer.page())
        return
    from cli import terminal, views

    rows = [
        (one.node_id, one.corpus.documents, one.corpus.bytes, one.corpus.manifest[:12],
         one.corpus.name, one.name)
        for one in answer.read("corpora", list[views.BoundCorpus])
    ]  # fmt: skip
    if not rows:
        click.echo("no corpora; `aghsan corpus add NODE DIR` gives a node one", err=True)
        return
    columns = ["node", "documents", "bytes", "digest", "corpus", "name"]
    terminal.show(terminal.table(columns, rows))


@corpus.command()
@click.argument("node_id", metavar="NODE")
@options.as_json
@options.api
def show(node_id: str, as_json: bool, api: str) -> None:
    """Show the corpus that NODE trains on, its own or an ancestor's."""
    from cli import terminal, views

    node = Client(api).get(f"/nodes/{segment(node_id)}")
    one = node.read("node", views.BoundCorpus)
    if one.workload.corpus is None:
        raise errors.NotFound(
            f"{node_id} trains on no corpus; `aghsan corpus add {node_id} DIR` gives it one"
        )
    if as_json:
        click.echo(node.inside("node").one("workload"))
        return
    terminal.show(terminal.facts(_facts(one)))


@corpus.command()
@click.argument("node_id", metavar="NODE")
@options.as_json
@options.api
def remove(node_id: str, as_json: bool, api: str) -> None:
    """Let NODE train again what it did without its corpus; what it serves retires."""
    advice = "look with `aghsan corpus ls`, then ask again"
    path = f"/nodes/{segment(node_id)}/corpus/remove"
    answer = Client(api).post(path, {}, advice=advice)
    _say_outdated(answer)
    if as_json:
        click.echo(answer.one("node"))
        return
    from cli import tables, views

    one = answer.read("node", views.BoundCorpus)
    click.echo(f"{one.node_id} trains {tables.workload(one.workload)}")


def _say_outdated(answer: Answer) -> None:
    """Tell of tasks queued before that nothing can come of."""
    from cli import views

    found = answer.optional("outdated", list[views.OutdatedTasks]) or []
    for one in found[:SHOWN_MAX]:
        click.echo(
            f"{one.queued} queued and {one.running} running tasks of {one.node_id} still ask for "
            "the work it had, and nothing can come of them: `aghsan task ls --node "
            f"{one.node_id} --status queued` (or running) lists its tasks, `aghsan task show ID` "
            "says which ask for that, and `aghsan task cancel ID` ends one",
            err=True,
        )
    if (more := len(found) - SHOWN_MAX) > 0:
        click.echo(f"{more} more nodes that inherit the work have such tasks", err=True)


def _facts(one: "views.BoundCorpus") -> list[tuple[str, object]]:
    from cli import tables

    parts = [
        (part, f"{of.documents} documents, {of.bytes:,} bytes")
        for part, of in one.corpus.parts.items()
    ]
    return [
        ("node", one.node_id),
        ("trains", tables.workload(one.workload)),
        ("corpus", one.corpus.name),
        *parts,
        ("digest", one.corpus.manifest),
        ("hidden as", one.corpus.hidden),
    ]
