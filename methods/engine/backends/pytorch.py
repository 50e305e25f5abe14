"""PyTorch's operators: linear layers, a static key/value cache and the two kinds of attention over it.

On CPU `F.linear` repacks its weight at every call and picks kernels by the number of rows, so a row's bits depend on
its neighbours. oneDNN's prepacked form does neither from 2 rows on; on processors for which it cannot pack bf16,
weights are widened to fp32, and y is rounded. Its operators are private to PyTorch, so this is the only file that names
them; where they are missing, `F.linear` is used and the row-invariance probe of `Decoder` tells the consequence.

On CUDA this stands in where Triton's kernels do not run. Kernels are chosen by the number of rows too, and what order
they sum in is not documented. So it is measured: a pass has one of those numbers of rows at which every matrix gives a
row the same bits, at worst one number alone.

What a pass knows of the cache's state lies in tensors, made before its first layer; numbers of the host only give
shapes. So a pass that was recorded once, as a CUDA graph is, can be replayed at another length.

Legend: N rows of this pass, P provisional rows, T prompt tokens, L cache rows read, H query heads, K key/value heads,
G = H / K, d head width, M = N * G, A accepted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine import traffic
from methods.engine.backends.base import LayerParts, LinearLayer
from methods.engine.backends.joined import Joined
from methods.engine.config import ModelConfig
from methods.engine.int4 import Int4
from methods.engine.int8 import Int8
from methods.engine.tree import TokenTree
from methods.engine.weights import tell

BLOCK = 64  # cache rows are read in multiples of this, so that few shapes occur

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q_NHd, k_NKd, v_NKd -> out [N, H * d]


class Cache:
    """Keys and values of every layer, [layer][2, K, rows, d], allocated once on the layers' devices."""

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
        """`devices`: one per layer."""
        rows, self.groups = -(-rows // BLOCK) * BLOCK, config.heads // config.kv_heads
        counts = {device: devices.count(device) for device in devices}
        self.data = {
            device: torch.zeros(count, 2, config.kv_heads, rows, config.head_dim, dtype=dtype, device=device)
            for device, count in counts.items()
        }
        self.layers = [self.data[device][devices[:i].count(device)] for i, device in enumerate(devices)]

    def write(self, layer: int, rows_N: Tensor, k_NKd: Tensor, v_NKd: Tensor) -> None:
        """Store this pass's keys and values in the rows `rows_N`."""
        keys_KRd, values_KRd = self.layers[layer]
        keys_KRd.index_copy_(1, rows_N, k_NKd.transpose(0, 1))
        values_KRd.index_copy_(1, rows_N, v_NKd.transpose(0, 1))

    def pack(self, start: int, path_A: Tensor) -> None:
        """Move rows start + path_A to start .. start + A (path_A ascending)."""
        stop = start + path_A.shape[0]
        for data in self.data.values():
            data[:, :, :, start:stop] = data.index_select(3, path_A.to(data.device) + start)

    def prompt(self) -> Attend:
        """Attention for a pass over a whole prompt."""

        def attend(layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
            self.write(layer, torch.arange(len(k_TKd), device=k_TKd.device), k_TKd, v_TKd)
            return causal_attention(q_THd, k_TKd, v_TKd)

        return attend

    def view(self, start: int, tree: TokenTree, known: int = 0, exact: bool = True) -> "View":
        """Attention for a pass over the nodes of `tree` behind its first `known`, which have their rows already. The
        root follows the first `start` rows."""
        dtype = torch.float64 if exact or not self.layers[0].is_cuda else self.layers[0].dtype
        visible_NP = tree.visible_NN[known:].to(next(iter(self.data)))  # once, and from there to the other devices
        return View(
            self,
            {device: torch.arange(start + known, start + tree.nodes, device=device) for device in self.data},
            {device: attention_mask(visible_NP.to(device), start, self.groups, dtype) for device in self.data},
        )


@dataclass(frozen=True)
class View:
    """Attention of a pass to the cache: the rows that its keys and values go to, and what each of its rows sees, on
    every device of the layers."""

    cache: Cache
    rows_N: dict[torch.device, Tensor]
    mask_ML: dict[torch.device, Tensor]

    def __call__(self, layer: int, q_NHd: Tensor, k_NKd: Tensor, v_NKd: Tensor) -> Tensor:
        device = q_NHd.device
        self.cache.write(layer, self.rows_N[device], k_NKd, v_NKd)
        keys_KRd, values_KRd = self.cache.layers[layer]
        mask_ML = self.mask_ML[device]
        attention = cached_attention if mask_ML.dtype == torch.float64 else fast_attention
        return attention(q_NHd, keys_KRd, values_KRd, mask_ML)


def causal_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
    """Attention of a prompt to itself, [T, H * d]. Every method computes a prompt by this same call, so it may use the
    fast kernel: its bits need not agree with those of `cached_attention`."""
    if q_THd.is_cuda and q_THd.dtype == torch.float32:  # whose fast kernel wants a key for each query head
        k_TKd, v_TKd = (x.repeat_interleave(q_THd.shape[1] // x.shape[1], 1) for x in (k_TKd, v_TKd))
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THd, k_TKd, v_TKd))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1).flatten(1)


def attention_mask(visible_NP: Tensor, length: int, groups: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Additive mask [N * G, L]: all committed rows, and of the P provisional ones what `visible_NP` allows."""
    nodes, provisional = visible_NP.shape
    rows = -(-(length + provisional) // BLOCK) * BLOCK
    mask = torch.full((nodes, rows), -torch.inf, dtype=dtype, device=visible_NP.device)
    mask[:, :length] = 0
    mask[:, length : length + provisional].masked_fill_(visible_NP, 0)
    return mask.repeat_interleave(groups, 0)


def cached_attention(q_NHd: Tensor, keys_KRd: Tensor, values_KRd: Tensor, mask_ML: Tensor) -> Tensor:
    """Attention of N rows to the cache, [N, H * d].

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


def fast_attention(q_NHd: Tensor, keys_KRd: Tensor, values_KRd: Tensor, mask_ML: Tensor) -> Tensor:
    """The same, [N, H * d], for rows whose bits may depend on their neighbours. The query heads of a group are rows of
    their key's head: so the kernel takes a mask, and no key is repeated."""
    nodes, heads, width = q_NHd.shape
    kv_heads, rows = keys_KRd.shape[0], mask_ML.shape[1]
    q_KMd = q_NHd.view(nodes, kv_heads, -1, width).transpose(0, 1).reshape(1, kv_heads, -1, width)
    keys, values = keys_KRd[None, :, :rows], values_KRd[None, :, :rows]
    out_KMd = F.scaled_dot_product_attention(q_KMd, keys, values, attn_mask=mask_ML)
    return out_KMd.view(kv_heads, nodes, -1, width).transpose(0, 1).reshape(nodes, heads * width)


MIN_ROWS = 2  # oneDNN runs one row through other kernels, whose sums are ordered differently
CUDA_ROWS = (1, 2, 4, 8, 16, 32, 64)  # of passes on CUDA; the last stands for all that do not give its bits
MM = torch.ops.aten.mm.overloads()  # with "dtype" it gives its sums in another one
NO_KERNEL = (
    "note: Triton's kernels, which read weights in 8 or 4 bits as they are, do not run on this GPU (they need triton "
    "and compute capability 8.0), so these are kept in the run's dtype: such a draft saves neither memory nor time"
)
PACK_ROWS = 4  # the row count that oneDNN's packed layout is tuned for; any count may be run


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can prepack weights of this dtype on this device."""
    usable = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return usable and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def packs_bf16() -> bool:
    """Whether oneDNN can prepack bf16 as it is: it needs AVX-512 or AVX-NE-CONVERT."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class TorchLinear:
    """y = x W^T + b for x [N, I] -> y [N, O], weights fixed for inference; those in 8 or 4 bits are widened."""

    def __init__(self, weight_OI: Tensor | Int8 | Int4, bias_O: Tensor | None, out_dtype: torch.dtype) -> None:
        self.dtype, self.bias_O = out_dtype, bias_O
        if not isinstance(weight_OI, Tensor):
            if weight_OI.device.type == "cuda":
                tell(NO_KERNEL)
            weight_OI = weight_OI.widened()
        self.packed = packs(weight_OI.dtype, weight_OI.device)
        self.widened = self.packed and weight_OI.dtype == torch.bfloat16 and not packs_bf16()
        if self.widened:
            weight_OI, self.bias_O = weight_OI.float(), None if bias_O is None else bias_O.float()
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), PACK_ROWS) if self.packed else weight_OI
        )
        self._weight_bytes = weight_OI.numel() * weight_OI.element_size()

    @property
    def weight_size(self) -> float:
        """Bytes that a weight takes in memory."""
        return self.weight.element_size()

    @property
    def takes(self) -> tuple[int, torch.dtype, torch.device]:
        return self.weight.shape[1], self.weight.dtype, self.weight.device

    @property
    def weight_bytes(self) -> int:
        return self._weight_bytes

    def __call__(self, x_NI: Tensor) -> Tensor:
        traffic.add(self._weight_bytes)
        if self.packed:
            x_NI = x_NI.float() if self.widened else x_NI
            return torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias_O, "none", [], "").to(self.dtype)
        return product(x_NI, self.weight, self.bias_O, self.dtype)


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """x W^T + b. On CUDA the sums as they are, not rounded to the weights' dtype and widened: else logits have ties
    that are none."""
    if weight_OI.is_cuda and out_dtype == torch.float32 != weight_OI.dtype and "dtype" in MM:
        y_NO = torch.mm(x_NI, weight_OI.T, out_dtype=out_dtype)
        return y_NO if bias_O is None else y_NO + bias_O
    return F.linear(x_NI, weight_OI, bias_O).to(out_dtype)


class MeasuredLinear(Protocol):
    """A linear layer that says what it `takes`: so many inputs, of this dtype, on this device."""

    @property
    def takes(self) -> tuple[int, torch.dtype, torch.device]: ...

    def __call__(self, x_NI: Tensor) -> Tensor: ...


def equal_row_counts(linears: Iterable[MeasuredLinear], counts: Sequence[int]) -> tuple[int, ...]:
    """Those of `counts`, ascending, at which each of the layers gives its rows the bits that they have among as many as
    the last one says."""
    most = counts[-1]
    inputs: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
    equal = list(counts[:-1])
    for linear in linears:
        width, dtype, device = linear.takes
        if linear.takes not in inputs:
            random = torch.Generator().manual_seed(0)
            inputs[linear.takes] = torch.randn(most, width, generator=random).to(device, dtype)
        x_NI = inputs[linear.takes]
        y_NO = linear(x_NI)
        # The last rows: they lie elsewhere among the many than among the few.
        equal = [count for count in equal if torch.equal(linear(x_NI[-count:]), y_NO[-count:])]
    return (*equal, most)


class TorchStack:
    """The layers one after the other, each on its device."""

    operators = "torch"

    def __init__(
        self, config: ModelConfig, layers: Sequence[LayerParts], dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> None:
        self.config, self.layers, self.dtype, self.devices = config, layers, dtype, list(devices)
        on_cuda = self.devices[0].type == "cuda"
        self.min_rows = 1 if on_cuda else MIN_ROWS
        self.row_counts: tuple[int, ...] | None = CUDA_ROWS[-1:] if on_cuda else None

    def measure_rows(self, *others: LinearLayer) -> None:
        if self.row_counts is not None:
            parts = [part for layer in self.layers for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]
            own = (part.partial if isinstance(part, Joined) else part for part in (*parts, *others))
            self.row_counts = equal_row_counts((cast(MeasuredLinear, part) for part in own), CUDA_ROWS)

    def fewer_rows(self) -> bool:
        before, self.row_counts = self.row_counts, self.row_counts and self.row_counts[-1:]
        return before != self.row_counts

    def new_cache(self, layers: int, rows: int) -> Cache:
        return Cache(self.config, rows, self.dtype, self.devices[:layers])

    def recorder(self, model: Any, cache: Any) -> None:
        """There is none."""

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return rms_norm(x_ND, weight_D, eps)

    def __call__(
        self,
        x_ND: Tensor,
        rotation: tuple[Tensor, Tensor],
        view: Attend,
        first: int,
        stop: int,
        beside_NE: Tensor | None = None,
    ) -> Tensor:
        for layer in self.layers[first:stop]:
            if layer.device != x_ND.device:
                x_ND = x_ND.to(layer.device)
            if layer.device != rotation[0].device:
                rotation = (rotation[0].to(layer.device), rotation[1].to(layer.device))
            x_ND = layer(x_ND, rotation, view, beside_NE)
        return x_ND


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019)."""
    return F.rms_norm(x, weight.shape, weight, eps)
