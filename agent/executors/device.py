"""The device that this process trains on, as accelerate finds it, set up to give the same bits."""

import os
import platform

import accelerate
import torch
from accelerate.utils import check_cuda_p2p_ib_support

from agent.executors import optimizers, ranks


def prepare() -> str:
    """Set this process up for reproducible training; the kind of its device.

    Imports what the first step would otherwise import. Raises errors.TrainingError when there are
    more processes than devices.
    """
    torch.set_num_threads(1)
    _, world = ranks.place()
    if world > 1:
        ranks.require_devices(world, torch.cuda.device_count(), _has_nccl())
    # As use_deterministic_algorithms(True), which imports torch's compiler to tell that too.
    torch.set_deterministic_debug_mode("error")
    module = torch.nn.Linear(2, 2)
    optimizer = optimizers.AdamW(module.parameters())
    module(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    kind = str(accelerator().device.type)
    torch.set_num_threads(1)  # accelerate chooses a number where there are several processes
    return kind


def _has_nccl() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_nccl_available()


def accelerator() -> accelerate.Accelerator:
    """A CUDA device where there is one, in bfloat16 where it computes so; else the CPU: Apple's
    GPUs know no float64."""
    has_cuda = torch.cuda.is_available()
    if not check_cuda_p2p_ib_support():  # as `accelerate launch` does for some consumer GPUs
        os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    mixed = has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerate.Accelerator(cpu=not has_cuda, mixed_precision="bf16" if mixed else "no")


def environment() -> dict[str, str]:
    """What the bits of a training depend on beside seed and steps."""
    has_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_cuda else "cpu",
        "processes": str(ranks.place()[1]),
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }
