"""What each rival has won and cost, node by node."""

from collections.abc import Sequence
from typing import get_args

from core import events
from core.events import Rival
from core.projections.rounds import Round, rivals_of
from core.projections.tables import Table
from core.projections.tasks import Done, Task

FACTOR_LEAST = 1e-9
"""Counted where a winner makes no error at all."""


class Account(events.Value, frozen=True, kw_only=True):
    """One rival at one node.

    `rounds` counts the decided rounds it entered, of which it `won` some, was judged and `lost`
    others, and was `absent` from the rest: nothing came, or nothing sound. Void rounds count for
    nobody. Where it `replaced` champions, `error_factor` is the product of what each win made
    of the error. `held_us` is for how long workers held its tasks, microseconds; a task of both
    rivals is half each one's.
    """

    node_id: str
    rival: Rival
    rounds: int = 0
    won: int = 0
    lost: int = 0
    replaced: int = 0
    error_factor: float = 1.0
    held_us: int = 0

    @property
    def absent(self) -> int:
        """Rounds it was to stand in and did not."""
        return self.rounds - self.won - self.lost


class Rivalry:
    """All accounts, by node and rival."""

    def __init__(self) -> None:
        self.table: Table[Account] = Table("rivalry")

    def of(self, node_id: str, rival: Rival) -> Account:
        """An account, empty where nothing happened yet."""
        return self.table.get(_key(node_id, rival)) or Account(node_id=node_id, rival=rival)

    def at(self, node_id: str) -> list[Account]:
        """The accounts of a node."""
        found = (self.table.get(_key(node_id, rival)) for rival in get_args(Rival))
        return [one for one in found if one is not None]

    def decided(self, row: Round, data: events.RoundDecided) -> None:
        """Fold a verdict on a round as it stood before."""
        if data.verdict == "void":
            return
        brought: dict[str, list[events.CandidateVerdict]] = {}
        verdicts = {one.candidate_id: one for one in data.candidates}
        for standing in row.standings:
            candidate = standing.candidate
            if candidate.candidate_id in verdicts:
                brought.setdefault(candidate.rival, []).append(verdicts[candidate.candidate_id])
        for entry in row.entries:
            self._settle(row, entry.rival, brought.get(entry.rival, []), data.promoted)

    def _settle(
        self, row: Round, rival: Rival, brought: list[events.CandidateVerdict], promoted: str
    ) -> None:
        account = self.of(row.node_id, rival)
        winner = next((one for one in brought if one.candidate_id == promoted), None)
        is_judged = any(one.error is not None for one in brought)
        factor = None
        if winner is not None and winner.ratio is not None and row.champion is not None:
            factor = max(winner.ratio, FACTOR_LEAST)
        self._put(
            events.replace(
                account,
                rounds=account.rounds + 1,
                won=account.won + (winner is not None),
                lost=account.lost + (is_judged and winner is None),
                replaced=account.replaced + (factor is not None),
                # A product: its bits are the same wherever the log is folded.
                error_factor=account.error_factor * (1.0 if factor is None else factor),
            )
        )

    def held(self, before: Task | Done, after: Task | Done, at: int) -> None:
        """Fold what an event made of a task's claim: time is counted once the claim ends, and
        taken back where it is revived."""
        if not isinstance(before, Task) or before.claim is None:
            return
        claim = before.claim
        now = after.claims[-1].state if isinstance(after, Task) else "completed"
        if claim.state == "open" and now != "open":
            self._spend(before, at - claim.claimed_at, 1)
        elif claim.state != "open" and now == "open":
            self._spend(before, claim.ended_at - claim.claimed_at, -1)

    def _spend(self, task: Task, microseconds: int, sign: int) -> None:
        rivals = rivals_of(task.role)
        share = sign * (microseconds // len(rivals))
        for rival in rivals:
            account = self.of(task.node_id, rival)
            self._put(events.replace(account, held_us=account.held_us + share))

    def _put(self, account: Account) -> None:
        self.table.put(_key(account.node_id, account.rival), account)


def _key(node_id: str, rival: Rival) -> str:
    return f"{node_id}/{rival}"


def total(accounts: Sequence[Account]) -> Account:
    """The sum of accounts of one rival at several nodes, at least one; errors of different work do
    not multiply."""
    return Account(
        node_id="",
        rival=accounts[0].rival,
        rounds=sum(one.rounds for one in accounts),
        won=sum(one.won for one in accounts),
        replaced=sum(one.replaced for one in accounts),
        lost=sum(one.lost for one in accounts),
        held_us=sum(one.held_us for one in accounts),
    )
