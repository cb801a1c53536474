"""All that is in a state, the derived included, so that two of them can be compared."""

from array import array
from collections.abc import Iterable
from typing import Any

from core import snapshots
from core.projections.queue import Queue
from core.projections.state import State
from core.projections.tables import Table

UNCOMPARED = {"_folds"}
"""Functions, and made anew for every state."""
UNORDERED = {"queued_of_role"}
"""Counts that are looked up and never gone through."""


def loaded(head: snapshots.Head, parts: Iterable[bytes]) -> State:
    """The state of a whole snapshot. Raises errors.SnapshotUnusable."""
    loader = snapshots.Loader(head)
    for data in parts:
        loader.take(data)
    return loader.finish()


def contents(state: State) -> dict[str, object]:
    """Everything in a state by its path, orders included. What the queue has not cleaned up and
    how far digests are worked out is left aside."""
    found: dict[str, object] = {}
    _walk(state, "state", state, found)
    return found


def _walk(state: State, path: str, value: Any, found: dict[str, object]) -> None:
    match value:
        case Queue():
            ticket = state.tasks.ticket
            found[path] = {
                (kind, lot, entry)
                for kind, shelf in value._shelves.items()
                for lot, heap in shelf.lots.items()
                for entry in heap
                if ticket(entry[2]) == entry[1]
            }
            found[f"{path}._lengths"] = {kind: n for kind, n in value._lengths.items() if n}
            found[f"{path}._live"] = value._live
        case Table():
            found[path] = (value.name, list(value.rows.items()))
        case dict() if path.rpartition(".")[2] in UNORDERED:
            found[path] = dict(value)
        case dict():
            found[path] = [
                (key, list(one.items()) if isinstance(one, dict) else one)
                for key, one in value.items()
            ]
        case int() | str() | list() | set() | array():
            found[path] = value
        case _:
            for name, one in vars(value).items():
                if name not in UNCOMPARED:
                    _walk(state, f"{path}.{name}", one, found)
