"""How the writer's appends went, in figures."""

from bisect import bisect_left
from dataclasses import dataclass, field

EVENTS_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
"""Up to the most messages of one append."""


@dataclass(slots=True)
class Appends:
    """Acknowledged appends since the start, and tries that were not answered."""

    events: int = 0
    seconds: float = 0.0
    unanswered: int = 0
    by_events: list[int] = field(default_factory=lambda: [0] * (len(EVENTS_BOUNDS) + 1))
    """How many had so many events: up to each bound and above the one before it, and beyond."""

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.by_events)

    def note(self, events: int, seconds: float) -> None:
        """One more, which took so long."""
        self.events += events
        self.seconds += seconds
        self.by_events[bisect_left(EVENTS_BOUNDS, events)] += 1
