"""Whatever anybody does after it, a state from a snapshot is the state that was folded."""

from collections.abc import Iterator

from hypothesis.stateful import invariant, rule

from core import commands, decide, errors, events, snapshots
from core.commands import AnyCommand, Meta
from core.log import Record
from core.projections.state import State
from tests import states
from tests.build import World
from tests.property.test_machine import CONFIGURED, Network

ROWS_AT_ONCE = 2


def reloaded(copied: snapshots.Copy, record: Record) -> State:
    pieces = list(snapshots.dump(copied))
    kept = snapshots.encode_head(
        snapshots.head_of(copied, record, [piece.part for piece in pieces])
    )
    return states.loaded(snapshots.decode_head(kept), [piece.data for piece in pieces])


class Twins(World):
    """A world whose commands are decided and folded on a second state too."""

    twin: State | None = None

    def do(self, command: AnyCommand) -> list[events.EventData]:
        if self.twin is not None:
            meta = Meta(self.now + 1, "cmd", "test", "test")
            assert _outcome(self.twin, command, meta) == _outcome(self.state, command, meta)
        return super().do(command)

    def _fold(self, meta: Meta, data: events.EventData) -> None:
        super()._fold(meta, data)
        if self.twin is not None:
            self.twin.evolve(self.stored[-1])


def _outcome(state: State, command: AnyCommand, meta: Meta) -> object:
    try:
        return decide.decide(state, command, meta)
    except errors.Refused as error:
        return type(error), str(error)


class Restarted(Network):
    """The same network, now and then gone on with from a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.world: Twins = Twins()
        self.copier: snapshots.Copier | None = None
        self.ahead: Iterator[None] = iter(())

    @rule()
    def is_copied_some_rows_further(self) -> None:
        if self.copier is None:
            self.copier = snapshots.Copier(self.world.twin or self.state, ROWS_AT_ONCE)
            self.ahead = self.copier.ahead()
        next(self.ahead, None)

    @rule()
    def goes_on_from_a_snapshot(self) -> None:
        copied_from = self.world.twin or self.state
        copier = self.copier or snapshots.Copier(copied_from)
        copied = copier.finish(copied_from)
        copier.close()
        last = self.world.stored[-1]
        record = Record(last.seq, events.subject_of(last.data), events.encode(last))
        self.world.twin, self.copier = reloaded(copied, record), None

    @rule()
    def has_its_log_sealed(self) -> None:
        sealed, last = self.state.sealed, self.state.seq
        self.attempt(
            commands.SealLog(
                first=sealed.last + 1, last=last, digest=f"{last:064x}", previous=sealed.digest
            )
        )

    @invariant()
    def both_are_the_same_in_all_that_is_in_them(self) -> None:
        if self.world.twin is not None:
            assert states.contents(self.world.twin) == states.contents(self.state)

    def teardown(self) -> None:
        if self.world.twin is not None:
            assert self.world.twin.hash() == self.state.hash()
        super().teardown()


Restarted.TestCase.settings = CONFIGURED
TestRestarted = Restarted.TestCase
