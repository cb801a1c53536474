"""`aghsan audit --rejudge ROUND`: a decided round judged again."""

import asyncio
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.log import ending_on_sigterm
from core import errors

if TYPE_CHECKING:
    from core.replay import Access
    from orchestrator.comparison import Outcome
    from orchestrator.figures import Difference

EXITS = {"agrees": 0, "differs": 1, "gone": 4, "unclear": 5}
"""By outcome; of several rounds the first that differs decides, then one that is not to be told."""


def judged(data: Path, round_ids: Sequence[str]) -> "list[Outcome]":
    """Rounds judged again, and how their records compare."""
    from core.replay import ALL_AUDITED, serving

    with ending_on_sigterm(), serving(data, ALL_AUDITED._replace(blocks=False)) as access:
        return asyncio.run(_judged(access, round_ids))


def told(outcomes: "Sequence[Outcome]") -> dict[str, object]:
    """What the audit's report says of them: whether all verdicts are the same, null where that
    cannot be told, and each one."""
    import msgspec

    code = exit_code(outcomes)
    same = None if code > EXITS["differs"] else not code
    return {"same_verdict": same, "recomputed": msgspec.to_builtins(outcomes)}


def exit_code(outcomes: "Sequence[Outcome]") -> int:
    """Of the command: that one differs weighs more than that others cannot be told."""
    found = {EXITS[one.outcome] for one in outcomes}
    return EXITS["differs"] if EXITS["differs"] in found else max(found, default=0)


async def _judged(access: "Access", round_ids: Sequence[str]) -> "list[Outcome]":
    from core.replay import connect, find_lost_chunks
    from orchestrator import rejudge as bench
    from orchestrator import trial

    ended = threading.Event()

    def go_on() -> None:
        if ended.is_set():
            raise trial.Abandoned

    async with connect(access) as connected:
        # All of them first: what cannot be judged again is said before anybody waits for the rest.
        rounds = [await bench.read_round(connected.log, one) for one in dict.fromkeys(round_ids)]
        if lost := await find_lost_chunks(access, connected):
            raise errors.NotFound(lost)
        with tempfile.TemporaryDirectory(prefix="aghsan-rejudge-") as texts:
            try:
                return [
                    await bench.again(connected.store, one, Path(texts), go_on) for one in rounds
                ]
            finally:
                ended.set()


def show(outcomes: "Sequence[Outcome]") -> None:
    """For people."""
    from cli import terminal

    differences = [(one.round_id, each) for one in outcomes for each in one.differences]
    if differences:
        columns = ["round", "candidate", "differs", "recorded", "found"]
        rows = [_row(round_id, each) for round_id, each in differences]
        terminal.show(terminal.table(columns, rows), "")
    for one in outcomes:
        terminal.show("", terminal.facts(_facts(one)), *_conclusion(one))
        for note in one.notes:
            terminal.show(terminal.clean(note.en), terminal.clean(note.ar))


def _row(round_id: str, one: "Difference") -> tuple[object, ...]:
    # As they are: what differs may do so in its last digit.
    recorded, found = (
        repr(value) if isinstance(value, float) else value for value in (one.recorded, one.found)
    )
    return round_id, one.candidate_id, one.what, recorded, found


def _facts(one: "Outcome") -> list[tuple[str, object]]:
    environment = [
        f"{name} {found}, not {recorded or 'recorded'}"
        for name, (recorded, found) in one.environment.items()
    ]
    return [
        ("round", one.round_id),
        ("node", one.node_id),
        ("verdict", f"{one.verdict} {one.promoted}".rstrip()),
        ("compared", f"{one.figures} figures"),
        ("environment", one.figures and ("; ".join(environment) or "that of the verdict")),
    ]


def _conclusion(one: "Outcome") -> tuple[str, str]:
    """In words, in both languages."""
    name = one.round_id
    match one.outcome:
        case "agrees" if not one.environment:
            return (
                f"Judged again, {name} is as recorded, bit for bit.",
                f"أُعيد الحكم في {name}، وهو كما سُجّل، بتًا ببت.",
            )
        case "agrees":
            return (
                f"Judged again in another environment, {name} is as recorded but for rounding.",
                f"أُعيد الحكم في {name} في بيئة أخرى، وهو كما سُجّل إلا في التقريب.",
            )
        case "differs":
            count = len(one.differences)
            return (
                f"Judged again, {name} is not as recorded: {count} differences.",
                f"أُعيد الحكم في {name}، وليس كما سُجّل: عدد الفروق {count}.",
            )
        case "gone":
            return (
                f"{name} cannot be judged again whole; the rest is as recorded.",
                f"لا يمكن أن يُعاد الحكم كله في {name}؛ وما أُعيد منه كما سُجّل.",
            )
        case _:
            return (
                f"Whether {name} is as recorded cannot be told from here.",
                f"لا يُعرف من هنا هل {name} كما سُجّل.",
            )
