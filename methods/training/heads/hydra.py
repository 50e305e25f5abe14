"""Hydra (Ankner et al. 2024): Medusa's heads, each of which also reads the tokens drafted before its own.

Hydra++ ("prefix-mlp") puts a Transformer layer over the features of the whole prefix before them. The logits are the
target's head's, as with Medusa here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.transformer import FINAL
from methods.training.heads.base import Head, embedding_like
from methods.training.heads.layer import HeadLayer, RMSNorm
from methods.training.heads.target import HeadTarget
from methods.training.recipe import HydraRecipe


class Block(nn.Module):
    """R(x) + SiLU(Wx + b); R is a matrix where the widths differ, else the identity."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.res_connection = nn.Linear(inputs, width) if inputs != width else None

    def forward(self, x_BLI: Tensor) -> Tensor:
        rest_BLD = x_BLI if self.res_connection is None else self.res_connection(x_BLI)
        return rest_BLD + F.silu(self.linear(x_BLI))


class HydraMLP(nn.Module):
    """Head i: of the state at t and the embeddings of the i + 1 tokens behind it."""

    def __init__(self, embeddings: int, depth: int, embedding_VD: Tensor) -> None:
        super().__init__()
        width = embedding_VD.shape[1]
        self.first = Block((1 + embeddings) * width, width)
        self.repeated = Block(width, width) if depth > 1 else None
        self.repeats = depth - 1
        embedding_like(self.first.linear, slice(width, None), embedding_VD)
        res = self.first.res_connection
        assert res is not None
        with torch.no_grad():
            res.weight[:, :width] += torch.eye(width)

    def forward(self, x_BLI: Tensor) -> Tensor:
        x_BLD = self.first(x_BLI)
        for _ in range(self.repeats):
            assert self.repeated is not None
            x_BLD = self.repeated(x_BLD)
        return x_BLD


class PrefixLayer(nn.Module):
    """Hydra++'s full Llama layer over the target's final states, with a norm behind it."""

    def __init__(self, target: HeadTarget) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(target.config.width, target.config.norm_eps)
        self.layer = HeadLayer(target.config, target.config.rope, target.config.width)
        self.norm = RMSNorm(target.config.width, target.config.norm_eps)
        with torch.no_grad():
            self.norm.weight.copy_(target.norm())

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.norm(self.layer.finish(x_BLD, self.input_layernorm(x_BLD), []))

    def tensors(self) -> dict[str, Tensor]:
        layer = {"input_layernorm.weight": self.input_layernorm.weight, **self.layer.state_dict()}
        return {f"layers.0.{name}": tensor for name, tensor in layer.items()} | {"norm.weight": self.norm.weight}


class HydraHead(Head):
    def __init__(self, target: HeadTarget, tokens_N: Tensor, recipe: HydraRecipe) -> None:
        super().__init__(target, tokens_N, recipe)
        self.steps, self.depth, self.arch = recipe.heads, recipe.depth, recipe.arch
        self.prefix = PrefixLayer(target) if recipe.arch == "prefix-mlp" else None
        self.mlps = nn.ModuleList(HydraMLP(1 + i, recipe.depth, self.embedding_VD) for i in range(recipe.heads))

    def begin(self, features: dict[int, Tensor]) -> Tensor:
        return features[FINAL] if self.prefix is None else self.prefix(features[FINAL])

    def step(self, memory: Tensor, number: int, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        read_BLI = torch.cat([memory, self.embed(ids_BL)], -1)
        return read_BLI, self.mlps[number](read_BLI)

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        dropouts = int(self.prefix is not None)  # Hydra++ counts a dropout before each of its blocks
        for i, mlp in enumerate(self.mlps):
            blocks: list[Any] = [mlp.first, *[mlp.repeated] * (self.depth - 1)]
            for depth, block in enumerate(blocks):
                number = depth * (1 + dropouts) + dropouts
                found |= {f"hydra_mlp.{i}.{number}.{name}": tensor for name, tensor in block.state_dict().items()}
        if self.prefix is not None:
            found |= {f"prefix_embeding_layer.{name}": tensor for name, tensor in self.prefix.tensors().items()}
        return found

    def config(self) -> dict[str, Any]:
        return {
            "hydra_num_heads": self.steps,
            "hydra_num_layers": self.depth,
            "hydra_head_arch": self.arch,
            "grounded_heads": True,
            "hidden_state_offset": 0,
        }
