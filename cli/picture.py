"""Pictures of what was learned: whether one can be drawn, asked before training, and drawing it."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cli import options
from core import errors, platforms

if TYPE_CHECKING:
    from agent.executors.jobs import Job

MATPLOTLIB = "matplotlib>=3.10"


def require_drawable(path: Path) -> Path:
    """The whole name of a picture that can be drawn and written.

    Raises errors.ExtraMissing without matplotlib, errors.DataDirectoryError where nothing can be
    written.
    """
    try:
        import matplotlib.figure  # noqa: F401  a package that is there may still not work
    except ImportError as error:
        install = [sys.executable, "-m", "pip", "install", MATPLOTLIB]
        raise errors.ExtraMissing(
            f"--plot draws with matplotlib, which this Python lacks ({error}). Install it with\n"
            f"  {platforms.shell_line(install)}"
        ) from error
    folder = options.made(path.parent, "The folder of the picture", "Name one by --plot")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise errors.DataDirectoryError(
            f"The picture {path} cannot be written: {error.strerror}. Name another file by --plot, "
            "in a folder that this user may write to."
        ) from error
    return folder / path.name


def draw(path: Path, job: "Job", model: Path, title: str) -> None:
    """Draw a job's model, in a folder, beside the truth on its node's public validation cases.

    Raises errors.ArtifactError for what is no model of the node, OSError for a disk without room.
    """
    import torch

    from agent import checkpoints
    from agent.specialists import evaluation, forms, pictures, registry

    torch.set_num_threads(1)
    specialist = registry.get(job.specialist, job.parameters, job.corpus)
    module = forms.build(specialist, checkpoints.read_config(model / checkpoints.CONFIG_FILE))
    checkpoints.load_weights(model / checkpoints.WEIGHTS_FILE, module)
    cases = evaluation.validation_cases(specialist, job.node_id)
    pictures.save(path, specialist, module, cases, title)
