"""Both ends of the talk between `aghsan up` and its children.

A child tells its owner by lines on stdout that begin with a record separator and hold one JSON
object; every other line is for people. The owner ends a child by writing `stop` to its stdin, or by
going away, which closes it.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from cli import brake, voice
from core import platforms

MARK = "\x1e"
REFUSED = 78
"""Exit code for settings the server will not have; starting again would not help."""


def tell(kind: str, **values: object) -> None:
    """Tell the owner something; with no owner listening it is only a line."""
    _write(MARK + json.dumps({"kind": kind, "pid": os.getpid(), **values}), must=True)


def heard(line: str) -> dict[str, object] | None:
    """What a child told, or None for a line meant for people; what only looks told is such a line.

    What was told has a `kind` and the child's own `pid`.
    """
    if not line.startswith(MARK):
        return None
    try:
        told = json.loads(line[len(MARK) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get("kind"), str):
        return None
    return told if type(told.get("pid")) is int else None


def say(line: str) -> None:
    """One line for people, soon, without waiting for whoever shows it; nothing in it can pass for
    what children tell, nor command the terminal. Where nobody reads any more, nothing is said."""
    _write(plain(line))


def plain(line: str) -> str:
    """A line with nothing in it that commands a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in line)


_voices: dict[object, voice.Voice] = {}
"""The voice of stdout, by the file that it is now."""


def _write(line: str, *, must: bool = False) -> None:
    if sys.stdout not in _voices:
        _voices.clear()
        try:
            file = sys.stdout.fileno()
        except (OSError, ValueError):  # no file, but something in memory
            sys.stdout.write(line + "\n")
            return
        sys.stdout.flush()
        # Unbuffered: a thread that waits inside a buffer's lock would abort the interpreter's end.
        raw = open(file, "wb", buffering=0, closefd=False)  # noqa: SIM115  open for good
        _voices[sys.stdout] = voice.Voice(raw.write)
    _voices[sys.stdout].say(line, must=must)


def configure_logging(verbose: bool = False) -> None:
    """One sentence a line on stderr, and not too many of a kind."""
    said = logging.StreamHandler(sys.stderr)
    if not verbose:
        said.addFilter(brake.Brake())
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[said],
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def on_stop(loop: asyncio.AbstractEventLoop, stop: Callable[[], None], *, child: bool) -> None:
    """Call `stop` on the loop when asked to end: by signal, or as a child by its owner."""

    def ask(*_: object) -> None:
        loop.call_soon_threadsafe(stop)

    if child:
        platforms.die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_watch_owner, args=(ask,), daemon=True).start()
    else:
        signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)


def _watch_owner(ask: Callable[[], None]) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            break
    ask()
