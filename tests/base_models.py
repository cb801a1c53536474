"""A builder of base models that are small enough for tests: a Llama in the form of transformers."""

from pathlib import Path

import tokenizers
import torch
import transformers

from tests import texts

VOCABULARY = 384


def make(folder: Path, width: int = 32) -> Path:
    """A base of random weights with a byte-level tokenizer, as a real one lies in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([texts.document(number) for number in range(6)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
