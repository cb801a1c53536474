"""Lists of workers, tasks, rounds and nodes as tables."""

import json
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.tree import Tree

from cli import figures, terminal, views


def workers(rows: Sequence[views.Worker]) -> Table:
    """One worker a row."""
    columns = [
        *("worker", "status", "seen", "via", "lane", "task", "step", "loss"),
        *("samples", "device", "memory", "price", "claims", "host"),
    ]
    return terminal.table(
        columns,
        [
            (
                row.worker_id,
                _status(row),
                terminal.ago(row.last_seen),
                row.via,
                row.lane,
                row.held,
                row.progress,
                row.loss,
                figures.rate(row.samples_per_second),
                figures.percent(row.utilisation),
                figures.memory(row.memory_bytes),
                row.price_per_hour,
                claims(row.claims),
                row.hostname,
            )
            for row in rows
        ],
        spare=("host", "price", "memory", "device", "samples", "via", "lane", "loss"),
    )


def worker(row: views.Worker) -> list[tuple[str, object]]:
    """One worker, by name and value."""
    judged = f"{row.claims.judged} judged, {row.claims.off} off"
    return [
        ("worker", row.worker_id),
        ("status", _status(row)),
        ("seen", terminal.ago(row.last_seen)),
        ("via", row.via),
        ("lane", row.lane),
        ("host", row.hostname),
        ("tasks", row.held),
        ("step", row.progress),
        ("price", None if row.price_per_hour is None else f"{row.price_per_hour:g} an hour"),
        ("claims", f"{judged}, doubtful" if row.claims.doubtful else judged),
        *(
            ("unfit", f"{one.node_id} ({one.role}, {one.method}): {one.reason}")
            for one in row.unfit
        ),
    ]


def claims(of: views.Claims) -> str | None:
    """Only where some were off."""
    if not of.off:
        return None
    return f"{of.off} of {of.judged} off{', doubtful' if of.doubtful else ''}"


def _status(row: views.Worker) -> str | None:
    status = "offline" if row.online is False else row.status
    return f"{status}, {PAUSES[row.pause]}" if row.pause in PAUSES else status


PRICED_WHOLLY = 0.995
PAUSES = {"pause": "paused", "drain": "draining"}


def tasks(rows: Sequence[views.Task]) -> Table:
    """One task a row, its topic last."""
    columns = ["task", "status", "prio", "node", "role", "loss", "worker", "topic"]
    return terminal.table(
        columns,
        [
            (
                row.task_id,
                row.status,
                row.priority,
                row.node_id,
                row.role,
                row.result.metrics.get("loss") if row.result else None,
                row.assigned_worker,
                terminal.short(row.topic),
            )
            for row in rows
        ],
        spare=("loss", "role", "prio", "worker"),
        is_cut=True,
    )


def rounds(rows: Sequence[views.Round]) -> Table:
    """One round a row, with its times where the server tells them."""
    times = ["opened", "decided"] if any(row.opened_at for row in rows) else []
    return terminal.table(
        ["round", "status", *times, "verdict", "node"],
        [
            (
                row.round_id,
                row.status,
                *(terminal.when(at) for at in (row.opened_at, row.decided_at) if times),
                row.verdict,
                row.node_id,
            )
            for row in rows
        ],
        spare=("opened", "decided"),
    )


def accounts(rows: Sequence[views.RivalAccount]) -> Table:
    """One rival of a node a row; the sums have no node."""
    return terminal.table(
        ["node", "rival", "rounds", "won", "lost", "absent", "error", "device", "cost"],
        [
            (
                row.node_id or "all",
                row.rival,
                row.rounds,
                row.won,
                row.lost,
                row.absent,
                None if row.error_factor is None else f"× {row.error_factor:.3g}",
                terminal.span(row.device_seconds),
                _cost(row),
            )
            for row in rows
        ],
    )


def _cost(row: views.RivalAccount) -> str | None:
    """Where the price of some of the time is not known, of how much it is."""
    if row.cost is None:
        return None
    share = row.priced_seconds / row.device_seconds if row.device_seconds else 1.0
    return f"{row.cost:.3g}" if share > PRICED_WHOLLY else f"{row.cost:.3g}, priced {share:.0%}"


def candidates(rows: Sequence[views.Candidate]) -> Table:
    """One candidate a row."""
    return terminal.table(
        ["candidate", "role", "verdict", "claimed", "measured", "worker"],
        [
            (
                row.candidate_id,
                row.role,
                row.verdict,
                row.claimed.loss if row.claimed else None,
                row.error,
                row.worker_id,
            )
            for row in rows
        ],
    )


def attempts(rows: Sequence[views.Attempt]) -> Table:
    """One attempt a row, its reason last."""
    return terminal.table(
        ["attempt", "outcome", "from step", "claimed", "ended", "worker", "reason"],
        [
            (
                row.attempt,
                row.outcome or row.state,
                row.resumed_from,
                terminal.when(row.claimed_at),
                terminal.when(row.ended_at),
                row.worker_id,
                row.reason,
            )
            for row in rows
        ],
    )


def lineage(rows: Sequence[views.Lineage]) -> Table:
    """One champion a row, in the order they reigned."""
    return terminal.table(
        ["champion", "role", "error", "promoted", "round"],
        [
            (row.candidate_id, row.role, row.error, terminal.when(row.promoted_at), row.round_id)
            for row in rows
        ],
        spare=("role",),
    )


def history(rows: Sequence[views.Lineage]) -> Table:
    """One reign a row: the figures of its champion, who made it that, and how it ended where nobody
    followed."""
    columns = [
        *("promoted", "by", "champion", "instead of", "rival", "error", "baseline", "evidence"),
        *("params", "bytes", "round", "ended", "why"),
    ]
    return terminal.table(
        columns,
        [
            (
                terminal.when(row.promoted_at),
                f"{row.by}, {row.choice}" if row.choice else row.by,
                row.candidate_id,
                row.instead_of,
                row.role,
                row.error,
                row.baseline_error,
                None if row.evidence_rate is None else f"{row.evidence_rate:.1%}",
                row.params,
                row.bytes,
                row.round_id,
                terminal.when(row.retired_at),
                "; ".join(words for words in (row.because, row.reason) if words),
            )
            for row in rows
        ],
    )


def tree(nodes: Sequence[views.Node]) -> Tree:
    """The tree of specializations, ids first."""
    whole = Tree("", hide_root=True)
    branches: dict[str, Tree] = {}
    for node in nodes:
        above = branches.get(node.parent_id or "", whole)
        label = f"{terminal.value(node.node_id)}  {terminal.short(node.name)}".rstrip()
        branches[node.node_id] = above.add(label)
    return whole


def workload(what: views.Workload | None) -> str:
    """What is trained, in a few words."""
    if what is None or not what.specialist:
        return ""
    differs = "".join(f" {name}={value:g}" for name, value in what.parameters.items())
    of = f" of {terminal.clean(what.corpus.name)}" if what.corpus else ""
    over = f" over {terminal.clean(what.base_model.name)}" if what.base_model else ""
    return f"{what.specialist}{of}{over}{differs}{', inherited' if what.inherited else ''}"


def against_baseline(champion: views.Champion | None) -> str:
    """An error, and whether the baseline of record is beaten."""
    if champion is None or champion.error is None:
        return ""
    words = f"{champion.error:.6g}"
    if champion.baseline_error is not None:
        words += f" against {champion.baseline_error:.6g} of the baseline"
    return words + (", which it has still to beat" if champion.below_baseline else "")


def why(reasons: views.Reasons | None) -> list[tuple[str, str | None]]:
    """Reasons in both languages."""
    return [] if reasons is None else [("why", reasons.en), ("السبب", reasons.ar)]


SHOWN_ELSEWHERE = ("workload", "seed", "rivals", "losses", "finished_at")
"""Metrics of an agent's result that a task shows in places of their own."""


def metrics(of_result: Mapping[str, object]) -> list[tuple[str, str]]:
    """The figures of a result, whatever its worker called them."""
    return [
        (
            name,
            terminal.value(figure) if _is_plain(figure) else json.dumps(figure, ensure_ascii=False),
        )
        for name, figure in of_result.items()
        if name not in SHOWN_ELSEWHERE
    ]


def _is_plain(figure: object) -> bool:
    return not isinstance(figure, dict | list)


def rivals(of_result: Mapping[str, object]) -> Table | None:
    """What each rival of a task came to, a row each; None where its worker says nothing of it."""
    each = of_result.get("rivals")
    if not isinstance(each, dict) or not all(isinstance(one, dict) for one in each.values()):
        return None
    columns = (
        "loss",
        "evidence_rate",
        "steps",
        "params",
        "bytes",
        "latency_ms",
        "float_latency_ms",
        "resumed_from",
        "weights_sha256",
    )
    return terminal.table(
        ["rival", *columns],
        [(name, *(one.get(column) for column in columns)) for name, one in each.items()],
    )


def telemetry(rivals: Sequence[views.RivalTelemetry]) -> list[tuple[str, str]]:
    """What each rival's training came to."""
    return [(one.rival, " · ".join(figures.summary(one))) for one in rivals]


def methods(one: views.Task) -> list[tuple[str, str | None]]:
    """The method that was asked for, and what each rival's worker chose and why, as far as it is
    known."""
    brought = {model.rival for model in one.candidates}
    known = [(at.rival, at.method) for at in one.resume if at.method and at.rival not in brought]
    chosen = [f"{rival}: {method}" for rival, method in known]
    chosen += [
        f"{made.rival}: {made.method}, {made.method_reason}"
        for made in one.candidates
        if made.method
    ]
    return [("method", one.method), *(("", words) for words in chosen)]


def losses(points: Sequence[views.LossPoint]) -> list[tuple[str, str]]:
    """A curve for each rival, from first to last."""
    curves: dict[str, list[views.LossPoint]] = {}
    for point in points:
        if point.loss is not None:
            curves.setdefault(point.rival, []).append(point)
    return [(f"loss {rival}".rstrip(), _curve(curve)) for rival, curve in curves.items()]


def _curve(points: Sequence[views.LossPoint]) -> str:
    values = [point.loss for point in points if point.loss is not None]
    return (
        f"{values[0]:.4g} {terminal.sparkline(values)} {values[-1]:.4g} at step {points[-1].step}"
    )
