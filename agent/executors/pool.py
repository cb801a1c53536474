"""The executor as an agent holds it for long: always warm, and not lost with one process."""

import asyncio
import contextlib
import logging

import msgspec

from agent.executors import jobs
from agent.executors.process import Died, Executor, OnReport
from core import errors

log = logging.getLogger(__name__)


class Pool(Executor):
    """An executor whose process is replaced as soon as it ends, not when the next job waits for it.

    A job whose process dies goes on once in a new one, from its last state; and with half as many
    cases at once where the kernel killed it since memory ran out.
    """

    def __init__(self, processes: int = 1, threads: int = 0) -> None:
        super().__init__(processes, threads)
        self._warming: asyncio.Task[None] | None = None
        self._is_to_stop = False

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        """Do a job; its reports on the way go to `on_report`. Cancelled, it drops the work.

        Raises what an executor does, process.Died after the second death.
        """
        self._is_to_stop = False
        try:
            await self.start()
            if self._is_to_stop:
                return jobs.Stopped(directory="", step=0)
            return await super().run(job, on_report)
        except Died as error:
            reason = str(error).partition("\n")[0]
            on_report(jobs.Revived(reason=reason, step=self.saved.step))
            await self.start()
            if self._is_to_stop:
                return self.saved
            again = msgspec.structs.replace(job, resume=True, halved=error.lacked_memory)
            return await super().run(again, on_report)
        finally:
            if self.pid is None:
                self._warming = asyncio.ensure_future(self._warm())

    async def _warm(self) -> None:
        try:
            await self.start()
        except errors.TrainingError as error:
            log.warning("no executor is warm: %s", error, extra={"action": "warm"})

    async def stop(self, *, save: bool, at_once: bool = False) -> None:
        """As Executor.stop; nor is a job begun whose process warms, or gone on with whose died."""
        self._is_to_stop = True
        await super().stop(save=save, at_once=at_once)

    async def close(self) -> None:
        """End the process."""
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
            self._warming = None
        await super().close()
