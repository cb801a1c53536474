"""A folder of text becomes the work of a node, from the command to a champion, and back."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import corpora
from tests import texts
from tests.acceptance.stack import Stack, aghsan


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(tmp_path_factory.mktemp("corpus"), "--no-orchestrator", "--agents", "1")
    try:
        yield one.start()
    finally:
        one.close()


def grown(stack: Stack, name: str) -> str:
    body = {"parent_id": "root-math", "name": name}
    return str(stack.ask("/graph/expand", body)["node"]["node_id"])


def test_a_folder_becomes_the_work_of_a_node_whose_hidden_texts_no_agent_ever_has(
    stack: Stack, tmp_path: Path
) -> None:
    node = grown(stack, "اللغة")
    folder = texts.write(tmp_path / "نصوص", 80)
    (folder / "تالف.txt").write_bytes(b"\xff" * 300)
    added = aghsan("corpus", "add", node, folder, "--api", stack.http, "--json")
    assert added.returncode == 0, added.stderr
    assert "is not UTF-8" in added.stderr
    told = json.loads(added.stdout)
    assert told["workload"]["corpus"]["name"] == "نصوص"
    assert told["baseline"] < told["trivial"]

    task = stack.completed(stack.enqueue(node, budget_seconds=16))
    assert task["workload"]["specialist"] == "text"
    rivals = task["result"]["metrics"]["rivals"]
    assert (rivals["evolver"]["unit"], rivals["reinventor"]["family"]) == ("bits per byte", "gates")
    decided = stack.decided(node)
    assert decided["verdict"] == "promote", decided
    champion = stack.ask(f"/nodes/{node}")["node"]["champion"]
    assert champion["error"] < told["trivial"]

    split = corpora.split(texts.document(number).encode() for number in range(80))
    held = b"".join(path.read_bytes() for path in stack.data.glob("agents/*/corpora/*/*.txt"))
    assert split.training[0] in held
    assert not any(document in held for document in split.hidden)

    listed = aghsan("corpus", "ls", "--api", stack.http)
    assert node in listed.stdout
    assert "نصوص" in listed.stdout
    shown = aghsan("corpus", "show", node, "--api", stack.http)
    assert f"{told['workload']['corpus']['parts']['hidden']['documents']} documents" in shown.stdout
    rejudged = ("audit", "--rejudge", decided["round_id"])
    for check in (("audit",), rejudged, ("artifact", "verify")):
        ran = aghsan(*check, "--data", stack.data)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    other = texts.write(tmp_path / "more", 90)
    again = aghsan("corpus", "add", node, other, "--api", stack.http)
    assert again.returncode == 0, again.stderr
    assert "6-gram" in again.stdout
    assert stack.ask(f"/nodes/{node}")["node"]["champion"] is None
    removed = aghsan("corpus", "remove", node, "--api", stack.http)
    assert "trains root-math" in removed.stdout
    assert stack.ask("/corpora")["corpora"] == []


def test_what_is_no_corpus_is_refused_and_changes_nothing(stack: Stack, tmp_path: Path) -> None:
    node = grown(stack, "صغير")
    one = texts.write(tmp_path / "one", 1)
    for argv, code, words in (
        ((node, one), 2, "only 1 document"),
        ((node, tmp_path / "nowhere"), 4, "is no folder"),
        (("no-such-node", one), 4, "no-such-node"),
        ((node, one, "--encoding", "wingdings"), 2, "no encoding is called"),
        ((node, one, "--base", str(tmp_path / "none")), 4, "neither a folder nor"),
    ):
        ran = aghsan("corpus", "add", *argv, "--api", stack.http)
        assert ran.returncode == code, ran.stderr
        assert words in ran.stderr
    assert stack.ask(f"/nodes/{node}")["node"]["workload"]["inherited"]
    refused = aghsan("corpus", "remove", node, "--api", stack.http)
    assert refused.returncode == 5
    assert "no corpus of its own" in refused.stderr
