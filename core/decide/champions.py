"""What people decide about champions: by which gates, for which budgets, and who reigns."""

from core import commands, errors, events, gates, workloads
from core.decide.graph import thrones
from core.events import Champion
from core.projections.rounds import Decided
from core.projections.state import State
from core.values import Budget, Gates

REASON_CHARS_MAX = 1_000


def set_gates(state: State, command: commands.SetGates) -> list[events.EventData]:
    """Give a node gates of its own, or its ancestor's again. Raises NotFound, Invalid."""
    node = state.graph.nodes.get(command.node_id)
    if node is None:
        raise _no_node(command.node_id)
    before = _lent(state, command.node_id) if command.reset else state.graph.gates(node.node_id)
    after = gates.changed(before, command.settings, command.budgets, command.dropped)
    if command.reset and after == before:
        return _changed(state, node.node_id, None, after) if node.gates is not None else []
    if after == state.graph.gates(node.node_id):
        return []
    return _changed(state, node.node_id, after, after)


def _no_node(node_id: str) -> errors.NotFound:
    return errors.NotFound(f"there is no node {node_id}; `aghsan node ls` shows those there are")


def _lent(state: State, node_id: str) -> Gates:
    """By what a node's candidates would be judged, had it no gates of its own."""
    parent = state.graph.nodes.rows[node_id].parent_id
    return Gates() if parent is None else state.graph.gates(parent)


def _changed(state: State, node_id: str, own: Gates | None, hold: Gates) -> list[events.EventData]:
    """Other gates, and the ends of what reigned for budgets that are no more."""
    heirs = _heirs(state, node_id)
    kept = {one.name: one for one in hold.budgets}
    before = {one.name: one for one in state.graph.gates(node_id).budgets}
    ended = []
    for heir, budget, champion in thrones(state):
        if not budget or heir not in heirs or state.is_read_only("node", heir):
            continue
        if reason := _end_of(champion, budget, before.get(budget), kept.get(budget)):
            ended.append(
                events.ChampionRetired(
                    node_id=heir,
                    candidate_id=champion.candidate_id,
                    reason=reason,
                    budget=budget,
                )
            )
    return [events.GatesChanged(node_id=node_id, gates=own), *ended]


def _heirs(state: State, node_id: str) -> set[str]:
    """A node and those below that are judged by its gates."""
    nodes, found, look_at = state.graph.nodes.rows, {node_id}, [node_id]
    while look_at:
        for child in nodes[look_at.pop()].children:
            if nodes[child].gates is None:
                found.add(child)
                look_at.append(child)
    return found


def _end_of(champion: Champion, name: str, before: Budget | None, after: Budget | None) -> str:
    """Why a budget's champion reigns no longer; "" where it surely keeps what is stated now. Its
    latency is not in the state: it kept the bound of before."""
    if after is None:
        return f"the budget {name} is stated no longer"
    size, latency = after.bytes_max, after.latency_max
    if size is not None and champion.bytes > size:
        return f"it takes {champion.bytes} bytes, more than the {size} of the budget {name} now"
    least = None if before is None else before.latency_max
    if latency is not None and (least is None or latency < least):
        return f"the budget {name} allows less latency now"
    return ""


def choose(state: State, command: commands.ChooseChampion) -> list[events.EventData]:
    """Let a person's choice reign; who reigns already goes on. Raises NotFound, Invalid, Conflict.

    That the model was measured, and how, is for whoever reads the log: the state keeps decided
    rounds in brief.
    """
    champion, node_id = command.champion, command.node_id
    if node_id not in state.graph.nodes:
        raise _no_node(node_id)
    if len(command.reason) > REASON_CHARS_MAX:
        raise errors.Invalid(f"a reason has at most {REASON_CHARS_MAX} characters")
    if command.budget:
        _require_within(state, command)
    row = state.rounds.table.get(champion.round_id)
    if champion.node_id != node_id or not isinstance(row, Decided) or row.node_id != node_id:
        raise errors.Invalid(f"{champion.candidate_id} was not judged in a round of {node_id}")
    _require_same_work(state, command)
    reigning = state.graph.reigning(node_id, command.budget)
    name = reigning.candidate_id if reigning else ""
    if name == champion.candidate_id:
        return []
    if name != command.instead_of:
        raise errors.Conflict(
            f"{name or 'nobody'} reigns over {node_id} now, and {command.instead_of or 'nobody'} "
            "did when this was chosen; look again with `aghsan champion show`, then choose"
        )
    return [
        events.ChampionChosen(
            node_id=node_id,
            kind=command.kind,
            champion=champion,
            instead_of=name,
            budget=command.budget,
            reason=command.reason,
            idempotency_key=command.idempotency_key,
            request=command.request,
        )
    ]


def _require_within(state: State, command: commands.ChooseChampion) -> None:
    """The budget is stated, and the model takes no more bytes than it allows."""
    stated = {one.name: one for one in state.graph.gates(command.node_id).budgets}
    budget = stated.get(command.budget)
    if budget is None:
        raise errors.NotFound(gates.unknown_budget(command.budget, stated))
    size = command.champion.bytes
    if budget.bytes_max is not None and size > budget.bytes_max:
        raise errors.Conflict(
            f"{command.champion.candidate_id} takes {size} bytes, more than the "
            f"{budget.bytes_max} of the budget {budget.name}"
        )


def _require_same_work(state: State, command: commands.ChooseChampion) -> None:
    trains, _ = state.graph.workload(command.node_id)
    if command.champion.workload != trains:
        raise errors.Conflict(
            f"{command.champion.candidate_id} was trained for "
            f"{workloads.words(command.champion.workload)}, and {command.node_id} trains "
            f"{workloads.words(trains)} now"
        )
