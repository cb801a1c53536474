"""Whether a device has the memory that training a stored model takes, told before it is fetched."""

from agent import limits
from agent.machine import Machine
from core import errors
from core.chunks import ARTIFACT_BYTES_MAX, Manifest
from core.methods import LARGE_PARAMS_MIN

TENSORS = ".safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
COPIES = {"lora": 1.0, "quantize": 1.0, "distill": 1.0, "merge": 3.0}
"""How often a model's weights lie in the device's memory: frozen once, of a merge beside another
and what becomes of both."""
COPIES_IN_FULL = 4.0
"""Trained in full four times: themselves, their gradients, and AdamW's two moments of these."""
COPIES_OF_STATE = 3.0
"""In a checkpoint of full training: weights, and two moments of these."""
GB = 1e9
WEIGHT_BYTES = 4


def require_room(manifest: Manifest, method: str, machine: Machine) -> None:
    """Raise errors.Unfit where a model cannot be trained on this device by this method,
    errors.TrainingError where its checkpoints could not be stored from any.

    Activations come on top; they are a matter of how many cases are taken at once.
    """
    of_model = (file for file in manifest.files if file.name.endswith(TENSORS))
    model = max((file.bytes for file in of_model if file.name != OPTIMIZER_FILE), default=0)
    if method == "auto" and model >= WEIGHT_BYTES * LARGE_PARAMS_MIN:
        method = "lora"
    if method not in COPIES and model * COPIES_OF_STATE > ARTIFACT_BYTES_MAX:
        raise errors.TrainingError(
            f"a checkpoint of training this model of {model / GB:.3g} GB in full takes "
            f"{model * COPIES_OF_STATE / GB:.3g} GB, and {ARTIFACT_BYTES_MAX / GB:.3g} GB can be "
            "stored: use the method lora"
        )
    needed = model * COPIES.get(method, COPIES_IN_FULL) / GB
    if needed > machine.memory_gb:
        would_lora_do = method not in COPIES and model * COPIES["lora"] / GB <= machine.memory_gb
        raise errors.Unfit(
            f"this {machine.device} device has {machine.memory_gb:.3g} GB of memory, and training "
            f"this model of {model / GB:.3g} GB by the method {method} takes {needed:.3g} GB or "
            f"more, so it was not fetched: {'use the method lora, or ' if would_lora_do else ''}"
            "name the memory in the task's `requires`, so that a larger device takes it"
        )
    on_host, host = manifest.bytes / GB, limits.memory_bytes() / GB
    if on_host > host:
        raise errors.Unfit(
            f"this machine has {host:.3g} GB of memory, and loading this model takes "
            f"{on_host:.3g} GB, so it was not fetched: name the memory in the task's `requires`, "
            "so that a larger machine takes it"
        )
