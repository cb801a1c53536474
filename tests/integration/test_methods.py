"""Each way to train: what moves, what it leaves, and that it goes on where it was cut."""

from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch

from agent import checkpoints
from agent.executors import device, jobs, methods, training
from agent.specialists import forms, registry
from agent.specialists.base import Config
from core import errors
from orchestrator import models

NODE = "root-math"
STEPS = 12

torch.set_num_threads(1)


def job(directory: Path, **more: object) -> jobs.Job:
    values: dict[str, object] = {
        "task_id": "t",
        "node_id": NODE,
        "specialist": NODE,
        "role": "evolver",
        "seed": 7,
        "steps": STEPS,
        "checkpoint_seconds": 1_000.0,
        "directory": str(directory),
        **more,
    }
    return jobs.Job(**values)  # type: ignore[arg-type]


def ignore(_: jobs.Report) -> None:
    """Reports that a test does not ask about."""


def finished(one: jobs.Job) -> jobs.Result:
    result = training.run(one, ignore, lambda: None)
    assert isinstance(result, jobs.Result)
    return result


def weights(result: jobs.Result) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(result.candidate_directory) / checkpoints.WEIGHTS_FILE)


def config(result: jobs.Result) -> Config:
    return checkpoints.read_config(Path(result.candidate_directory) / checkpoints.CONFIG_FILE)


def judged(result: jobs.Result) -> models.Model:
    """The model as a judge loads it."""
    folder = Path(result.candidate_directory)
    stored = models.Files(
        (folder / checkpoints.WEIGHTS_FILE).read_bytes(),
        (folder / checkpoints.CONFIG_FILE).read_bytes(),
    )
    return models.load(registry.get(NODE), stored, result.weights_sha256)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> jobs.Result:
    device.prepare()
    return finished(job(tmp_path_factory.mktemp("base")))


def test_lora_moves_large_weights_within_a_few_directions_and_nothing_else(
    base: jobs.Result, tmp_path: Path
) -> None:
    adapted = finished(job(tmp_path, base=base.candidate_directory, method="lora"))
    assert (adapted.method, config(adapted)) == ("lora", config(base))
    before, after = weights(base), weights(adapted)
    assert before.keys() == after.keys()
    moved = {name: after[name] - before[name] for name in before}
    for name, difference in moved.items():
        if difference.ndim > 1 and difference.numel() >= methods.ADAPTED_NUMBERS_MIN:
            ranks = torch.linalg.matrix_rank(difference.flatten(1), rtol=1e-3)
            assert 0 < int(ranks) <= methods.RANK
        else:
            assert not difference.any(), name
    assert judged(adapted).params == base.params


def test_lora_that_is_cut_goes_on_to_the_same_weights(base: jobs.Result, tmp_path: Path) -> None:
    more = {"base": base.candidate_directory, "method": "lora"}
    unbroken = finished(job(tmp_path / "unbroken", **more))
    looks = iter([None] * 5 + [jobs.Stop(number=0, save=True)])
    cut = training.run(job(tmp_path / "cut", **more), ignore, lambda: next(looks))
    assert isinstance(cut, jobs.Stopped)
    assert cut.step == 5
    with pytest.raises(errors.ArtifactError, match="another training"):
        finished(job(tmp_path / "cut", resume=True, base=base.candidate_directory, method="full"))
    resumed = finished(job(tmp_path / "cut", resume=True, **more))
    assert resumed.resumed_from == 5
    assert resumed.weights_sha256 == unbroken.weights_sha256


def test_a_quantized_champion_is_smaller_loads_again_and_is_measured_against_what_it_was(
    base: jobs.Result, tmp_path: Path
) -> None:
    small = finished(job(tmp_path / "small", base=base.candidate_directory, method="quantize"))
    assert (small.steps, small.method, config(small).form) == (0, "quantize", forms.INT8)
    assert (small.float_loss, small.float_bytes) == (base.loss, base.bytes)
    assert small.bytes < 0.4 * base.bytes
    assert (base.latency_ms, base.float_latency_ms) == (None, None)
    assert min(small.latency_ms or 0.0, small.float_latency_ms or 0.0) > 0
    found = judged(small)
    assert found.params >= base.params
    cases = registry.get(NODE).cases(1, 16)
    errs = models.errors_of(registry.get(NODE), found, cases)
    assert errs.shape == (16,)
    evolved = finished(job(tmp_path / "evolved", base=small.candidate_directory, steps=1))
    assert config(evolved) == config(base)
    with pytest.raises(errors.TrainingError, match="int8 already"):
        finished(job(tmp_path / "x", base=small.candidate_directory, method="quantize"))


def test_what_was_trained_to_be_quantized_is_trained_first(tmp_path: Path) -> None:
    small = finished(job(tmp_path, role="reinventor", method="quantize"))
    assert small.steps == STEPS
    assert small.float_bytes is not None
    assert small.bytes < small.float_bytes


def test_a_model_that_does_not_become_smaller_is_refused(tmp_path: Path) -> None:
    other = {"node_id": "opt-convex", "specialist": "opt-convex", "steps": 1}
    with pytest.raises(errors.TrainingError, match="too few linear layers"):
        finished(job(tmp_path, method="quantize", **other))


def test_a_method_that_cannot_be_had_is_another_for_a_reason_or_refused() -> None:
    assert methods.choose("auto", "evolver", has_base=True).method == "full"
    assert "reinventor" in methods.choose("lora", "reinventor", has_base=True).reason
    assert "no champion" in methods.choose("lora", "evolver", has_base=False).reason
    with pytest.raises(errors.TrainingError, match="'alchemy' is not known"):
        methods.choose("alchemy", "evolver", has_base=True)


def test_a_model_without_large_layers_is_trained_in_full(tmp_path: Path) -> None:
    other = {"node_id": "stats-bayesian", "specialist": "stats-bayesian", "steps": 2}
    start = finished(job(tmp_path / "start", **other))
    asked = job(tmp_path / "next", base=start.candidate_directory, method="lora", **other)
    result = finished(asked)
    assert (result.method, "large enough" in result.method_reason) == ("full", True)
    assert all(map(torch.is_floating_point, weights(result).values()))
    assert any(
        not torch.equal(weights(start)[name], weights(result)[name]) for name in weights(start)
    )


def test_a_form_that_nobody_knows_is_refused() -> None:
    specialist = registry.get(NODE)
    strange = msgspec.structs.replace(specialist.families("evolver")[0], form="int3")
    with pytest.raises(errors.ArtifactError, match="'int3' are not known"):
        forms.build(specialist, strange)


@pytest.mark.parametrize("shape", [(3, 48), (2, 5, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_says_nearly_what_float32_says(shape: tuple[int, ...], *, bias: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(48, 32, bias=bias).requires_grad_(False)
    inputs = torch.randn(*shape, generator=draw)
    whole = forms.in_int8(torch.nn.Sequential(linear))
    said, wanted = whole(inputs), linear(inputs)
    assert said.shape == wanted.shape
    assert float((said - wanted).norm() / wanted.norm()) < 0.03
    # Rounding to 127 levels twice errs by about 1 %; a product off by one row by far more.
    again = forms.in_float(whole)(inputs)
    assert float((again - wanted).norm() / wanted.norm()) < 0.02
    assert torch.equal(forms.in_int8(forms.in_float(whole))(inputs), said)
