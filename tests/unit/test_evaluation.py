"""How a module is measured where not all cases at once find room in memory."""

from collections.abc import Callable

import pytest
import torch

from agent.specialists import evaluation
from agent.specialists.base import Cases
from agent.specialists.filtering import Filtering
from core import errors


class Device(Filtering):
    """Finds no memory for the errors of more than so many cases at once."""

    def __init__(self, most: int, error: Callable[[], Exception] = MemoryError) -> None:
        super().__init__()
        self._most, self._error = most, error
        self.taken: list[int] = []

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        count = len(cases["readings"])
        self.taken.append(count)
        if count > self._most:
            raise self._error()
        return super().errors(module, cases)


def measured(device: Device, at_once: int = 0) -> torch.Tensor:
    torch.manual_seed(1)
    module = device.build(device.families("reinventor")[0])
    return evaluation.case_errors(device, module, device.cases(1, 40), at_once)


def test_cases_are_measured_at_once_where_they_fit_and_else_in_halves_of_them() -> None:
    large, small = Device(40), Device(15)
    assert torch.allclose(measured(small), measured(large))
    assert large.taken == [40]
    assert small.taken == [40, 20, 10, 10, 10, 10]


def test_what_was_found_to_fit_is_not_exceeded() -> None:
    device = Device(15)
    assert torch.allclose(measured(device, 15), measured(Device(40)))
    assert device.taken == [15, 15, 10]


def test_where_not_one_case_fits_it_is_said_and_another_error_is_not_tried_again() -> None:
    with pytest.raises(errors.Unfit, match="not even one case at a time"):
        measured(Device(0))
    other = Device(0, lambda: RuntimeError("mat1 and mat2 cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        measured(other)
    assert other.taken == [40]
