"""Who is suspected, who keeps a task, and when nobody is."""

import asyncio

import msgspec
import pytest

from core import commands, events, runtime
from core.log_memory import MemoryLog
from core.presence import Presence
from core.projections.tasks import Task, token_of
from core.wire import TaskBeat
from orchestrator import liveness
from orchestrator.liveness import Grace, Limits
from tests.build import SECOND, World

LIMITS = Limits()
BEAT = TaskBeat(task_id="t1", attempt=1)


def _running() -> tuple[World, Presence]:
    world = World().seeded()
    session = world.agent("a1")
    world.task()
    assert world.claim("a1") is not None
    presence = Presence(world.now)
    presence.beat("a1", world.now, session, 0, [])
    return world, presence


def _plan(
    world: World, presence: Presence, *, waits: bool, grace: Grace | None = None
) -> list[liveness.Command]:
    return [
        command
        for part in liveness.slices(world.state, presence.take_heard(), 3)
        for command in liveness.plan(
            world.state,
            presence,
            world.now,
            LIMITS,
            watched=part,
            grace=grace or Grace(),
            someone_waits=lambda task: waits,
        )
    ]


def _expired(planned: list[liveness.Command]) -> list[commands.ExpireClaim]:
    return [command for command in planned if isinstance(command, commands.ExpireClaim)]


def test_a_beating_agent_keeps_its_task() -> None:
    world, presence = _running()
    world.later(100)
    presence.beat("a1", world.now, "session-a1", 0, [BEAT])
    assert _plan(world, presence, waits=True) == []


def test_a_silent_agent_loses_its_task_after_ten_seconds_when_another_waits() -> None:
    world, presence = _running()
    world.later(9)
    assert _expired(_plan(world, presence, waits=True)) == []
    world.later(2)
    assert [c.token.task_id for c in _expired(_plan(world, presence, waits=True))] == ["t1"]


@pytest.mark.parametrize("closed", ["ev.task.t1", "ev.worker.a1"])
def test_nothing_is_asked_for_what_nothing_can_be_written_on(closed: str) -> None:
    world, presence = _running()
    world.state.close(closed)
    world.later(100)
    planned = [getattr(command, "worker_id", "") for command in _plan(world, presence, waits=True)]
    assert planned == ([""] if closed == "ev.worker.a1" else ["a1"])


def test_with_nobody_waiting_the_lease_runs() -> None:
    world, presence = _running()
    world.later(59)
    assert _expired(_plan(world, presence, waits=False)) == []
    world.later(2)
    assert len(_expired(_plan(world, presence, waits=False))) == 1


def test_a_broken_connection_counts_after_two_seconds() -> None:
    world, presence = _running()
    presence.lost("a1", world.now)
    world.later(1.9)
    assert _expired(_plan(world, presence, waits=True)) == []
    world.later(0.2)
    assert len(_expired(_plan(world, presence, waits=True))) == 1


def test_nobody_is_suspected_in_a_time_of_grace() -> None:
    world, presence = _running()
    world.later(120)
    grace = Grace()
    grace.begin(world.now, 1)
    assert _plan(world, presence, waits=True, grace=grace) == []


def test_a_worker_heard_of_and_then_lost_in_a_time_of_grace_is_suspected_like_any_other() -> None:
    world, presence = _running()
    grace = Grace()
    grace.begin(world.now, 60)
    world.later(1)
    presence.beat("a1", world.now, "session-a1", 0, [BEAT])
    presence.lost("a1", world.now)
    world.later(2.1)
    assert len(_expired(_plan(world, presence, waits=True, grace=grace))) == 1


def test_a_claim_its_worker_never_speaks_of_ends_with_its_lease() -> None:
    world, presence = _running()
    world.later(59)
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert _expired(_plan(world, presence, waits=True)) == []
    world.later(2)
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert "spoke of it" in _expired(_plan(world, presence, waits=True))[0].reason


def test_a_claim_not_spoken_of_since_our_clock_was_set_has_its_whole_lease_anew() -> None:
    world, presence = _running()
    world.later(600)  # in no time at all
    grace = Grace()
    grace.begin(world.now, 60)
    world.later(1)
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert _plan(world, presence, waits=True, grace=grace) == []
    world.later(58)
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert _plan(world, presence, waits=True, grace=grace) == []
    world.later(2)
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert len(_expired(_plan(world, presence, waits=True, grace=grace))) == 1


def test_an_agent_that_asks_for_a_claim_as_its_own_has_its_whole_lease_anew() -> None:
    world, presence = _running()
    task = world.state.tasks.table.rows["t1"]
    assert isinstance(task, Task)
    token = token_of(task)
    world.later(61)
    presence.beat("a1", world.now, "session-a1", 0, [])
    presence.speaks_of("a1", world.now, [token])
    assert _plan(world, presence, waits=True) == []
    presence.speaks_of("a1", world.now + 40 * SECOND, [msgspec.structs.replace(token, attempt=9)])
    world.later(61)
    assert len(_expired(_plan(world, presence, waits=False))) == 1


def test_asking_for_a_claim_ends_no_time_of_grace() -> None:
    world, presence = _running()
    task = world.state.tasks.table.rows["t1"]
    assert isinstance(task, Task)
    presence.lost("a1", world.now)
    grace = Grace()
    grace.begin(world.now, 60)
    world.later(5)
    presence.speaks_of("a1", world.now, [token_of(task)])
    assert _plan(world, presence, waits=True, grace=grace) == []


def test_an_http_worker_is_not_offline_for_a_clock_that_was_set() -> None:
    world = World().seeded()
    world.do(commands.RegisterWorker(worker_id="w", hostname="h", capabilities=b"{}"))
    presence = Presence(world.now)
    world.later(600)
    grace = Grace()
    grace.begin(world.now, 60)
    assert _plan(world, presence, waits=False, grace=grace) == []
    world.later(LIMITS.worker_timeout + 1)
    (gone,) = _plan(world, presence, waits=False, grace=grace)
    assert isinstance(gone, commands.MarkOffline)


def test_a_heartbeat_after_the_silence_brings_a_worker_back_online() -> None:
    world, presence = _running()
    world.do(commands.MarkOffline(worker_id="a1", reason="silence", session="session-a1"))
    presence.beat("a1", world.now, "session-a1", 0, [])
    planned = _plan(world, presence, waits=False)
    assert [type(command) for command in planned] == [commands.MarkOnline]


def _fleet(count: int) -> tuple[World, Presence]:
    world, presence = World(), Presence(0)
    for number in range(count):
        session = world.agent(f"a{number}")
        presence.beat(f"a{number}", world.now, session, 0, [])
    return world, presence


def test_losing_all_agents_at_once_is_our_fault_not_theirs() -> None:
    world, presence = _fleet(2)
    for worker_id in ("a0", "a1"):
        presence.lost(worker_id, world.now)
    world.later(1)
    assert liveness.mass_loss(world.state, presence, world.now)
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert not liveness.mass_loss(world.state, presence, world.now)
    presence.lost("a1", world.now)
    world.later(liveness.MASS_LOSS_SECONDS)
    assert not liveness.mass_loss(world.state, presence, world.now)


async def test_when_all_fell_silent_at_once_who_comes_back_first_takes_nothing() -> None:
    door = runtime.Runtime(MemoryLog(), "test")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    presence, now = await _welcome(door, ("a1", "a2"))
    watch = liveness.Liveness(door, presence, LIMITS, lambda task: True)
    watch._last_tick = now
    for second in range(1, 30):
        if second > 15:
            presence.beat("a2", now + second * SECOND, "a2", 0, [])
        await watch.tick(now + second * SECOND)
    assert door.state.workers.online == 2
    writing.cancel()


async def test_a_fleet_that_stays_silent_is_suspected_after_a_lease() -> None:
    door = runtime.Runtime(MemoryLog(), "test")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    presence, now = await _welcome(door, ("a1", "a2"))
    watch = liveness.Liveness(door, presence, LIMITS, lambda task: True)
    watch._last_tick = now
    for second in range(1, int(2 * LIMITS.lease + LIMITS.silence_borne)):
        await watch.tick(now + second * SECOND)
    assert door.state.workers.online == 0
    writing.cancel()


def _leaves(world: World, worker_id: str, reason: str) -> None:
    session = f"session-{worker_id}"
    world.do(commands.MarkOffline(worker_id=worker_id, reason=reason, session=session))


def test_agents_that_left_long_ago_do_not_hide_that_all_others_went_at_once() -> None:
    world, presence = _fleet(20)
    for number in range(2, 20):
        _leaves(world, f"a{number}", "silence")
    world.later(3600)
    for worker_id in ("a0", "a1"):
        presence.lost(worker_id, world.now)
    assert liveness.mass_loss(world.state, presence, world.now)


def test_agents_that_said_goodbye_or_were_offline_before_are_no_mass_loss() -> None:
    world, presence = _fleet(12)
    for number in range(11):
        _leaves(world, f"a{number}", "bye")
        if number % 2:
            presence.of(f"a{number}").session = ""
        else:
            world.later(0.1)
        presence.lost(f"a{number}", world.now)
    assert not liveness.mass_loss(world.state, presence, world.now)


def test_agents_marked_offline_for_a_loss_of_these_seconds_still_count_as_gone() -> None:
    world, presence = _fleet(4)
    for number in range(4):
        presence.lost(f"a{number}", world.now)
        world.later(1)
        _leaves(world, f"a{number}", "its connection broke")
    assert liveness.mass_loss(world.state, presence, world.now)


def test_an_http_worker_keeps_a_silent_training_for_its_whole_lease() -> None:
    world = World().seeded()
    world.http_worker()
    world.task()
    world.do(commands.ClaimTask(worker_id="w1", via="http", claim_id="c", lease_seconds=1800))
    presence = Presence(world.now)
    presence.of("w1").last_seen = world.now
    world.later(1799)
    planned = _plan(world, presence, waits=True)
    assert [type(command) for command in planned] == [commands.MarkOffline]
    world.later(2)
    assert len(_expired(_plan(world, presence, waits=True))) == 1


def test_a_heartbeat_renews_an_http_lease_until_the_worker_asks_for_other_work() -> None:
    world = World().seeded()
    world.http_worker()
    world.task()
    world.do(commands.ClaimTask(worker_id="w1", via="http", claim_id="c", lease_seconds=1800))
    presence = Presence(world.now)
    seen = presence.of("w1")
    world.later(1000)
    seen.signalled_at = seen.last_seen = world.now
    world.later(1000)
    assert _expired(_plan(world, presence, waits=True)) == []
    seen.asked_at = world.now
    seen.signalled_at = seen.last_seen = world.now
    assert len(_expired(_plan(world, presence, waits=True))) == 1


def test_only_who_is_online_or_heard_of_again_is_looked_at() -> None:
    world, presence = _fleet(4)
    world.http_worker("w1")
    for worker_id in ("a0", "a1"):
        _leaves(world, worker_id, "silence")
    world.do(commands.Heartbeat(worker_id="w2", status="gone"))
    assert presence.take_heard() == ["a0", "a1", "a2", "a3"]
    presence.beat("a1", world.now, "session-a1", 0, [])
    assert _looked_at(world, presence) == ["w1", "a2", "a3", "a1"]
    assert _looked_at(world, presence) == ["w1", "a2", "a3"]


def _looked_at(world: World, presence: Presence) -> list[str]:
    parts = liveness.slices(world.state, presence.take_heard(), 100)
    return [one for part in parts for one in part.workers]


def test_what_is_looked_at_comes_in_slices_that_leave_nothing_out() -> None:
    world, _ = _fleet(7)
    world.seeded()
    world.do(commands.DepositCommitments(judge="j", first=0, commitments=["0" * 64]))
    for number in range(4):
        world.task(f"t{number}")
        world.claim("a0" if number < 2 else "a1")
    parts = list(liveness.slices(world.state, [], 3))
    assert all(sum(len(ids) for ids in part) <= 3 for part in parts)
    assert [one for part in parts for one in part.tasks] == ["t0", "t1", "t2", "t3"]
    assert [one for part in parts for one in part.workers] == [f"a{n}" for n in range(7)]
    assert [one for part in parts for one in part.rounds] == list(world.state.rounds.open)
    assert len(world.state.rounds.open) == 1
    assert list(liveness.slices(World().state, [], 3)) == []


async def test_others_have_their_turn_while_liveness_looks_at_many() -> None:
    door = runtime.Runtime(MemoryLog(), "test")
    await door.start()
    for number in range(4 * liveness.LOOKED_AT_ONCE):
        registered = events.WorkerRegistered(worker_id=f"w{number}", hostname="h")
        door.state.workers.apply(1, runtime.now(), registered)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.ensure_future(others())
    one = liveness.Liveness(door, Presence(runtime.now()), LIMITS, lambda task: False)
    await one.tick(runtime.now())
    running.cancel()
    assert turns >= 4


def test_a_task_that_ended_since_it_was_listed_is_left_alone() -> None:
    world, presence = _running()
    listed = next(liveness.slices(world.state, [], 100))
    assert list(listed.tasks) == ["t1"]
    world.do(commands.CancelTask(task_id="t1"))
    world.later(1000)
    planned = liveness.plan(
        world.state,
        presence,
        world.now,
        LIMITS,
        watched=listed,
        grace=Grace(),
        someone_waits=lambda task: True,
    )
    assert _expired(planned) == []


def test_a_round_closes_at_its_deadline() -> None:
    world, presence = _running()
    world.do(commands.DepositCommitments(judge="j", first=0, commitments=["0" * 64]))
    presence.beat("a1", world.now + 200 * SECOND, "session-a1", 0, [BEAT])
    world.later(119)
    assert _plan(world, presence, waits=False) == []
    world.later(2)
    assert [type(c) for c in _plan(world, presence, waits=False)] == [commands.CloseRound]


async def _welcome(door: runtime.Runtime, names: tuple[str, ...]) -> tuple[Presence, int]:
    """Agents come online, and are heard of at a moment long after the grace of the start."""
    presence, now = Presence(0), runtime.now() + 1_000 * SECOND
    for name in names:
        hello = commands.OpenSession(
            worker_id=name, session=name, hostname="h", lane="cpu-16", protocol=1
        )
        await door.execute(hello, runtime.new_meta("t"), runtime.nothing)
        presence.beat(name, now, name, 0, [])
    return presence, now


async def test_a_large_fleet_beats_more_rarely_and_its_silence_is_borne_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("core.presence.LARGE_FLEET", 1)
    door = runtime.Runtime(MemoryLog(), "test")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    presence, now = await _welcome(door, ("a1", "a2", "a3", "a4", "a5"))
    watch = liveness.Liveness(door, presence, LIMITS, lambda task: False)
    watch._last_tick = now + 11 * SECOND
    for name in ("a2", "a3", "a4", "a5"):
        presence.beat(name, now + 11 * SECOND, name, 0, [])
    await watch.tick(now + 11 * SECOND)
    assert door.state.workers.online == 5
    await watch.tick(now + 13 * SECOND)
    assert door.state.workers.online == 4
    writing.cancel()


async def test_who_was_away_so_long_that_others_look_silent_suspects_nobody_for_it() -> None:
    door = runtime.Runtime(MemoryLog(), "test")
    await door.start()
    writing = asyncio.ensure_future(door.run())
    presence, now = await _welcome(door, ("a1", "a2", "a3"))
    watch = liveness.Liveness(door, presence, LIMITS, lambda task: False)
    watch._last_tick = now
    await watch.tick(now + 11 * SECOND)
    assert door.state.workers.online == 3
    presence.beat("a1", now + 12 * SECOND, "a1", 0, [])
    for second in range(12, 24):
        presence.beat("a3", now + second * SECOND, "a3", 0, [])
        await watch.tick(now + second * SECOND)
    assert list(door.state.workers.online_by["nats"]) == ["a2", "a3"]
    writing.cancel()
