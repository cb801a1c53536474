"""What this device has, read without importing torch."""

import ctypes
import os
import platform
import sys

import msgspec
import psutil

from core import lanes


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A device as agents describe it. Memory in GB of the accelerator, or of the host without."""

    hostname: str
    device: str
    devices: int
    memory_gb: float
    cores: int
    system: str

    @property
    def lane(self) -> str:
        """The class of agents this device belongs to: device and memory bucket, rounded down."""
        return f"{self.device}-{lanes.bucket(self.memory_gb * 1.03)}"


def inspect() -> Machine:
    """This machine, now."""
    gpus = _gpu_memory_gb()
    host_gb = psutil.virtual_memory().total / 1e9
    return Machine(
        hostname=platform.node() or "unknown",
        device="cuda" if gpus else "cpu",
        devices=len(gpus) or 1,
        memory_gb=round(min(gpus) if gpus else host_gb, 1),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
    )


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def _gpu_memory_gb() -> list[float]:
    """Memory of each NVIDIA GPU by NVML; empty where there is none or no driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            handle, memory = ctypes.c_void_p(), _Memory()
            opened = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
            if opened == 0 and nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                found.append(memory.total / 1e9)
        return found
    finally:
        nvml.nvmlShutdown()
