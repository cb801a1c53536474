"""What an agent sends to the artifact store, and what it takes from there to train."""

import asyncio
import functools
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent import holdings, memory, telemetry, tensors
from agent.artifacts import Cache, Packed, Stored, on_its_way, pack, settle
from agent.bases import Bases
from agent.executors import jobs
from agent.holdings import Holding
from agent.link import Link
from agent.machine import Machine
from agent.narrator import Narrator
from core import errors, platforms, wire
from core.chunks import Manifest
from core.events import Base, Checkpoint, Rival
from core.projections.rounds import rivals_of

log = logging.getLogger(__name__)

CORPORA_KEPT = 4
SENDINGS_MAX = 3
RESULT_FILE = "result.json"
WEIGHTS_FILE = "model.safetensors"
_LINKED = "stored-"


class Ask(Protocol):
    """Repeats a request until it is answered; see agent.worker.Worker."""

    async def __call__(
        self, ask: Callable[[Link], Awaitable[Any]], holding: Holding | None = None
    ) -> Any: ...


class Transfers:
    """Carries checkpoints, candidates and bases between an agent's folders and the server."""

    def __init__(
        self,
        directory: Path,
        writer: str,
        machine: Machine,
        ask: Ask,
        lose: Callable[[Holding, str], None],
        narrator: Narrator,
        bases: Path | None = None,
    ) -> None:
        """`directory` is the agent's, `writer` its subject token, `machine` what trains what it
        takes; `lose` ends a holding that turns out to be another's; `bases` is where models are
        that other agents use too."""
        self._bases = Bases(bases or directory / "bases")
        self._corpora = Cache(directory / "corpora", CORPORA_KEPT)
        self._tasks = directory / "tasks"
        self._writer = writer
        self._machine = machine
        self._ask = ask
        self._lose = lose
        self._narrator = narrator

    def open(self) -> None:
        """Make the folders of what is downloaded. Raises errors.DataDirectoryError where one holds
        what is not ours."""
        self._bases.open()
        self._corpora.open()

    def folder(self, holding: Holding, rival: Rival) -> Path:
        """Where a rival of a task is trained."""
        return holdings.folder_of(self._tasks, holding.token.task_id) / rival

    # ── to the server ──

    def upload_checkpoint(
        self, holding: Holding, rival: Rival, directory: Path, step: int, total_steps: int
    ) -> None:
        """Begin to store a state of training, unless that was begun before: one that is stopped may
        leave the state it wrote last."""
        if holding.sent == directory:
            return
        holding.sent = directory
        store = functools.partial(
            self._store_checkpoint, holding, rival, directory, step, total_steps
        )
        self._begin(holding, store)

    def upload_candidate(self, holding: Holding, rival: Rival) -> None:
        """Begin to store a finished rival's candidate and result, in case the task moves before
        its end."""
        self._begin(holding, functools.partial(self._store_candidate, holding, rival))

    async def settle(self, holding: Holding) -> None:
        """Wait for the uploads under way."""
        if holding.uploads:
            await asyncio.wait(set(holding.uploads))

    async def bring(
        self, holding: Holding, rival: Rival, result: jobs.Result
    ) -> wire.BroughtCandidate:
        """Send a candidate's chunks; the candidate as a completion names it."""
        made = Path(result.candidate_directory)
        folder = holding.candidates[rival] if result is holding.results[rival] else made
        packed = await asyncio.to_thread(pack, folder, "candidate", self._writer)
        return wire.BroughtCandidate(
            rival=rival,
            manifest=await self._send(holding, packed),
            weights_sha256=result.weights_sha256,
            claims={
                "loss": result.loss,
                "baseline_loss": result.baseline_loss,
                "evidence_rate": result.evidence_rate,
            },
            method=result.method,
            method_reason=result.method_reason[: wire.REASON_CHARS_MAX],
        )

    def _begin(self, holding: Holding, store: Callable[[], Awaitable[None]]) -> None:
        earlier = set(holding.uploads)
        task = asyncio.ensure_future(self._guarded(holding, store, earlier))
        holding.uploads.add(task)
        task.add_done_callback(holding.uploads.discard)

    async def _guarded(
        self,
        holding: Holding,
        store: Callable[[], Awaitable[None]],
        earlier: set[asyncio.Task[None]],
    ) -> None:
        """An upload that fails costs a checkpoint, never the training."""
        if earlier:  # what comes next is told by what changed since
            await asyncio.wait(earlier)
        try:
            await store()
            self._narrator.taken()
        except (errors.StaleAttempt, errors.NotOwner, errors.NotFound) as error:
            self._lose(holding, str(error))
        except errors.Unavailable as error:
            # Its task is lost, or the agent stops: how the task ends says so.
            holding.is_unstored = True
            log.debug("a checkpoint was not stored: %s", error, extra={"action": "upload"})
        except (errors.AghsanError, OSError) as error:
            if holding.lost:  # its folder went, which was told with why
                log.debug("a checkpoint was not stored: %s", error, extra={"action": "upload"})
                return
            log.warning("a checkpoint was not stored: %s", error, extra={"action": "upload"})
            self._narrator.unsaved(holding, str(error))

    async def _send(self, holding: Holding, packed: Packed) -> Manifest:
        sent: Manifest = await self._ask(
            lambda link: link.upload(holding.token, packed.manifest, packed.pieces), holding
        )
        return sent

    async def _store_checkpoint(
        self, holding: Holding, rival: Rival, directory: Path, step: int, total_steps: int
    ) -> None:
        linked = await asyncio.to_thread(_link, directory)

        async def store() -> None:
            before = holding.stored.get(rival)
            packed = await asyncio.to_thread(
                pack, linked or directory, "checkpoint", self._writer, before=before
            )
            try:
                sent = await self._announce(holding, rival, packed, step, total_steps)
            except errors.ArtifactError:
                # Tried again, it names nothing that it does not bring.
                holding.stored.pop(rival, None)
                raise
            holding.stored.pop(rival, None)
            if linked is not None:
                holding.stored[rival] = Stored(sent, linked)
            if before is not None:
                await asyncio.to_thread(shutil.rmtree, before.folder, ignore_errors=True)

        try:
            await sending_again(store)
        finally:
            kept = holding.stored.get(rival)
            if linked is not None and (kept is None or kept.folder != linked):
                shutil.rmtree(linked, ignore_errors=True)

    async def _store_candidate(self, holding: Holding, rival: Rival) -> None:
        packed = await self._pack_finished(holding, rival)
        result = holding.results[rival]

        async def store() -> None:
            steps, total_steps = result.steps, result.total_steps
            await self._announce(holding, rival, packed, steps, total_steps, final=True)

        await sending_again(store)

    async def _pack_finished(self, holding: Holding, rival: Rival) -> Packed:
        extra = {RESULT_FILE: msgspec.json.encode(holding.results[rival])}
        extra[telemetry.FILE] = telemetry.encode(holding.record.curve(rival))
        directory = holding.candidates[rival]
        return await asyncio.to_thread(pack, directory, "candidate", self._writer, extra)

    async def _announce(
        self,
        holding: Holding,
        rival: Rival,
        packed: Packed,
        step: int,
        total_steps: int,
        *,
        final: bool = False,
    ) -> Manifest:
        """Send a checkpoint's chunks and name them; its manifest as it is stored."""
        sent = await self._send(holding, packed)
        request = wire.CheckpointRequest(
            token=holding.token,
            rival=rival,
            step=step,
            total_steps=total_steps,
            manifest=sent,
            final=final,
            method=holding.methods.get(rival, ""),
        )
        await self._ask(lambda link: link.checkpoint(request), holding)
        return sent

    # ── from the server, or from this disk ──

    async def resume(self, holding: Holding, rival: Rival) -> bool:
        """Find what an earlier attempt, or an earlier run, left of this rival; whether there is
        something."""
        directory = self.folder(holding, rival)
        for left in directory.glob(f"{_LINKED}*"):
            shutil.rmtree(left, ignore_errors=True)
        point = next((p for p in holding.assignment.resume if p.rival == rival), None)
        if holding.starts and self._resume_here(holding, rival, directory):
            return True
        if point is None:
            shutil.rmtree(directory, ignore_errors=True)
            return False
        target = directory / ("candidate" if point.final else f"step-{point.step:08d}")
        with on_its_way(target) as part:
            await self._download(holding, point.manifest, part)
            if point.final:
                await asyncio.to_thread(_take_finished, holding, rival, part, target, point)
            else:
                await asyncio.to_thread(settle, part, target)
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
        earlier = telemetry.points_beside(directory)
        holding.record.begin(rival, result.steps, result.total_steps, earlier)
        _take_result(holding, rival, result)
        if rival != rivals_of(holding.assignment.role)[-1]:
            self.upload_candidate(holding, rival)
        return True

    async def keep_result(self, holding: Holding, rival: Rival, result: jobs.Result) -> None:
        """Take a finished training into the holding, and onto the disk. Raises OSError."""
        _take_result(holding, rival, result)
        folder = self.folder(holding, rival)
        holding.record.save(rival, folder)
        encoded = msgspec.json.encode(result)
        await asyncio.to_thread(platforms.write_atomically, folder / RESULT_FILE, encoded)

    async def models(self, holding: Holding, rival: Rival) -> tuple[str, list[str]]:
        """The folder of what a rival starts from, "" for nothing, and those of what it learns
        from."""
        assignment = holding.assignment
        base, method = assignment.base, assignment.method
        if rival == "merge":
            return "", [await self._model(holding, one, method) for one in assignment.parents]
        if base is None:
            return "", []
        if rival == "evolver":
            used = "full" if method == "distill" else method
            return await self._model(holding, base, used), []
        return "", [await self._model(holding, base, method)] if method == "distill" else []

    async def _model(self, holding: Holding, base: Base, method: str) -> str:
        task = holdings.folder_of(self._tasks, holding.token.task_id)
        download = functools.partial(self._download, holding, base.manifest, method=method)
        folder = task / "models" / base.manifest
        return str(await self._bases.get(base.manifest, folder, download))

    async def corpus(self, holding: Holding, manifest: str) -> str:
        """The folder of a corpus, downloaded once; the newest few are kept."""
        download = functools.partial(self._download, holding, manifest)
        return str(await self._corpora.get(manifest, download))

    async def _download(
        self, holding: Holding, manifest: str, folder: Path, method: str = ""
    ) -> Manifest:
        """Bring an artifact's files into a folder; errors.Unfit where this device could not train
        it by this method, or its task's."""
        require = functools.partial(
            memory.require_room,
            method=method or holding.assignment.method,
            machine=self._machine,
        )
        found: Manifest = await self._ask(
            lambda link: link.download(manifest, folder, require), holding
        )
        return found

    def forget(self, holding: Holding, rival: Rival) -> None:
        """Delete what is of no use to a rival that begins anew."""
        shutil.rmtree(self.folder(holding, rival), ignore_errors=True)


def _link(directory: Path) -> Path | None:
    """Keep a state of training as it is while newer ones take its place; where it is kept, or None
    on a file system without hard links: then every checkpoint is sent whole."""
    linked = directory.with_name(_LINKED + directory.name)
    try:
        linked.mkdir()
        for path in directory.iterdir():
            os.link(path, linked / path.name)
    except OSError as error:
        log.info("%s is not kept: %s", directory.name, error, extra={"action": "upload"})
        shutil.rmtree(linked, ignore_errors=True)
        return None
    return linked


def _take_result(holding: Holding, rival: Rival, result: jobs.Result) -> None:
    holding.results[rival] = result
    holding.candidates[rival] = Path(result.candidate_directory)
    holding.step, holding.total_steps = result.steps, result.total_steps
    holding.record.end(rival, result)


def _take_finished(
    holding: Holding, rival: Rival, part: Path, candidate: Path, point: Checkpoint
) -> None:
    """Take what another agent finished; what it says of folders is of its own machine, or a lie.

    Raises OSError, errors.ArtifactError where the result is not about these weights.
    """
    try:
        result = msgspec.json.decode((part / RESULT_FILE).read_bytes(), type=jobs.Result)
        sha256 = tensors.weights_sha256_of_file(part / WEIGHTS_FILE)
        if (result.role, result.weights_sha256) != (rival, sha256):
            raise errors.ArtifactError("its result is about another model")
    except (
        FileNotFoundError,
        msgspec.MsgspecError,
        UnicodeDecodeError,
        errors.ArtifactError,
    ) as error:
        raise errors.ArtifactError(
            f"the finished {rival} of an earlier attempt cannot be taken over: {error}"
        ) from error
    earlier = telemetry.points_beside(part)
    for name in (RESULT_FILE, telemetry.FILE):  # a candidate is its model alone
        (part / name).unlink(missing_ok=True)
    shutil.rmtree(candidate, ignore_errors=True)
    settle(part, candidate)
    holding.record.begin(rival, point.step, point.total_steps, earlier)
    result = msgspec.structs.replace(result, candidate_directory=str(candidate), others=[])
    holding.results[rival] = result
    holding.candidates[rival] = candidate
    holding.step, holding.total_steps = point.step, point.total_steps


async def sending_again(send: Callable[[], Awaitable[None]]) -> None:
    """Send chunks and name them; again where the desk finds that some are not there any more, or
    came damaged: asked anew it misses them. Raises ArtifactError after SENDINGS_MAX."""
    for _ in range(SENDINGS_MAX - 1):
        try:
            return await send()
        except errors.ArtifactError as error:
            log.info("sent again: %s", error, extra={"action": "upload"})
    return await send()
