"""`/metrics` of a gateway that serves."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.room import Disk
from core.topology import MIB
from tests.exposition import Family, parse
from tests.integration import gateway_stack
from tests.integration.gateway_stack import Stack

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with gateway_stack.started(tmp_path / "data") as one:
        yield one


async def scraped(stack: Stack) -> dict[str, Family]:
    reply = await stack.ask("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(reply.body.decode())


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    return families[name].samples[name, tuple(sorted(labels.items()))]


async def test_every_figure_is_explained_in_the_docs_as_it_is_on_the_page(stack: Stack) -> None:
    await stack.enqueue()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    found = await scraped(stack)
    assert rows == [(name, family.kind, family.help) for name, family in found.items()]


async def test_figures_follow_what_happens(stack: Stack) -> None:
    await stack.held("عامل")
    await stack.enqueue()
    found = await scraped(stack)
    assert value(found, "aghsan_tasks", status="running") == 1
    assert value(found, "aghsan_tasks", status="queued") == 1
    assert value(found, "aghsan_queue_length") == 1
    assert value(found, "aghsan_workers_online", via="http") == 1
    assert value(found, "aghsan_workers_online", via="nats") == 0
    assert value(found, "aghsan_workers") == 1
    assert value(found, "aghsan_nodes") == 10
    assert value(found, "aghsan_rounds_undecided") == 0
    assert value(found, "aghsan_decisions_waiting") == 0
    assert value(found, "aghsan_log_quarantined_records") == 0
    assert value(found, "aghsan_commands_pending") == 0


async def test_the_log_is_told_by_its_sequences_and_appends(stack: Stack) -> None:
    await stack.enqueue()
    found = await scraped(stack)
    state = (await stack.get("/log/state")).json["log"]["last_seq"]
    assert value(found, "aghsan_log_sequence") == state
    assert value(found, "aghsan_log_durable_sequence") == state
    events = found["aghsan_log_append_events"].samples
    # The start of the writer is appended before anything is counted.
    assert events["aghsan_log_append_events_sum", ()] == state - 1
    count = events["aghsan_log_append_events_count", ()]
    seconds = found["aghsan_log_append_seconds"].samples
    assert seconds["aghsan_log_append_seconds_count", ()] == count >= 2
    assert seconds["aghsan_log_append_seconds_sum", ()] > 0


async def test_answers_are_counted_by_pattern_and_status_and_nothing_else(stack: Stack) -> None:
    for task_id in ("a", "b", "c"):
        assert (await stack.get(f"/tasks/{task_id}")).status == 404
    for path in ("/nowhere", "/else?where=1"):
        assert (await stack.ask("GET", path)).status == 404
    assert (await stack.ask("PROPFIND", "/healthz")).status == 405
    assert (await stack.post("/training/enqueue", b"{")).status == 422
    found = await scraped(stack)
    name = "aghsan_http_requests_total"
    pattern = "/api/v1/network/tasks/{task_id}"
    assert value(found, name, method="GET", route=pattern, status="404") == 3
    assert value(found, name, method="GET", route="other", status="404") == 2
    assert value(found, name, method="other", route="other", status="405") == 1
    enqueue = "/api/v1/network/training/enqueue"
    assert value(found, name, method="POST", route=enqueue, status="422") == 1
    routes = {dict(labels)["route"] for _, labels in found[name].samples}
    assert routes == {pattern, enqueue, "other"}


async def test_refusals_are_counted(stack: Stack) -> None:
    task_id = await stack.held("w")
    assert (await stack.complete(task_id, "another")).status == 400
    assert value(await scraped(stack), "aghsan_refusals_total") == 1


async def test_a_log_that_does_not_answer_is_shown_not_waited_for(stack: Stack) -> None:
    stack.nats.server.stop()
    found = await scraped(stack)
    while value(found, "aghsan_nats_connected", account="CONTROL"):
        found = await scraped(stack)
    assert value(found, "aghsan_log_durable_sequence") > 0
    stack.nats.server.start()


async def test_the_process_is_told_by_the_usual_names(stack: Stack) -> None:
    found = await scraped(stack)
    assert value(found, "process_resident_memory_bytes") > 10_000_000
    assert value(found, "process_open_fds") > 5
    assert value(found, "process_start_time_seconds") > 1_700_000_000
    assert value(found, "aghsan_loop_delay_max_seconds") >= 0


async def test_want_of_room_shows_in_every_place_where_one_looks(stack: Stack) -> None:
    room = stack.parts.room
    await room.look()
    found = await scraped(stack)
    assert value(found, "aghsan_disk_free_bytes") == room.free_bytes > 0
    assert value(found, "aghsan_admission_stopped") == 0
    room.disk_of = lambda _: Disk(100 * MIB, 100_000 * MIB)
    await room.look()
    found = await scraped(stack)
    assert value(found, "aghsan_disk_free_bytes") == 100 * MIB
    assert value(found, "aghsan_admission_stopped") == 1
    words = stack.parts.door.shortage
    assert "100 MiB are free" in words
    ready = await stack.ask("GET", "/readyz")
    assert (ready.status, ready.json["reasons"]) == (503, [words])
    for path, asked in (
        ("/training/enqueue", {"topic": "t"}),
        ("/graph/expand", {"parent_id": "root-math", "name": "n"}),
        ("/workers/register", {"worker_id": "w", "hostname": "h"}),
    ):
        (await stack.post(path, asked)).require(507, f'{{"detail":"{words}"}}')
    assert (await stack.get("/status")).status == 200


async def test_streams_that_refuse_rather_than_forget_are_asked_how_full_they_are(
    stack: Stack,
) -> None:
    await stack.parts.room.look()
    filling = await stack.parts.room.filling()
    assert filling["EVENTS"].bytes_max == 16_384 * MIB
    assert filling["CHUNKS"].bytes_max == 16_384 * MIB
    assert 0 < filling["EVENTS"].bytes < MIB
    assert stack.parts.door.shortage == ""
