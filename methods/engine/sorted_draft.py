"""A trained draft's folder, as scripts/train_draft.py exports it: one draft with exits, for one target.

Beside the usual config.json (with a key "draft") and Hugging Face names: all matrices NAME may be int8 with a scale per
row in NAME.scale; the embedding is the target's; a head over part of the vocabulary has `lm_head.tokens`, the token of
each row.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.int8 import EMBEDDING, SCALE
from methods.engine.loader import DTYPES, Checkpoint, check_weights
from methods.engine.model import Transformer
from methods.errors import UserError

TOKENS = "lm_head.tokens"
FORMAT = 1


class DraftWeights(Mapping[str, Tensor]):
    """The stored tensors as a Transformer wants them: with the target's embedding. Scales are found, but not listed."""

    def __init__(self, stored: Mapping[str, Tensor], embedding_VD: Tensor) -> None:
        self.stored, self.embedding_VD = stored, embedding_VD

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.embedding_VD if name == EMBEDDING else self.stored[name]
        if tensor.dtype == torch.int8 and name + SCALE not in self.stored:
            raise KeyError(name)  # without its scales a matrix is not there
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield EMBEDDING
        yield from (name for name in self.stored if not name.endswith(SCALE))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_trained_draft(checkpoint: Checkpoint) -> bool:
    return "draft" in checkpoint.raw_config


def exits_of(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Depths at which a trained draft can be left, ascending, the last one its number of layers."""
    about, layers = checkpoint.raw_config["draft"], checkpoint.config.layers
    exits = about.get("exits") if isinstance(about, dict) and about.get("format") == FORMAT else None
    if not exits or sorted(set(exits)) != exits or exits[0] < 1 or exits[-1] != layers:
        raise UserError(
            f"expected a draft of format {FORMAT} with ascending exits that end at {layers} layers, got {about} in "
            f"{checkpoint.source}; export it again with scripts/train_draft.py"
        )
    return tuple(exits)


def load_draft(
    checkpoint: Checkpoint, target: ModelConfig, embedding_VD: Tensor, dtype: str, device: torch.device
) -> Transformer:
    """The draft in the run's dtype. It shares the target's embedding, so it is refused beside any other target."""
    exits_of(checkpoint)
    config, ours = checkpoint.config, (target.vocab_size, target.width)
    if (config.vocab_size, config.width) != ours:
        raise UserError(
            f"the draft {checkpoint.source} was made for {checkpoint.raw_config['draft'].get('target')} (vocabulary "
            f"{config.vocab_size}, width {config.width}), not for this target (vocabulary {ours[0]}, width {ours[1]}); "
            "choose the draft of this target"
        )
    weights = DraftWeights(checkpoint.weights, embedding_VD)
    tokens_R = weights.get(TOKENS)
    if tokens_R is not None and not 0 <= int(tokens_R.min()) <= int(tokens_R.max()) < config.vocab_size:
        raise UserError(f"{checkpoint.source}: expected tokens below {config.vocab_size} in {TOKENS}; export it again")
    check_weights(config, weights, checkpoint.source, None if tokens_R is None else len(tokens_R))
    return Transformer(config, weights, DTYPES[dtype], [device] * config.layers)
