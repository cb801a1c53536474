"""The folder of a model that was a node's champion: what its card says, and loading it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from core import errors
from core.events import BaseModel, Champion

if TYPE_CHECKING:
    import torch

    from agent.specialists.base import Specialist

CARD_FILE = "card.md"
CARD_BYTES_MAX = 1024 * 1024
EDGE = "---\n"
"""Before and behind what programs read of a card (YAML)."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What programs read of a card: whose champion it is, and what its weights are used with."""

    node: str
    candidate: str
    specialist: str
    parameters: dict[str, float]
    takes_corpus: bool
    base_model: BaseModel | None
    weights_sha256: str

    @classmethod
    def of(cls, champion: Champion) -> "Head":
        """That of a champion."""
        workload = champion.workload
        return cls(
            node=champion.node_id,
            candidate=champion.candidate_id,
            specialist=workload.specialist,
            parameters=dict(workload.parameters),
            takes_corpus=workload.corpus is not None,
            base_model=workload.base_model,
            weights_sha256=champion.weights_sha256,
        )

    def encode(self) -> str:
        """As it begins a card: a line for each field, whose value is JSON, and so YAML."""
        each = ((name, getattr(self, name)) for name in self.__struct_fields__)
        lines = "".join(f"{name}: {msgspec.json.encode(one).decode()}\n" for name, one in each)
        return f"{EDGE}{lines}{EDGE}"

    @classmethod
    def decode(cls, lines: str) -> "Head":
        """What `encode` put between its edges. Raises ValueError, msgspec.MsgspecError."""
        pairs = (line.partition(": ") for line in lines.splitlines())
        fields = {name: msgspec.Raw(value.encode()) for name, _, value in pairs}
        return msgspec.json.decode(msgspec.json.encode(fields), type=cls)


def head_of(folder: Path) -> Head:
    """The head of the card in a folder. Raises errors.NotFound, errors.ArtifactError."""
    path = folder / CARD_FILE
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(CARD_BYTES_MAX)
        begin, head, *_ = text.split(EDGE, 2)
        if begin:
            raise errors.ArtifactError(f"{path} does not begin as a card does")
        return Head.decode(head)
    except FileNotFoundError:
        raise errors.NotFound(
            f"{folder} holds no {CARD_FILE}: it is no folder that `aghsan champion export` wrote"
        ) from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise errors.ArtifactError(f"{path} is no card of a model: {error}") from error


def specialist_of(folder: Path, head: Head) -> "Specialist":
    """What the model in a folder does. Raises errors.NotFound, errors.Invalid, ArtifactError."""
    from agent.specialists import registry

    corpus = str(folder.resolve()) if head.takes_corpus else ""
    return registry.get(head.specialist, head.parameters, corpus, head.base_model)


def load(folder: Path, head: Head, specialist: "Specialist") -> "torch.nn.Module":
    """The model in a folder, ready to be asked.

    Raises errors.ArtifactError for weights that are not those of the head, or do not fit,
    errors.TrainingError where its base model is not here.
    """
    import torch

    from agent import checkpoints
    from agent.specialists import forms

    weights = folder / checkpoints.WEIGHTS_FILE
    require_weights(weights, head)
    module = forms.build(specialist, checkpoints.read_config(folder / checkpoints.CONFIG_FILE))
    checkpoints.load_weights(weights, module)
    if not getattr(module, "stays_on_device", False):
        torch.set_num_threads(1)  # as where it was judged
    return module.eval().requires_grad_(False)


def require_weights(path: Path, head: Head) -> None:
    """Refuse weights that are not those of the head. Raises errors.ArtifactError."""
    from agent import tensors

    found = tensors.weights_sha256_of_file(path)
    if found != head.weights_sha256:
        raise errors.ArtifactError(
            f"{path.name} hashes to {found[:12]}…, not to the {head.weights_sha256[:12]}… of "
            f"{head.candidate}: export it again"
        )


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder that is there already."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
