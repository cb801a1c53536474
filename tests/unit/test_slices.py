"""Long lists, a slice at a time."""

import asyncio

from gateway import slices


async def test_each_row_of_a_long_list_is_made_in_order_and_others_get_their_turn() -> None:
    taken = 0

    async def others() -> None:
        nonlocal taken
        while True:
            taken += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    rows = range(4 * slices.AT_ONCE + 1)
    assert await slices.each(str, rows) == [*map(str, rows)]
    beside.cancel()
    assert taken == 4
    assert await slices.each(str, []) == []
