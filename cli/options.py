"""What commands share on the command line."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from core import errors

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_API = "http://127.0.0.1:8000"
PICTURES = (".png", ".svg")
PRICE_MAX = 1_000_000
"""As core.projections.workers has it, which is not imported for a help page."""
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and a symbol, by Unicode's classes, of which nothing is seen."""
_CREDENTIALS = re.compile(r"(?<=:)//[^/@]*@")


class Group(click.Group):
    """A group that says which command was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            ctx.fail(f"No such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


_DIGITS = str.maketrans("٠١٢٣٤٥٦٧٨٩٫", "0123456789.")


def western(number: str) -> str:
    """A number as programs write it, where its digits and its point may be Arabic."""
    return number.translate(_DIGITS)


class Number(click.FloatRange):
    """A number in a range. NaN lies neither below nor above one, so it is refused by its name."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        given: Any = western(value) if isinstance(value, str) else value
        number = float(super().convert(given, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class Setting(click.ParamType[tuple[str, float]]):
    """NAME=NUMBER, as a pair."""

    name = "setting"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, is_given, number = str(value).partition("=")
        if not name or not is_given:
            self.fail(f"{value!r} is not NAME=NUMBER.", param, ctx)
        try:
            parsed = float(western(number))
        except ValueError:
            self.fail(f"{number!r} in {value!r} is no number.", param, ctx)
        if not math.isfinite(parsed):
            self.fail(f"{number} in {value!r} is no finite number.", param, ctx)
        return name, parsed


class _Place(click.Path):
    """An empty name, as of a variable that is not set, is not the directory at hand."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(f"it is empty; name a {self.name}.", param, ctx)
        return super().convert(value, param, ctx)


class Folder(_Place):
    """A directory, there or yet to be made."""

    def __init__(self, *, writable: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=False, writable=writable)


class File(_Place):
    """A file, there or yet to be made."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)


class Picture(File):
    """A file for a picture, of a kind that can be drawn."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if path.suffix.lower() not in PICTURES:
            self.fail(f"{value} ends in neither {' nor '.join(PICTURES)}.", param, ctx)
        return path


def made(folder: Path, what: str, advice: str) -> Path:
    """A directory by its full name, there. Raises errors.DataDirectoryError.

    `what` it is begins the message, `advice` ends it.
    """
    try:
        folder = folder.resolve()
        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, UnicodeError) as error:  # RuntimeError: links in a circle
        named = not isinstance(error, UnicodeError)
        why = (getattr(error, "strerror", "") or error) if named else "its name is no UTF-8 text"
        raise errors.DataDirectoryError(
            f"{what} {folder} cannot be used: {why}. {advice} that this user may make and write to."
        ) from error
    return folder


def command_line(ctx: click.Context, **given: str) -> str:
    """What was typed, as the shell takes it, with these options in place of those of their names.

    Credentials in an address are not shown: a placeholder stands for them.
    """
    import shlex
    import subprocess

    from core import platforms

    parts, arguments = ctx.command_path.split(), list[str]()
    for param in ctx.command.params:
        name = str(param.name)
        typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if isinstance(param, click.Argument):
            arguments.append(str(ctx.params[name]))
        elif name in given:
            parts += [param.opts[0], given[name]]
        elif typed and isinstance(param, click.Option):
            parts += _as_typed(param, ctx.params[name])
    if any(one.startswith("-") for one in arguments):
        parts.append("--")
    parts += arguments
    return subprocess.list2cmdline(parts) if platforms.WINDOWS else shlex.join(parts)


def _as_typed(option: click.Option, value: Any) -> list[str]:
    name = option.opts[0]
    if option.is_flag:
        return [name]
    values = value if option.multiple else (value,)
    return [part for one in values for part in (name, _CREDENTIALS.sub("//NAME:TOKEN@", str(one)))]


def words(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The callback of an argument that a server takes blank, and a person never means so."""
    import unicodedata

    # Marks, joiners and fillers show nothing where nothing else is.
    shown = (unicodedata.category(letter)[0] in "LNPS" for letter in value if letter not in FILLERS)
    if not any(shown):
        raise click.BadParameter("it is blank; give it some words.", ctx, param)
    return value


def api(command: F) -> F:
    """`--api`: which server is asked."""
    return click.option(
        "--api",
        envvar="AGHSAN_API",
        default=DEFAULT_API,
        show_default=True,
        show_envvar=True,
        help="The server's address.",
    )(command)


def as_json(command: F) -> F:
    """`--json`: one JSON object a line, for programs.

    One thing (a task, a node) is that object as the server wrote it; a list is `{"tasks": [...],
    "next": ...}`, the server's answer without its `status`.
    """
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def budget(command: F) -> F:
    """`--budget`: which throne of a node is meant."""
    return click.option(
        "--budget",
        default="",
        metavar="NAME",
        help="The champion of this budget, not the node's own.",
    )(command)


def worker_timeout(command: F) -> F:
    """`--worker-timeout-sec`: when an HTTP worker counts as gone."""
    return click.option(
        "--worker-timeout-sec",
        default=90.0,
        show_default=True,
        type=Number(1, 86_400),
        help="Silence after which an HTTP worker is offline.",
    )(command)


def sweeping(command: F) -> F:
    """`--no-sweep` and `--sweep-after-hours`: whether and when unneeded artifacts go."""
    off = click.option(
        "--no-sweep",
        is_flag=True,
        help="Keep artifacts that nothing needs; `aghsan artifact gc` sweeps by hand.",
    )
    after = click.option(
        "--sweep-after-hours",
        default=24.0,
        show_default=True,
        type=Number(1, 87_600),
        help="How long artifacts that nothing needs are kept at least.",
    )
    return off(after(command))


def quotas(command: F) -> F:
    """`--quota-gib` and `--worker-quota-gib`: how much may be stored."""
    whole = click.option(
        "--quota-gib",
        default=0.0,
        type=Number(0.0, 1_000_000),
        help="The most that all artifacts may take; 0: what CHUNKS may hold (16).",
    )
    each = click.option(
        "--worker-quota-gib",
        default=0.0,
        type=Number(0.0, 1_000_000),
        help="The most that those of one worker may take; 0: all of it.",
    )
    return whole(each(command))


def artifacts(command: F) -> F:
    """`--artifacts`: where artifacts lie, if not in CHUNKS."""
    return click.option(
        "--artifacts",
        default="",
        metavar="s3://BUCKET/PREFIX",
        help="Where artifacts stay, by the AWS_ variables of the environment; the first start of a "
        "data directory says so for good. Default: nats-server.",
    )(command)


def quiet_folder(command: F) -> F:
    """`--quiet-folder`: where a judge asks the agents beside it for quiet."""
    return click.option(
        "--quiet-folder",
        type=Folder(),
        help="A folder that judge and agents of one machine share: while the judge measures "
        "latency, for at most 3 s, the agents' trainings stand still. Default: they go on.",
    )(command)


def price(command: F) -> F:
    """`--price-per-hour`: what an agent costs."""
    return click.option(
        "--price-per-hour",
        type=Number(0.0, PRICE_MAX),
        help="What this machine costs per hour, in whatever unit all workers' prices are in: the "
        "ledger of rivals then tells what they cost, and the orchestrator weighs it.",
    )(command)


def http_lease(command: F) -> F:
    """`--http-lease-sec`: when the task of a silent HTTP worker is claimable again."""
    return click.option(
        "--http-lease-sec",
        default=1800.0,
        show_default=True,
        type=Number(1, 604_800),
        help="How long an HTTP worker may train in silence.",
    )(command)
