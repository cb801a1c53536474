"""Questions to a model and what it answers, in a person's units, for every specialist."""

import json
from collections.abc import Callable

import pytest
import torch

from agent.specialists import (
    addition,
    advection,
    burgers,
    energies,
    evaluation,
    filtering,
    forecasting,
    forms,
    lasso,
    operators,
    posterior,
    quadratics,
    questions,
    registry,
    tours,
)
from agent.specialists.base import Answers, Cases, Field, Role, Specialist
from core import corpora, errors, workloads
from tests import texts

torch.set_num_threads(1)

COUNT = 24
RELATIVES = {
    "root-math": {"digits": 3.0},
    "math-statistics": {"readings_max": 5.0},
    "math-optimization": {"variables": 40.0},
    "physics-fluid": {"final_time": 0.25},
    "stats-time-series": {"season": 4.0, "horizon": 3.0},
    "opt-convex": {"rows": 32.0, "columns": 64.0},
    "opt-discrete": {"cities": 9.0},
}
EVERY: list[tuple[str, dict[str, float]]] = [
    (name, {}) for name in registry.names() if name != workloads.TEXT
]
EVERY += list(RELATIVES.items())


@pytest.fixture(params=EVERY, ids=lambda one: one[0] + "-relative" * bool(one[1]))
def one(request: pytest.FixtureRequest) -> Specialist:
    return registry.get(*request.param)


def errors_by_hand(one: Specialist, said: Answers, cases: Cases) -> torch.Tensor:
    """What `errors` measures, worked out from answers alone."""
    answers = {name: value.double() for name, value in said.items()}
    match one:
        case addition.Addition():
            asked = one.asked(cases)
            return (answers["sum"] != asked["a"] + asked["b"]).double()
        case advection.Advection() | burgers.Burgers():
            return operators.relative_l2(answers["field"], cases["truth"])
        case energies.Energies():
            return (answers["energies"] - cases["energies"]).abs().amax(1)
        case filtering.Filtering():
            exact = torch.distributions.Normal(cases["mean"], cases["sd"])
            told = torch.distributions.Normal(answers["mean"], answers["sd"])
            return torch.distributions.kl_divergence(exact, told)
        case posterior.Posterior():
            t = torch.stack((answers["location"], answers["scale"].log(), answers["freedom"]), 1)
            return posterior.divergence(cases["exact"], t, posterior.ERROR_POINTS)
        case quadratics.Quadratics():
            return quadratics.relative_error(answers["x"], cases["solution"])
        case lasso.Lasso():
            return answers["gap"]
        case forecasting.Forecasting():
            return one._errors(answers["median"], cases)
        case tours.Tours():
            return answers["length"] / cases["optimum"] - 1
    raise AssertionError(one.name)


def answered(one: Specialist, module: torch.nn.Module, cases: Cases) -> Answers:
    with torch.inference_mode():
        return one.answer(module.eval(), one.asked(cases))


@pytest.mark.parametrize("role", ["evolver", "reinventor"])
def test_answers_to_the_cases_err_as_the_cases_are_measured(one: Specialist, role: Role) -> None:
    torch.manual_seed(1)
    module = forms.build(one, one.families(role)[0])
    cases = one.cases(5, COUNT)
    said = answered(one, module, cases)
    measured = evaluation.case_errors(one, module, cases)
    assert errors_by_hand(one, said, cases) == pytest.approx(measured, rel=1e-4, abs=1e-5)


class Exact(torch.nn.Module):
    """A module that knows, by a function of what it is given."""

    def __init__(self, known: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.known = known

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.known(*(each.double() for each in given))


class Adder(addition.Gpt):
    """Knows the sum of two numbers of two digits."""

    def answer(self, prompt: torch.Tensor) -> torch.Tensor:
        total = 10 * (prompt[:, 0] + prompt[:, 3]) + prompt[:, 1] + prompt[:, 4]
        return torch.stack((total % 10, total // 10 % 10, total // 100), 1)


def _carried(inputs: torch.Tensor) -> torch.Tensor:
    spread = operators.diffuse(inputs[:, 0], operators.viscosity_of(inputs))
    return advection.carry(spread, inputs[:, 2, :1])


def _filtered(readings: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    mean, sd = filtering.kalman(readings, scales)
    return torch.stack((mean[:, -1], sd[:, -1].log()), 1)


def _posterior(y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    location, log_scale, freedom = posterior.exact(y, mask, 6, 1.0).unbind(1)
    return torch.stack((location, log_scale, (freedom - posterior.FREEDOM_LEAST).log()), 1)


EXACT: dict[str, tuple[torch.nn.Module, float]] = {
    "root-math": (Adder(width=8, heads=1, blocks=1, loops=1), 0.0),
    "math-physics": (Exact(_carried), 1e-5),
    "physics-fluid": (
        Exact(lambda one: burgers.split_steps(one[:, 0], operators.viscosity_of(one), 0.5, 400)),
        1e-3,
    ),
    "physics-quantum": (Exact(lambda v: energies.energies(v, energies.kinetic())), 1e-4),
    "stats-bayesian": (Exact(_filtered), 1e-9),
    "math-statistics": (Exact(_posterior), 1e-6),
    "math-optimization": (Exact(torch.linalg.solve), 1e-3),
    "opt-convex": (Exact(lambda b, penalty: lasso.fista(b, penalty, 1_000)[0]), 1e-5),
    "opt-discrete": (Exact(lambda cities: tours.shortest(cities).unsqueeze(1)), 1e-6),
}
"""Solvers in place of models, and how far from the truth they may be."""


@pytest.mark.parametrize("name", EXACT)
def test_a_module_that_knows_answers_the_truth(name: str) -> None:
    one, (module, tolerance) = registry.get(name), EXACT[name]
    cases = one.cases(9, COUNT)
    found = errors_by_hand(one, answered(one, module, cases), cases)
    assert float(found.abs().max()) <= tolerance


def test_a_solver_says_what_it_left() -> None:
    one = registry.get("math-optimization")
    said = answered(one, EXACT["math-optimization"][0], one.cases(9, COUNT))
    assert float(said["residual"].max()) < 1e-5
    said = answered(one, Exact(lambda _, goal: torch.zeros_like(goal)), one.cases(9, COUNT))
    assert said["residual"] == pytest.approx(torch.ones(COUNT))


def test_a_tour_is_every_city_once_and_as_long_as_is_said() -> None:
    one = registry.get("opt-discrete")
    cases = one.cases(3, COUNT)
    said = answered(one, forms.build(one, one.families("reinventor")[0]), cases)
    assert said["tour"].sort(1).values.tolist() == [list(range(12))] * COUNT
    walked = tours.length(cases["cities"], said["tour"].long())
    assert walked == pytest.approx(said["length"])


def test_quantiles_are_those_of_the_module_in_their_order() -> None:
    one = registry.get("stats-time-series")
    level = torch.tensor([1.0, 2.0, 3.0])
    said = answered(one, Exact(lambda h: h[:, -12:, None] * 0 + level), one.cases(3, 2))
    assert [float(said[name].mean()) for name in ("q10", "median", "q90")] == [1.0, 2.0, 3.0]


def test_the_example_of_a_specialist_is_a_question_and_its_case(one: Specialist) -> None:
    line = questions.example(one)
    asked = questions.stacked([questions.read(line.encode(), one.inputs)], one.inputs)
    cases = one.asked(one.cases(0, 1))
    assert asked.keys() == cases.keys() == {field.name for field in one.inputs}
    for name, value in asked.items():
        known = cases[name]
        assert value == pytest.approx(known[:, : value.shape[1]] if value.ndim > 1 else known)
    said = one.answer(forms.build(one, one.families("evolver")[0]).eval(), asked)
    assert list(said) == [field.name for field in one.answers]
    for field in one.answers:
        assert said[field.name].shape == (1, *field.shape)


def test_every_field_says_what_it_is_in_both_languages(one: Specialist) -> None:
    for field in (*one.inputs, *one.answers):
        assert any("a" <= letter <= "z" for letter in field.en)
        assert any("\u0600" <= letter <= "\u06ff" for letter in field.ar)


# ── lines ──

FIELDS = (
    Field("n", "a whole number", "عدد", least=0, most=9, is_whole=True),
    Field("some", "numbers", "أعداد", (3,), fewest=1),
    Field("pairs", "pairs", "أزواج", (2, 2)),
    Field("text", "a text", "نص", is_text=True),
)
SOUND = {"n": 3, "some": [1.5, 2], "pairs": [[1, 2], [3, 4]], "text": "غصن"}


def refused(**changed: object) -> str:
    with pytest.raises(errors.Invalid) as caught:
        questions.read(json.dumps(SOUND | changed).encode(), FIELDS)
    return str(caught.value)


def test_a_question_is_read_and_written_as_it_was() -> None:
    asked = questions.stacked(
        [
            questions.read(json.dumps(one).encode(), FIELDS)
            for one in (SOUND, SOUND | {"some": [7], "text": "a"})
        ],
        FIELDS,
    )
    first, second = map(json.loads, questions.lines(asked, FIELDS))
    assert first == SOUND
    assert second == SOUND | {"some": [7], "text": "a"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "no JSON"),
        (b'{"n": 1', "no JSON"),
        (b"\xff\xfe\xfd", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "a list, not an object"),
        (b"3", "the number 3, not an object"),
        (b'{"n": 1}', "some: it is missing"),
    ],
)
def test_what_is_no_object_of_the_fields_is_told(line: bytes, words: str) -> None:
    with pytest.raises(errors.Invalid, match=words):
        questions.read(line, FIELDS)


def test_each_wrong_value_is_told_with_its_field_and_place() -> None:
    assert refused(m=1) == "m: there is no such field; the fields are n, some, pairs, text"
    assert refused(n="3").startswith("n: it is a text, not a number")
    assert refused(n=True).startswith("n: it is true or false")
    assert refused(n=2.5).startswith("n: it is 2.5, and must be a whole number")
    assert refused(n=10) == "n: it is 10, and must be from 0 to 9"
    assert refused(n=float("nan")) == "n: it is no finite number"
    assert refused(n=10**400) == "n: it is no finite number"
    assert refused(some=[1, float("inf")]) == "some[1]: it is no finite number"
    assert refused(some=[]) == "some: it has 0 entries, not 1 to 3 numbers"
    assert refused(some=[1, 2, 3, 4]) == "some: it has 4 entries, not 1 to 3 numbers"
    assert refused(some=1) == "some: it is the number 1, not a list of 1 to 3 numbers"
    assert refused(pairs=[[1, 2]]) == "pairs: it has 1 entries, not 2 lists of 2 numbers"
    assert refused(pairs=[[1, 2], [3]]) == "pairs[1]: it has 1 entries, not 2 numbers"
    assert refused(pairs=[[1, 2], [3, None]]) == "pairs[1][1]: it is null, not a number"
    assert refused(text=3) == "text: it is the number 3, not a text"
    assert refused(text="") == "text: it is empty"
    assert refused(text="a\0b") == "text: it has a zero byte, which no text has"
    assert "no UTF-8 text" in refused(text="\ud800")


def test_an_answer_that_is_not_finite_is_no_line() -> None:
    fields = (Field("x", "x", "س"), Field("n", "n", "ن", is_whole=True))
    values = {"x": torch.tensor([1.0, torch.nan, 0.1]), "n": torch.tensor([1.0, 2.0, torch.nan])}
    assert questions.lines(values, fields) == ['{"x": 1.0, "n": 1}', "", ""]


# ── text ──


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> Specialist:
    return registry.get(workloads.TEXT, corpus=str(texts.unpack(tmp_path_factory.mktemp("c"))))


def _asked(of_text: Specialist, *given: str) -> Answers:
    lines = [json.dumps({"text": one}).encode() for one in given]
    asked = [questions.read(line, of_text.inputs) for line in lines]
    torch.manual_seed(1)
    module = of_text.build(of_text.families("evolver")[0]).eval()
    with torch.inference_mode():
        return of_text.answer(module, questions.stacked(asked, of_text.inputs))


def test_a_text_costs_what_its_pieces_are_measured_to_cost(of_text: Specialist) -> None:
    """All validation documents, asked as texts, and measured as cases."""
    split = corpora.split(texts.document(number).encode() for number in range(60))
    torch.manual_seed(1)
    module = of_text.build(of_text.families("evolver")[0]).eval()
    with torch.inference_mode():
        said = _asked(of_text, *(one.decode() for one in split.validation))
        cases = of_text.cases(0, 10_000)
        bits = (of_text.errors(module, cases) * cases["scored"].sum(1)).sum()
    sizes = torch.tensor([len(one) for one in split.validation])
    assert int(sizes.sum()) == int(cases["scored"].sum()), "no rest of a document is left out"
    assert float((said["bits_per_byte"] * sizes).sum()) == pytest.approx(float(bits))


def test_a_text_is_asked_in_any_length_and_alone_or_among_others(of_text: Specialist) -> None:
    short, long = "غ", texts.document(3) * 3 + "ط"
    alone = [float(_asked(of_text, one)["bits_per_byte"]) for one in (short, long)]
    assert _asked(of_text, short, long)["bits_per_byte"].tolist() == pytest.approx(alone)
    said = _asked(of_text, texts.document(61), "".join(reversed(texts.document(61))))
    for costs in said.values():
        assert float(costs[0]) < float(costs[1])
    at_an_edge = "a" * 127 + "غ"
    assert bool(_asked(of_text, at_an_edge)["bits_per_byte"].isfinite())


def test_the_example_of_a_corpus_is_a_piece_of_its_own(of_text: Specialist) -> None:
    line = questions.example(of_text)
    assert 1 <= len(json.loads(line)["text"].encode()) <= 131
