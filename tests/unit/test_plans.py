"""What the AIs of a node plan: from its state, in its figures, in the language of who asks."""

import pytest

from core import plans
from core.events import Reasons
from tests.situations import BETTER, NOT_BETTER, attempt, champion, outcome, situation

ENGLISH, ARABIC = "how would you improve it?", "كيف تحسّنه؟"


def told(here: plans.Situation, prompt: str = ENGLISH) -> tuple[str, str]:
    """Both plans, each as one text."""
    both = plans.plans(here, prompt)
    return "\n".join(both.evolver.steps), "\n".join(both.reinventor.steps)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (ENGLISH, "en"),
        (ARABIC, "ar"),
        ("", "ar"),
        ("؟ 12 ...", "ar"),
        ("explain السلاسل الزمنية", "en"),
        ("السلاسل الزمنية", "ar"),
        ("stats-time-series", "en"),
        ("كيف نحسّن stats-time-series؟", "ar"),
        ("اشرح baseline و loss في هذه العقدة", "ar"),
        ("what is التحسين", "en"),
        ("شرح loss", "ar"),
        ("loss شرح", "en"),
        ("wie geht es weiter?", "en"),
    ],
)
def test_a_plan_is_in_the_language_of_most_words_of_the_prompt(prompt: str, expected: str) -> None:
    assert plans.language(prompt, ("stats-time-series", "السلاسل الزمنية")) == expected


def test_a_name_is_taken_out_of_a_prompt_as_a_word_only() -> None:
    assert plans.language("training شرح", ("in",)) == "en"
    assert plans.language("x explain شرح", ("x",)) == "en"


def test_the_focus_is_in_the_language_of_the_prompt_and_names_the_node() -> None:
    english, arabic = (plans.plans(situation(), prompt) for prompt in (ENGLISH, ARABIC))
    assert english.evolver.focus == "Gradual improvement within السلاسل الزمنية"
    assert english.reinventor.focus == "Rebuilding السلاسل الزمنية from nothing"
    assert arabic.evolver.focus == "تحسين تدريجي داخل اختصاص السلاسل الزمنية"
    assert arabic.reinventor.focus == "إعادة بناء من الصفر لاختصاص السلاسل الزمنية"


def test_the_same_situation_and_prompt_give_the_same_plans() -> None:
    here = situation(rounds=(outcome(attempt()),))
    assert plans.plans(here, ENGLISH) == plans.plans(here, ENGLISH)
    assert plans.plans(here, ENGLISH) != plans.plans(here, ARABIC)


def test_a_champion_is_what_one_goes_on_from_and_the_other_must_beat() -> None:
    figures = "(family residual-mlp, 170,832 numbers, 1,284 steps)"
    error = "Its error is 0.1591, 0.568 times the baseline's 0.28."
    evolver, reinventor = told(situation())
    assert f"Go on from the champion cand-c {figures}. {error}" in evolver
    assert "75 % of its answers lie within the tolerance." in evolver
    assert "the champion cand-c (family residual-mlp, 170,832 numbers)" in reinventor
    assert error in reinventor
    assert "fewer than its 170,832 numbers" in reinventor
    assert "surely below 0.1591" in reinventor


def test_a_new_champion_changes_the_figures_and_the_old_ones_are_gone() -> None:
    new = champion(candidate_id="cand-n", error=0.07, params=1_284, family="kernel-mixture")
    for text in told(situation(champion=new)):
        assert "cand-n" in text
        assert "0.07, 0.25 times the baseline's 0.28" in text
        assert "kernel-mixture, 1,284 numbers" in text
        assert not any(old in text for old in ("cand-c", "0.1591", "residual-mlp", "170,832"))


def test_the_same_figures_are_told_in_arabic() -> None:
    evolver, reinventor = told(situation(), ARABIC)
    assert "الإكمال من البطل cand-c (العائلة residual-mlp، عدد الأوزان 170,832" in evolver
    assert "خطؤه 0.1591، ونسبته إلى خطأ خط الأساس 0.28 هي 0.568" in reinventor


def test_a_champion_above_the_baseline_has_that_to_pass_first() -> None:
    text, _ = told(situation(champion=champion(error=0.42)))
    assert "0.42, 1.5 times the baseline's 0.28, so the baseline comes first" in text


@pytest.mark.parametrize(
    ("error", "baseline", "words"),
    [
        (0.0, 0.5, "It makes no error on the hidden cases; the baseline's is 0.5."),
        (0.1, 0.0, "Its error is 0.1, and the baseline makes none."),
        (1e-9, 1.0, "Its error is 1e-09, less than 0.001 times the baseline's 1."),
        (5e4, 1.0, "more than 1,000 times the baseline's 1, so the baseline comes first"),
        (float("nan"), 1.0, "Its error is not known."),
    ],
)
def test_errors_of_nothing_and_of_much_are_told_as_what_they_are(
    error: float, baseline: float, words: str
) -> None:
    for text in told(situation(champion=champion(error=error, baseline_error=baseline))):
        assert words in text


def test_a_rejected_attempt_is_told_with_its_figures_and_the_judges_reasons() -> None:
    here = situation(rounds=(outcome(attempt()),))
    evolver, _ = told(here)
    assert (
        "cand-e (family residual-mlp, 170,832 numbers, 900 steps), method full, was rejected in "
        f"round-1 with an error of 0.1623. The judge: “{NOT_BETTER.en}”"
    ) in evolver
    assert evolver != told(situation())[0]
    assert NOT_BETTER.ar in told(here, ARABIC)[0]


def test_a_reinvention_is_measured_by_its_size_beside_the_champion() -> None:
    small = attempt(
        candidate_id="cand-r", rival="reinventor", verdict="outranked", params=17_083, family="k"
    )
    _, reinventor = told(situation(rounds=(outcome(attempt(), small),)))
    assert "cand-r (family k, 17,083 numbers, 900 steps)" in reinventor
    assert "was outranked by another candidate in round-1" in reinventor
    assert "It has 0.1 times as many numbers as the champion." in reinventor


def test_a_reinvention_as_large_as_the_champion_is_told_to_be() -> None:
    _, reinventor = told(situation(rounds=(outcome(attempt(rival="reinventor")),)))
    assert "It has as many numbers as the champion." in reinventor


def test_a_promotion_is_told_and_speaks_for_going_on() -> None:
    won = attempt(candidate_id="cand-c", verdict="better", reasons=BETTER, error=0.1591)
    here = situation(
        rounds=(outcome(attempt()), outcome(won, verdict="promote", promoted="cand-c"))
    )
    evolver, reinventor = told(here)
    assert (
        "cand-c (family residual-mlp, 170,832 numbers, 900 steps), method full, was promoted"
        in (evolver)
    )
    assert "The last round round-1 promoted cand-c." in reinventor
    assert plans.trial(here, "evolver") == "again"


def test_a_void_round_says_why_and_changes_no_course() -> None:
    why = Reasons(en="Void: the key is lost.", ar="لا حكم: ضاع المفتاح.")
    void = outcome(attempt(verdict="unjudged", reasons=why), verdict="void", reasons=why)
    here = situation(rounds=(outcome(attempt()), void))
    evolver, reinventor = told(here)
    assert "was compared with nothing in round-1" in evolver
    assert "came to no verdict. The judge: “Void: the key is lost.”" in reinventor
    assert plans.trial(here, "evolver") == "again"


def test_a_trade_off_was_better_and_is_left_to_a_person_and_counts_as_no_rejection() -> None:
    traded = outcome(attempt(verdict="trade-off", reasons=BETTER), verdict="trade-off")
    here = situation(rounds=(traded,))
    evolver, reinventor = told(here)
    words = "was better and costs more than the gates allow, so that a person decides"
    assert words in evolver
    assert "round-1 left it to a person whom to promote" in reinventor
    evolver, reinventor = told(here, ARABIC)
    assert "كانت أفضل وكلفتها فوق ما تسمح به البوابات، فالقرار لإنسان" in evolver
    assert "تركت الجولة الأخيرة round-1 لإنسان أن يقرر من يُرقّى" in reinventor
    assert plans.trial(here, "evolver") == "again"
    chosen = situation(champion=champion(candidate_id="cand-e"), rounds=(traded,))
    assert "was promoted by a person, after its verdict in round-1" in told(chosen)[0]
    assert "رقّاها إنسان" in told(chosen, ARABIC)[0]


@pytest.mark.parametrize(
    ("verdict", "english", "arabic"),
    [
        ("undecided", "was neither surely better nor surely worse", "لم يتيقّن أنها أفضل"),
        ("cheaper", "was as good and cheaper, and another was promoted", "ورُقّي غيرها"),
    ],
)
def test_what_came_to_the_gate_was_compared(verdict: str, english: str, arabic: str) -> None:
    here = situation(rounds=(outcome(attempt(verdict=verdict)),))
    assert english in told(here)[0]
    assert arabic in told(here, ARABIC)[0]


def _rejections(side: str, *methods: str) -> tuple[plans.Outcome, ...]:
    return tuple(outcome(attempt(rival=side, method=method)) for method in methods)


@pytest.mark.parametrize(
    ("side", "methods", "runner_up", "expected"),
    [
        ("evolver", [], "", "again"),
        ("evolver", ["full"], "cand-x", "longer"),
        ("evolver", ["full", "full"], "cand-x", "merge"),
        ("evolver", ["full", "full"], "", "lora"),
        ("evolver", ["full", "lora"], "", "full"),
        ("reinventor", ["full"], "cand-x", "longer"),
        ("reinventor", ["full", "full"], "cand-x", "distill"),
        ("reinventor", ["full", "distill"], "cand-x", "quantize"),
    ],
)
def test_what_is_tried_next_follows_from_what_was_rejected(
    side: plans.Side, methods: list[str], runner_up: str, expected: str
) -> None:
    here = situation(rounds=_rejections(side, *methods), runner_up=runner_up)
    assert plans.trial(here, side) == expected
    assert plans.trial(situation(champion=None, rounds=here.rounds), side) == "first"


def test_a_merge_that_was_rejected_is_not_tried_again() -> None:
    rounds = (*_rejections("evolver", "full"), *_rejections("merge", "merge"))
    assert plans.trial(situation(rounds=rounds, runner_up="cand-x"), "evolver") == "lora"


def test_a_merge_names_the_champion_and_the_runner_up() -> None:
    here = situation(rounds=_rejections("evolver", "full", "full"), runner_up="cand-x")
    words = "after 2 rejections since the last promotion: merge cand-c with the runner-up cand-x"
    assert words in told(here)[0]


def test_a_longer_budget_is_twice_the_last_one_or_twice_its_steps() -> None:
    assert "The task before had 40 s; now 80 s." in told(situation(rounds=(outcome(attempt()),)))[0]
    unsaid = situation(rounds=(outcome(attempt(budget_seconds=0.0)),))
    assert "It took 900 steps before; now 1,800 steps." in told(unsaid)[0]


def test_the_least_useful_budget_is_told_where_there_is_one() -> None:
    for text in told(situation(budget_seconds_min=60.0)):
        assert "Less than 60 s on one core teaches it next to nothing." in text
    assert "No least budget is set" in told(situation(budget_seconds_min=0.0))[0]
    assert "budget" not in told(situation(budget_seconds_min=None))[0]
    assert "10 ثوانٍ" in told(situation(budget_seconds_min=10.0), ARABIC)[0]
    assert "60 ثانية" in told(situation(budget_seconds_min=60.0), ARABIC)[0]


def test_what_failed_is_told_to_whom_it_concerns() -> None:
    failed = plans.Failure(task_id="task-9", role="reinventor", reason="it diverged.")
    again = plans.Failure(task_id="task-8", role="dual", reason="a crash", is_final=False)
    evolver, reinventor = told(situation(failures=(again, failed)))
    assert "The last attempt at task-8 failed, and it is queued again: a crash." in evolver
    assert "task-9" not in evolver
    assert "task-9 failed for good: it diverged." in reinventor
    silent = plans.Failure(task_id="task-7", role="dual", reason="")
    assert "task-7 failed for good." in told(situation(failures=(silent,)))[0]


def test_a_rival_that_brought_nothing_is_told_of() -> None:
    missing = outcome(attempt(), missing=(("reinventor", "the task was cancelled"),))
    evolver, reinventor = told(situation(rounds=(missing,)))
    words = "round-1 got no candidate of the reinventor: the task was cancelled."
    assert words in reinventor
    assert words not in evolver


def test_open_tasks_come_first_and_many_are_counted() -> None:
    tasks = [plans.Open(task_id=f"task-{n}", role="dual") for n in range(5)]
    tasks[0] = plans.Open(task_id="task-0", role="dual", worker_id="a1")
    tasks.append(plans.Open(task_id="task-m", role="merge"))
    evolver, reinventor = told(situation(open=tuple(tasks), open_count=6))
    some = "task-0 (trained by a1), task-1 (queued), task-2 (queued)"
    assert f"First what is open: {some} and 3 more." in evolver
    assert f"First what is open: {some} and 2 more." in reinventor
    assert "No task of the node is open." in told(situation())[0]


def test_whose_turn_it_is_is_told() -> None:
    own = plans.Order(node_id="stats-time-series", name="السلاسل الزمنية", budget_seconds=120.0)
    other = plans.Order(node_id="root-math", name="الرياضيات")
    alone = plans.Order(node_id="root-math", name="الرياضيات", role="evolver")
    turn = "The orchestrator's next task would be one of"
    assert f"{turn} this node, of 120 s." in told(situation(order=own))[1]
    assert "الرياضيات, for the evolver alone: it" in told(situation(order=alone))[0]
    assert f"{turn} الرياضيات: it expects more of that." in told(situation(order=other))[0]
    assert "orchestrator" not in told(situation())[0]
    for obstacle, words in (("workers", "no worker"), ("judges", "judge"), ("nodes", "no node")):
        order = plans.Order(obstacle=obstacle)  # type: ignore[arg-type]
        assert words in told(situation(order=order))[0].splitlines()[-1]


def test_a_node_without_a_champion_is_told_what_a_first_one_has_to_beat() -> None:
    bare = situation(champion=None)
    for text in told(bare):
        assert "better than the trivial predictor" in text
        assert "No round of this work has been decided yet" in text
        assert "train a first model" in text
    known = situation(champion=None, rounds=(outcome(attempt()),))
    assert "The baseline's error in round-1 was 0.2814." in told(known)[0]


def test_work_is_told_with_what_it_is_on_and_whose_it_is() -> None:
    here = situation(
        specialist="text", corpus="kitab", base_model="small", inherited_from="الإحصاء"
    )
    words = "Its work is text on kitab, over the base model small (inherited from الإحصاء)."
    assert words in told(here)[0]
    assert "trains nothing yet" in told(situation(specialist=""))[0]


def test_long_words_of_others_are_cut_and_stay_on_one_line() -> None:
    failed = plans.Failure(task_id="task-9", role="dual", reason="a\nb " + "x" * 5_000)
    step = plans.plans(situation(failures=(failed,)), ENGLISH).evolver.steps[1]
    assert "failed for good: a b xxx" in step
    assert "…" in step
    assert len(step) < 2 * plans.TOLD_CHARS_MAX
