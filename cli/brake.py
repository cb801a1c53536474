"""A brake on log lines, so that whoever makes a line of each request cannot fill the disk."""

import logging

LINES_MAX = 20
SECONDS = 60


class Brake(logging.Filter):
    """Lets through LINES_MAX lines a minute from one place in the code; of the rest it tells how
    many they were, once that place has its next minute."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], tuple[int, int]] = {}
        """By place: in which minute it last spoke, and how often then."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        place, minute = (record.pathname, record.lineno), int(record.created // SECONDS)
        then, count = self._said.get(place, (minute, 0))
        more = ""
        if then != minute:
            if count > LINES_MAX:
                more = f" ({count - LINES_MAX} lines like this were left out)"
            count = 0
        self._said[place] = minute, count + 1
        if count + 1 == LINES_MAX:
            more += " (more like this are left out for a minute)"
        record.msg = f"{record.msg}{more}"
        return count < LINES_MAX
