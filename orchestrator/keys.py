"""The judges' key, and what is drawn from it: secrets of rounds, and seeds of each.

A round's secret is HMAC-SHA256(key, index): any judge with the key file can judge any round, and a
revealed secret reveals no other.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from core import errors, platforms

KEY_BYTES = 32
LOST_KEY = "`aghsan judge --new-key` (`aghsan up --new-judge-key`)"


def load_key(path: Path, deposited: int = 0) -> bytes:
    """The judges' key, made where nothing was committed to yet; the file is its owner's alone.

    `deposited` counts the commitments of the log that some key has to open. Raises
    errors.DataDirectoryError when that key is missing, or something else is in its place.
    """
    if not path.exists():
        if deposited:
            raise errors.DataDirectoryError(
                f"the judge's key {path} is missing, and {deposited} commitments were made with "
                f"it, so no new one is made; restore it from a backup, or, if it is lost for good, "
                f"start once with {LOST_KEY}: the rounds that only it could judge then end void"
            )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        platforms.write_atomically(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
    try:
        key = path.read_bytes()
    except OSError as error:
        raise errors.DataDirectoryError(
            f"the judge's key {path} cannot be read: {error}"
        ) from error
    if len(key) != KEY_BYTES:
        raise errors.DataDirectoryError(
            f"the judge's key {path} has {len(key)} bytes, not {KEY_BYTES}; restore it from a "
            "backup: rounds committed to with another key cannot be judged"
        )
    return key


def secret_of(key: bytes, index: int) -> bytes:
    """The secret of the round that took commitment `index`."""
    return hmac.digest(key, index.to_bytes(8, "big"), "sha256")


def commitment_to(secret: bytes) -> str:
    """What is published of a secret before its round: hex SHA-256."""
    return hashlib.sha256(secret).hexdigest()


def seed_of(secret: bytes, label: str, node_id: str, round_id: str) -> int:
    """A 63-bit seed for one use ("rank", "gate") of a round's secret."""
    message = "\x1f".join((label, node_id, round_id)).encode()
    return int.from_bytes(hmac.digest(secret, message, "sha256")[:8], "big") >> 1
