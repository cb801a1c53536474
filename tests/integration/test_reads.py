"""The routes beyond the nine: looking things up, people's verbs, joining, health."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nkeys
import pytest
import pytest_asyncio

from core import commands, errors, events, lanes, runtime, topology, wire
from core.bus import Bus
from core.projections import tasks as projection
from core.projections.state import State
from gateway import control, reads
from gateway import refusals as refused
from gateway.http import PREFIX
from tests import nats_fixture
from tests.integration.gateway_stack import Reply, Stack, quoted, serving, started

SECRET = b"s" * 32
COMMITMENT = hashlib.sha256(SECRET).hexdigest()

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack of one's own."""
    async with started(tmp_path / "data") as one:
        yield one


def words(reply: Reply) -> str:
    """What a refusal says, whatever its shape."""
    said = reply.json["detail"]
    return str(said if isinstance(said, str) else said[0]["msg"])


# ── tasks ──

TASK_KEYS = [
    "task_id",
    "node_id",
    "topic",
    "priority",
    "status",
    "assigned_worker",
    "created_at",
    "updated_at",
    "result",
]


async def pages(stack: Stack, path: str, key: str) -> list[list[str]]:
    """The ids of a listing page by page, following `next`."""
    found, after = [], ""
    while after is not None:
        answer = (await stack.get(path + (f"&after={quoted(after)}" if after else ""))).json
        assert answer["status"] == "ok"
        found.append([one[f"{key[:-1]}_id"] for one in answer[key]])
        after = answer["next"]
    return found


async def test_tasks_are_listed_oldest_first_in_pages(stack: Stack) -> None:
    ids = [await stack.enqueue(priority=number) for number in range(1, 6)]
    assert await pages(stack, "/tasks?limit=2", "tasks") == [ids[:2], ids[2:4], ids[4:]]
    assert await pages(stack, "/tasks?limit=5", "tasks") == [ids]
    assert await pages(stack, f"/tasks?limit=9&after={ids[1]}", "tasks") == [ids[2:]]


async def test_tasks_are_listed_newest_first_where_asked(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "SCANNED_AT_ONCE", 2)
    ids = [await stack.enqueue(priority=number) for number in range(1, 6)]
    back = ids[::-1]
    newest = "/tasks?newest=true&limit="
    assert await pages(stack, newest + "2", "tasks") == [back[:2], back[2:4], back[4:]]
    assert await pages(stack, newest + "5", "tasks") == [back]
    assert await pages(stack, f"{newest}9&after={ids[2]}", "tasks") == [[ids[1], ids[0]]]
    assert await pages(stack, newest + "9&status=running", "tasks") == [[]]


async def test_a_page_of_long_tasks_ends_early_and_the_next_goes_on(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "PAGE_BYTES_MAX", 100_000)
    ids = [await stack.enqueue(topic="x" * 10_000) for _ in range(40)]
    assert await pages(stack, "/tasks?limit=1000", "tasks") == [ids[:16], ids[16:32], ids[32:]]


async def test_tasks_are_listed_by_status_and_node(stack: Stack) -> None:
    done = await stack.held("w")
    await stack.complete(done, "w", metrics={"a": 1})
    elsewhere = await stack.enqueue(node_id="opt-convex")
    here = await stack.enqueue()
    assert await pages(stack, "/tasks?status=completed", "tasks") == [[done]]
    assert await pages(stack, "/tasks?status=queued", "tasks") == [[elsewhere, here]]
    assert await pages(stack, "/tasks?status=queued&node_id=root-math", "tasks") == [[here]]
    assert await pages(stack, "/tasks?node_id=nope", "tasks") == [[]]


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("/tasks?after=task-0", "after takes the `next` of the page before, or a task_id"),
        ("/tasks?status=done", "'cancelled', 'completed', 'failed', 'queued' or 'running'"),
        ("/tasks?limit=0", "greater than or equal to 1"),
        ("/tasks?limit=1001", "less than or equal to 1000"),
        ("/tasks?limit=x", "a valid integer"),
        ("/tasks?state=queued", "known here: status, node_id, closed, newest, after, limit"),
        ("/rounds?after=round-0", "after takes the `next` of the page before, or a round_id"),
        ("/rounds?status=done", "'closed', 'decided', 'judging' or 'open'"),
        ("/log/refusals?after=x", "after takes the `next` of the page before"),
        ("/log/state?at=7", "known here: none"),
        ("/workers?status=online", "known here: after, limit"),
        ("/workers?after=nobody", "after takes a worker_id"),
    ],
)
async def test_a_question_that_is_none_is_told_what_is_allowed(
    stack: Stack, query: str, allowed: str
) -> None:
    reply = await stack.get(query)
    (told,) = reply.json["detail"]
    assert (reply.status, told["loc"][0]) == (422, "query")
    assert allowed in told["msg"]


async def test_a_reason_that_is_not_called_json_is_told_how_to_be(stack: Stack) -> None:
    path = f"{PREFIX}/tasks/{await stack.enqueue()}/cancel"
    reply = await stack.ask("POST", path, b'{"reason":"r"}', {"Content-Type": "text/plain"})
    assert (reply.status, "Content-Type: application/json" in str(reply.json)) == (422, True)


async def test_a_listed_task_is_the_contracts_task_and_three_keys_more(stack: Stack) -> None:
    task_id = await stack.held("w")
    first = await stack.complete(task_id, "w", metrics={"a": 1})
    (listed,) = (await stack.get("/tasks")).json["tasks"]
    assert list(listed) == [*TASK_KEYS, "role", "claimed_at", "completed_at"]
    assert {key: listed[key] for key in TASK_KEYS} == first.task
    assert listed["completed_at"] == first.task["result"]["completed_at"]
    assert listed["created_at"] < listed["claimed_at"] < listed["completed_at"]


async def test_a_task_is_shown_with_its_whole_history(stack: Stack) -> None:
    grown = await stack.post("/graph/expand", {"parent_id": "root-math", "name": "n"})
    task_id = await stack.enqueue(
        node_id=grown.json["node"]["node_id"],
        role="reinventor",
        budget_seconds=3,
        seed=7,
        requires={"memory_gb": 2},
    )
    task = await stack.task(task_id)
    assert list(task) == [
        *TASK_KEYS,
        *("role", "claimed_at", "completed_at", "method", "seed", "budget_seconds", "requires"),
        *("workload", "base", "parents", "attempts", "resume", "candidates", "losses", "round_id"),
        *("waits", "reasons", "log_tail"),
    ]
    assert (task["role"], task["seed"], task["budget_seconds"]) == ("reinventor", 7, 3.0)
    assert task["requires"] == {"device": "", "memory_gb": 2.0}
    inherited = {"specialist": "root-math", "parameters": {}, "inherited": True}
    assert task["workload"] == inherited
    assert (task["claimed_at"], task["completed_at"], task["attempts"]) == (None, None, [])


async def test_an_ended_attempt_stays_in_the_record_of_a_completed_task(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "RECENT_MAX", 0)  # so that the log alone remembers
    task_id = await stack.held("w")
    await stack.after(2_000)
    await stack.register("w2")
    assert await stack.claim("w2") == task_id
    await stack.complete(task_id, "w2", metrics={"a": 1})
    attempts = (await stack.task(task_id))["attempts"]
    assert [(one["attempt"], one["worker_id"], one["state"]) for one in attempts] == [
        (1, "w", "expired"),
        (2, "w2", "completed"),
    ]
    assert "1800 s" in attempts[0]["reason"]


async def test_losses_of_a_worker_without_telemetry_come_from_its_result(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.complete(task_id, "w", metrics={"losses": [["evolver", 9, 0.25]]})
    assert (await stack.task(task_id))["losses"] == [{"rival": "evolver", "step": 9, "loss": 0.25}]


@pytest.mark.parametrize("losses", ["[1]", '"x"', '{"a":1}', '[["evolver",1,null]]'])
async def test_metrics_that_only_look_like_losses_are_shown_as_they_are(
    stack: Stack, losses: str
) -> None:
    task_id = await stack.held("w")
    await stack.complete(task_id, "w", metrics={"losses": json.loads(losses)})
    task = await stack.task(task_id)
    assert task["losses"] == []
    assert task["result"]["metrics"] == {"losses": json.loads(losses)}


@pytest.mark.parametrize("odd", ["task-0", "%00", "%ff", "a%2Fb", "%D9%81"])
async def test_what_does_not_exist_is_a_404_in_words(stack: Stack, odd: str) -> None:
    for path in (f"/tasks/{odd}", f"/nodes/{odd}", f"/rounds/{odd}"):
        reply = await stack.get(path)
        assert (reply.status, "there is no" in words(reply)) == (404, True)


# ── people's verbs ──


async def test_a_merge_of_what_is_not_there_says_what_is_missing(stack: Stack) -> None:
    asked = {"topic": "t", "node_id": "stats-bayesian", "method": "merge"}
    reply = await stack.post("/training/enqueue", asked)
    assert (reply.status, "there are none" in words(reply)) == (409, True)
    reply = await stack.post("/training/enqueue", asked | {"parents": ["cand-1"]})
    assert (reply.status, "cand-1 cannot be merged" in words(reply)) == (400, True)
    assert reply.json["detail"].endswith("not found"), "clients know a 404 by that"


async def test_a_cancelled_task_can_be_queued_again(stack: Stack) -> None:
    task_id = await stack.enqueue()
    cancelled = await stack.post(f"/tasks/{task_id}/cancel", {"reason": "لا حاجة"})
    assert (cancelled.task["status"], cancelled.task["reasons"]) == ("cancelled", ["لا حاجة"])
    await stack.register("w")
    assert await stack.claim("w") is None
    retried = await stack.post(f"/tasks/{task_id}/retry", b"")
    assert (retried.task["status"], retried.task["reasons"]) == ("queued", [])
    assert await stack.claim("w") == task_id


async def test_an_ended_task_whose_words_only_the_log_has_is_shown_whole_and_queued_again_whole(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "ENDED_CHARS_MAX", 0)
    task_id = await stack.enqueue("موضوع طويل")
    cancelled = await stack.post(f"/tasks/{task_id}/cancel", {"reason": "لا حاجة"})
    assert (cancelled.task["topic"], cancelled.task["reasons"]) == ("موضوع طويل", ["لا حاجة"])
    (listed,) = (await stack.get("/tasks")).json["tasks"]
    assert (listed["topic"], listed["status"]) == ("موضوع طويل", "cancelled")
    assert (await stack.post(f"/tasks/{task_id}/retry", b"")).status == 200
    await stack.register("w")
    claimed = await stack.post("/training/claim", {"worker_id": "w"})
    assert claimed.task["topic"] == "موضوع طويل"
    done = await stack.complete(task_id, "w")
    assert (done.task["topic"], done.task["status"]) == ("موضوع طويل", "completed")


async def test_cancelling_needs_no_body_and_twice_is_once(stack: Stack) -> None:
    task_id = await stack.enqueue()
    first, second = [await stack.post(f"/tasks/{task_id}/cancel", b"") for _ in range(2)]
    assert (first.status, first.body) == (200, second.body)


async def test_the_holder_of_a_cancelled_task_owns_it_no_more(stack: Stack) -> None:
    task_id = await stack.held("w")
    await stack.post(f"/tasks/{task_id}/cancel", {})
    assert (await stack.complete(task_id, "w")).status == 400
    assert (await stack.task(task_id))["attempts"][0]["state"] == "cancelled"


async def test_what_is_completed_is_neither_cancelled_nor_retried(stack: Stack) -> None:
    task_id = await stack.held("w")
    first = await stack.complete(task_id, "w")
    for verb in ("cancel", "retry"):
        reply = await stack.post(f"/tasks/{task_id}/{verb}", b"")
        assert (reply.status, "completed" in words(reply)) == (409, True)
    assert (await stack.complete(task_id, "w")).body == first.body


async def test_what_is_queued_is_not_retried_and_what_is_unknown_is_a_404(stack: Stack) -> None:
    task_id = await stack.enqueue()
    assert (await stack.post(f"/tasks/{task_id}/retry", b"")).status == 409
    for verb in ("cancel", "retry"):
        reply = await stack.post(f"/tasks/task-0/{verb}", b"")
        assert (reply.status, words(reply)) == (404, "there is no task task-0")


# ── workers ──


async def test_workers_are_listed_with_what_they_hold(stack: Stack) -> None:
    task_id = await stack.held("عامل ١")
    (listed,) = (await stack.get("/workers")).json["workers"]
    assert list(listed) == [
        *("worker_id", "hostname", "capabilities", "status", "last_seen"),
        *("via", "lane", "reason", "tasks", "rival", "step", "total_steps", "loss"),
        *("samples_per_second", "utilisation", "memory_bytes", "paused_seconds", "unfit", "pause"),
        *("price_per_hour", "claims"),
    ]
    assert (await stack.get(f"/workers/{quoted('عامل ١')}")).json["worker"] == listed
    assert (await stack.get("/workers/nobody")).status == 404
    assert listed["claims"] == {"judged": 0, "off": 0, "doubtful": False}
    await stack.register("عامل ١", {"price_per_hour": 2})
    (listed,) = (await stack.get("/workers")).json["workers"]
    assert listed["price_per_hour"] == 2.0
    reply = await stack.post(
        "/workers/register",
        {"worker_id": "w", "hostname": "h", "capabilities": {"price_per_hour": -1}},
    )
    assert (reply.status, "price_per_hour" in words(reply)) == (422, True)
    assert (listed["worker_id"], listed["via"], listed["tasks"]) == ("عامل ١", "http", [task_id])
    assert listed["step"] is None


async def test_workers_are_listed_in_parts_where_that_is_asked_for(stack: Stack) -> None:
    names = ["عامل", "w 2", "w3"]
    for name in names:
        await stack.register(name)
    await stack.beat(names[0])

    async def listed(query: str) -> list[str]:
        answer = (await stack.get(f"/workers{query}")).json
        assert list(answer) == ["status", "workers"]
        return [one["worker_id"] for one in answer["workers"]]

    assert await listed("") == names
    assert await listed("?limit=2") == names[:2]
    assert await listed(f"?limit=2&after={quoted(names[1])}") == names[2:]
    assert await listed(f"?after={quoted(names[0])}") == names[1:]
    assert await listed(f"?after={quoted(names[2])}") == []


async def test_after_a_restart_a_worker_was_last_seen_when_it_last_showed_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "RECALLED_AT_ONCE", 1)
    with nats_fixture.running(tmp_path / "data") as nats:
        async with serving(nats) as stack:
            for name in ("عامل ١", "never beat"):
                await stack.register(name)
            # As the log has it: its times never run back, whatever the wall clock does.
            at = stack.parts.door.state.at
            registered = events.isoformat(at)
            await asyncio.sleep(max(0, at - runtime.now()) / 1e6 + 0.001)
            await stack.beat("عامل ١")
            await stack.parts.connections.fleet.flush()
        restarted = events.isoformat(runtime.now())
        async with serving(nats) as stack:
            shown = (await stack.get("/workers")).json["workers"]
    assert {one["status"] for one in shown} == {"online"}
    beaten, silent = (one["last_seen"] for one in shown)
    assert silent == registered < beaten < restarted


async def test_a_worker_taken_for_offline_is_listed_with_the_reason(stack: Stack) -> None:
    await stack.register("w")
    await stack.after(91)
    (listed,) = (await stack.get("/workers")).json["workers"]
    assert (listed["status"], listed["reason"]) == ("offline", "not heard of for 90 s")


# ── rounds, champions ──


async def judged(stack: Stack, number: int = 1) -> tuple[str, str]:
    """Train a task as an agent does and have its candidate judged, the first, second, ... of a
    test; the task's and the round's id."""
    commitment = COMMITMENT if number == 1 else f"{number:064x}"
    deposit = commands.DepositCommitments(judge="j", first=number - 1, commitments=[commitment])
    await stack.do(deposit)
    hello = commands.OpenSession(
        worker_id="a", session="s", hostname="h", lane="cpu-16", protocol=1
    )
    await stack.do(hello)
    task_id = await stack.enqueue(node_id="opt-convex")
    claim = commands.ClaimTask(
        worker_id="a", via="nats", claim_id=f"c{number}", lease_seconds=60.0, session="s"
    )
    await stack.do(claim)
    model = events.Candidate(
        candidate_id=f"cand-{number}",
        rival="reinventor",
        manifest="e" * 64,
        writer="a",
        weights_sha256=f"{16 - number:x}" * 64,
        bytes=5,
    )
    token = events.Token(task_id=task_id, attempt=1, claim_id=f"c{number}")
    await stack.do(
        commands.CompleteTask(
            task_id=task_id, worker_id="a", token=token, session="s", candidates=[model]
        )
    )
    (round_id,) = await stack.parts.door.read(lambda state: list(state.rounds.undecided))
    await stack.do(commands.StartJudging(round_id=round_id, judge="j"))
    return task_id, round_id


async def decide(stack: Stack, round_id: str) -> None:
    reasons = events.Reasons(ar="أفضل", en="better")
    said = events.CandidateVerdict(
        candidate_id="cand-1", verdict="promoted", reasons=reasons, error=0.1, evidence_rate=0.75
    )
    await stack.do(
        commands.DecideRound(
            round_id=round_id,
            judge="j",
            verdict="promote",
            secret=SECRET.hex(),
            reasons=reasons,
            candidates=[said],
            promoted="cand-1",
            baseline_error=0.5,
        )
    )


CANDIDATE = {
    "candidate_id": "cand-1",
    "worker_id": "a",
    "role": "reinventor",
    "weights_sha256": "f" * 64,
}
REASONS = {"ar": "أفضل", "en": "better"}


async def test_a_round_keeps_its_secret_until_it_is_decided(stack: Stack) -> None:
    task_id, round_id = await judged(stack)
    before = (await stack.get(f"/rounds/{round_id}")).json["round"]
    opened, closes = before.pop("opened_at"), before.pop("closes_at")
    assert opened < closes
    assert before.pop("gates")["better_ratio"] == 0.99
    assert before == {
        "round_id": round_id,
        "node_id": "opt-convex",
        "status": "judging",
        "commitment": COMMITMENT,
        "secret": None,
        "base": None,
        "candidates": [
            {
                **CANDIDATE,
                "task_id": task_id,
                "verdict": None,
                "reasons": None,
                "error": None,
                "evidence_rate": None,
                "ratio_upper": None,
                "ratio": None,
                "params": 0,
                "bytes": 5,
                "gates": [],
                "claimed": {"loss": None, "evidence_rate": None},
            }
        ],
        "verdict": None,
        "reasons": None,
        "decided_at": None,
        "entries": [
            {"role": "evolver", "task_id": task_id, "state": "closed",
             "reason": "the task was completed without a candidate for this role"},
            {"role": "reinventor", "task_id": task_id, "state": "admitted", "reason": ""},
        ],
        "close_reason": "both rivals are in",
        "judge": "j",
        "look": 1,
        "champion": None,
        "best": None,
        "alpha": None,
        "cases": None,
        "champion_error": None,
        "baseline_error": None,
        "weighed": [],
        "recommendation": None,
        "budgets": [],
    }  # fmt: skip
    await decide(stack, round_id)
    after = (await stack.get(f"/rounds/{round_id}")).json["round"]
    assert (after["status"], after["verdict"], after["reasons"]) == ("decided", "promote", REASONS)
    assert hashlib.sha256(bytes.fromhex(after["secret"])).hexdigest() == after["commitment"]
    (candidate,) = after["candidates"]
    assert (candidate["verdict"], candidate["error"]) == ("promoted", 0.1)
    assert after["decided_at"] is not None


async def test_rounds_are_listed_by_status_and_node(stack: Stack) -> None:
    task_id, round_id = await judged(stack)
    listed = (await stack.get("/rounds")).json
    (one,) = listed.pop("rounds")
    assert listed == {"status": "ok", "next": None, "awaiting_judgement": 1}
    assert one.pop("opened_at")[-1] == "Z"
    assert one == {
        "round_id": round_id,
        "node_id": "opt-convex",
        "status": "judging",
        "verdict": None,
        "decided_at": None,
    }
    assert await pages(stack, "/rounds?status=decided", "rounds") == [[]]
    assert await pages(stack, "/rounds?node_id=root-math", "rounds") == [[]]
    await decide(stack, round_id)
    assert await pages(stack, "/rounds?status=decided&node_id=opt-convex", "rounds") == [[round_id]]
    page = (await stack.get("/rounds")).json
    (listed,), awaiting = page["rounds"], page["awaiting_judgement"]
    assert awaiting == 0
    shown = (await stack.get(f"/rounds/{round_id}")).json["round"]
    assert listed["opened_at"] <= listed["decided_at"] == shown["decided_at"]
    assert (await stack.task(task_id))["round_id"] == round_id


async def test_rounds_are_listed_newest_first_where_asked(stack: Stack) -> None:
    _, first = await judged(stack)
    await decide(stack, first)
    _, second = await judged(stack, 2)
    assert await pages(stack, "/rounds?newest=true&limit=1", "rounds") == [[second], [first]]
    assert await pages(stack, f"/rounds?newest=true&after={second}", "rounds") == [[first]]
    of_node = "/rounds?newest=true&node_id=opt-convex"
    assert await pages(stack, of_node, "rounds") == [[second, first]]
    assert await pages(stack, f"{of_node}&status=decided", "rounds") == [[first]]


async def test_a_node_shows_its_champion_rounds_and_lineage(stack: Stack) -> None:
    task_id, round_id = await judged(stack)
    await decide(stack, round_id)
    node = (await stack.get("/nodes/opt-convex")).json["node"]
    (graphed,) = [
        one
        for one in (await stack.get("/graph")).json["graph"]["nodes"]
        if one["node_id"] == "opt-convex"
    ]
    assert {key: node[key] for key in graphed} == graphed
    assert list(node)[len(graphed) :] == [
        *("champion", "rounds", "lineage", "workload"),
        *("gates", "budgets", "past_budgets", "questions"),
    ]
    champion = node["champion"]
    promoted_at = champion.pop("promoted_at")
    assert champion == {
        **CANDIDATE,
        "round_id": round_id,
        "task_id": task_id,
        "manifest": "e" * 64,
        "error": 0.1,
        "baseline_error": 0.5,
        "evidence_rate": 0.75,
        "below_baseline": True,
        "params": 0,
        "bytes": champion["bytes"],
    }
    assert node["rounds"] == [{"round_id": round_id, "status": "decided", "verdict": "promote"}]
    del champion["manifest"]
    ending = {"instead_of": None, "retired_at": None, "reason": ""}
    by = {"by": "judge", "choice": "", "because": ""}
    assert node["lineage"] == [champion | ending | by | {"promoted_at": promoted_at}]


async def test_rivals_are_shown_with_what_they_won_and_cost(stack: Stack) -> None:
    assert (await stack.get("/rivals")).json == {
        "status": "ok",
        "rivals": [],
        "total": [],
        "next": None,
    }
    _, round_id = await judged(stack)
    await decide(stack, round_id)
    told = (await stack.get("/rivals?node_id=opt-convex")).json
    both = {one["rival"]: one.copy() for one in told["rivals"]}
    seconds = both["reinventor"].pop("device_seconds")
    assert seconds > 0
    assert both["reinventor"] == {
        "node_id": "opt-convex",
        "rival": "reinventor",
        "rounds": 1,
        "won": 1,
        "lost": 0,
        "absent": 0,
        "error_factor": None,
        "priced_seconds": 0.0,
        "cost": None,
        "recent": {"rounds": 1.0, "won": 1.0, "replaced": 0.0, "gain": 0.0},
    }
    assert (both["evolver"]["absent"], both["evolver"]["device_seconds"]) == (1, seconds)
    assert told["total"] == [{**one, "node_id": None} for one in told["rivals"]]
    assert (await stack.get("/rivals?node_id=root-math")).json["rivals"] == []
    page = (await stack.get("/rivals?limit=1")).json
    following = (await stack.get(f"/rivals?limit=1&after={page['next']}")).json
    assert page["rivals"] + following["rivals"] == told["rivals"]
    assert (page["total"], following["next"]) == (told["total"], None)
    assert (await stack.get("/rivals?after=x")).status == 422
    reply = await stack.get("/rivals?node_id=nowhere")
    assert (reply.status, "there is no node nowhere" in words(reply)) == (404, True)


async def test_a_node_that_was_added_trains_what_its_ancestor_lends(stack: Stack) -> None:
    asked = {"parent_id": "stats-bayesian", "name": "فرع"}
    node_id = (await stack.post("/graph/expand", asked)).json["node"]["node_id"]
    node = (await stack.get(f"/nodes/{node_id}")).json["node"]
    assert node["workload"] == {
        "specialist": "stats-bayesian",
        "parameters": {},
        "inherited": True,
    }
    assert (node["champion"], node["rounds"], node["lineage"]) == (None, [], [])


# ── what is not durable ──


async def shown(stack: Stack, *paths: str) -> dict[str, tuple[int, bytes]]:
    """All but when a worker was last heard of, which no log need hold to be true."""
    replies = {path: await stack.get(path) for path in paths}
    return {
        path: (reply.status, re.sub(rb'"last_seen":"[^"]*"', b"", reply.body))
        for path, reply in replies.items()
    }


async def test_while_the_log_does_not_answer_every_read_shows_what_is_durable(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(reads, "SCANNED_AT_ONCE", 1)
    _, round_id = await judged(stack)
    held, queued = await stack.held("w"), await stack.enqueue()
    tasks = ("/tasks", "/tasks?limit=1", "/tasks?status=queued", "/tasks?status=cancelled")
    rounds = ("/rounds", "/rounds?status=decided", f"/rounds/{round_id}", "/nodes/opt-convex")
    rest = (f"/tasks/{queued}", "/workers", "/status", "/graph", "/log/state", "/log/refusals")
    before = await shown(stack, *tasks, *rounds, *rest)
    assert {status for status, _ in before.values()} == {200}
    async with stack.unanswered():
        told = await asyncio.gather(
            decide(stack, round_id),
            stack.post("/training/enqueue", {"topic": "t"}),
            stack.post("/graph/expand", {"parent_id": "root-math", "name": "n"}),
            stack.post("/workers/register", {"worker_id": "new", "hostname": "h"}),
            stack.post(f"/tasks/{queued}/cancel", {}),
            stack.post(f"/tasks/{held}/cancel", {}),
            return_exceptions=True,
        )
        assert isinstance(told[0], errors.LogUnavailable)
        assert {one.status for one in told[1:] if isinstance(one, Reply)} == {503}
        assert await shown(stack, *before) == before
    assert await pages(stack, "/rounds?status=decided", "rounds") == [[round_id]]
    assert await pages(stack, "/tasks?status=cancelled", "tasks") == [[held, queued]]


# ── the log ──


async def test_the_log_tells_the_hash_that_its_records_fold_to(stack: Stack) -> None:
    await stack.complete(await stack.held("w"), "w", metrics={"a": 1})
    told = (await stack.get("/log/state")).json["log"]
    replayed = State()
    await runtime.fold(stack.parts.log, replayed)
    assert told == {"last_seq": replayed.seq, "state_hash": replayed.hash()}


async def refusals(stack: Stack, count: int) -> list[Any]:
    """The refusals, once so many of them are stored."""
    while True:
        found = (await stack.get("/log/refusals")).json["refusals"]
        if len(found) >= count:
            return list(found)


async def test_who_completes_what_is_not_its_own_is_on_record(stack: Stack) -> None:
    assert (await stack.get("/log/refusals")).json == {
        "status": "ok",
        "refusals": [],
        "next": None,
    }
    task_id = await stack.held("w")
    await stack.complete(task_id, "لص")
    async with asyncio.timeout(10):
        (refused,) = await refusals(stack, 1)
    assert list(refused) == ["at", "subject", "worker_id", "reason"]
    assert (refused["subject"], refused["worker_id"]) == (f"task.{task_id}", "لص")
    assert "does not own" in refused["reason"]


async def test_a_refusal_that_the_stream_does_not_take_is_kept_until_it_does(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused, "RETRY_SECONDS", 0.05)
    api = stack.parts.connections.control.api
    config = (await api("STREAM.INFO.REFUSALS"))["config"]
    assert "error" not in await api("STREAM.UPDATE.REFUSALS", {**config, "max_msg_size": 1})
    task_id = await stack.held("w")
    assert (await stack.complete(task_id, "other")).status == 400
    await api("STREAM.UPDATE.REFUSALS", config)
    async with asyncio.timeout(10):
        (one,) = await refusals(stack, 1)
    assert one["subject"] == f"task.{task_id}"


async def test_refusals_come_in_pages(stack: Stack) -> None:
    task_id = await stack.enqueue()
    for number in range(3):
        await stack.complete(task_id, f"w{number}")
    async with asyncio.timeout(10):
        await refusals(stack, 3)
    first = (await stack.get("/log/refusals?limit=2")).json
    last = (await stack.get(f"/log/refusals?limit=2&after={first['next']}")).json
    shown = [one["worker_id"] for page in (first, last) for one in page["refusals"]]
    assert (shown, last["next"]) == (["w0", "w1", "w2"], None)
    assert (await stack.get("/log/refusals?after=x")).status == 422


# ── joining ──


class Joining:
    """An agent that made a key of its own and wants in."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        self.seed = bytes(seed).decode()
        self.public_key = nkeys.from_seed(seed).public_key.decode()

    async def ask(self, **asked: object) -> Reply:
        usual = {
            "worker_id": "عامل ١",
            "public_key": self.public_key,
            "protocol": wire.PROTOCOL,
            "capabilities": {"lane": "cpu-16"},
        }
        return await self._stack.post("/agents/join", {**usual, **asked})


@pytest.mark.parametrize("relayed", [True, False])
async def test_an_agent_joins_and_reaches_its_lane(stack: Stack, relayed: bool) -> None:
    joining = Joining(stack)
    agent = (await joining.ask()).json["agent"]
    assert (agent["worker_id"], agent["lanes"]) == ("عامل ١", ["cpu-16"])
    assert agent["nats"] == {"path": "/nats", "direct": stack.nats.url}
    relay = stack.origin.replace("http://", "ws://") + agent["nats"]["path"]
    bus = await Bus.connect(
        relay if relayed else agent["nats"]["direct"],
        credentials=(agent["jwt"], joining.seed),
        name=agent["token"],
        inbox_prefix=f"_INBOX_{agent['token']}",
    )
    try:
        pull = b'{"no_wait":true,"batch":1}'
        answer = await bus.ask("$JS.API.CONSUMER.MSG.NEXT.WORK.cpu-16", pull)
        assert answer.headers["Status"] == "404"
    finally:
        await bus.close()


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"protocol": wire.PROTOCOL + 1}, 409, "same version"),
        ({"public_key": "SUAX"}, 422, "public key"),
        ({"worker_id": "desk"}, 422, "choose another"),
        ({"capabilities": {"lane": "WORK.>"}}, 422, "WORK.>"),
        ({"capabilities": {"lane": "abacus-4"}}, 422, "cpu, cuda, mps"),
        ({"capabilities": {"lane": 5}}, 422, "lane"),
        ({"capabilities": {"lane": None}}, 422, "lane"),
    ],
)
async def test_an_agent_that_cannot_join_is_told_why_and_leaves_no_lane(
    stack: Stack, asked: dict[str, object], status: int, said: str
) -> None:
    reply = await Joining(stack).ask(**asked)
    assert (reply.status, said in words(reply)) == (status, True)
    listed = await stack.parts.connections.fleet.api("CONSUMER.NAMES.WORK")
    assert listed["consumers"] in (None, [])


async def test_agents_of_any_lane_share_the_few_there_are(stack: Stack) -> None:
    joined = await asyncio.gather(
        *(Joining(stack).ask(capabilities={"lane": f"cpu-{memory}"}) for memory in range(200))
    )
    named = {lane for reply in joined for lane in reply.json["agent"]["lanes"]}
    listed = await stack.parts.connections.fleet.api("CONSUMER.NAMES.WORK")
    assert named == set(listed["consumers"])
    assert named == {f"cpu-{memory}" for memory in lanes.MEMORY_BUCKETS_GB}


async def test_two_new_lanes_at_once_are_not_both_the_last_one(stack: Stack) -> None:
    tries = [stack.parts.ensure_lane(f"x-{number}") for number in range(topology.LANES_MAX + 8)]
    ended = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, errors.QuotaExceeded) for one in ended) == 8
    listed = await stack.parts.connections.fleet.api("CONSUMER.NAMES.WORK")
    assert len(listed["consumers"]) == topology.LANES_MAX


async def test_a_connection_is_known_by_its_credentials_and_not_by_what_it_calls_itself(
    stack: Stack,
) -> None:
    seen: list[tuple[str, str, int]] = []
    come_and_gone = asyncio.Event()

    def here(token: str, connection: int) -> None:
        seen.append(("here", token, connection))

    def gone(token: str, connection: int) -> None:
        seen.append(("gone", token, connection))
        come_and_gone.set()

    await control.watch_connections(stack.parts, gone, here)
    joining = Joining(stack)
    agent = (await joining.ask(worker_id="liar")).json["agent"]
    bus = await Bus.connect(
        stack.nats.url,
        credentials=(agent["jwt"], joining.seed),
        name="victim",
        inbox_prefix="_INBOX_liar",
    )
    await bus.close()
    async with asyncio.timeout(10):
        await come_and_gone.wait()
    number = seen[0][2]
    assert number > 0
    assert seen == [("here", "liar", number), ("gone", "liar", number)]


async def test_others_have_their_turn_while_a_large_state_is_hashed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "HASHED_AT_ONCE", 1)
    for number in range(2_000):
        registered = events.WorkerRegistered(worker_id=f"w{number}", hostname="h")
        stack.parts.door.state.workers.apply(1, 1, registered)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.ensure_future(others())
    await asyncio.sleep(0)
    before = turns
    answer = (await stack.get("/log/state")).json["log"]
    running.cancel()
    assert turns - before >= 2_000
    assert answer["state_hash"] == stack.parts.door.state.hash()


# ── health ──


async def test_a_healthy_gateway_says_so(stack: Stack) -> None:
    (await stack.ask("GET", "/healthz")).require(200, '{"status":"ok"}')
    (await stack.ask("GET", "/readyz")).require(200, '{"status":"ready"}')


async def test_without_nats_the_gateway_lives_but_is_not_ready(stack: Stack) -> None:
    stack.nats.server.stop()
    async with asyncio.timeout(10):
        while (reply := await stack.ask("GET", "/readyz")).status != 503:
            assert reply.json == {"status": "ready"}
    assert reply.json["status"] == "not ready"
    assert "CONTROL" in reply.json["reasons"][0]
    assert (await stack.ask("GET", "/healthz")).status == 200
    stack.nats.server.start()
    async with asyncio.timeout(10):
        while (await stack.ask("GET", "/readyz")).status != 200:
            pass
    assert await stack.enqueue()


async def test_the_document_names_every_route_that_is_served(stack: Stack) -> None:
    document = (await stack.ask("GET", "/openapi.json")).json
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method in operations:
            target = re.sub(r"\{\w+_id\}", "x", path)
            reply = await stack.ask(method.upper(), target)
            assert reply.status not in (405, 500)
            assert reply.body != b'{"detail":"Not Found"}'


async def test_the_page_of_all_routes_shows_each_that_the_document_names(stack: Stack) -> None:
    document = (await stack.ask("GET", "/openapi.json")).json
    page = await stack.ask("GET", "/docs")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert f'id="{operation["operationId"]}"'.encode() in page.body
