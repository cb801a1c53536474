"""root-math: add two numbers of a few digits with a small causal transformer."""

import abc
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch.nn import functional

from agent.specialists import ensembles, seeds, sizes
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
from core import errors

PLUS, EQUALS, VOCABULARY = 10, 11, 12
DIGITS = 2
LISTED_DIGITS_MAX = 2
"""With more digits, pairs are drawn and asked their side; so few are listed, side by side."""
DRAWN_AT_ONCE = 64
SPLIT_SHARES = {"train": 0.60, "validation": 0.12, "hidden": 0.28}


class Addition:
    """a + b for a, b of `digits` digits, the answer least significant first (Lee et al. 2023).

    A case of two digits is nine tokens, int64: a1 a0 + b1 b0 = s0 s1 s2, where a = 10 a1 + a0,
    b = 10 b1 + b0 and a + b = 100 s2 + 10 s1 + s0; each digit more is three tokens more. The truth
    is integer arithmetic. The error of a case is 0 when all digits, decoded greedily, are right,
    else 1.

    The pairs are split by a public hash: 60 % train, 12 % validation, 28 % hidden; a pair and its
    mirror share a side. What leaks all the same: the split is public and of two digits there are
    only 10,000 pairs, so a dishonest trainer could train on the hidden ones, and hidden draws of
    different rounds overlap (of three digits there are a million, of four a hundred). Honest
    trainers go through `train_batch`, which never shows them.
    """

    name = "root-math"
    unit = "share of sums with a wrong digit (1 - exact match)"
    trivial_error = 0.9999
    tolerance = 0.5
    baseline_of_record = "trivial"
    batch_size = 32
    learning_rate = 6e-3

    def __init__(self, *, digits: float = DIGITS) -> None:
        self._digits = int(digits)
        self._prompt_tokens = 2 * self._digits + 2
        self.trivial_error = 1 - 10.0 ** (-2 * self._digits)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """Two whole numbers."""
        most = 10**self._digits - 1
        en, ar = f"a whole number from 0 to {most}", f"عدد صحيح من 0 إلى {most}"
        return (
            Field("a", en, ar, least=0, most=most, is_whole=True),
            Field("b", en, ar, least=0, most=most, is_whole=True),
        )

    answers = (Field("sum", "a + b", "ناتج a + b", is_whole=True),)

    @property
    def hidden_max(self) -> int | None:
        """The hidden pairs, where they are few enough to be listed."""
        if self._digits > LISTED_DIGITS_MAX:
            return None
        return len(_pairs(self._digits)["hidden"])

    def train_batch(self, seed: int, step: int) -> Batch:
        """`batch_size` training pairs, drawn with replacement: tokens, int64 [count, 9]."""
        draw = seeds.generator(self.name, "train", seed, step)
        if self._digits > LISTED_DIGITS_MAX:
            return {"tokens": _tokens(self._drawn(draw, self.batch_size, "train"), self._digits)}
        pairs = _pairs(self._digits)["train"]
        chosen = torch.randint(len(pairs), (self.batch_size,), generator=draw)
        return {"tokens": _tokens(pairs[chosen], self._digits)}

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Distinct pairs of the split: prompt, int64 [count, 6], and answer, int64 [count, 3].

        Raises errors.Invalid for more cases than the split has pairs.
        """
        draw = seeds.generator(self.name, split, seed)
        if self._digits > LISTED_DIGITS_MAX:
            return self._as_cases(self._drawn(draw, count, split, are_distinct=True))
        pairs = _pairs(self._digits)[split]
        if not 1 <= count <= len(pairs):
            raise errors.Invalid(
                f"{self.name} cannot draw {count} distinct {split} cases: that side of the split "
                f"has {len(pairs)} pairs; ask for 1 to {len(pairs)}"
            )
        return self._as_cases(pairs[torch.randperm(len(pairs), generator=draw)[:count]])

    def shifted(self, seed: int, count: int) -> Cases | None:
        """Hidden pairs every digit of which carries, which of numbers drawn evenly few do; fewer
        than asked for where there are no more."""
        draw = seeds.generator(self.name, "shifted", seed)
        if self._digits > LISTED_DIGITS_MAX:
            return self._as_cases(self._carrying(draw, count))
        pairs = _pairs(self._digits)["hidden"]
        carrying = pairs[carries(pairs, self._digits)]
        return self._as_cases(carrying[torch.randperm(len(carrying), generator=draw)[:count]])

    def _carrying(self, draw: torch.Generator, count: int) -> torch.Tensor:
        """Distinct hidden pairs every digit of which carries, drawn digit by digit: [count, 2]."""
        found: dict[tuple[int, int], None] = {}
        places = 10 ** torch.arange(self._digits)
        while len(found) < count:
            digits = torch.randint(10, (2, DRAWN_AT_ONCE, self._digits), generator=draw)
            pairs = (digits @ places).T
            kept = pairs[carries(pairs, self._digits)].tolist()
            found.update(((a, b), None) for a, b in kept if side_of(a, b) == "hidden")
        return torch.tensor(list(found)[:count])

    def _as_cases(self, pairs: torch.Tensor) -> Cases:
        tokens = _tokens(pairs, self._digits)
        return {
            "prompt": tokens[:, : self._prompt_tokens],
            "answer": tokens[:, self._prompt_tokens :],
        }

    def _drawn(
        self, draw: torch.Generator, count: int, side: str, are_distinct: bool = False
    ) -> torch.Tensor:
        """Pairs of one side [count, 2]: drawn among all, and those of other sides left out."""
        found: list[tuple[int, int]] = []
        known: set[tuple[int, int]] = set()
        while len(found) < count:
            drawn = torch.randint(10**self._digits, (DRAWN_AT_ONCE, 2), generator=draw)
            for a, b in drawn.tolist():
                if side_of(a, b) == side and not (are_distinct and (a, b) in known):
                    found.append((a, b))
                    known.add((a, b))
        return torch.tensor(found[:count])

    def build(self, config: Config) -> torch.nn.Module:
        """A fresh transformer of the family "gpt"."""
        if config.family != "gpt":
            raise sizes.unknown_family(config, self.name, ("gpt",))
        asked = sizes.read(
            config, {"width": (8, 256), "heads": (1, 8), "blocks": (1, 4), "loops": (1, 4)}
        )
        if asked["width"] % asked["heads"]:
            raise errors.ArtifactError(
                f"width {asked['width']} cannot be cut into {asked['heads']} equal heads: choose "
                "a width that is a multiple of heads"
            )
        return Gpt(digits=self._digits, **asked)

    def ensemble(self, members: Sequence[torch.nn.Module]) -> ensembles.Ensemble:
        """One answer, digit by digit, by the mean of their scores."""
        return Decoders(members)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of the answer's digits, nats."""
        tokens = batch["tokens"]
        scores = module(tokens[:, :-1])
        return functional.cross_entropy(
            scores.flatten(0, 1), tokens[:, self._prompt_tokens :].flatten()
        )

    def outputs(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Logarithms of the odds of each answer digit [count, 3, 12]."""
        scores: torch.Tensor = module(batch["tokens"][:, :-1])
        return scores.log_softmax(2)

    def distance(self, outputs: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Mean KL(taught || said) of a digit, nats."""
        logs = taught.log_softmax(2)  # a mean of several logarithms is none of odds that add up
        each = functional.kl_div(outputs, logs, reduction="none", log_target=True)
        return each.sum(2).mean()

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """0 where the greedy answer is the sum, 1 where it is not; float64 [count]."""
        assert isinstance(module, Decoder)
        return (module.answer(cases["prompt"]) != cases["answer"]).any(1).double()

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """Constant answers: "trivial" says 0, "commonest sum" says 99 (right once in a hundred).

        With three digits the commonest sum is 999, right once in a thousand, and so on.
        """
        answer = cases["answer"]
        commonest = answer.new_tensor([9] * self._digits + [0])
        return {
            "trivial": (answer != 0).any(1).double(),
            "commonest sum": (answer != commonest).any(1).double(),
        }

    def families(self, role: Role) -> list[Config]:
        """Two blocks for the evolver, one narrower block for the reinventor."""
        if role == "evolver":
            return [
                _gpt(width=48, heads=4, blocks=2, loops=1),
                _gpt(width=64, heads=4, blocks=2, loops=1),
            ]
        return [
            _gpt(width=32, heads=4, blocks=1, loops=1),
            _gpt(width=24, heads=4, blocks=1, loops=1),
        ]

    def asked(self, cases: Cases) -> Inputs:
        """The numbers of the prompts."""
        digits = cases["prompt"].double()
        places = 10.0 ** torch.arange(self._digits - 1, -1, -1, dtype=torch.float64)
        a, b = digits[:, : self._digits], digits[:, self._digits + 1 : -1]
        return {"a": a @ places, "b": b @ places}

    def answer(self, module: torch.nn.Module, inputs: Inputs) -> Answers:
        """The sums; not a number where the model says something else than digits."""
        assert isinstance(module, Decoder)
        pairs = torch.stack((inputs["a"], inputs["b"]), 1).round().long()
        digits = module.answer(_tokens(pairs, self._digits)[:, : self._prompt_tokens])
        total = (digits * 10 ** torch.arange(self._digits + 1)).sum(1).double()
        return {"sum": total.masked_fill((digits >= PLUS).any(1), torch.nan)}

    def probe(self) -> tuple[torch.Tensor, ...]:
        """The tokens of 12 + 34 = 46 without the last digit, int64 [1, 8]."""
        return (_tokens(torch.tensor([[12, 34]]), self._digits)[:, :-1],)


def _gpt(**asked: int) -> Config:
    return Config(family="gpt", sizes=asked)


def carries(pairs: torch.Tensor, digits: int) -> torch.Tensor:
    """Whether every digit of a + b carries, of pairs [n, 2]: the last k digits reach 10^k."""
    each = [(pairs % 10**k).sum(1) >= 10**k for k in range(1, digits + 1)]
    return torch.stack(each).all(0)


@functools.cache
def _pairs(digits: int) -> dict[str, torch.Tensor]:
    """Every pair on its side of the split: int64 [pairs, 2]."""
    sides: dict[str, list[tuple[int, int]]] = {side: [] for side in SPLIT_SHARES}
    for a in range(10**digits):
        for b in range(10**digits):
            sides[side_of(a, b)].append((a, b))
    return {side: torch.tensor(pairs) for side, pairs in sides.items()}


def side_of(a: int, b: int) -> str:
    """The side of the public split that a + b and b + a belong to, by SHA-256 of "low+high"."""
    digest = hashlib.sha256(f"{min(a, b)}+{max(a, b)}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for side, share in SPLIT_SHARES.items():
        if position < share:
            return side
        position -= share
    return "hidden"


def _tokens(pairs: torch.Tensor, digits: int) -> torch.Tensor:
    """Pairs [count, 2] as tokens, [count, 9] for two digits."""
    a, b = pairs.unsqueeze(2).unbind(1)
    places = 10 ** torch.arange(digits + 1)
    upwards, downwards = places, places[:-1].flip(0)
    plus, equals = torch.full_like(a, PLUS), torch.full_like(a, EQUALS)
    return torch.cat(
        (a // downwards % 10, plus, b // downwards % 10, equals, (a + b) // upwards % 10), 1
    )


Seen = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of the tokens a block has read, each [n, heads, tokens, width / heads]."""
Memory = list[Seen]
"""What each block has read."""


class Decoder(torch.nn.Module, abc.ABC):
    """Scores of the answer's digits, and the digits that follow from them."""

    digits: int

    @abc.abstractmethod
    def read(
        self, tokens: torch.Tensor, start: int, memory: Memory | None
    ) -> tuple[torch.Tensor, Memory]:
        """Scores at the answer positions among these tokens, the first of which is at `start`, and
        what is remembered of all tokens so far."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of the answer digits, given all tokens but the last: [n, 8] -> [n, 3, 12].

        The shapes are those of two digits.
        """
        return self.read(tokens, 0, None)[0]

    def answer(self, prompt: torch.Tensor) -> torch.Tensor:
        """The digits decoded greedily from the prompt alone: [n, 6] -> [n, 3].

        Each digit is fed back once; the memory of earlier tokens is kept.
        """
        tokens, start, digits = prompt, 0, []
        memory: Memory | None = None
        for _ in range(self.digits + 1):
            scores, memory = self.read(tokens, start, memory)
            start += tokens.shape[1]
            tokens = scores[:, -1:].argmax(2)
            digits.append(tokens)
        return torch.cat(digits, 1)


class Decoders(ensembles.Ensemble, Decoder):
    """Several decoders as one; its memory is theirs, one after the other."""

    def __init__(self, members: Sequence[torch.nn.Module]) -> None:
        super().__init__(members)
        self.digits = cast(Gpt, members[0]).digits

    def read(
        self, tokens: torch.Tensor, start: int, memory: Memory | None
    ) -> tuple[torch.Tensor, Memory]:
        said, kept, left = [], list[Seen](), list(memory or [])
        for member in self.members:
            gpt = cast(Gpt, member)
            own, left = left[: gpt.depth], left[gpt.depth :]
            scores, seen = gpt.read(tokens, start, own or None)
            said.append(scores)
            kept += seen
        return self.mean(said), kept


class Gpt(Decoder):
    """A causal transformer (Radford et al. 2019) whose blocks are run `loops` times over.

    Four heads let a digit look at both digits of its place and both of the place below. Only the
    positions that predict answer digits leave the last block: the rest of its work is skipped.
    """

    def __init__(
        self, *, width: int, heads: int, blocks: int, loops: int, digits: int = DIGITS
    ) -> None:
        super().__init__()
        self.digits, self._prompt_tokens = digits, 2 * digits + 2
        self.token = torch.nn.Embedding(VOCABULARY, width)
        self.position = torch.nn.Embedding(self._prompt_tokens + digits, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.depth = blocks * loops
        self.norm = torch.nn.LayerNorm(width)
        self.scores = torch.nn.Linear(width, VOCABULARY, bias=False)
        torch.nn.init.normal_(self.token.weight, std=0.5)
        torch.nn.init.normal_(self.position.weight, std=0.5)

    def read(
        self, tokens: torch.Tensor, start: int, memory: Memory | None
    ) -> tuple[torch.Tensor, Memory]:
        count = tokens.shape[1]
        answers = min(count, start + count - self._prompt_tokens + 1)
        x = self.token(tokens) + self.position.weight[start : start + count]
        kept = []
        for layer in range(self.depth):
            leaving = answers if layer == self.depth - 1 else count
            known = memory[layer] if memory else None
            x, seen = self.blocks[layer % len(self.blocks)](x, leaving, known)
            kept.append(seen)
        return self.scores(self.norm(x)), kept


class Block(torch.nn.Module):
    """Causal attention, then a GELU layer, each added to its normalized input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = torch.nn.LayerNorm(width)
        self.query = torch.nn.Linear(width, width, bias=False)
        self.key = torch.nn.Linear(width, width, bias=False)
        self.value = torch.nn.Linear(width, width, bias=False)
        self.attended = torch.nn.Linear(width, width, bias=False)
        self.before_hidden = torch.nn.LayerNorm(width)
        self.hidden = torch.nn.Linear(width, 4 * width)
        self.out = torch.nn.Linear(4 * width, width)

    def forward(
        self, x: torch.Tensor, leaving: int, memory: Seen | None
    ) -> tuple[torch.Tensor, Seen]:
        """[n, tokens, width] -> the last `leaving` tokens of the same, and the grown memory."""
        calm = self.before_attention(x)
        key, value = self._by_head(self.key(calm)), self._by_head(self.value(calm))
        if memory is not None:
            key, value = torch.cat((memory[0], key), 2), torch.cat((memory[1], value), 2)
        query = self._by_head(self.query(calm[:, -leaving:]))
        closeness = query @ key.transpose(2, 3) / math.sqrt(key.shape[3])
        future = torch.ones_like(closeness[0, 0], dtype=torch.bool).triu(
            closeness.shape[3] - leaving + 1
        )
        mixed = closeness.masked_fill(future, -math.inf).softmax(3) @ value
        x = x[:, -leaving:] + self.attended(mixed.transpose(1, 2).flatten(2))
        x = x + self.out(functional.gelu(self.hidden(self.before_hidden(x))))
        return x, (key, value)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """[n, tokens, width] -> [n, heads, tokens, width / heads]."""
        n, tokens, width = x.shape
        return x.view(n, tokens, self.heads, width // self.heads).transpose(1, 2)
