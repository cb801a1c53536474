"""`python -m benchmarks`: measure, and write what was found into RESULTS.md."""

import importlib
import signal
import sys
from pathlib import Path

import click

from benchmarks import harness
from cli import main as program
from core import specializations

RESULTS = Path(__file__).parent / "RESULTS.md"
NAMES = (
    "http",
    "append",
    "offer",
    "rebuild",
    "snapshot",
    "busy",
    "death",
    "artifacts",
    "specialists",
    "judgement",
    "merging",
    "improvement",
    "latency",
    "telemetry",
)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--repetitions",
    default=harness.REPETITIONS_MIN,
    show_default=True,
    type=click.IntRange(harness.REPETITIONS_MIN, 100),
    help="How often each side is measured, in turn with the others.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    type=click.Choice([seed.node_id for seed in specializations.SEEDS]),
    metavar="ID",
    help="Of specialists, judgement and merging: this node, may be repeated; RESULTS.md stays "
    "as it is.",
)
@click.option(
    "--seeds",
    default=harness.SEEDS,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Of specialists: how often each rival is trained.",
)
@click.option(
    "--rows",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of specialists: a file of what was measured, to go on from and to add to.",
)
@click.option("--quick", is_flag=True, help="Small sizes, for a look; RESULTS.md stays as it is.")
def main(
    names: tuple[str, ...],
    repetitions: int,
    nodes: tuple[str, ...],
    seeds: int,
    rows: Path | None,
    quick: bool,
) -> None:
    """Run the benchmarks of these NAMEs, or all: http, append, offer, rebuild, snapshot,
    busy, death, artifacts, specialists, judgement, merging, improvement, latency, telemetry.

    Each compares two sides in one run, in turn, and what counts is their ratio. Its section of
    benchmarks/RESULTS.md is replaced. Let nothing else run on the machine.
    """
    program.configure_stdio()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise click.UsageError(
            f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}"
        )
    # So that servers and stacks are stopped on the way out, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = harness.Run(repetitions=repetitions, quick=quick, nodes=nodes, seeds=seeds, rows=rows)
    for name in names or NAMES:
        print(f"{name}:", flush=True)
        section: harness.Section = importlib.import_module(f"benchmarks.{name}").measure(run)
        print(harness.rendered_now(section), flush=True)
        if not (quick or nodes):
            harness.write(RESULTS, name, section, NAMES)


if __name__ == "__main__":
    main(prog_name="benchmarks")
