"""One step of training: in parts, where memory runs out, and in bfloat16."""

from collections.abc import Callable, Iterator

import accelerate
import pytest
import torch

from agent.executors import stepping
from agent.specialists import operators, registry
from agent.specialists.base import Batch, Role, Specialist
from core import errors, workloads

CASES = 12
RATE = 0.01


@pytest.fixture(scope="module")
def accelerator() -> accelerate.Accelerator:
    torch.set_num_threads(1)
    return accelerate.Accelerator(cpu=True)


@pytest.fixture
def mixed() -> Iterator[accelerate.Accelerator]:
    """One that computes in bfloat16 where it is told to; what accelerate shares comes back."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def batch(count: int = CASES) -> Batch:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, generator=draw)
    return {"x": x, "y": x.sum(1, keepdim=True)}


def squares(module: torch.nn.Module, part: Batch) -> torch.Tensor:
    loss: torch.Tensor = (module(part["x"]) - part["y"]).square().mean()
    return loss


class Device:
    """A loss that finds no memory for more than so many cases at once."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        self._most, self._error = most, error
        self.taken: list[int] = []

    def loss(self, module: torch.nn.Module, part: Batch) -> torch.Tensor:
        count = len(part["x"])
        self.taken.append(count)
        loss = squares(module, part)
        if count > self._most:
            raise self._error()
        return loss


def trained(
    accelerator: accelerate.Accelerator,
    loss: stepping.Loss,
    *,
    micro_batch: int = 0,
    steps: int = 3,
) -> tuple[torch.Tensor, stepping.Stepper]:
    torch.manual_seed(1)
    module = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    stepper = stepping.Stepper(accelerator, module, optimizer, loss, micro_batch=micro_batch)
    for _ in range(steps):
        stepper.take(batch(), RATE)
    return module.weight.detach(), stepper


@pytest.mark.parametrize("micro_batch", [1, 5, 6, 12, 100])
def test_a_batch_in_parts_moves_the_weights_as_the_whole_does(
    accelerator: accelerate.Accelerator, micro_batch: int
) -> None:
    whole, _ = trained(accelerator, squares)
    parts, _ = trained(accelerator, squares, micro_batch=micro_batch)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)


def _gpu_is_full() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _host_is_full() -> Exception:
    return RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: 8 bytes")


@pytest.mark.parametrize("error", [_gpu_is_full, _host_is_full, MemoryError])
def test_where_memory_runs_out_the_step_is_taken_again_in_smaller_parts(
    accelerator: accelerate.Accelerator, error: Callable[[], Exception]
) -> None:
    device = Device(4, error)
    found, stepper = trained(accelerator, device.loss)
    wanted, _ = trained(accelerator, squares, micro_batch=3)
    assert device.taken == [12, 6, *[3] * 4 * 3]
    assert stepper.micro_batch == 3
    assert torch.equal(found, wanted)


def test_an_error_that_is_no_want_of_memory_is_not_tried_again(
    accelerator: accelerate.Accelerator,
) -> None:
    device = Device(4, lambda: RuntimeError("mat1 and mat2 cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        trained(accelerator, device.loss)
    assert device.taken == [12]


def test_a_device_without_room_for_one_case_says_so(accelerator: accelerate.Accelerator) -> None:
    device = Device(0, MemoryError)
    with pytest.raises(errors.Unfit, match="not even one case at a time"):
        trained(accelerator, device.loss)
    assert device.taken == [12, 6, 3, 1]


class Crowded(torch.optim.AdamW):
    """Finds no memory at its first steps while more cases were taken at once than fit beside it."""

    def __init__(self, device: Device, most: int, weights: Iterator[torch.nn.Parameter]) -> None:
        super().__init__(weights, lr=RATE)
        self._device, self._most = device, most

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if self._device.taken[-1] > self._most:
            weight = self.param_groups[0]["params"][0]
            self.state[weight]["step"] = torch.tensor(0.0)  # as far as there was room
            raise torch.OutOfMemoryError("CUDA out of memory.")
        super().step(closure)


def crowded(accelerator: accelerate.Accelerator, most: int) -> tuple[torch.Tensor, list[int]]:
    torch.manual_seed(1)
    module, device = torch.nn.Linear(4, 1), Device(CASES, MemoryError)
    optimizer = Crowded(device, most, module.parameters())
    stepper = stepping.Stepper(accelerator, module, optimizer, device.loss)
    for _ in range(3):
        stepper.take(batch(), RATE)
    return module.weight.detach(), device.taken


def test_where_an_optimizer_begins_without_memory_the_step_is_taken_in_smaller_parts(
    accelerator: accelerate.Accelerator,
) -> None:
    found, taken = crowded(accelerator, 4)
    wanted, _ = trained(accelerator, squares, micro_batch=3)
    assert taken == [12, 6, 6, *[3] * 4 * 3]
    assert torch.equal(found, wanted)
    with pytest.raises(errors.TrainingError, match="not even one case at a time"):
        crowded(accelerator, 0)


def test_where_clipping_finds_no_memory_the_step_is_taken_in_smaller_parts(
    accelerator: accelerate.Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, left = torch.nn.utils.clip_grad_norm_, iter([True, True])

    def clipped(weights: list[torch.Tensor], most: float) -> torch.Tensor:
        if next(left, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return clip(weights, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    found, stepper = trained(accelerator, squares)
    assert stepper.micro_batch == 3
    assert torch.equal(found, trained(accelerator, squares, micro_batch=3)[0])


def test_an_optimizer_that_ran_out_of_memory_in_the_middle_ends_the_training(
    accelerator: accelerate.Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stepper = trained(accelerator, squares)

    def torn() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(stepper._optimizer, "step", torn)
    with pytest.raises(errors.TrainingError, match="in the middle of a step") as raised:
        stepper.take(batch(), RATE)
    assert not isinstance(raised.value, errors.Unfit)
    assert stepper.micro_batch == 0


def test_a_device_without_room_for_the_optimizer_of_a_resumed_state_is_unfit(
    accelerator: accelerate.Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = trained(accelerator, squares)
    resumed = stepping.Stepper(accelerator, before._module, before._optimizer, squares)

    def no_room() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(before._optimizer, "step", no_room)
    with pytest.raises(errors.Unfit, match="in the middle of a step"):
        resumed.take(batch(), RATE)


def test_a_step_that_is_left_between_two_parts_moves_nothing(
    accelerator: accelerate.Accelerator,
) -> None:
    before, stepper = trained(accelerator, squares, micro_batch=4)
    kept = before.clone()
    stepper.is_asked_to_stop = lambda: True
    with pytest.raises(stepping.Abandoned):
        stepper.take(batch(), RATE)
    assert torch.equal(before, kept)


ROLES: list[Role] = ["evolver", "reinventor"]


@pytest.mark.parametrize("name", [name for name in registry.names() if name != workloads.TEXT])
@pytest.mark.parametrize("role", ROLES)
def test_a_specialists_loss_is_the_mean_of_its_cases(name: str, role: Role) -> None:
    """So a batch may be taken in parts, and by several processes."""
    specialist, module = _rival(name, role)
    whole = specialist.train_batch(5, 0)
    with torch.no_grad():
        total = sum(
            stepping._count(part) * float(specialist.loss(module, part))
            for part in stepping._parts(whole, 5)
        )
        loss = float(specialist.loss(module, whole))
    assert total / specialist.batch_size == pytest.approx(loss, rel=1e-4, abs=1e-5)


def _rival(name: str, role: Role) -> tuple[Specialist, torch.nn.Module]:
    specialist = registry.get(name)
    torch.manual_seed(2)
    return specialist, specialist.build(specialist.families(role)[0])


@pytest.mark.parametrize("name", sorted(stepping.MIXED_BORNE_BY))
@pytest.mark.parametrize("role", ROLES)
def test_who_bears_bfloat16_learns_from_gradients_near_those_of_float32(
    mixed: accelerate.Accelerator, name: str, role: Role
) -> None:
    found = []
    for is_mixed in (False, True):
        specialist, module = _rival(name, role)
        optimizer = torch.optim.SGD(module.parameters())
        stepper = stepping.Stepper(mixed, module, optimizer, specialist.loss, mixed=is_mixed)
        stepper.take(specialist.train_batch(5, 0), 0.0)
        parts = [weight.grad for weight in module.parameters() if weight.grad is not None]
        assert {part.dtype for part in parts} == {torch.float32}
        found.append(torch.cat([part.flatten() for part in parts]))
    likeness = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert 0.95 < float(likeness) < 0.9999999, "bfloat16 is near float32, and not the same"
    assert stepping.is_mixed(mixed, name)
    assert not stepping.is_mixed(mixed, "opt-convex")


def test_fields_of_bfloat16_have_the_modes_of_float32() -> None:
    """CUDA, other than a CPU, leaves it to us to ask for them so."""
    fields = torch.randn(3, 128).bfloat16()
    assert torch.equal(operators.modes_of(fields), torch.fft.rfft(fields.float()))


@pytest.mark.parametrize("name", ["physics-fluid", "math-physics"])
@pytest.mark.parametrize("role", ROLES)
def test_flows_can_be_differentiated_under_bfloat16(
    mixed: accelerate.Accelerator, name: str, role: Role
) -> None:
    specialist, module = _rival(name, role)
    with mixed.autocast():
        loss = specialist.loss(module, specialist.train_batch(5, 0))
    mixed.backward(loss)
    found = [weight.grad for weight in module.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in found)
