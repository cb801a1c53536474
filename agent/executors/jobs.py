"""What an agent asks of its executor and what that reports, as JSON lines."""

from typing import TypeAlias

import msgspec

from core.events import Rival


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    """One rival's training.

    `steps` fixes the number of steps; 0 leaves it to the budget. `base` is the folder of the model
    to start from, "" for none. `directory` is where states and the candidate go. With `resume` its
    newest state is continued. After `deadline_seconds` (default: the budget) training ends with the
    steps it has. The executor numbers its jobs.
    """

    task_id: str
    node_id: str
    specialist: str
    role: Rival
    seed: int
    directory: str
    parameters: dict[str, float] = {}
    steps: int = 0
    budget_seconds: float = 30.0
    deadline_seconds: float | None = None
    checkpoint_seconds: float = 5.0
    base: str = ""
    resume: bool = False
    number: int = 0


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """End the job of this number, or an earlier one, at its next step, its state saved or not."""

    number: int
    save: bool


class Warmed(msgspec.Struct, frozen=True, kw_only=True, tag="warmed"):
    """The process has imported what it needs and waits for jobs."""

    pid: int
    device: str


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag="taken"):
    """What is reported from here on is about the job of this number."""

    number: int


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """Training begins at `step`."""

    step: int
    total_steps: int


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Training goes on; `loss` is the training loss."""

    step: int
    total_steps: int
    loss: float


class Saved(msgspec.Struct, frozen=True, kw_only=True, tag="saved"):
    """A state lies in `directory`."""

    directory: str
    step: int
    total_steps: int
    final: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """A finished job. `loss` is the mean error on the public validation cases, in the node's unit.

    `first_step_at` and `last_step_at` are seconds since 1970; `deadline` says that training ended
    before `total_steps` because its time was over.
    """

    node_id: str
    role: Rival
    steps: int
    total_steps: int
    loss: float
    baseline_loss: float
    evidence_rate: float
    params: int
    bytes: int
    weights_sha256: str
    candidate_directory: str
    baseline: str = ""
    unit: str = ""
    family: str = ""
    device: str = ""
    deadline: bool = False
    resumed_from: int = 0
    first_step_at: float = 0.0
    last_step_at: float = 0.0


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """A job ended early; its state lies in `directory`, "" where it was not saved."""

    directory: str
    step: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A job cannot be finished; `no_room`: for want of room on the disk."""

    reason: str
    trace: str = ""
    no_room: bool = False


Request: TypeAlias = Job | Stop
Report: TypeAlias = Warmed | Taken | Started | Progress | Saved | Result | Stopped | Failed
