"""What an agent that died held, found again by the one that is started after it."""

from pathlib import Path

from agent import folders, holdings
from agent.holdings import Holding
from agent.link import Pulled
from core import wire
from core.events import Token, Workload


def held(task_id: str) -> Holding:
    assignment = wire.Assignment(
        token=Token(task_id=task_id, attempt=2, claim_id="c"),
        node_id="opt-convex",
        topic="موضوع",
        role="dual",
        method="auto",
        seed=7,
        workload=Workload(specialist="opt-convex"),
        workload_inherited=False,
        lease_seconds=60.0,
    )
    return Holding(assignment, Pulled(task_id, 3, f"$JS.ACK.WORK.{task_id}"))


def kept(tasks: Path, holding: Holding) -> Path:
    folder = holdings.folder_of(tasks, holding.token.task_id)
    holdings.keep(folder, holding)
    return folder


def test_what_was_held_is_found_again_with_its_offer(tmp_path: Path) -> None:
    kept(tmp_path, held("t1"))
    kept(tmp_path, held("موضوع"))
    found = {one.token.task_id: one for one in holdings.restore(tmp_path)}
    assert found.keys() == {"t1", "موضوع"}
    assert found["t1"].assignment == held("t1").assignment
    assert found["t1"].offer == held("t1").offer
    assert found["t1"].starts == 1


def test_a_claim_that_cannot_be_read_is_left_to_the_server(tmp_path: Path) -> None:
    folder = kept(tmp_path, held("t1"))
    (folder / "claim.json").write_bytes(b"{")
    assert holdings.restore(tmp_path) == []


def test_a_claim_that_agent_after_agent_died_on_is_left_to_the_server(tmp_path: Path) -> None:
    folder = kept(tmp_path, held("t1"))
    for _ in range(holdings.STARTS_MAX):
        (again,) = holdings.restore(tmp_path)
        holdings.keep(folder, again)  # as whoever takes it up
    assert holdings.restore(tmp_path) == []


def test_a_start_that_takes_nothing_up_counts_for_nothing(tmp_path: Path) -> None:
    kept(tmp_path, held("t1"))
    for _ in range(holdings.STARTS_MAX + 2):
        assert len(holdings.restore(tmp_path)) == 1


def test_what_is_still_held_stays_where_the_rest_is_deleted(tmp_path: Path) -> None:
    folders.own(tmp_path / "tasks")
    folder = kept(tmp_path / "tasks", held("t1"))
    (tmp_path / "tasks" / "other" / "evolver").mkdir(parents=True)
    folders.empty(tmp_path / "tasks", [folder])
    left = {path.name for path in (tmp_path / "tasks").iterdir()}
    assert left == {folders.MARK, folder.name}


def test_what_was_put_away_is_nobodys_and_goes_with_the_next_start(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    folders.own(tasks)
    folder = kept(tasks, held("t1"))
    gone = holdings.put_away(tasks, "t1")
    assert (folder.exists(), gone.is_dir()) == (False, True)
    assert holdings.restore(tasks) == []
    folders.empty(tasks)
    assert [path.name for path in tasks.iterdir()] == [folders.MARK]


def test_a_task_without_a_folder_is_put_away_too(tmp_path: Path) -> None:
    assert not holdings.put_away(tmp_path, "t1").exists()
