"""Full training of one rival, from the first step to a measured candidate.

The schedule depends on step and total only, batches on seed and step only: the same seed, steps,
software and kind of device give the same weights, also when training was killed and resumed.
"""

import copy
import functools
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import accelerate
import torch

from agent import checkpoints
from agent.executors import jobs
from agent.specialists import evaluation, registry, seeds
from agent.specialists.base import Batch, Cases, Config, Role, Specialist
from core import errors

WEIGHT_DECAY = 1e-4
BETAS = (0.9, 0.98)
GRADIENT_NORM_MAX = 1.0
WARM_UP_STEPS_MAX = 100
FINAL_RATE = 0.02
EVOLVER_RATE = 0.6
"""Of the usual learning rate, for a rival that starts from a champion."""
TIMED_STEPS = 10
STEPS_MAX = 10_000_000
PROGRESS_SECONDS = 0.25
ENDING_SECONDS = 0.02
"""Kept free at the end of a budget, for writing the candidate."""
EVALUATION_PARTS = 4
"""Before its first whole evaluation, a model's is estimated from one in so many cases."""

Report = Callable[[jobs.Report], None]
AskedToStop = Callable[[], jobs.Stop | None]

_step_seconds: dict[tuple[str, str], float] = {}
_evaluation_seconds: dict[tuple[str, str], float] = {}


def prepare_process() -> str:
    """Set this process up for reproducible training; the kind of its device.

    Imports what the first step would otherwise import.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    return str(_accelerator().device.type)


def _accelerator() -> accelerate.Accelerator:
    """A CUDA device where there is one, else the CPU: Apple's GPUs know no float64."""
    return accelerate.Accelerator(cpu=not torch.cuda.is_available())


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """The rate of a step: linear warm-up, then a cosine down to 2 % of the peak."""
    warm_up = min(WARM_UP_STEPS_MAX, max(1, total_steps // 10))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(1, total_steps - warm_up)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * share)) / 2)


def environment() -> dict[str, str]:
    """What the bits of a training depend on beside seed and steps."""
    return {
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


@functools.lru_cache(maxsize=32)
def _validation(
    name: str, parameters: tuple[tuple[str, float], ...], node_id: str
) -> tuple[Cases, float]:
    """A node's public validation cases and the error of its baseline on them."""
    specialist = registry.get(name, dict(parameters))
    cases = evaluation.validation_cases(specialist, node_id)
    return cases, float(specialist.baseline_errors(cases)[specialist.baseline_of_record].mean())


def run(job: jobs.Job, report: Report, asked_to_stop: AskedToStop) -> jobs.Result | jobs.Stopped:
    """Train as the job says.

    Raises errors.TrainingError when training diverges, ArtifactError for a base or state that
    cannot be loaded, NotFound and Invalid for a specialist that is none here.
    """
    training = _Training(job)
    stopped = training.train(report, asked_to_stop)
    return stopped if stopped is not None else training.finish()


class _Training:
    """One job at work."""

    def __init__(self, job: jobs.Job) -> None:
        self._began = time.monotonic()
        self._job = job
        self._specialist: Specialist = registry.get(job.specialist, job.parameters)
        key = tuple(sorted(job.parameters.items()))
        self._cases, self._baseline = _validation(job.specialist, key, job.node_id)
        self._directory = Path(job.directory)
        self._accelerator = _accelerator()
        self._seed = seeds.derive(job.node_id, "train", job.role, job.seed)
        self._base_sha256 = ""
        self._elapsed_before = 0.0
        self.step = self.resumed_from = 0
        self._first_step_at = self._last_step_at = 0.0
        found = checkpoints.newest_state(self._directory) if job.resume else None
        self._config = self._configuration(found)
        self._key = (f"{job.specialist}{key}", str(self._config))
        self._module = self._model(self._config)
        self._peak = self._specialist.learning_rate * (EVOLVER_RATE if job.base else 1.0)
        self._optimizer = torch.optim.AdamW(
            self._module.parameters(), lr=self._peak, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        if found is None:
            self.total_steps = job.steps or self._affordable_steps()
        else:
            self._continue_from(*found)
        self._prepared, self._prepared_optimizer = self._accelerator.prepare(
            self._module, self._optimizer
        )

    # ── the beginning ──

    def _configuration(self, found: tuple[Path, checkpoints.State] | None) -> Config:
        if found is not None:
            return checkpoints.read_config(found[0] / checkpoints.CONFIG_FILE)
        if self._job.base:
            return checkpoints.read_config(Path(self._job.base) / checkpoints.CONFIG_FILE)
        role: Role = "reinventor" if self._job.role == "reinventor" else "evolver"
        return self._specialist.families(role)[0]

    def _model(self, config: Config) -> torch.nn.Module:
        torch.manual_seed(seeds.derive(self._job.node_id, "init", self._job.role, self._job.seed))
        module = self._specialist.build(config)
        if self._job.base:
            weights = Path(self._job.base) / checkpoints.WEIGHTS_FILE
            checkpoints.load_weights(weights, module)
            self._base_sha256 = checkpoints.weights_sha256_of_file(weights)
        module.train()
        return module.to(self._accelerator.device)

    def _continue_from(self, folder: Path, state: checkpoints.State) -> None:
        job = self._job
        ours = (job.specialist, job.node_id, job.role, job.seed, self._base_sha256)
        found = (state.specialist, state.node_id, state.role, state.seed, state.base_sha256)
        if ours != found or job.steps not in (0, state.total_steps):
            raise errors.ArtifactError(
                f"{folder} is the state of another training ({state.role} of {state.node_id}, seed "
                f"{state.seed}, {state.total_steps} steps); use another folder, or remove it"
            )
        checkpoints.load_state(folder, self._module, self._optimizer)
        self.step = self.resumed_from = state.step
        self.total_steps = state.total_steps
        self._elapsed_before = state.elapsed_seconds

    def _affordable_steps(self) -> int:
        """How many steps fit into the budget beside what comes before and after them."""
        step_seconds = _step_seconds.get(self._key) or self._time_steps()
        evaluation_seconds = _evaluation_seconds.get(self._key) or self._time_evaluation()
        left = self._job.budget_seconds - evaluation_seconds - ENDING_SECONDS - self._elapsed()
        return max(1, min(STEPS_MAX, int(left / step_seconds)))

    def _time_steps(self) -> float:
        """The mean of ten steps on a copy that is thrown away, after a first that does not count.

        Not their median: what else the machine does takes time from a step now and then, and will
        go on to.
        """
        module = copy.deepcopy(self._module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, betas=BETAS)
        began = time.perf_counter()
        for step in range(TIMED_STEPS + 1):
            if step == 1:
                began = time.perf_counter()
            loss = self._specialist.loss(module, self._batch(step))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM_MAX)
            optimizer.step()
            float(loss)
        return (time.perf_counter() - began) / TIMED_STEPS

    def _time_evaluation(self) -> float:
        """An estimate, also for the deadline of this first training; on the CPU, as `finish` is."""
        part = {name: cases[::EVALUATION_PARTS] for name, cases in self._cases.items()}
        module = copy.deepcopy(self._module).to("cpu")
        began = time.perf_counter()
        evaluation.evaluate(self._specialist, module, part)
        seconds = (time.perf_counter() - began) * EVALUATION_PARTS
        return _evaluation_seconds.setdefault(self._key, seconds)

    def _batch(self, step: int) -> Batch:
        batch = self._specialist.train_batch(self._seed, step)
        device = self._accelerator.device
        if device.type == "cpu":
            return batch
        return {name: tensor.to(device) for name, tensor in batch.items()}

    # ── the middle ──

    def train(self, report: Report, asked_to_stop: AskedToStop) -> jobs.Stopped | None:
        """Take the steps that are left; what stopped it, or None when all are taken."""
        report(jobs.Started(step=self.step, total_steps=self.total_steps))
        deadline = self._deadline()
        reported = saved = time.monotonic()
        self._first_step_at = self._last_step_at = time.time()
        steps_began, first = time.monotonic(), self.step
        loss = torch.tensor(math.nan)
        while self.step < self.total_steps:
            stop = asked_to_stop()
            if stop is not None:
                return self._stop(stop.save)
            loss = self._take_step()
            now = time.monotonic()
            if now - reported >= PROGRESS_SECONDS:
                reported = now
                report(self._progress(loss))
            if now >= deadline:
                break
            if now - saved >= self._job.checkpoint_seconds and self.step < self.total_steps:
                report(self._save())
                saved = time.monotonic()
        self._last_step_at = time.time()
        if self.step > first:
            report(self._progress(loss))  # reading the loss waits for the device
            _step_seconds[self._key] = (time.monotonic() - steps_began) / (self.step - first)
        return None

    def _deadline(self) -> float:
        if self._job.steps:
            return math.inf
        seconds = self._job.deadline_seconds or self._job.budget_seconds
        return self._began + seconds - _evaluation_seconds.get(self._key, 0.0)

    def _take_step(self) -> torch.Tensor:
        rate = learning_rate(self.step, self.total_steps, self._peak)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._specialist.loss(self._prepared, self._batch(self.step))
        self._prepared_optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._prepared.parameters(), GRADIENT_NORM_MAX)
        self._prepared_optimizer.step()
        self.step += 1
        return loss.detach()

    def _progress(self, loss: torch.Tensor) -> jobs.Progress:
        value = float(loss)
        if not math.isfinite(value):
            raise errors.TrainingError(
                f"training diverged: the loss is {value} at step {self.step} of "
                f"{self.total_steps}; another seed or a smaller learning rate may do"
            )
        return jobs.Progress(step=self.step, total_steps=self.total_steps, loss=value)

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._began

    def _save(self) -> jobs.Saved:
        job = self._job
        state = checkpoints.State(
            specialist=job.specialist,
            node_id=job.node_id,
            role=job.role,
            seed=job.seed,
            step=self.step,
            total_steps=self.total_steps,
            base_sha256=self._base_sha256,
            elapsed_seconds=self._elapsed(),
            environment=environment(),
        )
        folder = checkpoints.save_state(
            self._directory, state, self._module, self._config, self._optimizer
        )
        return jobs.Saved(directory=str(folder), step=self.step, total_steps=self.total_steps)

    def _stop(self, save: bool) -> jobs.Stopped:
        if not save or self.step == self.resumed_from == 0:
            return jobs.Stopped(directory="", step=self.step)
        return jobs.Stopped(directory=self._save().directory, step=self.step)

    # ── the end ──

    def finish(self) -> jobs.Result:
        """Measure the model on the public validation cases and write it as a candidate."""
        module = self._module.to("cpu")
        began = time.perf_counter()
        measured = evaluation.evaluate(self._specialist, module, self._cases)
        _evaluation_seconds[self._key] = time.perf_counter() - began
        if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
            raise errors.TrainingError(
                f"training diverged: weights are not finite after {self.step} steps; another seed "
                "or a smaller learning rate may do"
            )
        candidate = self._directory / "candidate"
        candidate.mkdir(parents=True, exist_ok=True)
        sha256 = checkpoints.write_model(candidate, module, self._config)
        return jobs.Result(
            node_id=self._job.node_id,
            role=self._job.role,
            steps=self.step,
            total_steps=self.total_steps,
            loss=measured.loss,
            baseline_loss=self._baseline,
            evidence_rate=measured.evidence_rate,
            params=sum(parameter.numel() for parameter in module.parameters()),
            bytes=sum(path.stat().st_size for path in checkpoints.model_files(candidate)),
            weights_sha256=sha256,
            candidate_directory=str(candidate),
            baseline=self._specialist.baseline_of_record,
            unit=self._specialist.unit,
            family=self._config.family,
            device=self._accelerator.device.type,
            deadline=self.step < self.total_steps,
            resumed_from=self.resumed_from,
            first_step_at=self._first_step_at,
            last_step_at=self._last_step_at,
        )
