"""Growing the tree."""

from collections.abc import Iterator, Mapping

from core import commands, errors, events, specializations, workloads
from core.events import Champion
from core.projections.graph import Node, grown, node_and_budget
from core.projections.state import State


def seed_tree(state: State) -> list[events.EventData]:
    """Plant the seeded nodes that are missing, give those their own work that had none yet, and end
    the reigns of champions of another work than their node's.

    Those that are read-only here, and what hangs from one that is missing so, wait for an upgrade.
    """
    nodes = state.graph.nodes
    there = set(nodes.rows)
    planted: list[events.EventData] = []
    changed: dict[str, events.Workload] = {}
    for seed in specializations.SEEDS:
        workload = events.Workload(specialist=seed.node_id)
        if state.is_read_only("node", seed.node_id):
            continue
        if seed.node_id in nodes:
            if nodes.rows[seed.node_id].workload is None:
                changed[seed.node_id] = workload
            continue
        if seed.parent_id is not None and seed.parent_id not in there:
            continue
        there.add(seed.node_id)
        planted.append(
            events.NodeAdded(
                node_id=seed.node_id,
                parent_id=seed.parent_id,
                name=seed.name,
                description=seed.description,
                label="" if seed.label == seed.name else seed.label,
                ai_name=seed.ai_name,
                workload=workload,
            )
        )
    changes = (events.WorkloadChanged(node_id=one, workload=own) for one, own in changed.items())
    return [*planted, *changes, *_retired(state, changed)]


def _retired(
    state: State, changed: Mapping[str, events.Workload]
) -> Iterator[events.ChampionRetired]:
    """The ends of reigns over nodes that train something else now, or since a log lost its end,
    and of those over their budgets."""
    for node_id, budget, champion in thrones(state):
        if node_id not in state.graph.nodes or state.is_read_only("node", node_id):
            continue
        trains = _trains(state, node_id, changed)
        if champion.workload != trains:
            yield events.ChampionRetired(
                node_id=node_id,
                candidate_id=champion.candidate_id,
                reason=f"it was trained for {workloads.words(champion.workload)}, its node trains "
                f"{workloads.words(trains)} now",
                budget=budget,
            )


def thrones(state: State) -> Iterator[tuple[str, str, Champion]]:
    """Every champion with its node and its budget, "" for the node's own."""
    for node_id, champion in state.graph.champions.rows.items():
        yield node_id, "", champion
    for key, champion in state.graph.of_budgets.rows.items():
        yield *node_and_budget(key), champion


def _trains(state: State, node_id: str, changed: Mapping[str, events.Workload]) -> events.Workload:
    """What a node trains once these have changed."""
    node = state.graph.nodes.rows[node_id]
    while node.node_id not in changed and node.workload is None and node.parent_id is not None:
        node = state.graph.nodes.rows[node.parent_id]
    return changed.get(node.node_id) or state.graph.workload(node.node_id)[0]


def expand(state: State, command: commands.ExpandNode) -> list[events.EventData]:
    """Grow one node. Raises NotFound, Conflict, Invalid, QuotaExceeded."""
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
    added = events.NodeAdded(
        node_id=command.node_id,
        parent_id=command.parent_id,
        name=command.name,
        description=command.description,
        workload=_bound(state, command),
    )
    if state.graph.chars + grown(parent, added).chars > specializations.TREE_CHARS_MAX:
        raise errors.QuotaExceeded(
            f"names, paths and descriptions of the tree have {state.graph.chars} characters, and "
            f"may have {specializations.TREE_CHARS_MAX}; describe this node in fewer words"
        )
    return [added]


def _bound(state: State, command: commands.ExpandNode) -> events.Workload | None:
    """What a new node trains: as asked, what is not said as the nearest ancestor has it."""
    asked = command.workload
    if asked is None:
        return None
    inherited, _ = state.graph.workload(command.parent_id)
    specialist = asked.specialist or inherited.specialist
    given = inherited.parameters if specialist == inherited.specialist else {}
    bound = events.Workload(specialist=specialist, parameters={**given, **asked.parameters})
    if workloads.kind(specialist).takes_corpus:
        bound = events.replace(bound, corpus=inherited.corpus, base_model=inherited.base_model)
    workloads.parameters(bound)
    return bound


def bind_corpus(state: State, command: commands.BindCorpus) -> list[events.EventData]:
    """Let a node train on a corpus, or again what it trained without one. Raises NotFound,
    Conflict."""
    node = state.graph.nodes.get(command.node_id)
    if node is None:
        raise errors.NotFound(
            f"there is no node {command.node_id}; `aghsan node ls` shows those there are, and "
            "`aghsan expand` grows one"
        )
    own = node.workload
    if command.corpus is not None:
        bound = events.Workload(
            specialist=workloads.TEXT, corpus=command.corpus, base_model=command.base_model
        )
        if own is not None and own.specialist == workloads.TEXT:
            bound = events.replace(bound, parameters=own.parameters)
    elif own is None or own.corpus is None:
        raise errors.Conflict(f"{node.node_id} has no corpus of its own; nothing was changed")
    else:
        bound = _without_corpus(state, node)
    if bound == own:
        return []
    changed = {node.node_id: bound}
    return [
        events.WorkloadChanged(node_id=node.node_id, workload=bound),
        *_retired(state, changed),
    ]


def _without_corpus(state: State, node: Node) -> events.Workload:
    """What a seeded node trains by itself, and another as its parent does."""
    if node.node_id in {seed.node_id for seed in specializations.SEEDS}:
        return events.Workload(specialist=node.node_id)
    assert node.parent_id is not None, "the root is seeded"
    return state.graph.workload(node.parent_id)[0]
