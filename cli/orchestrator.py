"""`aghsan orchestrator`: the feeder alone, over HTTP, for a server that runs it apart."""

import asyncio
import itertools
import time
from collections import Counter

import click
import msgspec

from cli import child, options, views
from cli.client import Client, segment
from cli.merging import ServerMerges
from core.events import Rival
from core.projections.rivalry import Account, Ordered
from orchestrator.feeder import ROLES, Feeder, Fleet, Order, Standing, least_budget
from orchestrator.merger import Merger

DETAILS_AT_ONCE = 16
"""Nodes asked about in each survey; the others are weighed by what was heard of them last."""
OPEN_PAGES_MAX = 20
RIVALS_PAGES_MAX = 20


class _Node(msgspec.Struct):
    node_id: str
    name: str


class _Champion(msgspec.Struct):
    below_baseline: bool = True


class _Round(msgspec.Struct):
    status: str


class _Workload(msgspec.Struct):
    specialist: str = ""
    inherited: bool = False


class _Detail(msgspec.Struct):
    champion: _Champion | None = None
    workload: _Workload = msgspec.field(default_factory=_Workload)


class _Counts(msgspec.Struct):
    queued: int


class _Network(msgspec.Struct):
    workers_online: int
    tasks: _Counts


class _Task(msgspec.Struct):
    node_id: str
    role: str = ""


def stuck_nodes(workers: list[views.Worker]) -> set[str]:
    """Nodes whose usual tasks no agent online that is given work is fit for.

    As fitness.stuck_nodes has it; which parameters a worker was unfit for, a server does not tell.
    """
    online = [one for one in workers if one.is_online and not one.pause]
    if any(one.via == "http" and one.held for one in online):
        return set()
    unfit = [
        {mark.node_id for mark in one.unfit if mark.role in ROLES and mark.method == "auto"}
        for one in online
        if one.via == "nats"
    ]
    return set.intersection(*unfit) if unfit else set()


def account_of(node_id: str, rival: Rival, told: views.RivalAccount | None) -> Account:
    """An account as the ledger has it, of what a server tells; empty where it tells nothing."""
    if told is None:
        return Account(node_id=node_id, rival=rival)
    return Account(
        node_id=node_id,
        rival=rival,
        rounds=told.rounds,
        won=told.won,
        lost=told.lost,
        held_us=round(told.device_seconds * 1e6),
        priced_us=round(told.priced_seconds * 1e6),
        cost_micro=round((told.cost or 0.0) * 1e6),
        recent_rounds=told.recent.rounds,
        recent_won=told.recent.won,
        recent_replaced=told.recent.replaced,
        recent_gain=told.recent.gain,
    )


class ServerTarget:
    """A server over HTTP, as orchestrator.feeder.Target wants it. Whose turn was when it knows of
    its own orders alone."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._details: dict[str, _Detail] = {}
        self._turn = itertools.count()
        self._ordered: dict[str, Ordered] = {}
        self._orders = 0

    async def survey(self) -> Fleet:
        """What there is now. Raises errors.Unavailable."""
        return await asyncio.to_thread(self._survey)

    async def enqueue(self, order: Order, priority: int, key: str) -> None:
        """Enqueue one order, once per key. Raises errors.Unavailable."""
        body: dict[str, object] = {
            "topic": order.topic,
            "node_id": order.node_id,
            "priority": priority,
            "role": order.role,
        }
        if order.budget_seconds is not None:
            body["budget_seconds"] = order.budget_seconds
        await asyncio.to_thread(
            self._client.post,
            "/training/enqueue",
            body,
            advice="the next look at the queue tells",
            idempotency_key=key,
        )
        self._orders += 1
        turns = self._turns(order.node_id)
        self._ordered[order.node_id] = turns.with_one(order.role, self._orders)

    def _turns(self, node_id: str) -> Ordered:
        return self._ordered.get(node_id) or Ordered(node_id=node_id)

    def _survey(self) -> Fleet:
        network = self._client.get("/status").read("network", _Network)
        stuck = stuck_nodes(self._client.get("/workers").read("workers", list[views.Worker]))
        nodes = [
            node
            for node in self._client.get("/graph").inside("graph").read("nodes", list[_Node])
            if node.node_id not in stuck
        ]
        self._refresh([node.node_id for node in nodes])
        queued, running = self._tasks("queued"), self._tasks("running")
        open_tasks = Counter[str]()
        for (node_id, _), count in (queued + running).items():
            open_tasks[node_id] += count
        # As feeder.survey has it: neither what nobody can train, nor merges.
        waiting = sum(
            count
            for (node_id, role), count in queued.items()
            if node_id in stuck or role == "merge"
        )
        accounts = self._accounts()
        return Fleet(
            queued=max(0, network.tasks.queued - waiting),
            workers_online=network.workers_online,
            unjudged=self._unjudged(),
            nodes=[self._standing(node, open_tasks[node.node_id], accounts) for node in nodes],
            tasks=self._orders,
        )

    def _refresh(self, node_ids: list[str]) -> None:
        unknown = [node_id for node_id in node_ids if node_id not in self._details]
        known = [node_id for node_id in node_ids if node_id in self._details]
        offset = next(self._turn) * DETAILS_AT_ONCE % max(1, len(known))
        wanted = (unknown + known[offset:] + known[:offset])[:DETAILS_AT_ONCE]
        for node_id in wanted:
            answer = self._client.get(f"/nodes/{segment(node_id)}")
            self._details[node_id] = answer.read("node", _Detail)

    def _tasks(self, status: str) -> Counter[tuple[str, str]]:
        """How many tasks of a status there are of each node and role."""
        counts: Counter[tuple[str, str]] = Counter()
        after: str | None = None
        for _ in range(OPEN_PAGES_MAX):
            answer = self._client.get("/tasks", {"status": status, "limit": 1_000, "after": after})
            tasks = answer.read("tasks", list[_Task])
            counts.update((task.node_id, task.role) for task in tasks)
            after = answer.following()
            if after is None:
                break
        return counts

    def _accounts(self) -> dict[tuple[str, str], views.RivalAccount]:
        """The ledger, by node and rival."""
        found: dict[tuple[str, str], views.RivalAccount] = {}
        after: str | None = None
        for _ in range(RIVALS_PAGES_MAX):
            answer = self._client.get("/rivals", {"limit": 1_000, "after": after})
            for one in answer.read("rivals", list[views.RivalAccount]):
                found[one.node_id or "", one.rival] = one
            after = answer.following()
            if after is None:
                break
        return found

    def _unjudged(self) -> int:
        statuses = ("closed", "judging")
        pages = (self._client.get("/rounds", {"status": one, "limit": 100}) for one in statuses)
        return sum(len(page.read("rounds", list[_Round])) for page in pages)

    def _standing(
        self,
        node: _Node,
        open_tasks: int,
        accounts: dict[tuple[str, str], views.RivalAccount],
    ) -> Standing:
        node_id = node.node_id
        detail = self._details.get(node.node_id) or _Detail()
        return Standing(
            node_id=node_id,
            name=node.name,
            own_workload=not detail.workload.inherited,
            open_tasks=open_tasks,
            champion=detail.champion is not None,
            below_baseline=detail.champion is not None and detail.champion.below_baseline,
            evolver=account_of(node_id, "evolver", accounts.get((node_id, "evolver"))),
            reinventor=account_of(node_id, "reinventor", accounts.get((node_id, "reinventor"))),
            ordered=self._turns(node_id),
            budget_seconds_min=least_budget(detail.workload.specialist),
        )


@click.command()
@options.api
@click.option(
    "--min-queue",
    default=30,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Queued tasks to keep.",
)
@click.option(
    "--burst",
    default=10,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Tasks enqueued at once, at most.",
)
@click.option(
    "--sleep-sec",
    default=8.0,
    show_default=True,
    type=options.Number(0.1, 3_600),
    help="Seconds between two looks at the queue.",
)
@click.option(
    "--priority",
    default=8,
    show_default=True,
    type=click.IntRange(1, 10),
    help="Of the tasks it enqueues; a person's have 5.",
)
@click.option("--verbose", is_flag=True, help="Say more on stderr.")
def orchestrator(
    api: str, min_queue: int, burst: int, sleep_sec: float, priority: int, verbose: bool
) -> None:
    """Keep the queue of a running server filled, from anywhere."""
    child.configure_logging(verbose)
    client = Client(api)
    client.get("/status")  # an address that answers nothing is told at once, not retried for ever
    child.say(f"feeding {client.address}: at least {min_queue} queued tasks; Ctrl-C ends")
    feeder = Feeder(
        ServerTarget(client),
        min_queue=min_queue,
        burst=burst,
        sleep_seconds=sleep_sec,
        priority=priority,
        say=lambda words: child.say(f"{time.strftime('%H:%M:%S')}  {words}"),
        merges=Merger(ServerMerges(client), priority),
    )
    asyncio.run(_until_stopped(feeder))


async def _until_stopped(feeder: Feeder) -> None:
    stop = asyncio.Event()
    child.on_stop(asyncio.get_running_loop(), stop.set, child=False)
    feeding = asyncio.ensure_future(feeder.run())
    stopped = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait({feeding, stopped}, return_when=asyncio.FIRST_COMPLETED)
    feeding.cancel()
    if feeding in done:
        feeding.result()
