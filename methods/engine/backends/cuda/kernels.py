"""The kernels of all that is no linear layer on CUDA, in Triton. Each sums in an order that a row's own path decides
alone:

- attention sums keys in the order of their *positions*, in splits of SPLIT positions, wherever in the cache they lie. A
  split of committed rows is shared by tiles of several nodes; the splits that a tree reaches into are walked per node,
  through the rows of its own path. Both run the same products, so neither siblings, nor the length of the cache, nor
  the number of rows enters. Splits are then merged from the first up;
- a norm is a program per row, whose sum is a tree of one shape.

Legend: d head width, G query heads of a key/value head, p positions.
"""

import triton
import triton.language as tl

from methods.engine.backends.cuda.products import dot

RUNTIME = ["rows", "nodes", "capacity", "splits", "shared_tiles", "own_splits"]  # no variant of a kernel for a value


@triton.jit
def norm_kernel(x_ptr, weight_ptr, y_ptr, width, eps, BD: tl.constexpr):
    """y = x / rms(x) * weight of a row."""
    d = tl.arange(0, BD)
    inside = d < width
    at = tl.program_id(0).to(tl.int64) * width + d
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * weight
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUNTIME)
def rotate_kernel(
    qkv_ptr,
    cosine_ptr,
    sine_ptr,
    q_norm_ptr,
    k_norm_ptr,
    state_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    capacity,
    eps,
    H: tl.constexpr,
    KH: tl.constexpr,
    D: tl.constexpr,
    BH: tl.constexpr,
    HEADS: tl.constexpr,
    NORMED: tl.constexpr,
):
    """Some heads of a row of qkv [rows, (H + 2 KH) D]: queries, normed where NORMED and rotated, go into q [rows, H D];
    keys likewise into keys [KH, capacity, D], values as they are into values, in the row that follows those of the
    state: the committed ones, and the nodes that are known. Cosines and signed sines: [rows, D]."""
    row = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    HALF: tl.constexpr = D // 2
    i = tl.arange(0, BH)
    inside = (head[:, None] < H + 2 * KH) & (i[None, :] < HALF)
    x_ptr = qkv_ptr + row.to(tl.int64) * (H + 2 * KH) * D + head[:, None] * D + i[None, :]
    a, b = tl.load(x_ptr, mask=inside, other=0.0), tl.load(x_ptr + HALF, mask=inside, other=0.0)
    x, y = a.to(tl.float32), b.to(tl.float32)
    if NORMED:
        scale = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / D + eps)[:, None]
        of_q = head[:, None] < H
        x *= scale * tl.where(of_q, _numbers(q_norm_ptr, i, HALF), _numbers(k_norm_ptr, i, HALF))
        y *= scale * tl.where(of_q, _numbers(q_norm_ptr + HALF, i, HALF), _numbers(k_norm_ptr + HALF, i, HALF))
    cosine_ptr += row * D
    sine_ptr += row * D
    first = x * _numbers(cosine_ptr, i, HALF) + y * _numbers(sine_ptr, i, HALF)
    second = y * _numbers(cosine_ptr + HALF, i, HALF) + x * _numbers(sine_ptr + HALF, i, HALF)
    first, second = first.to(a.dtype), second.to(a.dtype)
    query = inside & (head[:, None] < H)
    q_ptr += row.to(tl.int64) * H * D + head[:, None] * D + i[None, :]
    tl.store(q_ptr, first, mask=query)
    tl.store(q_ptr + HALF, second, mask=query)
    place = tl.load(state_ptr) + tl.load(state_ptr + 1) + row
    key = (head - H)[:, None]
    keys_ptr += (key.to(tl.int64) * capacity + place) * D + i[None, :]
    tl.store(keys_ptr, first, mask=inside & (key >= 0) & (key < KH))
    tl.store(keys_ptr + HALF, second, mask=inside & (key >= 0) & (key < KH))
    values_ptr += ((key - KH).to(tl.int64) * capacity + place) * D + i[None, :]
    tl.store(values_ptr, a, mask=inside & (key >= KH))
    tl.store(values_ptr + HALF, b, mask=inside & (key >= KH))


@triton.jit
def _numbers(pointer, i, count: tl.constexpr):
    """[1, i], in fp32."""
    return tl.load(pointer + i, mask=i < count, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=RUNTIME)
def paths_kernel(state_ptr, depths_ptr, paths_ptr, nodes):
    """Of a row of the pass the depth of its node, and the nodes from the root to it, paths [rows, nodes]. The state:
    committed rows, known nodes, then each node's parent."""
    row = tl.program_id(0)
    parents_ptr = state_ptr + 2
    own = tl.load(state_ptr + 1) + row
    depth = own * 0
    node = tl.load(parents_ptr + own)
    while node >= 0:
        depth += 1
        node = tl.load(parents_ptr + node)
    tl.store(depths_ptr + row, depth)
    node = own
    while node >= 0:
        tl.store(paths_ptr + row * nodes + depth, node)
        depth -= 1
        node = tl.load(parents_ptr + node)


@triton.jit(do_not_specialize=RUNTIME)
def partial_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    state_ptr,
    depths_ptr,
    paths_ptr,
    sums_ptr,
    tops_ptr,
    rows,
    nodes,
    capacity,
    splits,
    shared_tiles,
    own_splits,
    scale,
    H: tl.constexpr,
    KH: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Attention of a tile of query rows of q [rows, H, D] to the keys of one split: sums [rows, H, splits, D] of the
    values, tops [rows, H, splits, 2] with the largest score and the sum of weights. `scale` is by log2(e).

    Programs below shared_tiles * splits: the heads of a group of several rows, over a split that ends before the root.
    Behind those: the heads of one row, over a split that its path reaches into, the key of position `length` + j being
    in the row of the path's node j."""
    program, head = tl.program_id(0), tl.program_id(1)
    G: tl.constexpr = H // KH
    length = tl.load(state_ptr)
    start = length // SPLIT * SPLIT  # the first position of the split that the root is in
    shared = program < shared_tiles * splits
    behind = program - shared_tiles * splits
    own = tl.where(shared, 0, behind // own_splits)
    split = tl.where(shared, program // shared_tiles, start // SPLIT + behind % own_splits)
    stop = tl.where(shared, start, length + tl.load(depths_ptr + own) + 1)  # positions that are seen
    if split * SPLIT < stop:
        t, d = tl.arange(0, TILE), tl.arange(0, BD)
        flat = tl.where(shared, program % shared_tiles * TILE + t, own * G + t)  # row * G + head within the group
        row = flat // G
        valid = (row < rows) & (t < tl.where(shared, TILE, G))
        at = row.to(tl.int64) * H + head * G + flat % G
        width = d[None, :] < D
        q = tl.load(q_ptr + at[:, None] * D + d[None, :], mask=valid[:, None] & width, other=0.0)
        keys_ptr += head.to(tl.int64) * capacity * D
        values_ptr += head.to(tl.int64) * capacity * D
        top = tl.full((TILE,), float("-inf"), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        sums = tl.zeros((TILE, BD), tl.float32)
        for begin in range(split * SPLIT, tl.minimum(stop, split * SPLIT + SPLIT), BLOCK):
            p = begin + tl.arange(0, BLOCK)
            seen = p < stop
            node = tl.load(paths_ptr + own * nodes + p - length, mask=seen & (p >= length), other=0)
            place = tl.where(p < length, p, length + node)[:, None] * D + d[None, :]
            k = tl.load(keys_ptr + place, mask=seen[:, None] & width, other=0.0)
            v = tl.load(values_ptr + place, mask=seen[:, None] & width, other=0.0)
            scores = dot(q, tl.trans(k), tl.zeros((TILE, BLOCK), tl.float32), WIDEN) * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            larger = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp2(scores - larger[:, None])
            before = tl.exp2(top - larger)
            total = total * before + tl.sum(weights, 1)
            sums = dot(weights.to(v.dtype), v, sums * before[:, None], WIDEN)
            top = larger
        out = at * splits + split
        tl.store(sums_ptr + out[:, None] * D + d[None, :], sums, mask=valid[:, None] & width)
        tl.store(tops_ptr + out * 2, top, mask=valid)
        tl.store(tops_ptr + out * 2 + 1, total, mask=valid)


@triton.jit(do_not_specialize=RUNTIME)
def merge_kernel(
    sums_ptr,
    tops_ptr,
    state_ptr,
    depths_ptr,
    y_ptr,
    splits,
    H: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    SPLIT: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """The splits of a head of a row, from the first up, TOGETHER at a time, into y [rows, H, D]."""
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BD)
    at = row.to(tl.int64) * H + head
    count = (tl.load(state_ptr) + tl.load(depths_ptr + row)) // SPLIT + 1
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    y = tl.zeros((BD,), tl.float32)
    for first in range(0, count, TOGETHER):
        split = first + tl.arange(0, TOGETHER)
        there = split < count
        out = at * splits + split
        tops = tl.load(tops_ptr + out * 2, mask=there, other=float("-inf"))
        totals = tl.load(tops_ptr + out * 2 + 1, mask=there, other=0.0)
        inside = there[:, None] & (d[None, :] < D)
        sums = tl.load(sums_ptr + out[:, None] * D + d[None, :], mask=inside, other=0.0)
        larger = tl.maximum(top, tl.max(tops, 0))
        before, now = tl.exp2(top - larger), tl.exp2(tops - larger)
        total = total * before + tl.sum(totals * now, 0)
        y = y * before + tl.sum(sums * now[:, None], 0)
        top = larger
    tl.store(y_ptr + at * D + d, (y / total).to(y_ptr.dtype.element_ty), mask=d < D)
