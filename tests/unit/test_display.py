"""What terminals show of trainings: charts, figures, and how all goes below the lines of `up`."""

import io
import itertools
import os
import pty
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from cli import child, display, figures, plot, views

SECONDS_MAX = 30.0
ARABIC = "جولةٌ تدريبيّةٌ: ترشيحُ الإشاراتِ فوق الضجيجِ، ومعها أرقام 123 (abc)"


def seen() -> display.Network:
    """A network of a worker that trains, one that begins, and one that waits."""
    network = display.Network(is_known=True)
    network.figures = views.Network(10, 3, 3, views.TaskCounts(5, 2, 30, 37))
    busy = views.Worker(worker_id="حاسوب سارة في المكتب الكبير", status="online", tasks=["t1"])
    busy.rival, busy.step, busy.total_steps, busy.loss = "reinventor", 1200, 2400, 0.0123
    busy.samples_per_second, busy.utilisation, busy.memory_bytes = 51_234.0, 0.98, 3 << 30
    begins = views.Worker(worker_id="agent-2", status="online", tasks=["t2"])
    network.workers = [views.Worker(worker_id="agent-3", status="online"), busy, begins]
    network.tasks = {
        "t1": views.Task(task_id="t1", node_id="stats-bayesian", topic=ARABIC),
        "t2": views.Task(task_id="t2", node_id="root-math", topic="\x1b[2J" + "t" * 300),
    }
    network.losses[("t1", "reinventor")] = deque([3.0, 2.0, 1.0])
    return network


def drawn(network: display.Network, width: int, height: int = 24) -> list[str]:
    file = io.StringIO()
    one = Console(file=file, width=width, force_terminal=True, color_system=None)
    one.print(display.picture(network, width, height))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [12, 20, 33, 48, 62, 80, 120, 200])
def test_a_picture_is_no_wider_than_its_terminal_and_arabic_moves_no_column(width: int) -> None:
    lines = drawn(seen(), width)
    assert {cell_len(line.rstrip()) <= width for line in lines} == {True}
    assert "\x1b" not in "".join(lines)
    rows = lines[2:]
    assert len(rows) == 3
    assert rows[0].startswith("حاسوب")
    if width >= 80:
        busy, begins, waits = rows
        ends = {cell_len(busy[: busy.index("%")]), cell_len(begins[: begins.rindex("root")])}
        assert cell_len(busy[: busy.index("stats-bayesian")]) == 15 in ends
        assert "50%" in busy
        assert waits.split() == ["agent-3", "waits"]
    if width == 200:
        # Free text stands last, cut between words and never before a mark of the letter before it.
        assert rows[0].rstrip().endswith(("…", "(abc)"))
        for figure in ("0.0123", "█▅▁", "51.2k/s", "98 %", "3.0 GiB"):
            assert figure in rows[0]


def test_a_low_terminal_keeps_half_of_itself_for_lines_and_says_who_is_left_out() -> None:
    network = seen()
    network.workers *= 9
    network.trouble = "no server answers; trying again"
    lines = drawn(network, 80, 16)
    assert len(lines) == 8
    assert lines[2].strip() == network.trouble
    assert lines[-1].strip() == "and 23 more workers"


def test_a_chart_has_the_extremes_on_its_edges_and_names_them() -> None:
    points = [(float(step), 1.0) for step in range(100)]
    points[30], points[70] = (30.0, 9.0), (70.0, -3.0)
    lines = plot.chart(points, 60, 6)
    assert {cell_len(line) <= 60 for line in lines} == {True}
    top, bottom, axis = lines[0], lines[4], lines[5]
    assert (top.split("│")[0].strip(), bottom.split("│")[0].strip()) == ("9", "-3")
    assert axis.split() == ["0", "99"]
    peak, low = (line.index(line.split("│")[1].strip()) - 9 for line in (top, bottom))
    assert [peak, low] == pytest.approx([30 * 51 / 99, 70 * 51 / 99], abs=1.5)


def test_a_loss_that_falls_by_decades_falls_along_a_straight_line() -> None:
    lines = plot.chart([(float(n), 10.0**-n) for n in range(5)], 29, 6, plot.BLOCKS)
    starts = [len(line) - len(line.split("│")[1].lstrip()) for line in lines[:-1]]
    assert starts == sorted(starts)
    assert max(b - a for a, b in itertools.pairwise(starts)) < 6
    assert set("".join(line.split("│")[1] for line in lines[:-1])) <= set(plot.BLOCKS.characters)


@pytest.mark.parametrize(
    "points", [[(0.0, 5.0)], [(3.0, 0.0), (3.0, 0.0)], [(1.0, 2.0), (9.0, 2.0)]]
)
def test_a_chart_of_one_value_is_a_line_and_of_none_nothing(
    points: list[tuple[float, float]],
) -> None:
    assert len(plot.chart(points, 40, 5)) == 5
    assert plot.chart([], 40, 5) == []


def test_figures_are_short_and_what_is_not_known_is_left_out() -> None:
    assert [figures.rate(value) for value in (None, 0.0, 7.25, 999.6, 51_234.0, 2.5e9)] == [
        *("", "0/s", "7.25/s", "1k/s", "51.2k/s", "2.5G/s")
    ]
    assert [figures.memory(value) for value in (None, 300 << 20, 3 << 30)] == [
        *("", "300 MiB", "3.0 GiB")
    ]
    point = views.TelemetryPoint(step=3, loss=0.25, utilisation=1.97)
    assert figures.point(point, 9) == ["step 3/9", "loss 0.25", "device 197 %"]
    assert figures.point(point, 0)[0] == "step 3"
    rival = views.RivalTelemetry("evolver", 9, [point, views.TelemetryPoint(step=9, validation=1)])
    assert figures.summary(rival) == ["step 3/9", "loss 0.25", "device 197 %"]


# ── on a terminal ──

UP = """
import sys, threading, time
from cli import child, display
on = display.console()
if on is None:
    child.say("no terminal")
    raise SystemExit
display.Network.look = lambda self, server: self.__dict__.update(is_known=True)
with display.shown(on, "http://127.0.0.1:1") as shown:
    shown.say("first \\x1b[2Jline")
    sys.stdin.readline()
    shown.say("last line")
child.say("stopping")
"""


class Terminal:
    """A child whose stdout is a terminal, and all that it wrote there."""

    def __init__(self, program: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
            cwd=Path(__file__).parents[2],
        )
        os.close(slave)
        self.said = b""
        self._is_read = threading.Event()
        self._is_read.set()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while self._is_read.wait():
            try:
                self.said += os.read(self.master, 65_536)
            except OSError:
                return

    def until(self, word: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while word.encode() not in self.said:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def pause(self) -> None:
        """Take nothing any more: the terminal fills, and writes to it wait."""
        self._is_read.clear()

    def end(self) -> bytes:
        """Ask for the end, and wait for it; what it said of errors."""
        return self.process.communicate(b"\n", SECONDS_MAX)[1]


def test_a_terminal_has_the_lines_the_picture_and_at_the_end_neither_picture_nor_modes() -> None:
    one = Terminal(UP)
    one.until("first  [2Jline")
    one.until("0 queued")
    assert b"last line" not in one.said
    assert one.end() == b""
    one.until("stopping")
    assert one.said.index(b"last line") < one.said.index(b"stopping")
    shown, _, after = one.said.rpartition(b"\x1b[?25h")
    assert shown.count(b"\x1b[?25l") == 1
    assert b"?1049" not in one.said
    # What follows the cursor's return wipes each line of the picture, and draws none.
    assert after.count(b"\x1b[2K") >= 2
    assert "─".encode() not in after


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_be_written_over_gets_lines_alone(term: str) -> None:
    one = Terminal(UP, TERM=term)
    one.until("no terminal")
    assert b"\x1b" not in one.said
    one.end()


def test_a_pipe_gets_lines_alone() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", UP], capture_output=True, cwd=Path(__file__).parents[2], check=True
    )
    assert ran.stdout == b"no terminal\n"


def test_a_paused_terminal_holds_nobody_up_and_the_end_comes_all_the_same() -> None:
    many = UP.replace("sys.stdin.readline()", "[shown.say('x' * 500) for _ in range(3_000)]")
    one = Terminal(many + "print('over', file=sys.stderr)")
    one.pause()
    assert b"over" in one.end()
    assert one.process.returncode == 0


def test_a_display_that_breaks_says_so_and_lines_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(child, "say", said.append)
    monkeypatch.setattr(display.Display, "_watch", lambda self: None)

    def broken(*_: object) -> None:
        raise RuntimeError("no such colour")

    monkeypatch.setattr(display.Display, "_show", broken)
    one = display.Display(Console(file=io.StringIO()), "http://127.0.0.1:1")
    _until(lambda: bool(said))
    one.say("a line")
    one.close()
    assert said == ["the live display ended (no such colour); plain lines from here on", "a line"]


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
