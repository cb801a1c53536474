"""The tree and its champions, told again."""

from core import events, specializations
from core.audit import losses
from core.audit.artifacts import Named
from core.audit.findings import Add
from core.audit.losses import Losses
from core.chunks import DESK
from core.events import Base, Champion, Workload


class Tree:
    """Nodes as they grew, and who reigns."""

    def __init__(self, add: Add, lost: Losses) -> None:
        self._add_found = add
        self._losses = lost
        self._depths: dict[str, int] = {}
        self._children: dict[str, int] = {}
        self._champions: dict[str, Champion] = {}
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
        if workload is not None and workload.corpus is not None:
            what = f"corpus {workload.corpus.name} of {node_id}"
            for digest in (workload.corpus.manifest, workload.corpus.hidden):
                self.named.append(Named(seq, what, digest, DESK))

    def retired(self, seq: int, data: events.ChampionRetired) -> None:
        """End the reign of a champion."""
        one = self._champions.get(data.node_id)
        if one is None or one.candidate_id != data.candidate_id:
            reigning = one.candidate_id if one else "nobody"
            detail = f"{data.candidate_id} retires from {data.node_id}, where {reigning} reigns"
            self._add("base", seq, detail, data.node_id)
            if self._losses.of(losses.node(data.node_id)):
                return  # its promotion is lost: to whoever reads the log the one before reigns on
        self._champions.pop(data.node_id, None)

    def reigns(self, seq: int, champion: Champion) -> None:
        """Take the new champion of a node."""
        self._champions[champion.node_id] = champion
        what = f"champion {champion.candidate_id} of {champion.node_id}"
        self.named.append(Named(seq, what, champion.manifest, champion.writer))

    def base(self, node_id: str, workload: Workload) -> Base | None:
        """What an evolver of this workload has to start from now."""
        one = self._champions.get(node_id)
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
