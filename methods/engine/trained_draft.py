"""A trained draft's folder, as scripts/train.py exports it: one draft with exits, for one target.

Beside the usual config.json (with a key "draft") and Hugging Face names: all matrices NAME may be int8 with a scale per
row in NAME.scale; the embedding is the target's; a head over part of the vocabulary has `lm_head.tokens`, the token of
each row.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.int8 import EMBEDDING, ScaledWeights
from methods.engine.loader import DTYPES, Checkpoint
from methods.engine.schema import Schema, checked
from methods.engine.transformer import Transformer
from methods.engine.weights import TOKENS, check_weights, kind_of
from methods.errors import UserError, shown

FORMAT = 1


class DraftWeights(ScaledWeights):
    """The stored tensors as a Transformer wants them: with the target's embedding."""

    def __init__(self, stored: Mapping[str, Tensor], embedding_VD: Tensor) -> None:
        super().__init__(stored)
        self.embedding_VD = embedding_VD

    def __getitem__(self, name: str) -> Tensor:
        return self.embedding_VD if name == EMBEDDING else super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        yield EMBEDDING
        yield from super().__iter__()


class DraftTable(Schema):
    """The key "draft" of a config.json. `target`: by its maker's name for it, for the sentence about a wrong one."""

    format: Literal[1]
    exits: list[Annotated[int, Field(gt=0)]] = Field(min_length=1)
    target: str = "another target"


def is_trained_draft(checkpoint: Checkpoint) -> bool:
    return "draft" in checkpoint.raw_config


def exits_of(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Depths at which a trained draft can be left, ascending, the last one its number of layers."""
    exits = list(about(checkpoint).exits)
    if sorted(set(exits)) != exits or exits[-1] != checkpoint.config.layers:
        raise UserError(
            f"expected ascending exits that end at {checkpoint.config.layers} layers, got {shown(exits)} in "
            f"{checkpoint.source}; export it again with scripts/train.py"
        )
    return tuple(exits)


def about(checkpoint: Checkpoint) -> DraftTable:
    """What a trained draft's config.json says of it."""
    return checked(DraftTable, checkpoint.raw_config["draft"], f'the table "draft" of {checkpoint.folder}/config.json')


def load_draft(
    checkpoint: Checkpoint, target: ModelConfig, embedding_VD: Tensor, dtype: str, device: torch.device
) -> Transformer:
    """The draft in the run's dtype. It shares the target's embedding, so it is refused beside any other target."""
    exits_of(checkpoint)
    config, ours = checkpoint.config, (target.vocab_size, target.width)
    if (config.vocab_size, config.width) != ours:
        raise UserError(
            f"the draft {checkpoint.source} was made for {about(checkpoint).target} (vocabulary "
            f"{config.vocab_size}, width {config.width}), not for this target (vocabulary {ours[0]}, width {ours[1]}); "
            "choose the draft of this target"
        )
    weights = DraftWeights(checkpoint.weights, embedding_VD)
    tokens_R = weights.get(TOKENS)
    if tokens_R is not None:
        check_tokens(tokens_R, config.vocab_size, checkpoint.source)
    check_weights(config, weights, checkpoint.source, None if tokens_R is None else len(tokens_R), int8=True)
    return Transformer(config, weights, DTYPES[dtype], [device] * config.layers)


def check_tokens(tokens_R: Tensor, vocabulary: int, source: str) -> None:
    """Each row of a reduced head has a token of its own."""
    kind = f"{kind_of(tokens_R)} {tuple(tokens_R.shape)}"
    if tokens_R.dim() != 1 or not len(tokens_R) or tokens_R.dtype not in (torch.int32, torch.int64):
        raise UserError(f"{source}: expected {TOKENS} to be a list of int32 or int64, got {kind}; export it again")
    if not 0 <= int(tokens_R.min()) <= int(tokens_R.max()) < vocabulary:
        raise UserError(f"{source}: expected tokens below {vocabulary} in {TOKENS}; export it again")
    if len(tokens_R.unique()) != len(tokens_R):
        raise UserError(f"{source}: expected different tokens in {TOKENS}, got one twice; export it again")
