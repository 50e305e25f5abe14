"""EAGLE-3 (Li et al. 2025): a layer that reads a low, a middle and a high state of the target, and then its own output.

It is trained as it drafts, several tokens in a row ("training-time test"), by the target's next token alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from methods.engine.config import Rope
from methods.engine.transformer import FINAL
from methods.training.heads.base import UNLIMITED, Head
from methods.training.heads.features import eagle3_taps
from methods.training.heads.layer import HeadLayer, RMSNorm
from methods.training.heads.target import HeadTarget
from methods.training.recipe import Eagle3Recipe

Memory = tuple[Tensor, list[tuple[Tensor, Tensor]]]  # the stream, and the keys and values of the steps before


class Eagle3Layer(HeadLayer):
    """Its attention reads the token's embedding beside the stream, each after a norm of its own; it starts as the
    target's last layer, which does not yet look at the embedding."""

    def __init__(self, target: HeadTarget, rope: Rope) -> None:
        config = target.config
        super().__init__(config, rope, 2 * config.width)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.hidden_norm = RMSNorm(config.width, config.norm_eps)
        start = target.layer(config.layers - 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.shape == start[name].shape if name in start else False:
                    parameter.copy_(start[name])
            self.input_layernorm.weight.fill_(1.0)
            self.hidden_norm.weight.copy_(start["input_layernorm.weight"])
            for part in ("q_proj", "k_proj", "v_proj"):
                getattr(self.self_attn, part).weight[:, config.width :] = start[f"self_attn.{part}.weight"]

    def forward(self, stream_BLD: Tensor, embedded_BLD: Tensor, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
        read_BLI = torch.cat([self.input_layernorm(embedded_BLD), self.hidden_norm(stream_BLD)], -1)
        return self.finish(stream_BLD, read_BLI, steps)


class Eagle3Head(Head):
    """It goes on from its output before the norm; logits are of a head of its own behind the norm."""

    def __init__(self, target: HeadTarget, tokens_N: Tensor, recipe: Eagle3Recipe) -> None:
        super().__init__(target, tokens_N, recipe)
        self.steps, self.rope_theta = recipe.unrolls, recipe.rope_theta
        self.low_mid_high = eagle3_taps(target.config.layers)
        self.taps = (*self.low_mid_high, FINAL)  # the last for training only
        self.fc = nn.Linear(3 * self.width, self.width, bias=False)
        self.midlayer = Eagle3Layer(target, Rope(recipe.rope_theta))
        self.norm = RMSNorm(self.width, target.config.norm_eps)
        self.lm_head = nn.Parameter(self.target_head_ND.clone())
        with torch.no_grad():
            self.norm.weight.copy_(target.norm())
            self.fc.weight *= 0.1
            self.fc.weight[:, 2 * self.width :] += torch.eye(self.width)

    @property
    def head_ND(self) -> Tensor:
        return self.lm_head

    @property
    def longest(self) -> int:
        return UNLIMITED

    def begin(self, features: dict[int, Tensor]) -> Memory:
        return self.fc(torch.cat([features[tap] for tap in self.low_mid_high], -1)), []

    def step(self, memory: Memory, number: int, ids_BL: Tensor) -> tuple[Memory, Tensor]:
        stream_BLD, steps = memory
        out_BLD = self.midlayer(stream_BLD, self.embed(ids_BL), steps)
        return (out_BLD, steps), self.norm(out_BLD)

    def tensors(self) -> dict[str, Tensor]:
        names = self.state_dict()
        found = {"lm_head.weight": names.pop("lm_head")} | {n: t for n, t in names.items() if n != "tokens_N"}
        tokens_N, vocabulary = self.tokens_N.cpu(), len(self.embedding_VD)
        known_V = torch.zeros(vocabulary, dtype=torch.bool)
        known_V[tokens_N] = True
        return found | {"d2t": tokens_N - torch.arange(len(tokens_N)), "t2d": known_V}

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "draft_vocab_size": len(self.tokens_N),
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
        }
