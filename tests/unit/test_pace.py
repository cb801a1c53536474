"""How long a training may go on."""

import math

import msgspec
import pytest
import torch

from agent.executors import jobs, pace

JOB = jobs.Job(
    task_id="t",
    node_id="n",
    specialist="opt-convex",
    role="evolver",
    seed=1,
    directory="d",
    budget_seconds=30.0,
)


@pytest.mark.parametrize(
    ("earlier_seconds", "left_seconds"),
    [(0.0, 61.0), (20.0, 41.0), (58.0, 3.0), (60.5, 1.0), (1e6, 1.0)],
)
def test_a_resumed_training_has_what_its_attempts_left_of_twice_its_budget_and_at_least_a_second(
    earlier_seconds: float, left_seconds: float
) -> None:
    resumed = msgspec.structs.replace(JOB, resume=True)
    assert pace.seconds_left(resumed, earlier_seconds, 0.0) == left_seconds


def test_one_that_begins_has_its_budget_and_one_of_so_many_steps_any_time() -> None:
    assert pace.seconds_left(JOB, None, 2.0) == 28.0
    assert pace.seconds_left(msgspec.structs.replace(JOB, steps=7), 1e6, 0.0) == math.inf


def test_times_are_remembered_of_so_many_kinds_that_were_trained_last() -> None:
    times = pace.Times()
    for number in range(pace.KINDS_KEPT_MAX):
        times["a", f"{number}"] = 1.0
    times["a", "0"] = 2.0
    times["a", "new"] = 3.0
    assert len(times) == pace.KINDS_KEPT_MAX
    assert (times["a", "0"], times["a", "new"]) == (2.0, 3.0)
    assert ("a", "1") not in times


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(torch.nn.Module):
    """Takes so many seconds an answer, and now and then, when others work, much more."""

    def __init__(self, name: str, seconds: float, clock: Clock, answered: list[str]) -> None:
        super().__init__()
        self.name, self.seconds, self.clock, self.answered = name, seconds, clock, answered

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.answered.append(self.name)
        self.clock.now += self.seconds + (1.0 if len(self.answered) % 7 == 0 else 0.0)
        return x


def test_latencies_are_medians_of_answers_in_alternation_and_measuring_them_ends() -> None:
    clock, answered = Clock(), list[str]()
    modules = [Slow("float", 0.004, clock, answered), Slow("int8", 0.002, clock, answered)]
    modules[0].train()
    found = pace.latencies_ms(modules, (torch.zeros(1),), clock)
    assert found == pytest.approx([4.0, 2.0])
    assert answered == ["float", "int8"] * (len(answered) // 2)
    assert len(answered) <= 2 * (pace.LATENCY_ROUNDS_MAX + 1)
    assert modules[0].training
    answered.clear()
    pace.latencies_ms([Slow("slow", 9.0, clock, answered)], (torch.zeros(1),), clock)
    assert len(answered) == pace.LATENCY_ROUNDS_MIN + 1
