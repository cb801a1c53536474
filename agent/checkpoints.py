"""Models and states of training on disk: safetensors and JSON, never code.

A model is `model.safetensors` and `config.json`. A state of training is a folder `step-00000042`
with these two, the optimizer by parameter name, the random state, and `state.json`, which holds the
digest of each other file. The schedule and the batches follow from its step. Folders appear whole
or not at all; one that is damaged all the same is moved aside, and the one before it is used.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import safetensors.torch
import torch

from agent import tensors
from agent.specialists.base import Config
from core import chunks, errors, platforms

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
STATE_FILE = "state.json"
VERSION = 1
"""Of the states that this program writes; newer ones are not guessed at."""
CONFIG_BYTES_MAX = 64 * 1024
STATES_KEPT = 3
THREADS_MAX = 1_024
MOMENTS = 2
"""AdamW's, of each number that is trained."""
STATE_BYTES_MAX = 64 * 1024
_PREFIX = "step-"
_DAMAGED = "damaged-"
_SAVING = ".saving-"
_FILES = {WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER_FILE, RANDOM_FILE}
"""Beside its description, a state has these and no others."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a state of training says beside its tensors. Times in seconds.

    `micro_batch` is how many cases were taken at once, 0 for all; `threads` on how many threads.
    `parameters` are those of the specialist; of an older state they are not known.
    """

    version: int = VERSION
    specialist: str
    node_id: str
    role: str
    seed: int
    step: int
    total_steps: int
    base_sha256: str = ""
    method: str = "full"
    elapsed_seconds: float = 0.0
    micro_batch: int = 0
    threads: int = 1
    precision: str = "float32"
    environment: dict[str, str] = {}
    parameters: dict[str, float] | None = None
    files: dict[str, str] = {}


class _Version(msgspec.Struct):
    version: int = VERSION


class Snapshot(NamedTuple):
    """The tensors of a training at one moment, on the CPU: whatever it does next leaves them."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    random: dict[str, torch.Tensor]


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


def load_weights(path: Path, module: torch.nn.Module) -> None:
    """Fill a module with the weights of a file, all of them and no others.

    Raises errors.ArtifactError for what is no safetensors, or does not fit.
    """
    found = {tensor.name: tensor for tensor in tensors.listed_of_file(path)}
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
    loaded = tensors.load(path)
    for name, value in loaded.items():
        if value.dtype != wanted[name].dtype:
            raise errors.ArtifactError(
                f"{path.name} does not fit its configuration: {name} is {value.dtype}, the model "
                f"has {wanted[name].dtype}"
            )
    module.load_state_dict(loaded)


def write_model(directory: Path, module: torch.nn.Module, config: Config) -> str:
    """Write a model's two files into a folder that exists; the hash of its weights."""
    weights = {name: weight.cpu().contiguous() for name, weight in module.state_dict().items()}
    return _write_model(directory, weights, config)


def _write_model(directory: Path, weights: dict[str, torch.Tensor], config: Config) -> str:
    blob = safetensors.torch.save(weights)
    _write(directory / WEIGHTS_FILE, blob)
    _write(directory / CONFIG_FILE, msgspec.json.encode(config))
    return tensors.weights_sha256(blob)


class Written(NamedTuple):
    """A model on disk: the hash of its weights, and the bytes of its files."""

    sha256: str
    bytes: int


def write_candidate(folder: Path, module: torch.nn.Module, config: Config, states: Path) -> Written:
    """Write a model into a folder; older states below `states` give way where there is no room."""
    try:
        sha256 = _write_candidate(folder, module, config)
    except OSError as error:
        if not platforms.is_want_of_room(error):
            raise
        drop_older(states)
        sha256 = _write_candidate(folder, module, config)
    return Written(sha256, sum(path.stat().st_size for path in model_files(folder)))


def _write_candidate(folder: Path, module: torch.nn.Module, config: Config) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return write_model(folder, module, config)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "–"


# ── states of training ──


def snapshot(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """What a state needs of a training, as it is now. Frozen weights are not copied."""
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    weights = {
        name: weight.cpu().contiguous() if name in frozen else _copied(weight)
        for name, weight in module.state_dict().items()
    }
    slots = {name: _copied(slot) for name, slot in _optimizer_tensors(module, optimizer).items()}
    return Snapshot(weights, slots, _random_state())


def require_storable(module: torch.nn.Module) -> None:
    """Refuse to train what no checkpoint, or no model, of could be stored and judged.

    Raises errors.TrainingError.
    """
    weights = sum(weight.nbytes for weight in module.state_dict().values())
    trained = sum(weight.nbytes for weight in module.parameters() if weight.requires_grad)
    state = weights + MOMENTS * trained
    for what, size, most in (
        ("the model", weights, chunks.MODEL_BYTES_MAX),
        ("the model and its optimizer", state, chunks.ARTIFACT_BYTES_MAX),
    ):
        if size > most:
            raise errors.TrainingError(
                f"{what} would have {size / 1e6:,.0f} MB, and {most / 1e6:,.0f} MB can be stored: "
                "train a smaller family, or adapters (the method lora)"
            )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def write_state(directory: Path, state: State, taken: Snapshot, config: Config) -> Path:
    """Write a state below `directory`, durably and at once; older ones beyond three go, and where
    there is no room, all but the newest.

    One process at a time writes there: what another one was killed over is swept away.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        target = _write_state(directory, state, taken, config)
    except OSError as error:
        if not platforms.is_want_of_room(error):
            raise
        drop_older(directory)
        target = _write_state(directory, state, taken, config)
    _remove(_states(directory)[STATES_KEPT:])
    return target


def _write_state(directory: Path, state: State, taken: Snapshot, config: Config) -> Path:
    target = directory / f"{_PREFIX}{state.step:08d}"
    temporary = Path(tempfile.mkdtemp(dir=directory, prefix=_SAVING))
    try:
        _write_model(temporary, taken.weights, config)
        _write(temporary / OPTIMIZER_FILE, safetensors.torch.save(taken.optimizer))
        _write(temporary / RANDOM_FILE, safetensors.torch.save(taken.random))
        files = {path.name: chunks.digest_of_file(path) for path in sorted(temporary.iterdir())}
        complete = msgspec.structs.replace(state, files=files)
        _write(temporary / STATE_FILE, msgspec.json.encode(complete))
        platforms.sync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        platforms.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    platforms.sync_folder(directory)
    return target


def drop_older(directory: Path) -> None:
    """Make room: of the states below `directory`, keep the newest alone."""
    _remove(_states(directory)[1:])


def step_of(folder: Path) -> int:
    """The step of a state, by its folder's name."""
    return int(folder.name.removeprefix(_PREFIX))


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def newest_state(directory: Path) -> tuple[Path, State] | None:
    """The newest sound state below `directory`; damaged ones are moved aside.

    Raises errors.ArtifactError when it was written by a newer version.
    """
    for folder in _states(directory):
        state = _sound(folder)
        if state is not None:
            return folder, state
        move_aside(folder)
    return None


def move_aside(folder: Path) -> None:
    """Let a state that cannot be used count no more; it stays, to be looked at."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_DAMAGED))
    platforms.replace(folder, aside / folder.name)


def damaged_count(directory: Path) -> int:
    """How many states below `directory` were moved aside."""
    return sum(1 for _ in directory.glob(f"{_DAMAGED}*"))


def load_state(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model, optimizer and random state back as they were.

    Raises errors.ArtifactError for what does not fit.
    """
    left = tensors.load(folder / OPTIMIZER_FILE)
    random = tensors.load(folder / RANDOM_FILE)
    slots = {
        parameter: _slots_of(name, parameter, left) for name, parameter in module.named_parameters()
    }
    if left:
        raise errors.ArtifactError(
            f"{OPTIMIZER_FILE} does not fit the model: {_some(sorted(left))} too many"
        )
    load_weights(folder / WEIGHTS_FILE, module)
    optimizer.state.update({parameter: found for parameter, found in slots.items() if found})
    try:
        torch.set_rng_state(random["cpu"].clone())
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"].clone())
    except (KeyError, RuntimeError, TypeError) as error:
        raise errors.ArtifactError(f"{RANDOM_FILE} is no random state: {error}") from error


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _slots_of(
    name: str, parameter: torch.Tensor, left: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Take what AdamW remembers of a parameter out of what is left; nothing for one never moved.

    Raises errors.ArtifactError when some of it is missing or does not fit.
    """
    shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    found = {slot: left.pop(f"{name}\x1f{slot}", None) for slot in shapes}
    if all(value is None for value in found.values()):
        return {}
    taken = {}
    for slot, shape in shapes.items():
        value = found[slot]
        if value is None or value.shape != shape or not value.is_floating_point():
            raise errors.ArtifactError(f"{OPTIMIZER_FILE} does not fit the model: {slot} of {name}")
        # A copy: what was read may be the file itself, mapped into memory.
        taken[slot] = value.clone() if slot == "step" else value.to(parameter.device, copy=True)
    return taken


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
        version = msgspec.json.decode(raw, type=_Version).version
        if version > VERSION:
            raise errors.ArtifactError(
                f"{folder} was written by a newer version of Aghsan (states of version {version}, "
                f"this one knows {VERSION}): upgrade this one, or use another folder"
            )
        state = msgspec.json.decode(raw, type=State)
        if state.files.keys() != _FILES or not _is_possible(state):
            return None
        is_whole = all(
            chunks.digest_of_file(folder / name) == digest for name, digest in state.files.items()
        )
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return state if is_whole else None


def _is_possible(state: State) -> bool:
    return (
        0 <= state.step <= state.total_steps
        and 1 <= state.threads <= THREADS_MAX
        and state.micro_batch >= 0
        and state.elapsed_seconds >= 0
    )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def model_files(directory: Path) -> Iterator[Path]:
    """The files of a folder that make a model."""
    yield from (directory / name for name in (WEIGHTS_FILE, CONFIG_FILE))
