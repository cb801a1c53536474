"""What was seen from outside: who was told what and when, and what liveness decided on what."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from core import errors
from core.events import Token
from faults.simulation.store import Store


class Told(NamedTuple):
    """Something that was acknowledged: the event it promises, by what it says, and how long the log
    was at that moment."""

    who: str
    type: str
    says: dict[str, object]
    length: int


class Beat(NamedTuple):
    """A heartbeat that reached a control process, read or not."""

    at: float
    session: str
    attempts: frozenset[tuple[str, int]]


class Ended(NamedTuple):
    """A claim that liveness decided to end."""

    at: float
    wall_us: int
    control: str
    token: Token
    reason: str


@dataclass
class Signs:
    """What one control process could have known of one worker."""

    beats: list[Beat] = field(default_factory=list)
    hellos: list[float] = field(default_factory=list)


class Witness:
    """Takes everything down; judges nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.told: list[Told] = []
        self.ended: list[Ended] = []
        self.signs: defaultdict[tuple[str, str], Signs] = defaultdict(Signs)
        """By control process and worker."""
        self.gone: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
        """When the server saw a worker's connection go (True) and come, in order."""
        self.graces: defaultdict[str, list[tuple[float, int, str]]] = defaultdict(list)
        """By control process, when a time of grace had to begin, by both clocks, and why."""
        self.broken: list[str] = []
        """What went wrong without anybody being told."""

    def tell(self, who: str, event: str, **says: object) -> None:
        """Somebody was told that something is so."""
        self.told.append(Told(who, event, says, len(self._store.writers)))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block a fault that was caught and logged is broken, too."""
        root = logging.getLogger()
        others, disabled = root.handlers, root.manager.disable
        root.handlers = [_Faults(self.broken)]
        # Whoever lives with faults warns of them all the time.
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
            root.handlers = others


class _Faults(logging.Handler):
    def __init__(self, broken: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._broken = broken

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # An answer to somebody who cannot be reached any more is no fault of its handler.
        if not isinstance(error, errors.Unavailable):
            self._broken.append(f"{record.name}: {record.getMessage()}: {error!r}")
