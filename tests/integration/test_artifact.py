"""`aghsan artifact ls|get|verify` on a real data directory, stopped and in use."""

import asyncio
from pathlib import Path

import pytest

from cli import main
from core import chunks, platforms
from core.chunks_jetstream import JetStreamChunks
from tests import nats_fixture
from tests.integration.test_replay_audit import (
    TOKEN,
    Built,
    copy_of,
    fingerprint,
    in_use,
    live,
    run,
    told,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A data directory as a stopped `up` leaves it: a task whose candidate became champion."""
    data = tmp_path_factory.mktemp("بيانات و فراغ") / "data"
    with nats_fixture.running(data) as nats:
        one = asyncio.run(live(nats))
    with platforms.DataLock(data / "lock"):
        pass
    return one


async def delete(nats: nats_fixture.Nats, writer: str, digest: str) -> None:
    async with nats.connect("desk") as fleet:
        await JetStreamChunks(fleet).delete(writer, digest)


def test_what_is_needed_is_listed_and_on_request_all_that_was_named(built: Built) -> None:
    before = fingerprint(built.data)
    (one,) = told(run("artifact", "ls", "--data", built.data, "--json"))["artifacts"]
    expected = {"kind": "candidate", "state": "live", "id": "cand", "champion": True}
    assert one.items() >= expected.items()
    assert (one["node_id"], one["task_id"]) == ("root-math", "t1")
    listed = told(run("artifact", "ls", "--all", "--data", built.data, "--json"))["artifacts"]
    assert [(row["kind"], row["state"]) for row in listed] == [
        ("checkpoint", "unneeded"),
        ("candidate", "live"),
    ]
    shown = run("artifact", "ls", "--data", built.data).stdout
    assert "champion" in shown
    assert one["digest"][:12] in shown
    none = run("artifact", "ls", "--kind", "payload", "--data", built.data)
    assert (none.exit_code, none.stdout) == (0, "")
    assert fingerprint(built.data) == before


def test_files_are_saved_by_candidate_by_node_and_by_digest(built: Built, tmp_path: Path) -> None:
    (one,) = told(run("artifact", "ls", "--data", built.data, "--json"))["artifacts"]
    with in_use(built.data):
        for identity in ("cand", "root-math", one["digest"], one["digest"][:8]):
            place = tmp_path / "محفوظ" / identity
            result = run("artifact", "get", identity, place, "--data", built.data, "--json")
            assert told(result)["files"] == {"weights.safetensors": one["bytes"]}
            assert set((place / "weights.safetensors").read_bytes()) == set(b"w")
        again = run("artifact", "get", "cand", place, "--data", built.data)
        assert again.exit_code == main.EXIT_USAGE
        assert "there already" in again.stderr
        unknown = run("artifact", "get", "no-such", tmp_path / "x", "--data", built.data)
        assert unknown.exit_code == main.EXIT_NOT_FOUND
        assert "ls --all" in unknown.stderr
        assert not (tmp_path / "x").exists()


def test_what_is_missing_or_damaged_is_told_and_ends_with_1(built: Built, tmp_path: Path) -> None:
    sound = run("artifact", "verify", "--data", built.data, "--json")
    assert (sound.exit_code, told(sound)["ok"], told(sound)["artifacts"]) == (0, True, 1)
    data = copy_of(built.data, tmp_path)
    with nats_fixture.running(data) as nats:
        asyncio.run(delete(nats, TOKEN, built.chunk))
    for words in ((), ("root-math",)):
        broken = run("artifact", "verify", *words, "--data", data, "--json")
        assert broken.exit_code == 1
        (fault,) = told(broken)["faults"]
        assert built.chunk[:12] in fault
    gone = run("artifact", "get", "cand", tmp_path / "x", "--data", data)
    assert gone.exit_code == main.EXIT_NOT_FOUND
    assert "not whole" in gone.stderr
    with nats_fixture.running(data) as nats:
        (one,) = told(run("artifact", "ls", "--data", built.data, "--json"))["artifacts"]
        asyncio.run(delete(nats, chunks.DESK, one["digest"]))
    (lost,) = told(run("artifact", "ls", "--data", data, "--json"))["artifacts"]
    assert lost["state"] == "lost"
