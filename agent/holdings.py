"""A task that an agent holds: where it stands, and what its result says."""

import asyncio
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.artifacts import Stored
from agent.executors import jobs
from agent.link import Pulled
from agent.telemetry import Record
from core import platforms, subjects, wire
from core.events import Rival, Token

log = logging.getLogger(__name__)

STARTS_MAX = 3
"""How often a claim is taken up again after its agent died: one that ends agent after agent is
given up."""
_CLAIM_FILE = "claim.json"
_GONE = ".gone"
_PRIVATE = ("candidate_directory", "node_id", "others")


@dataclass
class Holding:
    """A task this agent holds, and where it stands. `starts` counts the agents that died on it."""

    assignment: wire.Assignment
    offer: Pulled
    starts: int = 0
    rival: Rival | str = ""
    step: int = 0
    total_steps: int = 0
    record: Record = field(default_factory=Record)
    results: dict[Rival, jobs.Result] = field(default_factory=dict)
    candidates: dict[Rival, Path] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    """How each rival is trained, once that is known."""
    uploads: set[asyncio.Task[None]] = field(default_factory=set)
    sent: Path | None = None
    """The state whose upload began last."""
    is_unstored: bool = False
    """Its last checkpoint found no server, as this agent stopped."""
    stored: dict[Rival, Stored] = field(default_factory=dict)
    """The last checkpoint of each rival that the server has."""
    delivering: bool = False
    lost: str = ""

    @property
    def token(self) -> Token:
        """The fencing token of the claim."""
        return self.assignment.token

    def beat(self) -> wire.TaskBeat:
        """Where the task stands, for the heartbeat."""
        latest = self.record.latest
        return wire.TaskBeat(
            task_id=self.token.task_id,
            attempt=self.token.attempt,
            rival=self.rival,
            step=self.step,
            total_steps=self.total_steps,
            loss=latest.loss if latest else None,
            samples_per_second=latest.samples_per_second if latest else None,
            utilisation=latest.utilisation if latest else None,
            memory_bytes=latest.memory_bytes if latest else None,
        )


class _Claim(msgspec.Struct, frozen=True):
    """What an agent that starts again has to know of a claim; its training lies beside it."""

    assignment: wire.Assignment
    offer: Pulled
    starts: int


def keep(folder: Path, holding: Holding) -> None:
    """Write down, durably, what this agent holds, in the folder of the task. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = _Claim(holding.assignment, holding.offer, holding.starts)
    platforms.write_atomically(folder / _CLAIM_FILE, msgspec.json.encode(claim))


def restore(tasks: Path) -> list[Holding]:
    """What an earlier run of this agent held as it died, in the order of the claims' files.

    One that cannot be read, or that more than STARTS_MAX agents died on, is left out: the server
    gives it to somebody.
    """
    found = []
    for path in sorted(tasks.glob(f"*/{_CLAIM_FILE}"), key=lambda path: path.stat().st_mtime):
        try:
            claim = msgspec.json.decode(path.read_bytes(), type=_Claim)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("a claim is given up: %s", error, extra={"action": "restore"})
            continue
        holding = Holding(claim.assignment, claim.offer, claim.starts + 1)
        if holding.starts <= STARTS_MAX:
            found.append(holding)
    return found


def folder_of(tasks: Path, task_id: str) -> Path:
    """Where the training of a task lies."""
    return tasks / subjects.token(task_id)


def put_away(tasks: Path, task_id: str) -> Path:
    """Free the name of a task's folder at once, and say where it now waits to be deleted: deleting
    takes a while, in which a later attempt may begin. What is left there goes with the next start.
    """
    folder = folder_of(tasks, task_id)
    gone = tasks / _GONE / uuid.uuid4().hex
    try:
        gone.parent.mkdir(exist_ok=True)
        folder.rename(gone)
    except FileNotFoundError:
        pass  # nothing was ever written
    except OSError:
        # No room for a name, or on Windows a file in use: then while the loop waits.
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def models_of(holding: Holding) -> Iterator[tuple[Rival, jobs.Result]]:
    """All that a finished task brings: of each rival its result, and what else a merge made."""
    for rival, result in holding.results.items():
        yield from ((rival, one) for one in (result, *result.others))


def _named(holding: Holding) -> Iterator[tuple[str, jobs.Result]]:
    for rival, result in models_of(holding):
        yield f"{rival} ({result.made})" if result.made else rival, result


def metrics_of(holding: Holding) -> dict[str, Any]:
    """What a result says: the better rival's figures, and each rival's own."""
    best = min(holding.results, key=lambda rival: holding.results[rival].loss)
    assignment = holding.assignment
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
            name: {k: v for k, v in msgspec.to_builtins(each).items() if k not in _PRIVATE}
            for name, each in _named(holding)
        },
        "finished_at": time.time(),
    }
