"""What every chunk store has to do, what the one on a server has to besides, and manifests."""

import json
import os
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
import pytest

from core import bus, chunks, errors, nats_wire, topology
from core.bus import Bus
from core.chunks import CHUNK_BYTES, FILES_MAX, ChunkStore, File, JetStreamChunks, Manifest
from tests.nats_fixture import SECONDS_MAX, Nats, running

pytest_plugins = ["tests.nats_fixture"]

WRITER = "a1"
DIGEST = chunks.digest_of(b"weights")
OTHER = chunks.digest_of(b"others")

HEADERS_OF_NONSENSE = [
    b"NATS/1.0",
    b"NATS/1.0 \xff\xff\xff x\r\n\r\n",
    b"NATS/1.0\r\n\xff: \xfe\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0 404\r\n: \r\n\r\n",
]


class Bench(Protocol):
    """A chunk store to try, and a way to spoil it."""

    store: ChunkStore

    async def damage(self, digest: str, data: bytes) -> None:
        """Put bytes under a name that is not theirs."""
        ...


class MemoryBench:
    def __init__(self) -> None:
        self._store = chunks.MemoryChunks()
        self.store: ChunkStore = self._store

    async def damage(self, digest: str, data: bytes) -> None:
        self._store.stored[WRITER, digest] = data


class JetStreamBench:
    def __init__(self, fleet: Bus) -> None:
        self.fleet = fleet
        self.store: ChunkStore = JetStreamChunks(fleet)

    async def damage(self, digest: str, data: bytes) -> None:
        """As an agent can: nothing on the server compares name and bytes."""
        answer = json.loads(await self.fleet.request(f"chunk.{WRITER}.{digest}", data))
        assert "error" not in answer, answer


class ChunksContract:
    """Inherited by the tests of each store, with a fixture `bench`."""

    async def test_a_chunk_is_read_as_it_was_written(self, bench: Bench) -> None:
        for data in (b"", b"\r\n", os.urandom(CHUNK_BYTES)):
            digest = await bench.store.put(WRITER, data)
            assert digest == chunks.digest_of(data)
            assert await bench.store.get(WRITER, digest) == data
            assert await bench.store.has(WRITER, digest) == len(data)

    async def test_writing_a_chunk_again_changes_nothing(self, bench: Bench) -> None:
        first = await bench.store.put(WRITER, b"weights")
        assert await bench.store.put(WRITER, b"weights") == first
        assert await bench.store.get(WRITER, first) == b"weights"

    async def test_a_chunk_that_nobody_wrote_is_not_found(self, bench: Bench) -> None:
        with pytest.raises(errors.NotFound, match=DIGEST[:12]):
            await bench.store.get(WRITER, DIGEST)
        assert await bench.store.has(WRITER, DIGEST) is None

    async def test_a_chunk_is_its_writers_alone(self, bench: Bench) -> None:
        await bench.store.put(WRITER, b"weights")
        with pytest.raises(errors.NotFound):
            await bench.store.get("a2", DIGEST)

    async def test_bytes_that_are_not_what_their_name_says_are_refused(self, bench: Bench) -> None:
        await bench.damage(DIGEST, b"weightz")
        with pytest.raises(errors.ArtifactError, match="damaged"):
            await bench.store.get(WRITER, DIGEST)

    async def test_a_damaged_chunk_can_be_deleted_and_written_again(self, bench: Bench) -> None:
        await bench.damage(DIGEST, b"weightz")
        await bench.store.delete(WRITER, DIGEST)
        assert await bench.store.has(WRITER, DIGEST) is None
        await bench.store.put(WRITER, b"weights")
        assert await bench.store.get(WRITER, DIGEST) == b"weights"

    async def test_deleting_what_is_not_there_does_nothing(self, bench: Bench) -> None:
        await bench.store.put(WRITER, b"others")
        await bench.store.delete(WRITER, DIGEST)
        assert await bench.store.get(WRITER, OTHER) == b"others"

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
    async def test_a_file_goes_in_pieces_and_comes_back_whole(
        self, bench: Bench, size: int
    ) -> None:
        data = os.urandom(size)
        digest = await chunks.put_file(bench.store, WRITER, "metrics", "metrics.json", data)
        assert await chunks.get_file(bench.store, WRITER, digest) == data

    async def test_a_file_that_its_manifest_misdescribes_is_refused(self, bench: Bench) -> None:
        piece = await bench.store.put(WRITER, b"weights")
        for file, words in (
            (File(name="f", bytes=8, sha256=piece, chunks=[piece]), "8 bytes"),
            (File(name="f", bytes=7, sha256=OTHER, chunks=[piece]), "does not hash"),
        ):
            manifest = Manifest(kind="candidate", writer=WRITER, files=[file])
            with pytest.raises(errors.ArtifactError, match=words):
                await chunks.assemble(bench.store, manifest, "f")

    async def test_a_file_that_is_not_in_the_manifest_is_not_found(self, bench: Bench) -> None:
        with pytest.raises(errors.NotFound, match="no file weights"):
            await chunks.assemble(bench.store, manifest_of(), "weights")

    async def test_an_artifact_without_files_is_refused(self, bench: Bench) -> None:
        digest = await bench.store.put(WRITER, manifest_of().encode())
        with pytest.raises(errors.ArtifactError, match="0 files"):
            await chunks.get_file(bench.store, WRITER, digest)

    async def test_a_name_that_is_no_digest_is_refused(self, bench: Bench) -> None:
        await bench.store.put(WRITER, b"weights")
        for name in ("*", ">", "", "a.b", DIGEST.upper(), DIGEST[:-1]):
            with pytest.raises(errors.ArtifactError, match="SHA-256"):
                await bench.store.get(WRITER, name)
            with pytest.raises(errors.ArtifactError, match="SHA-256"):
                await bench.store.delete(WRITER, name)
        assert await bench.store.has(WRITER, DIGEST) == len(b"weights")


class TestMemoryChunks(ChunksContract):
    @pytest.fixture
    async def bench(self) -> Bench:
        return MemoryBench()


class TestJetStreamChunks(ChunksContract):
    @pytest.fixture
    async def bench(self, shared_nats: Nats) -> AsyncIterator[JetStreamBench]:
        async with shared_nats.connect("desk") as fleet:
            await fleet.api("STREAM.DELETE.CHUNKS")
            await topology.apply(fleet.api, "FLEET", shared_nats.authority.declared)
            yield JetStreamBench(fleet)

    async def test_a_judge_that_may_only_get_messages_reads_chunks(
        self, shared_nats: Nats, bench: JetStreamBench
    ) -> None:
        digest = await chunks.put_file(
            bench.store, "desk", "candidate", "w", bytes(2 * CHUNK_BYTES)
        )
        async with shared_nats.connect("judge-fleet") as fleet:
            store = JetStreamChunks(fleet)
            assert await chunks.get_file(store, "desk", digest) == bytes(2 * CHUNK_BYTES)
            with pytest.raises(errors.NotFound):
                await store.get(WRITER, DIGEST)

    @pytest.mark.parametrize(
        "header", ["Status:404", "Status:503", "Nats-Sequence:9\r\nStatus:404"]
    )
    async def test_headers_that_a_writer_made_up_hide_no_chunk(
        self, bench: JetStreamBench, header: str
    ) -> None:
        headers = dict(line.split(":") for line in header.split("\r\n"))
        for data in (b"weights", b""):
            digest = chunks.digest_of(data)
            await bench.fleet.request(f"chunk.{WRITER}.{digest}", data, headers=headers)
            assert await bench.store.get(WRITER, digest) == data

    @pytest.mark.parametrize("header", HEADERS_OF_NONSENSE)
    async def test_headers_that_are_nonsense_hide_no_chunk(
        self, shared_nats: Nats, bench: JetStreamBench, header: bytes
    ) -> None:
        await write(shared_nats, f"chunk.{WRITER}.{DIGEST}", header, b"weights")
        assert await bench.store.get(WRITER, DIGEST) == b"weights"

    async def test_a_chunk_larger_than_a_chunk_is_refused(self, bench: JetStreamBench) -> None:
        with pytest.raises(errors.Unavailable, match="size exceeds"):
            await bench.store.put(WRITER, bytes(CHUNK_BYTES + 8_192))

    async def test_without_its_stream_the_store_is_unavailable(self, bench: JetStreamBench) -> None:
        await bench.fleet.api("STREAM.DELETE.CHUNKS")
        for question in (
            bench.store.put(WRITER, b"weights"),
            bench.store.get(WRITER, DIGEST),
            bench.store.has(WRITER, DIGEST),
            bench.store.delete(WRITER, DIGEST),
        ):
            with pytest.raises(errors.Unavailable):
                await question


async def write(nats: Nats, subject: str, header: bytes, data: bytes) -> None:
    """Write a chunk as the agent `a1` does, with a header of any bytes."""
    minted = nats.authority.agent(WRITER, ["cpu"], None)
    assert minted.seed is not None
    credentials = bus.Credentials(minted.jwt, minted.seed)
    wire = await nats_wire.Wire.connect(nats.url, credentials, "raw", SECONDS_MAX)
    inbox = f"_INBOX_{WRITER}.raw"
    wire.write(b"SUB %s 1\r\n" % inbox.encode())
    wire.write(nats_wire.publication_with(subject, inbox, header, data))
    while not (replies := (await wire.receive()).replies):
        pass
    assert "error" not in json.loads(replies[0].data)
    wire.close()


async def test_a_full_store_refuses_new_chunks_but_knows_those_it_has(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    declared = topology.load()
    small = msgspec.structs.replace(declared.streams["CHUNKS"], max_mib=2)
    declared = msgspec.structs.replace(declared, streams={**declared.streams, "CHUNKS": small})
    with running(tmp_path_factory.mktemp("small") / "data", declared) as nats:
        async with nats.connect("desk") as fleet:
            await topology.apply(fleet.api, "FLEET", declared)
            store = JetStreamChunks(fleet)
            first, second = bytes(CHUNK_BYTES), b"x" * CHUNK_BYTES
            await store.put(WRITER, first)
            await store.put(WRITER, second)
            with pytest.raises(errors.LogFull, match="maximum bytes"):
                await store.put(WRITER, b"y" * CHUNK_BYTES)
            assert await store.put(WRITER, first) == chunks.digest_of(first)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"nonsense", errors.Unavailable),
        (b"[]", errors.Unavailable),
        (b"\xff", errors.Unavailable),
        (b'{"error":"no"}', errors.Unavailable),
        (b'{"error":{"err_code":10047,"description":"insufficient storage"}}', errors.LogFull),
        (b'{"error":{"err_code":10077,"description":"maximum messages exceeded"}}', errors.LogFull),
        (b'{"error":{"err_code":10076,"description":"offline"}}', errors.Unavailable),
    ],
)
def test_an_answer_that_is_no_receipt_is_an_error(answer: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        chunks.require_stored(answer)


# Manifests


def manifest_of(*files: File) -> Manifest:
    return Manifest(kind="checkpoint", writer=WRITER, files=list(files))


def file(name: str = "weights.safetensors", size: int = 7, sha256: str = DIGEST) -> File:
    return File(name=name, bytes=size, sha256=sha256, chunks=[DIGEST])


def test_a_manifest_comes_back_as_it_was() -> None:
    manifest = manifest_of(file(), file("state_1.json", 0))
    assert chunks.decode_manifest(manifest.encode()) == manifest
    assert manifest.bytes == 7


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "a\\b",
        "/etc/x",
        "..",
        ".",
        "",
        ".hidden",
        "hidden.",
        "C:x",
        "-rf",
        "a\nb",
        "a\n",
        "نموذج",
        "a b",
        "a\x00",
    ],
)
def test_a_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    with pytest.raises(errors.ArtifactError, match="no plain file name"):
        chunks.decode_manifest(manifest_of(file(name)).encode())


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (manifest_of(file(), file()), "twice"),
        (manifest_of(file(), file("Weights.safetensors")), "twice"),
        (manifest_of(file(size=-1)), "-1 bytes"),
        (manifest_of(file(sha256=DIGEST.upper())), "no SHA-256"),
        (manifest_of(file(sha256=DIGEST + "\n")), "no SHA-256"),
        (manifest_of(file(sha256="../x")), "no SHA-256"),
        (manifest_of(File(name="f", bytes=1, sha256=DIGEST, chunks=["*"])), "no SHA-256"),
        (manifest_of(*(file(f"f{number}") for number in range(FILES_MAX + 1))), "65 files"),
        (Manifest(kind="checkpoint", writer="*", files=[]), "writer"),
        (Manifest(kind="checkpoint", writer="a.b", files=[]), "writer"),
    ],
)
def test_an_unsound_manifest_is_refused(manifest: Manifest, words: str) -> None:
    with pytest.raises(errors.ArtifactError, match=words):
        chunks.decode_manifest(manifest.encode())


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"\xff", b'{"kind":"x"}', b"[" * 100_000, b'{"kind":"\xff"}']
)
def test_bytes_that_are_no_manifest_are_refused(raw: bytes) -> None:
    with pytest.raises(errors.ArtifactError, match="cannot be read"):
        chunks.decode_manifest(raw)


def test_a_file_is_cut_at_chunks_and_nothing_is_lost() -> None:
    data = os.urandom(2 * CHUNK_BYTES + 5)
    pieces = list(chunks.split(data))
    assert [len(piece) for piece in pieces] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert b"".join(pieces) == data
    assert list(chunks.split(b"")) == []
