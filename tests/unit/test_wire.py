"""Frames between agents, judges and the desk."""

import os

import msgspec
import pytest

from core import errors, events, wire
from core.chunks import CHUNK_BYTES

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.AghsanError)
]
TOKEN = events.Token(task_id="t1", attempt=2, claim_id="c1")


def test_an_answer_comes_back_as_it_was() -> None:
    answer = wire.Welcome(
        session="جلسة", lane="cpu", heartbeat_seconds=1, lease_seconds=60, holding=[TOKEN]
    )
    assert wire.decode(wire.ok(answer), wire.Welcome) == answer


def test_a_heartbeat_speaks_of_so_many_tasks_and_of_sane_steps_only() -> None:
    def read(*tasks: dict[str, object]) -> int:
        raw = msgspec.json.encode({"worker_id": "w", "tasks": tasks})
        return len(msgspec.json.decode(raw, type=wire.Beat).tasks)

    task: dict[str, object] = {"task_id": "t", "attempt": 1}
    most = [task] * wire.BEAT_TASKS_MAX
    assert read(*most) == len(most)
    for nonsense in (
        [*most, task],
        [{**task, "step": -1}],
        [{**task, "total_steps": 2**60}],
        [{**task, "rival": "x" * 33}],
    ):
        with pytest.raises(msgspec.ValidationError):
            read(*nonsense)


def test_an_answer_without_fields_is_an_answer() -> None:
    assert wire.decode(wire.ok(wire.Done()), wire.Done) == wire.Done()


@pytest.mark.parametrize("kind", ERRORS)
def test_a_refusal_comes_back_as_the_error_it_was(kind: type[errors.AghsanError]) -> None:
    with pytest.raises(errors.AghsanError) as caught:
        wire.decode(wire.refusal(kind("لا توجد مهمة: no task")), wire.Done)
    assert type(caught.value) is kind
    assert str(caught.value) == "لا توجد مهمة: no task"


def test_an_error_of_a_modules_own_comes_back_as_the_nearest_that_has_a_name() -> None:
    class TornManifest(errors.ArtifactError):
        """Known in one module only."""

    with pytest.raises(errors.ArtifactError, match="torn") as caught:
        wire.decode(wire.refusal(TornManifest("torn")), wire.Done)
    assert type(caught.value) is errors.ArtifactError


@pytest.mark.parametrize("name", ["FromTheFuture", "Exception", "KeyError", "__doc__"])
def test_an_error_that_is_not_known_here_is_a_refusal(name: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        wire.decode(msgspec.json.encode({"error": name, "detail": "words"}), wire.Done)
    assert type(caught.value) is errors.Refused


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"ok":null}',
        b'{"ok":[]}',
        b'{"ok":{"session":5}}',
        b'{"ok":{"session":"\xff"}}',
        b'{"ok":{',
        b'{"error":7}',
        b'{"ok":' + b"[" * 100_000,
    ],
)
def test_an_answer_that_cannot_be_read_is_unavailable(raw: bytes) -> None:
    with pytest.raises(errors.Unavailable):
        wire.decode(raw, wire.Bye)


def test_a_field_of_a_newer_program_is_passed_over() -> None:
    raw = b'{"ok":{"session":"s","color":"blue"},"trace":1}'
    assert wire.decode(raw, wire.Bye) == wire.Bye(session="s")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x01", b'{"error":"NotFound"}'])
def test_a_chunk_comes_back_as_it_was(data: bytes) -> None:
    assert wire.chunk_of(wire.chunk_frame(data)) == data


def test_a_whole_chunk_fits_its_frame() -> None:
    data = os.urandom(CHUNK_BYTES)
    assert wire.chunk_of(wire.chunk_frame(data)) == data


def test_a_refused_chunk_comes_back_as_the_error_it_was() -> None:
    with pytest.raises(errors.NotFound, match="no chunk"):
        wire.chunk_of(wire.chunk_refusal(errors.NotFound("no chunk")))


@pytest.mark.parametrize("raw", [b"", b"\x02data", b"\x01", b"\x01{}", b'\x01{"ok":{}}', b"\x01x"])
def test_a_frame_that_holds_no_chunk_is_unavailable(raw: bytes) -> None:
    with pytest.raises(errors.Unavailable):
        wire.chunk_of(raw)


def test_a_chunk_is_never_taken_for_an_answer_or_a_notice() -> None:
    """An agent can have a chunk of its own delivered where another waits for something else."""
    raw = wire.chunk_frame(msgspec.json.encode(wire.Notice(kind="superseded")))
    for kind in (wire.Notice, wire.Offer, wire.Welcome):
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(raw, type=kind)


@pytest.mark.parametrize(
    "request_",
    [
        wire.Standing(judge="j"),
        wire.Deposit(judge="j", first=3, commitments=["ab"]),
        wire.TakeRound(judge="j", round_id="r"),
        wire.Verdict(
            round_id="r",
            judge="j",
            verdict="promoted",
            secret="00",
            reasons=events.Reasons(ar="أفضل", en="better"),
            candidates=[],
        ),
    ],
)
def test_a_judges_request_is_told_from_the_others(request_: wire.JudgeRequest) -> None:
    raw = msgspec.json.encode(request_)
    assert msgspec.json.decode(raw, type=wire.JudgeRequest) == request_
