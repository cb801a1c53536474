"""What takes time in a training: how long it is likely to take, and a word while it does."""

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from agent.executors import jobs
from agent.executors.stepping import Stepper
from agent.specialists import evaluation
from agent.specialists.base import Batch, Cases, Specialist

BUSY_SECONDS = 25.0
BUSY_REPORTS_MAX = 144
"""An hour of them."""
RESUMED_BUDGETS, RESUMED_SECONDS = 2, 1.0
"""How many budgets all attempts of a training that is resumed may take, and how much more: steps
of which no state is left are taken again, on a device that may be slower."""
RESUMED_SECONDS_MIN = 1.0
"""Left to each of them."""
TIMED_STEPS = 10
LATENCY_ROUNDS_MIN, LATENCY_ROUNDS_MAX = 5, 101
LATENCY_SECONDS = 0.5
"""After so long no further round of answers is timed."""
EVALUATION_PARTS = 4
"""Before its first whole evaluation, a model's is estimated from one in so many cases."""

KINDS_KEPT_MAX = 256
"""Kinds of trainings whose times are remembered."""

Report = Callable[[jobs.Report], None]


@contextlib.contextmanager
def busy(job: jobs.Job, report: Report) -> Iterator[None]:
    """Say every so often that a base model takes its time; its agent sees whether anything is done.

    Bounded: what has not ended after BUSY_REPORTS_MAX hangs, and is ended for its silence.
    """
    over = threading.Event()

    def tell() -> None:
        for _ in range(BUSY_REPORTS_MAX):
            if over.wait(BUSY_SECONDS):
                return
            report(jobs.Busy())

    if job.base_model is not None:
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class Times(dict[tuple[str, str], float]):
    """Seconds that kinds of trainings took last; of more than are kept the oldest is forgotten."""

    def __setitem__(self, kind: tuple[str, str], seconds: float) -> None:
        self.pop(kind, None)
        super().__setitem__(kind, seconds)
        if len(self) > KINDS_KEPT_MAX:
            del self[next(iter(self))]


def seconds_left(job: jobs.Job, earlier_seconds: float | None, measuring_seconds: float) -> float:
    """How long a job may train from its beginning, so that it ends in time.

    `earlier_seconds` is what its earlier attempts took, None for one that begins at step 0.
    """
    if job.steps:
        return math.inf
    if earlier_seconds is None:
        return job.budget_seconds - measuring_seconds
    whole = RESUMED_BUDGETS * job.budget_seconds + RESUMED_SECONDS
    return max(RESUMED_SECONDS_MIN, whole - earlier_seconds - measuring_seconds)


def time_steps(stepper: Stepper, batch: Callable[[int], Batch]) -> float:
    """The mean seconds of ten steps on a model that is thrown away, after a first that does not
    count.

    Not their median: what else the machine does takes time from a step now and then, and will go
    on to.
    """
    began = time.perf_counter()
    for step in range(TIMED_STEPS + 1):
        if step == 1:
            began = time.perf_counter()
        loss, _ = stepper.take(batch(step), 0.0)
        float(loss)
    return (time.perf_counter() - began) / TIMED_STEPS


def time_evaluation(
    specialist: Specialist, module: torch.nn.Module, cases: Cases, at_once: int
) -> float:
    """About how many seconds it takes to measure a model on these cases, so many at once."""
    part = {name: tensor[::EVALUATION_PARTS] for name, tensor in cases.items()}
    began = time.perf_counter()
    evaluation.evaluate(specialist, module, part, at_once)
    return (time.perf_counter() - began) * EVALUATION_PARTS


def latencies_ms(
    modules: Sequence[torch.nn.Module],
    probe: tuple[torch.Tensor, ...],
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The median milliseconds that each module takes to answer a probe, on the CPU.

    They answer by turns, so that what else the machine does is in all of them; the first round does
    not count. Their modes are left as found.
    """
    were_training = [module.training for module in modules]
    rounds: list[list[float]] = []
    try:
        began = clock()
        with torch.inference_mode():
            while len(rounds) <= LATENCY_ROUNDS_MAX:
                rounds.append([_seconds(module.eval(), probe, clock) for module in modules])
                is_over = clock() - began >= LATENCY_SECONDS
                if is_over and len(rounds) > LATENCY_ROUNDS_MIN:
                    break
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)
    return [1_000 * statistics.median(each) for each in zip(*rounds[1:], strict=True)]


def _seconds(
    module: torch.nn.Module, probe: tuple[torch.Tensor, ...], clock: Callable[[], float]
) -> float:
    began = clock()
    module(*probe)
    return clock() - began
