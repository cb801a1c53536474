"""How long this process stood still while its agent kept the machine quiet: no time of training."""

import time


class _Total:
    seconds = 0.0


def note(seconds: float) -> None:
    """It stood still for so long."""
    _Total.seconds += seconds


def now() -> float:
    """Seconds of a clock that stands still as well; behind by a pause that it hears of only soon
    after."""
    return time.monotonic() - _Total.seconds
