"""`aghsan enqueue` and `aghsan task ls|show|cancel|retry`."""

import uuid

import click
import msgspec

from cli import options
from cli.client import Answer, Client, naming, segment
from core.methods import METHODS

KEY_CHARS_MAX = 256


def _require_key(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """A header holds it, so it is of printable ASCII, and spaces at its ends would get lost."""
    if value is None:
        return None
    is_plain = value.isascii() and value.isprintable() and value == value.strip()
    if not value or not is_plain or len(value) > KEY_CHARS_MAX:
        raise click.BadParameter(
            f"a key has 1 to {KEY_CHARS_MAX} letters, digits and signs of ASCII, and no space at "
            "its ends."
        )
    return value


@click.command()
@click.argument("topic", callback=options.words)
@click.option("--node", "node_id", metavar="ID", help="Which specialization. Default: the root.")
@click.option(
    "--priority",
    default=5,
    show_default=True,
    type=click.IntRange(1, 10),
    help="Higher runs earlier.",
)
@click.option(
    "--role",
    type=click.Choice(["dual", "evolver", "reinventor"]),
    help="Which rivals train. Default: dual, both of them; a merge is neither.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How it is trained. Default: auto, what fits.",
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="ID",
    help="A candidate to merge, up to four. Default: the champion and what its last round judged.",
)
@click.option(
    "--budget-seconds",
    type=options.Number(0.1, 86_400),
    help="Wall seconds. Default: the worker's --train-sec.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Default: chosen by the server.")
@click.option(
    "--key",
    callback=_require_key,
    help="Asked for again under the same key, it is the same task.  [default: a new one]",
)
@options.as_json
@options.api
def enqueue(
    topic: str,
    node_id: str | None,
    priority: int,
    role: str | None,
    method: str | None,
    parents: tuple[str, ...],
    budget_seconds: float | None,
    seed: int | None,
    key: str | None,
    as_json: bool,
    api: str,
) -> None:
    """Ask for training on TOPIC."""
    if parents and method != "merge":
        raise click.UsageError("--parent goes with --method merge")
    body: dict[str, object] = {"topic": topic, "node_id": node_id, "priority": priority}
    optional = {"role": role, "method": method, "budget_seconds": budget_seconds, "seed": seed}
    body |= {name: given for name, given in optional.items() if given is not None}
    if parents:
        body["parents"] = list(parents)
    key = key or uuid.uuid4().hex
    again = options.command_line(click.get_current_context(), key=key)
    advice = f"this asks for the same task, and queues no second one:\n  {again}"
    with naming(node_id or ""):
        answer = Client(api).post("/training/enqueue", body, advice=advice, idempotency_key=key)
    _say(answer, as_json, "{task_id} is {status} for {node_id}, priority {priority}")


@click.group(cls=options.Group)
def task() -> None:
    """List, show, cancel and retry tasks."""


@task.command("ls")
@click.option(
    "--status", type=click.Choice(["queued", "running", "completed", "failed", "cancelled"])
)
@click.option("--node", "node_id", metavar="ID", help="Only those of one specialization.")
@click.option(
    "--closed", is_flag=True, help="Those alone that lost a record and are given to nobody."
)
@click.option(
    "--after", metavar="NEXT", help="Go on to those older than a task, or where a page ended."
)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@options.as_json
@options.api
def list_tasks(
    status: str | None,
    node_id: str | None,
    closed: bool,
    after: str | None,
    limit: int,
    as_json: bool,
    api: str,
) -> None:
    """List tasks, newest first."""
    query: dict[str, str | int | None] = {
        "status": status,
        "node_id": node_id,
        "closed": "true" if closed else None,
        "newest": "true",
        "after": after,
        "limit": limit,
    }
    server = Client(api)
    answer = server.get("/tasks", query)
    if node_id is not None and not answer.read("tasks", list[msgspec.Raw]):
        server.require_node(node_id)
    if as_json:
        click.echo(answer.page())
        return
    from cli import tables, terminal, views

    tasks = answer.read("tasks", list[views.Task])
    if not tasks:
        click.echo("no such tasks", err=True)
        return
    terminal.show(tables.tasks(tasks))
    terminal.say_more(answer.following(), "older ones")


@task.command()
@click.argument("task_id")
@click.option("--follow", "-f", "follows", is_flag=True, help="Plot how it goes until it ends.")
@options.as_json
@options.api
def show(task_id: str, follows: bool, as_json: bool, api: str) -> None:
    """Show one task with its attempts, its losses and its result.

    With --follow and --json: what is new of its telemetry, a line each, and the task at last.
    """
    server = Client(api)
    if follows:
        from cli import follow

        try:
            answer = follow.follow(server, task_id, as_json=as_json)
        except KeyboardInterrupt:
            return
    else:
        answer = server.get(f"/tasks/{segment(task_id)}")
    if as_json:
        click.echo(answer.one("task"))
        return
    _show(server, answer)


@task.command()
@click.argument("task_id")
@click.option("--reason", default="", help="Kept with the task.")
@options.as_json
@options.api
def cancel(task_id: str, reason: str, as_json: bool, api: str) -> None:
    """Withdraw a task that is not finished."""
    body: dict[str, object] = {"reason": reason} if reason else {}
    path = f"/tasks/{segment(task_id)}/cancel"
    answer = Client(api).post(path, body, advice=_look_at(task_id))
    _say(answer, as_json, "{task_id} is {status}")


@task.command()
@click.argument("task_id")
@options.as_json
@options.api
def retry(task_id: str, as_json: bool, api: str) -> None:
    """Queue a failed or cancelled task again."""
    path = f"/tasks/{segment(task_id)}/retry"
    answer = Client(api).post(path, {}, advice=_look_at(task_id))
    _say(answer, as_json, "{task_id} is {status}")


def _look_at(task_id: str) -> str:
    return f"look with `aghsan task show {task_id}`, then ask again"


def _say(answer: Answer, as_json: bool, sentence: str) -> None:
    if as_json:
        click.echo(answer.one("task"))
        return
    from cli import views

    one = answer.read("task", views.Task)
    click.echo(
        sentence.format(
            task_id=one.task_id, status=one.status, node_id=one.node_id, priority=one.priority
        )
    )


def _show(server: Client, answer: Answer) -> None:
    from cli import follow, tables, terminal, views

    one = answer.read("task", views.Task)
    rivals = follow.told_of(server, one.task_id) if one.attempts else []
    console = terminal.console()
    drawn = follow.charts(rivals, console)
    is_drawn = bool(drawn) and console.is_terminal
    metrics = one.result.metrics if one.result else {}
    terminal.show(
        terminal.facts(
            [
                ("task", one.task_id),
                ("status", one.status),
                ("node", one.node_id),
                ("workload", tables.workload(one.workload)),
                ("role", one.role),
                *tables.methods(one),
                ("priority", one.priority),
                ("budget", f"{one.budget_seconds:g} s" if one.budget_seconds else None),
                ("seed", one.seed),
                ("worker", one.assigned_worker),
                ("created", terminal.when(one.created_at)),
                ("claimed", terminal.when(one.claimed_at)),
                ("completed", terminal.when(one.completed_at)),
                ("base", one.base.candidate_id if one.base else None),
                *(("parent", parent.candidate_id) for parent in one.parents),
                ("round", one.round_id),
                *tables.metrics(metrics),
                *tables.telemetry(rivals),
                *([] if is_drawn else tables.losses(one.losses)),
                *(("waits", why) for why in one.waits[:1]),
                *(("", why) for why in one.waits[1:]),
                *(("why", reason) for reason in one.reasons),
                ("topic", one.topic),
            ]
        )
    )
    if is_drawn:
        terminal.show("", *drawn)
    if results := tables.rivals(metrics):
        terminal.show("", results)
    if one.attempts:
        terminal.show("", tables.attempts(one.attempts))
    if one.log_tail:
        terminal.show("", terminal.block(one.log_tail))
