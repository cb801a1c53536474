"""Who may store how much, and how that is counted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from core import chunks, errors
from core.topology import MIB
from faults import harness
from gateway import usage as counting
from gateway.usage import TOLD_MAX, UNASKED_BYTES_MAX, Quotas, Usage

QUOTA = 100 * MIB


def sizes(first: int, count: int) -> dict[str, int]:
    """So many chunks of a mebibyte."""
    return {f"{number:064x}": MIB for number in range(first, first + count)}


@pytest.fixture
def usage() -> Usage:
    return Usage(Quotas(total_bytes=2 * QUOTA, worker_bytes=QUOTA))


def test_a_checkpoint_beyond_a_workers_quota_is_refused_and_says_what_to_do(usage: Usage) -> None:
    usage.take("a", sizes(0, 90), "checkpoint")
    with pytest.raises(errors.QuotaExceeded) as refused:
        usage.take("a", sizes(90, 1), "checkpoint")
    words = str(refused.value)
    assert "artifacts of a take 90.0 MiB of at most 100.0" in words
    assert "artifact gc" in words
    assert "--worker-quota-gib" in words
    usage.take("b", sizes(0, 90), "checkpoint")
    assert usage.refused == 1


def test_a_tenth_is_kept_for_results_which_wait_beyond_that(usage: Usage) -> None:
    usage.take("a", sizes(0, 90), "checkpoint")
    usage.take("a", sizes(90, 10), "candidate")
    with pytest.raises(errors.LogFull, match=r"at most 100\.0, and"):
        usage.take("a", sizes(100, 1), "candidate")


def test_no_work_is_given_to_who_could_not_save_it(usage: Usage) -> None:
    usage.take("a", sizes(0, 90), "checkpoint")
    with pytest.raises(errors.LogFull, match="--worker-quota-gib"):
        usage.require_room_for_work("a")
    usage.require_room_for_work("b")
    usage.less("a", MIB)
    usage.require_room_for_work("a")


def test_all_together_have_a_quota_too(usage: Usage) -> None:
    for worker in "abc":
        usage.take(worker, sizes(0, 60), "checkpoint")
    with pytest.raises(errors.QuotaExceeded, match=r"all artifacts together take 180\.0 MiB"):
        usage.take("d", sizes(0, 1), "checkpoint")


def test_what_is_asked_for_again_counts_once(usage: Usage) -> None:
    for _ in range(3):
        usage.take("a", sizes(0, 60), "checkpoint")
    assert usage.total_bytes == 60 * MIB


def test_what_is_stored_already_is_never_too_much(usage: Usage) -> None:
    usage.add("a", QUOTA)
    usage.take("a", {}, "checkpoint")
    usage.require_kept("a")
    usage.add("a", 1)
    with pytest.raises(errors.QuotaExceeded):
        usage.require_kept("a")


def test_without_quotas_nothing_is_refused() -> None:
    usage = Usage(Quotas())
    usage.take("a", {"0" * 64: 2**50}, "checkpoint")
    usage.require_room_for_work("a")


def test_what_is_remembered_of_questions_is_bounded(usage: Usage) -> None:
    for number in range(TOLD_MAX + 10):
        usage.take("a", {f"{number:064x}": 0}, "checkpoint")
    assert usage._told_count == len(usage._told["a"]) <= TOLD_MAX


def test_the_fullest_worker_is_known_whatever_the_desk_itself_stores(usage: Usage) -> None:
    usage.add("a", QUOTA // 2)
    usage.add("b", QUOTA // 4)
    usage.add(chunks.DESK, QUOTA)
    assert usage.fullest_share == 0.5
    assert Usage(Quotas()).fullest_share == 0.0


def test_what_is_not_asked_for_is_all_that_the_store_may_hold() -> None:
    assert Quotas().completed(8) == Quotas(8, 8)
    assert Quotas(6).completed(8) == Quotas(6, 6)
    assert Quotas(0, 5).completed(8) == Quotas(8, 5)
    assert Quotas().completed(0) == Quotas(0, 0)
    assert Usage(Quotas()).filling() == {}
    assert Usage(Quotas(8)).filling()["artifacts"].bytes_max == 8


class Slow(chunks.MemoryChunks):
    """A store whose listing lasts until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def stored(self, after: int | None = None) -> AsyncIterator[chunks.Item]:
        async for item in super().stored(after):
            yield item
        self.listed.set()
        await self.may_go_on.wait()


async def test_a_count_finds_what_nobody_asked_about_and_keeps_what_came_meanwhile(
    usage: Usage,
) -> None:
    usage.take("a", sizes(0, 5), "checkpoint")
    store = Slow()
    await store.put("rogue", b"x" * 10)
    counting = asyncio.ensure_future(usage.count(store))
    await store.listed.wait()
    usage.take("b", sizes(0, 1), "checkpoint")
    usage.less("rogue", 4)
    store.may_go_on.set()
    await counting
    assert usage.total_bytes == 6 + 6 * MIB  # what was told may be on its way
    await usage.count(store)
    assert usage.total_bytes == 10


class Arriving(chunks.MemoryChunks):
    """A store that chunks of some size come to, as to CHUNKS."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[chunks.Item] = []

    def come(self, writer: str, number: int, size: int = MIB) -> None:
        self.came.append(chunks.Item(len(self.came) + 1, writer, f"{number:064x}", size, 0))

    async def stored(self, after: int | None = None) -> AsyncIterator[chunks.Item]:
        for item in self.came:
            if item.seq > (after or 0):
                yield item


@pytest.fixture
async def store(usage: Usage) -> Arriving:
    """A store whose first chunk was counted."""
    one = Arriving()
    one.come("old", 0)
    await usage.count(one)
    return one


async def test_what_came_counts_once_and_as_what_it_is(usage: Usage, store: Arriving) -> None:
    usage.take("a", {f"{1:064x}": 0, f"{2:064x}": MIB, f"{3:064x}": 2 * MIB}, "checkpoint")
    for number in (1, 2, 3, 4):
        store.come("a", number)
    for _ in range(2):
        await usage.look(store)
        assert usage.total_bytes == 5 * MIB
    await usage.count(store)
    await usage.look(store)
    assert usage.total_bytes == 5 * MIB


async def test_what_was_told_and_is_still_on_its_way_stays_booked_by_the_next_count(
    usage: Usage, store: Arriving
) -> None:
    usage.take("a", sizes(1, 2), "checkpoint")
    store.come("a", 1)
    await usage.count(store)
    assert usage.total_bytes == 3 * MIB
    store.come("a", 2)
    await usage.look(store)
    assert usage.total_bytes == 3 * MIB
    assert usage._told_count == 0


async def test_what_is_said_to_be_less_than_it_is_counts_as_soon_as_it_is_verified(
    usage: Usage, store: Arriving
) -> None:
    usage.take("a", {f"{1:064x}": 0}, "checkpoint")
    for _ in range(2):
        usage.settle("a", {f"{1:064x}": MIB})
        assert usage.total_bytes == 2 * MIB
    store.come("a", 1)
    await usage.look(store)
    assert usage.total_bytes == 2 * MIB


async def test_what_control_stores_counts_at_once_and_once(usage: Usage, store: Arriving) -> None:
    usage.book(chunks.DESK, f"{1:064x}", MIB)
    assert usage.total_bytes == 2 * MIB
    store.come(chunks.DESK, 1)
    await usage.look(store)
    assert usage.total_bytes == 2 * MIB
    usage.require_room_for_text(178 * MIB)
    with pytest.raises(errors.LogFull, match="all artifacts together take 2"):
        usage.require_room_for_text(179 * MIB)


async def test_who_stores_too_much_unasked_is_refused_until_it_is_swept(
    usage: Usage, store: Arriving
) -> None:
    usage.quotas = Quotas()
    usage.take("rogue", {f"{1:064x}": 1}, "checkpoint")
    for number in range(1, UNASKED_BYTES_MAX // MIB + 1):
        store.come("rogue", number)
    await usage.look(store)
    usage.require_room_for_work("rogue")
    store.come("rogue", UNASKED_BYTES_MAX // MIB + 1)
    await usage.look(store)
    with pytest.raises(errors.LogFull, match=r"rogue stored 4,097\.0 MiB that nobody asked it to"):
        usage.require_room_for_work("rogue")
    with pytest.raises(errors.QuotaExceeded, match="until enough of that is swept"):
        usage.require_kept("rogue")
    usage.require_room_for_work("a")
    usage.less("rogue", MIB)
    usage.require_room_for_work("rogue")


async def test_it_counts_then_looks_and_goes_on_after_a_store_that_did_not_answer(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(counting, "RETRY_SECONDS", 0.0)
    away = [errors.Unavailable("away")]

    class Away(Arriving):
        async def stored(self, after: int | None = None) -> AsyncIterator[chunks.Item]:
            if away:
                raise away.pop()
            async for item in super().stored(after):
                yield item

    async def until(total: int) -> None:
        async def is_counted() -> bool:
            return usage.total_bytes == total

        await harness.until(is_counted, "counted", 10)

    store = Away()
    store.come("a", 1)
    running = asyncio.ensure_future(usage.run(store))
    await until(MIB)
    away.append(errors.Unavailable("away"))
    store.come("a", 2)
    await until(2 * MIB)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_is_told_of_many_costs_nobody_else_what_was_told(
    usage: Usage, store: Arriving
) -> None:
    usage.take("a", sizes(1, 1), "checkpoint")
    for number in range(TOLD_MAX + 10):
        usage.take("greedy", {f"{number:064x}": 0}, "checkpoint")
    store.come("a", 1)
    await usage.look(store)
    assert usage.total_bytes == 2 * MIB
