"""Questions to a model and its answers, as lines of JSON, by the fields of its specialist."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from agent.specialists.base import Answers, Field, Inputs, Specialist
from agent.specialists.ngrams import BEGIN
from core import errors

Question: TypeAlias = Mapping[str, torch.Tensor]
"""The fields of one input, as `Inputs` has them without their first dimension."""
ROUNDING = 1e-6
"""Of a number at a bound: what float32 cannot tell apart is no reason to refuse."""
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


# ── reading ──


def read(line: bytes, fields: Sequence[Field]) -> Question:
    """A question of one line. Raises errors.Invalid, which names the field that is wrong."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"it is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise errors.Invalid(f"it is {_kind(given)}, not an object such as --example prints")
    named = [field.name for field in fields]
    for name in given:
        if name not in named:
            raise errors.Invalid(f"{_short(name)}: there is no such field; {_listed(named)}")
    for name in named:
        if name not in given:
            raise errors.Invalid(f"{name}: it is missing; {_listed(named)}")
    return {field.name: _value(given[field.name], field) for field in fields}


def _listed(names: Sequence[str]) -> str:
    return f"the fields are {', '.join(names)}"


def _short(name: str) -> str:
    return name if len(name) <= 40 and name.isprintable() else repr(name[:40])


def _kind(given: object) -> str:
    return _KINDS.get(type(given), f"the number {given}")


def _value(given: object, field: Field) -> torch.Tensor:
    if field.is_text:
        return _text(given, field)
    numbers = list(_numbers(given, field, field.shape, field.name))
    shape = (len(numbers) // math.prod(field.shape[1:]), *field.shape[1:]) if field.shape else ()
    return torch.tensor(numbers, dtype=torch.float64).view(shape)


def _text(given: object, field: Field) -> torch.Tensor:
    if not isinstance(given, str):
        raise errors.Invalid(f"{field.name}: it is {_kind(given)}, not a text")
    try:
        found = given.encode()
    except UnicodeEncodeError as error:
        raise errors.Invalid(f"{field.name}: it is no UTF-8 text: {error.reason}") from error
    if not found or BEGIN in found:
        what = "has a zero byte, which no text has" if found else "is empty"
        raise errors.Invalid(f"{field.name}: it {what}")
    return torch.frombuffer(bytearray(found), dtype=torch.uint8)


def _numbers(given: object, field: Field, shape: Sequence[int], place: str) -> Iterator[float]:
    """The numbers of nested lists of this shape, each where it stands."""
    if not shape:
        yield _number(given, field, place)
        return
    fewest = field.fewest if place == field.name and field.fewest else shape[0]
    wanted = f"{shape[0]}" if fewest == shape[0] else f"{fewest} to {shape[0]}"
    what = "numbers" if len(shape) == 1 else f"lists of {shape[1]} numbers"
    if not isinstance(given, list):
        raise errors.Invalid(f"{place}: it is {_kind(given)}, not a list of {wanted} {what}")
    if not fewest <= len(given) <= shape[0]:
        raise errors.Invalid(f"{place}: it has {len(given)} entries, not {wanted} {what}")
    for at, one in enumerate(given):
        yield from _numbers(one, field, shape[1:], f"{place}[{at}]")


def _number(given: object, field: Field, place: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise errors.Invalid(f"{place}: it is {_kind(given)}, not a number")
    try:
        number = float(given)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise errors.Invalid(f"{place}: it is no finite number")
    slack = ROUNDING * abs(number)
    if not field.least - slack <= number <= field.most + slack:
        raise errors.Invalid(f"{place}: it is {number:g}, and {_bounds(field)}")
    if field.is_whole and number != int(number):
        raise errors.Invalid(f"{place}: it is {number:g}, and must be a whole number")
    return number


def _bounds(field: Field) -> str:
    if field.most == math.inf:
        return f"must be at least {field.least:g}"
    return f"must be from {field.least:g} to {field.most:g}"


def stacked(questions: Sequence[Question], fields: Sequence[Field]) -> Inputs:
    """Questions as a model is asked them, at once."""
    return {
        field.name: torch.nn.utils.rnn.pad_sequence(
            [question[field.name] for question in questions],
            batch_first=True,
            padding_value=BEGIN if field.is_text else math.nan,
        )
        if field.is_text or field.fewest
        else torch.stack([question[field.name] for question in questions])
        for field in fields
    }


# ── writing ──


def lines(values: Inputs | Answers, fields: Sequence[Field]) -> list[str]:
    """Inputs or answers as lines of JSON, a case each; "" for one that is not all finite."""
    columns = [(field, values[field.name]) for field in fields]
    count = len(columns[0][1])
    return [_line([(field, rows[at]) for field, rows in columns]) for at in range(count)]


def _line(row: Sequence[tuple[Field, torch.Tensor]]) -> str:
    plain = {field.name: _plain(field, value) for field, value in row}
    try:
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return ""


def _plain(field: Field, value: torch.Tensor) -> object:
    if field.is_text:
        return value[value != BEGIN].numpy().tobytes().decode()
    if field.fewest:
        value = value[~value.isnan()]
    if field.is_whole and bool(value.isfinite().all()):
        return value.long().tolist()
    if value.dtype == torch.float32:  # with no more digits than tell each from all others
        return value.numpy().astype(str).astype(np.float64).tolist()
    return value.tolist()


def example(specialist: Specialist) -> str:
    """A line that a model of this specialist can be asked, made of a validation case."""
    cases = specialist.cases(0, 1)
    made = {
        name: value if value.dtype == torch.uint8 else value.float()
        for name, value in specialist.asked(cases).items()
    }
    return lines(made, specialist.inputs)[0]
