"""The kernels of linear layers on CUDA, in Triton. A layer walks its inputs from the first up in steps that are the
weight's own, by the same instruction for any number of rows: a tile has more columns of rows, never another order.
Where a weight has few outputs its inputs are walked in parts, as many as its shape says, whose sums are added from the
first up.

WIDEN: multiply in fp32, for Triton's interpreter, whose products of bf16 are wrong.

Legend: r rows of the pass, o outputs, k inputs.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, sums, WIDEN: tl.constexpr):
    """sums + a b, in fp32; of fp32 without rounding to TF32."""
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _inputs(x_ptr, r, k, rows, inputs):
    """[k, r] of x [rows, inputs]."""
    inside = (k[:, None] < inputs) & (r[None, :] < rows)
    return tl.load(x_ptr + r[None, :].to(tl.int64) * inputs + k[:, None], mask=inside, other=0.0)


@triton.jit
def _weights(w_ptr, o, k, outputs, inputs, dtype: tl.constexpr, WIDEN: tl.constexpr):
    """[o, k] of weights in `dtype`, or in 8 bits: these are exact in every dtype."""
    inside = (o[:, None] < outputs) & (k[None, :] < inputs)
    w = tl.load(w_ptr + o[:, None].to(tl.int64) * inputs + k[None, :], mask=inside, other=0)
    if WIDEN:
        return w.to(tl.float32)
    return w.to(dtype)


@triton.jit
def _grid(pointer, o, group, outputs, groups, GROUPS: tl.constexpr):
    """[o, 32 GROUPS]: of each weight the number that its group has, from the first group on."""
    g = group + tl.arange(0, GROUPS)
    numbers = tl.load(pointer + o[:, None].to(tl.int64) * groups + g[None, :], mask=o[:, None] < outputs, other=0.0)
    spread = tl.broadcast_to(numbers.to(tl.float32)[:, :, None], (o.shape[0], GROUPS, 32))
    return tl.reshape(spread, (o.shape[0], GROUPS * 32))


@triton.jit
def _int4(w_ptr, step_ptr, minimum_ptr, o, k0, outputs, inputs, dtype: tl.constexpr, BK: tl.constexpr):
    """[o, BK / 2] twice: the first and the second half of the weights of BK inputs from k0 on, a byte having one of
    each. `inputs`: a multiple of BK."""
    HALF: tl.constexpr = BK // 2
    j = k0 // 2 + tl.arange(0, HALF)
    row = o[:, None].to(tl.int64) * (inputs // 2)
    pairs = tl.load(w_ptr + row + j[None, :], mask=o[:, None] < outputs, other=0).to(tl.int32)
    first, second = k0 // 32, (k0 + HALF) // 32
    groups = inputs // 32
    low = (pairs & 15).to(tl.float32) * _grid(step_ptr, o, first, outputs, groups, HALF // 32)
    low += _grid(minimum_ptr, o, first, outputs, groups, HALF // 32)
    high = (pairs >> 4).to(tl.float32) * _grid(step_ptr, o, second, outputs, groups, HALF // 32)
    high += _grid(minimum_ptr, o, second, outputs, groups, HALF // 32)
    return low.to(dtype), high.to(dtype)


@triton.jit
def _finished(sums, scale_ptr, bias_ptr, o, outputs, first, BITS: tl.constexpr, BIASED: tl.constexpr):
    """The sums [o, r] by their rows' scales, and with the bias where they begin with the first input."""
    if BITS == 8:
        sums *= tl.load(scale_ptr + o, mask=o < outputs, other=0.0)[:, None]
    if BIASED:
        biased = tl.where(first == 0, outputs, 0)
        sums += tl.load(bias_ptr + o, mask=o < biased, other=0.0).to(tl.float32)[:, None]
    return sums


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    minimum_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    rows,
    inputs,
    outputs,
    packed,
    span,
    BITS: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    GATED: tl.constexpr,
    BO: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """y [rows, outputs] of x [rows, inputs]: weights [outputs, inputs] in 16 or 32 bits (BITS 16), in 8 with a scale
    for each output, or in 4 with a step (`scale_ptr`) and a minimum per group of 32, padded to `packed` inputs. ADDED:
    plus a residual. GATED: of the weights' 2 outputs rows, y = silu(first half) * second half. The inputs come in
    parts of `span`, a multiple of BK; of several, y is [parts, rows, outputs], and the first has the bias."""
    first = tl.program_id(2) * span
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    HALVES: tl.constexpr = 2 if GATED else 1
    height = outputs * HALVES
    inside = o < outputs
    below = tl.where(inside, o + outputs, height)  # the same outputs of the second half
    sums = tl.zeros((BO, BR), dtype=tl.float32)
    second = tl.zeros((BO, BR), dtype=tl.float32)
    for k0 in range(first, tl.minimum(first + span, inputs), BK):
        if BITS == 4:
            HALF: tl.constexpr = BK // 2
            x_low = _inputs(x_ptr, r, k0 + tl.arange(0, HALF), rows, inputs)
            x_high = _inputs(x_ptr, r, k0 + HALF + tl.arange(0, HALF), rows, inputs)
            low, high = _int4(w_ptr, scale_ptr, minimum_ptr, o, k0, height, packed, dtype, BK)
            sums = dot(high, x_high, dot(low, x_low, sums, WIDEN), WIDEN)
            if GATED:
                low, high = _int4(w_ptr, scale_ptr, minimum_ptr, below, k0, height, packed, dtype, BK)
                second = dot(high, x_high, dot(low, x_low, second, WIDEN), WIDEN)
        else:
            k = k0 + tl.arange(0, BK)
            x = _inputs(x_ptr, r, k, rows, inputs)
            sums = dot(_weights(w_ptr, o, k, height, inputs, dtype, WIDEN), x, sums, WIDEN)
            if GATED:
                second = dot(_weights(w_ptr, below, k, height, inputs, dtype, WIDEN), x, second, WIDEN)
    y = _finished(sums, scale_ptr, bias_ptr, o, height, first, BITS, BIASED)
    if GATED:
        y = y / (1 + tl.exp(-y)) * _finished(second, scale_ptr, bias_ptr, below, height, first, BITS, BIASED)
    y_ptr += tl.program_id(2).to(tl.int64) * rows * outputs
    at = r[None, :].to(tl.int64) * outputs + o[:, None]
    wanted = inside[:, None] & (r[None, :] < rows)
    if ADDED:
        y += tl.load(residual_ptr + at, mask=wanted, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def added_kernel(parts_ptr, residual_ptr, y_ptr, size, PARTS: tl.constexpr, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    """y [size] = the sum of parts [PARTS, size] from the first up, ADDED: plus a residual."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    y = tl.load(parts_ptr + at, mask=inside, other=0.0)
    for _ in tl.static_range(PARTS - 1):
        parts_ptr += size
        y += tl.load(parts_ptr + at, mask=inside, other=0.0)
    if ADDED:
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
