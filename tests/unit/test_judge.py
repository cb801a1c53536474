"""What the judge measures of stored models, and what it refuses to load."""

import asyncio
import errno
import hashlib
import pickle
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, cast

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from agent import artifacts, tensors
from agent.specialists import base, registry
from core import bus, chunks, errors, events, wire
from core.values import Latency
from orchestrator import bounds, contest, hidden, judge, keys, models, remarks, trial
from orchestrator.latency import Timed

WRITER = "agent-1"
SECRET = keys.secret_of(b"k" * keys.KEY_BYTES, 3)
NODE = "stats-bayesian"
BAYES = registry.get(NODE, {})
SMALL = BAYES.families("reinventor")[0]

READING = Latency(
    ratio=1.0, lower=0.9, upper=1.1, p50_ms=1.0, p95_ms=1.0, reference_ms=1.0, spread=0.1
)


class Shelf:
    """Stored candidates of one worker, in memory."""

    def __init__(self, directory: Path) -> None:
        self.store = chunks.MemoryChunks()
        self._directory = directory
        self._count = 0

    def put(
        self,
        module: torch.nn.Module | None = None,
        config: base.Config | bytes = SMALL,
        *,
        weights: bytes | None = None,
        sha256: str = "",
        rival: events.Rival = "reinventor",
        edit: Callable[[chunks.Manifest], chunks.Manifest] = lambda manifest: manifest,
    ) -> events.Candidate:
        """Store a model (or `weights` in place of its own) as an agent and the desk would."""
        self._count += 1
        directory = self._directory / str(self._count)
        directory.mkdir()
        path = directory / models.WEIGHTS_FILE
        if weights is None:
            assert module is not None, "a model or its bytes"
            weights = safetensors.torch.save(module.state_dict())
        path.write_bytes(weights)
        written = config if isinstance(config, bytes) else msgspec.json.encode(config)
        (directory / models.CONFIG_FILE).write_bytes(written)
        if not sha256:
            try:
                sha256 = tensors.weights_sha256_of_file(path)
            except errors.ArtifactError:
                sha256 = "0" * 64
        packed = artifacts.pack(directory, "candidate", WRITER)
        manifest = asyncio.run(self._store(packed, edit))
        return events.Candidate(
            candidate_id=f"cand-{self._count}",
            rival=rival,
            manifest=manifest,
            writer=WRITER,
            weights_sha256=sha256,
            bytes=packed.manifest.bytes,
        )

    async def _store(
        self, packed: artifacts.Packed, edit: Callable[[chunks.Manifest], chunks.Manifest]
    ) -> str:
        for piece in packed.pieces.values():
            await self.store.put(WRITER, piece)
        return await self.store.put(chunks.DESK, edit(packed.manifest).encode())

    def judged(
        self,
        *candidates: events.Candidate,
        timing: trial.Timing = trial.untimed,
        **more: object,
    ) -> wire.Verdict:
        """The verdict on a round of these candidates."""
        told = brief(*candidates, **more)
        asked = judge.judge_round(
            told, self.store, SECRET, "j", Path(), models.go_on_always, timing
        )
        return asyncio.run(asked)


def brief(*candidates: events.Candidate, **more: object) -> wire.RoundBrief:
    values: dict[str, object] = {
        "round_id": "round-1",
        "node_id": NODE,
        "index": 3,
        "commitment": keys.commitment_to(SECRET),
        "workload": events.Workload(specialist=NODE),
        "look": 1,
        "champion": None,
        "candidates": [
            wire.Brought(candidate=candidate, task_id="t1", worker_id=WRITER)
            for candidate in candidates
        ],
    }
    return wire.RoundBrief(**{**values, **more})  # type: ignore[arg-type]


def reigning(candidate: events.Candidate) -> events.Base:
    return events.Base(
        candidate_id=candidate.candidate_id,
        manifest=candidate.manifest,
        writer=candidate.writer,
        weights_sha256=candidate.weights_sha256,
    )


def trained(steps: int, config: base.Config = SMALL, seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    module = BAYES.build(config)
    optimizer = torch.optim.AdamW(module.parameters(), BAYES.learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        BAYES.loss(module, BAYES.train_batch(5, step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def fresh() -> torch.nn.Module:
    return trained(5)


@pytest.fixture(scope="module")
def better() -> torch.nn.Module:
    return trained(250)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def only(verdict: wire.Verdict) -> events.CandidateVerdict:
    (found,) = verdict.candidates
    return found


def assert_refused(verdict: wire.Verdict, *words: str) -> None:
    assert verdict.verdict == "void"
    assert verdict.promoted == ""
    refused = only(verdict)
    assert refused.verdict == "refused"
    assert refused.error is None
    for word in words:
        assert word in refused.reasons.en
    assert any("\u0600" <= letter <= "\u06ff" for letter in refused.reasons.ar)


def test_an_ensemble_is_judged_like_any_model(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    config = base.Config(family="ensemble", members=(SMALL, SMALL))
    together = BAYES.ensemble([better, trained(250, seed=2)])
    champion, candidate = shelf.put(fresh), shelf.put(together, config)
    verdict = shelf.judged(candidate, champion=reigning(champion), look=2)
    assert verdict.promoted == candidate.candidate_id
    assert only(verdict).params == sum(weight.numel() for weight in together.parameters())


def test_a_candidate_better_than_the_champion_is_promoted(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    champion, candidate = shelf.put(fresh), shelf.put(better)
    verdict = shelf.judged(candidate, champion=reigning(champion), look=2)
    assert verdict.verdict == "promote"
    assert verdict.promoted == candidate.candidate_id
    assert verdict.against == champion.candidate_id
    assert verdict.cases == hidden.HIDDEN_CASES
    assert verdict.alpha == pytest.approx(0.0304 / 4, rel=0.01)
    assert verdict.secret == SECRET.hex()
    measured = only(verdict)
    assert measured.verdict == "better"
    assert measured.error is not None
    assert verdict.champion_error is not None
    assert measured.error < 0.9 * verdict.champion_error
    assert measured.params == sum(p.numel() for p in better.parameters())
    assert verdict.baseline_error is not None
    assert verdict.below_baseline == (measured.error >= verdict.baseline_error)
    assert verdict.environment["threads"] == "1"
    assert verdict.environment["torch"] == torch.__version__


def test_the_champions_own_weights_again_change_nothing(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    champion, copy = shelf.put(better), shelf.put(better)
    verdict = shelf.judged(copy, champion=reigning(champion))
    assert verdict.verdict == "keep"
    assert only(verdict).verdict == "reject"
    assert only(verdict).ratio == 1.0


def test_a_worse_candidate_changes_nothing(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    verdict = shelf.judged(shelf.put(fresh), champion=reigning(shelf.put(better)))
    assert verdict.verdict == "keep"
    assert "Surely worse than the champion." in only(verdict).reasons.en


def test_cases_are_added_while_two_models_are_hard_to_tell_apart(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    nearly = trained(250, seed=6)
    verdict = shelf.judged(shelf.put(nearly), champion=reigning(shelf.put(better)))
    assert verdict.cases in (stage.cases for stage in bounds.stages(bounds.CASES_MAX))
    assert verdict.cases > bounds.CASES_MIN
    assert f"On {verdict.cases:,} hidden cases" in verdict.reasons.en


def test_stages_add_cases_that_are_new_and_that_nobody_was_ranked_on() -> None:
    for name, ranked, gated in (
        ("stats-bayesian", hidden.HIDDEN_CASES, bounds.CASES_MAX),
        ("root-math", 697, 2_094),
    ):
        specialist = registry.get(name)
        first = hidden.rank_cases(specialist, SECRET, name, "round")
        parts = list(hidden.gate_cases(specialist, SECRET, name, "round"))
        (field, *_) = first
        rows = [cases[field].flatten(1) for cases in (first, *(cases for _, cases in parts))]
        assert (len(rows[0]), parts[-1][0].cases) == (ranked, gated)
        whole = torch.cat(rows)
        assert len(torch.unique(whole, dim=0)) == len(whole) == ranked + gated


def test_a_champion_that_answers_a_case_with_nonsense_later_is_no_opponent_for_any(
    monkeypatch: pytest.MonkeyPatch, better: torch.nn.Module
) -> None:
    said = {
        0: iter([np.ones(5), np.array([1.0, np.nan, 1.0])]),
        1: iter([np.full(5, 0.5), np.full(3, 0.5)]),
    }
    monkeypatch.setattr(models, "errors_of", lambda _, model, *__: next(said[model.bytes]))
    known = {"king": models.Model(better, 0, 0), "rival": models.Model(better, 0, 1)}
    answers = contest.Answers(BAYES, known)
    asked = contest.Contest(own="rival", look=1, opponent="king", against="champion")
    parts = BAYES.cases(1, 5), BAYES.cases(2, 3)
    told = []
    for stage, cases in zip((bounds.Stage(0, 5, 8), bounds.Stage(5, 8, 8)), parts, strict=True):
        answers.meet(cases)
        asked.go_on(stage, answers)
        told.append(asked.against)
    assert told == ["champion", "trivial"]
    trivial = [BAYES.baseline_errors(cases)["trivial"] for cases in parts]
    assert asked.meetings[-1].opponent.tolist() == torch.cat(trivial).tolist()
    # Nothing is as bad as nonsense.
    assert asked.best_upper == 0.0


def test_the_first_champion_need_only_beat_the_trivial_predictor(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    verdict = shelf.judged(shelf.put(better))
    assert verdict.verdict == "promote"
    assert verdict.against == ""
    assert verdict.champion_error is None
    assert "trivial predictor" in verdict.reasons.en


def test_only_the_candidate_that_ranks_first_meets_the_gate(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    second, first = shelf.put(fresh, rival="evolver"), shelf.put(better)
    verdict = shelf.judged(second, first)
    assert verdict.promoted == first.candidate_id
    outranked, picked = verdict.candidates
    assert (outranked.verdict, picked.verdict) == ("outranked", "better")
    assert outranked.error is not None
    assert "ranking cases" in outranked.reasons.en


def test_of_two_that_err_alike_neither_is_said_to_err_less() -> None:
    alike, worse = remarks.outranked(0.1, 0.1, 9), remarks.outranked(0.2, 0.1, 9)
    assert "had as low a mean error" in alike.en
    assert "had a lower mean error" in worse.en
    assert alike.ar != worse.ar.replace("0.2", "0.1")


def test_the_same_round_gets_the_same_verdict_twice(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    candidates = shelf.put(fresh), shelf.put(better)
    champion = reigning(shelf.put(fresh))
    torch.manual_seed(1)
    first = shelf.judged(*candidates, champion=champion)
    torch.manual_seed(2)
    assert shelf.judged(*candidates, champion=champion) == first


def test_one_unsound_candidate_does_not_cost_the_other_its_round(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    sound, unsound = shelf.put(better), shelf.put(weights=b"not weights at all")
    verdict = shelf.judged(unsound, sound)
    assert verdict.promoted == sound.candidate_id
    assert [each.verdict for each in verdict.candidates] == ["refused", "better"]


def test_a_round_without_candidates_is_void(shelf: Shelf) -> None:
    verdict = shelf.judged()
    assert verdict.verdict == "void"
    assert verdict.candidates == []
    assert verdict.reasons.en == "No candidate stood in this round."


def test_weights_that_are_not_numbers_are_refused(shelf: Shelf) -> None:
    module = trained(0)
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("nan")
    assert_refused(shelf.judged(shelf.put(module)), "finite")


def test_weights_of_other_shapes_are_refused(shelf: Shelf, better: torch.nn.Module) -> None:
    tensors = {name: torch.zeros(*tensor.shape, 2) for name, tensor in better.state_dict().items()}
    assert_refused(shelf.judged(shelf.put(weights=safetensors.torch.save(tensors))))


def test_weights_of_another_type_are_refused(shelf: Shelf, better: torch.nn.Module) -> None:
    tensors = {name: tensor.double() for name, tensor in better.state_dict().items()}
    assert_refused(shelf.judged(shelf.put(weights=safetensors.torch.save(tensors))))


def test_weights_with_a_missing_or_an_added_tensor_are_refused(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    tensors = dict(better.state_dict())
    more = shelf.put(weights=safetensors.torch.save({**tensors, "more": torch.zeros(1)}))
    tensors.popitem()
    less = shelf.put(weights=safetensors.torch.save(tensors))
    assert_refused(shelf.judged(more))
    assert_refused(shelf.judged(less))


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (sys.exit, ("unpickled",))


def test_a_pickle_in_disguise_is_refused_and_never_opened(shelf: Shelf) -> None:
    assert_refused(shelf.judged(shelf.put(weights=pickle.dumps(_Bomb()))))


def test_a_header_that_claims_more_than_the_file_holds_is_refused(shelf: Shelf) -> None:
    header = b'{"a":{"dtype":"F32","shape":[999999999],"data_offsets":[0,3999999996]}}'
    claims = len(header).to_bytes(8, "little") + header + b"\0" * 64
    assert_refused(shelf.judged(shelf.put(weights=claims)))
    assert_refused(shelf.judged(shelf.put(weights=(2**60).to_bytes(8, "little") + b"{}")))


def test_weights_other_than_the_announced_ones_are_refused(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    verdict = shelf.judged(shelf.put(better, sha256=hashlib.sha256(b"other").hexdigest()))
    assert_refused(verdict, "announced")


def test_a_family_the_specialist_does_not_know_is_refused(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    stranger = base.Config(family="exact-solver", sizes={})
    assert_refused(shelf.judged(shelf.put(better, stranger)), "exact-solver")


def test_a_configuration_that_is_no_configuration_is_refused(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    for nonsense in (b"", b"[]", b"{" * 5_000, b"\xff", b'{"family":7}'):
        assert_refused(shelf.judged(shelf.put(better, nonsense)))


def test_chunks_that_are_not_stored_are_refused(shelf: Shelf, better: torch.nn.Module) -> None:
    def edit(manifest: chunks.Manifest) -> chunks.Manifest:
        return msgspec.structs.replace(manifest, writer="agent-2")

    assert_refused(shelf.judged(shelf.put(better, edit=edit)))


def test_a_manifest_that_lies_about_a_files_digest_is_refused(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    def edit(manifest: chunks.Manifest) -> chunks.Manifest:
        files = [msgspec.structs.replace(file, sha256="0" * 64) for file in manifest.files]
        return msgspec.structs.replace(manifest, files=files)

    assert_refused(shelf.judged(shelf.put(better, edit=edit)))


def test_a_manifest_of_more_bytes_than_are_read_is_refused(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    def edit(manifest: chunks.Manifest) -> chunks.Manifest:
        files = [msgspec.structs.replace(file, bytes=10**12) for file in manifest.files]
        return msgspec.structs.replace(manifest, files=files)

    assert_refused(shelf.judged(shelf.put(better, edit=edit)), "at most")


def test_a_workload_nobody_knows_makes_the_round_void(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    workload = events.Workload(specialist="alchemy")
    assert_refused(shelf.judged(shelf.put(better), workload=workload), "alchemy")


def test_a_champion_that_cannot_be_loaded_ends_the_round_void_and_goes_on_reigning(
    shelf: Shelf, fresh: torch.nn.Module, better: torch.nn.Module
) -> None:
    gone = msgspec.structs.replace(
        reigning(shelf.put(better)), manifest="0" * 64, candidate_id="gone"
    )
    damaged = reigning(shelf.put(weights=b"not weights at all"))
    for champion in (gone, damaged):
        verdict = shelf.judged(shelf.put(fresh), champion=champion)
        assert (verdict.verdict, verdict.promoted) == ("void", "")
        assert verdict.against == champion.candidate_id
        for words in (verdict.reasons.en, verdict.reasons.ar):
            assert champion.candidate_id in words
            assert champion.manifest[:12] in words
        assert only(verdict).verdict == "unjudged"
        assert only(verdict).error is not None


class _Control:
    """A control that is never asked."""

    inbox_prefix = "_INBOX_judge"


def sitting(shelf: Shelf, key: bytes = b"k" * keys.KEY_BYTES) -> judge.Judge:
    return judge.Judge(cast("bus.Bus", _Control()), shelf.store, key, "j", Path())


def test_a_round_of_a_lost_key_ends_void_without_a_secret_once_that_is_said(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    one = sitting(shelf, b"another key of thirty-two bytes!")
    with pytest.raises(errors.Conflict, match="--new-key"):
        asyncio.run(one._verdict(brief(shelf.put(better)), 1))
    verdict = asyncio.run(one._verdict(brief(shelf.put(better), withdrawn=True), 1))
    assert (verdict.verdict, verdict.secret) == ("void", "")
    assert "key behind this round's commitment is lost" in verdict.reasons.en
    assert only(verdict).error is None


def test_a_round_of_a_node_that_trains_something_else_ends_void_with_its_secret(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    standing = brief(shelf.put(better), outdated=True)
    verdict = asyncio.run(sitting(shelf)._verdict(standing, 1))
    assert (verdict.verdict, verdict.secret) == ("void", SECRET.hex())
    assert "something else" in verdict.reasons.en
    assert only(verdict).error is None


def test_a_round_that_trips_the_judge_again_and_again_ends_void(
    shelf: Shelf, better: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_: object) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(trial, "measure", trip)
    one, standing = sitting(shelf), brief(shelf.put(better))
    with pytest.raises(errors.Unavailable, match="unforeseen"):
        asyncio.run(one._verdict(standing, judge.DELIVERIES_MAX - 1))
    verdict = asyncio.run(one._verdict(standing, judge.DELIVERIES_MAX))
    assert (verdict.verdict, verdict.secret) == ("void", SECRET.hex())
    assert "ZeroDivisionError: unforeseen" in verdict.reasons.ar


def test_no_round_ends_void_for_want_of_room_on_the_judges_disk(
    shelf: Shelf, better: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trial, "measure", trip)
    with pytest.raises(errors.Unavailable, match="No space left"):
        asyncio.run(sitting(shelf)._verdict(brief(shelf.put(better)), judge.DELIVERIES_MAX))


def test_a_judge_whose_key_does_not_open_the_newest_commitment_does_not_judge(
    shelf: Shelf,
) -> None:
    newest = wire.Commitment(index=3, commitment=keys.commitment_to(SECRET))
    sitting(shelf)._require_key(newest)
    sitting(shelf, b"x" * keys.KEY_BYTES)._require_key(None)
    with pytest.raises(errors.DataDirectoryError, match="does not open commitment 3"):
        sitting(shelf, b"x" * keys.KEY_BYTES)._require_key(newest)


def test_a_judge_asked_to_stop_abandons_the_round(shelf: Shelf, better: torch.nn.Module) -> None:
    def stop() -> None:
        raise trial.Abandoned

    with pytest.raises(trial.Abandoned):
        asyncio.run(
            judge.judge_round(brief(shelf.put(better)), shelf.store, SECRET, "j", Path(), stop)
        )


def test_a_judge_asked_to_stop_takes_no_further_reading(
    shelf: Shelf, better: torch.nn.Module
) -> None:
    asked = False

    def stop() -> None:
        if asked:
            raise trial.Abandoned

    def timing(timed: Mapping[str, Timed], _: str, is_clear: trial.IsClear) -> NoReturn:
        nonlocal asked
        asked = True
        is_clear(next(iter(timed)), READING)
        pytest.fail("it goes on")

    told = brief(shelf.put(better))
    with pytest.raises(trial.Abandoned):
        asyncio.run(judge.judge_round(told, shelf.store, SECRET, "j", Path(), stop, timing))


@pytest.mark.parametrize("name", ["root-math", "opt-convex"])
def test_the_other_specialists_are_judged_too(shelf: Shelf, name: str) -> None:
    specialist = registry.get(name, {})
    config = specialist.families("reinventor")[0]
    torch.manual_seed(1)
    verdict = shelf.judged(
        shelf.put(specialist.build(config), config),
        node_id=name,
        workload=events.Workload(specialist=name),
    )
    assert verdict.verdict in ("promote", "keep")
    assert only(verdict).error is not None
    assert verdict.cases == hidden.HIDDEN_CASES


def test_rank_and_gate_draw_different_cases_in_every_round() -> None:
    seeds = {
        keys.seed_of(secret, label, node, round_id)
        for secret in (SECRET, b"x" * 32)
        for label in ("rank", "gate")
        for node in ("a", "b")
        for round_id in ("r1", "r2")
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_secret_opens_its_commitment_and_no_other() -> None:
    key = b"k" * keys.KEY_BYTES
    commitments = {keys.commitment_to(keys.secret_of(key, index)) for index in range(100)}
    assert len(commitments) == 100
    assert hashlib.sha256(SECRET).hexdigest() == keys.commitment_to(SECRET)
    assert keys.secret_of(key, 3) == SECRET
    assert len(SECRET) == 32


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "judge" / "key"
    key = keys.load_key(path)
    assert len(key) == keys.KEY_BYTES
    assert keys.load_key(path) == key
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_key_is_made_where_another_was_committed_with(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(errors.DataDirectoryError, match="restore it from a backup"):
        keys.load_key(path, 128)
    assert not path.exists()
    key = keys.load_key(path)
    assert keys.load_key(path, 128) == key


def test_a_key_of_the_wrong_length_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"short")
    with pytest.raises(errors.DataDirectoryError, match="5 bytes, not 32"):
        keys.load_key(path)
