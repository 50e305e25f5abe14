"""The layers of a model on the CUDA kernels.

Legend: N rows of a pass, H query heads, K key/value heads, d head width, D width, E width of what lies beside.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from methods.engine.backends.base import LayerParts, LinearLayer
from methods.engine.backends.cuda.attention import PositionCache, PromptView, TreeView
from methods.engine.backends.cuda.graphs import Graphs, records
from methods.engine.backends.cuda.kernels import norm_kernel, rotate_kernel
from methods.engine.backends.cuda.launch import launch, power_of_two
from methods.engine.backends.cuda.linear import MOST_ROWS, CudaLinear
from methods.engine.backends.joined import Joined
from methods.engine.backends.pytorch import equal_row_counts
from methods.engine.config import ModelConfig

ROWS = (1, 2, 4, 8, 16, 32, 48, MOST_ROWS)  # of passes: few, since each number of rows has a graph of its own
HEADS = 8  # that are rotated together


class CudaStack:
    """The layers one after the other, each on its device, in nine launches; where a matrix has few outputs in one or
    two more. Parts of layers that are split among ranks wait for each other's sums twice in a layer."""

    operators = "triton"
    min_rows = 1

    def __init__(
        self, config: ModelConfig, layers: Sequence[LayerParts], dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> None:
        self.config, self.layers, self.dtype, self.devices = config, layers, dtype, list(devices)
        self.row_counts: tuple[int, ...] | None = ROWS

    def measure_rows(self, *others: LinearLayer) -> None:
        """Sums have one order, but the compiler makes a kernel for each number of columns: so bits are compared."""
        parts = [part for layer in self.layers for part in linears(layer)]
        own = [part.partial if isinstance(part, Joined) else part for part in (*parts, *others)]
        self.row_counts = equal_row_counts([part for part in own if isinstance(part, CudaLinear)], ROWS)

    def fewer_rows(self) -> bool:
        before, self.row_counts = self.row_counts, ROWS[-1:]
        return before != self.row_counts

    def new_cache(self, layers: int, rows: int) -> PositionCache:
        return PositionCache(self.config, rows, self.dtype, self.devices[:layers])

    def recorder(self, model: Any, cache: PositionCache) -> Graphs | None:
        """On one GPU. Where layers lie on several, these take so long that the host is ahead of them. Where they are
        split among ranks, the others must be told of each pass, and that NCCL's calls may be recorded beside whatever
        else a rank does is for a GPU to show."""
        whole = not any(isinstance(layer.out, Joined) for layer in self.layers)
        alone = whole and len(cache.data) == 1 and model.norm_D.device in cache.data
        return Graphs(model, cache) if alone and records(model.norm_D.device) else None

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return rms_norm(x_ND, weight_D, eps)

    def __call__(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: PromptView | TreeView,
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        for index in range(first, stop):
            device = self.layers[index].device
            x_ND = x_ND.to(device)
            rotation = (rotation[0].to(device), rotation[1].to(device))
            x_ND = self._layer(index, x_ND, rotation, view, beside_NE)
        return x_ND

    def _layer(
        self,
        index: int,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: PromptView | TreeView,
        beside_NE: Tensor | None,
    ) -> Tensor:
        layer, eps = self.layers[index], self.config.norm_eps
        qkv, out, gate_up, down = linears(layer)
        normed = x_ND if layer.attention_norm_D is None else rms_norm(x_ND, layer.attention_norm_D, eps)
        if layer.beside_norm_E is not None and beside_NE is not None:
            normed = torch.cat((rms_norm(beside_NE, layer.beside_norm_E, eps), normed), 1)
        q_NHd = self._rotated(layer, qkv(normed), rotation, view, index)
        x_ND = out(view.attend(index, q_NHd), x_ND)
        return down(cast(CudaLinear, gate_up)(rms_norm(x_ND, layer.mlp_norm_D, eps), gated=True), x_ND)

    def _rotated(
        self,
        layer: LayerParts,
        qkv_NO: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: PromptView | TreeView,
        index: int,
    ) -> Tensor:
        """The queries, [N, H, d], with their norm and rotation; keys and values go into the cache."""
        c, (keys_KCd, values_KCd) = self.config, view.cache.layers[index]
        q_NHd = qkv_NO.new_empty(len(qkv_NO), c.heads, c.head_dim)
        launch(
            rotate_kernel,
            (len(qkv_NO), -(-(c.heads + 2 * c.kv_heads) // HEADS)),
            qkv_NO,
            *rotation,
            *(qkv_NO if norm is None else norm for norm in (layer.q_norm_d, layer.k_norm_d)),
            *(view.states[qkv_NO.device], q_NHd, keys_KCd, values_KCd, keys_KCd.shape[1], c.norm_eps),
            H=c.heads,
            KH=c.kv_heads,
            D=c.head_dim,
            BH=power_of_two(c.head_dim // 2, 1),
            HEADS=HEADS,
            NORMED=layer.q_norm_d is not None,
        )
        return q_NHd


def linears(layer: LayerParts) -> list[CudaLinear | Joined]:
    """Of a layer whose every part this backend has made; those that are joined are `out` and `down`."""
    return [cast(CudaLinear | Joined, part) for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019)."""
    x_ND = x_ND.contiguous()
    y_ND = torch.empty_like(x_ND)
    launch(norm_kernel, (len(x_ND),), x_ND, weight_D, y_ND, len(weight_D), eps, BD=power_of_two(len(weight_D)))
    return y_ND
