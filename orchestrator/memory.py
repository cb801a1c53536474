"""How much memory a model takes to answer one input: by counting, so that it is the same anywhere.

Counted are the bytes of what lies in tensors, each storage once however many tensors share it, for
as long as any of them lives. What an operator needs inside itself, and what an allocator keeps or
rounds up, is not: that depends on libraries and machines.
"""

import weakref
from collections.abc import Iterable

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from core import errors


def peak_bytes(module: torch.nn.Module, probe: tuple[torch.Tensor, ...]) -> int:
    """Bytes of parameters and buffers, and of the most that lives beside them at any time of one
    answer, with the input and what else the operators are given.

    Raises errors.ArtifactError where the model cannot be asked.
    """
    storages = _Storages()
    storages.hold([*module.parameters(), *module.buffers(), *probe])
    try:
        with torch.inference_mode():
            module(*probe)  # what is made once and kept is no part of an answer
            with storages:
                module(*probe)
    except Exception as error:
        # Whatever strange weights make torch raise, it is the model's fault.
        words = str(error).partition("\n")[0] or type(error).__name__
        raise errors.ArtifactError(f"it cannot be asked: {words[:300]}") from error
    return storages.peak


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that live, as every operator's results come and go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self._now = self.peak = 0

    def hold(self, tensors: Iterable[object]) -> None:
        """Count these until they are gone."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.hold(pytree.tree_leaves((args, kwargs)))
        found = func(*args, **(kwargs or {}))
        self.hold(pytree.tree_leaves(found))
        return found
