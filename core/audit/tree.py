"""The tree, its gates and its champions, told again."""

from collections.abc import Iterator

from core import events, specializations
from core.audit import losses
from core.audit.artifacts import Named
from core.audit.findings import Add
from core.audit.losses import Losses
from core.chunks import DESK
from core.events import Base, Champion, Workload
from core.values import Gates


class Tree:
    """Nodes as they grew, and who reigns."""

    def __init__(self, add: Add, lost: Losses) -> None:
        self._add_found = add
        self._losses = lost
        self._depths: dict[str, int] = {}
        self._children: dict[str, int] = {}
        self._parents: dict[str, str | None] = {}
        self._workloads: dict[str, Workload] = {}
        self._gates: dict[str, Gates] = {}
        self._champions: dict[tuple[str, str], Champion] = {}
        """By node and budget, "" for the node's own."""
        self._reigned: dict[tuple[str, str, str], Champion] = {}
        """Every champion that ever was, by node, budget and candidate, as it was last."""
        self._best: dict[str, Champion] = {}
        self.named: list[Named] = []

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._depths

    def _add(self, rule: str, seq: int, detail: str, *node_ids: str) -> None:
        """Add a violation that rests on these nodes."""
        cause = self._losses.of(*(losses.node(one) for one in node_ids))
        self._add_found(rule, seq, detail, cause)

    def added(self, seq: int, data: events.NodeAdded) -> None:
        """Take a node, which is below an older one, so that no cycle can be."""
        if fault := self._fault(data):
            is_orphan = data.parent_id is not None and data.parent_id not in self._depths
            rests_on = (data.parent_id or "",) if is_orphan else ()
            self._add("graph", seq, f"{data.node_id}: {fault}", *rests_on)
        parent = data.parent_id
        self._depths.setdefault(data.node_id, self._depths.get(parent or "", -1) + 1)
        if parent is not None:
            self._children[parent] = self._children.get(parent, 0) + 1
        if data.node_id not in self._parents:  # what is added again does not fit for a reader
            self._parents[data.node_id] = parent
        self._trains(seq, data.node_id, data.workload)

    def _fault(self, data: events.NodeAdded) -> str:
        parent = data.parent_id
        if data.node_id in self._depths:
            return "it was added before"
        if len(self._depths) >= specializations.NODES_MAX:
            return f"the tree holds {len(self._depths)} nodes, the most it may"
        if parent is None:
            return "the tree has a root already" if self._depths else ""
        if parent not in self._depths:
            return f"its parent {parent} was not there yet"
        if self._depths[parent] >= specializations.DEPTH_MAX:
            return f"it is deeper than {specializations.DEPTH_MAX}"
        if self._children.get(parent, 0) >= specializations.CHILDREN_MAX:
            return f"{parent} has more than {specializations.CHILDREN_MAX} children"
        return ""

    def changed(self, seq: int, data: events.WorkloadChanged) -> None:
        """Take another workload of a node."""
        if data.node_id not in self._depths:
            detail = f"{data.node_id} trains something else, and was never added"
            self._add("graph", seq, detail, data.node_id)
        self._trains(seq, data.node_id, data.workload)

    def _trains(self, seq: int, node_id: str, workload: Workload | None) -> None:
        if workload is not None:
            self._workloads[node_id] = workload
        if workload is not None and workload.corpus is not None:
            what = f"corpus {workload.corpus.name} of {node_id}"
            for digest in (workload.corpus.manifest, workload.corpus.hidden):
                self.named.append(Named(seq, what, digest, DESK))

    def gates_changed(self, seq: int, data: events.GatesChanged) -> None:
        """Take other gates of a node."""
        if data.node_id not in self._depths:
            detail = f"{data.node_id} is judged by other gates, and was never added"
            self._add("graph", seq, detail, data.node_id)
        self._gates.pop(data.node_id, None)
        if data.gates is not None:
            self._gates[data.node_id] = data.gates

    def gates(self, node_id: str) -> Gates:
        """By what candidates of a node are judged now."""
        return next((self._gates[one] for one in self._way_up(node_id) if one in self._gates),
                    Gates())  # fmt: skip

    def trains(self, node_id: str) -> Workload:
        """What a node trains now."""
        own = (self._workloads[one] for one in self._way_up(node_id) if one in self._workloads)
        return next(own, Workload(specialist=specializations.ROOT))

    def rests_on(self, node_id: str) -> Iterator[str]:
        """The subjects that what is inherited by a node may come from."""
        return map(losses.node, self._way_up(node_id))

    def _way_up(self, node_id: str) -> Iterator[str]:
        seen: set[str] = set()
        at: str | None = node_id
        while at is not None and at not in seen:  # what is no tree may go in a circle
            seen.add(at)
            yield at
            at = self._parents.get(at)

    def retired(self, seq: int, data: events.ChampionRetired) -> None:
        """End the reign of a champion."""
        one = self._champions.get((data.node_id, data.budget))
        if one is None or one.candidate_id != data.candidate_id:
            reigning = one.candidate_id if one else "nobody"
            over = f"the budget {data.budget!r} of {data.node_id}" if data.budget else data.node_id
            detail = f"{data.candidate_id} retires from {over}, where {reigning} reigns"
            self._add("base", seq, detail, data.node_id)
            if self._losses.of(losses.node(data.node_id)):
                return  # its promotion is lost: to whoever reads the log the one before reigns on
        self._champions.pop((data.node_id, data.budget), None)
        if not data.budget:
            self._best.pop(data.node_id, None)

    def reigns(self, seq: int, champion: Champion, budget: str = "") -> None:
        """Take the new champion of a node, or of a budget of it."""
        node_id, name = champion.node_id, champion.candidate_id
        self._champions[node_id, budget] = self._reigned[node_id, budget, name] = champion
        what = f"champion {name} of {node_id}"
        self.named.append(Named(seq, what, champion.manifest, champion.writer))

    def promoted_best(self, data: events.ChampionPromoted) -> None:
        """Take whom a judge says that the node never had a better one than."""
        if data.is_best or data.node_id not in self._best:
            self._best[data.node_id] = data.champion

    def chosen_best(self, data: events.ChampionChosen) -> None:
        """Take whom a person put in the place of the best."""
        best = self._best.get(data.node_id)
        if best is None or best.candidate_id == data.instead_of:
            self._best[data.node_id] = data.champion

    def reigned(self, node_id: str, candidate_id: str, budget: str) -> Champion | None:
        """A champion that was, or is."""
        return self._reigned.get((node_id, budget, candidate_id))

    def reigning(self, node_id: str) -> Champion | None:
        """The champion of a node."""
        return self._champions.get((node_id, ""))

    def best(self, node_id: str, workload: Workload) -> Base | None:
        """The best that a node ever had, where that is not who reigns."""
        best, champion = _base(self._best.get(node_id), workload), self.base(node_id, workload)
        return best if best != champion else None

    def base(self, node_id: str, workload: Workload, budget: str = "") -> Base | None:
        """What an evolver of this workload has to start from now, or who reigns for a budget."""
        return _base(self._champions.get((node_id, budget)), workload)


def _base(one: Champion | None, workload: Workload) -> Base | None:
    if one is None or one.workload != workload:
        return None
    return Base(
        candidate_id=one.candidate_id,
        manifest=one.manifest,
        writer=one.writer,
        weights_sha256=one.weights_sha256,
    )


def base_name(base: Base | None) -> str:
    """A base in words."""
    return f"champion {base.candidate_id}" if base else "no champion"
