"""Holds the log's own bytes against what everybody was told, and against the rules of the work path.

Nothing here uses decisions or projections: they may be what is wrong.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from core.log import Record
from core.projections.state import State

if TYPE_CHECKING:
    from faults.simulation.world import World


def check(world: "World", records: list[Record], live: str, replayed: State) -> list[str]:
    return []
