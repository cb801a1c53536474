"""A decided round judged again: what is altered is found, and what cannot be told is said."""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from core import chunks, commands, errors, events, wire
from core.log import Message
from core.log_memory import MemoryLog
from core.projections.rounds import Round
from core.values import Budget, Check
from orchestrator import (
    bounds,
    comparison,
    consensus,
    contest,
    figures,
    judge,
    keys,
    models,
    rejudge,
    trial,
)
from orchestrator.comparison import Outcome
from orchestrator.figures import Recorded
from tests.build import World
from tests.unit.test_judge import NODE, Shelf, trained
from tests.unit.test_trial import times

torch.set_num_threads(1)
KEY = b"k" * keys.KEY_BYTES
SECRETS = [keys.secret_of(KEY, index) for index in range(4)]
WRITER = "a1"
ANY, SMALL = Budget(name="any", latency_max=9.0), Budget(name="small", bytes_max=10)
UNTOLD = times({})


class Court:
    """A node with its rounds, judged by the real judge, and a log that can be tampered with."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(folder)
        self.store = self.shelf.store
        self.world = World().seeded()
        self.world.do(commands.SetGates(node_id=NODE, budgets=(ANY, SMALL)))
        commitments = [keys.commitment_to(secret) for secret in SECRETS]
        self.world.do(commands.DepositCommitments(judge="j", first=0, commitments=commitments))
        self.session = self.world.agent(WRITER)

    def round_of(self, *steps: int) -> str:
        """A round of an evolver and a reinventor that trained for so many steps; its id."""
        task_id = self.world.task(f"t{self.world.state.seq}")
        token = self.world.claim(WRITER)
        assert token is not None
        rivals: tuple[events.Rival, ...] = ("evolver", "reinventor")
        brought = [
            self.shelf.put(trained(count), rival=rival)
            for rival, count in zip(rivals, steps, strict=True)
        ]
        held: Any = {"token": token, "worker_id": WRITER, "session": self.session}
        self.world.do(commands.CompleteTask(task_id=task_id, candidates=brought, **held))
        (round_id,) = self.world.state.rounds.undecided
        return round_id

    def judged(self, *steps: int, timing: trial.Timing = UNTOLD) -> str:
        """Such a round, decided by the judge; its id."""
        round_id = self.round_of(*steps)
        self.world.do(commands.StartJudging(round_id=round_id, judge="j"))
        row = self.world.state.rounds.table.rows[round_id]
        assert isinstance(row, Round)
        brief, secret = wire.brief_of(row), SECRETS[row.index]
        go_on = models.go_on_always
        asked = judge.judge_round(brief, self.store, secret, "j", Path(), go_on, timing)
        verdict = asyncio.run(asked)
        fields = {one: getattr(verdict, one) for one in verdict.__struct_fields__}
        self.world.do(commands.DecideRound(**fields))
        return round_id

    def recorded(
        self, round_id: str, alter: Callable[[events.EventData], events.EventData] = lambda one: one
    ) -> Recorded:
        """The round as a log has it in which its events are altered."""

        async def read() -> Recorded:
            log = MemoryLog()
            told = [
                one._replace(data=alter(one.data)) if _round_of(one.data) == round_id else one
                for one in self.world.stored
            ]
            encoded = [Message(events.subject_of(one.data), events.encode(one)) for one in told]
            await log.append(encoded, 0)
            return await rejudge.read_round(log, round_id)

        return asyncio.run(read())

    def again(self, recorded: Recorded) -> Outcome:
        """Judge it again, as anybody would."""
        return asyncio.run(rejudge.again(self.store, recorded, Path(), lambda: None))

    def trace(self, round_id: str) -> trial.Trace:
        """What judging it again finds."""
        recorded = self.recorded(round_id)
        brief, secret = wire.brief_of(recorded.row), bytes.fromhex(recorded.decided.secret)
        stored = asyncio.run(models.gather(brief, self.store))
        timing = trial.as_recorded(recorded.decided.weighed)
        return trial.trace(brief, stored, secret, "j", timing=timing)


def _round_of(data: events.EventData) -> str:
    told = data.champion if isinstance(data, events.ChampionPromoted) else data
    return str(getattr(told, "round_id", ""))


class Judged(NamedTuple):
    """A court, its first round (promoted over the trivial), and its second (rejected); both have
    budgets, the first of which is won in the first round."""

    court: Court
    first: str
    second: str
    trace: trial.Trace
    """Of the first."""
    again: trial.Trace
    """Of the second."""


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    court = Court(tmp_path_factory.mktemp("court"))
    first, second = court.judged(5, 120), court.judged(40, 60)
    return Judged(court, first, second, court.trace(first), court.trace(second))


def decided(**changes: Any) -> Callable[[events.EventData], events.EventData]:
    """An alteration of the verdict; a callable makes a value of the one before."""

    def alter(data: events.EventData) -> events.EventData:
        return _changed(data, changes) if isinstance(data, events.RoundDecided) else data

    return alter


def one_of(place: int, **changes: Any) -> Callable[[events.EventData], events.EventData]:
    """An alteration of what a verdict says of one candidate."""

    def alter(candidates: list[events.CandidateVerdict]) -> list[events.CandidateVerdict]:
        return [_changed(one, changes) if at == place else one for at, one in enumerate(candidates)]

    return decided(candidates=alter)


def checked(place: int, name: str, **changes: Any) -> Callable[[events.EventData], Any]:
    """An alteration of one gate's figures."""

    def alter(gates: tuple[Check, ...]) -> tuple[Check, ...]:
        return tuple(_changed(one, changes) if one.name == name else one for one in gates)

    return one_of(place, gates=alter)


def on_scales(place: int, **changes: Any) -> Callable[[events.EventData], Any]:
    """An alteration of what was weighed."""

    def alter(told: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_changed(one, changes) if at == place else one for at, one in enumerate(told))

    return decided(weighed=alter)


def for_budget(place: int, **changes: Any) -> Callable[[events.EventData], Any]:
    """An alteration of what is said of a budget."""

    def alter(told: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_changed(one, changes) if at == place else one for at, one in enumerate(told))

    return decided(budgets=alter)


def advice(**changes: Any) -> Callable[[events.EventData], Any]:
    """An alteration of the recommendation."""
    return decided(recommendation=lambda told: _changed(told, changes))


def promotion(**changes: Any) -> Callable[[events.EventData], events.EventData]:
    """An alteration of what is said of the champion that a verdict made."""

    def alter(data: events.EventData) -> events.EventData:
        if not isinstance(data, events.ChampionPromoted):
            return data
        return msgspec.structs.replace(data, champion=_changed(data.champion, changes))

    return alter


def _changed(struct: Any, changes: dict[str, Any]) -> Any:
    values = {
        name: change(getattr(struct, name)) if callable(change) else change
        for name, change in changes.items()
    }
    return msgspec.structs.replace(struct, **values)


def a_bit(value: float) -> float:
    return math.nextafter(value, math.inf)


def more(value: int) -> int:
    return value + 1


def elsewhere(data: events.EventData) -> events.EventData:
    """As recorded by a judge with another torch."""
    if not isinstance(data, events.RoundDecided):
        return data
    return msgspec.structs.replace(data, environment={**data.environment, "torch": "9.9"})


def found(outcome: Outcome) -> list[tuple[str, str]]:
    return [(one.candidate_id, one.what) for one in outcome.differences]


# ── where the environment is the same ──


def test_a_round_judged_again_is_as_recorded_bit_for_bit(judged: Judged) -> None:
    for round_id, verdict in ((judged.first, "promote"), (judged.second, "keep")):
        outcome = judged.court.again(judged.court.recorded(round_id))
        assert (outcome.outcome, outcome.verdict) == ("agrees", verdict)
        assert (outcome.differences, outcome.environment, outcome.notes) == ([], {}, [])
        assert outcome.figures > 20


WORDS = events.Reasons(en="Better.", ar="أفضل.")
OUTRANKED, PICKED = 0, 1


@pytest.mark.parametrize(
    ("alter", "place", "what"),
    [
        (one_of(PICKED, error=a_bit), PICKED, "error"),
        (one_of(OUTRANKED, error=a_bit), OUTRANKED, "error"),
        (one_of(PICKED, evidence_rate=a_bit), PICKED, "evidence rate"),
        (one_of(OUTRANKED, evidence_rate=a_bit), OUTRANKED, "evidence rate"),
        (one_of(PICKED, ratio=a_bit), PICKED, "ratio"),
        (one_of(PICKED, ratio_upper=a_bit), PICKED, "ratio's bound"),
        (one_of(PICKED, ratio_upper=None), PICKED, "ratio's bound"),
        (one_of(PICKED, params=more), PICKED, "params"),
        (one_of(PICKED, bytes=more), PICKED, "bytes"),
        (one_of(PICKED, cases=more), PICKED, "cases"),
        (one_of(OUTRANKED, verdict="refused"), OUTRANKED, "verdict"),
        (one_of(OUTRANKED, reasons=WORDS), OUTRANKED, "reasons, en"),
        (decided(verdict="keep"), None, "verdict"),
        (decided(look=more), None, "look"),
        (decided(alpha=a_bit), None, "alpha"),
        (decided(cases=more), None, "cases"),
        (decided(champion_error=0.5), None, "champion error"),
        (decided(baseline_error=a_bit), None, "baseline error"),
        (decided(reasons=WORDS), None, "reasons, en"),
        (promotion(error=a_bit), None, "promotion: error"),
        (promotion(baseline_error=a_bit), None, "promotion: baseline error"),
        (promotion(evidence_rate=a_bit), None, "promotion: evidence rate"),
        (promotion(below_baseline=lambda told: not told), None, "promotion: below baseline"),
        (promotion(params=more), None, "promotion: params"),
        (promotion(bytes=more), None, "promotion: bytes"),
        (promotion(candidate_id="cand-9"), None, "promotion: candidate"),
    ],
)
def test_a_figure_that_is_recorded_otherwise_is_found(
    judged: Judged,
    alter: Callable[[events.EventData], events.EventData],
    place: int | None,
    what: str,
) -> None:
    recorded = judged.court.recorded(judged.first, alter)
    outcome = comparison.compare(recorded, judged.trace, {})
    name = "" if place is None else recorded.decided.candidates[place].candidate_id
    assert outcome.outcome == "differs"
    assert found(outcome)[0] == (name, what)


@pytest.mark.parametrize(
    ("alter", "place", "what"),
    [
        (checked(PICKED, "error", upper=a_bit), PICKED, "error: upper"),
        (checked(PICKED, "evidence", value=a_bit), PICKED, "evidence: value"),
        (checked(PICKED, "size", verdict="fail"), PICKED, "size: verdict"),
        (checked(PICKED, "memory", bound=9.0), PICKED, "memory: bound"),
        (one_of(PICKED, gates=()), PICKED, "error: verdict"),
        (on_scales(0, error=a_bit), 0, "weighed: error"),
        (on_scales(0, memory_bytes=more), 0, "weighed: memory bytes"),
        (on_scales(0, shifted_error=a_bit), 0, "weighed: shifted error"),
        (on_scales(0, is_front=lambda told: not told), 0, "weighed: is front"),
        (decided(weighed=lambda told: told[1:]), 0, "weighed: error"),
        (for_budget(0, error=0.5), None, "budget any: error"),
        (for_budget(0, promoted="cand-9"), None, "budget any: promoted"),
        (for_budget(1, reasons=WORDS), None, "budget small: reasons, en"),
        (decided(budgets=()), None, "budget any: against"),
        (advice(action="promote"), None, "recommendation: action"),
        (advice(reasons=WORDS), None, "recommendation: reasons, en"),
        (decided(recommendation=None), None, "recommendation: action"),
        (decided(best_upper=a_bit), None, "best ever's bound"),
    ],
)
def test_a_figure_of_the_scales_or_of_a_gate_that_is_recorded_otherwise_is_found(
    judged: Judged,
    alter: Callable[[events.EventData], events.EventData],
    place: int | None,
    what: str,
) -> None:
    honest = judged.court.recorded(judged.second).decided
    picked = [one.verdict for one in honest.candidates].index("reject")
    names = [one.candidate_id for one in honest.candidates]
    if place == PICKED:
        alter = swapped_places(alter, picked)
    recorded = judged.court.recorded(judged.second, alter)
    outcome = comparison.compare(recorded, judged.again, {})
    name = "" if place is None else names[picked] if place == PICKED else names[0]
    assert outcome.outcome == "differs"
    assert found(outcome)[0] == (name, what)


def swapped_places(
    alter: Callable[[events.EventData], events.EventData], picked: int
) -> Callable[[events.EventData], events.EventData]:
    """The same alteration of the picked one, wherever it stands."""

    def altered(data: events.EventData) -> events.EventData:
        if not isinstance(data, events.RoundDecided):
            return data
        order = [data.candidates[1 - picked], data.candidates[picked]]
        changed = alter(msgspec.structs.replace(data, candidates=order))
        assert isinstance(changed, events.RoundDecided)
        back = [changed.candidates[1 - picked], changed.candidates[picked]]
        return msgspec.structs.replace(changed, candidates=back)

    return altered


def test_timings_are_taken_as_they_are_recorded(judged: Judged) -> None:
    """Slower ones veto, and so would have to be told otherwise, not be measured otherwise."""

    def slower(told: Any) -> Any:
        return _changed(told, {"ratio": 2.0})

    recorded = judged.court.recorded(judged.second, on_scales(0, latency=slower))
    outcome = judged.court.again(recorded)
    assert not [one for one in outcome.differences if "latency" in one.what]


def test_whom_a_verdict_promoted_instead_of_another_is_found(judged: Judged) -> None:
    honest = judged.court.recorded(judged.first).decided
    other = honest.candidates[OUTRANKED].candidate_id
    recorded = judged.court.recorded(judged.first, decided(promoted=other))
    outcome = judged.court.again(recorded)
    assert outcome.outcome == "differs"
    (wrong,) = outcome.differences
    assert (wrong.what, wrong.recorded, wrong.found) == ("promoted", other, honest.promoted)


def test_a_candidate_that_a_verdict_leaves_out_is_found(judged: Judged) -> None:
    recorded = judged.court.recorded(judged.first, decided(candidates=lambda all_: all_[1:]))
    outcome = comparison.compare(recorded, judged.trace, {})
    assert outcome.outcome == "differs"
    assert found(outcome)[0][1] == "verdict"
    assert outcome.differences[0].recorded == ""


@pytest.mark.parametrize("secret", [SECRETS[3].hex(), "no hex"])
def test_a_secret_that_opens_another_commitment_draws_no_cases(judged: Judged, secret: str) -> None:
    outcome = judged.court.again(judged.court.recorded(judged.first, decided(secret=secret)))
    assert outcome.outcome == "differs"
    assert found(outcome) == [("", "sha256 of the secret")]
    assert "does not open" in outcome.notes[0].en


# ── in another environment ──


def scaled(factor: float) -> Callable[[events.EventData], events.EventData]:
    """Figures of the picked one as another machine may round them."""
    change = one_of(PICKED, error=lambda error: error * factor)
    return lambda data: elsewhere(change(data))


def test_figures_of_another_environment_may_differ_by_rounding(judged: Judged) -> None:
    recorded = judged.court.recorded(judged.first, scaled(1 + 5e-5))
    outcome = comparison.compare(recorded, judged.trace, {})
    assert (outcome.outcome, outcome.differences) == ("agrees", [])
    here = judged.trace.verdict.environment["torch"]
    assert outcome.environment == {"torch": ("9.9", here)}


def test_figures_of_another_environment_that_differ_by_more_are_found(judged: Judged) -> None:
    recorded = judged.court.recorded(judged.first, scaled(1 + 3e-4))
    outcome = comparison.compare(recorded, judged.trace, {})
    name = recorded.decided.candidates[PICKED].candidate_id
    assert (outcome.outcome, found(outcome)) == ("differs", [(name, "error")])


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("its error is 0.4312 times", "its error is 0.4313 times", True),
        ("its error is 0.4312 times", "its error is 0.4382 times", False),
        ("its error is 0.43 times", "its error is 0.43 as much", False),
        ("on 2,048 cases, at look 2", "on 2,048 cases, at look 3", False),
        ("on 2,048 cases, at look 2", "on 4,096 cases, at look 2", False),
        ("α = 1.2e-05, of cand-7f", "α = 1.2e-05, of cand-7f", True),
        ("α = 1.2e-05", "α = 1.4e-05", False),
    ],
)
def test_words_agree_where_their_numbers_are_rounded_otherwise(
    one: str, other: str, agree: bool
) -> None:
    assert figures._words_agree(one, other, 0.0) is agree


def near_the_limit(trace: trial.Trace, under: float) -> trial.Trace:
    """With errors that lie so far below what the gate asks for."""
    opponent = np.linspace(0.5, 1.5, bounds.CASES_MIN)
    own = opponent * 0.99 * (1 - under)
    stage = bounds.Stage(0, len(own), bounds.CASES_MAX)
    asked, *others = trace.contests
    met = contest.Meeting(stage, own, opponent)
    return trace._replace(contests=[dataclasses.replace(asked, meetings=[met]), *others])


def kept(data: events.EventData) -> events.EventData:
    """Another environment's gate saw no gain, of what it measured alike."""
    changes: dict[str, Any] = {"verdict": "keep", "promoted": "", "reasons": WORDS}
    ruling = decided(**changes)(one_of(PICKED, verdict="reject", reasons=WORDS)(data))
    return elsewhere(ruling)


def test_a_ruling_so_near_its_limit_that_rounding_turns_it_is_not_guessed(judged: Judged) -> None:
    recorded = judged.court.recorded(judged.first, kept)
    outcome = comparison.compare(recorded, near_the_limit(judged.trace, 5e-5), {})
    assert outcome.outcome == "unclear"
    assert "so near its limit" in outcome.notes[0].en
    assert ("", "promoted") in found(outcome)
    clear = comparison.compare(recorded, near_the_limit(judged.trace, 5e-3), {})
    assert clear.outcome == "differs"


def test_what_rounding_cannot_turn_is_found_beside_a_ruling_near_its_limit(judged: Judged) -> None:
    change = one_of(OUTRANKED, error=lambda error: error * 0.9)
    recorded = judged.court.recorded(judged.first, lambda data: change(kept(data)))
    outcome = comparison.compare(recorded, near_the_limit(judged.trace, 5e-5), {})
    assert outcome.outcome == "differs"


def test_who_is_picked_of_two_equal_ones_is_not_guessed(judged: Judged) -> None:
    def swapped(all_: list[events.CandidateVerdict]) -> list[events.CandidateVerdict]:
        one, other = (each.candidate_id for each in all_)
        return [
            msgspec.structs.replace(all_[1], candidate_id=one),
            msgspec.structs.replace(all_[0], candidate_id=other),
        ]

    honest = judged.court.recorded(judged.first).decided
    names = [one.candidate_id for one in honest.candidates]
    alter = decided(candidates=swapped, promoted=names[OUTRANKED])
    recorded = judged.court.recorded(judged.first, lambda data: elsewhere(alter(data)))
    error, rate = judged.trace.ranked[names[PICKED]]
    equal = {names[PICKED]: (error, rate), names[OUTRANKED]: (error * (1 + 1e-5), rate)}
    # Of models of equal size, as these are, all but what names them may be the other's.
    outcome = comparison.compare(recorded, judged.trace._replace(ranked=equal), {})
    assert outcome.outcome == "unclear"
    outcome = comparison.compare(recorded, judged.trace, {})
    assert outcome.outcome == "differs"


def alike(trace: trial.Trace, under: float) -> trial.Trace:
    """With models of equal cost that err alike but for so much."""
    one, other, *_ = trace.verdict.weighed
    errors_, same = (other.error * (1 - under), other.error), {"bytes": 9, "latency": None}
    told = [
        msgspec.structs.replace(each, error=error, **same)
        for each, error in zip((one, other), errors_, strict=True)
    ]
    verdict = msgspec.structs.replace(trace.verdict, weighed=consensus.fronted(told))
    return trace._replace(verdict=verdict)


@pytest.mark.parametrize(("under", "outcome"), [(5e-5, "unclear"), (5e-3, "differs")])
def test_who_is_on_the_front_of_two_that_err_alike_is_not_guessed(
    judged: Judged, under: float, outcome: str
) -> None:
    trace = alike(judged.trace, under)
    one, other = trace.verdict.weighed
    assert (one.is_front, other.is_front) == (True, False)
    swapped = (
        msgspec.structs.replace(one, is_front=False),
        msgspec.structs.replace(other, is_front=True),
    )
    words = decided(weighed=swapped)(
        advice(reasons=WORDS)(judged.court.recorded(judged.first).decided)
    )
    assert isinstance(words, events.RoundDecided)
    recorded = judged.court.recorded(
        judged.first, lambda data: elsewhere(words) if data.__class__ is words.__class__ else data
    )
    assert comparison.compare(recorded, trace, {}).outcome == outcome


def test_rounding_brings_nobody_into_a_budget_that_nobody_fits(judged: Judged) -> None:
    alter = for_budget(1, against="another")
    recorded = judged.court.recorded(judged.first, lambda data: elsewhere(alter(data)))
    outcome = comparison.compare(recorded, judged.trace, {})
    assert (outcome.outcome, found(outcome)) == ("differs", [("", "budget small: against")])


# ── where something is missing ──


@pytest.fixture
def lost(judged: Judged) -> Iterator[Callable[[str], None]]:
    """Sweeps the manifest of a candidate, until the end of the test."""
    store, swept = judged.court.store, dict[str, bytes]()

    def lose(candidate_id: str) -> None:
        recorded = judged.court.recorded(judged.first), judged.court.recorded(judged.second)
        (digest,) = {
            one.candidate.manifest
            for each in recorded
            for one in each.row.standings
            if one.candidate.candidate_id == candidate_id
        }
        swept[digest] = asyncio.run(store.get(chunks.DESK, digest))
        asyncio.run(store.delete(chunks.DESK, digest))

    yield lose
    for content in swept.values():
        asyncio.run(store.put(chunks.DESK, content))


def names_of(judged: Judged, round_id: str) -> dict[str, str]:
    """The candidates of a round by their verdict, and the champion that they met."""
    recorded = judged.court.recorded(round_id)
    named = {one.verdict: one.candidate_id for one in recorded.decided.candidates}
    champion = recorded.row.champion
    return {**named, "champion": champion.candidate_id if champion else ""}


def test_the_rest_is_compared_where_a_rejected_candidate_is_swept(
    judged: Judged, lost: Callable[[str], None]
) -> None:
    name = names_of(judged, judged.second)["outranked"]
    lost(name)
    outcome = judged.court.again(judged.court.recorded(judged.second))
    assert (outcome.outcome, outcome.differences) == ("agrees", [])
    (note,) = outcome.notes
    assert f"{name} cannot be measured any more" in note.en
    assert name in note.ar
    altered = judged.court.recorded(judged.second, decided(champion_error=a_bit))
    assert judged.court.again(altered).outcome == "differs"


@pytest.mark.parametrize("whom", ["reject", "champion"])
def test_the_ranking_is_compared_where_the_gate_cannot_be_asked_again(
    judged: Judged, lost: Callable[[str], None], whom: str
) -> None:
    names = names_of(judged, judged.second)
    lost(names[whom])
    outcome = judged.court.again(judged.court.recorded(judged.second))
    assert (outcome.outcome, outcome.differences) == ("gone", [])
    assert "the gate's ruling" in outcome.notes[0].en
    recorded = judged.court.recorded(judged.second)
    place = [one.verdict for one in recorded.decided.candidates].index("outranked")
    for alter, what in (
        (one_of(place, error=a_bit), "error"),
        (decided(alpha=a_bit), "alpha"),
    ):
        outcome = judged.court.again(judged.court.recorded(judged.second, alter))
        assert (outcome.outcome, found(outcome)[0][1]) == ("differs", what)


def test_a_model_that_this_machine_cannot_build_is_not_called_a_wrong_verdict(
    judged: Judged,
) -> None:
    recorded = judged.court.recorded(judged.second)
    picked = names_of(judged, judged.second)["reject"]
    trace = judged.court.trace(judged.second)._replace(lacking={picked: "no base model"})
    outcome = comparison.compare(recorded, trace, {})
    assert (outcome.outcome, outcome.differences) == ("gone", [])


def test_files_that_are_damaged_are_no_swept_ones(judged: Judged) -> None:
    nonsense = asyncio.run(judged.court.store.put(chunks.DESK, b"no manifest"))

    def damaged(data: events.EventData) -> events.EventData:
        if not isinstance(data, events.CandidateAdmitted):
            return data
        candidate = _changed(data.candidate, {"manifest": nonsense})
        return msgspec.structs.replace(data, candidate=candidate)

    outcome = judged.court.again(judged.court.recorded(judged.first, damaged))
    assert outcome.outcome == "differs"
    assert outcome.notes == []


def test_a_champion_that_is_back_since_makes_no_void_round_wrong(
    tmp_path: Path,
) -> None:
    court = Court(tmp_path)
    court.judged(5, 60)
    champion = next(iter(court.world.state.graph.champions))
    content = asyncio.run(court.store.get(chunks.DESK, champion.manifest))
    asyncio.run(court.store.delete(chunks.DESK, champion.manifest))
    round_id = court.judged(5, 20)
    recorded = court.recorded(round_id)
    assert recorded.decided.verdict == "void"
    assert court.again(recorded).outcome == "agrees"
    asyncio.run(court.store.put(chunks.DESK, content))
    outcome = court.again(recorded)
    assert (outcome.outcome, outcome.differences) == ("unclear", [])
    assert "now it can" in outcome.notes[0].en
    altered = court.recorded(round_id, one_of(0, error=a_bit))
    assert court.again(altered).outcome == "differs"


# ── where nothing can be judged again ──


def test_a_base_model_in_another_precision_makes_no_verdict_wrong(judged: Judged) -> None:
    base = events.BaseModel(name="b", digest="0" * 64, bytes=1)

    def over_a_base(data: events.EventData) -> events.EventData:
        if isinstance(data, events.RoundOpened):
            workload = _changed(data.workload, {"base_model": base})
            return msgspec.structs.replace(data, workload=workload)
        return decided(environment=lambda told: {**told, "cuda": "?"})(data)

    with pytest.raises(errors.Conflict, match="in another precision"):
        judged.court.recorded(judged.first, over_a_base)


def test_a_round_that_is_not_there_or_not_decided_is_said_to_be_so(tmp_path: Path) -> None:
    court = Court(tmp_path)
    with pytest.raises(errors.NotFound, match="no round round-x"):
        court.recorded("round-x")
    round_id = court.round_of(1, 2)
    with pytest.raises(errors.Conflict, match="is closed; only decided rounds"):
        court.recorded(round_id)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (decided(verdict="void", secret=""), "without its secret, so its hidden cases"),
        (
            decided(
                verdict="void",
                candidates=lambda all_: [
                    _changed(one, {"verdict": "unjudged", "error": None}) for one in all_
                ],
            ),
            "nothing was measured",
        ),
        (decided(environment={}), "judged by older rules"),
    ],
)
def test_a_round_of_which_nothing_can_be_recomputed_says_why(
    judged: Judged, alter: Callable[[events.EventData], events.EventData], words: str
) -> None:
    with pytest.raises(errors.Conflict, match=words):
        judged.court.recorded(judged.first, alter)
