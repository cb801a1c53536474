"""Errors of the core as HTTP answers."""

import json

import pytest

from core import errors
from gateway import bodies, problems


@pytest.mark.parametrize(
    ("error", "contract", "status"),
    [
        (errors.NotFound("target node not found"), True, 400),
        (errors.NotFound("no task t"), False, 404),
        (errors.NotOwner("worker does not own this task"), True, 400),
        (errors.StaleAttempt("overtaken"), False, 409),
        (errors.Conflict("it is completed"), False, 409),
        (errors.QuotaExceeded("16 levels"), True, 507),
        (errors.LogFull("full"), True, 507),
        (errors.Overloaded("busy"), True, 503),
        (errors.LogUnavailable("no answer"), False, 503),
        (errors.SteppedDown("another writes"), False, 503),
    ],
)
def test_an_error_is_told_in_its_own_words(
    error: errors.AghsanError, contract: bool, status: int
) -> None:
    problem = problems.of(error, contract=contract)
    assert problem is not None
    assert (problem.status, problem.body) == (status, f'{{"detail":"{error}"}}'.encode())
    assert ("Retry-After" in problem.headers) == (status == 503)


def test_what_core_finds_invalid_takes_the_shape_of_a_validation_error() -> None:
    problem = problems.of(errors.Invalid("too long; shorten it"), contract=True)
    assert problem is not None
    told = '{"type":"value_error","loc":["body"],"msg":"too long; shorten it","input":null}'
    assert (problem.status, problem.body) == (422, f'{{"detail":[{told}]}}'.encode())


def test_what_is_wrong_with_a_query_is_not_said_of_a_body() -> None:
    problem = problems.of(errors.Invalid("no page"), contract=False, where="query")
    assert problem is not None
    assert json.loads(problem.body)["detail"][0]["loc"] == ["query"]


def test_a_refused_body_keeps_its_own_answer() -> None:
    problem = problems.of(bodies.BadRequest(400, "no"), contract=False)
    assert problem == problems.Problem(400, b'{"detail":"no"}', {})


@pytest.mark.parametrize(
    "error", [errors.UnfitEvent("x"), errors.SequenceConflict("x"), KeyError()]
)
def test_what_no_caller_can_have_caused_is_no_problem_of_theirs(error: Exception) -> None:
    assert problems.of(error, contract=True) is None


def test_words_that_quote_half_a_character_can_still_be_sent() -> None:
    problem = problems.told(404, "no task \udcff")
    assert problem.body == b'{"detail":"no task \\udcff"}'
