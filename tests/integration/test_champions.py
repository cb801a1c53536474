"""Gates, budgets and people's choices on a real server, over HTTP and by `aghsan`."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import main
from core import audit, commands, events
from core.log import Record
from core.projections.rounds import Round
from core.values import BudgetVerdict, Check, Latency, Recommendation, Weighed
from tests.integration.gateway_stack import Reply, Stack, started

NODE = "opt-convex"
WORKER = "a"
SECRETS = [bytes([number]) * 32 for number in range(6)]
TRADE = events.Reasons(ar="أدق وأبطأ", en="Lower error, and slower.")


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with started(tmp_path) as one:
        commitments = [hashlib.sha256(secret).hexdigest() for secret in SECRETS]
        await one.do(commands.DepositCommitments(judge="j", first=0, commitments=commitments))
        await one.do(
            commands.OpenSession(
                worker_id=WORKER, session="s", hostname="h", lane="cpu-16", protocol=1
            )
        )
        yield one


def weighed(candidate_id: str, latency: float | None) -> Weighed:
    timed = latency and Latency(
        ratio=latency, lower=latency - 0.1, upper=latency + 0.1, p50_ms=1.0, p95_ms=2.0,
        reference_ms=0.5, spread=0.05, against=1.2, against_lower=1.1, against_upper=1.3,
    )  # fmt: skip
    return Weighed(
        candidate_id=candidate_id,
        error=0.1,
        evidence_rate=0.9,
        params=3,
        bytes=5,
        memory_bytes=2_000_000,
        latency=timed or None,
        shifted_error=0.4,
        is_front=True,
    )


async def a_round(stack: Stack, number: int, verdict: str, latency: float | None = 2.5) -> str:
    """A round of one reinventor, decided so: its candidate is `cand-<number>`."""
    name = f"cand-{number}"
    task_id = await stack.enqueue(f"موضوع {number}", node_id=NODE)
    await stack.do(
        commands.ClaimTask(
            worker_id=WORKER, via="nats", claim_id=f"c{number}", lease_seconds=60.0, session="s"
        )
    )
    model = events.Candidate(
        candidate_id=name,
        rival="reinventor",
        manifest=f"{number}" * 64,
        writer=WORKER,
        weights_sha256=f"{number}" * 64,
        bytes=5,
        method="scratch",
        method_reason="why so",
    )
    token = events.Token(task_id=task_id, attempt=1, claim_id=f"c{number}")
    await stack.do(
        commands.CompleteTask(
            task_id=task_id, worker_id=WORKER, token=token, session="s", candidates=[model]
        )
    )
    (round_id,) = await stack.parts.door.read(lambda state: list(state.rounds.undecided))
    await stack.do(commands.StartJudging(round_id=round_id, judge="j"))
    row = await stack.parts.door.read(lambda state: state.rounds.table.rows[round_id])
    assert isinstance(row, Round)
    refused = verdict == "refused"
    said = events.CandidateVerdict(
        candidate_id=name,
        verdict={"promote": "better", "keep": "reject"}.get(verdict, verdict),
        reasons=TRADE,
        error=None if refused else number / 10,
        evidence_rate=None if refused else 0.75,
        params=3,
        bytes=5,
        gates=() if refused else (
            Check(name="latency", verdict="fail", value=1.2, bound=1.1, lower=1.1, upper=1.3),
        ),
    )  # fmt: skip
    champion = row.champion
    asks = Recommendation(action="ask", reasons=TRADE, candidate_id=name)
    await stack.do(
        commands.DecideRound(
            round_id=round_id,
            judge="j",
            verdict="keep" if refused else verdict,
            secret=SECRETS[row.index].hex(),
            reasons=TRADE,
            candidates=[said],
            promoted=name if verdict == "promote" else "",
            against=champion.candidate_id if champion else "",
            alpha=0.03,
            cases=4096,
            champion_error=0.5,
            baseline_error=0.35,
            weighed=(weighed(name, latency),),
            recommendation=asks if verdict == "keep" else None,
            budgets=(BudgetVerdict(budget="fast", reasons=TRADE),) if row.budgets else (),
        )
    )
    return round_id


async def aghsan(stack: Stack, *words: str) -> Result:
    asked = [*words, "--api", stack.origin]
    return await asyncio.to_thread(CliRunner().invoke, main.aghsan, asked)


async def told(stack: Stack, *words: str) -> Any:
    """What `aghsan ... --json` prints."""
    result = await aghsan(stack, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def node(stack: Stack) -> Any:
    return (await stack.get(f"/nodes/{NODE}")).json["node"]


def words(reply: Reply) -> str:
    return str(reply.json["detail"])


async def audited(stack: Stack) -> list[str]:
    """What an audit of the whole log says of champions."""
    log = stack.parts.log
    records: list[Record] = []
    async for part in log.read_stored(1, await log.last_seq()):
        records += [Record(one.seq, one.subject, one.data) for one in part]
    return [f"{one.rule}: {one.detail}" for one in audit.check(records)]


async def test_gates_are_shown_set_inherited_and_given_up(stack: Stack) -> None:
    shown = await told(stack, "gates", NODE)
    assert (shown["inherited"], shown["margin"], shown["budgets"]) == (True, 1.02, [])
    changed = await told(
        stack, "gates", "math-optimization", "--set", "margin=1.05", "--set", "exchange=0",
        "--budget", "سريع:latency=2.0,bytes=1MB", "--budget", "small:bytes=2KiB",
    )  # fmt: skip
    assert (changed["inherited"], changed["margin"], changed["exchange"]) == (False, 1.05, 0.0)
    assert changed["budgets"] == [
        {"name": "سريع", "latency_max": 2.0, "bytes_max": 1_000_000},
        {"name": "small", "latency_max": None, "bytes_max": 2_048},
    ]
    lent = await node(stack)
    assert lent["gates"] == {**changed, "inherited": True}
    assert [one["name"] for one in lent["budgets"]] == ["سريع", "small"]
    assert lent["budgets"][0]["champion"] is None
    result = await aghsan(stack, "gates", NODE)
    for part in ("latency_ratio", "1.1", "margin", "1.05", "1.02", "سريع", "≤ 2,048"):
        assert part in result.stdout
    assert "no gates of its own" in result.stderr
    left = await told(stack, "gates", "math-optimization", "--no-budget", "small")
    assert [one["name"] for one in left["budgets"]] == ["سريع"]
    assert (await told(stack, "gates", "math-optimization", "--reset"))["inherited"] is True
    assert (await node(stack))["budgets"] == []


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (["--set", "latency_ration=1"], 2, "did you mean latency_ratio?"),
        (["--set", "margin=9"], 2, "margin is from 1 to 1.5, not 9"),
        (["--set", "margin"], 2, "is not NAME=NUMBER"),
        (["--budget", "fast"], 2, "is not NAME:latency=2.0"),
        (["--budget", "fast:speed=1"], 2, "bounds nothing"),
        (["--budget", "fast:bytes=many"], 2, "is no size"),
        (["--budget", "fast:latency="], 2, "is no number of times"),
        (["--budget", "fast:latency=2,latency=3x"], 2, "latency is given twice"),
        (["--budget", "fast:latency=nan"], 2, "no finite number"),
        (["--no-budget", "fast"], 4, "none is stated here"),
    ],
)
async def test_what_is_no_gate_is_refused_in_words(
    stack: Stack, asked: list[str], code: int, said: str
) -> None:
    result = await aghsan(stack, "gates", NODE, *asked)
    assert (result.exit_code, said in result.output) == (code, True), result.output


async def test_a_person_promotes_what_a_judge_measured_and_rolls_back(stack: Stack) -> None:
    await a_round(stack, 1, "promote")
    traded = await a_round(stack, 2, "keep")
    (waits,) = (await told(stack, "champion", "show", NODE))["waits"]
    assert (waits["round_id"], waits["candidate_id"], waits["bytes"]) == (traded, "cand-2", 5)
    assert (await node(stack))["questions"] == [waits]
    asking = {"nodes": [{"node_id": NODE, "questions": [waits]}], "total": 1, "next": None}
    assert (await stack.get("/questions")).json == {"status": "ok", **asking}
    after = (await stack.get(f"/questions?after={NODE}")).json
    assert (after["nodes"], after["total"]) == ([], 1)
    status = await aghsan(stack, "status")
    assert f"1 decision waits for you: {NODE}" in status.stdout
    shown = await aghsan(stack, "champion", "show", NODE)
    assert ("asks you" in shown.stdout, TRADE.ar in shown.stdout) == (True, True)
    chosen = await told(stack, "champion", "promote", NODE, "cand-2", "--reason", "it reads better")
    champion = (await node(stack))["champion"]
    before = chosen.pop("instead_of")
    assert (before["candidate_id"], before["error"]) == ("cand-1", 0.1)
    assert chosen == {"node_id": NODE, "budget": "", "champion": champion}
    assert (champion["error"], champion["baseline_error"], champion["below_baseline"]) == (
        0.2, 0.35, False
    )  # fmt: skip
    assert (await told(stack, "champion", "show", NODE))["waits"] == []
    assert (await stack.get("/questions")).json["total"] == 0
    again = await aghsan(stack, "champion", "promote", NODE, "cand-2")
    assert (again.exit_code, "cand-2 reigns over" in again.stdout) == (0, True)
    assert "cand-2 errs more than cand-1: 0.2 > 0.1" in again.stdout
    back = await told(stack, "champion", "rollback", NODE)
    assert back["champion"]["candidate_id"] == "cand-1"
    first = await aghsan(stack, "champion", "rollback", NODE)
    assert (first.exit_code, "before the champion of now" in first.output) == (5, True)
    await told(stack, "champion", "rollback", NODE, "--to", "cand-2")
    lineage = (await told(stack, "champion", "history", NODE))["lineage"]
    assert [(one["candidate_id"], one["by"], one["choice"], one["because"]) for one in lineage] == [
        ("cand-1", "judge", "", ""),
        ("cand-2", "person", "promote", "it reads better"),
        ("cand-1", "person", "rollback", ""),
        ("cand-2", "person", "rollback", ""),
    ]
    table = (await aghsan(stack, "champion", "history", NODE)).stdout
    assert ("person, promote" in table, "it reads better" in table) == (True, True)
    assert await audited(stack) == []


async def test_what_no_judge_measured_never_reigns(stack: Stack) -> None:
    await a_round(stack, 1, "promote")
    await a_round(stack, 2, "refused")
    path = f"/nodes/{NODE}/champion"
    reply = await stack.post(f"{path}/promote", {"candidate_id": "cand-2"})
    assert (reply.status, "was not measured" in words(reply)) == (409, True)
    reply = await stack.post(f"{path}/promote", {"candidate_id": "cand-9"})
    assert (reply.status, "newest 2 rounds" in words(reply)) == (404, True)
    reply = await stack.post(f"{path}/rollback", {"to": "cand-2"})
    assert (reply.status, "never reigned" in words(reply)) == (404, True)
    for kind, body in (("promote", {"candidate_id": "cand-1"}), ("rollback", {})):
        reply = await stack.post(f"/nodes/nowhere/champion/{kind}", body)
        assert (reply.status, words(reply)) == (404, "there is no node nowhere")
    elsewhere = {"candidate_id": "cand-1", "round_id": "round-x"}
    assert (await stack.post(f"{path}/promote", elsewhere)).status == 404
    assert (await node(stack))["champion"]["candidate_id"] == "cand-1"


async def test_a_choice_repeated_under_its_key_is_made_once(stack: Stack) -> None:
    for number in (1, 2, 3):
        await a_round(stack, number, "promote")
    path = f"/nodes/{NODE}/champion/rollback"
    first = await stack.post(path, {}, Idempotency_Key="k")
    assert first.json["chosen"]["champion"]["candidate_id"] == "cand-2"
    assert (await stack.post(path, {}, Idempotency_Key="k")).json == first.json
    assert (await node(stack))["champion"]["candidate_id"] == "cand-2"
    other = await stack.post(path, {"to": "cand-3"}, Idempotency_Key="k")
    assert (other.status, "used for another request" in words(other)) == (409, True)
    await stack.post(path, {}, Idempotency_Key="another")
    assert (await node(stack))["champion"]["candidate_id"] == "cand-1"
    at_once = [stack.post(path, {"to": "cand-3"}, Idempotency_Key="both") for _ in range(4)]
    assert {reply.status for reply in await asyncio.gather(*at_once)} <= {200, 409}
    assert (await node(stack))["champion"]["candidate_id"] == "cand-3"
    assert len((await node(stack))["lineage"]) == 6


async def test_a_budget_has_its_own_champion_which_keeps_what_that_allows(stack: Stack) -> None:
    await a_round(stack, 1, "promote", latency=3.0)
    await a_round(stack, 2, "keep", latency=1.5)
    await a_round(stack, 3, "keep", latency=None)
    await told(stack, "gates", NODE, "--budget", "fast:latency=2", "--budget", "tiny:bytes=4B")
    for candidate, budget, code, said in (
        ("cand-1", "fast", 5, "takes 3 times as long"),
        ("cand-3", "fast", 5, "was not measured"),
        ("cand-2", "tiny", 5, "takes 5 bytes, more than the 4"),
        ("cand-2", "fats", 4, "did you mean fast?"),
    ):
        result = await aghsan(stack, "champion", "promote", NODE, candidate, "--budget", budget)
        assert (result.exit_code, said in result.output) == (code, True), result.output
    await told(stack, "champion", "promote", NODE, "cand-2", "--budget", "fast")
    assert (await node(stack))["champion"]["candidate_id"] == "cand-1"
    shown = await told(stack, "champion", "show", NODE, "--budget", "fast")
    assert shown["candidate_id"] == "cand-2"
    own = await told(stack, "champion", "show", NODE)
    assert [one["champion"] and one["champion"]["candidate_id"] for one in own["budgets"]] == [
        "cand-2", None
    ]  # fmt: skip
    (reign,) = (await told(stack, "champion", "history", NODE, "--budget", "fast"))["lineage"]
    assert reign["by"] == "person"
    empty = await aghsan(stack, "champion", "show", NODE, "--budget", "tiny")
    assert (empty.exit_code, "no champion for the budget" in empty.output) == (4, True)
    retired = await aghsan(stack, "gates", NODE, "--budget", "fast:latency=1")
    assert retired.stderr.startswith(f"cand-2 reigns for the budget fast of {NODE} no longer\n"), (
        retired.stderr
    )
    reply = await stack.post(f"/nodes/{NODE}/gates", {"drop": ["fast"]})
    assert reply.json["retired"] == []
    (ended,) = (await told(stack, "champion", "history", NODE, "--budget", "fast"))["lineage"]
    assert (ended["candidate_id"], ended["retired_at"] is not None) == ("cand-2", True)
    gone = await aghsan(stack, "champion", "history", NODE, "--budget", "fats")
    assert (gone.exit_code, "there are tiny" in gone.output) == (4, True)
    assert await audited(stack) == []


async def test_a_round_is_shown_with_all_that_was_weighed(stack: Stack) -> None:
    await told(stack, "gates", NODE, "--budget", "fast:latency=2")
    await a_round(stack, 1, "promote")
    round_id = await a_round(stack, 2, "keep")
    one = await told(stack, "round", "show", round_id)
    assert one["recommendation"] == {
        "action": "ask",
        "candidate_id": "cand-2",
        "reasons": {"ar": TRADE.ar, "en": TRADE.en},
    }
    (scales,) = one["weighed"]
    assert (scales["latency"]["ratio"], scales["is_front"], scales["shifted_error"]) == (
        2.5, True, 0.4
    )  # fmt: skip
    (candidate,) = one["candidates"]
    (check,) = candidate["gates"]
    assert (check["name"], check["verdict"], check["value"]) == ("latency", "fail", 1.2)
    assert [one["budget"] for one in one["budgets"]] == ["fast"]
    assert (one["champion"]["candidate_id"], one["gates"]["budgets"][0]["name"]) == (
        "cand-1", "fast"
    )  # fmt: skip
    shown = (await aghsan(stack, "round", "show", round_id)).stdout
    for part in (
        "cand-2", "2.5 ×", "2.4 to 2.6", "latency", "fail", "ask cand-2", TRADE.ar, TRADE.en,
        "budget fast", "1,953 KiB", "both rivals are in", "reinventor admitted", "4,096",
    ):  # fmt: skip
        assert part in shown, part


async def test_every_candidate_is_told_from_its_topic_to_its_bytes(stack: Stack) -> None:
    rounds = [
        await a_round(stack, number, verdict)
        for number, verdict in enumerate(("promote", "refused", "keep"), 1)
    ]
    whole = await told(stack, "champion", "lineage", NODE)
    assert [one["candidate_id"] for one in whole["candidates"]] == ["cand-3", "cand-2", "cand-1"]
    first, second = whole["candidates"][2], whole["candidates"][1]
    assert (first["topic"], first["verdict"], first["reigns"]) == ("موضوع 1", "better", [""])
    assert (second["verdict"], second["error"], second["reigns"]) == ("refused", None, [])
    assert [one["worker_id"] for one in first["attempts"]] == [WORKER]
    assert (first["round_id"], first["weights_sha256"], first["bytes"]) == (rounds[0], "1" * 64, 5)
    assert second["base"] is None  # a reinventor starts from nothing
    page = await told(stack, "champion", "lineage", NODE, "--limit", "2")
    following = await told(stack, "champion", "lineage", NODE, "--after", page["next"])
    assert page["candidates"] + following["candidates"] == whole["candidates"]
    assert (page["next"], following["next"]) == (rounds[1], None)
    (alone,) = (await told(stack, "champion", "lineage", NODE, "cand-2"))["candidates"]
    assert alone == second
    shown = (await aghsan(stack, "champion", "lineage", NODE, "cand-2")).stdout
    for part in ("موضوع 2", "refused", TRADE.ar, "scratch · why so", "2" * 64, rounds[1]):
        assert part in shown, part
    table = (await aghsan(stack, "champion", "lineage", NODE)).stdout
    assert ("cand-3" in table, "the node" in table) == (True, True)
    missing = await aghsan(stack, "champion", "lineage", NODE, "cand-9")
    assert missing.exit_code == main.EXIT_NOT_FOUND
    assert (await stack.get(f"/nodes/{NODE}/candidates?after=x")).status == 422
    assert (await stack.get("/nodes/nowhere/candidates")).status == 404
