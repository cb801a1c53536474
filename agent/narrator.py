"""What an agent tells the person at its terminal: one quiet line for each turn of its work."""

from collections.abc import Callable
from pathlib import Path

from agent.holdings import Holding
from agent.machine import Machine

TOPIC_LETTERS_MAX = 40
MIB = 1024 * 1024
KEPT = "it stays here for the next start, unless the lease ends before and another takes it"


class Narrator:
    """Says what happens to one agent; what goes on unchanged is said once."""

    def __init__(
        self, say: Callable[[str], None], api: str, tell: Callable[[str], None] | None = None
    ) -> None:
        """`tell` says what only the agent knows, to those whom its server tells of all else."""
        self._say = say
        self._tell = tell or say
        self._api = api
        self._has_joined = False
        self._is_away = False
        self._waits = False
        self._misses = False
        self._is_unsaved = False

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

    def unsaved(self, holding: Holding, why: str) -> None:
        """The server did not take a checkpoint."""
        if not self._is_unsaved:
            self._is_unsaved = True
            self._say(f"trains on {_name(holding)} without its checkpoint: {why}")

    def taken(self) -> None:
        """It took one."""
        if self._is_unsaved:
            self._is_unsaved = False
            self._say("the server takes checkpoints again")

    def short_of_room(self, directory: Path, free_bytes: int, needed_bytes: int) -> None:
        """This machine's own disk is nearly full."""
        self._say(
            f"asks for no work: {free_bytes // MIB} MiB are free on the disk of {directory}, "
            f"{needed_bytes // MIB} MiB are needed"
        )

    def starts_over(self, holding: Holding, why: str) -> None:
        """What an earlier attempt left cannot be used."""
        self._say(f"begins {_name(holding)} anew, its checkpoint is of no use: {why}")

    def revived(self, holding: Holding, why: str, step: int) -> None:
        """The process that trained a task died, and another goes on with it: from its checkpoint of
        this step, or from 0 where it may have none."""
        where = f"its checkpoint of step {step}" if step else "its last checkpoint, if there is one"
        self._tell(f"{why}; {_name(holding)} goes on from {where}")

    def missed(self, holding: Holding, why: str) -> None:
        """A checkpoint could not be written; the next is tried all the same."""
        if not self._misses:
            self._misses = True
            self._say(f"no checkpoint of {_name(holding)} could be kept ({why}); it trains on")

    def saved(self) -> None:
        """A checkpoint was written."""
        if self._misses:
            self._misses = False
            self._say("checkpoints are kept again")

    def passed_over(self, holding: Holding, count: int) -> None:
        """Checkpoints were damaged, and what was before them is used."""
        self._say(
            f"passed over {count} damaged checkpoint{'s' * (count > 1)} of {_name(holding)}: "
            f"it goes on from step {holding.step}"
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

    def paused(self, pause: str, holding: Holding | None) -> None:
        """A person wants this agent to do no more, or to work again."""
        if not pause:
            self._say("may work again")
            return
        what = {"pause": "gives back", "drain": "ends"}[pause]
        held = f": {what} {_name(holding)}" if holding else ""
        self._say(f"is to take no more work until it is resumed{held}")

    def released(self, holding: Holding) -> None:
        """A task was given back."""
        where = f"at step {holding.step} of {holding.total_steps}"
        but = (
            "; the server did not answer in time to store that step" if holding.is_unstored else ""
        )
        self._say(f"gave back {_name(holding)} {where}{but}")

    def unfit(self, holding: Holding, reason: str) -> None:
        """A task was given back that takes more than this device has."""
        self._say(f"gave back {_name(holding)} for another to train: {reason}")

    def dropped(self, holding: Holding, reason: str) -> None:
        """A task is not this agent's any more."""
        self._say(f"gave up {_name(holding)}: {reason}")

    def failed(self, holding: Holding, reason: str) -> None:
        """A task could not be trained or delivered."""
        self._say(f"failed {_name(holding)}: {reason.partition(chr(10))[0]}")

    def left(self, holding: Holding, what: str) -> None:
        """The agent goes without the server knowing: the claim ends by itself."""
        self._say(f"left with {_name(holding)} {what}, since the server does not answer; {KEPT}")

    def hurries(self, holding: Holding | None) -> None:
        """The agent goes although what it does, or waits for, has not come to its end in time."""
        kept = f" with {_name(holding)} not given back; {KEPT}" if holding else ""
        self._say(f"left{kept or ': no answer came in time'}")


def _name(holding: Holding) -> str:
    return f"{holding.token.task_id} on {holding.assignment.node_id}"
