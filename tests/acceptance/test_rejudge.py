"""A round of a real `up`, judged again by anybody: beside it, after it, restored, and tampered."""

import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from core import blocks
from tests.acceptance.stack import Stack, aghsan

STREAM = "EVENTS"


class Lived(NamedTuple):
    """A data directory at rest, a decided round in it, and what was said of it while `up` ran."""

    data: Path
    round: dict[str, Any]
    beside: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    stack = Stack(tmp_path_factory.mktemp("rejudge"), "--no-orchestrator", "--agents", "1")
    try:
        stack.start()
        stack.completed(stack.enqueue("stats-bayesian", budget_seconds=2))
        decided = stack.decided("stats-bayesian")
        beside = rejudge(stack.data, decided["round_id"])
        assert stack.stop()[0] == 0
        yield Lived(stack.data, decided, beside)
    finally:
        stack.close()


def rejudge(data: Path, *round_ids: str, as_json: bool = True) -> subprocess.CompletedProcess[str]:
    asked = [word for one in round_ids for word in ("--rejudge", one)]
    return aghsan("audit", "--data", data, *asked, *["--json"][: int(as_json)])


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_a_round_is_as_recorded_bit_for_bit_beside_its_server_and_without(lived: Lived) -> None:
    alone = rejudge(lived.data, lived.round["round_id"])
    for done, running in ((lived.beside, True), (alone, False)):
        assert done.returncode == 0, done.stdout + done.stderr
        facts = told(done)
        (one,) = facts["recomputed"]
        assert (facts["ok"], facts["running"], one["outcome"]) == (True, running, "agrees")
        assert (one["environment"], one["differences"]) == ({}, [])
        assert facts["same_verdict"] is True
        assert facts["violations"] == []
        assert one["verdict"] == lived.round["verdict"] == "promote"
    words = rejudge(lived.data, lived.round["round_id"], as_json=False)
    assert "bit for bit" in words.stdout
    assert "كما سُجّل" in words.stdout


def test_a_restored_backup_is_enough_to_judge_again(lived: Lived, tmp_path: Path) -> None:
    file, there = tmp_path / "b.tar", tmp_path / "there"
    assert aghsan("backup", file, "--data", lived.data).returncode == 0
    assert aghsan("restore", file, "--data", there).returncode == 0
    (there / "judge" / "key").unlink()  # not even the judge's key is asked for
    done = rejudge(there, lived.round["round_id"])
    assert (done.returncode, told(done)["ok"]) == (0, True), done.stderr


def forged(data: Path, folder: Path, before: bytes, after: bytes) -> Path:
    """A copy whose verdict says something else, under checksums that are right."""
    copy = shutil.copytree(data, folder / "copy")
    (block,) = (path for path in copy.glob(f"nats/js/jetstream/*/streams/{STREAM}/msgs/*.blk"))
    records = list(blocks.read(block.parent, STREAM))
    (at,) = (i for i, one in enumerate(records) if b'"type":"RoundDecided"' in one.payload)
    assert before in records[at].payload
    payload = records[at].payload.replace(before, after)
    records[at] = records[at]._replace(payload=payload)
    block.write_bytes(blocks.encode(STREAM, int(block.stem), records))
    return copy


def test_a_verdict_that_was_tampered_with_is_found(lived: Lived, tmp_path: Path) -> None:
    round_id = lived.round["round_id"]
    (better,) = (one for one in lived.round["candidates"] if one["verdict"] == "better")
    other = math.nextafter(better["error"], 1.0)
    written = (msgspec.json.encode(one) for one in (better["error"], other))
    data = forged(lived.data, tmp_path, *written)
    done = rejudge(data, round_id)
    assert done.returncode == 1, done.stderr
    (one,) = told(done)["recomputed"]
    (wrong,) = one["differences"]
    assert (one["outcome"], wrong["what"]) == ("differs", "error")
    assert told(done)["same_verdict"] is False
    assert wrong["candidate_id"] == better["candidate_id"]
    assert wrong["found"] == better["error"] != wrong["recorded"]
    words = rejudge(data, round_id, as_json=False)
    assert words.stdout.splitlines()[0].startswith("round")
    assert repr(better["error"]) in words.stdout.splitlines()[1]
    assert "وليس كما سُجّل" in words.stdout


def test_a_secret_that_was_tampered_with_is_found(lived: Lived, tmp_path: Path) -> None:
    secret = lived.round["secret"]
    other = hashlib.sha256(secret.encode()).hexdigest()
    data = forged(lived.data, tmp_path, secret.encode(), other.encode())
    done = rejudge(data, lived.round["round_id"])
    assert done.returncode == 1, done.stderr
    (one,) = told(done)["recomputed"]
    assert one["differences"][0]["what"] == "sha256 of the secret"


def test_a_round_that_nobody_knows_is_not_found(lived: Lived) -> None:
    done = rejudge(lived.data, lived.round["round_id"], "round-x")
    assert (done.returncode, done.stdout) == (4, "")
    assert "no round round-x" in done.stderr
