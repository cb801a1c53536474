"""`aghsan artifact ls|get|verify|gc`."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from cli import options, stored
from cli.client import Client
from cli.log import data_option
from core import errors

if TYPE_CHECKING:
    from core import chunks
    from core.marks import Mark, Marks
    from core.replay import Connected

SWEEP_SECONDS_MAX = 3600.0
DIGEST_LETTERS_MIN = 8
KINDS = ("candidate", "checkpoint", "corpus", "metrics", "payload", "telemetry")


class Row(NamedTuple):
    """An artifact that the log names, and whether its manifest is stored."""

    mark: "Mark"
    is_champion: bool
    is_stored: bool

    @property
    def state(self) -> str:
        """Whether it is needed, and there."""
        from core.marks import FOR_EVER

        is_needed = self.mark.needed_until == FOR_EVER
        if self.is_stored:
            return "live" if is_needed else "unneeded"
        return "lost" if is_needed else "swept"


@click.group(cls=options.Group)
def artifact() -> None:
    """List, save, check and sweep stored models, checkpoints, metrics and telemetry.

    All but `gc` read the data directory, whether `aghsan up` runs on it or not.
    """


@artifact.command("ls")
@data_option
@click.option("--kind", type=click.Choice(KINDS), help="Only those of one kind.")
@click.option("--node", "node_id", metavar="ID", help="Only those of one specialization.")
@click.option("--task", "task_id", metavar="ID", help="Only those of one task.")
@click.option("--all", "whole", is_flag=True, help="Those that are not needed any more too.")
@options.as_json
def list_artifacts(
    data: Path, kind: str | None, node_id: str | None, task_id: str | None, whole: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """List the artifacts that the log names, oldest first.

    live: needed; unneeded: its time to be swept comes; swept: gone; lost: needed, and not there.
    """
    rows = [
        row
        for row in stored.reading(data, _rows)
        if (kind is None or row.mark.kind == kind)
        and (node_id is None or row.mark.node_id == node_id)
        and (task_id is None or row.mark.task_id == task_id)
        and (whole or row.state in ("live", "lost"))
    ]
    if as_json:
        listed = [_plain(row) for row in rows]
        click.echo(json.dumps({"artifacts": listed}, ensure_ascii=False))
        return
    from cli import terminal

    if not rows:
        click.echo("no such artifacts", err=True)
        return
    columns = ["kind", "state", "id", "digest", "bytes", "node", "task", "named"]
    shown = [
        (
            "champion" if row.is_champion else row.mark.kind,
            row.state,
            row.mark.identity,
            row.mark.digest[:12],
            "" if row.mark.bytes < 0 else row.mark.bytes,
            row.mark.node_id,
            row.mark.task_id,
            terminal.when(_time(row.mark.at)),
        )
        for row in rows
    ]
    terminal.show(terminal.table(columns, shown))


@artifact.command()
@click.argument("identity", metavar="ID")
@click.argument("directory", metavar="DIR", type=options.Folder())
@data_option
@options.as_json
def get(identity: str, directory: Path, data: Path, as_json: bool) -> None:
    """Save the files of ID into DIR.

    DIR must not exist yet; every digest is checked. ID is a candidate, a specialization (its
    champion), or a manifest's digest or its beginning.
    """
    if directory.exists():
        raise errors.Invalid(f"{directory} is there already; name a folder that is not")
    mark, files = stored.reading(data, lambda connected: _fetched(connected, identity))
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    sizes = {name: len(content) for name, content in files.items()}
    if as_json:
        told = {"id": mark.identity, "digest": mark.digest, "directory": str(directory)}
        click.echo(json.dumps({**told, "files": sizes}, ensure_ascii=False))
        return
    from cli import terminal

    terminal.show(
        terminal.facts(
            [
                ("saved", str(directory)),
                (mark.kind, mark.identity),
                ("digest", mark.digest),
                *((name, f"{size:,} bytes") for name, size in sizes.items()),
            ]
        )
    )


@artifact.command()
@click.argument("identity", metavar="[ID]", required=False)
@data_option
@options.as_json
def verify(identity: str | None, data: Path, as_json: bool) -> None:
    """Compare ID, or all that is needed, with its digests.

    Exit code 1 where something is missing or damaged.
    """
    checked, size, faults = stored.reading(data, lambda connected: _verified(connected, identity))
    if as_json:
        told = {"ok": not faults, "artifacts": checked, "bytes": size, "faults": faults}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        from cli import terminal

        terminal.show(*faults, f"{checked} artifacts, {size:,} bytes read, {len(faults)} faults")
    if faults:
        raise click.exceptions.Exit(1)


@artifact.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@options.as_json
@options.api
def gc(dry_run: bool, as_json: bool, api: str) -> None:
    """Sweep what nothing needs any more.

    The server does so by itself, unless started with --no-sweep; what became unneeded only lately
    stays, as long as --sweep-after-hours of the server says. Candidates, champions, results, and
    the last checkpoints of tasks that are not completed stay too.
    """
    advice = "look with `aghsan artifact gc --dry-run`, then ask again"
    body: dict[str, object] = {"dry_run": dry_run}
    answer = Client(api, SWEEP_SECONDS_MAX).post("/artifacts/gc", body, advice=advice)
    if as_json:
        click.echo(answer.one("sweep"))
        return
    from cli import terminal, views

    done = answer.read("sweep", views.Sweep)
    terminal.show(
        terminal.facts(
            [
                ("would go" if dry_run else "swept", f"{done.chunks} chunks, {done.bytes:,} bytes"),
                ("spared", done.spared and f"{done.spared} chunks that somebody relies on"),
                ("live", f"{done.artifacts} artifacts"),
                ("kept", f"{done.live_chunks} chunks, {done.live_bytes:,} bytes"),
                ("lost", done.lost and f"{done.lost} artifacts; `aghsan audit` names them"),
                ("unfinished", done.unfinished),
            ]
        )
    )


async def _rows(connected: "Connected") -> list[Row]:
    from core.chunks import DESK
    from core.survey import READ_AT_ONCE, read_marks

    marks, _ = await read_marks(connected.log)
    store = connected.store
    digests = list({mark.digest for mark in marks.all})
    stored: set[str] = set()
    for first in range(0, len(digests), READ_AT_ONCE):
        some = digests[first : first + READ_AT_ONCE]
        found = await asyncio.gather(*(store.has(DESK, digest) for digest in some))
        stored.update(itertools.compress(some, found))
    champions = {*marks.champions.values(), *marks.of_budgets.values()}
    return [Row(mark, mark.identity in champions, mark.digest in stored) for mark in _each(marks)]


def _each(marks: "Marks") -> list["Mark"]:
    """What the log names, once: a champion is a candidate too."""
    each: dict[tuple[str, str, str], Mark] = {}
    for mark in marks.all:
        if mark.kind != "unknown":
            each.setdefault((mark.digest, mark.identity, mark.task_id), mark)
    return list(each.values())


def _found(marks: "Marks", identity: str) -> "Mark":
    """What a person means. Raises NotFound, Invalid where it may be several."""
    wanted = marks.champions.get(identity, identity)
    found = {mark.digest: mark for mark in _each(marks) if mark.identity == wanted}
    if not found and len(identity) >= DIGEST_LETTERS_MIN:
        found = {mark.digest: mark for mark in _each(marks) if mark.digest.startswith(identity)}
    if not found:
        raise errors.NotFound(
            f"the log names no artifact {identity}, nor a champion there; `aghsan artifact ls"
            " --all` lists what it names"
        )
    if len(found) > 1:
        raise errors.Invalid(f"{identity} may be any of {len(found)} artifacts; give its digest")
    return next(iter(found.values()))


async def _fetched(connected: "Connected", identity: str) -> "tuple[Mark, dict[str, bytes]]":
    from core import chunks
    from core.survey import read_marks

    marks, _ = await read_marks(connected.log)
    mark = _found(marks, identity)
    store = connected.store
    try:
        manifest = await _manifest(store, mark)
        files = {file.name: await chunks.assemble(store, manifest, file.name)
                 for file in manifest.files}  # fmt: skip
    except errors.NotFound as error:
        raise errors.NotFound(f"{mark.kind} {mark.identity} is not whole: {error}") from error
    return mark, files


async def _manifest(store: "chunks.ChunkStore", mark: "Mark") -> "chunks.Manifest":
    from core.chunks import DESK, decode_manifest

    return decode_manifest(await store.get(DESK, mark.digest))


async def _verified(connected: "Connected", identity: str | None) -> tuple[int, int, list[str]]:
    from core.audit.artifacts import Named, check
    from core.audit.findings import Findings
    from core.marks import FOR_EVER
    from core.survey import read_marks

    marks, _ = await read_marks(connected.log)
    if identity is None:
        wanted = [mark for mark in _each(marks) if mark.needed_until == FOR_EVER]
    else:
        wanted = [_found(marks, identity)]
    named = {
        mark.digest: Named(0, f"{mark.kind} {mark.identity}", mark.digest, mark.writer, mark.bytes)
        for mark in wanted
    }
    findings = Findings()
    stored = await check(connected.store, named.values(), findings)
    faults = [one.detail for one in findings.shown]
    if more := findings.total - len(faults):
        faults.append(f"and {more} more")
    return stored.artifacts, stored.bytes, faults


def _plain(row: Row) -> dict[str, object]:
    mark = row.mark
    return {
        "kind": mark.kind,
        "state": row.state,
        "id": mark.identity,
        "champion": row.is_champion,
        "digest": mark.digest,
        "writer": mark.writer,
        "bytes": None if mark.bytes < 0 else mark.bytes,
        "node_id": mark.node_id or None,
        "task_id": mark.task_id or None,
        "named_at": _time(mark.at),
    }


def _time(at: int) -> str:
    from core.events import isoformat

    return isoformat(at)
