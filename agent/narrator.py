"""What an agent tells the person at its terminal: one quiet line for each turn of its work."""

from collections.abc import Callable
from pathlib import Path

from agent.holdings import Holding
from agent.machine import Machine

TOPIC_LETTERS_MAX = 40
MIB = 1024 * 1024


class Narrator:
    """Says what happens to one agent; what goes on unchanged is said once."""

    def __init__(self, say: Callable[[str], None], api: str) -> None:
        self._say = say
        self._api = api
        self._has_joined = False
        self._is_away = False
        self._waits = False

    def attached(self, worker_id: str, lane: str, machine: Machine) -> None:
        """A session began, the first one or one after the server was away."""
        if self._has_joined:
            self.answered()
            return
        self._has_joined, self._is_away = True, False
        device = f"{machine.devices} × {machine.device}, {machine.memory_gb:g} GB"
        self._say(
            f"joined {self._api} as {worker_id} (lane {lane}: {device}); "
            "Ctrl-C saves, gives back and leaves"
        )

    def unanswered(self, why: str, *, trains: bool, again_seconds: float) -> None:
        """The server did not answer; `why` says so of one that never did."""
        if self._is_away:
            return
        self._is_away = True
        lost = f"lost the server at {self._api}" + ("; the training goes on" if trains else "")
        self._say(f"{lost if self._has_joined else why}; trying again every {again_seconds:g} s")

    def full(self, why: str, *, again_seconds: float) -> None:
        """The server has no room for what this agent brings."""
        if not self._is_away:
            self._is_away = True
            self._say(f"the server has no room ({why}); trying again for {again_seconds:g} s")

    def short_of_room(self, directory: Path, free_bytes: int, needed_bytes: int) -> None:
        """This machine's own disk is nearly full."""
        self._say(
            f"asks for no work: {free_bytes // MIB} MiB are free on the disk of {directory}, "
            f"{needed_bytes // MIB} MiB are needed"
        )

    def answered(self) -> None:
        """The server answered."""
        if self._is_away:
            self._is_away = False
            self._say("the server answers again")

    def waits(self) -> None:
        """Nobody offers work."""
        if not self._waits:
            self._waits = True
            self._say("waiting for work")

    def trains(self, holding: Holding) -> None:
        """A task was claimed."""
        self._waits = False
        assignment = holding.assignment
        how = [str(assignment.role)]
        if assignment.token.attempt > 1:
            how.append(f"attempt {assignment.token.attempt}")
        if assignment.resume:
            how.append(f"from step {sum(point.step for point in assignment.resume)}")
        topic = f" “{assignment.topic[:TOPIC_LETTERS_MAX]}”" if assignment.topic else ""
        self._say(f"trains {_name(holding)}{topic} ({', '.join(how)})")

    def delivered(self, holding: Holding) -> None:
        """A result was taken; by then the next task is being trained."""
        losses = [f"{rival} {one.loss:.4g}" for rival, one in holding.results.items()]
        baselines = {f"{one.baseline_loss:.4g}" for one in holding.results.values()}
        self._say(
            f"delivered {_name(holding)} · loss: {', '.join(losses)}, "
            f"baseline {' or '.join(sorted(baselines))}"
        )

    def stops(self, holding: Holding | None) -> None:
        """The agent was asked to stop, while it trained something or not."""
        saves = f": saves {holding.token.task_id} and gives it back" if holding else ""
        self._say(f"stopping{saves}")

    def released(self, holding: Holding) -> None:
        """A task was given back."""
        self._say(f"gave back {_name(holding)} at step {holding.step} of {holding.total_steps}")

    def dropped(self, holding: Holding, reason: str) -> None:
        """A task is not this agent's any more."""
        self._say(f"gave up {_name(holding)}: {reason}")

    def failed(self, holding: Holding, reason: str) -> None:
        """A task could not be trained or delivered."""
        self._say(f"failed {_name(holding)}: {reason.partition(chr(10))[0]}")

    def left(self, holding: Holding, what: str) -> None:
        """The agent goes without the server knowing: the claim ends by itself."""
        self._say(
            f"left with {_name(holding)} {what}, since the server does not answer; it stays here "
            "for the next start, unless the lease ends before and another takes it"
        )


def _name(holding: Holding) -> str:
    return f"{holding.token.task_id} on {holding.assignment.node_id}"
