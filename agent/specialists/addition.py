"""root-math: add two 2-digit numbers, digit by digit, with a small causal transformer."""

import functools
import hashlib
import math

import torch
from torch.nn import functional

from agent.specialists import seeds, sizes
from agent.specialists.base import Batch, Cases, Config, Role, Split
from core import errors

PLUS, EQUALS, VOCABULARY = 10, 11, 12
PROMPT_TOKENS, ANSWER_TOKENS = 6, 3
SPLIT_SHARES = {"train": 0.60, "validation": 0.12, "hidden": 0.28}


class Addition:
    """a + b for a, b in 0..99, the answer least significant digit first (Lee et al. 2023).

    A case is nine tokens, int64: a1 a0 + b1 b0 = s0 s1 s2, where a = 10 a1 + a0, b = 10 b1 + b0
    and a + b = 100 s2 + 10 s1 + s0. The truth is integer arithmetic. The error of a case is 0 when
    all three digits, decoded greedily, are right, else 1.

    The 10,000 pairs are split by a public hash: 60 % train, 12 % validation, 28 % hidden; a pair
    and its mirror share a side. What leaks all the same: the split is public and there are only
    10,000 pairs, so a dishonest trainer could train on the hidden ones, and hidden draws of
    different rounds overlap. Honest trainers go through `train_batch`, which never shows them.
    """

    name = "root-math"
    unit = "share of sums with a wrong digit (1 - exact match)"
    trivial_error = 0.9999
    tolerance = 0.5
    baseline_of_record = "trivial"
    batch_size = 32
    learning_rate = 6e-3

    def train_batch(self, seed: int, step: int) -> Batch:
        """`batch_size` training pairs, drawn with replacement: tokens, int64 [count, 9]."""
        pairs = _pairs()["train"]
        draw = seeds.generator(self.name, "train", seed, step)
        return {
            "tokens": _tokens(pairs[torch.randint(len(pairs), (self.batch_size,), generator=draw)])
        }

    def cases(self, seed: int, count: int, split: Split = "validation") -> Cases:
        """Distinct pairs of the split: prompt, int64 [count, 6], and answer, int64 [count, 3].

        Raises errors.Invalid for more cases than the split has pairs.
        """
        pairs = _pairs()[split]
        if not 1 <= count <= len(pairs):
            raise errors.Invalid(
                f"{self.name} cannot draw {count} distinct {split} cases: that side of the split "
                f"has {len(pairs)} pairs; ask for 1 to {len(pairs)}"
            )
        draw = seeds.generator(self.name, split, seed)
        tokens = _tokens(pairs[torch.randperm(len(pairs), generator=draw)[:count]])
        return {"prompt": tokens[:, :PROMPT_TOKENS], "answer": tokens[:, PROMPT_TOKENS:]}

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
        return Gpt(**asked)

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of the three answer digits, nats."""
        tokens = batch["tokens"]
        scores = module(tokens[:, :-1])
        return functional.cross_entropy(scores.flatten(0, 1), tokens[:, PROMPT_TOKENS:].flatten())

    def errors(self, module: torch.nn.Module, cases: Cases) -> torch.Tensor:
        """0 where the greedy answer is the sum, 1 where it is not; float64 [count]."""
        assert isinstance(module, Gpt)
        return (module.answer(cases["prompt"]) != cases["answer"]).any(1).double()

    def baseline_errors(self, cases: Cases) -> dict[str, torch.Tensor]:
        """Constant answers: "trivial" says 0, "commonest sum" says 99 (right once in a hundred)."""
        answer = cases["answer"]
        return {
            "trivial": (answer != answer.new_tensor([0, 0, 0])).any(1).double(),
            "commonest sum": (answer != answer.new_tensor([9, 9, 0])).any(1).double(),
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

    def probe(self) -> tuple[torch.Tensor, ...]:
        """The tokens of 12 + 34 = 46 without the last digit, int64 [1, 8]."""
        return (_tokens(torch.tensor([[12, 34]]))[:, :-1],)


def _gpt(**asked: int) -> Config:
    return Config(family="gpt", sizes=asked)


@functools.cache
def _pairs() -> dict[str, torch.Tensor]:
    """Every pair on its side of the split: int64 [pairs, 2]."""
    sides: dict[str, list[tuple[int, int]]] = {side: [] for side in SPLIT_SHARES}
    for a in range(100):
        for b in range(100):
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


def _tokens(pairs: torch.Tensor) -> torch.Tensor:
    """Pairs [count, 2] as tokens [count, 9]."""
    a, b = pairs.unbind(1)
    total = a + b
    plus, equals = torch.full_like(a, PLUS), torch.full_like(a, EQUALS)
    return torch.stack(
        (
            *(a // 10, a % 10, plus, b // 10, b % 10, equals),
            *(total % 10, total // 10 % 10, total // 100),
        ),
        1,
    )


Memory = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of the tokens a block has read, each [n, heads, tokens, width / heads]."""


class Gpt(torch.nn.Module):
    """A causal transformer (Radford et al. 2019) whose blocks are run `loops` times over.

    Four heads let a digit look at both digits of its place and both of the place below. Only the
    positions that predict answer digits leave the last block: the rest of its work is skipped.
    """

    def __init__(self, *, width: int, heads: int, blocks: int, loops: int) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(VOCABULARY, width)
        self.position = torch.nn.Embedding(PROMPT_TOKENS + ANSWER_TOKENS - 1, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.depth = blocks * loops
        self.norm = torch.nn.LayerNorm(width)
        self.scores = torch.nn.Linear(width, VOCABULARY, bias=False)
        torch.nn.init.normal_(self.token.weight, std=0.5)
        torch.nn.init.normal_(self.position.weight, std=0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of the answer digits, given all tokens but the last: [n, 8] -> [n, 3, 12]."""
        return self._read(tokens, 0, [None] * self.depth)[0]

    def answer(self, prompt: torch.Tensor) -> torch.Tensor:
        """The three digits decoded greedily from the prompt alone: [n, 6] -> [n, 3].

        Each digit is fed back once; the memory of earlier tokens is kept.
        """
        tokens, start, digits = prompt, 0, []
        memory: list[Memory | None] = [None] * self.depth
        for _ in range(ANSWER_TOKENS):
            scores, memory = self._read(tokens, start, memory)
            start += tokens.shape[1]
            tokens = scores[:, -1:].argmax(2)
            digits.append(tokens)
        return torch.cat(digits, 1)

    def _read(
        self, tokens: torch.Tensor, start: int, memory: list[Memory | None]
    ) -> tuple[torch.Tensor, list[Memory | None]]:
        """Scores at the answer positions among these tokens, the first of which is at `start`."""
        count = tokens.shape[1]
        answers = min(count, start + count - PROMPT_TOKENS + 1)
        x = self.token(tokens) + self.position.weight[start : start + count]
        kept: list[Memory | None] = []
        for layer in range(self.depth):
            leaving = answers if layer == self.depth - 1 else count
            x, seen = self.blocks[layer % len(self.blocks)](x, leaving, memory[layer])
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
        self, x: torch.Tensor, leaving: int, memory: Memory | None
    ) -> tuple[torch.Tensor, Memory]:
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
