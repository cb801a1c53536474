"""Sums, their split, and how an answer is decoded and marked."""

import hashlib

import pytest
import torch

from agent.specialists import addition
from agent.specialists.addition import EQUALS, PLUS, Addition, Gpt
from agent.specialists.base import Config
from core import errors

torch.set_num_threads(1)  # as where models are trained and judged

PROMPT_TOKENS, ANSWER_TOKENS = 6, 3
SIDES = {"train": 5_993, "validation": 1_216, "hidden": 2_791}


class Calculator(Gpt):
    """Answers by arithmetic; one more than the sum where told to err."""

    def __init__(self, *wrong: tuple[int, int]) -> None:
        super().__init__(width=8, heads=1, blocks=1, loops=1)
        self._wrong = set(wrong)

    def answer(self, prompt: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self._digits(row) for row in prompt.tolist()])

    def _digits(self, row: list[int]) -> list[int]:
        a, b = _read(row)
        total = a + b + ((a, b) in self._wrong)
        return [int(digit) for digit in reversed(f"{total:03d}")]


def _read(row: list[int], prompt_tokens: int = PROMPT_TOKENS) -> tuple[int, int]:
    """The numbers in a prompt, read back from their characters."""
    text = "".join("0123456789+="[token] for token in row[:prompt_tokens])
    a, b = text.removesuffix("=").split("+")
    return int(a), int(b)


def _pairs(prompts: torch.Tensor) -> set[tuple[int, int]]:
    return {_read(row) for row in prompts.tolist()}


def _all() -> dict[str, torch.Tensor]:
    """Every prompt of the two sides that cases are drawn from, with its answer."""
    one = Addition()
    found = [one.cases(1, SIDES["validation"]), one.cases(1, SIDES["hidden"], "hidden")]
    return {name: torch.cat([cases[name] for cases in found]) for name in found[0]}


def test_every_answer_is_the_sum_least_significant_digit_first() -> None:
    cases = _all()
    for prompt, answer in zip(cases["prompt"].tolist(), cases["answer"].tolist(), strict=True):
        a, b = _read(prompt)
        assert sum(digit * 10**place for place, digit in enumerate(answer)) == a + b


def test_training_tokens_are_prompt_and_answer_in_a_row() -> None:
    tokens = torch.cat([Addition().train_batch(1, step)["tokens"] for step in range(50)])
    assert tokens.dtype == torch.int64
    for row in tokens.tolist():
        a, b = _read(row)
        tens_a, a_ones, tens_b, b_ones = a // 10, a % 10, b // 10, b % 10
        prompt = [tens_a, a_ones, PLUS, tens_b, b_ones, EQUALS]
        assert row == [*prompt, *(int(digit) for digit in reversed(f"{a + b:03d}"))]


def test_each_case_is_another_pair() -> None:
    assert len(_pairs(_all()["prompt"])) == SIDES["validation"] + SIDES["hidden"]


def test_the_three_sides_of_the_split_share_no_pair_and_no_mirrored_pair() -> None:
    one = Addition()
    sides = {
        "validation": _pairs(one.cases(1, SIDES["validation"])["prompt"]),
        "hidden": _pairs(one.cases(1, SIDES["hidden"], "hidden")["prompt"]),
        "train": _pairs(torch.cat([one.train_batch(1, step)["tokens"] for step in range(400)])),
    }
    for name, pairs in sides.items():
        mirrored = {(b, a) for a, b in pairs}
        for other in sides.keys() - {name}:
            assert not (pairs | mirrored) & sides[other]


def test_the_public_split_is_the_hash_that_it_says_and_never_changes() -> None:
    counts = dict.fromkeys(SIDES, 0)
    for a in range(100):
        for b in range(100):
            low, high = sorted((a, b))
            digest = hashlib.sha256(f"{low}+{high}".encode()).hexdigest()
            share = int(digest[:16], 16) / 2**64
            side = "train" if share < 0.6 else "validation" if share < 0.72 else "hidden"
            assert addition.side_of(a, b) == side
            counts[side] += 1
    assert counts == SIDES


def test_more_cases_than_a_side_has_are_refused_with_how_many_there_are() -> None:
    with pytest.raises(errors.Invalid, match="2791"):
        Addition().cases(1, 2_792, "hidden")


def test_a_module_that_is_always_right_has_error_zero() -> None:
    assert Addition().errors(Calculator(), _all()).sum() == 0


def test_a_module_errs_exactly_where_it_errs() -> None:
    cases = Addition().cases(5, 200, "hidden")
    wrong = [_read(row) for row in cases["prompt"].tolist()[17:50:3]]
    found = Addition().errors(Calculator(*wrong), cases)
    assert found.nonzero().flatten().tolist() == list(range(17, 50, 3))
    assert found.mean() == len(wrong) / 200


def test_one_wrong_digit_is_as_wrong_as_three() -> None:
    cases = dict(Addition().cases(5, 3))
    cases["answer"] = cases["answer"].clone()
    cases["answer"][0, 0] += 1
    cases["answer"][1] += 1
    assert Addition().errors(Calculator(), cases).tolist() == [1, 1, 0]


def test_decoding_with_memory_is_decoding_each_digit_from_the_whole_text() -> None:
    prompt = Addition().cases(5, 64)["prompt"]
    for loops in (1, 2):
        torch.manual_seed(2)
        module = Gpt(width=24, heads=4, blocks=2, loops=loops)
        tokens = torch.cat((prompt, torch.zeros(64, ANSWER_TOKENS, dtype=torch.int64)), 1)
        for place in range(ANSWER_TOKENS):
            tokens[:, PROMPT_TOKENS + place] = module(tokens[:, :-1])[:, place].argmax(1)
        answers = module.answer(prompt)
        assert torch.equal(answers, tokens[:, PROMPT_TOKENS:])
        assert len({tuple(answer) for answer in answers.tolist()}) > 1


def test_no_answer_digit_sees_itself_or_what_comes_later() -> None:
    torch.manual_seed(2)
    module = Gpt(width=24, heads=4, blocks=2, loops=1)
    tokens = Addition().train_batch(1, 0)["tokens"]
    told = module(tokens[:, :-1])
    for place in range(ANSWER_TOKENS - 1):
        other = tokens.clone()
        other[:, PROMPT_TOKENS + place :] = 7
        seen = module(other[:, :-1])
        assert torch.allclose(seen[:, : place + 1], told[:, : place + 1], atol=1e-6)
        assert not torch.allclose(seen[:, place + 1], told[:, place + 1], atol=1e-3)


def test_the_loss_is_the_surprise_at_the_answer_digits() -> None:
    torch.manual_seed(2)
    module = Gpt(width=24, heads=4, blocks=1, loops=1)
    batch = Addition().train_batch(1, 0)
    chances = module(batch["tokens"][:, :-1]).softmax(2)
    right = chances.gather(2, batch["tokens"][:, PROMPT_TOKENS:, None])
    loss = Addition().loss(module, batch)
    assert float(loss.detach()) == pytest.approx(float(-right.log().mean().detach()), rel=1e-5)


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    config = Addition().families("evolver")[0]
    sizes = {**config.sizes, "width": 50, "heads": 4}
    with pytest.raises(errors.ArtifactError, match="multiple of heads"):
        Addition().build(Config(family="gpt", sizes=sizes))


def test_the_cases_of_two_digits_are_those_of_the_first_version() -> None:
    one = Addition()
    drawn = (one.train_batch(5, 7), one.cases(3, 50), one.cases(3, 50, "hidden"))
    found = [_mark(tensor) for each in drawn for tensor in each.values()]
    wanted = [-32.300860071, 1.731073917, 2.361641344, -56.669691795, -11.347969818]
    assert found == pytest.approx(wanted, abs=1e-8)


def _mark(tensor: torch.Tensor) -> float:
    ramp = torch.arange(tensor.numel(), dtype=torch.float64).cos()
    return float(tensor.double().flatten() @ ramp)


more_digits = pytest.mark.parametrize("digits", [3, 4])


@more_digits
def test_longer_numbers_are_added_and_their_pairs_are_split_alike(digits: int) -> None:
    one, prompt_tokens = Addition(digits=digits), 2 * digits + 2
    sides: dict[str, list[tuple[int, int]]] = {
        "train": [],
        "validation": [],
        "hidden": [],
    }
    rows = {
        "train": torch.cat([one.train_batch(1, step)["tokens"] for step in range(20)]),
        "validation": torch.cat([*one.cases(1, 300).values()], 1),
        "hidden": torch.cat([*one.cases(1, 600, "hidden").values()], 1),
    }
    for side, tokens in rows.items():
        assert tokens.dtype == torch.int64
        assert tokens.shape[1] == 3 * digits + 3
        for row in tokens.tolist():
            a, b = _read(row, prompt_tokens)
            assert (
                sum(digit * 10**place for place, digit in enumerate(row[prompt_tokens:])) == a + b
            )
            assert addition.side_of(a, b) == side
            sides[side].append((a, b))
    assert len(set(sides["hidden"])) == 600
    longest = max(a for a, _ in sides["hidden"])
    assert 0.9 * 10**digits < longest < 10**digits


@more_digits
def test_longer_sums_are_decoded_from_the_prompt_alone(digits: int) -> None:
    one = Addition(digits=digits)
    torch.manual_seed(2)
    module = one.build(one.families("evolver")[0])
    assert isinstance(module, Gpt)
    cases = one.cases(5, 32)
    tokens = torch.cat((cases["prompt"], torch.zeros_like(cases["answer"])), 1)
    for place in range(digits + 1):
        tokens[:, 2 * digits + 2 + place] = module(tokens[:, :-1])[:, place].argmax(1)
    assert torch.equal(module.answer(cases["prompt"]), tokens[:, 2 * digits + 2 :])


@more_digits
def test_constant_answers_have_as_many_digits_as_the_sums(digits: int) -> None:
    one = Addition(digits=digits)
    assert one.trivial_error == pytest.approx(1 - 0.01**digits)
    answers = torch.tensor([[9] * digits + [0], [0] * (digits + 1), [9, 9] + [0] * (digits - 1)])
    found = one.baseline_errors({"answer": answers})
    assert found["commonest sum"].tolist() == [0, 1, 1]
    assert found["trivial"].tolist() == [1, 0, 1]
