"""What an agent sends of its checkpoints, over a made-up link."""

import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch

from agent import holdings, tensors, transfers
from agent.executors import jobs
from agent.holdings import Holding
from agent.link import Pulled
from agent.narrator import Narrator
from agent.transfers import Transfers
from core import chunks, errors, events, wire
from core.chunks import Manifest
from tests import agents

WEIGHTS = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
MODEL = safetensors.torch.save({"w": WEIGHTS})


class Server(agents.Server):
    """A desk that keeps what it is sent, and refuses what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: dict[str, bytes] = {}
        self.named: list[Manifest] = []
        self.refusals: list[errors.AghsanError] = []
        self.files: dict[str, bytes] = {}
        """What is downloaded."""

    async def upload(
        self, _token: Any, manifest: Manifest, pieces: Mapping[str, bytes]
    ) -> Manifest:
        self.pieces.update(pieces)
        return manifest

    async def download(self, _manifest: str, folder: Path, _require: object) -> Manifest:
        return agents.brought(folder, self.files)

    async def checkpoint(self, request: wire.CheckpointRequest) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.named.append(request.manifest)


class Agent:
    """An agent that trains one task, and its transfers."""

    def __init__(self, directory: Path) -> None:
        self.server = Server()
        self.holding = Holding(agents._assignment(1), Pulled("t", 1, "ack"))
        self.said: list[str] = []
        narrator = Narrator(self.said.append, "http://nowhere")
        self.transfers = Transfers(directory, "w", agents.MACHINE, self._ask, self._lose, narrator)
        self.folder = self.transfers.folder(self.holding, "evolver")
        self.lost: list[str] = []
        self._step = 0

    async def _ask(
        self, ask: Callable[[Any], Awaitable[Any]], holding: Holding | None = None
    ) -> Any:
        return await ask(self.server)

    def _lose(self, _: Holding, reason: str) -> None:
        self.lost.append(reason)

    def save(self) -> bytes:
        """Begin to store another state of training; its file."""
        self._step += 1
        state = self.folder / f"step-{self._step:08d}"
        state.mkdir(parents=True)
        data = safetensors.torch.save({"w": WEIGHTS + self._step * 1e-5})
        (state / "model.safetensors").write_bytes(data)
        self.transfers.upload_checkpoint(self.holding, "evolver", state, self._step, 100)
        return data

    async def stored(self) -> bytes:
        """What the server could restore of the newest state."""
        await self.transfers.settle(self.holding)
        return chunks.join(self.server.named[-1].files[0], self.server.pieces)

    def told_by_change(self) -> list[bool]:
        return [bool(manifest.files[0].deltas) for manifest in self.server.named]


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


async def test_a_checkpoint_is_told_by_what_changed_since_the_one_before(agent: Agent) -> None:
    for _ in range(3):
        data = agent.save()
        assert await agent.stored() == data
    assert agent.told_by_change() == [False, True, True]
    kept = [path.name for path in agent.folder.iterdir() if path.name.startswith("stored-")]
    assert kept == ["stored-step-00000003"]


async def test_checkpoints_begun_at_once_follow_one_another(agent: Agent) -> None:
    saved = [agent.save() for _ in range(3)]
    assert await agent.stored() == saved[-1]
    assert agent.told_by_change() == [False, True, True]


async def test_what_the_desk_misses_is_sent_whole(agent: Agent) -> None:
    agent.save()
    await agent.stored()
    agent.server.pieces.clear()
    agent.server.refusals = [errors.ArtifactError("not stored; send it again")]
    data = agent.save()
    assert await agent.stored() == data
    assert agent.told_by_change() == [False, False]


async def test_a_refused_checkpoint_leaves_nothing_behind_and_changes_nothing_for_the_next(
    agent: Agent,
) -> None:
    agent.save()
    await agent.stored()
    agent.server.refusals = [errors.QuotaExceeded("full")]
    agent.save()
    await agent.stored()
    assert len(agent.server.named) == 1
    assert [one.name for one in agent.folder.glob("stored-*")] == ["stored-step-00000001"]
    data = agent.save()
    assert await agent.stored() == data
    assert agent.told_by_change() == [False, True]
    assert agent.lost == []
    refused, again = agent.said
    assert refused.startswith("trains on t on n without its checkpoint: full")
    assert "again" in again


def finished(**forged: Any) -> jobs.Result:
    """What another agent says of a model that it finished."""
    result = jobs.Result(
        node_id="n",
        role="evolver",
        steps=9,
        total_steps=9,
        loss=0.5,
        baseline_loss=1.0,
        evidence_rate=1.0,
        params=40_000,
        bytes=1,
        weights_sha256=tensors.weights_sha256(MODEL),
        candidate_directory="/somewhere/else",
    )
    return msgspec.structs.replace(result, **forged)


async def take_over(agent: Agent, result: jobs.Result) -> bool:
    """Go on where another agent left a finished evolver."""
    point = events.Checkpoint(
        rival="evolver",
        step=9,
        total_steps=9,
        manifest="a" * 64,
        writer="other",
        bytes=1,
        final=True,
    )
    assignment = msgspec.structs.replace(agent.holding.assignment, resume=[point])
    agent.holding.assignment = assignment
    agent.server.files = {
        "model.safetensors": MODEL,
        "config.json": b"{}",
        transfers.RESULT_FILE: msgspec.json.encode(result),
    }
    return await agent.transfers.resume(agent.holding, "evolver")


async def test_of_a_finished_model_that_is_taken_over_only_its_own_folder_is_ever_sent(
    agent: Agent, tmp_path: Path
) -> None:
    secret = tmp_path / "keys"
    secret.mkdir()
    forged = finished(candidate_directory=str(secret))
    assert await take_over(agent, msgspec.structs.replace(forged, others=[forged]))
    taken = agent.folder / "candidate"
    assert (taken / "model.safetensors").read_bytes() == MODEL
    ((rival, result),) = holdings.models_of(agent.holding)
    assert (rival, result.candidate_directory) == ("evolver", str(taken))
    brought = await agent.transfers.bring(agent.holding, rival, result)
    assert [one.name for one in brought.manifest.files] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "forged", [{"weights_sha256": "0" * 64}, {"role": "reinventor"}, {"candidate_directory": 1}]
)
async def test_a_finished_model_that_is_not_what_its_result_says_is_not_taken_over(
    agent: Agent, forged: dict[str, Any]
) -> None:
    with pytest.raises(errors.ArtifactError, match="cannot be taken over"):
        await take_over(agent, finished(**forged))
    assert agent.holding.results == {}
    assert not (agent.folder / "candidate").exists()


async def test_a_checkpoint_that_goes_with_its_lost_task_is_no_error(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.save()
    agent.holding.lost = "another worker has it"
    shutil.rmtree(agent.folder)
    await agent.transfers.settle(agent.holding)
    assert (agent.said, caplog.records) == ([], [])


async def test_a_checkpoint_that_is_not_there_is_an_error_of_a_task_that_is_ours(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.save()
    shutil.rmtree(agent.folder)
    await agent.transfers.settle(agent.holding)
    assert len(agent.said) == len(caplog.records) == 1


async def test_without_hard_links_every_checkpoint_is_sent_whole(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        data = agent.save()
        assert await agent.stored() == data
    assert agent.told_by_change() == [False, False]
    assert list(agent.folder.glob("stored-*")) == []
