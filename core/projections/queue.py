"""The order in which queued tasks are given out."""

import heapq
from collections.abc import Callable
from typing import TypeAlias

from core.events import Requires

AGEING_SECONDS = 600
_GARBAGE_MIN = 1_024


def order_key(created_at: int, priority: int) -> int:
    """The key that never moves: created_at - priority x ageing, microseconds; lowest goes first.

    One step of priority is worth ten minutes of waiting, so nothing starves.
    """
    return created_at - priority * AGEING_SECONDS * 1_000_000


Entry: TypeAlias = tuple[int, int, str]
"""(key, ticket, task id)."""
Ticket: TypeAlias = Callable[[str], int]
"""The ticket under which a task is queued now; that of a stale entry is another."""


class Queue:
    """Queued tasks in order, by kind of requirement and lot; stale entries go when they surface.

    A lot is of tasks that take the same of a worker, so that whoever is unfit for one skips all.
    """

    def __init__(self) -> None:
        self._shelves: dict[tuple[Requires, bool], _Shelf] = {}
        self._lengths: dict[tuple[Requires, bool], int] = {}
        self._entries = self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(
        self, task_id: str, requires: Requires, merge: bool, lot: bytes, key: int, ticket: int
    ) -> None:
        """Queue a task under a ticket no other entry has."""
        shelf = self._shelves.get((requires, merge))
        if shelf is None:
            shelf = self._shelves[requires, merge] = _Shelf()
        shelf.add(lot, (key, ticket, task_id))
        self._lengths[requires, merge] = self._lengths.get((requires, merge), 0) + 1
        self._entries += 1
        self._live += 1

    def removed(self, requires: Requires, merge: bool) -> None:
        """Say that one queued task of this kind left the queue; its entry is now stale."""
        self._lengths[requires, merge] -= 1
        self._live -= 1

    def count(self, fits: Callable[[Requires, bool], bool]) -> int:
        """How many queued tasks fit."""
        return sum(length for kind, length in self._lengths.items() if fits(*kind))

    def best(
        self,
        fits: Callable[[Requires, bool], bool],
        ticket_of: Ticket,
        skip: Callable[[str], bool] | None = None,
    ) -> str | None:
        """The first task in order among those that fit and are not to be skipped, or None. `skip`
        is asked once for each lot that comes before it."""
        best: Entry | None = None
        for (requires, merge), shelf in self._shelves.items():
            if not fits(requires, merge):
                continue
            first, dropped = shelf.first(ticket_of, skip)
            self._entries -= dropped
            if first is not None and (best is None or first < best):
                best = first
        return best[2] if best else None

    def first(self, count: int, ticket_of: Ticket) -> list[str]:
        """The first `count` tasks of all, in order."""
        found: list[Entry] = []
        for shelf in self._shelves.values():
            for heap in shelf.lots.values():
                live = (entry for entry in heap if ticket_of(entry[2]) == entry[1])
                found.extend(heapq.nsmallest(count, live))
        return [task_id for _, _, task_id in heapq.nsmallest(count, found)]

    def compact(self, ticket_of: Ticket) -> None:
        """Drop stale entries when they are most of what is held."""
        if self._entries - self._live < max(_GARBAGE_MIN, self._live):
            return
        self._entries = sum(shelf.compact(ticket_of) for shelf in self._shelves.values())


class _Shelf:
    """Lots, each a heap of entries, and a heap of (key, ticket, lot) with at least the first of
    each: it also holds some that are first no longer."""

    def __init__(self) -> None:
        self.lots: dict[bytes, list[Entry]] = {}
        self._tops: list[tuple[int, int, bytes]] = []

    def add(self, lot: bytes, entry: Entry) -> None:
        heap = self.lots.setdefault(lot, [])
        heapq.heappush(heap, entry)
        if heap[0] is entry:
            heapq.heappush(self._tops, (entry[0], entry[1], lot))

    def first(
        self, ticket_of: Ticket, skip: Callable[[str], bool] | None
    ) -> tuple[Entry | None, int]:
        """The first live entry of a lot that is not to be skipped; how many stale ones went."""
        skipped: list[tuple[int, int, bytes]] = []
        found, dropped = None, 0
        while self._tops and found is None:
            top = self._tops[0]
            first, stale = self._first_of(top[2], ticket_of)
            dropped += stale
            if first is None or first[:2] != top[:2]:
                self._replace(top, first)
            elif skip is not None and skip(first[2]):
                skipped.append(heapq.heappop(self._tops))
            else:
                found = first
        for top in skipped:
            heapq.heappush(self._tops, top)
        return found, dropped

    def _first_of(self, lot: bytes, ticket_of: Ticket) -> tuple[Entry | None, int]:
        heap, stale = self.lots.get(lot, []), 0
        while heap and ticket_of(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
            stale += 1
        if heap:
            return heap[0], stale
        self.lots.pop(lot, None)
        return None, stale

    def _replace(self, top: tuple[int, int, bytes], first: Entry | None) -> None:
        """Put the first entry of a lot in the place of one that is so no longer."""
        while self._tops and self._tops[0] == top:
            heapq.heappop(self._tops)
        if first is not None and first[:2] > top[:2]:  # what comes before it is there already
            heapq.heappush(self._tops, (first[0], first[1], top[2]))

    def compact(self, ticket_of: Ticket) -> int:
        """Drop what is stale; how many entries are left."""
        for lot, heap in list(self.lots.items()):
            heap[:] = [entry for entry in heap if ticket_of(entry[2]) == entry[1]]
            heapq.heapify(heap)
            if not heap:
                del self.lots[lot]
        self._tops = [(heap[0][0], heap[0][1], lot) for lot, heap in self.lots.items()]
        heapq.heapify(self._tops)
        return sum(map(len, self.lots.values()))
