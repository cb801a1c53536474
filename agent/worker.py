"""The agent's loop: claim, train, stream checkpoints, complete, and never lose what it holds."""

import asyncio
import contextlib
import functools
import itertools
import logging
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, assert_never

import msgspec

from agent import folders, holdings, telemetry
from agent.executors import jobs
from agent.executors.process import Executor
from agent.gauges import Gauge, Sampler
from agent.holdings import Holding, metrics_of, models_of
from agent.link import PULL_SECONDS, Link, Pulled
from agent.machine import Machine
from agent.narrator import Narrator
from agent.transfers import Transfers, sending_again
from core import errors, platforms, subjects, wire
from core.events import Rival, Token
from core.projections.rounds import rivals_of

log = logging.getLogger(__name__)

RETRY_SECONDS_MAX = 5.0
"""However rarely an agent may ask for work: what it holds, or brings, waits for an answer."""
FINISHING_MAX = 2
STOP_SECONDS_MAX = 4.5
BYE_SECONDS_MAX = 0.5
FULL_SECONDS_MAX = 600.0
"""How long a delivery waits for room on the server, while people may make some."""
ROOM_BYTES_MIN = 128 * 1024 * 1024
"""Free on the agent's own disk before it asks for work."""
IN_PROGRESS_SECONDS = 10.0
CHECKPOINT_SECONDS = (2.0, 60.0)
STOPPED = "its worker was asked to stop"
PAUSED = "its worker was paused"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent runs."""

    api: str
    worker_id: str
    directory: Path
    train_seconds: float = 30.0
    poll_seconds: float = 2.0
    direct: bool = False
    bases: Path | None = None
    """Where downloaded models are, which other agents may use too; None: in the directory."""


class Superseded(errors.Conflict):
    """Another session of this worker id took over; this agent must end."""


class Worker:
    """One agent: one training at a time, deliveries in the background, always reachable."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        executor: Executor,
        narrator: Narrator,
        gauge: Gauge | None = None,
    ) -> None:
        self._settings = settings
        self._narrator = narrator
        self._machine = machine
        self._executor = executor
        self._telemetry = telemetry.Sender(Sampler(gauge))
        self._transfers = Transfers(
            settings.directory,
            subjects.token(settings.worker_id),
            machine,
            self._until_answered,
            self._lose,
            narrator,
            settings.bases,
        )
        self._link: Link | None = None
        self._welcome: wire.Welcome | None = None
        self._process = uuid.uuid4().hex
        self._hellos = itertools.count(1)
        self._holdings: dict[str, Holding] = {}
        self._training: Holding | None = None
        self._preparing: asyncio.Task[jobs.Job | None] | None = None
        """Brings what is trained next; cancelled where it is not to be trained any more."""
        self._finishing: set[asyncio.Task[None]] = set()
        self._reattaching: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._stop_by = 0.0
        self._ended: BaseException | None = None
        self._pause = ""
        """What a person wants of it, as WorkerPaused has it."""
        self._may_work = asyncio.Event()
        self._may_work.set()
        self._is_unfit = False
        """It lacked what a task takes, in this session; others like it may be all that waits."""
        self.on_attached: Callable[[], None] = lambda: None
        self.completed = 0

    @property
    def _tasks(self) -> Path:
        return self._settings.directory / "tasks"

    @property
    def _retry_seconds(self) -> float:
        """The longest pause between two tries."""
        return min(RETRY_SECONDS_MAX, self._settings.poll_seconds)

    @property
    def _linked(self) -> Link:
        assert self._link is not None, "only an attached agent gets here"
        return self._link

    # ── life ──

    async def run(self) -> None:
        """Attach, work until asked to stop, then checkpoint, release and leave.

        Raises Superseded when another agent of this id took over, errors.Refused when the server
        will not have this agent, errors.DataDirectoryError when its directory holds what is not its
        own.
        """
        self._transfers.open()
        self._restore()
        beating = asyncio.create_task(self._beat_loop())
        beating.add_done_callback(self._spawned_ended)
        try:
            await self._unless_stopped(self._executor.start())
            await self._unless_stopped(self._attach())
            if not self._stopping.is_set():
                self.on_attached()
                await self._work_until_stopped()
        finally:
            beating.cancel()
            self._telemetry.close()
            await self._leave()
        if self._ended is not None:
            raise self._ended

    def _restore(self) -> None:
        """Take up what an earlier run held as it died; the hello tells what is still ours."""
        folders.own(self._tasks)
        restored = holdings.restore(self._tasks)
        self._holdings = {one.token.task_id: one for one in restored}
        folders.empty(self._tasks, [holdings.folder_of(self._tasks, id) for id in self._holdings])

    async def _unless_stopped(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do something to its end, or to the moment the agent is asked to stop."""
        doing = asyncio.ensure_future(coroutine)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})
        if not doing.cancelled():
            doing.result()

    async def _work_until_stopped(self) -> None:
        """Work; once asked to stop, leave a bounded time for what was begun."""
        working = asyncio.ensure_future(self._work())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self._stop_by = asyncio.get_running_loop().time() + STOP_SECONDS_MAX
        await asyncio.wait({working}, timeout=STOP_SECONDS_MAX)
        if not working.done():
            self._narrator.hurries(self._training)
            working.cancel()
            return
        working.result()

    def stop(self) -> None:
        """Ask the agent to stop; `run` returns when it has."""
        if not self._stopping.is_set():
            self._narrator.stops(self._training)
        self._stopping.set()
        if self._training is not None:
            self._spawn_stop(save=True)

    def _spawn_stop(self, *, save: bool, at_once: bool = False) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
        task = asyncio.ensure_future(self._executor.stop(save=save, at_once=at_once))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    def _end(self, error: BaseException) -> None:
        if self._ended is None:
            self._ended = error
        for holding in self._holdings.values():
            holding.lost = holding.lost or str(error)
        self._stopping.set()
        if self._training is not None:
            self._spawn_stop(save=False)

    # ── the link ──

    async def _attach(self) -> None:
        """Join and say hello, trying again for as long as the server is away."""
        pause = 0.1
        while not self._stopping.is_set():
            try:
                await self._begin_session()
                return
            except errors.Unavailable as error:
                self._unanswered("attach", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
                pause = min(self._retry_seconds, pause * 2)

    async def _begin_session(self) -> None:
        link = await Link.join(
            self._settings.api,
            self._settings.worker_id,
            self._machine,
            direct=self._settings.direct,
            on_notice=self._on_notice,
            on_reconnect=self._on_reconnect,
            on_closed=self._on_closed,
        )
        holding = [item.token for item in self._holdings.values() if not item.lost]
        try:
            welcome = await link.hello(self._machine, holding, self._process, next(self._hellos))
        except BaseException:
            await link.close()
            raise
        # Only now: whoever retries a request does so under a session that exists.
        before, self._link, self._welcome = self._link, link, welcome
        self._is_unfit = False  # the server remembers what a worker lacked for a session, too
        self._be(welcome.pause)
        self._narrator.attached(self._settings.worker_id, link.lane, self._machine)
        if before is not None:
            await before.close()
        still = {token.task_id for token in welcome.holding}
        for task_id, item in list(self._holdings.items()):
            if task_id not in still:
                self._told_lost(item, "the server gave it to another worker")

    def _on_reconnect(self) -> None:
        if self._link is None:
            return  # the first hello, still on its way, asks for all that is held
        self._narrator.answered()
        if self._reattaching is not None:
            self._reattaching.cancel()  # what it was told before this cut may hold no more
        self._reattaching = self._spawn(self._reattach())

    def _on_closed(self, link: Link) -> None:
        if link is self._link and not self._stopping.is_set():
            self._spawn(self._attach())

    async def _reattach(self) -> None:
        """After a cut: a sign of life at once; then ask for every task whether it is still ours."""
        await self._beat()
        for holding in list(self._holdings.values()):
            try:
                await self._until_answered(functools.partial(_reattach, holding.token), holding)
            except errors.Refused as error:
                self._told_lost(holding, str(error))
            except (errors.Unavailable, errors.LogFull) as error:
                # Lost meanwhile, or asked to stop, or full for long: whoever still trains it hears.
                log.debug("not reattached: %s", error, extra={"action": "reattach"})

    def _on_notice(self, notice: wire.Notice) -> None:
        if notice.kind == "superseded":
            # A notice may be late: it means the session it names, not the one begun since.
            if self._link is not None and notice.session == self._link.session:
                self._end(Superseded(notice.detail))
            return
        if notice.kind in ("pause", "drain", "resume"):
            self._be(notice.kind if notice.kind != "resume" else "")
            return
        holding = self._holdings.get(notice.task_id)
        if holding is not None and notice.kind == "stop":
            self._told_lost(holding, notice.detail)

    def _be(self, pause: str) -> None:
        """Do as a person wants: work, end what is held, or give it back now."""
        if pause == self._pause:
            return
        self._pause = pause
        self._narrator.paused(pause, self._training)
        if not pause:
            self._may_work.set()
            return
        self._may_work.clear()
        if pause == "pause" and self._training is not None:
            self._spawn_stop(save=True, at_once=True)

    @property
    def _gives_back(self) -> str:
        """Why what is being trained has to be given back now, "" where it has not."""
        return STOPPED if self._stopping.is_set() else PAUSED if self._pause == "pause" else ""

    def _told_lost(self, holding: Holding, reason: str) -> None:
        """The server says that a task is not ours. Of one that is being delivered it may say so
        because it has the result already: there the answer to the delivery tells."""
        if not holding.delivering:
            self._lose(holding, reason)

    def _lose(self, holding: Holding, reason: str) -> None:
        """Stop working on a task that is no longer ours."""
        if holding.lost:
            return
        holding.lost = reason or "it is not ours any more"
        self._narrator.dropped(holding, holding.lost)
        if self._training is holding:
            self._spawn_stop(save=False)

    def _spawn(self, coroutine: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._finishing.add(task)
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._end(task.exception() or RuntimeError("unknown"))

    async def _until_answered(
        self, ask: Callable[[Link], Awaitable[Any]], holding: Holding | None = None
    ) -> Any:
        """Repeat a request until it is answered; a refusal is an answer too.

        Raises errors.Refused as answered, Superseded when this session is over, errors.Unavailable
        only when the agent stops before any answer came, and errors.LogFull when the server has
        been full for FULL_SECONDS_MAX.
        """
        pause = 0.1
        give_up_at = time.monotonic() + FULL_SECONDS_MAX
        while True:
            link = self._linked
            try:
                answer = await ask(link)
                self._narrator.answered()
                return answer
            except errors.SupersededSession as error:
                if link is not self._link:
                    continue  # the session it was asked under was our own older one
                self._end(Superseded(str(error)))
                raise
            except (errors.Unavailable, errors.LogFull) as error:
                if self._stopping.is_set() or (holding is not None and holding.lost):
                    raise
                if isinstance(error, errors.LogFull) and time.monotonic() > give_up_at:
                    raise
                self._unanswered("retry", error)
                await asyncio.sleep(pause)
                pause = min(self._retry_seconds, pause * 2)

    def _unanswered(self, action: str, error: errors.Unavailable | errors.LogFull) -> None:
        log.debug("not answered, again: %s", error, extra={"action": action})
        if isinstance(error, errors.LogFull):
            self._narrator.full(str(error), again_seconds=FULL_SECONDS_MAX)
            return
        trains = self._training is not None
        self._narrator.unanswered(str(error), trains=trains, again_seconds=self._retry_seconds)

    async def _beat_loop(self) -> None:
        prolonged = time.monotonic()
        while True:
            seconds = self._welcome.heartbeat_seconds if self._welcome else 1.0
            await asyncio.sleep(seconds)
            await self._beat()
            if time.monotonic() - prolonged >= IN_PROGRESS_SECONDS:
                prolonged = time.monotonic()
                await self._prolong()

    async def _prolong(self) -> None:
        """Keep the offers of held tasks from waking others."""
        if self._link is None:
            return  # what an earlier run held, before this one ever reached the server
        for holding in list(self._holdings.values()):
            with contextlib.suppress(errors.Unavailable):
                await self._linked.in_progress(holding.offer)

    async def _beat(self) -> None:
        if self._link is None or not self._link.session or not self._link.is_connected:
            return
        beat = wire.Beat(
            worker_id=self._settings.worker_id,
            session=self._linked.session,
            pause=self._pause,
            executor_pid=self._executor.pid or 0,
            paused_seconds=round(self._executor.paused_seconds, 2),
            tasks=[holding.beat() for holding in self._holdings.values() if not holding.lost],
        )
        with contextlib.suppress(errors.Unavailable):
            await self._link.beat(beat)

    # ── work ──

    async def _work(self) -> None:
        for restored in list(self._holdings.values()):
            if restored.lost or self._gives_back:
                await self._drop(restored)
            else:
                await self._hold(restored)
        while not self._stopping.is_set():
            while len(self._finishing) >= FINISHING_MAX:
                await asyncio.wait(self._finishing, return_when=asyncio.FIRST_COMPLETED)
            await self._wait_for_leave()
            await self._wait_for_room()
            holding = None if self._stopping.is_set() else await self._next()
            if holding is None:
                continue
            await self._hold(holding)

    async def _hold(self, holding: Holding) -> None:
        earlier = self._holdings.get(holding.token.task_id)
        if earlier is not None and earlier is not holding:
            self._lose(earlier, "a later attempt of it was claimed here")
        self._holdings[holding.token.task_id] = holding
        self._training = holding
        self._narrator.trains(holding)
        try:
            await self._train(holding)
        finally:
            self._training = None

    async def _drop(self, holding: Holding) -> None:
        """Give back what an earlier run held, without having trained it in this one."""
        if holding.lost:
            await self._forget(holding)
        else:
            await self._release(holding, self._gives_back)

    async def _wait_for_leave(self) -> None:
        """Wait, before asking for work, while a person wants none done."""
        waits = [asyncio.ensure_future(one.wait()) for one in (self._may_work, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()

    async def _wait_for_room(self) -> None:
        """Wait, before asking for work, until this machine has room to do it; why is said once."""
        directory, said = self._settings.directory, False
        while not self._stopping.is_set():
            free_bytes = shutil.disk_usage(directory).free
            if free_bytes >= ROOM_BYTES_MIN:
                return
            if not said:
                self._narrator.short_of_room(directory, free_bytes, ROOM_BYTES_MIN)
                said = True
            await self._rest()

    async def _next(self) -> Holding | None:
        """Wait for an offer and claim; None when there was nothing to wait for or to claim."""
        try:
            began = time.monotonic()
            pulled = await self._pull()
            if self._stopping.is_set():
                return None
            if pulled is None:
                # Else the wait was ended by a connection that came back.
                if time.monotonic() - began > PULL_SECONDS / 2:
                    self._narrator.waits()
                return None
            # Asked again after a lost answer, the same id gives the same task.
            claim_id = uuid.uuid4().hex
            assignment: wire.Assignment | None = await self._until_answered(
                lambda link: link.claim(claim_id, pulled.seq)
            )
            if assignment is not None:
                return Holding(assignment, pulled)
            await self._linked.acknowledge(pulled)
            if self._is_unfit:  # what waits may be what this agent cannot do, and is offered again
                await self._rest()
        except (errors.Unavailable, errors.LogFull) as error:
            self._unanswered("claim", error)
            await self._rest()
        except errors.SupersededSession:
            pass
        except errors.Refused as error:  # what waits may be another's trouble, and go
            log.warning("no work was given, again: %s", error, extra={"action": "claim"})
            await self._rest()
        return None

    async def _rest(self) -> None:
        """Wait before asking for work again; not where the agent is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._settings.poll_seconds)

    async def _pull(self) -> Pulled | None:
        pull = asyncio.ensure_future(self._linked.pull())
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({pull, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not pull.done():
            pull.cancel()
            return None
        return pull.result()

    async def _train(self, holding: Holding) -> None:
        """Train each rival of a task, then deliver in the background."""
        try:
            await self._keep(holding)
            for rival in rivals_of(holding.assignment.role):
                await self._train_rival(holding, rival)
                if holding.lost or self._gives_back or rival not in holding.results:
                    break
        except errors.Unfit as error:
            self._is_unfit = True
            await self._release(holding, str(error), unfit=True)
            await self._rest()
            return
        except errors.TrainingError as error:
            await self._give_up(holding, str(error))
            return
        except (
            errors.Refused,
            errors.LogFull,
            errors.DiskFull,
            errors.ArtifactError,
            OSError,
        ) as error:
            if holding.lost:
                await self._forget(holding)
            else:
                await self._give_back_or_up(holding, str(error), error)
            return
        except errors.Unavailable:
            if not holding.lost:  # the server is away while the agent stops
                self._narrator.left(holding, "not given back")
                await self._set_aside(holding)
                return
        if holding.lost:
            await self._forget(holding)
        elif len(holding.results) == len(rivals_of(holding.assignment.role)):
            holding.delivering = True
            self._spawn(self._deliver(holding))
        else:
            await self._release(holding, self._gives_back or PAUSED)

    async def _train_rival(self, holding: Holding, rival: Rival) -> None:
        job = await self._prepared(holding, rival)
        if job is None:
            return
        holding.rival = rival
        outcome = await self._run_job(job, holding, rival)
        if isinstance(outcome, jobs.Result):
            await self._transfers.keep_result(holding, rival, outcome)
            if rival != rivals_of(holding.assignment.role)[-1]:
                self._transfers.upload_candidate(holding, rival)
        elif outcome.directory and not holding.lost:
            saved = Path(outcome.directory)
            total_steps = holding.total_steps
            self._transfers.upload_checkpoint(holding, rival, saved, outcome.step, total_steps)

    async def _prepared(self, holding: Holding, rival: Rival) -> jobs.Job | None:
        """As `_prepare`; None, too, where the task was lost or is to be given back meanwhile."""
        if holding.lost or self._gives_back:
            return None
        preparing = self._preparing = asyncio.ensure_future(self._prepare(holding, rival))
        try:
            await asyncio.wait({preparing})
        finally:
            self._preparing = None
            preparing.cancel()
        return None if preparing.cancelled() else preparing.result()

    async def _prepare(self, holding: Holding, rival: Rival) -> jobs.Job | None:
        """Bring what a rival is trained from; None where it was trained already."""
        assignment = holding.assignment
        try:
            resume = await self._transfers.resume(holding, rival)
        except (errors.ArtifactError, errors.NotFound) as error:
            self._narrator.starts_over(holding, str(error))
            await asyncio.to_thread(self._transfers.forget, holding, rival)
            resume = False
        if rival in holding.results:
            return None
        base, parents = await self._transfers.models(holding, rival)
        corpus = assignment.workload.corpus
        rivals = rivals_of(assignment.role)
        budget = (assignment.budget_seconds or self._settings.train_seconds) / len(rivals)
        return jobs.Job(
            task_id=assignment.token.task_id,
            node_id=assignment.node_id,
            specialist=assignment.workload.specialist,
            parameters=assignment.workload.parameters,
            corpus=await self._transfers.corpus(holding, corpus.manifest) if corpus else "",
            role=rival,
            seed=assignment.seed,
            budget_seconds=budget,
            base_model=assignment.workload.base_model,
            base=base,
            parents=parents,
            method=assignment.method,
            is_stored=True,
            directory=str(self._transfers.folder(holding, rival)),
            checkpoint_seconds=checkpoint_seconds(budget * len(rivals)),
            resume=resume,
        )

    async def _run_job(
        self, job: jobs.Job, holding: Holding, rival: Rival
    ) -> jobs.Result | jobs.Stopped:
        if self._executor.pid is None:
            await self._executor.start()
        if holding.lost or self._gives_back:
            return jobs.Stopped(directory="", step=0)  # asked for while the job was prepared
        return await self._executor.run(job, lambda report: self._on_report(holding, rival, report))

    def _on_report(self, holding: Holding, rival: Rival, report: jobs.Report) -> None:
        match report:
            case jobs.Started():
                holding.step, holding.total_steps = report.step, report.total_steps
                earlier = self._transfers.folder(holding, rival) / f"step-{report.step:08d}"
                points = telemetry.points_beside(earlier)
                holding.record.begin(rival, report.step, report.total_steps, points)
                holding.methods[rival] = report.method
                if report.damaged:
                    self._narrator.passed_over(holding, report.damaged)
            case jobs.Progress():
                holding.step, holding.total_steps = report.step, report.total_steps
                holding.record.add(rival, report, self._telemetry.usage(self._executor.pid))
                self._telemetry.send_soon(self._link, holding.token, holding.record)
            case jobs.Revived():
                self._narrator.revived(holding, report.reason, report.step)
            case jobs.Missed():
                self._narrator.missed(holding, report.reason)
            case jobs.Saved():
                self._narrator.saved()
                holding.record.save(rival, Path(report.directory))
                if not report.final and not holding.uploads:
                    saved, total_steps = Path(report.directory), report.total_steps
                    self._transfers.upload_checkpoint(
                        holding, rival, saved, report.step, total_steps
                    )
            case (
                jobs.Warmed()
                | jobs.Taken()
                | jobs.Busy()
                | jobs.Result()
                | jobs.Stopped()
                | jobs.Failed()
            ):
                pass  # the executor's own
            case _:
                assert_never(report)

    # ── endings ──

    async def _deliver(self, holding: Holding) -> None:
        """Upload the candidates and complete, repeating until answered."""
        try:
            await self._transfers.settle(holding)
            if not holding.lost:  # which its last checkpoint may have been told
                await sending_again(lambda: self._complete(holding))
                self.completed += 1
                self._narrator.delivered(holding)
        except errors.Unavailable as error:
            log.debug("not delivered: %s", error, extra={"action": "deliver"})
            self._narrator.left(holding, "not delivered")
            await self._set_aside(holding)
            return
        except errors.Conflict as error:
            self._lose(holding, f"its result was refused: {error}")
        except (errors.AghsanError, OSError) as error:
            words = f"its result could not be delivered: {error}"
            await self._give_back_or_up(holding, words, error)
            return
        await self._forget(holding)

    async def _complete(self, holding: Holding) -> None:
        request = wire.CompleteRequest(
            token=holding.token,
            metrics=metrics_of(holding),
            telemetry=holding.record.curves,
            candidates=[
                await self._transfers.bring(holding, rival, result)
                for rival, result in models_of(holding)
            ],
        )
        await self._until_answered(lambda link: link.complete(request), holding)

    async def _give_back_or_up(self, holding: Holding, words: str, error: Exception) -> None:
        """End an attempt that went wrong; want of room, here or there, is no fault of the task."""
        if is_want_of_room(error):
            log.warning("%s is given back: %s", holding.token.task_id, words)
            await self._release(holding, words)
        else:
            await self._give_up(holding, words)

    async def _release(self, holding: Holding, reason: str, *, unfit: bool = False) -> None:
        """Give a task back, its last checkpoint stored first; `unfit`: for others to try."""
        await self._transfers.settle(holding)
        try:
            await self._until_answered(
                lambda link: link.release(holding.token, reason, unfit=unfit), holding
            )
            if unfit:
                self._narrator.unfit(holding, reason)
            else:
                self._narrator.released(holding)
        except (errors.Refused, errors.Unavailable, errors.LogFull) as error:
            log.debug("not released: %s", error, extra={"action": "release"})
            self._narrator.left(holding, "not given back")
            if isinstance(error, errors.Unavailable) and not holding.lost:
                await self._set_aside(holding)
                return
        await self._forget(holding)

    async def _give_up(self, holding: Holding, reason: str) -> None:
        """Tell the server that this attempt failed, and why, its last checkpoint stored first."""
        await self._transfers.settle(holding)
        self._narrator.failed(holding, reason)
        first, _, tail = reason.partition("\n")
        try:
            curves = holding.record.curves
            await self._until_answered(
                lambda link: link.fail(holding.token, first, tail, curves), holding
            )
        except (errors.Refused, errors.Unavailable, errors.LogFull) as error:
            log.info("the failure was not taken: %s", error, extra={"action": "fail"})
        finally:
            await self._forget(holding)

    async def _set_aside(self, holding: Holding) -> None:
        """Leave on disk what the server could not be told of: the next run asks whether it is still
        ours, and goes on with it. Nobody died of it."""
        if self._holdings.get(holding.token.task_id) is not holding:
            return
        del self._holdings[holding.token.task_id]
        holding.starts = max(0, holding.starts - 1)
        with contextlib.suppress(OSError):  # what was written as it was taken up says enough
            await self._keep(holding)

    async def _keep(self, holding: Holding) -> None:
        folder = holdings.folder_of(self._tasks, holding.token.task_id)
        await asyncio.to_thread(holdings.keep, folder, holding)

    async def _forget(self, holding: Holding) -> None:
        """End a holding, however it ended: the event was first, now comes the ack."""
        with contextlib.suppress(errors.Unavailable):
            await self._linked.acknowledge(holding.offer)
        if self._holdings.get(holding.token.task_id) is not holding:
            return  # its name and its folder are a later attempt's
        del self._holdings[holding.token.task_id]
        gone = holdings.put_away(self._tasks, holding.token.task_id)
        await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)

    async def _leave(self) -> None:
        """Deliver what is finished, say goodbye, and end the executor."""
        if self._finishing:
            left = self._stop_by - asyncio.get_running_loop().time()
            await asyncio.wait(set(self._finishing), timeout=max(0.5, left))
        if self._link is not None:
            with contextlib.suppress(errors.AghsanError, TimeoutError):
                await asyncio.wait_for(self._link.bye(), BYE_SECONDS_MAX)
            await self._link.close()
        await self._executor.close()


async def _reattach(token: Token, link: Link) -> None:
    await link.reattach(token)


def is_want_of_room(error: Exception) -> bool:
    """Whether the same could be done with more room, on this disk or in the server's streams."""
    full = isinstance(error, errors.DiskFull | errors.LogFull)
    return full or platforms.is_want_of_room(error)


def checkpoint_seconds(budget_seconds: float) -> float:
    """Seconds between checkpoints: a sixth of the budget, between 2 and 60."""
    shortest, longest = CHECKPOINT_SECONDS
    return min(longest, max(shortest, budget_seconds / 6))
