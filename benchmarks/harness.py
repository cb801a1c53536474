"""What every benchmark shares: alternating repetitions, ratios against a goal, and RESULTS.md."""

import datetime
import math
import os
import platform
import re
import statistics
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
import psutil

from core import nats_server, platforms

REPETITIONS_MIN = 3
SEEDS = 3
MARKER = "<!-- Above this line people write, below it `dev.py bench` does. -->"
_SECTION = re.compile(r"^<!-- section ([a-z_]+) -->\n", re.MULTILINE)

T = TypeVar("T")


class Size(NamedTuple):
    """How much of something a benchmark does: for a result, and for a quick look."""

    full: int
    quick: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """How thorough a run of the benchmarks is.

    Of `specialists`, `judgement` and `merging`: the nodes (none: all). Of `specialists` alone:
    trainings of each rival, and the file that holds what was measured before.
    """

    repetitions: int = REPETITIONS_MIN
    quick: bool = False
    nodes: tuple[str, ...] = ()
    seeds: int = SEEDS
    rows: Path | None = None

    def size(self, size: Size) -> int:
        """How much to do in this run."""
        return size.quick if self.quick else size.full


class Goal(NamedTuple):
    """What a ratio should reach."""

    word: Literal["at least", "at most", "below"]
    bound: float

    def __str__(self) -> str:
        return f"{self.word} {self.bound:g}"

    def is_met(self, value: float) -> bool:
        """Whether a value reaches it."""
        match self.word:
            case "at least":
                return value >= self.bound
            case "at most":
                return value <= self.bound
            case "below":
                return value < self.bound


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Something measured once in each repetition, in a unit of its own."""

    what: str
    unit: str
    values: list[float]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Two figures of the same repetition, one by the other; the median is held to the goal."""

    what: str
    values: list[float]
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal was met, in words; empty without a goal."""
        if self.goal is None:
            return ""
        if not self.goal.is_met(statistics.median(self.values)):
            return "**no**"
        return "yes" if all(map(self.goal.is_met, self.values)) else "yes, not in each repetition"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What one benchmark found out."""

    title: str
    about: str
    ratios: list[Ratio]
    figures: list[Figure]
    notes: str = ""
    table: str = ""
    """More, as a table in Markdown; it comes first."""


# Measuring


async def alternate(
    sides: Mapping[str, Callable[[], Awaitable[T]]], repetitions: int
) -> dict[str, list[T]]:
    """What each side gave in each repetition; every second repetition runs them backwards, so that
    a drift of the machine meets all alike."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        order = list(sides) if repetition % 2 == 0 else list(sides)[::-1]
        for name in order:
            found[name].append(await sides[name]())
            print(f"  {repetition + 1}/{repetitions} {name}: {_shown(found[name][-1])}", flush=True)
    return found


def _shown(value: object) -> str:
    return number(value) if isinstance(value, float) else "done"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One by the other, repetition by repetition."""
    return [one / other for one, other in zip(above, below, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


# Writing


def number(value: float) -> str:
    """A figure as people read it: three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def hardware(folder: str) -> str:
    """The machine in one line, with the file system that `folder` lies on."""
    memory_gb = psutil.virtual_memory().total / 1e9
    return ", ".join(
        [
            f"{platforms.cpu_model()}, {os.cpu_count()} cores",
            f"{memory_gb:.0f} GB of memory",
            f"{platform.system()} {platform.release()}",
            f"data on {_file_system(folder)}",
            f"Python {platform.python_version()}",
            _server_version(),
        ]
    )


def _file_system(folder: str) -> str:
    """The kind of the file system a folder lies on: on tmpfs nothing would be durable."""
    path = Path(folder).resolve()
    mounted = {
        Path(part.mountpoint): part.fstype
        for part in psutil.disk_partitions(all=True)
        if path.is_relative_to(part.mountpoint)
    }
    return mounted[max(mounted, key=lambda one: len(one.parts))] if mounted else "an unknown disk"


def _server_version() -> str:
    argv = [str(nats_server.find_binary()), "--version"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return said.strip().replace(": v", " ")


def render(section: Section, when: datetime.datetime, machine: str) -> str:
    """A section as it stands in RESULTS.md."""
    lines = [f"## {section.title}", "", section.about, "", f"{when:%Y-%m-%d %H:%M} UTC. {machine}."]
    if section.table:
        lines += ["", section.table]
    if section.ratios:
        lines += ["", "| ratio | median | min | max | goal | met |", "| --- |" + " --- |" * 5]
        lines += [_ratio_row(ratio) for ratio in section.ratios]
    if section.figures:
        lines += ["", "| measured | median | min | max | unit |", "| --- |" + " --- |" * 4]
        lines += [f"| {one.what} | {_spread(one.values)} | {one.unit} |" for one in section.figures]
    if section.notes:
        lines += ["", section.notes.strip()]
    return "\n".join(lines) + "\n"


def _ratio_row(ratio: Ratio) -> str:
    goal = "" if ratio.goal is None else str(ratio.goal)
    return f"| {ratio.what} | {_spread(ratio.values)} | {goal} | {ratio.verdict} |"


def _spread(values: Sequence[float]) -> str:
    return " | ".join(number(one) for one in (statistics.median(values), min(values), max(values)))


def replace_section(text: str, name: str, rendered: str, order: Sequence[str]) -> str:
    """RESULTS.md with one section new; what people wrote and the other sections stay."""
    head, _, generated = text.partition(MARKER)
    parts = _SECTION.split(generated)
    sections = {key: body.strip() for key, body in zip(parts[1::2], parts[2::2], strict=True)}
    sections[name] = rendered.strip()
    known = [one for one in order if one in sections]
    blocks = [f"<!-- section {one} -->\n{sections[one]}\n" for one in known]
    return "\n".join([head.rstrip() + "\n", MARKER + "\n", *blocks])


def write(path: Path, name: str, section: Section, order: Sequence[str]) -> None:
    """Put a section into a file of results, dated now."""
    text = path.read_text("utf-8") if path.exists() else "# Results\n"
    path.write_text(replace_section(text, name, rendered_now(section), order), "utf-8")


def rendered_now(section: Section) -> str:
    """A section, dated now and with this machine."""
    now = datetime.datetime.now(datetime.UTC)
    return render(section, now, hardware(tempfile.gettempdir()))
