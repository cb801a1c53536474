"""Stored models: fetched, built, and asked. Weights are loaded, never code."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import torch

from agent import artifacts, checkpoints, tensors
from agent.specialists import base, forms
from core import chunks, corpora, errors, events, wire
from orchestrator import bounds

SECONDS_MAX = 120.0
"""Of processor time, which neighbours do not take, for one candidate's answers to ranking cases."""
CASES_AT_ONCE = 256
"""Cases evaluated together: bounds memory, and how long a stop waits."""
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CONFIG_BYTES_MAX = 64 * 1024


class Files(NamedTuple):
    """The two files of a stored model."""

    weights: bytes
    config: bytes


Stored: TypeAlias = Files | errors.AghsanError
"""A stored model, or why it cannot be had."""
Texts: TypeAlias = str | errors.AghsanError
"""The folder of a corpus ("" where there is none), or why it cannot be had."""


def opponents_of(brief: wire.RoundBrief) -> list[events.Base]:
    """Whom a round's candidates may meet: the champion, the best ever, champions of budgets."""
    known = [brief.champion, brief.best, *(look.champion for look in brief.budgets)]
    return [one for one in known if one is not None]


async def gather(brief: wire.RoundBrief, store: chunks.ChunkStore) -> dict[str, Stored]:
    """The files of each candidate, and of those they may meet, by candidate id.

    Raises errors.Unavailable when the store does not answer.
    """
    manifests = {
        brought.candidate.candidate_id: brought.candidate.manifest for brought in brief.candidates
    }
    for one in opponents_of(brief):
        manifests.setdefault(one.candidate_id, one.manifest)
    stored: dict[str, Stored] = {}
    for candidate_id, manifest in manifests.items():
        try:
            stored[candidate_id] = await fetch(store, manifest)
        except (errors.ArtifactError, errors.NotFound) as error:
            stored[candidate_id] = error
    return stored


async def gather_texts(brief: wire.RoundBrief, store: chunks.ChunkStore, folder: Path) -> Texts:
    """The texts that a round is judged on, fetched into the folder where there are some.

    Raises errors.Unavailable when the store does not answer.
    """
    if brief.workload.corpus is None:
        return ""
    try:
        return await fetch_corpus(store, brief.workload.corpus, folder)
    except (errors.ArtifactError, errors.NotFound) as error:
        return error


async def fetch_corpus(store: chunks.ChunkStore, corpus: events.Corpus, folder: Path) -> str:
    """A folder with all texts of a corpus, the hidden ones too; fetched where it is not there, and
    alone kept. Raises errors.ArtifactError, NotFound, Unavailable."""
    target = folder / f"{corpus.manifest}-{corpus.hidden[:16]}"
    if target.is_dir():
        return str(target)
    files: dict[str, bytes] = {}
    for digest in (corpus.manifest, corpus.hidden):
        manifest = chunks.decode_manifest(await store.get(chunks.DESK, digest))
        if manifest.bytes > 2 * corpora.CORPUS_BYTES_MAX:
            raise errors.ArtifactError(f"a corpus that is said to have {manifest.bytes} bytes")
        for file in manifest.files:
            files[file.name] = await chunks.assemble(store, manifest, file.name)

    def put() -> None:
        for old in folder.iterdir():
            shutil.rmtree(old, ignore_errors=True)
        artifacts.unpack(files, target)

    await asyncio.to_thread(put)
    return str(target)


async def fetch(store: chunks.ChunkStore, manifest_digest: str) -> Files:
    """The files a manifest names, every digest checked.

    Raises errors.ArtifactError or NotFound when they are not what they should be.
    """
    manifest = chunks.decode_manifest(await store.get(chunks.DESK, manifest_digest))
    files = []
    for name, bytes_max in (
        (WEIGHTS_FILE, chunks.MODEL_BYTES_MAX),
        (CONFIG_FILE, CONFIG_BYTES_MAX),
    ):
        file = next((file for file in manifest.files if file.name == name), None)
        if file is None:
            raise errors.ArtifactError(f"it has no {name}")
        if file.bytes > bytes_max:
            raise errors.ArtifactError(
                f"its {name} is said to have {file.bytes} bytes; at most {bytes_max} are read"
            )
        files.append(await chunks.assemble(store, manifest, name))
    return Files(*files)


class Model(NamedTuple):
    """A sound model, ready to be asked; `architecture` is equal for equal configurations."""

    module: torch.nn.Module
    params: int
    bytes: int
    architecture: str = ""


class Unbuildable(errors.ArtifactError):
    """A model over a base that this machine has not."""


class Slow(errors.ArtifactError):
    """A model that takes longer over the ranking cases than is waited; `seconds` it had by then."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"it took {seconds:.0f} s of processor time over the ranking cases without an end, and "
            f"{SECONDS_MAX:.0f} s are allowed"
        )
        self.seconds = seconds


def go_on_always() -> None:
    """Nobody asks to stop."""


def load(specialist: base.Specialist, stored: Stored, weights_sha256: str) -> Model:
    """Build a registered family and fill it with weights, never with code.

    Raises errors.ArtifactError: for files that could not be had, a family or sizes that the
    specialist does not know, weights that are no safetensors, do not fit, are not finite, or are
    not the ones announced.
    """
    if isinstance(stored, errors.AghsanError):
        raise errors.ArtifactError(str(stored)) from stored
    with tempfile.TemporaryDirectory(prefix="aghsan-judge-") as name:
        directory = Path(name)
        (directory / CONFIG_FILE).write_bytes(stored.config)
        path = directory / WEIGHTS_FILE
        path.write_bytes(stored.weights)
        config = checkpoints.read_config(directory / CONFIG_FILE)
        found = tensors.weights_sha256_of_file(path)
        if found != weights_sha256:
            raise errors.ArtifactError(
                f"its weights hash to {found[:12]}…, not to the announced {weights_sha256[:12]}…"
            )
        try:
            module = forms.build(specialist, config)
        except errors.TrainingError as error:  # its base model is not on this machine
            raise Unbuildable(f"the judge cannot build it: {error}") from error
        checkpoints.load_weights(path, module)
    for tensor_name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise errors.ArtifactError(f"its weights {tensor_name} are not all finite numbers")
    module.eval().requires_grad_(False)
    params = sum(parameter.numel() for parameter in module.parameters())
    size = len(stored.weights) + len(stored.config)
    return Model(module, params, size, msgspec.json.encode(config, order="sorted").decode())


class _OfCase(torch.nn.Module):
    """A model that is asked a whole case, since its own inputs are not those of others."""

    def __init__(self, specialist: base.Specialist, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self._specialist, self._case = specialist, specialist.cases(0, 1)

    def forward(self) -> torch.Tensor:
        return self._specialist.errors(self.module, self._case)


def for_one_answer(
    specialist: base.Specialist, module: torch.nn.Module
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """What is run for one answer, and with what: the module and a probe, but for adapters, which
    take the tokens of their base."""
    if getattr(module, "stays_on_device", False):
        return _OfCase(specialist, module), ()
    return module, specialist.probe()


def errors_of(
    specialist: base.Specialist,
    model: Model,
    cases: base.Cases,
    go_on: Callable[[], None] = go_on_always,
) -> bounds.Floats:
    """A model's error on each case. Raises errors.ArtifactError when it cannot be asked."""
    parts = []
    count = len(next(iter(cases.values())))
    for first in range(0, count, CASES_AT_ONCE):
        go_on()
        part = {name: tensor[first : first + CASES_AT_ONCE] for name, tensor in cases.items()}
        try:
            parts.append(specialist.errors(model.module, part).detach().double().numpy())
        except Exception as error:
            # Whatever strange weights make torch raise, it is the candidate's fault.
            raise errors.ArtifactError(f"it cannot be asked: {brief_of(error)}") from error
    return np.concatenate(parts)


def brief_of(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]
