"""What `up` says of events: a short line that its reader understands without the log beside it."""

from typing import Any

import pytest

from core import commands, events
from core.events import CandidateVerdict, Reasons
from core.projections.state import State
from core.values import Budget, Gates, Recommendation
from gateway import narrator
from tests.build import World

REASONS = Reasons(en="Void: it cannot be measured. Restore it from a backup.", ar="لا حكم.")


def _last(world: World, kind: type) -> str:
    """The line of the newest event of a kind, without its time."""
    event = next(one for one in reversed(world.stored) if isinstance(one.data, kind))
    return narrator.narrate(event, world.state).partition("  ")[2]


@pytest.mark.parametrize(
    ("how", "holds", "words"),
    [
        ("pause", False, "a1 is given nothing more to do"),
        ("pause", True, "a1 is given nothing more to do, and gives back what it holds"),
        ("drain", True, "a1 is given nothing more to do"),
    ],
)
def test_a_pause_tells_what_its_worker_gives_back(how: str, holds: bool, words: str) -> None:
    world = World().seeded()
    world.agent("a1")
    if holds:
        world.task("t1")
        world.claim("a1")
    world.do(commands.PauseWorker(worker_id="a1", how=how))  # type: ignore[arg-type]
    assert _last(world, events.WorkerPaused) == words


def test_a_pause_of_a_worker_over_http_does_not_promise_what_it_does() -> None:
    world = World().seeded()
    world.http_worker("w1")
    world.task("t1", node_id="root-math")
    world.do(commands.ClaimTask(worker_id="w1", via="http", claim_id="h1", lease_seconds=60))
    world.do(commands.PauseWorker(worker_id="w1", how="pause"))
    assert _last(world, events.WorkerPaused) == "w1 is given nothing more to do"


def test_an_accepted_loss_is_told_by_the_stream_that_it_is_of() -> None:
    world = World()
    lost = "2 records are lost from CHUNKS, in 1.blk"
    world.do(commands.AcceptLoss(first=1_001, details=[lost]))
    assert _last(world, events.LossAccepted) == f"a loss was accepted: {lost}"


def test_lost_chunks_beyond_the_first_event_are_told_without_words() -> None:
    world = World()
    world.do(commands.AcceptLoss(first=1, details=["lost"], chunks=["0" * 64] * 1_000))
    told = [narrator.narrate(one, world.state) for one in world.stored]
    assert [one.partition("  ")[2] for one in told] == ["a loss was accepted: lost", "", ""]


def _decided(*candidates: CandidateVerdict, **more: Any) -> str:
    data = events.RoundDecided(
        round_id="r", verdict="keep", secret="", reasons=REASONS, candidates=[*candidates], **more
    )
    event = events.Event(1, 0, "e", "t", "c", "t", data)
    return narrator.narrate(event, State()).partition("  ")[2]


def _rejected(error: float | None, ratio: float | None, upper: float | None) -> CandidateVerdict:
    return CandidateVerdict(
        candidate_id="c",
        verdict="reject",
        reasons=REASONS,
        error=error,
        ratio=ratio,
        ratio_upper=upper,
    )


def test_a_result_that_comes_after_the_next_claim_is_told_as_delivered() -> None:
    world = World().seeded()
    session = world.agent("a1")
    world.task("t1", "opt-convex")
    token = world.claim("a1")
    assert token is not None
    assert _last(world, events.TaskClaimed) == "a1 trains opt-convex “topic” · 0 queued"
    world.do(
        commands.CompleteTask(
            task_id="t1", worker_id="a1", token=token, session=session, metrics=b"{}"
        )
    )
    assert _last(world, events.TaskCompleted) == "a1 delivered opt-convex"


def test_what_befalls_a_task_is_told_by_its_node() -> None:
    world = World().seeded()
    session = world.agent("a1")
    world.task("t1", "opt-convex")
    token = world.claim("a1")
    assert token is not None
    release = commands.ReleaseClaim(token=token, worker_id="a1", session=session, reason="asked to")
    world.do(release)
    assert _last(world, events.ClaimReleased) == "opt-convex “topic” was given back (asked to)"
    world.do(commands.CancelTask(task_id="t1"))
    assert _last(world, events.TaskCancelled) == "opt-convex “topic” was cancelled"


@pytest.mark.parametrize(("held", "more"), [(0, ""), (1, ""), (3, " and 2 more")])
def test_a_worker_that_goes_offline_is_told_with_what_becomes_of_its_tasks(
    held: int, more: str
) -> None:
    world = World().seeded()
    session = world.agent("a1")
    for number in range(held):
        world.task(f"t{number}", "opt-convex")
        assert world.claim("a1") is not None
    world.do(commands.MarkOffline(worker_id="a1", session=session, reason="it broke"))
    left = f"; opt-convex “topic”{more} stays its own until another takes over, or the lease ends"
    said = f"a1 is offline: it broke{left if held else ''}"
    assert _last(world, events.WorkerWentOffline) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            _decided(_rejected(0.004, 1.1, 1.2), champion_error=0.003, look=2),
            "keeps its champion · error 0.004 against 0.003, not surely better (look 2)",
        ),
        (
            _decided(_rejected(0.9, 0.98, 0.99), look=1),
            (
                "stays without a champion · error 0.9, not surely better than a trivial guess "
                "(look 1)"
            ),
        ),
        (
            _decided(_rejected(0.0, None, None), champion_error=0.0),
            "keeps its champion, which makes no error",
        ),
        (
            _decided(_rejected(0.0, 0.0, 3.3), champion_error=2e-5, look=3),
            "keeps its champion · error 0 against 2e-05, not surely better (look 3)",
        ),
        (_decided(), "stays as it is · Void: it cannot be measured"),
    ],
)
def test_a_verdict_that_changes_nothing_is_one_short_line(line: str, said: str) -> None:
    assert line == f"judge: r {said}"


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (b'{"loss":0.123456}', " · loss 0.1235"),
        (b'{"loss":2}', " · loss 2"),
        (b"{}", ""),
        (b'{"loss":null}', ""),
        (b'{"loss":"low"}', ""),
        (b'{"loss":1' + b"0" * 400 + b"}", ""),
    ],
)
def test_a_completion_over_http_names_its_node_and_its_loss(metrics: bytes, told: str) -> None:
    world = World().seeded()
    world.do(commands.RegisterWorker(worker_id="w", hostname="h"))
    world.task(node_id="opt-convex")
    world.do(commands.ClaimTask(worker_id="w", via="http", claim_id="c", lease_seconds=9.0))
    world.do(commands.CompleteTask(task_id="t1", worker_id="w", metrics=metrics))
    line = narrator.narrate(world.stored[-1], world.state)
    assert line.partition("  ")[2] == f"w delivered opt-convex{told}"


def _told(data: events.EventData) -> str:
    event = events.Event(1, 1, "i", "b", "c", "c", data)
    return narrator.narrate(event, World().seeded().state).partition("  ")[2]


def _champion() -> events.Champion:
    return events.Champion(
        node_id="n", candidate_id="cand-1", round_id="r", task_id="t", worker_id="a",
        rival="evolver", manifest="m", writer="a", weights_sha256="w",
        workload=events.Workload(specialist="root-math"), error=0.25, baseline_error=0.5,
        evidence_rate=1.0, below_baseline=False, params=1, bytes=1,
    )  # fmt: skip


def test_what_people_decide_about_champions_is_told_in_a_line_each() -> None:
    chosen = events.ChampionChosen(
        node_id="n", kind="promote", champion=_champion(), budget="fast", reason="why so"
    )
    assert _told(chosen) == "n: a person lets cand-1 reign for the budget fast · why so"
    back = events.ChampionChosen(node_id="n", kind="rollback", champion=_champion())
    assert _told(back) == "n: a person rolled back: cand-1 reigns again"
    promoted = events.ChampionPromoted(node_id="n", champion=_champion(), budget="fast")
    told = _told(promoted)
    assert told.startswith("judge: first champion of n for the budget fast · evolver")
    assert told.endswith("error 0.25, beats the baseline 0.5")
    worse = events.replace(_champion(), below_baseline=True)
    told = _told(events.ChampionPromoted(node_id="n", champion=worse))
    assert told.endswith("error 0.25, does not beat the baseline 0.5 yet")
    retired = events.ChampionRetired(node_id="n", candidate_id="c", reason="gone", budget="fast")
    assert _told(retired) == "n: its champion for the budget fast retired (gone)"
    gates = Gates(budgets=(Budget(name="fast", latency_max=2.0), Budget(name="b", bytes_max=1)))
    told = _told(events.GatesChanged(node_id="n", gates=gates))
    assert told == "n is judged by other gates from now on, for the budgets fast, b"
    assert "its ancestor's gates" in _told(events.GatesChanged(node_id="n"))


def test_a_round_that_asks_a_person_tells_them_how_to_answer() -> None:
    asks = Recommendation(
        action="ask", candidate_id="cand-1", reasons=Reasons(en="Slower, and better. More.", ar="أ")
    )
    decided = events.RoundDecided(
        round_id="r", verdict="trade-off", secret="", reasons=REASONS, candidates=[],
        recommendation=asks,
    )  # fmt: skip
    assert _told(decided) == (
        "judge: r, trade-off, asks you · Slower, and better · `aghsan champion promote r cand-1`"
    )
