"""One quiet line for each event that matters to a person watching."""

import datetime
from typing import assert_never

import msgspec

from core import events
from core.projections.state import State
from core.projections.tasks import Task


def _time(event: events.Event) -> str:
    """The time of an event on this machine's clock."""
    return f"{datetime.datetime.fromtimestamp(event.at / 1e6, datetime.UTC).astimezone():%H:%M:%S}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def narrate(event: events.Event, state: State) -> str:
    """What to say of an event; "" when it is not worth a line."""
    text = _text(event.data, state)
    return f"{_time(event)}  {text}" if text else ""


def _text(data: events.EventData, state: State) -> str:
    if isinstance(data, events.OfTasks):
        return _of_task(data, state)
    if isinstance(data, events.OfWorkers):
        return _of_worker(data, state)
    match data:
        case events.RoundDecided():
            return _decided(data, state)
        case events.ChampionPromoted():
            return _promoted(data)
        case events.ChampionChosen():
            return _chosen(data)
        case events.GatesChanged():
            return _gates(data)
        case events.NodeAdded():
            return f"{data.name} ({data.node_id}) grew" if data.node_id.startswith("node-") else ""
        case events.WorkloadChanged():
            return f"{data.node_id} trains {data.workload.specialist} from now on"
        case events.ChampionRetired():
            return f"{data.node_id}: its champion{_for(data.budget)} retired ({data.reason})"
        case events.LossAccepted():
            words = "; ".join(data.details)  # none where it only names more chunks
            return f"a loss was accepted: {words}" if words else ""
        case (
            events.RoundOpened()
            | events.RoleEntered()
            | events.CandidateAdmitted()
            | events.RoleClosed()
            | events.RoundClosed()
            | events.JudgingStarted()
            | events.WriterStarted()
            | events.CommitmentsDeposited()
            | events.CommitmentsWithdrawn()
            | events.LogSealed()
            | events.ArtifactsSwept()
        ):
            return ""
        case _:
            assert_never(data)


def _of_task(data: events.OfTasks, state: State) -> str:
    node = _node_of(data.task_id, state)
    match data:
        case events.TaskClaimed():
            again = f" (attempt {data.attempt})" if data.attempt > 1 else ""
            resumed = sum(point.step for point in data.resume)
            from_step = f", from step {resumed}" if resumed else ""
            queued = state.tasks.counts["queued"]
            return f"{data.worker_id} trains {node}{again}{from_step} · {queued} queued"
        case events.TaskCompleted():
            # Its agent may train the next task already, so this says which one it was.
            return f"{data.worker_id} delivered {node}{_result(data)}"
        case events.ClaimExpired():
            return f"{node}: attempt {data.attempt} was lost ({data.reason}); queued again"
        case events.ClaimReleased():
            return f"{node} was given back ({data.reason})"
        case events.AttemptFailed():
            return f"{node}: attempt {data.attempt} of {data.task_id} failed ({data.reason})"
        case events.TaskFailed():
            return f"{node}: {data.task_id} failed for good: {'; '.join(data.reasons)}"
        case events.TaskCancelled():
            return f"{node} was cancelled"
        case (
            events.TaskQueued()
            | events.TaskRetried()
            | events.ClaimAdopted()
            | events.ClaimRevived()
            | events.CheckpointStored()
        ):
            return ""
        case _:
            assert_never(data)


def _result(data: events.TaskCompleted) -> str:
    if not data.candidates:
        return _loss_in(data.metrics)
    claims = min((c.claims for c in data.candidates), key=lambda c: c.get("loss", 9e9))
    loss, baseline = claims.get("loss"), claims.get("baseline_loss")
    return f" · loss {_figure(loss)}, baseline {_figure(baseline)}"


def _of_worker(data: events.OfWorkers, state: State) -> str:
    match data:
        case events.SessionOpened():
            return f"{data.worker_id} joined from {data.hostname} ({data.lane})"
        case events.WorkerRegistered():
            return f"{data.worker_id} registered over HTTP"
        case events.WorkerWentOffline():
            return f"{data.worker_id} is offline: {data.reason}{_left_by(data.worker_id, state)}"
        case events.WorkerCameOnline():
            return f"{data.worker_id} is back"
        case events.WorkerPaused():
            return f"{data.worker_id} is given nothing more to do{_given_back(data, state)}"
        case events.WorkerResumed():
            return f"{data.worker_id} may have work again"
        case events.WorkerChanged():
            return ""
        case _:
            assert_never(data)


def _decided(data: events.RoundDecided, state: State) -> str:
    """A verdict that changes nothing; of a promotion the next line tells."""
    if data.promoted:
        return ""
    row = state.rounds.table.get(data.round_id)
    node_id = row.node_id if row else data.round_id
    asked = data.recommendation
    if asked is not None and asked.action == "ask":
        why = asked.reasons.en.partition(". ")[0].rstrip(".")
        choose = f"`aghsan champion promote {node_id} {asked.candidate_id}`"
        return f"judge: {node_id}, {data.verdict}, asks you · {why} · {choose}"
    judged = next((one for one in data.candidates if one.verdict == "reject"), None)
    if judged is None:
        # Nothing was compared: the reasons begin with why.
        return f"judge: {node_id} stays as it is · {data.reasons.en.partition('. ')[0].rstrip('.')}"
    if data.champion_error is None:
        return (
            f"judge: {node_id} stays without a champion · error {_figure(judged.error)}, not "
            f"surely better than a trivial guess (look {data.look})"
        )
    if data.champion_error == 0:
        return f"judge: {node_id} keeps its champion, which makes no error"
    return (
        f"judge: {node_id} keeps its champion · error {_figure(judged.error)} against "
        f"{_figure(data.champion_error)}, not surely better (look {data.look})"
    )


def _promoted(data: events.ChampionPromoted) -> str:
    champion = data.champion
    what = "new champion" if data.instead_of else "first champion"
    baseline = f"the baseline {_figure(champion.baseline_error)}"
    beaten = f"does not beat {baseline} yet" if champion.below_baseline else f"beats {baseline}"
    return (
        f"judge: {what} of {data.node_id}{_for(data.budget)} · {champion.rival}, "
        f"error {_figure(champion.error)}, {beaten}"
    )


def _chosen(data: events.ChampionChosen) -> str:
    how = "lets" if data.kind == "promote" else "rolled back:"
    reigns = "reign" if data.kind == "promote" else "reigns again"
    why = f" · {data.reason}" if data.reason else ""
    whom = data.champion.candidate_id
    return f"{data.node_id}: a person {how} {whom} {reigns}{_for(data.budget)}{why}"


def _gates(data: events.GatesChanged) -> str:
    if data.gates is None:
        return f"{data.node_id} is judged by its ancestor's gates from now on"
    budgets = ", ".join(one.name for one in data.gates.budgets)
    stated = f", for the budgets {budgets}" if budgets else ""
    return f"{data.node_id} is judged by other gates from now on{stated}"


def _for(budget: str) -> str:
    return f" for the budget {budget}" if budget else ""


class _Metrics(msgspec.Struct):
    loss: float | None = None


def _loss_in(metrics: msgspec.Raw) -> str:
    """The loss that an HTTP worker told of, if it is one: its metrics hold what they like."""
    try:
        loss = msgspec.json.decode(metrics, type=_Metrics).loss
    except msgspec.MsgspecError:
        return ""
    return "" if loss is None else f" · loss {_figure(loss)}"


def _given_back(data: events.WorkerPaused, state: State) -> str:
    """What a worker that is paused does about what it holds; over HTTP it ends that as it likes."""
    row = state.workers.table.get(data.worker_id)
    holds = data.worker_id in state.tasks.held and row is not None and row.via == "nats"
    return ", and gives back what it holds" if holds and data.how == "pause" else ""


def _left_by(worker_id: str, state: State) -> str:
    """What a worker that is gone holds still, and what becomes of it."""
    held = [_node_of(task_id, state) for task_id in state.tasks.held.get(worker_id, ())]
    if not held:
        return ""
    more = f" and {len(held) - 1} more" if held[1:] else ""
    return f"; {held[0]}{more} stays its own until another takes over, or the lease ends"


def _node_of(task_id: str, state: State) -> str:
    task = state.tasks.table.get(task_id)
    if task is None:
        return task_id
    topic = f" “{task.topic[:40]}”" if isinstance(task, Task) and task.topic else ""
    return f"{task.node_id}{topic}"
