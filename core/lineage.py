"""The champions of a node in the order of their reigns, by the events of that node."""

from collections.abc import Iterable
from typing import NamedTuple

from core import events
from core.events import Champion


class Reign(NamedTuple):
    """One champion of a node; times are microseconds since 1970.

    `retired_at` is when the reign ended without a successor, and `reason` why; 0 and "" where it
    goes on or another champion followed at once.
    """

    champion: Champion
    instead_of: str
    promoted_at: int
    retired_at: int = 0
    reason: str = ""


def reigns(of_node: Iterable[events.Event]) -> list[Reign]:
    """The reigns that a node's events tell of."""
    found: list[Reign] = []
    for event in of_node:
        match event.data:
            case events.ChampionPromoted(champion=champion, instead_of=instead_of):
                found.append(Reign(champion, instead_of, event.at))
            case events.ChampionRetired(candidate_id=candidate_id, reason=reason):
                if found and found[-1].champion.candidate_id == candidate_id:
                    found[-1] = found[-1]._replace(retired_at=event.at, reason=reason)
            case _:
                pass
    return found


def reigning(found: list[Reign]) -> Reign | None:
    """The champion that reigns now."""
    return found[-1] if found and not found[-1].retired_at else None
