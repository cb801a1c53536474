"""Whatever a node's state, its plans can be told, and tell of nothing that is not there."""

import re
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from core import plans
from core.events import Reasons, Rival, Role

LETTERS = "xyzسصض \n"
WORDS = st.text(LETTERS, max_size=12)
IDS = st.text("xyz-", min_size=1, max_size=12)
NUMBERS = st.one_of(
    st.just(0.0),
    st.floats(min_value=0.0, allow_infinity=True, allow_nan=False),
    st.just(float("nan")),
)
BUDGETS = st.floats(min_value=0.0, max_value=1e9)
COUNTS = st.integers(min_value=0, max_value=10**12)
RIVALS, ROLES = (st.sampled_from(get_args(kind)) for kind in (Rival, Role))
REASONS = st.builds(Reasons, en=WORDS, ar=WORDS)
ATTEMPTS = st.builds(
    plans.Attempt,
    candidate_id=IDS,
    rival=RIVALS,
    verdict=st.sampled_from(("better", "reject", "outranked", "refused", "unjudged", "v")),
    reasons=REASONS,
    method=st.sampled_from(("", "full", "lora", "distill", "quantize", "merge")),
    error=st.none() | NUMBERS,
    params=COUNTS,
    family=WORDS,
    steps=COUNTS,
    budget_seconds=BUDGETS,
)
OUTCOMES = st.builds(
    plans.Outcome,
    round_id=IDS,
    verdict=st.sampled_from(("promote", "keep", "void")),
    reasons=REASONS,
    promoted=st.just("") | IDS,
    baseline_error=st.none() | NUMBERS,
    attempts=st.lists(ATTEMPTS, max_size=3).map(tuple),
    missing=st.lists(st.tuples(RIVALS, WORDS), max_size=2).map(tuple),
)
CHAMPIONS = st.builds(
    plans.Champion,
    candidate_id=IDS,
    rival=RIVALS,
    error=NUMBERS,
    baseline_error=NUMBERS,
    evidence_rate=NUMBERS,
    params=COUNTS,
    family=WORDS,
    steps=COUNTS,
)
SITUATIONS = st.builds(
    plans.Situation,
    node_id=IDS,
    name=WORDS,
    specialist=WORDS,
    inherited_from=WORDS,
    corpus=WORDS,
    base_model=WORDS,
    budget_seconds_min=st.none() | NUMBERS,
    champion=st.none() | CHAMPIONS,
    rounds=st.lists(OUTCOMES, max_size=4).map(tuple),
    rounds_pending=COUNTS,
    open=st.lists(st.builds(plans.Open, task_id=IDS, role=ROLES, worker_id=WORDS), max_size=5).map(
        tuple
    ),
    open_count=COUNTS,
    failures=st.lists(
        st.builds(plans.Failure, task_id=IDS, role=ROLES, reason=WORDS, is_final=st.booleans()),
        max_size=3,
    ).map(tuple),
    runner_up=st.just("") | IDS,
    order=st.none()
    | st.builds(
        plans.Order,
        node_id=IDS,
        name=WORDS,
        budget_seconds=BUDGETS,
        obstacle=st.sampled_from(("", "workers", "judges", "nodes")),
    ),
)
ARTEFACTS = re.compile(r"None|\b(nan|inf)\b|\(\s*\)|“\s*”|«\s*»|[{}]|\s[,.;:،؛]|  |\.\.")


def _texts(both: plans.Plans) -> list[str]:
    return [text for one in (both.evolver, both.reinventor) for text in (one.focus, *one.steps)]


@settings(max_examples=300, deadline=None)
@given(here=SITUATIONS, prompt=st.sampled_from(("how?", "كيف؟", "")))
def test_any_situation_has_three_steps_a_side_without_artefacts(here: Any, prompt: str) -> None:
    both = plans.plans(here, prompt)
    assert len(both.evolver.steps) == len(both.reinventor.steps) == 3
    assert all(text.strip() for text in _texts(both))
    found = [text for text in _texts(both) if ARTEFACTS.search(text)]
    assert not found
    assert plans.plans(here, prompt) == both


@settings(max_examples=300, deadline=None)
@given(prompt=st.text())
def test_any_prompt_is_answered_in_one_of_the_two_languages(prompt: str) -> None:
    assert plans.language(prompt, ("stats-bayesian", "الاستدلال البايزي")) in ("ar", "en")
