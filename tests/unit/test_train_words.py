"""What `aghsan train` tells of its way and of its end, and what it refuses before it begins."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.executors.jobs import Result
from cli import main, outcome, terminal

RESULT = Result(
    node_id="stats-bayesian",
    role="reinventor",
    steps=1_200,
    total_steps=1_200,
    loss=0.0026,
    baseline_loss=0.52,
    evidence_rate=0.971,
    params=371,
    bytes=2_000,
    weights_sha256="ab",
    candidate_directory="/there",
    baseline="fixed gain",
    baselines={"trivial": 3.6, "fixed gain": 0.52, "of a wizard": 0.001},
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_counted_from_the_first_sign_and_not_from_step_0() -> None:
    clock = Clock()
    pace = terminal.Pace(clock)
    assert pace.words(5_000, 6_000) == ""
    clock.now += 2
    assert pace.words(5_200, 6_000) == "100 steps/s, 8 s left"
    clock.now += 8
    assert pace.words(6_000, 6_000) == "measuring"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (125, "2 min"), (7_500, "2 h 5 min")]
)
def test_a_length_of_time_is_told_as_people_do(seconds: float, words: str) -> None:
    assert terminal.span(seconds) == words


def test_the_model_stands_among_the_methods_the_best_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.show(outcome.table(RESULT))
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("0.001", "0.192", "of a wizard"),
        ("0.0026", "0.5", "this model · هذا النموذج"),
        ("0.52", "100", "fixed gain (the baseline · خط الأساس)"),
        ("3.6", "692", "trivial"),
    ]


def test_the_outcome_is_told_in_both_languages_with_the_same_figures() -> None:
    english, arabic = outcome.words(RESULT)
    for words in (english, arabic):
        for figure in ("1,200", "0.0026", "0.5 %", "0.52 (fixed gain)", "97.1 %"):
            assert figure in words
    assert "the baseline's" in english
    assert "خط الأساس" in arabic


def refused(out: Path, plot: Path | str) -> tuple[int, str]:
    what = ("--node", "stats-bayesian", "--steps", "1", "--out", str(out), "--plot", str(plot))
    result = CliRunner().invoke(main.aghsan, ["train", *what])
    assert not out.exists()
    return result.exit_code, result.stderr


def test_a_picture_of_an_unknown_kind_is_refused_before_training(tmp_path: Path) -> None:
    code, words = refused(tmp_path / "out", tmp_path / "picture.gif")
    assert code == main.EXIT_USAGE
    assert "ends in neither .png nor .svg" in words


def test_a_picture_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, words = refused(tmp_path / "out", tmp_path / "file" / "picture.png")
    assert code == main.EXIT_FAILED
    assert "Name one by --plot" in words


def test_without_matplotlib_a_picture_is_refused_before_training_with_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    code, words = refused(tmp_path / "out", tmp_path / "picture.png")
    assert code == main.EXIT_FAILED
    assert f"{sys.executable} -m pip install 'matplotlib>=" in words
