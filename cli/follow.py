"""How a task goes, shown while it does: what `aghsan task show` plots and follows."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli import figures, plot, terminal, views
from cli.client import Answer, Client, segment
from core import errors

if TYPE_CHECKING:
    from rich.console import RenderableType

POLL_SECONDS = 1.0
LINE_SECONDS = 2.0
TASK_SECONDS = 5.0
"""How often all else of a task is asked for."""
ENDED = ("completed", "failed", "cancelled")
BAR_WIDTH = 16
CHART_WIDTH_MAX = 100
CHART_HEIGHTS = (4, 12)
LINES_BESIDE = 8
"""Of a terminal, left to other things than curves."""


class Follower:
    """Asks for what is new of one task, and holds what there is."""

    def __init__(self, server: Client, task_id: str) -> None:
        self._server = server
        self._path = f"/tasks/{segment(task_id)}"
        self._after: str | None = None
        self.rivals: dict[str, views.RivalTelemetry] = {}
        self.status = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED

    def task(self) -> Answer:
        """All else of the task. Raises as `Client.get` does."""
        return self._server.get(self._path)

    def ask(self) -> tuple[Answer, views.Telemetry]:
        """What is new; it is held from then on. Raises as `Client.get` does."""
        try:
            answer = self._server.get(f"{self._path}/telemetry", {"after": self._after})
        except errors.Unavailable:
            self._after = None  # what comes back may have forgotten, or begun anew
            raise
        news = answer.read("telemetry", views.Telemetry)
        self._after, self.status = news.next, news.status or ""
        if news.whole:
            self.rivals = {}
        for one in news.rivals:
            before = self.rivals.get(one.rival)
            if before is None:
                self.rivals[one.rival] = one
            else:
                before.points += one.points
                before.total_steps = one.total_steps
        return answer, news


def follow(server: Client, task_id: str, *, as_json: bool) -> Answer:
    """Show how a task goes until it ends; the task then.

    Raises as `Client.get` does, but waits for a server that was there.
    """
    follower = Follower(server, task_id)
    task = follower.task()
    console = terminal.console()
    if as_json:
        _follow_json(follower)
    elif console.is_terminal and not console.is_dumb_terminal:
        _follow_live(follower, console, task)
    else:
        _follow_lines(follower)
    return follower.task()


def _looks(follower: Follower) -> Iterator[tuple[Answer, views.Telemetry] | str]:
    """What is new, look by look until the task has ended; or why it cannot be told now."""
    while not follower.has_ended:
        try:
            yield follower.ask()
        except errors.Unavailable as error:
            yield f"{error}; trying again"
        if not follower.has_ended:
            time.sleep(POLL_SECONDS)


def _follow_json(follower: Follower) -> None:
    for look in _looks(follower):
        if not isinstance(look, str) and (look[1].rivals or follower.has_ended):
            click.echo(look[0].one("telemetry"))


def _follow_lines(follower: Follower) -> None:
    """A line every few seconds, and one for each change of status."""
    said, status, due = "", "", 0.0
    for look in _looks(follower):
        line = look if isinstance(look, str) else _line(look[1])
        changed = isinstance(look, str) or follower.status != status
        if line and line != said and (changed or time.monotonic() >= due):
            click.echo(line)
            said, due = line, time.monotonic() + LINE_SECONDS
        status = follower.status


def _line(news: views.Telemetry) -> str:
    for one in reversed(news.rivals):
        if one.points:
            return ", ".join([one.rival, *figures.point(one.points[-1], one.total_steps)])
    return news.status or ""


def _follow_live(follower: Follower, console: Console, answer: Answer) -> None:
    from rich.live import Live

    task, asked = answer.read("task", views.Task), time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for look in _looks(follower):
            trouble = look if isinstance(look, str) else ""
            if not trouble and time.monotonic() - asked > TASK_SECONDS:
                task, asked = _again(follower, task), time.monotonic()
            live.update(_picture(follower, task, console, trouble), refresh=True)


def _again(follower: Follower, before: views.Task) -> views.Task:
    try:
        return follower.task().read("task", views.Task)
    except errors.Unavailable:  # the next look says so
        return before


def _picture(
    follower: Follower, task: views.Task, console: Console, trouble: str
) -> "RenderableType":
    rivals = list(follower.rivals.values())
    words = [task.task_id, follower.status, task.node_id or "", task.assigned_worker or ""]
    parts: list[RenderableType] = [
        Text(" · ".join(terminal.clean(word) for word in words if word), overflow="ellipsis"),
        Text(terminal.short(task.topic), "dim", overflow="ellipsis", no_wrap=True),
    ]
    for one in rivals:
        parts += [_standing(one, console), _chart(one, console, len(rivals))]
    if trouble:
        parts.append(Text(trouble, "red"))
    return Group(*parts)


def _standing(one: views.RivalTelemetry, console: Console) -> Table:
    """Where a rival stands, in a line."""
    last = next((point for point in reversed(one.points) if point.loss is not None), None)
    row = Table.grid(padding=(0, 1, 0, 0))
    bar = ProgressBar(one.total_steps or None, last.step if last else 0, width=BAR_WIDTH)
    said = Text(" · ".join(figures.point(last, one.total_steps)) if last else "")
    cells: list[RenderableType] = [Text(one.rival, "bold"), said]
    if console.width >= 4 * BAR_WIDTH:
        cells.insert(1, bar)
    row.add_row(*cells)
    return row


def _chart(one: views.RivalTelemetry, console: Console, count: int) -> Text:
    """A rival's loss, drawn as large as the terminal allows for so many."""
    lowest, highest = CHART_HEIGHTS
    room = (console.height - LINES_BESIDE) // count
    height = min(highest, max(lowest, room - 1))
    width = min(CHART_WIDTH_MAX, console.width)
    cells = plot.BLOCKS if console.legacy_windows else plot.BRAILLE
    lines = plot.chart(one.losses, width, height, cells)
    return Text("\n".join(lines), "cyan", no_wrap=True)


def charts(rivals: list[views.RivalTelemetry], console: Console) -> "list[RenderableType]":
    """A chart of each rival's loss, under its name, for a terminal."""
    drawn: list[RenderableType] = []
    for one in (rival for rival in rivals if rival.losses):
        (_, first), (_, last) = one.losses[0], one.losses[-1]
        title = f"{one.rival} · loss {figures.loss(first)} → {figures.loss(last)}"
        drawn += [Text(title, "bold"), _chart(one, console, len(rivals))]
    return drawn


def told_of(server: Client, task_id: str) -> list[views.RivalTelemetry]:
    """What there is of a task's telemetry; nothing on a server that has none, or cannot tell it."""
    follower = Follower(server, task_id)
    try:
        follower.ask()
    except (errors.NotFound, errors.Unavailable, msgspec.MsgspecError):
        return []
    return list(follower.rivals.values())
