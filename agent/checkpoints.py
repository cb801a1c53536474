"""Models and states of training on disk: safetensors and JSON, never code.

A model is `model.safetensors` and `config.json`. A state of training is a folder `step-00000042`
with these two, the optimizer by parameter name, the random state, and `state.json`, which holds the
digest of each other file. Folders appear whole or not at all; one that is damaged all the same is
moved aside, and the one before it is used.
"""

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import safetensors
import safetensors.torch
import torch

from agent.specialists.base import Config
from core import errors, platforms

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
STATE_FILE = "state.json"
CONFIG_BYTES_MAX = 64 * 1024
HEADER_BYTES_MAX = 1024 * 1024
DIMENSIONS_MAX = 8
STATES_KEPT = 3
STATE_BYTES_MAX = 64 * 1024
_PREFIX = "step-"
_DAMAGED = "damaged-"
_SAVING = ".saving-"
_FILES = {WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER_FILE, RANDOM_FILE}
"""Beside its description, a state has these and no others."""

_WIDTHS = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a state of training says beside its tensors. Times in seconds."""

    specialist: str
    node_id: str
    role: str
    seed: int
    step: int
    total_steps: int
    base_sha256: str = ""
    elapsed_seconds: float = 0.0
    environment: dict[str, str] = {}
    files: dict[str, str] = {}


class _Tensor(NamedTuple):
    """Where a tensor's bytes lie in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


# ── models ──


def read_config(path: Path) -> Config:
    """A model's configuration. Raises errors.ArtifactError for anything else."""
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
        if len(raw) > CONFIG_BYTES_MAX:
            raise errors.ArtifactError(f"{path.name} has more than {CONFIG_BYTES_MAX} bytes")
        return msgspec.json.decode(raw, type=Config)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ArtifactError(f"{path.name} is no model configuration: {error}") from error


def weights_sha256(blob: bytes) -> str:
    """The hash of a model: its tensors by name, with type, shape and bytes, however laid out.

    Raises errors.ArtifactError for bytes that are no safetensors.
    """
    digest = hashlib.sha256()
    view = memoryview(blob)
    for tensor in sorted(_tensors(blob)):
        if not tensor.name.isprintable():
            # Such a name could pass for the end of another tensor, or have no bytes at all.
            raise errors.ArtifactError(f"{tensor.name[:80]!a} is no name of a tensor")
        digest.update(f"{tensor.name}\x1f{tensor.dtype}\x1f{tensor.shape}\x1e".encode())
        digest.update(view[tensor.start : tensor.end])
    return digest.hexdigest()


def weights_sha256_of_file(path: Path) -> str:
    """`weights_sha256` of a file. Raises errors.ArtifactError."""
    return weights_sha256(_read(path))


def load_weights(path: Path, module: torch.nn.Module) -> None:
    """Fill a module with the weights of a file, all of them and no others.

    Raises errors.ArtifactError for what is no safetensors, or does not fit.
    """
    blob = _read(path)
    found = {tensor.name: tensor for tensor in _tensors(blob)}
    wanted = module.state_dict()
    if found.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
        raise errors.ArtifactError(
            f"{path.name} does not fit its configuration: it lacks {_some(missing)} and has "
            f"{_some(extra)} too many"
        )
    for name, tensor in found.items():
        if tensor.shape != tuple(wanted[name].shape):
            raise errors.ArtifactError(
                f"{path.name} does not fit its configuration: {name} has the shape "
                f"{list(tensor.shape)}, the model {list(wanted[name].shape)}"
            )
    loaded = _loaded(path, blob)
    for name, value in loaded.items():
        if value.dtype != wanted[name].dtype:
            raise errors.ArtifactError(
                f"{path.name} does not fit its configuration: {name} is {value.dtype}, the model "
                f"has {wanted[name].dtype}"
            )
    module.load_state_dict(loaded)


def write_model(directory: Path, module: torch.nn.Module, config: Config) -> str:
    """Write a model's two files into a folder that exists; the hash of its weights."""
    blob = safetensors.torch.save(_on_cpu(module.state_dict()))
    _write(directory / WEIGHTS_FILE, blob)
    _write(directory / CONFIG_FILE, msgspec.json.encode(config))
    return weights_sha256(blob)


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "–"


# ── safetensors, read with care ──


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.ArtifactError(f"{path.name} cannot be read: {error.strerror}") from error


def _tensors(blob: bytes) -> list[_Tensor]:
    """The tensors of a safetensors file whose header keeps every promise, before any is made.

    Raises errors.ArtifactError. Format: https://github.com/huggingface/safetensors
    """
    if len(blob) < 8:
        raise errors.ArtifactError("the weights are no safetensors: fewer than 8 bytes")
    (header_bytes,) = struct.unpack("<Q", blob[:8])
    if header_bytes > min(HEADER_BYTES_MAX, len(blob) - 8):
        raise errors.ArtifactError(
            f"the weights are no safetensors: a header of {header_bytes} bytes is claimed"
        )
    try:
        header = json.loads(blob[8 : 8 + header_bytes])
        header.pop("__metadata__", None)
        found = [_tensor(name, about, 8 + header_bytes) for name, about in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise errors.ArtifactError(f"the weights are no safetensors: {error}") from error
    at = 8 + header_bytes
    for tensor in sorted(found, key=lambda one: (one.start, one.end)):
        size = math.prod(tensor.shape) * _WIDTHS[tensor.dtype]
        if tensor.start != at or tensor.end - tensor.start != size:
            raise errors.ArtifactError(
                f"the weights are no safetensors: {tensor.name[:80]} claims bytes it does not have"
            )
        at = tensor.end
    if at != len(blob):
        raise errors.ArtifactError(
            f"the weights are no safetensors: {len(blob) - at} bytes belong to no tensor"
        )
    return found


def _tensor(name: str, about: dict[str, object], offset: int) -> _Tensor:
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _WIDTHS:
        raise ValueError(f"{name[:80]} has the unknown type {str(dtype)[:20]}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name[:80]} has no shape or no place")
    if len(shape) > DIMENSIONS_MAX or not all(_is_size(number) for number in (*shape, *offsets)):
        raise ValueError(f"{name[:80]} has an impossible shape or place")
    return _Tensor(name, dtype, tuple(shape), offset + offsets[0], offset + offsets[1])


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**48


# ── states of training ──


def save_state(
    directory: Path,
    state: State,
    module: torch.nn.Module,
    config: Config,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write a state below `directory`, durably and at once; older ones beyond three go.

    One process at a time saves there: what another one was killed over is swept away.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)
    target = directory / f"{_PREFIX}{state.step:08d}"
    temporary = Path(tempfile.mkdtemp(dir=directory, prefix=_SAVING))
    try:
        write_model(temporary, module, config)
        tensors = _on_cpu(_optimizer_tensors(module, optimizer))
        _write(temporary / OPTIMIZER_FILE, safetensors.torch.save(tensors))
        _write(temporary / RANDOM_FILE, safetensors.torch.save(_random_state()))
        files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        complete = msgspec.structs.replace(state, files=files)
        _write(temporary / STATE_FILE, msgspec.json.encode(complete))
        platforms.sync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    platforms.sync_folder(directory)
    for old in _states(directory)[STATES_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_state(directory: Path) -> tuple[Path, State] | None:
    """The newest sound state below `directory`; damaged ones are moved aside."""
    for folder in _states(directory):
        state = _sound(folder)
        if state is not None:
            return folder, state
        folder.replace(Path(tempfile.mkdtemp(dir=directory, prefix=_DAMAGED)) / folder.name)
    return None


def load_state(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model, optimizer and random state back as they were. Raises errors.ArtifactError."""
    tensors = _load(folder / OPTIMIZER_FILE)
    random = _load(folder / RANDOM_FILE)
    slots = {
        parameter: _slots_of(name, parameter, tensors)
        for name, parameter in module.named_parameters()
    }
    if tensors:
        raise errors.ArtifactError(
            f"{OPTIMIZER_FILE} does not fit the model: {_some(sorted(tensors))} too many"
        )
    load_weights(folder / WEIGHTS_FILE, module)
    optimizer.state.update({parameter: found for parameter, found in slots.items() if found})
    try:
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise errors.ArtifactError(f"{RANDOM_FILE} is no random state: {error}") from error


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _slots_of(
    name: str, parameter: torch.Tensor, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Take what AdamW remembers of a parameter out of `tensors`; nothing for one never moved.

    Raises errors.ArtifactError when some of it is missing or does not fit.
    """
    shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    found = {slot: tensors.pop(f"{name}\x1f{slot}", None) for slot in shapes}
    if all(value is None for value in found.values()):
        return {}
    taken = {}
    for slot, shape in shapes.items():
        value = found[slot]
        if value is None or value.shape != shape or not value.is_floating_point():
            raise errors.ArtifactError(f"{OPTIMIZER_FILE} does not fit the model: {slot} of {name}")
        taken[slot] = value if slot == "step" else value.to(parameter.device)
    return taken


def _load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file. Raises errors.ArtifactError."""
    blob = _read(path)
    _tensors(blob)
    return _loaded(path, blob)


def _loaded(path: Path, blob: bytes) -> dict[str, torch.Tensor]:
    """Tensors of bytes whose header was found sound. Raises errors.ArtifactError."""
    try:
        return safetensors.torch.load(blob)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise errors.ArtifactError(f"{path.name} cannot be read: {error}") from error


def _optimizer_tensors(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimizer's tensors by the name of their parameter: an order may change, a name not."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return {
        f"{name}\x1f{slot}": value
        for name, parameter in module.named_parameters()
        for slot, value in inner.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _states(directory: Path) -> list[Path]:
    """Folders of states, newest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if path.name.startswith(_PREFIX)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _sound(folder: Path) -> State | None:
    """A state's description if all it describes is there; names from elsewhere are not followed."""
    try:
        with (folder / STATE_FILE).open("rb") as file:
            raw = file.read(STATE_BYTES_MAX + 1)
        if len(raw) > STATE_BYTES_MAX:
            return None
        state = msgspec.json.decode(raw, type=State)
        if state.files.keys() != _FILES or not 0 <= state.step <= state.total_steps:
            return None
        is_whole = all(_sha256(folder / name) == digest for name, digest in state.files.items())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return state if is_whole else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def model_files(directory: Path) -> Iterator[Path]:
    """The files of a folder that make a model."""
    yield from (directory / name for name in (WEIGHTS_FILE, CONFIG_FILE))
