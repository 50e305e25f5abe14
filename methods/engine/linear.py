"""The linear layer, with the same bits per row however many rows are computed together.

On CPU `F.linear` repacks its weight at every call and picks kernels by the number of rows, so a row's bits depend on
its neighbours. The native operator does neither. Where it is not available, oneDNN's prepacked form does neither from 2
rows on (`Decoder` then never runs fewer); on processors for which it cannot pack bf16, weights are widened to fp32, and
y is rounded. Its operators are private to PyTorch, so this is the only file that names
them; where they are missing too, `F.linear` is used and the row-invariance probe of `Decoder` tells the consequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine import native
from methods.engine.int8 import Int8

MIN_ROWS = 2  # oneDNN runs one row through other kernels, whose sums are ordered differently
PACK_ROWS = 4  # the row count that oneDNN's packed layout is tuned for; any count may be run


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can prepack weights of this dtype on this device."""
    usable = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return usable and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def packs_bf16() -> bool:
    """Whether oneDNN can prepack bf16 as it is: it needs AVX-512 or AVX-NE-CONVERT."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Linear:
    """y = x W^T + b for x [N, I] -> y [N, O], weights fixed for inference."""

    def __init__(
        self, weight_OI: Tensor | Int8, bias_O: Tensor | None = None, out_dtype: torch.dtype | None = None
    ) -> None:
        """`out_dtype` of y, by default that of the weights. Natively y is not rounded to the weights' first, and int8
        weights stay such; elsewhere they are widened."""
        self.dtype, self.bias_O = out_dtype or weight_OI.dtype, bias_O
        self.native: native.NativeLinear | None = None
        self.packed = False
        if native.takes(weight_OI):
            self.native = native.NativeLinear(weight_OI, bias_O, self.dtype)
            return
        if isinstance(weight_OI, Int8):
            weight_OI = weight_OI.widened()
        self.packed = packs(weight_OI.dtype, weight_OI.device)
        self.widened = self.packed and weight_OI.dtype == torch.bfloat16 and not packs_bf16()
        if self.widened:
            weight_OI, self.bias_O = weight_OI.float(), None if bias_O is None else bias_O.float()
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), PACK_ROWS) if self.packed else weight_OI
        )

    @property
    def weight_size(self) -> int:
        """Bytes that a weight takes in memory."""
        return self.native.weight_size if self.native is not None else self.weight.element_size()

    def __call__(self, x_NI: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(x_NI)
        if self.packed:
            x_NI = x_NI.float() if self.widened else x_NI
            return torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias_O, "none", [], "").to(self.dtype)
        return F.linear(x_NI, self.weight, self.bias_O).to(self.dtype)
