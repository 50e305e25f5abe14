"""The target as a head's training needs it: its features by the engine's decoder, its embedding and its head.

Legend: V vocabulary, D width.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.decoder import Decoder
from methods.engine.int8 import EMBEDDING, HEAD
from methods.engine.loader import Checkpoint
from methods.training.target_model import find_target


@dataclass(frozen=True)
class HeadTarget:
    """A frozen target."""

    checkpoint: Checkpoint

    @classmethod
    def find(cls, name: str) -> "HeadTarget":
        """`name` as `find_target` takes it."""
        return cls(find_target(name))

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def decoder(self, dtype: str, device: torch.device, length: int) -> Decoder:
        """What computes features as drafters will read them, of at most `length` tokens."""
        return Decoder(self.checkpoint.transformer(dtype, [device]), length)

    @cached_property
    def embedding_VD(self) -> Tensor:
        return self.checkpoint.weights[EMBEDDING].float()

    @cached_property
    def head_VD(self) -> Tensor:
        weights = self.checkpoint.weights
        return weights[HEAD].float() if HEAD in weights and not self.config.tied else self.embedding_VD

    def layer(self, index: int) -> dict[str, Tensor]:
        """The weights of a layer, by their names within it."""
        prefix = f"model.layers.{index}."
        weights = self.checkpoint.weights
        return {name.removeprefix(prefix): weights[name].float() for name in weights if name.startswith(prefix)}

    def norm(self) -> Tensor:
        return self.checkpoint.weights["model.norm.weight"].float()
