"""Events as they are written down, for ever: golden bytes of every type, and what is no event."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from core import events
from core.log import Record

GOLDEN = Path(__file__).parents[1] / "golden" / "events.v1.jsonl"
LINES = GOLDEN.read_bytes().splitlines()


def subject(raw: bytes) -> str:
    read = events.decode(1, "", raw)
    assert isinstance(read, events.Undecodable)
    name, data = json.loads(raw)["type"], json.dumps(json.loads(raw)["data"]).encode()
    return events.subject_of(events._decode_data[name](data))


def envelope(**changes: object) -> bytes:
    """A sound TaskRetried, changed."""
    sound: dict[str, object] = {
        "type": "TaskRetried",
        "v": 1,
        "id": "i",
        "at": "2026-01-01T00:00:00Z",
        "by": "b",
        "cause": "c",
        "corr": "r",
        "data": {"task_id": "t"},
    }
    return json.dumps({**sound, **changes}, separators=(",", ":")).encode()


def test_every_event_is_of_exactly_one_group() -> None:
    groups = (events.OfTree, events.OfTasks, events.OfWorkers, events.OfRounds, events.OfLog)
    assert [cls for group in groups for cls in get_args(group)] == list(events.TYPES.values())


def test_a_sound_envelope_is_read() -> None:
    assert isinstance(events.decode(1, "ev.task.t", envelope()), events.Event)


def test_every_version_of_every_type_has_its_golden_bytes_and_a_way_up() -> None:
    current = {name: events.VERSIONS.get(name, 1) for name in events.TYPES}
    older = {(name, v) for name, newest in current.items() for v in range(1, newest)}
    golden = {(json.loads(raw)["type"], json.loads(raw)["v"]) for raw in LINES}
    assert golden == set(current.items()) | older
    assert set(events.UPCASTERS) == older


@pytest.mark.parametrize("raw", LINES, ids=lambda raw: json.loads(raw)["type"])
def test_golden_bytes_are_read_for_ever_and_written_alike(raw: bytes) -> None:
    read = events.decode(7, subject(raw), raw)
    assert isinstance(read, events.Event)
    assert read.seq == 7
    if json.loads(raw)["v"] == events.VERSIONS.get(json.loads(raw)["type"], 1):
        assert events.encode(read) == raw
    assert events.reread(read.data).data == read.data


def test_a_block_is_read_as_its_records_are_one_by_one() -> None:
    records = [Record(seq, subject(raw), raw) for seq, raw in enumerate(LINES, 1)]
    facts = events.read_facts(records)
    singly = [events.decode(*record) for record in records]
    assert facts == [(one.seq, one.at, one.data) for one in singly if isinstance(one, events.Event)]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b"{" * 5_000,
        envelope(type="NoSuchEvent"),
        envelope(v=9),
        envelope(v=0),
        envelope(at="yesterday"),
        envelope(at="9999-12-31T23:59:59-12:00"),
        envelope(at="0001-01-01T00:00:00+12:00"),
        envelope(data={"task_id": 7}),
    ],
)
def test_what_cannot_be_read_is_said_and_never_raised(raw: bytes) -> None:
    assert isinstance(events.decode(3, "ev.task.t", raw), events.Undecodable)
    whole = LINES[0]
    records = [Record(2, subject(whole), whole), Record(3, "ev.task.t", raw)]
    assert events.read_facts(records) is None


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> None:
    """ClaimExpired as if it had been changed twice: first `reason` was `why`, then `last_seen` came
    in seconds."""

    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "reason": data.pop("why")}

    def in_microseconds(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "last_seen": data["last_seen"] * 1_000_000}

    prefix, field, _ = events._LAYOUT[events.ClaimExpired]
    monkeypatch.setitem(events._LAYOUT, events.ClaimExpired, (prefix, field, 3))
    monkeypatch.setitem(events.VERSIONS, "ClaimExpired", 3)
    monkeypatch.setitem(events.UPCASTERS, ("ClaimExpired", 1), renamed)
    monkeypatch.setitem(events.UPCASTERS, ("ClaimExpired", 2), in_microseconds)


def expired(version: int, **data: object) -> bytes:
    claim = {"task_id": "t", "attempt": 1, "claim_id": "c"}
    return envelope(type="ClaimExpired", v=version, data={**claim, **data})


@pytest.mark.usefixtures("third")
def test_an_older_version_is_lifted_step_by_step_to_what_is_folded_today() -> None:
    versions = (
        expired(1, why="silence", last_seen=5),
        expired(2, reason="silence", last_seen=5),
        expired(3, reason="silence", last_seen=5_000_000),
    )
    read = [events.decode(1, "ev.task.t", raw) for raw in versions]
    today = events.ClaimExpired(
        task_id="t", attempt=1, claim_id="c", reason="silence", last_seen=5_000_000
    )
    assert [one.data for one in read if isinstance(one, events.Event)] == [today] * 3
    assert json.loads(events.encode(events.Event(1, 1, "i", "b", "c", "r", today)))["v"] == 3
    singly = [Record(1, "ev.task.t", raw) for raw in versions[:2]]
    assert [events.read_facts([one]) for one in singly] == [None, None]


@pytest.mark.usefixtures("third")
@pytest.mark.parametrize("raw", [expired(1, reason="silence"), expired(2), expired(4)])
def test_an_older_version_that_cannot_be_lifted_is_said_and_never_raised(raw: bytes) -> None:
    assert isinstance(events.decode(3, "ev.task.t", raw), events.Undecodable)


def test_an_event_on_another_subject_is_no_event_of_it() -> None:
    raw = LINES[0]
    read = events.decode(1, "ev.task.other", raw)
    assert isinstance(read, events.Undecodable)
    assert "does not belong" in read.reason
    assert events.read_facts([Record(1, "ev.task.other", raw)]) is None


@pytest.mark.parametrize("identity", ["عامل", "a.b", "*", ">", "", "x-abc", "y" * 65])
def test_a_strange_id_is_a_hashed_token_and_read_back(identity: str) -> None:
    data = events.WorkerCameOnline(worker_id=identity)
    raw = events.encode(events.Event(1, 5, "i", "b", "c", "r", data))
    where = events.subject_of(data)
    assert where.startswith("ev.worker.x-")
    assert events.read_facts([Record(1, where, raw)]) == [(1, 5, data)]
    assert events.read_facts([Record(1, f"ev.worker.{identity}", raw)]) is None


def test_two_broken_records_never_make_a_sound_one_together() -> None:
    raw = LINES[0]
    half = len(raw) // 2
    assert events.read_facts([Record(1, "ev.x", raw[:half]), Record(2, "ev.x", raw[half:])]) is None


def test_times_keep_every_microsecond() -> None:
    data = events.TaskRetried(task_id="t")
    for at in (0, 1, 1_790_000_000_123_457, 4_102_444_799_999_999):
        raw = events.encode(events.Event(1, at, "i", "b", "c", "r", data))
        assert events.read_facts([Record(1, "ev.task.t", raw)]) == [(1, at, data)]
        read = events.decode(1, "ev.task.t", raw)
        assert isinstance(read, events.Event)
        assert read.at == at
