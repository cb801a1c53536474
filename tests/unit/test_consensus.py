"""Who is put to the gate, who wins a round, and what is left to a person."""

import re

import msgspec
import pytest

from core.values import Budget, Check, Gates, Latency, Reasons, Weighed
from orchestrator import consensus, rulings
from orchestrator.consensus import Put
from tests.unit.test_gates import timed

GATES = Gates()
ARABIC = re.compile(r"[\u0600-\u06ff]")


def weighed(
    name: str, error: float, latency: float | None = 1.0, size: int = 1_000, **more: object
) -> Weighed:
    values: dict[str, object] = {
        "candidate_id": name,
        "error": error,
        "evidence_rate": 0.5,
        "params": size,
        "bytes": size,
        "latency": _timed(latency) if latency else None,
        **more,
    }
    return Weighed(**values)  # type: ignore[arg-type]


def _timed(latency: float) -> Latency:
    found = timed(latency)
    return Latency(**{**{f: getattr(found, f) for f in found.__struct_fields__}, "ratio": latency})


def put(name: str, verdict: rulings.Verdict, ratio: float = 0.9) -> Put:
    ruling = rulings.Ruling(
        verdict=verdict,
        settled=True,
        method="log-ratio",
        alpha=0.03,
        cases=2_048,
        error=0.1,
        opponent_error=0.1,
        evidence_rate=0.5,
        opponent_evidence_rate=0.5,
        reasons=Reasons(ar="", en=""),
        ratio=ratio,
        checks=(Check(name="latency", verdict="fail", value=2.0, bound=1.5, lower=1.9, upper=2.1),),
    )
    return Put(name, ruling)


CHAMPION = weighed("king", 0.1)


# ── the front ──


def test_the_front_holds_whatever_no_other_beats_in_everything() -> None:
    told = consensus.fronted(
        [
            weighed("accurate", 0.1, 2.0, 2_000),
            weighed("fast", 0.3, 0.5, 2_000),
            weighed("small", 0.3, 2.0, 500),
            weighed("beaten", 0.3, 2.0, 2_000),
            weighed("its equal", 0.1, 2.0, 2_000),
        ]
    )
    front = {one.candidate_id for one in told if one.is_front}
    assert front == {"accurate", "fast", "small", "its equal"}


def test_without_latencies_error_and_bytes_make_the_front() -> None:
    told = consensus.fronted([weighed("a", 0.1, None, 9), weighed("b", 0.2, None, 10)])
    assert [one.is_front for one in told] == [True, False]


# ── picks ──


def test_the_lowest_ranking_error_goes_to_the_gate_and_alone_where_nothing_is_cheaper() -> None:
    rivals = [weighed("a", 0.09), weighed("b", 0.08), weighed("c", 0.101)]
    assert consensus.picks(rivals, CHAMPION, GATES) == ("b",)
    assert consensus.picks(rivals, None, GATES) == ("b",)
    assert consensus.picks([], CHAMPION, GATES) == ()


def test_of_equal_errors_the_smaller_model_is_picked() -> None:
    rivals = [weighed("a", 0.09, size=2_000), weighed("b", 0.09)]
    assert consensus.picks(rivals, CHAMPION, GATES) == ("b",)


def test_the_cheapest_of_those_within_the_margin_goes_along() -> None:
    rivals = [
        weighed("best", 0.09),
        weighed("smaller", 0.101, size=600),
        weighed("smallest", 0.101, size=400),
        weighed("tiny and bad", 0.11, size=10),
        weighed("small and slow", 0.1, 1.3, size=10),
    ]
    assert consensus.picks(rivals, CHAMPION, GATES) == ("best", "smallest")


def test_a_model_that_is_best_and_cheapest_goes_alone() -> None:
    rivals = [weighed("best", 0.09, 0.5), weighed("other", 0.1, 0.7)]
    assert consensus.picks(rivals, CHAMPION, GATES) == ("best",)


def test_beside_a_model_that_costs_too_much_goes_the_best_that_does_not() -> None:
    rivals = [weighed("huge", 0.07, 3.0), weighed("good", 0.09), weighed("small", 0.1, 0.5)]
    assert consensus.picks(rivals, CHAMPION, GATES) == ("huge", "good")
    assert consensus.picks(rivals[::2], CHAMPION, GATES) == ("huge", "small")


def test_a_latency_is_clear_only_of_all_that_its_bound_may_grow_to() -> None:
    half = weighed("half", 0.05)  # the bound is 1.1 to 1.1 x 2 ** 0.5 = 1.56
    found = [
        consensus.is_clear(timed(against), half, CHAMPION, GATES)
        for against in (1.08, 1.11, 1.4, 1.55, 1.6)
    ]
    assert found == [True, False, False, False, True]
    equal = weighed("equal", 0.1)
    assert consensus.is_clear(timed(1.4), equal, CHAMPION, GATES)
    assert not consensus.is_clear(timed(0.8), equal, CHAMPION, GATES)


# ── what it comes to ──


def concluded(*put_: Put) -> consensus.Conclusion:
    models = consensus.fronted([CHAMPION, weighed("a", 0.05, 3.0), weighed("b", 0.1, 0.5)])
    return consensus.concluded("node-7", put_, models, "king")


@pytest.mark.parametrize(
    ("verdicts", "verdict", "promoted", "action"),
    [
        (("better", "cheaper"), "promote", "a", "promote"),
        (("reject", "cheaper"), "promote", "b", "promote"),
        (("trade-off", "better"), "promote", "b", "promote"),
        (("trade-off", "reject"), "trade-off", "", "ask"),
        (("reject", "undecided"), "undecided", "", "keep"),
        (("trade-off", "undecided"), "trade-off", "", "ask"),
        (("reject", "reject"), "keep", "", "keep"),
    ],
)
def test_what_a_round_comes_to(
    verdicts: tuple[rulings.Verdict, rulings.Verdict], verdict: str, promoted: str, action: str
) -> None:
    found = concluded(put("a", verdicts[0]), put("b", verdicts[1]))
    assert (found.verdict, found.promoted, found.recommendation.action) == (
        *(verdict, promoted, action),
    )


def test_a_person_is_asked_by_the_command_that_answers() -> None:
    advice = concluded(put("a", "trade-off", 0.4)).recommendation
    assert advice.candidate_id == "a"
    for words in (advice.reasons.en, advice.reasons.ar):
        assert "`aghsan champion promote node-7 a`" in words
        assert "0.4" in words
    assert "latency" in advice.reasons.en
    assert advice.reasons.en.startswith("The choice is yours: a is surely better, but it costs")
    assert advice.reasons.ar.startswith("القرار لك: ")
    assert "لاختياره نفّذ" in advice.reasons.ar
    beside = concluded(put("a", "trade-off"), put("b", "better")).recommendation
    assert "`aghsan champion promote node-7 a`" in beside.reasons.en


def test_why_another_one_that_might_have_reigned_does_not_is_told() -> None:
    reasons = concluded(put("a", "better"), put("b", "better")).recommendation.reasons
    assert (
        "a is promoted and not b, since its mean error on the ranking cases is lower "
        "(0.05 against 0.1); to have a model like b serve beside it, state a budget: "
        "`aghsan gates node-7 --budget …`." in reasons.en
    )
    assert "يُرقّى a لا b، لأن متوسط خطئه على حالات الترتيب أقل (0.05 مقابل 0.1)" in reasons.ar
    cheaper = concluded(put("a", "better"), put("b", "cheaper")).recommendation.reasons
    assert "since it is surely better, and the other as good and cheaper" in cheaper.en
    alone = concluded(put("a", "better"), put("b", "reject")).recommendation.reasons
    assert "and not b" not in alone.en


def test_a_nearest_one_that_is_surely_worse_is_called_so() -> None:
    a = put("a", "reject", 12.7)
    worse = Put("a", msgspec.structs.replace(a.ruling, standing="higher"))
    assert "a is surely worse. Of a, the error is 12.7" in (
        concluded(worse).recommendation.reasons.en
    )
    assert "surely worse" not in concluded(a).recommendation.reasons.en


def test_every_advice_is_told_in_both_languages() -> None:
    verdicts: tuple[rulings.Verdict, ...] = (
        *("better", "cheaper", "trade-off", "undecided", "reject"),
    )
    for verdict in verdicts:
        reasons = concluded(put("a", verdict)).recommendation.reasons
        assert ARABIC.search(reasons.ar)
        assert not ARABIC.search(reasons.en)
        for words in (reasons.ar, reasons.en):
            assert words.endswith(".")
            assert not re.search(r"inf|nan|None|—", words)


# ── budgets ──


def test_a_budget_is_for_the_lowest_error_of_those_within_it() -> None:
    models = [CHAMPION, weighed("a", 0.05, 3.0), weighed("b", 0.2, 0.5, 10)]
    for budget, name in (
        (Budget(name="all"), "a"),
        (Budget(name="fast", latency_max=1.0), "king"),
        (Budget(name="small", bytes_max=10), "b"),
        (Budget(name="none", latency_max=0.1), ""),
    ):
        assert consensus.pick_for(budget, models) == name
    untimed = [weighed("c", 0.1, None)]
    assert consensus.pick_for(Budget(name="fast", latency_max=9.0), untimed) == ""
    assert consensus.pick_for(Budget(name="small", bytes_max=1_000), untimed) == "c"
