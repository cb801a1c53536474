"""The commands by name: how they are found, and what errors become."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import main
from core import errors


def test_the_help_says_of_worker_that_it_pauses_and_resumes_too() -> None:
    shown = CliRunner().invoke(main.aghsan, ["--help"]).stdout
    assert "List, show, pause and resume workers." in shown


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_of_the_table_exists_and_has_help(name: str) -> None:
    result = CliRunner().invoke(main.aghsan, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"Usage: aghsan {name}" in result.stdout


def test_the_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys\n"
        "from cli import main\n"
        "try:\n    main.aghsan.main(['--help'], 'aghsan')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(*sorted(m for m in sys.modules if m.startswith(('cli.', 'rich', 'msgspec'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, imported = done.stdout.splitlines()
    assert imported == "cli.main cli.options"
    for name in main.COMMANDS:
        assert any(line.split()[:1] == [name] for line in shown)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["enqeue", "t"], "did you mean enqueue?"),
        (["task", "sow", "t1"], "did you mean show?"),
        (["xyzzy"], "there are up, agent"),
        (["task", "ls", "--limti", "3"], "--limit"),
        (["enqueue"], "TOPIC"),
        (["task", "ls", "--limit", "many"], "many"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_slip_ends_2_with_what_was_probably_meant(args: list[str], hint: str) -> None:
    result = CliRunner().invoke(main.aghsan, args)
    assert result.exit_code == main.EXIT_USAGE
    assert hint in result.stderr


def options_of_numbers(group: click.Group) -> Iterator[tuple[click.Command, str]]:
    """Every option that takes a float, with its command."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from options_of_numbers(command)
        for param in command.params:
            if isinstance(param.type, click.FloatRange | type(click.FLOAT)):
                yield command, param.opts[0]


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("up", ["--data="]),
        ("up", ["--ready-file="]),
        ("agent", ["--directory="]),
        ("train", ["--out="]),
        ("replay", ["--data="]),
        ("audit", ["--data="]),
        ("backup", ["a.tar", "--data="]),
        ("backup", [""]),
        ("restore", ["a.tar", "--data="]),
        ("restore", [""]),
    ],
)
def test_a_place_without_a_name_is_not_the_directory_at_hand(command: str, args: list[str]) -> None:
    one = main.aghsan.get_command(click.Context(main.aghsan), command)
    assert one is not None
    with pytest.raises(click.BadParameter, match="it is empty"):
        one.make_context(command, args)


@pytest.mark.parametrize(
    "args",
    [
        ["up", "--port", "0", "--data"],
        ["agent", "--directory"],
        ["train", "--node", "stats-bayesian", "--steps", "1", "--out"],
    ],
)
def test_a_folder_that_cannot_be_made_is_told_with_why_and_what_to_do(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main.aghsan, [*args, str(tmp_path / "file" / "folder")])
    assert result.exit_code == main.EXIT_FAILED
    assert "folder cannot be used: Not a directory. Name one by --" in result.stderr


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "soon"])
def test_no_option_takes_a_number_that_is_none(value: str) -> None:
    found = list(options_of_numbers(main.aghsan))
    assert len(found) >= 12
    for command, option in found:
        with pytest.raises(click.BadParameter) as refused:
            command.make_context(command.name, [f"{option}={value}"])
        assert refused.value.exit_code == main.EXIT_USAGE
        assert option in refused.value.format_message()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Invalid("words"), 2),
        (errors.NotFound("words"), 4),
        (errors.StaleAttempt("words"), 5),
        (errors.NotOwner("words"), 1),
        (errors.LogUnavailable("words"), 69),
        (errors.DataDirectoryError("words"), 1),
        (errors.DirectoryInUse("words"), 5),
        (PermissionError(13, "not allowed", "/a/file"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_ends_with_its_code_and_words_instead_of_a_trace(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(main.Commands, "get_command", lambda *_: failing)
    result = CliRunner().invoke(main.aghsan, ["up"])
    assert result.exit_code == code
    assert (
        str(error.args[0] if len(error.args) == 1 else "not allowed") in result.stderr
        or code == 130
    )


def test_a_defect_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main.Commands, "get_command", lambda *_: broken)
    assert isinstance(CliRunner().invoke(main.aghsan, ["up"]).exception, ZeroDivisionError)


def test_the_program_starts_says_its_version_and_knows_its_name() -> None:
    argv = [sys.executable, "-m", "cli.main", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("aghsan")


def test_output_becomes_utf8_and_no_character_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    main.configure_stdio()
    print("شجرة \ud800", flush=True)  # noqa: T201
    assert raw.getvalue().decode() == "شجرة \\ud800\n"


def test_a_locale_that_asks_for_less_than_utf8_leaves_names_of_files_as_they_are(
    tmp_path: Path,
) -> None:
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, "-m", "cli.main", "replay", "--data", str(tmp_path / "بيانات")]
    done = subprocess.run(argv, capture_output=True, env=os.environ | poor)
    assert f"There is no data directory {tmp_path / 'بيانات'}." in done.stderr.decode()


def test_a_terminal_that_asks_for_less_than_utf8_is_still_told_in_arabic() -> None:
    poor = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "ascii:strict"}
    argv = [sys.executable, "-m", "cli.main", "الرياضيات"]
    done = subprocess.run(argv, capture_output=True, env=poor)
    assert "No such command 'الرياضيات'" in done.stderr.decode()
