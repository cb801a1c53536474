"""Corpora over HTTP: what is stored, what is refused, and what an agent may read of it."""

import base64
import json
import random
import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from core import chunks, corpora, errors
from core.chunks import DESK
from gateway.usage import Quotas
from tests import texts
from tests.integration.gateway_stack import Reply, Stack, started
from tests.integration.test_desk import Agents, downloaded, opened

NODE = "opt-convex"
BELOW = "opt-discrete"


def detail(reply: Reply) -> str:
    return json.dumps(reply.json["detail"])


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agents]:
    async with (
        started(tmp_path_factory.mktemp("corpora") / "data") as stack,
        opened(stack) as one,
    ):
        yield one


def body(packed: corpora.Packed, **more: object) -> dict[str, object]:
    public, hidden = (msgspec.to_builtins(one) for one in (packed.public, packed.hidden))
    return {"name": packed.corpus.name, "public": public, "hidden": hidden, **more}


async def sent(stack: Stack, packed: corpora.Packed) -> None:
    for piece in packed.pieces.values():
        data = base64.b64encode(piece).decode()
        reply = await stack.post("/corpora/chunks", {"data": data})
        assert reply.json["digest"] == chunks.digest_of(piece)


async def test_an_agent_reads_the_public_texts_of_its_task_and_never_the_hidden_ones(
    agents: Agents,
) -> None:
    packed, stack = texts.packed(), agents.stack
    sizes = {digest: len(piece) for digest, piece in packed.pieces.items()}
    asked = await stack.post("/corpora/missing", {"chunks": sizes})
    assert sorted(asked.json["missing"]) == sorted(sizes)
    early = await stack.post(f"/nodes/{NODE}/corpus", body(packed))
    assert (early.status, "send it again" in detail(early)) == (409, True)
    await sent(stack, packed)
    asked = await stack.post("/corpora/missing", {"chunks": sizes})
    assert asked.json["missing"] == []
    bound = await stack.post(f"/nodes/{NODE}/corpus", body(packed))
    assert bound.json["node"]["workload"]["corpus"]["hidden"] == packed.corpus.hidden
    again = await stack.post(f"/nodes/{NODE}/corpus", body(packed))
    assert again.json == bound.json

    link = await agents.join("reader")
    await stack.enqueue(node_id=NODE)
    assignment = await link.claim(uuid.uuid4().hex, 0)
    assert assignment is not None
    assert assignment.workload.corpus == packed.corpus
    files = await downloaded(link, packed.corpus.manifest)
    text = corpora.split(texts.document(number).encode() for number in range(60))
    assert corpora.documents_of(files["training.txt"]) == text.training
    with pytest.raises(errors.NotOwner):
        await link.read(DESK, packed.corpus.hidden)
    for digest in packed.hidden.files[0].chunks:
        with pytest.raises(errors.NotOwner):
            await link.read(DESK, digest)


async def test_tasks_that_were_queued_for_the_work_before_are_told_of_with_the_new_work(
    agents: Agents,
) -> None:
    packed, stack = texts.packed(), agents.stack
    await sent(stack, packed)
    parent, child = "physics-fluid", "below-fluid"
    grown = await stack.post("/graph/expand", {"parent_id": parent, "name": child})
    heir = grown.json["node"]["node_id"]
    ids = [await stack.enqueue(node_id=one) for one in (parent, parent, heir, BELOW)]
    bound = await stack.post(f"/nodes/{parent}/corpus", body(packed))
    told = {one.pop("node_id"): one for one in bound.json["outdated"]}
    assert told == {parent: {"queued": 2, "running": 0}, heir: {"queued": 1, "running": 0}}
    for task_id in ids[:3]:
        ((why),) = (await stack.task(task_id))["waits"]
        assert "its node trains something else now" in why
    for task_id in ids:
        await stack.post(f"/tasks/{task_id}/cancel", {})
    again = await stack.post(f"/nodes/{parent}/corpus", body(packed))
    assert again.json["outdated"] == []


async def test_what_is_no_corpus_is_refused_and_changes_nothing(agents: Agents) -> None:
    packed, stack = texts.packed(), agents.stack
    await sent(stack, packed)
    other = texts.packed(50)
    swapped = corpora.Packed(packed.corpus, packed.public, other.hidden, {})
    await sent(stack, other)
    before = stack.parts.door.state.seq
    file = packed.public.files[0]
    wrong = chunks.Manifest(
        kind="corpus",
        writer=DESK,
        files=[msgspec.structs.replace(file, bytes=file.bytes + 1), packed.public.files[1]],
    )
    many = {f"{number:064x}": 1 for number in range(190)}
    repeated, of_many, changed = (
        msgspec.structs.replace(
            packed.public, files=[msgspec.structs.replace(file, **more), packed.public.files[1]]
        )
        for more in (
            {"chunks": file.chunks * 180},
            {"chunks": file.chunks * 190},
            {"deltas": {0: file.chunks}},
        )
    )
    for path, value, status, words in (
        ("/nodes/nowhere/corpus", body(packed), 404, "no node nowhere"),
        (f"/nodes/{BELOW}/corpus", body(packed, name=" "), 422, "has a name"),
        (f"/nodes/{BELOW}/corpus", body(packed, public={}), 422, "public: "),
        (f"/nodes/{BELOW}/corpus", body(swapped), 422, "not in their parts"),
        (f"/nodes/{BELOW}/corpus", body(packed._replace(public=wrong)), 422, "is said to have"),
        (f"/nodes/{BELOW}/corpus/remove", {}, 409, "no corpus of its own"),
        ("/corpora/chunks", {"data": "no base64!"}, 422, "base64"),
        ("/corpora/chunks", {"data": "A" * 983_044}, 422, "at most"),
        ("/corpora/missing", {"chunks": {"x": 1}}, 422, "no SHA-256"),
        ("/corpora/missing", {"chunks": many}, 422, "190 chunks; a corpus has at most"),
        (f"/nodes/{BELOW}/corpus", body(packed._replace(public=repeated)), 422, "said to have"),
        (f"/nodes/{BELOW}/corpus", body(packed._replace(public=of_many)), 422, "192 chunks; a"),
        (f"/nodes/{BELOW}/corpus", body(packed._replace(public=changed)), 422, "whole chunks"),
    ):
        reply = await stack.post(path, value)
        assert (reply.status, words in detail(reply)) == (status, True), (path, reply.body)
    assert stack.parts.door.state.seq == before


async def test_text_counts_at_once_and_once_and_leaves_room_for_results(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, stack = texts.packed(70), agents.stack
    usage, size = stack.parts.usage, sum(map(len, packed.pieces.values()))
    before = usage.total_bytes
    for _ in range(2):
        await sent(stack, packed)
        assert usage.total_bytes == before + size
    monkeypatch.setattr(usage, "quotas", Quotas(total_bytes=usage.total_bytes))
    refused = await stack.post("/corpora/chunks", {"data": base64.b64encode(b"more").decode()})
    assert (refused.status, "find no room" in detail(refused)) == (507, True)


async def test_the_largest_chunk_goes_into_one_request(agents: Agents) -> None:
    draw = random.Random(1)
    documents = [draw.randbytes(60_000).hex().encode() for _ in range(20)]
    packed = corpora.pack("large", corpora.split(documents))
    assert max(map(len, packed.pieces.values())) == corpora.PIECE_BYTES
    await sent(agents.stack, packed)
    reply = await agents.stack.post("/nodes/math-physics/corpus", body(packed))
    assert reply.json["node"]["workload"]["corpus"]["parts"]["hidden"]["documents"] == 1
