"""Tiny random models with a real tokenizer, in Hugging Face format: what engine and runner tests run on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from methods.training.export import draft_config, write_draft
from methods.training.sorted import SortedDraft

VOCABULARY = 96  # characters 32 .. 126, and <eos> as id 0
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def save_tokenizer(folder: Path, first: int = 32) -> None:
    """One token per printable character, so that every text has an encoding."""
    vocabulary = {"<eos>": 0} | {chr(first + i): i + 1 for i in range(VOCABULARY - 1)}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)


def save_draft(folder: Path, target: Path, tokens: Sequence[int] = range(VOCABULARY), **changes: Any) -> Path:
    """What train.py would export of a draft of three layers of `target` with an exit after each, untrained.

    `tokens`: the vocabulary of its head; `changes` of its configuration."""
    model: Any = AutoModelForCausalLM.from_pretrained(target)
    recipe: dict[str, Any] = {"layers": "first-3", "exits": [1, 2, 3]}
    draft = SortedDraft(model, [0, 1, 2], recipe["exits"], torch.tensor(tokens))
    write_draft(folder, draft.state_dict(), draft_config(model.config, recipe, target.name) | changes)
    return folder


def save_model(folder: Path, seed: int = 0, layers: int = 2, context: int = 512, **changes: Any) -> Path:
    """A random Llama of width 32. Weights are so large that its greedy output wanders instead of looping at once."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "initializer_range": 0.6,
        "eos_token_id": 0,
        "bos_token_id": None,
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings | changes))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
