"""Linear layers whose inputs are split among ranks.

Legend: N rows, I inputs, O outputs, R ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from methods.engine.backends.base import LinearLayer

Gather = Callable[[Tensor], Tensor]  # a rank's partial sums, [N, O] in fp32: those of all ranks in order, [R, N, O]
GATHERED = 1024  # rows whose partial sums are gathered at once: those of a long prompt would take much memory


def added(parts_RNO: Tensor, residual_NO: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sum of partial sums from the first up, then of that and a residual, [N, O], rounded once."""
    total_NO = parts_RNO[0]
    for part_NO in parts_RNO[1:]:
        total_NO = total_NO + part_NO
    return (total_NO if residual_NO is None else total_NO + residual_NO).to(dtype)


class Joined:
    """y = x W^T, of which each rank has some columns of W and of x, and computes a partial sum. These are added in
    order of rank, so a row's bits depend neither on how many rows there are nor on who is done first, as those of an
    all-reduce may."""

    def __init__(
        self, partial: LinearLayer, gather: Gather, out_dtype: torch.dtype, add: Callable[..., Tensor] = added
    ) -> None:
        """`partial`: this rank's columns; it gives its sums in fp32. `gather`: to be called by all ranks. `add`: what
        `added` does."""
        self.partial, self.gather, self.out_dtype, self.add = partial, gather, out_dtype, add

    @property
    def weight_size(self) -> float:
        return self.partial.weight_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's weights."""
        return self.partial.weight_bytes

    def __call__(self, x_NI: Tensor, residual_NO: Tensor | None = None) -> Tensor:
        """The same on each of the ranks, [N, O]. `residual_NO`: to be added."""
        blocks = self.partial(x_NI).split(GATHERED)
        residuals = [None] * len(blocks) if residual_NO is None else residual_NO.split(GATHERED)
        sums = [self.add(self.gather(b), r, self.out_dtype) for b, r in zip(blocks, residuals, strict=True)]
        return sums[0] if len(sums) == 1 else torch.cat(sums)
