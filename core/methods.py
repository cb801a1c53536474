"""The ways to train that a task can ask for."""

from typing import Literal, TypeAlias, get_args

Method: TypeAlias = Literal["auto", "full", "lora", "quantize", "distill", "merge"]
"""auto: the agent chooses. full: every weight. lora: a few directions beside the champion's large
weights. quantize: int8 layers. distill: a smaller student of the champion. merge: what several
models make together."""

METHODS: tuple[Method, ...] = get_args(Method)
LARGE_PARAMS_MIN = 50_000_000
"""From here on an evolver adapts a champion unless told otherwise: training every weight takes 16
bytes for each, adapting it 4."""
PARENTS_MAX = 4
"""Of a merge."""


def takes_base(role: str, method: str) -> bool:
    """Whether such a task is given the champion: an evolver starts from it, a student learns from
    it. What a merge is made of it names itself."""
    return role in ("dual", "evolver") or (role, method) == ("reinventor", "distill")
