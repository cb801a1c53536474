"""Gates, budgets, and what a round weighed, as tables."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from cli import tables, terminal, views
from core.gates import SETTINGS
from core.values import Gates

_DEFAULTS = Gates()


def gates(one: views.Gates) -> Table:
    """One gate a row: what holds, what would by default, and what it means."""
    rows = [
        (name, getattr(one, name), getattr(_DEFAULTS, name), setting.meaning)
        for name, setting in SETTINGS.items()
    ]
    return terminal.table(["gate", "value", "default", "meaning"], rows)


def limits(budgets: Sequence[views.Budget]) -> Table:
    """One budget a row."""
    return terminal.table(
        ["latency", "bytes", "champion", "error", "budget"],
        [
            (
                None if one.latency_max is None else f"≤ {one.latency_max:g} ×",
                None if one.bytes_max is None else f"≤ {one.bytes_max:,}",
                one.champion.candidate_id if one.champion else None,
                one.champion.error if one.champion else None,
                one.name,
            )
            for one in budgets
        ],
    )


def weighed(rows: Sequence[views.Weighed], champion: str | None) -> Table:
    """One model a row, and how well it answers; a star says that it is on the front: no other is
    better in all."""
    columns = ["model", "error", "shifted", "evidence", "params", "front"]
    return terminal.table(
        columns,
        [
            (
                f"{one.candidate_id} (champion)"
                if champion and one.candidate_id == champion
                else one.candidate_id,
                one.error,
                one.shifted_error,
                None if one.evidence_rate is None else f"{one.evidence_rate:.1%}",
                one.params,
                "*" if one.is_front else None,
            )
            for one in rows
        ],
    )


def costs(rows: Sequence[views.Weighed]) -> Table:
    """One model a row, and what it costs: latency in times of the reference kernel, between what it
    surely lies, and in times of the champion's."""
    columns = ["model", "latency", "surely between", "to champion", "bytes", "memory"]
    return terminal.table(columns, [_costs(one) for one in rows])


def _costs(one: views.Weighed) -> Sequence[object]:
    latency = one.latency
    return (
        one.candidate_id,
        None if latency is None else f"{latency.ratio:.3g} ×",
        None if latency is None else _between(latency.lower, latency.upper),
        None if latency is None or latency.against is None else f"{latency.against:.3g} ×",
        None if one.bytes is None else f"{one.bytes:,}",
        f"{one.memory_bytes / 1024:,.0f} KiB" if one.memory_bytes else None,
    )


def _between(lower: float | None, upper: float | None) -> str | None:
    if lower is None and upper is None:
        return None
    return f"{_figure(lower)} to {_figure(upper)}"


def _figure(value: float | None) -> str:
    return "…" if value is None else f"{value:.4g}"


def checks(candidates: Iterable[views.Candidate]) -> Table | None:
    """One gate of one candidate a row; None where nobody came to a gate."""
    rows = [
        (
            one.candidate_id,
            check.name,
            check.verdict,
            check.value,
            check.bound,
            _between(check.lower, check.upper),
        )
        for one in candidates
        for check in one.gates
    ]
    if not rows:
        return None
    return terminal.table(
        ["candidate", "gate", "verdict", "value", "bound", "surely between"], rows
    )


def life(one: views.Round) -> list[tuple[str, object]]:
    """How far a round is, and what it waits for."""
    roles = [
        f"{entry.role} {entry.state} ({entry.task_id}){f': {entry.reason}' if entry.reason else ''}"
        for entry in one.entries
    ]
    is_open = one.status == "open"
    return [
        ("opened", terminal.when(one.opened_at)),
        ("closes" if is_open else "deadline", terminal.when(one.closes_at)),
        *((("roles" if not number else ""), words) for number, words in enumerate(roles)),
        ("closed", one.close_reason),
        ("judge", one.judge),
        ("look", one.look or None),
        ("against", _name(one.champion)),
        ("best ever", _name(one.best)),
    ]


def _name(base: views.Base | None) -> str | None:
    return base.candidate_id if base else None


def outcome(one: views.Round) -> Iterator[tuple[str, object]]:
    """The figures of a verdict, and what it recommends."""
    if one.cases:
        yield "cases", f"{one.cases:,}, at α = {one.alpha:.3g}" if one.alpha else one.cases
    yield "champion error", one.champion_error
    yield "baseline", one.baseline_error
    if one.recommendation is not None:
        whom = one.recommendation.candidate_id
        yield "recommends", f"{one.recommendation.action}{f' {whom}' if whom else ''}"
        yield from tables.why(one.recommendation.reasons)


def budget_verdicts(rows: Sequence[views.BudgetVerdict]) -> list[tuple[str, object]]:
    """What a round means to each budget, in words."""
    told: list[tuple[str, object]] = []
    for one in rows:
        promoted = f"{one.promoted} reigns" if one.promoted else "nobody new reigns"
        against = f" instead of {one.against}" if one.against and one.promoted else ""
        told += [("budget", f"{one.budget}: {promoted}{against}"), *tables.why(one.reasons)]
    return told


def candidates(rows: Sequence[views.CandidateRecord]) -> Table:
    """One candidate a row; the rest is for whoever asks for one."""
    return terminal.table(
        ["candidate", "role", "verdict", "error", "bytes", "reigns over"],
        [
            (
                one.candidate_id,
                one.role,
                one.verdict or one.round_status,
                one.error,
                one.bytes,
                reigns(one),
            )
            for one in rows
        ],
        spare=("bytes", "role"),
    )


def sources(one: views.CandidateRecord) -> list[views.Base]:
    """What a candidate was made from: the champion it started from, or the parents of a merge."""
    return one.parents or ([one.base] if one.base else [])


def reigns(one: views.CandidateRecord) -> str:
    """Over what a candidate reigns now."""
    return ", ".join(f"budget {name}" if name else "the node" for name in one.reigns)
