"""What the feeder sees of a server over HTTP."""

from cli.orchestrator import stuck_nodes
from cli.views import Unfit, Worker

MARK = Unfit(node_id="n", role="dual", method="auto", reason="too small")


def _worker(*unfit: Unfit, via: str = "nats", pause: str = "", held: bool = False) -> Worker:
    tasks = ["t"] if held else []
    return Worker(status="online", via=via, unfit=list(unfit), pause=pause, tasks=tasks)


def test_a_node_is_left_out_whose_usual_tasks_no_agent_that_is_given_work_is_fit_for() -> None:
    small, large, paused = _worker(MARK), _worker(), _worker(pause="pause")
    assert stuck_nodes([small]) == {"n"}
    assert stuck_nodes([small, paused]) == {"n"}
    assert stuck_nodes([small, large]) == set()
    assert stuck_nodes([paused]) == stuck_nodes([]) == set()


def test_who_is_unfit_for_another_role_or_method_may_be_fit_for_the_usual_one() -> None:
    merge = Unfit(node_id="n", role="merge", method="merge")
    full = Unfit(node_id="n", role="dual", method="full")
    assert stuck_nodes([_worker(merge, full)]) == set()


def test_a_worker_over_http_counts_once_it_holds_a_task() -> None:
    assert stuck_nodes([_worker(MARK), _worker(via="http")]) == {"n"}
    assert stuck_nodes([_worker(MARK), _worker(via="http", held=True)]) == set()
