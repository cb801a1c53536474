"""One step of training: in micro-batches, in mixed precision where that is borne, on every process.

Accelerate knows the device, the precision and the other processes. The module is never wrapped:
losses call more of it than `forward`, so that gradients are summed over the processes here, once a
step, together with what the processes have to agree on.
"""

import contextlib
import enum
from collections.abc import Callable, Iterator

import accelerate
import torch

from agent.specialists import shortage
from agent.specialists.base import Batch
from core import errors

GRADIENT_NORM_MAX = 1.0
FULL, MIXED = "float32", "bfloat16"
MIXED_BORNE_BY = frozenset({"root-math", "physics-fluid", "stats-time-series", "opt-discrete"})
"""Specialists whose errors stay what they are in bfloat16. Others lose up to a half in precision,
or factor matrices, which CUDA does in float32 alone."""

Loss = Callable[[torch.nn.Module, Batch], torch.Tensor]
"""A float32 scalar, the mean over a batch's cases: so a batch can be taken in parts."""


class Wish(enum.IntEnum):
    """What is to become of the training after a step; the first process says, all others follow."""

    GO_ON = 0
    DROP = 1
    SAVE = 2
    END = 3


class Abandoned(Exception):
    """A step was left before it moved anything."""


class Stepper:
    """Takes steps, with as many cases at once as the device's memory allows.

    `micro_batch` is how many cases a process takes at once, 0 for all that are its own. It shrinks
    to a half where memory runs out, and stays there.
    """

    def __init__(
        self,
        accelerator: accelerate.Accelerator,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        micro_batch: int = 0,
        mixed: bool = False,
    ) -> None:
        self._accelerator = accelerator
        self._module = module
        # As it is: accelerate's wrapper is for float16, and seeks a package on the disk each step.
        self._optimizer = optimizer
        self._trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._loss = loss
        self._mixed = mixed
        self._is_first = True
        self.micro_batch = micro_batch
        self.is_asked_to_stop: Callable[[], bool] = lambda: False
        """A step in several parts, alone, is abandoned for it; nothing has moved by then."""

    def take(self, batch: Batch, rate: float, wish: Wish = Wish.GO_ON) -> tuple[torch.Tensor, Wish]:
        """One step at this learning rate; its training loss, and the first process's wish.

        Every process has the whole batch and takes its own part. Raises Abandoned when it is asked
        to stop between two parts, errors.Unfit when not even one case at a time, or the first step
        of the optimizer, fits into the device's memory, errors.TrainingError when memory runs out
        in the middle of a later one, where weights have moved.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        mine, is_alone = self._mine(batch), self._accelerator.num_processes == 1
        while True:
            loss = self._gradients(mine, _count(batch))
            if not is_alone:
                loss, wish = self._agreed(loss, wish)
            if loss is not None and self._has_moved():
                self._is_first = False
                return loss, wish
            self._shrink(_count(mine))

    def _mine(self, batch: Batch) -> Batch:
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        if world == 1:
            return batch
        count = _count(batch)
        if count < world:
            raise errors.TrainingError(
                f"{world} processes cannot share a batch of {count} cases: use at most {count}"
            )
        start, end = count * rank // world, count * (rank + 1) // world
        return {name: tensor[start:end] for name, tensor in batch.items()}

    def _gradients(self, mine: Batch, count: int) -> torch.Tensor | None:
        """Put the gradients of this process's cases, out of `count`, into the module; their part of
        the loss, or None where they do not fit into memory."""
        self._optimizer.zero_grad()
        total: torch.Tensor | None = None
        try:
            for part in _parts(mine, self.micro_batch):
                if total is not None and self.is_asked_to_stop():
                    raise Abandoned
                with self._precision():
                    loss = self._loss(self._module, part)
                if _count(part) != count:
                    loss = loss * (_count(part) / count)
                self._accelerator.backward(loss)
                total = loss.detach() if total is None else total + loss.detach()
        except (RuntimeError, MemoryError) as error:
            if shortage.is_out_of_memory(error):
                return None  # with the frames of the error goes what they hold
            raise
        return total

    def _has_moved(self) -> bool:
        """Move the weights by their gradients; False where memory ran out before any moved, as it
        may at the first step, when the optimizer's own numbers are made."""
        is_new = not self._optimizer.state
        is_whole = True
        try:
            # As accelerate's does for such gradients; that imports DTensor, and sympy, to see so.
            torch.nn.utils.clip_grad_norm_(self._trained, GRADIENT_NORM_MAX)
            is_whole = False
            self._optimizer.step()
            return True
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_out_of_memory(error):
                raise
            is_whole = is_whole or (is_new and not self._steps_begun())
            if not is_whole or self._accelerator.num_processes > 1:
                # At the first step nothing is lost: what it began from lies on the disk.
                is_unfit = is_whole or self._is_first
                raise (errors.Unfit if is_unfit else errors.TrainingError)(
                    f"out of memory in the middle of a step, on {self._accelerator.device}: the "
                    "optimizer finds no room there beside what else runs; let it go on from its "
                    "last state beside less, or on a device with more memory"
                ) from error
        if is_new:
            self._optimizer.state.clear()
        return False

    def _steps_begun(self) -> bool:
        return any(float(slots.get("step", 0)) > 0 for slots in self._optimizer.state.values())

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        return self._accelerator.autocast() if self._mixed else contextlib.nullcontext()

    def _agreed(self, loss: torch.Tensor | None, wish: Wish) -> tuple[torch.Tensor | None, Wish]:
        """Sum gradients and loss over the processes; no loss where one of them had no room."""
        told = torch.zeros(3, device=self._accelerator.device)
        if loss is None:
            told[1] = 1
            self._optimizer.zero_grad()
        else:
            told[0] = loss
        if self._accelerator.is_main_process:
            told[2] = int(wish)
        parts = [_gradient(weight).reshape(-1).float() for weight in self._trained]
        summed = self._accelerator.reduce(torch.cat([*parts, told]), "sum")
        *parts, told = summed.split([*(len(part) for part in parts), len(told)])
        if told[1] > 0:
            return None, Wish(int(told[2]))
        for weight, part in zip(self._trained, parts, strict=True):
            if weight.grad is not None:
                weight.grad.copy_(part.view_as(weight))
        return told[0], Wish(int(told[2]))

    def _shrink(self, mine: int) -> None:
        """Take half as many cases at once from here on."""
        at_once = min(self.micro_batch or mine, mine)
        if at_once == 1:
            raise errors.Unfit(shortage.words(self._accelerator.device))
        self.micro_batch = at_once // 2
        self._optimizer.zero_grad()
        shortage.clear()


def is_mixed(accelerator: accelerate.Accelerator, specialist: str) -> bool:
    """Whether to train in mixed precision: where the device has it and the specialist bears it."""
    return accelerator.mixed_precision == "bf16" and specialist in MIXED_BORNE_BY


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    count = _count(batch)
    if size == 0 or size >= count:
        yield batch
        return
    for start in range(0, count, size):
        yield {name: tensor[start : start + size] for name, tensor in batch.items()}
