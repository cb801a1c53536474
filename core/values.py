"""Values that events and rows are made of, and in which judgements are told."""

from typing import Literal, TypeAlias

import msgspec

CheckVerdict: TypeAlias = Literal["pass", "fail", "undecided"]
RoundVerdict: TypeAlias = Literal["promote", "keep", "trade-off", "undecided", "void"]


class Value(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A value inside events and rows."""


class Reasons(Value, frozen=True, kw_only=True):
    """Why, in words, in both languages."""

    ar: str
    en: str


class Budget(Value, frozen=True, kw_only=True):
    """What somebody who serves models can afford: a node has a champion of its own for each.

    `latency_max` is in times of the reference kernel; None bounds nothing.
    """

    name: str
    latency_max: float | None = None
    bytes_max: int | None = None


class Gates(Value, frozen=True, kw_only=True):
    """By which bounds a node's candidates are judged; ratios are to the champion's figures.

    A candidate is *better* if its error is surely below `better_ratio`, and *cheaper* if it is
    surely below `margin`, also against the best ever, and latency below `cheaper_latency` or bytes
    below `cheaper_size`. Both lose at most `evidence_drop` of the evidence rate, and stay within
    the bounds of latency, size, memory and error on shifted inputs.

    `exchange` is the stated preference between error and cost: a better candidate's bounds of
    latency, size and memory grow by (1 / ratio of errors) ** exchange, to `exchange_most` times
    what they were; 0 gives nothing for a lower error.
    """

    better_ratio: float = 0.99
    margin: float = 1.02
    evidence_drop: float = 0.01
    latency_ratio: float = 1.10
    size_ratio: float = 1.5
    memory_ratio: float = 1.5
    shifted_ratio: float = 1.25
    cheaper_latency: float = 0.8
    cheaper_size: float = 0.7
    exchange: float = 0.5
    exchange_most: float = 2.0
    budgets: tuple[Budget, ...] = ()


class Latency(Value, frozen=True, kw_only=True):
    """How long a model takes for one input. `ratio` is to the reference kernel, timed in turns with
    it, 20 % quantile to 20 % quantile, surely between `lower` and `upper`.

    `against` is the ratio to the champion's latency, timed in the same turns; None where there was
    no champion. `spread` is that of the reference kernel, 80 % quantile to 20 %, less 1: how busy
    the machine was. `readings` were taken until the ratio to the champion's was clear of its bound,
    five at most. A model whose reading is another's of the same architecture names it.
    """

    ratio: float
    lower: float
    upper: float
    p50_ms: float
    p95_ms: float
    reference_ms: float
    spread: float
    against: float | None = None
    against_lower: float | None = None
    against_upper: float | None = None
    readings: int = 1
    shared_with: str = ""


class Check(Value, frozen=True, kw_only=True):
    """One gate's verdict: what was measured, between what it surely lies, and what was asked."""

    name: str
    verdict: CheckVerdict
    value: float | None = None
    bound: float | None = None
    lower: float | None = None
    upper: float | None = None


class Weighed(Value, frozen=True, kw_only=True):
    """A model on the scales of a round: its figures on the ranking cases, the champion's too.
    `is_front` says that no other is as good in error, latency and bytes and better in one of them;
    `shifted_error` is the error on inputs beyond those that models are trained on, None where there
    are none."""

    candidate_id: str
    error: float
    evidence_rate: float
    params: int
    bytes: int
    memory_bytes: int = 0
    latency: Latency | None = None
    shifted_error: float | None = None
    is_front: bool = False


class Recommendation(Value, frozen=True, kw_only=True):
    """What a round comes to: promote a model, keep the champion, or ask a person who of two they
    prefer. `candidate_id` is whom it speaks for, "" where that is the champion or nobody."""

    action: Literal["promote", "keep", "ask"]
    reasons: Reasons
    candidate_id: str = ""


class BudgetVerdict(Value, frozen=True, kw_only=True):
    """What a round means to the champion of a budget. `against` is who reigned there, "" for
    nobody; `promoted` who does so now, "" where nobody new."""

    budget: str
    reasons: Reasons
    against: str = ""
    promoted: str = ""
    look: int = 0
    alpha: float = 0.0
    cases: int = 0
    error: float | None = None
    champion_error: float | None = None
    ratio: float | None = None
    ratio_upper: float | None = None
