"""What each account's exports and imports let its users reach, and what they do not."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from core import errors
from core.accounts import Authority, Credentials
from core.bus import Bus, Incoming
from tests.nats_fixture import SECONDS_MAX, Nats

pytest_plugins = ["tests.nats_fixture"]

PULL_WORK = "$JS.API.CONSUMER.MSG.NEXT.WORK.cpu"
PULL_JUDGEMENTS = "$JS.API.CONSUMER.MSG.NEXT.JUDGEMENTS.cpu"
DENIED_SECONDS = 0.2
"""How long a question waits whose answer must not come; it is denied before."""

Stored = dict[str, dict[str, int]]

# Where an attacker would like to see bytes of its own, or an answer, delivered.
VICTIMS = [
    "hb.victim",
    "work.cpu",
    "chunk.victim.x",
    "telemetry.victim.t",
    "fleet.victim.release",
    "ev.task.t1",
    "refused.task.t1",
    "judge.cpu",
    "cmd.judge",
    "$JS.API.STREAM.DELETE.WORK",
    "$JS.API.STREAM.PURGE.HEARTBEATS",
]


async def pull(bus: Bus, endpoint: str, *, wait: bool = True) -> Incoming:
    """The message that one pull brings; without `wait` what there is at once, or a status."""
    came: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()

    async def take(message: Incoming) -> None:
        if not came.done():
            came.set_result(message)

    inbox = f"{bus.inbox_prefix}.pull"
    subscription = await bus.subscribe(inbox, take)
    asked = b'{"batch":1,"expires":%d}' % (SECONDS_MAX * 1e9) if wait else b'{"no_wait":true}'
    await bus.publish(endpoint, asked, reply=inbox)
    async with asyncio.timeout(SECONDS_MAX):
        message = await came
    await subscription.unsubscribe()
    return message


async def ignore(message: Incoming) -> None:
    """Have the server know that somebody waits."""


class Site(NamedTuple):
    """All streams, the control process in both accounts, and what the desk heard."""

    nats: Nats
    control: Bus
    desk: Bus
    heard: list[str]

    async def stored(self) -> Stored:
        """How many messages each stream holds of each subject."""
        counts: Stored = {}
        for bus in (self.control, self.desk):
            for stream in (await bus.api("STREAM.NAMES"))["streams"]:
                info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
                counts[stream] = info["state"].get("subjects") or {}
        return counts


@pytest.fixture
async def site(shared_nats: Nats) -> AsyncIterator[Site]:
    heard: list[str] = []

    async def answer(message: Incoming) -> None:
        heard.append(message.subject)
        await message.respond(b"evil")

    async with shared_nats.connect("control") as control, shared_nats.connect("desk") as desk:
        for bus in (control, desk):
            for stream in (await bus.api("STREAM.NAMES"))["streams"] or ():
                await bus.api(f"STREAM.DELETE.{stream}")
        await shared_nats.apply()
        await desk.subscribe("fleet.*.*", answer)
        await control.subscribe("cmd.*", answer)
        await desk.flush()
        await control.flush()
        yield Site(shared_nats, control, desk, heard)


async def attack(bus: Bus, own: list[str]) -> None:
    """Have answers to the own subjects delivered to others', and write there oneself."""
    for victim in VICTIMS:
        for number, subject in enumerate(own):
            await bus.publish(subject.replace("*", f"x{len(victim)}{number}"), b"evil", victim)
        await bus.publish(victim, b"evil")
    await bus.flush()


async def denied(bus: Bus, subjects: list[str]) -> None:
    """Assert that nothing answers there."""
    answers = await asyncio.gather(
        *(bus.ask(subject, b"{}", DENIED_SECONDS) for subject in subjects), return_exceptions=True
    )
    answered = [
        subject
        for subject, answer in zip(subjects, answers, strict=True)
        if not isinstance(answer, errors.Unavailable)
    ]
    assert answered == []


async def deaf(bus: Bus, subjects: list[str]) -> None:
    """Assert that the server lets nobody listen there."""

    async def overhear(message: Incoming) -> None:
        raise AssertionError(message.subject)

    for subject in subjects:
        bus.last_error = ""
        await bus.subscribe(subject, overhear)
        await bus.flush()
        assert "permissions violation for subscription" in bus.last_error, subject


# Agents


async def test_an_agent_asks_beats_stores_pulls_and_acknowledges(site: Site) -> None:
    await site.desk.request("work.cpu", b"offer")
    async with site.nats.agent("a1") as agent:
        assert await agent.request("fleet.a1.claim", b"{}") == b"evil"
        assert b'"stream":"HEARTBEATS"' in await agent.request("hb.a1", b"{}")
        assert b'"stream":"CHUNKS"' in await agent.request("chunk.a1.x", b"data")
        assert b'"stream":"TELEMETRY"' in await agent.request("telemetry.a1.t", b"{}")
        offer = await pull(agent, PULL_WORK)
        assert offer.data == b"offer"
        await agent.request(offer.reply, b"+ACK")
    assert (await site.stored())["WORK"] == {}


async def test_an_agent_cannot_send_answers_to_its_questions_elsewhere(site: Site) -> None:
    async with site.nats.agent("a1") as agent:
        own = ["fleet.a1.claim", "hb.a1", "telemetry.a1.t", "chunk.a1.*", PULL_WORK]
        await attack(agent, own)
        # Served in order: when these are answered, so are those before.
        await agent.request("fleet.a1.claim", b"{}")
        await agent.request("chunk.a1.last", b"data")
        await pull(agent, PULL_WORK, wait=False)
    stored = await site.stored()
    assert set(stored.pop("HEARTBEATS")) == {"hb.a1"}
    assert set(stored.pop("TELEMETRY")) == {"telemetry.a1.t"}
    assert {subject.split(".")[1] for subject in stored.pop("CHUNKS")} == {"a1"}
    assert set(stored) == {"EVENTS", "REFUSALS", "OBJ_SNAPSHOTS", "JUDGEMENTS", "WORK"}
    assert all(subjects == {} for subjects in stored.values())
    assert set(site.heard) == {"fleet.a1.claim"}


async def test_inside_the_account_of_the_streams_the_same_would_reach_others(site: Site) -> None:
    """Why agents have an account of their own; and that these tests would see it."""
    permitted = ["hb.a1", "chunk.a1.*"]
    minted = site.nats.authority.mint("FLEET", "a1", publish=permitted, subscribe=["_INBOX_a1.>"])
    agent = await site.nats.connect_as("a1", minted)
    await attack(agent, permitted)
    await agent.request("chunk.a1.last", b"data")
    await agent.close()
    assert set((await site.stored())["HEARTBEATS"]) == {"hb.a1", "hb.victim"}


async def test_an_agent_gets_no_answer_from_what_is_not_its_own(site: Site) -> None:
    async with site.nats.agent("a1") as agent:
        await denied(
            agent,
            [
                "fleet.a2.claim",
                "fleet.a1",
                "fleet.a1.claim.more",
                "fleet.a1.hello.gpu",
                "fleet.a2.hello.cpu",
                "hb.a2",
                "chunk.a2.x",
                "cmd.judge",
                "ev.task.t1",
                "work.cpu",
                "$JS.API.INFO",
                "$JS.API.STREAM.NAMES",
                "$JS.API.STREAM.INFO.WORK",
                "$JS.API.STREAM.PURGE.WORK",
                "$JS.API.STREAM.MSG.GET.CHUNKS",
                "$JS.API.DIRECT.GET.CHUNKS.chunk.a1.x",
                "$JS.API.CONSUMER.INFO.WORK.cpu",
                "$JS.API.CONSUMER.MSG.NEXT.WORK.gpu",
                "$JS.API.CONSUMER.CREATE.WORK.mine",
                PULL_JUDGEMENTS,
                "$SYS.REQ.SERVER.PING",
                "$SYS.REQ.USER.INFO",
            ],
        )
        await deaf(agent, [">", "_INBOX_a2.>", "_INBOX.>", "fleet.>", "hb.>", "$JS.>", "$SYS.>"])
    assert site.heard == []


async def test_an_agent_cannot_acknowledge_for_another_lane(site: Site) -> None:
    await site.desk.request("work.cpu", b"offer")
    held = await pull(site.desk, PULL_WORK)
    async with site.nats.agent("a1", lane="gpu") as agent:
        await agent.publish(held.reply, b"+ACK")
        await agent.flush()
    assert (await site.stored())["WORK"] == {"work.cpu": 1}


async def test_every_message_of_an_agent_arrives_once(site: Site) -> None:
    async with site.nats.agent("a1") as agent:
        await agent.request("fleet.a1.claim", b"{}")
        await agent.request("hb.a1", b"{}")
        await agent.request("telemetry.a1.t", b"{}")
        await agent.subscribe("_INBOX_a1.pull", ignore)
        await agent.publish(PULL_WORK, b'{"batch":1,"expires":60000000000}', "_INBOX_a1.pull")
        await agent.flush()
        info = await site.desk.api("CONSUMER.INFO.WORK.cpu")
    assert info["num_waiting"] == 1
    assert site.heard == ["fleet.a1.claim"]
    stored = await site.stored()
    assert (stored["HEARTBEATS"], stored["TELEMETRY"]) == ({"hb.a1": 1}, {"telemetry.a1.t": 1})


# Judges


async def test_a_judge_reads_pulls_acknowledges_and_sends_commands(site: Site) -> None:
    await site.control.request("ev.round.r", b"closed")
    await site.control.request("judge.cpu", b"round")
    async with site.nats.connect("judge") as judge:
        assert (await judge.api("STREAM.INFO.EVENTS"))["state"]["last_seq"] == 1
        assert (await judge.api("INFO"))["streams"] == 4
        assert (await judge.ask("$JS.API.DIRECT.GET.EVENTS", b'{"seq":1}')).data == b"closed"
        assert (await judge.ask("$JS.API.DIRECT.GET.EVENTS.ev.round.r")).data == b"closed"
        offer = await pull(judge, PULL_JUDGEMENTS)
        assert offer.data == b"round"
        await judge.request(offer.reply, b"+ACK")
        assert await judge.request("cmd.judge", b"{}") == b"evil"
    assert site.heard == ["cmd.judge"]
    assert (await site.stored())["JUDGEMENTS"] == {}


async def test_a_judge_cannot_append(site: Site) -> None:
    await site.control.request("ev.round.r", b"closed")
    before = await site.stored()
    async with site.nats.connect("judge") as judge:
        await attack(
            judge,
            ["cmd.judge", PULL_JUDGEMENTS, "$JS.API.DIRECT.GET.EVENTS.ev.round.r"],
        )
        await judge.request("cmd.judge", b"{}")
        await pull(judge, PULL_JUDGEMENTS, wait=False)
        await denied(
            judge,
            [
                "ev.round.r",
                "cmd.task",
                "judge.cpu",
                "fleet.a1.claim",
                "chunk.a1.x",
                "work.cpu",
                "$JS.API.STREAM.PURGE.EVENTS",
                "$JS.API.STREAM.MSG.GET.EVENTS",
                PULL_WORK,
            ],
        )
        await deaf(judge, [">", "cmd.>", "ev.>", "_INBOX.>"])
    assert await site.stored() == before
    assert set(site.heard) == {"cmd.judge"}


async def test_a_judge_in_fleet_only_gets_chunks(site: Site) -> None:
    await site.desk.request("chunk.a1.x", b"data")
    before = await site.stored()
    async with site.nats.connect("judge-fleet") as judge:
        await attack(judge, ["$JS.API.DIRECT.GET.CHUNKS.chunk.a1.x"])
        assert (await judge.ask("$JS.API.DIRECT.GET.CHUNKS.chunk.a1.x")).data == b"data"
        await denied(judge, ["cmd.judge", "$JS.API.DIRECT.GET.HEARTBEATS.hb.a1", "chunk.a1.y"])
    assert await site.stored() == before


# Inspectors


async def test_an_inspector_reads_everything_and_changes_nothing(site: Site) -> None:
    await site.control.request("ev.task.t1", b"claimed")
    await site.desk.request("hb.a1", b"beat")
    await site.desk.request("work.cpu", b"offer")
    before = await site.stored()
    for account, stream, subject, data in (
        ("control", "EVENTS", "ev.task.t1", b"claimed"),
        ("fleet", "HEARTBEATS", "hb.a1", b"beat"),
    ):
        async with site.nats.connect(f"inspect-{account}") as inspector:
            assert stream in (await inspector.api("STREAM.NAMES"))["streams"]
            assert (await inspector.api("STREAM.LIST"))["total"] == 4
            assert (await inspector.api("INFO"))["streams"] == 4
            got = await inspector.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
            assert got["message"]["subject"] == subject
            direct = await inspector.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}")
            assert direct.data == data
            consumers = ("JUDGEMENTS", "WORK")[account == "fleet"]
            assert (await inspector.api(f"CONSUMER.LIST.{consumers}"))["total"] == 1
            assert (await inspector.api(f"CONSUMER.INFO.{consumers}.cpu"))["num_waiting"] == 0
            await attack(
                inspector, [f"$JS.API.DIRECT.GET.{stream}.{subject}", "$JS.API.STREAM.LIST"]
            )
            await denied(
                inspector,
                [
                    subject,
                    f"$JS.API.STREAM.PURGE.{stream}",
                    f"$JS.API.STREAM.DELETE.{stream}",
                    f"$JS.API.STREAM.UPDATE.{stream}",
                    f"$JS.API.STREAM.MSG.DELETE.{stream}",
                    "$JS.API.STREAM.CREATE.MINE",
                    f"$JS.API.CONSUMER.CREATE.{stream}.mine",
                    f"$JS.API.CONSUMER.DELETE.{consumers}.cpu",
                    f"$JS.API.CONSUMER.MSG.NEXT.{consumers}.cpu",
                    "fleet.a1.claim",
                    "cmd.judge",
                ],
            )
            await deaf(inspector, [">", "ev.>", "hb.>", "$JS.>"])
    assert await site.stored() == before
    assert site.heard == []


# Strangers


async def test_nobody_is_let_in_without_credentials_of_this_authority(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(errors.Unavailable, match="Authorization"):
        await Bus.connect(
            site.nats.url,
            name="nobody",
            inbox_prefix="_INBOX",
        )
    stranger = Authority.load_or_create(tmp_path_factory.mktemp("other"))
    for credentials in (
        stranger.control(),
        forged(site.nats.authority.control(), stranger.control()),
        site.nats.authority.mint("CONTROL", "late", expires_seconds=-5),
    ):
        with pytest.raises(errors.Unavailable, match="refuses the credentials"):
            await site.nats.connect_as("nobody", credentials)


def forged(seen: Credentials, own: Credentials) -> Credentials:
    """A JWT that somebody read elsewhere, with a key that it was not given to."""
    return Credentials(jwt=seen.jwt, public_key=seen.public_key, seed=own.seed)


async def test_the_notifier_reaches_agents_and_agents_do_not_reach_it(site: Site) -> None:
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(message: Incoming) -> None:
        came.set_result(message.data)

    async with site.nats.connect("notifier") as notifier, site.nats.agent("a1") as agent:
        await agent.subscribe("_INBOX_a1.notice", take)
        await agent.flush()
        await notifier.publish("_INBOX_a1.notice", json.dumps({"kind": "stop"}).encode())
        async with asyncio.timeout(SECONDS_MAX):
            assert json.loads(await came) == {"kind": "stop"}
        await denied(agent, ["_INBOX_notifier.x", "_INBOX_a2.notice", "_INBOX_a1.notice"])
        await denied(notifier, ["hb.a1", "fleet.a1.claim", "$JS.API.INFO"])
