"""The judge: measures candidates on hidden cases and sends the verdict.

A round's secret is HMAC-SHA256(key, index): any judge with the key file can judge any round, and a
revealed secret reveals no other. Hidden cases are drawn from the secret, so that nobody without the
key could train on them before the verdict, and everybody can draw them again after it.

Given the secret, the stored weights and the environment that a verdict records, `measure` is a pure
function: `orchestrator.rejudge` repeats it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import math
import platform
import secrets
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
import torch

from agent import artifacts, checkpoints, tensors
from agent.specialists import base, forms, registry
from core import bus, chunks, corpora, errors, events, platforms, wire, workloads
from core.events import CandidateVerdict, Reasons
from orchestrator import bounds, gate, rulings

log = logging.getLogger(__name__)

KEY_BYTES = 32
LOST_KEY = "`aghsan judge --new-key` (`aghsan up --new-judge-key`)"
RULES = "2"
"""By which rules is judged: raised with each change that gives other figures for the same cases, so
that nobody takes those of other rules for wrong ones."""
HIDDEN_CASES = 2_048
POOL_LEAST = 8
CASES_AT_ONCE = 256
"""Cases evaluated together: bounds memory, and how long a stop waits."""
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CONFIG_BYTES_MAX = 64 * 1024

COMMITMENTS_MIN = 64
COMMITMENTS_KEPT = 128
DEPOSIT_MAX = 64
LANE = "cpu"
PULL_SECONDS = 5.0
PROGRESS_SECONDS = 5.0
REQUEST_SECONDS = 10.0
RETRY_SECONDS = 1.0
AGAIN_SECONDS = 30.0
TAKES_MAX = 5
DELIVERIES_MAX = 5
"""After so many offers of a round that this judge trips over, it is decided as far as it can be."""
PULL_EXPIRED = "408"

T = TypeVar("T")


# ── key, secrets and seeds ──


def load_key(path: Path, deposited: int = 0) -> bytes:
    """The judges' key, made where nothing was committed to yet; the file is its owner's alone.

    `deposited` counts the commitments of the log that some key has to open. Raises
    errors.DataDirectoryError when that key is missing, or something else is in its place.
    """
    if not path.exists():
        if deposited:
            raise errors.DataDirectoryError(
                f"the judge's key {path} is missing, and {deposited} commitments were made with "
                f"it, so no new one is made; restore it from a backup, or, if it is lost for good, "
                f"start once with {LOST_KEY}: the rounds that only it could judge then end void"
            )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        platforms.write_atomically(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
    try:
        key = path.read_bytes()
    except OSError as error:
        raise errors.DataDirectoryError(
            f"the judge's key {path} cannot be read: {error}"
        ) from error
    if len(key) != KEY_BYTES:
        raise errors.DataDirectoryError(
            f"the judge's key {path} has {len(key)} bytes, not {KEY_BYTES}; restore it from a "
            "backup: rounds committed to with another key cannot be judged"
        )
    return key


def secret_of(key: bytes, index: int) -> bytes:
    """The secret of the round that took commitment `index`."""
    return hmac.digest(key, index.to_bytes(8, "big"), "sha256")


def commitment_to(secret: bytes) -> str:
    """What is published of a secret before its round: hex SHA-256."""
    return hashlib.sha256(secret).hexdigest()


def seed_of(secret: bytes, label: str, node_id: str, round_id: str) -> int:
    """A 63-bit seed for one use ("rank", "gate") of a round's secret."""
    message = "\x1f".join((label, node_id, round_id)).encode()
    return int.from_bytes(hmac.digest(secret, message, "sha256")[:8], "big") >> 1


# ── gathering the stored models ──


class Files(NamedTuple):
    """The two files of a stored model."""

    weights: bytes
    config: bytes


Stored: TypeAlias = Files | errors.AghsanError
"""A stored model, or why it cannot be had."""
Texts: TypeAlias = str | errors.AghsanError
"""The folder of a corpus ("" where there is none), or why it cannot be had."""


async def gather(brief: wire.RoundBrief, store: chunks.ChunkStore) -> dict[str, Stored]:
    """The files of each candidate, and of the champion, by candidate id.

    Raises errors.Unavailable when the store does not answer.
    """
    manifests = {
        brought.candidate.candidate_id: brought.candidate.manifest for brought in brief.candidates
    }
    if brief.champion is not None:
        manifests.setdefault(brief.champion.candidate_id, brief.champion.manifest)
    stored: dict[str, Stored] = {}
    for candidate_id, manifest in manifests.items():
        try:
            stored[candidate_id] = await fetch(store, manifest)
        except (errors.ArtifactError, errors.NotFound) as error:
            stored[candidate_id] = error
    return stored


async def gather_texts(brief: wire.RoundBrief, store: chunks.ChunkStore, folder: Path) -> Texts:
    """The texts that a round is judged on, fetched into the folder where there are some.

    Raises errors.Unavailable when the store does not answer.
    """
    if brief.workload.corpus is None:
        return ""
    try:
        return await fetch_corpus(store, brief.workload.corpus, folder)
    except (errors.ArtifactError, errors.NotFound) as error:
        return error


async def fetch_corpus(store: chunks.ChunkStore, corpus: events.Corpus, folder: Path) -> str:
    """A folder with all texts of a corpus, the hidden ones too; fetched where it is not there, and
    alone kept. Raises errors.ArtifactError, NotFound, Unavailable."""
    target = folder / f"{corpus.manifest}-{corpus.hidden[:16]}"
    if target.is_dir():
        return str(target)
    files: dict[str, bytes] = {}
    for digest in (corpus.manifest, corpus.hidden):
        manifest = chunks.decode_manifest(await store.get(chunks.DESK, digest))
        if manifest.bytes > 2 * corpora.CORPUS_BYTES_MAX:
            raise errors.ArtifactError(f"a corpus that is said to have {manifest.bytes} bytes")
        for file in manifest.files:
            files[file.name] = await chunks.assemble(store, manifest, file.name)

    def put() -> None:
        for old in folder.iterdir():
            shutil.rmtree(old, ignore_errors=True)
        artifacts.unpack(files, target)

    await asyncio.to_thread(put)
    return str(target)


async def fetch(store: chunks.ChunkStore, manifest_digest: str) -> Files:
    """The files a manifest names, every digest checked.

    Raises errors.ArtifactError or NotFound when they are not what they should be.
    """
    manifest = chunks.decode_manifest(await store.get(chunks.DESK, manifest_digest))
    files = []
    for name, bytes_max in (
        (WEIGHTS_FILE, chunks.MODEL_BYTES_MAX),
        (CONFIG_FILE, CONFIG_BYTES_MAX),
    ):
        file = next((file for file in manifest.files if file.name == name), None)
        if file is None:
            raise errors.ArtifactError(f"it has no {name}")
        if file.bytes > bytes_max:
            raise errors.ArtifactError(
                f"its {name} is said to have {file.bytes} bytes; at most {bytes_max} are read"
            )
        files.append(await chunks.assemble(store, manifest, name))
    return Files(*files)


# ── measuring ──


class Abandoned(BaseException):
    """The judge was asked to stop in the middle; nobody handles this but who asked."""


class Model(NamedTuple):
    """A sound model, ready to be asked."""

    module: torch.nn.Module
    params: int
    bytes: int


class Unbuildable(errors.ArtifactError):
    """A model over a base that this machine has not."""


class Meeting(NamedTuple):
    """What the gate was asked at a stage: both errors, [cases], on all cases up to it."""

    stage: bounds.Stage
    own: bounds.Floats
    opponent: bounds.Floats


class Trace(NamedTuple):
    """A verdict, and what it was drawn from."""

    verdict: wire.Verdict
    ranked: Mapping[str, tuple[float, float]]
    """Mean error and evidence rate on the ranking cases, by candidate id."""
    ranked_on: int
    """How many cases those were."""
    meetings: list[Meeting]
    tolerance: float
    """Up to which an error is evidence."""
    lacking: Mapping[str, str]
    """Models that may be sound and cannot be measured on this machine, by id, and why."""


def _go_on() -> None:
    """Nobody asks to stop."""


def load(specialist: base.Specialist, stored: Stored, weights_sha256: str) -> Model:
    """Build a registered family and fill it with weights, never with code.

    Raises errors.ArtifactError: for files that could not be had, a family or sizes that the
    specialist does not know, weights that are no safetensors, do not fit, are not finite, or are
    not the ones announced.
    """
    if isinstance(stored, errors.AghsanError):
        raise errors.ArtifactError(str(stored)) from stored
    with tempfile.TemporaryDirectory(prefix="aghsan-judge-") as name:
        directory = Path(name)
        (directory / CONFIG_FILE).write_bytes(stored.config)
        path = directory / WEIGHTS_FILE
        path.write_bytes(stored.weights)
        config = checkpoints.read_config(directory / CONFIG_FILE)
        found = tensors.weights_sha256_of_file(path)
        if found != weights_sha256:
            raise errors.ArtifactError(
                f"its weights hash to {found[:12]}…, not to the announced {weights_sha256[:12]}…"
            )
        try:
            module = forms.build(specialist, config)
        except errors.TrainingError as error:  # its base model is not on this machine
            raise Unbuildable(f"the judge cannot build it: {error}") from error
        checkpoints.load_weights(path, module)
    for tensor_name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise errors.ArtifactError(f"its weights {tensor_name} are not all finite numbers")
    module.eval().requires_grad_(False)
    params = sum(parameter.numel() for parameter in module.parameters())
    return Model(module, params, len(stored.weights) + len(stored.config))


def errors_of(
    specialist: base.Specialist,
    model: Model,
    cases: base.Cases,
    go_on: Callable[[], None] = _go_on,
) -> bounds.Floats:
    """A model's error on each case. Raises errors.ArtifactError when it cannot be asked."""
    parts = []
    count = len(next(iter(cases.values())))
    for first in range(0, count, CASES_AT_ONCE):
        go_on()
        part = {name: tensor[first : first + CASES_AT_ONCE] for name, tensor in cases.items()}
        try:
            parts.append(specialist.errors(model.module, part).detach().double().numpy())
        except Exception as error:
            # Whatever strange weights make torch raise, it is the candidate's fault.
            raise errors.ArtifactError(f"it cannot be asked: {_brief(error)}") from error
    return np.concatenate(parts)


def _brief(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]


def environment() -> dict[str, str]:
    """What a verdict's bits depend on beside secret and weights."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platforms.machine(),
        "python": platform.python_version(),
        "cuda": "yes" if torch.cuda.is_available() else "no",
        "rules": RULES,
    }


async def judge_round(
    brief: wire.RoundBrief,
    store: chunks.ChunkStore,
    secret: bytes,
    judge: str,
    folder: Path,
    go_on: Callable[[], None] = _go_on,
) -> wire.Verdict:
    """Fetch what stands in a round and measure it, in a thread; the verdict. Texts are kept in the
    folder.

    Raises errors.Unavailable when the store does not answer; Abandoned as `go_on` does.
    """
    stored = await gather(brief, store)
    texts = await gather_texts(brief, store, folder)
    return await asyncio.to_thread(measure, brief, stored, secret, judge, go_on, texts)


def measure(
    brief: wire.RoundBrief,
    stored: Mapping[str, Stored],
    secret: bytes,
    judge: str,
    go_on: Callable[[], None] = _go_on,
    texts: Texts = "",
) -> wire.Verdict:
    """The verdict on a round: rank the sound candidates, then put the best to the gate.

    Each step draws hidden cases of its own, or as many as there are, the gate up to 32,768 where it
    takes so many to see; of a corpus from the folder `texts`. Candidates that are not sound are
    refused and never the end of the round; a champion that is not makes it void, and stays
    champion.
    """
    return trace(brief, stored, secret, judge, go_on, texts).verdict


def trace(
    brief: wire.RoundBrief,
    stored: Mapping[str, Stored],
    secret: bytes,
    judge: str,
    go_on: Callable[[], None] = _go_on,
    texts: Texts = "",
) -> Trace:
    """As `measure`, with all that the verdict was drawn from."""
    # For this thread, not the process: OpenMP keeps the number of threads per calling thread.
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # the same, without torch's compiler
    trial = _Trial(brief, stored, secret, go_on, texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trial.admit()
        trial.rank()
        trial.put_to_gate()
    return trial.trace(judge)


def rank_cases(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> base.Cases:
    """The hidden cases that a round's candidates are ranked on."""
    if specialist.hidden_max is None:
        seed = seed_of(secret, "rank", node_id, round_id)
        return specialist.cases(seed, HIDDEN_CASES, "hidden")
    cases, ranked = _shared(specialist, secret, node_id, round_id)
    return {name: each[:ranked] for name, each in cases.items()}


def gate_cases(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> Iterator[tuple[bounds.Stage, base.Cases]]:
    """The hidden cases of a round's gate: each stage of the judgement, and the cases it adds. None
    of them was ranked on: who was picked for being lucky there must not be lucky here."""
    if specialist.hidden_max is None:
        for stage in bounds.stages(bounds.CASES_MAX):
            label = f"gate {stage.before}" if stage.before else "gate"
            added = stage.cases - stage.before
            seed = seed_of(secret, label, node_id, round_id)
            yield stage, specialist.cases(seed, added, "hidden")
        return
    cases, ranked = _shared(specialist, secret, node_id, round_id)
    for stage in bounds.stages(len(next(iter(cases.values()))) - ranked):
        some = slice(ranked + stage.before, ranked + stage.cases)
        yield stage, {name: each[some] for name, each in cases.items()}


def _shared(
    specialist: base.Specialist, secret: bytes, node_id: str, round_id: str
) -> tuple[base.Cases, int]:
    """Hidden cases of which there are only so many, in the round's own order, and how many of them
    are for ranking: the first quarter. Of a corpus there are few: a large model takes long over
    each.
    """
    is_text = workloads.kind(specialist.name).takes_corpus
    gated = HIDDEN_CASES if is_text else bounds.CASES_MAX
    count = min(gated * 4 // 3, specialist.hidden_max or 0)
    assert count >= POOL_LEAST, "a corpus with less is refused as it is added"
    seed = seed_of(secret, "gate", node_id, round_id)
    return specialist.cases(seed, count, "hidden"), count // 4


class _Trial:
    """One round under judgement; each step leaves what the next one needs."""

    def __init__(
        self,
        brief: wire.RoundBrief,
        stored: Mapping[str, Stored],
        secret: bytes,
        go_on: Callable[[], None],
        texts: Texts,
    ) -> None:
        self._texts = texts
        self._brief = brief
        self._stored = stored
        self._secret = secret
        self._go_on = go_on
        self._specialist: base.Specialist | None = None
        self._models: dict[str, Model] = {}
        self._ranked: dict[str, tuple[float, float]] = {}
        self._ranked_on = 0
        self._verdicts: dict[str, CandidateVerdict] = {}
        self._meetings: list[Meeting] = []
        self._lacking: dict[str, str] = {}
        self._picked = ""
        self._ruling: rulings.Ruling | None = None
        self._baseline_error: float | None = None
        self._beats_baseline = False
        self._reasons = Reasons(
            en="No candidate stood in this round.", ar="لم يتقدم أي مرشح في هذه الجولة."
        )

    def admit(self) -> None:
        """Load the candidates; refuse those that are not sound."""
        workload = self._brief.workload
        try:
            if isinstance(self._texts, errors.AghsanError):
                raise self._texts
            self._specialist = registry.get(
                workload.specialist, workload.parameters, self._texts, workload.base_model
            )
        except errors.AghsanError as error:
            for brought in self._brief.candidates:
                self._lacking[brought.candidate.candidate_id] = _brief(error)
                self._refuse(brought.candidate, error)
            return
        for brought in self._brief.candidates:
            candidate = brought.candidate
            self._go_on()
            try:
                stored = self._stored[candidate.candidate_id]
                model = load(self._specialist, stored, candidate.weights_sha256)
            except errors.ArtifactError as error:
                self._note_lack(candidate.candidate_id, error)
                self._refuse(candidate, error)
            else:
                self._models[candidate.candidate_id] = model

    def _note_lack(self, candidate_id: str, error: errors.ArtifactError) -> None:
        if isinstance(error, Unbuildable):
            self._lacking[candidate_id] = _brief(error)

    def _refuse(self, candidate: events.Candidate, error: Exception) -> None:
        self._models.pop(candidate.candidate_id, None)
        why = _brief(error).rstrip(".")
        self._verdicts[candidate.candidate_id] = CandidateVerdict(
            candidate_id=candidate.candidate_id,
            verdict="refused",
            reasons=Reasons(
                en=f"Refused without a measurement: {why}.",
                ar=f"رُفض قبل القياس: {_in_arabic(error)} ({why}).",
            ),
            bytes=candidate.bytes,
        )
        self._reasons = Reasons(
            en="No candidate of this round was sound; each one's reasons say why.",
            ar="لم يكن أي مرشح في هذه الجولة سليمًا؛ والأسباب عند كل مرشح.",
        )

    def rank(self) -> None:
        """Measure the sound candidates on the first hidden cases and pick the lowest mean error."""
        if self._specialist is None or not self._models:
            return
        cases = rank_cases(
            self._specialist, self._secret, self._brief.node_id, self._brief.round_id
        )
        self._ranked_on = len(next(iter(cases.values())))
        for brought in self._brief.candidates:
            model = self._models.get(brought.candidate.candidate_id)
            if model is None:
                continue
            try:
                found = errors_of(self._specialist, model, cases, self._go_on)
                self._ranked[brought.candidate.candidate_id] = self._measured(found)
            except errors.ArtifactError as error:
                self._refuse(brought.candidate, error)
        if self._ranked:
            # Of equal ones the smaller, then by name: any order will do that is always the same.
            self._picked = min(
                self._ranked, key=lambda name: (self._ranked[name], self._models[name].params, name)
            )

    def _measured(self, found: bounds.Floats) -> tuple[float, float]:
        """Mean error and evidence rate. Raises errors.ArtifactError for errors that are none."""
        assert self._specialist is not None, "measured by a specialist"
        unusable = int(np.sum(~(np.isfinite(found) & (found >= 0))))
        if unusable:
            raise errors.ArtifactError(
                f"its error is not a finite number on {unusable} of {len(found)} hidden cases"
            )
        return float(found.mean()), float(np.mean(found <= self._specialist.tolerance))

    def put_to_gate(self) -> None:
        """Measure the picked one and its opponent on other hidden cases, of which there are more
        until the gate's ruling is clear."""
        if not self._picked:
            return
        specialist = self._specialist
        assert specialist is not None, "candidates are picked by a specialist"
        picked = self._models[self._picked]
        try:
            opponent = _Opponent(specialist, self._champion(specialist), self._go_on)
            own: list[bounds.Floats] = []
            for stage, cases in gate_cases(
                specialist, self._secret, self._brief.node_id, self._brief.round_id
            ):
                opponent.meet(cases)
                own.append(self._answers(specialist, picked, cases))
                if not stage.before:
                    self._compare_with_baseline(specialist, cases, own[0])
                met = Meeting(stage, np.concatenate(own), np.concatenate(opponent.errors))
                self._meetings.append(met)
                self._ruling = gate.decide(
                    met.own,
                    met.opponent,
                    tolerance=specialist.tolerance,
                    look=self._brief.look,
                    stage=stage,
                    against=opponent.against,
                )
                if self._ruling.settled:
                    break
        except errors.ArtifactError as error:
            self._ruling = None
            self._leave_unjudged(error)
            return
        assert self._ruling is not None, "a judgement has a stage"
        self._reasons = self._ruling.reasons
        self._record(self._ruling)

    def _champion(self, specialist: base.Specialist) -> Model | None:
        champion = self._brief.champion
        if champion is None:
            return None
        return load(specialist, self._stored[champion.candidate_id], champion.weights_sha256)

    def _answers(
        self, specialist: base.Specialist, model: Model, cases: base.Cases
    ) -> bounds.Floats:
        """The picked one's errors; where it cannot be asked, none that are numbers."""
        try:
            return errors_of(specialist, model, cases, self._go_on)
        except errors.ArtifactError:
            return np.full(len(next(iter(cases.values()))), math.nan)

    def _compare_with_baseline(
        self, specialist: base.Specialist, cases: base.Cases, own: bounds.Floats
    ) -> None:
        baseline = specialist.baseline_errors(cases)[specialist.baseline_of_record]
        self._baseline_error = float(baseline.mean())
        self._beats_baseline = bool(own.mean() < self._baseline_error)

    def _leave_unjudged(self, error: errors.ArtifactError) -> None:
        """Compare nobody: to judge as if no champion reigned would let anything dethrone it."""
        champion = self._brief.champion
        assert champion is not None, "only a champion's model can be missing here"
        whom, why = champion.candidate_id, _brief(error).rstrip(".")
        self._note_lack(whom, error)
        manifest = f"{champion.manifest[:12]}…"
        self._reasons = Reasons(
            en=f"Void: the stored model of the champion {whom} (manifest {manifest}) cannot be "
            f"measured: {why}. Nothing could be compared with it, so it goes on reigning, and the "
            f"candidates stay stored. Restore its artifact from a backup.",
            ar=f"لا حكم: نموذج البطل {whom} المخزّن (البيان {manifest}) لا يمكن قياسه: "
            f"{_in_arabic(error)} ({why}). فلم يمكن أن يُقارن به شيء؛ يبقى بطلًا وتبقى نماذج "
            f"المرشحين مخزّنة. استعد ملفاته من نسخة احتياطية.",
        )
        for candidate_id, (rank_error, evidence_rate) in self._ranked.items():
            model = self._models[candidate_id]
            self._verdicts[candidate_id] = CandidateVerdict(
                candidate_id=candidate_id,
                verdict="unjudged",
                reasons=_unjudged_reasons(rank_error, whom),
                error=rank_error,
                evidence_rate=evidence_rate,
                params=model.params,
                bytes=model.bytes,
            )

    def _record(self, ruling: rulings.Ruling) -> None:
        for candidate_id, (error, evidence_rate) in self._ranked.items():
            model = self._models[candidate_id]
            if candidate_id == self._picked:
                verdict = CandidateVerdict(
                    candidate_id=candidate_id,
                    verdict=ruling.verdict,
                    reasons=_picked_reasons(ruling, error),
                    error=ruling.error,
                    evidence_rate=ruling.evidence_rate,
                    ratio=ruling.ratio,
                    ratio_upper=ruling.ratio_upper,
                    params=model.params,
                    bytes=model.bytes,
                )
            else:
                verdict = CandidateVerdict(
                    candidate_id=candidate_id,
                    verdict="outranked",
                    reasons=_outranked_reasons(
                        error, self._ranked[self._picked][0], self._ranked_on
                    ),
                    error=error,
                    evidence_rate=evidence_rate,
                    params=model.params,
                    bytes=model.bytes,
                )
            self._verdicts[candidate_id] = verdict

    def trace(self, judge: str) -> Trace:
        """The verdict, and what it was drawn from."""
        tolerance = self._specialist.tolerance if self._specialist else 0.0
        verdict = self.verdict(judge)
        return Trace(
            verdict, self._ranked, self._ranked_on, self._meetings, tolerance, self._lacking
        )

    def verdict(self, judge: str) -> wire.Verdict:
        """The verdict as it is sent."""
        brief, ruling = self._brief, self._ruling
        won = ruling is not None and ruling.verdict == "better"
        measured = ruling is not None and brief.champion is not None
        return wire.Verdict(
            judge=judge,
            round_id=brief.round_id,
            verdict="void" if ruling is None else "promote" if won else "keep",
            secret=self._secret.hex(),
            reasons=self._reasons,
            candidates=[
                self._verdicts[brought.candidate.candidate_id] for brought in brief.candidates
            ],
            promoted=self._picked if won else "",
            against=brief.champion.candidate_id if brief.champion else "",
            alpha=ruling.alpha if ruling else 0.0,
            cases=ruling.cases if ruling else 0,
            champion_error=ruling.opponent_error if ruling and measured else None,
            baseline_error=self._baseline_error,
            below_baseline=not self._beats_baseline,
            environment=environment(),
        )


class _Opponent:
    """Whom a candidate meets: the champion, or the trivial predictor where none reigns, and where
    the champion answers a case with nonsense: to reign, one need only beat the trivial then."""

    def __init__(
        self, specialist: base.Specialist, champion: Model | None, go_on: Callable[[], None]
    ) -> None:
        self._specialist, self._champion, self._go_on = specialist, champion, go_on
        self._met: list[base.Cases] = []
        self.errors: list[bounds.Floats] = []
        """On all cases so far, part by part."""

    @property
    def against(self) -> rulings.Against:
        """Who it is."""
        return "trivial" if self._champion is None else "champion"

    def meet(self, cases: base.Cases) -> None:
        """Be measured on these as well. Raises errors.ArtifactError for a champion that cannot be
        asked."""
        self._met.append(cases)
        if self._champion is not None:
            found = errors_of(self._specialist, self._champion, cases, self._go_on)
            if np.isfinite(found).all():
                self.errors.append(found)
                return
            self._champion, self.errors = None, []
        self.errors += [self._trivial(part) for part in self._met[len(self.errors) :]]

    def _trivial(self, cases: base.Cases) -> bounds.Floats:
        found: bounds.Floats = self._specialist.baseline_errors(cases)["trivial"].double().numpy()
        return found


def _in_arabic(error: Exception) -> str:
    if isinstance(error, errors.NotFound):
        return "لم توجد ملفاته أو لا يُعرف عمل هذه العقدة"
    return "ملفاته أو أوزانه ليست كما يجب"


def _picked_reasons(ruling: rulings.Ruling, rank_error: float) -> Reasons:
    return Reasons(
        en=f"Picked by the lowest mean error, {rank_error:.4g}, on the ranking cases; the figures "
        f"here are of the gate's cases. {ruling.reasons.en}",
        ar=f"اختير لأن متوسط خطئه {rank_error:.4g} هو الأدنى على حالات الترتيب؛ والأرقام هنا من "
        f"حالات البوابة. {ruling.reasons.ar}",
    )


def _outranked_reasons(error: float, best: float, cases: int) -> Reasons:
    return Reasons(
        en=f"Another candidate had a lower mean error on the same {cases:,} hidden ranking "
        f"cases: {best:.4g} against {error:.4g}. The figures here are of those cases.",
        ar=f"لمرشح آخر متوسط خطأ أدنى على حالات الترتيب المخفية نفسها وعددها {cases:,}: "
        f"{best:.4g} مقابل {error:.4g}. والأرقام هنا من تلك الحالات.",
    )


def _unjudged_reasons(error: float, champion: str) -> Reasons:
    return Reasons(
        en=f"Sound, with a mean error of {error:.4g} on the ranking cases, but not judged: the "
        f"champion {champion} could not be measured.",
        ar=f"سليم، ومتوسط خطئه {error:.4g} على حالات الترتيب، لكن لم يُحكم عليه: "
        f"تعذّر قياس البطل {champion}.",
    )


def undecidable(brief: wire.RoundBrief, secret: str, judge: str, reasons: Reasons) -> wire.Verdict:
    """The verdict on a round in which nothing can be measured: void, for a reason that is told."""
    return wire.Verdict(
        judge=judge,
        round_id=brief.round_id,
        verdict="void",
        secret=secret,
        reasons=reasons,
        candidates=[
            CandidateVerdict(
                candidate_id=brought.candidate.candidate_id,
                verdict="unjudged",
                reasons=reasons,
                bytes=brought.candidate.bytes,
            )
            for brought in brief.candidates
        ],
        against=brief.champion.candidate_id if brief.champion else "",
        environment=environment(),
    )


_KEY_LOST = Reasons(
    en="Void: the key behind this round's commitment is lost, so its hidden cases can never be "
    "drawn. The candidates stay stored and may be trained further.",
    ar="لا حكم: ضاع المفتاح الذي أُبرم به التزام هذه الجولة، فلا يمكن استخراج حالاتها المخفية أبدًا. "
    "تبقى نماذج المرشحين مخزّنة ويمكن متابعة تدريبها.",
)


_OUTDATED = Reasons(
    en="Void: the node trains something else since this round's candidates were asked for. They "
    "stay stored, and none of them can be its champion.",
    ar="لا حكم: صارت العقدة تتدرب على عمل آخر بعد طلب مرشحي هذه الجولة. تبقى نماذجهم مخزّنة، "
    "ولا يصلح أي منها بطلًا لها.",
)


def _tripped(error: Exception) -> Reasons:
    why = f"{type(error).__name__}: {_brief(error)}".rstrip(".")
    return Reasons(
        en=f"Void: the judge failed {DELIVERIES_MAX} times while it measured this round, the last "
        f"time with {why}. Its log says more.",
        ar=f"لا حكم: تعثّر الحَكَم {DELIVERIES_MAX} مرات أثناء قياس هذه الجولة، وآخرها: {why}. "
        "وفي سجله تفصيل ذلك.",
    )


async def deposited(control: bus.Bus, judge_id: str) -> int:
    """How many commitments the log holds. Raises errors.Unavailable."""
    request: wire.JudgeRequest = wire.Standing(judge=judge_id)
    raw = await control.request("cmd.judge", msgspec.json.encode(request), REQUEST_SECONDS)
    return wire.decode(raw, wire.CommitmentsAnswer).next_index


# ── the process ──


class Judge:
    """Keeps commitments deposited, and judges the rounds that JUDGEMENTS offers, one at a time."""

    def __init__(
        self, control: bus.Bus, store: chunks.ChunkStore, key: bytes, judge_id: str, texts: Path
    ) -> None:
        """`texts` is a folder of the judge's own, for the corpus it judged on last."""
        self._control = control
        self._store = store
        self._key = key
        self._judge_id = judge_id
        self._texts = texts
        self._inbox = f"{control.inbox_prefix}.judgements.{uuid.uuid4().hex}"
        self._arrived: asyncio.Queue[bus.Incoming] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._abandon = threading.Event()
        self.decided = 0

    def stop(self) -> None:
        """End soon: a round in the middle of judgement goes back to the queue."""
        self._stopping.set()
        self._abandon.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Judge until stopped. `on_ready` is called once commitments are deposited.

        Raises errors.DataDirectoryError when this judge's key is not the one that is committed to.
        """
        inbox = await self._control.subscribe(self._inbox, self._arrive)
        ready = False
        try:
            while not self._stopping.is_set():
                try:
                    await self._deposit()
                    if not ready:
                        ready = True
                        on_ready()
                    message = await self._pull()
                    if message is not None:
                        await self._answer(message)
                except errors.DataDirectoryError:
                    raise
                except errors.AghsanError as error:
                    log.warning("trying again soon: %s", error, extra={"action": "judge"})
                    await self._pause(RETRY_SECONDS)
        finally:
            await inbox.unsubscribe()

    async def _arrive(self, message: bus.Incoming) -> None:
        self._arrived.put_nowait(message)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _ask(self, request: wire.JudgeRequest, kind: type[T]) -> T:
        raw = await self._control.request(
            "cmd.judge", msgspec.json.encode(request), REQUEST_SECONDS
        )
        return wire.decode(raw, kind)

    # ── commitments ──

    async def withdraw(self, reason: str) -> None:
        """Let go of what was committed to so far. Raises as the bus and control do."""
        request = wire.Withdraw(judge=self._judge_id, reason=reason)
        await self._ask(request, wire.CommitmentsAnswer)

    def _require_key(self, newest: wire.Commitment | None) -> None:
        if newest is None or self._opens(newest.index, newest.commitment):
            return
        raise errors.DataDirectoryError(
            f"this judge's key does not open commitment {newest.index} of the log, so it cannot "
            f"judge what is committed to; give it the key file of the judge that deposited it, or, "
            f"if that is lost for good, start once with {LOST_KEY}"
        )

    def _opens(self, index: int, commitment: str) -> bool:
        return commitment_to(secret_of(self._key, index)) == commitment

    async def _deposit(self) -> None:
        """Deposit commitments where fewer than 64 are left. Raises as the bus and control do, and
        DataDirectoryError where the newest is not this key's."""
        standing = await self._ask(wire.Standing(judge=self._judge_id), wire.CommitmentsAnswer)
        self._require_key(standing.newest)
        if standing.unused >= COMMITMENTS_MIN:
            return
        first = standing.next_index
        count = min(DEPOSIT_MAX, COMMITMENTS_KEPT - standing.unused)
        request = wire.Deposit(
            judge=self._judge_id,
            first=first,
            commitments=[
                commitment_to(secret_of(self._key, index)) for index in range(first, first + count)
            ],
        )
        try:
            await self._ask(request, wire.CommitmentsAnswer)
        except errors.Conflict as error:
            # Another judge with the same key was faster; the next turn asks again.
            log.info("not deposited: %s", error, extra={"action": "deposit"})

    # ── offers ──

    async def _pull(self) -> bus.Incoming | None:
        """The next offer, waited for at most about 5 s."""
        if self._arrived.empty():
            subject = f"$JS.API.CONSUMER.MSG.NEXT.JUDGEMENTS.{LANE}"
            body = json.dumps({"batch": 1, "expires": int(PULL_SECONDS * 1e9)}).encode()
            await self._control.publish(subject, body, self._inbox)
        arrival = asyncio.ensure_future(self._arrived.get())
        stopped = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait(
            {arrival, stopped}, timeout=PULL_SECONDS + 1.0, return_when=asyncio.FIRST_COMPLETED
        )
        stopped.cancel()
        if not arrival.done():
            arrival.cancel()
            return None
        message = arrival.result()
        status = message.headers.get(bus.STATUS)
        if status is None:
            return message
        if status != PULL_EXPIRED:
            log.warning("JUDGEMENTS answers %s", status, extra={"action": "pull"})
            await self._pause(RETRY_SECONDS)
        return None

    async def _answer(self, message: bus.Incoming) -> None:
        """Judge what is offered; the offer ends only after the verdict was answered."""
        try:
            offer = msgspec.json.decode(message.data, type=wire.JudgementOffer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("an offer that means nothing: %s", error, extra={"action": "judge"})
            await message.respond(b"+TERM")
            return
        progress = asyncio.ensure_future(self._keep(message))
        try:
            await self._settle(offer.round_id, _deliveries(message))
        except Abandoned:
            await message.respond(b"-NAK")
            return
        except errors.AghsanError as error:
            log.error("%s is not judged now: %s", offer.round_id, error, extra={"action": "judge"})
            delay = {"delay": int(AGAIN_SECONDS * 1e9)}
            await message.respond(b"-NAK " + json.dumps(delay).encode())
            return
        finally:
            progress.cancel()
        await message.respond(b"+ACK")

    async def _keep(self, message: bus.Incoming) -> None:
        """Tell JUDGEMENTS that the offer is being worked on, for as long as it is."""
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            with contextlib.suppress(errors.Unavailable):
                await message.respond(b"+WPI")

    async def _settle(self, round_id: str, deliveries: int) -> None:
        """Judge a round until its verdict stands, this judge's or another's."""
        for _ in range(TAKES_MAX):
            take = wire.TakeRound(judge=self._judge_id, round_id=round_id)
            try:
                brief = await self._ask(take, wire.RoundBrief)
            except (errors.Conflict, errors.NotFound) as error:
                # Decided already, or not closed: control offers what is closed and undecided anew.
                log.info("nothing to judge: %s", error, extra={"action": "judge"})
                return
            verdict = await self._verdict(brief, deliveries)
            try:
                await self._ask(verdict, wire.Done)
            except errors.Conflict as error:
                # The champion changed, or another judge took the round: look again.
                log.info("%s once more: %s", round_id, error, extra={"action": "judge"})
                continue
            self.decided += 1
            log.info("%s", _line(brief, verdict), extra={"action": "decided"})
            return
        raise errors.Conflict(f"its champion changed {TAKES_MAX} times while it was judged")

    async def _verdict(self, brief: wire.RoundBrief, deliveries: int) -> wire.Verdict:
        """The verdict on a round, void where nobody can judge it. Raises Abandoned, Conflict for a
        round of another key, and what the store raises."""
        secret = secret_of(self._key, brief.index)
        if not self._opens(brief.index, brief.commitment):
            if brief.withdrawn:
                return undecidable(brief, "", self._judge_id, _KEY_LOST)
            raise errors.Conflict(
                f"{brief.round_id} was committed to with another key than this judge's; give this "
                f"judge the key file of the one that deposited it, or, if that is lost for good, "
                f"start once with {LOST_KEY}"
            )
        if brief.outdated:
            return undecidable(brief, secret.hex(), self._judge_id, _OUTDATED)
        try:
            return await judge_round(
                brief, self._store, secret, self._judge_id, self._texts, self._check
            )
        except errors.AghsanError:
            raise
        except Exception as error:
            # What nobody foresaw may pass (memory ran out); if not, it must not hold the rounds up.
            log.exception("%s trips the judge", brief.round_id, extra={"action": "judge"})
            if deliveries < DELIVERIES_MAX or platforms.is_want_of_room(error):
                raise errors.Unavailable(f"the judge failed: {_brief(error)}") from error
            return undecidable(brief, secret.hex(), self._judge_id, _tripped(error))

    def _check(self) -> None:
        if self._abandon.is_set():
            raise Abandoned


def _deliveries(message: bus.Incoming) -> int:
    """How often an offer was handed out: $JS.ACK.<stream>.<consumer>.<delivered>…"""
    parts = message.reply.split(".")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdigit() else 1


def _line(brief: wire.RoundBrief, verdict: wire.Verdict) -> str:
    whom = f" {verdict.promoted}" if verdict.promoted else ""
    return f"{brief.round_id} of {brief.node_id}: {verdict.verdict}{whom}. {verdict.reasons.en}"
