"""Growing the tree."""

from core import commands, errors, events, specializations
from core.projections.state import State


def seed_tree(state: State) -> list[events.EventData]:
    """Plant the seeded nodes that are missing."""
    return [
        events.NodeAdded(
            node_id=seed.node_id,
            parent_id=seed.parent_id,
            name=seed.name,
            description=seed.description,
            label="" if seed.label == seed.name else seed.label,
            ai_name=seed.ai_name,
            workload=events.Workload(specialist=seed.specialist) if seed.specialist else None,
        )
        for seed in specializations.SEEDS
        if seed.node_id not in state.graph.nodes
    ]


def expand(state: State, command: commands.ExpandNode) -> list[events.EventData]:
    """Grow one node. Raises NotFound, Conflict, QuotaExceeded."""
    nodes = state.graph.nodes
    parent = nodes.get(command.parent_id)
    if parent is None:
        raise errors.NotFound("parent not found")
    if command.node_id in nodes:
        raise errors.Conflict(f"a node {command.node_id} exists already; ask again")
    if parent.depth + 1 > specializations.DEPTH_MAX:
        raise errors.QuotaExceeded(
            f"the tree is at most {specializations.DEPTH_MAX} levels deep; "
            f"grow this branch from a node nearer the root"
        )
    if len(parent.children) >= specializations.CHILDREN_MAX:
        raise errors.QuotaExceeded(
            f"{parent.node_id} has {len(parent.children)} children, the most a node may have; "
            f"grow a level between"
        )
    if len(nodes) >= specializations.NODES_MAX:
        raise errors.QuotaExceeded(f"the tree holds {len(nodes)} nodes, the most it may")
    return [
        events.NodeAdded(
            node_id=command.node_id,
            parent_id=command.parent_id,
            name=command.name,
            description=command.description,
            workload=command.workload,
        )
    ]
