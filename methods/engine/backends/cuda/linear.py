"""Linear layers of few rows on CUDA, whose weights are read in the bits that they have: 32, 16, 8 or 4.

Legend: N rows, I inputs, O outputs, P inputs that fill steps, G groups of 32 of these, S parts of the inputs or of a
weight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine import traffic
from methods.engine.backends.cuda.launch import INTERPRETED, launch
from methods.engine.backends.cuda.products import added_kernel, linear_kernel
from methods.engine.backends.pytorch import product
from methods.engine.int4 import GROUP, Int4
from methods.engine.int8 import Int8

MOST_ROWS = 64  # of a tile; beyond that weights in 16 or 32 bits go through cuBLAS, which is made for many rows
OUTPUTS = 32  # of a tile: on tensor cores one instruction for any number of rows
STEPS = {32: 64, 16: 128, 8: 128, 4: 256}  # inputs of a step, by the bits of a weight: the order of a sum hangs on it
SHARED_BYTES = 88 << 10  # of a multiprocessor's memory: the least that GPUs from sm_80 on give a program, but for some
MOST_STAGES = 5  # steps whose weights are on their way
PROGRAMS = 128  # that run at once, one on each multiprocessor of a large GPU
LEAST_STEPS = 4  # of a part of the inputs
ADDED = 1024  # sums that a program adds


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
        self.span = span_of(self.outputs, self.inputs, STEPS[self.bits])
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
        parts = 1 if gated else -(-self.inputs // self.span)
        if parts == 1:
            outputs = self.outputs // 2 if gated else self.outputs
            y_NO = x_NI.new_empty(len(x_NI), outputs, dtype=self.out_dtype)
            self._launch(x_NI, residual_NO, y_NO, gated)
            return y_NO
        sums_SNO = x_NI.new_empty(parts, len(x_NI), self.outputs, dtype=torch.float32)
        self._launch(x_NI, None, sums_SNO, gated, parts)
        return added(sums_SNO, residual_NO, self.out_dtype)

    def _launch(self, x_NI: Tensor, residual_NO: Tensor | None, y: Tensor, gated: bool, parts: int = 1) -> None:
        """Into y [N, O], or of several parts of the inputs [S, N, O]."""
        x_NI, (rows, outputs), step = x_NI.contiguous(), y.shape[-2:], STEPS[self.bits]
        columns = next((count for count in (16, 32) if rows <= count), MOST_ROWS)
        packed = -(-self.inputs // step) * step
        launch(
            linear_kernel,
            (-(-outputs // OUTPUTS), -(-rows // columns), parts),
            x_NI,
            self.weight,
            *(x_NI if part is None else part for part in (self.scales, self.minima_OG, self.bias_O, residual_NO)),
            y,
            *(rows, self.inputs, outputs, packed, packed if parts == 1 else self.span),
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

    def _stages(self, columns: int, gated: bool) -> int:
        """Steps on their way, as many as fit; no sum hangs on it."""
        of_weights = OUTPUTS * STEPS[self.bits] * self.bits // 8 * (2 if gated else 1)
        of_inputs = columns * STEPS[self.bits] * self.dtype.itemsize
        return min(MOST_STAGES, SHARED_BYTES // (of_weights + of_inputs))

    def _by_cublas(self, x_NI: Tensor, residual_NO: Tensor | None, gated: bool) -> Tensor:
        y_NO = product(x_NI, self.weight, self.bias_O, self.out_dtype)
        if gated:
            gate, up = y_NO.chunk(2, 1)
            y_NO = F.silu(gate) * up
        return y_NO if residual_NO is None else y_NO + residual_NO


def span_of(outputs: int, inputs: int, step: int) -> int:
    """The inputs of a part, whole steps of them: all, or where there are fewer tiles of outputs than programs can run,
    so many that all parts together have about as many tiles. A matter of the shape alone, so every row has them."""
    tiles, steps = -(-outputs // OUTPUTS), -(-inputs // step)
    parts = max(1, min(PROGRAMS // tiles, steps // LEAST_STEPS))
    return -(-steps // parts) * step


def added(parts_SNO: Tensor, residual_NO: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sum of partial sums in fp32 from the first up, then of that and a residual, [N, O], rounded once."""
    parts, *shape = parts_SNO.shape
    y_NO = parts_SNO.new_empty(shape, dtype=dtype)
    residual_NO = residual_NO if residual_NO is None else residual_NO.contiguous()
    launch(
        added_kernel,
        (-(-y_NO.numel() // ADDED),),
        *(parts_SNO, parts_SNO if residual_NO is None else residual_NO, y_NO, y_NO.numel()),
        PARTS=parts,
        ADDED=residual_NO is not None,
        BLOCK=ADDED,
    )
    return y_NO


def packed(weight_OI: Int4) -> tuple[Tensor, Tensor, Tensor]:
    """The values, steps and minima of I inputs and as many more as fill the last step, which weigh nothing: bytes
    [O, P / 2], a byte having one of the first half of a step and one of the second, fp16 [O, G] twice."""
    half = STEPS[4] // 2
    more = -weight_OI.shape[1] % STEPS[4]
    values_OP = F.pad(weight_OI.values_OI, (0, more)).unflatten(1, (-1, 2, half))
    bytes_OJ = (values_OP[:, :, 0] | values_OP[:, :, 1] << 4).flatten(1).contiguous()
    steps_OG, minima_OG = (F.pad(part, (0, more // GROUP)) for part in (weight_OI.steps_OG, weight_OI.minima_OG))
    return bytes_OJ, steps_OG.contiguous(), minima_OG.contiguous()
