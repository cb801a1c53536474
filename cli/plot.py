"""Curves drawn with characters, for a terminal."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LOGARITHMIC_FROM = 20.0
"""How many times the least loss the greatest is before the scale is logarithmic."""
LABEL_WIDTH = 8
WIDTH_MIN = 8
HEIGHT_MIN = 2


class Cells(NamedTuple):
    """How many dots a character has across and down, and what its dots make of it."""

    across: int
    down: int
    bits: tuple[tuple[int, ...], ...]
    """Of each dot, by row and column."""
    characters: str
    """By the sum of bits."""


BRAILLE = Cells(
    2,
    4,
    ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80)),  # Unicode, block U+2800
    " " + "".join(chr(0x2800 + bits) for bits in range(1, 256)),
)
BLOCKS = Cells(1, 2, ((1,), (2,)), " ▀▄█")
"""For terminals whose fonts have no more."""


def chart(
    points: Sequence[tuple[float, float]], width: int, height: int, cells: Cells = BRAILLE
) -> list[str]:
    """Lines that show points (x, y), x ascending, joined by a curve; `width` and `height` count
    characters, with the labels of both axes."""
    across = max(WIDTH_MIN, width - LABEL_WIDTH - 1)
    down = max(HEIGHT_MIN, height - 1)
    values = [y for _, y in points]
    if not values:
        return []
    low, high = min(values), max(values)
    scaled = _scaled(values, low, high)
    dots = _dots([x for x, _ in points], scaled, across * cells.across, down * cells.down)
    rows = [[0] * across for _ in range(down)]
    for column, row in dots:
        bit = cells.bits[row % cells.down][column % cells.across]
        rows[row // cells.down][column // cells.across] |= bit
    lines = []
    for number, row_bits in enumerate(rows):
        label = _label(high) if number == 0 else _label(low) if number == down - 1 else ""
        drawn = "".join(cells.characters[bits] for bits in row_bits)
        lines.append(f"{label:>{LABEL_WIDTH}}│{drawn}".rstrip())
    return [*lines, _axis(points[0][0], points[-1][0], across)]


def _scaled(values: Sequence[float], low: float, high: float) -> list[float]:
    """Values from 0 (the least) to 1."""
    if low > 0 and high >= LOGARITHMIC_FROM * low:
        values, low, high = [math.log(y) for y in values], math.log(low), math.log(high)
    if high <= low:
        return [0.5] * len(values)
    return [(y - low) / (high - low) for y in values]


def _dots(
    xs: Sequence[float], ys: Sequence[float], across: int, down: int
) -> Iterator[tuple[int, int]]:
    """Columns and rows of the dots that join points; a row 0 is the highest."""
    span = (xs[-1] - xs[0]) or 1.0
    at = [
        (round((x - xs[0]) / span * (across - 1)), round((1 - y) * (down - 1)))
        for x, y in zip(xs, ys, strict=True)
    ]
    for (column, row), (to_column, to_row) in zip(at, at[1:] or at, strict=False):
        count = max(abs(to_column - column), abs(to_row - row), 1)
        for step in range(count + 1):
            share = step / count
            yield (
                round(column + (to_column - column) * share),
                round(row + (to_row - row) * share),
            )


def _label(value: float) -> str:
    text = f"{value:.4g}"
    return text if len(text) <= LABEL_WIDTH else f"{value:.1e}"


def _axis(first: float, last: float, across: int) -> str:
    left, right = f"{first:g}", f"{last:g}"
    gap = max(1, across - len(left) - len(right))
    return f"{'':{LABEL_WIDTH}} {left}{'':{gap}}{right}"
