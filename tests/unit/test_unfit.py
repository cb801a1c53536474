"""Workers that are no match for a task: they give it back, and it waits for one that is."""

import random
from collections.abc import Callable

import pytest

from core import commands, events
from core.decide import fitness
from core.events import Requires, Workload
from core.projections import queue
from core.projections.tasks import ATTEMPTS_MAX, Task
from core.projections.workers import UNFIT_MAX, UNFIT_SECONDS
from orchestrator import feeder
from tests import texts
from tests.build import SECOND, World

CORPUS = texts.packed().corpus
WHY = "this device has no base model tiny"


def give_back(world: World, worker_id: str, reason: str = WHY) -> str:
    """Let a worker claim a task and find that it is no match for it; the task."""
    token = world.claim(worker_id)
    assert token is not None
    session = world.state.workers.table.rows[worker_id].session
    command = commands.ReleaseClaim(
        token=token, worker_id=worker_id, session=session, reason=reason, unfit=True
    )
    world.do(command)
    return token.task_id


def task(world: World, task_id: str = "t1") -> Task:
    row = world.state.tasks.table.rows[task_id]
    assert isinstance(row, Task)
    return row


def why(world: World, task_id: str = "t1") -> list[str]:
    return fitness.why_it_waits(world.state, task(world, task_id), world.now)


def test_however_many_workers_are_unfit_for_a_task_it_waits_for_one_that_is_not() -> None:
    world = World().seeded()
    world.task()
    for number in range(2 * ATTEMPTS_MAX):
        world.agent(f"small{number}")
        give_back(world, f"small{number}")
    assert (task(world).status, task(world).strikes) == ("queued", 0)
    world.agent("large")
    assert world.claim("large") is not None


def test_of_a_task_that_lost_a_record_it_is_said_that_nobody_is_given_it() -> None:
    world = World().seeded()
    world.task()
    world.agent()
    world.state.close("ev.task.t1")
    assert "enqueue it anew" in why(world)[0]
    assert world.claim("a1") is None


def test_a_worker_that_was_unfit_for_a_task_is_given_the_next_and_never_this_one_again() -> None:
    world = World().seeded()
    world.agent()
    world.task("hard", "stats-bayesian")
    world.task("easy", "stats-time-series")
    assert give_back(world, "a1") == "hard"
    token = world.claim("a1")
    assert token is not None
    assert token.task_id == "easy"
    assert world.claim("a1") is None


def test_what_a_worker_is_unfit_for_it_is_unfit_for_in_every_task_of_the_kind() -> None:
    world = World().seeded()
    world.agent()
    for number in range(3):
        world.task(f"t{number}")
    world.task("other", method="lora")
    give_back(world, "a1")
    token = world.claim("a1")
    assert token is not None
    assert token.task_id == "other"


def test_an_agent_that_was_started_again_may_have_what_it_lacked() -> None:
    world = World().seeded()
    world.agent(session="before")
    world.task()
    give_back(world, "a1")
    world.agent(session="after")
    assert world.claim("a1") is not None


def test_what_a_worker_found_lapses_so_that_a_passing_want_bars_it_for_a_time() -> None:
    world = World().seeded()
    world.agent()
    world.task()
    give_back(world, "a1")
    found_at = world.now
    world.later(UNFIT_SECONDS - 1)
    assert world.claim("a1") is None
    assert fitness.stuck_nodes(world.state, world.now) == {"stats-bayesian"}
    world.now = found_at + UNFIT_SECONDS * SECOND
    assert fitness.stuck_nodes(world.state, world.now) == set()
    assert why(world) == []
    give_back(world, "a1")
    assert world.claim("a1") is None


def test_a_node_that_trains_something_else_by_now_is_offered_anew() -> None:
    world = World().seeded()
    world.agent()
    world.task("before")
    world.task("like it")
    give_back(world, "a1")
    changed = events.WorkloadChanged(
        node_id="stats-bayesian", workload=Workload(specialist="stats-time-series")
    )
    world.state.graph.workload_changed(1, 1, changed)
    assert fitness.stuck_nodes(world.state, world.now) == set()
    world.task("after")
    token = world.claim("a1")
    assert token is not None
    assert token.task_id == "after"


def test_what_is_remembered_of_a_worker_is_bounded() -> None:
    world = World().seeded()
    world.agent()
    for number in range(UNFIT_MAX + 3):
        world.task(f"t{number}", method=f"m{number}")
        give_back(world, "a1")
    marks = world.state.workers.table.rows["a1"].unfit
    assert len({mark.kind.method for mark in marks}) == len(marks) == UNFIT_MAX


def test_a_task_for_which_every_worker_online_is_unfit_says_why_it_waits() -> None:
    world = World().seeded()
    world.agent("a1")
    world.agent("a2", lane="cuda-80")
    world.task(requires=Requires(device="cpu"))
    assert why(world) == []
    give_back(world, "a1")
    assert why(world) == [
        "no worker online can be given it",
        f"a1: {WHY}",
        "a2: its lane cuda-80 is not what the task requires",
    ]
    world.agent("a3")
    assert why(world) == []


def test_a_task_that_nobody_can_take_since_nobody_is_there_says_how_to_attach_a_worker() -> None:
    world = World().seeded()
    world.task()
    assert why(world) == ["no worker is online; start one with `aghsan agent`"]
    world.agent()
    assert why(world) == []


def test_of_a_task_whose_node_trains_something_else_now_it_is_said_that_it_is_in_vain() -> None:
    world = World().seeded()
    world.agent()
    world.task(node_id="opt-convex")
    assert why(world) == []
    world.do(commands.BindCorpus(node_id="opt-convex", corpus=CORPUS))
    assert why(world) == [fitness.OUTDATED]
    world.do(commands.BindCorpus(node_id="opt-convex", corpus=None))
    assert why(world) == []


def test_among_many_workers_only_a_few_are_told_of() -> None:
    world = World().seeded()
    world.task()
    for number in range(fitness.TOLD_MAX + 5):
        world.agent(f"a{number}")
        give_back(world, f"a{number}")
    assert len(why(world)) == fitness.TOLD_MAX + 2
    assert why(world)[-1] == "and 5 more"


def test_a_feeder_feeds_on_what_somebody_can_train() -> None:
    world = World().seeded()
    world.agent()
    world.task()
    give_back(world, "a1")
    fleet = feeder.survey(world.state, world.now)
    assert fleet.queued == 0
    assert "stats-bayesian" not in {node.node_id for node in fleet.nodes}
    world.agent("a2")
    fleet = feeder.survey(world.state, world.now)
    assert fleet.queued == 1
    assert "stats-bayesian" in {node.node_id for node in fleet.nodes}


@pytest.mark.parametrize("role", ["dual", "evolver", "reinventor"])
def test_what_nobody_can_train_is_not_ordered_whichever_rival_it_was_asked_for(role: str) -> None:
    world = World().seeded()
    world.agent()
    world.task(role=role)
    give_back(world, "a1")
    assert fitness.stuck_nodes(world.state, world.now) == {"stats-bayesian"}


def test_a_worker_that_is_given_nothing_counts_for_none_that_could_train_a_task() -> None:
    world = World().seeded()
    world.agent("a1")
    world.agent("a2")
    world.do(commands.PauseWorker(worker_id="a2", how="drain"))
    world.do(commands.RegisterWorker(worker_id="w1", hostname="host"))
    world.task()
    give_back(world, "a1")
    assert fitness.stuck_nodes(world.state, world.now) == {"stats-bayesian"}
    assert world.do(commands.ClaimTask(worker_id="w1", via="http", claim_id="c", lease_seconds=60))
    assert fitness.stuck_nodes(world.state, world.now) == set()


def test_tasks_that_run_are_not_taken_for_queued_ones_that_nobody_can_train() -> None:
    world = World().seeded()
    world.agent("a2")
    world.task("runs")
    assert world.claim("a2") is not None
    world.agent("a1")
    world.task("waits")
    world.task("easy", "stats-time-series")
    give_back(world, "a1")
    world.do(commands.PauseWorker(worker_id="a2", how="drain"))
    assert feeder.survey(world.state, world.now).queued == 1


def test_however_many_tasks_of_a_kind_stand_before_one_its_kind_is_asked_about_once() -> None:
    found = queue.Queue()
    for number in range(100):
        found.add(f"t{number}", Requires(), False, b"hard", number, number)
    found.add("t100", Requires(), False, b"easy", 100, 100)
    asked: list[str] = []

    def skip(task_id: str) -> bool:
        asked.append(task_id)
        return task_id != "t100"

    for _ in range(2):
        assert found.best(lambda *_: True, lambda one: int(one[1:]), skip) == "t100"
        assert asked == ["t0", "t100"]
        asked.clear()
    assert found.best(lambda *_: True, lambda one: int(one[1:])) == "t0"


@pytest.mark.parametrize("seed", range(50))
def test_a_queue_gives_out_by_priority_and_age_whatever_lots_its_tasks_are_of(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_GARBAGE_MIN", 4)
    rng, found = random.Random(seed), queue.Queue()
    queued: dict[str, tuple[int, int, str]] = {}

    def ticket_of(task_id: str) -> int:
        return queued[task_id][1] if task_id in queued else -1

    for ticket in range(150):
        task_id = f"t{rng.randrange(30)}"
        if task_id in queued:
            del queued[task_id]
            found.removed(Requires(), False)
            found.compact(ticket_of)
        else:
            queued[task_id] = (rng.randrange(9), ticket, task_id)
            found.add(task_id, Requires(), False, _lot(task_id), *queued[task_id][:2])
        barred = {_lot(f"t{rng.randrange(30)}") for _ in range(rng.randrange(4))}
        left = [entry for entry in queued.values() if _lot(entry[2]) not in barred]
        best = found.best(lambda *_: True, ticket_of, _is_in(barred))
        assert best == (min(left)[2] if left else None)


def _lot(task_id: str) -> bytes:
    return task_id[-1].encode()


def _is_in(barred: set[bytes]) -> Callable[[str], bool]:
    return lambda task_id: _lot(task_id) in barred
