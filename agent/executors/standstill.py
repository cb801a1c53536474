"""How long this process stood still while its agent kept the machine quiet: no time of training."""

import time

HEARD_SECONDS = 0.05


class _Total:
    seconds = 0.0


def note(seconds: float) -> None:
    """It stood still for so long."""
    _Total.seconds += seconds


def now() -> float:
    """Seconds of a clock that stands still as well, once it heard of the pause."""
    return time.monotonic() - _Total.seconds


def is_past(moment: float) -> bool:
    """Whether it is later than that; seen again after a moment in which a pause that is just over
    can be heard of."""
    if now() < moment:
        return False
    time.sleep(HEARD_SECONDS)
    return now() >= moment
