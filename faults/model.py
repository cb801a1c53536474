"""The state machine of the property tests, with many more examples, by seed."""

import asyncio
import traceback

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from core import commands, events
from faults.harness import Run, Verdict
from tests.property.test_machine import CONFIGURED, Network

NAME = "model"
TRACE_LINES = 60


class Counted(Network):
    """The same, which counts what was answered, be it by a refusal."""

    answered = 0

    def attempt(self, command: commands.AnyCommand) -> list[events.EventData]:
        done = super().attempt(command)
        Counted.answered += 1
        return done


async def attack(run: Run) -> Verdict:
    """Let agents, old workers, judges and people do anything in any order, without any IO."""
    verdict = Verdict(NAME, run.tries(5, 500, 10_000))
    configured = hypothesis.settings(
        CONFIGURED, max_examples=verdict.tries, database=None, print_blob=False
    )
    before = Counted.answered
    try:
        await asyncio.to_thread(
            run_state_machine_as_test, hypothesis.seed(run.seed)(Counted), settings=configured
        )
    except Exception:  # noqa: BLE001  whatever it is, the steps to it are told with it
        lines = traceback.format_exc().splitlines()
        verdict.wrong.append("\n".join(lines[-TRACE_LINES:]))
    verdict.acknowledged = Counted.answered - before
    return verdict
