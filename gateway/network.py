"""The nine routes that existing clients know: requests to commands, rows to their words."""

import asyncio
import logging
import secrets
import uuid

import msgspec
from aiohttp import web

from core import chunks, commands, errors, events, plans, runtime, specializations, subjects, wire
from core.bus import Bus
from core.chunks import ChunkStore
from core.decide import tasks as rules
from core.presence import Presence, Seen
from core.projections.graph import Node
from core.projections.state import State
from core.projections.tasks import Done, Task
from core.projections.workers import Worker
from gateway import schemas
from gateway.artifacts import store_metrics
from gateway.records import Records, row_of
from gateway.refusals import Refusals
from gateway.situations import Situations

log = logging.getLogger(__name__)

IDEMPOTENCY_KEY_CHARS_MAX = 256
NODES_AT_ONCE = 500
BY = "http"


class NetworkRoutes:
    """The handlers of the nine routes."""

    def __init__(
        self,
        door: runtime.Runtime,
        presence: Presence,
        records: Records,
        situations: Situations,
        store: ChunkStore,
        refusals: Refusals,
        fleet: Bus,
        http_lease_seconds: float,
    ) -> None:
        self._door = door
        self._presence = presence
        self._records = records
        self._situations = situations
        self._store = store
        self._refusals = refusals
        self._fleet = fleet
        self._http_lease_seconds = http_lease_seconds

    # ── looking ──

    async def status(self, _: web.Request, __: schemas.Nothing) -> schemas.StatusAnswer:
        """How many of everything."""
        return schemas.StatusAnswer(network=await self._door.read(_network))

    async def graph(self, _: web.Request, __: schemas.Nothing) -> schemas.GraphAnswer:
        """The whole tree."""
        rows = await self._door.read(lambda state: list(state.graph.nodes))
        nodes: list[schemas.Node] = []
        for start in range(0, len(rows), NODES_AT_ONCE):
            nodes += map(node_of, rows[start : start + NODES_AT_ONCE])
            await asyncio.sleep(0)  # the loop's turn, however large the tree
        roots = [node for node in nodes if node.parent_id is None]
        graph = schemas.Graph(nodes=nodes, roots=roots, total_nodes=len(nodes))
        return schemas.GraphAnswer(graph=graph)

    async def think(self, _: web.Request, asked: schemas.ThinkRequest) -> schemas.ThoughtAnswer:
        """What both AIs of a node would do, from how it stands."""
        node, situation = await self._situations.of(asked.node_id)
        return schemas.ThoughtAnswer(
            thought=_thought(node, plans.plans(situation, asked.prompt), asked.prompt)
        )

    # ── growing ──

    async def expand(self, _: web.Request, asked: schemas.ExpandRequest) -> schemas.NodeAnswer:
        """Grow a node below another."""
        command = commands.ExpandNode(
            node_id=f"node-{secrets.token_hex(5)}",
            parent_id=asked.parent_id,
            name=asked.name,
            description=asked.description,
            workload=_workload(asked.workload) if asked.workload else None,
        )
        node = await self._door.execute(
            command,
            runtime.new_meta(BY),
            lambda state: node_of(state.graph.nodes.rows[command.node_id]),
        )
        return schemas.NodeAnswer(node=node)

    # ── workers ──

    async def register(
        self, _: web.Request, asked: schemas.RegisterRequest
    ) -> schemas.WorkerAnswer:
        """A worker introduces itself."""
        meta = runtime.new_meta(BY)
        command = commands.RegisterWorker(
            worker_id=asked.worker_id,
            hostname=asked.hostname,
            capabilities=bytes(asked.capabilities),
        )
        return await self._seen(command, asked.worker_id, meta)

    async def heartbeat(
        self, _: web.Request, asked: schemas.HeartbeatRequest
    ) -> schemas.WorkerAnswer:
        """A worker shows that it lives."""
        meta = runtime.new_meta(BY)
        capabilities = bytes(asked.capabilities)
        command = commands.Heartbeat(
            worker_id=asked.worker_id,
            status=asked.status,
            capabilities=None if capabilities == b"{}" else capabilities,
        )
        answer = await self._seen(command, asked.worker_id, meta)
        await self._publish_beat(asked.worker_id, asked.status)
        return answer

    async def _seen(
        self,
        command: commands.RegisterWorker | commands.Heartbeat,
        worker_id: str,
        meta: commands.Meta,
    ) -> schemas.WorkerAnswer:
        self._signed(worker_id, meta.now, signalled=True)  # whether or not the log answers
        worker = await self._door.execute(
            command, meta, lambda state: state.workers.table.rows[worker_id]
        )
        self._signed(worker_id, meta.now, signalled=True)  # as it is known now, be it new
        return schemas.WorkerAnswer(worker=worker_of(worker, meta.now))

    async def _publish_beat(self, worker_id: str, status: str) -> None:
        beat = wire.Beat(worker_id=worker_id, via="http", status=status)
        try:
            subject = f"hb.{subjects.token(worker_id)}"
            await self._fleet.publish(subject, msgspec.json.encode(beat))
        except errors.Unavailable as error:
            log.info("a heartbeat was not published: %s", error, extra={"action": "heartbeat"})

    # ── tasks ──

    async def enqueue(
        self, request: web.Request, asked: schemas.EnqueueRequest
    ) -> schemas.TaskAnswer:
        """Queue a task; the same request under the same Idempotency-Key gives the same task."""
        key = idempotency_key(request)
        needs = asked.requires or schemas.Requires()
        command = commands.EnqueueTask(
            task_id=f"task-{secrets.token_hex(6)}",
            node_id=asked.node_id or specializations.ROOT,
            topic=asked.topic,
            priority=asked.priority,
            role=asked.role,
            method=asked.method,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            is_seed_drawn=asked.seed is None,
            budget_seconds=asked.budget_seconds,
            requires=events.Requires(device=needs.device or "", memory_gb=needs.memory_gb),
            parents=asked.parents,
            idempotency_key=key,
        )

        def view(state: State) -> Task | Done:
            known = state.tasks.keys.get(key) if key else None
            return row_of(state, known.task_id if known else command.task_id)

        row = await self._door.execute(command, runtime.new_meta(BY), view)
        return schemas.TaskAnswer(task=await self._answered(row))

    async def claim(self, _: web.Request, asked: schemas.ClaimRequest) -> schemas.ClaimAnswer:
        """Give a worker the best task for it, or the one whose answer it may have lost."""
        meta = runtime.new_meta(BY)
        worker_id = asked.worker_id
        seen = self._signed(worker_id, meta.now)
        signalled_at = seen.signalled_at if seen else 0
        held = set(self._door.state.tasks.held.get(worker_id, ()))
        command = commands.ClaimTask(
            worker_id=worker_id,
            via="http",
            claim_id=uuid.uuid4().hex,
            lease_seconds=self._http_lease_seconds,
            signalled_at=signalled_at,
        )

        def view(state: State) -> Task | None:
            claimed = rules.held_under(state, worker_id, command.claim_id)
            if claimed is not None:
                return claimed
            again = rules.unanswered(state, worker_id, signalled_at)
            return None if again is None else _open(state, again)

        task = await self._door.execute(command, meta, view)
        if seen is not None and held and (task is None or task.task_id not in held):
            seen.asked_at = meta.now
        return schemas.ClaimAnswer(task=None if task is None else task_of(task, None))

    async def complete(self, _: web.Request, asked: schemas.CompleteRequest) -> schemas.TaskAnswer:
        """Take a result; the first one stands."""
        meta = runtime.new_meta(BY)
        self._signed(asked.worker_id, meta.now)
        metrics, metrics_digest = bytes(asked.metrics), ""
        name, digest = asked.artifact_name, ""
        if self._holds(asked.task_id, asked.worker_id):
            metrics, metrics_digest = await store_metrics(self._store, asked.metrics)
            if asked.artifact_payload is not None:
                name = name or _artifact_name(asked.task_id, asked.worker_id)
                digest = await chunks.put_file(
                    self._store,
                    chunks.DESK,
                    "payload",
                    "payload.json",
                    bytes(asked.artifact_payload),
                )
        command = commands.CompleteTask(
            task_id=asked.task_id,
            worker_id=asked.worker_id,
            metrics=metrics,
            metrics_digest=metrics_digest,
            artifact_name=name,
            artifact_digest=digest,
        )
        try:
            row = await self._door.execute(
                command, meta, lambda state: row_of(state, asked.task_id)
            )
        except (errors.NotOwner, errors.Conflict) as error:
            self._refusals.record("task", asked.task_id, asked.worker_id, error)
            raise
        return schemas.TaskAnswer(task=await self._answered(row))

    def _signed(self, worker_id: str, at: int, *, signalled: bool = False) -> Seen | None:
        """Note a sign of life of an HTTP worker that the state knows, be it from before a restart:
        that it asks in vain while the log does not answer is no silence.

        Strangers leave none, and an agent gives its own: over HTTP anybody can use its name.
        """
        worker = self._door.state.workers.table.get(worker_id)
        if worker is None or worker.via != "http":
            return None
        seen = self._presence.of(worker_id)
        seen.last_seen = max(seen.last_seen, at)
        if signalled:
            seen.signalled_at = max(seen.signalled_at, at)
        return seen

    def _holds(self, task_id: str, worker_id: str) -> bool:
        """Whether a completion would be this task's first: only then are its bytes stored."""
        row = self._door.state.tasks.table.get(task_id)
        return isinstance(row, Task) and row.claim is not None and row.claim.worker_id == worker_id

    async def _answered(self, row: Task | Done) -> schemas.Task:
        task = await self._records.whole(row)
        return task_of(task, await self._records.metrics(task) if task.result else None)


def _artifact_name(task_id: str, worker_id: str) -> str:
    """The name of an artifact that came without one; a worker id that fits no name goes hashed."""
    name = f"artifact-{task_id}-{worker_id}.json"
    if schemas.display_name_fault(name) is None:
        return name
    return f"artifact-{task_id}-{subjects.token(worker_id)}.json"


def _open(state: State, task_id: str) -> Task:
    task = state.tasks.table.rows[task_id]
    assert isinstance(task, Task), "a held task is open"
    return task


def idempotency_key(request: web.Request) -> str:
    """Its key, "" where there is none. Raises errors.Refused, Invalid."""
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return ""
    if len(keys) > 1:
        raise errors.Refused("a request has one Idempotency-Key at most; send one of them")
    key = keys[0].strip()
    if not key:
        raise errors.Refused("the Idempotency-Key is empty; fill it, or leave it out")
    if len(key) > IDEMPOTENCY_KEY_CHARS_MAX or not key.isprintable():
        raise errors.Invalid(
            f"an Idempotency-Key has at most {IDEMPOTENCY_KEY_CHARS_MAX} printable characters"
        )
    return key


# ── rows to words ──


def _network(state: State) -> schemas.Network:
    counts = state.tasks.counts
    return schemas.Network(
        nodes=len(state.graph.nodes),
        workers_total=len(state.workers.table),
        workers_online=state.workers.online,
        tasks=schemas.TaskCounts(
            queued=counts["queued"],
            running=counts["running"],
            completed=counts["completed"],
            total=len(state.tasks.table),
        ),
    )


def _workload(asked: schemas.Bind) -> events.Workload:
    """Raises errors.Invalid where a parameter is no number."""
    try:
        parameters = msgspec.json.decode(asked.parameters, type=dict[str, float])
    except msgspec.ValidationError as error:
        raise errors.Invalid(
            f"the parameters of a workload are numbers by name: {error}"
        ) from error
    return events.Workload(specialist=asked.specialist, parameters=parameters)


def node_of(node: Node) -> schemas.Node:
    """A node as the contract has it."""
    return schemas.Node(
        node_id=node.node_id,
        name=node.name,
        description=node.description,
        parent_id=node.parent_id,
        depth=node.depth,
        path=node.path,
        ai_current_evolver=f"{node.ai_name}-Evolver-v1",
        ai_zero_reinventor=f"{node.ai_name}-Reinventor-v1",
        children=list(node.children),
    )


def worker_of(worker: Worker, last_seen: int) -> schemas.Worker:
    """A worker as the contract has it."""
    return schemas.Worker(
        worker_id=worker.worker_id,
        hostname=worker.hostname,
        capabilities=worker.capabilities,
        status=worker.status,
        last_seen=events.isoformat(last_seen),
    )


def task_of(task: Task, metrics: msgspec.Raw | None) -> schemas.Task:
    """A task as the contract has it; `metrics` where it has a result."""
    result = None
    if task.result is not None and metrics is not None:
        result = schemas.TaskResult(
            worker_id=task.result.worker_id,
            metrics=metrics,
            artifact_name=task.result.artifact_name,
            artifact_uploaded=task.result.artifact_uploaded,
            completed_at=events.isoformat(task.result.completed_at),
        )
    return schemas.Task(
        task_id=task.task_id,
        node_id=task.node_id,
        topic=task.topic,
        priority=task.priority,
        status=task.status,
        assigned_worker=task.holder,
        created_at=events.isoformat(task.created_at),
        updated_at=events.isoformat(task.updated_at),
        result=result,
    )


def _thought(node: Node, thought: plans.Plans, prompt: str) -> schemas.Thought:
    def plan(version: str, one: plans.Plan) -> schemas.Plan:
        ai = f"{node.ai_name}-{version}-v1"
        return schemas.Plan(ai=ai, focus=one.focus, plan=one.steps, prompt=prompt)

    return schemas.Thought(
        node_id=node.node_id,
        node_name=node.name,
        current_evolution_thought=plan("Evolver", thought.evolver),
        zero_reinvention_thought=plan("Reinventor", thought.reinventor),
    )
