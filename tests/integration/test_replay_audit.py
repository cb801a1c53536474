"""`aghsan replay` and `aghsan audit` on a real data directory: in use, stopped, and copied."""

import asyncio
import contextlib
import hashlib
import json
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from cli import main
from core import chunks, commands, errors, events, platforms, replay, subjects
from core.accounts import Authority
from core.bus import Bus
from core.chunks_jetstream import JetStreamChunks
from core.commands import AnyCommand
from core.log_jetstream import JetStreamLog
from core.runtime import Runtime, new_meta
from tests import nats_fixture

SECRET = b"s" * 32
COMMITMENT = hashlib.sha256(SECRET).hexdigest()
WORKER = "عامل 1"  # an id that subjects carry hashed
TOKEN = subjects.token(WORKER)


class Built(NamedTuple):
    """A data directory that nobody uses, and what its state hashes to at two sequences."""

    data: Path
    last_seq: int
    state_hash: str
    middle_seq: int
    middle_hash: str
    chunk: str


@contextlib.asynccontextmanager
async def open_door(control: Bus) -> AsyncIterator[Runtime]:
    log = JetStreamLog(control)
    door = Runtime(log, "test")
    await door.start()
    running = asyncio.create_task(door.run())
    try:
        yield door
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await log.close()


async def store(chunk_store: chunks.ChunkStore, kind: str, data: bytes) -> tuple[str, str]:
    """Store an artifact of one file as agent and desk do; its manifest, its first chunk."""
    digests = [await chunk_store.put(TOKEN, piece) for piece in chunks.split(data)]
    file = chunks.File(
        name="weights.safetensors",
        bytes=len(data),
        sha256=chunks.digest_of(data),
        chunks=digests,
    )
    manifest = chunks.Manifest(kind=kind, writer=TOKEN, files=[file])
    return await chunk_store.put("desk", manifest.encode()), digests[0]


async def live(nats: nats_fixture.Nats) -> Built:
    """Let a task be trained, judged and promoted, in brief."""
    await nats.apply()
    async with (
        nats.connect("control") as control,
        nats.connect("desk") as fleet,
        open_door(control) as door,
    ):

        async def do(command: AnyCommand) -> None:
            await door.execute(command, new_meta("test"), lambda state: None)

        chunk_store = JetStreamChunks(fleet)
        weights = b"w" * (chunks.CHUNK_BYTES + 100)
        point, _ = await store(chunk_store, "checkpoint", b"point")
        model, chunk = await store(chunk_store, "candidate", weights)
        await do(commands.SeedTree())
        await do(commands.DepositCommitments(judge="j", first=0, commitments=[COMMITMENT]))
        await do(
            commands.OpenSession(
                worker_id=WORKER, session="s", hostname="h", lane="cpu", protocol=1
            )
        )
        await do(commands.EnqueueTask(task_id="t1", node_id="root-math", topic="جذر", seed=1))
        claim = commands.ClaimTask(
            worker_id=WORKER, via="nats", claim_id="c1", lease_seconds=60.0, session="s"
        )
        await do(claim)
        middle = await door.read(lambda state: (state.seq, state.hash()))
        token = events.Token(task_id="t1", attempt=1, claim_id="c1")
        held: Any = {"token": token, "worker_id": WORKER, "session": "s"}
        stored = events.Checkpoint(
            rival="evolver",
            step=5,
            total_steps=9,
            manifest=point,
            writer=TOKEN,
            bytes=5,
        )
        await do(commands.StoreCheckpoint(checkpoint=stored, **held))
        brought = events.Candidate(
            candidate_id="cand",
            rival="evolver",
            manifest=model,
            writer=TOKEN,
            weights_sha256="f" * 64,
            bytes=len(weights),
        )
        await do(commands.CompleteTask(task_id="t1", candidates=[brought], **held))
        await judge(door, do)
        await do(commands.EnqueueTask(task_id="t2", node_id="root-math", topic="more", seed=2))
        last_seq, state_hash = await door.read(lambda state: (state.seq, state.hash()))
        return Built(nats.data, last_seq, state_hash, *middle, chunk)


async def judge(door: Runtime, do: Callable[[AnyCommand], Awaitable[None]]) -> None:
    """Promote the candidate of the one round."""
    (round_id,) = await door.read(lambda state: list(state.rounds.undecided))
    reasons = events.Reasons(ar="أفضل", en="better")
    verdict = events.CandidateVerdict(
        candidate_id="cand", verdict="promoted", reasons=reasons, error=0.1
    )
    await do(commands.StartJudging(round_id=round_id, judge="j"))
    await do(
        commands.DecideRound(
            round_id=round_id,
            judge="j",
            verdict="promote",
            secret=SECRET.hex(),
            reasons=reasons,
            candidates=[verdict],
            promoted="cand",
            baseline_error=0.5,
        )
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A data directory as a stopped `up` leaves it. Tests that change it take a copy."""
    data = tmp_path_factory.mktemp("بيانات و فراغ") / "data"
    with nats_fixture.running(data) as nats:
        one = asyncio.run(live(nats))
    with platforms.DataLock(data / "lock"):
        pass
    return one


@contextlib.contextmanager
def in_use(data: Path) -> Iterator[nats_fixture.Nats]:
    """The data directory as while `up` runs: locked, served, and with a run.json."""
    with platforms.DataLock(data / "lock"), nats_fixture.running(data) as nats:
        write_run(data, nats.url, data)
        try:
            yield nats
        finally:
            (data / "run.json").unlink()


def write_run(data: Path, url: str, named: Path) -> None:
    facts = {"http": "http://127.0.0.1:1", "nats": url, "pids": {}, "data": str(named)}
    platforms.write_atomically(data / "run.json", json.dumps(facts, ensure_ascii=False).encode())


def copy_of(data: Path, folder: Path) -> Path:
    return shutil.copytree(data, folder / "copy")


def put_by_hand(nats: nats_fixture.Nats, subject: str, raw: bytes) -> int:
    """Store a message as somebody with the control credentials may; its sequence."""

    async def put() -> int:
        async with nats.connect("control") as control:
            return int(json.loads(await control.request(subject, raw))["seq"])

    return asyncio.run(put())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main.aghsan, [str(one) for one in arguments])


def told(result: Result) -> dict[str, Any]:
    """What a command printed as JSON."""
    facts = json.loads(result.stdout)
    assert isinstance(facts, dict)
    return facts


def fingerprint(folder: Path) -> dict[str, str]:
    """Every name in a folder, with the digest and time of each file."""
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mtime_ns} {chunks.digest_of(content)}"
        for path in sorted(folder.rglob("*"))
        for content in [path.read_bytes() if path.is_file() else b""]
    }


# The state


def test_replay_beside_a_running_server_has_the_hash_of_the_live_state(built: Built) -> None:
    with in_use(built.data):
        result = run("replay", "--data", built.data, "--json")
    facts = told(result)
    assert (facts["last_seq"], facts["state_hash"]) == (built.last_seq, built.state_hash)
    assert facts["events"] == built.last_seq
    assert facts["running"] is True
    assert result.exit_code == 0


def test_replay_without_a_server_has_the_same_hash_each_time(built: Built) -> None:
    first = told(run("replay", "--data", built.data, "--json"))
    again = told(run("replay", "--data", built.data, "--json"))
    assert first["state_hash"] == again["state_hash"] == built.state_hash
    assert first["running"] is False
    assert first["tasks"]["completed"] == first["tasks"]["queued"] == 1
    assert first["quarantined"] == 0


def test_replay_stops_where_it_is_told(built: Built) -> None:
    facts = told(run("replay", "--data", built.data, "--at", built.middle_seq, "--json"))
    assert (facts["last_seq"], facts["state_hash"]) == (built.middle_seq, built.middle_hash)
    assert facts["tasks"]["running"] == 1


def test_replay_beyond_the_end_says_where_the_end_is(built: Built) -> None:
    result = run("replay", "--data", built.data, "--at", built.last_seq + 1, "--json")
    assert result.exit_code == main.EXIT_NOT_FOUND
    assert f"ends at {built.last_seq}" in result.stderr


def test_replay_is_readable(built: Built) -> None:
    result = run("replay", "--data", built.data)
    assert built.state_hash in result.stdout
    assert "1 queued, 1 completed" in result.stdout


# The audit


def test_a_sound_log_is_found_sound_running_and_stopped_alike(built: Built) -> None:
    with in_use(built.data):
        beside = run("audit", "--data", built.data, "--json")
    alone = run("audit", "--data", built.data, "--json")
    assert told(beside) == told(alone) | {"running": True}
    assert told(alone)["violations"] == []
    assert told(alone) == told(alone) | {"ok": True, "events": built.last_seq, "refusals": 0}
    # The candidate, which became the champion; its manifest aside. Nobody needs the checkpoint.
    assert told(alone)["artifacts"] == 1
    assert told(alone)["artifact_bytes"] == chunks.CHUNK_BYTES + 100
    assert beside.exit_code == alone.exit_code == 0


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_reading_without_a_server_changes_nothing_and_leaves_nothing(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = fingerprint(built.data)
    assert run(verb, "--data", built.data, "--json").exit_code == 0
    assert fingerprint(built.data) == before
    assert list(tmp_path.iterdir()) == []


def test_the_verdict_is_readable_in_both_languages(built: Built) -> None:
    result = run("audit", "--data", built.data)
    assert "The log keeps all rules." in result.stdout
    assert "يلتزم بجميع القواعد" in result.stdout
    assert "only its holder speaks for it" in result.stdout


def test_a_message_put_in_by_hand_is_named_by_its_sequence(built: Built, tmp_path: Path) -> None:
    data = copy_of(built.data, tmp_path)
    with in_use(data) as nats:
        seq = put_by_hand(nats, "ev.task.x", b"nonsense")
        put_by_hand(nats, "refused.task.x", b"{}")
        beside = run("audit", "--data", data, "--json")
    alone = run("audit", "--data", data, "--json")
    words = run("audit", "--data", data)
    for result in (beside, alone):
        (violation,) = told(result)["violations"]
        assert (violation["rule"], violation["seq"]) == ("undecodable", seq)
        assert told(result)["ok"] is False
        assert told(result)["refusals"] == 1
    assert [one.exit_code for one in (beside, alone, words)] == [1, 1, 1]
    assert "ev.task.x" in words.stdout
    assert "breaks its rules once." in words.stdout
    assert "يخالف" in words.stdout
    assert told(run("replay", "--data", data, "--json"))["quarantined"] == 1


def test_a_copy_is_audited_itself_although_its_original_runs(built: Built, tmp_path: Path) -> None:
    original = copy_of(built.data, tmp_path)
    with in_use(original) as nats:
        sound = copy_of(original, tmp_path / "sound")
        put_by_hand(nats, "ev.task.x", b"nonsense")
        assert (sound / "run.json").exists()
        before = fingerprint(sound)
        result = run("audit", "--data", sound, "--json")
        assert result.exit_code == 0, result.stdout + result.stderr
        assert told(result)["running"] is False
        assert told(result)["events"] == built.last_seq
        assert fingerprint(sound) == before


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_a_copy_that_may_only_be_read_is_enough(built: Built, tmp_path: Path, verb: str) -> None:
    data = copy_of(built.data, tmp_path)
    (data / "lock").unlink()
    folders = [path for path in data.rglob("*") if path.is_dir()]
    for path in data.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        result = run(verb, "--data", data, "--json")
        assert result.exit_code == 0, result.stderr
        assert not (data / "lock").exists()
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_lost_chunk_is_named_by_the_event_that_needs_it(built: Built, tmp_path: Path) -> None:
    async def lose(nats: nats_fixture.Nats) -> None:
        async with nats.connect("desk") as fleet:
            await JetStreamChunks(fleet).delete(TOKEN, built.chunk)

    data = copy_of(built.data, tmp_path)
    with nats_fixture.running(data) as nats:
        asyncio.run(lose(nats))
    result = run("audit", "--data", data, "--json")
    (violation,) = told(result)["violations"]
    # After the claim comes the checkpoint, and then the completion that brings the candidate.
    assert (violation["rule"], violation["seq"]) == ("artifacts", built.middle_seq + 2)
    assert built.chunk[:12] in violation["detail"]
    assert result.exit_code == 1


def without(stream: str, built: Built, folder: Path) -> tuple[Path, Path]:
    """A copy whose server kept a stream in a folder that is gone; that folder."""
    data = copy_of(built.data, folder)
    (gone,) = data.glob(f"nats/js/jetstream/*/streams/{stream}")
    shutil.rmtree(gone)
    return data, gone


def test_artifacts_that_are_all_gone_are_one_violation_that_names_their_folder(
    built: Built, tmp_path: Path
) -> None:
    data, gone = without("CHUNKS", built, tmp_path)
    result = run("audit", "--data", data, "--json")
    assert result.exit_code == 1
    (violation,) = told(result)["violations"]
    assert (violation["rule"], violation["seq"]) == ("artifacts", built.middle_seq + 2)
    assert violation["detail"].startswith(f"There is no folder {gone}, which held all artifacts")
    assert "restore a backup" in violation["detail"]
    assert told(result)["artifacts"] == 1
    verified = run("artifact", "verify", "--data", data)
    assert (verified.exit_code, f"{gone}" in verified.stderr) == (main.EXIT_NOT_FOUND, True)


def test_artifacts_that_are_all_gone_below_a_server_are_a_violation(
    built: Built, tmp_path: Path
) -> None:
    data, _ = without("CHUNKS", built, tmp_path)
    with in_use(data):
        (violation,) = told(run("audit", "--data", data, "--json"))["violations"]
    assert violation["detail"].startswith("There is no stream CHUNKS, which held all artifacts")


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_a_log_that_is_gone_is_no_log_that_never_was(
    built: Built, tmp_path: Path, verb: str
) -> None:
    data, gone = without("EVENTS", built, tmp_path)
    result = run(verb, "--data", data)
    assert result.exit_code == main.EXIT_FAILED
    assert f"the log is gone: there is no folder {gone}" in result.stderr
    assert "restore a backup" in result.stderr


@pytest.mark.parametrize("where", [0.1, 0.5, 0.98])
def test_a_flipped_bit_in_the_log_is_found(built: Built, tmp_path: Path, where: float) -> None:
    data = copy_of(built.data, tmp_path)
    (block,) = data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/1.blk")
    content = bytearray(block.read_bytes())
    content[int(len(content) * where)] ^= 1
    block.write_bytes(content)
    before = fingerprint(data)
    result = run("audit", "--data", data, "--json")
    first = told(result)["violations"][0]
    assert first["rule"] == "blocks"
    assert first["seq"] == pytest.approx(where * built.last_seq, abs=2)
    assert result.exit_code == 1
    assert fingerprint(data) == before


def test_a_damaged_chunk_that_nothing_needs_is_told_as_a_start_tells_it(
    built: Built, tmp_path: Path
) -> None:
    async def strand(nats: nats_fixture.Nats) -> None:
        async with nats.connect("desk") as fleet:
            await JetStreamChunks(fleet).put(TOKEN, b"needed by nothing")
            await JetStreamChunks(fleet).put(TOKEN, b"nor is this")

    data = copy_of(built.data, tmp_path)
    with nats_fixture.running(data) as nats:
        asyncio.run(strand(nats))
    (block,) = data.glob("nats/js/jetstream/*/streams/CHUNKS/msgs/1.blk")
    content = block.read_bytes()
    block.write_bytes(content.replace(b"needed by nothing", b"heeded by nothing"))
    result = run("audit", "--data", data, "--json")
    (violation,) = told(result)["violations"]
    assert violation["rule"] == "blocks"
    assert "1.blk of CHUNKS" in violation["detail"]
    assert result.exit_code == 1
    with pytest.raises(errors.LogDamaged) as refused:
        replay.prepare_start(data, Authority.load_or_create(data / "keys"))
    assert violation["detail"] in str(refused.value)


def test_an_end_cut_off_between_two_records_is_found(built: Built, tmp_path: Path) -> None:
    data = copy_of(built.data, tmp_path)
    (block,) = data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/1.blk")
    content = block.read_bytes()
    offset = end = 0
    while end < len(content):
        offset, end = end, end + (int.from_bytes(content[end : end + 4], "little") & 0x7FFFFFFF)
    block.write_bytes(content[:offset])
    result = run("audit", "--data", data, "--json")
    first = told(result)["violations"][0]
    assert (first["rule"], first["seq"]) == ("blocks", built.last_seq), told(result)
    assert result.exit_code == 1


def test_damage_that_a_starting_server_repairs_is_found(built: Built, tmp_path: Path) -> None:
    data = copy_of(built.data, tmp_path)
    (block,) = data.glob("nats/js/jetstream/*/streams/EVENTS/msgs/1.blk")
    block.write_bytes(block.read_bytes() + b"torn")
    result = run("audit", "--data", data, "--json")
    (violation,) = told(result)["violations"]
    assert (violation["rule"], violation["seq"]) == ("blocks", built.last_seq + 1)
    assert "1.blk" in violation["detail"]
    assert result.exit_code == 1


# Directories that cannot be read


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_a_wrong_directory_is_refused_in_words_and_left_alone(verb: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    before = fingerprint(tmp_path)
    missing = run(verb, "--data", tmp_path / "missing", "--json")
    assert missing.exit_code == main.EXIT_NOT_FOUND
    assert "There is no data directory" in missing.stderr
    for name, words, code in (
        ("empty", "no data directory", main.EXIT_FAILED),
        ("photos", "aghsan up", main.EXIT_FAILED),
        ("file", "is a file", main.EXIT_USAGE),
    ):
        result = run(verb, "--data", tmp_path / name, "--json")
        assert result.exit_code == code
        assert words in result.stderr
        assert result.stdout == ""
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_a_directory_that_was_never_ready_is_refused(verb: str, tmp_path: Path) -> None:
    with nats_fixture.running(tmp_path / "data"):
        pass
    result = run(verb, "--data", tmp_path / "data")
    assert result.exit_code == main.EXIT_FAILED
    assert "holds no log yet" in result.stderr


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_a_directory_in_use_whose_server_is_not_known_is_explained(
    verb: str, built: Built, tmp_path: Path
) -> None:
    with platforms.DataLock(built.data / "lock"):
        silent = run(verb, "--data", built.data)
        write_run(built.data, "nats://127.0.0.1:9", tmp_path)
        elsewhere = run(verb, "--data", built.data)
        (built.data / "run.json").write_bytes(b"{")
        torn = run(verb, "--data", built.data)
        (built.data / "run.json").unlink()
    for result in (silent, elsewhere, torn):
        assert result.exit_code == main.EXIT_UNREACHABLE, result.stderr
        assert "in use" in result.stderr
    assert "just starting" in silent.stderr
    assert str(tmp_path) in elsewhere.stderr


def test_a_directory_in_use_whose_server_is_gone_is_explained(built: Built) -> None:
    with platforms.DataLock(built.data / "lock"):
        write_run(built.data, "nats://127.0.0.1:9", built.data)
        result = run("replay", "--data", built.data)
        (built.data / "run.json").unlink()
    assert result.exit_code == main.EXIT_UNREACHABLE
    assert "127.0.0.1:9" in result.stderr
    assert "run.json" in result.stderr


def test_a_run_json_left_behind_does_not_hide_that_nobody_runs(
    built: Built, tmp_path: Path
) -> None:
    data = copy_of(built.data, tmp_path)
    write_run(data, "nats://127.0.0.1:9", data)
    for verb in ("audit", "replay"):
        result = run(verb, "--data", data, "--json")
        assert result.exit_code == 0, result.stderr
        assert told(result)["running"] is False


@pytest.mark.parametrize("verb", ["replay", "audit"])
def test_a_disk_without_room_for_the_copy_is_named(
    built: Built, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    full = shutil.disk_usage("/")._replace(free=1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    result = run(verb, "--data", built.data)
    assert result.exit_code == main.EXIT_FAILED
    assert "Set TMPDIR" in result.stderr


def test_a_folder_for_copies_that_is_not_there_is_told_in_words(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    result = run("replay", "--data", built.data)
    assert result.exit_code == main.EXIT_FAILED
    assert "Set TMPDIR" in result.stderr


def test_an_audit_that_is_ended_leaves_no_copy(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        assert list(tmp_path.glob("aghsan-*")), "it is at work on a copy"
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "copyfile", end)
    assert run("audit", "--data", built.data).exit_code == main.EXIT_INTERRUPTED
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
