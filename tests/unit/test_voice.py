"""What is said never waits for whoever should read it."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from cli import child, voice

SECONDS_MAX = 30.0


class Paused:
    """A raw file that takes nothing until it is let go on."""

    def __init__(self) -> None:
        self.taken = b""
        self.is_full = threading.Event()
        self.goes_on = threading.Event()

    def write(self, data: bytes) -> int:
        self.is_full.set()
        assert self.goes_on.wait(SECONDS_MAX)
        part = data[:1_000]
        self.taken += part
        return len(part)


def finish(speaker: voice.Voice, has_said: Callable[[], bool]) -> None:
    """Wait until something was said, each time as long as the end of a process would."""
    deadline = time.monotonic() + SECONDS_MAX
    while not has_said():
        assert time.monotonic() < deadline, "it was never said"
        speaker.finish()


def test_all_lines_come_whole_and_in_order() -> None:
    paused = Paused()
    paused.goes_on.set()
    speaker = voice.Voice(paused.write)
    for number in range(1_000):
        speaker.say(f"سطر {number}")
    finish(speaker, lambda: b"999\n" in paused.taken)
    assert paused.taken.decode() == "".join(f"سطر {number}\n" for number in range(1_000))


def test_what_does_not_fit_is_dropped_and_counted_where_it_is_missing() -> None:
    paused = Paused()
    speaker = voice.Voice(paused.write)
    speaker.say("first")
    assert paused.is_full.wait(SECONDS_MAX)
    line = "x" * (voice.WAITING_CHARS_MAX // 4)
    for _ in range(10):
        speaker.say(line)
    speaker.say("told", must=True)
    speaker.finish()  # bounded, though nothing goes out
    paused.goes_on.set()
    speaker.say("last", must=True)
    finish(speaker, lambda: b"last\n" in paused.taken)
    said = [one for one in paused.taken.decode().splitlines() if one != line]
    assert said == [
        "first",
        "… 7 lines were not shown: nobody took them in time",
        "told",
        "last",
    ]
    assert paused.taken.decode().splitlines().count(line) == 3


def test_a_loss_is_told_also_where_nothing_more_is_said() -> None:
    paused = Paused()
    speaker = voice.Voice(paused.write)
    speaker.say("first")
    assert paused.is_full.wait(SECONDS_MAX)
    speaker.say("x" * (voice.WAITING_CHARS_MAX + 1))
    speaker.say("second")
    speaker.say("y" * (voice.WAITING_CHARS_MAX + 1))
    paused.goes_on.set()
    finish(speaker, lambda: paused.taken.count(b"were not shown") == 2)


def test_where_nobody_reads_any_more_nothing_is_said() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as raw:
        speaker = voice.Voice(raw.write)
        speaker.say("nobody hears this")
        speaker.finish()
        speaker.say("nor this", must=True)
        speaker.finish()


def test_a_pipe_that_nobody_reads_holds_up_neither_a_process_nor_its_end() -> None:
    code = (
        "from cli import child\n"
        "for number in range(100_000):\n    child.say(f'line {number}')\n"
        "child.tell('done')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.wait(SECONDS_MAX) == 0
        assert process.stdout is not None
        assert process.stdout.readline() == b"line 0\n"


def test_what_is_said_at_the_end_is_still_written() -> None:
    code = "from cli import child\nchild.say('الكلمة الأخيرة')\nchild.tell('done', n=1)\n"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=SECONDS_MAX)
    said, told, _ = done.stdout.decode().split("\n")
    assert said == "الكلمة الأخيرة"
    heard = child.heard(told)
    assert heard is not None
    assert (heard["kind"], heard["n"]) == ("done", 1)
    assert re.fullmatch(r"\d+", str(heard["pid"]))
