"""The tree of specializations and the champions its nodes serve."""

from core import events, specializations
from core.events import Base, Champion, Workload
from core.projections.tables import Table


class Node(events.Value, frozen=True, kw_only=True):
    """One specialization. `workload` is set where the node has one of its own."""

    node_id: str
    name: str
    parent_id: str | None
    description: str
    ai_name: str
    depth: int
    path: str
    children: tuple[str, ...] = ()
    workload: Workload | None = None


class Graph:
    """Nodes in the order they grew, each with its reigning champion."""

    def __init__(self) -> None:
        self.nodes: Table[Node] = Table("nodes")
        self.champions: Table[Champion] = Table("champions")
        self.promotions: dict[str, int] = {}

    def added(self, seq: int, at: int, data: events.NodeAdded) -> None:
        """Fold NodeAdded."""
        parent = self.nodes.get(data.parent_id) if data.parent_id is not None else None
        label = data.label or data.name
        node = Node(
            node_id=data.node_id,
            name=data.name,
            parent_id=data.parent_id,
            description=data.description,
            ai_name=data.ai_name or data.name,
            depth=parent.depth + 1 if parent else 0,
            path=f"{parent.path}/{label}" if parent else label,
            workload=data.workload,
        )
        self.nodes.put(data.node_id, node)
        if parent is not None:
            children = (*parent.children, data.node_id)
            self.nodes.put(parent.node_id, events.replace(parent, children=children))

    def promoted(self, seq: int, at: int, data: events.ChampionPromoted) -> None:
        """Fold ChampionPromoted."""
        self.champions.put(data.node_id, data.champion)
        self.promotions[data.node_id] = self.promotions.get(data.node_id, 0) + 1

    def workload(self, node_id: str) -> tuple[Workload, bool]:
        """What a node trains, and whether that is inherited from its nearest ancestor."""
        node = self.nodes.rows[node_id]
        inherited = False
        while node.workload is None:
            if node.parent_id is None:
                return Workload(specialist=specializations.ROOT), True
            node, inherited = self.nodes.rows[node.parent_id], True
        return node.workload, inherited

    def base(self, node_id: str, workload: Workload) -> Base | None:
        """The champion an evolver of this workload starts from, if one reigns."""
        champion = self.champions.get(node_id)
        if champion is None or champion.workload != workload:
            return None
        return Base(
            candidate_id=champion.candidate_id,
            manifest=champion.manifest,
            writer=champion.writer,
            weights_sha256=champion.weights_sha256,
        )
