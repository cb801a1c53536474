"""Workers' own measurements, held against what judges measured."""

import pytest

from core import commands, events
from core.projections import claims
from core.projections.rounds import Round
from core.projections.workers import Claims
from core.values import Weighed
from tests.build import World
from tests.unit.test_rivalry import NODE, REASONS, candidate, decide, train, world

CHAMPION = events.Base(candidate_id="c", manifest="m", writer="w", weights_sha256="s")


def row(champion: events.Base | None = CHAMPION) -> Round:
    return Round(
        round_id="r",
        node_id=NODE,
        index=0,
        commitment="",
        workload=events.Workload(specialist=NODE),
        base=None,
        opened_at=0,
        closes_at=0,
        champion=champion,
    )


def is_off(
    loss: float,
    evidence: float,
    *,
    error: float = 0.01,
    measured: float = 0.9,
    ratio: float | None = None,
    ranked: float | None = None,
    champion: events.Base | None = CHAMPION,
) -> bool:
    """Of a candidate beside a champion of error 0.01, and a baseline of 0.1."""
    verdict = events.CandidateVerdict(
        candidate_id="a",
        verdict="reject",
        reasons=REASONS,
        error=error,
        evidence_rate=measured,
        ratio=ratio,
    )
    weighed = Weighed(
        candidate_id="a", error=ranked or 0.0, evidence_rate=measured, params=1, bytes=1
    )
    decided = events.RoundDecided(
        round_id="r",
        verdict="keep",
        secret="",
        reasons=REASONS,
        candidates=[verdict],
        champion_error=0.01,
        baseline_error=0.1,
        weighed=() if ranked is None else (weighed,),
    )
    told = {"loss": loss, "evidence_rate": evidence}
    return claims.is_off(told, verdict, row(champion), decided)


def test_a_claim_is_off_that_is_far_better_than_what_was_measured() -> None:
    assert not is_off(0.0067, 0.95)
    assert is_off(0.0049, 0.9)
    assert is_off(0.01, 1.01)
    assert not is_off(0.01, 1.0)


def test_a_claim_that_is_worse_than_what_was_measured_is_nobodys_harm() -> None:
    assert not is_off(5.0, 0.0)


def test_a_disaster_among_the_hidden_cases_makes_no_honest_claim_off() -> None:
    assert not is_off(0.009, 0.9, error=0.09, ratio=0.97)
    assert not is_off(0.009, 0.9, error=0.09, ranked=0.0095)
    assert not is_off(0.009, 0.9, error=36.0)
    assert is_off(0.009, 1.0, error=36.0, measured=0.85)
    assert is_off(0.0001, 0.9, error=0.09, ratio=0.97)


def test_where_a_case_is_right_or_wrong_one_wrong_of_hundreds_makes_no_claim_off() -> None:
    assert not is_off(0.0, 1.0, error=1 / 697, measured=1 - 1 / 697)
    assert is_off(0.0, 1.0, error=1 / 697, measured=1.0)
    assert is_off(0.0, 1.0, error=0.2, measured=0.8)


def test_without_a_champion_the_ratio_is_to_the_baseline() -> None:
    assert not is_off(0.002, 0.9, error=0.09, ratio=0.03, champion=None)
    assert is_off(0.001, 0.9, error=0.09, ratio=0.03, champion=None)


def test_who_claims_nothing_is_held_against_nothing_and_a_void_round_tells_nothing() -> None:
    made = world()
    decide(made, train(made, "t1", candidate("e1", "evolver")))
    claimed = events.replace(candidate("e2", "evolver"), claims={"loss": 1e-9})
    decide(made, train(made, "t2", claimed), void=True)
    assert told(made) == Claims()


def told(made: World) -> Claims:
    return made.state.workers.table.rows["a1"].claims


def test_a_worker_is_doubtful_from_three_of_its_last_eight_and_trusted_again_after() -> None:
    made = world()
    for number, loss in enumerate((0.0, 0.1, 0.0, 0.1, 0.0)):
        claimed = events.replace(candidate(f"e{number}", "evolver"), claims={"loss": loss})
        decide(made, train(made, f"t{number}", claimed))
        assert told(made).doubtful == (number == 4)
    assert (told(made).judged, told(made).off) == (5, 3)
    made.agent("a1", session="another")
    assert told(made).off == 3
    rest = told(made)
    for _ in range(6):
        rest = rest.and_one(False)
    assert not rest.doubtful
    for _ in range(20):
        rest = rest.and_one(False)
    assert (rest.judged, rest.off, len(rest.last)) == (31, 3, 16)


@pytest.mark.parametrize("via", ["http", "nats"])
def test_what_is_known_of_a_worker_outlives_its_registration(via: str) -> None:
    made = World()
    made.agent("w1")
    made.state.workers.measured("w1", is_off=True)
    if via == "http":
        made.do(commands.MarkOffline(worker_id="w1", reason="left", session="session-w1"))
        made.http_worker("w1")
    else:
        made.agent("w1", session="another")
    assert made.state.workers.table.rows["w1"].claims.off == 1
