"""Who may reign, told again: whom a verdict promotes, and whom people chose."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from core import events, gates
from core.audit import losses
from core.audit.findings import Add
from core.audit.losses import Losses
from core.audit.tree import Tree, base_name
from core.events import Candidate, Champion, Workload
from core.values import Budget, BudgetVerdict

_WORDS = {
    "node_id": "node",
    "candidate_id": "candidate",
    "task_id": "task",
    "worker_id": "worker",
    "rival": "role",
    "weights_sha256": "weights",
    "round_id": "round",
}


class Standing(NamedTuple):
    """A candidate in a round."""

    candidate: Candidate
    task_id: str
    worker_id: str


class Arena(NamedTuple):
    """A round as promotions speak of it: who stood, and for which budgets champions are sought."""

    round_id: str
    node_id: str
    workload: Workload
    standings: Mapping[str, Standing]
    budgets: Mapping[str, Budget]


class _Due(NamedTuple):
    """A promotion that a verdict has announced, and that has to come next."""

    seq: int
    round_id: str
    champion: Champion
    is_new: bool
    """Whether it stood in the round; the node's own champion may become that of a budget."""
    best_upper: float | None = None
    """What its errors surely do not exceed, in times of the best ever's; None of older judges."""


class Champions:
    """What verdicts and people say of who reigns."""

    def __init__(self, add: Add, tree: Tree, lost: Losses) -> None:
        self._add = add
        self._tree = tree
        self._losses = lost
        self._measured: dict[str, Champion] = {}
        self._due: dict[str, _Due] = {}
        """By budget, "" for the node's own throne."""
        self._torn: list[_Due] = []  # what was due when another writer came
        self._may_be_unreadable = False

    # ── verdicts ──

    def decided(self, seq: int, data: events.RoundDecided, arena: Arena) -> None:
        """Take what a verdict measured, and whom it promotes."""
        own = self._losses.of(losses.round_(data.round_id))
        models = {one.candidate_id: one for one in _models(data, arena)}
        for verdict in data.candidates:
            measured = verdict.verdict not in ("refused", "unjudged") and verdict.error is not None
            if measured and data.baseline_error is not None and verdict.candidate_id in models:
                self._measured[verdict.candidate_id] = models[verdict.candidate_id]
        if (data.verdict == "promote") != bool(data.promoted):
            detail = f"{data.round_id} is decided {data.verdict}, promoted: {data.promoted!r}"
            self._add("promotion", seq, detail)
        if data.promoted and data.promoted not in models:
            detail = f"{data.round_id} promotes {data.promoted}, which did not stand in it"
            self._add("promotion", seq, detail, own)
        elif data.promoted:
            model = models[data.promoted]
            self._due[""] = _Due(seq, data.round_id, model, True, data.best_upper)
        reigning = self._tree.reigning(arena.node_id)
        if reigning is not None:
            models.setdefault(reigning.candidate_id, reigning)
        self._decided_for_budgets(seq, data, arena, models)

    def _decided_for_budgets(
        self,
        seq: int,
        data: events.RoundDecided,
        arena: Arena,
        models: Mapping[str, Champion],
    ) -> None:
        own = self._losses.of(losses.round_(data.round_id))
        told: set[str] = set()
        for one in data.budgets:
            if one.budget in told:
                fault = f"decides twice for the budget {one.budget!r}"
            else:
                fault = _fault_for_budget(one, data, arena, models)
            if fault:
                self._add("promotion", seq, f"{data.round_id} {fault}", own)
            is_first = one.budget in arena.budgets and one.budget not in told
            told.add(one.budget)
            if is_first and one.promoted in models:
                model, is_new = models[one.promoted], one.promoted in arena.standings
                if is_new:
                    model = _weighed(model, one, data)
                self._due[one.budget] = _Due(seq, data.round_id, model, is_new)

    # ── what is due ──

    def unreadable(self) -> None:
        """Take it that a record cannot be read: it might be what is due."""
        self._may_be_unreadable = bool(self._due)

    def expect(self, seq: int, data: events.EventData) -> None:
        """Look whether what comes next is a promotion that is due."""
        if isinstance(data, events.ChampionPromoted):
            return
        if isinstance(data, events.WriterStarted):
            # The end may have been cut off in the middle of an append; if so, that was accepted.
            if not self._may_be_unreadable:
                self._torn = [*self._due.values()] or self._torn
            self._due, self._may_be_unreadable = {}, False
        elif isinstance(data, events.LossAccepted):
            self._torn = []
        else:
            self.miss(seq, type(data).__name__)

    def miss(self, seq: int, found: str) -> None:
        """Something else came: no promotion may be due."""
        due = [] if self._may_be_unreadable else [*self._due.values()]
        for one in due or self._torn:
            promoted = one.champion.candidate_id
            detail = f"{one.round_id} promoted {promoted} at {one.seq}; {found} follows"
            self._add("promotion", seq, detail)
        self._due, self._torn, self._may_be_unreadable = {}, [], False

    def promoted(self, seq: int, data: events.ChampionPromoted) -> None:
        """Take a new champion."""
        due = self._due.pop(data.budget, None)
        name = data.champion.candidate_id
        if due is None or (due.is_new and due.round_id != data.champion.round_id):
            detail = f"{name} becomes champion{_of(data.budget)} without a verdict right before "
            detail += "that says so"
            cause = self._losses.unaccepted_of(losses.round_(data.champion.round_id))
            self._add("promotion", seq, detail, cause)
        elif wrong := _wrong_promotion(data, due):
            detail = f"{name} becomes champion{_of(data.budget)}, unlike the candidate promoted at "
            self._add("promotion", seq, f"{detail}{due.seq}: {wrong}")
        self._require_before(seq, data)
        self._tree.reigns(seq, data.champion, data.budget)
        if not data.budget:
            self._tree.promoted_best(data)

    def _require_before(
        self, seq: int, data: events.ChampionPromoted | events.ChampionChosen
    ) -> None:
        before = self._tree.base(data.node_id, data.champion.workload, data.budget)
        if data.instead_of != (before.candidate_id if before else ""):
            detail = (
                f"{data.champion.candidate_id} replaces {data.instead_of!r}, while"
                f" {base_name(before)} reigns{_of(data.budget)}"
            )
            self._add("base", seq, detail, self._losses.of(losses.node(data.node_id)))

    # ── people ──

    def chosen(self, seq: int, data: events.ChampionChosen) -> None:
        """Take a champion that a person chose."""
        if fault := self._fault_of_choice(data):
            detail = f"a person chose {data.champion.candidate_id}{_of(data.budget)}, {fault}"
            cause = self._losses.unaccepted_of(
                losses.round_(data.champion.round_id), *self._tree.rests_on(data.node_id)
            )
            self._add("choice", seq, detail, cause)
        self._require_before(seq, data)
        self._tree.reigns(seq, data.champion, data.budget)
        if not data.budget:
            self._tree.chosen_best(data)

    def _fault_of_choice(self, data: events.ChampionChosen) -> str:
        one, node_id = data.champion, data.node_id
        if data.kind == "rollback":
            known = self._tree.reigned(node_id, one.candidate_id, data.budget)
            if known is None:
                return "which never reigned there"
        else:
            known = self._measured.get(one.candidate_id)
            if known is None:
                return "which no decided round has measured"
        if (one.node_id, known.node_id) != (node_id, node_id):
            return f"which is of {known.node_id}"
        if wrong := differences(one, known, Champion.__struct_fields__):
            return f"which the log tells otherwise: {wrong}"
        if one.workload != self._tree.trains(node_id):
            return f"which was not trained for what {node_id} trains now"
        return self._fault_of_budget(data)

    def _fault_of_budget(self, data: events.ChampionChosen) -> str:
        if not data.budget:
            return ""
        stated = {one.name: one for one in self._tree.gates(data.node_id).budgets}
        if data.budget not in stated:
            return f"which is no budget of {data.node_id}"
        most = stated[data.budget].bytes_max
        if most is not None and data.champion.bytes > most:
            return f"which takes more than its {most} bytes"
        return ""


def differences(found: Champion, wanted: Champion, names: Iterable[str]) -> str:
    """In which of these fields a champion is not what it should be."""
    wrong = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    return ", ".join(_WORDS.get(name, name.replace("_", " ")) for name in wrong)


def _wrong_promotion(data: events.ChampionPromoted, due: _Due) -> str:
    """In what a promotion differs from its verdict. Whether an error is below the baseline of
    record is for its judge to tell."""
    names = (name for name in Champion.__struct_fields__ if name != "below_baseline")
    wrong = [differences(data.champion, due.champion, names)]
    if data.node_id != due.champion.node_id:
        wrong.insert(0, "node")
    is_best = not data.instead_of or (due.best_upper or 0.0) < 1.0
    if not data.budget and due.best_upper is not None and data.is_best != is_best:
        wrong.append("is best")
    return ", ".join(filter(None, wrong))


def _models(data: events.RoundDecided, arena: Arena) -> Iterable[Champion]:
    """The candidates of a round as champions, by what its verdict says of them."""
    for verdict in data.candidates:
        stood = arena.standings.get(verdict.candidate_id)
        if stood is None:
            continue
        error, baseline = verdict.error or 0.0, data.baseline_error or 0.0
        yield Champion(
            node_id=arena.node_id,
            candidate_id=verdict.candidate_id,
            round_id=arena.round_id,
            task_id=stood.task_id,
            worker_id=stood.worker_id,
            rival=stood.candidate.rival,
            manifest=stood.candidate.manifest,
            writer=stood.candidate.writer,
            weights_sha256=stood.candidate.weights_sha256,
            workload=arena.workload,
            error=error,
            baseline_error=baseline,
            evidence_rate=verdict.evidence_rate or 0.0,
            below_baseline=error >= baseline,
            params=verdict.params,
            bytes=verdict.bytes,
        )


def _weighed(model: Champion, one: BudgetVerdict, data: events.RoundDecided) -> Champion:
    """A candidate as the champion of a budget: its error is that of the budget's own cases, the
    rest is of those by which the round ranked."""
    found = next((of for of in data.weighed if of.candidate_id == one.promoted), None)
    if found is None or one.error is None:
        return model
    return events.replace(
        model,
        error=one.error,
        evidence_rate=found.evidence_rate,
        params=found.params,
        bytes=found.bytes,
    )


def _fault_for_budget(
    one: BudgetVerdict,
    data: events.RoundDecided,
    arena: Arena,
    models: Mapping[str, Champion],
) -> str:
    """What is wrong with what a round means to a budget, "" for nothing."""
    budget = arena.budgets.get(one.budget)
    if budget is None:
        return f"decides for {one.budget!r}, which is no budget of it"
    whom = f"promotes {one.promoted} for the budget {one.budget!r}, which"
    if one.promoted and one.promoted not in models:
        return f"{whom} did not stand in it"
    figures = (of for of in data.weighed if of.candidate_id == one.promoted)
    if one.promoted and not any(gates.fits(of, budget) for of in figures):
        return f"{whom} by its figures it does not keep"
    return ""


def _of(budget: str) -> str:
    return f" of the budget {budget!r}" if budget else ""
