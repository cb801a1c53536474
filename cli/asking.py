"""Asks a model what stands in lines of JSON, as they arrive, and writes a line for each answer."""

from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from core import errors

if TYPE_CHECKING:
    import torch

    from agent.specialists.base import Specialist
    from agent.specialists.questions import Question

BATCH_LINES = 64
LINE_BYTES_MAX = 1024 * 1024


class Line(NamedTuple):
    """A line that is not blank, and its number, from 1."""

    number: int
    text: bytes


def batches(stream: BufferedReader) -> Iterator[list[Line]]:
    """What has arrived of a stream, at most BATCH_LINES at a time: who asks line by line is
    answered line by line."""
    number, rest = 0, b""
    while True:
        data = stream.read1(LINE_BYTES_MAX)
        *whole, rest = (rest + data).split(b"\n")
        if rest and (not data or len(rest) > LINE_BYTES_MAX):
            whole.append(rest)
        lines = [Line(at, text) for at, text in enumerate(whole, number + 1) if _asks(text)]
        number += len(whole)
        for first in range(0, len(lines), BATCH_LINES):
            yield lines[first : first + BATCH_LINES]
        if not data or len(rest) > LINE_BYTES_MAX:
            return


def _asks(text: bytes) -> bool:
    """A blank line asks nothing, and is nothing to complain of unless it is too long to be read."""
    return bool(text.strip()) or len(text) > LINE_BYTES_MAX


def answer(
    specialist: "Specialist", module: "torch.nn.Module", given: BufferedReader, out: BinaryIO
) -> None:
    """Answer every line, in order.

    Raises errors.Invalid at the first that is no question, errors.ArtifactError where the model has
    no answer; what comes before it was answered and written then.
    """
    for batch in batches(given):
        asked, wrong = _read(batch, specialist)
        if asked:
            _write(_answers(specialist, module, asked), batch, out)
        if wrong is not None:
            raise wrong


def _read(
    batch: Sequence[Line], specialist: "Specialist"
) -> "tuple[list[Question], errors.Invalid | None]":
    """The questions before the first line that is none, and what is wrong with that one."""
    from agent.specialists import questions

    asked: list[Question] = []
    for line in batch:
        try:
            if len(line.text) > LINE_BYTES_MAX:
                raise errors.Invalid(f"it has more than {LINE_BYTES_MAX} bytes")
            asked.append(questions.read(line.text, specialist.inputs))
        except errors.Invalid as error:
            return asked, errors.Invalid(f"line {line.number}: {error}")
    return asked, None


def _answers(
    specialist: "Specialist", module: "torch.nn.Module", asked: "Sequence[Question]"
) -> list[str]:
    import torch

    from agent.specialists import questions

    with torch.inference_mode():
        said = specialist.answer(module, questions.stacked(asked, specialist.inputs))
    return questions.lines(said, specialist.answers)


def _write(answers: Sequence[str], batch: Sequence[Line], out: BinaryIO) -> None:
    for line, said in zip(batch, answers, strict=False):
        if not said:
            out.flush()
            raise errors.ArtifactError(
                f"line {line.number}: the model has no answer to it that is a finite number"
            )
        out.write(said.encode() + b"\n")
    out.flush()
