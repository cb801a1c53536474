"""Whether the tree improves, and never gets worse: a whole `aghsan up`, and then its champions.

All that reigned while it ran are measured once more, each against the one before and the best one
before, on the same hidden cases, which no judge ever drew.
"""

import itertools
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.specialists import base, registry, seeds
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from cli import stored
from core import errors, events, specializations
from core.replay import Connected
from orchestrator import bounds, models, paired
from tests.acceptance.stack import Stack

RUN_SECONDS = Size(1_800, 60)
AGENTS = 2
TRAIN_SECONDS = 30
CASES = Size(4_096, 512)
MARGIN = 1.02
NODES_GOAL = 0.7
BEST_LEARNED = {"math-optimization": 0.0739}
"""Where nothing that was learned beats the baseline of record: the best figure there is, of which a
champion is to reach twice."""
WITHIN = 2.0
HEADS = (
    *("node", "champions", "first error", "last error", "baseline of record", "at its mark"),
    *("largest ratio to the one before", "to the best before"),
)
NOTES = """
- {nodes} nodes from nothing, {agents} agents with `--train-sec {train_seconds}`, {seconds:,} s;
  then all champions of each node on the same {cases:,} hidden cases (of `root-math` there
  are fewer, which its rounds were judged on too), under a seed drawn after the run: {seed}.
- At its mark: the last champion errs less than the baseline of record on these cases; at
  `math-optimization`, where nothing learned beats conjugate gradients, at most {within:g} times
  the best learned figure, {best:g}.
- A ratio is that of the errors as the gate compares them (geometric mean over the cases, or the
  ratio of the means where most errors are 0), in brackets from where to where it surely lies
  (α = 0.05). At most {margin:g} was asked for.
"""


class Reigned(NamedTuple):
    """One champion of the run."""

    champion: events.Champion
    files: models.Files


class Ran(NamedTuple):
    """One node after the run. Ratios are those of all champions but the first."""

    node_id: str
    means: list[float]
    baseline: float
    before: list["Compared"]
    best: list["Compared"]

    @property
    def is_at_mark(self) -> bool:
        """Whether its last champion is as good as was asked for."""
        learned = BEST_LEARNED.get(self.node_id)
        mark = self.baseline if learned is None else WITHIN * learned
        return bool(self.means) and self.means[-1] < mark


class Compared(NamedTuple):
    """By what a champion's error is another's, and between what that surely lies."""

    ratio: float
    lower: float
    upper: float


def measure(run: Run) -> Section:
    """Let the tree grow, and measure what reigned."""
    with tempfile.TemporaryDirectory(prefix="aghsan-improvement-") as folder:
        reigned = _grown(Path(folder), run.size(RUN_SECONDS))
    seed = secrets.randbits(63)
    ran = [_ran(node_id, reigned[node_id], seed, run.size(CASES)) for node_id in reigned]
    marked = sum(one.is_at_mark for one in ran) / len(ran)
    return Section(
        title="improvement: the tree from nothing, and every champion against those before",
        about="A whole `aghsan up`; its champions measured on cases that no judge ever drew.",
        table=_table(ran),
        ratios=[
            Ratio(
                what="nodes at their mark, of all",
                values=[marked],
                goal=Goal("at least", NODES_GOAL),
            ),
            *_ratios("the one before", [one.ratio for ran_ in ran for one in ran_.before]),
            *_ratios("the best before", [one.ratio for ran_ in ran for one in ran_.best]),
        ],
        figures=[
            Figure(
                what="champions of a node",
                unit="",
                values=[float(len(one.means)) for one in ran],
            )
        ],
        notes=NOTES.format(
            nodes=len(ran),
            agents=AGENTS,
            train_seconds=TRAIN_SECONDS,
            seconds=run.size(RUN_SECONDS),
            cases=run.size(CASES),
            seed=seed,
            within=WITHIN,
            best=BEST_LEARNED["math-optimization"],
            margin=MARGIN,
        ),
    )


def _ratios(to: str, values: list[float]) -> list[Ratio]:
    """What is largest counts, so all of them stand as one figure."""
    if not values:
        return []
    what = f"largest error of a champion, to that of {to}"
    return [Ratio(what=what, values=[max(values)], goal=Goal("at most", MARGIN))]


# The run


def _grown(folder: Path, seconds: int) -> dict[str, list[Reigned]]:
    """What reigned at each seeded node while `up` ran, in order."""
    stack = Stack(folder, "--agents", str(AGENTS), "--train-sec", str(TRAIN_SECONDS))
    try:
        stack.start()
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(60.0, left))
            print(f"  {stack.patiently('/status').get('network', {}).get('tasks')}", flush=True)
        code, _ = stack.stop()
        if code:
            raise errors.AghsanError(f"`up` ended with {code}:\n{stack.words()}")
    finally:
        stack.close()
    return stored.reading(stack.data, _reigned)


async def _reigned(connected: Connected) -> dict[str, list[Reigned]]:
    found: dict[str, list[Reigned]] = {}
    for seed in specializations.SEEDS:
        node = await stored.node(connected, seed.node_id)
        found[seed.node_id] = [
            Reigned(reign.champion, await models.fetch(connected.store, reign.champion.manifest))
            for reign in node.reigns
        ]
    return found


# The measuring


def _ran(node_id: str, reigned: Sequence[Reigned], seed: int, count: int) -> Ran:
    specialist = registry.get(node_id, {})
    there = specialist.hidden_max or count
    drawn = seeds.derive("improvement", node_id, seed)
    cases = specialist.cases(drawn, min(count, there), "hidden")
    baseline = specialist.baseline_errors(cases)[specialist.baseline_of_record]
    found = [_errors(specialist, one, cases) for one in reigned]
    best_before = []
    for at, own in enumerate(found[1:], 1):
        best_before.append(_compared(own, min(found[:at], key=lambda one: float(one.mean()))))
    one = Ran(
        node_id,
        [float(each.mean()) for each in found],
        float(baseline.mean()),
        [_compared(own, before) for before, own in itertools.pairwise(found)],
        best_before,
    )
    print(f"  {' '.join(_cells(one))}", flush=True)
    return one


def _errors(specialist: base.Specialist, one: Reigned, cases: base.Cases) -> bounds.Floats:
    model = models.load(specialist, one.files, one.champion.weights_sha256)
    return models.errors_of(specialist, model, cases)


def _compared(own: bounds.Floats, other: bounds.Floats) -> Compared:
    """As the gate compares errors, and the ends of a 95 % interval."""
    if (own == other).all():
        return Compared(1.0, 1.0, 1.0)
    if paired.method_for(own, other) == "log-ratio":
        values = paired.log_ratios(own, other)
        mean = float(values.mean())
        low, high = -bounds.upper(-values, 0.05), bounds.upper(values, 0.05)
        return Compared(*(float(np.exp(one)) for one in (mean, low, high)))
    scale = float(other.mean())
    if not scale:
        return Compared(np.inf, np.inf, np.inf)
    low, high = -bounds.upper(other - own, 0.05) / scale, bounds.upper(own - other, 0.05) / scale
    return Compared(float(own.mean()) / scale, 1 + low, 1 + high)


# The table


def _table(ran: Sequence[Ran]) -> str:
    rows = [HEADS, ("---",) * len(HEADS), *(_cells(one) for one in ran)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(one: Ran) -> tuple[str, ...]:
    first, last = (f"{one.means[at]:.3g}" if one.means else "none" for at in (0, -1))
    return (
        *(one.node_id, str(len(one.means)), first, last, f"{one.baseline:.3g}"),
        "yes" if one.is_at_mark else "**no**",
        *(_largest(compared) for compared in (one.before, one.best)),
    )


def _largest(compared: Sequence[Compared]) -> str:
    if not compared:
        return ""
    one = max(compared, key=lambda each: each.ratio)
    return f"{one.ratio:.4g} ({one.lower:.4g} to {one.upper:.4g})"
