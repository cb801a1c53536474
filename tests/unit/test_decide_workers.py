"""Workers: registration and heartbeats over HTTP, sessions of agents, online and offline."""

from collections.abc import Callable

import msgspec
import pytest

from core import commands, errors, events
from core.decide import workers as rules
from core.projections.tasks import Task
from core.projections.workers import Worker
from tests.build import World


def row(world: World, worker_id: str = "w1") -> Worker:
    return world.state.workers.table.rows[worker_id]


def beat(world: World, worker_id: str = "w1", **more: object) -> list[events.EventData]:
    return world.do(commands.Heartbeat(worker_id=worker_id, **more))  # type: ignore[arg-type]


def hello(world: World, session: str, *holding: events.Token) -> list[events.EventData]:
    return world.do(
        commands.OpenSession(
            worker_id="a1",
            session=session,
            hostname="h",
            lane="cpu-16",
            protocol=1,
            holding=list(holding),
        )
    )


def holder() -> tuple[World, events.Token]:
    """An agent that holds a task under its first session."""
    world = World().seeded()
    world.agent("a1", session="s1")
    world.task()
    token = world.claim("a1")
    assert token is not None
    return world, token


def task(world: World, task_id: str = "t1") -> Task:
    found = world.state.tasks.table.rows[task_id]
    assert isinstance(found, Task)
    return found


def expire(world: World, token: events.Token) -> None:
    world.do(commands.ExpireClaim(token=token, reason="silence"))


# ── over HTTP ──


def test_registering_again_replaces_the_whole_record() -> None:
    world = World()
    world.do(commands.RegisterWorker(worker_id="w1", hostname="h1", capabilities=b'{"slots":2}'))
    beat(world, status="draining")
    world.http_worker()
    assert (row(world).status, row(world).hostname) == ("online", "host")
    assert bytes(row(world).capabilities) == b"{}"


def test_a_heartbeat_of_a_stranger_makes_it_known_under_its_own_name() -> None:
    world = World()
    beat(world, "عامل", status="busy", capabilities=b'{"a":1}')
    stranger = row(world, "عامل")
    assert (stranger.hostname, stranger.status, stranger.via) == ("عامل", "busy", "http")
    assert bytes(stranger.capabilities) == b'{"a":1}'


def test_only_a_heartbeat_that_changes_something_leaves_an_event() -> None:
    world = World()
    world.http_worker()
    assert beat(world) == []
    assert beat(world, capabilities=b"{}") == []
    assert len(beat(world, capabilities=b'{"a":1}')) == 1
    assert beat(world, capabilities=b'{"a":1}') == []
    assert beat(world) == []
    assert len(beat(world, status="draining")) == 1
    assert bytes(row(world).capabilities) == b'{"a":1}'


def test_the_id_of_an_agent_that_is_online_is_taken_and_that_of_one_away_is_free() -> None:
    world = World()
    world.agent("a1")
    with pytest.raises(errors.Conflict, match="choose another worker id"):
        world.http_worker("a1")
    with pytest.raises(errors.Conflict, match="choose another worker id"):
        beat(world, "a1")
    world.do(commands.MarkOffline(worker_id="a1", reason="r", session="session-a1"))
    beat(world, "a1")
    taken = row(world, "a1")
    assert (taken.via, taken.session, taken.status) == ("http", "", "online")
    with pytest.raises(errors.SupersededSession):
        rules.require_session(world.state, "a1", "session-a1")


def test_one_stranger_too_many_is_refused_however_it_comes_and_those_known_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rules.WORKERS_MAX == 100_000
    monkeypatch.setattr(rules, "WORKERS_MAX", 2)
    world = World()
    world.http_worker()
    world.agent("a1", session="s1")
    comings: tuple[Callable[[], object], ...] = (
        lambda: world.http_worker("w3"),
        lambda: beat(world, "w3"),
        lambda: world.agent("a3"),
    )
    for come in comings:
        with pytest.raises(errors.QuotaExceeded, match="2 workers are known"):
            come()
    world.http_worker()
    beat(world, status="busy")
    hello(world, "s2")
    assert len(world.state.workers.table) == 2


# ── sessions ──


def test_a_new_session_supersedes_the_old_one() -> None:
    world = World()
    world.agent("a1", session="s1")
    rules.require_session(world.state, "a1", "s1")
    hello(world, "s2")
    rules.require_session(world.state, "a1", "s2")
    for old in ("s1", ""):
        with pytest.raises(errors.SupersededSession, match="took over"):
            rules.require_session(world.state, "a1", old)
    with pytest.raises(errors.SupersededSession):
        rules.require_session(world.state, "nobody", "s1")


def test_a_claim_that_a_new_session_lists_goes_on_under_it() -> None:
    world, token = holder()
    assert [type(one) for one in hello(world, "s2", token)] == [
        events.SessionOpened,
        events.ClaimAdopted,
    ]
    claim = task(world).claims[-1]
    assert (claim.state, claim.session, claim.attempt) == ("open", "s2", 1)


def test_a_claim_that_a_new_session_does_not_list_is_released_without_a_strike() -> None:
    world, token = holder()
    other = msgspec.structs.replace(token, claim_id="of an earlier life")
    hello(world, "s2", other)
    assert (task(world).status, task(world).strikes) == ("queued", 0)
    assert "new session" in task(world).claims[-1].reason


def test_an_http_claim_under_the_same_id_is_left_to_its_lease() -> None:
    world = World().seeded()
    world.http_worker("a1")
    world.task()
    world.do(commands.ClaimTask(worker_id="a1", via="http", claim_id="c", lease_seconds=60))
    hello(world, "s1")
    assert task(world).status == "running"


def test_a_listed_claim_that_expired_goes_on_only_while_nobody_rivals_it() -> None:
    world, token = holder()
    expire(world, token)
    hello(world, "s2", token)
    assert (task(world).status, task(world).claims[-1].session) == ("running", "s2")
    expire(world, token)
    world.agent("a2")
    assert world.claim("a2") is not None
    hello(world, "s3", token)
    assert [claim.state for claim in task(world).claims] == ["expired", "open"]
    assert task(world).claims[-1].worker_id == "a2"


def test_a_hello_that_was_held_up_supersedes_no_later_one_of_its_process() -> None:
    world = World()

    def said(session: str, process: str, number: int) -> str:
        world.do(
            commands.OpenSession(
                worker_id="a1",
                session=session,
                hostname="h",
                lane="cpu-16",
                protocol=1,
                process=process,
                number=number,
            )
        )
        return row(world, "a1").session

    assert said("s2", "p", 2) == "s2"
    for number in (1, 2):
        with pytest.raises(errors.SupersededSession, match="after its hello 2"):
            said("late", "p", number)
    assert said("s3", "p", 3) == "s3"
    assert said("s4", "another", 1) == "s4"


def test_nobody_revives_the_claim_of_another() -> None:
    world, token = holder()
    expire(world, token)
    world.do(
        commands.OpenSession(
            worker_id="a2", session="t", hostname="h", lane="cpu-16", protocol=1, holding=[token]
        )
    )
    assert task(world).status == "queued"


def test_a_claim_listed_twice_or_beyond_the_bound_is_revived_once_or_not_at_all() -> None:
    world, token = holder()
    expire(world, token)
    others = [msgspec.structs.replace(token, task_id=f"x{n}") for n in range(rules.HOLDING_MAX)]
    assert len(hello(world, "s2", *others, token)) == 1
    assert len(hello(world, "s3", token, token)) == 2


# ── online and offline ──


def test_offline_and_online_are_said_once_and_of_the_session_they_were_seen_of() -> None:
    world = World()
    world.agent("a1", session="s2")
    offline = commands.MarkOffline(worker_id="a1", reason="silence", session="s2")
    assert world.do(msgspec.structs.replace(offline, session="s1")) == []
    assert len(world.do(offline)) == 1
    assert world.do(offline) == []
    assert (row(world, "a1").status, row(world, "a1").reason) == ("offline", "silence")
    online = commands.MarkOnline(worker_id="a1", session="s2")
    assert world.do(msgspec.structs.replace(online, session="s1")) == []
    assert len(world.do(online)) == 1
    assert world.do(online) == []
    assert (row(world, "a1").status, row(world, "a1").reason) == ("online", "")


def test_nothing_is_said_of_strangers() -> None:
    world = World()
    assert world.do(commands.MarkOffline(worker_id="x", reason="r")) == []
    assert world.do(commands.MarkOnline(worker_id="x")) == []


def test_a_worker_that_is_offline_gets_no_task() -> None:
    world, _ = holder()
    world.task("t2")
    world.do(commands.MarkOffline(worker_id="a1", reason="r", session="s1"))
    assert world.claim("a1") is None


# ── paused ──


def test_a_paused_worker_is_given_nothing_until_it_is_resumed() -> None:
    world = World().seeded()
    world.agent("a1")
    world.task()
    world.do(commands.PauseWorker(worker_id="a1", how="pause"))
    assert world.claim("a1") is None
    world.do(commands.ResumeWorker(worker_id="a1"))
    assert world.claim("a1") is not None


def test_a_pause_outlives_the_session_and_the_registration_it_came_in() -> None:
    world, _ = holder()
    world.http_worker()
    for worker_id in ("a1", "w1"):
        world.do(commands.PauseWorker(worker_id=worker_id, how="drain"))
    hello(world, "s2")
    world.http_worker()
    assert row(world, "a1").pause == row(world, "w1").pause == "drain"


def test_a_draining_worker_may_end_what_it_holds_and_be_paused_after_all() -> None:
    world, token = holder()
    assert world.do(commands.PauseWorker(worker_id="a1", how="drain")) != []
    assert world.do(commands.PauseWorker(worker_id="a1", how="drain")) == []
    world.do(
        commands.CompleteTask(
            task_id="t1", worker_id="a1", token=token, session="s1", metrics=b"{}"
        )
    )
    assert world.do(commands.PauseWorker(worker_id="a1", how="pause")) != []
    world.do(commands.ResumeWorker(worker_id="a1"))
    assert world.do(commands.ResumeWorker(worker_id="a1")) == []


@pytest.mark.parametrize(
    "command",
    [commands.PauseWorker(worker_id="x", how="pause"), commands.ResumeWorker(worker_id="x")],
)
def test_nobody_pauses_who_is_not_known(command: commands.PauseWorker) -> None:
    with pytest.raises(errors.NotFound):
        World().do(command)
