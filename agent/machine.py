"""What this device has, read without importing torch."""

import platform

import msgspec

from agent import limits, nvml
from core import lanes


class Machine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device as agents describe it. Memory in GB of the accelerator, or of the host without; what
    it costs per hour, where somebody says so."""

    hostname: str
    device: str
    devices: int
    memory_gb: float
    cores: int
    system: str
    price_per_hour: float | None = None

    @property
    def lane(self) -> str:
        """The class of agents this device belongs to: device and memory bucket, rounded down."""
        return f"{self.device}-{lanes.bucket(self.memory_gb * 1.03)}"


def inspect() -> Machine:
    """This machine, now."""
    gpus = _gpu_memory_gb()
    host_gb = limits.memory_bytes() / 1e9
    return Machine(
        hostname=platform.node() or "unknown",
        device="cuda" if gpus else "cpu",
        devices=len(gpus) or 1,
        memory_gb=round(min(gpus) if gpus else host_gb, 1),
        cores=limits.cores(),
        system=f"{platform.system()} {platform.machine()}",
    )


def _gpu_memory_gb() -> list[float]:
    """Memory of each NVIDIA GPU that may be used; empty where there is none or no driver."""
    library = nvml.Nvml.open()
    return [gpu.total_bytes / 1e9 for gpu in library.read()] if library else []
