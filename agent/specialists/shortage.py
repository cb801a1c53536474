"""Want of memory: which errors mean it, and giving back what is held for nobody."""

import gc

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the host, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    from accelerate.utils.memory import should_reduce_batch_size

    return bool(should_reduce_batch_size(error))


def clear() -> None:
    """Give back what the device's allocator keeps. Call it outside of `except`: with the error go
    the frames it came through, and what they hold."""
    from accelerate.utils.memory import clear_device_cache

    gc.collect()
    clear_device_cache()


def words(device: torch.device | str) -> str:
    """What to say where halving has come to its end."""
    return (
        f"out of memory: not even one case at a time fits into what {device} has; a smaller "
        "family, or a device with more memory, may do"
    )
