"""`aghsan train`: the agent's own executor, without any server."""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import options, picture, work
from core import errors, platforms
from core.methods import METHODS, PARENTS_MAX

if TYPE_CHECKING:
    from agent.executors.jobs import Job, Result, Stopped
    from core.events import Rival

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
    "method",
    "method_reason",
)


@click.command()
@click.option(
    "--node",
    "node_id",
    required=True,
    metavar="ID",
    help="A seeded specialization; any name, with --specialist or --corpus.",
)
@click.option(
    "--specialist", default="", help="What it trains; by default what it was seeded with."
)
@click.option(
    "--set",
    "parameters",
    multiple=True,
    type=options.Setting(),
    metavar="NAME=NUMBER",
    help="A parameter in which it differs; may be repeated.",
)
@click.option(
    "--corpus",
    type=options.Folder(),
    metavar="DIR",
    help="Train on the text files below DIR, each a document.",
)
@click.option(
    "--encoding",
    default="utf-8",
    show_default=True,
    help="How files of --corpus are written that do not say it themselves, such as windows-1256.",
)
@click.option(
    "--role",
    type=click.Choice(["evolver", "reinventor"]),
    help="Which rival to train. Default: evolver; of the method distill the reinventor.",
)
@click.option(
    "--method",
    default="auto",
    show_default=True,
    type=click.Choice(METHODS),
    help="How to train it.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Default: a random one.")
@click.option("--steps", type=click.IntRange(1, 10_000_000), help="Train so many steps.")
@click.option("--seconds", type=options.Number(0.2, 86_400), help="Train so long.")
@click.option(
    "--out",
    required=True,
    type=options.Folder(writable=True),
    help="Folder of checkpoints and of the finished model (candidate/).",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a model to start from, as candidate/ of another training; of the method "
    "distill the teacher's.",
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a model to merge; from two to four, the champion first.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out.")
@click.option(
    "--plot",
    type=options.Picture(),
    help="Draw what was learned beside the truth, as .png or .svg (needs matplotlib).",
)
@options.as_json
def train(
    node_id: str,
    specialist: str,
    parameters: tuple[tuple[str, float], ...],
    corpus: Path | None,
    encoding: str,
    role: str | None,
    method: str,
    seed: int | None,
    steps: int | None,
    seconds: float | None,
    out: Path,
    base: Path | None,
    parents: tuple[Path, ...],
    resume: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Train one rival of a specialization here, as an agent would, without a server.

    Of a node that was added, say what it trains by --specialist and --set, or by --corpus.
    The same seed and steps give the same weights_sha256, also when killed and resumed.
    """
    if (steps is None) == (seconds is None):
        raise click.UsageError("say either --steps or --seconds")
    rival = _rival(role, method, base, parents)
    what = work.asked(node_id, specialist, dict(parameters), corpus, encoding)
    if plot is not None:
        plot = picture.require_drawable(plot)
    _require_folder(out, resume, seed)
    if seed is None:
        seed = _seed_of(out) if resume else secrets.randbits(63)

    from agent.executors import jobs

    models = [str(one.resolve()) for one in ((base,) if base else parents)]
    job = jobs.Job(
        task_id="train",
        node_id=node_id,
        specialist=what.specialist,
        parameters=what.parameters,
        corpus=what.unpack(out.resolve()),
        role=rival,
        method=method,
        seed=seed,
        directory=str(out.resolve()),
        steps=steps or 0,
        budget_seconds=seconds or 30.0,
        checkpoint_seconds=max(CHECKPOINT_SECONDS_MIN, min(60.0, (seconds or 0.0) / 6)),
        base=models[0] if models and rival == "evolver" else "",
        parents=[] if rival == "evolver" else models,
        resume=resume,
    )
    result = asyncio.run(_train(job))
    if isinstance(result, jobs.Stopped):
        click.echo(_words_of(result, job, plot, what.options), err=True)
        raise SystemExit(INTERRUPTED)
    _show(result, seed, as_json)
    if plot is not None:
        _draw(plot, result, job)


def _rival(role: str | None, method: str, base: Path | None, parents: tuple[Path, ...]) -> "Rival":
    """What is to be trained. Raises click.UsageError for options that exclude each other."""
    if method == "merge":
        if role or base:
            raise click.UsageError("a merge is neither rival, and made of what --parent names")
        if not 2 <= len(parents) <= PARENTS_MAX:
            raise click.UsageError(f"a merge takes two to {PARENTS_MAX} --parent")
        return "merge"
    if parents:
        raise click.UsageError("--parent goes with --method merge")
    if (role or ("reinventor" if method == "distill" else "evolver")) == "evolver":
        return "evolver"
    if base is not None and method != "distill":
        raise click.UsageError("a reinventor starts from nothing: leave out --base")
    return "reinventor"


def _words_of(
    stopped: "Stopped", job: "Job", plot: Path | None, options: Sequence[str] = ()
) -> str:
    """What happened, and the command that goes on from there; `options` say what is trained."""
    if not stopped.directory:
        return "stopped before the first step; there is nothing to go on from"
    length = ["--steps", str(job.steps)] if job.steps else ["--seconds", f"{job.budget_seconds:g}"]
    option = "--parent" if job.role == "merge" else "--base"
    models = [job.base] if job.base else job.parents
    start = [word for folder in models for word in (option, folder)]
    role = [] if job.role == "merge" else ["--role", job.role]
    method = [] if job.method == "auto" else ["--method", job.method]
    named = ["--node", job.node_id, *options]
    what = [*named, *role, *method, "--seed", str(job.seed), *length, *start]
    ending = ["--out", job.directory, "--resume", *(["--plot", str(plot)] if plot else [])]
    again = platforms.shell_line(["aghsan", "train", *what, *ending])
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
    options.made(out, "The folder", "Name one by --out")


def _seed_of(out: Path) -> int:
    from agent import checkpoints

    before = checkpoints.damaged_count(out)
    found = checkpoints.newest_state(out)
    _tell_damaged(checkpoints.damaged_count(out) - before)
    if found is None:
        raise errors.NotFound(f"{out} holds no sound checkpoint; say which --seed to begin with")
    return found[1].seed


def _tell_damaged(count: int) -> None:
    if count:
        what = "checkpoint is" if count == 1 else "checkpoints are"
        click.echo(f"{count} {what} damaged, moved aside and passed over", err=True)


async def _train(job: "Job") -> "Result | Stopped":
    from agent.executors import jobs
    from agent.executors.process import Executor
    from cli import terminal

    executor = Executor()
    loop = asyncio.get_running_loop()
    stopping: set[asyncio.Task[None]] = set()
    """The loop itself keeps no task."""

    def stop() -> None:
        task = loop.create_task(executor.stop(save=True))
        stopping.add(task)
        task.add_done_callback(stopping.discard)

    def interrupted(*_: object) -> None:
        loop.call_soon_threadsafe(stop)

    with terminal.progress_bar(f"{job.role} of {job.node_id}") as show:

        def on_report(report: jobs.Report) -> None:
            match report:
                case jobs.Started():
                    _tell_damaged(report.damaged)
                    show(report.step, report.total_steps, None)
                case jobs.Progress():
                    show(report.step, report.total_steps, report.loss)
                case jobs.Missed():
                    click.echo(f"no checkpoint of step {report.step}: {report.reason}", err=True)
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

    if result.deadline:
        click.echo(
            f"the time was over after {result.steps} of {result.total_steps} steps; the model is "
            "the one of that step",
            err=True,
        )
    values = msgspec.to_builtins(result)
    if as_json:
        click.echo(msgspec.json.encode({key: values[key] for key in KEYS}).decode())
        return
    from cli import outcome, terminal

    for one in (*result.others, result):
        terminal.show(outcome.facts(one, seed), "")
    terminal.show(
        f"Mean error on the public validation cases ({result.unit}):",
        outcome.table(result),
        "",
        *outcome.words(result),
    )


def _draw(plot: Path, result: "Result", job: "Job") -> None:
    from cli import outcome

    # Beside a result as JSON, stdout is for programs.
    picture.draw(plot, job, Path(result.candidate_directory), outcome.title(result))
    click.echo(f"picture: {plot}", err=True)
