"""Whether a merge is worth its time: against two rivals of the same seconds, on fresh hidden cases.

A champion is trained, an evolver goes on from it, a reinventor starts from nothing, and a merge
takes all three; each has the same budget, and all are measured on the same cases. As a control, the
reinventor goes on for as long again: what a student may gain by beginning where that one ended.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from agent import checkpoints
from agent.executors import jobs, pace, training
from agent.specialists import registry, seeds
from benchmarks import specialists
from benchmarks.harness import Goal, Ratio, Run, Section, Size
from core.events import Rival
from orchestrator import bounds, models, paired

NODES = ("stats-bayesian", "math-statistics", "physics-quantum", "opt-convex")
SECONDS = Size(15, 2)
CASES = Size(4_096, 64)
SEEDS = Size(2, 1)
ALPHA = 0.05
RIVALS = ("evolver", "reinventor")
CONTROL = "reinventor, twice"
MERGES = ("soup", "ensemble", "student", "quantized")
HEADS = (
    *("node", "seed", "model", "error", "bytes", "params", "ms"),
    *("of the evolver", "of the reinventor", "surely below both", "front"),
)
NOTES = """
- A champion of the evolver's first family for {seconds} s; then, for {seconds} s each, an evolver
  that goes on from it, a reinventor, and a merge of these three. One thread each.
- "{control}": the reinventor goes on for as long again, without teachers: the control of students,
  which go on from it, too.
- Error: mean on {cases:,} hidden cases that none of them saw, the same for all models of a seed.
- Of the evolver, of the reinventor: this error by theirs, as the gate compares them (the geometric
  mean of the cases' ratios, or the ratio of the means where errors are mostly 0), with the ends of
  the paired interval at 95 %. Surely below both: both intervals end below 1, and the mean error is
  below both, too.
- ms: the median to answer one probe, measured in turns. Front: no other model but the control is as
  good in error, bytes and ms, and better in one of them.
- What is not in the table was not brought: a soup or an ensemble that does not help on validation
  cases, an int8 form that is not smaller, an ensemble that the node's rule excludes.
"""


class Interval(NamedTuple):
    """How the errors of one model compare with another's, and the ends at 95 %."""

    ratio: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.lower:.3f} to {self.upper:.3f})"


class Stored(NamedTuple):
    """A model as it was trained or made."""

    folder: Path
    params: int
    bytes: int


class Measured(NamedTuple):
    """A model on the hidden cases."""

    stored: Stored
    errors: bounds.Floats
    ms: float

    @property
    def error(self) -> float:
        """The mean."""
        return float(self.errors.mean())

    @property
    def costs(self) -> tuple[float, float, float]:
        """What it is weighed by on the front; less is better."""
        return (self.error, float(self.stored.bytes), self.ms)


def measure(run: Run) -> Section:
    """Train, merge and measure, node by node."""
    torch.set_num_threads(1)
    rows: list[tuple[str, ...]] = []
    best: list[float] = []
    for node_id in run.nodes or NODES:
        for seed in range(1, run.size(SEEDS) + 1):
            with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder:
                found = measured(node_id, seed, Path(folder), run)
            added = rows_of(node_id, seed, found)
            for row in added:
                print("  " + " | ".join(row), flush=True)
            rows += added
            best.append(_best(found))
    return Section(
        title="merging: what a merge brings beside two rivals",
        about="Trained for the same seconds, measured on the same hidden cases.",
        table=_table(rows),
        ratios=[
            Ratio(
                what="error of the best merge / of the better rival",
                values=best,
                goal=Goal("below", 1.0),
            )
        ],
        figures=[],
        notes=NOTES.format(seconds=run.size(SECONDS), cases=run.size(CASES), control=CONTROL),
    )


def measured(node_id: str, seed: int, folder: Path, run: Run) -> dict[str, Measured]:
    """Every model of one node and seed."""
    stored = trained(node_id, seed, folder, float(run.size(SECONDS)))
    specialist = registry.get(node_id)
    count = min(run.size(CASES), specialist.hidden_max or run.size(CASES))
    cases = specialist.cases(seeds.derive(node_id, "bench merging", seed), count, "hidden")
    modules = {name: specialists.loaded(specialist, one.folder) for name, one in stored.items()}
    found = {}
    for name, module in modules.items():
        model = models.Model(module.eval(), stored[name].params, stored[name].bytes)
        with torch.inference_mode():
            found[name] = models.errors_of(specialist, model, cases)
    times = pace.latencies_ms(list(modules.values()), specialist.probe())
    return {
        name: Measured(stored[name], found[name], ms)
        for name, ms in zip(modules, times, strict=True)
    }


def trained(node_id: str, seed: int, folder: Path, seconds: float) -> dict[str, Stored]:
    """The champion, its rivals, and what a merge makes of them."""

    def run(name: str, role: Rival, base: str = "", parents: Sequence[str] = ()) -> jobs.Result:
        job = jobs.Job(
            task_id="bench",
            node_id=node_id,
            specialist=node_id,
            role=role,
            seed=seed,
            directory=str(folder / name),
            budget_seconds=seconds,
            checkpoint_seconds=specialists.NEVER,
            base=base,
            parents=list(parents),
        )
        result = training.run(job, lambda _: None, lambda: None)
        assert isinstance(result, jobs.Result), "nobody stops it"
        return result

    champion = run("champion", "evolver")
    base = champion.candidate_directory
    evolver, reinventor = run("evolver", "evolver", base), run("reinventor", "reinventor")
    models = {"champion": champion, "evolver": evolver, "reinventor": reinventor}
    merge = run("merge", "merge", parents=[one.candidate_directory for one in models.values()])
    models[CONTROL] = run(CONTROL, "evolver", reinventor.candidate_directory)
    made = {one.made: one for one in (merge, *merge.others)}
    print(f"  {node_id}, seed {seed}: {made['student'].method_reason}", flush=True)
    models |= {name: made[name] for name in MERGES if name in made}
    return {name: _stored(one) for name, one in models.items()}


def _stored(result: jobs.Result) -> Stored:
    folder = Path(result.candidate_directory)
    size = sum(path.stat().st_size for path in checkpoints.model_files(folder))
    return Stored(folder, result.params, size)


def compared(new: bounds.Floats, opponent: bounds.Floats) -> Interval:
    """Both on the same cases."""
    if paired.method_for(new, opponent) == "log-ratio":
        values = paired.log_ratios(new, opponent)
        ends = (float(values.mean()), -bounds.upper(-values, ALPHA), bounds.upper(values, ALPHA))
        return Interval(*(float(np.exp(end)) for end in ends))
    values, mean = new - opponent, float(opponent.mean())
    ends = (float(values.mean()), -bounds.upper(-values, ALPHA), bounds.upper(values, ALPHA))
    return Interval(*(1 + end / mean for end in ends))


def is_on_front(name: str, found: Mapping[str, Measured]) -> bool:
    """Whether no other model is as good in all, and better in something."""
    own = found[name].costs
    return not any(
        other.costs != own and all(a <= b for a, b in zip(other.costs, own, strict=True))
        for each, other in found.items()
        if each != CONTROL
    )


def surely_below_both(name: str, found: Mapping[str, Measured]) -> bool:
    """Whether a model errs surely less than either rival, in the cases and on average."""
    own = found[name]
    return all(
        compared(own.errors, found[rival].errors).upper < 1 and own.error < found[rival].error
        for rival in RIVALS
    )


def rows_of(node_id: str, seed: int, found: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """The rows of one seed."""
    return [
        (
            node_id,
            str(seed),
            name,
            f"{one.error:.3g}",
            f"{one.stored.bytes:,}",
            f"{one.stored.params:,}",
            f"{one.ms:.3g}",
            *(
                "" if name == rival else str(compared(one.errors, found[rival].errors))
                for rival in RIVALS
            ),
            "" if name not in MERGES else "yes" if surely_below_both(name, found) else "no",
            "yes" if name != CONTROL and is_on_front(name, found) else "",
        )
        for name, one in found.items()
    ]


def _best(found: Mapping[str, Measured]) -> float:
    merges = min(found[name].error for name in MERGES if name in found)
    return merges / min(found[rival].error for rival in RIVALS)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADS, ("---",) * len(HEADS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
