"""The stored log of a stopped server is damaged, at random: the audit sees it every time, and no
server is started on what it would cut off.

Hundreds of audits are made in this process, by the code of `aghsan audit` on what lies in the
blocks; now and then the command itself, with the server it starts, has to see the same.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import audit, blocks, errors, highwayhash, replay, seals
from core.accounts import Authority
from core.blocks import StoredRecord
from core.log import Record, Stored
from core.log_memory import MemoryLog
from faults import harness, parts
from faults.harness import Run, Told, Verdict
from faults.load import Load
from tests.acceptance.stack import aghsan

NAME = "damage"
STREAM = "EVENTS"
LEASE_SECONDS = 30.0
ENDED_SECONDS_MAX = 60.0
RESULTS = 5
NOTES = (seals.HEAD_FILE, seals.ANCHOR_FILE)
MISPLACED = ("not end where it is said to", "not end where they are said to")
"""What checksums do not cover: a server reads such a record, and what follows it, all the same."""


class Place(NamedTuple):
    """Where the parts of a stored record begin, in their order, and where the next record does."""

    parts: dict[str, int]
    end: int

    def seq_in(self, block: bytes | bytearray) -> int:
        """The sequence of the record."""
        return int.from_bytes(bytes(block[one] for one in self.bytes_of("sequence")), "little")

    def bytes_of(self, part: str) -> range:
        """The bytes of a part."""
        following = [start for start in self.parts.values() if start > self.parts[part]]
        return range(self.parts[part], min(following, default=self.end))


def places(block: bytes | bytearray) -> list[Place]:
    """Where everything lies in a sound block, by the format that `core.blocks` tells of."""
    found = []
    start = 0
    while start < len(block):
        length = int.from_bytes(block[start : start + 4], "little")
        end = start + (length & 0x7FFFFFFF)
        subject_end = start + 22 + int.from_bytes(block[start + 20 : start + 22], "little")
        named = {
            "length": start,
            "sequence": start + 4,
            "time": start + 12,
            "subject length": start + 20,
            "subject": start + 22,
        }
        payload = subject_end
        if length >> 31:
            named |= {"header length": subject_end, "headers": subject_end + 4}
            payload += 4 + int.from_bytes(block[subject_end : subject_end + 4], "little")
        found.append(Place({**named, "payload": payload, "checksum": end - 8}, end))
        start = end
    return found


class BlockLog(MemoryLog):
    """What blocks hold, as a log that can be read."""

    def __init__(self, records: list[StoredRecord]) -> None:
        super().__init__()
        self._stored = records

    async def last_seq(self) -> int:
        return max((one.seq for one in self._stored), default=0)

    async def get(self, seq: int) -> Record | None:
        found = (
            Record(one.seq, one.subject, one.payload) for one in self._stored if one.seq == seq
        )
        return next(found, None)

    async def read_stored(
        self, start: int = 1, stop: int | None = None
    ) -> AsyncIterator[list[Stored]]:
        if self._stored:
            yield [
                Stored(one.seq, one.subject, one.payload, one.at_ns, one.headers)
                for one in self._stored
            ]


@dataclass
class Directory:
    """A data directory at rest, its files that are damaged, and how they were before."""

    data: Path
    folder: Path
    before: dict[Path, bytes]
    records: list[StoredRecord]

    @classmethod
    def open(cls, data: Path) -> "Directory":
        authority = Authority.load_or_create(data / "keys")
        folder = replay.streams_of(data, authority, "CONTROL") / STREAM / "msgs"
        files = [*folder.glob("*.blk"), folder / "index.db", *(data / one for one in NOTES)]
        before = {path: path.read_bytes() for path in files}
        return cls(data, folder, before, list(blocks.read(folder, STREAM)))

    @property
    def blocks(self) -> list[Path]:
        return sorted(path for path in self.before if path.suffix == ".blk" and self.before[path])

    def restore(self) -> None:
        for path, content in self.before.items():
            path.write_bytes(content)

    async def audit(self) -> tuple[list[str], bool]:
        """What an audit finds in it as it lies there, and whether every record, `head` and anchor
        say what they did before."""
        reading = blocks.read(self.folder, STREAM)
        records = list(reading)
        log = BlockLog(records)
        losses = await seals.find_losses(log, self.data)
        auditor = await audit.read_log(log, reading)
        found = [f"{one.rule} at {one.seq}" for one in auditor.findings.shown]
        found += [f"head at {seq}" for seq, _ in losses]
        found += [f"head: {one}" for one in await seals.find_unreadable(log, self.data)]
        return found, records == self.records and self._notes() == self._notes_before()

    def start(self) -> tuple[bool, str]:
        """Whether a start is refused as it lies there, and what is wrong with that: a start that is
        refused changes nothing, one that is not starts a server that can read all of it."""
        before = self._content()
        try:
            replay.prepare_start(self.data, Authority.load_or_create(self.data / "keys"))
        except errors.LogDamaged:
            return True, "" if self._content() == before else "a start that is refused changes it"
        reading = blocks.read(self.folder, STREAM)
        cut = [one.what for one in reading.finish() if not one.what.endswith(MISPLACED)]
        return False, f"a server is started on {cut[0]!r}" if cut else ""

    def _content(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.before if path.exists()}

    def _notes(self) -> list[object]:
        return [_said_by((self.data / one).read_bytes()) for one in NOTES]

    def _notes_before(self) -> list[object]:
        return [_said_by(self.before[self.data / one]) for one in NOTES]


def _said_by(note: bytes) -> object:
    """What a note says that an audit goes by: all but when it was written."""
    try:
        said = json.loads(note)
    except ValueError:
        return note
    return {name: value for name, value in said.items() if name != "at"}


Damage = Callable[[Directory, random.Random], str]
"""Damages a directory; in words where."""


def flip_a_bit(directory: Directory, choices: random.Random) -> str:
    """One bit of a record: a record first, then one of its parts, so that small ones come too."""
    path = choices.choice(directory.blocks)
    block = bytearray(path.read_bytes())
    place = choices.choice(places(block))
    part = choices.choice(list(place.parts))
    offset = choices.choice(place.bytes_of(part))
    block[offset] ^= 1 << choices.randrange(8)
    path.write_bytes(block)
    return f"a bit of the {part}"


def cut(directory: Directory, choices: random.Random) -> str:
    """The end of the log, from somewhere on; half of the time between two records."""
    path = choices.choice(directory.blocks)
    block = path.read_bytes()
    whole = choices.random() < 0.5
    size = choices.choice([0, *(one.end for one in places(block)[:-1])]) if whole else 0
    path.write_bytes(block[: size if whole else choices.randrange(len(block))])
    for later in directory.blocks:
        if int(later.stem) > int(path.stem):
            later.unlink()
    (directory.folder / "index.db").unlink()
    return "the end, between records" if whole else "the end, inside a record"


def blank(directory: Directory, choices: random.Random) -> str:
    """A stretch of a block, by zeros or noise, as a bad sector leaves it."""
    path = choices.choice(directory.blocks)
    block = bytearray(path.read_bytes())
    size = choices.choice((1, 16, 512, 4096))
    start = choices.randrange(len(block))
    was = bytes(block[start : start + size])
    block[start : start + size] = choices.choice((bytes(len(was)), choices.randbytes(len(was))))
    path.write_bytes(block)
    return "nothing, by chance" if block[start : start + size] == was else "a stretch"


def forge(directory: Directory, choices: random.Random) -> str:
    """A record, with a checksum that is right: only seals can tell, of what they cover."""
    sealed = json.loads(directory.before[directory.data / seals.ANCHOR_FILE])["last"]
    found = [
        (path, place)
        for path in directory.blocks
        for place in places(directory.before[path])
        if place.seq_in(directory.before[path]) <= sealed
    ]
    path, place = choices.choice(found)
    block = bytearray(path.read_bytes())
    part = choices.choice([one for one in ("time", "headers", "payload") if one in place.parts])
    span = place.bytes_of(part)
    # The first byte of a time, letters of the others: what is left is a record like any other.
    letters = [at for at in span if chr(block[at]).isascii() and chr(block[at]).isalnum()]
    at = span.start if part == "time" else choices.choice(letters)
    block[at] ^= 1
    hashed = [one for one in place.parts if "length" not in one and one != "checksum"]
    content = b"".join(bytes(block[one] for one in place.bytes_of(part)) for part in hashed)
    block[place.parts["checksum"] : place.end] = checksum(int(path.stem), content)
    path.write_bytes(block)
    return f"the {part}, forged"


def checksum(block: int, content: bytes) -> bytes:
    """The checksum of a record of this block, over all its parts but the lengths."""
    key = hashlib.sha256(f"{STREAM}-{block}".encode()).digest()
    (found,) = highwayhash.hash_pieces(key, content, np.array([0]), np.array([len(content)]))
    return int(found).to_bytes(8, "little")


def flip_in_head(directory: Directory, choices: random.Random) -> str:
    return _flip_in(directory.data / seals.HEAD_FILE, choices, "head")


def cut_head(directory: Directory, choices: random.Random) -> str:
    """Of an empty `head` nothing can be said: as after a power cut, it was never written."""
    path = directory.data / seals.HEAD_FILE
    content = path.read_bytes()
    path.write_bytes(content[: choices.randrange(1, len(content))])
    return "the end of head"


def flip_in_anchor(directory: Directory, choices: random.Random) -> str:
    return _flip_in(directory.data / seals.ANCHOR_FILE, choices, "the anchor")


def flip_in_index(directory: Directory, choices: random.Random) -> str:
    return _flip_in(directory.folder / "index.db", choices, "the index")


def _flip_in(path: Path, choices: random.Random, what: str) -> str:
    content = bytearray(path.read_bytes())
    content[choices.randrange(len(content))] ^= 1 << choices.randrange(8)
    path.write_bytes(content)
    return f"a bit of {what}"


KINDS: tuple[tuple[Damage, int], ...] = (
    (flip_a_bit, 10),
    (cut, 3),
    (blank, 2),
    (forge, 4),
    (flip_in_head, 2),
    (cut_head, 1),
    (flip_in_anchor, 2),
    (flip_in_index, 2),
)
"""Ways of damage, and how often each comes."""


async def attack(run: Run) -> Verdict:
    """Write a log as it is written every day, stop, then damage a copy of it again and again; in
    the longer forms a log of several blocks too."""
    verdict = Verdict(NAME, run.tries(40, 400, 4000))
    choices = run.random(NAME)
    commands = run.tries(1, 20, 100)
    logs = [(40, 1.0)] if run.quick else [(80, 0.9), (400, 0.1)]
    with harness.folder_of(verdict) as folder:
        for number, (tasks, share) in enumerate(logs):
            part = folder / str(number)
            part.mkdir()
            told = await _write(part, tasks, letters=15_000 if number else 10)
            shutil.copytree(part / "data", part / "damaged")
            await harness.check_directory(verdict, told, part / "data")
            directory = Directory.open(part / "damaged")
            tries, every = round(verdict.tries * share), verdict.tries // commands
            await _damage(verdict, directory, choices, tries, every)
    return verdict


async def _damage(
    verdict: Verdict,
    directory: Directory,
    choices: random.Random,
    tries: int,
    command_every: int,
) -> None:
    """Damage one log so often; the command has to agree on the first, and now and then."""
    if (clean := await directory.audit()) != ([], True):
        verdict.wrong.append(f"the audit of what is not damaged finds {clean[0]}")
    detected: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    refused = 0
    damages, weights = zip(*KINDS, strict=True)
    for number in range(tries):
        (damage,) = choices.choices(damages, weights)
        where = damage(directory, choices)
        found, same = await directory.audit()
        if found:
            detected[where] += 1
        elif same:
            harmless[where] += 1
        else:
            verdict.wrong.append(f"try {number}: damage to {where} is not seen")
        is_refused, wrong = directory.start()
        refused += is_refused
        if wrong:
            verdict.wrong.append(f"try {number}: {wrong}, after damage to {where}")
        if number % command_every == 0 and not await _command_agrees(directory, bool(found)):
            verdict.wrong.append(f"try {number}: `aghsan audit` differs on {where}: {found}")
        directory.restore()
    for name, counted in (("detected", detected), ("harmless", harmless)):
        listed = ", ".join(f"{where} {count}" for where, count in sorted(counted.items()))
        log = f"{len(directory.records)} records in {len(directory.blocks)} blocks"
        verdict.notes.append(f"{log}: {counted.total()} {name}: {listed or 'none'}")
    verdict.notes.append(f"{log}: {refused} starts refused")


async def _command_agrees(directory: Directory, is_damaged: bool) -> bool:
    ran = await asyncio.to_thread(aghsan, "audit", "--data", directory.data, "--json")
    return ran.returncode == is_damaged and bool(ran.stdout)


async def _write(folder: Path, tasks: int, letters: int) -> list[Told]:
    """Two lives of a control process, with single appends, batches, results and checkpoints. The
    second ends by a kill, so that the end of the log is not sealed, and `head` alone knows it."""
    return [
        *await _live(folder, "first", tasks // 2, letters),
        *await _live(folder, "second", tasks // 2, letters, killed=True),
    ]


async def _live(
    folder: Path, life: str, tasks: int, letters: int, *, killed: bool = False
) -> list[Told]:
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(parts.control(folder, LEASE_SECONDS))
        load = await stack.enter_async_context(contextlib.aclosing(Load(control.http)))
        log = folder / f"{life}.log"
        holder = await stack.enter_async_context(
            parts.running("faults.holding", control.http, life, log=log)
        )
        keys = [f"{life}/{number}" for number in range(tasks)]
        asked = (
            load.ask("POST", "/training/enqueue", {"topic": f"{key} {'م' * letters}"}, key)
            for key in keys
        )
        answers = [answer["task"] for answer in await asyncio.gather(*asked)]
        await holder.hear_of("claimed")
        await holder.tell("go")
        await holder.hear_of("completed")
        worker = asyncio.create_task(load.work(f"{life} worker", 0.01, random.Random(life)))

        async def have_come() -> bool:
            return len(load.delivered) >= RESULTS

        await harness.until(have_come, "results", ENDED_SECONDS_MAX)
        worker.cancel()
        if killed:
            control.gateway.send(signal.SIGKILL)
    return [
        Told(key, task["task_id"], task["topic"]) for key, task in zip(keys, answers, strict=True)
    ]
