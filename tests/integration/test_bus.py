"""The door to NATS, on a real server: answers, losses, bounds."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator

import psutil
import pytest

from core import bus, errors, nats_wire, topology
from core.bus import Bus, Incoming
from faults import harness
from tests.nats_fixture import SECONDS_MAX, Nats

pytest_plugins = ["tests.nats_fixture"]


NONSENSE = [
    (b"told", b"NATS/1.0"),
    (b"told", b"NATS/1.0 \xff\xff\xff x\r\n\r\n"),
    (b"told", b"NATS/1.0 50\xff \xff\r\n\r\n"),
    (b"told", b"NATS/1.0\r\n\xff: \xfe\r\n\r\n"),
    (b"told", b"NATS/1.0 404\r\n: \r\n\r\n"),
    (b"told", b"no header"),
    (b"\xff\xfe", b"NATS/1.0\r\n\r\n"),
]


class Notices:
    """What a connection told of itself, to be awaited."""

    def __init__(self) -> None:
        self.reconnected = asyncio.Event()
        self.closed = asyncio.Event()


async def connect(nats: Nats, notices: Notices) -> Bus:
    return await Bus.connect(
        nats.url,
        credentials=nats.creds("desk"),
        name="desk",
        inbox_prefix="_INBOX_desk",
        on_reconnect=notices.reconnected.set,
        on_closed=notices.closed.set,
    )


@pytest.fixture
async def desk(shared_nats: Nats) -> AsyncIterator[Bus]:
    async with shared_nats.connect("desk") as one:
        yield one


def kill(nats: Nats) -> None:
    os.kill(nats.server.pid, signal.SIGKILL)
    nats.server.stop()


async def echo(message: Incoming) -> None:
    await message.respond(message.data)


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        await event.wait()


async def test_a_question_gets_its_own_answer_among_many(desk: Bus) -> None:
    await desk.subscribe("echo", echo, concurrency=8)
    asked = [f"سؤال {number}".encode() for number in range(200)]
    assert await asyncio.gather(*(desk.request("echo", data) for data in asked)) == asked


async def test_headers_and_their_values_travel(desk: Bus) -> None:
    came: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()

    async def take(message: Incoming) -> None:
        came.set_result(message)

    await desk.subscribe("told", take)
    await desk.publish("told", b"x", headers={"Trace": "t1"})
    async with asyncio.timeout(SECONDS_MAX):
        assert (await came).headers["Trace"] == "t1"


async def test_where_nobody_listens_a_question_fails_at_once(desk: Bus) -> None:
    with pytest.raises(errors.Unavailable, match="Nobody listens on nowhere"):
        await desk.request("nowhere", timeout_seconds=SECONDS_MAX)


async def test_a_listener_that_says_nothing_is_given_up(desk: Bus) -> None:
    async def ignore(message: Incoming) -> None:
        pass

    await desk.subscribe("silent", ignore)
    with pytest.raises(errors.Unavailable, match="not known"):
        await desk.request("silent", timeout_seconds=0.05)


async def test_a_second_answer_to_a_question_is_passed_over(desk: Bus) -> None:
    async def answer_twice(message: Incoming) -> None:
        await message.respond(b"first")
        await message.respond(b"second")

    await desk.subscribe("twice", answer_twice)
    assert await asyncio.gather(*(desk.request("twice") for _ in range(20))) == [b"first"] * 20


async def test_messages_are_handled_in_order_and_a_fault_of_one_ends_nothing(desk: Bus) -> None:
    handled: list[bytes] = []

    async def handle(message: Incoming) -> None:
        if message.data == b"bad":
            raise KeyError("a defect of a handler")
        await asyncio.sleep(0)
        handled.append(message.data)
        await message.respond(b"")

    await desk.subscribe("work", handle)
    for data in (b"1", b"bad", b"2", b"3"):
        await desk.publish("work", data)
    await desk.request("work", b"4")
    assert handled == [b"1", b"2", b"3", b"4"]


async def test_no_more_handlers_work_at_once_than_were_asked_for(desk: Bus) -> None:
    working, go_on = 0, asyncio.Event()

    async def handle(message: Incoming) -> None:
        nonlocal working
        working += 1
        await go_on.wait()
        await message.respond(b"")

    await desk.subscribe("some", handle, concurrency=3)
    await desk.subscribe("echo", echo)
    asked = [asyncio.create_task(desk.request("some")) for _ in range(12)]
    for _ in range(3):  # what came before an answer was handed out before it
        await desk.request("echo")
    assert working == 3
    go_on.set()
    await asyncio.gather(*asked)
    assert working == 12


async def test_what_was_sent_before_a_flush_is_dealt_with_after_it(shared_nats: Nats) -> None:
    async with shared_nats.agent("a1") as agent:
        for number in range(100):
            await agent.subscribe(f"forbidden.{number}", echo)
            await agent.flush()
            assert f"forbidden.{number}" in agent.last_error


async def test_a_flush_that_was_given_up_deafens_nobody(shared_nats: Nats, desk: Bus) -> None:
    await desk.subscribe("echo", echo)
    server = psutil.Process(shared_nats.server.pid)
    server.suspend()
    try:
        while server.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)  # noqa: ASYNC251  nothing else is to happen meanwhile
        with pytest.raises(errors.Unavailable, match="did not answer"):
            await desk.flush(0.05)
    finally:
        server.resume()
    await desk.flush()
    assert await desk.request("echo", b"heard") == b"heard"


async def test_a_connection_that_is_left_is_followed_by_one_that_works(
    shared_nats: Nats,
) -> None:
    notices = Notices()
    desk = await connect(shared_nats, notices)
    await desk.subscribe("echo", echo)
    await desk.reconnect()
    await within(notices.reconnected)
    assert await desk.request("echo", b"again") == b"again"
    await desk.close()


async def test_open_questions_are_bounded(desk: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "QUESTIONS_MAX", 3)
    asked = asyncio.Semaphore(0)

    async def hold(message: Incoming) -> None:
        asked.release()

    await desk.subscribe("held", hold)
    waiting = [asyncio.create_task(desk.request("held")) for _ in range(3)]
    for _ in waiting:
        await asked.acquire()
    with pytest.raises(errors.Overloaded, match="3 requests"):
        await desk.request("held")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await desk.subscribe("echo", echo)
    assert await desk.request("echo", b"room again") == b"room again"


@pytest.mark.parametrize(
    "header",
    [b"NATS/1.0\r\nStatus: 204\r\n\r\n", b"NATS/1.0 404 x\r\n\r\n", *(one for _, one in NONSENSE)],
)
async def test_no_header_of_a_stored_message_ends_an_answer_of_many(
    shared_nats: Nats, desk: Bus, header: bytes
) -> None:
    await desk.api("STREAM.DELETE.HEARTBEATS")
    await topology.apply(desk.api, "FLEET", shared_nats.authority.declared)
    for worker in ("a1", "a2", "a3"):
        head = header if worker == "a1" else b"NATS/1.0\r\n\r\n"
        await write_raw(shared_nats, worker, b"hb." + worker.encode(), head, worker.encode())
    question = json.dumps({"multi_last": ["hb.a1", "hb.a2", "hb.a3"]}).encode()

    async def all_are_told() -> bool:
        *found, end = await desk.ask_many("$JS.API.DIRECT.GET.HEARTBEATS", question)
        assert bus.SEQUENCE not in end.headers
        assert all(one.headers["Nats-Subject"] == f"hb.{one.data.decode()}" for one in found)
        return len(found) == 3

    await harness.until(all_are_told, "told", SECONDS_MAX)


async def write_raw(nats: Nats, worker: str, subject: bytes, header: bytes, data: bytes) -> None:
    """Publish as an agent, with a header of any bytes; once it returns the server had it."""
    minted = nats.authority.agent(worker, ["cpu"], None)
    assert minted.seed is not None
    credentials = bus.Credentials(minted.jwt, minted.seed)
    wire = await nats_wire.Wire.connect(nats.url, credentials, "raw", SECONDS_MAX)
    sizes = b"%d %d" % (len(header), len(header) + len(data))
    wire.write(b"HPUB %s %s\r\n%s%s\r\nPING\r\n" % (subject, sizes, header, data))
    while b"PONG" not in (await wire.receive()).controls:
        pass
    wire.close()


async def test_what_cannot_be_sent_is_invalid(desk: Bus) -> None:
    with pytest.raises(errors.Invalid, match="9000000 bytes"):
        await desk.publish("big", bytes(9_000_000))
    for subject in ("", "a b", "a..b"):
        with pytest.raises(errors.Invalid):
            await desk.subscribe(subject, echo)
    await desk.flush()


async def test_questions_in_flight_fail_as_soon_as_the_server_is_gone(shared_nats: Nats) -> None:
    notices, asked = Notices(), asyncio.Event()

    async def hold(message: Incoming) -> None:
        asked.set()

    desk = await connect(shared_nats, notices)
    await desk.subscribe("held", hold)
    question = asyncio.create_task(desk.request("held", timeout_seconds=600))
    await within(asked)
    kill(shared_nats)
    async with asyncio.timeout(SECONDS_MAX):
        with pytest.raises(errors.Unavailable, match="was lost"):
            await question
    assert not desk.is_connected
    for attempt in (desk.request("held"), desk.publish("held", b""), desk.flush()):
        with pytest.raises(errors.Unavailable, match="Not connected"):
            await attempt
    shared_nats.server.start()
    await desk.close()


async def test_after_a_restart_the_connection_and_its_subscriptions_are_back(
    shared_nats: Nats,
) -> None:
    notices = Notices()
    desk = await connect(shared_nats, notices)
    await desk.subscribe("echo", echo)
    for _ in range(2):
        notices.reconnected.clear()
        kill(shared_nats)
        shared_nats.server.start()
        await within(notices.reconnected)
        assert await desk.request("echo", b"again") == b"again"
    assert not notices.closed.is_set()
    await desk.close()


async def test_nothing_said_while_the_server_was_away_is_said_later(shared_nats: Nats) -> None:
    notices = Notices()
    desk = await connect(shared_nats, notices)
    heard: list[bytes] = []

    async def hear(message: Incoming) -> None:
        heard.append(message.data)
        await message.respond(b"")

    async def say_nothing(message: Incoming) -> None: ...

    await desk.subscribe("said", hear)
    await desk.subscribe("silence", say_nothing)
    question = asyncio.create_task(desk.request("silence", timeout_seconds=600))
    await desk.flush()
    kill(shared_nats)
    with pytest.raises(errors.Unavailable, match="was lost"):
        await question
    with pytest.raises(errors.Unavailable, match="Not connected"):
        await desk.publish("said", b"late")
    shared_nats.server.start()
    await within(notices.reconnected)
    await desk.request("said", b"now")
    assert heard == [b"now"]
    await desk.close()


async def test_a_connection_whose_credentials_end_is_closed_for_good(shared_nats: Nats) -> None:
    closed = asyncio.Event()
    minted = shared_nats.authority.mint("FLEET", "brief", expires_seconds=1.5)
    assert minted.seed is not None
    brief = await Bus.connect(
        shared_nats.url,
        credentials=(minted.jwt, minted.seed),
        name="brief",
        on_closed=closed.set,
    )
    await within(closed)
    assert "expired" in brief.last_error.lower()
    with pytest.raises(errors.Unavailable, match="expired"):
        await brief.request("echo")


async def test_closing_may_be_repeated_and_ends_handlers_at_work(shared_nats: Nats) -> None:
    notices, begun = Notices(), asyncio.Event()
    ended = asyncio.Event()

    async def work_long(message: Incoming) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    desk = await connect(shared_nats, notices)
    await desk.subscribe("long", work_long)
    await desk.publish("long", b"")
    await within(begun)
    await desk.close()
    await desk.close()
    assert ended.is_set()
    assert notices.closed.is_set()


async def test_where_no_server_is_connecting_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.raises(errors.Unavailable, match="Is it running"):
        await Bus.connect("nats://127.0.0.1:9", name="x", connect_timeout_seconds=0.3)
    nowhere = tmp_path_factory.mktemp("none") / "x.creds"
    with pytest.raises(errors.Invalid, match="cannot be read"):
        await Bus.connect("nats://127.0.0.1:9", name="x", credentials=nowhere)
    nowhere.write_text("nothing")
    with pytest.raises(errors.Invalid, match="no credentials file"):
        await Bus.connect("nats://127.0.0.1:9", name="x", credentials=nowhere)


@pytest.mark.parametrize(("name", "header"), NONSENSE)
async def test_bytes_of_an_agent_that_are_no_text_make_nobody_deaf(
    shared_nats: Nats, desk: Bus, name: bytes, header: bytes
) -> None:
    heard: list[bytes] = []

    async def hear(message: Incoming) -> None:
        heard.append(message.data)
        await message.respond(b"")

    await desk.subscribe("fleet.*.*", hear)
    await desk.flush()
    await write_raw(shared_nats, "a1", b"fleet.a1." + name, header, b"\xff")
    async with shared_nats.agent("a1") as agent:
        await agent.request("fleet.a1.told", b"sane", SECONDS_MAX)
    assert heard == ([b"\xff", b"sane"] if name == b"told" else [b"sane"])
