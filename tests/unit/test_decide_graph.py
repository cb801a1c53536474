"""Growing the tree: where a node may grow, and the bounds of children, depth and nodes."""

import pytest

from core import commands, errors, events, specializations
from core.projections.graph import Node
from tests.build import World


def grow(world: World, node_id: str, parent_id: str = "root-math") -> list[events.EventData]:
    return world.do(commands.ExpandNode(node_id=node_id, parent_id=parent_id, name=node_id))


def test_the_seeded_tree_is_planted_once_and_what_is_missing_is_planted_later() -> None:
    world = World()
    assert len(world.do(commands.SeedTree())) == len(specializations.SEEDS)
    assert world.do(commands.SeedTree()) == []
    world.state.graph.nodes.drop("opt-discrete")
    (planted,) = world.do(commands.SeedTree())
    assert isinstance(planted, events.NodeAdded)
    assert planted.node_id == "opt-discrete"


def test_a_node_grows_below_its_parent() -> None:
    world = World().seeded()
    workload = events.Workload(specialist="opt-convex")
    world.do(
        commands.ExpandNode(
            node_id="n", parent_id="math-physics", name="فرع", description="d", workload=workload
        )
    )
    nodes = world.state.graph.nodes.rows
    node, parent = nodes["n"], nodes["math-physics"]
    assert (node.parent_id, node.depth) == ("math-physics", parent.depth + 1)
    assert node.path == f"{parent.path}/فرع"
    assert (node.description, node.workload) == ("d", workload)
    assert parent.children[-1] == "n"


def test_a_node_needs_a_parent_and_an_id_of_its_own() -> None:
    world = World().seeded()
    with pytest.raises(errors.NotFound, match="parent not found"):
        grow(world, "n", "nowhere")
    grow(world, "n")
    with pytest.raises(errors.Conflict, match="exists already"):
        grow(world, "n", "opt-convex")


def test_a_node_has_at_most_sixty_four_children() -> None:
    world = World().seeded()
    before = len(world.state.graph.nodes.rows["root-math"].children)
    for number in range(before, specializations.CHILDREN_MAX):
        grow(world, f"n{number}")
    assert len(world.state.graph.nodes.rows["root-math"].children) == 64
    with pytest.raises(errors.QuotaExceeded, match="root-math has 64 children"):
        grow(world, "one-more")
    grow(world, "elsewhere", "n63")


def test_the_tree_is_at_most_sixteen_levels_deep() -> None:
    world = World().seeded()
    parent = "root-math"
    for depth in range(1, specializations.DEPTH_MAX + 1):
        grow(world, f"d{depth}", parent)
        parent = f"d{depth}"
    assert world.state.graph.nodes.rows["d16"].depth == 16
    with pytest.raises(errors.QuotaExceeded, match="16 levels deep"):
        grow(world, "one-more", "d16")
    grow(world, "beside", "d15")


def test_the_tree_holds_at_most_ten_thousand_nodes() -> None:
    world = World().seeded()
    nodes = world.state.graph.nodes
    for number in range(specializations.NODES_MAX - len(nodes) - 1):
        stray = Node(
            node_id=f"n{number}", name="n", parent_id="root-math", description="", ai_name="n",
            depth=1, path="n",
        )  # fmt: skip
        nodes.put(stray.node_id, stray)
    grow(world, "last")
    assert len(nodes) == 10_000
    with pytest.raises(errors.QuotaExceeded, match="holds 10000 nodes"):
        grow(world, "one-more")


def test_a_refusal_leaves_the_tree_as_it_was() -> None:
    world = World().seeded()
    before = world.state.hash()
    with pytest.raises(errors.NotFound):
        grow(world, "n", "nowhere")
    assert world.state.hash() == before
