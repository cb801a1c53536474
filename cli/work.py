"""What `aghsan train` trains: a seeded node's own work, or what its options say."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click

from core import errors, specializations, workloads

FOLDER = "corpus"
"""Of the texts, in the folder of a training."""


class Work(NamedTuple):
    """A specialist, the parameters in which it differs, and the files of its corpus by name."""

    specialist: str
    parameters: dict[str, float]
    texts: dict[str, bytes]
    options: tuple[str, ...]
    """What says so on the command line."""

    def unpack(self, out: Path) -> str:
        """The folder below `out` where the texts lie, as an agent has them; "" for none.

        Raises errors.Conflict where others lie there.
        """
        if not self.texts:
            return ""
        folder = out / FOLDER
        if folder.is_dir() and any(out.glob("step-*")) and _files(folder) != self.texts:
            raise errors.Conflict(
                f"the texts are no more those that the training in {out} began with; begin anew in "
                "another --out"
            )
        folder.mkdir(exist_ok=True)
        for name, data in self.texts.items():
            (folder / name).write_bytes(data)
        return str(folder)


def asked(
    node_id: str,
    specialist: str,
    parameters: Mapping[str, float],
    corpus: Path | None,
    encoding: str,
) -> Work:
    """The work that these options name; without any, a seeded node's own.

    Raises click.UsageError for options that exclude each other, errors.NotFound for a node or a
    specialist that is none, errors.Invalid for parameters or texts that cannot be trained.
    """
    if corpus is not None and specialist not in ("", workloads.TEXT):
        raise click.UsageError(f"--corpus is for the specialist {workloads.TEXT}: leave one out")
    if corpus is None and not specialist:
        specializations.require_seeded(node_id)
    named = workloads.TEXT if corpus is not None else specialist or node_id
    if corpus is None and workloads.kind(named).takes_corpus:
        raise click.UsageError(f"the specialist {named} trains on texts: name them by --corpus DIR")
    workloads.numbers(named, parameters)
    settings = [f"{name}={number!r}" for name, number in parameters.items()]
    options = [word for setting in settings for word in ("--set", setting)]
    if corpus is None:
        if specialist:
            options = ["--specialist", specialist, *options]
        return Work(named, dict(parameters), {}, tuple(options))
    options += ["--corpus", str(corpus.resolve())]
    if encoding != "utf-8":
        options += ["--encoding", encoding]
    return Work(named, dict(parameters), _texts(corpus, encoding), tuple(options))


def _texts(folder: Path, encoding: str) -> dict[str, bytes]:
    """What an agent would be given of a corpus of this folder."""
    from cli.corpus import read
    from core import corpora

    _, text = read(folder, encoding)
    packed = corpora.pack(folder.name, text)
    return {
        file.name: b"".join(packed.pieces[digest] for digest in file.chunks)
        for file in packed.public.files
    }


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
