"""`python -m faults`: let things die, and see whether an acknowledged fact is ever lost."""

import asyncio
import importlib
import os
import secrets
import signal
import sys
import tempfile
import traceback

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
    "cheats",
    "diskfull",
    "powerloss",
    "partition",
    "slow",
    "model",
    "sim",
)


@click.command()
@click.argument("names", nargs=-1, metavar="[SUITE]...")
@click.option("--seed", type=int, help="Make the choices of an earlier run; else a new seed.")
@click.option("--long", is_flag=True, help="Many more tries.")
@click.option("--quick", is_flag=True, help="A few tries, as the tests do.")
def main(names: tuple[str, ...], seed: int | None, long: bool, quick: bool) -> None:
    """Run the suites named, or all. Ends 1 on any violation, and where a suite that was named
    cannot be run here.

    What each does: docs/faults.md.
    """
    program.configure_stdio()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise click.UsageError(f"there is no suite {', '.join(unknown)}: {', '.join(NAMES)}")
    # So that servers and writers are stopped on the way out, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = secrets.randbelow(2**32) if seed is None else seed
    run = harness.Run(chosen, quick, long, named=seed is not None)
    print(f"seed {run.seed}", flush=True)
    # Anchors of logs belong into the user's configuration, those of suites do not.
    with tempfile.TemporaryDirectory(prefix="aghsan-config-") as configuration:
        os.environ["XDG_CONFIG_HOME"] = configuration
        verdicts = [_attack(name, run) for name in names or NAMES]
    print(harness.table(verdicts))
    sys.exit(0 if all(one.holds or (one.unable and not names) for one in verdicts) else 1)


def _attack(name: str, run: harness.Run) -> harness.Verdict:
    try:
        verdict: harness.Verdict
        verdict = asyncio.run(importlib.import_module(f"faults.{name}").attack(run))
    except Exception as error:  # noqa: BLE001  the other suites still have their turn
        traceback.print_exc()
        words = f"it could not go on: {type(error).__name__}: {error}"
        return harness.Verdict(name, wrong=[words])
    return verdict


if __name__ == "__main__":
    main(prog_name="faults")
