"""The agent's loop over a made-up link: how it ends, and what it leaves on its disk."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import transfers, worker
from agent.executors import jobs
from agent.executors.process import OnReport
from core import errors, events, wire
from core.chunks import File, Manifest
from tests import agents

TRIES_IN_A_HEARTBEAT = 5
"""To join: the pauses between them double from a tenth of a second on, a heart beats after one."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> agents.Place:
    return agents.Place(tmp_path, monkeypatch)


async def test_an_agent_stopped_while_it_reattaches_to_a_server_that_is_away_ends_well(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1), agents.Trainer()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    server.away, server.on_reattach = True, agent.stop
    server.on_reconnect()
    await running
    assert place.kept() == [1]


class Silent(agents.Server):
    """It answers nobody who asks whether a task is still theirs."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asking = 0
        self.is_asked = asyncio.Semaphore(0)

    async def reattach(self, _: events.Token) -> None:
        self.asking += 1
        self.is_asked.release()
        try:
            await asyncio.Event().wait()
        finally:
            self.asking -= 1


async def test_however_often_its_connection_comes_back_an_agent_asks_for_its_tasks_once_at_a_time(
    place: agents.Place,
) -> None:
    server, trainer = Silent(), agents.Trainer()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    for _ in range(5):
        server.on_reconnect()
        await agents.before_its_end(running, server.is_asked.acquire())
    assert server.asking == 1
    server.on_notice(wire.Notice(kind="superseded", detail="another one", session="s"))
    with pytest.raises(worker.Superseded):
        await running


async def test_an_agent_that_loses_its_task_while_it_reattaches_goes_on_with_other_work(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1), agents.Trainer()
    lost = wire.Notice(kind="stop", task_id="t", detail="the task is not yours any more")
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    server.on_reattach = lambda: server.on_notice(lost)
    server.on_reconnect()
    await agents.before_its_end(running, server.waits.wait())
    agent.stop()
    await running
    assert place.kept() == []


async def test_what_an_earlier_run_held_ends_no_agent_whose_server_is_away(
    place: agents.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "IN_PROGRESS_SECONDS", 0.0)
    place.hold()
    server = agents.Server()
    server.away = True
    one = place.agent(server, agents.Trainer())
    running = asyncio.create_task(one.run())
    for _ in range(TRIES_IN_A_HEARTBEAT):
        await agents.before_its_end(running, server.asked.acquire())
    one.stop()
    await running
    assert place.kept() == [1]


async def test_a_cut_between_joining_and_the_answer_to_the_first_hello_ends_no_agent(
    place: agents.Place,
) -> None:
    place.hold()
    server, trainer = agents.Server(), agents.Trainer()
    server.is_cut_at_hello = True
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    agent.stop()
    await running


async def test_an_attempt_that_ends_leaves_a_later_one_of_the_same_task_alone(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1, 2), agents.Trainer(first_is_done=True)
    server.completion = errors.StaleAttempt("attempt 2 has the task")
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    server.may_complete.set()
    agent.stop()
    server.away = True
    await running
    assert place.kept() == [2]


async def test_a_task_that_is_claimed_again_while_its_old_files_are_deleted_keeps_its_new_ones(
    place: agents.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, trainer = agents.Server(1), agents.Trainer(first_is_done=True)
    server.may_complete.set()
    loop, delete = asyncio.get_running_loop(), shutil.rmtree
    is_claimed, is_deleted = threading.Event(), threading.Event()

    def slowly(path: Path, *, ignore_errors: bool) -> None:
        aside = threading.current_thread() is not threading.main_thread()
        if aside:
            loop.call_soon_threadsafe(server.offers.put_nowait, 2)
            is_claimed.wait()
        delete(path, ignore_errors=ignore_errors)
        if aside:
            is_deleted.set()

    monkeypatch.setattr(shutil, "rmtree", slowly)
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    is_claimed.set()
    await asyncio.to_thread(is_deleted.wait)
    assert place.kept() == [2]
    agent.stop()
    await running


async def test_what_is_not_answered_is_asked_again_as_often_as_the_agent_is_told(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1), agents.Trainer()
    server.unanswered_claims = 3
    agent = place.agent(server, trainer, poll_seconds=0.01)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    agent.stop()
    await running
    _, lost, back = place.said[:3]
    assert lost.startswith("lost the server")
    assert "again every 0.01 s" in lost
    assert "answers again" in back


async def test_an_agent_that_gets_no_answer_in_time_leaves_with_a_word_and_without_an_error(
    place: agents.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_SECONDS_MAX", 0.01)
    trainer = agents.Trainer(may_stop=False)
    agent = place.agent(agents.Server(1), trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    agent.stop()
    await running
    assert place.said[-1].startswith("left with t on n not given back")
    assert place.kept() == [1]


class Forgetful(agents.Server):
    """Its desk misses chunks so many times that are named to it."""

    def __init__(self, times: int) -> None:
        super().__init__(1)
        self.told: list[str] = []
        self.takes = asyncio.Event()
        self._times = times

    async def upload(self, *told: Any) -> Manifest:
        self.told.append("upload")
        return await super().upload(*told)

    async def checkpoint(self, _: wire.CheckpointRequest) -> None:
        self._named("checkpoint")

    async def complete(self, _: wire.CompleteRequest) -> None:
        self._named("complete")

    def _named(self, how: str) -> None:
        self.told.append(how)
        self._times -= 1
        if self._times >= 0:
            raise errors.ArtifactError("no chunk is stored; send it again")
        self.takes.set()


class Away(agents.Server):
    """It goes as an agent brings a checkpoint, while the agent is asked to stop."""

    def __init__(self, *, is_back: bool) -> None:
        super().__init__(1)
        self.stop: Callable[[], None]
        self._is_back = is_back

    async def upload(self, *_: object) -> Manifest:
        self.stop()
        self.away = not self._is_back
        raise agents.AWAY


@pytest.mark.parametrize(
    ("is_back", "end"),
    [
        (False, "left with t on n not given back, since the server does not answer"),
        (True, "gave back t on n at step 0 of 0; the server did not answer in time to store"),
    ],
)
async def test_a_checkpoint_that_an_agent_cannot_store_as_it_stops_is_told_once_in_its_last_words(
    place: agents.Place, caplog: pytest.LogCaptureFixture, *, is_back: bool, end: str
) -> None:
    server = Away(is_back=is_back)
    agent = place.agent(server, Saving())
    server.stop = agent.stop
    await agent.run()
    stopping, last = place.said[-2:]
    assert stopping.startswith("stopping")
    assert last.startswith(end)
    assert not caplog.records


class Saving(agents.Trainer):
    """Saves a state of training, and another after that."""

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        state = Path(job.directory) / "step-00000001"
        state.mkdir(parents=True)
        on_report(jobs.Saved(directory=str(state), step=1, total_steps=2))
        return await super().run(job, on_report)


class Overtaken(agents.Server):
    """Another session takes the worker id while a checkpoint is on its way."""

    words = "another session of this worker id began"

    def __init__(self, *, is_told: bool) -> None:
        super().__init__(1)
        self._is_told = is_told

    async def upload(self, *_: object) -> Manifest:
        if self._is_told:
            self.on_notice(wire.Notice(kind="superseded", session="s", detail=self.words))
        raise errors.SupersededSession(self.words)


@pytest.mark.parametrize("is_told", [True, False])
async def test_an_agent_whose_id_another_took_ends_with_that_and_not_with_its_checkpoint(
    place: agents.Place, caplog: pytest.LogCaptureFixture, *, is_told: bool
) -> None:
    with pytest.raises(worker.Superseded, match=Overtaken.words):
        await place.agent(Overtaken(is_told=is_told), Saving()).run()
    assert [line.partition(" ")[0] for line in place.said] == ["joined", "trains"]
    assert not caplog.records


class Moved(Forgetful):
    """Its task has another holder."""

    async def checkpoint(self, _: wire.CheckpointRequest) -> None:
        self.told.append("checkpoint")
        self.takes.set()
        raise errors.StaleAttempt("attempt 2 holds the task")


async def test_an_agent_that_is_told_at_a_checkpoint_that_its_task_moved_brings_no_result(
    place: agents.Place,
) -> None:
    server = Moved(0)
    agent = place.agent(server, Saving(first_is_done=True))
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.takes.wait())
    await agents.before_its_end(running, server.waits.wait())
    agent.stop()
    await running
    assert server.told == ["upload", "checkpoint"]
    assert (agent.completed, place.kept()) == (0, [])


async def test_a_checkpoint_whose_chunks_are_gone_is_sent_again_and_its_task_goes_on(
    place: agents.Place,
) -> None:
    server, trainer = Forgetful(1), Saving()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.takes.wait())
    assert server.told == ["upload", "checkpoint"] * 2
    agent.stop()
    await running
    assert server.released == [worker.STOPPED]


async def test_a_checkpoint_that_never_arrives_whole_costs_no_more_than_itself(
    place: agents.Place,
) -> None:
    server, trainer = Forgetful(99), Saving()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    agent.stop()
    await running
    assert server.told == ["upload", "checkpoint"] * transfers.SENDINGS_MAX
    assert server.released == [worker.STOPPED]


async def test_a_result_whose_chunks_are_gone_is_brought_again(place: agents.Place) -> None:
    server, trainer = Forgetful(1), agents.Trainer(first_is_done=True)
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.takes.wait())
    assert server.told == ["upload", "complete"] * 2
    agent.stop()
    await running
    assert agent.completed == 1


class Failing(Forgetful):
    """It hears of a failure; what an earlier attempt left there is damaged, and the champion is
    far too large."""

    def __init__(self, *, has_checkpoint: bool = False) -> None:
        super().__init__(0)
        self.reason = ""
        self._has_checkpoint = has_checkpoint

    async def claim(self, claim_id: str, offer: int) -> wire.Assignment:
        assignment = await super().claim(claim_id, offer)
        left = events.Checkpoint(
            rival="evolver", step=5, total_steps=9, manifest="0" * 64, writer="w", bytes=1
        )
        resume = [left] if self._has_checkpoint else []
        return msgspec.structs.replace(assignment, resume=resume)

    async def download(self, *told: Any) -> Manifest:
        if self._has_checkpoint:
            raise errors.ArtifactError("chunk 0123 holds other bytes")
        (*_, require) = told
        model = File(name="model.safetensors", bytes=50 * 10**9, sha256="0" * 64, chunks=[])
        require(Manifest(kind="candidate", writer="w", files=[model]))
        raise AssertionError("it was fetched")

    async def fail(self, _token: events.Token, reason: str, *_: object) -> None:
        self.told.append("fail")
        self.reason = reason
        self.takes.set()


class Diverging(Saving):
    """Saves a state of training, and ends."""

    async def run(self, job: jobs.Job, on_report: OnReport) -> jobs.Result | jobs.Stopped:
        self.trains.set()
        self._stopped.set()
        await super().run(job, on_report)
        raise errors.TrainingError("training diverged")


async def test_a_training_that_fails_has_its_last_good_checkpoint_stored_first(
    place: agents.Place,
) -> None:
    server = Failing()
    agent = place.agent(server, Diverging())
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.takes.wait())
    await agents.before_its_end(running, server.waits.wait())
    assert server.told == ["upload", "checkpoint", "fail"]
    assert server.reason == "training diverged"
    agent.stop()
    await running


async def test_a_checkpoint_that_arrives_damaged_costs_its_steps_and_not_the_task(
    place: agents.Place,
) -> None:
    server, trainer = Failing(has_checkpoint=True), agents.Trainer()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    assert place.said[-1].startswith("begins t on n anew")
    assert place.said[-1].endswith("chunk 0123 holds other bytes")
    assert server.told == []


async def trained(place: agents.Place, server: agents.Server, trainer: agents.Trainer) -> None:
    """Let an agent do the one task there is, and end."""
    server.may_complete.set()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.waits.wait())
    agent.stop()
    await running


async def test_a_champion_that_this_device_cannot_train_is_refused_with_the_sizes_and_not_fetched(
    place: agents.Place,
) -> None:
    server, trainer = Failing(), agents.Trainer()
    server.base = events.Base(
        candidate_id="c", manifest="m" * 64, writer="w", weights_sha256="0" * 64
    )
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.waits.wait())
    assert server.told == []
    assert "has 16 GB" in server.unfit[0]
    assert "model of 50 GB" in server.unfit[0]
    assert not trainer.trains.is_set()
    agent.stop()
    await running


def base(name: str) -> events.Base:
    return events.Base(candidate_id=name, manifest=name * 64, writer="w", weights_sha256=name * 64)


async def test_the_rivals_of_a_dual_task_share_its_budget(place: agents.Place) -> None:
    server, trainer = agents.Server(1), agents.Trainer()
    server.asks = {"role": "dual", "budget_seconds": 12.0}
    trainer.results = [agents.result(), agents.result(role="reinventor")]
    await trained(place, server, trainer)
    assert [(job.role, job.budget_seconds) for job in trainer.jobs] == [
        ("evolver", 6.0),
        ("reinventor", 6.0),
    ]


async def test_an_evolver_starts_from_the_champion_and_a_reinventor_learns_from_it_where_asked(
    place: agents.Place,
) -> None:
    for attempt, method in enumerate(("distill", "full"), 1):
        server, trainer = agents.Server(attempt), agents.Trainer()
        downloads: list[None] = []
        server.on_download = lambda seen=downloads: seen.append(None)  # type: ignore[misc]
        server.base = base("b")
        server.asks = {"role": "dual", "method": method}
        trainer.results = [agents.result(), agents.result(role="reinventor")]
        await trained(place, server, trainer)
        evolver, reinventor = trainer.jobs
        assert Path(evolver.base).name == "b" * 64
        assert (evolver.parents, reinventor.base) == ([], "")
        assert reinventor.parents == ([evolver.base] if method == "distill" else [])
        assert len(downloads) == (1 if method == "distill" else 0)


async def test_a_merge_is_given_its_parents_in_order_and_brings_all_it_made(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1), agents.Trainer()
    server.asks = {"role": "merge", "method": "merge", "parents": [base("q"), base("p")]}
    soup = agents.result(
        role="merge",
        made="soup",
        candidate_directory="soup",
        method="merge",
        method_reason="of two",
        weights_sha256="5" * 64,
    )
    student = agents.result(role="merge", made="student", method="merge", others=[soup])
    trainer.results = [student]
    await trained(place, server, trainer)
    (job,) = trainer.jobs
    assert [Path(folder).name for folder in job.parents] == ["q" * 64, "p" * 64]
    assert job.base == ""
    (completion,) = server.completions
    assert [one.rival for one in completion.candidates] == ["merge", "merge"]
    assert completion.candidates[1].weights_sha256 == "5" * 64
    assert completion.candidates[1].method_reason == "of two"
    first, second = (one.manifest.files[0].sha256 for one in completion.candidates)
    assert first != second
    rivals = completion.metrics["rivals"]
    assert set(rivals) == {"merge (student)", "merge (soup)"}
    assert "others" not in rivals["merge (student)"]


async def test_a_task_that_an_agent_is_no_match_for_is_given_back_with_the_reason_and_no_failure(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1, 2), agents.Trainer()
    trainer.errors = [errors.Unfit("this device has no base model tiny")]
    agent = place.agent(server, trainer, poll_seconds=0.01)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    assert server.unfit == ["this device has no base model tiny"]
    assert server.failed == []
    assert any("tiny" in said for said in place.said)
    agent.stop()
    await running


class Picky(agents.Server):
    """It offers again and again what the agent is given none of."""

    def __init__(self) -> None:
        super().__init__(1)
        self.claims = 0

    async def claim(self, claim_id: str, offer: int) -> wire.Assignment | None:  # type: ignore[override]
        self.claims += 1
        self.offers.put_nowait(offer + 1)
        return await super().claim(claim_id, offer) if self.claims == 1 else None


async def test_an_agent_that_is_no_match_for_what_waits_asks_no_more_often_than_it_polls(
    place: agents.Place,
) -> None:
    server, trainer = Picky(), agents.Trainer()
    trainer.errors = [errors.Unfit("too small")]
    agent = place.agent(server, trainer, poll_seconds=1_000.0)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.is_unfit.wait())
    for _ in range(1_000):  # where it did not wait, it would claim with almost every turn
        await asyncio.sleep(0)
    assert server.claims == 1
    agent.stop()
    await running


class Refusing(agents.Server):
    """It refuses the first claim, and answers the next."""

    async def claim(self, claim_id: str, offer: int) -> wire.Assignment:
        if offer == 1:
            raise errors.ReadOnlyAggregate("task t is closed")
        return await super().claim(claim_id, offer)


async def test_a_claim_that_is_refused_ends_no_agent(place: agents.Place) -> None:
    server, trainer = Refusing(1, 2), agents.Trainer()
    agent = place.agent(server, trainer, poll_seconds=0.01)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    assert trainer.jobs
    agent.stop()
    await running


async def test_an_agent_that_is_paused_gives_back_what_it_trains_and_asks_for_no_more(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1, 2), agents.Trainer()
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, trainer.trains.wait())
    trainer.trains.clear()
    server.on_notice(wire.Notice(kind="pause"))
    await agents.before_its_end(running, server.is_released.wait())
    assert server.released == ["its worker was paused"]
    assert trainer.is_hurried
    for _ in range(100):
        await asyncio.sleep(0)
    assert server.offers.qsize() == 1
    server.on_notice(wire.Notice(kind="resume"))
    await agents.before_its_end(running, trainer.trains.wait())
    agent.stop()
    await running


class Slow(agents.Server):
    """Nothing that is downloaded from it ever comes."""

    def __init__(self) -> None:
        super().__init__(1)
        self.is_asked = asyncio.Event()

    async def download(self, *_: object) -> Manifest:
        self.is_asked.set()
        await asyncio.Event().wait()
        raise AssertionError("it has no end")


@pytest.mark.parametrize("what", ["base", "resume"])
async def test_an_agent_that_is_paused_while_it_downloads_gives_its_task_back_at_once(
    place: agents.Place, what: str
) -> None:
    server, trainer = Slow(), agents.Trainer()
    if what == "base":
        server.base = base("b")
    else:
        point = events.Checkpoint(
            rival="evolver", step=1, total_steps=2, manifest="m" * 64, writer="w", bytes=1
        )
        server.asks = {"resume": [point]}
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.is_asked.wait())
    server.on_notice(wire.Notice(kind="pause"))
    async with asyncio.timeout(10):
        await agents.before_its_end(running, server.is_released.wait())
    assert server.released == ["its worker was paused"]
    assert trainer.jobs == []
    agent.stop()
    await running


async def test_an_agent_that_is_paused_as_it_claims_downloads_nothing(place: agents.Place) -> None:
    server, trainer = Slow(), agents.Trainer()
    server.base = base("b")
    server.on_claim = lambda: server.on_notice(wire.Notice(kind="pause"))
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    async with asyncio.timeout(10):
        await agents.before_its_end(running, server.is_released.wait())
    assert not server.is_asked.is_set()
    agent.stop()
    await running


async def test_an_agent_whose_task_is_cancelled_while_it_downloads_asks_for_other_work(
    place: agents.Place,
) -> None:
    server, trainer = Slow(), agents.Trainer()
    server.base = base("b")
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.is_asked.wait())
    server.on_notice(wire.Notice(kind="stop", task_id="t", detail="it was cancelled"))
    async with asyncio.timeout(10):
        await agents.before_its_end(running, server.waits.wait())
    assert (server.released, server.failed) == ([], [])
    agent.stop()
    await running


async def test_an_agent_that_is_drained_ends_what_it_trains_and_asks_for_no_more(
    place: agents.Place,
) -> None:
    server, trainer = agents.Server(1, 2), agents.Trainer(first_is_done=True)
    server.may_complete.set()
    agent = place.agent(server, trainer)
    server.on_claim = lambda: server.on_notice(wire.Notice(kind="drain"))
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.is_delivered.wait())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (server.released, server.offers.qsize()) == ([], 1)
    agent.stop()
    await running


async def test_an_agent_hears_as_it_begins_that_it_is_paused(place: agents.Place) -> None:
    place.hold()
    server, trainer = agents.Server(2), agents.Trainer()
    server.pause = "pause"
    agent = place.agent(server, trainer)
    running = asyncio.create_task(agent.run())
    await agents.before_its_end(running, server.is_released.wait())
    assert (server.released, server.offers.qsize()) == (["its worker was paused"], 1)
    agent.stop()
    await running
