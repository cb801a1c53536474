"""What a person who watches reads of an event."""

import pytest

from core import commands
from gateway.narrator import narrate
from tests.build import World


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
    line = narrate(world.stored[-1], world.state)
    assert line.partition("  ")[2] == f"w completed opt-convex{told}"
