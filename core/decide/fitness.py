"""What a worker can train: its lane, and what it has found itself unfit for.

A worker that lacks what a task takes (memory, the base model that it is over) gives it back without
a strike. That is remembered with the worker, for its session and some minutes: an agent that was
started again may have what it lacked, and memory may have been wanting for a moment. It holds for
all tasks alike, so that a long queue of them teaches it once.
"""

from collections.abc import Callable

from core import methods
from core.events import Base, Requires
from core.projections.state import State
from core.projections.tasks import Kind, Task, kind_of
from core.projections.workers import Worker

TOLD_MAX = 8
CLOSED = "a record of it was lost, or cannot be read; if it is still wanted, enqueue it anew"
OUTDATED = (
    "nothing can come of it: its node trains something else now than this task was queued for; "
    "`aghsan task cancel` ends it"
)
NOBODY = "no worker is online; start one with `aghsan agent`"
UNFIT = "no worker online can be given it"


def _memory_gb(lane: str) -> float:
    """The memory a lane promises: `cuda-80` stands for 80 GB, `cpu-16` for 16."""
    _, _, memory = lane.partition("-")
    return float(memory) if memory.isdigit() else 0.0


def lane_runs(lane: str, requires: Requires) -> bool:
    """Whether a device of this lane can run a task with these requirements."""
    device = lane.partition("-")[0]
    if requires.device and requires.device != device:
        return False
    return requires.memory_gb <= _memory_gb(lane) if requires.memory_gb else True


def base_of(state: State, task: Task) -> Base | None:
    """The model that a task starts from, or learns from, if it is claimed now."""
    if not methods.takes_base(task.role, task.method):
        return None
    return task.base if task.resume else state.graph.base(task.node_id, task.workload)


def unfit(state: State, worker: Worker, now: int) -> Callable[[str], bool] | None:
    """Whether a worker counts as unfit for a queued task; None where it is fit for any."""
    kinds = [mark.kind for mark in worker.unfit_at(now)]
    if not kinds:
        return None

    def is_unfit(task_id: str) -> bool:
        task = state.tasks.table.rows[task_id]
        return isinstance(task, Task) and kind_of(task, base_of(state, task)) in kinds

    return is_unfit


def is_outdated(state: State, task: Task) -> bool:
    """Whether an open task is to train what its node does not train any more."""
    return state.graph.workload(task.node_id)[0] != task.workload


def why_it_waits(state: State, task: Task, now: int) -> list[str]:
    """Why no worker may be given a queued task, by worker online; empty where one may be. A closed
    task waits for nobody, and nothing can come of an outdated one."""
    if task.task_id in state.tasks.closed:
        return [CLOSED]
    if is_outdated(state, task):
        return [OUTDATED]
    kind, found = kind_of(task, base_of(state, task)), []
    for worker_id in (*state.workers.online_by["nats"], *state.workers.online_by["http"]):
        lacks = _lacks(state.workers.table.rows[worker_id], task, kind, now)
        if not lacks:
            return []
        found.append(f"{worker_id}: {lacks}")
    if not found:
        return [NOBODY]
    more = len(found) - TOLD_MAX
    return [UNFIT, *found[:TOLD_MAX], *([f"and {more} more"] if more > 0 else [])]


def _lacks(worker: Worker, task: Task, kind: Kind, now: int) -> str:
    if worker.pause:
        return "a person gives it nothing to do (`aghsan worker resume`)"
    if worker.via == "http":
        return "over HTTP no merges are given out" if task.role == "merge" else ""
    if not lane_runs(worker.lane, task.requires):
        return f"its lane {worker.lane} is not what the task requires"
    return next((mark.reason for mark in worker.unfit_at(now) if mark.kind == kind), "")


def others_can(state: State, task: Task, lanes: set[str], now: int) -> bool:
    """Whether an agent online in one of these lanes, other than its holder, may be given a task."""
    kind, rows = kind_of(task, base_of(state, task)), state.workers.table.rows
    return any(
        row.lane in lanes and row.worker_id != task.holder and not _lacks(row, task, kind, now)
        for row in map(rows.__getitem__, state.workers.online_by["nats"])
    )


def stuck_nodes(state: State, now: int) -> set[str]:
    """Nodes whose usual tasks no agent online that is given work is fit for: those of both rivals,
    or of one alone, by any method (auto).

    A worker over HTTP may train them, once it holds a task: others say hello and never ask.
    """
    online, held = state.workers.online_by, state.tasks.held
    rows = state.workers.table.rows
    if any(worker_id in held and not rows[worker_id].pause for worker_id in online["http"]):
        return set()
    agents = [rows[worker_id] for worker_id in online["nats"] if not rows[worker_id].pause]
    kinds = [mark.kind for mark in agents[0].unfit_at(now)] if agents else []
    for agent in agents[1:]:
        found = [mark.kind for mark in agent.unfit_at(now)]
        kinds = [kind for kind in kinds if kind in found]
    return {kind.node_id for kind in kinds if _is_usual(state, kind)}


def _is_usual(state: State, kind: Kind) -> bool:
    if kind.role == "merge":
        return False
    workload = state.graph.workload(kind.node_id)[0]
    base = state.graph.base(kind.node_id, workload)
    models = (base.candidate_id,) if base and methods.takes_base(kind.role, "auto") else ()
    return kind == Kind(
        node_id=kind.node_id, workload=workload, role=kind.role, method="auto", models=models
    )
