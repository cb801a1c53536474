"""Whole records of what the state keeps in brief, folded again from their own subjects."""

import logging

import msgspec

from core import chunks, errors, events, subjects
from core.chunks import ChunkStore
from core.log import HISTORY_MAX, Log
from core.projections import rounds, tasks
from core.projections.rounds import Round
from core.projections.state import State
from core.projections.tasks import Done, Task
from core.runtime import Runtime
from gateway import slices

log = logging.getLogger(__name__)


class Records:
    """Reads tasks and rounds whole."""

    def __init__(self, door: Runtime, events_log: Log, store: ChunkStore) -> None:
        self._door = door
        self._log = events_log
        self._store = store

    async def task(self, task_id: str) -> Task:
        """A task. Raises NotFound, LogUnavailable."""
        row = await self._door.read(lambda state: state.tasks.table.get(task_id))
        if row is None:
            raise errors.NotFound(f"there is no task {task_id}")
        return await self.whole(row)

    async def whole(self, row: Task | Done) -> Task:
        """A task whose row may be brief or shortened. Raises LogUnavailable."""
        task = row if isinstance(row, Task) else self._door.state.tasks.recent.get(row.task_id)
        if task is None or task.shortened:
            task = await self._folded(row.task_id)
        return events.replace(task, round_id=row.round_id)

    async def _folded(self, task_id: str) -> Task:
        task: Task | None = None
        for event in await self._history("task", task_id):
            task = tasks.evolve(task, event.seq, event.at, event.data)
        assert task is not None, "a task that has a row has a history"
        return task

    async def round(self, round_id: str) -> Round:
        """A round. Raises NotFound, LogUnavailable."""
        row = await self._door.read(lambda state: state.rounds.table.get(round_id))
        if row is None:
            raise errors.NotFound(f"there is no round {round_id}")
        if isinstance(row, Round):
            return row
        whole: Round | None = None
        for event in await self._history("round", round_id):
            assert isinstance(event.data, events.OfRounds), "other events have other subjects"
            whole = rounds.evolve(whole, event.at, event.data)
        assert whole is not None, "a round that has a row has a history"
        return whole

    async def of_node(self, node_id: str) -> list[events.Event]:
        """What happened to a node, its reigns among that. Raises LogUnavailable."""
        return await self._history("node", node_id)

    async def _history(self, kind: str, identity: str) -> list[events.Event]:
        """What the state took of an aggregate: not what it quarantined, nor what it has not seen
        yet, which somebody else may have put there."""
        records = await self._log.of_subject(subjects.event(kind, identity), HISTORY_MAX)
        last, quarantine = self._door.durable_seq, self._door.state.quarantine
        known = [one for one in records if one.seq <= last and str(one.seq) not in quarantine]
        decoded = await slices.each(lambda record: events.decode(*record), known)
        return [event for event in decoded if isinstance(event, events.Event)]

    async def metrics(self, task: Task) -> msgspec.Raw:
        """A completed task's metrics, from the artifact store where they are large; where they are
        lost or damaged there, an object that says so. Raises Unavailable."""
        assert task.result is not None, "metrics come with a result"
        if not task.result.metrics_digest:
            return task.result.metrics
        digest = task.result.metrics_digest
        try:
            return msgspec.Raw(await chunks.get_file(self._store, chunks.DESK, digest))
        except (errors.NotFound, errors.ArtifactError) as error:
            log.warning(
                "the metrics of %s cannot be shown: %s",
                task.task_id,
                error,
                extra={"action": "metrics", "task_id": task.task_id},
            )
            return msgspec.Raw(msgspec.json.encode({"unreadable": str(error)}))


def row_of(state: State, task_id: str) -> Task | Done:
    """A task's row right after a command that made sure of it."""
    row = state.tasks.table.rows[task_id]
    if isinstance(row, Done):
        return state.tasks.recent.get(task_id, row)
    return row
