"""Latency on a simulated machine, whose clock only runs while something is timed."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch

from core import errors, values
from orchestrator import latency
from orchestrator.latency import REFERENCE, Session, Timed

torch.set_num_threads(1)  # as where models are judged

REFERENCE_SECONDS, CHAMPION_SECONDS = 0.25e-3, 0.5e-3
TRIES = 300


class Machine:
    """Times are true ones with some noise; others take the processor now and then, each time for
    some milliseconds, and slow all that runs for tenths of seconds."""

    def __init__(self, seed: int, *, interruptions: float = 0.0, slowness: float = 0.0) -> None:
        self._draw = random.Random(seed)
        self._interruptions, self._slowness = interruptions, slowness
        self._slow_until = self._calm_until = 0.0
        self.now = 0.0
        self.turns = 0

    def clock(self) -> float:
        return self.now

    def run(self, seconds: float) -> Callable[[], object]:
        def take() -> None:
            self.turns += 1
            if self.now > max(self._slow_until, self._calm_until):
                self._slow_until = self.now + self._draw.expovariate(10)
                self._calm_until = self._slow_until + self._draw.expovariate(10)
            slow = 1 + self._slowness * (self.now < self._slow_until)
            left = seconds * slow * self._draw.lognormvariate(0, 0.03)
            while self._interruptions and (ahead := self._draw.expovariate(self._interruptions)):
                if ahead >= left:
                    break
                self.now += ahead + self._draw.expovariate(250)
                left -= ahead
            self.now += left

        return take

    def runs(self, **seconds: float) -> dict[str, Callable[[], object]]:
        every = {REFERENCE: REFERENCE_SECONDS, **seconds}
        return {name: self.run(each) for name, each in every.items()}


def _never(name: str, seen: values.Latency) -> bool:
    return False


def _always(name: str, seen: values.Latency) -> bool:
    return True


def _session(
    machine: Machine,
    ratio: float,
    is_clear: Callable[[str, values.Latency], bool] = _always,
    *,
    is_same: bool = False,
    name: str = "candidate",
) -> Session:
    session = Session(name, "champion", is_same)
    runs = machine.runs(champion=CHAMPION_SECONDS, **{name: ratio * CHAMPION_SECONDS})
    session.take(runs, is_clear, contextlib.nullcontext, machine.clock)
    return session


def _told(sessions: Mapping[str, Session], **architectures: str) -> dict[str, values.Latency]:
    return latency.told(architectures, "champion", sessions)


@pytest.mark.parametrize(("interruptions", "slowness"), [(0, 0), (200, 0), (200, 0.4), (500, 0.4)])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.4])
def test_the_true_ratio_lies_in_its_interval(
    interruptions: float, slowness: float, ratio: float
) -> None:
    missed = {"against": 0, "ratio": 0}
    for seed in range(TRIES):
        machine = Machine(seed, interruptions=interruptions, slowness=slowness)
        found = _told({"candidate": _session(machine, ratio)}, champion="one", candidate="another")[
            "candidate"
        ]
        assert found.against_lower is not None
        assert found.against_upper is not None
        truth = ratio * CHAMPION_SECONDS / REFERENCE_SECONDS
        missed["against"] += not found.against_lower <= ratio <= found.against_upper
        missed["ratio"] += not found.lower <= truth <= found.upper
    # One of a hundred may: 3, and more than 9 with a chance of 1e-3.
    assert max(missed.values()) <= 9


@pytest.mark.parametrize("count", [8, 12, 24, 60])
def test_an_interval_of_a_median_misses_one_in_a_hundred(count: int) -> None:
    draw = random.Random(count)
    missed = 0
    for _ in range(4_000):
        found = latency.interval([draw.lognormvariate(0, 1) for _ in range(count)])
        assert found.lower <= found.value <= found.upper
        missed += not found.lower <= 1 <= found.upper
    assert 4 <= missed <= 60


def test_few_blocks_are_not_trusted() -> None:
    assert latency.interval([2.0, 3.0, 4.0]) == pytest.approx((3.0, 1.0 / 1.01, 8.0 * 1.01))
    assert latency.interval([3.0]) == pytest.approx((3.0, 1.5 / 1.01, 6.0 * 1.01))


def test_readings_end_when_they_are_clear_and_at_five() -> None:
    def clear_at(wanted: int) -> Callable[[str, values.Latency], bool]:
        return lambda name, seen: (name, seen.readings >= wanted) == ("candidate", True)

    taken = [_session(Machine(1), 1.2, clear_at(wanted)).readings for wanted in (1, 3, 5, 9)]
    assert taken == [1, 3, 5, 5]


def test_more_readings_tell_more() -> None:
    widths = []
    for is_clear in (_always, _never):
        machine = Machine(1, interruptions=300, slowness=0.4)
        session = _session(machine, 1.2, is_clear)
        found = _told({"candidate": session}, champion="one", candidate="another")["candidate"]
        assert found.against_lower is not None
        assert found.against_upper is not None
        widths.append(found.against_upper / found.against_lower - 1)
    assert widths[1] < 0.6 * widths[0]


@pytest.mark.parametrize("seconds", [0.5e-3, 0.03, 0.4, 2.0])
def test_time_is_bounded_for_slow_models_too(seconds: float) -> None:
    machine = Machine(1)
    held = []

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        start = machine.now
        yield
        held.append(machine.now - start)

    session = Session("candidate", "champion", False)
    runs = machine.runs(champion=0.5e-3, candidate=seconds)
    session.take(runs, _never, quiet, machine.clock)
    found = _told({"candidate": session}, champion="one", candidate="another")["candidate"]
    assert len(held) == 1
    assert held[0] <= latency.SECONDS_MAX + 1.2 * seconds
    assert found.against == pytest.approx(seconds / 0.5e-3, rel=0.1)


def test_who_goes_first_changes() -> None:
    order: list[str] = []
    machine = Machine(1)

    def run(name: str) -> Callable[[], object]:
        def take() -> None:
            order.append(name)
            machine.now += 1e-3

        return take

    latency.take_block({name: run(name) for name in "rab"}, 9.0, machine.clock)
    assert "".join(order[:12]) == "rabrbarabrba"


# ── models of one architecture ──


def test_a_model_of_the_champions_architecture_shares_its_reading() -> None:
    sessions = {"candidate": _session(Machine(1), 1.0, is_same=True)}
    found = _told(sessions, champion="one", candidate="one")
    assert found["candidate"].shared_with == "champion"
    assert found["champion"].shared_with == ""
    assert (found["candidate"].against_lower, found["candidate"].against_upper) == (1.0, 1.0)
    for name in ("ratio", "lower", "upper", "p50_ms", "p95_ms"):
        assert getattr(found["candidate"], name) == getattr(found["champion"], name)
    assert found["champion"].against is None


def test_what_is_surely_slower_keeps_its_own_whatever_its_architecture() -> None:
    sessions = {"candidate": _session(Machine(1), 1.3, is_same=True)}
    found = _told(sessions, champion="one", candidate="one")
    assert found["candidate"].shared_with == ""
    assert found["candidate"].against == pytest.approx(1.3, rel=0.05)


def test_a_vague_reading_is_repeated_before_it_counts_as_the_champions() -> None:
    vague = Machine(1, interruptions=4_000)
    assert _session(vague, 1.0, is_same=True).readings > 1
    assert _session(Machine(1), 1.0, is_same=True).readings == 1


def test_candidates_of_one_architecture_share_theirs_unless_they_differ() -> None:
    ratios = {"first": 0.7, "alike": 0.7, "slow": 0.9, "other": 0.7}
    sessions = {name: _session(Machine(3), each, name=name) for name, each in ratios.items()}
    architectures = {"champion": "one", **dict.fromkeys(ratios, "two"), "other": "three"}
    found = latency.told(architectures, "champion", sessions)
    assert list(found) == list(architectures)
    shared = {name: each.shared_with for name, each in found.items()}
    assert shared == {"champion": "", "first": "", "alike": "first", "slow": "", "other": ""}
    assert found["alike"].ratio == found["first"].ratio


# ── real models ──


class Probing(torch.nn.Module):
    """Notes how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: set[tuple[int, bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keeps_denormals = float((x * 1e-40).abs().max()) > 0
        self.noted.add(
            (torch.get_num_threads(), torch.is_inference_mode_enabled(), keeps_denormals)
        )
        return x * 2


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such place")


def _timed(module: torch.nn.Module, architecture: str = "one") -> Timed:
    return Timed(module, (torch.ones(1, 4),), architecture)


def test_models_run_on_one_thread_and_numbers_stay_as_small_as_they_are() -> None:
    threads = torch.get_num_threads()
    probing, entered = Probing(), []

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        entered.append(1)
        yield

    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    try:
        models = {"a": _timed(probing), "b": _timed(torch.nn.Tanh()), "c": _timed(torch.nn.ReLU())}
        found = latency.measure(models, "a", _always, quiet)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert probing.noted == {(1, True, True)}
    assert list(found) == ["a", "b", "c"]
    assert len(entered) == 2
    assert all(each.lower <= each.ratio <= each.upper for each in found.values())


def test_without_a_champion_only_the_reference_is_compared_with() -> None:
    found = latency.measure({"a": _timed(Probing())}, "", _always, contextlib.nullcontext)
    assert (found["a"].against, found["a"].against_lower) == (None, None)


def test_a_champion_alone_is_timed_too() -> None:
    found = latency.measure({"a": _timed(Probing())}, "a", _never, contextlib.nullcontext)
    assert (found["a"].readings, found["a"].against) == (1, None)


def test_a_model_that_cannot_be_asked_is_told_of_by_name() -> None:
    models = {"a": _timed(Probing()), "b": _timed(Broken())}
    with pytest.raises(errors.ArtifactError, match="b cannot be timed: no such place"):
        latency.measure(models, "a", _always, contextlib.nullcontext)
