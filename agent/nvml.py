"""NVIDIA's management library: what the GPUs are and do, read without torch.

Its functions and structures: https://docs.nvidia.com/deploy/nvml-api/
"""

import ctypes
import os
import sys
from typing import Any, NamedTuple

SUCCESS = 0


class Gpu(NamedTuple):
    """A GPU now: the share of its time that it worked (None where it does not say), its memory."""

    utilisation: float | None
    used_bytes: int
    total_bytes: int


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The library, opened; `library` has its functions as ctypes gives them."""

    def __init__(self, library: Any, visible: str | None = None) -> None:
        self._library = library
        self._visible = visible

    @classmethod
    def open(cls) -> "Nvml | None":
        """The library of this machine; None where there is none, no driver, or no GPU to be used.

        As CUDA does it keeps to CUDA_VISIBLE_DEVICES. It stays open as long as the process.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible == "":
            return None
        try:
            library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        except OSError:
            return None
        return cls(library, visible) if library.nvmlInit_v2() == SUCCESS else None

    def read(self) -> list[Gpu]:
        """The GPUs that may be used, as they are now; those that do not answer are left out."""
        found = (self._read(handle) for handle in self._handles())
        return [gpu for gpu in found if gpu is not None]

    def _handles(self) -> list[ctypes.c_void_p]:
        """Of the visible GPUs; of all where they have names that the library does not know, as
        parts of UUIDs are."""
        names = [name.strip() for name in (self._visible or "").split(",")]
        if self._visible is not None:
            found = [self._handle(name) for name in names]
            if all(found) or all(name.isdecimal() for name in names):
                return [handle for handle in found if handle]
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != SUCCESS:
            return []
        found = [self._handle(str(index)) for index in range(count.value)]
        return [handle for handle in found if handle]

    def _handle(self, name: str) -> ctypes.c_void_p | None:
        """Of a GPU by its number or UUID. Numbers are those of CUDA where all GPUs are alike, or
        CUDA_DEVICE_ORDER is PCI_BUS_ID."""
        handle = ctypes.c_void_p()
        by_number = name.isdecimal()
        function = "nvmlDeviceGetHandleByIndex_v2" if by_number else "nvmlDeviceGetHandleByUUID"
        ask = getattr(self._library, function, None)  # a library may be older than its header
        if ask is None:
            return None
        opened = ask(int(name) if by_number else name.encode(), ctypes.byref(handle))
        return handle if opened == SUCCESS else None

    def _read(self, handle: ctypes.c_void_p) -> Gpu | None:
        memory, use = _Memory(), _Utilization()
        if self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != SUCCESS:
            return None
        told = self._library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(use)) == SUCCESS
        return Gpu(use.gpu / 100 if told else None, int(memory.used), int(memory.total))
