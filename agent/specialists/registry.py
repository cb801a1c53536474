"""The specialists by name; a specialist's file is imported when it is first asked for."""

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from agent.specialists.base import Specialist
from core import errors, workloads
from core.events import BaseModel

RELATIVES_KEPT = 64
TEXTS_KEPT = 2
"""Their counts take tens of times the bytes of the text."""
_HOMES = {
    "root-math": ("agent.specialists.addition", "Addition"),
    "math-physics": ("agent.specialists.advection", "Advection"),
    "math-statistics": ("agent.specialists.posterior", "Posterior"),
    "math-optimization": ("agent.specialists.quadratics", "Quadratics"),
    "physics-fluid": ("agent.specialists.burgers", "Burgers"),
    "physics-quantum": ("agent.specialists.energies", "Energies"),
    "stats-bayesian": ("agent.specialists.filtering", "Filtering"),
    "stats-time-series": ("agent.specialists.forecasting", "Forecasting"),
    "opt-convex": ("agent.specialists.lasso", "Lasso"),
    "opt-discrete": ("agent.specialists.tours", "Tours"),
    workloads.TEXT: ("agent.specialists.text", "Text"),
}


def names() -> list[str]:
    """Every registered specialist, in the order of the tree."""
    return list(_HOMES)


def get(
    name: str,
    parameters: Mapping[str, float] = {},
    corpus: str = "",
    base_model: BaseModel | None = None,
) -> Specialist:
    """The specialist of that name, or the relative of it that the parameters make; `corpus` is the
    folder of its texts, where it takes some, and `base_model` what adapters may be over.

    Raises errors.NotFound for an unknown name, errors.Invalid for a parameter that it does not take
    or that is out of its range, errors.ArtifactError for a folder that holds no corpus.
    """
    whole = tuple(sorted(workloads.numbers(name, parameters).items()))
    if not workloads.kind(name).takes_corpus:
        return _load(name, whole)
    if not corpus:
        raise errors.Invalid(f"{name} trains on a corpus, and none was given")
    return _load_text(name, whole, corpus, base_model)


@functools.lru_cache(maxsize=RELATIVES_KEPT)
def _load(name: str, parameters: tuple[tuple[str, float], ...]) -> Specialist:
    return _kind(name)(**dict(parameters))


@functools.lru_cache(maxsize=TEXTS_KEPT)
def _load_text(
    name: str, parameters: tuple[tuple[str, float], ...], corpus: str, base: BaseModel | None
) -> Specialist:
    return _kind(name)(corpus=Path(corpus), base_model=base, **dict(parameters))


def _kind(name: str) -> Callable[..., Specialist]:
    module, kind = _HOMES[name]
    return cast(Callable[..., Specialist], getattr(importlib.import_module(module), kind))


def preload() -> None:
    """Import every specialist now, so that no training waits for it."""
    for name in _HOMES:
        if workloads.kind(name).takes_corpus:
            _kind(name)
        else:
            get(name)
