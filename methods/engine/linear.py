"""The linear layer, with the same bits per row however many rows are computed together.

On CPU `F.linear` repacks its weight at every call and picks kernels by the number of rows, so a row's bits depend on
its neighbours. oneDNN's prepacked form does neither (from 2 rows on: `Decoder` never runs fewer). Its operators are
private to PyTorch, so this is the only file that names them; where they are missing `F.linear` is used and the
row-invariance probe of `Decoder` says whether that still holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS = 2  # oneDNN runs one row through other kernels, whose sums are ordered differently
PACK_ROWS = 4  # the row count that the packed layout is tuned for; any count may be run


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of this dtype on this device are prepacked."""
    usable = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return usable and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


class Linear:
    """y = x W^T + b for x [N, I] -> y [N, O], weights fixed for inference."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.bias_O = bias_O
        self.packed = packs(weight_OI.dtype, weight_OI.device)
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), PACK_ROWS) if self.packed else weight_OI
        )

    def __call__(self, x_NI: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias_O, "none", [], "")
        return F.linear(x_NI, self.weight, self.bias_O)
