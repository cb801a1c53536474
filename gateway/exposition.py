"""Prometheus' text format, version 0.0.4: families of samples as the bytes of an answer.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "summary"]
Labels: TypeAlias = Mapping[str, str]

_NO_LABELS: Labels = {}


class Sample(NamedTuple):
    """One number; `suffix` comes behind the family's name, as `_bucket` does."""

    value: float
    labels: Labels = _NO_LABELS
    suffix: str = ""


class Family(NamedTuple):
    """Samples of one name, which share what they mean."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


def gauge(name: str, help: str, value: float) -> Family:
    """Something that goes up and down."""
    return Family(name, "gauge", help, [Sample(value)])


def gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """As `gauge`, one for each value of a label."""
    samples = [Sample(value, {label: key}) for key, value in values.items()]
    return Family(name, "gauge", help, samples)


def counter(name: str, help: str, value: float) -> Family:
    """Something that only grows, from zero at the start of the process."""
    return Family(name, "counter", help, [Sample(value)])


def summary(name: str, help: str, count: int, total: float) -> Family:
    """How often, and how much of it altogether."""
    return Family(
        name, "summary", help, [Sample(total, suffix="_sum"), Sample(count, suffix="_count")]
    )


def histogram(
    name: str, help: str, bounds: Sequence[float], counts: Sequence[int], total: float
) -> Family:
    """How often a value lay within each bound; `counts` are those of the bounds alone, and then of
    what is above the last."""
    assert len(counts) == len(bounds) + 1, "one count for each bound and one beyond"
    edges = [*map(_number, bounds), "+Inf"]
    samples = [
        Sample(within, {"le": edge}, "_bucket")
        for edge, within in zip(edges, accumulate(counts), strict=True)
    ]
    samples += [Sample(total, suffix="_sum"), Sample(sum(counts), suffix="_count")]
    return Family(name, "histogram", help, samples)


def encode(families: Iterable[Family]) -> bytes:
    """The text of all families that have samples."""
    return "".join(line for one in families if one.samples for line in _lines(one)).encode()


def _lines(family: Family) -> Iterable[str]:
    yield f"# HELP {family.name} {_escaped(family.help)}\n"
    yield f"# TYPE {family.name} {family.kind}\n"
    for value, labels, suffix in family.samples:
        pairs = ",".join(f'{name}="{_quotable(text)}"' for name, text in labels.items())
        yield f"{family.name}{suffix}{f'{{{pairs}}}' if pairs else ''} {_number(value)}\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quotable(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
