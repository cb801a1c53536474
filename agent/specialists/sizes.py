"""Checks the sizes a config asks for, before any memory is reserved for them."""

from collections.abc import Mapping

from agent.specialists.base import Config
from core import errors

Bounds = Mapping[str, tuple[int, int]]
"""Smallest and largest allowed value of each size, both included."""


def read(config: Config, bounds: Bounds) -> dict[str, int]:
    """The sizes of `config`, each of them named in `bounds` and within them.

    Raises errors.ArtifactError for a missing, unknown or out-of-bounds size: configs arrive with
    checkpoints, from outside.
    """
    if set(config.sizes) != set(bounds):
        raise errors.ArtifactError(
            f"the family {config.family!r} takes the sizes {sorted(bounds)}, this config has "
            f"{sorted(config.sizes)}: use a config that families() lists, or change its values"
        )
    for name, (least, most) in bounds.items():
        if not least <= config.sizes[name] <= most:
            raise errors.ArtifactError(
                f"the family {config.family!r} takes {name} from {least} to {most}, this config "
                f"has {config.sizes[name]}: choose a value between them"
            )
    return dict(config.sizes)


def unknown_family(config: Config, specialist: str, known: tuple[str, ...]) -> errors.ArtifactError:
    """The error for a family that `specialist` has not registered."""
    return errors.ArtifactError(
        f"{specialist} has no family {config.family!r}, so its weights cannot be loaded: use one "
        f"of {', '.join(known)}"
    )
