"""What specialists reach in a fixed number of steps, and what the executor costs beside a loop."""

import asyncio
import hashlib
import inspect
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from agent import checkpoints
from agent.executors import jobs, stepping, training
from agent.executors.process import Executor
from agent.specialists import evaluation, forms, registry, seeds
from agent.specialists.base import Role, Specialist
from benchmarks import harness
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size

RATIO_MAX = 1.25
SMALL, SMALL_ERROR_MAX = 0.0015, 0.002
"""Where the figure to reach is as small as that, a ratio to it means little."""
CASES = Size(2_048, 64)
PACE_GOAL, SAVING_GOAL = Goal("at least", 0.97), Goal("below", 0.01)
COLD_GOAL, WARM_GOAL = Goal("below", 1.5), Goal("at most", 0.05)
PACED_SECONDS, PAIRS = 1.0, Size(11, 1)
SAVED_SECONDS = 5.0
"""Between two checkpoints of a rival that has 30 seconds."""
SAVING_SECONDS, SAVES, NEAR_SECONDS = Size(12, 6), 6, 0.5
STARTED_NODES = ("stats-bayesian", "physics-fluid", "stats-time-series")
NEVER = 1e9
HEADS = (
    *("node", "rival: family", "steps", "params", "error", "worst seed", "to reach", "ratio"),
    *("met", "evidence", "pace", "by processor", "saving, ms"),
)

NOTES = """
- Error and evidence: the rival trained by the executor for the steps of the row, measured on 2,048
  hidden cases that are the same for all; the median of {seeds} seeds, and the worst of them. It is
  held to 1.25 times the figure to reach, or to 0.002 where that is at most 0.0015.
- Pace: steps per second of the executor's process by those of a plain loop (batch, loss, gradients,
  clipping, AdamW, schedule) of the same model in this one; pairs of about a second, in turn. By
  processor: the same code in one process, by the time that its thread had, whatever else ran.
- Saving: what steps near a checkpoint take longer than others, by the {saved:g} s that lie between
  two checkpoints of a task with 30 s.
- Start: from the order to the end of the first step, by `import torch` in a new process, in turn.
  Cold begins with no process; warm is the next task of a node, in a process that trained another.
- On a CPU, one thread each.
"""


class Row(NamedTuple):
    """Something to reach: the error `figure` of a rival after so many steps."""

    node_id: str
    role: Role
    steps: int
    figure: float

    @property
    def name(self) -> str:
        """Which row it is, in a file and in a table."""
        return f"{self.node_id} {self.role} {self.steps}"

    @property
    def error_max(self) -> float:
        """The largest median error that is good enough."""
        return SMALL_ERROR_MAX if self.figure <= SMALL else RATIO_MAX * self.figure


ROWS = (
    Row("root-math", "evolver", 1_901, 0.0),
    Row("root-math", "reinventor", 2_965, 0.0),
    Row("math-physics", "evolver", 1_152, 0.0373),
    Row("math-physics", "reinventor", 28_630, 0.0014),
    Row("physics-fluid", "evolver", 825, 0.0226),
    Row("physics-fluid", "reinventor", 796, 0.0207),
    Row("physics-quantum", "evolver", 1_364, 0.0802),
    Row("physics-quantum", "reinventor", 1_262, 0.0028),
    Row("math-statistics", "evolver", 2_608, 0.0049),
    Row("math-statistics", "reinventor", 8_492, 0.0007),
    Row("stats-bayesian", "evolver", 753, 0.0228),
    Row("stats-bayesian", "reinventor", 6_086, 0.0015),
    Row("stats-time-series", "evolver", 1_284, 0.28),
    Row("stats-time-series", "reinventor", 11_177, 0.20),
    Row("math-optimization", "evolver", 893, 0.0739),
    Row("math-optimization", "reinventor", 2_021, 0.0889),
    Row("opt-convex", "evolver", 1_857, 0.0093),
    Row("opt-convex", "reinventor", 1_785, 0.0181),
    Row("opt-discrete", "evolver", 166, 0.0015),
    Row("opt-discrete", "evolver", 598, 0.0007),
    Row("opt-discrete", "reinventor", 836, 0.0010),
)


class Trained(msgspec.Struct, frozen=True, kw_only=True, tag="trained"):
    """One training of a row, measured on hidden cases; `source` is the digest of its code."""

    row: str
    source: str
    seed: int
    error: float
    evidence: float
    family: str
    params: int


class Paced(msgspec.Struct, frozen=True, kw_only=True, tag="paced"):
    """Steps per second of a row's model, in turn; and how long each checkpoint held it up.

    `processor_ratios` are those of the two by the processor time of the thread that trains.
    """

    row: str
    source: str
    executor: list[float]
    bare: list[float]
    processor_ratios: list[float]
    saving_seconds: list[float]


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """Seconds until the first step of a task, and of `import torch` before it."""

    node_id: str
    imported: list[float]
    cold: list[float]
    warm: list[float]


Line = Trained | Paced | Started


class Book:
    """What was measured, as JSON lines in a file, so that a run may be broken off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines() if path.exists() else []
        self.lines: list[Line] = [msgspec.json.decode(line, type=Line) for line in lines]

    def add(self, line: Line) -> None:
        """Write it down."""
        self.lines.append(line)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def trained(self, row: Row, source: str) -> list[Trained]:
        """The trainings of a row by this code."""
        return [
            one
            for one in self.lines
            if isinstance(one, Trained) and (one.row, one.source) == (row.name, source)
        ]

    def paced(self, row: Row, source: str) -> Paced | None:
        """The newest pace of a row by this code."""
        found = [
            one
            for one in self.lines
            if isinstance(one, Paced) and (one.row, one.source) == (row.name, source)
        ]
        return found[-1] if found else None

    def started(self, node_id: str) -> Started | None:
        """The newest starts of a node."""
        found = [one for one in self.lines if isinstance(one, Started) and one.node_id == node_id]
        return found[-1] if found else None


def source_of(specialist: Specialist) -> str:
    """The digest of a specialist's file: what another one reached does not count."""
    path = Path(inspect.getfile(type(specialist)))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


# ── training ──


class Bench:
    """One executor, and a folder for what it makes."""

    def __init__(self, run: Run, folder: Path, executor: Executor) -> None:
        self._run, self._folder, self._executor = run, folder, executor
        self._numbers = itertools.count()

    async def _result(self, row: Row, seed: int, steps: int) -> jobs.Result:
        await self._executor.start()
        done = await self._executor.run(self._job(row, seed, steps), lambda _: None)
        assert isinstance(done, jobs.Result), "nobody stops it"
        return done

    def _job(self, row: Row, seed: int, steps: int) -> jobs.Job:
        return jobs.Job(
            task_id="bench",
            node_id=row.node_id,
            specialist=row.node_id,
            role=row.role,
            seed=seed,
            directory=str(self._folder / str(next(self._numbers))),
            steps=steps,
            checkpoint_seconds=NEVER,
        )

    async def train(self, row: Row, seed: int) -> Trained:
        """A row's rival, trained and measured."""
        specialist = registry.get(row.node_id)
        steps = self._run.size(Size(row.steps, 20))
        result = await self._result(row, seed, steps)
        found = evaluation.evaluate(
            specialist,
            loaded(specialist, Path(result.candidate_directory)),
            specialist.cases(seeds.derive(row.node_id, "bench"), self._run.size(CASES), "hidden"),
        )
        return Trained(
            row=row.name,
            source=source_of(specialist),
            seed=seed,
            error=found.loss,
            evidence=found.evidence_rate,
            family=result.family,
            params=result.params,
        )

    async def pace(self, row: Row) -> Paced:
        """Executor and plain loop in turn, and how long checkpoints take."""
        specialist = registry.get(row.node_id)
        loop = PlainLoop(specialist, row)
        steps = max(10, int(PACED_SECONDS * loop.steps_per_second(10)))

        async def executor() -> float:
            result = await self._result(row, next(self._numbers), steps)
            return steps / (result.last_step_at - result.first_step_at)

        async def bare() -> float:
            return loop.steps_per_second(steps)

        await executor()  # what is made once in a process is not what counts
        found = await harness.alternate({"executor": executor, "bare": bare}, self._run.size(PAIRS))
        return Paced(
            row=row.name,
            source=source_of(specialist),
            executor=found["executor"],
            bare=found["bare"],
            processor_ratios=[
                self._processor_ratio(row, loop, steps) for _ in range(self._run.size(PAIRS))
            ],
            saving_seconds=self._saving_seconds(row),
        )

    def _processor_ratio(self, row: Row, loop: "PlainLoop", steps: int) -> float:
        """The executor's code in this process by the plain loop, as the thread's own time goes."""
        marks: list[float] = []

        def asked_to_stop() -> None:
            marks.append(time.thread_time())

        training.run(self._job(row, next(self._numbers), steps), lambda _: None, asked_to_stop)
        rate = (len(marks) - 1) / (marks[-1] - marks[0])
        return rate / loop.steps_per_second(steps, time.thread_time)

    def _saving_seconds(self, row: Row) -> list[float]:
        marks: list[float] = []
        saved: list[float] = []

        def asked_to_stop() -> None:
            marks.append(time.perf_counter())

        def report(told: jobs.Report) -> None:
            if isinstance(told, jobs.Saved):
                saved.append(time.perf_counter())

        seconds = self._run.size(SAVING_SECONDS)
        job = msgspec.structs.replace(
            self._job(row, 1, 0), budget_seconds=seconds, checkpoint_seconds=seconds / SAVES
        )
        training.run(job, report, asked_to_stop)
        return held_up(marks, saved)

    async def start(self, node_id: str) -> Started:
        """Cold and warm starts beside `import torch`."""
        row = Row(node_id, "reinventor", 1, 0.0)

        async def imported() -> float:
            began = time.perf_counter()
            argv = [sys.executable, "-c", "import torch"]
            await asyncio.to_thread(subprocess.run, argv, check=True)
            return time.perf_counter() - began

        async def cold() -> float:
            await self._executor.close()
            return await warm()

        async def warm() -> float:
            began = time.time()
            result = await self._result(row, 1, 1)
            return result.last_step_at - began

        found = await harness.alternate(
            {"import torch": imported, "cold": cold, "warm": warm}, self._run.repetitions
        )
        return Started(
            node_id=node_id,
            imported=found["import torch"],
            cold=found["cold"],
            warm=found["warm"],
        )


class PlainLoop:
    """A training loop as one would write it by hand, with the recipe of the executor."""

    def __init__(self, specialist: Specialist, row: Row) -> None:
        self._specialist = specialist
        self._seeds = itertools.count()
        torch.manual_seed(1)
        self._module = specialist.build(specialist.families(row.role)[0])
        self._optimizer = torch.optim.AdamW(
            self._module.parameters(), betas=training.BETAS, weight_decay=training.WEIGHT_DECAY
        )

    def steps_per_second(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """How fast it goes, on batches it has not seen."""
        seed = next(self._seeds)
        began = clock()
        for step in range(steps):
            rate = training.learning_rate(step, steps, self._specialist.learning_rate)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            loss = self._specialist.loss(self._module, self._specialist.train_batch(seed, step))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), stepping.GRADIENT_NORM_MAX)
            self._optimizer.step()
        return steps / (clock() - began)


def held_up(marks: Sequence[float], saved: Sequence[float]) -> list[float]:
    """By how much each checkpoint held training up, seconds.

    `marks` are when steps began, `saved` when a checkpoint was told of. What the steps of the half
    second before that took longer than as many others, is counted, however it was written.
    """
    steps = list(itertools.pairwise(marks))
    near = [
        [end - began for began, end in steps if at - NEAR_SECONDS < end and began < at]
        for at in saved
    ]
    count, seconds = sum(map(len, near)), sum(map(sum, near))
    usual = (marks[-1] - marks[0] - seconds) / (len(steps) - count)
    return [sum(found) - len(found) * usual for found in near]


def loaded(specialist: Specialist, folder: Path) -> torch.nn.Module:
    """A candidate that was written."""
    config = checkpoints.read_config(folder / checkpoints.CONFIG_FILE)
    module = forms.build(specialist, config)
    checkpoints.load_weights(folder / checkpoints.WEIGHTS_FILE, module)
    return module


# ── the whole ──


def measure(run: Run) -> Section:
    """Each row's error, the pace of the executor, and its starts."""
    if run.rows is not None:
        return asyncio.run(_measure(run, Book(run.rows)))
    with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder:
        return asyncio.run(_measure(run, Book(Path(folder) / "rows.jsonl")))


async def _measure(run: Run, book: Book) -> Section:
    torch.set_num_threads(1)
    rows = [row for row in ROWS if not run.nodes or row.node_id in run.nodes]
    with tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder:
        executor = Executor()
        bench = Bench(run, Path(folder), executor)
        try:
            await _fill(run, book, bench, rows)
        finally:
            await executor.close()
    return section(run, book, rows)


async def _fill(run: Run, book: Book, bench: Bench, rows: Sequence[Row]) -> None:
    """Measure what the book does not hold yet."""
    for row in rows:
        source = source_of(registry.get(row.node_id))
        known = {one.seed for one in book.trained(row, source)}
        for seed in range(1, run.seeds + 1):
            if seed not in known:
                one = await bench.train(row, seed)
                book.add(one)
                print(f"  {row.name}, seed {seed}: error {one.error:.5f}", flush=True)
    for row in rows:
        if book.paced(row, source_of(registry.get(row.node_id))) is None:
            print(f"  {row.name}", flush=True)
            book.add(await bench.pace(row))
    for node_id in STARTED_NODES:
        if book.started(node_id) is None and any(row.node_id == node_id for row in rows):
            book.add(await bench.start(node_id))


def section(run: Run, book: Book, rows: Sequence[Row]) -> Section:
    """What the book says of these rows."""
    paces = [_known(book.paced(row, source_of(registry.get(row.node_id)))) for row in rows]
    started = [one for node_id in STARTED_NODES if (one := book.started(node_id))]
    starts = [
        Ratio(
            what=f"{name} start of {one.node_id} / `import torch`",
            values=harness.ratios(values, one.imported),
            goal=goal,
        )
        for one in started
        for name, values, goal in (("cold", one.cold, COLD_GOAL), ("warm", one.warm, WARM_GOAL))
    ]
    return Section(
        title="specialists: what they reach in a fixed number of steps",
        about="Each rival trained by the executor for a fixed number of steps, against an error "
        "to reach; and the executor against a plain loop.",
        table=_table(run, book, rows, paces),
        ratios=[
            Ratio(
                what="executor / plain loop, median of each row",
                values=[_pace(one) for one in paces],
                goal=PACE_GOAL,
            ),
            Ratio(
                what="the same by processor time",
                values=[statistics.median(one.processor_ratios) for one in paces],
                goal=PACE_GOAL,
            ),
            Ratio(
                what="checkpoint / time between two, median of each row",
                values=[statistics.median(one.saving_seconds) / SAVED_SECONDS for one in paces],
                goal=SAVING_GOAL,
            ),
            *starts,
        ],
        figures=[
            Figure(
                what="`import torch`",
                unit="s",
                values=[each for one in started for each in one.imported],
            )
        ]
        if started
        else [],
        notes=NOTES.format(seeds=run.seeds, saved=SAVED_SECONDS),
    )


def _known(pace: Paced | None) -> Paced:
    assert pace is not None, "every row has its pace before a section is made"
    return pace


def _pace(one: Paced) -> float:
    return statistics.median(harness.ratios(one.executor, one.bare))


def _table(run: Run, book: Book, rows: Sequence[Row], paces: Sequence[Paced]) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "| --- |" + " --- |" * (len(HEADS) - 1)]
    for row, pace in zip(rows, paces, strict=True):
        found = book.trained(row, source_of(registry.get(row.node_id)))[: run.seeds]
        cells = _cells(row, found, pace)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Row, found: Sequence[Trained], pace: Paced) -> list[str]:
    """One line of the table."""
    errors = [one.error for one in found]
    error = statistics.median(errors)
    return [
        row.node_id,
        f"{row.role}: {found[0].family}",
        f"{row.steps:,}",
        f"{found[0].params:,}",
        f"{error:.4f}",
        f"{max(errors):.4f}",
        f"{row.figure:.4f}",
        f"{error / row.figure:.2f}" if row.figure else "",
        "yes" if error <= row.error_max else "**no**",
        f"{statistics.median(one.evidence for one in found):.3f}",
        f"{_pace(pace):.3f}",
        f"{statistics.median(pace.processor_ratios):.3f}",
        f"{1e3 * statistics.median(pace.saving_seconds):.1f}",
    ]
