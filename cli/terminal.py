"""How answers look on a terminal, and without one.

Nothing is cropped and free text stands last in its row: a terminal that orders Arabic itself then
keeps the columns before it apart. Into a pipe go lines of any length and no styles.
"""

import contextlib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

WIDTH_UNBOUNDED = 100_000
TOPIC_LETTERS_MAX = 72
LINE_SECONDS = 2.0
BIDI_CONTROLS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Embeddings, overrides and isolates (UAX 9): one that is left open reorders what follows it. The
marks LRM, RLM and ALM reach no further than their neighbours and stay."""
SPARKS = "▁▂▃▄▅▆▇█"

_STYLES = {
    "online": "green",
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
    "offline": "dim",
    "promoted": "green",
}


def console() -> Console:
    """Where everything is shown."""
    width = None if sys.stdout.isatty() else WIDTH_UNBOUNDED
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def show(*what: RenderableType) -> None:
    """Print, without trailing blanks where the lines may be read by a program."""
    one = console()
    if one.is_terminal:
        for renderable in what:
            one.print(renderable)
        return
    with one.capture() as captured:
        for renderable in what:
            one.print(renderable)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Rows under headings; columns that are empty throughout are left out."""
    cells = [[value(cell) for cell in row] for row in rows]
    filled = [i for i in range(len(columns)) if any(row[i] != "-" for row in cells)]
    made = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for i in filled:
        made.add_column(columns[i], overflow="fold", no_wrap=False)
    for row in cells:
        made.add_row(*(Text(row[i], style=_STYLES.get(row[i], "")) for i in filled))
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values below one another; what is not known is left out."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in pairs:
        if fact not in (None, "", []):
            made.add_row(name, Text(value(fact)))
    return made


def say_more(following: str | None, what: str = "more") -> None:
    """Beside a page, how to see the next one."""
    if following:
        sys.stderr.write(f"there are {what}: --after {clean(following)}\n")


def block(text: str) -> Text:
    """Lines of others, as they are but harmless."""
    return Text("\n".join(clean(line) for line in text.splitlines()), style="dim")


def value(given: object) -> str:
    """One value in one cell."""
    match given:
        case None | "":
            return "-"
        case bool():
            return "yes" if given else "no"
        case float():
            return f"{given:.6g}"
        case str():
            return clean(given)
        case _:
            return str(given)


def clean(text: str) -> str:
    """Text of others without anything that would command the terminal, on one line."""
    return "".join(_letters(text)).strip()


def _letters(text: str) -> Iterator[str]:
    for letter in text:
        match unicodedata.category(letter):
            case "Cc" | "Zl" | "Zp":
                yield " "
            case "Cs":
                yield "\N{REPLACEMENT CHARACTER}"
            case _:
                yield " " if letter in BIDI_CONTROLS else letter


def short(text: str | None, letters_max: int = TOPIC_LETTERS_MAX) -> str:
    """The beginning of a text, cut between words, never before a mark of the letter before it."""
    whole = " ".join(clean((text or "")[: 4 * letters_max]).split())
    if len(whole) <= letters_max and len(text or "") <= 4 * letters_max:
        return whole
    cut = letters_max
    while cut > 1 and unicodedata.category(whole[cut : cut + 1] or " ").startswith("M"):
        cut -= 1
    begun = whole[:cut]
    if " " in begun[letters_max // 2 :] and whole[cut : cut + 1] != " ":
        begun = begun[: begun.rindex(" ")]
    return begun.rstrip() + "…"


def when(moment: str | None) -> str:
    """An ISO 8601 time as this machine's clock would show it."""
    parsed = _parsed(moment)
    return (moment or "") if parsed is None else f"{parsed.astimezone():%Y-%m-%d %H:%M:%S}"


def ago(moment: str | None) -> str:
    """How long ago an ISO 8601 time was."""
    parsed = _parsed(moment)
    if parsed is None:
        return moment or ""
    seconds = max(0.0, (datetime.now(UTC) - parsed.astimezone(UTC)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _parsed(moment: str | None) -> datetime | None:
    try:
        # A time without a zone is this machine's local time, as astimezone takes it.
        return datetime.fromisoformat(moment) if moment else None
    except ValueError:
        return None


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve in one line."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [values[i * len(values) // count] for i in range(count - 1)] + [values[-1]]
    low, high = min(picked), max(picked)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((one - low) * scale)] for one in picked)


def span(seconds: float) -> str:
    """A length of time as people say it, rounded to what matters of it."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Pace:
    """How fast something goes, and how long it takes still, by the mean since its first sign."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def words(self, step: int, total: int) -> str:
        """Steps per second and the time left, "" before the second sign."""
        now = self._clock()
        began, first = self._first = self._first or (now, step)
        if step >= total:
            return "measuring"
        if step <= first or now <= began:
            return ""
        rate = (step - first) / (now - began)
        return f"{rate:,.0f} steps/s, {span((total - step) / rate)} left"


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """A bar on stderr, fed with (step, total steps, loss); elsewhere than on a terminal, a line
    every few seconds."""
    pace = Pace()
    if not sys.stderr.isatty():
        yield _line_by_line(title, pace)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task(title, total=None, words="starting")

        def show_progress(step: int, total: int, loss: float | None) -> None:
            parts = ["" if loss is None else f"loss {loss:.4g}", pace.words(step, total)]
            words = ", ".join(filter(None, parts))
            progress.update(bar, completed=step, total=total, words=words)

        yield show_progress


def _line_by_line(title: str, pace: Pace) -> Callable[[int, int, float | None], None]:
    last = -LINE_SECONDS

    def show_progress(step: int, total: int, loss: float | None) -> None:
        nonlocal last
        words, now = pace.words(step, total), time.monotonic()
        if now - last >= LINE_SECONDS or step == total:
            last = now
            parts = ["" if loss is None else f"loss {loss:.4g}", words]
            text = ", ".join([f"step {step} of {total}", *filter(None, parts)])
            sys.stderr.write(f"{title}: {text}\n")

    return show_progress
