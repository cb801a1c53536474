"""latency: whether a model is judged as fast beside busy agents as it is on a quiet machine.

Pairs of a champion and a candidate of known work are timed as a round times them, against the bound
that a better model's latency has to keep. The same two are judged with nothing beside them, beside
two agents whose executors train without end and stand still for it, and beside the same agents
where nothing stands still.
"""

import contextlib
import itertools
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import harness
from core import quiet, values
from orchestrator import latency

TRIES = harness.Size(full=20, quick=2)
BOUND = values.Gates().latency_ratio
AGENTS = 2
WIDTH = 128
CHAMPION_LAYERS = 40
PAIRS = {"equal": 40, "1.15 times the work": 46, "1.4 times the work": 56}
"""Layers of the candidate."""
WAYS = ("nothing beside", "paused", "not paused")
AGENT = """
import asyncio, sys
from pathlib import Path
from agent.executors import jobs
from agent.executors.pool import Pool
from core import quiet

async def train(folder, home):
    pool = Pool(threads=1)
    await pool.start()
    heeder = quiet.Heeder(Path(folder), pool.suspend, pool.resume)
    heeder.start()
    job = jobs.Job(task_id="t", node_id="physics-fluid", specialist="physics-fluid", seed=1,
                   role="evolver", directory=home, steps=1_000_000,
                   parameters={"viscosity_least": 0.01, "viscosity_ratio": 5.0,
                               "final_time": 0.5, "waves": 6.0})
    await pool.run(job, lambda report: print(type(report).__name__, flush=True))

asyncio.run(train(*sys.argv[1:]))
"""

Hush = Callable[[], contextlib.AbstractContextManager[object]]


class Judged(NamedTuple):
    """A pair, judged in one way, try after try."""

    pair: str
    way: str
    verdicts: list[values.CheckVerdict]
    ratios: list[float]
    readings: int


def measure(run: harness.Run) -> harness.Section:
    """The section of RESULTS.md."""
    tries = run.size(TRIES)
    found = [_judged(pair, WAYS[0], contextlib.nullcontext, tries) for pair in PAIRS]
    with tempfile.TemporaryDirectory() as name, _agents(Path(name)) as folder:
        found += [_judged(pair, WAYS[1], quiet.of(folder), tries) for pair in PAIRS]
        found += [_judged(pair, WAYS[2], contextlib.nullcontext, tries) for pair in PAIRS]
    return harness.Section(
        title="latency: the same verdict beside busy agents",
        about=f"A candidate's latency against the champion's, held to the bound {BOUND:g}: {tries} "
        f"tries of each pair, with nothing beside, beside {AGENTS} agents whose executors train "
        "without end and are paused for it, and beside the same without a pause. How many verdicts "
        "are the one that most tries with nothing beside came to.",
        ratios=[
            harness.Ratio(
                what=f"{one.pair}, {one.way}: share of verdicts as with nothing beside",
                values=[_agreeing(one, found) / tries],
                goal=harness.Goal("at least", 0.95) if one.way == WAYS[1] else None,
            )
            for one in found
            if one.way != WAYS[0]
        ],
        figures=[
            harness.Figure(what=f"{one.pair}, {one.way}", unit="times", values=one.ratios)
            for one in found
        ],
        table=_table(found),
    )


def _agreeing(one: Judged, found: list[Judged]) -> int:
    calm = next(each for each in found if (each.pair, each.way) == (one.pair, WAYS[0]))
    ((usual, _),) = Counter(calm.verdicts).most_common(1)
    return one.verdicts.count(usual)


def _table(found: list[Judged]) -> str:
    heads = "| candidate | beside | pass | fail | undecided | as with nothing beside | readings |"
    lines = [heads, "|" + " --- |" * 7]
    for one in found:
        counts = (one.verdicts.count(verdict) for verdict in ("pass", "fail", "undecided"))
        told = " | ".join(str(count) for count in counts)
        mean = one.readings / len(one.verdicts)
        lines.append(f"| {one.pair} | {one.way} | {told} | {_agreeing(one, found)} | {mean:.1f} |")
    return "\n".join(lines)


def _judged(pair: str, way: str, hush: Hush, tries: int) -> Judged:
    models = {"champion": _model(CHAMPION_LAYERS), "candidate": _model(PAIRS[pair])}
    verdicts: list[values.CheckVerdict] = []
    ratios, readings = [], 0
    for _ in range(tries):
        seen = latency.measure(models, "champion", _is_clear, hush)
        verdicts.append(_verdict(seen["candidate"]))
        ratios.append(seen["candidate"].against or 0.0)
        readings += seen["candidate"].readings
    print(f"  {pair}, {way}: {dict(Counter(verdicts))}", flush=True)
    return Judged(pair, way, verdicts, ratios, readings)


def _is_clear(_: str, seen: values.Latency) -> bool:
    return _verdict(seen) != "undecided"


def _verdict(seen: values.Latency) -> values.CheckVerdict:
    assert seen.against_lower is not None, "there is a champion"
    assert seen.against_upper is not None, "there is a champion"
    if seen.against_upper <= BOUND:
        return "pass"
    return "fail" if seen.against_lower > BOUND else "undecided"


def _model(layers: int) -> latency.Timed:
    """So many layers, each as much work as the next. No two share a reading."""
    stack = [(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(layers)]
    module = torch.nn.Sequential(*itertools.chain.from_iterable(stack)).eval().requires_grad_(False)
    return latency.Timed(module, (torch.randn(1, WIDTH),), str(id(module)))


@contextlib.contextmanager
def _agents(home: Path) -> Iterator[Path]:
    """Agents that train without end, and the folder by which they are asked for quiet."""
    folder = home / "quiet"
    running = []
    try:
        for number in range(AGENTS):
            argv = [sys.executable, "-c", AGENT, str(folder), str(home / str(number))]
            running.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        for agent in running:
            assert agent.stdout is not None
            for line in agent.stdout:
                if line.strip() == b"Progress":
                    break
            else:
                raise RuntimeError("an agent ended before it trained")
            _drain(agent)
        yield folder
    finally:
        for agent in running:
            agent.kill()
            agent.wait()


def _drain(agent: "subprocess.Popen[bytes]") -> None:
    """Let it go on telling, to nobody."""
    threading.Thread(target=lambda: list(agent.stdout or ()), daemon=True).start()
