"""What commands share on the command line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_API = "http://127.0.0.1:8000"


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


class Number(click.FloatRange):
    """A number in a range. NaN lies neither below nor above one, so it is refused by its name."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class Folder(click.Path):
    """A directory to write to. An empty name, as of a variable that is not set, is not this one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a directory.", param, ctx)
        return super().convert(value, param, ctx)


def words(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The callback of an argument that a server takes blank, and a person never means so."""
    if not value.strip():
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


def worker_timeout(command: F) -> F:
    """`--worker-timeout-sec`: when an HTTP worker counts as gone."""
    return click.option(
        "--worker-timeout-sec",
        default=90.0,
        show_default=True,
        type=Number(1, 86_400),
        help="Silence after which an HTTP worker is offline.",
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
