"""Marks: which artifacts a log names, and until when each of them was needed.

Told apart from the projections, which keep completed tasks in brief, and from the audit, which
checks what was swept by these marks. Wherever something is not certain, it is needed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from core import events
from core.chunks import DESK
from core.events import Checkpoint, Rival, Workload
from core.log import Record

Kind: TypeAlias = Literal[
    "checkpoint", "candidate", "metrics", "payload", "telemetry", "corpus", "unknown"
]

FOR_EVER = 1 << 62
"""Until when something is needed whose end is not in the log."""

_find_digests = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])").findall


@dataclass(slots=True)
class Mark:
    """An artifact that the log names. `identity` is a candidate's, else what tells it apart within
    its task; times are microseconds since 1970, `bytes` is -1 where the log does not say."""

    kind: Kind
    digest: str
    writer: str
    identity: str
    at: int
    bytes: int = -1
    task_id: str = ""
    node_id: str = ""
    needed_until: int = FOR_EVER


@dataclass(slots=True)
class _Open:
    """A task that is not completed: its latest claim, and the last checkpoint of each rival."""

    node_id: str
    attempt: int = 0
    claim_id: str = ""
    kept: dict[Rival, Mark] = field(default_factory=dict)


class Marks:
    """Takes a log record by record, from its first.

    A checkpoint is needed until its rival's next one, or until its task is completed; failed and
    cancelled tasks may be queued again. All else that is named is needed for ever.
    """

    def __init__(self) -> None:
        self.all: list[Mark] = []
        self.champions: dict[str, str] = {}
        """The candidate that reigns, by node."""
        self.of_budgets: dict[tuple[str, str], str] = {}
        """The candidate that reigns for a budget, by node and budget."""
        self._open: dict[str, _Open] = {}

    def take(self, record: Record) -> None:
        """Take what a record names. Whatever a record that cannot be read may name is needed: it
        may be of a newer version."""
        event = events.decode(*record)
        if isinstance(event, events.Event):
            self._event(event.at, event.data)
        else:
            for digest in _find_digests(record.data):
                self.all.append(Mark("unknown", digest.decode(), DESK, f"record {record.seq}", 0))

    def needed_since(self, moment: int) -> Iterator[Mark]:
        """What is needed, or was at this moment or later."""
        return (mark for mark in self.all if mark.needed_until >= moment)

    def _event(self, at: int, data: events.EventData) -> None:
        match data:
            case events.TaskQueued():
                self._open.setdefault(data.task_id, _Open(data.node_id))
            case events.TaskClaimed():
                if task := self._open.get(data.task_id):
                    task.attempt, task.claim_id = data.attempt, data.claim_id
            case events.CheckpointStored():
                self._stored(at, data)
            case events.AttemptFailed():
                self._failed(at, data)
            case events.TaskCompleted():
                self._completed(at, data)
            case events.ChampionPromoted() | events.ChampionChosen():
                self._reigns(at, data)
            case events.ChampionRetired():
                if data.budget:
                    self.of_budgets.pop((data.node_id, data.budget), None)
                else:
                    self.champions.pop(data.node_id, None)
            case events.NodeAdded() | events.WorkloadChanged():
                self._trains(at, data.node_id, data.workload)
            case _:
                pass

    def _reigns(self, at: int, data: events.ChampionPromoted | events.ChampionChosen) -> None:
        one = data.champion
        if data.budget:
            self.of_budgets[data.node_id, data.budget] = one.candidate_id
        else:
            self.champions[data.node_id] = one.candidate_id
        mark = Mark("candidate", one.manifest, one.writer, one.candidate_id, at)
        mark.task_id, mark.node_id = one.task_id, data.node_id
        self.all.append(mark)

    def _trains(self, at: int, node_id: str, workload: Workload | None) -> None:
        """A corpus stays when its node trains something else: what was measured on it may be
        measured again."""
        if workload is not None and workload.corpus is not None:
            for digest, part in (
                (workload.corpus.manifest, "public"),
                (workload.corpus.hidden, "hidden"),
            ):
                identity = f"{workload.corpus.name} ({part})"
                mark = Mark("corpus", digest, DESK, identity, at)
                mark.node_id = node_id
                self.all.append(mark)

    def _stored(self, at: int, data: events.CheckpointStored) -> None:
        point, task = data.checkpoint, self._open.get(data.task_id)
        mark = _of_checkpoint(at, data.task_id, point)
        self.all.append(mark)
        if task is not None and _speaks_for(data, task):
            mark.node_id = task.node_id
            if before := task.kept.get(point.rival):
                before.needed_until = at
            task.kept[point.rival] = mark

    def _failed(self, at: int, data: events.AttemptFailed) -> None:
        if data.telemetry_digest:
            task = self._open.get(data.task_id)
            mark = Mark("telemetry", data.telemetry_digest, DESK, f"attempt {data.attempt}", at)
            mark.task_id, mark.node_id = data.task_id, task.node_id if task else ""
            self.all.append(mark)

    def _completed(self, at: int, data: events.TaskCompleted) -> None:
        task = self._open.get(data.task_id)
        node_id = task.node_id if task else ""
        for one in data.candidates:
            mark = Mark("candidate", one.manifest, one.writer, one.candidate_id, at, one.bytes)
            mark.task_id, mark.node_id = data.task_id, node_id
            self.all.append(mark)
        stored: tuple[tuple[Kind, str], ...] = (
            ("metrics", data.metrics_digest),
            ("payload", data.artifact_digest),
            ("telemetry", data.telemetry_digest),
        )
        for kind, digest in stored:
            if digest:
                self.all.append(Mark(kind, digest, DESK, kind, at, -1, data.task_id, node_id))
        if task is not None and _speaks_for(data, task):
            for mark in task.kept.values():
                mark.needed_until = at
            del self._open[data.task_id]


def _speaks_for(data: events.CheckpointStored | events.TaskCompleted, task: _Open) -> bool:
    """Whether the state takes it: others speak for a claim that was overtaken."""
    return (data.attempt, data.claim_id) == (task.attempt, task.claim_id)


def _of_checkpoint(at: int, task_id: str, point: Checkpoint) -> Mark:
    identity = f"{point.rival} {point.step}"
    return Mark("checkpoint", point.manifest, point.writer, identity, at, point.bytes, task_id)
