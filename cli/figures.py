"""Figures of trainings in few letters."""

import math
import statistics
from collections.abc import Iterable

from cli import views

UNITS = ("", "k", "M", "G", "T")


def rate(per_second: float | None) -> str:
    """Samples in a second."""
    if per_second is None or not math.isfinite(per_second):
        return ""
    value, unit = abs(per_second), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{UNITS[unit]}/s"


def percent(share: float | None) -> str:
    """How busy a device is; two processors in use are 200 %."""
    return "" if share is None else f"{100 * share:.0f} %"


def memory(count: int | None) -> str:
    """Bytes in use."""
    if count is None:
        return ""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def loss(value: float | None) -> str:
    """A loss or an error."""
    return "" if value is None else f"{value:.4g}"


def summary(one: views.RivalTelemetry) -> list[str]:
    """A training as a whole: its last loss, its usual speed and use of the device, its memory."""
    told = [point for point in one.points if point.loss is not None]
    if not told:
        return []
    usual = views.TelemetryPoint(
        step=told[-1].step,
        loss=told[-1].loss,
        samples_per_second=_median([point.samples_per_second for point in told]),
        utilisation=_median([point.utilisation for point in told]),
        memory_bytes=max((point.memory_bytes or 0 for point in told), default=0) or None,
    )
    return point(usual, one.total_steps)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def point(one: views.TelemetryPoint, total_steps: int) -> list[str]:
    """A moment of a training, a figure each; what is not known is left out."""
    said = (
        ("", f"step {one.step}/{total_steps}" if total_steps else f"step {one.step}"),
        ("loss ", loss(one.loss)),
        ("validation ", loss(one.validation)),
        ("rate ", "" if one.learning_rate is None else f"{one.learning_rate:.2g}"),
        ("", rate(one.samples_per_second).replace("/s", " samples/s")),
        ("device ", percent(one.utilisation)),
        ("", memory(one.memory_bytes)),
    )
    return [name + figure for name, figure in said if figure]
