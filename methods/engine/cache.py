"""Static key/value cache and the two kinds of attention over it, in PyTorch's operators.

Rows are positions: row i holds the i-th committed token; the rows behind the committed ones are provisional.
Where the native operators run, `native.PackedCache` takes the place of `Cache`.

Legend: N rows of this pass, P provisional rows, T prompt tokens, L cache rows read, H query heads, K key/value heads,
G = H / K, d head width, A accepted.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.tree import TokenTree

BLOCK = 64  # cache rows are read in multiples of this, so that few shapes occur

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q_NHd, k_NKd, v_NKd -> out [N, H * d]


class Cache:
    """Keys and values of every layer, [layer][2, K, rows, d], allocated once on the layers' devices."""

    def __init__(self, kv_heads: int, head_dim: int, rows: int, dtype: torch.dtype, devices: Sequence[torch.device]):
        rows = -(-rows // BLOCK) * BLOCK
        counts = {device: devices.count(device) for device in devices}
        self.data = {
            device: torch.zeros(count, 2, kv_heads, rows, head_dim, dtype=dtype, device=device)
            for device, count in counts.items()
        }
        self.layers = [self.data[device][devices[:i].count(device)] for i, device in enumerate(devices)]

    def write(self, layer: int, start: int, k_NKd: Tensor, v_NKd: Tensor) -> None:
        """Store this pass's keys and values in rows start .. start + N."""
        stop = start + k_NKd.shape[0]
        self.layers[layer][0, :, start:stop] = k_NKd.transpose(0, 1)
        self.layers[layer][1, :, start:stop] = v_NKd.transpose(0, 1)

    def pack(self, start: int, path_A: Tensor) -> None:
        """Move rows start + path_A to start .. start + A (path_A ascending)."""
        stop = start + path_A.shape[0]
        for data in self.data.values():
            data[:, :, :, start:stop] = data.index_select(3, path_A.to(data.device) + start)

    def prompt(self) -> Attend:
        """Attention for a pass over a whole prompt."""

        def attend(layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
            self.write(layer, 0, k_TKd, v_TKd)
            return causal_attention(q_THd, k_TKd, v_TKd)

        return attend

    def view(self, start: int, tree: TokenTree, known: int = 0) -> Attend:
        """Attention for a pass over the nodes of `tree` behind its first `known`, which have their rows already. The
        root follows the first `start` rows."""
        masks: dict[torch.device, Tensor] = {}

        def attend(layer: int, q_NHd: Tensor, k_NKd: Tensor, v_NKd: Tensor) -> Tensor:
            self.write(layer, start + known, k_NKd, v_NKd)
            device, groups = q_NHd.device, q_NHd.shape[1] // k_NKd.shape[1]
            if device not in masks:
                masks[device] = attention_mask(tree.visible_NN[known:], start, groups).to(device)
            keys_KRd, values_KRd = self.layers[layer]
            return cached_attention(q_NHd, keys_KRd, values_KRd, masks[device])

        return attend


def causal_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
    """Attention of a prompt to itself, [T, H * d]. Every method computes a prompt by this same call, so it may use the
    fast kernel: its bits need not agree with those of `cached_attention`."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THd, k_TKd, v_TKd))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1).flatten(1)


def attention_mask(visible_NP: Tensor, length: int, groups: int) -> Tensor:
    """Additive fp64 mask [N * G, L]: all committed rows, and of the P provisional ones what `visible_NP` allows."""
    nodes, provisional = visible_NP.shape
    rows = -(-(length + provisional) // BLOCK) * BLOCK
    mask = torch.full((nodes, rows), -torch.inf, dtype=torch.float64)
    mask[:, :length] = 0
    mask[:, length : length + provisional].masked_fill_(visible_NP, 0)
    return mask.repeat_interleave(groups, 0)


def cached_attention(q_NHd: Tensor, keys_KRd: Tensor, values_KRd: Tensor, mask_ML: Tensor) -> Tensor:
    """Attention of N rows to the cache, [N, H * d], M = N * G.

    Summed in fp64 and rounded once: in a tree a path's keys lie in other rows than in plain decoding, with masked rows
    between them, so any shorter format would round in another order. Masked rows add exact zeros."""
    nodes, heads, width = q_NHd.shape
    kv_heads = keys_KRd.shape[0]
    rows = mask_ML.shape[1]
    q_KMd = q_NHd.view(nodes, kv_heads, -1, width).transpose(0, 1).double().reshape(kv_heads, -1, width)
    keys_KdL = keys_KRd[:, :rows].double().transpose(1, 2)
    scores_KML = torch.baddbmm(mask_ML, q_KMd, keys_KdL, alpha=width**-0.5)
    out_KMd = torch.bmm(torch.softmax(scores_KML, -1), values_KRd[:, :rows].double())
    out = out_KMd.view(kv_heads, nodes, -1, width).transpose(0, 1).to(q_NHd.dtype)
    return out.reshape(nodes, heads * width)
