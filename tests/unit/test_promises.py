"""What is relied on stays, for how long, and what happens when it cannot all be remembered."""

import asyncio

import pytest

from core.chunks import digest_of
from core.promises import (
    GRACE_SECONDS_MIN,
    PROMISE_SECONDS,
    SHORT_SECONDS,
    YOUNG_SECONDS,
    Promises,
)

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


class Clocks:
    """Both clocks, which go alike unless one is set."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.wall_ahead = 0.0

    def promises(self, most: int = 100) -> Promises:
        return Promises(lambda: self.now, lambda: self.now + self.wall_ahead, most)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


async def test_what_is_found_stays_for_a_day(clocks: Clocks) -> None:
    promises = clocks.promises()
    await promises.keep("w", A)
    promises.settle("w", A, is_there=True)
    clocks.now += PROMISE_SECONDS - 1
    assert promises.is_kept("w", A)
    clocks.now += 1
    assert not promises.is_kept("w", A)


async def test_what_nobody_asked_about_within_a_grace_is_unheard_of(clocks: Clocks) -> None:
    promises = clocks.promises(most=2)
    assert promises.is_unheard_of("w", A)
    promises.settle("w", A, is_there=False)
    await promises.keep("w", B)
    clocks.now += GRACE_SECONDS_MIN - 1
    assert not promises.is_unheard_of("w", A)
    clocks.now += 1
    assert promises.is_unheard_of("w", A)
    assert promises.is_unheard_of("v", B)
    assert not promises.is_unheard_of("w", B)


async def test_while_what_was_asked_about_cannot_be_remembered_nothing_is_unheard_of(
    clocks: Clocks,
) -> None:
    promises = clocks.promises(most=2)
    for digest in (A, B, C):
        promises.settle("w", digest, is_there=False)
    assert not promises.is_unheard_of("w", A)
    clocks.now += GRACE_SECONDS_MIN
    assert promises.is_unheard_of("w", A)


async def test_what_is_not_there_needs_no_promise(clocks: Clocks) -> None:
    promises = clocks.promises()
    await promises.keep("w", A)
    promises.settle("w", A, is_there=False)
    assert not promises.is_kept("w", A)


async def test_what_came_lately_needs_no_promise_and_what_is_older_does(clocks: Clocks) -> None:
    promises = clocks.promises()
    promises.settle("w", A, is_there=False)
    for seconds, kept in ((YOUNG_SECONDS - 1, False), (1, True)):
        clocks.now += seconds
        await promises.keep("w", A)
        promises.settle("w", A, is_there=True)
        assert promises.is_kept("w", A) is kept


async def test_another_writers_chunk_of_the_same_name_is_another_chunk(clocks: Clocks) -> None:
    promises = clocks.promises()
    await promises.keep("old", A)
    promises.settle("old", A, is_there=True)
    await promises.keep("new", A)
    promises.settle("new", A, is_there=False)
    assert promises.is_kept("old", A)


@pytest.mark.parametrize("seconds", [YOUNG_SECONDS, -1.0])
async def test_a_machine_that_slept_or_was_set_takes_nothing_for_young(
    clocks: Clocks, seconds: float
) -> None:
    promises = clocks.promises()
    promises.settle("w", A, is_there=False)
    clocks.wall_ahead += seconds
    await promises.keep("w", A)
    promises.settle("w", A, is_there=True)
    assert promises.is_kept("w", A)


async def test_the_oldest_promise_is_forgotten_first_and_one_that_is_renewed_is_not_old(
    clocks: Clocks,
) -> None:
    promises = clocks.promises(most=2)
    for digest in (A, B):
        await promises.keep("w", digest)
    promises.renew("w", A)
    promises.renew("w", C)
    clocks.now += SHORT_SECONDS
    await promises.keep("w", C)
    assert [promises.is_kept("w", one) for one in (A, B, C)] == [True, False, True]
    assert not promises.is_blind


async def test_forgetting_what_was_promised_just_now_stops_sweeps_for_a_while(
    clocks: Clocks,
) -> None:
    promises = clocks.promises(most=1)
    await promises.keep("w", A)
    clocks.now += SHORT_SECONDS - 1
    await promises.keep("w", B)
    assert promises.is_blind
    clocks.now += SHORT_SECONDS
    assert not promises.is_blind


async def test_who_wants_a_chunk_that_is_being_swept_waits_until_it_is_gone(
    clocks: Clocks,
) -> None:
    promises = clocks.promises()
    with promises.leaving("w", A):
        keeping = asyncio.ensure_future(promises.keep("w", A))
        await asyncio.sleep(0)
        assert not keeping.done()
        await promises.keep("w", B)
    await keeping
