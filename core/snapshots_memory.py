"""Snapshots in memory: for tests and simulations."""

from collections.abc import AsyncIterator, Collection

from core.snapshots import Kept


class MemorySnapshots:
    """A `core.snapshots.SnapshotStore` that ends with its process."""

    def __init__(self) -> None:
        self.stored: dict[str, list[bytes]] = {}
        self.heads: dict[str, bytes] = {}

    async def add(self, name: str, part: bytes) -> None:
        """As `SnapshotStore.add`."""
        self.stored.setdefault(name, []).append(part)

    async def finish(self, name: str, head: bytes) -> None:
        """As `SnapshotStore.finish`."""
        self.heads[name] = head

    async def kept(self) -> list[Kept]:
        """As `SnapshotStore.kept`."""
        return [Kept(name, head) for name, head in reversed(self.heads.items())]

    async def parts(self, name: str) -> AsyncIterator[bytes]:
        """As `SnapshotStore.parts`."""
        for part in self.stored.get(name, []):
            yield part

    async def prune(self, keep: Collection[str]) -> None:
        """As `SnapshotStore.prune`."""
        self.stored = {name: parts for name, parts in self.stored.items() if name in keep}
        self.heads = {name: head for name, head in self.heads.items() if name in keep}
