"""Text of a corpus: how likely each byte is after those before it.

A piece is up to 128 bytes of a document, after up to 128 bytes before them in it. The error of a
case is what its piece costs: -log2 P(byte | those before), bits per byte, the mean of its bytes.
The families mix n-grams of the training documents, by weights that a network sets anew at each
byte; the larger one adds a guess of its own. Bytes need no tokenizer: none to train, none to send,
and every language costs what it costs. Weights are as small as the network is; the counts are
made of the corpus wherever the model is loaded.
"""

import abc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from agent.specialists import bases, ensembles, ngrams, seeds, sizes
from agent.specialists.base import (
    Answers,
    Batch,
    Cases,
    Config,
    Field,
    Inputs,
    Role,
    Split,
)
from core import corpora, errors
from core.events import BaseModel

PIECE_BYTES = 128
WINDOW_BYTES = 2 * PIECE_BYTES
LAST_PIECE_BYTES_MIN = 32
"""A shorter rest of a document is left out: one byte alone would weigh as much as a piece."""
ORDERS = ngrams.CONTEXT_MAX + 1
CASES_AT_ONCE = 128
RECORD = "byte 6-gram"
BASELINES = {"trivial": 0, "byte 4-gram": 3, RECORD: ngrams.BASELINE_CONTEXT, "byte 8-gram": 7}
"""Bytes of context of each."""
SHARE_MIN = 1e-9
BOUNDS = {"width": (8, 256), "blocks": (1, 12)}
"""The largest takes a judge's core some minutes; of 1,024 wide it would be an hour and more."""
ADAPTER = "adapter"
RANK = 8
_FAMILIES = ("mixture", "gates", ADAPTER)


class Text:
    """The texts of one corpus.

    The trivial predictor knows how often each byte is. The baseline of record is a byte 6-gram
    with Witten-Bell smoothing over the same training documents; evidence is a piece that costs no
    more than what that pays on the validation documents.

    Training windows are drawn from two halves of the training documents, each looked up in the
    n-grams of the other: a network that saw the counts of its own text would trust them too far.
    Measured is with the counts of all.
    """

    name = "text"
    unit = "bits per byte"
    baseline_of_record = RECORD
    batch_size = 16
    learning_rate = 5e-3
    inputs = (
        Field(
            "text",
            "a text of any length, taken as a document that begins here",
            "نص بأي طول، يُعدّ وثيقة تبدأ هنا",
            is_text=True,
        ),
    )
    answers = (
        Field(
            "bits_per_byte",
            "what it costs: -log2 of the probability of its bytes (UTF-8), on average; the lower, "
            "the more it is like the corpus",
            "كلفته: متوسط -log2 لاحتمال بايتاته (UTF-8)؛ وكلما قلّت كان أشبه بالمدوّنة",
        ),
        Field(
            "baseline",
            "what it costs by the byte 6-gram of the corpus",
            "كلفته بنموذج 6-gram للبايتات من المدوّنة",
        ),
    )

    def __init__(self, *, corpus: Path, base_model: BaseModel | None = None) -> None:
        """Raises errors.ArtifactError where the folder holds no corpus."""
        self._folder = corpus
        self._base_model = base_model
        self._training = _documents(corpus, corpora.TRAINING)
        self._counts = _counted(self._training)
        self._validation = _documents(corpus, corpora.VALIDATION)
        self._halves: list[_Half] = []
        text = ngrams.join(self._validation, ngrams.MEASURED_BYTES_MAX)
        there = text != ngrams.BEGIN
        share = self._counts.look(ngrams.contexts_of(text)[there], text[there]).share
        bits = -np.log2(share).mean(0, dtype=np.float64)
        self.trivial_error = float(bits[BASELINES["trivial"]])
        self.tolerance = float(bits[BASELINES[RECORD]])

    @property
    def hidden_max(self) -> int | None:
        """The hidden pieces. Raises errors.Invalid where only training and validation texts are."""
        return len(_pieces(self._hidden()))

    def train_batch(self, seed: int, step: int) -> Batch:
        """Windows of training text, and what is known of each byte: text int64 [count, 256]; share
        float32, total and kinds int32, [count, 256, orders]."""
        halves = self._training_halves()
        draw = seeds.generator(self.name, "train", seed, step)
        half = halves[int(torch.randint(len(halves), (1,), generator=draw))]
        starts = torch.randint(half.starts, (self.batch_size, 1), generator=draw).numpy()
        places = starts + np.arange(WINDOW_BYTES)
        return _windows(half.counts, half.text[places], half.contexts[places])

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Different pieces of one part of the corpus, as many as there are at most: as
        `train_batch`, and `scored`, bool [count, 256], where the piece is.

        Raises errors.Invalid for hidden pieces where only training and validation texts are.
        """
        documents = self._validation if split == "validation" else self._hidden()
        pieces = _pieces(documents)
        draw = seeds.generator(self.name, split, seed)
        chosen = torch.randperm(len(pieces), generator=draw)[:count].tolist()
        return self._cases(documents, [pieces[one] for one in chosen])

    def shifted(self, seed: int, count: int) -> Cases | None:
        """None: what lies beyond a corpus is another corpus."""
        return None

    def _cases(self, documents: list[bytes], pieces: "list[_Piece]") -> Cases:
        text = np.zeros((len(pieces), WINDOW_BYTES), np.uint8)
        contexts = np.zeros(text.shape, np.uint64)
        scored = np.zeros(text.shape, np.bool_)
        for row, (document, first, start, end) in enumerate(pieces):
            known = np.frombuffer(documents[document][first:end], np.uint8)
            text[row, : len(known)] = known
            scored[row, start - first : len(known)] = True
            before = bytes(ngrams.CONTEXT_MAX) + documents[document][:first]
            whole = np.frombuffer(before[-ngrams.CONTEXT_MAX :] + known.tobytes(), np.uint8)
            contexts[row, : len(known)] = ngrams.contexts_of(whole)[ngrams.CONTEXT_MAX :]
        found = _windows(self._counts, text, contexts)
        return {**found, "scored": torch.from_numpy(scored)}

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh network of the family "mixture" or "gates", or an "adapter" over the base model
        where the work is over one."""
        if config.family == ADAPTER:
            return self._adapter(config)
        if config.family not in _FAMILIES:
            raise sizes.unknown_family(config, self.name, _FAMILIES)
        asked = sizes.read(config, BOUNDS)
        return Mixture(guesses=config.family == "mixture", **asked)

    def ensemble(self, members: Sequence[torch.nn.Module]) -> ensembles.Ensemble:
        """The mean of the probabilities that they give to a byte.

        Raises errors.ArtifactError for adapters over a base model, whose tokens are not bytes.
        """
        if not all(isinstance(member, ByteModel) for member in members):
            raise errors.ArtifactError("adapters over a base model are not taken together")
        return Mixtures(members)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean bits per byte of the windows."""
        text = batch["text"]
        there = text != ngrams.BEGIN
        if not isinstance(module, ByteModel):
            bits = _bits(module, text, torch.zeros_like(there))
            return bits.sum() / there.sum()
        logs = module(text, batch["share"], batch["total"], batch["kinds"])
        mean: torch.Tensor = -(logs * there).sum() / there.sum() / math.log(2)
        return mean

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Bits per byte of each window [count]: what else might have come is not looked up, and a
        base model counts in tokens."""
        text = batch["text"]
        there = text != ngrams.BEGIN
        if isinstance(module, ByteModel):
            logs = module(text, batch["share"], batch["total"], batch["kinds"])
            bits = -(logs * there).sum(1) / math.log(2)
        else:
            bits = _bits(module, text, torch.zeros_like(there))
        said: torch.Tensor = bits / there.sum(1).clamp_min(1)
        return said

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Mean difference, bits per byte."""
        return (outputs - taught).abs().mean()

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """Bits per byte of each piece, float64 [count]."""
        count = len(cases["text"])
        # A base model says something of each token of its vocabulary, at each place.
        at_once = CASES_AT_ONCE if isinstance(module, ByteModel) else self.batch_size
        parts = []
        for first in range(0, count, at_once):
            part = {name: one[first : first + at_once] for name, one in cases.items()}
            if not isinstance(module, ByteModel):
                parts.append(_bits_of_pieces(module, part))
                continue
            logs = module(part["text"], part["share"], part["total"], part["kinds"])
            parts.append(_mean_bits(logs, part["scored"]))
        return torch.cat(parts)

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """n-grams of several lengths, and the frequency of bytes alone."""
        return {
            name: _mean_bits(cases["share"][:, :, order].log(), cases["scored"])
            for name, order in BASELINES.items()
        }

    def families(self, role: Role) -> list[Config]:
        """A network that guesses too for the evolver, one that only weighs for the reinventor; for
        the evolver first an adapter, where the work is over a base model and it is here."""
        if role == "evolver" and self._base_model and bases.is_here(self._base_model):
            sizes = {"rank": RANK}
            return [Config(family=ADAPTER, sizes=sizes, base=self._base_model.digest)]
        if role == "evolver":
            return [Config(family="mixture", sizes={"width": 64, "blocks": 5})]
        return [Config(family="gates", sizes={"width": 32, "blocks": 3})]

    def asked(self, cases: Cases) -> Inputs:
        """The pieces, without what they are read after."""
        rows = zip(cases["text"].to(torch.uint8), cases["scored"], strict=True)
        pieces = [text[scored] for text, scored in rows]
        return {"text": torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """Bits per byte of each text, read piece by piece as documents are measured."""
        documents = [row[row != ngrams.BEGIN].numpy().tobytes() for row in inputs["text"]]
        pieces = _pieces(documents, rest_min=1)
        costs = torch.zeros(2, len(documents), dtype=torch.float64)
        for first in range(0, len(pieces), CASES_AT_ONCE):
            some = pieces[first : first + CASES_AT_ONCE]
            cases = self._cases(documents, some)
            means = torch.stack((self.errors(module, cases), self.baseline_errors(cases)[RECORD]))
            owners = torch.tensor([piece.document for piece in some])
            costs.index_add_(1, owners, means.cpu() * cases["scored"].sum(1))
        model, baseline = costs / torch.tensor([len(document) for document in documents])
        return {"bits_per_byte": model, "baseline": baseline}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """A window of the validation text."""
        one = self.cases(0, 1)
        return (one["text"], one["share"], one["total"], one["kinds"])

    def _adapter(self, config: Config) -> torch.nn.Module:
        """Raises errors.ArtifactError for adapters over another base, errors.TrainingError where
        the base is not here."""
        rank = sizes.read(config, {"rank": (1, 256)})["rank"]
        if self._base_model is None or config.base != self._base_model.digest:
            raise errors.ArtifactError(
                f"these are adapters over the base model {config.base[:12]}…, and this work is "
                f"over {self._base_model.name if self._base_model else 'none'}"
            )
        bases.require_extra()
        folder = bases.find(self._base_model)
        from agent.specialists import adapters

        return adapters.Adapted(folder, rank)

    def _training_halves(self) -> "list[_Half]":
        if not self._halves:
            first, second = _halved(self._training)
            self._halves = [_Half(first, second), _Half(second, first)]
        return self._halves

    def _hidden(self) -> list[bytes]:
        if not (self._folder / corpora.file_name(corpora.HIDDEN)).is_file():
            raise errors.Invalid(
                "the hidden documents of a corpus are for its judge alone: none are here"
            )
        return _documents(self._folder, corpora.HIDDEN)


def _halved(documents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Every other document; one alone is cut in the middle."""
    if len(documents) == 1:
        (whole,) = documents
        middle = _letter(whole, len(whole) // 2)
        return [whole[:middle]], [whole[middle:]]
    return documents[::2], documents[1::2]


class _Half:
    """Half of the training documents, to be looked up in the n-grams of the others."""

    def __init__(self, own: list[bytes], others: list[bytes]) -> None:
        self.text = ngrams.join(own, ngrams.COUNTED_BYTES_MAX // 2)
        if len(self.text) < WINDOW_BYTES:
            self.text = np.concatenate((self.text, np.zeros(WINDOW_BYTES, np.uint8)))
        self.contexts = ngrams.contexts_of(self.text)
        self.counts = _counted(others, ngrams.COUNTED_BYTES_MAX // 2)
        self.starts = len(self.text) - WINDOW_BYTES + 1


def _documents(folder: Path, part: str) -> list[bytes]:
    path = folder / corpora.file_name(part)
    try:
        return corpora.documents_of(path.read_bytes())
    except OSError as error:
        raise errors.ArtifactError(
            f"{path} of the corpus cannot be read: {error.strerror}; remove its folder, and it is "
            "fetched again"
        ) from error


def _counted(documents: list[bytes], bytes_max: int = ngrams.COUNTED_BYTES_MAX) -> ngrams.Ngrams:
    return ngrams.Ngrams(ngrams.join(documents, bytes_max), ngrams.CONTEXT_MAX)


class _Piece(NamedTuple):
    """Where a piece is: its document, where the bytes begin that it is read after, and itself."""

    document: int
    first: int
    start: int
    end: int


def _pieces(documents: list[bytes], rest_min: int = LAST_PIECE_BYTES_MIN) -> list[_Piece]:
    """Every piece, cut between letters."""
    return [
        _Piece(number, _letter(document, max(0, end - WINDOW_BYTES)), start, end)
        for number, document in enumerate(documents)
        for at in range(0, len(document) - rest_min + 1, PIECE_BYTES)
        for start, end in [(_letter(document, at), _letter(document, at + PIECE_BYTES))]
        if start < end
    ]


def _letter(text: bytes, at: int) -> int:
    """The first place from here on where a letter begins, in UTF-8, or the end."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return min(at, len(text))


def _windows(
    counts: ngrams.Ngrams, text: ngrams.Bytes, contexts: npt.NDArray[np.uint64]
) -> dict[str, torch.Tensor]:
    found = counts.look(contexts.ravel(), text.ravel())
    shape = (*text.shape, ORDERS)
    return {
        "text": torch.from_numpy(text.astype(np.int64)),
        "share": torch.from_numpy(found.share.reshape(shape)),
        "total": torch.from_numpy(found.total.reshape(shape)),
        "kinds": torch.from_numpy(found.kinds.reshape(shape)),
    }


def _mean_bits(logs: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean of -log2 over what is scored, float64 [count], from natural logarithms."""
    bits = torch.where(scored, -logs.double() / math.log(2), 0.0).sum(1)
    return (bits / scored.sum(1)).clamp_min(0.0)


def _bits(module: torch.nn.Module, text: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """What an adapted base model pays for rows of bytes, but for those that are `before`, both
    [count, bytes]; letters that are cut at an end are left out."""
    from agent.specialists import adapters

    assert isinstance(module, adapters.Adapted)
    rows = []
    for row, known in zip(text.cpu(), before.cpu(), strict=True):
        whole, count = bytes(row.to(torch.uint8).tolist()), int(known.sum())
        parts = (whole[:count], whole[count:])
        first, second = (part.decode(errors="ignore").replace("\0", "") for part in parts)
        rows.append((first, second))
    return module.bits(rows)


def _bits_of_pieces(module: torch.nn.Module, cases: Cases) -> torch.Tensor:
    """Bits per byte of each piece, float64 [count]."""
    scored = cases["scored"]
    before = (scored.cumsum(1) == 0) & scored.any(1, keepdim=True)
    bits = _bits(module, cases["text"], before).double().cpu()
    return (bits / scored.sum(1)).clamp_min(0.0)


class ByteModel(torch.nn.Module, abc.ABC):
    """Says how likely each byte of a text is."""

    @abc.abstractmethod
    def forward(
        self,
        text: torch.Tensor,
        share: torch.Tensor,
        total: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        """log P of each byte after those before it, [n, bytes]: of text [n, bytes] and what is
        known of it, each [n, bytes, orders]."""


class Mixtures(ensembles.Ensemble, ByteModel):
    """Several models as one: the mean of their probabilities, which adds up to 1 as they do."""

    def mean(self, said: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of probabilities, from and to their logarithms."""
        logs = self.trust.log_softmax(0)
        return torch.logsumexp(
            torch.stack([log + one for log, one in zip(logs, said, strict=True)]), 0
        )


class Mixture(ByteModel):
    """P(byte) = sum of weight x P of each n-gram, and of a guess where the network makes one.

    The network sees, before each byte, the byte that came last, how often each context was seen,
    how many bytes followed it, and how well each n-gram did on the byte before.
    """

    def __init__(self, *, width: int, blocks: int, guesses: bool) -> None:
        super().__init__()
        self.byte = torch.nn.Embedding(256, width)
        self.known = torch.nn.Linear(4 * ORDERS, width)
        self.blocks = torch.nn.ModuleList(Block(width, 2**number) for number in range(blocks))
        self.norm = torch.nn.LayerNorm(width)
        self.weigh = torch.nn.Linear(width, ORDERS + guesses)
        self.guess = torch.nn.Linear(width, 256) if guesses else None
        torch.nn.init.normal_(self.byte.weight, std=0.5)
        torch.nn.init.normal_(self.weigh.weight, std=0.01)
        torch.nn.init.zeros_(self.weigh.bias)

    def forward(
        self,
        text: torch.Tensor,
        share: torch.Tensor,
        total: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        logs = share.clamp_min(SHARE_MIN).log()
        x = self.byte(_one_later(text)) + self.known(_features(logs, total, kinds))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.guess is not None:
            guessed = self.guess(x).log_softmax(2).gather(2, text.unsqueeze(2))
            logs = torch.cat((logs, guessed), 2)
        return torch.logsumexp(self.weigh(x).log_softmax(2) + logs, 2)


def _one_later(values: torch.Tensor) -> torch.Tensor:
    """What stood one byte before; [n, bytes, ...] with zeros first."""
    return torch.cat((torch.zeros_like(values[:, :1]), values[:, :-1]), 1)


def _features(logs: torch.Tensor, total: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """What is known before a byte is: [n, bytes, 4 x orders], each about 1."""
    seen, differ = total.float(), kinds.float()
    escape = differ / (seen + differ).clamp_min(1)
    return torch.cat((seen.log1p() / 4, differ.log1p() / 4, escape, _one_later(logs) / 4), 2)


class Block(torch.nn.Module):
    """What is at a byte, and what was `distance` bytes before it, through a GELU layer; added."""

    def __init__(self, width: int, distance: int) -> None:
        super().__init__()
        self.distance = distance
        self.before = torch.nn.LayerNorm(width)
        self.hidden = torch.nn.Linear(2 * width, 2 * width)
        self.out = torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, bytes, width] to the same."""
        calm = self.before(x)
        earlier = functional.pad(calm, (0, 0, self.distance, 0))[:, : x.shape[1]]
        added: torch.Tensor = self.out(functional.gelu(self.hidden(torch.cat((calm, earlier), 2))))
        return x + added
