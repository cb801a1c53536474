"""Models and states of training on disk, and what is refused instead of loaded."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch

from agent import checkpoints, tensors
from agent.specialists.base import Config
from core import chunks, errors

CONFIG = Config(family="linear", sizes={"width": 3})


def linear(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2)


def blob(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def state(step: int) -> checkpoints.State:
    return checkpoints.State(
        specialist="s", node_id="n", role="evolver", seed=1, step=step, total_steps=100
    )


def test_the_hash_of_weights_does_not_depend_on_their_order_in_the_file() -> None:
    a, b = torch.ones(2), torch.zeros(3)
    one = safetensors.torch.save({"a": a, "b": b})
    other = safetensors.torch.save({"b": b, "a": a}, metadata={"made": "otherwise"})
    assert one != other
    assert tensors.weights_sha256(one) == tensors.weights_sha256(other)


@pytest.mark.parametrize(
    "changed",
    [{"a": torch.ones(3)}, {"b": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)}],
)
def test_another_name_shape_or_type_is_another_hash(changed: dict[str, torch.Tensor]) -> None:
    before = tensors.weights_sha256(safetensors.torch.save({"a": torch.ones(2)}))
    assert tensors.weights_sha256(safetensors.torch.save(changed)) != before


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04K\x01.",
        struct.pack("<Q", 2**62) + b"{}",
        blob(b"[1,2]"),
        blob(b"{" * 2_000),
        blob({"a": tensor()}, b"\0" * 7),
        blob({"a": tensor()}, b"\0" * 9),
        blob({"a": tensor(shape=(2**40, 2**40))}, b"\0" * 8),
        blob({"a": tensor(shape=(-2,))}, b"\0" * 8),
        blob({"a": tensor(shape=(True, 2))}, b"\0" * 8),
        blob({"a": tensor(dtype="PICKLE")}, b"\0" * 8),
        blob({"a": tensor(dtype=["F32"])}, b"\0" * 8),
        blob({"a": tensor(), "b": tensor()}, b"\0" * 8),
        blob({"a": tensor(offsets=(8, 0))}, b"\0" * 8),
        blob({"a": 7}),
    ],
)
def test_what_is_no_sound_safetensors_is_refused_before_anything_is_made(
    raw: bytes, tmp_path: Path
) -> None:
    path = tmp_path / checkpoints.WEIGHTS_FILE
    path.write_bytes(raw)
    with pytest.raises(errors.ArtifactError, match="no safetensors"):
        tensors.weights_sha256_of_file(path)
    with pytest.raises(errors.ArtifactError):
        checkpoints.load_weights(path, linear())


@pytest.mark.parametrize("name", ["\ud800", "a\x1fF32\x1f(2,)\x1e12345678b"])
def test_a_tensor_name_that_could_pass_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(errors.ArtifactError, match="no name"):
        tensors.weights_sha256(blob({name: tensor()}, b"\0" * 8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: {"weight": tensors["weight"]}, "lacks bias"),
        (lambda tensors: {**tensors, "more": torch.ones(1)}, "more too many"),
        (lambda tensors: {**tensors, "bias": torch.ones(5)}, "shape"),
        (lambda tensors: {**tensors, "bias": tensors["bias"].double()}, "float64"),
    ],
)
def test_weights_that_do_not_fit_leave_the_module_as_it_was(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    words: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / checkpoints.WEIGHTS_FILE
    path.write_bytes(safetensors.torch.save(change(dict(linear(1).state_dict()))))
    module = linear(0)
    with pytest.raises(errors.ArtifactError, match=words):
        checkpoints.load_weights(path, module)
    assert torch.equal(module.weight, linear(0).weight)


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = linear(3)
    sha256 = checkpoints.write_model(tmp_path, written, CONFIG)
    path = tmp_path / checkpoints.WEIGHTS_FILE
    read = linear(4)
    checkpoints.load_weights(path, read)
    assert torch.equal(read.weight, written.weight)
    assert tensors.weights_sha256_of_file(path) == sha256
    assert checkpoints.read_config(tmp_path / checkpoints.CONFIG_FILE) == CONFIG


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"family":7}', b"\xff", b"{" * 5_000, b" " * 70_000])
def test_what_is_no_configuration_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / checkpoints.CONFIG_FILE
    path.write_bytes(raw)
    with pytest.raises(errors.ArtifactError):
        checkpoints.read_config(path)


class Run:
    """A little training whose states are saved."""

    def __init__(self) -> None:
        self.module = linear(5)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            loss = (self.module(torch.rand(4, 3)) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def save(self, directory: Path, step: int) -> Path:
        taken = checkpoints.snapshot(self.module, self.optimizer)
        return checkpoints.write_state(directory, state(step), taken, CONFIG)


def test_training_goes_on_from_a_state_exactly_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    unbroken = Run()
    unbroken.step(3)
    folder = unbroken.save(tmp_path, 3)
    unbroken.step(4)
    resumed = Run()
    torch.manual_seed(99)
    checkpoints.load_state(folder, resumed.module, resumed.optimizer)
    resumed.step(4)
    assert torch.equal(resumed.module.weight, unbroken.module.weight)


def test_the_newest_sound_state_is_found_and_a_damaged_one_is_moved_aside(tmp_path: Path) -> None:
    run = Run()
    run.step()
    run.save(tmp_path, 1)
    newest = run.save(tmp_path, 2)
    optimizer = newest / checkpoints.OPTIMIZER_FILE
    optimizer.write_bytes(optimizer.read_bytes()[:-4])
    found = checkpoints.newest_state(tmp_path)
    assert found is not None
    assert found[1].step == 1
    assert not newest.exists()
    assert list(tmp_path.glob("damaged-*/step-00000002"))


def test_a_state_without_its_description_does_not_count(tmp_path: Path) -> None:
    run = Run()
    run.step()
    (run.save(tmp_path, 1) / checkpoints.STATE_FILE).unlink()
    assert checkpoints.newest_state(tmp_path) is None


def change_state(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / checkpoints.STATE_FILE
    told = json.loads(path.read_bytes())
    change(told)
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["files"].pop(checkpoints.OPTIMIZER_FILE),
        lambda told: told["files"].update({"../outside": hashlib.sha256(b"x").hexdigest()}),
        lambda told: told.update(step=101),
        lambda told: told.update(step=-1),
    ],
)
def test_a_state_that_lacks_a_file_names_others_or_is_impossible_does_not_count(
    change: Callable[[dict[str, object]], object], tmp_path: Path
) -> None:
    run = Run()
    run.step()
    run.save(tmp_path, 1)
    (tmp_path / "outside").write_bytes(b"x")
    change_state(run.save(tmp_path, 2), change)
    found = checkpoints.newest_state(tmp_path)
    assert found is not None
    assert found[1].step == 1


def test_a_description_of_a_state_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    run = Run()
    run.step()
    with (run.save(tmp_path, 1) / checkpoints.STATE_FILE).open("ab") as file:
        file.write(b" " * checkpoints.STATE_BYTES_MAX)
    assert checkpoints.newest_state(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("optimizer", {}),
        ("optimizer", {"weight\x1fexp_avg": torch.zeros(7)}),
        ("optimizer", {"weight\x1fexp_avg": None}),
        ("optimizer", {"other\x1fexp_avg": torch.zeros(2)}),
        ("random", {"cpu": torch.zeros(3)}),
        ("random", {"cpu": None}),
    ],
)
def test_a_state_whose_tensors_do_not_fit_is_refused_in_words(
    name: str, tensors: dict[str, torch.Tensor | None], tmp_path: Path
) -> None:
    run = Run()
    run.step()
    folder = run.save(tmp_path, 1)
    path = folder / f"{name}.safetensors"
    changed = {**safetensors.torch.load(path.read_bytes()), **tensors}
    path.write_bytes(
        safetensors.torch.save({key: value for key, value in changed.items() if value is not None})
    )
    if not tensors:
        path.write_bytes(b"nothing")
    with pytest.raises(errors.ArtifactError):
        checkpoints.load_state(folder, run.module, run.optimizer)


def test_what_a_killed_process_left_half_written_is_swept_away_by_the_next_save(
    tmp_path: Path,
) -> None:
    (tmp_path / ".saving-abc").mkdir()
    (tmp_path / ".saving-abc" / checkpoints.WEIGHTS_FILE).write_bytes(b"half")
    run = Run()
    run.step()
    run.save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_only_the_last_three_states_are_kept(tmp_path: Path) -> None:
    run = Run()
    run.step()
    for step in range(1, 7):
        run.save(tmp_path, step)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000004", "step-00000005", "step-00000006"]


def test_a_state_names_the_digest_of_each_of_its_files(tmp_path: Path) -> None:
    run = Run()
    run.step()
    folder = run.save(tmp_path, 1)
    told = msgspec.json.decode(
        (folder / checkpoints.STATE_FILE).read_bytes(), type=checkpoints.State
    ).files
    assert set(told) == {path.name for path in folder.iterdir()} - {checkpoints.STATE_FILE}


@pytest.mark.parametrize(
    ("bound", "words"),
    [("MODEL_BYTES_MAX", "the model would have 0 MB"), ("ARTIFACT_BYTES_MAX", "and its optimizer")],
)
def test_what_could_not_be_stored_is_not_trained(
    monkeypatch: pytest.MonkeyPatch, bound: str, words: str
) -> None:
    module = torch.nn.Linear(10, 10)
    checkpoints.require_storable(module)
    monkeypatch.setattr(chunks, bound, 3 * 440 - 1 if "ARTIFACT" in bound else 439)
    with pytest.raises(errors.TrainingError, match=words):
        checkpoints.require_storable(module)
    module.requires_grad_(False)
    monkeypatch.setattr(chunks, "MODEL_BYTES_MAX", 440)
    checkpoints.require_storable(module)
