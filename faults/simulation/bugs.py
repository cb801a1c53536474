"""Bugs to be put into the product on purpose: a check that cannot fail is none."""

import asyncio
import contextlib
from collections.abc import Iterator
from unittest import mock

from core import commands, decide, errors, events, runtime
from core.decide import tasks
from core.events import Token
from core.log import Message
from core.projections.state import State
from core.projections.tasks import Task
from faults.simulation.world import Spoil, World
from orchestrator import liveness


@contextlib.contextmanager
def without_fence(world: World) -> Iterator[None]:
    """The log takes an append wherever its writer believes that the log ends."""
    world.store.fenced = False
    yield


def acknowledge_before_append(world: World) -> contextlib.AbstractContextManager[object]:
    """Whoever waits is answered as soon as it is decided."""
    append = runtime.Runtime._append_next

    async def hasty(door: runtime.Runtime) -> None:
        for work in door._pending:
            if not work.answer.done() and not isinstance(work.result, Exception):
                work.answer.set_result(work.result)
        await asyncio.sleep(0)
        await append(door)

    return mock.patch.object(runtime.Runtime, "_append_next", hasty)


def without_grace(world: World) -> contextlib.AbstractContextManager[object]:
    """Nothing is forgiven to those who could not be heard."""
    return mock.patch.object(liveness.Grace, "covers", return_value=False)


def overlook_absences(world: World) -> contextlib.AbstractContextManager[object]:
    """Liveness takes its own absence for the silence of others."""
    return mock.patch.object(liveness, "ABSENCE_SHARE", 1e9)


def take_doubt_for_failure(world: World) -> contextlib.AbstractContextManager[object]:
    """An append whose answer was lost is taken for one that was not stored."""

    async def careless(door: runtime.Runtime, messages: list[Message]) -> bool:
        try:
            await door._store.append(messages, door._appended_seq)
        except (errors.SequenceConflict, errors.LogUnavailable, errors.LogFull):
            return False
        return True

    return mock.patch.object(runtime.Runtime, "_settle", careless)


def believe_stale_tokens(world: World) -> contextlib.AbstractContextManager[object]:
    """Whoever once held a task speaks for it for ever."""

    def believe(
        state: State, token: Token, worker_id: str, session: str
    ) -> tuple[Task, list[events.EventData]]:
        task = state.tasks.table.rows[token.task_id]
        if not isinstance(task, Task):
            raise errors.StaleAttempt("it has its result")
        return task, []

    return mock.patch.object(tasks, "_fence", believe)


def complete_again(world: World) -> contextlib.AbstractContextManager[object]:
    """A completion that is repeated is another one."""
    decided = decide.decide
    last: dict[str, events.TaskCompleted] = {}

    def twice(
        state: State, command: commands.AnyCommand, meta: commands.Meta
    ) -> list[events.EventData]:
        happened = decided(state, command, meta)
        for one in happened:
            if isinstance(one, events.TaskCompleted):
                last[one.task_id] = one
        if isinstance(command, commands.CompleteTask) and not happened:
            return [last[command.task_id]] if command.task_id in last else []
        return happened

    return mock.patch.object(decide, "decide", twice)


BUGS: dict[str, Spoil] = {
    "without_fence": without_fence,
    "acknowledge_before_append": acknowledge_before_append,
    "without_grace": without_grace,
    "overlook_absences": overlook_absences,
    "take_doubt_for_failure": take_doubt_for_failure,
    "believe_stale_tokens": believe_stale_tokens,
    "complete_again": complete_again,
}
