"""Medusa-1 (Cai et al. 2024): a residual block per drafted token, all of which read the same feature and nothing else.

The logits are the target's head's, so that a block costs D^2 weights ("version" 2 of the published format).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.transformer import FINAL
from methods.training.heads.base import Head
from methods.training.heads.target import HeadTarget
from methods.training.recipe import MedusaRecipe


class ResBlock(nn.Module):
    """x + SiLU(Wx + b), at first the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + F.silu(self.linear(x_BLD))


class MedusaHead(Head):
    """Block i drafts token t + 2 + i of the feature at t; its state is the target's final one, after the norm."""

    def __init__(self, target: HeadTarget, tokens_N: Tensor, recipe: MedusaRecipe) -> None:
        super().__init__(target, tokens_N, recipe)
        self.steps = recipe.heads
        self.blocks = nn.ModuleList(ResBlock(self.width) for _ in range(recipe.heads))

    def begin(self, features: dict[int, Tensor]) -> Tensor:
        return features[FINAL]

    def step(self, memory: Tensor, number: int, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        return memory, self.blocks[number](memory)

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            found |= {f"{i}.0.{name}": tensor for name, tensor in block.state_dict().items()}
        return found

    def config(self) -> dict[str, Any]:
        return {"medusa_num_heads": self.steps, "medusa_num_layers": 1, "version": "2"}
