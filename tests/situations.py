"""Situations of nodes for tests of their plans."""

from typing import Any

from core import plans
from core.events import Reasons

NOT_BETTER = Reasons(
    en="Not surely better than the champion: its error is 1.02 times that of the champion.",
    ar="لم يثبت أنه أفضل من البطل: نسبة خطئه إلى خطأ البطل 1.02.",
)
BETTER = Reasons(en="Better than the champion.", ar="أفضل من البطل.")


def champion(**more: Any) -> plans.Champion:
    """A champion of 170,832 numbers, at 0.57 times the baseline's error."""
    values: dict[str, Any] = {
        "candidate_id": "cand-c",
        "rival": "evolver",
        "error": 0.1591,
        "baseline_error": 0.28,
        "evidence_rate": 0.75,
        "params": 170_832,
        "family": "residual-mlp",
        "steps": 1_284,
    }
    return plans.Champion(**{**values, **more})


def attempt(**more: Any) -> plans.Attempt:
    """An evolver that the judge rejected."""
    values: dict[str, Any] = {
        "candidate_id": "cand-e",
        "rival": "evolver",
        "verdict": "reject",
        "reasons": NOT_BETTER,
        "method": "full",
        "error": 0.1623,
        "params": 170_832,
        "family": "residual-mlp",
        "steps": 900,
        "budget_seconds": 40.0,
    }
    return plans.Attempt(**{**values, **more})


def outcome(*attempts: plans.Attempt, **more: Any) -> plans.Outcome:
    """A round that promoted nobody."""
    values: dict[str, Any] = {
        "round_id": "round-1",
        "verdict": "keep",
        "reasons": NOT_BETTER,
        "baseline_error": 0.2814,
        "attempts": attempts,
    }
    return plans.Outcome(**{**values, **more})


def situation(**more: Any) -> plans.Situation:
    """A node with a champion and nothing else."""
    values: dict[str, Any] = {
        "node_id": "stats-time-series",
        "name": "السلاسل الزمنية",
        "specialist": "stats-time-series",
        "budget_seconds_min": 3.0,
        "champion": champion(),
    }
    return plans.Situation(**{**values, **more})
