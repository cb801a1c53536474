"""Workers' own measurements of their candidates, held against what judges measured."""

from collections.abc import Iterator

from core import events
from core.projections.rounds import Round

LOSS_SHARE_LEAST = 0.5
"""A claimed loss below so much of what was measured is off. Validation cases are some thousand, and
other ones than the hidden: of some 640 candidates of honest agents at all nodes no claim was off by
this; of the mean error alone, without what is said below, six would be."""
ROUNDING = 1e-9
EVIDENCE_MORE_MOST = 0.1
"""A claimed rate of evidence above the measured one by more is off; honest ones came to 0.08."""


def judged(row: Round, data: events.RoundDecided) -> Iterator[tuple[str, bool]]:
    """Of each measured candidate of a round that claimed something, its worker, and whether the
    claim is off."""
    verdicts = {one.candidate_id: one for one in data.candidates}
    for standing in row.standings:
        claims = standing.candidate.claims
        verdict = verdicts.get(standing.candidate.candidate_id)
        if verdict is not None and verdict.error is not None and claims:
            yield standing.worker_id, is_off(claims, verdict, row, data)


def is_off(
    claims: dict[str, float],
    verdict: events.CandidateVerdict,
    row: Round,
    data: events.RoundDecided,
) -> bool:
    """Whether a claim is better than what was measured, by more than other cases explain."""
    evidence, measured = claims.get("evidence_rate"), verdict.evidence_rate
    if evidence is not None and measured is not None and evidence > measured + EVIDENCE_MORE_MOST:
        return True
    loss = claims.get("loss")
    least = _least_error(verdict, row, data)
    return loss is not None and least is not None and loss < LOSS_SHARE_LEAST * least


def _least_error(
    verdict: events.CandidateVerdict, row: Round, data: events.RoundDecided
) -> float | None:
    """The lowest of the figures for a candidate's error; None where none is worth a comparison.

    A mean says little where rare cases are disasters: one in thousands makes it a hundredfold.
    Others of these figures are of other cases, or are no means (a ratio to the opponent's error is
    mostly that of geometric means). A mean above the baseline's tells of a disaster as often as of
    a bad model, and the rate of evidence tells them apart. So it does where a case is right or
    wrong, its error 0 or 1: none of a thousand may be wrong here, and one there.
    """
    error, evidence = verdict.error, verdict.evidence_rate
    if error is None or (evidence is not None and abs(error + evidence - 1) < ROUNDING):
        return None
    figures = [error]
    figures += [one.error for one in data.weighed if one.candidate_id == verdict.candidate_id]
    opponent = data.baseline_error if row.champion is None else data.champion_error
    if verdict.ratio is not None and opponent is not None:
        figures.append(verdict.ratio * opponent)
    least = min(figures)
    baseline = data.baseline_error
    return None if baseline is not None and least >= baseline else least
