"""States of a training, written beside it: training waits for a copy in memory, not for a disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from agent import checkpoints
from agent.executors import jobs
from agent.specialists.base import Config
from core import errors

MILESTONES = 4
"""Parts of a training, as many steps each; a state is written at the end of all but the last."""


def is_milestone(step: int, total_steps: int) -> bool:
    """Whether a part of the training ends with this many steps taken.

    The end of the last one is the finished model itself.
    """
    return step * MILESTONES // total_steps > (step - 1) * MILESTONES // total_steps


class NotFinite(errors.TrainingError):
    """A state that nothing could go on from."""


class Saver:
    """Writes states one at a time; what came of it is told by `ended`.

    One that is not written costs no more than itself: training goes on, and the next is tried.
    """

    def __init__(self, directory: Path, resumed: Path | None) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, "saver")
        self._writing: Future[jobs.Saved | jobs.Missed] | None = None
        self.last = resumed
        """The newest state that was written, or gone on from."""
        self.missed = 0

    def begin(
        self,
        state: checkpoints.State,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
    ) -> bool:
        """Begin to write the training as it is now; whether the one before is written already."""
        if self._writing is not None:
            return False
        taken = checkpoints.snapshot(module, optimizer)
        self._writing = self._thread.submit(self._write, state, taken, config)
        return True

    def ended(self, *, wait: bool = False) -> jobs.Saved | jobs.Missed | None:
        """What came of the last state, once; None where nothing is new.

        Raises NotFinite when its weights were no numbers.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        told = writing.result()
        match told:
            case jobs.Saved():
                self.last = Path(told.directory)
            case jobs.Missed():
                self.missed += 1
        return told

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()

    def _write(
        self, state: checkpoints.State, taken: checkpoints.Snapshot, config: Config
    ) -> jobs.Saved | jobs.Missed:
        _require_finite(taken, state)
        try:
            folder = checkpoints.write_state(self._directory, state, taken, config)
        except OSError as error:
            reason = f"{self._directory}: {error.strerror or error}"
            return jobs.Missed(reason=reason, step=state.step)
        return jobs.Saved(directory=str(folder), step=state.step, total_steps=state.total_steps)


def _require_finite(taken: checkpoints.Snapshot, state: checkpoints.State) -> None:
    for name, weight in taken.weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise NotFinite(f"{name} is not finite at step {state.step}")
