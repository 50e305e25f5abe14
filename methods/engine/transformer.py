"""The one Transformer: Llama, Mistral, Qwen2 and Qwen3 families, for inference, one sequence at a time.

Legend: N rows (positions computed in this pass), D width, H query heads, K key/value heads, d head width, I MLP width,
V vocabulary, R rows of a reduced head, E width of what lies beside a state. Read top-down: Layers, Transformer, Layer,
then the pieces.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.backends import choose, joined_linear, linear
from methods.engine.backends.base import KeyValueCache, LinearLayer
from methods.engine.backends.joined import Gather
from methods.engine.backends.pytorch import Attend, rms_norm
from methods.engine.config import ModelConfig, Rope
from methods.engine.int4 import MINIMUM, Int4
from methods.engine.int8 import SCALE, Int8

FINAL = -1  # a tap: the state after the final norm


class Layers:
    """Layers of a Transformer: a model's, or those of a head, which reads a model's states. Attention is passed in: the
    cache decides what a row sees."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        gather: Gather | None = None,
    ) -> None:
        """`weights` by Hugging Face names; `devices`: one per layer. `gather`: of a part of a model that is split among
        ranks, of which all this is; it gives each the partial sums of all."""
        self.config, self.dtype, self.devices = config, dtype, list(devices)
        self.layers = [Layer(config, i, weights, dtype, device, gather) for i, device in enumerate(self.devices)]
        self.frequencies_d = rope_frequencies(config.rope, config.head_dim)
        self.rotations = rope_rotation(torch.arange(0), self.frequencies_d, self.devices[0])
        self.stack = choose(config, self.layers, dtype, self.devices, whole=gather is None)

    def rotation(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """What `run` must know of its rows' positions: rows of a table that grows with the longest sequence."""
        self.grow(int(positions_N.max()) + 1)
        return self.rotation_of(positions_N.to(self.devices[0]))

    def grow(self, positions: int) -> None:
        """Make the table of rotations hold at least the first so many positions."""
        if positions > len(self.rotations[0]):
            table = torch.arange(1 << max(8, (positions - 1).bit_length()))
            self.rotations = rope_rotation(table, self.frequencies_d, self.devices[0])

    def rotation_of(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """The same of positions that lie on the table's device, for which it is large enough."""
        cosines, sines = self.rotations
        return cosines[positions_N], sines[positions_N]

    def sent(self, tokens_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and positions on the first layer's device, for `rotation_of`: one copy for both."""
        self.grow(int(positions_N.max()) + 1)
        if self.devices[0].type == "cpu":
            return tokens_N, positions_N
        tokens_N, positions_N = torch.stack((tokens_N, positions_N)).to(self.devices[0])
        return tokens_N, positions_N

    def run(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: Any,
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        """The states after layers first .. stop, from those before. `view`: what the rows see, of a cache that
        `new_cache` gave. `beside_NE`: what the layers that have a norm for it read beside the states."""
        return self.stack(x_ND, rotation, view, first, stop, beside_NE)

    def new_cache(self, rows: int) -> KeyValueCache:
        """An empty cache for these layers."""
        return self.stack.new_cache(len(self.layers), rows)


class Transformer(Layers):
    """Embedding, layers, final norm and head: a language model."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        gather: Gather | None = None,
    ) -> None:
        """The embedding lives on the first layer's device, the head on the last layer's. `lm_head.tokens`: the token of
        each row of a head over part of the vocabulary. `gather`: as layers have it; all but these is whole."""
        super().__init__(config, weights, dtype, devices, gather)
        first, last = self.devices[0], self.devices[-1]
        self.embedding_VD = weights["model.embed_tokens.weight"].to(first, dtype)
        self.norm_D = weights["model.norm.weight"].to(last, dtype)
        tied = config.tied and "lm_head.weight" not in weights
        head_VD = self.embedding_VD.to(last) if tied else matrix(weights, ["lm_head.weight"], dtype, last)
        self.head = linear(head_VD, out_dtype=torch.float32)
        self.tokens_R = weights["lm_head.tokens"].long() if "lm_head.tokens" in weights else None

    def __call__(
        self, tokens_N: Tensor, positions_N: Tensor, view: Any, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream behind the last layer, [N, D], and the features that `taps` ask for, side by side in
        their order, [N, len(taps) * D]; None without taps. A tap i >= 0 is the stream after layer i, FINAL the state
        after the final norm, which the head reads. `view` as `run` has it."""
        return self.hidden(*self.sent(tokens_N, positions_N), view, taps)

    def hidden(
        self, tokens_N: Tensor, positions_N: Tensor, view: Any, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """The same of tokens and positions that lie on the first layer's device, positions for which the table of
        rotations is large enough: a GPU is then told all without being asked, so that a graph can hold it."""
        x_ND, done = self.embed(tokens_N), 0
        rotation = self.rotation_of(positions_N)
        states: dict[int, Tensor] = {}
        for stop in sorted({tap + 1 for tap in taps if tap != FINAL} | {len(self.layers)}):
            x_ND, done = self.run(x_ND, rotation, view, done, stop), stop
            states[stop - 1] = x_ND
        if FINAL in taps:
            states[FINAL] = self.normed(x_ND)
        return x_ND, torch.cat([states[tap].to(x_ND.device) for tap in taps], 1) if taps else None

    def embed(self, tokens_N: Tensor) -> Tensor:
        """The states before the first layer, [N, D]."""
        return F.embedding(tokens_N.to(self.devices[0]), self.embedding_VD)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits in fp32, [N, V], of states before the final norm; of a reduced head [N, R], of the tokens
        `tokens_R`."""
        return self.head(self.normed(hidden_ND))

    def normed(self, hidden_ND: Tensor) -> Tensor:
        """The states after the final norm, [N, D], on its device: a draft of the target's first layers ends before the
        target does."""
        if hidden_ND.is_cuda:
            hidden_ND = hidden_ND.to(self.norm_D.device)
        return self.stack.norm(hidden_ND, self.norm_D, self.config.norm_eps)

    def measure_rows(self) -> None:
        """Find out at which numbers of rows a row has the same bits."""
        self.stack.measure_rows(self.head)

    @property
    def weight_bytes(self) -> int:
        """Bytes that a pass must read: every weight once, the embedding only when it is also the head; of a split model
        this rank's."""
        return self.bytes_up_to(self.config.layers)

    def bytes_up_to(self, layers: int) -> int:
        """The same for a pass that leaves the model after so many layers, by the head."""
        return self.bytes_of(replace(self.config, layers=layers))

    def bytes_of(self, config: ModelConfig) -> int:
        """The same of a model of that configuration whose weights have as many bits."""
        c = config
        qkv = c.width * c.head_dim * (c.heads + 2 * c.kv_heads)
        layer = qkv + c.width * c.head_dim * c.heads + 3 * c.width * c.mlp_width
        head_rows = c.vocab_size if self.tokens_R is None else len(self.tokens_R)
        layer_bytes = self.layers[0].down.weight_size * layer  # a head may be in more bits than the layers
        return round(c.layers * layer_bytes + self.head.weight_size * head_rows * c.width)


class Layer:
    """Pre-norm attention and SwiGLU MLP, each added to the residual stream.

    A layer of a head may lack the norm before its attention; or have rows beside the stream, of width E, whose norm
    `beside_norm` comes before the stream's in the inputs of q, k and v (EAGLE-3, Li et al. 2025)."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        gather: Gather | None = None,
    ) -> None:
        def get(name: str) -> Tensor:
            return weights[f"model.layers.{index}.{name}"].to(device, dtype)

        def optional(name: str) -> Tensor | None:
            return get(name) if f"model.layers.{index}.{name}" in weights else None

        def fused(part: str, *names: str) -> LinearLayer:
            stems = [f"model.layers.{index}.{part}.{name}" for name in names]
            biased = f"{stems[0]}.bias" in weights
            bias = torch.cat([weights[f"{stem}.bias"] for stem in stems]).to(device, dtype) if biased else None
            return linear(matrix(weights, [f"{stem}.weight" for stem in stems], dtype, device), bias)

        def summed(part: str, name: str) -> LinearLayer:
            if gather is None:
                return fused(part, name)
            weight = matrix(weights, [f"model.layers.{index}.{part}.{name}.weight"], dtype, device)
            return joined_linear(weight, gather, dtype)

        self.config, self.index, self.device = config, index, device
        self.attention_norm_D = optional("input_layernorm.weight")
        self.beside_norm_E = optional("beside_norm.weight")
        self.qkv = fused("self_attn", "q_proj", "k_proj", "v_proj")
        self.q_norm_d = get("self_attn.q_norm.weight") if config.qk_norm else None
        self.k_norm_d = get("self_attn.k_norm.weight") if config.qk_norm else None
        self.out = summed("self_attn", "o_proj")
        self.mlp_norm_D = get("post_attention_layernorm.weight")
        self.gate_up = fused("mlp", "gate_proj", "up_proj")
        self.down = summed("mlp", "down_proj")

    def __call__(
        self, x_ND: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, beside_NE: Tensor | None = None
    ) -> Tensor:
        c = self.config
        qkv = self.qkv(self._attention_inputs(x_ND, beside_NE)).view(len(x_ND), -1, c.head_dim)
        q, k, v = qkv.split((c.heads, c.kv_heads, c.kv_heads), 1)
        if self.q_norm_d is not None and self.k_norm_d is not None:
            q, k = rms_norm(q, self.q_norm_d, c.norm_eps), rms_norm(k, self.k_norm_d, c.norm_eps)
            q, k = rotate(torch.cat((q, k), 1), rotation).split((c.heads, c.kv_heads), 1)
        else:
            q, k = rotate(qkv[:, : c.heads + c.kv_heads], rotation).split((c.heads, c.kv_heads), 1)
        x_ND = x_ND + self.out(attend(self.index, q, k, v))
        gate, up = self.gate_up(rms_norm(x_ND, self.mlp_norm_D, c.norm_eps)).split(c.mlp_width, 1)
        return x_ND + self.down(F.silu(gate) * up)

    def _attention_inputs(self, x_ND: Tensor, beside_NE: Tensor | None) -> Tensor:
        eps = self.config.norm_eps
        normed_ND = x_ND if self.attention_norm_D is None else rms_norm(x_ND, self.attention_norm_D, eps)
        if self.beside_norm_E is None or beside_NE is None:
            return normed_ND
        return torch.cat((rms_norm(beside_NE, self.beside_norm_E, eps), normed_ND), 1)


def matrix(
    weights: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype, device: torch.device
) -> Tensor | Int8 | Int4:
    """The matrices of these names, one below the other; in 8 or 4 bits where they are stored so."""

    def stacked(suffix: str = "") -> Tensor:
        return torch.cat([weights[name + suffix].to(device) for name in names])

    values = stacked()
    if values.dtype == torch.int8:
        return Int8(values, stacked(SCALE), dtype)
    if values.dtype == torch.uint8:
        return Int4(values, stacked(SCALE), stacked(MINIMUM), dtype)
    return values.to(dtype)


def rope_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each rotated pair, [d / 2] in fp64."""
    inverse = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        wavelengths = 2 * math.pi / inverse
        turns = rope.original_length / wavelengths  # full turns within the trained length
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return inverse * (smooth + (1 - smooth) / rope.factor)
    return inverse


def rope_rotation(positions_N: Tensor, frequencies: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine, [N, 1, d] in fp32, for `rotate`."""
    angles = positions_N.to(torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat((cos, cos), 1)[:, None].to(device), torch.cat((-sin, sin), 1)[:, None].to(device)


def rotate(x_NHd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + d / 2) of every head, in fp32."""
    x = x_NHd.float()
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), -1)
    return torch.addcmul(x * rotation[0], swapped, rotation[1]).to(x_NHd.dtype)
