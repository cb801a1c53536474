"""Made-up histories: events as the rules make them and the runtime encodes them, without a server.

The same seed gives the same bytes.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from core import commands, decide, events
from core.commands import AnyCommand, Meta
from core.events import Candidate, CandidateVerdict, Checkpoint, Reasons, Rival, Token
from core.log import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Log, Message
from core.projections.rounds import RIVALS, Round
from core.projections.state import State

SECOND = 1_000_000
START = 1_790_000_000 * SECOND
NODES = ("root-math", "stats-bayesian", "opt-convex")
TOPIC = "تدريب النموذج على التقارب المحدّب"
JUDGE = "judge"
COMMITMENTS = 64
PROMOTED_ONE_IN = 8
REASONS = Reasons(
    ar="الخطأ على الحالات المخفية ليس أقل بفارق يُعتد به إحصائيًا.",
    en="Its error on the hidden cases is not lower by a margin that counts statistically.",
)


class Story:
    """A state and the log that leads to it."""

    def __init__(self, seed: int = 1) -> None:
        self.state = State()
        self.messages: list[Message] = []
        self._random = random.Random(seed)
        self._now = START
        self._tasks = 0
        self.do(commands.StartWriter(process="control"))
        self.do(commands.SeedTree())

    def do(self, command: AnyCommand, by: str = "http") -> list[events.EventData]:
        """Decide and fold a command and what follows from it; what happened."""
        self._now += self._random.randrange(1_000, 50_000)
        identity = self.hexadecimal(32)
        meta = Meta(self._now, identity, by, identity)
        happened = decide.decide(self.state, command, meta)
        for number, data in enumerate(happened):
            self._fold(meta, number, data)
        while following := decide.follow(self.state, happened, meta):
            for number, data in enumerate(following, len(happened)):
                self._fold(meta, number, data)
            happened = [*happened, *following]
        return happened

    def _fold(self, meta: Meta, number: int, data: events.EventData) -> None:
        event = events.Event(
            self.state.seq + 1, meta.now, f"{meta.id}.{number}", meta.by, meta.id, meta.corr, data
        )
        self.messages.append(Message(events.subject_of(data), events.encode(event)))
        self.state.evolve(event)

    def hexadecimal(self, digits: int) -> str:
        """Random hex digits, as ids and digests have them."""
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"

    def enqueue_command(self) -> commands.EnqueueTask:
        """What a person asks for: a task on one of three nodes in turn."""
        self._tasks += 1
        return commands.EnqueueTask(
            task_id=f"task-{self.hexadecimal(12)}",
            node_id=NODES[self._tasks % len(NODES)],
            topic=TOPIC,
            seed=self._random.getrandbits(63),
        )

    # ── HTTP workers ──

    def queue(self, count: int) -> None:
        """So many tasks that wait."""
        for _ in range(count):
            self.do(self.enqueue_command())

    def complete_over_http(self, count: int) -> None:
        """So many tasks, each queued, claimed and completed by an HTTP worker."""
        workers = [f"worker-{number:02d}" for number in range(8)]
        for worker_id in workers:
            self.do(commands.RegisterWorker(worker_id=worker_id, hostname="host"))
        for number in range(count):
            worker_id = workers[number % len(workers)]
            self.do(self.enqueue_command())
            self._claim(worker_id, "http", "")
            (task_id,) = self.state.tasks.held[worker_id]
            metrics = {"loss": self._random.random(), "accuracy": self._random.random(), "epoch": 3}
            self.do(
                commands.CompleteTask(
                    task_id=task_id, worker_id=worker_id, metrics=msgspec.json.encode(metrics)
                )
            )

    def _claim(self, worker_id: str, via: events.Via, session: str) -> Token | None:
        happened = self.do(
            commands.ClaimTask(
                worker_id=worker_id,
                via=via,
                claim_id=self.hexadecimal(32),
                lease_seconds=60.0,
                session=session,
            ),
            f"agent:{worker_id}",
        )
        for data in happened:
            if isinstance(data, events.TaskClaimed):
                return Token(task_id=data.task_id, attempt=data.attempt, claim_id=data.claim_id)
        return None

    # ── agents and a judge ──

    def train(self, count: int) -> None:
        """So many tasks, each trained by an agent, with checkpoints, a round and its verdict."""
        agents = [f"agent-{number}" for number in range(1, 9)]
        sessions = {agent: self._say_hello(agent) for agent in agents}
        for number in range(count):
            if not len(self.state.rounds.commitments):
                self._deposit()
            agent = agents[number % len(agents)]
            self.do(self.enqueue_command())
            token = self._claim(agent, "nats", sessions[agent])
            assert token is not None, "a task was queued for it"
            self._train(agent, sessions[agent], token)
            self._judge(token.task_id)

    def _say_hello(self, agent: str) -> str:
        session = self.hexadecimal(32)
        self.do(
            commands.OpenSession(
                worker_id=agent, session=session, hostname="host", lane="cpu-16", protocol=1
            )
        )
        return session

    def _deposit(self) -> None:
        first = self.state.rounds.next_deposit
        commitments = [
            hashlib.sha256(_secret(index)).hexdigest()
            for index in range(first, first + COMMITMENTS)
        ]
        self.do(
            commands.DepositCommitments(judge=JUDGE, first=first, commitments=commitments), JUDGE
        )

    def _train(self, agent: str, session: str, token: Token) -> None:
        points: tuple[tuple[Rival, int, bool], ...] = (
            ("evolver", 400, False),
            ("evolver", 900, True),
            ("reinventor", 600, False),
        )
        for rival, step, final in points:
            checkpoint = Checkpoint(
                rival=rival,
                step=step,
                total_steps=900,
                manifest=self.hexadecimal(64),
                writer=agent,
                bytes=210_000,
                final=final,
            )
            self.do(
                commands.StoreCheckpoint(
                    token=token, worker_id=agent, session=session, checkpoint=checkpoint
                ),
                f"agent:{agent}",
            )
        self.do(
            commands.CompleteTask(
                task_id=token.task_id,
                worker_id=agent,
                token=token,
                session=session,
                metrics=msgspec.json.encode(self._metrics()),
                candidates=[self._candidate(agent, rival) for rival in RIVALS],
                telemetry_digest=self.hexadecimal(64),
            ),
            f"agent:{agent}",
        )

    def _candidate(self, agent: str, rival: Rival) -> Candidate:
        return Candidate(
            candidate_id=f"cand-{self.hexadecimal(12)}",
            rival=rival,
            manifest=self.hexadecimal(64),
            writer=agent,
            weights_sha256=self.hexadecimal(64),
            bytes=70_000,
            claims=self._measured(),
        )

    def _measured(self) -> dict[str, float]:
        return {
            "loss": self._random.random(),
            "baseline_loss": self._random.random(),
            "evidence_rate": self._random.random(),
        }

    def _metrics(self) -> dict[str, Any]:
        """As large, and of the same kind, as what an agent says of a task."""
        rival = {
            "steps": 900,
            "total_steps": 900,
            **self._measured(),
            "params": 17_000,
            "bytes": 70_000,
            "weights_sha256": self.hexadecimal(64),
            "baseline": "of record",
            "device": "cpu",
            "first_step_at": START / 1e6 + self._random.random(),
            "last_step_at": START / 1e6 + self._random.random(),
        }
        return {
            **self._measured(),
            "steps": 900,
            "rival": "evolver",
            "weights_sha256": self.hexadecimal(64),
            "workload": {"specialist": "root-math", "parameters": {}, "inherited": False},
            "rivals": dict.fromkeys(RIVALS, rival),
        }

    def _judge(self, task_id: str) -> None:
        round_id = self.state.tasks.table.rows[task_id].round_id
        self.do(commands.StartJudging(round_id=round_id, judge=JUDGE), JUDGE)
        row = self.state.rounds.table.rows[round_id]
        assert isinstance(row, Round), "a round being judged is whole"
        promoted = ""
        if self._random.randrange(PROMOTED_ONE_IN) == 0:
            promoted = row.standings[0].candidate.candidate_id
        self.do(
            commands.DecideRound(
                round_id=round_id,
                judge=JUDGE,
                verdict="promote" if promoted else "keep",
                secret=_secret(row.index).hex(),
                reasons=REASONS,
                candidates=[
                    self._verdict(standing.candidate.candidate_id) for standing in row.standings
                ],
                promoted=promoted,
                against=row.champion.candidate_id if row.champion else "",
                alpha=0.025,
                cases=2_048,
                champion_error=self._random.random(),
                baseline_error=self._random.random(),
                environment={"torch": "2.13.0", "python": "3.11.7", "cpu_capability": "AVX2"},
            ),
            JUDGE,
        )

    def _verdict(self, candidate_id: str) -> CandidateVerdict:
        return CandidateVerdict(
            candidate_id=candidate_id,
            verdict="rejected",
            reasons=REASONS,
            error=self._random.random(),
            evidence_rate=self._random.random(),
            ratio=self._random.random(),
            ratio_upper=self._random.random(),
            params=17_000,
            bytes=70_000,
        )


def _secret(index: int) -> bytes:
    return hashlib.sha256(f"secret {index}".encode()).digest()


async def store(log: Log, messages: list[Message]) -> None:
    """Append a history to an empty log."""
    seq = 0
    for batch in _batches(messages):
        seq = await log.append(batch, seq)


def _batches(messages: list[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        if len(batch) == BATCH_MESSAGES_MAX or size + len(message.data) > BATCH_BYTES_MAX:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.data)
    if batch:
        yield batch
