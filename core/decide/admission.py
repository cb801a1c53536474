"""Which commands begin something new, and so are turned away first where room runs out."""

from typing import assert_never

from core import commands
from core.commands import AnyCommand
from core.decide import tasks
from core.projections.state import State


def begins_work(state: State, command: AnyCommand) -> bool:
    """Whether a command asks for more to be kept, in place of saving or ending what was begun.

    One that only asks again for what happened already begins nothing: its lost answer is owed. Nor
    does an agent's session, even its first: what it begins is claimed.
    """
    match command:
        case commands.EnqueueTask():
            return state.tasks.keys.get(command.idempotency_key) is None
        case commands.ClaimTask():
            return not _claims_again(state, command)
        case commands.RegisterWorker() | commands.Heartbeat():
            return state.workers.table.get(command.worker_id) is None
        case commands.ExpandNode() | commands.BindCorpus() | commands.RetryTask():
            return True
        case (
            commands.StoreCheckpoint()
            | commands.CompleteTask()
            | commands.FailAttempt()
            | commands.ReleaseClaim()
            | commands.ReattachClaim()
            | commands.ExpireClaim()
            | commands.CancelTask()
            | commands.OpenSession()
            | commands.MarkOffline()
            | commands.MarkOnline()
            | commands.SetGates()
            | commands.ChooseChampion()
            | commands.PauseWorker()
            | commands.ResumeWorker()
            | commands.DepositCommitments()
            | commands.WithdrawCommitments()
            | commands.CloseRound()
            | commands.StartJudging()
            | commands.DecideRound()
            | commands.SeedTree()
            | commands.StartWriter()
            | commands.SealLog()
            | commands.AcceptLoss()
            | commands.SweepArtifacts()
        ):
            return False
        case _:
            assert_never(command)


def _claims_again(state: State, command: commands.ClaimTask) -> bool:
    if command.via == "http":
        return tasks.unanswered(state, command.worker_id, command.signalled_at) is not None
    return tasks.held_under(state, command.worker_id, command.claim_id) is not None
