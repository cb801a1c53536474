"""Merges: which models one is made of, named by a person or found where nobody named any."""

from collections.abc import Iterable

from core import commands, errors
from core.events import Base, Role, Workload
from core.methods import PARENTS_MAX
from core.projections.rounds import Round, base_of
from core.projections.state import State

PARENTS_MIN = 2
CANDIDATES_MAX = 4
"""That a merge may bring: a soup of its parents, their ensemble, a student of that, and the int8
form of one of these."""


def role_of(command: commands.EnqueueTask) -> Role:
    """The role of a task as it is queued: whoever asks for the method `merge` asks for the role.

    Raises errors.Invalid where method and role exclude each other, and for parents of a task that
    merges nothing.
    """
    if "merge" not in (command.method, command.role):
        if command.parents:
            raise errors.Invalid(
                "parents are what a merge is made of, and this task is none: ask for the method "
                "merge, or leave them out"
            )
        return command.role
    if command.role not in ("dual", "merge"):
        raise errors.Invalid(f"a merge has a role of its own, not {command.role}: leave that out")
    if command.method not in ("auto", "merge"):
        raise errors.Invalid(f"the role merge has its own method, not {command.method}")
    return "merge"


def parents_of(state: State, command: commands.EnqueueTask, workload: Workload) -> list[Base]:
    """What a merge is made of, from two models to four; the champion comes first if it is one.

    Where nothing is named: the node's champion, and the models that its last round judged.

    Raises errors.NotFound for a name that none of the node's models has, errors.Invalid for too
    many, errors.Conflict where there is nothing to merge.
    """
    found = _judged(state, command.node_id, workload)
    if command.parents:
        known = _distinct([*found, *_standing(state, command.node_id, workload)])
        found = _named(command, known)
    found = _distinct(found)[:PARENTS_MAX]
    if len(found) < PARENTS_MIN:
        raise errors.Conflict(
            f"a merge takes {PARENTS_MIN} different models of {command.node_id} or more, and there "
            f"{'is only ' + found[0].candidate_id if found else 'are none'}; what can be merged is "
            "a champion, and candidates that a round has judged for what the node trains now"
        )
    return found


def _named(command: commands.EnqueueTask, known: list[Base]) -> list[Base]:
    """Of the known ones those that are named, by candidate or by weights."""
    names = set(command.parents)
    if len(names) > PARENTS_MAX:
        raise errors.Invalid(f"a merge takes {PARENTS_MAX} parents at most, not {len(names)}")
    found = [one for one in known if names & {one.candidate_id, one.weights_sha256}]
    missing = names - {name for one in found for name in (one.candidate_id, one.weights_sha256)}
    if missing:
        there = ", ".join(one.candidate_id for one in known) or "none yet"
        raise errors.NotFound(
            # Clients know by the last words of a 400 that it stands for a 404.
            f"{', '.join(sorted(missing))} cannot be merged at {command.node_id}: among its "
            f"champion and the candidates of its last rounds ({there}) not found"
        )
    return found


def _judged(state: State, node_id: str, workload: Workload) -> list[Base]:
    champion = state.graph.base(node_id, workload)
    judged = state.rounds.node(node_id).judged
    models = judged.models if judged is not None and judged.workload == workload else ()
    return [*models] if champion is None else [champion, *models]


def _standing(state: State, node_id: str, workload: Workload) -> Iterable[Base]:
    """The candidates of rounds that are not decided yet."""
    for round_id in state.rounds.undecided:
        row = state.rounds.table.rows[round_id]
        if isinstance(row, Round) and (row.node_id, row.workload) == (node_id, workload):
            yield from (base_of(standing.candidate) for standing in row.standings)


def _distinct(models: Iterable[Base]) -> list[Base]:
    """The same weights are one model, however often they were brought."""
    first: dict[str, Base] = {}
    for one in models:
        first.setdefault(one.weights_sha256, one)
    return list(first.values())
