"""Text as a specialist: n-grams that are exact, pieces that are apart, models that beat them."""

import hashlib
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.executors import device, jobs, training
from agent.specialists import forms, ngrams, registry
from agent.specialists.base import Config, Specialist
from agent.specialists.text import WINDOW_BYTES, Text
from core import corpora, errors, workloads
from core.events import Rival
from tests import texts

torch.set_num_threads(1)
ROLES: tuple[Rival, Rival] = ("evolver", "reinventor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus as its judge has it."""
    return texts.unpack(tmp_path_factory.mktemp("corpus"), hidden=True)


@pytest.fixture(scope="module")
def one(folder: Path) -> Specialist:
    return registry.get(workloads.TEXT, corpus=str(folder))


def counted(text: bytes, context: bytes, byte: int) -> float:
    """P(byte | context) by the formula, without any table."""
    share = 1 / 256
    for length in range(len(context) + 1):
        before = context[len(context) - length :]
        after = Counter(
            text[at] for at in range(7, len(text)) if text[at] and text[at - length : at] == before
        )
        n, kinds = sum(after.values()), len(after)
        if n:
            share = (after[byte] + kinds * share) / (n + kinds)
    return share


def test_n_grams_are_those_of_the_formula_and_sum_to_one() -> None:
    documents = [b"abracadabra abra", "كتاب قديم".encode()]
    text = ngrams.join(documents, 1_000)
    table = ngrams.Ngrams(text, 3)
    for context in (b"\0\0\0", b"abr", b"cad", b"xyz", "كت".encode()[:3]):
        key = np.full(256, int.from_bytes(context, "big"), np.uint64)
        looked = table.look(key, np.arange(256).astype(np.uint8))
        assert looked.share.sum(0) == pytest.approx(np.ones(4), abs=1e-5)
        for byte in (*b"abr ", 0xD9):
            assert looked.share[byte, 3] == pytest.approx(counted(bytes(text), context, byte))


def test_pieces_of_the_parts_share_nothing_and_are_whole_letters(one: Specialist) -> None:
    drawn = {split: one.cases(1, 10_000, split) for split in ("validation", "hidden")}
    pieces: dict[str, set[bytes]] = {}
    for split, cases in drawn.items():
        rows = zip(cases["text"], cases["scored"], strict=True)
        found = [bytes(text[scored].to(torch.uint8).tolist()) for text, scored in rows]
        for piece in found:
            piece.decode()
        assert len(set(found)) == len(found) > 20
        pieces[split] = set(found)
        assert cases["text"].shape[1] == WINDOW_BYTES
    assert not pieces["validation"] & pieces["hidden"]


def test_cases_and_batches_are_functions_of_their_seeds(one: Specialist, folder: Path) -> None:
    again = Text(corpus=folder)
    for split in ("validation", "hidden"):
        first, second = one.cases(3, 9, split), again.cases(3, 9, split)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(one.cases(3, 9)["text"], one.cases(4, 9)["text"])
    first, second = one.train_batch(5, 7), again.train_batch(5, 7)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text"], one.train_batch(5, 8)["text"])


def test_without_the_hidden_part_no_hidden_case_can_be_drawn(tmp_path: Path) -> None:
    public = registry.get(workloads.TEXT, corpus=str(texts.unpack(tmp_path)))
    with pytest.raises(errors.Invalid, match="for its judge alone"):
        public.cases(1, 5, "hidden")
    with pytest.raises(errors.ArtifactError, match=r"training\.txt of the corpus cannot be read"):
        registry.get(workloads.TEXT, corpus=str(tmp_path / "nowhere"))
    with pytest.raises(errors.Invalid, match="trains on a corpus"):
        registry.get(workloads.TEXT)


def test_what_a_byte_costs_depends_on_none_after_it(one: Specialist) -> None:
    cases = one.cases(1, 2)
    for role in ("evolver", "reinventor"):
        module = one.build(one.families(role)[0])
        whole = module(cases["text"], cases["share"], cases["total"], cases["kinds"])
        cut = {name: cases[name].clone() for name in ("text", "share", "total", "kinds")}
        for name in cut:
            cut[name][:, 200:] = 1
        part = module(*cut.values())
        assert torch.allclose(whole[:, :200], part[:, :200], atol=1e-6)


def test_baselines_know_more_with_more_context_and_an_untrained_mixture_errs_finitely(
    one: Specialist,
) -> None:
    cases = one.cases(1, 30, "hidden")
    found = {name: float(each.mean()) for name, each in one.baseline_errors(cases).items()}
    assert found["byte 6-gram"] < found["byte 4-gram"] < found["trivial"]
    assert found["trivial"] == pytest.approx(one.trivial_error, rel=0.2)
    for role in ("evolver", "reinventor"):
        errs = one.errors(one.build(one.families(role)[0]), cases)
        assert (errs.shape, errs.dtype) == ((30,), torch.float64)
        assert bool((errs > 0).all() & errs.isfinite().all())


def test_a_network_that_would_hold_a_judge_up_for_an_hour_is_not_built(one: Specialist) -> None:
    with pytest.raises(errors.ArtifactError, match="width from 8 to 256"):
        one.build(Config(family="mixture", sizes={"width": 1024, "blocks": 12}))


def trained(out: Path, role: Rival, folder: Path, steps: int) -> jobs.Result:
    device.prepare()
    job = jobs.Job(
        task_id="t",
        node_id="n",
        specialist=workloads.TEXT,
        role=role,
        seed=1,
        directory=str(out),
        corpus=str(folder),
        steps=steps,
    )
    result = training.run(job, lambda _: None, lambda: None)
    assert isinstance(result, jobs.Result)
    return result


def test_a_few_steps_of_either_role_beat_the_six_gram_where_longer_contexts_tell_more(
    tmp_path: Path,
) -> None:
    draw = random.Random(1)
    # Sentences of which there are few: their beginning tells the rest.
    known = [texts.document(number, 60) for number in range(30)]
    documents = [" ".join(draw.choice(known) for _ in range(8)).encode() for _ in range(80)]
    folder = texts.unpack(tmp_path / "c", documents=documents)
    for role in ROLES:
        result = trained(tmp_path / role, role, folder, steps=25)
        assert result.loss < 0.97 * result.baseline_loss
        assert math.isfinite(result.evidence_rate)


def test_the_smallest_corpus_that_is_accepted_is_trained_to_the_end(tmp_path: Path) -> None:
    least = corpora.HELD_OUT_BYTES_MIN
    held_out = [texts.document(one, 2 * least).encode()[:least] for one in (3, 6)]
    last = max(hashlib.sha256(one).digest() for one in held_out)
    long = (texts.document(number * 3, 3 * least).encode()[: 2 * least] for number in range(99))
    training = next(one for one in long if hashlib.sha256(one).digest() > last)
    split = corpora.split([*held_out, training])
    assert split.training == [training]
    with pytest.raises(errors.Invalid):
        corpora.split([*held_out, training[:-1]])
    folder = texts.unpack(tmp_path / "c", documents=[*held_out, training])
    for role in ROLES:
        result = trained(tmp_path / role, role, folder, steps=5)
        assert (result.steps, math.isfinite(result.loss)) == (5, True)
    batches = [Text(corpus=folder).train_batch(1, step)["text"] for step in range(9)]
    assert all(bool((batch != ngrams.BEGIN).any(1).all()) for batch in batches)


def test_n_grams_of_no_text_know_of_nothing() -> None:
    table = ngrams.Ngrams(ngrams.join([], 10), 2)
    looked = table.look(np.zeros(3, np.uint64), np.frombuffer(b"abc", np.uint8))
    assert looked.share.tolist() == [[np.float32(1 / 256)] * 3] * 3
    assert not looked.total.any()
    assert not looked.kinds.any()


def test_a_quantized_mixture_is_about_half_its_bytes_and_says_about_the_same(
    one: Specialist,
) -> None:
    cases = one.cases(1, 8)
    for role in ("evolver", "reinventor"):
        module = one.build(one.families(role)[0])
        small = forms.in_int8(module)
        sizes = [
            sum(tensor.numel() * tensor.element_size() for tensor in each.state_dict().values())
            for each in (module, small)
        ]
        assert sizes[1] < 0.7 * sizes[0]
        with torch.inference_mode():
            found, wanted = one.errors(small, cases), one.errors(module, cases)
        assert torch.allclose(found, wanted, rtol=0.1)


def test_training_text_is_no_better_known_than_text_that_was_never_counted(
    one: Specialist,
) -> None:
    batch, cases = one.train_batch(1, 0), one.cases(1, 100)
    there, scored = batch["text"] != ngrams.BEGIN, cases["scored"]
    longest = [float(-each.log2().mean()) for each in
               (batch["share"][there][:, -1], cases["share"][scored][:, -1])]  # fmt: skip
    assert longest[0] > 0.9 * longest[1]


def test_what_networks_say_of_a_window_is_what_their_loss_is_made_of(one: Specialist) -> None:
    batch = one.train_batch(1, 1)
    torch.manual_seed(1)
    evolver, reinventor = (one.build(one.families(role)[0]) for role in ("evolver", "reinventor"))
    said, other = one.outputs(evolver, batch), one.outputs(reinventor, batch)
    assert said.shape == other.shape == (one.batch_size,)
    there = (batch["text"] != ngrams.BEGIN).sum(1)
    weighed = float((said.detach() * there).sum() / there.sum())
    assert weighed == pytest.approx(float(one.loss(evolver, batch)), rel=1e-4)
    assert float(one.distance(said, said)) == 0
    one.distance(other, said.detach()).backward()  # type: ignore[no-untyped-call]
    assert any(weight.grad is not None and weight.grad.any() for weight in reinventor.parameters())
