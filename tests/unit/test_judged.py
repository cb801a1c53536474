"""Gates, scales and candidates as tables."""

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from cli import judged, tables, terminal, views

NAME, ROUND = "cand-21f263b36988", "round-287ee29d5f10"
LATENCY = views.Latency(ratio=1.131, lower=1.112, upper=1.161, against=0.97)
WEIGHED = views.Weighed(
    candidate_id=NAME,
    error=0.0274523,
    shifted_error=0.0606985,
    evidence_rate=0.934,
    params=6746,
    bytes=1_048_576,
    memory_bytes=2_097_152,
    latency=LATENCY,
    is_front=True,
)
CHECK = views.Check(
    name="evidence",
    verdict="undecided",
    value=-0.00717163,
    bound=-0.01,
    lower=-0.008793,
    upper=0.00123,
)
STANDING = views.Candidate(
    candidate_id=NAME,
    role="reinventor",
    verdict="undecided",
    claimed=views.Claimed(loss=0.0277017),
    error=0.0278995,
    worker_id="agent-1",
    gates=[CHECK],
)
RECORD = views.CandidateRecord(
    candidate_id=NAME,
    role="reinventor",
    verdict="trade-off",
    error=0.0278995,
    bytes=1_048_576,
    round_id=ROUND,
    reigns=[""],
    topic="جولة تدريب",
)


@pytest.mark.parametrize(
    "table",
    [
        judged.weighed([WEIGHED], NAME),
        judged.costs([WEIGHED]),
        judged.checks([STANDING]),
        judged.candidates([RECORD]),
        tables.candidates([STANDING]),
    ],
)
def test_what_a_round_weighed_is_read_in_80_columns(table: Table) -> None:
    console = Console(width=200)
    assert Measurement.get(console, console.options, table).maximum <= 80


REIGN = views.Lineage(
    candidate_id=NAME,
    instead_of="cand-0f263b36988a",
    round_id=ROUND,
    role="reinventor",
    error=0.000278995,
    baseline_error=0.557123,
    evidence_rate=0.934,
    params=6746,
    bytes=1_048_576,
    by="person",
    choice="rollback",
    because="أفضل على بيانات العميل في رمضان",
    promoted_at="2026-11-23T10:11:12.123456Z",
)
LISTED = views.Round(
    round_id=ROUND,
    node_id="node-0f263b36988a",
    status="decided",
    verdict="trade-off",
    opened_at="2026-11-23T10:11:12.123456Z",
    decided_at="2026-11-24T10:11:12.123456Z",
)
QUEUED = views.Task(
    task_id="task-0f263b36988a",
    status="completed",
    priority=5,
    node_id="stats-bayesian",
    role="reinventor",
    assigned_worker="gpu-worker-17",
    topic="تقدير متوسط توزيع بايزي من قراءات قليلة ذات ضجيج متغير " * 2,
)


def lines(table: Table, width: int) -> list[str]:
    """As a terminal of that width shows it."""
    console = Console(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [60, 79, 90, 100, 200])
@pytest.mark.parametrize(
    ("table", "whole"),
    [
        (judged.candidates([RECORD, msgspec.structs.replace(RECORD, reigns=["", "b" * 32])]),
         [NAME, "0.0278995", "the node"]),
        (tables.history([REIGN, REIGN]), [NAME, "cand-0f263b36988a", ROUND, "0.000278995"]),
        (tables.rounds([LISTED]), [ROUND, "node-0f263b36988a", "trade-off"]),
        (tables.tasks([QUEUED, QUEUED]), ["task-0f263b36988a", "stats-bayesian", "completed"]),
        (judged.weighed([WEIGHED], NAME), [NAME, "0.0274523", "6746"]),
        (judged.costs([WEIGHED]), [NAME, "1,048,576"]),
        (judged.checks([STANDING]), [NAME, "-0.00717163"]),
        (tables.candidates([STANDING]), [NAME, "0.0278995", "agent-1"]),
    ],
)  # fmt: skip
def test_a_narrow_terminal_breaks_no_id_and_no_number(
    table: Table, whole: list[str], width: int
) -> None:
    shown = lines(table, width)
    assert max(map(cell_len, shown)) <= width
    for word in whole:
        assert any(word in line for line in shown), word


def test_a_topic_is_cut_where_it_does_not_fit() -> None:
    shown = lines(tables.tasks([QUEUED, QUEUED]), 80)
    assert len(shown) == 4
    assert shown[1].rstrip().endswith("…")
    assert shown[-1].startswith("on wider lines also: ")


@pytest.mark.parametrize("width", [80, 100])
def test_a_whole_round_breaks_no_hash(width: int) -> None:
    one = views.Round(
        round_id=ROUND, champion_error=0.5, budgets=[views.BudgetVerdict(budget="b" * 32)]
    )
    told = terminal.facts(
        [*judged.outcome(one), *judged.budget_verdicts(one.budgets), ("secret", "f" * 64)]
    )
    assert any("f" * 64 in line for line in lines(told, width))
