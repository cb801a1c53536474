"""What log and store of a data directory hold, whether `aghsan up` runs on it or not."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cli.log import ending_on_sigterm
from core import errors

if TYPE_CHECKING:
    from core import events
    from core.lineage import Reign
    from core.log import Log
    from core.projections.rounds import Round
    from core.replay import Connected

T = TypeVar("T")


def reading(data: Path, ask: "Callable[[Connected], Coroutine[Any, Any, T]]") -> T:
    """The answer of log and store of a data directory; nothing in it changes."""
    from core.replay import ALL_AUDITED, connect, find_lost_chunks, serving

    async def answered() -> T:
        async with connect(access) as connected:
            if lost := await find_lost_chunks(access, connected):
                raise errors.NotFound(lost)
            return await ask(connected)

    with ending_on_sigterm(), serving(data, ALL_AUDITED._replace(blocks=False)) as access:
        return asyncio.run(answered())


class Node(NamedTuple):
    """A node, and its champions in the order they reigned."""

    added: "events.NodeAdded"
    reigns: "list[Reign]"


async def node(connected: "Connected", node_id: str, budget: str = "") -> Node:
    """A node by the log, with the champions of a budget in place of its own where one is named.
    Raises errors.NotFound."""
    from core import events, lineage

    history = await _history(connected.log, "node", node_id)
    added = [event.data for event in history if isinstance(event.data, events.NodeAdded)]
    if not added:
        raise errors.NotFound(f"there is no node {node_id}")
    return Node(added[0], lineage.reigns(history, budget))


async def _history(log: "Log", kind: str, identity: str) -> "list[events.Event]":
    from core import events, subjects
    from core.log import HISTORY_MAX

    records = await log.of_subject(subjects.event(kind, identity), HISTORY_MAX)
    history = []
    for record in records:
        event = events.decode(*record)
        if isinstance(event, events.Undecodable):
            raise errors.LogDamaged(
                f"record {event.seq}, of {kind} {identity}, cannot be read ({event.reason}), so it "
                "is not known how that stands; `aghsan audit` tells all that is wrong"
            )
        history.append(event)
    return history


def no_champion(node_id: str, budget: str = "") -> errors.NotFound:
    """What to say of a node that serves no model, or none for a budget."""
    if budget:
        return errors.NotFound(
            f"{node_id} has no champion for the budget {budget!r}; `aghsan gates {node_id}` shows "
            "its budgets"
        )
    return errors.NotFound(
        f"{node_id} has no champion yet; its first is promoted when a candidate beats the "
        f"trivial predictor. `aghsan node show {node_id}` lists its rounds"
    )


class Served(NamedTuple):
    """The champion of a node: how it came to reign, and the files that its model is used with."""

    node: Node
    champion: "events.Champion"
    round: "Round"
    files: dict[str, bytes]
    budget: str = ""


async def served(connected: "Connected", node_id: str, budget: str = "") -> Served:
    """What a node serves, or has for a budget.

    Raises errors.NotFound where it serves nothing, or where files of it are missing,
    errors.ArtifactError for files that are not what they should be.
    """
    from core import lineage

    found = await node(connected, node_id, budget)
    reign = lineage.reigning(found.reigns)
    if reign is None:
        raise no_champion(node_id, budget)
    champion = reign.champion
    try:
        files = await _files(connected, champion)
    except errors.NotFound as error:
        raise errors.NotFound(
            f"the champion {champion.candidate_id} of {node_id} is not whole: {error}"
        ) from error
    whole = await _round(connected.log, champion.round_id)
    return Served(found, champion, whole, files, budget)


async def _round(log: "Log", round_id: str) -> "Round":
    from core import events
    from core.projections import rounds

    whole: Round | None = None
    for event in await _history(log, "round", round_id):
        assert isinstance(event.data, events.OfRounds), "other events have other subjects"
        whole = rounds.evolve(whole, event.at, event.data)
    if whole is None or whole.decision is None:
        raise errors.LogDamaged(f"the log names {round_id}, and does not hold its verdict")
    return whole


async def _files(connected: "Connected", champion: "events.Champion") -> dict[str, bytes]:
    """Weights and configuration, and the texts of a corpus as agents have them."""
    from core import chunks, corpora
    from orchestrator import models

    store = connected.store
    model = await models.fetch(store, champion.manifest)
    files = {models.WEIGHTS_FILE: model.weights, models.CONFIG_FILE: model.config}
    if champion.workload.corpus is not None:
        manifest = chunks.decode_manifest(
            await store.get(chunks.DESK, champion.workload.corpus.manifest)
        )
        for part in (corpora.TRAINING, corpora.VALIDATION):
            name = corpora.file_name(part)
            files[name] = await chunks.assemble(store, manifest, name)
    return files
