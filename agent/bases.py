"""Models that trainings start from or learn from: downloaded once for all agents that share a
folder, named by the digest of their manifest, the least recently used deleted beyond a bound."""

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

import msgspec

from agent import artifacts, folders
from core import chunks, errors, platforms
from core.chunks import Manifest

log = logging.getLogger(__name__)

KEPT_MAX = 32
BYTES_MAX = 8 * 1024**3
"""Of all that are kept; one that is larger alone is kept while it is the newest."""
PART_SECONDS_MAX = 24 * 3600.0
"""How long what was not fetched to its end is kept for the next try."""
TRIES_MAX = 3
WAIT_SECONDS = 0.1
DIGESTS_FILE = "digests.json"

Download = Callable[[Path], Awaitable[Manifest]]
"""Brings a model into a folder; tried again, it goes on with what is there."""


class Bases:
    """A folder of models. What a task uses of them is linked into its own folder, so that deleting
    one here takes it from nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sound: set[str] = set()
        """Digests of what this process has downloaded, or found as it was downloaded."""

    def open(self) -> None:
        """Make the folder. Raises errors.DataDirectoryError where it holds what is not ours."""
        folders.own(self.folder)

    async def get(self, digest: str, target: Path, download: Download) -> Path:
        """The model of this digest, as a folder at `target`; downloaded where it is not here.

        Raises OSError, errors.ArtifactError where others delete it as fast as it comes, and what
        `download` raises.
        """
        for _ in range(TRIES_MAX):
            await self._keep(digest, download)
            try:
                await asyncio.to_thread(_link, self.folder / digest, target)
            except FileNotFoundError:
                continue  # another agent made room just now
            return target
        raise errors.ArtifactError(
            f"the model {digest[:12]} was deleted from {self.folder} {TRIES_MAX} times as it came: "
            "others need the room; let fewer agents share it"
        )

    async def _keep(self, digest: str, download: Download) -> None:
        async with self._alone(digest):
            if not await asyncio.to_thread(self._has, digest):
                with artifacts.on_its_way(self.folder / digest) as part:
                    manifest = await download(part)
                    await _to_its_end(asyncio.to_thread(self._put, digest, part, manifest))
                self._sound.add(digest)
            await asyncio.to_thread(self._shed, digest)

    def _put(self, digest: str, part: Path, manifest: Manifest) -> None:
        digests = {file.name: file.sha256 for file in manifest.files}
        platforms.write_atomically(part / DIGESTS_FILE, msgspec.json.encode(digests))
        artifacts.settle(part, self.folder / digest)

    @contextlib.asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        """Let others of this device wait, so that they find what is being downloaded. There are few
        locks: whoever waits for another digest's waits in vain, and not for long."""
        lock = platforms.DataLock(self.folder / f".lock-{digest[:1]}")
        while True:
            try:
                lock.acquire()
                break
            except errors.DirectoryInUse:
                await asyncio.sleep(WAIT_SECONDS)
            except errors.DataDirectoryError as error:
                # A full disk, say: what a task can be given back for, and no end of the agent.
                raise error.__cause__ or error from None
        try:
            yield
        finally:
            lock.release()

    def _has(self, digest: str) -> bool:
        """Whether a model is here, and whole; one that was damaged since is deleted."""
        folder = self.folder / digest
        if not folder.is_dir():
            return False
        if digest in self._sound:
            return True
        if _is_whole(folder):
            self._sound.add(digest)
            return True
        log.warning("%s is damaged, and downloaded again", folder, extra={"action": "base"})
        shutil.rmtree(folder)
        return False

    def _shed(self, used: str) -> None:
        """Note that a model was used; delete those beyond the bounds that were not for longest."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / used)
        kept = []
        for at, folder, size in sorted(_folders(self.folder), reverse=True):
            if not folder.name.startswith(artifacts.PART):
                kept.append((at, folder, size))
            elif time.time() - at > PART_SECONDS_MAX:
                shutil.rmtree(folder, ignore_errors=True)
        total_bytes = 0
        for number, (_, folder, size) in enumerate(kept):
            total_bytes += size
            if number and (number >= KEPT_MAX or total_bytes > BYTES_MAX):
                shutil.rmtree(folder, ignore_errors=True)


async def _to_its_end(doing: Coroutine[None, None, None]) -> None:
    """Wait for what a thread does, cancelled or not: others come only when it is done."""
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait({task})


def _folders(folder: Path) -> list[tuple[float, Path, int]]:
    """When each was last used, where it is, and its bytes; what an agent was killed over, too."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another agent deletes it
            if path.is_dir():
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append((path.stat().st_mtime, path, size))
    return found


def _is_whole(folder: Path) -> bool:
    try:
        raw = (folder / DIGESTS_FILE).read_bytes()
        digests = msgspec.json.decode(raw, type=dict[str, str])
        return all(
            chunks.digest_of_file(folder / name) == digest for name, digest in digests.items()
        )
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _link(folder: Path, target: Path) -> None:
    """Make `target` what `folder` is; its files are the same where the file system can do so.

    Raises FileNotFoundError where the folder is gone.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in folder.iterdir():
        try:
            os.link(path, target / path.name)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(path, target / path.name)
