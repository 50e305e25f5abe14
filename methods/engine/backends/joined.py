"""Linear layers whose inputs are split among ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from methods.engine.backends.base import LinearLayer

Total = Callable[[Tensor], Tensor]  # of the partial sums of all ranks, [N, O] in fp32, on every rank


class Joined:
    """y = x W^T, of which each rank has some columns of W and of x, and computes a partial sum."""

    def __init__(self, partial: LinearLayer, total: Total, out_dtype: torch.dtype) -> None:
        """`partial`: this rank's columns; it gives its sums in fp32. `total`: to be called by all ranks."""
        self.partial, self.total, self.out_dtype = partial, total, out_dtype

    @property
    def weight_size(self) -> float:
        return self.partial.weight_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's weights."""
        return self.partial.weight_bytes

    def __call__(self, x_NI: Tensor) -> Tensor:
        return self.total(self.partial(x_NI)).to(self.out_dtype)
