"""Events as they are written down, for ever: golden bytes of every type, and what is no event."""

import json
from pathlib import Path
from typing import get_args

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


def test_every_type_of_event_has_its_golden_bytes() -> None:
    assert {json.loads(raw)["type"] for raw in LINES} == set(events.TYPES)


@pytest.mark.parametrize("raw", LINES, ids=lambda raw: json.loads(raw)["type"])
def test_golden_bytes_are_read_for_ever_and_written_alike(raw: bytes) -> None:
    read = events.decode(7, subject(raw), raw)
    assert isinstance(read, events.Event)
    assert read.seq == 7
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
        envelope(at="yesterday"),
        envelope(data={"task_id": 7}),
    ],
)
def test_what_cannot_be_read_is_said_and_never_raised(raw: bytes) -> None:
    assert isinstance(events.decode(3, "ev.task.t", raw), events.Undecodable)
    whole = LINES[0]
    records = [Record(2, subject(whole), whole), Record(3, "ev.task.t", raw)]
    assert events.read_facts(records) is None


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
