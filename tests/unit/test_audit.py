"""Every rule of the audit: kept by what `decide` writes, and found broken where it is broken."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from core import audit, chunks, commands, events, seals
from core.audit import artifacts
from core.audit.findings import RULES, SHOWN_MAX, Findings
from core.log import Record, Stored
from tests.build import START, World

NODE = "stats-bayesian"
SECRETS = [bytes([number]) * 32 for number in range(8)]
COMMITMENTS = [hashlib.sha256(secret).hexdigest() for secret in SECRETS]

History = list[events.Event]


def checkpoint(rival: events.Rival, step: int, **more: Any) -> events.Checkpoint:
    values: dict[str, Any] = {
        "rival": rival,
        "step": step,
        "total_steps": 100,
        "manifest": hashlib.sha256(f"{rival}{step}".encode()).hexdigest(),
        "writer": "a1",
        "bytes": 10,
    }
    return events.Checkpoint(**{**values, **more})


def candidate(rival: events.Rival, name: str) -> events.Candidate:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return events.Candidate(
        candidate_id=name,
        rival=rival,
        manifest=digest,
        writer="a1",
        weights_sha256=digest,
        bytes=20,
    )


def with_token(world: World, token: events.Token) -> dict[str, Any]:
    row = world.state.tasks.table.rows[token.task_id]
    worker_id = row.claims[-1].worker_id  # type: ignore[union-attr]
    session = world.state.workers.table.rows[worker_id].session
    return {"token": token, "worker_id": worker_id, "session": session}


def complete(world: World, token: events.Token, prefix: str) -> None:
    brought = [candidate("evolver", f"{prefix}-e"), candidate("reinventor", f"{prefix}-r")]
    given = with_token(world, token)
    told = chunks.digest_of(prefix.encode())
    world.do(
        commands.CompleteTask(
            task_id=token.task_id, candidates=brought, telemetry_digest=told, **given
        )
    )


def judge(world: World, round_id: str, promoted: str) -> None:
    world.do(commands.StartJudging(round_id=round_id, judge="j"))
    row = world.state.rounds.table.rows[round_id]
    reasons = events.Reasons(ar="سبب", en="reason")
    verdicts = [
        events.CandidateVerdict(
            candidate_id=standing.candidate.candidate_id,
            verdict="promoted",
            reasons=reasons,
            error=0.1,
        )
        for standing in row.standings  # type: ignore[union-attr]
    ]
    champion = row.champion  # type: ignore[union-attr]
    world.do(
        commands.DecideRound(
            round_id=round_id,
            judge="j",
            verdict="promote" if promoted else "keep",
            secret=SECRETS[row.index].hex(),  # type: ignore[union-attr]
            reasons=reasons,
            candidates=verdicts,
            promoted=promoted,
            against=champion.candidate_id if champion else "",
            baseline_error=0.5,
        )
    )


def whole_history() -> History:
    """A log with everything in it: t1 is promoted, t2 starts from its champion after a loss, t3
    fails and is retried, t4 goes over HTTP."""
    world = World()
    world.do(commands.StartWriter(process="one"))
    world.seeded()
    world.do(commands.DepositCommitments(judge="j", first=0, commitments=COMMITMENTS))
    world.agent("a1")
    world.agent("a2")
    world.task("t1")
    token = claimed(world, "a1")
    for step in (10, 20):
        point = checkpoint("evolver", step)
        world.do(commands.StoreCheckpoint(checkpoint=point, **with_token(world, token)))
    complete(world, token, "t1")
    judge(world, the_round(world), "t1-e")
    world.task("t2")
    lost = claimed(world, "a2")
    point = checkpoint("reinventor", 5, writer="a2")
    world.do(commands.StoreCheckpoint(checkpoint=point, **with_token(world, lost)))
    world.do(commands.ExpireClaim(token=lost, reason="silence"))
    world.do(commands.ReattachClaim(**with_token(world, lost)))
    world.do(commands.ExpireClaim(token=lost, reason="silence"))
    complete(world, claimed(world, "a1"), "t2")
    judge(world, the_round(world), "")
    world.do(commands.StartWriter(process="two"))
    world.task("t3", role="reinventor")
    for _ in range(5):
        failing = with_token(world, claimed(world, "a1"))
        told = chunks.digest_of(failing["token"].claim_id.encode())
        world.do(commands.FailAttempt(reason="out of memory", telemetry_digest=told, **failing))
    world.do(commands.RetryTask(task_id="t3"))
    world.do(commands.ReleaseClaim(reason="stopping", **with_token(world, claimed(world, "a2"))))
    world.do(commands.CancelTask(task_id="t3"))
    world.http_worker()
    world.task("t4", node_id="root-math")
    world.do(commands.ClaimTask(worker_id="w1", via="http", claim_id="h1", lease_seconds=60))
    world.do(commands.CompleteTask(task_id="t4", worker_id="w1"))
    return world.stored


def claimed(world: World, worker_id: str) -> events.Token:
    token = world.claim(worker_id)
    assert token is not None, "there is something to claim"
    return token


def the_round(world: World) -> str:
    """The round that awaits its judge."""
    (round_id,) = world.state.rounds.undecided
    return round_id


WHOLE = whole_history()


def records(history: History) -> list[Record]:
    """A history as a log holds it, numbered anew."""
    return [
        Record(seq, events.subject_of(event.data), events.encode(event))
        for seq, event in enumerate(history, 1)
    ]


def broken(history: History) -> list[tuple[str, int]]:
    return [(one.rule, one.seq) for one in audit.check(records(history))]


def find(kind: type, nth: int = 0, **wanted: Any) -> int:
    """Where in WHOLE the nth event of a type stands, of those with these values."""
    found = [
        index
        for index, event in enumerate(WHOLE)
        if type(event.data) is kind
        and all(getattr(event.data, name) == value for name, value in wanted.items())
    ]
    return found[nth]


def at(index: int) -> Any:
    """What happened at an index of WHOLE."""
    return WHOLE[index].data


def changed(index: int, **changes: Any) -> History:
    """WHOLE with other values in one event's data."""
    return altered(index, changes)


def altered(index: int, changes: dict[str, Any]) -> History:
    """As `changed`, for a field of any name."""
    history = list(WHOLE)
    history[index] = history[index]._replace(data=events.replace(history[index].data, **changes))
    return history


def inserted(index: int, data: events.EventData) -> History:
    """WHOLE with one more event before that at `index`."""
    at = WHOLE[index - 1].at
    extra = events.Event(0, at, "by-hand.0", "hand", "by-hand", "hand", data)
    return [*WHOLE[:index], extra, *WHOLE[index:]]


def sealed(index: int, withdrawn: events.CommitmentsWithdrawn) -> History:
    """As `inserted`, and the verdict there gives no secret away, although it measured."""
    before, extra, told, *after = inserted(index, withdrawn)[index - 1 :]
    secretless = told._replace(data=events.replace(told.data, secret=""))
    return [*WHOLE[: index - 1], before, extra, secretless, *after]


def without(index: int) -> History:
    return [*WHOLE[:index], *WHOLE[index + 1 :]]


def test_what_decide_writes_keeps_every_rule() -> None:
    assert len({type(event.data) for event in WHOLE}) > 20
    assert broken(WHOLE) == []


def test_every_beginning_of_a_batchwise_log_keeps_every_rule() -> None:
    ends = [i for i in range(1, len(WHOLE)) if WHOLE[i - 1].cause != WHOLE[i].cause]
    for end in ends:
        assert broken(WHOLE[:end]) == []


def test_a_missing_record_is_named_by_its_sequence() -> None:
    log = records(WHOLE)
    del log[6:8]
    assert ("order", 7) in [(one.rule, one.seq) for one in audit.check(log)]


def test_a_log_whose_first_records_are_gone_misses_the_first() -> None:
    log = [record._replace(seq=record.seq + 4) for record in records(WHOLE)]
    assert [(one.rule, one.seq) for one in audit.check(log)] == [("order", 1)]


def test_a_sequence_that_comes_again_is_out_of_order() -> None:
    log = records(WHOLE)
    log.insert(9, log[8]._replace(data=log[9].data, subject=log[9].subject))
    found = audit.check(log)
    assert found[0].rule == "order"
    assert found[0].seq == 9


OF_TOMORROW = (
    b'{"type":"TaskSold","v":1,"id":"a","at":"2026-09-21T14:13:20Z","by":"b","cause":"c",'
    b'"corr":"d","data":{"task_id":"x"}}'
)


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        ("ev.task.x", b"nonsense"),
        ("ev.task.x", b"\xff\xfe"),
        ("ev.task.x", b"[" * 5_000),
        ("ev.task.x", b'{"type":7}'),
        ("ev.task.x", b'{"type":"TaskQueued","data":{}}'),
        (
            "ev.task.x",
            OF_TOMORROW,
        ),
    ],
)
def test_a_record_that_cannot_be_read_is_named(subject: str, data: bytes) -> None:
    log = records(WHOLE)
    log.append(Record(len(log) + 1, subject, data))
    assert [(one.rule, one.seq) for one in audit.check(log)] == [("undecodable", len(log))]


def test_a_sound_record_on_a_wrong_subject_is_named() -> None:
    log = records(WHOLE)
    last = log[-1]
    assert last.subject == "ev.task.t4"
    log[-1] = last._replace(subject="ev.task.t1")
    (found,) = audit.check(log)
    assert (found.rule, found.seq) == ("subject", last.seq)
    assert "ev.task.t4" in found.detail


def test_an_event_id_is_used_once() -> None:
    history = list(WHOLE)
    history[12] = history[12]._replace(id=history[3].id)
    assert broken(history) == [("identity", 13)]


def test_time_that_runs_backwards_is_found_once() -> None:
    history = list(WHOLE)
    history[20] = history[20]._replace(at=history[19].at - 1)
    assert broken(history) == [("time", 21)]


def test_a_writer_that_skips_an_epoch_is_found() -> None:
    index = find(events.WriterStarted, 1)
    assert broken(changed(index, epoch=3)) == [("writer", index + 1)]


Case = tuple[str, str, History, int]
"""What is broken, the rule, the history, and the index of the event that is wrong first."""


def cases_of_tasks() -> list[Case]:
    """Broken lives of tasks."""
    claim1, claim2 = find(events.TaskClaimed), find(events.TaskClaimed, 1)
    point, lost = find(events.CheckpointStored), find(events.ClaimExpired, 1)
    again = find(events.TaskClaimed, 2)
    done, last = find(events.TaskCompleted), find(events.TaskCompleted, 2)
    last_claim = find(events.TaskClaimed, task_id="t4")
    failed, cancelled = find(events.TaskFailed), find(events.TaskCancelled)
    end = len(WHOLE)
    token: Any = {"task_id": "t2", "attempt": 1, "claim_id": at(claim2).claim_id}
    other: Any = {**token, "claim_id": "x"}
    late = events.CheckpointStored(**token, checkpoint=checkpoint("evolver", 9, writer="a2"))
    theirs = checkpoint("evolver", 10, writer="a2")
    retry1, retry9 = events.TaskRetried(task_id="t1"), events.TaskRetried(task_id="t9")
    expiry = events.ClaimExpired(**token, reason="")
    release = events.ClaimReleased(**token, reason="")
    return [
        ("a stranger", "life", inserted(5, retry9), 5),
        ("queued twice", "life", inserted(end, at(find(events.TaskQueued))), end),
        ("a retry while queued", "life", inserted(claim1, retry1), claim1),
        ("a skipped attempt", "attempts", changed(last_claim, attempt=2), last_claim),
        ("two open claims", "fencing", without(lost), again - 1),
        ("another claim's checkpoint", "fencing", changed(point, claim_id="x"), point),
        ("another attempt's checkpoint", "fencing", changed(point, attempt=2), point),
        ("another's checkpoint", "fencing", changed(point, checkpoint=theirs), point),
        ("a checkpoint after expiry", "fencing", inserted(again, late), again),
        ("a release when overtaken", "fencing", inserted(again + 1, release), again + 1),
        ("a revival of an open claim", "fencing",
         inserted(claim2 + 1, events.ClaimRevived(**token)), claim2 + 1),
        ("expired twice", "fencing", inserted(again, expiry), again),
        ("a stranger's adoption", "fencing",
         inserted(claim2 + 1, events.ClaimAdopted(**other, session="s")), claim2 + 1),
        ("another attempt's failure", "fencing",
         changed(find(events.AttemptFailed, 1), attempt=1), find(events.AttemptFailed, 1)),
        ("another worker's completion", "fencing", changed(last, worker_id="a1"), last),
        ("failed while held", "fencing", without(failed - 1), failed - 1),
        ("completed twice", "completion", inserted(end, at(done)), end),
        ("a checkpoint when completed", "terminal", inserted(end, at(point)), end),
        ("a release when cancelled", "terminal",
         inserted(cancelled + 1, at(cancelled - 1)), cancelled + 1),
        ("a retry when completed", "terminal", inserted(end, retry1), end),
    ]  # fmt: skip


def cases_of_nodes() -> list[Case]:
    """A broken tree, and bases that do not reign."""
    claim1, claim2 = find(events.TaskClaimed), find(events.TaskClaimed, 1)
    opened, judging = find(events.RoundOpened, 1), find(events.JudgingStarted, 1)
    promoted, end = find(events.ChampionPromoted), len(WHOLE)
    base = at(claim2).base
    below_itself = events.NodeAdded(node_id="n", name="n", parent_id="n")
    homeless = events.replace(at(find(events.TaskQueued)), task_id="t9", node_id="n")
    return [
        ("a claim without its base", "base", changed(claim2, base=None), claim2),
        ("a claim with a base too early", "base", changed(claim1, base=base), claim1),
        ("a round against nobody", "base", changed(opened, base=None), opened),
        ("a judgement against nobody", "base", changed(judging, champion=None), judging),
        ("a replaced stranger", "base", changed(promoted, instead_of="x"), promoted),
        ("a node below itself", "graph", inserted(end, below_itself), end),
        ("a second root", "graph", inserted(end, events.NodeAdded(node_id="n", name="n")), end),
        ("a node grown twice", "graph", inserted(end, at(find(events.NodeAdded, 3))), end),
        ("a task of no node", "graph", inserted(end, homeless), end),
    ]


def cases_of_rounds() -> list[Case]:
    """Broken rounds, commitments and promotions."""
    opened, entered = find(events.RoundOpened), find(events.RoleEntered)
    admitted, closed = find(events.CandidateAdmitted), find(events.RoundClosed)
    judging, decided = find(events.JudgingStarted), find(events.RoundDecided)
    promoted, deposited = find(events.ChampionPromoted), find(events.CommitmentsDeposited)
    withdrawn = events.CommitmentsWithdrawn(judge="j", before=2)
    round_id, end = at(opened).round_id, len(WHOLE)
    stray = candidate("evolver", "stray")
    second: Any = {"round_id": "r9", "index": 5, "commitment": COMMITMENTS[5]}
    unknown = events.RoundClosed(round_id="r9", reason="")
    unawaited = events.RoleClosed(round_id=round_id, rival="evolver", task_id="t1", reason="")
    heavier = events.replace(at(promoted).champion, weights_sha256="f" * 64)
    gap: Any = {"first": 1, "commitments": COMMITMENTS[1:]}
    return [
        ("a second open round", "rounds",
         inserted(opened + 1, events.replace(at(opened), **second)), opened + 1),
        ("opened twice", "rounds", inserted(end, at(opened)), end),
        ("a round of no node", "rounds", changed(opened, node_id="n"), opened),
        ("never opened", "rounds", inserted(end, unknown), end),
        ("an unknown task enters", "rounds", changed(entered, task_id="t9"), entered),
        ("a taken role", "rounds", inserted(entered + 1, at(entered)), entered + 1),
        ("admitted after closing", "rounds",
         inserted(closed + 1, events.replace(at(admitted), candidate=stray)), closed + 1),
        ("a candidate nobody brought", "rounds", changed(admitted, candidate=stray), admitted),
        ("another worker's candidate", "rounds", changed(admitted, worker_id="a2"), admitted),
        ("a role closed unawaited", "rounds", inserted(entered, unawaited), entered),
        ("a verdict that leaves one out", "rounds",
         changed(decided, candidates=at(decided).candidates[:1]), decided),
        ("a verdict unjudged", "rounds", without(judging), decided - 1),
        ("judged while open", "rounds", without(closed), judging - 1),
        ("another's commitment", "commitment", altered(opened, {"index": 7}), opened),
        ("a gap between deposits", "commitment", changed(deposited, **gap), deposited),
        ("a wrong secret", "commitment", changed(decided, secret=SECRETS[5].hex()), decided),
        ("a secret that is no hex", "commitment", changed(decided, secret="no"), decided),
        ("no secret at all", "commitment", changed(decided, secret=""), decided),
        ("a withdrawn verdict measured", "commitment", sealed(decided, withdrawn), decided + 1),
        ("withdrawn before it is deposited", "commitment",
         inserted(deposited, withdrawn), deposited),
        ("a stranger promoted", "promotion", changed(decided, promoted="x"), decided),
        ("kept and promoted", "promotion", changed(decided, verdict="keep"), decided),
        ("no verdict", "promotion", without(decided), promoted - 1),
        ("a verdict long ago", "promotion",
         inserted(promoted, events.WorkerCameOnline(worker_id="a1")), promoted),
        ("other weights", "promotion", changed(promoted, champion=heavier), promoted),
        ("no champion", "promotion", WHOLE[:promoted], promoted - 1),
    ]  # fmt: skip


def swept(*manifests: str) -> events.ArtifactsSwept:
    return events.ArtifactsSwept(chunks=1, bytes=1, manifests=list(manifests))


def cases_of_sweeps() -> list[Case]:
    """What was swept while it was needed."""
    first, second, end = (
        find(events.CheckpointStored),
        find(events.CheckpointStored, 1),
        len(WHOLE),
    )
    champion = at(find(events.ChampionPromoted)).champion
    brought = at(find(events.TaskCompleted, 1)).candidates[0]
    last = swept(at(first).checkpoint.manifest, at(second).checkpoint.manifest)
    return [
        ("a last checkpoint", "sweeps", inserted(second + 1, last), second + 1),
        ("a champion", "sweeps", inserted(end, swept(champion.manifest)), end),
        ("a candidate", "sweeps", inserted(end, swept(brought.manifest)), end),
    ]


CASES = [*cases_of_tasks(), *cases_of_nodes(), *cases_of_rounds(), *cases_of_sweeps()]


@pytest.mark.parametrize(
    ("rule", "history", "index"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_broken_rule_is_named_with_the_first_sequence(
    rule: str, history: History, index: int
) -> None:
    found = audit.check(records(history))
    assert found, "nothing was found"
    assert (found[0].rule, found[0].seq) == (rule, index + 1), found
    assert found[0].detail


def test_a_promotion_that_was_cut_off_may_be_missing_where_that_was_accepted() -> None:
    promoted = find(events.ChampionPromoted)
    cut = WHOLE[:promoted]
    epoch = max(one.data.epoch for one in cut if isinstance(one.data, events.WriterStarted))

    def follow(*more: events.EventData) -> History:
        last = cut[-1]
        return [*cut, *(last._replace(id=f"m.{i}", data=data) for i, data in enumerate(more))]

    writer = events.WriterStarted(epoch=epoch + 1, process="control")
    accepted = events.LossAccepted(first=promoted + 1, details=["cut"])
    assert audit.check(records(follow(writer, accepted))) == []
    (found,) = audit.check(records(follow(writer, events.WorkerCameOnline(worker_id="a1"))))
    assert (found.rule, found.seq) == ("promotion", promoted + 2)


SEALED_EVERY = 12


class Sealed:
    """A log as it lies in a store, with seals that are right, and what a person accepted of it."""

    def __init__(self, history: History) -> None:
        self.records: list[Record] = []
        self._moment = START
        self._seal = events.LogSealed(first=0, last=0, digest="", previous="")
        for number, event in enumerate(history, 1):
            self.add(event.data, event.at)
            if number % SEALED_EVERY == 0 and not isinstance(event.data, events.RoundDecided):
                self.seal()  # else its promotion comes with it

    @property
    def end(self) -> int:
        return len(self.records)

    def add(self, data: events.EventData, moment: int = 0) -> None:
        seq = self.end + 1
        self._moment = moment or self._moment
        event = events.Event(seq, self._moment, f"id.{seq}", "t", "t", "t", data)
        self.records.append(Record(seq, events.subject_of(data), events.encode(event)))

    def seal(self) -> None:
        before = self._seal
        covered = [leaf(one) for one in self.records[before.last : self.end]]
        self._seal = events.LogSealed(
            first=before.last + 1,
            last=self.end,
            digest=seals.chain(before.digest, covered),
            previous=before.digest,
        )
        self.add(self._seal)

    def lose(self, seq: int, subject: str = "") -> None:
        before = self.records[seq - 1]
        lost = events.lost_record(seq, START)
        self.records[seq - 1] = Record(seq, subject or before.subject, lost)

    def accept(self) -> None:
        self.add(events.LossAccepted(first=1, details=["lost"], **self.proof()))

    def proof(self) -> dict[str, Any]:
        digest = seals.chain("", map(leaf, self.records))
        lost = sum(map(events.is_lost_record, self.records))
        return {"last": self.end, "lost": lost, "digest": digest}

    def auditor(self) -> audit.Auditor:
        auditor = audit.Auditor()
        for one in self.records:
            auditor.take(one, leaf(one))
        auditor.finish(self.end)
        return auditor

    def audited(self) -> Findings:
        return self.auditor().findings


def leaf(record: Record) -> bytes:
    return seals.leaf(Stored(record.seq, record.subject, record.data, START, b""))


@pytest.mark.parametrize("seq", range(1, Sealed(WHOLE).end + 1))
def test_whatever_record_is_lost_all_that_follows_is_accepted_with_it_and_nothing_else(
    seq: int,
) -> None:
    log = Sealed(WHOLE)
    assert log.audited().total == 0
    log.lose(seq)
    assert log.audited().accepted_total == 0
    assert log.audited().total > 0
    log.accept()
    found = log.audited()
    assert found.shown == []
    assert ("undecodable", seq) in [(one.rule, one.seq) for one in found.accepted_shown]
    log.add(swept(at(find(events.ChampionPromoted)).champion.manifest))
    if seq != promotion_in(log):
        assert [one.rule for one in log.audited().shown] == ["sweeps"]


def promotion_in(log: Sealed) -> int:
    subject = events.subject_of(at(find(events.ChampionPromoted)))
    return max(one.seq for one in log.records if one.subject == subject)


@pytest.mark.parametrize("changed_seq", [2, 20, 40])
def test_what_is_changed_after_a_loss_was_accepted_is_found_although_its_seal_is_broken_anyway(
    changed_seq: int,
) -> None:
    log = Sealed(WHOLE)
    for seq in (3, 21, 41):
        log.lose(seq)
    log.accept()
    log.seal()
    assert log.audited().total == 0
    before = log.records[changed_seq - 1]
    log.records[changed_seq - 1] = before._replace(
        data=before.data.replace(b'"by":"t"', b'"by":"x"')
    )
    found = log.audited()
    assert "losses" in [one.rule for one in found.shown]
    assert found.accepted_total == 0


def test_a_second_loss_is_not_accepted_with_the_first_but_by_its_own() -> None:
    log = Sealed(WHOLE)
    log.lose(5)
    log.accept()
    log.lose(30)
    assert {"undecodable", "losses"} <= log.audited().counts.keys()
    log.accept()
    assert log.audited().shown == []


def test_a_second_loss_hides_no_change_that_was_made_after_the_first() -> None:
    log = Sealed(WHOLE)
    log.lose(5)
    log.accept()
    assert "losses" not in log.audited().counts
    before = log.records[7]
    log.records[7] = before._replace(data=before.data.replace(b'"by":"t"', b'"by":"x"'))
    log.accept()
    assert [one.rule for one in log.audited().shown] == ["losses"]


def test_of_a_lost_record_that_names_nothing_only_itself_and_its_seal_are_accepted() -> None:
    log = Sealed(WHOLE)
    number = find(events.TaskQueued)
    seq = next(one.seq for one in log.records if one.subject == "ev.task.t1")
    log.lose(seq, f"ev.lost.{seq}")
    log.accept()
    found = log.audited()
    assert set(found.accepted_counts) == {"undecodable", "seals"}
    assert "life" in found.counts, number


def test_an_artifact_is_missing_with_leave_only_where_its_own_chunk_was_accepted_as_lost() -> None:
    log = Sealed(WHOLE)
    log.add(events.LossAccepted(first=1, details=["lost"], chunks=["a" * 64], **log.proof()))
    auditor = audit.Auditor()
    for one in log.records:
        auditor.take(one, leaf(one))
    named = [artifacts.Named(1, one, one * 64, "w") for one in "ab"]
    checking = artifacts.check(chunks.MemoryChunks(), named, auditor.findings, auditor.lost_chunks)
    asyncio.run(checking)
    assert [one.detail[0] for one in auditor.findings.shown] == ["b"]
    assert [one.detail[0] for one in auditor.findings.accepted_shown] == ["a"]


def test_an_acceptance_goes_on_right_behind_itself_alone() -> None:
    log = Sealed(WHOLE)
    log.lose(5)
    proof = log.proof()
    for digest in "ab":
        log.add(events.LossAccepted(first=1, details=[], chunks=[digest * 64], **proof))
    auditor = log.auditor()
    assert (auditor.findings.shown, list(auditor.lost_chunks)) == ([], ["a" * 64, "b" * 64])
    log.add(events.WorkerCameOnline(worker_id="a1"))
    log.add(events.LossAccepted(first=1, details=[], chunks=["c" * 64], **proof))
    auditor = log.auditor()
    assert [(one.rule, one.seq) for one in auditor.findings.shown] == [("losses", log.end)]
    assert "c" * 64 not in auditor.lost_chunks


def test_an_acceptance_in_parts_that_the_log_contradicts_is_told_once() -> None:
    log = Sealed(WHOLE)
    proof = log.proof()
    before = log.records[7]
    log.records[7] = before._replace(data=before.data.replace(b'"by":"t"', b'"by":"x"'))
    for digest in "ab":
        log.add(events.LossAccepted(first=1, details=[], chunks=[digest * 64], **proof))
    auditor = log.auditor()
    assert auditor.findings.counts["losses"] == 1
    assert not auditor.lost_chunks


def test_what_an_older_program_accepted_proves_nothing() -> None:
    log = Sealed(WHOLE)
    log.lose(5)
    log.add(events.LossAccepted(first=5, details=["record 5 is lost"]))
    assert log.audited().accepted_total == 0
    assert log.audited().counts["undecodable"] == 1


def test_nothing_is_written_on_what_lost_a_record() -> None:
    log = Sealed(WHOLE)
    seq = max(one.seq for one in log.records if one.subject == "ev.task.t3")
    log.lose(seq)
    log.accept()
    log.add(events.TaskRetried(task_id="t3"))
    (found,) = log.audited().shown
    assert (found.rule, found.seq) == ("closed", log.end)


def test_every_rule_is_broken_by_some_test_here() -> None:
    alone = {"order", "undecodable", "subject", "identity", "time", "writer", "artifacts"}
    alone |= {"blocks", "seals", "head", "closed", "losses", "choice"}  # of tests of their own
    assert {case[1] for case in CASES} | alone == set(RULES)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([(f"d{i}", f"d{i - 1}" if i else None) for i in range(18)], "deeper"),
        ([("r", None), *((f"c{i}", "r") for i in range(65))], "children"),
    ],
)
def test_a_tree_beyond_its_bounds_is_found(nodes: list[tuple[str, str | None]], words: str) -> None:
    history = [
        events.Event(
            0, 1, f"{number}", "t", "c", "c",
            events.NodeAdded(node_id=node_id, name=node_id, parent_id=parent_id),
        )
        for number, (node_id, parent_id) in enumerate(nodes)
    ]  # fmt: skip
    (found,) = audit.check(records(history))
    assert (found.rule, found.seq) == ("graph", len(nodes))
    assert words in found.detail


def test_one_fault_is_told_once_and_not_by_all_that_follows() -> None:
    queued = find(events.TaskQueued, task_id="t3")
    found = broken(without(queued))
    assert found == [("life", queued + 1)]


def test_a_flood_of_faults_is_counted_whole_and_shown_in_part() -> None:
    auditor = audit.Auditor()
    for seq in range(1, 1_001):
        auditor.take(Record(seq, "ev.task.x", b"nonsense"))
    assert auditor.findings.total == 1_000
    assert len(auditor.findings.shown) == SHOWN_MAX


# What is stored


async def put(store: chunks.MemoryChunks, kind: str, content: bytes) -> tuple[str, int, str]:
    """Store an artifact of one file as agent and desk would: manifest, bytes, first chunk."""
    pieces = [content[i : i + 4] for i in range(0, len(content), 4)]
    digests = [await store.put("a1", piece) for piece in pieces]
    file = chunks.File(
        name="weights.safetensors",
        bytes=len(content),
        sha256=chunks.digest_of(content),
        chunks=digests,
    )
    manifest = chunks.Manifest(kind=kind, writer="a1", files=[file])
    return await store.put(chunks.DESK, manifest.encode()), len(content), digests[0]


Spoil = Callable[[chunks.MemoryChunks, str, str], None]


def lose_manifest(store: chunks.MemoryChunks, manifest: str, chunk: str) -> None:
    del store.held[chunks.DESK, manifest]


def lose_chunk(store: chunks.MemoryChunks, manifest: str, chunk: str) -> None:
    del store.held["a1", chunk]


def damage_chunk(store: chunks.MemoryChunks, manifest: str, chunk: str) -> None:
    store.held["a1", chunk] = b"else"


def damage_manifest(store: chunks.MemoryChunks, manifest: str, chunk: str) -> None:
    store.held[chunks.DESK, manifest] += b" "


def stored_history(spoil: Spoil | None, **named: Any) -> tuple[Findings, artifacts.Stored, int]:
    """What the audit finds of a task's stored checkpoints; the sequence of the last of them."""
    store = chunks.MemoryChunks()
    world = World().seeded()
    world.agent("a1")
    world.task("t1")
    token = claimed(world, "a1")
    for step in (1, 2):
        digest, size, chunk = asyncio.run(put(store, "checkpoint", b"step %d of training" % step))
        given = {"manifest": digest, "bytes": size, **named}
        point = checkpoint("evolver", step, **given)
        world.do(commands.StoreCheckpoint(checkpoint=point, **with_token(world, token)))
        if step == 1:
            # Only the last checkpoint of a rival is needed.
            store.held.clear()
    if spoil is not None:
        spoil(store, digest, chunk)
    auditor = audit.Auditor()
    for record in records(world.stored):
        auditor.take(record)
    auditor.finish()
    stored = asyncio.run(artifacts.check(store, auditor.named(), auditor.findings))
    return auditor.findings, stored, len(world.stored)


def test_an_artifact_that_is_stored_whole_is_counted() -> None:
    findings, stored, _ = stored_history(None)
    assert findings.shown == []
    assert stored == artifacts.Stored(artifacts=1, bytes=len(b"step 2 of training"))


@pytest.mark.parametrize("spoil", [lose_manifest, lose_chunk, damage_chunk, damage_manifest])
def test_an_artifact_that_is_lost_or_damaged_is_named_with_its_sequence(spoil: Spoil) -> None:
    findings, _, seq = stored_history(spoil)
    (found,) = findings.shown
    assert (found.rule, found.seq) == ("artifacts", seq)
    assert "evolver's checkpoint 2 of t1" in found.detail


def test_an_artifact_of_another_size_than_the_log_says_is_named() -> None:
    findings, _, seq = stored_history(None, bytes=5)
    assert [(one.rule, one.seq) for one in findings.shown] == [("artifacts", seq)]


@pytest.mark.parametrize("change", [{"bytes": 5}, {"sha256": "f" * 64}])
def test_a_file_that_is_not_what_its_manifest_says_is_named(change: dict[str, Any]) -> None:
    async def spoiled() -> Findings:
        store = chunks.MemoryChunks()
        digest, _, _ = await put(store, "candidate", b"weights")
        manifest = chunks.decode_manifest(await store.get(chunks.DESK, digest))
        files = [events.replace(manifest.files[0], **change)]
        digest = await store.put(chunks.DESK, events.replace(manifest, files=files).encode())
        findings = Findings()
        named = artifacts.Named(7, "candidate c", digest, "a1")
        await artifacts.check(store, [named], findings)
        return findings

    assert [(one.rule, one.seq) for one in asyncio.run(spoiled()).shown] == [("artifacts", 7)]


def test_what_was_swept_when_nothing_needed_it_may_be_gone() -> None:
    points = [one.data.checkpoint for one in WHOLE if isinstance(one.data, events.CheckpointStored)]
    superseded = swept(points[0].manifest)
    assert broken(inserted(find(events.CheckpointStored, 1) + 1, superseded)) == []
    assert broken(inserted(len(WHOLE), swept(*(point.manifest for point in points)))) == []


def test_what_was_swept_while_needed_is_told_once_and_needed_again_when_it_is_named_again() -> None:
    second = find(events.CheckpointStored, 1)
    last = at(second)
    history = inserted(second + 1, swept(last.checkpoint.manifest))[: second + 2]
    assert last.checkpoint.manifest not in named(history)
    again = history[second]._replace(id="again")
    assert last.checkpoint.manifest in named([*history, again])


def named(history: History) -> set[str]:
    """The manifests that have to be stored."""
    auditor = audit.Auditor()
    for record in records(history):
        auditor.take(record)
    return {one.digest for one in auditor.named()}


def test_nobody_needs_the_checkpoints_of_a_completed_task() -> None:
    points = {
        one.data.checkpoint.manifest
        for one in WHOLE
        if isinstance(one.data, events.CheckpointStored)
    }
    before = named(WHOLE[: find(events.TaskCompleted)])
    assert before & points
    assert not named(WHOLE) & points


def test_candidates_champions_metrics_payloads_and_telemetry_have_to_be_stored() -> None:
    world = World().seeded()
    world.agent("a1")
    world.do(commands.DepositCommitments(judge="j", first=0, commitments=COMMITMENTS))
    world.task("t1")
    token = claimed(world, "a1")
    given = with_token(world, token)
    brought = [candidate("evolver", "e"), candidate("reinventor", "r")]
    world.do(
        commands.CompleteTask(
            task_id="t1",
            candidates=brought,
            metrics_digest=chunks.digest_of(b"{}"),
            artifact_digest=chunks.digest_of(b"[]"),
            telemetry_digest=chunks.digest_of(b"[[]]"),
            **given,
        )
    )
    judge(world, the_round(world), "e")
    auditor = audit.Auditor()
    for record in records(world.stored):
        auditor.take(record)
    assert {one.what for one in auditor.named()} == {
        "candidate e of t1",
        "candidate r of t1",
        "metrics of t1",
        "payload of t1",
        "telemetry of t1",
    }
