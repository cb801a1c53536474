"""Workers cheat, each in a round beside an honest one: no cheat reigns, and the honest one does."""

import asyncio
import contextlib
import hashlib
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from agent import artifacts, tensors
from agent.link import Link
from agent.machine import Machine
from agent.specialists import base, registry
from core import bus, chunks, errors, wire
from core.chunks_jetstream import JetStreamChunks
from core.events import CandidateVerdict, Reasons, Token
from faults import forging, harness, parts
from faults.forging import Forged
from faults.harness import Delivered, Run, Told, Verdict
from faults.load import Load
from orchestrator import models

NAME = "cheats"
PARENT = "math-statistics"
LEASE_SECONDS = 120.0
BEAT_SECONDS = 1.0
DECIDED_SECONDS_MAX = 120.0
ASKED_SECONDS_MAX = 3.0
"""Of a subject that nobody answers, since whoever asks may not."""
SLOW_FROM = 2.5
"""Where denormal numbers cost less than so many times as much they are no cheat: 1.1 times 2 at
most is allowed a model of lower error. Some processors take no longer over them at all."""
LEARNED = 48
"""Cases that a model is taught by heart."""
WELL, BARELY = 1_000, 40
"""Steps of training: some seconds' worth, and a tenth of one."""
DEVICES = {"cheat": "cuda", "honest": "cpu"}
"""By which of them a task asks for, each gets its own."""


class Hand:
    """An agent made by hand: it trains nothing by itself, and speaks as agents do."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._beats: list[wire.TaskBeat] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def attached(cls, api: str, name: str) -> AsyncIterator["Hand"]:
        machine = Machine(
            hostname="h", device=DEVICES[name], devices=1, memory_gb=16.0, cores=1, system="s"
        )
        link = await Link.join(
            api,
            name,
            machine,
            direct=True,
            on_notice=lambda _: None,
            on_reconnect=lambda: None,
            on_closed=lambda _: None,
        )
        await link.hello(machine, [])
        hand = cls(link)
        beating = asyncio.create_task(hand._beat())
        try:
            yield hand
        finally:
            beating.cancel()
            await link.close()

    async def _beat(self) -> None:
        while True:
            beat = wire.Beat(
                worker_id=self.link.worker_id, session=self.link.session, tasks=self._beats
            )
            await self.link.beat(beat)
            await asyncio.sleep(BEAT_SECONDS)

    async def claim(self) -> Token:
        """The task that is there for it."""
        while True:
            pulled = await self.link.pull()
            if pulled is None:
                continue
            assignment = await self.link.claim(uuid.uuid4().hex, pulled.seq)
            await self.link.acknowledge(pulled)
            if assignment is not None:
                token = assignment.token
                self._beats = [wire.TaskBeat(task_id=token.task_id, attempt=token.attempt)]
                return token

    async def store(self, token: Token, forged: Forged) -> wire.BroughtCandidate:
        """Its files in the artifact store, as a candidate of an evolver or a reinventor."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / models.WEIGHTS_FILE).write_bytes(forged.weights)
            (folder / models.CONFIG_FILE).write_bytes(forged.config)
            packed = artifacts.pack(folder, "candidate", self.link.token)
            manifest = await self.link.upload(token, packed.manifest, packed.pieces)
            try:
                digest = tensors.weights_sha256_of_file(folder / models.WEIGHTS_FILE)
            except errors.ArtifactError:  # no weights at all: any digest will do
                digest = hashlib.sha256(forged.weights).hexdigest()
        return wire.BroughtCandidate(
            rival=RIVALS[self.link.worker_id],
            manifest=manifest,
            weights_sha256=digest,
            claims=forged.claims,
        )

    async def complete(self, token: Token, brought: wire.BroughtCandidate) -> None:
        """Raises as the desk refuses."""
        metrics = {"mark": token.claim_id, **brought.claims}
        await self.link.complete(
            wire.CompleteRequest(token=token, metrics=metrics, candidates=[brought])
        )


RIVALS: dict[str, Any] = {"cheat": "evolver", "honest": "reinventor"}


class Held(NamedTuple):
    """A round that both have entered."""

    node_id: str
    cheat: Token
    honest: Token


class Scene:
    """The control plane with its judge, a cheat, and somebody honest."""

    def __init__(
        self, control: parts.Control, load: Load, cheat: Hand, honest: Hand, desk: bus.Bus
    ) -> None:
        self.control = control
        self.cheat = cheat
        self.honest = honest
        self.store = JetStreamChunks(desk)
        self.told: list[Told] = []
        self.delivered: list[Delivered] = []
        self._load = load

    async def ask(self, method: str, path: str, body: Any = None, key: str = "") -> dict[str, Any]:
        return await self._load.ask(method, path, body, key)

    async def node(self, name: str) -> str:
        """A node without a champion, that trains what its parent does."""
        asked = {"parent_id": PARENT, "name": name}
        return str((await self.ask("POST", "/graph/expand", asked))["node"]["node_id"])

    async def claimed(self, node_id: str, who: Hand) -> Token:
        """A task that only this one can be given, in its hands."""
        name, key = who.link.worker_id, uuid.uuid4().hex
        body = {
            "topic": f"{name} at {node_id}",
            "node_id": node_id,
            "role": RIVALS[name],
            "requires": {"device": DEVICES[name]},
        }
        task = (await self.ask("POST", "/training/enqueue", body, key))["task"]
        self.told.append(Told(key, task["task_id"], body["topic"]))
        return await who.claim()

    async def held(self, node_id: str) -> Held:
        """Both in one round."""
        first = await self.claimed(node_id, self.cheat)
        return Held(node_id, first, await self.claimed(node_id, self.honest))

    async def bring(self, who: Hand, token: Token, forged: Forged) -> None:
        """Deliver a model. Raises as the desk refuses."""
        await who.complete(token, await who.store(token, forged))
        self.delivered.append(Delivered(token.task_id, who.link.worker_id, token.claim_id))

    async def decided(self, token: Token) -> dict[str, Any]:
        """The round that a task stood in, once it is decided."""
        round_id = (await self.ask("GET", f"/tasks/{token.task_id}"))["task"]["round_id"]

        async def found() -> dict[str, Any] | None:
            row: dict[str, Any] = (await self.ask("GET", f"/rounds/{round_id}"))["round"]
            return row if row["status"] == "decided" else None

        row = await harness.until(found, f"{round_id} decided", DECIDED_SECONDS_MAX)
        assert row is not None
        return row

    async def crown(self, node_id: str, forged: Forged) -> dict[str, Any]:
        """An honest champion, by a round of its own; that round."""
        held = await self.held(node_id)
        await self.ask("POST", f"/tasks/{held.cheat.task_id}/cancel", {"reason": "no rival"})
        await self.bring(self.honest, held.honest, forged)
        row = await self.decided(held.honest)
        if row["verdict"] != "promote":
            raise AssertionError(f"an honest first model does not reign: {row}")
        return row


class Outcome(NamedTuple):
    """What came of a cheat: where it was stopped, and why, as it was told."""

    stopped: str
    reason: str


async def model(config: base.Config, steps: int, node_id: str, seed: int = 0) -> Forged:
    """Trained as agents do, and measured on the node's validation cases."""

    def make() -> Forged:
        torch.set_num_threads(1)
        module = forging.trained(config, steps, seed)
        return forging.honest(module, config, forging.validation(node_id))

    return await asyncio.to_thread(make)


async def tuned(config: base.Config, steps: int, cases: base.Cases) -> Forged:
    """Trained on these cases and no others, and measured on them."""
    few = {name: each[:LEARNED] for name, each in cases.items()}

    def make() -> Forged:
        torch.set_num_threads(1)
        module = forging.trained(config, steps, 1, forging.over_and_over(few, LEARNED))
        return forging.honest(module, config, few)

    return await asyncio.to_thread(make)


# ── the cheats: each leaves its candidate in a round, or raises as it was refused ──

Cheat = Callable[[Scene, Held, Path], Awaitable[None]]


async def invented(scene: Scene, held: Held, _: Path) -> None:
    """A model that was hardly trained claims that it makes no error."""
    forged = await model(forging.sets(64), 1, held.node_id)
    claims = {"loss": 0.0, "evidence_rate": 1.0}
    await scene.bring(scene.cheat, held.cheat, forged._replace(claims=claims))


async def memorised(scene: Scene, held: Held, _: Path) -> None:
    """A model learned some of the public validation cases by heart, and no others."""
    forged = await tuned(forging.sets(64), WELL, forging.validation(held.node_id))
    await scene.bring(scene.cheat, held.cheat, forged)


async def foreign(scene: Scene, held: Held, _: Path) -> None:
    """The weights of another node."""
    await scene.bring(scene.cheat, held.cheat, forging.of_another_node(1))


async def nan(scene: Scene, held: Held, _: Path) -> None:
    """A good model with one number that is none."""
    good = await model(forging.SMALL, BARELY, held.node_id)
    await scene.bring(scene.cheat, held.cheat, forging.spoilt(good, float("nan")))


async def infinite(scene: Scene, held: Held, _: Path) -> None:
    """A good model with one infinite number."""
    good = await model(forging.SMALL, BARELY, held.node_id)
    await scene.bring(scene.cheat, held.cheat, forging.spoilt(good, float("inf")))


async def disguised(scene: Scene, held: Held, folder: Path) -> None:
    """Code in place of weights, under their name."""
    good = await model(forging.SMALL, BARELY, held.node_id)
    marker = folder / "unpickled"
    await scene.bring(scene.cheat, held.cheat, forging.pickled(good, str(marker)))


async def of_an_old_seed(scene: Scene, held: Held, _: Path) -> None:
    """A model tuned to the hidden cases of an earlier round, whose secret is revealed."""
    rounds = (await scene.ask("GET", f"/rounds?node_id={held.node_id}&status=decided"))["rounds"]
    old = (await scene.ask("GET", f"/rounds/{rounds[0]['round_id']}"))["round"]
    cases = forging.old_cases(bytes.fromhex(old["secret"]), held.node_id, old["round_id"])
    await scene.bring(scene.cheat, held.cheat, await tuned(forging.sets(64), WELL, cases))


async def huge(scene: Scene, held: Held, _: Path) -> None:
    """A model of lower loss than any other here, and many times as large."""
    await scene.bring(scene.cheat, held.cheat, await model(forging.sets(160), WELL, held.node_id))


async def slow(scene: Scene, held: Held, _: Path) -> None:
    """A good model, most of whose units compute with denormal numbers, for nothing."""

    def make() -> tuple[Forged, float]:
        torch.set_num_threads(1)
        live = forging.trained(forging.sets(forging.LIVE), WELL, 2)
        module = forging.denormal(live, 64)
        cases = forging.validation(held.node_id)
        usual = forging.trained(forging.sets(64), 1, 2)
        return forging.honest(module, forging.sets(64), cases), _slower(module, usual)

    forged, slower = await asyncio.to_thread(make)
    await scene.bring(scene.cheat, held.cheat, forged)
    if slower < SLOW_FROM:
        raise Harmless(f"denormal numbers take × {slower:.2f} on this processor")


class Harmless(Exception):
    """What was tried is no cheat on this machine."""


def _slower(module: torch.nn.Module, usual: torch.nn.Module) -> float:
    """How much longer an answer takes: 20 % quantiles, in turns."""
    probe = registry.get(forging.SPECIALIST).probe()
    taken: dict[torch.nn.Module, list[float]] = {module: [], usual: []}
    for _ in range(300):
        for one, times in taken.items():
            began = time.perf_counter()
            one(*probe)
            times.append(time.perf_counter() - began)
    low = [sorted(times)[len(times) // 5] for times in taken.values()]
    return low[0] / low[1]


async def replayed(scene: Scene, held: Held, _: Path) -> None:
    """The manifest of a champion that was, as its worker stored it."""
    former = await _former(scene, held.node_id)
    manifest = chunks.decode_manifest(await scene.store.get(chunks.DESK, former["manifest"]))
    brought = wire.BroughtCandidate(
        rival="evolver", manifest=manifest, weights_sha256=former["weights_sha256"]
    )
    await scene.cheat.complete(held.cheat, brought)


async def copied(scene: Scene, held: Held, _: Path) -> None:
    """The files of a champion that was, as one's own."""
    former = await _former(scene, held.node_id)
    files = await models.fetch(scene.store, former["manifest"])
    forged = Forged(files.weights, files.config, {"loss": 0.0, "evidence_rate": 1.0})
    await scene.bring(scene.cheat, held.cheat, forged)


async def _former(scene: Scene, node_id: str) -> dict[str, Any]:
    """The champion that another has replaced."""
    lineage = (await scene.ask("GET", f"/nodes/{node_id}"))["node"]["lineage"]
    task = (await scene.ask("GET", f"/tasks/{lineage[0]['task_id']}"))["task"]
    found: dict[str, Any] = task["candidates"][0]
    return found


async def without_token(scene: Scene, held: Held, _: Path) -> None:
    """A candidate under a token that was given back, under a made-up one, and under another's; then
    the same with a judge's credentials, and a judge's word for it."""
    good = await model(forging.SMALL, BARELY, held.node_id)
    brought = await scene.cheat.store(held.cheat, good)
    await scene.cheat.link.release(held.cheat, "it has what it wants")
    made_up = Token(task_id=held.cheat.task_id, attempt=1, claim_id=uuid.uuid4().hex)
    told = []
    for token in (held.cheat, made_up, held.honest):
        try:
            await scene.cheat.complete(token, brought)
        except errors.AghsanError as error:
            told.append(f"{type(error).__name__}: {error}")
        else:
            raise AssertionError(f"a completion under {token} was taken")
    told += await _as_a_judge(scene, held, brought)
    raise errors.StaleAttempt("; ".join(told))


async def _as_a_judge(scene: Scene, held: Held, brought: wire.BroughtCandidate) -> list[str]:
    """What a judge's credentials are told who brings a candidate, and who promotes one."""
    told = []
    row = (await scene.ask("GET", f"/tasks/{held.honest.task_id}"))["task"]
    because = Reasons(ar="لأن", en="because")
    said = CandidateVerdict(candidate_id="cand-mine", verdict="better", reasons=because, error=0.0)
    request = wire.CompleteRequest(
        session=scene.cheat.link.session, token=held.cheat, metrics={}, candidates=[brought]
    )
    verdict: wire.JudgeRequest = wire.Verdict(
        round_id=row["round_id"],
        judge="judge",
        verdict="promote",
        secret="00" * 32,
        reasons=because,
        candidates=[said],
        promoted="cand-mine",
        baseline_error=1.0,
    )
    asked = (
        (f"fleet.{scene.cheat.link.token}.complete", msgspec.json.encode(request)),
        ("cmd.judge", msgspec.json.encode(verdict)),
    )
    async with scene.control.nats.connect("judge") as connection:
        for subject, body in asked:
            try:
                raw = await connection.request(subject, body, ASKED_SECONDS_MAX)
                wire.decode(raw, wire.Done)
            except errors.AghsanError as error:
                told.append(f"{subject}: {type(error).__name__}: {error}")
            else:
                raise AssertionError(f"{subject} takes what a judge's credentials bring")
    return told


# ── the suite ──


class Case(NamedTuple):
    """A cheat, and how often an honest model was crowned at its node before."""

    cheat: Cheat
    champions: int = 0
    honest: base.Config = forging.SMALL

    @property
    def name(self) -> str:
        return self.cheat.__name__.replace("_", " ")


CASES = (
    Case(invented),
    Case(nan),
    Case(disguised),
    Case(without_token),
    Case(foreign),
    Case(infinite),
    Case(memorised),
    Case(of_an_old_seed, champions=2),
    Case(replayed, champions=2),
    Case(copied, champions=2),
    Case(huge, champions=1, honest=forging.sets(8)),
    Case(slow, champions=1, honest=forging.sets(8)),
)
QUICK = 4
CHAMPIONS = ((forging.sets(64), BARELY), (forging.SMALL, BARELY * 4))
"""Who is crowned before: hardly trained, and better."""


async def attempt(scene: Scene, case: Case, folder: Path, verdict: Verdict) -> None:
    """One cheat beside one honest model, and what came of both."""
    node_id = await scene.node(case.name)
    for config, steps in CHAMPIONS[: case.champions]:
        await scene.crown(node_id, await model(config, steps, node_id))
    held = await scene.held(node_id)
    refusal = harmless = ""
    try:
        await case.cheat(scene, held, folder)
    except errors.AghsanError as error:
        refusal = str(error)
        await scene.ask("POST", f"/tasks/{held.cheat.task_id}/cancel", {"reason": "refused"})
    except Harmless as error:
        harmless = str(error)
    await scene.bring(scene.honest, held.honest, await model(case.honest, WELL, node_id, 3))
    row = await scene.decided(held.honest)
    outcome = _outcome(row, refusal)
    doc = " ".join((case.cheat.__doc__ or "").split())
    print(f"{NAME}: {case.name}: {doc}\n  {outcome.stopped}: {outcome.reason}", flush=True)
    if harmless:
        verdict.notes.append(f"{case.name}: no cheat here, since {harmless}")
    else:
        verdict.wrong += [f"{case.name}: {words}" for words in _wrong(row, outcome)]
    if (folder / "unpickled").exists():
        verdict.wrong.append(f"{case.name}: what was pickled ran")


def _of(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = next(
        (one for one in row["candidates"] if one["worker_id"] == name), None
    )
    return found


def _outcome(row: dict[str, Any], refusal: str) -> Outcome:
    if refusal:
        return Outcome("refused by the desk", refusal)
    cheat = _of(row, "cheat")
    if cheat is None:
        return Outcome("not in the round", "")
    return Outcome(f"judged ({cheat['verdict']})", cheat["reasons"]["en"])


def _wrong(row: dict[str, Any], outcome: Outcome) -> list[str]:
    wrong = []
    cheat, honest = _of(row, "cheat"), _of(row, "honest")
    if cheat is not None and cheat["verdict"] in ("better", "cheaper"):
        wrong.append(f"it reigns: {outcome.reason}")
    if not outcome.reason or (cheat is not None and not cheat["reasons"]["ar"]):
        wrong.append(f"no reason is given: {outcome}")
    if honest is None or honest["verdict"] not in ("better", "cheaper"):
        wrong.append(f"the honest model beside it does not reign: {honest}")
    return wrong


async def attack(run: Run) -> Verdict:
    """Try each cheat; the quick form has the first four."""
    cases = CASES[: run.tries(QUICK, len(CASES), len(CASES))]
    verdict = Verdict(NAME, len(cases))
    with harness.folder_of(verdict) as folder:
        await _attack(verdict, folder, cases)
    return verdict


async def _attack(verdict: Verdict, folder: Path, cases: tuple[Case, ...]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(parts.control(folder, LEASE_SECONDS))
        judging = await stack.enter_async_context(_judge(control))
        await judging.hear_until("judging for ")
        load = await stack.enter_async_context(contextlib.aclosing(Load(control.http)))
        desk = await stack.enter_async_context(control.nats.connect("desk"))
        hands = [
            await stack.enter_async_context(Hand.attached(control.http, name)) for name in DEVICES
        ]
        scene = Scene(control, load, hands[0], hands[1], desk)
        for case in cases:
            await attempt(scene, case, folder, verdict)
        claims = (await scene.ask("GET", "/workers/honest"))["worker"]["claims"]
        if claims["doubtful"]:
            verdict.wrong.append(f"the honest worker is doubted: {claims}")
        told = (await scene.ask("GET", "/workers/cheat"))["worker"]["claims"]
        verdict.notes.append(f"of the cheat's claims {told['off']} of {told['judged']} were off")
    await harness.check_directory(verdict, scene.told, folder / "data", scene.delivered)


def _judge(control: parts.Control) -> contextlib.AbstractAsyncContextManager[parts.Part]:
    creds = control.nats.data / "creds"
    return parts.running(
        "cli.main",
        *("judge", "--nats", control.nats.url, "--key", str(control.folder / "judge.key")),
        *("--creds", str(creds / "judge.creds")),
        *("--fleet-creds", str(creds / "judge-fleet.creds")),
        log=control.folder / "judge.log",
    )
