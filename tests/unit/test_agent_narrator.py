"""What an agent says at its terminal: each turn once, in words of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from agent import link, machine
from agent.executors import jobs
from agent.holdings import Holding
from agent.link import Pulled
from agent.narrator import Narrator
from core import errors, events, wire

MACHINE = machine.Machine(
    hostname="h", device="cpu", devices=1, memory_gb=16.0, cores=2, system="test"
)
API = "http://127.0.0.1:9"


class Told:
    """A narrator and what it said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.narrator = Narrator(self.lines.append, API)

    def unanswered(self, *, trains: bool = False) -> None:
        self.narrator.unanswered("nobody is there", trains=trains, again_seconds=5.0)

    def joined(self) -> None:
        self.narrator.attached("one", "cpu-16", MACHINE)


def _holding(task_id: str, *, attempt: int = 1, steps: tuple[int, ...] = ()) -> Holding:
    resume = [
        events.Checkpoint(
            rival="evolver", step=step, total_steps=100, manifest="0" * 64, writer="w", bytes=1
        )
        for step in steps
    ]
    assignment = wire.Assignment(
        token=events.Token(task_id=task_id, attempt=attempt, claim_id="c"),
        node_id="opt-convex",
        topic="موضوع",
        role="dual",
        method="full",
        seed=1,
        workload=events.Workload(specialist="opt-convex"),
        workload_inherited=False,
        lease_seconds=60.0,
        resume=resume,
    )
    return Holding(assignment, Pulled(task_id, 1, "ack"))


def test_a_server_that_is_away_is_told_once_and_once_more_when_it_is_back() -> None:
    told = Told()
    for _ in range(3):
        told.unanswered()
    told.joined()
    for _ in range(3):
        told.unanswered(trains=True)
    told.joined()
    told.narrator.answered()
    away, joined, lost, back = told.lines
    assert "nobody is there" in away
    assert joined.startswith("joined ")
    assert all(words in joined for words in (API, " one ", "cpu-16", "16 GB"))
    assert lost.startswith("lost the server ")
    assert API in lost
    assert "the training goes on" in lost
    assert "answers again" in back


def test_waiting_is_told_once_until_there_was_work() -> None:
    told = Told()
    told.narrator.waits()
    told.narrator.waits()
    told.narrator.trains(_holding("t1"))
    told.narrator.waits()
    assert [line.partition(" ")[0] for line in told.lines] == ["waiting", "trains", "waiting"]


def test_a_task_taken_over_says_from_which_step() -> None:
    told = Told()
    told.narrator.trains(_holding("t2", attempt=2, steps=(100, 20)))
    (line,) = told.lines
    assert line.startswith("trains t2 on opt-convex “موضوع”")
    assert "attempt 2" in line
    assert "from step 120" in line


def test_a_result_is_told_with_each_rivals_loss() -> None:
    told, holding = Told(), _holding("t1")
    losses: dict[events.Rival, float] = {"evolver": 0.25, "reinventor": 1e-9}
    for rival, loss in losses.items():
        holding.results[rival] = jobs.Result(
            node_id="opt-convex",
            role=rival,
            steps=1,
            total_steps=1,
            loss=loss,
            baseline_loss=0.5,
            evidence_rate=0.0,
            params=1,
            bytes=1,
            weights_sha256="0" * 64,
            candidate_directory="",
        )
    told.narrator.delivered(holding)
    (line,) = told.lines
    assert line.startswith("delivered t1 on opt-convex")
    assert all(words in line for words in ("evolver 0.25", "reinventor 1e-09", "baseline 0.5"))


def test_a_failure_is_told_by_its_first_line() -> None:
    told = Told()
    told.narrator.failed(_holding("t1"), "no memory\nTraceback …")
    (line,) = told.lines
    assert line.startswith("failed t1 on opt-convex")
    assert line.endswith("no memory")


def test_an_agent_that_has_to_go_says_what_it_leaves_where() -> None:
    told = Told()
    told.narrator.left(_holding("t1"), "not delivered")
    told.narrator.hurries(_holding("t2"))
    told.narrator.hurries(None)
    undelivered, unreleased, idle = told.lines
    assert undelivered.startswith("left with t1 on opt-convex not delivered")
    assert unreleased.startswith("left with t2 on opt-convex not given back")
    assert all("stays here for the next start" in line for line in (undelivered, unreleased))
    assert idle.startswith("left")
    assert "no answer" in idle


def test_checkpoints_that_a_disk_does_not_take_are_told_once_and_once_more_when_it_does() -> None:
    told = Told()
    told.narrator.saved()
    for _ in range(3):
        told.narrator.missed(_holding("t1"), "/full: No space left on device")
    for _ in range(3):
        told.narrator.saved()
    missed, kept = told.lines
    assert missed.startswith("no checkpoint of t1 on opt-convex could be kept")
    assert "No space left" in missed
    assert "it trains on" in missed
    assert kept == "checkpoints are kept again"


@pytest.mark.parametrize(("count", "words"), [(1, "1 damaged checkpoint of"), (2, "2 damaged ch")])
def test_damaged_checkpoints_and_a_process_that_died_are_told_with_what_goes_on(
    count: int, words: str
) -> None:
    told = Told()
    told.narrator.passed_over(_holding("t1"), count)
    told.narrator.revived(_holding("t1"), "the executor died by signal SIGSEGV", 40)
    told.narrator.revived(_holding("t1"), "the executor died by signal SIGSEGV", 0)
    passed, revived, without = told.lines
    assert f"passed over {words}" in passed
    assert passed.endswith("goes on from step 0")
    words = "the executor died by signal SIGSEGV; t1 on opt-convex goes on from its"
    assert revived == f"{words} checkpoint of step 40"
    assert without == f"{words} last checkpoint, if there is one"


def test_below_a_server_that_tells_the_rest_only_what_the_agent_alone_knows_is_told() -> None:
    said: list[str] = []
    told: list[str] = []
    narrator = Narrator(said.append, API, told.append)
    narrator.trains(_holding("t1"))
    narrator.revived(_holding("t1"), "the executor died by signal SIGKILL", 40)
    assert (len(said), len(told)) == (1, 1)
    assert told[0].startswith("the executor died by signal SIGKILL")


async def _join(api: str) -> None:
    await link.Link.join(
        api,
        "one",
        MACHINE,
        direct=False,
        on_notice=lambda _: None,
        on_reconnect=lambda: None,
        on_closed=lambda _: None,
    )


def test_a_server_that_is_not_there_is_told_in_our_own_words() -> None:
    with pytest.raises(errors.Unavailable) as raised:
        asyncio.run(_join(API))
    assert str(raised.value).startswith(f"no server answers at {API} ")
    assert "nothing listens there" in str(raised.value)
    assert "`aghsan up`" in str(raised.value)


@contextlib.contextmanager
def _answering(status: int, content: bytes) -> Iterator[str]:
    """Something that takes requests to join and answers all alike; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [501, 404, 405])
def test_what_is_no_server_of_ours_is_refused_and_not_waited_for(status: int) -> None:
    page = b"<!DOCTYPE html><p>Unsupported method"
    with _answering(status, page) as api, pytest.raises(errors.Refused) as raised:
        asyncio.run(_join(api))
    assert str(raised.value).startswith(f"{api} answered {status} ")
    assert "is this the address of an Aghsan server?" in str(raised.value)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (503, b'{"detail":"the log does not answer"}'),
        (500, b"Internal Server Error"),
        (502, b"<html>a proxy whose server is being restarted</html>"),
    ],
)
def test_a_server_that_is_not_ready_is_waited_for(status: int, content: bytes) -> None:
    with _answering(status, content) as api, pytest.raises(errors.Unavailable, match="not ready"):
        asyncio.run(_join(api))
