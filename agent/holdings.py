"""A task that an agent holds: where it stands, and what its result says."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.executors import jobs
from agent.link import Pulled
from core import wire
from core.events import Rival, Token

LOSSES_KEPT = 50
_PRIVATE = ("candidate_directory", "node_id")


@dataclass
class Holding:
    """A task this agent holds, and where it stands."""

    assignment: wire.Assignment
    offer: Pulled
    rival: Rival | str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    losses: list[tuple[str, int, float]] = field(default_factory=list)
    results: dict[Rival, jobs.Result] = field(default_factory=dict)
    candidates: dict[Rival, Path] = field(default_factory=dict)
    uploads: set[asyncio.Task[None]] = field(default_factory=set)
    delivering: bool = False
    lost: str = ""

    @property
    def token(self) -> Token:
        """The fencing token of the claim."""
        return self.assignment.token

    def beat(self) -> wire.TaskBeat:
        """Where the task stands, for the heartbeat."""
        return wire.TaskBeat(
            task_id=self.token.task_id,
            attempt=self.token.attempt,
            rival=self.rival,
            step=self.step,
            total_steps=self.total_steps,
            loss=self.loss,
        )


def metrics_of(holding: Holding) -> dict[str, Any]:
    """What a result says: the better rival's figures, and each rival's own."""
    best = min(holding.results, key=lambda rival: holding.results[rival].loss)
    assignment = holding.assignment
    every = max(1, len(holding.losses) // LOSSES_KEPT)
    shown = ("loss", "baseline_loss", "evidence_rate", "steps", "params", "bytes")
    result = msgspec.to_builtins(holding.results[best])
    return {
        **{name: result[name] for name in shown},
        "rival": best,
        "weights_sha256": result["weights_sha256"],
        "seed": assignment.seed,
        "workload": {
            "specialist": assignment.workload.specialist,
            "parameters": assignment.workload.parameters,
            "inherited": assignment.workload_inherited,
        },
        "base_sha256": assignment.base.weights_sha256 if assignment.base else "",
        "rivals": {
            rival: {k: v for k, v in msgspec.to_builtins(each).items() if k not in _PRIVATE}
            for rival, each in holding.results.items()
        },
        "losses": [list(point) for point in holding.losses[::every]],
        "finished_at": time.time(),
    }
