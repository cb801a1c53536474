"""Aggregates of which a record cannot be read: nobody writes on them, and what to do instead."""

from core import errors, subjects
from core.projections.state import State

_INSTEAD = {
    "task": "It is given to nobody, and stays as it is: it can be neither cancelled nor retried,"
    " and needs neither. If what it was to train is still wanted, enqueue it anew",
    "worker": "It stays as it is; come under another id (`--worker-id`)",
}
"""What to do, by kind."""


def words(subject: str) -> str:
    """Why nothing is written on an aggregate, and what to do."""
    _, kind, token = subject.split(".")
    instead = _INSTEAD.get(kind, "It stays as it is; restore a backup if you cannot do without it")
    return (
        f"{kind} {token} is closed: a record of it cannot be read, since it was lost or a newer "
        f"program wrote it, so nobody knows how it stands. {instead}"
    )


def require_open(state: State, kind: str, identity: str) -> None:
    """Raise ReadOnlyAggregate, before anything is said of how a closed aggregate seems to stand."""
    if state.is_read_only(kind, identity):
        raise errors.ReadOnlyAggregate(words(subjects.event(kind, identity)))
