"""How often the gate promotes what is no better, and how often it sees what is.

Two models of each node, trained alike from different seeds, are measured on as many hidden cases as
a judgement may take. Swapped case by case at random they are two equal models that err as real ones
do; one of them scaled is a better model with the same noise.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from agent import checkpoints, tensors
from agent.executors import jobs, training
from agent.specialists import base, registry, seeds
from benchmarks import cheaper, specialists
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from core import events, wire
from core.projections import rounds
from orchestrator import bounds, gate, keys, latency, models, trial

STEPS_SHARE = 0.25
LONGER = 1.6
"""The better one of a real pair is trained so many times as long."""
CASES = Size(bounds.CASES_MAX, 2_048)
SINGLES = Size(2_000, 40)
SEQUENCES, LOOKS = Size(400, 4), Size(50, 5)
POWER_TRIES = Size(1_000, 20)
ROUNDS_OF_THE_SAME = Size(4, 1)
"""Whole rounds of each node in which the champion's own weights stand again."""
POWER_GOALS = {0.98: None, 0.95: None, 0.90: Goal("at least", 0.8), 0.80: Goal("at least", 0.95)}
FACTORS = tuple(POWER_GOALS)
FALSE_GOAL = Goal("at most", 0.05)
CONFIDENCE = 0.95
HEADS = (
    *("node", "method", "false singles", "false sequences", "upper bounds"),
    *(f"power at {factor:g}" for factor in FACTORS),
    *("cases taken", "a real pair: ratio", "promoted", "scaled alike", "the same again"),
    *("cheaper at the margin", "its sequences", "upper bounds", "equal and cheaper"),
    *("chains: links", "error", "beyond"),
)
NOTES = """
- Equal: the recorded errors of the two models, swapped case by case with chance 1/2 and drawn anew,
  with repetition, for each judgement. A sequence is {looks} looks at one champion, and false where
  any of them promotes. Upper bounds: of the rates before them, at 95 % (Clopper & Pearson 1934).
- The same again: whole rounds through the judge in which the champion's own weights stand as a
  candidate, each round with a secret of its own; how many promoted them.
- Power: the share that is promoted at the first look of equal models of which one's errors are
  multiplied by the factor (of errors that are 0 or 1, so many fewer are 1). Cases taken: at 0.98,
  0.95, 0.90 and 0.80, the mean.
- A real pair: the same family trained {longer} times as long against the shorter training; the
  ratio as the gate compares them, how often it is promoted, and how often equal models are that
  are scaled by that ratio.
- Cheaper at the margin: a candidate of half the size whose errors are those of the other model
  times the margin, 1.02 (of errors that are 0 or 1: so many more wrong answers as evidence may be
  lost, one in a hundred); the share that is promoted, singly and in sequences. Equal and cheaper:
  the share promoted of candidates that answer as the champion does, but for a tenth of the cases.
- Chains: {looks} looks at candidates of half the size, each with {step:g} times the error of the
  champion of its moment and a tenth of the cases answered otherwise; who is promoted is the next
  champion. How many were at most, how far the error came at most, in times of the first one's, and
  in how many chains that was more than the margin has it.
- Hidden cases and both models' answers take at most {seconds:.0f} s for {cases:,} cases.
"""

Pair = tuple[bounds.Floats, bounds.Floats]


class Recorded(NamedTuple):
    """What a node's models err on the same hidden cases, [cases] each."""

    node_id: str
    tolerance: float
    twins: Pair
    unequal: Pair
    """The one trained longer comes first."""
    seconds: float
    """For the cases and two models' answers."""
    again: int
    """Rounds in which a model was promoted instead of itself."""


class Found(NamedTuple):
    """What the gate did with them."""

    node_id: str
    method: str
    singles: float
    sequences: float
    singles_upper: float
    sequences_upper: float
    powers: list[float]
    cases: list[float]
    ratio: float
    promoted: float
    alike: float
    again: int
    cheaper: cheaper.Cheaper
    tries: tuple[int, int]
    """Judgements, and sequences."""

    def upper(self, name: str) -> float:
        """What the rate of false promotions as cheaper surely does not exceed."""
        singles, sequences = self.tries
        hits = {"singles": self.cheaper.singles, "sequences": self.cheaper.sequences}[name]
        return upper_rate(hits, singles if name == "singles" else sequences)


def measure(run: Run) -> Section:
    """Train, record and judge; nodes are spread over the cores."""
    nodes = run.nodes or tuple(dict.fromkeys(row.node_id for row in specialists.ROWS))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        found = []
        for recorded, one in pool.map(_found, nodes, [run] * len(nodes)):
            print(f"  {one.node_id}: {' '.join(_cells(one))}", flush=True)
            found.append((recorded, one))
    return Section(
        title="judgement: what the gate lets through, and what it sees",
        about="Equal models and better ones, made of the errors of real ones on hidden cases.",
        table=_table([one for _, one in found]),
        ratios=[
            Ratio(
                what="equal models promoted, of judgements, upper bound",
                values=[one.singles_upper for _, one in found],
                goal=FALSE_GOAL,
            ),
            Ratio(
                what="the same, of sequences of looks",
                values=[one.sequences_upper for _, one in found],
                goal=FALSE_GOAL,
            ),
            Ratio(
                what="worse models promoted as cheaper, of judgements, upper bound",
                values=[one.upper("singles") for _, one in found],
                goal=FALSE_GOAL,
            ),
            Ratio(
                what="the same, of sequences of looks",
                values=[one.upper("sequences") for _, one in found],
                goal=FALSE_GOAL,
            ),
            Ratio(
                what="chains of cheaper models that went beyond the margin",
                values=[beyond(one.cheaper) for _, one in found],
                goal=FALSE_GOAL,
            ),
            *(
                Ratio(
                    what=f"models of {factor:g} times the error promoted",
                    values=[one.powers[at] for _, one in found],
                    goal=goal,
                )
                for at, (factor, goal) in enumerate(POWER_GOALS.items())
            ),
        ],
        figures=[
            Figure(
                what="cases and answers of two models",
                unit="s",
                values=[seconds for seconds, _ in found],
            )
        ],
        notes=NOTES.format(
            looks=run.size(LOOKS),
            longer=LONGER,
            step=cheaper.STEP,
            cases=run.size(CASES),
            seconds=max(seconds for seconds, _ in found),
        ),
    )


def _found(node_id: str, run: Run) -> tuple[float, Found]:
    recorded = record(node_id, run)
    return recorded.seconds, judged(recorded, run)


# ── recording ──


def record(node_id: str, run: Run) -> Recorded:
    """Train three small models of a node and measure them."""
    row = next(
        row for row in specialists.ROWS if (row.node_id, row.role) == (node_id, "reinventor")
    )
    torch.set_num_threads(1)
    specialist = registry.get(node_id)
    steps = max(20, int(run.size(Size(row.steps, 80)) * STEPS_SHARE))
    with tempfile.TemporaryDirectory() as name:
        trained = [
            _trained(row, seed, count, Path(name) / f"{seed}-{count}")
            for seed, count in ((1, steps), (2, steps), (1, int(LONGER * steps)))
        ]
        loaded = [_loaded(specialist, folder) for folder in trained]
        again = sum(
            _promotes_itself(node_id, trained[0], number)
            for number in range(run.size(ROUNDS_OF_THE_SAME))
        )
    began = time.process_time()
    count = min(run.size(CASES), specialist.hidden_max or bounds.CASES_MAX)
    cases = specialist.cases(seeds.derive(node_id, "bench"), count, "hidden")
    one, other = (models.errors_of(specialist, model, cases) for model in loaded[:2])
    seconds = time.process_time() - began
    longer = models.errors_of(specialist, loaded[2], cases)
    return Recorded(node_id, specialist.tolerance, (one, other), (longer, one), seconds, again)


def _trained(row: specialists.Row, seed: int, steps: int, folder: Path) -> Path:
    job = jobs.Job(
        task_id="bench",
        node_id=row.node_id,
        specialist=row.node_id,
        role=row.role,
        seed=seed,
        directory=str(folder),
        steps=steps,
        checkpoint_seconds=specialists.NEVER,
    )
    result = training.run(job, lambda _: None, lambda: None)
    assert isinstance(result, jobs.Result), "nobody stops it"
    return Path(result.candidate_directory)


def _loaded(specialist: base.Specialist, folder: Path) -> models.Model:
    module = specialists.loaded(specialist, folder)
    return models.Model(module, sum(weight.numel() for weight in module.parameters()), 0)


def _promotes_itself(node_id: str, folder: Path, number: int) -> bool:
    """Whether a round with a secret of this number promotes a champion's own weights."""
    weights = folder / checkpoints.WEIGHTS_FILE
    files = models.Files(weights.read_bytes(), (folder / checkpoints.CONFIG_FILE).read_bytes())
    sha256 = tensors.weights_sha256_of_file(weights)
    digest = hashlib.sha256(files.weights).hexdigest()
    candidate = events.Candidate(
        candidate_id="again",
        rival="evolver",
        manifest=digest,
        writer="bench",
        weights_sha256=sha256,
        bytes=len(files.weights),
    )
    champion = events.replace(rounds.base_of(candidate), candidate_id="champion")
    secret = hashlib.sha256(b"round %d" % number).digest()
    brief = wire.RoundBrief(
        round_id=f"round-{number}",
        node_id=node_id,
        index=number,
        commitment=keys.commitment_to(secret),
        workload=events.Workload(specialist=node_id),
        look=1,
        champion=champion,
        candidates=[wire.Brought(candidate=candidate, task_id="bench", worker_id="bench")],
    )
    stored = {"again": files, "champion": files}
    timing = functools.partial(latency.measure, quiet=contextlib.nullcontext)
    verdict = trial.measure(brief, stored, secret, "bench", timing=timing)
    assert verdict.verdict != "void", verdict.reasons.en
    return bool(verdict.promoted)


# ── judging ──


def judged(recorded: Recorded, run: Run) -> Found:
    """What the gate does with equal, scaled and real pairs."""
    trials = _Trials(recorded, np.random.default_rng(1))
    singles, sequences = run.size(SINGLES), run.size(SEQUENCES)
    false = sum(trials.promotes(recorded.twins) for _ in range(singles))
    falsely = sum(
        any(trials.promotes(recorded.twins, look=look) for look in range(1, run.size(LOOKS) + 1))
        for _ in range(sequences)
    )
    tries = run.size(POWER_TRIES)
    powers, cases = zip(*(trials.power(factor, tries) for factor in FACTORS), strict=True)
    ruling = gate.decide(*recorded.unequal, tolerance=recorded.tolerance, look=1)
    ratio = ruling.ratio or 0.0
    real = sum(trials.promotes(recorded.unequal, swap=False) for _ in range(tries)) / tries
    return Found(
        node_id=recorded.node_id,
        method=ruling.method,
        singles=false / singles,
        sequences=falsely / sequences,
        singles_upper=upper_rate(false, singles),
        sequences_upper=upper_rate(falsely, sequences),
        powers=list(powers),
        cases=list(cases),
        ratio=ratio,
        promoted=real,
        alike=trials.power(ratio, tries)[0],
        again=recorded.again,
        cheaper=cheaper.measure(
            recorded.twins,
            recorded.tolerance,
            np.random.default_rng(2),
            singles,
            sequences,
            run.size(LOOKS),
        ),
        tries=(singles, sequences),
    )


def beyond(found: cheaper.Cheaper) -> float:
    """The share of chains that came further than the margin has it."""
    return sum(one.is_beyond for one in found.chains) / len(found.chains)


class _Trials:
    """Judgements of pairs, each on cases drawn anew."""

    def __init__(self, recorded: Recorded, draw: np.random.Generator) -> None:
        self._recorded, self._draw = recorded, draw
        self.taken = 0
        """Cases of the last judgement."""

    def promotes(
        self, pair: Pair, *, look: int = 1, factor: float = 1.0, swap: bool = True
    ) -> bool:
        """Whether the first of a pair, times a factor, is promoted instead of the other."""
        new, opponent = np.empty(0), np.empty(0)
        for stage, added in self._stages(pair, swap):
            new = np.concatenate([new, self._scaled(added[0], factor)])
            opponent = np.concatenate([opponent, added[1]])
            ruling = gate.decide(
                new, opponent, tolerance=self._recorded.tolerance, look=look, stage=stage
            )
            if ruling.settled:
                break
        self.taken = len(new)
        return ruling.verdict == "better"

    def _stages(self, pair: Pair, swap: bool) -> Iterator[tuple[bounds.Stage, Pair]]:
        one, other = pair
        for stage in bounds.stages(len(one)):
            at = self._draw.integers(0, len(one), stage.cases - stage.before)
            turned = self._draw.random(len(at)) < (0.5 if swap else 0.0)
            left, right = one[at], other[at]
            yield stage, (np.where(turned, right, left), np.where(turned, left, right))

    def _scaled(self, errors: bounds.Floats, factor: float) -> bounds.Floats:
        """Errors times a factor; of those that are 0 or 1, as many fewer of 1."""
        if np.isin(errors, (0.0, 1.0)).all():
            return errors * (self._draw.random(len(errors)) < factor)
        return factor * errors

    def power(self, factor: float, tries: int) -> tuple[float, float]:
        """How often equal models of which one is scaled are told apart; the cases it takes."""
        won = taken = 0
        for _ in range(tries):
            won += self.promotes(self._recorded.twins, factor=factor)
            taken += self.taken
        return won / tries, taken / tries


def upper_rate(hits: int, tries: int) -> float:
    """The largest rate under which so few hits, or fewer, come with a chance of 5 %."""

    def at_most(rate: float) -> float:
        terms = (
            math.exp(
                math.lgamma(tries + 1)
                - math.lgamma(count + 1)
                - math.lgamma(tries - count + 1)
                + count * math.log(rate)
                + (tries - count) * math.log1p(-rate)
            )
            for count in range(hits + 1)
        )
        return sum(terms)

    if hits == tries:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - CONFIDENCE else (low, middle)
    return high


# ── telling ──


def _table(found: list[Found]) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "| --- |" + " --- |" * (len(HEADS) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(one))} |" for one in found)])


def _cells(one: Found) -> list[str]:
    return [
        one.node_id,
        one.method,
        f"{one.singles:.4f}",
        f"{one.sequences:.4f}",
        f"{one.singles_upper:.4f}, {one.sequences_upper:.4f}",
        *(f"{power:.3f}" for power in one.powers),
        ", ".join(f"{cases:,.0f}" for cases in one.cases),
        f"{one.ratio:.3f}",
        f"{one.promoted:.3f}",
        f"{one.alike:.3f}",
        f"{one.again}",
        f"{one.cheaper.singles / one.tries[0]:.4f}",
        f"{one.cheaper.sequences / one.tries[1]:.4f}",
        f"{one.upper('singles'):.4f}, {one.upper('sequences'):.4f}",
        f"{one.cheaper.power:.3f}",
        f"{max(each.links for each in one.cheaper.chains)}",
        f"{max(each.error for each in one.cheaper.chains):.4f}",
        f"{beyond(one.cheaper):.3f}",
    ]
