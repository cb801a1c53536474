"""What the benchmarks make of their figures; measuring itself is for `dev.py bench`."""

import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import busy, harness, history, merging, specialists
from benchmarks.__main__ import NAMES, main
from benchmarks.harness import Figure, Goal, Ratio, Section
from core import audit, specializations
from core.log import BATCH_MESSAGES_MAX, Record
from core.log_memory import MemoryLog

ORDER = ("one", "two", "three")


def section(*values: float, title: str = "one: a title") -> Section:
    return Section(
        title=title,
        about="What it is about.",
        ratios=[Ratio(what="this / that", values=list(values), goal=Goal("at least", 2))],
        figures=[Figure(what="this", unit="events/s", values=[12_345.0, 100.0, 0.5])],
        notes="\n- A note.\n",
    )


@pytest.mark.parametrize(
    ("goal", "met", "missed"),
    [
        (Goal("at least", 2), 2.0, 1.99),
        (Goal("at most", 2), 2.0, 2.01),
        (Goal("below", 2), 1.99, 2.0),
    ],
)
def test_a_goal_is_met_on_its_own_side_of_the_bound(goal: Goal, met: float, missed: float) -> None:
    assert goal.is_met(met)
    assert not goal.is_met(missed)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.1, 2.5, 3.0], "yes"),
        ([1.9, 2.5, 3.0], "yes, not in each repetition"),
        ([1.8, 1.9, 3.0], "**no**"),
    ],
)
def test_the_median_is_held_to_the_goal_and_every_miss_is_told(
    values: list[float], verdict: str
) -> None:
    assert section(*values).ratios[0].verdict == verdict


def test_a_section_tells_goal_verdict_spread_date_and_machine() -> None:
    when = datetime.datetime(2026, 11, 25, 9, 30, tzinfo=datetime.UTC)
    text = harness.render(section(1.5, 2.5, 3.0), when, "A machine")
    assert "## one: a title\n" in text
    assert "2026-11-25 09:30 UTC. A machine.\n" in text
    assert "| this / that | 2.5 | 1.5 | 3 | at least 2 | yes, not in each repetition |" in text
    assert "| this | 100 | 0.5 | 12,345 | events/s |" in text
    assert text.endswith("\n\n- A note.\n")


def test_the_line_about_the_machine_names_processor_cores_and_server() -> None:
    told = harness.hardware("/")
    assert " cores, " in told
    assert "nats-server 2." in told
    assert "GB of memory" in told


def test_a_section_is_replaced_in_place_and_all_else_is_kept() -> None:
    text = "# Results\n\nWritten by hand.\n"
    for name, title in (("three", "old three"), ("one", "old one"), ("one", "new one")):
        text = harness.replace_section(text, name, f"## {title}\n\nwords\n", ORDER)
    assert text.startswith("# Results\n\nWritten by hand.\n\n" + harness.MARKER)
    assert "old one" not in text
    assert text.index("new one") < text.index("old three")


def test_writing_the_same_section_twice_changes_nothing() -> None:
    once = harness.replace_section("# Results\n", "two", "## Two\n", ORDER)
    assert harness.replace_section(once, "two", "## Two\n", ORDER) == once


async def test_every_second_repetition_runs_the_sides_backwards() -> None:
    ran = []

    async def side(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    found = await harness.alternate({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


@pytest.mark.parametrize(("percent", "value"), [(50, 50.0), (99, 99.0), (100, 100.0), (0.5, 1.0)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert harness.percentile([float(n) for n in range(100, 0, -1)], percent) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (12_345.6, "12,346")],
)
def test_figures_have_three_digits_that_count(value: float, text: str) -> None:
    assert harness.number(value) == text


def test_an_unknown_benchmark_is_refused_with_those_there_are() -> None:
    ran = CliRunner().invoke(main, ["http", "htp", "--quick"])
    assert ran.exit_code == 2
    assert (
        "there is no benchmark htp; there are http, append, offer, rebuild, snapshot, busy, "
        "death, artifacts, specialists, judgement, merging, improvement, latency, telemetry"
        in ran.output
    )


def test_the_help_names_every_benchmark() -> None:
    ran = CliRunner().invoke(main, ["--help"])
    assert ran.exit_code == 0
    assert all(name in ran.output for name in NAMES)


def test_fewer_than_three_repetitions_are_refused() -> None:
    # With a name that is none, so that nothing is measured even where they are not.
    ran = CliRunner().invoke(main, ["--repetitions", "2", "nothing"])
    assert ran.exit_code == 2
    assert "'--repetitions'" in ran.output


# A busy agent


def task(
    claimed: float, completed: float, evolver: tuple[float, float], reinventor: tuple[float, float]
) -> dict[str, object]:
    def moment(seconds: float) -> str:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()

    rivals = {
        name: {"first_step_at": begin, "last_step_at": end}
        for name, (begin, end) in (("evolver", evolver), ("reinventor", reinventor))
    }
    return {
        "claimed_at": moment(claimed),
        "completed_at": moment(completed),
        "result": {"metrics": {"rivals": rivals}},
    }


TASKS = [
    task(0.0, 11.25, (1.0, 4.0), (5.0, 10.0)),
    task(11.5, 22.0, (12.0, 15.0), (16.0, 21.0)),
    task(21.5, 33.0, (22.0, 25.0), (26.0, 31.0)),
]


def test_a_gap_runs_from_a_completion_to_the_next_claim_and_may_be_negative() -> None:
    assert busy.gaps_ms(TASKS) == [250.0, -500.0]


def test_training_covers_what_lies_between_first_and_last_steps() -> None:
    assert busy.covered(busy.rival_spans(TASKS)) == pytest.approx(24 / 30)
    assert busy.covered(busy.task_spans(TASKS)) == pytest.approx(27 / 30)


# Histories


def test_a_made_up_history_breaks_no_rule_and_is_the_same_again() -> None:
    stories = [history.Story(seed=5), history.Story(seed=5)]
    for story in stories:
        story.complete_over_http(10)
        story.train(20)
        story.queue(5)
    first, second = stories
    assert first.messages == second.messages
    assert first.state.tasks.counts["completed"] == 30
    assert first.state.tasks.counts["queued"] == 5
    assert not len(first.state.quarantine)
    records = [Record(seq, *message) for seq, message in enumerate(first.messages, 1)]
    assert audit.check(records) == []


async def test_a_history_is_stored_whole_in_batches() -> None:
    story = history.Story()
    story.queue(2 * BATCH_MESSAGES_MAX)
    log = MemoryLog()
    await history.store(log, story.messages)
    assert await log.last_seq() == len(story.messages)


# Specialists


def trained(row: specialists.Row, seed: int, source: str, error: float) -> specialists.Trained:
    return specialists.Trained(
        row=row.name, source=source, seed=seed, error=error, evidence=1.0, family="f", params=1
    )


def test_a_row_is_held_to_a_ratio_and_to_a_bound_where_its_figure_is_tiny() -> None:
    assert specialists.Row("n", "evolver", 1, 0.04).error_max == pytest.approx(0.05)
    for tiny in (0.0, 0.0015):
        assert specialists.Row("n", "evolver", 1, tiny).error_max == 0.002


def test_what_was_measured_is_known_again_after_a_break_but_not_of_other_code(
    tmp_path: Path,
) -> None:
    row, other = specialists.ROWS[:2]
    for seed, source in ((1, "old"), (2, "new"), (3, "new")):
        book = specialists.Book(tmp_path / "rows")
        book.add(trained(row, seed, source, 0.1 * seed))
    book = specialists.Book(tmp_path / "rows")
    assert [one.seed for one in book.trained(row, "new")] == [2, 3]
    assert book.trained(other, "new") == []


def test_a_checkpoint_holds_up_by_what_steps_near_it_take_longer() -> None:
    marks = [0.1 * step for step in range(50)]
    marks += [marks[-1] + 0.4 + 0.1 * step for step in range(50)]  # one of them took 0.3 s more
    assert specialists.held_up(marks, [marks[50]]) == [pytest.approx(0.3)]
    assert specialists.held_up(marks, []) == []


def test_every_seeded_node_has_its_rows() -> None:
    assert {row.node_id for row in specialists.ROWS} == {
        seed.node_id for seed in specializations.SEEDS
    }


def measured(*errors: float, size: int = 1, ms: float = 1.0) -> merging.Measured:
    return merging.Measured(merging.Stored(Path(), size, size), np.array(errors), ms)


def test_models_are_compared_by_their_ratios_on_the_same_cases_and_by_means_where_most_are_0() -> (
    None
):
    opponent = np.array([1.0, 2.0, 4.0, 8.0])
    half = merging.compared(opponent / 2, opponent)
    assert half == pytest.approx((0.5, 0.5, 0.5))
    near = merging.compared(opponent * np.array([0.5, 0.6, 0.4, 0.5]), opponent)
    assert near.lower < near.ratio < near.upper < 1
    rare = np.array([0.0, 0.0, 0.0, 4.0])
    assert merging.compared(rare / 2, rare).ratio == pytest.approx(0.5)


def test_the_front_is_of_error_bytes_and_time_and_knows_no_control() -> None:
    found = {
        "evolver": measured(0.2, size=9),
        "reinventor": measured(0.4, size=2),
        "student": measured(0.3, size=2),
        "ensemble": measured(0.2, size=9, ms=2.0),
        merging.CONTROL: measured(0.1, size=1, ms=0.1),
    }
    front = [name for name in found if merging.is_on_front(name, found)]
    assert front == ["evolver", "student", merging.CONTROL]


def test_a_merge_beats_both_rivals_only_surely_and_on_average() -> None:
    rivals = {"evolver": measured(2.0, 2.0, 2.0), "reinventor": measured(4.0, 4.1, 4.2)}
    for errors, beats in (((1.0, 1.1, 1.2), True), ((1.0, 2.2, 2.9), False), ((3.0,) * 3, False)):
        found = {**rivals, "student": measured(*errors)}
        assert merging.surely_below_both("student", found) == beats
