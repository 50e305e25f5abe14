"""The Transformer layer of a head, which in training drafts as it will: step by step, at all positions at once.

At step 0 row t reads true features, of the pairs up to t. At step i > 0 it goes on from its own last output, as if it
drafted alone behind pair t: it attends to the pairs up to t of step 0, and to its own rows of steps 1 to i. Its rotary
position is t + i ("training-time test" of EAGLE-3, Li et al. 2025).

Shapes: B answers, L positions, D width, I input width, H query heads, G of them per key head, d head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.config import ModelConfig, Rope
from methods.engine.transformer import rope_frequencies, rope_rotation, rotate


class RMSNorm(nn.Module):
    """Root mean square norm, in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Rotations:
    """Cosines and sines of rotary positions, for as many as were asked for so far."""

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self.frequencies_d = rope_frequencies(rope, head_dim)
        self.table = rope_rotation(torch.arange(0), self.frequencies_d, torch.device("cpu"))

    def __call__(self, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Those of the positions from `first` on."""
        if first + count > len(self.table[0]) or self.table[0].device != device:
            self.table = rope_rotation(torch.arange(2 * (first + count)), self.frequencies_d, device)
        cosines, sines = (part[first : first + count] for part in self.table)
        return cosines, sines


class Attention(nn.Module):
    """Self-attention without biases over the steps of a draft."""

    def __init__(self, config: ModelConfig, rope: Rope, inputs: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(inputs, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(inputs, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(inputs, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.width, bias=False)
        self.rotations = Rotations(rope, self.head_dim)

    def forward(self, x_BLI: Tensor, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The rows of one more step; `steps` has the keys and values of those before, and gets its own."""
        rotation = self.rotations(len(steps), x_BLI.shape[1], x_BLI.device)
        q_BHLd = rotate(self._split(self.q_proj(x_BLI)), rotation).transpose(1, 2)
        k = rotate(self._split(self.k_proj(x_BLI)), rotation).transpose(1, 2)
        v = self._split(self.v_proj(x_BLI)).transpose(1, 2)
        groups = self.heads // self.kv_heads
        steps.append((k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
        return self.o_proj(attend(q_BHLd, steps).transpose(1, 2).flatten(2))

    def _split(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.unflatten(2, (-1, self.head_dim))


def attend(q_BHLd: Tensor, steps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention of row t to the rows up to t of the first of `steps`, and to row t of each later one."""
    (keys, values), own = steps[0], steps[1:]
    if not own:
        return F.scaled_dot_product_attention(q_BHLd, keys, values, is_causal=True)
    count, scale = q_BHLd.shape[2], q_BHLd.shape[3] ** -0.5
    later_LL = torch.ones(count, count, dtype=torch.bool, device=q_BHLd.device).triu(1)
    scores = [(q_BHLd @ keys.transpose(2, 3)).masked_fill(later_LL, float("-inf"))]
    scores += [(q_BHLd * k).sum(-1, keepdim=True) for k, _ in own]
    weights = (torch.cat(scores, -1) * scale).float().softmax(-1).to(values.dtype)
    mixed = weights[..., :count] @ values
    for i, (_, v) in enumerate(own):
        mixed = mixed + weights[..., count + i, None] * v
    return mixed


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))


class HeadLayer(nn.Module):
    """What all layers of heads have; a kind of head adds the norms that it wants before its attention."""

    def __init__(self, config: ModelConfig, rope: Rope, inputs: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, rope, inputs)
        self.mlp = MLP(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def finish(self, residual_BLD: Tensor, read_BLI: Tensor, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Attention that reads `read_BLI`, then the MLP, both added to the residual stream."""
        hidden_BLD = residual_BLD + self.self_attn(read_BLI, steps)
        return hidden_BLD + self.mlp(self.post_attention_layernorm(hidden_BLD))
