"""What `aghsan up` shows on a terminal: lines of events as ever, and below them how all goes now.

Two threads of its own ask the server and write to the terminal, so that neither a server that is
away nor a paused terminal (Ctrl-S) holds up whoever says something.
"""

import contextlib
import io
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli import child, figures, terminal, views
from cli.client import Client, segment
from core import errors

if TYPE_CHECKING:
    from rich.live import Live

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
ANSWER_SECONDS_MAX = 2.0
CLOSE_SECONDS_MAX = 1.0
LINES_MAX = 1_000
"""What waits to be shown; of more the oldest are left out, which is said."""
WORKERS_MAX = 200
TASKS_KEPT = 256
LOSSES_KEPT = 16
TOPIC_WIDTH_MIN = 12
WIDTHS = {
    "worker": 14,
    "node": 18,
    "rival": 10,
    "bar": 12,
    "percent": 4,
    "loss": 9,
    "curve": LOSSES_KEPT,
    "rate": 7,
    "device": 5,
    "memory": 8,
}
"""Of the columns, in their order. A topic comes last, in what is left: there a terminal that orders
Arabic itself moves nothing else."""
WANTED = ("worker", "bar", "loss", "node", "percent", "device", "rate", "rival", "curve", "memory")
"""The columns again, from what a narrow terminal shows too to what only a wide one does."""


@dataclass
class Network:
    """What was seen of a server, look by look."""

    figures: views.Network = field(default_factory=views.Network)
    workers: list[views.Worker] = field(default_factory=list)
    tasks: dict[str, views.Task] = field(default_factory=dict)
    losses: dict[tuple[str, str], deque[float]] = field(default_factory=dict)
    """The last ones of each task and rival."""
    trouble: str = ""
    is_known: bool = False

    def look(self, server: Client) -> None:
        """See how it stands now, or why that is not known."""
        try:
            self.figures = server.get("/status").read("network", views.Network)
            answer = server.get("/workers", {"limit": WORKERS_MAX})
            self.workers = answer.read("workers", list[views.Worker])
            for worker in self.workers:
                self._follow(server, worker)
        except errors.AghsanError as error:
            self.trouble = str(error)
        else:
            self.trouble, self.is_known = "", True

    def _follow(self, server: Client, worker: views.Worker) -> None:
        task_id = worker.task
        if not task_id:
            return
        if task_id not in self.tasks:
            answer = server.get(f"/tasks/{segment(task_id)}")
            self.tasks[task_id] = answer.read("task", views.Task)
            _bound(self.tasks)
        if worker.loss is not None:
            kept = self.losses.setdefault((task_id, worker.rival or ""), deque(maxlen=LOSSES_KEPT))
            kept.append(worker.loss)
            _bound(self.losses)


def _bound(kept: dict[K, V]) -> None:
    while len(kept) > TASKS_KEPT:
        del kept[next(iter(kept))]


# ── the picture ──


def picture(network: Network, width: int, height: int) -> RenderableType:
    """How all goes, in no more than half of a terminal's lines."""
    parts: list[RenderableType] = [Text("─" * width, "dim"), _line(network.figures)]
    if network.trouble:
        parts.append(Text(network.trouble, "red", no_wrap=True, overflow="ellipsis"))
    online = [one for one in network.workers if one.is_online]
    online.sort(key=lambda one: not one.task)
    room = max(0, height // 2 - len(parts) - 1)
    if online[:room]:
        parts.append(_table(online[:room], network, width))
    if len(online) > room:
        parts.append(Text(f"and {len(online) - room} more workers", "dim", no_wrap=True))
    return Group(*parts)


def _line(seen: views.Network) -> Text:
    tasks = seen.tasks
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{tasks.queued} queued", "bold" if tasks.queued else "dim")
    line.append(f" · {tasks.running} running", "cyan" if tasks.running else "dim")
    line.append(f" · {tasks.completed} completed", "green")
    line.append(f" · {seen.workers_online} of {seen.workers_total} workers · {seen.nodes} nodes")
    return line


def columns(width: int) -> dict[str, int]:
    """The columns that a terminal has room for, with a blank between them, and their widths."""
    left, chosen = width, set[str]()
    for name in WANTED:
        if chosen and WIDTHS[name] > left:
            break
        chosen.add(name)
        left -= WIDTHS[name] + 1
    fitting = {name: min(width, wide) for name, wide in WIDTHS.items() if name in chosen}
    has_all = len(fitting) == len(WIDTHS)
    return fitting | ({"topic": left} if has_all and left >= TOPIC_WIDTH_MIN else {})


def _table(workers: Iterable[views.Worker], network: Network, width: int) -> Table:
    shown = columns(width)
    grid = Table.grid(padding=(0, 1, 0, 0))
    for wide in shown.values():
        grid.add_column(no_wrap=True, overflow="ellipsis", width=wide)
    for worker in workers:
        cells = _cells(worker, network, shown.get("topic", 0))
        grid.add_row(*(cells[name] for name in shown))
    return grid


def _cells(worker: views.Worker, network: Network, topic_width: int) -> dict[str, RenderableType]:
    """What there is to say of a worker, by column."""
    task = network.tasks.get(worker.task) or views.Task()
    step, total = worker.step or 0, worker.total_steps or 0
    losses = network.losses.get((worker.task, worker.rival or ""), ())
    waits = not worker.task
    node = Text("waits", "dim") if waits else Text(terminal.clean(task.node_id or ""))
    return {
        "worker": Text(terminal.clean(worker.worker_id), "bold"),
        "node": node,
        "rival": Text(terminal.clean(worker.rival or "")),
        "bar": Text("") if waits else ProgressBar(total or 1, step, width=WIDTHS["bar"]),
        "percent": Text(f"{step / total:>4.0%}" if total else ""),
        "loss": Text(figures.loss(worker.loss)),
        "curve": Text(terminal.sparkline(list(losses), LOSSES_KEPT), "cyan"),
        "rate": Text(figures.rate(worker.samples_per_second)),
        "device": Text(figures.percent(worker.utilisation)),
        "memory": Text(figures.memory(worker.memory_bytes)),
        "topic": Text(terminal.short(task.topic, topic_width - 1) if topic_width else "", "dim"),
    }


# ── the terminal ──


class _Screen(io.TextIOBase):
    """A terminal, written to without a buffer: a thread that waits for a paused one inside a
    buffer's lock would abort the interpreter's end."""

    encoding = "utf-8"

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            count = self._raw.write(data)
            if count is None:  # a file that others made non-blocking
                time.sleep(LOOK_SECONDS / 20)
            data = data[count or 0 :]
        return len(text)

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()


def console() -> Console | None:
    """The terminal that stdout is; None where it is none, or one that cannot be written over."""
    try:
        if not sys.stdout.isatty():
            return None
        raw = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115  for good
    except (OSError, ValueError):
        return None
    found = Console(file=_Screen(raw), markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]
    return found if found.is_terminal and not found.is_dumb_terminal else None


class Display:
    """Lines above, the picture below. Made by `shown`."""

    def __init__(self, on: Console, http: str) -> None:
        self._console = on
        self._network = Network()
        self._server = Client(http, ANSWER_SECONDS_MAX)
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._new_picture = False
        self._ending = False
        self._writing = threading.Thread(target=self._write, name="display", daemon=True)
        self._writing.start()
        threading.Thread(target=self._watch, name="look", daemon=True).start()

    def say(self, line: str) -> None:
        """One line for people, soon; as `child.say` has it."""
        with self._changed:
            if not self._ending:
                if len(self._lines) == LINES_MAX:
                    self._lines.popleft()
                    self._left_out += 1
                self._lines.append(child.plain(line))
                self._changed.notify_all()
                return
        child.say(line)

    def close(self) -> None:
        """Leave the terminal as it was, with all lines on it, in a bounded time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._writing.join(CLOSE_SECONDS_MAX)

    def _watch(self) -> None:
        while not self._ending:
            self._network.look(self._server)
            with self._changed:
                self._new_picture = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ending, LOOK_SECONDS)

    def _write(self) -> None:
        from rich.live import Live

        try:
            with Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live:
                while not self._ending:
                    self._show(live)
        except Exception as error:  # whatever it is, the lines go on
            log.exception("the live display ended")
            self._give_up(error)
        self._say_the_rest()

    def _show(self, live: "Live") -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._new_picture or self._ending)
            lines, has_new_picture = self._taken(), self._new_picture
            self._new_picture = False
        if lines:
            self._console.print(Text("\n".join(lines)), soft_wrap=True)
        if has_new_picture and self._network.is_known:
            size = self._console.size
            live.update(picture(self._network, size.width, size.height), refresh=True)

    def _taken(self) -> list[str]:
        lines = list(self._lines)
        self._lines.clear()
        if self._left_out:
            lines.insert(0, f"… {self._left_out} lines were not shown: nobody took them in time")
            self._left_out = 0
        return lines

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._ending = True
            self._lines.append(f"the live display ended ({error}); plain lines from here on")

    def _say_the_rest(self) -> None:
        with self._changed:
            lines = self._taken()
        for line in lines:
            child.say(line)


@contextlib.contextmanager
def shown(on: Console | None, http: str) -> "Iterator[Display | None]":
    """Inside the block the terminal shows how all goes; without one, nothing is different."""
    try:
        display = Display(on, http) if on is not None else None
    except RuntimeError:  # no room for a thread, and none is needed to say lines
        display = None
    if display is None:
        yield None
        return
    try:
        yield display
    finally:
        display.close()
