"""What a node can train: the specialists by name, the parameters each takes, and within what.

The specialists themselves lie with the agents, who import torch; what may be asked of them is said
here, so that a wrong wish is refused where it is spoken.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from core import errors
from core.events import Workload


class Parameter(NamedTuple):
    """One number that makes a relative of a specialist. Bounds are included."""

    default: float
    least: float
    most: float
    meaning: str
    is_whole: bool = False


class Kind(NamedTuple):
    """One specialist."""

    parameters: Mapping[str, Parameter] = {}
    budget_seconds_min: float = 0.0
    """Least budget of a rival, seconds on one core, that teaches anything; 0: any."""
    takes_corpus: bool = False
    """Whether it trains on the text that a workload's corpus names."""


TEXT = "text"

KINDS: Mapping[str, Kind] = {
    # Addition is learned abruptly: half the time teaches next to nothing.
    "root-math": Kind(
        parameters={
            "digits": Parameter(2.0, 2.0, 4.0, "most digits of the numbers to add", is_whole=True)
        },
        budget_seconds_min=60.0,
    ),
    "math-physics": Kind(
        {
            "viscosity_least": Parameter(1e-3, 1e-4, 1e-2, "the least viscosity"),
            "viscosity_ratio": Parameter(10, 1, 10, "how many times that the greatest is"),
            "speed_max": Parameter(0.25, 0.05, 0.5, "the greatest speed, in rounds of the circle"),
            "waves": Parameter(6, 1, 24, "waves that a field is made of", is_whole=True),
        },
        budget_seconds_min=5.0,
    ),
    "math-statistics": Kind(
        {
            "prior_freedom": Parameter(
                6.0, 3.0, 40.0, "degrees of freedom of the prior belief about the spread", True
            ),
            "prior_weight": Parameter(1.0, 0.1, 10.0, "readings the prior mean is worth"),
            "readings_max": Parameter(24.0, 3.0, 96.0, "most readings of a case", True),
        }
    ),
    "math-optimization": Kind(
        parameters={
            "variables": Parameter(32.0, 32.0, 64.0, "how many unknowns", is_whole=True),
            "condition": Parameter(
                100.0, 30.0, 1_000.0, "largest eigenvalue of the matrix / smallest it may have"
            ),
            "products": Parameter(
                12.0, 6.0, 16.0, "how often a method may multiply with the matrix", is_whole=True
            ),
        },
    ),
    "physics-fluid": Kind(
        {
            "viscosity_least": Parameter(0.01, 0.005, 0.02, "the least viscosity"),
            "viscosity_ratio": Parameter(5, 1, 5, "how many times that the greatest is"),
            "final_time": Parameter(0.5, 0.25, 0.75, "when the flow is looked at"),
            "waves": Parameter(6, 1, 12, "waves that a field is made of", is_whole=True),
        },
        budget_seconds_min=5.0,
    ),
    "physics-quantum": Kind(
        {
            "wells": Parameter(3.0, 1.0, 4.0, "Gaussian wells or bumps in the potential", True),
            "height": Parameter(4.0, 1.0, 5.0, "the most one is deep or high, hartree"),
            "reach": Parameter(1.5, 0.5, 1.5, "the farthest one is from the centre, bohr"),
        }
    ),
    "stats-bayesian": Kind(
        parameters={
            "drift_least": Parameter(0.02, 0.005, 0.1, "least standard deviation of a step"),
            "drift_most": Parameter(1.0, 0.2, 2.0, "most standard deviation of a step"),
            "noise_least": Parameter(0.1, 0.02, 0.5, "least standard deviation of the noise"),
            "noise_most": Parameter(2.0, 0.6, 5.0, "most standard deviation of the noise"),
        },
    ),
    "stats-time-series": Kind(
        parameters={
            "season": Parameter(12.0, 4.0, 24.0, "months in a season", is_whole=True),
            "horizon": Parameter(12.0, 1.0, 24.0, "months to forecast", is_whole=True),
            "products": Parameter(
                0.05, 0.0, 0.5, "chance that a part of a kernel is multiplied in, not added"
            ),
            "noise": Parameter(1.0, 0.2, 2.0, "most noise, in standard deviations of the signal"),
        },
        budget_seconds_min=3.0,
    ),
    "opt-convex": Kind(
        parameters={
            "rows": Parameter(64.0, 32.0, 128.0, "measurements of each problem", is_whole=True),
            "columns": Parameter(128.0, 64.0, 256.0, "unknowns of each problem", is_whole=True),
            "density": Parameter(0.1, 0.02, 0.3, "share of the unknowns that are not 0"),
            "noise": Parameter(0.02, 0.001, 0.5, "standard deviation of a measurement's noise"),
        },
    ),
    "opt-discrete": Kind(
        parameters={
            "cities": Parameter(12.0, 8.0, 13.0, "how many cities", is_whole=True),
            "height": Parameter(
                1.0, 0.1, 1.0, "height of the rectangle that the cities lie in; its width is 1"
            ),
        },
    ),
    # Its texts are counted before the first step.
    TEXT: Kind(budget_seconds_min=10.0, takes_corpus=True),
}
"""In the order of the tree; after those of its seeds what any node may train on its own text."""


def kind(specialist: str) -> Kind:
    """The specialist of that name. Raises errors.NotFound with those there are."""
    if specialist not in KINDS:
        raise errors.NotFound(
            f"there is no specialist {specialist!r}, because none is registered under that name in "
            f"this version: use one of {', '.join(KINDS)}, or upgrade if a newer version named it"
        )
    return KINDS[specialist]


def parameters(workload: Workload) -> dict[str, float]:
    """Every parameter of the workload: as it says, the others by default.

    Raises errors.NotFound for an unknown specialist, errors.Invalid for a parameter that it does
    not take or that is out of its range, and where it takes a corpus and there is none.
    """
    if kind(workload.specialist).takes_corpus and workload.corpus is None:
        raise errors.Invalid(
            f"{workload.specialist} trains on a corpus, and the node has none: give it one by "
            "`aghsan corpus add NODE DIR`"
        )
    return numbers(workload.specialist, workload.parameters)


def numbers(specialist: str, given: Mapping[str, float]) -> dict[str, float]:
    """Every parameter of a specialist: as given, the others by default. Raises as `parameters`,
    but asks for no corpus."""
    known = kind(specialist).parameters
    for name, value in given.items():
        if name not in known:
            takes = ", ".join(known) or "none"
            raise errors.Invalid(f"{specialist} takes no parameter {name!r}; it takes {takes}")
        bounds = known[name]
        if not (math.isfinite(value) and bounds.least <= value <= bounds.most):
            raise errors.Invalid(
                f"{name} of {specialist} ({bounds.meaning}) is from {bounds.least:g} to "
                f"{bounds.most:g}, not {value:g}"
            )
        if bounds.is_whole and value != int(value):
            raise errors.Invalid(
                f"{name} of {specialist} ({bounds.meaning}) is a whole number, not {value:g}"
            )
    return {name: given.get(name, bounds.default) for name, bounds in known.items()}


def words(workload: Workload) -> str:
    """What is trained, in a few words."""
    if workload.corpus is None:
        return workload.specialist
    over = f" over {workload.base_model.name}" if workload.base_model else ""
    return f"{workload.specialist} of {workload.corpus.name} ({workload.corpus.manifest[:8]}){over}"
