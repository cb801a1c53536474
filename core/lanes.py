"""Lanes: classes of agents that can run the same tasks, named by device and memory.

There are as many lanes as names below allow and no more, since each costs a consumer of WORK: what
agents call themselves is mapped onto one of these, with no more memory than they have.
"""

import re

from core import errors

DEVICES = ("cpu", "cuda", "mps")
MEMORY_BUCKETS_GB = (1, 4, 8, 16, 32, 64, 80, 128, 192)

ALL = frozenset(f"{device}-{memory}" for device in DEVICES for memory in MEMORY_BUCKETS_GB)

_NAME = re.compile(r"([a-z]+)(?:-([0-9]{1,6}))?")


def nearest(name: str) -> str:
    """The lane of an agent that says it is of this one: same device, its memory or the next less.

    Raises Invalid for what names no device that tasks are made for.
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in DEVICES:
        raise errors.Invalid(
            f"{name[:64]!r} is no lane: {', '.join(DEVICES)} and GB of memory are, as in cpu-16"
        )
    return f"{found[1]}-{bucket(float(found[2] or 0))}"


def bucket(memory_gb: float) -> int:
    """The largest memory of a lane that is no more than this; the smallest there is below that."""
    return max((one for one in MEMORY_BUCKETS_GB if one <= memory_gb), default=MEMORY_BUCKETS_GB[0])
