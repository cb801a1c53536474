"""Adapters over a base model: what is stored, what is refused, and that it goes on where it was.

The base is a Llama of some thousand numbers, which lies in its folder as one of billions does.
"""

import contextlib
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import safetensors.torch
import torch

from agent import checkpoints, limits
from agent.executors import device, jobs, pace, training
from agent.specialists import bases, registry
from core import errors, events, wire, workloads
from core.events import BaseModel
from orchestrator import latency, models, trial
from tests import base_models, texts

torch.set_num_threads(1)
STEPS = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    device.prepare()
    return texts.unpack(tmp_path_factory.mktemp("corpus"), hidden=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_models.make(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return bases.describe(str(folder))[0]


def job(directory: Path, corpus: Path, over: BaseModel | None, **more: object) -> jobs.Job:
    values: dict[str, object] = {
        "task_id": "t",
        "node_id": "n",
        "specialist": workloads.TEXT,
        "role": "evolver",
        "seed": 7,
        "steps": STEPS,
        "checkpoint_seconds": 1_000.0,
        "directory": str(directory),
        "corpus": str(corpus),
        "base_model": over,
        **more,
    }
    return jobs.Job(**values)  # type: ignore[arg-type]


def finished(one: jobs.Job) -> jobs.Result:
    result = training.run(one, lambda _: None, lambda: None)
    assert isinstance(result, jobs.Result)
    return result


def stored(result: jobs.Result) -> models.Files:
    folder = Path(result.candidate_directory)
    return models.Files(
        (folder / checkpoints.WEIGHTS_FILE).read_bytes(),
        (folder / checkpoints.CONFIG_FILE).read_bytes(),
    )


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, corpus: Path, base: BaseModel) -> jobs.Result:
    return finished(job(tmp_path_factory.mktemp("adapted"), corpus, base))


def test_only_adapters_are_stored_and_a_judge_with_the_base_measures_the_same_by_them(
    adapted: jobs.Result, corpus: Path, base: BaseModel
) -> None:
    assert (adapted.method, adapted.family) == ("lora", "adapter")
    files = stored(adapted)
    tensors = safetensors.torch.load(files.weights)
    assert all(".lora_" in name for name in tensors)
    assert sum(one.numel() for one in tensors.values()) * 4 < adapted.bytes < 0.9 * base.bytes
    specialist = registry.get(workloads.TEXT, {}, str(corpus), base)
    model = models.load(specialist, files, adapted.weights_sha256)
    cases = specialist.cases(1, 20, "hidden")
    found = models.errors_of(specialist, model, cases)
    fresh = specialist.build(specialist.families("evolver")[0])
    with torch.inference_mode():
        before = specialist.errors(fresh, cases)
    assert (found < before.numpy()).mean() > 0.8
    assert checkpoints.read_config(
        Path(adapted.candidate_directory, checkpoints.CONFIG_FILE)
    ).base == (base.digest)


def test_adapters_that_are_cut_go_on_to_the_same_weights(
    tmp_path: Path, adapted: jobs.Result, corpus: Path, base: BaseModel
) -> None:
    looks = iter([None] * 5 + [jobs.Stop(number=0, save=True)])
    cut = training.run(job(tmp_path, corpus, base), lambda _: None, lambda: next(looks))
    assert isinstance(cut, jobs.Stopped)
    resumed = finished(job(tmp_path, corpus, base, resume=True))
    assert (resumed.resumed_from, resumed.weights_sha256) == (5, adapted.weights_sha256)


def test_an_evolver_goes_on_from_adapters_and_is_no_more_quantized_than_they(
    tmp_path: Path, adapted: jobs.Result, corpus: Path, base: BaseModel
) -> None:
    more = {"base": adapted.candidate_directory, "steps": 2}
    evolved = finished(job(tmp_path / "next", corpus, base, **more))
    assert evolved.family == "adapter"
    assert evolved.loss < 1.02 * adapted.loss
    with pytest.raises(errors.TrainingError, match="not quantized"):
        finished(job(tmp_path / "small", corpus, base, method="quantize", **more))


def test_where_the_base_is_not_here_a_network_of_its_own_is_trained_or_why_not_is_said(
    tmp_path: Path, corpus: Path, base: BaseModel
) -> None:
    elsewhere = msgspec.structs.replace(base, name=str(tmp_path / "gone" / "tiny-llama"))
    plain = finished(job(tmp_path / "auto", corpus, elsewhere, steps=1))
    assert (plain.method, plain.family) == ("full", "mixture")
    with pytest.raises(errors.Unfit, match="AGHSAN_BASE_MODELS"):
        finished(job(tmp_path / "lora", corpus, elsewhere, method="lora"))
    adapted = finished(job(tmp_path / "adapted", corpus, base, steps=1))
    more = {"base": adapted.candidate_directory, "steps": 1}
    with pytest.raises(errors.Unfit, match="AGHSAN_BASE_MODELS"):
        finished(job(tmp_path / "over", corpus, elsewhere, **more))


def test_lora_over_a_base_leaves_a_champion_of_its_own_making_as_it_is(
    tmp_path: Path, corpus: Path, base: BaseModel
) -> None:
    champion = finished(job(tmp_path / "first", corpus, None, steps=1))
    assert champion.family == "mixture"
    more = {"base": champion.candidate_directory, "steps": 1}
    assert finished(job(tmp_path / "auto", corpus, base, **more)).family == "mixture"
    assert finished(job(tmp_path / "lora", corpus, base, method="lora", **more)).family == "adapter"


def test_a_base_is_found_in_the_folders_that_are_named_and_by_its_digest_alone(
    tmp_path: Path, folder: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = msgspec.structs.replace(base, name="D:\\models\\tiny-llama")
    monkeypatch.setenv(bases.FOLDERS, str(folder.parent))
    assert bases.find(moved) == folder
    monkeypatch.setenv(bases.FOLDERS, str(tmp_path))
    base_models.make(tmp_path / "tiny-llama", width=16)
    with pytest.raises(errors.TrainingError, match="its digest is"):
        bases.find(moved)


def test_a_base_of_the_hub_is_found_in_its_cache_without_a_network(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    cached = tmp_path / "models--org--tiny"
    base_models.make(cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found, where = bases.describe("org/tiny")
    assert (found.name, found.digest) == (f"org/tiny@{'a' * 40}", base.digest)
    assert bases.find(found) == where
    with pytest.raises(errors.NotFound, match="org/other is neither"):
        bases.describe("org/other")


def test_a_base_whose_shapes_do_not_fit_is_refused_by_their_names(
    tmp_path: Path, corpus: Path
) -> None:
    folder = base_models.make(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    odd = bases.describe(str(folder))[0]
    with pytest.raises(errors.TrainingError, match=r"mlp\..*has the shape .*64.*48"):
        finished(job(tmp_path / "out", corpus, odd))


def test_a_base_that_is_larger_than_the_memory_is_refused_before_it_is_looked_for(
    base: BaseModel,
) -> None:
    huge = msgspec.structs.replace(base, bytes=2**50, name="org/huge")
    with pytest.raises(errors.TrainingError, match=f"{2**50} bytes, this device"):
        bases.find(huge)


def test_what_a_base_takes_in_memory_is_counted_as_it_will_be_loaded(
    tmp_path: Path, folder: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = tmp_path / "halved"
    shutil.copytree(folder, halved)
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(
        {name: one.bfloat16() for name, one in whole.items()}, halved / "model.safetensors"
    )
    small = bases.describe(str(halved))[0]
    numbers = sum(one.numel() for one in whole.values())
    assert small.bytes < 3 * numbers < base.bytes
    monkeypatch.setattr(limits, "memory_bytes", lambda: 5 * numbers)
    assert bases.find(small) == halved
    monkeypatch.setattr(limits, "memory_bytes", lambda: 3 * numbers)
    with pytest.raises(errors.TrainingError, match=f"takes {4 * numbers} bytes as float32"):
        bases.find(small)
    device = SimpleNamespace(total_memory=3 * numbers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert bases.find(small) == halved
    device.total_memory = numbers
    with pytest.raises(errors.TrainingError, match=f"takes {2 * numbers} bytes as bfloat16"):
        bases.find(small)


def test_a_base_whose_files_hold_no_tensors_is_not_here_and_says_so(
    folder: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    (torn / "model.safetensors").write_bytes(b"{}")
    one = bases.describe(str(torn))[0]
    assert not bases.is_here(one)
    with pytest.raises(errors.TrainingError, match="is no base model to load"):
        bases.find(one)


def test_a_base_is_measured_by_no_more_pieces_at_once_than_it_is_trained_by(
    tmp_path: Path, corpus: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.specialists.adapters import Adapted

    bits, taken = Adapted.bits, []

    def counted(self: Adapted, texts: Sequence[tuple[str, str]]) -> torch.Tensor:
        taken.append(len(texts))
        return bits(self, texts)

    monkeypatch.setattr(Adapted, "bits", counted)
    finished(job(tmp_path, corpus, base, steps=1))
    assert len(taken) > 2
    assert max(taken) <= registry.get(workloads.TEXT, {}, str(corpus), base).batch_size


def test_a_folder_that_is_no_base_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(errors.Invalid, match=r"no config\.json"):
        bases.describe(str(tmp_path))
    with pytest.raises(errors.NotFound, match="neither a folder nor the id"):
        bases.describe(str(tmp_path / "nowhere"))


def test_adapters_over_another_base_are_refused(
    adapted: jobs.Result, corpus: Path, base: BaseModel
) -> None:
    other = msgspec.structs.replace(base, digest="0" * 64)
    specialist = registry.get(workloads.TEXT, {}, str(corpus), other)
    with pytest.raises(errors.ArtifactError, match="adapters over the base model"):
        models.load(specialist, stored(adapted), adapted.weights_sha256)


def test_a_judge_without_the_base_says_that_it_lacks_it(
    adapted: jobs.Result, corpus: Path, base: BaseModel
) -> None:
    other = msgspec.structs.replace(base, digest="0" * 64)
    files = stored(adapted)
    config = files.config.replace(base.digest.encode(), other.digest.encode())
    brief = round_of(adapted, other)
    found = trial.trace(brief, {"c": files._replace(config=config)}, b"s", "j", texts=str(corpus))
    assert "put the very same files there" in found.lacking["c"]
    assert found.verdict.candidates[0].verdict == "refused"


def round_of(adapted: jobs.Result, base: BaseModel) -> wire.RoundBrief:
    """A round in which an adapter stands alone."""
    brought = events.Candidate(
        candidate_id="c",
        rival="evolver",
        manifest="0" * 64,
        writer="a",
        weights_sha256=adapted.weights_sha256,
        bytes=1,
    )
    return wire.RoundBrief(
        round_id="r",
        node_id="n",
        index=0,
        commitment="",
        workload=events.Workload(specialist=workloads.TEXT, base_model=base),
        look=1,
        champion=None,
        candidates=[wire.Brought(candidate=brought, task_id="t", worker_id="a")],
    )


def test_an_adapter_is_weighed_as_other_models_are(
    adapted: jobs.Result, corpus: Path, base: BaseModel
) -> None:
    timing = functools.partial(latency.measure, quiet=contextlib.nullcontext)
    brief = round_of(adapted, base)
    found = trial.trace(brief, {"c": stored(adapted)}, b"s", "j", texts=str(corpus), timing=timing)
    (weighed,) = found.verdict.weighed
    assert weighed.memory_bytes > weighed.bytes
    assert weighed.latency is not None


def test_a_base_that_takes_long_is_no_silence(
    tmp_path: Path, corpus: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "BUSY_SECONDS", 0.001)
    reports: list[jobs.Report] = []
    training.run(job(tmp_path, corpus, base, steps=1), reports.append, lambda: None)
    assert jobs.Busy() in reports
    (started,) = (one for one in reports if isinstance(one, jobs.Started))
    assert jobs.Busy() in reports[reports.index(started) :]
