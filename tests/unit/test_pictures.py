"""Pictures: what the model says stands beside the truth, for every specialist."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from agent.specialists import addition, evaluation, filtering, pictures, registry
from agent.specialists.base import Cases, Role, Specialist
from core import specializations
from tests.unit.test_addition import Calculator

torch.set_num_threads(1)  # as where models are trained and judged

ROLES: tuple[Role, ...] = ("evolver", "reinventor")
COUNT = 21


def untrained(one: Specialist, role: Role) -> torch.nn.Module:
    torch.manual_seed(3)
    return one.build(one.families(role)[0])


def median_case(one: Specialist, module: torch.nn.Module, cases: Cases) -> int:
    return int(evaluation.case_errors(one, module, cases).argsort(stable=True)[COUNT // 2])


def line(figure: Figure, panel: int, label: str) -> torch.Tensor:
    """What a line of a panel shows, by its name in the legend of the first one."""
    names = [each.get_label() for each in figure.axes[0].lines]
    return torch.as_tensor(figure.axes[panel].lines[names.index(label)].get_ydata())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [seed.node_id for seed in specializations.SEEDS])
def test_every_specialist_has_a_picture_of_its_own(name: str, role: Role) -> None:
    one = registry.get(name)
    figure = pictures.draw(one, untrained(one, role), one.cases(1, COUNT), "a title")
    assert name in pictures._KINDS
    assert figure.get_suptitle() == "a title"
    told = " ".join(figure.axes[0].get_legend_handles_labels()[1])
    assert ("right: 0 wrong: 21" if name == "root-math" else "model") in told


def test_a_flow_shows_what_the_model_says_and_the_truth_of_the_same_case() -> None:
    one = registry.get("physics-fluid")
    module, cases = untrained(one, "reinventor"), one.cases(1, COUNT)
    at = median_case(one, module, cases)
    figure = pictures.draw(one, module, cases, "")
    with torch.inference_mode():
        said = module(cases["inputs"].float())[at]
    assert torch.allclose(line(figure, 1, "model"), said)
    assert torch.equal(line(figure, 1, "truth at the end"), cases["truth"][at])


def test_sums_that_are_wrong_come_first_with_what_is_right() -> None:
    one = addition.Addition()
    cases = one.cases(1, COUNT)
    a1, a0, _, b1, b0, _ = cases["prompt"][7].tolist()
    a, b = 10 * a1 + a0, 10 * b1 + b0
    figure = pictures.draw(one, Calculator((a, b)), cases, "")
    told = [text.get_text() for text in figure.axes[1].texts]
    assert told[0] == f"{a} + {b} = {a + b + 1}, not {a + b}"
    assert len(told) == pictures.SUMS_LISTED
    assert not any("not" in text for text in told[1:])


def test_a_specialist_without_a_picture_of_its_own_shows_its_errors() -> None:
    one = filtering.Filtering()
    one.name = "another"
    figure = pictures.draw(one, untrained(one, "reinventor"), one.cases(1, COUNT), "")
    labels = [each.get_label() for each in figure.axes[0].lines]
    assert {"trivial", one.baseline_of_record, "model"} <= set(labels)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_model_gives_the_same_file_of_the_kind_asked_for(
    tmp_path: Path, suffix: str
) -> None:
    one = registry.get("stats-bayesian")
    made = [tmp_path / f"{at}{suffix}" for at in range(2)]
    for path in made:
        pictures.save(path, one, untrained(one, "reinventor"), one.cases(1, COUNT), "a title")
    first, second = (path.read_bytes() for path in made)
    assert first == second
    if suffix == ".svg":
        assert ElementTree.fromstring(first).tag.endswith("svg")
        return
    with Image.open(made[0]) as image:
        assert image.size == tuple(pictures.DOTS_PER_INCH * each for each in pictures.SIZE_INCHES)
