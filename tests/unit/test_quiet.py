"""Quiet by a shared folder: who asks, who heeds, and what becomes of a hold that nobody ends."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import quiet

WAIT_SECONDS_MAX = 20.0
"""For what is to happen; nothing here is measured against it."""


class Trainings:
    """What an agent pauses, and what became of it."""

    def __init__(self) -> None:
        self.paused, self.resumed = threading.Event(), threading.Event()
        self.pauses = 0
        self._is_paused = False

    def pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.pauses += 1
            self.resumed.clear()
            self.paused.set()

    def resume(self) -> None:
        self._is_paused = False
        self.paused.clear()
        self.resumed.set()


@contextlib.contextmanager
def _heeding(folder: Path, trainings: Trainings) -> Iterator[quiet.Heeder]:
    heeder = quiet.Heeder(folder, trainings.pause, trainings.resume)
    heeder.start()
    try:
        yield heeder
    finally:
        heeder.close()


def _put(folder: Path, name: str, seconds: object) -> Path:
    """A hold of a judge that does not come back."""
    path = folder / f"{name}{quiet.HOLD}"
    path.write_text(json.dumps({"seconds": seconds}))
    return path


def _until(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_SECONDS_MAX
    while not happened():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, an agent gets to look."""
    monkeypatch.setattr(quiet, "HEEDED_SECONDS_MAX", WAIT_SECONDS_MAX)


def test_trainings_stand_still_for_as_long_as_a_hold_is_entered(tmp_path: Path) -> None:
    trainings = Trainings()
    with _heeding(tmp_path, trainings):
        with quiet.Quiet(tmp_path).hold():
            assert trainings.paused.is_set()
        assert trainings.resumed.wait(WAIT_SECONDS_MAX)
    assert trainings.pauses == 1
    assert not list(tmp_path.iterdir())


def test_all_agents_of_the_folder_are_waited_for(tmp_path: Path) -> None:
    child = os.fork()
    if not child:  # another agent: one with a process id of its own, and slower to look
        quiet.LOOK_SECONDS = 1.0
        with _heeding(tmp_path, Trainings()):
            ends = time.monotonic() + WAIT_SECONDS_MAX
            while not (tmp_path / "end").exists() and time.monotonic() < ends:
                time.sleep(0.01)
        os._exit(0)
    trainings = Trainings()
    try:
        with _heeding(tmp_path, trainings):
            _until(lambda: len(list(tmp_path.glob(f"*{quiet.AGENT}"))) == 2)
            with quiet.Quiet(tmp_path).hold():
                assert trainings.paused.is_set()
                (hold,) = tmp_path.glob(f"*{quiet.HOLD}")
                signs = [path.read_text() for path in tmp_path.glob(f"*{quiet.AGENT}")]
                assert signs == [hold.stem] * 2
    finally:
        (tmp_path / "end").write_text("")
        os.waitpid(child, 0)


def test_nobody_is_waited_for_where_nobody_is(tmp_path: Path) -> None:
    (tmp_path / f"{2**22 + 5}{quiet.AGENT}").write_text("")  # one that died
    with quiet.Quiet(tmp_path / "new").hold(), quiet.Quiet(tmp_path).hold():
        pass  # or this would wait, patient as it is here


def test_a_hold_of_a_judge_that_died_is_heeded_once_and_to_its_end_alone(tmp_path: Path) -> None:
    trainings = Trainings()
    _put(tmp_path, "old", 0.1)
    with _heeding(tmp_path, trainings):
        assert trainings.paused.wait(WAIT_SECONDS_MAX)
        assert trainings.resumed.wait(WAIT_SECONDS_MAX)
        with quiet.Quiet(tmp_path).hold():
            assert trainings.paused.is_set()
        assert trainings.resumed.wait(WAIT_SECONDS_MAX)
    assert trainings.pauses == 2


def test_a_hold_of_a_judge_that_died_is_taken_away_and_holds_up_nobody_who_starts(
    tmp_path: Path,
) -> None:
    left = _put(tmp_path, "old", 0.1)
    with _heeding(tmp_path, Trainings()):
        _until(lambda: not left.exists())


@pytest.mark.parametrize(
    ("asked", "given"),
    [(1.5, 1.5), (60.0, 3.0), (1e999, 3.0), (-1, 0.0), (float("nan"), 0.0), ("x", 0.0), (None, 0)],
)
def test_a_hold_is_bounded_whatever_it_says(asked: object, given: float) -> None:
    assert quiet._seconds(json.dumps({"seconds": asked})) == given


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_hold_that_means_nothing_is_over_at_once(text: str) -> None:
    assert quiet._seconds(text) == 0.0


def test_an_agent_that_stops_resumes_at_once_and_heeds_nothing_any_more(tmp_path: Path) -> None:
    trainings = Trainings()
    with _heeding(tmp_path, trainings) as heeder:
        hold = _put(tmp_path, "long", 3.0)
        assert trainings.paused.wait(WAIT_SECONDS_MAX)
        heeder.close()
        assert trainings.resumed.is_set()
        assert hold.exists()
    assert list(tmp_path.iterdir()) == [hold]


def test_trainings_go_on_where_the_pause_itself_fails(tmp_path: Path) -> None:
    trainings = Trainings()

    def fail() -> None:
        trainings.pause()
        raise OSError("no such process")

    heeder = quiet.Heeder(tmp_path, fail, trainings.resume)
    heeder.start()
    _put(tmp_path, "hold", 3.0)
    assert trainings.paused.wait(WAIT_SECONDS_MAX)
    assert trainings.resumed.wait(WAIT_SECONDS_MAX)
    heeder.close()


def test_between_two_pauses_trainings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    asking = quiet.Quiet(tmp_path)
    with asking.hold():
        time.sleep(0.2)
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", slept.append)
        with asking.hold():
            pass
    assert slept[0] > 0.1


def test_without_a_folder_to_write_to_it_is_measured_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with quiet.of(tmp_path / "file" / "folder")():
        pass
    assert "measured beside trainings" in caplog.text


def test_without_a_folder_nobody_is_asked() -> None:
    with quiet.of(None)():
        pass
