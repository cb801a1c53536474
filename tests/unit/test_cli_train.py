"""`aghsan train`: which options go together, and what its table says."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.executors import jobs
from cli import train
from cli.main import EXIT_USAGE

USUAL = ("--node", "opt-convex", "--steps", "1", "--seed", "1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "merge", "--parent", "."), "two to 4 --parent"),
        (("--method", "merge", *("--parent", ".") * 5), "two to 4 --parent"),
        (("--method", "merge", "--role", "evolver"), "a merge is neither rival"),
        (("--method", "merge", "--base", "."), "made of what --parent names"),
        (("--parent", ".", "--parent", "."), "goes with --method merge"),
        (("--role", "reinventor", "--base", "."), "a reinventor starts from nothing"),
        (("--specialist", "opt-convex", "--corpus", "."), "is for the specialist text"),
        (("--specialist", "text"), "name them by --corpus DIR"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_anything_is_made(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(train.train, [*USUAL, "--out", str(out), *options])
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr
    assert not out.exists()


def result(**more: object) -> jobs.Result:
    values: dict[str, object] = {
        "node_id": "opt-convex",
        "role": "merge",
        "steps": 1,
        "total_steps": 1,
        "loss": 0.1,
        "baseline_loss": 0.5,
        "evidence_rate": 0.25,
        "params": 1,
        "bytes": 7,
        "weights_sha256": "0" * 64,
        "candidate_directory": "there",
        "method": "merge",
        "method_reason": "it was asked for",
        **more,
    }
    return jobs.Result(**values)  # type: ignore[arg-type]


def test_the_table_says_the_method_and_why_and_shows_all_that_a_merge_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    soup = result(made="soup", method_reason="of two", weights_sha256="5" * 64)
    train._show(result(made="student", threads=3, others=[soup]), 7, as_json=False)
    shown = capsys.readouterr().out
    for words in (
        "merge: it was asked for",
        "merge: of two",
        "(soup)",
        "(student)",
        "5" * 64,
        "threads: 3",
    ):
        assert words in shown


def test_programs_are_told_the_method_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    train._show(result(method="full", method_reason="no champion reigns yet"), 7, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["method_reason"]) == ("full", "no champion reigns yet")


def test_the_table_compares_a_quantized_model_with_what_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {"float_loss": 0.0625, "float_bytes": 4_321, "float_latency_ms": 0.51}
    small = result(method="quantize", latency_ms=0.26, **before)
    train._show(small, 7, as_json=False)
    model, was, row_before, row = [
        one
        for one in capsys.readouterr().out.splitlines()
        if any(word in one for word in ("model  ", "in float32", "this model", "the same"))
    ]
    assert "7 bytes, 0.26 ms an answer" in model
    assert "error 0.0625, 4,321 bytes, 0.51 ms an answer" in was
    assert "int8: 0.26 ms" in row
    assert "float32: 0.51 ms" in row_before


def test_a_merge_that_was_stopped_goes_on_by_the_command_that_is_told() -> None:
    job = jobs.Job(
        task_id="train",
        node_id="opt-convex",
        specialist="opt-convex",
        role="merge",
        method="merge",
        seed=7,
        directory="out",
        steps=9,
        parents=["a", "b"],
    )
    what = ("--specialist", "opt-convex", "--set", "rows=32.0")
    words = train._words_of(jobs.Stopped(directory="out", step=3), job, None, what)
    assert "--node opt-convex --specialist opt-convex --set rows=32.0 --method" in words
    assert "--method merge --seed 7 --steps 9 --parent a --parent b --out out --resume" in words
    assert "--role" not in words
