"""An agent in a process of its own that claims one task, stores a checkpoint of it, and completes
it when told to; it says on stdout what it was answered."""

import asyncio
import json
import sys
import uuid
from typing import Any

from agent import artifacts, machine
from agent.link import Link
from core import chunks, errors, wire
from core.events import Token
from core.projections.rounds import rivals_of

BEAT_SECONDS = 0.3


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def hold(api: str, worker_id: str) -> None:
    """Claim, checkpoint, wait for a line on stdin, complete."""
    device = machine.inspect()
    link = await Link.join(
        api,
        worker_id,
        device,
        direct=True,
        on_notice=lambda _: None,
        on_reconnect=lambda: None,
        on_closed=lambda _: None,
    )
    await link.hello(device, [])
    assignment = None
    while assignment is None:
        pulled = await link.pull()
        if pulled is not None:
            assignment = await link.claim(uuid.uuid4().hex, pulled.seq)
            await link.acknowledge(pulled)
    token = assignment.token
    beating = asyncio.create_task(_beat(link, token))
    early = await _upload(link, token, b"early")
    request = wire.CheckpointRequest(
        token=token, rival=rivals_of(assignment.role)[0], step=1, total_steps=2, manifest=early
    )
    await link.checkpoint(request)
    _say(claimed=token.task_id, attempt=token.attempt, stored=early.files[0].sha256)
    await asyncio.to_thread(sys.stdin.readline)
    try:
        late = await _upload(link, token, b"late")
        _say(uploaded=late.files[0].sha256)
        await link.complete(wire.CompleteRequest(token=token, metrics={"mark": worker_id}))
        _say(completed=token.task_id)
    except errors.AghsanError as error:
        _say(refused=type(error).__name__, why=str(error))
    beating.cancel()
    await link.close()


async def _beat(link: Link, token: Token) -> None:
    task: Any = wire.TaskBeat(task_id=token.task_id, attempt=token.attempt)
    while True:
        await link.beat(wire.Beat(worker_id=link.worker_id, session=link.session, tasks=[task]))
        await asyncio.sleep(BEAT_SECONDS)


async def _upload(link: Link, token: Token, what: bytes) -> chunks.Manifest:
    """Store a file that no other agent has."""
    data = what + b" of " + link.worker_id.encode()
    digest = chunks.digest_of(data)
    file = chunks.File(name="w", bytes=len(data), sha256=digest, chunks=[digest])
    packed = artifacts.Packed(
        chunks.Manifest(kind="checkpoint", writer=link.token, files=[file]), {digest: data}
    )
    await link.upload(token, packed.manifest, packed.pieces)
    return packed.manifest


if __name__ == "__main__":
    asyncio.run(hold(sys.argv[1], sys.argv[2]))
