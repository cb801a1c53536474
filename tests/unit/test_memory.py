"""Models that a device has no memory for."""

import pytest

from agent import limits, memory
from agent.machine import Machine
from core import errors
from core.chunks import File, Manifest

GB = 10**9


def artifact(model_gb: float, optimizer_gb: float = 0.0) -> Manifest:
    sizes = {"model.safetensors": model_gb, "optimizer.safetensors": optimizer_gb, "config.json": 0}
    files = [
        File(name=name, bytes=int(size * GB), sha256="0" * 64, chunks=[])
        for name, size in sizes.items()
    ]
    return Manifest(kind="candidate", writer="w", files=files)


def machine(memory_gb: float) -> Machine:
    return Machine(
        hostname="h", device="cuda", devices=1, memory_gb=memory_gb, cores=8, system="test"
    )


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 32 * GB)


def test_a_model_that_is_too_large_to_train_is_refused_with_the_sizes() -> None:
    with pytest.raises(errors.Unfit, match=r"has 2\.4 GB .* model of 1\.4 GB .* takes 5\.6 GB"):
        memory.require_room(artifact(1.4), "full", machine(2.4))


@pytest.mark.parametrize(
    ("method", "size_gb", "memory_gb"), [("lora", 14, 24), ("full", 1.4, 5.6), ("auto", 14, 80)]
)
def test_a_model_that_fits_by_its_method_is_not(
    method: str, size_gb: float, memory_gb: float
) -> None:
    memory.require_room(artifact(size_gb, 2 * size_gb * (method == "full")), method, machine(80))
    memory.require_room(artifact(size_gb), method, machine(memory_gb))


def test_what_the_host_cannot_hold_is_refused_with_the_sizes() -> None:
    with pytest.raises(errors.Unfit, match=r"has 32 GB .* takes 37 GB"):
        memory.require_room(artifact(7, 30), "lora", machine(80))


def test_a_model_whose_checkpoints_nobody_could_store_is_refused_wherever_it_is_to_be_trained() -> (
    None
):
    with pytest.raises(errors.TrainingError, match=r"of 2 GB .* takes 6 GB, and 4\.29 GB") as why:
        memory.require_room(artifact(2), "full", machine(80))
    assert not isinstance(why.value, errors.Unfit)


@pytest.mark.parametrize(
    ("method", "model_gb", "memory_gb", "is_advised"),
    [
        ("full", 1.4, 2.4, True),
        ("lora", 25, 24, False),
        ("merge", 14, 24, False),
        ("full", 1.4, 1.0, False),
    ],
)
def test_another_method_is_advised_only_where_it_would_help(
    method: str, model_gb: float, memory_gb: float, is_advised: bool
) -> None:
    with pytest.raises(errors.Unfit, match="`requires`") as raised:
        memory.require_room(artifact(model_gb), method, machine(memory_gb))
    assert ("the method lora, or" in str(raised.value)) is is_advised
