"""The specialists by name; a specialist's file is imported when it is first asked for."""

import functools
import importlib
from collections.abc import Mapping
from typing import cast

from agent.specialists.base import Specialist
from core import errors

_HOMES = {
    "root-math": ("agent.specialists.addition", "Addition"),
    "stats-bayesian": ("agent.specialists.filtering", "Filtering"),
    "opt-convex": ("agent.specialists.lasso", "Lasso"),
}


def names() -> list[str]:
    """Every registered specialist, in the order of the tree."""
    return list(_HOMES)


def get(name: str, parameters: Mapping[str, float] = {}) -> Specialist:
    """The specialist of that name.

    Raises errors.NotFound for an unknown name, errors.Invalid for parameters: no specialist takes
    any yet.
    """
    if name not in _HOMES:
        raise errors.NotFound(
            f"there is no specialist {name!r}, because none is registered under that name in this "
            f"version: use one of {', '.join(_HOMES)}, or upgrade if a newer version named it"
        )
    if parameters:
        raise errors.Invalid(
            f"the specialist {name!r} takes no parameters in this version, but was given "
            f"{', '.join(sorted(parameters))}: leave them out"
        )
    return _load(name)


@functools.cache
def _load(name: str) -> Specialist:
    module, kind = _HOMES[name]
    return cast(Specialist, getattr(importlib.import_module(module), kind)())


def preload() -> None:
    """Import every specialist now, so that no training waits for it."""
    for name in _HOMES:
        _load(name)
