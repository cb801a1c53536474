"""`python -m faults`: let things die, and see whether an acknowledged fact is ever lost."""

import asyncio
import importlib
import secrets
import signal
import sys

import click

from cli import main as program
from faults import harness

NAMES = (
    "writer",
    "ambiguous",
    "kill9",
    "zombie",
    "damage",
    "poison",
    "diskfull",
    "powerloss",
    "partition",
    "sim",
)


@click.command()
@click.argument("names", nargs=-1, metavar="[SUITE]...")
@click.option("--seed", type=int, help="Make the choices of an earlier run; else a new seed.")
@click.option("--long", is_flag=True, help="Many more tries.")
@click.option("--quick", is_flag=True, help="A few tries, as the tests do.")
def main(names: tuple[str, ...], seed: int | None, long: bool, quick: bool) -> None:
    """Run the suites named, or all. Ends 1 on any violation, and where a suite that was named
    cannot be run here."""
    program.configure_stdio()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise click.UsageError(f"there is no suite {', '.join(unknown)}: {', '.join(NAMES)}")
    # So that servers and writers are stopped on the way out, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = secrets.randbelow(2**32) if seed is None else seed
    run = harness.Run(chosen, quick, long, named=seed is not None)
    print(f"seed {run.seed}", flush=True)
    verdicts = []
    for name in names or NAMES:
        suite = importlib.import_module(f"faults.{name}")
        verdicts.append(asyncio.run(suite.attack(run)))
    print(harness.table(verdicts))
    sys.exit(0 if all(one.holds or (one.unable and not names) for one in verdicts) else 1)


if __name__ == "__main__":
    main(prog_name="faults")
