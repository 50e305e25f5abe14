"""EAGLE-1 (Li et al. 2024): a layer that predicts the target's next feature of the last one and its token.

EAGLE-2 drafts with the same weights. With more than one unroll it is trained on its own features too (HASS, Zhang et
al. 2025).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.transformer import FINAL
from methods.training.heads.base import UNLIMITED, Head, embedding_like
from methods.training.heads.layer import HeadLayer
from methods.training.heads.target import HeadTarget
from methods.training.recipe import EagleRecipe

Memory = tuple[Tensor, list[tuple[Tensor, Tensor]]]  # the last features, and the keys and values of the steps before


class EagleHead(Head):
    """The state is the predicted feature itself: the target's head reads it without a norm."""

    def __init__(self, target: HeadTarget, tokens_N: Tensor, recipe: EagleRecipe) -> None:
        super().__init__(target, tokens_N, recipe)
        config = target.config
        self.steps, self.token_weight = recipe.unrolls, recipe.token_weight
        self.noise, self.feature_weight = recipe.noise, recipe.feature_weight
        self.fc = nn.Linear(2 * self.width, self.width)
        self.layer = HeadLayer(config, config.rope, self.width)
        embedding_like(self.fc, slice(0, self.width), self.embedding_VD)
        with torch.no_grad():
            self.fc.weight[:, self.width :] += torch.eye(self.width)

    @property
    def longest(self) -> int:
        return UNLIMITED

    def begin(self, features: dict[int, Tensor]) -> Memory:
        return features[FINAL], []

    def step(self, memory: Memory, number: int, ids_BL: Tensor) -> tuple[Memory, Tensor]:
        feature_BLD, steps = memory
        read_BLD = self.fc(torch.cat([self.embed(ids_BL), feature_BLD], -1))
        out_BLD = self.layer.finish(read_BLD, read_BLD, steps)
        return (out_BLD, steps), out_BLD

    def disturbed(self, features: dict[int, Tensor]) -> dict[int, Tensor]:
        """With noise, since the features that it drafts with are not the target's."""
        final_BLD = features[FINAL]
        width = self.noise * 512 / final_BLD.shape[1]
        return features | {FINAL: final_BLD + (torch.rand_like(final_BLD) - 0.5) * width}

    def feature_loss(self, state_BLD: Tensor, wanted_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        off_BL = F.smooth_l1_loss(state_BLD.float(), wanted_BLD, reduction="none").mean(-1)
        return self.feature_weight * (off_BL * mask_BL).sum()

    def tensors(self) -> dict[str, Tensor]:
        layer = {f"layers.0.{name}": tensor for name, tensor in self.layer.state_dict().items()}
        return {"fc.weight": self.fc.weight, "fc.bias": self.fc.bias} | layer

    def config(self) -> dict[str, Any]:
        return {"architectures": ["EagleLlamaForCausalLM"], "bias": True}
