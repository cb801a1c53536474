"""What telemetry costs a training: processor time for a minute of reports, by that minute."""

import asyncio
import os
import random
import tempfile
import time
from pathlib import Path

import msgspec

from agent import gauges, telemetry
from agent.executors import jobs, training
from benchmarks import harness
from benchmarks.harness import Figure, Goal, Ratio, Run, Section, Size
from tests import nats_fixture

GOAL = Goal("at most", 0.005)
MINUTES = Size(20, 1)
REPORTS = int(60 / training.PROGRESS_SECONDS)
MESSAGE_EVERY = int(telemetry.LIVE_SECONDS / training.PROGRESS_SECONDS)
READING_EVERY = int(gauges.SAMPLE_SECONDS / training.PROGRESS_SECONDS)

NOTES = """
- Counted is all that a report costs from its encoding in the executor to the message that is handed
  to nats-server, in one process and without a pause: what the executor reported before there was
  telemetry, too. The executor itself spends the first of it alone; the agent is another process.
- The gauge reads processor time and memory of a process. A GPU's is read in a thread that nobody
  waits for.
"""


async def _minutes(run: Run) -> float:
    """Processor seconds that a minute of telemetry takes."""
    count = run.size(MINUTES)
    with (
        tempfile.TemporaryDirectory(prefix="aghsan-bench-") as folder,
        nats_fixture.running(Path(folder) / "data") as server,
    ):
        await server.apply()
        async with server.connect("desk") as bus:
            record, gauge = telemetry.Record(), gauges.Processors()
            record.begin("evolver", 0, count * REPORTS, [])
            decode = msgspec.json.Decoder(jobs.Report).decode
            draw, usage = random.Random(7), gauges.Usage()
            began = time.process_time()
            for number in range(1, count * REPORTS + 1):
                report = jobs.Progress(
                    step=100 * number,
                    total_steps=100 * count * REPORTS,
                    loss=draw.random() / number,
                    learning_rate=1e-3 / number,
                    samples_per_second=1e5 * draw.random(),
                )
                heard = decode(msgspec.json.encode(report))
                assert isinstance(heard, jobs.Progress)
                if number % READING_EVERY == 0:
                    usage = gauge.read(os.getpid())
                record.add("evolver", heard, usage)
                if number % MESSAGE_EVERY == 0:
                    news = record.take_unsent(1, number * training.PROGRESS_SECONDS)
                    await bus.publish("telemetry.bench.task", msgspec.json.encode(news))
            await bus.flush()
            return (time.process_time() - began) / count


def measure(run: Run) -> Section:
    """Processor time of telemetry, as a share of one processor."""
    found = asyncio.run(harness.alternate({"a minute": lambda: _minutes(run)}, run.repetitions))
    seconds = found["a minute"]
    return Section(
        title="telemetry: what it costs a training to be told of",
        about=f"{REPORTS} reports, {REPORTS // MESSAGE_EVERY} messages, one of them with the whole "
        f"curve, and {REPORTS // READING_EVERY} readings of a gauge a minute.",
        ratios=[
            Ratio(
                what="processor time of telemetry / time of training",
                values=[one / 60 for one in seconds],
                goal=GOAL,
            )
        ],
        figures=[
            Figure(
                what="a report and its share of all else",
                unit="µs of processor time",
                values=[one / REPORTS * 1e6 for one in seconds],
            )
        ],
        notes=NOTES,
    )
