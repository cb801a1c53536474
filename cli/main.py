"""`aghsan`: every command by name, each imported only when it is called."""

import contextlib
import importlib
import io
import os
import sys
from typing import Any, NamedTuple, NoReturn

import click

from cli import options
from core import errors

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 4
EXIT_CONFLICT = 5
EXIT_UNREACHABLE = 69
EXIT_INTERRUPTED = 130


class Entry(NamedTuple):
    """A command that is not imported yet: its module, its name there, its line in the help."""

    module: str
    attribute: str
    summary: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Run": {
        "up": Entry("cli.up", "up", "Run everything on this machine."),
        "agent": Entry("cli.agent", "agent", "Attach this machine as a worker."),
        "orchestrator": Entry("cli.orchestrator", "orchestrator", "Keep a server's queue filled."),
        "gateway": Entry("cli.gateway", "gateway", "Run the control plane alone."),
        "judge": Entry("cli.judge", "judge", "Judge candidates on hidden cases."),
    },
    "Ask a running server": {
        "status": Entry("cli.status", "status", "Show the network, its workers, what runs."),
        "enqueue": Entry("cli.task", "enqueue", "Ask for training."),
        "expand": Entry("cli.node", "expand", "Grow a specialization below another."),
        "task": Entry("cli.task", "task", "List, show, cancel and retry tasks."),
        "worker": Entry("cli.worker", "worker", "List, show, pause and resume workers."),
        "corpus": Entry("cli.corpus", "corpus", "Let a specialization train on a folder of text."),
        "node": Entry("cli.node", "node", "Show specializations."),
        "round": Entry("cli.round", "round_", "List and show rounds and their verdicts."),
        "rivals": Entry("cli.rivals", "rivals", "Show what each rival has won, and what it cost."),
        "champion": Entry("cli.champion", "champion", "Show, choose, save, ask a node's model."),
        "gates": Entry("cli.gates", "gates", "Show or set by what a node's models are judged."),
    },
    "Without a server": {
        "train": Entry("cli.train", "train", "Train one model here."),
        "replay": Entry("cli.log", "replay", "Rebuild the state from the log alone."),
        "audit": Entry("cli.log", "audit", "Check that the log keeps the rules."),
        "artifact": Entry("cli.artifact", "artifact", "List, save, check, sweep what is stored."),
        "backup": Entry("cli.backup", "backup", "Save everything into one file."),
        "restore": Entry("cli.backup", "restore", "Make a data directory of a backup."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(options.Group):
    """The commands of the table, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command), f"{entry.module} holds no such command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.summary) for name, entry in entries.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.AghsanError as error:
            click.echo(f"aghsan: {error}", err=True)
            raise click.exceptions.Exit(exit_code(error)) from error
        except OSError as error:
            if error.filename is None:
                raise
            click.echo(f"aghsan: {error.filename}: {error.strerror}", err=True)
            raise click.exceptions.Exit(EXIT_FAILED) from error
        except KeyboardInterrupt:
            click.echo(err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def exit_code(error: errors.AghsanError) -> int:
    """The exit code that tells a script what kind of error it was."""
    match error:
        case errors.Invalid():
            return EXIT_USAGE
        case errors.NotFound():
            return EXIT_NOT_FOUND
        case errors.Conflict() | errors.DirectoryInUse() | errors.OtherTraining():
            return EXIT_CONFLICT
        case errors.Unavailable():
            return EXIT_UNREACHABLE
        case _:
            return EXIT_FAILED


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib import metadata

        try:
            click.echo(f"aghsan {metadata.version('aghsan')}")
        except metadata.PackageNotFoundError:
            click.echo("aghsan, run from its sources")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and end.",
)
def aghsan() -> None:
    """A tree of specializations that trains itself: agents train, a judge decides on hidden data,
    and every step is an event.

    Exit codes: 0 ok, 1 failed (a damaged log too), 2 usage, 4 not found, 5 conflict (a directory or
    a worker id that another uses, too), 69 server unreachable.
    """


def require_utf8() -> None:
    """Begin anew in UTF-8 mode where the locale asks for less: names of files are Arabic too."""
    # Windows has no such locale, and an exec there would not keep the process.
    if os.name == "posix" and sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def configure_stdio() -> None:
    """Write UTF-8 to stdout and stderr, and never fail for a character."""
    for stream in (sys.stdout, sys.stderr):
        # Topics are Arabic as often as not, also where a pipe or LANG=C asks for less.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def main() -> NoReturn:
    """The entry point; never returns."""
    require_utf8()
    configure_stdio()
    with contextlib.suppress(KeyboardInterrupt):
        aghsan.main(prog_name="aghsan")
    sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
