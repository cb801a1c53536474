"""`aghsan status`: the network in figures, its workers, what runs."""

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from cli import options
from cli.client import Answer, Client, segment
from core import errors

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cli import views

RUNNING_SHOWN_MAX = 20
STUCK_SHOWN_MAX = 5
ASKING_SHOWN_MAX = 5
_RUNNING: dict[str, str | int | None] = {"status": "running", "limit": RUNNING_SHOWN_MAX}


@click.command()
@click.option("--watch", is_flag=True, help="Go on showing it until Ctrl-C.")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=options.Number(0.1, 3600),
    help="Seconds between two looks of --watch.",
)
@options.as_json
@options.api
def status(api: str, as_json: bool, interval: float, watch: bool) -> None:
    """Show the network in figures, its workers, and what runs.

    With --json all of that as one object; with --watch too, one line a look.
    """
    server = Client(api)
    if not watch:
        _print_json(server) if as_json else _show(server)
        return
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            while True:
                _print_json(server)
                time.sleep(interval)
        _watch(server, interval)


def _print_json(server: Client) -> None:
    click.echo(msgspec.json.encode(_told(server)))


def _told(server: Client) -> dict[str, object]:
    """All that is shown, by name; without what an older server does not tell."""
    from cli import views

    answer = server.get("/status")
    told: dict[str, object] = answer.read("network", dict[str, object])
    told["not_ready"] = server.not_ready()
    asking = _asking(server)
    more = {
        "awaiting_judgement": _awaiting(server),
        "closed_tasks": _closed_count(server),
        "decisions_waiting": asking and asking.total,
        "asking_nodes": asking and [one.node_id for one in asking.nodes],
    }
    told |= {name: value for name, value in more.items() if value is not None}
    with contextlib.suppress(errors.NotFound):
        workers = server.get("/workers")
        running = server.get("/tasks", _RUNNING)
        told["workers"] = workers.read("workers", msgspec.Raw)
        told["running"] = running.read("tasks", msgspec.Raw)
        told["stuck"] = _stuck(server, workers.read("workers", list[views.Worker]))
    return told


def _show(server: Client) -> None:
    from cli import terminal

    terminal.show(_picture(server))


def _watch(server: Client, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from cli import terminal

    console = terminal.console()
    if not console.is_terminal:
        _watch_changes(server, interval)
        return
    seen = _picture(server)  # a server that was never there is an error, not a wait
    with Live(seen, console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(interval)
            try:
                seen = _picture(server)
                live.update(seen, refresh=True)
            except errors.Unavailable as error:
                live.update(Group(seen, Text(f"{error}; trying again", "red")), refresh=True)


def _watch_changes(server: Client, interval: float) -> None:
    """Into a pipe goes one line for each change."""
    now = said = _words(server)
    click.echo(now)
    while True:
        time.sleep(interval)
        try:
            now = _words(server)
        except errors.Unavailable as error:
            now = f"{error}; trying again"
        if now != said:
            click.echo(now)
        said = now


def line(answer: Answer) -> str:
    """The answer to `GET /status` in one line."""
    from cli import views

    network = answer.read("network", views.Network)
    tasks = network.tasks
    return (
        f"{network.nodes} nodes, {network.workers_online} of {network.workers_total} workers "
        f"online, tasks: {tasks.queued} queued, {tasks.running} running, {tasks.completed} "
        f"completed, {tasks.total} in all"
    )


def _stuck(server: Client, workers: "list[views.Worker]") -> list[str]:
    """Queued tasks that no worker online can train, one for each node of which all are unfit for
    something."""
    from cli import views

    unfit = [
        {mark.node_id for mark in one.unfit} for one in workers if one.is_online and not one.pause
    ]
    found = []
    for node_id in sorted(set.intersection(*unfit))[:STUCK_SHOWN_MAX] if unfit else []:
        query: dict[str, str | int | None] = {"status": "queued", "node_id": node_id, "limit": 1}
        for queued in server.get("/tasks", query).read("tasks", list[views.Task]):
            one = server.get(f"/tasks/{segment(queued.task_id)}").read("task", views.Task)
            if one.waits:
                found.append(f"{one.task_id} on {node_id} waits: {'; '.join(one.waits)}")
    return found


def _words(server: Client) -> str:
    answer = server.get("/status")
    more = (
        *(_unready(server), _backlog(server), *_decisions(server)[:1]),
        *(*_unattended(answer)[:1], *_closed(server)[:1]),
    )
    return "; ".join([line(answer), *filter(None, more)])


def _unready(server: Client) -> str:
    """Why the server cannot do all of its work, such as a full disk; "" where it can."""
    return "; ".join(server.not_ready())


def _unattended(answer: Answer) -> list[str]:
    """That queued tasks have no worker, English and Arabic; empty where they have one."""
    from cli import views

    network = answer.read("network", views.Network)
    if network.workers_online or not network.tasks.queued:
        return []
    return [
        "no worker is online; start one with `aghsan agent`",
        "لا عامل متصل؛ شغّل واحدًا بالأمر `aghsan agent`",
    ]


def _closed(server: Client) -> list[str]:
    """How many tasks wait for nobody since a record of theirs is lost, and where to look, English
    and Arabic; empty where none does, or the server is older."""
    count = _closed_count(server)
    if not count:
        return []
    tasks = "1 task is" if count == 1 else f"{count} tasks are"
    english = (
        f"{tasks} closed, since a record was lost, and given to nobody: `aghsan task ls --closed` "
        "lists them, `aghsan task show ID` says what to do"
    )
    arabic = (
        f"مهام مغلقة لفقدان قيد منها، ولا تُسند إلى أحد: {count}؛ يسردها `aghsan task ls --closed`، "
        "ويبيّن `aghsan task show ID` ما العمل"
    )
    return [english, arabic]


def _closed_count(server: Client) -> int | None:
    try:
        return server.get("/tasks", {"limit": 1}).optional("closed", int)
    except errors.NotFound:
        return None


class _Asking(NamedTuple):
    """How many nodes wait for a person, and the first of them."""

    total: int
    nodes: "list[views.AskingNode]"


def _asking(server: Client) -> _Asking | None:
    """None where the server is older."""
    from cli import views

    try:
        answer = server.get("/questions", {"limit": ASKING_SHOWN_MAX})
    except errors.NotFound:
        return None
    return _Asking(answer.read("total", int), answer.read("nodes", list[views.AskingNode]))


def _decisions(server: Client) -> list[str]:
    """At which nodes something waits for a person, English and Arabic; empty where nothing does."""
    asking = _asking(server)
    if asking is None or not asking.total:
        return []
    count, names = asking.total, ", ".join(one.node_id for one in asking.nodes)
    names += ", …" if count > len(asking.nodes) else ""
    decisions = "1 decision waits" if count == 1 else f"{count} decisions wait"
    return [
        f"{decisions} for you: {names}; `aghsan champion show NODE`",
        f"قرارات تنتظرك: {count}، في {names}؛ `aghsan champion show NODE`",
    ]


def _awaiting(server: Client) -> int | None:
    """How many rounds wait for the judge; None where the server is older."""
    try:
        return server.get("/rounds", {"limit": 1}).optional("awaiting_judgement", int)
    except errors.NotFound:
        return None


def _backlog(server: Client) -> str:
    """Why the orchestrator waits for the judge; "" where it does not, or the server is older."""
    awaiting = _awaiting(server)
    if not awaiting:
        return ""
    from orchestrator.feeder import backlog

    return backlog(awaiting)


def _picture(server: Client) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from cli import tables, terminal, views

    answer = server.get("/status")
    parts: list[RenderableType] = [Text(line(answer))]
    for words in filter(None, (_unready(server), _backlog(server))):
        parts.append(Text(terminal.clean(words), "yellow"))
    notes = (*_decisions(server), *_unattended(answer), *_closed(server))
    parts += [Text(terminal.clean(words), "yellow") for words in notes]
    # A server with nothing but the nine routes is shown as far as it goes.
    with contextlib.suppress(errors.NotFound):
        workers = server.get("/workers").read("workers", list[views.Worker])
        if workers:
            parts += ["", tables.workers(workers)]
        running = server.get("/tasks", _RUNNING).read("tasks", list[views.Task])
        if running:
            parts += ["", tables.tasks(running)]
        parts += [Text(words, "yellow") for words in _stuck(server, workers)]
    return Group(*parts)
