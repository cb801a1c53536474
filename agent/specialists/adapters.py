"""Adapters over a base model: a frozen language model with thin matrices beside its linear layers.

LoRA (Hu et al. 2022) by peft over what transformers loads. Only the matrices are a model's weights
here: they alone are stored, sent and loaded again, over the base that its configuration names.
"""

import copy
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers

from agent.specialists import bases
from core import errors

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class Adapted(torch.nn.Module):
    """A base model with adapters of a rank, drawn from torch's global generator."""

    learning_rate = 1e-3
    stays_on_device = True
    """It is measured where it was trained: a base of some billion numbers is slow on a CPU."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__()
        self.tokenizer = _tokenizer(str(folder))
        base = _shared(_base(str(folder)))
        self.begin = _begin(base)
        self.model = peft.get_peft_model(
            base,
            peft.LoraConfig(
                task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
            ),
        )
        self.register_state_dict_post_hook(_leave_base_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_miss_no_base)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapted":
        """With adapters of its own over the same base."""
        made = self.__class__.__new__(self.__class__)
        memo |= {id(self): made} | _kept(self)
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def forward(self, tokens: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """log P of each token but the first, [n, tokens - 1], natural; `there` tells tokens from
        what fills up rows, both [n, tokens]."""
        answer = self.model(input_ids=tokens, attention_mask=there.long(), use_cache=False)
        scores: torch.Tensor = answer.logits
        logs = scores[:, :-1].float().log_softmax(2)
        return logs.gather(2, tokens[:, 1:, None]).squeeze(2)

    def bits(self, texts: Sequence[tuple[str, str]]) -> torch.Tensor:
        """What the second text of each pair costs after the first, bits, float32 [count].

        A token that begins in the first and ends in the second counts whole.
        """
        rows = [self.tokenizer.encode(before + text, add_special_tokens=False) for before, text in
                texts]  # fmt: skip
        longest = max(len(row.ids) for row in rows) + 1
        tokens = torch.full((len(rows), longest), self.begin)
        there = torch.zeros(tokens.shape, dtype=torch.bool)
        counts = torch.zeros((len(rows), longest - 1), dtype=torch.bool)
        for number, (row, (before, _)) in enumerate(zip(rows, texts, strict=True)):
            tokens[number, 1 : len(row.ids) + 1] = torch.tensor(row.ids)
            there[number, : len(row.ids) + 1] = True
            ends = torch.tensor([end for _, end in row.offsets])
            counts[number, : len(row.ids)] = ends > len(before)
        device = next(self.parameters()).device
        logs: torch.Tensor = self(tokens.to(device), there.to(device))
        return -(logs * counts.to(device)).sum(1) / math.log(2)


def _kept(module: torch.nn.Module) -> dict[int, Any]:
    """What copies of a module share: every weight that is not trained."""
    return {id(one): one for one in module.parameters() if not one.requires_grad}


def _shared(module: torch.nn.Module) -> Any:
    return copy.deepcopy(module, _kept(module))


def _leave_base_out(
    module: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, _: object
) -> None:
    for name in [name for name in state if ".lora_" not in name]:
        del state[name]


def _miss_no_base(_: torch.nn.Module, found: Any) -> None:
    found.missing_keys[:] = [name for name in found.missing_keys if ".lora_" in name]


@functools.lru_cache(maxsize=1)
def _base(folder: str) -> Any:
    """The frozen base, loaded once. Raises errors.TrainingError where its files do not fit."""
    require_fit(Path(folder))
    kind = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    with torch.random.fork_rng(devices=[]):  # its loading draws what it then overwrites
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=kind,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise errors.TrainingError(f"the base model {folder} cannot be loaded: {error}") from (
                error
            )
    model, about = loaded
    if missing := sorted(about["missing_keys"]):
        raise errors.TrainingError(
            f"the base model {folder} lacks weights that its config.json asks for: "
            f"{', '.join(missing[:4])}; fetch it again"
        )
    model.requires_grad_(False)
    return model


def require_fit(folder: Path) -> None:
    """Refuse weights whose shapes are not those of `config.json`, before any is read.

    Raises errors.TrainingError.
    """
    bases.require_extra()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            empty: Any = transformers.AutoModelForCausalLM
            wanted = empty.from_config(config).state_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.TrainingError(f"{folder} is no base model to load: {error}") from error
    for name, shape in ((one.name, list(one.shape)) for one in bases.weights(folder)):
        if name in wanted and list(wanted[name].shape) != shape:
            raise errors.TrainingError(
                f"the base model {folder} does not fit itself: {name} has the shape {shape} in its "
                f"weights, and {list(wanted[name].shape)} by its config.json; fetch it again"
            )


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(Path(folder, bases.TOKENIZER)))
    except Exception as error:  # the library raises Exception itself
        raise errors.TrainingError(f"the tokenizer of {folder} cannot be read: {error}") from error


def _begin(model: Any) -> int:
    """The token that stands before a text."""
    for found in (model.config.bos_token_id, model.config.eos_token_id):
        if isinstance(found, list):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return 0
