"""Rows by key, with a digest that costs only what changed since it was last asked for."""

import hashlib
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

Row = TypeVar("Row", bound=msgspec.Struct)

_MODULUS_BYTES = 256
_MASK = (1 << (8 * _MODULUS_BYTES)) - 1
_encode = msgspec.json.Encoder(order="deterministic").encode


class Table(Generic[Row]):
    """A dictionary of immutable rows whose digest does not depend on the order of insertion.

    The digest is the sum over all rows of SHAKE-256(table, key, row), 2,048 bits each, modulo
    2^2048 (AdHash of Bellare and Micciancio 1997, at a size where sums do not collide). Until it
    is first asked for, nothing is tracked, so that a rebuild pays nothing.
    """

    __slots__ = ("_before", "_sum", "name", "rows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[str, Row] = {}
        self._sum = 0
        self._before: dict[str, Row | None] | None = None

    def get(self, key: str) -> Row | None:
        """The row of a key, or None."""
        return self.rows.get(key)

    def put(self, key: str, row: Row) -> None:
        """Add or replace a row."""
        if self._before is not None and key not in self._before:
            self._before[key] = self.rows.get(key)
        self.rows[key] = row

    def drop(self, key: str) -> None:
        """Remove a row that exists."""
        if self._before is not None and key not in self._before:
            self._before[key] = self.rows[key]
        del self.rows[key]

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def digest(self) -> bytes:
        """256 bytes that are equal for equal rows, and for no others."""
        if self._before is None:
            self._sum = sum(self._term(key, row) for key, row in self.rows.items()) & _MASK
        else:
            for key, old in self._before.items():
                if old is not None:
                    self._sum -= self._term(key, old)
                new = self.rows.get(key)
                if new is not None:
                    self._sum += self._term(key, new)
            self._sum &= _MASK
        self._before = {}
        return self._sum.to_bytes(_MODULUS_BYTES, "big")

    def _term(self, key: str, row: Row) -> int:
        text = b"\x1f".join((self.name.encode(), key.encode(), _encode(row)))
        return int.from_bytes(hashlib.shake_256(text).digest(_MODULUS_BYTES), "big")
