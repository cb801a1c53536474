"""Streams, consumers and accounts: what streams.yaml declares, made so on a server.

What exists is compared field by field with what is declared. A difference is either changed in
place, because nothing can be lost by it, or refused with a table of found and wanted.

Everything goes through the JSON API of JetStream (ADR-1 and ADR-13 of NATS): typed clients drop
fields that are newer than they are.
"""

import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from core import errors

SHIPPED = Path(__file__).resolve().parent.parent / "streams.yaml"
LANES_MAX = 32

MIB = 1024 * 1024
NANOSECONDS = 1_000_000_000

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
NOT_READY = frozenset({10008, 10009})  # unavailable for now, no leader yet

_LANE = re.compile(r"[A-Za-z0-9_-]{1,32}")

Json = dict[str, Any]
Api = Callable[[str, dict[str, object]], Awaitable[Json]]
"""Calls `$JS.API.<endpoint>` with a body; the decoded answer, which may hold an "error"."""


class Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in streams.yaml."""

    description: str


class Export(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A subject of an account that others may ask on, and how many answers a question gets."""

    subject: str
    responses: Literal["one", "many"] = "one"


class Account(Declared, frozen=True, kw_only=True):
    """An account; it has JetStream where `disk_mib` is given. Imports go by exporting account."""

    disk_mib: int | None = None
    exports: list[Export] = []
    imports: dict[str, list[str]] = {}


class Consumer(Declared, frozen=True, kw_only=True):
    """A durable pull consumer with explicit acknowledgement.

    `max_ack_pending` and `max_deliver` are unbounded: JetStream's default of 1,000 would stop a
    lane at 1,000 running tasks, and an offer that nobody is given any more would wait for ever.
    """

    filter: str
    max_waiting: int
    ack_wait_seconds: int = 30
    max_deliver: int = -1
    max_ack_pending: int = -1
    metadata: dict[str, str] = {}


class Stream(Declared, frozen=True, kw_only=True):
    """A stream of files. `each_lane` is what the consumer of a lane is made from."""

    account: str
    subjects: list[str]
    max_mib: int
    discard: Literal["old", "new"]
    retention: Literal["limits", "workqueue"] = "limits"
    persist: Literal["default", "async"] = "default"
    max_age_seconds: int = 0
    max_messages: int = -1
    max_messages_per_subject: int = -1
    max_message_bytes: int = -1
    discard_new_per_subject: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    allow_atomic: bool = False
    allow_direct: bool = False
    allow_rollup: bool = False
    metadata: dict[str, str] = {}
    consumers: dict[str, Consumer] = {}
    each_lane: Consumer | None = None

    @property
    def holds_nothing_lasting(self) -> bool:
        """Whether all of it can be made again, or is forgotten soon anyway."""
        return self.retention == "workqueue" or self.persist == "async"


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of streams.yaml."""

    accounts: dict[str, Account]
    streams: dict[str, Stream]

    def of_account(self, account: str) -> dict[str, Stream]:
        """The streams of one account."""
        return {name: one for name, one in self.streams.items() if one.account == account}


class Change(msgspec.Struct, frozen=True):
    """What apply did: to `EVENTS` or `WORK.cpu`, and which fields it changed (none: created)."""

    name: str
    fields: list[str]

    def __str__(self) -> str:
        return f"{self.name}: {'changed ' + ', '.join(self.fields) if self.fields else 'created'}"


class Difference(msgspec.Struct, frozen=True):
    """One field that is not as declared, and whether it may be changed in place."""

    field: str
    found: object
    wanted: object
    may_change: bool


# Reading the declaration


def load(path: Path | None = None) -> Topology:
    """The topology in a file, by default the one this program came with.

    Raises TopologyMismatch when it cannot be read, holds unknown keys or contradicts itself.
    """
    path = path or SHIPPED
    try:
        topology = msgspec.yaml.decode(path.read_bytes(), type=Topology)
    except (OSError, msgspec.MsgspecError) as error:
        raise errors.TopologyMismatch(f"{path} does not declare a topology: {error}.") from error
    problems = list(_contradictions(topology))
    if problems:
        raise errors.TopologyMismatch(f"{path} contradicts itself: {'; '.join(problems)}.")
    return topology


def _contradictions(topology: Topology) -> list[str]:
    problems = []
    lanes = [name for name, stream in topology.streams.items() if stream.each_lane]
    if len(lanes) != 1:
        problems.append(f"one stream has each_lane, not {' and '.join(lanes) or 'none'}")
    for name, account in topology.accounts.items():
        reserved = sum(stream.max_mib for stream in topology.of_account(name).values())
        if reserved > (account.disk_mib or 0):
            problems.append(f"{name} has {account.disk_mib} MiB, its streams want {reserved}")
        for exporter, subjects in account.imports.items():
            exports = topology.accounts[exporter].exports if exporter in topology.accounts else []
            problems += [
                f"{name} imports {subject}, which {exporter} does not export"
                for subject in subjects
                if not any(covers(export.subject, subject) for export in exports)
            ]
    for name, stream in topology.streams.items():
        if stream.account not in topology.accounts:
            problems.append(f"{name} belongs to {stream.account}, which is no account")
        if stream.max_mib < 1:
            problems.append(f"{name} is not bounded")
        if stream.allow_atomic and stream.persist == "async":
            problems.append(f"{name} cannot be both allow_atomic and persist: async")
        for consumer in (*stream.consumers.values(), *filter(None, [stream.each_lane])):
            if not any(covers(subject, consumer.filter) for subject in stream.subjects):
                problems.append(f"{name} holds no {consumer.filter}")
    return problems + _overlaps(topology)


def _overlaps(topology: Topology) -> list[str]:
    # The server would find them only when it has made the first of the two streams.
    return [
        f"{one} and {other} of {account} would both hold {subject}"
        for account in topology.accounts
        for (one, first), (other, second) in itertools.combinations(
            topology.of_account(account).items(), 2
        )
        for subject in first.subjects
        if any(overlap(subject, another) for another in second.subjects)
    ]


def overlap(one: str, other: str) -> bool:
    """Whether some subject fits both patterns."""
    first, second = one.split("."), other.split(".")
    for here, there in zip(first, second, strict=False):
        if ">" in (here, there):
            return True
        if "*" not in (here, there) and here != there:
            return False
    return len(first) == len(second)


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject` may stand for also fits `pattern`."""
    wide, narrow = pattern.split("."), subject.split(".")
    for position, part in enumerate(wide):
        if part == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">":
            return False
        if part not in ("*", narrow[position]):
            return False
    return len(wide) == len(narrow)


def lane_consumer(topology: Topology, lane: str) -> tuple[str, Consumer]:
    """The stream that wakes agents by lane, and the consumer that a lane has there."""
    ((name, template),) = (
        (name, stream.each_lane) for name, stream in topology.streams.items() if stream.each_lane
    )
    return name, msgspec.structs.replace(
        template,
        description=template.description.format(lane=lane),
        filter=template.filter.format(lane=lane),
    )


def stream_config(name: str, stream: Stream) -> Json:
    """A declared stream as the JetStream API says it; every field that matters is there."""
    return {
        "name": name,
        "description": stream.description,
        "subjects": stream.subjects,
        "retention": stream.retention,
        "storage": "file",
        "persist_mode": stream.persist,
        "compression": "none",
        "discard": stream.discard,
        "discard_new_per_subject": stream.discard_new_per_subject,
        "max_bytes": stream.max_mib * MIB,
        "max_age": stream.max_age_seconds * NANOSECONDS,
        "max_msgs": stream.max_messages,
        "max_msgs_per_subject": stream.max_messages_per_subject,
        "max_msg_size": stream.max_message_bytes,
        "max_consumers": -1,
        "deny_delete": stream.deny_delete,
        "deny_purge": stream.deny_purge,
        "allow_atomic": stream.allow_atomic,
        "allow_direct": stream.allow_direct,
        "allow_rollup_hdrs": stream.allow_rollup,
        "metadata": stream.metadata,
    }


def consumer_config(name: str, consumer: Consumer) -> Json:
    """A declared consumer as the JetStream API says it."""
    return {
        "name": name,
        "durable_name": name,
        "description": consumer.description,
        "filter_subject": consumer.filter,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "ack_wait": consumer.ack_wait_seconds * NANOSECONDS,
        "max_deliver": consumer.max_deliver,
        "max_ack_pending": consumer.max_ack_pending,
        "max_waiting": consumer.max_waiting,
        "metadata": consumer.metadata,
    }


# Comparing

# Where a server runs and how many copies it keeps is its operator's business, and the window for
# duplicates is of no use here, since nothing carries a Nats-Msg-Id.
_NOT_OURS = frozenset({"num_replicas", "placement", "duplicate_window"})
_ABSENT = {"persist_mode": "default", "compression": "none", "discard": "old"}
_BOUNDS = frozenset({"max_bytes", "max_age", "max_msgs", "max_msgs_per_subject", "max_msg_size"})
_SET_ONCE = frozenset({"deny_delete", "deny_purge"})
_FREE = frozenset({"description", "metadata", "allow_atomic", "allow_direct", "allow_rollup_hdrs"})
_FREE_OF_CONSUMERS = frozenset(
    {"description", "metadata", "ack_wait", "max_deliver", "max_ack_pending"}
)


def stream_differences(stream: Stream, found: Json, wanted: Json) -> list[Difference]:
    """Where a stream's configuration on the server is not as declared."""
    return [
        Difference(field, before, after, _may_change(stream, field, before, after))
        for field, before, after in _compare(found, wanted)
    ]


def consumer_differences(found: Json, wanted: Json) -> list[Difference]:
    """Where a consumer's configuration on the server is not as declared."""
    return [
        Difference(field, before, after, field in _FREE_OF_CONSUMERS)
        for field, before, after in _compare(found, wanted)
    ]


def _compare(found: Json, wanted: Json) -> list[tuple[str, Any, Any]]:
    differences = []
    for field, after in wanted.items():
        before = _normal(field, found.get(field, _ABSENT.get(field, type(after)())))
        if before != _normal(field, after):
            differences.append((field, before, _normal(field, after)))
    for field in sorted(found.keys() - wanted.keys() - _NOT_OURS):
        if found[field]:  # e.g. a republish, a mirror or a source that somebody added
            differences.append((field, found[field], None))
    return differences


def _normal(field: str, value: Any) -> Any:
    if field == "subjects":
        return sorted(value)
    if field == "metadata":  # the server adds its own version there (ADR-44 of NATS)
        return {key: text for key, text in value.items() if not key.startswith("_nats.")}
    return value


def _may_change(stream: Stream, field: str, found: Any, wanted: Any) -> bool:
    if field == "subjects":
        return set(found) <= set(wanted)
    if field in _BOUNDS:
        # Where the oldest makes room by declaration, a smaller bound does no more than that.
        return stream.discard == "old" or _room(wanted) >= _room(found)
    if field in _SET_ONCE:
        return bool(wanted)
    if field in ("discard", "discard_new_per_subject"):
        return wanted in ("new", True)
    return field in _FREE


def _room(bound: int) -> float:
    return bound if bound > 0 else float("inf")


# Making it so


class _Plan(msgspec.Struct):
    """What has to be asked of the server, in order, and what forbids it."""

    steps: list[tuple[Change, str, dict[str, object]]] = []
    problems: list[str] = []

    async def perform(self, api: Api) -> list[Change]:
        """Do all of it, or nothing where there are problems. Raises TopologyMismatch."""
        if self.problems:
            raise errors.TopologyMismatch("\n".join(self.problems))
        for change, endpoint, body in self.steps:
            await _ask(api, endpoint, body, change.name)
        return [change for change, _, _ in self.steps]


async def apply(api: Api, account: str, topology: Topology) -> list[Change]:
    """Make the streams and consumers of one account as declared; what was done for it.

    Nothing is changed when anything is refused. Streams that are not declared are left alone.

    Raises TopologyMismatch for differences that may not be migrated, Unavailable when JetStream
    does not answer.
    """
    plan = _Plan()
    for name, stream in topology.of_account(account).items():
        consumers = dict(stream.consumers)
        if await _plan_stream(api, plan, name, stream) and stream.each_lane:
            lanes = await _lanes(api, name)
            consumers |= {lane: lane_consumer(topology, lane)[1] for lane in lanes}
        for consumer, declared in consumers.items():
            await _plan_consumer(api, plan, name, consumer, declared)
    return await plan.perform(api)


async def has_stream(api: Api, name: str) -> bool:
    """Whether there is a stream of this name. Raises Unavailable."""
    return await _config(api, f"STREAM.INFO.{name}", STREAM_NOT_FOUND) is not None


async def ensure_lane(api: Api, topology: Topology, lane: str) -> Change | None:
    """Make sure that agents of a lane have a consumer to pull from; what was done for it.

    Raises Invalid for a name that is none, QuotaExceeded for one lane too many, and as `apply`.
    """
    if not _LANE.fullmatch(lane):
        raise errors.Invalid(
            f"{lane!r} is no lane: 1 to 32 letters, digits, _ and - are, as in cpu-16."
        )
    plan = _Plan()
    stream, consumer = lane_consumer(topology, lane)
    if not await _plan_consumer(api, plan, stream, lane, consumer):
        lanes = await _lanes(api, stream)
        if len(lanes) >= LANES_MAX:
            raise errors.QuotaExceeded(
                f"There are {LANES_MAX} lanes already, so {lane} cannot be added. Let the agent"
                f" join one of these: {', '.join(sorted(lanes))}."
            )
    return next(iter(await plan.perform(api)), None)


async def _plan_stream(api: Api, plan: _Plan, name: str, stream: Stream) -> bool:
    """Plan what a stream needs; whether it exists already."""
    wanted = stream_config(name, stream)
    found = await _config(api, f"STREAM.INFO.{name}", STREAM_NOT_FOUND)
    if found is None:
        plan.steps.append((Change(name, []), f"STREAM.CREATE.{name}", wanted))
        return False
    differences = stream_differences(stream, found, wanted)
    if differences:
        change = Change(name, [one.field for one in differences])
        # The window for duplicates, which may not outlast the messages, is set anew by the server.
        kept = {field: value for field, value in found.items() if field != "duplicate_window"}
        plan.steps.append((change, f"STREAM.UPDATE.{name}", {**kept, **wanted}))
        plan.problems += _refusal(f"stream {name}", differences, _way_out(name, stream))
    return True


async def _plan_consumer(api: Api, plan: _Plan, stream: str, name: str, consumer: Consumer) -> bool:
    """Plan what a consumer needs; whether it exists already."""
    wanted = consumer_config(name, consumer)
    endpoint = f"CONSUMER.CREATE.{stream}.{name}"
    found = await _config(
        api, f"CONSUMER.INFO.{stream}.{name}", CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
    )
    body: dict[str, object]
    if found is None:
        body = {"stream_name": stream, "action": "create", "config": wanted}
        plan.steps.append((Change(f"{stream}.{name}", []), endpoint, body))
        return False
    differences = consumer_differences(found, wanted)
    if differences:
        change = Change(f"{stream}.{name}", [one.field for one in differences])
        body = {"stream_name": stream, "action": "update", "config": {**found, **wanted}}
        plan.steps.append((change, endpoint, body))
        way_out = f"`nats consumer rm {stream} {name}` removes it; the next start makes it anew."
        plan.problems += _refusal(f"consumer {stream}.{name}", differences, way_out)
    return True


async def _lanes(api: Api, stream: str) -> list[str]:
    # At most LANES_MAX of them, so the first page is all.
    return list((await _ask(api, f"CONSUMER.NAMES.{stream}", {}, stream))["consumers"] or ())


async def _config(api: Api, endpoint: str, *not_found: int) -> Json | None:
    answer = await api(endpoint, {})
    if answer.get("error", {}).get("err_code") in not_found:
        return None
    _require_success(answer, endpoint)
    config: Json = answer["config"]
    return config


async def _ask(api: Api, endpoint: str, body: dict[str, object], name: str) -> Json:
    answer = await api(endpoint, body)
    _require_success(answer, name)
    return answer


def _require_success(answer: Json, what: str) -> None:
    error = answer.get("error")
    if not error:
        return
    words = error.get("description", error)
    if error.get("err_code") in NOT_READY:
        raise errors.Unavailable(f"JetStream does not answer for {what}: {words}. Try again later.")
    raise errors.TopologyMismatch(f"The server refuses {what} of streams.yaml: {words}.")


# Words


def _way_out(name: str, stream: Stream) -> str:
    if stream.holds_nothing_lasting:
        return (
            f"It holds nothing lasting: `nats stream rm {name}` removes it, and the next start"
            " makes it as declared."
        )
    return (
        "Start the version of Aghsan that made it, or put streams.yaml back. To move its messages"
        f" into a stream as declared: `nats stream backup {name} FOLDER`, and restore under a new"
        " configuration."
    )


def _refusal(what: str, differences: list[Difference], way_out: str) -> list[str]:
    """Nothing when all differences may be changed, else one text with those that may not."""
    stuck = [one for one in differences if not one.may_change]
    if not stuck:
        return []
    rows = [("field", "found", "wanted")]
    rows += [
        (one.field, _show(one.field, one.found), _show(one.field, one.wanted)) for one in stuck
    ]
    wide, wider = (max(len(row[column]) for row in rows) for column in (0, 1))
    table = [f"  {field:<{wide}}  {found:<{wider}}  {wanted}" for field, found, wanted in rows]
    head = f"The {what} is not as streams.yaml declares it, and may not be changed in place:"
    return ["\n".join([head, *table, way_out])]


def _show(field: str, value: Any) -> str:
    if value is None:
        return "nothing"
    if field in _BOUNDS and value <= 0:
        return "no bound"
    if field == "max_bytes":
        return f"{value / MIB:g} MiB"
    if field in ("max_age", "ack_wait"):
        return f"{value / NANOSECONDS:g} s"
    if field == "subjects":
        return " ".join(value)
    return str(value)
