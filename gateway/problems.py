"""What an error of the core is over HTTP, in one place."""

import json
from typing import NamedTuple

from core import errors
from gateway import bodies

RETRY_AFTER_SECONDS = 2

NOT_FOUND = b'{"detail":"Not Found"}'
METHOD_NOT_ALLOWED = b'{"detail":"Method Not Allowed"}'
INTERNAL = "Internal Server Error"


class Problem(NamedTuple):
    """A refusal or failure as an HTTP answer; the body is JSON."""

    status: int
    body: bytes
    headers: dict[str, str]


def of(error: Exception, *, contract: bool, where: str = "body") -> Problem | None:
    """The answer to an error, or None for one that no caller can have caused.

    `contract`: one of the nine routes, where what does not exist is a 400. `where`: in which part
    of the request the core finds fault, "body" or "query".
    """
    match error:
        case bodies.BadRequest():
            return Problem(error.status, error.body, {})
        case errors.Invalid():
            return Problem(422, _invalid(str(error), where), {})
        case errors.NotFound():
            return told(400 if contract else 404, str(error))
        case errors.Conflict():
            return told(409, str(error))
        case errors.QuotaExceeded() | errors.LogFull():
            return told(507, str(error))
        case errors.Refused():
            return told(400, str(error))
        case errors.Unavailable():
            return told(503, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)})
        case _:
            return None


def told(status: int, detail: str, headers: dict[str, str] | None = None) -> Problem:
    """A refusal in words."""
    return Problem(status, _encode({"detail": detail}), headers or {})


def too_large(body_bytes_max: int) -> Problem:
    """The body has more bytes than are taken."""
    return told(
        413,
        f"The body is larger than {body_bytes_max} bytes, the most this server takes; send less, "
        "or raise the server's limit",
    )


def _invalid(words: str, where: str) -> bytes:
    fault = {"type": "value_error", "loc": [where], "msg": words, "input": None}
    return _encode({"detail": [fault]})


def _encode(value: object) -> bytes:
    # Words may quote what was sent, undecodable bytes of a path included.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
