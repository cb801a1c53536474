"""The artifact stream: what checkpoints cost, how fast they go up, and what a cut costs."""

import asyncio
import contextlib
import functools
import itertools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import msgspec
import nats
import safetensors.torch
import torch
from nats.js.client import JetStreamContext

from agent import artifacts, checkpoints
from agent.artifacts import Packed, Stored
from agent.checkpoints import OPTIMIZER_FILE, WEIGHTS_FILE
from agent.executors import device, jobs, training
from agent.link import CHUNKS_IN_FLIGHT, Link
from benchmarks import harness
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import chunks, errors, events, topology, wire
from core.chunks import CHUNK_BYTES
from tests.acceptance import way
from tests.integration.gateway_stack import started
from tests.integration.test_desk import Agents, opened

GOAL_WEIGHTS = Goal("at most", 0.82)
GOAL_OPTIMIZER = Goal("at most", 0.89)
GOAL_LORA = Goal("at most", 1.02)
GOAL_UPLOAD = Goal("at least", 0.8)
GOAL_AGAIN = Goal("at most", 1.1)
GOAL_BLOCKED = Goal("below", 0.01)

NODE = "physics-fluid"
APART = 100
"""Steps before the first checkpoint, and to the second."""
LORA_STEPS = 20
CHUNKS = Size(100, 10)
TRAINED_SECONDS = Size(20, 6)
SAVE_SECONDS = 2.0
"""The shortest time between two checkpoints of a task."""
RAW = "RAW"

NOTES = """
- {node}'s neural operator, {megabytes:.2f} MB with its optimizer; the delta is that of step {later}
  on step {first}, restored bit for bit (asserted).
- A LoRA checkpoint's own bytes are those of a checkpoint without its base: adapters in a file of
  their own, their optimizer, random state, two JSON files. What it costs are the chunks that its
  writer stored, and its manifest. Its base was stored by another agent.
- Uploads are {count} random chunks of 1,044,480 bytes, the questions what is missing included, the
  desk answering in the same process; the raw publisher is nats-py with eight publishes in flight
  to a stream like CHUNKS.
- The cut falls into the middle of an upload through the relay; counted is what the gateway got.
- Blocked is the time that training spends in saving, every {save:g} s.
- Measured while other work ran on the same two cores: ratios within a run count, rates do not.
"""


# What checkpoints cost


def states_of(folder: Path, seed: int) -> list[Path]:
    """The states of a training after so many steps, and after twice as many: it is stopped there,
    and goes on."""
    kept: list[Path] = []
    for step in (APART, 2 * APART):
        job = _job(folder, seed, steps=4 * APART, every=1e3)
        looks = itertools.chain([None] * APART, itertools.repeat(jobs.Stop(number=0, save=True)))
        stopped = training.run(
            msgspec.structs.replace(job, resume=bool(kept)), _ignore, functools.partial(next, looks)
        )
        assert isinstance(stopped, jobs.Stopped)
        assert stopped.step == step
        kept.append(folder / f"kept-{step}")
        shutil.copytree(stopped.directory, kept[-1])
    return kept


def _job(
    folder: Path, seed: int, *, steps: int, every: float, base: str = "", method: str = "full"
) -> jobs.Job:
    return jobs.Job(
        task_id="t",
        node_id=NODE,
        specialist=NODE,
        role="evolver",
        seed=seed,
        steps=steps,
        directory=str(folder),
        checkpoint_seconds=every,
        base=base,
        method=method,
    )


def delta_ratios(folder: Path, seed: int) -> dict[str, float]:
    """By file, the bytes of a checkpoint's chunks by its own, where the one before is stored."""
    first, second = states_of(folder, seed)
    before = artifacts.pack(first, "checkpoint", "w")
    stored = Stored(before.manifest, first)
    packed = artifacts.pack(second, "checkpoint", "w", before=stored)
    found = {}
    for file in packed.manifest.files:
        restored = chunks.join(file, {**before.pieces, **packed.pieces})
        assert restored == (second / file.name).read_bytes()
        new = set(file.named()) & packed.pieces.keys()
        found[file.name] = sum(len(packed.pieces[one]) for one in new) / file.bytes
    return found


def own_bytes(state: Path) -> int:
    """What a LoRA checkpoint would have that left its base out: adapters in a file of their own,
    and all other files."""
    weights = safetensors.torch.load_file(state / WEIGHTS_FILE)
    adapters = {
        name: value
        for name, value in weights.items()
        if "parametrizations." in name and not name.endswith(".original")
    }
    others = sum(path.stat().st_size for path in state.iterdir() if path.name != WEIGHTS_FILE)
    return others + len(safetensors.torch.save(adapters))


class Bench:
    """A control plane with its desk, agents that bring what they trained, and a stream beside."""

    def __init__(self, agents: Agents, raw: JetStreamContext, folder: Path, run: Run) -> None:
        self._agents = agents
        self._raw = raw
        self._folder = folder
        self._names = itertools.count()
        self.count = run.size(CHUNKS)

    async def _holder(self, origin: str = "") -> tuple[Link, events.Token]:
        link = await self._agents.join(f"agent-{next(self._names)}", origin)
        await self._agents.stack.enqueue(node_id=NODE)
        assignment = await link.claim(uuid.uuid4().hex, 0)
        assert assignment is not None
        return link, assignment.token

    async def _bring(self, link: Link, token: events.Token, packed: Packed) -> chunks.Manifest:
        sent = await link.upload(token, packed.manifest, packed.pieces)
        await link.checkpoint(
            wire.CheckpointRequest(
                token=token, rival="evolver", step=1, total_steps=2, manifest=sent
            )
        )
        return sent

    async def lora_cost(self, seed: int) -> float:
        """What a LoRA checkpoint over a base of another agent costs, by its own bytes."""
        folder = self._folder / f"lora-{seed}"
        lender, holder = await self._holder(), await self._holder()
        trained = await asyncio.to_thread(
            training.run, _job(folder / "base", seed, steps=5, every=1e3), _ignore, _go_on
        )
        assert isinstance(trained, jobs.Result)
        base = Path(trained.candidate_directory)
        await self._bring(*lender, artifacts.pack(base, "candidate", lender[0].token))
        job = _job(
            folder / "lora", seed, steps=LORA_STEPS, every=0.0, base=str(base), method="lora"
        )
        await asyncio.to_thread(training.run, job, _ignore, _go_on)
        found = checkpoints.newest_state(folder / "lora")
        assert found is not None
        packed = artifacts.pack(found[0], "checkpoint", holder[0].token)
        sent = await self._bring(*holder, packed)
        assert sent.lent, "the base is lent"
        stored = self._agents.stack.parts.store.stored()
        brought = [one.bytes async for one in stored if one.writer == holder[0].token]
        return (sum(brought) + len(sent.encode())) / own_bytes(found[0])

    def _random(self, writer: str) -> Packed:
        pieces = [os.urandom(CHUNK_BYTES) for _ in range(self.count)]
        named = {chunks.digest_of(piece): piece for piece in pieces}
        file = chunks.File(
            name="f", bytes=len(named) * CHUNK_BYTES, sha256="0" * 64, chunks=list(named)
        )
        return Packed(chunks.Manifest(kind="checkpoint", writer=writer, files=[file]), named)

    async def upload_rate(self) -> float:
        """Megabytes a second of an agent's upload."""
        link, token = await self._holder()
        packed = await asyncio.to_thread(self._random, link.token)
        began = time.perf_counter()
        await link.upload(token, packed.manifest, packed.pieces)
        return packed.manifest.bytes / 1e6 / (time.perf_counter() - began)

    async def raw_rate(self) -> float:
        """Megabytes a second of a publisher that knows no desk."""
        packed = await asyncio.to_thread(self._random, f"raw-{next(self._names)}")
        slots = asyncio.Semaphore(CHUNKS_IN_FLIGHT)

        async def publish(digest: str, piece: bytes) -> None:
            async with slots:
                await self._raw.publish(f"raw.{packed.manifest.writer}.{digest}", piece, timeout=60)

        began = time.perf_counter()
        await asyncio.gather(*itertools.starmap(publish, packed.pieces.items()))
        return packed.manifest.bytes / 1e6 / (time.perf_counter() - began)

    async def sent_again(self) -> float:
        """Chunks' worth of bytes that an upload sends more when it is cut once."""
        whole, cut = await self._carried(is_cut=False), await self._carried(is_cut=True)
        return (cut - whole) / CHUNK_BYTES

    async def _carried(self, *, is_cut: bool) -> int:
        """The bytes that reach the gateway until an upload is whole."""
        host, port = self._agents.stack.origin.removeprefix("http://").split(":")
        async with way.to(host, int(port)) as path:
            link, token = await self._holder(path.origin)
            packed = await asyncio.to_thread(self._random, link.token)
            before = path.sent_bytes
            if is_cut:
                path.breaks_at = before + self.count * CHUNK_BYTES // 2
            while True:
                with contextlib.suppress(errors.Unavailable):
                    await link.upload(token, packed.manifest, packed.pieces)
                    break
                await asyncio.sleep(0.1)
            assert path.breaks_at is None, "it was cut where it was to be"
            await link.close()
            return path.sent_bytes - before


def _ignore(_: jobs.Report) -> None:
    """Reports that nobody asks about."""


def _go_on() -> None:
    """Nobody asks to stop."""


@contextlib.asynccontextmanager
async def _bench(folder: Path, run: Run) -> AsyncIterator[Bench]:
    async with started(folder / "data") as stack, opened(stack) as agents:
        client = await nats.connect(
            stack.nats.url,
            user_credentials=str(stack.nats.creds("desk")),
            inbox_prefix=b"_INBOX_desk",
        )
        declared = stack.nats.authority.declared.streams["CHUNKS"]
        config = topology.stream_config(RAW, declared) | {"subjects": ["raw.*.*"]}
        config["max_bytes"] = 1_024 * topology.MIB
        answer = await stack.parts.connections.fleet.api(f"STREAM.CREATE.{RAW}", config)
        assert "error" not in answer, answer
        try:
            yield Bench(agents, client.jetstream(), folder, run)
        finally:
            await client.close()


# What they keep training from


def blocked_share(folder: Path, seconds: int) -> float:
    """The share of its wall time that training spends in saving its state."""
    spent = 0.0
    take = checkpoints.snapshot  # it is written beside the training

    def timed(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> checkpoints.Snapshot:
        nonlocal spent
        began = time.perf_counter()
        taken = take(module, optimizer)
        spent += time.perf_counter() - began
        return taken

    began = time.perf_counter()
    job = _job(folder, 0, steps=10**6, every=SAVE_SECONDS)
    with mock.patch.object(checkpoints, "snapshot", timed):
        training.run(job, _ignore, lambda: _stop_after(began + seconds))
    return spent / (time.perf_counter() - began)


def _stop_after(moment: float) -> jobs.Stop | None:
    return jobs.Stop(number=0, save=False) if time.perf_counter() > moment else None


# The whole


def measure(run: Run) -> Section:
    """Deltas, a LoRA checkpoint, uploads, a cut, and what training waits for."""
    torch.set_num_threads(1)
    device.prepare()
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> Section:
    with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as name:
        folder = Path(name)
        seeds = range(run.repetitions)
        deltas = [delta_ratios(folder / f"seed-{seed}", seed) for seed in seeds]
        size = sum(path.stat().st_size for path in (folder / f"seed-0/kept-{APART}").iterdir())
        async with _bench(folder, run) as bench:
            lora = [await bench.lora_cost(seed) for seed in seeds]
            sides = {"upload": bench.upload_rate, "raw": bench.raw_rate}
            rates = await harness.alternate(sides, run.repetitions)
            again = [await bench.sent_again() for _ in seeds]
        seconds = run.size(TRAINED_SECONDS)
        blocked = [
            await asyncio.to_thread(
                functools.partial(blocked_share, folder / f"blocked-{seed}", seconds)
            )
            for seed in seeds
        ]
    return _section(deltas, lora, rates, again, blocked, size, bench.count)


def _section(
    deltas: list[dict[str, float]],
    lora: list[float],
    rates: dict[str, list[float]],
    again: list[float],
    blocked: list[float],
    size: int,
    count: int,
) -> Section:
    weights = [one[WEIGHTS_FILE] for one in deltas]
    optimizer = [one[OPTIMIZER_FILE] for one in deltas]
    faster = harness.ratios(rates["upload"], rates["raw"])
    return Section(
        title="artifacts: the stream of checkpoints",
        about="What checkpoints cost after another one, or over a base that another agent stored; "
        "how fast an agent's chunks go up beside a raw publisher's on the same server; what a cut "
        "sends twice.",
        ratios=[
            Ratio(what="delta of the weights / weights", values=weights, goal=GOAL_WEIGHTS),
            Ratio(what="delta of the optimizer / optimizer", values=optimizer, goal=GOAL_OPTIMIZER),
            Ratio(what="a LoRA checkpoint / its own bytes", values=lora, goal=GOAL_LORA),
            Ratio(what="upload / a raw publisher", values=faster, goal=GOAL_UPLOAD),
            Ratio(what="sent again after a cut / a chunk", values=again, goal=GOAL_AGAIN),
            Ratio(what="blocked by saving / wall time", values=blocked, goal=GOAL_BLOCKED),
        ],
        figures=[
            Figure(what="upload", unit="MB/s", values=rates["upload"]),
            Figure(what="raw publisher", unit="MB/s", values=rates["raw"]),
        ],
        notes=NOTES.format(
            node=NODE,
            megabytes=size / 1e6,
            first=APART,
            later=2 * APART,
            count=count,
            save=SAVE_SECONDS,
        ),
    )
