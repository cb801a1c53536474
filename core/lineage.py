"""The champions of a node in the order of their reigns, by the events of that node."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from core import errors, events
from core.events import Champion, ChampionChosen, ChampionPromoted, ChampionRetired
from core.projections.rounds import Round


class Reign(NamedTuple):
    """One champion of a node, or of a budget of it; times are microseconds since 1970.

    `retired_at` is when the reign ended without a successor, and `reason` why; 0 and "" where it
    goes on or another champion followed at once. A person's choice has its `kind`, and may have
    words for it, `because`; a judge's promotion has neither.
    """

    champion: Champion
    instead_of: str
    promoted_at: int
    retired_at: int = 0
    reason: str = ""
    kind: Literal["", "promote", "rollback"] = ""
    because: str = ""

    @property
    def by(self) -> Literal["judge", "person"]:
        """Who made it champion."""
        return "person" if self.kind else "judge"


def reigns(of_node: Iterable[events.Event], budget: str = "") -> list[Reign]:
    """The reigns that a node's events tell of: the node's own, or those of a budget."""
    found: list[Reign] = []
    for event in of_node:
        data = event.data
        if not isinstance(data, ChampionPromoted | ChampionChosen | ChampionRetired):
            continue
        if data.budget != budget:
            continue
        match data:
            case ChampionPromoted():
                found.append(Reign(data.champion, data.instead_of, event.at))
            case ChampionChosen():
                chosen = Reign(data.champion, data.instead_of, event.at)
                found.append(chosen._replace(kind=data.kind, because=data.reason))
            case ChampionRetired():
                if found and found[-1].champion.candidate_id == data.candidate_id:
                    found[-1] = found[-1]._replace(retired_at=event.at, reason=data.reason)
    return found


def budgets_of(of_node: Iterable[events.Event]) -> set[str]:
    """The budgets for which anybody ever reigned."""
    risen = (ChampionPromoted, ChampionChosen)
    return {one.data.budget for one in of_node if isinstance(one.data, risen)} - {""}


def reigning(found: Sequence[Reign]) -> Reign | None:
    """The champion that reigns now."""
    return found[-1] if found and not found[-1].retired_at else None


def before(found: Sequence[Reign]) -> Champion | None:
    """Whom the reigning champion replaced when it rose: a rollback from where one has led goes on
    further back, not forth again. None where nobody reigns, or nobody did before."""
    now = reigning(found)
    if now is None:
        return None
    name = now.champion.candidate_id
    rises = [one for one in found if one.champion.candidate_id == name and one.kind != "rollback"]
    return former(found, rises[-1].instead_of) if rises else None


def former(found: Sequence[Reign], candidate_id: str) -> Champion | None:
    """A champion that reigned, as it did last."""
    champions = [one.champion for one in found if one.champion.candidate_id == candidate_id]
    return champions[-1] if champions else None


def measured(row: Round, candidate_id: str) -> Champion:
    """A candidate of a decided round as the champion it would be, by the figures that the judge
    told. Raises NotFound, Conflict for one that was refused or not measured."""
    standing = next((s for s in row.standings if s.candidate.candidate_id == candidate_id), None)
    if standing is None:
        raise errors.NotFound(f"{candidate_id} did not stand in {row.round_id}")
    if row.decision is None:
        raise errors.Conflict(f"{row.round_id} is not decided yet; wait for its verdict")
    said = next(one for one in row.decision.candidates if one.candidate_id == candidate_id)
    baseline = row.decision.baseline_error
    if said.verdict in ("refused", "unjudged") or said.error is None or baseline is None:
        raise errors.Conflict(
            f"{candidate_id} was not measured in {row.round_id} ({said.verdict}): "
            f"{said.reasons.en} Only what a judge measured may reign"
        )
    return Champion(
        node_id=row.node_id,
        candidate_id=candidate_id,
        round_id=row.round_id,
        task_id=standing.task_id,
        worker_id=standing.worker_id,
        rival=standing.candidate.rival,
        manifest=standing.candidate.manifest,
        writer=standing.candidate.writer,
        weights_sha256=standing.candidate.weights_sha256,
        workload=row.workload,
        error=said.error,
        baseline_error=baseline,
        evidence_rate=said.evidence_rate or 0.0,
        below_baseline=said.error >= baseline,
        params=said.params,
        bytes=said.bytes,
    )
