"""How answers look on a terminal, and without one.

No id is cropped and free text stands last in its row: a terminal that orders Arabic itself then
keeps the columns before it apart. Into a pipe go lines of any length and no styles.
"""

import contextlib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

WIDTH_UNBOUNDED = 100_000
TOPIC_LETTERS_MAX = 72
GAP = 2
"""Blanks between columns."""
WORDS_LEAST = 12
"""Words have at least so much of a line."""
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


class Listing(Table):
    """Rows under headings. Where a line has no room for all, the `spare` columns go, the first one
    first, then the last column is cut or folded if its cells are words; where that is not enough,
    the cells of each row stand below one another. Ids and numbers are never broken."""

    def __init__(
        self,
        headings: Sequence[str],
        cells: Sequence[Sequence[str]],
        spare: Sequence[str] = (),
        is_cut: bool = False,
    ) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        self._headings, self._cells, self._spare, self._is_cut = headings, cells, spare, is_cut
        self._is_words = bool(headings) and any(" " in row[-1] for row in cells)
        for place, heading in enumerate(headings):
            is_words = self._is_words and place == len(headings) - 1
            self.add_column(heading, overflow="fold", no_wrap=not is_words)
        for row in cells:
            self.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        dropped: list[str] = []
        for heading in self._spare:
            if self._least(dropped) <= options.max_width:
                break
            if heading in self._headings:
                dropped.append(heading)
        if self._least(dropped) > options.max_width:
            yield from self._stacked()
            return
        if not dropped and not self._is_cut:
            yield from super().__rich_console__(console, options)
            return
        yield from self._narrowed(dropped, options.max_width)
        if dropped:
            yield Text(f"on wider lines also: {', '.join(dropped)}", style="dim")

    def _kept(self, dropped: Sequence[str]) -> list[int]:
        return [i for i, heading in enumerate(self._headings) if heading not in dropped]

    def _width(self, place: int) -> int:
        return max(cell_len(text) for text in (self._headings[place], *self._of(place)))

    def _of(self, place: int) -> list[str]:
        return [row[place] for row in self._cells]

    def _least(self, dropped: Sequence[str]) -> int:
        """The width of the shortest lines without those columns."""
        widths = [self._width(place) for place in self._kept(dropped)]
        if self._is_words:
            widths[-1] = min(widths[-1], WORDS_LEAST)
        return sum(widths) + GAP * max(0, len(widths) - 1)

    def _narrowed(self, dropped: Sequence[str], width: int) -> Iterator[Table]:
        kept = self._kept(dropped)
        taken = sum(self._width(place) + GAP for place in kept[:-1])
        rows = [[row[place] for place in kept] for row in self._cells]
        if self._is_cut:
            rows = [[*row[:-1], _cut(row[-1], width - taken)] for row in rows]
        yield Listing([self._headings[place] for place in kept], rows)

    def _stacked(self) -> Iterator[RenderableType]:
        for number, row in enumerate(self._cells):
            if number:
                yield Text()
            told = zip(self._headings, row, strict=True)
            yield facts((heading, cell) for heading, cell in told if cell != "-")


def _cut(words: str, width: int) -> str:
    text = Text(words)
    text.truncate(width, overflow="ellipsis")
    return text.plain


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    spare: Sequence[str] = (),
    is_cut: bool = False,
) -> Listing:
    """Rows under headings; columns that are empty throughout are left out."""
    cells = [[value(cell) for cell in row] for row in rows]
    filled = [i for i in range(len(columns)) if any(row[i] != "-" for row in cells)]
    told = [[row[i] for i in filled] for row in cells]
    return Listing([columns[i] for i in filled], told, spare, is_cut)


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
