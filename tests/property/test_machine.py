"""Whatever anybody does in whatever order, the rules hold and a replay gives the same state."""

import contextlib
import hashlib
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core import audit, commands, errors, events, lineage, specializations
from core.decide import tasks as rules
from core.events import Token
from core.log import Record
from core.projections.rounds import Round, evolve
from core.projections.state import State
from core.projections.tasks import CLAIMS_KEPT, OPEN, Done, Task
from core.values import Budget
from tests.build import World

AGENTS = ("a1", "a2", "عامل ٣")
HTTP = ("w1", "w 2")
NODES = ("stats-bayesian", "opt-convex")
KEYS = ("", "", "k1", "k2")
CLAIM_EVENTS = (
    events.CheckpointStored,
    events.TaskCompleted,
    events.ClaimExpired,
    events.ClaimRevived,
    events.ClaimReleased,
    events.AttemptFailed,
)
BUDGETS = (Budget(name="صغير", bytes_max=100), Budget(name="fast", latency_max=2.0))
OF_CHAMPIONS = ("base", "promotion", "choice")
"""What an audit asks of champions; candidates here are not all of whoever brings them."""
RECENT = 5
"""What rules speak of is drawn from so many of the newest tasks and tokens, old ones among them."""
CONFIGURED = settings(
    max_examples=120,
    stateful_step_count=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

agents, http_workers, nodes = map(st.sampled_from, (AGENTS, HTTP, NODES))


def secret(index: int) -> bytes:
    return hashlib.sha256(str(index).encode()).digest()


def _record(event: events.Event) -> Record:
    return Record(event.seq, events.subject_of(event.data), events.encode(event))


def candidate(task_id: str, rival: events.Rival, number: int) -> events.Candidate:
    return events.Candidate(
        candidate_id=f"cand-{task_id}-{rival}-{number}",
        rival=rival,
        manifest="a" * 64,
        writer="a1",
        weights_sha256="b" * 64,
        bytes=10,
        claims={"loss": 0.5},
    )


class Network(RuleBasedStateMachine):
    """Agents, old workers, judges, people and liveness, all at once and none of them careful."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.count = 0
        self.tasks: list[str] = []
        self.tokens: list[tuple[str, Token]] = [
            ("a1", Token(task_id="none", attempt=1, claim_id="none"))
        ]
        self.completions: dict[str, bytes] = {}

    @property
    def state(self) -> State:
        return self.world.state

    def attempt(self, command: commands.AnyCommand) -> list[events.EventData]:
        """Do it; what is refused changes nothing."""
        before = self.state.seq
        try:
            return self.world.do(command)
        except errors.Refused:
            assert self.state.seq == before, "a refusal changes nothing"
            return []

    def speak(self, token: Token, command: commands.AnyCommand) -> list[events.EventData]:
        """Do what is said under a token, which touches the claim it names and no other."""
        happened = self.attempt(command)
        for data in happened:
            if isinstance(data, CLAIM_EVENTS):
                of = Token(task_id=data.task_id, attempt=data.attempt, claim_id=data.claim_id)
                assert of == token, "a token speaks for its own claim"
        return happened

    def number(self) -> int:
        self.count += 1
        return self.count

    def session(self, worker_id: str) -> str:
        worker = self.state.workers.table.get(worker_id)
        return worker.session if worker else ""

    @initialize()
    def begin(self) -> None:
        self.attempt(commands.StartWriter(process="test"))
        self.world.seeded()
        for worker_id in AGENTS:
            self.world.agent(worker_id, session=f"first-{worker_id}")
        for worker_id in HTTP:
            self.world.http_worker(worker_id)
        self.deposits(2)

    # ── workers ──

    @rule(worker_id=agents, keep=st.booleans())
    def says_hello(self, worker_id: str, keep: bool) -> None:
        holding = [token for holder, token in self.tokens[-RECENT:] if holder == worker_id]
        self.attempt(
            commands.OpenSession(
                worker_id=worker_id,
                session=f"s{self.number()}",
                hostname="h",
                lane="cpu-16",
                protocol=1,
                holding=holding if keep else [],
            )
        )

    @rule(
        worker_id=http_workers, status=st.sampled_from(("online", "draining")), more=st.booleans()
    )
    def beats(self, worker_id: str, status: str, more: bool) -> None:
        capabilities = b'{"slots":2}' if more else None
        self.attempt(
            commands.Heartbeat(worker_id=worker_id, status=status, capabilities=capabilities)
        )

    @rule(worker_id=http_workers)
    def registers(self, worker_id: str) -> None:
        self.attempt(commands.RegisterWorker(worker_id=worker_id, hostname="h"))

    @rule(worker_id=st.sampled_from(AGENTS + HTTP), luck=st.integers(0, 3))
    def is_lost_or_found(self, worker_id: str, luck: int) -> None:
        session = self.session(worker_id)
        if not luck:
            self.attempt(commands.MarkOffline(worker_id=worker_id, reason="r", session=session))
        else:
            self.attempt(commands.MarkOnline(worker_id=worker_id, session=session))

    # ── tasks ──

    @rule(
        node_id=nodes,
        role=st.sampled_from(("dual", "evolver", "reinventor")),
        priority=st.integers(1, 10),
        key=st.sampled_from(KEYS),
        memory=st.sampled_from((0.0, 0.0, 8.0, 80.0)),
    )
    def asks_for_training(
        self, node_id: str, role: events.Role, priority: int, key: str, memory: float
    ) -> None:
        self.enqueues(node_id, role, priority, key, memory)

    def enqueues(
        self, node_id: str, role: events.Role, priority: int, key: str, memory: float
    ) -> None:
        task_id = f"t{self.number()}"
        self.attempt(
            commands.EnqueueTask(
                task_id=task_id,
                node_id=node_id,
                topic="موضوع",
                priority=priority,
                role=role,
                seed=7,
                requires=events.Requires(memory_gb=memory),
                idempotency_key=key,
            )
        )
        self.tasks.append(task_id)

    def a_token(self, data: Any) -> tuple[str, Token]:
        drawn: tuple[str, Token] = data.draw(st.sampled_from(self.tokens[-RECENT:]))
        return drawn

    def a_task(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(["none", *self.tasks[-RECENT:]])))

    @rule(worker_id=agents, node_id=nodes, role=st.sampled_from(("dual", "dual", "evolver")))
    def gets_to_work(self, worker_id: str, node_id: str, role: events.Role) -> None:
        """The usual way things go, so that what is rare happens to something."""
        self.enqueues(node_id, role, 5, "", 0.0)
        self.claims(worker_id)

    @rule(data=st.data())
    def goes_on(self, data: Any) -> None:
        """The newest claim goes the way of most."""
        worker_id, token = self.tokens[-1]
        self.save(worker_id, token, "evolver", 10)
        if data.draw(st.booleans()):
            self.complete(worker_id, token, {"evolver", "reinventor"})

    @rule(worker_id=agents)
    def asks_for_work(self, worker_id: str) -> None:
        self.claims(worker_id)

    def claims(self, worker_id: str) -> None:
        best = rules.claimable(self.state, worker_id, "nats", self.world.now)
        command = commands.ClaimTask(
            worker_id=worker_id,
            via="nats",
            claim_id=f"c{self.number()}",
            lease_seconds=60,
            session=self.session(worker_id),
        )
        assert self.claimed(command) == best
        assert self.attempt(command) == [], "the same claim id gives the same task"

    @rule(worker_id=http_workers, signalled=st.booleans())
    def claims_over_http(self, worker_id: str, signalled: bool) -> None:
        self.claimed(
            commands.ClaimTask(
                worker_id=worker_id,
                via="http",
                claim_id=f"c{self.number()}",
                lease_seconds=1800,
                signalled_at=self.world.now if signalled else 0,
            )
        )

    def claimed(self, command: commands.ClaimTask) -> str | None:
        for data in self.attempt(command):
            if isinstance(data, events.TaskClaimed):
                token = Token(task_id=data.task_id, attempt=data.attempt, claim_id=data.claim_id)
                self.tokens.append((command.worker_id, token))
                return data.task_id
        return None

    @rule(
        data=st.data(),
        rival=st.sampled_from(("evolver", "reinventor")),
        step=st.integers(1, 99),
    )
    def saves(self, data: Any, rival: events.Rival, step: int) -> None:
        self.save(*self.a_token(data), rival, step)

    def save(self, worker_id: str, token: Token, rival: events.Rival, step: int) -> None:
        checkpoint = events.Checkpoint(
            rival=rival, step=step, total_steps=100, manifest="c" * 64, writer="a1", bytes=1
        )
        self.speak(
            token,
            commands.StoreCheckpoint(
                token=token,
                worker_id=worker_id,
                session=self.session(worker_id),
                checkpoint=checkpoint,
            ),
        )

    @rule(data=st.data(), rivals=st.sets(st.sampled_from(("evolver", "reinventor"))))
    def completes(self, data: Any, rivals: set[events.Rival]) -> None:
        self.complete(*self.a_token(data), rivals)

    def complete(self, worker_id: str, token: Token, rivals: set[events.Rival]) -> None:
        number = self.number()
        self.completed(
            commands.CompleteTask(
                task_id=token.task_id,
                worker_id=worker_id,
                token=token,
                session=self.session(worker_id),
                metrics=b'{"loss":%d}' % number,
                candidates=[candidate(token.task_id, one, number) for one in sorted(rivals)],
            )
        )

    @rule(data=st.data(), worker_id=http_workers)
    def completes_over_http(self, data: Any, worker_id: str) -> None:
        task_id = self.a_task(data)
        self.completed(
            commands.CompleteTask(
                task_id=task_id, worker_id=worker_id, metrics=b'{"n":%d}' % self.number()
            )
        )

    def completed(self, command: commands.CompleteTask) -> None:
        said = (
            self.attempt(command) if command.token is None else self.speak(command.token, command)
        )
        for data in said:
            if isinstance(data, events.TaskCompleted):
                assert data.task_id not in self.completions, "a task is completed once"
                self.completions[data.task_id] = command.metrics

    @rule(data=st.data(), how=st.sampled_from(("expire", "reattach", "fail", "release")))
    def ends_a_claim(self, data: Any, how: str) -> None:
        worker_id, token = self.a_token(data)
        session = self.session(worker_id)
        command: commands.AnyCommand
        match how:
            case "fail":
                command = commands.FailAttempt(
                    token=token, worker_id=worker_id, session=session, reason="سبب"
                )
            case "release":
                command = commands.ReleaseClaim(
                    token=token, worker_id=worker_id, session=session, reason="r"
                )
            case "reattach":
                command = commands.ReattachClaim(token=token, worker_id=worker_id, session=session)
            case _:
                command = commands.ExpireClaim(token=token, reason="silence")
        self.speak(token, command)

    @rule(data=st.data(), retry=st.booleans())
    def changes_its_mind(self, data: Any, retry: bool) -> None:
        task_id = self.a_task(data)
        if retry:
            self.attempt(commands.RetryTask(task_id=task_id))
        else:
            self.attempt(commands.CancelTask(task_id=task_id, reason="r"))

    @rule(parent=nodes, seconds=st.sampled_from((1.0, 90.0, 400.0)))
    def grows_and_time_passes(self, parent: str, seconds: float) -> None:
        node_id = f"node-{self.number()}"
        self.attempt(commands.ExpandNode(node_id=node_id, parent_id=parent, name="فرع"))
        self.world.later(seconds)

    # ── rounds ──

    @rule(count=st.integers(1, 4))
    def a_judge_deposits(self, count: int) -> None:
        self.deposits(count)

    def deposits(self, count: int) -> None:
        first = self.state.rounds.next_deposit
        commitments = [
            hashlib.sha256(secret(index)).hexdigest() for index in range(first, first + count)
        ]
        self.attempt(commands.DepositCommitments(judge="j", first=first, commitments=commitments))

    @rule(luck=st.integers(0, 3))
    def the_judges_key_is_lost(self, luck: int) -> None:
        if not luck:
            self.attempt(commands.WithdrawCommitments(judge="j", reason="سبب"))

    @rule(data=st.data(), judge=st.sampled_from(("j", "j", "k")), honest=st.integers(0, 4))
    def judges(self, data: Any, judge: str, honest: int) -> None:
        undecided = sorted(self.state.rounds.undecided)
        if not undecided:
            return
        round_id = data.draw(st.sampled_from(undecided))
        self.attempt(commands.CloseRound(round_id=round_id))
        self.attempt(commands.StartJudging(round_id=round_id, judge=judge))
        row = self.state.rounds.table.rows[round_id]
        if not isinstance(row, Round):
            return
        standing = [one.candidate.candidate_id for one in row.standings]
        promoted = data.draw(st.sampled_from([*standing, ""]))
        lost = row.index < self.state.rounds.withdrawn_before and not promoted
        champion = self.state.graph.base(row.node_id, row.workload)
        revealed = b"" if lost else secret(row.index) if honest else b"\0" * 32
        self.attempt(
            commands.DecideRound(
                round_id=round_id,
                judge="j",
                verdict="promote" if promoted else "void" if lost else "keep",
                secret=revealed.hex(),
                reasons=events.Reasons(ar="سبب", en="why"),
                candidates=[
                    events.CandidateVerdict(
                        candidate_id=one,
                        verdict="v",
                        reasons=events.Reasons(ar="س", en="w"),
                        error=None if lost else 1,
                    )
                    for one in standing
                ],
                promoted=promoted,
                against=champion.candidate_id if champion else "",
                baseline_error=0.5,
            )
        )

    @rule(data=st.data(), worker_id=agents, node_id=nodes)
    def goes_all_the_way(self, data: Any, worker_id: str, node_id: str) -> None:
        self.gets_to_work(worker_id, node_id, "dual")
        self.complete(*self.tokens[-1], {"evolver", "reinventor"})
        self.judges(data, "j", honest=1)

    # ── people ──

    @rule(
        node_id=st.sampled_from((*NODES, "root-math")),
        budgets=st.sets(st.sampled_from(BUDGETS), max_size=2),
        dropped=st.sampled_from(BUDGETS),
        margin=st.sampled_from((1.0, 1.02, 1.1)),
        reset=st.booleans(),
    )
    def sets_gates(
        self, node_id: str, budgets: set[Budget], dropped: Budget, margin: float, reset: bool
    ) -> None:
        self.attempt(
            commands.SetGates(
                node_id=node_id,
                settings={"margin": margin},
                budgets=tuple(sorted(budgets, key=lambda one: one.name)),
                dropped=() if dropped in budgets else (dropped.name,),
                reset=reset,
            )
        )

    @rule(data=st.data(), node_id=nodes, budget=st.sampled_from(("", *BUDGETS)))
    def chooses(self, data: Any, node_id: str, budget: Budget | str) -> None:
        name = budget.name if isinstance(budget, Budget) else ""
        known = lineage.reigns(self.world.stored, name)
        former = [one.champion for one in known if one.champion.node_id == node_id]
        judged = self.measured(node_id)
        if not former and not judged:
            return
        champion = data.draw(st.sampled_from([*judged, *former]))
        reigning = self.state.graph.reigning(node_id, name)
        self.attempt(
            commands.ChooseChampion(
                node_id=node_id,
                kind="promote" if champion in judged else "rollback",
                champion=champion,
                instead_of=reigning.candidate_id if reigning else "",
                budget=name,
            )
        )

    def measured(self, node_id: str) -> list[events.Champion]:
        """All that a person may promote, by the log."""
        rows: dict[str, Round] = {}
        for event in self.world.stored:
            if isinstance(event.data, events.OfRounds):
                before = rows.get(event.data.round_id)
                rows[event.data.round_id] = evolve(before, event.at, event.data)
        found = []
        for row in rows.values():
            for one in row.standings if row.decision and row.node_id == node_id else ():
                with contextlib.suppress(errors.Conflict):
                    found.append(lineage.measured(row, one.candidate.candidate_id))
        return found

    # ── what always holds ──

    @invariant()
    def every_task_has_at_most_one_open_claim_and_contiguous_attempts(self) -> None:
        for row in self.state.tasks.table:
            if isinstance(row, Task):
                last = row.claims[-1].attempt if row.claims else 0
                first = max(1, last - CLAIMS_KEPT + 1)
                assert [claim.attempt for claim in row.claims] == list(range(first, last + 1))
                is_open = [claim.state == "open" for claim in row.claims]
                assert sum(is_open) == (row.status == "running")
                assert not any(is_open[:-1])

    @invariant()
    def indexes_are_what_a_recount_gives(self) -> None:
        tasks = self.state.tasks
        assert +Counter(tasks.counts) == Counter(row.status for row in tasks.table)
        held: dict[str, set[str]] = {}
        still_open: Counter[str] = Counter()
        queued: Counter[tuple[str, str]] = Counter()
        chars = ended_chars = 0
        for row in tasks.table:
            if row.status == "running":
                assert isinstance(row, Task)
                held.setdefault(row.claims[-1].worker_id, set()).add(row.task_id)
            if row.status in OPEN:
                assert isinstance(row, Task)
                still_open[row.node_id] += 1
                given_out = row.status == "queued" and row.task_id not in tasks.closed
                queued[row.node_id, row.role] += given_out
                chars += len(row.topic)
            elif isinstance(row, Task):
                ended_chars += len(row.topic + row.log_tail + "".join(row.reasons))
        assert {worker: set(ids) for worker, ids in tasks.held.items()} == held
        assert +Counter(tasks.open_of_node) == still_open
        assert tasks.queued_of_role == +queued
        assert (tasks.open_topic_chars, tasks.ended_chars) == (chars, ended_chars)
        online = {
            one.worker_id: one.via for one in self.state.workers.table if one.status == "online"
        }
        by = self.state.workers.online_by
        assert {one: via for via, ids in by.items() for one in ids} == online
        assert self.state.workers.online == len(online)
        rounds = self.state.rounds
        assert set(rounds.open) == {row.round_id for row in rounds.table if row.status == "open"}
        undecided = {row.round_id for row in rounds.table if row.status != "decided"}
        assert set(rounds.undecided) == undecided
        assert rounds.awaiting_judgement == len(undecided - set(rounds.open))
        assert tasks.ids == list(tasks.table.rows)
        assert rounds.ids == list(rounds.table.rows)

    @invariant()
    def the_queue_holds_the_queued_tasks_in_order(self) -> None:
        tasks = self.state.tasks
        queued = [row for row in tasks.table if row.status == "queued" and isinstance(row, Task)]
        assert tasks.queue.count(lambda *_: True) == len(queued)
        in_order = sorted(
            queued, key=lambda row: (row.created_at - row.priority * 600_000_000, row.ticket)
        )
        ordered = [row.task_id for row in in_order]
        assert tasks.queue.first(len(queued) + 1, tasks.ticket) == ordered
        best = tasks.queue.best(lambda *_: True, tasks.ticket)
        assert best == (ordered[0] if ordered else None)

    @invariant()
    def completed_tasks_keep_their_first_result(self) -> None:
        for task_id, metrics in self.completions.items():
            assert isinstance(self.state.tasks.table.rows[task_id], Done)
            result = self.state.tasks.recent[task_id].result
            assert result is not None
            assert bytes(result.metrics) == metrics

    @invariant()
    def the_tree_is_a_tree_within_its_bounds(self) -> None:
        nodes = self.state.graph.nodes
        for node in nodes:
            parent = nodes.get(node.parent_id) if node.parent_id else None
            assert node.depth == (parent.depth + 1 if parent else 0)
            assert node.depth <= specializations.DEPTH_MAX
            assert parent is None or node.node_id in parent.children
            assert len(node.children) <= specializations.CHILDREN_MAX

    @invariant()
    def rounds_gather_candidates_of_completed_tasks_one_round_a_node(self) -> None:
        open_rounds: Counter[str] = Counter()
        for row in self.state.rounds.table:
            if not isinstance(row, Round):
                continue
            open_rounds[row.node_id] += row.status == "open"
            admitted = {entry.rival: entry for entry in row.entries if entry.state == "admitted"}
            for standing in row.standings:
                assert standing.candidate.rival in admitted
                assert self.state.tasks.table.rows[standing.task_id].status == "completed"
        assert all(count <= 1 for count in open_rounds.values())

    @invariant()
    def nothing_of_our_own_is_quarantined(self) -> None:
        assert [row.reason for row in self.state.quarantine] == []

    def teardown(self) -> None:
        """A replay of what was stored gives the very same state."""
        replayed = State()
        for event in self.world.stored:
            read = events.decode(event.seq, events.subject_of(event.data), events.encode(event))
            assert isinstance(read, events.Event), read
            replayed.evolve(read)
        assert replayed.hash() == self.state.hash()
        found = audit.check(map(_record, self.world.stored))
        assert [one for one in found if one.rule in OF_CHAMPIONS] == []
        if len(self.world.stored) % 2:
            # A digest kept up to date is the digest of all rows.
            self.world.do(commands.ExpandNode(node_id="last", parent_id="root-math", name="n"))
            kept = [table.digest() for table in self.state.tables()]
            for table in self.state.tables():
                table._before = None
            assert [table.digest() for table in self.state.tables()] == kept


Network.TestCase.settings = CONFIGURED
TestNetwork = Network.TestCase
