"""Agents' signs of life, and what they are told unasked.

Heartbeats (`hb.<worker>`) and the server's word of connections are folded into Presence. An agent
that is mistaken in what it holds, or does not know yet what a person wants, gets a notice.
"""

import asyncio
import logging
from collections.abc import Awaitable
from typing import assert_never

import msgspec

from core import commands, errors, events, runtime, subjects, wire
from core.bus import Bus, Incoming
from core.presence import Presence
from core.projections.state import State
from core.projections.tasks import Task, token_of
from core.projections.workers import Worker
from gateway import sessions

log = logging.getLogger(__name__)


class Heartbeats:
    """Listens to all agents, and sends them notices."""

    def __init__(
        self,
        door: runtime.Runtime,
        presence: Presence,
        known: sessions.Sessions,
        fleet: Bus,
        notices: Bus,
    ) -> None:
        self._door = door
        self._presence = presence
        self._sessions = known
        self._fleet = fleet
        self._notices = notices
        self._connections: dict[str, int] = {}
        """The number of each agent's newest connection, where it was seen to come."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._corrected: set[str] = set()
        """Workers that are just being told what their heartbeats are mistaken in."""
        door.observe(self._on_event)

    async def open(self) -> None:
        """Begin to listen."""
        await self._fleet.subscribe("hb.*", self._on_beat)

    def connection_gone(self, token: str, connection: int) -> None:
        """The server lost a connection of the agent with this subject token."""
        worker = self._sessions.worker_of(token)
        if worker is None or worker.via != "nats":
            return
        # One that was silent, and which the agent left for a new one, may be missed after that.
        if self._connections.get(worker.worker_id, connection) == connection:
            self._connections.pop(worker.worker_id, None)
            self._presence.lost(worker.worker_id, runtime.now())

    def connection_here(self, token: str, connection: int) -> None:
        """An agent's connection stands (again)."""
        worker = self._sessions.worker_of(token)
        if worker is not None and worker.via == "nats":
            self._connections[worker.worker_id] = connection
            self._presence.found(worker.worker_id)

    def forget_connections(self) -> None:
        """A server that was away counts its connections anew."""
        self._connections.clear()

    async def _on_beat(self, message: Incoming) -> None:
        try:
            beat = msgspec.json.decode(message.data, type=wire.Beat)
            sessions.require_own(message.subject.split(".")[1], beat.worker_id)
        except (msgspec.MsgspecError, UnicodeDecodeError, errors.Invalid) as error:
            log.warning("a heartbeat that means nothing: %s", error, extra={"action": "heartbeat"})
            return
        if beat.via != "nats":
            return
        state = self._door.state
        if _is_over(state.workers.table.get(beat.worker_id), beat):
            self._correct(beat)
            return
        if beat.pause != state.workers.table.rows[beat.worker_id].pause:
            self._spawn(self._tell_pause(beat.worker_id))
        held = [(one, _held(state, beat.worker_id, one)) for one in beat.tasks]
        known = [one for one, task in held if task is not None]
        self._presence.beat(beat.worker_id, runtime.now(), beat.session, beat.executor_pid, known)
        self._presence.paused(beat.worker_id, beat.paused_seconds)
        if len(known) < len(held):
            self._correct(beat)
        for _, task in held:
            if task is not None and task.status == "queued":
                self._spawn(self._revive(task, beat))

    def _correct(self, beat: wire.Beat) -> None:
        """Tell an agent what it is mistaken in; while it is being told, what comes waits for its
        next heartbeat."""
        if beat.worker_id not in self._corrected:
            self._corrected.add(beat.worker_id)
            self._spawn(self._tell_truth(beat))

    async def _tell_truth(self, beat: wire.Beat) -> None:
        try:
            worker, lost = await self._door.read(
                lambda state: (
                    state.workers.table.get(beat.worker_id),
                    [one for one in beat.tasks if _held(state, beat.worker_id, one) is None],
                )
            )
            if _is_over(worker, beat):
                notice = wire.Notice(
                    kind="superseded", session=beat.session, detail=sessions.why_over(worker)
                )
                await self._tell(beat.worker_id, notice)
                return
            for one in lost:
                await self._stop(beat.worker_id, one.task_id, "the task is not yours any more")
        except errors.Unavailable as error:
            log.info("nobody is told what may not be so: %s", error, extra={"action": "correct"})
        finally:
            self._corrected.discard(beat.worker_id)

    async def _revive(self, task: Task, beat: wire.Beat) -> None:
        """Give an unrivalled task back to whom it was taken from. One who slept, and whose
        connection lived on, does not know that there is something to ask for."""
        command = commands.ReattachClaim(
            token=token_of(task), worker_id=beat.worker_id, session=beat.session
        )
        try:
            meta = runtime.new_meta(f"agent:{subjects.token(beat.worker_id)}")
            await self._door.execute(command, meta, runtime.nothing)
        except errors.AghsanError as error:
            # Somebody else has it meanwhile; else the next heartbeat asks again.
            log.info("not revived: %s", error, extra={"action": "revive"})

    async def _tell(self, worker_id: str, notice: wire.Notice) -> None:
        """Push a notice; it is repeated on the heartbeats to come as long as it applies."""
        subject = f"_INBOX_{subjects.token(worker_id)}.notice"
        try:
            await self._notices.publish(subject, msgspec.json.encode(notice))
        except errors.Unavailable as error:
            log.info("a notice was not sent: %s", error, extra={"action": "tell"})

    async def _stop(self, worker_id: str, task_id: str, detail: str) -> None:
        await self._tell(worker_id, wire.Notice(kind="stop", task_id=task_id, detail=detail))

    async def _tell_pause(self, worker_id: str) -> None:
        """Tell an agent what a person wants of it by now."""
        try:
            worker = await self._door.read(lambda state: state.workers.table.get(worker_id))
        except errors.Unavailable as error:
            log.info("nobody is told what may not be so: %s", error, extra={"action": "pause"})
            return
        if worker is not None and worker.via == "nats":
            notice = wire.Notice(kind=worker.pause or "resume", session=worker.session)
            await self._tell(worker_id, notice)

    def _on_event(self, event: events.Event) -> None:
        data = event.data
        if isinstance(data, events.WorkerPaused | events.WorkerResumed):
            self._spawn(self._tell_pause(data.worker_id))
        if not isinstance(data, events.OfTasks):
            return
        match data:
            case events.TaskCancelled():
                self._spawn(self._tell_holder(data.task_id, "cancelled by a person"))
            case (
                events.TaskQueued()
                | events.TaskClaimed()
                | events.ClaimAdopted()
                | events.ClaimExpired()
                | events.ClaimRevived()
                | events.ClaimReleased()
                | events.CheckpointStored()
                | events.AttemptFailed()
                | events.TaskCompleted()
                | events.TaskFailed()
                | events.TaskRetried()
            ):
                pass
            case _:
                assert_never(data)

    async def _tell_holder(self, task_id: str, detail: str) -> None:
        task = self._door.state.tasks.table.get(task_id)
        if not isinstance(task, Task) or task.status != "cancelled":
            return  # it was queued again, and may be another's by now
        if task.claim is not None and task.claim.via == "nats":
            await self._stop(task.claim.worker_id, task_id, detail)

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_over(worker: Worker | None, beat: wire.Beat) -> bool:
    return worker is None or worker.session != beat.session


def _held(state: State, worker_id: str, beat: wire.TaskBeat) -> Task | None:
    """The task, if the latest claim of it is this worker's, and stands or can come back."""
    task = state.tasks.table.get(beat.task_id)
    if not isinstance(task, Task) or task.claim is None:
        return None
    mine = task.claim.worker_id == worker_id and task.claim.attempt == beat.attempt
    return task if mine and task.claim.state in ("open", "expired") else None
