"""`aghsan train`: the agent's own executor, without any server."""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import options
from core import errors, platforms, specializations

if TYPE_CHECKING:
    from agent.executors.jobs import Job, Result, Stopped

INTERRUPTED = 130
CHECKPOINT_SECONDS_MIN = 1.0
KEYS = (
    "node_id",
    "role",
    "steps",
    "loss",
    "baseline_loss",
    "evidence_rate",
    "params",
    "bytes",
    "weights_sha256",
)


@click.command()
@click.option("--node", "node_id", required=True, metavar="ID", help="A seeded specialization.")
@click.option(
    "--role",
    default="evolver",
    show_default=True,
    type=click.Choice(["evolver", "reinventor"]),
    help="Which rival to train.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Default: a random one.")
@click.option("--steps", type=click.IntRange(1, 10_000_000), help="Train so many steps.")
@click.option("--seconds", type=options.Number(0.2, 86_400), help="Train so long.")
@click.option(
    "--out",
    required=True,
    type=options.Folder(),
    help="Folder of checkpoints and of the finished model (candidate/).",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a model to start from, as candidate/ of another training.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out.")
@options.as_json
def train(
    node_id: str,
    role: str,
    seed: int | None,
    steps: int | None,
    seconds: float | None,
    out: Path,
    base: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Train one rival of a specialization here, as an agent would, without a server.

    The same seed and steps give the same weights_sha256, also when killed and resumed.
    """
    if (steps is None) == (seconds is None):
        raise click.UsageError("say either --steps or --seconds")
    if base is not None and role == "reinventor":
        raise click.UsageError("a reinventor starts from nothing: leave out --base")
    specialist, _ = specializations.workload_of(node_id)
    _require_folder(out, resume, seed)
    if seed is None:
        seed = _seed_of(out) if resume else secrets.randbits(63)

    from agent.executors import jobs

    job = jobs.Job(
        task_id="train",
        node_id=node_id,
        specialist=specialist,
        role="evolver" if role == "evolver" else "reinventor",
        seed=seed,
        directory=str(out.resolve()),
        steps=steps or 0,
        budget_seconds=seconds or 30.0,
        checkpoint_seconds=max(CHECKPOINT_SECONDS_MIN, min(60.0, (seconds or 0.0) / 6)),
        base=str(base.resolve()) if base else "",
        resume=resume,
    )
    outcome = asyncio.run(_train(job))
    if isinstance(outcome, jobs.Stopped):
        click.echo(_words_of(outcome, job), err=True)
        raise SystemExit(INTERRUPTED)
    if outcome.deadline:
        click.echo(
            f"the time was over after {outcome.steps} of {outcome.total_steps} steps; the model is "
            "the one of that step",
            err=True,
        )
    _show(outcome, seed, as_json)


def _words_of(stopped: "Stopped", job: "Job") -> str:
    """What happened, and the command that goes on from there."""
    if not stopped.directory:
        return "stopped before the first step; there is nothing to go on from"
    length = ["--steps", str(job.steps)] if job.steps else ["--seconds", f"{job.budget_seconds:g}"]
    start = ["--base", job.base] if job.base else []
    what = ["--node", job.node_id, "--role", job.role, "--seed", str(job.seed), *length, *start]
    again = platforms.shell_line(["aghsan", "train", *what, "--out", job.directory, "--resume"])
    return f"stopped at step {stopped.step}, which is saved; go on with\n  {again}"


def _require_folder(out: Path, resume: bool, seed: int | None) -> None:
    has_states = out.is_dir() and any(out.glob("step-*"))
    if has_states and not resume:
        raise errors.Conflict(
            f"{out} holds checkpoints of a training; go on with it by --resume, or name another "
            "--out"
        )
    if resume and not has_states:
        if seed is None:
            raise errors.NotFound(
                f"{out} holds no checkpoint to go on from; leave out --resume to begin one there, "
                "or name the --out of the training"
            )
        click.echo(f"{out} holds no checkpoint yet; beginning at step 0", err=True)
    out.mkdir(parents=True, exist_ok=True)


def _seed_of(out: Path) -> int:
    from agent import checkpoints

    found = checkpoints.newest_state(out)
    if found is None:
        raise errors.NotFound(f"{out} holds no sound checkpoint; say which --seed to begin with")
    return found[1].seed


async def _train(job: "Job") -> "Result | Stopped":
    from agent.executors import jobs
    from agent.executors.process import Executor
    from cli import terminal

    executor = Executor()
    loop = asyncio.get_running_loop()

    def interrupted(*_: object) -> None:
        loop.call_soon_threadsafe(loop.create_task, executor.stop(save=True))

    with terminal.progress_bar(f"{job.role} of {job.node_id}") as show:

        def on_report(report: jobs.Report) -> None:
            match report:
                case jobs.Started():
                    show(report.step, report.total_steps, None)
                case jobs.Progress():
                    show(report.step, report.total_steps, report.loss)
                case _:
                    pass

        try:
            await executor.start()
            with _on_signals(interrupted):
                return await executor.run(job, on_report)
        finally:
            await executor.close()


@contextlib.contextmanager
def _on_signals(handler: Callable[..., None]) -> Iterator[None]:
    before = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def _show(result: "Result", seed: int, as_json: bool) -> None:
    import msgspec

    values = msgspec.to_builtins(result)
    if as_json:
        click.echo(msgspec.json.encode({key: values[key] for key in KEYS}).decode())
        return
    from cli import terminal

    side = "below" if result.loss < result.baseline_loss else "above"
    terminal.show(
        terminal.facts(
            [
                ("node", f"{result.node_id} · {result.role} · seed {seed}"),
                ("error", f"{result.loss:.4g}, {side} the baseline {result.baseline_loss:.4g}"),
                ("", f"({result.unit}; the baseline is {result.baseline})"),
                ("evidence", f"{result.evidence_rate:.1%}"),
                ("steps", str(result.steps)),
                ("model", f"{result.family}, {result.params} parameters, {result.bytes} bytes"),
                ("weights", result.weights_sha256),
                ("in", result.candidate_directory),
            ]
        )
    )
