"""Gates, scales and candidates as tables."""

import pytest
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from cli import judged, tables, views

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
