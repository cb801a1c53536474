"""`aghsan train` as its users type it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from tests import texts
from tests.acceptance.stack import aghsan

KEYS = [
    "node_id",
    "role",
    "steps",
    "loss",
    "baseline_loss",
    "evidence_rate",
    "params",
    "bytes",
    "weights_sha256",
    "method",
    "method_reason",
]
WHAT = ("--node", "stats-bayesian", "--role", "reinventor", "--seed", "11")


def test_it_trains_below_the_baseline_and_says_so_in_the_promised_keys(tmp_path: Path) -> None:
    ran = aghsan("train", *WHAT, "--steps", "100", "--out", tmp_path / "out", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert list(result) == KEYS
    assert result["loss"] < result["baseline_loss"]
    assert "step" in ran.stderr


def test_people_get_a_table_against_the_baseline_in_both_languages_and_a_picture(
    tmp_path: Path,
) -> None:
    picture = tmp_path / "new" / "صورة.svg"
    length = ("--steps", "20", "--out", tmp_path / "out")
    ran = aghsan("train", *WHAT, *length, "--plot", picture)
    assert ran.returncode == 0, ran.stderr
    assert "fixed gain (the baseline · خط الأساس)" in ran.stdout
    assert "بعد 20 خطوة" in ran.stdout
    assert "step 20 of 20" in ran.stderr
    assert f"picture: {picture}" in ran.stderr
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def begin(out: Path, *more: str) -> subprocess.Popen[str]:
    """A training at work, which has saved something."""
    before = set(out.glob("step-*"))
    argv = [sys.executable, "-m", "cli.main", "train", *WHAT, *more, "--out", str(out)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while set(out.glob("step-*")) <= before:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


def test_killed_and_resumed_it_gives_the_weights_of_an_unbroken_run(
    tmp_path: Path,
) -> None:
    length = ("--steps", "800", "--json")
    unbroken = aghsan("train", *WHAT, *length, "--out", tmp_path / "unbroken")
    out = tmp_path / "broken"
    killed = begin(out, *length)
    killed.kill()
    killed.communicate()
    assert not (out / "candidate").exists(), "it ended before it was killed"
    resumed = aghsan("train", *WHAT, *length, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(unbroken.stdout)


def test_interrupted_it_saves_and_says_how_to_go_on_and_its_folder_is_not_taken_over(
    tmp_path: Path,
) -> None:
    process = begin(tmp_path / "out", "--steps", "1000000")
    saved = {path.name for path in (tmp_path / "out").glob("step-*")}
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[1]
    assert process.returncode == 130, words
    command = words.strip().splitlines()[-1]
    what = "--steps 1000000 --out " + str(tmp_path / "out")
    assert command.strip() == f"aghsan train {' '.join(WHAT)} {what} --resume"
    assert {path.name for path in (tmp_path / "out").glob("step-*")} > saved
    other = ("--steps", "7", "--out", str(tmp_path / "out"))
    taken = aghsan("train", *WHAT, *other)
    assert taken.returncode == 5
    assert "--resume" in taken.stderr
    unfit = aghsan("train", *WHAT, *other, "--resume")
    assert unfit.returncode == 5
    assert "another training" in unfit.stderr


def test_nothing_to_resume_is_one_message_and_begins_only_under_a_seed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    what = ("train", "--node", "opt-convex", "--seconds", "0.5", "--out", out, "--resume")
    nothing = aghsan(*what)
    assert nothing.returncode == 4
    assert len(nothing.stderr.splitlines()) == 1
    assert "leave out --resume" in nothing.stderr
    assert not out.exists()
    begun = aghsan(*what, "--seed", "7")
    assert begun.returncode == 0, begun.stderr
    assert "beginning at step 0" in begun.stderr


def test_what_cannot_be_trained_is_refused_in_words(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    unknown = aghsan("train", "--node", "stats-bayesan", "--steps", "1", *out)
    assert unknown.returncode == 4
    assert "stats-bayesian" in unknown.stderr
    assert aghsan("train", *WHAT, *out).returncode == 2
    assert aghsan("train", *WHAT, "--steps", "1", "--seconds", "1", *out).returncode == 2
    based = aghsan("train", *WHAT, "--steps", "1", "--base", tmp_path, *out)
    assert based.returncode == 2
    assert "from nothing" in based.stderr


def test_a_folder_of_text_is_trained_on_and_goes_on_only_with_the_very_same_text(
    tmp_path: Path,
) -> None:
    folder, out = texts.write(tmp_path / "نصوص", 40), tmp_path / "out"
    what = ("train", "--node", "poems", "--role", "reinventor", "--seed", "3", "--corpus", folder)
    ran = aghsan(*what, "--steps", "8", "--out", out, "--plot", tmp_path / "picture.png")
    assert ran.returncode == 0, ran.stderr
    assert "byte 6-gram (the baseline · خط الأساس)" in ran.stdout
    assert "(bits per byte)" in ran.stdout
    assert (tmp_path / "picture.png").is_file()
    assert sorted(path.name for path in (out / "corpus").iterdir()) == [
        "training.txt",
        "validation.txt",
    ]
    again = (*what, "--steps", "8", "--out", out, "--resume", "--json")
    resumed = aghsan(*again)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["weights_sha256"] in ran.stdout
    (folder / "more.txt").write_text(texts.document(77), encoding="utf-8")
    other = aghsan(*again)
    assert other.returncode == 5
    assert "no more those that the training" in other.stderr


def test_a_node_that_was_added_is_trained_with_its_parameters_against_its_own_baseline(
    tmp_path: Path,
) -> None:
    what = ("train", "--node", "mine", "--specialist", "opt-convex", "--seed", "3", "--steps", "2")
    found = [
        json.loads(ran.stdout)
        for more in ((), ("--set", "rows=32"))
        for ran in [aghsan(*what, *more, "--out", tmp_path / f"{len(more)}", "--json")]
    ]
    assert found[0]["node_id"] == found[1]["node_id"] == "mine"
    assert found[0]["baseline_loss"] != found[1]["baseline_loss"]
