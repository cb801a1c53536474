"""Base models: language models that a device has of its own, named by id and known by digest.

A base is a folder in the form of the transformers library: `config.json`, `tokenizer.json` and
safetensors. It is never stored or sent: a workload names it, and each device finds it in one of the
folders of AGHSAN_BASE_MODELS, at the path it was named by, or on the hub, through the cache of
which a model that was downloaded once is found without a network.
"""

import functools
import hashlib
import math
import os
import re
from pathlib import Path

from agent import limits, tensors
from core import chunks, errors
from core.events import BaseModel

FOLDERS = "AGHSAN_BASE_MODELS"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = "*.safetensors"
HEADER_BYTES_MAX = 64 * 1024 * 1024
GPU_NUMBER_BYTES, CPU_NUMBER_BYTES = 2, 4
"""As `adapters` loads them: bfloat16 on a GPU, else float32."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


def describe(named: str) -> tuple[BaseModel, Path]:
    """A base that this device has, by its folder or its hub id, as workloads name it.

    Raises errors.NotFound where it is not here, errors.Invalid where it is no such folder.
    """
    folder = Path(named)
    if folder.is_dir():
        name, folder = str(folder.resolve()), folder.resolve()
    elif _HUB_ID.fullmatch(named):
        folder = _from_hub(named)
        # The folder of the hub's cache is called by the commit.
        name = f"{named.partition('@')[0]}@{folder.name}"
    else:
        raise errors.NotFound(f"{named} is neither a folder nor the id of a model on the hub")
    return BaseModel(name=name, digest=digest(folder), bytes=size(folder)), folder


def find(base: BaseModel) -> Path:
    """Where this device has a base, what it holds being what its digest says.

    Raises errors.Unfit where it is not here, is another, or does not fit into memory.
    """
    memory = limits.memory_bytes()
    if base.bytes > memory:
        raise _too_large(f"{base.name} has {base.bytes} bytes", memory)
    folder = _places(base)
    try:
        found = digest(folder)
    except errors.Invalid as error:
        raise errors.Unfit(str(error)) from error
    if found != base.digest:
        raise errors.Unfit(
            f"{folder} is not the base model {base.name} that this work is over: its digest is "
            f"{found[:12]}…, not {base.digest[:12]}…; put the very same files there"
        )
    _require_room(base, folder)
    return folder


def _require_room(base: BaseModel, folder: Path) -> None:
    """Refuse a base that does not fit as it is loaded, however it lies in its files."""
    import torch

    has_gpu = torch.cuda.is_available()
    memory = limits.memory_bytes()
    if has_gpu:
        memory = int(torch.cuda.get_device_properties(0).total_memory)
    numbers = sum(math.prod(tensor.shape) for tensor in weights(folder))
    needed = numbers * (GPU_NUMBER_BYTES if has_gpu else CPU_NUMBER_BYTES)
    if needed > memory:
        kind = "bfloat16" if has_gpu else "float32"
        raise _too_large(f"{base.name} takes {needed} bytes as {kind}", memory)


def weights(folder: Path) -> list[tensors.Tensor]:
    """The tensors of a base. Raises errors.TrainingError for files that hold none."""
    try:
        return [
            tensor
            for path in sorted(folder.glob(WEIGHTS))
            for tensor in tensors.listed_of_file(path, HEADER_BYTES_MAX)
        ]
    except errors.ArtifactError as error:
        raise errors.TrainingError(f"{folder} is no base model to load: {error}") from error


def _too_large(what: str, memory: int) -> errors.Unfit:
    return errors.Unfit(
        f"the base model {what}, this device {memory} bytes of memory: train on a larger one, or "
        "over a smaller base"
    )


def is_here(base: BaseModel) -> bool:
    """Whether `find` would find it."""
    try:
        find(base)
    except errors.TrainingError:
        return False
    return True


def _places(base: BaseModel) -> Path:
    called = re.split(r"[/\\]", base.name.partition("@")[0])[-1]
    tried = [Path(one, called) for one in os.environ.get(FOLDERS, "").split(os.pathsep) if one]
    for folder in (*tried, Path(base.name)):
        if (folder / CONFIG).is_file():
            return folder
    if _HUB_ID.fullmatch(base.name):
        try:
            return _from_hub(base.name)
        except errors.NotFound as error:
            raise errors.Unfit(str(error)) from error
    raise errors.Unfit(
        f"this device has no base model {base.name}: put a folder {called} with its files into one "
        f"that {FOLDERS} names, and start the agent with that"
    )


def _from_hub(named: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise errors.NotFound(f"{named} is on the hub, and {_EXTRA}") from error
    identity, _, revision = named.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                identity, revision=revision or None, allow_patterns=["*.json", WEIGHTS]
            )
        )
    except (OSError, ValueError) as error:  # what the hub's own errors are, too
        raise errors.NotFound(
            f"{named} is neither in the hub's cache here nor to be had from the hub: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


_EXTRA = "the extra `lm` is not installed: `pip install aghsan[lm]`"


def require_extra() -> None:
    """Raise errors.Unfit where the libraries for base models are not installed."""
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise errors.Unfit(f"base models need transformers and peft, and {_EXTRA}") from (error)


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob(WEIGHTS))
    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise errors.Invalid(f"{folder} is no base model: it has no {name}")
    if not found:
        raise errors.Invalid(f"{folder} is no base model: it has no {WEIGHTS} (others are unsafe)")
    return [folder / CONFIG, folder / TOKENIZER, *found]


def size(folder: Path) -> int:
    """Bytes of its weights."""
    return sum(path.stat().st_size for path in folder.glob(WEIGHTS))


def digest(folder: Path) -> str:
    """SHA-256 over the names and the SHA-256 of its files. Raises errors.Invalid."""
    whole = hashlib.sha256()
    for path in _files(folder):
        about = path.stat()
        sha256 = _sha256(str(path.resolve()), about.st_size, about.st_mtime_ns)
        whole.update(f"{path.name} {sha256}\n".encode())
    return whole.hexdigest()


@functools.lru_cache(maxsize=256)
def _sha256(path: str, size: int, changed: int) -> str:
    """Read once, as long as it is not changed."""
    return chunks.digest_of_file(Path(path))
