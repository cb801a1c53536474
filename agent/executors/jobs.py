"""What an agent asks of its executor and what that reports, as JSON lines."""

from typing import TypeAlias

import msgspec

from core.events import BaseModel, Rival


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    """One rival's training.

    `steps` fixes the number of steps; 0 leaves it to the budget. `base` is the folder of the model
    to start from, "" for none; `parents` are those of models to learn from: a student's teacher, or
    what a merge is made of, the champion first; `corpus` that of the texts, where the specialist
    takes some. `directory` is where states and the candidate go. With `resume` its newest state is
    continued. After its budget (all attempts together about twice that) training ends with the
    steps it has. Where it was `halved`, half as many cases are taken
    at once as before. A large model computes on `threads`, 0 for all cores. The executor numbers
    its jobs.
    """

    task_id: str
    node_id: str
    specialist: str
    role: Rival
    seed: int
    directory: str
    parameters: dict[str, float] = {}
    corpus: str = ""
    base_model: BaseModel | None = None
    steps: int = 0
    budget_seconds: float = 30.0
    checkpoint_seconds: float = 5.0
    base: str = ""
    parents: list[str] = []
    method: str = "auto"
    is_stored: bool = False
    """Its states and its model go to the artifact store, and have to fit there."""
    resume: bool = False
    halved: bool = False
    threads: int = 0
    number: int = 0


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """End the job of this number, or an earlier one, at its next step, its state saved or not."""

    number: int
    save: bool


class Paused(msgspec.Struct, frozen=True, kw_only=True, tag="paused"):
    """The process stood still for so many seconds, which are not to count as training."""

    seconds: float


class Warmed(msgspec.Struct, frozen=True, kw_only=True, tag="warmed"):
    """The process has imported what it needs and waits for jobs."""

    pid: int
    device: str


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag="taken"):
    """What is reported from here on is about the job of this number."""

    number: int


class Busy(msgspec.Struct, frozen=True, kw_only=True, tag="busy"):
    """A base model is being loaded or measured, which may take minutes."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """Training begins at `step`, by a method that was chosen for a reason; so many states before
    were damaged, and are passed over."""

    step: int
    total_steps: int
    method: str = ""
    method_reason: str = ""
    damaged: int = 0


class Revived(msgspec.Struct, frozen=True, kw_only=True, tag="revived"):
    """The process died; the job goes on in another one, from its state at `step` if it has one."""

    reason: str
    step: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Training goes on; `loss` is the training loss, `samples_per_second` since the last report."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float | None = None
    samples_per_second: float | None = None


class Saved(msgspec.Struct, frozen=True, kw_only=True, tag="saved"):
    """A state lies in `directory`."""

    directory: str
    step: int
    total_steps: int
    final: bool = False


class Missed(msgspec.Struct, frozen=True, kw_only=True, tag="missed"):
    """A state could not be written; training goes on."""

    reason: str
    step: int


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """A finished job. `loss` is the mean error on the public validation cases, in the node's unit,
    and `baselines` that of classical methods, of which `baseline` is the one of record.

    `micro_batch` is how many cases were taken at once (0: all), `checkpoints_missed` how many
    states could not be written. `first_step_at` and `last_step_at` are seconds since 1970;
    `deadline` says that training ended before `total_steps` because its time was over.
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
    baselines: dict[str, float] = {}
    unit: str = ""
    family: str = ""
    device: str = ""
    deadline: bool = False
    resumed_from: int = 0
    first_step_at: float = 0.0
    last_step_at: float = 0.0
    micro_batch: int = 0
    threads: int = 1
    precision: str = "float32"
    checkpoints_missed: int = 0
    method: str = "full"
    method_reason: str = ""
    made: str = ""
    """What it is of several that a job makes: of a merge the student or the soup."""
    others: list["Result"] = []
    """What else a merge made."""
    latency_ms: float | None = None
    """Of a quantized model: to answer one probe on the CPU, the median, in turns with what it came
    from."""
    float_loss: float | None = None
    """Of what it came from: the loss, the bytes of its files, and the same latency."""
    float_bytes: int | None = None
    float_latency_ms: float | None = None


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """A job ended early; its state of `step` lies in `directory`, "" where it was not saved."""

    directory: str
    step: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A job cannot be finished; `no_room`: for want of room on the disk, `unfit`: for want of what
    another device may have, `is_other`: since its folder is that of another training."""

    reason: str
    trace: str = ""
    no_room: bool = False
    unfit: bool = False
    is_other: bool = False


Request: TypeAlias = Job | Stop | Paused
Report: TypeAlias = (
    Warmed
    | Taken
    | Busy
    | Started
    | Revived
    | Progress
    | Saved
    | Missed
    | Result
    | Stopped
    | Failed
)
