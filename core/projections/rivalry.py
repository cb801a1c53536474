"""What each rival has won and cost, node by node, and when whose turn was."""

import decimal
from collections.abc import Sequence
from typing import get_args

from core import events
from core.events import Rival, Role
from core.projections.rounds import Round, rivals_of
from core.projections.tables import Table
from core.projections.tasks import Done, Task

FACTOR_LEAST = 1e-9
"""Counted where a winner makes no error at all."""
DECAY = 0.9659363289248456
"""What a round counts for once another has followed it: 2 ** (-1 / 20), so that one of 20 rounds
ago counts half."""
GAIN_LEAST = 0.05
"""Of a win, in powers of e: what wins by its cost alone gains too."""
GAIN_MOST = 2.302585092994046
"""A tenth of the error: one win of more tells little of the next."""


class Account(events.Value, frozen=True, kw_only=True):
    """One rival at one node.

    `rounds` counts the decided rounds it entered, of which it `won` some, was judged and `lost`
    others, and was `absent` from the rest: nothing came, or nothing sound. Void rounds count for
    nobody. Where it `replaced` champions, `error_factor` is the product of what each win made
    of the error. `held_us` is for how long workers held its tasks, microseconds; a task of both
    rivals is half each one's. Of that, `priced_us` had a known price, and cost `cost_micro`
    millionths of the unit that prices are in.

    The recent figures are the same counts with older rounds at less weight (`DECAY`), and what its
    wins over champions gained: the sum of -ln of what each made of the error.
    """

    node_id: str
    rival: Rival
    rounds: int = 0
    won: int = 0
    lost: int = 0
    replaced: int = 0
    error_factor: float = 1.0
    held_us: int = 0
    priced_us: int = 0
    cost_micro: int = 0
    recent_rounds: float = 0.0
    recent_won: float = 0.0
    recent_replaced: float = 0.0
    recent_gain: float = 0.0

    @property
    def absent(self) -> int:
        """Rounds it was to stand in and did not."""
        return self.rounds - self.won - self.lost


class Ordered(events.Value, frozen=True, kw_only=True):
    """Whose turn was when at one node: how many `tasks` of rivals it was given, which of all tasks
    the `newest` was, and which of its own the newest was of each role; from 1, 0 for none."""

    node_id: str
    tasks: int = 0
    newest: int = 0
    dual: int = 0
    evolver: int = 0
    reinventor: int = 0

    def with_one(self, role: Role, number: int) -> "Ordered":
        """After one more, which is the `number`th of all tasks; merges are nobody's turn."""
        if role == "merge":
            return self
        tasks = self.tasks + 1
        return events.replace(self, tasks=tasks, newest=number, **{role: tasks})


class Rivalry:
    """All accounts, by node and rival, and whose turn was when, by node."""

    def __init__(self) -> None:
        self.table: Table[Account] = Table("rivalry")
        self.ordered: Table[Ordered] = Table("ordered")

    def of(self, node_id: str, rival: Rival) -> Account:
        """An account, empty where nothing happened yet."""
        return self.table.get(_key(node_id, rival)) or Account(node_id=node_id, rival=rival)

    def at(self, node_id: str) -> list[Account]:
        """The accounts of a node."""
        found = (self.table.get(_key(node_id, rival)) for rival in get_args(Rival))
        return [one for one in found if one is not None]

    def turns(self, node_id: str) -> Ordered:
        """Whose turn was when at a node."""
        return self.ordered.get(node_id) or Ordered(node_id=node_id)

    def queued(self, data: events.TaskQueued, number: int) -> None:
        """Fold that a task was queued, the `number`th of all."""
        before = self.turns(data.node_id)
        after = before.with_one(data.role, number)
        if after is not before:
            self.ordered.put(data.node_id, after)

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
                # Products and sums: their bits are the same wherever the log is folded.
                error_factor=account.error_factor * (1.0 if factor is None else factor),
                recent_rounds=account.recent_rounds * DECAY + 1,
                recent_won=account.recent_won * DECAY + (winner is not None),
                recent_replaced=account.recent_replaced * DECAY + (factor is not None),
                recent_gain=account.recent_gain * DECAY + (0 if factor is None else _gain(factor)),
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
        share = microseconds // len(rivals)
        claim = task.claims[-1]
        price = claim.price_per_hour
        for rival in rivals:
            account = self.of(task.node_id, rival)
            if price is not None:
                account = events.replace(
                    account,
                    priced_us=account.priced_us + sign * share,
                    cost_micro=account.cost_micro + sign * round(share * price / 3600),
                )
            self._put(events.replace(account, held_us=account.held_us + sign * share))

    def _put(self, account: Account) -> None:
        self.table.put(_key(account.node_id, account.rival), account)


def _gain(factor: float) -> float:
    """-ln of a factor, within bounds. Decimal's is correctly rounded, so that its bits are the same
    on every machine, which a C library's are not."""
    gain = -decimal.Decimal(factor).ln(_PRECISE)
    return min(max(float(gain), GAIN_LEAST), GAIN_MOST)


_PRECISE = decimal.Context(prec=20)


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
        priced_us=sum(one.priced_us for one in accounts),
        cost_micro=sum(one.cost_micro for one in accounts),
        recent_rounds=sum(one.recent_rounds for one in accounts),
        recent_won=sum(one.recent_won for one in accounts),
        recent_replaced=sum(one.recent_replaced for one in accounts),
        recent_gain=sum(one.recent_gain for one in accounts),
    )
