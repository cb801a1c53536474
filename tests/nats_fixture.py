"""A real nats-server with our accounts: fresh for a test (`nats`) or shared by a module.

In a test module: `pytest_plugins = ["tests.nats_fixture"]`.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from core import topology
from core.accounts import Authority, Credentials
from core.bus import Bus
from core.nats_server import EmbeddedServer

SECONDS_MAX = 15.0


class Nats:
    """A running server, its authority, and a way in for every role."""

    def __init__(self, data: Path, declared: topology.Topology | None = None) -> None:
        self.data = data
        self.authority = Authority.load_or_create(data / "keys", declared)
        self.authority.write_credentials(data / "creds")
        self.server = EmbeddedServer(data, self.authority)

    @property
    def url(self) -> str:
        return self.server.url

    def creds(self, role: str) -> Path:
        """The credentials file of control, desk, notifier, system, judge, inspect-control, ..."""
        return self.data / "creds" / f"{role}.creds"

    @contextlib.asynccontextmanager
    async def connect(self, role: str, inbox_prefix: str = "") -> AsyncIterator[Bus]:
        """A connection of a role, with the inbox prefix that the role may use."""
        fallback = "_INBOX" if role.startswith("inspect") else f"_INBOX_{role.split('-')[0]}"
        bus = await Bus.connect(
            self.url,
            credentials=self.creds(role),
            name=role,
            inbox_prefix=inbox_prefix or fallback,
        )
        try:
            yield bus
        finally:
            await bus.close()

    @contextlib.asynccontextmanager
    async def agent(self, worker: str, lane: str = "cpu") -> AsyncIterator[Bus]:
        """A connection of an agent."""
        bus = await self.connect_as(worker, self.authority.agent(worker, [lane], None))
        try:
            yield bus
        finally:
            await bus.close()

    async def connect_as(self, name: str, credentials: Credentials) -> Bus:
        """A connection with minted credentials; the caller closes it."""
        assert credentials.seed is not None
        return await Bus.connect(
            self.url,
            credentials=(credentials.jwt, credentials.seed),
            name=name,
            inbox_prefix=f"_INBOX_{name}",
        )

    async def apply(self) -> list[topology.Change]:
        """Make the streams of both accounts, and the lane `cpu`."""
        declared = self.authority.declared
        async with self.connect("control") as control, self.connect("desk") as desk:
            changes = await topology.apply(control.api, "CONTROL", declared)
            changes += await topology.apply(desk.api, "FLEET", declared)
            lane = await topology.ensure_lane(desk.api, declared, "cpu")
        return changes + ([lane] if lane else [])


@contextlib.contextmanager
def running(data: Path, declared: topology.Topology | None = None) -> Iterator[Nats]:
    """A server that runs inside the block."""
    nats = Nats(data, declared)
    with nats.server:
        yield nats


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    """A fresh server, without streams."""
    with running(tmp_path / "data") as one:
        yield one


@pytest.fixture(scope="module")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """A server for all tests of a module, without streams."""
    with running(tmp_path_factory.mktemp("nats") / "data") as one:
        yield one
