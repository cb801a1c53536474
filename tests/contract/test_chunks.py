"""What every chunk store has to do, what the one on a server has to besides, and manifests."""

import json
import os
import tracemalloc
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
import pytest

from core import bus, chunks, chunks_jetstream, errors, nats_wire, topology
from core.bus import Bus
from core.chunks import (
    CHUNK_BYTES,
    FILES_MAX,
    MANIFEST_CHUNKS_MAX,
    ChunkStore,
    File,
    Manifest,
)
from core.chunks_jetstream import JetStreamChunks
from core.chunks_s3 import S3Chunks, StagedChunks
from core.deltas import DELTAS_MAX
from core.log_jetstream import bytes_of
from core.promises import Promises
from tests.nats_fixture import SECONDS_MAX, Nats, running
from tests.s3_fixture import S3

pytest_plugins = ["tests.nats_fixture", "tests.s3_fixture"]

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


FORGED_SIZES = [
    b"NATS/1.0\r\nNats-Msg-Size: abc\r\n\r\n",
    b"NATS/1.0\r\nNats-Msg-Size: 0\r\n\r\n",
    b"NATS/1.0\r\nNats-Msg-Size: 0\r\nX: y",
    b"NATS/1.0\r\nX: Nats-Msg-Size: 900\r\nNats-Msg-Size:\r\n\r\n",
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
        self._store.held[WRITER, digest] = data


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
            assert await bench.store.has(WRITER, digest)

    async def test_writing_a_chunk_again_changes_nothing(self, bench: Bench) -> None:
        first = await bench.store.put(WRITER, b"weights")
        assert await bench.store.put(WRITER, b"weights") == first
        assert await bench.store.get(WRITER, first) == b"weights"

    async def test_a_chunk_that_nobody_wrote_is_not_found(self, bench: Bench) -> None:
        with pytest.raises(errors.NotFound, match=DIGEST[:12]):
            await bench.store.get(WRITER, DIGEST)
        assert not await bench.store.has(WRITER, DIGEST)

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
        assert not await bench.store.has(WRITER, DIGEST)
        await bench.store.put(WRITER, b"weights")
        assert await bench.store.get(WRITER, DIGEST) == b"weights"

    async def test_every_writer_of_a_chunk_is_known_but_for_the_desk(self, bench: Bench) -> None:
        for writer in (WRITER, "a2", chunks.DESK):
            await bench.store.put(writer, b"weights")
        assert sorted(await bench.store.writers(DIGEST)) == [WRITER, "a2"]
        assert await bench.store.writers(OTHER) == []

    async def test_all_that_is_stored_can_be_listed_and_swept(self, bench: Bench) -> None:
        for writer, data in ((WRITER, b"weights"), ("a2", b"weights"), (WRITER, b"others")):
            await bench.store.put(writer, data)
        items = {(one.writer, one.digest): one async for one in bench.store.stored()}
        sizes = {key: one.bytes for key, one in items.items()}
        assert sizes == {(WRITER, DIGEST): 7, ("a2", DIGEST): 7, (WRITER, OTHER): 6}
        await bench.store.sweep(items["a2", DIGEST])
        await bench.store.sweep(items["a2", DIGEST])
        assert await bench.store.writers(DIGEST) == [WRITER]

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
            with pytest.raises(errors.ArtifactError, match="SHA-256"):
                await bench.store.writers(name)
        assert await bench.store.has(WRITER, DIGEST)


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

    @pytest.mark.parametrize("header", FORGED_SIZES)
    async def test_a_size_that_a_writer_made_up_is_not_believed(
        self, shared_nats: Nats, bench: JetStreamBench, header: bytes
    ) -> None:
        await write(shared_nats, f"chunk.{WRITER}.{DIGEST}", header, b"weights")
        (item,) = [one async for one in bench.store.stored()]
        assert 7 < item.bytes < 7 + 200  # with the header, which takes room too
        await bench.store.sweep(item)
        assert [one async for one in bench.store.stored()] == []

    async def test_headers_that_take_room_are_counted(
        self, shared_nats: Nats, bench: JetStreamBench
    ) -> None:
        header = b"NATS/1.0\r\nX: %s\r\n\r\n" % bytes(60_000).replace(b"\0", b"y")
        await write(shared_nats, f"chunk.{WRITER}.{DIGEST}", header, b"")
        (item,) = [one async for one in bench.store.stored()]
        assert item.bytes > 60_000

    @pytest.mark.parametrize("name", [b"zz", b"\xff\xfe", b"a\x0bb"])
    async def test_a_chunk_whose_name_is_no_digest_is_told_of_and_swept(
        self, shared_nats: Nats, bench: JetStreamBench, name: bytes
    ) -> None:
        await write(
            shared_nats, b"chunk.%s.%s" % (WRITER.encode(), name), b"NATS/1.0\r\n\r\n", b"x"
        )
        await bench.store.put("a2", b"others")
        first, second = [one async for one in bench.store.stored()]
        assert (first.writer, second.digest) == (WRITER, OTHER)
        assert not Promises().is_kept(first.writer, first.digest)
        await bench.store.sweep(first)
        assert [one async for one in bench.store.stored()] == [second]

    async def test_whether_a_chunk_is_there_is_asked_without_moving_it(
        self, bench: JetStreamBench
    ) -> None:
        digest = await bench.store.put(WRITER, os.urandom(CHUNK_BYTES))
        before = bench.fleet._client.stats["in_bytes"]
        assert await bench.store.has(WRITER, digest)
        assert not await bench.store.has("a2", digest)
        assert bench.fleet._client.stats["in_bytes"] - before < 10_000

    async def test_what_was_written_again_is_not_swept(self, bench: JetStreamBench) -> None:
        await bench.store.put(WRITER, b"weights")
        (item,) = [one async for one in bench.store.stored()]
        await bench.store.delete(WRITER, DIGEST)
        await bench.store.put(WRITER, b"weights")
        await bench.store.sweep(item)
        assert await bench.store.has(WRITER, DIGEST)

    async def test_a_chunk_larger_than_a_chunk_is_refused(self, bench: JetStreamBench) -> None:
        with pytest.raises(errors.Unavailable, match="size exceeds"):
            await bench.store.put(WRITER, bytes(CHUNK_BYTES + 8_192))

    async def test_without_its_stream_the_store_is_unavailable(self, bench: JetStreamBench) -> None:
        await bench.fleet.api("STREAM.DELETE.CHUNKS")
        for question in (
            bench.store.put(WRITER, b"weights"),
            bench.store.get(WRITER, DIGEST),
            bench.store.has(WRITER, DIGEST),
            bench.store.writers(DIGEST),
            bench.store.delete(WRITER, DIGEST),
        ):
            with pytest.raises(errors.Unavailable):
                await question


class S3Bench:
    def __init__(self, s3: S3, store: ChunkStore, url: str) -> None:
        self.s3 = s3
        self.store = store
        self.url = url

    async def damage(self, digest: str, data: bytes) -> None:
        self.s3.put(self.url, f"{digest}/{WRITER}", data)


class TestS3Chunks(ChunksContract):
    @pytest.fixture
    async def bench(self, s3: S3) -> S3Bench:
        url = s3.fresh()
        return S3Bench(s3, S3Chunks(url), url)

    async def test_what_was_written_again_is_not_swept(self, bench: S3Bench) -> None:
        await bench.store.put(WRITER, b"weights")
        (item,) = [one async for one in bench.store.stored()]
        await bench.store.sweep(item._replace(at=item.at - 1_000_000))
        assert await bench.store.has(WRITER, DIGEST)

    async def test_other_objects_below_the_prefix_are_none_of_ours(self, bench: S3Bench) -> None:
        bench.s3.put(bench.url, "readme.txt", b"")
        bench.s3.put(bench.url, f"{DIGEST}/a/b", b"")
        assert [one async for one in bench.store.stored()] == []

    async def test_a_place_belongs_to_one_log(self, bench: S3Bench) -> None:
        store = S3Chunks(bench.url)
        for _ in range(2):
            await store.require_own("mine")
        with pytest.raises(errors.DataDirectoryError, match="another data directory"):
            await store.require_own("yours")
        await store.require_own("yours", before="mine")
        with pytest.raises(errors.DataDirectoryError, match="another data directory"):
            await store.require_own("mine", before="another")

    async def test_without_its_bucket_the_store_is_unavailable(self, s3: S3) -> None:
        store = S3Chunks("s3://no-such-bucket/x")
        with pytest.raises(errors.Unavailable, match="check bucket"):
            await store.require_own("mine")
        with pytest.raises(errors.Unavailable, match="check bucket"):
            await store.put(WRITER, b"weights")


class TestStagedChunks(ChunksContract):
    @pytest.fixture
    async def bench(self, shared_nats: Nats, s3: S3) -> AsyncIterator[JetStreamBench]:
        async with shared_nats.connect("desk") as fleet:
            await fleet.api("STREAM.DELETE.CHUNKS")
            await topology.apply(fleet.api, "FLEET", shared_nats.authority.declared)
            bench = JetStreamBench(fleet)
            self.staging, self.remote = JetStreamChunks(fleet), S3Chunks(s3.fresh())
            bench.store = StagedChunks(self.staging, self.remote, Promises())
            yield bench

    async def test_what_is_taken_stays_in_s3_alone(self, bench: JetStreamBench) -> None:
        await self.staging.put(WRITER, b"weights")
        for _ in range(2):
            assert await bench.store.take(WRITER, DIGEST) == b"weights"
        assert not await self.staging.has(WRITER, DIGEST)
        assert await self.remote.has(WRITER, DIGEST)
        assert await bench.store.writers(DIGEST) == [WRITER]

    async def test_what_its_writer_puts_in_the_way_later_hides_nothing(
        self, bench: JetStreamBench
    ) -> None:
        await self.staging.put(WRITER, b"weights")
        await bench.store.take(WRITER, DIGEST)
        await bench.damage(DIGEST, b"weightz")
        assert await bench.store.get(WRITER, DIGEST) == b"weights"
        assert await bench.store.take(WRITER, DIGEST) == b"weights"

    async def test_what_stands_in_both_is_told_of_from_s3_first(
        self, bench: JetStreamBench
    ) -> None:
        for store in (self.staging, self.remote):
            await store.put(WRITER, b"weights")
        first, second = [one async for one in bench.store.stored()]
        assert (first.seq, second.seq > 0) == (0, True)
        await bench.store.sweep(second)
        assert not await self.staging.has(WRITER, DIGEST)
        await bench.store.sweep(first)
        assert not await bench.store.has(WRITER, DIGEST)

    async def test_what_was_asked_for_and_is_old_stays_promised(
        self, bench: JetStreamBench
    ) -> None:
        promises = Promises()
        store = StagedChunks(self.staging, self.remote, promises)
        await self.remote.put(WRITER, b"weights")
        assert await store.has(WRITER, DIGEST)
        assert promises.is_kept(WRITER, DIGEST)
        assert not await store.has(WRITER, OTHER)
        assert not promises.is_kept(WRITER, OTHER)


@pytest.mark.parametrize(
    "url", ["", "s3:/x", "http://b/x", "s3://B", "s3://b u/x", "s3://bu/../x y"]
)
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(errors.Invalid, match="no place for artifacts"):
        S3Chunks(url)


async def write(nats: Nats, subject: str | bytes, header: bytes, data: bytes) -> None:
    """Write a chunk as the agent `a1` does, with a header of any bytes."""
    minted = nats.authority.agent(WRITER, ["cpu"], None)
    assert minted.seed is not None
    credentials = bus.Credentials(minted.jwt, minted.seed)
    wire = await nats_wire.Wire.connect(nats.url, credentials, "raw", SECONDS_MAX)
    inbox = f"_INBOX_{WRITER}.raw"
    wire.write(b"SUB %s 1\r\n" % inbox.encode())
    named = subject if isinstance(subject, bytes) else subject.encode()
    sizes = b"%d %d" % (len(header), len(header) + len(data))
    wire.write(b"HPUB %s %s %s\r\n%s%s\r\n" % (named, inbox.encode(), sizes, header, data))
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


@pytest.mark.parametrize("headers", [b"", b"NATS/1.0\r\nNats-Msg-Size: 7\r\nX: y\r\n\r\n"])
def test_a_size_that_the_server_does_not_tell_is_not_known(headers: bytes) -> None:
    assert bytes_of(headers) is None


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
        chunks_jetstream.require_stored(answer)


# Manifests


def manifest_of(*files: File, **lent: list[str]) -> Manifest:
    return Manifest(kind="checkpoint", writer=WRITER, files=list(files), lent=lent)


def file(name: str = "weights.safetensors", size: int = 7, sha256: str = DIGEST) -> File:
    return File(name=name, bytes=size, sha256=sha256, chunks=[DIGEST])


def many(count: int) -> File:
    return File(name="f", bytes=10**9, sha256=DIGEST, chunks=[DIGEST] * count)


def changed(deltas: dict[int, list[str]]) -> File:
    return File(name="f", bytes=7, sha256=DIGEST, chunks=[DIGEST], deltas=deltas)


def test_a_manifest_that_says_nothing_of_others_is_written_as_ever() -> None:
    assert list(json.loads(manifest_of(file()).encode())) == ["kind", "writer", "files"]


def test_every_chunk_has_its_place() -> None:
    two = File(name="f", bytes=14, sha256=DIGEST, chunks=[DIGEST, OTHER])
    assert manifest_of(two, a2=[OTHER]).places() == {DIGEST: WRITER, OTHER: "a2"}
    delta = changed({0: [OTHER]})
    assert manifest_of(delta, a2=[OTHER]).places() == {DIGEST: WRITER, OTHER: "a2"}


def test_a_manifest_comes_back_as_it_was() -> None:
    empty = File(name="state_1.json", bytes=0, sha256=DIGEST, chunks=[])
    manifest = manifest_of(file(), empty, changed({0: [OTHER]}), a2=[OTHER])
    assert chunks.decode_manifest(manifest.encode()) == manifest
    assert manifest.bytes == 14


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
        (manifest_of(file(size=0)), "1 chunks of 0 bytes"),
        (manifest_of(many(MANIFEST_CHUNKS_MAX + 1)), "names \\d+ chunks"),
        (manifest_of(many(MANIFEST_CHUNKS_MAX), file()), "names \\d+ chunks"),
        (manifest_of(file(sha256=DIGEST.upper())), "no SHA-256"),
        (manifest_of(file(sha256=DIGEST + "\n")), "no SHA-256"),
        (manifest_of(file(sha256="../x")), "no SHA-256"),
        (manifest_of(File(name="f", bytes=1, sha256=DIGEST, chunks=["*"])), "no SHA-256"),
        (manifest_of(*(file(f"f{number}") for number in range(FILES_MAX + 1))), "65 files"),
        (manifest_of(changed({1: [OTHER]})), "deltas of no chunk"),
        (manifest_of(changed({-1: [OTHER]})), "deltas of no chunk"),
        (manifest_of(changed({0: [OTHER] * (DELTAS_MAX + 1)})), "too many"),
        (manifest_of(changed({0: ["x"]})), "no SHA-256"),
        (manifest_of(file(), a2=[OTHER]), "no file is made of"),
        (manifest_of(file(), a2=[DIGEST], a3=[DIGEST]), "no file is made of"),
        (manifest_of(file(), **{WRITER: [DIGEST]}), "lends nothing"),
        (manifest_of(file(), desk=[DIGEST]), "lends nothing"),
        (manifest_of(file(), **{"a.b": [DIGEST]}), "lends nothing"),
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


def test_no_more_is_put_together_than_a_file_is_said_to_have() -> None:
    piece = bytes(CHUNK_BYTES)
    digest = chunks.digest_of(piece)
    file = File(name="f", bytes=300, sha256=digest, chunks=[digest] * 300)
    tracemalloc.start()
    try:
        with pytest.raises(errors.ArtifactError, match="300 bytes"):
            chunks.join(file, {digest: piece})
        assert tracemalloc.get_traced_memory()[1] < CHUNK_BYTES
    finally:
        tracemalloc.stop()


class Counted(chunks.MemoryChunks):
    """A store that counts what it gave."""

    given = 0

    async def get(self, writer: str, digest: str) -> bytes:
        data = await super().get(writer, digest)
        self.given += len(data)
        return data


@pytest.mark.parametrize("is_changed", [False, True])
async def test_no_more_is_fetched_than_a_file_can_be_made_of(is_changed: bool) -> None:
    store = Counted()
    named = [await store.put(WRITER, os.urandom(1_000)) for _ in range(100)]
    one = File(name="f", bytes=100, sha256=DIGEST, chunks=named)
    if is_changed:
        changes = {at: [digest] for at, digest in enumerate(named[1:])}
        first = await store.put(WRITER, b"1")
        one = File(name="f", bytes=100, sha256=DIGEST, chunks=[first] * 100, deltas=changes)
    with pytest.raises(errors.ArtifactError, match="100 bytes"):
        await chunks.assemble(store, manifest_of(one), "f")
    assert store.given <= 1_000 + (DELTAS_MAX + 1) * 100


def test_a_file_is_cut_at_chunks_and_nothing_is_lost() -> None:
    data = os.urandom(2 * CHUNK_BYTES + 5)
    pieces = list(chunks.split(data))
    assert [len(piece) for piece in pieces] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert b"".join(pieces) == data
    assert list(chunks.split(b"")) == []
