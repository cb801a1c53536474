"""What both READMEs tell people to type works as written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.stack import Stack

CHECKOUT = Path(__file__).parents[2]
READMES = ("README.md", "README.ar.md")
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(readme: str) -> list[str]:
    """The lines a reader is told to type, in order."""
    text = (CHECKOUT / readme).read_text("utf-8")
    lines = "".join(_BLOCK.findall(text)).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A server with what the commands ask about: a champion, and completed tasks."""
    one = Stack(tmp_path_factory.mktemp("readme"), "--no-orchestrator")
    try:
        one.start("--agents", "1")
        one.completed(one.enqueue("stats-bayesian", budget_seconds=2))
        one.decided("stats-bayesian")
        yield one
    finally:
        one.close()


def test_each_command_of_a_readme_works_as_written(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(stack.data)
    told = [line for line in commands(READMES[0]) if line.startswith(".venv/bin/aghsan ")]
    assert len(told) >= 8
    environment = {**os.environ, "AGHSAN_API": stack.http}
    decided = stack.decided("stats-bayesian")["round_id"]
    for line in told:
        words = [decided if word == "ROUND" else word for word in shlex.split(line)[1:]]
        argv = [sys.executable, "-m", "cli.main", *words]
        ran = subprocess.run(
            argv,
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
        assert ran.stdout.strip(), line


def test_both_readmes_tell_people_to_type_the_same() -> None:
    english, arabic = map(commands, READMES)
    assert english == arabic


@pytest.mark.parametrize("readme", READMES)
def test_each_verb_of_dev_py_in_a_readme_has_its_help_and_its_options(readme: str) -> None:
    told = [shlex.split(line) for line in commands(readme) if line.startswith("python3 dev.py ")]
    assert told
    for argv in told:
        ran = subprocess.run(
            [sys.executable, "dev.py", argv[2], "--help"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        for option in (word for word in argv[3:] if word.startswith("--")):
            assert option in ran.stdout, f"{argv[2]} --help does not tell of {option}"


def test_the_files_that_a_readme_points_to_exist() -> None:
    for readme in READMES:
        text = (CHECKOUT / readme).read_text("utf-8")
        for target in re.findall(r"\]\(([\w./]+)\)", text):
            assert (CHECKOUT / target).exists(), f"{readme} points to {target}"
