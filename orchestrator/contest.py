"""Questions put to the gate, on hidden cases that are added until each is answered."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agent.specialists import base
from core import errors
from core.values import Gates
from orchestrator import bounds, gate, models, paired
from orchestrator.models import Model
from orchestrator.rulings import Against, Costs, Ruling

TRIVIAL = ""
"""Whom a candidate meets where nobody reigns: the trivial predictor."""


class Unmeasured(errors.ArtifactError):
    """One whom candidates have to meet cannot be asked."""

    def __init__(self, candidate_id: str, why: str) -> None:
        super().__init__(why)
        self.candidate_id = candidate_id


class Meeting(NamedTuple):
    """What the gate was asked at a stage: errors, [cases], on all cases up to it."""

    stage: bounds.Stage
    own: bounds.Floats
    opponent: bounds.Floats
    best: bounds.Floats | None = None


class Answers:
    """The errors of models on the cases so far, each asked when it is needed."""

    def __init__(
        self,
        specialist: base.Specialist,
        known: Mapping[str, Model],
        go_on: Callable[[], None] = models.go_on_always,
    ) -> None:
        self.specialist, self._known, self._go_on = specialist, known, go_on
        self.cases: list[base.Cases] = []
        """Those so far, part by part."""
        self._found: dict[str, list[bounds.Floats]] = {}

    def meet(self, cases: base.Cases) -> None:
        """There are these cases as well."""
        self.cases.append(cases)

    def of(self, name: str) -> bounds.Floats:
        """Errors of a model, or of the trivial predictor, on all cases so far. Raises Unmeasured
        for a model that cannot be asked."""
        found = self._found.setdefault(name, [])
        for cases in self.cases[len(found) :]:
            found.append(self._of(name, cases))
        return np.concatenate(found)

    def _of(self, name: str, cases: base.Cases) -> bounds.Floats:
        if name == TRIVIAL:
            trivial = self.specialist.baseline_errors(cases)["trivial"]
            said: bounds.Floats = trivial.double().numpy()
            return said
        try:
            return models.errors_of(self.specialist, self._known[name], cases, self._go_on)
        except errors.ArtifactError as error:
            raise Unmeasured(name, models.brief_of(error)) from error

    def if_any(self, name: str) -> bounds.Floats:
        """As `of`; of a model that cannot be asked, none that are numbers."""
        try:
            return self.of(name)
        except Unmeasured:
            return np.full(sum(len(next(iter(cases.values()))) for cases in self.cases), np.nan)


@dataclass(slots=True)
class Contest:
    """One candidate against whoever it has to beat.

    An opponent who answers a case with nonsense is none: the trivial predictor takes its place,
    which is all that there is to beat then, whatever that costs. A best ever who does so is none
    either.
    """

    own: str
    look: int
    opponent: str = TRIVIAL
    against: Against = "trivial"
    best: str = ""
    """The best ever, where that is another than the opponent."""
    gates: Gates = field(default_factory=Gates)
    costs: Costs | None = None
    budget: str = ""
    """For whose champion it is, "" for the node's own."""
    share: float = 1.0
    tolerance: float = 0.0
    may_fail: bool = False
    """Whether an opponent that cannot be asked ends this contest alone."""
    failed: Unmeasured | None = None
    has_no_best: bool = False
    meetings: list[Meeting] = field(default_factory=list)
    ruling: Ruling | None = None

    def go_on(self, stage: bounds.Stage, answers: Answers) -> None:
        """Ask the gate at a stage, unless that was settled before. Raises Unmeasured."""
        if self.is_settled:
            return
        try:
            self._meet(stage, answers)
        except Unmeasured as error:
            if not self.may_fail:
                raise
            self.failed, self.ruling = error, None

    @property
    def is_settled(self) -> bool:
        """Whether more cases change nothing."""
        return self.failed is not None or (self.ruling is not None and self.ruling.settled)

    def _meet(self, stage: bounds.Stage, answers: Answers) -> None:
        if self.opponent != TRIVIAL and paired.unusable(answers.of(self.opponent)):
            self.opponent, self.against, self.costs = TRIVIAL, "trivial", None
            self.has_no_best = not self.best
        if self.best and paired.unusable(answers.of(self.best)):
            self.best, self.has_no_best = "", True
        met = Meeting(
            stage,
            answers.if_any(self.own),
            answers.of(self.opponent),
            answers.of(self.best) if self.best else None,
        )
        self.meetings.append(met)
        self.ruling = self.ruled(met)

    def ruled(self, met: Meeting) -> Ruling:
        """What the gate says of such errors."""
        return gate.decide(
            met.own,
            met.opponent,
            tolerance=self.tolerance,
            look=self.look,
            stage=met.stage,
            against=self.against,
            gates=self.gates,
            best=met.best,
            costs=self.costs,
            share=self.share,
        )

    @property
    def best_upper(self) -> float | None:
        """What the ratio to the errors of the best ever surely does not exceed: nothing is as bad
        as nonsense."""
        assert self.ruling is not None, "it was asked"
        return 0.0 if self.has_no_best else self.ruling.best_upper


def settle(
    contests: Iterable[Contest],
    answers: Answers,
    drawn: Iterable[tuple[bounds.Stage, base.Cases]],
) -> None:
    """Ask until all contests are settled. Raises Unmeasured."""
    contests = list(contests)
    for stage, cases in drawn:
        answers.meet(cases)
        for one in contests:
            one.go_on(stage, answers)
        if all(one.is_settled for one in contests):
            return
