"""Linear layers of few rows on CUDA, whose weights are read in the bits that they have: 32, 16, 8 or 4.

Legend: N rows, I inputs, O outputs, P inputs that fill steps, G groups of 32 of these.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine import traffic
from methods.engine.backends.cuda.kernels import linear_kernel
from methods.engine.backends.cuda.launch import INTERPRETED, launch
from methods.engine.int4 import GROUP, Int4
from methods.engine.int8 import Int8

MOST_ROWS = 64  # of a tile; beyond that weights in 16 or 32 bits go through cuBLAS, which is made for many rows
OUTPUTS = 32  # of a tile: on tensor cores one instruction for any number of rows
STEPS = {32: 64, 16: 128, 8: 128, 4: 256}  # inputs of a step, by the bits of a weight: the order of a sum hangs on it
SHARED_BYTES = 88 << 10  # of a multiprocessor's memory: the least that GPUs from sm_80 on give a program, but for some
MOST_STAGES = 5  # steps whose weights are on their way


class CudaLinear:
    """y = x W^T + b for x [N, I] -> y [N, O]; the sum of an output has one order for all N up to MOST_ROWS."""

    def __init__(self, weight_OI: Tensor | Int8 | Int4, bias_O: Tensor | None, out_dtype: torch.dtype) -> None:
        self.dtype, self.out_dtype, self.bias_O = weight_OI.dtype, out_dtype, bias_O
        self.device = weight_OI.device
        self.outputs, self.inputs = weight_OI.shape
        self.scales: Tensor | None = None
        self.minima_OG: Tensor | None = None
        if isinstance(weight_OI, Int4):
            self.bits, (self.weight, self.scales, self.minima_OG) = 4, packed(weight_OI)
        elif isinstance(weight_OI, Int8):
            self.bits, self.weight, self.scales = 8, weight_OI.values_OI.contiguous(), weight_OI.scales_O.float()
        else:
            self.bits, self.weight = 8 * weight_OI.element_size(), weight_OI.contiguous()
        held = [self.weight, *(part for part in (self.scales, self.minima_OG) if part is not None)]
        self.weight_bytes: int = sum(part.numel() * part.element_size() for part in held)

    @property
    def weight_size(self) -> float:
        """Bytes that a weight takes in memory, in 4 bits with its part of what a group shares."""
        return {32: 4.0, 16: 2.0, 8: 1.0, 4: 0.5 + 4 / GROUP}[self.bits]

    @property
    def takes(self) -> tuple[int, torch.dtype, torch.device]:
        return self.inputs, self.dtype, self.device

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None, gated: bool = False) -> Tensor:
        """`residual_NO`: to be added. `gated`: of the O outputs silu(first half) * second half, [N, O / 2]."""
        traffic.add(self.weight_bytes)
        if len(x_NI) > MOST_ROWS and self.bits >= 16:
            return self._by_cublas(x_NI, residual_NO, gated)
        x_NI = x_NI.contiguous()
        outputs = self.outputs // 2 if gated else self.outputs
        y_NO = x_NI.new_empty(len(x_NI), outputs, dtype=self.out_dtype)
        columns = next((count for count in (16, 32) if len(x_NI) <= count), MOST_ROWS)
        step = STEPS[self.bits]
        launch(
            linear_kernel,
            (-(-outputs // OUTPUTS), -(-len(x_NI) // columns)),
            x_NI,
            self.weight,
            *(x_NI if part is None else part for part in (self.scales, self.minima_OG, self.bias_O, residual_NO)),
            y_NO,
            *(len(x_NI), self.inputs, outputs, -(-self.inputs // step) * step),
            BITS=min(self.bits, 16),
            BIASED=self.bias_O is not None,
            ADDED=residual_NO is not None,
            GATED=gated,
            BO=OUTPUTS,
            BR=columns,
            BK=step,
            WIDEN=INTERPRETED,
            num_stages=self._stages(columns, gated),
        )
        return y_NO

    def _stages(self, columns: int, gated: bool) -> int:
        """Steps on their way, as many as fit; no sum hangs on it."""
        of_weights = OUTPUTS * STEPS[self.bits] * self.bits // 8 * (2 if gated else 1)
        of_inputs = columns * STEPS[self.bits] * self.dtype.itemsize
        return min(MOST_STAGES, SHARED_BYTES // (of_weights + of_inputs))

    def _by_cublas(self, x_NI: Tensor, residual_NO: Tensor | None, gated: bool) -> Tensor:
        y_NO = F.linear(x_NI, self.weight, self.bias_O)
        if gated:
            gate, up = y_NO.chunk(2, 1)
            y_NO = F.silu(gate) * up
        if residual_NO is not None:
            y_NO = y_NO + residual_NO
        return y_NO.to(self.out_dtype)


def packed(weight_OI: Int4) -> tuple[Tensor, Tensor, Tensor]:
    """The values, steps and minima of I inputs and as many more as fill the last step, which weigh nothing: bytes
    [O, P / 2], a byte having one of the first half of a step and one of the second, fp16 [O, G] twice."""
    half = STEPS[4] // 2
    more = -weight_OI.shape[1] % STEPS[4]
    values_OP = F.pad(weight_OI.values_OI, (0, more)).unflatten(1, (-1, 2, half))
    bytes_OJ = (values_OP[:, :, 0] | values_OP[:, :, 1] << 4).flatten(1).contiguous()
    steps_OG, minima_OG = (F.pad(part, (0, more // GROUP)) for part in (weight_OI.steps_OG, weight_OI.minima_OG))
    return bytes_OJ, steps_OG.contiguous(), minima_OG.contiguous()
