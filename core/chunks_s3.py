"""Artifacts in S3, or anything that speaks its language, by way of CHUNKS.

Agents hold no keys of S3: they write to CHUNKS as ever, and the desk moves each chunk that a
manifest is about to name, once it has verified it. So CHUNKS holds what is on its way, and what was
stored before the data directory was bound to S3. An object is `<digest>/<writer>` below the prefix.
"""

import asyncio
import datetime
import os
import re
from collections.abc import AsyncIterator
from typing import NoReturn

from core import errors
from core.chunks import DESK, Booked, Item, digest_of, require_digest, require_name
from core.chunks_jetstream import JetStreamChunks
from core.promises import Promises

OWNER = "aghsan-owner"
"""An object that says whose log names the others."""
CONNECT_SECONDS = 5
REQUEST_SECONDS = 30
RETRIES_MAX = 2
RETRY_SECONDS_MAX = 10
LISTED_AT_ONCE = 1_000

_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?")
_OBJECT = re.compile(r"([0-9a-f]{64})/([A-Za-z0-9_-]{1,64})")


def require_url(url: str) -> str:
    """A place as `s3://bucket/prefix`, without a slash at its end. Raises errors.Invalid."""
    if not _URL.fullmatch(url):
        raise errors.Invalid(f"{url!r} is no place for artifacts; name one as s3://bucket/prefix")
    return url.rstrip("/")


class S3Chunks:
    """Chunks as objects. Where they lie is said by a URL, how to get there by the environment
    (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and so on)."""

    def __init__(self, url: str) -> None:
        """Raises errors.Invalid without obstore, or for what is no such place."""
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            raise errors.Invalid(
                f"artifacts in {url} need the package obstore (the extra s3): pip install obstore"
            ) from error
        self.url = require_url(url)
        self._obstore = obstore
        seconds = datetime.timedelta(seconds=1)
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        self._store = S3Store.from_url(
            self.url,
            client_options={
                "connect_timeout": CONNECT_SECONDS * seconds,
                "timeout": REQUEST_SECONDS * seconds,
                "allow_http": plain,
            },
            retry_config={
                "max_retries": RETRIES_MAX,
                "retry_timeout": RETRY_SECONDS_MAX * seconds,
            },
        )

    async def require_own(self, owner: str, before: str = "") -> None:
        """Take the place for a log, or find that it is taken for this one already, which may have
        been another `before`.

        Raises DataDirectoryError where another log uses it, Unavailable.
        """
        found = await self._get(OWNER)
        if found is not None and found.decode("utf-8", "replace") not in {owner, before or owner}:
            raise errors.DataDirectoryError(
                f"{self.url} holds the artifacts of another data directory, whose sweeps would take"
                " yours; name another prefix"
            )
        await self._put(OWNER, owner.encode())  # which tells at once whether writing is allowed

    async def has(self, writer: str, digest: str) -> bool:
        """As ChunkStore.has."""
        require_name(digest)
        try:
            await self._obstore.head_async(self._store, f"{digest}/{writer}")
        except FileNotFoundError:
            return False
        except Exception as error:  # noqa: BLE001  obstore's errors have no common base
            self._fail(error)
        return True

    async def get(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.get."""
        require_name(digest)
        data = await self._get(f"{digest}/{writer}")
        if data is None:
            raise errors.NotFound(f"no chunk {digest[:12]}… of {writer} is stored")
        await asyncio.to_thread(require_digest, data, digest)
        return data

    async def take(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.take."""
        return await self.get(writer, digest)

    async def put(self, writer: str, data: bytes) -> str:
        """As ChunkStore.put."""
        digest = await asyncio.to_thread(digest_of, data)
        await self._put(f"{digest}/{writer}", data)
        return digest

    async def writers(self, digest: str) -> list[str]:
        """As ChunkStore.writers."""
        require_name(digest)
        found = [item.writer async for item in self._list(digest)]
        return [writer for writer in found if writer != DESK]

    async def delete(self, writer: str, digest: str) -> None:
        """As ChunkStore.delete."""
        require_name(digest)
        try:
            await self._obstore.delete_async(self._store, f"{digest}/{writer}")
        except FileNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    async def stored(self, after: int | None = None) -> AsyncIterator[Item]:
        """As ChunkStore.stored."""
        if after is None:
            async for item in self._list(None):
                yield item

    async def sweep(self, item: Item) -> None:
        """As ChunkStore.sweep."""
        for there in [one async for one in self._list(item.digest) if one.writer == item.writer]:
            if there.at == item.at:
                await self.delete(item.writer, item.digest)

    async def _list(self, prefix: str | None) -> AsyncIterator[Item]:
        try:
            listed = self._obstore.list(self._store, prefix, chunk_size=LISTED_AT_ONCE)
            async for some in listed:
                for one in some:
                    if found := _OBJECT.fullmatch(one["path"]):
                        at = int(one["last_modified"].timestamp() * 1e6)
                        yield Item(0, found[2], found[1], one["size"], at)
        except (errors.AghsanError, GeneratorExit):
            raise
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    async def _get(self, path: str) -> bytes | None:
        try:
            found = await self._obstore.get_async(self._store, path)
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    async def _put(self, path: str, data: bytes) -> None:
        try:
            await self._obstore.put_async(self._store, path, data)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        words = str(error).partition("\n")[0][:300]
        raise errors.Unavailable(
            f"{self.url} does not do what it is asked for ({words}); check bucket, network and the"
            " AWS_ variables of the server's environment"
        ) from error


class StagedChunks:
    """Chunks that arrive in CHUNKS and stay in S3.

    With promises, what was asked for and is there stays, as `core.promises` has it.
    """

    def __init__(
        self,
        staging: JetStreamChunks,
        remote: S3Chunks,
        promises: Promises | None = None,
        booked: Booked | None = None,
    ) -> None:
        """`staging` makes no promises of its own, and `booked` hears as it has it there."""
        self._staging = staging
        self._remote = remote
        self._promises = promises
        self._booked = booked

    async def require_own(self, owner: str, before: str = "") -> None:
        """As S3Chunks.require_own."""
        await self._remote.require_own(owner, before)

    async def has(self, writer: str, digest: str) -> bool:
        """As ChunkStore.has."""
        require_name(digest)
        await self._keep(writer, digest)
        is_there = await self._staging.has(writer, digest) or await self._remote.has(writer, digest)
        self._settle(writer, digest, is_there=is_there)
        return is_there

    async def get(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.get."""
        data, _ = await self._find(writer, digest)
        return data

    async def take(self, writer: str, digest: str) -> bytes:
        """As ChunkStore.take: it is moved to S3."""
        data, is_staged = await self._find(writer, digest)
        if is_staged:
            await self._remote.put(writer, data)
            await self._staging.delete(writer, digest)
        return data

    async def put(self, writer: str, data: bytes) -> str:
        """As ChunkStore.put."""
        digest = await asyncio.to_thread(digest_of, data)
        if not await self.has(writer, digest):
            await self._keep(writer, digest)
            await self._remote.put(writer, data)
            self._settle(writer, digest, is_there=True)
            if self._booked is not None:
                self._booked(writer, digest, len(data))
        return digest

    async def writers(self, digest: str) -> list[str]:
        """As ChunkStore.writers."""
        found = await self._staging.writers(digest) + await self._remote.writers(digest)
        return list(dict.fromkeys(found))

    async def delete(self, writer: str, digest: str) -> None:
        """As ChunkStore.delete."""
        await self._staging.delete(writer, digest)
        await self._remote.delete(writer, digest)

    async def stored(self, after: int | None = None) -> AsyncIterator[Item]:
        """As ChunkStore.stored. What stands in both comes from S3 first."""
        async for item in self._remote.stored(after):
            yield item
        async for item in self._staging.stored(after):
            yield item

    async def sweep(self, item: Item) -> None:
        """As ChunkStore.sweep."""
        await (self._staging if item.seq else self._remote).sweep(item)

    async def _find(self, writer: str, digest: str) -> tuple[bytes, bool]:
        """A chunk, and whether it is in CHUNKS still."""
        require_name(digest)
        await self._keep(writer, digest)
        try:
            data = await self._staging.get(writer, digest)
        except (errors.NotFound, errors.ArtifactError) as error:
            # Its writer may have put anything there once it was moved.
            try:
                data = await self._remote.get(writer, digest)
            except errors.NotFound:
                self._settle(writer, digest, is_there=False)
                raise error from None
            self._settle(writer, digest, is_there=True)
            return data, False
        self._settle(writer, digest, is_there=True)
        return data, True

    async def _keep(self, writer: str, digest: str) -> None:
        if self._promises is not None:
            await self._promises.keep(writer, digest)

    def _settle(self, writer: str, digest: str, *, is_there: bool) -> None:
        if self._promises is not None:
            self._promises.settle(writer, digest, is_there=is_there)
