"""What every suite shares: a seed, what clients were told, and the log held against it."""

import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from core import audit, replay
from core.log import Log
from tests.acceptance.stack import aghsan

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """How a suite is run; the same seed makes the same choices."""

    seed: int
    quick: bool = False
    long: bool = False
    named: bool = False
    """Whether a person named the seed: that of an earlier run."""

    def random(self, suite: str) -> random.Random:
        """The choices of one suite, the same whichever others run beside it."""
        return random.Random(f"{self.seed}/{suite}")

    def tries(self, quick: int, normal: int, long: int) -> int:
        """How often, in this form of the suite."""
        return quick if self.quick else long if self.long else normal


class Told(NamedTuple):
    """An enqueue that was acknowledged: what the client asked for and was answered."""

    key: str
    task_id: str
    topic: str


class Delivered(NamedTuple):
    """A completion that was answered; its metrics carry a mark that no other has."""

    task_id: str
    worker_id: str
    mark: str


@dataclass
class Verdict:
    """What a suite found; any lost, doubled or wrong thing is a violation."""

    suite: str
    tries: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing beside."""
    unable: str = ""
    """Why the suite could not be run here at all."""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.unable)

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return "NOT RUN" if self.unable else "holds" if self.holds else "VIOLATED"


async def until(ask: Callable[[], Awaitable[T]], what: str, seconds: float) -> T:
    """Ask until the answer is true, and return it. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while True:
        found = await ask()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}; last: {found!r}")
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def folder_of(verdict: Verdict) -> Iterator[Path]:
    """A folder to work in, removed if nothing was wrong; else it stays, to be looked into."""
    folder = Path(tempfile.mkdtemp(prefix=f"aghsan-{verdict.suite}-"))
    try:
        yield folder
    except BaseException:
        print(f"{verdict.suite}: what it left is in {folder}", file=sys.stderr)
        raise
    if verdict.holds:
        shutil.rmtree(folder)
    else:
        verdict.wrong.append(f"what it left is in {folder}")


async def check_log(
    verdict: Verdict,
    told: Sequence[Told],
    log: Log,
    delivered: Sequence[Delivered] = (),
    refused: Sequence[Delivered] = (),
) -> None:
    """Hold every acknowledged enqueue and completion against the log's own bytes, and audit it.

    The bytes are read without the program's folds, which may be what is wrong.
    """
    queued: dict[str, str] = {}
    of_key: Counter[str] = Counter()
    completed: dict[str, list[dict[str, Any]]] = {}
    async for records in log.read():
        for record in records:
            event = json.loads(record.data)
            data = event["data"]
            if key := data.get("idempotency_key"):
                queued[data["task_id"]] = data["topic"]
                of_key[key] += 1
            if event.get("type") == "TaskCompleted":
                completed.setdefault(data["task_id"], []).append(data)
    verdict.acknowledged += len(told) + len(delivered)
    verdict.lost += sum(queued.get(one.task_id) != one.topic for one in told)
    verdict.doubled += sum(count - 1 for count in of_key.values())
    verdict.doubled += sum(len(found) - 1 for found in completed.values())
    marks = {
        Delivered(task_id, found[0]["worker_id"], str(found[0]["metrics"].get("mark")))
        for task_id, found in completed.items()
    }
    verdict.lost += len(set(delivered) - marks)
    verdict.wrong += [f"was refused, and stands in the log: {one}" for one in marks & set(refused)]
    auditor = await audit.read_log(log)
    verdict.wrong += [f"audit: {one}" for one in auditor.findings.shown]


async def check_directory(
    verdict: Verdict,
    told: Sequence[Told],
    data: Path,
    delivered: Sequence[Delivered] = (),
    refused: Sequence[Delivered] = (),
) -> dict[str, Any]:
    """As `check_log`, of a data directory that nobody uses any more, and `aghsan audit` on it: its
    blocks, artifacts and notes too; the report of that."""
    ran = await asyncio.to_thread(aghsan, "audit", "--data", data, "--json")
    report: dict[str, Any] = json.loads(ran.stdout) if ran.stdout else {"violations": [ran.stderr]}
    verdict.wrong += [f"aghsan audit: {one}" for one in report["violations"]]
    with replay.serving(data) as access:
        async with replay.connect(access) as connected:
            await check_log(verdict, told, connected.log, delivered, refused)
    return report


def table(verdicts: list[Verdict]) -> str:
    """The verdicts, a line each, and below them what else was wrong."""
    lines = [f"{'suite':<12}{'tries':>7}{'told':>8}{'lost':>6}{'doubled':>9}  verdict"]
    for one in verdicts:
        figures = f"{one.tries:>7}{one.acknowledged:>8}{one.lost:>6}{one.doubled:>9}"
        lines.append(f"{one.suite:<12}{figures}  {one.word}")
    lines += [f"{one.suite}: {one.unable}" for one in verdicts if one.unable]
    lines += [f"{one.suite}: {words}" for one in verdicts for words in one.wrong + one.notes]
    return "\n".join(lines)
