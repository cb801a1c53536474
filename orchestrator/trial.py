"""One round under judgement: its models are admitted, ranked, weighed, and put to the gate.

Given the secret, the stored weights, the timings and the environment that a verdict records,
`trace` is a pure function: `orchestrator.rejudge` repeats it.
"""

import functools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import torch

from agent.specialists import base, registry
from core import errors, events, platforms, wire
from core.events import CandidateVerdict, replace
from core.values import Check, Latency, Weighed
from orchestrator import bounds, budgets, consensus, gate, hidden, memory, models, paired, remarks
from orchestrator.contest import TRIVIAL, Answers, Contest, Unmeasured, settle
from orchestrator.latency import Timed
from orchestrator.models import Model, Stored, Texts
from orchestrator.rulings import Costs

RULES = "3"
"""By which rules is judged: raised with each change that gives other figures for the same cases, so
that nobody takes those of other rules for wrong ones."""

TIME = "time"
"""The check that a candidate fails which is too slow to be measured."""

IsClear: TypeAlias = Callable[[str, Latency], bool]
Timing: TypeAlias = Callable[[Mapping[str, Timed], str, IsClear], Mapping[str, Latency]]
"""What is said of the latency of models, of which one may be the champion; `latency.measure`."""


class Abandoned(BaseException):
    """The judge was asked to stop in the middle; nobody handles this but who asked."""


class Trace(NamedTuple):
    """A verdict, and what it was drawn from."""

    verdict: wire.Verdict
    ranked: Mapping[str, tuple[float, float]]
    """Mean error and evidence rate of candidates on the ranking cases, by id."""
    ranked_on: int
    """How many cases those were."""
    contests: list[Contest]
    """What was put to the gate for the node's champion, the main one first, and for budgets."""
    lacking: Mapping[str, str]
    """Models that may be sound and cannot be measured on this machine, by id, and why."""


def untimed(timed: Mapping[str, Timed], champion: str, is_clear: IsClear) -> Mapping[str, Latency]:
    """No latency is measured, and none decides anything."""
    return {}


def as_recorded(weighed: tuple[Weighed, ...]) -> Timing:
    """The timings that a verdict records."""
    told = {one.candidate_id: one.latency for one in weighed if one.latency is not None}
    return lambda timed, *_: {name: told[name] for name in timed if name in told}


def environment() -> dict[str, str]:
    """What a verdict's bits depend on beside secret and weights."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platforms.machine(),
        "python": platform.python_version(),
        "cuda": "yes" if torch.cuda.is_available() else "no",
        "rules": RULES,
    }


def measure(
    brief: wire.RoundBrief,
    stored: Mapping[str, Stored],
    secret: bytes,
    judge: str,
    go_on: Callable[[], None] = models.go_on_always,
    texts: Texts = "",
    timing: Timing = untimed,
) -> wire.Verdict:
    """The verdict on a round: rank and weigh the sound candidates, then put one or two to the gate.

    Each step draws hidden cases of its own, or as many as there are, the gate up to 32,768 where it
    takes so many to see; of a corpus from the folder `texts`. Candidates that are not sound are
    refused and never the end of the round; a champion or a best ever that is not makes it void, and
    stays.
    """
    return trace(brief, stored, secret, judge, go_on, texts, timing).verdict


def trace(
    brief: wire.RoundBrief,
    stored: Mapping[str, Stored],
    secret: bytes,
    judge: str,
    go_on: Callable[[], None] = models.go_on_always,
    texts: Texts = "",
    timing: Timing = untimed,
    slow: Mapping[str, float] | None = None,
) -> Trace:
    """As `measure`, with all that the verdict was drawn from. Where it is known who was too slow,
    nobody's time is taken, since it is evidence as latency is: `slow` holds their seconds."""
    # For this thread, not the process: OpenMP keeps the number of threads per calling thread.
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # the same, without torch's compiler
    trial = _Trial(brief, stored, secret, go_on, texts, timing, slow)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trial.run()
    return trial.trace(judge)


def slow_as_recorded(candidates: Iterable[CandidateVerdict]) -> dict[str, float]:
    """Who was too slow when a round was judged, and the seconds that each had taken by then."""
    return {
        one.candidate_id: check.value
        for one in candidates
        for check in one.gates
        if check.name == TIME and check.value is not None
    }


def _time_checks(error: Exception) -> tuple[Check, ...]:
    if not isinstance(error, models.Slow):
        return ()
    return (Check(name=TIME, verdict="fail", value=error.seconds, bound=models.SECONDS_MAX),)


class _Trial:
    """One round under judgement; each step leaves what the next one needs."""

    def __init__(
        self,
        brief: wire.RoundBrief,
        stored: Mapping[str, Stored],
        secret: bytes,
        go_on: Callable[[], None],
        texts: Texts,
        timing: Timing,
        slow: Mapping[str, float] | None,
    ) -> None:
        self._brief, self._stored, self._slow = brief, stored, slow
        self._go_on, self._texts, self._timing = go_on, texts, timing
        self._candidates = {one.candidate.candidate_id: one.candidate for one in brief.candidates}
        self._models: dict[str, Model] = {}
        self._scales: dict[str, Weighed] = {}
        """What was weighed, by id: sound candidates, and the champion if it answers."""
        self._shifted: dict[str, bounds.Floats] = {}
        self._drawn = secret, brief.node_id, brief.round_id
        self._rank_cases: base.Cases = {}
        self._ranked: dict[str, tuple[float, float]] = {}
        self._ranked_on = 0
        self._verdicts: dict[str, CandidateVerdict] = {}
        self._contests: list[Contest] = []
        self._budgets: list[budgets.Entry] = []
        self._lacking: dict[str, str] = {}
        self._conclusion: consensus.Conclusion | None = None
        self._baseline_error: float | None = None
        self._beats_baseline = False
        self._reasons = remarks.NO_CANDIDATE

    def run(self) -> None:
        """All steps of a judgement."""
        specialist = self._admit()
        if specialist is None:
            return
        self._rank(specialist)
        if not self._ranked:
            return
        try:
            self._weigh(specialist)
            self._put_to_gate(specialist)
        except Unmeasured as error:
            self._conclusion, self._contests, self._budgets = None, [], []
            self._leave_unjudged(error)

    # ── admission ──

    def _admit(self) -> base.Specialist | None:
        """Load the candidates; refuse those that are not sound."""
        workload = self._brief.workload
        try:
            if isinstance(self._texts, errors.AghsanError):
                raise self._texts
            specialist = registry.get(
                workload.specialist, workload.parameters, self._texts, workload.base_model
            )
        except errors.AghsanError as error:
            for candidate in self._candidates.values():
                self._lacking[candidate.candidate_id] = models.brief_of(error)
                self._refuse(candidate, error)
            return None
        for candidate in self._candidates.values():
            self._go_on()
            try:
                stored = self._stored[candidate.candidate_id]
                model = models.load(specialist, stored, candidate.weights_sha256)
            except errors.ArtifactError as error:
                self._note_lack(candidate.candidate_id, error)
                self._refuse(candidate, error)
            else:
                self._models[candidate.candidate_id] = model
        return specialist

    def _note_lack(self, candidate_id: str, error: Exception) -> None:
        if isinstance(error, models.Unbuildable):
            self._lacking[candidate_id] = models.brief_of(error)

    def _refuse(self, candidate: events.Candidate, error: Exception) -> None:
        self._models.pop(candidate.candidate_id, None)
        self._scales.pop(candidate.candidate_id, None)
        self._ranked.pop(candidate.candidate_id, None)
        self._verdicts[candidate.candidate_id] = CandidateVerdict(
            candidate_id=candidate.candidate_id,
            verdict="refused",
            reasons=remarks.refused(error),
            bytes=candidate.bytes,
            gates=_time_checks(error),
        )
        self._reasons = remarks.NONE_SOUND

    def _load_opponent(self, specialist: base.Specialist, one: events.Base) -> None:
        """Load the champion, or another whom candidates have to meet. Raises Unmeasured."""
        if one.candidate_id in self._models:
            return
        try:
            stored = self._stored[one.candidate_id]
            model = models.load(specialist, stored, one.weights_sha256)
        except errors.ArtifactError as error:
            self._note_lack(one.candidate_id, error)
            raise Unmeasured(one.candidate_id, str(error)) from error
        self._models[one.candidate_id] = model

    # ── on the ranking cases ──

    def _rank(self, specialist: base.Specialist) -> None:
        """Measure the sound candidates on the first hidden cases."""
        if not self._models:
            return
        self._rank_cases = cases = hidden.rank_cases(specialist, *self._drawn)
        self._ranked_on = len(next(iter(cases.values())))
        for candidate in self._candidates.values():
            model = self._models.get(candidate.candidate_id)
            if model is None:
                continue
            try:
                go_on = self._within_time(candidate.candidate_id, model)
                found = models.errors_of(specialist, model, cases, go_on)
                weighed = self._weighed(specialist, candidate.candidate_id, found)
            except errors.ArtifactError as error:
                self._refuse(candidate, error)
            else:
                self._scales[candidate.candidate_id] = weighed
                self._ranked[candidate.candidate_id] = weighed.error, weighed.evidence_rate

    def _within_time(self, name: str, model: Model) -> Callable[[], None]:
        """Goes on while a candidate has time left. Adapters have as long as they take: it is their
        base that is slow. Raises models.Slow."""
        began = time.thread_time()

        def go_on() -> None:
            self._go_on()
            if self._slow is not None:
                if name in self._slow:
                    raise models.Slow(self._slow[name])
                return
            taken = time.thread_time() - began
            if taken > models.SECONDS_MAX and not getattr(model.module, "stays_on_device", False):
                raise models.Slow(taken)

        return go_on

    def _weighed(self, specialist: base.Specialist, name: str, found: bounds.Floats) -> Weighed:
        """A model's figures. Raises errors.ArtifactError for errors that are none."""
        model = self._models[name]
        if unusable := paired.unusable(found):
            raise errors.ArtifactError(
                f"its error is not a finite number on {unusable} of {len(found)} hidden cases"
            )
        return Weighed(
            candidate_id=name,
            error=float(found.mean()),
            evidence_rate=float(np.mean(found <= specialist.tolerance)),
            params=model.params,
            bytes=model.bytes,
            memory_bytes=memory.peak_bytes(*models.for_one_answer(specialist, model.module)),
        )

    # ── on the scales ──

    def _weigh(self, specialist: base.Specialist) -> None:
        """Weigh the champion too, then what all of them cost. Raises Unmeasured."""
        self._rank_champion(specialist)
        if cases := hidden.shifted_cases(specialist, *self._drawn):
            answers = Answers(specialist, self._models, self._go_on)
            answers.meet(cases)
            for name, weighed in self._scales.items():
                found = self._shifted[name] = answers.if_any(name)
                if not paired.unusable(found):
                    mean = float(found.mean())
                    self._scales[name] = replace(weighed, shifted_error=mean)
        timed = {
            name: Timed(
                *models.for_one_answer(specialist, self._models[name].module),
                self._models[name].architecture,
            )
            for name in self._scales
        }
        self._go_on()
        told = self._timed(timed)
        latencies = {name: told.get(name) for name in self._scales}
        front = consensus.fronted(
            [replace(one, latency=latencies[name]) for name, one in self._scales.items()]
        )
        self._scales = {one.candidate_id: one for one in front}

    def _timed(self, timed: Mapping[str, Timed]) -> Mapping[str, Latency]:
        try:
            return self._timing(timed, self._weighed_champion, self._is_clear)
        except errors.ArtifactError as error:
            # No candidate's fault: each was asked the same before, and answered.
            raise RuntimeError(f"a model that answered before does not: {error}") from error

    def _rank_champion(self, specialist: base.Specialist) -> None:
        """Measure the champion on the ranking cases. One that answers nonsense is not weighed."""
        champion = self._brief.champion
        if champion is None:
            return
        name = champion.candidate_id
        self._load_opponent(specialist, champion)
        try:
            model = self._models[name]
            found = models.errors_of(specialist, model, self._rank_cases, self._go_on)
            if not paired.unusable(found):
                self._scales[name] = self._weighed(specialist, name, found)
        except errors.ArtifactError as error:
            raise Unmeasured(name, models.brief_of(error)) from error

    @property
    def _weighed_champion(self) -> str:
        """Whom candidates are weighed against, "" for nobody."""
        champion = self._brief.champion
        return champion.candidate_id if champion and champion.candidate_id in self._scales else ""

    def _is_clear(self, name: str, timed: Latency) -> bool:
        """Whether a latency is clear of what decides, as the ranking cases have it."""
        self._go_on()  # readings of several candidates may take longer than a stop may wait
        if name not in self._ranked or not self._weighed_champion:
            return True
        pair = self._scales[name], self._scales[self._weighed_champion]
        return consensus.is_clear(timed, *pair, self._brief.gates)

    # ── at the gate ──

    def _put_to_gate(self, specialist: base.Specialist) -> None:
        """Measure those that are picked, and whom they meet, on other hidden cases, of which there
        are more until the gate's rulings are clear. Raises Unmeasured."""
        self._contests = list(self._contests_for_node(specialist))
        load = functools.partial(self._load_opponent, specialist)
        self._budgets = list(budgets.entered(self._brief, self._scales, load, specialist.tolerance))
        answers = Answers(specialist, self._models, self._go_on)
        settle(self._all_contests(), answers, hidden.gate_cases(specialist, *self._drawn))
        put = []
        for one in self._contests:
            assert one.ruling is not None, "a contest is settled"
            put.append(consensus.Put(one.own, one.ruling))
        champion = self._brief.champion
        self._conclusion = consensus.concluded(
            self._brief.node_id,
            put,
            list(self._scales.values()),
            champion.candidate_id if champion else "",
        )
        self._reasons = self._conclusion.main.ruling.reasons
        self._compare_with_baseline(specialist, answers.cases[0])
        self._record(self._conclusion)

    def _all_contests(self) -> list[Contest]:
        entered = (entry.contest for entry in self._budgets)
        return [*self._contests, *(one for one in entered if one is not None)]

    def _contests_for_node(self, specialist: base.Specialist) -> Iterator[Contest]:
        gates, brief = self._brief.gates, self._brief
        champion = self._scales.get(self._weighed_champion)
        if brief.best is not None:
            self._load_opponent(specialist, brief.best)
        rivals = [self._scales[name] for name in self._ranked]
        picked = consensus.picks(rivals, champion, gates)
        for name in picked:
            yield Contest(
                own=name,
                look=brief.look,
                opponent=champion.candidate_id if champion else TRIVIAL,
                against="champion" if champion else "trivial",
                best=brief.best.candidate_id if brief.best else "",
                gates=gates,
                costs=self._costs(name, champion) if champion else None,
                share=1.0 / len(picked),
                tolerance=specialist.tolerance,
                has_no_best=brief.champion is not None and not champion and not brief.best,
            )

    def _costs(self, name: str, champion: Weighed) -> Costs:
        shifted = self._shifted.get(name), self._shifted.get(champion.candidate_id)
        costs = consensus.costs_of(self._scales[name], champion)
        if shifted[0] is None or shifted[1] is None:
            return costs
        return costs._replace(shifted=(shifted[0], shifted[1]))

    def _compare_with_baseline(self, specialist: base.Specialist, first: base.Cases) -> None:
        """The main one, and the baseline of record, on the cases of the first stage."""
        assert self._conclusion is not None, "the round came to something"
        baseline = specialist.baseline_errors(first)[specialist.baseline_of_record]
        self._baseline_error = float(baseline.mean())
        name = self._conclusion.main.candidate_id
        own = next(one.meetings[0].own for one in self._contests if one.own == name)
        self._beats_baseline = bool(own.mean() < self._baseline_error)

    # ── what is told ──

    def _leave_unjudged(self, error: Unmeasured) -> None:
        """Compare nobody: to judge as if no champion reigned would let anything dethrone it."""
        known = (self._brief.champion, self._brief.best)
        whom = next(one for one in known if one and one.candidate_id == error.candidate_id)
        is_champion = whom is self._brief.champion
        self._reasons = remarks.not_comparable(whom, is_champion, error)
        for name, (rank_error, evidence_rate) in self._ranked.items():
            self._verdicts[name] = CandidateVerdict(
                candidate_id=name,
                verdict="unjudged",
                reasons=remarks.unjudged(rank_error, whom.candidate_id, is_champion),
                error=rank_error,
                evidence_rate=evidence_rate,
                params=self._models[name].params,
                bytes=self._models[name].bytes,
            )

    def _record(self, conclusion: consensus.Conclusion) -> None:
        put = {one.own: one.ruling for one in self._contests}
        leader = self._contests[0].own
        for name, (error, evidence_rate) in self._ranked.items():
            ruling, model = put.get(name), self._models[name]
            if ruling is None:
                self._verdicts[name] = CandidateVerdict(
                    candidate_id=name,
                    verdict="outranked",
                    reasons=remarks.outranked(error, self._ranked[leader][0], self._ranked_on),
                    error=error,
                    evidence_rate=evidence_rate,
                    params=model.params,
                    bytes=model.bytes,
                )
                continue
            remark = remarks.picked if name == leader else remarks.picked_beside
            self._verdicts[name] = CandidateVerdict(
                candidate_id=name,
                verdict=ruling.verdict,
                reasons=remark(ruling, error),
                error=ruling.error,
                evidence_rate=ruling.evidence_rate,
                ratio=ruling.ratio,
                ratio_upper=ruling.ratio_upper,
                params=model.params,
                bytes=model.bytes,
                gates=ruling.checks,
                cases=ruling.cases,
            )

    def trace(self, judge: str) -> Trace:
        """The verdict, and what it was drawn from."""
        verdict = self._verdict(judge)
        return Trace(verdict, self._ranked, self._ranked_on, self._all_contests(), self._lacking)

    def _verdict(self, judge: str) -> wire.Verdict:
        """The verdict as it is sent. Its figures are those of the one that stands for the round."""
        brief, found = self._brief, self._conclusion
        told = wire.Verdict(
            judge=judge,
            round_id=brief.round_id,
            verdict="void",
            secret=self._drawn[0].hex(),
            reasons=self._reasons,
            candidates=[self._verdicts[name] for name in self._candidates],
            against=brief.champion.candidate_id if brief.champion else "",
            environment=environment(),
            weighed=tuple(self._scales.values()),
        )
        if found is None:
            return told
        ruling, name = found.main.ruling, found.main.candidate_id
        contest = next(one for one in self._contests if one.own == name)
        return msgspec.structs.replace(
            told,
            verdict=found.verdict,
            promoted=found.promoted,
            alpha=gate.alpha_at(brief.look),
            cases=ruling.cases,
            champion_error=ruling.opponent_error if brief.champion else None,
            baseline_error=self._baseline_error,
            below_baseline=not self._beats_baseline,
            recommendation=found.recommendation,
            budgets=tuple(budgets.verdict(entry) for entry in self._budgets),
            best_upper=contest.best_upper,
        )
