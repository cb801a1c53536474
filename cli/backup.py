"""`aghsan backup` and `aghsan restore`: a data directory in one file, and back."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import options
from cli.log import data_option, ending_on_sigterm, times

if TYPE_CHECKING:
    from core.backup import Made, Restored

SAY_SECONDS = 2.0
MIB = 1024 * 1024


@click.command()
@click.argument("file", type=options.File())
@data_option
@options.as_json
def backup(file: Path, data: Path, as_json: bool) -> None:
    """Save everything that is needed to go on elsewhere into FILE, whether `up` runs or not.

    The log, refusals, artifacts and keys. Whoever has FILE can be you: keep it as you keep keys.
    """
    import msgspec

    from core.backup import make

    began = time.monotonic()
    with ending_on_sigterm():
        made = make(file, data, progress())
    if as_json:
        told = {**msgspec.to_builtins(made), "seconds": round(time.monotonic() - began, 3)}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        _show_made(made)


@click.command()
@click.argument("file", type=options.File())
@click.option(
    "--data",
    required=True,
    type=options.Folder(),
    help="Where the data directory is to be; nothing may be there yet.",
)
@click.option(
    "--accept-violations",
    is_flag=True,
    help="Restore a log that breaks its rules too, as it was when saved.",
)
@options.as_json
def restore(file: Path, data: Path, accept_violations: bool, as_json: bool) -> None:
    """Make a data directory of the backup FILE, audited, ready for `aghsan up --data DIR`.

    It appears only once all is well; whatever goes wrong leaves nothing behind.
    """
    import msgspec

    from core.backup import restore as unpack

    began = time.monotonic()
    with ending_on_sigterm():
        restored = unpack(file, data, progress(), accept_violations=accept_violations)
    if as_json:
        told = {**msgspec.to_builtins(restored), "seconds": round(time.monotonic() - began, 3)}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        _show_restored(restored)


def progress() -> Callable[[str, int, int], None]:
    """Lines on stderr every few seconds, so that what takes long is seen to go on."""
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not total:
            sys.stderr.write(f"{what}\n")
        elif now - last >= SAY_SECONDS:
            last = now
            sys.stderr.write(f"{what}: {done // MIB} of {total // MIB} MiB\n")

    return show


def _show_made(made: "Made") -> None:
    from cli import terminal

    terminal.show(
        terminal.facts(
            [
                ("backup", made.file),
                ("bytes", f"{made.bytes:,}"),
                ("sha256", made.sha256),
                ("last seq", made.last_seq),
                ("chunks", made.chunks),
                ("left out", f"{made.left_out} chunks with wrong names" if made.left_out else ""),
                ("refusals", made.refusals),
            ]
        )
    )
    if not made.judge_key:
        terminal.show(
            "",
            "The judge's key is not in this directory, so it is not in the backup: save it too.",
        )


def _kept_or_not(violations: int) -> str:
    if violations:
        return f"it breaks its rules {times(violations)}, as it did when it was saved"
    return "it keeps all rules"


def _show_restored(restored: "Restored") -> None:
    from cli import terminal

    terminal.show(
        terminal.facts(
            [
                ("restored", restored.data),
                ("made at", terminal.when(restored.made_at)),
                ("last seq", restored.last_seq),
                ("chunks", restored.chunks),
                ("refusals", restored.refusals),
                ("audit", _kept_or_not(restored.violations_total)),
            ]
        ),
        "",
        f"`aghsan up --data {restored.data}` goes on from there. Let only one of them run: the"
        " restored one, or the one that was saved.",
    )
    if restored.loss:
        terminal.show(
            f"What ran at this place knew more than the backup: {restored.loss}. Start once with"
            " --accept-loss."
        )
