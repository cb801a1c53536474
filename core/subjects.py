"""Subjects of the streams, and ids as subject tokens."""

import base64
import hashlib
import re

LOG = "ev.log."
TASKS = "ev.task."
"""Of tasks, whose ids stand in subjects as they are."""
LOG_WRITER = "ev.log.writer"
LOG_COMMITMENTS = "ev.log.commitments"
LOG_SEAL = "ev.log.seal"
LOG_LOSS = "ev.log.loss"
LOG_SWEEP = "ev.log.sweep"


def lost(seq: int) -> str:
    """Where a record stands in for a lost one of which nobody knows what it was of."""
    return f"ev.lost.{seq}"


is_plain = re.compile(r"(?!x-)[A-Za-z0-9_-]{1,64}").fullmatch
"""Whether an id stands in subjects as it is."""


def token(identity: str) -> str:
    """An id as one subject token.

    Ids of 1 to 64 letters, digits, `_` and `-` that do not begin with `x-` stand as they are;
    any other string becomes `x-` and 26 base32 characters of its SHA-256.
    """
    if is_plain(identity):
        return identity
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
    return "x-" + base64.b32encode(digest).decode().lower()[:26]


def event(kind: str, identity: str) -> str:
    """The subject of an aggregate in EVENTS: `ev.<kind>.<token>`."""
    return f"ev.{kind}.{token(identity)}"
