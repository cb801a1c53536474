"""Students and merges: what several models make of one another, by real training."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from agent import checkpoints
from agent.executors import device, distilling, jobs, merging, methods, pace, standstill, training
from agent.specialists import ensembles, evaluation, forms, registry
from agent.specialists.base import Batch, Config
from core import errors

NODE = "opt-convex"
STEPS = 8


def job(directory: Path, **more: Any) -> jobs.Job:
    values: dict[str, Any] = {
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
    return jobs.Job(**values)


def ignore(_: jobs.Report) -> None:
    """Reports that a test does not ask about."""


def finished(one: jobs.Job) -> jobs.Result:
    result = training.run(one, ignore, lambda: None)
    assert isinstance(result, jobs.Result)
    return result


def weights(folder: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(folder) / checkpoints.WEIGHTS_FILE)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> str:
    device.prepare()
    return finished(job(tmp_path_factory.mktemp("champion"))).candidate_directory


@pytest.fixture(scope="module")
def evolved(champion: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("evolved")
    return finished(job(directory, base=champion, seed=8)).candidate_directory


@pytest.fixture(scope="module")
def small(champion: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("small")
    return finished(job(directory, role="reinventor")).candidate_directory


def test_a_student_is_smaller_and_learns_from_its_teacher_beside_the_truth(
    champion: str, small: str, tmp_path: Path
) -> None:
    asked = job(tmp_path, role="reinventor", method="distill", parents=[champion])
    student = finished(asked)
    assert (student.method, student.family) == ("distill", "learned-steps")
    assert sum(tensor.numel() for tensor in weights(champion).values()) > student.params
    # Trained on the same batches from the same start, without a teacher.
    alone, taught = weights(small), weights(student.candidate_directory)
    assert alone.keys() == taught.keys()
    assert not any(torch.equal(alone[name], taught[name]) for name in alone)


def test_a_student_that_is_cut_goes_on_to_the_same_weights(champion: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"role": "reinventor", "method": "distill", "parents": [champion]}
    unbroken = finished(job(tmp_path / "unbroken", **more))
    looks = iter([None] * 5 + [jobs.Stop(number=0, save=True)])
    cut = training.run(job(tmp_path / "cut", **more), ignore, lambda: next(looks))
    assert isinstance(cut, jobs.Stopped)
    assert cut.step == 5
    others = job(tmp_path / "cut", resume=True, **{**more, "parents": [champion, champion]})
    with pytest.raises(errors.ArtifactError, match="another training"):
        finished(others)
    resumed = finished(job(tmp_path / "cut", resume=True, **more))
    assert resumed.resumed_from == 5
    assert resumed.weights_sha256 == unbroken.weights_sha256


def test_a_students_steps_are_counted_by_taught_and_untaught_ones_alike(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_step_seconds", pace.Times())
    seconds = iter([0.01, 0.03])  # without its teacher, and with it
    monkeypatch.setattr(pace, "time_steps", lambda *_: next(seconds))
    told: list[jobs.Report] = []
    asked = job(
        tmp_path, role="reinventor", method="distill", parents=[champion], steps=0, budget_seconds=9
    )
    training.run(asked, told.append, lambda: jobs.Stop(number=0, save=False))
    (started,) = [one for one in told if isinstance(one, jobs.Started)]
    assert 9 / 0.03 < started.total_steps <= 9 / 0.02


def test_a_lesson_is_half_the_teachers_at_first_and_the_truth_alone_from_the_middle_on(
    champion: str,
) -> None:
    specialist = registry.get(NODE)
    teacher = distilling.read(specialist, Path(champion))
    lesson = distilling.Lesson(specialist, [teacher], [1.0], torch.device("cpu"))
    module, batch = specialist.build(lesson.student), specialist.train_batch(1, 1)
    truth = specialist.loss(module, batch)
    with torch.no_grad():
        taught = specialist.outputs(teacher.module, batch)
    distance = specialist.distance(specialist.outputs(module, batch), taught)
    torch.testing.assert_close(lesson.loss(module, batch, 0.0), (truth + distance) / 2)
    torch.testing.assert_close(lesson.loss(module, batch, 0.25), 0.75 * truth + 0.25 * distance)
    assert torch.equal(lesson.loss(module, batch, 0.5), truth)
    assert all(weight.grad is None for weight in teacher.module.parameters())


def test_an_ensemble_says_what_its_models_say_on_average_the_better_ones_more(
    champion: str, evolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specialist = registry.get(NODE)
    models = [distilling.read(specialist, Path(folder)) for folder in (champion, evolved)]
    known = {id(models[0].module): 0.3, id(models[1].module): 0.1}
    errs(monkeypatch, lambda module: known[id(module)])
    trust = distilling.trust(specialist, models, {})
    lesson = distilling.Lesson(specialist, models, trust, torch.device("cpu"))
    said: list[torch.Tensor] = []

    def distance(_: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        said.append(taught)
        return taught.sum()

    monkeypatch.setattr(specialist, "distance", distance)
    batch: Batch = specialist.train_batch(1, 1)
    lesson.loss(specialist.build(lesson.student), batch, 0.0)
    with torch.no_grad():
        one, other = (specialist.outputs(model.module, batch) for model in models)
    torch.testing.assert_close(said[0], 0.25 * one + 0.75 * other)


def test_a_merge_makes_a_soup_of_like_models_and_a_student_of_all(
    champion: str, evolved: str, small: str, tmp_path: Path
) -> None:
    parents = [champion, small, evolved]
    better = finished(job(tmp_path, role="merge", method="merge", parents=parents))
    made = by_name(better)
    assert {"soup", "student"} <= set(made)
    assert better.loss == min(one.loss for one in made.values())
    soup, student = made["soup"], made["student"]
    assert (soup.family, student.family) == ("lista", "learned-steps")
    assert (soup.steps, student.steps) == (0, STEPS)
    assert soup.method_reason.count(" x ") == 2
    assert "3 models" in student.method_reason
    first, last = weights(champion), weights(evolved)
    for name, tensor in weights(soup.candidate_directory).items():
        low, high = torch.minimum(first[name], last[name]), torch.maximum(first[name], last[name])
        assert bool(((tensor >= low - 1e-6) & (tensor <= high + 1e-6)).all()), name
        assert not torch.equal(tensor, first[name])
        assert not torch.equal(tensor, last[name])
    assert measured(soup).loss == soup.loss


def by_name(result: jobs.Result) -> dict[str, jobs.Result]:
    return {one.made: one for one in (result, *result.others)}


def measured(result: jobs.Result) -> evaluation.Evaluation:
    """What was stored, loaded again and measured as it was."""
    specialist = registry.get(result.node_id)
    module = forms.build(specialist, config_of(result.candidate_directory))
    weights_file = Path(result.candidate_directory) / checkpoints.WEIGHTS_FILE
    checkpoints.load_weights(weights_file, module)
    cases = evaluation.validation_cases(specialist, result.node_id)
    return evaluation.evaluate(specialist, module, cases)


def config_of(folder: str) -> Config:
    return checkpoints.read_config(Path(folder) / checkpoints.CONFIG_FILE)


def errs(monkeypatch: pytest.MonkeyPatch, of: Callable[[torch.nn.Module], float]) -> None:
    """Let models err so, when they are chosen among."""
    monkeypatch.setattr(distilling, "error_of", lambda _, module, __: of(module))


def if_together(error: float, single: float = 0.5) -> Callable[[torch.nn.Module], float]:
    return lambda module: error if isinstance(module, ensembles.Ensemble) else single


def merged(tmp_path: Path, *parents: str) -> dict[str, jobs.Result]:
    whole = job(tmp_path, role="merge", method="merge", parents=list(parents))
    return by_name(finished(whole))


def test_a_merge_makes_an_ensemble_that_is_stored_and_measured_like_any_model(
    champion: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errs(monkeypatch, if_together(0.25))
    made = merged(tmp_path, champion, small)
    ensemble = made["ensemble"]
    config = config_of(ensemble.candidate_directory)
    assert (ensemble.family, config.family) == ("ensemble", "ensemble")
    assert {one.family for one in config.members} == {"lista", "learned-steps"}
    assert ensemble.params == sum(t.numel() for t in weights(ensemble.candidate_directory).values())
    assert measured(ensemble).loss == ensemble.loss
    assert ensemble.method_reason.startswith("an ensemble, the mean of what they say: ")


def test_an_ensemble_that_does_not_help_is_left_out(
    champion: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errs(monkeypatch, if_together(0.5))
    made = merged(tmp_path, champion, small)
    assert "ensemble" not in made
    assert "an ensemble errs by 0.5 on validation cases, not less" in made["student"].method_reason


def test_the_members_of_an_ensemble_are_members_beside_a_third_and_never_more_than_four(
    champion: str, evolved: str, small: str
) -> None:
    specialist = registry.get(NODE)
    one, two, three = (distilling.read(specialist, Path(f)) for f in (champion, evolved, small))
    pair = merging.ensemble_of(specialist, [one, two], [0.5, 0.5])
    assert pair is not None
    whole = merging.ensemble_of(specialist, [pair, three], [0.75, 0.25])
    assert whole is not None
    assert isinstance(whole.module, ensembles.Ensemble)
    assert whole.module.shares() == pytest.approx([0.375, 0.375, 0.25])
    assert whole.config.members == (one.config, two.config, three.config)
    inputs = specialist.probe()
    expected = 0.75 * pair.module(*inputs) + 0.25 * three.module(*inputs)
    torch.testing.assert_close(whole.module(*inputs), expected)
    assert merging.ensemble_of(specialist, [whole, pair], [0.5, 0.5]) is None


LINEAR: dict[str, Any] = {"node_id": "math-optimization", "specialist": "math-optimization"}
"""A node whose evolvers are mostly linear layers."""


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    device.prepare()
    first = finished(job(tmp_path_factory.mktemp("first"), **LINEAR)).candidate_directory
    folder = tmp_path_factory.mktemp("second")
    second = finished(job(folder, base=first, seed=8, **LINEAR)).candidate_directory
    return [first, second]


def merged_linear(tmp_path: Path, parents: list[str]) -> dict[str, jobs.Result]:
    whole = job(tmp_path, role="merge", method="merge", parents=parents, **LINEAR)
    return by_name(finished(whole))


def test_the_best_that_becomes_smaller_is_quantized_too(linear: list[str], tmp_path: Path) -> None:
    made = merged_linear(tmp_path, linear)
    quantized = made["quantized"]
    assert config_of(quantized.candidate_directory).form == forms.INT8
    assert quantized.float_bytes is not None
    assert quantized.bytes < merging.QUANTIZED_BYTES_MAX * quantized.float_bytes
    assert measured(quantized).loss == quantized.loss
    # Of what was made and the first of the parents, the best with linear layers worth it.
    assert quantized.float_loss is not None
    assert quantized.float_loss <= made["soup"].loss


def test_the_student_of_a_merge_goes_on_from_the_most_trusted_small_model_in_it(
    champion: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = finished(job(tmp_path / "o", role="reinventor", seed=9)).candidate_directory
    specialist = registry.get(NODE)
    models = [distilling.read(specialist, Path(one)) for one in (champion, small, other)]
    start = distilling.beginning(specialist, models, [0.5, 0.2, 0.3])
    assert start is models[2]
    assert distilling.beginning(specialist, models[1:2], [1.0]) is None
    assert distilling.beginning(specialist, [models[0], models[0]], [0.5, 0.5]) is None
    errs(monkeypatch, lambda _: 0.5)
    monkeypatch.setattr(training, "learning_rate", lambda *_: 0.0)
    still = merged(tmp_path / "m", champion, small)["student"]
    assert still.weights_sha256 == models[1].sha256


def test_where_a_node_allows_no_ensemble_the_merge_goes_on_without(
    linear: list[str], tmp_path: Path
) -> None:
    made = merged_linear(tmp_path, linear)
    assert "ensemble" not in made
    assert "there is no ensemble: math-optimization allows" in made["student"].method_reason


def test_an_int8_form_that_saves_too_few_bytes_or_errs_more_than_any_parent_is_left_out(
    linear: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "QUANTIZED_BYTES_MAX", 0.0)
    made = merged_linear(tmp_path / "few", linear)
    assert "quantized" not in made
    assert "none of them has fewer bytes by a tenth" in made["student"].method_reason
    assert not (tmp_path / "few" / "quantized").exists()
    monkeypatch.undo()
    real = forms.in_int8

    def spoiled(module: torch.nn.Module) -> torch.nn.Module:
        small = real(module)
        for layer in small.modules():
            if isinstance(layer, forms.Int8Linear):
                layer.scale.data.mul_(-3)
        return small

    monkeypatch.setattr(forms, "in_int8", spoiled)
    made = merged_linear(tmp_path / "worse", linear)
    assert "quantized" not in made
    assert "quantized, the " in made["student"].method_reason
    assert not (tmp_path / "worse" / "quantized").exists()


def test_an_evolver_goes_on_with_every_member_of_an_ensemble_and_can_be_cut(
    champion: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        errs(patched, if_together(0.25))
        ensemble = merged(tmp_path / "m", champion, small)["ensemble"].candidate_directory
    unbroken = finished(job(tmp_path / "unbroken", base=ensemble))
    before, after = weights(ensemble), weights(unbroken.candidate_directory)
    assert (unbroken.family, unbroken.method) == ("ensemble", "full")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    looks = iter([None] * 5 + [jobs.Stop(number=0, save=True)])
    cut = training.run(job(tmp_path / "cut", base=ensemble), ignore, lambda: next(looks))
    assert isinstance(cut, jobs.Stopped)
    resumed = finished(job(tmp_path / "cut", base=ensemble, resume=True))
    assert resumed.resumed_from == 5
    assert resumed.weights_sha256 == unbroken.weights_sha256


def test_an_ensemble_teaches_a_student_and_is_merged_again(
    champion: str, evolved: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errs(monkeypatch, if_together(0.25))
    ensemble = merged(tmp_path / "m", champion, small)["ensemble"].candidate_directory
    taught = job(tmp_path / "s", role="reinventor", method="distill", parents=[ensemble])
    assert finished(taught).family == "learned-steps"
    errs(monkeypatch, lambda module: 1 / sum(w.numel() for w in module.parameters()))
    again = merged(tmp_path / "again", ensemble, evolved)["ensemble"]
    assert len(config_of(again.candidate_directory).members) == 3


def test_what_has_nothing_in_common_is_no_soup(champion: str, small: str, tmp_path: Path) -> None:
    made = by_name(finished(job(tmp_path, parents=[champion, small], role="merge", method="auto")))
    assert "soup" not in made
    assert "no two of them have one architecture" in made["student"].method_reason


def test_a_soup_that_errs_more_than_the_worst_of_its_models_is_left_out(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = finished(job(tmp_path / "other", seed=9)).candidate_directory
    rising = itertools.count(1)
    errs(monkeypatch, lambda _: float(next(rising)))
    made = merged(tmp_path / "m", champion, other)
    assert "soup" not in made
    words = "errs by 3 on validation cases, more than the worst of them (2)"
    assert words in made["student"].method_reason


def test_a_model_is_stirred_in_only_where_that_helps(
    champion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specialist = registry.get(NODE)
    model = distilling.read(specialist, Path(champion))

    def scaled(name: str, factor: float) -> distilling.Model:
        module = merging.mixed([model, model], [factor, 0.0])
        return distilling.Model(model.config, module, name)

    def error_of(module: torch.nn.Module) -> float:
        """Least where the weights are 1.1 times the champion's."""
        found, own = (float(each.state_dict()["step"][0]) for each in (module, model.module))
        return abs(found / own - 1.1)

    errs(monkeypatch, error_of)
    models = [scaled("spoiled", 3.0), scaled("low", 1.0), scaled("high", 1.25)]
    found = merging.weigh(specialist, models, {})
    soup = merging.stir(specialist, found, {}, merging.soup_of)
    assert soup is not None
    assert [one.sha256 for one in soup.of] == ["low", "high"]
    assert soup.shares == [0.5, 0.5]
    assert soup.error == pytest.approx(0.025, abs=1e-4)


def test_mixing_ends_with_its_time_and_with_what_was_found(
    champion: str, evolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specialist = registry.get(NODE)
    model = distilling.read(specialist, Path(champion))
    asked: list[torch.nn.Module] = []

    def error_of(module: torch.nn.Module) -> float:
        asked.append(module)
        return 1.0

    errs(monkeypatch, error_of)
    models = [merging.Weighed(1.0, model)] * 4
    soup = merging.stir(specialist, models, {}, merging.soup_of, until=-1.0)
    assert soup is not None
    assert (len(asked), soup.shares) == (1, [0.5, 0.5])


def test_what_a_machine_stood_still_is_no_time_of_mixing(
    champion: str, evolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distilling.read(registry.get(NODE), Path(champion))
    errs(monkeypatch, lambda module: 1.0)
    models = [merging.Weighed(1.0, model)] * 2
    mixed: list[Sequence[float]] = []

    def mix(of: Sequence[distilling.Model], shares: Sequence[float]) -> distilling.Model:
        mixed.append(shares)
        return model

    monkeypatch.setattr(standstill._Total, "seconds", 1e9)
    merging.stir(registry.get(NODE), models, {}, mix, until=standstill.now() + 1e6)
    assert len(mixed) == len(merging.SHARES)


def test_a_merge_that_is_asked_to_stop_while_it_trains_saves_where_it_stands(
    champion: str, evolved: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"role": "merge", "method": "merge", "parents": [champion, evolved]}
    whole = finished(job(tmp_path / "whole", **more))
    mixed = 2 * len(merging.SHARES)
    looks = itertools.chain([None] * (mixed + 3), itertools.repeat(_stop()))
    cut = training.run(job(tmp_path / "cut", **more), ignore, lambda: next(looks))
    assert isinstance(cut, jobs.Stopped)
    assert cut.step == 3
    again = finished(job(tmp_path / "cut", resume=True, **more))
    assert {one.weights_sha256 for one in (again, *again.others)} == {
        one.weights_sha256 for one in (whole, *whole.others)
    }


def _stop() -> jobs.Stop:
    return jobs.Stop(number=0, save=True)


def test_a_merge_of_one_model_is_refused(champion: str, tmp_path: Path) -> None:
    with pytest.raises(errors.TrainingError, match="two models or more, and this task names 1"):
        finished(job(tmp_path, role="merge", method="merge", parents=[champion]))


@pytest.mark.parametrize(
    ("asked", "chosen", "words"),
    [
        (("distill", "reinventor", True, False), "full", "no champion reigns yet that could teach"),
        (("distill", "reinventor", True, True), "distill", "asked for"),
        (("distill", "evolver", True, True), "full", "starts from the champion itself"),
        (("auto", "evolver", True), "full", "goes on from the champion"),
        (("auto", "evolver", False), "full", "no champion reigns yet"),
        (("auto", "merge", False, True), "merge", "asked for"),
    ],
)
def test_a_method_is_chosen_for_a_reason(asked: Any, chosen: str, words: str) -> None:
    choice = methods.choose(*asked)
    assert choice.method == chosen
    assert words in choice.reason


def test_a_task_that_is_no_merge_merges_nothing() -> None:
    with pytest.raises(errors.TrainingError, match="only a task of the role merge"):
        methods.choose("merge", "evolver", has_base=True)


def test_a_champion_too_large_to_train_whole_is_adapted_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods, "LARGE_PARAMS_MIN", 1_000)
    choice = methods.choose("auto", "evolver", has_base=True)
    large = torch.nn.Linear(64, 64)
    assert methods.prepare(choice, "full", large).method == "full"
    adapted = methods.prepare(choice, "auto", large)
    assert (adapted.method, "4160 weights" in adapted.reason) == ("lora", True)
    assert [name for name, weight in large.named_parameters() if weight.requires_grad] == [
        "parametrizations.weight.0.down",
        "parametrizations.weight.0.up",
    ]
