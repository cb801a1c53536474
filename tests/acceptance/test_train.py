"""`aghsan train` as its users type it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

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
]
WHAT = ("--node", "stats-bayesian", "--role", "reinventor", "--seed", "11")


def test_it_trains_below_the_baseline_and_says_so_in_the_promised_keys(tmp_path: Path) -> None:
    ran = aghsan("train", *WHAT, "--seconds", "2", "--out", tmp_path / "out", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert list(result) == KEYS
    assert result["loss"] < result["baseline_loss"]
    assert "step" in ran.stderr


def test_interrupted_and_resumed_it_gives_the_weights_of_an_unbroken_run(tmp_path: Path) -> None:
    steps = ("--steps", "2500", "--json")
    unbroken = aghsan("train", *WHAT, *steps, "--out", tmp_path / "unbroken")
    argv = [sys.executable, "-m", "cli.main", "train", *WHAT, *steps, "--out", str(tmp_path / "b")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    while "step" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[1]
    assert process.returncode == 130, words
    resumed = aghsan("train", *WHAT, *steps, "--out", tmp_path / "b", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(unbroken.stdout)


def test_what_cannot_be_trained_is_refused_in_words(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    unknown = aghsan("train", "--node", "stats-bayesan", "--steps", "1", *out)
    assert unknown.returncode == 4
    assert "stats-bayesian" in unknown.stderr
    assert aghsan("train", *WHAT, *out).returncode == 2
    assert aghsan("train", *WHAT, "--steps", "1", "--seconds", "1", *out).returncode == 2
    (tmp_path / "out" / "step-00000001").mkdir(parents=True)
    taken = aghsan("train", *WHAT, "--steps", "1", *out)
    assert taken.returncode == 5
    assert "--resume" in taken.stderr
