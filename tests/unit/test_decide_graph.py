"""Growing the tree: where a node may grow, and the bounds of children, depth and nodes."""

from typing import Any

import msgspec
import pytest

from core import commands, errors, events, specializations, workloads
from core.projections.graph import Node
from tests import texts
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


def test_what_the_tree_says_of_itself_is_bounded_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World().seeded()
    full = world.state.graph.chars + len("n" * 3 + "الرياضيات/n" + "d" * 9)
    monkeypatch.setattr(specializations, "TREE_CHARS_MAX", full)
    wordy = commands.ExpandNode(node_id="n", parent_id="root-math", name="n", description="d" * 10)
    with pytest.raises(errors.QuotaExceeded, match="describe this node in fewer words"):
        world.do(wordy)
    world.do(msgspec.structs.replace(wordy, description="d" * 9))
    assert world.state.graph.chars == full


def test_a_new_node_takes_from_its_ancestors_what_is_not_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = workloads.Parameter(64, 8, 256, "size of the matrix", is_whole=True)
    kind = workloads.Kind(
        {"rows": size, "columns": size, "density": workloads.Parameter(0.1, 0.01, 0.5, "share")}
    )
    monkeypatch.setattr(workloads, "KINDS", {**workloads.KINDS, "opt-convex": kind})
    world = World().seeded()

    def bound(node_id: str, parent_id: str, **asked: Any) -> events.Workload:
        workload = events.Workload(**{"specialist": "", **asked})
        world.do(
            commands.ExpandNode(node_id=node_id, parent_id=parent_id, name="n", workload=workload)
        )
        return world.state.graph.workload(node_id)[0]

    wide = {"rows": 32.0, "columns": 64.0}
    assert bound("wide", "opt-convex", parameters=wide) == events.Workload(
        specialist="opt-convex", parameters=wide
    )
    grow(world, "heir", "wide")
    assert bound("dense", "heir", parameters={"density": 0.2}).parameters == {
        **wide,
        "density": 0.2,
    }
    assert bound("other", "wide", specialist="stats-bayesian") == events.Workload(
        specialist="stats-bayesian"
    )
    before = world.state.seq
    for asked, words in (
        ({"parameters": {"rows": 1e9}}, "rows of opt-convex .* is from"),
        ({"parameters": {"rows": 32.5}}, "whole number"),
        ({"parameters": {"colour": 1.0}}, "takes no parameter 'colour'; it takes rows"),
    ):
        with pytest.raises(errors.Invalid, match=words):
            bound("no", "wide", **asked)
    with pytest.raises(errors.NotFound, match=r"no specialist 'alchemy'.*root-math"):
        bound("no", "wide", specialist="alchemy")
    assert world.state.seq == before


def unbound(world: World, node_id: str) -> None:
    """As a log has it in which the node had no work of its own."""
    node = world.state.graph.nodes.rows[node_id]
    world.state.graph.nodes.put(node_id, events.replace(node, workload=None))


def crowned(world: World, node_id: str, specialist: str) -> events.Champion:
    """A champion that was trained for this."""
    champion = msgspec.convert(
        {
            **dict.fromkeys(events.Champion.__struct_fields__, ""),
            **dict.fromkeys(("error", "baseline_error", "evidence_rate", "params", "bytes"), 1),
            "node_id": node_id,
            "candidate_id": f"{node_id}-1",
            "rival": "evolver",
            "below_baseline": False,
            "workload": {"specialist": specialist},
        },
        events.Champion,
    )
    world.state.graph.champions.put(node_id, champion)
    return champion


def test_a_seeded_node_that_gets_work_of_its_own_ends_the_reigns_of_another_work() -> None:
    world = World().seeded()
    for heir in ("heir", "twin", "own"):
        grow(world, heir, "stats-bayesian")
    unbound(world, "stats-bayesian")
    own = events.Workload(specialist="root-math")
    node = world.state.graph.nodes.rows["own"]
    world.state.graph.nodes.put("own", events.replace(node, workload=own))
    crowned(world, "stats-bayesian", "root-math")
    crowned(world, "heir", "root-math")
    kept = [crowned(world, "twin", "stats-bayesian"), crowned(world, "own", "root-math")]
    happened = world.do(commands.SeedTree())
    assert [type(data).__name__ for data in happened] == [
        "WorkloadChanged",
        "ChampionRetired",
        "ChampionRetired",
    ]
    assert world.state.graph.workload("heir") == (
        events.Workload(specialist="stats-bayesian"),
        True,
    )
    assert list(world.state.graph.champions) == kept
    assert world.do(commands.SeedTree()) == []


def test_a_reign_ends_once_where_parent_and_child_get_other_work_together() -> None:
    world = World().seeded()
    grow(world, "child", "opt-convex")
    for node_id in ("root-math", "opt-convex"):
        unbound(world, node_id)
    crowned(world, "child", "stats-bayesian")
    happened = world.do(commands.SeedTree())
    (retired,) = [data for data in happened if isinstance(data, events.ChampionRetired)]
    assert "opt-convex now" in retired.reason
    assert len(world.state.graph.champions) == 0


def test_an_heir_whose_nearest_node_gets_the_work_it_was_trained_for_goes_on_reigning() -> None:
    world = World().seeded()
    grow(world, "child", "opt-convex")
    for node_id in ("root-math", "opt-convex"):
        unbound(world, node_id)
    crowned(world, "child", "opt-convex")
    changed = world.do(commands.SeedTree())
    assert {type(data) for data in changed} == {events.WorkloadChanged}
    assert "child" in world.state.graph.champions


def test_seeded_nodes_that_hold_what_cannot_be_read_are_left_alone() -> None:
    world = World().seeded()
    unbound(world, "opt-convex")
    unbound(world, "stats-bayesian")
    crowned(world, "stats-bayesian", "root-math")
    world.state.read_only |= {"ev.node.opt-convex", "ev.node.stats-bayesian"}
    assert world.do(commands.SeedTree()) == []
    unread = World()
    unread.state.read_only.add("ev.node.math-optimization")
    crowned(unread, "math-optimization", "root-math")
    crowned(unread, "nowhere", "root-math")
    unread.seeded()
    missing = {seed.node_id for seed in specializations.SEEDS} - set(unread.state.graph.nodes.rows)
    assert missing == {"math-optimization", "opt-convex", "opt-discrete"}
    assert len(unread.state.quarantine) == 0


def test_a_reign_that_a_lost_end_of_the_log_left_standing_ends_at_the_next_start() -> None:
    world = World().seeded()
    grow(world, "heir", "stats-bayesian")
    crowned(world, "heir", "root-math")
    (retired,) = world.do(commands.SeedTree())
    assert isinstance(retired, events.ChampionRetired)
    assert (retired.node_id, len(world.state.graph.champions)) == ("heir", 0)


def test_only_who_reigns_can_retire() -> None:
    world = World().seeded()
    crowned(world, "opt-convex", "opt-convex")
    wrong = events.ChampionRetired(node_id="opt-convex", candidate_id="another")
    with pytest.raises(errors.UnfitEvent, match="another does not reign"):
        world.state.graph.retired(1, 1, wrong)


@pytest.mark.parametrize(
    ("node_id", "parent_id"), [("n", "n"), ("n", "nowhere"), ("root-math", "opt-convex")]
)
def test_a_node_put_into_the_log_that_makes_no_tree_is_quarantined(
    node_id: str, parent_id: str
) -> None:
    world = World().seeded()
    nodes = dict(world.state.graph.nodes.rows)
    foreign = events.NodeAdded(node_id=node_id, name="n", parent_id=parent_id)
    world.state.evolve(events.Event(world.state.seq + 1, 1, "i", "x", "x", "x", foreign))
    assert world.state.graph.nodes.rows == nodes
    assert [row.subject for row in world.state.quarantine] == [f"ev.node.{node_id}"]
    assert world.state.graph.workload("opt-convex")


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


CORPUS = texts.packed().corpus


def test_a_node_that_gets_a_corpus_trains_on_it_and_ends_the_reigns_of_other_work() -> None:
    world = World().seeded()
    grow(world, "own")
    grow(world, "heir", "own")
    crowned(world, "own", "root-math")
    crowned(world, "heir", "root-math")
    kept = crowned(world, "root-math", "root-math")
    happened = world.do(commands.BindCorpus(node_id="own", corpus=CORPUS))
    assert [type(data).__name__ for data in happened] == [
        "WorkloadChanged",
        "ChampionRetired",
        "ChampionRetired",
    ]
    assert "its node trains text of صغير" in str(happened[1])
    wanted = events.Workload(specialist=workloads.TEXT, corpus=CORPUS)
    assert world.state.graph.workload("heir") == (wanted, True)
    assert list(world.state.graph.champions) == [kept]
    assert world.do(commands.BindCorpus(node_id="own", corpus=CORPUS)) == []


def test_a_node_without_its_corpus_trains_again_what_it_did() -> None:
    world = World().seeded()
    grow(world, "below", "opt-convex")
    for node_id in ("below", "opt-convex"):
        world.do(commands.BindCorpus(node_id=node_id, corpus=CORPUS))
    world.do(commands.BindCorpus(node_id="opt-convex", corpus=None))
    world.do(commands.BindCorpus(node_id="below", corpus=None))
    for node_id in ("below", "opt-convex"):
        trains, _ = world.state.graph.workload(node_id)
        assert trains == events.Workload(specialist="opt-convex")
    for node_id, refused in (("below", errors.Conflict), ("nowhere", errors.NotFound)):
        with pytest.raises(refused):
            world.do(commands.BindCorpus(node_id=node_id, corpus=None))


def test_text_needs_a_corpus_which_a_new_node_may_inherit() -> None:
    world = World().seeded()
    asked = commands.ExpandNode(
        node_id="n", parent_id="own", name="n", workload=events.Workload(specialist=workloads.TEXT)
    )
    grow(world, "own")
    with pytest.raises(errors.Invalid, match="aghsan corpus add"):
        world.do(asked)
    world.do(commands.BindCorpus(node_id="own", corpus=CORPUS))
    world.do(asked)
    assert world.state.graph.nodes.rows["n"].workload == world.state.graph.workload("own")[0]
