"""The tree of specializations and the champions its nodes serve."""

from core import errors, events, specializations
from core.events import Base, Champion, Workload
from core.projections.tables import Table
from core.values import Gates


class Node(events.Value, frozen=True, kw_only=True):
    """One specialization. `workload` and `gates` are set where the node has its own."""

    node_id: str
    name: str
    parent_id: str | None
    description: str
    ai_name: str
    depth: int
    path: str
    children: tuple[str, ...] = ()
    workload: Workload | None = None
    gates: Gates | None = None

    @property
    def chars(self) -> int:
        """What it adds to an answer that shows the tree: both its AIs go by `ai_name`."""
        return len(self.name) + 2 * len(self.ai_name) + len(self.path) + len(self.description)


def grown(parent: Node | None, data: events.NodeAdded) -> Node:
    """The node that grows below another, or as a root."""
    label = data.label or data.name
    return Node(
        node_id=data.node_id,
        name=data.name,
        parent_id=data.parent_id,
        description=data.description,
        ai_name=data.ai_name or data.name,
        depth=parent.depth + 1 if parent else 0,
        path=f"{parent.path}/{label}" if parent else label,
        workload=data.workload,
    )


class Graph:
    """Nodes in the order they grew, each with its reigning champion."""

    def __init__(self) -> None:
        self.nodes: Table[Node] = Table("nodes")
        self.champions: Table[Champion] = Table("champions")
        self.best: Table[Champion] = Table("best")
        """The model of each node that none before or after was surely better than."""
        self.of_budgets: Table[Champion] = Table("of_budgets")
        """The champion of each budget of a node, by `of_budget`."""
        self.promotions: dict[str, int] = {}
        self.chars = 0
        """Of what all nodes say of themselves."""

    def added(self, seq: int, at: int, data: events.NodeAdded) -> None:
        """Fold NodeAdded. What it hangs from is older, so that no way up goes in a circle."""
        if data.node_id in self.nodes:
            raise errors.UnfitEvent(f"there is a node {data.node_id} already")
        parent = self.nodes.rows[data.parent_id] if data.parent_id is not None else None
        node = grown(parent, data)
        self.nodes.put(data.node_id, node)
        self.chars += node.chars
        if parent is not None:
            children = (*parent.children, data.node_id)
            self.nodes.put(parent.node_id, events.replace(parent, children=children))

    def restore(self, rows: list[Node]) -> None:
        """Put back nodes of a snapshot, in their order."""
        self.nodes.rows.update((row.node_id, row) for row in rows)
        self.chars += sum(row.chars for row in rows)

    def promoted(self, seq: int, at: int, data: events.ChampionPromoted) -> None:
        """Fold ChampionPromoted."""
        if data.budget:
            self.of_budgets.put(of_budget(data.node_id, data.budget), data.champion)
            return
        self.champions.put(data.node_id, data.champion)
        self.promotions[data.node_id] = self.promotions.get(data.node_id, 0) + 1
        if data.is_best or data.node_id not in self.best:
            self.best.put(data.node_id, data.champion)

    def chosen(self, seq: int, at: int, data: events.ChampionChosen) -> None:
        """Fold ChampionChosen. Whom a person puts in the place of the best ever is that from now
        on: they know of the old one what no gate does."""
        if data.budget:
            self.of_budgets.put(of_budget(data.node_id, data.budget), data.champion)
            return
        self.champions.put(data.node_id, data.champion)
        best = self.best.get(data.node_id)
        if best is None or best.candidate_id == data.instead_of:
            self.best.put(data.node_id, data.champion)

    def gates_changed(self, seq: int, at: int, data: events.GatesChanged) -> None:
        """Fold GatesChanged."""
        node = self.nodes.rows[data.node_id]
        self.nodes.put(data.node_id, events.replace(node, gates=data.gates))

    def workload_changed(self, seq: int, at: int, data: events.WorkloadChanged) -> None:
        """Fold WorkloadChanged."""
        node = self.nodes.rows[data.node_id]
        self.nodes.put(data.node_id, events.replace(node, workload=data.workload))

    def retired(self, seq: int, at: int, data: events.ChampionRetired) -> None:
        """Fold ChampionRetired."""
        key = of_budget(data.node_id, data.budget) if data.budget else data.node_id
        thrones = self.of_budgets if data.budget else self.champions
        if thrones.rows[key].candidate_id != data.candidate_id:
            raise errors.UnfitEvent(f"{data.candidate_id} does not reign over {key}")
        if data.budget:
            self.of_budgets.drop(key)
            return
        self.champions.drop(data.node_id)
        if data.node_id in self.best:
            self.best.drop(data.node_id)

    def workload(self, node_id: str) -> tuple[Workload, bool]:
        """What a node trains, and whether that is inherited from its nearest ancestor."""
        node = self.nodes.rows[node_id]
        inherited = False
        while node.workload is None:
            if node.parent_id is None:
                return Workload(specialist=specializations.ROOT), True
            node, inherited = self.nodes.rows[node.parent_id], True
        return node.workload, inherited

    def trains(self, node_id: str, workload: Workload) -> bool:
        """Whether a node trains this now. What one does whose first record was lost, nobody knows:
        it counts as something else."""
        return node_id in self.nodes and self.workload(node_id)[0] == workload

    def gates(self, node_id: str) -> Gates:
        """By what a node's candidates are judged: its own gates, its nearest ancestor's that has
        some, or the defaults."""
        return self.gates_of(node_id)[0]

    def gates_of(self, node_id: str) -> tuple[Gates, bool]:
        """As `gates`, and whether they are not the node's own. A node whose first record was lost
        may have a round, for which the defaults hold until it ends void."""
        node = self.nodes.get(node_id)
        while node is not None and node.gates is None:
            node = None if node.parent_id is None else self.nodes.rows[node.parent_id]
        if node is None or node.gates is None:
            return Gates(), True
        return node.gates, node.node_id != node_id

    def reigning(self, node_id: str, budget: str = "") -> Champion | None:
        """The champion of a node, or of one of its budgets."""
        if budget:
            return self.of_budgets.get(of_budget(node_id, budget))
        return self.champions.get(node_id)

    def base(self, node_id: str, workload: Workload) -> Base | None:
        """The champion an evolver of this workload starts from, if one reigns."""
        return as_base(self.champions.get(node_id), workload)


def as_base(champion: Champion | None, workload: Workload) -> Base | None:
    """A champion of this workload as something to start from or to be measured against."""
    if champion is None or champion.workload != workload:
        return None
    return Base(
        candidate_id=champion.candidate_id,
        manifest=champion.manifest,
        writer=champion.writer,
        weights_sha256=champion.weights_sha256,
    )


def of_budget(node_id: str, budget: str) -> str:
    """The key of a budget's champion."""
    return f"{node_id}/{budget}"


def node_and_budget(key: str) -> tuple[str, str]:
    """What `of_budget` made a key of. Ids of nodes hold no slash."""
    node_id, _, budget = key.partition("/")
    return node_id, budget
