import asyncio
import contextlib
import selectors
import socket
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from core import turns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the usual loop is used")


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connections, each with something to read at its first end."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(5 * turns.READY_MAX):
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            stack.callback(theirs.close)
            theirs.send(b"x")
            made.append((ours, theirs))
        yield made


@pytest.fixture
def few() -> Iterator[turns.FewAtOnce]:
    made = turns.FewAtOnce()
    yield made
    made.close()


def test_a_turn_takes_a_few_and_every_ones_turn_comes(
    few: turns.FewAtOnce, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    for ours, _ in pairs:
        few.register(ours, selectors.EVENT_READ)
    seen: Counter[int] = Counter()
    for _ in range(2 * len(pairs) // turns.READY_MAX):
        ready = few.select(0)
        assert len(ready) == turns.READY_MAX
        seen.update(key.fd for key, _ in ready)
    # Nobody read, so all are ready all the time: two rounds gave each two turns.
    assert set(seen.values()) == {2}


def test_it_tells_what_is_asked_for_and_whose(
    few: turns.FewAtOnce, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    ours, theirs = pairs[0]
    few.register(ours, selectors.EVENT_WRITE, "ours")
    assert [(key.data, events) for key, events in few.select(0)] == [
        ("ours", selectors.EVENT_WRITE)
    ]
    few.modify(ours, selectors.EVENT_READ, "mine")
    assert [(key.data, events) for key, events in few.select(0)] == [("mine", selectors.EVENT_READ)]
    few.modify(ours, selectors.EVENT_READ | selectors.EVENT_WRITE)
    assert [events for _, events in few.select(0)] == [selectors.EVENT_READ | selectors.EVENT_WRITE]
    assert few.get_key(ours).fd == ours.fileno()
    assert list(few.get_map()) == [ours.fileno()]
    assert few.get_map().get(ours) == few.get_key(ours.fileno())
    assert few.get_map().get(theirs) is None
    theirs.close()
    assert few.select(0), "a closed end shows to whoever reads"


def test_a_file_is_watched_once_and_may_be_closed_before_it_is_let_go(
    few: turns.FewAtOnce, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    ours, _ = pairs[0]
    few.register(ours.fileno(), selectors.EVENT_READ)
    with pytest.raises(KeyError):
        few.register(ours.fileno(), selectors.EVENT_READ)
    file = ours.fileno()
    ours.close()
    few.unregister(file)
    assert few.select(0) == []
    with pytest.raises(KeyError):
        few.unregister(file)
    with pytest.raises(KeyError):
        few.modify(file, selectors.EVENT_READ)


def test_the_longest_turn_is_told_once_by_what_it_computed() -> None:
    computed = 7.0
    few = turns.FewAtOnce(lambda: computed)
    for seconds in (5.0, 0.25, 0.5, 0.125):  # the first ends before any turn began
        computed += seconds
        few.select(0)
    assert few.take_longest_seconds() == 0.5
    computed += 0.25
    assert few.take_longest_seconds() == 0.0, "a turn counts once it has ended"
    few.select(0)
    assert few.take_longest_seconds() == 0.25
    few.close()


def test_a_usual_loop_tells_nothing_of_its_turns() -> None:
    with contextlib.closing(asyncio.new_event_loop()) as usual:
        assert turns.take_longest_seconds(usual) == 0.0


def test_a_loop_of_it_serves_many_connections() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def ask(port: int, number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"%d\n" % number)
        answer = await reader.read()
        writer.close()
        return answer

    async def main() -> list[bytes]:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await asyncio.gather(*(ask(port, number) for number in range(100)))

    with asyncio.Runner(loop_factory=turns.new_loop) as runner:
        assert runner.run(main()) == [b"%d\n" % number for number in range(100)]


async def test_through_a_turnstile_they_pass_in_order_and_one_in_a_turn() -> None:
    turnstile, passed, turn = turns.Turnstile(), [], 0

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    async def go(number: int) -> None:
        await turnstile.passed()
        passed.append((number, turn))

    loop = asyncio.get_running_loop()
    loop.call_soon(count)
    await asyncio.gather(*(go(number) for number in range(20)))
    assert [number for number, _ in passed] == list(range(20))
    assert len({at for _, at in passed}) == 20
