"""What training makes of states that are damaged, forged or another's, and of devices that fail."""

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from agent import checkpoints, limits
from agent.executors import device, jobs, pace, training
from agent.specialists import registry
from agent.specialists.base import Batch, Cases
from agent.specialists.filtering import Filtering
from core import errors, platforms
from faults import disks
from faults.diskfull import Ballast

NODE = "stats-bayesian"
STEPS = 12
FITS = 20
"""Cases that a small device has room for, of 64 in a batch."""


@pytest.fixture(autouse=True)
def prepared() -> None:
    device.prepare()


class Run:
    """One training in this process, and what it reported."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports: list[jobs.Report] = []
        self.on_report: Callable[[jobs.Report], None] = lambda _: None

    def go(self, until: int = 0, **more: Any) -> jobs.Result | jobs.Stopped:
        """Train to the end, or stop with a state once so many steps are taken."""
        asked = iter(range(1, 1_000_000))

        def asked_to_stop() -> jobs.Stop | None:
            return jobs.Stop(number=1, save=True) if until and next(asked) > until else None

        def report(one: jobs.Report) -> None:
            self.reports.append(one)
            self.on_report(one)

        told = training.run(self._job(**more), report, asked_to_stop)
        assert told is not None
        return told

    def _job(self, **more: Any) -> jobs.Job:
        values: dict[str, Any] = {
            "node_id": NODE,
            "role": "reinventor",
            "seed": 7,
            "steps": STEPS,
            "checkpoint_seconds": 1_000.0,
            **more,
        }
        return jobs.Job(task_id="t", specialist=NODE, directory=str(self.directory), **values)

    def finish(self, **more: Any) -> jobs.Result:
        result = self.go(**more)
        assert isinstance(result, jobs.Result)
        return result

    @property
    def damaged(self) -> int:
        return next(one.damaged for one in self.reports if isinstance(one, jobs.Started))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    device.prepare()
    return Run(tmp_path_factory.mktemp("unbroken")).finish().weights_sha256


@pytest.fixture
def broken(tmp_path: Path) -> Run:
    """Stopped at step 8, with states of 3, 6 and 8."""
    run = Run(tmp_path / "broken")
    run.go(until=8)
    assert [path.name for path in sorted(run.directory.iterdir())] == [
        "step-00000003",
        "step-00000006",
        "step-00000008",
    ]
    run.reports.clear()
    return run


def forge(run: Run, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file of the newest state, and its digest with it."""
    folder = run.directory / "step-00000008"
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    state = json.loads((folder / checkpoints.STATE_FILE).read_bytes())
    state["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / checkpoints.STATE_FILE).write_text(json.dumps(state))


def _other_shapes(raw: bytes) -> bytes:
    found = safetensors.torch.load(raw)
    return safetensors.torch.save({name: torch.zeros(3, 5, 7) for name in found})


def _terabytes(raw: bytes) -> bytes:
    header = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[:64]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (checkpoints.OPTIMIZER_FILE, _other_shapes),
        (checkpoints.WEIGHTS_FILE, _other_shapes),
        (checkpoints.WEIGHTS_FILE, _terabytes),
        (checkpoints.RANDOM_FILE, _terabytes),
        (checkpoints.CONFIG_FILE, lambda _: b'{"family":"of another kind"}'),
    ],
)
def test_a_forged_state_is_passed_over_for_the_one_before_and_the_weights_are_the_same(
    name: str, change: Callable[[bytes], bytes], broken: Run, unbroken: str
) -> None:
    forge(broken, name, change)
    result = broken.finish(resume=True)
    assert result.resumed_from == 6
    assert broken.damaged == 1
    assert result.weights_sha256 == unbroken


def test_where_every_state_is_damaged_training_begins_anew(broken: Run, unbroken: str) -> None:
    for folder in broken.directory.iterdir():
        (folder / checkpoints.OPTIMIZER_FILE).write_bytes(b"torn")
    result = broken.finish(resume=True)
    assert result.resumed_from == 0
    assert broken.damaged == 3
    assert result.weights_sha256 == unbroken


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"node_id": "physics-fluid"}, "another training"),
        ({"seed": 8}, "another training"),
        ({"role": "evolver"}, "another training"),
        ({"steps": 13}, "another training"),
        ({"method": "quantize"}, "another training"),
    ],
)
def test_the_state_of_another_training_is_refused_and_stays(
    change: dict[str, Any], words: str, broken: Run
) -> None:
    with pytest.raises(errors.ArtifactError, match=words):
        broken.go(resume=True, **change)
    assert len(list(broken.directory.glob("step-*"))) == 3


def test_the_state_of_a_newer_version_is_refused_and_stays(broken: Run) -> None:
    path = broken.directory / "step-00000008" / checkpoints.STATE_FILE
    path.write_text(json.dumps({"version": 2, "what": "nobody knows yet"}))
    with pytest.raises(errors.ArtifactError, match=r"newer version.*upgrade"):
        broken.go(resume=True)
    assert len(list(broken.directory.glob("step-*"))) == 3


@contextlib.contextmanager
def specialist(monkeypatch: pytest.MonkeyPatch, kind: type[Filtering]) -> Iterator[None]:
    """Let jobs find another kind of specialist."""
    with monkeypatch.context() as patched:
        patched.setattr(registry, "get", lambda *_: kind())
        yield


class Explosive(Filtering):
    """Its loss is no number from the eighth step on."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        self._calls += 1
        return super().loss(module, batch) * (torch.nan if self._calls > 7 else 1.0)


def test_a_loss_that_is_no_number_ends_the_training_and_the_last_good_state_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    words = r"at step \d+ of 12; the last good state is .*step-00000006; another seed"
    with (
        specialist(monkeypatch, Explosive),
        pytest.raises(errors.TrainingError, match=f"training diverged: .* {words}"),
    ):
        run.go()
    saved = [one.step for one in run.reports if isinstance(one, jobs.Saved)]
    assert saved == [3, 6]
    found = checkpoints.newest_state(tmp_path)
    assert found is not None
    assert found[1].step == 6


class Large(Filtering):
    """Finds no memory for more than a few cases at once."""

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if len(batch["readings"]) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().loss(module, batch)

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        assert len(cases["readings"]) <= FITS, "what does not fit is known"
        return super().errors(module, cases)


def test_where_memory_runs_out_training_goes_on_in_smaller_parts_also_when_resumed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with specialist(monkeypatch, Large):
        whole = Run(tmp_path / "whole").finish()
        run = Run(tmp_path / "broken")
        run.go(until=20)  # asked between the parts of a step, too
    assert whole.micro_batch == 16
    resumed = run.finish(resume=True)
    assert 0 < resumed.resumed_from < STEPS
    assert resumed.micro_batch == whole.micro_batch
    assert resumed.weights_sha256 == whole.weights_sha256


def test_the_steps_of_a_budget_are_timed_in_the_parts_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_step_seconds", pace.Times())
    with specialist(monkeypatch, Large):
        result = Run(tmp_path).finish(steps=0, budget_seconds=0.3)
    assert result.micro_batch == 16
    assert result.steps >= 1


def test_a_full_disk_costs_states_and_not_the_training(tmp_path: Path, unbroken: str) -> None:
    if why := disks.why_not():
        pytest.skip(why)
    with disks.mounted(tmp_path, 16) as disk:
        ballast = Ballast(disk.folder)
        ballast.fill(0)
        run = Run(disk.folder / "run")

        def free(report: jobs.Report) -> None:
            if isinstance(report, jobs.Missed):
                ballast.free()

        run.on_report = free
        result = run.finish()
        told = [one for one in run.reports if isinstance(one, jobs.Missed)]
        assert "No space left" in told[0].reason
        assert [one.step for one in told] == [3]
        assert [one.step for one in run.reports if isinstance(one, jobs.Saved)] == [6, 9]
        assert result.checkpoints_missed == 1
        assert result.steps == STEPS
        assert result.weights_sha256 == unbroken


def test_a_model_that_finds_no_room_at_its_end_is_no_fault_of_its_training(tmp_path: Path) -> None:
    if why := disks.why_not():
        pytest.skip(why)
    with disks.mounted(tmp_path, 16) as disk:
        Ballast(disk.folder).fill(0)
        with pytest.raises(OSError, match="No space left") as raised:
            Run(disk.folder / "run").go()
        assert platforms.is_want_of_room(raised.value)


def test_where_a_disk_has_no_room_older_states_give_way_to_the_newest(tmp_path: Path) -> None:
    if why := disks.why_not():
        pytest.skip(why)
    module = torch.nn.Linear(300, 300)
    taken = checkpoints.snapshot(module, torch.optim.AdamW(module.parameters()))
    config = registry.get(NODE).families("evolver")[0]
    with disks.mounted(tmp_path, 16) as disk:
        for step in (1, 2, 3):
            if step == 3:
                Ballast(disk.folder).fill(0)
            state = checkpoints.State(
                specialist=NODE, node_id=NODE, role="evolver", seed=1, step=step, total_steps=9
            )
            checkpoints.write_state(disk.folder / "run", state, taken, config)
        kept = sorted(path.name for path in (disk.folder / "run").iterdir())
        assert kept == ["step-00000002", "step-00000003"]
        found = checkpoints.newest_state(disk.folder / "run")
        assert found is not None
        assert found[1].step == 3


def test_time_that_earlier_attempts_took_is_not_had_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "RESUMED_SECONDS_MIN", 0.0)
    stopped = Run(tmp_path).go(until=3, steps=0, budget_seconds=30.0)
    assert isinstance(stopped, jobs.Stopped)
    path = Path(stopped.directory) / checkpoints.STATE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "elapsed_seconds": 1e6}))
    resumed = Run(tmp_path).finish(steps=0, budget_seconds=30.0, resume=True)
    assert resumed.deadline
    assert (resumed.resumed_from, resumed.steps) == (3, 4)


def test_a_resumed_budget_ends_with_the_steps_and_the_weights_of_an_unbroken_run(
    tmp_path: Path,
) -> None:
    Run(tmp_path / "cut").go(until=3, steps=0, budget_seconds=0.5)
    resumed = Run(tmp_path / "cut").finish(steps=0, budget_seconds=0.5, resume=True)
    unbroken = Run(tmp_path / "whole").finish(steps=resumed.total_steps)
    assert not resumed.deadline
    assert resumed.weights_sha256 == unbroken.weights_sha256


def test_a_large_model_computes_on_as_many_threads_whoever_trains_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "THREADED_PARAMETERS_MIN", 1)
    monkeypatch.setattr(limits, "cores", lambda: 4)
    alone = Run(tmp_path / "alone").finish(steps=4)
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()", limits.EXECUTOR_MODULE]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as neighbour:
        Run(tmp_path / "beside").go(steps=4, until=2)
        monkeypatch.setattr(limits, "cores", lambda: 2)
        beside = Run(tmp_path / "beside").finish(steps=4, resume=True)
        neighbour.communicate()
    assert beside.resumed_from == 2
    assert alone.threads == beside.threads == 4
    assert alone.weights_sha256 == beside.weights_sha256
