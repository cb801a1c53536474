"""Commands to events: the rules, pure, in one place.

`decide` answers one command on one state. `follow` says what must happen next because of what
happened; the runtime folds and asks until nothing follows, all in one atomic append.
"""

from typing import assert_never

from core import commands, errors, events
from core.commands import AnyCommand, Meta
from core.decide import champions, graph, rounds, tasks, verdicts, workers
from core.projections.state import State

LOST_CHUNKS_OF_EVENT = 400
"""By name, 27 kB: an event tells of losses in words too."""


def decide(state: State, command: AnyCommand, meta: Meta) -> list[events.EventData]:
    """The events a command causes on this state. Raises errors.Refused; changes nothing."""
    match command:
        case commands.ClaimTask():
            return tasks.claim(state, command, meta.now)
        case commands.CompleteTask():
            return _complete(state, command)
        case commands.EnqueueTask():
            return tasks.enqueue(state, command)
        case commands.StoreCheckpoint():
            return tasks.store_checkpoint(state, command)
        case commands.Heartbeat():
            return workers.heartbeat(state, command)
        case commands.FailAttempt():
            return _with_endings(state, tasks.fail_attempt(state, command))
        case commands.ReleaseClaim():
            return tasks.release(state, command)
        case commands.ReattachClaim():
            return tasks.reattach(state, command)
        case commands.ExpireClaim():
            return _with_endings(state, tasks.expire(state, command))
        case commands.CancelTask():
            return _with_endings(state, tasks.cancel(state, command))
        case commands.RetryTask():
            return tasks.retry(state, command)
        case commands.RegisterWorker():
            return workers.register(state, command)
        case commands.OpenSession():
            return workers.open_session(state, command)
        case commands.MarkOffline():
            return workers.mark_offline(state, command)
        case commands.MarkOnline():
            return workers.mark_online(state, command)
        case commands.PauseWorker():
            return workers.pause(state, command)
        case commands.ResumeWorker():
            return workers.resume(state, command)
        case commands.SeedTree():
            return graph.seed_tree(state)
        case commands.ExpandNode():
            return graph.expand(state, command)
        case commands.BindCorpus():
            return graph.bind_corpus(state, command)
        case commands.SetGates():
            return champions.set_gates(state, command)
        case commands.ChooseChampion():
            return champions.choose(state, command)
        case commands.DepositCommitments():
            return rounds.deposit(state, command)
        case commands.WithdrawCommitments():
            return rounds.withdraw(state, command)
        case commands.CloseRound():
            return rounds.close(state, command, meta)
        case commands.StartJudging():
            return rounds.start_judging(state, command)
        case commands.DecideRound():
            return verdicts.decide_round(state, command)
        case commands.StartWriter():
            return [events.WriterStarted(epoch=state.epoch + 1, process=command.process)]
        case commands.SealLog():
            return _seal(state, command)
        case commands.AcceptLoss():
            return _accept_loss(state, command)
        case commands.SweepArtifacts():
            return [
                events.ArtifactsSwept(
                    chunks=command.chunks, bytes=command.bytes, manifests=command.manifests
                )
            ]
        case _:
            assert_never(command)


def _accept_loss(state: State, command: commands.AcceptLoss) -> list[events.EventData]:
    """Take a loss as accepted, of a log that did not grow since it was looked at. Chunks that one
    event has no room for are named by more of them, right behind it."""
    if command.digest and command.last != state.seq:
        raise errors.Conflict(f"the log goes on to {state.seq}, and was read up to {command.last}")
    return [
        events.LossAccepted(
            first=command.first,
            details=[] if start else command.details,
            last=command.last,
            lost=command.lost,
            digest=command.digest,
            chunks=command.chunks[start : start + LOST_CHUNKS_OF_EVENT],
        )
        for start in range(0, max(1, len(command.chunks)), LOST_CHUNKS_OF_EVENT)
    ]


def _seal(state: State, command: commands.SealLog) -> list[events.EventData]:
    """Take a seal that goes on where the last one ended."""
    if (command.first, command.previous) != (state.sealed.last + 1, state.sealed.digest):
        raise errors.Conflict(
            f"the log is sealed up to {state.sealed.last}; a seal from {command.first} does not "
            "go on there"
        )
    if not command.first <= command.last <= state.seq:
        raise errors.Invalid(f"a seal of {command.first} to {command.last} covers no records")
    return [
        events.LogSealed(
            first=command.first,
            last=command.last,
            digest=command.digest,
            previous=command.previous,
        )
    ]


def _complete(state: State, command: commands.CompleteTask) -> list[events.EventData]:
    happened = tasks.complete(state, command)
    for data in happened:
        if isinstance(data, events.TaskCompleted):
            return [*happened, *rounds.of_completion(state, data)]
    return happened


def _with_endings(state: State, happened: list[events.EventData]) -> list[events.EventData]:
    for data in happened:
        if isinstance(data, events.TaskFailed):
            return [*happened, *rounds.of_ending(state, data.task_id, "its task failed")]
        if isinstance(data, events.TaskCancelled):
            return [*happened, *rounds.of_ending(state, data.task_id, "its task was cancelled")]
    return happened


def follow(state: State, happened: list[events.EventData], meta: Meta) -> list[events.EventData]:
    """What follows from events just folded; empty when nothing (more) does."""
    for node_id in _nodes_touched(state, happened):
        following = rounds.follow(state, node_id, meta)
        if following:
            return following
    return []


def _nodes_touched(state: State, happened: list[events.EventData]) -> list[str]:
    touched: dict[str, None] = {}
    for data in happened:
        if isinstance(data, events.OfTree | events.OfWorkers):
            continue
        match data:
            case events.CommitmentsDeposited():
                for node in state.rounds.nodes:
                    if node.waiting:
                        touched[node.node_id] = None
            # Also of a queued task that ended: a round may have waited for what it would bring.
            case events.TaskClaimed() | events.TaskCompleted() | events.TaskCancelled():
                touched[state.tasks.table.rows[data.task_id].node_id] = None
            case (
                events.RoundOpened()
                | events.RoleEntered()
                | events.CandidateAdmitted()
                | events.RoleClosed()
                | events.RoundClosed()
            ):
                touched[state.rounds.table.rows[data.round_id].node_id] = None
            case (
                events.JudgingStarted()
                | events.RoundDecided()
                | events.WriterStarted()
                | events.CommitmentsWithdrawn()
                | events.LogSealed()
                | events.LossAccepted()
                | events.ArtifactsSwept()
            ):
                pass
            case (
                events.TaskQueued()
                | events.ClaimAdopted()
                | events.ClaimExpired()
                | events.ClaimRevived()
                | events.ClaimReleased()
                | events.CheckpointStored()
                | events.AttemptFailed()
                | events.TaskFailed()
                | events.TaskRetried()
            ):
                pass  # a round that loses a task to its end hears of it as RoleClosed
            case _:
                assert_never(data)
    return list(touched)
