"""What an orchestrator apart from its server merges: it asks and enqueues over HTTP."""

import asyncio
import itertools

import msgspec

from cli.client import Client, segment
from core import errors
from core.projections.rounds import RIVALS
from orchestrator import merger

NODES_AT_ONCE = 16
"""Asked about in each look; the others have their turn in the next ones."""


class _Named(msgspec.Struct):
    node_id: str
    name: str


class _Model(msgspec.Struct):
    weights_sha256: str
    error: float | None = None
    role: str = ""


class _Round(msgspec.Struct):
    round_id: str
    status: str
    verdict: str | None = None


class _Workload(msgspec.Struct):
    specialist: str = ""


class _Node(msgspec.Struct):
    champion: _Model | None = None
    rounds: list[_Round] = []
    workload: _Workload = msgspec.field(default_factory=_Workload)


class _Task(msgspec.Struct):
    task_id: str
    status: str


class ServerMerges:
    """A server over HTTP, as orchestrator.merger.Target wants it. What it ordered itself is not
    ordered again; the server knows the key of what another one did."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._turn = itertools.count()
        self._done: set[str] = set()
        """Keys of what was ordered."""
        self._open: dict[str, str] = {}
        """The last merge of each node."""

    async def merges(self) -> list[merger.Order]:
        """What could be merged now. Raises errors.Unavailable."""
        return await asyncio.to_thread(self._merges)

    async def merge(self, order: merger.Order, budget_seconds: float | None, priority: int) -> None:
        """Enqueue a merge, once per its key. Raises errors.Unavailable, Conflict and NotFound."""
        body: dict[str, object] = {
            "topic": order.topic,
            "node_id": order.node_id,
            "priority": priority,
            "role": "merge",
            "parents": order.parents,
        }
        if budget_seconds is not None:
            body["budget_seconds"] = budget_seconds
        try:
            answer = await asyncio.to_thread(
                self._client.post,
                "/training/enqueue",
                body,
                advice="the next look at the rounds tells",
                idempotency_key=order.key,
            )
        except errors.Unavailable:
            raise  # it is ordered again, and its key keeps it from being two
        except errors.AghsanError:
            self._done.add(order.key)
            raise
        self._done.add(order.key)
        self._open[order.node_id] = answer.read("task", _Task).task_id

    def _merges(self) -> list[merger.Order]:
        nodes = self._client.get("/graph").inside("graph").read("nodes", list[_Named])
        first = next(self._turn) * NODES_AT_ONCE % max(1, len(nodes))
        looked_at = (nodes[first:] + nodes[:first])[:NODES_AT_ONCE]
        found = (self._of_node(node) for node in looked_at if not self._is_merging(node.node_id))
        return [order for order in found if order and order.key not in self._done]

    def _is_merging(self, node_id: str) -> bool:
        task_id = self._open.get(node_id)
        if task_id is None:
            return False
        task = self._client.get(f"/tasks/{segment(task_id)}").read("task", _Task)
        if task.status in ("queued", "running"):
            return True
        del self._open[node_id]
        return False

    def _of_node(self, named: _Named) -> merger.Order | None:
        node = self._client.get(f"/nodes/{segment(named.node_id)}").read("node", _Node)
        decided = [one for one in node.rounds if one.verdict not in (None, "void")]
        if not decided:
            return None
        path = f"/rounds/{segment(decided[-1].round_id)}"
        brought = self._client.get(path).inside("round").read("candidates", list[_Model])
        if not any(one.role in RIVALS for one in brought):
            return None
        models = [*brought, *([node.champion] if node.champion else [])]
        measured = {one.weights_sha256: one.error for one in models if one.error is not None}
        least_seconds = merger.least_budget(node.workload.specialist)
        return merger.order_of(named.node_id, named.name, measured, least_seconds)
