"""`aghsan task show --follow`: what is new, look by look, until the task ends."""

import contextlib
import io
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cli import client, follow, main, terminal, views
from core import errors
from tests.unit.test_cli_people import DETAIL, Stub, stub

__all__ = ["stub"]

PATH = "/tasks/task-1/telemetry"
RUNNING = DETAIL | {"task_id": "task-1", "status": "running", "result": None}
DONE = DETAIL | {"task_id": "task-1"}


class Turns(dict[Any, Any]):
    """Answers of which a list is given one after another, the last again and again."""

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        if not isinstance(found, list):
            return found
        return found.pop(0) if len(found) > 1 else found[0]


def told(status: str, *steps: int, after: str | None, whole: bool = False) -> tuple[int, Any]:
    points = [{"step": step, "loss": 1 / step, "utilisation": 0.5} for step in steps]
    rivals = [{"rival": "evolver", "total_steps": 90, "points": points}] if steps else []
    said = {"task_id": "task-1", "status": status, "whole": whole, "rivals": rivals, "next": after}
    return 200, {"status": "ok", "telemetry": said}


AWAY = (503, {"detail": "the log does not answer now"})
LOOKS = [
    told("queued", after="0"),
    told("running", 1, 2, after="7", whole=True),
    told("running", 3, after="9"),
    AWAY,
    told("running", 1, 2, 3, 4, after="11", whole=True),
    told("completed", 1, 2, 3, 4, after=None, whole=True),
]


@pytest.fixture
def server(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(follow, "LINE_SECONDS", 0.0)
    stub.answers = Turns()
    stub.says("GET", "/tasks/task-1", {"status": "ok", "task": RUNNING})
    stub.answers["GET", PATH] = list(LOOKS)
    return stub


def run(server: Stub, *args: str) -> Result:
    given = ["task", "show", "task-1", "--follow", *args]
    return CliRunner().invoke(main.aghsan, given, env={"AGHSAN_API": server.address})


def test_a_task_is_followed_from_where_each_answer_ended_through_an_absence_to_its_end(
    server: Stub,
) -> None:
    ran = run(server)
    assert ran.exit_code == 0
    asked = [query.get("after") for _, path, query, _, _ in server.asked if path == PATH]
    # After an absence it begins anew; the last question is that of what is shown at the end.
    assert asked == [None, ["0"], ["7"], ["9"], None, ["11"], None]
    lines = ran.stdout.splitlines()
    assert lines[:5] == [
        "queued",
        "evolver, step 2/90, loss 0.5, device 50 %",
        "evolver, step 3/90, loss 0.3333, device 50 %",
        f"{server.address} cannot answer now: the log does not answer now; trying again",
        "evolver, step 4/90, loss 0.25, device 50 %",
    ]
    assert any(line.split()[:2] == ["evolver", "step"] for line in lines[5:])


def test_what_is_new_goes_on_where_the_last_answer_ended_or_takes_the_place_of_all(
    server: Stub,
) -> None:
    follower = follow.Follower(client.Client(server.address), "task-1")
    held = []
    while not follower.has_ended:
        with contextlib.suppress(errors.Unavailable):
            follower.ask()
        one = follower.rivals.get("evolver", views.RivalTelemetry())
        held.append([point.step for point in one.points])
    assert held == [[], [1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]


def test_json_is_a_line_for_all_that_is_new_and_the_task_at_last(server: Stub) -> None:
    lines = [json.loads(line) for line in run(server, "--json").stdout.splitlines()]
    assert [one.get("next", "task") for one in lines] == ["7", "9", "11", None, "task"]
    assert lines[-1]["task_id"] == "task-1"


def test_a_task_that_is_not_there_and_a_server_that_never_was_are_errors(server: Stub) -> None:
    server.says("GET", "/tasks/task-1", {"detail": "there is no task task-1"}, 404)
    assert run(server).exit_code == main.EXIT_NOT_FOUND
    server.address = "http://127.0.0.1:1"
    assert run(server).exit_code == main.EXIT_UNREACHABLE


def test_on_a_terminal_the_curve_is_drawn_and_drawn_again_until_the_end(
    server: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    on = Console(file=file, width=60, height=24, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", lambda: on)
    answer = follow.follow(client.Client(server.address), "task-1", as_json=False)
    assert answer.read("task", dict[str, Any])["task_id"] == "task-1"
    said = file.getvalue()
    assert "│⠑" in said
    assert "trying again" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")


def test_a_finished_task_is_drawn_on_a_terminal_and_told_in_a_line_in_a_pipe(
    server: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.says("GET", PATH, LOOKS[-1][1])
    given = ["task", "show", "task-1"]
    piped = CliRunner().invoke(main.aghsan, given, env={"AGHSAN_API": server.address}).stdout
    assert "loss evolver" in piped
    assert "│" not in piped
    file = io.StringIO()
    on = Console(file=file, width=80, height=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", lambda: on)
    ran = CliRunner().invoke(main.aghsan, given, env={"AGHSAN_API": server.address})
    assert (ran.exit_code, ran.exception) == (0, None)
    assert "evolver · loss 1 → 0.25" in file.getvalue()
    assert "│⠑" in file.getvalue()
