"""The training of one rival, from the first step to a measured candidate.

The schedule depends on step and total only, batches on seed and step only: the same seed, steps,
software and kind of device give the same weights, also when training was killed and resumed.
"""

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from accelerate.utils import broadcast_object_list

from agent import checkpoints, limits, tensors
from agent.executors import (
    device,
    distilling,
    jobs,
    merging,
    methods,
    optimizers,
    pace,
    quantizing,
    saving,
    standstill,
    stepping,
)
from agent.executors.stepping import Wish
from agent.specialists import bases, evaluation, forms, registry, seeds
from agent.specialists.base import Batch, Cases, Config, Role, Specialist
from core import errors

WEIGHT_DECAY = 1e-4
BETAS = (0.9, 0.98)
WARM_UP_STEPS_MAX = 100
FINAL_RATE = 0.02
EVOLVER_RATE = 0.6
"""Of the usual learning rate, for what starts from a trained model."""
THREADED_PARAMETERS_MIN = 1_000_000
"""Smaller models gain nothing by more than one thread, and give the same bits on every machine."""
STEPS_MAX = 10_000_000
PROGRESS_SECONDS = 0.25
ENDING_SECONDS = 0.02
"""Kept free at the end of a budget, for writing the candidate."""

Report = Callable[[jobs.Report], None]
AskedToStop = Callable[[], jobs.Stop | None]

_step_seconds = pace.Times()
_evaluation_seconds = pace.Times()


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """The rate of a step: linear warm-up, then a cosine down to 2 % of the peak."""
    warm_up = min(WARM_UP_STEPS_MAX, max(1, total_steps // 10))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(1, total_steps - warm_up)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * share)) / 2)


def _validation_of(job: jobs.Job) -> tuple[Cases, dict[str, float]]:
    """The public validation cases of a job's node and the mean errors of classical methods on
    them: up to seconds of work, once in a process."""
    return _validation(job.specialist, _parameters_of(job), job.corpus, job.node_id)


def _parameters_of(job: jobs.Job) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(job.parameters.items()))


@functools.lru_cache(maxsize=32)
def _validation(
    name: str, parameters: tuple[tuple[str, float], ...], corpus: str, node_id: str
) -> tuple[Cases, dict[str, float]]:
    specialist = registry.get(name, dict(parameters), corpus)
    cases = evaluation.validation_cases(specialist, node_id)
    found = specialist.baseline_errors(cases)
    return cases, {method: float(each.mean()) for method, each in found.items()}


def run(
    job: jobs.Job, report: Report, asked_to_stop: AskedToStop
) -> jobs.Result | jobs.Stopped | None:
    """Train, or merge, as the job says. Of several processes, the first has something to tell.

    Raises errors.TrainingError when training diverges, ArtifactError for a base or state that
    cannot be loaded, NotFound and Invalid for a specialist that is none here.
    """
    if job.role != "merge":
        return _train(job, report, asked_to_stop)
    cases = None
    if device.accelerator().is_main_process:
        cases, _ = _validation_of(job)
    return merging.run(job, cases, _train, report, asked_to_stop)


def _train(
    job: jobs.Job, report: Report, asked_to_stop: AskedToStop
) -> jobs.Result | jobs.Stopped | None:
    with pace.busy(job, report):
        training = _Training(job)
    try:
        stopped = training.train(report, asked_to_stop)
        if not training.is_first:
            return None
        if stopped is not None:
            return stopped
        with pace.busy(job, report):
            return training.finish(report)
    finally:
        training.close()


class _Training:
    """One job at work."""

    def __init__(self, job: jobs.Job) -> None:
        self._began = standstill.now()
        self._job = job
        self._specialist: Specialist = registry.get(
            job.specialist, job.parameters, job.corpus, job.base_model
        )
        self._accelerator = device.accelerator()
        self.is_first = self._accelerator.is_main_process
        self._is_alone = self._accelerator.num_processes == 1
        if self.is_first and not job.steps:
            _validation_of(job)  # a budget has to cover it; else it is made at the end
        self._directory = Path(job.directory)
        self._seed = seeds.derive(job.node_id, "train", job.role, job.seed)
        self._key_of_specialist = f"{job.specialist}{_parameters_of(job)}{job.corpus}"
        self._choice = self._chosen()
        self._base = self._champion()
        self._base_sha256 = ""
        if self._base:
            weights = Path(self._base) / checkpoints.WEIGHTS_FILE
            self._base_sha256 = tensors.weights_sha256_of_file(weights)
        self._lesson = self._taught()
        self._elapsed_before = 0.0
        self._micro_batch = 0
        self._is_mixed = stepping.is_mixed(self._accelerator, job.specialist)
        self.step = self.resumed_from = self.total_steps = 0
        self._first_step_at = self._last_step_at = 0.0
        self._reported = (0, 0.0)
        """The step that was reported last, and when."""
        with self._accelerator.main_process_first():  # who moves aside what is damaged
            found = self._prepare()
        if found is None:
            self.total_steps = self._steps()
        self._saver = saving.Saver(self._directory, found)

    # ── the beginning ──

    def _chosen(self) -> methods.Choice:
        job = self._job
        has_base = bool(job.base) or (job.base_model is not None and job.method != "auto")
        return methods.choose(job.method, job.role, has_base, bool(job.parents))

    def _taught(self) -> distilling.Lesson | None:
        """The lesson of a student; what it learns from takes the place of a base."""
        if self._choice.method not in ("distill", "merge"):
            return None
        folders = map(Path, self._job.parents)
        teachers = [distilling.read(self._specialist, folder) for folder in folders]
        trust = distilling.trust(self._specialist, teachers, self._cases) if self.is_first else []
        trust = broadcast_object_list([trust])[0]
        lesson = distilling.Lesson(self._specialist, teachers, trust, self._accelerator.device)
        self._base_sha256 = lesson.sha256
        return lesson

    @property
    def _cases(self) -> Cases:
        """The public validation cases, which only the first process has."""
        return _validation_of(self._job)[0]

    def _loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if self._lesson is None:
            return self._specialist.loss(module, batch)
        return self._lesson.loss(module, batch, self.step / max(1, self.total_steps))

    def _champion(self) -> str:
        """The folder of the model to start from, "" for none: an adapter is over its base model,
        not over a champion that was made without it."""
        job = self._job
        if self._choice.method != "lora" or job.base_model is None:
            return job.base
        bases.find(job.base_model)  # told, where it is not here
        if not job.base:
            return ""
        config = checkpoints.read_config(Path(job.base) / checkpoints.CONFIG_FILE)
        return job.base if config.base else ""

    def _prepare(self) -> Path | None:
        """Make model and optimizer, as the newest state that fits has them; that state."""
        before = checkpoints.damaged_count(self._directory)
        found = checkpoints.newest_state(self._directory) if self._job.resume else None
        while not self._is_prepared(found):
            assert found is not None, "a training without a state has nothing that could not fit"
            checkpoints.move_aside(found[0])
            found = checkpoints.newest_state(self._directory)
        self._damaged = checkpoints.damaged_count(self._directory) - before
        return found[0] if found else None

    def _is_prepared(self, found: tuple[Path, checkpoints.State] | None) -> bool:
        """Make model and optimizer, those of a state if there is one; whether it fits."""
        if found is not None:
            self._require_ours(*found)
        self._choice = self._chosen()
        try:
            self._config, self._module = self._model(self._configuration(found))
            rate = getattr(self._module, "learning_rate", self._specialist.learning_rate)
            starts = self._base or (self._lesson and self._lesson.start)
            self._peak = rate * (EVOLVER_RATE if starts else 1.0)
            self._use_threads(found[1].threads if found else 0)
            if self._job.is_stored:
                checkpoints.require_storable(self._module)
            self._optimizer = self._fresh_optimizer(self._module)
            if found is not None and found[1].method == self._choice.method:
                self._continue_from(*found)
        except errors.ArtifactError:
            if found is None:
                raise
            return False
        if found is not None and found[1].method != self._choice.method:
            raise _another(*found)
        if self._job.halved:
            self._micro_batch = max(1, (self._micro_batch or self._specialist.batch_size) // 2)
        teachers = self._lesson.name if self._lesson else ""
        self._key = (self._key_of_specialist, f"{self._config}{self._choice.method}{teachers}")
        self._stepper = self._stepper_of(self._module, self._optimizer)
        return True

    def _use_threads(self, before: int) -> None:
        """Compute on as many threads as before, since the bits depend on them."""
        count = before or 1
        if not before and _parameters(self._module) >= THREADED_PARAMETERS_MIN:
            count = limits.threads(self._job.threads, self._accelerator.num_processes)
        torch.set_num_threads(count)

    def _require_ours(self, folder: Path, state: checkpoints.State) -> None:
        """Raise errors.OtherTraining for a state that is not of this one."""
        job = self._job
        ours = (job.specialist, job.node_id, job.role, job.seed, self._base_sha256)
        found = (state.specialist, state.node_id, state.role, state.seed, state.base_sha256)
        is_other_work = state.parameters not in (None, job.parameters)
        if ours != found or is_other_work or job.steps not in (0, state.total_steps):
            raise _another(folder, state)

    def _configuration(self, found: tuple[Path, checkpoints.State] | None) -> Config:
        if found is not None:
            return checkpoints.read_config(found[0] / checkpoints.CONFIG_FILE)
        if self._base:
            return checkpoints.read_config(Path(self._base) / checkpoints.CONFIG_FILE)
        if self._lesson is not None:
            return self._lesson.student
        role: Role = "reinventor" if self._job.role == "reinventor" else "evolver"
        return self._specialist.families(role)[0]

    def _model(self, config: Config) -> tuple[Config, torch.nn.Module]:
        """The model to train, in float32, and its configuration."""
        torch.manual_seed(seeds.derive(self._job.node_id, "init", self._job.role, self._job.seed))
        module = forms.build(self._specialist, config)
        if self._base:
            checkpoints.load_weights(Path(self._base) / checkpoints.WEIGHTS_FILE, module)
        elif self._lesson is not None and self._lesson.start is not None:
            module.load_state_dict(self._lesson.start.module.state_dict())
        if config.form != forms.FLOAT:
            if self._choice.method == "quantize":
                raise errors.TrainingError(f"this champion is kept as {config.form} already")
            config, module = (
                msgspec.structs.replace(config, form=forms.FLOAT),
                forms.in_float(module),
            )
        if config.base:
            self._choice = methods.over_base(self._choice)
        else:
            self._choice = methods.prepare(self._choice, self._job.method, module)
        module.train()
        return config, module.to(self._accelerator.device)

    def _steps(self) -> int:
        """How many steps to take; a champion that is quantized is taken as it is."""
        if self._choice.method == "quantize" and self._base:
            return 0
        return self._job.steps or self._affordable_steps()

    def _affordable_steps(self) -> int:
        """How many steps fit into the budget beside what comes before and after them."""
        known = _step_seconds.get(self._key) if self._is_alone else None
        step_seconds = known or self._time_steps()
        told = [self._fitting(step_seconds)] if self.is_first else [0]
        return int(broadcast_object_list(told)[0])

    def _continue_from(self, folder: Path, state: checkpoints.State) -> None:
        """Raises errors.ArtifactError for what does not fit."""
        checkpoints.load_state(folder, self._module, self._optimizer)
        self.step = self.resumed_from = state.step
        self.total_steps = state.total_steps
        self._elapsed_before = state.elapsed_seconds
        self._micro_batch = state.micro_batch
        self._is_mixed = self._is_mixed and state.precision == stepping.MIXED

    def _fresh_optimizer(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        return optimizers.AdamW(trained, lr=self._peak, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def _stepper_of(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: stepping.Loss | None = None,
    ) -> stepping.Stepper:
        return stepping.Stepper(
            self._accelerator,
            module,
            optimizer,
            loss or self._loss,
            micro_batch=self._micro_batch,
            mixed=self._is_mixed,
        )

    def _fitting(self, step_seconds: float) -> int:
        evaluation_seconds = _evaluation_seconds.get(self._key) or self._time_evaluation()
        left = self._job.budget_seconds - evaluation_seconds - ENDING_SECONDS - self._elapsed()
        return max(1, min(STEPS_MAX, int(left / step_seconds)))

    def _time_steps(self) -> float:
        """Mean seconds of a step, in as many parts as it will be taken in."""
        if self._lesson is None:
            return self._timed(self._loss)
        # Its teachers are asked in some of the steps only, and may take most of the time of those.
        untaught = self._timed(self._specialist.loss)
        taught = self._timed(self._loss)
        return distilling.TAUGHT * taught + (1 - distilling.TAUGHT) * untaught

    def _timed(self, loss: stepping.Loss) -> float:
        module = copy.deepcopy(self._module)
        stepper = self._stepper_of(module, self._fresh_optimizer(module), loss)
        seconds = pace.time_steps(stepper, self._batch)
        self._stepper.micro_batch = stepper.micro_batch
        return seconds

    def _time_evaluation(self) -> float:
        """An estimate, also for the deadline of this first training; on the CPU, as `finish` is."""
        module = self._measured(copy.deepcopy(self._module))
        seconds = pace.time_evaluation(
            self._specialist, module, self._cases, self._stepper.micro_batch
        )
        _evaluation_seconds[self._key] = seconds
        return seconds

    def _measured(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module where it is measured."""
        return module if getattr(module, "stays_on_device", False) else module.to("cpu")

    def _batch(self, step: int) -> Batch:
        batch = self._specialist.train_batch(self._seed, step)
        where = self._accelerator.device
        if where.type == "cpu":
            return batch
        return {name: tensor.to(where) for name, tensor in batch.items()}

    # ── the middle ──

    def train(self, report: Report, asked_to_stop: AskedToStop) -> jobs.Stopped | None:
        """Take the steps that are left; what stopped it, or None when all are taken."""
        report(
            jobs.Started(
                step=self.step,
                total_steps=self.total_steps,
                method=self._choice.method,
                method_reason=self._choice.reason,
                damaged=self._damaged,
            )
        )
        if self._is_alone:
            self._stepper.is_asked_to_stop = lambda: asked_to_stop() is not None
        deadline = self._deadline()
        reported = saved = time.monotonic()
        self._first_step_at = self._last_step_at = time.time()
        steps_began, first = time.monotonic(), self.step
        self._reported = (first, steps_began)
        loss, is_due, is_late = torch.tensor(math.nan), False, False
        while self.step < self.total_steps:
            wish = self._wish(asked_to_stop(), is_late=is_late)
            if self._is_alone and wish is not Wish.GO_ON:
                break
            try:
                loss, wish = self._take_step(wish)
            except stepping.Abandoned:
                continue
            if wish is not Wish.GO_ON:
                break
            now = time.monotonic()
            if self.is_first and now - reported >= PROGRESS_SECONDS:
                reported = now
                report(self._progress(loss, report))
            is_late = standstill.is_past(deadline)
            is_milestone = saving.is_milestone(self.step, self.total_steps)
            is_due = is_due or is_milestone or now - saved >= self._job.checkpoint_seconds
            self._tell(report, wait=is_milestone)
            if is_due and self.step < self.total_steps and self._begin_save():
                is_due, saved = False, now
        else:
            wish = Wish.END
        self._last_step_at = time.time()
        if wish is not Wish.END:
            return self._stop(report, save=wish is Wish.SAVE)
        if self.step > first:
            report(self._progress(loss, report))  # reading the loss waits for the device
            _step_seconds[self._key] = (time.monotonic() - steps_began) / (self.step - first)
        return None

    def _wish(self, stop: jobs.Stop | None, *, is_late: bool) -> Wish:
        if stop is not None:
            return Wish.SAVE if stop.save else Wish.DROP
        return Wish.END if is_late else Wish.GO_ON

    def _deadline(self) -> float:
        earlier = self._elapsed_before if self.resumed_from else None
        measuring = _evaluation_seconds.get(self._key, 0.0)
        return self._began + pace.seconds_left(self._job, earlier, measuring)

    def _take_step(self, wish: Wish) -> tuple[torch.Tensor, Wish]:
        rate = learning_rate(self.step, self.total_steps, self._peak)
        told = self._stepper.take(self._batch(self.step), rate, wish)
        self.step += 1
        return told

    def _progress(self, loss: torch.Tensor, report: Report) -> jobs.Progress:
        value = float(loss)
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", report)
        (before, at), self._reported = self._reported, (self.step, time.monotonic())
        steps, seconds = self.step - before, max(self._reported[1] - at, 1e-9)
        return jobs.Progress(
            step=self.step,
            total_steps=self.total_steps,
            loss=value,
            learning_rate=learning_rate(self.step - 1, self.total_steps, self._peak),
            samples_per_second=steps * self._specialist.batch_size / seconds,
        )

    def _diverged(self, what: str, report: Report) -> errors.TrainingError:
        with contextlib.suppress(saving.NotFinite):
            told = self._saver.ended(wait=True)
            if told is not None:
                report(told)
        last = self._saver.last
        left = f"the last good state is {last}" if last else "no good state was written before"
        return errors.TrainingError(
            f"training diverged: {what} at step {self.step} of {self.total_steps}; {left}; another "
            "seed or a smaller learning rate may do"
        )

    def _elapsed(self) -> float:
        return self._elapsed_before + standstill.now() - self._began

    def _begin_save(self) -> bool:
        """Begin to write the state; whether the one before was written already."""
        if not self.is_first:
            return True
        job = self._job
        state = checkpoints.State(
            specialist=job.specialist,
            node_id=job.node_id,
            role=job.role,
            seed=job.seed,
            step=self.step,
            total_steps=self.total_steps,
            base_sha256=self._base_sha256,
            method=self._choice.method,
            elapsed_seconds=self._elapsed(),
            micro_batch=self._stepper.micro_batch,
            threads=torch.get_num_threads(),
            precision=stepping.MIXED if self._is_mixed else stepping.FULL,
            environment=device.environment(),
            parameters=job.parameters,
        )
        return self._saver.begin(state, self._module, self._optimizer, self._config)

    def _tell(self, report: Report, *, wait: bool = False) -> None:
        """Report what came of the last state, if that is new."""
        try:
            told = self._saver.ended(wait=wait)
        except saving.NotFinite as error:
            raise self._diverged(str(error), report) from error
        if told is not None:
            report(told)

    def _stop(self, report: Report, *, save: bool) -> jobs.Stopped:
        """Leave off: with the state as it is, or where that cannot be written, the one before."""
        self._tell(report, wait=True)
        last = self._saver.last
        if save and self.step > (checkpoints.step_of(last) if last else 0):
            self._begin_save()
            self._tell(report, wait=True)
            last = self._saver.last
        if not save or last is None:
            return jobs.Stopped(directory="", step=self.step)
        return jobs.Stopped(directory=str(last), step=checkpoints.step_of(last))

    def close(self) -> None:
        """Wait for what is still being written."""
        self._saver.close()

    # ── the end ──

    def finish(self, report: Report) -> jobs.Result:
        """Measure the model on the public validation cases and write it as a candidate."""
        self._tell(report, wait=True)
        module = self._measured(self._module)
        if self._choice.method == "lora" and not self._config.base:
            methods.merge_adapters(module)
        _, baselines = _validation_of(self._job)
        began = time.perf_counter()
        measured = self._evaluation(module)
        _evaluation_seconds[self._key] = time.perf_counter() - began
        if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
            raise self._diverged("weights are not finite", report)
        candidate = self._directory / "candidate"
        written = checkpoints.write_candidate(candidate, module, self._config, self._directory)
        result = jobs.Result(
            node_id=self._job.node_id,
            role=self._job.role,
            steps=self.step,
            total_steps=self.total_steps,
            loss=measured.loss,
            baseline_loss=baselines[self._specialist.baseline_of_record],
            baselines=baselines,
            evidence_rate=measured.evidence_rate,
            params=_parameters(module),
            bytes=written.bytes,
            weights_sha256=written.sha256,
            candidate_directory=str(candidate),
            baseline=self._specialist.baseline_of_record,
            unit=self._specialist.unit,
            family=self._config.family,
            device=self._accelerator.device.type,
            deadline=self.step < self.total_steps,
            resumed_from=self.resumed_from,
            first_step_at=self._first_step_at,
            last_step_at=self._last_step_at,
            micro_batch=self._stepper.micro_batch,
            threads=torch.get_num_threads(),
            precision=stepping.MIXED if self._is_mixed else stepping.FULL,
            checkpoints_missed=self._saver.missed,
            method=self._choice.method,
            method_reason=self._choice.reason,
            made="student" if self._choice.method == "merge" else "",
        )
        if self._choice.method != "quantize":
            return result
        return quantizing.quantized(
            result,
            self._specialist,
            module,
            self._config,
            self._cases,
            candidate,
            self._directory,
        )

    def _evaluation(self, module: torch.nn.Module) -> evaluation.Evaluation:
        """A module measured by as many cases at once as found room in training."""
        at_once = self._stepper.micro_batch
        return evaluation.evaluate(self._specialist, module, self._cases, at_once)


def _another(folder: Path, state: checkpoints.State) -> errors.OtherTraining:
    return errors.OtherTraining(
        f"{folder} is the state of another training ({state.method}, {state.role} of "
        f"{state.node_id}, seed {state.seed}, {state.total_steps} steps); use another folder, or "
        "remove it"
    )


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
