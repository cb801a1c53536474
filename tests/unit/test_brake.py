"""The brake on log lines of one kind."""

import logging

from cli.brake import LINES_MAX, SECONDS, Brake


def _line(at: float, place: int = 1) -> logging.LogRecord:
    record = logging.LogRecord("n", logging.INFO, "here.py", place, "nonsense of %s", ("w",), None)
    record.created = at
    return record


def _said(brake: Brake, records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if brake.filter(record)]


def test_of_many_lines_of_a_kind_some_are_written_and_the_rest_are_counted() -> None:
    brake = Brake()
    first = _said(brake, [_line(0.0) for _ in range(LINES_MAX + 7)])
    assert len(first) == LINES_MAX
    assert first[-1] == "nonsense of w (more like this are left out for a minute)"
    assert _said(brake, [_line(SECONDS), _line(SECONDS)]) == [
        "nonsense of w (7 lines like this were left out)",
        "nonsense of w",
    ]


def test_one_kind_of_line_leaves_the_others_alone() -> None:
    brake = Brake()
    _said(brake, [_line(0.0) for _ in range(2 * LINES_MAX)])
    assert _said(brake, [_line(0.0, place=2)]) == ["nonsense of w"]
