"""Holds the log's own bytes against what everybody was told, and against the rules of work.

Nothing here asks decisions or projections, which may be what is wrong; only the last rule, that a
replay gives what the writer had, compares two of them.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from core import audit
from core.log import Record
from core.projections.state import State
from faults.simulation.witness import Ended, Told

if TYPE_CHECKING:
    from faults.simulation.world import World

ENDED = ("completed", "failed", "cancelled")
SAID_ONCE = frozenset(
    {
        "TaskQueued",
        "TaskClaimed",
        "TaskCompleted",
        "SessionOpened",
        "ClaimReleased",
        "AttemptFailed",
    }
)
"""What happens once, however often it was asked for."""
AT_THE_SAME_TIME_SECONDS = 0.05
UNNOTICED_SHARE = 0.5
"""Of the silence that is borne: how long the writer may be away and not see it."""
RECONNECT_SEEN_SECONDS = 4.0
"""A connection that the server saw come or go so lately excuses a suspicion."""


class Stored(NamedTuple):
    """One record, as JSON says it."""

    seq: int
    id: str
    type: str
    data: dict[str, Any]


@dataclass
class Life:
    """A task, as its events tell."""

    status: str = "queued"
    attempt: int = 0
    claim: dict[str, Any] = field(default_factory=dict)
    """The latest claim."""
    expired: bool = False


def check(
    world: "World", records: list[Record], live: str, made: State, replayed: State
) -> list[str]:
    """Every rule that was broken, in words. `live` is the writer's state hash, "" if it is unknown;
    `made` the state that its records make, `replayed` the one that all do."""
    stored = [_read(record) for record in records]
    found = [*_lives(records, stored), *_identities(stored), *_writers(world, stored)]
    found += _kept(world.witness.told, stored)
    claims = {
        (one.data["task_id"], one.data["attempt"]): one.data
        for one in stored
        if one.type == "TaskClaimed"
    }
    expired = {
        (one.data["task_id"], one.data["attempt"]) for one in stored if one.type == "ClaimExpired"
    }
    for ended in world.witness.ended:
        claim = claims.get((ended.token.task_id, ended.token.attempt))
        if claim and claim["via"] == "nats" and (claim["task_id"], claim["attempt"]) in expired:
            found += _in_grace(world, ended, claim)
            found += _taken_from_the_living(world, ended, claim)
    if live and live != made.hash():
        found.append("replay: the writer's state is not what its log makes")
    found += [f"replay: {row.seq} {row.subject} {row.reason}" for row in replayed.quarantine]
    found += [f"audit: {one}" for one in audit.check(records)]
    return found + [f"broken: {words}" for words in world.witness.broken]


def _read(record: Record) -> Stored:
    envelope = msgspec.json.decode(record.data)
    return Stored(record.seq, envelope["id"], envelope["type"], envelope["data"])


def _identities(stored: list[Stored]) -> Iterator[str]:
    seen: set[str] = set()
    for one in stored:
        if one.id in seen:
            yield f"identity: {one.seq} {one.type} has an id that was there before: {one.id}"
        seen.add(one.id)


# ── tasks ──


def _lives(records: list[Record], stored: list[Stored]) -> Iterator[str]:
    lives: dict[str, Life] = {}
    sessions: dict[str, str] = {}
    for record, one in zip(records, stored, strict=True):
        if one.type == "SessionOpened":
            sessions[one.data["worker_id"]] = one.data["session"]
        if not record.subject.startswith("ev.task."):
            continue
        task_id = one.data["task_id"]
        if record.subject != f"ev.task.{task_id}":
            yield f"subject: {one.seq} {one.type} of {task_id} lies on {record.subject}"
        for fault in _step(lives, one, sessions):
            yield f"{fault}: {one.seq} {one.type} of {task_id}"


def _step(lives: dict[str, Life], one: Stored, sessions: dict[str, str]) -> Iterator[str]:
    """What is wrong with the next event of a task; it is then taken as it stands."""
    data, life = one.data, lives.setdefault(one.data["task_id"], Life())
    if one.type == "TaskQueued":
        if life.attempt or life.status != "queued" or life.claim.get("queued"):
            yield "queued twice"
        life.claim = {"queued": True}
        return
    if not life.claim:
        yield "not queued first"
    if life.status in ENDED and (one.type != "TaskRetried" or life.status == "completed"):
        yield f"something after its end, {life.status}"
    match one.type:
        case "TaskClaimed":
            yield from _claimed(life, data, sessions)
        case "ClaimRevived":
            if life.status != "queued" or not life.expired or not _is_of(life, data):
                yield "a claim revived that is not the latest, expired one"
            life.status, life.expired = "running", False
        case "TaskFailed" | "TaskCancelled":
            life.status = "failed" if one.type == "TaskFailed" else "cancelled"
        case "TaskRetried":
            # A claim that had expired before is unrivalled still, and may come back.
            life.status = "queued"
        case _:
            if life.status != "running" or not _is_of(life, data):
                yield "not of the one open claim"
            yield from _of_claim(life, one)


def _claimed(life: Life, data: dict[str, Any], sessions: dict[str, str]) -> Iterator[str]:
    if life.status != "queued":
        yield f"claimed while {life.status}"
    if data["attempt"] != life.attempt + 1:
        yield f"attempt {data['attempt']} after {life.attempt}"
    if data["via"] == "nats" and data["session"] != sessions.get(data["worker_id"]):
        yield "claimed under a session that is not the worker's newest"
    life.status, life.attempt, life.claim, life.expired = "running", data["attempt"], data, False


def _of_claim(life: Life, one: Stored) -> Iterator[str]:
    match one.type:
        case "ClaimExpired" | "ClaimReleased" | "AttemptFailed":
            life.status, life.expired = "queued", one.type == "ClaimExpired"
        case "TaskCompleted":
            if one.data["worker_id"] != life.claim.get("worker_id"):
                yield "completed by somebody else"
            life.status = "completed"
        case "ClaimAdopted" | "CheckpointStored":
            pass
        case _:
            yield "an event this checker does not know"


def _is_of(life: Life, data: dict[str, Any]) -> bool:
    return all(data[name] == life.claim.get(name) for name in ("attempt", "claim_id"))


# ── who wrote ──


def _writers(world: "World", stored: list[Stored]) -> Iterator[str]:
    writer, epoch = "", 0
    for one, process in zip(stored, world.store.writers, strict=True):
        if one.type == "WriterStarted":
            if one.data["epoch"] != epoch + 1:
                yield f"writer: {one.seq} epoch {one.data['epoch']} after {epoch}"
            writer, epoch = process, one.data["epoch"]
        elif process != writer:
            yield f"writer: {one.seq} {one.type} by {process}, in the time of {writer}"


# ── what was told ──


def _kept(told: list[Told], stored: list[Stored]) -> Iterator[str]:
    """Whatever was acknowledged is in the log, was there at that moment, and once."""
    by_type: defaultdict[tuple[str, str], list[Stored]] = defaultdict(list)
    by_key: defaultdict[object, list[Stored]] = defaultdict(list)
    for event in stored:
        by_type[event.type, _whose(event.data)].append(event)
        if "idempotency_key" in event.data:
            by_key[event.data["idempotency_key"]].append(event)
    for one in told:
        found = [each for each in by_type[one.type, _whose(one.says)] if _says(each.data, one.says)]
        if "idempotency_key" in one.says:
            found += [each for each in by_key[one.says["idempotency_key"]] if each not in found]
        words = f"{one.who} was told of {one.type} {one.says}"
        if not found:
            yield f"lost: {words}, which is not in the log"
        elif found[0].seq > one.length:
            yield f"too early: {words} when the log ended at {one.length}, before {found[0].seq}"
        elif len(found) > 1 and one.type in SAID_ONCE:
            yield f"doubled: {words}, and it is at {[each.seq for each in found]}"


def _whose(says: dict[str, Any]) -> str:
    return str(says.get("task_id", says.get("worker_id")))


def _says(data: dict[str, Any], says: dict[str, object]) -> bool:
    inner = data.get("checkpoint", {})
    return all(data.get(name, inner.get(name)) == value for name, value in says.items())


# ── whom liveness took a claim from ──


def _in_grace(world: "World", ended: Ended, claim: dict[str, Any]) -> Iterator[str]:
    """In a time of grace a claim ends only where its holder was heard of since it began."""
    signs = world.witness.signs[ended.control, claim["worker_id"]]
    heard = [*signs.hellos, *(beat.at for beat in signs.beats)]
    for at, wall_us, why in world.witness.graces[ended.control]:
        lasts = ended.wall_us - wall_us < world.limits.lease * 1e6
        if at <= ended.at and lasts and not any(at <= one <= ended.at for one in heard):
            yield (
                f"grace: {ended.control} ended attempt {claim['attempt']} of {claim['task_id']} at "
                f"{ended.at:.2f} s, unheard of since {why} at {at:.2f} s"
            )
            return


def _taken_from_the_living(world: "World", ended: Ended, claim: dict[str, Any]) -> Iterator[str]:
    """No claim is taken from an agent whose connection stands and whose heartbeats speak of it.

    A stumble of the writer that is too short to be noticed, by half of the silence that is borne,
    excuses it from what arrived meanwhile and was not read yet.
    """
    short = UNNOTICED_SHARE * world.limits.silence_borne
    stumbles = [
        (since, until)
        for process in world.loop.processes
        if process.name == ended.control
        for since, until in process.stood_still
        if until - since <= short
    ]
    attempt, worker_id = (claim["task_id"], claim["attempt"]), claim["worker_id"]
    until = ended.at - AT_THE_SAME_TIME_SECONDS
    since = ended.at - short
    if any(
        ended.at - RECONNECT_SEEN_SECONDS < at <= ended.at
        for at, _ in world.witness.gone[worker_id]
    ):
        return
    beats = [
        beat
        for beat in world.witness.signs[ended.control, worker_id].beats
        if since < beat.at < until and not any(start <= beat.at <= end for start, end in stumbles)
    ]
    # One that speaks of it no more has dropped it: told to, perhaps, by a writer of the past.
    if beats and all(attempt in beat.attempts for beat in beats):
        yield (
            f"alive: {ended.control} ended attempt {claim['attempt']} of {claim['task_id']} at "
            f"{ended.at:.2f} s ({ended.reason}), though a heartbeat of {worker_id} spoke of it at "
            f"{beats[-1].at:.2f} s"
        )
