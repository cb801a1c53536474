"""streams.yaml made so on a real server, and changed there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from core import errors, topology
from core.bus import Bus
from core.topology import Consumer, Stream, Topology
from tests.integration.test_access import pull
from tests.nats_fixture import Nats

pytest_plugins = ["tests.nats_fixture"]

Json = dict[str, Any]


async def config_of(bus: Bus, stream: str, consumer: str = "") -> Json:
    endpoint = f"CONSUMER.INFO.{stream}.{consumer}" if consumer else f"STREAM.INFO.{stream}"
    config: Json = (await bus.api(endpoint))["config"]
    config["metadata"] = {
        key: text for key, text in config["metadata"].items() if not key.startswith("_nats.")
    }
    return config


async def names_of(bus: Bus, stream: str = "") -> set[str]:
    if stream:
        return set((await bus.api(f"CONSUMER.NAMES.{stream}"))["consumers"] or ())
    return set((await bus.api("STREAM.NAMES"))["streams"] or ())


def holds(found: Json, wanted: Json) -> bool:
    """Whether the server's view has all that was declared; it leaves out what is empty."""
    defaults = {"persist_mode": "default"}
    return {
        key: found.get(key, defaults.get(key, type(value)())) for key, value in wanted.items()
    } == wanted


# The shipped declaration


async def test_an_inspector_sees_exactly_what_streams_yaml_declares(nats: Nats) -> None:
    made = await nats.apply()
    declared = topology.load()
    assert {change.name for change in made} == {
        *declared.streams,
        *(f"{name}.{one}" for name, stream in declared.streams.items() for one in stream.consumers),
        "WORK.cpu",
    }
    for account in ("CONTROL", "FLEET"):
        streams = declared.of_account(account)
        async with nats.connect(f"inspect-{account.lower()}") as inspector:
            assert await names_of(inspector) == set(streams)
            for name, stream in streams.items():
                wanted = topology.stream_config(name, stream)
                assert holds(await config_of(inspector, name), wanted), name
                consumers = dict(stream.consumers)
                if stream.each_lane:
                    consumers["cpu"] = topology.lane_consumer(declared, "cpu")[1]
                assert await names_of(inspector, name) == set(consumers)
                for consumer, one in consumers.items():
                    found = await config_of(inspector, name, consumer)
                    assert holds(found, topology.consumer_config(consumer, one)), consumer
    assert await nats.apply() == []


async def test_what_is_declared_is_still_so_after_a_restart(nats: Nats) -> None:
    await nats.apply()
    nats.server.stop()
    nats.server.start()
    assert await nats.apply() == []


def test_every_stream_and_consumer_is_described_monitored_and_bounded() -> None:
    for stream in topology.load().streams.values():
        consumers = (*stream.consumers.values(), *filter(None, [stream.each_lane]))
        for description, metadata in (
            (stream.description, stream.metadata),
            *((one.description, one.metadata) for one in consumers),
        ):
            assert description
            assert metadata["io.nats.monitor.enabled"] == "true"
        assert stream.max_mib > 0


def test_what_must_survive_a_power_cut_is_never_written_late() -> None:
    late = {name for name, one in topology.load().streams.items() if one.persist == "async"}
    assert late == {"WORK", "HEARTBEATS", "TELEMETRY"}


# Changes


def small(**streams: Stream) -> Topology:
    account = topology.Account(description="for a test", disk_mib=100_000)
    return Topology(accounts={"FLEET": account}, streams=streams)


def truth(**changes: Any) -> Stream:
    """A stream that must lose nothing."""
    stream = Stream(
        account="FLEET",
        description="what happened",
        subjects=["a.*", "b.*"],
        max_mib=64,
        discard="new",
        deny_delete=True,
        max_messages_per_subject=5,
        consumers={"all": reader()},
    )
    return msgspec.structs.replace(stream, **changes)


def news(**changes: Any) -> Stream:
    """A stream that forgets by itself."""
    stream = Stream(
        account="FLEET",
        description="what was heard",
        subjects=["news.*"],
        max_mib=64,
        discard="old",
        persist="async",
        max_age_seconds=3_600,
    )
    return msgspec.structs.replace(stream, **changes)


def reader(**changes: Any) -> Consumer:
    consumer = Consumer(description="reads all", filter="a.*", max_waiting=100)
    return msgspec.structs.replace(consumer, **changes)


@pytest.fixture
async def fleet(shared_nats: Nats) -> AsyncIterator[Bus]:
    """FLEET without any stream."""
    async with shared_nats.connect("desk") as bus:
        for name in await names_of(bus):
            await bus.api(f"STREAM.DELETE.{name}")
        yield bus


@pytest.mark.parametrize(
    ("build", "changes", "fields"),
    [
        (truth, {"description": "شيء آخر"}, ["description"]),
        (truth, {"metadata": {"io.nats.monitor.enabled": "true"}}, ["metadata"]),
        (truth, {"subjects": ["c.*", "b.*", "a.*"]}, ["subjects"]),
        (truth, {"max_mib": 128}, ["max_bytes"]),
        (truth, {"max_messages_per_subject": -1}, ["max_msgs_per_subject"]),
        (truth, {"deny_purge": True}, ["deny_purge"]),
        (truth, {"discard_new_per_subject": True}, ["discard_new_per_subject"]),
        (truth, {"allow_atomic": True, "allow_direct": True}, ["allow_atomic", "allow_direct"]),
        (truth, {"allow_rollup": True}, ["allow_rollup_hdrs"]),
        (news, {"max_mib": 32, "max_age_seconds": 60}, ["max_bytes", "max_age"]),
        (news, {"max_messages": 1_000}, ["max_msgs"]),
        (news, {"discard": "new"}, ["discard"]),
        (news, {"deny_delete": True}, ["deny_delete"]),
    ],
)
async def test_what_loses_nothing_is_changed_in_place(
    fleet: Bus, build: Callable[..., Stream], changes: Json, fields: list[str]
) -> None:
    await topology.apply(fleet.api, "FLEET", small(S=build()))
    await fleet.request(build().subjects[0].replace("*", "x"), b"kept")
    wanted = build(**changes)
    assert await topology.apply(fleet.api, "FLEET", small(S=wanted)) == [
        topology.Change("S", fields)
    ]
    found = await fleet.api("STREAM.INFO.S")
    assert found["state"]["messages"] == 1
    assert (
        topology.stream_differences(wanted, found["config"], topology.stream_config("S", wanted))
        == []
    )
    assert await topology.apply(fleet.api, "FLEET", small(S=wanted)) == []


@pytest.mark.parametrize(
    ("build", "changes", "words"),
    [
        (truth, {"max_mib": 32}, ["max_bytes", "64 MiB", "32 MiB"]),
        (truth, {"max_messages": 1_000}, ["max_msgs", "no bound", "1000"]),
        (truth, {"max_age_seconds": 60}, ["max_age", "no bound", "60 s"]),
        (truth, {"max_messages_per_subject": 1}, ["max_msgs_per_subject", "5", "1"]),
        (truth, {"subjects": ["a.*"]}, ["subjects", "a.* b.*", "a.*"]),
        (truth, {"discard": "old"}, ["discard", "new", "old"]),
        (truth, {"deny_delete": False}, ["deny_delete", "True", "False"]),
        (truth, {"retention": "workqueue"}, ["retention", "limits", "workqueue"]),
        (truth, {"persist": "async"}, ["persist_mode", "default", "async"]),
        (news, {"persist": "default"}, ["persist_mode", "async", "default"]),
        (truth, {"consumers": {"all": reader(filter="b.*")}}, ["filter_subject", "a.*", "b.*"]),
        (truth, {"consumers": {"all": reader(max_waiting=5)}}, ["max_waiting", "100", "5"]),
    ],
)
async def test_what_could_lose_something_is_refused_and_nothing_else_is_done(
    fleet: Bus, build: Callable[..., Stream], changes: Json, words: list[str]
) -> None:
    declared = small(A=news(subjects=["other.*"]), S=build())
    await topology.apply(fleet.api, "FLEET", declared)
    before = [await config_of(fleet, name) for name in ("A", "S")]
    wanted = small(
        A=news(subjects=["other.*"], max_mib=128, description="allowed"),
        S=build(**changes),
        Z=news(subjects=["new.*"]),
    )
    with pytest.raises(errors.TopologyMismatch) as caught:
        await topology.apply(fleet.api, "FLEET", wanted)
    (row,) = [
        line.split() for line in str(caught.value).splitlines() if line.startswith(f"  {words[0]}")
    ]
    assert row == [word for part in words for word in part.split()]
    assert "`nats " in str(caught.value)
    assert [await config_of(fleet, name) for name in ("A", "S")] == before
    assert await names_of(fleet) == {"A", "S"}


async def test_all_that_is_refused_is_told_at_once(fleet: Bus) -> None:
    await topology.apply(fleet.api, "FLEET", small(S=truth(), N=news()))
    wanted = small(S=truth(max_mib=1, deny_delete=False), N=news(subjects=["other.*"]))
    with pytest.raises(errors.TopologyMismatch) as caught:
        await topology.apply(fleet.api, "FLEET", wanted)
    for word in ("stream S", "max_bytes", "deny_delete", "stream N", "subjects"):
        assert word in str(caught.value)
    assert "64 MiB" in str(caught.value)
    assert "nats stream backup S" in str(caught.value)
    assert "nats stream rm N" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"ack_wait_seconds": 60},
        {"description": "reads on"},
        {"metadata": {"a": "b"}},
        {"max_ack_pending": 500},
        {"max_deliver": 5},
    ],
)
async def test_a_consumer_is_changed_in_place_and_keeps_its_position(
    fleet: Bus, changes: Json
) -> None:
    await topology.apply(fleet.api, "FLEET", small(S=truth()))
    await fleet.request("a.x", b"1")
    assert (await pull(fleet, "$JS.API.CONSUMER.MSG.NEXT.S.all")).data == b"1"
    wanted = truth(consumers={"all": reader(**changes)})
    (change,) = await topology.apply(fleet.api, "FLEET", small(S=wanted))
    assert change.name == "S.all"
    info = await fleet.api("CONSUMER.INFO.S.all")
    assert info["delivered"]["stream_seq"] == 1
    assert await topology.apply(fleet.api, "FLEET", small(S=wanted)) == []


async def test_a_consumer_that_is_new_joins_a_stream_that_is_there(fleet: Bus) -> None:
    await topology.apply(fleet.api, "FLEET", small(S=truth()))
    wanted = truth(consumers={"all": reader(), "b": reader(filter="b.*")})
    changes = await topology.apply(fleet.api, "FLEET", small(S=wanted))
    assert [str(change) for change in changes] == ["S.b: created"]


async def test_what_somebody_added_to_a_stream_by_hand_is_refused(fleet: Bus) -> None:
    declared = small(S=truth())
    await topology.apply(fleet.api, "FLEET", declared)
    config = await config_of(fleet, "S")
    republish = {"src": "a.*", "dest": "copy.a.{{wildcard(1)}}"}
    answer = await fleet.api("STREAM.UPDATE.S", {**config, "republish": republish})
    assert "error" not in answer, answer
    with pytest.raises(errors.TopologyMismatch, match=r"republish .*nothing"):
        await topology.apply(fleet.api, "FLEET", declared)


async def test_a_stream_that_is_not_declared_is_left_alone(fleet: Bus) -> None:
    config = topology.stream_config("MINE", news(subjects=["mine.*"]))
    await fleet.api("STREAM.CREATE.MINE", config)
    await topology.apply(fleet.api, "FLEET", small(S=truth()))
    assert await names_of(fleet) == {"MINE", "S"}


async def test_what_the_server_refuses_is_told_in_its_words(fleet: Bus) -> None:
    config = topology.stream_config("MINE", news(subjects=["a.*"]))
    await fleet.api("STREAM.CREATE.MINE", config)
    with pytest.raises(errors.TopologyMismatch, match="subjects overlap"):
        await topology.apply(fleet.api, "FLEET", small(S=truth()))


async def test_a_server_that_is_not_ready_is_unavailable_and_no_mismatch() -> None:
    async def not_ready(endpoint: str, body: dict[str, object]) -> Json:
        return {"error": {"code": 503, "err_code": 10008, "description": "unavailable"}}

    with pytest.raises(errors.Unavailable, match="Try again"):
        await topology.apply(not_ready, "FLEET", small(S=truth()))


# Lanes


async def test_a_lane_is_made_once(shared_nats: Nats, fleet: Bus) -> None:
    declared = shared_nats.authority.declared
    await topology.apply(fleet.api, "FLEET", declared)
    made = await topology.ensure_lane(fleet.api, declared, "cuda-80")
    assert made == topology.Change("WORK.cuda-80", [])
    assert await topology.ensure_lane(fleet.api, declared, "cuda-80") is None
    found = await config_of(fleet, "WORK", "cuda-80")
    assert found["filter_subject"] == "work.cuda-80"
    assert "cuda-80" in found["description"]


async def test_lanes_are_limited_and_the_last_one_is_told_where_to_go(
    shared_nats: Nats, fleet: Bus
) -> None:
    declared = shared_nats.authority.declared
    await topology.apply(fleet.api, "FLEET", declared)
    lanes = [f"cpu-{number}" for number in range(topology.LANES_MAX)]
    for lane in lanes:
        await topology.ensure_lane(fleet.api, declared, lane)
    with pytest.raises(errors.QuotaExceeded, match="cpu-31"):
        await topology.ensure_lane(fleet.api, declared, "gpu")
    assert await topology.ensure_lane(fleet.api, declared, lanes[0]) is None
    assert await names_of(fleet, "WORK") == set(lanes)


@pytest.mark.parametrize("lane", ["", "a.b", "*", ">", "a b", "مسار", "x" * 33, "a\n"])
async def test_a_name_that_is_no_lane_is_invalid(shared_nats: Nats, fleet: Bus, lane: str) -> None:
    with pytest.raises(errors.Invalid, match="no lane"):
        await topology.ensure_lane(fleet.api, shared_nats.authority.declared, lane)


async def test_lanes_follow_a_change_of_their_declaration(shared_nats: Nats, fleet: Bus) -> None:
    declared = shared_nats.authority.declared
    await topology.apply(fleet.api, "FLEET", declared)
    await topology.ensure_lane(fleet.api, declared, "cpu")
    work = declared.streams["WORK"]
    assert work.each_lane is not None
    lane = msgspec.structs.replace(work.each_lane, ack_wait_seconds=77)
    work = msgspec.structs.replace(work, each_lane=lane)
    changed = msgspec.structs.replace(declared, streams={**declared.streams, "WORK": work})
    assert await topology.apply(fleet.api, "FLEET", changed) == [
        topology.Change("WORK.cpu", ["ack_wait"])
    ]


async def test_two_agents_of_one_new_lane_may_arrive_together(
    shared_nats: Nats, fleet: Bus
) -> None:
    declared = shared_nats.authority.declared
    await topology.apply(fleet.api, "FLEET", declared)
    await asyncio.gather(*(topology.ensure_lane(fleet.api, declared, "cpu") for _ in range(8)))
    assert await names_of(fleet, "WORK") == {"cpu"}


# The file


def written(tmp_path: Path, edit: Callable[[Json], object]) -> Path:
    """The shipped declaration after an edit."""
    declared = yaml.safe_load(topology.SHIPPED.read_text("utf-8"))
    edit(declared)
    path = tmp_path / "streams.yaml"
    path.write_text(yaml.safe_dump(declared), "utf-8")
    return path


def test_the_shipped_declaration_survives_rewriting(tmp_path: Path) -> None:
    assert topology.load(written(tmp_path, lambda _: None)) == topology.load()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda y: y["streams"]["EVENTS"].update(max_mb=5), "max_mb"),
        (lambda y: y["streams"]["EVENTS"].update(discard="some"), "discard"),
        (lambda y: y["streams"]["EVENTS"].pop("description"), "description"),
        (lambda y: y["streams"]["EVENTS"].update(account="TRUTH"), "TRUTH, which is no account"),
        (lambda y: y["streams"]["EVENTS"].update(max_mib=-1), "EVENTS is not bounded"),
        (lambda y: y["streams"]["EVENTS"].update(max_mib=99_999), "CONTROL has 24576 MiB"),
        (lambda y: y["accounts"]["FLEET"].pop("disk_mib"), "FLEET has None MiB"),
        (lambda y: y["streams"]["HEARTBEATS"].update(account="AGENTS"), "AGENTS has None MiB"),
        (lambda y: y["streams"]["EVENTS"].update(persist="async"), "both allow_atomic and"),
        (lambda y: y["streams"]["REFUSALS"].update(subjects=["ev.node.>"]), "EVENTS and REFUSALS"),
        (lambda y: y["streams"]["WORK"].pop("each_lane"), "each_lane, not none"),
        (
            lambda y: y["streams"]["HEARTBEATS"].update(
                each_lane=y["streams"]["WORK"]["each_lane"]
            ),
            "HEARTBEATS and WORK",
        ),
        (
            lambda y: y["streams"]["WORK"]["each_lane"].update(filter="w.{lane}"),
            "WORK holds no w.{lane}",
        ),
        (
            lambda y: y["streams"]["JUDGEMENTS"]["consumers"]["cpu"].update(filter="ev.*.*"),
            "JUDGEMENTS holds no",
        ),
        (
            lambda y: y["accounts"]["AGENTS"]["imports"]["FLEET"].append("$JS.API.>"),
            "AGENTS imports .*JS.API.>, which FLEET does not export",
        ),
        (
            lambda y: y["accounts"]["AGENTS"]["imports"].update(CORE=["x"]),
            "which CORE does not export",
        ),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_by_its_fault(
    tmp_path: Path, edit: Callable[[Json], object], words: str
) -> None:
    with pytest.raises(errors.TopologyMismatch, match=words):
        topology.load(written(tmp_path, edit))


@pytest.mark.parametrize("content", [b"", b"[]", b"streams: [", b"\xff", b"\x00"])
def test_a_file_that_declares_nothing_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "streams.yaml"
    path.write_bytes(content)
    with pytest.raises(errors.TopologyMismatch, match=r"streams\.yaml"):
        topology.load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.TopologyMismatch, match=r"none\.yaml"):
        topology.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("wide", "narrow", "covered", "overlapping"),
    [
        ("a.b", "a.b", True, True),
        ("a.*", "a.b", True, True),
        ("a.b", "a.*", False, True),
        ("a.>", "a.b.c", True, True),
        ("a.>", "a", False, False),
        ("a.*", "a.>", False, True),
        ("a.>", "a.*.c", True, True),
        ("*.b", "a.*", False, True),
        ("a.b", "a.c", False, False),
        ("a.*", "a.b.c", False, False),
        (">", "a", True, True),
    ],
)
def test_patterns_cover_and_overlap_as_subjects_of_nats_do(
    wide: str, narrow: str, covered: bool, overlapping: bool
) -> None:
    assert topology.covers(wide, narrow) is covered
    assert topology.overlap(wide, narrow) is topology.overlap(narrow, wide) is overlapping
