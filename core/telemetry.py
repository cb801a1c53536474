"""Telemetry: how trainings go, as curves of few points that keep what stands out."""

from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

import msgspec

from core import errors
from core.events import Rival

POINTS_MAX = 200
"""Of a curve that is kept."""
CURVES_MAX = 3
"""Of a task: it has no more rivals."""
DIGITS = 5

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Point(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A moment of a rival's training; on the wire and in the store an array in this order.

    `at` is seconds since 1970 by the clock of the device, `loss` the training loss in the
    specialist's own terms, `validation` the mean error on the public validation cases in its unit.
    `utilisation` is the share of a GPU's time that it worked, and of a CPU how many processors the
    training used. `memory_bytes` are those in use on the GPU, else those of the training's process.
    """

    step: _Count
    at: Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
    loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    utilisation: float | None = None
    memory_bytes: _Count | None = None
    validation: float | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one rival's training, by step."""

    rival: Rival
    total_steps: _Count
    points: Annotated[list[Point], msgspec.Meta(max_length=POINTS_MAX)]


Curves: TypeAlias = Annotated[list[Curve], msgspec.Meta(max_length=CURVES_MAX)]
_decode = msgspec.json.Decoder(Curves).decode


def thin(points: Sequence[Point], most: int = POINTS_MAX) -> list[Point]:
    """At most so many points: the first, the last, and of every equal stretch of steps those of the
    least and of the greatest loss.

    Thinned again and again while more come, a curve stays as dense in its old parts as in its new
    ones, and its extremes are always among its points.
    """
    if len(points) <= most:
        return list(points)
    parts = (most - 2) // 2
    first, steps = points[0].step, max(1, points[-1].step - points[0].step + 1)
    least: dict[int, int] = {}
    greatest: dict[int, int] = {}
    for index, point in enumerate(points):
        if point.loss is None:
            continue
        part = min(parts - 1, max(0, (point.step - first) * parts // steps))
        if part not in least or point.loss < _loss(points[least[part]]):
            least[part] = index
        if part not in greatest or point.loss > _loss(points[greatest[part]]):
            greatest[part] = index
    kept = {0, len(points) - 1, *least.values(), *greatest.values()}
    return [points[index] for index in sorted(kept)]


def _loss(point: Point) -> float:
    assert point.loss is not None, "only losses are compared"
    return point.loss


def short(value: float) -> float:
    """A figure with as many digits as a curve needs."""
    return float(f"{value:.{DIGITS}g}")


def encode(curves: Iterable[Curve]) -> bytes:
    """Curves as they are stored."""
    return msgspec.json.encode(list(curves))


def decode(raw: bytes) -> list[Curve]:
    """Stored curves. Raises errors.ArtifactError."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ArtifactError(f"telemetry that cannot be read: {error}") from error
