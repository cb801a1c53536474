"""What a training came to: a table against the methods that learn nothing, in both languages."""

import math

from rich.table import Table

from agent.executors.jobs import Result
from cli import terminal

SHARE_TOLD_MAX = 1_000.0
OTHERS = {
    "soup": "المزيج",
    "student": "التلميذ",
    "ensemble": "المجموعة",
    "quantized": "صيغة int8",
}
"""What a merge makes beside its better model."""


def facts(result: Result, seed: int) -> Table:
    """What was trained, and where it lies."""
    made = f" ({result.made})" if result.made else ""
    before = None
    if result.float_loss is not None:
        latency = _latency(result.float_latency_ms)
        before = f"error {result.float_loss:.4g}, {result.float_bytes:,} bytes{latency}"
    size = f"{result.params:,} parameters, {result.bytes:,} bytes{_latency(result.latency_ms)}"
    return terminal.facts(
        [
            ("node", f"{result.node_id} · {result.role}{made} · seed {seed}"),
            ("model", f"{result.family}, {size}"),
            ("method", f"{result.method}: {result.method_reason}"),
            ("in float32", before),
            ("steps", f"{result.steps:,}"),
            ("computed on", f"{result.device}, threads: {result.threads}"),
            ("evidence", f"{result.evidence_rate:.1%}"),
            ("weights", result.weights_sha256),
            ("in", result.candidate_directory),
        ]
    )


def table(result: Result) -> Table:
    """The model among the methods that learn nothing, the best first."""
    rows = [(result.loss, "this model · هذا النموذج")]
    if result.latency_ms is not None and result.float_loss is not None:
        rows = [
            (result.loss, f"this model · هذا النموذج (int8: {result.latency_ms:.3g} ms)"),
            (result.float_loss, f"the same · نفسه (float32: {result.float_latency_ms:.3g} ms)"),
        ]
    rows += [(one.loss, f"{one.made} · {OTHERS[one.made]}") for one in result.others]
    for method, error in result.baselines.items():
        is_baseline = method == result.baseline
        rows.append((error, method + (" (the baseline · خط الأساس)" if is_baseline else "")))
    return terminal.table(
        ["error", "of the baseline", "method"],
        [
            (f"{error:.4g}", _share(error, result.baseline_loss), name)
            for error, name in sorted(rows, key=lambda row: row[0])
        ],
    )


def words(result: Result) -> tuple[str, str]:
    """The same in a sentence, English and Arabic."""
    share = _share(result.loss, result.baseline_loss)
    error, baseline = f"{result.loss:.4g}", f"{result.baseline_loss:.4g} ({result.baseline})"
    evidence = f"{100 * result.evidence_rate:.1f} %"
    english = (
        f"After {result.steps:,} steps the model errs by {error} on average, {share} of the "
        f"baseline's {baseline}; {evidence} of its answers are within the tolerance."
    )
    arabic = (
        f"بعد {result.steps:,} خطوة صار متوسط خطأ النموذج {error}، أي {share} من خطأ خط الأساس "
        f"{baseline}؛ و{evidence} من إجاباته ضمن حد التسامح."
    )
    return english, arabic


def title(result: Result) -> str:
    """What stands above a picture of the model."""
    return (
        f"{result.node_id} · {result.role} · {result.family}, {result.params:,} parameters, "
        f"{result.steps:,} steps\nmean error {result.loss:.3g}, baseline ({result.baseline}) "
        f"{result.baseline_loss:.3g}"
    )


def _latency(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f", {milliseconds:.3g} ms an answer"


def _share(error: float, baseline: float) -> str:
    percent = 100 * error / baseline if baseline else math.inf
    return f"{percent:.3g} %" if percent < SHARE_TOLD_MAX else f"over {SHARE_TOLD_MAX:,.0f} %"
