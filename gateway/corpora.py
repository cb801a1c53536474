"""Corpora over HTTP: their chunks come one by one, then a node is bound to them."""

import asyncio
import binascii
import functools
from collections import Counter
from typing import TypeVar

import msgspec
from aiohttp import web

from core import chunks, commands, corpora, errors, events, runtime
from core.chunks import DESK, ChunkStore, Manifest
from core.decide import fitness
from core.projections.state import State
from core.projections.tasks import OPEN, Task
from gateway import schemas
from gateway.reads import workload_of
from gateway.usage import Usage

T = TypeVar("T")

BY = "http"
TASKS_AT_ONCE = 10_000
"""Looked at in one turn of the loop."""
BASE64_CHARS_MAX = -(-corpora.PIECE_BYTES // 3) * 4


class CorpusRoutes:
    """What people do with corpora."""

    def __init__(self, door: runtime.Runtime, store: ChunkStore, usage: Usage) -> None:
        self._door = door
        self._store = store
        self._usage = usage
        self._binding = asyncio.Lock()

    async def missing(self, _: web.Request, asked: schemas.MissingRequest) -> schemas.MissingAnswer:
        """Which chunks have to be sent."""
        wanted = _read(asked.chunks, dict[str, int], "chunks")
        _require_few(len(wanted))
        try:
            absent = [one for one in wanted if not await self._store.has(DESK, one)]
        except errors.ArtifactError as error:
            raise errors.Invalid(str(error)) from error
        return schemas.MissingAnswer(missing=absent)

    async def chunk(self, _: web.Request, asked: schemas.ChunkRequest) -> schemas.ChunkAnswer:
        """Store a chunk; until a corpus names it, it is swept after a day."""
        if self._door.shortage:
            raise errors.LogFull(self._door.shortage)
        if len(asked.data) > BASE64_CHARS_MAX:
            raise errors.Invalid(f"a chunk has at most {corpora.PIECE_BYTES} bytes; cut it smaller")
        try:
            data = binascii.a2b_base64(asked.data, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise errors.Invalid(f"data is no base64: {error}") from error
        self._usage.require_room_for_text(len(data))
        return schemas.ChunkAnswer(digest=await self._store.put(DESK, data))

    async def bind(
        self, request: web.Request, asked: schemas.CorpusRequest
    ) -> schemas.CorpusAnswer:
        """Let a node train on a corpus from now on."""
        node_id = request.match_info["node_id"]
        if await self._door.read(lambda state: node_id not in state.graph.nodes):
            raise errors.NotFound(f"there is no node {node_id}")
        async with self._binding:  # each may hold as much text as a corpus has
            corpus = await self._checked(asked)
        base = asked.base_model
        if base is not None:
            _require_digest(base.digest)
        return await self._bound(
            commands.BindCorpus(
                node_id=node_id,
                corpus=corpus,
                base_model=None
                if base is None
                else events.BaseModel(name=base.name, digest=base.digest, bytes=base.bytes),
            )
        )

    async def unbind(self, request: web.Request, _: schemas.Nothing) -> schemas.CorpusAnswer:
        """Let a node train again what it did without its corpus."""
        node_id = request.match_info["node_id"]
        return await self._bound(commands.BindCorpus(node_id=node_id, corpus=None))

    async def listed(self, _: web.Request, __: schemas.NoQuery) -> schemas.CorporaAnswer:
        """Every node with a corpus of its own."""
        return schemas.CorporaAnswer(
            corpora=await self._door.read(
                lambda state: [
                    _node(state, node.node_id)
                    for node in state.graph.nodes
                    if node.workload is not None and node.workload.corpus is not None
                ]
            )
        )

    async def _bound(self, command: commands.BindCorpus) -> schemas.CorpusAnswer:
        node = await self._door.execute(
            command, runtime.new_meta(BY), lambda state: _node(state, command.node_id)
        )
        return schemas.CorpusAnswer(node=node, outdated=await self._outdated(command.node_id))

    async def _outdated(self, node_id: str) -> list[schemas.OutdatedTasks]:
        """The tasks that a node, and those that inherit from it, still have of other work."""
        found: dict[str, Counter[str]] = {}
        end = await self._door.read(lambda state: len(state.tasks.ids))
        while end > 0:
            start = max(0, end - TASKS_AT_ONCE)
            part = functools.partial(_outdated, node_id=node_id, start=start, end=end)
            for task in await self._door.read(part):
                found.setdefault(task.node_id, Counter())[task.status] += 1
            end = start
            await asyncio.sleep(0)  # the loop's turn, however many tasks there were ever
        return [
            schemas.OutdatedTasks(node_id=one, queued=of["queued"], running=of["running"])
            for one, of in sorted(found.items())
        ]

    async def _checked(self, asked: schemas.CorpusRequest) -> events.Corpus:
        """A corpus whose chunks are all there and hold what its parts should; its manifests are
        stored. Raises Invalid, Conflict where chunks are missing."""
        public = _manifest(asked.public, "public", (corpora.TRAINING, corpora.VALIDATION))
        hidden = _manifest(asked.hidden, "hidden", (corpora.HIDDEN,))
        if public.bytes + hidden.bytes > 2 * corpora.CORPUS_BYTES_MAX:  # with separators
            raise errors.Invalid(f"a corpus has at most {corpora.CORPUS_BYTES_MAX} bytes of text")
        _require_few(sum(len(file.chunks) for file in (*public.files, *hidden.files)))
        try:
            parts = [
                await chunks.assemble(self._store, manifest, file.name)
                for manifest in (public, hidden)
                for file in manifest.files
            ]
        except errors.NotFound as error:
            raise errors.Conflict(f"not all of the corpus is stored: {error}; send it again") from (
                error
            )
        except errors.ArtifactError as error:
            raise errors.Invalid(str(error)) from error
        corpus = await asyncio.to_thread(_described, asked.name, parts, public, hidden)
        for manifest in (public, hidden):
            await self._store.put(DESK, manifest.encode())
        return corpus


def _outdated(state: State, *, node_id: str, start: int, end: int) -> list[Task]:
    """Of some tasks the open ones of a node and its heirs that are to train other work."""
    heirs = _with_heirs(state, node_id)
    if not any(state.tasks.open_of_node.get(one, 0) for one in heirs):
        return []
    rows = map(state.tasks.table.rows.__getitem__, state.tasks.ids[start:end])
    return [
        row
        for row in rows
        if isinstance(row, Task)
        and row.status in OPEN
        and row.node_id in heirs
        and row.task_id not in state.tasks.closed
        and fitness.is_outdated(state, row)
    ]


def _with_heirs(state: State, node_id: str) -> set[str]:
    """A node and those below that train what it does."""
    nodes, found, look_at = state.graph.nodes.rows, {node_id}, [node_id]
    while look_at:
        for child in nodes[look_at.pop()].children:
            if nodes[child].workload is None:
                found.add(child)
                look_at.append(child)
    return found


def _described(name: str, parts: list[bytes], public: Manifest, hidden: Manifest) -> events.Corpus:
    if not name.strip() or len(name) > corpora.NAME_CHARS_MAX:
        raise errors.Invalid(f"a corpus has a name of 1 to {corpora.NAME_CHARS_MAX} characters")
    text = corpora.Text(*map(corpora.documents_of, parts))
    corpora.require_sound(text)
    return corpora.describe(name, text, public, hidden)


def _manifest(raw: msgspec.Raw, field: str, parts: tuple[str, ...]) -> Manifest:
    manifest = _read(raw, Manifest, field)
    names = [file.name for file in manifest.files]
    wanted = [corpora.file_name(part) for part in parts]
    is_plain = not manifest.lent and not any(file.deltas for file in manifest.files)
    if (manifest.kind, manifest.writer, names, is_plain) != (corpora.KIND, DESK, wanted, True):
        raise errors.Invalid(
            f"{field} is a manifest of a corpus with the files {wanted}, of whole chunks of its own"
        )
    try:
        chunks.require_sound(manifest)
    except errors.ArtifactError as error:
        raise errors.Invalid(f"{field}: {error}") from error
    return manifest


def _require_few(count: int) -> None:
    if count > corpora.CHUNKS_MAX:
        raise errors.Invalid(
            f"{count} chunks; a corpus has at most {corpora.CHUNKS_MAX}, of up to "
            f"{corpora.PIECE_BYTES} bytes"
        )


def _require_digest(digest: str) -> None:
    try:
        chunks.require_name(digest)
    except errors.ArtifactError as error:
        raise errors.Invalid(f"base_model: {error}") from error


def _read(raw: msgspec.Raw, kind: type[T], field: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise errors.Invalid(f"{field}: {error}") from error


def _node(state: State, node_id: str) -> schemas.BoundCorpus:
    node = state.graph.nodes.rows[node_id]
    return schemas.BoundCorpus(
        node_id=node_id, name=node.name, workload=workload_of(*state.graph.workload(node_id))
    )
