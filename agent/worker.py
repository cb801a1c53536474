"""The agent's loop: claim, train, stream checkpoints, complete, and never lose what it holds."""

import asyncio
import contextlib
import functools
import logging
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, assert_never

import msgspec

from agent import folders, holdings
from agent.artifacts import Packed, pack, unpack
from agent.executors import jobs
from agent.executors.process import Executor
from agent.holdings import LOSSES_KEPT, Holding, metrics_of
from agent.link import PULL_SECONDS, Link, Pulled
from agent.machine import Machine
from agent.narrator import Narrator
from core import errors, platforms, wire
from core.events import Checkpoint, Rival, Token
from core.projections.rounds import rivals_of

log = logging.getLogger(__name__)

RETRY_SECONDS_MAX = 5.0
FINISHING_MAX = 2
STOP_SECONDS_MAX = 4.5
BYE_SECONDS_MAX = 0.5
FULL_SECONDS_MAX = 600.0
"""How long a delivery waits for room on the server, while people may make some."""
ROOM_BYTES_MIN = 128 * 1024 * 1024
"""Free on the agent's own disk before it asks for work."""
BASES_KEPT = 8
IN_PROGRESS_SECONDS = 10.0
CHECKPOINT_SECONDS = (2.0, 60.0)
RESULT_FILE = "result.json"
STOPPED = "its worker was asked to stop"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent runs."""

    api: str
    worker_id: str
    directory: Path
    train_seconds: float = 30.0
    poll_seconds: float = 2.0
    direct: bool = False


class Superseded(errors.AghsanError):
    """Another session of this worker id took over; this agent must end."""


class Worker:
    """One agent: one training at a time, deliveries in the background, always reachable."""

    def __init__(
        self, settings: Settings, machine: Machine, executor: Executor, narrator: Narrator
    ) -> None:
        self._settings = settings
        self._narrator = narrator
        self._machine = machine
        self._executor = executor
        self._link: Link | None = None
        self._welcome: wire.Welcome | None = None
        self._holdings: dict[str, Holding] = {}
        self._training: Holding | None = None
        self._finishing: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._stop_by = 0.0
        self._ended: BaseException | None = None
        self.on_attached: Callable[[], None] = lambda: None
        self.completed = 0

    @property
    def _tasks(self) -> Path:
        return self._settings.directory / "tasks"

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
        folders.own(self._settings.directory / "bases")
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
            log.warning("the server does not answer, leaving without", extra={"action": "stop"})
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

    def _spawn_stop(self, *, save: bool) -> None:
        task = asyncio.ensure_future(self._executor.stop(save=save))
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
                pause = min(RETRY_SECONDS_MAX, pause * 2)

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
            welcome = await link.hello(self._machine, holding)
        except BaseException:
            await link.close()
            raise
        # Only now: whoever retries a request does so under a session that exists.
        before, self._link, self._welcome = self._link, link, welcome
        self._narrator.attached(self._settings.worker_id, link.lane, self._machine)
        if before is not None:
            await before.close()
        still = {token.task_id for token in welcome.holding}
        for task_id, item in list(self._holdings.items()):
            if task_id not in still:
                self._told_lost(item, "the server gave it to another worker")

    def _on_reconnect(self) -> None:
        self._narrator.answered()
        self._spawn(self._reattach())

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
        holding = self._holdings.get(notice.task_id)
        if holding is not None and notice.kind == "stop":
            self._told_lost(holding, notice.detail)

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

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._finishing.add(task)
        task.add_done_callback(self._spawned_ended)

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
                pause = min(RETRY_SECONDS_MAX, pause * 2)

    def _unanswered(self, action: str, error: errors.Unavailable | errors.LogFull) -> None:
        log.debug("not answered, again: %s", error, extra={"action": action})
        if isinstance(error, errors.LogFull):
            self._narrator.full(str(error), again_seconds=FULL_SECONDS_MAX)
            return
        trains = self._training is not None
        self._narrator.unanswered(str(error), trains=trains, again_seconds=RETRY_SECONDS_MAX)

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
            executor_pid=self._executor.pid or 0,
            tasks=[holding.beat() for holding in self._holdings.values() if not holding.lost],
        )
        with contextlib.suppress(errors.Unavailable):
            await self._link.beat(beat)

    # ── work ──

    async def _work(self) -> None:
        for restored in list(self._holdings.values()):
            if restored.lost or self._stopping.is_set():
                await self._drop(restored)
            else:
                await self._hold(restored)
        while not self._stopping.is_set():
            while len(self._finishing) >= FINISHING_MAX:
                await asyncio.wait(self._finishing, return_when=asyncio.FIRST_COMPLETED)
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
            await self._release(holding, STOPPED)

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
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._settings.poll_seconds)

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
        except (errors.Unavailable, errors.LogFull) as error:
            self._unanswered("claim", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._settings.poll_seconds)
        except errors.SupersededSession:
            pass
        return None

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
                if holding.lost or self._stopping.is_set():
                    break
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
            await self._release(holding, STOPPED)

    async def _train_rival(self, holding: Holding, rival: Rival) -> None:
        assignment = holding.assignment
        directory = self._directory(holding, rival)
        resume = await self._resume(holding, rival, directory)
        if rival in holding.results:
            return
        base = ""
        if rival == "evolver" and assignment.base is not None:
            base = str(await self._base(holding, assignment.base.manifest))
        rivals = rivals_of(assignment.role)
        budget = (assignment.budget_seconds or self._settings.train_seconds) / len(rivals)
        job = jobs.Job(
            task_id=assignment.token.task_id,
            node_id=assignment.node_id,
            specialist=assignment.workload.specialist,
            parameters=assignment.workload.parameters,
            role=rival,
            seed=assignment.seed,
            budget_seconds=budget,
            deadline_seconds=2 * budget + 1 if resume else None,
            base=base,
            directory=str(directory),
            checkpoint_seconds=checkpoint_seconds(budget * len(rivals)),
            resume=resume,
        )
        holding.rival = rival
        outcome = await self._run_job(job, holding, rival)
        if isinstance(outcome, jobs.Result):
            self._take_result(holding, rival, outcome)
            result = msgspec.json.encode(outcome)
            await asyncio.to_thread(platforms.write_atomically, directory / RESULT_FILE, result)
            if rival != rivals[-1]:
                self._upload(holding, self._store_candidate(holding, rival))
        elif outcome.directory and not holding.lost:
            self._upload(
                holding,
                self._store_checkpoint(
                    holding, rival, Path(outcome.directory), outcome.step, holding.total_steps
                ),
            )

    async def _run_job(
        self, job: jobs.Job, holding: Holding, rival: Rival
    ) -> jobs.Result | jobs.Stopped:
        if self._executor.pid is None:
            await self._executor.start()
        if holding.lost or self._stopping.is_set():
            return jobs.Stopped(directory="", step=0)  # asked for while the job was prepared
        return await self._executor.run(job, lambda report: self._on_report(holding, rival, report))

    def _on_report(self, holding: Holding, rival: Rival, report: jobs.Report) -> None:
        match report:
            case jobs.Started():
                holding.step, holding.total_steps = report.step, report.total_steps
            case jobs.Progress():
                holding.step, holding.total_steps = report.step, report.total_steps
                holding.loss = report.loss
                holding.losses.append((rival, report.step, report.loss))
                if len(holding.losses) > 2 * LOSSES_KEPT:
                    holding.losses = holding.losses[::2]
            case jobs.Saved():
                if not report.final and not holding.uploads:
                    directory = Path(report.directory)
                    self._upload(
                        holding,
                        self._store_checkpoint(
                            holding, rival, directory, report.step, report.total_steps
                        ),
                    )
            case jobs.Warmed() | jobs.Taken() | jobs.Result() | jobs.Stopped() | jobs.Failed():
                pass  # the executor's own
            case _:
                assert_never(report)

    # ── artifacts ──

    def _upload(self, holding: Holding, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._guarded(holding, coroutine))
        holding.uploads.add(task)
        task.add_done_callback(holding.uploads.discard)

    async def _guarded(self, holding: Holding, coroutine: Awaitable[None]) -> None:
        """An upload that fails costs a checkpoint, never the training."""
        try:
            await coroutine
        except (errors.StaleAttempt, errors.NotOwner, errors.NotFound) as error:
            self._lose(holding, str(error))
        except (errors.AghsanError, OSError) as error:
            log.warning("a checkpoint was not stored: %s", error, extra={"action": "upload"})

    async def _send(self, holding: Holding, packed: Packed) -> None:
        await self._until_answered(
            lambda link: link.upload(holding.token, packed.manifest, packed.pieces), holding
        )

    async def _store_checkpoint(
        self, holding: Holding, rival: Rival, directory: Path, step: int, total_steps: int
    ) -> None:
        packed = await asyncio.to_thread(pack, directory, "checkpoint", self._linked.token)
        await self._announce(holding, rival, packed, step, total_steps, final=False)

    async def _store_candidate(self, holding: Holding, rival: Rival) -> None:
        """Keep a finished rival's candidate and result, in case the task moves before its end."""
        packed = await self._pack_candidate(holding, rival, with_result=True)
        result = holding.results[rival]
        await self._announce(holding, rival, packed, result.steps, result.total_steps, final=True)

    async def _pack_candidate(
        self, holding: Holding, rival: Rival, *, with_result: bool = False
    ) -> Packed:
        extra = {}
        if with_result:
            extra[RESULT_FILE] = msgspec.json.encode(holding.results[rival])
        directory = holding.candidates[rival]
        return await asyncio.to_thread(pack, directory, "candidate", self._linked.token, extra)

    async def _announce(
        self,
        holding: Holding,
        rival: Rival,
        packed: Packed,
        step: int,
        total_steps: int,
        *,
        final: bool,
    ) -> None:
        await self._send(holding, packed)
        request = wire.CheckpointRequest(
            token=holding.token,
            rival=rival,
            step=step,
            total_steps=total_steps,
            manifest=packed.manifest,
            final=final,
        )
        await self._until_answered(lambda link: link.checkpoint(request), holding)

    async def _resume(self, holding: Holding, rival: Rival, directory: Path) -> bool:
        """Find what an earlier attempt, or an earlier run, left of this rival; whether there is
        something."""
        point = next((p for p in holding.assignment.resume if p.rival == rival), None)
        if holding.starts and self._resume_here(holding, rival, directory):
            return True
        if point is None:
            shutil.rmtree(directory, ignore_errors=True)
            return False
        files: dict[str, bytes] = await self._until_answered(
            lambda link: link.download(point.manifest), holding
        )
        if point.final:
            return self._take_finished(holding, rival, directory, point, files)
        await asyncio.to_thread(unpack, files, directory / f"step-{point.step:08d}")
        return True

    def _resume_here(self, holding: Holding, rival: Rival, directory: Path) -> bool:
        """Whether this machine itself holds a result of this rival, or a state to go on from."""
        try:
            finished = (directory / RESULT_FILE).read_bytes()
            result = msgspec.json.decode(finished, type=jobs.Result)
        except FileNotFoundError:
            return any(directory.glob("step-*"))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("a result is made again: %s", error, extra={"action": "resume"})
            return any(directory.glob("step-*"))
        self._take_result(holding, rival, result)
        if rival != rivals_of(holding.assignment.role)[-1]:
            self._upload(holding, self._store_candidate(holding, rival))
        return True

    def _take_result(self, holding: Holding, rival: Rival, result: jobs.Result) -> None:
        holding.results[rival] = result
        holding.candidates[rival] = Path(result.candidate_directory)
        holding.step, holding.total_steps = result.steps, result.total_steps

    def _take_finished(
        self,
        holding: Holding,
        rival: Rival,
        directory: Path,
        point: Checkpoint,
        files: dict[str, bytes],
    ) -> bool:
        try:
            result = msgspec.json.decode(files.pop(RESULT_FILE), type=jobs.Result)
        except (KeyError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.ArtifactError(
                f"the finished {rival} of an earlier attempt cannot be taken over: {error}"
            ) from error
        candidate = directory / "candidate"
        unpack(files, candidate)
        holding.results[rival] = result
        holding.candidates[rival] = candidate
        holding.step, holding.total_steps = point.step, point.total_steps
        return True

    async def _base(self, holding: Holding, manifest: str) -> Path:
        """The champion's files, downloaded once; the newest few are kept."""
        cache = self._settings.directory / "bases"
        directory = cache / manifest
        if not directory.is_dir():
            files: dict[str, bytes] = await self._until_answered(
                lambda link: link.download(manifest), holding
            )
            await asyncio.to_thread(unpack, files, directory)
            bases = [path for path in cache.iterdir() if path.is_dir()]
            kept = sorted(bases, key=lambda path: path.stat().st_mtime, reverse=True)
            for old in kept[BASES_KEPT:]:
                shutil.rmtree(old, ignore_errors=True)
        return directory

    def _directory(self, holding: Holding, rival: Rival) -> Path:
        return holdings.folder_of(self._tasks, holding.token.task_id) / rival

    # ── endings ──

    async def _deliver(self, holding: Holding) -> None:
        """Upload the candidates and complete, repeating until answered."""
        try:
            await self._settle_uploads(holding)
            request = wire.CompleteRequest(
                token=holding.token,
                metrics=metrics_of(holding),
                candidates=[
                    await self._bring(holding, rival, result)
                    for rival, result in holding.results.items()
                ],
            )
            await self._until_answered(lambda link: link.complete(request), holding)
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

    async def _bring(
        self, holding: Holding, rival: Rival, result: jobs.Result
    ) -> wire.BroughtCandidate:
        packed = await self._pack_candidate(holding, rival)
        await self._send(holding, packed)
        return wire.BroughtCandidate(
            rival=rival,
            manifest=packed.manifest,
            weights_sha256=result.weights_sha256,
            claims={
                "loss": result.loss,
                "baseline_loss": result.baseline_loss,
                "evidence_rate": result.evidence_rate,
            },
        )

    async def _settle_uploads(self, holding: Holding) -> None:
        if holding.uploads:
            await asyncio.wait(set(holding.uploads))

    async def _give_back_or_up(self, holding: Holding, words: str, error: Exception) -> None:
        """End an attempt that went wrong; want of room, here or there, is no fault of the task."""
        if is_want_of_room(error):
            log.warning("%s is given back: %s", holding.token.task_id, words)
            await self._release(holding, words)
        else:
            await self._give_up(holding, words)

    async def _release(self, holding: Holding, reason: str) -> None:
        """Give a task back, its last checkpoint stored first."""
        await self._settle_uploads(holding)
        try:
            await self._until_answered(lambda link: link.release(holding.token, reason), holding)
            self._narrator.released(holding)
        except (errors.Refused, errors.Unavailable, errors.LogFull) as error:
            log.debug("not released: %s", error, extra={"action": "release"})
            self._narrator.left(holding, "not given back")
            if isinstance(error, errors.Unavailable) and not holding.lost:
                await self._set_aside(holding)
                return
        await self._forget(holding)

    async def _give_up(self, holding: Holding, reason: str) -> None:
        """Tell the server that this attempt failed, and why."""
        self._narrator.failed(holding, reason)
        first, _, tail = reason.partition("\n")
        try:
            await self._until_answered(lambda link: link.fail(holding.token, first, tail), holding)
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
        directory = holdings.folder_of(self._tasks, holding.token.task_id)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

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
