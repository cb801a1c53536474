"""A decided round judged again, from the log, the artifacts and the revealed secret.

Whoever has a data directory can do it: the secret that the log reveals draws the hidden cases
anew, and `orchestrator.trial` measures the stored models on them. `orchestrator.comparison` says
what that means for what is recorded.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from core import chunks, errors, events, subjects, wire
from core.log import HISTORY_MAX, Log
from core.projections import rounds
from orchestrator import comparison, keys, models, trial
from orchestrator.comparison import Outcome
from orchestrator.figures import Recorded


async def read_round(log: Log, round_id: str) -> Recorded:
    """A decided round from its own subject.

    Raises NotFound, Conflict where it is not decided or nothing can be measured as it was then,
    LogDamaged where its records cannot be read, LogUnavailable.
    """
    row, unreadable = None, 0
    for record in await log.of_subject(subjects.event("round", round_id), HISTORY_MAX):
        event = events.decode(*record)
        if isinstance(event, events.Undecodable):
            unreadable = event.seq
            continue
        assert isinstance(event.data, events.OfRounds), "other events have other subjects"
        row = rounds.evolve(row, event.at, event.data)
        if isinstance(event.data, events.RoundDecided):
            recorded = Recorded(row, event.data, await _promotions(log, event.seq + 1))
            _require_measured(recorded)
            return recorded
    if unreadable:
        raise errors.LogDamaged(
            f"record {unreadable} of {round_id} cannot be read; `aghsan audit` tells what is wrong"
        )
    if row is None:
        raise errors.NotFound(f"there is no round {round_id}; `aghsan round ls` lists them")
    raise errors.Conflict(f"{round_id} is {row.status}; only decided rounds can be judged again")


async def _promotions(log: Log, seq: int) -> tuple[events.ChampionPromoted, ...]:
    """Whom the records right after a verdict make champion, of the node or of budgets."""
    told = []
    while record := await log.get(seq):
        event = events.decode(*record)
        if not isinstance(event, events.Event) or not isinstance(
            event.data, events.ChampionPromoted
        ):
            break
        told.append(event.data)
        seq += 1
    return tuple(told)


def _require_measured(recorded: Recorded) -> None:
    row, decided = recorded.row, recorded.decided
    unjudged = [one.verdict == "unjudged" and one.error is None for one in decided.candidates]
    if decided.verdict == "void" and not decided.secret:
        raise errors.Conflict(
            f"{row.round_id} ended void without its secret, so its hidden cases cannot be drawn and"
            f" nothing can be recomputed. Its record says: {decided.reasons.en}"
        )
    if unjudged and all(unjudged):
        raise errors.Conflict(
            f"nothing was measured in {row.round_id}, so nothing can be recomputed. Its record"
            f" says: {decided.reasons.en}"
        )
    if not row.look:
        raise errors.LogDamaged(
            f"{row.round_id} was decided before any judge took it; `aghsan audit` tells more"
        )
    rules = decided.environment.get("rules", "")
    if rules != trial.RULES:
        raise errors.Conflict(
            f"{row.round_id} was judged by {f'the rules {rules}' if rules else 'older rules'}, and"
            f" this program judges by the rules {trial.RULES}: judge it again with the one of then"
        )
    cuda = decided.environment.get("cuda", "")
    if row.workload.base_model is not None and cuda != trial.environment()["cuda"]:
        raise errors.Conflict(
            f"{row.round_id} was judged on a machine {'with' if cuda == 'yes' else 'without'} CUDA,"
            " unlike this one, so its base model was loaded in another precision: judge it again on"
            " such a machine"
        )


async def again(
    store: chunks.ChunkStore, recorded: Recorded, folder: Path, go_on: Callable[[], None]
) -> Outcome:
    """Fetch what stood in a round, measure it in a thread, and compare; texts are kept in the
    folder.

    Raises Unavailable when the store does not answer; trial.Abandoned as `go_on` does.
    """
    row, decided = recorded.row, recorded.decided
    secret, found = _opened(decided.secret)
    if found != row.commitment:
        return comparison.of_wrong_secret(recorded, found)
    brief = wire.brief_of(row)
    stored = await models.gather(brief, store)
    texts = await models.gather_texts(brief, store, folder)
    timing = trial.as_recorded(decided.weighed)
    slow = trial.slow_as_recorded(decided.candidates)
    trace = await asyncio.to_thread(
        trial.trace, brief, stored, secret, row.judge, go_on, texts, timing, slow
    )
    gone = {name: str(one) for name, one in stored.items() if isinstance(one, errors.NotFound)}
    return comparison.compare(recorded, trace, gone)


def _opened(secret: str) -> tuple[bytes, str]:
    """A secret, and the commitment that it opens, "" for none."""
    try:
        found = bytes.fromhex(secret)
    except ValueError:
        return b"", ""
    return found, keys.commitment_to(found)
