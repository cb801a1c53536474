"""What every suite shares: a seed, what clients were told, and the log held against it."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from core import audit
from core.log import Log


@dataclass(frozen=True)
class Run:
    """How a suite is run; the same seed makes the same choices."""

    seed: int
    quick: bool = False
    long: bool = False

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


@dataclass
class Verdict:
    """What a suite found; any lost, doubled or wrong thing is a violation."""

    suite: str
    tries: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    unable: str = ""
    """Why the suite could not be run here at all."""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.unable)

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return "NOT RUN" if self.unable else "holds" if self.holds else "VIOLATED"


async def check_log(verdict: Verdict, told: list[Told], log: Log) -> None:
    """Hold every acknowledged enqueue against the log's own bytes, and audit the log.

    The bytes are read without the program's folds, which may be what is wrong.
    """
    queued: dict[str, str] = {}
    of_key: Counter[str] = Counter()
    async for records in log.read():
        for record in records:
            data = json.loads(record.data)["data"]
            if key := data.get("idempotency_key"):
                queued[data["task_id"]] = data["topic"]
                of_key[key] += 1
    verdict.acknowledged += len(told)
    verdict.lost += sum(queued.get(one.task_id) != one.topic for one in told)
    verdict.doubled += sum(count - 1 for count in of_key.values())
    auditor = await audit.read_log(log)
    verdict.wrong += [f"audit: {one}" for one in auditor.findings.shown]


def table(verdicts: list[Verdict]) -> str:
    """The verdicts, a line each, and below them what else was wrong."""
    lines = [f"{'suite':<12}{'tries':>7}{'told':>8}{'lost':>6}{'doubled':>9}  verdict"]
    for one in verdicts:
        figures = f"{one.tries:>7}{one.acknowledged:>8}{one.lost:>6}{one.doubled:>9}"
        lines.append(f"{one.suite:<12}{figures}  {one.word}")
    lines += [f"{one.suite}: {one.unable}" for one in verdicts if one.unable]
    lines += [f"{one.suite}: {words}" for one in verdicts for words in one.wrong]
    return "\n".join(lines)
