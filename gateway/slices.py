"""Long lists, a slice at a time, so that the loop's other work gets its turn."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

AT_ONCE = 500
"""Rows of a slice: of those that take 10 µs each, some milliseconds."""
Given = TypeVar("Given")
Made = TypeVar("Made")


async def each(make: Callable[[Given], Made], rows: Sequence[Given]) -> list[Made]:
    """What becomes of each row, in their order."""
    made: list[Made] = []
    for start in range(0, len(rows), AT_ONCE):
        if start:
            await asyncio.sleep(0)
        made += map(make, rows[start : start + AT_ONCE])
    return made
