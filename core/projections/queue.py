"""The order in which queued tasks are given out."""

import heapq
from collections.abc import Callable

from core.events import Requires

AGEING_SECONDS = 600
_GARBAGE_MIN = 1_024


def order_key(created_at: int, priority: int) -> int:
    """The key that never moves: created_at - priority x ageing, microseconds; lowest goes first.

    One step of priority is worth ten minutes of waiting, so nothing starves.
    """
    return created_at - priority * AGEING_SECONDS * 1_000_000


class Queue:
    """Queued tasks in order, one heap per kind of requirement; stale entries go when they surface.

    An entry is stale when the caller's `queued_at` of its task is no longer its ticket.
    """

    def __init__(self) -> None:
        self._heaps: dict[tuple[Requires, bool], list[tuple[int, int, str]]] = {}
        self._lengths: dict[tuple[Requires, bool], int] = {}
        self._entries = self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(self, task_id: str, requires: Requires, merge: bool, key: int, ticket: int) -> None:
        """Queue a task under a ticket no other entry has."""
        heap = self._heaps.setdefault((requires, merge), [])
        heapq.heappush(heap, (key, ticket, task_id))
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
        self, fits: Callable[[Requires, bool], bool], ticket_of: Callable[[str], int]
    ) -> str | None:
        """The first task in order among those that fit, or None."""
        best: tuple[int, int, str] | None = None
        for (requires, merge), heap in self._heaps.items():
            if not fits(requires, merge):
                continue
            while heap and ticket_of(heap[0][2]) != heap[0][1]:
                heapq.heappop(heap)
                self._entries -= 1
            if heap and (best is None or heap[0] < best):
                best = heap[0]
        return best[2] if best else None

    def first(self, count: int, ticket_of: Callable[[str], int]) -> list[str]:
        """The first `count` tasks of all, in order."""
        found: list[tuple[int, int, str]] = []
        for heap in self._heaps.values():
            live = (entry for entry in heap if ticket_of(entry[2]) == entry[1])
            found.extend(heapq.nsmallest(count, live))
        return [task_id for _, _, task_id in heapq.nsmallest(count, found)]

    def compact(self, ticket_of: Callable[[str], int]) -> None:
        """Drop stale entries when they are most of what is held."""
        if self._entries - self._live < max(_GARBAGE_MIN, self._live):
            return
        for heap in self._heaps.values():
            heap[:] = [entry for entry in heap if ticket_of(entry[2]) == entry[1]]
            heapq.heapify(heap)
        self._entries = sum(len(heap) for heap in self._heaps.values())
