"""What a node's gates may be set to: each bound by name, within what, and what it means; and what
keeps within a budget."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from core import errors
from core.events import replace
from core.values import Budget, Gates, Weighed

BUDGETS_MAX = 4
BUDGET_NAME_CHARS_MAX = 32
BYTES_MAX = 2**53
TIMES_MAX = 1e6


class Setting(NamedTuple):
    """One number of the gates. Bounds are included."""

    least: float
    most: float
    meaning: str


SETTINGS: Mapping[str, Setting] = {
    "better_ratio": Setting(
        0.5, 1.0, "a better model's error is surely below so much of the champion's"
    ),
    "margin": Setting(
        1.0, 1.5, "a cheaper model's error is surely below so much of the champion's, and the best"
    ),
    "evidence_drop": Setting(0.0, 1.0, "how much of the evidence rate may be lost"),
    "latency_ratio": Setting(0.1, 100.0, "the most latency, in times of the champion's"),
    "size_ratio": Setting(0.1, 100.0, "the most bytes, in times of the champion's"),
    "memory_ratio": Setting(0.1, 100.0, "the most peak memory, in times of the champion's"),
    "shifted_ratio": Setting(
        0.1, 100.0, "the most error on shifted inputs, in times of the champion's"
    ),
    "cheaper_latency": Setting(
        0.01, 1.0, "a cheaper model's latency is below so much of the champion's,"
        " or its bytes below cheaper_size"
    ),
    "cheaper_size": Setting(
        0.01, 1.0, "a cheaper model's bytes are below so much of the champion's,"
        " or its latency below cheaper_latency"
    ),
    "exchange": Setting(
        0.0, 4.0, "what a lower error may cost: bounds grow by (1 / ratio of errors) ** exchange"
    ),
    "exchange_most": Setting(1.0, 100.0, "how many times those bounds grow at most"),
}  # fmt: skip


def require_sound(gates: Gates) -> None:
    """Raise Invalid for a number out of its range, and for budgets that are none."""
    for name, setting in SETTINGS.items():
        value = getattr(gates, name)
        if not setting.least <= value <= setting.most:
            raise errors.Invalid(
                f"{name} is from {setting.least:g} to {setting.most:g}, not {value:g}: "
                f"{setting.meaning}"
            )
    if len(gates.budgets) > BUDGETS_MAX:
        raise errors.Invalid(
            f"a node has at most {BUDGETS_MAX} budgets, not {len(gates.budgets)}; give one up"
        )
    for budget in gates.budgets:
        require_budget(budget)


def require_budget(budget: Budget) -> None:
    """Raise Invalid for a budget that is none."""
    name = budget.name
    if not 1 <= len(name) <= BUDGET_NAME_CHARS_MAX or name != name.strip():
        raise errors.Invalid(
            f"a budget has a name of 1 to {BUDGET_NAME_CHARS_MAX} characters, without blanks at "
            f"its ends, not {name!r}"
        )
    if not name.isprintable():
        raise errors.Invalid(f"the name of a budget can be shown, unlike {name!r}")
    if budget.latency_max is None and budget.bytes_max is None:
        raise errors.Invalid(f"the budget {name} bounds nothing; give latency, bytes, or both")
    latency, size = budget.latency_max, budget.bytes_max
    if latency is not None and not (math.isfinite(latency) and 0 < latency <= TIMES_MAX):
        raise errors.Invalid(
            f"the latency of the budget {name} is above 0 and at most {TIMES_MAX:g} times that of "
            f"the reference kernel, not {latency:g}"
        )
    if size is not None and not 1 <= size <= BYTES_MAX:
        raise errors.Invalid(f"the bytes of the budget {name} are 1 to {BYTES_MAX}, not {size}")


def changed(
    gates: Gates,
    settings: Mapping[str, float],
    budgets: Iterable[Budget] = (),
    dropped: Iterable[str] = (),
) -> Gates:
    """Gates with other numbers, with these budgets (in place of those of their names) and without
    the dropped ones. Raises Invalid, NotFound for a name that there is not."""
    for name in settings:
        if name not in SETTINGS:
            raise errors.Invalid(f"there is no gate {name!r}; {near(name, SETTINGS)}")
    stated = {one.name: one for one in gates.budgets}
    for name in dropped:
        if name not in stated:
            raise errors.NotFound(unknown_budget(name, stated))
        del stated[name]
    given = list(budgets)
    names = [one.name for one in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise errors.Invalid(f"the budget {twice} is given twice; names are unique")
    stated |= {one.name: one for one in given}
    whole = replace(gates, **settings, budgets=tuple(stated.values()))
    require_sound(whole)
    return whole


def fits(one: Weighed, budget: Budget) -> bool:
    """Whether a model costs no more than a budget has."""
    if budget.bytes_max is not None and one.bytes > budget.bytes_max:
        return False
    if budget.latency_max is None:
        return True
    return one.latency is not None and one.latency.ratio <= budget.latency_max


def unknown_budget(name: str, stated: Iterable[str]) -> str:
    """What to say where a node has no budget of a name."""
    known = list(stated)
    if not known:
        return f"there is no budget {name!r}: none is stated here; `aghsan gates` states one"
    return f"there is no budget {name!r}; {near(name, known)}"


def near(name: str, known: Iterable[str]) -> str:
    """Which name was probably meant, or all there are."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
